//! Training a segmenter: its losses, and how much predicted and true pixels of held-out pictures have in common.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::network::{export, known_parameters, new_parameters, statistics, weights};
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::run::{Loss, Measured, Task, number_of};
use crate::data::masks::{IGNORED, MaskedBatch, MaskedPictures, Normal};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::models::segmentation::{SegmentationConfig, Segmenter};
use crate::nn::Parameter;
use crate::ops::cross_entropy::{CrossEntropy, cross_entropy};
use crate::ops::elementwise::{add, mul, sub};
use crate::ops::pixel_loss::PixelLoss;
use crate::tensor::{DType, Device, Tensor};

/// A loss of a map of classes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum MaskLoss {
    /// Mean over pixels of -log of the probability of their classes
    CrossEntropy,
    /// What predicted and true pixels of each class do not share
    Dice,
    /// Cross entropy of each class against all others, less where it is small already
    Focal,
}

impl MaskLoss {
    fn of(self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        match self {
            Self::CrossEntropy => {
                let settings = CrossEntropy { ignore_index: Some(IGNORED), label_smoothing: 0.0 };
                cross_entropy(logits, classes, settings)
            }
            Self::Dice => PixelLoss::DICE.of(logits, classes, Some(IGNORED)),
            Self::Focal => PixelLoss::FOCAL.of(logits, classes, Some(IGNORED)),
        }
    }
}

/// Mean and deviation of each band, by which levels are normalised.
#[derive(Clone, Debug, PartialEq)]
pub struct BandNormalize {
    /// Of levels from 0 to 1.
    pub mean: Vec<f32>,
    /// Likewise.
    pub std: Vec<f32>,
}

impl BandNormalize {
    /// `images` [B, H, W, bands], levels from 0 to 1.
    ///
    /// # Errors
    /// Another number of bands.
    pub fn apply(&self, images: &Tensor) -> Result<Tensor> {
        let on = |values: Vec<f32>| {
            Tensor::from_vec(values, [self.mean.len()])?.to_device(images.device())
        };
        let factors = on(self.std.iter().map(|std| 1.0 / std).collect())?;
        mul(&sub(images, &on(self.mean.clone())?)?, &factors)
    }
}

/// Pixels by true class and predicted one.
#[derive(Clone, Debug, Default)]
pub struct Confusion {
    classes: usize,
    counts: Vec<u64>,
}

impl Confusion {
    /// Of no pixels yet.
    pub fn new(classes: usize) -> Self {
        Self { classes, counts: vec![0; classes * classes] }
    }

    /// Takes up the pixels of `logits` [.., classes] whose class `targets` [..] tells.
    ///
    /// # Errors
    /// They do not fit.
    pub fn add(&mut self, logits: &Tensor, targets: &Tensor) -> Result<()> {
        let logits =
            logits.detach().to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
        let targets = targets.to_device(Device::Cpu)?.to_vec::<u32>()?;
        for (row, &target) in logits.chunks_exact(self.classes).zip(&targets) {
            let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            if let (Some((best, _)), true) = (best, target != IGNORED) {
                self.counts[target as usize * self.classes + best] += 1;
            }
        }
        Ok(())
    }

    /// Of each class, predicted and true pixels that are both by those that are either (Jaccard); none of a class that is
    /// neither.
    pub fn ious(&self) -> Vec<Option<f64>> {
        let n = self.classes;
        let of = |c: usize| {
            let both = self.counts[c * n + c];
            let real: u64 = self.counts[c * n..(c + 1) * n].iter().sum();
            let predicted: u64 = (0..n).map(|real| self.counts[real * n + c]).sum();
            let either = real + predicted - both;
            (either > 0).then(|| both as f64 / either as f64)
        };
        (0..n).map(of).collect()
    }

    /// Their mean.
    pub fn mean_iou(&self) -> f64 {
        let ious: Vec<f64> = self.ious().into_iter().flatten().collect();
        ious.iter().sum::<f64>() / ious.len() as f64
    }

    /// Share of pixels that are predicted as what they are.
    pub fn accuracy(&self) -> f64 {
        let right: u64 = (0..self.classes).map(|c| self.counts[c * self.classes + c]).sum();
        right as f64 / self.counts.iter().sum::<u64>() as f64
    }
}

