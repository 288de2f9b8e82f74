//! Initialisation, devices, contexts, errors.

use std::ffi::{c_char, c_int, c_uint, c_void};

use super::error::{self, describe};
use super::state::{State, driver_version};
use super::{DevicePtr, Handle, Outcome, api, lock, put, with_context, with_state};

/// The one device.
const DEVICE: c_int = 0;
/// Half-open range of `CUlimit` numbers.
const LIMITS: std::ops::Range<u32> = 0..11;

fn device(ordinal: c_int) -> Outcome {
    if ordinal == DEVICE { Ok(()) } else { Err(error::INVALID_DEVICE) }
}

fn limit_default(limit: u32) -> usize {
    match limit {
        0 => 1024,    // stack size
        1 => 1 << 20, // printf buffer
        2 => 8 << 20, // malloc heap
        _ => 0,
    }
}

/// Copies a string and its NUL into a buffer of `len` bytes, cut to fit.
unsafe fn put_string(to: *mut c_char, len: c_int, text: &[u8]) -> Outcome {
    if to.is_null() || len <= 0 {
        return Err(error::INVALID_VALUE);
    }
    let count = text.len().min(len as usize - 1);
    // SAFETY: the program gave a buffer of `len` bytes.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), to, count);
        to.add(count).write(0);
    }
    Ok(())
}

fn create_context(context: *mut Handle, flags: c_uint, ordinal: c_int) -> Outcome {
    with_state(|state| {
        device(ordinal)?;
        let id = state.add_context(false, flags);
        // SAFETY: the program's pointer.
        unsafe { put(context, id as Handle) }?;
        state.push_context(id);
        Ok(())
    })
}

