//! PNG files that say how they were made.
//!
//! Two texts: `parameters`, in the form that AUTOMATIC1111's web UI writes and image viewers read, and
//! `nadir`, JSON that makes the very picture again. Each is a `tEXt` chunk where Latin-1 holds it, else `iTXt`
//! (PNG specification, 11.3.3).

use std::fmt;
use std::io::{self, BufRead, BufReader, BufWriter, Seek, Write};
use std::path::Path;

use ::image::RgbImage;

use super::{atomic, caught, open_file};
use crate::error::{Error, Result};

/// Keyword of the text in the web UI's form.
pub const PARAMETERS: &str = "parameters";

/// Keyword of the JSON text that replays a picture.
pub const REPLAY: &str = "nadir";

/// Keyword of the JSON text that says how a scene was made.
pub const SCENE: &str = "nadir-scene";

/// Texts that are longer, all together, are no description of a picture.
const MAX_TEXT: usize = 16 << 20;

/// Writes a picture with texts (keyword, text), atomically.
///
/// # Errors
/// The file cannot be written, or a text cannot be in a PNG (a keyword must be 1 to 79 Latin-1 characters).
pub fn write(path: &Path, image: &RgbImage, texts: &[(&str, &str)]) -> Result<()> {
    atomic::write(path, |out| encode(out, image, texts))
}

/// As [`write()`], to anywhere.
///
/// # Errors
/// `out` failed, or a text cannot be in a PNG.
pub fn encode(out: &mut dyn Write, image: &RgbImage, texts: &[(&str, &str)]) -> io::Result<()> {
    let mut encoder = ::png::Encoder::new(out, image.width(), image.height());
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    add_texts(&mut encoder, texts)?;
    let mut writer = encoder.write_header().map_err(into_io)?;
    writer.write_image_data(image.as_raw()).map_err(into_io)?;
    writer.finish().map_err(into_io)
}

fn add_texts(encoder: &mut ::png::Encoder<impl Write>, texts: &[(&str, &str)]) -> io::Result<()> {
    for (keyword, text) in texts {
        let latin1 = text.chars().all(|c| c != '\0' && u32::from(c) < 256);
        let (keyword, text) = (keyword.to_string(), text.to_string());
        if latin1 {
            encoder.add_text_chunk(keyword, text)
        } else {
            encoder.add_itxt_chunk(keyword, text)
        }
        .map_err(into_io)?;
    }
    Ok(())
}

/// Writes a picture of so many columns and rows with texts, atomically, while its rows come: `fill` gives them to what it is
/// given, from the top on.
///
/// # Errors
/// The file cannot be written; rows are missing or too many; what `fill` answers.
pub fn write_rows(
    path: &Path,
    [width, height]: [u32; 2],
    texts: &[(&str, &str)],
    fill: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>,
) -> Result<()> {
    let mut output = atomic::Output::create(path, true)?;
    let mut buffered = BufWriter::new(&mut output);
    let mut encoder = ::png::Encoder::new(&mut buffered, width, height);
    encoder.set_color(::png::ColorType::Rgb);
    encoder.set_depth(::png::BitDepth::Eight);
    add_texts(&mut encoder, texts).map_err(|e| atomic::explain(path, e))?;
    let explain = |error| atomic::explain(path, into_io(error));
    let mut writer = encoder.write_header().map_err(explain)?;
    let mut stream = writer.stream_writer().map_err(explain)?;
    fill(&mut |rows| stream.write_all(rows).map_err(|e| atomic::explain(path, e)))?;
    stream.finish().map_err(explain)?;
    writer.finish().map_err(explain)?;
    drop(buffered);
    output.finish()
}

/// Writes a picture whose pixels are places in a palette, atomically; `transparent` is one of them.
///
/// # Errors
/// The file cannot be written, or `pixels` are not `width` x `height`.
pub fn write_indexed(
    path: &Path,
    [width, height]: [u32; 2],
    palette: &[[u8; 3]],
    transparent: u8,
    pixels: &[u8],
) -> Result<()> {
    let size = [width, height];
    atomic::write(path, |out| encode_indexed(out, size, palette, transparent, pixels))
}

