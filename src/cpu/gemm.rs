//! Matrix product over weights packed once: `C[m, n] = A[m, k] * B[k, n]`.
//!
//! * **B** is packed when a model is loaded ([`pack`]) into panels of `nr` columns, all of k behind one
//!   another, which a tile reads as one stream.
//! * **A** is gathered block by block ([`Rows`]): rows of a matrix, or the patches of a convolution, which
//!   are never written out as a whole.
//! * **C** is summed in a scratch block that stays in the L2, and leaves it once, through a function of
//!   the caller (bias, activation, residual, rounding).
//!
//! Few rows, as a decoder's step has, are cut otherwise: a tile of them all goes through a panel from its beginning to its end,
//! so that weights come from memory as one stream, and once.
//!
//! Blocks of k have a fixed length ([`KC`]) and are added in ascending order, and inside a block every
//! output is one chain of multiply-adds: the bits of an output depend on its row of A and its column of
//! B alone, neither on the other rows nor on the number of threads. How m and n are cut may therefore
//! follow the shape of the whole batch.

mod kernel;
mod pack;

use std::cell::RefCell;
use std::ops::Range;

use super::parallel::{self, DisjointSlice};
use super::simd;
use crate::types::Float;
use bytemuck::{Pod, Zeroable};

pub(super) use kernel::LDA;
pub use kernel::{
    KC, MicroKernel, bf16_dot_kernel, bf16_kernel, f16_kernel, f32_kernel, f64_kernel, i8_kernel,
};
pub use pack::{Order, column_of, pack, pack_rows, packed_len, unpack};

/// Most rows of a block of A: 144 x 336 f32 are 190 KiB of an L2 that the block shares with C's.
const MC: usize = 144;

/// Panels of a piece of work where rows are few, at most: as many as 1.5 MiB of f32 at a k of 768.
const PANELS: usize = 16;

/// Most bytes of a block of C beside one of A in f32. Beside a smaller one it has its room too: the wider it is, the fewer times A is
/// gathered.
pub(super) const C_BYTES: usize = 192 << 10;

/// Where the elements of a row of A stand in the tensor that A is made of.
pub trait Rows: Sync {
    /// Calls `emit(start, len)` for the pieces of A's row `row` from column `k` on, `len` columns in all;
    /// a piece is `len` neighbours from index `start`, or zeros where there is no `start`.
    fn pieces(&self, row: usize, k: usize, len: usize, emit: impl FnMut(Option<usize>, usize));
}

/// The rows of a row-major matrix, `stride` elements apart.
pub struct Dense {
    /// Distance between rows.
    pub stride: usize,
}

impl Rows for Dense {
    #[inline(always)]
    fn pieces(&self, row: usize, k: usize, len: usize, mut emit: impl FnMut(Option<usize>, usize)) {
        emit(Some(row * self.stride + k), len);
    }
}

/// What becomes of a piece of a row of sums: `finish(row, column, sums, out)`. `sums` are those of `row` from
/// `column` on, `out` their places in the whole output [m, n].
pub type Finish<'a, T, C> = dyn Fn(usize, usize, &mut [C], &mut [T]) + Sync + 'a;

