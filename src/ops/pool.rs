//! Pooling of NHWC images: the largest or the mean of each window. Kernels: `kernels/pool.cu`.

use bytemuck::NoUninit;

use super::elementwise::require_float;
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::cpu::parallel::{for_each_chunk, for_each_row};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, Real, Tensor};

kernels! {
    fn max_pool2d(y: Out, places: Array<Out<u32>, 1>, x: In, dims: PoolDims);
    fn max_pool2d_gradient(dx: Out, grad: In, places: In<u32>, dims: PoolDims);
    fn mean_pool2d(y: Out, x: In, dims: PoolDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct PoolDims {
    len: u64,
    channels: u32,
    height: u32,
    width: u32,
    from_height: u32,
    from_width: u32,
    size: u32,
    stride: u32,
    padding: u32,
    back: u32,
    within: u32,
}

/// A thread an element of `out`, as far as 4096 blocks reach; they take further turns beyond.
fn by_element(out: &Tensor) -> LaunchConfig {
    LaunchConfig::new([out.len().div_ceil(256).clamp(1, 4096) as u32, 1], 256)
}

/// Windows over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Height and width.
    pub size: usize,
    /// From one to the next.
    pub stride: usize,
    /// Rows and columns that are added on each side: no value for the largest, zeros (which count) for the mean.
    pub padding: usize,
}

/// The largest element of each window, channel by channel; NaN if any is NaN: `torch.nn.functional.max_pool2d`.
///
/// `x` [B, H, W, C] -> [B, (H + 2 padding - size) / stride + 1, .., C]. Of equal elements the first has the gradient.
///
/// # Errors
/// `Shape` when `x` is no image batch, a window does not fit into the padded image, the stride is 0, or more than half
/// of a window may be padding; `DType` for integers.
pub fn max_pool2d(x: &Tensor, window: Window) -> Result<Tensor> {
    apply(MaxPool(window), &tensors(&[x]))
}

/// The mean of each window, channel by channel, padding counted as zeros: `torch.nn.functional.avg_pool2d`.
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(x: &Tensor, window: Window) -> Result<Tensor> {
    apply(AvgPool { window, within: false }, &tensors(&[x]))
}

/// The mean of what of each window lies within the image, channel by channel, padding not counted:
/// `torch.nn.functional.avg_pool2d(count_include_pad=False)`, and TensorFlow's. It has no gradient.
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d_within(x: &Tensor, window: Window) -> Result<Tensor> {
    apply(AvgPool { window, within: true }, &tensors(&[x]))
}

impl Window {
    /// The output of a batch `x`.
    fn infer(&self, op: &'static str, x: &Tensor) -> Result<Meta> {
        require_float(op, x)?;
        let &[batch, height, width, channels] = x.dims() else {
            return Err(Error::expected_shape(op, "x", "[B, H, W, C]", x.shape()));
        };
        let Self { size, stride, padding } = *self;
        let fits = |n: usize| n.checked_add(2 * padding).is_some_and(|n| n >= size) && n > 0;
        if size == 0 || stride == 0 || padding > size / 2 || !fits(height) || !fits(width) {
            let message =
                format!("windows of {size} by {stride} and padding {padding} over {}", x.shape());
            return Err(Error::shape(op, message));
        }
        let windows = |n: usize| (n + 2 * padding - size) / stride + 1;
        let shape = [batch, windows(height), windows(width), channels].into();
        Ok(Meta { shape, dtype: x.dtype() })
    }

    /// What a kernel is told of a pooling from `x` to `out`, or of its gradient, from windows to pixels.
    fn dims(&self, op: &'static str, x: &Tensor, out: &Tensor, back: bool) -> Result<PoolDims> {
        let (_, from_height, from_width, _) = x.dims4()?;
        let (_, height, width, channels) = out.dims4()?;
        let to_u32 = |n| to_u32(op, n);
        Ok(PoolDims {
            len: out.len() as u64,
            channels: to_u32(channels)?,
            height: to_u32(height)?,
            width: to_u32(width)?,
            from_height: to_u32(from_height)?,
            from_width: to_u32(from_width)?,
            size: to_u32(self.size)?,
            stride: to_u32(self.stride)?,
            padding: to_u32(self.padding)?,
            back: back.into(),
            within: 0,
        })
    }

    /// The positions among `n` that window `i` covers.
    fn of(&self, i: usize, n: usize) -> std::ops::Range<usize> {
        let start = i * self.stride;
        start.saturating_sub(self.padding)..(start + self.size).saturating_sub(self.padding).min(n)
    }

    /// The windows, of `count`, that cover position `at`.
    fn covering(&self, at: usize, count: usize) -> std::ops::Range<usize> {
        let at = at + self.padding;
        let first = (at + 1).saturating_sub(self.size).div_ceil(self.stride);
        first..(at / self.stride + 1).min(count)
    }
}

/// [`max_pool2d`]; input `x`; the further output is where in its image each largest element stands.
#[derive(Clone, Copy, Debug)]
struct MaxPool(Window);

impl Op for MaxPool {
    fn name(&self) -> &'static str {
        "max_pool2d"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let out = self.0.infer(self.name(), &inputs[0])?;
        let mut outputs = vec![out];
        if inputs.recorded() {
            outputs.push(Meta { shape: out.shape, dtype: DType::U32 });
        }
        Ok(outputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let (_, height, width, channels) = x.dims4()?;
        let (_, out_height, out_width, _) = outputs[0].dims4()?;
        if u32::try_from(height * width).is_err() {
            return Err(Error::shape(self.name(), format!("{} has too many pixels", x.shape())));
        }
        let [out, places @ ..] = outputs else { unreachable!("inferred above") };
        // Without a gradient nobody asks where.
        let mut unused = Vec::new();
        let places = match places.first_mut() {
            Some(places) => places.as_mut_slice::<u32>()?,
            None => {
                unused.resize(out.len(), 0);
                &mut unused[..]
            }
        };
        let row = out_width * channels;
        dispatch_float!(self.name(), x.dtype(), T => {
            let x = x.as_slice::<T>()?;
            // Values and places of a row together: one loop writes both.
            let mut rows: Vec<_> =
                out.as_mut_slice::<T>()?.chunks_exact_mut(row).zip(places.chunks_exact_mut(row)).collect();
            for_each_chunk(&mut rows, 1, |i, rows| {
                let (image, y) = (i / out_height, i % out_height);
                let x = &x[image * height * width * channels..][..height * width * channels];
                let (out, places) = &mut rows[0];
                for ox in 0..out_width {
                    let out = &mut out[ox * channels..][..channels];
                    let places = &mut places[ox * channels..][..channels];
                    let mut first = true;
                    for y in self.0.of(y, height) {
                        for at in self.0.of(ox, width) {
                            let place = y * width + at;
                            let pixel = &x[place * channels..][..channels];
                            for c in 0..channels {
                                let (new, old) = (pixel[c].to_acc(), out[c].to_acc());
                                let is_nan = |v: <T as Float>::Acc| v.to_f64().is_nan();
                                if first || new > old || (is_nan(new) && !is_nan(old)) {
                                    (out[c], places[c]) = (pixel[c], place as u32);
                                }
                            }
                            first = false;
                        }
                    }
                }
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let (_, height, width, _) = x.dims4()?;
        to_u32(self.name(), height * width)?;
        let [out, places @ ..] = outputs else { unreachable!("inferred above") };
        let dims = self.0.dims(self.name(), &x, out, false)?;
        let places = &mut places.iter_mut().collect::<Vec<_>>();
        kernel::max_pool2d(by_element(out), out, places, &x, dims)
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let Some(x) = call.meta(0) else { return Err(Error::no_gradient(self.name())) };
        let op = MaxPoolGradient { window: self.0, size: [x.shape[1], x.shape[2]] };
        Ok(vec![Some(apply(op, &tensors(&[grad, call.output(1)?]))?)])
    }
}

/// Gradient of [`MaxPool`]: an element's is the sum of those of the windows that it is the largest of; inputs `grad`,
/// the places.
#[derive(Clone, Copy, Debug)]
struct MaxPoolGradient {
    window: Window,
    /// Height and width of the image.
    size: [usize; 2],
}

/// The input of a pooling, given its output's gradient.
fn image_of(grad: &Tensor, [height, width]: [usize; 2]) -> Result<Vec<Meta>> {
    let (batch, _, _, channels) = grad.dims4()?;
    Ok(vec![Meta { shape: [batch, height, width, channels].into(), dtype: grad.dtype() }])
}

impl Op for MaxPoolGradient {
    fn name(&self) -> &'static str {
        "max_pool2d_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        image_of(&inputs[0], self.size)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, places) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let [height, width] = self.size;
        let (_, out_height, out_width, channels) = grad.dims4()?;
        let places = places.as_slice::<u32>()?;
        dispatch_float!(self.name(), grad.dtype(), T => {
            let grad = grad.as_slice::<T>()?;
            for_each_row(outputs[0].as_mut_slice::<T>()?, width * channels, |i, row| {
                let (image, y) = (i / height, i % height);
                let mut sum = vec![<T as Float>::Acc::ZERO; channels];
                for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
                    sum.fill(<T as Float>::Acc::ZERO);
                    let place = (y * width + x) as u32;
                    for oy in self.window.covering(y, out_height) {
                        for ox in self.window.covering(x, out_width) {
                            let at = ((image * out_height + oy) * out_width + ox) * channels;
                            let (grad, places) = (&grad[at..][..channels], &places[at..][..channels]);
                            for c in 0..channels {
                                if places[c] == place {
                                    sum[c] += grad[c].to_acc();
                                }
                            }
                        }
                    }
                    pixel.iter_mut().zip(&sum).for_each(|(p, &sum)| *p = T::from_acc(sum));
                }
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, places) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        let out = &mut outputs[0];
        let dims = self.window.dims(self.name(), &grad, out, true)?;
        kernel::max_pool2d_gradient(by_element(out), out, &grad, &places, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// [`avg_pool2d`] and [`avg_pool2d_within`]; input `x`.
#[derive(Clone, Copy, Debug)]
struct AvgPool {
    window: Window,
    /// Whether it is divided by the pixels within the image, rather than the window's.
    within: bool,
}

impl Op for AvgPool {
    fn name(&self) -> &'static str {
        "avg_pool2d"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![self.window.infer(self.name(), &inputs[0])?])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = inputs[0].contiguous()?;
        let (_, height, width, _) = x.dims4()?;
        let (_, out_height, _, _) = outputs[0].dims4()?;
        let (rows, columns) = (|y| self.window.of(y, height), |x| self.window.of(x, width));
        let out = &mut outputs[0];
        self.window.means(self.name(), &x, out_height, rows, columns, self.within, out)
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, out) = (inputs[0].contiguous()?, &mut outputs[0]);
        let dims = self.window.dims(self.name(), &x, out, false)?;
        let dims = PoolDims { within: self.within.into(), ..dims };
        kernel::mean_pool2d(by_element(out), out, &x, dims)
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let x = call.meta(0).filter(|_| !self.within);
        let Some(x) = x else { return Err(Error::no_gradient(self.name())) };
        let op = AvgPoolGradient { window: self.window, size: [x.shape[1], x.shape[2]] };
        Ok(vec![Some(apply(op, &tensors(&[grad]))?)])
    }
}

/// Gradient of [`AvgPool`]; input `grad`.
#[derive(Clone, Copy, Debug)]
struct AvgPoolGradient {
    window: Window,
    /// Height and width of the image.
    size: [usize; 2],
}

impl Op for AvgPoolGradient {
    fn name(&self) -> &'static str {
        "avg_pool2d_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        image_of(&inputs[0], self.size)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let grad = inputs[0].contiguous()?;
        let (_, out_height, out_width, _) = grad.dims4()?;
        let (window, height) = (self.window, self.size[0]);
        let rows = |y| window.covering(y, out_height);
        let columns = |x| window.covering(x, out_width);
        window.means(self.name(), &grad, height, rows, columns, false, &mut outputs[0])
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (grad, out) = (inputs[0].contiguous()?, &mut outputs[0]);
        let dims = self.window.dims(self.name(), &grad, out, true)?;
        kernel::mean_pool2d(by_element(out), out, &grad, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

impl Window {
    /// For each pixel of `out`, of `height` rows, the sum over some rows and columns of `x`, by the window's area, or by
    /// their number where that `within` the image counts.
    fn means(
        &self,
        op: &'static str,
        x: &Tensor,
        height: usize,
        rows: impl Fn(usize) -> std::ops::Range<usize> + Sync,
        columns: impl Fn(usize) -> std::ops::Range<usize> + Sync,
        within: bool,
        out: &mut Tensor,
    ) -> Result<()> {
        let (_, from_height, from_width, channels) = x.dims4()?;
        let width = out.dim(2);
        dispatch_float!(op, x.dtype(), T => {
            let x = x.as_slice::<T>()?;
            for_each_row(out.as_mut_slice::<T>()?, width * channels, |i, row| {
                let mut sum = vec![<T as Float>::Acc::ZERO; channels];
                for (at, pixel) in row.chunks_exact_mut(channels).enumerate() {
                    sum.fill(<T as Float>::Acc::ZERO);
                    let (rows, columns) = (rows(i % height), columns(at));
                    let area = match within {
                        true => rows.len() * columns.len(),
                        false => self.size * self.size,
                    };
                    let area = <T as Float>::Acc::from_f64(area as f64);
                    for y in rows {
                        for from in columns.clone() {
                            let from = (i / height * from_height + y) * from_width + from;
                            let from = &x[from * channels..][..channels];
                            sum.iter_mut().zip(from).for_each(|(sum, x)| *sum += x.to_acc());
                        }
                    }
                    pixel.iter_mut().zip(&sum).for_each(|(p, &sum)| *p = T::from_acc(sum / area));
                }
            });
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        bits, check, check_batch, check_gradient, check_nan, devices, random, strided,
    };

    /// [B, H, W, C], size, stride, padding.
    const CASES: [([usize; 4], usize, usize, usize); 10] = [
        ([1, 1, 1, 1], 1, 1, 0),
        ([1, 2, 2, 3], 2, 2, 0),
        ([2, 5, 7, 3], 3, 2, 1),
        ([1, 8, 8, 33], 3, 2, 1),
        ([3, 9, 4, 2], 2, 3, 1),
        ([1, 6, 5, 7], 3, 1, 1),
        ([2, 4, 4, 1], 4, 4, 2),
        ([1, 7, 31, 5], 5, 3, 2),
        ([7, 3, 3, 4], 3, 3, 0),
        ([1, 1, 9, 2], 2, 2, 1),
    ];

    fn window(size: usize, stride: usize, padding: usize) -> Window {
        Window { size, stride, padding }
    }

    /// By each window's elements, in f64.
    fn reference(
        x: &[f64],
        [b, h, w, c]: [usize; 4],
        win: Window,
        of: impl Fn(&[f64]) -> f64,
    ) -> Vec<f64> {
        let Window { size, stride, padding } = win;
        let count = |n: usize| (n + 2 * padding - size) / stride + 1;
        let mut out = Vec::new();
        for b in 0..b {
            for oy in 0..count(h) {
                for ox in 0..count(w) {
                    for c_at in 0..c {
                        let mut all = Vec::new();
                        for y in 0..size {
                            for x_at in 0..size {
                                let (y, x_at) = (oy * stride + y, ox * stride + x_at);
                                if (padding..h + padding).contains(&y)
                                    && (padding..w + padding).contains(&x_at)
                                {
                                    let at = (b * h + y - padding) * w + x_at - padding;
                                    all.push(x[at * c + c_at]);
                                }
                            }
                        }
                        out.push(of(&all));
                    }
                }
            }
        }
        out
    }

    #[test]
    fn windows_equal_their_formula() {
        for (shape, size, stride, padding) in CASES {
            let win = window(size, stride, padding);
            check(
                "max_pool2d",
                &[random(shape, 1)],
                0.5,
                |x| max_pool2d(x[0], win),
                |x| {
                    reference(&x[0], shape, win, |all| all.iter().copied().fold(f64::MIN, f64::max))
                },
            );
            let area = (size * size) as f64;
            // A sum of up to 25 terms in f32.
            check(
                "avg_pool2d",
                &[random(shape, 2)],
                16.0,
                |x| avg_pool2d(x[0], win),
                |x| reference(&x[0], shape, win, |all| all.iter().sum::<f64>() / area),
            );
            check(
                "avg_pool2d",
                &[random(shape, 9)],
                16.0,
                |x| avg_pool2d_within(x[0], win),
                |x| {
                    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
                    reference(&x[0], shape, win, mean)
                },
            );
        }
        let win = window(3, 2, 1);
        for pool in [max_pool2d, avg_pool2d, avg_pool2d_within] {
            check_batch("pool", &random([7, 9, 5, 12], 3), |x| pool(x, win));
            check_nan("pool", &random([2, 9, 5, 12], 4), 300, |x| pool(x, win));
        }
    }

    /// A window of one pixel is that pixel, also of an image with more elements than a launch has threads.
    #[test]
    fn every_element_of_a_large_image_is_written() {
        let x = random([1, 1025, 1027, 1], 8);
        for device in devices() {
            let x = x.to_device(device).unwrap().variable();
            for pool in [max_pool2d, avg_pool2d] {
                let y = pool(&x, window(1, 1, 0)).unwrap();
                assert!(bits(&y) == bits(&x), "{device}");
                let grad = y.detach();
                let gradients = crate::ops::gradient::backward_from(y, grad).unwrap();
                assert!(bits(gradients.get(&x).unwrap()) == bits(&x), "{device}, the gradient");
            }
        }
    }

    /// Values in random order that are 0.01 apart: a difference does not change which is the largest.
    fn apart(shape: [usize; 4], seed: u64) -> Tensor {
        let random = random(shape, seed).to_vec::<f32>().unwrap();
        let mut order: Vec<usize> = (0..random.len()).collect();
        order.sort_by(|&a, &b| random[a].total_cmp(&random[b]));
        let mut values = vec![0.0; random.len()];
        for (rank, at) in order.into_iter().enumerate() {
            values[at] = 0.01 * rank as f32;
        }
        Tensor::from_vec(values, shape).unwrap()
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let more = (0..10).map(|i| {
            let size = 1 + i % 4;
            ([1 + i % 3, 4 + i, 13 - i, 1 + i % 5], size, 1 + i % 3, (i % 2).min(size / 2))
        });
        for (shape, size, stride, padding) in CASES.into_iter().chain(more) {
            let win = window(size, stride, padding);
            check_gradient("max_pool2d", &[apart(shape, 5)], |x| max_pool2d(x[0], win));
            check_gradient("max_pool2d", &[strided(&apart(shape, 6))], |x| max_pool2d(x[0], win));
            check_gradient("avg_pool2d", &[random(shape, 7)], |x| avg_pool2d(x[0], win));
        }
    }

    #[test]
    fn the_first_of_equals_has_the_gradient() {
        let x = Tensor::from_vec(vec![1.0f32, 3.0, 3.0, 3.0], [1, 2, 2, 1]).unwrap().variable();
        let y = max_pool2d(&x, window(2, 2, 0)).unwrap();
        let gradients = crate::ops::gradient::backward(y).unwrap();
        let expected = Tensor::from_vec(vec![0.0f32, 1.0, 0.0, 0.0], [4]).unwrap();
        assert_eq!(bits(gradients.get(&x).unwrap()), bits(&expected));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let x = random([1, 4, 4, 2], 1);
        for (size, stride, padding) in
            [(5, 1, 0), (0, 1, 0), (2, 0, 0), (2, 2, 2), (3, 1, usize::MAX / 2)]
        {
            let error = max_pool2d(&x, window(size, stride, padding)).err();
            assert!(
                matches!(error, Some(Error::Shape { .. })),
                "{size} {stride} {padding}: {error:?}"
            );
            let error = avg_pool2d(&x, window(size, stride, padding)).err();
            assert!(
                matches!(error, Some(Error::Shape { .. })),
                "{size} {stride} {padding}: {error:?}"
            );
        }
        assert!(matches!(
            max_pool2d(&random([4, 4, 2], 1), window(2, 2, 0)),
            Err(Error::Shape { .. })
        ));
        let none = random([0, 4, 4, 2], 1);
        assert_eq!(max_pool2d(&none, window(2, 2, 0)).unwrap().dims(), [0, 2, 2, 2]);
    }
}
