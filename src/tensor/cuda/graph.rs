//! Captured work: launched again and again at the cost of one call.
//!
//! [`Graph::capture`] runs a closure in a stream of its own, which gathers launches instead of doing them. No other
//! thread's work gets there, whatever it does meanwhile. Memory that the closure allocates is the graph's, its
//! [`Arena`]: a tensor that is dropped in the closure makes room for the closure's next ones, and for nobody else's,
//! now or later. What the closure reads from outside, the graph holds: its addresses stay what they were. A replay
//! waits for whoever wrote what it reads, in any stream, and later readers of its outputs wait for it.
//!
//! With `NADIR_SENTINELS=on` every piece of the arena lies between [sentinels](super::sentinels), and each launch waits
//! and looks at them.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex};
use std::thread::{self, ThreadId};

use cudarc::driver::{result, sys};

use super::gpu::{Gpu, lock};
use super::memory::{FreeLists, Memory};
use super::sentinels::{self, Sentinels};
use super::stream::{Access, Queue, Stream, Usage, Use};
use crate::error::{Error, Result};
use crate::types::Device;

/// Work on a device that was gathered once, and the tensors `T` that it computes.
///
/// ```no_run
/// # use nadir::tensor::{DType, Device, Tensor, cuda::Graph};
/// # fn step(x: &Tensor) -> nadir::Result<Tensor> { Ok(x.clone()) }
/// # fn picture() -> nadir::Result<Tensor> { unimplemented!() }
/// let device = Device::Cuda(0);
/// let mut x = Tensor::zeros([1, 64, 64, 4], DType::F32, device)?;
/// let mut graph = Graph::capture(device, || step(&x))?;
/// x.assign(&picture()?)?;
/// let y = graph.launch()?.to_vec::<f32>()?; // of the new x
/// # Ok::<(), nadir::Error>(())
/// ```
pub struct Graph<T> {
    gpu: &'static Gpu,
    exec: Exec,
    arena: Arc<Arena>,
    /// Memory from outside.
    kept: Vec<Use>,
    nodes: usize,
    outputs: T,
}

struct Exec(sys::CUgraphExec);

// SAFETY: an instantiated graph may be used from any thread, by one at a time: it is launched through `&mut`.
unsafe impl Send for Exec {}
// SAFETY: as above; nothing is done with it through `&`.
unsafe impl Sync for Exec {}

impl<T> Graph<T> {
    /// Gathers what `work` launches on `device`. What `work` returns is computed by the first [`Self::launch`], and
    /// anew by each.
    ///
    /// # Errors
    /// What `work` ends with; `Capture` inside of it for what a graph cannot hold: copies between host and device,
    /// waiting, another capture. `OutOfMemory` and `Cuda` as everywhere. Nothing is left of a capture that failed.
    pub fn capture(device: Device, work: impl FnOnce() -> Result<T>) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        Stream::current_on(gpu)?.require_no_capture("another capture")?;
        let arena = Arc::new(Arena::new(gpu));
        let capture = OpenCapture::begin(Stream::capturing(gpu, Capture::new(arena.clone()))?)?;
        let outputs = capture.stream.scope(work)?;
        let (graph, kept) = capture.end()?;
        let mut nodes = 0;
        let counted = gpu.call("counting the nodes of a graph", || {
            // SAFETY: the driver has just made the graph; without room for them it counts its nodes.
            unsafe { sys::cuGraphGetNodes(graph, std::ptr::null_mut(), &mut nodes).result() }
        });
        let exec = gpu.with_room("instantiating a graph", 0, || {
            // SAFETY: the driver has just made the graph.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
        });
        // SAFETY: as above, and nothing refers to it: what was instantiated is a copy.
        gpu.call("ending a capture", || unsafe { result::graph::destroy(graph) })?;
        let graph = Self { gpu, exec: Exec(exec?), arena, kept, nodes, outputs };
        counted?;
        graph.arena.write_sentinels()?;
        Ok(graph)
    }

    /// Puts the work into this thread's current stream, on what is now in the tensors that it reads, and gives its
    /// outputs. They change with the next launch, and so do clones of them: copy what must last.
    ///
    /// # Errors
    /// `Capture` inside of a capture; `DeviceLost`; with `NADIR_SENTINELS=on`, `Cuda` when a kernel wrote around its output.
    pub fn launch(&mut self) -> Result<&T> {
        let stream = Stream::current_on(self.gpu)?;
        stream.require_no_capture("launching a graph")?;
        let order = || {
            self.kept.iter().try_for_each(|(memory, access)| memory.order(&stream, *access))?;
            lock(&self.arena.usage).order(stream.queue(), Access::Write)
        };
        stream.submit_behind("launching a graph", order, |raw| {
            // SAFETY: both belong to this device's context; what the graph's nodes use is kept or the arena's.
            unsafe { result::graph::launch(self.exec.0, raw) }
        })?;
        lock(&self.arena.slots).phase = Phase::Launched;
        self.arena.check_sentinels(&stream)?;
        Ok(&self.outputs)
    }

    /// How many pieces of work it holds: each costs a device time between it and the next, however small it is.
    pub fn nodes(&self) -> usize {
        self.nodes
    }

    /// What the closure returned. Its tensors have contents from the first launch on.
    pub fn outputs(&self) -> &T {
        &self.outputs
    }
}

