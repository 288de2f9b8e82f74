//! Writing a Cloud-Optimized GeoTIFF while its rows come.
//!
//! Tiles are compressed a row of them at a time and put aside in files without names beside the output, one for the picture
//! and one for each overview. When all are there, so that their places are known, the file is put together: directories first,
//! then tiles, those of the smallest overview before all others. In memory are a row of tiles and half as much again for each
//! overview.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use rayon::prelude::*;

use super::directory::*;
use super::{Georeference, SampleKind, Units};
use crate::error::{Error, Result};
use crate::io::atomic::{self, Output};
use crate::io::html::escaped;

/// How an overview's pixel is made of four.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resampling {
    /// It is the first of them: for classes.
    #[default]
    Nearest,
    /// Their mean, less those without data.
    Average,
}

/// What a file is to be.
#[derive(Clone, Debug)]
pub struct Cog {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Numbers of a pixel.
    pub bands: usize,
    /// What they are.
    pub samples: SampleKind,
    /// Whether the last band is opacity.
    pub alpha: bool,
    /// Where it lies.
    pub georeference: Option<Georeference>,
    /// The number of pixels that are none.
    pub nodata: Option<f64>,
    /// Colours that the numbers of the only band, of 8 bits, stand for.
    pub palette: Option<Vec<[u8; 3]>>,
    /// What the numbers of each band stand for; empty where that is not said.
    pub units: Vec<Units>,
    /// Names and texts that GDAL shows as metadata.
    pub metadata: Vec<(String, String)>,
    /// How overviews are made.
    pub resampling: Resampling,
    /// Height and width of a tile, a multiple of 16.
    pub tile: usize,
    /// Whether tiles are compressed, by deflate.
    pub compressed: bool,
    /// Whether offsets have 64 bits; `None` lets the size decide.
    pub big: Option<bool>,
}

impl Cog {
    /// A file of so many pixels and bands, in compressed tiles of 512.
    pub fn new(width: usize, height: usize, bands: usize, samples: SampleKind) -> Self {
        Self {
            width,
            height,
            bands,
            samples,
            alpha: false,
            georeference: None,
            nodata: None,
            palette: None,
            units: Vec::new(),
            metadata: Vec::new(),
            resampling: Resampling::default(),
            tile: 512,
            compressed: true,
            big: None,
        }
    }

    fn check(&self) -> Result<()> {
        let wrong = |name, found: String, expected| Err(Error::argument(name, found, expected));
        let most = i32::MAX as usize;
        if !(1..=most).contains(&self.width) || !(1..=most).contains(&self.height) {
            let found = format!("{}x{}", self.width, self.height);
            return wrong("size", found, "1 to 2147483647 pixels a side");
        }
        if !(1..=usize::from(u16::MAX)).contains(&self.bands) {
            return wrong("bands", self.bands.to_string(), "1 to 65535");
        }
        if self.tile == 0 || !self.tile.is_multiple_of(16) || self.tile > 1 << 14 {
            return wrong("tile", self.tile.to_string(), "a multiple of 16, up to 16384");
        }
        let is_number = |units: &Units| {
            units.scale.is_finite() && units.scale != 0.0 && units.offset.is_finite()
        };
        if ![0, self.bands].contains(&self.units.len()) || !self.units.iter().all(is_number) {
            let found = format!("{:?}", self.units);
            return wrong(
                "units",
                found,
                "a scale other than 0 and an offset of each band, or none",
            );
        }
        let colours = self.palette.as_ref().map(Vec::len);
        let one = self.bands == 1 && self.samples == SampleKind::U8;
        if colours.is_some_and(|n| !one || n > 256) {
            return wrong(
                "palette",
                format!("{colours:?}"),
                "at most 256 colours of one band of 8 bits",
            );
        }
        Ok(())
    }

    fn pixel(&self) -> usize {
        self.bands * self.samples.size()
    }

