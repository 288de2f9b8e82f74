//! Models between the two ways of keeping them: a folder of diffusers, and an original checkpoint, which is one file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::io::checkpoint::names::{Blocks, Cut, Names};
use crate::io::checkpoint::{self, Kind, Layout, PREDICTION, Prediction, Supplement};
use crate::io::config::{Config, parse};
use crate::io::folder::{PipelineFolder, Weights};
use crate::io::{TensorInfo, TensorSource, atomic, safetensors};
use crate::models::clip::{ClipTextConfig, ClipTextProjectedConfig};
use crate::models::unet::{ControlNetConfig, UnetConfig};
use crate::models::vae::VaeConfig;
use crate::ops::layout::concat;
use crate::ops::matmul::Activation;
use crate::pipeline::family::Family;
use crate::pipeline::load::{open_controlnet_folder, sinusoids};
use crate::tensor::Tensor;
use crate::text::tokenizer::ClipTokenizer;

/// Writes the original checkpoint `from` as the diffusers folder `to`, which must not be there yet: complete, or not at all.
/// Tensors keep their bits.
///
/// # Errors
/// `from` is no checkpoint that nadir knows; `to` is there; a file cannot be read or written.
pub fn to_folder(from: &Path, supplement: &Supplement, to: &Path) -> Result<()> {
    let from = PipelineFolder::open_with(from, None, supplement)?;
    let parts = |names: &[&'static str]| {
        let has = |name: &&str| from.component(name).is_ok_and(|class| class.is_some());
        names.iter().copied().filter(has).collect::<Vec<_>>()
    };
    let open = |name: &'static str| {
        let tokenizer = ClipTokenizer::open_padding(from.folder(name)?, from.padding(name))?;
        Ok((name, tokenizer))
    };
    let tokenizers = parts(&["tokenizer", "tokenizer_2"]);
    let tokenizers = tokenizers.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    atomic::create_folder(to, |scratch| {
        write_json(&scratch.join("model_index.json"), &from.index().to_value())?;
        for part in parts(&["scheduler", "text_encoder", "text_encoder_2", "unet", "vae"]) {
            let (config, weights) = match part {
                "scheduler" => ("scheduler_config.json", None),
                // Published folders have these names, and transformers of every version reads them.
                "unet" | "vae" => {
                    ("config.json", Some(("diffusion_pytorch_model.safetensors", "")))
                }
                _ => ("config.json", Some(("model.safetensors", "text_model."))),
            };
            let folder = scratch.join(part);
            make(&folder)?;
            let (path, text) = from.config_text(part)?;
            write_json(&folder.join(config), &parse(&path, &text)?)?;
            if let Some((file, root)) = weights {
                write_weights(&folder.join(file), &from.weights(part)?, root)?;
            }
        }
        for (name, tokenizer) in &tokenizers {
            make(&scratch.join(name))?;
            tokenizer.save(&scratch.join(name))?;
        }
        if from.component("controlnet")?.is_some() {
            let folder = scratch.join("controlnet");
            make(&folder)?;
            write_controlnet(from.root(), sinusoids(&from)?, &folder)?;
        }
        Ok(())
    })
}

/// Writes the ControlNet in the original file `from` as the diffusers folder `to`, as [`to_folder`] does.
///
/// # Errors
/// As [`to_folder`].
pub fn controlnet_to_folder(from: &Path, to: &Path) -> Result<()> {
    atomic::create_folder(to, |scratch| write_controlnet(from, None, scratch))
}

/// Writes the ControlNet in an original file into a folder that is there.
fn write_controlnet(from: &Path, sinusoids: Option<usize>, folder: &Path) -> Result<()> {
    let (config, weights) = checkpoint::open_controlnet(from, sinusoids)?;
    write_json(&folder.join("config.json"), &config.to_value())?;
    write_weights(&folder.join("diffusion_pytorch_model.safetensors"), &weights, "")
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir(folder).map_err(|e| Error::io(folder, e))
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    let text = format!("{value:#}\n");
    atomic::write(path, |out| out.write_all(text.as_bytes()))
}

/// `root` stands before all names but that of a projection, which is beside what it projects.
fn write_weights(path: &Path, weights: &Weights, root: &str) -> Result<()> {
    let root_of = |name: &str| if name.starts_with("text_projection.") { "" } else { root };
    let named = |name: String| Some((format!("{}{name}", root_of(&name)), weights.info(&name)?));
    let tensors = weights.names().into_iter().filter_map(named).collect();
    safetensors::write(path, tensors, &format_of_torch(), |name| {
        weights.read(name.strip_prefix(root).unwrap_or(name))
    })
}

