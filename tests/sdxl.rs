//! Stable Diffusion XL against diffusers, on the small random configurations of `golden/sdxl.py`.

#[path = "golden/case.rs"]
#[allow(dead_code, reason = "the tests of other pipelines use the rest")]
mod case;
mod golden;
#[path = "golden/gpu.rs"]
mod gpu;
#[path = "golden/server.rs"]
mod server;

use std::fs;
use std::io::Cursor;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use case::{Case, check_case, check_company, check_drawn, copy};
use golden::drawn::{Drawn, write};
use golden::{assert_close, assert_same, get};
use gpu::gpu;
use image::RgbImage;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::png::read_replay;
use nadir::io::raster::{Levels, Raster};
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::clip::{ClipTextProjected, ClipTextProjectedConfig};
use nadir::models::unet::{ControlNet, ControlNetConfig, Unet, UnetConfig, Vector};
use nadir::nn::lora::Adapter;
use nadir::nn::{Keep, Params, parameters};
use nadir::ops::layout::concat;
use nadir::pipeline::{
    Control, ImagePrompt, InitPixels, LoadOptions, MemoryEstimate, Request, Settings, TextToImage,
};
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::weighting::LongPrompt;
use nadir::{Error, Result};
use serde_json::{Value, json};
use server::Server;

fn config_json(name: &str) -> Value {
    let path = golden::path(&format!("sdxl/{name}/config.json"));
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn config(name: &str) -> Result<UnetConfig> {
    UnetConfig::read(&Config::from_value("config.json", config_json(name))?)
}

fn weights(name: &str) -> Result<Drawn> {
    Drawn::asked(|params| Unet::load(config(name)?, params))
}

fn text_weights() -> Result<Drawn> {
    let config = Config::from_value("config.json", config_json("text_encoder_2"))?;
    Drawn::asked(|params| ClipTextProjected::load(ClipTextProjectedConfig::read(&config)?, params))
}

fn load(name: &str, device: Device, keep: Keep) -> Result<Unet> {
    let params = Params::new(weights(name)?, DType::F32, device).keeping(keep);
    let model = Unet::load(config(name)?, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new());
    Ok(model)
}

fn check_unet(name: &str, device: Device) -> Result<()> {
    let golden = golden::open(&format!("sdxl/{name}"))?;
    let model = load(name, device, Keep::Frozen)?;
    let row = |name: &str, i: usize| get(&golden, name).narrow(0, i, 1)?.to_vec::<f32>();
    for index in 0..2 {
        let [sample, text, timesteps, theirs] = ["sample", "text", "timesteps", "out"]
            .map(|name| get(&golden, &format!("{index}.{name}")));
        let (sample, text) = (sample.to_device(device)?, text.to_device(device)?);
        let timesteps = timesteps.to_vec::<f32>()?;
        let embed = |i: usize| {
            let (sizes, pooled) = (row("sizes", i)?, row("pooled", i)?);
            model.embed(&timesteps[i..=i], &Vector { sizes, pooled, ..Vector::default() })
        };
        let embedded = (0..sample.dim(0)).map(embed).collect::<Result<Vec<_>>>()?;
        let times = concat(&embedded.iter().collect::<Vec<_>>(), 0)?;
        let together = model.forward(&sample, &times, &model.context(&text)?)?;
        // As in `models.rs`: sums of a few hundred terms in another order, through some dozens of layers.
        assert_close(&format!("{name} {index}"), &together, &theirs, 1e-5);
        for (i, times) in embedded.iter().enumerate() {
            let context = model.context(&text.narrow(0, i, 1)?)?;
            let alone = model.forward(&sample.narrow(0, i, 1)?, times, &context)?;
            assert_same(&format!("{index} image {i}"), &together.narrow(0, i, 1)?, &alone);
        }
    }
    Ok(())
}

#[test]
fn predictions_are_those_of_diffusers() -> Result<()> {
    ["unet", "uneven"].iter().try_for_each(|name| check_unet(name, Device::Cpu))
}

#[test]
fn a_gpu_predicts_what_the_cpu_does() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    ["unet", "uneven"].iter().try_for_each(|name| check_unet(name, gpu))
}

