//! All that a picture depends on: filled by `generate`, kept in the PNG, read back by `replay`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use nadir::io::checkpoint::Prediction;
use nadir::io::geotiff::picture;
use nadir::io::picture::{Samples, Scale, ShownBands};
use nadir::io::png::{self, Parameters};
use nadir::nn::lora::Adapter;
use nadir::pipeline::{
    Cancel, Control, ImagePrompt, InitImage, Inversion, Preprocessor, Request, Settings,
};
use nadir::tensor::DType;
use nadir::{Error, Result};

/// Pictures of one command.
const MAX_IMAGES: usize = 100_000;

/// Settings of one command, under diffusers' names where it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recipe {
    /// Version of nadir that wrote this.
    pub nadir: String,
    /// As given to `--model`, or the name of the model that ships.
    pub model: String,
    /// Tells whether what `model` names is still the same.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_hash: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Where the model is an original checkpoint: its tokenizer, if another than the one that ships.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<PathBuf>,
    /// Likewise, what its UNet was said to predict.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prediction: Option<Prediction>,
    /// An autoencoder in the place of the model's; the hash of the model is of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae: Option<PathBuf>,
    /// Adapters, in the order in which they are added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lora: Vec<Lora>,
    /// Words that the text encoder was taught.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub embedding: Vec<Embedding>,
    #[serde(with = "nadir::io::as_text")]
    pub dtype: DType,
    /// Where it ran: the last bits of a result depend on it. Empty before that is decided.
    pub device: String,
    /// Of the settings those that leave a choice to the model have its choice, once it is loaded.
    #[serde(flatten)]
    pub settings: Settings,
    /// Of the first picture.
    pub seed: u64,
    /// Pictures with consecutive seeds: in a file more than one when it is a grid.
    pub num_images: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_image: Option<Source>,
    /// ControlNets beside that of the model.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub controlnet: Vec<PathBuf>,
    /// A picture for each ControlNet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub control: Vec<ControlSource>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub guess_mode: bool,
    /// An IP-Adapter, its hash that of its file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_adapter: Option<Source>,
    /// The encoder that looks at pictures for it, if not the model's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_encoder: Option<PathBuf>,
    /// The picture that is its prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_image: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_scale: Option<f32>,
    /// Where the picture lies, [west, south, east, north] in units of `epsg`, unless it starts from one that lies somewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bbox: Option<[f64; 4]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epsg: Option<u32>,
    /// What the numbers of a GeoTIFF are.
    #[serde(default, with = "nadir::io::as_text::option", skip_serializing_if = "Option::is_none")]
    pub samples: Option<Samples>,
    /// What the numbers of rasters that are read and written are to the model, but for those of 8 bits.
    #[serde(default, with = "nadir::io::as_text::option", skip_serializing_if = "Option::is_none")]
    pub scale: Option<Scale>,
    /// Bands that a PNG shows.
    #[serde(default, with = "nadir::io::as_text::option", skip_serializing_if = "Option::is_none")]
    pub preview_bands: Option<ShownBands>,
    /// What this version does not know.
    #[serde(flatten, skip_serializing)]
    pub unknown: serde_json::Map<String, serde_json::Value>,
}

/// A picture that a recipe starts from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    pub path: PathBuf,
    /// Of its pixels.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// A picture for a ControlNet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlSource {
    pub path: PathBuf,
    /// What is made of it.
    #[serde(with = "nadir::io::as_text", default)]
    pub preprocessor: Preprocessor,
    pub scale: f32,
    pub start: f64,
    pub end: f64,
    /// Of its levels, as the ControlNet sees them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// An adapter of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lora {
    pub path: PathBuf,
    pub weight: f32,
    /// Of its file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

/// A textual inversion.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    pub path: PathBuf,
    pub token: String,
    /// Of its file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hash: String,
}

impl Embedding {
    /// What is read of each file.
    ///
    /// # Errors
    /// One cannot be read, or holds no embedding.
    pub fn all(inversions: &[Inversion]) -> Result<Vec<Self>> {
        let open = |inversion: &Inversion| {
            let (token, hash) = (inversion.token()?, inversion.checksum()?);
            Ok(Self { path: inversion.path.clone(), token, hash })
        };
        inversions.iter().map(open).collect()
    }

