//! Causal language models against transformers, on the small random configurations of `golden/decoder.py`.

mod golden;
#[path = "golden/gpu.rs"]
mod gpu;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use golden::drawn::Drawn;
use golden::{assert_close, assert_same, get};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::decoder::{Decoder, DecoderConfig};
use nadir::nn::lora::Adapter;
use nadir::nn::{Keep, Params, parameters};
use nadir::ops::elementwise::linear_combination;
use nadir::ops::gradient::backward;
use nadir::ops::matmul::matmul;
use nadir::ops::reduce::mean;
use nadir::pipeline::language::{
    Answer, Finish, LanguageModel, LanguageOptions, Perplexity, Sampling, TextRequest, TextRun,
    Windows,
};
use nadir::tensor::tape::no_grad;
use nadir::tensor::{DType, Device, Tensor};
use nadir::text::byte_level::ByteLevel;
use nadir::text::chat::{ChatTemplate, Message};
use tempfile::TempDir;

/// Logits of transformers and ours: sums of less than a hundred terms in another order, through three blocks.
const TOLERANCE: f32 = 1e-5;

const FAMILIES: [&str; 6] = ["gpt2", "phi", "llama2", "llama3", "qwen2", "qwen3"];

fn config(name: &str) -> Result<DecoderConfig> {
    DecoderConfig::open(golden::path(&format!("decoder/{name}")))
}

fn load(name: &str, dtype: DType, keep: Keep) -> Result<Decoder> {
    let config = config(name)?;
    let params = Params::new(config.weights(Drawn::of(name)), dtype, Device::Cpu).keeping(keep);
    let model = Decoder::load(config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    Ok(model)
}

fn check_logits(name: &str) -> Result<()> {
    let golden = golden::open(&format!("decoder/{name}"))?;
    let model = load(name, DType::F32, Keep::Frozen)?;
    let (ids, theirs) = (get(&golden, "ids"), get(&golden, "logits"));
    let ours = model.forward(&ids)?;
    assert_close(name, &ours, &theirs, TOLERANCE);
    for (i, row) in (0..ids.dim(0)).map(|i| (i, ids.narrow(0, i, 1).unwrap())) {
        assert_same(&format!("{name}, {i} alone"), &model.forward(&row)?, &ours.narrow(0, i, 1)?);
    }
    // In 16 bits: some twenty roundings in a row, of which some are of one sign, and those of the weights.
    for (dtype, tolerance) in
        [(DType::F64, TOLERANCE), (DType::F16, 16.0 / 2048.0), (DType::BF16, 16.0 / 256.0)]
    {
        let ours = load(name, dtype, Keep::Frozen)?.forward(&ids)?;
        assert_close(&format!("{name} in {dtype}"), &ours, &theirs, tolerance);
    }
    Ok(())
}

#[test]
fn gpt2_is_transformers() -> Result<()> {
    check_logits("gpt2")
}

#[test]
fn phi_is_transformers() -> Result<()> {
    check_logits("phi")
}

#[test]
fn llama_2_is_transformers() -> Result<()> {
    check_logits("llama2")
}

#[test]
fn llama_3_is_transformers() -> Result<()> {
    check_logits("llama3")
}

#[test]
fn qwen_2_is_transformers() -> Result<()> {
    check_logits("qwen2")
}

#[test]
fn qwen_3_is_transformers() -> Result<()> {
    check_logits("qwen3")
}

/// The token of the largest logit of each row of [B, T, V], at its last position.
fn largest(model: &Decoder, hidden: &Tensor) -> Result<Vec<i64>> {
    let logits = model.logits(&hidden.narrow(1, hidden.dim(1) - 1, 1)?.contiguous()?)?;
    let rows = logits.to_vec::<f32>()?;
    let argmax = |row: &[f32]| {
        let best = (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]).then(b.cmp(&a)));
        best.unwrap() as i64
    };
    Ok(rows.chunks(logits.dim(2)).map(argmax).collect())
}

