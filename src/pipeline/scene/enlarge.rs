//! Scenes with a quarter of their pixels' size, made window by window.

use super::windows::Axis;
use super::{MAX_MEMORY, Source, Weighted, Windows, span};
use crate::error::{Error, Result};
use crate::io::geotiff::{About, SampleKind};
use crate::noise::PlacedNoise;
use crate::pipeline::super_resolution::{Draw, SCALE, Sampling, SuperResolver};
use crate::tensor::Tensor;

/// What a scene is made from, and how.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Enlargement {
    /// Numbers that stand for reflectances of 0 and of 1.
    pub scale: [f64; 2],
    /// Of the noise, which belongs to the place.
    pub seed: u64,
    /// How windows are made.
    pub sampling: Sampling,
}

impl Enlargement {
    /// Whether numbers stand for reflectances.
    ///
    /// # Errors
    /// `Argument`: they are none, or the second is no larger than the first.
    pub fn check(&self) -> Result<()> {
        let [low, high] = self.scale;
        if low.is_finite() && high.is_finite() && low < high {
            return Ok(());
        }
        let expected = "two numbers, for reflectances of 0 and of 1: the second is larger";
        Err(Error::argument("scale", format!("{low},{high}"), expected))
    }
}

/// Who is told of what is done.
pub trait Onlooker {
    /// So many steps are ahead: those of each window.
    fn start(&mut self, steps: usize);

    /// So many steps more are done.
    ///
    /// # Errors
    /// `Interrupted`, to stop.
    fn step(&mut self, steps: usize) -> Result<()>;

    /// Rows of the large scene are done, from the top on: [rows, 4 width, bands] as numbers lie in memory.
    ///
    /// # Errors
    /// What kept them from being written.
    fn rows(&mut self, numbers: &[u8]) -> Result<()>;
}

/// What stands in the large scene where there are no data: as in the scene itself, and where it is see-through 0.
pub fn nodata(about: &About) -> Option<f64> {
    about.nodata.or(about.alpha.map(|_| 0.0))
}

