//! Chunks of texts on their way into a parquet file.

use std::io::Write;
use std::path::Path;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::errors::Result as ParquetResult;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedRowGroupWriter;

use super::groups::{Columns, Groups};
use crate::error::Result;

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

impl Columns for Chunk {
    const GROUP: usize = 32 << 20;

    fn bytes(&self) -> usize {
        self.text.len() + self.source.len()
    }

    fn write<W: Write + Send>(
        rows: &[Self],
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> ParquetResult<()> {
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
        Ok(())
    }
}

/// A parquet file of chunks: columns `text`, `source` and `chunk`.
pub struct ChunkWriter<W: Write + Send>(Groups<Chunk, W>);

impl<W: Write + Send> ChunkWriter<W> {
    /// Begins a file in `out`, which errors call `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(path: &Path, out: W) -> Result<Self> {
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        Ok(Self(Groups::new(path, out, SCHEMA, properties)?))
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, chunk: Chunk) -> Result<()> {
        self.0.add(chunk)
    }

    /// Ends the file; what it was written to.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(self) -> Result<W> {
        self.0.finish()
    }
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
