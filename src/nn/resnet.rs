//! The residual block that the UNet and the autoencoder share.

use std::sync::Arc;

use crate::error::Result;
use crate::nn::{Conv2d, GroupNorm, Linear, Params, checkpoint, module};
use crate::ops::matmul::Epilogue;
use crate::tensor::Tensor;
use crate::tensor::cuda::Range;

/// ResnetBlock2D of diffusers (`models/resnet.py`): norm, SiLU, conv, + time, norm, SiLU, conv, + input.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    range: Range,
}

module!(ResnetBlock {
    "norm1": norm1,
    "conv1": conv1,
    "time_emb_proj": time,
    "norm2": norm2,
    "conv2": conv2,
    "conv_shortcut": shortcut,
});

impl ResnetBlock {
    /// Reads the weights at `p`; `temb` is the width of the timestep embedding, where there is one.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(
        p: &Params,
        input: usize,
        output: usize,
        temb: Option<usize>,
        groups: usize,
        eps: f32,
    ) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            norm1: GroupNorm::load(&p.pp("norm1"), input, groups, eps)?,
            conv1: Conv2d::load_3x3(&p.pp("conv1"), input, output)?,
            time: temb
                .map(|temb| Linear::load(&p.pp("time_emb_proj"), temb, output, true))
                .transpose()?,
            norm2: GroupNorm::load(&p.pp("norm2"), output, groups, eps)?,
            conv2: Conv2d::load_3x3(&p.pp("conv2"), output, output)?,
            shortcut: (input != output)
                .then(|| Conv2d::load_1x1(&p.pp("conv_shortcut"), input, output))
                .transpose()?,
            range: p.range(),
        }))
    }

    /// What the block makes of timesteps: `temb` [N, temb] with its SiLU applied -> [N, output]. `None` where it takes none.
    pub fn time(&self, temb: &Tensor) -> Result<Option<Tensor>> {
        self.time.as_ref().map(|linear| linear.forward(temb)).transpose()
    }

    /// Channels of its output.
    pub fn outputs(&self) -> usize {
        self.conv1.outputs()
    }

    /// `x` [B, H, W, input], `time` [B, output] from [`Self::time`] -> [B, H, W, output]
    ///
    /// A [segment](crate::tensor::tape::checkpoint), as [`Self::forward_with_skip`] is one.
    pub fn forward(self: &Arc<Self>, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [x].into_iter().chain(time).collect();
        checkpoint(self, &inputs, |block, inputs| {
            let _range = block.range.enter();
            let x = &inputs[0];
            block.finish(x, block.norm1.forward_silu(x)?, inputs.get(1))
        })
    }

    /// As [`Self::forward`], of `x` and `skip` [B, H, W, ..] side by side.
    pub fn forward_with_skip(
        self: &Arc<Self>,
        x: &Tensor,
        skip: &Tensor,
        time: Option<&Tensor>,
    ) -> Result<Tensor> {
        let inputs: Vec<&Tensor> = [x, skip].into_iter().chain(time).collect();
        checkpoint(self, &inputs, |block, inputs| {
            let _range = block.range.enter();
            let [x, normal] = block.norm1.forward_silu_of(&inputs[0], &inputs[1])?;
            block.finish(&x, normal, inputs.get(2))
        })
    }

    /// What follows the first norm, `h` [B, H, W, input].
    fn finish(&self, x: &Tensor, mut h: Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        // Assigned anew rather than shadowed, so that each goes as soon as the next is there.
        let epilogue = Epilogue { add_channel: time, ..Epilogue::default() };
        h = self.conv1.forward_with(&h, epilogue)?; // [B, H, W, output]
        h = self.norm2.forward_silu(&h)?;
        let shortcut = self.shortcut.as_ref().map(|conv| conv.forward(x)).transpose()?;
        let residual = Some(shortcut.as_ref().unwrap_or(x));
        self.conv2.forward_with(&h, Epilogue { residual, ..Epilogue::default() }) // [B, H, W, output]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::{Keep, Parameter, parameters};
    use crate::ops::gradient::backward;
    use crate::ops::loss::squared_error;
    use crate::ops::reduce::mean;
    use crate::ops::testing::{bits, random};
    use crate::tensor::tape::{checkpointing, no_grad};
    use crate::tensor::{DType, Device, in_use};

    const BLOCKS: usize = 6;
    const SIZE: [usize; 4] = [7, 9, 13, 8];

    fn blocks() -> Vec<Arc<ResnetBlock>> {
        let initial = |name: &str, shape: &[usize]| Ok(random(shape, name.len() as u64));
        let p = Params::initial(initial, DType::F32, Device::Cpu).keeping(Keep::Trainable);
        let block = |i: usize| {
            let inputs = if i.is_multiple_of(2) { SIZE[3] } else { 2 * SIZE[3] };
            ResnetBlock::load(&p.pp(i), inputs, SIZE[3], Some(5), 4, 1e-5)
        };
        (0..BLOCKS).map(block).collect::<Result<_>>().unwrap()
    }

    /// Every second block is given what stands before the first of two, too.
    fn loss(blocks: &[Arc<ResnetBlock>], x: &Tensor, temb: &Tensor) -> Tensor {
        let mut x = x.clone();
        for pair in blocks.chunks_exact(2) {
            let times = [0, 1].map(|i| pair[i].time(temb).unwrap());
            let once = pair[0].forward(&x, times[0].as_ref()).unwrap();
            x = pair[1].forward_with_skip(&once, &x, times[1].as_ref()).unwrap();
        }
        mean(&squared_error(&x, &random(SIZE, 3)).unwrap(), &[0]).unwrap()
    }

    /// Bits of the loss and of all gradients; what is kept for these, and the most that is in use.
    fn learn(blocks: &Vec<Arc<ResnetBlock>>, sparing: bool) -> (Vec<Vec<u64>>, isize, isize) {
        let (x, temb) = (random(SIZE, 1).variable(), random([SIZE[0], 5], 2).variable());
        let before = in_use::now();
        let (most, (loss, kept, gradients)) = in_use::most(|| {
            let loss = match sparing {
                true => checkpointing(|| loss(blocks, &x, &temb)),
                false => loss(blocks, &x, &temb),
            };
            let (kept, value) = (in_use::now() - before, loss.detach());
            (value, kept, backward(loss).unwrap())
        });
        let all = parameters(blocks);
        let variables = [x, temb].into_iter().chain(all.iter().filter_map(|(_, p)| p.tensor()));
        let gradients = variables.map(|variable| bits(gradients.get(&variable).unwrap()));
        ([bits(&loss)].into_iter().chain(gradients).collect(), kept, most - before)
    }

    #[test]
    fn segments_have_the_bits_of_what_is_recorded_and_keep_their_inputs_alone() {
        let blocks = blocks();
        let (expected, kept, most) = learn(&blocks, false);
        let (found, sparing_kept, sparing_most) = learn(&blocks, true);
        assert!(found == expected, "gradients differ");
        // What a block keeps when it is recorded: four images and more. Of a segment: the one that it is given, and times.
        let image = (4 * SIZE.iter().product::<usize>()) as isize;
        assert!(kept > 4 * BLOCKS as isize * image, "{kept}");
        assert!(sparing_kept < 3 * (BLOCKS as isize + 1) * image / 2, "{sparing_kept}");
        assert!(2 * sparing_most < most, "{sparing_most} of {most}");
        // A frozen block passes gradients on.
        for (name, weight) in parameters(&blocks) {
            weight.set_trainable(name.starts_with('0')).unwrap();
        }
        let few = |sparing| {
            let of = || loss(&blocks, &random(SIZE, 1), &random([SIZE[0], 5], 2));
            let mut gradients = backward(if sparing { checkpointing(of) } else { of() }).unwrap();
            let all = parameters(&blocks);
            let trained = all.iter().filter(|(_, weight)| weight.is_trainable());
            let take =
                |(_, weight): &(String, &Parameter)| gradients.take(&weight.tensor().unwrap());
            trained.map(take).map(|gradient| bits(&gradient.unwrap())).collect::<Vec<_>>()
        };
        assert!(few(true) == few(false), "gradients of one block differ");
        assert!(
            !no_grad(|| checkpointing(|| loss(
                &blocks,
                &random(SIZE, 1),
                &random([SIZE[0], 5], 2)
            )))
            .requires_grad()
        );
    }
}
