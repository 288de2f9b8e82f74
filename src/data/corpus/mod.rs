//! A corpus of papers, pages and notes: read, cleaned, each once, in chunks that end with sentences.
//!
//! ```text
//! files -> documents -> cleaned (clean.rs) -> first of their kind (duplicates.rs) -> chunks (chunk.rs) -> parquet
//! ```
//!
//! What comes out follows from the files' order and the settings alone. Documents are read a batch at a time: beside it memory
//! holds about 2 KB for each that is kept.

mod chunk;
mod clean;
mod duplicates;
mod html;
mod markdown;
mod pdf;
mod report;
mod source;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use clap::Args;

pub use chunk::{chunks, sentences};
pub use clean::clean;
pub use report::{Dropped, Reason, Report};

use crate::cpu::parallel::for_each;
use crate::error::{Error, Result};
use crate::io::atomic::{self, Output};
use crate::io::parquet::{Chunk, ChunkWriter};
use duplicates::{Fingerprint, Index, Twin};
use source::Raw;

/// Documents that are read and cleaned at once.
const BATCH: usize = 32;

/// What is kept of texts, and how it is cut.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct CorpusSettings {
    /// Field of a JSONL file's objects that holds the text
    #[arg(long, value_name = "NAME", default_value = "text", help_heading = "Reading")]
    pub text_field: String,

    /// Leave out what cannot be read, with its error in the report, rather than stop
    #[arg(long, help_heading = "Reading")]
    pub skip_unreadable: bool,

    /// Drop documents of fewer words
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "Cleaning")]
    pub min_words: usize,

    /// Drop documents with a smaller share of letters among what is no white space
    #[arg(long, value_name = "X", default_value_t = 0.6, help_heading = "Cleaning")]
    #[arg(allow_negative_numbers = true)]
    pub min_letters: f64,

    /// Drop documents whose runs of three words are those of one before, to this share of all that either has (Jaccard)
    #[arg(long, value_name = "X", default_value_t = 0.8, help_heading = "Cleaning")]
    #[arg(allow_negative_numbers = true)]
    pub similarity: f64,

    /// Words of a chunk, at most; 180 are about 256 tokens of GPT-2's
    #[arg(long, value_name = "N", default_value_t = 180, help_heading = "Chunks")]
    pub chunk_words: usize,
}

impl Default for CorpusSettings {
    fn default() -> Self {
        Self {
            text_field: "text".to_owned(),
            skip_unreadable: false,
            min_words: 10,
            min_letters: 0.6,
            similarity: 0.8,
            chunk_words: 180,
        }
    }
}

impl CorpusSettings {
    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.min_letters) {
            return Err(Error::argument("min_letters", self.min_letters, "0 to 1"));
        }
        if self.chunk_words == 0 {
            return Err(Error::argument("chunk_words", 0, "at least 1"));
        }
        Ok(())
    }
}

/// How long a piece of text is, in place of its words.
pub struct Measure<'a> {
    /// The most of a chunk.
    pub limit: usize,
    /// Of a piece that begins with a space.
    pub length: &'a (dyn Fn(&str) -> Result<usize> + Sync),
}

/// A document that was looked at.
enum Read {
    Good { words: usize, print: Fingerprint, chunks: Vec<String> },
    Bad(Reason),
}

