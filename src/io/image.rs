//! Pictures: reading them within bounds, resizing them as Pillow does, and their way to tensors and back as
//! diffusers' `VaeImageProcessor` has it.

use std::io::Cursor;
use std::path::Path;

use ::image::metadata::Orientation;
use ::image::{ColorType, DynamicImage, ImageDecoder, ImageReader, Limits};

use super::picture::Picture;
use super::raster::is_tiff;
use super::{caught, geotiff, read_bounded};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

pub use ::image::RgbImage;

/// The longest side that is read: more than any aerial photograph to start from.
pub const MAX_SIDE: u32 = 16_384;

/// Memory that decoding one picture may take: 8-bit RGB of [`MAX_SIDE`] a side, with room to spare.
const MAX_MEMORY: u64 = 1 << 30;

/// The longest file that is read.
const MAX_FILE: u64 = 1 << 29;

/// Reads a PNG, JPEG, WebP, BMP or TIFF as RGB: transparency is dropped, the camera's orientation applied.
///
/// A TIFF is read where it is a picture as it is, of 8 bits: see [`geotiff::picture::check`]. Levels of 16 bits in a PNG are
/// scaled by 255 / 65535 and rounded, so that white stays white.
///
/// JPEG leaves the last bits to the decoder: against Pillow's, 93 % of levels are the same and the others within 4.
/// Start from a PNG where a picture has to be diffusers' to the bit.
///
/// # Errors
/// The file is missing, of another kind, damaged, larger than 16,384 pixels a side, or would take more than 1 GiB; a TIFF of
/// other numbers or bands, or with pixels without data.
pub fn open(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    decode(&read_bounded(path, MAX_FILE)?, path)
}

/// As [`open`], from a file's content; `origin` is what errors call it.
///
/// # Errors
/// As for [`open`].
pub fn decode(bytes: &[u8], origin: &Path) -> Result<RgbImage> {
    geotiff::picture::check(bytes, origin)?;
    let run = || -> ::image::ImageResult<std::result::Result<RgbImage, String>> {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        let mut limits = Limits::default();
        (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
        limits.max_alloc = Some(MAX_MEMORY);
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        let orientation = decoder.orientation()?;
        let (width, height) = decoder.dimensions();
        let eight = [ColorType::L8, ColorType::La8, ColorType::Rgb8, ColorType::Rgba8];
        if is_tiff(bytes) && !eight.contains(&decoder.color_type()) {
            return Ok(Err(format!("a TIFF of {:?}, not of 8 bits", decoder.color_type())));
        }
        let rgb = u64::from(width) * u64::from(height) * 3;
        // As it is stored, turned, and as RGB of 8 bits: one of the three where it is stored so and upright.
        let stored = decoder.total_bytes();
        let turned = if orientation == Orientation::NoTransforms { 0 } else { stored };
        let converted = if decoder.color_type() == ColorType::Rgb8 { 0 } else { rgb };
        let needed = stored.saturating_add(turned).saturating_add(converted);
        if needed > MAX_MEMORY {
            return Ok(Err(format!(
                "{width} x {height} pixels of {} bits each, which take {needed} bytes",
                decoder.color_type().bits_per_pixel()
            )));
        }
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        Ok(Ok(image.into_rgb8()))
    };
    let decoded = caught(run).and_then(|done| done.unwrap_or_else(|e| Err(e.to_string())));
    decoded.map_err(|found| {
        let expected = format!(
            "a PNG, JPEG, WebP, BMP or TIFF of at most {MAX_SIDE} pixels a side and {MAX_MEMORY} bytes"
        );
        Error::file(origin, "picture", expected, found, "Does a viewer open it? Save it as PNG.")
    })
}

/// A picture as the autoencoder takes it: [1, H, W, 3], f32 in [-1, 1].
///
/// # Errors
/// The picture is empty.
pub fn to_tensor(image: &RgbImage) -> Result<Tensor> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let values = image.as_raw().iter().map(|&v| 2.0 * (f32::from(v) / 255.0) - 1.0).collect();
    Tensor::from_vec(values, [1, h, w, 3])
}