/// Computes `m` rows of the product of A, gathered from `x`, and of packed weights [k, n], and hands them to
/// `finish`.
///
/// # Panics
/// When `b` or `out` have a length other than k, n and m give, or `rows` points outside of `x`.
pub fn gemm<T: Float, A: Float, B: Pod + Sync, C: Float>(
    kernel: MicroKernel<A, B, C>,
    (m, n, k): (usize, usize, usize),
    x: &[T],
    rows: &impl Rows,
    b: &[B],
    out: &mut [T],
    finish: &Finish<T, C>,
) {
    assert_eq!(b.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    assert_eq!(out.len(), m * n, "output of [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    let product = Product { kernel, k, x, rows, b };
    let out = DisjointSlice::new(out);
    if m <= kernel.mr && k > 0 && m * k.div_ceil(KC) <= MC {
        let panels = n.div_ceil(kernel.nr);
        return parallel::for_each_range(panels.div_ceil(2), PANELS / 2, &|pairs| {
            let panels = 2 * pairs.start..panels.min(2 * pairs.end);
            product.few_rows(m, panels, |r, panel, sums| {
                let column = panel * kernel.nr;
                let width = kernel.nr.min(n - column);
                // SAFETY: these columns of all rows belong to this piece alone.
                let out = unsafe { out.part(r * n + column, width) };
                finish(r, column, &mut sums[..width], out);
            });
        });
    }
    let c_bytes = C_BYTES + MC * KC * size_of::<f32>().saturating_sub(size_of::<A>());
    Blocks::new((m, n), MC, kernel.mr, kernel.nr, c_bytes / size_of::<C>()).for_each(
        |row, height, column, width| {
            product.block(row, height, column, width, |r, sums| {
                // SAFETY: these columns of this row belong to this block alone.
                let out = unsafe { out.part((row + r) * n + column, width) };
                finish(row + r, column, sums, out);
            });
        },
    );
}

/// How the output is cut into blocks.
pub(super) struct Blocks {
    m: usize,
    n: usize,
    mc: usize,
    nc: usize,
    m_blocks: usize,
}

impl Blocks {
    /// Cuts [m, n] into blocks of at most `rows` rows (and of whole tiles), and about `sums` sums at most.
    pub(super) fn new(
        (m, n): (usize, usize),
        rows: usize,
        mr: usize,
        nr: usize,
        sums: usize,
    ) -> Self {
        let mc = m.div_ceil(m.div_ceil(rows)).next_multiple_of(mr);
        let m_blocks = m.div_ceil(mc);
        let panels = n.div_ceil(nr);
        let most = (sums / mc / nr).max(1);
        // Few rows leave too few blocks for all threads: cut n further.
        let wanted = (2 * rayon::current_num_threads()).div_ceil(m_blocks).min(panels);
        let nc = panels.div_ceil(panels.div_ceil(most).max(wanted)) * nr;
        Self { m, n, mc, nc, m_blocks }
    }

    /// Calls `work(row, height, column, width)` for every block, on all threads.
    pub(super) fn for_each(&self, work: impl Fn(usize, usize, usize, usize) + Sync) {
        let blocks = self.m_blocks * self.n.div_ceil(self.nc);
        parallel::for_each(blocks, &|i| {
            // Neighbours share columns, and so the part of B that is in the caches.
            let (row, column) = (i % self.m_blocks * self.mc, i / self.m_blocks * self.nc);
            work(row, self.mc.min(self.m - row), column, self.nc.min(self.n - column));
        });
    }
}

/// What all blocks of one product share.
struct Product<'a, T, A: 'static, B: 'static, C: 'static, R> {
    kernel: MicroKernel<A, B, C>,
    k: usize,
    x: &'a [T],
    rows: &'a R,
    b: &'a [B],
}

/// A cache line, to align scratch memory by.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
pub(crate) struct Line([u8; 64]);

thread_local! {
    /// Blocks of A and C, and a third for whom else needs one, kept from call to call.
    pub(crate) static SCRATCH: RefCell<[Vec<Line>; 3]> =
        const { RefCell::new([Vec::new(), Vec::new(), Vec::new()]) };
}

/// The first `len` elements of scratch memory, grown to hold them.
pub(crate) fn scratch<T: Pod>(lines: &mut Vec<Line>, len: usize) -> &mut [T] {
    let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line::zeroed());
    }
    &mut bytemuck::cast_slice_mut(lines)[..len]
}

impl<T: Float, A: Float, B: Pod + Sync, C: Float, R: Rows> Product<'_, T, A, B, C, R> {
    /// Computes one block of the output; `finish(row of the block, sums)` takes its rows.
    fn block(
        &self,
        row: usize,
        height: usize,
        column: usize,
        width: usize,
        mut finish: impl FnMut(usize, &mut [C]),
    ) {
        let nr = self.kernel.nr;
        let panels = column / nr..(column + width).div_ceil(nr);
        let k_padded = self.k.next_multiple_of(self.kernel.step);
        let ldc = row_len::<C>(panels.len() * nr);
        SCRATCH.with_borrow_mut(|[a, c, _]| {
            let a: &mut [A] = scratch(a, height * LDA);
            let c: &mut [C] = scratch(c, height * ldc);
            if self.k == 0 {
                c.fill(C::zeroed());
            }
            for k0 in (0..k_padded).step_by(KC) {
                let kc = KC.min(k_padded - k0);
                for r in 0..height {
                    self.gather(row + r, k0, &mut a[r * LDA..][..kc]);
                }
                let panel = |i: usize| {
                    let (p, k0) = if i < panels.len() { (i, k0) } else { (0, k0 + KC) };
                    let kc = KC.min(k_padded.saturating_sub(k0));
                    &self.b[((panels.start + p) * k_padded + k0.min(k_padded)) * nr..][..kc * nr]
                };
                multiply_block(self.kernel, (height, kc), a, panels.len(), panel, c, ldc, k0 > 0);
            }
            for r in 0..height {
                finish(r, &mut c[r * ldc..][..width]);
            }
        });
    }

    /// Computes panels of all of at most `mr` rows; `finish(row, panel, sums)` takes a row of a panel. Sums are those of
    /// [`Self::block`], in its order.
    fn few_rows(
        &self,
        rows: usize,
        panels: Range<usize>,
        mut finish: impl FnMut(usize, usize, &mut [C]),
    ) {
        let MicroKernel { nr, step, tile, row, at_once, .. } = self.kernel;
        let at_once = if rows == 1 { at_once } else { 1 };
        let k_padded = self.k.next_multiple_of(step);
        let ldc = row_len::<C>(nr);
        SCRATCH.with_borrow_mut(|[a, c, _]| {
            let a: &mut [A] = scratch(a, k_padded.div_ceil(KC) * rows * LDA);
            let c: &mut [C] = scratch(c, rows * at_once * ldc);
            for (k0, a) in (0..k_padded).step_by(KC).zip(a.chunks_exact_mut(rows * LDA)) {
                for (r, a) in a.chunks_exact_mut(LDA).enumerate() {
                    self.gather(r, k0, &mut a[..KC.min(k_padded - k0)]);
                }
            }
            for first in panels.clone().step_by(at_once) {
                let count = at_once.min(panels.end - first);
                let len = k_padded * nr;
                let b = &self.b[first * len..][..count * len];
                assert!((b.as_ptr() as usize).is_multiple_of((nr * size_of::<B>()).min(64)));
                for (k0, a) in (0..k_padded).step_by(KC).zip(a.chunks_exact(rows * LDA)) {
                    let kc = KC.min(k_padded - k0);
                    let (a, b, c) = (a.as_ptr(), b[k0 * nr..].as_ptr(), c.as_mut_ptr());
                    // SAFETY: `rows` rows of A and C, or one and `count` of C, and kc of each panel are there, C is a scratch
                    // block of whole cache lines, B's alignment was checked, and the kernel was chosen for this machine.
                    unsafe {
                        match rows {
                            1 => row(count, kc, a, b, len, c, ldc, k0 > 0),
                            _ => tile(rows, kc, a, b, c, ldc, k0 > 0),
                        }
                    }
                }
                for (i, sums) in c.chunks_exact_mut(ldc).take(rows * count).enumerate() {
                    // One of the two counts.
                    finish(i % rows, first + i / rows, &mut sums[..nr]);
                }
            }
        });
    }

    /// Fills `to` with A's row from column k0 on, and with zeros behind its end.
    fn gather(&self, row: usize, k0: usize, to: &mut [A]) {
        let len = to.len().min(self.k - k0);
        let mut at = 0;
        self.rows.pieces(row, k0, len, |start, len| {
            let to = &mut to[at..at + len];
            match start {
                Some(start) => convert(&self.x[start..start + len], to),
                None => to.fill(A::zeroed()),
            }
            at += len;
        });
        to[at..].fill(A::zeroed());
    }
}

