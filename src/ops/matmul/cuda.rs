//! Products on a GPU: launching, and what linear layers and convolutions share of it.

use bytemuck::NoUninit;

use super::Epilogue;
use crate::error::{Error, Result};
use crate::ops::kernels::{LaunchConfig, kernels, to_u32};
use crate::tensor::{DType, Tensor};

kernels! {
    /// A block a tile of 128 x 128 outputs, a warp 64 x 64 of them: in 16 bits it reads its operands from shared memory a
    /// third less often than with 64 x 32, at 235 of the 255 registers that let an SM have two such blocks.
    fn matmul_large(
        y: Out,
        a: In,
        b: In,
        partial: Array<Out<f32>, 1>,
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
        partial: Array<Out<f32>, 1>,
        bias: Array<In<f32>, 1>,
        add_channel: Array<In<f32>, 1>,
        residual: Array<In, 1>,
        dims: MatmulDims,
    );
    /// A thread a 16-byte chunk of the output.
    fn add_splits(
        y: Out,
        partial: In<f32>,
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
    reserved: u32,
}

/// Threads of a block that multiplies.
pub(in crate::ops) const THREADS: u32 = 128;

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
    /// Outputs of a block along either axis: 128 or 64.
    pub tile: usize,
    /// Parts of k that are summed by blocks of their own.
    pub splits: usize,
}

/// Blocks that keep the GPUs there are busy: two of the large ones or four of the small on each of some 130 SMs.
const LARGE_BLOCKS: usize = 130;
const SMALL_BLOCKS: usize = 520;

impl Plan {
    /// Of `batch` products. A tile's size does not show in the sums, so it follows all rows. Splits do, so they follow
    /// the rows of one image, of which there are mostly two, with and without guidance.
    pub fn new(sizes: Sizes, batch: usize) -> Self {
        let Sizes { m, n, k, rows_of_image } = sizes;
        let tiles = |rows: usize, tile| rows.div_ceil(tile) * n.div_ceil(tile);
        if n > 64 && batch * tiles(m, 128) >= LARGE_BLOCKS {
            return Self { tile: 128, splits: 1 };
        }
        let _ = (k, rows_of_image, SMALL_BLOCKS);
        Self { tile: 64, splits: 1 }
    }

    /// The launch of `batch` products.
    pub fn config(&self, op: &'static str, sizes: Sizes, batch: usize) -> Result<LaunchConfig> {
        let tiles = sizes.m.div_ceil(self.tile) * sizes.n.div_ceil(self.tile);
        let others = batch * self.splits;
        if others > 65_535 {
            return Err(Error::shape(
                op,
                format!("on CUDA: at most 65535 products, found {others}"),
            ));
        }
        Ok(LaunchConfig { grid: [to_u32(op, tiles)?, others as u32], block: THREADS, shared: 0 })
    }

    /// Memory for the sums of each split [splits, m, n], where there are several.
    pub fn partial(&self, sizes: Sizes, like: &Tensor) -> Result<Option<Tensor>> {
        let shape = [self.splits, sizes.m, sizes.n];
        (self.splits > 1).then(|| Tensor::uninit(shape, DType::F32, like.device())).transpose()
    }
}

/// An epilogue's tensors as kernels read them.
pub(in crate::ops) struct Ends {
    bias: Option<Tensor>,
    add_channel: Option<Tensor>,
    residual: Option<Tensor>,
}

impl Ends {
    pub fn new(epilogue: &Epilogue) -> Result<Self> {
        let single =
            |t: Option<&Tensor>| t.map(|t| t.to_dtype(DType::F32)?.contiguous()).transpose();
        Ok(Self {
            bias: single(epilogue.bias)?,
            add_channel: single(epilogue.add_channel)?,
            residual: epilogue.residual.map(Tensor::contiguous).transpose()?,
        })
    }

    /// Bias, addend and residual: each at most one.
    pub fn tensors(&self) -> [Vec<&Tensor>; 3] {
        [&self.bias, &self.add_channel, &self.residual].map(|t| t.iter().collect())
    }
}

/// `epilogue(a b^T)` for each of a batch: `a` [batch, M, K], `b` [batch, N, K], contiguous; `out` [.., N].
pub(super) fn multiply_rows(
    op: &'static str,
    (a, b): (&Tensor, &Tensor),
    batch: usize,
    epilogue: &Epilogue,
    out: &mut Tensor,
) -> Result<()> {
    let mut sizes = Sizes::new(out, a.dim(a.rank() - 1));
    sizes.m /= batch;
    let Sizes { m, n, k, .. } = sizes;
    let plan = Plan::new(sizes, batch);
    let mut dims = dims(op, sizes, plan, epilogue)?;
    (dims.a_stride, dims.b_stride) = ((m * k) as u64, (n * k) as u64);
    let config = plan.config(op, sizes, batch)?;
    let ends = Ends::new(epilogue)?;
    let [bias, add_channel, residual] = &ends.tensors();
    let mut partial = plan.partial(sizes, out)?;
    let mut sums: Vec<&mut Tensor> = partial.iter_mut().collect();
    let launch = if plan.tile == 128 { kernel::matmul_large } else { kernel::matmul_small };
    launch(config, out, a, b, &mut sums, bias, add_channel, residual, dims)?;
    match partial {
        Some(partial) => add_splits(op, &partial, sizes, &ends, epilogue, out),
        None => Ok(()),
    }
}

/// `epilogue` of the sum of `partial` [splits, m, n] over its splits.
pub(in crate::ops) fn add_splits(
    op: &'static str,
    partial: &Tensor,
    sizes: Sizes,
    ends: &Ends,
    epilogue: &Epilogue,
    out: &mut Tensor,
) -> Result<()> {
    let plan = Plan { tile: 0, splits: partial.dim(0) };
    let dims = dims(op, sizes, plan, epilogue)?;
    let lanes = 16 / out.dtype().size();
    let blocks = (sizes.m * sizes.n.div_ceil(lanes)).div_ceil(256);
    let config = LaunchConfig { grid: [to_u32(op, blocks)?, 1], block: 256, shared: 0 };
    let [bias, add_channel, residual] = &ends.tensors();
    kernel::add_splits(config, out, partial, bias, add_channel, residual, dims)
}

fn dims(op: &'static str, sizes: Sizes, plan: Plan, epilogue: &Epilogue) -> Result<MatmulDims> {
    Ok(MatmulDims {
        a_stride: 0,
        b_stride: 0,
        m: to_u32(op, sizes.m)?,
        n: to_u32(op, sizes.n)?,
        k: to_u32(op, sizes.k)?,
        splits: to_u32(op, plan.splits)?,
        rows_of_image: to_u32(op, sizes.rows_of_image)?,
        activation: epilogue.act as u32,
        scale: epilogue.scale,
        reserved: 0,
    })
}