    /// The entries of a picture of so many pixels; `tiles` are offsets and lengths.
    fn entries(
        &self,
        size: [usize; 2],
        first: bool,
        tiles: &Tiles,
        big: bool,
    ) -> Vec<(u16, Value)> {
        let [width, height] = size;
        let short = |value: usize| Value::Short(vec![value as u16]);
        let each = |value: u16| Value::Short(vec![value; self.bands]);
        // Three bands, and opacity beside them, are colours; others are bands.
        let color = self.bands - usize::from(self.alpha) == 3;
        let photometric = if self.palette.is_some() { 3 } else { 1 + usize::from(color) };
        let mut entries = vec![
            (NEW_SUBFILE_TYPE, Value::Long(vec![u32::from(!first)])),
            (IMAGE_WIDTH, Value::Long(vec![width as u32])),
            (IMAGE_LENGTH, Value::Long(vec![height as u32])),
            (BITS_PER_SAMPLE, each(8 * self.samples.size() as u16)),
            (COMPRESSION, short(if self.compressed { 8 } else { 1 })),
            (PHOTOMETRIC, short(photometric)),
            (SAMPLES_PER_PIXEL, short(self.bands)),
            (PLANAR_CONFIGURATION, short(1)),
            (TILE_WIDTH, short(self.tile)),
            (TILE_LENGTH, short(self.tile)),
            (
                TILE_OFFSETS,
                match big {
                    true => Value::Long8(tiles.offsets.clone()),
                    false => Value::Long(tiles.offsets.iter().map(|at| *at as u32).collect()),
                },
            ),
            (TILE_BYTE_COUNTS, Value::Long(tiles.lengths.clone())),
            (SAMPLE_FORMAT, each(self.samples.format())),
        ];
        let mut extra = vec![0; self.bands - if color { 3 } else { 1 }];
        if let (true, Some(last)) = (self.alpha, extra.last_mut()) {
            *last = 2;
        }
        if !extra.is_empty() {
            entries.push((EXTRA_SAMPLES, Value::Short(extra)));
        }
        if let Some(palette) = &self.palette {
            let level =
                |band: usize, i: usize| palette.get(i).map_or(0, |c| u16::from(c[band]) * 257);
            let levels = (0..3).flat_map(|band| (0..256).map(move |i| level(band, i)));
            entries.push((COLOR_MAP, Value::Short(levels.collect())));
        }
        if first {
            entries.extend(self.georeference.iter().flat_map(Georeference::entries));
            let units = Units::items(&self.units);
            if !self.metadata.is_empty() || !units.is_empty() {
                let item = |(name, text): &(String, String)| {
                    // GDAL takes a text's entities for characters twice.
                    let text = escaped(&escaped(text));
                    format!("<Item name=\"{}\">{text}</Item>", escaped(name))
                };
                let items: String = self.metadata.iter().map(item).collect();
                let text = format!("<GDALMetadata>{items}{units}</GDALMetadata>");
                entries.push((GDAL_METADATA, Value::Ascii(text)));
            }
        }
        if let Some(nodata) = self.nodata {
            entries.push((GDAL_NODATA, Value::Ascii(nodata.to_string())));
        }
        entries.sort_by_key(|(tag, _)| *tag);
        entries
    }
}

/// Where the tiles of a picture are, by places in their file, and bytes of each.
#[derive(Default)]
struct Tiles {
    offsets: Vec<u64>,
    lengths: Vec<u32>,
}

/// The picture, or an overview of it, as far as it is there.
struct Level {
    width: usize,
    height: usize,
    /// Rows that were taken up.
    rows: usize,
    /// Those of them that are no tiles yet.
    band: Vec<u8>,
    /// A row that waits for the one below it, to be made smaller together.
    upper: Option<Vec<u8>>,
    tiles: Tiles,
    /// Tiles that are done, with what stands around them.
    done: BufWriter<File>,
    bytes: u64,
}

/// A file that is being written.
pub struct CogWriter {
    cog: Cog,
    output: Output,
    path: std::path::PathBuf,
    levels: Vec<Level>,
}

/// Bytes before a tile, its length, and behind it, its last four again.
const AROUND: u64 = 4;

impl CogWriter {
    /// Begins the file `path`; one that is there is replaced at the end, if `replace` says so.
    ///
    /// # Errors
    /// As [`Output::create`]; `Argument` where `cog` is not possible.
    pub fn create(path: &Path, cog: Cog, replace: bool) -> Result<Self> {
        cog.check()?;
        let output = Output::create(path, replace)?;
        let (mut width, mut height) = (cog.width, cog.height);
        let mut levels = Vec::new();
        loop {
            let done = tempfile::tempfile_in(output.folder());
            let done =
                BufWriter::with_capacity(1 << 18, done.map_err(|e| atomic::explain(path, e))?);
            let (tiles, band) = (Tiles::default(), Vec::new());
            levels.push(Level { width, height, rows: 0, band, upper: None, tiles, done, bytes: 0 });
            if width.max(height) <= cog.tile {
                break;
            }
            (width, height) = (width.div_ceil(2), height.div_ceil(2));
        }
        Ok(Self { cog, output, path: path.to_path_buf(), levels })
    }