/// As [`to_tensor`], of its luma (ITU-R BT.601): [1, H, W, 1], of a grey picture its levels.
///
/// # Errors
/// The picture is empty.
pub fn to_grey_tensor(image: &RgbImage) -> Result<Tensor> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let value = |p: &[u8; 3]| 2.0 * (luma(p) as f32 / 255.0) - 1.0;
    Tensor::from_vec(image.as_raw().as_chunks().0.iter().map(value).collect(), [1, h, w, 1])
}

/// Pillow's "L": weights in 16-bit fixed point.
fn luma(p: &[u8; 3]) -> u32 {
    (u32::from(p[0]) * 19595 + u32::from(p[1]) * 38470 + u32::from(p[2]) * 7471 + 0x8000) >> 16
}

/// A mask for inpainting: [1, H, W, 1], f32, 1 where the picture is at least half white and will be
/// repainted, 0 where it is kept. Colours count by their luma (ITU-R BT.601).
///
/// # Errors
/// The picture is empty.
pub fn to_mask(image: &RgbImage) -> Result<Tensor> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    // 127.5, the half, lies between two levels.
    let values = image
        .as_raw()
        .as_chunks()
        .0
        .iter()
        .map(|p| if luma(p) >= 128 { 1.0f32 } else { 0.0 })
        .collect();
    Tensor::from_vec(values, [1, h, w, 1])
}

/// Pictures from the autoencoder's output, [B, H, W, 3] in [-1, 1] (clipped to it), any float dtype; one band is grey.
///
/// # Errors
/// Those of [`Picture::of_tensor`]; another number of bands.
pub fn from_tensor(tensor: &Tensor) -> Result<Vec<RgbImage>> {
    Picture::of_tensor(tensor)?.iter().map(Picture::rgb).collect()
}

/// Width and height of the [`grid`] of `n` pictures of `w` x `h` pixels.
///
/// # Errors
/// More than 65,535 pixels a side.
pub fn grid_size(n: usize, w: u32, h: u32) -> Result<(u32, u32)> {
    let columns = (1..).find(|c| c * c >= n).unwrap_or(1);
    let rows = n.div_ceil(columns);
    let side =
        |n: usize, length: u32| u32::try_from(n).ok()?.checked_mul(length).filter(|s| *s <= 0xffff);
    match (side(columns, w), side(rows, h)) {
        (Some(width), Some(height)) => Ok((width, height)),
        _ => {
            let found = format!("a grid of {columns} by {rows} pictures of {w}x{h}");
            Err(Error::argument("grid", found, "at most 65,535 pixels a side"))
        }
    }
}

/// Lays pictures out in rows, as square as possible; places left over are black.
///
/// # Errors
/// No pictures, pictures of different sizes, or a grid of more than 65,535 pixels a side.
pub fn grid(images: &[RgbImage]) -> Result<RgbImage> {
    let Some(first) = images.first() else {
        return Err(Error::argument("grid", "a grid of no pictures", "at least one"));
    };
    let (w, h) = first.dimensions();
    if let Some(other) = images.iter().find(|i| i.dimensions() != (w, h)) {
        let found = format!("a grid of {w}x{h} and {}x{}", other.width(), other.height());
        return Err(Error::argument("grid", found, "all pictures have one size"));
    }
    if w.min(h) == 0 {
        let found = format!("a grid of pictures of {w}x{h}");
        return Err(Error::argument("grid", found, "at least one pixel each"));
    }
    let (width, height) = grid_size(images.len(), w, h)?;
    let columns = (width / w) as usize;
    let mut out = RgbImage::new(width, height);
    for (i, image) in images.iter().enumerate() {
        let (column, row) = (i % columns, i / columns);
        ::image::imageops::replace(
            &mut out,
            image,
            column as i64 * i64::from(w),
            row as i64 * i64::from(h),
        );
    }
    Ok(out)
}

/// What a pixel of a resized picture is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Of Lanczos, a = 3.
    Lanczos,
    /// Cubic, a = -0.5.
    Bicubic,
}

impl Filter {
    /// Where it ends, in pixels of the coarser of both grids.
    fn support(self) -> f64 {
        match self {
            Self::Lanczos => 3.0,
            Self::Bicubic => 2.0,
        }
    }

