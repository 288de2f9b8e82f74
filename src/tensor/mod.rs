//! Tensors: shared storage, a shape, strides and a dtype.
//!
//! A [`Tensor`] is cheap to clone and immutable once it is shared; views (`permute`, `narrow`, `reshape`)
//! share storage. Images are [B, H, W, C] everywhere inside nadir.

mod cpu;
pub mod cuda;
mod dtype;

use std::fmt;
use std::sync::Arc;

use half::f16;

pub use crate::types::{DType, Device, Element, Float, MAX_RANK, Real, Shape};
pub use cpu::release_unused_memory;

use crate::cpu::parallel::{for_each_chunk, for_each_row};
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
}

// Construction.
impl Tensor {
    /// A tensor with arbitrary contents, for an operation to fill.
    pub fn uninit(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Self> {
        let shape = shape.into();
        let bytes = byte_len(&shape, dtype)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::uninit(bytes)),
            Device::Cuda(ordinal) => Storage::Cuda(cuda::Buffer::uninit(ordinal, bytes)?),
        };
        Ok(Self::whole(storage, shape, dtype))
    }

    /// A tensor of zeros.
    pub fn zeros(shape: impl Into<Shape>, dtype: DType, device: Device) -> Result<Self> {
        let shape = shape.into();
        let bytes = byte_len(&shape, dtype)?;
        let storage = match device {
            Device::Cpu => Storage::Cpu(Buffer::zeroed(bytes)),
            Device::Cuda(ordinal) => Storage::Cuda(cuda::Buffer::zeroed(ordinal, bytes)?),
        };
        Ok(Self::whole(storage, shape, dtype))
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
        t.to_device(device)
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

// Views.
impl Tensor {
    /// The same elements in another shape; copies only when the view is not contiguous.
    ///
    /// # Errors
    /// `Shape` when the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.len() {
            return Err(Error::shape("reshape", format!("{} into {shape}", self.shape)));
        }
        let t = self.contiguous()?;
        Ok(Self { shape, strides: shape.contiguous_strides(), ..t })
    }

    /// The dimensions in another order: dimension `i` of the result is dimension `order[i]` of this.
    ///
    /// # Errors
    /// `Shape` when `order` is not a permutation.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let mut seen = [false; MAX_RANK];
        let valid = order.len() == self.rank()
            && order.iter().all(|&i| i < self.rank() && !std::mem::replace(&mut seen[i], true));
        if !valid {
            return Err(Error::shape("permute", format!("{order:?} of {}", self.shape)));
        }
        let mut t = self.clone();
        for (to, &from) in order.iter().enumerate() {
            t.shape[to] = self.shape[from];
            t.strides[to] = self.strides[from];
        }
        Ok(t)
    }

    /// Two dimensions swapped.
    ///
    /// # Errors
    /// `Shape` when there are no such dimensions.
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        if a.max(b) >= self.rank() {
            return Err(Error::shape(
                "transpose",
                format!("dimensions {a} and {b} of {}", self.shape),
            ));
        }
        let mut t = self.clone();
        t.shape.swap(a, b);
        t.strides.swap(a, b);
        Ok(t)
    }

    /// The part `start..start + len` of dimension `dim`.
    ///
    /// # Errors
    /// `Shape` when it reaches past the end.
    pub fn narrow(&self, dim: usize, start: usize, len: usize) -> Result<Self> {
        if dim >= self.rank() || start.checked_add(len).is_none_or(|end| end > self.shape[dim]) {
            return Err(Error::shape(
                "narrow",
                format!("{start} + {len} of dimension {dim} of {}", self.shape),
            ));
        }
        let mut t = self.clone();
        t.offset += start * self.strides[dim];
        t.shape[dim] = len;
        Ok(t)
    }

    /// The same elements in row-major order without gaps; itself when it is so already.
    pub fn contiguous(&self) -> Result<Self> {
        if self.is_contiguous() {
            return Ok(Self { strides: self.shape.contiguous_strides(), ..self.clone() });
        }
        match &*self.storage {
            Storage::Cpu(_) => {
                let mut out = Self::uninit(self.shape, self.dtype, Device::Cpu)?;
                match self.dtype.size() {
                    1 => self.gather::<u8>(&mut out),
                    2 => self.gather::<u16>(&mut out),
                    4 => self.gather::<u32>(&mut out),
                    _ => self.gather::<u64>(&mut out),
                }
                Ok(out)
            }
            // A strided copy on the device is a kernel of its own; until it is there the host arranges it.
            Storage::Cuda(_) => self.to_device(Device::Cpu)?.contiguous()?.to_device(self.device()),
        }
    }

    /// Copies the elements, as plain words W of the dtype's size, into the contiguous `out`.
    fn gather<W: bytemuck::Pod + Send + Sync>(&self, out: &mut Self) {
        let (Storage::Cpu(from), Some(Storage::Cpu(to))) =
            (&*self.storage, Arc::get_mut(&mut out.storage))
        else {
            unreachable!("called for CPU tensors, with a fresh output")
        };
        let from: &[W] = bytemuck::cast_slice(from.bytes());
        let to: &mut [W] = bytemuck::cast_slice_mut(to.bytes_mut());
        let row = self.shape.last().copied().unwrap_or(1).max(1);
        let step = self.strides.last().copied().unwrap_or(1);
        let copy_row = |i: usize, to: &mut [W]| {
            let mut rest = i;
            let mut at = self.offset;
            for d in (0..self.rank() - 1).rev() {
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
        let last: usize =
            self.shape.iter().zip(&*self.strides).map(|(&n, &s)| n.saturating_sub(1) * s).sum();
        let len = if self.is_empty() { 0 } else { last + 1 };
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
        Ok(self.to_device(Device::Cpu)?.contiguous()?.as_slice::<T>()?.to_vec())
    }

    /// The elements rounded to another floating-point dtype; itself when it has that dtype already.
    ///
    /// # Errors
    /// `DType` between floats and integers.
    pub fn to_dtype(&self, dtype: DType) -> Result<Self> {
        if self.dtype == dtype {
            return Ok(self.clone());
        }
        if self.device() != Device::Cpu {
            return Err(Error::no_kernel("to_dtype"));
        }
        let from = self.contiguous()?;
        let mut out = Self::uninit(self.shape, dtype, Device::Cpu)?;
        crate::dispatch_float!("to_dtype", self.dtype, A => crate::dispatch_float!("to_dtype", dtype, B => {
            convert(from.as_slice::<A>()?, out.as_mut_slice::<B>()?);
            Ok(())
        }))?;
        Ok(out)
    }

    /// A copy on another device; itself when it is there already.
    ///
    /// # Errors
    /// `Cuda` when the device is not there or out of memory.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if self.device() == device {
            return Ok(self.clone());
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
            // From a device the storage comes as it is; the view stays a view.
            (Storage::Cuda(b), Device::Cpu) => {
                let mut host = Buffer::uninit(b.len());
                b.to_host(host.bytes_mut())?;
                Ok(Self { storage: Arc::new(Storage::Cpu(host)), ..self.clone() })
            }
            _ => self.to_device(Device::Cpu)?.to_device(device),
        }
    }

    /// A contiguous CPU tensor whose storage holds its elements and nothing else.
    fn compact(&self) -> Result<Self> {
        let t = self.contiguous()?;
        let bytes = t.len() * t.dtype.size();
        match &*t.storage {
            Storage::Cpu(b) if b.bytes().len() != bytes => {
                let at = t.offset * t.dtype.size();
                let mut whole = Buffer::uninit(bytes);
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

/// Rounds every element of `from` to the type of `to`.
fn convert<A: Float, B: Float>(from: &[A], to: &mut [B]) {
    const CHUNK: usize = 1 << 14;

    let convert_chunk = |to: &mut [B], from: &[A]| match (A::DTYPE, B::DTYPE) {
        // `half` converts slices with the machine's instructions.
        (DType::F16, DType::F32) => {
            slice_from_f16(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to))
        }
        (DType::F32, DType::F16) => {
            slice_to_f16(bytemuck::cast_slice(from), bytemuck::cast_slice_mut(to))
        }
        _ => to.iter_mut().zip(from).for_each(|(t, f)| {
            *t = B::from_acc(<B as Float>::Acc::from_f64(f.to_acc().to_f64()));
        }),
    };
    for_each_chunk(to, CHUNK, |i, to| convert_chunk(to, &from[i * CHUNK..][..to.len()]));
}

fn slice_from_f16(from: &[f16], to: &mut [f32]) {
    use half::slice::HalfFloatSliceExt;
    from.convert_to_f32_slice(to);
}

fn slice_to_f16(from: &[f32], to: &mut [f16]) {
    use half::slice::HalfFloatSliceExt;
    to.convert_from_f32_slice(from);
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {} on {})", self.shape, self.dtype, self.device())
    }
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn iota(shape: impl Into<Shape>) -> Tensor {
        let shape = shape.into();
        Tensor::from_vec((0..shape.elements()).map(|i| i as f32).collect(), shape).unwrap()
    }

    #[test]
    fn views_address_the_right_elements() {
        let t = iota([2, 3, 5]);
        let v = t.permute(&[2, 0, 1]).unwrap().narrow(0, 1, 3).unwrap().narrow(2, 1, 2).unwrap(); // [3, 2, 2]
        assert!(!v.is_contiguous());
        let expected: Vec<f32> = (1..4)
            .flat_map(|k| {
                (0..2).flat_map(move |i| (1..3).map(move |j| (i * 15 + j * 5 + k) as f32))
            })
            .collect();
        assert_eq!(v.to_vec::<f32>().unwrap(), expected);
        assert_eq!(v.reshape([12]).unwrap().as_slice::<f32>().unwrap(), expected);
    }

    #[test]
    fn large_strided_copies_equal_small_ones() {
        let t = iota([7, 65, 131]);
        let v = t.transpose(1, 2).unwrap().to_vec::<f32>().unwrap(); // [7, 131, 65]
        for (i, &x) in v.iter().enumerate() {
            let (b, rest) = (i / (131 * 65), i % (131 * 65));
            assert_eq!(x, (b * 131 * 65 + rest % 65 * 131 + rest / 65) as f32);
        }
    }

    #[test]
    fn wrong_requests_are_errors() {
        let t = iota([2, 3]);
        assert!(t.reshape([7]).is_err());
        assert!(t.permute(&[0, 0]).is_err());
        assert!(t.narrow(1, 2, 2).is_err());
        assert!(t.narrow(1, usize::MAX, 2).is_err());
        assert!(t.as_slice::<f64>().is_err());
        assert!(t.transpose(0, 1).unwrap().as_slice::<f32>().is_err());
        assert!(Tensor::from_vec(vec![0f32; 5], [2, 3]).is_err());
        assert!(Tensor::zeros([usize::MAX, 8], DType::F32, Device::Cpu).is_err());
        let mut shared = t.clone();
        assert!(shared.as_mut_slice::<f32>().is_err());
    }

    #[test]
    fn conversions_round_to_nearest_even() {
        let x = [1.0f32, 257.0 / 256.0, 259.0 / 256.0, -2.5, 65504.0, 1e-8, f32::NAN, 3.0];
        let t = Tensor::from_slice(&x, [8]).unwrap();
        let b = t.to_dtype(DType::BF16).unwrap().to_vec::<bf16>().unwrap();
        let h = t.to_dtype(DType::F16).unwrap().to_vec::<f16>().unwrap();
        for (i, &x) in x.iter().enumerate() {
            let same = |a: f32, b: f32| a == b || a.is_nan() && b.is_nan();
            assert!(same(b[i].to_f32(), bf16::from_f32(x).to_f32()));
            assert!(same(h[i].to_f32(), f16::from_f32(x).to_f32()));
        }
    }
}
