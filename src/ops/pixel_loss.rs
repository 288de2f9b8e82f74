//! Losses of maps of classes beside cross entropy: dice and focal.
//!
//! Reference implementation: segmentation-models-pytorch, `losses/` (mode `multiclass`). Each is computed with its gradient, in
//! f64 on the host: of a network's work it is next to nothing.

use super::elementwise::{mul, require_float};
use super::gradient::Call;
use super::{Grads, Inputs, Meta, Op, apply, tensors};
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Tensor};

/// A loss of classes of pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PixelLoss {
    /// One less twice what predicted and true pixels share by what they are together, a class at a time (Milletari et al. 2016);
    /// a class of no true pixel counts 0.
    Dice {
        /// Added to both.
        smooth: f64,
    },
    /// Cross entropy of each class against all others, less where it is small already (Lin et al. 2017).
    Focal {
        /// How much less.
        gamma: f64,
        /// Weight of a class's own pixels, others having what is left to 1; all have 1 where there is none.
        alpha: Option<f64>,
    },
}

impl PixelLoss {
    /// As the library's `DiceLoss` is.
    pub const DICE: Self = Self::Dice { smooth: 0.0 };
    /// As the library's `FocalLoss` is.
    pub const FOCAL: Self = Self::Focal { gamma: 2.0, alpha: None };

    /// The loss of `logits` [.., C] for classes `targets` [..], u32, of which those that are `ignored` count for nothing. The
    /// result has no dimensions; f32 (f64 for f64). On a GPU both are read back.
    ///
    /// # Errors
    /// `Shape` when `targets` does not have the rows' shape; `DType` when `logits` are no floats or `targets` not u32;
    /// `Value` for a target that is no class, or when all are ignored.
    pub fn of(self, logits: &Tensor, targets: &Tensor, ignored: Option<u32>) -> Result<Tensor> {
        apply(WithGradient { loss: self, ignored }, &tensors(&[logits, targets]))
    }

    /// The loss, and its gradient by each of the logits [rows, C].
    fn compute(self, logits: &[f64], targets: &[Option<usize>], classes: usize) -> (f64, Vec<f64>) {
        match self {
            Self::Dice { smooth } => dice(logits, targets, classes, smooth),
            Self::Focal { gamma, alpha } => focal(logits, targets, classes, gamma, alpha),
        }
    }
}

const NAME: &str = "pixel_loss";

/// The denominator of a dice score is no less.
const LEAST: f64 = 1e-7;

/// [`PixelLoss::of`]; inputs `logits`, `targets`; the further output is the gradient.
#[derive(Clone, Copy, Debug)]
struct WithGradient {
    loss: PixelLoss,
    ignored: Option<u32>,
}

impl WithGradient {
    fn targets(&self, targets: &Tensor, classes: usize) -> Result<Vec<Option<usize>>> {
        let targets = targets.to_vec::<u32>()?;
        let target = |(row, target): (usize, &u32)| match *target {
            target if Some(target) == self.ignored => Ok(None),
            target if (target as usize) < classes => Ok(Some(target as usize)),
            target => {
                let message = format!("target {target} of row {row} is none of {classes} classes");
                Err(Error::value(NAME, message))
            }
        };
        let targets = targets.iter().enumerate().map(target).collect::<Result<Vec<_>>>()?;
        if targets.iter().all(Option::is_none) {
            return Err(Error::value(NAME, "every pixel is ignored"));
        }
        Ok(targets)
    }
}

