//! Pictures of any number of bands as models draw them, and what their numbers stand for in files.

use std::fmt;
use std::str::FromStr;

use ::image::RgbImage;

use super::geotiff::{SampleKind, Units};
use super::image::{Filter, MAX_SIDE, weights};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A picture of any bands, its numbers as models have them: -1 to 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Picture {
    height: usize,
    width: usize,
    bands: usize,
    /// [H, W, C]
    values: Vec<f32>,
    nodata: Option<Nodata>,
}

/// Numbers of a picture that are none.
#[derive(Clone, Debug, PartialEq)]
pub struct Nodata {
    /// What stands for them in files.
    pub value: f64,
    /// Which they are; [H, W, C].
    pub missing: Vec<bool>,
}

impl Picture {
    /// Of numbers [H, W, C]. What `nodata` says is missing counts as the mean of its band, until the picture is written: that
    /// changes the least in a network's eyes.
    ///
    /// # Errors
    /// `Argument`: no pixels, or other numbers than so many; a number that is none, and is not missing.
    pub fn new(
        [height, width, bands]: [usize; 3],
        mut values: Vec<f32>,
        nodata: Option<Nodata>,
    ) -> Result<Self> {
        let numbers = [height, width, bands].iter().try_fold(1_usize, |n, &x| n.checked_mul(x));
        let missing = nodata.as_ref().map_or(values.len(), |nodata| nodata.missing.len());
        if values.is_empty() || numbers != Some(values.len()) || missing != values.len() {
            let found = format!("{} numbers, {missing} of them told apart", values.len());
            let expected = format!("{height}x{width} pixels of {bands} bands");
            return Err(Error::argument("picture", found, expected));
        }
        if let Some(Nodata { missing, .. }) = &nodata {
            let there = |i: &usize| !missing[*i];
            for band in 0..bands {
                let places = || (band..missing.len()).step_by(bands);
                let count = places().filter(there).count();
                let sum: f64 = places().filter(there).map(|i| f64::from(values[i])).sum();
                let mean = if count == 0 { 0.0 } else { (sum / count as f64) as f32 };
                places().filter(|i| missing[*i]).for_each(|i| values[i] = mean);
            }
        }
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Err(Error::argument("picture", value, "finite numbers"));
        }
        Ok(Self { height, width, bands, values, nodata })
    }

    /// Of 8 bits.
    ///
    /// # Errors
    /// `Argument`: no pixels.
    pub fn of_rgb(image: &RgbImage) -> Result<Self> {
        let size = [image.height() as usize, image.width() as usize, 3];
        let value = |&level: &u8| 2.0 * (f32::from(level) / 255.0) - 1.0;
        Self::new(size, image.as_raw().iter().map(value).collect(), None)
    }

    /// Pictures of an autoencoder's output, [B, H, W, C] of any float dtype, clipped to -1..1.
    ///
    /// # Errors
    /// Another shape, or a value that is not finite: in 16 bits an autoencoder can overflow.
    pub fn of_tensor(tensor: &Tensor) -> Result<Vec<Self>> {
        let (_, h, w, c) = tensor.dims4()?;
        if h * w * c == 0 {
            let shape = tensor.shape();
            return Err(Error::expected_shape("Picture", "decoded", "[B, H, W, C]", shape));
        }
        let values = tensor.to_dtype(DType::F32)?.to_vec::<f32>()?;
        let picture = |(i, values): (usize, &[f32])| {
            if let Some(v) = values.iter().find(|v| !v.is_finite()) {
                let advice = "The model overflowed its dtype: try --dtype bf16 or f32.";
                return Err(Error::NotFinite(format!("picture {i} holds {v}. {advice}")));
            }
            let values = values.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
            Self::new([h, w, c], values, None)
        };
        values.chunks_exact(h * w * c).enumerate().map(picture).collect()
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Columns.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Numbers of a pixel.
    pub fn bands(&self) -> usize {
        self.bands
    }

    /// Its numbers, [H, W, C].
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// What of it is missing.
    pub fn nodata(&self) -> Option<&Nodata> {
        self.nodata.as_ref()
    }

    /// As an autoencoder takes it: [1, H, W, C], f32, clipped to -1..1.
    ///
    /// # Errors
    /// None that is expected.
    pub fn to_tensor(&self) -> Result<Tensor> {
        let values = self.values.iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        Tensor::from_vec(values, [1, self.height, self.width, self.bands])
    }

    /// In 8 bits: three bands as they are, one as grey.
    ///
    /// # Errors
    /// `Argument` for another number of bands.
    pub fn rgb(&self) -> Result<RgbImage> {
        self.shown(None)
    }

    /// In 8 bits, by the bands that are named; without any as [`rgb`](Self::rgb). What is missing is black.
    ///
    /// # Errors
    /// `Argument` for a band that the picture does not have.
    pub fn shown(&self, bands: Option<ShownBands>) -> Result<RgbImage> {
        let bands = ShownBands::of(bands, self.bands)?.0.map(|band| band - 1);
        let level = |at: usize| if self.is_missing(at) { 0 } else { level(self.values[at]) };
        let pixels = (0..self.height * self.width).map(|pixel| pixel * self.bands);
        let levels = pixels.flat_map(|at| bands.map(|band| level(at + band))).collect();
        let size = format!("{}x{}", self.width, self.height);
        RgbImage::from_raw(self.width as u32, self.height as u32, levels)
            .ok_or_else(|| Error::argument("size", size, "fewer pixels"))
    }

    /// Resized with a Lanczos filter (a = 3), which widens where the picture shrinks; what is missing is so by the nearest pixel.
    ///
    /// # Errors
    /// A side of 0, or of more than 16,384.
    pub fn resized(&self, width: usize, height: usize) -> Result<Self> {
        let Self { height: h, width: w, bands: c, .. } = *self;
        if [width, height] == [w, h] {
            return Ok(self.clone());
        }
        let most = MAX_SIDE as usize;
        if width.min(height) == 0 || width.max(height) > most {
            let expected = format!("1 to {most} pixels a side");
            return Err(Error::argument("size", format!("{width}x{height}"), expected));
        }
        let sum = |weights: &[f64], value: &dyn Fn(usize) -> f32| -> f32 {
            let terms = weights.iter().enumerate().map(|(i, weight)| weight * f64::from(value(i)));
            terms.sum::<f64>() as f32
        };
        let mut wide = Vec::with_capacity(h * width * c); // [h, width, C]
        let across = weights(w, width, Filter::Lanczos);
        for row in self.values.chunks_exact(w * c) {
            for (first, weights) in &across {
                wide.extend((0..c).map(|band| sum(weights, &|i| row[(first + i) * c + band])));
            }
        }
        let mut values = Vec::with_capacity(height * width * c); // [height, width, C]
        for (first, weights) in weights(h, height, Filter::Lanczos) {
            let column = |at: usize| sum(&weights, &|i| wide[(first + i) * width * c + at]);
            values.extend((0..width * c).map(column));
        }
        let nodata = self.nodata.as_ref().map(|Nodata { value, missing }| {
            let nearest = |at: usize, from: usize, to: usize| (2 * at + 1) * from / (2 * to);
            let places = (0..height).flat_map(|y| (0..width).map(move |x| (y, x)));
            let pixels = places.map(|(y, x)| nearest(y, h, height) * w + nearest(x, w, width));
            let missing = pixels.flat_map(|at| missing[at * c..][..c].iter().copied()).collect();
            Nodata { value: *value, missing }
        });
        Ok(Self { height, width, bands: c, values, nodata })
    }

    /// Puts the numbers of `ground`, of the same size, where `painted` is below a half, [H, W]. Without it all are kept that
    /// were drawn, but those that are missing in `ground`.
    ///
    /// # Errors
    /// `Argument` for a ground of another size.
    pub fn lay_over(&mut self, ground: &Self, painted: Option<&[f32]>) -> Result<()> {
        let size = |picture: &Self| [picture.height, picture.width, picture.bands];
        let pixels = painted.map_or(self.height * self.width, <[f32]>::len);
        if size(self) != size(ground) || pixels != self.height * self.width {
            let found = format!("{:?}, {pixels} pixels to paint", size(ground));
            return Err(Error::argument("init_image", found, format!("{:?}", size(self))));
        }
        let is_kept = |at: usize| painted.is_some_and(|painted| painted[at / ground.bands] < 0.5);
        for (at, value) in self.values.iter_mut().enumerate().filter(|(at, _)| is_kept(*at)) {
            *value = ground.values[at];
        }
        self.nodata = ground.nodata.as_ref().map(|Nodata { value, missing }| {
            // What was painted is there.
            let stays =
                |(at, missing): (usize, &bool)| *missing && (painted.is_none() || is_kept(at));
            let missing = missing.iter().enumerate().map(stays).collect();
            Nodata { value: *value, missing }
        });
        Ok(())
    }

    fn is_missing(&self, at: usize) -> bool {
        self.nodata.as_ref().is_some_and(|nodata| nodata.missing[at])
    }

    /// The numbers as a file holds them, [H, W, C] as they lie in memory: missing ones are the value that stands for it, and one
    /// that is there and would be taken for it is the next.
    pub fn numbers(&self, samples: Samples, scale: Scale) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.values.len() * samples.kind().size());
        let nodata = self.nodata.as_ref().map(|nodata| nodata.value);
        for (at, &value) in self.values.iter().enumerate() {
            let missing = self.is_missing(at);
            match (samples, nodata) {
                (Samples::U8, Some(nodata)) if missing => out.push(nodata as u8),
                (Samples::U8, nodata) => {
                    let level = if scale == Scale::BYTES {
                        level(value)
                    } else {
                        scale.number(value).round_ties_even() as u8
                    };
                    out.push(if nodata == Some(f64::from(level)) {
                        beside(level.into(), 255) as u8
                    } else {
                        level
                    });
                }
                (Samples::U16, Some(nodata)) if missing => {
                    out.extend((nodata as u16).to_ne_bytes())
                }
                (Samples::U16, nodata) => {
                    let level = scale.number(value).round_ties_even() as u16;
                    let taken = nodata == Some(f64::from(level));
                    let level = if taken { beside(level, u16::MAX) } else { level };
                    out.extend(level.to_ne_bytes());
                }
                (Samples::F32, Some(nodata)) if missing => {
                    out.extend((nodata as f32).to_ne_bytes())
                }
                (Samples::F32, nodata) => {
                    let number = scale.number(value) as f32;
                    let taken = nodata.is_some_and(|nodata| nodata as f32 == number);
                    let number = if taken { number.next_up() } else { number };
                    out.extend(number.to_ne_bytes());
                }
            }
        }
        out
    }
}

