//! Streams: in what order a device does what it is asked.
//!
//! Work of one stream runs in the order in which it was put there, work of two streams side by side. Which stream
//! a thread's work goes into is the thread's own setting, [`Stream::scope`]; until it chooses, all threads share the
//! device's main stream, and nothing here needs a thought.
//!
//! Tensors may be used in any stream, whoever made them: memory remembers which stream wrote it last and which
//! have read it since ([`Usage`]), and a stream that comes after another waits for it on the device, by an event that
//! is recorded only then. A thread's launches in its own streams cost no event. What a tensor's memory was used for
//! lies in its own stream's past before the memory is handed out again.

use std::cell::RefCell;
use std::ptr;
use std::sync::{Arc, Mutex};

use cudarc::driver::{DriverError, result, sys};

use super::gpu::{Gpu, lock};
use super::graph::Capture;
use super::memory::{FreeLists, Memory};
use crate::error::{Error, Result};
use crate::types::Device;

/// An order of work on a device. Clones stand for the same stream.
///
/// ```no_run
/// # use nadir::tensor::{Device, cuda::Stream};
/// # fn work() -> nadir::Result<()> { Ok(()) }
/// let stream = Stream::new(Device::Cuda(0))?;
/// stream.scope(work)?; // runs beside what other streams hold
/// stream.synchronize()?;
/// # Ok::<(), nadir::Error>(())
/// ```
#[derive(Clone)]
pub struct Stream(Arc<Handle>);

struct Handle {
    queue: &'static Queue,
    /// What is put into the stream is not done but gathered.
    capture: Option<Capture>,
    counters: Mutex<Option<Arc<Memory>>>,
}

/// A stream of the driver's, and the free memory whose past uses all lie in it.
pub(super) struct Queue {
    pub(super) gpu: &'static Gpu,
    pub(super) raw: sys::CUstream,
    /// What others wait for: recorded anew for each of them.
    event: sys::CUevent,
    pub(super) pool: Mutex<FreeLists>,
}

// SAFETY: the driver's streams and events may be used from any thread, and are never destroyed here.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

thread_local! {
    /// The scopes that this thread is in, the innermost last.
    static SCOPES: RefCell<Vec<Stream>> = const { RefCell::new(Vec::new()) };
}

/// Leaves a scope, also when its work panics.
struct Leave;

impl Drop for Leave {
    fn drop(&mut self) {
        SCOPES.with_borrow_mut(Vec::pop);
    }
}

impl Stream {
    /// A stream of its own.
    ///
    /// # Errors
    /// `Argument` for the CPU; `Cuda` when the device is not there.
    pub fn new(device: Device) -> Result<Self> {
        Self::of(Gpu::of(device)?)
    }

    pub(super) fn of(gpu: &'static Gpu) -> Result<Self> {
        let queue = match lock(&gpu.queues.idle).pop() {
            Some(queue) => queue,
            None => {
                let queue = Queue::create(gpu)?;
                lock(&gpu.queues.all).push(queue);
                queue
            }
        };
        Ok(Self(Arc::new(Handle { queue, capture: None, counters: Mutex::default() })))
    }

    /// A stream whose work is gathered by `capture`.
    pub(super) fn capturing(gpu: &'static Gpu, capture: Capture) -> Result<Self> {
        let idle = lock(&gpu.queues.idle_captures).pop();
        let queue = idle.map_or_else(|| Queue::create(gpu), Ok)?;
        let capture = Some(capture);
        Ok(Self(Arc::new(Handle { queue, capture, counters: Mutex::default() })))
    }

