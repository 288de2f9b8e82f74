//! Pictures that ControlNets follow, and what is made of one before a ControlNet sees it.
//!
//! Reference implementation: diffusers, `pipelines/controlnet/pipeline_controlnet.py`.

use std::cmp::Ordering;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use image::RgbImage;

use crate::error::{Error, Result};
use crate::io::image::resize;
use crate::io::raster::{Levels, Mask, Raster};
use crate::io::{config, image as pictures, raster};
use crate::models::unet::Context;
use crate::tensor::Tensor;

/// A picture for one ControlNet, and how much it counts.
#[derive(Clone, Debug)]
pub struct Control {
    /// The picture, of as many bands as the ControlNet takes.
    pub picture: Arc<Raster>,
    /// Weight of what the ControlNet adds.
    pub scale: f32,
    /// Share of the steps before it begins to count.
    pub start: f64,
    /// Share of the steps at which it ends.
    pub end: f64,
}

impl Control {
    /// Of full weight, from the first step to the last.
    pub fn new(picture: Raster) -> Self {
        Self { picture: Arc::new(picture), scale: 1.0, start: 0.0, end: 1.0 }
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// `Argument`, naming the first field whose value is not possible.
    pub fn check(&self) -> Result<()> {
        if !(0.0..=100.0).contains(&self.scale) {
            return Err(Error::argument("control_scale", self.scale, "a number from 0 to 100"));
        }
        if !(0.0..=1.0).contains(&self.start) {
            return Err(Error::argument(
                "control_start",
                self.start,
                "a share of the steps, 0 to 1",
            ));
        }
        if !(self.end <= 1.0 && self.end > self.start) {
            let expected =
                format!("a share of the steps above the start, {}, and up to 1", self.start);
            return Err(Error::argument("control_end", self.end, expected));
        }
        Ok(())
    }

    /// Whether it counts in step `i` of `n`.
    pub(super) fn counts(&self, i: usize, n: usize) -> bool {
        let (i, n) = (i as f64, n as f64);
        i / n >= self.start && (i + 1.0) / n <= self.end && self.scale != 0.0
    }

    /// Checks that it can be seen at a size.
    ///
    /// # Errors
    /// Another size, of a picture that is not resized.
    pub(super) fn check_size(&self, (width, height): (usize, usize)) -> Result<()> {
        let Raster { bands, levels, .. } = &*self.picture;
        let own = (self.picture.width, self.picture.height);
        if own == (width, height) || matches!((levels, bands), (Levels::U8(_), 3)) {
            return Ok(());
        }
        let found = format!("{}x{} of {bands} bands", own.0, own.1);
        let expected = format!("{width}x{height}: only RGB of 8 bits is resized");
        Err(Error::argument("control_image", found, expected))
    }

    /// Levels [1, height, width, bands], 0 to 1; resized as diffusers does where it has three bands of 8 bits.
    ///
    /// # Errors
    /// Another size, of a picture that is not resized.
    pub(super) fn levels(&self, (width, height): (usize, usize)) -> Result<Tensor> {
        self.check_size((width, height))?;
        let picture = &*self.picture;
        let bands = picture.bands;
        if (picture.width, picture.height) == (width, height) {
            let level = |i: usize| picture.level(i / bands / width, i / bands % width, i % bands);
            let levels = (0..width * height * bands).map(level).collect();
            return Tensor::from_vec(levels, [1, height, width, bands]);
        }
        let wrong = || Error::argument("control_image", "other levels", "levels of all pixels");
        let Levels::U8(levels) = &picture.levels else { return Err(wrong()) };
        let image = RgbImage::from_raw(picture.width as u32, picture.height as u32, levels.clone());
        let image = resize(&image.ok_or_else(wrong)?, width as u32, height as u32)?;
        let levels = image.as_raw().iter().map(|&level| f32::from(level) / 255.0).collect();
        Tensor::from_vec(levels, [1, height, width, 3])
    }
}

/// Keys and values of a prompt, in the UNet and in each ControlNet.
pub(super) struct Texts {
    pub(super) unet: Context,
    pub(super) nets: Vec<Context>,
    /// What tells the prompt as a whole, where the UNet is told that.
    pub(super) pooled: Vec<f32>,
}

/// A ControlNet at work on one picture.
pub(super) struct Net {
    /// Its place in the model.
    pub(super) index: usize,
    pub(super) control: Control,
    /// What its blocks make of all timesteps, for each row or one for all; [evaluations, rows, E].
    pub(super) times: Tensor,
    /// What it makes of the picture; [1, h, w, C].
    pub(super) hint: Tensor,
}

/// What slots have in common that pass through the networks together.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Gear {
    /// Places and weights of the ControlNets that count.
    pub(super) nets: Vec<(usize, f32)>,
    /// In guess mode, the rows of a slot: of two the ControlNets see the second.
    pub(super) guess: Option<usize>,
}

