//! Original checkpoints: a whole model in one safetensors file, under the names of the code that latent diffusion models were
//! first trained with (`model.diffusion_model.*`, `first_stage_model.*`, `cond_stage_model.*`).
//!
//! Nothing is copied: tensors are found under today's names while they are read. The file has no configuration; what its shapes
//! do not tell follows from its kind, as in diffusers' `loaders/single_file_utils.py`: Stable Diffusion 1.x has CLIP, eight
//! heads everywhere and projections that are convolutions, 2.x OpenCLIP, heads of 64 channels and linear projections, XL both
//! text encoders, of OpenCLIP the larger, and the UNet of 2.x, which is told sizes.

pub(crate) mod names;
pub(crate) mod plain;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::names::{Blocks, Names};
use super::TensorSource;
use super::config::Config;
use super::folder::Weights;
use super::safetensors::{SafeTensors, refuse_pickle};
use crate::error::{Error, Result};

/// What a UNet predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity (Salimans & Ho 2022).
    V,
}

impl Prediction {
    /// diffusers' `prediction_type`.
    pub fn field(self) -> &'static str {
        match self {
            Self::Epsilon => "epsilon",
            Self::V => "v_prediction",
        }
    }
}

impl fmt::Display for Prediction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V { "v" } else { "epsilon" })
    }
}

impl FromStr for Prediction {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "epsilon" => Ok(Self::Epsilon),
            "v" | "v_prediction" => Ok(Self::V),
            _ => Err(Error::argument("prediction", text, "epsilon or v")),
        }
    }
}

/// What an original checkpoint does not say of itself.
#[derive(Clone, Debug, Default)]
pub struct Supplement {
    /// Folder of the tokenizer: such a file never has one.
    pub tokenizer: Option<PathBuf>,
    /// What the UNet predicts, whatever the file says.
    pub prediction: Option<Prediction>,
}

/// What fills a short prompt up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Padding {
    /// The end token: CLIP.
    End,
    /// Token 0: OpenCLIP.
    Zero,
}

/// What a checkpoint is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Stable Diffusion 1.x.
    V1,
    /// Stable Diffusion 2.x.
    V2,
    /// Stable Diffusion XL.
    Xl,
}

impl Kind {
    /// What a tokenizer of its folder fills a short prompt up with.
    fn padding(self, tokenizer: &str) -> Padding {
        match self {
            Self::V2 => Padding::Zero,
            Self::Xl if tokenizer == "tokenizer_2" => Padding::Zero,
            Self::V1 | Self::Xl => Padding::End,
        }
    }
}

/// The metadata that says what the UNet predicts (<https://github.com/Stability-AI/ModelSpec>).
pub(crate) const PREDICTION: &str = "modelspec.prediction_type";

const UNET: &str = "model.diffusion_model.";
const CONTROLNET: &str = "control_model.";
const CLIP: &str = "cond_stage_model.transformer.";
const CLIP_INNER: &str = "cond_stage_model.transformer.text_model.";
const OPEN_CLIP: &str = "cond_stage_model.model.";
const XL: &str = "conditioner.embedders.";
const XL_CLIP: &str = "conditioner.embedders.0.transformer.text_model.";
const XL_OPEN_CLIP: &str = "conditioner.embedders.1.model.";
/// Of the autoencoder; the second is older.
const VAE: [&str; 2] = ["first_stage_model.", "vae."];

/// The layer of OpenCLIP that is left out, the last of its text encoder: Stable Diffusion 2.x reads the states before it.
const LAST_OF_OPEN_CLIP: usize = 23;

/// Channels of a head, but for those of Stable Diffusion 1.x's UNet.
const HEAD: usize = 64;

/// Heads of Stable Diffusion 1.x's UNet.
const HEADS: usize = 8;

/// Averages of weights over the training stand beside those where there are as many tensors.
const AVERAGES: usize = 100;

/// Sizes that XL's UNet is told, each by sinusoids: height and width, of the original and of the target, and where it was cropped.
const SIZES: usize = 6;

/// Sinusoids of each where the file has no text encoder to tell them by: those of XL.
const SINUSOIDS: usize = 256;

const EXPECTED: &str = "an original checkpoint of Stable Diffusion 1.x, 2.x or XL";

