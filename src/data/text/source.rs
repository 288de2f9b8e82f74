//! Where texts come from: files of lines, of JSON objects, of rows.

use std::path::Path;

use serde::Deserialize;

use crate::data::class_in_name;
use crate::error::{Error, Result};
use crate::io::{parquet, read_bounded};

/// The largest file of lines.
const MAX_FILE: u64 = 4 << 30;

/// Texts that belong together: those of a line, or of a row.
pub(super) struct Entry {
    pub texts: Vec<String>,
    /// What they are about.
    pub class: Option<String>,
}

/// A line of a JSONL file: a text, or captions of a picture.
#[derive(Deserialize)]
struct Line {
    text: Option<String>,
    captions: Option<Vec<String>>,
    class: Option<String>,
    #[serde(alias = "file_name")]
    filename: Option<String>,
}

/// The texts of a file, by the end of its name: `.parquet`, `.jsonl`, or lines that are a text each.
///
/// # Errors
/// The file is missing, damaged, or of another form; a line of it holds no text.
pub(super) fn read(path: &Path) -> Result<Vec<Entry>> {
    let of_name =
        |class: Option<String>, name: Option<&str>| class.or_else(|| class_in_name(name?));
    let extension = path.extension().and_then(|end| end.to_str()).unwrap_or_default();
    if extension == "parquet" {
        let rows = parquet::read_texts(path)?.into_iter();
        let entry = |row: parquet::Texts| Entry {
            class: of_name(row.class, row.filename.as_deref()),
            texts: row.texts,
        };
        return Ok(rows.map(entry).collect());
    }
    let bytes = read_bounded(path, MAX_FILE)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let found = format!("a byte that is none at {}", e.valid_up_to());
        Error::file(path, "content", "UTF-8 text", found, "Save the file as UTF-8.")
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    if !matches!(extension, "jsonl" | "ndjson") {
        let entry = |(_, line): (usize, &str)| Entry { texts: vec![line.to_owned()], class: None };
        return Ok(lines.map(entry).collect());
    }
    let entry = |(i, line): (usize, &str)| {
        let wrong = |found: String| {
            let expected = "an object with a text or captions";
            let advice = "A line is {\"text\": \"...\"}, or {\"captions\": [\"...\"]}.";
            Error::file(path, format!("line {}", i + 1), expected, found, advice)
        };
        let line: Line = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
        if line.text.is_none() && line.captions.is_none() {
            return Err(wrong("neither".to_owned()));
        }
        Ok(Entry {
            class: of_name(line.class, line.filename.as_deref()),
            texts: line.text.into_iter().chain(line.captions.unwrap_or_default()).collect(),
        })
    };
    lines.map(entry).collect()
}
