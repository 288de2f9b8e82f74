//! What ends a linear layer or a convolution before its result is stored.

use super::activation::{Activation, Map, activation_gradient, with_map};
use super::elementwise::scale;
use super::gradient::Call;
use super::reduce::sum;
use super::weight::Weight;
use super::{Inputs, Meta, Slot};
use crate::cpu::gemm::Finish;
use crate::cpu::math::Math;
use crate::cpu::simd::{self, simd};
use crate::error::{Error, Result};
use crate::tensor::{Element, Float, Real, Shape, Tensor};

/// Places of the inputs of an operation that multiplies by a weight.
pub(super) const X: usize = 0;
pub(super) const WEIGHT: usize = 1;
const BIAS: usize = 2;
const ADD_CHANNEL: usize = 3;
const RESIDUAL: usize = 4;

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

    /// The inputs of an operation that ends in this: places [`X`] to [`RESIDUAL`].
    pub(super) fn slots(&self, x: &'a Tensor, weight: &'a Weight) -> [Slot<'a>; 5] {
        [x.into(), weight.into(), self.bias.into(), self.add_channel.into(), self.residual.into()]
    }

    /// What is not a tensor.
    pub(super) fn settings(&self) -> Settings {
        Settings { act: self.act, scale: self.scale }
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

/// An [`Epilogue`] without its tensors, which are inputs of the operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Settings {
    act: Activation,
    scale: f32,
}

impl Settings {
    /// The epilogue of a call.
    pub(super) fn with<'a>(&self, inputs: &Inputs<'a>) -> Epilogue<'a> {
        Epilogue {
            bias: inputs.get(BIAS),
            add_channel: inputs.get(ADD_CHANNEL),
            residual: inputs.get(RESIDUAL),
            act: self.act,
            scale: self.scale,
        }
    }

    /// Inputs that [`Self::backward`] needs, those of the product before the activation.
    pub(super) const SAVED: &'static [usize] = &[X, WEIGHT, BIAS, ADD_CHANNEL];

    /// From the gradient of the result to those of the product itself, the bias, the addend and the residual.
    ///
    /// `product` gives the product with this epilogue: the activation's slope is that at its argument, which is
    /// computed again rather than kept.
    pub(super) fn backward(
        &self,
        call: &Call,
        grad: &Tensor,
        product: impl FnOnce(Epilogue) -> Result<Tensor>,
    ) -> Result<(Tensor, [Option<Tensor>; 3])> {
        let wanted = |place, f: &dyn Fn() -> Result<Tensor>| call.wants(place).then(f).transpose();
        let residual = call.wants(RESIDUAL).then(|| grad.clone());
        let mut g = if self.scale == 1.0 { grad.clone() } else { scale(grad, self.scale)? };
        if self.act != Activation::Identity {
            let (bias, add_channel) = (call.optional(BIAS), call.optional(ADD_CHANNEL));
            let before = product(Epilogue { bias, add_channel, ..Epilogue::default() })?;
            g = activation_gradient(&before, &g, self.act)?;
        }
        let n = g.dim(g.rank() - 1).max(1);
        let to_dtype_of = |place: usize, t: Tensor| match call.meta(place) {
            Some(meta) => t.to_dtype(meta.dtype),
            None => Ok(t),
        };
        let bias = wanted(BIAS, &|| to_dtype_of(BIAS, sum(&g.reshape([g.len() / n, n])?, &[0])?))?;
        let add_channel = wanted(ADD_CHANNEL, &|| {
            let images = images(g.shape());
            let by_image = g.reshape([images, g.len() / n / images.max(1), n])?; // [B, .., N]
            to_dtype_of(ADD_CHANNEL, sum(&by_image, &[1])?)
        })?;
        Ok((g, [bias, add_channel, residual]))
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
        for add in [bias, add].into_iter().flatten() {
            for (x, &add) in sums.iter_mut().zip(add) {
                *x += add;
            }
        }
        with_map!(act, map => {
            for x in sums.iter_mut() {
                *x = map.apply(s, *x);
            }
        });
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
