//! Writing into a tensor that exists: what a captured graph reads stays at its address.

use std::sync::Arc;

use super::{Storage, Tensor};
use crate::error::{Error, Result};

impl Tensor {
    /// Overwrites the elements with those of `source`, which may be on any device. The only way to change what a
    /// [`cuda::Graph`](super::cuda::Graph) computes on.
    ///
    /// # Errors
    /// `Shape` unless the shapes are equal and this is contiguous; `DType` unless the dtypes are equal; `Value` when
    /// another tensor shares the storage.
    pub fn assign(&mut self, source: &Self) -> Result<()> {
        const OP: &str = "assign";
        if self.shape != source.shape || !self.is_contiguous() {
            let message =
                format!("{} into {}, which must be equal and contiguous", source.shape, self.shape);
            return Err(Error::shape(OP, message));
        }
        if self.dtype != source.dtype {
            return Err(Error::DType { op: OP, expected: self.dtype.name(), found: source.dtype });
        }
        let source = source.contiguous()?;
        let size = self.dtype.size();
        let (at, from, len) = (self.offset * size, source.offset * size, self.len() * size);
        let Some(storage) = Arc::get_mut(&mut self.storage) else {
            return Err(Error::value(OP, "the tensor's storage is shared with another tensor"));
        };
        match (storage, &*source.storage) {
            (Storage::Cpu(to), Storage::Cpu(source)) => {
                to.bytes_mut()[at..at + len].copy_from_slice(&source.bytes()[from..from + len]);
                Ok(())
            }
            (Storage::Cuda(to), Storage::Cpu(source)) => {
                to.write(at, &source.bytes()[from..from + len])
            }
            (Storage::Cpu(to), Storage::Cuda(source)) => {
                source.read(from, &mut to.bytes_mut()[at..at + len])
            }
            (Storage::Cuda(to), Storage::Cuda(source)) if to.ordinal() == source.ordinal() => {
                to.copy_from(at, source, from, len)
            }
            (Storage::Cuda(to), Storage::Cuda(source)) => {
                let mut host = vec![0; len];
                source.read(from, &mut host)?;
                to.write(at, &host)
            }
        }
    }
}