/// transformers pads a batch on the left; here sequences join and leave it, each at its own length.
#[test]
fn greedy_continuations_are_transformers_in_any_slot() -> Result<()> {
    for name in FAMILIES {
        let golden = golden::open(&format!("decoder/{name}"))?;
        let model = load(name, DType::F32, Keep::Frozen)?;
        let lengths: Vec<usize> =
            get(&golden, "lengths").to_vec::<i64>()?.iter().map(|&n| n as usize).collect();
        let (prompts, expected) = (get(&golden, "prompts"), get(&golden, "continued"));
        let prompt = |i: usize| {
            prompts
                .narrow(0, i, 1)?
                .narrow(1, prompts.dim(1) - lengths[i], lengths[i])?
                .contiguous()
        };
        let expected = |i: usize| expected.narrow(0, i, 1)?.contiguous()?.to_vec::<i64>();
        // 1. each alone
        let mut alone = Vec::new();
        for i in 0..lengths.len() {
            let mut cache = model.cache(1, lengths[i] + 64)?;
            let mut hidden = model.extend(&prompt(i)?, &mut cache, 0)?;
            let mut states = Vec::new();
            for token in expected(i)? {
                assert_eq!(largest(&model, &hidden)?, [token], "{name}: prompt {i}");
                hidden = model.extend(&Tensor::from_vec(vec![token], [1, 1])?, &mut cache, 0)?;
                states.push(hidden.to_vec::<f32>()?);
            }
            alone.push(states);
        }
        // 2. all at once, slots in another order and of another capacity, with one more that came before
        let (order, slots) = ([2, 0, 3, 1], 6);
        let mut cache = model.cache(slots, 100)?;
        model.extend(&prompt(1)?, &mut cache, 1)?;
        cache.truncate(1, 0);
        for (slot, &i) in order.iter().enumerate() {
            model.extend(&prompt(i)?, &mut cache, 1 + slot)?;
        }
        for step in 0..40 {
            let tokens = order.iter().map(|&i| Ok(expected(i)?[step]));
            let tokens = Tensor::from_vec(tokens.collect::<Result<Vec<_>>>()?, [4, 1])?;
            let hidden = model.extend(&tokens, &mut cache, 1)?.to_vec::<f32>()?;
            for (row, &i) in hidden.chunks(hidden.len() / 4).zip(&order) {
                assert!(row == alone[i][step], "{name}: prompt {i}, step {step}: other bits");
            }
        }
        // 3. the second leaves, the last takes its place
        cache.move_slot(4, 2)?;
        assert_eq!([2, 4].map(|slot| cache.length(slot)), [lengths[1] + 40, 0]);
        let order = [2, 1, 3];
        for step in 40..64 {
            let tokens = order.iter().map(|&i| Ok(expected(i)?[step]));
            let tokens = Tensor::from_vec(tokens.collect::<Result<Vec<_>>>()?, [3, 1])?;
            let hidden = model.extend(&tokens, &mut cache, 1)?.to_vec::<f32>()?;
            for (row, &i) in hidden.chunks(hidden.len() / 3).zip(&order) {
                assert!(row == alone[i][step], "{name}: prompt {i}, step {step}: other bits");
            }
        }
    }
    Ok(())
}

#[test]
fn a_cache_takes_what_it_has_room_for() -> Result<()> {
    let model = load("llama3", DType::F32, Keep::Frozen)?;
    let error = model.cache(1, 129).err().unwrap().to_string();
    assert!(error.contains("129") && error.contains("at most 128"), "{error}");
    let mut cache = model.cache(2, 10)?;
    let ids = |b: usize, n: usize| Tensor::from_vec(vec![5i64; b * n], [b, n]);
    model.extend(&ids(1, 7)?, &mut cache, 1)?;
    for (b, n, first, expected) in [(1, 4, 1, "at most 10"), (2, 1, 1, "there are 2")] {
        let error = model.extend(&ids(b, n)?, &mut cache, first).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    model.extend(&ids(2, 3)?, &mut cache, 0)?;
    assert_eq!([0, 1].map(|slot| cache.length(slot)), [3, 10]);
    Ok(())
}

/// What a decoder writes is what transformers has: names, shapes, and Conv1D's [inputs, outputs].
#[test]
fn weights_are_saved_as_they_came() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.safetensors");
    for name in FAMILIES {
        for keep in [Keep::Frozen, Keep::Trainable] {
            let (model, source) = (load(name, DType::F32, keep)?, Drawn::of(name));
            model.save(&config(name)?.weights(Drawn::of(name)), &path, None)?;
            let saved = SafeTensors::open(&path)?;
            assert_eq!(saved.names(), source.names(), "{name}");
            for key in source.names() {
                assert_same(&format!("{name}: {key}"), &saved.read(&key)?, &source.read(&key)?);
            }
        }
    }
    Ok(())
}

