//! The networks against transformers and diffusers, on the small random configurations of `golden/models.py`.

mod golden;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use golden::drawn::{Drawn, component};
use golden::{assert_close, assert_same, get};
use nadir::Result;
use nadir::io::TensorSource;
use nadir::io::config::Config;
use nadir::io::folder::Weights;
use nadir::io::safetensors::{SafeTensors, save};
use nadir::models::clip::{ClipText, ClipTextConfig};
use nadir::models::unet::{Unet, UnetConfig};
use nadir::models::vae::{Vae, VaeConfig};
use nadir::nn::{Keep, Module, Params, parameters, save as save_module};
use nadir::ops::elementwise::{add, mul};
use nadir::ops::gradient::backward;
use nadir::ops::reduce::mean;
use nadir::pipeline::{LoadOptions, TextToImage};
use nadir::tensor::tape::no_grad;
use nadir::tensor::{DType, Device, Tensor};

/// Share of the largest activation by which two f32 implementations may differ: sums of a few hundred terms in
/// another order differ by some 1e-6 of their size, and a few dozen layers of random sign add up to less than
/// ten times that.
const TOLERANCE: f32 = 1e-5;

/// Loads a component of `golden/models/`, every weight used and none missing.
fn load<T>(
    folder: &Path,
    dtype: DType,
    build: impl FnOnce(&Config, &Params) -> Result<T>,
) -> Result<T> {
    let config = Config::open(folder.join("config.json"))?;
    let params = Params::new(Weights::open(folder, None)?, dtype, Device::Cpu);
    let model = build(&config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new(), "unused weights");
    Ok(model)
}

fn text_encoder(folder: &Path, dtype: DType) -> Result<ClipText> {
    load(folder, dtype, |config, p| ClipText::load(ClipTextConfig::read(config)?, p))
}

fn unet(folder: &Path, dtype: DType) -> Result<Unet> {
    load(folder, dtype, |config, p| Unet::load(UnetConfig::read(config)?, p))
}

fn vae(folder: &Path, dtype: DType) -> Result<Vae> {
    load(folder, dtype, |config, p| Vae::load(VaeConfig::read(config)?, p))
}

fn check_text_encoder(name: &str) -> Result<()> {
    let golden = golden::open(&format!("models/{name}"))?;
    let model = text_encoder(component(name).path(), DType::F32)?;
    for (clip_skip, output) in
        ["last_hidden_state", "clip_skip_1", "clip_skip_2"].into_iter().enumerate()
    {
        let states = model.forward(&get(&golden, "ids"), clip_skip)?;
        assert_close(output, &states, &get(&golden, output), TOLERANCE);
    }
    Ok(())
}

#[test]
fn clip_l_is_transformers() -> Result<()> {
    check_text_encoder("clip_l")
}

#[test]
fn openclip_is_transformers() -> Result<()> {
    check_text_encoder("openclip")
}

/// The prediction for batch `index` of a golden file, and for each of its images alone.
fn predict(model: &Unet, golden: &SafeTensors, index: usize) -> Result<(Tensor, Vec<Tensor>)> {
    let [sample, text, timesteps] =
        ["sample", "text", "timesteps"].map(|name| get(golden, &format!("{index}.{name}")));
    let temb = model.embed_timesteps(timesteps.as_slice()?)?;
    let together = model.forward(&sample, &temb, &model.context(&text)?)?;
    let alone = (0..sample.dim(0)).map(|i| {
        let context = model.context(&text.narrow(0, i, 1)?)?;
        model.forward(&sample.narrow(0, i, 1)?, &temb.narrow(0, i, 1)?, &context)
    });
    Ok((together, alone.collect::<Result<_>>()?))
}

fn check_unet(name: &str, batches: usize) -> Result<()> {
    let golden = golden::open(&format!("models/{name}"))?;
    let model = unet(component(name).path(), DType::F32)?;
    for index in 0..batches {
        let timesteps = get(&golden, &format!("{index}.timesteps"));
        let theirs = get(&golden, &format!("{index}.time_embedding"));
        assert_close(
            "time_embedding",
            &model.time_embedding(timesteps.as_slice()?)?,
            &theirs,
            TOLERANCE,
        );
        let (together, alone) = predict(&model, &golden, index)?;
        assert_close(
            &format!("{name} {index}"),
            &together,
            &get(&golden, &format!("{index}.out")),
            TOLERANCE,
        );
        for (i, alone) in alone.iter().enumerate() {
            assert_same(&format!("{name} {index} image {i}"), &together.narrow(0, i, 1)?, alone);
        }
    }
    Ok(())
}