    fn at(self, x: f64) -> f64 {
        match (self, x.abs()) {
            (Self::Lanczos, _) => lanczos(x),
            (Self::Bicubic, x) if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            (Self::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
            (Self::Bicubic, _) => 0.0,
        }
    }
}

/// Resizes with a Lanczos filter (a = 3), as [`resize_with`] does.
///
/// # Errors
/// As for [`resize_with`].
pub fn resize(image: &RgbImage, width: u32, height: u32) -> Result<RgbImage> {
    resize_with(image, width, height, Filter::Lanczos)
}

/// Resizes level for level as Pillow's `Image.resize` before version 13, which goes through columns first where the height
/// shrinks: up to one in ten levels is then another, by one or two.
///
/// Rows first, then columns, each rounded to 8 bits; the filter widens with the factor when shrinking; weights
/// are 22-bit fixed point (`src/libImaging/Resample.c` of Pillow).
///
/// # Errors
/// A side of 0, or of more than 16,384.
pub fn resize_with(image: &RgbImage, width: u32, height: u32, filter: Filter) -> Result<RgbImage> {
    if width.min(height) == 0 || width.max(height) > MAX_SIDE {
        return Err(Error::argument(
            "size",
            format!("{width}x{height}"),
            format!("1 to {MAX_SIDE} pixels a side"),
        ));
    }
    if image.width().min(image.height()) == 0 {
        return Err(Error::argument("picture", "an empty picture", "at least one pixel"));
    }
    let (w, h) = (image.width() as usize, image.height() as usize);
    let (new_w, new_h) = (width as usize, height as usize);
    let mut pixels = image.as_raw().clone();
    if new_w != w {
        let taps = taps(w, new_w, filter);
        let mut wide = Vec::with_capacity(h * new_w * 3);
        for row in pixels.chunks_exact(w * 3) {
            for tap in &taps {
                wide.extend(tap.apply(|x| [row[3 * x], row[3 * x + 1], row[3 * x + 2]]));
            }
        }
        pixels = wide; // [h, new_w, 3]
    }
    if new_h != h {
        let mut tall = Vec::with_capacity(new_h * new_w * 3);
        for tap in taps(h, new_h, filter) {
            for x in 0..new_w {
                tall.extend(tap.apply(|y| {
                    let at = 3 * (y * new_w + x);
                    [pixels[at], pixels[at + 1], pixels[at + 2]]
                }));
            }
        }
        pixels = tall; // [new_h, new_w, 3]
    }
    RgbImage::from_raw(width, height, pixels)
        .ok_or_else(|| Error::argument("size", format!("{width}x{height}"), "fewer pixels"))
}

/// Bits behind the point of a weight: an 8-bit level times a weight below 2 then fits 32 bits with its sign.
const PRECISION: u32 = 32 - 8 - 2;

/// The source pixels that one target pixel is made of.
struct Tap {
    first: usize,
    weights: Vec<i32>,
}

impl Tap {
    fn apply(&self, pixel: impl Fn(usize) -> [u8; 3]) -> [u8; 3] {
        let mut sums = [1i32 << (PRECISION - 1); 3]; // one half: rounds the shift below
        for (i, &weight) in self.weights.iter().enumerate() {
            let p = pixel(self.first + i);
            for (sum, level) in sums.iter_mut().zip(p) {
                *sum += i32::from(level) * weight;
            }
        }
        sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
    }
}

fn taps(from: usize, to: usize, filter: Filter) -> Vec<Tap> {
    let fixed = |w: &f64| (w * f64::from(1u32 << PRECISION)).round() as i32;
    let tap = |(first, weights): (usize, Vec<f64>)| Tap {
        first,
        weights: weights.iter().map(fixed).collect(),
    };
    weights(from, to, filter).into_iter().map(tap).collect()
}

/// The pixels of a row of `from` that each of a row of `to` is made of: the first, and what each counts, 1 in all.
pub(super) fn weights(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<f64>)> {
    let scale = from as f64 / to as f64;
    let widening = scale.max(1.0);
    let support = filter.support() * widening;
    (0..to)
        .map(|i| {
            let center = (i as f64 + 0.5) * scale;
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights: Vec<f64> = (first..end)
                .map(|x| filter.at((x as f64 - center + 0.5) * (1.0 / widening)))
                .collect();
            let total: f64 = weights.iter().sum();
            (first, weights.iter().map(|w| w / total).collect())
        })
        .collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| {
        if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) }
    };
    if (-3.0..3.0).contains(&x) { sinc(x) * sinc(x / 3.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::TensorSource;
    use crate::io::geotiff::{Cog, CogWriter, SampleKind};
    use crate::io::safetensors::SafeTensors;

    fn golden() -> SafeTensors {
        SafeTensors::open(
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/images.safetensors"),
        )
        .unwrap()
    }

    fn picture(golden: &SafeTensors, name: &str) -> RgbImage {
        let t = golden.read(name).unwrap();
        RgbImage::from_raw(t.dim(1) as u32, t.dim(0) as u32, t.to_vec().unwrap()).unwrap()
    }

    #[test]
    fn pictures_and_masks_become_the_tensors_of_diffusers() {
        let golden = golden();
        let (image, mask) = (picture(&golden, "picture"), picture(&golden, "mask"));
        let mut compared = 0;
        for name in golden.names() {
            let Some((kind, size)) = name.split_once('.') else { continue };
            let (h, w) = size.split_once('x').unwrap();
            let (w, h) = (w.parse().unwrap(), h.parse().unwrap());
            let found = match kind {
                "image" => to_tensor(&resize(&image, w, h).unwrap()).unwrap(),
                _ => to_mask(&resize(&mask, w, h).unwrap()).unwrap(),
            };
            let expected = golden.read(&name).unwrap();
            assert_eq!(found.dims(), expected.dims(), "{name}");
            // Same levels, same arithmetic: no tolerance.
            assert_eq!(found.to_vec::<f32>().unwrap(), expected.to_vec::<f32>().unwrap(), "{name}");
            compared += 1;
        }
        assert_eq!(compared, 14);
    }

    #[test]
    fn sixteen_bits_are_scaled_to_eight() {
        let levels = [0u16, 128, 129, 385, 386, 10_000, 32_767, 32_768, 65_406, 65_407, 65_535];
        let picture =
            ::image::ImageBuffer::from_fn(11, 1, |x, _| ::image::Luma([levels[x as usize]]));
        let mut file = Vec::new();
        let format = ::image::ImageFormat::Png;
        DynamicImage::ImageLuma16(picture).write_to(&mut Cursor::new(&mut file), format).unwrap();
        let found = decode(&file, Path::new("picture.png")).unwrap();
        for (x, level) in levels.into_iter().enumerate() {
            let expected = (f64::from(level) * 255.0 / 65_535.0).round() as u8;
            assert_eq!(found.get_pixel(x as u32, 0).0, [expected; 3], "{level}");
        }
    }

    /// A TIFF says what its numbers are: reflectances are no picture, however their file is called.
    #[test]
    fn rasters_that_are_no_pictures_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        let found = |bands: usize, samples: SampleKind, nodata, alpha| {
            let cog = Cog { tile: 16, nodata, alpha, ..Cog::new(3, 2, bands, samples) };
            let mut writer = CogWriter::create(&path, cog, true).unwrap();
            writer.write_rows(&vec![7; 6 * bands * samples.size()]).unwrap();
            writer.finish().unwrap();
            open(&path).map_err(|error| error.to_string())
        };
        for (bands, alpha) in [(1, false), (3, false), (4, true)] {
            let picture = found(bands, SampleKind::U8, None, alpha).unwrap();
            assert!(picture.pixels().all(|pixel| pixel.0 == [7; 3]), "{bands}");
        }
        for (bands, samples, nodata, words) in [
            (1, SampleKind::U16, None, "1 bands of UInt16"),
            (3, SampleKind::U16, None, "3 bands of UInt16"),
            (3, SampleKind::F32, None, "3 bands of Float32"),
            (4, SampleKind::U8, None, "4 bands of Byte"),
            (3, SampleKind::U8, Some(0.0), "where 0 is no data"),
        ] {
            let told = found(bands, samples, nodata, false).unwrap_err();
            assert!(told.contains(words) && told.contains("a.bin"), "{told}");
        }
        // What the reader of rasters does not know is refused as well.
        let mut file = Cursor::new(Vec::new());
        let reflectances = ::image::ImageBuffer::from_pixel(2, 2, ::image::Luma([900u16]));
        let format = ::image::ImageFormat::Tiff;
        DynamicImage::ImageLuma16(reflectances).write_to(&mut file, format).unwrap();
        let told = decode(&file.into_inner(), Path::new("x.tif")).unwrap_err().to_string();
        assert!(told.contains("UInt16") && told.contains("gdal_translate"), "{told}");
    }

    #[test]
    fn memory_is_bounded_before_it_is_taken() {
        let header = |color, depth, side| {
            let mut file = Vec::new();
            let mut encoder = ::png::Encoder::new(&mut file, side, side);
            encoder.set_color(color);
            encoder.set_depth(depth);
            let mut writer = encoder.write_header().unwrap();
            writer.write_chunk(::png::chunk::IDAT, &[0]).unwrap();
            drop(writer);
            decode(&file, Path::new("large.png")).unwrap_err().to_string()
        };
        use ::png::{BitDepth::Eight, BitDepth::Sixteen, ColorType::Rgb, ColorType::Rgba};
        let error = header(Rgb, Sixteen, MAX_SIDE);
        assert!(error.contains("large.png") && error.contains("48 bits each"), "{error}");
        assert!(error.contains("2415919104 bytes"), "{error}");
        assert!(header(Rgba, Eight, 12_800).contains("32 bits each"));
        // Within the bound it is the pixels that are missing.
        assert!(!header(Rgb, Eight, 64).contains("bits each"));
    }

    #[cfg(unix)]
    #[test]
    fn a_pipe_is_refused_rather_than_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe.png");
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        for error in [
            open(&path).unwrap_err(),
            crate::io::png::read_texts(&path).unwrap_err(),
            SafeTensors::open(&path).err().unwrap(),
        ] {
            let error = error.to_string();
            assert!(error.contains("pipe.png") && error.contains("a regular file"), "{error}");
        }
    }

    #[test]
    fn tensors_become_the_pictures_of_diffusers() {
        let golden = golden();
        let decoded = golden.read("decoded").unwrap();
        assert_eq!(from_tensor(&decoded).unwrap(), [picture(&golden, "u8")]);
    }

    #[test]
    fn what_is_not_finite_is_no_picture() {
        let t = Tensor::from_vec(vec![0.0, f32::NAN, 1.0], [1, 1, 1, 3]).unwrap();
        assert!(matches!(from_tensor(&t), Err(Error::NotFinite(_))));
        let t = Tensor::from_vec(vec![0.0f32; 4], [1, 1, 1, 4]).unwrap();
        assert!(from_tensor(&t).unwrap_err().to_string().contains("4 bands"));
    }

    #[test]
    fn a_grid_is_as_square_as_possible() {
        let images: Vec<RgbImage> =
            (1..=5u8).map(|i| RgbImage::from_pixel(2, 3, ::image::Rgb([i, i, i]))).collect();
        let g = grid(&images).unwrap();
        assert_eq!(g.dimensions(), (6, 6));
        let at = |x, y| g.get_pixel(x, y).0[0];
        assert_eq!(
            [at(0, 0), at(2, 2), at(5, 0), at(0, 3), at(3, 5), at(4, 3)],
            [1, 2, 3, 4, 5, 0]
        );
        assert_eq!(grid(&images[..1]).unwrap().dimensions(), (2, 3));
        let refused = |images: &[RgbImage]| grid(images).unwrap_err().to_string();
        assert!(refused(&[]).contains("no pictures"));
        assert!(refused(&[RgbImage::new(0, 0)]).contains("0x0"));
        assert!(refused(&[RgbImage::new(1, 1), RgbImage::new(2, 1)]).contains("1x1 and 2x1"));
    }

    #[test]
    fn sizes_are_bounded() {
        let image = RgbImage::new(3, 3);
        for (w, h) in [(0, 8), (8, 0), (MAX_SIDE + 1, 8)] {
            let error = resize(&image, w, h).unwrap_err().to_string();
            assert!(error.contains(&format!("{w}x{h}")) && error.contains("16384"), "{error}");
        }
        let error = resize(&RgbImage::new(0, 0), 8, 8).unwrap_err().to_string();
        assert!(error.contains("an empty picture"), "{error}");
    }
}
