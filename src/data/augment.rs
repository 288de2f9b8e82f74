//! Pictures as a network is to see them: cropped, turned, lit otherwise, normalised.

use image::RgbImage;
use image::imageops;

use super::random::Draws;
use crate::error::{Error, Result};
use crate::io::image::resize;

/// What may be changed about a picture that is trained on. Every number is drawn.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, clap::Args)]
#[serde(default)]
pub struct Augment {
    /// Crop at random places rather than the centre
    #[arg(long, help_heading = "Data")]
    pub random_crop: bool,

    /// Random crops have at least this share of the largest crop's side, 0 to 1
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1.0,
        help_heading = "Data",
        allow_negative_numbers = true
    )]
    pub smallest_crop: f32,

    /// Mirror every other picture left to right
    #[arg(long, help_heading = "Data", visible_alias = "horizontal-flip", num_args = 0..=1)]
    #[arg(require_equals = true, default_missing_value = "true", default_value_t = false)]
    #[arg(action = clap::ArgAction::Set, hide_default_value = true, hide_possible_values = true)]
    pub random_flip: bool,

    /// Mirror every other picture top to bottom
    #[arg(long, help_heading = "Data")]
    pub vertical_flip: bool,

    /// Turn pictures by quarters (by halves where they are not square): from above there is no up
    #[arg(long, help_heading = "Data")]
    pub random_rotate: bool,

    /// Brighten or darken by a factor of up to 1 +- X
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        help_heading = "Data",
        allow_negative_numbers = true
    )]
    pub brightness: f32,

    /// Raise or lower the contrast by a factor of up to 1 +- X
    #[arg(
        long,
        value_name = "X",
        default_value_t = 0.0,
        help_heading = "Data",
        allow_negative_numbers = true
    )]
    pub contrast: f32,
}

impl Default for Augment {
    /// Nothing.
    fn default() -> Self {
        Self {
            random_crop: false,
            smallest_crop: 1.0,
            random_flip: false,
            vertical_flip: false,
            random_rotate: false,
            brightness: 0.0,
            contrast: 0.0,
        }
    }
}

impl Augment {
    /// # Errors
    /// A number outside of its range.
    pub fn check(&self) -> Result<()> {
        let share = self.smallest_crop;
        if !(share > 0.0 && share <= 1.0) {
            return Err(Error::argument("smallest_crop", share, "above 0, at most 1"));
        }
        for (name, x) in [("brightness", self.brightness), ("contrast", self.contrast)] {
            if !(0.0..=1.0).contains(&x) {
                return Err(Error::argument(name, x, "0 to 1"));
            }
        }
        Ok(())
    }
}

/// Levels from 0 to 1, less a mean, by a deviation: what a network was trained with.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Normalize {
    /// Of red, green, blue.
    pub mean: [f32; 3],
    /// Of red, green, blue.
    pub std: [f32; 3],
}

impl Default for Normalize {
    /// To -1..1, as diffusion models have it.
    fn default() -> Self {
        Self { mean: [0.5; 3], std: [0.5; 3] }
    }
}

impl Normalize {
    /// Of ImageNet, as torchvision's classifiers have it.
    pub const IMAGENET: Self = Self { mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225] };
}

/// The picture [H, W, 3] of `size` (H, W), in f32. Without `draws` it is the centre, as it is.
pub(super) fn prepare(
    picture: &RgbImage,
    size: [usize; 2],
    augment: &Augment,
    normalize: &Normalize,
    mut draws: Option<&mut Draws>,
    out: &mut [f32],
) -> Result<()> {
    let mut picture = crop(picture, size, augment, draws.as_deref_mut())?;
    let (mut brightness, mut contrast) = (1.0, 1.0);
    if let Some(draws) = draws {
        picture = turn(picture, augment, draws);
        brightness = draws.between(1.0 - augment.brightness, 1.0 + augment.brightness);
        contrast = draws.between(1.0 - augment.contrast, 1.0 + augment.contrast);
    }

    for (x, &level) in out.iter_mut().zip(picture.as_raw()) {
        *x = f32::from(level) / 255.0;
    }
    if brightness != 1.0 {
        out.iter_mut().for_each(|x| *x = (*x * brightness).clamp(0.0, 1.0));
    }
    if contrast != 1.0 {
        // About the mean luma, as torchvision's `adjust_contrast`.
        let luma = |p: &[f32; 3]| f64::from(0.2989 * p[0] + 0.587 * p[1] + 0.114 * p[2]);
        let pixels = out.as_chunks::<3>().0;
        let mean = (pixels.iter().map(luma).sum::<f64>() / pixels.len() as f64) as f32;
        out.iter_mut().for_each(|x| *x = (mean + (*x - mean) * contrast).clamp(0.0, 1.0));
    }
    for p in out.as_chunks_mut::<3>().0 {
        for c in 0..3 {
            p[c] = (p[c] - normalize.mean[c]) / normalize.std[c];
        }
    }
    Ok(())
}