/// Without it older releases of transformers refuse a file.
fn format_of_torch() -> BTreeMap<String, String> {
    BTreeMap::from([("format".to_owned(), "pt".to_owned())])
}

/// Writes the diffusers folder `from` as the original checkpoint `to`, which is replaced where it is there: complete, or not
/// at all. Tensors keep their bits; tokenizer and sampler are left out, since such a file has no place for them.
///
/// # Errors
/// A reader of the file would see another model than the folder's, since its shapes do not tell what the folder's
/// configurations say; a file cannot be read or written.
pub fn to_file(from: &Path, variant: Option<&str>, to: &Path) -> Result<()> {
    let from = PipelineFolder::open(from, variant)?;
    for (name, default, expected) in
        [("requires_aesthetics_score", false, false), ("force_zeros_for_empty_prompt", true, true)]
    {
        if from.index().bool(name, default)? != expected {
            let expected = format!("{expected}, as original checkpoints are read: keep the folder");
            return Err(from.index().wrong(name, &expected));
        }
    }
    let original = Original::of(&from)?;
    let layout = Layout::of(&original, to)?;
    let read = |name: &str, value: &Value| {
        Config::from_value(format!("{}: {name}", to.display()), value.clone())
    };
    let root = from.root();
    compare(
        (root, "unet"),
        &UnetConfig { sample_size: None, ..UnetConfig::read(&from.config("unet")?)? },
        &UnetConfig::read(&read("unet", &layout.unet.config)?)?,
    )?;
    compare(
        (root, "vae"),
        &VaeConfig {
            sample_size: 32,
            force_upcast: true,
            ..VaeConfig::read(&from.config("vae")?)?
        },
        &VaeConfig::read(&read("vae", &layout.vae.config)?)?,
    )?;
    compare(
        (root, "text_encoder"),
        &ClipTextConfig::read(&from.config("text_encoder")?)?,
        &ClipTextConfig::read(&read("text_encoder", &layout.text_encoder.config)?)?,
    )?;
    if let Some(second) = &layout.text_encoder_2 {
        let folder = ClipTextProjectedConfig::read(&from.config("text_encoder_2")?)?;
        // Files have 2 for the largest id, which the end token is.
        let ends = folder.eos_token_id + 1 == folder.text.vocab_size as i64;
        let eos_token_id = if ends { 2 } else { folder.eos_token_id };
        compare(
            (root, "text_encoder_2"),
            &ClipTextProjectedConfig { eos_token_id, ..folder },
            &ClipTextProjectedConfig::read(&read("text_encoder_2", &second.config)?)?,
        )?;
    }
    let prediction = check_schedule(&from)?;

    let architecture = match (layout.kind, prediction) {
        (Kind::V1, _) => "stable-diffusion-v1",
        (Kind::V2, Prediction::Epsilon) => "stable-diffusion-v2-512",
        (Kind::V2, Prediction::V) => "stable-diffusion-v2-768-v",
        (Kind::Xl, _) => "stable-diffusion-xl-v1-base",
    };
    let mut metadata = format_of_torch();
    metadata.insert("modelspec.architecture".to_owned(), architecture.to_owned());
    metadata.insert(PREDICTION.to_owned(), prediction.to_string());
    original.write(to, &metadata)
}

/// Writes the ControlNet in the diffusers folder `from` as the original file `to`, as [`to_file`] does.
///
/// # Errors
/// As [`to_file`].
pub fn controlnet_to_file(from: &Path, variant: Option<&str>, to: &Path) -> Result<()> {
    let mut original = Original::default();
    original.add_controlnet(from, variant, to)?;
    original.write(to, &format_of_torch())
}

