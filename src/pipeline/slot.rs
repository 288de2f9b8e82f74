//! One picture on its way from noise to latents, between two evaluations of the UNet.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::ops::elementwise::scale;
use crate::ops::layout::concat;
use crate::pipeline::control::{Gear, Net, Texts};
use crate::pipeline::evaluation::{Inputs, NetInputs};
use crate::pipeline::guidance::Guidance;
use crate::pipeline::sampler::Sampler;
use crate::pipeline::start::{Noise, Start};
use crate::pipeline::stepping::Stepping;
use crate::tensor::{Device, Tensor};

/// The state of one picture. It takes a row of the UNet's batch, or two with guidance: without the prompt, with it.
pub(super) struct Denoising {
    pub(super) sampler: Box<dyn Sampler>,
    pub(super) noise: Noise,
    pub(super) start: Start,
    /// [1, h, w, 4], f32
    pub(super) latents: Tensor,
    /// The evaluation to come.
    pub(super) next: usize,
    /// What the UNet's blocks make of all timesteps, for each row; [evaluations, rows, E].
    pub(super) timesteps: Tensor,
    /// Keys and values of the negative prompt, with guidance, and of the prompt; a row each.
    pub(super) text: Vec<Arc<Texts>>,
    /// ControlNets that may count, and whether they do in guess mode.
    pub(super) nets: Vec<Net>,
    pub(super) guess: bool,
    pub(super) guidance: Option<Guidance>,
    /// How steps are made, if not by the sampler itself.
    pub(super) stepping: Option<Stepping>,
}

impl Denoising {
    /// Rows of the UNet's batch that it takes.
    pub(super) fn rows(&self) -> usize {
        self.text.len()
    }

    /// Length of its prompts in tokens.
    pub(super) fn tokens(&self) -> usize {
        self.text[0].unet.tokens()
    }

    /// Evaluations of the UNet from start to end.
    pub(super) fn evaluations(&self) -> usize {
        self.sampler.timesteps().len() - self.start.first
    }

    /// Evaluations made so far.
    pub(super) fn evaluated(&self) -> usize {
        self.next - self.start.first
    }

    pub(super) fn is_done(&self) -> bool {
        self.next == self.sampler.timesteps().len()
    }

    /// The ControlNets that count now.
    pub(super) fn gear(&self) -> Gear {
        let (i, n) = (self.evaluated(), self.evaluations());
        let nets = self.nets.iter().filter(|net| net.control.counts(i, n));
        let nets: Vec<_> = nets.map(|net| (net.index, net.control.scale)).collect();
        let guess = (self.guess && !nets.is_empty()).then(|| self.rows());
        Gear { nets, guess }
    }

    /// What the UNet is to see: [rows, h, w, 4 or 9], and what its blocks make of the timestep [rows, E]; likewise of the
    /// ControlNets that count now, which in guess mode see the last row alone.
    pub(super) fn input(&self) -> Result<Inputs> {
        let rows = if self.guess { 1 } else { self.rows() };
        let (i, n) = (self.evaluated(), self.evaluations());
        let nets = self.nets.iter().filter(|net| net.control.counts(i, n)).map(|net| {
            let times = net.times.narrow(0, self.next, 1)?; // [1, told, E]
            let (_, told, width) = times.dims3()?;
            let times = times.reshape([told, width])?;
            let times = match told {
                1 => concat(&vec![&times; rows], 0)?,
                _ => times.narrow(0, told - rows, rows)?.contiguous()?,
            };
            Ok(NetInputs { times, hint: concat(&vec![&net.hint; rows], 0)? })
        });
        let nets = nets.collect::<Result<_>>()?;
        let times = self.timesteps.narrow(0, self.next, 1)?; // [1, rows, E]
        let times = times.reshape([self.rows(), times.dim(2)])?;
        let repeated = |t: &Tensor| concat(&vec![t; self.rows()], 0);
        let latents = match self.stepping.as_ref().and_then(|stepping| stepping.input.clone()) {
            Some(input) => input,
            None => repeated(&scale(&self.latents, self.sampler.input_scale(self.next))?)?,
        };
        match &self.start.mask_and_image {
            Some(with) => {
                let latents = concat(&[&latents, &repeated(with)?], 3)?; // [rows, h, w, 9]
                Ok(Inputs { latents, times, nets })
            }
            None => Ok(Inputs { latents, times, nets }),
        }
    }

    /// Goes on from other latents [1, h, w, 4] than the sampler's.
    pub(super) fn go_on_from(&mut self, latents: Tensor) {
        self.latents = latents;
        // What the UNet was to see is of the latents before.
        self.stepping.iter_mut().for_each(|stepping| stepping.input = None);
    }

    /// Takes the sampler a step further with the UNet's `prediction` [rows, h, w, 4].
    ///
    /// # Errors
    /// `NotFinite` when the latents leave the range of numbers; those of [`Sampler::step`].
    pub(super) fn advance(&mut self, prediction: &Tensor) -> Result<()> {
        if let Some(stepping) = &mut self.stepping {
            self.latents = stepping.step(prediction, &self.latents)?;
            self.next += 1;
            return if self.is_done() { check_finite(&self.latents) } else { Ok(()) };
        }
        let guided;
        let output = match self.guidance {
            Some(guidance) => {
                guided = guidance.apply(prediction)?; // [1, h, w, 4]
                &guided
            }
            None => prediction,
        };
        let noise = &mut self.noise;
        let latents = self.sampler.step(self.next, output, &self.latents, &mut || noise.draw())?;
        self.next += 1;
        self.latents = self.start.restore_unmasked(latents, &*self.sampler, self.next)?;
        // What is not finite stays so. On the host it is found at once, on a device when its values are read anyway.
        if self.is_done() || self.latents.device() == Device::Cpu {
            check_finite(&self.latents)?;
        }
        Ok(())
    }
}

/// A black picture hides what went wrong; an error tells it.
fn check_finite(latents: &Tensor) -> Result<()> {
    if latents.to_vec::<f32>()?.iter().all(|x| x.is_finite()) {
        return Ok(());
    }
    let advice = "try dtype f32 or bf16, a lower guidance_scale or smaller prompt weights, and check the model";
    Err(Error::NotFinite(format!("the latents are not finite: {advice}")))
}