api! {
    fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(error::INVALID_VALUE);
        }
        let mut state = lock()?;
        if state.is_none() {
            *state = Some(State::from_environment()?);
        }
        Ok(())
    }

    fn cuDriverGetVersion(version: *mut c_int) {
        // SAFETY: the program's pointer. No driver need be initialised for this.
        unsafe { put(version, driver_version()) }
    }

    fn cuGetErrorName(code: c_uint, text: *mut *const c_char) {
        let known = describe(code);
        // SAFETY: the program's pointer.
        unsafe { put(text, known.map_or(std::ptr::null(), |(name, _)| name.as_ptr())) }?;
        known.map(|_| ()).ok_or(error::INVALID_VALUE)
    }

    fn cuGetErrorString(code: c_uint, text: *mut *const c_char) {
        let known = describe(code);
        // SAFETY: the program's pointer.
        unsafe { put(text, known.map_or(std::ptr::null(), |(_, message)| message.as_ptr())) }?;
        known.map(|_| ()).ok_or(error::INVALID_VALUE)
    }

    fn cuDeviceGetCount(count: *mut c_int) {
        // SAFETY: the program's pointer.
        with_state(|_| unsafe { put(count, 1) })
    }

    fn cuDeviceGet(out: *mut c_int, ordinal: c_int) {
        with_state(|_| {
            device(ordinal)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, ordinal) }
        })
    }

    fn cuDeviceGetName(name: *mut c_char, len: c_int, ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            // SAFETY: the program's buffer.
            unsafe { put_string(name, len, state.card.name.as_bytes()) }
        })
    }

    fn cuDeviceTotalMem_v2(bytes: *mut usize, ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            // SAFETY: the program's pointer.
            unsafe { put(bytes, state.card.memory as usize) }
        })
    }

    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            let found = state.card.attribute(attribute).ok_or(error::INVALID_VALUE)?;
            // SAFETY: the program's pointer.
            unsafe { put(value, found) }
        })
    }

    fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            let (a, b) = state.card.capability;
            // SAFETY: the program's pointers.
            unsafe { put(major, a as c_int).and(put(minor, b as c_int)) }
        })
    }

    fn cuDeviceGetUuid(uuid: *mut [u8; 16], ordinal: c_int) {
        with_state(|_| {
            device(ordinal)?;
            // SAFETY: the program's pointer.
            unsafe { put(uuid, *b"vgpu-virtual-gpu") }
        })
    }

    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], ordinal: c_int) {
        // SAFETY: the same arguments.
        match unsafe { cuDeviceGetUuid(uuid, ordinal) } {
            error::SUCCESS => Ok(()),
            code => Err(code),
        }
    }

    fn cuDeviceGetPCIBusId(text: *mut c_char, len: c_int, ordinal: c_int) {
        with_state(|_| {
            device(ordinal)?;
            // SAFETY: the program's buffer.
            unsafe { put_string(text, len, b"0000:01:00.0") }
        })
    }

    fn cuDeviceGetByPCIBusId(out: *mut c_int, _text: *const c_char) {
        // SAFETY: the program's pointer.
        with_state(|_| unsafe { put(out, DEVICE) })
    }

    fn cuDeviceCanAccessPeer(can: *mut c_int, _device: c_int, _peer: c_int) {
        // SAFETY: the program's pointer.
        with_state(|_| unsafe { put(can, 0) })
    }

    fn cuDevicePrimaryCtxRetain(context: *mut Handle, ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            let id = match state.primary {
                Some((id, count)) => {
                    state.primary = Some((id, count + 1));
                    id
                }
                None => {
                    let id = state.add_context(true, state.primary_flags);
                    state.primary = Some((id, 1));
                    id
                }
            };
            // SAFETY: the program's pointer.
            unsafe { put(context, id as Handle) }
        })
    }

    fn cuDevicePrimaryCtxRelease_v2(ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            match state.primary {
                None => Err(error::INVALID_CONTEXT),
                Some((id, 1)) => {
                    let finished = state.synchronise_all();
                    state.primary = None;
                    state.remove_context(id)?;
                    finished
                }
                Some((id, count)) => {
                    state.primary = Some((id, count - 1));
                    Ok(())
                }
            }
        })
    }

    fn cuDevicePrimaryCtxReset_v2(ordinal: c_int) {
        with_state(|state| {
            device(ordinal)?;
            state.clear();
            Ok(())
        })
    }

    fn cuDevicePrimaryCtxSetFlags_v2(ordinal: c_int, flags: c_uint) {
        with_state(|state| {
            device(ordinal)?;
            state.primary_flags = flags;
            Ok(())
        })
    }

    fn cuDevicePrimaryCtxGetState(ordinal: c_int, flags: *mut c_uint, active: *mut c_int) {
        with_state(|state| {
            device(ordinal)?;
            // SAFETY: the program's pointers.
            unsafe { put(flags, state.primary_flags).and(put(active, state.primary.is_some() as c_int)) }
        })
    }

    fn cuCtxCreate_v2(context: *mut Handle, flags: c_uint, ordinal: c_int) {
        create_context(context, flags, ordinal)
    }

    fn cuCtxCreate_v3(context: *mut Handle, _affinity: *mut c_void, _count: c_int, flags: c_uint, ordinal: c_int) {
        create_context(context, flags, ordinal)
    }

    fn cuCtxCreate_v4(context: *mut Handle, _params: *mut c_void, flags: c_uint, ordinal: c_int) {
        create_context(context, flags, ordinal)
    }

    fn cuCtxDestroy_v2(context: Handle) {
        with_state(|state| {
            let id = context as u64;
            match state.contexts.get(&id) {
                Some(c) if !c.is_primary => {}
                _ => return Err(error::INVALID_CONTEXT),
            }
            let finished = if state.sticky.is_none() { state.synchronise_all() } else { Ok(()) };
            if state.current() == Some(id) {
                state.pop_context();
            }
            state.remove_context(id)?;
            finished
        })
    }

    fn cuCtxGetCurrent(context: *mut Handle) {
        // SAFETY: the program's pointer.
        with_state(|state| unsafe { put(context, state.current().unwrap_or(0) as Handle) })
    }

    fn cuCtxSetCurrent(context: Handle) {
        with_state(|state| {
            let id = context as u64;
            if id != 0 && !state.contexts.contains_key(&id) {
                return Err(error::INVALID_CONTEXT);
            }
            state.set_context(id);
            Ok(())
        })
    }

    fn cuCtxPushCurrent_v2(context: Handle) {
        with_state(|state| {
            if !state.contexts.contains_key(&(context as u64)) {
                return Err(error::INVALID_CONTEXT);
            }
            state.push_context(context as u64);
            Ok(())
        })
    }

    fn cuCtxPopCurrent_v2(context: *mut Handle) {
        with_state(|state| {
            let popped = state.pop_context().ok_or(error::INVALID_CONTEXT)?;
            if !context.is_null() {
                // SAFETY: the program's pointer.
                unsafe { put(context, popped as Handle) }?;
            }
            Ok(())
        })
    }

    fn cuCtxGetDevice(out: *mut c_int) {
        with_state(|state| {
            state.current().ok_or(error::INVALID_CONTEXT)?;
            // SAFETY: the program's pointer.
            unsafe { put(out, DEVICE) }
        })
    }

    fn cuCtxGetFlags(flags: *mut c_uint) {
        with_state(|state| {
            let id = state.current().ok_or(error::INVALID_CONTEXT)?;
            // SAFETY: the program's pointer.
            unsafe { put(flags, state.contexts.get(&id).map_or(0, |c| c.flags)) }
        })
    }

    fn cuCtxSetFlags(flags: c_uint) {
        with_state(|state| {
            let id = state.current().ok_or(error::INVALID_CONTEXT)?;
            if let Some(context) = state.contexts.get_mut(&id) {
                context.flags = flags;
            }
            Ok(())
        })
    }

    fn cuCtxGetApiVersion(_context: Handle, version: *mut c_uint) {
        // SAFETY: the program's pointer.
        with_state(|_| unsafe { put(version, 3020) })
    }

    fn cuCtxSynchronize() {
        with_context(|state| {
            state.forbid_while_capturing()?;
            state.synchronise_all()
        })
    }

    fn cuCtxGetLimit(value: *mut usize, limit: c_uint) {
        with_context(|state| {
            if !LIMITS.contains(&limit) {
                return Err(error::INVALID_VALUE);
            }
            let set = state.current().and_then(|id| state.contexts.get(&id)?.limits.get(&limit).copied());
            // SAFETY: the program's pointer.
            unsafe { put(value, set.unwrap_or(limit_default(limit))) }
        })
    }

    fn cuCtxSetLimit(limit: c_uint, value: usize) {
        with_context(|state| {
            if !LIMITS.contains(&limit) {
                return Err(error::INVALID_VALUE);
            }
            if let Some(context) = state.current().and_then(|id| state.contexts.get_mut(&id)) {
                context.limits.insert(limit, value);
            }
            Ok(())
        })
    }

    fn cuCtxGetCacheConfig(config: *mut c_int) {
        // SAFETY: the program's pointer.
        with_context(|_| unsafe { put(config, 0) })
    }

    fn cuCtxSetCacheConfig(_config: c_int) {
        with_context(|_| Ok(()))
    }

    fn cuCtxGetSharedMemConfig(config: *mut c_int) {
        // SAFETY: the program's pointer.
        with_context(|_| unsafe { put(config, 1) })
    }

    fn cuCtxSetSharedMemConfig(_config: c_int) {
        with_context(|_| Ok(()))
    }

    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) {
        with_context(|_| {
            for (pointer, value) in [(least, 0), (greatest, -5)] {
                if !pointer.is_null() {
                    // SAFETY: the program's pointer.
                    unsafe { put(pointer, value) }?;
                }
            }
            Ok(())
        })
    }

    fn cuCtxEnablePeerAccess(_peer: Handle, _flags: c_uint) {
        Err(error::NOT_SUPPORTED)
    }

    fn cuProfilerStart() {
        Ok(())
    }

    fn cuProfilerStop() {
        Ok(())
    }

    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        with_context(|state| {
            let (used, all) = (state.memory.used, state.memory.total);
            // SAFETY: the program's pointers.
            unsafe { put(free, (all - used) as usize).and(put(total, all as usize)) }
        })
    }

    fn cuPointerGetAttribute(out: *mut c_void, attribute: c_int, pointer: DevicePtr) {
        with_context(|state| super::memory::pointer_attribute(state, out, attribute, pointer))
    }
}
