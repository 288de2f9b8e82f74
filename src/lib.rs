//! Satellite imagery from text, on CUDA kernels written by hand and launched from Rust.

pub mod cpu;
pub mod data;
pub mod error;
pub mod evaluation;
pub mod io;
pub mod metrics;
pub mod models;
pub mod nn;
pub mod noise;
pub mod ops;
pub mod pipeline;
pub mod tensor;
pub mod text;
pub mod train;
mod types;

pub use error::{Error, Result};
