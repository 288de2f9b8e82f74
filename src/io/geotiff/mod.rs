//! Pictures that know where on Earth they lie: TIFF read a window at a time, and written as Cloud-Optimized GeoTIFF while rows
//! come, neither ever whole in memory.
//!
//! Sources: TIFF 6.0; the GeoTIFF standard (OGC 19-008r4); the Cloud Optimized GeoTIFF standard (OGC 21-026), with the notes
//! of GDAL's driver on what stands before the first directory.

mod directory;
mod georeference;
pub mod picture;
mod reader;
mod units;
mod writer;

pub use georeference::Georeference;
pub use reader::{About, GeoTiff, Window};
pub use units::Units;
pub use writer::{Cog, CogWriter, Resampling};

/// What the numbers of a raster are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleKind {
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 8 bits.
    I8,
    /// Signed, 16 bits.
    I16,
    /// Signed, 32 bits.
    I32,
    /// Floating point, 32 bits.
    F32,
    /// Floating point, 64 bits.
    F64,
}

impl SampleKind {
    const ALL: [Self; 8] =
        [Self::U8, Self::U16, Self::U32, Self::I8, Self::I16, Self::I32, Self::F32, Self::F64];

    /// Bytes of a number.
    pub fn size(self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// TIFF's SampleFormat.
    fn format(self) -> u16 {
        match self {
            Self::U8 | Self::U16 | Self::U32 => 1,
            Self::I8 | Self::I16 | Self::I32 => 2,
            Self::F32 | Self::F64 => 3,
        }
    }

    fn new(format: u16, bits: u16) -> Option<Self> {
        let is = |kind: &Self| kind.format() == format && kind.size() * 8 == usize::from(bits);
        Self::ALL.into_iter().find(is)
    }

    /// As GDAL calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::U8 => "Byte",
            Self::U16 => "UInt16",
            Self::U32 => "UInt32",
            Self::I8 => "Int8",
            Self::I16 => "Int16",
            Self::I32 => "Int32",
            Self::F32 => "Float32",
            Self::F64 => "Float64",
        }
    }

    /// Numbers as they lie in memory.
    ///
    /// # Panics
    /// Never: what is left of a number at the end is not looked at.
    pub fn numbers(self, bytes: &[u8]) -> Vec<f64> {
        fn all<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f64) -> Vec<f64> {
            bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
        }
        match self {
            Self::U8 => all(bytes, |b| f64::from(u8::from_ne_bytes(b))),
            Self::U16 => all(bytes, |b| f64::from(u16::from_ne_bytes(b))),
            Self::U32 => all(bytes, |b| f64::from(u32::from_ne_bytes(b))),
            Self::I8 => all(bytes, |b| f64::from(i8::from_ne_bytes(b))),
            Self::I16 => all(bytes, |b| f64::from(i16::from_ne_bytes(b))),
            Self::I32 => all(bytes, |b| f64::from(i32::from_ne_bytes(b))),
            Self::F32 => all(bytes, |b| f64::from(f32::from_ne_bytes(b))),
            Self::F64 => all(bytes, f64::from_ne_bytes),
        }
    }

    /// Puts a number, rounded and bounded where it has to be, behind `out`.
    fn push(self, number: f64, out: &mut Vec<u8>) {
        let whole = number.round_ties_even();
        match self {
            Self::U8 => out.extend((whole as u8).to_ne_bytes()),
            Self::U16 => out.extend((whole as u16).to_ne_bytes()),
            Self::U32 => out.extend((whole as u32).to_ne_bytes()),
            Self::I8 => out.extend((whole as i8).to_ne_bytes()),
            Self::I16 => out.extend((whole as i16).to_ne_bytes()),
            Self::I32 => out.extend((whole as i32).to_ne_bytes()),
            Self::F32 => out.extend((number as f32).to_ne_bytes()),
            Self::F64 => out.extend(number.to_ne_bytes()),
        }
    }
}

#[cfg(test)]
mod tests;
