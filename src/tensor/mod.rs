//! Tensors: shared storage, a shape, strides and a dtype.
//!
//! A [`Tensor`] is cheap to clone and immutable once it is shared; views (`permute`, `narrow`, `reshape`)
//! share storage. Images are [B, H, W, C] everywhere inside nadir.

mod assign;
mod cpu;
pub mod cuda;
mod dtype;
pub mod tape;

use std::fmt;
use std::sync::Arc;

pub use crate::types::{DType, Device, Element, Float, MAX_RANK, Real, Shape};
#[cfg(test)]
pub(crate) use cpu::in_use;
pub use cpu::release_unused_memory;

use crate::cpu::parallel::for_each_row;
use crate::error::{Error, Result};
use cpu::Buffer;

/// Memory on one of the devices.
enum Storage {
    Cpu(Buffer),
    Cuda(cuda::Buffer),
}

/// An n-dimensional array.
#[derive(Clone)]
pub struct Tensor {
    storage: Arc<Storage>,
    shape: Shape,
    /// In elements.
    strides: Shape,
    /// Of the first element, in elements.
    offset: usize,
    dtype: DType,
    /// How it was made, where a gradient is wanted.
    node: Option<Arc<tape::Node>>,
}

// Construction.
impl Tensor {
    /// A tensor with arbitrary contents, for an operation to fill.
    ///
    /// # Errors
    /// `OutOfMemory` when the device cannot give the memory, `Shape` when nothing could, `Cuda` when the device is not
    /// there; likewise below.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Self> {
        let shape = shape.into();
        let bytes = byte_len(&shape, dtype)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::uninit(bytes)?),
            Device::Cuda(ordinal) => Storage::Cuda(cuda::Buffer::uninit(ordinal, bytes)?),
        };
        Ok(Self::whole(storage, shape, dtype))
    }

    /// As [`Self::uninit`] on the CPU, for elements that are soon let go of: it may hold more memory than it needs.
    pub(crate) fn brief(shape: impl Into<Shape>, dtype: DType) -> Result<Self> {
        let shape = shape.into();
        let storage = Storage::Cpu(Buffer::brief(byte_len(&shape, dtype)?)?);
        Ok(Self::whole(storage, shape, dtype))
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Self> {
        let shape = shape.into();
        let bytes = byte_len(&shape, dtype)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::zeroed(bytes)?),
            Device::Cuda(ordinal) => Storage::Cuda(cuda::Buffer::zeroed(ordinal, bytes)?),
        };
        Ok(Self::whole(storage, shape, dtype))
    }

    /// `[len]` zeros, u32, for blocks of one kernel on `device` to count each other with, which leaves them zeros.
    ///
    /// Only kernels may write here, and nobody look: all kernels of a stream, or of a graph, have the same memory.
    ///
    /// # Errors
    /// `Argument` for the CPU.
    pub(crate) fn counters(len: usize, device: Device) -> Result<Self> {
        let shape = Shape::from([len]);
        let buffer = cuda::Buffer::counters(device, byte_len(&shape, DType::U32)?)?;
        Ok(Self::whole(Storage::Cuda(buffer), shape, DType::U32))
    }

    /// A tensor with every element equal to `value`, rounded to `dtype`.
    ///
    /// # Errors
    /// `DType` for integer types.
    pub fn full(shape: impl Into<Shape>, value: f64, dtype: DType, device: Device) -> Result<Self> {
        let mut t = Self::uninit(shape, dtype, Device::Cpu)?;
        crate::dispatch_float!("full", dtype, T => {
            t.as_mut_slice::<T>()?.fill(T::from_acc(<T as Float>::Acc::from_f64(value)));
            Ok(())
        })?;
        t.copied_to(device)
    }

    /// A CPU tensor from its elements, in row-major order.
    ///
    /// # Errors
    /// `Shape` when `data` does not have the shape's number of elements.
    pub fn from_vec<T: Element>(data: Vec<T>, shape: impl Into<Shape>) -> Result<Self> {
        Self::from_slice(&data, shape)
    }

    /// A CPU tensor from a copy of its elements, in row-major order.
    ///
    /// # Errors
    /// `Shape` when `data` does not have the shape's number of elements.
    pub fn from_slice<T: Element>(data: &[T], shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if data.len() != shape.elements() {
            return Err(Error::shape(
                "from_slice",
                format!("{} elements for shape {shape}", data.len()),
            ));
        }
        let mut t = Self::uninit(shape, T::DTYPE, Device::Cpu)?;
        t.as_mut_slice::<T>()?.copy_from_slice(data);
        Ok(t)
    }

    fn whole(storage: Storage, shape: Shape, dtype: DType) -> Self {
        Self {
            storage: Arc::new(storage),
            shape,
            strides: shape.contiguous_strides(),
            offset: 0,
            dtype,
            node: None,
        }
    }
}

