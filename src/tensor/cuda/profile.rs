//! How often a piece of work launches each kernel, and how long those take.

use std::cell::RefCell;
use std::collections::HashMap;

use cudarc::driver::{DriverError, result, sys};

use super::gpu::Gpu;
use super::stream::Stream;
use crate::error::Result;
use crate::types::Device;

/// What a piece of work did with one kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelTime {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// How often it was launched.
    pub calls: usize,
    /// What the launches took on the device together, in seconds. A virtual device's clock says nothing of a card's.
    pub seconds: f64,
}

thread_local! {
    /// What this thread has launched since it began to profile.
    static LAUNCHES: RefCell<Option<Vec<Launch>>> = const { RefCell::new(None) };
}

struct Launch {
    kernel: &'static str,
    start: Event,
    end: Event,
}

struct Event(sys::CUevent);

impl Event {
    fn record(raw: sys::CUstream) -> Result<Self, DriverError> {
        let event = Self(result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT)?);
        // SAFETY: the event was just made; the caller's stream is never destroyed.
        unsafe { result::event::record(event.0, raw)? };
        Ok(event)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `create`, and destroyed once. A failure means that the device is lost: it has no events then.
        let _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Ends a profile also when its work panics.
struct Profiling;

impl Drop for Profiling {
    fn drop(&mut self) {
        LAUNCHES.take();
    }
}

/// Runs `work`, and says of each kernel that this thread launches on `device` meanwhile how often that was and how long
/// it took, the longest first. What is launched is waited for. Graphs are not looked into.
///
/// # Errors
/// What `work` ends with; `Argument` for the CPU; `DeviceLost`.
pub fn profile<T>(
    device: Device,
    work: impl FnOnce() -> Result<T>,
) -> Result<(T, Vec<KernelTime>)> {
    let gpu = Gpu::of(device)?;
    let _profiling = Profiling;
    LAUNCHES.set(Some(Vec::new()));
    let result = work()?;
    let launches = LAUNCHES.take().unwrap_or_default();
    Stream::current_on(gpu)?.synchronize()?;
    let mut times: HashMap<&'static str, KernelTime> = HashMap::new();
    for Launch { kernel, start, end } in &launches {
        // SAFETY: both were recorded in one stream, around one launch, and are there until `launches` goes.
        let milliseconds =
            gpu.call("timing a kernel", || unsafe { result::event::elapsed(start.0, end.0) })?;
        let empty = KernelTime { kernel, calls: 0, seconds: 0.0 };
        let time = times.entry(kernel).or_insert(empty);
        time.calls += 1;
        time.seconds += f64::from(milliseconds) / 1e3;
    }
    let mut times: Vec<KernelTime> = times.into_values().collect();
    times.sort_by(|a, b| b.seconds.total_cmp(&a.seconds).then(a.kernel.cmp(b.kernel)));
    Ok((result, times))
}

/// Whether this thread profiles.
pub(crate) fn is_profiling() -> bool {
    LAUNCHES.with_borrow(Option::is_some)
}

/// Calls `launch` for `stream`, whose name in the driver is `raw`: between two events where this thread profiles.
pub(super) fn timed(
    kernel: &'static str,
    stream: &Stream,
    raw: sys::CUstream,
    launch: impl FnOnce() -> Result<(), DriverError>,
) -> Result<(), DriverError> {
    if !is_profiling() || stream.capture().is_some() {
        return launch();
    }
    let start = Event::record(raw)?;
    launch()?;
    let end = Event::record(raw)?;
    LAUNCHES.with_borrow_mut(|launches| {
        if let Some(launches) = launches {
            launches.push(Launch { kernel, start, end });
        }
    });
    Ok(())
}
