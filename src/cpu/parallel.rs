//! Work shared out over the threads, as pieces of one output.
//!
//! Every loop of rayon is compiled anew for each closure and element type, which for operations that are generic
//! over both is most of a build. Here the closure goes behind a pointer: one loop for all, at the price of one
//! indirect call a piece.

use rayon::prelude::*;

/// Elements that a piece of work has at least: below this, handing it out costs more than doing it.
const PIECE: usize = 1 << 14;

/// Calls `f(i)` for every `i` below `n`.
pub fn for_each(n: usize, f: &(dyn Fn(usize) + Sync)) {
    if n <= 1 {
        (0..n).for_each(f);
    } else {
        (0..n).into_par_iter().with_max_len(1).for_each(f);
    }
}

/// Calls `f(i, chunk)` for every chunk of `out` of `len` elements; the last may be shorter.
///
/// # Panics
/// When `len` is 0 and `out` is not empty.
pub fn for_each_chunk<T: Send>(out: &mut [T], len: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let total = out.len();
    if total == 0 {
        return;
    }
    let out = Shared(out.as_mut_ptr());
    for_each(total.div_ceil(len), &|i| {
        let start = i * len;
        // SAFETY: start < total, the chunk ends at `total` at the latest, and chunks of different i do not overlap,
        // so this is the only reference to its elements while `out` is borrowed.
        let chunk =
            unsafe { std::slice::from_raw_parts_mut(out.at(start), len.min(total - start)) };
        f(i, chunk);
    });
}

/// Calls `f(i, row)` for every row of `width` elements; rows are handed out in groups that are worth it.
///
/// # Panics
/// When `width` does not divide the length of `out`.
pub fn for_each_row<T: Send>(out: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if out.is_empty() {
        return;
    }
    assert_eq!(out.len() % width, 0, "rows of {width} in {} elements", out.len());
    let rows = PIECE.div_ceil(width);
    for_each_chunk(out, rows * width, |i, chunk| {
        chunk.chunks_exact_mut(width).enumerate().for_each(|(j, row)| f(i * rows + j, row));
    });
}

/// A pointer that threads may take pieces from.
struct Shared<T>(*mut T);

// SAFETY: the pointer comes from an exclusive borrow of `Send` elements, and every thread takes its own piece.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// `i` is inside of the slice that the pointer was made of.
    unsafe fn at(&self, i: usize) -> *mut T {
        // SAFETY: the caller's promise.
        unsafe { self.0.add(i) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_is_visited_once() {
        for (total, len) in [(0, 3), (1, 3), (7, 3), (9, 3), (100_001, 1 << 14)] {
            let mut out = vec![0usize; total];
            for_each_chunk(&mut out, len, |i, chunk| chunk.iter_mut().for_each(|x| *x += i + 1));
            assert!(out.iter().enumerate().all(|(k, &x)| x == k / len + 1), "{total} in {len}");
        }
        for (rows, width) in [(0, 5), (3, 5), (70_000, 3), (5, 40_000)] {
            let mut out = vec![0usize; rows * width];
            for_each_row(&mut out, width, |i, row| row.iter_mut().for_each(|x| *x += i + 1));
            assert!(out.iter().enumerate().all(|(k, &x)| x == k / width + 1), "{rows} of {width}");
        }
    }
}
