//! The device without a driver: memory, modules and launches for programs that link this crate.

use std::sync::Arc;

use crate::exec::{
    Checks, Counters, Fault, FaultKind, Launch, Memory, MemoryKind, Settings, Severity, run,
};
use crate::isa::DecodedKernel;
use crate::module::{LoadError, Module};
use crate::ptx::SyntaxError;

/// How a [`Gpu`] runs kernels.
#[derive(Clone, Debug)]
pub struct Config {
    /// What to look for.
    pub checks: Checks,
    /// Go on after an error that allows it: [`Gpu::findings`] has them then.
    pub keep_going: bool,
    /// Count what launches do.
    pub counters: bool,
    /// Order of blocks and warps; 0 is the natural one.
    pub seed: u64,
    /// Instructions that one warp may execute before it counts as spinning.
    pub budget: u64,
    /// Threads of the CPU that execute blocks.
    pub threads: usize,
}

impl Default for Config {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        Self {
            checks: Checks::ALL,
            keep_going: false,
            counters: false,
            seed: 0,
            budget: 1 << 27,
            threads,
        }
    }
}

/// Why a call did not succeed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// The text is not PTX or uses what the device does not know.
    Syntax(SyntaxError),
    /// The card's memory is used up.
    OutOfMemory,
    /// No kernel of that name.
    NotFound(String),
    /// A launch that no device would accept.
    InvalidLaunch(String),
    /// A range that is not inside one allocation.
    InvalidAddress(String),
    /// A check ended the launch.
    Fault(Box<Fault>),
    /// The CPU lacks AVX2 or FMA.
    UnsupportedCpu,
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Self::Syntax(e) => e.fmt(f),
            Self::OutOfMemory => f.write_str("out of device memory"),
            Self::NotFound(name) => write!(f, "no kernel '{name}' in this module"),
            Self::InvalidLaunch(why) | Self::InvalidAddress(why) => f.write_str(why),
            Self::Fault(fault) => fault.fmt(f),
            Self::UnsupportedCpu => f.write_str("vgpu needs a CPU with AVX2 and FMA"),
        }
    }
}

impl std::error::Error for Error {}

/// A kernel of a loaded module.
#[derive(Clone)]
pub struct Function(Arc<DecodedKernel>);

impl Function {
    /// The name as in the PTX.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes of arguments that a launch takes.
    pub fn argument_bytes(&self) -> usize {
        self.0.param_bytes
    }

    /// Static shared memory in bytes.
    pub fn static_shared(&self) -> usize {
        self.0.static_shared
    }
}

/// Arguments of a launch, laid out as the kernel declares them.
#[derive(Clone, Debug, Default)]
pub struct Arguments(Vec<u8>);

impl Arguments {
    /// No arguments yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a value's bytes, aligned to their number (at most 16).
    pub fn bytes(mut self, bytes: &[u8]) -> Self {
        let align = bytes.len().next_power_of_two().min(16);
        self.0.resize(self.0.len().next_multiple_of(align), 0);
        self.0.extend_from_slice(bytes);
        self
    }

    /// Bytes so far.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends an address.
    pub fn pointer(self, address: u64) -> Self {
        self.bytes(&address.to_le_bytes())
    }

