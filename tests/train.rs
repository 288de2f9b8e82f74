//! Training: against PyTorch's losses, and against itself when it is stopped and goes on.

#[path = "golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};
use std::rc::Rc;

use golden::drawn::Drawn;
use image::RgbImage;
use nadir::data::{Batch, DataSettings, Dataset};
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::png;
use nadir::io::safetensors::SafeTensors;
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::{Keep, Module, Parameter, Params, parameters};
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
use nadir::train::vae::{Reconstruction, VaeTask};
use nadir::train::{
    Compute, Event, LossScaler, MixedPrecision, Optimizer, Outcome, Run, SampleSettings, Schedule,
    Settings, Task, Watch, in_order, norm,
};
use serde_json::{Value, json};

fn load<M>(
    name: &str,
    dtype: DType,
    build: impl FnOnce(&Config, &Params) -> nadir::Result<M>,
) -> M {
    let folder = format!("models/{name}");
    let params =
        Params::new(Drawn::by_inputs(&folder), dtype, Device::Cpu).keeping(Keep::Trainable);
    build(&Config::open(golden::path(&folder).join("config.json")).unwrap(), &params).unwrap()
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
        optimizer.update(&all, gradients, &settings, (1e-3, shortened)).unwrap();
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

/// A network with what its loss is in `golden/training.py`.
type Learner = (Box<dyn Module>, Box<dyn Fn() -> nadir::Result<Tensor>>);

fn unet_learner(dtype: DType) -> Learner {
    let golden = golden::open("training").unwrap();
    let get = |key: &str| golden::get(&golden, &format!("unet.{key}"));
    let build = |config: &Config, params: &Params| Unet::load(UnetConfig::read(config)?, params);
    let model = Rc::new(load("unet_sd21", dtype, build));
    let [sample, text, target] = ["sample", "text", "target"].map(get);
    let timesteps = get("timesteps").to_vec::<f32>().unwrap();
    let network = model.clone();
    let loss = move || {
        let embedded = network.embed_timesteps(&timesteps)?;
        let context = network.context(&text.to_dtype(dtype)?)?;
        let predicted = network.forward(&sample, &embedded, &context)?;
        mean(&squared_error(&predicted, &target)?, &[0])
    };
    (Box::new(Shared(model)), Box::new(loss))
}

fn vae_learner(dtype: DType) -> Learner {
    let golden = golden::open("training").unwrap();
    let [image, noise] = ["image", "noise"].map(|key| golden::get(&golden, &format!("vae.{key}")));
    let build = |config: &Config, params: &Params| Vae::load(VaeConfig::read(config)?, params);
    let model = Rc::new(load("vae_plain", dtype, build));
    let network = model.clone();
    let loss = move || {
        let posterior = network.encode(&image)?;
        let posterior_mean = posterior.mean.to_dtype(DType::F32)?;
        let logvar = clamp(&posterior.logvar.to_dtype(DType::F32)?, -30.0, 20.0)?;
        let decoded = network.decode(&sample_gaussian(&posterior_mean, &logvar, &noise)?)?;
        let distance = mean(&absolute_error(&decoded.to_dtype(DType::F32)?, &image)?, &[0])?;
        let divergence = mean(&kl_divergence(&posterior_mean, &logvar)?, &[0])?;
        add(&distance, &scale(&divergence, 1e-3)?)
    };
    (Box::new(Shared(model)), Box::new(loss))
}

/// A network that its loss holds too.
struct Shared<M>(Rc<M>);

impl<M: Module> Module for Shared<M> {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        self.0.visit(prefix, visit);
    }
}

#[test]
fn a_unet_learns_as_in_pytorch() {
    let (model, loss) = unet_learner(DType::F32);
    follows("unet", &*model, "mid_block.resnets.0.conv1.weight", loss);
}

#[test]
fn an_autoencoder_learns_as_in_pytorch() {
    let (model, loss) = vae_learner(DType::F32);
    follows("vae", &*model, "decoder.conv_in.weight", loss);
}

