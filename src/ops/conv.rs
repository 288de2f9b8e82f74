//! 2-d convolution of NHWC images over packed weights: an implicit matrix product
//! [B * OH * OW, KH * KW * C] x [KH * KW * C, O], or Winograd's algorithm.

mod cuda;
mod dilated;
mod gradient;

pub use dilated::dilated;

use super::epilogue::{Epilogue, Settings, WEIGHT, X, with_epilogue};
use super::gradient::Call;
use super::resample::upsample_nearest;
use super::weight::{Layout, Packed, Weight};
use super::{Grads, Inputs, Meta, Op, Saves, apply};
use crate::cpu::gemm::{Rows, f32_kernel};
use crate::cpu::winograd::{self, Images};
use crate::error::{Error, Result};
use crate::tensor::{Device, Shape, Tensor, tape};

const NAME: &str = "conv2d";

/// Stride and padding of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dConfig {
    /// Of both axes.
    pub stride: usize,
    /// Zeros around the image: top, bottom, left, right.
    pub padding: [usize; 4],
}

impl Conv2dConfig {
    /// The same padding on all sides.
    pub fn new(stride: usize, padding: usize) -> Self {
        Self { stride, padding: [padding; 4] }
    }
}

/// The patches of images [B, H, W, C] under a kernel, one a row, in (row, column, channel) order.
struct Patches {
    height: usize,
    width: usize,
    channels: usize,
    out_height: usize,
    out_width: usize,
    kernel_width: usize,
    stride: usize,
    top: usize,
    left: usize,
}

impl Rows for Patches {
    #[inline(always)]
    fn pieces(&self, row: usize, k: usize, len: usize, mut emit: impl FnMut(Option<usize>, usize)) {
        let (rest, ox) = (row / self.out_width, row % self.out_width);
        let (image, oy) = (rest / self.out_height, rest % self.out_height);
        let (tap, mut channel) = (k / self.channels, k % self.channels);
        let (mut ky, mut kx) = (tap / self.kernel_width, tap % self.kernel_width);
        let mut left = len;
        while left > 0 {
            let n = left.min(self.channels - channel);
            // Above or left of the image these wrap around to huge values, which are outside as well.
            let y = (oy * self.stride + ky).wrapping_sub(self.top);
            let x = (ox * self.stride + kx).wrapping_sub(self.left);
            let inside = y < self.height && x < self.width;
            let start = || ((image * self.height + y) * self.width + x) * self.channels + channel;
            emit(inside.then(start), n);
            left -= n;
            channel = 0;
            kx += 1;
            if kx == self.kernel_width {
                (ky, kx) = (ky + 1, 0);
            }
        }
    }
}

