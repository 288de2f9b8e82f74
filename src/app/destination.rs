//! Where pictures go.

use std::ffi::OsString;
use std::fs;
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use nadir::io::atomic;
use nadir::io::geotiff::picture;
use nadir::{Error, Result};

/// A place for one picture or several.
#[derive(Debug, PartialEq)]
pub enum Destination {
    /// Pictures get names that are free in it.
    Folder(PathBuf),
    /// The picture; with several, the stem of their names.
    File(PathBuf),
    /// Standard output, for one picture.
    Stdout,
}

/// Which picture of a command's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    Only {
        seed: u64,
    },
    OneOfSeveral {
        seed: u64,
    },
    /// All as one, the first of which has this seed.
    Grid {
        seed: u64,
    },
}

impl Destination {
    /// What `path` stands for, checked now so that no picture is computed for a place it cannot go to. Removes what
    /// killed processes left there.
    ///
    /// # Errors
    /// The folder is missing or not writable, or the file is to have a format other than PNG and TIFF.
    pub fn resolve(path: Option<&Path>) -> Result<Self> {
        let Some(path) = path else {
            prepare(Path::new("."))?;
            return Ok(Self::Folder(PathBuf::new()));
        };
        if path == Path::new("-") {
            return Ok(Self::Stdout);
        }
        // "name/" is meant as a folder even where there is none.
        let ends_as_folder =
            path.as_os_str().to_string_lossy().ends_with(['/', std::path::MAIN_SEPARATOR]);
        if path.is_dir() || ends_as_folder {
            atomic::check_folder(path, path)?;
            prepare(path)?;
            return Ok(Self::Folder(path.to_path_buf()));
        }
        // Devices and pipes have names of their own.
        if !path.exists() || path.is_file() {
            let folder = folder_of(path);
            atomic::check_folder(path, folder)?;
            let is_png = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("png"));
            if !is_png && !picture::is_named_so(path) {
                let expected = "a file name that ends in .png or .tif, or an existing folder";
                return Err(Error::argument("output", path.display(), expected));
            }
            prepare(folder)?;
        }
        Ok(Self::File(path.to_path_buf()))
    }

    /// Whether pictures are GeoTIFFs; else they are PNGs.
    pub fn is_geotiff(&self) -> bool {
        matches!(self, Self::File(file) if picture::is_named_so(file))
    }

    /// Checks that `pictures` have a place here.
    ///
    /// # Errors
    /// A name that the file system cannot have, or that a folder has; several pictures for standard output.
    pub fn check(&self, pictures: &[Which]) -> Result<()> {
        match self {
            Self::Folder(_) => Ok(()),
            Self::Stdout if matches!(pictures, [Which::Only { .. }]) => Ok(()),
            Self::Stdout => {
                let expected = "standard output takes one picture: name a folder or a file";
                Err(Error::argument("output", "-", expected))
            }
            Self::File(file) => {
                let mut paths = pictures.iter().map(|which| named(file, *which));
                paths.try_for_each(|path| match fs::metadata(&path) {
                    Ok(found) if found.is_dir() => {
                        let expected = "a name that no folder has";
                        Err(Error::argument("output", path.display(), expected))
                    }
                    Err(e) if e.kind() != ErrorKind::NotFound => Err(Error::io(&path, e)),
                    _ => Ok(()),
                })
            }
        }
    }

    /// Puts a picture's file, which `fill` writes, where it belongs; its path, where it has one.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(
        &self,
        which: Which,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<Option<PathBuf>> {
        match self {
            Self::Folder(folder) => {
                atomic::create(here(folder), free_names(folder, which), fill).map(Some)
            }
            Self::File(file) => {
                let path = named(file, which);
                atomic::write(&path, fill)?;
                Ok(Some(path))
            }
            Self::Stdout => {
                let mut out = io::stdout().lock();
                let written = fill(&mut out).and_then(|()| out.flush());
                written.map(|()| None).map_err(|e| Error::io("standard output", e))
            }
        }
    }

    /// Does what [`Self::save`] does, and leaves nothing.
    ///
    /// # Errors
    /// As there.
    pub fn rehearse(&self, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        match self {
            Self::Folder(folder) => atomic::rehearse(here(folder), fill),
            Self::File(file) if !file.exists() || file.is_file() => {
                atomic::rehearse(folder_of(file), fill)
            }
            // What goes through a pipe or to a device cannot be taken back.
            Self::File(_) | Self::Stdout => {
                fill(&mut io::sink()).map_err(|e| Error::io("output", e))
            }
        }
    }
}

