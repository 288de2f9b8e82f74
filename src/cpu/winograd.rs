//! Convolution with a 3x3 kernel at stride 1 by Winograd's minimal filtering F(m x m, 3x3)
//! (Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", section 4).
//!
//! A tile of m x m outputs takes (m + 2)² products per pair of channels where the definition takes 9 m²: 16 for 36 with
//! tiles of 2x2, 36 for 144 with tiles of 4x4.
//!
//! ```text
//! Y = Aᵀ [ (G g Gᵀ) ⊙ (Bᵀ d B) ] A      d: inputs, g: 3x3 weights, Y: outputs
//!
//! m = 2:   1  0 -1  0          1    0    0
//!     Bᵀ = 0  1  1  0     G = 1/2  1/2  1/2     Aᵀ = 1  1  1  0
//!          0 -1  1  0         1/2 -1/2  1/2          0  1 -1 -1
//!          0  1  0 -1          0    0    1
//! ```
//!
//! m = 4 is the same construction, polynomials that are multiplied by way of their values, at 0, ±a, ±b and infinity; with
//! `u = 2 a² (a² - b²)` and `v = 2 b² (b² - a²)`:
//!
//! ```text
//!      a²b²   0   -a²-b²   0     1  0         1/a²b²   0     0
//!       0   -ab²   -b²     a     1  0          1/u    a/u   a²/u           1  1   1  1   1  0
//! Bᵀ =  0    ab²   -b²    -a     1  0     G =  1/u   -a/u   a²/u      Aᵀ = 0  a  -a  b  -b  0
//!       0   -a²b   -a²     b     1  0          1/v    b/v   b²/v           0  a²  a² b²  b² 0
//!       0    a²b   -a²    -b     1  0          1/v   -b/v   b²/v           0  a³ -a³ b³ -b³ 1
//!       0   a²b²    0   -a²-b²   0  1           0      0     1
//! ```
//!
//! The usual points ±1, ±2 (Lavin & Gray) lose about two bits against the definition. Those taken here, ±3/4, ±3/2, which keep
//! the entries of Bᵀ and Aᵀ close to each other and exact, lose less than one: over 320 channels of normal numbers the error was
//! 3.4, 1.7 and 0.5 millionths (root of the mean square) for the usual points, these and tiles of 2x2, and 1.0 for sums of 2,880
//! products one after the other.
//!
//! Summed over input channels, each of a tile's products is a matrix product [tiles, I] x [I, O], which the
//! tiles of [`gemm`] compute. `G g Gᵀ` is taken when weights are packed, so that they take 16/9 or 4 times
//! their memory. Tiles start at the image's corner and belong to one image: an image's bits
//! do not depend on the batch. Differences of inputs are formed before the products, which costs
//! accuracy; that is why this exists for f32 only.

pub mod gradient;

use super::gemm::{self, Blocks, C_BYTES, Finish, KC, LDA, MicroKernel, SCRATCH};
use super::memory;
use super::parallel::{DisjointSlice, for_each_chunk};
use super::simd::{Simd, simd, transpose, widen};
use crate::types::{DType, Element, Float, Real};

/// How many outputs a tile has along each side, m, with N = m + 2 inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 2x2.
    Two,
    /// 4x4.
    Four,
}

impl Tile {
    /// Products per tile and pair of channels.
    fn points(self) -> usize {
        match self {
            Self::Two => 16,
            Self::Four => 36,
        }
    }
}

/// The matrices of F(M x M, 3x3), with N = M + 2.
trait Filtering<const M: usize, const N: usize>: Copy + Send + Sync + 'static {
    /// Most tiles of a block. Their transforms, up to 2 MiB for 320 channels, stream through the L3 once per block of
    /// outputs, which costs less than reading the weights more often for fewer tiles.
    const TILES: usize;
    /// Bᵀ d
    fn times_b<S: Simd>(s: S, d: [S::F32; N]) -> [S::F32; N];
    /// Aᵀ m
    fn times_a<S: Simd>(s: S, m: [S::F32; N]) -> [S::F32; M];
    /// G g
    fn times_g(g: [f64; 3]) -> [f64; N];
}

#[derive(Clone, Copy)]
struct Two;

impl Filtering<2, 4> for Two {
    const TILES: usize = 96;

