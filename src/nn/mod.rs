//! Layers: weights in the layout of their kernels, and a `forward`.

mod attention;
mod layers;
mod params;
mod resnet;

pub use attention::{Attention, KeyValue};
pub use layers::{Conv2d, Embedding, GroupNorm, LayerNorm, Linear};
pub use params::Params;
pub use resnet::ResnetBlock;