#[test]
fn what_is_told_is_all_of_it_and_numbers() -> Result<()> {
    let model = load("unet", Device::Cpu, Keep::Plain)?;
    let names: Vec<String> = parameters(&model).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names.len(), weights("unet")?.names().len());
    assert!(names.contains(&"add_embedding.linear_1.weight".to_owned()));
    for (sizes, pooled) in [(5, 24), (6, 23), (0, 0)] {
        let vector =
            Vector { sizes: vec![1.0; sizes], pooled: vec![1.0; pooled], ..Vector::default() };
        let error = model.embed(&[1.0], &vector).unwrap_err().to_string();
        assert!(error.contains("72 numbers"), "{error}");
    }
    let vector = Vector { sizes: vec![f32::NAN; 6], pooled: vec![1.0; 24], ..Vector::default() };
    assert!(model.embed(&[1.0], &vector).unwrap_err().to_string().contains("NaN"));
    for (field, value) in [
        ("addition_embed_type", "image".into()),
        ("addition_time_embed_dim", 1.into()),
        ("projection_class_embeddings_input_dim", Value::Null),
        ("transformer_layers_per_block", json!([1, [1, 2], [2, 1]])),
    ] {
        let mut json = config_json("unet");
        json[field] = value;
        let error = UnetConfig::read(&Config::from_value("config.json", json)?).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("config.json") && error.contains("field"), "{error}");
    }
    Ok(())
}

/// A ControlNet, drawn.
fn write_controlnet(to: &Path) {
    copy(&golden::path("sdxl/controlnet"), to);
    let config = Config::from_value("config.json", config_json("controlnet")).unwrap();
    let config = ControlNetConfig::read(&config).unwrap();
    let drawn = Drawn::asked(|params| ControlNet::load(config, params)).unwrap();
    drawn.save(&to.join("diffusion_pytorch_model.safetensors"));
}

/// A case, its UNet and its second text encoder drawn.
fn open(name: &str) -> Result<Case> {
    Case::assemble("sdxl", name, |source, to| match source {
        "unet" => {
            copy(&golden::path("sdxl/unet"), to);
            weights("unet").unwrap().save(&to.join("diffusion_pytorch_model.safetensors"));
        }
        "controlnet" => write_controlnet(to),
        "text_encoder_2" => {
            copy(&golden::path("sdxl/text_encoder_2"), to);
            text_weights().unwrap().save(&to.join("model.safetensors"));
        }
        other => write(&format!("models/{other}"), to),
    })
}

#[test]
fn pictures_of_a_prompt_are_those_of_diffusers() -> Result<()> {
    let names = ["base", "told", "read", "turbo", "apart", "half"];
    names.iter().try_for_each(|name| check_case(&open(name)?, name, Device::Cpu))
}

#[test]
fn pictures_of_a_picture_are_those_of_diffusers() -> Result<()> {
    let names = ["image", "mask", "painted"];
    names.iter().try_for_each(|name| check_case(&open(name)?, name, Device::Cpu))
}

#[test]
fn a_gpu_draws_the_same_pictures() -> Result<()> {
    let Some(gpu) = gpu() else { return Ok(()) };
    ["told", "image"].iter().try_for_each(|name| check_case(&open(name)?, name, gpu))
}

/// Each picture is told its own sizes, has prompts of its own length, and is the one that is drawn alone.
#[test]
fn company_changes_nothing() -> Result<()> {
    let case = open("base")?;
    let model = case.load(DType::F32, Device::Cpu)?;
    let request = |i: usize| {
        let mut request = Request { seed: 1, ..case.request() };
        let settings = &mut request.settings;
        settings.steps = Some(2);
        settings.long_prompts = LongPrompt::Chunk;
        match i {
            1 => settings.original_size = "64,7".parse().ok(),
            2 => settings.guidance_scale = Some(1.0),
            3 => settings.negative_prompt = "low quality".into(),
            4 => settings.prompt = ["river"; 80].join(" "),
            5 => settings.prompt = settings.prompt.replace("river", "(river:1.5)"),
            6 => settings.clip_skip = 1,
            7 => settings.prompt_2 = "a harbour".into(),
            8 => settings.negative_prompt_2 = "clouds".into(),
            _ => {}
        }
        request
    };
    let requests: Vec<Request> = (0..9).map(request).collect();
    check_company(&model, &requests)
}

#[test]
fn a_model_is_saved_with_both_text_encoders() -> Result<()> {
    let case = open("base")?;
    let desk = tempfile::tempdir().unwrap();
    let options = LoadOptions { keep: Keep::Plain, ..LoadOptions::default() };
    let model = TextToImage::load(case.folder(), &options)?;
    model.save(case.folder(), None, desk.path().join("saved"), None)?;
    let file = "text_encoder_2/model.safetensors";
    let [ours, theirs] = [desk.path().join("saved"), case.folder().to_owned()]
        .map(|folder| SafeTensors::open(folder.join(file)).unwrap());
    assert_eq!(ours.names(), theirs.names());
    for name in ours.names() {
        assert_same(&name, &ours.read(&name)?, &theirs.read(&name)?);
    }
    let again = TextToImage::load(desk.path().join("saved"), &LoadOptions::default())?;
    let mut request = case.request();
    request.settings.steps = Some(1);
    assert_eq!(again.draw(request.clone())?, model.draw(request)?);
    Ok(())
}

