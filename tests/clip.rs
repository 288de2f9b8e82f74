//! CLIP against transformers and torchmetrics, on what `golden/clip.py` writes.

#[path = "golden/clip.rs"]
mod clip;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::BTreeSet;

use golden::{assert_close, assert_same, get};
use image::RgbImage;
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::image::{Filter, resize_with};
use nadir::io::safetensors::SafeTensors;
use nadir::models::clip::{Clip, ClipConfig, ClipVision, ClipVisionConfig};
use nadir::nn::{Keep, Params, parameters};
use nadir::ops::gradient::backward;
use nadir::ops::reduce::mean;
use nadir::pipeline::clip_score::{ClipScore, clip_score};
use nadir::tensor::{DType, Device, Tensor};

/// f32 against f64: sums of up to 147 terms, a dozen and a half one after the other; each rounds by 6e-8 of its size, and what
/// layers of random sign make of that has been seen to be 1e-6 of the largest value.
const TOLERANCE: f32 = 1e-5;

const NAMES: [&str; 2] = ["quick_gelu", "gelu"];

fn load(name: &str, device: Device) -> Result<Clip> {
    let folder = clip::folder(name);
    let weights = Weights::open(folder.path(), None)?;
    let config = ClipConfig::read(Config::open(folder.path().join("config.json"))?, &weights)?;
    let params = Params::new(weights, DType::F32, device);
    let model = Clip::load(config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new());
    Ok(model)
}

fn pictures(golden: &SafeTensors) -> Vec<RgbImage> {
    let picture = |i| {
        let levels = get(golden, &format!("picture.{i}"));
        let (width, height) = (levels.dim(1) as u32, levels.dim(0) as u32);
        RgbImage::from_raw(width, height, levels.to_vec().unwrap()).unwrap()
    };
    (0..3).map(picture).collect()
}

fn texts() -> Vec<String> {
    serde_json::from_str(&std::fs::read_to_string(golden::path("clip/texts.json")).unwrap())
        .unwrap()
}

#[test]
fn both_encoders_are_transformers() -> Result<()> {
    for name in NAMES {
        let golden = golden::open(&format!("clip/{name}"))?;
        let model = load(name, Device::Cpu)?;
        let pixels = get(&golden, "pixels");
        let images = model.embed_images(&pixels)?;
        assert_close(name, &images, &get(&golden, "images"), TOLERANCE);
        let texts = model.embed_texts(&get(&golden, "ids"))?;
        assert_close(name, &texts, &get(&golden, "texts"), TOLERANCE);
        for i in 0..3 {
            let alone = model.embed_images(&pixels.narrow(0, i, 1)?.contiguous()?)?;
            assert_same("a picture alone", &alone, &images.narrow(0, i, 1)?);
            let alone = model.embed_texts(&get(&golden, "ids").narrow(0, i, 1)?.contiguous()?)?;
            assert_same("a text alone", &alone, &texts.narrow(0, i, 1)?);
        }
        // A strided view, and pictures of another size.
        let doubled = nadir::ops::layout::concat(&[&pixels, &pixels], 2)?;
        let view = doubled.narrow(2, pixels.dim(2), pixels.dim(2))?;
        assert_same("a view", &model.embed_images(&view)?, &images);
        assert!(matches!(model.embed_images(&doubled), Err(nadir::Error::Shape { .. })));
    }
    Ok(())
}

/// A vision encoder alone, under the names of either class of transformers 5.
#[test]
fn a_vision_encoder_alone_is_read_too() -> Result<()> {
    for (name, prefix) in [("quick_gelu", "vision_model."), ("gelu", "")] {
        let golden = golden::open(&format!("clip/{name}"))?;
        let (folder, alone) = (clip::folder(name), tempfile::tempdir().unwrap());
        let source = SafeTensors::open(folder.path().join("model.safetensors"))?;
        let mut tensors = Vec::new();
        for name in source.names() {
            if let Some(own) = name.strip_prefix("vision_model.") {
                tensors.push((format!("{prefix}{own}"), source.read(&name)?));
            }
        }
        let file = alone.path().join("model.safetensors");
        nadir::io::safetensors::save(&file, &tensors, &Default::default())?;
        let config = Config::open(folder.path().join("config.json"))?;
        let config = config.value("vision_config").unwrap().clone();
        let config = ClipVisionConfig::read(&Config::from_value("config.json", config)?)?;
        let params = Params::new(Weights::open(alone.path(), None)?, DType::F32, Device::Cpu);
        let model = ClipVision::load(config, &params)?;
        assert_eq!(params.finish()?, Vec::<String>::new());
        let pixels = get(&golden, "pixels");
        assert_close("states", &model.states(&pixels)?, &get(&golden, "states"), TOLERANCE);
        assert_close("pooled", &model.forward(&pixels)?, &get(&golden, "pooled"), TOLERANCE);
    }
    Ok(())
}

