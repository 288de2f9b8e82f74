//! Cases of `golden/pipelines/` (`pipelines.py` beside this file): small random pipelines, and what diffusers drew with
//! them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::golden::drawn::write;
use crate::golden::{self, assert_close, assert_same, get};
use image::{DynamicImage, GrayImage, RgbImage};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::safetensors::SafeTensors;
use nadir::pipeline::{
    Event, InitImage, LoadOptions, Metres, Request, Settings, TextToImage, Warning,
};
use nadir::tensor::{DType, Device, Tensor};
use serde_json::Value;
use tempfile::TempDir;

/// A case of `golden/pipelines/`.
pub struct Case {
    golden: SafeTensors,
    pub json: Value,
    /// A model folder.
    folder: PathBuf,
    /// Where `folder` is, unless it is this repository's.
    _temporary: Option<TempDir>,
}

pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "golden.safetensors" && entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// What the arguments of a call ask for.
pub fn settings(arguments: &Value) -> Settings {
    let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
    let number = |name: &str| arguments[name].as_f64().map(|x| x as f32);
    let count = |name: &str| arguments[name].as_u64().map(|x| x as usize);
    let pixels = |name: &str| serde_json::from_value(arguments[name].clone()).unwrap();
    Settings {
        prompt: text("prompt"),
        negative_prompt: text("negative_prompt"),
        prompt_2: text("prompt_2"),
        negative_prompt_2: text("negative_prompt_2"),
        width: count("width"),
        height: count("height"),
        steps: count("num_inference_steps"),
        guidance_scale: number("guidance_scale"),
        guidance_rescale: number("guidance_rescale").unwrap_or_default(),
        eta: number("eta").unwrap_or_default(),
        clip_skip: count("clip_skip").unwrap_or_default(),
        strength: arguments["strength"].as_f64(),
        place: arguments["place"].as_str().map(|place| place.parse().unwrap()),
        date: arguments["date"].as_str().map(|date| date.parse().unwrap()),
        gsd: arguments["gsd"].as_f64().map(|metres| Metres::new(metres).unwrap()),
        cloud: arguments["cloud"].as_f64(),
        original_size: pixels("original_size"),
        crops_coords_top_left: pixels("crops_coords_top_left"),
        target_size: pixels("target_size"),
        negative_original_size: pixels("negative_original_size"),
        negative_crops_coords_top_left: pixels("negative_crops_coords_top_left"),
        negative_target_size: pixels("negative_target_size"),
        ..Settings::default()
    }
}

impl Case {
    pub fn open(name: &str) -> Result<Self> {
        Self::of("pipelines", name)
    }

    /// The case `name` of a folder of goldens. Its components are in `models/`, or where their names say.
    pub fn of(kind: &str, name: &str) -> Result<Self> {
        Self::assemble(kind, name, |source, to| match source.contains('/') {
            true => write(source, to),
            false => write(&format!("models/{source}"), to),
        })
    }

    /// The case `name` of a folder of goldens, whose networks `write` puts where they belong.
    pub fn assemble(kind: &str, name: &str, write: impl Fn(&str, &Path)) -> Result<Self> {
        let from = golden::path(kind).join(name);
        let json: Value =
            serde_json::from_slice(&fs::read(from.join("case.json")).unwrap()).unwrap();
        let golden = golden::open(&format!("{kind}/{name}"))?;
        if let Some(folder) = json["components"].as_str() {
            let folder = golden::root().join(folder);
            return Ok(Self { golden, json, folder, _temporary: None });
        }
        let temporary = tempfile::tempdir().unwrap();
        let folder = temporary.path().to_owned();
        copy(&from, &folder);
        copy(&from.join("scheduler"), &folder.join("scheduler"));
        for (component, source) in json["components"].as_object().unwrap() {
            let (source, to) = (source.as_str().unwrap(), folder.join(component));
            match component.starts_with("tokenizer") {
                true => copy(&golden::path("pipelines").join(source), &to),
                false => write(source, &to),
            }
        }
        Ok(Self { golden, json, folder, _temporary: Some(temporary) })
    }

