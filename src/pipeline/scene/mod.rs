//! Scenes of any size, looked at through windows that overlap.
//!
//! Memory holds a row of windows: the scene's pixels, and for each pixel the probabilities of its classes, summed over windows
//! with weights that are 1 together. A row of pixels is done, and let go of, when no later window reaches it.

mod enlarge;
mod overlay;
mod source;
mod windows;

pub use enlarge::{Enlargement, Onlooker, enlarge, nodata};
pub use overlay::{Color, Overlay, Palette, legend};
pub use source::Source;
pub use windows::Windows;

use image::RgbImage;

use super::classifier::Classifier;
use super::pixel_classifier::PixelClassifier;
use crate::data::masks::Normal;
use crate::data::moments::Moments;
use crate::error::{Error, Result};
use windows::Axis;

/// What stands in a mask where there are no data.
pub const NODATA: u8 = 255;

/// Rows that are read at a time where nothing depends on windows.
const ROWS: usize = 64;

/// Bytes that sums take, at most.
const MAX_MEMORY: usize = 8 << 30;

/// Rows of a mask that are done.
pub struct Rows<'a> {
    /// What they are of.
    pub source: &'a Source,
    /// The first of them, in pixels of the scene.
    pub y: usize,
    /// Pixels of the scene, down and across, that have one class.
    pub cell: usize,
    /// Classes, [rows / cell, width / cell], rounded up; [`NODATA`] where there are none.
    pub classes: &'a [u8],
    /// The scene's rows, as they are in its file.
    pub pixels: &'a [u8],
}

/// Who is told of what is done.
pub trait Watcher {
    /// So many windows are ahead.
    fn start(&mut self, windows: usize);

    /// So many windows more are done.
    ///
    /// # Errors
    /// `Interrupted`, to stop.
    fn step(&mut self, windows: usize) -> Result<()>;

    /// Rows are done, one after the other, from the top on.
    ///
    /// # Errors
    /// What kept them from being written.
    fn rows(&mut self, rows: Rows) -> Result<()>;
}

/// Tells the class of each pixel. Its probabilities are the mean of those of the windows over it, by weights that fall off
/// where windows overlap as a raised cosine, 0 at a window's edge; its class is the likeliest, the first of equals. A model that
/// normalises by picture has the scene read once before, for mean and deviation of its pixels with data. Neither the batch nor the number of threads changes a bit of it.
///
/// # Errors
/// Windows that the model cannot look through; a scene that cannot be read; what `watcher` answers.
pub fn segment(
    source: &mut Source,
    model: &PixelClassifier,
    windows: &Windows,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    windows.check(model.multiple())?;
    let normals = match model.normalize() {
        Normal::Data => model.mean().iter().copied().zip(model.std().iter().copied()).collect(),
        Normal::Picture => normals(source, watcher)?,
    };
    let scale: Vec<(f32, f32)> =
        normals.into_iter().map(|(mean, deviation)| (mean, 1.0 / deviation)).collect();
    let cut = (windows, model.multiple(), model.classes().len());
    let see = &mut |images, shape| model.probabilities(images, shape);
    blend(source, &scale, cut, see, watcher)
}

/// Mean and deviation of each band that is looked at, over the pixels that have data.
fn normals(source: &mut Source, watcher: &mut dyn Watcher) -> Result<Vec<(f32, f32)>> {
    let (height, pixel) = (source.about().height, source.about().pixel());
    let mut all = vec![Moments::default(); source.bands()];
    for first in (0..height).step_by(ROWS) {
        let rows = source.rows(first, ROWS.min(height - first))?;
        for pixel in rows.chunks_exact(pixel).filter(|pixel| source.is_data(pixel)) {
            all.iter_mut().zip(source.levels(pixel)).for_each(|(own, level)| own.add(level));
        }
        watcher.step(0)?;
    }
    Ok(all.into_iter().map(Moments::normal).collect())
}

