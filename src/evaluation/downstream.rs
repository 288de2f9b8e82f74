//! What a data set of drawn pictures teaches a classifier, beside real pictures and together with them.
//!
//! Every network is the same, from new weights, and makes as many updates; it is tested on the same real pictures, which
//! none has learned from. Several seeds, each with real pictures of its own choice, say how far to believe a mean.

use std::fs;
use std::path::{Path, PathBuf};

use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::leak::{Leak, check_test, leaks};
use super::page::{self, Page};
use super::scores::{Confusion, calibration_error};
use crate::data::{Augment, DataSettings, Dataset, Normalize};
use crate::error::{Error, Result};
use crate::io::parquet::{Picture, PictureWriter};
use crate::io::{atomic, config};
use crate::models::resnet::ResNetConfig;
use crate::pipeline::Cancel;
use crate::pipeline::classifier::{Classifier, best};
use crate::tensor::Device;
use crate::train::checkpoint::Resume;
use crate::train::classify::ClassifyTask;
use crate::train::{Run, Schedule, Settings};

/// Test pictures that are looked at at once.
const BATCH: usize = 64;

/// How it is found out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DownstreamSettings {
    /// Numbers of real pictures that networks learn from.
    pub real_counts: Vec<usize>,
    /// Networks of each kind; the i-th begins with seed i.
    pub seeds: u64,
    /// Channels of the ResNet-18's first stage.
    pub base_width: usize,
    /// Updates of every network.
    pub steps: u64,
    /// Pictures of an update.
    pub batch: usize,
    /// Of AdamW, behind a tenth of the steps; it falls to 0 like a cosine.
    pub learning_rate: f64,
}

impl DownstreamSettings {
    /// Checks the numbers, of `real` pictures of so many `classes`.
    pub(super) fn check(&self, classes: usize, real: usize) -> Result<()> {
        let numbers = [
            ("seeds", self.seeds),
            ("steps", self.steps),
            ("batch", self.batch as u64),
            ("base_width", self.base_width as u64),
        ];
        if let Some((name, _)) = numbers.into_iter().find(|(_, n)| *n == 0) {
            return Err(Error::argument(name, 0, "at least 1"));
        }
        if !(self.learning_rate > 0.0 && self.learning_rate.is_finite()) {
            return Err(Error::argument("learning_rate", self.learning_rate, "above 0"));
        }
        if let Some(count) = self.real_counts.iter().find(|n| !(classes..=real).contains(*n)) {
            let expected =
                format!("{classes}, as many as there are classes, to the {real} that there are");
            return Err(Error::argument("real_count", count, expected));
        }
        Ok(())
    }

    /// How all networks are trained.
    pub(super) fn training(&self, seed: u64) -> Settings {
        Settings {
            train_batch_size: self.batch,
            max_train_steps: self.steps,
            learning_rate: self.learning_rate,
            lr_scheduler: Schedule::Cosine,
            lr_warmup_steps: self.steps / 10,
            checkpointing_steps: self.steps.max(1),
            checkpoints_total_limit: Some(1),
            seed,
            ..Settings::default()
        }
    }

    /// Finds out what each network comes to that is not known yet, each in a folder below `folder`.
    pub(super) fn each(
        &self,
        synthetic: usize,
        folder: &Path,
        watch: &mut dyn FnMut(Option<&str>),
        mut find_out: impl FnMut(&Network, &mut dyn FnMut(Option<&str>)) -> Result<Scores>,
    ) -> Result<Vec<Found>> {
        let mut conditions = vec![Condition { real: 0, synthetic }];
        for &real in &self.real_counts {
            conditions.push(Condition { real, synthetic: 0 });
            conditions.push(Condition { real, synthetic });
        }
        let (sets, runs) = (folder.join("sets"), folder.join("runs"));
        fs::create_dir_all(&sets).map_err(|e| Error::io(&sets, e))?;
        let mut found = Vec::new();
        for condition in conditions {
            let mut scores = Vec::new();
            for seed in 0..self.seeds {
                watch(Some(&format!("{}, seed {seed}", condition.name())));
                let slug = condition.slug(seed);
                let run = runs.join(&slug);
                let path = run.join("scores.json");
                if !path.exists() {
                    fs::create_dir_all(&run).map_err(|e| Error::io(&run, e))?;
                    let set = sets.join(format!("{slug}.parquet"));
                    let found =
                        find_out(&Network { condition: &condition, seed, set, run }, watch)?;
                    let text =
                        serde_json::to_string(&found).map_err(|e| Error::io(&path, e.into()))?;
                    atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
                } else {
                    (0..self.steps).for_each(|_| watch(None));
                }
                let text = config::read_json(&path)?;
                scores.push(serde_json::from_value(text).map_err(|e| {
                    let advice = "Remove the file: what it says is found out again.";
                    Error::file(&path, "content", "scores", e.to_string(), advice)
                })?);
            }
            found.push(Found { condition, scores });
        }
        Ok(found)
    }
}

