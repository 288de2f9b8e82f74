//! A step of a diffusion sampler in one pass over memory. Kernel: `kernels/sampler.cu`.

use bytemuck::{NoUninit, Pod, Zeroable};

use super::elementwise::{require_dtype, require_float};
use super::gradient::Call;
use super::kernels::{LaunchConfig, kernels, to_u32};
use super::{Grads, Inputs, Meta, Op, Slot, apply_all};
use crate::error::{Error, Result};
use crate::tensor::{DType, Device, Shape, Tensor};

kernels! {
    /// A thread an element.
    fn guided_step(
        y: Out<f32>,
        kept: Out<f32>,
        input: Out<f32>,
        prediction: In,
        sample: In<f32>,
        noise: Array<In<f32>, 1>,
        recalled: Array<In<f32>, 4>,
        table: In<f32>,
        rows: In<u32>,
        dims: GuidedStepDims,
    );
}

#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct GuidedStepDims {
    len: u64,
    guided: u32,
    recalled: u32,
    rows: u32,
    reserved: u32,
}

/// How many of the kept results a step reads at most, its own included.
pub const RECALLED: usize = 5;

/// The weights of a step: a row of the table of a run.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct StepWeights {
    /// Of the predictions without the prompt and with it, where there are two.
    pub guidance: [f32; 2],
    /// Of the sample and the guided prediction in what is kept for later steps.
    pub kept: [f32; 2],
    /// Of the sample in the next.
    pub sample: f32,
    /// Of what was kept, this step's first, then the newest.
    pub recalled: [f32; RECALLED],
    /// Of the noise.
    pub noise: f32,
    /// From the next sample to what the model is to see.
    pub input_scale: f32,
}

impl StepWeights {
    const LEN: usize = size_of::<Self>() / size_of::<f32>();

    /// The steps of a run as a table [steps, 12], f32.
    ///
    /// # Errors
    /// `OutOfMemory`.
    pub fn table(steps: &[Self], device: Device) -> Result<Tensor> {
        let values: Vec<f32> = bytemuck::cast_slice(steps).to_vec();
        Tensor::from_vec(values, [steps.len(), Self::LEN])?.to_device(device)
    }
}

/// What a step reads. Images have any shape behind the batch.
#[derive(Clone, Copy)]
pub struct StepInputs<'a> {
    /// [2B, ..] with guidance, an image's prediction without the prompt in front of that with it, else [B, ..]; f32, f16
    /// or bf16.
    pub prediction: &'a Tensor,
    /// [B, ..], f32
    pub sample: &'a Tensor,
    /// [B, ..], f32; without it there is none.
    pub noise: Option<&'a Tensor>,
    /// What earlier steps kept, the newest first: [B, ..] each, f32.
    pub recalled: &'a [&'a Tensor],
}

/// What a step makes, all f32.
pub struct Stepped {
    /// The next sample [B, ..].
    pub sample: Tensor,
    /// What later steps may recall [B, ..].
    pub kept: Tensor,
    /// What the model is to see [B or 2B, ..], as the predictions stand.
    pub input: Tensor,
}

/// Guidance (Ho & Salimans 2022) and the step of a sampler that is a sum with known weights: row `rows[b]` of `table` for
/// image b, see [`StepWeights::table`]. Where those are is a matter of the device alone: nothing waits for it.
///
/// `table` [N, 12], f32; `rows` `[B]`, u32, of which those beyond the table count as its last. Every product and every sum
/// is rounded to f32; terms of weight 0 are left out.
///
/// # Errors
/// `Shape` and `DType` when the tensors do not fit.
pub fn guided_step(inputs: StepInputs, table: &Tensor, rows: &Tensor) -> Result<Stepped> {
    let StepInputs { prediction, sample, noise, recalled } = inputs;
    if recalled.len() >= RECALLED {
        let message =
            format!("{} kept results are recalled, at most {}", recalled.len(), RECALLED - 1);
        return Err(Error::value("guided_step", message));
    }
    let mut slots: Vec<Slot> =
        vec![prediction.into(), sample.into(), noise.into(), table.into(), rows.into()];
    slots.extend(recalled.iter().map(|&t| Slot::from(t)));
    let mut made = apply_all(GuidedStep { recalled: recalled.len() }, &slots)?.into_iter();
    let (Some(sample), Some(kept), Some(input)) = (made.next(), made.next(), made.next()) else {
        unreachable!("three outputs")
    };
    Ok(Stepped { sample, kept, input })
}

