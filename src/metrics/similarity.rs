//! How alike two pictures are, pixel by pixel: the peak signal-to-noise ratio, and structural similarity (Wang et al.
//! 2004, "Image Quality Assessment: From Error Visibility to Structural Similarity"). Reference: scikit-image's
//! `metrics/simple_metrics.py` and `metrics/_structural_similarity.py`.

use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor};

/// 10 log10(range² / mean squared error), in dB; infinite for equal pictures.
///
/// `a` and `b` of one shape; `range` from the least to the largest value that there can be, 255 for levels.
///
/// # Errors
/// `Shape` when they differ in shape or are empty, `Argument` for a range that is not positive.
pub fn psnr(a: &Tensor, b: &Tensor, range: f64) -> Result<f64> {
    let (a, b) = (values("psnr", a, b, range)?, values("psnr", b, a, range)?);
    let squares: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    Ok(10.0 * (range * range * a.len() as f64 / squares).log10())
}

/// What [`ssim`] looks through.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Window {
    /// A square of so many pixels a side, odd; scikit-image's default is 7.
    Uniform(usize),
    /// A bell of this deviation, cut at 3.5 of them; the paper's is 1.5.
    Gaussian(f64),
}

/// How [`ssim`] is computed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ssim {
    /// The window.
    pub window: Window,
    /// From the least to the largest value that there can be: 255 for levels, 1 for 0..1, 2 for -1..1.
    pub range: f64,
    /// Whether a window's variance is that of a sample, by its pixels less one, as scikit-image has it unless told
    /// otherwise. The paper's is not.
    pub sample_covariance: bool,
}

impl Default for Ssim {
    /// scikit-image's, of levels.
    fn default() -> Self {
        Self { window: Window::Uniform(7), range: 255.0, sample_covariance: true }
    }
}

/// Mean structural similarity of two pictures [H, W, C], from -1 to 1: over the places where the window lies within the
/// picture, and over channels. K1 = 0.01, K2 = 0.03.
///
/// Another order of axes is a [view](Tensor::permute); a grey picture has one channel.
///
/// # Errors
/// `Shape` when they differ in shape, are no pictures, or are smaller than the window; `Argument` for a window that is
/// even or not positive, or such a range.
pub fn ssim(a: &Tensor, b: &Tensor, settings: &Ssim) -> Result<f64> {
    const OP: &str = "ssim";
    let (height, width, channels) = a.dims3()?;
    let (x, y) = (values(OP, a, b, settings.range)?, values(OP, b, a, settings.range)?);
    let window = weights(settings.window)?;
    let size = window.len();
    if size > height.min(width) {
        let message = format!("pictures of {height}x{width} under a window of {size}x{size}");
        return Err(Error::shape(OP, message));
    }
    let pixels = (size * size) as f64;
    let unbiased = if settings.sample_covariance { pixels / (pixels - 1.0) } else { 1.0 };
    let squared = |k: f64| (k * settings.range) * (k * settings.range);
    let (c1, c2) = (squared(0.01), squared(0.03));
    let mut sum = 0.0;
    for channel in 0..channels {
        let of = |f: &dyn Fn(usize) -> f64| {
            let plane: Vec<f64> = (channel..x.len()).step_by(channels).map(f).collect();
            filter(&plane, [height, width], &window)
        };
        let (ux, uy) = (of(&|i| x[i]), of(&|i| y[i]));
        let (xx, yy, xy) = (of(&|i| x[i] * x[i]), of(&|i| y[i] * y[i]), of(&|i| x[i] * y[i]));
        let places = ux.len() as f64;
        let at = |i: usize| {
            let (ux, uy) = (ux[i], uy[i]);
            let vx = unbiased * (xx[i] - ux * ux);
            let vy = unbiased * (yy[i] - uy * uy);
            let vxy = unbiased * (xy[i] - ux * uy);
            (2.0 * ux * uy + c1) * (2.0 * vxy + c2) / ((ux * ux + uy * uy + c1) * (vx + vy + c2))
        };
        sum += (0..ux.len()).map(at).sum::<f64>() / places;
    }
    Ok(sum / channels as f64)
}