/// A segmenter that is trained.
pub struct SegmentTask {
    net: Segmenter,
    /// By label.
    classes: Vec<String>,
    resolution: usize,
    normal: Normal,
    normalize: BandNormalize,
    losses: Vec<MaskLoss>,
    /// What the model is exported in.
    dtype: DType,
    compute: Compute,
    /// What a validation has seen so far.
    seen: Mutex<Confusion>,
}

impl SegmentTask {
    /// A new network for the bands and classes of `data`, of whose numbers `shape` is given; `compute` may be a device alone.
    ///
    /// # Errors
    /// A shape that is not possible.
    pub fn new(
        data: &MaskedPictures,
        shape: impl Fn(usize, usize) -> SegmentationConfig,
        seed: u64,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        let compute = compute.into();
        let params = new_parameters(seed, compute);
        let net = Segmenter::load(shape(data.bands(), data.classes().len()), &params)?;
        let (mean, std) = data.statistics();
        Self::with(net, data, BandNormalize { mean, std }, compute)
    }

    /// The network in a folder with `config.json` and weights, which may be the library's; `compute` may be a device alone.
    ///
    /// # Errors
    /// It cannot be read, or is of other bands or classes than `data`.
    pub fn open(folder: &Path, data: &MaskedPictures, compute: impl Into<Compute>) -> Result<Self> {
        let path = folder.join("config.json");
        let config = Config::open(&path)?;
        let classes = config.strings("_classes", &[])?;
        let (mean, std) = data.statistics();
        let numbers = |name: &str, default: Vec<f32>| -> Result<Vec<f32>> {
            Ok(config.get(name, "a list of numbers")?.unwrap_or(default))
        };
        let normalize = BandNormalize { mean: numbers("_mean", mean)?, std: numbers("_std", std)? };
        let normal = config.choice("_normalize", Normal::Data.name(), &Normal::NAMES)?;
        let config = SegmentationConfig::read(&config)?;
        let wrong = |field: &str, expected: String, found: String| {
            let advice = "Begin with a network of this data, or with a new one.";
            Err(Error::file(&path, field, expected, found, advice))
        };
        let bands = data.bands();
        if config.in_channels != bands {
            let expected = format!("{bands}, the bands of the pictures");
            return wrong("in_channels", expected, config.in_channels.to_string());
        }
        if normalize.mean.len() != bands || normalize.std.len() != bands {
            let found = format!("{} and {}", normalize.mean.len(), normalize.std.len());
            return wrong("_mean, _std", format!("{bands} numbers each"), found);
        }
        if normal != data.normalize() {
            let expected = format!("{}, as the data set with --normalize", data.normalize().name());
            return wrong("_normalize", expected, normal.name().to_owned());
        }
        let named = classes.is_empty() || classes == data.classes();
        if config.classes != data.classes().len() || !named {
            let expected = format!("those of the data set: {}", data.classes().join(", "));
            return wrong(
                "classes",
                expected,
                format!("{}: {}", config.classes, classes.join(", ")),
            );
        }
        let compute = compute.into();
        let params = known_parameters(folder, compute)?;
        let net = Segmenter::load(config, &params)?;
        params.finish()?;
        Self::with(net, data, normalize, compute)
    }

    fn with(
        net: Segmenter,
        data: &MaskedPictures,
        normalize: BandNormalize,
        compute: Compute,
    ) -> Result<Self> {
        let (resolution, multiple) = (data.resolution(), net.config().multiple());
        if !resolution.is_multiple_of(multiple) {
            let expected = format!("a multiple of {multiple}, as the network needs");
            return Err(Error::argument("resolution", resolution, expected));
        }
        let seen = Mutex::new(Confusion::new(net.config().classes));
        Ok(Self {
            net,
            classes: data.classes().to_vec(),
            resolution,
            normal: data.normalize(),
            normalize,
            losses: vec![MaskLoss::CrossEntropy],
            dtype: DType::F32,
            compute,
            seen,
        })
    }

