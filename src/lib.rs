//! Satellite imagery from text, on CUDA kernels written by hand and launched from Rust.
