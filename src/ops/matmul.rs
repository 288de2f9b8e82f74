//! Matrix products: a linear layer over packed weights with its epilogue fused, and the plain product.

use half::{bf16, f16};

use super::{Meta, Op, apply};
use crate::cpu::gemm::{self, Dense, Finish, MicroKernel, Rows};
use crate::cpu::math::Math;
use crate::cpu::simd::{self, Level, simd};
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Element, Float, Real, Shape, Tensor};

/// An activation that ends a linear layer or a convolution.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// x * sigmoid(x) (Elfwing et al. 2017)
    Silu,
    /// x / 2 * (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016)
    Gelu,
    /// Its approximation by tanh, from the same paper.
    GeluTanh,
    /// Its approximation x * sigmoid(1.702 x), which CLIP was trained with.
    QuickGelu,
}

/// What a product passes through before it is stored:
/// `act(product + bias + add_channel) * scale + residual`, in f32 (f64 for f64), rounded once.
#[derive(Clone, Copy)]
pub struct Epilogue<'a> {
    /// `[N]`, any floating-point dtype.
    pub bias: Option<&'a Tensor>,
    /// [B, N], one row an image (or sequence), any floating-point dtype: the time embedding.
    pub add_channel: Option<&'a Tensor>,
    /// The activation.
    pub act: Activation,
    /// The factor.
    pub scale: f32,
    /// Of the output's shape and dtype.
    pub residual: Option<&'a Tensor>,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self {
            bias: None,
            add_channel: None,
            act: Activation::Identity,
            scale: 1.0,
            residual: None,
        }
    }
}

impl<'a> Epilogue<'a> {
    /// Only a bias `[N]`.
    pub fn bias(bias: Option<&'a Tensor>) -> Self {
        Self { bias, ..Self::default() }
    }

    /// `x` and the tensors that are there.
    pub(super) fn inputs<'b>(&self, x: &'b Tensor) -> Vec<&'b Tensor>
    where
        'a: 'b,
    {
        [Some(x), self.bias, self.add_channel, self.residual].into_iter().flatten().collect()
    }

    /// Checks the tensors against the output's shape and dtype.
    pub(super) fn check(&self, op: &'static str, out: &Meta) -> Result<()> {
        let n = out.shape.last().copied().unwrap_or(1);
        let images = images(&out.shape);
        let check = |what, t: Option<&Tensor>, expected: &[usize]| match t {
            Some(t) if t.dims() != expected => {
                Err(Error::expected_shape(op, what, &Shape::from(expected).to_string(), t.shape()))
            }
            Some(t) if !t.dtype().is_float() => {
                Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found: t.dtype() })
            }
            _ => Ok(()),
        };
        check("bias", self.bias, &[n])?;
        check("add_channel", self.add_channel, &[images, n])?;
        check("residual", self.residual, &out.shape)?;
        match self.residual {
            Some(r) if r.dtype() != out.dtype => {
                Err(Error::DType { op, expected: out.dtype.name(), found: r.dtype() })
            }
            _ => Ok(()),
        }
    }
}

/// The length of the batch dimension, if there is one beside the last.
fn images(shape: &Shape) -> usize {
    if shape.len() > 1 { shape[0] } else { 1 }
}

/// A matrix B [K, N] of weights in the layout of the CPU's product.
#[derive(Clone)]
pub(super) struct Packed {
    k: usize,
    n: usize,
    level: Level,
    panels: Tensor,
}

