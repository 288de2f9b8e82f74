//! Causal language models against transformers, on the small random configurations of `golden/decoder.py`.

mod golden;

use std::collections::BTreeMap;

use golden::{assert_close, assert_same, get};
use nadir::Result;
use nadir::io::config::Config;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::io::{TensorInfo, TensorSource};
use nadir::models::decoder::{Decoder, DecoderConfig};
use nadir::nn::{Keep, Params, parameters};
use nadir::noise::Mt19937;
use nadir::ops::gradient::backward;
use nadir::ops::reduce::mean;
use nadir::tensor::tape::no_grad;
use nadir::tensor::{DType, Device, Tensor};

/// Logits of transformers and ours: sums of less than a hundred terms in another order, through three blocks.
const TOLERANCE: f32 = 1e-5;

const FAMILIES: [&str; 3] = ["gpt2", "phi", "llama2"];

/// The weights that `draw` of `golden/decoder.py` makes.
struct Drawn(BTreeMap<String, Vec<usize>>);

impl Drawn {
    fn of(name: &str) -> Self {
        let path = golden::path(&format!("decoder/{name}/weights.json"));
        Self(serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap())
    }
}

impl TensorSource for Drawn {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        Some(TensorInfo { shape: self.0.get(name)?.clone(), dtype: DType::F32 })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let shape = &self.0[name];
        let mut generator = Mt19937::new(u64::from(crc32fast::hash(name.as_bytes())));
        let values = (0..shape.iter().product()).map(|_| {
            let uniform = f64::from(generator.next_u32() % (1 << 24)) / f64::from(1 << 23) - 1.0;
            let value = match (shape.len(), name.ends_with("weight")) {
                (1, true) => 1.0 + 0.3 * uniform,
                (1, false) => 0.2 * uniform,
                _ => 0.3 * uniform,
            };
            value as f32
        });
        Tensor::from_vec(values.collect(), &shape[..])
    }

    fn origin(&self, _: &str) -> String {
        "drawn".into()
    }
}

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
    let whole = load(name, DType::F64, Keep::Frozen)?.forward(&ids)?;
    assert_close(&format!("{name} in f64"), &whole, &theirs, TOLERANCE);
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
