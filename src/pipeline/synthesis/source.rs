//! Real pictures with masks that drawn ones begin with: what is drawn keeps the mask, and so is a labelled pair.

use std::path::Path;
use std::sync::Arc;

use clap::ValueEnum;
use image::{Rgb, RgbImage};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::data::masks::{Labelled, MaskSettings, open_whole};
use crate::error::{Error, Result};
use crate::io::geotiff::{GeoTiff, Georeference, picture};
use crate::io::image::resize;
use crate::io::raster::{Levels, Mask};
use crate::pipeline::{InitImage, InitPixels};

/// What of a real picture is drawn anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Redraw {
    /// All of it, as strongly as the strength says: image to image.
    #[default]
    All,
    /// The pixels of the class that the picture is drawn for: inpainting.
    Inside,
    /// All other pixels: inpainting.
    Outside,
}

/// A real picture.
pub struct Chip {
    /// Its file or row.
    pub name: String,
    /// Its mask, at the size of drawn pictures.
    pub mask: Mask,
    /// What is drawn begins with it.
    pub init: Arc<InitImage>,
    /// Where it lies, if its file is a GeoTIFF, by the pixels of drawn pictures.
    pub place: Option<Georeference>,
    /// The class that most pixels have; none where none has any.
    dominant: Option<usize>,
}

/// Real pictures of one data set.
pub struct Sources {
    chips: Vec<Chip>,
    classes: Vec<String>,
    fingerprint: String,
}

impl Sources {
    /// Opens a data set of pictures with masks ([`open_whole`]) for drawn pictures of `size` (width, height).
    ///
    /// # Errors
    /// As [`open_whole`]; pictures of other than three bands of 8 bits, or of other proportions than `size`; a class above 255.
    pub fn open(
        path: &Path,
        settings: &MaskSettings,
        redraw: Redraw,
        size: [usize; 2],
    ) -> Result<Self> {
        let (all, classes) = open_whole(path, settings)?;
        let mut hash = Sha256::new();
        let mut chips = Vec::with_capacity(all.len());
        for one in all {
            let chip = chip(one, settings.ignore_index, redraw, size)?;
            match &chip.init.image {
                InitPixels::Rgb(image) => hash.update(image.as_raw()),
                InitPixels::Bands(picture) => {
                    hash.update(bytemuck::cast_slice::<f32, u8>(picture.values()));
                }
            }
            chip.mask.classes.iter().for_each(|class| hash.update(class.to_le_bytes()));
            chips.push(chip);
        }
        let fingerprint = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { chips, classes, fingerprint })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.chips.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.chips.is_empty()
    }

    /// Names of the masks' classes, by level.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Tells these pictures and masks from others.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Those that `class` has the most pixels of.
    ///
    /// # Errors
    /// `Argument`: masks do not know the class, or it is nowhere the largest.
    pub fn of_class(&self, class: &str) -> Result<Vec<&Chip>> {
        let Some(label) = self.classes.iter().position(|known| known == class) else {
            let expected = format!("one of the masks' classes: {}", self.classes.join(", "));
            return Err(Error::argument("class", class, expected));
        };
        let own: Vec<&Chip> =
            self.chips.iter().filter(|chip| chip.dominant == Some(label)).collect();
        if own.is_empty() {
            let expected = "a picture in --source that has more of this class than of any other";
            return Err(Error::argument("class", class, expected));
        }
        Ok(own)
    }
}

