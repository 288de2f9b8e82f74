//! Pictures as GeoTIFFs, whole.

use std::io::{self, Cursor, Write};
use std::path::Path;

use super::{About, Cog, CogWriter, GeoTiff, Georeference, Resampling, SampleKind, Window};
use crate::error::{Error, Result};
use crate::io::image::MAX_SIDE;
use crate::io::picture::{Nodata, Picture, Samples, Scale};
use crate::io::raster::is_tiff;

/// The most numbers of a picture.
const MAX_NUMBERS: usize = 1 << 28;

/// Whether a name is that of a TIFF.
pub fn is_named_so(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ending.eq_ignore_ascii_case("tif") || ending.eq_ignore_ascii_case("tiff")
}

/// How a picture is written.
#[derive(Clone, Debug)]
pub struct Form {
    /// What its numbers are.
    pub samples: Samples,
    /// What they are to a model.
    pub scale: Scale,
    /// Where it lies.
    pub place: Option<Georeference>,
}

impl Form {
    /// Of 8 bits.
    pub fn plain(place: Option<Georeference>) -> Self {
        Self { samples: Samples::U8, scale: Scale::BYTES, place }
    }
}

/// Writes `picture`, all of its bands, where `path` says, in the place of what is there.
///
/// # Errors
/// As [`CogWriter`]'s; `Argument` where the numbers cannot hold what stands for no data.
pub fn write(
    path: &Path,
    picture: &Picture,
    form: &Form,
    metadata: &[(&str, String)],
) -> Result<()> {
    let (width, height) = (picture.width(), picture.height());
    let nodata = picture.nodata().map(|nodata| nodata.value);
    nodata.map_or(Ok(()), |nodata| check_nodata(form.samples, nodata))?;
    let plain = Cog::new(width, height, picture.bands(), form.samples.kind());
    let cog = Cog {
        georeference: form.place.clone(),
        tile: width.max(height).next_multiple_of(16).min(plain.tile),
        nodata,
        metadata: metadata.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect(),
        resampling: Resampling::Average,
        ..plain
    };
    let mut writer = CogWriter::create(path, cog, true)?;
    writer.write_rows(&picture.numbers(form.samples, form.scale))?;
    writer.finish()
}

/// Checks that numbers can hold what stands for no data.
///
/// # Errors
/// `Argument`: they cannot.
pub fn check_nodata(samples: Samples, nodata: f64) -> Result<()> {
    if samples.hold(nodata) {
        return Ok(());
    }
    let expected = format!("numbers that can hold {nodata}, which is no data: f32 can");
    Err(Error::argument("samples", samples, expected))
}

/// Encodes such a picture; as [`write()`], but for where it goes.
///
/// # Errors
/// Those of `out`; no room for temporary files.
pub fn encode(
    out: &mut dyn Write,
    picture: &Picture,
    form: &Form,
    metadata: &[(&str, String)],
) -> io::Result<()> {
    // A writer goes back to the file's beginning when its end is known.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("picture.tif");
    write(&path, picture, form, metadata).map_err(io::Error::other)?;
    io::copy(&mut std::fs::File::open(path)?, out).map(drop)
}

/// Whether the numbers of a TIFF are a picture as they are: grey or RGB of 8 bits, with data everywhere.
fn is_picture(about: &About) -> bool {
    let colours = about.bands - usize::from(about.alpha.is_some());
    about.samples == SampleKind::U8 && matches!(colours, 1 | 3) && about.nodata.is_none()
}

/// What a TIFF's numbers are.
fn told(about: &About) -> String {
    let nodata = about.nodata.map_or(String::new(), |x| format!(", where {x} is no data"));
    format!("{} bands of {}{nodata}", about.bands, about.samples.name())
}

/// Refuses a file that is a TIFF and no picture as it is: reflectances would be taken for a dark one, and what is no data for
/// levels. What is no TIFF, or cannot be read, is left to its reader.
///
/// # Errors
/// Other numbers than 8 bits, other bands than grey or RGB (with or without opacity), pixels without data.
pub fn check(bytes: &[u8], origin: &Path) -> Result<()> {
    if !is_tiff(bytes) {
        return Ok(());
    }
    match GeoTiff::new(Cursor::new(bytes), origin) {
        Ok(file) if !is_picture(file.about()) => {
            let advice = "gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale 0 3000 0 255 -a_nodata none IN OUT makes one of a scene's bands.";
            let expected = "grey or RGB of 8 bits, with data everywhere";
            Err(Error::file(origin, "picture", expected, told(file.about()), advice))
        }
        _ => Ok(()),
    }
}