    pub fn inversion(&self) -> Inversion {
        Inversion { path: self.path.clone(), token: Some(self.token.clone()) }
    }
}

impl From<Adapter> for Lora {
    fn from(Adapter { path, weight }: Adapter) -> Self {
        Self { path, weight, hash: String::new() }
    }
}

impl Lora {
    pub fn adapter(&self) -> Adapter {
        Adapter { path: self.path.clone(), weight: self.weight }
    }

    /// What other programs call it: the file's name without extension.
    fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }
}

impl Recipe {
    /// A recipe of this version.
    pub fn new(model: String, settings: Settings, seed: u64) -> Self {
        Self {
            nadir: env!("CARGO_PKG_VERSION").to_owned(),
            model,
            model_hash: String::new(),
            variant: None,
            tokenizer: None,
            prediction: None,
            vae: None,
            lora: Vec::new(),
            embedding: Vec::new(),
            dtype: DType::F32,
            device: String::new(),
            settings,
            seed,
            num_images: 1,
            init_image: None,
            mask_image: None,
            controlnet: Vec::new(),
            control: Vec::new(),
            guess_mode: false,
            ip_adapter: None,
            image_encoder: None,
            ip_image: None,
            ip_scale: None,
            bbox: None,
            epsg: None,
            samples: None,
            scale: None,
            preview_bands: None,
            unknown: serde_json::Map::new(),
        }
    }

