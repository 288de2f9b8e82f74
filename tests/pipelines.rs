//! Whole images against diffusers, on the small random pipelines of `golden/pipelines.py`; and against
//! themselves, drawn alone or in company.

mod golden;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use golden::{assert_close, assert_same, get};
use image::{DynamicImage, GrayImage, RgbImage};
use nadir::io::TensorSource;
use nadir::io::safetensors::SafeTensors;
use nadir::pipeline::{
    Cancel, Event, InitImage, LoadOptions, Request, Run, Settings, SlotId, TextToImage, Warning,
};
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::weighting::LongPrompt;
use nadir::{Error, Result};
use serde_json::Value;
use tempfile::TempDir;

/// A case of `golden/pipelines/`.
struct Case {
    golden: SafeTensors,
    json: Value,
    /// A model folder.
    folder: PathBuf,
    /// Where `folder` is, unless it is this repository's.
    _temporary: Option<TempDir>,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "golden.safetensors" && entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

impl Case {
    fn open(name: &str) -> Result<Self> {
        let from = golden::path("pipelines").join(name);
        let json: Value =
            serde_json::from_slice(&fs::read(from.join("case.json")).unwrap()).unwrap();
        let golden = golden::open(&format!("pipelines/{name}"))?;
        if let Some(folder) = json["components"].as_str() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
            return Ok(Self { golden, json, folder, _temporary: None });
        }
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        copy(&from, &folder);
        copy(&from.join("scheduler"), &folder.join("scheduler"));
        for (component, source) in json["components"].as_object().unwrap() {
            let kind = if component == "tokenizer" { "pipelines" } else { "models" };
            copy(&golden::path(kind).join(source.as_str().unwrap()), &folder.join(component));
        }
        Ok(Self { golden, json, folder, _temporary: Some(temporary) })
    }

    fn load(&self, dtype: DType) -> Result<TextToImage> {
        TextToImage::load(&self.folder, &LoadOptions { dtype, ..LoadOptions::default() })
    }

    /// The request for the first picture of the case.
    fn request(&self) -> Request {
        let arguments = &self.json["arguments"];
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| arguments[name].as_f64().map(|x| x as f32);
        let count = |name: &str| arguments[name].as_u64().map(|x| x as usize);
        let settings = Settings {
            prompt: text("prompt"),
            negative_prompt: text("negative_prompt"),
            width: count("width"),
            height: count("height"),
            steps: count("num_inference_steps"),
            guidance_scale: number("guidance_scale"),
            guidance_rescale: number("guidance_rescale").unwrap_or_default(),
            eta: number("eta").unwrap_or_default(),
            clip_skip: count("clip_skip").unwrap_or_default(),
            strength: arguments["strength"].as_f64(),
            ..Settings::default()
        };
        let seed = self.json["seed"].as_u64().unwrap();
        Request { settings, seed, init: self.init().map(Arc::new), ..Request::default() }
    }

    fn images(&self) -> usize {
        self.json["num_images_per_prompt"].as_u64().unwrap() as usize
    }

    fn init(&self) -> Option<InitImage> {
        let picture = self.golden.read("init").ok()?; // [H, W, 3]
        let (height, width) = (picture.dim(0) as u32, picture.dim(1) as u32);
        let image = RgbImage::from_raw(width, height, picture.to_vec().unwrap()).unwrap();
        let mask = self.golden.read("mask").ok().map(|mask| {
            let grey = GrayImage::from_raw(width, height, mask.to_vec().unwrap()).unwrap();
            DynamicImage::from(grey).to_rgb8()
        });
        Some(InitImage { image, mask })
    }
}

/// The same request for `n` consecutive seeds.
fn seeds(request: &Request, n: usize) -> Vec<Request> {
    (0..n as u64).map(|i| Request { seed: request.seed + i, ..request.clone() }).collect()
}

/// What became of one request.
#[derive(Default)]
struct Drawn {
    /// Behind every step; [1, h, w, 4].
    latents: Vec<Tensor>,
    warnings: Vec<Warning>,
    picture: RgbImage,
}

fn generate(model: &TextToImage, requests: Vec<Request>, limit: usize) -> Result<Vec<Drawn>> {
    let mut drawn: Vec<Drawn> = requests.iter().map(|_| Drawn::default()).collect();
    model.generate(requests, limit, &mut |event| {
        match event {
            Event::Began { slot, warnings, .. } => drawn[slot.0].warnings = warnings,
            Event::Stepped { slot, latents, .. } => drawn[slot.0].latents.push(latents),
            Event::Finished { slot, result } => drawn[slot.0].picture = result?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(drawn)
}

/// The bytes of an image as numbers from 0 to 1.
fn levels(image: &RgbImage) -> Vec<f32> {
    image.as_raw().iter().map(|&x| f32::from(x) / 255.0).collect()
}

/// Peak signal-to-noise ratio in dB between bytes and numbers from 0 to 1.
fn psnr(ours: &[u8], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let squares =
        ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) / 255.0 - f64::from(b)).powi(2));
    -10.0 * (squares.sum::<f64>() / theirs.len() as f64).log10()
}