/// Refuses a folder whose schedule of noise is another than a file is read with; what its UNet predicts.
fn check_schedule(from: &PipelineFolder) -> Result<Prediction> {
    let config = from.config("scheduler")?;
    let plain: [(&str, Value, Value); 6] = [
        ("num_train_timesteps", 1000.into(), 1000.into()),
        ("beta_schedule", "linear".into(), "scaled_linear".into()),
        ("beta_start", 0.0001.into(), 0.00085.into()),
        ("beta_end", 0.02.into(), 0.012.into()),
        ("rescale_betas_zero_snr", false.into(), false.into()),
        ("trained_betas", Value::Null, Value::Null),
    ];
    for (name, default, expected) in plain {
        if config.value(name).unwrap_or(&default) != &expected {
            let expected = format!("{expected}, which an original checkpoint is read with");
            return Err(config.wrong(name, &expected));
        }
    }
    let choices = [("epsilon", Prediction::Epsilon), ("v_prediction", Prediction::V)];
    config.choice("prediction_type", "epsilon", &choices)
}

/// Refuses a configuration that is not the one which a reader of the file makes of its shapes.
fn compare<T: std::fmt::Debug>(at: (&Path, &str), folder: &T, file: &T) -> Result<()> {
    let (folder, file) = (fields(folder), fields(file));
    match folder.iter().zip(&file).find(|(folder, file)| folder != file) {
        None => Ok(()),
        Some(((name, value), (_, read))) => {
            let path = at.0.join(at.1).join("config.json");
            let expected = format!("{read}, as original checkpoints of this kind are read");
            let advice = "Such a file has no place for it: keep the folder.";
            Err(Error::file(path, name.clone(), expected, value.clone(), advice))
        }
    }
}

/// The fields of a structure, as text.
fn fields(structure: &impl std::fmt::Debug) -> Vec<(String, String)> {
    let text = format!("{structure:#?}");
    let mut fields: Vec<(String, String)> = Vec::new();
    for line in text.lines().skip(1) {
        let begun =
            line.strip_prefix("    ").filter(|rest| !rest.starts_with([' ', '}', ']', ')']));
        match (begun.and_then(|rest| rest.split_once(": ")), fields.last_mut()) {
            (Some((name, value)), _) => fields.push((name.to_owned(), value.to_owned())),
            (None, Some((_, value))) => value.push_str(line.trim()),
            (None, None) => {}
        }
    }
    fields.iter_mut().for_each(|(_, value)| *value = value.trim_end_matches(['}', ',']).to_owned());
    fields
}

/// The tensors of a folder as an original checkpoint has them.
#[derive(Default)]
struct Original {
    weights: BTreeMap<&'static str, Weights>,
    tensors: BTreeMap<String, Part>,
}

/// A tensor of a checkpoint.
struct Part {
    network: &'static str,
    /// Its tensors in the folder: one, or the three that it is of.
    names: Vec<String>,
    /// Whether it is the transpose of its tensor in the folder.
    turned: bool,
    info: TensorInfo,
}

impl Original {
    fn of(folder: &PipelineFolder) -> Result<Self> {
        let unet = UnetConfig::read(&folder.config("unet")?)?;
        let layers = unet.layers_per_block.first().copied().unwrap_or_default();
        if unet.layers_per_block.iter().any(|&other| other != layers) {
            return Err(folder
                .config("unet")?
                .wrong("layers_per_block", "the same for all levels"));
        }
        let blocks = Blocks {
            levels: unet.block_out_channels.len(),
            layers,
            up_attention: unet.up_attention.clone(),
        };
        let vae = VaeConfig::read(&folder.config("vae")?)?;
        let text = ClipTextConfig::read(&folder.config("text_encoder")?)?;
        let (kind, layers) = match Family::of(&folder.class()?) {
            Family::Xl => {
                let second = ClipTextProjectedConfig::read(&folder.config("text_encoder_2")?)?;
                (Kind::Xl, second.text.num_hidden_layers)
            }
            _ if matches!(text.hidden_act, Activation::QuickGelu) => {
                (Kind::V1, text.num_hidden_layers)
            }
            _ => (Kind::V2, text.num_hidden_layers),
        };
        let vae = (vae.block_out_channels.len(), vae.layers_per_block);
        let mut original = Self::default();
        for (network, names) in checkpoint::names_of(kind, &blocks, vae, layers) {
            original.add(network, folder.weights(network)?, &names)?;
        }
        match folder.component("controlnet")?.as_deref() {
            None => {}
            Some("ControlNetModel") => {
                let (from, to) = (folder.folder("controlnet")?, folder.root());
                original.add_controlnet(&from, folder.variant(), to)?;
            }
            Some(class) => {
                let advice = "Such a file has a place for one: keep the folder.";
                let root = folder.root();
                return Err(Error::file(root, "controlnet", "one ControlNet", class, advice));
            }
        }
        Ok(original)
    }