/// [`conv2d`]; inputs `x`, `weight`, and the epilogue's `bias`, `add_channel`, `residual`.
#[derive(Clone, Copy, Debug)]
struct Conv2d {
    config: Conv2dConfig,
    /// Of x with every pixel four times: on a GPU, of a call that is not recorded.
    doubled: bool,
    epilogue: Settings,
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, w) = (&inputs[X], inputs.weight(WEIGHT));
        let &[o, i, kh, kw] = &**w.shape() else {
            return Err(Error::expected_shape(NAME, "weight", "[O, I, KH, KW]", w.shape()));
        };
        let (b, h, wd) = match *x.dims() {
            [b, h, wd, c] if c == i && self.doubled => (b, 2 * h, 2 * wd),
            [b, h, wd, c] if c == i => (b, h, wd),
            _ => {
                let expected = format!("[B, H, W, {i}]");
                return Err(Error::expected_shape(NAME, "x", &expected, x.shape()));
            }
        };
        let Conv2dConfig { stride, padding: [top, bottom, left, right] } = self.config;
        let laid_out_for = match w.layout() {
            Layout::ConvolutionAt(stride) => Some(stride),
            Layout::LargeImages => Some(1),
            _ => None,
        };
        if stride == 0 || laid_out_for.is_some_and(|at| at != stride) {
            return Err(Error::value(
                NAME,
                format!("stride {stride} over weights laid out for another"),
            ));
        }
        let extent = |size: usize, before, after, kernel| {
            let padded = size.checked_add(before).and_then(|s| s.checked_add(after))?;
            Some(padded.checked_sub(kernel)? / stride + 1)
        };
        let (Some(oh), Some(ow)) = (extent(h, top, bottom, kh), extent(wd, left, right, kw)) else {
            let message = format!(
                "an image of {h}x{wd} with padding {:?} is smaller than the kernel of {kh}x{kw}",
                self.config.padding
            );
            return Err(Error::shape(NAME, message));
        };
        w.check_dtype(NAME, x.dtype())?;
        let out = Meta { shape: Shape::new(&[b, oh, ow, o]), dtype: x.dtype() };
        self.epilogue.with(inputs).check(NAME, &out)?;
        Ok(vec![out])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, w, out) = (&inputs[X], inputs.weight(WEIGHT), &mut outputs[0]);
        let epilogue = self.epilogue.with(inputs);
        let (batch, height, width, channels) = x.dims4()?;
        let (_, out_height, out_width, n) = out.dims4()?;
        let Conv2dConfig { stride, padding: [top, _, left, _] } = self.config;
        match w.packed()? {
            Packed::Panels(panels) => {
                let patches = Patches {
                    height,
                    width,
                    channels,
                    out_height,
                    out_width,
                    kernel_width: w.shape()[3],
                    stride,
                    top,
                    left,
                };
                panels.multiply(NAME, x, &patches, &epilogue, out)
            }
            Packed::Rows(_) | Packed::Quantized(_) => {
                unreachable!("rows are a GPU's, and 8 bits a matrix's")
            }
            Packed::Winograd { level, tile, panels } => {
                let images =
                    Images { batch, height, width, channels, out_height, out_width, top, left };
                let x = x.contiguous()?;
                with_epilogue::<f32>(&epilogue, out, |out, finish| {
                    let (x, panels) = (x.as_slice()?, panels.as_slice()?);
                    let kernel = f32_kernel(*level);
                    winograd::convolve(kernel, *tile, images, n, x, panels, out, finish);
                    Ok(())
                })
            }
        }
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, Packed::Rows(w)) = (&inputs[X], inputs.weight(WEIGHT).packed()?) else {
            unreachable!("a weight on a GPU is packed as rows")
        };
        if x.dtype() != w.dtype() {
            return Err(Error::no_kernel("conv2d with 16-bit weights of f32"));
        }
        let epilogue = self.epilogue.with(inputs);
        cuda::convolve((x, self.doubled), w, self.config, &epilogue, &mut outputs[0])
    }

    fn saves(&self) -> Saves {
        Saves { inputs: Settings::SAVED, result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let (x, weight) = (call.tensor(X)?, call.weight(WEIGHT)?);
        let product = |epilogue: Epilogue| conv2d(x, weight, self.config, epilogue);
        let (g, [bias, add_channel, residual]) = self.epilogue.backward(call, grad, product)?;
        let of_x = call.wants(X).then(|| {
            let weight = weight.elements()?.to_dtype(g.dtype())?;
            gradient::by_image(&g, &weight, self.config, [x.dim(1), x.dim(2)])
        });
        let of_weight = call.wants(WEIGHT).then(|| {
            let kernel = [weight.shape()[2], weight.shape()[3]];
            let product = gradient::by_weight(&g, x, self.config, kernel)?;
            product.to_dtype(weight.meta().dtype)
        });
        Ok(vec![of_x.transpose()?, of_weight.transpose()?, bias, add_channel, residual])
    }
}

/// Convolution (cross-correlation, as in torch) followed by an epilogue: [B, H, W, I] -> [B, OH, OW, O].
///
/// `OH = (H + top + bottom - KH) / stride + 1`, and OW likewise. `weight` has a layout of convolutions; `x` has its
/// dtype, or is f32 over 16-bit weights; sums are taken in f32 (f64 for f64).
///
/// # Errors
/// `Shape` and `DType` when x or the epilogue's tensors do not fit, `Value` for a stride of 0 or one that the weight
/// was not laid out for; `NoKernel` on a GPU for f32 over 16-bit weights.
pub fn conv2d(
    x: &Tensor,
    weight: &Weight,
    config: Conv2dConfig,
    epilogue: Epilogue,
) -> Result<Tensor> {
    let op = Conv2d { config, doubled: false, epilogue: epilogue.settings() };
    apply(op, &epilogue.slots(x, weight))
}

