//! Classifier-free guidance.

use crate::error::Result;
use crate::ops::elementwise::linear_combination;
use crate::tensor::Tensor;

/// Classifier-free guidance (Ho & Salimans 2022): uncond + scale (cond - uncond).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guidance {
    scale: f32,
    rescale: f32,
}

impl Guidance {
    /// None where the prompt alone is followed. With `rescale` above 0 the guided prediction gets back that part of
    /// the contrast of the one with the prompt (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps
    /// are Flawed", section 3.4).
    pub(crate) fn new(scale: f32, rescale: f32) -> Option<Self> {
        // A scale of 1 is the prompt alone; diffusers takes anything below for the same.
        (scale > 1.0).then_some(Self { scale, rescale })
    }

    /// Weights of the predictions without the prompt and with it; `None` where the guided one is no sum of them.
    pub(super) fn weights(self) -> Option<[f32; 2]> {
        (self.rescale == 0.0).then_some([1.0 - self.scale, self.scale])
    }

    /// From the predictions without the prompt and with it, [2, h, w, C] f32, to the guided one [1, h, w, C].
    ///
    /// # Errors
    /// None for a prediction of this shape.
    pub(crate) fn apply(self, prediction: &Tensor) -> Result<Tensor> {
        let Self { scale, rescale } = self;
        let uncond = prediction.narrow(0, 0, 1)?; // [1, h, w, C]
        let cond = prediction.narrow(0, 1, 1)?;
        let guided = linear_combination(&[(1.0 - scale, &uncond), (scale, &cond)])?;
        if rescale == 0.0 {
            return Ok(guided);
        }
        let mut values = guided.to_vec::<f32>()?;
        let contrast = (deviation(&cond.to_vec()?) / deviation(&values)) as f32;
        let factor = rescale * contrast + (1.0 - rescale);
        values.iter_mut().for_each(|x| *x *= factor);
        Tensor::from_vec(values, guided.shape())?.to_device(guided.device())
    }
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
            (0..2 * 15).map(|i| (i as f32 * 0.7).sin() + i as f32 * 0.01).collect();
        let prediction = Tensor::from_slice(&values, [2, 3, 5, 1]).unwrap();
        let guide = |scale, rescale| {
            Guidance { scale, rescale }.apply(&prediction).unwrap().to_vec::<f32>().unwrap()
        };
        assert_eq!(guide(1.0, 0.0), values[15..]);
        assert!((deviation(&guide(7.5, 1.0)) / deviation(&values[15..]) - 1.0).abs() < 1e-5);
        assert!((deviation(&guide(7.5, 0.0)) / deviation(&values[15..]) - 1.0).abs() > 0.1);
        // As diffusers has it, no less than 1 guides.
        assert!([0.0, 0.5, 1.0].iter().all(|&scale| Guidance::new(scale, 0.5).is_none()));
        assert!(Guidance::new(1.01, 0.0).is_some());
    }
}
