//! InceptionV3 (Szegedy et al. 2015, "Rethinking the Inception Architecture for Computer Vision") as Frechet Inception
//! distances are measured with it: TensorFlow's network of 2015 with 1,008 outputs, whose average pools do not count
//! padding and whose last block has a largest instead of a mean. Reference:
//! `torch_fidelity/feature_extractor_inceptionv3.py`, whose names of weights are pytorch-fid's.

use crate::error::Result;
use crate::nn::{Linear, Params};
use crate::ops::conv::{Conv2dConfig, conv2d};
use crate::ops::elementwise::relu;
use crate::ops::layout::concat;
use crate::ops::matmul::Epilogue;
use crate::ops::pool::{Window, avg_pool2d_within, max_pool2d};
use crate::ops::reduce::mean;
use crate::ops::weight::{Layout, Weight};
use crate::tensor::cuda::Range;
use crate::tensor::{DType, Device, Tensor};

/// Height and width of the pictures that it was trained on.
pub const SIDE: usize = 299;

/// Numbers that it describes a picture by.
pub const FEATURES: usize = 2048;

/// Classes that it tells apart: ImageNet's thousand and eight that are not used.
pub const CLASSES: usize = 1008;

/// Added to variances.
const EPS: f64 = 1e-3;

/// A 3x3 window that halves the size.
const HALVING: Window = Window { size: 3, stride: 2, padding: 0 };

/// A 3x3 window that keeps the size.
const KEEPING: Window = Window { size: 3, stride: 1, padding: 1 };

/// A convolution with its batch norm, which is folded into it, and ReLU.
struct Conv {
    weight: Weight,
    bias: Tensor,
    config: Conv2dConfig,
    range: Range,
}

impl Conv {
    /// Of kernel `size` (height, width), which keeps the size of a picture at stride 1 where it is `padded`.
    fn load(
        p: &Params,
        inputs: usize,
        outputs: usize,
        [kh, kw]: [usize; 2],
        stride: usize,
        padded: bool,
    ) -> Result<Self> {
        let weight = p.pp("conv").raw("weight", &[outputs, inputs, kh, kw])?;
        let norm = |name| p.pp("bn").raw(name, &[outputs])?.to_dtype(DType::F64)?.to_vec::<f64>();
        let (gamma, beta) = (norm("weight")?, norm("bias")?);
        let (mean, variance) = (norm("running_mean")?, norm("running_var")?);
        let factors: Vec<f64> =
            gamma.iter().zip(&variance).map(|(gamma, v)| gamma / (v + EPS).sqrt()).collect();
        let mut folded = weight.to_dtype(DType::F64)?.to_vec::<f64>()?;
        for (filter, factor) in folded.chunks_exact_mut(inputs * kh * kw).zip(&factors) {
            filter.iter_mut().for_each(|w| *w *= factor);
        }
        let bias = beta.iter().zip(&mean).zip(&factors).map(|((b, m), f)| (b - m * f) as f32);
        let folded: Vec<f32> = folded.iter().map(|&w| w as f32).collect();
        let folded = Tensor::from_vec(folded, *weight.shape())?.to_device(p.device())?;
        let [y, x] = if padded { [kh / 2, kw / 2] } else { [0, 0] };
        Ok(Self {
            weight: Weight::frozen(&folded, Layout::ConvolutionAt(stride), p.dtype())?,
            bias: Tensor::from_vec(bias.collect::<Vec<_>>(), [outputs])?.to_device(p.device())?,
            config: Conv2dConfig { stride, padding: [y, y, x, x] },
            range: p.range(),
        })
    }

    /// `x` [B, H, W, inputs] -> [B, H', W', outputs]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let _range = self.range.enter();
        relu(&conv2d(x, &self.weight, self.config, Epilogue::bias(Some(&self.bias)))?)
    }
}

/// What makes the last branch of a block.
#[derive(Clone, Copy)]
enum Pool {
    /// The mean around each pixel, through a convolution.
    Mean,
    /// The largest around each pixel, through a convolution.
    Max,
    /// The largest, at half the size.
    Halving,
}

