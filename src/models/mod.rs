//! The networks, built from the `config.json` and the weights of diffusers / transformers folders.

pub mod clip;
pub mod decoder;
pub mod resnet;
mod transformers;
pub mod unet;
pub mod vae;