    /// The same with the sum of these losses.
    ///
    /// # Errors
    /// There is none.
    pub fn losing(self, losses: &[MaskLoss]) -> Result<Self> {
        if losses.is_empty() {
            return Err(Error::argument("loss", "none", "at least one"));
        }
        Ok(Self { losses: losses.to_vec(), ..self })
    }

    /// The same, exported in `dtype`.
    pub fn exporting(self, dtype: Option<DType>) -> Self {
        Self { dtype: dtype.unwrap_or(self.dtype), ..self }
    }

    fn config(&self) -> Value {
        let mut config = self.net.config().to_json();
        config["_classes"] = json!(self.classes);
        if self.normal != Normal::Data {
            config["_normalize"] = json!(self.normal.name());
        }
        config["_mean"] = json!(self.normalize.mean);
        config["_std"] = json!(self.normalize.std);
        config["_resolution"] = json!(self.resolution);
        config
    }

    /// Normalised images and classes, where the network is.
    fn inputs(&self, batch: &MaskedBatch) -> Result<(Tensor, Tensor)> {
        let images = match self.normal {
            Normal::Data => self.normalize.apply(&batch.images)?,
            Normal::Picture => batch.images.clone(),
        };
        Ok((images, batch.classes.to_device(self.compute.device)?))
    }

    fn total(&self, logits: &Tensor, classes: &Tensor) -> Result<Tensor> {
        let mut losses = self.losses.iter().map(|loss| loss.of(logits, classes));
        let first = losses.next().unwrap_or_else(|| Err(Error::argument("loss", "none", "one")))?;
        losses.try_fold(first, |sum, loss| add(&sum, &loss?))
    }
}

impl Task<MaskedPictures> for SegmentTask {
    fn name(&self) -> &'static str {
        "segment"
    }

    fn parameters(&self) -> Vec<(String, &Parameter)> {
        weights(&self.net)
    }

    fn precision(&self) -> MixedPrecision {
        self.compute.precision
    }

    /// Running statistics.
    fn buffers(&self) -> Vec<(String, &Parameter)> {
        statistics(&self.net)
    }

    fn loss(&self, batch: &MaskedBatch, random: &mut Random) -> Result<Loss> {
        let (images, classes) = self.inputs(batch)?;
        let logits = self.net.forward_training(&images, &mut || random.unit())?;
        let total = self.total(&logits, &classes)?;
        let mut seen = Confusion::new(self.net.config().classes);
        seen.add(&logits, &classes)?;
        let iou = Tensor::from_vec(vec![seen.mean_iou()], [1])?;
        Ok(Loss { total, parts: vec![("mean_iou", iou)] })
    }

    fn validate(&self, batch: &MaskedBatch, _: &mut Random) -> Result<Measured> {
        let (images, classes) = self.inputs(batch)?;
        let logits = self.net.forward(&images)?;
        let loss = number_of(&self.total(&logits, &classes)?)?;
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).add(&logits, &classes)?;
        Ok(vec![("validation_loss", batch.images.dim(0) as f64 * loss)])
    }

    fn conclude(&self, _: &Measured) -> Measured {
        let none = Confusion::new(self.net.config().classes);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = std::mem::replace(&mut *seen, none);
        vec![
            ("validation_mean_iou", seen.mean_iou()),
            ("validation_pixel_accuracy", seen.accuracy()),
        ]
    }

    fn export(&self, folder: &Path, _: &Measured) -> Result<()> {
        export(&self.net, &self.config(), self.dtype, &folder.join("segmenter"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_common_is_counted_class_by_class() {
        let mut seen = Confusion::new(3);
        // Predicted 0 0 1 1 1, true 0 1 1 none 0.
        let logits: Vec<f32> =
            [0, 0, 1, 1, 1].iter().flat_map(|&c| (0..3).map(move |i| f32::from(i == c))).collect();
        let logits = Tensor::from_vec(logits, [5, 3]).unwrap();
        let targets = Tensor::from_vec(vec![0, 1, 1, IGNORED, 0], [5]).unwrap();
        seen.add(&logits, &targets).unwrap();
        assert_eq!(seen.ious(), [Some(1.0 / 3.0), Some(1.0 / 3.0), None]);
        assert_eq!((seen.mean_iou(), seen.accuracy()), (1.0 / 3.0, 0.5));
    }
}
