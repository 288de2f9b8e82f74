//! From a diffusers folder to a pipeline: which components there must be, and whether they fit together.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::checkpoint::{self, Supplement};
use crate::io::config::Config;
use crate::io::folder::{PipelineFolder, Weights};
use crate::io::{TensorSource, read_bounded};
use crate::models::clip::{ClipText, ClipTextConfig, ClipTextProjected, ClipTextProjectedConfig};
use crate::models::unet::{ControlNet, ControlNetConfig, TextTime, Unet, UnetConfig};
use crate::models::vae::{Autoencoder, AutoencoderConfig};
use crate::nn::lora::{Adapter, Adapters};
use crate::nn::{Keep, Params};
use crate::pipeline::family::Family;
use crate::pipeline::image_prompt::Sight;
use crate::pipeline::inversion::{Inversion, Learned};
use crate::pipeline::prompt::SecondEncoder;
use crate::pipeline::sampler::SamplerConfig;
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::{DType, Device, release_unused_memory};
use crate::text::tokenizer::{self, ClipTokenizer};

/// How to hold a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// What the networks compute in.
    pub dtype: DType,
    /// Where they compute.
    pub device: Device,
    /// Weight files to prefer: `fp16` for `model.fp16.safetensors`.
    pub variant: Option<String>,
    /// What an original checkpoint does not say of itself.
    pub supplement: Supplement,
    /// What layers keep of their weights: no more than they compute with, or what can be read, changed and trained.
    pub keep: Keep,
    /// What is added to the weights of UNet and text encoder.
    pub adapters: Vec<Adapter>,
    /// Words that the text encoder is to know.
    pub embeddings: Vec<Inversion>,
    /// Folders of ControlNets, beside that which the pipeline has.
    pub controlnets: Vec<PathBuf>,
    /// File of an IP-Adapter, by which pictures are prompts.
    pub ip_adapter: Option<PathBuf>,
    /// Folder of the encoder that looks at them, if not the pipeline's.
    pub image_encoder: Option<PathBuf>,
    /// Folder of an autoencoder in the place of the pipeline's.
    pub vae: Option<PathBuf>,
    /// Folder of one for pictures that are shown before they are done: a fast one.
    pub preview_vae: Option<PathBuf>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        let (dtype, device, keep) = (DType::F32, Device::Cpu, Keep::Frozen);
        Self {
            dtype,
            device,
            variant: None,
            supplement: Supplement::default(),
            keep,
            adapters: Vec::new(),
            embeddings: Vec::new(),
            controlnets: Vec::new(),
            ip_adapter: None,
            image_encoder: None,
            vae: None,
            preview_vae: None,
        }
    }
}

impl LoadOptions {
    /// Opens a model's folder, or the checkpoint in its place, if it is of a kind that nadir runs.
    pub(super) fn open(&self, folder: impl AsRef<Path>) -> Result<PipelineFolder> {
        let folder = PipelineFolder::open_with(folder, self.variant.as_deref(), &self.supplement)?;
        let folder = match &self.vae {
            Some(vae) => folder.replacing("vae", vae.clone()),
            None => folder,
        };
        check_classes(&folder)?;
        Ok(folder)
    }
}

/// What a model is best used with: its `nadir.json`, or else diffusers' defaults.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Suggestions {
    /// Denoising steps.
    pub steps: usize,
    /// Weight of the prompt against the negative prompt.
    pub guidance_scale: f32,
}

impl Default for Suggestions {
    fn default() -> Self {
        Self { steps: 50, guidance_scale: 7.5 }
    }
}

impl Suggestions {
    /// Reads the `nadir.json` of a model's folder.
    ///
    /// # Errors
    /// The file is there and cannot be understood.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Self::read(folder.as_ref(), Self::default())
    }

    /// Those of a model: what its `nadir.json` does not say is what diffusers' pipeline of its class does.
    pub(super) fn of(folder: &PipelineFolder) -> Result<Self> {
        Self::read(folder.root(), Family::of(&folder.class()?).suggestions())
    }

    fn read(folder: &Path, default: Self) -> Result<Self> {
        let path = folder.join("nadir.json");
        if !path.exists() {
            return Ok(default);
        }
        let config = Config::open(path)?;
        let suggestions = Self {
            steps: config.usize("num_inference_steps", default.steps)?,
            guidance_scale: config.f32("guidance_scale", default.guidance_scale)?,
        };
        config.finish()?;
        Ok(suggestions)
    }
}

