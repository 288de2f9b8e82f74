//! Streams, events and capture.

use std::ffi::{c_float, c_int, c_uint, c_void};

use super::error;
use super::graph::Graph;
use super::queue::{Capturing, Event, Stream, Work};
use super::state::{LEGACY, PER_THREAD, State};
use super::{Handle, Outcome, api, put, with_context, with_state};

/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: c_uint = 2;
/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: u32 = 2;
const CAPTURE_NONE: c_int = 0;
const CAPTURE_ACTIVE: c_int = 1;
const CAPTURE_INVALIDATED: c_int = 2;

impl State {
    /// Calls that could wait for the device are errors while a stream is captured, and end the capture.
    pub(super) fn forbid_while_capturing(&mut self) -> Outcome {
        let mut found = false;
        for stream in self.streams.values_mut() {
            if let Some(capturing) = &mut stream.capturing
                && capturing.mode != RELAXED
            {
                capturing.invalid = true;
                found = true;
            }
        }
        if found { Err(error::STREAM_CAPTURE_UNSUPPORTED) } else { Ok(()) }
    }

    fn forbid_captured(&mut self, stream: u64) -> Outcome {
        match self.streams.get_mut(&stream).and_then(|s| s.capturing.as_mut()) {
            Some(capturing) => {
                capturing.invalid = true;
                Err(error::STREAM_CAPTURE_UNSUPPORTED)
            }
            None => Ok(()),
        }
    }
}

fn create(out: *mut Handle, flags: c_uint, priority: c_int) -> Outcome {
    with_context(|state| {
        if flags & !NON_BLOCKING != 0 {
            return Err(error::INVALID_VALUE);
        }
        let id = state.handle();
        state.streams.insert(id, Stream::new(flags & NON_BLOCKING != 0, priority.clamp(-5, 0)));
        // SAFETY: the program's pointer.
        unsafe { put(out, id as Handle) }
    })
}

fn capture_info(stream: Handle, status: *mut c_int, id: *mut u64, graph: *mut Handle) -> Outcome {
    with_context(|state| {
        let stream = state.stream_id(stream)?;
        let capturing = state.streams.get(&stream).and_then(|s| s.capturing.as_ref());
        let (found, number) = match capturing {
            None => (CAPTURE_NONE, 0),
            Some(c) if c.invalid => (CAPTURE_INVALIDATED, c.graph),
            Some(c) => (CAPTURE_ACTIVE, c.graph),
        };
        // SAFETY: the program's pointers; the last two may be NULL.
        unsafe {
            put(status, found)?;
            if !id.is_null() {
                put(id, number)?;
            }
            if !graph.is_null() {
                put(graph, number as Handle)?;
            }
        }
        Ok(())
    })
}

fn elapsed(milliseconds: *mut c_float, start: Handle, end: Handle) -> Outcome {
    with_context(|state| {
        let get = |handle: Handle| state.events.get(&(handle as u64)).ok_or(error::INVALID_HANDLE);
        let (start, end) = (get(start)?, get(end)?);
        if !start.timing || !end.timing || start.recorded == 0 || end.recorded == 0 {
            return Err(error::INVALID_HANDLE);
        }
        match (start.time, end.time) {
            (Some(from), Some(to))
                if start.reached == start.recorded && end.reached == end.recorded =>
            {
                let seconds =
                    if to >= from { (to - from).as_secs_f32() } else { -(from - to).as_secs_f32() };
                // SAFETY: the program's pointer.
                unsafe { put(milliseconds, seconds * 1000.0) }
            }
            _ => Err(error::NOT_READY),
        }
    })
}

fn record(event: Handle, stream: Handle) -> Outcome {
    with_context(|state| {
        let stream = state.stream_id(stream)?;
        let id = event as u64;
        let capturing = state.streams.get(&stream).and_then(|s| s.capturing.clone());
        let event = state.events.get_mut(&id).ok_or(error::INVALID_HANDLE)?;
        if let Some(capturing) = capturing {
            event.captured = Some((capturing.graph, capturing.last));
            return Ok(());
        }
        event.captured = None;
        event.recorded += 1;
        let version = event.recorded;
        state.enqueue(stream, Work::Record { event: id, version })
    })
}