    /// Appends a 32-bit integer.
    pub fn int(self, value: i32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// Appends a single-precision number.
    pub fn float(self, value: f32) -> Self {
        self.bytes(&value.to_le_bytes())
    }
}

/// A device of one's own.
///
/// ```
/// use vgpu::{Arguments, Config, Gpu};
///
/// let ptx = ".version 7.0\n.target sm_80\n.address_size 64\n\
///     .visible .entry twice(.param .u64 data) {\n\
///     .reg .b64 %rd<4>; .reg .b32 %r<3>;\n\
///     ld.param.u64 %rd1, [data];\n mov.u32 %r1, %tid.x;\n\
///     mul.wide.u32 %rd2, %r1, 4;\n add.s64 %rd3, %rd1, %rd2;\n\
///     ld.global.u32 %r2, [%rd3];\n add.s32 %r2, %r2, %r2;\n st.global.u32 [%rd3], %r2;\n ret;\n}";
/// let mut gpu = Gpu::new(Config::default())?;
/// let twice = gpu.load(ptx)?.function("twice")?;
/// let data = gpu.upload(&[1u32, 2, 3, 4])?;
/// gpu.launch(&twice, [1; 3], [4, 1, 1], 0, &Arguments::new().pointer(data))?;
/// assert_eq!(gpu.download::<u32>(data, 4)?, [2, 4, 6, 8]);
/// # Ok::<(), vgpu::Error>(())
/// ```
pub struct Gpu {
    memory: Memory,
    settings: Settings,
    stamp: u32,
    launches: u64,
    findings: Vec<Fault>,
}

/// Kernels of one PTX text.
pub struct LoadedModule(Module);

impl LoadedModule {
    /// The kernel of that name.
    ///
    /// # Errors
    /// [`Error::NotFound`].
    pub fn function(&self, name: &str) -> Result<Function, Error> {
        self.0.kernels.get(name).cloned().map(Function).ok_or_else(|| Error::NotFound(name.into()))
    }

    /// Names of all kernels, sorted.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.kernels.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// Address and size of a `.global` or `.const` variable.
    pub fn global(&self, name: &str) -> Option<(u64, u64)> {
        self.0.globals.get(name).map(|g| (g.address, g.size))
    }
}

/// Types that can be copied to and from the device as bytes.
///
/// # Safety
/// Every bit pattern must be a value, and there must be no padding.
pub unsafe trait Plain: Copy + Default {}
// SAFETY: integers and floating-point numbers have neither padding nor invalid patterns.
unsafe impl Plain for u8 {}
// SAFETY: as above.
unsafe impl Plain for u16 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for i32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for f64 {}

impl Gpu {
    /// A device with 80 GiB of address space.
    ///
    /// # Errors
    /// [`Error::UnsupportedCpu`].
    pub fn new(config: Config) -> Result<Self, Error> {
        if !crate::exec::supported() {
            return Err(Error::UnsupportedCpu);
        }
        let settings = Settings {
            checks: config.checks,
            keep_going: config.keep_going,
            counting: config.counters,
            seed: config.seed,
            budget: config.budget,
            threads: config.threads,
            processors: 108,
        };
        Ok(Self {
            memory: Memory::new(80 << 30),
            settings,
            stamp: 1,
            launches: 0,
            findings: Vec::new(),
        })
    }

    /// Loads a module.
    ///
    /// # Errors
    /// [`Error::Syntax`] with the line, [`Error::OutOfMemory`].
    pub fn load(&mut self, ptx: &str) -> Result<LoadedModule, Error> {
        Module::load(ptx, &mut self.memory).map(LoadedModule).map_err(|e| match e {
            LoadError::Syntax(e) => Error::Syntax(e),
            LoadError::OutOfMemory => Error::OutOfMemory,
        })
    }

    /// Memory with undefined contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn allocate(&mut self, bytes: usize) -> Result<u64, Error> {
        self.memory.allocate(bytes as u64, MemoryKind::Device).ok_or(Error::OutOfMemory)
    }

