//! The tool's side of NVTX, for programs that are given this library as `NVTX_INJECTION64_PATH`: the ranges that they
//! push and pop stand among the calls of `VGPU_CALLS`. Source: `nvtx3/nvtxDetail/nvtxTypes.h`.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::calls;

/// The protocol's numbers: of the table that gives modules, of the module `CORE`, of its functions.
const CALLBACKS: u32 = 1;
const CORE: c_uint = 1;
const RANGE_PUSH_A: usize = 9;
const RANGE_POP: usize = 11;

/// Where a module's functions are written, by number.
type Places = *const *mut *const c_void;

/// `NvtxExportTableCallbacks`
#[repr(C)]
pub struct Callbacks {
    size: usize,
    module_functions: unsafe extern "C" fn(c_uint, *mut Places, *mut c_uint) -> c_int,
}

/// # Safety
/// A text, or NULL.
unsafe extern "C" fn range_push(name: *const c_char) -> c_int {
    if !name.is_null() {
        // SAFETY: the program's text.
        let name = unsafe { CStr::from_ptr(name) };
        calls::note(&format!("nvtxRangePushA {}", name.to_string_lossy()));
    }
    0
}

extern "C" fn range_pop() -> c_int {
    calls::note("nvtxRangePop");
    0
}

/// Attaches to a program. Gives 0 where that is not possible.
///
/// # Safety
/// `export_table` is the program's function of the protocol.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn InitializeInjectionNvtx2(
    export_table: Option<unsafe extern "C" fn(u32) -> *const Callbacks>,
) -> c_int {
    let Some(export_table) = export_table else { return 0 };
    // SAFETY: as the caller promises; the table is a static of the program.
    let Some(callbacks) = (unsafe { export_table(CALLBACKS).as_ref() }) else { return 0 };
    let (mut places, mut count): (Places, c_uint) = (std::ptr::null(), 0);
    // SAFETY: the program writes both.
    let known = unsafe { (callbacks.module_functions)(CORE, &mut places, &mut count) };
    if callbacks.size < size_of::<Callbacks>() || known == 0 || count as usize <= RANGE_POP {
        return 0;
    }
    let functions =
        [(RANGE_PUSH_A, range_push as *const c_void), (RANGE_POP, range_pop as *const c_void)];
    for (number, function) in functions {
        // SAFETY: the program gave so many places, each of which is NULL or can be written.
        unsafe {
            let place = *places.add(number);
            if !place.is_null() {
                place.write(function);
            }
        }
    }
    1
}