impl Packed {
    /// Packs the matrix whose element (k, n) is `weight[n * stride + offset(k)]`, rounded to `dtype`.
    pub(super) fn new(
        op: &'static str,
        weight: &Tensor,
        dtype: DType,
        (k, n): (usize, usize),
        stride: usize,
        offset: impl Fn(usize) -> usize + Sync,
    ) -> Result<Self> {
        fn fill<A, B: Float, C>(
            op: &'static str,
            kernel: MicroKernel<A, B, C>,
            weight: &Tensor,
            (k, n): (usize, usize),
            stride: usize,
            offset: impl Fn(usize) -> usize + Sync,
        ) -> Result<Tensor> {
            let len = gemm::packed_len(kernel, k, n);
            let mut panels = Tensor::uninit([len], B::DTYPE, Device::Cpu)?;
            crate::dispatch_float!(op, weight.dtype(), T => {
                let from = weight.as_slice::<T>()?;
                gemm::pack(kernel, (k, n), from, stride, offset, panels.as_mut_slice::<B>()?);
                Ok(panels)
            })
        }

        if weight.device() != Device::Cpu {
            return Err(Error::no_kernel(op));
        }
        let (weight, level) = (&weight.contiguous()?, simd::level());
        let panels = match dtype {
            DType::F32 => fill(op, gemm::f32_kernel(level), weight, (k, n), stride, offset),
            DType::F16 => fill(op, gemm::f16_kernel(level), weight, (k, n), stride, offset),
            DType::BF16 => fill(op, gemm::bf16_kernel(level), weight, (k, n), stride, offset),
            DType::F64 => fill(op, gemm::f64_kernel(level), weight, (k, n), stride, offset),
            found => Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found }),
        }?;
        Ok(Self { k, n, level, panels })
    }

    pub(super) fn dtype(&self) -> DType {
        self.panels.dtype()
    }

    pub(super) fn device(&self) -> Device {
        self.panels.device()
    }

    pub(super) fn to_device(&self, op: &'static str, device: Device) -> Result<Self> {
        if device == self.device() { Ok(self.clone()) } else { Err(Error::no_kernel(op)) }
    }

    /// Whether these weights multiply activations of a dtype: their own, and f32 unless they are f64.
    pub(super) fn check_dtype(&self, op: &'static str, x: DType) -> Result<()> {
        match (x, self.dtype()) {
            (x, w) if x == w => Ok(()),
            (DType::F32, DType::F16 | DType::BF16) => Ok(()),
            (found, w) => Err(Error::DType { op, expected: w.name(), found }),
        }
    }

    /// Multiplies the rows of A, gathered from `x`, into `out` [.., N].
    pub(super) fn multiply(
        &self,
        op: &'static str,
        x: &Tensor,
        rows: &impl Rows,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()> {
        use gemm::{bf16_dot_kernel, bf16_kernel, f16_kernel, f32_kernel, f64_kernel};
        let l = self.level;
        match (x.dtype(), self.dtype()) {
            (DType::F32, DType::F32) => {
                self.run::<f32, _, _>(f32_kernel(l), x, rows, epilogue, out)
            }
            (DType::F32, DType::F16) => {
                self.run::<f32, _, _>(f16_kernel(l), x, rows, epilogue, out)
            }
            (DType::F32, DType::BF16) => {
                self.run::<f32, _, _>(bf16_kernel(l), x, rows, epilogue, out)
            }
            (DType::F16, DType::F16) => {
                self.run::<f16, _, _>(f16_kernel(l), x, rows, epilogue, out)
            }
            (DType::BF16, DType::BF16) => match bf16_dot_kernel(l) {
                Some(kernel) => self.run::<bf16, _, _>(kernel, x, rows, epilogue, out),
                None => self.run::<bf16, _, _>(bf16_kernel(l), x, rows, epilogue, out),
            },
            (DType::F64, DType::F64) => {
                self.run::<f64, _, _>(f64_kernel(l), x, rows, epilogue, out)
            }
            (found, w) => Err(Error::DType { op, expected: w.name(), found }),
        }
    }

    fn run<T: Float<Acc: Math>, A: Float, B: Float>(
        &self,
        kernel: MicroKernel<A, B, T::Acc>,
        x: &Tensor,
        rows: &impl Rows,
        epilogue: &Epilogue,
        out: &mut Tensor,
    ) -> Result<()> {
        let x = x.contiguous()?;
        let (panels, m) = (self.panels.as_slice::<B>()?, out.len() / self.n);
        with_epilogue::<T>(epilogue, out, |out, finish| {
            gemm::gemm(kernel, (m, self.n, self.k), x.as_slice::<T>()?, rows, panels, out, finish);
            Ok(())
        })
    }
}

