//! Decoded windows, as they are kept until the picture is put together.

use std::path::Path;

use crate::error::{Error, Result};
use crate::io::picture::{Picture, ShownBands};
use crate::io::{atomic, image, png, read_bounded};

/// The longest file.
const MAX_FILE: u64 = 4 << 30;

/// What is kept of them, and so what the picture can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiles {
    /// Levels of 8 bits of three bands, those that are named if they are.
    Shown(Option<ShownBands>),
    /// All numbers of all bands, as the model has them.
    Numbers {
        /// Bands of the model.
        bands: usize,
    },
}

impl Tiles {
    /// Numbers of a pixel.
    pub(super) fn bands(self) -> usize {
        match self {
            Self::Shown(_) => 3,
            Self::Numbers { bands } => bands,
        }
    }

    /// How files' names end.
    pub(super) fn ending(self) -> &'static str {
        match self {
            Self::Shown(_) => ".png",
            Self::Numbers { .. } => "",
        }
    }

    /// Keeps a tile.
    pub(super) fn write(self, path: &Path, picture: &Picture) -> Result<()> {
        match self {
            Self::Shown(bands) => png::write(path, &picture.shown(bands)?, &[]),
            Self::Numbers { .. } => atomic::write(path, |out| {
                let numbers = picture.values().iter();
                out.write_all(&numbers.flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>())
            }),
        }
    }

    /// A tile of so many rows and columns, [height, width, bands]: levels of 0 to 255, or numbers of -1 to 1.
    pub(super) fn read(self, path: &Path, [height, width]: [usize; 2]) -> Result<Vec<f32>> {
        let wrong = |found: String, expected: String| {
            Error::file(path, "size", expected, found, "The file was changed: remove it.")
        };
        match self {
            Self::Shown(_) => {
                let tile = image::open(path)?;
                if tile.dimensions() != (width as u32, height as u32) {
                    let found = format!("{}x{}", tile.width(), tile.height());
                    return Err(wrong(found, format!("{width}x{height} pixels")));
                }
                Ok(tile.as_raw().iter().map(|&level| f32::from(level)).collect())
            }
            Self::Numbers { bands } => {
                let (bytes, expected) = (read_bounded(path, MAX_FILE)?, 4 * height * width * bands);
                if bytes.len() != expected {
                    return Err(wrong(bytes.len().to_string(), format!("{expected} bytes")));
                }
                Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
            }
        }
    }
}
