//! Pictures and texts in parquet files. Pictures: with captions, in the schema of RSICD on the hub (`filename`, `captions`, a list of
//! texts, `image`, a struct of the encoded picture's `bytes` and its `path`), or with a class (`label`, a number, and
//! `class`, its name). Texts: a column `text`, or the captions of pictures. Chunks of texts and pictures are written too.

mod groups;
mod pictures;
mod write;

use std::fs::File;
use std::path::{Path, PathBuf};

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};
use ::parquet::schema::types::Type;

pub use pictures::PictureWriter;
pub use write::{Chunk, ChunkWriter};

use super::{caught, open_file};
use crate::error::{Error, Result};

/// The longest encoded picture that is taken from a row.
const MAX_PICTURE: usize = 64 << 20;

/// The most captions of a row, and the longest caption.
const MAX_CAPTIONS: usize = 1_000;
const MAX_CAPTION: usize = 64 << 10;

/// The longest text of a column `text`.
const MAX_TEXT: usize = 16 << 20;

/// The largest label, so that a table of classes stays one.
const MAX_LABEL: u64 = 65_535;

/// The largest row group, unpacked; a file that claims more is not believed.
const MAX_GROUP: i64 = 4 << 30;

const ADVICE: &str = "Known are image (bytes, path), filename, captions (a list of texts), label (a number from 0) and \
     class (its name).";

/// An encoded picture and what its row says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Picture {
    /// Its name; its class in front, `airport_1.jpg`, in RSICD. The image's path where there is no such column.
    pub filename: Option<String>,
    /// What people (or a program) said of it.
    pub captions: Vec<String>,
    /// Its class as a number.
    pub label: Option<u32>,
    /// Its class as a name.
    pub class: Option<String>,
    /// The picture as a PNG, JPEG, ...: see [`decode`](super::image::decode).
    pub image: Vec<u8>,
    /// Classes of its pixels: see [`decode_mask`](super::raster::decode_mask).
    pub mask: Option<Vec<u8>>,
}

/// A parquet file of pictures.
pub struct Pictures {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    columns: Vec<String>,
    rows: usize,
}

impl Pictures {
    /// Opens a file and checks that its rows have pictures.
    ///
    /// # Errors
    /// The file is missing, no parquet file, damaged, or of another schema.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (reader, columns, rows) = open(path)?;
        if !columns.iter().any(|column| column == "image.bytes") {
            let found = format!("columns {}", columns.join(", "));
            let expected = "a column \"image\" with a field \"bytes\"";
            return Err(Error::file(path, "schema", expected, found, ADVICE));
        }
        Ok(Self { path: path.to_path_buf(), reader, columns, rows })
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Whether rows have a column `name`.
    pub fn has(&self, name: &str) -> bool {
        // A list's inner names differ between writers: captions.list.element, captions.list.item, ...
        let part = |column: &String| column.split('.').next() == Some(name);
        self.columns.iter().any(part)
    }

    /// All columns, for errors.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// Names of the labels 0, 1, .. where the file's metadata has them, as the hub's data sets do.
    pub fn class_names(&self) -> Option<Vec<String>> {
        let metadata = self.reader.metadata().file_metadata().key_value_metadata()?;
        let about = metadata.iter().find(|entry| entry.key == "huggingface")?.value.as_ref()?;
        let about: serde_json::Value = serde_json::from_str(about).ok()?;
        let names = about.pointer("/info/features/label/names")?.as_array()?;
        names.iter().map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// The rows one after the other. A row that is not as it should be is an error of its own; an unreadable file is one
    /// of all, behind which nothing comes.
    pub fn iter(&self) -> impl Iterator<Item = Result<Result<Picture>>> + '_ {
        let mut rows = None;
        let mut number = 0;
        let mut broken = false;
        std::iter::from_fn(move || {
            if broken {
                return None;
            }
            let mut next = || -> ::parquet::errors::Result<Option<Row>> {
                let rows = match &mut rows {
                    Some(rows) => rows,
                    none => none.insert(RowIter::from_file(None, &self.reader)?),
                };
                rows.next().transpose()
            };
            let row = caught(&mut next).and_then(|done| done.map_err(|e| e.to_string()));
            number += 1;
            match row {
                Ok(None) => None,
                Ok(Some(row)) => Some(Ok(picture(row).map_err(|fault| {
                    let what = format!("row {number}, column {}", fault.column);
                    Error::file(&self.path, what, fault.expected, fault.found, ADVICE)
                }))),
                Err(found) => {
                    broken = true;
                    let advice = "The file is damaged: download it again.";
                    let what = format!("row {number}");
                    Some(Err(Error::file(&self.path, what, "a readable row", found, advice)))
                }
            }
        })
    }
}