/// [`conv2d`] of `x` [B, H, W, I] doubled, every pixel four times: [B, 2H, 2W, I]. On a GPU the doubled image is nowhere in
/// memory.
///
/// # Errors
/// As [`conv2d`].
pub fn conv2d_doubled(
    x: &Tensor,
    weight: &Weight,
    config: Conv2dConfig,
    epilogue: Epilogue,
) -> Result<Tensor> {
    let slots = epilogue.slots(x, weight);
    let is_recorded = tape::is_recording() && slots.iter().any(|slot| slot.node().is_some());
    if x.device() == Device::Cpu || is_recorded {
        return conv2d(&upsample_nearest(x, 2)?, weight, config, epilogue);
    }
    apply(Conv2d { config, doubled: true, epilogue: epilogue.settings() }, &slots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd;
    use crate::ops::activation::Activation;
    use crate::ops::testing::{
        Sum, bits, check_batch, check_gradient, check_sums, random, random_in, shapes, values,
    };
    use crate::tensor::{DType, Tensor};

    fn frozen(weight: &Tensor, layout: Layout, dtype: DType) -> Weight {
        Weight::frozen(weight, layout, dtype).unwrap()
    }

    /// The definition, with x [B, H, W, C], w [O, I, KH, KW] and an output [B, OH, OW, O].
    fn direct(
        x: &[f64],
        w: &[f64],
        [h, wd, c]: [usize; 3],
        [kh, kw]: [usize; 2],
        config: Conv2dConfig,
        [b, oy, ox, o]: [usize; 4],
    ) -> Sum {
        let [top, _, left, _] = config.padding;
        let mut products = Vec::new();
        for ky in 0..kh {
            for kx in 0..kw {
                let (y, xx) = (oy * config.stride + ky, ox * config.stride + kx);
                if y < top || xx < left || y - top >= h || xx - left >= wd {
                    continue;
                }
                for i in 0..c {
                    let pixel = x[((b * h + y - top) * wd + xx - left) * c + i];
                    products.push(pixel * w[((o * c + i) * kh + ky) * kw + kx]);
                }
            }
        }
        products.into_iter().collect()
    }

    #[test]
    fn convolution_is_the_formula() {
        let same = |stride, p| Conv2dConfig::new(stride, p);
        let down = Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] };
        let odd = Conv2dConfig { stride: 3, padding: [2, 0, 1, 3] };
        let cases = [
            // image [H, W, I], output [OH, OW, O], kernel, config
            ([1, 1, 1], [1, 1, 1], [1, 1], same(1, 0)),
            ([7, 5, 4], [7, 5, 33], [3, 3], same(1, 1)),
            ([9, 12, 65], [5, 6, 7], [3, 3], same(2, 1)),
            ([8, 6, 33], [4, 3, 31], [3, 3], down),
            ([5, 11, 40], [5, 11, 17], [1, 1], same(1, 0)),
            ([13, 7, 3], [4, 4, 20], [5, 2], odd),
            ([2, 1, 130], [2, 1, 5], [3, 3], same(1, 1)),
        ];
        for (image, [oh, ow, o], kernel, config) in cases {
            let [h, wd, c] = image;
            check_sums(
                &format!("conv2d {image:?} {kernel:?} {config:?}"),
                &[random([2, h, wd, c], 1), random([o, c, kernel[0], kernel[1]], 2)],
                c * kernel[0] * kernel[1],
                |t| {
                    let weight = Weight::frozen(t[1], Layout::Convolution, t[1].dtype())?;
                    let y = conv2d(t[0], &weight, config, Epilogue::default())?;
                    assert_eq!(y.dims(), [2, oh, ow, o]);
                    Ok(y)
                },
                |t| {
                    let place = |at| [at / (oh * ow * o), at / (ow * o) % oh, at / o % ow, at % o];
                    let sum = |at| direct(&t[0], &t[1], image, kernel, config, place(at));
                    (0..2 * oh * ow * o).map(sum).collect()
                },
            );
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let f64s = |shape: [usize; 4], seed| random_in(DType::F64, shape, seed);
        // The smallest images are narrower than the kernel without their padding.
        let more = shapes().enumerate().map(|(i, image)| {
            (image, 1 + i % 4, [3 - i % 2, 3], Conv2dConfig::new(1 + i / 2 % 2, 1))
        });
        let given = [
            ([1, 1, 1, 1], 1, [1, 1], Conv2dConfig::new(1, 0)),
            ([2, 5, 3, 4], 3, [3, 3], Conv2dConfig::new(1, 1)),
            ([1, 4, 7, winograd::CHANNELS], 2, [3, 3], Conv2dConfig::new(1, 1)),
            ([2, 6, 5, 3], 4, [3, 3], Conv2dConfig::new(2, 1)),
            ([1, 7, 8, 2], 5, [3, 3], Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] }),
            ([1, 8, 9, 2], 3, [5, 2], Conv2dConfig { stride: 3, padding: [2, 0, 1, 3] }),
            ([3, 2, 5, 7], 2, [1, 1], Conv2dConfig::new(1, 0)),
        ];
        for (image, o, [kh, kw], config) in given.into_iter().chain(more) {
            let [b, h, w, i] = image;
            let weight = |t: &Tensor| Weight::plain(t, Layout::Convolution, t.dtype());
            let out =
                |size: usize, k, before, after| (size + before + after - k) / config.stride + 1;
            let [top, bottom, left, right] = config.padding;
            let inputs = [
                f64s(image, 11),
                f64s([o, i, kh, kw], 12),
                random([o], 13),
                random([b, o], 14),
                f64s([b, out(h, kh, top, bottom), out(w, kw, left, right), o], 15),
            ];
            for act in [Activation::Identity, Activation::Silu] {
                check_gradient(&format!("conv2d {image:?} {config:?} {act:?}"), &inputs, |t| {
                    let epilogue = Epilogue {
                        bias: Some(t[2]),
                        add_channel: Some(t[3]),
                        residual: Some(t[4]),
                        act,
                        scale: 0.75,
                    };
                    conv2d(t[0], &weight(t[1])?, config, epilogue)
                });
            }
        }
    }

    /// Root of the mean of squares.
    fn rms(x: impl Iterator<Item = f64> + Clone) -> f64 {
        (x.clone().map(|x| x * x).sum::<f64>() / x.count() as f64).sqrt()
    }

    #[test]
    fn winograd_is_the_formula_and_as_exact_as_the_direct_form() {
        let cases = [
            // image [H, W, I], output channels, padding
            ([1, 1, 16], 1, [1; 4]),
            ([2, 5, 32], 33, [1; 4]),
            ([9, 7, 336], 20, [1; 4]),
            ([6, 4, 16], 50, [0; 4]),
            ([3, 4, 48], 5, [2, 0, 3, 1]),
            ([23, 18, 64], 16, [1; 4]),
        ];
        simd::at_each_level(|level| {
            for (image, o, padding) in cases {
                let [h, wd, c] = image;
                let config = Conv2dConfig { stride: 1, padding };
                let x = random([2, h, wd, c], 8);
                let w = random([o, c, 3, 3], 9);
                // Each of c products of a point is rounded like one of the direct form's 9 c, to at most
                // sqrt(c) u by the usual random walk; with tiles of 2x2 inputs are first added in fours, weights averaged over
                // nine, outputs added from nine points: the figure's growth by 3 is that of the sums. With tiles of 4x4 values
                // grow by the norms of the three matrices, and errors with them: three times more.
                for (layout, growth) in
                    [(Layout::ConvolutionAt(1), 3.0), (Layout::LargeImages, 9.0)]
                {
                    let fast = frozen(&w, layout, DType::F32);
                    assert!(matches!(fast.packed().unwrap(), Packed::Winograd { .. }));
                    let plain = frozen(&w, Layout::Convolution, DType::F32);
                    let y = conv2d(&x, &fast, config, Epilogue::default()).unwrap();
                    let z = values(&conv2d(&x, &plain, config, Epilogue::default()).unwrap());
                    let (_, oh, ow, _) = y.dims4().unwrap();
                    let (x, w, y) = (values(&x), values(&w), values(&y));
                    let exact: Vec<f64> = (0..y.len())
                        .map(|at| {
                            let place =
                                [at / (oh * ow * o), at / (ow * o) % oh, at / o % ow, at % o];
                            direct(&x, &w, image, [3, 3], config, place).exact
                        })
                        .collect();
                    let error = |y: &[f64]| rms(y.iter().zip(&exact).map(|(y, e)| y - e));
                    let size = rms(exact.iter().copied());
                    let expected = growth * (c as f64).sqrt() * 2f64.powi(-24) * size;
                    assert!(
                        error(&y) <= expected,
                        "{} {layout:?} {image:?}: error {:e}, direct {:e}, expected {expected:e} of {size}",
                        level.name(),
                        error(&y),
                        error(&z)
                    );
                }
            }
        });
    }

    #[test]
    fn images_do_not_depend_on_the_batch_or_on_threads() {
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (dtype, channels) in [(DType::F32, 70), (DType::F32, 80), (DType::BF16, 70)] {
            let x = random_in(dtype, [7, 9, 7, channels], 3);
            let temb = random_in(dtype, [7, 40], 4);
            let weight = random_in(dtype, [40, channels, 3, 3], 5);
            for layout in [Layout::ConvolutionAt(1), Layout::LargeImages] {
                let packed = frozen(&weight, layout, dtype);
                let run = |x: &Tensor, temb: &Tensor| {
                    let epilogue = Epilogue { add_channel: Some(temb), ..Default::default() };
                    conv2d(x, &packed, Conv2dConfig::new(1, 1), epilogue).unwrap()
                };
                let whole = run(&x, &temb);
                assert_eq!(bits(&one_thread.install(|| run(&x, &temb))), bits(&whole));
                for i in 0..7 {
                    let alone = run(&x.narrow(0, i, 1).unwrap(), &temb.narrow(0, i, 1).unwrap());
                    assert_eq!(
                        bits(&alone),
                        bits(&whole.narrow(0, i, 1).unwrap()),
                        "{dtype} {layout:?} image {i}"
                    );
                }
            }
        }
    }

    #[test]
    fn images_do_not_depend_on_the_batch_on_any_device() {
        // Channels that are whole vectors and others; seven images are more rows than a tile has.
        for channels in [40, 35] {
            let (weight, bias) = (random([72, channels, 3, 3], 21), random([72], 22));
            check_batch("conv2d", &random([7, 9, 6, channels], 23), |x| {
                let weight = weight.to_dtype(x.dtype())?.to_device(x.device())?;
                let bias = bias.to_device(x.device())?;
                let weight = Weight::frozen(&weight, Layout::Convolution, x.dtype())?;
                let epilogue = Epilogue { bias: Some(&bias), ..Default::default() };
                conv2d(x, &weight, Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] }, epilogue)
            });
        }
    }

    #[test]
    fn convolutions_end_in_their_epilogue() {
        for ([b, h, w, i], o) in [([2, 5, 7, 16], 40), ([7, 3, 2, 3], 5)] {
            let inputs = [
                random([b, h, w, i], 31),
                random([o, i, 3, 3], 32),
                random([o], 33),
                random([b, o], 34),
                random([b, h, w, o], 35),
            ];
            let config = Conv2dConfig::new(1, 1);
            let silu = |x: f64| x / (1.0 + (-x).exp());
            // A slope of at most 1.1 keeps the sum's error, which is that of the products' magnitudes.
            check_sums(
                &format!("conv2d with an epilogue, {o} channels"),
                &inputs,
                9 * i,
                |t| {
                    let weight = Weight::frozen(t[1], Layout::Convolution, t[1].dtype())?;
                    let epilogue = Epilogue {
                        bias: Some(t[2]),
                        add_channel: Some(t[3]),
                        residual: Some(t[4]),
                        act: Activation::Silu,
                        scale: 0.75,
                    };
                    conv2d(t[0], &weight, config, epilogue)
                },
                |t| {
                    let end = |at: usize| {
                        let place = [at / (h * w * o), at / (w * o) % h, at / o % w, at % o];
                        let sum = direct(&t[0], &t[1], [h, w, i], [3, 3], config, place);
                        let before = sum.exact + t[2][at % o] + t[3][place[0] * o + at % o];
                        let exact = silu(before) * 0.75 + t[4][at];
                        Sum { exact, magnitude: sum.magnitude + before.abs() + t[4][at].abs() }
                    };
                    (0..b * h * w * o).map(end).collect()
                },
            );
        }
    }

    #[test]
    fn strided_views_are_their_copies() {
        let x = random([1, 40, 6, 8], 6).permute(&[0, 2, 3, 1]).unwrap(); // [1, 6, 8, 40]
        let packed = frozen(&random([9, 40, 3, 3], 7), Layout::Convolution, DType::F32);
        let run =
            |x: &Tensor| conv2d(x, &packed, Conv2dConfig::new(1, 1), Epilogue::default()).unwrap();
        assert_eq!(bits(&run(&x)), bits(&run(&x.contiguous().unwrap())));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let packed = frozen(&random([4, 3, 3, 3], 1), Layout::Convolution, DType::F32);
        let run = |shape: [usize; 4], config| {
            conv2d(&random(shape, 2), &packed, config, Epilogue::default())
        };
        assert!(matches!(run([1, 5, 5, 4], Conv2dConfig::new(1, 1)), Err(Error::Shape { .. })));
        assert!(matches!(run([1, 2, 2, 3], Conv2dConfig::new(1, 0)), Err(Error::Shape { .. })));
        assert!(matches!(run([1, 5, 5, 3], Conv2dConfig::new(0, 1)), Err(Error::Value { .. })));
        assert!(matches!(
            run([1, 5, 5, 3], Conv2dConfig { stride: 1, padding: [usize::MAX; 4] }),
            Err(Error::Shape { .. })
        ));
        let x = random([1, 5, 5, 16], 2);
        for layout in [Layout::ConvolutionAt(1), Layout::LargeImages] {
            let packed = frozen(&random([4, 16, 3, 3], 1), layout, DType::F32);
            assert!(matches!(
                conv2d(&x, &packed, Conv2dConfig::new(2, 1), Epilogue::default()),
                Err(Error::Value { .. })
            ));
        }
    }
}
