//! CUDA devices: memory, loading and launching kernels. All of CUDA's unsafe code is here.
//!
//! A device has one stream, so work and memory follow the order in which the host asked: a freed buffer may
//! be handed out again while kernels that use it are still under way, since whatever touches it next runs
//! after them. Families of kernels are loaded when first used, machine code before PTX.
//!
//! The driver is looked for at run time. Where there is none, [`devices`] and [`choose`] say so.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{CString, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::{Device, Storage, Tensor};
use crate::error::{Error, Result};

include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// A family of kernels as the build script left it: `kernels/FAMILY.cu`.
struct Module {
    family: &'static str,
    /// Machine code for the known architectures.
    fatbin: &'static Image<[u8]>,
    /// Text for the driver to translate on any other, ended by NUL.
    ptx: &'static Image<[u8]>,
}

/// Bytes at an address that the driver can read 64-bit headers from.
#[repr(C, align(16))]
struct Image<T: ?Sized>(T);

/// Families that drawing a picture needs. `--device auto` takes the GPU only when all are in the build.
const NEEDED: [&str; 8] =
    ["attention", "conv", "elementwise", "embedding", "layout", "matmul", "norm", "resample"];

/// The oldest compute capability there are kernels for.
const OLDEST: (i32, i32) = (8, 0);

/// A CUDA device as its driver describes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Properties {
    /// Its number, the N of `--device cuda:N`.
    pub ordinal: usize,
    /// The name of the card.
    pub name: String,
    /// Major and minor version of its instruction set.
    pub compute_capability: (i32, i32),
    /// Its memory, in bytes.
    pub memory: usize,
}

impl std::fmt::Display for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.compute_capability;
        let gib = self.memory as f64 / (1u64 << 30) as f64;
        write!(f, "{}, compute capability {major}.{minor}, {gib:.1} GiB", self.name)
    }
}

/// Release of the CUDA compiler that built the kernels.
///
/// # Errors
/// `Cuda` with the reason when this build has no kernels.
pub fn compiler() -> Result<&'static str> {
    COMPILER.map_err(|reason| Error::Cuda(format!("this build has no kernels: {reason}")))
}

/// The families of kernels in this build, in alphabetical order.
pub fn families() -> impl Iterator<Item = &'static str> {
    MODULES.iter().map(|module| module.family)
}

/// The CUDA devices of this machine.
///
/// # Errors
/// `Cuda` when there is no driver, or when it fails.
pub fn devices() -> Result<Vec<Properties>> {
    (0..device_count()?).map(properties).collect()
}

/// The device that `--device` asks for (`auto`, `cpu`, `cuda`, `cuda:N`), and one line that says why it was
/// chosen.
///
/// # Errors
/// `Argument` for another word, or for a device that this machine does not have; `Cuda` when `cuda` was asked
/// for and the driver or the build cannot serve it.
pub fn choose(request: &str) -> Result<(Device, String)> {
    match request {
        "cpu" => Ok((Device::Cpu, "cpu, as asked".into())),
        "auto" => Ok(match automatic() {
            Ok(gpu) => (Device::Cuda(gpu.ordinal), format!("cuda:{}: {gpu}", gpu.ordinal)),
            Err(Error::Cuda(reason)) => (Device::Cpu, format!("cpu, since {reason}")),
            Err(error) => (Device::Cpu, format!("cpu, since {error}")),
        }),
        _ => {
            let ordinal = match request.strip_prefix("cuda") {
                Some("") => Some(0),
                Some(rest) => rest.strip_prefix(':').and_then(|n| n.parse().ok()),
                None => None,
            };
            let ordinal: usize = ordinal.ok_or_else(|| {
                Error::argument("--device", request, "one of auto, cpu, cuda, cuda:N")
            })?;
            compiler()?;
            let gpu = &Gpu::open(ordinal)?.properties;
            Ok((Device::Cuda(ordinal), format!("cuda:{ordinal}, as asked: {gpu}")))
        }
    }
}

