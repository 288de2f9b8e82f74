//! Products on a GPU: launching, and what linear layers and convolutions share of it.

use bytemuck::NoUninit;

use super::Epilogue;
use crate::error::{Error, Result};
use crate::ops::kernels::{LaunchConfig, kernels, span, to_u32};
use crate::tensor::{DType, Tensor};

kernels! {
    /// A block a tile of 128 x 128 outputs, a warp 64 x 64 of them: operands are read from shared memory a third less often
    /// than with 64 x 32, which was 1.2 times slower on an H100. Two such blocks fill an SM's registers. In f32 128 x 64.
    fn matmul_large(
        y: Out,
        a: In,
        b: In,
        sums: Array<Out<f32>, 1>,
        arrived: Array<Out<u32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: MatmulDims,
    );
    /// A block a tile of 64 x 64, where there are too few large ones for a GPU.
    fn matmul_small(
        y: Out,
        a: In,
        b: In,
        sums: Array<Out<f32>, 1>,
        arrived: Array<Out<u32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: MatmulDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct MatmulDims {
    a_stride: u64,
    b_stride: u64,
    m: u32,
    n: u32,
    k: u32,
    splits: u32,
    rows_of_image: u32,
    activation: u32,
    scale: f32,
    add_stride: u32,
}

/// Threads of a block that multiplies.
const THREADS: u32 = 128;

/// The sizes of a product: y [m, n], summed over k.
#[derive(Clone, Copy)]
pub(in crate::ops) struct Sizes {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Rows of y that are of one image or sequence.
    pub rows_of_image: usize,
}

impl Sizes {
    /// Of a product that makes `out` [.., N] of rows of k.
    pub fn new(out: &Tensor, k: usize) -> Self {
        let n = out.dim(out.rank() - 1);
        let m = out.len() / n;
        let images = if out.rank() > 1 { out.dim(0) } else { 1 };
        Self { m, n, k, rows_of_image: m / images }
    }
}

/// How a product is spread over a GPU.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::ops) struct Plan {
    /// Whether blocks have large tiles.
    pub large: bool,
    /// Outputs of a block.
    tile: [usize; 2],
    /// Parts of k that are summed by blocks of their own.
    pub splits: usize,
}

/// Blocks that an H100 runs at once: two with large tiles or four with small ones on each of 132 SMs.
const LARGE_BLOCKS: usize = 264;
const SMALL_BLOCKS: usize = 528;

impl Plan {
    /// Of `batch` products of a dtype. The rules are those that an H100 shows for the shapes of Stable Diffusion 1.5:
    /// large tiles where they fill three quarters of it, and k in parts of 768 or more until they do.
    ///
    /// Splits show in the bits of a sum, so they follow the rows of one image, of which there are mostly two, with and
    /// without guidance. Where a row is an image there are none. The size of a tile does not show, so it follows all rows.
    pub fn new(sizes: Sizes, batch: usize, dtype: DType) -> Self {
        let Sizes { m, n, k, rows_of_image } = sizes;
        let large = if dtype == DType::F32 { [128, 64] } else { [128, 128] };
        let small = [64, 64];
        let tiles = |rows: usize, tile: [usize; 2]| rows.div_ceil(tile[0]) * n.div_ceil(tile[1]);
        let fills = |tiles| n > 64 && tiles >= LARGE_BLOCKS * 3 / 4;
        let splits = match rows_of_image {
            ..16 => 1,
            rows => {
                let parts =
                    |tiles: usize, blocks: usize| (blocks / (2 * tiles)).min(k / 768).clamp(1, 12);
                let splits = parts(tiles(rows, large), LARGE_BLOCKS);
                match fills(2 * tiles(rows, large) * splits) {
                    true => splits,
                    false => parts(tiles(rows, small), SMALL_BLOCKS),
                }
            }
        };
        let large_fills = fills(batch * tiles(m, large) * splits);
        Self { large: large_fills, tile: if large_fills { large } else { small }, splits }
    }

    /// The launch of `batch` products.
    pub fn config(&self, op: &'static str, sizes: Sizes, batch: usize) -> Result<LaunchConfig> {
        let [tile_m, tile_n] = self.tile;
        let tiles = self.tiles(sizes);
        let others = batch * self.splits;
        if others > 65_535 {
            return Err(Error::shape(
                op,
                format!("on CUDA: at most 65535 products, found {others}"),
            ));
        }
        // Three stages of 128 bytes of each row of both operands.
        let shared = 3 * 128 * (tile_m + tile_n) as u32;
        Ok(LaunchConfig {
            shared,
            ..LaunchConfig::new([to_u32(op, tiles)?, others as u32], THREADS)
        })
    }

    fn tiles(&self, sizes: Sizes) -> usize {
        let [tile_m, tile_n] = self.tile;
        sizes.m.div_ceil(tile_m) * sizes.n.div_ceil(tile_n)
    }

    /// Where a tile's blocks leave what they summed, if k is split: sums [tiles, splits, outputs of a tile], and how many
    /// blocks are done `[tiles]`.
    pub fn parts(&self, sizes: Sizes, like: &Tensor) -> Result<Option<[Tensor; 2]>> {
        if self.splits == 1 {
            return Ok(None);
        }
        let (tiles, on) = (self.tiles(sizes), like.device());
        let [tile_m, tile_n] = self.tile;
        let sums = Tensor::uninit([tiles, self.splits, tile_m * tile_n], DType::F32, on)?;
        Ok(Some([sums, Tensor::counters(tiles, on)?]))
    }
}

/// An epilogue's tensors as kernels read them.
pub(in crate::ops) struct Ends {
    bias: Option<Tensor>,
    add_channel: Option<Tensor>,
    /// From one row of the addend to the next.
    pub add_stride: usize,
    residual: Option<Tensor>,
}

impl Ends {
    pub fn new(epilogue: &Epilogue) -> Result<Self> {
        let single = |t: Option<&Tensor>| t.map(|t| t.to_dtype(DType::F32)).transpose();
        // Rows of the addend are read where they lie: parts of the rows of a larger one.
        let add_channel = match single(epilogue.add_channel)? {
            Some(t) if t.strides().last() != Some(&1) => Some(t.contiguous()?),
            t => t,
        };
        Ok(Self {
            bias: single(epilogue.bias)?.map(|t| t.contiguous()).transpose()?,
            add_stride: add_channel.as_ref().map_or(0, |t| t.strides()[0]),
            add_channel: add_channel.as_ref().map(span),
            residual: epilogue.residual.map(Tensor::contiguous).transpose()?,
        })
    }

    /// Bias, addend and residual: each at most one.
    pub fn tensors(&self) -> [Vec<&Tensor>; 3] {
        [&self.bias, &self.add_channel, &self.residual].map(|t| t.iter().collect())
    }
}

/// `epilogue(a b^T)`: `a` [.., K], `b` [N, K], contiguous; `out` [.., N]. With a batch, of as many products, none of
/// which knows of images: `a` [batch, M, K], `b` [batch, N, K].
pub(super) fn multiply_rows(
    op: &'static str,
    (a, b): (&Tensor, &Tensor),
    batch: Option<usize>,
    epilogue: &Epilogue,
    out: &mut Tensor,
) -> Result<()> {
    let mut sizes = Sizes::new(out, a.dim(a.rank() - 1));
    if let Some(batch) = batch {
        (sizes.m, sizes.rows_of_image) = (sizes.m / batch, 1);
    }
    let batch = batch.unwrap_or(1);
    let Sizes { m, n, k, .. } = sizes;
    let plan = Plan::new(sizes, batch, out.dtype());
    let ends = Ends::new(epilogue)?;
    let mut dims = dims(op, sizes, plan.splits, &ends, epilogue)?;
    (dims.a_stride, dims.b_stride) = ((m * k) as u64, (n * k) as u64);
    let config = plan.config(op, sizes, batch)?;
    let [bias, add_channel, residual] = &ends.tensors();
    let mut parts = plan.parts(sizes, out)?;
    let (sums, arrived) = &mut each_part(&mut parts);
    let launch = if plan.large { kernel::matmul_large } else { kernel::matmul_small };
    launch(config, out, a, b, sums, arrived, bias, add_channel, residual, dims)
}

/// [`Plan::parts`] as kernels take them.
pub(in crate::ops) fn each_part(
    parts: &mut Option<[Tensor; 2]>,
) -> (Vec<&mut Tensor>, Vec<&mut Tensor>) {
    parts.iter_mut().map(|[sums, arrived]| (sums, arrived)).unzip()
}

/// `value * gelu(gate)` of `a b^T + bias`, where rows of `b` [N, K] and elements of `bias` are values in the first half, gates in
/// the second; `b` as [`interleaved`] lays it out. `a` [.., K], contiguous; `out` [.., N / 2].
pub(super) fn multiply_gated(
    op: &'static str,
    (a, b): (&Tensor, &Tensor),
    bias: Option<&Tensor>,
    out: &mut Tensor,
) -> Result<()> {
    let (n, k) = (b.dim(0), b.dim(1));
    // Each row by itself: sums are not split, since none of the parts could be gated.
    let sizes = Sizes { m: a.len() / k, n, k, rows_of_image: 1 };
    let plan = Plan::new(sizes, 1, out.dtype());
    let epilogue = Epilogue::bias(bias);
    let ends = Ends::new(&epilogue)?;
    let dims = dims(op, sizes, plan.splits, &ends, &epilogue)?;
    let dims = MatmulDims { activation: GEGLU, ..dims };
    let launch = if plan.large { kernel::matmul_large } else { kernel::matmul_small };
    let [bias, ..] = &ends.tensors();
    launch(plan.config(op, sizes, 1)?, out, a, b, &mut [], &mut [], bias, &[], &[], dims)
}

/// The number of the kernels' gated end, behind those of [`Activation`](super::Activation).
const GEGLU: u32 = 5;

/// Values and gates [N, K] as the gated end takes them: in turns, as many of each as fill 16 bytes of a row of the output.
/// `None` where their number is no multiple of that.
pub(in crate::ops) fn interleaved(weight: &Tensor) -> Result<Option<Tensor>> {
    let (n, k) = (weight.dim(0), weight.dim(1));
    let lanes = 16 / weight.dtype().size();
    if !n.is_multiple_of(2 * lanes) {
        return Ok(None);
    }
    let turns = weight.reshape([2, n / 2 / lanes, lanes, k])?.permute(&[1, 0, 2, 3])?;
    turns.reshape([n, k]).map(Some)
}

/// What [`interleaved`] was given.
pub(in crate::ops) fn apart(weight: &Tensor) -> Result<Tensor> {
    let (n, k) = (weight.dim(0), weight.dim(1));
    let lanes = 16 / weight.dtype().size();
    let turns = weight.reshape([n / 2 / lanes, 2, lanes, k])?.permute(&[1, 0, 2, 3])?;
    turns.reshape([n, k])
}

fn dims(
    op: &'static str,
    sizes: Sizes,
    splits: usize,
    ends: &Ends,
    epilogue: &Epilogue,
) -> Result<MatmulDims> {
    Ok(MatmulDims {
        a_stride: 0,
        b_stride: 0,
        m: to_u32(op, sizes.m)?,
        n: to_u32(op, sizes.n)?,
        k: to_u32(op, sizes.k)?,
        splits: to_u32(op, splits)?,
        rows_of_image: to_u32(op, sizes.rows_of_image)?,
        activation: epilogue.act as u32,
        scale: epilogue.scale,
        add_stride: to_u32(op, ends.add_stride)?,
    })
}

/// The least bytes that tiles of this plan move: each operand's once a tile of outputs, outputs once; sums of parts of k there
/// and back.
#[cfg(test)]
pub(in crate::ops) fn least_bytes(sizes: Sizes, plan: Plan, size: usize) -> usize {
    let [tile_m, tile_n] = plan.tile;
    let rows = sizes.m * sizes.n.div_ceil(tile_n) + sizes.n * sizes.m.div_ceil(tile_m);
    let parts = if plan.splits > 1 { plan.splits * plan.tiles(sizes) * tile_m * tile_n } else { 0 };
    (rows * sizes.k + sizes.m * sizes.n) * size + 2 * parts * size_of::<f32>()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::{linear, linear_geglu};
    use crate::ops::testing::{
        bits, check_batch, check_sums, counted, devices, random, sums_in_f64,
    };
    use crate::ops::weight::{Layout, Weight};
    use crate::tensor::cuda::{Graph, Stream};
    use crate::tensor::{Device, Shape};

    /// x [.., K] by the rows of w [N, K].
    fn product(t: &[&Tensor]) -> Result<Tensor> {
        let weight = Weight::frozen(t[1], Layout::Matrix, t[1].dtype())?;
        linear(t[0], &weight, Epilogue::default())
    }

    fn plan(x: &[usize], n: usize, dtype: DType) -> Plan {
        let [batch, rows, k] = x[..] else { panic!("[B, T, K]") };
        Plan::new(Sizes { m: batch * rows, n, k, rows_of_image: rows }, 1, dtype)
    }

    fn check_shape(x: [usize; 3], n: usize) {
        let shapes = [Shape::from(x), Shape::from([n, x[2]])];
        check_sums(
            &format!("linear {x:?} to {n}"),
            &[random(shapes[0], 1), random(shapes[1], 2)],
            x[2],
            product,
            |t| sums_in_f64(&shapes, t, product),
        );
    }

    #[test]
    fn each_dimension_of_models_is_right_at_its_full_size() {
        for (x, n) in [
            ([1, 4096, 40], 24),  // pixels of 64 x 64 latents
            ([1, 9216, 24], 17),  // of 96 x 96
            ([7, 77, 40], 72),    // a prompt
            ([1, 16, 5120], 40),  // the widest inside of a transformer, split
            ([2, 20, 1280], 33),  // 1280 channels
            ([1, 3, 24], 10_240), // both halves of GEGLU
            ([1, 5, 3072], 24),   // GPT-2: inside,
            ([1, 2, 40], 50_257), // its vocabulary,
            ([1, 1024, 64], 20),  // its context
        ] {
            check_shape(x, n);
        }
    }

    #[test]
    #[ignore = "whole layers: half a minute"]
    fn whole_layers_of_models_are_right() {
        for (x, n) in [
            ([2, 4096, 320], 2560),
            ([1, 1024, 2560], 640),
            ([7, 64, 1280], 1280),
            ([1, 64, 768], 50_257),
        ] {
            check_shape(x, n);
        }
    }

    #[test]
    fn an_image_has_its_bits_whatever_the_tiles_and_with_splits() {
        for (x, n, splits) in [([7, 1024, 40], 512, 1), ([7, 64, 2336], 70, 3)] {
            for dtype in [DType::F32, DType::F16] {
                let [one, all] = [&[1, x[1], x[2]][..], &x].map(|x| plan(x, n, dtype));
                assert_eq!((one.splits, all.splits), (splits, splits));
                assert_eq!((one.large, all.large), (false, splits == 1));
            }
            let w = random([n, x[2]], 4);
            check_batch(&format!("linear {x:?}"), &random(x, 3), |x| {
                product(&[x, &w.to_dtype(x.dtype())?.to_device(x.device())?])
            });
        }
    }

    /// The time embedding of a block is a part of a wider row.
    #[test]
    fn rows_of_the_addend_may_be_parts_of_wider_ones() {
        for device in devices() {
            // With sums in one part and in several, in vectors and without.
            for (rows, n, k) in [(5, 24, 16), (64, 70, 2336), (64, 72, 2336)] {
                for dtype in [DType::F32, DType::F16] {
                    let on = |t: Tensor| t.to_dtype(dtype).unwrap().to_device(device).unwrap();
                    let (x, w) = (on(random([2, rows, k], 6)), on(random([n, k], 7)));
                    let wide = random([2, n + 24], 8).to_device(device).unwrap();
                    let weight = Weight::frozen(&w, Layout::Matrix, dtype).unwrap();
                    let end = |add: &Tensor| {
                        let end = Epilogue { add_channel: Some(add), ..Epilogue::default() };
                        bits(&linear(&x, &weight, end).unwrap())
                    };
                    let part = wide.narrow(1, 8, n).unwrap();
                    assert_eq!(
                        end(&part),
                        end(&part.contiguous().unwrap()),
                        "{device} {dtype} {n}"
                    );
                    assert_ne!(end(&part), end(&wide.narrow(1, 0, n).unwrap()));
                }
            }
        }
    }

    /// Blocks that share out k count each other by zeros in memory, which a stream or a graph has to itself and gets back.
    #[test]
    fn parts_of_k_are_added_in_every_stream_and_at_every_launch() {
        let Some(gpu) = devices().find(|device| *device != Device::Cpu) else { return };
        let on = |shape: [usize; 3]| random(shape, 9).to_device(gpu).unwrap();
        let (x, w) = (on([2, 64, 2336]), on([1, 70, 2336]).reshape([70, 2336]).unwrap());
        assert_eq!(plan(x.dims(), 70, DType::F32).splits, 3);
        let weight = Weight::frozen(&w, Layout::Matrix, DType::F32).unwrap();
        let multiply = || linear(&x, &weight, Epilogue::default());
        let expected = bits(&multiply().unwrap());
        let streams = [Stream::new(gpu).unwrap(), Stream::new(gpu).unwrap()];
        for _ in 0..3 {
            let all = streams.each_ref().map(|stream| stream.scope(multiply).unwrap());
            all.iter().for_each(|y| assert_eq!(bits(y), expected));
        }
        let twice = || Ok([multiply()?, multiply()?]);
        let mut graph = Graph::capture(gpu, twice).unwrap();
        assert_eq!(graph.nodes(), 3, "zeros once, and a launch for each product");
        for _ in 0..3 {
            multiply().unwrap(); // beside the graph, in another's memory
            graph.launch().unwrap().iter().for_each(|y| assert_eq!(bits(y), expected));
        }
    }

    #[test]
    fn operands_are_read_once_a_tile_and_without_bank_conflicts() {
        const TEST: &str =
            "ops::matmul::cuda::tests::operands_are_read_once_a_tile_and_without_bank_conflicts";
        let cases = [
            ([1, 2560, 320], 1280, false),
            ([1, 200, 320], 136, false),
            ([1, 64, 2336], 72, false),
            ([1, 200, 320], 128, true),
            ([1, 2560, 192], 1280, true),
        ];
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let launches = counted(TEST, || {
            for (x, n, gated) in cases {
                for dtype in dtypes {
                    let on = |shape: &[usize], dtype| {
                        Tensor::zeros(shape, dtype, Device::Cuda(0)).unwrap()
                    };
                    let bias = on(&[n], DType::F32);
                    let layout = if gated { Layout::Gated } else { Layout::Matrix };
                    let weight = Weight::frozen(&on(&[n, x[2]], dtype), layout, dtype).unwrap();
                    let (x, bias) = (on(&x, dtype), Some(&bias));
                    match gated {
                        true => linear_geglu(&x, &weight, bias).unwrap(),
                        false => linear(&x, &weight, Epilogue::bias(bias)).unwrap(),
                    };
                }
            }
        });
        let Some(launches) = launches else { return };
        let is_product = |l: &&serde_json::Value| l["kernel"].as_str().unwrap().contains("matmul");
        let launches: Vec<_> = launches.iter().filter(is_product).collect();
        let cases = cases.iter().flat_map(|case| dtypes.map(|dtype| (case, dtype)));
        assert_eq!(launches.len(), cases.clone().count());
        for (launch, (&(x, n, gated), dtype)) in launches.into_iter().zip(cases) {
            let sizes = Sizes { m: x[1], n, k: x[2], rows_of_image: x[1] };
            let plan = plan(&x, n, dtype);
            assert_eq!((plan.large, plan.splits), (n == 1280, if n == 72 { 3 } else { 1 }));
            let ungated = if gated { sizes.m * n / 2 * dtype.size() } else { 0 };
            let least = least_bytes(sizes, plan, dtype.size()) - ungated;
            let moved = launch["sectors"].as_u64().unwrap() * 32;
            assert!(moved as f64 <= 1.15 * least as f64, "{launch}: {moved} for {least} bytes");
            assert_eq!(launch["bank_conflicts"], 0, "{launch}");
        }
    }
}
