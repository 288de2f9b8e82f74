//! Named weights on their way from a file into layers.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::io::{TensorInfo, TensorSource};
use crate::nn::Parameter;
use crate::ops::weight::{Layout, Weight};
use crate::tensor::cuda::Range;
use crate::tensor::{DType, Device, Tensor};

/// A node in the tree of a model's weights: `params.pp("down_blocks").pp(0)` is where the layers of the
/// first down block find theirs.
///
/// A missing or misshapen weight does not stop the loading: a zero stands in for it and the fault is
/// noted, so that [`Params::finish`] names every fault at once.
#[derive(Clone)]
pub struct Params {
    loading: Arc<Loading>,
    model: &'static str,
    prefix: String,
    dtype: DType,
    images: ImageSize,
    keep: Keep,
}

/// What layers keep of the weights that they multiply by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Keep {
    /// The layout for the kernel alone: the least memory, for inference.
    #[default]
    Frozen,
    /// The same, matrices of linear layers in 8 bits with a scale for each output: a quarter of the memory, on a CPU.
    Quantized,
    /// The elements: weights can be read and changed.
    Plain,
    /// The elements, and gradients reach them: in f32 (f64 for layers in f64), whatever layers compute in.
    Trainable,
}

/// How large the images are that 3x3 convolutions see: what algorithm repays its memory, on a CPU in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageSize {
    /// Too small: plain sums, the least memory.
    Small,
    /// Winograd's F(2x2, 3x3): 16/9 of the memory.
    #[default]
    Medium,
    /// Winograd's F(4x4, 3x3): 4 times the memory.
    Large,
}

impl ImageSize {
    /// For images of `side` pixels along each side, where those of `large` repay four times the memory.
    pub fn of(side: usize, large: usize) -> Self {
        if side >= large { Self::Large } else { Self::Medium }
    }
}

/// Makes a weight of a name and a shape.
type Initial = Box<dyn Fn(&str, &[usize]) -> Result<Tensor> + Send + Sync>;

/// A source of weights that are not there yet.
struct Nothing;

impl TensorSource for Nothing {
    fn names(&self) -> Vec<String> {
        Vec::new()
    }
    fn info(&self, _: &str) -> Option<TensorInfo> {
        None
    }
    fn read(&self, name: &str) -> Result<Tensor> {
        Err(Error::Weights(format!("{name} is in no file")))
    }
    fn origin(&self, _: &str) -> String {
        "no file".into()
    }
}

/// What all nodes of a tree share.
struct Loading {
    source: Box<dyn TensorSource>,
    /// Instead of the source: what makes new weights.
    initial: Option<Initial>,
    /// Elements of all tensors in the source.
    elements: usize,
    device: Device,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    used: BTreeSet<String>,
    missing: Vec<String>,
    misshapen: Vec<String>,
    /// Elements of the zeros that stand in for missing and misshapen weights.
    stand_ins: usize,
}

impl Params {
    /// The root of the tree. Layers hold their matrices in `dtype`, on `device`.
    pub fn new(source: impl TensorSource + 'static, dtype: DType, device: Device) -> Self {
        let of = |name: &String| Some(source.info(name)?.shape.iter().product::<usize>());
        let elements = source.names().iter().filter_map(of).sum();
        Self::rooted(Box::new(source), None, elements, dtype, device)
    }

    /// The root of a new model's tree, for which `initial` makes each weight of a name and a shape.
    pub fn initial(
        initial: impl Fn(&str, &[usize]) -> Result<Tensor> + Send + Sync + 'static,
        dtype: DType,
        device: Device,
    ) -> Self {
        Self::rooted(Box::new(Nothing), Some(Box::new(initial)), 0, dtype, device)
    }

    fn rooted(
        source: Box<dyn TensorSource>,
        initial: Option<Initial>,
        elements: usize,
        dtype: DType,
        device: Device,
    ) -> Self {
        let loading = Loading { source, initial, elements, device, log: Mutex::default() };
        let (loading, keep) = (Arc::new(loading), Keep::default());
        Self {
            loading,
            model: "",
            prefix: String::new(),
            dtype,
            images: ImageSize::default(),
            keep,
        }
    }

