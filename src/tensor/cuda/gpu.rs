//! A device in use: its context, loaded kernels, streams, and what became of it.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cudarc::driver::{CudaContext, DriverError, result, sys};

use super::device::{Properties, compiler, driver_release, properties};
use super::staging::Staging;
use super::stream::{Queue, Stream};
use super::{COMPILER, Image, MODULES};
use crate::error::{Error, Result};
use crate::types::Device;

/// Lives as long as the process.
pub(super) struct Gpu {
    pub(super) properties: Properties,
    context: Arc<CudaContext>,
    /// By family.
    modules: Mutex<HashMap<&'static str, Handle<sys::CUmodule>>>,
    /// By name.
    functions: Mutex<HashMap<&'static str, Handle<sys::CUfunction>>>,
    /// Whether freed memory is kept for the next tensor. `NADIR_POOL=off` gives every tensor an allocation of its
    /// own, so that a tool that checks accesses sees the bounds.
    pub(super) pooled: bool,
    /// Whether the memory of graphs lies between sentinels that each launch looks at: `NADIR_SENTINELS=on`.
    pub(super) sentinels: bool,
    /// Held while work is put into a stream together with what it waits for, so that the order in which memory is
    /// said to be used is the order in which it is used.
    pub(super) submission: Mutex<()>,
    /// The stream of threads that chose none.
    main: OnceLock<Stream>,
    pub(super) queues: Queues,
    pub(super) staging: Staging,
    /// Why the device does not answer any more.
    lost: OnceLock<String>,
}

/// The driver's streams of a device. They are never destroyed: what refers to them need not ask whether they live.
#[derive(Default)]
pub(super) struct Queues {
    /// All that memory may belong to.
    pub(super) all: Mutex<Vec<&'static Queue>>,
    /// Those of `all` that no [`Stream`] stands for.
    pub(super) idle: Mutex<Vec<&'static Queue>>,
    /// For captures; no memory belongs to them.
    pub(super) idle_captures: Mutex<Vec<&'static Queue>>,
}

/// A handle of the driver's.
#[derive(Clone, Copy)]
struct Handle<T>(T);

// SAFETY: the driver's handles of modules and functions may be used from any thread, and are never freed here.
unsafe impl<T> Send for Handle<T> {}

/// Calls the driver. Its loader panics when an old driver lacks a function: that is the outer error.
pub(super) fn guarded<T>(
    what: &str,
    f: impl FnOnce() -> Result<T, DriverError>,
) -> Result<Result<T, DriverError>> {
    catch_unwind(AssertUnwindSafe(f))
        .map_err(|_| Error::Cuda(format!("{what}: the driver is too old for this build")))
}

/// What failed and how, in the driver's words.
pub(super) fn describe(what: &str, error: DriverError) -> String {
    let text = catch_unwind(|| error.error_string().map(|s| s.to_string_lossy().into_owned()));
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    format!("{what}: {:?}: {text}", error.0)
}

