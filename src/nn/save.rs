//! Writing a model's weights as the file that the reference implementation reads.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::{Module, Parameter, parameters};
use crate::error::{Error, Result};
use crate::io::safetensors::write;
use crate::io::{TensorInfo, TensorSource};
use crate::tensor::DType;

/// Writes the weights of `module` to the safetensors file `path`, under their names.
///
/// `source` is what the module was loaded from. Of it come the shapes (a projection may be stored as a 1x1
/// convolution) and the weights that are frozen, which cannot have changed since: those are written as they are stored.
/// All others are written in the dtype that they are held in. With `dtype`, everything is rounded to it.
///
/// # Errors
/// `Weights` when a frozen weight is not in `source` in its shape; the file cannot be written.
pub fn save(
    module: &dyn Module,
    source: &dyn TensorSource,
    path: &Path,
    dtype: Option<DType>,
) -> Result<()> {
    save_turned(module, source, path, dtype, &|_| false)
}

/// As [`save`], matrices whose name `is_turned` written as [inputs, outputs]. The module has them the other way round, and
/// so has `source`.
pub(crate) fn save_turned(
    module: &dyn Module,
    source: &dyn TensorSource,
    path: &Path,
    dtype: Option<DType>,
    is_turned: &dyn Fn(&str) -> bool,
) -> Result<()> {
    let all: HashMap<String, &Parameter> = parameters(module).into_iter().collect();
    let describe = |(name, parameter): (&String, &&Parameter)| {
        let shape = parameter.shape();
        // Dimensions of length 1 aside.
        let same = |stored: &TensorInfo| {
            let long =
                |dims: &[usize]| dims.iter().copied().filter(|&d| d != 1).collect::<Vec<_>>();
            long(&stored.shape) == long(&shape)
        };
        let stored = source.info(name).filter(same);
        let held = match (parameter.tensor(), &stored) {
            (Some(tensor), _) => tensor.dtype(),
            (None, Some(stored)) => stored.dtype,
            (None, None) => {
                return Err(Error::Weights(format!(
                    "{name} {shape} is frozen, and {} does not hold it: save from the folder that the model was \
                     loaded from, or load it with plain weights",
                    source.origin(name)
                )));
            }
        };
        let mut shape = stored.map_or_else(|| shape.to_vec(), |stored| stored.shape);
        if is_turned(name) {
            shape.reverse();
        }
        Ok((name.clone(), TensorInfo { shape, dtype: dtype.unwrap_or(held) }))
    };
    let infos = all.iter().map(describe).collect::<Result<Vec<_>>>()?;
    let announced: HashMap<String, TensorInfo> = infos.iter().cloned().collect();
    // transformers and diffusers ask for it.
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    write(path, infos, &metadata, |name| {
        let TensorInfo { shape, dtype } = &announced[name];
        let tensor = match all[name].tensor() {
            Some(tensor) => tensor.detach(),
            None => source.read(name)?,
        };
        let tensor = if is_turned(name) { tensor.transpose(0, 1)? } else { tensor };
        tensor.to_dtype(*dtype)?.reshape(shape)
    })
}