/// [`guided_step`]; inputs in the order of the places below, then what is recalled.
struct GuidedStep {
    recalled: usize,
}

const PREDICTION: usize = 0;
const SAMPLE: usize = 1;
const NOISE: usize = 2;
const TABLE: usize = 3;
const ROWS: usize = 4;
const FIRST_RECALLED: usize = 5;

impl GuidedStep {
    fn recalled<'a>(&self, inputs: &Inputs<'a>) -> Vec<&'a Tensor> {
        (0..self.recalled).filter_map(|i| inputs.get(FIRST_RECALLED + i)).collect()
    }
}

impl Op for GuidedStep {
    fn name(&self) -> &'static str {
        "guided_step"
    }

    fn infer(&self, inputs: &Inputs) -> Result<Vec<Meta>> {
        let (prediction, sample) = (&inputs[PREDICTION], &inputs[SAMPLE]);
        require_float(self.name(), prediction)?;
        let Some(&batch) = sample.dims().first() else {
            return Err(Error::expected_shape(self.name(), "sample", "[B, ..]", sample.shape()));
        };
        let single = [Some(sample), inputs.get(NOISE)].into_iter().flatten();
        for t in single.chain(self.recalled(inputs)) {
            require_dtype(self.name(), DType::F32, t)?;
            if t.shape() != sample.shape() {
                let expected = sample.shape().to_string();
                return Err(Error::expected_shape(self.name(), "an image", &expected, t.shape()));
            }
        }
        let predicted = *prediction.shape();
        if predicted != *sample.shape() && predicted != sample.shape().with(0, 2 * batch) {
            let expected = format!("{}, or twice as many", sample.shape());
            return Err(Error::expected_shape(self.name(), "prediction", &expected, &predicted));
        }
        let (table, rows) = (&inputs[TABLE], &inputs[ROWS]);
        require_dtype(self.name(), DType::F32, table)?;
        require_dtype(self.name(), DType::U32, rows)?;
        if !matches!(table.dims(), &[n, StepWeights::LEN] if n > 0) {
            return Err(Error::expected_shape(self.name(), "table", "[N > 0, 12]", table.shape()));
        }
        if rows.dims() != [batch] {
            let expected = Shape::from([batch]).to_string();
            return Err(Error::expected_shape(self.name(), "rows", &expected, rows.shape()));
        }
        let meta = |shape| Meta { shape, dtype: DType::F32 };
        Ok(vec![meta(*sample.shape()), meta(*sample.shape()), meta(predicted)])
    }

    fn cpu(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let of = |t: &Tensor| t.to_dtype(DType::F32)?.to_vec::<f32>();
        let (prediction, sample) = (of(&inputs[PREDICTION])?, of(&inputs[SAMPLE])?);
        let noise = inputs.get(NOISE).map(of).transpose()?;
        let recalled = self.recalled(inputs).into_iter().map(of).collect::<Result<Vec<_>>>()?;
        let (table, rows) = (of(&inputs[TABLE])?, inputs[ROWS].to_vec::<u32>()?);
        let len = sample.len() / rows.len();
        let copies = prediction.len() / sample.len();
        let [next, kept, input] = outputs else { unreachable!("inferred above") };
        let (next, kept) = (next.as_mut_slice::<f32>()?, kept.as_mut_slice::<f32>()?);
        let input = input.as_mut_slice::<f32>()?;
        let table: &[StepWeights] = bytemuck::cast_slice(&table);
        for i in 0..sample.len() {
            let (image, at) = (i / len, i % len);
            let w = table[(rows[image] as usize).min(table.len() - 1)];
            let first = image * copies * len + at;
            let guided = match copies {
                2 => w.guidance[0] * prediction[first] + w.guidance[1] * prediction[first + len],
                _ => prediction[first],
            };
            kept[i] = match w.kept {
                [0.0, 1.0] => guided,
                [of_sample, of_output] => sum([(of_sample, sample[i]), (of_output, guided)]),
            };
            let before = recalled.iter().map(|t| t[i]);
            let recalled = w.recalled.into_iter().zip([kept[i]].into_iter().chain(before));
            let noise = noise.as_ref().map(|noise| (w.noise, noise[i]));
            next[i] = sum([(w.sample, sample[i])].into_iter().chain(recalled).chain(noise));
            for copy in 0..copies {
                input[first + copy * len] = w.input_scale * next[i];
            }
        }
        Ok(())
    }

    fn cuda(&self, inputs: &Inputs, outputs: &mut [Tensor]) -> Result<()> {
        let contiguous = |i: usize| inputs.get(i).map(Tensor::contiguous).transpose();
        let all =
            (0..FIRST_RECALLED + self.recalled).map(contiguous).collect::<Result<Vec<_>>>()?;
        let [Some(prediction), Some(sample), noise, Some(table), Some(rows), recalled @ ..] =
            &all[..]
        else {
            unreachable!("inferred above")
        };
        let (batch, len) = (rows.len(), sample.len() / rows.len());
        let dims = GuidedStepDims {
            len: len as u64,
            guided: (prediction.len() > sample.len()).into(),
            recalled: self.recalled as u32,
            rows: to_u32(self.name(), table.dim(0))?,
            reserved: 0,
        };
        if batch > 65_535 {
            let message = format!("on CUDA: at most 65535 images, found {batch}");
            return Err(Error::shape(self.name(), message));
        }
        let config = LaunchConfig::new([len.div_ceil(256).min(1024) as u32, batch as u32], 256);
        let (noise, recalled): (Vec<&Tensor>, Vec<&Tensor>) =
            (noise.iter().collect(), recalled.iter().flatten().collect());
        let [next, kept, input] = outputs else { unreachable!("inferred above") };
        kernel::guided_step(
            config, next, kept, input, prediction, sample, &noise, &recalled, table, rows, dims,
        )
    }

    fn backward(&self, _: &Call, _: &Tensor) -> Result<Grads> {
        Err(Error::no_gradient(self.name()))
    }
}

