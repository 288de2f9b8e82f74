//! Low-rank adapters, in every convention of their files, against diffusers and peft.

#[path = "golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};

use golden::drawn::{Drawn, write};
use nadir::Result;
use nadir::data::{DataSettings, Dataset};
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::models::unet::{Unet, UnetConfig};
use nadir::nn::Params;
use nadir::nn::lora::{Adapter, Adapters, Targets};
use nadir::ops::gradient::backward;
use nadir::pipeline::Cancel;
use nadir::tensor::{DType, Device, Tensor};
use nadir::train::checkpoint::Resume;
use nadir::train::diffusion::{DiffusionSettings, DiffusionTask, LoraSettings, Prediction};
use nadir::train::random::{Purpose, Random};
use nadir::train::{Event, Optimizer, Outcome, Run, Settings, Task, in_order};

fn file(name: &str) -> PathBuf {
    golden::path("lora").join(name)
}

fn adapter(name: &str, weight: f32) -> Adapter {
    Adapter { path: file(name), weight }
}

fn weights(name: &str) -> Drawn {
    Drawn::by_inputs(&format!("models/{name}"))
}

fn open(adapters: &[Adapter]) -> Result<Adapters> {
    let [unet, text] = ["unet_sd15", "clip_l"].map(weights);
    Adapters::open(adapters, &[("unet", &unet), ("text_encoder", &text)])
}

/// What UNet and text encoder make of the golden inputs with these adapters.
fn outputs(golden: &SafeTensors, adapters: &[Adapter], dtype: DType) -> Result<[Tensor; 2]> {
    let adapters = open(adapters)?;
    let config = |name| Config::open(golden::path("models").join(name).join("config.json"));
    let params = |part, name| Params::new(adapters.merged(part, weights(name)), dtype, Device::Cpu);
    let get = |name| golden::get(golden, name);

    let unet = Unet::load(UnetConfig::read(&config("unet_sd15")?)?, &params("unet", "unet_sd15"))?;
    let temb = unet.embed_timesteps(&get("timesteps").to_vec::<f32>()?)?;
    let context = unet.context(&get("text").to_dtype(dtype)?)?;
    let predicted = unet.forward(&get("sample"), &temb, &context)?;

    let params = params("text_encoder", "clip_l");
    let text = ClipText::load(ClipTextConfig::read(&config("clip_l")?)?, &params)?;
    Ok([predicted, text.forward(&get("ids"), 0)?])
}

#[test]
fn adapters_of_every_convention_do_what_they_do_in_diffusers() {
    let golden = golden::open("lora").unwrap();
    let mut cases = vec![(
        "stacked".to_owned(),
        vec![adapter("diffusers.safetensors", 0.8), adapter("attention.safetensors", 0.5)],
    )];
    for (name, file) in [
        ("diffusers", "diffusers.safetensors"),
        ("kohya", "kohya.safetensors"),
        ("old", "old.safetensors"),
        // The folder that peft has saved.
        ("peft", "peft"),
    ] {
        for (index, weight) in [1.0, -0.6].into_iter().enumerate() {
            cases.push((format!("{name}.{index}"), vec![adapter(file, weight)]));
        }
    }
    for (name, adapters) in cases {
        let [unet, text] = outputs(&golden, &adapters, DType::F32).unwrap();
        // As without adapters: sums of the same terms in another order.
        golden::assert_close(&name, &unet, &golden::get(&golden, &format!("{name}.unet")), 1e-5);
        golden::assert_close(&name, &text, &golden::get(&golden, &format!("{name}.text")), 1e-5);
    }
}

/// diffusers rounds matrices, product and sum to bf16, nadir the sum alone: it may be off by twice as much, and is by less.
#[test]
fn adapters_in_bf16_are_as_near_as_those_that_diffusers_fuses() {
    let golden = golden::open("lora").unwrap();
    let ours = outputs(&golden, &[adapter("diffusers.safetensors", 1.0)], DType::BF16).unwrap();
    for (part, ours) in ["unet", "text"].into_iter().zip(ours) {
        let exact = golden::get(&golden, &format!("diffusers.0.{part}"));
        let theirs = golden::get(&golden, &format!("fused_bf16.{part}"));
        let error = |x: &Tensor| -> f64 {
            let x = x.to_dtype(DType::F32).unwrap().to_vec::<f32>().unwrap();
            let exact = exact.to_vec::<f32>().unwrap();
            x.iter().zip(exact).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
        };
        let (ours, theirs) = (error(&ours), error(&theirs));
        println!("{part}: {ours:.3e}, diffusers {theirs:.3e}");
        assert!(ours <= 2.0 * theirs, "{part}: off by {ours:e}, diffusers by {theirs:e}");
    }
}

