//! Streams: work waits in them until something needs its result, and then runs in an order that is legal
//! but no kinder than CUDA promises.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::io::Write;
use std::sync::Arc;
use std::time::Instant;

use super::IN_CALLBACK;
use super::error::{self, Code};
use super::state::{LEGACY, State};
use crate::exec::{Fault, FaultKind, Launch, Severity, run};
use crate::isa::DecodedKernel;

/// A kernel launch with its arguments copied.
#[derive(Clone)]
pub(crate) struct KernelLaunch {
    pub(crate) function: u64,
    pub(crate) kernel: Arc<DecodedKernel>,
    pub(crate) registers: Option<u32>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) dynamic_shared: u32,
    pub(crate) params: Vec<u8>,
    pub(crate) cooperative: bool,
}

/// One end of a copy.
#[derive(Clone)]
pub(crate) enum Place {
    Device(u64),
    /// Host memory, read or written when the copy runs.
    Host(*mut u8),
    /// Host memory as it was at the call.
    Staged(Arc<[u8]>),
}

/// A host function of a stream.
pub(crate) type HostFn = unsafe extern "C" fn(*mut c_void);

/// One piece of work.
#[derive(Clone)]
pub(crate) enum Work {
    Kernel(Box<KernelLaunch>),
    Copy {
        to: Place,
        from: Place,
        bytes: usize,
        checksum: Option<u64>,
    },
    /// `count` elements of `width` bytes, rows of them `pitch` bytes apart.
    Set {
        to: u64,
        value: u32,
        width: usize,
        count: usize,
        rows: usize,
        pitch: usize,
    },
    Host {
        function: HostFn,
        data: *mut c_void,
    },
    Record {
        event: u64,
        version: u64,
    },
    Wait {
        event: u64,
        version: u64,
    },
    Allocate(u64),
    Free(u64),
    Nothing,
}

// SAFETY: the pointers belong to the program, which promised with the call that they stay valid; they are
// used under the driver's lock.
unsafe impl Send for Work {}

/// What a capture has gathered for a stream.
#[derive(Clone)]
pub(crate) struct Capturing {
    pub(crate) graph: u64,
    /// Nodes that the next one depends on.
    pub(crate) last: Vec<usize>,
    pub(crate) is_origin: bool,
    pub(crate) mode: u32,
    pub(crate) invalid: bool,
}

pub(crate) struct Stream {
    pub(crate) queue: VecDeque<(u64, Work)>,
    pub(crate) non_blocking: bool,
    pub(crate) priority: i32,
    pub(crate) capturing: Option<Capturing>,
}

impl Stream {
    pub(crate) fn new(non_blocking: bool, priority: i32) -> Self {
        Self { queue: VecDeque::new(), non_blocking, priority, capturing: None }
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
        self.capturing = None;
    }
}

/// An event: how often it was recorded, and which recording has been reached.
#[derive(Default)]
pub(crate) struct Event {
    pub(crate) timing: bool,
    pub(crate) recorded: u64,
    pub(crate) reached: u64,
    pub(crate) time: Option<Instant>,
    /// Graph and nodes, when it was last recorded in a capture.
    pub(crate) captured: Option<(u64, Vec<usize>)>,
}

/// FNV-1a of a memory range.
///
/// # Safety
/// The range must be readable.
pub(crate) unsafe fn checksum(from: *const u8, bytes: usize) -> u64 {
    // SAFETY: as the caller promises.
    let data = unsafe { std::slice::from_raw_parts(from, bytes) };
    let (words, rest) = data.as_chunks::<8>();
    let mix = |hash: u64, value: u64| (hash ^ value).wrapping_mul(0x100_0000_01b3).rotate_left(23);
    let hash = words.iter().fold(0xcbf2_9ce4_8422_2325, |h, w| mix(h, u64::from_le_bytes(*w)));
    rest.iter().fold(hash, |h, b| mix(h, *b as u64))
}

impl State {
    /// Appends work to a stream, or to the graph that it is captured into.
    pub(crate) fn enqueue(&mut self, stream: u64, work: Work) -> Result<(), Code> {
        let Some(entry) = self.streams.get_mut(&stream) else { return Err(error::INVALID_HANDLE) };
        if let Some(capturing) = &mut entry.capturing {
            if capturing.invalid {
                return Err(error::STREAM_CAPTURE_INVALIDATED);
            }
            let graph =
                self.graphs.get_mut(&capturing.graph).ok_or(error::STREAM_CAPTURE_INVALIDATED)?;
            let node = graph.add(work, capturing.last.clone());
            capturing.last = vec![node];
            return Ok(());
        }
        self.sequence += 1;
        entry.queue.push_back((self.sequence, work));
        Ok(())
    }

