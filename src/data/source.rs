//! Where pictures come from: a parquet file, or a folder with `metadata.jsonl`. What is said of them is held in memory,
//! the encoded pictures are not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::io::parquet::{Picture, Pictures};
use crate::io::{open_file, read_bounded};

/// The index of a folder of pictures.
const INDEX: &str = "metadata.jsonl";

/// The longest line of an index, and the longest picture in a folder.
const MAX_LINE: u64 = 1 << 20;
const MAX_PICTURE: u64 = 64 << 20;

/// A row of a data set.
pub(super) struct Row {
    /// Its number in the file, from 1.
    pub number: usize,
    /// Of its picture; empty where the file has none.
    pub name: String,
    pub captions: Vec<String>,
    pub label: Option<u32>,
    pub class: Option<String>,
    place: Place,
}

/// Where an encoded picture lies.
enum Place {
    /// In the copy of what was packed.
    Spooled {
        offset: u64,
        len: usize,
    },
    File(PathBuf),
}

/// A row that cannot be used.
#[derive(Debug)]
pub struct Fault {
    /// Its number in the file, from 1.
    pub row: usize,
    /// What is wrong with it.
    pub error: Error,
}

/// Rows and the way to their pictures.
pub(super) struct Source {
    pub path: PathBuf,
    pub rows: Vec<Row>,
    pub faults: Vec<Fault>,
    /// What the file's metadata says of labels.
    pub class_names: Option<Vec<String>>,
    /// Columns that were found, for errors.
    pub columns: Vec<String>,
    spool: Option<Mutex<File>>,
}

impl Source {
    /// # Errors
    /// The file cannot be read or has another schema.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() { Self::folder(path) } else { Self::parquet(path) }
    }

    /// Pictures are copied, unpacked, to a file that has no name and goes with the process: in a parquet file they lie
    /// behind compression, by the hundred, and a shuffled epoch wants one here and one there.
    fn parquet(path: &Path) -> Result<Self> {
        let file = Pictures::open(path)?;
        let (mut rows, mut faults) = (Vec::with_capacity(file.len()), Vec::new());
        let temporary = std::env::temp_dir();
        let io = |e| Error::io(&temporary, e);
        let mut spool = std::io::BufWriter::new(tempfile::tempfile().map_err(io)?);
        let mut offset = 0;
        for (i, row) in file.iter().enumerate() {
            let number = i + 1;
            let picture = match row? {
                Ok(picture) => picture,
                Err(error) => {
                    faults.push(Fault { row: number, error });
                    continue;
                }
            };
            let Picture { filename, captions, label, class, image, .. } = picture;
            spool.write_all(&image).map_err(io)?;
            let place = Place::Spooled { offset, len: image.len() };
            offset += image.len() as u64;
            let name = filename.unwrap_or_default();
            rows.push(Row { number, name, captions, label, class, place });
        }
        let spool = spool.into_inner().map_err(|e| io(e.into_error()))?;
        Ok(Self {
            path: path.to_path_buf(),
            rows,
            faults,
            class_names: file.class_names(),
            columns: file.columns().to_vec(),
            spool: Some(Mutex::new(spool)),
        })
    }

    fn folder(path: &Path) -> Result<Self> {
        let index = path.join(INDEX);
        let mut lines = BufReader::new(open_file(&index)?);
        let (mut rows, mut faults, mut columns) = (Vec::new(), Vec::new(), BTreeSet::new());
        for number in 1.. {
            let mut line = Vec::new();
            let read = (&mut lines).take(MAX_LINE).read_until(b'\n', &mut line);
            let read = read.map_err(|e| Error::io(&index, e))?;
            if read == 0 {
                break;
            }
            if read as u64 == MAX_LINE {
                let expected = format!("lines of at most {MAX_LINE} bytes");
                let found = format!("a longer one, line {number}");
                let advice = "Is it one JSON object a line?";
                return Err(Error::file(&index, "length", expected, found, advice));
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match entry(&line, path, number, &mut columns) {
                Ok(row) => rows.push(row),
                Err((column, expected, found)) => {
                    let what = format!("line {number}, {column}");
                    let advice = "A line is an object with file_name, and text or captions, or class and label.";
                    let error = Error::file(&index, what, expected, found, advice);
                    faults.push(Fault { row: number, error });
                }
            }
        }
        let (path, columns) = (path.to_path_buf(), columns.into_iter().collect());
        Ok(Self { path, rows, faults, class_names: None, columns, spool: None })
    }

    /// The encoded picture of a row.
    ///
    /// # Errors
    /// It cannot be read any more.
    pub fn read(&self, row: &Row) -> Result<Vec<u8>> {
        match (&row.place, &self.spool) {
            (Place::Spooled { offset, len }, Some(spool)) => {
                let mut spool = spool.lock().unwrap_or_else(PoisonError::into_inner);
                let mut bytes = vec![0; *len];
                spool
                    .seek(SeekFrom::Start(*offset))
                    .and_then(|_| spool.read_exact(&mut bytes))
                    .map_err(|e| Error::io(std::env::temp_dir(), e))?;
                Ok(bytes)
            }
            (Place::File(path), _) => read_bounded(path, MAX_PICTURE),
            (Place::Spooled { .. }, None) => Err(Error::value("data", "pictures without a file")),
        }
    }

    /// What errors call a row.
    pub fn describe(&self, row: &Row) -> PathBuf {
        let unit = if self.spool.is_some() { "row" } else { "line" };
        let name = if row.name.is_empty() { String::new() } else { format!(" ({})", row.name) };
        PathBuf::from(format!("{}: {unit} {}{name}", self.path.display(), row.number))
    }
}

/// A line of an index, as the hub's image folders have it; `captions` and `class` are ours.
#[derive(Deserialize)]
struct Entry {
    file_name: String,
    text: Option<String>,
    captions: Option<Vec<String>>,
    label: Option<u16>,
    class: Option<String>,
}

/// A line as a row; or the field, what was expected and what was found.
fn entry(
    line: &[u8],
    folder: &Path,
    number: usize,
    columns: &mut BTreeSet<String>,
) -> std::result::Result<Row, (String, String, String)> {
    let wrong = |column: &str, expected: &str, found: String| {
        (column.to_owned(), expected.to_owned(), found)
    };
    let not_json = |e: serde_json::Error| wrong("content", "a JSON object", e.to_string());
    let fields: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(line).map_err(not_json)?;
    columns.extend(fields.keys().cloned());
    let entry: Entry = serde_json::from_value(fields.into()).map_err(|e| {
        wrong("fields", "file_name with text, captions, label or class", e.to_string())
    })?;
    // What lies outside of the folder is none of the data set's.
    let inside = |part: Component| matches!(part, Component::Normal(_) | Component::CurDir);
    if !Path::new(&entry.file_name).components().all(inside) {
        return Err(wrong("file_name", "a path inside of the folder", entry.file_name));
    }
    Ok(Row {
        number,
        place: Place::File(folder.join(&entry.file_name)),
        name: entry.file_name,
        captions: entry.captions.unwrap_or_default().into_iter().chain(entry.text).collect(),
        label: entry.label.map(u32::from),
        class: entry.class,
    })
}
