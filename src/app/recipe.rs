//! All that a picture depends on: filled by `generate`, kept in the PNG, read back by `replay`.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use image::RgbImage;
use serde::{Deserialize, Serialize};

use nadir::io::png::{self, Parameters};
use nadir::noise::NoiseSource;
use nadir::pipeline::{InitImage, Request};
use nadir::tensor::DType;
use nadir::text::weighting::{LongPrompt, Syntax};
use nadir::{Error, Result};

/// Pictures of one command. Their pixels stay in memory until the end.
const MAX_IMAGES: usize = 100_000;

/// Settings of one command, under diffusers' names where it has one.
///
/// Unknown fields are refused: the picture of a later version must not come out different in silence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
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
    #[serde(with = "text")]
    pub dtype: DType,
    /// Where it ran: the last bits of a result depend on it. Empty before that is decided.
    pub device: String,
    pub prompt: String,
    pub negative_prompt: String,
    /// None: the model's own size, or that of the init image.
    pub width: Option<usize>,
    pub height: Option<usize>,
    pub num_inference_steps: usize,
    pub guidance_scale: f32,
    pub guidance_rescale: f32,
    pub eta: f32,
    pub clip_skip: usize,
    /// Of the first picture.
    pub seed: u64,
    /// Pictures with consecutive seeds: in a file more than one when it is a grid.
    pub num_images: usize,
    /// None: the model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<String>,
    #[serde(with = "text")]
    pub noise: NoiseSource,
    pub long_prompts: LongPrompts,
    pub prompt_syntax: PromptSyntax,
    pub vae_tiling: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_image: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mask_image: Option<Source>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strength: Option<f64>,
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

/// See `--long-prompts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LongPrompts {
    /// Leave out what is too long, with a warning
    Truncate,
    /// Encode it in pieces and use all of it
    Chunk,
}

/// See `--prompt-syntax`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum PromptSyntax {
    /// Brackets are text
    Plain,
    /// (word:1.3) weighs
    Explicit,
    /// (word), ((word)) and [word] weigh too
    Webui,
}

impl From<LongPrompts> for LongPrompt {
    fn from(long: LongPrompts) -> Self {
        match long {
            LongPrompts::Truncate => Self::Truncate,
            LongPrompts::Chunk => Self::Chunk,
        }
    }
}

impl From<PromptSyntax> for Syntax {
    fn from(syntax: PromptSyntax) -> Self {
        match syntax {
            PromptSyntax::Plain => Self::Plain,
            PromptSyntax::Explicit => Self::Explicit,
            PromptSyntax::Webui => Self::Webui,
        }
    }
}

impl Recipe {
    /// The request that the pipeline gets.
    ///
    /// # Errors
    /// Names the first setting that cannot be, of those that can be judged without the model.
    pub fn request(&self, init: Option<InitImage>, batch: usize) -> Result<Request> {
        if !matches!(self.dtype, DType::F32 | DType::F16 | DType::BF16) {
            return Err(Error::argument("--dtype", self.dtype, "one of f32, f16, bf16"));
        }
        if !(1..=MAX_IMAGES).contains(&self.num_images) {
            let expected = format!("a number from 1 to {MAX_IMAGES}");
            return Err(Error::argument("--num-images", self.num_images, expected));
        }
        let last = self.seed.checked_add(self.num_images as u64 - 1).ok_or_else(|| {
            let expected = format!("at most 2^64 - {}, for {0} pictures", self.num_images);
            Error::argument("--seed", self.seed, expected)
        })?;
        let request = Request {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            width: self.width,
            height: self.height,
            steps: self.num_inference_steps,
            guidance_scale: self.guidance_scale,
            guidance_rescale: self.guidance_rescale,
            eta: self.eta,
            clip_skip: self.clip_skip,
            seeds: (self.seed..=last).collect(),
            scheduler: self.scheduler.clone(),
            noise: self.noise,
            long_prompts: self.long_prompts.into(),
            prompt_syntax: self.prompt_syntax.into(),
            init,
            batch,
            vae_tiling: self.vae_tiling,
        };
        request.check()?;
        Ok(request)
    }

