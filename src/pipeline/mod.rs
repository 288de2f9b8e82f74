//! What users ask for, made of models: from a prompt to an image.

pub mod sampler;
