//! Gradient of a convolution with a 3x3 kernel at stride 1 by its weight: Winograd's algorithm, transposed.
//!
//! ```text
//! dg = Gᵀ [ sum over tiles of (A dY Aᵀ) ⊙ (Bᵀ d B) ] G      d: 4x4 inputs, dY: gradient of 2x2 outputs, dg: 3x3
//! ```
//!
//! with the matrices of [`super::convolve`], whose derivative by g this is. Summed over tiles, each of the 16 products is
//! a matrix product [O, tiles] x [tiles, I]: 16 multiply-adds a tile and pair of channels where the definition takes 36.
//!
//! A piece of work is a group of output and of input channels over a slice of the tiles, in ascending order; it takes a block of tiles
//! at a time through the caches. Slices are added up in ascending order. How many there are follows from the shape
//! alone, so that the sums do not depend on the number of threads.

use super::super::gemm::{self, LDA, MicroKernel, SCRATCH};
use super::super::outer::transpose_block;
use super::super::parallel::{DisjointSlice, for_each, for_each_chunk};
use super::super::simd::simd;
use super::{CHANNELS, Images, Two, subtract, transform_input};
use crate::cpu::simd::Simd;

/// Points of F(2x2, 3x3).
const POINTS: usize = 16;
/// Tiles of a block: with 64 to 256 channels on both sides, a point's operands and sums share the L2.
const TILES: usize = 128;
/// Tiles that are transposed at a time.
const TRANSPOSED: usize = 16;
/// Output channels of a group, at most [`gemm::KC`];
const ROWS: usize = 256;
/// its input channels, a multiple of every kernel's columns.
const COLUMNS: usize = 128;
/// Pieces of work that there are at least, where there are tiles enough;
const PIECES: usize = 16;
/// but for two slices, their sums take no more than this many elements, which stay in the caches.
const SUMS: usize = 1 << 20;

/// From this many tiles on, products outweigh the transforms of the sums.
pub const FEWEST_TILES: usize = 64;

/// How the work is cut.
struct Plan {
    blocks: usize,
    /// Of output and of input channels.
    groups: [usize; 2],
    slices: usize,
}

impl Plan {
    fn new(images: &Images, n: usize) -> Self {
        let blocks = images.tiles(2).div_ceil(TILES);
        let groups = [n.div_ceil(ROWS), images.channels.div_ceil(COLUMNS)];
        let most = (SUMS / (POINTS * n * images.channels).max(1)).max(2);
        let slices =
            PIECES.div_ceil((groups[0] * groups[1]).max(1)).min(most).clamp(1, blocks.max(1));
        Self { blocks, groups, slices }
    }
}

/// Elements of the working memory of [`weight_gradient`]: the sums of its slices.
pub fn working_memory(images: Images, n: usize) -> usize {
    Plan::new(&images, n).slices * POINTS * n * images.channels
}

