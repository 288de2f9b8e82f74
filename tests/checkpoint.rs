//! Original checkpoints: the names that diffusers converts, the pictures of its folders, and what is no such file.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
#[allow(dead_code, reason = "networks are compared bit for bit, pictures as such")]
mod golden;
#[path = "golden/original.rs"]
mod original;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::checkpoint::{Prediction, Supplement, open_controlnet};
use nadir::io::folder::{PipelineFolder, Weights};
use nadir::io::raster::{Levels, Raster};
use nadir::io::safetensors::{SafeTensors, save};
use nadir::pipeline::convert::{controlnet_to_file, controlnet_to_folder, to_file, to_folder};
use nadir::pipeline::{Control, LoadOptions, Request, Settings, TextToImage};
use nadir::tensor::{DType, Device, Tensor};
use original::Original;
use tempfile::TempDir;

/// A model as a folder and as a file.
struct Bench {
    original: Original,
    scratch: TempDir,
}

impl Bench {
    fn new(name: &str) -> Self {
        let (original, scratch) = (Original::open(name), tempfile::tempdir().unwrap());
        original.write_folder(&scratch.path().join("folder"));
        original.write_file(&scratch.path().join("file.safetensors"));
        Self { original, scratch }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// What the file does not say. The tokenizer's folder is the other model's, which pads otherwise.
    fn supplement(&self) -> Supplement {
        let name = match self.original.case["tokenizer"].as_str() {
            Some("tokenizer") => "tokenizer_sd2",
            _ => "tokenizer",
        };
        let prediction = self.original.case["prediction"].as_str().unwrap().parse().unwrap();
        let tokenizer = golden::path("pipelines").join(name);
        Supplement { tokenizer: Some(tokenizer), prediction: Some(prediction) }
    }

    fn picture(&self, model: &Path, supplement: Supplement) -> Result<RgbImage> {
        let model =
            TextToImage::load(model, &LoadOptions { supplement, ..LoadOptions::default() })?;
        let settings = case::settings(&self.original.case["arguments"]);
        let seed = self.original.case["seed"].as_u64().unwrap();
        model.draw(Request { settings, seed, ..Request::default() })?.rgb()
    }
}

/// Asserts that these are the tensors of a component, and no others.
fn assert_tensors(what: &str, weights: &Weights, expected: &[(String, Tensor)]) {
    let names: BTreeSet<_> = expected.iter().map(|(name, _)| name.clone()).collect();
    assert_eq!(weights.names().into_iter().collect::<BTreeSet<_>>(), names, "{what}");
    for (name, tensor) in expected {
        assert_eq!(weights.info(name).unwrap().shape, tensor.dims(), "{what} {name}");
        golden::assert_same(&format!("{what} {name}"), &weights.read(name).unwrap(), tensor);
    }
}

fn check(name: &str) -> Result<()> {
    let bench = Bench::new(name);
    let (file, folder) = (bench.path("file.safetensors"), bench.path("folder"));
    // 1. the tensors that diffusers' converters make of the same names
    let opened = PipelineFolder::open_with(&file, None, &bench.supplement())?;
    for network in bench.original.networks() {
        let expected = bench.original.component(network);
        assert_tensors(network, &opened.weights(network)?, &expected);
    }
    // 2. the folder's picture, and diffusers' of the file
    let picture = bench.picture(&file, bench.supplement())?;
    assert!(picture == bench.picture(&folder, Supplement::default())?, "{name}");
    let theirs = image::open(bench.original.golden.join("image.png")).unwrap().into_rgb8();
    assert_eq!(picture.dimensions(), theirs.dimensions());
    let squares =
        picture.iter().zip(theirs.iter()).map(|(&a, &b)| f64::from(a.abs_diff(b)).powi(2));
    let psnr = -10.0 * (squares.sum::<f64>() / theirs.len() as f64 / 255_f64.powi(2)).log10();
    println!("{name}: {psnr:.1} dB (infinite where every pixel is equal)");
    assert!(psnr >= 50.0, "{name}: {psnr} dB");
    // 3. from the folder to a file, which says what it predicts
    let made = bench.path("made.safetensors");
    to_file(&folder, None, &made)?;
    let stored = SafeTensors::open(&made)?;
    let expected = bench.original.tensors(false);
    assert_eq!(stored.names().len(), expected.len());
    for (key, tensor) in &expected {
        golden::assert_same(key, &stored.read(key)?, tensor);
    }
    // 4. and to a folder again
    let again = bench.path("again");
    to_folder(&made, &Supplement { prediction: None, ..bench.supplement() }, &again)?;
    for network in bench.original.networks() {
        let expected = bench.original.component(network);
        assert_tensors(network, &Weights::open(again.join(network), None)?, &expected);
    }
    assert!(picture == bench.picture(&again, Supplement::default())?, "{name} again");
    // 5. nothing is overwritten, nothing half made
    let error = to_folder(&made, &bench.supplement(), &again).unwrap_err().to_string();
    assert!(error.contains("again") && error.contains("nothing is overwritten"), "{error}");
    let nowhere = Supplement { tokenizer: Some(bench.path("nowhere")), ..bench.supplement() };
    to_folder(&made, &nowhere, &bench.path("third")).unwrap_err();
    assert!(!bench.path("third").exists());
    Ok(())
}

#[test]
fn stable_diffusion_1_is_diffusers() -> Result<()> {
    check("sd1")
}

#[test]
fn stable_diffusion_2_is_diffusers() -> Result<()> {
    check("sd2")
}

#[test]
fn stable_diffusion_xl_is_diffusers() -> Result<()> {
    check("sdxl")
}

/// The ControlNet `name` under both kinds of original names, and from there to a folder and back; its model tells so many
/// sinusoids of each size.
fn check_controlnet(name: &str, sinusoids: Option<usize>) -> Result<()> {
    let original = Original::open(name);
    let scratch = tempfile::tempdir().unwrap();
    let expected = original.component("controlnet");
    let bare = |key: String| key.strip_prefix("control_model.").unwrap().to_owned();
    for (name, alone) in [("control", false), ("bare", true)] {
        let mut tensors = original.tensors(true);
        if alone {
            tensors = tensors.into_iter().map(|(key, tensor)| (bare(key), tensor)).collect();
        }
        let (file, folder) = (scratch.path().join(name), scratch.path().join(format!("{name}.d")));
        save(&file, &tensors, &BTreeMap::new())?;
        let (config, weights) = open_controlnet(&file, sinusoids)?;
        assert_tensors(name, &weights, &expected);
        let theirs = fs::read(original.golden.join("controlnet/config.json")).unwrap();
        let theirs: serde_json::Value = serde_json::from_slice(&theirs).unwrap();
        for field in config.names() {
            match &theirs[field] {
                // One for all levels.
                serde_json::Value::Number(one) if field == "transformer_layers_per_block" => {
                    assert_eq!(config.value(field).unwrap(), &serde_json::json!([one, one, one]));
                }
                theirs => assert_eq!(config.value(field).unwrap(), theirs, "{field}"),
            }
        }
        // Diffusers' folder, and from there the file.
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("config.json"), theirs.to_string()).unwrap();
        save(&folder.join("diffusion_pytorch_model.safetensors"), &expected, &BTreeMap::new())?;
        let back = scratch.path().join(format!("{name}.safetensors"));
        controlnet_to_file(&folder, None, &back)?;
        let stored = SafeTensors::open(&back)?;
        let original = original.tensors(true);
        assert_eq!(stored.names().len(), original.len());
        for (key, tensor) in &original {
            golden::assert_same(key, &stored.read(key)?, tensor);
        }
        // A file has no place for it.
        let changed =
            theirs.to_string().replace("\"norm_num_groups\":32", "\"norm_num_groups\":16");
        assert_ne!(changed, theirs.to_string());
        fs::write(folder.join("config.json"), changed).unwrap();
        let error = controlnet_to_file(&folder, None, &back).unwrap_err().to_string();
        assert!(error.contains("norm_num_groups") && error.contains("config.json"), "{error}");
    }
    Ok(())
}

