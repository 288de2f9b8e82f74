//! The protocol of the research project that nadir follows ("Exploring diffusion models for realistic satellite imagery"), as
//! it was: a classifier learns from drawn pictures and is tested on drawn pictures, on the very ones that decided when it
//! stopped to learn, mirrored and lit at random while it is tested. What comes out says nothing about real pictures.

use std::fs;
use std::path::Path;

use super::scores::Confusion;
use crate::data::{Augment, DataSettings, Dataset, Normalize};
use crate::error::{Error, Result};
use crate::models::resnet::ResNetConfig;
use crate::pipeline::Cancel;
use crate::pipeline::classifier::{Classifier, best};
use crate::tensor::Device;
use crate::train::checkpoint::Resume;
use crate::train::classify::ClassifyTask;
use crate::train::{Run, Settings};

/// Its numbers.
const SEED: u64 = 42;
const BATCH: usize = 8;
const EPOCHS: u64 = 35;
const PATIENCE: u64 = 5;
const LEARNING_RATE: f64 = 1e-3;
const HELD_OUT: f64 = 0.1;
const WIDTH: usize = 64;
/// Height and width that it brought pictures to.
pub const RESOLUTION: usize = 512;

/// What is wrong with it, for who reads its figure.
pub const FLAWS: &str = "As published: the pictures that it is tested on are drawn ones, are those that decided when it stopped \
     to learn, and were mirrored and lit at random. The figure says how well drawn pictures are known again, nothing about \
     real ones.";

/// Trains a ResNet-18 on 90 % of the drawn pictures in `path` and tests it on the others; keeps it in `folder`. `watch` is told
/// of every update, and of how many there will be at most.
///
/// # Errors
/// Data without classes, or with too few pictures; `Interrupted`; those of training and writing.
pub fn as_published(
    path: &Path,
    folder: &Path,
    resolution: usize,
    device: Device,
    cancel: &Cancel,
    watch: &mut dyn FnMut(u64),
) -> Result<Confusion> {
    let augment =
        Augment { random_flip: true, brightness: 0.2, contrast: 0.2, ..Augment::default() };
    let settings = DataSettings {
        resolution: Some(resolution),
        augment,
        normalize: Normalize::IMAGENET,
        ..DataSettings::default()
    };
    let (data, held_out) = Dataset::open(path, settings)?.split(HELD_OUT, SEED)?;
    let shape = |classes| ResNetConfig::resnet18(WIDTH, classes);
    let task = ClassifyTask::new(&data, shape, SEED, device)?;
    let epoch = data.len().div_ceil(BATCH) as u64;
    let training = Settings {
        train_batch_size: BATCH,
        max_train_steps: EPOCHS * epoch,
        learning_rate: LEARNING_RATE,
        validation_steps: Some(epoch),
        checkpointing_steps: epoch,
        checkpoints_total_limit: Some(1),
        early_stopping_patience: Some(PATIENCE),
        seed: SEED,
        ..Settings::default()
    };
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, e))?;
    let run = Run {
        task: &task,
        settings: &training,
        data: &data,
        held_out: Some(&held_out),
        folder,
        about: &[("protocol".to_owned(), FLAWS.to_owned())],
        resume: Some(&Resume::Latest),
        cancel,
    };
    run.complete(&mut || watch(training.max_train_steps))?;
    let classifier = Classifier::open(&folder.join("classifier"), device)?;
    let mut confusion = Confusion::new(data.classes().len());
    // The stream that networks learn from, which mirrors and lights pictures: each held-out one comes once in an epoch.
    let mut left = held_out.len();
    for batch in held_out.stream(BATCH.min(left), SEED, 0, 1)? {
        let batch = batch?;
        let seen = classifier.classify_prepared(&batch.images)?;
        for (label, probabilities) in batch.labels.iter().zip(seen).take(left) {
            confusion.add(*label as usize, best(&probabilities).0);
        }
        left = left.saturating_sub(batch.labels.len());
        if left == 0 {
            break;
        }
    }
    Ok(confusion)
}