/// An original checkpoint.
pub struct Checkpoint {
    source: Arc<SafeTensors>,
    layout: Layout,
    supplement: Supplement,
    prediction: Prediction,
    path: PathBuf,
}

impl Checkpoint {
    /// Opens a checkpoint.
    ///
    /// # Errors
    /// The file is none, or of a model that nadir does not know: the error says what it is, and by which tensor; it does not
    /// say what its UNet predicts, and nor does `supplement`.
    pub fn open(path: impl AsRef<Path>, supplement: &Supplement) -> Result<Self> {
        let path = path.as_ref();
        refuse_pickle(path, &[])?;
        if !path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("safetensors")) {
            let expected = "a folder of diffusers, or an original checkpoint (.safetensors)";
            return Err(Error::file(path, "model", expected, "another file", "Name one of these."));
        }
        let source = SafeTensors::open(path)?;
        let layout = Layout::of(&source, path)?;
        let said = source.metadata().get(PREDICTION).map(|said| {
            said.parse().map_err(|_| {
                let what = format!("metadata {PREDICTION:?}");
                let advice = "Say what the model predicts: --prediction epsilon or --prediction v.";
                Error::file(path, what, "epsilon or v", format!("{said:?}"), advice)
            })
        });
        let prediction = match (supplement.prediction, said) {
            (Some(given), _) => given,
            (None, Some(said)) => said?,
            (None, None) if layout.kind != Kind::V2 => Prediction::Epsilon,
            (None, None) => {
                let advice = "Stable Diffusion 2 base predicts the noise (--prediction epsilon), 2 and 2.1 at 768 pixels the \
                              velocity (--prediction v).";
                let expected = format!("metadata {PREDICTION:?}");
                return Err(Error::file(path, "prediction type", expected, "none", advice));
            }
        };
        let (source, path) = (Arc::new(source), path.to_owned());
        Ok(Self { source, layout, supplement: supplement.clone(), prediction, path })
    }

    /// What a folder's `model_index.json` would say.
    pub(super) fn index(&self) -> Value {
        let inpaints = self.layout.unet.config["in_channels"] == 9;
        let kind = if self.layout.kind == Kind::Xl { "XL" } else { "" };
        let follows = if self.layout.controlnet { "ControlNet" } else { "" };
        let paints = if inpaints { "Inpaint" } else { "" };
        let mut index = json!({
            "_class_name": format!("StableDiffusion{kind}{follows}{paints}Pipeline"),
            "feature_extractor": [null, null],
            "scheduler": ["diffusers", self.scheduler_class()],
            "text_encoder": ["transformers", "CLIPTextModel"],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        });
        if self.layout.controlnet {
            index["controlnet"] = json!(["diffusers", "ControlNetModel"]);
        }
        match self.layout.kind {
            Kind::Xl => {
                index["force_zeros_for_empty_prompt"] = true.into();
                index["image_encoder"] = json!([null, null]);
                index["text_encoder_2"] = json!(["transformers", "CLIPTextModelWithProjection"]);
                index["tokenizer_2"] = json!(["transformers", "CLIPTokenizer"]);
            }
            Kind::V1 | Kind::V2 => {
                index["requires_safety_checker"] = false.into();
                index["safety_checker"] = json!([null, null]);
            }
        }
        index
    }

    /// Of the folders of Stable Diffusion 1.5, 2.1 and XL.
    fn scheduler_class(&self) -> &'static str {
        match self.layout.kind {
            Kind::V1 => "PNDMScheduler",
            Kind::V2 => "DDIMScheduler",
            Kind::Xl => "EulerDiscreteScheduler",
        }
    }

    /// What a component's configuration would say.
    pub(super) fn config(&self, component: &str) -> Value {
        let mut config = match self.layout.network(component) {
            Some(network) => network.config.clone(),
            None => {
                let mut scheduler = json!({
                    "_class_name": self.scheduler_class(),
                    "beta_end": 0.012,
                    "beta_schedule": "scaled_linear",
                    "beta_start": 0.00085,
                    "clip_sample": false,
                    "num_train_timesteps": 1000,
                    "prediction_type": self.prediction.field(),
                    "set_alpha_to_one": false,
                    "steps_offset": 1,
                });
                match self.layout.kind {
                    Kind::V1 => scheduler["skip_prk_steps"] = true.into(),
                    Kind::V2 => {}
                    Kind::Xl => scheduler["timestep_spacing"] = "leading".into(),
                }
                scheduler
            }
        };
        let side = match self.layout.kind {
            Kind::Xl => 128,
            Kind::V2 if self.prediction == Prediction::V => 96,
            Kind::V1 | Kind::V2 => 64,
        };
        match component {
            "unet" => config["sample_size"] = side.into(),
            "vae" => config["sample_size"] = (8 * side).into(),
            _ => {}
        }
        config
    }

    /// The weights of a network.
    pub(super) fn weights(&self, component: &str) -> Result<Weights> {
        let averages = self.source.names().iter().filter(|n| n.starts_with("model_ema.")).count();
        let note = (component == "unet" && averages > AVERAGES).then(|| {
            format!("{}: averaged weights (model_ema.*) are not used", self.path.display())
        });
        let Some(network) = self.layout.network(component) else {
            let advice = "Name the folder that has it.";
            return Err(Error::file(
                &self.path,
                component,
                "a network of this file",
                "none",
                advice,
            ));
        };
        Weights::original(self.source.clone(), network.names.clone(), note)
    }

    /// Folder of the tokenizer.
    pub(super) fn tokenizer(&self) -> Result<&Path> {
        self.supplement.tokenizer.as_deref().ok_or_else(|| {
            let expected = "the folder of a tokenizer, since an original checkpoint has none";
            let advice = "Name one: --tokenizer FOLDER.";
            Error::file(&self.path, "tokenizer", expected, "none", advice)
        })
    }

    /// What a tokenizer fills a short prompt up with.
    pub(super) fn padding(&self, tokenizer: &str) -> Padding {
        self.layout.kind.padding(tokenizer)
    }
}

