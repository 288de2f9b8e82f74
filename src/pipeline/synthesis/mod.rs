//! Labelled data sets of drawn pictures: prompts of each class -> pictures -> a judge -> so many of each class.
//!
//! Draw i of a class has the class's prompt i (and begins again with the first behind the last), and a seed of its own; they
//! are made and judged in this order. So the set depends on its settings, not on how many are drawn at once, nor on how
//! often the work is stopped.

mod judge;
mod records;
mod report;
mod source;
mod watch;

use std::collections::BTreeMap;

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::geotiff::{self, Georeference};
use crate::io::picture::Picture;
use crate::io::{atomic, image as pictures, png, raster};
use crate::pipeline::clip_score::ClipScore;
use crate::pipeline::language::classes::PromptClass;
use crate::pipeline::language::prompts::ClassPrompt;
use crate::pipeline::{Cancel, Event, Request, Settings, TextToImage};

pub use judge::{Gallery, Judge, Opinion, Verdict};
pub use records::{Draw, Records, read_prompts};
pub use report::write as write_report;
pub use source::{Chip, Redraw, Sources};
pub use watch::{ClassGrowth, Growth};

/// Draws of a class have seeds that are this far from those of the next class.
const SEEDS: u64 = 1 << 20;

/// How a set is made.
#[derive(Clone, Debug)]
pub struct SynthesisSettings {
    /// Pictures of each class.
    pub per_class: usize,
    /// Draws for each of them, on average, before a class is given up.
    pub max_draws: usize,
    /// Draw i of class number c has the seed `seed` + 2^20 c + i.
    pub seed: u64,
    /// Correlation from which on two pictures are as good as one, above 1 for never.
    pub max_similarity: f32,
    /// CLIP score below which a picture is not taken, -100 to 100; without one all are.
    pub min_clip_score: Option<f64>,
    /// How pictures are drawn; the prompt is each draw's own.
    pub picture: Settings,
    /// Pictures drawn at once; none depends on it.
    pub batch: usize,
}

impl SynthesisSettings {
    /// # Errors
    /// A number that makes no set.
    pub fn check(&self) -> Result<()> {
        let numbers =
            [("per_class", self.per_class), ("max_draws", self.max_draws), ("batch", self.batch)];
        if let Some((name, _)) = numbers.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::argument(name, 0, "at least 1"));
        }
        if self.most() > SEEDS as usize {
            let expected = format!("with max_draws at most {SEEDS} draws of a class");
            return Err(Error::argument("per_class", self.per_class, expected));
        }
        if self.seed > u64::MAX >> 1 {
            return Err(Error::argument("seed", self.seed, "below 2^63"));
        }
        if self.max_similarity.is_nan() || self.max_similarity <= 0.0 {
            return Err(Error::argument("max_similarity", self.max_similarity, "above 0"));
        }
        if let Some(score) = self.min_clip_score
            && !(-100.0..=100.0).contains(&score)
        {
            return Err(Error::argument("min_clip_score", score, "-100 to 100"));
        }
        self.picture.check()
    }

    /// Draws of a class, at most.
    fn most(&self) -> usize {
        self.per_class.saturating_mul(self.max_draws)
    }
}

/// What draws and judges.
pub struct Studio<'a> {
    /// Draws.
    pub model: &'a TextToImage,
    /// Says what a picture shows; without one, all are taken as they come.
    pub judge: Option<&'a Judge>,
    /// Says how well a picture goes with its prompt.
    pub clip: Option<&'a ClipScore>,
    /// Real pictures with masks, each drawn picture's beginning; without them it begins with noise alone.
    pub sources: Option<&'a Sources>,
    /// Where pictures are said to lie that are drawn from none that says it.
    pub place: Option<&'a Georeference>,
    /// What the model was trained on.
    pub training: Option<&'a Gallery>,
    /// The texts of a picture's file, by its prompt, its seed and the real picture that it was drawn from.
    #[allow(clippy::type_complexity, reason = "a name would say no more")]
    pub describe: &'a dyn Fn(&str, u64, Option<&Chip>) -> Result<Vec<(&'static str, String)>>,
    /// Stops all.
    pub cancel: Cancel,
}

