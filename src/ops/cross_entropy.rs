//! Cross entropy of logits: what classifiers and language models minimise. Kernels: `kernels/cross_entropy.cu`.

use bytemuck::NoUninit;

use super::elementwise::require_float;
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Saves, apply, tensors};
use crate::cpu::math::Math;
use crate::cpu::parallel::{for_each_chunk, for_each_row};
use crate::dispatch_float;
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, Real, Tensor};

kernels! {
    /// A warp a row.
    fn cross_entropy_rows(losses: Out<f32>, logits: In, targets: In<u32>, dims: CrossEntropyDims);
    /// One block.
    fn cross_entropy_mean(
        mean: Out<f32>,
        count: Array<Out<f32>, 1>,
        losses: In<f32>,
        targets: In<u32>,
        dims: CrossEntropyDims,
    );
    /// A warp a row.
    fn cross_entropy_gradient(
        dx: Out,
        logits: In,
        targets: In<u32>,
        grad: In<f32>,
        count: In<f32>,
        dims: CrossEntropyDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct CrossEntropyDims {
    rows: u32,
    classes: u32,
    ignores: u32,
    ignored: u32,
    own: f32,
    every: f32,
}

/// How [`cross_entropy`] sees targets.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CrossEntropy {
    /// Rows with this target count for nothing: padding.
    pub ignore_index: Option<u32>,
    /// Share of the target that is spread over all classes alike, 0 to 1 (Szegedy et al. 2016, section 7).
    pub label_smoothing: f32,
}

/// Mean over rows of `-sum(q log softmax(logits))`, where q is 1 at the row's target (less `label_smoothing`, which is
/// spread over all classes): `torch.nn.functional.cross_entropy`.
///
/// `logits` [.., C]; `targets` [..], u32, below C. The result has no dimensions; f32 (f64 for f64). On a GPU targets are
/// read back, to be checked.
///
/// # Errors
/// `Shape` when `targets` does not have the rows' shape; `DType` when `logits` are no floats or `targets` not u32;
/// `Value` for a target that is no class, or when every row is ignored.
pub fn cross_entropy(logits: &Tensor, targets: &Tensor, settings: CrossEntropy) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&settings.label_smoothing) {
        let expected = "0 to 1";
        return Err(Error::argument("label_smoothing", settings.label_smoothing, expected));
    }
    apply(settings, &tensors(&[logits, targets]))
}

impl CrossEntropy {
    /// Targets of the rows that count, by row.
    fn targets(&self, targets: &Tensor, classes: usize) -> Result<Vec<Option<usize>>> {
        let targets = targets.to_vec::<u32>()?;
        let target = |(row, target): (usize, &u32)| match *target {
            target if Some(target) == self.ignore_index => Ok(None),
            target if (target as usize) < classes => Ok(Some(target as usize)),
            target => {
                let message = format!("target {target} of row {row} is none of {classes} classes");
                Err(Error::value("cross_entropy", message))
            }
        };
        let targets = targets.iter().enumerate().map(target).collect::<Result<Vec<_>>>()?;
        if targets.iter().all(Option::is_none) {
            return Err(Error::value("cross_entropy", "every row is ignored"));
        }
        Ok(targets)
    }

    /// What a kernel is told of rows of `logits`, and a launch with a warp for each.
    fn dims(&self, logits: &Tensor) -> Result<(LaunchConfig, CrossEntropyDims)> {
        const WARPS: u32 = 4;
        let classes = logits.dim(logits.rank() - 1);
        let rows = to_u32(self.name(), logits.len() / classes)?;
        let (own, every) = self.shares(classes);
        let dims = CrossEntropyDims {
            rows,
            classes: to_u32(self.name(), classes)?,
            ignores: self.ignore_index.is_some().into(),
            ignored: self.ignore_index.unwrap_or_default(),
            own: own as f32,
            every: every as f32,
        };
        Ok((LaunchConfig::new([rows.div_ceil(WARPS), 1], WARPS * 32), dims))
    }

    /// Shares of the target's class and of each class.
    fn shares(&self, classes: usize) -> (f64, f64) {
        let smoothing = f64::from(self.label_smoothing);
        (1.0 - smoothing, smoothing / classes as f64)
    }
}