    /// Takes up whole rows, one or more, [rows, width, bands] as numbers lie in memory.
    ///
    /// # Errors
    /// The disk is full; `Argument` when these are no whole rows, or more than are to come.
    pub fn write_rows(&mut self, rows: &[u8]) -> Result<()> {
        let row = self.cog.width * self.cog.pixel();
        let left = self.cog.height - self.levels[0].rows;
        if !rows.len().is_multiple_of(row) || rows.len() / row > left {
            let expected = format!("whole rows of {row} bytes, at most {left}");
            return Err(Error::argument("rows", format!("{} bytes", rows.len()), expected));
        }
        let done = rows.chunks_exact(row).try_for_each(|row| self.take(0, row));
        done.map_err(|e| atomic::explain(&self.path, e))
    }

    /// Takes up a row of a level, and of those above it what it completes.
    fn take(&mut self, index: usize, row: &[u8]) -> io::Result<()> {
        let more = index + 1 < self.levels.len();
        let level = &mut self.levels[index];
        level.band.extend_from_slice(row);
        level.rows += 1;
        let last = level.rows == level.height;
        if level.rows.is_multiple_of(self.cog.tile) || last {
            level.flush(&self.cog)?;
        }
        if !more {
            return Ok(());
        }
        let smaller = match level.upper.take() {
            Some(upper) => half(&self.cog, &upper, Some(row)),
            None if last => half(&self.cog, row, None),
            None => {
                level.upper = Some(row.to_vec());
                return Ok(());
            }
        };
        self.take(index + 1, &smaller)
    }

    /// Puts the file together, and gives it its name.
    ///
    /// # Errors
    /// The disk is full; `Argument` when rows are missing.
    pub fn finish(self) -> Result<()> {
        let Self { cog, mut output, path, mut levels } = self;
        if levels[0].rows < cog.height {
            let found = format!("{} rows", levels[0].rows);
            return Err(Error::argument("rows", found, format!("{}", cog.height)));
        }
        assemble(&cog, &mut levels, &mut output).map_err(|e| atomic::explain(&path, e))?;
        output.finish()
    }
}

impl Level {
    /// Makes tiles of the rows that wait.
    fn flush(&mut self, cog: &Cog) -> io::Result<()> {
        let (side, pixel) = (cog.tile, cog.pixel());
        let band = std::mem::take(&mut self.band);
        let (row, width) = (self.width * pixel, self.width);
        let tile = |across: usize| -> io::Result<Vec<u8>> {
            let from = across * side * pixel;
            let to = ((across + 1) * side).min(width) * pixel;
            let mut bytes = vec![0; side * side * pixel];
            for (out, row) in bytes.chunks_exact_mut(side * pixel).zip(band.chunks_exact(row)) {
                out[..to - from].copy_from_slice(&row[from..to]);
            }
            if !cog.compressed {
                return Ok(bytes);
            }
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::new(6));
            encoder.write_all(&bytes)?;
            encoder.finish()
        };
        // So many at a time that little is held beside the rows themselves.
        let across = width.div_ceil(side);
        for first in (0..across).step_by(16) {
            let some = first..across.min(first + 16);
            let tiles: Vec<_> = some.into_par_iter().map(tile).collect();
            for tile in tiles {
                let tile = tile?;
                self.done.write_all(&(tile.len() as u32).to_le_bytes())?;
                self.done.write_all(&tile)?;
                self.done.write_all(&tile[tile.len() - 4..])?;
                self.tiles.offsets.push(self.bytes + AROUND);
                self.tiles.lengths.push(tile.len() as u32);
                self.bytes += tile.len() as u64 + 2 * AROUND;
            }
        }
        self.band = band;
        self.band.clear();
        Ok(())
    }
}

