//! Low-rank adapters, in every convention of their files, against diffusers and peft.

#[path = "golden/mod.rs"]
mod golden;

use std::path::{Path, PathBuf};

use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::models::unet::{Unet, UnetConfig};
use nadir::nn::Params;
use nadir::nn::lora::{Adapter, Adapters};
use nadir::tensor::{DType, Device, Tensor};

fn file(name: &str) -> PathBuf {
    golden::path("lora").join(name)
}

fn adapter(name: &str, weight: f32) -> Adapter {
    Adapter { path: file(name), weight }
}

fn weights(name: &str) -> Weights {
    Weights::open(golden::path("models").join(name), None).unwrap()
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