impl Op for CrossEntropy {
    fn name(&self) -> &'static str {
        "cross_entropy"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (logits, targets) = (&inputs[0], &inputs[1]);
        require_float(self.name(), logits)?;
        let [rows @ .., classes] = logits.dims() else {
            return Err(Error::expected_shape(self.name(), "logits", "[.., C]", logits.shape()));
        };
        if *classes == 0 || targets.dims() != rows {
            let expected = format!("that of the rows of {}", logits.shape());
            return Err(Error::expected_shape(self.name(), "targets", &expected, targets.shape()));
        }
        if targets.dtype() != DType::U32 {
            let found = targets.dtype();
            return Err(Error::DType { op: self.name(), expected: "u32 targets", found });
        }
        let dtype = if logits.dtype() == DType::F64 { DType::F64 } else { DType::F32 };
        let mut outputs = vec![Meta { shape: (&[][..]).into(), dtype }];
        // How many rows count.
        if inputs.recorded() {
            outputs.push(outputs[0]);
        }
        Ok(outputs)
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let logits = inputs[0].contiguous()?;
        let classes = logits.dim(logits.rank() - 1);
        let targets = self.targets(&inputs[1], classes)?;
        let (own, every) = self.shares(classes);
        // Row by row, then their sum in order.
        let mut losses = vec![0.0; targets.len()];
        dispatch_float!(self.name(), logits.dtype(), T => {
            let logits = logits.as_slice::<T>()?;
            for_each_chunk(&mut losses, 64, |i, losses| {
                for (j, loss) in losses.iter_mut().enumerate() {
                    let row = i * 64 + j;
                    let Some(target) = targets[row] else { continue };
                    let x = &logits[row * classes..][..classes];
                    let (largest, sum) = log_sum_exp(x);
                    let log_sum = largest + sum.ln();
                    let of_target = log_sum - x[target].to_acc().to_f64();
                    let of_all = |x: &T| log_sum - x.to_acc().to_f64();
                    *loss = own * of_target;
                    if every > 0.0 {
                        *loss += every * x.iter().map(of_all).sum::<f64>();
                    }
                }
            });
            Ok(())
        })?;
        let count = targets.iter().flatten().count() as f64;
        for (out, value) in outputs.iter_mut().zip([losses.iter().sum::<f64>() / count, count]) {
            match out.dtype() {
                DType::F64 => out.as_mut_slice::<f64>()?[0] = value,
                _ => out.as_mut_slice::<f32>()?[0] = value as f32,
            }
        }
        Ok(())
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let (logits, targets) = (inputs[0].contiguous()?, inputs[1].contiguous()?);
        self.targets(&targets, logits.dim(logits.rank() - 1))?;
        let (config, dims) = self.dims(&logits)?;
        let mut losses = Tensor::uninit([targets.len()], DType::F32, logits.device())?;
        kernel::cross_entropy_rows(config, &mut losses, &logits, &targets, dims)?;
        let [mean, count @ ..] = outputs else { unreachable!("inferred above") };
        let count = &mut count.iter_mut().collect::<Vec<_>>();
        let config = LaunchConfig::new([1, 1], 256);
        kernel::cross_entropy_mean(config, mean, count, &losses, &targets, dims)
    }

    fn saves(&self) -> Saves {
        Saves { inputs: &[0, 1], result: false }
    }

    fn backward(&self, call: &Call, grad: &Tensor) -> Result<Grads> {
        let inputs = tensors(&[call.tensor(0)?, call.tensor(1)?, grad, call.output(1)?]);
        Ok(vec![Some(apply(CrossEntropyGradient(*self), &inputs)?), None])
    }
}

/// The largest of a row, and the sum of the exponentials of the distances from it, in f64.
fn log_sum_exp<T: Float<Acc: Math>>(x: &[T]) -> (f64, f64) {
    let wide = || x.iter().map(|x| x.to_acc().to_f64());
    // f64::max passes a NaN by; the sum does not.
    let largest = wide().fold(f64::NEG_INFINITY, f64::max);
    (largest, wide().map(|x| (x - largest).exp()).sum())
}

