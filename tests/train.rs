//! Training: against PyTorch's losses, and against itself when it is stopped and goes on.

#[path = "golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};

use image::RgbImage;
use nadir::data::{Batch, DataSettings, Dataset};
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::png;
use nadir::io::safetensors::SafeTensors;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::{Keep, Module, Params, parameters};
use nadir::ops::adamw::{Step, adamw};
use nadir::ops::elementwise::{add, clamp, scale};
use nadir::ops::gradient::backward;
use nadir::ops::loss::{absolute_error, kl_divergence, sample_gaussian, squared_error};
use nadir::ops::reduce::mean;
use nadir::pipeline::{Cancel, LoadOptions, Request, TextToImage};
use nadir::tensor::cuda::choose;
use nadir::tensor::tape::checkpointing;
use nadir::tensor::{DType, Device, Tensor};
use nadir::train::checkpoint::Resume;
use nadir::train::diffusion::{
    DiffusionSettings, DiffusionTask, LoraSettings, NewModel, Prediction,
};
use nadir::train::random::{Purpose, Random};
use nadir::train::vae::VaeTask;
use nadir::train::{
    Event, Optimizer, Outcome, Run, SampleSettings, Schedule, Settings, Task, Watch, in_order, norm,
};
use serde_json::{Value, json};

fn load<M>(name: &str, build: impl FnOnce(&Config, &Params) -> nadir::Result<M>) -> M {
    let folder = golden::path("models").join(name);
    let weights = Weights::open(&folder, None).unwrap();
    let params = Params::new(weights, DType::F32, Device::Cpu).keeping(Keep::Trainable);
    build(&Config::open(folder.join("config.json")).unwrap(), &params).unwrap()
}

/// Twenty steps on one batch, as `golden/training.py` takes them.
fn follows(
    name: &str,
    model: &dyn Module,
    watched: &str,
    loss: impl Fn() -> nadir::Result<Tensor>,
) {
    let golden = golden::open("training").unwrap();
    let get = |key: &str| golden::get(&golden, &format!("{name}.{key}"));
    let [losses, norms] = ["losses", "norms"].map(|key| get(key).to_vec::<f32>().unwrap());
    let settings = Settings { ema_decay: 0.9, use_ema: true, ..Settings::default() };
    let all = parameters(model);
    let mut optimizer = Optimizer::new(&all, true).unwrap();
    for (step, (expected, length)) in losses.iter().zip(&norms).enumerate() {
        let loss = loss().unwrap();
        let got = loss.detach().to_vec::<f32>().unwrap()[0];
        // The bound that the losses of twenty steps are held to, and for lengths of gradients three times that.
        let error = (got - expected).abs() / expected;
        assert!(
            error <= 1e-4,
            "{name}, step {step}: {got} instead of {expected}, off by {error:e}"
        );
        let gradients = in_order(&all, backward(loss).unwrap()).unwrap();
        let found = norm(&gradients).unwrap();
        let error = (found - f64::from(*length)).abs() / f64::from(*length);
        assert!(error <= 3e-4, "{name}, step {step}: gradient {found} instead of {length}");
        let shortened = (1.0 / (found + 1e-6)).min(1.0);
        optimizer.update(&all, &gradients, &settings, (1e-3, shortened)).unwrap();
    }
    let of = |prefix: &str| {
        let state = optimizer.state(&all).unwrap();
        let name = format!("{prefix}.{watched}");
        state.into_iter().find(|(found, _)| *found == name).unwrap().1
    };
    let now = || {
        let parameter = all.iter().find(|(name, _)| name == watched).unwrap().1;
        parameter.tensor().unwrap().detach()
    };
    let averaged = optimizer.with_averages(&all, || Ok(now())).unwrap();
    golden::assert_same("average", &averaged, &of("average"));
    golden::assert_same("weight behind the average", &now(), &of("weight"));
    // Adam divides by the root of a moment: where a gradient is next to nothing, its rounding becomes a step.
    golden::assert_close("weight", &of("weight"), &get("weight"), 2e-3);
    golden::assert_close("average", &of("average"), &get("average"), 2e-3);
}