    /// The stream that must move before the front of `stream` can run; `None` when it can run now.
    fn blocker(&self, stream: u64) -> Option<u64> {
        let (sequence, work) = self.streams.get(&stream)?.queue.front()?;
        // The legacy stream and the blocking ones wait for each other's earlier work.
        let earlier = |id: &u64| self.streams[id].queue.front().is_some_and(|(s, _)| s < sequence);
        if stream == LEGACY {
            if let Some(id) = self
                .streams
                .iter()
                .filter(|(id, s)| **id != LEGACY && !s.non_blocking)
                .map(|(id, _)| id)
                .find(|id| earlier(id))
            {
                return Some(*id);
            }
        } else if !self.streams[&stream].non_blocking && earlier(&LEGACY) {
            return Some(LEGACY);
        }
        if let Work::Wait { event, version } = work
            && self.events.get(event).is_some_and(|e| e.reached < *version)
        {
            let records = |s: &Stream| {
                s.queue.iter().any(|(_, w)| matches!(w, Work::Record { event: e, version: v } if e == event && v >= version))
            };
            return self.streams.iter().find(|(_, s)| records(s)).map(|(id, _)| *id);
        }
        None
    }

    /// A stream whose front can run and that `goal` depends on, or, by the seed, any that can run.
    fn pick(&mut self, goal: u64) -> u64 {
        if self.settings.seed != 0 && self.random.below(2) == 1 {
            let ready: Vec<u64> = self
                .streams
                .keys()
                .copied()
                .filter(|id| !self.streams[id].queue.is_empty() && self.blocker(*id).is_none())
                .collect();
            if !ready.is_empty() {
                return ready[self.random.below(ready.len())];
            }
        }
        let mut stream = goal;
        // Work depends on earlier work only, so this chain ends.
        for _ in 0..=self.streams.len() {
            match self.blocker(stream) {
                Some(other) => stream = other,
                None => break,
            }
        }
        stream
    }

    /// Runs what a stream holds, and what that needs.
    pub(crate) fn synchronise(&mut self, stream: u64) -> Result<(), Code> {
        while self.streams.get(&stream).is_some_and(|s| !s.queue.is_empty()) {
            self.step(stream)?;
        }
        Ok(())
    }

    /// Runs one piece of work on the way to emptying a stream.
    pub(crate) fn step(&mut self, goal: u64) -> Result<(), Code> {
        let stream = self.pick(goal);
        let Some((_, work)) = self.streams.get_mut(&stream).and_then(|s| s.queue.pop_front())
        else {
            return Ok(());
        };
        self.execute(&work)
    }

    /// Runs everything that is queued anywhere.
    pub(crate) fn synchronise_all(&mut self) -> Result<(), Code> {
        let mut ids: Vec<u64> = self.streams.keys().copied().collect();
        if self.settings.seed != 0 {
            self.random.shuffle(&mut ids);
        }
        for id in ids {
            self.synchronise(id)?;
        }
        Ok(())
    }

    /// Runs until an event's recording is reached.
    pub(crate) fn synchronise_event(&mut self, event: u64) -> Result<(), Code> {
        loop {
            let e = self.events.get(&event).ok_or(error::INVALID_HANDLE)?;
            if e.reached >= e.recorded {
                return Ok(());
            }
            let recorded = e.recorded;
            let holds = |s: &Stream| {
                s.queue.iter().any(|(_, w)| matches!(w, Work::Record { event: id, version } if *id == event && *version == recorded))
            };
            let Some(stream) = self.streams.iter().find(|(_, s)| holds(s)).map(|(id, _)| *id)
            else {
                return Ok(());
            };
            self.step(stream)?;
        }
    }

    /// Does one piece of work now.
    pub(crate) fn execute(&mut self, work: &Work) -> Result<(), Code> {
        match work {
            Work::Kernel(launch) => self.run_kernel(launch),
            Work::Copy { to, from, bytes, checksum } => self.copy(to, from, *bytes, *checksum),
            Work::Set { to, value, width, count, rows, pitch } => {
                for row in 0..*rows {
                    let at = to + (row * pitch) as u64;
                    let bytes = (count * width) as u64;
                    let allocation = match self.memory.live_range(at, bytes) {
                        Ok(allocation) => allocation.clone(),
                        Err(missing) => {
                            let message = format!("memset: {}", missing.explain(at, bytes));
                            return Err(self.host_fault(FaultKind::OutOfBounds, message));
                        }
                    };
                    let pattern = value.to_le_bytes();
                    // SAFETY: the range is inside an allocation that is alive.
                    let target = unsafe {
                        std::slice::from_raw_parts_mut(allocation.pointer(at), bytes as usize)
                    };
                    target
                        .chunks_exact_mut(*width)
                        .for_each(|c| c.copy_from_slice(&pattern[..*width]));
                    allocation.set_defined(at, bytes, true);
                }
                Ok(())
            }
            Work::Host { function, data } => {
                IN_CALLBACK.set(true);
                // SAFETY: the program gave this function with this argument to be called here.
                unsafe { function(*data) };
                IN_CALLBACK.set(false);
                Ok(())
            }
            Work::Record { event, version } => {
                if let Some(event) = self.events.get_mut(event) {
                    event.reached = event.reached.max(*version);
                    event.time = Some(Instant::now());
                }
                Ok(())
            }
            Work::Allocate(address) => {
                self.begin_allocation(*address);
                Ok(())
            }
            Work::Free(address) => {
                self.end_allocation(*address);
                Ok(())
            }
            Work::Wait { .. } | Work::Nothing => Ok(()),
        }
    }

