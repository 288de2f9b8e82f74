//! Sets of pictures: a folder of them, or a data set.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::data::{DataSettings, Dataset, Fault};
use crate::error::{Error, Result};
use crate::io::image::{self, RgbImage};

/// Names of pictures end so.
const ENDINGS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "jpe"];

/// Folders within folders, at most.
const DEPTH: usize = 16;

/// Pictures in a fixed order.
pub enum Pictures {
    /// A parquet file, or a folder with `metadata.jsonl`.
    Data(Dataset),
    /// The pictures in a folder and the folders in it, by name.
    Files(Vec<PathBuf>),
}

/// What a set is, seen once from end to end.
pub struct Survey {
    /// Width and height of all pictures.
    pub size: [u32; 2],
    /// Tells the content from other content: SHA-256 of sizes and levels.
    pub fingerprint: String,
}

impl Pictures {
    /// Opens a parquet file or a folder; with `strict`, a row that cannot be used is an error.
    ///
    /// # Errors
    /// There is no such thing, it has another schema, or holds no picture.
    pub fn open(path: &Path, strict: bool) -> Result<Self> {
        if !path.is_dir() || path.join("metadata.jsonl").exists() {
            // Pictures are taken as they are, whatever the size.
            let settings = DataSettings { resolution: Some(1), strict, ..DataSettings::default() };
            return Ok(Self::Data(Dataset::open(path, settings)?));
        }
        let mut files = Vec::new();
        collect(path, DEPTH, &mut files)?;
        files.sort();
        if files.is_empty() {
            let expected = format!("pictures ({})", ENDINGS.join(", "));
            let advice = "Name a folder of pictures or a parquet file.";
            return Err(Error::file(path, "content", expected, "none", advice));
        }
        Ok(Self::Files(files))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Data(data) => data.len(),
            Self::Files(files) => files.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Rows that were left out.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Data(data) => data.faults(),
            Self::Files(_) => &[],
        }
    }

    /// A picture.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn get(&self, i: usize) -> Result<RgbImage> {
        match self {
            Self::Data(data) => data.picture(i),
            Self::Files(files) => image::open(&files[i]),
        }
    }

    /// What errors call a picture.
    pub fn name(&self, i: usize) -> String {
        match self {
            Self::Data(data) => format!("{}: {} {}", data.path().display(), i + 1, data.name(i)),
            Self::Files(files) => files[i].display().to_string(),
        }
    }

    /// Looks at all of them; `seen` is called after each.
    ///
    /// # Errors
    /// One cannot be read, or is of another size than the first: it would have to be padded, cut or distorted, and what is
    /// measured then is that.
    pub fn survey(&self, mut seen: impl FnMut() -> Result<()>) -> Result<Survey> {
        let mut hash = Sha256::new();
        let mut size = None;
        for i in 0..self.len() {
            let picture = self.get(i)?;
            let (width, height) = picture.dimensions();
            let first = *size.get_or_insert([width, height]);
            if first != [width, height] {
                let expected = format!("{}x{} pixels as the first", first[0], first[1]);
                let found = format!("{width}x{height}");
                let advice = "Cut or scale the pictures to one size first: padded or distorted ones would be measured as such.";
                return Err(Error::file(self.name(i), "picture", expected, found, advice));
            }
            hash.update([width.to_le_bytes(), height.to_le_bytes()].concat());
            hash.update(picture.as_raw());
            seen()?;
        }
        let fingerprint = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Survey { size: size.unwrap_or_default(), fingerprint })
    }
}

/// The pictures in a folder and in those within it.
fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).map_err(|e| Error::io(folder, e))? {
        let path = entry.map_err(|e| Error::io(folder, e))?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if path.is_dir() {
            if depth > 0 && !hidden {
                collect(&path, depth - 1, files)?;
            }
        } else if !hidden
            && let Some(ending) = path.extension()
            && ENDINGS.iter().any(|known| ending.eq_ignore_ascii_case(known))
        {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::png;

    #[test]
    fn folders_within_are_read_in_order_and_sizes_must_be_one() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, width, tone| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            png::write(&path, &RgbImage::from_pixel(width, 3, ::image::Rgb([tone; 3])), &[])
                .unwrap();
        };
        assert!(Pictures::open(folder.path(), true).is_err());
        write("b/x.png", 4, 2);
        write("a.png", 4, 1);
        write(".hidden/x.png", 4, 3);
        std::fs::write(folder.path().join("notes.txt"), "none").unwrap();
        let pictures = Pictures::open(folder.path(), true).unwrap();
        let tones: Vec<u8> =
            (0..pictures.len()).map(|i| pictures.get(i).unwrap().as_raw()[0]).collect();
        assert_eq!(tones, [1, 2]);
        let survey = || Pictures::open(folder.path(), true).unwrap().survey(|| Ok(()));
        let first = survey().unwrap();
        assert_eq!(first.size, [4, 3]);
        write("a.png", 4, 9);
        assert_ne!(survey().unwrap().fingerprint, first.fingerprint);
        write("c.png", 5, 1);
        let message = survey().err().unwrap().to_string();
        assert!(message.contains("c.png") && message.contains("4x3"), "{message}");
    }
}
