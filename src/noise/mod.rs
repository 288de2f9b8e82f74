//! Gaussian noise: equal to PyTorch's, that of its CPU generator (the default on every device) and of its CUDA generator; or
//! noise that belongs to a place.

pub mod mt19937;
pub mod philox;
pub mod place;

pub use mt19937::Mt19937;
pub use philox::{Philox, PhiloxLayout};
pub use place::PlacedNoise;

use crate::error::{Error, Result};
use crate::tensor::DType;
use std::fmt;
use std::str::FromStr;

/// Where the noise of an image comes from: `torch`, `philox` or `philox:SMSxBLOCKS`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NoiseSource {
    /// `torch.Generator("cpu")`.
    #[default]
    Torch,
    /// `torch.Generator("cuda")` on a card of this layout. Words exactly; not verified on hardware.
    Philox(PhiloxLayout),
}

impl NoiseSource {
    /// The noise of the image with this seed, from its beginning.
    pub fn stream(&self, seed: u64) -> NoiseStream {
        match *self {
            Self::Torch => NoiseStream::Torch(Box::new(Mt19937::new(seed))),
            Self::Philox(layout) => NoiseStream::Philox(Philox::new(seed, layout)),
        }
    }
}

impl FromStr for NoiseSource {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bad = || {
            Error::argument(
                "noise",
                text,
                "expected torch, philox or philox:SMSxBLOCKS (such as philox:108x8, an A100)",
            )
        };
        match text {
            "torch" => Ok(Self::Torch),
            "philox" => Ok(Self::Philox(PhiloxLayout::A100)),
            _ => {
                let (sms, blocks) = text
                    .strip_prefix("philox:")
                    .and_then(|layout| layout.split_once('x'))
                    .ok_or_else(bad)?;
                // The product must fit a launch: 2^16 of each is beyond every card and far from overflow.
                let count = |digits: &str| match digits.parse::<u16>() {
                    Ok(n) if n > 0 => Ok(u32::from(n)),
                    _ => Err(bad()),
                };
                Ok(Self::Philox(PhiloxLayout { sms: count(sms)?, blocks_per_sm: count(blocks)? }))
            }
        }
    }
}

impl fmt::Display for NoiseSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Torch => f.write_str("torch"),
            Self::Philox(PhiloxLayout::A100) => f.write_str("philox"),
            Self::Philox(layout) => write!(f, "philox:{}x{}", layout.sms, layout.blocks_per_sm),
        }
    }
}

/// The noise of one image; every draw continues the one before.
#[derive(Clone)]
pub enum NoiseStream {
    /// See [`Mt19937`].
    Torch(Box<Mt19937>),
    /// See [`Philox`].
    Philox(Philox),
}

impl NoiseStream {
    /// The next `n` normals, as `torch.randn` gives them in `dtype` (f32, bf16 or f16), widened to f32.
    ///
    /// # Errors
    /// `DType` for another dtype.
    pub fn randn(&mut self, n: usize, dtype: DType) -> Result<Vec<f32>> {
        let round: fn(f32) -> f32 = match dtype {
            DType::F32 => |x| x,
            DType::BF16 => |x| half::bf16::from_f32(x).to_f32(),
            DType::F16 => |x| half::f16::from_f32(x).to_f32(),
            other => {
                return Err(Error::DType {
                    op: "randn",
                    expected: "f32, bf16 or f16",
                    found: other,
                });
            }
        };
        let values = match self {
            Self::Torch(generator) if dtype == DType::F32 => generator.randn(n),
            Self::Torch(generator) => generator.randn_16bit(n),
            Self::Philox(generator) => generator.randn(n),
        };
        Ok(values.into_iter().map(round).collect())
    }
}