/// Runs `product(out, finish)`, where `finish(row, column, sums, out)` puts pieces of rows of sums through the
/// epilogue.
pub(super) fn with_epilogue<T: Float<Acc: Math>>(
    epilogue: &Epilogue,
    out: &mut Tensor,
    product: impl FnOnce(&mut [T], &Finish<T, T::Acc>) -> Result<()>,
) -> Result<()> {
    let n = out.dim(out.rank() - 1);
    let rows_per_image = out.len() / n / images(out.shape());
    let acc = |t: Option<&Tensor>| t.map(|t| t.to_dtype(T::Acc::DTYPE)?.contiguous()).transpose();
    let (bias, add_channel) = (acc(epilogue.bias)?, acc(epilogue.add_channel)?);
    let residual = epilogue.residual.map(Tensor::contiguous).transpose()?;
    let bias = bias.as_ref().map(Tensor::as_slice::<T::Acc>).transpose()?;
    let add_channel = add_channel.as_ref().map(Tensor::as_slice::<T::Acc>).transpose()?;
    let residual = residual.as_ref().map(Tensor::as_slice::<T>).transpose()?;
    let scale = T::Acc::from_f64(f64::from(epilogue.scale));
    product(out.as_mut_slice::<T>()?, &|row, column, sums, out| {
        let width = sums.len();
        let bias = bias.map(|b| &b[column..][..width]);
        let add = add_channel.map(|a| &a[row / rows_per_image * n + column..][..width]);
        let residual = residual.map(|r| &r[row * n + column..][..width]);
        finish(sums, bias, add, epilogue.act, scale, residual, out);
    })
}

simd! {
    /// The [`Epilogue`] of one row of sums.
    fn finish[T: Float<Acc: Math>](
        s,
        sums: &mut [T::Acc],
        bias: Option<&[T::Acc]>,
        add: Option<&[T::Acc]>,
        act: Activation,
        scale: T::Acc,
        residual: Option<&[T]>,
        out: &mut [T],
    ) {
        let constant = T::Acc::from_f64;
        for add in [bias, add].into_iter().flatten() {
            for (x, &add) in sums.iter_mut().zip(add) {
                *x += add;
            }
        }
        match act {
            Activation::Identity => {}
            Activation::Silu => {
                for x in sums.iter_mut() {
                    *x = *x * x.vector_sigmoid(s);
                }
            }
            Activation::Gelu => {
                let (half, root) = (constant(0.5), constant(std::f64::consts::FRAC_1_SQRT_2));
                for x in sums.iter_mut() {
                    *x = half * *x * (T::Acc::ONE + (*x * root).vector_erf(s));
                }
            }
            Activation::GeluTanh => {
                let (half, a) = (constant(0.5), constant((2.0 / std::f64::consts::PI).sqrt()));
                let b = constant(0.044715);
                for x in sums.iter_mut() {
                    let inner = a * (*x + b * *x * *x * *x);
                    *x = half * *x * (T::Acc::ONE + inner.vector_tanh(s));
                }
            }
            Activation::QuickGelu => {
                let a = constant(1.702);
                for x in sums.iter_mut() {
                    *x = *x * (a * *x).vector_sigmoid(s);
                }
            }
        }
        if scale != T::Acc::ONE {
            for x in sums.iter_mut() {
                *x = *x * scale;
            }
        }
        if let Some(residual) = residual {
            let mut wide = [T::Acc::ZERO; 64];
            for (sums, residual) in sums.chunks_mut(wide.len()).zip(residual.chunks(wide.len())) {
                let wide = &mut wide[..sums.len()];
                simd::widen(residual, wide);
                for (x, &r) in sums.iter_mut().zip(&*wide) {
                    *x += r;
                }
            }
        }
        simd::narrow(sums, out);
    }
}

