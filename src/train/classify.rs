//! Training a classifier: a residual network, cross entropy, and the share of held-out pictures that it gets right.

use std::path::Path;

use serde_json::{Value, json};

use super::initial::initial;
use super::precision::{Compute, MixedPrecision};
use super::random::Random;
use super::run::{Loss, Measured, Task, number_of};
use super::vae::NoFile;
use crate::data::{Batch, Dataset, Normalize};
use crate::error::{Error, Result};
use crate::io::atomic;
use crate::io::config::Config;
use crate::io::folder::Weights;
use crate::models::resnet::{ResNet, ResNetConfig};
use crate::nn::{Keep, Parameter, Params, parameters, save};
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
        let new = move |name: &str, shape: &[usize]| match name.ends_with("running_var") {
            true => Tensor::full(shape, 1.0, DType::F32, Device::Cpu),
            false => initial(seed, name, shape),
        };
        let compute = compute.into();
        let params = Params::initial(new, compute.precision.dtype(), compute.device);
        let params = params.keeping(Keep::Trainable);
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
        let weights = Weights::open(folder, None)?;
        let compute = compute.into();
        let params = Params::new(weights, compute.precision.dtype(), compute.device);
        let params = params.keeping(Keep::Trainable);
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
        parameters(&self.net).into_iter().filter(|(_, p)| p.is_trainable()).collect()
    }

    fn precision(&self) -> MixedPrecision {
        self.compute.precision
    }

    /// Running statistics.
    fn buffers(&self) -> Vec<(String, &Parameter)> {
        parameters(&self.net).into_iter().filter(|(_, p)| !p.is_trainable()).collect()
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
        let folder = folder.join("classifier");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let path = folder.join("config.json");
        let text = format!("{:#}\n", self.config());
        atomic::write(&path, |out| out.write_all(text.as_bytes()))?;
        save(&self.net, &NoFile, &folder.join("model.safetensors"), Some(self.dtype))
    }
}
