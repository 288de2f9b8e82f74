//! Convolution with a 3x3 kernel at stride 1 by Winograd's minimal filtering F(2x2, 3x3)
//! (Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", section 4.1).
//!
//! A tile of 2x2 outputs takes 16 products per pair of channels where the definition takes 36:
//!
//! ```text
//! Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A      d: 4x4 inputs, g: 3x3 weights, Y: 2x2 outputs
//!
//!      1  0 -1  0          1    0    0
//! Bᵀ = 0  1  1  0     G = 1/2  1/2  1/2     Aᵀ = 1  1  1  0
//!      0 -1  1  0         1/2 -1/2  1/2          0  1 -1 -1
//!      0  1  0 -1          0    0    1
//! ```
//!
//! Summed over input channels, each of the 16 products is a matrix product [tiles, I] x [I, O], which the
//! tiles of [`gemm`] compute. `G g Gᵀ` is taken when weights are packed, so that they take
//! 16/9 of their memory. Tiles start at the image's corner and belong to one image: an image's bits
//! do not depend on the batch. Differences of inputs are formed before the products, which costs about a bit
//! of accuracy against the definition; that is why this exists for f32 only.

pub mod gradient;

use super::gemm::{self, Blocks, C_BYTES, Finish, KC, LDA, MicroKernel, SCRATCH};
use super::memory;
use super::parallel::{DisjointSlice, for_each_chunk};
use super::simd::{Simd, simd, transpose, widen};
use crate::types::{DType, Element, Float, Real};

/// Points of the transform: products per tile and pair of channels.
const POINTS: usize = 16;

/// Channels are transformed this many at a time: a register of the widest instruction set.
pub const CHANNELS: usize = 16;

/// Most tiles of a block. Their transforms, up to 2 MiB for 320 channels, stream through the L3 once per block of
/// outputs, which costs less than reading the weights more often for fewer tiles.
const TILES: usize = 96;

/// Elements of packed weights [O, I, 3, 3].
pub fn packed_len(kernel: MicroKernel<f32, f32, f32>, i: usize, o: usize) -> usize {
    POINTS * gemm::packed_len(kernel, i, o)
}

/// Transforms weights [O, I, 3, 3] and packs them: panel by panel of outputs, within it point by point.
///
/// # Panics
/// When `from` or `to` have another length than the shape gives.
pub fn pack<T: Float>(
    kernel: MicroKernel<f32, f32, f32>,
    i: usize,
    o: usize,
    from: &[T],
    to: &mut [f32],
) {
    assert!(from.len() == o * i * 9 && to.len() == packed_len(kernel, i, o));
    if from.is_empty() {
        return;
    }
    let nr = kernel.nr;
    for_each_chunk(to, POINTS * i * nr, |p, panel| {
        memory::fault_in(panel);
        let outputs = nr.min(o - p * nr);
        transform_panel(&from[p * nr * i * 9..][..outputs * i * 9], i, nr, panel);
    });
}

/// Outputs whose weights are transformed side by side. It divides every kernel's columns.
const SIDE: usize = 8;
/// Input channels that are transposed at a time: with 32 outputs, two blocks of 9 KiB.
const BLOCK: usize = 8;

