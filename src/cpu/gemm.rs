//! Matrix product over weights packed once: `C[m, n] = A[m, k] * B[k, n]`.
//!
//! * **B** is packed when a model is loaded ([`pack`]) into panels of `nr` columns, all of k behind one
//!   another, which a tile reads as one stream.
//! * **A** is gathered block by block ([`Rows`]): rows of a matrix, or the patches of a convolution, which
//!   are never written out as a whole.
//! * **C** is summed in a scratch block that stays in the L2, and leaves it once, through a function of
//!   the caller (bias, activation, residual, rounding).
//!
//! Blocks of k have a fixed length ([`KC`]) and are added in ascending order, and inside a block every
//! output is one chain of multiply-adds: the bits of an output depend on its row of A and its column of
//! B alone, neither on the other rows nor on the number of threads. How m and n are cut may therefore
//! follow the shape of the whole batch.

mod kernel;

use std::cell::RefCell;

use bytemuck::{Pod, Zeroable};
use rayon::prelude::*;

use crate::tensor::Float;

use kernel::LDA;
pub use kernel::{KC, Kernel, bf16_dot_kernel, bf16_kernel, f16_kernel, f32_kernel, f64_kernel};

/// Most rows of a block of A: 144 x 336 f32 are 190 KiB of an L2 that the block shares with C's.
const MC: usize = 144;

/// Most bytes of a block of C.
const C_BYTES: usize = 192 << 10;

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

/// Elements of packed weights, padding included.
pub fn packed_len<A, B, C>(kernel: Kernel<A, B, C>, k: usize, n: usize) -> usize {
    n.next_multiple_of(kernel.nr) * k.next_multiple_of(kernel.step)
}