/// Weights of a linear layer, packed for the device they are on.
#[derive(Clone)]
pub struct PackedLinear(Packed);

impl PackedLinear {
    /// Packs a weight [N, K], as torch stores it, rounded to `dtype`.
    ///
    /// # Errors
    /// `Shape` when it is not a matrix, `DType` when it or `dtype` is not floating-point, `NoKernel` off
    /// the CPU.
    pub fn new(weight: &Tensor, dtype: DType) -> Result<Self> {
        let &[n, k] = weight.dims() else {
            return Err(Error::expected_shape("linear", "weight", "[N, K]", weight.shape()));
        };
        Packed::new("linear", weight, dtype, (k, n), k, |k| k).map(Self)
    }

    /// Length of the rows it takes.
    pub fn k(&self) -> usize {
        self.0.k
    }

    /// Length of the rows it gives.
    pub fn n(&self) -> usize {
        self.0.n
    }

    /// Dtype of the packed weights.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        self.0.device()
    }

    /// The same weights on another device.
    ///
    /// # Errors
    /// `NoKernel` for a GPU.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        self.0.to_device("linear", device).map(Self)
    }
}

struct Linear<'a> {
    weight: &'a PackedLinear,
    epilogue: Epilogue<'a>,
}

impl Op for Linear<'_> {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn infer(&self, inputs: &[&Tensor]) -> Result<Meta> {
        let (x, w) = (inputs[0], &self.weight.0);
        if x.shape().last() != Some(&w.k) {
            let expected = format!("[.., {}] to go with a weight of [{}, {}]", w.k, w.n, w.k);
            return Err(Error::expected_shape(self.name(), "x", &expected, x.shape()));
        }
        w.check_dtype(self.name(), x.dtype())?;
        let out = Meta { shape: x.shape().with(x.rank() - 1, w.n), dtype: x.dtype() };
        self.epilogue.check(self.name(), &out)?;
        Ok(out)
    }

    fn cpu(&self, inputs: &[&Tensor], out: &mut Tensor) -> Result<()> {
        let w = &self.weight.0;
        w.multiply(self.name(), inputs[0], &Dense { stride: w.k }, &self.epilogue, out)
    }

    fn cuda(&self, _: &[&Tensor], _: &mut Tensor) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Err(Error::no_gradient(self.name()))
    }
}

/// A linear layer: `epilogue(x * weight^T)`, [.., K] -> [.., N], in x's dtype.
///
/// `x` has the weights' dtype, or is f32 over 16-bit weights. Sums are taken in f32 (f64 for f64).
/// `add_channel` takes x's first dimension as the batch.
///
/// # Errors
/// `Shape` and `DType` when x or the epilogue's tensors do not fit; `NoKernel` on a GPU.
pub fn linear(x: &Tensor, weight: &PackedLinear, epilogue: Epilogue) -> Result<Tensor> {
    apply(&Linear { weight, epilogue }, &epilogue.inputs(x))
}