    /// Checks what can be judged without the model.
    ///
    /// # Errors
    /// Names the first setting that cannot be.
    pub fn check(&self) -> Result<()> {
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::argument("dtype", self.dtype, "one of f32, f16, bf16"));
        }
        if !(1..=MAX_IMAGES).contains(&self.num_images) {
            let expected = format!("a number from 1 to {MAX_IMAGES}");
            return Err(Error::argument("num_images", self.num_images, expected));
        }
        if self.seed.checked_add(self.num_images as u64 - 1).is_none() {
            let expected = format!("at most 2^64 - {}, for {0} pictures", self.num_images);
            return Err(Error::argument("seed", self.seed, expected));
        }
        let sources = [
            ("init_image", &self.init_image),
            ("mask_image", &self.mask_image),
            ("ip_adapter", &self.ip_adapter),
            ("ip_image", &self.ip_image),
        ];
        let sources =
            sources.into_iter().filter_map(|(f, source)| Some((f, &source.as_ref()?.path)));
        let controls = self.control.iter().map(|control| ("control_image", &control.path));
        let nets = self.controlnet.iter().map(|path| ("controlnet", path));
        let sources = sources.chain(controls).chain(nets);
        let sources = sources.chain(self.tokenizer.iter().map(|folder| ("tokenizer", folder)));
        let sources = sources.chain(self.image_encoder.iter().map(|dir| ("image_encoder", dir)));
        let sources = sources.chain(self.vae.iter().map(|folder| ("vae", folder)));
        let sources = sources.chain(self.embedding.iter().map(|e| ("embedding", &e.path)));
        for (field, path) in sources.chain(self.lora.iter().map(|lora| ("lora", &lora.path))) {
            if path.to_str().is_none() {
                let expected = "a path in UTF-8, which the picture can keep";
                return Err(Error::argument(field, path.display(), expected));
            }
        }
        if let Some(lora) = self.lora.iter().find(|lora| !lora.weight.is_finite()) {
            return Err(Error::argument("lora", lora.weight, "a finite weight"));
        }
        if self.init_image.is_none()
            && (self.mask_image.is_some() || self.settings.strength.is_some())
        {
            let expected = "a picture, with a mask or a strength";
            return Err(Error::argument("init_image", "none", expected));
        }
        self.settings.check()
    }

    /// What the pipeline is asked for, a request for each picture.
    pub fn requests(
        &self,
        init: Option<Arc<InitImage>>,
        controls: Vec<Control>,
        image_prompt: Option<ImagePrompt>,
        cancel: Cancel,
    ) -> impl Iterator<Item = Request> {
        (0..self.num_images as u64).map(move |i| Request {
            settings: self.settings.clone(),
            seed: self.seed + i,
            init: init.clone(),
            controls: controls.clone(),
            guess_mode: self.guess_mode,
            image_prompt: image_prompt.clone(),
            cancel: cancel.clone(),
        })
    }

    /// Adapters as the web UI has them behind the prompt: ` <lora:harbours:0.8>`.
    fn lora_tags(&self) -> String {
        self.lora.iter().map(|lora| format!(" <lora:{}:{}>", lora.name(), lora.weight)).collect()
    }

    /// In the web UI's form.
    fn parameters(&self, sampler: &str) -> Parameters {
        let parameters = Parameters {
            prompt: self.settings.prompt.clone() + &self.lora_tags(),
            negative_prompt: self.settings.negative_prompt.clone(),
            settings: Vec::new(),
        };
        let settings = &self.settings;
        let size = (settings.width.unwrap_or_default(), settings.height.unwrap_or_default());
        let mut parameters = parameters
            .with("Steps", settings.steps.unwrap_or_default())
            .with("Sampler", sampler)
            .with("CFG scale", settings.guidance_scale.unwrap_or_default())
            .with("Seed", self.seed)
            .with("Size", format!("{}x{}", size.0, size.1))
            .with("Model hash", &self.model_hash)
            .with("Model", &self.model)
            .with_clip_skip(settings.clip_skip);
        if !self.lora.is_empty() {
            let hash = |lora: &Lora| format!("{}: {}", lora.name(), lora.hash);
            let hashes: Vec<_> = self.lora.iter().map(hash).collect();
            parameters = parameters.with("Lora hashes", hashes.join(", "));
        }
        if !self.embedding.is_empty() {
            let hash = |e: &Embedding| format!("{}: {}", e.token, e.hash);
            let hashes: Vec<_> = self.embedding.iter().map(hash).collect();
            parameters = parameters.with("TI hashes", hashes.join(", "));
        }
        if let Some(strength) = settings.strength {
            parameters = parameters.with("Denoising strength", strength);
        }
        let of_second =
            [("Prompt 2", &settings.prompt_2), ("Negative prompt 2", &settings.negative_prompt_2)];
        for (name, text) in of_second.into_iter().filter(|(_, text)| !text.is_empty()) {
            parameters = parameters.with(name, text);
        }
        parameters.with("Version", format!("nadir {}", self.nadir))
    }

    /// The texts of a picture that tell how it was made; `sampler` is the name that other programs know it by.
    ///
    /// # Errors
    /// A path that JSON cannot hold.
    pub fn texts(&self, sampler: &str) -> Result<[(&'static str, String); 2]> {
        let source = [&self.init_image, &self.mask_image].into_iter().flatten();
        let replay = serde_json::to_string(self).map_err(|e| {
            let path = source.map(|source| source.path.clone()).next().unwrap_or_default();
            Error::io(path, e.into())
        })?;
        Ok([(png::PARAMETERS, self.parameters(sampler).to_string()), (png::REPLAY, replay)])
    }

    /// What a picture tells of how it was made.
    ///
    /// # Errors
    /// It is no picture of nadir's, or one of a version that had settings this one does not know.
    pub fn read(path: &Path) -> Result<Self> {
        let wrong = |found| {
            let expected = "settings that this version knows";
            let advice = "A picture of a later version needs that version.";
            Error::file(path, "text \"nadir\"", expected, found, advice)
        };
        let replay = if picture::is_named_so(path) {
            let text = picture::text(path, png::REPLAY)?;
            serde_json::from_str(&text).map_err(|e| wrong(e.to_string()))?
        } else {
            png::read_replay(path)?
        };
        let recipe: Self = serde_json::from_value(replay).map_err(|e| wrong(e.to_string()))?;
        // What it does not understand must not come out different in silence.
        match recipe.unknown.keys().next() {
            Some(field) => Err(wrong(format!("the unknown field {field:?}"))),
            None => Ok(recipe),
        }
    }
}

#[cfg(test)]
mod tests {
    use image::RgbImage;

    use super::*;