/// Fills `out` [n, channels, 3, 3], the layout of a weight, from `grad` [batch, out_height, out_width, n] and the images
/// `x`.
///
/// # Panics
/// When a slice has another length than the shape gives, or `n` or channels are not a multiple of [`CHANNELS`].
pub fn weight_gradient(
    kernel: MicroKernel<f32, f32, f32>,
    images: Images,
    n: usize,
    grad: &[f32],
    x: &[f32],
    sums: &mut [f32],
    out: &mut [f32],
) {
    let Images { batch, height, width, channels, out_height, out_width, .. } = images;
    assert!(channels.is_multiple_of(CHANNELS) && n.is_multiple_of(CHANNELS));
    assert_eq!(x.len(), batch * height * width * channels);
    assert_eq!(grad.len(), batch * out_height * out_width * n);
    assert_eq!((sums.len(), out.len()), (working_memory(images, n), n * channels * 9));
    let (plan, tiles, nr) = (Plan::new(&images, n), images.tiles(2), kernel.nr);
    // The result as the images of a convolution that has no padding.
    let results =
        Images { height: out_height, width: out_width, channels: n, top: 0, left: 0, ..images };
    // 1. a group over a slice
    let parts = DisjointSlice::new(sums);
    let [row_groups, column_groups] = plan.groups;
    for_each(plan.slices * row_groups * column_groups, &|piece| {
        let (slice, group) = (piece / column_groups / row_groups, piece % column_groups);
        let row_group = piece / column_groups % row_groups;
        let blocks = slice * plan.blocks / plan.slices..(slice + 1) * plan.blocks / plan.slices;
        let columns = group * COLUMNS..channels.min((group + 1) * COLUMNS);
        let rows = row_group * ROWS..n.min((row_group + 1) * ROWS);
        let height = rows.len();
        let panels = columns.len().div_ceil(nr);
        let ldc = gemm::row_len::<f32>(panels * nr);
        SCRATCH.with_borrow_mut(|[a, b, c]| {
            let a = gemm::scratch(a, POINTS * height * (TRANSPOSED + LDA));
            let (some, a) = a.split_at_mut(POINTS * height * TRANSPOSED); // [point, tile, height], [point, height, LDA]
            let b: &mut [f32] = gemm::scratch(b, POINTS * panels * TILES * nr); // [point, panel, tile, nr]
            let c: &mut [f32] = gemm::scratch(c, POINTS * height * ldc); // [point, height, ldc]
            for block in blocks.clone() {
                let first = block * TILES;
                let count = TILES.min(tiles - first);
                // A dY Aᵀ of every tile, transposed
                for from in (0..count).step_by(TRANSPOSED) {
                    let len = TRANSPOSED.min(count - from);
                    for t in 0..len {
                        let (image, ty, tx) = images.tile(2, first + from + t);
                        let pixels = std::array::from_fn(|i| {
                            results.pixel(grad, image, 2 * ty + i / 2, 2 * tx + i % 2, rows.clone())
                        });
                        transform_result(&pixels, &mut some[t * height..], TRANSPOSED * height);
                    }
                    for (some, a) in
                        some.chunks(TRANSPOSED * height).zip(a.chunks_mut(height * LDA))
                    {
                        transpose_block(&some[..len * height], len, height, height, &mut a[from..]);
                    }
                }
                // Bᵀ d B of every tile
                for t in 0..count {
                    let (image, ty, tx) = images.tile(2, first + t);
                    let pixels = images.window(x, (image, 2 * ty, 2 * tx), columns.clone());
                    let panel = count * nr;
                    transform_input(Two, &pixels, &mut b[t * nr..], panels * panel, nr, panel);
                }
                // a matrix product for every point
                for point in 0..POINTS {
                    let b = &b[point * panels * count * nr..][..panels * count * nr];
                    gemm::multiply_block(
                        kernel,
                        (height, count),
                        &a[point * height * LDA..][..height * LDA],
                        panels,
                        |i| &b[i.min(panels - 1) * count * nr..][..count * nr],
                        &mut c[point * height * ldc..][..height * ldc],
                        ldc,
                        block > blocks.start,
                    );
                }
            }
            for (i, from) in c.chunks(ldc).enumerate() {
                let (point, row) = (i / height, rows.start + i % height);
                let at = ((slice * POINTS + point) * n + row) * channels + columns.start;
                // SAFETY: these columns of these rows of a slice belong to this piece alone.
                let to = unsafe { parts.part(at, columns.len()) };
                to.copy_from_slice(&from[..to.len()]);
            }
        });
    });
    // 2. Gᵀ p G of the slices' sum
    let sums = &*sums; // [slice, point, n, channels]
    for_each_chunk(out, channels * 9, |row, out| {
        transform_sums(&sums[row * channels..], n * channels, plan.slices, out);
    });
}