/// A network that is trained.
pub(super) struct Network<'a> {
    /// What it learns from.
    pub condition: &'a Condition,
    /// What it begins with.
    pub seed: u64,
    /// The file of it.
    pub set: PathBuf,
    /// The network's folder, which exists.
    pub run: PathBuf,
}

/// Keeps what a folder was begun with, which is made if need be: what was found with other settings is no part of it.
pub(super) fn keep_settings(folder: &Path, now: &serde_json::Value) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let path = folder.join("settings.json");
    if !path.exists() {
        let text = format!("{now:#}\n");
        return atomic::write(&path, |out| out.write_all(text.as_bytes()));
    }
    let known = config::read_json(&path)?;
    if known != *now {
        let advice = "Name another folder, or go on with the settings and data that this one was begun with.";
        return Err(Error::file(&path, "settings", known.to_string(), now.to_string(), advice));
    }
    Ok(())
}

/// The page that all is on.
pub fn page(folder: &Path) -> PathBuf {
    folder.join("report.html")
}

/// What networks learn from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// So many real pictures.
    pub real: usize,
    /// The drawn ones.
    pub synthetic: usize,
}

impl Condition {
    /// As people say it.
    pub fn name(&self) -> String {
        match (self.real, self.synthetic) {
            (real, 0) => format!("{real} real"),
            (0, synthetic) => format!("{synthetic} synthetic"),
            (real, synthetic) => format!("{real} real, {synthetic} synthetic"),
        }
    }

    fn slug(&self, seed: u64) -> String {
        format!("real-{}-synthetic-{}-seed-{seed}", self.real, self.synthetic)
    }
}

/// What a network came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Of the test pictures.
    pub confusion: Confusion,
    /// See [`calibration_error`].
    pub calibration_error: f64,
}

/// What networks of a kind came to, by seed.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// What they learned from.
    pub condition: Condition,
    /// Of each of them.
    pub scores: Vec<Scores>,
}

/// What to compare, and where.
pub struct Downstream<'a> {
    /// Real pictures to learn from.
    pub real: &'a Dataset,
    /// Drawn ones, of the same classes.
    pub synthetic: &'a Dataset,
    /// Real pictures to be tested by; none may be in `real`.
    pub test: &'a Dataset,
    /// What whatever drew and judged the drawn ones has learned from: what drawn pictures teach may be known from there.
    pub seen: Option<&'a Dataset>,
    /// Keeps all; what is there is not computed again.
    pub folder: &'a Path,
    /// Where networks compute.
    pub device: Device,
    /// Stops all.
    pub cancel: Cancel,
}