#[test]
fn a_controlnet_is_diffusers() -> Result<()> {
    check_controlnet("sd1", None)
}

#[test]
fn a_controlnet_of_xl_is_diffusers() -> Result<()> {
    check_controlnet("sdxl", Some(8))
}

/// Its file alone is made a folder as XL's are told sizes, by 256 sinusoids each.
#[test]
fn the_file_of_a_controlnet_is_made_a_folder() -> Result<()> {
    for name in ["sd1", "sdxl"] {
        let (original, scratch) = (Original::open(name), tempfile::tempdir().unwrap());
        let [file, folder] = ["net.safetensors", "net"].map(|name| scratch.path().join(name));
        let mut tensors = original.tensors(true);
        let mut expected = original.component("controlnet");
        save(&file, &tensors, &BTreeMap::new())?;
        if name == "sdxl" {
            let error = controlnet_to_folder(&file, &folder).unwrap_err().to_string();
            assert!(error.contains("label_emb.0.0") && error.contains("1536"), "{error}");
            assert!(!folder.exists());
            let wide = Tensor::from_vec((0..256 * 1600).map(|i| i as f32).collect(), [256, 1600])?;
            for (key, tensor) in tensors.iter_mut().chain(&mut expected) {
                if key.ends_with("label_emb.0.0.weight") || key == "add_embedding.linear_1.weight" {
                    *tensor = wide.clone();
                }
            }
            save(&file, &tensors, &BTreeMap::new())?;
        }
        controlnet_to_folder(&file, &folder)?;
        assert_tensors(name, &Weights::open(&folder, None)?, &expected);
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        let told = |field: &str| config[field].as_u64();
        let expected = (name == "sdxl").then_some((256, 1600));
        let inputs = told("projection_class_embeddings_input_dim");
        assert_eq!(told("addition_time_embed_dim").zip(inputs), expected, "{name}");
    }
    Ok(())
}