#[test]
fn a_unet_learns_as_in_pytorch() {
    let golden = golden::open("training").unwrap();
    let get = |key: &str| golden::get(&golden, &format!("unet.{key}"));
    let model = load("unet_sd21", |config, params| Unet::load(UnetConfig::read(config)?, params));
    let [sample, text, target] = ["sample", "text", "target"].map(get);
    let timesteps = get("timesteps").to_vec::<f32>().unwrap();
    follows("unet", &model, "mid_block.resnets.0.conv1.weight", || {
        let embedded = model.embed_timesteps(&timesteps)?;
        let predicted = model.forward(&sample, &embedded, &model.context(&text)?)?;
        mean(&squared_error(&predicted, &target)?, &[0])
    });
}

#[test]
fn an_autoencoder_learns_as_in_pytorch() {
    let golden = golden::open("training").unwrap();
    let [image, noise] = ["image", "noise"].map(|key| golden::get(&golden, &format!("vae.{key}")));
    let model = load("vae_plain", |config, params| Vae::load(VaeConfig::read(config)?, params));
    follows("vae", &model, "decoder.conv_in.weight", || {
        let posterior = model.encode(&image)?;
        let logvar = clamp(&posterior.logvar, -30.0, 20.0)?;
        let decoded = model.decode(&sample_gaussian(&posterior.mean, &logvar, &noise)?)?;
        let distance = mean(&absolute_error(&decoded, &image)?, &[0])?;
        let divergence = mean(&kl_divergence(&posterior.mean, &logvar)?, &[0])?;
        add(&distance, &scale(&divergence, 1e-3)?)
    });
}

/// A folder of pictures of 16x16 with captions.
fn pictures(folder: &Path, count: u32) -> PathBuf {
    let folder = folder.join("pictures");
    std::fs::create_dir_all(&folder).unwrap();
    let mut index = String::new();
    for i in 0..count {
        let pixel = |x: u32, y: u32| image::Rgb([(x * 16) as u8, (y * 16) as u8, (i * 20) as u8]);
        let picture = RgbImage::from_fn(16, 16, pixel);
        png::write(&folder.join(format!("{i}.png")), &picture, &[]).unwrap();
        index +=
            &json!({ "file_name": format!("{i}.png"), "text": format!("picture {i}") }).to_string();
        index.push('\n');
    }
    std::fs::write(folder.join("metadata.jsonl"), index).unwrap();
    folder
}

fn small_vae() -> Value {
    let mut config = nadir::train::vae::default_config();
    config["block_out_channels"] = json!([16, 32, 32]);
    config["sample_size"] = json!(16);
    config
}

fn vae_task(device: Device) -> VaeTask {
    VaeTask::new(Path::new("small"), small_vae(), 3, device).unwrap()
}

/// Trains until `steps`, or until told to stop behind `stop`.
fn train(task: &dyn Task, data: &Dataset, folder: &Path, steps: u64, stop: Option<u64>) -> Outcome {
    std::fs::create_dir_all(folder).unwrap();
    let settings = Settings {
        train_batch_size: 3,
        gradient_accumulation_steps: 2,
        max_train_steps: steps,
        learning_rate: 1e-3,
        lr_warmup_steps: 2,
        checkpointing_steps: 3,
        checkpoints_total_limit: Some(2),
        use_ema: true,
        seed: 5,
        ..Settings::default()
    };
    let cancel = Cancel::default();
    let run = Run {
        task,
        settings: &settings,
        data,
        held_out: Some(data),
        folder,
        about: &[],
        resume: Some(&Resume::Latest),
        cancel: &cancel,
    };
    run.run(&mut |event| match event {
        Event::Step(progress) if Some(progress.step) == stop => {
            cancel.cancel();
        }
        Event::Failed(message) => panic!("{message}"),
        _ => {}
    })
    .unwrap()
}

fn same_file(a: &Path, b: &Path, name: &str) {
    let [a, b] = [a, b].map(|folder| std::fs::read(folder.join(name)).unwrap());
    assert!(a == b, "{name} differs");
}

