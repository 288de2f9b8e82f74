//! Chunks of texts on their way into a parquet file.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::errors::Result as ParquetResult;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use crate::error::{Error, Result};

/// Bytes of texts that a row group holds.
const GROUP: usize = 32 << 20;

const SCHEMA: &str = "message chunks {
    required binary text (UTF8);
    required binary source (UTF8);
    required int32 chunk;
}";

/// A part of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// What it says.
    pub text: String,
    /// The document.
    pub source: String,
    /// Its place there, from 0.
    pub number: usize,
}

/// A parquet file of chunks: columns `text`, `source` and `chunk`.
pub struct ChunkWriter<W: Write + Send> {
    path: PathBuf,
    writer: SerializedFileWriter<W>,
    /// What the next group will hold.
    group: Vec<Chunk>,
    bytes: usize,
}

impl<W: Write + Send> ChunkWriter<W> {
    /// Begins a file in `out`, which errors call `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(path: &Path, out: W) -> Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let open = || {
            let schema = Arc::new(parse_message_type(SCHEMA)?);
            SerializedFileWriter::new(out, schema, Arc::new(properties))
        };
        let writer = open().map_err(|e| failed(path, e))?;
        Ok(Self { path: path.to_path_buf(), writer, group: Vec::new(), bytes: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, chunk: Chunk) -> Result<()> {
        self.bytes += chunk.text.len() + chunk.source.len();
        self.group.push(chunk);
        if self.bytes >= GROUP {
            self.write_group()?;
        }
        Ok(())
    }

    /// Ends the file; what it was written to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(mut self) -> Result<W> {
        self.write_group()?;
        self.writer.into_inner().map_err(|e| failed(&self.path, e))
    }

    fn write_group(&mut self) -> Result<()> {
        let rows = std::mem::take(&mut self.group);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let mut write = || -> ParquetResult<()> {
            let mut group = self.writer.next_row_group()?;
            for column in 0..3 {
                let Some(mut out) = group.next_column()? else { break };
                let text = |chunk: &Chunk| match column {
                    0 => ByteArray::from(chunk.text.as_str()),
                    _ => ByteArray::from(chunk.source.as_str()),
                };
                if column < 2 {
                    let values: Vec<_> = rows.iter().map(text).collect();
                    out.typed::<ByteArrayType>().write_batch(&values, None, None)?;
                } else {
                    let values: Vec<_> = rows.iter().map(|chunk| chunk.number as i32).collect();
                    out.typed::<Int32Type>().write_batch(&values, None, None)?;
                }
                out.close()?;
            }
            group.close()?;
            Ok(())
        };
        write().map_err(|e| failed(&self.path, e))
    }
}

pub(super) fn failed(path: &Path, error: ::parquet::errors::ParquetError) -> Error {
    Error::io(path, io::Error::other(error))
}

#[cfg(test)]
mod tests {
    use super::super::read_texts;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ChunkWriter::new(&path, file).unwrap();
        // More than one group of rows.
        let texts: Vec<String> =
            (0..9).map(|i| format!("{i} \u{e9}").repeat(1_000_000 + i)).collect();
        for (number, text) in texts.iter().enumerate() {
            let (text, source) = (text.clone(), "a.txt".to_owned());
            writer.add(Chunk { text, source, number }).unwrap();
        }
        writer.finish().unwrap();
        let rows = read_texts(&path).unwrap();
        assert_eq!(rows.len(), texts.len());
        assert!(rows.iter().zip(&texts).all(|(row, text)| row.texts == [text.clone()]));
    }
}