/// The first device, when it can run whole models.
fn automatic() -> Result<Properties> {
    compiler()?;
    if device_count()? == 0 {
        return Err(Error::Cuda("the driver finds no device".into()));
    }
    let first = properties(0)?;
    if first.compute_capability < OLDEST {
        let (major, minor) = OLDEST;
        return Err(Error::Cuda(format!(
            "the kernels need compute capability {major}.{minor} ({first})"
        )));
    }
    let missing: Vec<_> = NEEDED.into_iter().filter(|f| families().all(|g| g != *f)).collect();
    if !missing.is_empty() {
        return Err(Error::Cuda(format!(
            "this build has no kernels yet for {} ({first})",
            missing.join(", ")
        )));
    }
    Ok(first)
}

/// Calls the driver. Its loader panics when an old driver lacks a function: that becomes an error too.
fn call<T>(what: &str, f: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(result) => result.map_err(|e| describe(what, e)),
        Err(_) => Err(Error::Cuda(format!("{what}: the driver is too old for this build"))),
    }
}

fn describe(what: &str, error: DriverError) -> Error {
    let text = catch_unwind(|| error.error_string().map(|s| s.to_string_lossy().into_owned()));
    let text = text.ok().and_then(Result::ok).unwrap_or_default();
    Error::Cuda(format!("{what}: {:?}: {text}", error.0))
}

/// A poisoned lock only means that another thread panicked; the maps under these locks stay whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

/// Loads the driver and counts its devices, once.
fn device_count() -> Result<usize> {
    static COUNT: OnceLock<Result<usize, String>> = OnceLock::new();
    let count = COUNT.get_or_init(|| {
        // SAFETY: opens libcuda, whose initialisers are the vendor's, and looks at nothing in it.
        let present = catch_unwind(|| unsafe { sys::is_culib_present() }).unwrap_or(false);
        if !present {
            return Err("no NVIDIA driver is installed (libcuda.so was not found)".into());
        }
        match call("cuInit", CudaContext::device_count) {
            Ok(count) => Ok(count.max(0) as usize),
            Err(Error::Cuda(reason)) => Err(reason),
            Err(error) => Err(error.to_string()),
        }
    });
    count.clone().map_err(Error::Cuda)
}

/// Asks the driver about a device, without taking it into use.
fn properties(ordinal: usize) -> Result<Properties> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let count = device_count()?;
    if ordinal >= count {
        let expected = format!("this machine has {count} CUDA device(s), counted from 0");
        return Err(Error::argument("--device", format!("cuda:{ordinal}"), expected));
    }
    call("asking for the device", || {
        let device = result::device::get(ordinal as i32)?;
        // SAFETY: the driver is initialised, and has just returned this device.
        let (major, minor, memory) = unsafe {
            let major = result::device::get_attribute(device, MAJOR)?;
            let minor = result::device::get_attribute(device, MINOR)?;
            (major, minor, result::device::total_mem(device)?)
        };
        let name = result::device::get_name(device)?;
        Ok(Properties { ordinal, name, compute_capability: (major, minor), memory })
    })
}

/// A device in use: its context, its one stream, loaded kernels and free memory. Lives as long as the process.
struct Gpu {
    properties: Properties,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    /// By family.
    modules: Mutex<HashMap<&'static str, Handle<sys::CUmodule>>>,
    /// By name.
    functions: Mutex<HashMap<&'static str, Handle<sys::CUfunction>>>,
    /// Free buffers by capacity; None with `NADIR_POOL=off`, which gives every tensor an allocation of its
    /// own, so that a tool that checks accesses sees the bounds.
    pool: Option<Mutex<BTreeMap<usize, Vec<sys::CUdeviceptr>>>>,
}

/// A handle of the driver's.
#[derive(Clone, Copy)]
struct Handle<T>(T);

// SAFETY: the driver's handles of modules and functions may be used from any thread, and are never freed here.
unsafe impl<T> Send for Handle<T> {}

