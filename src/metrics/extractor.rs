//! The networks that pictures are looked at through.

use std::path::Path;

use super::{Features, Resize};
use crate::error::{Error, Result};
use crate::io::TensorSource;
use crate::io::folder::Weights;
use crate::io::image::RgbImage;
use crate::models::inception::{self, InceptionV3};
use crate::nn::Params;
use crate::ops::layout::concat;
use crate::pipeline::classifier::Classifier;
use crate::tensor::{DType, Device, Tensor};

/// A network and how pictures are prepared for it.
pub struct Extractor {
    network: Network,
    name: String,
    key: String,
}

enum Network {
    Inception { model: Box<InceptionV3>, resize: Resize },
    Classifier(Box<Classifier>),
}

impl Extractor {
    /// InceptionV3 with the weights in a safetensors file, under torch-fidelity's names: what published distances are
    /// measured with.
    ///
    /// # Errors
    /// The file cannot be read, is a pickle, or has other weights.
    pub fn inception(file: &Path, resize: Resize, device: Device) -> Result<Self> {
        let weights = Weights::open_file(file)?;
        let sums = weights.checksums();
        let params = Params::new(weights, DType::F32, device);
        let model = InceptionV3::load(&params);
        let model = model.and_then(|model| params.finish().map(|_| model)).map_err(|e| match e {
            Error::Weights(message) => Error::Weights(format!(
                "{message}\nThis takes TensorFlow's network of 2015, whose weights torch-fidelity and pytorch-fid \
                 publish; torchvision's Inception is another one (`nadir metrics weights`)"
            )),
            other => other,
        })?;
        let name = format!("InceptionV3, {} resize", resize.name());
        let key = format!("inception-{}-{:08x}", resize.name(), sums.combined());
        Ok(Self { network: Network::Inception { model: Box::new(model), resize }, name, key })
    }

    /// A classifier that `nadir train classify` has written, seen before its last layer. Distances by it compare with those
    /// by it alone.
    ///
    /// # Errors
    /// The folder cannot be read or holds something else.
    pub fn classifier(folder: &Path, device: Device) -> Result<Self> {
        let classifier = Classifier::open(folder, device)?;
        let folder = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        let name = format!("classifier {folder}");
        let key = format!("classifier-{}", classifier.fingerprint());
        let network = Network::Classifier(Box::new(classifier));
        Ok(Self { network, name, key })
    }

    /// What it is called in reports.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Tells what it sees from what others do: network, weights and preparation.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// Whether published distances are measured with it.
    pub fn is_standard(&self) -> bool {
        matches!(self.network, Network::Inception { .. })
    }

    /// Numbers that it describes a picture by.
    pub fn width(&self) -> usize {
        match &self.network {
            Network::Inception { .. } => inception::FEATURES,
            Network::Classifier(classifier) => classifier.width(),
        }
    }

    /// Width and height that pictures must have; none where it makes them of any size its own.
    pub fn size(&self) -> Option<[u32; 2]> {
        match &self.network {
            Network::Inception { .. } => None,
            Network::Classifier(classifier) => {
                let [height, width] = classifier.size();
                Some([width as u32, height as u32])
            }
        }
    }

    /// What it sees in pictures, each by itself.
    ///
    /// # Errors
    /// `Argument` for no pictures, or pictures of a size that it does not take.
    pub fn see(&self, pictures: &[RgbImage]) -> Result<Seen> {
        if pictures.is_empty() {
            return Err(Error::argument("pictures", 0, "one at least"));
        }
        match &self.network {
            Network::Inception { model, resize } => {
                let features = model.features(&resize.batch(pictures)?)?;
                Ok(Seen { logits: model.logits(&features)?, features })
            }
            Network::Classifier(classifier) => {
                let [height, width] = classifier.size();
                for picture in pictures {
                    let (w, h) = picture.dimensions();
                    if (w as usize, h as usize) != (width, height) {
                        let expected =
                            format!("{width}x{height}, which the classifier was trained on");
                        return Err(Error::argument("picture", format!("{w}x{h}"), expected));
                    }
                }
                let (features, logits) = classifier.see(pictures)?;
                Ok(Seen { features, logits })
            }
        }
    }
}

/// What a network sees in some pictures.
pub struct Seen {
    /// [N, D], wherever the network is.
    pub features: Tensor,
    /// Scores of the classes [N, C].
    pub logits: Tensor,
}

impl Seen {
    /// All of it, in the order of the parts.
    ///
    /// # Errors
    /// `Shape` for no parts or parts of several networks.
    pub fn joined(parts: &[Self]) -> Result<Self> {
        let of = |get: fn(&Self) -> &Tensor| {
            let parts = parts.iter().map(|part| get(part).to_device(Device::Cpu));
            let parts = parts.collect::<Result<Vec<_>>>()?;
            concat(&parts.iter().collect::<Vec<_>>(), 0)
        };
        Ok(Self { features: of(|seen| &seen.features)?, logits: of(|seen| &seen.logits)? })
    }

    /// Features, checked.
    ///
    /// # Errors
    /// As [`Features::new`].
    pub fn features(&self) -> Result<Features> {
        Features::new(&self.features)
    }

    /// Scores of the classes, checked.
    ///
    /// # Errors
    /// As [`Features::new`].
    pub fn logits(&self) -> Result<Features> {
        Features::new(&self.logits)
    }
}

/// What was seen before, in a folder of safetensors files, one a set and network.
pub mod cache {
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};

    use sha2::{Digest, Sha256};

    use super::{Extractor, Result, Seen, TensorSource};
    use crate::io::safetensors::{SafeTensors, save};

    /// The file of a set whose content has this `fingerprint`.
    pub fn file(folder: &Path, fingerprint: &str, extractor: &Extractor) -> PathBuf {
        let hash = Sha256::digest(format!("{fingerprint} {}", extractor.key()));
        let name: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        folder.join(format!("{name}.safetensors"))
    }

    /// What a file holds; none where there is no file, or one of other pictures.
    ///
    /// # Errors
    /// The file is damaged.
    pub fn read(file: &Path, fingerprint: &str, count: usize) -> Result<Option<Seen>> {
        if !file.is_file() {
            return Ok(None);
        }
        let source = SafeTensors::open(file)?;
        if source.metadata().get("pictures").is_none_or(|found| found != fingerprint) {
            return Ok(None);
        }
        let seen = Seen { features: source.read("features")?, logits: source.read("logits")? };
        let fits = |rows: usize| rows == count;
        Ok(Some(seen).filter(|s| fits(s.features.dim(0)) && fits(s.logits.dim(0))))
    }

    /// Keeps what was seen; whole or not at all.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(file: &Path, fingerprint: &str, extractor: &Extractor, seen: &Seen) -> Result<()> {
        let tensors = [("features", &seen.features), ("logits", &seen.logits)]
            .map(|(name, tensor)| (name.to_owned(), tensor.clone()));
        let metadata = BTreeMap::from([
            ("pictures".to_owned(), fingerprint.to_owned()),
            ("extractor".to_owned(), extractor.key().to_owned()),
        ]);
        save(file, &tensors, &metadata)
    }
}
