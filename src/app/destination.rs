//! Where pictures go.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use nadir::io::atomic;
use nadir::{Error, Result};

/// A place for one picture or several.
#[derive(Debug, PartialEq)]
pub enum Destination {
    /// Pictures get names that are free in it.
    Folder(PathBuf),
    /// The picture; with several, the stem of their names.
    File(PathBuf),
}

impl Destination {
    /// What `path` stands for, checked now so that no picture is computed for a place it cannot go to.
    ///
    /// # Errors
    /// The folder is missing or not writable, or the file is to have a format other than PNG.
    pub fn resolve(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            writable(Path::new("."))?;
            return Ok(Self::Folder(PathBuf::new()));
        };
        // "name/" is meant as a folder even where there is none.
        let ends_as_folder =
            path.as_os_str().to_string_lossy().ends_with(['/', std::path::MAIN_SEPARATOR]);
        if path.is_dir() || ends_as_folder {
            atomic::check_folder(path, path)?;
            writable(path)?;
            return Ok(Self::Folder(path.to_path_buf()));
        }
        // Devices and pipes have names of their own.
        if !path.exists() || path.is_file() {
            let folder = folder_of(path);
            atomic::check_folder(path, folder)?;
            if !path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png")) {
                let expected = "a file name that ends in .png, or an existing folder";
                return Err(Error::argument("output", path.display(), expected));
            }
            writable(folder)?;
        }
        Ok(Self::File(path.to_path_buf()))
    }

    /// The file for the picture of `seed`, one of several or the only one.
    pub fn image(&self, seed: u64, several: bool) -> PathBuf {
        match self {
            Self::Folder(folder) => free(folder, &format!("nadir-{seed}")),
            Self::File(file) if several => named(file, &format!("-{seed}")),
            Self::File(file) => file.clone(),
        }
    }

    /// The file for the picture of all pictures, the first of which has `seed`.
    pub fn grid(&self, seed: u64) -> PathBuf {
        match self {
            Self::Folder(folder) => free(folder, &format!("nadir-{seed}-grid")),
            Self::File(file) => named(file, "-grid"),
        }
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| *p != Path::new("")).unwrap_or(Path::new("."))
}

/// Tries the only thing that tells whether a folder can be written to.
fn writable(folder: &Path) -> Result<()> {
    let probe = tempfile::Builder::new().prefix(".nadir-").suffix(".tmp").tempfile_in(folder);
    probe.map(drop).map_err(|e| Error::io(folder, e))
}

fn free(folder: &Path, stem: &str) -> PathBuf {
    let numbered = (2..).map(|i| format!("{stem}-{i}.png"));
    let mut names = std::iter::once(format!("{stem}.png")).chain(numbered);
    names.find_map(|name| Some(folder.join(name)).filter(|path| !path.exists())).unwrap_or_default()
}

fn named(file: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(file.file_stem().unwrap_or_default());
    name.push(suffix);
    name.push(".png");
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_folder_gives_free_names() {
        let folder = tempfile::tempdir().unwrap();
        let destination = Destination::resolve(Some(folder.path())).unwrap();
        assert_eq!(destination.image(7, true), folder.path().join("nadir-7.png"));
        fs::write(folder.path().join("nadir-7.png"), "").unwrap();
        assert_eq!(destination.image(7, false), folder.path().join("nadir-7-2.png"));
        fs::write(folder.path().join("nadir-7-2.png"), "").unwrap();
        assert_eq!(destination.image(7, false), folder.path().join("nadir-7-3.png"));
        assert_eq!(destination.grid(7), folder.path().join("nadir-7-grid.png"));
    }

    #[test]
    fn a_file_is_itself_or_a_stem() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("river.v2.png");
        let destination = Destination::resolve(Some(&file)).unwrap();
        assert_eq!(destination.image(7, false), file);
        assert_eq!(destination.image(7, true), folder.path().join("river.v2-7.png"));
        assert_eq!(destination.grid(7), folder.path().join("river.v2-grid.png"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the check leaves nothing");
    }

    #[test]
    fn places_that_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in ["none/", "none/x.png", "x.jpg", "x"] {
            assert!(Destination::resolve(Some(&folder.path().join(wrong))).is_err(), "{wrong}");
        }
    }
}