/// The files of a model without its head leave `transformer.` out, as the published GPT-2's do.
#[test]
fn a_folder_may_leave_the_root_out() -> Result<()> {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden::path("decoder/gpt2/config.json"), folder.path().join("config.json"))
        .unwrap();
    let source = Drawn::of("gpt2");
    let rootless = |name: String| {
        let tensor = source.read(&name).unwrap();
        (name.strip_prefix("transformer.").unwrap().to_owned(), tensor)
    };
    let mut tensors: Vec<_> = source.names().into_iter().map(rootless).collect();
    // What the published files have beside weights.
    let mask = Tensor::full([1, 1, 8, 8], 1.0, DType::F32, Device::Cpu)?;
    tensors.push(("h.0.attn.bias".into(), mask));
    save(&folder.path().join("model.safetensors"), &tensors, &BTreeMap::new())?;
    let model = Decoder::open(folder.path(), DType::F32, Device::Cpu, Keep::Frozen)?;
    let ids = get(&golden::open("decoder/gpt2")?, "ids");
    let expected = load("gpt2", DType::F32, Keep::Frozen)?.forward(&ids)?;
    assert_same("without the root", &model.forward(&ids)?, &expected);
    Ok(())
}

/// A trainable model gives the bits of a frozen one, and a gradient reaches every weight, along the slope.
#[test]
fn gradients_reach_every_weight() -> Result<()> {
    for name in FAMILIES {
        let ids = get(&golden::open(&format!("decoder/{name}"))?, "ids");
        let model = load(name, DType::F64, Keep::Trainable)?;
        let frozen = load(name, DType::F64, Keep::Frozen)?.forward(&ids)?.to_vec::<f64>()?;
        assert_eq!(no_grad(|| model.forward(&ids))?.to_vec::<f64>()?, frozen, "{name}");
        let loss = || -> Result<Tensor> {
            let logits = model.forward(&ids)?.narrow(2, 3, 1)?;
            mean(&nadir::ops::elementwise::mul(&logits, &logits)?, &[0, 1, 2])
        };
        let gradients = backward(loss()?)?;
        for (key, parameter) in parameters(&model) {
            let tensor = parameter.tensor().unwrap();
            let gradient = gradients.get(&tensor).unwrap_or_else(|| panic!("{key}: no gradient"));
            let slope = gradient.to_vec::<f64>()?;
            // Along the gradient itself: its squared length is the slope.
            let length: f64 = slope.iter().map(|g| g * g).sum();
            let step = 1e-6 / length.sqrt();
            let values = tensor.to_vec::<f64>()?;
            let mut sides = [0.0; 2];
            for (side, sign) in sides.iter_mut().zip([1.0, -1.0]) {
                let moved = values.iter().zip(&slope).map(|(x, g)| x + sign * step * g);
                parameter.set(&Tensor::from_vec(moved.collect::<Vec<f64>>(), *tensor.shape())?)?;
                *side = no_grad(loss)?.to_vec::<f64>()?[0];
            }
            parameter.set(&tensor)?;
            let difference = (sides[0] - sides[1]) / (2.0 * step);
            // The second order of a difference of 1e-6, and f64's rounding over that.
            let error = (difference - length).abs() / length;
            assert!(error <= 1e-5, "{name}: {key}: {difference:e} instead of {length:e}");
        }
    }
    Ok(())
}

#[test]
fn what_is_not_a_known_decoder_is_an_error() {
    let read = |value| DecoderConfig::read(&Config::from_value("config.json", value).unwrap());
    let gpt2 = serde_json::json!({"model_type": "gpt2"});
    read(gpt2.clone()).unwrap();
    for (field, value, expected) in [
        ("model_type", serde_json::json!("mamba"), "qwen3 (Qwen3ForCausalLM)"),
        ("architectures", serde_json::json!(["GPT2ForSequenceClassification"]), "GPT2LMHeadModel"),
        ("add_cross_attention", serde_json::json!(true), "false"),
        ("scale_attn_by_inverse_layer_idx", serde_json::json!(true), "false"),
        ("activation_function", serde_json::json!("relu"), "gelu_new"),
        ("n_head", serde_json::json!(7), "divisor of the model's width 768"),
        ("n_layer", serde_json::json!(-1), "non-negative"),
        ("n_embd", serde_json::json!(0), "width of at least 1"),
        ("something_new", serde_json::json!(1), "field that nadir knows"),
    ] {
        let mut value_of = gpt2.clone();
        value_of[field] = value;
        let error = read(value_of).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains("config.json"), "{field}: {error}");
    }
}

#[test]
fn a_sequence_longer_than_the_context_is_an_error() -> Result<()> {
    let model = load("gpt2", DType::F32, Keep::Frozen)?;
    let ids = |n| Tensor::from_vec(vec![5i64; n], [1, n]);
    model.forward(&ids(128)?)?;
    let error = model.forward(&ids(129)?).unwrap_err().to_string();
    assert!(error.contains("128") && error.contains("129"), "{error}");
    Ok(())
}

