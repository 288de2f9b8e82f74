//! Weights of a model that is trained from the beginning.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::random::{Purpose, Random};
use crate::error::Result;
use crate::tensor::{DType, Device, Tensor};

/// The weight `name` of a new model, as PyTorch's layers begin: matrices and convolutions uniform within
/// `1 / sqrt(inputs)` (He et al. 2015 with a slope of sqrt 5), tables of embeddings normal with a deviation of 0.02
/// (as CLIP's), factors of norms 1; biases 0.
///
/// What it is drawn from follows from the seed and the name, so that a layer more or less leaves the others as they are.
///
/// # Errors
/// `OutOfMemory`.
pub fn initial(seed: u64, name: &str, shape: &[usize]) -> Result<Tensor> {
    let mut random = of_name(seed, name);
    if let &[n] = shape {
        let value = if name.ends_with("weight") { 1.0 } else { 0.0 };
        return Tensor::full([n], value, DType::F32, Device::Cpu);
    }
    if name.contains("embedding") && !name.contains("time_embedding") {
        let table = random.normal(shape)?;
        return crate::ops::elementwise::scale(&table, 0.02);
    }
    let inputs: usize = shape[1..].iter().product();
    random.uniform(shape, 1.0 / (inputs as f64).sqrt())
}

/// The matrix A `name` [r, ...] of a new adapter, normal with a deviation of 1 / r, as diffusers' scripts begin.
///
/// # Errors
/// `OutOfMemory`.
pub fn low_rank(seed: u64, name: &str, shape: &[usize]) -> Result<Tensor> {
    let normal = of_name(seed, name).normal(shape)?;
    crate::ops::elementwise::scale(&normal, 1.0 / shape[0] as f32)
}

/// What the weight `name` is drawn from.
pub(super) fn of_name(seed: u64, name: &str) -> Random {
    // With fixed keys: the same in every process of a build.
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    Random::new(seed, Purpose::Weights, hasher.finish())
}