impl Downstream<'_> {
    /// Trains and tests all networks, and writes `report.html`. `watch` is told what goes on, and of every update.
    ///
    /// # Errors
    /// Data sets that do not fit together; `Interrupted`, which leaves all that is there; those of training and writing.
    pub fn run(
        &self,
        settings: &DownstreamSettings,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> Result<(Vec<Found>, Vec<Leak>)> {
        self.check(settings)?;
        self.check_settings(settings)?;
        let found = settings.each(self.synthetic.len(), self.folder, watch, |one, watch| {
            self.write_set(&one.set, one.condition, one.seed)?;
            self.train(one, settings, watch)?;
            test(&Classifier::open(&one.run.join("classifier"), self.device)?, self.test)
        })?;
        watch(Some("looking for nearest neighbours"));
        let seen = ("the generator and the judge have", self.seen);
        let leaks = leaks(self.synthetic, (self.real, self.test), seen, &self.cancel)?;
        let page = Page {
            network: format!("ResNet-18 of base width {}", settings.base_width),
            test: format!("{} test pictures", self.test.len()),
            folder: self.folder,
            classes: self.real.classes(),
            seen: self.seen.map(Dataset::len),
            picture: &|row| self.synthetic.picture(row),
        };
        page::write(&page, settings, &found, &leaks)?;
        Ok((found, leaks))
    }

    fn check(&self, settings: &DownstreamSettings) -> Result<()> {
        for data in [self.real, self.synthetic, self.test] {
            data.require_classes()?;
        }
        for data in [self.synthetic, self.test] {
            for row in 0..data.len() {
                let class = &data.classes()[data.label(row) as usize];
                if !self.real.classes().contains(class) {
                    let expected = format!("one of {}", self.real.classes().join(", "));
                    let advice = "All data sets must have the classes of the real one.";
                    return Err(Error::file(data.path(), "class", expected, class, advice));
                }
            }
        }
        settings.check(self.real.classes().len(), self.real.len())?;
        check_test(self.real, self.test, &self.cancel)
    }

    /// What was found with other settings is no part of this.
    fn check_settings(&self, settings: &DownstreamSettings) -> Result<()> {
        let data = [self.real, self.synthetic, self.test]
            .map(|data| Ok((data.path(), data.len(), checksum(data)?)));
        let data = data.into_iter().collect::<Result<Vec<_>>>()?;
        let now = serde_json::json!({
            "steps": settings.steps,
            "batch": settings.batch,
            "base_width": settings.base_width,
            "learning_rate": settings.learning_rate,
            "data": data,
        });
        keep_settings(self.folder, &now)
    }

    /// Rows of the real pictures, as many of each class as there can be, chosen by the seed.
    fn choose(&self, count: usize, seed: u64) -> Vec<usize> {
        let mut of_class: Vec<Vec<usize>> = vec![Vec::new(); self.real.classes().len()];
        for row in self.real.order(seed) {
            of_class[self.real.label(row) as usize].push(row);
        }
        let longest = of_class.iter().map(Vec::len).max().unwrap_or_default();
        // One of each class in turn, where there is one left.
        let turns =
            (0..longest).flat_map(|i| of_class.iter().filter_map(move |rows| rows.get(i).copied()));
        let mut rows: Vec<usize> = turns.take(count).collect();
        rows.sort_unstable();
        rows
    }

    /// What networks of a kind learn from, as a file that others can train on too.
    fn write_set(&self, path: &Path, condition: &Condition, seed: u64) -> Result<()> {
        let mut writer = PictureWriter::new(path, atomic::Output::create(path, true)?)?;
        let mut add = |data: &Dataset, row: usize| {
            let class = data.classes()[data.label(row) as usize].clone();
            let label =
                self.real.classes().iter().position(|known| *known == class).unwrap_or_default();
            writer.add(Picture {
                filename: Some(data.name(row).to_owned()),
                captions: data.captions(row).to_vec(),
                label: Some(label as u32),
                class: Some(class),
                image: data.encoded(row)?,
                mask: None,
            })
        };
        self.choose(condition.real, seed).into_iter().try_for_each(|row| add(self.real, row))?;
        (0..condition.synthetic).try_for_each(|row| add(self.synthetic, row))?;
        writer.finish()?.finish()
    }

    fn train(
        &self,
        one: &Network,
        settings: &DownstreamSettings,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> Result<()> {
        let [height, width] = self.test.size();
        let square = (height == width).then_some(height);
        let augment = Augment {
            random_flip: true,
            vertical_flip: true,
            random_rotate: true,
            ..Augment::default()
        };
        let data = DataSettings {
            resolution: square,
            augment,
            normalize: Normalize::IMAGENET,
            ..DataSettings::default()
        };
        let data = Dataset::open(&one.set, data)?;
        let shape = |classes| ResNetConfig::resnet18(settings.base_width, classes);
        let task = ClassifyTask::new(&data, shape, one.seed, self.device)?;
        let run = Run {
            task: &task,
            settings: &settings.training(one.seed),
            data: &data,
            held_out: None,
            folder: &one.run,
            about: &[],
            resume: Some(&Resume::Latest),
            cancel: &self.cancel,
        };
        run.complete(&mut || watch(None))
    }
}

/// Tells a data set from another of its name and size.
fn checksum(data: &Dataset) -> Result<String> {
    let mut sum = crc32fast::Hasher::new();
    for row in 0..data.len() {
        sum.update(&data.encoded(row)?);
        sum.update(data.classes()[data.label(row) as usize].as_bytes());
    }
    Ok(format!("{:08x}", sum.finalize()))
}

/// What a classifier says of pictures whose classes it knows by name.
///
/// # Errors
/// A class that it does not know; a picture that cannot be read any more.
pub fn test(classifier: &Classifier, data: &Dataset) -> Result<Scores> {
    let labels =
        data.classes().iter().map(|class| classifier.label(class)).collect::<Result<Vec<_>>>()?;
    let mut confusion = Confusion::new(classifier.classes().len());
    let mut seen = Vec::new();
    for start in (0..data.len()).step_by(BATCH) {
        let rows = start..data.len().min(start + BATCH);
        let pictures =
            rows.clone().map(|row| data.picture(row)).collect::<Result<Vec<RgbImage>>>()?;
        for (row, probabilities) in rows.zip(classifier.classify(&pictures)?) {
            let truth = labels[data.label(row) as usize];
            let (class, confidence) = best(&probabilities);
            confusion.add(truth, class);
            seen.push((confidence, class == truth));
        }
    }
    Ok(Scores { confusion, calibration_error: calibration_error(&seen) })
}
