//! The settings of a picture: the one definition that requests to the library, the recipe in a PNG (JSON) and
//! the command line's arguments follow.
//!
//! A field's documentation is also its help on the command line. Errors name fields as they are called here; a
//! front end that calls them otherwise translates.

use std::str::FromStr;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::noise::NoiseSource;
use crate::pipeline::sizes::{self, Pixels};
use crate::pipeline::told::{self, Date, Metres, Place};
use crate::text::tokenizer::check_prompt;
use crate::text::weighting::{LongPrompt, Syntax};

/// What a picture depends on besides the model, the seed and the pictures that it starts from. JSON has
/// diffusers' names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Args)]
#[serde(default)]
pub struct Settings {
    /// What the picture shows; may be empty
    // The command line takes it with a flag or without.
    #[arg(skip)]
    pub prompt: String,

    /// What the picture should not show; needs guidance
    #[arg(short, long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative_prompt: String,

    /// What the second text encoder of Stable Diffusion XL reads in place of the prompt [default: the prompt]
    #[serde(skip_serializing_if = "String::is_empty")]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub prompt_2: String,

    /// What it reads in place of the negative prompt [default: the negative prompt]
    #[serde(skip_serializing_if = "String::is_empty")]
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub negative_prompt_2: String,

    /// Width in pixels [default: the model's, or that of the init image]
    #[arg(short = 'W', long, value_name = "PIXELS", help_heading = "Picture")]
    #[arg(allow_negative_numbers = true)]
    pub width: Option<usize>,

    /// Height in pixels [default: the model's, or that of the init image]
    #[arg(short = 'H', long, value_name = "PIXELS", help_heading = "Picture")]
    #[arg(allow_negative_numbers = true)]
    pub height: Option<usize>,

    /// Denoising steps [default: the model's, else 50]
    #[serde(rename = "num_inference_steps")]
    #[arg(long, value_name = "N", help_heading = "Sampling", allow_negative_numbers = true)]
    #[arg(visible_alias = "num-inference-steps")]
    pub steps: Option<usize>,

    /// Classifier-free guidance: how strongly the text is followed; 1 is none [default: the model's, else 7.5, of Stable
    /// Diffusion XL 5]
    #[arg(long = "cfg-scale", value_name = "X", help_heading = "Sampling")]
    #[arg(allow_negative_numbers = true, visible_alias = "guidance-scale")]
    pub guidance_scale: Option<f32>,

    /// Share by which guidance is rescaled against overexposure (Lin et al. 2023), 0 to 1
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Sampling")]
    #[arg(allow_negative_numbers = true)]
    pub guidance_rescale: f32,

    /// Noise that DDIM adds at each step: 0 none, 1 as DDPM
    #[arg(long, value_name = "X", default_value_t = 0.0, help_heading = "Sampling")]
    #[arg(allow_negative_numbers = true)]
    pub eta: f32,

    /// Layers of the text encoder to leave out, as diffusers counts (its 1 is A1111's and sd.cpp's 2)
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    #[arg(allow_negative_numbers = true)]
    pub clip_skip: usize,

