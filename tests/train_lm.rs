//! Training of language models: against PyTorch's losses, against peft, and against itself when it is stopped and goes on.

#[path = "golden/mod.rs"]
mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use golden::drawn::Drawn;
use golden::{assert_close, assert_same, get};
use nadir::data::Examples;
use nadir::data::text::{FILLING, Framing, TextSet, TextSettings, TokenBatch};
use nadir::io::TensorSource;
use nadir::io::config::read_json;
use nadir::io::folder::Weights;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::decoder::{Decoder, DecoderConfig};
use nadir::nn::Params;
use nadir::nn::lora::{Adapter, Adapters, Targets};
use nadir::ops::gradient::backward;
use nadir::pipeline::Cancel;
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::byte_level::{ByteLevel, TokenizerSettings, train};
use nadir::train::checkpoint::Resume;
use nadir::train::diffusion::LoraSettings;
use nadir::train::lm::{LmTask, NewDecoder, Prompts};
use nadir::train::random::{Purpose, Random};
use nadir::train::{Event, Optimizer, Outcome, Run, Settings, Task, in_order, norm};

fn random() -> Random {
    Random::new(1, Purpose::Step, 0)
}

/// The batches of `golden/language.py`.
fn batches() -> Vec<TokenBatch> {
    let golden = golden::open("language").unwrap();
    let batch = |i: usize| {
        let ids = get(&golden, &format!("ids.{i}"));
        let targets = get(&golden, &format!("targets.{i}")).to_vec::<i64>().unwrap();
        let count = targets.iter().filter(|&&target| target >= 0).count();
        let targets = targets.into_iter().map(|t| u32::try_from(t).unwrap_or(FILLING)).collect();
        let targets = Tensor::from_vec(targets, ids.dims()).unwrap();
        TokenBatch { ids, targets, count, documents: Vec::new() }
    };
    (0..4).map(batch).collect()
}

fn open() -> LmTask {
    LmTask::open(&golden::path("language/model"), Device::Cpu).unwrap()
}

fn adapted() -> LmTask {
    let settings = LoraSettings {
        lora_rank: Some(4),
        lora_alpha: Some(6.0),
        lora_targets: Targets::Linear,
        ..LoraSettings::default()
    };
    open().adapting(&settings, Some(&golden::path("language/peft")), 1).unwrap()
}

/// Twenty steps as `golden/language.py` takes them; a weight is looked at behind the last.
fn follows(name: &str, task: &LmTask, watched: Option<&str>, rate: f64) {
    let golden = golden::open("language").unwrap();
    let get = |key: &str| get(&golden, &format!("{name}.{key}"));
    let [losses, norms] = ["losses", "norms"].map(|key| get(key).to_vec::<f32>().unwrap());
    let settings = Settings { ema_decay: 0.9, use_ema: true, ..Settings::default() };
    let all = task.parameters();
    let mut optimizer = Optimizer::new(&all, true).unwrap();
    let batches = batches();
    for (step, (expected, length)) in losses.iter().zip(&norms).enumerate() {
        let loss = task.loss(&batches[step % batches.len()], &mut random()).unwrap().total;
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
        optimizer.update(&all, gradients, &settings, (rate, shortened)).unwrap();
    }
    let Some(watched) = watched else { return };
    let state = optimizer.state(&all).unwrap();
    for (kind, key) in [("weight", "weight"), ("average", "average")] {
        if name == "lora" && key == "average" {
            continue;
        }
        let name = format!("{kind}.{watched}");
        let (_, found) = state.iter().find(|(known, _)| *known == name).unwrap();
        // Adam divides by the root of a moment: where a gradient is next to nothing, its rounding becomes a step.
        assert_close(key, found, &get(key), 2e-3);
    }
}

#[test]
fn a_language_model_learns_as_in_pytorch() {
    follows("full", &open(), Some("transformer.h.1.mlp.c_fc.weight"), 1e-3);
}

#[test]
fn adapters_learn_as_in_peft() {
    follows("lora", &adapted(), Some("transformer.h.1.mlp.c_fc.lora_B.weight"), 1e-2);
}

/// Parallel attention with biases and partly turned heads; a gated MLP with shared keys, scaled angles and a tied head.
#[test]
fn other_families_learn_as_in_pytorch() {
    for name in ["phi", "llama3"] {
        let folder = tempfile::tempdir().unwrap();
        let config = golden::path(&format!("decoder/{name}/config.json"));
        std::fs::copy(config, folder.path().join("config.json")).unwrap();
        let weights = Drawn::of(name);
        let weights = weights.names().into_iter().map(|key| {
            let value = weights.read(&key).unwrap();
            (key, value)
        });
        let weights: Vec<_> = weights.collect();
        save(&folder.path().join("model.safetensors"), &weights, &BTreeMap::new()).unwrap();
        let task = LmTask::open(folder.path(), Device::Cpu).unwrap();
        follows(name, &task, None, 1e-3);
    }
}