/// The ControlNet, which halves a picture thrice, without its last halving: the autoencoder halves twice.
fn fitting(original: &Original) -> Result<Vec<(String, Tensor)>> {
    let mut tensors = Vec::new();
    for (key, tensor) in original.tensors(true) {
        if let Some((root, rest)) = key.split_once("hint_block.14.") {
            let wide =
                if rest == "weight" { tensor.narrow(1, 0, 96)?.contiguous()? } else { tensor };
            tensors.push((format!("{root}hint_block.10.{rest}"), wide));
        } else if !key.contains("hint_block.10.") && !key.contains("hint_block.12.") {
            tensors.push((key, tensor));
        }
    }
    Ok(tensors)
}

/// As the original code of ControlNet writes them, and GeoSynth is published: all of the model in one file, followed without
/// another word, and made a folder with its ControlNet.
fn check_in_its_model(name: &str) -> Result<()> {
    let bench = Bench::new(name);
    let [net, whole, folder, again] =
        ["net.safetensors", "whole.safetensors", "whole", "again.safetensors"]
            .map(|n| bench.path(n));
    let control = fitting(&bench.original)?;
    save(&net, &control, &BTreeMap::new())?;
    let tensors = [bench.original.tensors(false), control].concat();
    save(&whole, &tensors, &BTreeMap::new())?;
    let supplement = bench.supplement();
    to_folder(&whole, &supplement, &folder)?;
    let followed = |path: &Path, controlnets: Vec<PathBuf>, n: usize| {
        let supplement = if path.is_file() { supplement.clone() } else { Supplement::default() };
        let options = LoadOptions { supplement, controlnets, ..LoadOptions::default() };
        let model = TextToImage::load(path, &options)?;
        let levels = Levels::U8(vec![200; 8 * 8 * 3]);
        let picture = Raster { height: 8, width: 8, bands: 3, levels };
        let settings =
            Settings { steps: Some(2), ..case::settings(&bench.original.case["arguments"]) };
        model.draw(Request {
            settings,
            controls: vec![Control::new(picture); n],
            ..Request::default()
        })
    };
    let beside = followed(&bench.path("file.safetensors"), vec![net.clone()], 1)?;
    assert!(followed(&whole, Vec::new(), 1)? == beside);
    assert!(followed(&folder, Vec::new(), 1)? == beside);
    to_file(&folder, None, &again)?;
    assert!(followed(&again, Vec::new(), 1)? == beside);
    // Not to follow anything would be another model's picture.
    let error = followed(&whole, Vec::new(), 0).unwrap_err().to_string();
    assert!(error.contains("control_image"), "{error}");
    Ok(())
}

#[test]
fn a_controlnet_in_the_file_of_its_model_is_followed() -> Result<()> {
    check_in_its_model("sd1")
}

#[test]
fn a_controlnet_in_the_file_of_its_xl_is_followed() -> Result<()> {
    check_in_its_model("sdxl")
}

