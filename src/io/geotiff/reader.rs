//! Reading a TIFF a window at a time.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use ::tiff::decoder::{ChunkType, Decoder, Limits};
use ::tiff::tags::Tag;

use super::directory::{self, GDAL_METADATA, GDAL_NODATA, PHOTOMETRIC};
use super::units::{attribute, items};
use super::{Georeference, SampleKind, Units};
use crate::error::{Error, Result};
use crate::io::{caught, open_file};

/// The most bytes of a strip or tile, decoded.
const MAX_CHUNK: usize = 256 << 20;

/// Decoded strips and tiles are kept up to so many bytes; at least a row of them, which windows one after the other share, up
/// to the other.
const CACHE: usize = 16 << 20;
const MAX_CACHE: usize = 512 << 20;

/// PhotometricInterpretation.
const WHITE_IS_ZERO: u16 = 0;
const BLACK_IS_ZERO: u16 = 1;
const PALETTE: u16 = 3;
const YCBCR: u16 = 6;

/// Compression that is read: none, LZW, JPEG, deflate by either number, PackBits.
const READ: [u16; 6] = [1, 5, 7, 8, 32946, 32773];

/// Some that is not.
const UNREAD: [(u16, &str); 6] = [
    (6, "old JPEG"),
    (34712, "JPEG 2000"),
    (34887, "LERC"),
    (34925, "LZMA"),
    (50000, "ZSTD"),
    (50001, "WebP"),
];

/// What is known of a TIFF without reading its pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct About {
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Numbers of a pixel, one for opacity included.
    pub bands: usize,
    /// What they are.
    pub samples: SampleKind,
    /// Which band is opacity, if one is.
    pub alpha: Option<usize>,
    /// The number of pixels that are none, by GDAL's entry.
    pub nodata: Option<f64>,
    /// Colours that the numbers of the only band stand for.
    pub palette: Option<Vec<[u8; 3]>>,
    /// What the numbers of each band stand for, by GDAL's scale and offset; empty where it does not say.
    pub units: Vec<Units>,
    /// Where it lies.
    pub georeference: Option<Georeference>,
}

impl About {
    /// Bytes of a pixel.
    pub fn pixel(&self) -> usize {
        self.bands * self.samples.size()
    }
}

/// A rectangle of pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Its first column.
    pub x: usize,
    /// Its first row.
    pub y: usize,
    /// Columns.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// A TIFF that is open. Of several pictures in a file it is the first, which overviews and masks stand behind.
pub struct GeoTiff<R: Read + Seek = File> {
    decoder: Decoder<Patched<BufReader<R>>>,
    path: PathBuf,
    about: About,
    photometric: u16,
    chunks: Chunks,
    cache: Cache,
}

/// Strips, which are as wide as the picture, or tiles.
struct Chunks {
    width: usize,
    height: usize,
    /// In a row.
    across: usize,
    /// Chunks of a band, where each band has its own.
    plane: Option<usize>,
    /// Bytes of each in the file; those of none are not there.
    lengths: Vec<u64>,
}

impl GeoTiff {
    /// Opens a file.
    ///
    /// # Errors
    /// It is missing, no TIFF, damaged, cut off, or of a kind that cannot be read a window at a time.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::new(open_file(path)?, path)
    }
}

