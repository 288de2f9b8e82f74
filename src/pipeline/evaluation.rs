//! Evaluations of the UNet, and of ControlNets beside it, for slots that stay together: on a GPU one captured graph, launched again and again.

use std::sync::{Arc, OnceLock};

use crate::error::Result;
use crate::models::unet::Context;
use crate::ops::layout::concat;
use crate::pipeline::control::{Gear, Texts};
use crate::pipeline::text_to_image::TextToImage;
use crate::tensor::cuda::{Graph, is_profiling};
use crate::tensor::{Device, Tensor};

/// What the networks see of a batch of R rows.
#[derive(Clone)]
pub(super) struct Inputs {
    /// [R, h, w, C]
    pub(super) latents: Tensor,
    /// What the UNet's blocks make of the timesteps; [R, E].
    pub(super) times: Tensor,
    /// Of each ControlNet that counts.
    pub(super) nets: Vec<NetInputs>,
}

/// What a ControlNet sees beside the latents; in guess mode a row for each slot.
#[derive(Clone)]
pub(super) struct NetInputs {
    /// [R, E]
    pub(super) times: Tensor,
    /// [R, h, w, C]
    pub(super) hint: Tensor,
}

impl Inputs {
    /// One batch of those of several slots of one gear.
    pub(super) fn concat(parts: &[Self]) -> Result<Self> {
        let all =
            |of: &dyn Fn(&Self) -> &Tensor| concat(&parts.iter().map(of).collect::<Vec<_>>(), 0);
        let nets = (0..parts.first().map_or(0, |part| part.nets.len())).map(|i| {
            Ok(NetInputs {
                times: all(&|part| &part.nets[i].times)?,
                hint: all(&|part| &part.nets[i].hint)?,
            })
        });
        let nets = nets.collect::<Result<_>>()?;
        Ok(Self { latents: all(&|part| &part.latents)?, times: all(&|part| &part.times)?, nets })
    }

    /// Takes the elements of `given`, of the same shapes.
    fn assign(&mut self, given: &Self) -> Result<()> {
        self.latents.assign(&given.latents)?;
        self.times.assign(&given.times)?;
        for (own, given) in self.nets.iter_mut().zip(&given.nets) {
            own.times.assign(&given.times)?;
            own.hint.assign(&given.hint)?;
        }
        Ok(())
    }

    /// Tensors of the same shapes, whose elements are anything.
    fn uninit(&self) -> Result<Self> {
        let like = |t: &Tensor| Tensor::uninit(*t.shape(), t.dtype(), t.device());
        let nets = self
            .nets
            .iter()
            .map(|net| Ok(NetInputs { times: like(&net.times)?, hint: like(&net.hint)? }));
        let nets = nets.collect::<Result<_>>()?;
        Ok(Self { latents: like(&self.latents)?, times: like(&self.times)?, nets })
    }
}

/// What the evaluations have in common.
pub(super) struct Evaluation {
    /// Keys and values of the prompts, a row each.
    text: Context,
    /// The same of each ControlNet of the gear.
    texts: Vec<Context>,
    gear: Gear,
    /// Whether the first is over, which loads the kernels; from the next on a graph repays its capture.
    is_warm: bool,
    captured: Option<Captured>,
}

/// The networks over inputs of their own.
struct Captured {
    inputs: Inputs,
    /// Gives the prediction [R, h, w, 4].
    graph: Graph<Tensor>,
}

impl Evaluation {
    /// Of slots that go in one gear; the prompts of each.
    pub(super) fn new(slots: &[&[Arc<Texts>]], gear: Gear) -> Result<Self> {
        let rows: Vec<&Texts> =
            slots.iter().flat_map(|rows| rows.iter().map(|row| &**row)).collect();
        let text = Context::concat(&rows.iter().map(|row| &row.unet).collect::<Vec<_>>())?;
        let seen: Vec<&Texts> = match gear.guess {
            Some(_) => slots.iter().filter_map(|rows| Some(&**rows.last()?)).collect(),
            None => rows,
        };
        let texts = gear.nets.iter().map(|&(net, _)| {
            Context::concat(&seen.iter().map(|row| &row.nets[net]).collect::<Vec<_>>())
        });
        let texts = texts.collect::<Result<_>>()?;
        Ok(Self { text, texts, gear, is_warm: false, captured: None })
    }

    /// The prediction of `model`, of the same shapes in every call. What it gives lasts until the next call, or, if
    /// it `is_remembered`, longer.
    pub(super) fn predict(
        &mut self,
        model: &TextToImage,
        inputs: &Inputs,
        is_remembered: bool,
    ) -> Result<Tensor> {
        let on_host = inputs.latents.device() == Device::Cpu;
        if on_host || !std::mem::replace(&mut self.is_warm, true) || !graphs_are_wanted() {
            return self.forward(model, inputs);
        }
        if self.captured.is_none() {
            let own = inputs.uninit()?;
            let forward = || self.forward(model, &own);
            let graph = Graph::capture(own.latents.device(), forward)?;
            self.captured = Some(Captured { inputs: own, graph });
        }
        let Some(captured) = &mut self.captured else { unreachable!("it was captured") };
        captured.inputs.assign(inputs)?;
        let prediction = captured.graph.launch()?;
        if !is_remembered {
            return Ok(prediction.clone());
        }
        let mut copy =
            Tensor::uninit(*prediction.shape(), prediction.dtype(), prediction.device())?;
        copy.assign(prediction)?;
        Ok(copy)
    }

    fn forward(&self, model: &TextToImage, inputs: &Inputs) -> Result<Tensor> {
        let (rows, h, w, _) = inputs.latents.dims4()?;
        let added = self.gear.nets.iter().zip(&inputs.nets).zip(&self.texts);
        let added = added.map(|((&(net, scale), NetInputs { times, hint }), text)| {
            let net = &model.controlnets[net];
            let channels = net.config().unet.in_channels;
            // An inpainting UNet's mask and picture are nothing to a ControlNet.
            let latents = inputs.latents.narrow(3, 0, channels)?;
            let is_halved = self.gear.guess == Some(2);
            let latents = match is_halved {
                true => {
                    let pairs = latents.reshape([rows / 2, 2, h, w, channels])?;
                    pairs.narrow(1, 1, 1)?.reshape([rows / 2, h, w, channels])?
                }
                false => latents.contiguous()?,
            };
            let guess = self.gear.guess.is_some();
            let added = net.forward(&latents, hint, times, text, scale, guess)?;
            if is_halved { added.for_every_second() } else { Ok(added) }
        });
        let added = added.collect::<Result<Vec<_>>>()?;
        model.unet.forward_with(&inputs.latents, &inputs.times, &self.text, &added)
    }
}

/// Whether graphs are used: `NADIR_GRAPH=off` has every kernel launched by itself, for checking tools, and so has a
/// profile.
pub(super) fn graphs_are_wanted() -> bool {
    static WANTED: OnceLock<bool> = OnceLock::new();
    let wanted = WANTED.get_or_init(|| !std::env::var("NADIR_GRAPH").is_ok_and(|v| v == "off"));
    *wanted && !is_profiling()
}