/// Whatever alpha is, adapters that are taken up do what they did.
#[test]
fn adapters_that_are_taken_up_keep_their_scale() {
    let loss = |lora_alpha| {
        let settings = LoraSettings {
            lora_rank: Some(4),
            lora_alpha,
            lora_targets: Targets::Linear,
            ..LoraSettings::default()
        };
        let task = open().adapting(&settings, Some(&golden::path("language/peft")), 1).unwrap();
        task.validate(&batches()[0], &mut random()).unwrap()[0].1
    };
    // 6 over 4, as they were made; 12 over 4, and B halved, which loses nothing; 4 over 4, and B rounded.
    assert_eq!(loss(Some(12.0)), loss(Some(6.0)));
    assert!((loss(None) / loss(Some(6.0)) - 1.0).abs() < 1e-6);
}

/// What peft saved gives peft's logits when it is merged; and saved again from training it is the same file.
#[test]
fn adapters_of_peft_are_read_and_written() {
    let golden = golden::open("language").unwrap();
    let folder = golden::path("language/model");
    let config = DecoderConfig::open(&folder).unwrap();
    let source = || config.weights(Weights::open(&folder, None).unwrap());
    let peft = golden::path("language/peft");
    let adapter = Adapter { path: peft.clone(), weight: 1.0 };
    let merged = Adapters::open(&[adapter], &[("decoder", &source())]).unwrap();
    let params = Params::new(merged.merged("decoder", source()), DType::F32, Device::Cpu);
    let model = Decoder::load(config.clone(), &params).unwrap();
    let logits = model.forward(&batches()[0].ids).unwrap();
    // Sums of some hundred terms in another order, W + BA rounded once before and not behind, through three blocks.
    assert_close("logits", &logits, &get(&golden, "lora.logits"), 1e-5);

    let out = tempfile::tempdir().unwrap();
    adapted().export(out.path(), &Vec::new()).unwrap();
    let [theirs, ours] = [&peft, out.path()]
        .map(|f| SafeTensors::open(f.join("adapter_model.safetensors")).unwrap());
    assert_eq!(theirs.names(), ours.names());
    assert_eq!(theirs.names().len(), 24);
    for name in theirs.names() {
        assert_same(&name, &ours.read(&name).unwrap(), &theirs.read(&name).unwrap());
    }
    let [theirs, ours] =
        [&peft, out.path()].map(|folder| read_json(&folder.join("adapter_config.json")).unwrap());
    for (name, value) in theirs.as_object().unwrap() {
        let same =
            value == &ours[name] || value.as_f64().is_some_and(|x| ours[name].as_f64() == Some(x));
        assert!(same, "{name}: {}", ours[name]);
    }
    // Attention alone has the shapes of a part of the layers.
    let settings = LoraSettings {
        lora_rank: Some(4),
        lora_alpha: None,
        lora_targets: Targets::Attention,
        ..LoraSettings::default()
    };
    let error = open().adapting(&settings, Some(&peft), 1).err().unwrap().to_string();
    assert!(error.contains("6") && error.contains("12"), "{error}");
    let other = LoraSettings { lora_rank: Some(3), lora_targets: Targets::Linear, ..settings };
    let error = open().adapting(&other, Some(&peft), 1).err().unwrap().to_string();
    assert!(error.contains("lora_A") && error.contains("rank"), "{error}");
}

/// No row sees another, nor what it is filled up with.
#[test]
fn a_row_has_the_same_loss_alone() {
    let task = open();
    for batch in batches() {
        let measured = |batch: &TokenBatch| task.validate(batch, &mut random()).unwrap()[0].1;
        let (ids, targets) =
            (batch.ids.to_vec::<i64>().unwrap(), batch.targets.to_vec::<u32>().unwrap());
        let t = batch.ids.dim(1);
        let alone = (0..3).map(|row| {
            let targets = &targets[row * t..][..t];
            let length = targets.iter().position(|&target| target == FILLING).unwrap_or(t);
            measured(&TokenBatch {
                ids: Tensor::from_slice(&ids[row * t..][..length], [1, length]).unwrap(),
                targets: Tensor::from_slice(&targets[..length], [1, length]).unwrap(),
                count: length,
                documents: Vec::new(),
            })
        });
        let (sum, whole) = (alone.sum::<f64>(), measured(&batch));
        // A loss is a mean that was rounded to f32 once: 6e-8 of it each.
        assert!((sum - whole).abs() <= 2e-7 * whole, "{sum} {whole}");
    }
}

