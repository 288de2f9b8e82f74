//! Tiny autoencoders against diffusers, on the small random configurations of `golden/tiny.py`; and the command line that puts
//! one in the place of a model's own.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::path::Path;
use std::process::{Command, Output};

use case::{Case, check_case, levels, psnr};
use golden::drawn::{Drawn, write};
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::models::vae::tiny::{TinyVae, TinyVaeConfig};
use nadir::nn::{Keep, Params, parameters};
use nadir::ops::elementwise::mul;
use nadir::ops::gradient::backward;
use nadir::ops::reduce::mean;
use nadir::pipeline::{Cancel, LoadOptions, TextToImage};
use nadir::tensor::{DType, Device, Tensor};
use serde_json::{Value, json};

/// As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
const TOLERANCE: f32 = 1e-5;

const NETWORKS: [&str; 3] = ["taesd", "other", "wide"];

fn load(name: &str, device: Device, keep: Keep) -> Result<TinyVae> {
    let folder = format!("tiny/{name}");
    let weights = Drawn::by_inputs(&folder);
    let count = weights.names().len();
    let config = Config::open(golden::path(&folder).join("config.json"))?.bounded_by(&weights);
    let params = Params::new(weights, DType::F32, device).keeping(keep);
    let model = TinyVae::load(TinyVaeConfig::read(&config)?, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    assert_eq!(parameters(&model).len(), count);
    Ok(model)
}

type Pass = fn(&TinyVae, &Tensor) -> Result<Tensor>;

fn check_network(name: &str, device: Device) -> Result<()> {
    let golden = golden::open(&format!("tiny/{name}"))?;
    let model = load(name, device, Keep::Frozen)?;
    let passes: [(&str, &str, &str, Pass); 2] = [
        ("encode", "image", "latents", TinyVae::encode),
        ("decode", "latents", "image", TinyVae::decode),
    ];
    for (pass, input, output, forward) in passes {
        for i in 0..2 {
            let x = get(&golden, &format!("{pass}.{i}.{input}")).to_device(device)?;
            let together = forward(&model, &x)?;
            let what = format!("{name} {pass} {i}");
            assert_close(
                &what,
                &together,
                &get(&golden, &format!("{pass}.{i}.{output}")),
                TOLERANCE,
            );
            for row in 0..x.dim(0) {
                let alone = forward(&model, &x.narrow(0, row, 1)?)?;
                assert_same(&what, &together.narrow(0, row, 1)?, &alone);
            }
        }
    }
    Ok(())
}

#[test]
fn networks_are_diffusers() -> Result<()> {
    NETWORKS.iter().try_for_each(|name| check_network(name, Device::Cpu))
}

#[test]
fn a_gpu_computes_what_the_cpu_does() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    NETWORKS.iter().try_for_each(|name| check_network(name, gpu))
}

#[test]
fn every_weight_gets_a_gradient() -> Result<()> {
    let golden = golden::open("tiny/other")?;
    let model = load("other", Device::Cpu, Keep::Trainable)?;
    let image = model.decode(&model.encode(&get(&golden, "encode.0.image"))?)?;
    let gradients = backward(mean(&mul(&image, &image)?, &[0, 1, 2, 3])?)?;
    for (name, parameter) in parameters(&model) {
        let gradient = gradients.get(&parameter.tensor().unwrap()).unwrap().to_vec::<f32>()?;
        assert!(gradient.iter().all(|g| g.is_finite()), "{name}");
        assert!(gradient.iter().any(|g| *g != 0.0), "{name}");
    }
    Ok(())
}