/// An original file is followed as diffusers' folder with the same tensors is.
fn check_followed(name: &str) -> Result<()> {
    let bench = Bench::new(name);
    let mut tensors = fitting(&bench.original)?;
    let (file, folder) = (bench.path("control"), bench.path("control.d"));
    save(&file, &tensors, &BTreeMap::new())?;
    let sinusoids = (name == "sdxl").then_some(8);
    let (_, weights) = open_controlnet(&file, sinusoids)?;
    let config = fs::read(bench.original.golden.join("controlnet/config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["conditioning_embedding_out_channels"] = serde_json::json!([16, 32, 96]);
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let read = |name: String| Ok((name.clone(), weights.read(&name)?));
    let current = weights.names().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    save(&folder.join("diffusion_pytorch_model.safetensors"), &current, &BTreeMap::new())?;
    let followed = |net: &Path, level: u8| {
        let options = LoadOptions { controlnets: vec![net.to_owned()], ..LoadOptions::default() };
        let model = TextToImage::load(bench.path("folder"), &options)?;
        let picture =
            Raster { height: 8, width: 8, bands: 3, levels: Levels::U8(vec![level; 8 * 8 * 3]) };
        let settings =
            Settings { steps: Some(2), ..case::settings(&bench.original.case["arguments"]) };
        let controls = vec![Control::new(picture)];
        model.draw(Request { settings, controls, ..Request::default() })
    };
    let picture = followed(&file, 9)?;
    assert!(picture == followed(&folder, 9)?);
    assert!(picture != followed(&file, 200)?);
    // What the network does not have is named.
    tensors.push(("control_model.more".to_owned(), tensors[0].1.clone()));
    save(&file, &tensors, &BTreeMap::new())?;
    let error = followed(&file, 9).unwrap_err().to_string();
    assert!(error.contains("control") && error.contains("more"), "{error}");
    Ok(())
}

#[test]
fn the_file_of_a_controlnet_is_followed() -> Result<()> {
    check_followed("sd1")
}

#[test]
fn the_file_of_a_controlnet_of_xl_is_followed() -> Result<()> {
    check_followed("sdxl")
}

/// Of another model, of another width, or no ControlNet in original names.
#[test]
fn a_file_that_does_not_fit_is_refused() -> Result<()> {
    let (small, xl) = (Bench::new("sd1"), Bench::new("sdxl"));
    let net = xl.path("net.safetensors");
    let refused = |bench: &Bench, tensors: &[(String, Tensor)], words: &[&str]| {
        save(&net, tensors, &BTreeMap::new()).unwrap();
        let options = LoadOptions { controlnets: vec![net.clone()], ..LoadOptions::default() };
        let error = TextToImage::load(bench.path("folder"), &options).err().expect("it was taken");
        let error = error.to_string();
        for word in words.iter().chain(&["net.safetensors"]) {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    };
    // Alone, of sinusoids as SDXL has them.
    let mut wide = fitting(&xl.original)?;
    for (_, tensor) in wide.iter_mut().filter(|(key, _)| key.ends_with("label_emb.0.0.weight")) {
        *tensor = Tensor::full([256, 1600], 1.0, DType::F32, Device::Cpu)?;
    }
    refused(&small, &wide, &["block_out_channels", "SDXL's do not fit"]);
    refused(&xl, &fitting(&small.original)?, &["block_out_channels", "SDXL's do not fit"]);
    let tensors = fitting(&xl.original)?;
    let without = |part: &str| -> Vec<_> {
        tensors.iter().filter(|(key, _)| !key.contains(part)).cloned().collect()
    };
    refused(&xl, &without("label_emb"), &["addition_embed_type", "null", "text_time of 112"]);
    let mut more = tensors.clone();
    let one = Tensor::full([1], 1.0, DType::F32, Device::Cpu)?;
    more.push(("lora_controlnet".to_owned(), one.clone()));
    refused(&xl, &more, &["Control-LoRA"]);
    let name = "controlnet_cond_embedding.conv_in.weight".to_owned();
    refused(&xl, &[(name, one)], &["names of diffusers", "folder"]);
    Ok(())
}

/// As in Stable Diffusion 2.x, whose file has all of OpenCLIP.
#[test]
fn the_last_layer_of_open_clip_is_left_out() -> Result<()> {
    let bench = Bench::new("sd2");
    let mut tensors = bench.original.tensors(false);
    let first = "cond_stage_model.model.transformer.resblocks.0.";
    let layer: Vec<_> = tensors.iter().filter(|(key, _)| key.starts_with(first)).cloned().collect();
    for i in 3..24 {
        let at = first.replace("0.", &format!("{i}."));
        tensors.extend(layer.iter().map(|(key, t)| (key.replace(first, &at), t.clone())));
    }
    for (name, shape) in [("text_projection", &[128, 128][..]), ("logit_scale", &[])] {
        let tensor = Tensor::full(shape, 1.0, DType::F32, Device::Cpu)?;
        tensors.push((format!("cond_stage_model.model.{name}"), tensor));
    }
    let file = bench.path("long.safetensors");
    save(&file, &tensors, &BTreeMap::new())?;
    let opened = PipelineFolder::open_with(&file, None, &bench.supplement())?;
    assert_eq!(opened.config("text_encoder")?.usize("num_hidden_layers", 0)?, 23);
    TextToImage::load(
        &file,
        &LoadOptions { supplement: bench.supplement(), ..LoadOptions::default() },
    )?;
    Ok(())
}

#[test]
fn what_is_no_checkpoint_is_named() -> Result<()> {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("bad.safetensors");
    let refused = |tensors: &[(String, Tensor)], supplement: &Supplement, words: &[&str]| {
        save(&path, tensors, &BTreeMap::new()).unwrap();
        let options = LoadOptions { supplement: supplement.clone(), ..LoadOptions::default() };
        let error = TextToImage::load(&path, &options).err().expect("it was loaded").to_string();
        for word in words.iter().chain(&["bad.safetensors"]) {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
    };
    let none = Supplement::default();
    // 1. files of other kinds, told by their tensors
    for (name, words) in [
        (
            "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight",
            &["low-rank adapter", "--lora"][..],
        ),
        ("unet.down_blocks.0.attentions.0.proj_in.lora_A.weight", &["low-rank adapter", "lora_A"]),
        ("emb_params", &["textual inversion"]),
        ("<harbour>", &["textual inversion", "<harbour>"]),
        (
            "conditioner.embedders.0.model.transformer.resblocks.9.mlp.c_proj.bias",
            &["the refiner of Stable Diffusion XL", "resblocks.9"],
        ),
        (
            "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias",
            &["no model.diffusion_model.*", "resblocks.9"],
        ),
        ("local_adapter.feature_extractor.pre_extractor.0.weight", &["CRS-Diff", "ControlNets"]),
        ("edm_mean", &["Playground 2.5"]),
        ("ztsnr", &["zero terminal SNR", "rescale_betas_zero_snr"]),
        ("model.diffusion_model.joint_blocks.0.context_block.x", &["Stable Diffusion 3"]),
        ("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale", &["Flux"]),
        ("control_model.input_hint_block.0.weight", &["a ControlNet", "input_hint_block.0"]),
        ("input_hint_block.0.weight", &["a ControlNet"]),
        ("first_stage_model.encoder.conv_in.weight", &["an autoencoder alone"]),
        ("encoder.conv_in.weight", &["an autoencoder alone"]),
        ("down_blocks.0.resnets.0.conv1.weight", &["no model.diffusion_model.*", "down_blocks.0"]),
        ("conv_in.weight", &["one network of a diffusers folder"]),
    ] {
        let shape = if name.starts_with('<') { &[2, 64][..] } else { &[1, 1, 1] };
        let tensor = Tensor::full(shape, 1.0, DType::F32, Device::Cpu)?;
        refused(&[(name.to_owned(), tensor)], &none, words);
    }
    // 2. checkpoints that lack a part, or have one too many
    let bench = Bench::new("sd2");
    let (whole, supplement) = (bench.original.tensors(false), bench.supplement());
    let without = |root: &str| -> Vec<_> {
        whole.iter().filter(|(key, _)| !key.starts_with(root)).cloned().collect()
    };
    refused(&without("first_stage_model."), &supplement, &["autoencoder", "first_stage_model.*"]);
    refused(&without("cond_stage_model."), &supplement, &["text encoder", "cond_stage_model"]);
    for key in [
        "model.diffusion_model.input_blocks.1.0.in_layers.0.weight",
        "model.diffusion_model.middle_block.1.proj_in.weight",
        "model.diffusion_model.output_blocks.2.1.conv.bias",
        "first_stage_model.decoder.mid.attn_1.q.weight",
        "cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias",
        "cond_stage_model.model.positional_embedding",
    ] {
        refused(&without(key), &supplement, &[key]);
    }
    let changed = |key: &str, shape: &[usize]| -> Vec<_> {
        let mut tensors = without(key);
        tensors.push((key.to_owned(), Tensor::full(shape, 1.0, DType::F32, Device::Cpu).unwrap()));
        tensors
    };
    for (key, shape) in [
        ("model.diffusion_model.out.0.weight", &[65][..]),
        ("model.diffusion_model.input_blocks.0.0.weight", &[64]),
        ("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias", &[385]),
    ] {
        refused(&changed(key, shape), &supplement, &[key]);
    }
    for (key, words) in [
        (
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.fuser.weight",
            "no tensor but the model's",
        ),
        (
            "model.diffusion_model.input_blocks.6.0.weight",
            "7 of model.diffusion_model.input_blocks",
        ),
        ("first_stage_model.encoder.down.1.attn.0.q.weight", "no tensor but the model's"),
    ] {
        refused(&changed(key, &[4]), &supplement, &[words]);
    }
    // 3. what the file does not say, and is not told
    let unsaid = Supplement { prediction: None, ..supplement.clone() };
    refused(&whole, &unsaid, &["prediction type", "--prediction v", "modelspec"]);
    let unsaid = Supplement { tokenizer: None, ..supplement.clone() };
    refused(&whole, &unsaid, &["tokenizer", "--tokenizer FOLDER"]);
    let metadata = BTreeMap::from([("modelspec.prediction_type".to_owned(), "x0".to_owned())]);
    save(&path, &whole, &metadata)?;
    let unsaid = Supplement { prediction: None, ..supplement.clone() };
    let error = PipelineFolder::open_with(&path, None, &unsaid).err().unwrap().to_string();
    assert!(error.contains("\"x0\"") && error.contains("epsilon or v"), "{error}");
    // A vocabulary that the text encoder does not know.
    let clip = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/clip-tokenizer");
    save(&path, &whole, &BTreeMap::new())?;
    let supplement = Supplement { tokenizer: Some(clip), ..supplement };
    let options = LoadOptions { supplement: supplement.clone(), ..LoadOptions::default() };
    let error = TextToImage::load(&path, &options).err().unwrap().to_string();
    assert!(error.contains("49408") && error.contains("--tokenizer FOLDER"), "{error}");
    // A folder says all itself.
    let error = TextToImage::load(bench.path("folder"), &options).err().unwrap().to_string();
    assert!(error.contains("tokenizer") && error.contains("a folder says this itself"), "{error}");
    Ok(())
}

#[test]
fn a_folder_that_a_file_cannot_say_is_refused() {
    let bench = Bench::new("sd2");
    let folder = bench.path("folder");
    let refused = |file: &str, from: &str, to: &str, words: &[&str]| {
        let path = folder.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file}: {from}");
        fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let made = bench.path("made.safetensors");
        let error = to_file(&folder, None, &made).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "no {word:?} in: {error}");
        }
        assert!(!made.exists());
        fs::write(path, text).unwrap();
    };
    let unet = "unet/config.json";
    refused(
        unet,
        "\"norm_num_groups\": 32",
        "\"norm_num_groups\": 16",
        &[unet, "norm_num_groups", "32"],
    );
    refused(unet, "\"norm_eps\": 1e-05", "\"norm_eps\": 1e-06", &[unet, "norm_eps"]);
    refused(unet, "\"layers_per_block\": 2", "\"layers_per_block\": [2, 1]", &["layers_per_block"]);
    let vae = "vae/config.json";
    refused(vae, "0.18215", "0.13025", &[vae, "scaling_factor", "0.18215"]);
    let scheduler = "scheduler/scheduler_config.json";
    refused(scheduler, "0.012", "0.02", &["scheduler_config.json", "beta_end", "0.012"]);
    refused(scheduler, "v_prediction", "sample", &["prediction_type"]);
    // Heads of another width.
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
    let made = bench.path("eurosat.safetensors");
    let error = to_file(&shipped, None, &made).unwrap_err().to_string();
    assert!(error.contains("eurosat-64") && error.contains("keep the folder"), "{error}");
}

#[test]
fn predictions_have_names() {
    for (text, prediction) in
        [("epsilon", Prediction::Epsilon), ("v", Prediction::V), ("v_prediction", Prediction::V)]
    {
        assert_eq!(text.parse::<Prediction>().unwrap(), prediction);
    }
    let error = "sample".parse::<Prediction>().unwrap_err().to_string();
    assert!(error.contains("epsilon or v"), "{error}");
}