/// Opens a file: its reader, its columns, its number of rows.
fn open(path: &Path) -> Result<(SerializedFileReader<File>, Vec<String>, usize)> {
    let file = open_file(path)?;
    let wrong = |found: String| {
        let advice = "The file is damaged or of another kind: download it again.";
        Error::file(path, "content", "a parquet file", found, advice)
    };
    let reader = caught(|| SerializedFileReader::new(file))
        .and_then(|done| done.map_err(|e| e.to_string()))
        .map_err(wrong)?;
    let metadata = reader.metadata();
    let columns: Vec<String> = metadata
        .file_metadata()
        .schema_descr()
        .columns()
        .iter()
        .map(|c| c.path().string())
        .collect();
    let mut rows = 0;
    for group in metadata.row_groups() {
        if !(0..=MAX_GROUP).contains(&group.total_byte_size()) {
            let found = format!("{} bytes", group.total_byte_size());
            let advice = "Write the file again with smaller row groups.";
            let expected = format!("at most {MAX_GROUP} bytes");
            return Err(Error::file(path, "row group", expected, found, advice));
        }
        rows += usize::try_from(group.num_rows())
            .map_err(|_| wrong("a negative number of rows".to_owned()))?;
    }
    Ok((reader, columns, rows))
}

/// Texts of a row.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Texts {
    /// What they are called.
    pub filename: Option<String>,
    /// What they are about.
    pub class: Option<String>,
    /// The column `text`, or the captions.
    pub texts: Vec<String>,
}

/// The texts of all rows; other columns are not read.
///
/// # Errors
/// The file is missing, damaged or of another schema, or a row holds something else.
pub fn read_texts(path: &Path) -> Result<Vec<Texts>> {
    let (reader, columns, count) = open(path)?;
    let schema = reader.metadata().file_metadata().schema();
    let own = |name: &str| schema.get_fields().iter().find(|field| field.name() == name).cloned();
    let texts = own("text").or_else(|| own("captions")).ok_or_else(|| {
        let expected = "a column \"text\", or \"captions\"";
        let found = format!("columns {}", columns.join(", "));
        let advice = "Call the column of texts \"text\".";
        Error::file(path, "schema", expected, found, advice)
    })?;
    let fields = [own("filename"), own("class"), Some(texts)].into_iter().flatten().collect();
    let damaged = |found: String| {
        let advice = "The file is damaged: download it again.";
        Error::file(path, "rows", "readable rows", found, advice)
    };
    let read = || -> ::parquet::errors::Result<Vec<Row>> {
        let wanted = Type::group_type_builder(schema.name()).with_fields(fields).build()?;
        RowIter::from_file(Some(wanted), &reader)?.collect()
    };
    let rows = caught(read).and_then(|done| done.map_err(|e| e.to_string())).map_err(damaged)?;
    if rows.len() != count {
        return Err(damaged(format!("{} of {count}", rows.len())));
    }
    let texts = |(i, row): (usize, Row)| {
        texts_of(row).map_err(|fault| {
            let what = format!("row {}, column {}", i + 1, fault.column);
            let advice = "A row has a text, or a list of captions.";
            Error::file(path, what, fault.expected, fault.found, advice)
        })
    };
    rows.into_iter().enumerate().map(texts).collect()
}