fn check_f32(name: &str) -> Result<()> {
    let case = Case::open(name)?;
    let n = case.images();
    let drawn = generate(&case.load(DType::F32)?, seeds(&case.request(), n), n)?;
    for Drawn { warnings, .. } in &drawn {
        // The long prompt is cut with a warning, as diffusers does; nothing else deserves one.
        assert_eq!(warnings.len(), usize::from(name == "euler_a_clip_skip"), "{warnings:?}");
    }
    let latents = get(&case.golden, "latents"); // [steps, B, h, w, 4]
    for (i, Drawn { latents: ours, .. }) in drawn.iter().enumerate() {
        assert_eq!(ours.len(), latents.dim(0), "steps");
        for (step, ours) in ours.iter().enumerate() {
            let theirs = latents.narrow(0, step, 1)?.narrow(1, i, 1)?.reshape(ours.dims())?;
            // Ten times what one pass through the UNet may differ by: guidance multiplies a difference by up to
            // 2 * 7.5, and steps pass it on.
            assert_close(&format!("{name} {i} step {step}"), ours, &theirs, 1e-4);
        }
    }
    let bytes: Vec<u8> = drawn.iter().flat_map(|drawn| drawn.picture.as_raw()).copied().collect();
    let psnr = psnr(&bytes, &get(&case.golden, "image").to_vec()?);
    println!("{name}: {psnr:.1} dB (59 at most, since pixels are rounded)");
    assert!(psnr >= 50.0, "{name}: {psnr} dB");
    Ok(())
}

/// In 16 bits nobody gets the picture of f32. Ours in bf16 may be further from it than torch's by 3 dB, over the
/// seeds that the golden file knows: the error of a single picture is a matter of luck.
fn check_16_bits(name: &str, dtype: DType) -> Result<()> {
    let case = Case::open(name)?;
    let torch: Vec<f64> = serde_json::from_value(case.json["bf16_psnr"].clone()).unwrap();
    let requests = seeds(&case.request(), torch.len());
    let exact = generate(&case.load(DType::F32)?, requests.clone(), torch.len())?;
    let rounded = generate(&case.load(dtype)?, requests, torch.len())?;
    let ours: Vec<f64> = rounded
        .iter()
        .zip(&exact)
        .map(|(a, b)| psnr(a.picture.as_raw(), &levels(&b.picture)))
        .collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (ours, torch) = (mean(&ours), mean(&torch));
    println!("{name}: {ours:.1} dB in {dtype}, torch {torch:.1} in bf16");
    // f16 has three bits more than bf16, 18 dB. Errors of less than a level then change few levels, but those by a
    // whole one: an error of 0.8 rms on average, the normal distribution's, makes as many of a level.
    let allowed = if dtype == DType::BF16 {
        torch - 3.0
    } else {
        let rms = 10f64.powf(-(torch + 18.0 - 3.0) / 20.0);
        -10.0 * (rms * rms + 0.8 * rms / 255.0).log10()
    };
    assert!(ours >= allowed, "{name}: {ours} dB in {dtype}, not {allowed}; torch {torch} in bf16");
    Ok(())
}