    #[inline(always)]
    fn times_b<S: Simd>(s: S, d: [S::F32; 4]) -> [S::F32; 4] {
        [
            subtract(s, d[0], d[2]),
            s.add(d[1], d[2]),
            subtract(s, d[2], d[1]),
            subtract(s, d[1], d[3]),
        ]
    }

    #[inline(always)]
    fn times_a<S: Simd>(s: S, m: [S::F32; 4]) -> [S::F32; 2] {
        [s.add(s.add(m[0], m[1]), m[2]), subtract(s, subtract(s, m[1], m[2]), m[3])]
    }

    #[inline(always)]
    fn times_g([a, b, c]: [f64; 3]) -> [f64; 4] {
        [a, (a + b + c) / 2.0, (a - b + c) / 2.0, c]
    }
}

#[derive(Clone, Copy)]
struct Four;

impl Four {
    /// The points, a and b.
    const A: f64 = 0.75;
    const B: f64 = 1.5;
    const AA: f64 = Self::A * Self::A;
    const BB: f64 = Self::B * Self::B;
}

impl Filtering<4, 6> for Four {
    const TILES: usize = 48;

    #[inline(always)]
    fn times_b<S: Simd>(s: S, d: [S::F32; 6]) -> [S::F32; 6] {
        let [a, b, aa, bb] = [Self::A, Self::B, Self::AA, Self::BB];
        let [even_a, odd_a] = [add_times(s, d[4], -bb, d[2]), add_times(s, d[3], -bb, d[1])];
        let [even_b, odd_b] = [add_times(s, d[4], -aa, d[2]), add_times(s, d[3], -aa, d[1])];
        [
            add_times(s, add_times(s, d[4], -(aa + bb), d[2]), aa * bb, d[0]),
            add_times(s, even_a, a, odd_a),
            add_times(s, even_a, -a, odd_a),
            add_times(s, even_b, b, odd_b),
            add_times(s, even_b, -b, odd_b),
            add_times(s, add_times(s, d[5], -(aa + bb), d[3]), aa * bb, d[1]),
        ]
    }

    #[inline(always)]
    fn times_a<S: Simd>(s: S, m: [S::F32; 6]) -> [S::F32; 4] {
        let [even_a, odd_a] = [s.add(m[1], m[2]), subtract(s, m[1], m[2])];
        let [even_b, odd_b] = [s.add(m[3], m[4]), subtract(s, m[3], m[4])];
        let [a, b, aa, bb] = [Self::A, Self::B, Self::AA, Self::BB];
        [
            s.add(s.add(m[0], even_a), even_b),
            add_times(s, times(s, a, odd_a), b, odd_b),
            add_times(s, times(s, aa, even_a), bb, even_b),
            s.add(add_times(s, times(s, a * aa, odd_a), b * bb, odd_b), m[5]),
        ]
    }

    #[inline(always)]
    fn times_g([x, y, z]: [f64; 3]) -> [f64; 6] {
        let [a, b, aa, bb] = [Self::A, Self::B, Self::AA, Self::BB];
        let (u, v) = (2.0 * aa * (aa - bb), 2.0 * bb * (bb - aa));
        let (even_a, even_b) = (x + aa * z, x + bb * z);
        [
            x / (aa * bb),
            (even_a + a * y) / u,
            (even_a - a * y) / u,
            (even_b + b * y) / v,
            (even_b - b * y) / v,
            z,
        ]
    }
}

/// Channels are transformed this many at a time: a register of the widest instruction set.
pub const CHANNELS: usize = 16;

/// Elements of packed weights [O, I, 3, 3].
pub fn packed_len(kernel: MicroKernel<f32, f32, f32>, tile: Tile, i: usize, o: usize) -> usize {
    tile.points() * gemm::packed_len(kernel, i, o)
}