impl Gpu {
    fn open(ordinal: usize) -> Result<&'static Self> {
        static OPEN: Mutex<BTreeMap<usize, &'static Gpu>> = Mutex::new(BTreeMap::new());
        let mut open = lock(&OPEN);
        if let Some(gpu) = open.get(&ordinal) {
            return Ok(gpu);
        }
        let properties = properties(ordinal)?;
        let gpu: &'static Gpu = Box::leak(Box::new(call("opening the device", || {
            let context = CudaContext::new(ordinal)?;
            let pooled = !std::env::var("NADIR_POOL").is_ok_and(|v| v == "off");
            Ok(Self {
                properties: properties.clone(),
                stream: context.new_stream()?,
                context,
                modules: Mutex::default(),
                functions: Mutex::default(),
                pool: pooled.then(Mutex::default),
            })
        })?));
        open.insert(ordinal, gpu);
        Ok(gpu)
    }

    /// Calls the driver with this device's context current.
    fn call<T>(&self, what: &str, f: impl FnOnce() -> Result<T, DriverError>) -> Result<T> {
        call(what, || {
            self.context.bind_to_thread()?;
            f()
        })
    }

    /// The kernel of this name, loading its family when it is the first.
    fn function(&self, family: &'static str, kernel: &'static str) -> Result<sys::CUfunction> {
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
        functions.insert(kernel, Handle(function));
        Ok(function)
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
            self.call(family, || {
                // SAFETY: a whole fatbin, or PTX text ended by NUL, as nvcc wrote it; it lives forever.
                unsafe { result::module::load_data(image.0.as_ptr().cast()) }
            })
        };
        // The fatbin has nothing for architectures younger than the build: PTX then, at the cost of a
        // translation that the driver caches.
        let module = load(embedded.fatbin).or_else(|first| {
            load(embedded.ptx).map_err(|second| {
                Error::Cuda(format!(
                    "kernels/{family}.cu cannot be loaded on {}: {first}; as PTX: {second}. \
                     The kernels were built by nvcc {}: a driver of that release or later is needed",
                    self.properties,
                    COMPILER.unwrap_or_default()
                ))
            })
        })?;
        modules.insert(family, Handle(module));
        Ok(module)
    }

    /// Memory of at least `len` bytes, and how many it really is.
    fn allocate(&self, len: usize) -> Result<(sys::CUdeviceptr, usize)> {
        let Some(pool) = &self.pool else {
            let capacity = len.max(1);
            return Ok((self.allocate_new(capacity)?, capacity));
        };
        let capacity = size_class(len);
        let recycled = lock(pool).get_mut(&capacity).and_then(Vec::pop);
        let ptr = match recycled {
            Some(ptr) => ptr,
            // A full device may hold free buffers of other sizes.
            None => self.allocate_new(capacity).or_else(|error| {
                if self.release_unused()? == 0 { Err(error) } else { self.allocate_new(capacity) }
            })?,
        };
        Ok((ptr, capacity))
    }

    fn allocate_new(&self, bytes: usize) -> Result<sys::CUdeviceptr> {
        let allocated = self.call("allocating", || {
            // SAFETY: the context is current, the stream is its own, and bytes > 0.
            unsafe {
                if self.context.has_async_alloc() {
                    result::malloc_async(self.stream.cu_stream(), bytes)
                } else {
                    result::malloc_sync(bytes)
                }
            }
        });
        allocated.map_err(|error| match self.call("memory", result::mem_get_info) {
            Ok((free, total)) => Error::Cuda(format!(
                "{error}; asked for {bytes} bytes, {free} of {total} are free: \
                 a smaller image or batch, or --dtype bf16, takes less"
            )),
            Err(_) => error,
        })
    }

    /// Gives memory back to the driver.
    ///
    /// # Safety
    /// `ptr` is from [`Self::allocate_new`], is given back once, and nothing asked for later uses it.
    unsafe fn free(&self, ptr: sys::CUdeviceptr) -> Result<()> {
        self.call("freeing", || {
            // SAFETY: by this function's contract; on the stream, so after all work asked for before.
            unsafe {
                if self.context.has_async_alloc() {
                    result::free_async(ptr, self.stream.cu_stream())
                } else {
                    result::free_sync(ptr)
                }
            }
        })
    }

    /// Empties the pool; returns how many buffers were in it.
    fn release_unused(&self) -> Result<usize> {
        let Some(pool) = &self.pool else { return Ok(0) };
        let free = std::mem::take(&mut *lock(pool));
        let pointers: Vec<_> = free.into_values().flatten().collect();
        for &ptr in &pointers {
            // SAFETY: the pool owned it and has let go of it.
            unsafe { self.free(ptr)? };
        }
        self.synchronize()?; // the driver hands memory out again once the frees have run
        Ok(pointers.len())
    }

    fn synchronize(&self) -> Result<()> {
        self.call("waiting for the device", || self.stream.synchronize())
    }
}