impl TextToImage {
    /// Loads a diffusers folder, or an original checkpoint.
    ///
    /// # Errors
    /// A component that is missing, damaged or of a kind that nadir does not know.
    pub fn load(folder: impl AsRef<Path>, options: &LoadOptions) -> Result<Self> {
        let folder = options.open(folder)?;
        let suggestions = Suggestions::of(&folder)?;
        let mut notes = Vec::new();
        let mut fingerprint = Fingerprint::of_settings(&folder)?;
        let mut adapters = open_adapters(&folder, &options.adapters)?;
        for adapter in &options.adapters {
            fingerprint.add(adapter.checksum()?.as_bytes());
            fingerprint.add(&adapter.weight.to_le_bytes());
        }
        for embedding in &options.embeddings {
            fingerprint.add(embedding.checksum()?.as_bytes());
            fingerprint.add(embedding.token()?.as_bytes());
        }
        let (tokenizer, learned) = teach(&folder, 0, &options.embeddings, &mut adapters)?;
        let text_encoder = load(
            &folder,
            "text_encoder",
            (options, &adapters),
            options.dtype,
            &mut (&mut notes, &mut fingerprint),
            |config, params| {
                let mut config = ClipTextConfig::read(config)?;
                config.vocab_size = config.vocab_size.max(learned);
                ClipText::load(config, params)
            },
        )?;
        let second = match Family::of(&folder.class()?) {
            Family::Xl => {
                let (tokenizer, learned) = teach(&folder, 1, &options.embeddings, &mut adapters)?;
                let text_encoder = load(
                    &folder,
                    "text_encoder_2",
                    (options, &adapters),
                    options.dtype,
                    &mut (&mut notes, &mut fingerprint),
                    |config, params| {
                        let mut config = ClipTextProjectedConfig::read(config)?;
                        config.text.vocab_size = config.text.vocab_size.max(learned);
                        ClipTextProjected::load(config, params)
                    },
                )?;
                let zeros = folder.index().bool("force_zeros_for_empty_prompt", true)?;
                let (dtype, device) = (options.dtype, options.device);
                Some(SecondEncoder { tokenizer, text_encoder, zeros, dtype, device })
            }
            _ => None,
        };
        let vae_config = AutoencoderConfig::read(&folder.network("vae")?.0)?;
        let unet = load(
            &folder,
            "unet",
            (options, &adapters),
            options.dtype,
            &mut (&mut notes, &mut fingerprint),
            |config, params| Unet::load(UnetConfig::read(config)?, params),
        )?;
        let mut controlnets = Vec::new();
        for (path, config, weights) in open_controlnets(&folder, options)? {
            fingerprint.add(config.to_value().to_string().as_bytes());
            let shape = ControlNetConfig::read(&config)?;
            check_controlnet(&config, &shape, unet.config(), &vae_config)?;
            let checkpoint = path.is_file().then_some(path.as_path());
            controlnets.push(build(
                "controlnet",
                ((config, weights), checkpoint),
                (options, &adapters),
                options.dtype,
                &mut (&mut notes, &mut fingerprint),
                |_, params| ControlNet::load(shape, params),
            )?);
        }
        let config = vae_config;
        let dtype = vae_dtype(options.dtype, &config);
        let vae = load(
            &folder,
            "vae",
            (options, &adapters),
            dtype,
            &mut (&mut notes, &mut fingerprint),
            |_, params| Autoencoder::load(config.clone(), params),
        )?;
        let open = |file: &PathBuf| Sight::open(file, &folder, options, &unet);
        let sight = options.ip_adapter.as_ref().map(open).transpose()?.map(|(sight, print)| {
            fingerprint.add(print.as_bytes());
            sight
        });
        let preview = options.preview_vae.as_deref().map(|folder| load_preview(folder, options));
        let scheduler = SamplerConfig::of(&folder)?;
        let model = Self {
            tokenizer,
            text_encoder,
            second,
            unet,
            controlnets,
            sight,
            vae,
            preview: preview.transpose()?,
            scheduler,
            family: Family::of(&folder.class()?),
            suggestions,
            device: options.device,
            notes,
            fingerprint: fingerprint.text(),
        };
        check_fit(&model, &folder)?;
        // What the weights were read into, of sizes that no step asks for.
        release_unused_memory();
        Ok(model)
    }
}

