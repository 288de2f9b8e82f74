//! `--deadline-ms` and `--images-per-second`: what is drawn in a time, or refused before anything is.

use std::fmt::Display;
use std::time::Duration;

use nadir::io::picture::Picture;
use nadir::pipeline::pace::{Pace, Size};
use nadir::pipeline::plan::{self, Choice, Plan, Target};
use nadir::pipeline::{Request, Settings, TextToImage};
use nadir::{Error, Result};

use super::args::Time;

/// Models that want fewer steps were distilled for their own sampler.
const DISTILLED: usize = 8;

/// What the command line leaves to be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Pictures at once, from the first to the second.
    batch: [usize; 2],
    /// Steps at least, if that was said.
    least: Option<usize>,
}

impl Time {
    /// What is asked for.
    ///
    /// # Errors
    /// It cannot be.
    pub fn target(&self) -> Result<Option<Target>> {
        let wrong =
            |name, found: &dyn Display, expected: &str| Err(Error::argument(name, found, expected));
        match (self.deadline_ms, self.images_per_second) {
            (Some(0), _) => wrong("deadline_ms", &0, "at least 1"),
            (_, Some(rate)) if !(rate > 0.0 && rate.is_finite()) => {
                wrong("images_per_second", &rate, "a number above 0")
            }
            (Some(ms), _) => Ok(Some(Target::Deadline(Duration::from_millis(ms)))),
            (None, Some(rate)) => Ok(Some(Target::Rate(rate))),
            (None, None) => {
                let given = [("min_steps", self.min_steps), ("min_batch", self.min_batch)];
                match given.iter().find_map(|(name, found)| found.map(|found| (name, found))) {
                    Some((name, found)) => {
                        wrong(name, &found, "it goes with --deadline-ms or --images-per-second")
                    }
                    None => Ok(None),
                }
            }
        }
    }

    /// Up to `batch` at once, of no fewer steps than were `asked` for.
    pub fn limits(&self, asked: Option<usize>, batch: usize) -> Limits {
        Limits { batch: [self.min_batch.unwrap_or(1), batch], least: self.min_steps.or(asked) }
    }
}

impl Limits {
    /// The choices that there are for pictures like `like`.
    ///
    /// # Errors
    /// More are wanted at least than at most; `like` cannot be drawn.
    fn choice(self, pipeline: &TextToImage, like: &Request) -> Result<Choice> {
        let steps = like.settings.steps.unwrap_or_default();
        let least = self.least.unwrap_or(steps.div_ceil(2));
        let [fewest, batch] = self.batch;
        for (name, found, most) in [("min_steps", least, steps), ("min_batch", fewest, batch)] {
            if !(1..=most).contains(&found) {
                return Err(Error::argument(name, found, format!("1 to {most}")));
            }
        }
        let sampler = pipeline.sampler(like)?;
        let (start, least) = match like.init {
            // With fewer none would be left of those that are made.
            Some(_) => {
                let one = (1.0 / pipeline.strength(like)).ceil() as usize;
                (sampler.start_index(pipeline.strength(like))?, least.max(one))
            }
            None => (0, least),
        };
        let evaluations = (sampler.timesteps().len() - start) as f64 / steps as f64;
        Ok(Choice { batch, fewest, steps, least, evaluations })
    }
}

/// Measures this machine on pictures like `like`, and says how they are drawn in time: how many at once, in how many steps, and,
/// where the model's own sampler does not get through all of them and none was named, with which other.
///
/// # Errors
/// Nothing keeps to `target`, and the message names what comes nearest; what keeps such a picture from being drawn.
pub fn plan(
    target: Target,
    limits: Limits,
    pipeline: &TextToImage,
    like: &Request,
    keep: &mut dyn FnMut(&Picture) -> Result<()>,
) -> Result<(Plan, Option<&'static str>)> {
    let own = limits.choice(pipeline, like)?;
    let pace = plan::calibrate(pipeline, like, own.batch, keep)?;
    let free = like.settings.scheduler.is_none() && own.steps >= DISTILLED;
    let quick = pipeline.sampler_for_few_steps().filter(|_| free).and_then(|name| {
        let settings = Settings { scheduler: Some(name.to_owned()), ..like.settings.clone() };
        // Not each model's noise schedule is one for each sampler.
        let choice = limits.choice(pipeline, &Request { settings, ..like.clone() }).ok()?;
        Some((choice, name))
    });
    choose(target, &pace, pipeline.size(&like.settings)?, own, quick)
}

/// The model's own sampler where that makes all steps in time, or else the quick one.
fn choose(
    target: Target,
    pace: &Pace,
    size: Size,
    own: Choice,
    quick: Option<(Choice, &'static str)>,
) -> Result<(Plan, Option<&'static str>)> {
    let plan = target.plan(pace, size, own);
    match quick {
        Some((choice, name)) if !plan.as_ref().is_ok_and(|plan| plan.steps == own.steps) => {
            Ok((target.plan(pace, size, choice)?, Some(name)))
        }
        _ => Ok((plan?, None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_sampler_is_taken_where_the_own_one_does_not_get_through() {
        let (mut pace, size) = (Pace::default(), (64, 64));
        pace.stepped(size, 1, Duration::from_millis(10));
        // Heun's method evaluates twice a step.
        let own = Choice { batch: 1, fewest: 1, steps: 20, least: 5, evaluations: 2.0 };
        let quick = Some((Choice { evaluations: 1.0, ..own }, "quick"));
        let chosen = |ms, quick| {
            let target = Target::Deadline(Duration::from_millis(ms));
            let (plan, name) = choose(target, &pace, size, own, quick).ok()?;
            Some((plan.steps, name))
        };
        // 1.05 x 20 x 20 = 420; 1.05 x 20 x 10 = 210; 1.05 x 5 x 10 = 52.5
        assert_eq!(chosen(421, quick), Some((20, None)));
        assert_eq!(chosen(419, quick), Some((20, Some("quick"))));
        assert_eq!(chosen(419, None), Some((19, None)));
        assert_eq!(chosen(100, quick), Some((9, Some("quick"))));
        assert_eq!(chosen(100, None), None);
        assert_eq!(chosen(52, quick), None);
    }
}
