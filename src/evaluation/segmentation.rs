//! What drawn pictures with masks teach a segmenter, beside real ones and together with them: as [`downstream`](super::downstream)
//! asks it of classifiers.

use std::path::{Path, PathBuf};

use image::RgbImage;
use serde_json::json;

use super::downstream::{Condition, DownstreamSettings, Found, Network, Scores, keep_settings};
use super::leak::{Leak, Set, check_test, leaks};
use super::page::{self, Page};
use super::scores::{Calibration, Confusion};
use crate::data::Examples;
use crate::data::masks::{
    IGNORED, Labelled, MaskSettings, MaskedPictures, Normal, open_whole, order,
};
use crate::error::{Error, Result};
use crate::io::parquet::{Picture, PictureWriter};
use crate::io::raster::{Levels, encode_mask};
use crate::io::{atomic, png};
use crate::models::segmentation::{Decoder, SegmentationConfig, UnetConfig};
use crate::pipeline::Cancel;
use crate::pipeline::classifier::best;
use crate::pipeline::pixel_classifier::PixelClassifier;
use crate::tensor::Device;
use crate::train::Run;
use crate::train::checkpoint::Resume;
use crate::train::segment::SegmentTask;

/// Crops that are looked at at once in testing.
const BATCH: usize = 16;

/// What the sides of crops are multiples of: a U-Net halves them five times.
const MULTIPLE: usize = 32;

/// Pictures with masks.
pub struct MaskedSet {
    path: PathBuf,
    pictures: Vec<RgbImage>,
    labelled: Vec<Labelled>,
    classes: Vec<String>,
}

impl MaskedSet {
    /// Opens a folder with images/ and masks/, or a parquet file with columns image and mask.
    ///
    /// # Errors
    /// As [`open_whole`]; pictures of other than three bands of 8 bits.
    pub fn open(path: &Path, settings: &MaskSettings) -> Result<Self> {
        let (labelled, classes) = open_whole(path, settings)?;
        let picture = |one: &Labelled| {
            let [width, height] = [one.picture.width, one.picture.height].map(|n| n as u32);
            match &one.picture.levels {
                Levels::U8(levels) if one.picture.bands == 3 => {
                    RgbImage::from_raw(width, height, levels.clone())
                }
                _ => None,
            }
            .ok_or_else(|| {
                let found = format!("{} bands", one.picture.bands);
                let advice =
                    "What is drawn has red, green and blue, and so has what it is mixed with.";
                Error::file(&one.name, "picture", "three bands of 8 bits", found, advice)
            })
        };
        let pictures = labelled.iter().map(picture).collect::<Result<_>>()?;
        Ok(Self { path: path.to_path_buf(), pictures, labelled, classes })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.pictures.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pictures.is_empty()
    }

    /// Names of the classes.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Tells it from another of its name and size.
    fn checksum(&self) -> String {
        let mut sum = crc32fast::Hasher::new();
        for (picture, labelled) in self.pictures.iter().zip(&self.labelled) {
            sum.update(picture.as_raw());
            labelled.mask.classes.iter().for_each(|class| sum.update(&class.to_le_bytes()));
        }
        format!("{:08x}", sum.finalize())
    }

    /// Rows chosen by the seed: first such that every class is there, then any.
    fn choose(&self, count: usize, ignored: u16, seed: u64) -> Vec<usize> {
        let order = order(self.len(), seed);
        let mut missing: std::collections::BTreeSet<u16> =
            (0..self.classes.len()).map(|class| class as u16).collect();
        missing.remove(&ignored);
        let (mut rows, mut rest) = (Vec::new(), Vec::new());
        for row in order {
            let before = missing.len();
            if rows.len() < count && before > 0 {
                let classes = &self.labelled[row].mask.classes;
                missing.retain(|class| !classes.contains(class));
            }
            if missing.len() < before { rows.push(row) } else { rest.push(row) }
        }
        rows.extend(rest);
        rows.truncate(count);
        rows.sort_unstable();
        rows
    }
}

impl Set for MaskedSet {
    fn path(&self) -> &Path {
        &self.path
    }

    fn count(&self) -> usize {
        self.pictures.len()
    }

    fn picture(&self, row: usize) -> Result<RgbImage> {
        Ok(self.pictures[row].clone())
    }
}

