//! `cuGetProcAddress`: functions by name.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use super::{Outcome, api, error, put};

struct Table(HashMap<&'static str, *const c_void>);

// SAFETY: addresses of functions.
unsafe impl Send for Table {}
// SAFETY: addresses of functions.
unsafe impl Sync for Table {}

/// All functions, under their exported names and under the names of the header, which lack the version.
fn functions() -> &'static HashMap<&'static str, *const c_void> {
    static FUNCTIONS: OnceLock<Table> = OnceLock::new();
    &FUNCTIONS
        .get_or_init(|| {
            let mut all = super::device::table();
            all.extend(super::memory::table());
            all.extend(super::module::table());
            all.extend(super::launch::table());
            all.extend(super::stream::table());
            all.extend(super::graph::table());
            all.extend(table());
            let mut names: HashMap<&'static str, *const c_void> = all.iter().copied().collect();
            for (name, address) in all {
                // `cuCtxCreate` has three versions with different arguments; the oldest is what its plain name meant.
                if let Some((base, version)) = name.rsplit_once("_v")
                    && version.chars().all(|c| c.is_ascii_digit())
                {
                    let slot = names.entry(base).or_insert(address);
                    if version == "2" {
                        *slot = address;
                    }
                }
            }
            Table(names)
        })
        .0
}

fn find(symbol: *const c_char, out: *mut *const c_void) -> Outcome {
    if symbol.is_null() {
        return Err(error::INVALID_VALUE);
    }
    // SAFETY: the program's string.
    let name = unsafe { CStr::from_ptr(symbol) }.to_str().map_err(|_| error::INVALID_VALUE)?;
    let address = functions().get(name).copied();
    // SAFETY: the program's pointer.
    unsafe { put(out, address.unwrap_or(std::ptr::null())) }?;
    address.map(|_| ()).ok_or(error::NOT_FOUND)
}

api! {
    fn cuGetProcAddress(symbol: *const c_char, out: *mut *const c_void, _version: c_int, _flags: u64) {
        find(symbol, out)
    }

    fn cuGetProcAddress_v2(symbol: *const c_char, out: *mut *const c_void, _version: c_int, _flags: u64, status: *mut c_int) {
        let found = find(symbol, out);
        if !status.is_null() {
            // CU_GET_PROC_ADDRESS_SUCCESS or _SYMBOL_NOT_FOUND
            // SAFETY: the program's pointer.
            unsafe { put(status, found.is_err() as c_int) }?;
        }
        found
    }
}