/// In 16 bits each of twenty losses is off from PyTorch's in f32 by at most twice what PyTorch's own are under autocast, in
/// the worst of some runs.
#[test]
fn networks_learn_in_16_bits_as_well_as_in_pytorch() {
    let golden = golden::open("training").unwrap();
    for name in ["unet", "vae"] {
        for precision in [MixedPrecision::Bf16, MixedPrecision::Fp16] {
            let learner = if name == "unet" { unet_learner } else { vae_learner };
            let (model, loss) = learner(precision.dtype());
            let settings = Settings { learning_rate: 1e-3, ..Settings::default() };
            let all = parameters(&*model);
            let mut optimizer = Optimizer::new(&all, false).unwrap();
            let mut scaler = LossScaler::new(precision);
            let mut losses: Vec<f32> = Vec::new();
            for _ in 0..20 {
                let factor = scaler.as_ref().map_or(1.0, LossScaler::scale);
                let loss = loss().unwrap();
                let value = loss.detach().to_vec::<f32>().unwrap()[0];
                // Where a step was skipped, the loss that comes next is the same again.
                if losses.last() != Some(&value) {
                    losses.push(value);
                }
                let loss = scale(&loss, factor as f32).unwrap();
                let gradients = in_order(&all, backward(loss).unwrap()).unwrap();
                let length = norm(&gradients).unwrap() / factor;
                if let Some(scaler) = &mut scaler {
                    scaler.take_up(length.is_finite()).unwrap();
                }
                if length.is_finite() {
                    let shortened = (1.0 / (length + 1e-6)).min(1.0) / factor;
                    optimizer.update(&all, gradients, &settings, (1e-3, shortened)).unwrap();
                }
            }
            let get =
                |key: &str| golden::get(&golden, &format!("{name}.{key}")).to_vec::<f32>().unwrap();
            let exact = get("losses");
            let ours = losses.iter().zip(&exact).map(|(a, b)| (a - b).abs());
            let ours = ours.fold(0.0, f32::max);
            let theirs = match precision {
                MixedPrecision::Fp16 => get("off.float16")[0],
                _ => get("off.bfloat16")[0],
            };
            let what = format!("{name} in {}", precision.name());
            println!("{what}: off by {ours:e}, PyTorch by {theirs:e}");
            assert!(losses.len() >= 17 && losses.iter().all(|x| x.is_finite()), "{losses:?}");
            assert!(ours <= 2.0 * theirs, "{what}: {ours} {theirs}");
            // It is 16 bits that were computed in.
            assert!(ours > 1e-5, "{what}: {ours}");
        }
    }
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

fn vae_task(compute: impl Into<Compute>) -> VaeTask {
    VaeTask::new(Path::new("small"), small_vae(), 3, compute).unwrap()
}

const BF16: Compute = Compute { device: Device::Cpu, precision: MixedPrecision::Bf16 };
const FP16: Compute = Compute { device: Device::Cpu, precision: MixedPrecision::Fp16 };

/// Trains until `steps`, or until told to stop behind `stop`.
fn train(task: &dyn Task, data: &Dataset, folder: &Path, steps: u64, stop: Option<u64>) -> Outcome {
    watched(task, data, folder, steps, stop).unwrap().0
}

/// The same, with all that the run told.
fn watched(
    task: &dyn Task,
    data: &Dataset,
    folder: &Path,
    steps: u64,
    stop: Option<u64>,
) -> nadir::Result<(Outcome, Vec<Event>)> {
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
        mixed_precision: task.precision(),
        ..Settings::default()
    };
    let cancel = Cancel::default();
    let mut told = Vec::new();
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
    let outcome = run.run(&mut |event| {
        match &event {
            Event::Step(progress) if Some(progress.step) == stop => {
                cancel.cancel();
            }
            Event::Failed(message) => panic!("{message}"),
            _ => {}
        }
        told.push(event);
    })?;
    Ok((outcome, told))
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

/// A divergence so heavy that its gradient is more than an f16 holds, until the loss is scaled by less.
#[test]
fn an_overflow_in_fp16_skips_the_step_and_halves_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::open(pictures(folder.path(), 10), DataSettings::default()).unwrap();
    let task = || vae_task(FP16).with_loss(Reconstruction::L1, 6e4);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    let (outcome, told) = watched(&task(), &data, &whole, 8, None).unwrap();
    assert_eq!(outcome, Outcome::Done);
    let steps: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            Event::Step(progress) => Some(progress),
            _ => None,
        })
        .collect();
    let (mut scale, mut skipped) = (65536.0, 0);
    for progress in &steps {
        assert_eq!(progress.loss_scale, Some(scale), "{progress:?}");
        if !progress.gradient_norm.is_finite() {
            (scale, skipped) = (scale / 2.0, skipped + 1);
        }
        assert_eq!(progress.skipped, skipped, "{progress:?}");
    }
    // The first of 8 steps, not all.
    assert!(!steps[0].gradient_norm.is_finite() && (1..8).contains(&skipped), "{steps:?}");
    let metrics = std::fs::read_to_string(whole.join("metrics.csv")).unwrap();
    assert!(metrics.contains(&format!("8,skipped_steps,{skipped}\n")), "{metrics}");
    assert!(metrics.contains("1,loss_scale,65536\n") && !metrics.contains("inf"), "{metrics}");

    // A step that is skipped leaves weights and moments as they were. Stopped there and elsewhere, the end is the same.
    let outcome = train(&task(), &data, &parts, 8, Some(1));
    assert_eq!(outcome, Outcome::Stopped(1));
    let state = SafeTensors::open(parts.join("checkpoint-1/state.safetensors")).unwrap();
    for (name, parameter) in task().parameters() {
        let kept = golden::get(&state, &format!("weight.{name}"));
        golden::assert_same(&name, &kept, &parameter.tensor().unwrap().detach());
        let moment = golden::get(&state, &format!("second_moment.{name}"));
        assert!(moment.to_vec::<f32>().unwrap().iter().all(|x| *x == 0.0), "{name}");
    }
    for stop in [3, 6] {
        assert_eq!(train(&task(), &data, &parts, 8, Some(stop)), Outcome::Stopped(stop));
    }
    assert_eq!(train(&task(), &data, &parts, 8, None), Outcome::Done);
    for name in ["checkpoint-8/state.safetensors", "checkpoint-8/state.json"] {
        same_file(&whole, &parts, name);
    }
}