#[test]
fn perplexity_is_that_of_transformers() -> Result<()> {
    for name in FAMILIES {
        let model = load(name, DType::F32, Keep::Frozen)?;
        let text: Vec<u32> = get(&golden::open(&format!("decoder/{name}"))?, "text")
            .to_vec::<i64>()?
            .iter()
            .map(|&id| id as u32)
            .collect();
        let path = golden::path(&format!("decoder/{name}/perplexity.json"));
        let expected: BTreeMap<String, f64> =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(expected.len(), 3);
        for (key, expected) in expected {
            let (context, stride) = key.split_once('.').unwrap();
            let windows = Windows {
                context: Some(context.parse().unwrap()),
                stride: Some(stride.parse().unwrap()),
            };
            let mut found = Perplexity::default();
            found.add(&model, &text, windows, &mut |_| Ok(()))?;
            // The first token of windows that do not overlap is not scored.
            let first = if context == stride { text.len().div_ceil(128) } else { 1 };
            assert_eq!(found.tokens, text.len() - first);
            let error = (found.value() - expected).abs() / expected;
            println!("{name} {key}: {} instead of {expected}, {error:.1e}", found.value());
            assert!(error <= 1e-5, "{name} {key}: {} instead of {expected}", found.value());
        }
        for (context, stride, expected) in
            [(Some(129), None, "2 to 128"), (Some(1), None, "2 to"), (Some(9), Some(10), "1 to 9")]
        {
            let windows = Windows { context, stride };
            let error =
                Perplexity::default().add(&model, &text, windows, &mut |_| Ok(())).unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
    Ok(())
}

/// A model of `golden/decoder.py` with its tokenizer, as a folder.
fn folder(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let copy = |from: &str| {
        let from = golden::path(from);
        std::fs::copy(&from, folder.path().join(from.file_name().unwrap())).unwrap();
    };
    for file in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        copy(&format!("decoder/tokenizer/{file}"));
    }
    copy(&format!("decoder/{name}/config.json"));
    let source = Drawn::of(name);
    let tensors = source.names().into_iter().map(|key| {
        let tensor = source.read(&key).unwrap();
        (key, tensor)
    });
    let path = folder.path().join("model.safetensors");
    save(&path, &tensors.collect::<Vec<_>>(), &BTreeMap::new()).unwrap();
    folder
}

fn open(folder: &Path) -> Result<LanguageModel> {
    LanguageModel::open(folder, &LanguageOptions::default())
}

fn request(prompt: Vec<u32>) -> TextRequest {
    TextRequest {
        prompt,
        sampling: Sampling::greedy(),
        seed: 0,
        max_new_tokens: 64,
        stop: Vec::new(),
        ignore_eos: true,
    }
}

/// Answers to all requests, `slots` at a time, each with its text.
fn answers(
    model: &LanguageModel,
    requests: &[TextRequest],
    slots: usize,
    capacity: usize,
) -> Result<Vec<(String, Answer)>> {
    let mut run = TextRun::new(model, slots, capacity)?;
    let mut found = vec![(String::new(), None); requests.len()];
    let mut waiting = requests.iter();
    loop {
        let mut pieces = Vec::new();
        while run.has_room()
            && let Some(request) = waiting.next()
        {
            pieces.push(run.join(request.clone())?);
        }
        pieces.extend(run.step()?);
        for piece in pieces {
            let (text, answer) = &mut found[piece.id];
            assert!(answer.is_none(), "an answer goes on behind its end");
            text.push_str(&piece.text);
            *answer = piece.answer;
        }
        if run.is_empty() && waiting.len() == 0 {
            let whole = found.into_iter().map(|(text, answer)| (text, answer.unwrap()));
            return Ok(whole.collect());
        }
    }
}

#[test]
fn answers_are_transformers_and_depend_on_no_company() -> Result<()> {
    for name in FAMILIES {
        let (folder, golden) = (folder(name), golden::open(&format!("decoder/{name}"))?);
        let model = open(folder.path())?;
        let tokens = |key: &str| get(&golden, key).to_vec::<i64>().unwrap();
        let (prompts, continued) = (tokens("prompts"), tokens("continued"));
        let longest = prompts.len() / 4;
        let lengths = tokens("lengths");
        // 1. greedy
        let greedy: Vec<TextRequest> = (0..4)
            .map(|i| {
                let row = &prompts[i * longest..][..longest];
                request(row[longest - lengths[i] as usize..].iter().map(|&id| id as u32).collect())
            })
            .collect();
        for (slots, capacity) in [(1, 128), (4, 82), (7, 100)] {
            let found = answers(&model, &greedy, slots, capacity)?;
            for ((_, answer), expected) in found.iter().zip(continued.chunks(64)) {
                let answer_ids: Vec<i64> = answer.tokens.iter().map(|&id| i64::from(id)).collect();
                assert_eq!(answer_ids, expected, "{name}, {slots} slots");
                assert_eq!(answer.finish, Finish::Length);
            }
        }
        // 2. drawn, of many lengths, so that answers join and leave
        let drawn: Vec<TextRequest> = (0..11)
            .map(|i| TextRequest {
                sampling: Sampling { frequency_penalty: 0.3, ..Sampling::default() },
                seed: 5 + i as u64 % 3,
                max_new_tokens: 1 + i * 17 % 40,
                ..greedy[i % 4].clone()
            })
            .collect();
        let alone = answers(&model, &drawn, 1, 128)?;
        for slots in [2, 3, 8] {
            assert_eq!(answers(&model, &drawn, slots, 60)?, alone, "{name}, {slots} slots");
        }
        assert_ne!(alone[0].1.tokens, alone[4].1.tokens[..1], "seeds matter");
    }
    Ok(())
}

/// Matrices in 8 bits cost little, and answers depend on no company either.
#[test]
fn weights_of_8_bits_predict_nearly_as_well() -> Result<()> {
    for name in FAMILIES {
        let folder = folder(name);
        let int8 = LanguageOptions { int8: true, ..LanguageOptions::default() };
        let int8 = LanguageModel::open(folder.path(), &int8)?;
        let text = get(&golden::open(&format!("decoder/{name}"))?, "text").to_vec::<i64>()?;
        let text: Vec<u32> = text.iter().map(|&id| id as u32).collect();
        let [mut plain, mut few] = [Perplexity::default(); 2];
        let windows = Windows::default();
        plain.add(open(folder.path())?.decoder(), &text, windows, &mut |_| Ok(()))?;
        few.add(int8.decoder(), &text, windows, &mut |_| Ok(()))?;
        let ratio = few.value() / plain.value();
        println!("{name}: {ratio}");
        assert!(ratio != 1.0 && (ratio - 1.0).abs() <= 0.01, "{name}: {ratio}");
        let requests = [7, 1, 4].map(|n| TextRequest {
            max_new_tokens: 3 * n,
            ..request((0..n).map(|i| 30 * i as u32 + 11).collect())
        });
        let alone = answers(&int8, &requests, 1, 40)?;
        assert_eq!(answers(&int8, &requests, 3, 60)?, alone, "{name}");
    }
    Ok(())
}

/// An adapter in peft's form changes the answer as one merged into the weights does.
#[test]
fn an_adapter_is_added_to_the_weights() -> Result<()> {
    let folder = folder("gpt2");
    let (name, rank) = ("transformer.h.1.attn.c_attn", 2);
    let matrix = |n: usize, m: usize| {
        let values = (0..n * m).map(|i| ((i * 37 % 19) as f32 - 9.0) / 30.0).collect();
        Tensor::from_vec(values, [n, m])
    };
    let (a, b) = (matrix(rank, 48)?, matrix(144, rank)?);
    let tensors = [("lora_A", &a), ("lora_B", &b)]
        .map(|(role, tensor)| (format!("base_model.model.{name}.{role}.weight"), tensor.clone()));
    let peft = tempfile::tempdir().unwrap();
    save(&peft.path().join("adapter_model.safetensors"), &tensors, &BTreeMap::new())?;
    let config = serde_json::json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": 3, "fan_in_fan_out": true, "bias": "none",
        "task_type": "CAUSAL_LM", "target_modules": ["c_attn"],
    });
    std::fs::write(peft.path().join("adapter_config.json"), config.to_string()).unwrap();
    let adapter = Adapter { path: peft.path().to_owned(), weight: 0.5 };
    let options = LanguageOptions { adapters: vec![adapter], ..LanguageOptions::default() };
    let adapted = LanguageModel::open(folder.path(), &options)?;
    // The same by hand: W [inputs, outputs] + 0.5 * 3 / 2 (B A)^T.
    let source = Drawn::of("gpt2");
    let mut tensors: BTreeMap<String, Tensor> =
        source.names().into_iter().map(|key| (key.clone(), source.read(&key).unwrap())).collect();
    let weight = tensors.get_mut(&format!("{name}.weight")).unwrap();
    let product = matmul(&b, &a)?.transpose(0, 1)?.contiguous()?;
    *weight = linear_combination(&[(1.0, weight), (0.75, &product)])?;
    let path = folder.path().join("model.safetensors");
    save(&path, &tensors.into_iter().collect::<Vec<_>>(), &BTreeMap::new())?;
    let ids = get(&golden::open("decoder/gpt2")?, "ids");
    let expected = open(folder.path())?.decoder().forward(&ids)?;
    assert_close("with an adapter", &adapted.decoder().forward(&ids)?, &expected, TOLERANCE);
    let without = load("gpt2", DType::F32, Keep::Frozen)?.forward(&ids)?;
    assert!(without.to_vec::<f32>()? != expected.to_vec::<f32>()?);
    Ok(())
}