/// Encodes such a picture; as [`write_indexed`], but for where it goes.
///
/// # Errors
/// Those of `out`; `pixels` are not `width` x `height`.
pub fn encode_indexed(
    out: &mut dyn Write,
    [width, height]: [u32; 2],
    palette: &[[u8; 3]],
    transparent: u8,
    pixels: &[u8],
) -> io::Result<()> {
    // A place without a colour would make it no PNG.
    let most = pixels.iter().max().copied().unwrap_or_default();
    let colors = palette.len().max(usize::from(most) + 1);
    let color = |i: usize| palette.get(i).copied().unwrap_or_default();
    let mut encoder = ::png::Encoder::new(out, width, height);
    encoder.set_color(::png::ColorType::Indexed);
    encoder.set_depth(::png::BitDepth::Eight);
    encoder.set_palette((0..colors).flat_map(color).collect::<Vec<u8>>());
    if most >= transparent {
        let opacity = |i| if i == usize::from(transparent) { 0 } else { 255 };
        encoder.set_trns((0..colors).map(opacity).collect::<Vec<u8>>());
    }
    let mut writer = encoder.write_header().map_err(into_io)?;
    writer.write_image_data(pixels).map_err(into_io)?;
    writer.finish().map_err(into_io)
}

fn into_io(error: ::png::EncodingError) -> io::Error {
    match error {
        ::png::EncodingError::IoError(e) => e,
        other => io::Error::new(io::ErrorKind::InvalidData, other),
    }
}

/// The texts of a PNG file that nadir writes, [`PARAMETERS`] and [`REPLAY`], as (keyword, text), in the order `tEXt`,
/// `zTXt`, `iTXt`. Others are passed over, compressed ones unread.
///
/// # Errors
/// The file is missing, no PNG, or damaged; a text is there twice, or they are longer than 16 MiB together.
pub fn read_texts(path: &Path) -> Result<Vec<(String, String)>> {
    texts(BufReader::new(open_file(path)?), path)
}

/// As [`read_texts`], of a file's content; `path` is what errors call it.
///
/// # Errors
/// As for [`read_texts`].
pub fn texts(file: impl BufRead + Seek, path: &Path) -> Result<Vec<(String, String)>> {
    let run = || -> Result<Vec<(String, String)>, ::png::DecodingError> {
        let mut reader = ::png::Decoder::new(file).read_info()?;
        // Texts may stand behind the pixels too.
        reader.finish()?;
        let info = reader.info();
        let is_ours = |keyword: &str| keyword == PARAMETERS || keyword == REPLAY;
        let latin1 = info.uncompressed_latin1_text.iter().filter(|t| is_ours(&t.keyword));
        let mut texts: Vec<(String, String)> =
            latin1.map(|t| (t.keyword.clone(), t.text.clone())).collect();
        // What is inflated shares one allowance: a kilobyte of a file can stand for a megabyte of text.
        let mut left = MAX_TEXT;
        for text in info.compressed_latin1_text.iter().filter(|t| is_ours(&t.keyword)) {
            let mut text = text.clone();
            text.decompress_text_with_limit(left)?;
            let (keyword, text) = (text.keyword.clone(), text.get_text()?);
            left = left.saturating_sub(text.len());
            texts.push((keyword, text));
        }
        for text in info.utf8_text.iter().filter(|t| is_ours(&t.keyword)) {
            let mut text = text.clone();
            text.decompress_text_with_limit(left)?;
            let (keyword, text) = (text.keyword.clone(), text.get_text()?);
            left = left.saturating_sub(text.len());
            texts.push((keyword, text));
        }
        Ok(texts)
    };
    let texts = caught(run).and_then(|done| done.map_err(|e| e.to_string())).map_err(|found| {
        Error::file(path, "picture", "a PNG file", found, "Does a viewer open it?")
    })?;
    for keyword in [PARAMETERS, REPLAY] {
        let count = texts.iter().filter(|(k, _)| k == keyword).count();
        if count > 1 {
            let (what, found) = (format!("text \"{keyword}\""), format!("{count} of them"));
            let advice = "Another program has added to what nadir wrote: which one holds is not for nadir to guess.";
            return Err(Error::file(path, what, "one", found, advice));
        }
    }
    Ok(texts)
}

/// The JSON text of a picture that nadir made.
///
/// # Errors
/// As for [`read_texts`]; the picture has no such text, or it is no JSON.
pub fn read_replay(path: &Path) -> Result<serde_json::Value> {
    let texts = read_texts(path)?;
    let wrong = |found: String| {
        let advice = "Only pictures that nadir wrote, and no other program has saved since, can be replayed.";
        Error::file(path, "text \"nadir\"", "how the picture was made, as JSON", found, advice)
    };
    match texts.iter().find(|(keyword, _)| keyword == REPLAY) {
        Some((_, text)) => serde_json::from_str(text).map_err(|e| wrong(e.to_string())),
        None => Err(wrong("no such text".to_owned())),
    }
}