/// What the numbers of a file are, where it is a TIFF that is no picture as it is, but a raster.
///
/// # Errors
/// It is named as a TIFF, and cannot be read.
pub fn raster(file: &Path) -> Result<Option<SampleKind>> {
    if !is_named_so(file) || !file.is_file() {
        return Ok(None);
    }
    let file = GeoTiff::open(file)?;
    Ok(Some(file.about().samples).filter(|_| !is_picture(file.about())))
}

/// Reads a raster with all of its bands, of numbers between which `scale` says what is darkest and brightest to a model; of 8
/// bits these are 0 and 255 always.
///
/// # Errors
/// It is missing, damaged or too large; has no scale; has a palette, or a band of opacity.
pub fn read(path: &Path, scale: Option<Scale>) -> Result<Picture> {
    let mut file = GeoTiff::open(path)?;
    let about = file.about().clone();
    let wrong = |expected: &str, advice: &str| {
        Err(Error::file(path, "picture", expected, told(&about), advice))
    };
    if about.palette.is_some() || about.alpha.is_some() {
        let advice = "gdal_translate -b 1 -b 2 -b 3 IN OUT keeps some bands.";
        return wrong("bands of numbers alone, no palette or opacity", advice);
    }
    let About { width, height, bands, samples, nodata, .. } = about;
    let count = [width, height, bands].iter().try_fold(1_usize, |n, &x| n.checked_mul(x));
    let fits = count.is_some_and(|count| count <= MAX_NUMBERS);
    if !fits || width.max(height) > MAX_SIDE as usize {
        let expected = format!("at most {MAX_SIDE} pixels a side, and {MAX_NUMBERS} numbers");
        let found = format!("{width}x{height} pixels of {bands} bands");
        let advice = "gdal_translate -srcwin 0 0 512 512 IN OUT cuts a part out.";
        return Err(Error::file(path, "size", expected, found, advice));
    }
    let scale = match (samples, scale) {
        (SampleKind::U8, _) => Scale::BYTES,
        (_, Some(scale)) => scale,
        (_, None) => {
            let advice = "--scale LOW,HIGH says which numbers are darkest and brightest, as 0,10000 for reflectances; or \
                gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale 0 3000 0 255 -a_nodata none IN OUT makes a picture of it.";
            return wrong("8 bits, or a scale", advice);
        }
    };
    let numbers = samples.numbers(&file.read(Window { x: 0, y: 0, width, height })?);
    // Of 32 bits a text may say it in fewer digits.
    let is_nodata = |number: f64| match (nodata, samples) {
        (Some(nodata), SampleKind::F32) => number as f32 == nodata as f32,
        (Some(nodata), _) => number == nodata,
        (None, _) => false,
    };
    let is_missing = |number: &f64| !number.is_finite() || is_nodata(*number);
    let missing: Vec<bool> = numbers.iter().map(is_missing).collect();
    let value =
        |(number, missing): (&f64, &bool)| if *missing { 0.0 } else { scale.value(*number) };
    let values = numbers.iter().zip(&missing).map(value).collect();
    let some = nodata.is_some() || missing.contains(&true);
    let nodata = some.then(|| Nodata { value: nodata.unwrap_or(f64::NAN), missing });
    Picture::new([height, width, bands], values, nodata)
}

/// Where a file's pixels lie, scaled to `width` x `height` of them; None where it is no TIFF, or does not say.
///
/// # Errors
/// It is a TIFF that cannot be read.
pub fn place(file: &Path, width: usize, height: usize) -> Result<Option<Georeference>> {
    if !is_named_so(file) || !file.is_file() {
        return Ok(None);
    }
    let file = GeoTiff::open(file)?;
    let about = file.about();
    let place = about.georeference.as_ref().filter(|place| place.transform.is_some());
    let step = [about.width as f64 / width as f64, about.height as f64 / height as f64];
    Ok(place.map(|place| place.scaled(step)))
}

/// A text that [`write()`] has put into a file.
///
/// # Errors
/// It is no TIFF, or has no such text.
pub fn text(path: &Path, name: &str) -> Result<String> {
    let found = GeoTiff::open(path)?.metadata()?;
    found.into_iter().find(|(known, _)| known == name).map(|(_, text)| text).ok_or_else(|| {
        let advice = "Only pictures that nadir wrote, and no other program has saved since, say how they were made.";
        Error::file(path, "metadata", format!("an item {name:?}"), "none", advice)
    })
}