#[test]
fn an_adapter_of_weight_0_changes_nothing() {
    let golden = golden::open("lora").unwrap();
    let plain = outputs(&golden, &[], DType::F32).unwrap();
    let none = outputs(&golden, &[adapter("diffusers.safetensors", 0.0)], DType::F32).unwrap();
    for (a, b) in plain.iter().zip(&none) {
        golden::assert_same("weight 0", a, b);
    }
}

type Named = Vec<(String, Tensor)>;

/// The tensors of a file, by name.
fn read(path: &Path) -> Named {
    let source = SafeTensors::open(path).unwrap();
    source.names().into_iter().map(|name| (name.clone(), source.read(&name).unwrap())).collect()
}

#[test]
fn what_does_not_fit_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let error = |from: &str, change: &dyn Fn(&mut Named)| {
        let mut tensors = read(&file(from));
        change(&mut tensors);
        save(&path, &tensors, &Default::default()).unwrap();
        let error = open(&[Adapter { path: path.clone(), weight: 1.0 }]).err();
        let error = error.expect("it was taken").to_string();
        assert!(error.contains("adapter.safetensors"), "{error}");
        error
    };
    let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, Device::Cpu).unwrap();
    let replace = |tensors: &mut Named, key: &str, shape: &[usize]| {
        tensors.iter_mut().find(|(name, _)| name == key).unwrap().1 = zeros(shape);
    };
    let layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
    let [down, up] = ["A", "B"].map(|matrix| format!("{layer}.lora_{matrix}.weight"));

    // Of no convention, of no layer, of no part.
    for key in [
        "lora_unet_mid_block.hada_w1_a".to_owned(),
        format!("{layer}.lora_magnitude_vector"),
        "vae.decoder.conv_in.lora_A.weight".to_owned(),
    ] {
        let message =
            error("attention.safetensors", &|all| all.push((key.clone(), zeros(&[2, 2]))));
        assert!(message.contains(&key), "{message}");
    }
    let message = error("attention.safetensors", &|all| {
        for (name, _) in all.iter_mut().filter(|(name, _)| name.starts_with(layer)) {
            *name = name.replace("to_q", "to_x");
        }
    });
    assert!(message.contains("to_x") && message.contains("another model"), "{message}");
    // No counterpart, and twice.
    let message = error("attention.safetensors", &|all| all.retain(|(name, _)| *name != up));
    assert!(message.contains(&down) && message.contains("counterpart"), "{message}");
    let message = error("attention.safetensors", &|all| {
        all.push((format!("{layer}.lora.down.weight"), zeros(&[2, 32])));
    });
    assert!(message.contains("once"), "{message}");
    // Ranks and shapes.
    let message = error("attention.safetensors", &|all| replace(all, &up, &[32, 3]));
    assert!(message.contains(&up) && message.contains("[32, 3]"), "{message}");
    let message = error("attention.safetensors", &|all| replace(all, &down, &[2, 31]));
    assert!(message.contains(&down) && message.contains("[2, 31]"), "{message}");
    let message = error("attention.safetensors", &|all| replace(all, &up, &[31, 2]));
    assert!(message.contains(&up) && message.contains("[31, 2]"), "{message}");
    let message = error("attention.safetensors", &|all| replace(all, &down, &[64]));
    assert!(message.contains(&down) && message.contains("[64]"), "{message}");
    // A scale that is none.
    let alpha = "lora_unet_mid_block_attentions_0_proj_in.alpha";
    let message = error("kohya.safetensors", &|all| replace(all, alpha, &[2]));
    assert!(message.contains(alpha) && message.contains("number"), "{message}");
    // Nothing at all.
    let message = error("kohya.safetensors", &Vec::clear);
    assert!(message.contains("Is this an adapter?"), "{message}");
}

