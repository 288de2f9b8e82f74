//! Launching kernels: the shape of a launch, and its arguments.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::result;

use super::gpu::Gpu;
use super::profile::timed;
use super::stream::{Access, Stream, Use};
use crate::error::{Error, Result};
use crate::tensor::{Storage, Tensor};
use crate::types::{DType, Device, Shape};

/// How a kernel is spread over the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LaunchConfig {
    /// Blocks along x and y.
    pub grid: [u32; 2],
    /// Threads of a block.
    pub block: u32,
    /// Bytes of shared memory of a block, beside what the kernel declares itself.
    pub shared: u32,
    /// Whether all blocks run at once, so that they may wait for each other. Of more than the device holds along x, so many
    /// are launched as it does.
    pub at_once: bool,
}

impl LaunchConfig {
    /// Blocks that ask for no shared memory and take their turns.
    pub(crate) fn new(grid: [u32; 2], block: u32) -> Self {
        Self { grid, block, shared: 0, at_once: false }
    }
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
    /// What the kernel does with the tensors' memory.
    uses: Vec<Use>,
}

#[derive(Clone, Copy)]
#[repr(align(16))]
struct Slot(#[allow(dead_code, reason = "read through a pointer")] [u8; 16]);

impl Args {
    pub(crate) fn new() -> Self {
        Self {
            bytes: [Slot([0; 16]); 32],
            used: 0,
            offsets: [0; 16],
            count: 0,
            gpu: None,
            uses: Vec::new(),
        }
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

    /// The address of a contiguous tensor's first element, for reading; all tensors of a launch are on one device.
    ///
    /// # Errors
    /// `Shape` for a strided view, `Device` for a tensor that is not on the others' device.
    pub(crate) fn address(&mut self, op: &'static str, tensor: &Tensor) -> Result<u64> {
        self.address_for(op, tensor, Access::Read)
    }

    /// As [`Self::address`], of a tensor that the kernel writes.
    ///
    /// # Errors
    /// `Value` when another tensor shares its storage.
    pub(crate) fn address_mut(&mut self, op: &'static str, tensor: &mut Tensor) -> Result<u64> {
        if Arc::get_mut(&mut tensor.storage).is_none() {
            return Err(Error::value(op, "the output's storage is shared with another tensor"));
        }
        self.address_for(op, tensor, Access::Write)
    }

    fn address_for(&mut self, op: &'static str, tensor: &Tensor, access: Access) -> Result<u64> {
        if !tensor.is_contiguous() {
            let message =
                format!("a strided view of shape {}: call contiguous() first", tensor.shape);
            return Err(Error::shape(op, message));
        }
        let Storage::Cuda(buffer) = &*tensor.storage else {
            let gpu = self.gpu.map_or(Device::Cuda(0), Gpu::device);
            return Err(Error::Device { op, a: gpu, b: tensor.device() });
        };
        let gpu = *self.gpu.get_or_insert(buffer.gpu());
        if !std::ptr::eq(gpu, buffer.gpu()) {
            return Err(Error::Device { op, a: gpu.device(), b: tensor.device() });
        }
        self.uses.push(buffer.used(access));
        Ok(buffer.ptr() + (tensor.offset * tensor.dtype.size()) as u64)
    }

    /// Launches `kernel` of `kernels/FAMILY.cu` with these arguments, in this thread's current stream. Returns before it
    /// has run; what fails in it is reported by the next call that waits.
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
        let function = gpu.function(family, kernel, config.shared)?;
        let mut grid = (config.grid[0], config.grid[1], 1);
        if config.at_once {
            let resident = gpu.resident_blocks(function, config.block, config.shared)?;
            if resident < grid.1 {
                let message = format!("{kernel}: {} blocks cannot run at once", grid.1);
                return Err(Error::Cuda(message));
            }
            grid.0 = grid.0.min(resident / grid.1);
        }
        let put =
            if config.at_once { result::launch_cooperative_kernel } else { result::launch_kernel };
        let base: *mut Slot = self.bytes.as_mut_ptr();
        let mut pointers: [*mut c_void; 16] = [std::ptr::null_mut(); 16];
        for (pointer, &offset) in pointers.iter_mut().zip(&self.offsets[..self.count]) {
            *pointer = base.wrapping_add(offset).cast();
        }
        let stream = Stream::current_on(gpu)?;
        stream.submit(kernel, &self.uses, |raw| {
            timed(kernel, &stream, raw, || {
                // SAFETY: `kernels!` pushed the arguments in the order and of the sizes that the build script
                // checked against the kernel's own; the driver copies them before it returns. The tensors are on
                // this device; the operation that launches has the dimensions agree with them.
                unsafe {
                    put(
                        function,
                        grid,
                        (config.block, 1, 1),
                        config.shared,
                        raw,
                        &mut pointers[..self.count],
                    )
                }
            })
        })
    }
}

/// Storage as plain words, for kernels that move elements without looking at them.
impl Tensor {
    /// The whole storage, whatever this tensor shows of it, as a vector of `dtype`.
    pub(crate) fn storage_as(&self, dtype: DType) -> Self {
        let bytes = match &*self.storage {
            Storage::Cpu(buffer) => buffer.bytes().len(),
            Storage::Cuda(buffer) => buffer.len(),
        };
        let shape = Shape::from([bytes / dtype.size()]);
        Self { dtype, ..self.with_layout(shape, shape.contiguous_strides(), 0) }
    }

    /// Calls `f` with this tensor in the form of [`Self::storage_as`].
    pub(crate) fn with_storage_as<R>(&mut self, dtype: DType, f: impl FnOnce(&mut Self) -> R) -> R {
        let seen = (self.shape, self.strides, self.offset, self.dtype);
        let words = self.storage_as(dtype);
        (self.shape, self.strides, self.offset, self.dtype) =
            (words.shape, words.strides, 0, dtype);
        drop(words); // it shares the storage
        let result = f(self);
        (self.shape, self.strides, self.offset, self.dtype) = seen;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_keep_order_and_alignment() {
        let mut args = Args::new();
        args.push(&7u64.to_ne_bytes()).unwrap();
        args.push(&[1; 20]).unwrap();
        args.push(&9u64.to_ne_bytes()).unwrap();
        assert_eq!(args.offsets[..args.count], [0, 1, 3]);
        assert_eq!(args.bytes[3].0[..8], 9u64.to_ne_bytes());
        let error = args.push(&[0; 512]).unwrap_err().to_string();
        assert!(error.contains("512 bytes"), "{error}");
    }
}
