//! The layers with weights: linear, convolution, norms, embedding.

use crate::error::Result;
use crate::nn::{ImageSize, Parameter, Params, module};
use crate::ops::conv::{Conv2dConfig, conv2d, conv2d_doubled, dilated};
use crate::ops::depthwise::depthwise_conv2d;
use crate::ops::layout::concat;
use crate::ops::matmul::{Epilogue, linear, linear_geglu};
use crate::ops::weight::Layout;
use crate::ops::{embedding, norm};
use crate::tensor::cuda::Range;
use crate::tensor::{DType, Device, Tensor};

/// y = x Wᵀ + b
pub struct Linear {
    weight: Parameter,
    bias: Option<Parameter>,
    range: Range,
}

module!(Linear { "weight": weight, "bias": bias });

impl Linear {
    /// Reads `weight` [outputs, inputs] and, if there is to be one, `bias` `[outputs]`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, inputs: usize, outputs: usize, bias: bool) -> Result<Self> {
        Self::load_as(p, Layout::Matrix, inputs, outputs, bias)
    }

    /// As [`Self::load`], of a layer for [`Self::forward_geglu`].
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_geglu(p: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load_as(p, Layout::Gated, inputs, outputs, true)
    }

    fn load_as(
        p: &Params,
        layout: Layout,
        inputs: usize,
        outputs: usize,
        bias: bool,
    ) -> Result<Self> {
        let weight = p.weight("weight", &[outputs, inputs], layout)?;
        let bias = bias.then(|| p.vector("bias", outputs)).transpose()?;
        Ok(Self { weight, bias, range: p.range() })
    }

    /// `x` [.., inputs] -> [.., outputs]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Epilogue::default())
    }

    /// As [`Self::forward`], ending in `epilogue` (whose bias is the layer's).
    pub fn forward_with(&self, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        let _range = self.range.enter();
        let bias = self.bias.as_ref().map(Parameter::value);
        linear(x, &self.weight.weight(), Epilogue { bias: bias.as_ref(), ..epilogue })
    }

    /// Channels of the input.
    pub fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Channels of the output.
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    /// `x` [.., inputs] -> [.., outputs / 2]: the first half of the outputs, gated by the second.
    pub fn forward_geglu(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let bias = self.bias.as_ref().map(Parameter::value);
        linear_geglu(x, &self.weight.weight(), bias.as_ref())
    }

    /// Layers of the same inputs as one, whose outputs stand side by side: one product instead of several. `None` where
    /// that gains nothing, as [`Weight::joined`](crate::ops::weight::Weight::joined) says.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn joined(parts: &[&Self]) -> Result<Option<Self>> {
        let weights: Vec<_> = parts.iter().map(|part| &part.weight).collect();
        let Some(weight) = Parameter::joined(&weights)? else { return Ok(None) };
        let biases: Option<Vec<_>> =
            parts.iter().map(|part| Some(part.bias.as_ref()?.value())).collect();
        let bias =
            biases.map(|biases| concat(&biases.iter().collect::<Vec<_>>(), 0)).transpose()?;
        let (weight, bias) = (Parameter::laid_out(weight), bias.map(Parameter::frozen));
        let range = Range::of_all(parts.iter().map(|part| &part.range));
        Ok(Some(Self { weight, bias, range }))
    }
}

/// A convolution over [B, H, W, C].
pub struct Conv2d {
    weight: Parameter,
    bias: Option<Parameter>,
    config: Conv2dConfig,
    range: Range,
}

module!(Conv2d { "weight": weight, "bias": bias });

