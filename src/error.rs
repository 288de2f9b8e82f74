//! The library's error type: what was wrong, where, what was expected, what was found, what to do.

use std::path::{Path, PathBuf};

use crate::tensor::{DType, Device, Shape};

/// Result with nadir's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong inside the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that an operation cannot combine.
    #[error("{op}: shape mismatch: {message}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// What was expected and found.
        message: String,
    },

    /// A dtype that an operation does not take.
    #[error("{op}: dtype {found} is not supported here (expected {expected})")]
    DType {
        /// The operation.
        op: &'static str,
        /// What it takes.
        expected: &'static str,
        /// What it was given.
        found: DType,
    },

    /// Tensors that live on different devices.
    #[error("{op}: tensors are on different devices, {a} and {b}: move one with to_device")]
    Device {
        /// The operation.
        op: &'static str,
        /// Device of the first tensor.
        a: Device,
        /// Device of the other.
        b: Device,
    },

    /// The operation has no kernel for the device of its inputs.
    #[error("{op} has no CUDA kernel in this build yet: run with --device cpu")]
    NoKernel {
        /// The operation.
        op: &'static str,
    },

    /// The operation has no backward form.
    #[error("{op} has no gradient yet")]
    NoGradient {
        /// The operation.
        op: &'static str,
    },

    /// A value in a tensor that an operation cannot take (an id outside a vocabulary, say).
    #[error("{op}: {message}")]
    Value {
        /// The operation.
        op: &'static str,
        /// What was wrong with which value.
        message: String,
    },

    /// The CUDA driver or a kernel failed.
    #[error("CUDA: {0}")]
    Cuda(String),

    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// A file was read, but does not hold what it should.
    #[error("{path}: {what}: expected {expected}, found {found}. {advice}")]
    File {
        /// The file.
        path: PathBuf,
        /// The field or tensor.
        what: String,
        /// What belongs there.
        expected: String,
        /// What is there.
        found: String,
        /// What to do about it.
        advice: String,
    },

    /// Weights that a model needs and its files do not hold, or hold in another shape.
    #[error("{0}")]
    Weights(String),

    /// A request that cannot be served as it is: size, strength, number of steps, ...
    #[error("{name}: {found} is not possible: {expected}")]
    Argument {
        /// The argument, in the words of the command line.
        name: &'static str,
        /// The value given.
        found: String,
        /// What is possible.
        expected: String,
    },

    /// A number that left the range of its type: NaN or infinity where none may be.
    #[error("{0}")]
    NotFinite(String),

    /// Stopped on request (Ctrl-C).
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A shape error of operation `op`.
    pub fn shape(op: &'static str, message: impl Into<String>) -> Self {
        Self::Shape { op, message: message.into() }
    }

    /// "Expected this shape, found that one", of operation `op`.
    pub fn expected_shape(op: &'static str, what: &str, expected: &str, found: &Shape) -> Self {
        Self::shape(op, format!("{what}: expected {expected}, found {found}"))
    }

    /// A value error of operation `op`.
    pub fn value(op: &'static str, message: impl Into<String>) -> Self {
        Self::Value { op, message: message.into() }
    }

    /// The operation has no CUDA kernel yet.
    pub fn no_kernel(op: &'static str) -> Self {
        Self::NoKernel { op }
    }

    /// The operation has no backward form yet.
    pub fn no_gradient(op: &'static str) -> Self {
        Self::NoGradient { op }
    }

    /// An input or output error on `path`.
    pub fn io(path: impl AsRef<Path>, source: std::io::Error) -> Self {
        Self::Io { path: path.as_ref().to_path_buf(), source }
    }

    /// A file whose content is not what it should be.
    pub fn file(
        path: impl AsRef<Path>,
        what: impl Into<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self::File {
            path: path.as_ref().to_path_buf(),
            what: what.into(),
            expected: expected.into(),
            found: found.into(),
            advice: advice.into(),
        }
    }

    /// An argument that cannot be served.
    pub fn argument(name: &'static str, found: impl ToString, expected: impl Into<String>) -> Self {
        Self::Argument { name, found: found.to_string(), expected: expected.into() }
    }
}