// What it is.
impl Tensor {
    /// Lengths of the dimensions, outermost first.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// Lengths of the dimensions, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.shape
    }

    /// Length of dimension `i`.
    ///
    /// # Panics
    /// When there is no such dimension.
    pub fn dim(&self, i: usize) -> usize {
        self.shape[i]
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.elements()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Distance between neighbours along each dimension, in elements.
    pub fn strides(&self) -> &[usize] {
        &self.strides
    }

    /// Type of the elements.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Where the elements are.
    pub fn device(&self) -> Device {
        match &*self.storage {
            Storage::Cpu(_) => Device::Cpu,
            Storage::Cuda(b) => Device::Cuda(b.ordinal()),
        }
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_contiguous(&self) -> bool {
        let expected = self.shape.contiguous_strides();
        // The stride of a dimension of length 1 is never used.
        (0..self.rank()).all(|i| self.shape[i] == 1 || self.strides[i] == expected[i])
            || self.is_empty()
    }

    /// The two dimensions of a matrix.
    ///
    /// # Errors
    /// `Shape` for any other rank; likewise below.
    pub fn dims2(&self) -> Result<(usize, usize)> {
        match *self.dims() {
            [a, b] => Ok((a, b)),
            _ => Err(self.rank_error("[rows, columns]")),
        }
    }

    /// The three dimensions of a batch of sequences.
    pub fn dims3(&self) -> Result<(usize, usize, usize)> {
        match *self.dims() {
            [a, b, c] => Ok((a, b, c)),
            _ => Err(self.rank_error("[B, T, C]")),
        }
    }

    /// The four dimensions of a batch of images.
    pub fn dims4(&self) -> Result<(usize, usize, usize, usize)> {
        match *self.dims() {
            [a, b, c, d] => Ok((a, b, c, d)),
            _ => Err(self.rank_error("[B, H, W, C]")),
        }
    }

    fn rank_error(&self, expected: &str) -> Error {
        Error::expected_shape("dims", "tensor", expected, &self.shape)
    }
}

// Views and copies, which no tape hears of: operations on tensors are in `ops`.
impl Tensor {
    /// The same storage seen through another shape.
    pub(crate) fn with_layout(&self, shape: Shape, strides: Shape, offset: usize) -> Self {
        Self { shape, strides, offset, node: None, ..self.clone() }
    }

    /// Position of the first element in the storage, in elements.
    pub(crate) fn offset(&self) -> usize {
        self.offset
    }

    /// The elements of a CPU tensor in row-major order without gaps; the same storage when they lie so.
    fn packed(&self) -> Result<Self> {
        if self.is_contiguous() {
            return Ok(self.with_layout(self.shape, self.shape.contiguous_strides(), self.offset));
        }
        let mut out = Self::uninit(self.shape, self.dtype, Device::Cpu)?;
        self.copy_into(&mut out)?;
        Ok(out)
    }

    /// Copies the elements of a CPU tensor, in row-major order, into `out`: a fresh CPU tensor of the same
    /// shape and dtype.
    ///
    /// # Errors
    /// `Device` off the CPU, `Value` when another tensor shares `out`'s storage.
    pub(crate) fn copy_into(&self, out: &mut Self) -> Result<()> {
        match self.dtype.size() {
            1 => self.gather::<u8>(out),
            2 => self.gather::<u16>(out),
            4 => self.gather::<u32>(out),
            _ => self.gather::<u64>(out),
        }
    }

    /// [`Self::copy_into`] of plain words W of the dtype's size.
    fn gather<W: bytemuck::Pod + Send + Sync>(&self, out: &mut Self) -> Result<()> {
        const OP: &str = "contiguous";
        if out.shape != self.shape || out.dtype.size() != self.dtype.size() {
            return Err(Error::expected_shape(OP, "out", &self.shape.to_string(), &out.shape));
        }
        let (device, other) = (self.device(), out.device());
        let (from, to) = match (&*self.storage, Arc::get_mut(&mut out.storage)) {
            (Storage::Cpu(from), Some(Storage::Cpu(to))) => (from, to),
            (_, None) => return Err(Error::value(OP, "the output's storage is shared")),
            _ => return Err(Error::Device { op: OP, a: device, b: other }),
        };
        let from: &[W] = bytemuck::cast_slice(from.bytes());
        let to: &mut [W] = bytemuck::cast_slice_mut(to.bytes_mut());
        let to = &mut to[out.offset..][..self.shape.elements()];
        let row = self.shape.last().copied().unwrap_or(1).max(1);
        let step = self.strides.last().copied().unwrap_or(1);
        let copy_row = |i: usize, to: &mut [W]| {
            let mut rest = i;
            let mut at = self.offset;
            for d in (0..self.rank().saturating_sub(1)).rev() {
                at += rest % self.shape[d] * self.strides[d];
                rest /= self.shape[d];
            }
            if step == 1 {
                to.copy_from_slice(&from[at..at + row]);
            } else {
                to.iter_mut().enumerate().for_each(|(j, t)| *t = from[at + j * step]);
            }
        };
        for_each_row(to, row, copy_row);
        Ok(())
    }
}

// Elements.
impl Tensor {
    /// The elements of a contiguous CPU tensor.
    ///
    /// # Errors
    /// `DType` when T is not the dtype, `Shape` for a strided view, `Device` for a tensor on a GPU.
    pub fn as_slice<T: Element>(&self) -> Result<&[T]> {
        self.check_access::<T>("as_slice")?;
        match &*self.storage {
            Storage::Cpu(b) => {
                let at = self.offset * T::DTYPE.size();
                Ok(bytemuck::cast_slice(&b.bytes()[at..at + self.len() * T::DTYPE.size()]))
            }
            Storage::Cuda(_) => {
                Err(Error::Device { op: "as_slice", a: Device::Cpu, b: self.device() })
            }
        }
    }

    /// The elements of a CPU tensor from its first on, as they lie: element (i, j, ..) stands at
    /// `i * strides()[0] + j * strides()[1] + ..`.
    ///
    /// # Errors
    /// `DType` when T is not the dtype, `Device` for a tensor on a GPU.
    pub fn as_strided_slice<T: Element>(&self) -> Result<&[T]> {
        if self.dtype != T::DTYPE {
            let op = "as_strided_slice";
            return Err(Error::DType { op, expected: T::DTYPE.name(), found: self.dtype });
        }
        let len = self.extent();
        match &*self.storage {
            Storage::Cpu(b) => {
                let at = self.offset * T::DTYPE.size();
                Ok(bytemuck::cast_slice(&b.bytes()[at..at + len * T::DTYPE.size()]))
            }
            Storage::Cuda(_) => {
                Err(Error::Device { op: "as_strided_slice", a: Device::Cpu, b: self.device() })
            }
        }
    }

    /// The elements of a contiguous CPU tensor that shares its storage with no other.
    ///
    /// # Errors
    /// As [`Self::as_slice`], and `Value` when the storage is shared.
    pub fn as_mut_slice<T: Element>(&mut self) -> Result<&mut [T]> {
        self.check_access::<T>("as_mut_slice")?;
        let (device, len, at) = (self.device(), self.len(), self.offset * T::DTYPE.size());
        match Arc::get_mut(&mut self.storage) {
            Some(Storage::Cpu(b)) => {
                Ok(bytemuck::cast_slice_mut(&mut b.bytes_mut()[at..at + len * T::DTYPE.size()]))
            }
            Some(Storage::Cuda(_)) => {
                Err(Error::Device { op: "as_mut_slice", a: Device::Cpu, b: device })
            }
            None => Err(Error::value(
                "as_mut_slice",
                "the tensor's storage is shared with another tensor",
            )),
        }
    }

    /// Elements of the storage from the first on, up to the last and with what lies between.
    fn extent(&self) -> usize {
        let last: usize =
            self.shape.iter().zip(&*self.strides).map(|(&n, &s)| n.saturating_sub(1) * s).sum();
        if self.is_empty() { 0 } else { last + 1 }
    }

    fn check_access<T: Element>(&self, op: &'static str) -> Result<()> {
        if self.dtype != T::DTYPE {
            return Err(Error::DType { op, expected: T::DTYPE.name(), found: self.dtype });
        }
        if !self.is_contiguous() {
            return Err(Error::shape(
                op,
                format!("a strided view of shape {}: call contiguous() first", self.shape),
            ));
        }
        Ok(())
    }

    /// A copy of the elements in row-major order, from any device and with any strides.
    ///
    /// # Errors
    /// `DType` when T is not the dtype.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let t = self.copied_to(Device::Cpu)?.packed()?;
        let from = t.as_slice::<T>()?;
        let mut elements = Vec::new();
        elements
            .try_reserve_exact(from.len())
            .map_err(|_| cpu::out_of_memory(size_of_val(from)))?;
        elements.extend_from_slice(from);
        Ok(elements)
    }

    /// A copy on another device; the same storage when it is there already.
    ///
    /// # Errors
    /// `Cuda` when the device is not there or out of memory.
    pub(crate) fn copied_to(&self, device: Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.detach());
        }
        match (&*self.storage, device) {
            // From the host only what the view covers travels.
            (Storage::Cpu(_), Device::Cuda(ordinal)) => {
                let t = self.compact()?;
                let Storage::Cpu(host) = &*t.storage else {
                    unreachable!("compact keeps the device")
                };
                let storage = Storage::Cuda(cuda::Buffer::from_host(ordinal, host.bytes())?);
                Ok(Self { storage: Arc::new(storage), ..t })
            }
            // From a device, what lies between the first and the last element; the view stays a view.
            (Storage::Cuda(b), Device::Cpu) => {
                let size = self.dtype.size();
                let mut host = Buffer::uninit(self.extent() * size)?;
                b.read(self.offset * size, host.bytes_mut())?;
                Ok(Self { storage: Arc::new(Storage::Cpu(host)), offset: 0, ..self.detach() })
            }
            _ => self.copied_to(Device::Cpu)?.copied_to(device),
        }
    }

    /// A contiguous CPU tensor whose storage holds its elements and nothing else.
    fn compact(&self) -> Result<Self> {
        let t = self.packed()?;
        let bytes = t.len() * t.dtype.size();
        match &*t.storage {
            Storage::Cpu(b) if b.bytes().len() != bytes => {
                let at = t.offset * t.dtype.size();
                let mut whole = Buffer::uninit(bytes)?;
                whole.bytes_mut().copy_from_slice(&b.bytes()[at..at + bytes]);
                Ok(Self::whole(Storage::Cpu(whole), t.shape, t.dtype))
            }
            _ => Ok(t),
        }
    }
}

