//! Weights of linear layers and convolutions, laid out once for the kernel that multiplies by them.

mod quantized;

use std::sync::{Arc, OnceLock};

use super::Meta;
use super::layout::concat;
use super::matmul::cuda::{apart, interleaved};
use crate::cpu::gemm::{self, MicroKernel, Order};
use crate::cpu::simd::{self, Level};
use crate::cpu::winograd::{self, Tile};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::tape::Node;
use crate::tensor::{DType, Device, Float, Shape, Tensor};
use quantized::Quantized;

/// What a weight is for, and so how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Of a linear layer: [N, K].
    Matrix,
    /// Of one that is frozen on a GPU and ends in its gate, as [`linear_geglu`](super::matmul::linear_geglu) multiplies:
    /// [N, K]. A weight becomes a `Matrix` where nothing is gained: on a CPU, not frozen, or of an N that does not divide.
    Gated,
    /// Of a convolution with any stride: [O, I, KH, KW].
    Convolution,
    /// Of a convolution with this stride only, which may make it faster: 3x3 at stride 1 in f32 goes through
    /// Winograd's F(2x2, 3x3), with 4/9 of the products, 16/9 of the memory, and errors about twice as large.
    ConvolutionAt(usize),
    /// Of a convolution with stride 1 over large images: 3x3 in f32 goes through Winograd's
    /// F(4x4, 3x3), with 1/4 of the products, 4 times the memory, and errors about twice those of a plain sum.
    LargeImages,
}

/// A weight: frozen, when only its layout for the kernel is held, or plain, when its elements are.
///
/// The layout of a plain weight is made when it is first multiplied by, and kept with it. A weight whose plain tensor is a
/// [variable](Tensor::variable) gets a gradient.
#[derive(Clone)]
pub struct Weight {
    shape: Shape,
    dtype: DType,
    layout: Layout,
    plain: Option<Tensor>,
    packed: Arc<OnceLock<Packed>>,
}

/// A weight as the device that it is on multiplies by it.
pub(super) enum Packed {
    /// A matrix [N, K], or a convolution's [O, KH, KW, I], on a GPU, whose kernels read rows.
    Rows(Tensor),
    /// A matrix [K, N]; of a convolution [KH * KW * I, O].
    Panels(Panels),
    /// A matrix [K, N] in 8 bits.
    Quantized(Quantized),
    /// Transformed for 3x3 at stride 1, in f32.
    Winograd { level: Level, tile: Tile, panels: Tensor },
}

impl Weight {
    /// Lays `weight` out in `dtype` and lets go of its elements.
    ///
    /// # Errors
    /// `Shape` when it is not what the layout is for, or an empty convolution; `DType` when it or `dtype` is not
    /// floating-point; `NoKernel` of doubles off the CPU.
    pub fn frozen(weight: &Tensor, layout: Layout, dtype: DType) -> Result<Self> {
        let mut frozen = Self { plain: None, ..Self::plain(weight, layout, dtype)? };
        let mut packed = pack(weight, layout, dtype)?;
        if layout == Layout::Gated
            && let Packed::Rows(rows) = &packed
            && let Some(turns) = interleaved(rows)?
        {
            (packed, frozen.layout) = (Packed::Rows(turns), Layout::Gated);
        }
        let _ = frozen.packed.set(packed);
        Ok(frozen)
    }

    /// As [`Self::frozen`], of a matrix [N, K] in 8 bits: each row as whole numbers from -127 to 127 times a 127th of its largest
    /// magnitude, f32. It multiplies activations of `dtype` (f32, f16 or bf16) and f32; sums are in f32.
    ///
    /// # Errors
    /// As [`Self::frozen`], `Value` when an element is not finite, and `NoKernel` off the CPU.
    pub fn quantized(weight: &Tensor, dtype: DType) -> Result<Self> {
        let (layout, op) = (Layout::Matrix, Layout::Matrix.op());
        let plain = Self::plain(weight, layout, dtype)?;
        if weight.device() != Device::Cpu {
            return Err(Error::no_kernel("linear with weights of 8 bits"));
        }
        if dtype == DType::F64 {
            return Err(Error::DType { op, expected: "f32, f16 or bf16", found: dtype });
        }
        let packed = Packed::Quantized(Quantized::new(op, &weight.detach().to_dtype(DType::F32)?)?);
        Ok(Self { plain: None, packed: Arc::new(OnceLock::from(packed)), ..plain })
    }

