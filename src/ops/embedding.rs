//! Embeddings: rows of a table, and sinusoids of a timestep. Kernels: `kernels/embedding.cu`.

use bytemuck::NoUninit;

use super::elementwise::require_float;
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::reduce::sum_columns_on_device;
use super::weight::Weight;
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::parallel::for_each_row;
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, MAX_RANK, Real, Shape, Tensor};

kernels! {
    /// A warp a row.
    fn embedding(y: Out, ids: In<i64>, table: In, dims: EmbeddingDims);
    /// As `embedding`.
    fn embedding_u32(y: Out, ids: In<u32>, table: In, dims: EmbeddingDims);
    /// A block a row of the table.
    fn embedding_gradient(y: Out<f32>, ids: In<i64>, grad: In, dims: EmbeddingGradientDims);
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct EmbeddingDims {
    ids: u32,
    rows: u32,
    channels: u32,
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct EmbeddingGradientDims {
    ids: u32,
    rows: u32,
    channels: u32,
    chunks: u32,
    ids_of_chunk: u32,
}

/// Ids that a block of a GPU looks through, at least.
const MIN_IDS: usize = 512;

/// Rows of `table` [V, C] by `ids` [..], i64 or u32: [.., C].
///
/// The ids are looked at on the host, so that one outside the table is an error wherever the table is; ids of a device are
/// waited for.
///
/// # Errors
/// `Value` for an id outside the table, naming it and the table's size; `Shape` when the table is not a
/// matrix; `DType` when `ids` are not integers or the table holds no floats.
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    apply(Embedding { look: true }, &tensors(&[ids, table]))
}

/// As [`embedding`], of ids that a GPU reads where they are, so that a captured graph can have them change: one outside the
/// table gives a row of NaN there.
///
/// # Errors
/// As [`embedding`] but for ids outside the table on a GPU.
pub fn embedding_in_place(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    apply(Embedding { look: false }, &tensors(&[ids, table]))
}

/// As [`embedding`], of the rows of a frozen matrix [V, C] that lies in panels, as a CPU's products read it.
///
/// # Errors
/// As [`embedding`].
pub(crate) fn embedding_of_panels(ids: &Tensor, table: &Weight) -> Result<Tensor> {
    apply(PanelEmbedding, &[ids.into(), table.into()])
}

/// [`embedding_of_panels`]; inputs `ids`, `table`.
#[derive(Clone, Copy, Debug)]
struct PanelEmbedding;

impl Op for PanelEmbedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (ids, table) = (&inputs[0], inputs.weight(1));
        let &[_, channels] = &**table.shape() else {
            return Err(Error::expected_shape(self.name(), "table", "[V, C]", table.shape()));
        };
        let dims: Vec<usize> = ids.dims().iter().copied().chain([channels]).collect();
        Ok(vec![Meta { shape: Shape::new(&dims), dtype: table.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let table = inputs.weight(1);
        table.copy_rows(&rows_of(&inputs[0], table.shape()[0])?, &mut outputs[0])
    }

    fn cuda(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel("embedding of panels"))
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// [`embedding`]; inputs `ids`, `table`.
#[derive(Clone, Copy, Debug)]
struct Embedding {
    /// Whether the host looks at the ids of a GPU.
    look: bool,
}

impl Op for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (ids, table) = (&inputs[0], &inputs[1]);
        require_float("embedding", table)?;
        if !matches!(ids.dtype(), DType::I64 | DType::U32) {
            return Err(Error::DType {
                op: "embedding",
                expected: "i64 or u32 ids",
                found: ids.dtype(),
            });
        }
        let &[_, channels] = table.dims() else {
            return Err(Error::expected_shape("embedding", "table", "[V, C]", table.shape()));
        };
        if ids.rank() == MAX_RANK {
            return Err(Error::expected_shape(
                "embedding",
                "ids",
                "at most 5 dimensions",
                ids.shape(),
            ));
        }
        let dims: Vec<usize> = ids.dims().iter().copied().chain([channels]).collect();
        Ok(vec![Meta { shape: Shape::new(&dims), dtype: table.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let out = &mut outputs[0];
        let (ids, table) = (&inputs[0], inputs[1].contiguous()?);
        let (rows, channels) = table.dims2()?;
        let ids = rows_of(ids, rows)?;
        dispatch_float!("embedding", table.dtype(), T => {
            let table = table.as_slice::<T>()?;
            for_each_row(out.as_mut_slice::<T>()?, channels, |i, y| {
                y.copy_from_slice(&table[ids[i] * channels..][..channels]);
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let table = inputs[1].contiguous()?;
        let (rows, channels) = table.dims2()?;
        let ids = if self.look {
            let ids: Vec<i64> =
                rows_of(&inputs[0], rows)?.into_iter().map(|id| id as i64).collect();
            Tensor::from_slice(&ids, [ids.len()])?.to_device(table.device())?
        } else {
            inputs[0].contiguous()?
        };
        let dims = EmbeddingDims {
            ids: to_u32("embedding", ids.len())?,
            rows: to_u32("embedding", rows)?,
            channels: to_u32("embedding", channels)?,
        };
        // Four rows a block: 77 tokens still spread over 20 of them.
        let config = LaunchConfig::new([dims.ids.div_ceil(4), 1], 4 * 32);
        match ids.dtype() {
            DType::U32 => kernel::embedding_u32(config, &mut outputs[0], &ids, &table, dims),
            _ => kernel::embedding(config, &mut outputs[0], &ids, &table, dims),
        }
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let Some(table) = call.meta(1) else { return Err(Error::no_gradient(self.name())) };
        let gradient = EmbeddingGradient { rows: table.shape[0] };
        Ok(vec![None, Some(apply(gradient, &tensors(&[call.tensor(0)?, grad]))?)])
    }
}

/// Gradient by the table: the sums of the gradients of equal ids, in their order; inputs `ids`, `grad`.
#[derive(Clone, Copy, Debug)]
struct EmbeddingGradient {
    rows: usize,
}

impl Op for EmbeddingGradient {
    fn name(&self) -> &'static str {
        "embedding_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let grad = &inputs[1];
        let channels = grad.dim(grad.rank() - 1);
        Ok(vec![Meta { shape: [self.rows, channels].into(), dtype: grad.dtype() }])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (ids, grad) = (&inputs[0], inputs[1].contiguous()?);
        let ids: Vec<usize> = match ids.dtype() {
            DType::I64 => check_ids(&ids.to_vec::<i64>()?, self.rows)?,
            _ => check_ids(&ids.to_vec::<u32>()?, self.rows)?,
        };
        let channels = grad.dim(grad.rank() - 1);
        // Positions by row, those of a row in their order.
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_by_key(|&i| ids[i]);
        dispatch_float!(self.name(), grad.dtype(), T => {
            let grad = grad.as_slice::<T>()?;
            for_each_row(outputs[0].as_mut_slice::<T>()?, channels, |row, y| {
                let first = order.partition_point(|&i| ids[i] < row);
                let mut sum = vec![<T as Float>::Acc::ZERO; channels];
                for &i in order[first..].iter().take_while(|&&i| ids[i] == row) {
                    for (sum, g) in sum.iter_mut().zip(&grad[i * channels..]) {
                        *sum += g.to_acc();
                    }
                }
                y.iter_mut().zip(&sum).for_each(|(y, &sum)| *y = T::from_acc(sum));
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (ids, grad, out) = (&inputs[0], inputs[1].contiguous()?, &mut outputs[0]);
        let ids = match ids.dtype() {
            DType::I64 => ids.contiguous()?,
            // Seldom: those of a tokenizer are i64.
            _ => {
                let wide: Vec<i64> = ids.to_vec::<u32>()?.into_iter().map(i64::from).collect();
                Tensor::from_vec(wide, [ids.len()])?.to_device(grad.device())?
            }
        };
        let (rows, channels) = (self.rows, grad.dim(grad.rank() - 1));
        // Padding gives most ids one row: chunks share it out, as many as 64 MiB have room for.
        let room = ((1 << 24) / (rows * channels)).max(1);
        let chunks = ids.len().div_ceil(MIN_IDS).clamp(1, room);
        let ids_of_chunk = ids.len().div_ceil(chunks);
        let dims = EmbeddingGradientDims {
            ids: to_u32(self.name(), ids.len())?,
            rows: to_u32(self.name(), rows)?,
            channels: to_u32(self.name(), channels)?,
            chunks: chunks as u32,
            ids_of_chunk: ids_of_chunk as u32,
        };
        let threads = channels.next_multiple_of(32).min(256) as u32;
        let config = LaunchConfig::new([dims.rows, dims.chunks], threads);
        let mut sums = Tensor::uninit([chunks, rows * channels], DType::F32, grad.device())?;
        kernel::embedding_gradient(config, &mut sums, &ids, &grad, dims)?;
        sum_columns_on_device(self.name(), &sums, [chunks, rows * channels], 1.0, out)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// The ids as indices of a table of `rows` rows.
fn rows_of(ids: &Tensor, rows: usize) -> Result<Vec<usize>> {
    match ids.dtype() {
        DType::I64 => check_ids(&ids.to_vec::<i64>()?, rows),
        _ => check_ids(&ids.to_vec::<u32>()?, rows),
    }
}

/// [`rows_of`] one type of ids.
fn check_ids<I: Copy + TryInto<usize> + std::fmt::Display>(
    ids: &[I],
    rows: usize,
) -> Result<Vec<usize>> {
    ids.iter()
        .enumerate()
        .map(|(i, &id)| match id.try_into() {
            Ok(row) if row < rows => Ok(row),
            _ => Err(Error::value(
                "embedding",
                format!("id {id} at position {i} is outside the vocabulary of {rows} entries; does the tokenizer belong to this model?"),
            )),
        })
        .collect()
}

/// Sinusoids of `timesteps` `[B]`, [B, `dim`] f32: `get_timestep_embedding` of diffusers (Ho et al. 2020).
///
/// Frequency `i` of the `dim / 2` is `max_period ^ (-i / (dim/2 - shift))`; sines come first, or cosines
/// if `flip_sin_to_cos`; an odd `dim` ends with a zero. Each operation is rounded to f32, as there: the
/// angles reach 1000, and their rounding shows in the sinusoids.
///
/// # Errors
/// `Shape` when `dim` is 0 or 1, or `dim / 2` equals `shift`.
pub fn timestep_embedding(
    timesteps: &[f32],
    dim: usize,
    flip_sin_to_cos: bool,
    shift: f32,
    max_period: f32,
) -> Result<Tensor> {
    let half = dim / 2;
    if half == 0 || half as f32 == shift {
        return Err(Error::shape(
            "timestep_embedding",
            format!("{dim} channels with a frequency shift of {shift} have no frequencies"),
        ));
    }
    let log_period = -f64::from(max_period).ln() as f32;
    // Through f64, so that the f32 result is the correctly rounded one.
    let frequencies: Vec<f32> = (0..half)
        .map(|i| f64::from(log_period * i as f32 / (half as f32 - shift)).exp() as f32)
        .collect();
    let mut out = vec![0.0; timesteps.len() * dim]; // [B, dim]
    for (t, row) in timesteps.iter().zip(out.chunks_mut(dim)) {
        let (first, second) = row.split_at_mut(half);
        let (sines, cosines) = if flip_sin_to_cos { (second, first) } else { (first, second) };
        for (i, frequency) in frequencies.iter().enumerate() {
            let angle = f64::from(t * frequency);
            sines[i] = angle.sin() as f32;
            cosines[i] = angle.cos() as f32;
        }
    }
    Tensor::from_vec(out, [timesteps.len(), dim])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{bits, check_gradient, devices, random, shapes, values};
    use crate::tensor::Device;

    #[test]
    fn rows_are_copied_in_every_dtype() {
        for channels in [37, 40] {
            let table = random([11, channels], 1);
            let ids = [3i64, 0, 10, 3, 7, 1];
            for dtype in [DType::F32, DType::F16, DType::BF16, DType::F64] {
                let table = table.to_dtype(dtype).unwrap();
                let of_i64 = embedding(&Tensor::from_slice(&ids, [2, 3]).unwrap(), &table).unwrap();
                assert_eq!(of_i64.dims(), [2, 3, channels]);
                let of_u32 = embedding(
                    &Tensor::from_vec(ids.map(|i| i as u32).to_vec(), [2, 3]).unwrap(),
                    &table,
                )
                .unwrap();
                assert_eq!(bits(&of_i64), bits(&of_u32));
                for (i, &id) in ids.iter().enumerate() {
                    let row = of_i64.reshape([6, channels]).unwrap().narrow(0, i, 1).unwrap();
                    assert_eq!(bits(&row), bits(&table.narrow(0, id as usize, 1).unwrap()));
                }
                let on_host = [Tensor::from_slice(&ids, [2, 3]).unwrap(), table];
                for device in devices().filter(|_| dtype != DType::F64) {
                    let [ids, table] = on_host.each_ref().map(|t| t.to_device(device).unwrap());
                    let rows = embedding(&ids, &table).unwrap();
                    assert_eq!(bits(&rows), bits(&of_i64), "{dtype} on {device}");
                    // Of a table that begins at an odd address.
                    let later = table.narrow(0, 1, 10).unwrap();
                    let ids =
                        Tensor::from_slice(&[2u32, 9], [2]).unwrap().to_device(device).unwrap();
                    let rows = embedding(&ids, &later).unwrap().narrow(0, 0, 1).unwrap();
                    assert_eq!(
                        bits(&rows),
                        bits(&table.narrow(0, 3, 1).unwrap()),
                        "{dtype} on {device}"
                    );
                }
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        let ids = Tensor::from_vec(vec![3i64, 0, 10, 3, 7, 3], [2, 3]).unwrap();
        check_gradient("embedding", &[random([11, 7], 2)], |t| {
            embedding(&ids.to_device(t[0].device())?, t[0])
        });
        for [count, rows, channels] in shapes() {
            let ids = (0..count).map(|i| (3 * i % rows) as i64).collect::<Vec<_>>();
            let ids = Tensor::from_vec(ids, [count]).unwrap();
            check_gradient("embedding", &[random([rows, channels], 3)], |t| {
                embedding(&ids.to_device(t[0].device())?, t[0])
            });
        }
        // Many more ids than one block of a GPU looks through, most of them the same.
        let ids = (0..1500).map(|i| if i % 5 == 0 { i % 11 } else { 2 }).collect::<Vec<i64>>();
        let ids = Tensor::from_vec(ids, [1500]).unwrap();
        check_gradient("embedding of many", &[random([11, 33], 2)], |t| {
            embedding(&ids.to_device(t[0].device())?, t[0])
        });
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_named() {
        let table = random([11, 4], 1);
        for id in [11i64, -1, i64::MAX, i64::MIN] {
            let ids = Tensor::from_vec(vec![2, id], [2]).unwrap();
            for device in devices() {
                let [ids, table] = [&ids, &table].map(|t| t.to_device(device).unwrap());
                let message = embedding(&ids, &table).unwrap_err().to_string();
                assert!(
                    message.starts_with("embedding: ")
                        && message.contains(&format!("id {id} "))
                        && message.contains("11"),
                    "{message}"
                );
            }
        }
        let ids = Tensor::from_vec(vec![2i64, 11, 0, -1, i64::MIN], [5]).unwrap();
        assert!(matches!(embedding_in_place(&ids, &table), Err(Error::Value { .. })));
        for device in devices().filter(|device| *device != Device::Cpu) {
            let of_u32 = Tensor::from_vec(vec![2u32, 11, 0, u32::MAX, 1 << 31], [5]).unwrap();
            let table = table.to_device(device).unwrap();
            for ids in [&ids, &of_u32] {
                let ids = ids.to_device(device).unwrap();
                let rows = values(&embedding_in_place(&ids, &table).unwrap());
                for (i, row) in rows.chunks(4).enumerate() {
                    let known = [Some(2), None, Some(0), None, None][i];
                    let expected = known.map(|id| values(&table.narrow(0, id, 1).unwrap()));
                    let fits = expected.map_or(row.iter().all(|x| x.is_nan()), |e| e == row);
                    assert!(fits, "{} ids, row {i}", ids.dtype());
                }
            }
        }
        assert!(matches!(embedding(&table, &table), Err(Error::DType { .. })));
        assert!(matches!(embedding_in_place(&table, &table), Err(Error::DType { .. })));
        let ids = Tensor::from_vec(vec![2i64], [1]).unwrap();
        assert!(matches!(embedding(&ids, &random([11], 1)), Err(Error::Shape { .. })));
        assert!(matches!(
            embedding(&ids.reshape([1, 1, 1, 1, 1, 1]).unwrap(), &table),
            Err(Error::Shape { .. })
        ));
    }

    #[test]
    fn sinusoids_of_the_timestep() {
        for (dim, flip, shift) in
            [(8, true, 0.0), (7, false, 1.0), (320, true, 0.0), (32, false, 0.5)]
        {
            let timesteps = [0.0, 1.0, 17.5, 981.0];
            let got = timestep_embedding(&timesteps, dim, flip, shift, 10_000.0).unwrap();
            let got = got.to_vec::<f32>().unwrap();
            let half = dim / 2;
            for (b, &t) in timesteps.iter().enumerate() {
                for i in 0..half {
                    let frequency = 10_000f64.powf(-(i as f64) / (half as f64 - f64::from(shift)));
                    let (sine, cosine) = (f64::from(t) * frequency).sin_cos();
                    let (first, second) = if flip { (cosine, sine) } else { (sine, cosine) };
                    // The f32 angle is off by a few units of its last place, the exponent's roundings
                    // by up to ln(10000) = 9.2 of them; so are the sinusoids, absolutely.
                    let tolerance = 12.0 * f64::from(f32::EPSILON) * f64::from(t).max(1.0);
                    for (at, expected) in [(i, first), (half + i, second)] {
                        let got = f64::from(got[b * dim + at]);
                        assert!(
                            (got - expected).abs() <= tolerance,
                            "dim {dim}, t {t}, {at}: {got}, {expected}"
                        );
                    }
                }
                assert!(dim % 2 == 0 || got[b * dim + dim - 1] == 0.0);
            }
        }
    }

    #[test]
    fn no_frequencies_is_an_error() {
        assert!(matches!(
            timestep_embedding(&[1.0], 1, true, 0.0, 10_000.0),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            timestep_embedding(&[1.0], 2, true, 1.0, 10_000.0),
            Err(Error::Shape { .. })
        ));
    }
}
