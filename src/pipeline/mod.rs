//! What users ask for, made of models: from a prompt to an image.

mod guidance;
mod prompt;
mod request;
pub mod sampler;
mod start;
mod text_to_image;

pub use request::{InitImage, Request, Watch};
pub use text_to_image::{LoadOptions, TextToImage};
