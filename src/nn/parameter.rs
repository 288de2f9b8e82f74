//! Weights as layers hold them, and the walk over those of a model.

use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, Result};
use crate::ops::weight::Weight;
use crate::tensor::tape;
use crate::tensor::{DType, Shape, Tensor};

/// A weight of a layer.
///
/// It is *frozen* when it is held as its kernel needs it and no otherwise: as its file has it, for good. Else its
/// elements can be read and [replaced](Self::set), and it is *trainable* when gradients are to reach it. It can be
/// changed through a shared reference: a model that is being trained goes on being used.
pub struct Parameter(RwLock<Value>);

enum Value {
    /// Read as it is: a bias, a norm's factor, a table.
    Plain(Tensor),
    /// The same of a frozen model: as its file has it.
    Frozen(Tensor),
    /// Multiplied by.
    LaidOut(Weight),
}

impl Parameter {
    pub(super) fn plain(tensor: Tensor) -> Self {
        Self(RwLock::new(Value::Plain(tensor)))
    }

    pub(super) fn frozen(tensor: Tensor) -> Self {
        Self(RwLock::new(Value::Frozen(tensor)))
    }

    pub(super) fn laid_out(weight: Weight) -> Self {
        Self(RwLock::new(Value::LaidOut(weight)))
    }

    /// [`Weight::joined`] of parameters that are multiplied by.
    pub(super) fn joined(parts: &[&Self]) -> Result<Option<Weight>> {
        let mut weights: Vec<Weight> = parts.iter().map(|part| part.weight()).collect();
        let Some(all) = Weight::joined(&mut weights)? else { return Ok(None) };
        for (part, weight) in parts.iter().zip(weights) {
            *part.0.write().unwrap_or_else(PoisonError::into_inner) = Value::LaidOut(weight);
        }
        Ok(Some(all))
    }

    fn with<R>(&self, f: impl FnOnce(&Value) -> R) -> R {
        f(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Its shape, as the reference implementation has it.
    pub fn shape(&self) -> Shape {
        self.with(|value| match value {
            Value::Plain(tensor) | Value::Frozen(tensor) => *tensor.shape(),
            Value::LaidOut(weight) => *weight.shape(),
        })
    }

    /// What its elements are held in; of a frozen weight, what it is multiplied in.
    pub fn dtype(&self) -> DType {
        self.with(|value| match value {
            Value::Plain(tensor) | Value::Frozen(tensor) => tensor.dtype(),
            Value::LaidOut(weight) => weight.tensor().map_or(weight.dtype(), Tensor::dtype),
        })
    }

    /// Bytes that are read to compute with it.
    pub fn bytes(&self) -> usize {
        self.with(|value| match value {
            Value::Plain(tensor) | Value::Frozen(tensor) => tensor.len() * tensor.dtype().size(),
            Value::LaidOut(weight) => weight.bytes(),
        })
    }

    /// Its elements; `None` when it is frozen. Of a trainable parameter this is the variable by which
    /// [`Gradients`](crate::ops::gradient::Gradients) are asked for its gradient.
    pub fn tensor(&self) -> Option<Tensor> {
        self.with(|value| match value {
            Value::Plain(tensor) => Some(tensor.clone()),
            Value::Frozen(_) => None,
            Value::LaidOut(weight) => weight.tensor().cloned(),
        })
    }

    /// Whether gradients reach it.
    pub fn is_trainable(&self) -> bool {
        self.tensor().is_some_and(|tensor| tensor.requires_grad())
    }

    /// Lets gradients reach it, or not.
    ///
    /// # Errors
    /// `Value` when it is frozen: load the model with plain weights.
    pub fn set_trainable(&self, trainable: bool) -> Result<()> {
        let tensor = self.elements()?;
        self.replace(if trainable { tensor.variable() } else { tensor.detach() })
    }

    /// Gives it other elements, of its shape, dtype and device. A trainable parameter becomes a new variable, and what
    /// multiplies by it lays it out anew.
    ///
    /// # Errors
    /// `Shape`, `DType` or `Device` when they differ, `Value` when it is frozen.
    pub fn set(&self, tensor: &Tensor) -> Result<()> {
        const OP: &str = "set";
        let before = self.elements()?;
        if tensor.shape() != before.shape() {
            let expected = before.shape().to_string();
            return Err(Error::expected_shape(OP, "parameter", &expected, tensor.shape()));
        }
        if tensor.dtype() != before.dtype() {
            let (expected, found) = (before.dtype().name(), tensor.dtype());
            return Err(Error::DType { op: OP, expected, found });
        }
        if tensor.device() != before.device() {
            return Err(Error::Device { op: OP, a: before.device(), b: tensor.device() });
        }
        self.replace(if before.requires_grad() { tensor.variable() } else { tensor.detach() })
    }

    /// Whether it is a matrix or a convolution, rather than read as it is.
    pub(super) fn is_multiplied_by(&self) -> bool {
        self.with(|value| matches!(value, Value::LaidOut(_)))
    }

    /// Holds what was computed from others, as it is: gradients go on to those.
    pub(super) fn hold(&self, tensor: Tensor) -> Result<()> {
        self.replace(tensor)
    }

    fn elements(&self) -> Result<Tensor> {
        let message = "the parameter is frozen: load the model with plain weights";
        self.tensor().ok_or_else(|| Error::value("parameter", message))
    }

    fn replace(&self, tensor: Tensor) -> Result<()> {
        let mut value = self.0.write().unwrap_or_else(PoisonError::into_inner);
        *value = match &*value {
            Value::Plain(_) | Value::Frozen(_) => Value::Plain(tensor),
            Value::LaidOut(weight) => {
                Value::LaidOut(Weight::plain(&tensor, weight.layout(), weight.dtype())?)
            }
        };
        Ok(())
    }

    /// Lets go of the layout that was made to multiply by it, unless it is frozen; it is made again when it is needed.
    fn let_go_of_layout(&self) -> Result<()> {
        match self.with(|value| matches!(value, Value::LaidOut(_))).then(|| self.tensor()) {
            Some(Some(tensor)) => self.replace(tensor),
            _ => Ok(()),
        }
    }

    /// What an operation reads as it is.
    ///
    /// # Panics
    /// For a parameter that is multiplied by: a layer knows which of its own are which.
    pub(crate) fn value(&self) -> Tensor {
        self.with(|value| match value {
            Value::Plain(tensor) | Value::Frozen(tensor) => tensor.clone(),
            Value::LaidOut(_) => panic!("a parameter that a kernel multiplies by"),
        })
    }

    /// What an operation multiplies by.
    ///
    /// # Panics
    /// For a parameter that is read as it is: a layer knows which of its own are which.
    pub(super) fn weight(&self) -> Weight {
        self.with(|value| match value {
            Value::LaidOut(weight) => weight.clone(),
            Value::Plain(_) | Value::Frozen(_) => {
                panic!("a parameter that no kernel multiplies by")
            }
        })
    }
}

/// A layer, a block of them, or a model: something with named weights.
pub trait Module {
    /// Calls `visit` with the name and the place of each weight, in the order of the definition. Names are those of the
    /// files, behind `prefix`.
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter));
}