#[test]
fn a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let settings = DataSettings::default();
    let data = Dataset::open(pictures(folder.path(), 10), settings).unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    assert_eq!(train(&vae_task(Device::Cpu), &data, &whole, 7, None), Outcome::Done);
    // Stopped between checkpoints and at one; each part is a task of its own, whose new weights do not matter.
    for stop in [2, 3, 5] {
        assert_eq!(
            train(&vae_task(Device::Cpu), &data, &parts, 7, Some(stop)),
            Outcome::Stopped(stop)
        );
    }
    assert_eq!(train(&vae_task(Device::Cpu), &data, &parts, 7, None), Outcome::Done);
    same_file(&whole, &parts, "checkpoint-7/state.safetensors");
    same_file(&whole, &parts, "vae/diffusion_pytorch_model.safetensors");
    same_file(&whole, &parts, "vae/config.json");
    let losses = |folder: &Path| {
        let text = std::fs::read_to_string(folder.join("metrics.csv")).unwrap();
        let of_steps = text.lines().filter(|line| line.contains(",loss,"));
        of_steps.map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(losses(&whole), losses(&parts));
    assert_eq!(losses(&whole).len(), 7);
    // One more step from the end changes nothing: there is none.
    assert_eq!(train(&vae_task(Device::Cpu), &data, &parts, 7, None), Outcome::Done);
    same_file(&whole, &parts, "checkpoint-7/state.safetensors");
}

fn tokenizer() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64/tokenizer")
}

fn settings() -> DiffusionSettings {
    DiffusionSettings {
        prediction_type: Prediction::VPrediction,
        snr_gamma: Some(5.0),
        noise_offset: 0.1,
        proportion_empty_prompts: 0.5,
    }
}

/// A denoiser over the small autoencoder in `folder`.
fn diffusion_task(folder: &Path, device: Device) -> DiffusionTask {
    let vae = folder.join("vae-run");
    std::fs::create_dir_all(&vae).unwrap();
    vae_task(device).export(&vae, &vec![("latent_square", 0.25)]).unwrap();
    let mut unet = nadir::train::diffusion::default_unet();
    unet["block_out_channels"] = json!([32, 32, 64]);
    unet["cross_attention_dim"] = json!(32);
    unet["sample_size"] = json!(4);
    // The coarsest level has one pixel: a group of one channel would be nothing but its mean.
    unet["norm_num_groups"] = json!(8);
    let text = json!({
        "hidden_act": "gelu", "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 77,
        "num_attention_heads": 2, "num_hidden_layers": 1, "vocab_size": 49408,
    });
    let [unet_file, text_file] =
        [("unet.json", unet), ("text.json", text)].map(|(name, config)| {
            let path = folder.join(name);
            std::fs::write(&path, config.to_string()).unwrap();
            path
        });
    let parts = NewModel {
        vae: &vae.join("vae"),
        tokenizer: &tokenizer(),
        unet: Some(&unet_file),
        text_encoder: Some(&text_file),
    };
    DiffusionTask::new(&parts, settings(), 3, device).unwrap()
}

#[test]
fn a_denoiser_is_trained_resumed_exported_and_drawn_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 10), DataSettings::default()).unwrap();
    let [whole, parts] = ["whole", "parts"].map(|name| folder.join(name));
    assert_eq!(train(&diffusion_task(folder, Device::Cpu), &data, &whole, 4, None), Outcome::Done);
    let outcome = train(&diffusion_task(folder, Device::Cpu), &data, &parts, 4, Some(2));
    assert_eq!(outcome, Outcome::Stopped(2));
    assert_eq!(train(&diffusion_task(folder, Device::Cpu), &data, &parts, 4, None), Outcome::Done);
    same_file(&whole, &parts, "checkpoint-4/state.safetensors");
    for part in ["unet", "vae"] {
        same_file(&whole, &parts, &format!("{part}/diffusion_pytorch_model.safetensors"));
    }
    // The scale of latents that the autoencoder's run has found: 1 / sqrt(0.25).
    let model = TextToImage::load(&whole, &LoadOptions::default()).unwrap();
    let config = std::fs::read_to_string(whole.join("vae/config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&config).unwrap()["scaling_factor"], 2.0);
    drop(model);
    // What was exported is trained on.
    let again = DiffusionTask::open(&whole, settings(), false, Device::Cpu).unwrap();
    let names: Vec<String> = again.parameters().into_iter().map(|(name, _)| name).collect();
    assert!(names.iter().all(|name| name.starts_with("unet.")));
    assert!(
        DiffusionTask::open(&whole, settings(), true, Device::Cpu).unwrap().parameters().len()
            > names.len()
    );
}

/// Parameters whose gradient is 0 but for rounding: a bias of keys moves all scores of a query alike.
fn is_zero_by_symmetry(name: &str) -> bool {
    name.ends_with("k_proj.bias")
}

#[test]
fn every_parameter_gets_a_gradient() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 6), DataSettings::default()).unwrap();
    let batch: Batch = data.pass(6, 1).unwrap().next().unwrap().unwrap();
    let tasks: [Box<dyn Task>; 2] =
        [Box::new(vae_task(Device::Cpu)), Box::new(diffusion_task(folder, Device::Cpu))];
    for task in tasks {
        let parameters = task.parameters();
        let mut random = Random::new(1, Purpose::Step, 0);
        let loss = task.loss(&batch, &mut random).unwrap();
        let gradients = in_order(&parameters, backward(loss.total).unwrap()).unwrap();
        for ((name, _), gradient) in parameters.iter().zip(gradients) {
            let values = gradient.to_vec::<f32>().unwrap();
            assert!(values.iter().all(|x| x.is_finite()), "{name}");
            let zero = values.iter().all(|x| *x == 0.0);
            assert!(!zero || is_zero_by_symmetry(name), "{}: {name} has no gradient", task.name());
        }
    }
}