#[test]
fn both_text_encoders_are_part_of_the_fingerprint_and_of_the_memory() -> Result<()> {
    let case = open("base")?;
    let fingerprint =
        || Ok::<_, Error>(case.load(DType::F32, Device::Cpu)?.fingerprint().to_owned());
    let peak = || {
        let estimate = MemoryEstimate::open(case.folder(), &LoadOptions::default())?;
        estimate.peak(&Settings::default(), 1)
    };
    let (first, bytes) = (fingerprint()?, peak()?);
    let path = case.folder().join("text_encoder_2/model.safetensors");
    let source = SafeTensors::open(&path)?;
    let read = |name: String| Ok((name.clone(), source.read(&name)?));
    let mut tensors = source.names().into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let projection = tensors.iter_mut().find(|(name, _)| name == "text_projection.weight").unwrap();
    projection.1 = projection.1.permute(&[1, 0])?.contiguous()?.reshape([24, 40])?;
    let elements = 8 << 20;
    tensors.push(("more".into(), Tensor::from_vec(vec![1f32; elements], [elements])?));
    save(&path, &tensors, &Default::default())?;
    assert_ne!(fingerprint()?, first);
    assert_eq!(peak()?, bytes + 4 * elements as u64);
    let before = fingerprint()?;
    let index = case.folder().join("model_index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(
        &index,
        text.replace(
            "\"force_zeros_for_empty_prompt\": true",
            "\"force_zeros_for_empty_prompt\": false",
        ),
    )
    .unwrap();
    assert_ne!(fingerprint()?, before);
    Ok(())
}

/// Matrices for layers of these weights, [outputs, inputs].
fn write_adapter(path: &Path, layers: &[(&str, usize, usize)]) {
    let mut tensors = Vec::new();
    for (i, &(layer, outputs, inputs)) in layers.iter().enumerate() {
        let matrix = |rows: usize, columns: usize| {
            let value = |j: usize| ((j * 37 + i * 11) % 19) as f32 / 19.0 - 0.5;
            Tensor::from_vec((0..rows * columns).map(value).collect(), [rows, columns]).unwrap()
        };
        tensors.push((format!("{layer}.lora_down.weight"), matrix(2, inputs)));
        tensors.push((format!("{layer}.lora_up.weight"), matrix(outputs, 2)));
        tensors.push((format!("{layer}.alpha"), Tensor::from_vec(vec![2f32], [1]).unwrap()));
    }
    save(path, &tensors, &Default::default()).unwrap();
}

#[test]
fn adapters_reach_both_text_encoders_and_no_other_model() -> Result<()> {
    let (case, desk) = (open("base")?, tempfile::tempdir().unwrap());
    let path = desk.path().join("adapter.safetensors");
    let draw = |folder: &Path, adapters| {
        let options = LoadOptions { adapters, ..LoadOptions::default() };
        let model = TextToImage::load(folder, &options)?;
        let mut request = case.request();
        request.settings.steps = Some(1);
        model.draw(request)
    };
    let plain = draw(case.folder(), Vec::new())?;
    let adapter = || vec![Adapter { path: path.clone(), weight: 1.0 }];
    let attention = "mid_block_attentions_0_transformer_blocks_2_attn2_to_k";
    let layers = [
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", 96, 32),
        ("lora_te2_text_model_encoder_layers_3_mlp_fc1", 96, 40),
        (&format!("lora_unet_{attention}"), 32, 72),
    ];
    for layer in &layers {
        write_adapter(&path, &[*layer]);
        assert_ne!(draw(case.folder(), adapter())?, plain, "{}", layer.0);
    }

    // Of this model on Stable Diffusion 1.5, and the other way.
    let other = Case::open("pndm")?;
    for (layer, words) in [(layers[1], "text_encoder_2"), (layers[2], "Stable Diffusion")] {
        write_adapter(&path, &[layer]);
        let error = draw(other.folder(), adapter()).unwrap_err().to_string();
        assert!(error.contains("adapter.safetensors") && error.contains(layer.0), "{error}");
        assert!(error.contains("of another model"), "{error}");
        assert!(words != "text_encoder_2" || error.contains(words), "{error}");
    }
    let theirs = vec![Adapter { path: golden::path("lora/kohya.safetensors"), weight: 1.0 }];
    let error = draw(case.folder(), theirs).unwrap_err().to_string();
    assert!(error.contains("kohya.safetensors") && error.contains("of another model"), "{error}");
    Ok(())
}

