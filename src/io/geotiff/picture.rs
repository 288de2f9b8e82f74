//! Pictures as GeoTIFFs, whole.

use std::io::{self, Cursor, Write};
use std::path::Path;

use ::image::RgbImage;

use super::{About, Cog, CogWriter, GeoTiff, Georeference, Resampling, SampleKind, Units, Window};
use crate::error::{Error, Result};
use crate::io::image::{self, MAX_SIDE};
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
    /// What the numbers of each band stand for; empty where that is not said.
    pub units: Vec<Units>,
    /// Where it lies.
    pub place: Option<Georeference>,
}

impl Form {
    /// Of 8 bits.
    pub fn plain(place: Option<Georeference>) -> Self {
        Self { samples: Samples::U8, scale: Scale::BYTES, units: Vec::new(), place }
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
        units: form.units.clone(),
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

/// What is darkest and brightest among the numbers of a file to a model: of 8 bits 0 and 255 always, of others what was said,
/// or else what stands for 0 and for 1 by the scale and offset of its bands, which reflectances lie between.
fn scale_of(about: &About, said: Option<Scale>, path: &Path) -> Result<Option<Scale>> {
    if about.samples == SampleKind::U8 {
        return Ok(Some(Scale::BYTES));
    }
    if said.is_some() || about.units.is_empty() {
        return Ok(said);
    }
    scale_of_units(&about.units, path).map(Some)
}

/// What is 0 and what is 1 among the numbers of bands that stand for these; `origin` is what errors call them.
///
/// # Errors
/// Bands that differ, or units that fall.
pub fn scale_of_units(units: &[Units], origin: &Path) -> Result<Scale> {
    Scale::of_bands(units).ok_or_else(|| {
        let found: Vec<String> =
            units.iter().map(|units| format!("{},{}", units.scale, units.offset)).collect();
        let expected = "one scale and offset of all bands, the scale above 0";
        let advice = "--scale LOW,HIGH says which numbers of the file are darkest and brightest.";
        Error::file(origin, "scale and offset", expected, found.join("; "), advice)
    })
}

/// The scale that a file is [read](read()) by, where it is a raster.
///
/// # Errors
/// It cannot be read; its bands have different units, or such as fall, and no scale was said.
pub fn scale(file: &Path, said: Option<Scale>) -> Result<Option<Scale>> {
    if raster(file)?.is_none() {
        return Ok(said);
    }
    scale_of(GeoTiff::open(file)?.about(), said, file)
}

/// What the numbers of each band stand for in a picture of `bands` bands that is written by `to`: what they do in the raster
/// `init`, read by `said`, that it starts from; without one, whole numbers beyond 8 bits are shares of 1.
///
/// # Errors
/// The raster cannot be read.
pub fn units(
    init: Option<&Path>,
    said: Option<Scale>,
    (samples, to): (Samples, Scale),
    bands: usize,
) -> Result<Vec<Units>> {
    if let Some(init) = init.filter(|init| is_named_so(init) && init.is_file()) {
        let file = GeoTiff::open(init)?;
        let about = file.about();
        if !is_picture(about) || !about.units.is_empty() {
            let from = scale_of(about, said, init)?.unwrap_or(to);
            return Ok(about.units.iter().map(|units| to.converted(*units, from)).collect());
        }
    }
    Ok(if samples == Samples::U16 { vec![to.units(); bands] } else { Vec::new() })
}

/// Reads a raster with all of its bands, of numbers between which `scale` says what is darkest and brightest to a model; of 8
/// bits these are 0 and 255 always, and of others, where nothing is said, what stands for 0 and for 1 by GDAL's scale and
/// offset.
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
    let Some(scale) = scale_of(file.about(), scale, path)? else {
        let advice = "--scale LOW,HIGH says which numbers are darkest and brightest, as 0,10000 for reflectances; or \
            gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale 0 3000 0 255 -a_nodata none IN OUT makes a picture of it.";
        return wrong("8 bits, or a scale", advice);
    };
    let numbers = samples.numbers(&file.read(Window { x: 0, y: 0, width, height })?);
    let missing: Vec<bool> = numbers.iter().map(|number| is_missing(&about, *number)).collect();
    let value =
        |(number, missing): (&f64, &bool)| if *missing { 0.0 } else { scale.value(*number) };
    let values = numbers.iter().zip(&missing).map(value).collect();
    let some = nodata.is_some() || missing.contains(&true);
    let nodata = some.then(|| Nodata { value: nodata.unwrap_or(f64::NAN), missing });
    Picture::new([height, width, bands], values, nodata)
}

/// Whether a number of a file is none.
fn is_missing(about: &About, number: f64) -> bool {
    let is_nodata = match (about.nodata, about.samples) {
        // Of 32 bits a text may say it in fewer digits.
        (Some(nodata), SampleKind::F32) => number as f32 == nodata as f32,
        (Some(nodata), _) => number == nodata,
        (None, _) => false,
    };
    is_nodata || !number.is_finite()
}

/// Reads a mask as a picture, white where is painted: a picture of 8 bits as it is, which paints where it is at least half
/// white; of one band of other numbers, or with nodata, what is not 0 paints (of 8 bits from 128 on), and what is no data does
/// not. Numbers are as they lie in the file, whatever they stand for.
///
/// # Errors
/// As [`image::open`]'s; a raster of several bands, with a palette or opacity, or too large.
pub fn mask(path: &Path) -> Result<RgbImage> {
    if raster(path)?.is_none() {
        return image::open(path);
    }
    let mut file = GeoTiff::open(path)?;
    let about = file.about().clone();
    if about.bands != 1 || about.palette.is_some() || about.alpha.is_some() {
        let expected = "one band of numbers, where those that are not 0 are painted, or a picture of 8 bits, white there";
        let advice = "gdal_translate -b 1 IN OUT keeps one band.";
        return Err(Error::file(path, "mask", expected, told(&about), advice));
    }
    let About { width, height, samples, .. } = about;
    if width.max(height) > MAX_SIDE as usize {
        let expected = format!("at most {MAX_SIDE} pixels a side");
        let advice = "gdal_translate -srcwin 0 0 512 512 IN OUT cuts a part out.";
        return Err(Error::file(path, "size", expected, format!("{width}x{height}"), advice));
    }
    let numbers = samples.numbers(&file.read(Window { x: 0, y: 0, width, height })?);
    let paints = |number: f64| match samples {
        SampleKind::U8 => number >= 128.0,
        _ => number != 0.0,
    };
    let level = |number: f64| match paints(number) && !is_missing(&about, number) {
        true => [255; 3],
        false => [0; 3],
    };
    let levels = numbers.into_iter().flat_map(level).collect();
    let size = format!("{width}x{height}");
    RgbImage::from_raw(width as u32, height as u32, levels)
        .ok_or_else(|| Error::argument("size", size, "fewer pixels"))
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