impl Gear {
    /// Any order.
    pub(super) fn order(&self, other: &Self) -> Ordering {
        let key = |gear: &Self| {
            let nets: Vec<_> =
                gear.nets.iter().map(|(net, scale)| (*net, scale.to_bits())).collect();
            (nets, gear.guess)
        };
        key(self).cmp(&key(other))
    }
}

/// What is made of a picture before a ControlNet sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Preprocessor {
    /// Nothing: a map tile, masks of Segment Anything as a picture, bands.
    #[default]
    AsItIs,
    /// Edges between two thresholds, white on black.
    Canny(u16, u16),
    /// Classes of a mask in the colours that a file gives them.
    Palette(PathBuf),
}

impl FromStr for Preprocessor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let expected = "as-is, canny, canny:LOW,HIGH or palette:FILE";
            Error::argument("control_preprocessor", text, expected)
        };
        match text.split_once(':') {
            None if text == "as-is" => Ok(Self::AsItIs),
            None if text == "canny" => Ok(Self::Canny(100, 200)),
            Some(("canny", thresholds)) => {
                let (low, high) = thresholds.split_once(',').ok_or_else(wrong)?;
                match (low.trim().parse(), high.trim().parse()) {
                    (Ok(low), Ok(high)) if low <= high => Ok(Self::Canny(low, high)),
                    _ => Err(wrong()),
                }
            }
            Some(("palette", file)) if !file.is_empty() => Ok(Self::Palette(file.into())),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for Preprocessor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AsItIs => f.write_str("as-is"),
            Self::Canny(low, high) => write!(f, "canny:{low},{high}"),
            Self::Palette(file) => write!(f, "palette:{}", file.display()),
        }
    }
}

impl Preprocessor {
    /// The picture in a file, as a ControlNet is to see it.
    ///
    /// # Errors
    /// A file that cannot be read, or a class that the palette has no colour for.
    pub fn open(&self, path: &Path) -> Result<Raster> {
        match self {
            Self::AsItIs => raster::open(path),
            Self::Canny(..) => self.of(pictures::open(path)?),
            Self::Palette(file) => paint(&raster::open_mask(path)?, path, file),
        }
    }

    /// A picture, as a ControlNet is to see it.
    ///
    /// # Errors
    /// A palette: its file says what classes look like, and a picture has none.
    pub fn of(&self, picture: RgbImage) -> Result<Raster> {
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        let levels = match self {
            Self::AsItIs => picture.into_raw(),
            Self::Canny(low, high) => {
                let grey = canny(&picture, i32::from(*low), i32::from(*high));
                grey.into_iter().flat_map(|level| [level; 3]).collect()
            }
            Self::Palette(_) => {
                let expected = "as-is or canny: a palette colours the classes of a mask";
                return Err(Error::argument("control_preprocessor", self, expected));
            }
        };
        Ok(Raster { height, width, bands: 3, levels: Levels::U8(levels) })
    }
}

/// A mask in colours; `file` is JSON, `{"0": "#000000", "1": "#00ff00"}` or a list of colours by class.
fn paint(mask: &Mask, path: &Path, file: &Path) -> Result<Raster> {
    let json = config::read_json(file)?;
    let advice = "Write a colour for each class: {\"0\": \"#000000\", \"1\": \"#00ff00\"}, or a list of them.";
    let color = |class: u16| {
        let found = json.get(usize::from(class)).or_else(|| json.get(class.to_string()));
        let found = found.and_then(|color| color.as_str()).unwrap_or("none");
        let digits =
            found.strip_prefix('#').filter(|digits| digits.len() == 6 && digits.is_ascii());
        let number = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let Some(number) = number else {
            let what = format!("colour of class {class} of {}", path.display());
            return Err(Error::file(file, what, "#RRGGBB", found, advice));
        };
        Ok([(number >> 16) as u8, (number >> 8) as u8, number as u8])
    };
    let mut known = std::collections::BTreeMap::new();
    let mut levels = Vec::with_capacity(3 * mask.classes.len());
    for &class in &mask.classes {
        let color = match known.get(&class) {
            Some(color) => *color,
            None => *known.entry(class).or_insert(color(class)?),
        };
        levels.extend(color);
    }
    let (width, height) = (mask.width, mask.height);
    Ok(Raster { height, width, bands: 3, levels: Levels::U8(levels) })
}

