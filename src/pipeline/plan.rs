//! Which batch, sampler and how many steps meet a time: decided before anything is drawn, from times that were measured on this machine.

use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::io::picture::Picture;
use crate::pipeline::pace::{Estimate, Pace, Size, nearest};
use crate::pipeline::request::Request;
use crate::pipeline::run::{Event, Run};
use crate::pipeline::text_to_image::TextToImage;

/// Time that is kept free, for what a machine does besides.
const SPARE: f64 = 0.05;

/// What a batch of pictures has to keep to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// A whole batch, from its prompts to its last picture, in this time.
    Deadline(Duration),
    /// So many pictures a second.
    Rate(f64),
}

/// What may be chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Pictures at once, at most.
    pub batch: usize,
    /// As few at once as will do.
    pub fewest: usize,
    /// Steps that are wanted.
    pub steps: usize,
    /// As few as will do.
    pub least: usize,
    /// Evaluations of the UNet that a step takes.
    pub evaluations: f64,
}

/// What was chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Pictures at once.
    pub batch: usize,
    /// Steps of each.
    pub steps: usize,
    /// In how long a batch will be done, as far as what was measured tells.
    pub expected: Duration,
}

/// How long each company of pictures is measured, and in how many steps at most.
const MEASURED: (Duration, usize) = (Duration::from_secs(1), 24);

/// Steps of a picture that is drawn to be measured.
const STEPS: f64 = 4.0;

/// Batches between which times are taken to lie on a straight line.
fn sizes(batch: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), move |n| (*n < batch).then(|| (n * 2).min(batch)))
}

/// Measures the work of up to `batch` pictures like `request`: a second for each of some companies, and no less than a picture
/// of few steps. `keep` does what becomes of each when it is drawn, and counts as part of it.
///
/// # Errors
/// What keeps such a picture from being drawn; that of `keep`; `Interrupted`.
pub fn calibrate(
    model: &TextToImage,
    request: &Request,
    batch: usize,
    keep: &mut dyn FnMut(&Picture) -> Result<()>,
) -> Result<Pace> {
    let size = model.size(&request.settings)?;
    let mut request = request.clone();
    // Of a picture that starts from another only the last steps are made.
    let made = if request.init.is_some() { model.strength(&request) } else { 1.0 };
    let few = (STEPS / made).ceil() as usize;
    let steps = &mut request.settings.steps;
    *steps = Some(steps.map_or(few, |wanted| wanted.min(few)));
    let mut pace = Pace::default();
    for company in sizes(batch) {
        let mut run = Run::new(model, size, company)?;
        let (clock, mut steps) = (Instant::now(), 0);
        while steps == 0 || (clock.elapsed() < MEASURED.0 && steps <= MEASURED.1) {
            for seed in 0..company as u64 {
                run.join(Request { seed, ..request.clone() })?;
            }
            while !run.is_empty() {
                let clock = Instant::now();
                let events = run.step()?;
                for event in &events {
                    if let Event::Finished { result: Ok(picture), .. } = event {
                        keep(picture)?;
                    }
                }
                let took = clock.elapsed();
                let stepped = matches!(events.first(), Some(Event::Stepped { .. }));
                steps += usize::from(stepped);
                // A first step takes memory that later ones have.
                if !stepped || steps > 1 {
                    pace.observe(size, &events, took);
                }
                for event in events {
                    if let Event::Finished { result, .. } = event {
                        result?;
                    }
                }
            }
        }
    }
    Ok(pace)
}

/// Seconds of a batch.
fn seconds(pace: &Pace, size: Size, batch: usize, evaluations: f64) -> f64 {
    let step = pace.step(size, batch, Estimate::Tail).unwrap_or(f64::INFINITY);
    (1.0 + SPARE) * (evaluations * step + batch as f64 * pace.ends(size, Estimate::Tail))
}

impl Target {
    /// Whether a batch that takes so long keeps to it.
    fn holds(self, seconds: f64, batch: usize) -> bool {
        match self {
            Self::Deadline(deadline) => seconds <= deadline.as_secs_f64(),
            Self::Rate(rate) => batch as f64 >= rate * seconds,
        }
    }

    /// The largest batch, and for it the most steps, that keep to it.
    ///
    /// # Errors
    /// `Argument` when none does: the message names what would.
    pub fn plan(self, pace: &Pace, size: Size, choice: Choice) -> Result<Plan> {
        let Choice { batch, fewest, steps, least, evaluations } = choice;
        let seconds = |batch, steps| seconds(pace, size, batch, steps as f64 * evaluations);
        let batches: Vec<usize> = (fewest..=batch).rev().collect();
        let plan = |batch: usize, steps: usize| {
            let expected = Duration::from_secs_f64(seconds(batch, steps).min(1e9));
            Plan { batch, steps, expected }
        };
        // As many steps as there can be count more than as many pictures at once.
        for steps in (least..=steps).rev() {
            let fits = |batch: &&usize| self.holds(seconds(**batch, steps), **batch);
            if let Some(&batch) = batches.iter().find(fits) {
                return Ok(plan(batch, steps));
            }
        }
        let cheapest = match self {
            Self::Deadline(_) => fewest,
            Self::Rate(_) => {
                let rate = |b: &&usize| **b as f64 / seconds(**b, least);
                let fastest = batches.iter().max_by(|a, b| rate(a).total_cmp(&rate(b)));
                fastest.copied().unwrap_or(1)
            }
        };
        Err(self.refusal(plan(cheapest, least), &|steps| seconds(cheapest, steps)))
    }

