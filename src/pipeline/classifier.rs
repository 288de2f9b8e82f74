//! What a picture shows, by a classifier that `nadir train classify` has trained, or torchvision has.

use std::path::{Path, PathBuf};

use image::RgbImage;

use crate::data::{Normalize, plain};
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::io::folder::Weights;
use crate::models::resnet::{ResNet, ResNetConfig};
use crate::nn::Params;
use crate::ops::softmax::softmax;
use crate::tensor::{DType, Device, Tensor};

/// A classifier and how its pictures are prepared.
pub struct Classifier {
    net: ResNet,
    folder: PathBuf,
    /// By label.
    classes: Vec<String>,
    /// Height and width of what it sees.
    size: [usize; 2],
    normalize: Normalize,
    fingerprint: String,
}

impl Classifier {
    /// Loads a folder: `config.json` (the network; classes, resolution, mean and std, without which they are numbers,
    /// torchvision's 224 and ImageNet's) and weights in safetensors under torchvision's names.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another network.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let config = Config::open(folder.join("config.json"))?;
        let mut classes = config.strings("classes", &[])?;
        let size = config.usizes("resolution", &[224, 224])?;
        let size = match size[..] {
            [height @ 1..=MAX_SIDE, width @ 1..=MAX_SIDE] => [height, width],
            _ => return Err(config.wrong("resolution", "height and width, 1 to 16384 each")),
        };
        let color = |name: &str, default: [f32; 3]| {
            let expected = "a number for red, green and blue, none of std 0";
            let found = config.get::<[f32; 3]>(name, expected)?.unwrap_or(default);
            let valid = |x: &f32| x.is_finite() && (name != "std" || *x > 0.0);
            if found.iter().all(valid) { Ok(found) } else { Err(config.wrong(name, expected)) }
        };
        let Normalize { mean, std } = Normalize::IMAGENET;
        let normalize = Normalize { mean: color("mean", mean)?, std: color("std", std)? };
        let network = ResNetConfig::read(&config)?;
        if classes.is_empty() {
            classes = (0..network.num_classes).map(|label| label.to_string()).collect();
        }
        if classes.len() != network.num_classes {
            return Err(config.wrong("classes", "a name for each of num_classes"));
        }
        let weights = Weights::open(folder, None)?;
        let checksums = weights.checksums();
        let params = Params::new(weights, DType::F32, device);
        let net = ResNet::load(network, &params)?;
        params.finish()?;
        let fingerprint = format!("{:08x}", checksums.combined());
        Ok(Self { net, folder: folder.to_path_buf(), classes, size, normalize, fingerprint })
    }

    /// A checksum of the weights, which tells classifiers apart.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// The names of the classes, by label.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// The label of a class.
    ///
    /// # Errors
    /// It does not know the class: the error lists those that it knows.
    pub fn label(&self, class: &str) -> Result<usize> {
        self.classes.iter().position(|known| known == class).ok_or_else(|| {
            let advice = "Name classes as the classifier does, or train one that knows them: nadir train classify.";
            Error::file(&self.folder, "class", self.classes.join(", "), class, advice)
        })
    }

    /// Probabilities of all classes for each picture: the largest part of it that has the proportions of what the network sees,
    /// brought to its size. A picture's do not depend on those beside it.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn classify(&self, pictures: &[RgbImage]) -> Result<Vec<Vec<f32>>> {
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        self.classify_prepared(&self.images(pictures)?)
    }

    /// The same of pictures [B, H, W, 3] that are brought to size and normalised.
    ///
    /// # Errors
    /// As [`Self::classify`].
    pub fn classify_prepared(&self, images: &Tensor) -> Result<Vec<Vec<f32>>> {
        let logits = self.net.forward(images)?; // [B, classes]
        let rows = softmax(&logits)?.to_device(Device::Cpu)?.to_vec::<f32>()?;
        Ok(rows.chunks_exact(self.classes.len()).map(<[f32]>::to_vec).collect())
    }

    /// Height and width of what it sees.
    pub fn size(&self) -> [usize; 2] {
        self.size
    }

    /// Numbers by which the last layer is told of a picture.
    pub fn width(&self) -> usize {
        self.net.config().features()
    }

    /// What the last layer is told of each picture, [B, [`width`](Self::width)], and what it makes of that, [B, classes].
    ///
    /// # Errors
    /// As [`Self::classify`]; no pictures.
    pub fn see(&self, pictures: &[RgbImage]) -> Result<(Tensor, Tensor)> {
        let features = self.net.features(&self.images(pictures)?)?;
        let logits = self.net.logits(&features)?;
        Ok((features, logits))
    }

    /// Pictures -> [B, H, W, 3]
    fn images(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        let [height, width] = self.size;
        let values = height * width * 3;
        let mut images = vec![0.0; pictures.len() * values];
        for (picture, out) in pictures.iter().zip(images.chunks_exact_mut(values)) {
            plain(picture, self.size, &self.normalize, out)?;
        }
        Tensor::from_vec(images, [pictures.len(), height, width, 3])
    }
}

/// The longest side that a network is given.
const MAX_SIDE: usize = 16_384;

/// The label with the largest probability, and that.
pub fn best(probabilities: &[f32]) -> (usize, f32) {
    let all = probabilities.iter().copied().enumerate();
    all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or_default()
}