    /// The same weights, of the part `model` of a pipeline: what [`Self::range`] begins with.
    pub fn of_model(&self, model: &'static str) -> Self {
        Self { model, ..self.clone() }
    }

    /// Where profilers show what the layers at this node launch.
    pub fn range(&self) -> Range {
        let parts = [self.model, &self.prefix].into_iter().filter(|part| !part.is_empty());
        Range::new(&parts.collect::<Vec<_>>().join("."))
    }

    /// The subtree `name`.
    pub fn pp(&self, name: impl Display) -> Self {
        let prefix = self.path(name);
        Self { prefix, ..self.clone() }
    }

    /// The same weights for layers that compute in `dtype`.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, ..self.clone() }
    }

    /// The same weights for convolutions over images of another size.
    pub fn over(&self, images: ImageSize) -> Self {
        Self { images, ..self.clone() }
    }

    /// What convolutions are laid out for.
    pub fn images(&self) -> ImageSize {
        self.images
    }

    /// The same weights, of which layers keep more, or less.
    pub fn keeping(&self, keep: Keep) -> Self {
        Self { keep, ..self.clone() }
    }

    /// The same weights, no gradient reaching those that are read from here on: statistics, say.
    pub fn untrained(&self) -> Self {
        let keep = if self.keep == Keep::Trainable { Keep::Plain } else { self.keep };
        self.keeping(keep)
    }

    /// Whether layers keep what their kernels need alone.
    fn is_frozen(&self) -> bool {
        matches!(self.keep, Keep::Frozen | Keep::Quantized)
    }

    /// What layers compute in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where layers compute.
    pub fn device(&self) -> Device {
        self.loading.device
    }

    /// Whether there is a weight `name` in this subtree.
    pub fn contains(&self, name: &str) -> bool {
        self.loading.initial.is_some() || self.loading.source.info(&self.path(name)).is_some()
    }

    /// The weight `name` on the CPU as its file holds it: what layers pack into their own layout.
    ///
    /// # Errors
    /// The file cannot be read. A missing or misshapen weight is noted for [`Self::finish`].
    pub fn raw(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.read(name, shape, false)
    }

    /// [`Self::raw`]; `brief` where the tensor is let go of soon.
    fn read(&self, name: &str, shape: &[usize], brief: bool) -> Result<Tensor> {
        let path = self.path(name);
        if let Some(initial) = &self.loading.initial {
            return initial(&path, shape);
        }
        let origin = self.loading.source.origin(&path);
        let mut log = self.loading.log.lock().unwrap_or_else(PoisonError::into_inner);
        let fault = match self.loading.source.info(&path) {
            None => {
                log.missing.push(format!("{path} {shape:?} (looked in {origin})"));
                true
            }
            Some(info) if !info.dtype.is_float() => {
                log.misshapen.push(format!(
                    "{path}: expected a floating-point dtype, found {} (in {origin})",
                    info.dtype
                ));
                true
            }
            // Projections are stored as 1x1 convolutions or as matrices, depending on the writer's version.
            Some(info) if !same_but_for_ones(&info.shape, shape) => {
                log.misshapen.push(format!(
                    "{path}: expected {shape:?}, found {:?} (in {origin})",
                    info.shape
                ));
                true
            }
            Some(_) => false,
        };
        log.used.insert(path.clone());
        if fault {
            let elements = shape.iter().fold(1, |n: usize, &d| n.saturating_mul(d));
            log.stand_ins = log.stand_ins.saturating_add(elements);
            let too_much = log.stand_ins > self.loading.elements;
            drop(log);
            // A model that is larger than its file is not of this file: what is known by now must do.
            return if too_much {
                Err(self.finish().expect_err("a fault was noted"))
            } else {
                Tensor::zeros(shape, DType::F16, Device::Cpu)
            };
        }
        drop(log);
        let source = &self.loading.source;
        if brief { source.read_briefly(&path) } else { source.read(&path) }?.reshape(shape)
    }

    /// The weight `name` that a layer multiplies by, in the layout of its kernel.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub fn weight(&self, name: &str, shape: &[usize], layout: Layout) -> Result<Parameter> {
        let raw = self.read(name, shape, self.is_frozen())?;
        Ok(Parameter::laid_out(match self.keep {
            Keep::Quantized if layout == Layout::Matrix => {
                Weight::quantized(&self.placed(raw)?, self.dtype)?
            }
            Keep::Frozen | Keep::Quantized => {
                Weight::frozen(&self.placed(raw)?, layout, self.dtype)?
            }
            Keep::Plain | Keep::Trainable => Weight::plain(&self.kept(raw)?, layout, self.dtype)?,
        }))
    }

    /// The weight `name` as a tensor of the layers' dtype on their device; f32 where it is trained in 16 bits.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Parameter> {
        let tensor = self.kept(self.raw(name, shape)?)?;
        Ok(match self.keep {
            Keep::Frozen | Keep::Quantized => Parameter::frozen(tensor),
            Keep::Plain | Keep::Trainable => Parameter::plain(tensor),
        })
    }

    /// The vector `name` `[n]` in the dtype that biases and norms are kept in: f32, or f64 for f64 layers.
    ///
    /// # Errors
    /// As [`Self::raw`].
    pub fn vector(&self, name: &str, n: usize) -> Result<Parameter> {
        let dtype = if self.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        self.with_dtype(dtype).tensor(name, &[n])
    }

    /// A tensor on the layers' device, which gets it as its file has it: that is what it takes the least time to send.
    fn placed(&self, raw: Tensor) -> Result<Tensor> {
        let has_kernels = raw.dtype() != DType::F64;
        let raw = if has_kernels { raw } else { raw.to_dtype(self.dtype)? };
        raw.to_device(self.device())
    }

    /// A tensor as layers hold it.
    fn kept(&self, raw: Tensor) -> Result<Tensor> {
        let dtype = match self.keep {
            Keep::Trainable if self.dtype != DType::F64 => DType::F32,
            _ => self.dtype,
        };
        let tensor = self.placed(raw)?.to_dtype(dtype)?;
        Ok(if self.keep == Keep::Trainable { tensor.variable() } else { tensor })
    }

    /// Ends the loading; call it on any node when the model stands. Returns the names that nothing used.
    ///
    /// # Errors
    /// `Weights`, naming every weight that was missing or had another shape, or when the files have layers that the
    /// model lacks.
    pub fn finish(&self) -> Result<Vec<String>> {
        let log = self.loading.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unused: Vec<String> = self
            .loading
            .source
            .names()
            .into_iter()
            .filter(|name| !log.used.contains(name))
            .collect();
        // A tensor whose name differs from a used one's in numbers only is of a layer that the model lacks.
        let used: BTreeSet<String> = log.used.iter().map(|name| without_numbers(name)).collect();
        let lacking = unused.iter().find(|name| used.contains(&without_numbers(name)));
        if log.missing.is_empty() && log.misshapen.is_empty() && lacking.is_none() {
            return Ok(unused);
        }
        let origin = |name: &String| format!("{name} (in {})", self.loading.source.origin(name));
        let unused: Vec<String> = unused.iter().map(origin).collect();
        let mut message = String::from("the weights do not fit the model");
        for (title, names) in [
            ("missing", &log.missing),
            ("of another shape or dtype", &log.misshapen),
            ("in the files but not in the model", &unused),
        ] {
            if !names.is_empty() {
                message += &format!("\n  {title} ({}):", names.len());
                for name in names.iter().take(NAMED) {
                    message += &format!("\n    {name}");
                }
                if names.len() > NAMED {
                    message += &format!("\n    ... and {} more", names.len() - NAMED);
                }
            }
        }
        message += "\nIs the configuration the one these weights were saved with?";
        Err(Error::Weights(message))
    }

    fn path(&self, name: impl Display) -> String {
        if self.prefix.is_empty() { name.to_string() } else { format!("{}.{name}", self.prefix) }
    }
}