impl<T> Drop for Graph<T> {
    fn drop(&mut self) {
        // The last launch may be under way. A failure means that the device is lost, and the next call says so.
        let waited = self.arena.wait();
        let _ = waited.and_then(|()| {
            // SAFETY: the graph is not used any more, and was made by `instantiate`.
            self.gpu
                .call("dropping a graph", || unsafe { result::graph::exec_destroy(self.exec.0) })
        });
    }
}

impl<T: fmt::Debug> fmt::Debug for Graph<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Graph").field("outputs", &self.outputs).finish_non_exhaustive()
    }
}

/// A capture under way, ended also when its work fails or panics.
struct OpenCapture {
    stream: Stream,
    is_ended: bool,
}

impl OpenCapture {
    fn begin(stream: Stream) -> Result<Self> {
        let queue = stream.queue();
        // Relaxed: what must not happen in a capture the streams here refuse themselves, and loading a family of
        // kernels or allocating, which the stricter modes forbid, does no harm.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        queue.gpu.call("beginning a capture", || {
            // SAFETY: the stream is never destroyed, and nothing else is captured in it.
            unsafe { result::stream::begin_capture(queue.raw, mode) }
        })?;
        Ok(Self { stream, is_ended: false })
    }

    /// The graph, and the memory from outside that it uses.
    fn end(mut self) -> Result<(sys::CUgraph, Vec<Use>)> {
        let graph = self.end_in_driver()?;
        let Some(capture) = self.stream.capture() else { unreachable!("made for a capture") };
        lock(&capture.arena.slots).phase = Phase::Captured;
        Ok((graph, std::mem::take(&mut *lock(&capture.kept)).into_values().collect()))
    }

    fn end_in_driver(&mut self) -> Result<sys::CUgraph> {
        self.is_ended = true;
        let queue = self.stream.queue();
        // SAFETY: begun in this stream by this thread.
        queue.gpu.call("ending a capture", || unsafe { result::stream::end_capture(queue.raw) })
    }
}

impl Drop for OpenCapture {
    fn drop(&mut self) {
        if let Some(capture) = self.stream.capture() {
            let phase = &mut lock(&capture.arena.slots).phase;
            if *phase == Phase::Capturing {
                *phase = Phase::Failed;
            }
        }
        // What work there was is thrown away; the driver gives none where the capture was invalid already.
        if !self.is_ended
            && let Ok(graph) = self.end_in_driver()
            && !graph.is_null()
        {
            let gpu = self.stream.queue().gpu;
            // SAFETY: the driver has just made the graph, and nothing refers to it.
            let _ = gpu.call("ending a capture", || unsafe { result::graph::destroy(graph) });
        }
    }
}

/// What a stream that is captured has beside its queue.
pub(super) struct Capture {
    pub(super) arena: Arc<Arena>,
    thread: ThreadId,
    /// Memory from outside, by address.
    kept: Mutex<HashMap<sys::CUdeviceptr, Use>>,
}

impl Capture {
    fn new(arena: Arc<Arena>) -> Self {
        Self { arena, thread: thread::current().id(), kept: Mutex::default() }
    }

    /// # Errors
    /// `Capture` for work of another thread than the capture's; `Value` when the capture is over.
    pub(super) fn check_open(&self) -> Result<()> {
        if thread::current().id() != self.thread {
            return Err(Error::Capture { what: "work of another thread in the same stream" });
        }
        if lock(&self.arena.slots).phase != Phase::Capturing {
            return Err(Error::value("graph", "the capture that this stream was made for is over"));
        }
        Ok(())
    }

    /// Holds memory from outside for as long as the graph may use it.
    pub(super) fn keep(&self, memory: &Arc<Memory>, access: Access) {
        let mut kept = lock(&self.kept);
        let (_, known) = kept.entry(memory.ptr).or_insert_with(|| (memory.clone(), access));
        if access == Access::Write {
            *known = Access::Write;
        }
    }
}

/// Memory that was allocated in a capture. It lives as long as the graph or a tensor in it, and is handed out again
/// only while the capture lasts: later nobody but the graph may write to it.
pub(super) struct Arena {
    gpu: &'static Gpu,
    slots: Mutex<Slots>,
    /// Of all the memory: a launch writes it at once.
    usage: Mutex<Usage>,
}

