//! Whole images against diffusers, on the small random pipelines of `golden/pipelines.py`; and against
//! themselves, drawn alone or in company.

mod golden;

use std::fs;
use std::path::{Path, PathBuf};

use golden::{assert_close, assert_same, get};
use image::{DynamicImage, GrayImage, RgbImage};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::safetensors::SafeTensors;
use nadir::pipeline::{InitImage, LoadOptions, Request, TextToImage, Watch};
use nadir::tensor::{DType, Tensor};
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

    fn request(&self) -> Request {
        let arguments = &self.json["arguments"];
        let text = |name: &str| arguments[name].as_str().unwrap_or_default().to_owned();
        let number = |name: &str| arguments[name].as_f64().map(|x| x as f32);
        let count = |name: &str| arguments[name].as_u64().map(|x| x as usize);
        let seed = self.json["seed"].as_u64().unwrap();
        let images = self.json["num_images_per_prompt"].as_u64().unwrap();
        Request {
            prompt: text("prompt"),
            negative_prompt: text("negative_prompt"),
            width: count("width"),
            height: count("height"),
            steps: count("num_inference_steps").unwrap(),
            guidance_scale: number("guidance_scale").unwrap(),
            guidance_rescale: number("guidance_rescale").unwrap_or_default(),
            eta: number("eta").unwrap_or_default(),
            clip_skip: count("clip_skip").unwrap_or_default(),
            seeds: (seed..seed + images).collect(),
            batch: images as usize,
            init: self.init(arguments["strength"].as_f64()),
            ..Request::default()
        }
    }

    fn init(&self, strength: Option<f64>) -> Option<InitImage> {
        let picture = self.golden.read("init").ok()?; // [H, W, 3]
        let (height, width) = (picture.dim(0) as u32, picture.dim(1) as u32);
        let image = RgbImage::from_raw(width, height, picture.to_vec().unwrap()).unwrap();
        let mask = self.golden.read("mask").ok().map(|mask| {
            let grey = GrayImage::from_raw(width, height, mask.to_vec().unwrap()).unwrap();
            DynamicImage::from(grey).to_rgb8()
        });
        Some(InitImage { image, strength: strength.unwrap(), mask })
    }
}

/// Keeps what a run shows.
#[derive(Default)]
struct Record {
    latents: Vec<Tensor>,
    warnings: Vec<String>,
}

impl Watch for Record {
    fn latents(&mut self, _: usize, latents: &Tensor) {
        self.latents.push(latents.clone());
    }
    fn warn(&mut self, message: &str) {
        self.warnings.push(message.to_owned());
    }
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
    let mut seen = Record::default();
    let images = case.load(DType::F32)?.generate(&case.request(), &mut seen)?;
    // The long prompt is cut with a warning, as diffusers does; nothing else deserves one.
    assert_eq!(
        seen.warnings.len(),
        usize::from(name == "euler_a_clip_skip"),
        "{:?}",
        seen.warnings
    );
    let latents = get(&case.golden, "latents"); // [steps, B, h, w, 4]
    assert_eq!(seen.latents.len(), latents.dim(0), "steps");
    for (step, ours) in seen.latents.iter().enumerate() {
        let theirs = latents.narrow(0, step, 1)?.reshape(ours.dims())?;
        // Ten times what one pass through the UNet may differ by: guidance multiplies a difference by up to
        // 2 * 7.5, and steps pass it on.
        assert_close(&format!("{name} step {step}"), ours, &theirs, 1e-4);
    }
    let bytes: Vec<u8> = images.iter().flat_map(|image| image.as_raw()).copied().collect();
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
    let first = case.request().seeds[0];
    let seeds = (first..first + torch.len() as u64).collect();
    let request = Request { seeds, batch: torch.len(), ..case.request() };
    let exact = case.load(DType::F32)?.generate(&request, &mut ())?;
    let rounded = case.load(dtype)?.generate(&request, &mut ())?;
    let ours: Vec<f64> =
        rounded.iter().zip(&exact).map(|(a, b)| psnr(a.as_raw(), &levels(b))).collect();
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (ours, torch) = (mean(&ours), mean(&torch));
    println!("{name}: {ours:.1} dB in {dtype}, torch {torch:.1} in bf16");
    let allowed = if dtype == DType::BF16 { 3.0 } else { 0.0 };
    assert!(ours >= torch - allowed, "{name}: {ours} dB in {dtype}, torch {torch} in bf16");
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

/// Images and last latents of `request`, in a pool of `threads` threads.
fn draw(
    model: &TextToImage,
    request: &Request,
    threads: usize,
) -> Result<(Vec<RgbImage>, Vec<Tensor>)> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    let mut seen = Record::default();
    let images = pool.install(|| model.generate(request, &mut seen))?;
    // The last latents of every batch: each batch shows `steps` of them.
    let steps = seen.latents.len() / request.seeds.len().div_ceil(request.batch);
    let last = seen.latents.chunks(steps).map(|batch| batch[steps - 1].clone());
    let mut alone = Vec::new();
    for batch in last {
        for i in 0..batch.dim(0) {
            alone.push(batch.narrow(0, i, 1)?.contiguous()?); // [1, h, w, 4]
        }
    }
    Ok((images, alone))
}

/// An image does not depend on how many are drawn with it, on its place among them, or on the threads.
fn check_company(name: &str, dtype: DType) -> Result<()> {
    let case = Case::open(name)?;
    let model = case.load(dtype)?;
    let request = Request { steps: 3, seeds: (1..=7).collect(), ..case.request() };
    let (images, latents) = draw(&model, &Request { batch: 1, ..request.clone() }, 1)?;
    assert_ne!(images[0], images[1]);
    for (batch, threads) in [(1, 2), (2, 1), (2, 2), (7, 1), (7, 2)] {
        for reversed in [false, true] {
            let mut request = Request { batch, ..request.clone() };
            if reversed {
                request.seeds.reverse();
            }
            let (mut other_images, mut other_latents) = draw(&model, &request, threads)?;
            if reversed {
                other_images.reverse();
                other_latents.reverse();
            }
            for i in 0..images.len() {
                let what = format!("{name}: seed {} at batch {batch}, {threads} threads", i + 1);
                assert_same(&what, &other_latents[i], &latents[i]);
                assert!(images[i] == other_images[i], "{what}");
            }
        }
    }
    Ok(())
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
