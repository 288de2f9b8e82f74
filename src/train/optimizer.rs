//! AdamW over the parameters of a task, with the moving average of the weights.

use super::settings::Settings;
use crate::error::{Error, Result};
use crate::nn::Parameter;
use crate::ops::adamw::{Step, adamw};
use crate::tensor::{DType, Tensor};

/// What is kept beside a weight.
struct Slot {
    name: String,
    moments: [Tensor; 2],
    ema: Option<Tensor>,
}

/// The state of the optimiser.
pub struct Optimizer {
    slots: Vec<Slot>,
    /// Updates of the weights.
    step: u64,
}

impl Optimizer {
    /// At the beginning: moments of 0, averages as the weights are.
    ///
    /// # Errors
    /// `DType` for weights other than f32, `OutOfMemory`.
    pub fn new(parameters: &[(String, &Parameter)], ema: bool) -> Result<Self> {
        let slot = |(name, parameter): &(String, &Parameter)| {
            let weight = elements(name, parameter)?;
            let zeros = || Tensor::zeros(*weight.shape(), DType::F32, weight.device());
            let moments = [zeros()?, zeros()?];
            Ok(Slot { name: name.clone(), moments, ema: ema.then(|| weight.detach()) })
        };
        Ok(Self { slots: parameters.iter().map(slot).collect::<Result<_>>()?, step: 0 })
    }

    /// Updates of the weights so far.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// One step down the gradients, which are in the parameters' order, first multiplied by `scale`. They are let go of one
    /// by one, so that moments and averages of a first step take their place.
    ///
    /// # Errors
    /// Those of [`adamw`].
    pub fn update(
        &mut self,
        parameters: &[(String, &Parameter)],
        gradients: Vec<Tensor>,
        settings: &Settings,
        (rate, scale): (f64, f64),
    ) -> Result<()> {
        let number = self.step + 1;
        let step = Step {
            number,
            rate,
            betas: [settings.adam_beta1, settings.adam_beta2],
            epsilon: settings.adam_epsilon,
            weight_decay: settings.adam_weight_decay,
            gradient_scale: scale,
            ema_decay: settings.ema_decay_at(number),
        };
        for ((slot, (name, parameter)), gradient) in
            self.slots.iter_mut().zip(parameters).zip(gradients)
        {
            let weight = elements(name, parameter)?.detach();
            let moments = [&slot.moments[0], &slot.moments[1]];
            let updated = adamw(&weight, &gradient, moments, slot.ema.as_ref(), step)?;
            drop((weight, gradient));
            parameter.set(&updated.weight)?;
            (slot.moments, slot.ema) = (updated.moments, updated.ema);
        }
        self.step = number;
        Ok(())
    }

    /// Runs `f` while the parameters are their moving averages, where those are kept.
    ///
    /// # Errors
    /// What `f` answers.
    pub fn with_averages<T>(
        &self,
        parameters: &[(String, &Parameter)],
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let mut own = Vec::new();
        for (slot, (name, parameter)) in self.slots.iter().zip(parameters) {
            if let Some(ema) = &slot.ema {
                own.push((parameter, elements(name, parameter)?.detach()));
                parameter.set(ema)?;
            }
        }
        let result = f();
        for (parameter, weight) in own {
            parameter.set(&weight)?;
        }
        result
    }

    /// All that has to be kept to go on, by name: weights, moments and averages.
    ///
    /// # Errors
    /// None for the parameters that it was made for.
    pub fn state(&self, parameters: &[(String, &Parameter)]) -> Result<Vec<(String, Tensor)>> {
        let mut state = Vec::new();
        for (slot, (name, parameter)) in self.slots.iter().zip(parameters) {
            state.push((format!("weight.{name}"), elements(name, parameter)?.detach()));
            for (kind, moment) in ["first_moment", "second_moment"].iter().zip(&slot.moments) {
                state.push((format!("{kind}.{name}"), moment.clone()));
            }
            state.extend(slot.ema.iter().map(|ema| (format!("average.{name}"), ema.clone())));
        }
        Ok(state)
    }

    /// Takes up what [`state`](Self::state) gave, behind `step` updates; `read` gives it by name and shape.
    ///
    /// # Errors
    /// What `read` answers.
    pub fn restore(
        &mut self,
        parameters: &[(String, &Parameter)],
        step: u64,
        mut read: impl FnMut(&str, &[usize]) -> Result<Tensor>,
    ) -> Result<()> {
        for (slot, (name, parameter)) in self.slots.iter_mut().zip(parameters) {
            let (shape, device) = (parameter.shape(), elements(name, parameter)?.device());
            let mut read = |kind: &str| read(&format!("{kind}.{name}"), &shape)?.to_device(device);
            parameter.set(&read("weight")?)?;
            slot.moments = [read("first_moment")?, read("second_moment")?];
            if let Some(ema) = &mut slot.ema {
                *ema = read("average")?;
            }
        }
        self.step = step;
        Ok(())
    }

    /// Names of the parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().map(|slot| slot.name.as_str())
    }
}

fn elements(name: &str, parameter: &Parameter) -> Result<Tensor> {
    let tensor = parameter
        .tensor()
        .ok_or_else(|| Error::Weights(format!("{name} is frozen: load it as trainable")))?;
    match tensor.dtype() {
        DType::F32 => Ok(tensor),
        found => Err(Error::DType { op: "optimizer", expected: "f32", found }),
    }
}

/// Gradients of the parameters in their order; zeros where the loss does not depend on one.
///
/// # Errors
/// `OutOfMemory`.
pub fn in_order(
    parameters: &[(String, &Parameter)],
    mut gradients: crate::ops::gradient::Gradients,
) -> Result<Vec<Tensor>> {
    let gradient = |(name, parameter): &(String, &Parameter)| {
        let weight = elements(name, parameter)?;
        match gradients.take(&weight) {
            Some(gradient) => gradient.contiguous(),
            None => Tensor::zeros(*weight.shape(), DType::F32, weight.device()),
        }
    };
    parameters.iter().map(gradient).collect()
}
