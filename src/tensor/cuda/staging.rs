//! Copies between host and device, through page-locked memory: only from there does the device copy beside the
//! host's own work.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use cudarc::driver::{DriverError, result, sys};

use super::gpu::{Gpu, lock};
use super::memory::Memory;
use super::stream::{Access, Stream};
use crate::error::Result;

/// Bytes of the ring that uploads go through.
const RING: usize = 16 << 20;
/// Bytes that are copied into the ring at a time: while the device takes one part the host fills the next.
const PART: usize = RING / 4;
/// Where parts begin in the ring.
const ALIGN: usize = 256;
/// Parts that the device may have before it; each has an event.
const MAX_PARTS: usize = 256;
/// Bytes of a block that downloads go through.
const BLOCK: usize = 4 << 20;

/// The page-locked memory of a device, made when first used.
#[derive(Default)]
pub(super) struct Staging {
    ring: Mutex<Option<Ring>>,
    /// Blocks that no download uses.
    blocks: Mutex<Vec<Block>>,
}

/// A ring of bytes. A part is written again once the device has copied it.
struct Ring {
    memory: PageLocked,
    /// Where the next part begins.
    head: usize,
    /// Parts that the device may still read, the oldest first.
    parts: VecDeque<Part>,
    /// Events that no part uses.
    events: Vec<Event>,
}

struct Part {
    start: usize,
    end: usize,
    /// Recorded behind the copy.
    copied: Event,
}

struct Block {
    memory: PageLocked,
    copied: Event,
}

/// Page-locked host memory. Lives as long as the process.
#[derive(Clone, Copy)]
struct PageLocked(*mut u8);

#[derive(Clone, Copy)]
struct Event(sys::CUevent);

// SAFETY: owned by the ring or the block that it is in, which a lock or a download has to itself.
unsafe impl Send for PageLocked {}
// SAFETY: the driver's events may be used from any thread.
unsafe impl Send for Event {}

impl PageLocked {
    fn new(gpu: &Gpu, bytes: usize) -> Result<Self> {
        // SAFETY: bytes > 0; nothing is read before it was written.
        let ptr = gpu
            .with_room("locking host memory", bytes, || unsafe { result::malloc_host(bytes, 0) })?;
        Ok(Self(ptr.cast()))
    }
}

impl Event {
    fn new(gpu: &Gpu) -> Result<Self> {
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING;
        gpu.call("making an event", || result::event::create(flags)).map(Self)
    }

    /// Whether the device has come by.
    fn is_past(self, gpu: &Gpu) -> Result<bool> {
        const NOT_READY: DriverError = DriverError(sys::cudaError_enum::CUDA_ERROR_NOT_READY);
        gpu.call("asking for an event", || {
            // SAFETY: the event is never destroyed.
            match unsafe { result::event::query(self.0) } {
                Err(NOT_READY) => Ok(false),
                result => result.map(|()| true),
            }
        })
    }

    fn wait(self, gpu: &Gpu) -> Result<()> {
        // SAFETY: the event is never destroyed.
        gpu.call("waiting for the device", || unsafe { result::event::synchronize(self.0) })
    }
}

impl Staging {
    /// Copies `bytes` to `memory + at`. Returns once they have been read, whether or not they have arrived.
    pub(super) fn upload(
        &self,
        stream: &Stream,
        memory: &Arc<Memory>,
        at: usize,
        bytes: &[u8],
    ) -> Result<()> {
        let gpu = stream.queue().gpu;
        for (i, bytes) in bytes.chunks(PART).enumerate() {
            let mut ring = lock(&self.ring);
            let ring = match &mut *ring {
                Some(ring) => ring,
                slot => slot.insert(Ring::new(gpu)?),
            };
            let start = ring.reserve(gpu, bytes.len())?;
            let copied = ring.events.pop().map_or_else(|| Event::new(gpu), Ok)?;
            // SAFETY: the ring is RING bytes long, this part of it was reserved, and the lock is held; nothing else
            // refers to it, since the device has copied what was there.
            let part = unsafe {
                std::slice::from_raw_parts_mut(ring.memory.0.wrapping_add(start), bytes.len())
            };
            part.copy_from_slice(bytes);
            stream.submit("copying to the device", &[(memory.clone(), Access::Write)], |raw| {
                let to = memory.ptr + (at + i * PART) as u64;
                // SAFETY: the caller's range lies in the memory, which lives until after this work in its stream; the
                // part is not written again before the event.
                unsafe {
                    result::memcpy_htod_async(to, part, raw)?;
                    result::event::record(copied.0, raw)
                }
            })?;
            ring.parts.push_back(Part { start, end: start + bytes.len(), copied });
            ring.head = (start + bytes.len()).next_multiple_of(ALIGN);
        }
        Ok(())
    }

    /// Copies `bytes.len()` bytes from `memory + at`, waiting for the device once a block.
    pub(super) fn download(
        &self,
        stream: &Stream,
        memory: &Arc<Memory>,
        at: usize,
        bytes: &mut [u8],
    ) -> Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let gpu = stream.queue().gpu;
        let idle = lock(&self.blocks).pop();
        let block = idle.map_or_else(|| Block::new(gpu), Ok)?;
        for (i, bytes) in bytes.chunks_mut(BLOCK).enumerate() {
            // SAFETY: the block is BLOCK bytes long, and this download has it to itself.
            let staged = unsafe { std::slice::from_raw_parts_mut(block.memory.0, bytes.len()) };
            stream.submit("copying from the device", &[(memory.clone(), Access::Read)], |raw| {
                let from = memory.ptr + (at + i * BLOCK) as u64;
                // SAFETY: the caller's range lies in the memory, which is held until the copy is done; the block is
                // not touched before the event.
                unsafe {
                    result::memcpy_dtoh_async(staged, from, raw)?;
                    result::event::record(block.copied.0, raw)
                }
            })?;
            block.copied.wait(gpu)?;
            bytes.copy_from_slice(staged);
        }
        // After an error the device may still write to the block: it is never used again.
        lock(&self.blocks).push(block);
        Ok(())
    }
}

impl Ring {
    fn new(gpu: &Gpu) -> Result<Self> {
        let memory = PageLocked::new(gpu, RING)?;
        Ok(Self { memory, head: 0, parts: VecDeque::new(), events: Vec::new() })
    }

    /// Where a part of `len` bytes may be written, after waiting for what is there.
    fn reserve(&mut self, gpu: &Gpu, len: usize) -> Result<usize> {
        // Copies that are done leave their events to the next, which need neither make one nor wait.
        while let Some(oldest) = self.parts.front()
            && oldest.copied.is_past(gpu)?
        {
            self.events.push(oldest.copied);
            self.parts.pop_front();
        }
        let wraps = self.head + len > RING;
        let start = if wraps { 0 } else { self.head };
        // Parts follow each other around the ring: those in the way are the oldest.
        let is_in_the_way = |part: &Part| {
            let is_behind_the_head = wraps && part.start >= self.head;
            is_behind_the_head || part.start < start + len && start < part.end
        };
        while let Some(oldest) = self.parts.front()
            && (is_in_the_way(oldest) || self.parts.len() >= MAX_PARTS)
        {
            oldest.copied.wait(gpu)?;
            self.events.push(oldest.copied);
            self.parts.pop_front();
        }
        Ok(start)
    }
}

impl Block {
    fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { memory: PageLocked::new(gpu, BLOCK)?, copied: Event::new(gpu)? })
    }
}