/// Gradients of all tasks, low-rank adapters among them, have the same bits when blocks are computed again for them.
#[test]
fn blocks_that_are_computed_again_have_the_same_gradients() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 6), DataSettings::default()).unwrap();
    let batch: Batch = data.pass(3, 1).unwrap().next().unwrap().unwrap();
    let model = folder.join("model");
    diffusion_task(folder, Device::Cpu).export(&model, &Vec::new()).unwrap();
    let lora = LoraSettings { lora_rank: Some(2), ..LoraSettings::default() };
    let adapted = DiffusionTask::open(&model, settings(), true, Device::Cpu).unwrap();
    let tasks: [Box<dyn Task>; 3] = [
        Box::new(vae_task(Device::Cpu)),
        Box::new(diffusion_task(folder, Device::Cpu)),
        Box::new(adapted.adapting(&lora, 1).unwrap()),
    ];
    for task in tasks {
        let parameters = task.parameters();
        let learn = |sparing: bool| {
            let loss = || task.loss(&batch, &mut Random::new(1, Purpose::Step, 0)).unwrap().total;
            let loss = if sparing { checkpointing(loss) } else { loss() };
            let value = loss.detach();
            let mut all = in_order(&parameters, backward(loss).unwrap()).unwrap();
            all.push(value);
            all.iter().map(|t| t.to_vec::<f32>().unwrap()).collect::<Vec<_>>()
        };
        assert!(learn(true) == learn(false), "{}", task.name());
    }
}

/// Three steps on a GPU, where there is one, lose as much as on the CPU: to 1e-4, the bound to PyTorch's.
#[test]
fn a_gpu_learns_as_the_cpu() {
    let asked_for = std::env::var("NADIR_REQUIRE_CUDA").is_ok();
    let device = match choose("cuda") {
        Ok((device, _)) => device,
        Err(error) if asked_for => panic!("{error}"),
        Err(_) => return,
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 6), DataSettings::default()).unwrap();
    let batch: Batch = data.pass(3, 1).unwrap().next().unwrap().unwrap();
    let settings = Settings { ema_decay: 0.9, use_ema: true, ..Settings::default() };
    let losses = |task: &dyn Task| -> Vec<[f64; 2]> {
        let parameters = task.parameters();
        let mut optimizer = Optimizer::new(&parameters, true).unwrap();
        let steps = (0..3).map(|step| {
            let mut random = Random::new(1, Purpose::Step, step);
            let loss = task.loss(&batch, &mut random).unwrap().total;
            let value = f64::from(loss.to_vec::<f32>().unwrap()[0]);
            let gradients = in_order(&parameters, backward(loss).unwrap()).unwrap();
            let length = norm(&gradients).unwrap();
            optimizer.update(&parameters, &gradients, &settings, (1e-3, 1.0 / length)).unwrap();
            [value, length]
        });
        steps.collect()
    };
    let tasks: [&dyn Fn(Device) -> Box<dyn Task>; 2] =
        [&|device| Box::new(vae_task(device)), &|device| Box::new(diffusion_task(folder, device))];
    for task in tasks {
        let (host, gpu) = (task(Device::Cpu), task(device));
        for (step, (expected, got)) in losses(&*host).iter().zip(losses(&*gpu)).enumerate() {
            for (what, bound, expected, got) in
                [("loss", 1e-4, expected[0], got[0]), ("gradient", 3e-4, expected[1], got[1])]
            {
                let error = (got - expected).abs() / expected;
                let name = host.name();
                assert!(
                    error <= bound,
                    "{name}, step {step}, {what}: {got}, not {expected}: {error:e}"
                );
            }
        }
    }
}