/// Whether a file holds a ControlNet in original names, and no UNet.
///
/// # Errors
/// The file cannot be read.
pub fn is_controlnet(path: impl AsRef<Path>) -> Result<bool> {
    let names = SafeTensors::open(path)?.names();
    let any = |part: &str| names.iter().any(|name| name.contains(part));
    Ok(any("input_hint_block.") && !any(UNET))
}

/// A ControlNet in original names, in a file of its own or its model's (`control_model.*`, or without that in front).
///
/// Its shapes do not tell how many `sinusoids` an XL's are of each size (`addition_time_embed_dim`): its model does. Where that
/// is not known they are 256.
///
/// # Errors
/// The file cannot be read, or holds none.
pub fn open_controlnet(
    path: impl AsRef<Path>,
    sinusoids: Option<usize>,
) -> Result<(Config, Weights)> {
    let path = path.as_ref();
    let source = SafeTensors::open(path)?;
    let Network { names, config } = controlnet(&source, path, sinusoids)?;
    let config = Config::from_value(format!("{}: a ControlNet", path.display()), config)?;
    let weights = Weights::original(Arc::new(source), names, None)?;
    Ok((config.bounded_by(&weights), weights))
}

/// The ControlNet among the tensors in `source`, which errors say are in `path`.
pub(crate) fn controlnet(
    source: &dyn TensorSource,
    path: &Path,
    sinusoids: Option<usize>,
) -> Result<Network> {
    let keys = Keys::of(source, path);
    let refuse = |expected: &str, found: String, advice: &str| {
        Err(Error::file(path, "ControlNet", expected, found, advice))
    };
    if keys.has("controlnet_cond_embedding.conv_in.weight") {
        let found = "the names of diffusers".to_owned();
        return refuse("control_model.*", found, "Name its folder, with config.json.");
    }
    if keys.has("lora_controlnet") {
        let found =
            "a Control-LoRA, which is a part of its model (by its tensor \"lora_controlnet\")";
        return refuse("a whole ControlNet", found.to_owned(), "Name a ControlNet.");
    }
    let root = if keys.any(CONTROLNET) { CONTROLNET } else { "" };
    if !keys.has(&format!("{root}input_hint_block.0.weight")) {
        let found = format!("no {root}input_hint_block.0.weight");
        let advice = "Name a ControlNet of Stable Diffusion 1.x, 2.x or XL, a file or a folder of diffusers.";
        return refuse("control_model.*", found, advice);
    }
    let (mut config, blocks) = keys.unet_way_down(root)?;
    let hints = keys.numbers(&format!("{root}input_hint_block.")).into_iter().max().unwrap_or(0);
    let hints = (hints / 2).saturating_sub(1);
    let mut channels = Vec::new();
    for i in (0..=hints).filter(|i| i.is_multiple_of(2)) {
        channels.push(keys.side(&format!("{root}input_hint_block.{}.weight", 2 * i), 0)?);
    }
    config["_class_name"] = "ControlNetModel".into();
    config["conditioning_channels"] =
        keys.side(&format!("{root}input_hint_block.0.weight"), 1)?.into();
    config["conditioning_embedding_out_channels"] = channels.into();
    if keys.any(&format!("{root}label_emb.")) {
        let inputs = keys.side(&format!("{root}label_emb.0.0.weight"), 1)?;
        let each = sinusoids.unwrap_or(SINUSOIDS);
        let of_sizes = SIZES.saturating_mul(each);
        if inputs <= of_sizes {
            let expected = format!("more than {of_sizes} inputs of {root}label_emb.0.0");
            let advice = "It is no ControlNet of Stable Diffusion XL, or of a model that tells sizes otherwise.";
            return refuse(&expected, inputs.to_string(), advice);
        }
        config["addition_embed_type"] = "text_time".into();
        config["addition_time_embed_dim"] = each.into();
        config["projection_class_embeddings_input_dim"] = inputs.into();
    }
    Ok(Network { names: Arc::new(Names::controlnet(root, &blocks, hints)), config })
}