/// Edges as OpenCV's `Canny` finds them with its defaults (an aperture of 3, |dx| + |dy|): 255 on one, else 0, row by row.
///
/// Canny 1986, "A Computational Approach to Edge Detection". Of a pixel's three gradients the largest counts, as OpenCV has
/// it (`modules/imgproc/src/canny.cpp`).
pub fn canny(picture: &RgbImage, low: i32, high: i32) -> Vec<u8> {
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    let levels = picture.as_raw();
    let at = |y: isize, x: isize, band: usize| {
        let y = y.clamp(0, height as isize - 1) as usize;
        let x = x.clamp(0, width as isize - 1) as usize;
        i32::from(levels[(y * width + x) * 3 + band])
    };
    // 1. gradients
    let gradient = |i: usize| {
        let (y, x) = ((i / width) as isize, (i % width) as isize);
        let of = |band: usize| {
            let at = |dy: isize, dx: isize| at(y + dy, x + dx, band);
            let dx = at(-1, 1) - at(-1, -1) + 2 * (at(0, 1) - at(0, -1)) + at(1, 1) - at(1, -1);
            let dy = at(1, -1) - at(-1, -1) + 2 * (at(1, 0) - at(-1, 0)) + at(1, 1) - at(-1, 1);
            (dx, dy)
        };
        let size = |(dx, dy): (i32, i32)| dx.abs() + dy.abs();
        // The first of equals.
        (1..3).map(of).fold(of(0), |a, b| if size(b) > size(a) { b } else { a })
    };
    let gradients: Vec<(i32, i32)> = (0..width * height).map(gradient).collect();
    // 2. what is largest across an edge
    let size = |y: isize, x: isize| {
        let inside = (0..height as isize).contains(&y) && (0..width as isize).contains(&x);
        let (dx, dy) = if inside { gradients[y as usize * width + x as usize] } else { (0, 0) };
        dx.abs() + dy.abs()
    };
    let is_ridge = |i: usize| {
        /// tan 22.5 degrees, of 2^15.
        const TAN: i64 = 13573;
        let (y, x) = ((i / width) as isize, (i % width) as isize);
        let ((dx, dy), m) = (gradients[i], size(y, x));
        let (x_size, y_size) = (i64::from(dx.abs()), i64::from(dy.abs()) << 15);
        if y_size < x_size * TAN {
            m > size(y, x - 1) && m >= size(y, x + 1)
        } else if y_size > x_size * TAN + (x_size << 16) {
            m > size(y - 1, x) && m >= size(y + 1, x)
        } else {
            let s = if (dx ^ dy) < 0 { -1 } else { 1 };
            m > size(y - 1, x - s) && m > size(y + 1, x + s)
        }
    };
    let size_of = |i: usize| gradients[i].0.abs() + gradients[i].1.abs();
    let ridges: Vec<bool> = (0..width * height).map(|i| size_of(i) > low && is_ridge(i)).collect();
    // 3. what is strong, and what touches it
    let mut edges = vec![0u8; width * height];
    let mut open: Vec<usize> =
        (0..width * height).filter(|&i| ridges[i] && size_of(i) > high).collect();
    open.iter().for_each(|&i| edges[i] = 255);
    while let Some(i) = open.pop() {
        let (y, x) = (i / width, i % width);
        for y in y.saturating_sub(1)..(y + 2).min(height) {
            for x in x.saturating_sub(1)..(x + 2).min(width) {
                let j = y * width + x;
                if ridges[j] && edges[j] == 0 {
                    edges[j] = 255;
                    open.push(j);
                }
            }
        }
    }
    edges
}
