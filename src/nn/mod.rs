//! Layers: named weights in the layout of their kernels, and a `forward`.

mod attention;
mod batch_norm;
mod dropout;
mod layers;
pub mod lora;
mod parameter;
mod params;
mod resnet;
mod save;

pub use attention::{KeyValue, MultiHeadAttention};
pub use batch_norm::{BatchNorm, Mode};
pub use dropout::{Draw, dropout, dropout_channels};
pub use layers::{
    Conv2d, DilatedConv2d, Embedding, GroupNorm, LayerNorm, Linear, RmsNorm, SeparableConv2d,
    TiedEmbedding,
};
pub use parameter::{Module, Parameter, parameters};
pub(crate) use parameter::{checkpoint, join, module};
pub use params::{ImageSize, Keep, Params};
pub use resnet::ResnetBlock;
pub use save::save;
pub(crate) use save::save_turned;
