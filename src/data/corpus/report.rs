//! What a corpus holds, and what was dropped on the way and why.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::Result;
use crate::io::atomic;

/// Why a document is not in the corpus.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "kebab-case")]
pub enum Reason {
    /// It cannot be read.
    Unreadable {
        /// What is wrong with it.
        error: String,
    },
    /// Nothing is written in it: a scan, say.
    NoText,
    /// It has fewer words than asked for.
    TooShort {
        /// How many.
        words: usize,
    },
    /// It is made of digits and signs.
    FewLetters {
        /// Share of its characters that are letters.
        letters: f64,
    },
    /// Its words are those of another, which comes first.
    Duplicate {
        /// The other.
        of: String,
    },
    /// Another one, which comes first, is much the same.
    NearDuplicate {
        /// The other.
        of: String,
        /// Jaccard similarity of their shingles.
        similarity: f64,
    },
}

impl Reason {
    const NAMES: [&str; 6] =
        ["unreadable", "no text", "too short", "few letters", "duplicate", "near duplicate"];

    /// Its place in [`Report::dropped`].
    fn place(&self) -> usize {
        match self {
            Self::Unreadable { .. } => 0,
            Self::NoText => 1,
            Self::TooShort { .. } => 2,
            Self::FewLetters { .. } => 3,
            Self::Duplicate { .. } => 4,
            Self::NearDuplicate { .. } => 5,
        }
    }
}

/// A document that is not in the corpus.
#[derive(Debug, Clone, Serialize)]
pub struct Dropped {
    /// Its file, with the number of a line.
    pub document: String,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
}

/// What became of everything that was given.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Files that were read.
    pub files: usize,
    /// Files in folders that are of no known kind.
    pub other_files: usize,
    /// Documents that were found in files.
    pub documents: usize,
    /// Documents that are in the corpus.
    pub kept: usize,
    /// Rows that they make.
    pub chunks: usize,
    /// Words in them.
    pub words: usize,
    /// Those that are not, in order.
    pub dropped: Vec<Dropped>,
}

impl Report {
    /// How many documents were dropped for each reason, those without one left out.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let mut counts = [0; Reason::NAMES.len()];
        self.dropped.iter().for_each(|one| counts[one.reason.place()] += 1);
        Reason::NAMES.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// The files that [`Self::write`] puts beside a corpus.
    pub fn beside(corpus: &Path) -> [PathBuf; 2] {
        ["report.json", "dropped.csv"].map(|end| corpus.with_extension(end))
    }

    /// Writes all of it as JSON, and what was dropped as CSV.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn write(&self, corpus: &Path) -> Result<()> {
        let [json, csv] = Self::beside(corpus);
        atomic::write(&json, |out| {
            let mut all = serde_json::to_value(self)?;
            all["reasons"] = self
                .counts()
                .into_iter()
                .map(|(n, c)| (n.to_owned(), c.into()))
                .collect::<serde_json::Map<_, _>>()
                .into();
            serde_json::to_writer_pretty(&mut *out, &all)?;
            writeln!(out)
        })?;
        atomic::write(&csv, |out| {
            writeln!(out, "document,reason,of,similarity,detail")?;
            for Dropped { document, reason } in &self.dropped {
                let (mut of, mut similarity, mut detail) =
                    (String::new(), String::new(), String::new());
                match reason {
                    Reason::Unreadable { error } => detail = error.clone(),
                    Reason::NoText => {}
                    Reason::TooShort { words } => detail = format!("{words} words"),
                    Reason::FewLetters { letters } => detail = format!("{letters:.3} letters"),
                    Reason::Duplicate { of: other } => {
                        (of, similarity) = (other.clone(), "1".to_owned());
                    }
                    Reason::NearDuplicate { of: other, similarity: s } => {
                        (of, similarity) = (other.clone(), format!("{s:.4}"));
                    }
                }
                let name = Reason::NAMES[reason.place()];
                let fields = [document, name, &of, &similarity, &detail].map(quoted);
                writeln!(out, "{}", fields.join(","))?;
            }
            Ok(())
        })
    }
}

/// A field of a CSV file (RFC 4180).
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}
