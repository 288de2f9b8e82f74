//! Model folders: those that contradict themselves are refused, and those that differ are told apart.
#![cfg(unix)]

use std::fs;
use std::path::Path;

use nadir::io::folder::PipelineFolder;
use nadir::pipeline::sampler::{SamplerConfig, SamplerKind};
use nadir::pipeline::{LoadOptions, TextToImage};
use tempfile::TempDir;

fn replace(content: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    String::from_utf8(content).unwrap().replace(from, to).into_bytes()
}

/// The model that ships, with `change` made to the content of one of its files.
fn changed_model(file: &str, change: impl Fn(Vec<u8>) -> Vec<u8>) -> TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
    let folder = TempDir::new().unwrap();
    let to = folder.path();
    for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
        fs::create_dir_all(to.join(part)).unwrap();
        for entry in fs::read_dir(from.join(part)).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_file() {
                let link = to.join(part).join(entry.file_name());
                std::os::unix::fs::symlink(entry.path(), link).unwrap();
            }
        }
    }
    let content = fs::read(from.join(file)).unwrap();
    let changed = change(content.clone());
    assert!(changed != content, "{file} is not changed");
    fs::remove_file(to.join(file)).unwrap();
    fs::write(to.join(file), changed).unwrap();
    folder
}

/// Read whole, it would take more memory than there is, whichever part of the loading came to it first.
#[test]
fn a_settings_file_without_end_is_not_read() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
    let parts = ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"];
    let files = parts.iter().flat_map(|part| fs::read_dir(shipped.join(part)).unwrap());
    let files = files.map(|entry| entry.unwrap().path()).filter(|path| {
        path.extension().is_some_and(|extension| extension == "json" || extension == "txt")
    });
    let files: Vec<_> = files.collect();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let file = file.strip_prefix(&shipped).unwrap().to_str().unwrap();
        let model = changed_model(file, |_| b"{}".to_vec());
        let path = model.path().join(file);
        fs::File::options().write(true).open(&path).unwrap().set_len(1 << 40).unwrap(); // a hole
        let error = TextToImage::load(model.path(), &LoadOptions::default()).err().unwrap();
        let error = error.to_string();
        let named = error.contains(file) && error.contains("at most");
        assert!(named && error.contains("a longer file"), "{file}: {error}");
    }
}

#[test]
fn models_that_contradict_themselves() {
    for (file, from, to, words) in [
        // Sizes and counts that the weights do not have.
        (
            "unet/config.json",
            "\"layers_per_block\": 1",
            "\"layers_per_block\": 4000000000",
            &["unet/config.json", "\"layers_per_block\"", "4000000000", "at most"][..],
        ),
        (
            "text_encoder/config.json",
            "\"vocab_size\": 1725",
            "\"vocab_size\": 4294967296",
            &["text_encoder/config.json", "\"vocab_size\"", "at most 1725"],
        ),
        (
            "unet/config.json",
            "    128,",
            "    1073741824,",
            &["unet/config.json", "\"block_out_channels\"", "at most"],
        ),
        (
            "vae/config.json",
            "\"layers_per_block\": 1",
            "\"layers_per_block\": 1000000",
            &["vae/config.json", "\"layers_per_block\""],
        ),
        (
            "text_encoder/config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1000",
            &["encoder.layers.2.", "missing", "text_encoder/model.safetensors"],
        ),
        (
            "text_encoder/config.json",
            "\"hidden_size\": 128",
            "\"hidden_size\": 1700",
            &["1700", "of another shape"],
        ),
        (
            "text_encoder/config.json",
            "\"num_hidden_layers\": 2",
            "\"num_hidden_layers\": 1",
            &[
                "encoder.layers.1.",
                "in the files but not in the model",
                "text_encoder/model.safetensors",
            ],
        ),
        // What would take part in the drawing, or does so otherwise.
        (
            "text_encoder/config.json",
            "\"pad_token_id\": 1",
            "\"rope_theta\": 1.5",
            &["text_encoder/config.json", "\"rope_theta\""],
        ),
        (
            "model_index.json",
            "\"unet\": [",
            "\"adapter\": [\"diffusers\", \"T2IAdapter\"], \"unet\": [",
            &["model_index.json", "\"adapter\""],
        ),
        (
            "model_index.json",
            "DDIMScheduler",
            "CogVideoXDDIMScheduler",
            &["model_index.json", "scheduler", "CogVideoXDDIMScheduler"],
        ),
        (
            "scheduler/scheduler_config.json",
            "\"beta_start\": 0.00085",
            "\"beta_start\": -Infinity",
            &["scheduler_config.json", "JSON"],
        ),
        (
            "scheduler/scheduler_config.json",
            "\"DDIMScheduler\"",
            "\"NoScheduler\"",
            &["scheduler_config.json", "NoScheduler"],
        ),
    ] {
        let folder = changed_model(file, |content| replace(content, from, to));
        let error = TextToImage::load(folder.path(), &LoadOptions::default())
            .err()
            .unwrap_or_else(|| panic!("{file} with {to} was loaded"))
            .to_string();
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    }
}

/// What differs from the published folders, and is drawn all the same.
#[test]
fn the_index_names_the_class_of_the_sampler() {
    let folder = changed_model("model_index.json", |content| {
        replace(content, "DDIMScheduler", "EulerDiscreteScheduler")
    });
    let folder = PipelineFolder::open(folder.path(), None).unwrap();
    let config = SamplerConfig::of(&folder).unwrap();
    assert_eq!(config.kind(), SamplerKind::Euler);
    // With the settings of the folder's own class, as diffusers takes them over.
    assert_eq!(config.to_value()["prediction_type"], "v_prediction");
    assert_eq!(config.to_value()["timestep_spacing"], "trailing");
}

/// A picture depends on each of these files, so its model's fingerprint does.
#[test]
fn models_are_told_apart_by_all_their_files() {
    let load = |folder: &Path| TextToImage::load(folder, &LoadOptions::default()).unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
    let mut fingerprints = vec![load(&shipped).fingerprint().to_owned()];
    assert_eq!(load(&shipped).fingerprint(), fingerprints[0]);
    let spaced = |content: Vec<u8>| [content, vec![b'\n']].concat();
    // The lowest bit of the last weight.
    let weight = |mut content: Vec<u8>| {
        let low = content.len() - 2;
        content[low] ^= 1;
        content
    };
    for (file, change) in [
        ("scheduler/scheduler_config.json", &spaced as &dyn Fn(Vec<u8>) -> Vec<u8>),
        ("text_encoder/config.json", &spaced),
        ("tokenizer/vocab.json", &spaced),
        ("tokenizer/merges.txt", &|content| replace(content, "#version: 0.2", "#version: 0.3")),
        ("tokenizer/tokenizer_config.json", &spaced),
        ("unet/config.json", &spaced),
        ("text_encoder/model.safetensors", &weight),
        ("vae/diffusion_pytorch_model.safetensors", &weight),
        ("model_index.json", &|content| replace(content, "DDIMScheduler", "PNDMScheduler")),
    ] {
        let folder = changed_model(file, change);
        let fingerprint = load(folder.path()).fingerprint().to_owned();
        assert!(!fingerprints.contains(&fingerprint), "{file} does not count");
        fingerprints.push(fingerprint);
    }
}