impl Conv2d {
    /// Reads `weight` [outputs, inputs, kernel, kernel] and `bias` `[outputs]`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(
        p: &Params,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        config: Conv2dConfig,
    ) -> Result<Self> {
        let bias = Some(p.vector("bias", outputs)?);
        Ok(Self { bias, ..Self::load_unbiased(p, inputs, outputs, kernel, config)? })
    }

    /// As [`Self::load`], of a convolution without bias.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_unbiased(
        p: &Params,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        config: Conv2dConfig,
    ) -> Result<Self> {
        let layout = match p.images() {
            ImageSize::Small => Layout::Convolution,
            ImageSize::Large if config.stride == 1 => Layout::LargeImages,
            ImageSize::Medium | ImageSize::Large => Layout::ConvolutionAt(config.stride),
        };
        let weight = p.weight("weight", &[outputs, inputs, kernel, kernel], layout)?;
        Ok(Self { weight, bias: None, config, range: p.range() })
    }

    /// A 3x3 convolution that keeps the size.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_3x3(p: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load(p, inputs, outputs, 3, Conv2dConfig { stride: 1, padding: [1; 4] })
    }

    /// A 1x1 convolution.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load_1x1(p: &Params, inputs: usize, outputs: usize) -> Result<Self> {
        Self::load(p, inputs, outputs, 1, Conv2dConfig { stride: 1, padding: [0; 4] })
    }

    /// `x` [B, H, W, inputs] -> [B, H', W', outputs]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.forward_with(x, Epilogue::default())
    }

    /// As [`Self::forward`], ending in `epilogue` (whose bias is the layer's).
    pub fn forward_with(&self, x: &Tensor, epilogue: Epilogue) -> Result<Tensor> {
        let _range = self.range.enter();
        let bias = self.bias.as_ref().map(Parameter::value);
        let epilogue = Epilogue { bias: bias.as_ref(), ..epilogue };
        conv2d(x, &self.weight.weight(), self.config, epilogue)
    }

    /// `x` [B, H, W, inputs] with every pixel four times, [B, 2H, 2W, inputs] -> [B, H', W', outputs]
    pub fn forward_doubled(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let bias = self.bias.as_ref().map(Parameter::value);
        let epilogue = Epilogue::bias(bias.as_ref());
        conv2d_doubled(x, &self.weight.weight(), self.config, epilogue)
    }

    /// Channels of the output.
    pub fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }
}

/// A convolution over [B, H, W, C] without bias, whose taps may lie several pixels apart.
pub struct DilatedConv2d {
    conv: Conv2d,
    dilation: usize,
}

module!(DilatedConv2d { "": conv });

impl DilatedConv2d {
    /// Reads `weight` [outputs, inputs, kernel, kernel]. Zeros around the image keep its size, but for the stride, which is 1
    /// where taps are apart.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(
        p: &Params,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        stride: usize,
        dilation: usize,
    ) -> Result<Self> {
        let config = Conv2dConfig::new(stride, kernel / 2);
        let dilation = if kernel == 1 { 1 } else { dilation };
        Ok(Self { conv: Conv2d::load_unbiased(p, inputs, outputs, kernel, config)?, dilation })
    }

    /// `x` [B, H, W, inputs] -> [B, H / stride, W / stride, outputs]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        dilated(x, self.dilation, |x| self.conv.forward(x))
    }
}

/// A convolution of each channel by itself, and a 1x1 convolution of the result, both without bias (Chollet 2017).
pub struct SeparableConv2d {
    depthwise: Parameter,
    pointwise: Conv2d,
    dilation: usize,
    range: Range,
}

module!(SeparableConv2d { "0.weight": depthwise, "1": pointwise });

impl SeparableConv2d {
    /// Reads `0.weight` [inputs, 1, kernel, kernel] and `1.weight` [outputs, inputs, 1, 1].
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(
        p: &Params,
        inputs: usize,
        outputs: usize,
        kernel: usize,
        dilation: usize,
    ) -> Result<Self> {
        let depthwise = p.pp(0).tensor("weight", &[inputs, 1, kernel, kernel])?;
        let points = Conv2dConfig::new(1, 0);
        let pointwise = Conv2d::load_unbiased(&p.pp(1), inputs, outputs, 1, points)?;
        Ok(Self { depthwise, pointwise, dilation, range: p.range() })
    }

    /// `x` [B, H, W, inputs] -> [B, H, W, outputs]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let weight = self.depthwise.value().to_dtype(x.dtype())?;
        self.pointwise.forward(&depthwise_conv2d(x, &weight, self.dilation)?)
    }
}

/// Group normalisation of [B, H, W, C], optionally followed by SiLU.
pub struct GroupNorm {
    gamma: Parameter,
    beta: Parameter,
    groups: usize,
    eps: f32,
    range: Range,
}

module!(GroupNorm { "weight": gamma, "bias": beta });

impl GroupNorm {
    /// Reads `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, channels: usize, groups: usize, eps: f32) -> Result<Self> {
        Ok(Self {
            gamma: p.vector("weight", channels)?,
            beta: p.vector("bias", channels)?,
            groups,
            eps,
            range: p.range(),
        })
    }

    /// `x` [B, H, W, C]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.normalize(x, false)
    }

    /// `x` [B, H, W, C]; SiLU of the normalised.
    pub fn forward_silu(&self, x: &Tensor) -> Result<Tensor> {
        self.normalize(x, true)
    }

    /// `x` [B, H, W, C1] and `rest` [B, H, W, C2], C1 + C2 = C: both side by side, and SiLU of that normalised.
    pub fn forward_silu_of(&self, x: &Tensor, rest: &Tensor) -> Result<[Tensor; 2]> {
        let _range = self.range.enter();
        let (gamma, beta) = (self.gamma.value(), self.beta.value());
        norm::concat_group_norm([x, rest], &gamma, &beta, self.groups, self.eps, true)
    }

    fn normalize(&self, x: &Tensor, silu: bool) -> Result<Tensor> {
        let _range = self.range.enter();
        let (gamma, beta) = (self.gamma.value(), self.beta.value());
        norm::group_norm(x, &gamma, &beta, self.groups, self.eps, silu)
    }
}