fn texts_of(row: Row) -> std::result::Result<Texts, Fault> {
    let mut texts = Texts::default();
    for (name, field) in row.into_columns() {
        match name.as_str() {
            "filename" => texts.filename = text("filename", field)?,
            "class" => texts.class = text("class", field)?,
            "captions" => texts.texts = captions(field)?,
            _ => {
                let found = kind(&field);
                let own = text("text", field)?;
                if own.as_ref().is_some_and(|text| text.len() > MAX_TEXT) {
                    return Err(Fault::new("text", format!("at most {MAX_TEXT} bytes"), found));
                }
                texts.texts.extend(own);
            }
        }
    }
    Ok(texts)
}

/// What is wrong with a row.
struct Fault {
    column: &'static str,
    expected: String,
    found: String,
}

impl Fault {
    fn new(column: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self { column, expected: expected.into(), found: found.into() }
    }
}

fn picture(row: Row) -> std::result::Result<Picture, Fault> {
    let mut picture = Picture::default();
    let (mut path, mut image) = (None, None);
    for (name, field) in row.into_columns() {
        match name.as_str() {
            "filename" => picture.filename = text("filename", field)?,
            "class" => picture.class = text("class", field)?,
            "label" => picture.label = label(field)?,
            "captions" => picture.captions = captions(field)?,
            "image" => {
                let Field::Group(group) = field else {
                    return Err(Fault::new("image", "bytes and a path", kind(&field)));
                };
                for (name, field) in group.into_columns() {
                    match (name.as_str(), field) {
                        ("bytes", Field::Bytes(bytes)) => image = Some(bytes.data().to_vec()),
                        ("path", Field::Str(text)) => path = Some(text),
                        _ => {}
                    }
                }
            }
            "mask" => {
                if let Field::Group(group) = field {
                    let bytes = |(name, field): (String, Field)| match (name.as_str(), field) {
                        ("bytes", Field::Bytes(bytes)) => Some(bytes.data().to_vec()),
                        _ => None,
                    };
                    picture.mask = group.into_columns().into_iter().find_map(bytes);
                }
            }
            _ => {}
        }
    }
    picture.filename = picture.filename.or(path);
    let of = || picture.filename.as_deref().unwrap_or("a row without a name").to_owned();
    picture.image = image
        .ok_or_else(|| Fault::new("image", "the picture's bytes", format!("none for {}", of())))?;
    if picture.image.len() > MAX_PICTURE {
        let expected = format!("a picture of at most {MAX_PICTURE} bytes");
        return Err(Fault::new("image", expected, format!("{} bytes", picture.image.len())));
    }
    Ok(picture)
}

fn captions(field: Field) -> std::result::Result<Vec<String>, Fault> {
    let list = match field {
        Field::Null => return Ok(Vec::new()),
        Field::ListInternal(list) if list.elements().len() <= MAX_CAPTIONS => list,
        other => {
            let expected = format!("a list of at most {MAX_CAPTIONS} captions");
            return Err(Fault::new("captions", expected, kind(&other)));
        }
    };
    let expected = format!("texts of at most {MAX_CAPTION} bytes");
    let caption = |field: &Field| {
        let found = kind(field);
        let caption = text("captions", field.clone())?.filter(|c| c.len() <= MAX_CAPTION);
        caption.ok_or_else(|| Fault::new("captions", expected.clone(), found))
    };
    list.elements().iter().map(caption).collect()
}

/// Text, which older writers do not mark as such.
fn text(column: &'static str, field: Field) -> std::result::Result<Option<String>, Fault> {
    match field {
        Field::Null => Ok(None),
        Field::Str(text) => Ok(Some(text)),
        Field::Bytes(bytes) => match String::from_utf8(bytes.data().to_vec()) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(Fault::new(column, "a text", "bytes that are not UTF-8")),
        },
        other => Err(Fault::new(column, "a text", kind(&other))),
    }
}

