//! Shapes and settings of a model of opensr-model, by the fields of its `config_10m.yaml`.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::io::checkpoint::names::Blocks;
use crate::io::config::Config;
use crate::models::unet::{UnetConfig, VectorConfig};
use crate::models::vae::VaeConfig;

use super::SCALE;

/// Groups of every group norm; the reference fixes it.
const GROUPS: usize = 32;

/// What a model is. Fields that are not given are those of the published model of four bands.
#[derive(Clone, Debug)]
pub(super) struct LdsrConfig {
    pub unet: UnetConfig,
    pub blocks: Blocks,
    pub vae: VaeConfig,
    /// First and last variance of the noise that a training timestep adds.
    pub betas: [f64; 2],
    pub timesteps: usize,
    pub steps: usize,
    pub eta: f64,
    pub temperature: f32,
}

impl LdsrConfig {
    /// Reads the fields.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        // Before 1.0 levels were stretched band by band, and the encoder saw them otherwise than its training did.
        c.neutral("apply_normalization", &[json!(false)])?;
        c.neutral("encode_conditioning", &[json!(true)])?;
        c.ignore(&["ckpt_version"]);
        let vae = read_vae(&section(c, "first_stage_config")?)?;
        let (unet, blocks) = read_unet(&section(c, "cond_stage_config")?, vae.latent_channels)?;
        let other = section(c, "other")?;
        other.neutral("concat_mode", &[json!(true)])?;
        other.neutral("cond_stage_trainable", &[json!(false)])?;
        // Names in the batches of its training.
        other.ignore(&["first_stage_key", "cond_stage_key"]);
        other.finish()?;

        let denoiser = section(c, "denoiser_settings")?;
        denoiser.neutral("parameterization", &[json!("eps")])?;
        let (start, end) =
            (denoiser.f64("linear_start", 1e-4)?, denoiser.f64("linear_end", 0.015)?);
        if !(start > 0.0 && start <= end && end < 1.0) {
            let expected = "variances of noise, 0 < linear_start <= linear_end < 1";
            return Err(denoiser.wrong("linear_end", expected));
        }
        // The configuration that is published says `sample_*`, the code of 1.0.8 reads `sampling_*`.
        let number = |name: &str, old: &str, default| match denoiser.value(name) {
            Some(_) => denoiser.f64(name, default),
            None => denoiser.f64(old, default),
        };
        let config = Self {
            betas: [start, end],
            timesteps: denoiser.usize("timesteps", 1000)?,
            steps: denoiser.usize("sampling_steps", 100)?,
            eta: number("sampling_eta", "sample_eta", 0.0)?,
            temperature: number("sampling_temperature", "sample_temperature", 1.0)? as f32,
            unet,
            blocks,
            vae,
        };
        denoiser.ignore(&["sample_eta", "sample_temperature"]);
        denoiser.finish()?;
        c.finish()?;
        Ok(config)
    }
}

/// The fields of a part of the configuration; of one that is not there none.
fn section(c: &Config, name: &str) -> Result<Config> {
    let fields = match c.value(name) {
        None => json!({}),
        Some(fields @ Value::Object(_)) => fields.clone(),
        Some(_) => return Err(c.wrong(name, "an object of fields")),
    };
    Config::from_value(Path::new(&format!("{}: {name}", c.path().display())), fields)
}

fn read_vae(c: &Config) -> Result<VaeConfig> {
    let width = c.usize("ch", 128)?;
    let widths = multiples(c, "ch_mult", &[1, 2, 4], ("ch", width))?;
    if 1 << (widths.len() - 1) != SCALE {
        return Err(c.wrong("ch_mult", "three levels: a latent for each pixel of the input"));
    }
    let latent_channels = c.usize("z_channels", 4)?;
    c.neutral("embed_dim", &[json!(latent_channels)])?;
    c.neutral("double_z", &[json!(true)])?;
    c.neutral("attn_resolutions", &[json!([])])?;
    for (name, neutral) in [
        ("resamp_with_conv", json!(true)),
        ("use_linear_attn", json!(false)),
        ("attn_type", json!("vanilla")),
        ("give_pre_end", json!(false)),
        ("tanh_out", json!(false)),
    ] {
        c.neutral(name, &[neutral])?;
    }
    // Acts in training only.
    c.ignore(&["dropout"]);
    let bands = c.usize("in_channels", 4)?;
    c.neutral("out_ch", &[json!(bands)])?;
    let config = VaeConfig {
        in_channels: bands,
        out_channels: bands,
        latent_channels,
        block_out_channels: widths,
        layers_per_block: c.usize("num_res_blocks", 2)?,
        norm_num_groups: GROUPS,
        sample_size: c.usize("resolution", 512)?,
        scaling_factor: 1.0,
        force_upcast: false,
        mid_block_add_attention: true,
        use_quant_conv: true,
        use_post_quant_conv: true,
    };
    c.finish()?;
    Ok(config)
}