/// Layer normalisation over the last dimension.
pub struct LayerNorm {
    gamma: Parameter,
    beta: Parameter,
    eps: f32,
    range: Range,
}

module!(LayerNorm { "weight": gamma, "bias": beta });

impl LayerNorm {
    /// Reads `weight` and `bias` `[channels]`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, channels: usize, eps: f32) -> Result<Self> {
        let (gamma, beta) = (p.vector("weight", channels)?, p.vector("bias", channels)?);
        Ok(Self { gamma, beta, eps, range: p.range() })
    }

    /// Channels.
    pub fn channels(&self) -> usize {
        self.gamma.shape()[0]
    }

    /// `x` [.., C]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        norm::layer_norm(x, &self.gamma.value(), &self.beta.value(), self.eps)
    }
}

/// Normalisation by the root of the mean square over the last dimension.
pub struct RmsNorm {
    gamma: Parameter,
    eps: f32,
    range: Range,
}

module!(RmsNorm { "weight": gamma });

impl RmsNorm {
    /// Reads `weight` `[channels]`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, channels: usize, eps: f32) -> Result<Self> {
        Ok(Self { gamma: p.vector("weight", channels)?, eps, range: p.range() })
    }

    /// `x` [.., C]
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        norm::rms_norm(x, &self.gamma.value(), self.eps)
    }
}

/// A table of vectors, looked up by id.
pub struct Embedding {
    table: Parameter,
    dtype: DType,
    range: Range,
}

module!(Embedding { "weight": table });

impl Embedding {
    /// Reads `weight` [count, channels].
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, count: usize, channels: usize) -> Result<Self> {
        let table = p.tensor("weight", &[count, channels])?;
        Ok(Self { table, dtype: p.dtype(), range: p.range() })
    }

    /// `ids` [..], wherever they are -> [.., channels]
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let table = self.table.value();
        embedding::embedding(&ids.to_device(table.device())?, &table)?.to_dtype(self.dtype)
    }

    /// As [`Self::forward`], of ids on its device, which [nobody looks at](embedding::embedding_in_place) on a GPU.
    pub fn forward_in_place(&self, ids: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        embedding::embedding_in_place(ids, &self.table.value())?.to_dtype(self.dtype)
    }

    /// The first `n` rows [n, channels].
    pub fn first(&self, n: usize) -> Result<Tensor> {
        self.table.value().narrow(0, 0, n)?.to_dtype(self.dtype)
    }
}

/// A table of vectors, looked up by id, whose products with a vector are also the scores of the ids (Press & Wolf 2017).
pub struct TiedEmbedding {
    table: Parameter,
    /// Of a table in 8 bits, which are for the scores alone.
    rows: Option<Tensor>,
    dtype: DType,
    range: Range,
}

module!(TiedEmbedding { "weight": table });

impl TiedEmbedding {
    /// Reads `weight` [count, channels].
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, count: usize, channels: usize) -> Result<Self> {
        let shape = [count, channels];
        let table = p.weight("weight", &shape, Layout::Matrix)?;
        let weight = table.weight();
        let rows = match weight.rows().is_some() || weight.has_panels() {
            true => None,
            false => Some(p.tensor("weight", &shape)?.value()),
        };
        Ok(Self { table, rows, dtype: p.dtype(), range: p.range() })
    }

    /// `ids` [..], wherever they are -> [.., channels]
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let weight = self.table.weight();
        match self.rows.clone().or_else(|| weight.rows()) {
            Some(rows) => {
                embedding::embedding(&ids.to_device(rows.device())?, &rows)?.to_dtype(self.dtype)
            }
            None => embedding::embedding_of_panels(&ids.to_device(Device::Cpu)?, &weight),
        }
    }

    /// As [`Self::forward`], of ids on its device, which [nobody looks at](embedding::embedding_in_place) on a GPU.
    pub fn forward_in_place(&self, ids: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        let weight = self.table.weight();
        match self.rows.clone().or_else(|| weight.rows()) {
            Some(rows) => embedding::embedding_in_place(ids, &rows)?.to_dtype(self.dtype),
            None => embedding::embedding_of_panels(ids, &weight),
        }
    }

    /// `x` [.., channels] -> [.., count]
    pub fn scores(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        linear(x, &self.table.weight(), Epilogue::default())
    }
}
