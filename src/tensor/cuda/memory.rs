//! Device memory: allocations, the pools of streams, and the buffers that tensors hold.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use cudarc::driver::{result, sys};

use super::gpu::{Gpu, lock};
use super::graph::Arena;
use super::stream::{Access, Queue, Stream, Usage, Use};
use crate::error::{Error, Result};
use crate::types::Device;

/// An allocation, given back when nobody holds it any more.
pub(super) struct Memory {
    pub(super) ptr: sys::CUdeviceptr,
    /// Bytes allocated.
    capacity: usize,
    home: Home,
}

/// Where memory goes back to.
enum Home {
    /// To the pool of the stream that it was made in.
    Queue(&'static Queue, Mutex<Usage>),
    /// To the captured graph that it belongs to.
    Arena(Arc<Arena>),
}

/// Free memory by capacity.
#[derive(Default)]
pub(super) struct FreeLists(BTreeMap<usize, Vec<sys::CUdeviceptr>>);

impl FreeLists {
    pub(super) fn take(&mut self, capacity: usize) -> Option<sys::CUdeviceptr> {
        self.0.get_mut(&capacity)?.pop()
    }

    pub(super) fn put(&mut self, capacity: usize, ptr: sys::CUdeviceptr) {
        self.0.entry(capacity).or_default().push(ptr);
    }

    pub(super) fn into_pointers(self) -> impl Iterator<Item = sys::CUdeviceptr> {
        self.0.into_values().flatten()
    }
}

/// Rounds up to a sixteenth of the next power of two, so that a class wastes at most 12.5 %.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(256);
    len.max(1).next_multiple_of(step)
}

impl Memory {
    /// At least `len` bytes for work in `stream`.
    fn new(stream: &Stream, len: usize) -> Result<Arc<Self>> {
        let queue = stream.queue();
        let gpu = queue.gpu;
        gpu.check()?;
        // Sentinels follow a tensor's last byte.
        let is_exact = !gpu.pooled || gpu.sentinels && stream.capture().is_some();
        let capacity = if is_exact { len.max(1) } else { size_class(len) };
        let (ptr, home) = match stream.capture() {
            Some(capture) => {
                capture.check_open()?;
                let ptr = capture.arena.take(capacity)?;
                (ptr, Home::Arena(capture.arena.clone()))
            }
            None => {
                let recycled = lock(&queue.pool).take(capacity);
                let ptr = recycled.map_or_else(|| gpu.allocate(capacity, queue), Ok)?;
                (ptr, Home::Queue(queue, Mutex::new(Usage::written_by(queue))))
            }
        };
        Ok(Arc::new(Self { ptr, capacity, home }))
    }

    /// As [`Self::new`], the first `len` bytes zeros.
    pub(super) fn zeroed(stream: &Stream, len: usize) -> Result<Arc<Self>> {
        let memory = Self::new(stream, len)?;
        if len > 0 {
            stream.submit("zeroing", &[(memory.clone(), Access::Write)], |raw| {
                // SAFETY: the memory has len bytes or more, and lives until after this work in its stream.
                unsafe { result::memset_d8_async(memory.ptr, 0, len, raw) }
            })?;
        }
        Ok(memory)
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Has the next work of `stream` wait for the uses of this memory that must come first, and remembers it. Under
    /// the submission lock.
    pub(super) fn order(self: &Arc<Self>, stream: &Stream, access: Access) -> Result<()> {
        match (stream.capture(), &self.home) {
            // A capture is one stream: its own memory is in order.
            (Some(capture), Home::Arena(arena)) if Arc::ptr_eq(arena, &capture.arena) => Ok(()),
            (Some(capture), Home::Arena(arena)) => {
                arena.require_contents()?;
                capture.keep(self, access);
                Ok(())
            }
            (Some(capture), Home::Queue(..)) => {
                capture.keep(self, access);
                Ok(())
            }
            (None, Home::Arena(arena)) => {
                arena.require_contents()?;
                arena.order(stream.queue(), access)
            }
            (None, Home::Queue(_, usage)) => lock(usage).order(stream.queue(), access),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let (home, usage) = match &mut self.home {
            Home::Arena(arena) => return arena.put(self.capacity, self.ptr),
            Home::Queue(home, usage) => (*home, usage.get_mut().unwrap_or_else(|e| e.into_inner())),
        };
        // Whoever gets the memory next comes after all its uses, since they lie before this in its queue. A failure
        // means that the device is lost: then nobody gets it, and the next call says so.
        if usage.queues().any(|used| !std::ptr::eq(used, home)) {
            let _order = lock(&home.gpu.submission);
            if usage.queues().any(|used| home.wait_for(used).is_err()) {
                return;
            }
        }
        if home.gpu.pooled {
            lock(&home.pool).put(self.capacity, self.ptr);
        } else {
            // SAFETY: self owns the memory, made in this queue, and is being dropped; its uses come before.
            let _ = unsafe { home.gpu.free(self.ptr, home) };
        }
    }
}

/// The memory of a tensor's storage.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    memory: Arc<Memory>,
    /// Bytes asked for.
    len: usize,
}

impl Buffer {
    /// `len` bytes of arbitrary content.
    ///
    /// # Errors
    /// `OutOfMemory` when the device has no more, even without what nobody uses; `DeviceLost`; `Cuda` when the
    /// device is not there. Likewise below.
    pub(crate) fn uninit(ordinal: usize, len: usize) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let memory = Memory::new(&Stream::current_on(gpu)?, len)?;
        Ok(Self { gpu, memory, len })
    }