#[test]
fn answers_end_by_end_stop_or_length() -> Result<()> {
    let folder = folder("qwen3");
    let model = open(folder.path())?;
    let prompt = model.tokenizer().encode_prompt("You may")?;
    let whole = answers(&model, &[request(prompt.clone())], 1, 100)?.remove(0);
    assert_eq!(whole.1.tokens.len(), 64);
    assert_eq!(whole.0, model.tokenizer().decode(&whole.1.tokens)?);
    // 1. a stop string that spans tokens
    let from = whole.0.char_indices().nth(20).unwrap().0;
    let stop: String = whole.0[from..].chars().take(4).collect();
    let stopping = TextRequest { stop: vec![stop.clone()], ..request(prompt.clone()) };
    let (text, answer) = answers(&model, &[stopping], 1, 100)?.remove(0);
    assert_eq!((&*text, answer.finish), (&whole.0[..whole.0.find(&stop).unwrap()], Finish::Stop));
    assert!(answer.tokens.len() < 64);
    // 2. the model's end, as generation_config.json has it
    let end = whole.1.tokens[9];
    let first = whole.1.tokens.iter().position(|&id| id == end).unwrap();
    let config = serde_json::json!({"eos_token_id": [end, 319]}).to_string();
    std::fs::write(folder.path().join("generation_config.json"), config).unwrap();
    let model = open(folder.path())?;
    assert!(model.ends().contains(&end) && model.ends().contains(&319));
    let ending = TextRequest { ignore_eos: false, ..request(prompt.clone()) };
    let (_, answer) = answers(&model, &[ending], 1, 100)?.remove(0);
    assert_eq!((answer.tokens, answer.finish), (whole.1.tokens[..=first].into(), Finish::End));
    // 3. the end of the context
    let long = TextRequest { max_new_tokens: 1000, ..request(vec![5; 120]) };
    let (_, answer) = answers(&model, &[long], 1, 128)?.remove(0);
    assert_eq!((answer.tokens.len(), answer.finish), (9, Finish::Length));
    Ok(())
}