/// A name with every number in it replaced: `layers.11.bias` becomes `layers.#.bias`.
fn without_numbers(name: &str) -> String {
    let part = |p: &str| if p.bytes().all(|b| b.is_ascii_digit()) { "#" } else { p }.to_owned();
    name.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// An error lists at most this many names of a kind.
const NAMED: usize = 20;

/// Whether two shapes are equal when dimensions of length 1 at the end are left out: [C, C] is [C, C, 1, 1].
fn same_but_for_ones(a: &[usize], b: &[usize]) -> bool {
    let trim = |s: &[usize]| s.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
    let (n, m) = (trim(a), trim(b));
    a[..n] == b[..m] && a.iter().product::<usize>() == b.iter().product::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Two;

    impl TensorSource for Two {
        fn names(&self) -> Vec<String> {
            vec!["a.weight".into(), "b".into()]
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            let shape = match name {
                "a.weight" => vec![2, 3, 1, 1],
                "b" => vec![4],
                _ => return None,
            };
            Some(TensorInfo { shape, dtype: DType::F32 })
        }
        fn read(&self, name: &str) -> Result<Tensor> {
            Tensor::full(&self.info(name).unwrap().shape, 1.0, DType::F32, Device::Cpu)
        }
        fn origin(&self, _: &str) -> String {
            "two.safetensors".into()
        }
    }

    #[test]
    fn the_end_names_what_was_missing_misshapen_and_unused() {
        let params = Params::new(Two, DType::F32, Device::Cpu);
        assert_eq!(*params.pp("a").tensor("weight", &[2, 3]).unwrap().shape(), [2, 3]);
        assert_eq!(params.finish().unwrap(), ["b"]);
        assert_eq!(*params.tensor("b", &[5]).unwrap().shape(), [5]);
        params.pp("c").pp(7).vector("bias", 3).unwrap();
        let message = params.finish().unwrap_err().to_string();
        assert!(message.contains("c.7.bias [3] (looked in two.safetensors)"), "{message}");
        assert!(message.contains("b: expected [5], found [4] (in two.safetensors)"), "{message}");
        assert!(!message.contains("not in the model"), "{message}");
    }

    /// `layers.N.bias` [2], of three layers.
    struct Layers;

    impl TensorSource for Layers {
        fn names(&self) -> Vec<String> {
            (0..3).map(|i| format!("layers.{i}.bias")).collect()
        }
        fn info(&self, name: &str) -> Option<TensorInfo> {
            let known = self.names().iter().any(|n| n == name);
            known.then(|| TensorInfo { shape: vec![2], dtype: DType::F32 })
        }
        fn read(&self, _: &str) -> Result<Tensor> {
            Tensor::full([2], 1.0, DType::F32, Device::Cpu)
        }
        fn origin(&self, _: &str) -> String {
            "layers.safetensors".into()
        }
    }

    #[test]
    fn layers_that_the_model_lacks_are_an_error() {
        let params = Params::new(Layers, DType::F32, Device::Cpu);
        (0..2).for_each(|i| drop(params.pp("layers").pp(i).vector("bias", 2).unwrap()));
        let message = params.finish().unwrap_err().to_string();
        assert!(message.contains("layers.2.bias (in layers.safetensors)"), "{message}");
        params.pp("layers").pp(2).vector("bias", 2).unwrap();
        assert_eq!(params.finish().unwrap(), [""; 0]);
    }

    #[test]
    fn a_model_larger_than_its_file_is_not_made() {
        let params = Params::new(Layers, DType::F32, Device::Cpu); // 6 elements
        params.vector("a", 6).unwrap();
        let message = params.vector("b", 1).err().unwrap().to_string();
        assert!(message.contains("a [6]") && message.contains("b [1]"), "{message}");
        let params = Params::new(Layers, DType::F32, Device::Cpu);
        let message = params.tensor("huge", &[usize::MAX, usize::MAX]).err().unwrap().to_string();
        assert!(message.contains("huge"), "{message}");
    }

    #[test]
    fn only_trailing_ones_may_differ() {
        assert!(same_but_for_ones(&[2, 3], &[2, 3, 1, 1]));
        assert!(!same_but_for_ones(&[2, 3], &[2, 3, 3, 1]));
        assert!(!same_but_for_ones(&[2, 3], &[3, 2]));
        assert!(!same_but_for_ones(&[1, 3], &[3]));
    }
}