/// Tells models apart: a checksum of the settings, vocabularies and weights that a picture depends on.
struct Fingerprint(crc32fast::Hasher);

impl Fingerprint {
    /// Of everything but the weights, which are added as they are read.
    fn of_settings(folder: &PipelineFolder) -> Result<Self> {
        let mut all = Self(crc32fast::Hasher::new());
        all.add(folder.component("scheduler")?.unwrap_or_default().as_bytes());
        for part in ["scheduler", "text_encoder", "unet", "vae"] {
            all.add(folder.config_text(part)?.1.as_bytes());
        }
        let mut tokenizers = vec![folder.folder("tokenizer")?];
        if Family::of(&folder.class()?) == Family::Xl {
            all.add(folder.config_text("text_encoder_2")?.1.as_bytes());
            all.add(&[folder.index().bool("force_zeros_for_empty_prompt", true)?.into()]);
            tokenizers.push(folder.folder("tokenizer_2")?);
        }
        for path in tokenizers.into_iter().flat_map(ClipTokenizer::files) {
            all.add(&read_bounded(&path, tokenizer::MAX_FILE)?);
        }
        Ok(all)
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn text(self) -> String {
        format!("{:08x}", self.0.finalize())
    }
}

/// Activations of many autoencoders overflow f16, and the image would be black.
pub(super) fn vae_dtype(dtype: DType, config: &AutoencoderConfig) -> DType {
    if dtype == DType::F16 && config.force_upcast() { DType::F32 } else { dtype }
}

/// Pipelines that are nothing but these components, and the classes that nadir has of each.
///
/// # Errors
/// One that nadir does not run, by its class, with what it does run.
pub fn check_classes(folder: &PipelineFolder) -> Result<()> {
    let advice = "nadir runs UNets of Stable Diffusion 1.x, 2.x and XL and of latent consistency models, with CLIP's text \
                  encoders; transformers (DiT, PixArt, Stable Diffusion 3, Flux), pixel and video models it does not.";
    let wrong = |what: &str, expected: &str, found: &str| {
        Err(Error::file(folder.root().join("model_index.json"), what, expected, found, advice))
    };
    let class = folder.class()?;
    let known = [
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "LatentConsistencyModelPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        // What Text2Earth and DiffusionSat call theirs.
        "Text2EarthDiffusionPipeline",
        "Text2EarthDiffusionInpaintPipeline",
        "DiffusionSatPipeline",
    ];
    if !known.contains(&class.as_str()) {
        return wrong("_class_name", &known.join(" or "), &class);
    }
    let is_xl = Family::of(&class) == Family::Xl;
    if is_xl && folder.index().bool("requires_aesthetics_score", false)? {
        let path = folder.root().join("model_index.json");
        let (what, found) =
            ("requires_aesthetics_score", "true: the refiner of Stable Diffusion XL");
        let advice = "nadir has no refiner: draw with the base model alone.";
        return Err(Error::file(path, what, "false: Stable Diffusion XL itself", found, advice));
    }
    // Those beside judge or prepare pictures of others, and have no part in drawing.
    let mut components =
        vec!["tokenizer", "text_encoder", "unet", "vae", "scheduler", "controlnet"];
    if is_xl {
        components.extend(["tokenizer_2", "text_encoder_2"]);
    }
    let beside = ["safety_checker", "feature_extractor", "image_encoder"];
    folder.check_components(&[&components[..], &beside].concat())?;
    let controlnets = ["ControlNetModel", "MultiControlNetModel"];
    if let Some(class) = folder.component("controlnet")?
        && !controlnets.contains(&class.as_str())
    {
        let index = folder.root().join("model_index.json");
        let advice = if class == "ControlNetModel3D" { NO_3D } else { advice };
        let expected = controlnets.join(" or ");
        return Err(Error::file(index, "controlnet", expected, class, advice));
    }
    let mut networks = vec![
        ("text_encoder", &["CLIPTextModel"][..]),
        ("unet", &["UNet2DConditionModel", "SatUNet"]),
        ("vae", &["AutoencoderKL", "AutoencoderTiny"]),
    ];
    if is_xl {
        networks.push(("text_encoder_2", &["CLIPTextModelWithProjection"]));
    }
    for (name, known) in networks {
        let class = folder.component(name)?.unwrap_or_default();
        if !known.contains(&class.as_str()) {
            return wrong(name, &known.join(" or "), &class);
        }
    }
    Ok(())
}

/// The first or second tokenizer with the words of embeddings, whose vectors become rows of its text encoder's table: how many that
/// has then at least.
fn teach(
    folder: &PipelineFolder,
    place: usize,
    embeddings: &[Inversion],
    adapters: &mut Adapters,
) -> Result<(ClipTokenizer, usize)> {
    let (name, encoder) = [("tokenizer", "text_encoder"), ("tokenizer_2", "text_encoder_2")][place];
    let padding = folder.padding(name);
    let mut tokenizer = ClipTokenizer::open_padding(folder.folder(name)?, padding)?;
    if embeddings.is_empty() {
        return Ok((tokenizer, 0));
    }
    let expected = folder.network(encoder)?.0.usize("hidden_size", 512)?;
    let encoders = if Family::of(&folder.class()?) == Family::Xl { 2 } else { 1 };
    let mut rows = BTreeMap::new();
    for embedding in embeddings {
        let Learned { token, vectors } = embedding.open()?;
        let advice = "The embedding is of another model: SD 1.x's are 768 wide, SD 2.x's 1024, SDXL's 768 (clip_l) and 1280 \
                      (clip_g).";
        let misfit = |what: &str, expected: String, found: String| {
            Error::file(&embedding.path, what, expected, found, advice)
        };
        if vectors.len() != encoders {
            let keys: Vec<_> = vectors.iter().map(|(key, _)| key.as_str()).collect();
            let expected = match encoders {
                1 => "one, for one text encoder: these are for SDXL",
                _ => "clip_l and clip_g, for both text encoders of SDXL",
            };
            return Err(misfit("tensors", expected.to_owned(), keys.join(", ")));
        }
        let (key, vectors) = &vectors[place];
        let (count, width) = vectors.dims2()?;
        if width != expected {
            let expected = format!("vectors of {expected}, as the {encoder} has them");
            return Err(misfit(&format!("tensor {key:?}"), expected, format!("of {width}")));
        }
        let ids = tokenizer.learn(&token, count)?;
        let values = vectors.to_vec::<f32>()?;
        let vectors = values.chunks_exact(width).map(<[f32]>::to_vec);
        rows.extend(ids.into_iter().map(|id| id as usize).zip(vectors));
    }
    adapters.set_rows(encoder, "embeddings.token_embedding.weight", rows);
    let vocabulary = tokenizer.vocabulary();
    Ok((tokenizer, vocabulary))
}

/// Opens the adapters, and holds them against the weights that are to be loaded.
fn open_adapters(folder: &PipelineFolder, adapters: &[Adapter]) -> Result<Adapters> {
    if adapters.is_empty() {
        return Ok(Adapters::default());
    }
    let [unet, text_encoder] = [folder.weights("unet")?, folder.weights("text_encoder")?];
    let mut parts: Vec<(_, &dyn TensorSource)> =
        vec![("unet", &unet), ("text_encoder", &text_encoder)];
    let second = match folder.component("text_encoder_2")? {
        Some(_) => Some(folder.weights("text_encoder_2")?),
        None => None,
    };
    parts.extend(second.iter().map(|second| ("text_encoder_2", second as &dyn TensorSource)));
    Adapters::open(adapters, &parts)
}

/// Loads one component; what its files hold beyond it becomes a note.
fn load<T>(
    folder: &PipelineFolder,
    name: &'static str,
    (options, adapters): (&LoadOptions, &Adapters),
    dtype: DType,
    (notes, fingerprint): &mut (&mut Vec<String>, &mut Fingerprint),
    make: impl FnOnce(&Config, &Params) -> Result<T>,
) -> Result<T> {
    let checkpoint = folder.is_checkpoint().then(|| folder.root());
    let found = (folder.network(name)?, checkpoint);
    build(name, found, (options, adapters), dtype, &mut (notes, fingerprint), make)
}

/// As [`load`], of a configuration and weights wherever they are; of all that a checkpoint has, where there is one.
fn build<T>(
    name: &'static str,
    ((config, weights), checkpoint): ((Config, Weights), Option<&Path>),
    (options, adapters): (&LoadOptions, &Adapters),
    dtype: DType,
    (notes, fingerprint): &mut (&mut Vec<String>, &mut Fingerprint),
    make: impl FnOnce(&Config, &Params) -> Result<T>,
) -> Result<T> {
    notes.extend(weights.note().map(|note| format!("{name}: {note}")));
    let file = weights.names().first().map(|first| weights.origin(first)).unwrap_or_default();
    let checksums = weights.checksums();
    let weights = adapters.merged(name, weights);
    let params = Params::new(weights, dtype, options.device).keeping(options.keep).of_model(name);
    let model = make(&config, &params)?;
    let unused = params.finish()?;
    adapters.check_unused(name, &unused)?;
    // A folder's configuration says what its weights are for; a checkpoint has none, and more layers would be another model.
    if let (Some(first), Some(checkpoint)) = (unused.first(), checkpoint) {
        let (expected, advice) =
            ("no tensor but the model's", "nadir does not know this kind of model.");
        let found = format!("{first:?}, and {} more", unused.len() - 1);
        return Err(Error::file(checkpoint, name, expected, found, advice));
    }
    fingerprint.add(&checksums.combined().to_le_bytes());
    if let Some(first) = unused.first() {
        notes.push(format!(
            "{file}: {} tensors are not part of the model ({first}, ...)",
            unused.len()
        ));
    }
    Ok(model)
}

/// Loads an autoencoder that only shows what latents look like: no picture depends on it.
fn load_preview(folder: &Path, options: &LoadOptions) -> Result<Autoencoder> {
    let weights = Weights::open(folder, options.variant.as_deref())?;
    let config = Config::open(folder.join("config.json"))?.bounded_by(&weights);
    let config = AutoencoderConfig::read(&config)?;
    let dtype = vae_dtype(options.dtype, &config);
    let params = Params::new(weights, dtype, options.device).of_model("preview");
    Autoencoder::load(config, &params)
}

/// The ControlNets, folders and original files: first the pipeline's own, of which several are numbered from the second on.
pub(super) fn open_controlnets(
    folder: &PipelineFolder,
    options: &LoadOptions,
) -> Result<Vec<(PathBuf, Config, Weights)>> {
    let mut folders = Vec::new();
    if let Some(class) = folder.component("controlnet")? {
        let first = match folder.is_checkpoint() {
            true => folder.root().to_owned(),
            false => folder.folder("controlnet")?,
        };
        let further = (1..).map(|i| folder.root().join(format!("controlnet_{i}")));
        folders.push(first);
        if class == "MultiControlNetModel" {
            folders.extend(further.take_while(|path| path.is_dir()));
        }
    }
    folders.extend(options.controlnets.iter().cloned());
    if folders.is_empty() {
        return Ok(Vec::new());
    }
    let sinusoids = sinusoids(folder)?;
    let open = |path: PathBuf| {
        let (config, weights) = if path.is_file() {
            checkpoint::open_controlnet(&path, sinusoids)?
        } else {
            open_controlnet_folder(&path, options.variant.as_deref())?
        };
        Ok((path, config, weights))
    };
    folders.into_iter().map(open).collect()
}

/// The ControlNet in a folder of its own.
pub(super) fn open_controlnet_folder(
    folder: &Path,
    variant: Option<&str>,
) -> Result<(Config, Weights)> {
    let config = Config::open(folder.join("config.json"))?;
    refuse_3d(&config)?;
    let weights = Weights::open(folder, variant)?;
    Ok((config.bounded_by(&weights), weights))
}

/// How many sinusoids the UNet is told of each size, if it is told any.
pub(super) fn sinusoids(folder: &PipelineFolder) -> Result<Option<usize>> {
    let config = folder.config("unet")?;
    let each = config.value("addition_time_embed_dim").and_then(serde_json::Value::as_u64);
    Ok(each.and_then(|each| usize::try_from(each).ok()))
}

/// What is not followed, and what is.
const NO_3D: &str = "DiffusionSat's 3D ControlNets, which follow several pictures in time, are not supported: draw with its \
                     SatUNet alone, or with ControlNets of diffusers.";

/// Tells a ControlNet that nadir does not run by its name.
fn refuse_3d(config: &Config) -> Result<()> {
    const CLASS: &str = "ControlNetModel3D";
    match config.value("_class_name") {
        Some(class) if class == CLASS => {
            Err(Error::file(config.path(), "_class_name", "ControlNetModel", CLASS, NO_3D))
        }
        _ => Ok(()),
    }
}

/// A ControlNet is added to a UNet of its own shape.
fn check_controlnet(
    file: &Config,
    net: &ControlNetConfig,
    unet: &UnetConfig,
    vae: &AutoencoderConfig,
) -> Result<()> {
    let own = &net.unet;
    let counts =
        |found: &[usize], expected: &[usize]| (format!("{found:?}"), format!("{expected:?}"));
    let one = |found: usize, expected: usize| counts(&[found], &[expected]);
    let told = |config: &UnetConfig| match config.vector.text_time {
        Some(TextTime { sinusoids, inputs }) => {
            format!("text_time of {inputs}, {sinusoids} a size")
        }
        None => "null".to_owned(),
    };
    for (field, (found, expected)) in [
        ("block_out_channels", counts(&own.block_out_channels, &unet.block_out_channels)),
        ("cross_attention_dim", counts(&own.cross_attention_dim, &unet.cross_attention_dim)),
        ("layers_per_block", counts(&own.layers_per_block, &unet.layers_per_block)),
        ("addition_embed_type", (told(own), told(unet))),
        ("in_channels", one(own.in_channels, vae.latent_channels())),
        ("conditioning_embedding_out_channels", one(net.factor(), vae.factor())),
    ] {
        if found != expected {
            let advice = "The ControlNet is for another model: SD 1.5's, SD 2.1's and SDXL's do not fit each other.";
            let expected = match field {
                "conditioning_embedding_out_channels" => {
                    format!("halvings that make {expected} pixels a latent")
                }
                _ => format!("{expected}, as the unet has it"),
            };
            return Err(Error::file(
                file.path(),
                format!("field \"{field}\""),
                expected,
                found,
                advice,
            ));
        }
    }
    Ok(())
}

/// Components that do not belong together are found now, not in the middle of a run.
fn check_fit(model: &TextToImage, folder: &PipelineFolder) -> Result<()> {
    let (text, unet, vae) = (model.text_encoder.config(), model.unet.config(), model.vae.config());
    let misfit = |what: &str, expected: usize, found: usize| {
        let advice = "These components are not of one model.";
        Err(Error::file(folder.root(), what, expected.to_string(), found.to_string(), advice))
    };
    let second = model.second.as_ref().map(|second| second.text_encoder.config());
    let width = text.hidden_size + second.map_or(0, |second| second.text.hidden_size);
    if let Some(&other) = unet.cross_attention_dim.iter().find(|&&d| d != width) {
        return misfit("cross_attention_dim of the unet", width, other);
    }
    match (second, unet.vector.text_time) {
        (None, None) => {}
        (Some(second), Some(TextTime { sinusoids, inputs })) => {
            /// Height and width, of the original and of the target, and where it was cropped.
            const SIZES: usize = 6;
            let expected = SIZES * sinusoids + second.projection_dim;
            if inputs != expected {
                let what = "projection_class_embeddings_input_dim of the unet";
                return misfit(what, expected, inputs);
            }
        }
        (second, _) => {
            let (expected, found) = match second {
                Some(_) => ("\"text_time\", as Stable Diffusion XL has it", "none"),
                None => ("none: this pipeline has one text encoder", "\"text_time\""),
            };
            let advice = "These components are not of one model.";
            let what = "addition_embed_type of the unet";
            return Err(Error::file(folder.root(), what, expected, found, advice));
        }
    }
    let latent = vae.latent_channels();
    if unet.out_channels != latent {
        return misfit("out_channels of the unet", latent, unet.out_channels);
    }
    if unet.in_channels != latent && !model.is_inpainting() {
        return misfit("in_channels of the unet", latent, unet.in_channels);
    }
    if let Some(preview) = model.preview.as_ref().map(|vae| vae.config().latent_channels())
        && preview != latent
    {
        return misfit("latent_channels of the previews' vae", latent, preview);
    }
    if let Some(second) = &model.second {
        let known = second.text_encoder.config().text.vocab_size;
        let vocabulary = second.tokenizer.vocabulary();
        if vocabulary > known {
            return misfit("vocab_size of text_encoder_2", vocabulary, known);
        }
    }
    let vocabulary = model.tokenizer.vocabulary();
    if vocabulary > text.vocab_size {
        if folder.is_checkpoint() {
            let expected =
                format!("at most {} tokens, which the text encoder knows", text.vocab_size);
            let advice = "Name the tokenizer that this model was trained with: --tokenizer FOLDER.";
            let (place, found) = (folder.folder("tokenizer")?, format!("{vocabulary}"));
            return Err(Error::file(place, "vocabulary", expected, found, advice));
        }
        return misfit("vocab_size of the text encoder", vocabulary, text.vocab_size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::vae::VaeConfig;

    #[test]
    fn an_autoencoder_that_overflows_in_f16_computes_in_f32() {
        // The model that ships, but for this field of its autoencoder.
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/eurosat-64");
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().join("model");
        for part in ["", "scheduler", "text_encoder", "tokenizer", "unet", "vae"] {
            std::fs::create_dir_all(folder.join(part)).unwrap();
            let entries = std::fs::read_dir(shipped.join(part)).unwrap().map(|e| e.unwrap());
            for entry in entries.filter(|e| e.file_type().unwrap().is_file()) {
                std::fs::copy(entry.path(), folder.join(part).join(entry.file_name())).unwrap();
            }
        }
        let config = std::fs::read_to_string(shipped.join("vae/config.json")).unwrap();
        let overflows = config.replace("\"force_upcast\": false", "\"force_upcast\": true");
        assert_ne!(overflows, config);
        std::fs::write(folder.join("vae/config.json"), overflows).unwrap();

        let options = |dtype| LoadOptions { dtype, ..LoadOptions::default() };
        for (dtype, expected) in [(DType::F16, DType::F32), (DType::BF16, DType::BF16)] {
            let model = TextToImage::load(&folder, &options(dtype)).unwrap();
            assert!(model.vae.config().force_upcast());
            assert_eq!(model.vae.dtype(), expected, "{dtype}");
        }
        let folder = PipelineFolder::open(&folder, None).unwrap();
        let config = VaeConfig::read(&folder.config("vae").unwrap()).unwrap();
        let config = AutoencoderConfig::Kl(VaeConfig { force_upcast: false, ..config });
        assert_eq!(vae_dtype(DType::F16, &config), DType::F16);
    }

    #[test]
    fn a_model_without_suggestions_suggests_what_diffusers_does() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Suggestions::open(folder.path());
        assert_eq!(open().unwrap(), Suggestions { steps: 50, guidance_scale: 7.5 });
        std::fs::write(folder.path().join("nadir.json"), r#"{ "steps": 3 }"#).unwrap();
        assert!(open().unwrap_err().to_string().contains("nadir.json"));
    }
}
