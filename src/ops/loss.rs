//! What training minimises: distances between tensors, and the divergence of a diagonal Gaussian from the standard one.
//!
//! Every loss is one number for each entry of dimension 0, so that a task can weigh images by themselves. Sums are in
//! f64 over blocks in f32 (f64 for f64; f32 on a GPU); losses are f32 (f64 for f64). Kernels: `kernels/loss.cu`.

use bytemuck::NoUninit;

use super::elementwise::{require_dtype, require_float, scale, spread};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{narrow, simd, sum, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Float, Real, Shape, Tensor};

kernels! {
    /// A block an entry.
    fn distance(loss: Out<f32>, x: In, target: In, dims: LossDims);
    fn distance_gradient(dx: Out, x: In, target: In, grad: In<f32>, dims: LossDims);
    /// A block an entry.
    fn kl_divergence(loss: Out<f32>, mean: In, logvar: In, dims: LossDims);
    fn gaussian_by_element(
        y: Out,
        a: In,
        b: In,
        c: In,
        factors: Array<In<f32>, 1>,
        dims: GaussianDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct LossDims {
    each: u32,
    kind: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct GaussianDims {
    len: u64,
    each: u32,
    formula: u32,
}

/// The launch of a loss of so many entries: 256 threads each.
fn by_entries(op: &'static str, entries: usize) -> Result<LaunchConfig> {
    Ok(LaunchConfig::new([to_u32(op, entries)?, 1], 256))
}

/// Elements whose distances are taken together: three blocks of f32 in the first cache.
const BLOCK: usize = 1024;

/// Mean of `(x - target)^2` over each entry of dimension 0: [B, ..] -> `[B]`.
///
/// # Errors
/// `Shape` and `DType` when the tensors differ or have no dimension; likewise below.
pub fn squared_error(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    apply(Distance { kind: Kind::Squared }, &tensors(&[x, target]))
}

/// Mean of `|x - target|` over each entry of dimension 0: [B, ..] -> `[B]`. Where they are equal its gradient is 0.
pub fn absolute_error(x: &Tensor, target: &Tensor) -> Result<Tensor> {
    apply(Distance { kind: Kind::Absolute }, &tensors(&[x, target]))
}

/// Divergence of the Gaussian with this mean and logarithm of the variance from the standard one (Kingma & Welling
/// 2014, appendix B), summed over each entry of dimension 0: `sum(mean^2 + e^logvar - 1 - logvar) / 2`, [B, ..] -> `[B]`.
pub fn kl_divergence(mean: &Tensor, logvar: &Tensor) -> Result<Tensor> {
    apply(KlDivergence, &tensors(&[mean, logvar]))
}

/// `mean + e^(logvar / 2) noise`: a sample of that Gaussian, given one of the standard one.
pub fn sample_gaussian(mean: &Tensor, logvar: &Tensor, noise: &Tensor) -> Result<Tensor> {
    apply(SampleGaussian, &tensors(&[mean, logvar, noise]))
}

/// The numbers are the kernels'.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Squared,
    Absolute,
}

impl Kind {
    #[inline(always)]
    fn of<A: Math>(self, difference: A) -> A {
        match self {
            Self::Squared => difference * difference,
            Self::Absolute => difference.abs(),
        }
    }

    #[inline(always)]
    fn slope<A: Math>(self, difference: A) -> A {
        match self {
            Self::Squared => difference + difference,
            Self::Absolute if difference > A::ZERO => A::ONE,
            Self::Absolute if difference < A::ZERO => -A::ONE,
            // 0, and NaN.
            Self::Absolute => difference,
        }
    }
}

/// An error unless all are [B, ..] of one shape and floating-point dtype; otherwise `[B]` in what losses are held in.
fn by_entry(op: &'static str, inputs: &Inputs) -> Result<Meta> {
    let first = &inputs[0];
    require_float(op, first)?;
    for t in inputs.tensors() {
        require_dtype(op, first.dtype(), t)?;
        if t.shape() != first.shape() || t.rank() == 0 {
            return Err(Error::shape(op, format!("{} and {}", first.shape(), t.shape())));
        }
    }
    let dtype = if first.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
    Ok(Meta { shape: Shape::new(&[first.dim(0)]), dtype })
}

/// Inputs `x`, `target`.
#[derive(Clone, Copy, Debug)]
struct Distance {
    kind: Kind,
}

impl Op for Distance {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Squared => "squared_error",
            Kind::Absolute => "absolute_error",
        }
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![by_entry(self.name(), inputs)?])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, target) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, target) = (x.as_slice::<T>()?, target.as_slice::<T>()?);
            let losses = outputs[0].as_mut_slice::<<T as Float>::Acc>()?;
            let n = x.len() / losses.len();
            for_each_chunk(losses, 1, |i, loss| {
                let sum = distance(&x[i * n..][..n], &target[i * n..][..n], self.kind);
                loss[0] = Real::from_f64(sum / n as f64);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, target, losses) =
            (inputs[0].contiguous()?, inputs[1].contiguous()?, &mut outputs[0]);
        let each = to_u32(self.name(), x.len() / losses.len())?;
        let dims = LossDims { each, kind: self.kind as u32 };
        kernel::distance(by_entries(self.name(), losses.len())?, losses, &x, &target, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let gradient = DistanceGradient { kind: self.kind };
        let of_x = apply(gradient, &tensors(&[call.tensor(0)?, call.tensor(1)?, grad]))?;
        let of_target = call.wants(1).then(|| scale(&of_x, -1.0)).transpose()?;
        Ok(vec![call.wants(0).then_some(of_x), of_target])
    }
}