/// Makes a scene of [`SCALE`] pixels a side for each of `source`, in the bands that are looked at and the numbers of their
/// kind. Windows are made one by one over noise that belongs to the place, and blended as
/// [`segment`](super::segment) blends; a scene that is smaller than one is reflected. Pixels without data are 0 for the
/// network, and stay without. Neither the batch nor the number of threads changes a bit of it.
///
/// # Errors
/// Windows that the model cannot look through; settings that cannot be; a scene that cannot be read; what `onlooker` answers.
pub fn enlarge(
    source: &mut Source,
    model: &SuperResolver,
    windows: &Windows,
    how: &Enlargement,
    onlooker: &mut dyn Onlooker,
) -> Result<()> {
    windows.check(model.multiple())?;
    how.check()?;
    model.check(&how.sampling)?;
    let (width, height) = (source.about().width, source.about().height);
    let (row, pixel, bands) =
        (width * source.about().pixel(), source.about().pixel(), source.bands());
    // A model knows the size of its training: a window is never smaller.
    let axis = |len| Axis::new(len, windows, windows.size);
    let (down, across) = (axis(height), axis(width));
    let (large_down, large_across) = (down.enlarged(SCALE), across.enlarged(SCALE));
    let large_width = SCALE * width;
    let numbers = large_down.size.saturating_mul(large_width).saturating_mul(bands);
    if numbers.saturating_mul(4) > MAX_MEMORY {
        let bound =
            format!("less: rows of {large_width} pixels in {bands} bands take 8 GiB and more");
        return Err(Error::argument("window", windows.size, bound));
    }
    let steps = how.sampling.steps;
    onlooker.start(down.starts.len() * across.starts.len() * steps);
    // Of the large rows from `top` on, as many as a window has: [rows, 4 width, bands]
    let mut sums = vec![0.0_f32; numbers];
    let mut top = 0;
    let written = Written::new(source.about(), how.scale, bands);
    for (r, start) in down.starts.iter().enumerate() {
        // 1. the rows that these windows see
        let (first, last) = span(down.pixels(r));
        let pixels = source.rows(first, last - first + 1)?;
        let at = |y: usize, x: usize| &pixels[(y - first) * row + x * pixel..][..pixel];
        let vertical = large_down.weights(r);
        let columns: Vec<usize> = (0..across.starts.len()).collect();
        for some in columns.chunks(windows.batch) {
            // 2. windows; one without any data is not made
            let (mut images, mut data, mut seen) = (Vec::new(), Vec::new(), Vec::new());
            for &c in some {
                let columns: Vec<usize> = across.pixels(c).collect();
                let begun = (images.len(), data.len());
                for y in down.pixels(r) {
                    for &x in &columns {
                        let pixel = at(y, x);
                        let is_data = source.is_data(pixel);
                        data.push(is_data);
                        let level = |number| if is_data { how.level(number) } else { 0.0 };
                        images.extend(source.numbers(pixel).map(level));
                    }
                }
                if data[begun.1..].contains(&true) {
                    seen.push(c);
                } else {
                    images.truncate(begun.0);
                    data.truncate(begun.1);
                }
            }
            onlooker.step((some.len() - seen.len()) * steps)?;
            if seen.is_empty() {
                continue;
            }
            // 3. made, and added where they belong
            let shape = [seen.len(), down.size, across.size, bands];
            let images = Tensor::from_vec(images, shape)?;
            let corners: Vec<[isize; 2]> =
                seen.iter().map(|&c| [*start, across.starts[c]]).collect();
            let size = [down.size, across.size, model.latent_channels()];
            let mut noise = |draw| placed(how.seed, draw, &corners, size);
            let mut proceed = || onlooker.step(seen.len());
            let made = model.enlarge(&images, &data, &how.sampling, &mut noise, &mut proceed)?;
            let made = made.to_vec::<f32>()?; // [B, 4 h, 4 w, bands]
            let each = made.chunks_exact(large_down.size * large_across.size * bands);
            for (found, &c) in each.zip(&seen) {
                let window = Weighted {
                    found,
                    start: [large_down.starts[r], large_across.starts[c]],
                    weights: [&vertical, &large_across.weights(c)],
                };
                window.add(&mut sums, [top, SCALE * height, large_width], bands);
            }
        }
        // 4. rows that no later window reaches
        let next =
            large_down.starts.get(r + 1).map_or(SCALE * height, |next| (*next).max(0) as usize);
        let done = next - top;
        let mut rows =
            Vec::with_capacity(done * large_width * bands * source.about().samples.size());
        for (y, sums) in (top..next).zip(sums.chunks_exact(large_width * bands)) {
            for (x, levels) in sums.chunks_exact(bands).enumerate() {
                let is_data = source.is_data(at(y / SCALE, x / SCALE));
                written.push(is_data.then_some(levels), &mut rows);
            }
        }
        onlooker.rows(&rows)?;
        sums.copy_within(done * large_width * bands.., 0);
        let rest = sums.len() - done * large_width * bands;
        sums[rest..].fill(0.0);
        top = next;
    }
    Ok(())
}

impl Enlargement {
    /// The reflectance that a number stands for.
    fn level(&self, number: u16) -> f32 {
        let [low, high] = self.scale;
        ((f64::from(number) - low) / (high - low)) as f32
    }
}

/// Noise [B, h, w, channels] of windows of `size` with these corners: a field of its own for each draw.
fn placed(seed: u64, draw: Draw, corners: &[[isize; 2]], size: [usize; 3]) -> Result<Tensor> {
    let [h, w, channels] = size;
    let field = PlacedNoise::new(seed);
    let draw = match draw {
        Draw::Condition => 0,
        Draw::Start => 1,
        Draw::Step(i) => 2 + i as u32,
    };
    let mut values = vec![0.0; corners.len() * h * w * channels];
    for (window, [top, left]) in values.chunks_exact_mut(h * w * channels).zip(corners) {
        for (i, place) in window.chunks_exact_mut(channels).enumerate() {
            // Beyond the ends of a scene there are places, too; a coordinate is one of 2^32.
            let (y, x) = (top + (i / w) as isize, left + (i % w) as isize);
            field.fill(draw, y as u32, x as u32, place);
        }
    }
    Tensor::from_vec(values, [corners.len(), h, w, channels])
}

/// How reflectances are written.
struct Written {
    samples: SampleKind,
    scale: [f64; 2],
    /// What stands where there are no data, where there is anything.
    nodata: Option<u16>,
    bands: usize,
}

impl Written {
    fn new(about: &About, scale: [f64; 2], bands: usize) -> Self {
        // A number that the samples cannot be says nothing of them.
        let most = most(about.samples);
        let whole =
            |number: &f64| (0.0..=f64::from(most)).contains(number) && number.fract() == 0.0;
        let nodata = nodata(about).filter(whole).map(|number| number as u16);
        Self { samples: about.samples, scale, nodata, bands }
    }