/// `(softmax(logits) - q) grad / count`; inputs `logits`, `targets`, `grad`, `count`.
#[derive(Clone, Copy, Debug)]
struct CrossEntropyGradient(CrossEntropy);

impl Op for CrossEntropyGradient {
    fn name(&self) -> &'static str {
        "cross_entropy_gradient"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        Ok(vec![Meta::like(&inputs[0])])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let logits = inputs[0].contiguous()?;
        let classes = logits.dim(logits.rank() - 1);
        let targets = self.0.targets(&inputs[1], classes)?;
        let (own, every) = self.0.shares(classes);
        let number = |i: usize| {
            let values = inputs[i].to_dtype(DType::F64)?.to_vec::<f64>()?;
            Ok::<_, Error>(values.first().copied().unwrap_or(f64::NAN))
        };
        let factor = number(2)? / number(3)?;
        dispatch_float!(self.name(), logits.dtype(), T => {
            let logits = logits.as_slice::<T>()?;
            for_each_row(outputs[0].as_mut_slice::<T>()?, classes, |row, out| {
                let Some(target) = targets[row] else {
                    return out.fill(T::from_acc(<T as Float>::Acc::ZERO));
                };
                let x = &logits[row * classes..][..classes];
                let (largest, sum) = log_sum_exp(x);
                for (class, (out, x)) in out.iter_mut().zip(x).enumerate() {
                    let share = every + if class == target { own } else { 0.0 };
                    let softmax = (x.to_acc().to_f64() - largest).exp() / sum;
                    *out = T::from_acc(<T as Float>::Acc::from_f64((softmax - share) * factor));
                }
            });
            Ok(())
        })
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let [logits, targets, grad, count] = [0, 1, 2, 3].map(|i| inputs[i].contiguous());
        let (logits, targets, grad, count) = (logits?, targets?, grad?, count?);
        let (config, dims) = self.0.dims(&logits)?;
        let dx = &mut outputs[0];
        kernel::cross_entropy_gradient(config, dx, &logits, &targets, &grad, &count, dims)
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::scale;
    use crate::ops::gradient::backward;
    use crate::ops::testing::{check, check_gradient, random, values};

    const SHAPES: [&[usize]; 7] =
        [&[1, 1], &[1, 10], &[7, 3], &[2, 5, 33], &[130, 7], &[3, 1000], &[4]];

    fn settings() -> impl Iterator<Item = CrossEntropy> {
        [(None, 0.0), (None, 0.1), (Some(0), 0.0), (Some(9), 0.3)]
            .into_iter()
            .map(|(ignore_index, label_smoothing)| CrossEntropy { ignore_index, label_smoothing })
    }

    /// Classes for logits of `shape`, one of them every ninth row; at least one is not 0 where there are several.
    fn targets(shape: &[usize], settings: CrossEntropy) -> Tensor {
        let (rows, classes) = (&shape[..shape.len() - 1], shape[shape.len() - 1]);
        let count = rows.iter().product();
        let target = |i: usize| match settings.ignore_index {
            Some(index) if i % 3 == 2 => index,
            _ => (((i + 1) * 7) % classes) as u32,
        };
        Tensor::from_vec((0..count).map(target).collect::<Vec<u32>>(), rows).unwrap()
    }

    fn reference(x: &[f64], targets: &Tensor, settings: CrossEntropy) -> f64 {
        let targets = targets.to_vec::<u32>().unwrap();
        let classes = x.len() / targets.len();
        let (mut sum, mut count) = (0.0, 0.0);
        for (x, target) in x.chunks(classes).zip(targets) {
            if Some(target) == settings.ignore_index {
                continue;
            }
            let total: f64 = x.iter().map(|x| x.exp()).sum();
            let smoothing = f64::from(settings.label_smoothing);
            for (class, x) in x.iter().enumerate() {
                let q = smoothing / classes as f64
                    + if class == target as usize { 1.0 - smoothing } else { 0.0 };
                sum -= q * (x.exp() / total).ln();
            }
            count += 1.0;
        }
        sum / count
    }