simd! {
    /// G g Gᵀ of the weights [outputs, i, 3, 3], in f64 and rounded once; `panel` is [16, i, nr].
    fn transform_panel[T: Float](s, from: &[T], i: usize, nr: usize, panel: &mut [f32]) {
        let _ = s;
        let outputs = from.len() / (9 * i);
        let mut rows = vec![T::Acc::ZERO; nr * BLOCK * 9];
        let mut taps = rows.clone();
        for first in (0..i).step_by(BLOCK) {
            let len = 9 * BLOCK.min(i - first);
            let (rows, taps) = (&mut rows[..nr * len], &mut taps[..len * nr]); // [nr, c 3 3], [c 3 3, nr]
            rows[outputs * len..].fill(T::Acc::ZERO);
            for (row, from) in rows.chunks_exact_mut(len).zip(from.chunks_exact(9 * i)) {
                widen(&from[9 * first..][..len], row);
            }
            if T::Acc::DTYPE == DType::F32 {
                transpose(bytemuck::cast_slice(rows), nr, len, bytemuck::cast_slice_mut(taps));
            } else {
                (0..nr * len).for_each(|at| taps[at % len * nr + at / len] = rows[at]);
            }
            for (c, taps) in taps.chunks_exact(9 * nr).enumerate() {
                for j in (0..nr).step_by(SIDE) {
                    let mut g = [[0.0; SIDE]; 9];
                    for tap in 0..9 {
                        for side in 0..SIDE {
                            g[tap][side] = taps[tap * nr + j..][..SIDE][side].to_f64();
                        }
                    }
                    let columns = [
                        times_g(&g[0], &g[3], &g[6]),
                        times_g(&g[1], &g[4], &g[7]),
                        times_g(&g[2], &g[5], &g[8]),
                    ]; // [3, 4]: Gg, transposed
                    for y in 0..4 {
                        let row = times_g(&columns[0][y], &columns[1][y], &columns[2][y]);
                        for x in 0..4 {
                            let to = &mut panel[((4 * y + x) * i + first + c) * nr + j..][..SIDE];
                            for side in 0..SIDE {
                                to[side] = row[x][side] as f32;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// G g of a column g of weights, for [`SIDE`] outputs.
#[inline(always)]
fn times_g(a: &[f64; SIDE], b: &[f64; SIDE], c: &[f64; SIDE]) -> [[f64; SIDE]; 4] {
    let mut gg = [[0.0; SIDE]; 4];
    for side in 0..SIDE {
        let (a, b, c) = (a[side], b[side], c[side]);
        gg[0][side] = a;
        gg[1][side] = (a + b + c) / 2.0;
        gg[2][side] = (a - b + c) / 2.0;
        gg[3][side] = c;
    }
    gg
}

/// The images of a convolution: [batch, height, width, channels] -> [batch, out_height, out_width, n].
#[derive(Clone, Copy, Debug)]
pub struct Images {
    /// Number of images.
    pub batch: usize,
    /// Of the input.
    pub height: usize,
    /// Of the input.
    pub width: usize,
    /// Of the input: a multiple of [`CHANNELS`].
    pub channels: usize,
    /// Of the output.
    pub out_height: usize,
    /// Of the output.
    pub out_width: usize,
    /// Rows of zeros above the input.
    pub top: usize,
    /// Columns of zeros left of the input.
    pub left: usize,
}

/// Convolves `x` with packed weights and hands the sums to `finish`, a row being a pixel of the
/// output.
///
/// # Panics
/// When a slice has another length than the shape gives, or channels are not a multiple of [`CHANNELS`].
pub fn convolve(
    kernel: MicroKernel<f32, f32, f32>,
    images: Images,
    n: usize,
    x: &[f32],
    b: &[f32],
    out: &mut [f32],
    finish: &Finish<f32, f32>,
) {
    let Images { batch, height, width, channels, out_height, out_width, .. } = images;
    assert_eq!(channels % CHANNELS, 0);
    assert_eq!(x.len(), batch * height * width * channels);
    assert_eq!(out.len(), batch * out_height * out_width * n);
    assert_eq!(b.len(), packed_len(kernel, channels, n));
    let nr = kernel.nr;
    let tiles = images.tiles();
    if tiles == 0 || n == 0 {
        return;
    }
    let out = DisjointSlice::new(out);
    let k_blocks = channels.div_ceil(KC);
    Blocks::new((tiles, n), TILES, kernel.mr, nr, C_BYTES / size_of::<f32>()).for_each(
        |first, count, column, wide| {
            let panels = column / nr..(column + wide).div_ceil(nr);
            let ldc = gemm::row_len::<f32>(panels.len() * nr);
            SCRATCH.with_borrow_mut(|[v, m, y]| {
                // 1. Bᵀ d B of every tile
                let v: &mut [f32] = gemm::scratch(v, POINTS * k_blocks * count * LDA); // [point, block of k, tile, LDA]
                for t in 0..count {
                    let (image, ty, tx) = images.tile(first + t);
                    for block in 0..k_blocks {
                        let channels = block * KC..channels.min((block + 1) * KC);
                        let pixels = std::array::from_fn(|i| {
                            images.pixel(x, image, 2 * ty + i / 4, 2 * tx + i % 4, channels.clone())
                        });
                        transform_input(
                            &pixels,
                            &mut v[(block * count + t) * LDA..],
                            k_blocks * count * LDA,
                            KC,
                            0,
                        );
                    }
                }
                // 2. a matrix product for every point
                let m: &mut [f32] = gemm::scratch(m, POINTS * count * ldc); // [point, tile, ldc]
                for point in 0..POINTS {
                    for block in 0..k_blocks {
                        let kc = KC.min(channels - block * KC);
                        let a = &v[(point * k_blocks + block) * count * LDA..][..count * LDA];
                        let panel = |i: usize| {
                            // After the last panel comes the next block of k, or the next point.
                            let (i, at) = if i < panels.len() {
                                (i, block * KC)
                            } else {
                                (0, block * KC + kc)
                            };
                            let start = ((panels.start + i) * POINTS + point) * channels + at;
                            &b[(start * nr).min(b.len() - kc * nr)..][..kc * nr]
                        };
                        let m = &mut m[point * count * ldc..][..count * ldc];
                        gemm::multiply_block(
                            kernel,
                            (count, kc),
                            a,
                            panels.len(),
                            panel,
                            m,
                            ldc,
                            block > 0,
                        );
                    }
                }
                // 3. Aᵀ m A of every tile, and out
                let y: &mut [f32] = gemm::scratch(y, 4 * ldc); // [pixel of the tile, ldc]
                for t in 0..count {
                    let (image, ty, tx) = images.tile(first + t);
                    transform_output(&m[t * ldc..], count * ldc, y, ldc);
                    for (i, sums) in y.chunks_exact_mut(ldc).enumerate() {
                        let (oy, ox) = (2 * ty + i / 2, 2 * tx + i % 2);
                        if oy < out_height && ox < out_width {
                            let row = (image * out_height + oy) * out_width + ox;
                            // SAFETY: a pixel belongs to one tile, and these columns of it to this block alone.
                            let out = unsafe { out.part(row * n + column, wide) };
                            finish(row, column, &mut sums[..wide], out);
                        }
                    }
                }
            });
        },
    );
}

impl Images {
    /// Tiles of all images.
    pub fn tiles(&self) -> usize {
        self.batch * self.out_height.div_ceil(2) * self.out_width.div_ceil(2)
    }

    /// Image, row and column of a tile.
    fn tile(&self, i: usize) -> (usize, usize, usize) {
        let (down, across) = (self.out_height.div_ceil(2), self.out_width.div_ceil(2));
        (i / across / down, i / across % down, i % across)
    }

    /// Channels of the pixel at row y and column x of a padded image.
    fn pixel<'a>(
        &self,
        images: &'a [f32],
        image: usize,
        y: usize,
        x: usize,
        channels: std::ops::Range<usize>,
    ) -> &'a [f32] {
        static ZEROS: [f32; KC] = [0.0; KC];
        // In the padding above and on the left these wrap around to huge values, which are outside as well.
        let (y, x) = (y.wrapping_sub(self.top), x.wrapping_sub(self.left));
        if y < self.height && x < self.width {
            let start = ((image * self.height + y) * self.width + x) * self.channels;
            &images[start + channels.start..start + channels.end]
        } else {
            &ZEROS[..channels.len()]
        }
    }
}

// Functions rather than closures: only these are sure to be compiled with the caller's instruction set.

/// a - b, with the one rounding of a subtraction.
#[inline(always)]
fn subtract<S: Simd>(s: S, a: S::F32, b: S::F32) -> S::F32 {
    s.mul_add(b, s.splat(-1.0), a)
}

/// Bᵀ d
#[inline(always)]
fn times_b<S: Simd>(s: S, d: [S::F32; 4]) -> [S::F32; 4] {
    [subtract(s, d[0], d[2]), s.add(d[1], d[2]), subtract(s, d[2], d[1]), subtract(s, d[1], d[3])]
}

/// Aᵀ m
#[inline(always)]
fn times_a<S: Simd>(s: S, m: [S::F32; 4]) -> [S::F32; 2] {
    [s.add(s.add(m[0], m[1]), m[2]), subtract(s, subtract(s, m[1], m[2]), m[3])]
}

simd! {
    /// Bᵀ d B of 16 pixels' channels; point i goes to `to[i * plane..]`, there in runs of `run` channels, `apart` of each
    /// other.
    fn transform_input(s, pixels: &[&[f32]; POINTS], to: &mut [f32], plane: usize, run: usize, apart: usize) {
        let len = pixels[0].len();
        assert!(pixels.iter().all(|p| p.len() == len) && len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(len > 0 && run.is_multiple_of(S::LANES));
        assert!(to.len() >= (POINTS - 1) * plane + (len - 1) / run * apart + run.min(len));
        for c in (0..len).step_by(S::LANES) {
            let at = c / run * apart + c % run;
            // SAFETY: c + LANES <= len, which all pixels have; its run fits behind the last plane's start.
            unsafe {
                let mut w = [[s.splat(0.0); 4]; 4]; // [column, row]
                for x in 0..4 {
                    let mut d = [s.splat(0.0); 4];
                    for y in 0..4 {
                        d[y] = s.load(pixels[4 * y + x].as_ptr().add(c));
                    }
                    w[x] = times_b(s, d);
                }
                for y in 0..4 {
                    let row = times_b(s, [w[0][y], w[1][y], w[2][y], w[3][y]]);
                    for x in 0..4 {
                        s.store(to.as_mut_ptr().add((4 * y + x) * plane + at), row[x]);
                    }
                }
            }
        }
    }
}

simd! {
    /// Aᵀ m A of 16 points' channels, point i at `m[i * plane..]`; pixel i goes to `to[i * len..][..len]`.
    fn transform_output(s, m: &[f32], plane: usize, to: &mut [f32], len: usize) {
        assert!(len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(m.len() >= (POINTS - 1) * plane + len && to.len() >= 4 * len);
        for c in (0..len).step_by(S::LANES) {
            // SAFETY: c + LANES <= len, which fits behind the last plane's start and four times into `to`.
            unsafe {
                let mut w = [[s.splat(0.0); 2]; 4]; // [column, row]
                for x in 0..4 {
                    let mut d = [s.splat(0.0); 4];
                    for y in 0..4 {
                        d[y] = s.load(m.as_ptr().add((4 * y + x) * plane + c));
                    }
                    w[x] = times_a(s, d);
                }
                for y in 0..2 {
                    let row = times_a(s, [w[0][y], w[1][y], w[2][y], w[3][y]]);
                    for x in 0..2 {
                        s.store(to.as_mut_ptr().add((2 * y + x) * len + c), row[x]);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::super::gemm::f32_kernel;
    use super::super::simd::at_each_level;
    use super::*;

    /// G g Gᵀ as it is written, a matrix product after the other.
    fn definition(g: &[f64]) -> [f32; POINTS] {
        const G: [[f64; 3]; 4] =
            [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
        std::array::from_fn(|at| {
            let (y, x) = (at / 4, at % 4);
            let column = |k: usize| (0..3).map(|j| G[y][j] * g[3 * j + k]).sum::<f64>();
            (0..3).map(|k| column(k) * G[x][k]).sum::<f64>() as f32
        })
    }

    fn check<T: Float>(i: usize, o: usize, element: impl Fn(usize) -> T) {
        let weights: Vec<T> = (0..o * i * 9).map(element).collect();
        at_each_level(|level| {
            let kernel = f32_kernel(level);
            let mut packed = vec![7.0; packed_len(kernel, i, o)];
            pack(kernel, i, o, &weights, &mut packed);
            for (at, &found) in packed.iter().enumerate() {
                let (rest, j) = (at / kernel.nr, at % kernel.nr);
                let (c, point, n) =
                    (rest % i, rest / i % POINTS, rest / i / POINTS * kernel.nr + j);
                let expected = if n < o {
                    let g: Vec<f64> = weights[(n * i + c) * 9..][..9]
                        .iter()
                        .map(|w| w.to_acc().to_f64())
                        .collect();
                    definition(&g)[point]
                } else {
                    0.0
                };
                assert_eq!(found, expected, "{}: [{o}, {i}] at {at}", level.name());
            }
        });
    }

    #[test]
    fn packed_weights_are_the_transform() {
        // Small enough numbers that f64 holds every sum exactly.
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 16.0 - 60.0;
        for (i, o) in [(16, 1), (16, 33), (48, 64), (3, 7)] {
            check(i, o, value);
            check(i, o, |at| f16::from_f32(value(at)));
            check(i, o, |at| f64::from(value(at)) + 1e-9);
        }
    }
}