/// As [`segment`], of anything that makes probabilities [B, H, W, classes] of images [B, H, W, bands], whose levels are
/// normalised by `scale`.
fn blend(
    source: &mut Source,
    scale: &[(f32, f32)],
    (windows, multiple, classes): (&Windows, usize, usize),
    see: &mut dyn FnMut(Vec<f32>, [usize; 4]) -> Result<Vec<f32>>,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    let (width, height) = (source.about().width, source.about().height);
    let (row, pixel) = (width * source.about().pixel(), source.about().pixel());
    let down = Axis::new(height, windows, multiple);
    let across = Axis::new(width, windows, multiple);
    let numbers = down.size.saturating_mul(width).saturating_mul(classes);
    if numbers.saturating_mul(4) > MAX_MEMORY {
        let bound =
            format!("less: rows of {width} pixels in {classes} classes take 8 GiB and more");
        return Err(Error::argument("window", windows.size, bound));
    }
    watcher.start(down.starts.len() * across.starts.len());
    // Of the rows from `top` on, as many as a window has: [rows, width, classes]
    let mut sums = vec![0.0_f32; down.size * width * classes];
    let mut top = 0;
    for (r, start) in down.starts.iter().enumerate() {
        // 1. the rows that these windows see
        let (first, last) = span(down.pixels(r));
        let pixels = source.rows(first, last - first + 1)?;
        let at = |y: usize, x: usize| &pixels[(y - first) * row + x * pixel..][..pixel];
        let vertical = down.weights(r);
        let columns: Vec<usize> = (0..across.starts.len()).collect();
        for some in columns.chunks(windows.batch) {
            // 2. windows; one without any data tells nothing
            let mut images = Vec::new();
            let mut seen = Vec::new();
            for &c in some {
                let mut data = false;
                let columns: Vec<usize> = across.pixels(c).collect();
                for y in down.pixels(r) {
                    for &x in &columns {
                        let pixel = at(y, x);
                        data = data || source.is_data(pixel);
                        let levels = source.levels(pixel).zip(scale);
                        images
                            .extend(levels.map(|(level, (mean, factor))| (level - mean) * factor));
                    }
                }
                if data {
                    seen.push(c);
                } else {
                    images.truncate(seen.len() * down.size * across.size * scale.len());
                }
            }
            // 3. what is seen, added where it belongs
            if !seen.is_empty() {
                let shape = [seen.len(), down.size, across.size, scale.len()];
                let found = see(images, shape)?; // [B, H, W, classes]
                for (found, &c) in found.chunks_exact(down.size * across.size * classes).zip(&seen)
                {
                    let window = Weighted {
                        found,
                        start: [*start, across.starts[c]],
                        weights: [&vertical, &across.weights(c)],
                    };
                    window.add(&mut sums, [top, height, width], classes);
                }
            }
            watcher.step(some.len())?;
        }
        // 4. rows that no later window reaches
        let next = down.starts.get(r + 1).map_or(height, |next| (*next).max(0) as usize);
        let done = next - top;
        let mut found = Vec::with_capacity(done * width);
        for (y, sums) in (top..next).zip(sums.chunks_exact(width * classes)) {
            for (x, sums) in sums.chunks_exact(classes).enumerate() {
                let class = if source.is_data(at(y, x)) { likeliest(sums) } else { NODATA };
                found.push(class);
            }
        }
        let own = &pixels[(top - first) * row..(next - first) * row];
        watcher.rows(Rows { source, y: top, cell: 1, classes: &found, pixels: own })?;
        sums.copy_within(done * width * classes.., 0);
        let rest = sums.len() - done * width * classes;
        sums[rest..].fill(0.0);
        top = next;
    }
    Ok(())
}

/// The smallest and the largest.
fn span(pixels: impl Iterator<Item = usize>) -> (usize, usize) {
    pixels.fold((usize::MAX, 0), |(first, last), at| (first.min(at), last.max(at)))
}

/// The class with the largest probability, the first of equals.
fn likeliest(probabilities: &[f32]) -> u8 {
    let mut best = 0;
    for (class, p) in probabilities.iter().enumerate() {
        if *p > probabilities[best] {
            best = class;
        }
    }
    best as u8
}