/// Makes a corpus of the files at `paths` and in folders there, a parquet file with a row for each chunk (`text`, `source`,
/// `chunk`, its number), and reports beside it ([`Report::beside`]). An `out` that is there is replaced if `replace` says so.
/// `watch` is told how many files of all are read, between documents, and ends all by an error.
///
/// # Errors
/// `out` or a report is there; the folder cannot be written to; a file cannot be read, unless that is to be skipped; nothing is
/// left; settings that are not possible.
pub fn build(
    paths: &[PathBuf],
    out: &Path,
    settings: &CorpusSettings,
    measure: Option<Measure>,
    replace: bool,
    watch: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Report> {
    settings.check()?;
    let words = |text: &str| Ok(text.split_whitespace().count());
    let measure = measure.unwrap_or(Measure { limit: settings.chunk_words, length: &words });
    if let Some(taken) = Report::beside(out).into_iter().find(|path| !replace && path.exists()) {
        return Err(atomic::taken(&taken));
    }
    let output = Output::create(out, replace)?;
    let mut index = Index::new(settings.similarity, output.folder())?;
    let mut writer = ChunkWriter::new(out, output)?;
    let (inputs, other_files) = source::files(paths)?;
    let mut report = Report { files: inputs.len(), other_files, ..Report::default() };
    let mut names: Vec<String> = Vec::new();
    let field = &settings.text_field;
    let all = inputs.iter().enumerate();
    let mut all =
        all.flat_map(|(i, input)| source::documents(input, field).map(move |raw| (i, raw)));
    loop {
        let batch: Vec<(usize, Raw)> = all.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            break;
        }
        for (file, name, read) in read_all(batch, settings, &measure) {
            watch(file, inputs.len())?;
            report.documents += 1;
            let reason = match read? {
                Read::Bad(reason) => reason,
                Read::Good { words, print, chunks } => match index.insert(print)? {
                    Some(Twin::Exact(of)) => Reason::Duplicate { of: names[of].clone() },
                    Some(Twin::Near(of, similarity)) => {
                        Reason::NearDuplicate { of: names[of].clone(), similarity }
                    }
                    None => {
                        report.kept += 1;
                        report.words += words;
                        report.chunks += chunks.len();
                        for (number, text) in chunks.into_iter().enumerate() {
                            writer.add(Chunk { text, source: name.clone(), number })?;
                        }
                        names.push(name);
                        continue;
                    }
                },
            };
            report.dropped.push(Dropped { document: name, reason });
        }
    }
    watch(inputs.len(), inputs.len())?;
    if report.kept == 0 {
        let found = match report.counts().as_slice() {
            [] => format!("none in {} files", report.files),
            counts => {
                let each = counts.iter().map(|(name, count)| format!("{count} {name}"));
                format!("none of {}: {}", report.documents, each.collect::<Vec<_>>().join(", "))
            }
        };
        let advice =
            "See --min-words and --min-letters; known are .txt, .md, .html, .jsonl and .pdf.";
        let path = paths.first().map_or(out, PathBuf::as_path);
        return Err(Error::file(path, "documents", "one that is kept", found, advice));
    }
    let output = writer.finish()?;
    let written = report.write(out).and_then(|()| output.finish());
    if written.is_err() {
        // Of a corpus that is not there.
        for path in Report::beside(out) {
            let _ = std::fs::remove_file(path);
        }
    }
    written.map(|()| report)
}

/// What is found in documents, in their order, each with the number of its file and its name.
fn read_all(
    batch: Vec<(usize, Raw)>,
    settings: &CorpusSettings,
    measure: &Measure,
) -> Vec<(usize, String, Result<Read>)> {
    let names: Vec<_> = batch.iter().map(|(file, raw)| (*file, raw.name.clone())).collect();
    let raws: Vec<_> = batch.into_iter().map(|(_, raw)| Mutex::new(Some(raw))).collect();
    let reads: Vec<_> = names.iter().map(|_| Mutex::new(None)).collect();
    for_each(raws.len(), &|i| {
        let raw = raws[i].lock().unwrap_or_else(PoisonError::into_inner).take();
        let read = raw.map(|raw| read(raw, settings, measure));
        *reads[i].lock().unwrap_or_else(PoisonError::into_inner) = read;
    });
    let reads = reads
        .into_iter()
        .filter_map(|one| one.into_inner().unwrap_or_else(PoisonError::into_inner));
    names.into_iter().zip(reads).map(|((file, name), read)| (file, name, read)).collect()
}

fn read(raw: Raw, settings: &CorpusSettings, measure: &Measure) -> Result<Read> {
    let text = match raw.text() {
        Ok(text) => clean(&text),
        Err(e) if settings.skip_unreadable => {
            return Ok(Read::Bad(Reason::Unreadable { error: e.to_string() }));
        }
        Err(e) => return Err(e),
    };
    let words = text.split_whitespace().count();
    if words == 0 {
        return Ok(Read::Bad(Reason::NoText));
    }
    if words < settings.min_words {
        return Ok(Read::Bad(Reason::TooShort { words }));
    }
    let characters = || text.chars().filter(|c| !c.is_whitespace());
    let letters = characters().filter(|c| c.is_alphabetic()).count() as f64;
    let letters = letters / characters().count() as f64;
    if letters < settings.min_letters {
        return Ok(Read::Bad(Reason::FewLetters { letters }));
    }
    let chunks = chunks(&text, measure.limit, measure.length)?;
    Ok(Read::Good { words, print: Fingerprint::new(&text), chunks })
}