    /// Holds `weight` as it is, to be multiplied by in `dtype`.
    ///
    /// # Errors
    /// `Shape` and `DType` as [`Self::frozen`].
    pub fn plain(weight: &Tensor, layout: Layout, dtype: DType) -> Result<Self> {
        let op = layout.op();
        match (layout, weight.dims()) {
            (Layout::Matrix | Layout::Gated, [_, _]) => {}
            (Layout::Matrix | Layout::Gated, _) => {
                return Err(Error::expected_shape(op, "weight", "[N, K]", weight.shape()));
            }
            (_, [o, i, kh, kw]) if o * i * kh * kw > 0 => {}
            _ => {
                let expected = "[O, I, KH, KW], not empty";
                return Err(Error::expected_shape(op, "weight", expected, weight.shape()));
            }
        }
        for found in [weight.dtype(), dtype] {
            if !found.is_float() {
                return Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found });
            }
        }
        let layout = if layout == Layout::Gated { Layout::Matrix } else { layout };
        Ok(Self {
            shape: *weight.shape(),
            dtype,
            layout,
            plain: Some(weight.clone()),
            packed: Arc::default(),
        })
    }

    /// Frozen matrices [N, K] on a GPU one below the other, as one weight; they become parts of it, so that memory holds
    /// them once. `None` where they cannot be: on the CPU, not frozen, of different K or dtype.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn joined(parts: &mut [Self]) -> Result<Option<Self>> {
        let rows = |part: &Self| match part.packed.get() {
            Some(Packed::Rows(rows)) if part.plain.is_none() && part.layout == Layout::Matrix => {
                Some(rows.clone())
            }
            _ => None,
        };
        let Some(each) = parts.iter().map(rows).collect::<Option<Vec<_>>>() else {
            return Ok(None);
        };
        let fits = |t: &Tensor| (t.dim(1), t.dtype()) == (each[0].dim(1), each[0].dtype());
        if each.is_empty() || !each.iter().all(fits) {
            return Ok(None);
        }
        let all = concat(&each.iter().collect::<Vec<_>>(), 0)?; // [sum of N, K]
        drop(each);
        let mut start = 0;
        for part in &mut *parts {
            let view = all.narrow(0, start, part.shape[0])?;
            start += part.shape[0];
            part.packed = Arc::new(OnceLock::from(Packed::Rows(view)));
        }
        let (shape, dtype, layout) = (*all.shape(), all.dtype(), Layout::Matrix);
        let packed = Arc::new(OnceLock::from(Packed::Rows(all)));
        Ok(Some(Self { shape, dtype, layout, plain: None, packed }))
    }

    /// Its shape as torch has it: [N, K] or [O, I, KH, KW].
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What it is multiplied in.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Bytes of the elements that products read; those that pad a layout are not counted.
    pub fn bytes(&self) -> usize {
        let elements: usize = self.shape.iter().product();
        match self.packed.get() {
            // A byte each, and a scale for each row.
            Some(Packed::Quantized(_)) => elements + self.shape[0] * size_of::<f32>(),
            _ => elements * self.dtype.size(),
        }
    }

    /// What it is for.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Where it is.
    pub fn device(&self) -> Device {
        match (&self.plain, self.packed.get()) {
            (Some(tensor), _) | (None, Some(Packed::Rows(tensor))) => tensor.device(),
            _ => Device::Cpu,
        }
    }

    /// Its elements, unless it is frozen.
    pub fn tensor(&self) -> Option<&Tensor> {
        self.plain.as_ref()
    }

    /// Shape and dtype of its gradient.
    pub(super) fn meta(&self) -> Meta {
        let dtype = self.plain.as_ref().map_or(self.dtype, Tensor::dtype);
        Meta { shape: self.shape, dtype }
    }

    pub(super) fn node(&self) -> Option<&Arc<Node>> {
        self.plain.as_ref().and_then(Tensor::node)
    }

    /// Its layout, made now if it was not yet.
    pub(super) fn packed(&self) -> Result<&Packed> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        // Frozen weights were packed when they were made.
        let plain = self.plain.as_ref().ok_or_else(|| self.frozen_error())?;
        let packed = pack(&plain.detach(), self.layout, self.dtype)?;
        // Two threads may have packed it at once, to the same result.
        Ok(self.packed.get_or_init(|| packed))
    }

    /// Its elements in the dtype it is multiplied in, as far as the layout still tells them.
    ///
    /// # Errors
    /// `Value` for a frozen weight that was transformed for Winograd's algorithm.
    pub(super) fn elements(&self) -> Result<Tensor> {
        match (&self.plain, self.packed.get()) {
            (Some(plain), _) => plain.detach().to_dtype(self.dtype),
            (None, Some(Packed::Rows(rows))) if self.layout == Layout::Matrix => Ok(rows.clone()),
            (None, Some(Packed::Rows(rows))) if self.layout == Layout::Gated => apart(rows),
            (None, Some(Packed::Rows(rows))) => rows.permute(&[0, 3, 1, 2]), // [O, I, KH, KW]
            (None, Some(Packed::Panels(panels))) => {
                panels.unpack(self.layout.op(), self.shape, order(self.layout, &self.shape))
            }
            (None, Some(Packed::Quantized(matrix))) => matrix.elements()?.to_dtype(self.dtype),
            (None, _) => Err(self.frozen_error()),
        }
    }

    /// Its rows [N, K], where they lie as they are: of a plain matrix, and on a GPU of a frozen one.
    pub(crate) fn rows(&self) -> Option<Tensor> {
        match (&self.plain, self.packed.get()) {
            (Some(plain), _) => Some(plain.clone()),
            (None, Some(Packed::Rows(rows))) if self.layout == Layout::Matrix => Some(rows.clone()),
            _ => None,
        }
    }

    /// Whether [`Self::copy_rows`] can.
    pub(crate) fn has_panels(&self) -> bool {
        matches!(self.packed.get(), Some(Packed::Panels(_)))
    }

    /// Rows of a frozen matrix [N, K], a place below N each, into `to` [.., K] of its dtype.
    ///
    /// # Errors
    /// `Value` unless it [lies in panels](Self::has_panels).
    pub(super) fn copy_rows(&self, rows: &[usize], to: &mut Tensor) -> Result<()> {
        match self.packed.get() {
            Some(Packed::Panels(panels)) => panels.copy_columns(self.layout.op(), rows, to),
            _ => Err(self.frozen_error()),
        }
    }

    fn frozen_error(&self) -> Error {
        let message = "a frozen weight was transformed and cannot be read back: load the model with plain weights";
        Error::value(self.layout.op(), message)
    }

    /// Whether these weights multiply activations of a dtype: their own, and f32 unless they are f64.
    pub(super) fn check_dtype(&self, op: &'static str, x: DType) -> Result<()> {
        let winograd = matches!(self.packed.get(), Some(Packed::Winograd { .. }));
        match (x, self.dtype) {
            (x, w) if x == w => Ok(()),
            (DType::F32, DType::F16 | DType::BF16) if !winograd => Ok(()),
            (found, w) => Err(Error::DType { op, expected: w.name(), found }),
        }
    }
}

