//! 2-d convolution of NHWC images over packed weights: an implicit matrix product
//! [B * OH * OW, KH * KW * C] x [KH * KW * C, O], or Winograd's algorithm.

use super::matmul::{Epilogue, Packed, with_epilogue};
use super::{Meta, Op, apply};
use crate::cpu::gemm::{Rows, f32_kernel};
use crate::cpu::simd::{self, Level};
use crate::cpu::winograd::{self, Images};
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Shape, Tensor};

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

/// Weights of a convolution, packed for the device they are on.
#[derive(Clone)]
pub struct PackedConv {
    form: Form,
    /// [O, I, KH, KW]
    shape: [usize; 4],
}

#[derive(Clone)]
enum Form {
    /// A matrix [KH * KW * I, O].
    Direct(Packed),
    /// Transformed for 3x3 at stride 1, in f32.
    Winograd { level: Level, panels: Tensor },
}

impl PackedConv {
    /// Packs a weight [O, I, KH, KW], as torch stores it, rounded to `dtype`, for any stride and padding.
    ///
    /// # Errors
    /// `Shape` when it has another rank or is empty, `DType` when it or `dtype` is not floating-point,
    /// `NoKernel` off the CPU.
    pub fn new(weight: &Tensor, dtype: DType) -> Result<Self> {
        let shape @ [o, i, kh, kw] = Self::shape(weight)?;
        // k runs over (row, column, channel) of a patch: a pixel's channels are neighbours in NHWC.
        let (k, taps) = (i * kh * kw, kh * kw);
        let packed = Packed::new(NAME, weight, dtype, (k, o), k, |k| k % i * taps + k / i)?;
        Ok(Self { form: Form::Direct(packed), shape })
    }

    /// As [`Self::new`] for one stride only, which may make it faster: 3x3 convolutions at stride 1 in f32
    /// go through Winograd's F(2x2, 3x3), with 4/9 of the products, 16/9 of the memory, and errors about
    /// twice as large.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_stride(weight: &Tensor, stride: usize, dtype: DType) -> Result<Self> {
        let shape @ [o, i, kh, kw] = Self::shape(weight)?;
        let suits = [kh, kw] == [3, 3] && stride == 1 && i % winograd::CHANNELS == 0;
        if !suits || dtype != DType::F32 || weight.device() != Device::Cpu {
            return Self::new(weight, dtype);
        }
        let (weight, level) = (weight.contiguous()?, simd::level());
        let kernel = f32_kernel(level);
        let mut panels =
            Tensor::uninit([winograd::packed_len(kernel, i, o)], DType::F32, Device::Cpu)?;
        crate::dispatch_float!(NAME, weight.dtype(), T => {
            winograd::pack(kernel, i, o, weight.as_slice::<T>()?, panels.as_mut_slice()?);
            Ok(())
        })?;
        Ok(Self { form: Form::Winograd { level, panels }, shape })
    }

    fn shape(weight: &Tensor) -> Result<[usize; 4]> {
        match *weight.dims() {
            [o, i, kh, kw] if o * i * kh * kw > 0 => Ok([o, i, kh, kw]),
            _ => Err(Error::expected_shape(
                NAME,
                "weight",
                "[O, I, KH, KW], not empty",
                weight.shape(),
            )),
        }
    }

    /// Channels that it takes.
    pub fn in_channels(&self) -> usize {
        self.shape[1]
    }

    /// Channels that it gives.
    pub fn out_channels(&self) -> usize {
        self.shape[0]
    }

    /// Height and width of the kernel.
    pub fn kernel(&self) -> [usize; 2] {
        [self.shape[2], self.shape[3]]
    }

    /// Dtype of the packed weights.
    pub fn dtype(&self) -> DType {
        match &self.form {
            Form::Direct(packed) => packed.dtype(),
            Form::Winograd { panels, .. } => panels.dtype(),
        }
    }

    /// Where they are.
    pub fn device(&self) -> Device {
        match &self.form {
            Form::Direct(packed) => packed.device(),
            Form::Winograd { panels, .. } => panels.device(),
        }
    }

    /// The same weights on another device.
    ///
    /// # Errors
    /// `NoKernel` for a GPU.
    pub fn to_device(&self, device: Device) -> Result<Self> {
        if device == self.device() { Ok(self.clone()) } else { Err(Error::no_kernel(NAME)) }
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

struct Conv2d<'a> {
    weight: &'a PackedConv,
    config: Conv2dConfig,
    epilogue: Epilogue<'a>,
}

