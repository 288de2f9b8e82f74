//! How long work takes on this machine, learned from the work itself.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::pipeline::run::Event;

/// Width and height in pixels.
pub type Size = (usize, usize);

/// Weight of a new reading against those before.
const FRESH: f64 = 0.2;

/// Seconds that pieces of work have taken.
#[derive(Debug, Default)]
pub struct Pace {
    sizes: BTreeMap<Size, Readings>,
}

/// Of pictures of one size.
#[derive(Debug, Default)]
struct Readings {
    /// A prompt made ready.
    begin: Option<f64>,
    /// A step of so many pictures together.
    steps: BTreeMap<usize, f64>,
    /// A picture decoded.
    finish: Option<f64>,
}

fn learn(known: &mut Option<f64>, found: Duration) {
    let found = found.as_secs_f64();
    *known = Some(known.map_or(found, |known| known + FRESH * (found - known)));
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
        learn(&mut self.sizes.entry(size).or_default().begin, took);
    }

    /// So many pictures went a step further together.
    pub fn stepped(&mut self, size: Size, pictures: usize, took: Duration) {
        let steps = &mut self.sizes.entry(size).or_default().steps;
        let mut known = steps.get(&pictures).copied();
        learn(&mut known, took);
        steps.extend(known.map(|seconds| (pictures, seconds)));
    }

    /// A picture was decoded.
    pub fn finished(&mut self, size: Size, took: Duration) {
        learn(&mut self.sizes.entry(size).or_default().finish, took);
    }

    /// Seconds of a step of `pictures` together. Between readings on a straight line; above the largest and below the least
    /// in proportion; of another size in proportion to pixels. None before there is any reading.
    pub fn step(&self, size: Size, pictures: usize) -> Option<f64> {
        let of = |steps: &BTreeMap<usize, f64>| {
            let below = steps.range(..=pictures).next_back().map(|(n, s)| (*n as f64, *s));
            let above = steps.range(pictures..).next().map(|(n, s)| (*n as f64, *s));
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
    pub fn ends(&self, size: Size) -> f64 {
        let of = |readings: &Readings| readings.finish.map(|s| s + readings.begin.unwrap_or(0.0));
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
    use super::*;

    fn close(found: Option<f64>, expected: f64) {
        let found = found.unwrap();
        assert!((found - expected).abs() <= 1e-9 * expected, "{found} for {expected}");
    }

    #[test]
    fn what_was_not_read_lies_between_or_in_proportion() {
        let mut pace = Pace::default();
        assert_eq!(pace.step((64, 64), 1), None);
        let ms = Duration::from_millis;
        pace.stepped((64, 64), 2, ms(20));
        pace.stepped((64, 64), 6, ms(40));
        close(pace.step((64, 64), 2), 0.02);
        close(pace.step((64, 64), 4), 0.03);
        close(pace.step((64, 64), 12), 0.08);
        close(pace.step((64, 64), 1), 0.02);
        close(pace.step((128, 64), 2), 0.04);
        pace.finished((64, 64), ms(7));
        close(Some(pace.ends((64, 128))), 0.014);
    }

    #[test]
    fn a_new_reading_counts_for_a_fifth() {
        let mut pace = Pace::default();
        pace.stepped((8, 8), 1, Duration::from_secs(10));
        pace.stepped((8, 8), 1, Duration::from_secs(20));
        close(pace.step((8, 8), 1), 12.0);
    }
}