/// Names of a ControlNet as an original file has them, in a file of its own or its model's.
pub(crate) fn names_of_controlnet(blocks: &Blocks, hints: usize) -> Names {
    Names::controlnet(CONTROLNET, blocks, hints)
}

/// A network of a checkpoint.
pub(crate) struct Network {
    /// Both names of its modules.
    pub names: Arc<Names>,
    /// What its `config.json` would say, but for sizes that pictures had in training.
    pub config: Value,
}

/// The networks of a checkpoint, told from names and shapes alone.
pub(crate) struct Layout {
    pub unet: Network,
    pub vae: Network,
    pub text_encoder: Network,
    /// XL's second.
    pub text_encoder_2: Option<Network>,
    /// Whether there is a ControlNet beside them.
    controlnet: bool,
    pub kind: Kind,
}

impl Layout {
    /// The layout of the tensors in `source`, which errors say are in `path`.
    ///
    /// # Errors
    /// They are no checkpoint of a kind that nadir knows.
    pub fn of(source: &dyn TensorSource, path: &Path) -> Result<Self> {
        let keys = Keys::of(source, path);
        keys.refuse_others()?;
        let is_xl = keys.any(XL);
        let (unet, blocks) = keys.unet(is_xl)?;
        let vae = VAE.into_iter().find(|root| keys.any(root));
        let Some(vae) = vae else {
            let advice = "Name a file with all parts of a model, or a diffusers folder.";
            let found = "no tensor of these";
            return Err(Error::file(path, "autoencoder", "first_stage_model.*", found, advice));
        };
        let (text_encoder, text_encoder_2, kind) = keys.text_encoders()?;
        let names = if is_xl { Names::unet_of_xl } else { Names::unet };
        let unet = Network { names: Arc::new(names(UNET, &blocks)), config: unet };
        let (vae, controlnet) = (keys.vae(vae, is_xl)?, keys.any(CONTROLNET));
        Ok(Self { unet, vae, text_encoder, text_encoder_2, controlnet, kind })
    }

    fn network(&self, component: &str) -> Option<&Network> {
        match component {
            "unet" => Some(&self.unet),
            "vae" => Some(&self.vae),
            "text_encoder" => Some(&self.text_encoder),
            "text_encoder_2" => self.text_encoder_2.as_ref(),
            _ => None,
        }
    }
}

