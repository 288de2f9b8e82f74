//! Images made larger or smaller: nearest neighbour and bilinear. Kernels: `kernels/resample.cu`.

use bytemuck::NoUninit;

use super::elementwise::require_float;
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::{narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{Float, Real, Tensor};

kernels! {
    fn resize_nearest(y: Out, x: In, dims: ResizeDims);
    fn resize_bilinear(y: Out, x: In, dims: ResizeDims);
    fn resize_nearest_gradient(dx: Out, grad: In, dims: ResizeDims);
    fn resize_bilinear_gradient(dx: Out, grad: In, dims: ResizeDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct ResizeDims {
    from_height: u32,
    from_width: u32,
    height: u32,
    width: u32,
    scale_y: f32,
    scale_x: f32,
    repeat_y: u32,
    repeat_x: u32,
    offset: f32,
    channels: u32,
    pixels: u32,
}

/// Each pixel of `x` [B, H, W, C] repeated `scale` times in both directions: [B, scale H, scale W, C].
///
/// # Errors
/// `Shape` when `x` is not an image batch or `scale` is 0; `DType` for integers.
pub fn upsample_nearest(x: &Tensor, scale: usize) -> Result<Tensor> {
    let (_, height, width, _) = x.dims4()?;
    match (height.checked_mul(scale), width.checked_mul(scale)) {
        (Some(height), Some(width)) => resize_nearest(x, (height, width)),
        _ => Err(Error::shape("upsample", format!("{scale} times {}", x.shape()))),
    }
}

/// `x` [B, H, W, C] at another size (height, width), from the nearest pixel above and to the left:
/// `torch.nn.functional.interpolate(size=.., mode="nearest")`.
///
/// # Errors
/// `Shape` when `x` is not an image batch or a size is 0; `DType` for integers.
pub fn resize_nearest(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    apply(Resize { size, filter: Filter::Nearest }, &tensors(&[x]))
}

/// `x` [B, H, W, C] at another size (height, width), from the four pixels around each point:
/// `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)`, without antialiasing.
///
/// # Errors
/// As [`resize_nearest`].
pub fn resize_bilinear(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    apply(Resize { size, filter: Filter::Bilinear }, &tensors(&[x]))
}

/// `x` [B, H, W, C] at another size (height, width), its corner pixels on the corners of the result:
/// `torch.nn.functional.interpolate(mode="bilinear", align_corners=True)`.
///
/// # Errors
/// As [`resize_nearest`].
pub fn resize_bilinear_corners(x: &Tensor, size: (usize, usize)) -> Result<Tensor> {
    apply(Resize { size, filter: Filter::Corners }, &tensors(&[x]))
}

/// How [`Resize`] finds a pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Filter {
    /// One pixel.
    Nearest,
    /// A weighted mean of four, pixel centres at half integers.
    Bilinear,
    /// The same, the first and the last pixel's centres being those of the result's.
    Corners,
}

/// [`resize_nearest`], [`resize_bilinear`] and [`resize_bilinear_corners`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Resize {
    /// Height and width of the output.
    pub size: (usize, usize),
    /// How pixels are found.
    pub filter: Filter,
}

impl Op for Resize {
    fn name(&self) -> &'static str {
        "resize"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let x = &inputs[0];
        require_float("resize", x)?;
        let (height, width) = self.size;
        let &[batch, from_height, from_width, channels] = x.dims() else {
            return Err(Error::expected_shape("resize", "x", "[B, H, W, C]", x.shape()));
        };
        if height == 0 || width == 0 || from_height == 0 || from_width == 0 {
            return Err(Error::shape("resize", format!("{} to {height} x {width}", x.shape())));
        }
        Ok(vec![Meta { shape: [batch, height, width, channels].into(), dtype: x.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let (_, from_height, from_width, channels) = x.dims4()?;
        let (height, width) = self.size;
        dispatch_float!("resize", x.dtype(), T => {
            let x = x.as_slice::<T>()?;
            let from_row = from_width * channels;
            let to_row = width * channels;
            let out = out.as_mut_slice::<T>()?;
            match self.filter {
                Filter::Nearest => {
                    let (ys, xs) = (nearest(from_height, height), nearest(from_width, width));
                    for_each_row(out, to_row, |i, to| {
                        let from = &x[(i / height * from_height + ys[i % height]) * from_row..][..from_row];
                        for (to, x) in to.chunks_exact_mut(channels).zip(&xs) {
                            to.copy_from_slice(&from[x * channels..][..channels]);
                        }
                    });
                }
                Filter::Bilinear | Filter::Corners => {
                    let ys = self.filter.points::<<T as Float>::Acc>(from_height, height);
                    let xs = self.filter.points::<<T as Float>::Acc>(from_width, width);
                    for_each_row(out, to_row, |i, to| {
                        let y = ys[i % height];
                        let row = |y| &x[(i / height * from_height + y) * from_row..][..from_row];
                        bilinear_row(row(y.low), row(y.high), y.fraction, &xs, channels, to);
                    });
                }
            }
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let x = inputs[0].contiguous()?;
        let (batch, from_height, from_width, channels) = x.dims4()?;
        let (height, width) = self.size;
        let pixels = batch * height * width;
        let dims =
            self.filter.dims([from_height, from_width], [height, width], channels, pixels)?;
        let config = by_vectors(out);
        match self.filter {
            Filter::Nearest => kernel::resize_nearest(config, out, &x, dims),
            Filter::Bilinear | Filter::Corners => kernel::resize_bilinear(config, out, &x, dims),
        }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let Some(of) = call.meta(0) else { return Err(Error::no_gradient(self.name())) };
        let gradient = ResizeGradient { size: (of.shape[1], of.shape[2]), filter: self.filter };
        Ok(vec![Some(apply(gradient, &tensors(&[grad]))?)])
    }
}

/// 256 threads of at most 32 registers (nvcc 13, sm_80) with 16 bytes of the output each; beyond 16384 blocks, several waves
/// on the largest card, they take more turns.
fn by_vectors(out: &Tensor) -> LaunchConfig {
    let blocks = (out.len() * out.dtype().size()).div_ceil(256 * 16).clamp(1, 1 << 14);
    LaunchConfig::new([blocks as u32, 1], 256)
}

/// Gradient of [`Resize`]: the sum over the pixels that each pixel went into, by its weight there; input `grad`.
#[derive(Clone, Copy, Debug)]
struct ResizeGradient {
    /// Height and width before the resize.
    size: (usize, usize),
    filter: Filter,
}

impl Op for ResizeGradient {
    fn name(&self) -> &'static str {
        "resize_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let grad = &inputs[0];
        let (batch, _, _, channels) = grad.dims4()?;
        let shape = [batch, self.size.0, self.size.1, channels].into();
        Ok(vec![Meta { shape, dtype: grad.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let grad = inputs[0].contiguous()?;
        let (_, from_height, from_width, channels) = grad.dims4()?;
        let (height, width) = self.size;
        dispatch_float!(self.name(), grad.dtype(), T => {
            let ys = self.filter.shares::<<T as Float>::Acc>(height, from_height);
            let xs = self.filter.shares::<<T as Float>::Acc>(width, from_width);
            let grad = grad.as_slice::<T>()?;
            for_each_row(outputs[0].as_mut_slice::<T>()?, width * channels, |i, row| {
                let mut sum = vec![<T as Float>::Acc::ZERO; channels];
                for (pixel, xs) in row.chunks_exact_mut(channels).zip(&xs) {
                    sum.fill(<T as Float>::Acc::ZERO);
                    for &(from_y, by_row) in &ys[i % height] {
                        for &(from_x, by_column) in xs {
                            let at = (i / height * from_height + from_y) * from_width + from_x;
                            let from = &grad[at * channels..][..channels];
                            let weight = by_row * by_column;
                            sum.iter_mut().zip(from).for_each(|(sum, g)| *sum += weight * g.to_acc());
                        }
                    }
                    pixel.iter_mut().zip(&sum).for_each(|(p, &sum)| *p = T::from_acc(sum));
                }
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, out) = (inputs[0].contiguous()?, &mut outputs[0]);
        let (batch, height, width, channels) = grad.dims4()?;
        let pixels = batch * self.size.0 * self.size.1;
        let dims =
            self.filter.dims([self.size.0, self.size.1], [height, width], channels, pixels)?;
        let config = by_vectors(out);
        match self.filter {
            Filter::Nearest => kernel::resize_nearest_gradient(config, out, &grad, dims),
            Filter::Bilinear | Filter::Corners => {
                kernel::resize_bilinear_gradient(config, out, &grad, dims)
            }
        }
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

impl Filter {
    /// What a kernel is told; `pixels` is the number of those that are written.
    fn dims(
        self,
        [from_height, from_width]: [usize; 2],
        [height, width]: [usize; 2],
        channels: usize,
        pixels: usize,
    ) -> Result<ResizeDims> {
        let length = |n| to_u32("resize", n);
        let repeat = |from: usize, to: usize| if to.is_multiple_of(from) { to / from } else { 0 };
        Ok(ResizeDims {
            from_height: length(from_height)?,
            from_width: length(from_width)?,
            height: length(height)?,
            width: length(width)?,
            scale_y: self.scale(from_height, height),
            scale_x: self.scale(from_width, width),
            repeat_y: length(repeat(from_height, height))?,
            repeat_x: length(repeat(from_width, width))?,
            offset: self.offset(),
            channels: length(channels)?,
            pixels: length(pixels)?,
        })
    }

    /// Pixels of the input from one of the output to the next.
    fn scale<A: Real>(self, from: usize, to: usize) -> A {
        let of = |n: usize| A::from_f64(n as f64);
        match self {
            Self::Corners if to == 1 => A::ZERO,
            Self::Corners => of(from - 1) / of(to - 1),
            Self::Nearest | Self::Bilinear => of(from) / of(to),
        }
    }

    /// Where the centre of a pixel stands, from its number on.
    fn offset<A: Real>(self) -> A {
        A::from_f64(if self == Self::Corners { 0.0 } else { 0.5 })
    }

    /// For each of `to` positions the point among `from`.
    fn points<A: Real>(self, from: usize, to: usize) -> Vec<Between<A>> {
        let (scale, offset) = (self.scale::<A>(from, to), self.offset::<A>());
        (0..to)
            .map(|i| {
                let at = scale * (A::from_f64(i as f64) + offset) - offset;
                let at = if at < A::ZERO { A::ZERO } else { at };
                let low = (at.to_f64() as usize).min(from - 1);
                let high = (low + 1).min(from - 1);
                Between { low, high, fraction: at - A::from_f64(low as f64) }
            })
            .collect()
    }

    /// For each of `from` positions those among `to` that it went into, ascending, and its weight there.
    fn shares<A: Real>(self, from: usize, to: usize) -> Vec<Vec<(usize, A)>> {
        let mut shares = vec![Vec::new(); from];
        match self {
            Self::Nearest => {
                for (i, at) in nearest(from, to).into_iter().enumerate() {
                    shares[at].push((i, A::ONE));
                }
            }
            Self::Bilinear | Self::Corners => {
                let points = self.points::<A>(from, to).into_iter().enumerate();
                for (i, Between { low, high, fraction }) in points {
                    shares[low].push((i, A::ONE - fraction));
                    shares[high].push((i, fraction));
                }
            }
        }
        shares
    }
}

/// For each of `to` positions the position among `from`: `floor(i * from / to)`, in f32 as PyTorch has it.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let scale = from as f32 / to as f32;
    let exact = to.is_multiple_of(from).then(|| to / from);
    (0..to)
        .map(|i| exact.map_or_else(|| ((i as f32 * scale) as usize).min(from - 1), |n| i / n))
        .collect()
}

/// A point between two positions.
#[derive(Clone, Copy)]
struct Between<A> {
    low: usize,
    high: usize,
    /// 0 at `low`, 1 at `high`.
    fraction: A,
}

simd! {
    /// One row [W', C] of the output, between the rows `top` and `bottom` [W, C] of the input.
    fn bilinear_row[T: Float<Acc: Math>](
        _s, top: &[T], bottom: &[T], fraction: T::Acc, xs: &[Between<T::Acc>], channels: usize, to: &mut [T],
    ) {
        let one = T::Acc::ONE;
        let mut sum = vec![T::Acc::ZERO; channels];
        let mut corner = vec![T::Acc::ZERO; channels];
        for (to, x) in to.chunks_exact_mut(channels).zip(xs) {
            sum.fill(T::Acc::ZERO);
            let corners = [
                (top, x.low, (one - fraction) * (one - x.fraction)),
                (top, x.high, (one - fraction) * x.fraction),
                (bottom, x.low, fraction * (one - x.fraction)),
                (bottom, x.high, fraction * x.fraction),
            ];
            for (row, at, weight) in corners {
                widen(&row[at * channels..][..channels], &mut corner);
                for (sum, x) in sum.iter_mut().zip(&corner) {
                    *sum += weight * *x;
                }
            }
            narrow(&sum, to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{check, check_batch, check_gradient, check_nan, random, values};

    type Size = (usize, usize);

    /// The definition, from pixel positions (y, x) and weights in f64.
    fn reference(
        x: &[f64],
        [b, h, w, c]: [usize; 4],
        (oh, ow): Size,
        taps: impl Fn(usize, usize, usize) -> Vec<(usize, f64)>,
    ) -> Vec<f64> {
        let mut out = Vec::new();
        for b in 0..b {
            for i in 0..oh {
                for j in 0..ow {
                    for k in 0..c {
                        let mut sum = 0.0;
                        for (y, wy) in taps(i, h, oh) {
                            for (xx, wx) in taps(j, w, ow) {
                                sum += wy * wx * x[((b * h + y) * w + xx) * c + k];
                            }
                        }
                        out.push(sum);
                    }
                }
            }
        }
        out
    }

    const CASES: [([usize; 4], Size); 5] = [
        ([1, 1, 1, 1], (3, 2)),
        ([2, 3, 5, 7], (6, 10)),
        ([1, 4, 3, 33], (7, 5)),
        ([3, 9, 8, 4], (4, 3)),
        ([1, 5, 5, 2], (5, 13)),
    ];

    #[test]
    fn nearest_takes_the_pixel_above_and_to_the_left() {
        for (shape, size) in CASES {
            check(
                "resize_nearest",
                &[random(shape, 1)],
                1.0,
                |x| resize_nearest(x[0], size),
                |x| reference(&x[0], shape, size, |i, from, to| vec![(i * from / to, 1.0)]),
            );
        }
        let x = random([2, 3, 5, 7], 2);
        let twice = upsample_nearest(&x, 2).unwrap();
        assert_eq!(
            twice.to_vec::<f32>().unwrap(),
            resize_nearest(&x, (6, 10)).unwrap().to_vec::<f32>().unwrap()
        );
    }

    #[test]
    fn bilinear_has_pixel_centres_at_half_integers() {
        for (shape, size) in CASES {
            // 8 units: two weights and a sum of four products; positions below 16 add a few more.
            check(
                "resize_bilinear",
                &[random(shape, 3)],
                16.0,
                |x| resize_bilinear(x[0], size),
                |x| {
                    reference(&x[0], shape, size, |i, from, to| {
                        let at = ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
                        let low = (at as usize).min(from - 1);
                        vec![(low, 1.0 - at.fract()), ((low + 1).min(from - 1), at.fract())]
                    })
                },
            );
        }
    }

    #[test]
    fn corners_stay_where_they_are() {
        for (shape, size) in CASES {
            check(
                "resize_bilinear_corners",
                &[random(shape, 3)],
                16.0,
                |x| resize_bilinear_corners(x[0], size),
                |x| {
                    reference(&x[0], shape, size, |i, from, to| {
                        let at = i as f64 * (from - 1) as f64 / (to - 1) as f64;
                        let low = (at as usize).min(from - 1);
                        vec![(low, 1.0 - at.fract()), ((low + 1).min(from - 1), at.fract())]
                    })
                },
            );
        }
        let x = random([1, 4, 3, 2], 5);
        let y = values(&resize_bilinear_corners(&x, (1, 1)).unwrap());
        assert_eq!(y, values(&x)[..2]);
    }

    #[test]
    fn entries_of_a_batch_are_independent() {
        let x = random([7, 5, 3, 9], 4);
        check_batch("resize_bilinear_corners", &x, |x| resize_bilinear_corners(x, (7, 8)));
        check_batch("resize_nearest", &x, |x| resize_nearest(x, (7, 8)));
        check_batch("resize_bilinear", &x, |x| resize_bilinear(x, (7, 8)));
        check_nan("resize_nearest", &x, 200, |x| resize_nearest(x, (10, 6)));
        check_nan("resize_bilinear", &x, 200, |x| resize_bilinear(x, (10, 6)));
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let more = (0..20).map(|i| {
            ([1 + i % 3, 1 + i % 5, 1 + i % 7, 1 + 3 * i % 10], (1 + 5 * i % 8, 1 + 7 * i % 9))
        });
        for (shape, size) in CASES.into_iter().chain(more) {
            check_gradient("resize_nearest", &[random(shape, 6)], |x| resize_nearest(x[0], size));
            check_gradient("resize_bilinear", &[random(shape, 7)], |x| resize_bilinear(x[0], size));
            check_gradient("resize_bilinear_corners", &[random(shape, 8)], |x| {
                resize_bilinear_corners(x[0], size)
            });
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([1, 2, 2, 3], 1);
        assert!(matches!(upsample_nearest(&x, 0), Err(Error::Shape { .. })));
        assert!(matches!(upsample_nearest(&x, usize::MAX), Err(Error::Shape { .. })));
        assert!(matches!(resize_bilinear(&x, (3, 0)), Err(Error::Shape { .. })));
        assert!(matches!(resize_bilinear(&random([2, 2, 3], 1), (3, 3)), Err(Error::Shape { .. })));
        assert!(matches!(
            resize_nearest(&random([1, 0, 2, 3], 1), (3, 3)),
            Err(Error::Shape { .. })
        ));
    }
}