    /// Sampler [default: the model's]; an unknown name lists the known ones
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "NAME", help_heading = "Sampling", visible_alias = "sampling-method")]
    pub scheduler: Option<String>,

    /// Whose random numbers: `torch` (its CPU generator), `philox` or `philox:SMSxBLOCKS` (its CUDA generator)
    #[serde(with = "crate::io::as_text")]
    #[arg(long, value_name = "SOURCE", default_value = "torch", help_heading = "Sampling")]
    #[arg(value_parser = typed::<NoiseSource>)]
    pub noise: NoiseSource,

    /// What to do with a prompt longer than the text encoder reads (77 tokens)
    #[arg(long, value_enum, default_value_t, help_heading = "Sampling")]
    pub long_prompts: LongPrompt,

    /// How weights are written: `explicit` is `(word:1.3)`, `webui` also `(word)` and `[word]`, `plain` none
    #[arg(long, value_enum, default_value_t, help_heading = "Sampling")]
    pub prompt_syntax: Syntax,

    /// Decode in tiles: large pictures need less memory, and differ a little at the seams
    #[arg(long, help_heading = "Sampling")]
    pub vae_tiling: bool,

    /// How much of the init image is drawn anew, 0 to 1 [default: 0.8, of Stable Diffusion XL without a ControlNet 0.3; with a
    /// mask 1, of XL 0.9999]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "X", help_heading = "Image to image", allow_negative_numbers = true)]
    pub strength: Option<f64>,

    /// Zoom level of Google's maps, 10 to 18, of a model that is told one: 17 is a metre a pixel, each more halves it
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "N", help_heading = "What is known of the picture")]
    #[arg(allow_negative_numbers = true)]
    pub level: Option<u32>,

    /// Metres a pixel, such as 1.2m or 30cm, of a model that is told them or a level
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "METRES", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Metres>)]
    pub gsd: Option<Metres>,

    /// Where it is, in degrees north and east, of a model that is told a place
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "LAT,LON", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Place>)]
    pub place: Option<Place>,

    /// When it was taken, as YEAR-MONTH-DAY, of a model that is told a date
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "DATE", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Date>)]
    pub date: Option<Date>,

    /// Share of it that clouds cover, 0 to 1, of a model that is told one
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "X", help_heading = "What is known of the picture")]
    #[arg(allow_negative_numbers = true)]
    pub cloud: Option<f64>,

    /// Numbers for the class embedding of any other model that has one: diffusers' class_labels
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "X,..", help_heading = "What is known of the picture")]
    #[arg(value_delimiter = ',', allow_hyphen_values = true)]
    pub class_labels: Option<Vec<f32>>,

    /// Size that Stable Diffusion XL takes the picture to have been made smaller from [default: its own]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "H,W", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub original_size: Option<Pixels>,

    /// Where Stable Diffusion XL takes the picture to have been cropped [default: 0,0]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "TOP,LEFT", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub crops_coords_top_left: Option<Pixels>,

    /// Size that Stable Diffusion XL takes the picture to have been brought to [default: its own]
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "H,W", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub target_size: Option<Pixels>,

    /// The same of what the picture should not be; needs --negative-target-size
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "H,W", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub negative_original_size: Option<Pixels>,

    /// The same of where it was cropped; needs both negative sizes
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "TOP,LEFT", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub negative_crops_coords_top_left: Option<Pixels>,

    /// The same of what it was brought to; needs --negative-original-size
    #[serde(skip_serializing_if = "Option::is_none")]
    #[arg(long, value_name = "H,W", help_heading = "What is known of the picture")]
    #[arg(allow_hyphen_values = true, value_parser = typed::<Pixels>)]
    pub negative_target_size: Option<Pixels>,
}

impl Default for Settings {
    /// The model's own, where it has a say.
    fn default() -> Self {
        Self {
            prompt: String::new(),
            negative_prompt: String::new(),
            prompt_2: String::new(),
            negative_prompt_2: String::new(),
            width: None,
            height: None,
            steps: None,
            guidance_scale: None,
            guidance_rescale: 0.0,
            eta: 0.0,
            clip_skip: 0,
            scheduler: None,
            noise: NoiseSource::default(),
            long_prompts: LongPrompt::default(),
            prompt_syntax: Syntax::default(),
            vae_tiling: false,
            strength: None,
            level: None,
            gsd: None,
            place: None,
            date: None,
            cloud: None,
            class_labels: None,
            original_size: None,
            crops_coords_top_left: None,
            target_size: None,
            negative_original_size: None,
            negative_crops_coords_top_left: None,
            negative_target_size: None,
        }
    }
}

/// Sizes are multiples of this in every Stable Diffusion pipeline of diffusers, whatever the autoencoder.
pub const SIZE_STEP: usize = 8;

impl Settings {
    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// `Argument`, naming the first field whose value is not possible.
    pub fn check(&self) -> Result<()> {
        check_prompt("prompt", &self.prompt)?;
        check_prompt("negative_prompt", &self.negative_prompt)?;
        check_prompt("prompt_2", &self.prompt_2)?;
        check_prompt("negative_prompt_2", &self.negative_prompt_2)?;
        for (name, size) in [("width", self.width), ("height", self.height)] {
            size.map_or(Ok(0), |size| check_size(name, size, SIZE_STEP))?;
        }
        if let Some(steps) = self.steps.filter(|steps| !(1..=1000).contains(steps)) {
            return Err(Error::argument("steps", steps, "1 to 1000"));
        }
        let in_range = |name, x: f64, high: f64| match (0.0..=high).contains(&x) {
            true => Ok(()),
            false => Err(Error::argument(name, x, format!("a number from 0 to {high}"))),
        };
        in_range("guidance_scale", self.guidance_scale.unwrap_or_default().into(), 1000.0)?;
        in_range("guidance_rescale", self.guidance_rescale.into(), 1.0)?;
        in_range("eta", self.eta.into(), 1.0)?;
        in_range("strength", self.strength.unwrap_or_default(), 1.0)?;
        told::check(self)?;
        sizes::check(self)
    }

