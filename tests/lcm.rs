//! Latent consistency models, and the adapter that makes one of any model, against diffusers, on the small random
//! configurations of `golden/lcm.py`.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::path::Path;
use std::process::{Command, Output};

use case::{Case, assert_drawn_alike, check_case, check_drawn, copy, generate};
use golden::drawn::{Drawn, write};
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::png::read_replay;
use nadir::models::unet::{Unet, UnetConfig, Vector};
use nadir::nn::lora::Adapter;
use nadir::nn::{Keep, Params, parameters};
use nadir::ops::layout::concat;
use nadir::pipeline::{LoadOptions, Request, TextToImage};
use nadir::tensor::{DType, Device};
use nadir::{Error, Result};

fn config() -> Result<UnetConfig> {
    UnetConfig::read(&Config::open(golden::path("lcm/unet/config.json"))?)
}

fn weights() -> Result<Drawn> {
    Drawn::asked(|params| Unet::load(config()?, params))
}

fn load(device: Device, keep: Keep) -> Result<Unet> {
    Unet::load(config()?, &Params::new(weights()?, DType::F32, device).keeping(keep))
}

fn told(guidance: f32) -> Vector {
    Vector { guidance: Some(guidance), ..Vector::default() }
}

fn check_unet(device: Device) -> Result<()> {
    let golden = golden::open("lcm/unet")?;
    let (model, scales) = (load(device, Keep::Frozen)?, get(&golden, "scales").to_vec::<f32>()?);
    for index in 0..2 {
        let [sample, text, timesteps, theirs] = ["sample", "text", "timesteps", "out"]
            .map(|name| get(&golden, &format!("{index}.{name}")));
        let (sample, text) = (sample.to_device(device)?, text.to_device(device)?);
        let timesteps = timesteps.to_vec::<f32>()?;
        let embed = |i: usize| model.embed(&timesteps[i..=i], &told(scales[i]));
        let embedded = (0..sample.dim(0)).map(embed).collect::<Result<Vec<_>>>()?;
        let times = concat(&embedded.iter().collect::<Vec<_>>(), 0)?;
        let together = model.forward(&sample, &times, &model.context(&text)?)?;
        // As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers. The scale's
        // angles reach 13200, and an f32's rounding of them 1e-3.
        assert_close(&format!("unet {index}"), &together, &theirs, 2e-5);
        for (i, times) in embedded.iter().enumerate() {
            let context = model.context(&text.narrow(0, i, 1)?)?;
            let alone = model.forward(&sample.narrow(0, i, 1)?, times, &context)?;
            assert_same(&format!("{index} image {i}"), &together.narrow(0, i, 1)?, &alone);
        }
    }
    Ok(())
}

#[test]
fn the_scale_of_guidance_is_told_as_in_diffusers() -> Result<()> {
    check_unet(Device::Cpu)
}

#[test]
fn a_gpu_is_told_the_scale_that_the_cpu_is() -> Result<()> {
    gpu().map_or(Ok(()), check_unet)
}

#[test]
fn a_scale_is_told_where_the_model_takes_one_and_nowhere_else() -> Result<()> {
    let model = load(Device::Cpu, Keep::Plain)?;
    let names: Vec<String> = parameters(&model).into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().any(|name| name == "time_embedding.cond_proj.weight"));
    assert_eq!(names.len(), weights()?.names().len());
    for vector in [Vector::default(), told(f32::NAN)] {
        let error = model.embed(&[1.0], &vector).unwrap_err().to_string();
        assert!(error.contains("guidance"), "{error}");
    }
    let plain = UnetConfig { vector: Default::default(), ..config()? };
    let plain = Unet::load(plain, &Params::new(weights()?, DType::F32, Device::Cpu))?;
    assert!(plain.embed(&[1.0], &told(2.0)).unwrap_err().to_string().contains("guidance"));
    assert!(plain.embed(&[1.0], &Vector::default()).is_ok());
    Ok(())
}

/// A case, its UNet drawn.
fn open(name: &str) -> Result<Case> {
    Case::assemble("lcm", name, |source, to| match source {
        "unet" => {
            copy(&golden::path("lcm/unet"), to);
            weights().unwrap().save(&to.join("diffusion_pytorch_model.safetensors"));
        }
        other => write(&format!("models/{other}"), to),
    })
}