/// A row of half as many pixels, of two rows or the last one.
fn half(cog: &Cog, upper: &[u8], lower: Option<&[u8]>) -> Vec<u8> {
    let pixel = cog.pixel();
    if cog.resampling == Resampling::Nearest {
        return upper.chunks_exact(pixel).step_by(2).flatten().copied().collect();
    }
    let numbers = |row: &[u8]| cog.samples.numbers(row);
    let (upper, lower) = (numbers(upper), lower.map(numbers));
    let rows: Vec<&[f64]> =
        [Some(&upper), lower.as_ref()].into_iter().flatten().map(|r| &r[..]).collect();
    let mut out = Vec::with_capacity(upper.len() / 2 * cog.samples.size());
    let is_data = |pixel: &&[f64]| {
        cog.nodata.is_none_or(|nodata| pixel.iter().any(|x| *x != nodata && !x.is_nan()))
    };
    for x in (0..upper.len()).step_by(2 * cog.bands) {
        let end = (x + 2 * cog.bands).min(upper.len());
        let pixels = rows.iter().flat_map(|row| row[x..end].chunks_exact(cog.bands));
        let pixels: Vec<&[f64]> = pixels.filter(is_data).collect();
        for band in 0..cog.bands {
            let sum: f64 = pixels.iter().map(|pixel| pixel[band]).sum();
            let mean = sum / pixels.len() as f64;
            let number = if pixels.is_empty() { cog.nodata.unwrap_or_default() } else { mean };
            cog.samples.push(number, &mut out);
        }
    }
    out
}

/// What GDAL looks for behind the header: that directories stand first, in which order tiles follow, and what is around each.
fn structure() -> Vec<u8> {
    // A program that changes the file writes YES over the last line, which takes a character more.
    let body = "LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n\
                BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n ";
    let mut bytes =
        format!("GDAL_STRUCTURAL_METADATA_SIZE={:06} bytes\n{body}", body.len()).into_bytes();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn assemble(cog: &Cog, levels: &mut [Level], out: &mut dyn Write) -> io::Result<()> {
    // 1. how large it gets
    let tiles: u64 = levels.iter().map(|level| level.bytes).sum();
    let directories = |levels: &[Level], big: bool| -> Vec<u8> {
        let mut head = header(0, big);
        head.extend(structure());
        head.resize(head.len().next_multiple_of(8), 0);
        let first = head.len() as u64;
        head.splice(..header(first, big).len(), header(first, big));
        for (i, level) in levels.iter().enumerate() {
            let entries = cog.entries([level.width, level.height], i == 0, &level.tiles, big);
            head.extend(directory(&entries, head.len() as u64, i + 1 < levels.len(), big));
        }
        head
    };
    let length = directories(levels, false).len() as u64 + tiles;
    let big = cog.big.unwrap_or(length > u64::from(u32::MAX));
    if !big && length > u64::from(u32::MAX) {
        let message = format!("{length} bytes need 64-bit offsets");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    // 2. where the tiles go: their number decides how long the directories are, not their places
    let mut at = directories(levels, big).len() as u64;
    for level in levels.iter_mut().rev() {
        level.tiles.offsets.iter_mut().for_each(|offset| *offset += at);
        at += level.bytes;
    }
    // 3. the file
    out.write_all(&directories(levels, big))?;
    let mut buffer = vec![0; 1 << 20];
    for level in levels.iter_mut().rev() {
        level.done.flush()?;
        let file = level.done.get_mut();
        file.seek(SeekFrom::Start(0))?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                count => out.write_all(&buffer[..count])?,
            }
        }
    }
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tiles that are said to be there, so that none of their bytes have to be.
    #[test]
    fn offsets_have_64_bits_where_32_do_not_reach() {
        let cog = Cog::new(1024, 512, 1, SampleKind::U8);
        let level = |bytes| Level {
            width: 1024,
            height: 512,
            rows: 512,
            band: Vec::new(),
            upper: None,
            tiles: Tiles { offsets: vec![AROUND, bytes - 100], lengths: vec![10, 20] },
            done: BufWriter::new(tempfile::tempfile().unwrap()),
            bytes,
        };
        let most = u64::from(u32::MAX);
        for (bytes, version) in [(most - 2000, 42), (most - 100, 43), (5 * most, 43)] {
            let (mut levels, mut out) = ([level(bytes)], Vec::new());
            assemble(&cog, &mut levels, &mut out).unwrap();
            assert_eq!(out[2], version, "{bytes}");
            let head = out.len() as u64;
            assert_eq!(levels[0].tiles.offsets, [head + AROUND, head + bytes - 100]);
        }
        let small = Cog { big: Some(false), ..cog };
        let error = assemble(&small, &mut [level(most)], &mut Vec::new()).unwrap_err();
        assert!(error.to_string().contains("64-bit"), "{error}");
    }
}