/// A poisoned lock only means that another thread panicked; what these locks guard stays whole.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Whether every later call in the same context fails as well.
fn ends_the_context(error: DriverError) -> bool {
    use sys::cudaError_enum::*;
    matches!(
        error.0,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

/// Gives memory that is kept for later tensors back to the driver, for others on the device; returns how many buffers that
/// were. When memory runs out it happens by itself.
///
/// # Errors
/// `Argument` for a device that is none of CUDA's or not there; `Cuda`, `DeviceLost`.
pub fn release_unused(device: Device) -> Result<usize> {
    Gpu::of(device)?.release_unused()
}

impl Gpu {
    pub(super) fn open(ordinal: usize) -> Result<&'static Self> {
        static OPEN: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());
        let mut open = lock(&OPEN);
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu);
        }
        let properties = properties(ordinal)?;
        let context = guarded("opening the device", || CudaContext::new(ordinal))?
            .map_err(|error| Error::Cuda(describe("opening the device", error)))?;
        let gpu: &'static Self = Box::leak(Box::new(Self {
            properties,
            context,
            modules: Mutex::default(),
            functions: Mutex::default(),
            pooled: !std::env::var("NADIR_POOL").is_ok_and(|v| v == "off"),
            sentinels: std::env::var("NADIR_SENTINELS").is_ok_and(|v| v == "on"),
            submission: Mutex::default(),
            main: OnceLock::new(),
            queues: Queues::default(),
            staging: Staging::default(),
            lost: OnceLock::new(),
        }));
        open.insert(ordinal, gpu);
        Ok(gpu)
    }

    /// # Errors
    /// `Argument` for the CPU.
    pub(super) fn of(device: Device) -> Result<&'static Self> {
        match device {
            Device::Cuda(ordinal) => Self::open(ordinal),
            Device::Cpu => Err(Error::argument("device", device, "a CUDA device")),
        }
    }

    pub(super) fn device(&self) -> Device {
        Device::Cuda(self.properties.ordinal)
    }

    /// The stream that all threads share unless they choose another.
    pub(super) fn main(&'static self) -> Result<Stream> {
        if let Some(stream) = self.main.get() {
            return Ok(stream.clone());
        }
        let made = Stream::of(self)?;
        Ok(self.main.get_or_init(|| made).clone())
    }

    /// An error when the device was lost before.
    pub(super) fn check(&self) -> Result<()> {
        match self.lost.get() {
            None => Ok(()),
            Some(message) => {
                Err(Error::DeviceLost { device: self.device(), message: message.clone() })
            }
        }
    }

    /// Calls the driver with this device's context current.
    ///
    /// # Errors
    /// `DeviceLost` from the first error on that ends the context; `Cuda` for any other.
    pub(super) fn call<T>(
        &self,
        what: &str,
        f: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<T> {
        self.attempt(what, f)?.map_err(|error| Error::Cuda(describe(what, error)))
    }

    /// As [`Self::call`], with errors that do not end the context as the driver gave them.
    fn attempt<T>(
        &self,
        what: &str,
        f: impl FnOnce() -> Result<T, DriverError>,
    ) -> Result<Result<T, DriverError>> {
        self.check()?;
        let result = guarded(what, || {
            self.context.bind_to_thread()?;
            f()
        })?;
        if let Err(error) = result
            && ends_the_context(error)
        {
            self.lost.get_or_init(|| describe(what, error));
            self.check()?;
        }
        Ok(result)
    }

    /// As [`Self::call`], for what takes memory: when there is none left, the pools are emptied for it.
    ///
    /// # Errors
    /// `OutOfMemory` when that is not enough.
    pub(super) fn with_room<T>(
        &self,
        what: &str,
        asked: usize,
        f: impl Fn() -> Result<T, DriverError>,
    ) -> Result<T> {
        const OUT_OF_MEMORY: DriverError =
            DriverError(sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY);
        let mut result = self.attempt(what, &f)?;
        if matches!(result, Err(OUT_OF_MEMORY)) && self.release_unused()? > 0 {
            result = self.attempt(what, &f)?;
        }
        match result {
            Err(OUT_OF_MEMORY) => {
                let (free, total) = self.attempt("memory", result::mem_get_info)?.ok().unzip();
                let bytes = |n: usize| n as u64;
                Err(Error::OutOfMemory {
                    device: self.device(),
                    asked: asked as u64,
                    free: free.map(bytes),
                    total: total.map(bytes),
                })
            }
            result => result.map_err(|error| Error::Cuda(describe(what, error))),
        }
    }

    /// Gives the memory in the streams' pools back to the driver; returns how many buffers that were.
    pub(super) fn release_unused(&self) -> Result<usize> {
        let mut released = 0;
        for queue in lock(&self.queues.all).iter() {
            let free = std::mem::take(&mut *lock(&queue.pool));
            for ptr in free.into_pointers() {
                // SAFETY: the pool owned it and has let go of it.
                unsafe { self.free(ptr, queue)? };
                released += 1;
            }
            // The driver hands memory out again once the frees have run.
            queue.synchronize()?;
        }
        Ok(released)
    }

    /// New memory for what runs in this queue.
    pub(super) fn allocate(&self, bytes: usize, queue: &Queue) -> Result<sys::CUdeviceptr> {
        self.with_room("allocating", bytes, || {
            // SAFETY: the context is current, the stream is its own, and bytes > 0.
            unsafe {
                if self.context.has_async_alloc() {
                    result::malloc_async(queue.raw, bytes)
                } else {
                    result::malloc_sync(bytes)
                }
            }
        })
    }

    /// Gives memory back to the driver.
    ///
    /// # Safety
    /// `ptr` is from [`Self::allocate`] with this queue, is given back once, and nothing that is put into any queue
    /// later uses it.
    pub(super) unsafe fn free(&self, ptr: sys::CUdeviceptr, queue: &Queue) -> Result<()> {
        self.call("freeing", || {
            // SAFETY: by this function's contract; on the stream, so after all work asked for before.
            unsafe {
                if self.context.has_async_alloc() {
                    result::free_async(ptr, queue.raw)
                } else {
                    result::free_sync(ptr)
                }
            }
        })
    }

    /// The kernel of this name, loading its family when it is the first. `shared` is the dynamic shared memory that it is
    /// launched with, always the same where it is more than every kernel may have.
    pub(super) fn function(
        &self,
        family: &'static str,
        kernel: &'static str,
        shared: u32,
    ) -> Result<sys::CUfunction> {
        let mut functions = lock(&self.functions);
        if let Some(function) = functions.get(kernel) {
            return Ok(function.0);
        }
        let module = self.module(family)?;
        let name = CString::new(kernel).map_err(|e| Error::Cuda(e.to_string()))?;
        let function = self.call(kernel, || {
            // SAFETY: the module is loaded, and never unloaded.
            unsafe { result::module::get_function(module, name) }
        })?;
        if shared > 48 << 10 {
            let attribute =
                sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            self.call(kernel, || {
                // SAFETY: the function was got from a module that is never unloaded.
                unsafe {
                    result::function::set_function_attribute(function, attribute, shared as i32)
                }
            })?;
        }
        functions.insert(kernel, Handle(function));
        Ok(function)
    }

    /// How many blocks of a kernel the device runs at once.
    pub(super) fn resident_blocks(
        &self,
        function: sys::CUfunction,
        block: u32,
        shared: u32,
    ) -> Result<u32> {
        self.call("counting resident blocks", || {
            // SAFETY: the function was got from a module that is never unloaded.
            unsafe {
                let mut each = 0;
                sys::cuOccupancyMaxActiveBlocksPerMultiprocessor(
                    &mut each,
                    function,
                    block as i32,
                    shared as usize,
                )
                .result()?;
                let processors = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
                let processors = self.context.attribute(processors)?;
                Ok((each * processors) as u32)
            }
        })
    }

    fn module(&self, family: &'static str) -> Result<sys::CUmodule> {
        let mut modules = lock(&self.modules);
        if let Some(module) = modules.get(family) {
            return Ok(module.0);
        }
        compiler()?;
        let embedded = MODULES
            .iter()
            .find(|module| module.family == family)
            .ok_or_else(|| Error::Cuda(format!("this build has no kernels/{family}.cu")))?;
        let load = |image: &'static Image<[u8]>| {
            self.with_room(family, image.0.len(), || {
                // SAFETY: a whole fatbin, or PTX text ended by NUL, as nvcc wrote it; it lives forever.
                unsafe { result::module::load_data(image.0.as_ptr().cast()) }
            })
        };
        // The fatbin has nothing for architectures younger than the build: PTX then, at the cost of a
        // translation that the driver caches.
        let module = match load(embedded.fatbin) {
            Err(Error::Cuda(first)) => load(embedded.ptx).map_err(|second| match second {
                Error::Cuda(second) => Error::Cuda(format!(
                    "kernels/{family}.cu cannot be loaded on {}: {first}; as PTX: {second}. \
                     The kernels were built by nvcc {}, the driver is one for CUDA {}: \
                     install a driver of that release or later, or use the CPU",
                    self.properties,
                    COMPILER.unwrap_or_default(),
                    driver_release()
                        .map_or("?".into(), |(major, minor)| format!("{major}.{minor}"))
                )),
                other => other,
            }),
            result => result,
        }?;
        modules.insert(family, Handle(module));
        Ok(module)
    }
}
