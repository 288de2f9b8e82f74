//! Files in and out: weights, model folders, data sets, pictures.
//!
//! Everything here treats its input as hostile: sizes are bounded before they are believed, a panic in a
//! third-party parser becomes an error, and every error names the file. Output is complete or absent.

pub mod as_text;
pub mod atomic;
pub mod checkpoint;
pub mod claim;
pub mod config;
pub mod folder;
pub mod geotiff;
pub mod html;
pub mod hub;
pub mod image;
pub mod parquet;
pub mod picture;
pub mod png;
pub mod projection;
pub mod raster;
pub mod safetensors;

use std::cell::Cell;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// What is known of a stored tensor without reading its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Element type that [`TensorSource::read`] returns.
    pub dtype: DType,
}

/// Named tensors that are read one at a time, so that loading a model needs no second copy of its weights.
pub trait TensorSource: Send + Sync {
    /// Every name, sorted.
    fn names(&self) -> Vec<String>;

    /// Shape and dtype of `name`; `None` when there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Reads `name` into CPU memory.
    ///
    /// # Errors
    /// No such tensor, or its file can no longer be read.
    fn read(&self, name: &str) -> Result<Tensor>;

    /// As [`Self::read`], for who lays the elements out anew and lets go of them: the tensor may hold more memory than it
    /// needs.
    ///
    /// # Errors
    /// As [`Self::read`].
    fn read_briefly(&self, name: &str) -> Result<Tensor> {
        self.read(name)
    }

    /// Where `name` comes from, or would have to be: a file name for error messages.
    fn origin(&self, name: &str) -> String;
}

/// Opens a file. A pipe or a device is refused: it may never answer, or never end.
pub(crate) fn open_file(path: &Path) -> Result<File> {
    let about = std::fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if about.is_file() {
        return File::open(path).map_err(|e| Error::io(path, e));
    }
    let found = if about.is_dir() { "a folder" } else { "a pipe, a socket or a device" };
    Err(Error::file(path, "file", "a regular file", found, "Put its content into a file first."))
}

/// A whole file of at most `limit` bytes.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long from one that just fits, whatever its
    // metadata says.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(|e| Error::io(path, e))?;
    if bytes.len() as u64 > limit {
        let expected = format!("at most {limit} bytes");
        return Err(Error::file(
            path,
            "size",
            expected,
            "a longer file",
            "Is this the right file?",
        ));
    }
    Ok(bytes)
}

/// The text of a file of at most `limit` bytes.
///
/// # Errors
/// It cannot be read, is longer, or no UTF-8.
pub fn read_file(path: &Path, limit: u64) -> Result<String> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|e| {
        let found = format!("another byte at {}", e.utf8_error().valid_up_to());
        Error::file(path, "content", "UTF-8 text", found, "Save the file as UTF-8.")
    })
}

thread_local! {
    static PARSING: Cell<bool> = const { Cell::new(false) };
}

/// Whether this thread is in a third-party parser, whose panic becomes an error: one that a program's panic hook need not show.
pub fn is_parsing() -> bool {
    PARSING.get()
}

/// Runs a third-party parser: a panic in it becomes what was found in place of good content.
pub(crate) fn caught<T>(parser: impl FnOnce() -> T) -> std::result::Result<T, String> {
    let outer = PARSING.replace(true);
    // Nothing that the parser touched is looked at after a panic.
    let parsed = catch_unwind(AssertUnwindSafe(parser));
    PARSING.set(outer);
    parsed.map_err(|_| "content that makes its parser panic".to_owned())
}