#[test]
fn scores_are_those_of_torchmetrics() -> Result<()> {
    for name in NAMES {
        let golden = golden::open(&format!("clip/{name}"))?;
        let folder = clip::folder(name);
        let clip = ClipScore::open(folder.path(), Device::Cpu)?;
        let (pictures, texts) = (pictures(&golden), texts());
        let found = clip.pictures(&pictures)?.similarity(&clip.texts(&texts)?)?;
        // Of at most 100: the tolerance is that of embeddings.
        let expected = get(&golden, "scores").to_vec::<f32>()?;
        for (found, expected) in found.iter().zip(&expected) {
            let error = (clip_score(&[*found]) - f64::from(*expected)).abs();
            println!("{name}: {found} off by {error:.1e}");
            assert!(error <= 1e-4, "{name}: {found}, not {expected}");
        }
        let mean = f64::from(get(&golden, "mean").to_vec::<f32>()?[0]);
        let error = (clip_score(&found) - mean).abs();
        assert!(error <= 1e-4, "{name}: {}, not {mean}", clip_score(&found));
        // As many texts as pictures, and a text that is cut.
        assert!(clip.pictures(&pictures)?.similarity(&clip.texts(&texts[..2])?).is_err());
        let long = "river ".repeat(90);
        assert!(clip.texts(&[long])?.left_out[0].is_some());
    }
    assert!(clip_score(&[]).is_nan() && clip_score(&[f64::NAN]).is_nan());
    assert_eq!(clip_score(&[-3.0, 1.0]), 0.0);
    Ok(())
}