    fn host_fault(&mut self, kind: FaultKind, message: String) -> Code {
        self.fail(&Fault::of_host(kind, Severity::Error, message))
    }

    /// Copies between host and device, or within the device.
    pub(crate) fn copy(
        &mut self,
        to: &Place,
        from: &Place,
        bytes: usize,
        expected: Option<u64>,
    ) -> Result<(), Code> {
        if bytes == 0 {
            return Ok(());
        }
        let resolve = |address: u64| {
            self.memory
                .live_range(address, bytes as u64)
                .map(Arc::clone)
                .map_err(|missing| missing.explain(address, bytes as u64))
        };
        let (mut source_allocation, mut target_allocation) = (None, None);
        let mut fault = None;
        let source: *const u8 = match from {
            Place::Host(pointer) => *pointer,
            Place::Staged(data) => data.as_ptr(),
            Place::Device(address) => match resolve(*address) {
                Ok(a) => {
                    let pointer = a.pointer(*address);
                    source_allocation = Some((a, *address));
                    pointer
                }
                Err(message) => {
                    fault = Some(format!("copy from the device: {message}"));
                    std::ptr::null()
                }
            },
        };
        let target: *mut u8 = match to {
            Place::Host(pointer) => *pointer,
            Place::Staged(_) => std::ptr::null_mut(),
            Place::Device(address) => match resolve(*address) {
                Ok(a) => {
                    let pointer = a.pointer(*address);
                    target_allocation = Some((a, *address));
                    pointer
                }
                Err(message) => {
                    fault = Some(format!("copy to the device: {message}"));
                    std::ptr::null_mut()
                }
            },
        };
        if let Some(message) = fault {
            return Err(self.host_fault(FaultKind::OutOfBounds, message));
        }
        if source.is_null() || target.is_null() {
            return Err(error::INVALID_VALUE);
        }
        if let Some(expected) = expected {
            // SAFETY: a host range that the program gave to be read at this time.
            let found = unsafe { checksum(source, bytes) };
            if found != expected {
                let message = format!(
                    "{bytes} bytes at {source:p} changed between the call of the copy and its execution"
                );
                return Err(self.host_fault(FaultKind::HostMemory, message));
            }
        }
        if let (None, Some((from, at))) = (&target_allocation, &source_allocation)
            && self.settings.checks.undefined
            && let Some(fault) = from.undefined_copy(*at, bytes as u64)
        {
            if fault.severity == Severity::Error && !self.settings.keep_going {
                return Err(self.fail(&fault));
            }
            eprintln!("{fault}");
        }
        // SAFETY: device ranges were checked, host ranges are the program's promise; they may overlap.
        unsafe { std::ptr::copy(source, target, bytes) };
        if let Some((allocation, address)) = target_allocation {
            match source_allocation {
                Some((from, at)) if !from.is_all_defined() => {
                    for i in 0..bytes as u64 {
                        let is_defined = from.is_defined(at + i);
                        if !is_defined || !allocation.is_all_defined() {
                            allocation.set_defined(address + i, 1, is_defined);
                        }
                    }
                }
                _ => allocation.set_defined(address, bytes as u64, true),
            }
        }
        Ok(())
    }

    fn run_kernel(&mut self, launch: &KernelLaunch) -> Result<(), Code> {
        self.launches += 1;
        if let Err(code) = self.failures.launch(&launch.kernel.name) {
            return Err(self.end_context(code));
        }
        let ready = Launch {
            kernel: &launch.kernel,
            grid: launch.grid,
            block: launch.block,
            dynamic_shared: launch.dynamic_shared as usize,
            params: &launch.params,
            cooperative: launch.cooperative,
        };
        let outcome = run(&ready, &mut self.memory, &self.settings, &mut self.stamp, self.launches);
        outcome.findings.iter().for_each(|finding| eprintln!("{finding}"));
        match outcome.result {
            Ok(mut counters) => {
                if let Some(path) = &self.counters_file {
                    counters.registers = launch.registers;
                    counters.occupancy_permille = launch.registers.map(|registers| {
                        let threads = launch.block.iter().product();
                        let blocks = self.card.resident_blocks(
                            threads,
                            counters.shared_bytes as u32,
                            registers,
                        );
                        blocks * threads.next_multiple_of(32) * 1000
                            / self.card.threads_per_processor
                    });
                    let appended = std::fs::OpenOptions::new()
                        .create(true)
                        .append(true)
                        .open(path)
                        .and_then(|mut file| writeln!(file, "{}", counters.json()));
                    if let Err(e) = appended {
                        eprintln!("vgpu: counters cannot be written to {}: {e}", path.display());
                    }
                }
                Ok(())
            }
            Err(fault) => Err(self.fail(&fault)),
        }
    }
}
