//! Work shared out over the threads, as pieces of one output.
//!
//! Every loop of rayon is compiled anew for each closure and element type, which for operations that are generic
//! over both is most of a build. Here the closure goes behind a pointer: one loop for all, at the price of one
//! indirect call a piece.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

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

/// Calls `f` with ranges that make up `0..n`, for pieces that are the better done the more of them follow each other. A range is
/// half of a thread's share of what is left, `most` at most: the last ones are short, so that no thread waits long for another.
pub fn for_each_range(n: usize, most: usize, f: &(dyn Fn(Range<usize>) + Sync)) {
    let threads = rayon::current_num_threads();
    let begun = AtomicUsize::new(0);
    let end = |start: usize| start + ((n - start) / (2 * threads)).clamp(1, most.max(1));
    let next = |start: usize| (start < n).then(|| end(start));
    for_each(threads.min(n), &|_| {
        while let Ok(start) = begun.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            f(start..end(start));
        }
    });
}

/// As [`for_each`], with a function that may fail.
///
/// # Errors
/// One of those that `f` ended in; what was not begun by then is left out.
pub fn try_for_each<E: Send>(
    n: usize,
    f: &(dyn Fn(usize) -> Result<(), E> + Sync),
) -> Result<(), E> {
    let failure = Mutex::new(None);
    let failed = AtomicBool::new(false);
    for_each(n, &|i| {
        if failed.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = f(i) {
            failed.store(true, Ordering::Relaxed);
            failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    });
    failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
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
    let out = DisjointSlice::new(out);
    for_each(total.div_ceil(len), &|i| {
        let start = i * len;
        // SAFETY: chunks of different i do not overlap, and every i is visited once.
        f(i, unsafe { out.part(start, len.min(total - start)) });
    });
}

/// As [`for_each_chunk`], of several slices of one length at once: `f(i, chunks)` takes the chunk `i` of each.
///
/// # Panics
/// When the slices differ in length, or as [`for_each_chunk`].
pub fn for_each_chunks<T: Send>(
    outs: Vec<&mut [T]>,
    len: usize,
    f: impl Fn(usize, &mut [&mut [T]]) + Sync,
) {
    let total = outs.first().map_or(0, |out| out.len());
    assert!(outs.iter().all(|out| out.len() == total));
    if total == 0 {
        return;
    }
    let outs: Vec<_> = outs.into_iter().map(DisjointSlice::new).collect();
    for_each(total.div_ceil(len), &|i| {
        let start = i * len;
        // SAFETY: chunks of different i do not overlap, and every i is visited once.
        let part = |out| unsafe { DisjointSlice::part(out, start, len.min(total - start)) };
        f(i, &mut outs.iter().map(part).collect::<Vec<_>>());
    });
}

/// As [`for_each_chunk`], with a function that may fail.
///
/// # Errors
/// As [`try_for_each`].
pub fn try_for_each_chunk<T: Send, E: Send>(
    out: &mut [T],
    len: usize,
    f: impl Fn(usize, &mut [T]) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let total = out.len();
    if total == 0 {
        return Ok(());
    }
    let out = DisjointSlice::new(out);
    try_for_each(total.div_ceil(len), &|i| {
        let start = i * len;
        // SAFETY: chunks of different i do not overlap, and every i is visited once at most.
        f(i, unsafe { out.part(start, len.min(total - start)) })
    })
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

/// A slice that threads write disjoint parts of.
pub struct DisjointSlice<'a, T> {
    start: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: it stands for an exclusive borrow of `Send` elements; who takes a part answers for its being the only one.
unsafe impl<T: Send> Sync for DisjointSlice<'_, T> {}

impl<'a, T> DisjointSlice<'a, T> {
    /// Borrows `slice` for as long as parts of it are written.
    pub fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), borrow: PhantomData }
    }

    /// `len` elements from `start` on.
    ///
    /// # Safety
    /// No two parts that live at the same time overlap.
    ///
    /// # Panics
    /// When the part reaches past the end.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that parts do not overlap")]
    pub unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: inside of the slice, as just checked, and nobody else's, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
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

    #[test]
    fn ranges_make_up_the_whole() {
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (n, most) in [(0, 4), (1, 4), (7, 1), (100, 0), (1571, 16), (12, usize::MAX)] {
                let visits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                let longest = AtomicUsize::new(0);
                pool.install(|| {
                    for_each_range(n, most, &|range| {
                        longest.fetch_max(range.len(), Ordering::Relaxed);
                        for visit in &visits[range] {
                            visit.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                });
                assert!(visits.iter().all(|visit| visit.load(Ordering::Relaxed) == 1), "{n}");
                assert!(longest.into_inner() <= most.max(1), "{n}, at most {most}");
            }
        }
    }

    #[test]
    fn a_failure_comes_back_and_ends_the_work() {
        let mut out = vec![0; 1000];
        let all = try_for_each_chunk(&mut out, 10, |i, chunk| {
            chunk.fill(i);
            Ok::<(), usize>(())
        });
        assert!(all.is_ok() && out.iter().enumerate().all(|(k, &x)| x == k / 10));
        let some = try_for_each_chunk(&mut out, 10, |i, _| if i == 37 { Err(i) } else { Ok(()) });
        assert_eq!(some, Err(37));
    }

    #[test]
    fn parts_past_the_end_are_refused() {
        let mut out = [1, 2, 3, 4];
        let parts = DisjointSlice::new(&mut out);
        // SAFETY: the two do not overlap.
        let (a, b) = unsafe { (parts.part(0, 1), parts.part(1, 3)) };
        assert_eq!((&*a, &*b), (&[1][..], &[2, 3, 4][..]));
        for (start, len) in [(0, 5), (4, 1), (5, 0), (2, usize::MAX)] {
            let outside = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // SAFETY: it panics instead.
                unsafe { parts.part(start, len) };
            }));
            assert!(outside.is_err(), "{start} {len}");
        }
    }
}
