//! Captioned pictures in parquet files, in the schema of RSICD on the hub: `filename`, `captions` (a list of
//! texts), `image` (a struct of the encoded picture's `bytes` and its `path`).

use std::fs::File;
use std::path::{Path, PathBuf};

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::reader::RowIter;
use ::parquet::record::{Field, Row};

use super::caught;
use crate::error::{Error, Result};

/// The longest encoded picture that is taken from a row.
const MAX_PICTURE: usize = 64 << 20;

/// The most captions of a row, and the longest caption.
const MAX_CAPTIONS: usize = 1_000;
const MAX_CAPTION: usize = 64 << 10;

/// The largest row group, unpacked; a file that claims more is not believed.
const MAX_GROUP: i64 = 4 << 30;

const ADVICE: &str =
    "The schema is RSICD's: filename, captions (a list of texts), image (bytes, path).";

/// A picture with its captions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Captioned {
    /// Name of the picture; its class in front, `airport_1.jpg`, in RSICD.
    pub filename: String,
    /// What people (or a program) said of it.
    pub captions: Vec<String>,
    /// The picture as a PNG, JPEG, ...: see [`decode`](super::image::decode).
    pub image: Vec<u8>,
}

/// A parquet file of captioned pictures.
pub struct CaptionedPictures {
    path: PathBuf,
    reader: SerializedFileReader<File>,
    rows: usize,
}

impl CaptionedPictures {
    /// Opens a file and checks its schema.
    ///
    /// # Errors
    /// The file is missing, no parquet file, damaged, or of another schema.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
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
        // A list's inner names differ between writers: captions.list.element, captions.list.item, ...
        let has = |prefix: &str| {
            columns.iter().any(|c| c == prefix || c.starts_with(&format!("{prefix}.")))
        };
        for column in ["filename", "captions", "image.bytes"] {
            if !has(column) {
                let found = format!("columns {}", columns.join(", "));
                return Err(Error::file(
                    path,
                    "schema",
                    format!("a column {column:?}"),
                    found,
                    ADVICE,
                ));
            }
        }
        let mut rows = 0;
        for group in metadata.row_groups() {
            if !(0..=MAX_GROUP).contains(&group.total_byte_size()) {
                let found = format!("{} bytes", group.total_byte_size());
                let advice = "Write the file again with smaller row groups.";
                return Err(Error::file(
                    path,
                    "row group",
                    format!("at most {MAX_GROUP} bytes"),
                    found,
                    advice,
                ));
            }
            rows += usize::try_from(group.num_rows())
                .map_err(|_| wrong("a negative number of rows".to_owned()))?;
        }
        Ok(Self { path: path.to_path_buf(), reader, rows })
    }

    /// Number of pictures.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The pictures one after the other. After an error there are no more.
    pub fn iter(&self) -> impl Iterator<Item = Result<Captioned>> + '_ {
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
            let what = format!("row {number}");
            let picture = match row {
                Ok(None) => return None,
                Ok(Some(row)) => captioned(row).map_err(|(expected, found)| {
                    Error::file(&self.path, what, expected, found, ADVICE)
                }),
                Err(found) => {
                    let advice = "The file is damaged: download it again.";
                    Err(Error::file(&self.path, what, "a readable row", found, advice))
                }
            };
            broken = picture.is_err();
            Some(picture)
        })
    }
}

/// A row as a picture; or what was expected, and what was found.
fn captioned(row: Row) -> std::result::Result<Captioned, (String, String)> {
    let (mut filename, mut captions, mut image) = (None, Vec::new(), None);
    for (name, field) in row.into_columns() {
        let found = kind(&field);
        match (name.as_str(), field) {
            ("filename", field) => filename = text(field),
            ("captions", Field::ListInternal(list)) if list.elements().len() <= MAX_CAPTIONS => {
                for caption in list.elements().iter().cloned() {
                    let found = kind(&caption);
                    let short = text(caption).filter(|c| c.len() <= MAX_CAPTION);
                    captions.push(
                        short.ok_or((format!("captions of at most {MAX_CAPTION} bytes"), found))?,
                    );
                }
            }
            ("captions", Field::Null) => {}
            ("captions", _) => {
                return Err((format!("a list of at most {MAX_CAPTIONS} captions"), found));
            }
            ("image", Field::Group(group)) => {
                image = group.into_columns().into_iter().find_map(|(name, field)| match field {
                    Field::Bytes(bytes) if name == "bytes" => Some(bytes.data().to_vec()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    let filename = filename.ok_or(("a filename".to_owned(), "none".to_owned()))?;
    let image = image
        .ok_or_else(|| ("the picture's bytes".to_owned(), format!("none for {filename:?}")))?;
    if image.len() > MAX_PICTURE {
        return Err((
            format!("a picture of at most {MAX_PICTURE} bytes"),
            format!("{} bytes", image.len()),
        ));
    }
    Ok(Captioned { filename, captions, image })
}

/// Text, which older writers do not mark as such.
fn text(field: Field) -> Option<String> {
    match field {
        Field::Str(text) => Some(text),
        Field::Bytes(bytes) => String::from_utf8(bytes.data().to_vec()).ok(),
        _ => None,
    }
}

fn kind(field: &Field) -> String {
    match field {
        Field::Null => "null".to_owned(),
        Field::Str(text) => format!("a text of {} bytes", text.len()),
        Field::ListInternal(list) => format!("a list of {}", list.elements().len()),
        Field::Bytes(bytes) => format!("{} bytes", bytes.len()),
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
        let set = CaptionedPictures::open(shipped()).unwrap();
        assert_eq!(set.len(), 200);
        let mut names = Vec::new();
        for row in set.iter() {
            let row = row.unwrap();
            assert_eq!(row.captions.len(), 5, "{}", row.filename);
            let picture = image::decode(&row.image, Path::new(&row.filename)).unwrap();
            assert_eq!(picture.dimensions(), (128, 128));
            let mut captions = row.captions.clone();
            captions.sort();
            captions.dedup();
            assert_eq!(captions.len(), 5, "{}: the same twice", row.filename);
            names.push(row.filename);
        }
        assert_eq!(names.len(), 200);
        assert!(names.is_sorted());
    }

    #[test]
    fn damage_is_an_error() {
        let whole = std::fs::read(shipped()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let error = CaptionedPictures::open(&path).err().unwrap().to_string();
        assert!(error.contains("a.parquet") && error.contains("No such file"), "{error}");
        // Cut anywhere: the footer is gone.
        for cut in [0, 3, 4, 100, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let error = CaptionedPictures::open(&path).err().unwrap().to_string();
            assert!(error.contains("a parquet file"), "{error}");
        }
        // Overwritten in the middle: the footer is fine, a page is not.
        let mut damaged = whole.clone();
        let at = whole.len() / 3;
        damaged[at..at + 20_000].fill(0xa5);
        std::fs::write(&path, &damaged).unwrap();
        let set = CaptionedPictures::open(&path).unwrap();
        let rows: Vec<_> = set.iter().collect();
        let bad = rows.iter().filter(|r| r.is_err()).count();
        let changed =
            rows.iter().flatten().any(|r| image::decode(&r.image, Path::new("x")).is_err());
        assert!(bad == 1 || changed, "neither a row nor a picture is refused");
    }
}