/// Documents that share rows learn what they learn apart: their losses and gradients add up to the same.
#[test]
fn documents_in_one_row_have_the_loss_and_the_gradients_of_each_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("texts.txt");
    let lines: String = (0..23u8)
        .map(|n| "abcdefghij".repeat(3)[..usize::from(n * 7 % 29 + 1)].to_owned() + "\n")
        .collect();
    std::fs::write(&path, lines).unwrap();
    let encode =
        |text: &str| Ok(text.bytes().enumerate().map(|(i, b)| u32::from(b) + i as u32).collect());
    let framing = Framing { encode: &encode, start: 2, end: 3 };
    let open_set = |packing| {
        let settings = TextSettings { block_size: 20, packing, ..TextSettings::default() };
        TextSet::open(&[&path].map(PathBuf::clone), &settings, &framing).unwrap()
    };
    let task = open();
    let all = task.parameters();
    // The mean loss of all targets and its gradients, by batches that count by theirs.
    let learned = |set: &TextSet, batch: usize| {
        let (mut loss, mut sums) = (0.0, Vec::new());
        for batch in set.pass(batch, 1).unwrap() {
            let batch = batch.unwrap();
            let share = batch.count as f64 / set.count() as f64;
            let total = task.loss(&batch, &mut random()).unwrap().total;
            loss += share * f64::from(total.detach().to_vec::<f32>().unwrap()[0]);
            let gradients = in_order(&all, backward(total).unwrap()).unwrap();
            sums.resize(gradients.len(), Vec::new());
            for (sum, gradient) in sums.iter_mut().zip(gradients) {
                let values = gradient.to_vec::<f32>().unwrap();
                sum.resize(values.len(), 0.0);
                sum.iter_mut().zip(values).for_each(|(sum, x)| *sum += share * f64::from(x));
            }
        }
        (loss, sums)
    };
    let (apart, together) = (open_set(false), open_set(true));
    assert_eq!(apart.count(), together.count());
    assert!(together.len() * 3 < apart.len() * 2, "{} rows of {}", together.len(), apart.len());
    let (expected, gradients) = learned(&apart, 1);
    let (found, of_rows) = learned(&together, 3);
    // Means of f32, each rounded once.
    assert!((found - expected).abs() <= 2e-7 * expected, "{found} instead of {expected}");
    for (((name, _), ours), theirs) in all.iter().zip(&of_rows).zip(&gradients) {
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let off: Vec<f64> = ours.iter().zip(theirs).map(|(a, b)| a - b).collect();
        // Sums over some hundred tokens in another order, at three layers of depth.
        let error = norm(&off) / norm(theirs);
        assert!(error <= 1e-5, "{name}: off by {error:e}");
    }
}

fn texts(folder: &Path) -> PathBuf {
    let path = folder.join("texts.txt");
    let animals = ["a cat", "two dogs", "some birds", "a very small grey mouse", "the cow"];
    let places = ["in a house", "near the river", "on a hill", "in the old town"];
    let lines = animals.iter().flat_map(|a| places.iter().map(move |p| format!("{a} {p}.\n")));
    std::fs::write(&path, lines.collect::<String>()).unwrap();
    path
}

struct Desk {
    folder: tempfile::TempDir,
    tokenizer: ByteLevel,
    data: TextSet,
}

fn desk() -> Desk {
    let folder = tempfile::tempdir().unwrap();
    let path = texts(folder.path());
    let lines: Vec<String> =
        std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect();
    let settings = TokenizerSettings { vocab_size: 300, ..TokenizerSettings::default() };
    train(&lines, &settings, &folder.path().join("tokenizer")).unwrap();
    let tokenizer = ByteLevel::open(&folder.path().join("tokenizer")).unwrap();
    let [start, end] = tokenizer.ends();
    let encode = |text: &str| tokenizer.encode(text);
    let framing = Framing { encode: &encode, start, end };
    let data = TextSet::open(&[path], &TextSettings::default(), &framing).unwrap();
    Desk { folder, tokenizer, data }
}

impl Desk {
    fn task(&self) -> LmTask {
        let shape = NewDecoder { layers: 2, width: 32, heads: 4, context: 40 };
        let config = shape.config(self.tokenizer.vocabulary(), self.tokenizer.ends());
        let task = LmTask::new(Path::new("small"), config, 3, Device::Cpu).unwrap();
        let tokenizer = ByteLevel::open(&self.folder.path().join("tokenizer")).unwrap();
        let prompt = [0].into_iter().chain(tokenizer.encode("two").unwrap()).collect();
        let prompts = vec![("two".to_owned(), prompt)];
        let decode = Box::new(move |tokens: &[u32]| tokenizer.decode(tokens));
        let files = ByteLevel::files(&self.folder.path().join("tokenizer"));
        let task = task.sampling(Prompts { prompts, end: 0, decode }).beside(files);
        task.dropping(0.1).unwrap()
    }