simd! {
    /// A dY Aᵀ of 4 pixels' channels; point i goes to `to[i * plane..]`.
    fn transform_result(s, pixels: &[&[f32]; 4], to: &mut [f32], plane: usize) {
        let len = pixels[0].len();
        assert!(pixels.iter().all(|p| p.len() == len) && len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(to.len() >= (POINTS - 1) * plane + len);
        for c in (0..len).step_by(S::LANES) {
            // SAFETY: c + LANES <= len, which all pixels have, and which fits behind the last plane's start.
            unsafe {
                let mut w = [[s.splat(0.0); 4]; 2]; // [column, row]
                for x in 0..2 {
                    w[x] = spread(s, s.load(pixels[x].as_ptr().add(c)), s.load(pixels[2 + x].as_ptr().add(c)));
                }
                for y in 0..4 {
                    let row = spread(s, w[0][y], w[1][y]);
                    for x in 0..4 {
                        s.store(to.as_mut_ptr().add((4 * y + x) * plane + c), row[x]);
                    }
                }
            }
        }
    }
}

simd! {
    /// Gᵀ p G, p the sum of `slices` in ascending order, to `out` [channels, 3, 3]: point i of slice j is at
    /// `sums[(j * POINTS + i) * plane..]`.
    fn transform_sums(s, sums: &[f32], plane: usize, slices: usize, out: &mut [f32]) {
        let len = out.len() / 9;
        assert!(len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(sums.len() >= (slices * POINTS - 1) * plane + len);
        let mut taps = [[0.0; CHANNELS]; 9];
        for (c, out) in (0..len).step_by(S::LANES).zip(out.chunks_exact_mut(9 * S::LANES)) {
            // SAFETY: c + LANES <= len, which fits behind the start of the last slice's last plane; LANES <= CHANNELS.
            unsafe {
                let mut w = [[s.splat(0.0); 3]; 4]; // [column, row]
                for x in 0..4 {
                    let mut p = [s.splat(0.0); 4];
                    for y in 0..4 {
                        let at = |slice: usize| sums.as_ptr().add((slice * POINTS + 4 * y + x) * plane + c);
                        p[y] = s.load(at(0));
                        for slice in 1..slices {
                            p[y] = s.add(p[y], s.load(at(slice)));
                        }
                    }
                    w[x] = times_g_transposed(s, p);
                }
                for y in 0..3 {
                    let row = times_g_transposed(s, [w[0][y], w[1][y], w[2][y], w[3][y]]);
                    for x in 0..3 {
                        s.store(taps[3 * y + x].as_mut_ptr(), row[x]);
                    }
                }
            }
            for (lane, out) in out.chunks_exact_mut(9).enumerate() {
                for tap in 0..9 {
                    out[tap] = taps[tap][lane];
                }
            }
        }
    }
}

/// A y, of two values.
#[inline(always)]
fn spread<S: Simd>(s: S, a: S::F32, b: S::F32) -> [S::F32; 4] {
    [a, s.add(a, b), subtract(s, a, b), subtract(s, s.splat(0.0), b)]
}

/// Gᵀ p
#[inline(always)]
fn times_g_transposed<S: Simd>(s: S, p: [S::F32; 4]) -> [S::F32; 3] {
    let half = s.splat(0.5);
    let sum = s.add(p[1], p[2]);
    [s.mul_add(sum, half, p[0]), s.mul(subtract(s, p[1], p[2]), half), s.mul_add(sum, half, p[3])]
}

#[cfg(test)]
mod tests {
    use super::super::super::gemm::f32_kernel;
    use super::super::super::simd::{at_each_level, pool};
    use super::*;

    const A: [[f64; 2]; 4] = [[1.0, 0.0], [1.0, 1.0], [1.0, -1.0], [0.0, -1.0]];
    const B: [[f64; 4]; 4] =
        [[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 1.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0.0, 1.0, 0.0, -1.0]];
    const G: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    /// m x mᵀ, of magnitudes.
    fn magnitudes<const R: usize, const C: usize>(
        m: [[f64; C]; R],
        x: [[f64; C]; C],
    ) -> [[f64; R]; R] {
        let at = |i: usize, j: usize| {
            let terms = (0..C * C).map(|k| (m[i][k / C] * m[j][k % C] * x[k / C][k % C]).abs());
            terms.sum::<f64>()
        };
        std::array::from_fn(|i| std::array::from_fn(|j| at(i, j)))
    }

    fn value(i: usize) -> f32 {
        (i * 7919 % 2003) as f32 / 1000.0 - 1.0
    }

    /// Element [y, x, channel] of an image among zeros.
    fn pixel(of: &[f32], [height, width, channels]: [usize; 3], at: [usize; 4]) -> f64 {
        let [image, y, x, channel] = at;
        if y >= height || x >= width {
            return 0.0;
        }
        f64::from(of[((image * height + y) * width + x) * channels + channel])
    }

    /// The gradient of small numbers, and a few of its elements against their definition.
    fn check(kernel: MicroKernel<f32, f32, f32>, images: Images, n: usize) -> Vec<f32> {
        let Images { batch, height, width, channels, out_height, out_width, top, left } = images;
        let grad: Vec<f32> = (0..batch * out_height * out_width * n).map(value).collect();
        let x: Vec<f32> = (0..batch * height * width * channels).map(|i| value(i + 5)).collect();
        let mut sums = vec![f32::NAN; working_memory(images, n)];
        let mut out = vec![f32::NAN; n * channels * 9];
        weight_gradient(kernel, images, n, &grad, &x, &mut sums, &mut out);
        for at in (0..n * channels).step_by((n * channels / 37) | 1) {
            let (o, i) = (at / channels, at % channels);
            let (mut exact, mut points) = ([[0.0; 3]; 3], [[0.0; 4]; 4]);
            for t in 0..images.tiles(2) {
                let (image, ty, tx) = images.tile(2, t);
                let of_result = |y: usize, x: usize| {
                    let at = [image, 2 * ty + y, 2 * tx + x, o];
                    pixel(&grad, [out_height, out_width, n], at)
                };
                let of_image = |dy: usize, dx: usize| {
                    let (y, at_x) = (2 * ty + dy, 2 * tx + dx);
                    let at = [image, y.wrapping_sub(top), at_x.wrapping_sub(left), i];
                    pixel(&x, [height, width, channels], at)
                };
                for k in 0..36 {
                    let [y, x, dy, dx] = [k / 18, k / 9 % 2, k / 3 % 3, k % 3];
                    exact[dy][dx] += of_result(y, x) * of_image(y + dy, x + dx);
                }
                let results = std::array::from_fn(|y| std::array::from_fn(|x| of_result(y, x)));
                let inputs = std::array::from_fn(|y| std::array::from_fn(|x| of_image(y, x)));
                let (results, inputs) = (magnitudes(A, results), magnitudes(B, inputs));
                for k in 0..POINTS {
                    points[k / 4][k % 4] += results[k / 4][k % 4] * inputs[k / 4][k % 4];
                }
            }
            let transposed: [[f64; 4]; 3] =
                std::array::from_fn(|i| std::array::from_fn(|j| G[j][i]));
            let magnitude = magnitudes(transposed, points);
            for tap in 0..9 {
                let (exact, magnitude) = (exact[tap / 3][tap % 3], magnitude[tap / 3][tap % 3]);
                // Roundings on the way of a term: two in each operand's transform, one a tile, one a slice, four in that
                // of the sums. Higham, Accuracy and Stability, 3.1.
                let roundings = images.tiles(2) + PIECES + 8;
                let tolerance = roundings as f64 * f64::from(f32::EPSILON) / 2.0 * magnitude;
                let error = (f64::from(out[at * 9 + tap]) - exact).abs();
                assert!(error <= tolerance, "{images:?}, {n}: [{o}, {i}] {tap}: {error:e}");
            }
        }
        out
    }

    #[test]
    fn every_element_is_its_sum() {
        let images = |batch,
                      [height, width, channels]: [usize; 3],
                      [top, left]: [usize; 2],
                      more: [usize; 2]| Images {
            batch,
            height,
            width,
            channels,
            out_height: height + top + more[0] - 2,
            out_width: width + left + more[1] - 2,
            top,
            left,
        };
        // Tiles that are cut off, blocks that are not full, padding on some sides alone, groups on both sides.
        let cases = [
            (images(1, [3, 3, 16], [0, 0], [0, 0]), 16),
            (images(7, [5, 3, 32], [1, 1], [1, 1]), 16),
            (images(2, [21, 18, 48], [1, 0], [0, 1]), 32),
            (images(3, [24, 24, 16], [1, 1], [1, 1]), 48),
            (images(1, [8, 8, 144], [1, 1], [1, 1]), 272),
        ];
        for (images, n) in cases {
            at_each_level(|level| {
                let all = check(f32_kernel(level), images, n);
                let one = pool(1).install(|| check(f32_kernel(level), images, n));
                assert_eq!(all, one, "the number of threads changed a bit");
            });
        }
    }
}
