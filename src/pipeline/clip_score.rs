//! How well a picture goes with a text, by a CLIP: 100 times the cosine between what it makes of the two (Hessel et al. 2021,
//! "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", without its factor of 2.5, as torchmetrics has it).

use std::path::Path;

use image::{RgbImage, imageops};
use serde_json::{Value, json};

use crate::data::Normalize;
use crate::error::{Error, Result};
use crate::io::config::Config;
use crate::io::folder::Weights;
use crate::io::image::{Filter, MAX_SIDE, resize_with};
use crate::models::clip::{Clip, ClipConfig};
use crate::nn::Params;
use crate::tensor::{DType, Device, Tensor};
use crate::text::tokenizer::ClipTokenizer;

/// A CLIP, and how pictures and texts are prepared for it.
pub struct ClipScore {
    model: Clip,
    tokenizer: ClipTokenizer,
    preparation: Preparation,
    name: String,
    fingerprint: String,
}

/// Numbers by which pictures or texts are compared: one row each, of length 1.
pub struct Embeddings {
    rows: Vec<Vec<f32>>,
    /// The end of each text that was longer than the encoder reads, which had no effect.
    pub left_out: Vec<Option<String>>,
}

impl ClipScore {
    /// Opens a folder of transformers' `CLIPModel`: `config.json`, weights in safetensors, `preprocessor_config.json` and the
    /// tokenizer.
    ///
    /// # Errors
    /// A file that is missing, damaged or of another model: one of both encoders alone, say.
    pub fn open(folder: &Path, device: Device) -> Result<Self> {
        let config = Config::open(folder.join("config.json"))?;
        let weights = Weights::open(folder, None)?;
        let checksums = weights.checksums();
        let config = ClipConfig::read(config, &weights)?;
        let preparation = Preparation::open(folder)?;
        preparation.check(config.vision.image_size, folder)?;
        let tokenizer = ClipTokenizer::open(folder)?;
        if tokenizer.vocabulary() > config.text.vocab_size {
            let found = format!("{} tokens", tokenizer.vocabulary());
            let expected = format!("at most vocab_size {}", config.text.vocab_size);
            let advice = "Tokenizer and model must be of one folder.";
            return Err(Error::file(folder, "tokenizer", expected, found, advice));
        }
        if tokenizer.max_length() > config.text.max_position_embeddings {
            let found = format!("texts of {} tokens", tokenizer.max_length());
            let most = config.text.max_position_embeddings;
            let expected = format!("at most max_position_embeddings {most}");
            let advice = "Tokenizer and model must be of one folder.";
            return Err(Error::file(folder, "tokenizer", expected, found, advice));
        }
        let params = Params::new(weights, DType::F32, device);
        let model = Clip::load(config, &params)?;
        params.finish()?;
        let fingerprint = format!("{:08x}", checksums.combined());
        let name = folder.file_name().unwrap_or(folder.as_os_str()).to_string_lossy();
        Ok(Self { model, tokenizer, preparation, name: name.into_owned(), fingerprint })
    }

    /// What its folder is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A checksum of the weights, which tells CLIPs apart.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// What it makes of pictures, each by itself.
    ///
    /// # Errors
    /// A picture without pixels; memory that is not there; `NotFinite`.
    pub fn pictures(&self, pictures: &[RgbImage]) -> Result<Embeddings> {
        if pictures.is_empty() {
            return Ok(Embeddings { rows: Vec::new(), left_out: Vec::new() });
        }
        let images = self.preparation.batch(pictures)?; // [B, S, S, 3]
        let embedded = self.model.embed_images(&images)?;
        Ok(Embeddings { rows: unit_rows(&embedded)?, left_out: vec![None; pictures.len()] })
    }

