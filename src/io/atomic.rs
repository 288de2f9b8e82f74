//! Output files that are complete or absent: written under a temporary name, synced, renamed.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Buffer in front of the file: one write call for each 1 MiB.
const BUFFER: usize = 1 << 20;

/// Writes `path` by `fill`. A reader sees the old file or the whole new one, never a part; when `fill` or the
/// disk fails, the temporary file is removed and an existing `path` stays as it was.
///
/// A `path` that exists and is no regular file (`/dev/stdout`, a named pipe) cannot be renamed over, and is
/// written directly. A symbolic link is followed.
///
/// # Errors
/// The folder is missing or not writable, the disk is full, or `fill` failed; each names the path.
pub fn write(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    let target = match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            return Err(Error::file(
                path,
                "output",
                "a file name",
                "a folder",
                "Name a file inside it.",
            ));
        }
        Ok(found) if !found.is_file() => {
            return write_through(path, fill).map_err(|e| explain(path, e));
        }
        Ok(_) => fs::canonicalize(path).map_err(|e| Error::io(path, e))?,
        Err(_) => path.to_path_buf(),
    };
    let folder = match target.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    check_folder(path, &folder)?;
    replace(&target, &folder, fill).map_err(|e| explain(path, e))
}

/// The folder that a later [`write()`] needs: to be asked before long work, not after it.
///
/// # Errors
/// The folder does not exist, or is no folder.
pub fn check_folder(path: &Path, folder: &Path) -> Result<()> {
    let advice = || format!("Create it first: mkdir -p '{}'", folder.display());
    match fs::metadata(folder) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(Error::file(
            path,
            "output folder",
            "a folder",
            format!("'{}', a file", folder.display()),
            "Choose another folder.",
        )),
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let found = format!("no folder '{}'", folder.display());
            Err(Error::file(path, "output folder", "an existing folder", found, advice()))
        }
        Err(e) => Err(Error::io(folder, e)),
    }
}

fn replace(
    target: &Path,
    folder: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(".nadir-").suffix(".tmp");
    // Temporary files are private by default; a result has the permissions of any other file (less the umask).
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // Dropping `temporary` on an early return removes the file.
    let temporary = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(BUFFER, temporary.as_file());
    fill(&mut writer)?;
    writer.flush()?;
    drop(writer);
    temporary.as_file().sync_all()?;
    temporary.persist(target).map_err(|e| e.error)?;
    // The rename itself lives in the folder. Some file systems cannot sync a folder; the file is whole even so.
    #[cfg(unix)]
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
    Ok(())
}

fn write_through(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER, File::options().write(true).open(path)?);
    fill(&mut writer)?;
    writer.flush()
}

fn explain(path: &Path, error: io::Error) -> Error {
    let (found, advice) = match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ("a full disk", "Nothing was left behind: free some space, or write elsewhere.")
        }
        ErrorKind::PermissionDenied => ("no permission", "Choose a folder that you may write to."),
        ErrorKind::ReadOnlyFilesystem => {
            ("a read-only file system", "Choose a folder that you may write to.")
        }
        _ => return Error::io(path, error),
    };
    Error::file(path, "output", "to write the file", found, advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_whole_files_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.bin");
        write(&path, |w| w.write_all(b"first")).unwrap();
        write(&path, |w| w.write_all(b"second")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");

        // A disk that fills up half way: the old content stays, and nothing else is left.
        let error = write(&path, |w| {
            w.write_all(b"thi")?;
            Err(ErrorKind::StorageFull.into())
        })
        .unwrap_err();
        assert!(error.to_string().contains("full disk"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(entries(folder.path()), ["a.bin"]);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let error = write(&folder.path().join("no/a.png"), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("no folder") && error.contains("mkdir -p"), "{error}");
        let error = write(folder.path(), |_| Ok(())).unwrap_err().to_string();
        assert!(error.contains("a folder"), "{error}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_written_directly() {
        write(Path::new("/dev/null"), |w| w.write_all(b"x")).unwrap();
        // /dev/full answers every write with ENOSPC, as a full disk does.
        let error = write(Path::new("/dev/full"), |w| w.write_all(b"x")).unwrap_err();
        assert!(error.to_string().contains("full disk"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_is_followed_and_the_result_is_readable() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("file"), folder.path().join("link"));
        fs::write(&file, b"old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&file).unwrap(), b"new");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_ne!(fs::metadata(&file).unwrap().permissions().mode() & 0o044, 0);
    }
}