macro_rules! cases {
    ($($name:ident)*) => {
        mod f32_is_diffusers {
            $(#[test] fn $name() -> nadir::Result<()> { super::check_f32(stringify!($name)) })*
        }
        mod bf16_is_as_close_as_torch {
            $(#[test] fn $name() -> nadir::Result<()> { super::check_16_bits(stringify!($name), super::DType::BF16) })*
        }
        /// The names of the folders in `golden/pipelines/` that are cases.
        const CASES: &[&str] = &[$(stringify!($name)),*];
    };
}

cases! {
    pndm ddim_v_zero_snr euler_karras dpmpp_2m_karras unipc_v heun ddim_eta euler_a_clip_skip dpmpp_2m_sde lcm
    img2img_pndm img2img_euler inpaint_ddim inpaint_euler_a inpaint9_dpmpp inpaint9_unipc
    eurosat
}

/// f16 has three bits more than bf16, and a range that these networks do not leave.
#[test]
fn f16_is_closer_than_bf16() -> Result<()> {
    ["pndm", "unipc_v", "eurosat"].into_iter().try_for_each(|name| check_16_bits(name, DType::F16))
}

#[test]
fn no_case_is_left_out() {
    for entry in fs::read_dir(golden::path("pipelines")).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        assert!(
            !entry.path().join("case.json").exists() || CASES.contains(&name.as_str()),
            "{name}"
        );
    }
}

/// An image does not depend on how many are drawn with it, on its place among them, or on the threads.
fn check_company(name: &str, dtype: DType) -> Result<()> {
    let case = Case::open(name)?;
    let model = case.load(dtype)?;
    let mut request = Request { seed: 1, ..case.request() };
    request.settings.steps = Some(3);
    let requests = seeds(&request, 7);
    let draw = |requests: &[Request], limit: usize, threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| generate(&model, requests.to_vec(), limit))
    };
    let alone = draw(&requests, 1, 1)?;
    assert_ne!(alone[0].picture, alone[1].picture);
    for (limit, threads) in [(1, 2), (2, 1), (2, 2), (7, 1), (7, 2)] {
        for reversed in [false, true] {
            let mut requests = requests.clone();
            if reversed {
                requests.reverse();
            }
            let mut others = draw(&requests, limit, threads)?;
            if reversed {
                others.reverse();
            }
            for (i, (one, other)) in alone.iter().zip(&others).enumerate() {
                let what = format!("{name}: seed {} of {limit}, {threads} threads", i + 1);
                assert_drawn_alike(&what, one, other);
            }
        }
    }
    Ok(())
}

fn assert_drawn_alike(what: &str, one: &Drawn, other: &Drawn) {
    assert_eq!(one.latents.len(), other.latents.len(), "{what}");
    for (a, b) in one.latents.iter().zip(&other.latents) {
        assert_same(what, a, b);
    }
    assert!(one.picture == other.picture, "{what}");
}

#[test]
fn company_changes_no_image_in_f32() -> Result<()> {
    check_company("pndm", DType::F32)
}

#[test]
fn company_changes_no_image_in_bf16() -> Result<()> {
    check_company("unipc_v", DType::BF16)
}

#[test]
fn company_changes_no_image_with_noise_in_every_step() -> Result<()> {
    check_company("euler_a_clip_skip", DType::F32)
}

#[test]
fn company_changes_no_painting() -> Result<()> {
    check_company("inpaint9_dpmpp", DType::F32)
}

/// What a server does with a run: eight pictures of different prompts, seeds, guidance, samplers and steps, two of
/// which join late, one cancelled, one made non-finite. Each of the others is the one drawn alone.
fn check_run(dtype: DType) -> Result<()> {
    let model = Case::open("pndm")?.load(dtype)?;
    let picture = |prompt: &str, seed: u64, scale: f32, sampler: &str, steps: usize| Request {
        settings: Settings {
            prompt: prompt.into(),
            guidance_scale: Some(scale),
            scheduler: Some(sampler.into()),
            steps: Some(steps),
            ..Settings::default()
        },
        seed,
        ..Request::default()
    };
    let mut requests = [
        picture("a satellite image of a river", 1, 7.5, "ddim", 6),
        picture("a forest", 2, 1.0, "euler_a", 5),
        // Weights beyond f32 once they are multiplied: the hidden states are infinite.
        picture("(a pasture:300000000000000000000000000000000000000)", 3, 3.0, "unipc", 4),
        picture("an airport", 4, 2.0, "heun", 3),
        picture(&"highways and houses ".repeat(40), 5, 4.0, "dpm++2m_karras", 7),
        picture("(a lake:1.4)", 6, 9.0, "pndm", 4),
        picture("", 7, 5.0, "dpm++2m_sde", 5),
        picture("a sea", 8, 1.0, "lcm", 4),
    ];
    requests[0].settings.negative_prompt = "clouds".into();
    requests[3].settings.guidance_rescale = 0.7;
    // Its context is longer than that of the others.
    requests[4].settings.long_prompts = LongPrompt::Chunk;
    requests[5].init = Some(Arc::new(InitImage {
        image: RgbImage::from_fn(32, 32, |x, y| image::Rgb([8 * x as u8, 8 * y as u8, 90])),
        mask: None,
    }));
    requests[6].settings.vae_tiling = true;
    let (late, cancelled, overflowing) = ([6, 7], 1, 2);

    let mut run = Run::new(&model, model.default_size(), 5)?;
    let mut ids = Vec::new();
    for request in &requests[..6] {
        ids.push(run.join(request.clone())?);
    }
    let mut drawn: Vec<Drawn> = requests.iter().map(|_| Drawn::default()).collect();
    let mut results: Vec<Option<Result<RgbImage>>> = requests.iter().map(|_| None).collect();
    while !run.is_empty() {
        for event in run.step()? {
            match event {
                Event::Stepped { slot, latents, evaluated } => {
                    drawn[slot.0].latents.push(latents);
                    assert_eq!(drawn[slot.0].latents.len(), evaluated);
                }
                Event::Finished { slot, result } => {
                    assert!(results[slot.0].is_none(), "{slot:?} finishes twice");
                    results[slot.0] = Some(result);
                }
                _ => {}
            }
        }
        if ids.len() == 6 && drawn[0].latents.len() == 2 {
            for i in late {
                ids.push(run.join(requests[i].clone())?);
            }
            // Goes before those that wait and those that began.
            run.set_priority(ids[7], 1);
            requests[cancelled].cancel.cancel();
        }
    }
    assert_eq!(ids, (0..8).map(SlotId).collect::<Vec<_>>());

    for (i, (mut one, result)) in drawn.into_iter().zip(results).enumerate() {
        let what = format!("slot {i} in {dtype}");
        match result.unwrap_or_else(|| panic!("{what} did not finish")) {
            Err(Error::Interrupted) => assert_eq!(i, cancelled),
            // Found at its first step, not when all are made.
            Err(Error::NotFinite(_)) => assert_eq!((i, one.latents.len()), (overflowing, 0)),
            Err(error) => panic!("{what}: {error}"),
            Ok(picture) => {
                assert!(i != cancelled && i != overflowing, "{what}");
                one.picture = picture;
                let alone = generate(&model, vec![requests[i].clone()], 1)?.remove(0);
                assert_drawn_alike(&what, &one, &alone);
            }
        }
    }
    Ok(())
}