/// What `f` makes of a block and `inputs`, as a [segment](tape::checkpoint) of the computation. Where segments keep their
/// inputs alone, the block's weights do not keep their layouts either.
pub(crate) fn checkpoint<M: Module + Send + Sync + 'static>(
    block: &Arc<M>,
    inputs: &[&Tensor],
    f: impl Fn(&M, &[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (block, sparing) = (block.clone(), tape::is_checkpointing());
    tape::checkpoint(inputs, move |inputs| {
        let result = f(&block, inputs)?;
        if sparing {
            parameters(&*block).iter().try_for_each(|(_, weight)| weight.let_go_of_layout())?;
        }
        Ok(result)
    })
}

/// The weights of a model by name.
pub fn parameters(module: &dyn Module) -> Vec<(String, &Parameter)> {
    let mut all = Vec::new();
    module.visit("", &mut |name, parameter| all.push((name, parameter)));
    all
}

/// `prefix.name`; either may be empty.
pub(crate) fn join(prefix: &str, name: impl std::fmt::Display) -> String {
    let name = name.to_string();
    match (prefix.is_empty(), name.is_empty()) {
        (true, _) => name,
        (_, true) => prefix.to_owned(),
        _ => format!("{prefix}.{name}"),
    }
}

impl Module for Parameter {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        visit(prefix.to_owned(), self);
    }
}

impl<M: Module> Module for Option<M> {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        if let Some(module) = self {
            module.visit(prefix, visit);
        }
    }
}

impl<M: Module> Module for Arc<M> {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        (**self).visit(prefix, visit);
    }
}

impl<M: Module> Module for Vec<M> {
    fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
        for (i, module) in self.iter().enumerate() {
            module.visit(&join(prefix, i), visit);
        }
    }
}

/// Implements [`Module`] for a struct: the name in the files of each field that has weights.
///
/// ```text
/// module!(ResnetBlock { "norm1": norm1, "conv_shortcut": shortcut });
/// ```
///
/// expands to
///
/// ```text
/// impl Module for ResnetBlock {
///     fn visit<'a>(&'a self, prefix: &str, visit: &mut dyn FnMut(String, &'a Parameter)) {
///         self.norm1.visit(&join(prefix, "norm1"), visit);
///         self.shortcut.visit(&join(prefix, "conv_shortcut"), visit);
///     }
/// }
/// ```
///
/// Options are visited when they are there, vectors by index; an empty name leaves the prefix as it is.
macro_rules! module {
    ($T:ty { $($name:literal: $field:ident),+ $(,)? }) => {
        impl $crate::nn::Module for $T {
            fn visit<'a>(
                &'a self,
                prefix: &str,
                visit: &mut dyn FnMut(String, &'a $crate::nn::Parameter),
            ) {
                $($crate::nn::Module::visit(&self.$field, &$crate::nn::join(prefix, $name), visit);)+
            }
        }
    };
}
pub(crate) use module;
