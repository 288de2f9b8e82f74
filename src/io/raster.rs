//! Pictures of any number of bands, and masks of classes.

use std::io::Cursor;
use std::path::Path;

use super::geotiff::{About, GeoTiff, SampleKind, Window};
use super::image::{self, MAX_SIDE};
use super::{caught, read_bounded};
use crate::error::{Error, Result};

/// The longest file that is read, and memory that a picture takes at most.
const MAX_FILE: u64 = 1 << 30;
const MAX_MEMORY: usize = 1 << 30;

/// Levels of a picture, row by row, the bands of a pixel side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Levels {
    /// Of 8 bits.
    U8(Vec<u8>),
    /// Of 16 bits.
    U16(Vec<u16>),
}

/// A picture of several bands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raster {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Levels of a pixel.
    pub bands: usize,
    /// [height, width, bands]
    pub levels: Levels,
}

impl Raster {
    /// A level, 0 to 1.
    pub fn level(&self, y: usize, x: usize, band: usize) -> f32 {
        let at = (y * self.width + x) * self.bands + band;
        match &self.levels {
            Levels::U8(levels) => f32::from(levels[at]) / 255.0,
            Levels::U16(levels) => f32::from(levels[at]) / 65535.0,
        }
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> usize {
        match &self.levels {
            Levels::U8(levels) => levels.len(),
            Levels::U16(levels) => 2 * levels.len(),
        }
    }
}

/// Classes of pixels, row by row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mask {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// [height, width]
    pub classes: Vec<u16>,
}

/// Reads a picture: a TIFF with all of its bands, of 8 or 16 bits; anything else as [`image::open`] reads it, in three.
///
/// # Errors
/// The file is missing, of another kind, damaged, or larger than 16,384 pixels a side or 1 GiB; a TIFF of other numbers.
pub fn open(path: impl AsRef<Path>) -> Result<Raster> {
    let path = path.as_ref();
    decode(&read_bounded(path, MAX_FILE)?, path)
}

/// As [`open`], from a file's content; `origin` is what errors call it.
///
/// # Errors
/// As for [`open`].
pub fn decode(bytes: &[u8], origin: &Path) -> Result<Raster> {
    if is_tiff(bytes) {
        return tiff(bytes, origin);
    }
    let picture = image::decode(bytes, origin)?;
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Ok(Raster { height, width, bands: 3, levels: Levels::U8(picture.into_raw()) })
}

/// Reads a mask: a PNG, grey or of a palette, or a TIFF of one band. Its levels, or places in the palette, are classes.
///
/// # Errors
/// As for [`open`]; a file of several bands.
pub fn open_mask(path: impl AsRef<Path>) -> Result<Mask> {
    let path = path.as_ref();
    decode_mask(&read_bounded(path, MAX_FILE)?, path)
}

/// As [`open_mask`], from a file's content; `origin` is what errors call it.
///
/// # Errors
/// As for [`open_mask`].
pub fn decode_mask(bytes: &[u8], origin: &Path) -> Result<Mask> {
    let advice = "Save classes as an 8-bit PNG, grey or of a palette, or as a TIFF of one band.";
    let wrong =
        |expected: &str, found: String| Err(Error::file(origin, "mask", expected, found, advice));
    if is_tiff(bytes) {
        let Raster { height, width, bands, levels } = tiff(bytes, origin)?;
        if bands != 1 {
            return wrong("one band", format!("{bands} bands"));
        }
        let classes = match levels {
            Levels::U8(levels) => levels.into_iter().map(u16::from).collect(),
            Levels::U16(levels) => levels,
        };
        return Ok(Mask { height, width, classes });
    }
    let read = || -> std::result::Result<Mask, String> {
        let mut decoder = ::png::Decoder::new(Cursor::new(bytes));
        decoder.set_transformations(::png::Transformations::IDENTITY);
        let mut reader = decoder.read_info().map_err(|e| e.to_string())?;
        let info = reader.info();
        let (width, height) = (info.width as usize, info.height as usize);
        let bits = info.bit_depth as usize;
        let one =
            matches!(info.color_type, ::png::ColorType::Grayscale | ::png::ColorType::Indexed);
        if !one || bits > 8 {
            return Err(format!("{:?} of {bits} bits", info.color_type));
        }
        if info.width > MAX_SIDE || info.height > MAX_SIDE {
            return Err(format!("{width}x{height} pixels"));
        }
        let mut rows = vec![0; reader.output_buffer_size().ok_or("a picture too large")?];
        let frame = reader.next_frame(&mut rows).map_err(|e| e.to_string())?;
        let class = |(row, x): (&[u8], usize)| {
            let each = 8 / bits;
            let (byte, place) = (row[x / each], x % each);
            u16::from(byte >> (8 - bits * (place + 1))) & ((1 << bits) - 1)
        };
        let rows = rows.chunks_exact(frame.line_size).take(height);
        let pixels = rows.flat_map(|row| (0..width).map(move |x| (row, x)));
        Ok(Mask { height, width, classes: pixels.map(class).collect() })
    };
    match caught(read).and_then(|done| done) {
        Ok(mask) => Ok(mask),
        Err(found) => wrong("a grey PNG, or one of a palette, or a TIFF of one band", found),
    }
}

