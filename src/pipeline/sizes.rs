//! What Stable Diffusion XL is told of a picture's size: that of the picture which it would have been trained on, where that
//! was cropped, and what it was brought to.
//!
//! Podell et al. 2023, "SDXL: Improving Latent Diffusion Models for High-Resolution Image Synthesis", section 2.2. Reference
//! implementation: diffusers, `_get_add_time_ids` in `pipelines/stable_diffusion_xl/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::error::{Error, Result};
use crate::pipeline::settings::Settings;

/// What a pair may be; beyond it sinusoids repeat themselves.
const MAX: u32 = 65_536;

/// Pixels down and across: height and width, or from the top and from the left. As text `DOWN,ACROSS`, in JSON a list of the
/// two as well, as diffusers has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pixels {
    down: u32,
    across: u32,
}

impl Pixels {
    /// From two numbers up to 65536.
    ///
    /// # Errors
    /// `Argument` for larger ones.
    pub fn new(down: u32, across: u32) -> Result<Self> {
        if down <= MAX && across <= MAX {
            return Ok(Self { down, across });
        }
        let found = format!("{down},{across}");
        Err(Error::argument("original_size", found, format!("numbers of pixels up to {MAX}")))
    }

    fn numbers(self) -> [f32; 2] {
        [self.down as f32, self.across as f32]
    }
}

impl FromStr for Pixels {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = |text: &str| text.trim().parse::<u32>().ok();
        match text.split_once(',').map(|(down, across)| (number(down), number(across))) {
            Some((Some(down), Some(across))) => Self::new(down, across),
            _ => {
                let expected = "two numbers of pixels, down and across, such as 1024,768";
                Err(Error::argument("original_size", text, expected))
            }
        }
    }
}

impl fmt::Display for Pixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.down, self.across)
    }
}

impl Serialize for Pixels {
    fn serialize<S: Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        [self.down, self.across].serialize(to)
    }
}

impl<'de> Deserialize<'de> for Pixels {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Numbers([u32; 2]),
            Text(String),
        }
        let read = match Either::deserialize(from)? {
            Either::Numbers([down, across]) => Self::new(down, across),
            Either::Text(text) => text.parse(),
        };
        read.map_err(de::Error::custom)
    }
}

/// What `settings` say of sizes, by their names.
fn given(settings: &Settings) -> [(&'static str, Option<Pixels>); 6] {
    [
        ("original_size", settings.original_size),
        ("crops_coords_top_left", settings.crops_coords_top_left),
        ("target_size", settings.target_size),
        ("negative_original_size", settings.negative_original_size),
        ("negative_crops_coords_top_left", settings.negative_crops_coords_top_left),
        ("negative_target_size", settings.negative_target_size),
    ]
}

/// Checks what needs no model.
pub(super) fn check(settings: &Settings) -> Result<()> {
    let Settings { negative_original_size, negative_target_size, .. } = settings;
    let negative = (negative_original_size.is_some(), negative_target_size.is_some());
    let (missing, other) = match negative {
        (true, false) => ("negative_target_size", "negative_original_size"),
        (false, true) => ("negative_original_size", "negative_target_size"),
        (false, false) if settings.negative_crops_coords_top_left.is_some() => {
            ("negative_original_size", "negative_crops_coords_top_left")
        }
        _ => return Ok(()),
    };
    Err(Error::argument(missing, "none", format!("a size, beside {other}")))
}

/// Refuses sizes for a model that is told none.
pub(super) fn refuse(settings: &Settings) -> Result<()> {
    match given(settings).into_iter().find_map(|(name, given)| Some((name, given?))) {
        None => Ok(()),
        Some((name, given)) => {
            let expected = "nothing: this model is told no sizes, Stable Diffusion XL is";
            Err(Error::argument(name, given, expected))
        }
    }
}

/// What a model is told of a picture of `size`, width and height in pixels, without the prompt and with it. `from_image`: of a
/// picture that starts from another, whose pipelines crop without the prompt as with it.
pub(super) fn told(settings: &Settings, size: (usize, usize), from_image: bool) -> [Vec<f32>; 2] {
    let own = Pixels { down: size.1 as u32, across: size.0 as u32 };
    let zero = Pixels { down: 0, across: 0 };
    let crop = settings.crops_coords_top_left.unwrap_or(zero);
    let (original, target) =
        (settings.original_size.unwrap_or(own), settings.target_size.unwrap_or(own));
    let with = [original, crop, target];
    let without = match (settings.negative_original_size, settings.negative_target_size) {
        (Some(original), Some(target)) => {
            let crop = settings.negative_crops_coords_top_left;
            [original, crop.unwrap_or(if from_image { with[1] } else { zero }), target]
        }
        _ => with,
    };
    [without, with].map(|pairs| pairs.into_iter().flat_map(Pixels::numbers).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pixels(text: &str) -> Option<Pixels> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn pairs_are_read_as_they_are_written() {
        for (text, numbers) in [("1024,768", [1024, 768]), (" 0 , 7 ", [0, 7])] {
            let json = serde_json::to_value(pixels(text)).unwrap();
            assert_eq!(json, serde_json::json!(numbers));
            let again: Pixels = serde_json::from_value(json).unwrap();
            assert_eq!((Some(again), again.to_string().parse().ok()), (pixels(text), pixels(text)));
        }
        for wrong in ["", "7", "7x7", "-1,0", "1.5,2", "65537,1", "1,2,3", "NaN,1"] {
            assert!(wrong.parse::<Pixels>().is_err(), "{wrong}");
        }
        for wrong in ["[1]", "[1, 2, 3]", "[-1, 2]", "[1, 65537]", "7", "\"7\""] {
            assert!(serde_json::from_str::<Pixels>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_not_said_is_what_diffusers_takes() {
        let none = Settings::default();
        assert_eq!(told(&none, (768, 512), false), [[512.0, 768.0, 0.0, 0.0, 512.0, 768.0]; 2]);
        let settings = Settings {
            original_size: pixels("4096,2048"),
            crops_coords_top_left: pixels("10,20"),
            ..Settings::default()
        };
        let with = [4096.0, 2048.0, 10.0, 20.0, 64.0, 64.0];
        assert_eq!(told(&settings, (64, 64), false), [with; 2]);
        let negative = Settings {
            negative_original_size: pixels("8,9"),
            negative_target_size: pixels("6,7"),
            ..settings
        };
        let [without, still] = told(&negative, (64, 64), false);
        assert_eq!((&*without, &*still), (&[8.0, 9.0, 0.0, 0.0, 6.0, 7.0][..], &with[..]));
        assert_eq!(told(&negative, (64, 64), true)[0], [8.0, 9.0, 10.0, 20.0, 6.0, 7.0]);
        let cropped = Settings { negative_crops_coords_top_left: pixels("1,2"), ..negative };
        assert_eq!(told(&cropped, (64, 64), true)[0], [8.0, 9.0, 1.0, 2.0, 6.0, 7.0]);
    }

    #[test]
    fn half_of_what_the_unconditional_half_is_told_is_an_error() {
        let name = |settings: Settings| match settings.check() {
            Err(Error::Argument { name, .. }) => name,
            other => panic!("{other:?}"),
        };
        let size = pixels("8,8");
        let original = Settings { negative_original_size: size, ..Settings::default() };
        assert_eq!(name(original), "negative_target_size");
        let target = Settings { negative_target_size: size, ..Settings::default() };
        assert_eq!(name(target), "negative_original_size");
        let crop = Settings { negative_crops_coords_top_left: size, ..Settings::default() };
        assert_eq!(name(crop), "negative_original_size");
    }
}