impl<R: Read + Seek> GeoTiff<R> {
    /// The same of something else than a file; `origin` is what errors call it.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn new(input: R, origin: &Path) -> Result<Self> {
        let opened = caught(|| Self::begin(input, origin)).and_then(|opened| opened);
        opened.map_err(|found| {
            let expected = "a TIFF of 8, 16, 32 or 64 bits a number";
            let advice = "gdal_translate -co TILED=YES -co COMPRESS=DEFLATE IN OUT writes one, if GDAL can read the file.";
            Error::file(origin, "picture", expected, found, advice)
        })
    }

    fn begin(input: R, origin: &Path) -> std::result::Result<Self, String> {
        let io = |e: io::Error| e.to_string();
        let mut file = Patched { file: BufReader::new(input), patch: None };
        let length = file.seek(SeekFrom::End(0)).map_err(io)?;
        let place = directory::find(&mut file, PHOTOMETRIC).map_err(io)?;
        let mut photometric = BLACK_IS_ZERO;
        if let Some((at, little)) = place {
            let mut bytes = [0; 2];
            file.seek(SeekFrom::Start(at)).map_err(io)?;
            file.read_exact(&mut bytes).map_err(io)?;
            photometric =
                if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) };
            // Told that these are colours, the decoder leaves out bands beyond them, and knows no palettes; of plain bands it
            // gives all, as they are.
            let plain =
                if little { BLACK_IS_ZERO.to_le_bytes() } else { BLACK_IS_ZERO.to_be_bytes() };
            file.patch = Some((at, plain));
        }
        file.seek(SeekFrom::Start(0)).map_err(io)?;
        let text = |e: ::tiff::TiffError| e.to_string();
        let mut limits = Limits::default();
        (limits.decoding_buffer_size, limits.intermediate_buffer_size) = (MAX_CHUNK, MAX_CHUNK);
        let mut decoder = Decoder::new(file).map_err(text)?.with_limits(limits);

        // 1. numbers
        let (width, height) = decoder.dimensions().map_err(text)?;
        let (width, height) = (width as usize, height as usize);
        let mut short = |tag| decoder.find_tag_unsigned_vec::<u16>(tag).map_err(text);
        let first = |values: Option<Vec<u16>>, default| {
            values.and_then(|v| v.first().copied()).unwrap_or(default)
        };
        let bands = usize::from(first(short(Tag::SamplesPerPixel)?, 1));
        let bits = first(short(Tag::BitsPerSample)?, 1);
        let format = first(short(Tag::SampleFormat)?, 1);
        let planar = bands > 1 && first(short(Tag::PlanarConfiguration)?, 1) == 2;
        let compression = first(short(Tag::Compression)?, 1);
        let extra = short(Tag::ExtraSamples)?.unwrap_or_default();
        let map = short(Tag::ColorMap)?;
        let Some(samples) = SampleKind::new(format, bits) else {
            return Err(format!("{bits} bits a number, of sample format {format}"));
        };
        if !READ.contains(&compression) {
            let name = UNREAD.iter().find(|(code, _)| *code == compression).map(|(_, name)| *name);
            let name = name.unwrap_or("of another kind");
            return Err(format!("compression {name} ({compression}), which is not read"));
        }
        if photometric == YCBCR && (compression != 7 || planar || bands != 3 || bits != 8) {
            return Err("luma and chroma (YCbCr) that are not JPEG".to_owned());
        }
        let alpha = extra.iter().position(|kind| matches!(kind, 1 | 2));
        let alpha = alpha.map(|at| bands.saturating_sub(extra.len()) + at).filter(|at| *at < bands);
        let palette = (photometric == PALETTE && bands == 1).then_some(map).flatten();

        // 2. place
        let mut double = |tag| match decoder.find_tag(tag).map_err(text)? {
            Some(value) => value.into_f64_vec().map(Some).map_err(text),
            None => Ok(None),
        };
        let scale = double(Tag::ModelPixelScaleTag)?;
        let tiepoints = double(Tag::ModelTiepointTag)?;
        let transformation = double(Tag::ModelTransformationTag)?;
        let doubles = double(Tag::GeoDoubleParamsTag)?;
        let keys = decoder.find_tag_unsigned_vec::<u16>(Tag::GeoKeyDirectoryTag).map_err(text)?;
        let mut ascii = |tag| match decoder.find_tag(tag).map_err(text)? {
            Some(value) => value.into_string().map(Some).map_err(text),
            None => Ok(None),
        };
        let names = ascii(Tag::GeoAsciiParamsTag)?;
        let nodata = ascii(Tag::from_u16_exhaustive(GDAL_NODATA))?;
        let nodata = nodata.and_then(|text| text.trim_matches([' ', '\0']).parse().ok());
        let metadata = ascii(Tag::from_u16_exhaustive(GDAL_METADATA))?.unwrap_or_default();
        let units = Units::read(items(&metadata), bands)?;
        let georeference =
            Georeference::read(scale, tiepoints, transformation, keys, doubles, names);

        // 3. chunks
        let (offsets, counts) = match decoder.get_chunk_type() {
            ChunkType::Strip => (Tag::StripOffsets, Tag::StripByteCounts),
            ChunkType::Tile => (Tag::TileOffsets, Tag::TileByteCounts),
        };
        let offsets = decoder.get_tag_u64_vec(offsets).map_err(text)?;
        let lengths = decoder.get_tag_u64_vec(counts).map_err(text)?;
        let end = |(at, count): (&u64, &u64)| at.saturating_add(*count);
        let end = offsets.iter().zip(&lengths).map(end).max().unwrap_or_default();
        if end > length {
            return Err(format!("a file of {length} bytes whose pixels end at {end}: cut off"));
        }
        let (chunk_width, chunk_height) = decoder.chunk_dimensions();
        // A strip of all rows may be said to have any number of them.
        let (chunk_width, chunk_height) =
            (chunk_width as usize, (chunk_height as usize).min(height));
        let across = width.div_ceil(chunk_width);
        let plane = planar.then(|| across * height.div_ceil(chunk_height));
        let count = if planar { 1 } else { bands };
        let bytes = [chunk_width, chunk_height, count, samples.size()];
        let bytes = bytes.into_iter().try_fold(1_usize, usize::checked_mul).unwrap_or(usize::MAX);
        if bytes > MAX_CHUNK {
            return Err(format!(
                "strips or tiles of {chunk_width}x{chunk_height} pixels, more than {MAX_CHUNK} bytes each"
            ));
        }
        let in_row = bytes.saturating_mul(across * if planar { bands } else { 1 } + 1);
        let cache = Cache::of(in_row.clamp(CACHE, MAX_CACHE));
        let chunks = Chunks { width: chunk_width, height: chunk_height, across, plane, lengths };
        let palette = palette.map(|map| {
            let n = map.len() / 3;
            (0..n).map(|i| [0, 1, 2].map(|band| (map[band * n + i] >> 8) as u8)).collect()
        });
        let about =
            About { width, height, bands, samples, alpha, nodata, palette, units, georeference };
        Ok(Self { decoder, path: origin.to_path_buf(), about, photometric, chunks, cache })
    }

    /// What is known of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// The names and texts of [`Cog::metadata`](super::Cog::metadata), by GDAL's entry; none where there is no such entry.
    ///
    /// # Errors
    /// The entry is damaged.
    pub fn metadata(&mut self) -> Result<Vec<(String, String)>> {
        let wrong = |e: ::tiff::TiffError| {
            let advice = "Write the file again.";
            Error::file(&self.path, "metadata", "GDAL's XML", e.to_string(), advice)
        };
        let tag = Tag::from_u16_exhaustive(GDAL_METADATA);
        let Some(value) = self.decoder.find_tag(tag).map_err(wrong)? else { return Ok(Vec::new()) };
        let xml = value.into_string().map_err(wrong)?;
        // Those of bands, and what they stand for, are no texts.
        let of_all = items(&xml).filter(|(head, _)| attribute(head, "role").is_none());
        let item = |(head, text)| {
            // As the writer has it: see there.
            Some((characters(attribute(head, "name")?), characters(&characters(text))))
        };
        Ok(of_all.filter_map(item).collect())
    }

    /// Its name.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Pixels of a window, row by row, the bands of a pixel side by side, as numbers lie in memory:
    /// [height, width, bands] of [`samples`](About::samples). Strips and tiles are decoded when they are needed, and kept for
    /// the windows beside.
    ///
    /// # Errors
    /// The file is damaged, or compressed in a way that is not read; `Argument` when the window reaches out of the picture.
    pub fn read(&mut self, window: Window) -> Result<Vec<u8>> {
        let Window { x, y, width, height } = window;
        let About { width: columns, height: rows, .. } = self.about;
        let fits = |at: usize, size: usize, all| at.checked_add(size).is_some_and(|end| end <= all);
        if !fits(x, width, columns) || !fits(y, height, rows) {
            let expected = format!("within {columns}x{rows} pixels");
            return Err(Error::argument("window", format!("{window:?}"), expected));
        }
        let (size, pixel) = (self.about.samples.size(), self.about.pixel());
        let mut out = vec![0; width * height * pixel];
        if out.is_empty() {
            return Ok(out);
        }
        let (w, h) = (self.chunks.width, self.chunks.height);
        for down in y / h..=(y + height - 1) / h {
            for across in x / w..=(x + width - 1) / w {
                let first = down * self.chunks.across + across;
                let planes = self.chunks.plane.map_or(1, |_| self.about.bands);
                for band in 0..planes {
                    let index = first + band * self.chunks.plane.unwrap_or_default();
                    self.decode(index)?;
                    let chunk = self.cache.get(index);
                    // What of the chunk lies in the window, and in the picture.
                    let (left, right) = (x.max(across * w), (x + width).min((across + 1) * w));
                    let (top, bottom) = (y.max(down * h), (y + height).min((down + 1) * h));
                    let step = if planes == 1 { pixel } else { size };
                    let wide = w.min(columns - across * w);
                    for row in top..bottom {
                        let from = ((row - down * h) * wide + left - across * w) * step;
                        let from = &chunk[from..from + (right - left) * step];
                        let to = ((row - y) * width + left - x) * pixel;
                        let to = &mut out[to..to + (right - left) * pixel];
                        if planes == 1 {
                            to.copy_from_slice(from);
                            continue;
                        }
                        for (from, to) in from.chunks_exact(size).zip(to.chunks_exact_mut(pixel)) {
                            to[band * size..][..size].copy_from_slice(from);
                        }
                    }
                }
            }
        }
        Ok(out)
    }

    /// Sees to it that a chunk is in the cache.
    fn decode(&mut self, index: usize) -> Result<()> {
        if self.cache.has(index) {
            return Ok(());
        }
        let About { bands, samples, nodata, width, height, .. } = self.about;
        let bands = if self.chunks.plane.is_some() { 1 } else { bands };
        // The place among the chunks of its plane, and how much of the picture it has.
        let place = self.chunks.plane.map_or(index, |plane| index % plane);
        let (down, across) = (place / self.chunks.across, place % self.chunks.across);
        let wide = self.chunks.width.min(width - across * self.chunks.width);
        let high = self.chunks.height.min(height - down * self.chunks.height);
        let needed = wide * high * bands * samples.size();
        let mut bytes;
        if self.chunks.lengths[index] == 0 {
            // Sparse: what nobody has written.
            let mut one = Vec::new();
            samples.push(nodata.unwrap_or_default(), &mut one);
            bytes = one.repeat(wide * high * bands);
        } else {
            let decoder = &mut self.decoder;
            let read = || -> std::result::Result<Vec<u8>, String> {
                let text = |e: ::tiff::TiffError| e.to_string();
                let layout = decoder.image_chunk_buffer_layout(index as u32).map_err(text)?;
                let mut bytes = vec![0; layout.len.min(MAX_CHUNK)];
                decoder.read_chunk_bytes(index as u32, &mut bytes).map_err(text)?;
                Ok(bytes)
            };
            bytes = caught(read).and_then(|read| read).map_err(|found| {
                let what = format!("pixels from row {} on", down * self.chunks.height);
                let advice = "Is the file complete? gdal_translate says whether GDAL can read it.";
                Error::file(&self.path, what, "a strip or tile", found, advice)
            })?;
            if bytes.len() < needed {
                let expected = format!("{needed} bytes in a strip or tile");
                let advice = "The file is damaged.";
                return Err(Error::file(
                    &self.path,
                    "pixels",
                    expected,
                    bytes.len().to_string(),
                    advice,
                ));
            }
            bytes.truncate(needed);
            match (self.photometric, samples) {
                (WHITE_IS_ZERO, SampleKind::U8 | SampleKind::U16) => {
                    bytes.iter_mut().for_each(|byte| *byte = !*byte);
                }
                (YCBCR, _) => bytes.as_chunks_mut().0.iter_mut().for_each(to_rgb),
                _ => {}
            }
        }
        self.cache.put(index, bytes);
        Ok(())
    }
}

