//! Training a classifier: a residual network, cross entropy, and the share of held-out pictures that it gets right.

use std::path::Path;

use serde_json::{Value, json};

use super::network::{export, known_parameters, new_parameters, statistics, weights};
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::run::{Loss, Measured, Task, number_of};
use crate::data::{Batch, Dataset, Normalize};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::models::resnet::{ResNet, ResNetConfig};
use crate::nn::Parameter;
use crate::ops::cross_entropy::{CrossEntropy, cross_entropy};
use crate::tensor::{DType, Device, Tensor};

/// A classifier that is trained.
pub struct ClassifyTask {
    net: ResNet,
    /// By label.
    classes: Vec<String>,
    /// Height and width of the pictures.
    size: [usize; 2],
    normalize: Normalize,
    loss: CrossEntropy,
    /// What the model is exported in.
    dtype: DType,
    compute: Compute,
}

impl ClassifyTask {
    /// A new network for the classes of `data`; `shape` is given their number, `compute` may be a device alone.
    ///
    /// # Errors
    /// `data` has no classes.
    pub fn new(
        data: &Dataset,
        shape: impl Fn(usize) -> ResNetConfig,
        seed: u64,
        compute: impl Into<Compute>,
    ) -> Result<Self> {
        data.require_classes()?;
        let compute = compute.into();
        let params = new_parameters(seed, compute);
        Self::with(ResNet::load(shape(data.classes().len()), &params)?, data, compute)
    }

    /// The network in a folder with `config.json` and weights; `compute` may be a device alone.
    ///
    /// # Errors
    /// It cannot be read, or tells other classes apart than those of `data`.
    pub fn open(folder: &Path, data: &Dataset, compute: impl Into<Compute>) -> Result<Self> {
        data.require_classes()?;
        let path = folder.join("config.json");
        let config = Config::open(&path)?;
        let classes = config.strings("classes", &[])?;
        let config = ResNetConfig::read(&config)?;
        let named = classes.is_empty() || classes == data.classes();
        if config.num_classes != data.classes().len() || !named {
            let expected = format!("those of the data set: {}", data.classes().join(", "));
            let found = format!("{}: {}", config.num_classes, classes.join(", "));
            let advice = "Begin with a network of these classes, or with a new one.";
            return Err(Error::file(&path, "classes", expected, found, advice));
        }
        let compute = compute.into();
        let params = known_parameters(folder, compute)?;
        let net = ResNet::load(config, &params)?;
        params.finish()?;
        Self::with(net, data, compute)
    }

    fn with(net: ResNet, data: &Dataset, compute: Compute) -> Result<Self> {
        Ok(Self {
            net,
            classes: data.classes().to_vec(),
            size: data.size(),
            normalize: data.normalize(),
            loss: CrossEntropy::default(),
            dtype: DType::F32,
            compute,
        })
    }

    /// The same with a share of the targets spread over all classes.
    pub fn smoothing(mut self, label_smoothing: f32) -> Self {
        self.loss.label_smoothing = label_smoothing;
        self
    }

    /// The same, exported in `dtype`.
    pub fn exporting(self, dtype: Option<DType>) -> Self {
        Self { dtype: dtype.unwrap_or(self.dtype), ..self }
    }

    fn targets(&self, batch: &Batch) -> Result<Tensor> {
        Tensor::from_slice(&batch.labels, [batch.labels.len()])?.to_device(self.compute.device)
    }

    fn config(&self) -> Value {
        let mut config = self.net.config().to_json();
        config["classes"] = json!(self.classes);
        config["resolution"] = json!(self.size);
        config["mean"] = json!(self.normalize.mean);
        config["std"] = json!(self.normalize.std);
        config
    }
}

/// The number of rows whose largest logit is the target's.
fn right(logits: &Tensor, targets: &[u32]) -> Result<f64> {
    let (_, classes) = logits.dims2()?;
    let logits = logits.detach().to_device(Device::Cpu)?.to_dtype(DType::F32)?.to_vec::<f32>()?;
    let best =
        |row: &[f32]| row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map(|(i, _)| i);
    let rows = logits.chunks_exact(classes).zip(targets);
    Ok(rows.filter(|(row, target)| best(row) == Some(**target as usize)).count() as f64)
}

impl Task for ClassifyTask {
    fn name(&self) -> &'static str {
        "classify"
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

    fn loss(&self, batch: &Batch, _: &mut Random) -> Result<Loss> {
        let targets = self.targets(batch)?;
        let logits = self.net.forward_training(&batch.images)?;
        let total = cross_entropy(&logits, &targets, self.loss)?;
        let accuracy = right(&logits, &batch.labels)? / batch.labels.len() as f64;
        Ok(Loss { total, parts: vec![("accuracy", Tensor::from_vec(vec![accuracy], [1])?)] })
    }

    fn validate(&self, batch: &Batch, _: &mut Random) -> Result<Measured> {
        let count = batch.labels.len();
        let targets = self.targets(batch)?;
        let logits = self.net.forward(&batch.images)?;
        let loss = cross_entropy(&logits, &targets, CrossEntropy::default())?;
        let accuracy = right(&logits, &batch.labels)?;
        Ok(vec![
            ("validation_loss", count as f64 * number_of(&loss)?),
            ("validation_accuracy", accuracy),
        ])
    }

    fn export(&self, folder: &Path, _: &Measured) -> Result<()> {
        export(&self.net, &self.config(), self.dtype, &folder.join("classifier"))
    }
}
