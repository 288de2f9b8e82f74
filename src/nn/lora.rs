//! Low-rank adapters (LoRA; Hu et al. 2021): W + weight * alpha / rank * B A in the place of a weight W.

mod file;
mod names;
mod trained;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::io::checkpoint::names::{Blocks, Names};
use crate::io::{TensorInfo, TensorSource};
use crate::ops::elementwise::linear_combination;
use crate::ops::matmul::matmul;
use crate::tensor::{DType, Tensor};
use file::{AdapterFile, Pair};
use names::{Layer, flat};

pub use trained::{LowRank, Targets, export};

/// An adapter that a model is to be loaded with: `FILE` or `FILE:WEIGHT`.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// A safetensors file of diffusers, peft or kohya, or the folder that one of the first two has saved it in.
    pub path: PathBuf,
    /// What it is multiplied by: 1 as it was trained, 0 not at all.
    pub weight: f32,
}

impl FromStr for Adapter {
    type Err = Error;

    /// # Errors
    /// `Argument` for a weight that is not finite.
    fn from_str(text: &str) -> Result<Self> {
        let whole = || Self { path: text.into(), weight: 1.0 };
        let Some((path, weight)) = text.rsplit_once(':') else { return Ok(whole()) };
        match weight.trim().parse::<f32>() {
            Ok(_) if Path::new(text).exists() => Ok(whole()),
            Ok(weight) if weight.is_finite() => Ok(Self { path: path.into(), weight }),
            Ok(_) => Err(Error::argument("lora", text, "FILE or FILE:WEIGHT, a finite weight")),
            // C:\lora.safetensors, say.
            Err(_) => Ok(whole()),
        }
    }
}

impl fmt::Display for Adapter {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.weight)
    }
}

impl Adapter {
    /// Tells whether the file is still the same.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn checksum(&self) -> Result<String> {
        checksum(&self.path)
    }
}

/// A checksum of a file that is added to a model.
///
/// # Errors
/// It cannot be read.
pub fn checksum(path: &Path) -> Result<String> {
    Ok(format!("{:08x}", file::checksum(path)?))
}

/// What is to be added to the weights of a model's parts.
#[derive(Clone, Default)]
pub struct Adapters {
    terms: BTreeMap<&'static str, Terms>,
    /// Part, name of a table, its rows.
    rows: BTreeMap<&'static str, (String, Rows)>,
}

/// Rows [D] of a table by their numbers.
type Rows = Arc<BTreeMap<usize, Vec<f32>>>;

/// By the weight's name.
type Terms = BTreeMap<String, Vec<Term>>;

/// A low-rank matrix that is added to a weight.
#[derive(Clone)]
struct Term {
    file: Arc<AdapterFile>,
    pair: Pair,
    weight: f32,
}

