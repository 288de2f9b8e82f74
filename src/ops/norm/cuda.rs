//! Group normalisation on a GPU: one launch where its blocks can wait for each other, else two.

use bytemuck::NoUninit;

use super::{GroupNorm, check_parameters};
use crate::error::{Error, Result};
use crate::ops::gradient::Call;
use crate::ops::kernels::{LaunchConfig, kernels, to_u32};
use crate::ops::layout::concat;
use crate::ops::{Grads, Inputs, Meta, Op, apply_all, tensors};
use crate::tensor::tape;
use crate::tensor::{DType, Device, Tensor};

kernels! {
    /// One block a slab of an image; shared memory holds two f32 for each channel that a thread has, one a group.
    fn group_norm_stats(stats: Out<f32>, x: In, dims: GroupNormDims);
    /// Every block first merges its image's slabs, so a block should have a few vectors a thread to write.
    fn group_norm(
        y: Out,
        saved: Array<Out<f32>, 1>,
        x: In,
        gamma: In<f32>,
        beta: In<f32>,
        stats: In<f32>,
        dims: GroupNormDims,
    );
    /// Both, launched with all blocks at once.
    fn group_norm_at_once(
        y: Out,
        whole: Array<Out, 1>,
        stats: Out<f32>,
        x: In,
        rest: Array<In, 1>,
        gamma: In<f32>,
        beta: In<f32>,
        dims: GroupNormDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
pub(super) struct GroupNormDims {
    pub pixels: u32,
    pub channels: u32,
    pub groups: u32,
    pub slabs: u32,
    pub slab_pixels: u32,
    pub eps: f32,
    pub silu: u32,
    pub of_x: u32,
}

/// Threads of a block. The kernels need at most 47 registers each (nvcc 13, sm_80), so five blocks share an SM.
pub(super) const THREADS: usize = 256;

/// Three f32 of each fit into the 48 KiB of shared memory that a block has without asking for more.
const MAX_CHANNELS: usize = 4096;

/// Images of which every device has a block each at once: the smallest, a seventh of an A100, has 14 SMs, and room for
/// three blocks on each.
const AT_ONCE: usize = 32;

/// [`group_norm`](super::group_norm) of images whose channels lie in two tensors, and those tensors as one.
///
/// `x` [B, .., C1], `rest` [B, .., C2]; `gamma`, `beta` [C1 + C2]. Returns both [B, .., C1 + C2]: x and rest side by side,
/// and that normalised. On a GPU no more passes over memory than the normalisation alone.
///
/// # Errors
/// As [`group_norm`](super::group_norm) and [`concat()`].
pub fn concat_group_norm(
    [x, rest]: [&Tensor; 2],
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    silu: bool,
) -> Result<[Tensor; 2]> {
    let is_recorded =
        tape::is_recording() && [x, rest, gamma, beta].iter().any(|tensor| tensor.node().is_some());
    if is_recorded || x.device() == Device::Cpu || x.dim(0) > AT_ONCE {
        let whole = concat(&[x, rest], x.rank().saturating_sub(1))?; // [B, .., C1 + C2]
        let y = super::group_norm(&whole, gamma, beta, groups, eps, silu)?;
        return Ok([whole, y]);
    }
    let norm = GroupNorm { groups, eps, silu, statistics: false };
    let mut outputs = apply_all(ConcatGroupNorm(norm), &tensors(&[x, gamma, beta, rest]))?;
    let whole = outputs.swap_remove(1);
    Ok([whole, outputs.swap_remove(0)])
}

/// [`concat_group_norm`] on a GPU; inputs `x`, `gamma`, `beta`, `rest`; outputs the normalised and the whole.
struct ConcatGroupNorm(GroupNorm);

impl Op for ConcatGroupNorm {
    fn name(&self) -> &'static str {
        "concat_group_norm"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (x, rest) = (&inputs[0], &inputs[3]);
        let last = x.rank().saturating_sub(1);
        if x.rank() < 2
            || rest.rank() != x.rank()
            || rest.shape().with(last, x.dim(last)) != *x.shape()
        {
            let shapes = format!("{} and {}", x.shape(), rest.shape());
            return Err(Error::shape(self.name(), shapes));
        }
        if rest.dtype() != x.dtype() {
            let (expected, found) = (x.dtype().name(), rest.dtype());
            return Err(Error::DType { op: self.name(), expected, found });
        }
        let channels = x.dim(last) + rest.dim(last);
        check_parameters(self.name(), x, channels, [&inputs[1], &inputs[2]])?;
        self.0.check_groups(channels)?;
        let whole = Meta { shape: x.shape().with(last, channels), dtype: x.dtype() };
        Ok(vec![whole; 2])
    }

    fn cpu(&self, _: &Inputs, _: &mut [Tensor]) -> Result<()> {
        Err(Error::no_kernel(self.name()))
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (x, rest) = (inputs[0].contiguous()?, inputs[3].contiguous()?);
        let [out, whole] = outputs else { unreachable!("inferred above") };
        at_once(&self.0, out, Some(whole), [Some(&x), Some(&rest)], [&inputs[1], &inputs[2]])
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        unreachable!("where a gradient is wanted, concat and group_norm are called")
    }
}

/// [`group_norm`](super::group_norm) of a contiguous `x`; a second output gets the statistics that its gradient reads.
pub(super) fn group_norm(
    norm: &GroupNorm,
    x: &Tensor,
    [gamma, beta]: [&Tensor; 2],
    outputs: &mut [Tensor],
) -> Result<()> {
    let [out, saved @ ..] = outputs else { unreachable!("inferred") };
    if saved.is_empty() && x.dim(0) <= AT_ONCE {
        return at_once(norm, out, None, [Some(x), None], [gamma, beta]);
    }
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let slabs = Slabs::new([Some(x), None], norm.groups)?;
    let dims = slabs.dims(norm);
    let (batch, channels) = (x.dim(0), gamma.len());
    let mut stats = slabs.stats(x)?;
    let config = Slabs::config(dims.slabs as usize, batch, slabs.shared()[0]);
    kernel::group_norm_stats(config, &mut stats, x, dims)?;
    let config = Slabs::config(slabs.blocks(), batch, 3 * channels);
    let saved = &mut saved.iter_mut().collect::<Vec<_>>();
    kernel::group_norm(config, out, saved, x, &gamma, &beta, &stats, dims)
}

fn at_once(
    norm: &GroupNorm,
    out: &mut Tensor,
    whole: Option<&mut Tensor>,
    parts: [Option<&Tensor>; 2],
    [gamma, beta]: [&Tensor; 2],
) -> Result<()> {
    let [Some(x), rest] = parts else { unreachable!("a first part is always there") };
    let (gamma, beta) = (gamma.contiguous()?, beta.contiguous()?);
    let slabs = Slabs::new(parts, norm.groups)?;
    let [of_stats, of_result] = slabs.shared();
    let mut stats = slabs.stats(x)?;
    let blocks = slabs.blocks().max(slabs.dims.slabs as usize);
    let config = Slabs::config(blocks, x.dim(0), of_stats.max(of_result));
    let config = LaunchConfig { at_once: true, ..config };
    let mut whole: Vec<&mut Tensor> = whole.into_iter().collect();
    let rest: Vec<&Tensor> = rest.into_iter().collect();
    let dims = slabs.dims(norm);
    kernel::group_norm_at_once(config, out, &mut whole, &mut stats, x, &rest, &gamma, &beta, dims)
}

/// How the kernels of group normalisation share out images.
pub(super) struct Slabs {
    /// Without what the operation itself adds: epsilon and activation.
    pub dims: GroupNormDims,
    /// Vectors of a pixel: a thread is on one of them.
    vectors: usize,
    /// Pixels that a block has at once.
    pub rows: usize,
}

impl Slabs {
    /// Of images [B, .., C], whose channels lie in one tensor or in two.
    pub fn new(parts: [Option<&Tensor>; 2], groups: usize) -> Result<Self> {
        const OP: &str = "group_norm";
        let [Some(x), rest] = parts else { unreachable!("a first part is always there") };
        let width = |t: &Tensor| t.dim(t.rank() - 1);
        let (batch, of_x) = (x.dim(0), width(x));
        let channels = of_x + rest.map_or(0, width);
        let pixels = x.len() / batch / of_x;
        // Small enough for a block to be soon done, and so few that merging them costs little.
        let slab_pixels = pixels.div_ceil(128).max(64);
        let slabs = pixels.div_ceil(slab_pixels);
        let dims = GroupNormDims {
            pixels: to_u32(OP, pixels)?,
            channels: to_u32(OP, channels)?,
            groups: to_u32(OP, groups)?,
            slabs: slabs as u32,
            slab_pixels: slab_pixels as u32,
            eps: 0.0,
            silu: 0,
            of_x: to_u32(OP, of_x)?,
        };
        // The kernels' own arithmetic.
        let lanes = 16 / x.dtype().size();
        let divides = channels.is_multiple_of(lanes) && of_x.is_multiple_of(lanes);
        let vectors = if divides { channels / lanes } else { channels };
        let rows = (THREADS / vectors).max(1);
        if batch > 65_535 || channels > MAX_CHANNELS {
            let message = format!(
                "on CUDA: at most 65535 images of {MAX_CHANNELS} channels, found {batch} of {channels}"
            );
            return Err(Error::shape(OP, message));
        }
        Ok(Self { dims, vectors, rows })
    }

    fn dims(&self, norm: &GroupNorm) -> GroupNormDims {
        GroupNormDims { eps: norm.eps, silu: norm.silu.into(), ..self.dims }
    }

    /// f32 in shared memory that the first pass takes, and the second.
    fn shared(&self) -> [usize; 2] {
        let (channels, groups) = (self.dims.channels as usize, self.dims.groups as usize);
        [2 * self.rows * channels + groups, 3 * channels]
    }

    /// Blocks of an image that the second pass keeps busy.
    fn blocks(&self) -> usize {
        (self.dims.pixels as usize * self.vectors).div_ceil(4 * THREADS).min(1024)
    }

    /// Room for what the first pass leaves: [B, groups, 3, slabs].
    fn stats(&self, x: &Tensor) -> Result<Tensor> {
        let shape = [x.dim(0), self.dims.groups as usize, 3, self.dims.slabs as usize];
        Tensor::uninit(shape, DType::F32, x.device())
    }

    /// With room for `shared` f32 in shared memory.
    pub fn config(blocks: usize, batch: usize, shared: usize) -> LaunchConfig {
        let shared = (shared * size_of::<f32>()) as u32;
        LaunchConfig { shared, ..LaunchConfig::new([blocks as u32, batch as u32], THREADS as u32) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::norm::{group_norm, layer_norm};
    use crate::ops::testing::{bits, counted, devices, random};

    fn parameters(channels: usize, on: Device) -> [Tensor; 2] {
        [1, 2].map(|seed| random([channels], seed).to_device(on).unwrap())
    }

    /// Of one slab and of several, with vectors and without, of parts that a group reaches across.
    #[test]
    fn a_norm_of_two_parts_is_that_of_the_whole_bit_for_bit() {
        for (b, pixels, parts, groups) in [
            (2, [5, 7], [8, 16], 3),
            (7, [3, 1], [40, 24], 4),
            (1, [11, 13], [16, 8], 2),
            (2, [3, 3], [5, 7], 4),
        ] {
            for device in devices() {
                for dtype in [DType::F32, DType::F16, DType::BF16] {
                    let part = |channels, seed| {
                        let x = random([b, pixels[0], pixels[1], channels], seed);
                        x.to_dtype(dtype).unwrap().to_device(device).unwrap()
                    };
                    let [x, rest] = [part(parts[0], 3), part(parts[1], 4)];
                    let [gamma, beta] = parameters(parts[0] + parts[1], device);
                    let expected = concat(&[&x, &rest], 3).unwrap();
                    let normal = group_norm(&expected, &gamma, &beta, groups, 1e-5, true).unwrap();
                    let [whole, y] =
                        concat_group_norm([&x, &rest], &gamma, &beta, groups, 1e-5, true).unwrap();
                    assert_eq!(bits(&whole), bits(&expected), "{device} {dtype} {parts:?}");
                    assert_eq!(bits(&y), bits(&normal), "{device} {dtype} {parts:?}");
                }
            }
        }
    }

    /// More images than have a block at once go through two launches.
    #[test]
    fn an_image_has_its_bits_in_one_launch_and_in_two() {
        for device in devices() {
            let x = random([AT_ONCE + 1, 70, 3, 24], 5).to_device(device).unwrap();
            let [gamma, beta] = parameters(24, device);
            let norm = |x: &Tensor| group_norm(x, &gamma, &beta, 3, 1e-5, false).unwrap();
            let (last, together) = (x.narrow(0, AT_ONCE, 1).unwrap(), norm(&x));
            let of_last = together.narrow(0, AT_ONCE, 1).unwrap();
            assert_eq!(bits(&norm(&last)), bits(&of_last), "{device}");
        }
    }

    /// A group norm reads x three times, a layer norm too: for means, deviations and the result. Every block of a group norm
    /// reads the statistics and parameters of its image, every row of a layer norm the parameters.
    #[test]
    fn tensors_are_read_once_a_sweep_and_without_bank_conflicts() {
        const TEST: &str =
            "ops::norm::cuda::tests::tensors_are_read_once_a_sweep_and_without_bank_conflicts";
        let shape = [2, 24, 32, 320];
        let dtypes = [DType::F32, DType::F16, DType::BF16];
        let launches = counted(TEST, || {
            for dtype in dtypes {
                let x = Tensor::zeros(shape, dtype, Device::Cuda(0)).unwrap();
                let [gamma, beta] = parameters(320, x.device());
                group_norm(&x, &gamma, &beta, 32, 1e-5, true).unwrap();
                let halves = [0, 160].map(|at| x.narrow(3, at, 160).unwrap().contiguous().unwrap());
                concat_group_norm(halves.each_ref(), &gamma, &beta, 32, 1e-5, true).unwrap();
                layer_norm(&x, &gamma, &beta, 1e-5).unwrap();
            }
        });
        let Some(launches) = launches else { return };
        let is_norm = |l: &&serde_json::Value| l["kernel"].as_str().unwrap().contains("norm");
        let launches: Vec<_> = launches.iter().filter(is_norm).collect();
        assert_eq!(launches.len(), 9);
        for (launch, dtype) in launches.chunks(3).zip(dtypes) {
            let of_x = shape.iter().product::<usize>() * dtype.size();
            let rows = 2 * 24 * 32;
            for (launch, (sweeps, is_group)) in
                launch.iter().zip([(4, true), (5, true), (4, false)])
            {
                let blocks = launch["grid"][0].as_u64().unwrap() as usize * 2;
                // Eight f32 that go with a lane's eight values of 16 bits are two accesses, each to half of a sector.
                let halves = if dtype == DType::F32 { 1 } else { 2 };
                let others = if is_group {
                    blocks * 4 * (32 * 3 * 12 + 2 * 320)
                } else {
                    rows * 2 * 320 * 4 * halves
                };
                let least = sweeps * of_x + others;
                let lines: Vec<_> = launch["lines"].as_object().unwrap().values().collect();
                let of_line = |line: &serde_json::Value, what: &str| line[what].as_u64().unwrap();
                // Where a lane alone has a word, it waits for other blocks, or leaves a statistic.
                let is_shared = |line: &&&serde_json::Value| {
                    of_line(line, "bytes") > 4 * of_line(line, "sectors")
                };
                let sectors = lines.iter().filter(is_shared).map(|line| of_line(line, "sectors"));
                let moved = sectors.sum::<u64>() * 32;
                assert!(moved as f64 <= 1.15 * least as f64, "{launch}: {moved} for {least} bytes");
                // Sums over groups, once a slab, have conflicts; what is done once a pixel has none.
                let passes =
                    lines.iter().map(|line| of_line(line, "wavefronts_needed")).sum::<u64>();
                for line in lines {
                    let needed = of_line(line, "wavefronts_needed");
                    let is_free = of_line(line, "wavefronts") == needed;
                    assert!(is_free || needed * 20 < passes, "{launch}: {line}");
                }
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        for device in devices() {
            let on = |shape: &[usize]| random(shape, 6).to_device(device).unwrap();
            let [gamma, beta] = parameters(16, device);
            let (x, other) = (on(&[2, 3, 3, 8]), on(&[2, 3, 2, 8]));
            let norm = |rest| concat_group_norm([&x, rest], &gamma, &beta, 4, 1e-5, false);
            assert!(matches!(norm(&other), Err(Error::Shape { .. })));
            let (half, wider) = (x.to_dtype(DType::F16).unwrap(), on(&[2, 3, 3, 16]));
            assert!(matches!(norm(&half), Err(Error::DType { .. })));
            assert!(matches!(norm(&wider), Err(Error::Shape { .. })));
        }
    }
}