/// A level's neighbour.
fn beside(level: u16, most: u16) -> u16 {
    if level < most { level + 1 } else { level - 1 }
}

/// As diffusers' `VaeImageProcessor` rounds it.
fn level(value: f32) -> u8 {
    ((value * 0.5 + 0.5).clamp(0.0, 1.0) * 255.0).round_ties_even() as u8
}

/// What a raster's numbers are to a model: its -1 is `low`, its 1 `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    low: f64,
    high: f64,
}

impl Scale {
    /// Of 8 bits.
    pub const BYTES: Self = Self { low: 0.0, high: 255.0 };

    /// Of numbers from 0 to 1.
    pub const UNIT: Self = Self { low: 0.0, high: 1.0 };

    /// Between two numbers.
    ///
    /// # Errors
    /// `Argument`: they are none, or not in this order.
    pub fn new(low: f64, high: f64) -> Result<Self> {
        let spans = (high - low).is_finite() && low < high;
        if !spans {
            let expected = "two numbers, the lower first: LOW,HIGH";
            return Err(Error::argument("scale", format!("{low},{high}"), expected));
        }
        Ok(Self { low, high })
    }

    /// What a number is to the model; beyond -1..1 where it lies beyond.
    pub fn value(self, number: f64) -> f32 {
        (2.0 * ((number - self.low) / (self.high - self.low)) - 1.0) as f32
    }

