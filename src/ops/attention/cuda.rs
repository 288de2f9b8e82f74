//! Attention on a GPU.

use bytemuck::NoUninit;

use super::{AttentionConfig, LENGTHS, dense};
use crate::error::{Error, Result};
use crate::ops::Inputs;
use crate::ops::elementwise::scale;
use crate::ops::kernels::{LaunchConfig, kernels, span, to_u32};
use crate::tensor::Tensor;

kernels! {
    /// 64 queries of one head a block, with 256 threads in f32, 128 in 16 bits.
    fn attention_40(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
    /// As `attention_40`.
    fn attention_64(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
    /// As `attention_40`.
    fn attention_80(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
    /// As `attention_40`.
    fn attention_128(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
    /// As `attention_40`; at most 165 registers (nvcc 13, sm_80), so that an SM has three such blocks.
    fn attention_160(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
    /// Any number of channels, 128 of the output a block.
    fn attention_any(
        y: Out, lse: Array<Out<f32>, 1>, q: In, k: In, v: In, lengths: Array<In<u32>, 1>, dims: AttentionDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct AttentionDims {
    q_strides: [u64; 3],
    k_strides: [u64; 3],
    v_strides: [u64; 3],
    queries: u32,
    keys: u32,
    heads: u32,
    channels: u32,
    sharing: u32,
    causal: u32,
    factor: f32,
    reserved: u32,
}

/// Any of these kernels.
type Launch = for<'o, 'i> fn(
    LaunchConfig,
    &mut Tensor,
    &'o mut [&'o mut Tensor],
    &Tensor,
    &Tensor,
    &Tensor,
    &'i [&'i Tensor],
    AttentionDims,
) -> Result<()>;

/// Queries of a block.
const QUERIES: usize = 64;
/// Channels of the output that a block of `attention_any` has.
const WIDTH: usize = 128;

/// [`attention`](super::attention) of the inputs; a second output gets the logarithms of sums.
pub(super) fn forward(
    config: AttentionConfig,
    inputs: &Inputs,
    outputs: &mut [Tensor],
) -> Result<()> {
    const OP: &str = "attention";
    let (batch, queries, heads, channels) = inputs[0].dims4()?;
    if batch * heads > 65_535 {
        let message =
            format!("on CUDA: at most 65535 heads of all images, found {batch} x {heads}");
        return Err(Error::shape(OP, message));
    }
    let [q, k, v] = [dense(&inputs[0])?, dense(&inputs[1])?, dense(&inputs[2])?];
    // The kernel looks for the largest product, which is the largest score only where the factor is above 0.
    let q = if config.scale < 0.0 { dense(&scale(&q, -1.0)?)? } else { q };
    let factor = (f64::from(config.scale.abs()) * std::f64::consts::LOG2_E) as f32;
    let factor = if factor < f32::MIN_POSITIVE { f32::MIN_POSITIVE } else { factor };
    let strides = |t: &Tensor| [0, 1, 2].map(|d| t.strides()[d] as u64);
    let dims = AttentionDims {
        q_strides: strides(&q),
        k_strides: strides(&k),
        v_strides: strides(&v),
        queries: to_u32(OP, queries)?,
        keys: to_u32(OP, k.dim(1))?,
        heads: to_u32(OP, heads)?,
        channels: to_u32(OP, channels)?,
        sharing: (heads / k.dim(2)) as u32,
        causal: config.causal.into(),
        factor,
        reserved: 0,
    };
    let (launch, slices): (Launch, usize) = match channels {
        40 => (kernel::attention_40, 1),
        64 => (kernel::attention_64, 1),
        80 => (kernel::attention_80, 1),
        128 => (kernel::attention_128, 1),
        160 => (kernel::attention_160, 1),
        _ => (kernel::attention_any, channels.div_ceil(WIDTH)),
    };
    let block = if q.dtype().size() == 4 { 256 } else { 128 };
    let tiles = to_u32(OP, queries.div_ceil(QUERIES) * slices)?;
    let config = LaunchConfig::new([tiles, (batch * heads) as u32], block);
    let lengths = inputs.get(LENGTHS).map(Tensor::contiguous).transpose()?;
    let lengths: Vec<&Tensor> = lengths.iter().collect();
    let Some((out, rest)) = outputs.split_first_mut() else { unreachable!("as inferred") };
    let mut lse: Vec<&mut Tensor> = rest.iter_mut().collect();
    launch(config, out, &mut lse, &span(&q), &span(&k), &span(&v), &lengths, dims)
}

#[cfg(test)]
mod tests {
    use super::super::{AttentionConfig, attention};
    use super::QUERIES;
    use crate::ops::testing::counted;
    use crate::tensor::{DType, Device, Tensor};

    /// A block reads its queries once, in f32 once a tile of keys, and all keys and values; results are written once.
    #[test]
    fn operands_are_read_once_a_tile_and_without_bank_conflicts() {
        const TEST: &str =
            "ops::attention::cuda::tests::operands_are_read_once_a_tile_and_without_bank_conflicts";
        const KEYS_OF_TILE: usize = 64;
        let (queries, keys) = (150, 200);
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let cases = [40, 64, 80, 128, 160].into_iter();
        let cases = cases.flat_map(|channels| dtypes.map(|dtype| (channels, dtype)));
        let launches = counted(TEST, || {
            for (channels, dtype) in cases.clone() {
                let of = |n| Tensor::zeros([2, n, 1, channels], dtype, Device::Cuda(0)).unwrap();
                let config = AttentionConfig { scale: 0.1, causal: false };
                attention(&of(queries), &of(keys), &of(keys), config).unwrap();
            }
        });
        let Some(launches) = launches else { return };
        let is_attention =
            |l: &&serde_json::Value| l["kernel"].as_str().unwrap().contains("attention");
        let launches: Vec<_> = launches.iter().filter(is_attention).collect();
        assert_eq!(launches.len(), cases.clone().count());
        for (launch, (channels, dtype)) in launches.into_iter().zip(cases) {
            let of_queries = if dtype == DType::F32 { keys.div_ceil(KEYS_OF_TILE) } else { 1 };
            let rows = of_queries * queries + 2 * keys * queries.div_ceil(QUERIES) + queries;
            let least = 2 * rows * channels * dtype.size();
            let moved = launch["sectors"].as_u64().unwrap() * 32;
            assert!(moved as f64 <= 1.15 * least as f64, "{launch}: {moved} for {least} bytes");
            assert_eq!(launch["bank_conflicts"], 0, "{launch}");
        }
    }
}