impl Adapters {
    /// Opens the adapters of a model whose parts have these weights.
    ///
    /// # Errors
    /// A file that cannot be read, or is none of an adapter; a layer that the model has not, or has in another shape. Each
    /// names file and key.
    pub fn open(adapters: &[Adapter], parts: &[(&'static str, &dyn TensorSource)]) -> Result<Self> {
        let mut all = Self::default();
        let adapted = adapters
            .iter()
            .map(|adapter| Ok((Arc::new(AdapterFile::open(&adapter.path)?), adapter.weight)));
        let adapted = adapted.collect::<Result<Vec<_>>>()?;
        if adapted.is_empty() {
            return Ok(all);
        }
        // kohya's name -> the layer; those of SDXL's UNet follow its original code, others diffusers
        let flattened: Vec<BTreeMap<String, String>> = parts
            .iter()
            .map(|(part, weights)| {
                let names = weights.names();
                let originals =
                    (*part == "unet").then(|| Names::unet_of_xl("", &Blocks::of(&names)));
                let original = |layer: &str| {
                    let (name, _) = originals.as_ref()?.original(layer)?;
                    Some((flat(&name), layer.to_owned()))
                };
                let layers = names.iter().filter_map(|name| name.strip_suffix(".weight"));
                let own = layers.clone().map(|layer| (flat(layer), layer.to_owned()));
                layers.filter_map(original).chain(own).collect()
            })
            .collect();
        for (file, weight) in adapted {
            for (part, layer, pair) in &file.pairs {
                let place =
                    parts.iter().zip(&flattened).find_map(|((name, weights), flattened)| {
                        let layer = match layer {
                            Layer::Dotted(layer) => Some(layer),
                            Layer::Flat(layer) => flattened.get(layer),
                        };
                        let weight = format!("{}.weight", layer?);
                        let here = part.is_none_or(|part| part == *name);
                        here.then(|| weights.info(&weight))
                            .flatten()
                            .map(|info| (*name, weight, info))
                    });
                let Some((part, name, info)) = place else {
                    let lacks = |part: &&str| parts.iter().all(|(name, _)| name != part);
                    let expected = match part.filter(lacks) {
                        Some(part) => format!("a model with {part}, as Stable Diffusion XL"),
                        None => "a layer of this model".to_owned(),
                    };
                    return Err(misfit(&file, &pair.down, &expected, "none"));
                };
                check_shape(&file, pair, &name, &info)?;
                let term = Term { file: file.clone(), pair: pair.clone(), weight };
                all.terms.entry(part).or_default().entry(name).or_default().push(term);
            }
        }
        Ok(all)
    }

    /// The weights of a part with what is added to them.
    pub fn merged<S: TensorSource>(&self, part: &str, base: S) -> Merged<S> {
        Merged {
            base,
            terms: self.terms.get(part).cloned().unwrap_or_default(),
            rows: self.rows.get(part).cloned(),
        }
    }

    /// Gives the table `name` of a part these rows, which it becomes long enough for.
    pub fn set_rows(&mut self, part: &'static str, name: &str, rows: BTreeMap<usize, Vec<f32>>) {
        self.rows.insert(part, (name.to_owned(), Arc::new(rows)));
    }

    /// Holds what a part's loading has left over against what was to be changed.
    ///
    /// # Errors
    /// The part's files hold an adapted weight that is not of the model.
    pub fn check_unused(&self, part: &str, unused: &[String]) -> Result<()> {
        let terms = self.terms.get(part).into_iter().flatten();
        match terms.into_iter().find(|(name, _)| unused.contains(name)) {
            Some((_, terms)) => {
                let (file, key) = (&terms[0].file, &terms[0].pair.down);
                Err(misfit(file, key, "a layer of this model", "one that it does not use"))
            }
            None => Ok(()),
        }
    }
}

fn misfit(file: &AdapterFile, key: &str, expected: &str, found: &str) -> Error {
    let advice = "The adapter is of another model.";
    Error::file(&file.path, format!("tensor {key:?}"), expected, found, advice)
}

/// Holds A [r, inputs, ...] and B [outputs, r] against W [outputs, inputs, ...].
fn check_shape(file: &AdapterFile, pair: &Pair, name: &str, info: &TensorInfo) -> Result<()> {
    let shape = |key: &str| file.tensors.info(key).map(|info| info.shape).unwrap_or_default();
    let (down, up) = (shape(&pair.down), shape(&pair.up));
    let long = |dims: &[usize]| {
        let end = dims.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
        dims[..end].to_vec()
    };
    let expected = |first: &str, rest: &[usize]| {
        let rest: String = rest.iter().map(|d| format!(", {d}")).collect();
        format!("[{first}{rest}], as {name} is {:?}", info.shape)
    };
    let [outputs, inputs @ ..] = &info.shape[..] else {
        return Err(misfit(file, &pair.down, "a weight with inputs and outputs", name));
    };
    if inputs.is_empty() || long(&down[1..]) != long(inputs) {
        let expected = expected("rank", inputs);
        return Err(misfit(file, &pair.down, &expected, &format!("{down:?}")));
    }
    if up[0] != *outputs {
        let expected = format!("[{outputs}, rank], as {name} is {:?}", info.shape);
        return Err(misfit(file, &pair.up, &expected, &format!("{up:?}")));
    }
    Ok(())
}

/// Weights with adapters added to them, in f32 (f64 where they are f64).
pub struct Merged<S> {
    base: S,
    terms: Terms,
    rows: Option<(String, Rows)>,
}

impl<S: TensorSource> Merged<S> {
    fn add(&self, name: &str, weight: Tensor) -> Result<Tensor> {
        let weight = self.with_rows(name, weight)?;
        let Some(terms) = self.terms.get(name) else { return Ok(weight) };
        let dtype = sum_dtype(weight.dtype());
        let shape = *weight.shape();
        let mut sum = weight.to_dtype(dtype)?;
        for Term { file, pair, weight } in terms {
            let read = |key: &str| {
                let matrix = file.tensors.read(key)?.to_dtype(dtype)?;
                let rows = matrix.dim(0);
                matrix.reshape([rows, matrix.shape().elements() / rows])
            };
            let product = matmul(&read(&pair.up)?, &read(&pair.down)?)?.reshape(shape)?;
            let scale = (f64::from(*weight) * pair.scale) as f32;
            sum = linear_combination(&[(1.0, &sum), (scale, &product)])?;
        }
        let finite = match dtype {
            DType::F64 => sum.to_vec::<f64>()?.iter().all(|x| x.is_finite()),
            _ => sum.to_vec::<f32>()?.iter().all(|x| x.is_finite()),
        };
        if finite {
            return Ok(sum);
        }
        let Term { file, pair, .. } = &terms[terms.len() - 1];
        let (what, found) = (format!("tensor {:?}", pair.down), format!("{name} beyond them"));
        let advice = "The file is damaged, its training has failed, or its weight is too large.";
        Err(Error::file(&file.path, what, "finite weights with the adapter", found, advice))
    }
}

impl<S> Merged<S> {
    /// The rows that a table gets.
    fn rows_of(&self, name: &str) -> Option<&Rows> {
        self.rows.as_ref().filter(|(table, _)| table == name).map(|(_, rows)| rows)
    }

    /// A table [N, D] with its rows set, as many as there are then.
    fn with_rows(&self, name: &str, table: Tensor) -> Result<Tensor> {
        let Some(rows) = self.rows_of(name) else { return Ok(table) };
        let (dtype, width) = (sum_dtype(table.dtype()), table.dim(1));
        let mut values = table.to_dtype(DType::F32)?.to_vec::<f32>()?;
        let count = rows.keys().max().map_or(0, |last| last + 1).max(table.dim(0));
        values.resize(count * width, 0.0);
        for (at, row) in rows.iter() {
            values[at * width..][..width].copy_from_slice(row);
        }
        Tensor::from_vec(values, [count, width])?.to_dtype(dtype)
    }
}

/// What a weight of this dtype is added to in.
fn sum_dtype(stored: DType) -> DType {
    if stored == DType::F64 { DType::F64 } else { DType::F32 }
}

impl<S: TensorSource> TensorSource for Merged<S> {
    fn names(&self) -> Vec<String> {
        self.base.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut info = self.base.info(name)?;
        let rows = self.rows_of(name);
        if let Some(last) = rows.and_then(|rows| rows.keys().max()) {
            info.shape[0] = info.shape[0].max(last + 1);
        }
        let adapted = (rows.is_some() || self.terms.contains_key(name)) && info.dtype.is_float();
        let dtype = if adapted { sum_dtype(info.dtype) } else { info.dtype };
        Some(TensorInfo { dtype, ..info })
    }

    fn read(&self, name: &str) -> Result<Tensor> {
        self.add(name, self.base.read(name)?)
    }

    fn read_briefly(&self, name: &str) -> Result<Tensor> {
        self.add(name, self.base.read_briefly(name)?)
    }

    fn origin(&self, name: &str) -> String {
        self.base.origin(name)
    }
}
