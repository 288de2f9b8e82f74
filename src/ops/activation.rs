//! Activations: their formulas and slopes, once for all operations that end in one. Kernels: `kernels/activation.cu`.
//!
//! A `Map` is a function of one element, as a type of its own, so that the loop over it is compiled for it
//! alone. Computed in f32 (f64 for f64); an element's bits depend on nothing but that element.

use bytemuck::NoUninit;

use super::gradient::Call;
use super::kernels::kernels;
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::simd::Simd;
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::ops::elementwise::{Zip, require_dtype, require_float, spread, zip_with};
use crate::tensor::Tensor;

kernels! {
    fn activation_gradient(dx: Out, x: In, grad: In, dims: ActivationDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ActivationDims {
    len: u64,
    activation: u32,
    reserved: u32,
}

/// A function of one element that layers apply. The numbers are the kernels'.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activation {
    /// x
    #[default]
    Identity,
    /// x * sigmoid(x), also called swish (Elfwing et al. 2017)
    Silu,
    /// x / 2 * (1 + erf(x / sqrt 2)) (Hendrycks & Gimpel 2016)
    Gelu,
    /// Its approximation by tanh, from the same paper: `x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))`.
    GeluTanh,
    /// Its approximation x * sigmoid(1.702 x), which CLIP was trained with.
    QuickGelu,
}

#[cfg(test)]
impl Activation {
    pub(crate) const ALL: [Self; 5] =
        [Self::Identity, Self::Silu, Self::Gelu, Self::GeluTanh, Self::QuickGelu];
}

/// A function of one element and its slope.
pub(crate) trait Map: Copy + Sync {
    /// The function's value at `x`.
    fn apply<S: Simd, A: Math>(self, s: S, x: A) -> A;

    /// Its derivative at `x`.
    fn slope<S: Simd, A: Math>(self, s: S, x: A) -> A;
}

macro_rules! maps {
    ($($name:ident: |$s:ident, $x:ident| $value:expr, slope: $slope:expr;)*) => {$(
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        impl Map for $name {
            #[inline(always)]
            fn apply<S: Simd, A: Math>(self, $s: S, $x: A) -> A {
                $value
            }

            #[inline(always)]
            fn slope<S: Simd, A: Math>(self, $s: S, $x: A) -> A {
                $slope
            }
        }
    )*};
}

/// sqrt(2 / pi)
const SQRT_2_OVER_PI: f64 = 0.797_884_560_802_865_4;
/// Of the cubic term in the tanh approximation.
const CUBIC: f64 = 0.044715;

maps! {
    Identity: |_s, x| x, slope: {
        let _ = x;
        A::ONE
    };
    Silu: |s, x| x / (A::ONE + (-x).vector_exp_normal(s)), slope: {
        let sigmoid = x.vector_sigmoid(s);
        sigmoid * (A::ONE + x * (A::ONE - sigmoid))
    };
    Gelu: |s, x| {
        let erf = (x * A::from_f64(std::f64::consts::FRAC_1_SQRT_2)).vector_erf(s);
        A::from_f64(0.5) * x * (A::ONE + erf)
    }, slope: {
        let half = A::from_f64(0.5);
        let erf = (x * A::from_f64(std::f64::consts::FRAC_1_SQRT_2)).vector_erf(s);
        // The normal distribution's density is sqrt(2 / pi) / 2 e^(-x^2 / 2).
        let density = half * A::from_f64(SQRT_2_OVER_PI) * (-(half * x * x)).vector_exp(s);
        half * (A::ONE + erf) + x * density
    };
    GeluTanh: |s, x| {
        let inner = A::from_f64(SQRT_2_OVER_PI) * (x + A::from_f64(CUBIC) * (x * x * x));
        A::from_f64(0.5) * x * (A::ONE + inner.vector_tanh(s))
    }, slope: {
        let half = A::from_f64(0.5);
        let inner = A::from_f64(SQRT_2_OVER_PI) * (x + A::from_f64(CUBIC) * (x * x * x));
        let of_inner = A::from_f64(SQRT_2_OVER_PI) * (A::ONE + A::from_f64(3.0 * CUBIC) * (x * x));
        let tanh = inner.vector_tanh(s);
        half * (A::ONE + tanh) + half * x * (A::ONE - tanh * tanh) * of_inner
    };
    QuickGelu: |s, x| x / (A::ONE + (A::from_f64(-1.702) * x).vector_exp_normal(s)), slope: {
        let sigmoid = (A::from_f64(1.702) * x).vector_sigmoid(s);
        sigmoid * (A::ONE + A::from_f64(1.702) * x * (A::ONE - sigmoid))
    };
}

/// `with_map!(activation, map => expression)`: the expression compiled for each activation's [`Map`].
macro_rules! with_map {
    ($activation:expr, $map:ident => $body:expr) => {{
        use $crate::ops::activation::{Activation, Gelu, GeluTanh, Identity, QuickGelu, Silu};
        match $activation {
            Activation::Identity => {
                let $map = Identity;
                $body
            }
            Activation::Silu => {
                let $map = Silu;
                $body
            }
            Activation::Gelu => {
                let $map = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $map = GeluTanh;
                $body
            }
            Activation::QuickGelu => {
                let $map = QuickGelu;
                $body
            }
        }
    }};
}
pub(crate) use with_map;

/// [`Activation`]'s gradient; inputs `x`, `grad`.
#[derive(Clone, Copy, Debug)]
struct ActivationGradient {
    activation: Activation,
}

/// `grad` times the slope at `x`.
#[derive(Clone, Copy)]
struct TimesSlope<M>(M);

impl<M: Map> Zip for TimesSlope<M> {
    #[inline(always)]
    fn apply<S: Simd, A: Math>(self, s: S, x: A, grad: A) -> A {
        grad * self.0.slope(s, x)
    }
}

impl Op for ActivationGradient {
    fn name(&self) -> &'static str {
        "activation_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, grad) = (&inputs[0], &inputs[1]);
        require_float(self.name(), x)?;
        require_dtype(self.name(), x.dtype(), grad)?;
        if grad.shape() != x.shape() {
            let expected = x.shape().to_string();
            return Err(Error::expected_shape(self.name(), "grad", &expected, grad.shape()));
        }
        Ok(vec![Meta::like(x)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        dispatch_float!(self.name(), x.dtype(), T => {
            let (x, grad) = (x.as_slice::<T>()?, grad.as_slice::<T>()?);
            let out = outputs[0].as_mut_slice::<T>()?;
            with_map!(self.activation, map => zip_with(x, grad, out, TimesSlope(map)));
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, grad) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let (len, activation) = (x.len() as u64, self.activation as u32);
        let dims = ActivationDims { len, activation, reserved: 0 };
        let config = spread(x.len() * x.dtype().size());
        kernel::activation_gradient(config, &mut outputs[0], &x, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// The gradient of `activation(x)` by `x`, given that of the result.
///
/// # Errors
/// `Shape` and `DType` when they differ in shape or dtype, or hold no floats.
pub(crate) fn activation_gradient(
    x: &Tensor,
    grad: &Tensor,
    activation: Activation,
) -> Result<Tensor> {
    apply(ActivationGradient { activation }, &tensors(&[x, grad]))
}