/// A picture amid training is the one that `generate` draws with the exported model.
#[test]
fn validation_prompts_are_drawn_as_by_the_exported_model() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 10), DataSettings::default()).unwrap();
    for (guidance, name) in [(1.0, "plain"), (3.0, "guided")] {
        let sampling = SampleSettings {
            validation_prompts: vec!["a river".to_owned(), "a <forest>".to_owned()],
            validation_inference_steps: 3,
            validation_guidance_scale: guidance,
        };
        let (task, run) =
            (diffusion_task(folder, Device::Cpu).sampling(sampling), folder.join(name));
        assert_eq!(train(&task, &data, &run, 3, None), Outcome::Done);
        let model = TextToImage::load(&run, &LoadOptions::default()).unwrap();
        for (i, prompt) in ["a river", "a <forest>"].into_iter().enumerate() {
            let settings = nadir::pipeline::Settings {
                prompt: prompt.to_owned(),
                steps: Some(3),
                guidance_scale: Some(guidance),
                width: Some(16),
                height: Some(16),
                ..nadir::pipeline::Settings::default()
            };
            let request = Request { settings, seed: 5 + i as u64, ..Request::default() };
            let drawn = model.draw(request).unwrap();
            let shown = run.join(format!("validation/step-00000003-{i:02}.png"));
            assert!(image::open(shown).unwrap().into_rgb8() == drawn, "{name}: {prompt}");
        }
        let page = std::fs::read_to_string(run.join("report.html")).unwrap();
        assert!(page.contains("a &lt;forest&gt;") && page.contains("<b>Done</b>: step 3 of 3"));
        assert!(page.contains("validation loss:"), "{page}");
        assert_eq!(std::fs::read_dir(run.join("logs")).unwrap().count(), 1);
    }
}

/// A step from the golden's weights, gradients and moments is torch's.
#[test]
fn a_step_of_the_optimiser_is_that_of_pytorch() {
    let file = SafeTensors::open(golden::path("training/optimizer.safetensors")).unwrap();
    for (decay, clipped) in [(0.0, false), (0.0, true), (1e-2, false), (1e-2, true)] {
        let kind = if decay > 0.0 { "decay" } else { "plain" };
        let case = format!("step.{kind}.{}", if clipped { "clipped" } else { "whole" });
        let get = |name: &str, i: usize| golden::get(&file, &format!("{case}.{name}.{i}"));
        let gradients: Vec<Tensor> = (0..3).map(|i| get("gradient", i)).collect();
        let mut scale = 1.0;
        if clipped {
            let length = norm(&gradients).unwrap();
            let theirs = golden::get(&file, &format!("{case}.length")).to_vec::<f32>().unwrap()[0];
            // A sum of some 400 squares, and its root.
            assert!((length / f64::from(theirs) - 1.0).abs() <= 1e-6, "{length} {theirs}");
            scale = 1.0 / (length + 1e-6);
        }
        let step = Step {
            number: 4,
            rate: 1e-3,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: decay,
            gradient_scale: scale,
            ema_decay: 0.9,
        };
        for (i, gradient) in gradients.iter().enumerate() {
            let [weight, average, first, second] =
                ["weight", "average", "first", "second"].map(|name| get(name, i));
            let done = adamw(&weight, gradient, [&first, &second], Some(&average), step).unwrap();
            let [first, second] = &done.moments;
            let found = [&done.weight, done.ema.as_ref().unwrap(), first, second];
            let names = ["new_weight", "new_average", "new_first", "new_second"];
            for (found, name) in found.into_iter().zip(names) {
                let theirs = get(name, i).to_vec::<f32>().unwrap();
                for (a, b) in found.to_vec::<f32>().unwrap().iter().zip(theirs) {
                    // Relative where numbers are above 1: squares go up to 16, where f32 has steps of 1e-6.
                    let error = (a - b).abs() / b.abs().max(1.0);
                    assert!(error <= 1e-6, "{case}, {name}.{i}: {a}, not {b}");
                }
            }
        }
    }
}

