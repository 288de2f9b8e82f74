//! Operations on each element by itself. Kernels: `kernels/elementwise.cu`.
//!
//! All are computed in f32 (f64 for f64) and rounded once, and an element's bits depend on nothing but
//! that element of the inputs.

mod cast;
mod combination;
mod geglu;
mod relu;

use bytemuck::NoUninit;

use super::activation::{Map, activation_gradient, with_map};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels};
use super::reduce::sum;
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{Simd, as_acc, as_acc_mut, narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, Real, Tensor};

pub use super::activation::Activation;
use cast::Cast;
use combination::LinearCombination;
use geglu::Geglu;
pub(super) use geglu::geglu_gradient;
use relu::Relu;

/// Elements that one thread takes at a time: 64 KiB of f32, a fraction of a core's second cache.
const CHUNK: usize = 1 << 14;
/// Elements that are widened, computed and narrowed together: f32 blocks of these stay in the first cache.
const BLOCK: usize = 512;

kernels! {
    fn add(y: Out, a: In, b: In, dims: ZipDims);
    fn sub(y: Out, a: In, b: In, dims: ZipDims);
    fn mul(y: Out, a: In, b: In, dims: ZipDims);
    fn scale(y: Out, x: In, dims: ScaleDims);
    fn clamp(y: Out, x: In, dims: ClampDims);
    fn clamp_gradient(dx: Out, x: In, grad: In, dims: ClampDims);
    fn relu_gradient(dx: Out, y: In, grad: In, dims: MapDims);
    fn linear_combination(y: Out, x: Array<In, 8>, dims: LinearCombinationDims);
    fn silu(y: Out, x: In, dims: MapDims);
    fn gelu(y: Out, x: In, dims: MapDims);
    fn gelu_tanh(y: Out, x: In, dims: MapDims);
    fn quick_gelu(y: Out, x: In, dims: MapDims);
    fn tanh(y: Out, x: In, dims: MapDims);
    /// A block takes whole rows.
    fn geglu(y: Out, x: In, dims: GegluDims);
    fn geglu_gradient(dx: Out, x: In, grad: In, dims: GegluDims);
    fn cast(y: Out<U>, x: In<T>, dims: MapDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct MapDims {
    len: u64,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ZipDims {
    len: u64,
    period: u64,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ScaleDims {
    len: u64,
    factor: f32,
    reserved: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ClampDims {
    len: u64,
    low: f32,
    high: f32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct LinearCombinationDims {
    len: u64,
    coefficients: [f32; 8],
    terms: u32,
    reserved: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct GegluDims {
    rows: u64,
    columns: u32,
    reserved: u32,
}

/// 256 threads, each moving 16 bytes: at 36 registers or fewer (nvcc 13, sm_80) six such blocks share an SM.
/// Beyond 4096 blocks (several waves on the largest card) the threads take more turns instead.
pub(super) fn spread(bytes: usize) -> LaunchConfig {
    let blocks = bytes.div_ceil(256 * 16).clamp(1, 4096);
    LaunchConfig::new([blocks as u32, 1], 256)
}

/// `x * sigmoid(x)` (SiLU, also called swish; Elfwing et al. 2017).
///
/// # Errors
/// `DType` for integer tensors; likewise for the other functions of this module.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Silu)
}

/// `x * Phi(x)` with the normal distribution's exact Phi, by erf (GELU; Hendrycks & Gimpel 2016).
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::Gelu)
}

/// GELU by its tanh approximation: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::GeluTanh)
}

/// `x * sigmoid(1.702 x)`: the GELU of CLIP.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    activate(x, Activation::QuickGelu)
}

/// The activation of each element.
pub fn activate(x: &Tensor, activation: Activation) -> Result<Tensor> {
    apply(Unary::Activation(activation), &tensors(&[x]))
}

/// `x` where it is above 0, else 0; NaN stays NaN. At 0 the gradient is 0, as PyTorch has it.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply(Relu, &tensors(&[x]))
}

/// `factor * x`.
pub fn scale(x: &Tensor, factor: f32) -> Result<Tensor> {
    apply(Unary::Scale(factor), &tensors(&[x]))
}

/// `x` limited to `low..=high`; NaN stays NaN.
pub fn clamp(x: &Tensor, low: f32, high: f32) -> Result<Tensor> {
    apply(Unary::Clamp { low, high }, &tensors(&[x]))
}

/// The hyperbolic tangent of `x`.
pub fn tanh(x: &Tensor) -> Result<Tensor> {
    apply(Unary::Tanh, &tensors(&[x]))
}

/// `a + b`; `b` has the shape of `a` or its last dimensions, and is then repeated.
///
/// # Errors
/// `Shape` when `b` does not fit, `DType` when the dtypes differ; likewise for [`sub`] and [`mul`].
pub fn add(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply(Binary::Add, &tensors(&[a, b]))
}

/// `a - b`; shapes as for [`add`].
pub fn sub(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply(Binary::Sub, &tensors(&[a, b]))
}

/// `a * b`; shapes as for [`add`].
pub fn mul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    apply(Binary::Mul, &tensors(&[a, b]))
}

