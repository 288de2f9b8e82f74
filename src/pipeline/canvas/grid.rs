//! Where windows lie on a canvas, what each counts for, and which of them see which.
//!
//! Windows follow each other at equal distances from the canvas's origin on. The even ones along both sides come first and
//! see no others; those that are odd along one side come second, and see the first; those that are odd along both come last.
//! So what a window depends on is at most two windows away, whatever the size of the canvas and the number of steps.

use std::f64::consts::FRAC_PI_2;

use crate::error::{Error, Result};

/// A window's row and column.
pub(super) type Id = [usize; 2];

/// Windows along one side of a canvas.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    /// Latents of a window.
    pub size: usize,
    /// From one window to the next.
    pub stride: usize,
    /// How many windows there are.
    pub count: usize,
    /// Whether the last is beside the first.
    pub wraps: bool,
}

/// A window beside another, or the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Beside {
    pub index: usize,
    /// Where it begins, from where the other does.
    pub offset: isize,
}

impl Axis {
    /// Of `len` latents; `name` is what errors call the side, whose latents have `factor` pixels.
    ///
    /// # Errors
    /// `Argument`: a side that wraps and is no even number of windows.
    pub fn new(
        len: usize,
        [size, overlap]: [usize; 2],
        wraps: bool,
        (name, factor): (&'static str, usize),
    ) -> Result<Self> {
        let stride = size - overlap;
        if !wraps {
            let count = len.saturating_sub(overlap).div_ceil(stride).max(1);
            return Ok(Self { size, stride, count, wraps });
        }
        // An even number, so that even and odd windows alternate all around.
        let period = 2 * stride;
        if len == 0 || !len.is_multiple_of(period) {
            let (below, above) =
                (len / period * period * factor, (len / period + 1) * period * factor);
            let near = if below > 0 { format!("{below} or {above}") } else { above.to_string() };
            let expected = format!("with --wrap a multiple of {} pixels: {near}", period * factor);
            return Err(Error::argument(name, len * factor, expected));
        }
        Ok(Self { size, stride, count: len / stride, wraps })
    }

    /// What each of a window's `scale * size` pixels counts. Those of all windows over a pixel are 1 together.
    pub fn weights(&self, index: usize, scale: usize) -> Vec<f32> {
        let overlap = (self.size - self.stride) * scale;
        let mut weights = vec![1.0; self.size * scale];
        // A raised cosine: what two neighbours count is 1 together, without a kink.
        let ramp = |i: usize| (FRAC_PI_2 * (i as f64 + 0.5) / overlap as f64).sin().powi(2) as f32;
        for i in 0..overlap {
            if self.wraps || index > 0 {
                weights[i] = ramp(i);
            }
            if self.wraps || index + 1 < self.count {
                weights[self.stride * scale + i] = 1.0 - ramp(i);
            }
        }
        weights
    }

    /// A window with those that overlap it, from the first to the last.
    pub fn around(&self, index: usize) -> impl Iterator<Item = Beside> {
        self.within(index, 1)
    }

    /// A window with those up to `reach` before and behind it.
    pub fn within(&self, index: usize, reach: isize) -> impl Iterator<Item = Beside> {
        (-reach..=reach).filter_map(move |step| {
            let index = self.wrapped(index as isize + step)?;
            Some(Beside { index, offset: step * self.stride as isize })
        })
    }

    /// The windows over the latents from `from` to before `to`, from the first to the last, and where each begins. A side that
    /// wraps may have one at either end.
    pub fn over(&self, [from, to]: [usize; 2]) -> impl Iterator<Item = Beside> {
        let (size, stride) = (self.size as isize, self.stride as isize);
        let first = (from as isize - size).div_euclid(stride) + 1;
        let last = (to as isize - 1).div_euclid(stride);
        (first..=last).filter_map(move |step| {
            Some(Beside { index: self.wrapped(step)?, offset: step * stride })
        })
    }

    fn wrapped(&self, index: isize) -> Option<usize> {
        if self.wraps {
            return Some(index.rem_euclid(self.count as isize) as usize);
        }
        usize::try_from(index).ok().filter(|index| *index < self.count)
    }

    /// Where the latents of a window lie on the canvas.
    pub fn places(&self, index: usize) -> Vec<u32> {
        let (start, len) = (index * self.stride, self.count * self.stride);
        let place = |i| if self.wraps { (start + i) % len } else { start + i };
        (0..self.size).map(|i| place(i) as u32).collect()
    }
}

/// Windows along both sides: down, across.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Grid(pub [Axis; 2]);

/// A window that is seen from another.
pub(super) struct Neighbour {
    pub id: Id,
    /// Where it begins, from where the other does; in latents, down and across.
    pub offset: [isize; 2],
}

/// How late a window comes: 0, 1 or 2.
pub(super) fn rank(id: Id) -> usize {
    id[0] % 2 + id[1] % 2
}

impl Grid {
    /// A window and all that overlap it, the same order of ranks in every place.
    pub fn around(&self, id: Id) -> Vec<Neighbour> {
        let Self([down, across]) = self;
        let mut around: Vec<Neighbour> = down
            .around(id[0])
            .flat_map(|y| across.around(id[1]).map(move |x| (y, x)))
            .map(|(y, x)| Neighbour { id: [y.index, x.index], offset: [y.offset, x.offset] })
            .collect();
        around.sort_by_key(|n| (n.id[0] % 2, n.id[1] % 2));
        around
    }

    /// Those of them that come before it, which it sees.
    pub fn seen(&self, id: Id) -> impl Iterator<Item = Neighbour> {
        let own = rank(id);
        self.around(id).into_iter().filter(move |neighbour| rank(neighbour.id) < own)
    }