/// The centre of `picture`, brought to `size` (H, W) and normalised, as it is when a network is validated: [H, W, 3], in f32.
pub(crate) fn plain(
    picture: &RgbImage,
    size: [usize; 2],
    normalize: &Normalize,
    out: &mut [f32],
) -> Result<()> {
    prepare(picture, size, &Augment::default(), normalize, None, out)
}

/// The largest part of `picture` with the proportions of `size`, or a random one, brought to `size`.
fn crop(
    picture: &RgbImage,
    [height, width]: [usize; 2],
    augment: &Augment,
    draws: Option<&mut Draws>,
) -> Result<RgbImage> {
    let (w, h) = (picture.width() as usize, picture.height() as usize);
    // As wide as it is or as high as it is, whichever leaves the other side within.
    let (mut part_w, mut part_h) = if w * height <= h * width {
        (w, (w * height / width).clamp(1, h))
    } else {
        ((h * width / height).clamp(1, w), h)
    };
    let (mut x, mut y) = ((w - part_w) / 2, (h - part_h) / 2);
    if let (true, Some(draws)) = (augment.random_crop, draws) {
        let share = draws.between(augment.smallest_crop, 1.0);
        let less = |side: usize| ((side as f32 * share).round() as usize).clamp(1, side);
        (part_w, part_h) = (less(part_w), less(part_h));
        (x, y) = (draws.below(w - part_w + 1), draws.below(h - part_h + 1));
    }
    let whole = (part_w, part_h) == (w, h);
    let part = (!whole).then(|| {
        imageops::crop_imm(picture, x as u32, y as u32, part_w as u32, part_h as u32).to_image()
    });
    let part = part.as_ref().unwrap_or(picture);
    if (part_w, part_h) == (width, height) {
        return Ok(part.clone());
    }
    let side = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    resize(part, side(width), side(height))
}