fn read_unet(c: &Config, latents: usize) -> Result<(UnetConfig, Blocks)> {
    let width = c.usize("model_channels", 160)?;
    let widths = multiples(c, "channel_mult", &[1, 2, 2, 4], ("model_channels", width))?;
    let levels = widths.len();
    let head = c.usize("num_head_channels", 32)?;
    if head == 0 || widths.iter().any(|width| !width.is_multiple_of(head)) {
        return Err(c.wrong("num_head_channels", &format!("a divisor of the widths {widths:?}")));
    }
    // Resolutions are counted in halvings: 1, 2, 4, ...
    let resolutions = c.usizes("attention_resolutions", &[16, 8])?;
    let attention: Vec<bool> =
        (0..levels).map(|level| resolutions.contains(&(1 << level))).collect();
    let up_attention: Vec<bool> = attention.iter().rev().copied().collect();
    // The noise beside what it is made from.
    let inputs = c.usize("in_channels", 2 * latents)?;
    if inputs != 2 * latents {
        return Err(c.wrong("in_channels", &format!("{}, twice z_channels", 2 * latents)));
    }
    c.neutral("out_channels", &[json!(latents)])?;
    for (name, neutral) in [
        ("conv_resample", json!(true)),
        ("dims", json!(2)),
        ("num_classes", json!(null)),
        ("use_fp16", json!(false)),
        ("num_heads", json!(-1)),
        ("num_heads_upsample", json!(-1)),
        ("use_scale_shift_norm", json!(false)),
        ("resblock_updown", json!(false)),
        ("use_new_attention_order", json!(false)),
        ("use_spatial_transformer", json!(false)),
        ("transformer_depth", json!(1)),
        ("legacy", json!(true)),
    ] {
        c.neutral(name, &[neutral])?;
    }
    c.ignore(&["dropout", "use_checkpoint"]);
    let layers = c.usize("num_res_blocks", 2)?;
    if layers == 0 {
        return Err(c.wrong("num_res_blocks", "one residual block or more"));
    }
    let config = UnetConfig {
        sample_size: c.get("image_size", "a non-negative integer")?,
        in_channels: inputs,
        out_channels: latents,
        down_attention: attention,
        up_attention: up_attention.clone(),
        layers_per_block: vec![layers; levels],
        transformer_layers: vec![vec![1; layers]; levels],
        up_transformer_layers: vec![vec![1; layers + 1]; levels],
        heads: widths.iter().map(|width| width / head).collect(),
        own_attention: true,
        cross_attention_dim: vec![0; levels],
        downsample_padding: 1,
        norm_num_groups: GROUPS,
        norm_eps: 1e-5,
        flip_sin_to_cos: true,
        freq_shift: 0.0,
        vector: VectorConfig::default(),
        block_out_channels: widths,
    };
    c.finish()?;
    Ok((config, Blocks { levels, layers, up_attention }))
}

/// Widths of levels, which are multiples of the first's.
fn multiples(
    c: &Config,
    name: &str,
    default: &[usize],
    (of, width): (&str, usize),
) -> Result<Vec<usize>> {
    let widths: Vec<usize> =
        c.usizes(name, default)?.iter().map(|times| times.saturating_mul(width)).collect();
    let possible = |width: &usize| (1..=1 << 16).contains(width) && width.is_multiple_of(GROUPS);
    if !(1..=16).contains(&widths.len()) || !widths.iter().all(possible) {
        let expected =
            format!("a list of at most 16 numbers which times {of} are multiples of {GROUPS}");
        return Err(c.wrong(name, &expected));
    }
    Ok(widths)
}