#[test]
fn what_stands_beside_an_adapter_is_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let model = folder.join("adapter_model.safetensors");
    std::fs::copy(file("peft/adapter_model.safetensors"), &model).unwrap();
    let here = Adapter { path: folder.to_owned(), weight: 1.0 };
    let error = || open(std::slice::from_ref(&here)).err().expect("it was taken").to_string();
    // Without it nobody knows alpha.
    assert!(error().contains("adapter_config.json"), "{}", error());
    let before = here.checksum().unwrap();
    let config = std::fs::read_to_string(file("peft/adapter_config.json")).unwrap();
    let write = |text: &str| std::fs::write(folder.join("adapter_config.json"), text).unwrap();
    for (from, to, named) in [
        ("\"LORA\"", "\"LOHA\"", "peft_type"),
        ("\"r\": 2", "\"use_dora\": true", "use_dora"),
        ("\"lora_alpha\": 3", "\"lora_alpha\": \"x\"", "lora_alpha"),
        ("{", "", "JSON"),
        ("\"alpha_pattern\": {}", "\"alpha_pattern\": {\".*to_q\": 1}", "alpha_pattern"),
    ] {
        assert!(config.contains(from), "{from}");
        write(&config.replacen(from, to, 1));
        assert!(error().contains(named), "{named}: {}", error());
    }
    write(&config);
    open(std::slice::from_ref(&here)).unwrap();
    assert_ne!(here.checksum().unwrap(), before);
}

#[test]
fn weights_that_are_not_finite_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.safetensors");
    let mut tensors = read(&file("attention.safetensors"));
    let dims = tensors[0].1.dims().to_vec();
    tensors[0].1 = Tensor::full(&dims, f64::NAN, DType::F32, Device::Cpu).unwrap();
    save(&path, &tensors, &Default::default()).unwrap();
    let golden = golden::open("lora").unwrap();
    let error = outputs(&golden, &[Adapter { path, weight: 1.0 }], DType::F32).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("adapter.safetensors") && error.contains("finite"), "{error}");
}

#[test]
fn an_adapter_is_a_file_and_maybe_a_weight() {
    let parse = |text: &str| text.parse::<Adapter>().map(|a| (a.path, a.weight));
    assert_eq!(parse("a/b.safetensors").unwrap(), ("a/b.safetensors".into(), 1.0));
    assert_eq!(parse("b.safetensors:-0.5").unwrap(), ("b.safetensors".into(), -0.5));
    assert_eq!(parse(r"C:\b.safetensors").unwrap(), (r"C:\b.safetensors".into(), 1.0));
    assert_eq!(parse(r"C:\b.safetensors:2").unwrap(), (r"C:\b.safetensors".into(), 2.0));
    for wrong in ["b.safetensors:nan", "b.safetensors:inf"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
    let folder = tempfile::tempdir().unwrap();
    let odd = folder.path().join("odd:2");
    std::fs::write(&odd, "").unwrap();
    assert_eq!(parse(odd.to_str().unwrap()).unwrap(), (odd, 1.0));
}

/// A model of golden components, as diffusers lays it out.
fn model(folder: &Path) -> PathBuf {
    let folder = folder.join("model");
    for (part, from) in [("unet", "unet_sd15"), ("text_encoder", "clip_l"), ("vae", "vae")] {
        write(&format!("models/{from}"), &folder.join(part));
    }
    for (part, from) in
        [("tokenizer", "pipelines/tokenizer"), ("scheduler", "pipelines/pndm/scheduler")]
    {
        std::fs::create_dir_all(folder.join(part)).unwrap();
        for entry in std::fs::read_dir(golden::path(from)).unwrap() {
            let file = entry.unwrap().path();
            std::fs::copy(&file, folder.join(part).join(file.file_name().unwrap())).unwrap();
        }
    }
    folder
}

/// Pictures of 32x32 with captions.
fn pictures(folder: &Path) -> Dataset {
    let folder = folder.join("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    let mut index = String::new();
    for i in 0..5u8 {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 8) as u8, (y * 8) as u8, i * 50]);
        let picture = image::RgbImage::from_fn(32, 32, pixel);
        nadir::io::png::write(&folder.join(format!("{i}.png")), &picture, &[]).unwrap();
        index += &format!("{{\"file_name\": \"{i}.png\", \"text\": \"picture {i}\"}}\n");
    }
    std::fs::write(folder.join("metadata.jsonl"), index).unwrap();
    Dataset::open(folder, DataSettings::default()).unwrap()
}