    /// What it makes of texts, each by itself; of one that is longer than it reads, of its beginning.
    ///
    /// # Errors
    /// A text that the tokenizer refuses; memory that is not there; `NotFinite`.
    pub fn texts<T: AsRef<str>>(&self, texts: &[T]) -> Result<Embeddings> {
        if texts.is_empty() {
            return Ok(Embeddings { rows: Vec::new(), left_out: Vec::new() });
        }
        let (mut ids, mut left_out) = (Vec::new(), Vec::new());
        for text in texts {
            let encoded = self.tokenizer.encode(text.as_ref())?;
            ids.extend(encoded.ids.iter().map(|&id| i64::from(id)));
            left_out.push(encoded.truncated);
        }
        let ids = Tensor::from_vec(ids, [texts.len(), self.tokenizer.max_length()])?;
        Ok(Embeddings { rows: unit_rows(&self.model.embed_texts(&ids)?)?, left_out })
    }
}

impl Embeddings {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// 100 times the cosine of each with the one of `others` at its place, -100 to 100.
    ///
    /// # Errors
    /// `Argument` when there are not as many.
    pub fn similarity(&self, others: &Self) -> Result<Vec<f64>> {
        if self.len() != others.len() {
            let found = format!("{} and {}", self.len(), others.len());
            return Err(Error::argument("pictures", found, "as many texts as pictures"));
        }
        let dot = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            100.0 * a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
        };
        Ok(self.rows.iter().zip(&others.rows).map(dot).collect())
    }
}

/// The CLIP score of pairs with these [similarities](Embeddings::similarity): their mean, or 0 where that is negative, as
/// torchmetrics computes it; NaN of none.
pub fn clip_score(similarities: &[f64]) -> f64 {
    let mean = similarities.iter().sum::<f64>() / similarities.len() as f64;
    // f64::max would make 0 of NaN.
    if mean < 0.0 { 0.0 } else { mean }
}

/// Rows [B, D], each divided by its length.
fn unit_rows(rows: &Tensor) -> Result<Vec<Vec<f32>>> {
    let (_, width) = rows.dims2()?;
    let values = rows.to_device(Device::Cpu)?.to_vec::<f32>()?;
    let unit = |row: &[f32]| {
        let length = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        if !(length > 0.0 && length.is_finite()) {
            let message = format!("what CLIP makes of a picture or text has the length {length}");
            return Err(Error::NotFinite(message));
        }
        Ok(row.iter().map(|&x| (f64::from(x) / length) as f32).collect())
    };
    values.chunks_exact(width).map(unit).collect()
}

/// Of red, green and blue in what CLIP was trained with.
const MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
const STD: [f32; 3] = [0.268_629_54, 0.261_302_6, 0.275_777_1];

/// How pictures become what the vision encoder takes: resized by Pillow's bicubic filter, the centre cut out, normalised.
pub(super) struct Preparation {
    resize: Resize,
    /// Height and width.
    crop: [usize; 2],
    normalize: Normalize,
}

enum Resize {
    /// The shorter side, the other in proportion.
    Shortest(usize),
    /// Height and width.
    Both([usize; 2]),
}

impl Preparation {
    /// transformers' own, of pictures of `side` pixels.
    pub(super) fn of_side(side: usize) -> Self {
        let normalize = Normalize { mean: MEAN, std: STD };
        Self { resize: Resize::Shortest(side), crop: [side; 2], normalize }
    }

    /// Holds it against the side of what an encoder in `folder` sees.
    pub(super) fn check(&self, side: usize, folder: &Path) -> Result<()> {
        if self.crop != [side, side] {
            let found = format!("{}x{}", self.crop[1], self.crop[0]);
            let advice = "Both files must be of one model.";
            let expected = format!("the {side}x{side} of config.json");
            return Err(Error::file(folder, "crop_size", expected, found, advice));
        }
        Ok(())
    }