/// `c0 x0 + c1 x1 + ...` in this order, each product and each sum rounded to f32 as PyTorch rounds them.
/// The whole update of a sampler's step, in one pass over memory.
///
/// # Errors
/// `Shape` when there is no term or the shapes differ, `DType` when the dtypes differ.
pub fn linear_combination(terms: &[(f32, &Tensor)]) -> Result<Tensor> {
    let (coefficients, tensors): (Vec<f32>, Vec<&Tensor>) = terms.iter().copied().unzip();
    apply(LinearCombination { coefficients }, &super::tensors(&tensors))
}

/// `a * gelu(b)` where `a` and `b` are the halves of the last dimension: [.., 2C] -> [.., C].
/// The gate of diffusers' `GEGLU` (Shazeer 2020, with the gate in the second half).
///
/// # Errors
/// `Shape` when the last dimension is odd.
pub fn geglu(x: &Tensor) -> Result<Tensor> {
    apply(Geglu, &tensors(&[x]))
}

/// `x` rounded to another floating-point dtype.
pub fn cast(x: &Tensor, dtype: DType) -> Result<Tensor> {
    if x.dtype() == dtype { Ok(x.clone()) } else { apply(Cast { dtype }, &tensors(&[x])) }
}

#[derive(Clone, Copy)]
struct Scale(f32);

impl Map for Scale {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, _: S, x: A) -> A {
        A::from_f64(f64::from(self.0)) * x
    }

    #[inline(always)]
    fn slope<S: Simd, A: Math>(self, _: S, _: A) -> A {
        A::from_f64(f64::from(self.0))
    }
}

#[derive(Clone, Copy)]
struct Clamp {
    low: f32,
    high: f32,
}

impl Map for Clamp {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, _: S, x: A) -> A {
        let (low, high) = (A::from_f64(f64::from(self.low)), A::from_f64(f64::from(self.high)));
        // Written so that NaN passes.
        let x = if x < low { low } else { x };
        if x > high { high } else { x }
    }

    #[inline(always)]
    fn slope<S: Simd, A: Math>(self, _: S, x: A) -> A {
        let (low, high) = (A::from_f64(f64::from(self.low)), A::from_f64(f64::from(self.high)));
        // As PyTorch has it: 1 at the bounds too.
        if low <= x && x <= high { A::ONE } else { A::ZERO }
    }
}

#[derive(Clone, Copy)]
struct Tanh;

impl Map for Tanh {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, s: S, x: A) -> A {
        x.vector_tanh(s)
    }

    #[inline(always)]
    fn slope<S: Simd, A: Math>(self, s: S, x: A) -> A {
        let y = x.vector_tanh(s);
        A::ONE - y * y
    }
}