struct Slots {
    phase: Phase,
    all: Vec<Slot>,
    free: FreeLists,
}

/// A piece of the arena.
struct Slot {
    /// What the driver gave.
    base: sys::CUdeviceptr,
    /// Around what tensors get of it.
    sentinels: Option<Sentinels>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Capturing,
    Captured,
    /// The memory has contents.
    Launched,
    Failed,
}

impl Arena {
    fn new(gpu: &'static Gpu) -> Self {
        let slots = Slots { phase: Phase::Capturing, all: Vec::new(), free: FreeLists::default() };
        Self { gpu, slots: Mutex::new(slots), usage: Mutex::default() }
    }

    /// `capacity` bytes for the work that is captured next.
    pub(super) fn take(&self, capacity: usize) -> Result<sys::CUdeviceptr> {
        let mut slots = lock(&self.slots);
        if let Some(ptr) = slots.free.take(capacity) {
            return Ok(ptr);
        }
        let sentinels = |base| self.gpu.sentinels.then(|| Sentinels::around(base, capacity));
        let whole = capacity + if self.gpu.sentinels { 2 * sentinels::BYTES } else { 0 };
        // SAFETY: whole > 0. Not in stream order: that would put the allocation into the graph.
        let allocate = || unsafe { result::malloc_sync(whole) };
        let base = self.gpu.with_room("allocating", whole, allocate)?;
        let slot = Slot { base, sentinels: sentinels(base) };
        let ptr = slot.sentinels.as_ref().map_or(base, Sentinels::inside);
        slots.all.push(slot);
        Ok(ptr)
    }

    /// Writes the sentinels, before anything is written between them.
    fn write_sentinels(&self) -> Result<()> {
        if !self.gpu.sentinels {
            return Ok(());
        }
        let stream = Stream::current_on(self.gpu)?;
        let order = || self.order(stream.queue(), Access::Write);
        let slots = lock(&self.slots);
        let sentinels = || slots.all.iter().filter_map(|slot| slot.sentinels.as_ref());
        stream.submit_behind("writing sentinels", order, |raw| {
            // SAFETY: they lie in slots, which are not freed before the stream is waited for.
            sentinels().try_for_each(|sentinels| unsafe { sentinels.write(raw) })
        })
    }

    /// Waits for what is in `stream`, then looks at the sentinels.
    ///
    /// # Errors
    /// `Cuda` when they are not whole; `DeviceLost`.
    fn check_sentinels(&self, stream: &Stream) -> Result<()> {
        if !self.gpu.sentinels {
            return Ok(());
        }
        stream.synchronize()?;
        let slots = lock(&self.slots);
        for (i, slot) in slots.all.iter().enumerate() {
            let Some(sentinels) = &slot.sentinels else { continue };
            // SAFETY: they lie in a slot, and no work is under way.
            let changed = self.gpu.call("reading sentinels", || unsafe { sentinels.changed() })?;
            if let Some(changed) = changed {
                let (all, bytes) = (slots.all.len(), sentinels.capacity());
                return Err(Error::Cuda(format!(
                    "a kernel of a graph wrote to {changed} of slot {i} of {all} ({bytes} bytes)"
                )));
            }
        }
        Ok(())
    }

    /// Memory of a tensor that was dropped: what is captured next comes after all that used it.
    pub(super) fn put(&self, capacity: usize, ptr: sys::CUdeviceptr) {
        let mut slots = lock(&self.slots);
        if slots.phase == Phase::Capturing {
            slots.free.put(capacity, ptr);
        }
    }

    /// # Errors
    /// `Value` while nothing has been written here.
    pub(super) fn require_contents(&self) -> Result<()> {
        let message = match lock(&self.slots).phase {
            Phase::Launched => return Ok(()),
            Phase::Capturing => "a tensor of a capture is used by other work",
            Phase::Captured => {
                "a tensor of a captured graph is used before the graph's first launch"
            }
            Phase::Failed => "a tensor is used whose capture failed",
        };
        Err(Error::value("graph", message))
    }

    pub(super) fn order(&self, queue: &'static Queue, access: Access) -> Result<()> {
        lock(&self.usage).order(queue, access)
    }

    /// Waits for all work that uses the memory.
    fn wait(&self) -> Result<()> {
        lock(&self.usage).queues().try_for_each(Queue::synchronize)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.wait().is_err() {
            return; // the device is lost, its memory with it
        }
        let slots = self.slots.get_mut().unwrap_or_else(|e| e.into_inner());
        for slot in &slots.all {
            // SAFETY: allocated by `take`; neither a graph nor a tensor refers to it, and nothing that did is under way.
            let _ = self.gpu.call("freeing", || unsafe { result::free_sync(slot.base) });
        }
    }
}
