//! Pictures at the size that InceptionV3 takes, in the two ways that published distances use: TensorFlow 1's bilinear
//! one, which reads pixels without a filter (`torch_fidelity/interpolate_compat_tensorflow.py`), and Pillow's bicubic one
//! on floats (Parmar et al. 2022, "On Aliased Resizing and Surprising Subtleties in GAN Evaluation"; `cleanfid/resize.py`
//! over Pillow's `src/libImaging/Resample.c`).

use crate::cpu::parallel::for_each_row;
use crate::error::{Error, Result};
use crate::io::image::RgbImage;
use crate::models::inception::SIDE;
use crate::tensor::{DType, Device, Tensor};

/// How a picture becomes larger or smaller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resize {
    /// TensorFlow 1's, of torch-fidelity and pytorch-fid's first figures.
    #[default]
    TensorFlow,
    /// clean-fid's.
    Clean,
}

impl Resize {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::TensorFlow => "tensorflow",
            Self::Clean => "clean",
        }
    }

    /// Pictures as InceptionV3 takes them: levels at 299x299, less 128 and by 128, [B, 299, 299, 3].
    ///
    /// # Errors
    /// No picture, or one without pixels.
    pub fn batch(self, pictures: &[RgbImage]) -> Result<Tensor> {
        if pictures.iter().any(|picture| picture.width().min(picture.height()) == 0) {
            return Err(Error::argument("picture", "one without pixels", "at least one pixel"));
        }
        let shape = [pictures.len(), SIDE, SIDE, 3];
        let mut batch = Tensor::uninit(shape, DType::F32, Device::Cpu)?;
        let levels = batch.as_mut_slice::<f32>()?;
        for_each_row(levels, SIDE * SIDE * 3, |i, out| {
            match self {
                Self::TensorFlow => tensorflow(&pictures[i], out),
                Self::Clean => clean(&pictures[i], out),
            }
            out.iter_mut().for_each(|x| *x = (*x - 128.0) / 128.0);
        });
        Ok(batch)
    }
}

/// For each of `SIDE` positions the two among `from` around it and the share of the second; the first of both sides are
/// the same.
fn bilinear(from: usize) -> Vec<(usize, usize, f32)> {
    let scale = (from as f64 / SIDE as f64) as f32;
    let of = |i: usize| {
        let at = i as f32 * scale;
        let low = (at as usize).min(from - 1);
        (low, (low + 1).min(from - 1), at - low as f32)
    };
    (0..SIDE).map(of).collect()
}

/// The picture's levels at [SIDE, SIDE, 3], between the four pixels around each position.
fn tensorflow(picture: &RgbImage, out: &mut [f32]) {
    let width = picture.width() as usize;
    let (xs, ys) = (bilinear(width), bilinear(picture.height() as usize));
    let level = |y: usize, x: usize, c: usize| f32::from(picture.as_raw()[(y * width + x) * 3 + c]);
    for (row, &(top, bottom, down)) in out.chunks_exact_mut(SIDE * 3).zip(&ys) {
        for (pixel, &(left, right, along)) in row.as_chunks_mut::<3>().0.iter_mut().zip(&xs) {
            for (c, out) in pixel.iter_mut().enumerate() {
                let between = |y| {
                    let (left, right) = (level(y, left, c), level(y, right, c));
                    left + (right - left) * along
                };
                let (top, bottom) = (between(top), between(bottom));
                *out = top + (bottom - top) * down;
            }
        }
    }
}

/// Where the pixels begin that a target pixel is made of, and their weights.
type Tap = (usize, Vec<f64>);

/// Pillow's bicubic filter, a = -0.5, as wide as the picture shrinks.
fn bicubic(from: usize) -> Vec<Tap> {
    let kernel = |x: f64| match x.abs() {
        x if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        x if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        _ => 0.0,
    };
    let scale = from as f64 / SIDE as f64;
    let widening = scale.max(1.0);
    let support = 2.0 * widening;
    let of = |i: usize| {
        let center = (i as f64 + 0.5) * scale;
        let first = (center - support + 0.5).max(0.0) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let weight = |x: usize| kernel((x as f64 - center + 0.5) / widening);
        let weights: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        (first, weights.iter().map(|w| w / sum).collect())
    };
    (0..SIDE).map(of).collect()
}

/// The picture's levels at [SIDE, SIDE, 3]: rows first, then columns, f32 between, and no level outside of 0 to 255.
fn clean(picture: &RgbImage, out: &mut [f32]) {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let mut rows = Vec::with_capacity(height * SIDE * 3); // [height, SIDE, 3]
    let xs = bicubic(width);
    for row in picture.as_raw().chunks_exact(width * 3) {
        for (first, weights) in &xs {
            for c in 0..3 {
                let pixels = row[3 * first..].iter().skip(c).step_by(3);
                let sum = weights.iter().zip(pixels).map(|(w, &x)| w * f64::from(x)).sum::<f64>();
                rows.push(sum as f32);
            }
        }
    }
    let mut sums = vec![0.0f64; SIDE * 3];
    for (out, (first, weights)) in out.chunks_exact_mut(SIDE * 3).zip(bicubic(height)) {
        sums.fill(0.0);
        for (row, weight) in rows.chunks_exact(SIDE * 3).skip(first).zip(weights) {
            sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * f64::from(x));
        }
        out.iter_mut().zip(&sums).for_each(|(out, &sum)| *out = (sum as f32).clamp(0.0, 255.0));
    }
}