/// Elements between rows of a block of C of this width: an odd number of cache lines, so that the rows of
/// a tile lie in different sets of the caches.
pub(super) fn row_len<C>(width: usize) -> usize {
    let line = size_of::<Line>() / size_of::<C>();
    (width.div_ceil(line) | 1) * line
}

/// Multiplies a block `a` of A, rows [`LDA`] apart, by panels of B: `c (+)= a * [panel(0), panel(1), ..]`.
/// `panel(panels)` is what will be read after these.
pub(super) fn multiply_block<'b, A: Copy, B: Copy + 'b, C: Copy>(
    kernel: MicroKernel<A, B, C>,
    (height, kc): (usize, usize),
    a: &[A],
    panels: usize,
    panel: impl Fn(usize) -> &'b [B],
    c: &mut [C],
    ldc: usize,
    accumulate: bool,
) {
    let MicroKernel { mr, nr, step, tile, .. } = kernel;
    assert!(kc <= KC && kc.is_multiple_of(step) && ldc >= panels * nr);
    assert!((c.as_ptr() as usize | (ldc * size_of::<C>())).is_multiple_of(64));
    for p in 0..panels {
        let b = panel(p);
        assert!(
            b.len() == kc * nr
                && (b.as_ptr() as usize).is_multiple_of((nr * size_of::<B>()).min(64))
        );
        // While the tiles of this panel run, the next comes into the L2, a share with each.
        let next = panel(p + 1);
        let mut ahead = next.chunks(next.len().div_ceil(height.div_ceil(mr)).max(1));
        for r in (0..height).step_by(mr) {
            let rows = mr.min(height - r);
            prefetch(ahead.next().unwrap_or_default());
            let (a, c) =
                (&a[r * LDA..][..rows * LDA], &mut c[r * ldc + p * nr..][..(rows - 1) * ldc + nr]);
            // SAFETY: the slices have just been cut to what the tile reads and writes, lengths and alignment
            // were checked above, and the kernel was chosen for this machine.
            unsafe { tile(rows, kc, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), ldc, accumulate) };
        }
    }
}

/// Copies, or widens 16-bit values to f32.
#[inline(always)]
fn convert<T: Float, A: Float>(from: &[T], to: &mut [A]) {
    if T::DTYPE == A::DTYPE {
        to.copy_from_slice(bytemuck::cast_slice(from));
    } else {
        simd::widen(from, bytemuck::cast_slice_mut(to));
    }
}

/// Asks for memory that will be read soon.
#[inline(always)]
pub fn prefetch<T>(memory: &[T]) {
    #[cfg(all(target_arch = "x86_64", not(nadir_portable)))]
    for line in (0..size_of_val(memory)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a hint, which reads nothing; SSE is in every x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(memory.as_ptr().cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(all(target_arch = "x86_64", not(nadir_portable))))]
    let _ = memory;
}