    /// Width and height in pixels, for a model whose own size is `default` and whose latents are `factor`
    /// times smaller.
    ///
    /// # Errors
    /// `Argument` when a size is zero, beyond 8192, or not a multiple of 8, which diffusers asks for, and of
    /// `factor`.
    pub fn size(&self, default: (usize, usize), factor: usize) -> Result<(usize, usize)> {
        let factor = factor.max(SIZE_STEP);
        let width = check_size("width", self.width.unwrap_or(default.0), factor)?;
        Ok((width, check_size("height", self.height.unwrap_or(default.1), factor)?))
    }
}

fn check_size(name: &'static str, size: usize, step: usize) -> Result<usize> {
    let possible = (1..=8192).contains(&size) && size.is_multiple_of(step);
    let expected = format!("a multiple of {step} from {step} to 8192");
    if possible { Ok(size) } else { Err(Error::argument(name, size, expected)) }
}

/// The library's error names the field once more than a command line needs.
fn typed<T: FromStr<Err = Error>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error| match error {
        Error::Argument { expected, .. } => expected,
        other => other.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_settings_are_named_by_their_field() {
        let fails = |change: fn(&mut Settings), field: &str| {
            let mut settings = Settings::default();
            change(&mut settings);
            match settings.check().unwrap_err() {
                Error::Argument { name, .. } => assert_eq!(name, field),
                other => panic!("{other}"),
            }
        };
        Settings::default().check().unwrap();
        fails(|s| s.steps = Some(0), "steps");
        fails(|s| s.height = Some(60), "height");
        fails(|s| s.prompt = "a\0b".into(), "prompt");
        fails(|s| s.negative_prompt = "a".repeat(1 << 20), "negative_prompt");
        fails(|s| s.prompt_2 = "a\0b".into(), "prompt_2");
        fails(|s| s.negative_prompt_2 = "a".repeat(1 << 20), "negative_prompt_2");
        fails(|s| s.guidance_scale = Some(f32::NAN), "guidance_scale");
        fails(|s| s.eta = 1.5, "eta");
        fails(|s| s.strength = Some(-0.1), "strength");
        fails(|s| s.level = Some(19), "level");
        fails(|s| s.cloud = Some(f64::NAN), "cloud");
    }

    #[test]
    fn sizes_are_multiples_of_the_factor() {
        let size =
            |width, height| Settings { width, height, ..Settings::default() }.size((64, 32), 4);
        assert_eq!(size(None, None).unwrap(), (64, 32));
        assert_eq!(size(Some(72), None).unwrap(), (72, 32));
        for (width, height) in [(Some(0), None), (None, Some(63)), (None, Some(60))] {
            assert!(matches!(size(width, height), Err(Error::Argument { .. })));
        }
        assert!(matches!(size(None, Some(80_000)), Err(Error::Argument { name: "height", .. })));
    }

    /// Names that pictures already carry.
    #[test]
    fn json_has_the_names_of_diffusers() {
        let settings = Settings {
            prompt: "a".into(),
            steps: Some(20),
            guidance_scale: Some(7.1),
            noise: "philox:80x16".parse().unwrap(),
            long_prompts: LongPrompt::Chunk,
            gsd: "30cm".parse().ok(),
            place: "48.85,2.35".parse().ok(),
            date: "2021-07-04".parse().ok(),
            class_labels: Some(vec![3.0]),
            ..Settings::default()
        };
        let json = serde_json::to_value(&settings).unwrap();
        assert_eq!(json["num_inference_steps"], 20);
        assert_eq!(
            (json["noise"].as_str(), json["long_prompts"].as_str()),
            (Some("philox:80x16"), Some("chunk"))
        );
        assert_eq!(
            (json["gsd"].as_f64(), json["place"].as_str(), json["date"].as_str()),
            (Some(0.3), Some("48.85,2.35"), Some("2021-07-04"))
        );
        // Names of pictures in a folder are of the whole request: what is not said is not in it.
        assert_eq!((json.get("level"), json.get("prompt_2")), (None, None));
        let metres = |json: &str| serde_json::from_str::<Settings>(json).unwrap().gsd;
        assert_eq!(metres(r#"{"gsd": "30cm"}"#), metres(r#"{"gsd": 0.3}"#));
        for wrong in [r#"{"gsd": 0}"#, r#"{"place": "91,0"}"#, r#"{"date": "2021-02-30"}"#] {
            assert!(serde_json::from_str::<Settings>(wrong).is_err(), "{wrong}");
        }
        assert_eq!(serde_json::from_value::<Settings>(json).unwrap(), settings);
        assert_eq!(serde_json::from_str::<Settings>("{}").unwrap(), Settings::default());
    }
}