/// Branches side by side: each a line of convolutions, the last of which may be two beside each other.
struct Block {
    branches: Vec<Branch>,
    pool: Pool,
    pooled: Option<Conv>,
}

struct Branch {
    line: Vec<Conv>,
    /// What the end of the line goes through, side by side; none where the line's end is the branch's.
    ends: Vec<Conv>,
}

/// A convolution of a branch: its name, outputs, kernel (height, width), stride.
type Layer = (&'static str, usize, [usize; 2], usize);

impl Block {
    fn load(
        p: &Params,
        inputs: usize,
        branches: &[(&[Layer], &[Layer])],
        pool: Pool,
        pooled: usize,
    ) -> Result<Self> {
        let branch = |&(line, ends): &(&[Layer], &[Layer])| -> Result<Branch> {
            let mut width = inputs;
            let conv = |&(name, outputs, kernel, stride): &Layer, width| {
                Conv::load(&p.pp(name), width, outputs, kernel, stride, stride == 1)
            };
            let mut convs = Vec::with_capacity(line.len());
            for layer in line {
                convs.push(conv(layer, width)?);
                width = layer.1;
            }
            let ends = ends.iter().map(|layer| conv(layer, width)).collect::<Result<_>>()?;
            Ok(Branch { line: convs, ends })
        };
        let branches = branches.iter().map(branch).collect::<Result<_>>()?;
        let pooled = (pooled > 0)
            .then(|| Conv::load(&p.pp("branch_pool"), inputs, pooled, [1, 1], 1, true))
            .transpose()?;
        Ok(Self { branches, pool, pooled })
    }

    /// `x` [B, H, W, inputs] -> [B, H', W', the sum of all branches' outputs]
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut outputs = Vec::new();
        for branch in &self.branches {
            let mut h = x.clone();
            for conv in &branch.line {
                h = conv.forward(&h)?;
            }
            if branch.ends.is_empty() {
                outputs.push(h);
                continue;
            }
            for end in &branch.ends {
                outputs.push(end.forward(&h)?);
            }
        }
        let pooled = match self.pool {
            Pool::Mean => avg_pool2d_within(x, KEEPING)?,
            Pool::Max => max_pool2d(x, KEEPING)?,
            Pool::Halving => max_pool2d(x, HALVING)?,
        };
        outputs.push(match &self.pooled {
            Some(conv) => conv.forward(&pooled)?,
            None => pooled,
        });
        concat(&outputs.iter().collect::<Vec<_>>(), 3)
    }

    /// InceptionA: 5x5 and twice 3x3.
    fn a(p: &Params, inputs: usize, pooled: usize) -> Result<Self> {
        let branches: [(&[Layer], &[Layer]); 3] = [
            (&[("branch1x1", 64, [1, 1], 1)], &[]),
            (&[("branch5x5_1", 48, [1, 1], 1), ("branch5x5_2", 64, [5, 5], 1)], &[]),
            (
                &[
                    ("branch3x3dbl_1", 64, [1, 1], 1),
                    ("branch3x3dbl_2", 96, [3, 3], 1),
                    ("branch3x3dbl_3", 96, [3, 3], 1),
                ],
                &[],
            ),
        ];
        Self::load(p, inputs, &branches, Pool::Mean, pooled)
    }

    /// InceptionB: half the size by 3x3.
    fn b(p: &Params, inputs: usize) -> Result<Self> {
        let branches: [(&[Layer], &[Layer]); 2] = [
            (&[("branch3x3", 384, [3, 3], 2)], &[]),
            (
                &[
                    ("branch3x3dbl_1", 64, [1, 1], 1),
                    ("branch3x3dbl_2", 96, [3, 3], 1),
                    ("branch3x3dbl_3", 96, [3, 3], 2),
                ],
                &[],
            ),
        ];
        Self::load(p, inputs, &branches, Pool::Halving, 0)
    }

    /// InceptionC: 7x7 as a row and a column.
    fn c(p: &Params, inputs: usize, width: usize) -> Result<Self> {
        let branches: [(&[Layer], &[Layer]); 3] = [
            (&[("branch1x1", 192, [1, 1], 1)], &[]),
            (
                &[
                    ("branch7x7_1", width, [1, 1], 1),
                    ("branch7x7_2", width, [1, 7], 1),
                    ("branch7x7_3", 192, [7, 1], 1),
                ],
                &[],
            ),
            (
                &[
                    ("branch7x7dbl_1", width, [1, 1], 1),
                    ("branch7x7dbl_2", width, [7, 1], 1),
                    ("branch7x7dbl_3", width, [1, 7], 1),
                    ("branch7x7dbl_4", width, [7, 1], 1),
                    ("branch7x7dbl_5", 192, [1, 7], 1),
                ],
                &[],
            ),
        ];
        Self::load(p, inputs, &branches, Pool::Mean, 192)
    }

    /// InceptionD: half the size by 3x3 and 7x7.
    fn d(p: &Params, inputs: usize) -> Result<Self> {
        let branches: [(&[Layer], &[Layer]); 2] = [
            (&[("branch3x3_1", 192, [1, 1], 1), ("branch3x3_2", 320, [3, 3], 2)], &[]),
            (
                &[
                    ("branch7x7x3_1", 192, [1, 1], 1),
                    ("branch7x7x3_2", 192, [1, 7], 1),
                    ("branch7x7x3_3", 192, [7, 1], 1),
                    ("branch7x7x3_4", 192, [3, 3], 2),
                ],
                &[],
            ),
        ];
        Self::load(p, inputs, &branches, Pool::Halving, 0)
    }

    /// InceptionE: rows and columns beside each other.
    fn e(p: &Params, inputs: usize, pool: Pool) -> Result<Self> {
        let branches: [(&[Layer], &[Layer]); 3] = [
            (&[("branch1x1", 320, [1, 1], 1)], &[]),
            (
                &[("branch3x3_1", 384, [1, 1], 1)],
                &[("branch3x3_2a", 384, [1, 3], 1), ("branch3x3_2b", 384, [3, 1], 1)],
            ),
            (
                &[("branch3x3dbl_1", 448, [1, 1], 1), ("branch3x3dbl_2", 384, [3, 3], 1)],
                &[("branch3x3dbl_3a", 384, [1, 3], 1), ("branch3x3dbl_3b", 384, [3, 1], 1)],
            ),
        ];
        Self::load(p, inputs, &branches, pool, 192)
    }
}