    fn recipe() -> Recipe {
        let settings = Settings {
            prompt: "a \u{1f6f0} \"river\"\nin two lines".into(),
            prompt_2: "a delta, \"silt\": brown\nand green".into(),
            negative_prompt_2: "snow".into(),
            width: Some(72),
            height: Some(64),
            steps: Some(20),
            guidance_scale: Some(7.1),
            eta: 0.3,
            clip_skip: 1,
            scheduler: Some("euler_a".into()),
            noise: "philox:80x16".parse().unwrap(),
            strength: Some(0.6),
            ..Settings::default()
        };
        Recipe {
            model_hash: "0123abcd".into(),
            dtype: DType::BF16,
            device: "cpu".into(),
            num_images: 2,
            init_image: Some(Source { path: "chip.png".into(), hash: "89ab".into() }),
            controlnet: vec!["nets/canny".into()],
            vae: Some("vaes/tiny".into()),
            control: vec![ControlSource {
                path: "chip.png".into(),
                preprocessor: Preprocessor::Canny(20, 60),
                scale: 0.8,
                start: 0.1,
                end: 0.9,
                hash: "1234".into(),
            }],
            guess_mode: true,
            samples: Some(Samples::U16),
            scale: "0,10000.5".parse().ok(),
            preview_bands: "3,2,1".parse().ok(),
            embedding: vec![Embedding {
                path: "words/coast.safetensors".into(),
                token: "<coast>".into(),
                hash: "0badcafe".into(),
            }],
            lora: vec![
                Lora { path: "a/b.c.safetensors".into(), weight: 0.8, hash: "cdef".into() },
                Lora { path: "x".into(), weight: -1.0, hash: "0123".into() },
            ],
            ..Recipe::new("org/name".into(), settings, u64::MAX - 1)
        }
    }

    #[test]
    fn a_picture_keeps_its_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let texts = recipe().texts("Euler a").unwrap();
        let texts = texts.each_ref().map(|(keyword, text)| (*keyword, text.as_str()));
        png::write(&path, &RgbImage::new(1, 1), &texts).unwrap();
        assert_eq!(Recipe::read(&path).unwrap(), recipe());

        let texts = png::read_texts(&path).unwrap();
        let parameters = texts.iter().find(|(keyword, _)| keyword == png::PARAMETERS).unwrap();
        let parameters = Parameters::parse(&parameters.1);
        assert_eq!(parameters.prompt, recipe().settings.prompt + " <lora:b.c:0.8> <lora:x:-1>");
        let expected = [
            ("Sampler", "Euler a"),
            ("Seed", "18446744073709551614"),
            ("Size", "72x64"),
            ("Clip skip", "2"),
            ("Denoising strength", "0.6"),
            ("Prompt 2", "a delta, \"silt\": brown\nand green"),
            ("Negative prompt 2", "snow"),
            ("Lora hashes", "b.c: cdef, x: 0123"),
        ];
        for (name, value) in expected {
            assert_eq!(parameters.get(name), Some(value), "{name}");
        }
    }

    #[test]
    fn settings_of_another_version_are_not_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        let mut value = serde_json::to_value(recipe()).unwrap();
        value["new_trick"] = true.into();
        png::write(&path, &RgbImage::new(1, 1), &[(png::REPLAY, &value.to_string())]).unwrap();
        let error = Recipe::read(&path).unwrap_err().to_string();
        assert!(error.contains("new_trick") && error.contains("x.png"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        let seeds = recipe()
            .requests(None, Vec::new(), None, Cancel::default())
            .map(|request| request.seed)
            .collect::<Vec<_>>();
        assert_eq!(seeds, [u64::MAX - 1, u64::MAX]);
        recipe().check().unwrap();
        let fails = |change: fn(&mut Recipe), field: &str| {
            let mut recipe = recipe();
            change(&mut recipe);
            match recipe.check().unwrap_err() {
                Error::Argument { name, .. } => assert_eq!(name, field),
                other => panic!("{other}"),
            }
        };
        fails(|r| r.num_images = 3, "seed");
        fails(|r| r.num_images = 0, "num_images");
        fails(|r| r.num_images = usize::MAX, "num_images");
        fails(|r| r.settings.prompt = "a\0b".into(), "prompt");
        fails(|r| r.dtype = DType::I64, "dtype");
        fails(|r| r.settings.steps = Some(0), "steps");
        fails(|r| r.init_image = None, "init_image");
        fails(|r| r.lora[1].weight = f32::NAN, "lora");
    }
}