/// The web UI's description of a picture.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Parameters {
    /// What to draw.
    pub prompt: String,
    /// What not to draw; empty for none.
    pub negative_prompt: String,
    /// Everything else, in order: `Steps`, `Sampler`, `CFG scale`, `Seed`, `Size`, ...
    pub settings: Vec<(String, String)>,
}

impl Parameters {
    /// Adds a setting; chainable.
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds `Clip skip` in the web UI's numbering, which is one more than diffusers': there 1 is the last
    /// layer and goes without saying, here 0 is.
    pub fn with_clip_skip(self, diffusers: usize) -> Self {
        if diffusers == 0 { self } else { self.with("Clip skip", diffusers + 1) }
    }

    /// A setting's value.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.settings.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Reads the web UI's form. A text without a line of settings is all prompt.
    pub fn parse(text: &str) -> Self {
        let (body, last) = text.trim().rsplit_once('\n').unwrap_or(("", text.trim()));
        let (body, settings) = match parse_settings(last) {
            // Fewer are a prompt with colons in it.
            Some(settings) if settings.len() >= 3 => (body, settings),
            _ => (text.trim(), Vec::new()),
        };
        let (prompt, negative) = match body.strip_prefix(NEGATIVE) {
            Some(negative) => ("", negative),
            None => body.split_once(&format!("\n{NEGATIVE}")).unwrap_or((body, "")),
        };
        Self {
            prompt: prompt.trim().to_owned(),
            negative_prompt: negative.trim().to_owned(),
            settings,
        }
    }
}

const NEGATIVE: &str = "Negative prompt:";

impl fmt::Display for Parameters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.prompt)?;
        if !self.negative_prompt.is_empty() {
            writeln!(f, "{NEGATIVE} {}", self.negative_prompt)?;
        }
        for (i, (name, value)) in self.settings.iter().enumerate() {
            let comma = if i == 0 { "" } else { ", " };
            // The web UI quotes what its reader would split.
            if value.contains([',', '\n', ':', '"']) {
                write!(f, "{comma}{name}: {}", serde_json::Value::from(value.as_str()))?;
            } else {
                write!(f, "{comma}{name}: {value}")?;
            }
        }
        Ok(())
    }
}