/// Names of the networks as an original file of the model in a folder would have them; `layers` of its last text encoder.
pub(crate) fn names_of(
    kind: Kind,
    blocks: &Blocks,
    vae: (usize, usize),
    layers: usize,
) -> Vec<(&'static str, Names)> {
    let unet = if kind == Kind::Xl { Names::unet_of_xl } else { Names::unet };
    let mut names = vec![("unet", unet(UNET, blocks)), ("vae", Names::vae(VAE[0], vae.0, vae.1))];
    match kind {
        Kind::V1 => names.push(("text_encoder", Names::same(CLIP_INNER))),
        Kind::V2 => names.push(("text_encoder", Names::open_clip(OPEN_CLIP, layers))),
        Kind::Xl => names.extend([
            ("text_encoder", Names::same(XL_CLIP)),
            ("text_encoder_2", Names::open_clip_projected(XL_OPEN_CLIP, layers)),
        ]),
    }
    names
}

/// What files of other kinds are told by: a part of a name, what they are, what is to be done with them.
const OTHERS: [(&str, &str, &str); 11] = [
    ("lora_", "a low-rank adapter", "Give it beside its model: --lora FILE."),
    (
        "conditioner.embedders.0.model.",
        "the refiner of Stable Diffusion XL",
        "nadir has no refiner: draw with the base model alone.",
    ),
    ("joint_blocks.", "Stable Diffusion 3", RUNS),
    ("double_blocks.", "Flux", RUNS),
    (
        "local_adapter.",
        "CRS-Diff or another Uni-ControlNet",
        "Its adapters are not supported: draw with Stable Diffusion 1.5 and ControlNets of diffusers or of the original kind.",
    ),
    ("edm_mean", "Playground 2.5", RUNS),
    (
        "ztsnr",
        "a model of noise without end (zero terminal SNR)",
        "A folder of diffusers says so in its scheduler (rescale_betas_zero_snr): name one.",
    ),
    (
        "motion_modules.",
        "a motion module of AnimateDiff",
        "nadir draws pictures, and no sequences of them.",
    ),
    ("emb_params", "an embedding of textual inversion", EMBEDDINGS),
    ("string_to_param", "an embedding of textual inversion", EMBEDDINGS),
    (
        "middle_block.1.qkv.",
        "a latent diffusion model that is told no text, such as LDSR-S2",
        "nadir super-resolve enlarges scenes with it.",
    ),
];

const RUNS: &str = "nadir runs Stable Diffusion 1.x, 2.x and XL.";

const EMBEDDINGS: &str = "Name the model that it is for.";

/// Names and shapes of a file.
struct Keys<'a> {
    source: &'a dyn TensorSource,
    names: BTreeSet<String>,
    path: &'a Path,
}

