//! Steps of one picture on a GPU: guidance, the sampler's sum and noise in one launch, with weights from a table there. All
//! that a run needs is there before it begins, so that no step waits for the host or sends anything.

use std::collections::VecDeque;

use crate::error::Result;
use crate::ops::sampler::{StepInputs, StepWeights, guided_step};
use crate::pipeline::guidance::Guidance;
use crate::pipeline::sampler::{LinearStep, Sampler};
use crate::pipeline::start::Noise;
use crate::tensor::{Device, Tensor};

/// The steps that are still to be made.
pub(super) struct Stepping {
    /// A row for each evaluation.
    table: Tensor,
    /// The number of each row, where the kernel reads it.
    rows: Tensor,
    /// Steps made.
    made: usize,
    /// One for each step that draws, in their order: [draws, h, w, 4].
    noises: Option<Tensor>,
    /// Which of them each step takes.
    draws: Vec<Option<usize>>,
    /// What the steps before kept, the newest first.
    kept: VecDeque<Tensor>,
    /// How many of those any step recalls.
    depth: usize,
    /// What the UNet is to see next: [1 or 2, h, w, 4].
    pub(super) input: Option<Tensor>,
}

impl Stepping {
    /// The steps from evaluation `start` on; all noise is drawn now. `None` where they are made one operation after the
    /// other: on the CPU, with `guidance_rescale` (which looks at all of a prediction), and by samplers whose steps are no
    /// [sums](Sampler::linear).
    pub(super) fn new(
        sampler: &dyn Sampler,
        start: usize,
        guidance: Option<Guidance>,
        noise: &mut Noise,
        device: Device,
    ) -> Result<Option<Self>> {
        let guidance = match guidance.map(Guidance::weights) {
            Some(None) => return Ok(None),
            Some(Some(weights)) => weights,
            None => [0.0, 1.0],
        };
        let steps = sampler.linear(start).filter(|steps| steps.iter().all(LinearStep::is_finite));
        let Some(steps) = steps.filter(|_| device != Device::Cpu) else { return Ok(None) };
        let end = sampler.timesteps().len();
        let weights = |(i, step): (usize, &LinearStep)| StepWeights {
            guidance,
            kept: step.kept.map(|w| w as f32),
            sample: step.sample as f32,
            recalled: step.recalled.map(|w| w as f32),
            noise: step.noise.unwrap_or(0.0) as f32,
            input_scale: match start + i + 1 {
                next if next < end => sampler.input_scale(next),
                _ => 1.0,
            },
        };
        let weights: Vec<StepWeights> = steps.iter().enumerate().map(weights).collect();
        let deepest = |w: &StepWeights| w.recalled.iter().rposition(|w| *w != 0.0).unwrap_or(0);
        let depth = weights.iter().map(deepest).max().unwrap_or(0);
        let mut drawn = 0;
        let draws = steps.iter().map(|step| {
            drawn += usize::from(step.noise.is_some());
            step.noise.map(|_| drawn - 1)
        });
        let draws = draws.collect();
        let rows: Vec<u32> = (0..steps.len() as u32).collect();
        Ok(Some(Self {
            table: StepWeights::table(&weights, device)?,
            rows: Tensor::from_vec(rows, [steps.len()])?.to_device(device)?,
            made: 0,
            noises: (drawn > 0).then(|| noise.draw_all(drawn)).transpose()?,
            draws,
            kept: VecDeque::new(),
            depth,
            input: None,
        }))
    }

    /// From the UNet's `prediction` [1 or 2, h, w, 4] and the `latents` [1, h, w, 4] that it was made for to the next latents.
    pub(super) fn step(&mut self, prediction: &Tensor, latents: &Tensor) -> Result<Tensor> {
        let draw = self.draws[self.made];
        let noise =
            self.noises.as_ref().zip(draw).map(|(all, i)| all.narrow(0, i, 1)).transpose()?;
        let recalled: Vec<&Tensor> = self.kept.iter().collect();
        let inputs =
            StepInputs { prediction, sample: latents, noise: noise.as_ref(), recalled: &recalled };
        let stepped = guided_step(inputs, &self.table, &self.rows.narrow(0, self.made, 1)?)?;
        self.made += 1;
        self.kept.push_front(stepped.kept);
        self.kept.truncate(self.depth);
        self.input = Some(stepped.input);
        Ok(stepped.sample)
    }
}