/// A mask as a grey PNG of 8 bits, as [`decode_mask`] reads it.
///
/// # Errors
/// `Argument` for a class above 255, or a mask without pixels.
pub fn encode_mask(mask: &Mask) -> Result<Vec<u8>> {
    let levels: Option<Vec<u8>> =
        mask.classes.iter().map(|&class| u8::try_from(class).ok()).collect();
    let Some(levels) = levels else {
        let largest = mask.classes.iter().max().copied().unwrap_or_default();
        return Err(Error::argument("mask", largest, "classes of at most 255"));
    };
    let mut bytes = Vec::new();
    let (width, height) = (mask.width as u32, mask.height as u32);
    let mut encoder = ::png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(::png::ColorType::Grayscale);
    encoder.set_depth(::png::BitDepth::Eight);
    let written = encoder.write_header().and_then(|mut writer| writer.write_image_data(&levels));
    let size = format!("{width}x{height} pixels");
    written.map_err(|e| Error::argument("mask", size, format!("a PNG can hold it: {e}")))?;
    Ok(bytes)
}

pub(super) fn is_tiff(bytes: &[u8]) -> bool {
    [&b"II*\0"[..], b"MM\0*", b"II+\0", b"MM\0+"].iter().any(|magic| bytes.starts_with(magic))
}

fn tiff(bytes: &[u8], origin: &Path) -> Result<Raster> {
    let wrong = |found: String| {
        let expected = format!("a TIFF of at most {MAX_SIDE} pixels a side, of 8 or 16 bits");
        let advice = "gdal_translate -ot UInt16 writes such a file.";
        Error::file(origin, "picture", expected, found, advice)
    };
    let mut file = GeoTiff::new(Cursor::new(bytes), origin)?;
    let &About { height, width, bands, samples, .. } = file.about();
    let most = width.max(height) > MAX_SIDE as usize;
    if most || width * height * file.about().pixel() > MAX_MEMORY {
        return Err(wrong(format!("{width}x{height} pixels of {bands} bands")));
    }
    if !matches!(samples, SampleKind::U8 | SampleKind::U16) {
        return Err(wrong(format!("numbers of another kind, {}", samples.name())));
    }
    let levels = file.read(Window { x: 0, y: 0, width, height })?;
    let levels = match samples {
        SampleKind::U16 => Levels::U16(bytemuck::pod_collect_to_vec(&levels)),
        _ => Levels::U8(levels),
    };
    Ok(Raster { height, width, bands, levels })
}

#[cfg(test)]
mod tests {
    use ::tiff::encoder::{TiffEncoder, colortype};

    use super::*;
    use crate::io::geotiff::{Cog, CogWriter};

    const ORIGIN: &str = "here";

    fn tiff_of<C: colortype::ColorType>(size: (u32, u32), levels: &[C::Inner]) -> Vec<u8>
    where
        [C::Inner]: ::tiff::encoder::TiffValue,
    {
        let mut bytes = Cursor::new(Vec::new());
        let mut encoder = TiffEncoder::new(&mut bytes).unwrap();
        encoder.write_image::<C>(size.0, size.1, levels).unwrap();
        bytes.into_inner()
    }