#[test]
fn requests_that_are_not_possible_are_errors() -> Result<()> {
    let folder = folder("gpt2");
    let model = open(folder.path())?;
    let mut run = TextRun::new(&model, 1, 128)?;
    let mut wrong = |request: TextRequest, expected: &str| {
        let error = run.join(request).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    wrong(request(vec![]), "no token");
    wrong(request(vec![5; 129]), "prompt: 129 tokens is not possible: at most 128");
    wrong(TextRequest { max_new_tokens: 0, ..request(vec![5]) }, "max_new_tokens");
    let sampling = Sampling { temperature: f32::NAN, ..Sampling::greedy() };
    wrong(TextRequest { sampling, ..request(vec![5]) }, "temperature");
    wrong(request(vec![320]), "320");
    // None of them has taken the slot.
    run.join(request(vec![5; 127]))?;
    let error = run.join(request(vec![5])).unwrap_err().to_string();
    assert!(error.contains("at most 1 at a time"), "{error}");
    assert!(TextRun::new(&model, 0, 10).is_err() && TextRun::new(&model, 1, 129).is_err());
    Ok(())
}

#[test]
fn a_tokenizer_with_more_tokens_than_the_model_is_an_error() {
    let folder = folder("gpt2");
    let path = folder.path().join("tokenizer.json");
    let mut tokenizer: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let token = serde_json::json!({
        "id": 320, "content": "<|more|>", "special": true, "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false,
    });
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    let error = open(folder.path()).err().unwrap().to_string();
    for part in ["tokenizer.json", "at most 320", "found 321"] {
        assert!(error.contains(part), "{error}");
    }
}

/// Ids and prompts of conversations as transformers makes them.
#[test]
fn texts_and_conversations_are_read_as_by_transformers() -> Result<()> {
    let folder = golden::path("decoder/tokenizer");
    let golden: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("golden.json")).unwrap())
            .unwrap();
    let tokenizer = ByteLevel::open(&folder)?;
    for text in golden["texts"].as_array().unwrap() {
        let ids: Vec<u32> = serde_json::from_value(text["ids"].clone()).unwrap();
        let text = text["text"].as_str().unwrap();
        assert_eq!(tokenizer.encode_prompt(text)?, ids, "{text}");
    }
    let messages: Vec<Message> = serde_json::from_value(golden["messages"].clone()).unwrap();
    let chat = ChatTemplate::open(&folder)?.unwrap();
    assert_eq!(chat.prompt(&messages)?, golden["chat"].as_str().unwrap());
    let unknown = Message { role: "tool".into(), content: String::new() };
    let error = chat.prompt(&[unknown]).unwrap_err().to_string();
    assert!(error.contains("Unknown role: tool"), "{error}");
    Ok(())
}