    #[allow(dead_code, reason = "not all tests that share this file ask")]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn load(&self, dtype: DType, device: Device) -> Result<TextToImage> {
        TextToImage::load(&self.folder, &LoadOptions { dtype, device, ..LoadOptions::default() })
    }

    /// The request for the first picture of the case.
    pub fn request(&self) -> Request {
        let settings = settings(&self.json["arguments"]);
        let seed = self.json["seed"].as_u64().unwrap();
        Request { settings, seed, init: self.init().map(Arc::new), ..Request::default() }
    }

    pub fn images(&self) -> usize {
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
        Some(InitImage { image: image.into(), mask })
    }
}

/// The same request for `n` consecutive seeds.
pub fn seeds(request: &Request, n: usize) -> Vec<Request> {
    (0..n as u64).map(|i| Request { seed: request.seed + i, ..request.clone() }).collect()
}

/// What became of one request.
#[derive(Default)]
pub struct Drawn {
    /// Behind every step; [1, h, w, 4].
    pub latents: Vec<Tensor>,
    pub warnings: Vec<Warning>,
    pub picture: RgbImage,
}

pub fn generate(model: &TextToImage, requests: Vec<Request>, limit: usize) -> Result<Vec<Drawn>> {
    let mut drawn: Vec<Drawn> = requests.iter().map(|_| Drawn::default()).collect();
    model.generate(requests, limit, &mut |event| {
        match event {
            Event::Began { slot, warnings, .. } => drawn[slot.0].warnings = warnings,
            Event::Stepped { slot, latents, .. } => drawn[slot.0].latents.push(latents),
            Event::Finished { slot, result } => drawn[slot.0].picture = result?.rgb()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(drawn)
}

/// The bytes of an image as numbers from 0 to 1.
pub fn levels(image: &RgbImage) -> Vec<f32> {
    image.as_raw().iter().map(|&x| f32::from(x) / 255.0).collect()
}

/// Peak signal-to-noise ratio in dB between bytes and numbers from 0 to 1.
pub fn psnr(ours: &[u8], theirs: &[f32]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let squares =
        ours.iter().zip(theirs).map(|(&a, &b)| (f64::from(a) / 255.0 - f64::from(b)).powi(2));
    -10.0 * (squares.sum::<f64>() / theirs.len() as f64).log10()
}

/// Asserts that a case is drawn in f32 as diffusers drew it: its latents behind every step, and its pictures.
pub fn check_f32(name: &str, device: Device) -> Result<()> {
    check_case(&Case::open(name)?, name, device)
}

/// As [`check_f32`], of a case that is called `name`.
pub fn check_case(case: &Case, name: &str, device: Device) -> Result<()> {
    check_drawn(case, name, &case.load(DType::F32, device)?, &case.request(), device)
}

/// As [`check_f32`], of `request` to the case's `model`.
pub fn check_drawn(
    case: &Case,
    name: &str,
    model: &TextToImage,
    request: &Request,
    device: Device,
) -> Result<()> {
    let n = case.images();
    let drawn = generate(model, seeds(request, n), n)?;
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
    println!("{name} on {device}: {psnr:.1} dB (59 at most, since pixels are rounded)");
    assert!(psnr >= 50.0, "{name}: {psnr} dB");
    Ok(())
}

/// Asserts that pictures that are drawn together are those drawn alone, bit for bit, and none of them the first.
#[allow(dead_code, reason = "not all tests that share this file ask")]
pub fn check_company(model: &TextToImage, requests: &[Request]) -> Result<()> {
    let alone = generate(model, requests.to_vec(), 1)?;
    for i in 1..alone.len() {
        assert_ne!(alone[0].picture, alone[i].picture, "{i}");
    }
    for limit in [2, 7] {
        let together = generate(model, requests.to_vec(), limit)?;
        for (i, (one, other)) in alone.iter().zip(&together).enumerate() {
            assert_drawn_alike(&format!("{i} of {limit}"), one, other);
        }
    }
    Ok(())
}

/// Asserts that two were drawn alike, bit for bit.
pub fn assert_drawn_alike(what: &str, one: &Drawn, other: &Drawn) {
    assert_eq!(one.latents.len(), other.latents.len(), "{what}");
    for (a, b) in one.latents.iter().zip(&other.latents) {
        assert_same(what, a, b);
    }
    assert!(one.picture == other.picture, "{what}");
}
