//! NVTX: how a profiler gets to know which part of a program launches what.
//!
//! A tool names a library of its own in `NVTX_INJECTION64_PATH` before the program starts. The program opens it and
//! calls its `InitializeInjectionNvtx2` with a function by which it asks for tables; into these it puts the functions
//! that it wants to be told by. Source: `nvtx3/nvtxDetail/nvtxTypes.h` and `nvtxInit.h`, version 3 of the protocol. NVIDIA
//! ships these headers for C and no library, so that there is none to bind to.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering::Acquire};

/// What an attached tool wants to be told of ranges.
pub(super) struct Tool {
    push: Option<unsafe extern "C" fn(*const c_char) -> c_int>,
    pop: Option<unsafe extern "C" fn() -> c_int>,
}

impl Tool {
    /// The tool that this process runs under. It attaches when it is first asked for.
    pub(super) fn attached() -> Option<&'static Self> {
        static TOOL: OnceLock<Option<Tool>> = OnceLock::new();
        TOOL.get_or_init(|| {
            let library =
                std::env::var_os("NVTX_INJECTION64_PATH").filter(|path| !path.is_empty())?;
            attach(library.into())
        })
        .as_ref()
    }

    /// Opens a range of this thread.
    pub(super) fn push(&self, name: &CStr) {
        if let Some(push) = self.push {
            // SAFETY: the tool gave this function for calls with a text, which it copies.
            unsafe { push(name.as_ptr()) };
        }
    }

    /// Closes the innermost range of this thread.
    pub(super) fn pop(&self) {
        if let Some(pop) = self.pop {
            // SAFETY: the tool gave this function for calls without arguments.
            unsafe { pop() };
        }
    }
}

/// The protocol's numbers: of tables, of their modules, of functions in the module `CORE`.
const CALLBACKS: u32 = 1;
const VERSION: u32 = 3;
const CORE: usize = 1;
const RANGE_PUSH_A: usize = 9;
const RANGE_POP: usize = 11;
/// How many functions each module has, and one: CORE, CUDA, OPENCL, CUDART, CORE2, SYNC, counted from 1.
const MODULES: [usize; 7] = [0, 16, 9, 15, 7, 16, 7];
const MOST: usize = 16;

/// Where the tool writes its functions, by module and number.
static FUNCTIONS: [[AtomicPtr<c_void>; MOST]; MODULES.len()] =
    [const { [const { AtomicPtr::new(ptr::null_mut()) }; MOST] }; MODULES.len()];

/// Where each of a module's functions is written.
#[repr(transparent)]
struct Places([*const AtomicPtr<c_void>; MOST]);

// SAFETY: addresses of statics, which are only written atomically here, and by the tool before it is called.
unsafe impl Sync for Places {}

static PLACES: [Places; MODULES.len()] = {
    let mut places = [const { Places([ptr::null(); MOST]) }; MODULES.len()];
    let mut module = 0;
    while module < MODULES.len() {
        let mut function = 1; // the first stands for none
        while function < MODULES[module] {
            places[module].0[function] = &raw const FUNCTIONS[module][function];
            function += 1;
        }
        module += 1;
    }
    places
};

/// `NvtxExportTableCallbacks`
#[repr(C)]
struct Callbacks {
    size: usize,
    module_functions: unsafe extern "C" fn(c_uint, *mut *const Places, *mut c_uint) -> c_int,
}

/// `NvtxExportTableVersionInfo`
#[repr(C)]
struct VersionInfo {
    size: usize,
    version: u32,
    reserved: u32,
    set_version: extern "C" fn(u32),
}

/// # Safety
/// Both pointers are NULL or can be written.
unsafe extern "C" fn module_functions(
    module: c_uint,
    places: *mut *const Places,
    count: *mut c_uint,
) -> c_int {
    let module = module as usize;
    if !(CORE..MODULES.len()).contains(&module) {
        return 0;
    }
    // SAFETY: by this function's contract.
    unsafe {
        if !places.is_null() {
            places.write(&raw const PLACES[module]);
        }
        if !count.is_null() {
            count.write(MODULES[module] as c_uint);
        }
    }
    1
}

extern "C" fn set_version(_: u32) {}

extern "C" fn export_table(table: u32) -> *const c_void {
    static CALLBACK_TABLE: Callbacks = Callbacks { size: size_of::<Callbacks>(), module_functions };
    static VERSION_TABLE: VersionInfo =
        VersionInfo { size: size_of::<VersionInfo>(), version: 3, reserved: 0, set_version };
    match table {
        CALLBACKS => (&raw const CALLBACK_TABLE).cast(),
        VERSION => (&raw const VERSION_TABLE).cast(),
        _ => ptr::null(),
    }
}

/// Has the tool in `library` attach itself; none when it does not.
fn attach(library: PathBuf) -> Option<Tool> {
    type Initialize = unsafe extern "C" fn(extern "C" fn(u32) -> *const c_void) -> c_int;
    // SAFETY: the user chose the library, by the variable that is there for it; its initialisers are the tool's.
    let library = unsafe { libloading::Library::new(library) }.ok()?;
    // SAFETY: the protocol gives this function this type.
    let initialize = unsafe { library.get::<Initialize>(c"InitializeInjectionNvtx2") }.ok()?;
    // SAFETY: as the protocol has it.
    if unsafe { initialize(export_table) } == 0 {
        return None;
    }
    std::mem::forget(library); // its functions are called until the end
    let function = |number: usize| FUNCTIONS[CORE][number].load(Acquire);
    // SAFETY: NULL, or what the tool gave for a function of this type.
    Some(unsafe {
        Tool {
            push: std::mem::transmute::<*mut c_void, Option<_>>(function(RANGE_PUSH_A)),
            pop: std::mem::transmute::<*mut c_void, Option<_>>(function(RANGE_POP)),
        }
    })
}
