//! Colours of classes, and pictures that show classes by them.

use std::str::FromStr;

use image::RgbImage;

use super::{NODATA, Rows, Source};
use crate::error::{Error, Result};
use crate::io::html::escaped;

/// Red, green and blue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Color(pub [u8; 3]);

impl FromStr for Color {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let digits = text.strip_prefix('#').filter(|d| d.len() == 6 && d.is_ascii());
        let byte =
            |i: usize| digits.and_then(|d| u8::from_str_radix(&d[2 * i..2 * i + 2], 16).ok());
        match (byte(0), byte(1), byte(2)) {
            (Some(r), Some(g), Some(b)) => Ok(Self([r, g, b])),
            _ => Err(format!("{text} is no colour: #rrggbb, in hexadecimal digits")),
        }
    }
}

impl Color {
    fn html(self) -> String {
        let [r, g, b] = self.0;
        format!("#{r:02x}{g:02x}{b:02x}")
    }
}

/// Colours of classes whose names have one of these words.
const KNOWN: [(&[&str], [u8; 3]); 11] = [
    (&["water", "sea", "lake", "river", "ocean"], [43, 108, 196]),
    (&["forest", "tree", "wood"], [30, 107, 52]),
    (&["pasture", "grass", "meadow", "rangeland", "herbaceous"], [146, 196, 92]),
    (&["permanent", "orchard", "vineyard"], [160, 110, 190]),
    (&["crop", "field", "agricultur", "farm"], [232, 200, 92]),
    (&["highway", "road", "railway"], [90, 90, 98]),
    (&["industrial"], [176, 92, 160]),
    (&["residential", "building", "urban", "built"], [208, 78, 66]),
    (&["barren", "bare", "sand", "desert", "soil", "land"], [204, 178, 138]),
    (&["snow", "ice", "cloud"], [232, 240, 246]),
    (&["none", "background", "unknown"], [64, 64, 64]),
];

/// For all others, in turn.
const OTHERS: [[u8; 3]; 10] = [
    [68, 119, 170],
    [238, 102, 119],
    [34, 136, 51],
    [204, 187, 68],
    [102, 204, 238],
    [170, 51, 119],
    [187, 187, 187],
    [221, 119, 40],
    [17, 100, 110],
    [120, 90, 60],
];

/// A colour for each class.
#[derive(Clone, Debug, PartialEq)]
pub struct Palette(Vec<[u8; 3]>);

impl Palette {
    /// Colours that are given, and for other classes one that suits the name, or one of a row that the eye tells apart.
    ///
    /// # Errors
    /// A colour of a class that is not there.
    pub fn new(classes: &[String], given: &[(String, Color)]) -> Result<Self> {
        if let Some((name, _)) = given.iter().find(|(name, _)| !classes.contains(name)) {
            let expected = format!("one of the classes: {}", classes.join(", "));
            return Err(Error::argument("colors", name, expected));
        }
        let mut others = OTHERS.iter().cycle();
        let mut taken: Vec<[u8; 3]> = Vec::new();
        for class in classes {
            let given = given.iter().find(|(name, _)| name == class).map(|(_, color)| color.0);
            let lower = class.to_lowercase();
            let fits = |words: &[&str]| words.iter().any(|word| lower.contains(word));
            let known = KNOWN.iter().find(|(words, _)| fits(words)).map(|(_, color)| *color);
            let known = known.filter(|color| !taken.contains(color));
            let color = given.or(known).or_else(|| others.next().copied());
            taken.push(color.unwrap_or_default());
        }
        Ok(Self(taken))
    }

    /// By class.
    pub fn colors(&self) -> &[[u8; 3]] {
        &self.0
    }
}

/// Pixels of an overlay's longer side, at most.
const SIDE: usize = 2048;

/// A picture of a scene with its classes' colours over it, made while rows come.
pub struct Overlay {
    /// Pixels of the scene for one of these.
    step: usize,
    picture: RgbImage,
    palette: Palette,
    /// Mean and deviation of levels, where they fill a part of their range only.
    stretch: Option<(f32, f32)>,
}

impl Overlay {
    /// Of a scene. Levels of 16 bits are shown from two deviations below their `mean` to two above.
    pub fn new(source: &Source, palette: Palette, mean: &[f32], std: &[f32]) -> Self {
        let (width, height) = (source.about().width, source.about().height);
        let step = width.max(height).div_ceil(SIDE);
        let picture = RgbImage::new(width.div_ceil(step) as u32, height.div_ceil(step) as u32);
        let deep = source.about().samples == crate::io::geotiff::SampleKind::U16;
        let average = |x: &[f32]| x.iter().take(3).sum::<f32>() / x.len().clamp(1, 3) as f32;
        let stretch = deep.then(|| (average(mean), average(std)));
        Self { step, picture, palette, stretch }
    }

    /// Takes up what falls on rows of the picture.
    pub fn add(&mut self, rows: &Rows) {
        let Rows { source, cell, classes, .. } = *rows;
        let (width, pixel) = (source.about().width, source.about().pixel());
        for (i, pixels) in rows.pixels.chunks_exact(width * pixel).enumerate() {
            let y = rows.y + i;
            if !y.is_multiple_of(self.step) {
                continue;
            }
            let classes = &classes[i / cell * width.div_ceil(cell)..];
            for (x, column) in (0..width).step_by(self.step).enumerate() {
                let pixel = &pixels[column * pixel..][..pixel];
                let color = self.shown(source, pixel, classes[column / cell]);
                self.picture.put_pixel(x as u32, (y / self.step) as u32, image::Rgb(color));
            }
        }
    }

    fn shown(&self, source: &Source, pixel: &[u8], class: u8) -> [u8; 3] {
        if class == NODATA {
            return [255; 3];
        }
        let mut levels = source.levels(pixel);
        let first = levels.next().unwrap_or_default();
        let own = match (levels.next(), levels.next()) {
            (Some(green), Some(blue)) => [first, green, blue],
            _ => [first; 3],
        };
        let over = self.palette.0.get(usize::from(class)).copied().unwrap_or_default();
        let mut shown = [0; 3];
        for ((out, level), over) in shown.iter_mut().zip(own).zip(over) {
            let level = match self.stretch {
                Some((mean, std)) => (level - mean) / (4.0 * std) + 0.5,
                None => level,
            };
            *out = (255.0 * 0.55 * level.clamp(0.0, 1.0) + 0.45 * f32::from(over)).round() as u8;
        }
        shown
    }

    /// What it has become.
    pub fn into_picture(self) -> RgbImage {
        self.picture
    }
}

/// A drawing (SVG) of what colours stand for: of each class its colour, its name and a text.
pub fn legend(palette: &Palette, classes: &[(String, String)]) -> String {
    let height = 28 * classes.len() + 12;
    let longest =
        classes.iter().map(|(name, text)| name.chars().count() + text.chars().count()).max();
    let width = 60 + 9 * longest.unwrap_or_default();
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\" font-size=\"15\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    for (i, ((name, text), color)) in classes.iter().zip(&palette.0).enumerate() {
        let (top, line, color) = (10 + 28 * i, 25 + 28 * i, Color(*color).html());
        let (name, text) = (escaped(name), escaped(text));
        out += &format!(
            "<rect x=\"10\" y=\"{top}\" width=\"28\" height=\"20\" fill=\"{color}\" stroke=\"#888888\"/>\
             <text x=\"48\" y=\"{line}\">{name} <tspan fill=\"#666666\">{text}</tspan></text>\n"
        );
    }
    out + "</svg>\n"
}