    fn png_of(color: ::png::ColorType, depth: ::png::BitDepth, width: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut bytes, width, 2);
        encoder.set_color(color);
        encoder.set_depth(depth);
        if color == ::png::ColorType::Indexed {
            encoder.set_palette(vec![7; 48]);
        }
        encoder.write_header().unwrap().write_image_data(data).unwrap();
        bytes
    }

    #[test]
    fn all_bands_of_a_tiff_are_read() {
        let levels: Vec<u8> = (0..24).collect();
        let raster =
            decode(&tiff_of::<colortype::RGBA8>((3, 2), &levels), ORIGIN.as_ref()).unwrap();
        assert_eq!((raster.height, raster.width, raster.bands), (2, 3, 4));
        assert_eq!(raster.level(1, 2, 3), 23.0 / 255.0);
        let levels: Vec<u16> = (0..24).map(|i| i * 2000).collect();
        let raster =
            decode(&tiff_of::<colortype::RGBA16>((2, 3), &levels), ORIGIN.as_ref()).unwrap();
        assert_eq!(raster.levels, Levels::U16(levels));
        assert_eq!(raster.level(2, 1, 1), 42000.0 / 65535.0);
        let error = decode(&tiff_of::<colortype::Gray32Float>((1, 1), &[0.5]), ORIGIN.as_ref());
        assert!(error.unwrap_err().to_string().contains("8 or 16 bits"));
        let mut cut = tiff_of::<colortype::RGBA8>((3, 2), &(0..24).collect::<Vec<_>>());
        cut.truncate(40);
        assert!(matches!(decode(&cut, ORIGIN.as_ref()), Err(Error::File { .. })));
    }

    #[test]
    fn levels_and_places_in_a_palette_are_classes() {
        use ::png::{BitDepth, ColorType};
        let read = |bytes: Vec<u8>| decode_mask(&bytes, ORIGIN.as_ref());
        for color in [ColorType::Grayscale, ColorType::Indexed] {
            let mask = read(png_of(color, BitDepth::Eight, 3, &[0, 1, 2, 2, 1, 9])).unwrap();
            assert_eq!((mask.height, mask.width), (2, 3));
            assert_eq!(mask.classes, [0, 1, 2, 2, 1, 9]);
            // Two bits a pixel: 0 1 2 3, 3; 1 0 0 2, 1.
            let packed = [0b00_01_10_11, 0b11_00_00_00, 0b01_00_00_10, 0b01_00_00_00];
            let mask = read(png_of(color, BitDepth::Two, 5, &packed)).unwrap();
            assert_eq!(mask.classes, [0, 1, 2, 3, 3, 1, 0, 0, 2, 1]);
        }
        let mask = Mask { height: 2, width: 3, classes: vec![0, 1, 2, 7, 254, 255] };
        assert_eq!(read(encode_mask(&mask).unwrap()).unwrap(), mask);
        assert!(encode_mask(&Mask { classes: vec![256; 6], ..mask }).is_err());
        let mask = read(tiff_of::<colortype::Gray8>((2, 1), &[4, 255])).unwrap();
        assert_eq!(mask.classes, [4, 255]);
        // As a scene's mask is written: a TIFF whose numbers are places in a palette.
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tif");
        let palette = Some(vec![[1, 2, 3], [4, 5, 6]]);
        let cog = Cog { palette, ..Cog::new(2, 1, 1, SampleKind::U8) };
        let mut writer = CogWriter::create(&path, cog, false).unwrap();
        writer.write_rows(&[1, 255]).unwrap();
        writer.finish().unwrap();
        assert_eq!(open_mask(&path).unwrap().classes, [1, 255]);
        let error = |bytes| read(bytes).unwrap_err().to_string();
        let rgb = error(png_of(ColorType::Rgb, BitDepth::Eight, 1, &[0; 6]));
        assert!(rgb.contains("Rgb of 8 bits") && rgb.contains("one band"), "{rgb}");
        assert!(error(tiff_of::<colortype::RGB8>((1, 1), &[0; 3])).contains("3 bands"));
        assert!(error(b"nothing".to_vec()).contains("a grey PNG"));
    }
}
