//! What lies between pixels and latents, of whichever class a pipeline has it.

use serde_json::Value;

use super::tiny::{TinyVae, TinyVaeConfig};
use super::{Posterior, Vae, VaeConfig};
use crate::error::Result;
use crate::io::config::Config;
use crate::nn::{Module, Parameter, Params};
use crate::tensor::{DType, Tensor};

/// The shape of an autoencoder; `vae/config.json`.
#[derive(Clone, Debug)]
pub enum AutoencoderConfig {
    /// AutoencoderKL
    Kl(VaeConfig),
    /// AutoencoderTiny
    Tiny(TinyVaeConfig),
}

impl AutoencoderConfig {
    /// Reads the configuration of the class that it names.
    ///
    /// # Errors
    /// A field has another type, or asks for what is not implemented.
    pub fn read(c: &Config) -> Result<Self> {
        match c.value("_class_name").and_then(Value::as_str) {
            Some("AutoencoderTiny") => TinyVaeConfig::read(c).map(Self::Tiny),
            _ => VaeConfig::read(c).map(Self::Kl),
        }
    }

    /// Pixels along each side of a latent pixel.
    pub fn factor(&self) -> usize {
        match self {
            Self::Kl(config) => config.factor(),
            Self::Tiny(config) => config.factor(),
        }
    }

    /// Channels of a latent.
    pub fn latent_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.latent_channels,
            Self::Tiny(config) => config.latent_channels,
        }
    }

    /// Channels of an image.
    pub fn in_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.in_channels,
            Self::Tiny(config) => config.in_channels,
        }
    }

    /// Channels of a decoded image.
    pub fn out_channels(&self) -> usize {
        match self {
            Self::Kl(config) => config.out_channels,
            Self::Tiny(config) => config.out_channels,
        }
    }

    /// The diffusion model sees latents times this.
    pub fn scaling_factor(&self) -> f32 {
        match self {
            Self::Kl(config) => config.scaling_factor,
            Self::Tiny(config) => config.scaling_factor,
        }
    }

    /// Whether activations leave the range of f16.
    pub fn force_upcast(&self) -> bool {
        matches!(self, Self::Kl(VaeConfig { force_upcast: true, .. }))
    }

    /// Pixels along a side of a tile.
    pub fn tile(&self) -> usize {
        match self {
            Self::Kl(config) => config.sample_size,
            Self::Tiny(_) => super::tiny::TILE,
        }
    }

    /// Channels at the last level of the decoder, before it narrows.
    pub fn last_width(&self) -> usize {
        match self {
            Self::Kl(VaeConfig { block_out_channels: widths, .. }) => {
                widths.get(1).or(widths.first()).copied().unwrap_or_default()
            }
            Self::Tiny(config) => config.decoder_width,
        }
    }
}

/// An autoencoder.
pub struct Autoencoder {
    config: AutoencoderConfig,
    network: Network,
}

enum Network {
    Kl(Box<Vae>),
    Tiny(Box<TinyVae>),
}

/// What an image is encoded to.
pub enum Encoded {
    /// A distribution of latents, which are to be drawn from it.
    Posterior(Posterior),
    /// Latents [B, h, w, latent_channels].
    Latents(Tensor),
}

impl Module for Autoencoder {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        match &self.network {
            Network::Kl(vae) => vae.visit(prefix, visit),
            Network::Tiny(vae) => vae.visit(prefix, visit),
        }
    }
}

impl Autoencoder {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(config: AutoencoderConfig, p: &Params) -> Result<Self> {
        let network = match config.clone() {
            AutoencoderConfig::Kl(config) => Network::Kl(Vae::load(config, p)?.into()),
            AutoencoderConfig::Tiny(config) => Network::Tiny(TinyVae::load(config, p)?.into()),
        };
        Ok(Self { config, network })
    }

    /// The shape of this model.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// What it computes in.
    pub fn dtype(&self) -> DType {
        match &self.network {
            Network::Kl(vae) => vae.dtype(),
            Network::Tiny(vae) => vae.dtype(),
        }
    }

    /// `images` [B, H, W, in_channels] in -1..1 -> latents not yet times `scaling_factor`.
    ///
    /// # Errors
    /// Another number of channels.
    pub fn encode(&self, images: &Tensor) -> Result<Encoded> {
        match &self.network {
            Network::Kl(vae) => vae.encode(images).map(Encoded::Posterior),
            Network::Tiny(vae) => vae.encode(images).map(Encoded::Latents),
        }
    }

    /// `latents` [B, h, w, latent_channels], divided by `scaling_factor` -> images [B, H, W, out_channels], about -1..1; where
    /// it is `tiled`, in tiles that are blended into each other. `proceed` is asked before each block.
    ///
    /// # Errors
    /// Another number of channels; what `proceed` answers.
    pub fn decode(
        &self,
        latents: &Tensor,
        tiled: bool,
        proceed: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Tensor> {
        match (&self.network, tiled) {
            (Network::Kl(vae), false) => vae.decode_unless(latents, proceed),
            (Network::Kl(vae), true) => vae.decode_tiled(latents, proceed),
            (Network::Tiny(vae), false) => vae.decode_unless(latents, proceed),
            (Network::Tiny(vae), true) => vae.decode_tiled(latents, proceed),
        }
    }
}
