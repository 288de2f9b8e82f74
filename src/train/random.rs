//! Random numbers by address: which run (seed), which step, what for. Nothing of them has to be kept in a checkpoint.

use crate::error::Result;
use crate::noise::philox::philox4x32_10;
use crate::tensor::{DType, Device, Shape, Tensor};

/// What numbers are drawn for; those of different purposes have nothing in common.
#[derive(Clone, Copy, Debug)]
pub enum Purpose {
    /// Initial weights; the step is the number of the weight.
    Weights,
    /// What a task draws in a step.
    Step,
    /// What it draws for held-out data, the same whenever that is looked at.
    Validation,
}

/// A sequence of random numbers: Philox4x32-10 (Salmon et al. 2011) with the seed as its key and the address in its
/// counter.
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
    words: [u32; 4],
    used: usize,
}

impl Random {
    /// The sequence of one step.
    pub fn new(seed: u64, purpose: Purpose, step: u64) -> Self {
        // The last word keeps apart what data sets draw under the same seed: theirs is 0.
        let counter = [0, step as u32, (step >> 32) as u32, 1 + purpose as u32];
        Self { key: [seed as u32, (seed >> 32) as u32], counter, words: [0; 4], used: 4 }
    }

    fn word(&mut self) -> u32 {
        if self.used == 4 {
            self.words = philox4x32_10(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.words[self.used - 1]
    }

    /// Uniform in [0, 1), 32 bits.
    pub fn unit(&mut self) -> f64 {
        f64::from(self.word()) / 2f64.powi(32)
    }

    /// Uniform below `n`; 0 for 0.
    pub fn below(&mut self, n: usize) -> usize {
        ((u64::from(self.word()) * n as u64) >> 32) as usize
    }

    /// A tensor of standard normals (Box & Muller 1958), f32 on the CPU.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn normal(&mut self, shape: impl Into<Shape>) -> Result<Tensor> {
        let mut normals = Tensor::uninit(shape, DType::F32, Device::Cpu)?;
        for pair in normals.as_mut_slice::<f32>()?.chunks_mut(2) {
            // 1 - u is in (0, 1], where the logarithm is finite.
            let (radius, angle) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), self.unit());
            let (sin, cos) = (std::f64::consts::TAU * angle).sin_cos();
            for (normal, part) in pair.iter_mut().zip([cos, sin]) {
                *normal = (radius * part) as f32;
            }
        }
        Ok(normals)
    }

    /// A tensor of uniforms in -limit..limit, f32 on the CPU.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn uniform(&mut self, shape: impl Into<Shape>, limit: f64) -> Result<Tensor> {
        let mut values = Tensor::uninit(shape, DType::F32, Device::Cpu)?;
        let draw = || (limit * (2.0 * self.unit() - 1.0)) as f32;
        values.as_mut_slice::<f32>()?.fill_with(draw);
        Ok(values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_own_numbers() {
        let first = |seed, purpose, step| {
            let mut random = Random::new(seed, purpose, step);
            (0..9).map(|_| random.word()).collect::<Vec<_>>()
        };
        let all = [
            first(1, Purpose::Step, 2),
            first(2, Purpose::Step, 2),
            first(1 << 32, Purpose::Step, 2),
            first(1, Purpose::Step, 3),
            first(1, Purpose::Step, 2 << 32),
            first(1, Purpose::Validation, 2),
        ];
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a.iter().zip(b).all(|(a, b)| a != b)), "{i}");
        }
        assert_eq!(all[0], first(1, Purpose::Step, 2));
    }

    #[test]
    fn normals_have_mean_0_and_variance_1_and_uniforms_fill_their_range() {
        let n = 40_001;
        let mut random = Random::new(5, Purpose::Step, 0);
        let x = random.normal([n]).unwrap().to_vec::<f32>().unwrap();
        let mean =
            |f: &dyn Fn(f64) -> f64| x.iter().map(|x| f(f64::from(*x))).sum::<f64>() / n as f64;
        // Four deviations of a mean of n: those of x, x^2 and x^4 are 1, sqrt 2 and sqrt 96.
        let within = |found: f64, expected: f64, deviation: f64| {
            assert!(
                (found - expected).abs() <= 4.0 * deviation / (n as f64).sqrt(),
                "{found} {expected}"
            );
        };
        within(mean(&|x| x), 0.0, 1.0);
        within(mean(&|x| x * x), 1.0, 2f64.sqrt());
        within(mean(&|x| x.powi(4)), 3.0, 96f64.sqrt());
        let x = random.uniform([n], 0.25).unwrap().to_vec::<f32>().unwrap();
        assert!(x.iter().all(|x| x.abs() <= 0.25) && x.iter().any(|x| *x > 0.249));
        assert!((0..100).all(|_| random.below(7) < 7) && random.below(0) == 0);
    }
}