#[test]
fn rates_fall_on_plateaus_as_in_pytorch() {
    let file = SafeTensors::open(golden::path("training/optimizer.safetensors")).unwrap();
    let get = |name: &str| golden::get(&file, &format!("plateau.{name}")).to_vec::<f32>().unwrap();
    let plateau = |patience, factor, threshold, cooldown, min| Settings {
        learning_rate: 1e-2,
        lr_scheduler: Schedule::Plateau,
        lr_plateau_patience: patience,
        lr_plateau_factor: factor,
        lr_plateau_threshold: threshold,
        lr_plateau_cooldown: cooldown,
        lr_plateau_min: min,
        ..Settings::default()
    };
    for (name, settings) in [
        ("default", plateau(4, 0.1, 1e-4, 0, 0.0)),
        ("cooldown", plateau(1, 0.5, 1e-2, 3, 2e-4)),
        ("floor", plateau(0, 0.1, 0.0, 0, 1e-9)),
    ] {
        settings.check().unwrap();
        let mut watch = Watch::default();
        let rates: Vec<f32> = get("losses")
            .into_iter()
            .map(|loss| {
                watch.validation(Some(loss.into()), &settings);
                // As if it had been killed and resumed.
                watch = serde_json::from_str(&serde_json::to_string(&watch).unwrap()).unwrap();
                watch.rate(&settings) as f32
            })
            .collect();
        assert_eq!(rates, get(name), "{name}");
    }
}

/// Losses that cannot fall enough: the rate does at every third validation, and the run ends.
#[test]
fn a_plateau_and_an_early_end_are_resumed_with_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::open(pictures(folder.path(), 10), DataSettings::default()).unwrap();
    let run = |name: &str, stop: Option<u64>| {
        let settings = Settings {
            train_batch_size: 2,
            max_train_steps: 30,
            learning_rate: 1e-3,
            lr_scheduler: Schedule::Plateau,
            lr_plateau_patience: 1,
            lr_plateau_threshold: 0.9,
            early_stopping_patience: Some(5),
            early_stopping_min_delta: 10.0,
            checkpointing_steps: 100,
            validation_steps: Some(2),
            seed: 5,
            ..Settings::default()
        };
        let (folder, cancel) = (folder.path().join(name), Cancel::default());
        std::fs::create_dir_all(&folder).unwrap();
        let run = Run {
            task: &vae_task(Device::Cpu),
            settings: &settings,
            data: &data,
            held_out: None,
            folder: &folder,
            about: &[],
            resume: Some(&Resume::Latest),
            cancel: &cancel,
        };
        let mut rates = Vec::new();
        let outcome = run.run(&mut |event| {
            if let Event::Step(progress) = event {
                rates.push(progress.rate);
                if Some(progress.step) == stop {
                    cancel.cancel();
                }
            }
        });
        (outcome.unwrap(), rates)
    };
    let (outcome, rates) = run("whole", None);
    // The first validation sets the mark, five more do not reach it.
    assert_eq!(outcome, Outcome::Stayed(12));
    let falls = [1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-4, 1e-4, 1e-4, 1e-4, 1e-5, 1e-5];
    for (rate, expected) in rates.iter().zip(falls) {
        assert!((rate / expected - 1.0).abs() < 1e-12, "{rates:?}");
    }
    let mut parts = Vec::new();
    for stop in [5, 7, 8] {
        let (outcome, rates) = run("parts", Some(stop));
        assert_eq!(outcome, Outcome::Stopped(stop));
        parts.extend(rates);
    }
    let (outcome, rest) = run("parts", None);
    parts.extend(rest);
    assert_eq!((outcome, parts), (Outcome::Stayed(12), rates));
    for name in ["state.safetensors", "state.json"] {
        same_file(
            &folder.path().join("whole/checkpoint-12"),
            &folder.path().join("parts/checkpoint-12"),
            name,
        );
    }
    // It stays ended.
    assert_eq!(run("parts", None), (Outcome::Stayed(12), Vec::new()));
}