/// Makes a set, or goes on with it. `watch` is told of every draw that is on record, of those of earlier processes too.
///
/// # Errors
/// `Argument`: settings that are not possible, or a class of which too few draws are accepted; `Interrupted`, which leaves
/// all that is there to go on from; those of drawing and writing.
pub fn synthesize(
    studio: &Studio,
    classes: &[PromptClass],
    records: &mut Records,
    settings: &SynthesisSettings,
    watch: &mut dyn FnMut(&Draw),
) -> Result<()> {
    settings.check()?;
    let prompts = records.prompts().unwrap_or_default().to_vec();
    let of_class = |class: &PromptClass| studio.sources.map(|all| all.of_class(&class.name));
    let sources = classes.iter().map(|class| of_class(class).transpose());
    let sources = sources.collect::<Result<Vec<_>>>()?;
    let mut done = Gallery::default();
    for draw in records.draws() {
        watch(draw);
        if let Some(file) = &draw.file {
            let path = records.path(file);
            done.add(&pictures::decode(&records.picture(file)?, &path)?)?;
        }
    }
    for (label, class) in classes.iter().enumerate() {
        let own: Vec<&ClassPrompt> = prompts.iter().filter(|one| one.class == class.name).collect();
        if own.is_empty() {
            return Err(Error::argument(
                "prompts",
                "none",
                format!("one for class {:?}", class.name),
            ));
        }
        let of_class = |draw: &&Draw| draw.label == label;
        let mut drawn = records.draws().iter().filter(of_class).count();
        loop {
            let past = records.draws().iter().filter(of_class);
            let accepted = past.filter(|draw| draw.verdict == Verdict::Accepted).count();
            if accepted >= settings.per_class {
                break;
            }
            // Never more than are wanted: what is drawn is judged, and what is good is taken.
            let wanted = settings.batch.min(settings.per_class - accepted);
            let n = wanted.min(settings.most().saturating_sub(drawn));
            if n == 0 {
                return Err(too_few(records, class, label, settings));
            }
            let plans: Vec<Plan> = (drawn..drawn + n)
                .map(|i| Plan {
                    prompt: format!("{}{}", class.picture, own[i % own.len()].prompt),
                    seed: settings.seed + label as u64 * SEEDS + i as u64,
                    chip: sources[label].as_ref().map(|chips| chips[i % chips.len()]),
                })
                .collect();
            let found = draw(studio, &plans, settings)?;
            let mut new = Vec::new();
            for (i, (picture, plan)) in found.into_iter().zip(plans).enumerate() {
                let mut one = Draw {
                    class: class.name.clone(),
                    label,
                    draw: drawn + i,
                    prompt: plan.prompt,
                    seed: plan.seed,
                    verdict: Verdict::NotFinite,
                    seen: None,
                    clip_score: None,
                    similarity: None,
                    file: None,
                    source: plan.chip.map(|chip| chip.name.clone()),
                    mask: None,
                };
                if let Some(picture) = picture {
                    settle(studio, &mut one, &picture, &done, settings)?;
                    if one.verdict == Verdict::Accepted {
                        done.add(&picture)?;
                        let (name, path) = records.place(&class.name, one.draw);
                        if let Some(chip) = plan.chip {
                            let (name, path) = records.mask_place(&class.name, one.draw);
                            let mask = raster::encode_mask(&chip.mask)?;
                            atomic::write(&path, |out| out.write_all(&mask))?;
                            one.mask = Some(name);
                        }
                        let place = plan.chip.and_then(|chip| chip.place.as_ref());
                        if let Some(place) = place.or(studio.place) {
                            let path = records.scene_place(&class.name, one.draw)?;
                            let form = geotiff::picture::Form::plain(Some(place.clone()));
                            geotiff::picture::write(
                                &path,
                                &Picture::of_rgb(&picture)?,
                                &form,
                                &[],
                            )?;
                        }
                        let texts = (studio.describe)(&one.prompt, one.seed, plan.chip)?;
                        let texts: Vec<_> =
                            texts.iter().map(|(key, text)| (*key, text.as_str())).collect();
                        png::write(&path, &picture, &texts)?;
                        one.file = Some(name);
                    }
                }
                new.push(one);
            }
            drawn += n;
            records.add(new.clone())?;
            new.iter().for_each(&mut *watch);
            studio.cancel.check()?;
        }
        records.write_index()?;
    }
    Ok(())
}

