//! Whether a drawn picture is taken into a data set.

use image::RgbImage;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::io::image::resize;
use crate::pipeline::classifier::{Classifier, best};

/// What became of a drawn picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is part of the data set.
    Accepted,
    /// The classifier sees another class.
    OtherClass,
    /// The classifier sees the class, and is not sure enough.
    Unsure,
    /// By CLIP, picture and prompt go too badly together.
    LowClipScore,
    /// It is as good as one that the model was trained on.
    NearTraining,
    /// It is as good as one that was taken before.
    NearAccepted,
    /// The model's numbers overflowed.
    NotFinite,
}

impl Verdict {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::OtherClass => "other class",
            Self::Unsure => "unsure",
            Self::LowClipScore => "low CLIP score",
            Self::NearTraining => "near a training picture",
            Self::NearAccepted => "near another of the set",
            Self::NotFinite => "not finite",
        }
    }
}

/// A classifier that knows the classes of the data set.
pub struct Judge {
    classifier: Classifier,
    /// Its label for each of them.
    labels: Vec<usize>,
    /// Of the class that a picture was drawn for, at least.
    min_probability: f32,
}

/// What a judge says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Opinion {
    /// The class that it sees.
    pub class: String,
    /// How sure it is of the class that the picture was drawn for.
    pub probability: f32,
    /// Accepted, or why not.
    pub verdict: Verdict,
}

impl Judge {
    /// A judge of pictures of `classes`.
    ///
    /// # Errors
    /// The classifier does not know one of them.
    pub fn new(classifier: Classifier, classes: &[String], min_probability: f32) -> Result<Self> {
        let labels = classes.iter().map(|class| classifier.label(class));
        Ok(Self { labels: labels.collect::<Result<_>>()?, classifier, min_probability })
    }

    /// What it says of pictures that were drawn for class number `class`.
    ///
    /// # Errors
    /// Memory that is not there.
    pub fn look(&self, pictures: &[RgbImage], class: usize) -> Result<Vec<Opinion>> {
        let wanted = self.labels[class];
        let say = |probabilities: Vec<f32>| {
            let (seen, _) = best(&probabilities);
            let probability = probabilities[wanted];
            let verdict = match seen == wanted {
                false => Verdict::OtherClass,
                // What is no number is not sure.
                true if probability >= self.min_probability => Verdict::Accepted,
                true => Verdict::Unsure,
            };
            Opinion { class: self.classifier.classes()[seen].clone(), probability, verdict }
        };
        Ok(self.classifier.classify(pictures)?.into_iter().map(say).collect())
    }
}

/// Pixels along each side of a picture's small copy.
const SIDE: usize = 16;

/// Pictures by small copies of them, to find one that is as good as another: Pearson's correlation of 16x16 pixels, each
/// channel less its mean. Of 1,500 of EuroSAT's test chips none reaches 0.95 with one of its 21,600 for training; with the
/// means left in, most forests and seas pass 0.98, since one dark green is like another.
#[derive(Default)]
pub struct Gallery {
    /// Of length 1 each, and of mean 0 in each channel.
    copies: Vec<f32>,
}

impl Gallery {
    /// Values of a copy.
    const LEN: usize = SIDE * SIDE * 3;

    /// Takes up a picture.
    ///
    /// # Errors
    /// It is empty.
    pub fn add(&mut self, picture: &RgbImage) -> Result<()> {
        self.copies.extend(small(picture)?);
        Ok(())
    }

    /// The largest correlation of `picture` with one that was taken up; -1 where there is none.
    ///
    /// # Errors
    /// It is empty.
    pub fn similarity(&self, picture: &RgbImage) -> Result<f32> {
        let own = small(picture)?;
        let dot = |copy: &[f32]| copy.iter().zip(&own).map(|(a, b)| a * b).sum::<f32>();
        Ok(self.copies.chunks_exact(Self::LEN).map(dot).fold(-1.0, f32::max))
    }
}

fn small(picture: &RgbImage) -> Result<Vec<f32>> {
    let copy = resize(picture, SIDE as u32, SIDE as u32)?;
    let mut values: Vec<f32> = copy.as_raw().iter().map(|&v| f32::from(v)).collect();
    for channel in 0..3 {
        let own = values.iter().skip(channel).step_by(3);
        let mean = own.sum::<f32>() / (SIDE * SIDE) as f32;
        values.iter_mut().skip(channel).step_by(3).for_each(|v| *v -= mean);
    }
    let length = values.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 0.0 {
        values.iter_mut().for_each(|v| *v /= length);
    } else {
        // One colour all over: as good as any other such picture, and like no others.
        values.fill((Gallery::LEN as f32).sqrt().recip());
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gallery_finds_what_was_lit_or_scaled_otherwise_and_nothing_else() {
        let level = |x: u32, y: u32| ((x * 7 + y * y * 3 + x * y) % 97) as u8;
        let picture = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([level(x / 8, y / 8), 20, level(y / 8, x / 8)])
        });
        let darker = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb(picture.get_pixel(x, y).0.map(|v| v / 2 + 9))
        });
        let larger = resize(&picture, 100, 100).unwrap();
        let other = RgbImage::from_fn(64, 64, |x, y| {
            image::Rgb([level(y / 8, 7 - x / 8), 90, level(x / 8, 3)])
        });
        let flat = RgbImage::from_pixel(64, 64, image::Rgb([9, 9, 9]));
        let mut gallery = Gallery::default();
        assert_eq!(gallery.similarity(&picture).unwrap(), -1.0);
        gallery.add(&picture).unwrap();
        for same in [&picture, &darker, &larger] {
            assert!(gallery.similarity(same).unwrap() > 0.98);
        }
        for other in [&other, &flat] {
            assert!(gallery.similarity(other).unwrap() < 0.9);
        }
        gallery.add(&flat).unwrap();
        assert!(gallery.similarity(&RgbImage::new(3, 5)).unwrap() > 0.999);
        assert!(gallery.similarity(&RgbImage::new(0, 5)).is_err());
    }
}