    /// What each of a window's `scale` times as many pixels counts: down, across.
    pub fn weights(&self, id: Id, scale: usize) -> [Vec<f32>; 2] {
        std::array::from_fn(|axis| self.0[axis].weights(id[axis], scale))
    }

    /// Calls `each` with places in a window, in its neighbour, and what the neighbour counts there.
    pub fn shared(&self, neighbour: &Neighbour, mut each: impl FnMut(usize, usize, f32)) {
        let [down, across] = self.weights(neighbour.id, 1);
        let [height, width] = [down.len() as isize, across.len() as isize];
        let [y0, x0] = neighbour.offset;
        for y in y0.max(0)..(y0 + height).min(height) {
            for x in x0.max(0)..(x0 + width).min(width) {
                let there = [(y - y0) as usize, (x - x0) as usize];
                let weight = down[there[0]] * across[there[1]];
                each((y * width + x) as usize, there[0] * width as usize + there[1], weight);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(len: usize, size: usize, overlap: usize, wraps: bool) -> Axis {
        Axis::new(len, [size, overlap], wraps, ("width", 4)).unwrap()
    }

    #[test]
    fn what_windows_count_is_one_everywhere() {
        for (size, overlap) in [(16, 4), (16, 8), (7, 3), (8, 1)] {
            let stride = size - overlap;
            for (len, wraps) in [
                (1, false),
                (5, false),
                (size, false),
                (61, false),
                (2 * stride, true),
                (6 * stride, true),
            ] {
                let axis = axis(len, size, overlap, wraps);
                for scale in [1, 4] {
                    let mut sums = vec![0.0_f32; len * scale];
                    let over: Vec<Beside> = axis.over([0, len]).collect();
                    for window in &over {
                        for (i, weight) in axis.weights(window.index, scale).iter().enumerate() {
                            let at = window.offset * scale as isize + i as isize;
                            if let Some(sum) =
                                usize::try_from(at).ok().and_then(|at| sums.get_mut(at))
                            {
                                *sum += weight;
                            }
                        }
                    }
                    let one = |sum: &f32| (sum - 1.0).abs() < 1e-6;
                    assert!(sums.iter().all(one), "{size} {overlap} {len} {wraps}: {sums:?}");
                }
                assert!(axis.count == 1 || axis.count.is_multiple_of(2) || !wraps);
            }
        }
    }

    #[test]
    fn a_part_has_the_windows_of_the_whole_that_are_over_it() {
        for wraps in [false, true] {
            let axis = axis(96, 16, 4, wraps);
            let all: Vec<Beside> = axis.over([0, 96]).collect();
            for from in 0..96 {
                for to in from + 1..=96 {
                    let reaches =
                        |w: &&Beside| w.offset < to as isize && w.offset + 16 > from as isize;
                    let expected: Vec<Beside> = all.iter().filter(reaches).copied().collect();
                    assert_eq!(axis.over([from, to]).collect::<Vec<_>>(), expected, "{from} {to}");
                }
            }
        }
        // The last of a ring lies over its beginning too.
        let ring = axis(48, 16, 4, true);
        let over: Vec<usize> = ring.over([0, 48]).map(|window| window.index).collect();
        assert_eq!(over, [3, 0, 1, 2, 3]);
        assert_eq!(ring.places(3)[11..], [47, 0, 1, 2, 3]);
    }

    #[test]
    fn windows_see_those_of_lower_rank_that_overlap_them_and_no_others() {
        for wraps in [false, true] {
            let grid = Grid([axis(96, 16, 4, wraps), axis(72, 16, 8, false)]);
            for y in 0..grid.0[0].count {
                for x in 0..grid.0[1].count {
                    let seen: Vec<Neighbour> = grid.seen([y, x]).collect();
                    let inner = (wraps || (y > 0 && y + 1 < grid.0[0].count))
                        && x > 0
                        && x + 1 < grid.0[1].count;
                    if inner {
                        assert_eq!(seen.len(), [0, 2, 8][rank([y, x])]);
                    }
                    for neighbour in seen {
                        assert!(rank(neighbour.id) < rank([y, x]));
                        let mut shared = 0;
                        grid.shared(&neighbour, |_, _, weight| {
                            assert!(weight > 0.0);
                            shared += 1;
                        });
                        assert!(shared > 0);
                    }
                }
            }
        }
    }

    #[test]
    fn what_two_windows_share_is_one_place() {
        let grid = Grid([axis(96, 16, 4, true), axis(72, 12, 5, false)]);
        let [down, across] = [0, 1].map(|axis| grid.0[axis].clone());
        for id in [[0, 1], [1, 2], [3, 3], [7, 0]] {
            let places = |id: Id| [down.places(id[0]), across.places(id[1])];
            let (own, mut shared) = (places(id), 0);
            for neighbour in grid.around(id) {
                let theirs = places(neighbour.id);
                let weights = grid.weights(neighbour.id, 1);
                grid.shared(&neighbour, |here, there, weight| {
                    let at = |i: usize| [i / 12, i % 12];
                    let (here, there) = (at(here), at(there));
                    for axis in 0..2 {
                        assert_eq!(own[axis][here[axis]], theirs[axis][there[axis]]);
                    }
                    assert_eq!(weight, weights[0][there[0]] * weights[1][there[1]]);
                    shared += 1;
                });
            }
            assert!(shared > 16 * 12, "{id:?}");
        }
    }

    #[test]
    fn a_ring_of_another_length_is_refused_with_those_that_are_possible() {
        let refused = |len| Axis::new(len, [16, 4], true, ("width", 4)).unwrap_err().to_string();
        assert!(refused(100).contains("384 or 480"), "{}", refused(100));
        assert!(refused(12).contains(": 96"), "{}", refused(12));
        assert!(Axis::new(24, [16, 4], true, ("width", 4)).is_ok());
    }
}