    /// Whether some row counts.
    fn counts(targets: &Tensor, settings: CrossEntropy) -> bool {
        targets.to_vec::<u32>().unwrap().iter().any(|&t| Some(t) != settings.ignore_index)
    }

    #[test]
    fn it_equals_its_formula() {
        for shape in SHAPES {
            for settings in settings() {
                let targets = targets(shape, settings);
                if !counts(&targets, settings) {
                    continue;
                }
                let logits = scale(&random(shape, 1), 3.0).unwrap();
                let loss = |x: &[&Tensor]| {
                    let targets = targets.to_device(x[0].device())?;
                    cross_entropy(x[0], &targets, settings)?.to_dtype(x[0].dtype())
                };
                // The reference's logarithm of a small quotient is the less exact of the two.
                check("cross_entropy", &[logits], 8.0, loss, |x| {
                    vec![reference(&x[0], &targets, settings)]
                });
            }
        }
    }

    #[test]
    fn gradients_are_those_of_differences() {
        for shape in SHAPES {
            for settings in settings() {
                let targets = targets(shape, settings);
                if counts(&targets, settings) {
                    let what = format!("cross_entropy of {shape:?} {settings:?}");
                    check_gradient(&what, &[random(shape, 2)], |x| {
                        cross_entropy(x[0], &targets.to_device(x[0].device())?, settings)
                    });
                }
            }
        }
    }

    #[test]
    fn large_logits_and_nan() {
        let targets = Tensor::from_vec(vec![0u32, 1], [2]).unwrap();
        let loss = |values: Vec<f32>| {
            let logits = Tensor::from_vec(values, [2, 2]).unwrap();
            self::values(&cross_entropy(&logits, &targets, CrossEntropy::default()).unwrap())[0]
        };
        assert_eq!(loss(vec![1e30, -1e30, -1e30, 1e30]), 0.0);
        assert_eq!(
            loss(vec![1000.0, 1002.0, 0.0, 0.0]),
            (2.0 + (1.0 + (-2f64).exp()).ln() + 2f64.ln()) as f32 as f64 / 2.0
        );
        assert!(loss(vec![f32::NAN, 0.0, 0.0, 0.0]).is_nan());
        assert!(loss(vec![0.0, 0.0, f32::NAN, 0.0]).is_nan());
    }

    #[test]
    fn ignored_rows_have_no_gradient() {
        let settings = CrossEntropy { ignore_index: Some(2), label_smoothing: 0.0 };
        let targets = Tensor::from_vec(vec![0u32, 2, 1], [3]).unwrap();
        let x = random([3, 3], 3).variable();
        let gradients = backward(cross_entropy(&x, &targets, settings).unwrap()).unwrap();
        let gradient = values(gradients.get(&x).unwrap());
        assert_eq!(gradient[3..6], [0.0; 3]);
        // Of the others, a row's gradient sums to nothing.
        assert!(gradient[..3].iter().sum::<f64>().abs() < 1e-7);
    }

    #[test]
    fn what_is_no_class_is_an_error() {
        let x = random([2, 3], 1);
        let of = |targets: Vec<u32>, settings| {
            let targets = Tensor::from_vec(targets, [2]).unwrap();
            cross_entropy(&x, &targets, settings).map(|_| ()).unwrap_err().to_string()
        };
        let error = of(vec![0, 3], CrossEntropy::default());
        assert!(error.contains("target 3 of row 1") && error.contains("3 classes"), "{error}");
        let ignoring = CrossEntropy { ignore_index: Some(1), label_smoothing: 0.0 };
        assert!(of(vec![1, 1], ignoring).contains("every row"));
        for label_smoothing in [-0.1, 1.1, f32::NAN] {
            let settings = CrossEntropy { ignore_index: None, label_smoothing };
            assert!(of(vec![0, 0], settings).contains("label_smoothing"));
        }
        let three = Tensor::from_vec(vec![0u32; 3], [3]).unwrap();
        assert!(matches!(
            cross_entropy(&x, &three, CrossEntropy::default()),
            Err(Error::Shape { .. })
        ));
        assert!(matches!(
            cross_entropy(&x, &random([2], 1), CrossEntropy::default()),
            Err(Error::DType { .. })
        ));
    }
}
