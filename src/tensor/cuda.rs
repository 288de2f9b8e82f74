//! Memory on CUDA devices, and all of CUDA's unsafe code.

use crate::error::{Error, Result};

/// Device memory.
pub(crate) struct Buffer {
    ordinal: usize,
    len: usize,
}

impl Buffer {
    pub(crate) fn uninit(ordinal: usize, _len: usize) -> Result<Self> {
        Err(Error::Cuda(format!("device {ordinal}: this build has no CUDA storage")))
    }

    pub(crate) fn zeroed(ordinal: usize, len: usize) -> Result<Self> {
        Self::uninit(ordinal, len)
    }

    pub(crate) fn from_host(ordinal: usize, bytes: &[u8]) -> Result<Self> {
        Self::uninit(ordinal, bytes.len())
    }

    pub(crate) fn to_host(&self, _bytes: &mut [u8]) -> Result<()> {
        Err(Error::Cuda("this build has no CUDA storage".into()))
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}