    /// In the web UI's form.
    fn parameters(&self, sampler: &str) -> Parameters {
        let parameters = Parameters {
            prompt: self.prompt.clone(),
            negative_prompt: self.negative_prompt.clone(),
            settings: Vec::new(),
        };
        let size = |side: Option<usize>| side.map_or_else(String::new, |side| side.to_string());
        let mut parameters = parameters
            .with("Steps", self.num_inference_steps)
            .with("Sampler", sampler)
            .with("CFG scale", self.guidance_scale)
            .with("Seed", self.seed)
            .with("Size", format!("{}x{}", size(self.width), size(self.height)))
            .with("Model hash", &self.model_hash)
            .with("Model", &self.model)
            .with_clip_skip(self.clip_skip);
        if let Some(strength) = self.strength {
            parameters = parameters.with("Denoising strength", strength);
        }
        parameters.with("Version", format!("nadir {}", self.nadir))
    }

    /// Writes a picture that tells how it was made; `sampler` is the name that other programs know it by.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write(&self, path: &Path, image: &RgbImage, sampler: &str) -> Result<()> {
        let replay = serde_json::to_string(self).map_err(|e| Error::io(path, e.into()))?;
        let parameters = self.parameters(sampler).to_string();
        png::write(path, image, &[(png::PARAMETERS, &parameters), (png::REPLAY, &replay)])
    }

    /// What a picture tells of how it was made.
    ///
    /// # Errors
    /// It is no picture of nadir's, or one of a version that had settings this one does not know.
    pub fn read(path: &Path) -> Result<Self> {
        serde_json::from_value(png::read_replay(path)?).map_err(|e| {
            let expected = "settings that this version knows";
            let advice = "A picture of a later version needs that version.";
            Error::file(path, "text \"nadir\"", expected, e.to_string(), advice)
        })
    }
}

/// Values that JSON holds as the text of the command line.
mod text {
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<T: Display, S: Serializer>(value: &T, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(value)
    }

    pub fn deserialize<'de, T, D>(from: D) -> Result<T, D::Error>
    where
        T: FromStr<Err: Display>,
        D: Deserializer<'de>,
    {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe() -> Recipe {
        Recipe {
            nadir: "0.1.0".into(),
            model: "org/name".into(),
            model_hash: "0123abcd".into(),
            variant: None,
            dtype: DType::BF16,
            device: "cpu".into(),
            prompt: "a \u{1f6f0} \"river\"\nin two lines".into(),
            negative_prompt: String::new(),
            width: Some(72),
            height: Some(64),
            num_inference_steps: 20,
            guidance_scale: 7.1,
            guidance_rescale: 0.0,
            eta: 0.3,
            clip_skip: 1,
            seed: u64::MAX - 1,
            num_images: 2,
            scheduler: Some("euler_a".into()),
            noise: "philox:80x16".parse().unwrap(),
            long_prompts: LongPrompts::Chunk,
            prompt_syntax: PromptSyntax::Explicit,
            vae_tiling: false,
            init_image: Some(Source { path: "chip.png".into(), hash: "89ab".into() }),
            mask_image: None,
            strength: Some(0.6),
        }
    }

    #[test]
    fn a_picture_keeps_its_recipe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.png");
        recipe().write(&path, &RgbImage::new(1, 1), "Euler a").unwrap();
        assert_eq!(Recipe::read(&path).unwrap(), recipe());

        let texts = png::read_texts(&path).unwrap();
        let parameters = texts.iter().find(|(keyword, _)| keyword == png::PARAMETERS).unwrap();
        let parameters = Parameters::parse(&parameters.1);
        assert_eq!(parameters.prompt, recipe().prompt);
        let expected = [
            ("Sampler", "Euler a"),
            ("Seed", "18446744073709551614"),
            ("Size", "72x64"),
            ("Clip skip", "2"),
            ("Denoising strength", "0.6"),
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
        assert_eq!(recipe().request(None, 1).unwrap().seeds, [u64::MAX - 1, u64::MAX]);
        let fails = |change: fn(&mut Recipe), name: &str| {
            let mut recipe = recipe();
            change(&mut recipe);
            let error = recipe.request(None, 1).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        };
        fails(|r| r.num_images = 3, "--seed");
        fails(|r| r.num_images = 0, "--num-images");
        fails(|r| r.num_images = usize::MAX, "--num-images");
        fails(|r| r.prompt = "a\0b".into(), "--prompt");
        fails(|r| r.dtype = DType::I64, "--dtype");
        fails(|r| r.num_inference_steps = 0, "--steps");
    }
}
