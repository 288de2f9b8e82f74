//! The library's error type: what was wrong, where, what was expected, what was found, what to do.

use std::path::{Path, PathBuf};

use crate::types::{DType, Device, Shape};

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

    /// A device cannot give the memory that a tensor needs.
    #[error("{device}: out of memory: {}. A smaller batch, width or height takes less, as does dtype bf16",
        describe_memory(*asked, *free, *total))]
    OutOfMemory {
        /// The device.
        device: Device,
        /// Bytes that were asked for at once.
        asked: u64,
        /// Bytes that were free, where the system says so.
        free: Option<u64>,
        /// Bytes that the device, or this process's limit, has in all, where the system says so.
        total: Option<u64>,
    },

    /// A device that does not answer any more: what was on it is gone, and this process cannot use it again.
    #[error("{device}: lost: {message}. What was on it is gone; a new process can use it again")]
    DeviceLost {
        /// The device.
        device: Device,
        /// What the driver said, and in which call.
        message: String,
    },

    /// What a CUDA graph that is being captured cannot hold.
    #[error("{what} while a CUDA graph is captured: do it before the capture or behind it")]
    Capture {
        /// What was asked for.
        what: &'static str,
    },

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

/// "3.2 GB asked for, 1.1 GB of 16.0 GB free".
fn describe_memory(asked: u64, free: Option<u64>, total: Option<u64>) -> String {
    let size = |bytes: u64| match bytes {
        0..1_000_000 => format!("{bytes} bytes"),
        1_000_000..1_000_000_000 => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} GB", bytes as f64 / 1e9),
    };
    let asked = format!("{} asked for", size(asked));
    match (free, total) {
        (Some(free), Some(total)) => format!("{asked}, {} of {} free", size(free), size(total)),
        (Some(free), None) => format!("{asked}, {} free", size(free)),
        (None, Some(total)) => format!("{asked}, {} in all", size(total)),
        (None, None) => asked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_memory_names_the_device_the_figures_and_what_to_lower() {
        let error = |free, total| {
            Error::OutOfMemory { device: Device::Cuda(1), asked: 3_200_000_000, free, total }
                .to_string()
        };
        assert_eq!(
            error(Some(5_500_000), Some(16_000_000_000)),
            "cuda:1: out of memory: 3.2 GB asked for, 5.5 MB of 16.0 GB free. \
             A smaller batch, width or height takes less, as does dtype bf16"
        );
        assert!(error(None, None).contains("3.2 GB asked for. "));
    }
}
