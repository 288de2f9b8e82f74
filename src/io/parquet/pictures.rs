//! Pictures on their way into a parquet file, in the schema of RSICD on the hub with classes beside it.

use std::io::Write;
use std::path::Path;

use ::parquet::basic::Compression;
use ::parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use ::parquet::errors::Result as ParquetResult;
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedRowGroupWriter;

use super::Picture;
use super::groups::{Columns, Groups};
use crate::error::Result;

const SCHEMA: &str = "message pictures {
    required binary filename (UTF8);
    required group captions (LIST) {
        repeated group list {
            required binary element (UTF8);
        }
    }
    required group image {
        required binary bytes;
        required binary path (UTF8);
    }
    required int32 label;
    required binary class (UTF8);
}";

/// Behind the others, where pictures have masks.
const MASK: &str = "
    required group mask {
        required binary bytes;
        required binary path (UTF8);
    }
}";

impl Columns for Picture {
    /// Readers of one row unpack all of its group.
    const GROUP: usize = 16 << 20;

    fn bytes(&self) -> usize {
        self.image.len() + self.mask.as_ref().map_or(0, Vec::len)
    }

    fn write<W: Write + Send>(
        rows: &[Self],
        group: &mut SerializedRowGroupWriter<'_, W>,
    ) -> ParquetResult<()> {
        let text = |text: Option<&String>| ByteArray::from(text.map_or("", String::as_str));
        let mut column = 0;
        while let Some(mut out) = group.next_column()? {
            // Captions, the second, are a list: 0 stands before the first of a row, 1 before the next, and a row
            // without any is one that is not there.
            let (mut definitions, mut repetitions) = (Vec::new(), Vec::new());
            for row in rows.iter().filter(|_| column == 1) {
                definitions.extend(row.captions.iter().map(|_| 1));
                repetitions.extend((0..row.captions.len()).map(|i| i16::from(i > 0)));
                if row.captions.is_empty() {
                    definitions.push(0);
                    repetitions.push(0);
                }
            }
            if column == 4 {
                let values: Vec<_> =
                    rows.iter().map(|row| row.label.unwrap_or_default() as i32).collect();
                out.typed::<Int32Type>().write_batch(&values, None, None)?;
            } else {
                let values: Vec<ByteArray> = match column {
                    1 => rows.iter().flat_map(|row| &row.captions).map(|c| text(Some(c))).collect(),
                    2 => rows.iter().map(|row| ByteArray::from(row.image.as_slice())).collect(),
                    5 => rows.iter().map(|row| text(row.class.as_ref())).collect(),
                    6 => {
                        let mask = |row: &Picture| row.mask.clone().unwrap_or_default();
                        rows.iter().map(|row| ByteArray::from(mask(row))).collect()
                    }
                    _ => rows.iter().map(|row| text(row.filename.as_ref())).collect(),
                };
                let (definitions, repetitions) = match column {
                    1 => (Some(definitions.as_slice()), Some(repetitions.as_slice())),
                    _ => (None, None),
                };
                out.typed::<ByteArrayType>().write_batch(&values, definitions, repetitions)?;
            }
            out.close()?;
            column += 1;
        }
        Ok(())
    }
}

/// A parquet file of pictures: columns `filename`, `captions`, `image` (`bytes`, `path`), `label` and `class`, and
/// of pictures with masks `mask` (`bytes`, `path`).
pub struct PictureWriter<W: Write + Send>(Groups<Picture, W>);

impl<W: Write + Send> PictureWriter<W> {
    /// Begins a file in `out`, which errors call `path`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn new(path: &Path, out: W) -> Result<Self> {
        Self::with_schema(path, out, SCHEMA)
    }

    /// The same of pictures that have masks.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn with_masks(path: &Path, out: W) -> Result<Self> {
        Self::with_schema(path, out, &(SCHEMA.trim_end_matches('}').to_owned() + MASK))
    }

    fn with_schema(path: &Path, out: W, schema: &str) -> Result<Self> {
        // Pictures are compressed already.
        let properties = WriterProperties::builder()
            .set_compression(Compression::UNCOMPRESSED)
            .set_dictionary_enabled(false)
            .build();
        Ok(Self(Groups::new(path, out, schema, properties)?))
    }

    /// Adds a row; what it lacks is empty there, or 0.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn add(&mut self, picture: Picture) -> Result<()> {
        self.0.add(picture)
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
    use super::super::Pictures;
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut writer = PictureWriter::new(&path, std::fs::File::create(&path).unwrap()).unwrap();
        // More than one group of rows, and rows with no caption and with several.
        let rows: Vec<Picture> = (0..7u32)
            .map(|i| Picture {
                filename: Some(format!("{i}.png")),
                captions: (0..i % 3).map(|n| format!("caption \u{e9} {n} of {i}")).collect(),
                label: Some(i / 2),
                class: Some(format!("class {}", i / 2)),
                image: vec![i as u8; 5 << 20],
                mask: None,
            })
            .collect();
        rows.iter().for_each(|row| writer.add(row.clone()).unwrap());
        writer.finish().unwrap();
        let read = || -> Vec<Picture> {
            Pictures::open(&path).unwrap().iter().map(|row| row.unwrap().unwrap()).collect()
        };
        assert!(read() == rows);
        // With masks.
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = PictureWriter::with_masks(&path, file).unwrap();
        let mask = |row: &Picture| Some(row.captions.len().to_le_bytes().to_vec());
        let rows: Vec<_> = rows.into_iter().map(|r| Picture { mask: mask(&r), ..r }).collect();
        rows.iter().for_each(|row| writer.add(row.clone()).unwrap());
        writer.finish().unwrap();
        assert!(read() == rows);
    }
}