/// kohya's scripts name the layers of SDXL's UNet as its original code does.
#[test]
fn adapters_name_layers_as_the_original_code_does() -> Result<()> {
    let (case, desk) = (open("base")?, tempfile::tempdir().unwrap());
    let path = desk.path().join("adapter.safetensors");
    let draw = |layer: &str, outputs, inputs| {
        write_adapter(&path, &[(&format!("lora_unet_{layer}"), outputs, inputs)]);
        let adapters = vec![Adapter { path: path.clone(), weight: 1.0 }];
        let model =
            TextToImage::load(case.folder(), &LoadOptions { adapters, ..LoadOptions::default() })?;
        let mut request = case.request();
        request.settings.steps = Some(1);
        model.draw(request)
    };
    let attention = "transformer_blocks_0_attn2_to_k";
    let layers: &[(&str, &str, usize, usize)] = &[
        ("input_blocks_4_1", "down_blocks_1_attentions_0", 24, 72),
        ("middle_block_1", "mid_block_attentions_0", 32, 72),
        ("output_blocks_4_1", "up_blocks_1_attentions_1", 24, 72),
    ];
    for (original, current, outputs, inputs) in layers {
        let ours = draw(&format!("{current}_{attention}"), *outputs, *inputs)?;
        assert_eq!(
            draw(&format!("{original}_{attention}"), *outputs, *inputs)?,
            ours,
            "{original}"
        );
    }
    let ours = draw("add_embedding_linear_1", 64, 72)?;
    assert_eq!(draw("label_emb_0_0", 64, 72)?, ours);
    assert!(draw("input_blocks_99_1_proj_in", 24, 24).is_err());
    Ok(())
}

/// A file with the vectors that `golden/sdxl.py` draws for each text encoder.
fn write_word(path: &Path, keys: &[(&str, usize)]) {
    let drawn = |(key, width): &(&str, usize)| {
        let shapes = [((*key).to_owned(), vec![2, *width])].into();
        ((*key).to_owned(), Drawn::of_shapes(shapes, DType::F32).read(key).unwrap())
    };
    save(path, &keys.iter().map(drawn).collect::<Vec<_>>(), &Default::default()).unwrap();
}