fn label(field: Field) -> std::result::Result<Option<u32>, Fault> {
    let number = match field {
        Field::Null => return Ok(None),
        Field::Byte(n) => i128::from(n),
        Field::Short(n) => i128::from(n),
        Field::Int(n) => i128::from(n),
        Field::Long(n) => i128::from(n),
        Field::UByte(n) => i128::from(n),
        Field::UShort(n) => i128::from(n),
        Field::UInt(n) => i128::from(n),
        Field::ULong(n) => i128::from(n),
        other => return Err(Fault::new("label", "a whole number", kind(&other))),
    };
    match u32::try_from(number) {
        Ok(label) if u64::from(label) <= MAX_LABEL => Ok(Some(label)),
        _ => Err(Fault::new("label", format!("0 to {MAX_LABEL}"), number.to_string())),
    }
}

fn kind(field: &Field) -> String {
    match field {
        Field::Null => "null".to_owned(),
        Field::Str(text) => format!("a text of {} bytes", text.len()),
        Field::ListInternal(list) => format!("a list of {}", list.elements().len()),
        Field::Bytes(bytes) => format!("{} bytes", bytes.len()),
        Field::Float(_) | Field::Double(_) | Field::Float16(_) => "a fraction".to_owned(),
        _ => "another type".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::image;

    fn shipped() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("data/blue-marble.parquet")
    }

    #[test]
    fn the_shipped_set_is_whole() {
        let set = Pictures::open(shipped()).unwrap();
        assert_eq!(set.len(), 200);
        assert!(set.has("captions") && set.has("image") && !set.has("caption"));
        let mut names = Vec::new();
        for row in set.iter() {
            let row = row.unwrap().unwrap();
            let name = row.filename.unwrap();
            assert_eq!(row.captions.len(), 5, "{name}");
            let picture = image::decode(&row.image, Path::new(&name)).unwrap();
            assert_eq!(picture.dimensions(), (128, 128));
            let mut captions = row.captions.clone();
            captions.sort();
            captions.dedup();
            assert_eq!(captions.len(), 5, "{name}: the same twice");
            names.push(name);
        }
        assert_eq!(names.len(), 200);
        assert!(names.is_sorted());
    }

    #[test]
    fn captions_are_texts() {
        let rows = read_texts(&shipped()).unwrap();
        assert_eq!(rows.len(), 200);
        for (row, picture) in rows.iter().zip(Pictures::open(shipped()).unwrap().iter()) {
            let picture = picture.unwrap().unwrap();
            assert_eq!((&row.filename, &row.texts), (&picture.filename, &picture.captions));
        }
    }

    #[test]
    fn damage_is_an_error() {
        let whole = std::fs::read(shipped()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let error = Pictures::open(&path).err().unwrap().to_string();
        assert!(error.contains("a.parquet") && error.contains("No such file"), "{error}");
        // Cut anywhere: the footer is gone.
        for cut in [0, 3, 4, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = Pictures::open(&path).err().unwrap().to_string();
            assert!(error.contains("a parquet file"), "{error}");
        }
        // Overwritten in the middle: the footer is fine, a page is not.
        let mut damaged = whole.clone();
        let at = whole.len() / 3;
        damaged[at..at + 20_000].fill(0xa5);
        std::fs::write(&path, &damaged).unwrap();
        let set = Pictures::open(&path).unwrap();
        let rows: Vec<_> = set.iter().collect();
        let bad = rows.iter().filter(|r| r.is_err()).count();
        let changed = rows
            .iter()
            .flatten()
            .flatten()
            .any(|r| image::decode(&r.image, Path::new("x")).is_err());
        assert!(bad == 1 || changed, "neither a row nor a picture is refused");
    }
}