    /// The ControlNet in the folder `from`, which a reader of `to` would see as it is.
    fn add_controlnet(&mut self, from: &Path, variant: Option<&str>, to: &Path) -> Result<()> {
        let (config, weights) = open_controlnet_folder(from, variant)?;
        let shape = ControlNetConfig::read(&config)?;
        let layers = shape.unet.layers_per_block.first().copied().unwrap_or_default();
        if shape.unet.layers_per_block.iter().any(|&other| other != layers) {
            return Err(config.wrong("layers_per_block", "the same for all levels"));
        }
        let levels = shape.unet.block_out_channels.len();
        let blocks = Blocks { levels, layers, up_attention: Vec::new() };
        // Two convolutions between one width and the next.
        let hints = 2 * shape.conditioning_widths.len().saturating_sub(1);
        self.add("controlnet", weights, &checkpoint::names_of_controlnet(&blocks, hints))?;
        let sinusoids = shape.unet.vector.text_time.map(|told| told.sinusoids);
        let read = checkpoint::controlnet(self, to, sinusoids)?.config;
        let read = Config::from_value(format!("{}: a ControlNet", to.display()), read)?;
        let read = ControlNetConfig::read(&read)?;
        let unet =
            |shape: &ControlNetConfig| UnetConfig { sample_size: None, ..shape.unet.clone() };
        compare((from, ""), &unet(&shape), &unet(&read))?;
        compare((from, ""), &shape, &ControlNetConfig { unet: shape.unet.clone(), ..read })
    }

    /// Writes them all.
    fn write(&self, to: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let info = |name: String| self.info(&name).map(|info| (name, info));
        let tensors = self.names().into_iter().filter_map(info).collect();
        safetensors::write(to, tensors, metadata, |name| self.read(name))
    }

    fn add(&mut self, network: &'static str, weights: Weights, names: &Names) -> Result<()> {
        let mut thirds: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
        for name in weights.names() {
            let Some(mut info) = weights.info(&name) else { continue };
            let Some((original, cut)) = names.original(&name) else {
                let expected = "a tensor that original checkpoints have a name for";
                let advice = "Such a file has no place for it: keep the folder.";
                let origin = weights.origin(&name);
                return Err(Error::file(origin, network, expected, format!("{name:?}"), advice));
            };
            let mut parts = vec![name.clone()];
            if let Cut::Third(third) = cut {
                let all = thirds.entry(original.clone()).or_default();
                all.insert(third, name.clone());
                info.shape.iter_mut().take(1).for_each(|rows| *rows *= 3);
                parts = all.values().cloned().collect();
            } else if original.contains(".mid.attn_1.") && info.shape.len() == 2 {
                info.shape.extend([1, 1]); // [C, C] -> [C, C, 1, 1]
            }
            let turned = cut == Cut::Turned;
            if turned {
                info.shape.reverse();
            }
            self.tensors.insert(original, Part { network, names: parts, turned, info });
        }
        self.weights.insert(network, weights);
        match thirds.into_iter().find(|(_, parts)| parts.len() != 3) {
            None => Ok(()),
            Some((original, parts)) => {
                let found = format!("{:?} alone", parts.into_values().collect::<Vec<_>>());
                let advice = "The folder is incomplete: download it again.";
                Err(Error::file(network, original, "three projections", found, advice))
            }
        }
    }
}

impl TensorSource for Original {
    fn names(&self) -> Vec<String> {
        self.tensors.keys().cloned().collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|part| part.info.clone())
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        let Some(part) = self.tensors.get(name) else {
            return Err(Error::Weights(format!("{name} is in no file")));
        };
        let weights = &self.weights[part.network];
        let tensors =
            part.names.iter().map(|name| weights.read(name)).collect::<Result<Vec<_>>>()?;
        match &tensors[..] {
            [one] if part.turned => one.permute(&[1, 0])?.contiguous(), // [P, C] -> [C, P]
            all => concat(&all.iter().collect::<Vec<_>>(), 0)?.reshape(&part.info.shape[..]),
        }
    }

    fn origin(&self, name: &str) -> String {
        self.tensors.get(name).map_or_else(
            || "the folder".to_owned(),
            |part| self.weights[part.network].origin(&part.names[0]),
        )
    }
}