/// The sum of weighted terms, but those of weight 0.
fn sum(terms: impl IntoIterator<Item = (f32, f32)>) -> f32 {
    let kept = terms.into_iter().filter(|(weight, _)| *weight != 0.0);
    kept.map(|(weight, x)| weight * x).reduce(|sum, term| sum + term).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::{linear_combination, scale};
    use crate::ops::layout::concat;
    use crate::ops::testing::{bits, devices, random};

    /// Two rows: a step of everything, and one whose weights are partly 0 and which keeps the prediction.
    fn rows() -> [StepWeights; 2] {
        let all = StepWeights {
            guidance: [-6.5, 7.5],
            kept: [1.25, -0.75],
            sample: 0.9,
            recalled: [0.3, -0.2, 0.1, 0.05, -0.4],
            noise: 0.7,
            input_scale: 0.25,
        };
        let few = StepWeights {
            guidance: [0.0, 1.0],
            kept: [0.0, 1.0],
            recalled: [0.5, 0.0, -0.3, 0.0, 0.0],
            noise: 0.0,
            input_scale: 1.0,
            ..all
        };
        [all, few]
    }

    /// Image b of a step by the operations that it stands for.
    fn by_parts(
        inputs: &StepInputs,
        w: StepWeights,
        b: usize,
        copies: usize,
    ) -> Result<[Tensor; 3]> {
        let image = |t: &Tensor| t.narrow(0, b, 1);
        let predicted = |i| inputs.prediction.narrow(0, copies * b + i, 1)?.to_dtype(DType::F32);
        let guided = match copies {
            2 => linear_combination(&[
                (w.guidance[0], &predicted(0)?),
                (w.guidance[1], &predicted(1)?),
            ])?,
            _ => predicted(0)?,
        };
        let sum = |terms: &[(f32, &Tensor)]| {
            linear_combination(
                &terms.iter().copied().filter(|(w, _)| *w != 0.0).collect::<Vec<_>>(),
            )
        };
        let sample = image(inputs.sample)?;
        let kept = match w.kept {
            [0.0, 1.0] => guided,
            [a, b] => sum(&[(a, &sample), (b, &guided)])?,
        };
        let others = inputs.recalled.iter().map(|t| image(t)).collect::<Result<Vec<_>>>()?;
        let noise = inputs.noise.map(image).transpose()?;
        let mut terms = vec![(w.sample, &sample), (w.recalled[0], &kept)];
        terms.extend(w.recalled[1..].iter().copied().zip(&others));
        terms.extend(noise.as_ref().map(|noise| (w.noise, noise)));
        let next = sum(&terms)?;
        let seen = scale(&next, w.input_scale)?;
        Ok([next, kept, concat(&vec![&seen; copies], 0)?])
    }

    fn joined(images: &[[Tensor; 3]], i: usize) -> Vec<u64> {
        images.iter().flat_map(|image| bits(&image[i])).collect()
    }

    #[test]
    fn a_step_has_the_bits_of_the_operations_it_stands_for() {
        for (batch, size, recalled, with_noise) in [
            (1, [3, 5, 4], 4, true),
            (7, [9, 31, 4], 2, false),
            (7, [1, 1, 1], 0, true),
            (2, [33, 64, 4], 1, true),
        ] {
            for (copies, dtype, device) in [1, 2].into_iter().flat_map(|copies| {
                let dtypes = [DType::F32, DType::F16, DType::BF16];
                dtypes.into_iter().flat_map(move |d| devices().map(move |on| (copies, d, on)))
            }) {
                let [h, w, c] = size;
                let on = |t: Tensor| t.to_device(device).unwrap();
                let image = |n, seed| random([n, h, w, c], seed);
                let prediction = on(image(batch * copies, 1).to_dtype(dtype).unwrap());
                // A view of a larger tensor, whose first element is not aligned.
                let sample = on(image(batch + 1, 2)).narrow(0, 1, batch).unwrap();
                let noise = with_noise.then(|| on(image(batch, 3)));
                let kept: Vec<Tensor> = (0..recalled).map(|i| on(image(batch, 4 + i))).collect();
                let inputs = StepInputs {
                    prediction: &prediction,
                    sample: &sample,
                    noise: noise.as_ref(),
                    recalled: &kept.iter().collect::<Vec<_>>(),
                };
                let table = StepWeights::table(&rows(), device).unwrap();
                // Each image its own row; the last is past the end.
                let of: Vec<u32> =
                    (0..batch as u32).map(|b| if b > 5 { 9 } else { b % 2 }).collect();
                let at = on(Tensor::from_slice(&of, [batch]).unwrap());
                let made = guided_step(inputs, &table, &at).unwrap();
                let expected = of.iter().enumerate().map(|(b, &row)| {
                    by_parts(&inputs, rows()[(row as usize).min(1)], b, copies).unwrap()
                });
                let expected: Vec<_> = expected.collect();
                let what = format!("{batch} {size:?} {copies} {dtype} {device}");
                assert_eq!(bits(&made.sample), joined(&expected, 0), "{what}");
                assert_eq!(bits(&made.kept), joined(&expected, 1), "{what}");
                assert_eq!(bits(&made.input), joined(&expected, 2), "{what}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let (x, small) = (random([2, 3, 3, 4], 1), random([2, 3, 2, 4], 2));
        let table = StepWeights::table(&rows(), Device::Cpu).unwrap();
        let at = Tensor::from_slice(&[0u32, 1], [2]).unwrap();
        let others = [&small];
        let inputs = StepInputs { prediction: &x, sample: &x, noise: None, recalled: &[] };
        let step = |inputs, at: &Tensor| guided_step(inputs, &table, at).err().unwrap();
        let shapes = [
            step(StepInputs { prediction: &small, ..inputs }, &at),
            step(StepInputs { noise: Some(&small), ..inputs }, &at),
            step(StepInputs { recalled: &others, ..inputs }, &at),
            step(inputs, &at.narrow(0, 0, 1).unwrap()),
            guided_step(inputs, &x, &at).err().unwrap(),
        ];
        assert!(shapes.iter().all(|error| matches!(error, Error::Shape { .. })), "{shapes:?}");
        let (half, five) = (x.to_dtype(DType::F16).unwrap(), [&x; RECALLED]);
        let refused = |inputs| guided_step(inputs, &table, &at).err().unwrap();
        let error = refused(StepInputs { sample: &half, ..inputs });
        assert!(matches!(error, Error::DType { .. }));
        let error = refused(StepInputs { recalled: &five, ..inputs });
        assert!(matches!(error, Error::Value { .. }));
    }
}