struct MatMul;

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&Tensor]) -> Result<Meta> {
        let (a, b) = (inputs[0], inputs[1]);
        let mismatch = || {
            Error::shape(
                self.name(),
                format!(
                    "{} by {}: expected [.., M, K] by [.., K, N] or [K, N]",
                    a.shape(),
                    b.shape()
                ),
            )
        };
        let (&[ref batch_a @ .., _, k], &[ref batch_b @ .., k_b, n]) = (a.dims(), b.dims()) else {
            return Err(mismatch());
        };
        if k != k_b || !(batch_b.is_empty() || batch_a == batch_b) {
            return Err(mismatch());
        }
        if a.dtype() != b.dtype() {
            return Err(Error::DType {
                op: self.name(),
                expected: a.dtype().name(),
                found: b.dtype(),
            });
        }
        Ok(Meta { shape: a.shape().with(a.rank() - 1, n), dtype: a.dtype() })
    }

    fn cpu(&self, inputs: &[&Tensor], out: &mut Tensor) -> Result<()> {
        let (a, b) = (inputs[0], inputs[1]);
        let (k, n) = (b.dim(b.rank() - 2), b.dim(b.rank() - 1));
        let batch = b.dims()[..b.rank() - 2].iter().product::<usize>();
        let (a, b) = (a.reshape([batch, out.len() / (batch * n), k])?, b.reshape([batch, k, n])?);
        let product = |i, out: &mut Tensor| {
            let b = Packed::new(self.name(), &b.narrow(0, i, 1)?, b.dtype(), (k, n), 1, |k| k * n)?;
            let a = a.narrow(0, i, 1)?;
            b.multiply(self.name(), &a, &Dense { stride: k }, &Epilogue::default(), out)
        };
        if batch == 1 {
            return product(0, out);
        }
        let parts = (0..batch).map(|i| {
            let mut part = Tensor::uninit([out.len() / (batch * n), n], out.dtype(), Device::Cpu)?;
            product(i, &mut part)?;
            Ok(part)
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        crate::dispatch_float!(self.name(), out.dtype(), T => {
            let len = out.len() / batch;
            for (to, from) in out.as_mut_slice::<T>()?.chunks_exact_mut(len).zip(&parts) {
                to.copy_from_slice(from.as_slice::<T>()?);
            }
            Ok(())
        })
    }

    fn cuda(&self, _: &[&Tensor], _: &mut Tensor) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Err(Error::no_gradient(self.name()))
    }
}