impl<'a> Keys<'a> {
    fn of(source: &'a dyn TensorSource, path: &'a Path) -> Self {
        Self { source, names: source.names().into_iter().collect(), path }
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Names that begin with `root`.
    fn with<'s>(&'s self, root: &'s str) -> impl Iterator<Item = &'s String> {
        self.names.range(root.to_owned()..).take_while(move |name| name.starts_with(root))
    }

    fn any(&self, root: &str) -> bool {
        self.with(root).next().is_some()
    }

    /// Numbers that follow `root`.
    fn numbers(&self, root: &str) -> BTreeSet<usize> {
        let number = |name: &String| name[root.len()..].split('.').next()?.parse().ok();
        self.with(root).filter_map(number).collect()
    }

    /// How many numbers from 0 on follow `root`.
    fn count(&self, root: &str) -> usize {
        let numbers = self.numbers(root);
        (0..).take_while(|n| numbers.contains(n)).count()
    }

    fn dims(&self, name: &str) -> Result<Vec<usize>> {
        self.source.info(name).map(|info| info.shape).ok_or_else(|| {
            let advice = "The file is incomplete, or of a kind that nadir does not know.";
            let what = format!("tensor {name:?}");
            Error::file(self.path, what, "it in the file", "none", advice)
        })
    }

    /// Length of a tensor along an axis.
    fn side(&self, name: &str, axis: usize) -> Result<usize> {
        let dims = self.dims(name)?;
        dims.get(axis).copied().ok_or_else(|| {
            let expected = format!("{} dimensions or more", axis + 1);
            let advice = "The file is damaged, or of a kind that nadir does not know.";
            let (what, found) = (format!("tensor {name:?}"), format!("{dims:?}"));
            Error::file(self.path, what, expected, found, advice)
        })
    }

    fn unknown(&self, found: impl Into<String>) -> Error {
        let advice = "nadir runs Stable Diffusion 1.x, 2.x and XL: an original checkpoint, or a folder of diffusers.";
        Error::file(self.path, "model", EXPECTED, found, advice)
    }

    /// Says what a file is that is no checkpoint.
    fn refuse_others(&self) -> Result<()> {
        for (part, what, advice) in OTHERS {
            if let Some(name) = self.names.iter().find(|name| name.contains(part)) {
                let found = format!("{what} (by its tensor {name:?})");
                return Err(Error::file(self.path, "model", EXPECTED, found, advice));
            }
        }
        if self.has(&format!("{UNET}input_blocks.0.0.weight")) {
            return Ok(());
        }
        let vectors =
            |name: &String| self.source.info(name).is_some_and(|info| info.shape.len() <= 2);
        if let Some(name) = self.names.iter().find(|name| name.contains("input_hint_block.")) {
            let advice = "Name the model that it is for, and give the ControlNet beside it.";
            let found = format!("a ControlNet (by its tensor {name:?})");
            return Err(Error::file(self.path, "model", EXPECTED, found, advice));
        }
        let first = self.names.first().cloned().unwrap_or_default();
        if self.names.len() == 1 && self.names.iter().all(vectors) {
            let found = format!("an embedding of textual inversion (its only tensor is {first:?})");
            return Err(Error::file(self.path, "model", EXPECTED, found, EMBEDDINGS));
        }
        if ["encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight"]
            .iter()
            .any(|name| self.has(name) || VAE.iter().any(|root| self.has(&format!("{root}{name}"))))
        {
            let what = format!("an autoencoder alone (no {UNET}* beside it)");
            return Err(self.unknown(what));
        }
        if self.has("conv_in.weight") || self.any("encoder.layers.") || self.any("text_model.") {
            let advice = "Name the folder that this file is a part of, with model_index.json.";
            let found = format!("one network of a diffusers folder (by its tensor {first:?})");
            return Err(Error::file(self.path, "model", EXPECTED, found, advice));
        }
        Err(self.unknown(format!("no {UNET}*, but {first:?} and others")))
    }

    /// Configuration of a UNet, and how its blocks are numbered.
    fn unet(&self, is_xl: bool) -> Result<(Value, Blocks)> {
        let (mut config, mut blocks) = self.unet_way_down(UNET)?;
        let each = blocks.layers + 1;
        let attends =
            |block: usize| self.any(&format!("{UNET}output_blocks.{}.1.norm.", block * each));
        blocks.up_attention = (0..blocks.levels).map(attends).collect();
        let class = |&attends: &bool| if attends { "CrossAttnUpBlock2D" } else { "UpBlock2D" };
        config["up_block_types"] = blocks.up_attention.iter().map(class).collect();
        config["out_channels"] = self.side(&format!("{UNET}out.2.weight"), 0)?.into();
        if is_xl || self.any(&format!("{UNET}label_emb.")) {
            let key = format!("{UNET}label_emb.0.0.weight");
            let width = self.side(&key, 1)?;
            config["projection_class_embeddings_input_dim"] = width.into();
            if is_xl {
                let whole = self.side(&format!("{XL_OPEN_CLIP}text_projection"), 1)?;
                let sinusoids = width.saturating_sub(whole);
                if sinusoids == 0 || !sinusoids.is_multiple_of(SIZES) {
                    let found = format!("{width} inputs of {key}, {whole} of them for the prompt");
                    return Err(self.unknown(found));
                }
                config["addition_embed_type"] = "text_time".into();
                config["addition_time_embed_dim"] = (sinusoids / SIZES).into();
            } else {
                config["class_embed_type"] = "projection".into();
            }
        }
        Ok((config, blocks))
    }

    /// What the first half of a UNet tells of all of it.
    fn unet_way_down(&self, root: &str) -> Result<(Value, Blocks)> {
        // Blocks are numbered through: the first convolution, then on each level its layers and, but for the last, a halving.
        let inputs = self.count(&format!("{root}input_blocks."));
        let halves = |i: &usize| self.has(&format!("{root}input_blocks.{i}.0.op.weight"));
        let halvings: Vec<usize> = (0..inputs).filter(halves).collect();
        let levels = halvings.len() + 1;
        let layers = inputs / levels;
        let regular = halvings.iter().enumerate().all(|(b, &i)| i == (b + 1) * layers);
        if inputs != levels * layers || layers < 2 || !regular {
            let found = format!("{inputs} of {root}input_blocks, halvings at {halvings:?}");
            return Err(self.unknown(found));
        }
        let layers = layers - 1;
        let at = |level: usize| format!("{root}input_blocks.{}", 1 + level * (layers + 1));
        let mut widths = Vec::new();
        for level in 0..levels {
            widths.push(self.side(&format!("{}.0.in_layers.2.weight", at(level)), 0)?);
        }
        let attends = |level: usize| self.any(&format!("{}.1.norm.", at(level)));
        let class = |level| if attends(level) { "CrossAttnDownBlock2D" } else { "DownBlock2D" };
        let down_types: Vec<_> = (0..levels).map(class).collect();
        let depth = |module: &str| self.count(&format!("{module}.1.transformer_blocks."));
        // The coarsest level's is the middle block's, whether the level has attention or not.
        let middle = format!("{root}middle_block");
        let depths: Vec<_> = (0..levels)
            .map(|level| match level + 1 == levels {
                true => depth(&middle),
                false => depth(&at(level)).max(1),
            })
            .collect();
        let key = format!("{middle}.1.transformer_blocks.0.attn2.to_k.weight");
        let linear = self.dims(&format!("{middle}.1.proj_in.weight"))?.len() == 2;
        let heads: Vec<usize> =
            widths.iter().map(|width| if linear { width / HEAD } else { HEADS }).collect();
        let config = json!({
            "_class_name": "UNet2DConditionModel",
            "attention_head_dim": if linear { json!(heads) } else { json!(HEADS) },
            "block_out_channels": widths,
            "cross_attention_dim": self.side(&key, 1)?,
            "down_block_types": down_types,
            "in_channels": self.side(&format!("{root}input_blocks.0.0.weight"), 1)?,
            "layers_per_block": layers,
            "transformer_layers_per_block": depths,
            "use_linear_projection": linear,
        });
        Ok((config, Blocks { levels, layers, up_attention: Vec::new() }))
    }

    fn vae(&self, root: &'static str, is_xl: bool) -> Result<Network> {
        let levels = self.count(&format!("{root}encoder.down."));
        let layers = self.count(&format!("{root}encoder.down.0.block."));
        if levels == 0 || layers == 0 {
            return Err(
                self.unknown(format!("an autoencoder without {root}encoder.down.0.block.0"))
            );
        }
        let mut widths = Vec::new();
        for level in 0..levels {
            let name = format!("{root}encoder.down.{level}.block.0.conv1.weight");
            widths.push(self.side(&name, 0)?);
        }
        let config = json!({
            "_class_name": "AutoencoderKL",
            "block_out_channels": widths,
            "down_block_types": vec!["DownEncoderBlock2D"; levels],
            "in_channels": self.side(&format!("{root}encoder.conv_in.weight"), 1)?,
            "latent_channels": self.side(&format!("{root}decoder.conv_in.weight"), 1)?,
            "layers_per_block": layers,
            "mid_block_add_attention": self.any(&format!("{root}encoder.mid.attn_1.")),
            "out_channels": self.side(&format!("{root}decoder.conv_out.weight"), 0)?,
            "scaling_factor": if is_xl { 0.13025 } else { 0.18215 },
            "up_block_types": vec!["UpDecoderBlock2D"; levels],
            "use_post_quant_conv": self.any(&format!("{root}post_quant_conv.")),
            "use_quant_conv": self.any(&format!("{root}quant_conv.")),
        });
        Ok(Network { names: Arc::new(Names::vae(root, levels, layers)), config })
    }

    /// The text encoder, XL's second, and what the two tell of the checkpoint.
    fn text_encoders(&self) -> Result<(Network, Option<Network>, Kind)> {
        if self.any(XL) {
            let (first, second) = (self.clip(XL_CLIP)?, self.open_clip(XL_OPEN_CLIP, usize::MAX)?);
            return Ok((first, Some(second), Kind::Xl));
        }
        if self.any(OPEN_CLIP) {
            return Ok((self.open_clip(OPEN_CLIP, LAST_OF_OPEN_CLIP)?, None, Kind::V2));
        }
        if self.any(CLIP) {
            let root = if self.any(CLIP_INNER) { CLIP_INNER } else { CLIP };
            return Ok((self.clip(root)?, None, Kind::V1));
        }
        let expected = format!("{CLIP}* or {OPEN_CLIP}*");
        let advice = "Name a file with all parts of a model, or a diffusers folder.";
        Err(Error::file(self.path, "text encoder", expected, "no tensor of these", advice))
    }

    fn clip(&self, root: &'static str) -> Result<Network> {
        let keys = [
            format!("{root}embeddings.token_embedding.weight"),
            format!("{root}embeddings.position_embedding.weight"),
            format!("{root}encoder.layers.0.mlp.fc1.weight"),
        ];
        let layers = self.count(&format!("{root}encoder.layers."));
        let config = self.text_config(&keys, layers, "quick_gelu")?;
        Ok(Network { names: Arc::new(Names::same(root)), config })
    }

    /// All layers but those from `last` on; with its projection if it is XL's.
    fn open_clip(&self, root: &'static str, last: usize) -> Result<Network> {
        let blocks = format!("{root}transformer.resblocks.");
        let keys = [
            format!("{root}token_embedding.weight"),
            format!("{root}positional_embedding"),
            format!("{blocks}0.mlp.c_fc.weight"),
        ];
        let layers = self.count(&blocks).min(last);
        let mut config = self.text_config(&keys, layers, "gelu")?;
        if root != XL_OPEN_CLIP {
            return Ok(Network { names: Arc::new(Names::open_clip(root, layers)), config });
        }
        config["architectures"] = json!(["CLIPTextModelWithProjection"]);
        config["projection_dim"] = self.side(&format!("{root}text_projection"), 1)?.into();
        Ok(Network { names: Arc::new(Names::open_clip_projected(root, layers)), config })
    }

    /// `keys` of the embeddings of tokens and positions, and of the first layer's inner weight.
    fn text_config(&self, keys: &[String; 3], layers: usize, act: &str) -> Result<Value> {
        let [tokens, positions, inner] = keys;
        let width = self.side(tokens, 1)?;
        if width == 0 || !width.is_multiple_of(HEAD) {
            let found = format!("a text encoder of width {width}, which is no multiple of {HEAD}");
            return Err(self.unknown(found));
        }
        Ok(json!({
            "architectures": ["CLIPTextModel"],
            "bos_token_id": 0,
            "eos_token_id": 2,
            "hidden_act": act,
            "hidden_size": width,
            "intermediate_size": self.side(inner, 0)?,
            "layer_norm_eps": 1e-5,
            "max_position_embeddings": self.side(positions, 0)?,
            "model_type": "clip_text_model",
            "num_attention_heads": width / HEAD,
            "num_hidden_layers": layers,
            "pad_token_id": 1,
            "vocab_size": self.side(tokens, 0)?,
        }))
    }
}

/// Whether a tensor of a network has no part in it: what OpenCLIP has behind the states that are read, what the training of
/// an autoencoder has left.
pub(super) fn has_no_part(name: &str) -> bool {
    let last = format!("{OPEN_CLIP}transformer.resblocks.{LAST_OF_OPEN_CLIP}.");
    let others = ["text_projection", "logit_scale", "attn_mask"].map(|n| format!("{OPEN_CLIP}{n}"));
    let of_xl = ["logit_scale", "attn_mask"].map(|n| format!("{XL_OPEN_CLIP}{n}"));
    let left = VAE.iter().flat_map(|root| ["loss.", "model_ema."].map(|n| format!("{root}{n}")));
    name.starts_with(&last)
        || others.iter().chain(&of_xl).any(|n| n == name)
        || left.into_iter().any(|n| name.starts_with(&n))
}
