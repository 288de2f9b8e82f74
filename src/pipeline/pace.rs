//! How long work takes on this machine, learned from the work itself.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::pipeline::run::Event;

/// Width and height in pixels.
pub type Size = (usize, usize);

/// Readings that count, the latest: a machine's mood changes.
const KEPT: usize = 64;

/// Which of the times that a piece of work has taken is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Estimate {
    /// Half of them were shorter: when to expect it.
    Typical,
    /// Nine in ten were shorter: what to promise.
    Tail,
}

/// Seconds that pieces of work have taken.
#[derive(Debug, Default)]
pub struct Pace {
    sizes: BTreeMap<Size, Readings>,
}

/// Of pictures of one size.
#[derive(Debug, Default)]
struct Readings {
    /// A prompt made ready.
    begin: Piece,
    /// A step of so many pictures together.
    steps: BTreeMap<usize, Piece>,
    /// A picture decoded, and kept.
    finish: Piece,
}

/// Of one kind.
#[derive(Debug, Default)]
struct Piece {
    latest: VecDeque<f64>,
    /// Of the latest, by [`Estimate`]: asked for far more often than read.
    estimates: Option<[f64; 2]>,
}

impl Piece {
    fn add(&mut self, took: Duration) {
        if self.latest.len() == KEPT {
            self.latest.pop_front();
        }
        self.latest.push_back(took.as_secs_f64());
        let mut sorted = Vec::from_iter(self.latest.iter().copied());
        sorted.sort_by(f64::total_cmp);
        self.estimates = Some([0.5, 0.9].map(|share| nearest(&sorted, share)));
    }

    fn at(&self, estimate: Estimate) -> Option<f64> {
        self.estimates.map(|of| of[estimate as usize])
    }
}

/// The least of `sorted` that this share of them do not exceed; 0 of none.
pub(super) fn nearest(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

impl Pace {
    /// Learns from a piece of a run's work ([`Run::step`](super::Run::step)).
    pub fn observe(&mut self, size: Size, events: &[Event], took: Duration) {
        let stepped = events.iter().filter(|event| matches!(event, Event::Stepped { .. })).count();
        match events.first() {
            Some(Event::Began { .. }) => self.began(size, took),
            Some(Event::Finished { result: Ok(_), .. }) => self.finished(size, took),
            _ if stepped > 0 => self.stepped(size, stepped, took),
            _ => {}
        }
    }

    /// A prompt was made ready.
    pub fn began(&mut self, size: Size, took: Duration) {
        self.sizes.entry(size).or_default().begin.add(took);
    }

    /// So many pictures went a step further together.
    pub fn stepped(&mut self, size: Size, pictures: usize, took: Duration) {
        self.sizes.entry(size).or_default().steps.entry(pictures).or_default().add(took);
    }

    /// A picture was decoded.
    pub fn finished(&mut self, size: Size, took: Duration) {
        self.sizes.entry(size).or_default().finish.add(took);
    }

    /// Seconds of a step of `pictures` together. Between readings on a straight line; above the largest and below the least
    /// in proportion; of another size in proportion to pixels. None before there is any reading.
    pub fn step(&self, size: Size, pictures: usize, estimate: Estimate) -> Option<f64> {
        let of = |steps: &BTreeMap<usize, Piece>| {
            let known = |(n, piece): (&usize, &Piece)| Some((*n as f64, piece.at(estimate)?));
            let below = steps.range(..=pictures).next_back().and_then(known);
            let above = steps.range(pictures..).next().and_then(known);
            let n = pictures as f64;
            match (below, above) {
                (Some((a, x)), Some((b, y))) if b > a => Some(x + (y - x) * (n - a) / (b - a)),
                (Some((a, x)), _) => Some(x * (n / a).max(1.0)),
                // Fewer take no more than more do.
                (None, above) => above.map(|(_, y)| y),
            }
        };
        self.of(size, |readings| of(&readings.steps))
    }

    /// Seconds of a picture's beginning and end.
    pub fn ends(&self, size: Size, estimate: Estimate) -> f64 {
        let of = |readings: &Readings| {
            Some(readings.finish.at(estimate)? + readings.begin.at(estimate).unwrap_or(0.0))
        };
        self.of(size, of).unwrap_or(0.0)
    }

    fn of(&self, size: Size, reading: impl Fn(&Readings) -> Option<f64>) -> Option<f64> {
        if let Some(seconds) = self.sizes.get(&size).and_then(&reading) {
            return Some(seconds);
        }
        let pixels = |size: Size| (size.0 * size.1) as f64;
        let known = self.sizes.iter().filter_map(|(s, r)| Some((pixels(*s), reading(r)?)));
        let distance = |other: f64| (other / pixels(size)).ln().abs();
        let nearest = known.min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)));
        nearest.map(|(other, seconds)| seconds * pixels(size) / other)
    }
}

#[cfg(test)]
mod tests {
    use super::Estimate::{Tail, Typical};
    use super::*;

    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() <= 1e-9 * expected, "{found} for {expected}");
    }

    #[test]
    fn what_was_not_read_lies_between_or_in_proportion() {
        let mut pace = Pace::default();
        assert_eq!(pace.step((64, 64), 1, Typical), None);
        let ms = Duration::from_millis;
        pace.stepped((64, 64), 2, ms(20));
        pace.stepped((64, 64), 6, ms(40));
        close(pace.step((64, 64), 2, Typical), 0.02);
        close(pace.step((64, 64), 4, Typical), 0.03);
        close(pace.step((64, 64), 12, Typical), 0.08);
        close(pace.step((64, 64), 1, Typical), 0.02);
        close(pace.step((128, 64), 2, Typical), 0.04);
        pace.finished((64, 64), ms(7));
        close(Some(pace.ends((64, 128), Typical)), 0.014);
    }

    #[test]
    fn what_is_expected_is_less_than_what_is_promised_and_the_latest_count() {
        let mut pace = Pace::default();
        let size = (8, 8);
        for ms in (1..=20).rev() {
            pace.stepped(size, 1, Duration::from_millis(ms));
        }
        close(pace.step(size, 1, Typical), 0.010);
        close(pace.step(size, 1, Tail), 0.018);
        for _ in 0..KEPT {
            pace.stepped(size, 1, Duration::from_millis(5));
        }
        close(pace.step(size, 1, Tail), 0.005);
    }
}