#[test]
fn pictures_are_those_of_diffusers() -> Result<()> {
    ["text", "image"].iter().try_for_each(|name| check_case(&open(name)?, name, Device::Cpu))
}

#[test]
fn a_gpu_draws_the_same_pictures() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    ["text", "image"].iter().try_for_each(|name| check_case(&open(name)?, name, gpu))
}

/// The names are kohya's, in which LCM-LoRA is published; guidance is the ordinary one.
#[test]
fn an_adapter_draws_in_few_steps() -> Result<()> {
    let case = open("lora")?;
    let adapter = Adapter { path: golden::path("lora/kohya.safetensors"), weight: 1.0 };
    let options = LoadOptions { adapters: vec![adapter], ..LoadOptions::default() };
    let model = TextToImage::load(case.folder(), &options)?;
    check_drawn(&case, "lora", &model, &case.request(), Device::Cpu)
}

/// Each picture is told its own scale, takes one row, and is the one that is drawn alone.
#[test]
fn company_changes_no_scale() -> Result<()> {
    let case = open("text")?;
    let model = case.load(DType::F32, Device::Cpu)?;
    let request = |i: usize| {
        let mut request = Request { seed: 1, ..case.request() };
        request.settings.steps = Some(2);
        request.settings.guidance_scale = Some(i as f32 * 1.7);
        request
    };
    let requests: Vec<Request> = (0..7).map(request).collect();
    let alone = generate(&model, requests.clone(), 1)?;
    for i in 1..7 {
        assert_ne!(alone[0].picture, alone[i].picture, "{i}");
    }
    let together = generate(&model, requests, 7)?;
    for (i, (one, other)) in alone.iter().zip(&together).enumerate() {
        assert_drawn_alike(&i.to_string(), one, other);
    }
    Ok(())
}

#[test]
fn what_no_consistency_model_does_is_refused() -> Result<()> {
    let case = open("image")?;
    let model = case.load(DType::F32, Device::Cpu)?;
    let refused = |change: &dyn Fn(&mut Request)| {
        let mut request = case.request();
        change(&mut request);
        match model.sampler(&request).err().expect("it was taken") {
            Error::Argument { name, .. } => name,
            other => panic!("{other}"),
        }
    };
    let negative = |request: &mut Request| request.settings.negative_prompt = "blurry".into();
    assert_eq!(refused(&negative), "negative_prompt");
    // 0.05 of 50 steps is 2.
    assert_eq!(refused(&|request| request.settings.strength = Some(0.05)), "steps");
    let mask = |request: &mut Request| {
        let mut init = (**request.init.as_ref().unwrap()).clone();
        init.mask = Some(image::RgbImage::new(8, 8));
        request.init = Some(init.into());
    };
    assert_eq!(refused(&mask), "mask_image");
    Ok(())
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

/// The command that a model's card leads to, which leaves steps and scale to the pipeline.
#[test]
fn the_command_line_draws_with_what_the_pipeline_suggests() -> Result<()> {
    let desk = tempfile::tempdir().unwrap();
    let case = open("text")?;
    let model = case.folder().to_str().unwrap();
    let prompt = case.json["arguments"]["prompt"].as_str().unwrap();
    let args = ["generate", prompt, "-m", model, "-s3", "-W24", "-H32", "-o", "lcm.png"];
    let output = nadir(desk.path(), &args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let drawn = image::open(desk.path().join("lcm.png")).unwrap().into_rgb8();
    let psnr = case::psnr(drawn.as_raw(), &get(&golden::open("lcm/text")?, "image").to_vec()?);
    assert!(psnr >= 50.0, "{psnr} dB");
    let kept = read_replay(&desk.path().join("lcm.png"))?;
    assert_eq!((&kept["num_inference_steps"], &kept["guidance_scale"]), (&4.into(), &8.5.into()));
    let output = nadir(desk.path(), &[&args[..7], &["--negative-prompt=blurry"]].concat());
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--negative-prompt"));
    Ok(())
}