impl Layout {
    /// The operation that the layout is for.
    fn op(self) -> &'static str {
        match self {
            Self::Matrix | Self::Gated => "linear",
            Self::Convolution | Self::ConvolutionAt(_) | Self::LargeImages => "conv2d",
        }
    }
}

/// Where elements of the product's matrix stand in the weight.
fn order(layout: Layout, shape: &Shape) -> Order {
    let is_matrix = matches!(layout, Layout::Matrix | Layout::Gated);
    let taps = if is_matrix { 1 } else { shape[2] * shape[3] };
    Order::Weights { taps }
}

fn pack(weight: &Tensor, layout: Layout, dtype: DType) -> Result<Packed> {
    let op = layout.op();
    let n = weight.dim(0);
    let k = weight.dims()[1..].iter().product();
    if weight.device() != Device::Cpu {
        if dtype == DType::F64 {
            return Err(Error::no_kernel(op));
        }
        let weight = weight.to_dtype(dtype)?;
        let rows = match layout {
            Layout::Matrix | Layout::Gated => weight,
            _ => weight.permute(&[0, 2, 3, 1])?, // [O, KH, KW, I]
        };
        return Ok(Packed::Rows(rows.contiguous()?));
    }
    let tile = match layout {
        Layout::ConvolutionAt(1) => Some(Tile::Two),
        Layout::LargeImages => Some(Tile::Four),
        _ => None,
    };
    if let (Some(tile), &[o, i, 3, 3], DType::F32) = (tile, weight.dims(), dtype)
        && i % winograd::CHANNELS == 0
    {
        let (weight, level) = (weight.contiguous()?, simd::level());
        let kernel = gemm::f32_kernel(level);
        let len = winograd::packed_len(kernel, tile, i, o);
        let mut panels = Tensor::uninit([len], DType::F32, Device::Cpu)?;
        dispatch_float!(op, weight.dtype(), T => {
            winograd::pack(kernel, tile, i, o, weight.as_slice::<T>()?, panels.as_mut_slice()?);
            Ok(())
        })?;
        return Ok(Packed::Winograd { level, tile, panels });
    }
    let order = order(layout, weight.shape());
    Ok(Packed::Panels(Panels::new(op, weight, dtype, (k, n), order)?))
}

