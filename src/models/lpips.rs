//! Learned perceptual similarity of two pictures: Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a
//! Perceptual Metric", version 0.1, on AlexNet or VGG16. Reference: `lpips/lpips.py`, `lpips/pretrained_networks.py`.

use crate::error::{Error, Result};
use crate::nn::{Conv2d, Params};
use crate::ops::conv::Conv2dConfig;
use crate::ops::elementwise::relu;
use crate::ops::pool::{Window, max_pool2d};
use crate::tensor::{DType, Device, Tensor};

/// What a network's levels are shifted by and divided by, channel by channel, of pictures in -1..1.
const SHIFT: [f32; 3] = [-0.030, -0.088, -0.188];
/// See [`SHIFT`].
const SCALE: [f32; 3] = [0.458, 0.448, 0.450];

/// Added to a vector's length.
const EPS: f64 = 1e-10;

/// The network that pictures are compared through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trunk {
    /// AlexNet (Krizhevsky 2014), the package's default.
    Alex,
    /// VGG16 (Simonyan & Zisserman 2014).
    Vgg,
}

/// A layer of torchvision's `features`: its number there, and what it is.
#[derive(Clone, Copy)]
enum Layer {
    /// Outputs, kernel, stride, padding.
    Conv(usize, usize, usize, usize),
    Pool(usize),
}

impl Trunk {
    /// The layers of each of the five slices; a convolution is followed by ReLU. A slice ends where features are taken.
    fn slices(self) -> [Vec<(usize, Layer)>; 5] {
        use Layer::{Conv, Pool};
        match self {
            Self::Alex => [
                vec![(0, Conv(64, 11, 4, 2))],
                vec![(2, Pool(3)), (3, Conv(192, 5, 1, 2))],
                vec![(5, Pool(3)), (6, Conv(384, 3, 1, 1))],
                vec![(8, Conv(256, 3, 1, 1))],
                vec![(10, Conv(256, 3, 1, 1))],
            ],
            Self::Vgg => {
                let conv = |number, outputs| (number, Conv(outputs, 3, 1, 1));
                [
                    vec![conv(0, 64), conv(2, 64)],
                    vec![(4, Pool(2)), conv(5, 128), conv(7, 128)],
                    vec![(9, Pool(2)), conv(10, 256), conv(12, 256), conv(14, 256)],
                    vec![(16, Pool(2)), conv(17, 512), conv(19, 512), conv(21, 512)],
                    vec![(23, Pool(2)), conv(24, 512), conv(26, 512), conv(28, 512)],
                ]
            }
        }
    }
}

enum Step {
    Conv(Box<Conv2d>),
    Pool(Window),
}

/// A part of the network and how much each of its channels counts.
struct Slice {
    steps: Vec<Step>,
    weights: Vec<f64>,
}

/// The measure, for use: it has no gradient.
pub struct Lpips {
    slices: Vec<Slice>,
    dtype: DType,
    device: Device,
}

impl Lpips {
    /// Builds the measure from the weights at `p`: the network's by torchvision's names (`features.0.weight`) or those of
    /// the package's `state_dict` (`net.slice1.0.weight`), and the package's `lin0.model.1.weight` to `lin4`. Which network
    /// it is the first convolution says.
    ///
    /// # Errors
    /// As [`Params::raw`].
    pub fn load(p: &Params, trunk: Trunk) -> Result<Self> {
        let of_torchvision = p.contains("features.0.weight");
        let mut inputs = 3;
        let mut slices = Vec::new();
        for (i, layers) in trunk.slices().into_iter().enumerate() {
            let mut steps = Vec::new();
            for (number, layer) in layers {
                steps.push(match layer {
                    Layer::Pool(size) => Step::Pool(Window { size, stride: 2, padding: 0 }),
                    Layer::Conv(outputs, kernel, stride, padding) => {
                        let p = match of_torchvision {
                            true => p.pp("features").pp(number),
                            false => p.pp("net").pp(format!("slice{}", i + 1)).pp(number),
                        };
                        let config = Conv2dConfig::new(stride, padding);
                        let conv = Conv2d::load(&p, inputs, outputs, kernel, config)?;
                        inputs = outputs;
                        Step::Conv(Box::new(conv))
                    }
                });
            }
            let weights = p.raw(&format!("lin{i}.model.1.weight"), &[1, inputs, 1, 1])?;
            let weights = weights.to_dtype(DType::F64)?.to_vec::<f64>()?;
            slices.push(Slice { steps, weights });
        }
        Ok(Self { slices, dtype: p.dtype(), device: p.device() })
    }

    /// How far `a` and `b` [B, H, W, 3], in -1..1, are from each other, pair by pair: 0 for equal ones.
    ///
    /// # Errors
    /// `Shape` when they differ in shape or are too small for the network.
    pub fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
        if a.shape() != b.shape() {
            let expected = a.shape().to_string();
            return Err(Error::expected_shape("lpips", "the other pictures", &expected, b.shape()));
        }
        let mut distances = vec![0.0; a.dim(0)];
        let (mut a, mut b) = (self.scaled(a)?, self.scaled(b)?);
        for slice in &self.slices {
            (a, b) = (slice.forward(&a)?, slice.forward(&b)?);
            for (sum, part) in distances.iter_mut().zip(slice.distance(&a, &b)?) {
                *sum += part;
            }
        }
        Ok(distances)
    }

    fn scaled(&self, x: &Tensor) -> Result<Tensor> {
        let (_, _, _, channels) = x.dims4()?;
        if channels != 3 {
            return Err(Error::expected_shape("lpips", "pictures", "[B, H, W, 3]", x.shape()));
        }
        let mut values = x.to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
        for pixel in values.as_chunks_mut::<3>().0 {
            for c in 0..3 {
                pixel[c] = (pixel[c] - SHIFT[c]) / SCALE[c];
            }
        }
        Tensor::from_vec(values, *x.shape())?.to_dtype(self.dtype)?.to_device(self.device)
    }
}

impl Slice {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for step in &self.steps {
            x = match step {
                Step::Conv(conv) => relu(&conv.forward(&x)?)?,
                Step::Pool(window) => max_pool2d(&x, *window)?,
            };
        }
        Ok(x)
    }

    /// The mean over pixels of the weighted squared differences of unit vectors, in f64, picture by picture.
    fn distance(&self, a: &Tensor, b: &Tensor) -> Result<Vec<f64>> {
        let (_, height, width, channels) = a.dims4()?;
        let values = |t: &Tensor| t.to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>();
        let (a, b) = (values(a)?, values(b)?);
        let length = |pixel: &[f32]| {
            pixel.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt() + EPS
        };
        let of_pixel = |(a, b): (&[f32], &[f32])| {
            let (la, lb) = (length(a), length(b));
            let squared = |(&a, &b): (&f32, &f32)| (f64::from(a) / la - f64::from(b) / lb).powi(2);
            a.iter().zip(b).map(squared).zip(&self.weights).map(|(d, w)| d * w).sum::<f64>()
        };
        let pixels = height * width;
        let of_picture = |(a, b): (&[f32], &[f32])| {
            let pairs = a.chunks_exact(channels).zip(b.chunks_exact(channels));
            pairs.map(of_pixel).sum::<f64>() / pixels as f64
        };
        let len = pixels * channels;
        Ok(a.chunks_exact(len).zip(b.chunks_exact(len)).map(of_picture).collect())
    }
}