/// Of luma and chroma, as in JPEG files (ITU-T T.871).
fn to_rgb(pixel: &mut [u8; 3]) {
    let [y, cb, cr] = pixel.map(f32::from);
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let level = |x: f32| x.round().clamp(0.0, 255.0) as u8;
    let green = y - 0.344_136_3 * cb - 0.714_136_3 * cr;
    *pixel = [level(y + 1.402 * cr), level(green), level(y + 1.772 * cb)];
}

/// A file two bytes of which are others.
struct Patched<R> {
    file: R,
    patch: Option<(u64, [u8; 2])>,
}

impl<R: Read + Seek> Read for Patched<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let Some((place, bytes)) = self.patch else { return self.file.read(out) };
        let at = self.file.stream_position()?;
        let count = self.file.read(out)?;
        for (place, byte) in (place..).zip(bytes) {
            if let Some(i) = place.checked_sub(at).filter(|i| *i < count as u64) {
                out[i as usize] = byte;
            }
        }
        Ok(count)
    }
}

impl<R: Seek> Seek for Patched<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }

    fn stream_position(&mut self) -> io::Result<u64> {
        self.file.stream_position()
    }
}

/// Decoded chunks, those that were needed last.
struct Cache {
    room: usize,
    held: usize,
    /// Which use was the last.
    now: u64,
    chunks: HashMap<usize, (u64, Vec<u8>)>,
}

impl Cache {
    fn of(room: usize) -> Self {
        Self { room, held: 0, now: 0, chunks: HashMap::new() }
    }

    fn has(&self, index: usize) -> bool {
        self.chunks.contains_key(&index)
    }

    /// A chunk, which is there.
    fn get(&mut self, index: usize) -> &[u8] {
        self.now += 1;
        let now = self.now;
        self.chunks.get_mut(&index).map_or(&[], |(last, bytes)| {
            *last = now;
            bytes
        })
    }

    fn put(&mut self, index: usize, bytes: Vec<u8>) {
        while self.held + bytes.len() > self.room {
            let oldest = self.chunks.iter().min_by_key(|(_, (last, _))| *last).map(|(i, _)| *i);
            let Some((_, gone)) = oldest.and_then(|index| self.chunks.remove(&index)) else {
                break;
            };
            self.held -= gone.len();
        }
        self.held += bytes.len();
        self.chunks.insert(index, (self.now, bytes));
    }
}

/// A text with its entities as the characters that they stand for.
fn characters(text: &str) -> String {
    let known = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&amp;", "&")];
    known.iter().fold(text.to_owned(), |text, (entity, character)| text.replace(entity, character))
}