/// A matrix B [K, N] in the layout of the CPU's product.
#[derive(Clone)]
pub(super) struct Panels {
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) level: Level,
    pub(super) elements: Tensor,
}

impl Panels {
    /// Packs the matrix that `weight` holds in this order, rounded to `dtype`.
    pub(super) fn new(
        op: &'static str,
        weight: &Tensor,
        dtype: DType,
        (k, n): (usize, usize),
        order: Order,
    ) -> Result<Self> {
        fn fill<A, B: Float, C>(
            op: &'static str,
            kernel: MicroKernel<A, B, C>,
            weight: &Tensor,
            (k, n): (usize, usize),
            order: Order,
        ) -> Result<Tensor> {
            let len = gemm::packed_len(kernel, k, n);
            let mut panels = Tensor::uninit([len], B::DTYPE, Device::Cpu)?;
            dispatch_float!(op, weight.dtype(), T => {
                let from = weight.as_slice::<T>()?;
                gemm::pack(kernel, (k, n), from, order, panels.as_mut_slice::<B>()?);
                Ok(panels)
            })
        }

        let (weight, level) = (&weight.contiguous()?, simd::level());
        let elements = match dtype {
            DType::F32 => fill(op, gemm::f32_kernel(level), weight, (k, n), order),
            DType::F16 => fill(op, gemm::f16_kernel(level), weight, (k, n), order),
            DType::BF16 => fill(op, gemm::bf16_kernel(level), weight, (k, n), order),
            DType::F64 => fill(op, gemm::f64_kernel(level), weight, (k, n), order),
            found => Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found }),
        }?;
        Ok(Self { k, n, level, elements })
    }

    pub(super) fn dtype(&self) -> DType {
        self.elements.dtype()
    }

    /// Columns of the matrix, [.., k].
    fn copy_columns(&self, op: &'static str, columns: &[usize], to: &mut Tensor) -> Result<()> {
        fn fill<A, B: Float, C>(
            kernel: MicroKernel<A, B, C>,
            panels: &Panels,
            columns: &[usize],
            to: &mut Tensor,
        ) -> Result<()> {
            let (size, from) = ((panels.k, panels.n), panels.elements.as_slice::<B>()?);
            let to = to.as_mut_slice::<B>()?.chunks_exact_mut(panels.k.max(1));
            for (to, &column) in to.zip(columns) {
                let values = gemm::column_of(kernel, size, from, column);
                to.iter_mut().zip(values).for_each(|(to, value)| *to = value);
            }
            Ok(())
        }

        match self.dtype() {
            DType::F32 => fill(gemm::f32_kernel(self.level), self, columns, to),
            DType::F16 => fill(gemm::f16_kernel(self.level), self, columns, to),
            DType::BF16 => fill(gemm::bf16_kernel(self.level), self, columns, to),
            DType::F64 => fill(gemm::f64_kernel(self.level), self, columns, to),
            found => Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found }),
        }
    }

    /// The weight of this shape that [`Self::new`] packed, in the dtype of the panels; its rows are k long.
    fn unpack(&self, op: &'static str, shape: Shape, order: Order) -> Result<Tensor> {
        fn fill<A, B: Float, C>(
            kernel: MicroKernel<A, B, C>,
            panels: &Panels,
            order: Order,
            to: &mut Tensor,
        ) -> Result<()> {
            let (size, from) = ((panels.k, panels.n), panels.elements.as_slice::<B>()?);
            gemm::unpack(kernel, size, from, order, to.as_mut_slice()?);
            Ok(())
        }

        let (mut weight, level) = (Tensor::uninit(shape, self.dtype(), Device::Cpu)?, self.level);
        match self.dtype() {
            DType::F32 => fill(gemm::f32_kernel(level), self, order, &mut weight),
            DType::F16 => fill(gemm::f16_kernel(level), self, order, &mut weight),
            DType::BF16 => fill(gemm::bf16_kernel(level), self, order, &mut weight),
            DType::F64 => fill(gemm::f64_kernel(level), self, order, &mut weight),
            found => Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found }),
        }?;
        Ok(weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, random};

    #[test]
    fn a_frozen_weight_is_read_back_as_it_was_packed() {
        simd::at_each_level(|level| {
            for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                for (shape, layout) in [
                    (&[33, 65][..], Layout::Matrix),
                    (&[1, 1], Layout::Matrix),
                    (&[7, 0], Layout::Matrix),
                    (&[17, 5, 3, 2], Layout::Convolution),
                    (&[40, 33, 1, 1], Layout::ConvolutionAt(1)),
                ] {
                    let weight = random(shape, 1).to_dtype(dtype).unwrap();
                    let frozen = Weight::frozen(&weight, layout, dtype).unwrap();
                    assert!(frozen.tensor().is_none());
                    let back = frozen.elements().unwrap();
                    assert_eq!(back.shape(), weight.shape());
                    assert_eq!(bits(&back), bits(&weight), "{} {dtype} {shape:?}", level.name());
                }
            }
        });
    }

    #[test]
    fn what_was_transformed_for_winograd_cannot_be_read_back() {
        let weight = random([4, winograd::CHANNELS, 3, 3], 1);
        for layout in [Layout::ConvolutionAt(1), Layout::LargeImages] {
            let frozen = Weight::frozen(&weight, layout, DType::F32).unwrap();
            let message = frozen.elements().unwrap_err().to_string();
            assert!(message.contains("plain weights"), "{message}");
            assert!(Weight::plain(&weight, layout, DType::F32).unwrap().elements().is_ok());
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let shape_error = |shape: &[usize], layout| {
            let error = Weight::plain(&random(shape, 1), layout, DType::F32).err().unwrap();
            assert!(matches!(error, Error::Shape { .. }), "{error}");
        };
        shape_error(&[5], Layout::Matrix);
        shape_error(&[5, 3, 1, 1], Layout::Matrix);
        shape_error(&[5, 3], Layout::Convolution);
        shape_error(&[5, 0, 3, 3], Layout::Convolution);
        let matrix = random([2, 3], 1);
        let error = Weight::frozen(&matrix, Layout::Matrix, DType::U8).err().unwrap();
        assert!(matches!(error, Error::DType { found: DType::U8, .. }), "{error}");
    }
}
