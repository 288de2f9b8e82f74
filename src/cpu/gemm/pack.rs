//! Weights in the layout of the tiles: panels of `nr` columns, all of k behind one another.

use bytemuck::Pod;

use super::kernel::MicroKernel;
use crate::cpu::memory;
use crate::cpu::parallel::for_each_chunk;
use crate::cpu::simd::{self, simd, transpose, widen};
use crate::types::{DType, Element, Float, Real};

/// Where element (k, n) of a matrix B [K, N] stands in what it is packed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// At `k * N + n`: the matrix as it is.
    Matrix,
    /// At `(n * I + i) * taps + tap`: weights [N, I, taps] of a convolution, whose k runs over (tap, i). A linear
    /// layer's have one tap.
    Weights {
        /// Positions of the convolution's kernel.
        taps: usize,
    },
}

impl Order {
    /// Distance between the columns' first elements.
    fn stride(self, k: usize) -> usize {
        if self == Self::Matrix { 1 } else { k }
    }

    /// Distance of a column's element from its first.
    fn offset(self, at: usize, (k, n): (usize, usize)) -> usize {
        match self {
            Self::Matrix => at * n,
            Self::Weights { taps: 1 } => at,
            Self::Weights { taps } => at % (k / taps) * taps + at / (k / taps),
        }
    }
}

/// Elements of packed weights, padding included.
pub fn packed_len<A, B, C>(kernel: MicroKernel<A, B, C>, k: usize, n: usize) -> usize {
    n.next_multiple_of(kernel.nr) * k.next_multiple_of(kernel.step)
}

