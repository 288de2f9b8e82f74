//! What each pixel shows, by a network that `nadir train segment` has trained, or segmentation-models-pytorch has.

use std::path::{Path, PathBuf};

use crate::data::Normalize;
use crate::data::masks::Normal;
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::io::folder::Weights;
use crate::models::segmentation::{SegmentationConfig, Segmenter};
use crate::nn::Params;
use crate::ops::softmax::softmax;
use crate::tensor::{DType, Device, Tensor};

/// A segmenter, the names of its classes, and how levels are normalised for it.
pub struct PixelClassifier {
    net: Segmenter,
    device: Device,
    folder: PathBuf,
    classes: Vec<String>,
    mean: Vec<f32>,
    std: Vec<f32>,
    normal: Normal,
    stated: bool,
}

impl PixelClassifier {
    /// Loads a folder: `config.json` (the network; `_classes`, `_mean` and `_std`, without which classes are numbers and
    /// normalisation is ImageNet's; `_normalize`, which may be by picture) and weights in safetensors under segmentation-models-pytorch's names.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another network; more than 255 classes; no `_mean` and `_std` of other bands than
    /// three.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let config = Config::open(folder.join("config.json"))?;
        let mut classes = config.strings("_classes", &[])?;
        let numbers = |name: &str| -> Result<Option<Vec<f32>>> {
            let expected = "a number for each band, none of _std 0";
            let found = config.get::<Vec<f32>>(name, expected)?;
            let valid = |x: &f32| x.is_finite() && (name != "_std" || *x > 0.0);
            match found {
                Some(numbers) if !numbers.iter().all(valid) => Err(config.wrong(name, expected)),
                found => Ok(found),
            }
        };
        let (mean, std) = (numbers("_mean")?, numbers("_std")?);
        let normal = config.choice("_normalize", Normal::Data.name(), &Normal::NAMES)?;
        let network = SegmentationConfig::read(&config)?;
        let bands = network.in_channels;
        let (mean, std, stated) = match (mean, std) {
            (Some(mean), Some(std)) if mean.len() == bands && std.len() == bands => {
                (mean, std, true)
            }
            (None, None) if bands == 3 => {
                let Normalize { mean, std } = Normalize::IMAGENET;
                (mean.to_vec(), std.to_vec(), false)
            }
            _ => {
                let expected = format!("as many numbers as there are bands, {bands}");
                return Err(config.wrong("_mean, _std", &expected));
            }
        };
        // One number a pixel tells one class from what is none.
        let count = network.classes.max(2);
        if classes.is_empty() {
            classes = (0..count).map(|label| label.to_string()).collect();
        }
        if network.classes == 1 && classes.len() == 1 {
            classes.insert(0, "none".to_owned());
        }
        if classes.len() != count || count > 255 {
            return Err(config.wrong("_classes", "a name for each of classes, at most 255"));
        }
        let params = Params::new(Weights::open(folder, None)?, DType::F32, device);
        let net = Segmenter::load(network, &params)?;
        params.finish()?;
        Ok(Self { net, device, folder: folder.to_path_buf(), classes, mean, std, normal, stated })
    }

    /// The names of the classes, by their number in a mask.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Bands that it sees.
    pub fn bands(&self) -> usize {
        self.mean.len()
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What height and width of what it sees have to be a multiple of.
    pub fn multiple(&self) -> usize {
        self.net.config().multiple()
    }

    /// Whether the folder says how levels are normalised; if not, it is as for ImageNet.
    pub fn states_normalization(&self) -> bool {
        self.stated
    }

    /// What levels are normalised by: [these numbers](Self::mean), or each picture's own.
    pub fn normalize(&self) -> Normal {
        self.normal
    }

    /// Mean of each band's levels, 0 to 1, in what it was trained on.
    pub fn mean(&self) -> &[f32] {
        &self.mean
    }

    /// Their deviation.
    pub fn std(&self) -> &[f32] {
        &self.std
    }

    /// Normalised images, [B, H, W, bands] -> probabilities, [B, H, W, classes]. Those of an image do not depend on others.
    ///
    /// # Errors
    /// Another number of bands, a size that is no [multiple](Self::multiple); memory that is not there.
    pub fn probabilities(&self, images: Vec<f32>, shape: [usize; 4]) -> Result<Vec<f32>> {
        let images = Tensor::from_vec(images, shape)?.to_device(self.device)?;
        let logits = self.net.forward(&images)?; // [B, H, W, classes of the network]
        let two = self.net.config().classes == 1;
        let values = if two { logits } else { softmax(&logits)? };
        let values = values.to_device(Device::Cpu)?.to_vec::<f32>()?;
        if values.iter().any(|value| !value.is_finite()) {
            let advice = "a network whose weights or normalisation are not those of its training";
            let message = format!("{}: no numbers come out: {advice}", self.folder.display());
            return Err(Error::NotFinite(message));
        }
        if !two {
            return Ok(values);
        }
        let sure = |logit: f32| 1.0 / (1.0 + (-logit).exp());
        Ok(values.into_iter().flat_map(|logit| [sure(-logit), sure(logit)]).collect())
    }
}