impl Op for WithGradient {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (logits, targets) = (&inputs[0], &inputs[1]);
        require_float(NAME, logits)?;
        let [rows @ .., classes] = logits.dims() else {
            return Err(Error::expected_shape(NAME, "logits", "[.., C]", logits.shape()));
        };
        if *classes == 0 || targets.dims() != rows {
            let expected = format!("that of the rows of {}", logits.shape());
            return Err(Error::expected_shape(NAME, "targets", &expected, targets.shape()));
        }
        if targets.dtype() != DType::U32 {
            let found = targets.dtype();
            return Err(Error::DType { op: NAME, expected: "u32 targets", found });
        }
        let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut outputs = vec![Meta { shape: (&[][..]).into(), dtype }];
        if inputs.recorded() {
            outputs.push(Meta { shape: *logits.shape(), dtype });
        }
        Ok(outputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let classes = inputs[0].dim(inputs[0].rank() - 1);
        let targets = self.targets(&inputs[1], classes)?;
        let logits = inputs[0].to_dtype(DType::F64)?.to_vec::<f64>()?;
        let (loss, gradient) = self.loss.compute(&logits, &targets, classes);
        for (out, values) in outputs.iter_mut().zip([vec![loss], gradient]) {
            match out.dtype() {
                DType::F64 => out.as_mut_slice::<f64>()?.copy_from_slice(&values),
                _ => {
                    let values = values.iter().map(|&x| x as f32);
                    out.as_mut_slice::<f32>()?.iter_mut().zip(values).for_each(|(o, x)| *o = x);
                }
            }
        }
        Ok(())
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [logits, targets] = [0, 1].map(|i| inputs[i].to_device(Device::Cpu));
        let (logits, targets) = (logits?.to_dtype(DType::F32)?, targets?);
        let host = |out: &Tensor| Tensor::uninit(*out.shape(), out.dtype(), Device::Cpu);
        let mut computed = outputs.iter().map(host).collect::<Result<Vec<_>>>()?;
        let slots = tensors(&[&logits, &targets]);
        self.cpu(&Inputs { slots: &slots, recorded: inputs.recorded() }, &mut computed)?;
        for (out, computed) in outputs.iter_mut().zip(&computed) {
            *out = computed.to_device(out.device())?;
        }
        Ok(())
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let dtype = call.meta(0).map(|meta| meta.dtype);
        let of_logits = mul(call.output(1)?, grad)?;
        Ok(vec![Some(of_logits.to_dtype(dtype.unwrap_or(DType::F32))?), None])
    }
}

/// Rows of `logits` with their targets.
fn rows<'a>(
    logits: &'a [f64],
    targets: &'a [Option<usize>],
    classes: usize,
) -> impl Iterator<Item = (usize, &'a [f64], usize)> {
    let all = logits.chunks_exact(classes).zip(targets).enumerate();
    all.filter_map(|(row, (x, target))| Some((row, x, (*target)?)))
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let largest = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let powers: Vec<f64> = x.iter().map(|x| (x - largest).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| p / sum).collect()
}

fn dice(logits: &[f64], targets: &[Option<usize>], classes: usize, smooth: f64) -> (f64, Vec<f64>) {
    // 1. what is shared, predicted and true, of each class
    let mut probabilities = vec![0.0; logits.len()];
    let (mut shared, mut predicted, mut real) =
        (vec![0.0; classes], vec![0.0; classes], vec![0.0; classes]);
    for (row, x, target) in rows(logits, targets, classes) {
        let p = softmax(x);
        predicted.iter_mut().zip(&p).for_each(|(sum, p)| *sum += p);
        shared[target] += p[target];
        real[target] += 1.0;
        probabilities[row * classes..][..classes].copy_from_slice(&p);
    }
    // 2. the loss, and its slopes by what is shared and what is predicted
    let (mut loss, mut slopes) = (0.0, Vec::new());
    for c in 0..classes {
        if real[c] == 0.0 {
            slopes.push((0.0, 0.0));
            continue;
        }
        let whole = 0.5 * (predicted[c] + real[c]) + smooth;
        let (above, below, n) = (shared[c] + smooth, whole.max(LEAST), classes as f64);
        loss += (1.0 - above / below) / n;
        let by_predicted = if whole > LEAST { 0.5 * above / (below * below) } else { 0.0 };
        slopes.push((-1.0 / below / n, by_predicted / n));
    }
    // 3. through the softmax
    let mut gradient = vec![0.0; logits.len()];
    for (row, _, target) in rows(logits, targets, classes) {
        let p = &probabilities[row * classes..][..classes];
        let of = |c: usize| slopes[c].1 + if c == target { slopes[c].0 } else { 0.0 };
        let mean: f64 = (0..classes).map(|c| p[c] * of(c)).sum();
        for c in 0..classes {
            gradient[row * classes + c] = p[c] * (of(c) - mean);
        }
    }
    (loss, gradient)
}