/// What to compare, and where.
pub struct SegmentDownstream<'a> {
    /// Real pictures to learn from.
    pub real: &'a MaskedSet,
    /// Drawn ones, of the same classes.
    pub synthetic: &'a MaskedSet,
    /// Real pictures to be tested by; none may be in `real`.
    pub test: &'a MaskedSet,
    /// What whatever drew the drawn ones has learned from.
    pub seen: Option<&'a MaskedSet>,
    /// Classes, the level of none, and the size of crops.
    pub masks: &'a MaskSettings,
    /// Keeps all; what is there is not computed again.
    pub folder: &'a Path,
    /// Where networks compute.
    pub device: Device,
    /// Stops all.
    pub cancel: Cancel,
}

impl SegmentDownstream<'_> {
    /// Trains and tests all networks, and writes `report.html`. `watch` is told what goes on, and of every update.
    ///
    /// # Errors
    /// Data sets that do not fit together; `Interrupted`, which leaves all that is there; those of training and writing.
    pub fn run(
        &self,
        settings: &DownstreamSettings,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> Result<(Vec<Found>, Vec<Leak>)> {
        self.check(settings)?;
        let data = [self.real, self.synthetic, self.test]
            .map(|data| json!([data.path, data.len(), data.checksum()]));
        let now = json!({
            "task": "segment",
            "steps": settings.steps,
            "batch": settings.batch,
            "base_width": settings.base_width,
            "learning_rate": settings.learning_rate,
            "resolution": self.masks.resolution,
            "classes": self.real.classes,
            "ignore_index": self.masks.ignore_index,
            "data": data,
        });
        keep_settings(self.folder, &now)?;
        let found = settings.each(self.synthetic.len(), self.folder, watch, |one, watch| {
            self.write_set(&one.set, one.condition, one.seed)?;
            self.train(one, settings, watch)?;
            self.measure(&PixelClassifier::open(&one.run.join("segmenter"), self.device)?)
        })?;
        watch(Some("looking for nearest neighbours"));
        let seen = ("the generator has", self.seen);
        let leaks = leaks(self.synthetic, (self.real, self.test), seen, &self.cancel)?;
        let page = Page {
            network: format!("U-Net on a ResNet-18 of base width {}", settings.base_width),
            test: format!(
                "{} test pictures, pixel by pixel in parts of {} a side",
                self.test.len(),
                self.masks.resolution
            ),
            folder: self.folder,
            classes: &self.real.classes,
            seen: self.seen.map(MaskedSet::len),
            picture: &|row| Ok(self.synthetic.pictures[row].clone()),
        };
        page::write(&page, settings, &found, &leaks)?;
        Ok((found, leaks))
    }

    fn check(&self, settings: &DownstreamSettings) -> Result<()> {
        settings.check(self.real.classes.len(), self.real.len())?;
        let side = self.masks.resolution;
        if side == 0 || !side.is_multiple_of(MULTIPLE) {
            let expected = format!("a multiple of {MULTIPLE}, as the network needs");
            return Err(Error::argument("resolution", side, expected));
        }
        for data in [self.real, self.synthetic, self.test] {
            let small =
                data.pictures.iter().position(|p| (p.width().min(p.height()) as usize) < side);
            if let Some(row) = small {
                let (width, height) = data.pictures[row].dimensions();
                let (expected, found) =
                    (format!("{side} pixels a side at least"), format!("{width}x{height}"));
                let name = &data.labelled[row].name;
                return Err(Error::file(
                    name,
                    "picture",
                    expected,
                    found,
                    "Give a smaller --resolution.",
                ));
            }
        }
        for data in [self.synthetic, self.test] {
            if data.classes != self.real.classes {
                let expected = self.real.classes.join(", ");
                let found = data.classes.join(", ");
                let advice = "All data sets must have the classes of the real one.";
                return Err(Error::file(&data.path, "classes", expected, found, advice));
            }
        }
        check_test(self.real, self.test, &self.cancel)
    }

    /// What networks of a kind learn from, as a file that others can train on too.
    fn write_set(&self, path: &Path, condition: &Condition, seed: u64) -> Result<()> {
        let mut writer = PictureWriter::with_masks(path, atomic::Output::create(path, true)?)?;
        let mut add = |data: &MaskedSet, row: usize| {
            let mut image = Vec::new();
            png::encode(&mut image, &data.pictures[row], &[]).map_err(|e| Error::io(path, e))?;
            let labelled = &data.labelled[row];
            writer.add(Picture {
                filename: Some(labelled.name.display().to_string()),
                captions: Vec::new(),
                label: None,
                class: None,
                image,
                mask: Some(encode_mask(&labelled.mask)?),
            })
        };
        let rows = self.real.choose(condition.real, self.masks.ignore_index, seed);
        rows.into_iter().try_for_each(|row| add(self.real, row))?;
        (0..condition.synthetic).try_for_each(|row| add(self.synthetic, row))?;
        writer.finish()?.finish()
    }

    fn train(
        &self,
        one: &Network,
        settings: &DownstreamSettings,
        watch: &mut dyn FnMut(Option<&str>),
    ) -> Result<()> {
        let masks = MaskSettings {
            classes: self.real.classes.clone(),
            random_flip: true,
            vertical_flip: true,
            random_rotate: true,
            ..self.masks.clone()
        };
        let data = MaskedPictures::open(&one.set, masks)?;
        let width = settings.base_width;
        let shape = |in_channels, classes| {
            let share = |channels: usize| (channels * width / 64).max(4);
            let channels = UnetConfig::default().channels.into_iter().map(share).collect();
            SegmentationConfig {
                encoder: "resnet18".to_owned(),
                base_width: width,
                in_channels,
                classes,
                decoder: Decoder::Unet(UnetConfig { channels }),
            }
        };
        let task = SegmentTask::new(&data, shape, one.seed, self.device)?;
        let run = Run {
            task: &task,
            settings: &settings.training(one.seed),
            data: &data,
            held_out: None,
            folder: &one.run,
            about: &[],
            resume: Some(&Resume::Latest),
            cancel: &self.cancel,
        };
        run.complete(&mut || watch(None))
    }

    /// What a network sees in the test pictures.
    fn measure(&self, net: &PixelClassifier) -> Result<Scores> {
        let masks = MaskSettings { classes: self.real.classes.clone(), ..self.masks.clone() };
        let data = MaskedPictures::open(&self.test.path, masks)?;
        let (mut confusion, mut calibration) =
            (Confusion::new(self.real.classes.len()), Calibration::default());
        for batch in data.pass(BATCH, 1)? {
            self.cancel.check()?;
            let batch = batch?;
            let (b, h, w, bands) = batch.images.dims4()?;
            let mut images = batch.images.to_vec::<f32>()?;
            let by_data = net.normalize() == Normal::Data;
            for pixel in images.chunks_exact_mut(bands).filter(|_| by_data) {
                for (x, (mean, std)) in pixel.iter_mut().zip(net.mean().iter().zip(net.std())) {
                    *x = (*x - mean) / std;
                }
            }
            let seen = net.probabilities(images, [b, h, w, bands])?;
            let seen = seen.chunks_exact(net.classes().len());
            for (probabilities, class) in seen.zip(batch.classes.to_vec::<u32>()?) {
                if class != IGNORED {
                    let (found, confidence) = best(probabilities);
                    confusion.add(class as usize, found);
                    calibration.add(confidence, found == class as usize);
                }
            }
        }
        Ok(Scores { confusion, calibration_error: calibration.error() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::raster::{Mask, Raster};

    #[test]
    fn what_is_learned_from_has_every_class() {
        let labelled = |class: u16| Labelled {
            name: "a.png".into(),
            picture: Raster { height: 1, width: 1, bands: 3, levels: Levels::U8(vec![9; 3]) },
            mask: Mask { height: 1, width: 1, classes: vec![class] },
        };
        let labelled: Vec<_> = [0, 0, 0, 0, 1, 0, 255, 255].into_iter().map(labelled).collect();
        let set = MaskedSet {
            path: "set".into(),
            pictures: vec![RgbImage::new(1, 1); labelled.len()],
            labelled,
            classes: vec!["land".into(), "water".into()],
        };
        for seed in 0..20 {
            let rows = set.choose(2, 255, seed);
            assert!(rows.len() == 2 && rows.contains(&4), "{seed}: {rows:?}");
            assert!(rows.iter().any(|row| *row < 4 || *row == 5), "{seed}: {rows:?}");
            assert_eq!(set.choose(8, 255, seed), (0..8).collect::<Vec<_>>());
        }
    }
}