#[test]
fn unet_of_sd_1_is_diffusers() -> Result<()> {
    check_unet("unet_sd15", 3)
}

#[test]
fn unet_of_sd_2_is_diffusers() -> Result<()> {
    check_unet("unet_sd21", 3)
}

#[test]
fn unet_that_inpaints_is_diffusers() -> Result<()> {
    check_unet("unet_inpaint", 2)
}

fn check_vae(name: &str, images: usize, latents: usize) -> Result<()> {
    let golden = golden::open(&format!("models/{name}"))?;
    let model = vae(component(name).path(), DType::F32)?;
    for i in 0..images {
        let posterior = model.encode(&get(&golden, &format!("encode.{i}.image")))?;
        assert_close(
            "mean",
            &posterior.mean,
            &get(&golden, &format!("encode.{i}.mean")),
            TOLERANCE,
        );
        assert_close(
            "logvar",
            &posterior.logvar,
            &get(&golden, &format!("encode.{i}.logvar")),
            TOLERANCE,
        );
    }
    for i in 0..latents {
        let image = model.decode(&get(&golden, &format!("decode.{i}.latent")))?;
        assert_close("image", &image, &get(&golden, &format!("decode.{i}.image")), TOLERANCE);
    }
    let tiled = model.decode_tiled(&get(&golden, "tiled.latent"), &mut || Ok(()))?;
    assert_close("tiled image", &tiled, &get(&golden, "tiled.image"), TOLERANCE);
    Ok(())
}

#[test]
fn autoencoder_is_diffusers() -> Result<()> {
    check_vae("vae", 2, 2)
}

#[test]
fn autoencoder_without_attention_is_diffusers() -> Result<()> {
    check_vae("vae_plain", 1, 1)
}

/// A component's weights as a file written anew: (dtype, shape, bytes) by name.
fn contents(file: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let describe = |(name, t): (String, safetensors::tensor::TensorView)| {
        (name, (format!("{:?}", t.dtype()), t.shape().to_vec(), t.data().to_vec()))
    };
    tensors.tensors().into_iter().map(describe).collect()
}

/// What is written under `name` holds the names, dtypes, shapes and bytes that were read.
fn check_saved<M: Module>(
    name: &str,
    file: &str,
    build: impl Fn(&Config, &Params) -> Result<M>,
) -> Result<()> {
    let folder = component(name);
    let theirs = contents(&folder.path().join(file));
    let config = Config::open(folder.path().join("config.json"))?;
    let to = tempfile::tempdir().unwrap();
    for keep in [Keep::Frozen, Keep::Plain, Keep::Trainable] {
        let params = Params::new(Weights::open(&folder, None)?, DType::F32, Device::Cpu);
        let model = build(&config, &params.keeping(keep))?;
        // The files are f16, which f32 holds exactly.
        let dtype = (keep != Keep::Frozen).then_some(DType::F16);
        let path = to.path().join(format!("{keep:?}.safetensors"));
        save_module(&model, &Weights::open(&folder, None)?, &path, dtype)?;
        let ours = contents(&path);
        let names = |c: &BTreeMap<String, _>| c.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}, {keep:?}");
        for (tensor, ours) in &ours {
            assert!(*ours == theirs[tensor], "{name}, {keep:?}: {tensor}");
        }
    }
    Ok(())
}

#[test]
fn a_saved_component_is_the_file_that_was_read() -> Result<()> {
    let unet = |c: &Config, p: &Params| Unet::load(UnetConfig::read(c)?, p);
    let vae = |c: &Config, p: &Params| Vae::load(VaeConfig::read(c)?, p);
    let text = |c: &Config, p: &Params| ClipText::load(ClipTextConfig::read(c)?, p);
    for name in ["unet_sd15", "unet_sd21", "unet_inpaint"] {
        check_saved(name, "diffusion_pytorch_model.safetensors", unet)?;
    }
    for name in ["vae", "vae_plain"] {
        check_saved(name, "diffusion_pytorch_model.safetensors", vae)?;
    }
    for name in ["clip_l", "openclip"] {
        check_saved(name, "model.safetensors", text)?;
    }
    Ok(())
}

