//! Directories of a TIFF: where an entry of one that is there lies, and the bytes of one that is to be.

use std::io::{self, Read, Seek, SeekFrom};

pub const NEW_SUBFILE_TYPE: u16 = 254;
pub const IMAGE_WIDTH: u16 = 256;
pub const IMAGE_LENGTH: u16 = 257;
pub const BITS_PER_SAMPLE: u16 = 258;
pub const COMPRESSION: u16 = 259;
pub const PHOTOMETRIC: u16 = 262;
pub const SAMPLES_PER_PIXEL: u16 = 277;
pub const PLANAR_CONFIGURATION: u16 = 284;
pub const COLOR_MAP: u16 = 320;
pub const TILE_WIDTH: u16 = 322;
pub const TILE_LENGTH: u16 = 323;
pub const TILE_OFFSETS: u16 = 324;
pub const TILE_BYTE_COUNTS: u16 = 325;
pub const EXTRA_SAMPLES: u16 = 338;
pub const SAMPLE_FORMAT: u16 = 339;
pub const PIXEL_SCALE: u16 = 33550;
pub const TIEPOINTS: u16 = 33922;
pub const TRANSFORMATION: u16 = 34264;
pub const GEO_KEYS: u16 = 34735;
pub const GEO_DOUBLES: u16 = 34736;
pub const GEO_ASCII: u16 = 34737;
pub const GDAL_METADATA: u16 = 42112;
pub const GDAL_NODATA: u16 = 42113;

/// What an entry holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Short(Vec<u16>),
    Long(Vec<u32>),
    Long8(Vec<u64>),
    Double(Vec<f64>),
    Ascii(String),
}

impl Value {
    /// Its type, how many of them, and their bytes.
    fn bytes(&self) -> (u16, u64, Vec<u8>) {
        fn all<T: Copy, const N: usize>(values: &[T], of: fn(T) -> [u8; N]) -> Vec<u8> {
            values.iter().flat_map(|value| of(*value)).collect()
        }
        match self {
            Self::Short(v) => (3, v.len() as u64, all(v, u16::to_ne_bytes)),
            Self::Long(v) => (4, v.len() as u64, all(v, u32::to_ne_bytes)),
            Self::Long8(v) => (16, v.len() as u64, all(v, u64::to_ne_bytes)),
            Self::Double(v) => (12, v.len() as u64, all(v, f64::to_ne_bytes)),
            Self::Ascii(text) => {
                let bytes = [text.as_bytes(), &[0]].concat();
                (2, bytes.len() as u64, bytes)
            }
        }
    }
}

/// The header; its numbers are in the order of this machine.
pub fn header(first: u64, big: bool) -> Vec<u8> {
    let mut bytes = if cfg!(target_endian = "little") { b"II".to_vec() } else { b"MM".to_vec() };
    if big {
        bytes.extend([43_u16, 8, 0].iter().flat_map(|x| x.to_ne_bytes()));
        bytes.extend(first.to_ne_bytes());
    } else {
        bytes.extend(42_u16.to_ne_bytes());
        bytes.extend((first as u32).to_ne_bytes());
    }
    bytes
}

/// A directory at the byte `at` of a file, and what of its values has no room in it. `entries` are sorted by their tags.
/// Another follows right behind, if `more` says so.
pub fn directory(entries: &[(u16, Value)], at: u64, more: bool, big: bool) -> Vec<u8> {
    let (count, entry, word) = if big { (8, 20, 8) } else { (2, 12, 4) };
    let number = |bytes: &mut Vec<u8>, value: u64| match big {
        true => bytes.extend(value.to_ne_bytes()),
        false => bytes.extend((value as u32).to_ne_bytes()),
    };
    let mut head = Vec::new();
    match big {
        true => head.extend((entries.len() as u64).to_ne_bytes()),
        false => head.extend((entries.len() as u16).to_ne_bytes()),
    }
    let behind = at + (count + entry * entries.len() + word) as u64;
    let mut rest = Vec::new();
    for (tag, value) in entries {
        let (kind, count, mut bytes) = value.bytes();
        head.extend(tag.to_ne_bytes());
        head.extend(kind.to_ne_bytes());
        number(&mut head, count);
        if bytes.len() <= word {
            bytes.resize(word, 0);
            head.extend(bytes);
        } else {
            number(&mut head, behind + rest.len() as u64);
            rest.extend(bytes);
            // Values begin at even places.
            rest.resize(rest.len().next_multiple_of(8), 0);
        }
    }
    let end = behind + rest.len() as u64;
    number(&mut head, if more { end } else { 0 });
    head.extend(rest);
    head
}

/// Where the value of `tag` lies, one that is in its entry of the first directory; the numbers' order, little-endian or not.
pub fn find(file: &mut (impl Read + Seek), tag: u16) -> io::Result<Option<(u64, bool)>> {
    let mut read = |at: u64, size: usize, little: bool| -> io::Result<u64> {
        let mut bytes = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut bytes[..size])?;
        if !little {
            bytes[..size].reverse();
        }
        Ok(u64::from_le_bytes(bytes))
    };
    let little = read(0, 1, true)? == u64::from(b'I');
    let big = read(2, 2, little)? == 43;
    let first = read(if big { 8 } else { 4 }, if big { 8 } else { 4 }, little)?;
    let (count, entry, value) = if big { (8, 20, 12) } else { (2, 12, 8) };
    let entries = read(first, count, little)?;
    for i in 0..entries.min(u64::from(u16::MAX)) {
        let Some(at) = first.checked_add(count as u64 + i * entry) else { break };
        if read(at, 2, little)? == u64::from(tag) {
            return Ok(Some((at + value, little)));
        }
    }
    Ok(None)
}