/// Rounds up to a sixteenth of the next power of two, so that a class wastes at most 12.5 %.
fn size_class(len: usize) -> usize {
    let step = (len.next_power_of_two() / 16).max(256);
    len.max(1).next_multiple_of(step)
}

/// Device memory.
pub(crate) struct Buffer {
    gpu: &'static Gpu,
    ptr: sys::CUdeviceptr,
    /// Bytes asked for.
    len: usize,
    /// Bytes allocated.
    capacity: usize,
}

impl Buffer {
    /// `len` bytes of arbitrary content.
    pub(crate) fn uninit(ordinal: usize, len: usize) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let (ptr, capacity) = gpu.allocate(len)?;
        Ok(Self { gpu, ptr, len, capacity })
    }

    /// `len` zero bytes.
    pub(crate) fn zeroed(ordinal: usize, len: usize) -> Result<Self> {
        let buffer = Self::uninit(ordinal, len)?;
        if len > 0 {
            buffer.gpu.call("zeroing", || {
                // SAFETY: the buffer is len bytes long, and nobody else has it yet.
                unsafe {
                    result::memset_d8_async(buffer.ptr, 0, len, buffer.gpu.stream.cu_stream())
                }
            })?;
        }
        Ok(buffer)
    }

    /// A copy of the host's bytes.
    pub(crate) fn from_host(ordinal: usize, bytes: &[u8]) -> Result<Self> {
        let buffer = Self::uninit(ordinal, bytes.len())?;
        if !bytes.is_empty() {
            buffer.gpu.call("copying to the device", || {
                let stream = &buffer.gpu.stream;
                // SAFETY: the buffer is as long as `bytes`, and `bytes` is borrowed until the copy is done.
                unsafe { result::memcpy_htod_async(buffer.ptr, bytes, stream.cu_stream())? };
                stream.synchronize()
            })?;
        }
        Ok(buffer)
    }

    /// Copies the whole buffer, after all work asked for so far.
    ///
    /// # Errors
    /// `Shape` unless `bytes` is as long as the buffer; `Cuda` for this copy's failure or that of a kernel
    /// before it.
    pub(crate) fn to_host(&self, bytes: &mut [u8]) -> Result<()> {
        if bytes.len() != self.len {
            let message = format!("{} bytes of the device into {}", self.len, bytes.len());
            return Err(Error::shape("to_host", message));
        }
        if self.len == 0 {
            return Ok(());
        }
        self.gpu.call("copying from the device", || {
            let stream = &self.gpu.stream;
            // SAFETY: both sides are len bytes long, and `bytes` is borrowed until the copy is done.
            unsafe { result::memcpy_dtoh_async(bytes, self.ptr, stream.cu_stream())? };
            stream.synchronize()
        })
    }

    pub(crate) fn ordinal(&self) -> usize {
        self.gpu.properties.ordinal
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(pool) = &self.gpu.pool {
            lock(pool).entry(self.capacity).or_default().push(self.ptr);
            return;
        }
        // SAFETY: self owns the memory and is being dropped. A failure means that the context is lost, and
        // the next call says so.
        let _ = unsafe { self.gpu.free(self.ptr) };
    }
}