    /// The stream that this thread's work on `device` goes into.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn current(device: Device) -> Result<Self> {
        Self::current_on(Gpu::of(device)?)
    }

    pub(super) fn current_on(gpu: &'static Gpu) -> Result<Self> {
        let chosen = SCOPES.with_borrow(|scopes| {
            scopes.iter().rev().find(|stream| ptr::eq(stream.queue().gpu, gpu)).cloned()
        });
        chosen.map_or_else(|| gpu.main(), Ok)
    }

    /// Runs `work` with this thread's work on the stream's device going into it. Returns as soon as `work` does,
    /// whatever the device still has to do.
    pub fn scope<T>(&self, work: impl FnOnce() -> T) -> T {
        SCOPES.with_borrow_mut(|scopes| scopes.push(self.clone()));
        let _leave = Leave;
        work()
    }

    /// Waits until all that was put into the stream is done.
    ///
    /// # Errors
    /// `Capture` inside of a capture; `DeviceLost` when a kernel failed.
    pub fn synchronize(&self) -> Result<()> {
        self.require_no_capture("waiting for the device")?;
        self.queue().synchronize()
    }

    /// The device that the stream belongs to.
    pub fn device(&self) -> Device {
        self.queue().gpu.device()
    }

    pub(super) fn queue(&self) -> &'static Queue {
        self.0.queue
    }

    pub(super) fn capture(&self) -> Option<&Capture> {
        self.0.capture.as_ref()
    }

    /// Memory for the counters by which blocks of a kernel learn which of them is the last: zeros to begin with, and each
    /// kernel leaves zeros. The stream's kernels share it, since they do not run side by side; a captured graph has its own,
    /// and zeroes it first.
    pub(super) fn counters(&self, len: usize) -> Result<Arc<Memory>> {
        /// More than most kernels need.
        const LEAST: usize = 4096;
        let mut counters = lock(&self.0.counters);
        match &*counters {
            Some(memory) if memory.capacity() >= len => Ok(memory.clone()),
            _ => {
                let memory = Memory::zeroed(self, len.next_power_of_two().max(LEAST))?;
                Ok(counters.insert(memory).clone())
            }
        }
    }

    /// # Errors
    /// `Capture` inside of a capture, which cannot hold `what`.
    pub(super) fn require_no_capture(&self, what: &'static str) -> Result<()> {
        self.capture().map_or(Ok(()), |_| Err(Error::Capture { what }))
    }

    /// Puts work into the stream, behind all that its memory waits for.
    pub(super) fn submit<T>(
        &self,
        what: &str,
        uses: &[Use],
        work: impl FnOnce(sys::CUstream) -> Result<T, DriverError>,
    ) -> Result<T> {
        let order = || uses.iter().try_for_each(|(memory, access)| memory.order(self, *access));
        self.submit_behind(what, order, work)
    }

    /// Puts work into the stream, behind what `order` has it wait for. All of the device's work goes this way.
    pub(super) fn submit_behind<T>(
        &self,
        what: &str,
        order: impl FnOnce() -> Result<()>,
        work: impl FnOnce(sys::CUstream) -> Result<T, DriverError>,
    ) -> Result<T> {
        let queue = self.queue();
        let _submission = lock(&queue.gpu.submission);
        if let Some(capture) = self.capture() {
            capture.check_open()?;
        }
        order()?;
        queue.gpu.call(what, || work(queue.raw))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let queues = &self.queue.gpu.queues;
        match self.capture {
            None => lock(&queues.idle).push(self.queue),
            Some(_) => lock(&queues.idle_captures).push(self.queue),
        }
    }
}

impl Queue {
    fn create(gpu: &'static Gpu) -> Result<&'static Self> {
        gpu.call("making a stream", || {
            let raw = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            let event = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)?;
            let queue = Self { gpu, raw, event, pool: Mutex::default() };
            Ok(&*Box::leak(Box::new(queue)))
        })
    }

    pub(super) fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is never destroyed.
        self.gpu.call("waiting for the device", || unsafe { result::stream::synchronize(self.raw) })
    }

    /// Has what is put into this queue from now on wait for what `other` holds by now. Under the submission lock,
    /// since it records the other's event.
    pub(super) fn wait_for(&self, other: &Queue) -> Result<()> {
        if ptr::eq(self, other) {
            return Ok(());
        }
        self.gpu.call("ordering two streams", || {
            // SAFETY: streams and events are never destroyed, and belong to the same context.
            unsafe {
                result::event::record(other.event, other.raw)?;
                let flags = sys::CUevent_wait_flags::CU_EVENT_WAIT_DEFAULT;
                result::stream::wait_event(self.raw, other.event, flags)
            }
        })
    }
}

/// What work does with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
}

/// Memory, and what work does with it.
pub(super) type Use = (Arc<Memory>, Access);

/// Who has used a piece of memory.
#[derive(Default)]
pub(super) struct Usage {
    /// Wrote it last.
    writer: Option<&'static Queue>,
    /// Have read it since, the writer aside.
    readers: Vec<&'static Queue>,
}

impl Usage {
    pub(super) fn written_by(queue: &'static Queue) -> Self {
        Self { writer: Some(queue), readers: Vec::new() }
    }

    /// Has `queue` wait for those whose use must come first, and remembers this one.
    pub(super) fn order(&mut self, queue: &'static Queue, access: Access) -> Result<()> {
        match access {
            Access::Read => {
                if self.queues().any(|used| ptr::eq(used, queue)) {
                    return Ok(()); // it has waited for the writer before
                }
                if let Some(writer) = self.writer {
                    queue.wait_for(writer)?;
                }
                self.readers.push(queue);
            }
            Access::Write => {
                for used in self.queues() {
                    queue.wait_for(used)?;
                }
                *self = Self::written_by(queue);
            }
        }
        Ok(())
    }

    pub(super) fn queues(&self) -> impl Iterator<Item = &'static Queue> {
        self.writer.iter().chain(&self.readers).copied()
    }
}