/// Adapters of every layer of UNet and text encoder.
fn task(model: &Path, lora: &LoraSettings) -> Result<DiffusionTask> {
    let settings = DiffusionSettings {
        prediction_type: Prediction::Epsilon,
        snr_gamma: None,
        noise_offset: 0.0,
        proportion_empty_prompts: 0.0,
    };
    DiffusionTask::open(model, settings, true, Device::Cpu)?.adapting(lora, 7)
}

fn of_every_layer() -> LoraSettings {
    LoraSettings {
        lora_rank: Some(2),
        lora_alpha: Some(3.0),
        lora_targets: Targets::Conv,
        ..LoraSettings::default()
    }
}

/// Trains until `steps`, or until told to stop behind `stop`.
fn train(task: &dyn Task, data: &Dataset, folder: &Path, steps: u64, stop: Option<u64>) {
    std::fs::create_dir_all(folder).unwrap();
    let settings = Settings {
        train_batch_size: 2,
        max_train_steps: steps,
        learning_rate: 1e-2,
        checkpointing_steps: 2,
        use_ema: true,
        seed: 5,
        ..Settings::default()
    };
    let cancel = Cancel::default();
    let run = Run {
        task,
        settings: &settings,
        data,
        held_out: None,
        folder,
        about: &[],
        resume: Some(&Resume::Latest),
        cancel: &cancel,
    };
    let outcome = run.run(&mut |event| match event {
        Event::Step(progress) if Some(progress.step) == stop => {
            cancel.cancel();
        }
        Event::Failed(message) => panic!("{message}"),
        _ => {}
    });
    assert_eq!(outcome.unwrap(), stop.map_or(Outcome::Done, Outcome::Stopped));
}

#[test]
fn adapters_that_were_trained_are_resumed_exported_and_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (model, data) = (model(folder), pictures(folder));
    let [whole, parts] = ["whole", "parts"].map(|name| folder.join(name));
    let new = || task(&model, &of_every_layer()).unwrap();
    train(&new(), &data, &whole, 5, None);
    for stop in [Some(1), Some(3), None] {
        train(&new(), &data, &parts, 5, stop);
    }
    let file = "pytorch_lora_weights.safetensors";
    for name in [file, "checkpoint-5/state.safetensors"] {
        let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
    // Nothing of the model's is kept, nor written.
    let state = SafeTensors::open(whole.join("checkpoint-5/state.safetensors")).unwrap();
    assert!(state.names().iter().all(|name| name.contains(".lora_")));
    assert!(!whole.join("unet").exists() && !whole.join("model_index.json").exists());

    // The file is of the form that diffusers and peft have loaded: see golden/lora.py.
    let (ours, known) = (read(&whole.join(file)), golden::path("lora").join("nadir.safetensors"));
    if std::env::var_os("NADIR_WRITE_GOLDEN").is_some() {
        std::fs::copy(whole.join(file), &known).unwrap();
    }
    let describe = |tensors: &[(String, Tensor)]| -> Vec<String> {
        tensors.iter().map(|(name, x)| format!("{name} {} {:?}", x.dtype(), x.dims())).collect()
    };
    assert_eq!(describe(&ours), describe(&read(&known)));
}

/// The loss of a model that is saved with an adapter merged into it.
fn merged_loss(folder: &Path, adapter: Adapter, loss: &dyn Fn(&DiffusionTask) -> f64) -> f64 {
    let merged = folder.with_file_name("merged");
    let _ = std::fs::remove_dir_all(&merged);
    let plain = LoraSettings::default();
    let copy = model(&merged);
    let adapters = open(&[adapter]).unwrap();
    for (part, name, file) in [
        ("unet", "unet_sd15", "diffusion_pytorch_model.safetensors"),
        ("text_encoder", "clip_l", "model.safetensors"),
    ] {
        let source = adapters.merged(part, weights(name));
        let tensors: Vec<_> = source
            .names()
            .into_iter()
            .map(|name| (name.clone(), source.read(&name).unwrap()))
            .collect();
        save(&copy.join(part).join(file), &tensors, &Default::default()).unwrap();
    }
    loss(&task(&copy, &plain).unwrap())
}