    /// `len` zero bytes.
    pub(crate) fn zeroed(ordinal: usize, len: usize) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let memory = Memory::zeroed(&Stream::current_on(gpu)?, len)?;
        Ok(Self { gpu, memory, len })
    }

    /// `len` bytes of the current stream's counters ([`Stream::counters`]).
    ///
    /// # Errors
    /// `Argument` for the CPU.
    pub(crate) fn counters(device: Device, len: usize) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let memory = Stream::current_on(gpu)?.counters(len)?;
        Ok(Self { gpu, memory, len })
    }

    /// A copy of the host's bytes, which may change as soon as this returns.
    ///
    /// # Errors
    /// `Capture` inside of a capture.
    pub(crate) fn from_host(ordinal: usize, bytes: &[u8]) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        Stream::current_on(gpu)?.require_no_capture("copying to the device")?;
        let mut buffer = Self::uninit(ordinal, bytes.len())?;
        buffer.write(0, bytes)?;
        Ok(buffer)
    }

    /// Copies the host's bytes, which may change as soon as this returns, over those from `at` on.
    ///
    /// # Errors
    /// `Shape` when they reach past the end; `Capture` inside of a capture.
    pub(crate) fn write(&mut self, at: usize, bytes: &[u8]) -> Result<()> {
        self.check_range("write", at, bytes.len())?;
        let stream = Stream::current_on(self.gpu)?;
        stream.require_no_capture("copying to the device")?;
        self.gpu.staging.upload(&stream, &self.memory, at, bytes)
    }

    /// Copies `len` bytes of a buffer of the same device over those from `at` on.
    ///
    /// # Errors
    /// `Shape` when either range reaches past an end.
    pub(crate) fn copy_from(
        &mut self,
        at: usize,
        source: &Self,
        source_at: usize,
        len: usize,
    ) -> Result<()> {
        self.check_range("copy_from", at, len)?;
        source.check_range("copy_from", source_at, len)?;
        if len == 0 {
            return Ok(());
        }
        let (to, from) = (self.memory.ptr + at as u64, source.memory.ptr + source_at as u64);
        let uses = [source.used(Access::Read), self.used(Access::Write)];
        Stream::current_on(self.gpu)?.submit("copying on the device", &uses, |raw| {
            // SAFETY: both ranges lie in their buffers, which live until after this work in its stream.
            unsafe { result::memcpy_dtod_async(to, from, len, raw) }
        })
    }

    /// Copies the bytes from `at` on, after all work that writes them.
    ///
    /// # Errors
    /// `Shape` when they reach past the end; `Capture` inside of a capture; `DeviceLost` when a kernel failed.
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<()> {
        self.check_range("read", at, bytes.len())?;
        let stream = Stream::current_on(self.gpu)?;
        stream.require_no_capture("copying from the device")?;
        self.gpu.staging.download(&stream, &self.memory, at, bytes)
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.gpu.properties.ordinal
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn gpu(&self) -> &'static Gpu {
        self.gpu
    }

    pub(super) fn ptr(&self) -> sys::CUdeviceptr {
        self.memory.ptr
    }

    /// That work does this with the memory.
    pub(super) fn used(&self, access: Access) -> Use {
        (self.memory.clone(), access)
    }

    fn check_range(&self, op: &'static str, at: usize, len: usize) -> Result<()> {
        if at.checked_add(len).is_some_and(|end| end <= self.len) {
            return Ok(());
        }
        Err(Error::shape(op, format!("{len} bytes from {at} on in a buffer of {}", self.len)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_classes_waste_little_and_are_stable() {
        for len in [0, 1, 255, 256, 257, 1000, 4097, 1 << 20, (1 << 20) + 1, 123_456_789] {
            let class = size_class(len);
            assert!(class >= len && class.is_multiple_of(256), "{len} -> {class}");
            assert!(class <= len + len / 7 + 256, "{len} -> {class}");
            assert_eq!(size_class(class), class);
        }
    }
}