/// Transforms weights [O, I, 3, 3] and packs them: panel by panel of outputs, within it point by point.
///
/// # Panics
/// When `from` or `to` have another length than the shape gives.
pub fn pack<T: Float>(
    kernel: MicroKernel<f32, f32, f32>,
    tile: Tile,
    i: usize,
    o: usize,
    from: &[T],
    to: &mut [f32],
) {
    assert!(from.len() == o * i * 9 && to.len() == packed_len(kernel, tile, i, o));
    if from.is_empty() {
        return;
    }
    let nr = kernel.nr;
    for_each_chunk(to, tile.points() * i * nr, |p, panel| {
        memory::fault_in(panel);
        let outputs = nr.min(o - p * nr);
        let from = &from[p * nr * i * 9..][..outputs * i * 9];
        match tile {
            Tile::Two => transform_panel(Two, from, i, nr, panel),
            Tile::Four => transform_panel(Four, from, i, nr, panel),
        }
    });
}

/// Outputs whose weights are transformed side by side. It divides every kernel's columns.
const SIDE: usize = 8;
/// Input channels that are transposed at a time: with 32 outputs, two blocks of 9 KiB.
const BLOCK: usize = 8;

simd! {
    /// G g Gᵀ of the weights [outputs, i, 3, 3], in f64 and rounded once; `panel` is [points, i, nr].
    fn transform_panel[F: Filtering<M, N>, T: Float, const M: usize, const N: usize](
        s, filtering: F, from: &[T], i: usize, nr: usize, panel: &mut [f32]
    ) {
        let _ = (s, filtering);
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
                    let mut columns = [[[0.0; SIDE]; N]; 3]; // Gg, transposed
                    for (x, column) in columns.iter_mut().enumerate() {
                        times_g::<F, M, N>([&g[x], &g[3 + x], &g[6 + x]], column);
                    }
                    for y in 0..N {
                        let mut row = [[0.0; SIDE]; N];
                        times_g::<F, M, N>([&columns[0][y], &columns[1][y], &columns[2][y]], &mut row);
                        for x in 0..N {
                            let to = &mut panel[((N * y + x) * i + first + c) * nr + j..][..SIDE];
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
fn times_g<F: Filtering<M, N>, const M: usize, const N: usize>(
    g: [&[f64; SIDE]; 3],
    to: &mut [[f64; SIDE]; N],
) {
    for side in 0..SIDE {
        let values = F::times_g(g.map(|g| g[side]));
        for (to, value) in to.iter_mut().zip(values) {
            to[side] = value;
        }
    }
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
    tile: Tile,
    images: Images,
    n: usize,
    x: &[f32],
    b: &[f32],
    out: &mut [f32],
    finish: &Finish<f32, f32>,
) {
    match tile {
        Tile::Two => convolve_by(Two, kernel, images, n, x, b, out, finish),
        Tile::Four => convolve_by(Four, kernel, images, n, x, b, out, finish),
    }
}

fn convolve_by<F: Filtering<M, N>, const M: usize, const N: usize>(
    filtering: F,
    kernel: MicroKernel<f32, f32, f32>,
    images: Images,
    n: usize,
    x: &[f32],
    b: &[f32],
    out: &mut [f32],
    finish: &Finish<f32, f32>,
) {
    let Images { batch, height, width, channels, out_height, out_width, .. } = images;
    let points = N * N;
    assert_eq!(channels % CHANNELS, 0);
    assert_eq!(x.len(), batch * height * width * channels);
    assert_eq!(out.len(), batch * out_height * out_width * n);
    assert_eq!(b.len(), points * gemm::packed_len(kernel, channels, n));
    let nr = kernel.nr;
    let tiles = images.tiles(M);
    if tiles == 0 || n == 0 {
        return;
    }
    let out = DisjointSlice::new(out);
    let k_blocks = channels.div_ceil(KC);
    // All points of a block of outputs wait for its last one: as much memory for either tile.
    let sums = C_BYTES / size_of::<f32>() * Tile::Two.points() / points;
    Blocks::new((tiles, n), F::TILES, kernel.mr, nr, sums).for_each(
        |first, count, column, wide| {
            let panels = column / nr..(column + wide).div_ceil(nr);
            let ldc = gemm::row_len::<f32>(panels.len() * nr);
            SCRATCH.with_borrow_mut(|[v, m, y]| {
                // 1. Bᵀ d B of every tile
                let v: &mut [f32] = gemm::scratch(v, points * k_blocks * count * LDA); // [point, block of k, tile, LDA]
                for t in 0..count {
                    let (image, ty, tx) = images.tile(M, first + t);
                    for block in 0..k_blocks {
                        let channels = block * KC..channels.min((block + 1) * KC);
                        let pixels = images.window(x, (image, M * ty, M * tx), channels.clone());
                        transform_input(
                            filtering,
                            &pixels,
                            &mut v[(block * count + t) * LDA..],
                            k_blocks * count * LDA,
                            KC,
                            0,
                        );
                    }
                }
                // 2. a matrix product for every point
                let m: &mut [f32] = gemm::scratch(m, points * count * ldc); // [point, tile, ldc]
                for point in 0..points {
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
                            let start = ((panels.start + i) * points + point) * channels + at;
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
                let y: &mut [f32] = gemm::scratch(y, M * M * ldc); // [pixel of the tile, ldc]
                for t in 0..count {
                    let (image, ty, tx) = images.tile(M, first + t);
                    transform_output(filtering, &m[t * ldc..], count * ldc, y, ldc);
                    for (i, sums) in y.chunks_exact_mut(ldc).enumerate() {
                        let (oy, ox) = (M * ty + i / M, M * tx + i % M);
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
    /// Tiles of all images, of `m` x `m` outputs.
    pub fn tiles(&self, m: usize) -> usize {
        self.batch * self.out_height.div_ceil(m) * self.out_width.div_ceil(m)
    }

    /// Image, row and column of a tile of `m` x `m` outputs.
    fn tile(&self, m: usize, i: usize) -> (usize, usize, usize) {
        let (down, across) = (self.out_height.div_ceil(m), self.out_width.div_ceil(m));
        (i / across / down, i / across % down, i % across)
    }

    /// Channels of N x N pixels of a padded image from a row and a column on: [row, column].
    fn window<'a, const N: usize>(
        &self,
        images: &'a [f32],
        (image, y, x): (usize, usize, usize),
        channels: std::ops::Range<usize>,
    ) -> [[&'a [f32]; N]; N] {
        std::array::from_fn(|i| {
            std::array::from_fn(|j| self.pixel(images, image, y + i, x + j, channels.clone()))
        })
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

/// factor * x
#[inline(always)]
fn times<S: Simd>(s: S, factor: f64, x: S::F32) -> S::F32 {
    s.mul(s.splat(factor as f32), x)
}

/// a + factor * x
#[inline(always)]
fn add_times<S: Simd>(s: S, a: S::F32, factor: f64, x: S::F32) -> S::F32 {
    s.mul_add(s.splat(factor as f32), x, a)
}

simd! {
    /// Bᵀ d B of a window's channels; point i goes to `to[i * plane..]`, there in runs of `run` channels, `apart` of each
    /// other.
    fn transform_input[F: Filtering<M, N>, const M: usize, const N: usize](
        s, filtering: F, pixels: &[[&[f32]; N]; N], to: &mut [f32], plane: usize, run: usize, apart: usize
    ) {
        let _ = filtering;
        let len = pixels[0][0].len();
        assert!(pixels.iter().flatten().all(|p| p.len() == len));
        assert!(len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(len > 0 && run.is_multiple_of(S::LANES));
        assert!(to.len() >= (N * N - 1) * plane + (len - 1) / run * apart + run.min(len));
        for c in (0..len).step_by(S::LANES) {
            let at = c / run * apart + c % run;
            // SAFETY: c + LANES <= len, which all pixels have; its run fits behind the last plane's start.
            unsafe {
                let mut w = [[s.splat(0.0); N]; N]; // [column, row]
                for x in 0..N {
                    let mut d = [s.splat(0.0); N];
                    for y in 0..N {
                        d[y] = s.load(pixels[y][x].as_ptr().add(c));
                    }
                    w[x] = F::times_b(s, d);
                }
                for y in 0..N {
                    let mut d = [s.splat(0.0); N];
                    for x in 0..N {
                        d[x] = w[x][y];
                    }
                    let row = F::times_b(s, d);
                    for x in 0..N {
                        s.store(to.as_mut_ptr().add((N * y + x) * plane + at), row[x]);
                    }
                }
            }
        }
    }
}

simd! {
    /// Aᵀ m A of all points' channels, point i at `m[i * plane..]`; pixel i goes to `to[i * len..][..len]`.
    fn transform_output[F: Filtering<M, N>, const M: usize, const N: usize](
        s, filtering: F, m: &[f32], plane: usize, to: &mut [f32], len: usize
    ) {
        let _ = filtering;
        assert!(len.is_multiple_of(CHANNELS) && CHANNELS.is_multiple_of(S::LANES));
        assert!(m.len() >= (N * N - 1) * plane + len && to.len() >= M * M * len);
        for c in (0..len).step_by(S::LANES) {
            // SAFETY: c + LANES <= len, which fits behind the last plane's start and M * M times into `to`.
            unsafe {
                let mut w = [[s.splat(0.0); M]; N]; // [column, row]
                for x in 0..N {
                    let mut d = [s.splat(0.0); N];
                    for y in 0..N {
                        d[y] = s.load(m.as_ptr().add((N * y + x) * plane + c));
                    }
                    w[x] = F::times_a(s, d);
                }
                for y in 0..M {
                    let mut d = [s.splat(0.0); N];
                    for x in 0..N {
                        d[x] = w[x][y];
                    }
                    let row = F::times_a(s, d);
                    for x in 0..M {
                        s.store(to.as_mut_ptr().add((M * y + x) * len + c), row[x]);
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

    const G2: [[f64; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

    /// As the module's documentation has it, with a = 3/4 and b = 3/2.
    fn g4() -> [[f64; 3]; 6] {
        let (a, b) = (0.75f64, 1.5f64);
        let (u, v) = (2.0 * a * a * (a * a - b * b), 2.0 * b * b * (b * b - a * a));
        [
            [1.0 / (a * a * b * b), 0.0, 0.0],
            [1.0 / u, a / u, a * a / u],
            [1.0 / u, -a / u, a * a / u],
            [1.0 / v, b / v, b * b / v],
            [1.0 / v, -b / v, b * b / v],
            [0.0, 0.0, 1.0],
        ]
    }

    /// G g Gᵀ as it is written, a matrix product after the other.
    fn definition(matrix: &[[f64; 3]], g: &[f64]) -> Vec<f64> {
        let side = matrix.len();
        let value = |at: usize| {
            let (y, x) = (at / side, at % side);
            let column = |k: usize| (0..3).map(|j| matrix[y][j] * g[3 * j + k]).sum::<f64>();
            (0..3).map(|k| column(k) * matrix[x][k]).sum::<f64>()
        };
        (0..side * side).map(value).collect()
    }

    fn check<T: Float>(tile: Tile, i: usize, o: usize, element: impl Fn(usize) -> T) {
        let weights: Vec<T> = (0..o * i * 9).map(element).collect();
        let matrix = match tile {
            Tile::Two => G2.to_vec(),
            Tile::Four => g4().to_vec(),
        };
        let points = matrix.len() * matrix.len();
        at_each_level(|level| {
            let kernel = f32_kernel(level);
            let mut packed = vec![7.0; packed_len(kernel, tile, i, o)];
            pack(kernel, tile, i, o, &weights, &mut packed);
            for (at, &found) in packed.iter().enumerate() {
                let (rest, j) = (at / kernel.nr, at % kernel.nr);
                let (c, point, n) =
                    (rest % i, rest / i % points, rest / i / points * kernel.nr + j);
                let expected = if n < o {
                    let g: Vec<f64> = weights[(n * i + c) * 9..][..9]
                        .iter()
                        .map(|w| w.to_acc().to_f64())
                        .collect();
                    definition(&matrix, &g)[point]
                } else {
                    0.0
                };
                // In f64 the sums of 9 terms below 2^6 are exact to 2^-40 or better.
                let error = (f64::from(found) - expected).abs();
                let bound = expected.abs() * 2f64.powi(-24) + 2f64.powi(-40);
                assert!(
                    error <= bound,
                    "{}: [{o}, {i}] at {at}: {found}, not {expected}",
                    level.name()
                );
            }
        });
    }

    #[test]
    fn packed_weights_are_the_transform() {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 16.0 - 60.0;
        for tile in [Tile::Two, Tile::Four] {
            for (i, o) in [(16, 1), (16, 33), (48, 64), (3, 7)] {
                check(tile, i, o, value);
                check(tile, i, o, |at| f16::from_f32(value(at)));
                check(tile, i, o, |at| f64::from(value(at)) + 1e-9);
            }
        }
    }
}