#[test]
fn a_trained_adapter_does_what_it_did_in_training() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (model, data) = (model(folder), pictures(folder));
    let batch = data.pass(5, 1).unwrap().next().unwrap().unwrap();
    let loss = |task: &DiffusionTask| {
        let mut random = Random::new(1, Purpose::Validation, 0);
        task.validate(&batch, &mut random).unwrap()[0].1
    };
    for lora_targets in [Targets::Attention, Targets::Linear, Targets::Conv] {
        let settings = LoraSettings { lora_targets, ..of_every_layer() };
        let trained = task(&model, &settings).unwrap();
        let names: Vec<String> = trained.parameters().into_iter().map(|(name, _)| name).collect();
        let has = |layer: &str| names.iter().any(|name| name.contains(layer));
        // A projection that is stored as a 1x1 convolution is a linear layer.
        let expected = match lora_targets {
            Targets::Attention => [true, true, false, false, false, false],
            Targets::Linear => [true, true, true, true, true, false],
            Targets::Conv => [true; 6],
        };
        let layers = ["to_out.0", "q_proj", "fc1", "ff.net.0.proj", "proj_in", "conv_in"];
        assert_eq!(layers.map(has), expected, "{lora_targets:?}");
        assert!(!has("norm") && !has("embeddings.token"), "{lora_targets:?}");
        let plain = loss(&trained);
        let mut optimizer = Optimizer::new(&trained.parameters(), false).unwrap();
        for step in 0..3 {
            let parameters = trained.parameters();
            let mut random = Random::new(1, Purpose::Step, step);
            let total = trained.loss(&batch, &mut random).unwrap().total;
            let gradients = in_order(&parameters, backward(total).unwrap()).unwrap();
            for ((name, _), gradient) in parameters.iter().zip(&gradients) {
                let values = gradient.to_vec::<f32>().unwrap();
                assert!(values.iter().all(|x| x.is_finite()), "{name}");
                // A begins to matter when B is no longer 0.
                let zero = values.iter().all(|x| *x == 0.0);
                assert_eq!(zero, step == 0 && name.contains("lora_A"), "{name}, step {step}");
            }
            let settings = Settings { adam_weight_decay: 0.0, ..Settings::default() };
            optimizer.update(&parameters, gradients, &settings, (1e-2, 1.0)).unwrap();
        }
        let here = folder.join(format!("{lora_targets:?}"));
        std::fs::create_dir_all(&here).unwrap();
        trained.export(&here, &Vec::new()).unwrap();
        let last = loss(&trained);
        let merged = merged_loss(&model, Adapter { path: here, weight: 1.0 }, &loss);
        // The loss is a sum of squares, and the weights differ by the rounding of alpha / rank.
        assert!((merged - last).abs() <= 1e-5 * last, "{lora_targets:?}: {last} and {merged}");
        assert!((plain - last).abs() > 1e-3 * last, "{lora_targets:?}: {plain} and {last}");
    }
}

#[test]
fn adapters_that_cannot_be_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let model = model(folder.path());
    for (settings, named) in [
        (LoraSettings { lora_rank: Some(0), ..of_every_layer() }, "lora_rank"),
        (LoraSettings { lora_rank: Some(1 << 40), ..of_every_layer() }, "lora_rank"),
        (LoraSettings { lora_alpha: Some(f64::NAN), ..of_every_layer() }, "lora_alpha"),
        (LoraSettings { lora_alpha: Some(0.0), ..of_every_layer() }, "lora_alpha"),
        (LoraSettings { lora_dropout: 0.05, ..of_every_layer() }, "lora_dropout"),
        (LoraSettings { lora_dropout: f64::NAN, ..of_every_layer() }, "lora_dropout"),
    ] {
        let error = task(&model, &settings).err().expect(named).to_string();
        assert!(error.contains(named), "{error}");
    }
}

/// See [`adapters_that_were_trained_are_resumed_exported_and_loaded`], and golden/lora.py.
#[test]
fn what_nadir_exports_does_the_same_in_diffusers() {
    let golden = golden::open("lora").unwrap();
    let [unet, text] = outputs(&golden, &[adapter("nadir.safetensors", 1.0)], DType::F32).unwrap();
    for (part, ours) in [("unet", unet), ("text", text)] {
        for loader in ["nadir", "nadir_by_peft"] {
            let theirs = golden::get(&golden, &format!("{loader}.{part}"));
            golden::assert_close(&format!("{loader}, {part}"), &ours, &theirs, 1e-5);
        }
    }
}
