//! The loop of a run.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::{self, Checkpoint, Resume, State};
use super::optimizer::{Optimizer, in_order};
use super::random::{Purpose, Random};
use super::records::{Records, Sample};
use super::settings::Settings;
use super::watch::Watch;
use crate::data::{Batch, Dataset};
use crate::error::{Error, Result};
use crate::nn::Parameter;
use crate::ops::adamw::length;
use crate::ops::elementwise::{add, scale};
use crate::ops::gradient::backward;
use crate::pipeline::Cancel;
use crate::tensor::tape::{checkpointing, no_grad};
use crate::tensor::{DType, Device, Tensor};

/// Pictures that a validation looks at together.
const VALIDATION_BATCH: usize = 16;

/// The loss of a batch.
pub struct Loss {
    /// What is minimised: one number.
    pub total: Tensor,
    /// What it is made of, by name, to be shown: one number each.
    pub parts: Vec<(&'static str, Tensor)>,
}

/// Quantities by name.
pub type Measured = Vec<(&'static str, f64)>;

/// What is trained.
pub trait Task {
    /// Its name: the subcommand's.
    fn name(&self) -> &'static str;

    /// The weights that are trained, by name.
    fn parameters(&self) -> Vec<(String, &Parameter)>;

    /// What else changes in training and belongs to a checkpoint: running statistics, by name.
    fn buffers(&self) -> Vec<(String, &Parameter)> {
        Vec::new()
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// Pictures or captions that do not fit the model.
    fn loss(&self, batch: &Batch, random: &mut Random) -> Result<Loss>;

    /// What is measured of held-out pictures, summed over the batch; their number comes of itself. Nothing is recorded.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn validate(&self, batch: &Batch, random: &mut Random) -> Result<Measured>;

    /// Pictures that show what the model can do, of its own choice or of `data`; `seed` is that of the run. The same
    /// ones whenever it is asked for them.
    ///
    /// # Errors
    /// `NotFinite`, and those of [`Self::validate`].
    fn samples(&self, data: &Dataset, seed: u64) -> Result<Vec<Sample>> {
        let _ = (data, seed);
        Ok(Vec::new())
    }

    /// Writes the model with its weights as they are into `folder`; `measured` is what held-out pictures have shown of it.
    ///
    /// # Errors
    /// A file cannot be written.
    fn export(&self, folder: &Path, measured: &Measured) -> Result<()>;
}

/// A step that was taken.
#[derive(Clone, Debug)]
pub struct Progress {
    /// Steps taken.
    pub step: u64,
    /// Of so many.
    pub steps: u64,
    /// The batch's loss.
    pub loss: f64,
    /// What it is made of.
    pub parts: Measured,
    /// Learning rate.
    pub rate: f64,
    /// Length of the gradient before it was shortened.
    pub gradient_norm: f64,
    /// Pictures a second in this step.
    pub speed: f64,
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub enum Event {
    /// It goes on behind this many steps.
    Resumed(u64),
    /// A step was taken.
    Step(Progress),
    /// Held-out pictures were looked at, behind this many steps.
    Validated(u64, Measured),
    /// A checkpoint was written.
    Saved(PathBuf),
    /// A checkpoint, or what a run leaves for its reader, could not be written; the run goes on.
    Failed(String),
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All steps were taken.
    Done,
    /// Losses have not become less for as long as the settings wait: it is over behind this many steps.
    Stayed(u64),
    /// It was stopped behind this many steps, and can be resumed.
    Stopped(u64),
}

/// A run: a task, what it learns from, and where it is kept.
pub struct Run<'a> {
    /// What is trained.
    pub task: &'a dyn Task,
    /// How.
    pub settings: &'a Settings,
    /// Pictures to learn from.
    pub data: &'a Dataset,
    /// Pictures that are held out.
    pub held_out: Option<&'a Dataset>,
    /// Gets metrics, checkpoints and the exported model; it exists.
    pub folder: &'a Path,
    /// What its report says of it besides the settings: names and values.
    pub about: &'a [(String, String)],
    /// The checkpoint to go on from.
    pub resume: Option<&'a Resume>,
    /// Stops the run behind a step.
    pub cancel: &'a Cancel,
}

impl Run<'_> {
    /// Takes all steps that are left, or those until it is cancelled, and exports the model.
    ///
    /// # Errors
    /// What the task answers, `NotFinite` for a loss that is no number, and what cannot be read or, at the end, written.
    pub fn run(&self, report: &mut dyn FnMut(Event)) -> Result<Outcome> {
        let (settings, task) = (self.settings, self.task);
        settings.check()?;
        let parameters = task.parameters();
        let mut optimizer = Optimizer::new(&parameters, settings.use_ema)?;
        let (pictures, mut watch) = self.restore(&mut optimizer, &parameters, report)?;
        let mut records =
            Records::open(self.folder, task.name(), settings, self.about, optimizer.step())?;
        let (batch, seed) = (settings.train_batch_size, settings.seed);
        let mut loader = self.data.stream(batch, seed, pictures, settings.loader_threads)?;
        let (first, steps) = (optimizer.step(), settings.max_train_steps);
        let mut saved = true;
        while optimizer.step() < steps && !watch.is_over(settings) && !self.cancel.is_cancelled() {
            let started = Instant::now();
            let step = optimizer.step();
            // 1. loss and gradient
            let mut random = Random::new(seed, Purpose::Step, step);
            let (loss, gradients) = self.gradients(&parameters, &mut loader, &mut random)?;
            let gradient_norm = length(&gradients)?;
            let total = loss.0;
            if !total.is_finite() || !gradient_norm.is_finite() {
                return Err(Error::NotFinite(format!(
                    "step {}: a loss of {total} and a gradient of length {gradient_norm}: resume from a checkpoint \
                     with a lower learning rate",
                    step + 1
                )));
            }
            // 2. step
            let rate = settings.rate_at(step, watch.rate(settings));
            let shortened = (settings.max_grad_norm / (gradient_norm + 1e-6)).min(1.0);
            optimizer.update(&parameters, &gradients, settings, (rate, shortened))?;
            drop(gradients);
            // 3. records
            let speed = settings.pictures() as f64 / started.elapsed().as_secs_f64();
            let (step, parts) = (optimizer.step(), loss.1);
            let mut values =
                vec![("loss", total), ("rate", rate), ("gradient_norm", gradient_norm)];
            values.extend(&parts);
            records.values(step, &values);
            watch.step(total);
            report(Event::Step(Progress {
                step,
                steps,
                loss: total,
                parts,
                rate,
                gradient_norm,
                speed,
            }));
            // 4. what is held out, and a checkpoint
            let mut measured = None;
            if settings.validates_at(step) {
                let found = self.validate(&optimizer, &parameters, &mut records, report)?;
                let loss = found.iter().find(|(name, _)| *name == "validation_loss");
                watch.validation(loss.map(|(_, loss)| *loss), settings);
                measured = Some(found);
            }
            saved = false;
            if step.is_multiple_of(settings.checkpointing_steps) && step < steps {
                let at = pictures + (step - first) * settings.pictures();
                match self.save(
                    &optimizer,
                    &parameters,
                    (at, &watch),
                    measured,
                    &mut records,
                    report,
                ) {
                    Ok(()) => saved = true,
                    Err(error) => report(Event::Failed(error.to_string())),
                }
            }
            records.news().into_iter().for_each(|news| report(Event::Failed(news)));
        }
        let step = optimizer.step();
        let saving = match saved {
            true => Ok(()),
            false => {
                let at = pictures + (step - first) * settings.pictures();
                self.save(&optimizer, &parameters, (at, &watch), None, &mut records, report)
            }
        };
        let (outcome, state) = match step < steps {
            true if watch.is_over(settings) => (Outcome::Stayed(step), "Ended, since losses stay"),
            true => (Outcome::Stopped(step), "Stopped"),
            false => (Outcome::Done, "Done"),
        };
        records.show(state, false);
        records.news().into_iter().for_each(|news| report(Event::Failed(news)));
        saving?;
        Ok(outcome)
    }

    /// Takes up a checkpoint: the pictures that were seen, and what was made of their losses.
    fn restore(
        &self,
        optimizer: &mut Optimizer,
        parameters: &[(String, &Parameter)],
        report: &mut dyn FnMut(Event),
    ) -> Result<(u64, Watch)> {
        let none = || Ok((0, Watch::default()));
        let Some(resume) = self.resume else { return none() };
        let Some(checkpoint) = Checkpoint::find(self.folder, resume)? else { return none() };
        let state = checkpoint.state();
        if state.task != self.task.name() {
            let (expected, found) =
                (format!("{:?}", self.task.name()), format!("{:?}", state.task));
            let advice = "Resume from a checkpoint of this task.";
            return Err(Error::file(checkpoint.path(), "task", expected, found, advice));
        }
        optimizer.restore(parameters, state.step, |name, shape| checkpoint.read(name, shape))?;
        for (name, buffer) in self.task.buffers() {
            buffer.set(&checkpoint.read(&format!("buffer.{name}"), &buffer.shape())?)?;
        }
        report(Event::Resumed(state.step));
        Ok((state.pictures, state.watch.clone()))
    }

    /// Mean loss, with its parts, and gradients of the batches of one step.
    #[allow(clippy::type_complexity)]
    fn gradients(
        &self,
        parameters: &[(String, &Parameter)],
        batches: &mut dyn Iterator<Item = Result<Batch>>,
        random: &mut Random,
    ) -> Result<((f64, Measured), Vec<Tensor>)> {
        let count = self.settings.gradient_accumulation_steps;
        let share = 1.0 / count as f64;
        let (mut total, mut parts, mut sums) = (0.0, Vec::new(), Vec::new());
        for number in 0..count {
            let ended = || Error::value("train", "the data set has ended");
            let batch = batches.next().ok_or_else(ended)??;
            let loss = match self.settings.gradient_checkpointing {
                true => checkpointing(|| self.task.loss(&batch, random)),
                false => self.task.loss(&batch, random),
            }?;
            let value = loss.total.detach();
            let root = if count == 1 { loss.total } else { scale(&loss.total, share as f32)? };
            let gradients = in_order(parameters, backward(root)?)?;
            // Numbers are asked for last: a device has all of its work by then.
            total += share * number_of(&value)?;
            let mean = |(name, value)| Ok((name, share * number_of(&value)?));
            let loss_parts: Vec<_> = loss.parts.into_iter().map(mean).collect::<Result<_>>()?;
            if number == 0 {
                (parts, sums) = (loss_parts, gradients);
                continue;
            }
            for (sum, part) in parts.iter_mut().zip(loss_parts) {
                sum.1 += part.1;
            }
            for (sum, gradient) in sums.iter_mut().zip(&gradients) {
                *sum = add(sum, gradient)?;
            }
        }
        Ok(((total, parts), sums))
    }

    /// Looks at what is held out and draws pictures, with the weights' averages.
    fn validate(
        &self,
        optimizer: &Optimizer,
        parameters: &[(String, &Parameter)],
        records: &mut Records,
        report: &mut dyn FnMut(Event),
    ) -> Result<Measured> {
        let step = optimizer.step();
        let (measured, samples) = optimizer.with_averages(parameters, || {
            no_grad(|| {
                let measured = self.held_out.map_or(Ok(Measured::new()), |data| self.measure(data));
                let samples =
                    self.task.samples(self.held_out.unwrap_or(self.data), self.settings.seed);
                Ok((measured?, samples))
            })
        })?;
        records.values(step, &measured);
        // A picture that cannot be drawn yet is no reason to stop.
        match samples {
            Ok(samples) => records.pictures(step, &samples),
            Err(error) => report(Event::Failed(error.to_string())),
        }
        if !measured.is_empty() {
            report(Event::Validated(step, measured.clone()));
        }
        Ok(measured)
    }

    /// Exports the model with the weights' averages, then writes a checkpoint. `measured` is what held-out pictures have
    /// just shown, if they were looked at.
    fn save(
        &self,
        optimizer: &Optimizer,
        parameters: &[(String, &Parameter)],
        (pictures, watch): (u64, &Watch),
        measured: Option<Measured>,
        records: &mut Records,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let (step, settings) = (optimizer.step(), self.settings);
        let measured = match measured {
            Some(measured) => measured,
            None => self.validate(optimizer, parameters, records, report)?,
        };
        records.show("Training", true);
        optimizer.with_averages(parameters, || self.task.export(self.folder, &measured))?;
        // Last, so that whoever goes on from it lacks nothing of what came before.
        let state = State::new(self.task.name(), step, pictures, settings, watch);
        let mut tensors = optimizer.state(parameters)?;
        for (name, buffer) in self.task.buffers() {
            tensors.extend(buffer.tensor().map(|tensor| (format!("buffer.{name}"), tensor)));
        }
        let limit = settings.checkpoints_total_limit;
        report(Event::Saved(checkpoint::write(self.folder, &state, &tensors, limit)?));
        Ok(())
    }

    /// Means over the held-out pictures.
    fn measure(&self, held_out: &Dataset) -> Result<Measured> {
        let mut sums = Measured::new();
        let batches = held_out.pass(VALIDATION_BATCH, self.settings.loader_threads)?;
        for (number, batch) in batches.enumerate() {
            let mut random = Random::new(self.settings.seed, Purpose::Validation, number as u64);
            for (name, value) in self.task.validate(&batch?, &mut random)? {
                match sums.iter_mut().find(|(known, _)| *known == name) {
                    Some((_, sum)) => *sum += value,
                    None => sums.push((name, value)),
                }
            }
        }
        Ok(sums.into_iter().map(|(name, sum)| (name, sum / held_out.len() as f64)).collect())
    }
}

/// A tensor of one element as a number.
pub(super) fn number_of(x: &Tensor) -> Result<f64> {
    let x = x.detach().to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
    Ok(x.first().copied().unwrap_or(f64::NAN))
}
