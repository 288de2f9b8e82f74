//! Rotary position embeddings (Su et al. 2021). Kernel: `kernels/rotary.cu`.

use bytemuck::NoUninit;

use super::attention::dense;
use super::elementwise::{require_dtype, require_float};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, span, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::parallel::for_each_row;
use crate::cpu::simd::{narrow, simd, widen};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Float, Real, Tensor};

kernels! {
    /// A block a token.
    fn rotary(y: Out, x: In, positions: In<u32>, table: In<f32>, dims: RotaryDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct RotaryDims {
    strides: [u64; 3],
    tokens: u32,
    heads: u32,
    channels: u32,
    half: u32,
    positions: u32,
    direction: f32,
}

/// How the frequencies of a model's training are stretched for longer texts: `rope_type` of transformers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RotaryScaling {
    /// Not at all: `default`.
    None,
    /// All are divided by the factor: `linear`.
    Linear(f32),
    /// Low ones are divided, high ones are not, and those between go over: `llama3`.
    Llama3 {
        /// What low ones are divided by.
        factor: f32,
        /// Low are those that turn fewer times than this over the original context.
        low: f32,
        /// High are those that turn more often.
        high: f32,
        /// Positions of the original context.
        context: usize,
    },
}

/// The table that [`rotary`] turns by: for each of `positions` positions the cosines of its `channels / 2` angles, then
/// their sines, [`positions`, `channels`] f32.
///
/// Angle i is the position times `theta^(-2i / channels)`, scaled; each operation is rounded to f32 as in transformers'
/// `modeling_rope_utils.py`, since the rounding of a large angle shows.
///
/// # Errors
/// `Value` when `channels` is odd or a number is not positive.
pub fn rotary_table(
    positions: usize,
    channels: usize,
    theta: f64,
    scaling: RotaryScaling,
) -> Result<Tensor> {
    const OP: &str = "rotary_table";
    let fits = match scaling {
        RotaryScaling::None => true,
        RotaryScaling::Linear(factor) => factor > 0.0,
        RotaryScaling::Llama3 { factor, low, high, context } => {
            factor > 0.0 && low > 0.0 && high > low && context > 0
        }
    };
    let fits = fits && theta > 0.0 && channels.is_multiple_of(2);
    if !fits {
        let message = format!(
            "{channels} channels, theta {theta} and {scaling:?}: expected an even number, and positive ones that rise"
        );
        return Err(Error::value(OP, message));
    }
    let half = channels / 2;
    let frequency = |i: usize| {
        let exponent = (2 * i) as f32 / channels as f32;
        scaled(1.0 / theta.powf(f64::from(exponent)) as f32, scaling)
    };
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let mut table = Tensor::uninit([positions, channels], DType::F32, Device::Cpu)?;
    for (position, row) in table.as_mut_slice::<f32>()?.chunks_mut(channels.max(1)).enumerate() {
        let (cosines, sines) = row.split_at_mut(half);
        for (i, frequency) in frequencies.iter().enumerate() {
            let (sine, cosine) = f64::from(position as f32 * frequency).sin_cos();
            (cosines[i], sines[i]) = (cosine as f32, sine as f32);
        }
    }
    Ok(table)
}

/// A frequency, stretched.
fn scaled(frequency: f32, scaling: RotaryScaling) -> f32 {
    match scaling {
        RotaryScaling::None => frequency,
        RotaryScaling::Linear(factor) => frequency / factor,
        RotaryScaling::Llama3 { factor, low, high, context } => {
            let context = context as f32;
            let wavelength = std::f32::consts::TAU / frequency;
            if wavelength > context / low {
                frequency / factor
            } else if wavelength < context / high {
                frequency
            } else {
                let smooth = (context / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }
}

/// Turns the first R channels of each head by the angles of its token's position; the others stay.
///
/// `x` [B, T, H, D], a view is read as it lies; `positions` [B, T], u32; `table` [P, R], f32, of [`rotary_table`].
/// Channels i and i + R/2 are a pair, as in GPT-NeoX, Llama, Phi and Qwen (`rotate_half`). Returns [B, T, H, D]. In f32
/// (f64 for f64), rounded once.
///
/// # Errors
/// `Shape` and `DType` when they do not fit; `Value` for a position beyond the table. On a GPU positions are a matter
/// of the device alone, so that a captured graph can have them change: a token beyond the table becomes NaN.
pub fn rotary(x: &Tensor, positions: &Tensor, table: &Tensor) -> Result<Tensor> {
    apply(Rotary { direction: 1.0 }, &tensors(&[x, positions, table]))
}

/// [`rotary`]; inputs `x`, `positions`, `table`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Rotary {
    /// 1, or -1 to turn back.
    direction: f32,
}

impl Op for Rotary {
    fn name(&self) -> &'static str {
        "rotary"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, positions, table) = (&inputs[0], &inputs[1], &inputs[2]);
        require_float(self.name(), x)?;
        require_dtype(self.name(), DType::U32, positions)?;
        require_dtype(self.name(), DType::F32, table)?;
        let &[batch, tokens, _, channels] = x.dims() else {
            return Err(Error::expected_shape(self.name(), "x", "[B, T, H, D]", x.shape()));
        };
        if positions.dims() != [batch, tokens] {
            let expected = format!("[{batch}, {tokens}]");
            let found = positions.shape();
            return Err(Error::expected_shape(self.name(), "positions", &expected, found));
        }
        if !matches!(*table.dims(), [_, turned] if turned.is_multiple_of(2) && turned <= channels) {
            let expected = format!("[P, an even number up to {channels}]");
            return Err(Error::expected_shape(self.name(), "table", &expected, table.shape()));
        }
        Ok(vec![Meta::like(x)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, table) = (dense(&inputs[0])?, inputs[2].contiguous()?);
        let (_, tokens, heads, channels) = x.dims4()?;
        let (rows, turned) = table.dims2()?;
        let positions = inputs[1].to_vec::<u32>()?;
        if let Some(at) = positions.iter().position(|&p| p as usize >= rows) {
            let (b, t, position) = (at / tokens, at % tokens, positions[at]);
            let message = format!(
                "position {position} of token {t} of sequence {b} is beyond the table's {rows}: the text is longer than the model's context"
            );
            return Err(Error::value(self.name(), message));
        }
        let table = table.as_slice::<f32>()?;
        dispatch_float!(self.name(), x.dtype(), T => {
            let from = x.as_strided_slice::<T>()?;
            let &[of_sequence, of_token, of_head, _] = x.strides() else { unreachable!("as inferred") };
            for_each_row(outputs[0].as_mut_slice::<T>()?, heads * channels, |i, y| {
                let angles = &table[positions[i] as usize * turned..][..turned];
                let from = &from[i / tokens * of_sequence + i % tokens * of_token..];
                turn(from, of_head, angles, self.direction, channels, y);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let x = dense(&inputs[0])?;
        let (positions, table) = (inputs[1].contiguous()?, inputs[2].contiguous()?);
        let (batch, tokens, heads, channels) = x.dims4()?;
        let (rows, turned) = table.dims2()?;
        let half = turned / 2;
        let dims = RotaryDims {
            strides: [0, 1, 2].map(|d| x.strides()[d] as u64),
            tokens: to_u32(self.name(), tokens)?,
            heads: to_u32(self.name(), heads)?,
            channels: to_u32(self.name(), channels)?,
            half: to_u32(self.name(), half)?,
            positions: to_u32(self.name(), rows)?,
            direction: self.direction,
        };
        let threads = to_u32(self.name(), heads * (channels - half))?;
        let blocks = to_u32(self.name(), batch * tokens)?;
        let config = LaunchConfig::new([blocks, 1], threads.next_multiple_of(32).min(256));
        kernel::rotary(config, &mut outputs[0], &span(&x), &positions, &table, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[1, 2], result: false }
    }

    /// The gradient turns back: the rotation's matrix is orthogonal.
    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        if call.wants(2) {
            return Err(Error::no_gradient("rotary, by its table"));
        }
        let back = Self { direction: -self.direction };
        let slots = tensors(&[grad, call.tensor(1)?, call.tensor(2)?]);
        Ok(vec![Some(apply(back, &slots)?), None, None])
    }
}

simd! {
    /// The heads of one token, `step` apart in `x`; `angles` are cosines, then sines.
    fn turn[T: Float](_s, x: &[T], step: usize, angles: &[f32], direction: f32, channels: usize, y: &mut [T]) {
        let (turned, half) = (angles.len(), angles.len() / 2);
        let real = |x: f32| T::Acc::from_f64(f64::from(x));
        let cosines: Vec<T::Acc> = angles[..half].iter().map(|&x| real(x)).collect();
        let sines: Vec<T::Acc> = angles[half..].iter().map(|&x| real(x * direction)).collect();
        let (mut from, mut to) = (vec![T::Acc::ZERO; turned], vec![T::Acc::ZERO; turned]);
        for (head, y) in y.chunks_exact_mut(channels).enumerate() {
            let x = &x[head * step..][..channels];
            widen(&x[..turned], &mut from);
            let ((a, b), (left, right)) = (from.split_at(half), to.split_at_mut(half));
            for i in 0..half {
                left[i] = a[i] * cosines[i] - b[i] * sines[i];
                right[i] = b[i] * cosines[i] + a[i] * sines[i];
            }
            narrow(&to, &mut y[..turned]);
            y[turned..].copy_from_slice(&x[turned..]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::at_each_level;
    use crate::ops::testing::{
        bits, check, check_batch, check_gradient, check_nan, devices, random, shapes, values,
    };

    fn positions(batch: usize, tokens: usize, below: usize) -> Tensor {
        let all = (0..batch * tokens).map(|i| (i * 7 % below) as u32).collect::<Vec<_>>();
        Tensor::from_vec(all, [batch, tokens]).unwrap()
    }

    fn table(rows: usize, turned: usize) -> Tensor {
        rotary_table(rows, turned, 10_000.0, RotaryScaling::None).unwrap()
    }

    /// The rotation of `x` as its inputs' device has it.
    fn turned(x: &Tensor, positions: &Tensor, table: &Tensor) -> Result<Tensor> {
        rotary(x, &positions.to_device(x.device())?, &table.to_device(x.device())?)
    }

    /// ([B, T, H, D], R)
    const CASES: [([usize; 4], usize); 8] = [
        ([1, 1, 1, 2], 2),
        ([1, 3, 2, 5], 4),
        ([7, 2, 3, 33], 0),
        ([2, 65, 4, 64], 64),
        ([1, 1, 12, 80], 32),
        ([7, 1, 3, 31], 30),
        ([2, 9, 1, 128], 128),
        ([1, 5, 9, 160], 66),
    ];

    #[test]
    fn pairs_of_channels_are_turned_by_their_position() {
        for (shape, r) in CASES {
            let [batch, tokens, heads, channels] = shape;
            let (at, table) = (positions(batch, tokens, 100), table(100, r));
            at_each_level(|level| {
                check(
                    &format!("rotary {shape:?}, {r} channels, {}", level.name()),
                    &[random(shape, 1)],
                    4.0,
                    |x| turned(x[0], &at, &table),
                    |x| {
                        let (angles, places) = (values(&table), at.to_vec::<u32>().unwrap());
                        let mut y = x[0].clone();
                        for (i, y) in y.chunks_mut(channels).enumerate() {
                            let angles = &angles[places[i / heads] as usize * r..][..r];
                            for c in 0..r / 2 {
                                let (sine, cosine) = (angles[c + r / 2], angles[c]);
                                let (a, b) = (y[c], y[c + r / 2]);
                                y[c] = a * cosine - b * sine;
                                y[c + r / 2] = a * sine + b * cosine;
                            }
                        }
                        y
                    },
                );
            });
        }
    }

    #[test]
    fn tokens_do_not_depend_on_their_batch() {
        let table = table(50, 20);
        check_batch("rotary", &random([7, 3, 2, 24], 1), |x| {
            turned(x, &Tensor::from_vec([4u32, 9, 49].repeat(x.dim(0)), [x.dim(0), 3])?, &table)
        });
    }

    #[test]
    fn queries_and_keys_of_one_projection_are_read_in_place() {
        let (at, table) = (positions(2, 5, 40), table(40, 16));
        for device in devices() {
            for dtype in [DType::F32, DType::BF16, DType::F16] {
                let qkv = random([2, 5, 9, 24], 2).to_dtype(dtype).unwrap();
                let qkv = qkv.to_device(device).unwrap();
                for first in [0, 3] {
                    let part = qkv.narrow(2, first, 3).unwrap();
                    let copy = turned(&part.contiguous().unwrap(), &at, &table).unwrap();
                    assert_eq!(bits(&turned(&part, &at, &table).unwrap()), bits(&copy), "{dtype}");
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for (i, [b, t, h, d]) in shapes().enumerate() {
            let (at, table) = (positions(b, t, 30), table(30, (d - i % 2 * (d / 3)) / 2 * 2));
            check_gradient("rotary", &[random([b, t, h, d], 3)], |x| turned(x[0], &at, &table));
        }
    }

    #[test]
    fn a_nan_shows() {
        let (at, table) = (positions(1, 3, 20), table(20, 4));
        for place in [0, 3, 5, 17] {
            check_nan("rotary", &random([1, 3, 1, 6], 1), place, |x| turned(x, &at, &table));
        }
    }

    #[test]
    fn a_position_beyond_the_table_is_never_a_number() {
        let (x, table) = (random([2, 2, 1, 6], 1), table(10, 4));
        let at = Tensor::from_slice(&[3u32, 9, 10, 0], [2, 2]).unwrap();
        let message = rotary(&x, &at, &table).unwrap_err().to_string();
        assert!(
            message.contains("position 10 of token 0 of sequence 1") && message.contains("10"),
            "{message}"
        );
        for device in devices().filter(|device| *device != Device::Cpu) {
            let y = values(&turned(&x.to_device(device).unwrap(), &at, &table).unwrap());
            for (i, y) in y.iter().enumerate() {
                assert_eq!(y.is_nan(), i / 6 == 2, "element {i}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (x, at) = (random([2, 3, 1, 6], 1), positions(2, 3, 10));
        let shape = |result: Result<Tensor>| assert!(matches!(result, Err(Error::Shape { .. })));
        shape(rotary(&x, &positions(3, 2, 10), &table(10, 4)));
        shape(rotary(&x, &at, &table(10, 8)));
        shape(rotary(&x, &at, &random([10, 3], 1)));
        shape(rotary(&random([2, 3, 6], 1), &at, &table(10, 4)));
        let halves = table(10, 4).to_dtype(DType::F16).unwrap();
        assert!(matches!(rotary(&x, &at, &halves), Err(Error::DType { .. })));
        assert!(matches!(rotary(&x, &random([2, 3], 1), &table(10, 4)), Err(Error::DType { .. })));
        let rising = RotaryScaling::Llama3 { factor: 8.0, low: 4.0, high: 4.0, context: 8192 };
        for (channels, theta, scaling) in [
            (3, 1e4, RotaryScaling::None),
            (4, 0.0, RotaryScaling::None),
            (4, 1e4, RotaryScaling::Linear(f32::NAN)),
            (4, 1e4, rising),
        ] {
            let result = rotary_table(10, channels, theta, scaling);
            assert!(matches!(result, Err(Error::Value { .. })), "{channels} {theta} {scaling:?}");
        }
    }

    /// Frequencies of transformers 5.23: `ROPE_INIT_FUNCTIONS` over a head of 16 channels.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let llama3 = RotaryScaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, context: 8192 };
        let cases = [
            (
                1e4,
                RotaryScaling::None,
                [
                    1.0,
                    0.316_227_76,
                    0.1,
                    0.031_622_78,
                    0.01,
                    0.003_162_277_9,
                    0.001,
                    0.000_316_227_76,
                ],
            ),
            (
                1e4,
                RotaryScaling::Linear(2.5),
                [
                    0.4,
                    0.126_491_1,
                    0.04,
                    0.012_649_111,
                    0.004,
                    0.001_264_911_1,
                    0.000_4,
                    0.000_126_491_11,
                ],
            ),
            (
                5e5,
                llama3,
                [
                    1.0,
                    0.193_922_76,
                    0.037_606_03,
                    0.007_292_665,
                    0.000_524_846,
                    3.428_102_4e-5,
                    6.647_869_7e-6,
                    1.289_173_2e-6,
                ],
            ),
        ];
        for (theta, scaling, expected) in cases {
            let table = rotary_table(2, 16, theta, scaling).unwrap();
            let of_one = table.narrow(0, 1, 1).unwrap();
            for (i, (row, expected)) in values(&of_one)[8..].iter().zip(expected).enumerate() {
                // At position 1 the angle is the frequency. Its powers and quotients are a few roundings, the sine one.
                let exact = f64::sin(expected);
                let error = (row - exact).abs();
                assert!(
                    error <= 4.0 * f64::from(f32::EPSILON) * exact,
                    "{scaling:?}, {i}: {row} {exact}"
                );
            }
        }
    }
}
