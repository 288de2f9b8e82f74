//! The networks, built from the `config.json` and the weights of diffusers / transformers folders; those that metrics see
//! through, from a file of weights alone.

pub mod clip;
pub mod decoder;
pub mod inception;
pub mod lpips;
pub mod resnet;
pub mod segmentation;
mod transformers;
pub mod unet;
pub mod vae;