/// Packs a matrix B [k, n] into `to`, of [`packed_len`] elements, rounded to its type.
///
/// # Panics
/// When `from` or `to` have another length, or `order` has taps that do not divide k.
pub fn pack<T: Float, A, B: Float, C>(
    kernel: MicroKernel<A, B, C>,
    (k, n): (usize, usize),
    from: &[T],
    order: Order,
    to: &mut [B],
) {
    assert_eq!(to.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    assert_eq!(from.len(), k * n, "weights of [{k}, {n}]");
    let MicroKernel { nr, step, .. } = kernel;
    let panel_len = k.next_multiple_of(step) * nr;
    if panel_len == 0 {
        return;
    }
    for_each_chunk(to, panel_len, |p, panel| {
        memory::fault_in(panel);
        let columns = nr.min(n - p * nr);
        match order {
            Order::Weights { taps } if B::DTYPE == DType::F32 && T::Acc::DTYPE == DType::F32 => {
                let from = &from[p * nr * k..][..columns * k];
                transpose_panel(from, k, taps, nr, bytemuck::cast_slice_mut(panel));
            }
            Order::Weights { .. } if T::DTYPE != B::DTYPE => {
                let from: Vec<B> = round(&from[p * nr * k..][..columns * k]);
                gather_panel((k, n), &from, order, (nr, columns, step), panel);
            }
            Order::Matrix if T::DTYPE != B::DTYPE => {
                let from: Vec<B> = round(&from[p * nr..]);
                gather_panel((k, n), &from, order, (nr, columns, step), panel);
            }
            _ => {
                let from = bytemuck::cast_slice(&from[p * nr * order.stride(k)..]);
                gather_panel((k, n), from, order, (nr, columns, step), panel);
            }
        }
    });
}

/// Packs the rows of `from` [n, k], the columns of B, into `to`, of [`packed_len`] elements, as they are.
///
/// # Panics
/// When `from` or `to` have another length.
pub fn pack_rows<A, B: Pod + Send + Sync, C>(
    kernel: MicroKernel<A, B, C>,
    (k, n): (usize, usize),
    from: &[B],
    to: &mut [B],
) {
    assert_eq!(to.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    assert_eq!(from.len(), k * n, "weights of [{k}, {n}]");
    let MicroKernel { nr, step, .. } = kernel;
    let panel_len = k.next_multiple_of(step) * nr;
    if panel_len == 0 {
        return;
    }
    for_each_chunk(to, panel_len, |p, panel| {
        let columns = nr.min(n - p * nr);
        let order = Order::Weights { taps: 1 };
        gather_panel((k, n), &from[p * nr * k..], order, (nr, columns, step), panel);
    });
}

/// Fills a panel element by element; `from` begins with its first column.
fn gather_panel<B: Pod>(
    (k, n): (usize, usize),
    from: &[B],
    order: Order,
    (nr, columns, step): (usize, usize, usize),
    panel: &mut [B],
) {
    let stride = order.stride(k);
    for (i, group) in panel.chunks_exact_mut(nr * step).enumerate() {
        for s in 0..step {
            let at = i * step + s;
            let columns = if at < k { columns } else { 0 };
            let offset = if at < k { order.offset(at, (k, n)) } else { 0 };
            for j in 0..columns {
                group[j * step + s] = from[j * stride + offset];
            }
            for j in columns..nr {
                group[j * step + s] = B::zeroed();
            }
        }
    }
}

/// Elements of a column that are transposed at a time: with 32 columns, two blocks of 8 KiB.
const BLOCK: usize = 64;

simd! {
    /// Fills an f32 panel [k, nr] from its columns [columns, k]: whole registers at a time, since a model's loading is
    /// to a good part this.
    fn transpose_panel[T: Float](s, from: &[T], k: usize, taps: usize, nr: usize, panel: &mut [f32]) {
        let _ = s;
        let (columns, inputs) = (from.len() / k, k / taps);
        let (mut rows, mut transposed) = (vec![0.0; nr * BLOCK], vec![0.0; BLOCK * nr]);
        for first in (0..k).step_by(BLOCK) {
            let len = BLOCK.min(k - first);
            let (rows, transposed) = (&mut rows[..nr * len], &mut transposed[..len * nr]); // [nr, len], [len, nr]
            rows[columns * len..].fill(0.0);
            for (row, from) in rows.chunks_exact_mut(len).zip(from.chunks_exact(k)) {
                widen(&from[first..first + len], bytemuck::cast_slice_mut(row));
            }
            if taps == 1 {
                transpose(rows, nr, len, &mut panel[first * nr..][..len * nr]);
                continue;
            }
            transpose(rows, nr, len, transposed);
            for (i, row) in transposed.chunks_exact(nr).enumerate() {
                let (input, tap) = ((first + i) / taps, (first + i) % taps);
                panel[(tap * inputs + input) * nr..][..nr].copy_from_slice(row);
            }
        }
    }
}

/// Undoes [`pack`] of weights that it did not round.
///
/// # Panics
/// When `from` or `to` have another length.
pub fn unpack<A, B: Copy, C>(
    kernel: MicroKernel<A, B, C>,
    (k, n): (usize, usize),
    from: &[B],
    order: Order,
    to: &mut [B],
) {
    assert_eq!(from.len(), packed_len(kernel, k, n), "packed weights of [{k}, {n}]");
    assert_eq!(to.len(), k * n, "weights of [{k}, {n}]");
    for column in 0..n {
        for (row, value) in column_of(kernel, (k, n), from, column).enumerate() {
            to[column * order.stride(k) + order.offset(row, (k, n))] = value;
        }
    }
}

/// Column `column` [k] of packed weights [k, n], from the top.
///
/// # Panics
/// When `from` is shorter than those.
pub fn column_of<A, B: Copy, C>(
    kernel: MicroKernel<A, B, C>,
    (k, n): (usize, usize),
    from: &[B],
    column: usize,
) -> impl Iterator<Item = B> {
    assert!(column < n, "column {column} of {n}");
    let MicroKernel { nr, step, .. } = kernel;
    let first = column / nr * k.next_multiple_of(step) * nr + column % nr * step;
    (0..k).map(move |row| from[first + row / step * nr * step + row % step])
}

/// Rounds to another floating-point type, in pieces that whole registers work on.
fn round<T: Float, B: Float>(from: &[T]) -> Vec<B> {
    let mut to = vec![B::zeroed(); from.len()];
    let (mut wide, mut other) = ([T::Acc::ZERO; 256], [B::Acc::ZERO; 256]);
    for (from, to) in from.chunks(wide.len()).zip(to.chunks_mut(other.len())) {
        let (wide, other) = (&mut wide[..from.len()], &mut other[..from.len()]);
        widen(from, wide);
        if T::Acc::DTYPE == B::Acc::DTYPE {
            simd::narrow(bytemuck::cast_slice(wide), to);
        } else {
            for (o, w) in other.iter_mut().zip(wide) {
                *o = B::Acc::from_f64(w.to_f64());
            }
            simd::narrow(other, to);
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::super::{bf16_kernel, f16_kernel, f32_kernel};
    use super::*;

    /// Packs [k, n] and holds every element, and the zeros around them, against the definition.
    fn check<T: Float, A, B: Float, C>(
        kernel: MicroKernel<A, B, C>,
        (k, n): (usize, usize),
        order: Order,
        element: impl Fn(usize) -> T,
        rounded: impl Fn(T) -> B,
    ) {
        let from: Vec<T> = (0..k * n).map(element).collect();
        let mut packed = vec![B::from_acc(B::Acc::from_f64(7.0)); packed_len(kernel, k, n)];
        pack(kernel, (k, n), &from, order, &mut packed);
        let MicroKernel { nr, step, .. } = kernel;
        let padded = k.next_multiple_of(step);
        for (i, &found) in packed.iter().enumerate() {
            let (panel, rest) = (i / (padded * nr), i % (padded * nr));
            let (row, column) =
                (rest / (nr * step) * step + rest % step, panel * nr + rest % (nr * step) / step);
            let expected = if row < k && column < n {
                let at = match order {
                    Order::Matrix => row * n + column,
                    Order::Weights { taps } => {
                        let inputs = k / taps;
                        (column * inputs + row % inputs) * taps + row / inputs
                    }
                };
                rounded(from[at])
            } else {
                B::zeroed()
            };
            assert_eq!(found, expected, "{order:?} [{k}, {n}]: row {row}, column {column}");
        }
    }

    #[test]
    fn every_element_is_where_the_tile_reads_it() {
        let value = |i: usize| ((i * 7919) % 2003) as f32 / 16.0 - 60.0;
        simd::at_each_level(|level| {
            for shape in [(1, 1), (65, 33), (64, 32), (9, 7), (198, 65), (0, 5), (5, 0)] {
                for order in [Order::Matrix, Order::Weights { taps: 1 }] {
                    check(f32_kernel(level), shape, order, value, |x| x);
                    check(
                        f32_kernel(level),
                        shape,
                        order,
                        |i| f16::from_f32(value(i)),
                        f16::to_f32,
                    );
                    check(f16_kernel(level), shape, order, value, f16::from_f32);
                    check(bf16_kernel(level), shape, order, value, bf16::from_f32);
                    check(f32_kernel(level), shape, order, |i| f64::from(value(i)), |x| x as f32);
                }
            }
            for shape in [(9, 1), (9 * 33, 65), (9 * 16, 32)] {
                let order = Order::Weights { taps: 9 };
                check(f32_kernel(level), shape, order, |i| bf16::from_f32(value(i)), bf16::to_f32);
                check(bf16_kernel(level), shape, order, value, bf16::from_f32);
            }
        });
    }
}
