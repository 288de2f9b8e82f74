//! Where documents come from: files and folders of them, in a fixed order.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{html, markdown, pdf};
use crate::error::{Error, Result};
use crate::io::{open_file, read_bounded};

/// The largest file that is one document, and the longest line of a JSONL file.
const MAX_FILE: u64 = 256 << 20;
const MAX_LINE: u64 = 64 << 20;

/// Folders in folders, at most.
const DEPTH: usize = 64;

const KNOWN: &str = ".txt, .md, .html, .htm, .jsonl, .ndjson or .pdf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Markdown,
    Html,
    Lines,
    Pdf,
}

/// A file that holds documents.
#[derive(Debug)]
pub(super) struct Input {
    path: PathBuf,
    format: Format,
}

/// A document before anyone has looked at it.
pub(super) struct Raw {
    /// Its file, and for one of several in it the number of the line behind a colon.
    pub name: String,
    content: Content,
}

enum Content {
    File(PathBuf, Format),
    Text(Result<String>),
}

impl Input {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        let format = match extension.as_str() {
            "txt" | "text" => Format::Text,
            "md" | "markdown" => Format::Markdown,
            "html" | "htm" | "xhtml" => Format::Html,
            "jsonl" | "ndjson" => Format::Lines,
            "pdf" => Format::Pdf,
            _ => return None,
        };
        Some(Self { path: path.to_owned(), format })
    }
}

/// Files at `paths`, in folders by their names, and how many others there are. What begins with a dot is passed over.
///
/// # Errors
/// A path is missing, or of no known kind; a folder cannot be read.
pub(super) fn files(paths: &[PathBuf]) -> Result<(Vec<Input>, usize)> {
    let (mut files, mut others) = (Vec::new(), 0);
    for path in paths {
        let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
        if about.is_dir() {
            walk(path, 0, &mut files, &mut others)?;
        } else {
            let found = path.extension().map(|end| format!(".{}", end.display()));
            let known = Input::of(path).ok_or_else(|| {
                let found = found.unwrap_or_else(|| "none".to_owned());
                Error::file(path, "end of the name", KNOWN, found, "Convert the file first.")
            })?;
            files.push(known);
        }
    }
    Ok((files, others))
}

fn walk(folder: &Path, depth: usize, files: &mut Vec<Input>, others: &mut usize) -> Result<()> {
    let failed = |e| Error::io(folder, e);
    if depth > DEPTH {
        let expected = format!("at most {DEPTH} folders in each other");
        return Err(Error::file(folder, "folder", expected, "more", "Does a link lead back?"));
    }
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(folder).map_err(failed)?.collect();
    let mut names: Vec<_> = entries.map_err(failed)?.into_iter().map(|e| e.file_name()).collect();
    names.sort();
    for name in names.iter().filter(|name| !name.as_encoded_bytes().starts_with(b".")) {
        let path = folder.join(name);
        let about = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?;
        match (about.is_dir(), Input::of(&path)) {
            (true, _) => walk(&path, depth + 1, files, others)?,
            (false, Some(known)) => files.push(known),
            (false, None) => *others += 1,
        }
    }
    Ok(())
}

/// The documents of a file, which for JSONL are its lines' `field`. What cannot be read says so when it is looked at.
pub(super) fn documents<'a>(input: &Input, field: &'a str) -> Box<dyn Iterator<Item = Raw> + 'a> {
    let path = input.path.clone();
    let name = path.display().to_string();
    let one = |content| Box::new(std::iter::once(Raw { name: name.clone(), content }));
    if input.format != Format::Lines {
        return one(Content::File(path, input.format));
    }
    let mut lines = match open_file(&path) {
        Ok(file) => Some(BufReader::new(file)),
        Err(e) => return one(Content::Text(Err(e))),
    };
    let mut number = 0;
    Box::new(std::iter::from_fn(move || {
        loop {
            number += 1;
            let text = match line(lines.as_mut()?, &path, number) {
                Ok(None) => return None,
                Ok(Some(line)) if line.trim().is_empty() => continue,
                Ok(Some(line)) => text_in(&line, field, &path, number),
                Err(e) => Err(e),
            };
            if matches!(text, Err(Error::Io { .. })) {
                lines = None;
            }
            return Some(Raw { name: format!("{name}:{number}"), content: Content::Text(text) });
        }
    }))
}

fn line(lines: &mut BufReader<File>, path: &Path, number: usize) -> Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut bounded = lines.by_ref().take(MAX_LINE);
    bounded.read_until(b'\n', &mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.is_empty() {
        return Ok(None);
    }
    let what = || format!("line {number}");
    if bytes.len() as u64 == MAX_LINE {
        lines.skip_until(b'\n').map_err(|e| Error::io(path, e))?;
        let expected = format!("less than {MAX_LINE} bytes");
        return Err(Error::file(path, what(), expected, "more", "Is this the right file?"));
    }
    String::from_utf8(bytes).map(Some).map_err(|_| {
        Error::file(path, what(), "UTF-8 text", "other bytes", "Save the file as UTF-8.")
    })
}

fn text_in(line: &str, field: &str, path: &Path, number: usize) -> Result<String> {
    let wrong = |found: String| {
        let expected = format!("an object with a text \"{field}\"");
        let advice = "Another field is named by --text-field.";
        Error::file(path, format!("line {number}"), expected, found, advice)
    };
    let value: Value = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
    let Value::Object(mut object) = value else { return Err(wrong("another value".to_owned())) };
    match object.remove(field) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(wrong(format!("{field} = {other:.40}"))),
        None => {
            let fields: Vec<String> = object.keys().take(8).map(|key| format!("{key:?}")).collect();
            Err(wrong(format!("fields {}", fields.join(", "))))
        }
    }
}

impl Raw {
    /// Its text, with an empty line between paragraphs, as it stands there.
    ///
    /// # Errors
    /// It cannot be read, or is no text.
    pub fn text(self) -> Result<String> {
        let (path, format) = match self.content {
            Content::Text(text) => return text,
            Content::File(path, format) => (path, format),
        };
        let bytes = read_bounded(&path, MAX_FILE)?;
        if format == Format::Pdf {
            return pdf::text(&path, &bytes);
        }
        let text = String::from_utf8(bytes).map_err(|e| {
            let found = format!("another byte at {}", e.utf8_error().valid_up_to());
            let advice = "Save it as UTF-8: iconv -f latin1 -t utf-8 FILE > NEW.";
            Error::file(&path, "content", "UTF-8 text", found, advice)
        })?;
        Ok(match format {
            Format::Markdown => markdown::text(&text),
            Format::Html => html::text(&text),
            _ => text,
        })
    }
}