    /// The number that stands for what the model has.
    pub fn number(self, value: f32) -> f64 {
        self.low + (f64::from(value) * 0.5 + 0.5) * (self.high - self.low)
    }

    /// What its numbers are where `low` is 0 and `high` is 1: shares, as reflectances are.
    pub fn units(self) -> Units {
        let span = self.high - self.low;
        // No negative zero.
        Units { scale: 1.0 / span, offset: 0.0 - self.low / span }
    }

    /// The scale by which what is 0 in these units is darkest, and what is 1 brightest; None where they fall.
    pub fn of_units(units: Units) -> Option<Self> {
        let Units { scale, offset } = units;
        // Numbers are whole more often than quotients of their neighbours.
        let whole = |number: f64| {
            let near = (number - number.round()).abs() <= 1e-9 * number.abs().max(1.0);
            // No negative zero here either.
            if near { number.round() + 0.0 } else { number }
        };
        Self::new(whole(-offset / scale), whole((1.0 - offset) / scale)).ok()
    }

    /// The same of several bands, where they agree.
    pub fn of_bands(units: &[Units]) -> Option<Self> {
        let first = units.first()?;
        Self::of_units(*first).filter(|_| units.iter().all(|units| units == first))
    }

    /// The numbers for darkest and brightest.
    pub fn bounds(self) -> [f64; 2] {
        [self.low, self.high]
    }