fn focal(
    logits: &[f64],
    targets: &[Option<usize>],
    classes: usize,
    gamma: f64,
    alpha: Option<f64>,
) -> (f64, Vec<f64>) {
    let count = (targets.iter().flatten().count() * classes) as f64;
    let (mut loss, mut gradient) = (0.0, vec![0.0; logits.len()]);
    for (row, x, target) in rows(logits, targets, classes) {
        for (c, &x) in x.iter().enumerate() {
            let real = if c == target { 1.0 } else { 0.0 };
            let weight = alpha.map_or(1.0, |a| if c == target { a } else { 1.0 - a });
            // Cross entropy against all others: -log of the probability `1 - wrong` of what is true.
            let entropy = x.max(0.0) - x * real + (-x.abs()).exp().ln_1p();
            let (right, wrong) = ((-entropy).exp(), -(-entropy).exp_m1());
            let less = wrong.powf(gamma);
            loss += weight * less * entropy / count;
            let slope = match wrong {
                0.0 => less,
                _ => gamma * wrong.powf(gamma - 1.0) * right * entropy + less,
            };
            let sigmoid = 1.0 / (1.0 + (-x).exp());
            gradient[row * classes + c] = weight * slope * (sigmoid - real) / count;
        }
    }
    (loss, gradient)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::gradient::backward;
    use crate::ops::testing::{check_gradient, random, values};

    const ALL: [PixelLoss; 4] = [
        PixelLoss::DICE,
        PixelLoss::Dice { smooth: 1.0 },
        PixelLoss::FOCAL,
        PixelLoss::Focal { gamma: 1.5, alpha: Some(0.25) },
    ];

    fn targets(n: usize, classes: u32) -> Tensor {
        let values = (0..n as u32).map(|i| if i % 5 == 4 { 255 } else { i * i % classes });
        Tensor::from_vec(values.collect(), [n]).unwrap()
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for loss in ALL {
            for (rows, classes) in [(1, 1), (1, 3), (9, 2), (23, 7)] {
                let targets = targets(rows, classes as u32);
                check_gradient(&format!("{loss:?}"), &[random([rows, classes], 1)], |t| {
                    loss.of(t[0], &targets.to_device(t[0].device())?, Some(255))
                });
            }
        }
    }

    #[test]
    fn what_is_ignored_and_what_is_not_there_count_nothing() {
        for loss in ALL {
            let x = random([10, 3], 2).variable();
            let result = loss.of(&x, &targets(10, 3), Some(255)).unwrap();
            let gradients = backward(result).unwrap();
            let gradient = values(gradients.get(&x).unwrap());
            assert_eq!(gradient[12..15], [0.0; 3], "{loss:?}");
            assert!(gradient[..12].iter().any(|&g| g != 0.0), "{loss:?}");
        }
        // All pixels are of class 0, and predicted so: nothing is lost by the others.
        let x = Tensor::from_vec(vec![40.0f32, -40.0, -40.0], [1, 3]).unwrap();
        let zero = Tensor::from_vec(vec![0u32], [1]).unwrap();
        assert_eq!(values(&PixelLoss::DICE.of(&x, &zero, None).unwrap()), [0.0]);
    }

    #[test]
    fn what_is_no_class_is_an_error() {
        let x = random([2, 3], 1);
        let of = |targets: Vec<u32>| {
            let n = targets.len();
            let targets = Tensor::from_vec(targets, [n]).unwrap();
            PixelLoss::DICE.of(&x, &targets, Some(9)).map(|_| ()).unwrap_err().to_string()
        };
        let error = of(vec![0, 3]);
        assert!(error.contains("target 3 of row 1") && error.contains("3 classes"), "{error}");
        assert!(of(vec![9, 9]).contains("every pixel is ignored"));
        assert!(of(vec![0, 0, 0]).contains("targets"));
        let x = Tensor::from_vec(vec![f32::NAN, 0.0], [1, 2]).unwrap();
        let one = Tensor::from_vec(vec![1u32], [1]).unwrap();
        assert!(ALL.iter().all(|loss| values(&loss.of(&x, &one, None).unwrap())[0].is_nan()));
    }
}