api! {
    fn cuStreamCreate(out: *mut Handle, flags: c_uint) {
        create(out, flags, 0)
    }

    fn cuStreamCreateWithPriority(out: *mut Handle, flags: c_uint, priority: c_int) {
        create(out, flags, priority)
    }

    fn cuStreamDestroy_v2(stream: Handle) {
        with_state(|state| {
            let id = stream as u64;
            if id == LEGACY || id == PER_THREAD || !state.streams.contains_key(&id) {
                return Err(error::INVALID_HANDLE);
            }
            // The stream's work still runs; its result is reported by whoever waits for it.
            let finished = if state.sticky.is_none() { state.synchronise(id) } else { Ok(()) };
            state.streams.remove(&id);
            finished
        })
    }

    fn cuStreamSynchronize(stream: Handle) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            state.forbid_captured(stream)?;
            state.synchronise(stream)?;
            if stream == LEGACY { state.wait_for_blocking_streams() } else { Ok(()) }
        })
    }

    fn cuStreamQuery(stream: Handle) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            state.forbid_captured(stream)?;
            // A program that polls gets there, one piece of work a poll.
            if state.streams.get(&stream).is_some_and(|s| s.queue.is_empty()) {
                return Ok(());
            }
            state.step(stream)?;
            Err(error::NOT_READY)
        })
    }

    fn cuStreamWaitEvent(stream: Handle, event: Handle, _flags: c_uint) {
        with_context(|state| {
            let stream = state.stream_id(stream)?;
            let id = event as u64;
            let event = state.events.get(&id).ok_or(error::INVALID_HANDLE)?;
            let (captured, version) = (event.captured.clone(), event.recorded);
            let Some(entry) = state.streams.get_mut(&stream) else { return Err(error::INVALID_HANDLE) };
            match (captured, &mut entry.capturing) {
                (Some((graph, nodes)), Some(capturing)) => {
                    if capturing.graph != graph {
                        return Err(error::STREAM_CAPTURE_ISOLATION);
                    }
                    capturing.last.extend(nodes);
                    capturing.last.sort_unstable();
                    capturing.last.dedup();
                    Ok(())
                }
                (Some((graph, nodes)), slot @ None) => {
                    // The stream joins the capture.
                    *slot = Some(Capturing { graph, last: nodes, is_origin: false, mode: 0, invalid: false });
                    Ok(())
                }
                (None, Some(capturing)) => {
                    capturing.invalid = true;
                    Err(error::STREAM_CAPTURE_ISOLATION)
                }
                (None, None) if version == 0 => Ok(()),
                (None, None) => state.enqueue(stream, Work::Wait { event: id, version }),
            }
        })
    }

    fn cuStreamGetFlags(stream: Handle, flags: *mut c_uint) {
        with_context(|state| {
            let id = state.stream_id(stream)?;
            // SAFETY: the program's pointer.
            unsafe { put(flags, state.streams[&id].non_blocking as c_uint) }
        })
    }

    fn cuStreamGetPriority(stream: Handle, priority: *mut c_int) {
        with_context(|state| {
            let id = state.stream_id(stream)?;
            // SAFETY: the program's pointer.
            unsafe { put(priority, state.streams[&id].priority) }
        })
    }

    fn cuStreamGetCtx(_stream: Handle, context: *mut Handle) {
        // SAFETY: the program's pointer.
        with_context(|state| unsafe { put(context, state.current().unwrap_or(0) as Handle) })
    }

    fn cuStreamAttachMemAsync(stream: Handle, _address: u64, _len: usize, _flags: c_uint) {
        with_context(|state| state.stream_id(stream).map(|_| ()))
    }

    fn cuStreamBeginCapture_v2(stream: Handle, mode: c_int) {
        with_context(|state| {
            let id = state.stream_id(stream)?;
            if id == LEGACY {
                return Err(error::STREAM_CAPTURE_UNSUPPORTED);
            }
            if !(0..=2).contains(&mode) {
                return Err(error::INVALID_VALUE);
            }
            if state.streams[&id].capturing.is_some() {
                return Err(error::INVALID_VALUE);
            }
            let graph = state.handle();
            state.graphs.insert(graph, Graph::default());
            if let Some(entry) = state.streams.get_mut(&id) {
                entry.capturing = Some(Capturing { graph, last: Vec::new(), is_origin: true, mode: mode as u32, invalid: false });
            }
            Ok(())
        })
    }

    fn cuStreamEndCapture(stream: Handle, graph: *mut Handle) {
        with_context(|state| {
            let id = state.stream_id(stream)?;
            let capturing = match state.streams.get(&id).and_then(|s| s.capturing.clone()) {
                None => return Err(error::INVALID_VALUE),
                Some(c) if !c.is_origin => return Err(error::STREAM_CAPTURE_UNMATCHED),
                Some(c) => c,
            };
            let mut invalid = capturing.invalid;
            let mut leaves = state.graphs.get(&capturing.graph).map_or(Vec::new(), Graph::leaves);
            leaves.retain(|n| !capturing.last.contains(n));
            // Work of joined streams that the origin does not wait for is lost.
            let unjoined = !leaves.is_empty();
            for entry in state.streams.values_mut() {
                if let Some(c) = entry.capturing.take_if(|c| c.graph == capturing.graph) {
                    invalid |= c.invalid;
                }
            }
            if invalid || unjoined {
                state.graphs.remove(&capturing.graph);
                state.collect_graph_memory();
                if !graph.is_null() {
                    // SAFETY: the program's pointer.
                    unsafe { put(graph, std::ptr::null_mut()) }?;
                }
                return Err(if invalid { error::STREAM_CAPTURE_INVALIDATED } else { error::STREAM_CAPTURE_UNJOINED });
            }
            // SAFETY: the program's pointer.
            unsafe { put(graph, capturing.graph as Handle) }
        })
    }

    fn cuStreamIsCapturing(stream: Handle, status: *mut c_int) {
        capture_info(stream, status, std::ptr::null_mut(), std::ptr::null_mut())
    }

    fn cuStreamGetCaptureInfo_v2(
        stream: Handle,
        status: *mut c_int,
        id: *mut u64,
        graph: *mut Handle,
        _dependencies: *mut *const c_void,
        count: *mut usize,
    ) {
        if !count.is_null() {
            // SAFETY: the program's pointer.
            unsafe { put(count, 0) }?;
        }
        capture_info(stream, status, id, graph)
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_int) {
        // SAFETY: the program's pointer.
        unsafe { put(mode, 0) }
    }

    fn cuEventCreate(out: *mut Handle, flags: c_uint) {
        with_context(|state| {
            if flags & !7 != 0 {
                return Err(error::INVALID_VALUE);
            }
            let id = state.handle();
            state.events.insert(id, Event { timing: flags & DISABLE_TIMING == 0, ..Event::default() });
            // SAFETY: the program's pointer.
            unsafe { put(out, id as Handle) }
        })
    }

    fn cuEventDestroy_v2(event: Handle) {
        with_state(|state| {
            let id = event as u64;
            if !state.events.contains_key(&id) {
                return Err(error::INVALID_HANDLE);
            }
            // Streams that wait for it still have to get past it.
            let finished = if state.sticky.is_none() { state.synchronise_event(id) } else { Ok(()) };
            state.events.remove(&id);
            finished
        })
    }

    fn cuEventRecord(event: Handle, stream: Handle) {
        record(event, stream)
    }

    fn cuEventRecordWithFlags(event: Handle, stream: Handle, _flags: c_uint) {
        record(event, stream)
    }

    fn cuEventSynchronize(event: Handle) {
        with_context(|state| {
            if state.events.get(&(event as u64)).ok_or(error::INVALID_HANDLE)?.captured.is_some() {
                return Err(error::CAPTURED_EVENT);
            }
            state.synchronise_event(event as u64)
        })
    }

    fn cuEventQuery(event: Handle) {
        with_context(|state| {
            let id = event as u64;
            let e = state.events.get(&id).ok_or(error::INVALID_HANDLE)?;
            if e.captured.is_some() {
                return Err(error::CAPTURED_EVENT);
            }
            if e.reached >= e.recorded {
                return Ok(());
            }
            let holds = |s: &Stream| s.queue.iter().any(|(_, w)| matches!(w, Work::Record { event, .. } if *event == id));
            if let Some(stream) = state.streams.iter().find(|(_, s)| holds(s)).map(|(id, _)| *id) {
                state.step(stream)?;
            }
            Err(error::NOT_READY)
        })
    }

    fn cuEventElapsedTime(milliseconds: *mut c_float, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }

    fn cuEventElapsedTime_v2(milliseconds: *mut c_float, start: Handle, end: Handle) {
        elapsed(milliseconds, start, end)
    }
}