/// Mirrored and turned at random.
fn turn(mut picture: RgbImage, augment: &Augment, draws: &mut Draws) -> RgbImage {
    // All are drawn always, so that one setting leaves the others' numbers alone.
    let (horizontal, vertical, quarters) = (draws.coin(), draws.coin(), draws.below(4));
    if augment.random_flip && horizontal {
        imageops::flip_horizontal_in_place(&mut picture);
    }
    if augment.vertical_flip && vertical {
        imageops::flip_vertical_in_place(&mut picture);
    }
    if !augment.random_rotate {
        return picture;
    }
    let square = picture.width() == picture.height();
    match quarters {
        1 if square => imageops::rotate90(&picture),
        2 => imageops::rotate180(&picture),
        3 if square => imageops::rotate270(&picture),
        _ => picture,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::random::Purpose;
    use std::collections::BTreeSet;

    /// A picture whose pixels say where they are: (x, y, 7).
    fn places(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| image::Rgb([x as u8, y as u8, 7]))
    }

    /// The levels that [`prepare`] makes, without normalisation.
    fn levels(
        picture: &RgbImage,
        size: [usize; 2],
        augment: &Augment,
        row: Option<u32>,
    ) -> Vec<u8> {
        let mut out = vec![f32::NAN; size[0] * size[1] * 3];
        let mut draws = row.map(|row| Draws::new(5, 0, row, Purpose::Row));
        let as_they_are = Normalize { mean: [0.0; 3], std: [1.0; 3] };
        prepare(picture, size, augment, &as_they_are, draws.as_mut(), &mut out).unwrap();
        out.iter().map(|x| (x * 255.0).round() as u8).collect()
    }

    #[test]
    fn without_augmentation_the_centre_is_cut_out() {
        let nothing = Augment::default();
        let whole = places(5, 3);
        assert_eq!(levels(&whole, [3, 5], &nothing, Some(1)), *whole.as_raw());
        // The centre 3x3 of 5x3, and of 3x7.
        let cut = levels(&whole, [3, 3], &nothing, None);
        assert_eq!(cut[..9], [1, 0, 7, 2, 0, 7, 3, 0, 7]);
        let cut = levels(&places(3, 7), [3, 3], &nothing, None);
        assert_eq!(cut[..9], [0, 2, 7, 1, 2, 7, 2, 2, 7]);
        // Cut to the proportions, then resized.
        let half = resize(&places(8, 4), 4, 2).unwrap();
        assert_eq!(levels(&places(8, 6), [2, 4], &nothing, None).len(), 24);
        assert_eq!(levels(&places(8, 4), [2, 4], &nothing, None), *half.as_raw());
    }

    #[test]
    fn random_crops_reach_every_place_and_no_further() {
        let augment = Augment { random_crop: true, ..Augment::default() };
        let picture = places(6, 4);
        let corners: BTreeSet<_> = (0..100)
            .map(|row| levels(&picture, [4, 4], &augment, Some(row))[..2].to_vec())
            .collect();
        assert_eq!(corners.into_iter().collect::<Vec<_>>(), [[0, 0], [1, 0], [2, 0]]);
        // Smaller ones are enlarged.
        let augment = Augment { smallest_crop: 0.5, ..augment };
        let first: BTreeSet<_> =
            (0..100).map(|row| levels(&picture, [4, 4], &augment, Some(row))).collect();
        assert!(first.len() > 9, "{}", first.len());
    }

    #[test]
    fn flips_and_turns_give_the_eight_forms_of_a_square() {
        let augment = Augment {
            random_flip: true,
            vertical_flip: true,
            random_rotate: true,
            ..Augment::default()
        };
        let forms = |size: [usize; 2]| {
            let picture = places(size[1] as u32, size[0] as u32);
            let forms = (0..200).map(|row| levels(&picture, size, &augment, Some(row)));
            forms.collect::<BTreeSet<_>>().len()
        };
        assert_eq!(forms([3, 3]), 8);
        // Of a rectangle four: it is never turned by a quarter.
        assert_eq!(forms([3, 5]), 4);
        // A setting of its own each.
        for (augment, count) in [
            (Augment { random_flip: true, ..Augment::default() }, 2),
            (Augment { vertical_flip: true, ..Augment::default() }, 2),
            (Augment { random_rotate: true, ..Augment::default() }, 4),
        ] {
            let forms: BTreeSet<_> =
                (0..200).map(|row| levels(&places(3, 3), [3, 3], &augment, Some(row))).collect();
            assert_eq!(forms.len(), count, "{augment:?}");
        }
    }

    #[test]
    fn light_stays_within_its_bounds() {
        let augment = Augment { brightness: 0.2, contrast: 0.2, ..Augment::default() };
        let grey = RgbImage::from_pixel(4, 4, image::Rgb([100; 3]));
        let seen: BTreeSet<u8> =
            (0..500).map(|row| levels(&grey, [4, 4], &augment, Some(row))[0]).collect();
        // Contrast leaves a grey picture alone; brightness gives 80 to 120.
        let (low, high) = (*seen.first().unwrap(), *seen.last().unwrap());
        assert!((80..=82).contains(&low) && (118..=120).contains(&high), "{low} {high}");
        for (settings, name) in [
            (Augment { contrast: 1.5, ..Augment::default() }, "contrast"),
            (Augment { brightness: f32::NAN, ..Augment::default() }, "brightness"),
            (Augment { smallest_crop: 0.0, ..Augment::default() }, "smallest_crop"),
        ] {
            let message = settings.check().unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
    }

    #[test]
    fn the_usual_range_is_that_of_the_autoencoder() {
        let picture = places(16, 16);
        let mut out = vec![0.0; 16 * 16 * 3];
        let (augment, normalize) = (Augment::default(), Normalize::default());
        prepare(&picture, [16, 16], &augment, &normalize, None, &mut out).unwrap();
        let expected = crate::io::image::to_tensor(&picture).unwrap().to_vec::<f32>().unwrap();
        assert_eq!(out, expected);
        prepare(&picture, [16, 16], &augment, &Normalize::IMAGENET, None, &mut out).unwrap();
        assert!((out[1] - (0.0 - 0.456) / 0.224).abs() < 1e-6, "{}", out[1]);
    }
}
