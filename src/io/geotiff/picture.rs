//! Pictures of three bands of 8 bits as GeoTIFFs, whole.

use std::io::{self, Write};
use std::path::Path;

use image::RgbImage;

use super::{Cog, CogWriter, GeoTiff, Georeference, Resampling, SampleKind};
use crate::error::{Error, Result};

/// Whether a name is that of a TIFF.
pub fn is_named_so(path: &Path) -> bool {
    let ending = path.extension().unwrap_or_default();
    ending.eq_ignore_ascii_case("tif") || ending.eq_ignore_ascii_case("tiff")
}

/// Writes `picture` where `path` says, in the place of what is there.
///
/// # Errors
/// As [`CogWriter`]'s.
pub fn write(
    path: &Path,
    picture: &RgbImage,
    place: Option<&Georeference>,
    metadata: &[(&str, String)],
) -> Result<()> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let plain = Cog::new(width, height, 3, SampleKind::U8);
    let cog = Cog {
        georeference: place.cloned(),
        tile: width.max(height).next_multiple_of(16).min(plain.tile),
        metadata: metadata.iter().map(|(name, text)| ((*name).to_owned(), text.clone())).collect(),
        resampling: Resampling::Average,
        ..plain
    };
    let mut writer = CogWriter::create(path, cog, true)?;
    writer.write_rows(picture.as_raw())?;
    writer.finish()
}

/// Encodes such a picture; as [`write()`], but for where it goes.
///
/// # Errors
/// Those of `out`; no room for temporary files.
pub fn encode(
    out: &mut dyn Write,
    picture: &RgbImage,
    place: Option<&Georeference>,
    metadata: &[(&str, String)],
) -> io::Result<()> {
    // A writer goes back to the file's beginning when its end is known.
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("picture.tif");
    write(&path, picture, place, metadata).map_err(io::Error::other)?;
    io::copy(&mut std::fs::File::open(path)?, out).map(drop)
}

/// Refuses a TIFF that is no picture as it is: reflectances would be drawn from as a dark one, and what is no data as levels.
/// What is no TIFF is left to its reader.
///
/// # Errors
/// Other numbers than 8 bits, other bands than grey or RGB (with or without opacity), pixels without data; no TIFF in spite of its
/// name.
pub fn check(file: &Path) -> Result<()> {
    if !is_named_so(file) || !file.is_file() {
        return Ok(());
    }
    let file = GeoTiff::open(file)?;
    let about = file.about();
    let colours = about.bands - usize::from(about.alpha.is_some());
    if about.samples == SampleKind::U8 && matches!(colours, 1 | 3) && about.nodata.is_none() {
        return Ok(());
    }
    let nodata = about.nodata.map_or(String::new(), |x| format!(", where {x} is no data"));
    let found = format!("{} bands of {}{nodata}", about.bands, about.samples.name());
    let advice = "gdal_translate -b 3 -b 2 -b 1 -ot Byte -scale 0 3000 0 255 -a_nodata none IN OUT makes one of a scene's bands.";
    Err(Error::file(
        file.path(),
        "picture",
        "grey or RGB of 8 bits, with data everywhere",
        found,
        advice,
    ))
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