/// `nadir lm` with these arguments, on the CPU.
fn nadir_lm(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nadir"));
    command.arg("lm").args(args).args(["--device", "cpu"]).output().unwrap()
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn the_command_line_answers_in_the_order_of_the_prompts() -> Result<()> {
    let folder = folder("llama3");
    let model = open(folder.path())?;
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let prompts = ["You may", "copies of the Work", "24 of them"];
    std::fs::write(at("prompts.jsonl"), "{\"prompt\": \"24 of them\"}\n\n").unwrap();
    let expected = |i: usize, seed| -> Result<(String, Answer)> {
        let prompt = model.tokenizer().encode_prompt(prompts[i])?;
        let sampling = Sampling { top_k: 40, ..Sampling::default() };
        let settings = TextRequest { sampling, seed, max_new_tokens: 20, ..request(prompt) };
        Ok(answers(&model, &[TextRequest { ignore_eos: false, ..settings }], 1, 128)?.remove(0))
    };
    let common = [
        "generate",
        prompts[0],
        prompts[1],
        "--prompts",
        &at("prompts.jsonl"),
        "-m",
        &at(""),
        "-n",
        "2",
        "--seed",
        "3",
        "--top-k",
        "40",
        "--max-new-tokens",
        "20",
    ];
    let run = |more: &[&str]| {
        let output = nadir_lm(&[&common[..], more].concat());
        assert!(output.status.success(), "{}", text_of(&output.stderr));
        output
    };
    let (mut lines, mut texts) = (Vec::new(), String::new());
    for (i, prompt) in prompts.iter().enumerate() {
        for seed in [3, 4] {
            let (text, answer) = expected(i, seed)?;
            texts += &format!("{text}\n");
            let finish = if answer.finish == Finish::End { "end" } else { "length" };
            lines.push(serde_json::json!({
                "prompt": prompt, "seed": seed, "text": text, "tokens": answer.tokens.len(),
                "finish": finish,
            }));
        }
    }
    let output = run(&["--batch", "4"]);
    assert_eq!(text_of(&output.stdout), texts);
    let about = text_of(&output.stderr);
    assert!(about.contains("tokens: of prompts") && about.contains("/s"), "{about}");
    let output = run(&["--json", "--quiet", "--batch", "3", "--threads", "1"]);
    assert_eq!(text_of(&output.stderr), "");
    let found = text_of(&output.stdout);
    let found = found.lines().map(|line| serde_json::from_str(line).unwrap());
    assert_eq!(found.collect::<Vec<serde_json::Value>>(), lines);
    // A conversation.
    let output = nadir_lm(&[
        "generate",
        "What?",
        "--chat",
        "--system",
        "Be brief.",
        "-m",
        &at(""),
        "--greedy",
        "-q",
        "--max-new-tokens",
        "9",
    ]);
    let prompt =
        "<|system|>\nBe brief.<|endoftext|>\n<|user|>\nWhat?<|endoftext|>\n<|assistant|>\n";
    let prompt = request(model.tokenizer().encode(prompt)?);
    let whole = TextRequest { max_new_tokens: 9, ignore_eos: false, ..prompt };
    let (text, _) = answers(&model, &[whole], 1, 128)?.remove(0);
    assert_eq!(text_of(&output.stdout), text + "\n", "{}", text_of(&output.stderr));
    Ok(())
}

#[test]
fn the_command_line_says_how_well_a_text_is_predicted() -> Result<()> {
    let folder = folder("phi");
    let model = open(folder.path())?;
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let text = std::fs::read_to_string(golden::root().join("LICENSE-MIT")).unwrap();
    std::fs::write(at("text.txt"), &text).unwrap();
    std::fs::write(at("text.jsonl"), "{\"text\": \"a b c\"}\n{\"text\": \"the Work\"}\n").unwrap();
    let value = |output: &Output| -> f64 {
        text_of(&output.stdout).trim().parse().unwrap_or_else(|_| panic!("{output:?}"))
    };
    let mut expected = Perplexity::default();
    let windows = Windows { context: Some(40), stride: Some(30) };
    let tokens = model.tokenizer().encode_prompt(&text)?;
    expected.add(model.decoder(), &tokens, windows, &mut |_| Ok(()))?;
    let found = nadir_lm(&[
        "perplexity",
        &at("text.txt"),
        "-m",
        &at(""),
        "--context",
        "40",
        "--stride",
        "30",
    ]);
    assert_eq!(value(&found), (expected.value() * 1e4).round() / 1e4);
    let mut expected = Perplexity::default();
    for text in ["a b c", "the Work"] {
        let tokens = [&[0][..], &model.tokenizer().encode(text)?, &[0]].concat();
        expected.add(model.decoder(), &tokens, Windows::default(), &mut |_| Ok(()))?;
    }
    let found = nadir_lm(&["perplexity", &at("text.jsonl"), "-m", &at(""), "--apart"]);
    assert_eq!(value(&found), (expected.value() * 1e4).round() / 1e4);
    Ok(())
}

#[test]
fn bad_input_ends_with_2_and_says_what_is_wrong() {
    let folder = folder("qwen2");
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let long = "Work ".repeat(400);
    std::fs::write(at("empty.txt"), "").unwrap();
    std::fs::write(at("bad.jsonl"), "{\"prompt\": \"a\"}\n{\"text\": 1}\n").unwrap();
    let model = at("");
    for (args, expected) in [
        (&["generate", "a", "--temperature", "nan"][..], "--temperature: NaN"),
        (&["generate", "a", "--top-p", "1.5"], "--top-p: 1.5 is not possible"),
        (&["generate", "a", "--min-p", "-1"], "--min-p"),
        (&["generate", "a", "--repetition-penalty", "0"], "--repetition-penalty"),
        (&["generate", "a", "--max-new-tokens", "0"], "--max-new-tokens: 0"),
        (&["generate", "a", "--batch", "0"], "--batch: 0"),
        (&["generate"], "no prompt"),
        (&["generate", &long], "at most 128, the model's context"),
        (&["generate", "--prompts", &at("bad.jsonl")], "line 2"),
        (&["generate", "--prompts", &at("none.txt")], "none.txt"),
        (&["perplexity", &at("empty.txt")], "two tokens or more"),
        (&["perplexity", &at("config.json"), "--context", "500"], "--context: 500"),
        (&["perplexity", &at("config.json"), "--stride", "0"], "--stride: 0"),
    ] {
        let output = nadir_lm(&[args, &["-m", &model]].concat());
        let error = text_of(&output.stderr);
        assert!(error.contains(expected), "{args:?}: {error}");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    }
    // A model of another kind, one that is not whole, and a name that is none.
    std::fs::write(at("config.json"), "{\"model_type\": \"mamba\"}").unwrap();
    let output = nadir_lm(&["generate", "a", "-m", &model]);
    let error = text_of(&output.stderr);
    let known = ["config.json", "model_type", "mamba", "GPT2LMHeadModel", "Qwen3ForCausalLM"];
    assert!(known.iter().all(|part| error.contains(part)), "{error}");
    assert_eq!(output.status.code(), Some(2), "{error}");
    std::fs::remove_file(at("tokenizer.json")).unwrap();
    for model in [&*model, "no/such/model"] {
        assert_eq!(nadir_lm(&["generate", "a", "-m", model]).status.code(), Some(2), "{model}");
    }
}

/// Logits within the tolerance, and the first tokens of answers that come and go.
#[test]
fn a_gpu_answers_as_the_cpu() -> Result<()> {
    let Some(device) = gpu::gpu() else { return Ok(()) };
    for name in FAMILIES {
        let (folder, golden) = (folder(name), golden::open(&format!("decoder/{name}"))?);
        let options = LanguageOptions { device, ..LanguageOptions::default() };
        let model = LanguageModel::open(folder.path(), &options)?;
        let of_cpu = open(folder.path())?;
        let (ids, logits) = (get(&golden, "ids"), get(&golden, "logits"));
        let ours = model.decoder().forward(&ids.to_device(device)?)?.to_device(Device::Cpu)?;
        assert_close(&format!("{name} on {device}"), &ours, &logits, TOLERANCE);
        let few = [7, 1, 4].map(|n| TextRequest {
            max_new_tokens: n,
            ..request((0..n).map(|i| 30 * i as u32 + 11).collect())
        });
        assert_eq!(answers(&model, &few, 2, 20)?, answers(&of_cpu, &few, 1, 20)?, "{name}");
    }
    Ok(())
}