#[test]
fn a_run_goes_on_in_another_precision_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let data = Dataset::open(pictures(folder.path(), 10), DataSettings::default()).unwrap();
    let run = folder.path().join("run");
    assert_eq!(train(&vae_task(FP16), &data, &run, 2, None), Outcome::Done);
    for (steps, compute) in [(3, BF16), (4, Compute::from(Device::Cpu)), (5, FP16)] {
        let (outcome, told) = watched(&vae_task(compute), &data, &run, steps, None).unwrap();
        assert_eq!(outcome, Outcome::Done);
        let converted = told
            .iter()
            .any(|event| matches!(event, Event::Converted(_, now) if *now == compute.precision));
        assert!(converted, "{told:?}");
    }
    let (_, told) = watched(&vae_task(FP16), &data, &run, 6, None).unwrap();
    assert!(!told.iter().any(|event| matches!(event, Event::Converted(..))), "{told:?}");
    // A task in other numbers than its run.
    let settings = Settings::default();
    let run = Run {
        task: &vae_task(BF16),
        settings: &settings,
        data: &data,
        held_out: None,
        folder: folder.path(),
        about: &[],
        resume: None,
        cancel: &Cancel::default(),
    };
    let error = run.run(&mut |_| {}).unwrap_err().to_string();
    assert!(error.contains("mixed_precision") && error.contains("bf16"), "{error}");
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
fn diffusion_task(folder: &Path, compute: impl Into<Compute>) -> DiffusionTask {
    let vae = folder.join("vae-run");
    std::fs::create_dir_all(&vae).unwrap();
    vae_task(Device::Cpu).export(&vae, &vec![("latent_square", 0.25)]).unwrap();
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
    DiffusionTask::new(&parts, settings(), 3, compute).unwrap()
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

/// In every precision frozen networks and trained ones go together; what is exported is f32 all the same.
#[test]
fn a_denoiser_is_trained_in_16_bits() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 10), DataSettings::default()).unwrap();
    for compute in [BF16, FP16] {
        let run = folder.join(compute.precision.name());
        let sampling = SampleSettings {
            validation_prompts: vec!["a river".to_owned()],
            validation_inference_steps: 2,
            ..SampleSettings::default()
        };
        let task = diffusion_task(folder, compute).sampling(sampling);
        assert_eq!(train(&task, &data, &run, 2, None), Outcome::Done);
        let weights = SafeTensors::open(run.join("unet/diffusion_pytorch_model.safetensors"));
        let info = weights.unwrap().info("conv_in.weight").unwrap();
        assert_eq!(info.dtype, DType::F32);
        TextToImage::load(&run, &LoadOptions::default()).unwrap();
        // Low-rank adapters of a frozen text encoder's model.
        let lora = LoraSettings { lora_rank: Some(2), ..LoraSettings::default() };
        let adapted = DiffusionTask::open(&run, settings(), false, compute).unwrap();
        let adapted = adapted.adapting(&lora, 1).unwrap();
        assert_eq!(train(&adapted, &data, &run.join("adapted"), 2, None), Outcome::Done);
    }
}