/// Probabilities in a window, [H, W, classes].
struct Weighted<'a> {
    found: &'a [f32],
    start: [isize; 2],
    /// Of rows and columns.
    weights: [&'a [f32]; 2],
}

impl Weighted<'_> {
    /// Adds them to the sums of the rows from `top` on of a scene of `height` and `width`.
    fn add(&self, sums: &mut [f32], [top, height, width]: [usize; 3], classes: usize) {
        let [vertical, horizontal] = self.weights;
        let rows = self.found.chunks_exact(horizontal.len() * classes);
        let inside = |at: isize, end: usize| usize::try_from(at).ok().filter(|at| *at < end);
        for ((i, found), v) in rows.enumerate().zip(vertical) {
            let Some(y) = inside(self.start[0] + i as isize, height) else { continue };
            for ((j, found), h) in found.chunks_exact(classes).enumerate().zip(horizontal) {
                let Some(x) = inside(self.start[1] + j as isize, width) else { continue };
                let sums = &mut sums[((y - top) * width + x) * classes..][..classes];
                sums.iter_mut().zip(found).for_each(|(sum, p)| *sum += v * h * p);
            }
        }
    }
}

/// Cells of a coarse mask that a scene of so many pixels has.
pub fn cells(pixels: usize, windows: &Windows) -> usize {
    pixels.div_ceil(windows.size - windows.overlap)
}

/// Tells the class of each cell of a scene: of `size` - `overlap` pixels a side, in the middle of the window of `size` that
/// `classifier` sees. Ends are reflected; a cell whose window has no data has none.
///
/// # Errors
/// Numbers other than of 8 bits; as [`segment`].
pub fn classify(
    source: &mut Source,
    classifier: &Classifier,
    windows: &Windows,
    watcher: &mut dyn Watcher,
) -> Result<()> {
    windows.check(1)?;
    if classifier.classes().len() > 255 {
        let found = format!("{} classes", classifier.classes().len());
        return Err(Error::argument("model", found, "a classifier of at most 255 classes"));
    }
    if source.about().samples != crate::io::geotiff::SampleKind::U8 {
        let advice = "Scale it to what the classifier was trained on: gdal_translate -ot Byte -scale MIN MAX IN OUT.";
        let found = source.about().samples.name();
        return Err(Error::file(source.path(), "numbers", "8 bits", found, advice));
    }
    let (width, height) = (source.about().width, source.about().height);
    let (row, pixel) = (width * source.about().pixel(), source.about().pixel());
    let (down, across) = (Axis::cells(height, windows), Axis::cells(width, windows));
    watcher.start(down.starts.len() * across.starts.len());
    let columns: Vec<usize> = (0..across.starts.len()).collect();
    for r in 0..down.starts.len() {
        let (first, last) = span(down.pixels(r));
        let pixels = source.rows(first, last - first + 1)?;
        let mut classes = vec![NODATA; across.starts.len()];
        for some in columns.chunks(windows.batch) {
            let (mut seen, mut pictures) = (Vec::new(), Vec::new());
            for &c in some {
                let mut data = false;
                let mut levels = Vec::with_capacity(windows.size * windows.size * 3);
                let columns: Vec<usize> = across.pixels(c).collect();
                for y in down.pixels(r) {
                    for &x in &columns {
                        let pixel = &pixels[(y - first) * row + x * pixel..][..pixel];
                        data = data || source.is_data(pixel);
                        levels.extend(
                            source.levels(pixel).map(|level| (level * 255.0).round() as u8),
                        );
                    }
                }
                let side = windows.size as u32;
                if let (true, Some(picture)) = (data, RgbImage::from_raw(side, side, levels)) {
                    seen.push(c);
                    pictures.push(picture);
                }
            }
            for (c, found) in seen.into_iter().zip(classifier.classify(&pictures)?) {
                classes[c] = likeliest(&found);
            }
            watcher.step(some.len())?;
        }
        let cell = windows.size - windows.overlap;
        let (top, end) = (r * cell, ((r + 1) * cell).min(height));
        let own = &pixels[(top - first) * row..(end - first) * row];
        watcher.rows(Rows { source, y: top, cell, classes: &classes, pixels: own })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