    /// Memory with these contents.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn upload<T: Plain>(&mut self, data: &[T]) -> Result<u64, Error> {
        let address = self.allocate(size_of_val(data))?;
        self.write(address, data)?;
        Ok(address)
    }

    /// Copies to the device.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`].
    pub fn write<T: Plain>(&mut self, address: u64, data: &[T]) -> Result<(), Error> {
        let bytes = size_of_val(data);
        let allocation = self
            .memory
            .range(address, bytes as u64)
            .map_err(|m| Error::InvalidAddress(m.explain(address, bytes as u64)))?;
        // SAFETY: both ranges have that size, and device memory never overlaps a Rust slice.
        unsafe {
            std::ptr::copy_nonoverlapping(
                data.as_ptr().cast::<u8>(),
                allocation.pointer(address),
                bytes,
            )
        };
        allocation.set_defined(address, bytes as u64, true);
        Ok(())
    }

    /// Copies from the device.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`], [`Error::Fault`] when nobody wrote what is to be copied.
    pub fn download<T: Plain>(&self, address: u64, count: usize) -> Result<Vec<T>, Error> {
        let bytes = count * size_of::<T>();
        let allocation = self
            .memory
            .range(address, bytes as u64)
            .map_err(|m| Error::InvalidAddress(m.explain(address, bytes as u64)))?;
        if self.settings.checks.undefined
            && let Some(fault) = allocation.undefined_copy(address, bytes as u64)
            && fault.severity == Severity::Error
        {
            return Err(Error::Fault(Box::new(fault)));
        }
        let mut out = vec![T::default(); count];
        // SAFETY: both ranges have that size, and every pattern is a value of T.
        unsafe {
            std::ptr::copy_nonoverlapping(
                allocation.pointer(address),
                out.as_mut_ptr().cast::<u8>(),
                bytes,
            )
        };
        Ok(out)
    }

    /// Frees an allocation.
    ///
    /// # Errors
    /// [`Error::InvalidAddress`] when none starts there.
    pub fn free(&mut self, address: u64) -> Result<(), Error> {
        if self.memory.free(address) {
            Ok(())
        } else {
            Err(Error::InvalidAddress(format!("no allocation starts at 0x{address:x}")))
        }
    }

    /// Runs a kernel to its end.
    ///
    /// # Errors
    /// [`Error::Fault`] when a check fails, [`Error::InvalidLaunch`], [`Error::Syntax`] when the kernel has an
    /// instruction that is not executed.
    pub fn launch(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        arguments: &Arguments,
    ) -> Result<Counters, Error> {
        self.start(function, grid, block, shared, arguments, false)
    }

    /// Runs a kernel all of whose blocks are resident at once.
    ///
    /// # Errors
    /// As [`Gpu::launch`].
    pub fn launch_cooperative(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        arguments: &Arguments,
    ) -> Result<Counters, Error> {
        self.start(function, grid, block, shared, arguments, true)
    }

    /// What the last launch found without ending: warnings, and errors when it was to keep going.
    pub fn findings(&self) -> &[Fault] {
        &self.findings
    }

    fn start(
        &mut self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared: usize,
        arguments: &Arguments,
        cooperative: bool,
    ) -> Result<Counters, Error> {
        let kernel = &*function.0;
        let threads: u64 = block.iter().map(|n| *n as u64).product();
        let blocks =
            grid.iter().try_fold(1u64, |p, n| p.checked_mul(*n as u64)).unwrap_or(u64::MAX);
        if threads == 0 || threads > 1024 || blocks == 0 || blocks > i32::MAX as u64 {
            return Err(Error::InvalidLaunch(format!("{blocks} blocks of {threads} threads")));
        }
        if let Some(refused) = &kernel.refused {
            return Err(Error::Syntax(refused.clone()));
        }
        if arguments.0.len() != kernel.param_bytes {
            return Err(Error::InvalidLaunch(format!(
                "{} bytes of arguments, '{}' takes {}",
                arguments.0.len(),
                kernel.name,
                kernel.param_bytes
            )));
        }
        let launch = Launch {
            kernel,
            grid,
            block,
            dynamic_shared: shared,
            params: &arguments.0,
            cooperative,
        };
        self.launches += 1;
        let outcome =
            run(&launch, &mut self.memory, &self.settings, &mut self.stamp, self.launches);
        self.findings = outcome.findings;
        outcome.result.map_err(Error::Fault)
    }
}

impl Error {
    /// The finding, if a check ended the launch.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Fault(fault) => Some(fault),
            _ => None,
        }
    }

    /// The class of the finding, if a check ended the launch.
    pub fn kind(&self) -> Option<FaultKind> {
        self.fault().map(|f| f.kind)
    }
}
