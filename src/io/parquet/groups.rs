//! Rows on their way into a parquet file, in groups that readers unpack whole.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::parquet::errors::Result as ParquetResult;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use ::parquet::schema::parser::parse_message_type;

use crate::error::{Error, Result};

/// What a kind of rows is as columns.
pub(super) trait Columns: Sized {
    /// Bytes from which on rows make a group.
    const GROUP: usize;

    /// About how many of them a row takes.
    fn bytes(&self) -> usize;

    /// Writes every column of a group.
    fn write<W: Write + Send>(
        rows: &[Self],
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> ParquetResult<()>;
}

/// A file of such rows.
pub(super) struct Groups<R, W: Write + Send> {
    path: PathBuf,
    writer: SerializedFileWriter<W>,
    /// What the next group will hold.
    rows: Vec<R>,
    bytes: usize,
}

impl<R: Columns, W: Write + Send> Groups<R, W> {
    /// Begins a file in `out`, which errors call `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(path: &Path, out: W, schema: &str, properties: WriterProperties) -> Result<Self> {
        let open = || {
            let schema = Arc::new(parse_message_type(schema)?);
            SerializedFileWriter::new(out, schema, Arc::new(properties))
        };
        let writer = open().map_err(|e| failed(path, e))?;
        Ok(Self { path: path.to_path_buf(), writer, rows: Vec::new(), bytes: 0 })
    }

    /// Adds a row.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, row: R) -> Result<()> {
        self.bytes += row.bytes();
        self.rows.push(row);
        if self.bytes >= R::GROUP { self.write_group() } else { Ok(()) }
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
        let rows = std::mem::take(&mut self.rows);
        self.bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let mut write = || {
            let mut group = self.writer.next_row_group()?;
            R::write(&rows, &mut group)?;
            group.close().map(|_| ())
        };
        write().map_err(|e| failed(&self.path, e))
    }
}

fn failed(path: &Path, error: ::parquet::errors::ParquetError) -> Error {
    Error::io(path, io::Error::other(error))
}