/// What Pillow makes of levels by its bicubic filter, larger, smaller and both: to the bit.
#[test]
fn pictures_are_resized_as_pillow_does() -> Result<()> {
    for name in NAMES {
        let golden = golden::open(&format!("clip/{name}"))?;
        let config = Config::open(golden::path(&format!("clip/{name}/preprocessor_config.json")))?;
        let edge = config.value("size").unwrap()["shortest_edge"].as_u64().unwrap() as u32;
        let side = config.value("crop_size").unwrap()["width"].as_u64().unwrap() as u32;
        let [mean, std] = ["image_mean", "image_std"]
            .map(|name| config.get::<[f32; 3]>(name, "colours").unwrap().unwrap());
        let pixels = get(&golden, "pixels").to_vec::<f32>()?;
        for (i, picture) in pictures(&golden).iter().enumerate() {
            let (w, h) = picture.dimensions();
            let (width, height) = (edge * w / w.min(h), edge * h / w.min(h));
            let resized = resize_with(picture, width, height, Filter::Bicubic)?;
            let count = (side * side * 3) as usize;
            for (at, &value) in pixels[i * count..][..count].iter().enumerate() {
                let (pixel, c) = ((at / 3) as u32, at % 3);
                let (x, y) =
                    ((width - side) / 2 + pixel % side, (height - side) / 2 + pixel / side);
                let level = (value * std[c] + mean[c]) * 255.0;
                assert_eq!(resized.get_pixel(x, y)[c], level.round() as u8, "{name} {i} {x} {y}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_gpu_finds_what_the_cpu_finds() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    for name in NAMES {
        let golden = golden::open(&format!("clip/{name}"))?;
        let (cpu, model) = (load(name, Device::Cpu)?, load(name, device)?);
        let pixels = get(&golden, "pixels").to_device(device)?;
        let images = model.embed_images(&pixels)?.to_device(Device::Cpu)?;
        assert_close(name, &images, &cpu.embed_images(&get(&golden, "pixels"))?, TOLERANCE);
        let texts = model.embed_texts(&get(&golden, "ids"))?.to_device(Device::Cpu)?;
        assert_close(name, &texts, &cpu.embed_texts(&get(&golden, "ids"))?, TOLERANCE);
    }
    Ok(())
}

/// Every weight takes part, and only these.
#[test]
fn every_parameter_gets_a_gradient() -> Result<()> {
    let folder = clip::folder("quick_gelu");
    let weights = Weights::open(folder.path(), None)?;
    let names: BTreeSet<String> = weights.names().into_iter().collect();
    let config = ClipConfig::read(Config::open(folder.path().join("config.json"))?, &weights)?;
    let params = Params::new(weights, DType::F32, Device::Cpu).keeping(Keep::Trainable);
    let model = Clip::load(config, &params)?;
    let golden = golden::open("clip/quick_gelu")?;
    let images = model.embed_images(&get(&golden, "pixels"))?;
    let texts = model.embed_texts(&get(&golden, "ids"))?;
    let loss = mean(&nadir::ops::elementwise::mul(&images, &texts)?, &[0, 1])?;
    let gradients = backward(loss)?;
    let mut seen = BTreeSet::new();
    for (name, parameter) in parameters(&model) {
        let gradient =
            gradients.get(&parameter.tensor().unwrap()).unwrap_or_else(|| panic!("{name}"));
        let values = gradient.to_vec::<f32>()?;
        assert!(values.iter().all(|x| x.is_finite()), "{name}");
        // A key's bias shifts all scores of a query alike.
        let nothing = values.iter().all(|x| x.abs() < 1e-12);
        assert!(!nothing || name.ends_with("k_proj.bias"), "{name}");
        seen.insert(name.trim_start_matches("text_model.").to_owned());
    }
    assert_eq!(seen, names);
    Ok(())
}

fn refused(name: &str, change: impl Fn(&std::path::Path), parts: &[&str]) {
    let folder = clip::folder(name);
    change(folder.path());
    let error = ClipScore::open(folder.path(), Device::Cpu).err().unwrap().to_string();
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

fn edit(file: &'static str, from: &'static str, to: &'static str) -> impl Fn(&std::path::Path) {
    move |folder| {
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
    }
}

#[test]
fn what_is_no_clip_is_refused() {
    let preprocessor = "preprocessor_config.json";
    // A text encoder alone, as Stable Diffusion has it.
    let text_alone = |folder: &std::path::Path| {
        golden::drawn::write("models/clip_l", folder);
    };
    refused("gelu", text_alone, &["clip_text_model", "both encoders", "text encoder alone"]);
    refused(
        "gelu",
        edit("config.json", "\"vision_config\"", "\"sound_config\""),
        &["vision_config"],
    );
    refused(
        "gelu",
        edit("config.json", "\"patch_size\": 8", "\"patch_size\": 4"),
        &["patch_embedding"],
    );
    refused(
        "gelu",
        edit("config.json", "\"patch_size\": 8", "\"patch_size\": 0"),
        &["patch_size", "1 to"],
    );
    refused(
        "gelu",
        edit("config.json", "\"image_size\": 32", "\"image_size\": 24"),
        &["24x24", "32x32"],
    );
    refused("gelu", edit(preprocessor, "\"resample\": 3", "\"resample\": 2"), &["resample", "3"]);
    refused(
        "gelu",
        edit(preprocessor, "\"height\": 32", "\"height\": 38"),
        &["crop_size", "padded"],
    );
    refused("gelu", edit(preprocessor, "0.2,", "0.0,"), &["image_std"]);
    let without = |file: &'static str| {
        move |folder: &std::path::Path| {
            std::fs::remove_file(folder.join(file)).unwrap();
        }
    };
    refused("gelu", without(preprocessor), &[preprocessor]);
    refused("gelu", without("tokenizer.json"), &["tokenizer.json"]);
    let no_vision = |folder: &std::path::Path| {
        let file = folder.join("model.safetensors");
        let source = SafeTensors::open(&file).unwrap();
        let kept = source.names().into_iter().filter(|name| !name.starts_with("vision_model"));
        let kept: Vec<(String, Tensor)> =
            kept.map(|name| (name.clone(), source.read(&name).unwrap())).collect();
        nadir::io::safetensors::save(&file, &kept, &Default::default()).unwrap();
    };
    refused("gelu", no_vision, &["vision_model.", "missing"]);
}