/// The values of `a` in f64, `b` being of its shape.
fn values(op: &'static str, a: &Tensor, b: &Tensor, range: f64) -> Result<Vec<f64>> {
    if a.shape() != b.shape() || a.is_empty() {
        return Err(Error::expected_shape(
            op,
            "the other picture",
            &a.shape().to_string(),
            b.shape(),
        ));
    }
    if !(range > 0.0 && range.is_finite()) {
        return Err(Error::argument("range", range, "a number above 0"));
    }
    a.to_device(Device::Cpu)?.to_dtype(DType::F64)?.contiguous()?.to_vec()
}

/// The window along one axis.
fn weights(window: Window) -> Result<Vec<f64>> {
    match window {
        Window::Uniform(size) if size >= 3 && size % 2 == 1 => Ok(vec![1.0 / size as f64; size]),
        Window::Gaussian(deviation) if deviation > 0.0 && deviation < 1000.0 => {
            let radius = (3.5 * deviation + 0.5) as i64;
            let bell = |i: i64| (-0.5 * (i as f64 / deviation).powi(2)).exp();
            let sum: f64 = (-radius..=radius).map(bell).sum();
            Ok((-radius..=radius).map(|i| bell(i) / sum).collect())
        }
        other => {
            let expected = "an odd number of pixels from 3 on, or a deviation above 0";
            Err(Error::argument("window", format!("{other:?}"), expected))
        }
    }
}

/// The weighted sum at each place where the window lies within the plane: [H - n + 1, W - n + 1].
fn filter(plane: &[f64], [height, width]: [usize; 2], window: &[f64]) -> Vec<f64> {
    let n = window.len();
    let dot = |at: &dyn Fn(usize) -> f64| (0..n).map(|i| window[i] * at(i)).sum::<f64>();
    let columns = width - n + 1;
    let mut rows = Vec::with_capacity(height * columns); // [H, W - n + 1]
    for row in plane.chunks_exact(width) {
        rows.extend((0..columns).map(|x| dot(&|i| row[x + i])));
    }
    let mut out = Vec::with_capacity((height - n + 1) * columns);
    for y in 0..height - n + 1 {
        out.extend((0..columns).map(|x| dot(&|i| rows[(y + i) * columns + x])));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::Mt19937;

    fn picture(shape: [usize; 3], seed: u64) -> Tensor {
        Tensor::from_vec(Mt19937::new(seed).randn(shape.iter().product()), shape).unwrap()
    }

    #[test]
    fn a_picture_is_itself() {
        let a = picture([9, 12, 3], 1);
        assert_eq!(psnr(&a, &a, 1.0).unwrap(), f64::INFINITY);
        for window in [Window::Uniform(3), Window::Gaussian(1.0)] {
            let found = ssim(&a, &a, &Ssim { window, ..Ssim::default() }).unwrap();
            assert!((found - 1.0).abs() <= 1e-12, "{found}");
        }
    }

    #[test]
    fn a_known_error_is_a_known_ratio() {
        let a = Tensor::full([4, 5, 3], 100.0, DType::F32, Device::Cpu).unwrap();
        let b = Tensor::full([4, 5, 3], 110.0, DType::F32, Device::Cpu).unwrap();
        let found = psnr(&a, &b, 255.0).unwrap();
        assert!((found - 20.0 * 25.5f64.log10()).abs() <= 1e-12, "{found}");
    }

    #[test]
    fn what_cannot_be_compared_is_refused() {
        let (a, b) = (picture([9, 12, 3], 1), picture([12, 9, 3], 2));
        assert!(matches!(psnr(&a, &b, 1.0), Err(Error::Shape { .. })));
        assert!(matches!(ssim(&a, &b, &Ssim::default()), Err(Error::Shape { .. })));
        assert!(matches!(psnr(&a, &a, f64::NAN), Err(Error::Argument { .. })));
        let with = |window| ssim(&a, &a, &Ssim { window, ..Ssim::default() });
        assert!(matches!(with(Window::Uniform(11)), Err(Error::Shape { .. })));
        assert!(matches!(with(Window::Uniform(4)), Err(Error::Argument { .. })));
        assert!(matches!(with(Window::Gaussian(0.0)), Err(Error::Argument { .. })));
    }
}
