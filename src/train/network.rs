//! What tasks have in common that train a network with batch norms, whose statistics are no weights: its parameters, new or from
//! a folder, and the folder that comes of it.

use std::path::Path;

use serde_json::Value;

use super::initial::initial;
use super::precision::Compute;
use super::vae::NoFile;
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::folder::Weights;
use crate::nn::{Keep, Module, Parameter, Params, parameters, save};
use crate::tensor::{DType, Device, Tensor};

/// New ones, as [`initial`] has them; deviations begin with 1.
pub(super) fn new_parameters(seed: u64, compute: Compute) -> Params {
    let new = move |name: &str, shape: &[usize]| match name.ends_with("running_var") {
        true => Tensor::full(shape, 1.0, DType::F32, Device::Cpu),
        false => initial(seed, name, shape),
    };
    let params = Params::initial(new, compute.precision.dtype(), compute.device);
    params.keeping(Keep::Trainable)
}

/// Those in a folder.
///
/// # Errors
/// As [`Weights::open`].
pub(super) fn known_parameters(folder: &Path, compute: Compute) -> Result<Params> {
    let weights = Weights::open(folder, None)?;
    let params = Params::new(weights, compute.precision.dtype(), compute.device);
    Ok(params.keeping(Keep::Trainable))
}

/// What is trained.
pub(super) fn weights(net: &impl Module) -> Vec<(String, &Parameter)> {
    parameters(net).into_iter().filter(|(_, p)| p.is_trainable()).collect()
}

/// What is gathered: running statistics.
pub(super) fn statistics(net: &impl Module) -> Vec<(String, &Parameter)> {
    parameters(net).into_iter().filter(|(_, p)| !p.is_trainable()).collect()
}

/// Writes `config.json` and `model.safetensors` into `folder`, which is made.
///
/// # Errors
/// They cannot be written.
pub(super) fn export(net: &impl Module, config: &Value, dtype: DType, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let text = format!("{config:#}\n");
    atomic::write(&folder.join("config.json"), |out| out.write_all(text.as_bytes()))?;
    save(net, &NoFile, &folder.join("model.safetensors"), Some(dtype))
}
