//! The loop of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::checkpoint::{self, Checkpoint, Resume, State};
use super::optimizer::{Optimizer, in_order};
use super::precision::{LossScaler, MixedPrecision};
use super::random::{Purpose, Random};
use super::records::{Records, Sample};
use super::settings::Settings;
use crate::data::{Dataset, Examples};
use crate::error::{Error, Result};
use crate::nn::Parameter;
use crate::ops::adamw::length;
use crate::ops::elementwise::scale;
use crate::ops::gradient::{Gradients, backward_into};
use crate::pipeline::Cancel;
use crate::tensor::tape::{checkpointing, no_grad};
use crate::tensor::{DType, Device, Tensor};

/// Rows that a validation looks at together.
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

/// What is trained, by data of a kind: pictures where nothing else is said.
pub trait Task<D: Examples = Dataset>: Sync {
    /// Its name: the subcommand's.
    fn name(&self) -> &'static str;

    /// The weights that are trained, by name.
    fn parameters(&self) -> Vec<(String, &Parameter)>;

    /// What its networks compute in.
    fn precision(&self) -> MixedPrecision {
        MixedPrecision::No
    }

    /// What its weights mean besides their names and shapes, by the names of its settings: a checkpoint is good for the
    /// same alone.
    fn particulars(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// What else changes in training and belongs to a checkpoint: running statistics, by name.
    fn buffers(&self) -> Vec<(String, &Parameter)> {
        Vec::new()
    }

    /// The loss of a batch.
    ///
    /// # Errors
    /// Pictures or captions that do not fit the model.
    fn loss(&self, batch: &D::Batch, random: &mut Random) -> Result<Loss>;

    /// What is measured of held-out data, summed over the batch: [`Examples::count`] says over how many. Nothing is recorded.
    ///
    /// # Errors
    /// As [`Self::loss`].
    fn validate(&self, batch: &D::Batch, random: &mut Random) -> Result<Measured>;

    /// What follows from the means over all that is held out, besides.
    fn conclude(&self, means: &Measured) -> Measured {
        let _ = means;
        Measured::new()
    }

    /// Pictures, or texts, that show what the model can do, of its own choice or of `data`; `seed` is that of the run. The same
    /// ones whenever it is asked for them.
    ///
    /// # Errors
    /// `NotFinite`, and those of [`Self::validate`].
    fn samples(&self, data: &D, seed: u64) -> Result<Vec<Sample>> {
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
    /// Length of the gradient before it was shortened; not finite in a step that was skipped.
    pub gradient_norm: f64,
    /// Steps so far that left the weights as they were, since a gradient in fp16 overflowed.
    pub skipped: u64,
    /// What the loss was scaled by, in fp16.
    pub loss_scale: Option<f64>,
    /// Pictures a second in this step.
    pub speed: f64,
}

impl Progress {
    /// What is recorded of it, by name. A loss that is not finite leaves nothing.
    fn values(&self) -> Measured {
        let mut values =
            vec![("loss", self.loss), ("rate", self.rate), ("gradient_norm", self.gradient_norm)];
        values.extend(&self.parts);
        values.retain(|(_, value)| value.is_finite());
        if let Some(scale) = self.loss_scale {
            values.extend([("loss_scale", scale), ("skipped_steps", self.skipped as f64)]);
        }
        values
    }
}

/// What a run tells while it goes on.
#[derive(Clone, Debug)]
pub enum Event {
    /// It goes on behind this many steps.
    Resumed(u64),
    /// What it goes on from was trained in the first precision, and is trained in the second from now on.
    Converted(MixedPrecision, MixedPrecision),
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
pub struct Run<'a, D: Examples = Dataset> {
    /// What is trained.
    pub task: &'a dyn Task<D>,
    /// How.
    pub settings: &'a Settings,
    /// What it learns from.
    pub data: &'a D,
    /// What is held out.
    pub held_out: Option<&'a D>,
    /// Gets metrics, checkpoints and the exported model; it exists.
    pub folder: &'a Path,
    /// What its report says of it besides the settings: names and values.
    pub about: &'a [(String, String)],
    /// The checkpoint to go on from.
    pub resume: Option<&'a Resume>,
    /// Stops the run behind a step.
    pub cancel: &'a Cancel,
}

impl<D: Examples> Run<'_, D> {
    /// As [`Self::run`], to the last step; `step` is called behind each.
    ///
    /// # Errors
    /// As [`Self::run`], and `Interrupted` when it is cancelled, which leaves a checkpoint to go on from.
    pub fn complete(&self, step: &mut dyn FnMut()) -> Result<()> {
        let outcome = self.run(&mut |event| {
            if let Event::Step(_) = event {
                step();
            }
        })?;
        if matches!(outcome, Outcome::Stopped(_)) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Takes all steps that are left, or those until it is cancelled, and exports the model.
    ///
    /// # Errors
    /// What the task answers, `NotFinite` for a loss that is no number, and what cannot be read or, at the end, written.
    pub fn run(&self, report: &mut dyn FnMut(Event)) -> Result<Outcome> {
        let (settings, task) = (self.settings, self.task);
        settings.check()?;
        if task.precision() != settings.mixed_precision {
            let expected = format!("{}, in which the task computes", task.precision().name());
            let found = settings.mixed_precision.name();
            return Err(Error::argument("mixed_precision", found, expected));
        }
        let parameters = task.parameters();
        let mut optimizer = Optimizer::new(&parameters, settings.use_ema)?;
        let mut state = self.restore(&mut optimizer, &parameters, report)?;
        let mut records =
            Records::open(self.folder, task.name(), settings, self.about, state.step)?;
        let (batch, seed) = (settings.train_batch_size, settings.seed);
        let mut loader = self.data.stream(batch, seed, state.pictures, settings.loader_threads)?;
        let steps = settings.max_train_steps;
        let mut saved = true;
        while state.step < steps && !state.watch.is_over(settings) && !self.cancel.is_cancelled() {
            let started = Instant::now();
            // 1. loss and gradient
            let mut random = Random::new(seed, Purpose::Step, state.step);
            let loss_scale = state.scaler.as_ref().map(LossScaler::scale);
            let factor = loss_scale.unwrap_or(1.0);
            let ((loss, parts), gradients) =
                self.gradients(&parameters, &mut *loader, &mut random, factor)?;
            let gradient_norm = length(&gradients)? / factor;
            let is_finite = loss.is_finite() && gradient_norm.is_finite();
            match &mut state.scaler {
                Some(scaler) => scaler.take_up(is_finite)?,
                None if is_finite => {}
                None => {
                    return Err(Error::NotFinite(format!(
                        "step {}: a loss of {loss} and a gradient of length {gradient_norm}: resume from a checkpoint \
                         with a lower learning rate",
                        state.step + 1
                    )));
                }
            }
            // 2. step
            let rate = settings.rate_at(state.step, state.watch.rate(settings));
            if is_finite {
                let shortened = (settings.max_grad_norm / (gradient_norm + 1e-6)).min(1.0);
                optimizer.update(&parameters, gradients, settings, (rate, shortened / factor))?;
                state.watch.step(loss);
            } else {
                state.skipped += 1;
            }
            state.step += 1;
            state.pictures += settings.pictures();
            // 3. records
            let progress = Progress {
                step: state.step,
                steps,
                loss,
                parts,
                rate,
                gradient_norm,
                skipped: state.skipped,
                loss_scale,
                speed: settings.pictures() as f64 / started.elapsed().as_secs_f64(),
            };
            records.values(state.step, &progress.values());
            report(Event::Step(progress));
            // 4. what is held out, and a checkpoint
            let mut measured = None;
            if settings.validates_at(state.step) {
                let found =
                    self.validate(state.step, &optimizer, &parameters, &mut records, report)?;
                let loss = found.iter().find(|(name, _)| *name == "validation_loss");
                state.watch.validation(loss.map(|(_, loss)| *loss), settings);
                measured = Some(found);
            }
            saved = false;
            if state.step.is_multiple_of(settings.checkpointing_steps) && state.step < steps {
                match self.save(&optimizer, &parameters, &state, measured, &mut records, report) {
                    Ok(()) => saved = true,
                    Err(error) => report(Event::Failed(error.to_string())),
                }
            }
            records.news().into_iter().for_each(|news| report(Event::Failed(news)));
        }
        let saving = match saved {
            true => Ok(()),
            false => self.save(&optimizer, &parameters, &state, None, &mut records, report),
        };
        let (outcome, ended) = match state.step < steps {
            true if state.watch.is_over(settings) => {
                (Outcome::Stayed(state.step), "Ended, since losses stay")
            }
            true => (Outcome::Stopped(state.step), "Stopped"),
            false => (Outcome::Done, "Done"),
        };
        records.show(ended, false);
        records.news().into_iter().for_each(|news| report(Event::Failed(news)));
        saving?;
        Ok(outcome)
    }

    /// Where the run stands: at its beginning, or where a checkpoint that it takes up stood.
    fn restore(
        &self,
        optimizer: &mut Optimizer,
        parameters: &[(String, &Parameter)],
        report: &mut dyn FnMut(Event),
    ) -> Result<State> {
        let (task, particulars) = (self.task.name(), self.task.particulars());
        let begun = State::new(task, particulars, self.settings);
        let Some(resume) = self.resume else { return Ok(begun) };
        let Some(checkpoint) = Checkpoint::find(self.folder, resume)? else { return Ok(begun) };
        let state = checkpoint.state().clone();
        let refused = |what: &str, expected: &str, found: &str, advice: &str| {
            let (expected, found) = (format!("{expected:?}"), format!("{found:?}"));
            Err(Error::file(checkpoint.path(), what, expected, found, advice))
        };
        if state.task != task {
            return refused("task", task, &state.task, "Resume from a checkpoint of this task.");
        }
        for (name, expected) in &begun.particulars {
            // Checkpoints of older versions do not tell.
            if let Some(found) = state.particulars.get(name).filter(|found| *found != expected) {
                let advice = format!("Resume with --{} {found}.", name.replace('_', "-"));
                return refused(name, expected, found, &advice);
            }
        }
        let number = state.step - state.skipped.min(state.step);
        optimizer.restore(parameters, number, |name, shape| checkpoint.read(name, shape))?;
        for (name, buffer) in self.task.buffers() {
            buffer.set(&checkpoint.read(&format!("buffer.{name}"), &buffer.shape())?)?;
        }
        report(Event::Resumed(state.step));
        // All that is kept is f32 in every precision.
        let [before, now] = [&state, &begun].map(|state| state.settings.mixed_precision);
        if before != now {
            report(Event::Converted(before, now));
        }
        let scaler = begun.scaler.map(|new| state.scaler.clone().unwrap_or(new));
        let State { step, skipped, pictures, watch, .. } = state;
        Ok(State { step, skipped, pictures, watch, scaler, ..begun })
    }

    /// Mean loss, with its parts, and gradients of the batches of one step, times `factor`.
    #[allow(clippy::type_complexity)]
    fn gradients(
        &self,
        parameters: &[(String, &Parameter)],
        batches: &mut dyn Iterator<Item = Result<D::Batch>>,
        random: &mut Random,
        factor: f64,
    ) -> Result<((f64, Measured), Vec<Tensor>)> {
        let count = self.settings.gradient_accumulation_steps;
        let share = 1.0 / count as f64;
        let (mut total, mut parts, mut sums) = (0.0, Vec::new(), Gradients::default());
        for number in 0..count {
            let ended = || Error::value("train", "the data set has ended");
            let batch = batches.next().ok_or_else(ended)??;
            let (task, checkpoint) = (self.task, self.settings.gradient_checkpointing);
            // On one of the threads that share out work: hundreds of small operations need not wake one each.
            let (value, loss_parts) = rayon::scope(|_| {
                let loss = match checkpoint {
                    true => checkpointing(|| task.loss(&batch, random)),
                    false => task.loss(&batch, random),
                }?;
                let value = loss.total.detach();
                let root = match share * factor {
                    1.0 => loss.total,
                    factor => scale(&loss.total, factor as f32)?,
                };
                backward_into(root, &mut sums)?;
                Ok((value, loss.parts))
            })?;
            // Numbers are asked for last: a device has all of its work by then.
            total += share * number_of(&value)?;
            let mean = |(name, value)| Ok((name, share * number_of(&value)?));
            let loss_parts: Vec<_> = loss_parts.into_iter().map(mean).collect::<Result<_>>()?;
            if number == 0 {
                parts = loss_parts;
                continue;
            }
            for (sum, part) in parts.iter_mut().zip(loss_parts) {
                sum.1 += part.1;
            }
        }
        Ok(((total, parts), in_order(parameters, sums)?))
    }

    /// Looks at what is held out and draws pictures, with the weights' averages.
    fn validate(
        &self,
        step: u64,
        optimizer: &Optimizer,
        parameters: &[(String, &Parameter)],
        records: &mut Records,
        report: &mut dyn FnMut(Event),
    ) -> Result<Measured> {
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
            Ok(samples) => records.samples(step, &samples),
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
        state: &State,
        measured: Option<Measured>,
        records: &mut Records,
        report: &mut dyn FnMut(Event),
    ) -> Result<()> {
        let measured = match measured {
            Some(measured) => measured,
            None => self.validate(state.step, optimizer, parameters, records, report)?,
        };
        records.show("Training", true);
        optimizer.with_averages(parameters, || self.task.export(self.folder, &measured))?;
        // Last, so that whoever goes on from it lacks nothing of what came before.
        let mut tensors = optimizer.state(parameters)?;
        for (name, buffer) in self.task.buffers() {
            tensors.extend(buffer.tensor().map(|tensor| (format!("buffer.{name}"), tensor)));
        }
        let limit = self.settings.checkpoints_total_limit;
        report(Event::Saved(checkpoint::write(self.folder, state, &tensors, limit)?));
        Ok(())
    }

    /// Means over what is held out.
    fn measure(&self, held_out: &D) -> Result<Measured> {
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
        let count = held_out.count() as f64;
        let mut means: Measured = sums.into_iter().map(|(name, sum)| (name, sum / count)).collect();
        means.extend(self.task.conclude(&means));
        Ok(means)
    }
}

/// A tensor of one element as a number.
pub(super) fn number_of(x: &Tensor) -> Result<f64> {
    let x = x.detach().to_device(Device::Cpu)?.to_dtype(DType::F64)?.to_vec::<f64>()?;
    Ok(x.first().copied().unwrap_or(f64::NAN))
}
