//! How windows cover a line, and what each counts for.

use std::f64::consts::FRAC_PI_2;

use crate::error::{Error, Result};

/// How a scene is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// Height and width of a window in pixels.
    pub size: usize,
    /// Pixels that a window shares with the next; at most half of it.
    pub overlap: usize,
    /// Windows that are looked at at once; no result depends on it.
    pub batch: usize,
}

impl Windows {
    /// Whether a network that needs multiples of `multiple` can look through these.
    ///
    /// # Errors
    /// `Argument`: it cannot, or they share more than half.
    pub fn check(&self, multiple: usize) -> Result<()> {
        let Self { size, overlap, batch } = *self;
        if !(1..=4096).contains(&size) || !size.is_multiple_of(multiple) {
            let expected =
                format!("1 to 4096 pixels, a multiple of {multiple}, as the network needs");
            return Err(Error::argument("window", size, expected));
        }
        if overlap > size / 2 {
            let expected = format!("0 to {}, half of a window", size / 2);
            return Err(Error::argument("overlap", overlap, expected));
        }
        if !(1..=1024).contains(&batch) {
            return Err(Error::argument("batch_size", batch, "1 to 1024"));
        }
        Ok(())
    }
}

/// Windows along rows or columns.
///
/// A line that is no longer than a window is one window, from its beginning on. Of a longer one windows follow each other at
/// equal distances, the first and the last reaching half of what two share beyond the ends, where the line is reflected.
#[derive(Debug)]
pub(super) struct Axis {
    len: usize,
    /// Pixels of a window.
    pub size: usize,
    /// Where windows begin.
    pub starts: Vec<isize>,
    /// What the first pixels of a window count, which are the last of the one before: that one counts what is missing to 1.
    ramp: Vec<f32>,
}

impl Axis {
    /// Of `len` pixels.
    pub fn new(len: usize, windows: &Windows, multiple: usize) -> Self {
        let Windows { size, overlap, .. } = *windows;
        if len <= size {
            let size = len.next_multiple_of(multiple);
            return Self { len, size, starts: vec![0], ramp: Vec::new() };
        }
        let (stride, margin) = (size - overlap, overlap / 2);
        let count = (len + 2 * margin - size).div_ceil(stride) + 1;
        let start = |i: usize| (i * stride) as isize - margin as isize;
        Self { len, size, starts: (0..count).map(start).collect(), ramp: ramp(overlap) }
    }

    /// The same windows of a line of `scale` pixels for each.
    pub fn enlarged(&self, scale: usize) -> Self {
        Self {
            len: self.len * scale,
            size: self.size * scale,
            starts: self.starts.iter().map(|start| start * scale as isize).collect(),
            ramp: ramp(self.ramp.len() * scale),
        }
    }

    /// Of `len` pixels, a window around each cell of [`cells`](super::cells).
    pub fn cells(len: usize, windows: &Windows) -> Self {
        let Windows { size, overlap, .. } = *windows;
        let start = |i: usize| (i * (size - overlap)) as isize - (overlap / 2) as isize;
        let starts = (0..super::cells(len, windows)).map(start).collect();
        Self { len, size, starts, ramp: Vec::new() }
    }

    /// What each pixel of a window counts. Those of all windows over a pixel are 1 together.
    pub fn weights(&self, window: usize) -> Vec<f32> {
        let mut weights = vec![1.0; self.size];
        if window > 0 {
            weights[..self.ramp.len()].copy_from_slice(&self.ramp);
        }
        if window + 1 < self.starts.len() {
            let from = self.size - self.ramp.len();
            weights[from..].iter_mut().zip(&self.ramp).for_each(|(w, ramp)| *w = 1.0 - ramp);
        }
        weights
    }

    /// The pixel that stands at a place, which may be beyond the ends: there the line is reflected in its last pixel.
    pub fn reflected(&self, at: isize) -> usize {
        let period = 2 * (self.len as isize - 1);
        if period == 0 {
            return 0;
        }
        let at = at.rem_euclid(period);
        at.min(period - at) as usize
    }

    /// The pixels of a window, in order, each where it really is.
    pub fn pixels(&self, window: usize) -> impl Iterator<Item = usize> {
        let start = self.starts[window];
        (start..start + self.size as isize).map(|at| self.reflected(at))
    }
}

/// What so many pixels count: a raised cosine, so that two neighbours are 1 together, without a kink.
fn ramp(overlap: usize) -> Vec<f32> {
    let at = |i: usize| (FRAC_PI_2 * (i as f64 + 0.5) / overlap as f64).sin().powi(2) as f32;
    (0..overlap).map(at).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_windows_count_is_one_everywhere() {
        for (size, overlap) in [(8, 0), (8, 1), (8, 4), (7, 3), (64, 16)] {
            for len in [1, 2, 7, 8, 9, 12, 13, 63, 64, 65, 200] {
                let axis = Axis::new(len, &Windows { size, overlap, batch: 1 }, 1);
                let mut sums = vec![0.0_f32; len];
                let mut over = vec![0; len];
                for (i, start) in axis.starts.iter().enumerate() {
                    for (k, weight) in axis.weights(i).into_iter().enumerate() {
                        let at = start + k as isize;
                        if (0..len as isize).contains(&at) {
                            sums[at as usize] += weight;
                            over[at as usize] += 1;
                        }
                    }
                }
                assert!(sums.iter().all(|sum| (sum - 1.0).abs() < 1e-6), "{size} {overlap} {len}");
                assert!(
                    over.iter().all(|n| (1..=2).contains(n)),
                    "{size} {overlap} {len} {over:?}"
                );
            }
        }
    }

    #[test]
    fn ends_are_reflected_as_often_as_it_takes() {
        let pixels = |len, size, overlap| -> Vec<Vec<usize>> {
            let axis = Axis::new(len, &Windows { size, overlap, batch: 1 }, 4);
            (0..axis.starts.len()).map(|i| axis.pixels(i).collect()).collect()
        };
        assert_eq!(pixels(1, 8, 4), [[0; 4]]);
        assert_eq!(pixels(2, 8, 4), [[0, 1, 0, 1]]);
        assert_eq!(pixels(5, 8, 4), [[0, 1, 2, 3, 4, 3, 2, 1]]);
        assert_eq!(pixels(8, 8, 4), [[0, 1, 2, 3, 4, 5, 6, 7]]);
        let two = [[2, 1, 0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7, 8, 7]];
        assert_eq!(pixels(9, 8, 4)[..2], two);
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        let check = |size, overlap, batch| {
            Windows { size, overlap, batch }.check(32).err().map(|e| e.to_string())
        };
        assert_eq!(check(64, 32, 1), None);
        assert_eq!(check(64, 0, 1), None);
        assert!(check(64, 33, 1).unwrap().contains("half of a window"));
        assert!(check(65, 0, 1).unwrap().contains("multiple of 32"));
        assert!(check(0, 0, 1).unwrap().contains("window"));
        assert!(check(64, 0, 0).unwrap().contains("batch_size"));
    }
}
