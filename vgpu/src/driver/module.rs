//! Modules, libraries and kernels.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

use super::card::ptx_version;
use super::error::{self, Code};
use super::state::{FunctionEntry, ModuleEntry, State};
use super::{DevicePtr, Handle, api, put, with_context};
use crate::module::{LoadError, Module};

/// What an image begins with.
const ELF: [u8; 4] = [0x7f, b'E', b'L', b'F'];
const FATBIN: [u8; 4] = [0x50, 0xed, 0x55, 0xba];
const FATBIN_WRAPPER: [u8; 4] = [0xb1, 0x43, 0x62, 0x46];

/// Text that the driver wrote about a module, for the caller's log buffer.
struct LoadFailure {
    code: Code,
    log: String,
}

fn failure(code: Code, log: impl Into<String>) -> LoadFailure {
    LoadFailure { code, log: log.into() }
}

/// Registers a thread of each kernel, as the ptxas of `VGPU_PTXAS` counts them.
fn count_registers(state: &State, text: &str) -> HashMap<String, u32> {
    let mut counts = HashMap::new();
    let Some(ptxas) = &state.ptxas else { return counts };
    let folder =
        std::env::temp_dir().join(format!("vgpu-{}-{}", std::process::id(), state.sequence));
    let run = || -> std::io::Result<String> {
        std::fs::create_dir_all(&folder)?;
        let file = folder.join("module.ptx");
        std::fs::write(&file, text)?;
        let (major, minor) = state.card.capability;
        let arch = format!("-arch=sm_{major}{minor}");
        let output = std::process::Command::new(ptxas)
            .arg("-v")
            .arg(arch)
            .arg(&file)
            .arg("-o")
            .arg(folder.join("module.cubin"))
            .output()?;
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    match run() {
        Ok(report) => {
            let mut kernel = None;
            for line in report.lines() {
                if let Some(name) = line
                    .split("Compiling entry function '")
                    .nth(1)
                    .and_then(|rest| rest.split('\'').next())
                {
                    kernel = Some(name.to_string());
                }
                let used = line
                    .split("Used ")
                    .nth(1)
                    .and_then(|rest| rest.split(' ').next()?.parse().ok());
                if let (Some(used), Some(kernel)) = (used, kernel.take_if(|_| used.is_some())) {
                    counts.insert(kernel, used);
                }
            }
        }
        Err(e) => eprintln!("vgpu: {} does not run: {e}", ptxas.display()),
    }
    let _ = std::fs::remove_dir_all(&folder);
    counts
}

/// Loads an image.
///
/// # Safety
/// `image` points at NUL-terminated PTX or at a binary image.
unsafe fn load(state: &mut State, image: *const c_void) -> Result<u64, LoadFailure> {
    if image.is_null() {
        return Err(failure(error::INVALID_VALUE, "the image is NULL"));
    }
    let bytes = image.cast::<u8>();
    let mut magic = [0u8; 4];
    for (i, byte) in magic.iter_mut().enumerate() {
        // SAFETY: an image is NUL-terminated or longer than its magic number.
        *byte = unsafe { bytes.add(i).read() };
        if *byte == 0 {
            break;
        }
    }
    if [ELF, FATBIN, FATBIN_WRAPPER].contains(&magic) {
        return Err(failure(
            error::NO_BINARY_FOR_GPU,
            "binary images hold machine code; this device executes PTX text",
        ));
    }
    // SAFETY: not a binary, so NUL-terminated text.
    let Ok(text) = unsafe { CStr::from_ptr(image.cast()) }.to_str() else {
        return Err(failure(error::INVALID_IMAGE, "the image is neither text nor a known binary"));
    };
    if !text.contains(".version") {
        return Err(failure(
            error::INVALID_IMAGE,
            "the image has no .version directive, so it is not PTX",
        ));
    }
    state.failures.allocation().map_err(|code| failure(code, "no memory for the module"))?;
    let module = match Module::load(text, &mut state.memory) {
        Ok(module) => module,
        Err(LoadError::OutOfMemory) => {
            return Err(failure(error::OUT_OF_MEMORY, "no memory for the module's variables"));
        }
        Err(LoadError::Syntax(e)) => {
            let line = text.lines().nth(e.line as usize - 1).unwrap_or("").trim();
            return Err(failure(error::INVALID_PTX, format!("{e}: {line}")));
        }
    };
    let mut module = module;
    let (major, minor) = state.card.capability;
    let refused = module.kernels.values().find_map(|kernel| {
        if kernel.ptx_version > ptx_version(state.driver) {
            Some(failure(
                error::UNSUPPORTED_PTX_VERSION,
                format!(
                    "PTX {}.{} is newer than this driver",
                    kernel.ptx_version / 10,
                    kernel.ptx_version % 10
                ),
            ))
        } else if kernel.target > major * 10 + minor {
            Some(failure(
                error::NO_BINARY_FOR_GPU,
                format!("the PTX is for sm_{}, the card is sm_{major}{minor}", kernel.target),
            ))
        } else if kernel.static_shared > state.card.shared_per_block as usize {
            Some(failure(
                error::INVALID_PTX,
                format!(
                    "kernel {} declares {} bytes of shared memory; at most {} can be static",
                    kernel.name, kernel.static_shared, state.card.shared_per_block
                ),
            ))
        } else {
            None
        }
    });
    if let Some(refused) = refused {
        module.unload(&mut state.memory);
        return Err(refused);
    }
    let registers = count_registers(state, text);
    let id = state.handle();
    state.modules.insert(id, ModuleEntry { module, registers, functions: HashMap::new() });
    Ok(id)
}

/// Loads for a caller without a log buffer: what is wrong goes to stderr.
unsafe fn load_or_say(state: &mut State, image: *const c_void) -> Result<u64, Code> {
    // SAFETY: as the caller promises.
    unsafe { load(state, image) }.map_err(|f| {
        // A binary is refused so that the caller tries its PTX next: nothing to complain about.
        if f.code != error::NO_BINARY_FOR_GPU {
            eprintln!("vgpu: module refused: {}", f.log);
        }
        f.code
    })
}

impl State {
    fn unload(&mut self, id: u64) -> Result<(), Code> {
        if !self.modules.contains_key(&id) {
            return Err(error::INVALID_HANDLE);
        }
        self.synchronise_all()?;
        if let Some(mut entry) = self.modules.remove(&id) {
            entry.module.unload(&mut self.memory);
            self.functions.retain(|_, f| f.module != id);
        }
        Ok(())
    }

    fn function(&mut self, module: u64, name: &CStr) -> Result<u64, Code> {
        let name = name.to_str().map_err(|_| error::NOT_FOUND)?;
        let handle = self.handle();
        let entry = self.modules.get_mut(&module).ok_or(error::INVALID_HANDLE)?;
        let kernel = entry.module.kernels.get(name).ok_or(error::NOT_FOUND)?.clone();
        if let Some(known) = entry.functions.get(name) {
            return Ok(*known);
        }
        entry.functions.insert(name.to_string(), handle);
        let registers = entry.registers.get(name).copied();
        let default = self.card.shared_per_block - kernel.static_shared as u32;
        self.functions.insert(
            handle,
            FunctionEntry { module, kernel, max_dynamic_shared: default, carveout: -1, registers },
        );
        Ok(handle)
    }
}

/// A C string argument.
///
/// # Safety
/// `text` is NULL or NUL-terminated.
unsafe fn string<'a>(text: *const c_char) -> Result<&'a CStr, Code> {
    // SAFETY: as the caller promises.
    if text.is_null() { Err(error::INVALID_VALUE) } else { Ok(unsafe { CStr::from_ptr(text) }) }
}

api! {
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) {
        with_context(|state| {
            // SAFETY: the program's image and pointer.
            unsafe { put(module, load_or_say(state, image)? as Handle) }
        })
    }

    fn cuModuleLoadDataEx(module: *mut Handle, image: *const c_void, count: c_uint, options: *mut c_int, values: *mut *mut c_void) {
        with_context(|state| {
            // SAFETY: the program's image.
            match unsafe { load(state, image) } {
                // SAFETY: the program's pointer.
                Ok(id) => unsafe { put(module, id as Handle) },
                Err(refused) => {
                    let mut logged = false;
                    if count > 0 && !options.is_null() && !values.is_null() {
                        // SAFETY: the program gave `count` options and values.
                        let (options, values) = unsafe {
                            (std::slice::from_raw_parts(options, count as usize), std::slice::from_raw_parts(values, count as usize))
                        };
                        let value = |number: c_int| options.iter().position(|o| *o == number).map(|at| values[at]);
                        // CU_JIT_ERROR_LOG_BUFFER and its size in bytes
                        if let (Some(buffer), Some(size)) = (value(5), value(6))
                            && !buffer.is_null()
                            && size as usize > 0
                        {
                            let text = refused.log.as_bytes();
                            let len = text.len().min(size as usize - 1);
                            // SAFETY: the program gave a buffer of that size.
                            unsafe {
                                std::ptr::copy_nonoverlapping(text.as_ptr(), buffer.cast(), len);
                                buffer.cast::<u8>().add(len).write(0);
                            }
                            logged = true;
                        }
                    }
                    if !logged {
                        eprintln!("vgpu: module refused: {}", refused.log);
                    }
                    Err(refused.code)
                }
            }
        })
    }

    fn cuModuleLoadFatBinary(module: *mut Handle, image: *const c_void) {
        with_context(|state| {
            // SAFETY: the program's image and pointer.
            unsafe { put(module, load_or_say(state, image)? as Handle) }
        })
    }

    fn cuModuleLoad(module: *mut Handle, path: *const c_char) {
        with_context(|state| {
            // SAFETY: the program's string.
            let path = unsafe { string(path) }?.to_string_lossy().into_owned();
            let mut image = std::fs::read(&path).map_err(|_| error::FILE_NOT_FOUND)?;
            image.push(0);
            // SAFETY: NUL-terminated just now, and the program's pointer.
            unsafe { put(module, load_or_say(state, image.as_ptr().cast())? as Handle) }
        })
    }

    fn cuModuleUnload(module: Handle) {
        with_context(|state| state.unload(module as u64))
    }

    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        with_context(|state| {
            // SAFETY: the program's string.
            let name = unsafe { string(name) }?;
            let id = state.function(module as u64, name)?;
            // SAFETY: the program's pointer.
            unsafe { put(function, id as Handle) }
        })
    }

    fn cuModuleGetGlobal_v2(address: *mut DevicePtr, bytes: *mut usize, module: Handle, name: *const c_char) {
        with_context(|state| {
            // SAFETY: the program's string.
            let name = unsafe { string(name) }?.to_str().map_err(|_| error::NOT_FOUND)?;
            let entry = state.modules.get(&(module as u64)).ok_or(error::INVALID_HANDLE)?;
            let global = entry.module.globals.get(name).ok_or(error::NOT_FOUND)?;
            // SAFETY: the program's pointers, either of which may be NULL.
            unsafe {
                if !address.is_null() {
                    put(address, global.address)?;
                }
                if !bytes.is_null() {
                    put(bytes, global.size as usize)?;
                }
            }
            Ok(())
        })
    }

    fn cuModuleGetFunctionCount(count: *mut c_uint, module: Handle) {
        with_context(|state| {
            let entry = state.modules.get(&(module as u64)).ok_or(error::INVALID_HANDLE)?;
            // SAFETY: the program's pointer.
            unsafe { put(count, entry.module.kernels.len() as c_uint) }
        })
    }

    fn cuModuleGetLoadingMode(mode: *mut c_int) {
        // Eager: everything is decoded at load.
        // SAFETY: the program's pointer.
        unsafe { put(mode, 1) }
    }

    fn cuLibraryLoadData(
        library: *mut Handle,
        code: *const c_void,
        _options: *mut c_int,
        _values: *mut *mut c_void,
        _count: c_uint,
        _library_options: *mut c_int,
        _library_values: *mut *mut c_void,
        _library_count: c_uint,
    ) {
        with_context(|state| {
            // SAFETY: the program's image and pointer.
            unsafe { put(library, load_or_say(state, code)? as Handle) }
        })
    }

    fn cuLibraryUnload(library: Handle) {
        with_context(|state| state.unload(library as u64))
    }

    fn cuLibraryGetModule(module: *mut Handle, library: Handle) {
        // A library is its module here.
        // SAFETY: the program's pointer.
        with_context(|_| unsafe { put(module, library) })
    }

    fn cuLibraryGetKernel(kernel: *mut Handle, library: Handle, name: *const c_char) {
        with_context(|state| {
            // SAFETY: the program's string.
            let name = unsafe { string(name) }?;
            let id = state.function(library as u64, name)?;
            // SAFETY: the program's pointer.
            unsafe { put(kernel, id as Handle) }
        })
    }

    fn cuKernelGetFunction(function: *mut Handle, kernel: Handle) {
        // SAFETY: the program's pointer.
        with_context(|_| unsafe { put(function, kernel) })
    }

    fn cuFuncGetModule(module: *mut Handle, function: Handle) {
        with_context(|state| {
            let id = state.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?.module;
            // SAFETY: the program's pointer.
            unsafe { put(module, id as Handle) }
        })
    }

    fn cuFuncGetParamInfo(function: Handle, index: usize, offset: *mut usize, size: *mut usize) {
        with_context(|state| {
            let entry = state.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
            let param = entry.kernel.params.get(index).ok_or(error::INVALID_VALUE)?;
            // SAFETY: the program's pointers.
            unsafe {
                put(offset, param.offset)?;
                if size.is_null() { Ok(()) } else { put(size, param.size) }
            }
        })
    }

    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_int, function: Handle) {
        with_context(|state| {
            let entry = state.functions.get(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
            let kernel = &entry.kernel;
            let found = match attribute {
                0 => kernel.max_threads.unwrap_or(1024).min(1024) as c_int, // MAX_THREADS_PER_BLOCK
                1 => kernel.static_shared as c_int,                         // SHARED_SIZE_BYTES
                2 => 0,                                                     // CONST_SIZE_BYTES
                3 => kernel.local_bytes as c_int,                           // LOCAL_SIZE_BYTES
                4 => entry.known_registers() as c_int,                      // NUM_REGS
                5 => kernel.target as c_int,                                // PTX_VERSION
                6 => (state.card.capability.0 * 10 + state.card.capability.1) as c_int, // BINARY_VERSION
                7 => 0,                                                     // CACHE_MODE_CA
                8 => entry.max_dynamic_shared as c_int,                     // MAX_DYNAMIC_SHARED_SIZE_BYTES
                9 => entry.carveout,                                        // PREFERRED_SHARED_MEMORY_CARVEOUT
                10..=15 => 0,                                               // clusters
                _ => return Err(error::INVALID_VALUE),
            };
            // SAFETY: the program's pointer.
            unsafe { put(value, found) }
        })
    }

    fn cuFuncSetAttribute(function: Handle, attribute: c_int, value: c_int) {
        with_context(|state| {
            let limit = state.card.shared_optin;
            let entry = state.functions.get_mut(&(function as u64)).ok_or(error::INVALID_HANDLE)?;
            match attribute {
                8 => {
                    let fits = value >= 0 && entry.kernel.static_shared as u64 + value as u64 <= limit as u64;
                    if !fits {
                        return Err(error::INVALID_VALUE);
                    }
                    entry.max_dynamic_shared = value as u32;
                }
                9 if (-1..=100).contains(&value) => entry.carveout = value,
                14 | 15 => {}
                _ => return Err(error::INVALID_VALUE),
            }
            Ok(())
        })
    }

    fn cuFuncSetCacheConfig(function: Handle, _config: c_int) {
        with_context(|state| state.functions.get(&(function as u64)).map(|_| ()).ok_or(error::INVALID_HANDLE))
    }

    fn cuFuncSetSharedMemConfig(function: Handle, _config: c_int) {
        with_context(|state| state.functions.get(&(function as u64)).map(|_| ()).ok_or(error::INVALID_HANDLE))
    }

    fn cuFuncLoad(function: Handle) {
        with_context(|state| state.functions.get(&(function as u64)).map(|_| ()).ok_or(error::INVALID_HANDLE))
    }
}

impl FunctionEntry {
    /// Registers a thread: what ptxas said, or a guess from what the PTX declares.
    pub(crate) fn known_registers(&self) -> u32 {
        // PTX registers are virtual; compilers rarely need more than a quarter of them at once.
        self.registers.unwrap_or((self.kernel.declared_registers / 4).clamp(16, 128))
    }
}