fn here(folder: &Path) -> &Path {
    if folder.as_os_str().is_empty() { Path::new(".") } else { folder }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().map_or(Path::new("."), here)
}

/// Tries the only thing that tells whether a folder can be written to.
fn prepare(folder: &Path) -> Result<()> {
    atomic::remove_abandoned(folder);
    atomic::check_writable(folder)
}

/// The names that a picture may have in a folder, the best first.
fn free_names(folder: &Path, which: Which) -> impl Iterator<Item = PathBuf> {
    let stem = match which {
        Which::Only { seed } | Which::OneOfSeveral { seed } => format!("nadir-{seed}"),
        Which::Grid { seed } => format!("nadir-{seed}-grid"),
    };
    let first = folder.join(format!("{stem}.png"));
    std::iter::once(first).chain((2..).map(move |i| folder.join(format!("{stem}-{i}.png"))))
}

/// The name that a picture has by the one that was given.
fn named(file: &Path, which: Which) -> PathBuf {
    let mut name = OsString::from(file.file_stem().unwrap_or_default());
    match which {
        Which::Only { .. } => return file.to_path_buf(),
        Which::OneOfSeveral { seed } => name.push(format!("-{seed}")),
        Which::Grid { .. } => name.push("-grid"),
    }
    name.push(".");
    name.push(if picture::is_named_so(file) { "tif" } else { "png" });
    file.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn save(destination: &Destination, which: Which) -> PathBuf {
        destination.save(which, |out| out.write_all(b"x")).unwrap().unwrap()
    }

    #[test]
    fn a_folder_gives_free_names() {
        let folder = tempfile::tempdir().unwrap();
        let destination = Destination::resolve(Some(folder.path())).unwrap();
        let saved =
            [Which::OneOfSeveral { seed: 7 }, Which::Only { seed: 7 }, Which::Grid { seed: 7 }]
                .map(|which| save(&destination, which));
        let names = ["nadir-7.png", "nadir-7-2.png", "nadir-7-grid.png"];
        assert_eq!(saved, names.map(|name| folder.path().join(name)));
    }

    #[test]
    fn a_file_is_itself_or_a_stem() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("river.v2.png");
        let destination = Destination::resolve(Some(&file)).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "the check leaves nothing");
        let several = [Which::OneOfSeveral { seed: 7 }, Which::Grid { seed: 7 }];
        destination.check(&several).unwrap();
        assert_eq!(save(&destination, Which::Only { seed: 7 }), file);
        let saved = several.map(|which| save(&destination, which));
        let names = ["river.v2-7.png", "river.v2-grid.png"];
        assert_eq!(saved, names.map(|name| folder.path().join(name)));
        let scene = Destination::File("river.v2.TIFF".into());
        assert!(scene.is_geotiff() && !destination.is_geotiff());
        assert_eq!(named(Path::new("river.v2.TIFF"), several[0]), Path::new("river.v2-7.tif"));
    }

    #[test]
    fn places_that_cannot_be() {
        let folder = tempfile::tempdir().unwrap();
        for wrong in ["none/", "none/x.png", "x.jpg", "x"] {
            let error = Destination::resolve(Some(&folder.path().join(wrong))).err().unwrap();
            assert!(
                matches!(error, Error::Argument { name: "output", .. } | Error::File { .. }),
                "{wrong}: {error}"
            );
        }
        // A name that just fits, but not with a seed behind it.
        let long = Destination::File(folder.path().join("x".repeat(250) + ".png"));
        long.check(&[Which::Only { seed: 7 }]).unwrap();
        let several = [Which::OneOfSeveral { seed: 7 }];
        let error = long.check(&several).unwrap_err();
        let named = |path: &Path| path.to_string_lossy().ends_with("xxx-7.png");
        assert!(matches!(&error, Error::Io { path, .. } if named(path)), "{error}");
        fs::create_dir(folder.path().join("x-7.png")).unwrap();
        let taken = Destination::File(folder.path().join("x.png"));
        let error = taken.check(&several).unwrap_err().to_string();
        assert!(error.contains("x-7.png"), "{error}");
        Destination::Stdout.check(&[Which::Only { seed: 7 }]).unwrap();
        let error = Destination::Stdout.check(&[Which::Grid { seed: 7 }]).unwrap_err();
        assert!(matches!(error, Error::Argument { name: "output", .. }), "{error}");
    }
}