/// The matrix product `a * b`: [.., M, K] by [.., K, N] with equal leading dimensions, or by one [K, N].
///
/// It packs b on every call: for weights there is [`linear`].
///
/// # Errors
/// `Shape` and `DType` when they do not fit; `NoKernel` on a GPU.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply(&MatMul, &[a, b])
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Numbers in [-1, 1), the same for the same seed.
    pub(in crate::ops) fn noise(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let step = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
        };
        std::iter::repeat_with(step).take(len).collect()
    }

    /// [`noise`] as a tensor.
    pub(in crate::ops) fn random(shape: impl Into<Shape>, seed: u64, dtype: DType) -> Tensor {
        let shape = shape.into();
        let t = Tensor::from_vec(noise(shape.elements(), seed), shape).unwrap();
        t.to_dtype(dtype).unwrap()
    }

    pub(in crate::ops) fn values(t: &Tensor) -> Vec<f64> {
        t.to_dtype(DType::F64).unwrap().to_vec().unwrap()
    }

    /// The bits, or rather their widening, which is exact.
    pub(in crate::ops) fn bits(t: &Tensor) -> Vec<u64> {
        values(t).iter().map(|x| x.to_bits()).collect()
    }

    /// Half the distance between 1 and the next value.
    pub(in crate::ops) fn unit_roundoff(dtype: DType) -> f64 {
        match dtype {
            DType::F64 => 2f64.powi(-53),
            DType::F32 => 2f64.powi(-24),
            DType::F16 => 2f64.powi(-11),
            _ => 2f64.powi(-8),
        }
    }

    /// A sum of k products has an error of at most `k u sum |a b|` (Higham, Accuracy and Stability, 3.1),
    /// u being that of the accumulator; storing it adds that of its dtype. The 4 are for the epilogue.
    pub(in crate::ops) fn tolerance(dtype: DType, k: usize, magnitude: f64, result: f64) -> f64 {
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let subnormal = 2f64.powi(-24); // spacing of f16 near 0
        (k + 4) as f64 * unit_roundoff(acc) * magnitude
            + unit_roundoff(dtype) * result.abs()
            + subnormal * unit_roundoff(dtype)
    }

    const DTYPES: [(DType, DType); 6] = [
        (DType::F32, DType::F32),
        (DType::F16, DType::F16),
        (DType::BF16, DType::BF16),
        (DType::F64, DType::F64),
        (DType::F32, DType::F16),
        (DType::F32, DType::BF16),
    ];

    #[test]
    fn linear_is_the_formula_at_odd_sizes() {
        let sizes =
            [(1, 1, 1), (1, 7, 33), (7, 33, 1), (33, 65, 31), (13, 321, 17), (150, 645, 50)];
        simd::at_each_level(|level| {
            for (x_type, w_type) in DTYPES {
                for (m, k, n) in sizes {
                    let x = random([m, k], 1, x_type);
                    let w = random([n, k], 2, w_type);
                    let packed = PackedLinear::new(&w, w_type).unwrap();
                    let y = values(&linear(&x, &packed, Epilogue::default()).unwrap());
                    let (x, w) = (values(&x), values(&w));
                    for i in 0..m {
                        for j in 0..n {
                            let terms = || (0..k).map(|l| x[i * k + l] * w[j * k + l]);
                            let (exact, magnitude) =
                                (terms().sum::<f64>(), terms().map(f64::abs).sum());
                            let error = (y[i * n + j] - exact).abs();
                            assert!(
                                error <= tolerance(x_type, k, magnitude, exact),
                                "{} {x_type} {w_type} [{m}, {k}, {n}] at {i}, {j}: error {error:e}",
                                level.name()
                            );
                        }
                    }
                }
            }
        });
    }

    #[test]
    fn rows_do_not_depend_on_their_neighbours_or_on_threads() {
        let (k, n) = (700, 83);
        simd::at_each_level(|level| {
            let one_thread = simd::pool(1);
            for (x_type, w_type) in DTYPES {
                let x = random([512, k], 3, x_type);
                let packed = PackedLinear::new(&random([n, k], 4, w_type), w_type).unwrap();
                let product = |x: &Tensor| bits(&linear(x, &packed, Epilogue::default()).unwrap());
                let whole = product(&x);
                assert!(one_thread.install(|| product(&x)) == whole, "{} {x_type}", level.name());
                for (start, m) in [(0, 1), (311, 1), (505, 7), (64, 64), (1, 145)] {
                    let part = product(&x.narrow(0, start, m).unwrap());
                    assert!(
                        part == whole[start * n..][..m * n],
                        "{} {x_type} {start} + {m}",
                        level.name()
                    );
                }
            }
        });
    }

    #[test]
    fn the_epilogue_is_the_formula() {
        let (images, t, k, n) = (3, 5, 40, 70);
        let exact_act = |act, x: f64| match act {
            Activation::Identity => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu => x / 2.0 * (1.0 + crate::cpu::math::erf_f64(x / 2f64.sqrt())),
            Activation::GeluTanh => {
                let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                x / 2.0 * (1.0 + inner.tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        };
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
            let x = random([images, t, k], 5, dtype);
            let w = random([n, k], 6, dtype);
            let (bias, add) = (random([n], 7, acc), random([images, n], 8, dtype));
            let residual = random([images, t, n], 9, dtype);
            let packed = PackedLinear::new(&w, dtype).unwrap();
            for act in [
                Activation::Identity,
                Activation::Silu,
                Activation::Gelu,
                Activation::GeluTanh,
                Activation::QuickGelu,
            ] {
                let epilogue = Epilogue {
                    bias: Some(&bias),
                    add_channel: Some(&add),
                    residual: Some(&residual),
                    act,
                    scale: 0.75,
                };
                let y = values(&linear(&x, &packed, epilogue).unwrap());
                let [x, w, bias, add, residual] = [&x, &w, &bias, &add, &residual].map(values);
                for (i, &y) in y.iter().enumerate() {
                    let (row, j) = (i / n, i % n);
                    let terms = || (0..k).map(|l| x[row * k + l] * w[j * k + l]);
                    let sum = terms().sum::<f64>() + bias[j] + add[row / t * n + j];
                    let exact = exact_act(act, sum) * 0.75 + residual[i];
                    // Every activation's slope is below 1.2; `vector_*` are exact to 4 ulp.
                    let magnitude = 1.2 * terms().map(f64::abs).sum::<f64>() + 4.0;
                    let error = (y - exact).abs();
                    assert!(
                        error <= tolerance(dtype, k, magnitude, exact),
                        "{dtype} {act:?} at {i}: {error:e}"
                    );
                }
            }
        }
    }

    #[test]
    fn matmul_is_a_batch_of_products() {
        let (batch, m, k, n) = (3, 7, 33, 18);
        let a = random([batch, k, m], 10, DType::F32).transpose(1, 2).unwrap();
        let b = random([batch, n, k], 11, DType::F32);
        let c = matmul(&a, &b.transpose(1, 2).unwrap()).unwrap();
        assert_eq!(c.dims(), [batch, m, n]);
        for i in 0..batch {
            let packed =
                PackedLinear::new(&b.narrow(0, i, 1).unwrap().reshape([n, k]).unwrap(), DType::F32)
                    .unwrap();
            let row = linear(&a.narrow(0, i, 1).unwrap(), &packed, Epilogue::default()).unwrap();
            assert_eq!(bits(&c.narrow(0, i, 1).unwrap()), bits(&row));
        }
        let one = b.narrow(0, 0, 1).unwrap().reshape([n, k]).unwrap().transpose(0, 1).unwrap();
        let first = matmul(&a, &one).unwrap().narrow(0, 0, 1).unwrap();
        assert_eq!(bits(&first), bits(&c.narrow(0, 0, 1).unwrap()));
    }

    #[test]
    fn not_a_number_stays_in_its_row() {
        let mut x = noise(9 * 40, 12);
        x[4 * 40 + 39] = f64::NAN;
        let x = Tensor::from_vec(x, [9, 40]).unwrap().to_dtype(DType::F32).unwrap();
        let packed = PackedLinear::new(&random([20, 40], 13, DType::F32), DType::F32).unwrap();
        for act in [Activation::Identity, Activation::Silu, Activation::Gelu, Activation::QuickGelu]
        {
            let y = values(&linear(&x, &packed, Epilogue { act, ..Default::default() }).unwrap());
            assert!(y.iter().enumerate().all(|(i, y)| y.is_nan() == (i / 20 == 4)));
        }
    }

    #[test]
    fn empty_products() {
        let packed = PackedLinear::new(&random([5, 0], 1, DType::F32), DType::F32).unwrap();
        let bias = random([5], 2, DType::F32);
        let y =
            linear(&random([2, 0], 3, DType::F32), &packed, Epilogue::bias(Some(&bias))).unwrap();
        assert_eq!(values(&y), values(&bias).repeat(2));
        let packed = PackedLinear::new(&random([5, 3], 1, DType::F32), DType::F32).unwrap();
        assert!(
            linear(&random([0, 3], 3, DType::F32), &packed, Epilogue::default())
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let packed = PackedLinear::new(&random([5, 3], 1, DType::F32), DType::F32).unwrap();
        let x = random([2, 3], 2, DType::F32);
        let wrong = random([2, 3], 3, DType::F32);
        assert!(linear(&random([2, 4], 2, DType::F32), &packed, Epilogue::default()).is_err());
        assert!(linear(&random([2, 3], 2, DType::BF16), &packed, Epilogue::default()).is_err());
        assert!(linear(&x, &packed, Epilogue::bias(Some(&wrong))).is_err());
        assert!(
            linear(&x, &packed, Epilogue { residual: Some(&wrong), ..Default::default() }).is_err()
        );
        assert!(
            linear(&x, &packed, Epilogue { add_channel: Some(&wrong), ..Default::default() })
                .is_err()
        );
        assert!(PackedLinear::new(&random([5], 1, DType::F32), DType::F32).is_err());
        assert!(PackedLinear::new(&x, DType::U8).is_err());
        assert!(matmul(&x, &wrong).is_err());
        assert!(matmul(&random([3], 1, DType::F32), &wrong).is_err());
    }
}