/// Waits until the device has done all it was asked for.
///
/// # Errors
/// `Cuda` when a kernel failed.
pub fn synchronize(ordinal: usize) -> Result<()> {
    Gpu::open(ordinal)?.synchronize()
}

/// How a kernel is spread over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaunchConfig {
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory of a block, beside what the kernel declares itself.
    pub shared: u32,
}

/// The arguments of one launch, by value and in order.
pub(crate) struct Args {
    /// Room for the values; kernels take up to 4 KiB.
    bytes: [Slot; 32],
    used: usize,
    /// Where each argument begins in `bytes`.
    offsets: [usize; 16],
    count: usize,
    gpu: Option<&'static Gpu>,
}

#[derive(Clone, Copy)]
#[repr(align(16))]
struct Slot(#[allow(dead_code, reason = "read through a pointer")] [u8; 16]);

impl Args {
    pub(crate) fn new() -> Self {
        Self { bytes: [Slot([0; 16]); 32], used: 0, offsets: [0; 16], count: 0, gpu: None }
    }

    /// Appends a value.
    ///
    /// # Errors
    /// `Cuda` when there is no room: such a kernel is beyond what this build can launch.
    pub(crate) fn push(&mut self, value: &[u8]) -> Result<()> {
        let slots = value.len().div_ceil(size_of::<Slot>());
        if self.count == self.offsets.len() || self.used + slots > self.bytes.len() {
            return Err(Error::Cuda("a kernel's arguments take more than 512 bytes".into()));
        }
        for (slot, part) in self.bytes[self.used..].iter_mut().zip(value.chunks(size_of::<Slot>()))
        {
            slot.0[..part.len()].copy_from_slice(part);
        }
        self.offsets[self.count] = self.used;
        self.count += 1;
        self.used += slots;
        Ok(())
    }

    /// The address of a contiguous tensor's first element; all tensors of a launch are on one device.
    ///
    /// # Errors
    /// `Shape` for a strided view, `Device` for a tensor that is not on the others' device.
    pub(crate) fn address(&mut self, op: &'static str, tensor: &Tensor) -> Result<u64> {
        if !tensor.is_contiguous() {
            let message =
                format!("a strided view of shape {}: call contiguous() first", tensor.shape);
            return Err(Error::shape(op, message));
        }
        let Storage::Cuda(buffer) = &*tensor.storage else {
            let gpu = Device::Cuda(self.gpu.map_or(0, |gpu| gpu.properties.ordinal));
            return Err(Error::Device { op, a: gpu, b: tensor.device() });
        };
        let gpu = *self.gpu.get_or_insert(buffer.gpu);
        if gpu.properties.ordinal != buffer.ordinal() {
            return Err(Error::Device {
                op,
                a: Device::Cuda(gpu.properties.ordinal),
                b: tensor.device(),
            });
        }
        Ok(buffer.ptr + (tensor.offset * tensor.dtype.size()) as u64)
    }

    /// As [`Self::address`], of a tensor that the kernel writes.
    ///
    /// # Errors
    /// `Value` when another tensor shares its storage.
    pub(crate) fn address_mut(&mut self, op: &'static str, tensor: &mut Tensor) -> Result<u64> {
        if Arc::get_mut(&mut tensor.storage).is_none() {
            return Err(Error::value(op, "the output's storage is shared with another tensor"));
        }
        self.address(op, tensor)
    }

    /// Launches `kernel` of `kernels/FAMILY.cu` with these arguments. Returns before it has run; what fails in
    /// it is reported by the next call that waits.
    ///
    /// # Errors
    /// `Cuda` when the driver refuses the kernel or the configuration.
    pub(crate) fn launch(
        mut self,
        family: &'static str,
        kernel: &'static str,
        config: LaunchConfig,
    ) -> Result<()> {
        let Some(gpu) = self.gpu else {
            return Err(Error::Cuda(format!("{kernel}: none of its arguments is on a device")));
        };
        let function = gpu.function(family, kernel)?;
        let base: *mut Slot = self.bytes.as_mut_ptr();
        let mut pointers: [*mut c_void; 16] = [std::ptr::null_mut(); 16];
        for (pointer, &offset) in pointers.iter_mut().zip(&self.offsets[..self.count]) {
            *pointer = base.wrapping_add(offset).cast();
        }
        gpu.call(kernel, || {
            // SAFETY: `kernels!` pushed the arguments in the order and of the sizes that the build script
            // checked against the kernel's own; the driver copies them before it returns. The tensors are on
            // this device; the operation that launches has the dimensions agree with them.
            unsafe {
                result::launch_kernel(
                    function,
                    (config.grid[0], config.grid[1], 1),
                    (config.block, 1, 1),
                    config.shared,
                    gpu.stream.cu_stream(),
                    &mut pointers[..self.count],
                )
            }
        })
    }
}

/// Whether there is a device, and kernels, for tests to run on.
///
/// # Panics
/// When there is none, but `NADIR_REQUIRE_CUDA` is set: `cargo xtask test` sets it where it has staged a device, since
/// a test that lacks one passes by doing nothing.
#[cfg(test)]
pub(crate) fn is_there_for_tests() -> bool {
    let missing = match compiler().and_then(|_| device_count()) {
        Ok(0) => "the driver finds no device".to_owned(),
        Ok(_) => return true,
        Err(error) => error.to_string(),
    };
    assert!(std::env::var_os("NADIR_REQUIRE_CUDA").is_none(), "NADIR_REQUIRE_CUDA: {missing}");
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_devices_are_refused() {
        for request in ["gpu", "cuda:", "cuda:x", "cuda0", "cuda:-1", "CPU"] {
            assert!(matches!(choose(request), Err(Error::Argument { .. })), "{request}");
        }
    }

    #[test]
    fn cpu_and_auto_are_always_there() {
        assert_eq!(choose("cpu").unwrap().0, Device::Cpu);
        let (device, reason) = choose("auto").unwrap();
        assert!(reason.starts_with(&device.to_string()), "{device}: {reason}");
    }

    /// With neither driver nor kernels every request must end in an error, never in a panic.
    #[test]
    fn a_device_that_is_not_there_is_an_error() {
        let last = device_count().unwrap_or(0);
        assert!(choose(&format!("cuda:{last}")).is_err());
        assert!(Buffer::uninit(last, 16).is_err());
        assert!(Buffer::from_host(last, &[1, 2, 3]).is_err());
    }

    /// Runs on the virtual device, or a real one; without either there is nothing to hold.
    #[test]
    fn memory_keeps_what_it_is_given() {
        if !is_there_for_tests() {
            return;
        }
        for len in [0, 1, 255, 256, 70_000] {
            let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
            let buffer = Buffer::from_host(0, &bytes).unwrap();
            let zeros = Buffer::zeroed(0, len).unwrap();
            let mut back = vec![7; len];
            buffer.to_host(&mut back).unwrap();
            assert_eq!(back, bytes);
            zeros.to_host(&mut back).unwrap();
            assert!(back.iter().all(|&b| b == 0));
            assert!(buffer.to_host(&mut vec![0; len + 1]).is_err());
        }
        let error = Buffer::uninit(0, isize::MAX as usize).err().unwrap().to_string();
        assert!(error.contains("bytes"), "{error}");
    }

    #[test]
    fn arguments_keep_order_and_alignment() {
        let mut args = Args::new();
        args.push(&7u64.to_ne_bytes()).unwrap();
        args.push(&[1; 20]).unwrap();
        args.push(&9u64.to_ne_bytes()).unwrap();
        assert_eq!(args.offsets[..args.count], [0, 1, 3]);
        assert_eq!(args.bytes[3].0[..8], 9u64.to_ne_bytes());
        assert!(args.push(&[0; 512]).is_err());
    }
}