    fn refusal(self, nearest: Plan, seconds: &dyn Fn(usize) -> f64) -> Error {
        let Plan { batch, steps, expected } = nearest;
        match self {
            Self::Deadline(deadline) => {
                let fitting = (1..steps).rev().find(|steps| self.holds(seconds(*steps), batch));
                let fewer = match fitting {
                    Some(steps) => format!(", or {steps} steps in that time"),
                    None => String::new(),
                };
                let offer = format!(
                    "nearest is {} ms, for {batch} at once with {steps} steps{fewer}",
                    expected.as_millis() + 1
                );
                Error::argument("deadline_ms", deadline.as_millis(), offer)
            }
            Self::Rate(rate) => {
                let most = batch as f64 / expected.as_secs_f64();
                let offer =
                    format!("nearest is {most:.3} a second, {batch} at once with {steps} steps");
                Error::argument("images_per_second", rate, offer)
            }
        }
    }
}

/// How long batches took.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings(Vec<f64>);

impl Timings {
    /// Adds a batch.
    pub fn add(&mut self, took: Duration) {
        self.0.push(took.as_secs_f64());
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The time within which this share of them was done, the nearest that there was. 0 of none.
    pub fn quantile(&self, share: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        Duration::from_secs_f64(nearest(&sorted, share))
    }

    /// How many took longer.
    pub fn above(&self, limit: Duration) -> usize {
        self.0.iter().filter(|took| **took > limit.as_secs_f64()).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = (64, 64);

    /// 10 ms a step for one picture, 25 for four; 5 to decode one.
    fn pace() -> Pace {
        let mut pace = Pace::default();
        let ms = Duration::from_millis;
        pace.stepped(SIZE, 1, ms(10));
        pace.stepped(SIZE, 4, ms(25));
        pace.finished(SIZE, ms(5));
        pace
    }

    fn plan(target: Target, choice: Choice) -> Result<(usize, usize)> {
        target.plan(&pace(), SIZE, choice).map(|plan| (plan.batch, plan.steps))
    }

    #[test]
    fn steps_come_before_company() {
        let all = Choice { batch: 4, fewest: 1, steps: 20, least: 5, evaluations: 1.0 };
        let deadline = |ms| Target::Deadline(Duration::from_millis(ms));
        // 1.05 (20 x 25 + 4 x 5) = 546; 1.05 (20 x 20 + 3 x 5) = 435.75; 1.05 (20 x 10 + 5) = 215.25
        assert_eq!(plan(deadline(546), all).unwrap(), (4, 20));
        assert_eq!(plan(deadline(545), all).unwrap(), (3, 20));
        assert_eq!(plan(deadline(216), all).unwrap(), (1, 20));
        assert_eq!(plan(deadline(215), all).unwrap(), (1, 19));
        assert_eq!(plan(deadline(58), all).unwrap(), (1, 5));
        let told = plan(deadline(57), all).unwrap_err().to_string();
        assert!(
            told.contains("deadline_ms") && told.contains("58 ms") && told.contains("4 steps"),
            "{told}"
        );
        let fixed = Choice { batch: 4, fewest: 4, steps: 20, least: 20, evaluations: 1.0 };
        assert!(plan(deadline(545), fixed).is_err());
    }

    #[test]
    fn a_rate_takes_company_where_that_is_faster() {
        let all = Choice { batch: 4, fewest: 1, steps: 20, least: 10, evaluations: 1.0 };
        // Four at once: 4 / 0.546 = 7.3 a second with 20 steps, 4 / 0.2835 = 14.1 with 10.
        assert_eq!(plan(Target::Rate(7.3), all).unwrap(), (4, 20));
        assert_eq!(plan(Target::Rate(14.0), all).unwrap(), (4, 10));
        let told = plan(Target::Rate(15.0), all).unwrap_err().to_string();
        assert!(told.contains("images_per_second") && told.contains("14.10"), "{told}");
    }

    #[test]
    fn nine_in_ten_steps_and_the_prompt_have_to_fit() {
        let mut pace = Pace::default();
        (1..=10).for_each(|ms| pace.stepped(SIZE, 1, Duration::from_millis(ms)));
        pace.began(SIZE, Duration::from_millis(20));
        pace.finished(SIZE, Duration::from_millis(5));
        let choice = Choice { batch: 1, fewest: 1, steps: 10, least: 10, evaluations: 1.0 };
        let fits =
            |ms| Target::Deadline(Duration::from_millis(ms)).plan(&pace, SIZE, choice).is_ok();
        // 1.05 (10 x 9 + 20 + 5) = 120.75
        assert!(fits(121) && !fits(120));
    }

    #[test]
    fn quantiles_are_times_that_there_were() {
        let mut timings = Timings::default();
        assert_eq!(timings.quantile(0.5), Duration::ZERO);
        for ms in [30, 10, 20, 40] {
            timings.add(Duration::from_millis(ms));
        }
        let ms = |share| timings.quantile(share).as_millis();
        assert_eq!([ms(0.5), ms(0.99), ms(1.0), ms(0.0)], [20, 40, 40, 10]);
        assert_eq!((timings.above(Duration::from_millis(20)), timings.len()), (2, 4));
    }
}
