//! What a piece of work launches, and how long that takes.

use std::cell::RefCell;

use cudarc::driver::{DriverError, result, sys};

use super::gpu::Gpu;
use super::range::Range;
use super::stream::Stream;
use crate::error::Result;
use crate::types::Device;

/// One launch of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    /// The name of the kernel.
    pub kernel: &'static str,
    /// The innermost part of a model that launched it, if one did.
    pub range: Option<Range>,
    /// What it took on the device, in seconds. A virtual device's clock says nothing of a card's.
    pub seconds: f64,
}

thread_local! {
    /// What this thread has launched since it began to profile.
    static LAUNCHES: RefCell<Option<Vec<Timed>>> = const { RefCell::new(None) };
}

/// A launch between two events.
struct Timed {
    kernel: &'static str,
    range: Option<Range>,
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

/// Runs `work`, and lists what this thread launches on `device` meanwhile, in that order. It is waited for. Graphs are not
/// looked into.
///
/// # Errors
/// What `work` ends with; `Argument` for the CPU; `DeviceLost`.
pub fn profile<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<(T, Vec<Launch>)> {
    let gpu = Gpu::of(device)?;
    let _profiling = Profiling;
    LAUNCHES.set(Some(Vec::new()));
    let result = work()?;
    let launches = LAUNCHES.take().unwrap_or_default();
    Stream::current_on(gpu)?.synchronize()?;
    let measured = |launch: &Timed| {
        // SAFETY: both were recorded in one stream, around one launch, and are there until `launches` goes.
        let elapsed = || unsafe { result::event::elapsed(launch.start.0, launch.end.0) };
        let seconds = f64::from(gpu.call("timing a kernel", elapsed)?) / 1e3;
        Ok(Launch { kernel: launch.kernel, range: launch.range.clone(), seconds })
    };
    let launches = launches.iter().map(measured).collect::<Result<_>>()?;
    Ok((result, launches))
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
            launches.push(Timed { kernel, range: Range::current(), start, end });
        }
    });
    Ok(())
}