/// Inputs `x`, `target`, `grad` `[B]`.
struct DistanceGradient {
    kind: Kind,
}

impl Op for DistanceGradient {
    fn name(&self) -> &'static str {
        "distance_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, target) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let grad = inputs[2].contiguous()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, target) = (x.as_slice::<T>()?, target.as_slice::<T>()?);
            let grad = grad.as_slice::<<T as Float>::Acc>()?;
            let n = x.len() / grad.len();
            for_each_chunk(outputs[0].as_mut_slice::<T>()?, n, |i, dx| {
                let factor = Real::from_f64(grad[i].to_f64() / n as f64);
                slopes(self.kind, factor, &x[i * n..][..n], &target[i * n..][..n], dx);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [x, target, grad] = [0, 1, 2].map(|i| inputs[i].contiguous());
        let (x, target, grad) = (x?, target?, grad?);
        let each = x.len() / grad.len();
        let dims = LossDims { each: to_u32(self.name(), each)?, kind: self.kind as u32 };
        let grid = [each.div_ceil(4 * 256).min(64) as u32, to_u32(self.name(), grad.len())?];
        let config = LaunchConfig::new(grid, 256);
        kernel::distance_gradient(config, &mut outputs[0], &x, &target, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

simd! {
    fn distance[T: Float<Acc: Math>](_s, x: &[T], target: &[T], kind: Kind) -> f64 {
        let mut total = 0.0;
        let (mut a, mut b) = ([T::Acc::ZERO; BLOCK], [T::Acc::ZERO; BLOCK]);
        for (x, target) in x.chunks(BLOCK).zip(target.chunks(BLOCK)) {
            let (a, b) = (&mut a[..x.len()], &mut b[..x.len()]);
            widen(x, a);
            widen(target, b);
            for (a, b) in a.iter_mut().zip(b.iter()) {
                *a = kind.of(*a - *b);
            }
            total += sum(a, |x| x).to_f64();
        }
        total
    }
}

simd! {
    fn slopes[T: Float<Acc: Math>](_s, kind: Kind, factor: T::Acc, x: &[T], target: &[T], dx: &mut [T]) {
        let (mut a, mut b) = ([T::Acc::ZERO; BLOCK], [T::Acc::ZERO; BLOCK]);
        for ((x, target), dx) in x.chunks(BLOCK).zip(target.chunks(BLOCK)).zip(dx.chunks_mut(BLOCK)) {
            let (a, b) = (&mut a[..x.len()], &mut b[..x.len()]);
            widen(x, a);
            widen(target, b);
            for (a, b) in a.iter_mut().zip(b.iter()) {
                *a = factor * kind.slope(*a - *b);
            }
            narrow(a, dx);
        }
    }
}

/// Inputs `mean`, `logvar`.
struct KlDivergence;

impl Op for KlDivergence {
    fn name(&self) -> &'static str {
        "kl_divergence"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![by_entry(self.name(), inputs)?])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (mean, logvar) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), mean.dtype(), T => {
            let (mean, logvar) = (mean.as_slice::<T>()?, logvar.as_slice::<T>()?);
            let losses = outputs[0].as_mut_slice::<<T as Float>::Acc>()?;
            let n = mean.len() / losses.len();
            for_each_chunk(losses, 1, |i, loss| {
                let entry = mean[i * n..][..n].iter().zip(&logvar[i * n..][..n]);
                let terms = entry.map(|(mean, logvar)| {
                    let (mean, logvar) = (mean.to_acc().to_f64(), logvar.to_acc().to_f64());
                    mean * mean + logvar.exp() - 1.0 - logvar
                });
                loss[0] = Real::from_f64(0.5 * terms.sum::<f64>());
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (mean, logvar, losses) =
            (inputs[0].contiguous()?, inputs[1].contiguous()?, &mut outputs[0]);
        let dims = LossDims { each: to_u32(self.name(), mean.len() / losses.len())?, kind: 0 };
        kernel::kl_divergence(by_entries(self.name(), losses.len())?, losses, &mean, &logvar, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (mean, logvar) = (call.tensor(0)?, call.tensor(1)?);
        // mean g, and (e^logvar - 1) g / 2
        let by = |formula| by_element(self.name(), [mean, logvar, mean], Some(grad), formula);
        let of_mean = by(Formula::DivergenceByMean)?;
        Ok(vec![Some(of_mean), Some(by(Formula::DivergenceByLogvar)?)])
    }
}

/// Inputs `mean`, `logvar`, `noise`.
struct SampleGaussian;

impl Op for SampleGaussian {
    fn name(&self) -> &'static str {
        "sample_gaussian"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        by_entry(self.name(), inputs)?;
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let of = [&inputs[0], &inputs[1], &inputs[2]];
        fill_by_element(self.name(), of, None, Formula::Sample, &mut outputs[0])
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let of = [&inputs[0], &inputs[1], &inputs[2]];
        fill_by_element(self.name(), of, None, Formula::Sample, &mut outputs[0])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1, 2], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (logvar, noise) = (call.tensor(1)?, call.tensor(2)?);
        let by = |formula| by_element(self.name(), [grad, logvar, noise], None, formula);
        let of_logvar = by(Formula::SampleByLogvar)?;
        let of_noise = call.wants(2).then(|| by(Formula::SampleByNoise));
        Ok(vec![Some(grad.clone()), Some(of_logvar), of_noise.transpose()?])
    }
}

/// What is computed of each element of three tensors. The numbers are the kernels'.
#[derive(Clone, Copy, Debug)]
enum Formula {
    /// Of a mean: itself.
    DivergenceByMean,
    /// Of a mean and a logarithm.
    DivergenceByLogvar,
    /// Of a mean, a logarithm and noise.
    Sample,
    /// Of a gradient, a logarithm and noise.
    SampleByLogvar,
    /// Of a gradient and a logarithm.
    SampleByNoise,
}

impl Formula {
    fn of(self, a: f64, b: f64, c: f64) -> f64 {
        match self {
            Self::DivergenceByMean => a,
            Self::DivergenceByLogvar => 0.5 * b.exp_m1(),
            Self::Sample => a + (0.5 * b).exp() * c,
            Self::SampleByLogvar => a * c * 0.5 * (0.5 * b).exp(),
            Self::SampleByNoise => a * (0.5 * b).exp(),
        }
    }
}

/// A formula of each element (in f64 on the CPU), times the factor of its entry of dimension 0: for latents, which are
/// small.
fn by_element(
    op: &'static str,
    of: [&Tensor; 3],
    factors: Option<&Tensor>,
    formula: Formula,
) -> Result<Tensor> {
    let mut out = Tensor::uninit(*of[0].shape(), of[0].dtype(), of[0].device())?;
    if !out.is_empty() {
        fill_by_element(op, of, factors, formula, &mut out)?;
    }
    Ok(out)
}

/// As [`by_element`], into memory that is there.
fn fill_by_element(
    op: &'static str,
    [a, b, c]: [&Tensor; 3],
    factors: Option<&Tensor>,
    formula: Formula,
    out: &mut Tensor,
) -> Result<()> {
    let (a, b, c) = (a.contiguous()?, b.contiguous()?, c.contiguous()?);
    let n = (a.len() / a.dim(0).max(1)).max(1);
    if out.device() != Device::Cpu {
        let factors = factors.map(Tensor::contiguous).transpose()?;
        let factors: Vec<&Tensor> = factors.iter().collect();
        let dims =
            GaussianDims { len: a.len() as u64, each: to_u32(op, n)?, formula: formula as u32 };
        let config = spread(a.len() * a.dtype().size());
        return kernel::gaussian_by_element(config, out, &a, &b, &c, &factors, dims);
    }
    let factors = factors.map(|t| t.to_dtype(DType::F64)?.to_vec::<f64>()).transpose()?;
    dispatch_float!(op, a.dtype(), T => {
        let (a, b, c) = (a.as_slice::<T>()?, b.as_slice::<T>()?, c.as_slice::<T>()?);
        for_each_chunk(out.as_mut_slice::<T>()?, n, |i, out| {
            let factor = factors.as_ref().map_or(1.0, |factors| factors[i]);
            let wide = |x: T| x.to_acc().to_f64();
            for (j, out) in out.iter_mut().enumerate() {
                let at = i * n + j;
                let value = formula.of(wide(a[at]), wide(b[at]), wide(c[at])) * factor;
                *out = T::from_acc(Real::from_f64(value));
            }
        });
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::linear_combination;
    use crate::ops::testing::{
        assert_close, check_gradient, check_nan, devices, random, shapes, values,
    };

    const SHAPES: [&[usize]; 5] = [&[1, 1], &[7, 3], &[2, 5, 3, 4], &[3, 1025], &[1, 2, 2, 700]];

    fn threes(shape: &[usize]) -> Tensor {
        Tensor::full(shape, 3.5, DType::F32, Device::Cpu).unwrap()
    }

    fn formula(of: [&Tensor; 2], f: impl Fn(f64, f64) -> f64, mean: bool) -> Vec<f64> {
        let [a, b] = of.map(values);
        let n = a.len() / of[0].dim(0);
        let entries = a.chunks(n).zip(b.chunks(n));
        let sums = entries.map(|(a, b)| a.iter().zip(b).map(|(a, b)| f(*a, *b)).sum::<f64>());
        sums.map(|sum| if mean { sum / n as f64 } else { sum }).collect()
    }

    #[test]
    fn losses_equal_their_formulas() {
        for shape in SHAPES {
            for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
                let [x, y] = [1, 2].map(|seed| random(shape, seed).to_dtype(dtype).unwrap());
                let places = devices().filter(|d| *d == Device::Cpu || dtype != DType::F64);
                for (x, y) in places.map(|d| (x.to_device(d).unwrap(), y.to_device(d).unwrap())) {
                    // Differences, squares and their sum are rounded, the last in some thirty steps of f32.
                    let check = |loss: Tensor, expected: Vec<f64>| {
                        assert_close(
                            &loss,
                            &expected,
                            64.0,
                            &format!("{shape:?} {dtype} {}", x.device()),
                        );
                    };
                    let squared = formula([&x, &y], |x, y| (x - y) * (x - y), true);
                    check(squared_error(&x, &y).unwrap(), squared);
                    check(
                        absolute_error(&x, &y).unwrap(),
                        formula([&x, &y], |x, y| (x - y).abs(), true),
                    );
                    let kl = formula([&x, &y], |m, l| 0.5 * (m * m + l.exp() - 1.0 - l), false);
                    check(kl_divergence(&x, &y).unwrap(), kl);
                }
            }
        }
        check_nan("squared_error", &random([2, 700], 1), 1399, |x| {
            squared_error(x, &random([2, 700], 2).to_device(x.device())?)
        });
        check_nan("absolute_error", &random([2, 700], 1), 3, |x| {
            absolute_error(x, &random([2, 700], 2).to_device(x.device())?)
        });
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let given = SHAPES.map(Shape::new);
        for shape in given.into_iter().chain(shapes::<3>().map(Shape::from)) {
            let [x, y, noise] = [3, 4, 5].map(|seed| random(shape, seed));
            let (pair, three) = ([x.clone(), y.clone()], [x, y, noise]);
            check_gradient("squared_error", &pair, |t| squared_error(t[0], t[1]));
            check_gradient("kl_divergence", &pair, |t| kl_divergence(t[0], t[1]));
            check_gradient("sample_gaussian", &three, |t| sample_gaussian(t[0], t[1], t[2]));
            // Away from where it has none: 3 and more apart.
            let apart = linear_combination(&[(0.25, &pair[1]), (1.0, &threes(&shape))]).unwrap();
            let far = [scale(&pair[0], 0.1).unwrap(), apart];
            check_gradient("absolute_error", &far, |t| absolute_error(t[0], t[1]));
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (a, b) = (random([2, 3], 1), random([3, 2], 2));
        assert!(matches!(squared_error(&a, &b), Err(Error::Shape { .. })));
        let half = a.to_dtype(DType::F16).unwrap();
        assert!(matches!(absolute_error(&a, &half), Err(Error::DType { .. })));
        let ids = Tensor::from_vec(vec![1i64], [1]).unwrap();
        assert!(matches!(kl_divergence(&ids, &ids), Err(Error::DType { .. })));
    }
}
