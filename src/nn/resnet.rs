//! The residual block that the UNet and the autoencoder share.

use crate::error::Result;
use crate::nn::{Conv2d, GroupNorm, Linear, Params, module};
use crate::ops::matmul::Epilogue;
use crate::tensor::Tensor;

/// ResnetBlock2D of diffusers (`models/resnet.py`): norm, SiLU, conv, + time, norm, SiLU, conv, + input.
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
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
    ) -> Result<Self> {
        Ok(Self {
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
        })
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
    pub fn forward(&self, x: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        self.finish(x, self.norm1.forward_silu(x)?, time)
    }

    /// As [`Self::forward`], of `x` and `skip` [B, H, W, ..] side by side.
    pub fn forward_with_skip(
        &self,
        x: &Tensor,
        skip: &Tensor,
        time: Option<&Tensor>,
    ) -> Result<Tensor> {
        let [x, normal] = self.norm1.forward_silu_of(x, skip)?;
        self.finish(&x, normal, time)
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