#[test]
fn eight_slots_draw_what_each_draws_alone_in_f32() -> Result<()> {
    check_run(DType::F32)
}

#[test]
fn eight_slots_draw_what_each_draws_alone_in_bf16() -> Result<()> {
    check_run(DType::BF16)
}

#[test]
fn a_run_refuses_what_it_cannot_draw() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32)?;
    let mut run = Run::new(&model, model.default_size(), 2)?;
    let mut refuses = |change: fn(&mut Request), field: &str| {
        let mut request = Request::default();
        change(&mut request);
        match run.join(request) {
            Err(Error::Argument { name, .. }) => assert_eq!(name, field),
            other => panic!("{field}: {other:?}"),
        }
    };
    refuses(|r| r.settings.width = Some(512), "width");
    refuses(|r| r.settings.steps = Some(0), "steps");
    refuses(|r| r.settings.scheduler = Some("magic".into()), "scheduler");
    refuses(|r| r.settings.clip_skip = 99, "clip_skip");
    refuses(|r| r.settings.strength = Some(0.5), "init_image");
    assert!(run.is_empty());
    assert!(matches!(Run::new(&model, (64, 64), 0), Err(Error::Argument { name: "batch", .. })));
    Ok(())
}

/// A picture of a higher priority takes the place of one that was begun, which pauses and goes on unharmed.
#[test]
fn priorities_decide_who_goes_first() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32)?;
    let mut request = Request::default();
    (request.settings.steps, request.settings.scheduler) = (Some(3), Some("dpm++2m".into()));
    let requests = seeds(&request, 2);
    let mut run = Run::new(&model, model.default_size(), 1)?;
    let ids = [run.join(requests[0].clone())?, run.join(requests[1].clone())?];
    let mut finished = Vec::new();
    while !run.is_empty() {
        for event in run.step()? {
            match event {
                Event::Stepped { slot, evaluated: 1, .. } if slot == ids[0] => {
                    run.set_priority(ids[1], 1);
                }
                Event::Finished { slot, result } => finished.push((slot, result?)),
                _ => {}
            }
        }
    }
    for ((slot, picture), i) in finished.into_iter().zip([1, 0]) {
        assert_eq!(slot, ids[i]);
        assert!(picture == model.draw(requests[i].clone())?, "{i}");
    }
    Ok(())
}

/// A server shares a model between threads and moves runs to them.
#[test]
fn threads_share_models_and_move_runs() {
    fn share<T: Send + Sync>() {}
    fn give<T: Send>() {}
    share::<TextToImage>();
    share::<Request>();
    give::<Run<'_>>();
    give::<Event>();
}

/// Long work stops inside of itself too: between the chunks of a prompt and the tiles of a picture.
#[test]
fn cancellation_reaches_into_long_prompts_and_large_pictures() -> Result<()> {
    let model = Case::open("pndm")?.load(DType::F32)?;
    let cancel = Cancel::default();
    cancel.cancel();
    let latents = Tensor::zeros([1, 64, 64, 4], DType::F32, Device::Cpu)?;
    assert!(matches!(model.decode(&latents, true, &cancel), Err(Error::Interrupted)));
    let request = Request { cancel, ..Request::default() };
    assert!(matches!(model.draw(request), Err(Error::Interrupted)));
    Ok(())
}