impl Op for Conv2d<'_> {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &[&Tensor]) -> Result<Meta> {
        let (x, w) = (inputs[0], self.weight);
        let (b, h, wd) = match *x.dims() {
            [b, h, wd, c] if c == w.in_channels() => (b, h, wd),
            _ => {
                let expected = format!("[B, H, W, {}]", w.in_channels());
                return Err(Error::expected_shape(NAME, "x", &expected, x.shape()));
            }
        };
        let Conv2dConfig { stride, padding: [top, bottom, left, right] } = self.config;
        let [kh, kw] = w.kernel();
        if stride == 0 || (stride != 1 && matches!(w.form, Form::Winograd { .. })) {
            return Err(Error::value(
                NAME,
                format!("stride {stride} over weights packed for another"),
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
        match &w.form {
            Form::Direct(packed) => packed.check_dtype(NAME, x.dtype())?,
            Form::Winograd { .. } if x.dtype() == DType::F32 => {}
            Form::Winograd { .. } => {
                return Err(Error::DType { op: NAME, expected: "f32", found: x.dtype() });
            }
        }
        let out = Meta { shape: Shape::new(&[b, oh, ow, w.out_channels()]), dtype: x.dtype() };
        self.epilogue.check(NAME, &out)?;
        Ok(out)
    }

    fn cpu(&self, inputs: &[&Tensor], out: &mut Tensor) -> Result<()> {
        let x = inputs[0];
        let (batch, height, width, channels) = x.dims4()?;
        let (_, out_height, out_width, n) = out.dims4()?;
        let Conv2dConfig { stride, padding: [top, _, left, _] } = self.config;
        match &self.weight.form {
            Form::Direct(packed) => {
                let [_, kernel_width] = self.weight.kernel();
                let patches = Patches {
                    height,
                    width,
                    channels,
                    out_height,
                    out_width,
                    kernel_width,
                    stride,
                    top,
                    left,
                };
                packed.multiply(NAME, x, &patches, &self.epilogue, out)
            }
            Form::Winograd { level, panels } => {
                let images =
                    Images { batch, height, width, channels, out_height, out_width, top, left };
                let x = x.contiguous()?;
                with_epilogue::<f32>(&self.epilogue, out, |out, finish| {
                    let (x, panels) = (x.as_slice()?, panels.as_slice()?);
                    winograd::convolve(f32_kernel(*level), images, n, x, panels, out, finish);
                    Ok(())
                })
            }
        }
    }

    fn cuda(&self, _: &[&Tensor], _: &mut Tensor) -> Result<()> {
        Err(Error::no_kernel(NAME))
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, _: &Tensor) -> Result<Vec<Option<Tensor>>> {
        Err(Error::no_gradient(NAME))
    }
}

/// Convolution (cross-correlation, as in torch) followed by an epilogue: [B, H, W, I] -> [B, OH, OW, O].
///
/// `OH = (H + top + bottom - KH) / stride + 1`, and OW likewise. `x` has the weights' dtype, or is f32
/// over 16-bit weights; sums are taken in f32 (f64 for f64).
///
/// # Errors
/// `Shape` and `DType` when x or the epilogue's tensors do not fit, `Value` for a stride of 0; `NoKernel`
/// on a GPU.
pub fn conv2d(
    x: &Tensor,
    weight: &PackedConv,
    config: Conv2dConfig,
    epilogue: Epilogue,
) -> Result<Tensor> {
    apply(&Conv2d { weight, config, epilogue }, &epilogue.inputs(x))
}

#[cfg(test)]
mod tests {
    use super::super::matmul::tests::{bits, random, tolerance, values};
    use super::*;

    /// Exact output and sum of magnitudes at one place.
    fn direct(
        x: &[f64],
        w: &[f64],
        [h, wd, c]: [usize; 3],
        [kh, kw]: [usize; 2],
        config: Conv2dConfig,
        [b, oy, ox, o]: [usize; 4],
    ) -> (f64, f64) {
        let [top, _, left, _] = config.padding;
        let (mut sum, mut magnitude) = (0.0, 0.0);
        for ky in 0..kh {
            for kx in 0..kw {
                let (y, xx) = (oy * config.stride + ky, ox * config.stride + kx);
                if y < top || xx < left || y - top >= h || xx - left >= wd {
                    continue;
                }
                for i in 0..c {
                    let pixel = x[((b * h + y - top) * wd + xx - left) * c + i];
                    let term = pixel * w[((o * c + i) * kh + ky) * kw + kx];
                    sum += term;
                    magnitude += term.abs();
                }
            }
        }
        (sum, magnitude)
    }

    #[test]
    fn convolution_is_the_formula() {
        let same = |stride, p| Conv2dConfig::new(stride, p);
        let down = Conv2dConfig { stride: 2, padding: [0, 1, 0, 1] };
        let odd = Conv2dConfig { stride: 3, padding: [2, 0, 1, 3] };
        let cases = [
            // image [H, W, I], output channels, kernel, config
            ([1, 1, 1], 1, [1, 1], same(1, 0)),
            ([7, 5, 4], 33, [3, 3], same(1, 1)),
            ([9, 12, 65], 7, [3, 3], same(2, 1)),
            ([8, 6, 33], 31, [3, 3], down),
            ([5, 11, 40], 17, [1, 1], same(1, 0)),
            ([13, 7, 3], 20, [5, 2], odd),
            ([2, 1, 130], 5, [3, 3], same(1, 1)),
        ];
        for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
            for (image, o, kernel, config) in cases {
                let [h, wd, c] = image;
                let x = random([2, h, wd, c], 1, dtype);
                let w = random([o, c, kernel[0], kernel[1]], 2, dtype);
                let packed = PackedConv::new(&w, dtype).unwrap();
                let y = conv2d(&x, &packed, config, Epilogue::default()).unwrap();
                let (_, oh, ow, _) = y.dims4().unwrap();
                let (x, w, y) = (values(&x), values(&w), values(&y));
                for (at, &y) in y.iter().enumerate() {
                    let place = [at / (oh * ow * o), at / (ow * o) % oh, at / o % ow, at % o];
                    let (exact, magnitude) = direct(&x, &w, image, kernel, config, place);
                    let error = (y - exact).abs();
                    let k = c * kernel[0] * kernel[1];
                    assert!(
                        error <= tolerance(dtype, k, magnitude, exact),
                        "{dtype} {image:?} {kernel:?} {config:?} at {place:?}: error {error:e}"
                    );
                }
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
                let x = random([2, h, wd, c], 8, DType::F32);
                let w = random([o, c, 3, 3], 9, DType::F32);
                let fast = PackedConv::with_stride(&w, 1, DType::F32).unwrap();
                assert!(matches!(fast.form, Form::Winograd { .. }));
                let plain = PackedConv::new(&w, DType::F32).unwrap();
                let y = conv2d(&x, &fast, config, Epilogue::default()).unwrap();
                let z = values(&conv2d(&x, &plain, config, Epilogue::default()).unwrap());
                let (_, oh, ow, _) = y.dims4().unwrap();
                let (x, w, y) = (values(&x), values(&w), values(&y));
                let exact: Vec<f64> = (0..y.len())
                    .map(|at| {
                        let place = [at / (oh * ow * o), at / (ow * o) % oh, at / o % ow, at % o];
                        direct(&x, &w, image, [3, 3], config, place).0
                    })
                    .collect();
                let error = |y: &[f64]| rms(y.iter().zip(&exact).map(|(y, e)| y - e));
                // Each of c products of a point is rounded like one of the direct form's 9 c, to at most
                // sqrt(c) u by the usual random walk; inputs are first added in fours, weights averaged over
                // nine, outputs added from nine points: the figure's growth by 3 is that of the sums.
                let size = rms(exact.iter().copied());
                let expected = 3.0 * (c as f64).sqrt() * 2f64.powi(-24) * size;
                assert!(
                    error(&y) <= expected,
                    "{} {image:?}: error {:e}, direct {:e}, expected {expected:e} of {size}",
                    level.name(),
                    error(&y),
                    error(&z)
                );
            }
        });
    }

    #[test]
    fn images_do_not_depend_on_the_batch_or_on_threads() {
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        for (dtype, channels) in [(DType::F32, 70), (DType::F32, 80), (DType::BF16, 70)] {
            let x = random([7, 9, 7, channels], 3, dtype);
            let temb = random([7, 40], 4, dtype);
            let weight = random([40, channels, 3, 3], 5, dtype);
            let packed = PackedConv::with_stride(&weight, 1, dtype).unwrap();
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
                    "{dtype} image {i}"
                );
            }
        }
    }

    #[test]
    fn strided_views_are_their_copies() {
        let x = random([1, 40, 6, 8], 6, DType::F32).permute(&[0, 2, 3, 1]).unwrap(); // [1, 6, 8, 40]
        let packed = PackedConv::new(&random([9, 40, 3, 3], 7, DType::F32), DType::F32).unwrap();
        let run =
            |x: &Tensor| conv2d(x, &packed, Conv2dConfig::new(1, 1), Epilogue::default()).unwrap();
        assert_eq!(bits(&run(&x)), bits(&run(&x.contiguous().unwrap())));
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let packed = PackedConv::new(&random([4, 3, 3, 3], 1, DType::F32), DType::F32).unwrap();
        let run = |shape: [usize; 4], config| {
            conv2d(&random(shape, 2, DType::F32), &packed, config, Epilogue::default())
        };
        assert!(run([1, 5, 5, 4], Conv2dConfig::new(1, 1)).is_err());
        assert!(run([1, 2, 2, 3], Conv2dConfig::new(1, 0)).is_err());
        assert!(run([1, 5, 5, 3], Conv2dConfig::new(0, 1)).is_err());
        assert!(run([1, 5, 5, 3], Conv2dConfig { stride: 1, padding: [usize::MAX; 4] }).is_err());
        let packed =
            PackedConv::with_stride(&random([4, 16, 3, 3], 1, DType::F32), 1, DType::F32).unwrap();
        let x = random([1, 5, 5, 16], 2, DType::F32);
        assert!(conv2d(&x, &packed, Conv2dConfig::new(2, 1), Epilogue::default()).is_err());
        assert!(PackedConv::new(&random([4, 3, 3], 1, DType::F32), DType::F32).is_err());
        assert!(PackedConv::new(&random([4, 0, 3, 3], 1, DType::F32), DType::F32).is_err());
    }
}