    pub(super) fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("preprocessor_config.json");
        let together = folder.join("processor_config.json");
        // transformers 5 writes one file for pictures and texts.
        let c = match path.exists() || !together.exists() {
            true => Config::open(path)?,
            false => {
                let found = Config::open(&together)?;
                let images = found.value("image_processor").cloned().unwrap_or_default();
                Config::from_value(format!("{}: image_processor", together.display()), images)?
            }
        };
        for name in ["do_resize", "do_center_crop", "do_rescale", "do_normalize"] {
            c.neutral(name, &[json!(true)])?;
        }
        c.neutral("do_convert_rgb", &[json!(true), json!(false)])?;
        c.neutral("resample", &[json!(3)])?;
        c.neutral("rescale_factor", &[json!(1.0 / 255.0)])?;
        c.ignore(&["image_processor_type", "feature_extractor_type", "processor_class"]);
        c.ignore(&["data_format", "input_data_format", "device", "return_tensors", "size_divisor"]);
        let expected = "pixels, or {\"shortest_edge\": pixels}, or {\"height\": .., \"width\": ..}";
        let side = |value: &Value| {
            let n = usize::try_from(value.as_u64()?).ok()?;
            (1..=MAX_SIDE as usize).contains(&n).then_some(n)
        };
        let both = |value: &Value| Some([side(value.get("height")?)?, side(value.get("width")?)?]);
        let default = json!(224);
        let size = c.value("size").unwrap_or(&default);
        let shortest = side(size).or_else(|| side(size.get("shortest_edge")?));
        let resize = shortest.map(Resize::Shortest).or_else(|| both(size).map(Resize::Both));
        let resize = resize.ok_or_else(|| c.wrong("size", expected))?;
        let crop = c.value("crop_size").unwrap_or(&default);
        let crop = side(crop).map(|side| [side; 2]).or_else(|| both(crop));
        let crop =
            crop.ok_or_else(|| c.wrong("crop_size", "pixels, or {\"height\": .., \"width\": ..}"))?;
        let least = match resize {
            Resize::Shortest(side) => [side; 2],
            Resize::Both(sides) => sides,
        };
        if crop[0] > least[0] || crop[1] > least[1] {
            return Err(c.wrong("crop_size", "no more than size, or pictures would be padded"));
        }
        let color = |name: &str, default: [f32; 3]| {
            let expected = "a number for red, green and blue, none of image_std 0";
            let found = c.get::<[f32; 3]>(name, expected)?.unwrap_or(default);
            let valid = |x: &f32| x.is_finite() && (name != "image_std" || *x > 0.0);
            if found.iter().all(valid) { Ok(found) } else { Err(c.wrong(name, expected)) }
        };
        let normalize =
            Normalize { mean: color("image_mean", MEAN)?, std: color("image_std", STD)? };
        c.finish()?;
        Ok(Self { resize, crop, normalize })
    }

    /// Pictures -> [B, H, W, 3]
    pub(super) fn batch(&self, pictures: &[RgbImage]) -> Result<Tensor> {
        let [height, width] = self.crop;
        let mut values = Vec::with_capacity(pictures.len() * height * width * 3);
        for picture in pictures {
            for pixel in self.cut(picture)?.pixels() {
                for (c, &level) in pixel.0.iter().enumerate() {
                    let Normalize { mean, std } = self.normalize;
                    values.push((f32::from(level) / 255.0 - mean[c]) / std[c]);
                }
            }
        }
        Tensor::from_vec(values, [pictures.len(), height, width, 3])
    }

    fn cut(&self, picture: &RgbImage) -> Result<RgbImage> {
        let (w, h) = (picture.width() as usize, picture.height() as usize);
        if w.min(h) == 0 {
            return Err(Error::argument("picture", "an empty picture", "at least one pixel"));
        }
        let [new_h, new_w] = match self.resize {
            Resize::Shortest(side) if w <= h => [side * h / w, side],
            Resize::Shortest(side) => [side, side * w / h],
            Resize::Both(sides) => sides,
        };
        let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let resized = resize_with(picture, side(new_w), side(new_h), Filter::Bicubic)?;
        let [height, width] = self.crop;
        let (x, y) = ((new_w - width) / 2, (new_h - height) / 2);
        Ok(imageops::crop_imm(&resized, side(x), side(y), side(width), side(height)).to_image())
    }
}