    /// Puts a pixel behind `out`: of these reflectances, or of none.
    fn push(&self, levels: Option<&[f32]>, out: &mut Vec<u8>) {
        let most = most(self.samples);
        let [low, high] = self.scale;
        let number = |level: &f32| {
            let number = low + f64::from(*level) * (high - low);
            number.round_ties_even().clamp(0.0, f64::from(most)) as u16
        };
        let mut numbers: Vec<u16> = match levels {
            Some(levels) => levels.iter().map(number).collect(),
            None => vec![self.nodata.unwrap_or_default(); self.bands],
        };
        // What has data stays so: a pixel without has none in any band.
        if let (Some(_), Some(nodata)) = (levels, self.nodata)
            && numbers.iter().all(|number| *number == nodata)
        {
            numbers[0] = if nodata == most { nodata - 1 } else { nodata + 1 };
        }
        for number in numbers {
            match self.samples {
                SampleKind::U16 => out.extend(number.to_ne_bytes()),
                _ => out.push(number as u8),
            }
        }
    }
}

/// The largest number of a kind, of those that a [`Source`] has.
fn most(samples: SampleKind) -> u16 {
    if samples == SampleKind::U16 { u16::MAX } else { u8::MAX.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(samples: SampleKind, nodata: Option<u16>, levels: Option<&[f32]>) -> Vec<f64> {
        let mut out = Vec::new();
        Written { samples, scale: [0.0, 10_000.0], nodata, bands: 2 }.push(levels, &mut out);
        samples.numbers(&out)
    }

    #[test]
    fn reflectances_become_numbers_of_the_kind() {
        let of = |levels: &[f32]| written(SampleKind::U16, None, Some(levels));
        assert_eq!(of(&[0.1234, 1.0]), [1234.0, 10_000.0]);
        assert_eq!(of(&[0.0, 100.0]), [0.0, 65_535.0]);
        assert_eq!(written(SampleKind::U8, None, Some(&[0.0101, 1.0])), [101.0, 255.0]);
    }

    #[test]
    fn numbers_are_read_by_the_scale_that_they_are_written_by() {
        let sampling = Sampling { steps: 1, eta: 0.0, temperature: 1.0, match_histograms: true };
        let how = Enlargement { scale: [1000.0, 11_000.0], seed: 0, sampling };
        assert_eq!([1000, 6000, 11_000, 0].map(|number| how.level(number)), [0.0, 0.5, 1.0, -0.1]);
        let mut out = Vec::new();
        let written =
            Written { samples: SampleKind::U16, scale: how.scale, nodata: None, bands: 2 };
        written.push(Some(&[how.level(1234), how.level(9999)]), &mut out);
        assert_eq!(SampleKind::U16.numbers(&out), [1234.0, 9999.0]);
    }

    #[test]
    fn what_has_data_is_never_written_as_none() {
        let of = |nodata, levels: Option<&[f32]>| written(SampleKind::U16, Some(nodata), levels);
        assert_eq!(of(0, None), [0.0, 0.0]);
        assert_eq!(of(0, Some(&[0.0, 0.0])), [1.0, 0.0]);
        assert_eq!(of(0, Some(&[0.0, 0.5])), [0.0, 5000.0]);
        assert_eq!(of(65_535, Some(&[9.0, 9.0])), [65_534.0, 65_535.0]);
    }

    #[test]
    fn noise_belongs_to_the_place() {
        let at = |draw, corner: [isize; 2], size| {
            placed(7, draw, &[corner], size).unwrap().to_vec::<f32>().unwrap()
        };
        let large = at(Draw::Start, [-3, 5], [6, 7, 4]);
        let small = at(Draw::Start, [-1, 8], [2, 3, 4]);
        for y in 0..2 {
            let row = &large[((y + 2) * 7 + 3) * 4..][..12];
            assert_eq!(row, &small[y * 12..][..12]);
        }
        let others = [Draw::Condition, Draw::Step(0), Draw::Step(1)]
            .map(|draw| at(draw, [-3, 5], [6, 7, 4]));
        assert!(others.iter().all(|other| other.iter().zip(&large).all(|(a, b)| a != b)));
        let both = placed(7, Draw::Start, &[[-1, 8], [-3, 5]], [2, 3, 4]).unwrap();
        assert_eq!(both.to_vec::<f32>().unwrap()[..24], small[..]);
    }
}