#[test]
fn a_word_is_taught_to_both_text_encoders() -> Result<()> {
    let (case, desk) = (open("learned")?, tempfile::tempdir().unwrap());
    let path = desk.path().join("<river>.safetensors");
    let load = |folder: &Path, text: &str| {
        let embeddings = vec![text.parse()?];
        TextToImage::load(folder, &LoadOptions { embeddings, ..LoadOptions::default() })
    };
    let text = path.to_str().unwrap();
    write_word(&path, &[("clip_g", 40), ("clip_l", 32)]);
    let model = load(case.folder(), text)?;
    check_drawn(&case, "learned", &model, &case.request(), Device::Cpu)?;
    assert_ne!(model.fingerprint(), case.load(DType::F32, Device::Cpu)?.fingerprint());

    let other = Case::open("pndm")?;
    let refused = |folder: &Path, keys: &[(&str, usize)], words: &[&str]| {
        write_word(&path, keys);
        let error = load(folder, text).err().expect("it was taken").to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    refused(other.folder(), &[("clip_g", 40), ("clip_l", 32)], &["clip_g", "SDXL"]);
    refused(case.folder(), &[("<river>", 32)], &["<river>", "clip_l and clip_g"]);
    refused(case.folder(), &[("clip_g", 48), ("clip_l", 32)], &["clip_g", "48", "40"]);
    refused(case.folder(), &[("clip_g", 40), ("clip_l", 40)], &["clip_l", "40", "32"]);
    Ok(())
}

/// The second encoder knows taught words, in a prompt of its own too.
#[test]
fn a_second_prompt_has_words_that_were_taught() -> Result<()> {
    let (case, desk) = (open("learned")?, tempfile::tempdir().unwrap());
    let path = desk.path().join("<river>.safetensors");
    write_word(&path, &[("clip_g", 40), ("clip_l", 32)]);
    let embeddings = vec![path.to_str().unwrap().parse()?];
    let options = LoadOptions { embeddings, ..LoadOptions::default() };
    let model = TextToImage::load(case.folder(), &options)?;
    let draw = |prompt: &str, prompt_2: &str| {
        let mut request = case.request();
        request.settings.steps = Some(1);
        (request.settings.prompt, request.settings.prompt_2) = (prompt.into(), prompt_2.into());
        model.draw(request)
    };
    let prompt = &case.request().settings.prompt;
    let plain = prompt.replace("<river>", "river");
    assert!(*prompt != plain);
    assert_eq!(draw(prompt, prompt)?, draw(prompt, "")?);
    assert_ne!(draw(&plain, prompt)?, draw(&plain, "")?);
    assert_ne!(draw(&plain, prompt)?, draw(prompt, "")?);
    Ok(())
}

/// A request to follow the picture that a golden file has.
fn following(case: &Case, name: &str) -> Request {
    let levels = get(&golden::open(&format!("sdxl/{name}")).unwrap(), "followed");
    let (height, width) = (levels.dim(0), levels.dim(1));
    let levels = Levels::U8(levels.to_vec().unwrap());
    let picture = Control::new(Raster { height, width, bands: 3, levels });
    let control = match name {
        "followed" => Control { scale: 0.8, start: 0.2, end: 0.75, ..picture },
        _ => picture,
    };
    Request { controls: vec![control], guess_mode: name == "guessed", ..case.request() }
}

fn check_followed(device: Device) -> Result<()> {
    ["followed", "guessed", "steered"].iter().try_for_each(|name| {
        let case = open(name)?;
        let model = case.load(DType::F32, device)?;
        check_drawn(&case, name, &model, &following(&case, name), device)
    })
}

#[test]
fn a_controlnet_is_told_what_the_unet_is() -> Result<()> {
    check_followed(Device::Cpu)
}

#[test]
fn a_gpu_follows_what_the_cpu_does() -> Result<()> {
    gpu().map_or(Ok(()), check_followed)
}

/// With and without guidance, and by another weight: each is the one that is drawn alone.
#[test]
fn company_changes_nothing_that_is_followed() -> Result<()> {
    let case = open("followed")?;
    let model = case.load(DType::F32, Device::Cpu)?;
    let request = |i: usize| {
        let mut request = following(&case, if i == 4 { "guessed" } else { "followed" });
        request.settings.steps = Some(3);
        match i {
            1 => request.controls[0].scale = 0.3,
            2 => request.settings.guidance_scale = Some(1.0),
            3 => request.settings.original_size = "64,7".parse().ok(),
            5 => request.settings.negative_prompt = String::new(),
            6 => request.seed += 1,
            _ => {}
        }
        request
    };
    check_company(&model, &(0..7).map(request).collect::<Vec<_>>())
}

#[test]
fn a_controlnet_of_another_model_is_refused() -> Result<()> {
    let (case, desk) = (open("base")?, tempfile::tempdir().unwrap());
    let net = desk.path().join("net");
    let refused = |change: &dyn Fn(&mut Value), words: &str| {
        write_controlnet(&net);
        edit(&net.join("config.json"), change);
        let options = LoadOptions { controlnets: vec![net.clone()], ..LoadOptions::default() };
        let error = TextToImage::load(case.folder(), &options).err().unwrap().to_string();
        assert!(error.contains(words) && error.contains("SDXL's"), "{error}");
    };
    refused(&|json| json["addition_embed_type"] = Value::Null, "\"addition_embed_type\"");
    refused(&|json| json["cross_attention_dim"] = 32.into(), "cross_attention_dim");
    Ok(())
}

#[test]
fn a_picture_is_a_prompt() -> Result<()> {
    let (case, desk) = (open("seen")?, tempfile::tempdir().unwrap());
    let [adapter, encoder] = ["adapter.safetensors", "encoder"].map(|name| desk.path().join(name));
    Drawn::by_inputs("sdxl/adapter").save(&adapter);
    write("ip_adapter/encoder", &encoder);
    let options = LoadOptions {
        ip_adapter: Some(adapter),
        image_encoder: Some(encoder),
        ..LoadOptions::default()
    };
    let model = TextToImage::load(case.folder(), &options)?;
    let levels = get(&golden::open("sdxl/seen")?, "seen"); // [H, W, 3]
    let (height, width) = (levels.dim(0) as u32, levels.dim(1) as u32);
    let picture = RgbImage::from_raw(width, height, levels.to_vec()?).unwrap();
    let image_prompt = Some(ImagePrompt { picture: Arc::new(picture), scale: 0.7 });
    let request = Request { image_prompt, ..case.request() };
    check_drawn(&case, "seen", &model, &request, Device::Cpu)
}

/// The error of loading `case` with its `model_index.json` or a configuration changed.
fn refused(name: &str, change: &dyn Fn(&Path)) -> String {
    let case = open(name).unwrap();
    change(case.folder());
    case.load(DType::F32, Device::Cpu).err().expect("it was taken").to_string()
}

fn edit(path: &Path, change: &dyn Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

#[test]
fn what_is_missing_or_of_another_model_is_named() {
    let index = |change: &dyn Fn(&mut Value)| {
        refused("base", &|folder| edit(&folder.join("model_index.json"), change))
    };
    let error = refused("base", &|folder| {
        fs::remove_dir_all(folder.join("text_encoder_2")).unwrap();
    });
    assert!(error.contains("text_encoder_2") && error.contains("fetch"), "{error}");
    let error = index(&|json| {
        json.as_object_mut().unwrap().remove("tokenizer_2");
    });
    assert!(error.contains("tokenizer_2"), "{error}");
    let error = index(&|json| json["text_encoder_2"] = json!([null, null]));
    assert!(error.contains("text_encoder_2"), "{error}");
    let error = index(&|json| json["text_encoder_2"][1] = "CLIPTextModel".into());
    assert!(error.contains("CLIPTextModelWithProjection"), "{error}");
    // The refiner, as it is published.
    let refiner = |json: &mut Value| {
        json["_class_name"] = "StableDiffusionXLImg2ImgPipeline".into();
        json["requires_aesthetics_score"] = true.into();
        json["text_encoder"] = json!([null, null]);
        json["tokenizer"] = json!([null, null]);
    };
    let error = index(&refiner);
    assert!(error.contains("refiner") && error.contains("requires_aesthetics_score"), "{error}");
    let error = index(&|json| json["_class_name"] = "StableDiffusionPipeline".into());
    assert!(error.contains("text_encoder_2"), "{error}");
    let error = index(&|json| json["_class_name"] = "StableDiffusionXLAdapterPipeline".into());
    assert!(
        error.contains("_class_name") && error.contains("StableDiffusionXLPipeline"),
        "{error}"
    );
    for (field, value) in [
        ("projection_class_embeddings_input_dim", 64.into()),
        ("addition_embed_type", Value::Null),
        ("cross_attention_dim", 32.into()),
    ] {
        let error = refused("base", &|folder| {
            edit(&folder.join("unet/config.json"), &|json| json[field] = value.clone());
        });
        // Weights that do not fit are found first.
        assert!(error.contains(field) || error.contains("expected ["), "{field}: {error}");
    }
}

fn nadir(at: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.args(args).current_dir(at).env_remove("NADIR_WEIGHTS").output().unwrap()
}

fn png(picture: &RgbImage) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    picture.write_to(&mut png, image::ImageFormat::Png).unwrap();
    png.into_inner()
}

/// How much of a picture is drawn anew where nobody says: what the pipeline of diffusers draws, by the command line and by the
/// server, and the picture says so.
#[test]
fn a_strength_that_is_not_said_is_that_of_the_pipeline() -> Result<()> {
    for (name, strength) in [("image", 0.3), ("painted", 0.9999), ("steered", 0.8)] {
        let (desk, case) = (tempfile::tempdir().unwrap(), open(name)?);
        let (at, model) = (desk.path(), case.folder().to_str().unwrap());
        let request = case.request();
        let (settings, init) = (&request.settings, request.init.as_ref().unwrap());
        let InitPixels::Rgb(from) = &init.image else { panic!("{name}: no picture") };
        let golden = golden::open(&format!("sdxl/{name}"))?;
        let given = [
            ("--init-image", "init_image", Some(png(from))),
            ("--mask-image", "mask_image", init.mask.as_ref().map(png)),
            (
                "--control-image",
                "control_images",
                golden.read("followed").ok().map(|levels| {
                    let (height, width) = (levels.dim(0) as u32, levels.dim(1) as u32);
                    png(&RgbImage::from_raw(width, height, levels.to_vec().unwrap()).unwrap())
                }),
            ),
        ];
        let told = |path: &Path| read_replay(path).unwrap()["strength"].clone();
        let pixels = |path: &Path| image::open(path).unwrap().into_rgb8().into_raw();

        let seed = format!("-s{}", request.seed);
        let steps = format!("--steps={}", settings.steps.unwrap());
        let mut args = vec!["generate".to_owned(), settings.prompt.clone(), seed, steps];
        args.extend(
            ["-m", model, "-n", &settings.negative_prompt, "-o", "drawn.png"].map(str::to_owned),
        );
        let mut body = json!({
            "kind": "image", "prompt": settings.prompt, "negative_prompt": settings.negative_prompt, "seed": request.seed,
            "steps": settings.steps,
        });
        for (flag, field, picture) in &given {
            let Some(picture) = picture else { continue };
            fs::write(at.join(format!("{field}.png")), picture).unwrap();
            args.push(format!("{flag}={field}.png"));
            let text = STANDARD.encode(picture);
            body[*field] =
                if *field == "control_images" { json!([{"image": text}]) } else { json!(text) };
        }
        let output = nadir(at, &args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let drawn = at.join("drawn.png");
        let psnr = case::psnr(&pixels(&drawn), &get(&golden, "image").to_vec::<f32>()?);
        assert!(psnr >= 50.0, "{name}: {psnr} dB");
        assert_eq!(told(&drawn), strength, "{name}");
        let output = nadir(at, &["replay", "drawn.png", "-o", "again.png"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(pixels(&at.join("again.png")) == pixels(&drawn), "{name}");

        let server = Server::start(at, &["-m", model]);
        let served = at.join("served.png");
        fs::write(&served, server.picture(&body)).unwrap();
        assert!(pixels(&served) == pixels(&drawn), "{name}");
        assert_eq!(told(&served), strength, "{name}");
        let about: Value = serde_json::from_slice(&server.get("/api/server").1).unwrap();
        let field = if init.mask.is_some() { "strength_with_mask" } else { "strength" };
        assert_eq!(about["image"][field], strength, "{name}");
    }
    Ok(())
}

/// By the command line, a row of a manifest and the server; what is not said is what the first encoder reads.
#[test]
fn a_second_prompt_is_said_wherever_a_prompt_is() -> Result<()> {
    let (desk, case) = (tempfile::tempdir().unwrap(), open("apart")?);
    let (at, model) = (desk.path(), case.folder().to_str().unwrap());
    let Settings { prompt, negative_prompt, prompt_2, negative_prompt_2, .. } =
        case.request().settings;
    let done = |args: &[&str]| {
        let output = nadir(at, args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let pixels = |path: &Path| image::open(path).unwrap().into_rgb8().into_raw();
    let draw = |name: &str, first: &str, second: &str| {
        let mut args = vec!["generate", &prompt, "-n", &negative_prompt, "-m", model, "-s15"];
        args.extend(["-W24", "-H32", "--steps=4", "-o", name]);
        let given = [("--prompt-2", first), ("--negative-prompt-2", second)];
        let given = given.into_iter().filter(|(_, text)| !text.is_empty());
        args.extend(given.flat_map(|(flag, text)| [flag, text]));
        done(&args);
        pixels(&at.join(name))
    };

    let apart = draw("apart.png", &prompt_2, &negative_prompt_2);
    let golden = get(&golden::open("sdxl/apart")?, "image").to_vec::<f32>()?;
    let psnr = case::psnr(&apart, &golden);
    assert!(psnr >= 50.0, "{psnr} dB");
    let neither = draw("neither.png", "", "");
    assert!(draw("same.png", &prompt, &negative_prompt) == neither);
    let halves = [draw("first.png", &prompt_2, ""), draw("second.png", "", &negative_prompt_2)];
    for (i, half) in halves.iter().enumerate() {
        assert!(*half != apart && *half != neither && *half != halves[1 - i]);
    }
    let told = read_replay(&at.join("apart.png"))?;
    assert_eq!(
        (&told["prompt_2"], &told["negative_prompt_2"]),
        (&json!(prompt_2), &json!(negative_prompt_2))
    );
    done(&["replay", "apart.png", "-o", "again.png"]);
    assert!(pixels(&at.join("again.png")) == apart);

    let mut said = json!({
        "prompt": prompt, "negative_prompt": negative_prompt, "prompt_2": prompt_2,
        "negative_prompt_2": negative_prompt_2, "seed": 15, "steps": 4, "width": 24, "height": 32,
    });
    fs::write(at.join("rows.jsonl"), said.to_string()).unwrap();
    done(&["generate", "--manifest", "rows.jsonl", "-m", model, "-o", "rows"]);
    let mut entries = fs::read_dir(at.join("rows")).unwrap().map(|entry| entry.unwrap().path());
    let row = entries.find(|path| path.extension().is_some_and(|end| end == "png"));
    assert!(pixels(&row.unwrap()) == apart);

    let server = Server::start(at, &["-m", model]);
    said["kind"] = json!("image");
    let served = image::load_from_memory(&server.picture(&said)).unwrap().into_rgb8();
    assert!(served.into_raw() == apart);
    let about: Value = serde_json::from_slice(&server.get("/api/server").1).unwrap();
    assert_eq!(about["image"]["second_prompt"], true);

    for flag in ["--prompt-2", "--negative-prompt-2"] {
        let output = nadir(
            at,
            &[
                "generate",
                "a",
                flag,
                "b",
                "-m",
                golden::root().join("weights/eurosat-64").to_str().unwrap(),
            ],
        );
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(flag) && told.contains("one text encoder"), "{told}");
    }
    Ok(())
}

/// What the case `told` is given.
const TOLD: [&str; 9] = [
    "--negative-prompt=low quality, jpeg artifacts",
    "--cfg-scale=7.5",
    "--clip-skip=1",
    "--original-size=1024,768",
    "--crops-coords-top-left=10,20",
    "--target-size=512,640",
    "--negative-original-size=256,128",
    "--negative-crops-coords-top-left=5,6",
    "--negative-target-size=64,48",
];

/// What a picture says of itself, as a PNG or a GeoTIFF, draws it again on a server.
#[test]
fn what_a_picture_says_is_a_job() -> Result<()> {
    let (desk, case) = (tempfile::tempdir().unwrap(), open("told")?);
    let (at, model) = (desk.path(), case.folder().to_str().unwrap());
    let prompt = "a (satellite:1.2) image of [a] river";
    let common = ["generate", prompt, "-m", model, "-s4", "-W24", "-H32", "--steps=2"];
    let more = ["--prompt-2=farmland", "--prompt-syntax=webui", "--long-prompts=chunk"];
    let pixels = |bytes: &[u8]| image::load_from_memory(bytes).unwrap().into_rgb8().into_raw();
    let server = Server::start(at, &["-m", model]);
    let place = ["--bbox=485900,5205627,486140,5205947", "--epsg=26914"];
    for (name, place) in [("told.png", &[][..]), ("told.tif", &place[..])] {
        let output = nadir(at, &[&common[..], &TOLD, &more, place, &["-o", name]].concat());
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let file = fs::read(at.join(name)).unwrap();
        let (status, told) = server.send("/api/recipe", "application/octet-stream", &file);
        assert_eq!(status, 200, "{told}");
        let mut request = told["request"].clone();
        assert_eq!(request["original_size"], json!([1024, 768]));
        request["kind"] = json!("image");
        assert!(pixels(&server.picture(&request)) == pixels(&file), "{name}");
    }
    let (status, told) = server.send("/api/recipe", "image/tiff", b"II*\0\x08\0\0\0");
    assert_eq!(status, 422, "{told}");
    Ok(())
}

#[test]
fn the_command_line_draws_and_replays() -> Result<()> {
    let desk = tempfile::tempdir().unwrap();
    let (at, case) = (desk.path(), open("told")?);
    let model = case.folder().to_str().unwrap();
    let prompt = case.json["arguments"]["prompt"].as_str().unwrap();
    let common = ["generate", prompt, "-m", model, "-s4", "-W24", "-H32", "--steps=4"];
    let done = |output: Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let pixels = |name: &str| image::open(at.join(name)).unwrap().into_rgb8().into_raw();
    done(nadir(at, &[&common[..], &TOLD, &["-o", "told.png"]].concat()));
    let golden = get(&golden::open("sdxl/told")?, "image").narrow(0, 0, 1)?.to_vec::<f32>()?;
    let psnr = case::psnr(&pixels("told.png"), &golden);
    assert!(psnr >= 50.0, "{psnr} dB");
    assert_eq!(read_replay(&at.join("told.png"))?["original_size"], json!([1024, 768]));
    done(nadir(at, &["replay", "told.png", "-o", "again.png"]));
    assert!(pixels("again.png") == pixels("told.png"));

    // A manifest says the same.
    fs::write(
        at.join("rows.csv"),
        format!(
            "prompt,negative_prompt,seed,steps,width,height,guidance_scale,clip_skip,original_size,crops_coords_top_left,\
             target_size,negative_original_size,negative_crops_coords_top_left,negative_target_size\n\
             {prompt},\"low quality, jpeg artifacts\",4,4,24,32,7.5,1,\"1024,768\",\"10,20\",\"512,640\",\"256,128\",\"5,6\",\"64,48\"\n"
        ),
    )
    .unwrap();
    done(nadir(at, &["generate", "--manifest", "rows.csv", "-m", model, "-o", "rows"]));
    let entries = fs::read_dir(at.join("rows")).unwrap().map(|entry| entry.unwrap().path());
    let row = entries.into_iter().find(|path| path.extension().is_some_and(|end| end == "png"));
    assert!(image::open(row.unwrap()).unwrap().into_rgb8().into_raw() == pixels("told.png"));

    let shipped = golden::root().join("weights/eurosat-64");
    for (args, words) in [
        (["generate", "a", "-m", model, "--original-size=7"], "--original-size"),
        (["generate", "a", "-m", model, "--target-size=-1,0"], "--target-size"),
        (["generate", "a", "-m", model, "--negative-target-size=8,8"], "--negative-original-size"),
        (["generate", "a", "-m", model, "--clip-skip=3"], "--clip-skip"),
        (
            ["generate", "a", "-m", shipped.to_str().unwrap(), "--original-size=8,8"],
            "--original-size",
        ),
    ] {
        let output = nadir(at, &args);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let output = nadir(at, &["convert", model, "--out", "one.safetensors"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("width 32"), "{said}");
    Ok(())
}