fn chip(one: Labelled, ignored: u16, redraw: Redraw, [width, height]: [usize; 2]) -> Result<Chip> {
    let Labelled { name, picture, mask } = one;
    let wrong = |expected: String, found: String, advice: &str| {
        Err(Error::file(&name, "picture", expected, found, advice))
    };
    let (w, h) = (picture.width, picture.height);
    let levels = match picture.levels {
        Levels::U8(levels) if picture.bands == 3 => levels,
        Levels::U8(_) => {
            let found = format!("{} bands", picture.bands);
            return wrong("three bands".into(), found, "The model draws red, green and blue.");
        }
        Levels::U16(_) => {
            let advice = "Stretch the levels to 8 bits first.";
            return wrong("8 bits".into(), "16 bits".into(), advice);
        }
    };
    if w * height != h * width {
        let expected = format!("the proportions of the {width}x{height} that are drawn");
        let advice = "Cut the pictures, or name a size: --width, --height.";
        return wrong(expected, format!("{w}x{h}"), advice);
    }
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let Some(image) = RgbImage::from_raw(side(w), side(h), levels) else {
        return wrong(format!("{w}x{h} pixels"), "fewer".into(), "Is the file complete?");
    };
    let image = resize(&image, side(width), side(height))?;
    let mask = nearest(&mask, [width, height]);
    let dominant = dominant(&mask, ignored);
    let paint = match redraw {
        Redraw::All => None,
        Redraw::Inside | Redraw::Outside => {
            let own = |x: u32, y: u32| {
                let class = mask.classes[y as usize * width + x as usize];
                dominant == Some(usize::from(class))
            };
            let white = redraw == Redraw::Inside;
            let level = |x, y| Rgb([if own(x, y) == white { 255 } else { 0 }; 3]);
            Some(RgbImage::from_fn(side(width), side(height), level))
        }
    };
    let init = Arc::new(InitImage { image: image.into(), mask: paint });
    let place = place(&name)?.map(|place| place.part(0.0, 0.0, w as f64 / width as f64));
    Ok(Chip { name: name.display().to_string(), mask, init, place, dominant })
}

/// Where a picture's file says that it lies.
fn place(file: &Path) -> Result<Option<Georeference>> {
    if !picture::is_named_so(file) || !file.is_file() {
        return Ok(None);
    }
    let place = GeoTiff::open(file)?.about().georeference.clone();
    Ok(place.filter(|place| place.transform.is_some()))
}

/// Each pixel as the one that its centre lies in.
fn nearest(mask: &Mask, [width, height]: [usize; 2]) -> Mask {
    let from = |i: usize, of: usize, to: usize| ((2 * i + 1) * of) / (2 * to);
    let row = |y: usize| from(y, mask.height, height) * mask.width;
    let classes = (0..height)
        .flat_map(|y| (0..width).map(move |x| mask.classes[row(y) + from(x, mask.width, width)]))
        .collect();
    Mask { height, width, classes }
}

/// The class of the most pixels, of equals the first.
fn dominant(mask: &Mask, ignored: u16) -> Option<usize> {
    let mut counts = vec![0usize; usize::from(u16::MAX) + 1];
    mask.classes.iter().for_each(|&class| counts[usize::from(class)] += 1);
    counts[usize::from(ignored)] = 0;
    let (class, count) = counts.iter().enumerate().max_by_key(|(i, n)| (**n, usize::MAX - i))?;
    (*count > 0).then_some(class)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask(width: usize, classes: &[u16]) -> Mask {
        Mask { height: classes.len() / width, width, classes: classes.to_vec() }
    }

    #[test]
    fn the_class_of_the_most_pixels_is_found() {
        assert_eq!(dominant(&mask(3, &[1, 2, 2, 255, 255, 255]), 255), Some(2));
        assert_eq!(dominant(&mask(2, &[3, 1]), 255), Some(1));
        assert_eq!(dominant(&mask(2, &[9, 9]), 9), None);
    }

    #[test]
    fn masks_are_resized_without_new_classes() {
        let small = mask(2, &[0, 7, 3, 9]);
        let large = nearest(&small, [4, 4]);
        assert_eq!(large.classes, [0, 0, 7, 7, 0, 0, 7, 7, 3, 3, 9, 9, 3, 3, 9, 9]);
        assert_eq!(nearest(&large, [2, 2]), small);
        assert_eq!(nearest(&mask(3, &[1, 2, 3]), [1, 1]).classes, [2]);
    }

    #[test]
    fn what_is_redrawn_is_white() {
        let labelled = || Labelled {
            name: "a.png".into(),
            picture: crate::io::raster::Raster {
                height: 1,
                width: 3,
                bands: 3,
                levels: Levels::U8(vec![9; 9]),
            },
            mask: mask(3, &[1, 1, 255]),
        };
        let whites = |redraw| {
            let chip = chip(labelled(), 255, redraw, [3, 1]).unwrap();
            chip.init.mask.as_ref().map(|m| m.pixels().map(|p| p[0]).collect::<Vec<_>>())
        };
        assert_eq!(whites(Redraw::All), None);
        assert_eq!(whites(Redraw::Inside), Some(vec![255, 255, 0]));
        assert_eq!(whites(Redraw::Outside), Some(vec![0, 0, 255]));
        assert!(chip(labelled(), 255, Redraw::All, [4, 4]).is_err());
    }
}