/// Operations on one tensor.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Unary {
    /// [`activate`]
    Activation(Activation),
    /// [`scale`]
    Scale(f32),
    /// [`clamp`]
    Clamp {
        /// The least value.
        low: f32,
        /// The largest value.
        high: f32,
    },
    /// [`tanh`]
    Tanh,
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        match self {
            Self::Activation(activation) => match activation {
                Activation::Identity => "identity",
                Activation::Silu => "silu",
                Activation::Gelu => "gelu",
                Activation::GeluTanh => "gelu_tanh",
                Activation::QuickGelu => "quick_gelu",
            },
            Self::Scale(_) => "scale",
            Self::Clamp { .. } => "clamp",
            Self::Tanh => "tanh",
        }
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        require_float(self.name(), &inputs[0])?;
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, y) = (x.as_slice::<T>()?, out.as_mut_slice::<T>()?);
            match *self {
                Self::Activation(activation) => with_map!(activation, m => map(m, x, y)),
                Self::Scale(factor) => map(Scale(factor), x, y),
                Self::Clamp { low, high } => map(Clamp { low, high }, x, y),
                Self::Tanh => map(Tanh, x, y),
            }
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let config = spread(x.len() * x.dtype().size());
        let len = x.len() as u64;
        match *self {
            Self::Activation(activation) => {
                let launch = match activation {
                    Activation::Identity => {
                        let dims = ScaleDims { len, factor: 1.0, reserved: 0 };
                        return kernel::scale(config, out, &x, dims);
                    }
                    Activation::Silu => kernel::silu,
                    Activation::Gelu => kernel::gelu,
                    Activation::GeluTanh => kernel::gelu_tanh,
                    Activation::QuickGelu => kernel::quick_gelu,
                };
                launch(config, out, &x, MapDims { len })
            }
            Self::Scale(factor) => {
                kernel::scale(config, out, &x, ScaleDims { len, factor, reserved: 0 })
            }
            Self::Clamp { low, high } => {
                kernel::clamp(config, out, &x, ClampDims { len, low, high })
            }
            Self::Tanh => kernel::tanh(config, out, &x, MapDims { len }),
        }
    }

    fn saves(&self) -> Saves {
        match self {
            Self::Scale(_) => Saves::default(),
            Self::Tanh => Saves { inputs: &[], result: true },
            _ => Saves { inputs: &[0], result: false },
        }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        Ok(vec![Some(match *self {
            Self::Activation(activation) => activation_gradient(call.tensor(0)?, grad, activation)?,
            Self::Scale(factor) => scale(grad, factor)?,
            Self::Clamp { low, high } => {
                apply(ClampGradient(Clamp { low, high }), &tensors(&[call.tensor(0)?, grad]))?
            }
            Self::Tanh => {
                let y = call.output(0)?;
                sub(grad, &mul(grad, &mul(y, y)?)?)?
            }
        })])
    }
}

fn map<T: Float<Acc: Math>, M: Map>(m: M, x: &[T], y: &mut [T]) {
    for_each_chunk(y, CHUNK, |i, y| map_chunk(m, &x[i * CHUNK..][..y.len()], y));
}

simd! {
    fn map_chunk[T: Float<Acc: Math>, M: Map](s, m: M, x: &[T], y: &mut [T]) {
        if let (Some(x), Some(y)) = (as_acc(x), as_acc_mut(y)) {
            for (y, x) in y.iter_mut().zip(x) {
                *y = m.apply(s, *x);
            }
            return;
        }
        let mut buffer = [T::Acc::ZERO; BLOCK];
        for (x, y) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let v = &mut buffer[..x.len()];
            widen(x, v);
            for v in v.iter_mut() {
                *v = m.apply(s, *v);
            }
            narrow(v, y);
        }
    }
}

/// Operations on two tensors, the second repeated along the leading dimensions that it lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binary {
    /// [`add`]
    Add,
    /// [`sub`]
    Sub,
    /// [`mul`]
    Mul,
}

