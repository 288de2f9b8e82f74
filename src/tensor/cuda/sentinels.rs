//! Sentinels around the memory of graphs: bytes that no kernel should write. A tool that checks accesses sees where an
//! allocation ends, not where a tensor does that shares one with sentinels: they are for runs in which memory is
//! handed out as it is to users, and for cards that no such tool watches.

use std::fmt;

use cudarc::driver::{DriverError, result, sys};

/// Bytes on each side; a multiple of what the driver aligns memory to.
pub(super) const BYTES: usize = 1024;
/// Of no float that is likely: f32 -1.7e38, half -44.6 thousand, bf16 -1.7e38.
const VALUE: u8 = 0xF9;

/// Those around one piece of memory.
pub(super) struct Sentinels {
    base: sys::CUdeviceptr,
    capacity: usize,
}

/// Where something was written, counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Changed {
    Before(usize),
    Behind(usize),
}

impl fmt::Display for Changed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Before(byte) => write!(f, "byte {byte} before the start"),
            Self::Behind(byte) => write!(f, "byte {byte} behind the end"),
        }
    }
}

impl Sentinels {
    /// Those of an allocation of `capacity` bytes and twice [`BYTES`].
    pub(super) fn around(base: sys::CUdeviceptr, capacity: usize) -> Self {
        Self { base, capacity }
    }

    /// What lies between them.
    pub(super) fn inside(&self) -> sys::CUdeviceptr {
        self.base + BYTES as u64
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    fn behind(&self) -> sys::CUdeviceptr {
        self.inside() + self.capacity as u64
    }

    /// Writes them, in stream order.
    ///
    /// # Safety
    /// The allocation is as it was given, and lives until after this work in its stream.
    pub(super) unsafe fn write(&self, raw: sys::CUstream) -> Result<(), DriverError> {
        // SAFETY: by this function's contract.
        unsafe {
            result::memset_d8_async(self.base, VALUE, BYTES, raw)?;
            result::memset_d8_async(self.behind(), VALUE, BYTES, raw)
        }
    }

    /// Where they are not as they were written, nearest to the memory between them.
    ///
    /// # Safety
    /// The allocation is as it was given, lives, and nothing writes to it meanwhile.
    pub(super) unsafe fn changed(&self) -> Result<Option<Changed>, DriverError> {
        let (mut before, mut behind) = ([0; BYTES], [0; BYTES]);
        // SAFETY: by this function's contract.
        unsafe {
            result::memcpy_dtoh_sync(&mut before, self.base)?;
            result::memcpy_dtoh_sync(&mut behind, self.behind())?;
        }
        let before = before.iter().rposition(|&byte| byte != VALUE);
        let behind = behind.iter().position(|&byte| byte != VALUE);
        let before = before.map(|at| Changed::Before(BYTES - at));
        Ok(behind.map(|at| Changed::Behind(at + 1)).or(before))
    }
}