#[test]
fn a_saved_pipeline_is_the_folder_that_was_read() -> Result<()> {
    fn files(folder: &Path, below: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in std::fs::read_dir(folder.join(below)).unwrap() {
            let entry = entry.unwrap();
            let path = below.join(entry.file_name());
            if entry.file_type().unwrap().is_dir() {
                files(folder, &path, found);
            } else {
                found.insert(path.clone(), std::fs::read(folder.join(path)).unwrap());
            }
        }
    }
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
    let model = TextToImage::load(&from, &LoadOptions::default())?;
    let scratch = tempfile::tempdir().unwrap();
    let to = scratch.path().join("copy");
    model.save(&from, None, &to, None)?;
    let (mut theirs, mut ours) = (BTreeMap::new(), BTreeMap::new());
    files(&from, Path::new(""), &mut theirs);
    files(&to, Path::new(""), &mut ours);
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    for (path, bytes) in &theirs {
        if path.extension().is_some_and(|e| e == "safetensors") {
            // The order of tensors in the file is the writer's.
            assert!(contents(&to.join(path)) == contents(&from.join(path)), "{}", path.display());
        } else {
            assert!(ours[path] == *bytes, "{}", path.display());
        }
    }
    // Nothing is overwritten, and nothing is left beside it.
    let refused = model.save(&from, None, &to, None).unwrap_err().to_string();
    assert!(refused.contains("not there yet"), "{refused}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    Ok(())
}

#[test]
fn changed_weights_are_saved_and_used() -> Result<()> {
    let folder = component("unet_sd15");
    let config = UnetConfig::read(&Config::open(folder.path().join("config.json"))?)?;
    let params = Params::new(Weights::open(&folder, None)?, DType::F32, Device::Cpu);
    let golden = golden::open("models/unet_sd15")?;
    let frozen = Unet::load(config.clone(), &params)?;
    let model = Unet::load(config.clone(), &params.keeping(Keep::Trainable))?;
    // The plain weights give what the frozen give, and after a change something else.
    let (before, _) = predict(&model, &golden, 0)?;
    assert_same("plain", &before.detach(), &predict(&frozen, &golden, 0)?.0);
    for (name, parameter) in parameters(&model) {
        assert!(parameter.is_trainable(), "{name}");
        let tensor = parameter.tensor().unwrap();
        parameter.set(&nadir::ops::elementwise::scale(&tensor.detach(), 1.25)?)?;
        assert!(parameter.is_trainable(), "{name}");
    }
    let (after, _) = predict(&model, &golden, 0)?;
    assert!(after.to_vec::<f32>()? != before.to_vec::<f32>()?);
    // Saved and loaded again they give the same.
    let saved = tempfile::tempdir().unwrap();
    let file = saved.path().join("diffusion_pytorch_model.safetensors");
    save_module(&model, &Weights::open(&folder, None)?, &file, None)?;
    let params = Params::new(Weights::open(saved.path(), None)?, DType::F32, Device::Cpu);
    let again = Unet::load(config, &params)?;
    assert_eq!(params.finish()?, Vec::<String>::new());
    assert_same("loaded again", &predict(&again, &golden, 0)?.0, &after.detach());
    // A frozen weight cannot be changed.
    let (name, parameter) = parameters(&frozen).remove(0);
    let refused = parameter.set(&Tensor::zeros(parameter.shape(), DType::F32, Device::Cpu)?);
    assert!(matches!(refused, Err(nadir::Error::Value { .. })), "{name}");
    Ok(())
}

/// Copies a component into `to` as an older library would have written it.
fn rewrite(
    from: &Path,
    file: &str,
    to: &Path,
    old: impl Fn(&str, Tensor) -> (String, Tensor),
) -> Result<()> {
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    let source = SafeTensors::open(from.join(file))?;
    let mut tensors = Vec::new();
    for name in source.names() {
        tensors.push(old(&name, source.read(&name)?));
    }
    if file == "model.safetensors" {
        let positions: Vec<i64> = (0..77).collect();
        tensors.push((
            "text_model.embeddings.position_ids".into(),
            Tensor::from_vec(positions, [1, 77])?,
        ));
    }
    save(&to.join(file), &tensors, &BTreeMap::new())
}

#[test]
fn names_of_transformers_4_give_the_same_text_encoder() -> Result<()> {
    let (folder, old) = (component("clip_l"), tempfile::tempdir().unwrap());
    rewrite(folder.path(), "model.safetensors", old.path(), |name, tensor| {
        (format!("text_model.{name}"), tensor)
    })?;
    let ids = get(&golden::open("models/clip_l")?, "ids");
    let (ours, theirs) = (
        text_encoder(old.path(), DType::F32)?.forward(&ids, 0)?,
        text_encoder(folder.path(), DType::F32)?.forward(&ids, 0)?,
    );
    assert_same("hidden states", &ours, &theirs);
    Ok(())
}

#[test]
fn names_of_old_diffusers_give_the_same_autoencoder() -> Result<()> {
    let folder = component("vae");
    let latent = get(&golden::open("models/vae")?, "decode.1.latent");
    let theirs = vae(folder.path(), DType::F32)?.decode(&latent)?;
    // The oldest files hold the projections as 1x1 convolutions.
    for pointwise in [false, true] {
        let old = tempfile::tempdir().unwrap();
        rewrite(
            folder.path(),
            "diffusion_pytorch_model.safetensors",
            old.path(),
            |name, tensor| {
                let names = [
                    ("to_q", "query"),
                    ("to_k", "key"),
                    ("to_v", "value"),
                    ("to_out.0", "proj_attn"),
                ];
                let (new, old) = names
                    .into_iter()
                    .find(|(new, _)| name.contains(&format!("{new}.")))
                    .unwrap_or_default();
                let is_matrix = !new.is_empty() && tensor.rank() == 2;
                let dims = [tensor.dims(), &[1, 1]].concat();
                let tensor =
                    if pointwise && is_matrix { tensor.reshape(&dims).unwrap() } else { tensor };
                (if new.is_empty() { name.to_owned() } else { name.replace(new, old) }, tensor)
            },
        )?;
        assert_same("image", &vae(old.path(), DType::F32)?.decode(&latent)?, &theirs);
    }
    Ok(())
}

/// The reference that gradients are checked against is held to the same tensors.
#[test]
fn the_networks_compute_in_f64_too() -> Result<()> {
    let f64_of = |golden: &SafeTensors, name: &str| get(golden, name).to_dtype(DType::F64);

    let golden = golden::open("models/clip_l")?;
    let model = text_encoder(component("clip_l").path(), DType::F64)?;
    let states = model.forward(&get(&golden, "ids"), 0)?;
    assert_close("hidden states", &states, &get(&golden, "last_hidden_state"), TOLERANCE);

    let golden = golden::open("models/unet_sd15")?;
    let model = unet(component("unet_sd15").path(), DType::F64)?;
    let temb = model.embed_timesteps(get(&golden, "0.timesteps").as_slice()?)?;
    let context = model.context(&f64_of(&golden, "0.text")?)?;
    let noise = model.forward(&f64_of(&golden, "0.sample")?, &temb, &context)?;
    assert_close("noise", &noise, &get(&golden, "0.out"), TOLERANCE);

    let golden = golden::open("models/vae")?;
    let model = vae(component("vae").path(), DType::F64)?;
    let image = model.decode(&f64_of(&golden, "decode.0.latent")?)?;
    assert_close("image", &image, &get(&golden, "decode.0.image"), TOLERANCE);
    Ok(())
}

/// The mean of the squares of all elements, as a tensor of one.
fn mean_square(x: &Tensor) -> Result<Tensor> {
    mean(&mul(x, x)?, &(0..x.rank()).collect::<Vec<_>>())
}

/// Every weight of `model` gets a finite gradient of `loss` that is not zero, but for the `zero` ones.
fn check_gradients(model: &dyn Module, loss: Tensor, zero: impl Fn(&str) -> bool) -> Result<()> {
    let gradients = backward(loss)?;
    for (name, parameter) in parameters(model) {
        let variable = parameter.tensor().unwrap();
        let gradient = gradients.get(&variable).unwrap_or_else(|| panic!("{name}: no gradient"));
        assert_eq!(
            (gradient.dims(), gradient.dtype()),
            (variable.dims(), variable.dtype()),
            "{name}"
        );
        let values = gradient.to_vec::<f32>()?;
        assert!(values.iter().all(|g| g.is_finite()), "{name}: not finite");
        let largest = values.iter().fold(0f32, |m, g| m.max(g.abs()));
        if zero(&name) {
            // What is left are rounding errors of sums that cancel.
            assert!(largest < 1e-6, "{name}: {largest} instead of zero");
        } else {
            assert!(largest > 0.0, "{name}: all zero");
        }
    }
    Ok(())
}

fn trainable(name: &str, dtype: DType) -> Result<(Config, Params)> {
    let folder = format!("models/{name}");
    let params = Params::new(Drawn::by_inputs(&folder), dtype, Device::Cpu);
    let config = Config::open(golden::path(&folder).join("config.json"))?;
    Ok((config, params.keeping(Keep::Trainable)))
}

#[test]
fn every_weight_gets_a_gradient() -> Result<()> {
    for name in ["unet_sd15", "unet_sd21"] {
        let (config, params) = trainable(name, DType::F32)?;
        let model = Unet::load(UnetConfig::read(&config)?, &params)?;
        let (noise, _) = predict(&model, &golden::open(&format!("models/{name}"))?, 0)?;
        check_gradients(&model, mean_square(&noise)?, |_| false)?;
    }

    let (config, params) = trainable("vae", DType::F32)?;
    let model = Vae::load(VaeConfig::read(&config)?, &params)?;
    let golden = golden::open("models/vae")?;
    let posterior = model.encode(&get(&golden, "encode.0.image"))?;
    let image = model.decode(&posterior.mean)?;
    let loss = add(&mean_square(&image)?, &mean_square(&posterior.logvar)?)?;
    // A key's bias adds the same to all scores of a query, which softmax does not see.
    check_gradients(&model, loss, |name| name.ends_with("to_k.bias"))?;

    let (config, params) = trainable("clip_l", DType::F32)?;
    let model = ClipText::load(ClipTextConfig::read(&config)?, &params)?;
    let golden = golden::open("models/clip_l")?;
    let states = model.forward(&get(&golden, "ids"), 0)?;
    let weights = get(&golden, "clip_skip_1");
    // The norm at the end makes the mean square of every token nearly the same: weigh the states.
    check_gradients(&model, mean_square(&mul(&states, &weights)?)?, |name| {
        name.ends_with("k_proj.bias")
    })?;
    Ok(())
}

#[test]
fn gradients_of_the_unet_are_those_of_differences() -> Result<()> {
    let golden = golden::open("models/unet_sd15")?;
    let (config, params) = trainable("unet_sd15", DType::F64)?;
    let model = Unet::load(UnetConfig::read(&config)?, &params)?;
    let f64_of = |name: &str| get(&golden, name).to_dtype(DType::F64);
    let (sample, text) = (f64_of("0.sample")?, f64_of("0.text")?);
    let timesteps = get(&golden, "0.timesteps");
    let loss = || {
        let temb = model.embed_timesteps(timesteps.as_slice()?)?;
        mean_square(&model.forward(&sample, &temb, &model.context(&text)?)?)
    };
    let gradients = backward(loss()?)?;
    let all = parameters(&model);
    // A prime step visits layers of every kind.
    for (name, parameter) in all.iter().step_by(7) {
        let variable = parameter.tensor().unwrap();
        let gradient = gradients.get(&variable).unwrap().to_vec::<f64>()?;
        let at = gradient.len() / 2;
        let moved = |by: f64| -> Result<f64> {
            let mut values = variable.to_vec::<f64>()?;
            values[at] += by;
            parameter.set(&Tensor::from_vec(values, variable.shape())?)?;
            let loss = no_grad(loss)?.to_vec::<f64>()?[0];
            parameter.set(&variable.detach())?;
            Ok(loss)
        };
        let h = 1e-4;
        let (near, far) = (moved(h)? - moved(-h)?, moved(2.0 * h)? - moved(-2.0 * h)?);
        let difference = (8.0 * near - far) / (12.0 * h);
        let mean = gradient.iter().map(|g| g.abs()).sum::<f64>() / gradient.len() as f64;
        let error = (gradient[at] - difference).abs();
        // The loss is about 1 and rounded to 1e-16: a difference is exact to some 1e-12.
        assert!(
            error <= 1e-6 * (difference.abs() + mean) + 1e-11,
            "{name}: {} {difference}",
            gradient[at]
        );
    }
    Ok(())
}