    /// What numbers of this scale stand for, when those of the scale `from` stand for `units` and the model's are the same.
    pub fn converted(self, units: Units, from: Self) -> Units {
        if self == from {
            return units;
        }
        let step = (from.high - from.low) / (self.high - self.low);
        let scale = units.scale * step;
        Units { scale, offset: units.offset + units.scale * from.low - scale * self.low }
    }

    /// Whether its numbers have room among those of a kind.
    fn fits(self, samples: Samples) -> bool {
        let most = match samples {
            Samples::U8 => 255.0,
            Samples::U16 => 65_535.0,
            Samples::F32 => return self.low.abs().max(self.high.abs()) <= f64::from(f32::MAX),
        };
        self.low >= 0.0 && self.high <= most
    }
}

impl FromStr for Scale {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers =
            text.split_once(',').map(|(low, high)| (low.trim().parse(), high.trim().parse()));
        let expected = "two numbers, LOW,HIGH, as 0,10000";
        match numbers {
            Some((Ok(low), Ok(high))) => Self::new(low, high),
            _ => Err(Error::argument("scale", text, expected)),
        }
    }
}

impl fmt::Display for Scale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{},{}", self.low, self.high)
    }
}

/// What the numbers of a raster are that is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Samples {
    /// Unsigned, 8 bits.
    #[default]
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Floating point, 32 bits.
    F32,
}

impl Samples {
    /// In the terms of TIFF.
    pub fn kind(self) -> SampleKind {
        match self {
            Self::U8 => SampleKind::U8,
            Self::U16 => SampleKind::U16,
            Self::F32 => SampleKind::F32,
        }
    }

    /// Those that hold what a raster of this kind does: with floats for all that there is no other for.
    pub fn like(kind: SampleKind) -> Self {
        match kind {
            SampleKind::U8 => Self::U8,
            SampleKind::U16 => Self::U16,
            _ => Self::F32,
        }
    }

    /// The scale of their numbers: 8 bits are 0 to 255 always, floats 0 to 1 unless another is said.
    ///
    /// # Errors
    /// `Argument`: 16 bits without a scale, or a scale whose numbers they do not hold.
    pub fn scale(self, said: Option<Scale>) -> Result<Scale> {
        let scale = match (self, said) {
            (Self::U8, _) => return Ok(Scale::BYTES),
            (Self::F32, None) => return Ok(Scale::UNIT),
            (Self::U16, None) => {
                let expected = "LOW,HIGH: what is darkest and what is brightest among 16 bits, as 0,10000 for reflectances";
                return Err(Error::argument("scale", "none", expected));
            }
            (_, Some(scale)) => scale,
        };
        if !scale.fits(self) {
            let expected = format!("numbers that {} can hold", self.kind().name());
            return Err(Error::argument("scale", scale, expected));
        }
        Ok(scale)
    }