impl Op for Binary {
    fn name(&self) -> &'static str {
        match self {
            Self::Add => "add",
            Self::Sub => "sub",
            Self::Mul => "mul",
        }
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (a, b) = (&inputs[0], &inputs[1]);
        require_float(self.name(), a)?;
        require_dtype(self.name(), a.dtype(), b)?;
        if !a.dims().ends_with(b.dims()) {
            return Err(Error::shape(
                self.name(),
                format!(
                    "{} and {}: the second must be the first's last dimensions",
                    a.shape(),
                    b.shape()
                ),
            ));
        }
        Ok(vec![Meta::like(a)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let (a, b) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), a.dtype(), T => {
            let (a, b) = (a.as_slice::<T>()?, b.as_slice::<T>()?);
            let y = out.as_mut_slice::<T>()?;
            let zip = |at: usize, y: &mut [T]| {
                // A piece of `y` meets `b` from where the piece before left it, over and over.
                let mut done = 0;
                while done < y.len() {
                    let from = (at + done) % b.len();
                    let n = (b.len() - from).min(y.len() - done);
                    let (a, b, y) = (&a[at + done..][..n], &b[from..][..n], &mut y[done..][..n]);
                    match self {
                        Self::Add => zip_chunk(a, b, y, Add),
                        Self::Sub => zip_chunk(a, b, y, Sub),
                        Self::Mul => zip_chunk(a, b, y, Mul),
                    }
                    done += n;
                }
            };
            for_each_chunk(y, CHUNK, |i, y| zip(i * CHUNK, y));
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let (a, b) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let config = spread(a.len() * a.dtype().size());
        let dims = ZipDims { len: a.len() as u64, period: b.len() as u64 };
        match self {
            Self::Add => kernel::add(config, out, &a, &b, dims),
            Self::Sub => kernel::sub(config, out, &a, &b, dims),
            Self::Mul => kernel::mul(config, out, &a, &b, dims),
        }
    }

    fn saves(&self) -> Saves {
        match self {
            Self::Mul => Saves { inputs: &[0, 1], result: false },
            Self::Add | Self::Sub => Saves::default(),
        }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let of_a = call.wants(0).then(|| match self {
            Self::Add | Self::Sub => Ok(grad.clone()),
            Self::Mul => mul(grad, call.tensor(1)?),
        });
        let of_b = call.wants(1).then(|| {
            let of_each = match self {
                Self::Add => grad.clone(),
                Self::Sub => scale(grad, -1.0)?,
                Self::Mul => mul(grad, call.tensor(0)?)?,
            };
            // Summed over the dimensions that `b` was repeated along.
            let repeated = call.meta(1).map_or(0, |b| of_each.rank() - b.shape.len());
            sum(&of_each, &(0..repeated).collect::<Vec<_>>())
        });
        Ok(vec![of_a.transpose()?, of_b.transpose()?])
    }
}

/// A function of two elements, as [`Map`] is one of one.
pub(crate) trait Zip: Copy + Sync {
    fn apply<S: Simd, A: Math>(self, s: S, a: A, b: A) -> A;
}

macro_rules! zips {
    ($($name:ident = |$s:ident, $a:ident, $b:ident| $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;

        impl Zip for $name {
            #[inline(always)]
            fn apply<S: Simd, A: Math>(self, $s: S, $a: A, $b: A) -> A {
                $body
            }
        }
    )*};
}

zips! {
    Add = |_s, a, b| a + b;
    Sub = |_s, a, b| a - b;
    Mul = |_s, a, b| a * b;
}

simd! {
    fn zip_chunk[T: Float<Acc: Math>, Z: Zip](s, a: &[T], b: &[T], y: &mut [T], z: Z) {
        if let (Some(a), Some(b), Some(y)) = (as_acc(a), as_acc(b), as_acc_mut(y)) {
            for ((y, a), b) in y.iter_mut().zip(a).zip(b) {
                *y = z.apply(s, *a, *b);
            }
            return;
        }
        let mut wide_a = [T::Acc::ZERO; BLOCK];
        let mut wide_b = [T::Acc::ZERO; BLOCK];
        for ((a, b), y) in a.chunks(BLOCK).zip(b.chunks(BLOCK)).zip(y.chunks_mut(BLOCK)) {
            let (wa, wb) = (&mut wide_a[..a.len()], &mut wide_b[..a.len()]);
            widen(a, wa);
            widen(b, wb);
            for (a, b) in wa.iter_mut().zip(wb.iter()) {
                *a = z.apply(s, *a, *b);
            }
            narrow(wa, y);
        }
    }
}

/// `z(a, b)` of each element, for slices of one length.
pub(crate) fn zip_with<T: Float<Acc: Math>, Z: Zip>(a: &[T], b: &[T], y: &mut [T], z: Z) {
    for_each_chunk(y, CHUNK, |i, y| {
        let part = i * CHUNK..i * CHUNK + y.len();
        zip_chunk(&a[part.clone()], &b[part], y, z);
    });
}

/// Gradient of [`clamp`]; inputs `x`, `grad`.
#[derive(Clone, Copy)]
struct ClampGradient(Clamp);

impl Zip for ClampGradient {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, s: S, x: A, grad: A) -> A {
        self.0.slope(s, x) * grad
    }
}