/// Tiles of 64 latents: a picture of one is the picture.
#[test]
fn a_picture_of_one_tile_is_not_cut() -> Result<()> {
    let model = load("taesd", Device::Cpu, Keep::Frozen)?;
    let latents = get(&golden::open("tiny/taesd")?, "decode.0.latents");
    let tiled = model.decode_tiled(&latents, &mut || Ok(()))?;
    assert_same("tiled", &tiled, &model.decode(&latents)?);
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_is_refused_by_its_field() {
    let path = golden::path("tiny/taesd/config.json");
    let read = |field: &str, value: Value| {
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json[field] = value;
        TinyVaeConfig::read(&Config::from_value(&path, json).unwrap()).err().map(|e| e.to_string())
    };
    assert_eq!(read("act_fn", "swish".into()), None);
    for (field, value) in [
        ("act_fn", json!("mish")),
        ("upsample_fn", json!("bilinear")),
        ("upsampling_scaling_factor", json!(3)),
        ("upsampling_scaling_factor", json!(0)),
        ("encoder_block_out_channels", json!([8, 8, 8])),
        ("encoder_block_out_channels", json!([8, 8, 8, 16])),
        ("decoder_block_out_channels", json!([])),
        ("shift_factor", json!(0.1)),
        ("scaling_factor", json!("much")),
        ("quantization", json!(true)),
        ("_class_name", json!("AutoencoderKL")),
    ] {
        let error = read(field, value.clone()).unwrap_or_else(|| panic!("{field} {value}"));
        assert!(error.contains("config.json") && error.contains(field), "{error}");
    }
}

#[test]
fn pictures_are_those_of_diffusers() -> Result<()> {
    for name in ["drawn", "redrawn"] {
        check_case(&Case::of("tiny", name)?, name, Device::Cpu)?;
    }
    Ok(())
}

/// The model of a case, but with an AutoencoderKL; and what is to take its place.
fn beside() -> Result<(Case, tempfile::TempDir)> {
    let (case, desk) = (Case::open("pndm")?, tempfile::tempdir().unwrap());
    write("tiny/taesd", &desk.path().join("taesd"));
    write("tiny/other", &desk.path().join("other"));
    Ok((case, desk))
}

#[test]
fn previews_are_decoded_by_their_own() -> Result<()> {
    let (case, desk) = beside()?;
    let taesd = Some(desk.path().join("taesd"));
    let with = |options| TextToImage::load(case.folder(), &options);
    let latents = Tensor::from_vec((0..96).map(|i| (i as f32).sin()).collect(), [1, 6, 4, 4])?;
    let plain = with(LoadOptions::default())?;
    let shown = with(LoadOptions { preview_vae: taesd.clone(), ..LoadOptions::default() })?;
    let replaced = with(LoadOptions { vae: taesd, ..LoadOptions::default() })?;
    let decode = |model: &TextToImage| model.decode(&latents, false, &Cancel::default());
    assert_same("pictures", &decode(&shown)?, &decode(&plain)?);
    // No picture depends on it.
    assert_eq!(shown.fingerprint(), plain.fingerprint());
    assert_ne!(replaced.fingerprint(), plain.fingerprint());
    let preview = |model: &TextToImage| model.preview(&latents, &Cancel::default());
    assert!(preview(&shown)? == preview(&replaced)?);
    assert!(preview(&shown)? != preview(&plain)?);
    Ok(())
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

#[test]
fn the_command_line_puts_one_in_the_place_of_the_models() -> Result<()> {
    let (case, desk) = beside()?;
    let at = desk.path();
    let theirs = Case::of("tiny", "drawn")?;
    let arguments = &theirs.json["arguments"];
    let text = |name: &str| arguments[name].as_str().unwrap();
    let model = case.folder().to_str().unwrap();
    let mut args = vec!["generate", text("prompt"), "-n", text("negative_prompt"), "-m", model];
    args.extend(["--steps=6", "-s1", "-W48", "-H64", "--cfg-scale=7.5", "--scheduler=ddim"]);
    let output = nadir(at, &[&args[..], &["--vae=taesd", "-o", "out.png"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let picture = |name: &str| image::open(at.join(name)).unwrap().into_rgb8();
    let exact = get(&golden::open("tiny/drawn")?, "image").to_vec::<f32>()?;
    let found = psnr(picture("out.png").as_raw(), &exact);
    assert!(found >= 50.0, "{found} dB");
    let again = nadir(at, &["replay", "out.png", "-o", "again.png"]);
    assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    assert!(picture("again.png") == picture("out.png"));
    std::fs::rename(at.join("taesd"), at.join("moved")).unwrap();
    let moved = nadir(at, &["replay", "out.png", "--vae=moved", "-o", "moved.png"]);
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    assert!(levels(&picture("moved.png")) == levels(&picture("out.png")));

    for (vae, words) in [
        ("other", "out_channels of the unet: expected 16"),
        ("none", "none"),
        (model, "config.json"),
    ] {
        let output = nadir(at, &[&args[..], &["--vae", vae, "-o", "refused.png"]].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains(words), "{vae}: {told}");
        assert!(!told.contains("panicked") && !at.join("refused.png").exists(), "{told}");
    }
    Ok(())
}