    fn run(&self, name: &str, steps: u64, stop: Option<u64>) -> (Outcome, Vec<f64>, PathBuf) {
        let folder = self.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let settings = Settings {
            train_batch_size: 3,
            gradient_accumulation_steps: 2,
            max_train_steps: steps,
            learning_rate: 3e-3,
            lr_warmup_steps: 2,
            checkpointing_steps: 50,
            use_ema: true,
            seed: 5,
            ..Settings::default()
        };
        let cancel = Cancel::default();
        let run = Run {
            task: &self.task(),
            settings: &settings,
            data: &self.data,
            held_out: Some(&self.data),
            folder: &folder,
            about: &[],
            resume: Some(&Resume::Latest),
            cancel: &cancel,
        };
        let mut perplexities = Vec::new();
        let outcome = run.run(&mut |event| match event {
            Event::Step(progress) if Some(progress.step) == stop => {
                cancel.cancel();
            }
            Event::Validated(_, found) => {
                let [(_, loss), (name, perplexity)] = found[..] else { panic!("{found:?}") };
                assert_eq!((name, perplexity), ("perplexity", loss.exp()));
                perplexities.push(perplexity);
            }
            Event::Failed(message) => panic!("{message}"),
            _ => {}
        });
        (outcome.unwrap(), perplexities, folder)
    }
}

#[test]
fn a_run_that_was_stopped_ends_with_the_bits_of_one_that_was_not() {
    let desk = desk();
    let (outcome, _, whole) = desk.run("whole", 7, None);
    assert_eq!(outcome, Outcome::Done);
    for stop in [1, 4] {
        assert_eq!(desk.run("parts", 7, Some(stop)).0, Outcome::Stopped(stop));
    }
    let (outcome, _, parts) = desk.run("parts", 7, None);
    assert_eq!(outcome, Outcome::Done);
    for name in ["checkpoint-7/state.safetensors", "model.safetensors", "config.json"] {
        let [a, b] = [&whole, &parts].map(|folder| std::fs::read(folder.join(name)).unwrap());
        assert!(a == b, "{name} differs");
    }
}

/// It learns its few sentences, shows how it goes on, and is the same model from its folder.
#[test]
fn a_model_is_learned_shown_and_exported() {
    let desk = desk();
    let (outcome, perplexities, folder) = desk.run("learned", 150, None);
    assert_eq!(outcome, Outcome::Done);
    let last = *perplexities.last().unwrap();
    assert!(last < 5.0 && last < 0.5 * perplexities[0], "{perplexities:?}");
    let task = LmTask::open(&folder, Device::Cpu).unwrap();
    let mut sum = 0.0;
    for batch in desk.data.pass(5, 1).unwrap() {
        sum += task.validate(&batch.unwrap(), &mut random()).unwrap()[0].1;
    }
    let again = (sum / desk.data.count() as f64).exp();
    assert!((again / last - 1.0).abs() < 1e-6, "{again} {last}");
    let text = std::fs::read_to_string(folder.join("validation/step-00000150-00.txt")).unwrap();
    let (prompt, text) = text.trim_end().split_once('\n').unwrap();
    assert!(prompt == "two" && text.starts_with("two dogs"), "{text}");
    let page = std::fs::read_to_string(folder.join("report.html")).unwrap();
    assert!(page.contains("two dogs") && page.contains("perplexity"), "{page}");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(folder.join(name).is_file(), "{name}");
    }
    assert_eq!(read_json(&folder.join("config.json")).unwrap()["dtype"], "float32");
}

#[test]
fn what_cannot_be_trained_is_an_error() {
    for share in [-0.1, 1.0, f64::NAN] {
        assert!(open().dropping(share).err().unwrap().to_string().contains("token_dropout"));
    }
    let error =
        LmTask::open(&golden::path("models/clip_l"), Device::Cpu).err().unwrap().to_string();
    assert!(error.contains("gpt2"), "{error}");
    let ids = Tensor::from_vec(vec![0i64; 65], [1, 65]).unwrap();
    let targets = Tensor::from_vec(vec![0u32; 65], [1, 65]).unwrap();
    let long = TokenBatch { ids, targets, count: 65, documents: Vec::new() };
    let error = open().loss(&long, &mut random()).err().unwrap().to_string();
    assert!(error.contains("64"), "{error}");
}