/// Bytes of a contiguous tensor.
fn byte_len(shape: &Shape, dtype: DType) -> Result<usize> {
    shape
        .iter()
        .try_fold(dtype.size(), |bytes, &d| bytes.checked_mul(d))
        .filter(|&bytes| bytes <= isize::MAX as usize / 2)
        .ok_or_else(|| {
            Error::shape("uninit", format!("{shape} of {dtype} is larger than the address space"))
        })
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} on {})", self.shape, self.dtype, self.device())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iota(shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::from_vec((0..shape.elements()).map(|i| i as f32).collect(), shape).unwrap()
    }

    #[test]
    fn wrong_requests_are_errors() {
        let t = iota([2, 3]);
        let shape = |result: Result<()>| {
            let error = result.unwrap_err();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        };
        assert!(matches!(t.as_slice::<f64>(), Err(Error::DType { found: DType::F32, .. })));
        shape(t.with_layout([3, 2].into(), [1, 3].into(), 0).as_slice::<f32>().map(|_| ()));
        shape(Tensor::from_vec(vec![0f32; 5], [2, 3]).map(|_| ()));
        shape(Tensor::zeros([usize::MAX, 8], DType::F32, Device::Cpu).map(|_| ()));
        let mut shared = t.clone();
        assert!(matches!(shared.as_mut_slice::<f32>(), Err(Error::Value { .. })));
    }
}