/// The network, for use: it has no gradient.
pub struct InceptionV3 {
    /// Three, the largest of windows, two, the largest of windows.
    stem: [Conv; 5],
    blocks: Vec<Block>,
    fc: Linear,
    dtype: DType,
    device: Device,
}

impl InceptionV3 {
    /// Builds the model from the weights at `p`.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params) -> Result<Self> {
        let conv = |name: &str, inputs, outputs, kernel, stride, padded| {
            Conv::load(&p.pp(name), inputs, outputs, [kernel; 2], stride, padded)
        };
        Ok(Self {
            stem: [
                conv("Conv2d_1a_3x3", 3, 32, 3, 2, false)?,
                conv("Conv2d_2a_3x3", 32, 32, 3, 1, false)?,
                conv("Conv2d_2b_3x3", 32, 64, 3, 1, true)?,
                conv("Conv2d_3b_1x1", 64, 80, 1, 1, false)?,
                conv("Conv2d_4a_3x3", 80, 192, 3, 1, false)?,
            ],
            blocks: vec![
                Block::a(&p.pp("Mixed_5b"), 192, 32)?,
                Block::a(&p.pp("Mixed_5c"), 256, 64)?,
                Block::a(&p.pp("Mixed_5d"), 288, 64)?,
                Block::b(&p.pp("Mixed_6a"), 288)?,
                Block::c(&p.pp("Mixed_6b"), 768, 128)?,
                Block::c(&p.pp("Mixed_6c"), 768, 160)?,
                Block::c(&p.pp("Mixed_6d"), 768, 160)?,
                Block::c(&p.pp("Mixed_6e"), 768, 192)?,
                Block::d(&p.pp("Mixed_7a"), 768)?,
                Block::e(&p.pp("Mixed_7b"), 1280, Pool::Mean)?,
                Block::e(&p.pp("Mixed_7c"), 2048, Pool::Max)?,
            ],
            // Scores go without the bias, which the file has as well.
            fc: {
                p.pp("fc").raw("bias", &[CLASSES])?;
                Linear::load(&p.pp("fc"), FEATURES, CLASSES, false)?
            },
            dtype: p.dtype(),
            device: p.device(),
        })
    }

    /// `images` [B, 299, 299, 3], levels less 128 and by 128 -> [B, 2048].
    ///
    /// # Errors
    /// Another number of channels, or pictures too small for the windows.
    pub fn features(&self, images: &Tensor) -> Result<Tensor> {
        let mut x = images.to_dtype(self.dtype)?.to_device(self.device)?;
        // 1. in: an eighth of the size
        let (three, two) = self.stem.split_at(3);
        for part in [three, two] {
            for conv in part {
                x = conv.forward(&x)?;
            }
            x = max_pool2d(&x, HALVING)?; // [B, 73, 73, 64], then [B, 35, 35, 192]
        }
        // 2. blocks: 35, 17 and 8 pixels a side
        for block in &self.blocks {
            x = block.forward(&x)?;
        }
        // 3. out
        mean(&x, &[1, 2]) // [B, 2048]
    }

    /// `features` [B, 2048] -> the classes' scores without their bias [B, 1008], as Inception scores use them.
    ///
    /// # Errors
    /// Features of another width.
    pub fn logits(&self, features: &Tensor) -> Result<Tensor> {
        self.fc.forward(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{assert_close, devices, random, values};

    /// Weights of a kind, each by its name; variances are positive.
    fn params(device: Device) -> Params {
        let draw = |name: &str, shape: &[usize]| {
            let values = random(shape, crc32fast::hash(name.as_bytes()).into());
            let fan_in = shape[1..].iter().product::<usize>() as f32;
            let of = |x: f32| if shape.len() == 1 { 1.0 + 0.2 * x } else { x / fan_in.sqrt() };
            Tensor::from_vec(values.to_vec::<f32>()?.into_iter().map(of).collect(), shape)
        };
        Params::initial(draw, DType::F32, device)
    }

    #[test]
    fn blocks_of_each_kind_are_the_same_on_every_device() {
        let block = |kind: usize, p: &Params| match kind {
            0 => Block::a(p, 32, 32),
            1 => Block::b(p, 16),
            2 => Block::c(p, 16, 24),
            3 => Block::d(p, 16),
            _ => Block::e(p, 16, Pool::Max),
        };
        // What has the most weights sees the fewest pixels.
        let shapes = [[1, 5, 7, 32], [1, 5, 7, 16], [1, 5, 7, 16], [1, 3, 6, 16], [1, 2, 3, 16]];
        let outputs =
            [[1, 5, 7, 256], [1, 2, 3, 496], [1, 5, 7, 768], [1, 1, 2, 528], [1, 2, 3, 2048]];
        for (kind, (shape, output)) in shapes.into_iter().zip(outputs).enumerate() {
            let x = random(shape, kind as u64);
            let expected = block(kind, &params(Device::Cpu)).unwrap().forward(&x).unwrap();
            assert_eq!(expected.dims(), output);
            for device in devices().filter(|&device| device != Device::Cpu) {
                let found = block(kind, &params(device)).unwrap();
                let found = found.forward(&x.to_device(device).unwrap()).unwrap();
                // A few sums of up to 4,032 terms on both sides.
                assert_close(&found, &values(&expected), 4096.0, "block");
            }
        }
    }
}
