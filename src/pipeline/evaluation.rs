//! Evaluations of the UNet for slots that stay together: on a GPU one captured graph, launched again and again.

use std::sync::OnceLock;

use crate::error::Result;
use crate::models::unet::{Context, Unet};
use crate::tensor::cuda::{Graph, is_profiling};
use crate::tensor::{Device, Tensor};

/// What the evaluations have in common.
pub(super) struct Evaluation {
    /// Keys and values of the prompts, a row each.
    text: Context,
    /// Whether the first is over, which loads the kernels; from the next on a graph repays its capture.
    is_warm: bool,
    captured: Option<Captured>,
}

/// The UNet over inputs of its own.
struct Captured {
    /// [R, h, w, C]
    latents: Tensor,
    /// [R, E]
    timesteps: Tensor,
    /// Gives the prediction [R, h, w, 4].
    graph: Graph<Tensor>,
}

impl Evaluation {
    pub(super) fn new(text: Context) -> Self {
        Self { text, is_warm: false, captured: None }
    }

    /// As [`Unet::forward`], of the same shapes in every call. What it gives lasts until the next call, or, if it
    /// `is_remembered`, longer.
    pub(super) fn predict(
        &mut self,
        unet: &Unet,
        latents: &Tensor,
        timesteps: &Tensor,
        is_remembered: bool,
    ) -> Result<Tensor> {
        let on_host = latents.device() == Device::Cpu;
        if on_host || !std::mem::replace(&mut self.is_warm, true) || !graphs_are_wanted() {
            return unet.forward(latents, timesteps, &self.text);
        }
        let captured = match &mut self.captured {
            Some(captured) => captured,
            empty => empty.insert(Captured::new(unet, latents, timesteps, &self.text)?),
        };
        captured.latents.assign(latents)?;
        captured.timesteps.assign(timesteps)?;
        let prediction = captured.graph.launch()?;
        if !is_remembered {
            return Ok(prediction.clone());
        }
        let mut copy =
            Tensor::uninit(*prediction.shape(), prediction.dtype(), prediction.device())?;
        copy.assign(prediction)?;
        Ok(copy)
    }
}

impl Captured {
    fn new(unet: &Unet, latents: &Tensor, timesteps: &Tensor, text: &Context) -> Result<Self> {
        let like = |t: &Tensor| Tensor::uninit(*t.shape(), t.dtype(), t.device());
        let (latents, timesteps) = (like(latents)?, like(timesteps)?);
        let forward = || unet.forward(&latents, &timesteps, text);
        let graph = Graph::capture(latents.device(), forward)?;
        Ok(Self { latents, timesteps, graph })
    }
}

/// Whether graphs are used: `NADIR_GRAPH=off` has every kernel launched by itself, for checking tools, and so has a
/// profile.
pub(super) fn graphs_are_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| !std::env::var("NADIR_GRAPH").is_ok_and(|v| v == "off"));
    *wanted && !is_profiling()
}
