//! Elements that are left out at random in training (Srivastava et al. 2014).

use crate::error::Result;
use crate::ops::elementwise::mul;
use crate::tensor::Tensor;

/// Draws from 0 up to 1.
pub type Draw<'a> = dyn FnMut() -> f64 + 'a;

/// `x` with each element 0 with probability `p`, the others 1 / (1 - p) as large.
///
/// # Errors
/// `OutOfMemory`.
pub fn dropout(x: &Tensor, p: f64, draw: &mut Draw) -> Result<Tensor> {
    let factors = (0..x.len()).map(|_| factor(p, draw)).collect();
    times(x, factors, p)
}

/// `x` [B, H, W, C] with each channel of an image 0 with probability `p`, the others 1 / (1 - p) as large: `Dropout2d`.
///
/// # Errors
/// `Shape` when `x` is no image batch.
pub fn dropout_channels(x: &Tensor, p: f64, draw: &mut Draw) -> Result<Tensor> {
    let (batch, height, width, channels) = x.dims4()?;
    let mut factors = Vec::with_capacity(x.len());
    for _ in 0..batch {
        let of_image: Vec<f32> = (0..channels).map(|_| factor(p, draw)).collect();
        (0..height * width).for_each(|_| factors.extend_from_slice(&of_image));
    }
    times(x, factors, p)
}

fn factor(p: f64, draw: &mut Draw) -> f32 {
    if draw() < p { 0.0 } else { (1.0 / (1.0 - p)) as f32 }
}

fn times(x: &Tensor, factors: Vec<f32>, p: f64) -> Result<Tensor> {
    if p == 0.0 {
        return Ok(x.clone());
    }
    let factors = Tensor::from_vec(factors, *x.shape())?.to_dtype(x.dtype())?;
    mul(x, &factors.to_device(x.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::values;
    use crate::tensor::{DType, Device};

    #[test]
    fn what_is_left_out_is_the_share_that_was_asked_for_and_the_mean_stays() {
        let x = Tensor::full([4, 10, 10, 30], 1.0, DType::F32, Device::Cpu).unwrap();
        let mut state = 1u64;
        let mut draw = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 11) as f64 / (1u64 << 53) as f64
        };
        let all = values(&dropout(&x, 0.25, &mut draw).unwrap());
        let left_out = all.iter().filter(|&&x| x == 0.0).count() as f64 / all.len() as f64;
        // Of 12,000, a share deviates by 0.004.
        assert!((left_out - 0.25).abs() < 0.02, "{left_out}");
        assert!(all.iter().all(|&x| x == 0.0 || x == f64::from(4.0f32 / 3.0)));
        let channels = values(&dropout_channels(&x, 0.5, &mut draw).unwrap());
        for image in channels.chunks(100 * 30) {
            assert!(image.chunks(30).all(|pixel| pixel == &image[..30]));
        }
        assert!(channels.contains(&0.0) && channels.contains(&2.0));
        assert_eq!(values(&dropout(&x, 0.0, &mut draw).unwrap()), values(&x));
    }
}