/// Packs a matrix B [k, n], whose element (k, n) is `from[n * stride + offset(k)]`, into `to`, of
/// [`packed_len`] elements.
///
/// # Panics
/// When `to` has another length, or `from` does not hold an element.
pub fn pack<T: Float, A, B: Float, C>(
    kernel: Kernel<A, B, C>,
    (k, n): (usize, usize),
    from: &[T],
    stride: usize,
    offset: impl Fn(usize) -> usize + Sync,
    to: &mut [B],
) {
    assert_eq!(to.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    let Kernel { nr, step, .. } = kernel;
    let panel_len = k.next_multiple_of(step) * nr;
    if panel_len == 0 {
        return;
    }
    to.par_chunks_mut(panel_len).enumerate().for_each(|(p, panel)| {
        let columns = nr.min(n - p * nr);
        for (i, group) in panel.chunks_exact_mut(nr * step).enumerate() {
            for s in 0..step {
                let at = i * step + s;
                if at == k {
                    (0..nr).for_each(|j| group[j * step + s] = B::zeroed());
                    continue;
                }
                let offset = offset(at);
                for j in 0..columns {
                    group[j * step + s] = cast(from[(p * nr + j) * stride + offset]);
                }
                (columns..nr).for_each(|j| group[j * step + s] = B::zeroed());
            }
        }
    });
}

/// Rounds to another floating-point type.
#[inline(always)]
fn cast<T: Float, B: Float>(x: T) -> B {
    use crate::tensor::Real;
    if T::DTYPE == B::DTYPE {
        bytemuck::cast(x)
    } else {
        B::from_acc(B::Acc::from_f64(x.to_acc().to_f64()))
    }
}

/// Computes `m` rows of the product of A, gathered from `x`, and of packed weights [k, n], and hands them to
/// `finish(row, column, sums, out)` piece by piece: `sums` are the products of `row` from `column` on, `out`
/// their places in the whole output [m, n].
///
/// # Panics
/// When `b` or `out` have a length other than k, n and m give, or `rows` points outside of `x`.
pub fn gemm<T: Float, A: Float, B: Float, C: Float>(
    kernel: Kernel<A, B, C>,
    (m, n, k): (usize, usize, usize),
    x: &[T],
    rows: &impl Rows,
    b: &[B],
    out: &mut [T],
    finish: &(impl Fn(usize, usize, &mut [C], &mut [T]) + Sync),
) {
    assert_eq!(b.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    assert_eq!(out.len(), m * n, "output of [{m}, {n}]");
    if m == 0 || n == 0 {
        return;
    }
    let grid = Grid::new(m, n, kernel.mr, kernel.nr, size_of::<C>());
    let product = Product { kernel, k, x, rows, b };
    let out = Shared(out.as_mut_ptr());
    (0..grid.m_blocks * grid.n_blocks).into_par_iter().with_max_len(1).for_each(|i| {
        // Neighbours share columns, and so the part of B that is in the caches.
        let (row, column) = (i % grid.m_blocks * grid.mc, i / grid.m_blocks * grid.nc);
        let (height, width) = (grid.mc.min(m - row), grid.nc.min(n - column));
        product.block(row, height, column, width, |r, sums| {
            // SAFETY: rows [row, row + height) x columns [column, column + width) lie inside of `out`, and
            // blocks of different i do not overlap, so this is the only reference to these elements.
            let out =
                unsafe { std::slice::from_raw_parts_mut(out.at((row + r) * n + column), width) };
            finish(row + r, column, sums, out);
        });
    });
}

/// The output's start, for threads that write disjoint parts of it.
struct Shared<T>(*mut T);
// SAFETY: a plain address; whoever dereferences it answers for that.
unsafe impl<T: Send> Sync for Shared<T> {}
impl<T> Shared<T> {
    fn at(&self, i: usize) -> *mut T {
        self.0.wrapping_add(i)
    }
}

/// How the output is cut into blocks.
struct Grid {
    mc: usize,
    nc: usize,
    m_blocks: usize,
    n_blocks: usize,
}

impl Grid {
    fn new(m: usize, n: usize, mr: usize, nr: usize, size: usize) -> Self {
        let mc = m.div_ceil(m.div_ceil(MC)).next_multiple_of(mr);
        let m_blocks = m.div_ceil(mc);
        let panels = n.div_ceil(nr);
        let most = (C_BYTES / size / mc / nr).max(1);
        // Few rows leave too few blocks for all threads: cut n further.
        let wanted = (2 * rayon::current_num_threads()).div_ceil(m_blocks).min(panels);
        let nc = panels.div_ceil(panels.div_ceil(most).max(wanted)) * nr;
        Self { mc, nc, m_blocks, n_blocks: n.div_ceil(nc) }
    }
}

/// What all blocks of one product share.
struct Product<'a, T, A: 'static, B: 'static, C: 'static, R> {
    kernel: Kernel<A, B, C>,
    k: usize,
    x: &'a [T],
    rows: &'a R,
    b: &'a [B],
}

/// A cache line, to align scratch memory by.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    /// Blocks of A and C, kept from call to call.
    static SCRATCH: RefCell<[Vec<Line>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// The first `len` elements of scratch memory, grown to hold them.
fn scratch<T: Pod>(lines: &mut Vec<Line>, len: usize) -> &mut [T] {
    let needed = (len * size_of::<T>()).div_ceil(size_of::<Line>());
    if lines.len() < needed {
        lines.resize(needed, Line::zeroed());
    }
    &mut bytemuck::cast_slice_mut(lines)[..len]
}

impl<T: Float, A: Float, B: Float, C: Float, R: Rows> Product<'_, T, A, B, C, R> {
    /// Computes one block of the output; `finish(row of the block, sums)` takes its rows.
    fn block(
        &self,
        row: usize,
        height: usize,
        column: usize,
        width: usize,
        mut finish: impl FnMut(usize, &mut [C]),
    ) {
        let Kernel { mr, nr, step, tile } = self.kernel;
        let k_padded = self.k.next_multiple_of(step);
        let panels = column / nr..(column + width).div_ceil(nr);
        // An odd number of lines, so that the rows of a tile lie in different sets of the caches.
        let line = 64 / size_of::<C>();
        let ldc = ((panels.len() * nr).div_ceil(line) | 1) * line;
        SCRATCH.with_borrow_mut(|[a, c]| {
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
                for p in panels.clone() {
                    let b = &self.b[(p * k_padded + k0) * nr..][..kc * nr];
                    let c = &mut c[(p - panels.start) * nr..];
                    for r in (0..height).step_by(mr) {
                        let rows = mr.min(height - r);
                        let (a, c) = (
                            &a[r * LDA..][..rows * LDA],
                            &mut c[r * ldc..][..(rows - 1) * ldc + nr],
                        );
                        // SAFETY: kc is a multiple of `step` (KC is even) and at most KC; the slices have just
                        // been cut to what the tile reads and writes; scratch, panels and ldc are whole
                        // lines; the kernel was chosen for this machine; c is written before it is added to.
                        unsafe {
                            tile(rows, kc, a.as_ptr(), b.as_ptr(), c.as_mut_ptr(), ldc, k0 > 0)
                        };
                    }
                }
            }
            for r in 0..height {
                finish(r, &mut c[r * ldc..][..width]);
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

/// Copies, or widens 16-bit values to f32.
#[inline(always)]
fn convert<T: Float, A: Float>(from: &[T], to: &mut [A]) {
    if T::DTYPE == A::DTYPE {
        to.copy_from_slice(bytemuck::cast_slice(from));
    } else {
        crate::cpu::simd::widen(from, bytemuck::cast_slice_mut(to));
    }
}