    /// As [`scale`](Self::scale), where nothing else is read or written by what was said.
    ///
    /// # Errors
    /// As there; a scale of 8 bits.
    pub fn own_scale(self, said: Option<Scale>) -> Result<Scale> {
        match (self, said) {
            (Self::U8, Some(scale)) => {
                let expected = "none: of 8 bits 0 and 255 are darkest and brightest; --samples u16 or f32 writes other numbers";
                Err(Error::argument("scale", scale, expected))
            }
            _ => self.scale(said),
        }
    }

    /// Whether they can hold a number that stands for none.
    pub fn hold(self, nodata: f64) -> bool {
        let is_level = |most: f64| nodata.fract() == 0.0 && (0.0..=most).contains(&nodata);
        match self {
            Self::U8 => is_level(255.0),
            Self::U16 => is_level(65_535.0),
            Self::F32 => nodata.is_nan() || (nodata as f32).is_finite(),
        }
    }
}

impl FromStr for Samples {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "u8" => Ok(Self::U8),
            "u16" => Ok(Self::U16),
            "f32" => Ok(Self::F32),
            _ => Err(Error::argument("samples", text, "u8, u16 or f32")),
        }
    }
}

impl fmt::Display for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::F32 => "f32",
        })
    }
}

/// Bands that are shown as red, green and blue; counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownBands(pub [usize; 3]);

impl ShownBands {
    /// Those of a picture of so many bands, by what was said, or else by their number.
    ///
    /// # Errors
    /// `Argument`: a band that is not there; nothing said of a picture that is neither grey nor RGB.
    pub fn of(said: Option<Self>, bands: usize) -> Result<Self> {
        match (said, bands) {
            (Some(said), _) if said.0.iter().all(|band| (1..=bands).contains(band)) => Ok(said),
            (Some(said), _) => {
                let expected = format!("bands from 1 to {bands}, which the picture has");
                Err(Error::argument("preview_bands", said, expected))
            }
            (None, 1) => Ok(Self([1; 3])),
            (None, 3) => Ok(Self([1, 2, 3])),
            (None, _) => {
                let expected = format!(
                    "three of its {bands} bands to show as red, green and blue, as 3,2,1; a GeoTIFF (NAME.tif) keeps all"
                );
                Err(Error::argument("preview_bands", "none", expected))
            }
        }
    }
}

impl FromStr for ShownBands {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let bands: Option<Vec<usize>> =
            text.split(',').map(|band| band.trim().parse().ok()).collect();
        let bands = bands.and_then(|bands| <[usize; 3]>::try_from(bands).ok());
        let expected = "three bands, counted from 1: RED,GREEN,BLUE, as 3,2,1";
        let bands = bands.filter(|bands| bands.iter().all(|band| *band > 0));
        bands.map(Self).ok_or_else(|| Error::argument("preview_bands", text, expected))
    }
}

