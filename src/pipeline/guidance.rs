//! Classifier-free guidance.

use crate::error::Result;
use crate::ops::elementwise::linear_combination;
use crate::tensor::Tensor;

/// Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond).
///
/// `prediction` [2 B, h, w, C] f32 holds the predictions without the prompt, then those with it. With
/// `rescale` above 0 the guided prediction gets back that part of the contrast of the one with the prompt
/// (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed", section 3.4).
///
/// # Errors
/// None for a prediction of this shape.
pub(super) fn guide(prediction: &Tensor, scale: f32, rescale: f32) -> Result<Tensor> {
    let batch = prediction.dim(0) / 2;
    let uncond = prediction.narrow(0, 0, batch)?; // [B, h, w, C]
    let cond = prediction.narrow(0, batch, batch)?;
    let guided = linear_combination(&[(1.0 - scale, &uncond), (scale, &cond)])?;
    if rescale == 0.0 {
        return Ok(guided);
    }
    let each = guided.len() / batch;
    let with_prompt = cond.to_vec::<f32>()?;
    let mut values = guided.to_vec::<f32>()?;
    for (guided, cond) in values.chunks_exact_mut(each).zip(with_prompt.chunks_exact(each)) {
        let contrast = (deviation(cond) / deviation(guided)) as f32;
        let factor = rescale * contrast + (1.0 - rescale);
        guided.iter_mut().for_each(|x| *x *= factor);
    }
    Tensor::from_vec(values, guided.shape())?.to_device(guided.device())
}

/// Standard deviation of a sample, as torch.std takes it.
fn deviation(x: &[f32]) -> f64 {
    let n = x.len() as f64;
    let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
    (x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scale_one_is_the_prompt_alone_and_full_rescale_restores_its_contrast() {
        let values: Vec<f32> =
            (0..4 * 15).map(|i| (i as f32 * 0.7).sin() + i as f32 * 0.01).collect();
        let prediction = Tensor::from_slice(&values, [4, 3, 5, 1]).unwrap();
        let cond = &values[30..];
        let same = guide(&prediction, 1.0, 0.0).unwrap().to_vec::<f32>().unwrap();
        assert!(same.iter().zip(cond).all(|(a, b)| a == b));
        let guided = guide(&prediction, 7.5, 1.0).unwrap().to_vec::<f32>().unwrap();
        for (guided, cond) in guided.chunks(15).zip(cond.chunks(15)) {
            assert!((deviation(guided) / deviation(cond) - 1.0).abs() < 1e-5);
        }
    }
}