/// `Name: value, Name: "quoted, value"`; `None` for any other line.
fn parse_settings(mut line: &str) -> Option<Vec<(String, String)>> {
    let mut settings = Vec::new();
    while !line.trim().is_empty() {
        let (name, rest) = line.split_once(':')?;
        let rest = rest.trim_start();
        let (value, rest) = if rest.starts_with('"') {
            let mut values = serde_json::Deserializer::from_str(rest).into_iter::<String>();
            let value = values.next()?.ok()?;
            (value, &rest[values.byte_offset()..])
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            (rest[..end].trim().to_owned(), &rest[end..])
        };
        settings.push((name.trim().to_owned(), value));
        line = rest.trim_start().trim_start_matches(',');
    }
    Some(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> RgbImage {
        RgbImage::from_fn(5, 3, |x, y| ::image::Rgb([x as u8 * 50, y as u8 * 80, 7]))
    }

    #[test]
    fn texts_and_pixels_survive() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let json = r#"{"prompt":"東京の衛星写真 é","seed":42}"#;
        write(&path, &picture(), &[(PARAMETERS, "a\nfarm é"), (REPLAY, json)]).unwrap();
        assert_eq!(crate::io::image::open(&path).unwrap(), picture());
        let texts = read_texts(&path).unwrap();
        assert_eq!(
            texts,
            [(PARAMETERS.into(), "a\nfarm é".into()), (REPLAY.into(), json.to_owned())]
        );
        assert_eq!(read_replay(&path).unwrap()["seed"], 42);
    }

    #[test]
    fn a_picture_without_the_text_cannot_be_replayed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        write(&path, &picture(), &[]).unwrap();
        assert!(read_replay(&path).unwrap_err().to_string().contains("no such text"));
        write(&path, &picture(), &[(REPLAY, "{")]).unwrap();
        assert!(read_replay(&path).unwrap_err().to_string().contains("as JSON"));
        // A keyword that PNG does not allow leaves no file behind.
        let other = folder.path().join("b.png");
        let error = write(&other, &picture(), &[("", "x")]).unwrap_err();
        assert!(matches!(&error, Error::Io { path, .. } if *path == other), "{error}");
        assert!(!other.exists());
    }

    #[test]
    fn damaged_files_are_errors() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let mut whole = Vec::new();
        encode(&mut whole, &picture(), &[(REPLAY, "{}")]).unwrap();
        for cut in 0..whole.len() - 12 {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let errors = [
                read_texts(&path).map(drop).unwrap_err(),
                crate::io::image::open(&path).map(drop).unwrap_err(),
            ];
            for error in errors.map(|error| error.to_string()) {
                assert!(error.contains("a.png: picture: expected a PNG"), "cut at {cut}: {error}");
            }
        }
    }

    /// A PNG of one pixel with these chunks before its end.
    fn with_chunks(chunks: &[([u8; 4], Vec<u8>)]) -> Vec<u8> {
        let mut file = Vec::new();
        let mut encoder = ::png::Encoder::new(&mut file, 1, 1);
        encoder.set_color(::png::ColorType::Rgb);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0; 3]).unwrap();
        for (kind, data) in chunks {
            writer.write_chunk(::png::chunk::ChunkType(*kind), data).unwrap();
        }
        writer.finish().unwrap();
        file
    }

    /// A `zTXt` chunk of `len` zeros, which compress a thousandfold.
    fn compressed(keyword: &str, len: usize) -> ([u8; 4], Vec<u8>) {
        let mut chunk = ::png::text_metadata::ZTXtChunk::new(keyword, "0".repeat(len));
        chunk.compress_text().unwrap();
        let mut file = Vec::new();
        ::png::text_metadata::EncodableTextChunk::encode(&chunk, &mut file).unwrap();
        (*b"zTXt", file[8..file.len() - 4].to_vec())
    }

    #[test]
    fn texts_are_bounded_all_together() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let read = |chunks: &[_]| {
            std::fs::write(&path, with_chunks(chunks)).unwrap();
            read_texts(&path).map_err(|e| e.to_string())
        };
        let many = vec![compressed("Comment", 1 << 24); 40];
        assert_eq!(read(&many).unwrap(), [], "others' texts are not even inflated");
        let two = [compressed(PARAMETERS, 3 << 20), compressed(REPLAY, 12 << 20)];
        assert_eq!(read(&two).unwrap().iter().map(|(_, t)| t.len()).sum::<usize>(), 15 << 20);
        let error = read(&[compressed(PARAMETERS, 9 << 20), compressed(REPLAY, 9 << 20)]);
        let error = error.unwrap_err();
        assert!(error.contains("a.png") && error.contains("a PNG file"), "{error}");
        let error = read(&[compressed(REPLAY, 20), compressed(REPLAY, 20)]).unwrap_err();
        assert!(error.contains("\"nadir\"") && error.contains("2 of them"), "{error}");
    }

    #[test]
    fn the_web_uis_form() {
        let p = Parameters {
            prompt: "a river\nwinding".into(),
            negative_prompt: "blur".into(),
            ..Default::default()
        }
        .with("Steps", 20)
        .with("Sampler", "Euler a")
        .with("CFG scale", 7.5)
        .with("Seed", 42)
        .with("Size", "64x64")
        .with_clip_skip(1)
        .with("Model", "a, b");
        let text = p.to_string();
        assert_eq!(
            text,
            "a river\nwinding\nNegative prompt: blur\nSteps: 20, Sampler: Euler a, CFG scale: 7.5, Seed: 42, \
             Size: 64x64, Clip skip: 2, Model: \"a, b\""
        );
        assert_eq!(Parameters::parse(&text), p);
        assert_eq!(p.get("Seed"), Some("42"));
        assert_eq!(Parameters::default().with_clip_skip(0).settings, []);
    }

    #[test]
    fn any_text_parses() {
        let parse = |text: &str| {
            let p = Parameters::parse(text);
            (p.prompt, p.negative_prompt, p.settings.len())
        };
        let s = |a: &str, b: &str, n| (a.to_owned(), b.to_owned(), n);
        assert_eq!(parse(""), s("", "", 0));
        assert_eq!(parse("a ratio of 16:9"), s("a ratio of 16:9", "", 0));
        assert_eq!(parse("Negative prompt: x\nSteps: 1, Sampler: y, Seed: 3"), s("", "x", 3));
        assert_eq!(
            parse("p\nSteps: 1, Sampler: \"y, Seed: 3"),
            s("p\nSteps: 1, Sampler: \"y, Seed: 3", "", 0)
        );
        assert_eq!(parse("\nSteps: 1, Sampler: y, Seed: 3,"), s("", "", 3).clone());
    }
}