impl Op for ClampGradient {
    fn name(&self) -> &'static str {
        "clamp_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Binary::Mul.infer(inputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), x.dtype(), T => {
            zip_with(x.as_slice::<T>()?, grad.as_slice()?, outputs[0].as_mut_slice()?, *self);
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let Clamp { low, high } = self.0;
        let dims = ClampDims { len: x.len() as u64, low, high };
        let config = spread(x.len() * x.dtype().size());
        kernel::clamp_gradient(config, &mut outputs[0], &x, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// An error unless `x` is of a floating-point dtype.
pub(crate) fn require_float(op: &'static str, x: &Tensor) -> Result<()> {
    if x.dtype().is_float() {
        return Ok(());
    }
    Err(Error::DType { op, expected: "f32, f16, bf16 or f64", found: x.dtype() })
}

/// An error unless `x` is of this dtype.
pub(crate) fn require_dtype(op: &'static str, dtype: DType, x: &Tensor) -> Result<()> {
    if x.dtype() == dtype {
        Ok(())
    } else {
        Err(Error::DType { op, expected: dtype.name(), found: x.dtype() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::math::erf_f64;
    use crate::ops::gradient::backward;
    use crate::ops::layout::concat;
    use crate::ops::testing::{
        assert_close, check, check_batch, check_gradient, check_nan, devices, random, shapes,
        values,
    };
    use crate::tensor::{Device, Shape};

    fn exact_gelu(x: f64) -> f64 {
        0.5 * x * (1.0 + erf_f64(x / 2f64.sqrt()))
    }

    type Unary1 = (&'static str, fn(&Tensor) -> Result<Tensor>, fn(f64) -> f64);

    const UNARY: [Unary1; 7] = [
        ("silu", silu, |x| x / (1.0 + (-x).exp())),
        ("gelu", gelu, exact_gelu),
        ("gelu_tanh", gelu_tanh, |x| {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }),
        ("quick_gelu", quick_gelu, |x| x / (1.0 + (-1.702 * x).exp())),
        ("scale", |x| scale(x, -0.375), |x| -0.375 * x),
        ("clamp", |x| clamp(x, -0.5, 1.25), |x| x.clamp(-0.5, 1.25)),
        ("tanh", tanh, f64::tanh),
    ];

    type BinaryOp = fn(&Tensor, &Tensor) -> Result<Tensor>;
    const BINARY: [(&str, BinaryOp); 3] = [("add", add), ("sub", sub), ("mul", mul)];

    #[test]
    fn unary_operations_equal_their_formulas() {
        for (name, op, formula) in UNARY {
            for shape in [&[1][..], &[3, 7], &[2, 65, 31], &[1, 513]] {
                // |x| <= 8: x/2 times the error of 1 + erf(x), and a handful of roundings.
                let x = scale(&random(shape, 3), 4.0).unwrap();
                check(
                    name,
                    &[x],
                    16.0,
                    |x| op(x[0]),
                    |x| x[0].iter().map(|&x| formula(x)).collect(),
                );
            }
            let batch = random([7, 3, 1, 171], 4);
            check_batch(name, &batch, op);
            for at in [0, 1700, 3590] {
                check_nan(name, &batch, at, op);
            }
        }
    }

    #[test]
    fn binary_operations_equal_their_formulas() {
        type Case = (&'static str, fn(&Tensor, &Tensor) -> Result<Tensor>, fn(f64, f64) -> f64);
        let cases: [Case; 3] =
            [("add", add, |a, b| a + b), ("sub", sub, |a, b| a - b), ("mul", mul, |a, b| a * b)];
        for (name, op, formula) in cases {
            let shapes = [
                (&[2, 5, 33][..], &[2, 5, 33][..]),
                (&[3, 7, 5], &[7, 5]),
                (&[3, 7, 5], &[5]),
                (&[4], &[][..]),
            ];
            for (a, b) in shapes {
                let inputs = [random(a, 5), random(b, 6)];
                let n = inputs[1].len();
                check(
                    name,
                    &inputs,
                    2.0,
                    |x| op(x[0], x[1]),
                    |x| x[0].iter().enumerate().map(|(i, &a)| formula(a, x[1][i % n])).collect(),
                );
            }
            let b = random([3, 41], 7);
            check_batch(name, &random([7, 3, 41], 8), |a| {
                op(a, &b.to_dtype(a.dtype())?.to_device(a.device())?)
            });
            check_nan(name, &b, 60, |a| op(a, &b.to_device(a.device())?));
            check_nan(name, &b, 60, |a| op(&b.to_device(a.device())?, a));
        }
        // Larger than a chunk, both whole and repeated.
        let a = random([2, 3 * CHUNK + 5], 9);
        let b = a.narrow(0, 1, 1).unwrap().reshape([3 * CHUNK + 5]).unwrap();
        let sum = add(&a, &b).unwrap();
        let expected: Vec<f64> =
            values(&a).iter().zip(values(&b).iter().cycle()).map(|(a, b)| a + b).collect();
        assert_close(&sum, &expected, 1.0, "add of several chunks");
    }

    #[test]
    fn geglu_gates_with_the_second_half() {
        for shape in [&[2][..], &[3, 10], &[2, 5, 1030]] {
            let c = shape[shape.len() - 1] / 2;
            check(
                "geglu",
                &[random(shape, 10)],
                8.0,
                |x| geglu(x[0]),
                |x| {
                    x[0].chunks(2 * c)
                        .flat_map(|row| (0..c).map(|i| row[i] * exact_gelu(row[c + i])))
                        .collect()
                },
            );
        }
        let batch = random([7, 3, 62], 11);
        check_batch("geglu", &batch, geglu);
        check_nan("geglu", &batch, 40, geglu);
        check_nan("geglu", &batch, 5, geglu);
    }

    #[test]
    fn linear_combinations_of_any_length() {
        for n in 1..=8 {
            let inputs: Vec<Tensor> = (0..n).map(|i| random([3, 5, 70], 12 + i)).collect();
            let c = |i: usize| 0.75 - 0.125 * i as f32;
            check(
                "linear_combination",
                &inputs,
                8.0,
                |x| {
                    linear_combination(
                        &x.iter().enumerate().map(|(i, t)| (c(i), *t)).collect::<Vec<_>>(),
                    )
                },
                |x| {
                    (0..x[0].len())
                        .map(|j| (0..x.len()).map(|i| f64::from(c(i)) * x[i][j]).sum())
                        .collect()
                },
            );
        }
        // A launch of the kernel takes eight terms, the CPU's form any number.
        let x = random([33], 21);
        let nine: Vec<_> = (0..9).map(|i| (0.5 + i as f32, &x)).collect();
        let expected: Vec<f64> = values(&x).iter().map(|x| 40.5 * x).collect();
        assert_close(&linear_combination(&nine).unwrap(), &expected, 8.0, "nine terms");
        for device in devices().skip(1) {
            let x = x.to_device(device).unwrap();
            let error = linear_combination(&[(0.5, &x); 9]).unwrap_err().to_string();
            assert!(error.contains("at most 8 tensors, not 9"), "{error}");
        }
        let unlike = linear_combination(&[(1.0, &x), (1.0, &random([32], 21))]);
        assert!(matches!(unlike, Err(Error::Shape { op: "linear_combination", .. })), "{unlike:?}");
        let batch = random([7, 45], 20);
        check_batch("linear_combination", &batch, |x| linear_combination(&[(0.3, x), (1.7, x)]));
        check_nan("linear_combination", &batch, 44, |x| {
            linear_combination(&[(0.3, &batch.to_device(x.device())?), (0.0, x)])
        });
    }

    /// Beyond 4096 blocks a thread takes several turns.
    #[test]
    fn every_element_of_a_large_tensor_is_written() {
        let n = 4096 * 256 * 4 + 2800; // 16 bytes a thread, and then some take a second turn
        let (x, b) = (random([n], 22), random([n], 23));
        let rows = random([5001, 6], 24);
        let half = cast(&rows, DType::F16).unwrap();
        let all = |x: &Tensor, b: &Tensor, rows: &Tensor, half: &Tensor| {
            [
                scale(x, -0.375).unwrap(),
                add(x, b).unwrap(),
                linear_combination(&[(0.3, x), (1.7, b)]).unwrap(),
                mul(rows, rows).unwrap(),
                geglu(half).unwrap(),
            ]
        };
        let expected = all(&x, &b, &rows, &half);
        for device in devices().skip(1) {
            let [x, b, rows, half] = [&x, &b, &rows, &half].map(|t| t.to_device(device).unwrap());
            let found = all(&x, &b, &rows, &half);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                // Both devices round these alike, but for the exponential in geglu: one unit of f16.
                let tolerance = if i == 4 { 2f64.powi(-10) } else { 0.0 };
                for (at, (f, e)) in values(found).iter().zip(values(expected)).enumerate() {
                    assert!(
                        (f - e).abs() <= tolerance * e.abs(),
                        "{i} on {device}, {at}: {f}, {e}"
                    );
                }
            }
        }
    }

    #[test]
    fn casts_round_to_nearest_even() {
        use half::{bf16, f16};
        // Ties, the largest f16, a subnormal f16, NaN, and what only doubles tell apart.
        let special =
            [1.0, 257.0 / 256.0, 259.0 / 256.0, -2.5, 65504.0, 1e-8, f64::NAN, 1.0 + 1e-12];
        let x = Tensor::from_slice(&special, [1, 8]).unwrap();
        let x = concat(&[&x, &random([70, 8], 21).to_dtype(DType::F64).unwrap()], 0).unwrap();
        let types = [DType::F32, DType::F16, DType::BF16, DType::F64];
        for (a, b) in types.into_iter().flat_map(|a| types.map(|b| (a, b))) {
            let from = x.to_dtype(a).unwrap();
            let expected: Vec<u64> = values(&from)
                .into_iter()
                .map(|x| match b {
                    DType::F64 => x,
                    DType::F32 => f64::from(x as f32),
                    DType::F16 => f16::from_f32(x as f32).to_f64(),
                    _ => bf16::from_f32(x as f32).to_f64(),
                })
                .map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits())
                .collect();
            for device in devices() {
                if device != Device::Cpu && (a == DType::F64 || b == DType::F64) {
                    continue; // kernels do not compute in doubles
                }
                let got = values(&cast(&from.to_device(device).unwrap(), b).unwrap());
                let got = got.into_iter().map(|x| if x.is_nan() { f64::NAN } else { x }.to_bits());
                assert_eq!(got.collect::<Vec<_>>(), expected, "{a} to {b} on {device}");
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let given = [&[1][..], &[7], &[3, 5, 33]].map(Shape::new);
        for shape in given.into_iter().chain(shapes::<3>().map(Shape::from)) {
            let x = random(shape, 31);
            let one = std::slice::from_ref(&x);
            for activation in Activation::ALL {
                check_gradient(&format!("{activation:?}"), one, |x| activate(x[0], activation));
            }
            check_gradient("scale", one, |x| scale(x[0], -0.7));
            // Steps of 1/8 between bounds at odd sixteenths: no difference reaches across a kink.
            let steps =
                x.to_vec::<f32>().unwrap().iter().map(|x| (8.0 * x).round() / 8.0).collect();
            let steps = [Tensor::from_vec(steps, shape).unwrap()];
            check_gradient("clamp", &steps, |x| clamp(x[0], -0.6875, 1.0625));
            let beside = Tensor::full(shape, 0.0625, DType::F32, Device::Cpu).unwrap();
            check_gradient("relu", &[sub(&steps[0], &beside).unwrap()], |x| relu(x[0]));
            let others = [x.clone(), random(shape, 32), random(shape, 33)];
            check_gradient("linear_combination", &others, |x| {
                linear_combination(&[(0.5, x[0]), (-1.25, x[1]), (2.0, x[2])])
            });
            for (name, op) in BINARY {
                check_gradient(name, &others[..2], |x| op(x[0], x[1]));
                // One tensor in both places: its gradients add up.
                check_gradient(name, &others[..1], |x| op(x[0], x[0]));
            }
        }
        for (a, b) in
            [(&[3, 5, 7][..], &[7][..]), (&[3, 5, 7], &[5, 7]), (&[4, 1], &[1]), (&[2, 3], &[])]
        {
            for (name, op) in BINARY {
                check_gradient(name, &[random(a, 34), random(b, 35)], |x| op(x[0], x[1]));
            }
        }
        let given = [&[2][..], &[3, 14], &[2, 5, 66]].map(Shape::new);
        let even = shapes::<3>().map(|[a, b, c]| Shape::from([a, b, 2 * c]));
        for shape in given.into_iter().chain(even) {
            check_gradient("geglu", &[random(shape, 36)], |x| geglu(x[0]));
        }
    }

    #[test]
    fn a_gradient_passes_through_a_cast_in_the_dtype_of_the_input() {
        let x = random([5, 7], 37).variable();
        let half = x.to_dtype(DType::BF16).unwrap();
        let y = scale(&half.to_dtype(DType::F32).unwrap(), 3.0).unwrap();
        let gradients = backward(sum(&y, &[0, 1]).unwrap()).unwrap();
        let gradient = gradients.get(&x).unwrap();
        assert_eq!(gradient.dtype(), DType::F32);
        assert!(gradient.to_vec::<f32>().unwrap().iter().all(|&g| g == 3.0));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (a, ids) = (random([2, 3], 1), Tensor::from_vec(vec![1i64, 2], [2]).unwrap());
        assert!(matches!(silu(&ids), Err(Error::DType { .. })));
        assert!(matches!(add(&ids, &ids), Err(Error::DType { .. })));
        assert!(matches!(add(&a, &random([2], 1)), Err(Error::Shape { .. })));
        assert!(matches!(add(&random([3], 1), &a), Err(Error::Shape { .. })));
        assert!(matches!(add(&a, &a.to_dtype(DType::F16).unwrap()), Err(Error::DType { .. })));
        assert!(matches!(geglu(&a), Err(Error::Shape { .. })));
        assert!(matches!(geglu(&random(&[][..], 1)), Err(Error::Shape { .. })));
        assert!(matches!(linear_combination(&[]), Err(Error::Shape { .. })));
        assert!(matches!(
            linear_combination(&[(1.0, &a), (1.0, &random([3, 2], 1))]),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(cast(&a, DType::I64), Err(Error::DType { .. })));
        assert!(silu(&random([0, 3], 1)).unwrap().is_empty());
        assert!(add(&random([0, 3], 1), &random([3], 1)).unwrap().is_empty());
    }
}
