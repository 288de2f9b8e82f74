//! Pixels of a scene or a picture, some rows at a time.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::io::geotiff::{About, GeoTiff, SampleKind, Units, Window};
use crate::io::image::{self, RgbImage};

/// A scene: a TIFF, which is read while it is looked at, or a picture of another kind, which is held in memory.
pub struct Source {
    path: PathBuf,
    about: About,
    pixels: Pixels,
    /// Which bands are looked at.
    bands: Vec<usize>,
}

enum Pixels {
    File(Box<GeoTiff>),
    Memory(Vec<u8>),
}

impl Source {
    /// Opens a TIFF, or another picture as [`image::open`] does, to be looked at in `bands` bands: those of these numbers, the
    /// first being 1, or all but one for opacity.
    ///
    /// # Errors
    /// It cannot be read; its numbers are not unsigned ones of 8 or 16 bits; it has other bands.
    pub fn open(path: &Path, bands: usize, chosen: Option<&[usize]>) -> Result<Self> {
        let mut found = Self::of(path)?;
        let about = &found.about;
        let wrong = |what, expected: String, found: String, advice: &str| {
            Err(Error::file(path, what, expected, found, advice))
        };
        if !matches!(about.samples, SampleKind::U8 | SampleKind::U16) {
            let advice = "Scale it to what the model was trained on: gdal_translate -ot UInt16 -scale MIN MAX 0 65535 IN OUT.";
            let expected = "unsigned ones of 8 or 16 bits".to_owned();
            return wrong("numbers", expected, about.samples.name().to_owned(), advice);
        }
        if about.palette.is_some() && bands > 1 {
            let advice = "Write its colours as bands: gdal_translate -expand rgb IN OUT.";
            return wrong("bands", bands.to_string(), "1, places in a palette".to_owned(), advice);
        }
        let all = (0..about.bands).filter(|band| Some(*band) != about.alpha);
        found.bands = match chosen {
            None => all.collect(),
            Some(chosen) => {
                let valid = chosen.iter().all(|band| (1..=about.bands).contains(band));
                if !valid || chosen.len() != bands {
                    let shown: Vec<_> = chosen.iter().map(ToString::to_string).collect();
                    let most = about.bands;
                    let expected = format!(
                        "{bands} numbers from 1 to {most}, the bands of {}",
                        path.display()
                    );
                    return Err(Error::argument("bands", shown.join(","), expected));
                }
                chosen.iter().map(|band| band - 1).collect()
            }
        };
        if found.bands.len() != bands {
            let expected = format!("{bands}, as the model sees");
            let count = found.bands.len().to_string();
            let advice = "--bands 1,2,3 chooses some; a model sees those that it was trained on.";
            return wrong("bands", expected, count, advice);
        }
        Ok(found)
    }

    fn of(path: &Path) -> Result<Self> {
        let is_tiff = path.extension().is_some_and(|end| {
            ["tif", "tiff", "gtiff", "btf", "tf8"].iter().any(|tiff| end.eq_ignore_ascii_case(tiff))
        });
        if is_tiff {
            let file = GeoTiff::open(path)?;
            let about = file.about().clone();
            let pixels = Pixels::File(Box::new(file));
            return Ok(Self { path: path.to_path_buf(), about, pixels, bands: Vec::new() });
        }
        Ok(Self::of_picture(path, image::open(path)?))
    }

    /// A picture that is there already, in red, green and blue; `name` is what errors call it.
    pub fn picture(name: &Path, picture: RgbImage) -> Self {
        Self { bands: vec![0, 1, 2], ..Self::of_picture(name, picture) }
    }

    fn of_picture(path: &Path, picture: RgbImage) -> Self {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let about = About {
            width,
            height,
            bands: 3,
            samples: SampleKind::U8,
            alpha: None,
            nodata: None,
            palette: None,
            units: Vec::new(),
            georeference: None,
        };
        let pixels = Pixels::Memory(picture.into_raw());
        Self { path: path.to_path_buf(), about, pixels, bands: Vec::new() }
    }

    /// What is known of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// What the numbers stand for of the bands that are looked at; empty where the file does not say.
    pub fn units(&self) -> Vec<Units> {
        self.bands.iter().filter_map(|band| self.about.units.get(*band).copied()).collect()
    }

    /// Bands that are looked at.
    pub(super) fn bands(&self) -> usize {
        self.bands.len()
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a TIFF.
    pub fn is_tiff(&self) -> bool {
        matches!(self.pixels, Pixels::File(_))
    }

    /// Rows of pixels, as [`GeoTiff::read`] gives them.
    ///
    /// # Errors
    /// As [`GeoTiff::read`].
    pub(super) fn rows(&mut self, first: usize, count: usize) -> Result<Vec<u8>> {
        let width = self.about.width;
        match &mut self.pixels {
            Pixels::File(file) => file.read(Window { x: 0, y: first, width, height: count }),
            Pixels::Memory(pixels) => {
                let row = width * self.about.pixel();
                Ok(pixels[first * row..(first + count) * row].to_vec())
            }
        }
    }

    /// Numbers of a pixel in the bands that are looked at, as they are.
    pub(super) fn numbers(&self, pixel: &[u8]) -> impl Iterator<Item = u16> {
        self.bands.iter().map(move |band| self.number(pixel, *band))
    }

    /// A number of a pixel, as it is.
    fn number(&self, pixel: &[u8], band: usize) -> u16 {
        match self.about.samples {
            SampleKind::U16 => u16::from_ne_bytes([pixel[2 * band], pixel[2 * band + 1]]),
            _ => u16::from(pixel[band]),
        }
    }

    /// Whether a pixel is one: not see-through, nor without data in all of its bands.
    pub(super) fn is_data(&self, pixel: &[u8]) -> bool {
        if self.about.alpha.is_some_and(|alpha| self.number(pixel, alpha) == 0) {
            return false;
        }
        let Some(nodata) = self.about.nodata else { return true };
        let mut bands = (0..self.about.bands).filter(|band| Some(*band) != self.about.alpha);
        bands.any(|band| f64::from(self.number(pixel, band)) != nodata)
    }

    /// Levels of a pixel in the bands that are looked at, 0 to 1.
    pub(super) fn levels(&self, pixel: &[u8]) -> impl Iterator<Item = f32> {
        let most = if self.about.samples == SampleKind::U16 { 65535.0 } else { 255.0 };
        self.numbers(pixel).map(move |number| f32::from(number) / most)
    }
}