impl fmt::Display for ShownBands {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "{red},{green},{blue}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(bytes: &[u8]) -> Vec<u16> {
        bytes.as_chunks().0.iter().map(|bytes| u16::from_ne_bytes(*bytes)).collect()
    }

    #[test]
    fn sixteen_bits_come_back_exactly() {
        for scale in ["0,10000", "0,65535", "100,3000", "0,1"] {
            let scale: Scale = scale.parse().unwrap();
            let values = (0..=u16::MAX).map(|number| scale.value(number.into())).collect();
            let picture = Picture::new([256, 64, 4], values, None).unwrap();
            let found = numbers(&picture.numbers(Samples::U16, scale));
            assert!(found.iter().copied().eq(0..=u16::MAX), "{scale}");
        }
    }

    /// What a number stands for does not depend on what numbers it is written as.
    #[test]
    fn units_follow_from_the_scale() {
        let stands_for = |units: Units, number: f64| units.scale * number + units.offset;
        for text in ["0,10000", "1000,11000", "100,3000", "0,65535", "-1,1", "0,255"] {
            let scale: Scale = text.parse().unwrap();
            let units = scale.units();
            assert!(stands_for(units, scale.low).abs() < 1e-12, "{text}: {units:?}");
            assert!((stands_for(units, scale.high) - 1.0).abs() < 1e-12, "{text}: {units:?}");
            assert_eq!(Scale::of_units(units).unwrap().to_string(), text);
            assert_eq!(scale.converted(units, scale), units);
            for other in ["0,10000", "100,3000", "-1,1"] {
                let other: Scale = other.parse().unwrap();
                let found = other.converted(Units { scale: 3.0, offset: 7.0 }, scale);
                for value in [-1.0, 0.25, 1.0] {
                    let expected = 3.0 * scale.number(value) + 7.0;
                    let found = stands_for(found, other.number(value));
                    assert!((found - expected).abs() < 1e-9 * expected.abs().max(1.0), "{text}");
                }
            }
        }
        assert_eq!("0,10000".parse::<Scale>().unwrap().units(), Units { scale: 1e-4, offset: 0.0 });
        assert_eq!(
            Scale::of_units(Units { scale: 1e-4, offset: -0.1 }),
            Scale::new(1000.0, 11_000.0).ok()
        );
        assert_eq!(Scale::of_units(Units { scale: -1.0, offset: 0.0 }), None);
    }

    #[test]
    fn eight_bits_are_those_of_pictures() {
        let image = RgbImage::from_fn(16, 16, |x, y| ::image::Rgb([(16 * y + x) as u8; 3]));
        let picture = Picture::of_rgb(&image).unwrap();
        assert_eq!(picture.rgb().unwrap(), image);
        assert_eq!(picture.numbers(Samples::U8, Scale::BYTES), *image.as_raw());
        let values = vec![-1.5, -1.0, 0.0, 0.1, 1.0, 7.0];
        let tensor = Tensor::from_vec(values.clone(), [1, 1, 2, 3]).unwrap();
        let drawn = Picture::of_tensor(&tensor).unwrap().remove(0);
        assert_eq!(drawn.numbers(Samples::U8, Scale::BYTES), [0, 0, 128, 140, 255, 255]);
        assert_eq!(drawn.values(), [-1.0, -1.0, 0.0, 0.1, 1.0, 1.0]);
        let grey = Picture::new([1, 2, 1], vec![-1.0, 1.0], None).unwrap();
        assert_eq!(*grey.rgb().unwrap().as_raw(), [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn what_is_missing_is_told_apart_from_what_is_there() {
        let scale = Scale::new(0.0, 100.0).unwrap();
        let values = [0.0, 50.0, 100.0, 25.0, 0.0, 30.0].map(|number| scale.value(number)).to_vec();
        let nodata = |value, missing: [bool; 6]| Nodata { value, missing: missing.to_vec() };
        let missing = [true, false, false, false, false, true];
        let picture = Picture::new([1, 3, 2], values, Some(nodata(0.0, missing))).unwrap();
        // The means of 100 and 0, and of 50 and 25.
        assert_eq!(picture.values()[0], scale.value(50.0));
        assert_eq!(picture.values()[5], scale.value(37.5));
        // A 0 that is there is a 1.
        assert_eq!(numbers(&picture.numbers(Samples::U16, scale)), [0, 50, 100, 25, 1, 0]);
        let floats = picture.numbers(Samples::F32, scale);
        let floats: Vec<f32> =
            floats.as_chunks().0.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        assert_eq!(floats, [0.0, 50.0, 100.0, 25.0, f32::from_bits(1), 0.0]);

        // 1. without a mask all is drawn, and what is missing stays so
        let drawn = Picture::new([1, 3, 2], vec![0.0; 6], None).unwrap();
        let mut whole = drawn.clone();
        whole.lay_over(&picture, None).unwrap();
        assert_eq!(numbers(&whole.numbers(Samples::U16, scale)), [0, 50, 50, 50, 50, 0]);
        // 2. with one what is not painted is as it was, and what is painted is there
        let mut part = drawn.clone();
        part.lay_over(&picture, Some(&[0.0, 0.0, 1.0])).unwrap();
        assert_eq!(numbers(&part.numbers(Samples::U16, scale)), [0, 50, 100, 25, 50, 50]);
        assert!(part.lay_over(&picture, Some(&[0.0])).is_err());
        assert!(part.lay_over(&picture.resized(2, 1).unwrap(), None).is_err());
        // 3. shown it is black
        let shown = part.shown(Some(ShownBands([1, 2, 2]))).unwrap();
        assert_eq!(shown.get_pixel(0, 0).0, [0, 128, 128]);
    }

    #[test]
    fn a_picture_is_resized_as_one_of_levels_is() {
        let level = |x: u32, y: u32| ((x * 37 + y * y * 11) % 200) as u8 + 20;
        let image =
            RgbImage::from_fn(13, 9, |x, y| ::image::Rgb([level(x, y), level(y, x), level(x, x)]));
        let picture = Picture::of_rgb(&image).unwrap();
        for (w, h) in [(7, 9), (13, 20), (31, 4), (1, 1)] {
            let expected = crate::io::image::resize(&image, w, h).unwrap();
            let found = picture.resized(w as usize, h as usize).unwrap().rgb().unwrap();
            let near = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
            // Levels are rounded twice, and clipped between.
            assert!(found.as_raw().iter().zip(expected.as_raw()).all(near), "{w}x{h}");
        }
        assert_eq!(picture.resized(13, 9).unwrap(), picture);
        assert!(picture.resized(0, 9).is_err() && picture.resized(9, 1 << 20).is_err());
        let missing: Vec<bool> = (0..4).map(|i| i == 2).collect();
        let nodata = Some(Nodata { value: 9.0, missing });
        let picture = Picture::new([2, 2, 1], vec![0.0; 4], nodata).unwrap();
        let found = picture.resized(3, 4).unwrap();
        let expected: Vec<bool> = (0..12).map(|i| i == 6 || i == 9).collect();
        // The middle column is of the right half: 3 / 2 * 2 / 3.
        assert_eq!(found.nodata().unwrap().missing, expected);
    }

    #[test]
    fn what_cannot_be_is_told() {
        let told = |error: Error| error.to_string();
        for wrong in ["", "1", "2,1", "1,1", "a,b", "NaN,1", "-inf,inf", "1,2,3"] {
            let error = wrong.parse::<Scale>();
            assert!(told(error.unwrap_err()).contains("scale"), "{wrong}");
        }
        for wrong in ["", "1,2", "0,1,2", "1,2,3,4", "r,g,b"] {
            assert!(told(wrong.parse::<ShownBands>().unwrap_err()).contains("preview_bands"));
        }
        assert_eq!("3, 2,1".parse::<ShownBands>().unwrap().to_string(), "3,2,1");
        for samples in ["u8", "u16", "f32"] {
            assert_eq!(samples.parse::<Samples>().unwrap().to_string(), samples);
        }
        assert!("f64".parse::<Samples>().is_err());
        let reflectance: Scale = "0,10000".parse().unwrap();
        assert_eq!(Samples::U16.scale(Some(reflectance)).unwrap(), reflectance);
        assert_eq!(Samples::F32.scale(None).unwrap(), Scale::UNIT);
        assert!(told(Samples::U16.scale(None).unwrap_err()).contains("0,10000"));
        for wrong in ["-1,10", "0,70000"] {
            assert!(Samples::U16.scale(wrong.parse().ok()).is_err(), "{wrong}");
        }
        assert!(Samples::U16.hold(65_535.0) && !Samples::U16.hold(-9999.0));
        assert!(!Samples::U8.hold(256.0) && !Samples::U8.hold(0.5) && !Samples::U8.hold(f64::NAN));
        assert!(Samples::F32.hold(f64::NAN) && !Samples::F32.hold(-1e300));
        let four = Picture::new([1, 1, 4], vec![0.0; 4], None).unwrap();
        assert!(told(four.rgb().unwrap_err()).contains("4 bands"));
        assert!(four.shown(Some(ShownBands([3, 2, 5]))).is_err());
        assert!(Picture::new([1, 1, 4], vec![0.0; 3], None).is_err());
        assert!(Picture::new([1, 1, 1], vec![f32::NAN], None).is_err());
        let tensor = Tensor::from_vec(vec![0.0, f32::NAN], [1, 1, 1, 2]).unwrap();
        assert!(matches!(Picture::of_tensor(&tensor), Err(Error::NotFinite(_))));
    }
}
