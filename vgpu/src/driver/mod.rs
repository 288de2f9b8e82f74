//! The CUDA driver API. Every exported function is C's; the work is in `state` and `queue`.

mod calls;
mod card;
mod device;
mod error;
mod failure;
mod graph;
mod graph_memory;
mod launch;
mod memory;
mod module;
mod nvtx;
mod procs;
mod queue;
mod state;
mod stream;

use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard};

use error::Code;
use state::State;

/// A handle as C programs hold it.
pub(crate) type Handle = *mut c_void;
/// A `CUdeviceptr`.
pub(crate) type DevicePtr = u64;
pub(crate) type Outcome = Result<(), Code>;

static STATE: Mutex<Option<State>> = Mutex::new(None);

std::thread_local! {
    /// Set while a host function of a stream runs: it must not call the driver.
    static IN_CALLBACK: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn lock() -> Result<MutexGuard<'static, Option<State>>, Code> {
    if IN_CALLBACK.get() {
        return Err(error::NOT_PERMITTED);
    }
    // A panic while the lock was held was reported as an unknown error; the state is still usable.
    Ok(STATE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// Runs with the initialised driver.
pub(crate) fn with_state<T>(work: impl FnOnce(&mut State) -> Result<T, Code>) -> Result<T, Code> {
    work(lock()?.as_mut().ok_or(error::NOT_INITIALIZED)?)
}

/// Runs with a current context that no error has ended.
pub(crate) fn with_context<T>(work: impl FnOnce(&mut State) -> Result<T, Code>) -> Result<T, Code> {
    with_state(|state| {
        state.check_context()?;
        work(state)
    })
}

/// Writes through a pointer that a C program gave.
///
/// # Safety
/// `to` is NULL or valid for writing a `T`.
pub(crate) unsafe fn put<T>(to: *mut T, value: T) -> Outcome {
    if to.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: as the caller promises.
    unsafe { to.write(value) };
    Ok(())
}

/// Defines exported functions of the driver and a table of their names. Each body gives an [`Outcome`];
/// a panic in it becomes `CUDA_ERROR_UNKNOWN`.
macro_rules! api {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $body:block)+) => {
        $(
            $(#[$doc])*
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, clippy::missing_safety_doc)]
            pub unsafe extern "C" fn $name($($arg: $ty),*) -> $crate::driver::error::Code {
                $crate::driver::calls::note(stringify!($name));
                let work = std::panic::AssertUnwindSafe(|| -> $crate::driver::Outcome { $body });
                match std::panic::catch_unwind(work) {
                    Ok(Ok(())) => $crate::driver::error::SUCCESS,
                    Ok(Err(code)) => code,
                    Err(_) => $crate::driver::error::UNKNOWN,
                }
            }
        )+
        /// Names and addresses of this file's functions.
        pub(super) fn table() -> Vec<(&'static str, *const std::ffi::c_void)> {
            vec![$((stringify!($name), $name as *const std::ffi::c_void)),+]
        }
    };
}
pub(crate) use api;