/// Adapters with another alpha would mean other weights.
#[test]
fn adapters_are_resumed_with_the_scale_that_they_were_trained_with() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let data = Dataset::open(pictures(folder, 10), DataSettings::default()).unwrap();
    let model = folder.join("model");
    diffusion_task(folder, Device::Cpu).export(&model, &Vec::new()).unwrap();
    let train = |lora_alpha: Option<f64>, steps: u64| {
        let lora = LoraSettings { lora_rank: Some(2), lora_alpha, ..LoraSettings::default() };
        let task = DiffusionTask::open(&model, settings(), false, Device::Cpu).unwrap();
        let task = task.adapting(&lora, 1).unwrap();
        watched(&task, &data, &folder.join("run"), steps, None)
    };
    train(Some(0.3), 1).unwrap();
    for other in [None, Some(0.6)] {
        let error = train(other, 2).unwrap_err().to_string();
        assert!(error.contains("lora_alpha") && error.contains("--lora-alpha 0.3"), "{error}");
    }
    assert_eq!(train(Some(0.3), 2).unwrap().0, Outcome::Done);
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
    let tasks: [Box<dyn Task>; 4] = [
        Box::new(vae_task(Device::Cpu)),
        Box::new(diffusion_task(folder, Device::Cpu)),
        Box::new(vae_task(BF16)),
        Box::new(diffusion_task(folder, BF16)),
    ];
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

/// Three steps on a GPU, where there is one, lose as much as on the CPU: to 1e-4, the bound to PyTorch's. In 16 bits they are
/// off from that by at most twice what the CPU is in 16 bits, in the worst of some runs.
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
    let losses = |task: &dyn Task, factor: f64, seed: u64| -> Vec<[f64; 2]> {
        let parameters = task.parameters();
        let mut optimizer = Optimizer::new(&parameters, true).unwrap();
        let steps = (0..3).map(|step| {
            let mut random = Random::new(seed, Purpose::Step, step);
            let loss = task.loss(&batch, &mut random).unwrap().total;
            let value = f64::from(loss.to_vec::<f32>().unwrap()[0]);
            let loss = scale(&loss, factor as f32).unwrap();
            let gradients = in_order(&parameters, backward(loss).unwrap()).unwrap();
            let length = norm(&gradients).unwrap();
            optimizer.update(&parameters, gradients, &settings, (1e-3, 1.0 / length)).unwrap();
            [value, length / factor]
        });
        steps.collect()
    };
    let tasks: [&dyn Fn(Compute) -> Box<dyn Task>; 2] =
        [&|compute| Box::new(vae_task(compute)), &|compute| {
            Box::new(diffusion_task(folder, compute))
        }];
    for task in tasks {
        let name = task(Device::Cpu.into()).name();
        // The same steps by other noise, to know what is usual.
        let exact: Vec<_> =
            (1..=4).map(|seed| losses(&*task(Device::Cpu.into()), 1.0, seed)).collect();
        for (precision, factor) in
            [(MixedPrecision::No, 1.0), (MixedPrecision::Bf16, 1.0), (MixedPrecision::Fp16, 1024.0)]
        {
            // By how much loss and gradient are off from the CPU's in f32, in the worst step of some runs.
            let off = |device, runs: u64| {
                let mut worst = [0.0, 0.0];
                for (seed, exact) in (1..=runs).zip(&exact) {
                    let found = losses(&*task(Compute { device, precision }), factor, seed);
                    for (exact, found) in exact.iter().zip(found) {
                        for i in 0..2 {
                            let error = (found[i] - exact[i]).abs() / exact[i];
                            assert!(error.is_finite(), "{name}: {found:?}");
                            worst[i] = f64::max(worst[i], error);
                        }
                    }
                }
                worst
            };
            let bounds = match precision {
                MixedPrecision::No => [1e-4, 3e-4],
                _ => off(Device::Cpu, 4).map(|x| 2.0 * x),
            };
            for (what, (error, bound)) in
                ["loss", "gradient"].iter().zip(off(device, 1).into_iter().zip(bounds))
            {
                let what = format!("{name} in {}, {what}", precision.name());
                println!("{what}: off by {error:e} of {bound:e}");
                assert!(error <= bound, "{what}: off by {error:e}, more than {bound:e}");
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
            let drawn = model.draw(request).unwrap().rgb().unwrap();
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