/// What a draw is made of.
struct Plan<'a> {
    prompt: String,
    seed: u64,
    chip: Option<&'a Chip>,
}

/// Pictures in the order of their plans; none where numbers overflowed.
fn draw(
    studio: &Studio,
    plans: &[Plan],
    settings: &SynthesisSettings,
) -> Result<Vec<Option<RgbImage>>> {
    let mut found: Vec<Option<RgbImage>> = vec![None; plans.len()];
    let requests = plans.iter().map(|plan| Request {
        settings: Settings { prompt: plan.prompt.clone(), ..settings.picture.clone() },
        seed: plan.seed,
        init: plan.chip.map(|chip| chip.init.clone()),
        cancel: studio.cancel.clone(),
        ..Request::default()
    });
    studio.model.generate(requests, settings.batch, &mut |event| match event {
        Event::Finished { slot, result: Ok(picture) } => {
            found[slot.0] = Some(picture.rgb()?);
            Ok(())
        }
        Event::Finished { result: Err(Error::NotFinite(_)), .. } => Ok(()),
        Event::Finished { result: Err(error), .. } => Err(error),
        _ => Ok(()),
    })?;
    Ok(found)
}

/// Judges a picture.
fn settle(
    studio: &Studio,
    one: &mut Draw,
    picture: &RgbImage,
    done: &Gallery,
    settings: &SynthesisSettings,
) -> Result<()> {
    one.verdict = Verdict::Accepted;
    if let Some(judge) = studio.judge {
        let opinion = judge.look(std::slice::from_ref(picture), one.label)?.remove(0);
        one.verdict = opinion.verdict;
        one.seen = Some((opinion.class, opinion.probability));
    }
    if let Some(clip) = studio.clip {
        let text = clip.texts(&[&one.prompt])?;
        let score = clip.pictures(std::slice::from_ref(picture))?.similarity(&text)?[0];
        one.clip_score = Some(score);
        // What is no number is not enough.
        let enough = settings.min_clip_score.is_none_or(|least| score >= least);
        if one.verdict == Verdict::Accepted && !enough {
            one.verdict = Verdict::LowClipScore;
        }
    }
    if let Some(training) = studio.training {
        let similarity = training.similarity(picture)?;
        one.similarity = Some(similarity);
        if one.verdict == Verdict::Accepted && similarity >= settings.max_similarity {
            one.verdict = Verdict::NearTraining;
        }
    }
    if one.verdict == Verdict::Accepted && done.similarity(picture)? >= settings.max_similarity {
        one.verdict = Verdict::NearAccepted;
    }
    Ok(())
}

/// How many draws came to what.
pub fn count<'a>(draws: impl IntoIterator<Item = &'a Draw>) -> BTreeMap<Verdict, usize> {
    draws.into_iter().fold(BTreeMap::new(), |mut all, draw| {
        *all.entry(draw.verdict).or_default() += 1;
        all
    })
}

fn too_few(
    records: &Records,
    class: &PromptClass,
    label: usize,
    settings: &SynthesisSettings,
) -> Error {
    let counts = count(records.draws().iter().filter(|draw| draw.label == label));
    let counts: Vec<_> =
        counts.iter().map(|(verdict, n)| format!("{n} {}", verdict.name())).collect();
    let expected = format!(
        "of {} draws, which --max-draws allows, too few are good enough ({}). What is there stays; another folder with more \
         draws, other prompts or another judge may come to an end",
        settings.most(),
        counts.join(", ")
    );
    Error::argument(
        "per_class",
        format!("{} of class {:?}", settings.per_class, class.name),
        expected,
    )
}
