//! Output files that are complete or absent: written under a temporary name, synced, renamed.
//!
//! A temporary file or folder is locked as long as its process lives. [`remove_abandoned`] tells by that which ones a
//! killed process left behind.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};

use tempfile::{NamedTempFile, PersistError};

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

/// Writes the first of `names`, paths in `folder`, that nothing has yet, by `fill`: no file is ever replaced, whoever
/// else writes there. The name that was taken.
///
/// # Errors
/// As for [`write()`]; `names` ends before one is free.
pub fn create(
    folder: &Path,
    names: impl IntoIterator<Item = PathBuf>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<PathBuf> {
    check_folder(folder, folder)?;
    let fail = |e| explain(folder, e);
    let mut temporary = Temporary::filled(folder, fill).map_err(fail)?;
    for path in names.into_iter().filter(|path| fs::symlink_metadata(path).is_err()) {
        match temporary.persist(|file| file.persist_noclobber(&path)) {
            Ok(()) => {
                sync_folder(folder);
                return Ok(path);
            }
            Err((again, e)) if e.kind() == ErrorKind::AlreadyExists => temporary = again,
            Err((_, e)) => return Err(explain(&path, e)),
        }
    }
    Err(Error::file(folder, "output", "a free name", "none", "Choose another folder."))
}

/// A file that is written a piece at a time, and has its name from [`Self::finish`] on: dropped before, it leaves nothing.
pub struct Output {
    temporary: Temporary,
    path: PathBuf,
    folder: PathBuf,
    replace: bool,
}

impl Output {
    /// Begins the file `path`; one that is there is replaced at the end, if `replace` says so.
    ///
    /// # Errors
    /// `path` is there, or is no file; its folder is missing or cannot be written to.
    pub fn create(path: &Path, replace: bool) -> Result<Self> {
        let folder = match path.parent() {
            Some(parent) if parent != Path::new("") => parent.to_path_buf(),
            _ => PathBuf::from("."),
        };
        match path.symlink_metadata() {
            Ok(found) if !(replace && found.is_file()) => return Err(taken(path)),
            _ => check_folder(path, &folder)?,
        }
        remove_abandoned(&folder);
        let temporary = Temporary::new(&folder).map_err(|e| explain(path, e))?;
        Ok(Self { temporary, path: path.to_path_buf(), folder, replace })
    }

    /// Where it is made.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Puts it on the disk, and gives it its name.
    ///
    /// # Errors
    /// The disk is full; another file has the name by now.
    pub fn finish(self) -> Result<()> {
        let Self { temporary, path, folder, replace } = self;
        temporary.file.as_file().sync_all().map_err(|e| explain(&path, e))?;
        let named = temporary.persist(|file| match replace {
            true => file.persist(&path),
            false => file.persist_noclobber(&path),
        });
        named.map_err(|(_, e)| match e.kind() {
            ErrorKind::AlreadyExists => taken(&path),
            _ => explain(&path, e),
        })?;
        sync_folder(&folder);
        Ok(())
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.file.flush()
    }
}

/// The error of a `path` that is there, and is not to be replaced.
pub(crate) fn taken(path: &Path) -> Error {
    let advice = "Choose another name, or say that it is to be replaced.";
    Error::file(path, "output", "a name that nothing has", "a file or a folder", advice)
}

/// Makes the folder `path`, which must not be there yet, by `fill`, which gets it under a temporary name.
///
/// # Errors
/// `path` is there, or the folder around it is not; it cannot be written; what `fill` answers: then nothing is left.
pub fn create_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if path.symlink_metadata().is_ok() {
        let advice = "Name a folder that is not there yet: nothing is overwritten.";
        return Err(Error::file(path, "folder", "none", "one, or a file", advice));
    }
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    check_folder(path, parent)?;
    remove_abandoned(parent);
    let mut builder = tempfile::Builder::new();
    builder.prefix(PREFIX).suffix(SUFFIX);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
    let (scratch, temporary, lock) = loop {
        let mut open = open_files();
        let scratch = builder.tempdir_in(parent).map_err(|e| explain(path, e))?;
        let temporary = scratch.path().to_owned();
        open.push(temporary.clone());
        drop(open);
        // Where folders cannot be opened or locked, what a killed process leaves behind stays.
        let lock = File::open(&temporary).and_then(|folder| folder.lock().map(|()| folder));
        // Between its creation and the lock another process may have taken it for abandoned.
        if temporary.exists() {
            break (scratch, temporary, lock);
        }
    };
    let filled = fill(&temporary).and_then(|()| {
        drop(lock);
        fs::rename(&temporary, path).map_err(|e| explain(path, e))
    });
    open_files().retain(|open| *open != temporary);
    filled?;
    // It is no longer where it would be deleted from.
    let _ = scratch.keep();
    sync_folder(parent);
    Ok(())
}

/// Tries whether `folder` can be written to.
///
/// # Errors
/// It cannot.
pub fn check_writable(folder: &Path) -> Result<()> {
    Temporary::new(folder).map(drop).map_err(|e| explain(folder, e))
}

/// Writes a file by `fill` into `folder` as [`write()`] does, and keeps nothing of it: to learn how long that takes.
///
/// # Errors
/// As for [`write()`].
pub fn rehearse(folder: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
    Temporary::filled(folder, fill).map(drop).map_err(|e| explain(folder, e))
}

/// Whether a file has a name of those that are not complete yet.
pub(crate) fn is_temporary(name: &std::ffi::OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(PREFIX) && name.ends_with(SUFFIX)
}

/// Removes the temporary files and folders in `folder` that a process left behind when it was killed.
pub fn remove_abandoned(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !is_temporary(&entry.file_name()) {
            continue;
        }
        // Only to look at the lock; a link or a device by that name is none of ours.
        let ours = entry.file_type().is_ok_and(|kind| kind.is_file() || kind.is_dir());
        let Some(file) = ours.then(|| File::open(entry.path()).ok()).flatten() else { continue };
        if file.try_lock().is_ok() {
            remove(&entry.path());
        }
    }
}

/// Removes the temporary files and folders of this process, which is about to end.
pub fn remove_own() {
    open_files().iter().for_each(|path| remove(path));
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

const PREFIX: &str = ".nadir-";
const SUFFIX: &str = ".tmp";

/// Temporary files and folders that this process has.
static OPEN: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn open_files() -> MutexGuard<'static, Vec<PathBuf>> {
    OPEN.lock().unwrap_or_else(|e| e.into_inner())
}

/// A temporary file, locked against [`remove_abandoned`]; removed when it is dropped.
struct Temporary {
    file: NamedTempFile,
}

impl Temporary {
    fn new(folder: &Path) -> io::Result<Self> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX);
        // Temporary files are private by default; a result has the permissions of any other file (less the umask).
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        loop {
            let mut open = open_files();
            let file = builder.tempfile_in(folder)?;
            open.push(file.path().to_owned());
            drop(open);
            let temporary = Self { file };
            // Where a file system has no locks nobody gets one, and what is left behind stays.
            let _ = temporary.file.as_file().lock();
            // Between its creation and the lock another process may have taken it for abandoned.
            if temporary.file.path().exists() {
                return Ok(temporary);
            }
        }
    }

    /// A file with the content that `fill` writes, on the disk.
    fn filled(
        folder: &Path,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> io::Result<Self> {
        let temporary = Self::new(folder)?;
        let mut writer = BufWriter::with_capacity(BUFFER, temporary.file.as_file());
        fill(&mut writer)?;
        writer.flush()?;
        drop(writer);
        temporary.file.as_file().sync_all()?;
        Ok(temporary)
    }

    /// Gives it its name by `rename`; it comes back with the error when that fails.
    fn persist(
        self,
        rename: impl FnOnce(NamedTempFile) -> Result<File, PersistError>,
    ) -> Result<(), (Self, io::Error)> {
        let path = self.file.path().to_owned();
        match rename(self.file) {
            Ok(_) => {
                open_files().retain(|open| *open != path);
                Ok(())
            }
            Err(e) => Err((Self { file: e.file }, e.error)),
        }
    }
}

fn replace(
    target: &Path,
    folder: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let temporary = Temporary::filled(folder, fill)?;
    temporary.persist(|file| file.persist(target)).map_err(|(_, e)| e)?;
    sync_folder(folder);
    Ok(())
}

/// A rename lives in the folder. Some file systems cannot sync a folder; the file is whole even so.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    if let Ok(handle) = File::open(folder) {
        let _ = handle.sync_all();
    }
}

fn write_through(
    path: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut writer = BufWriter::with_capacity(BUFFER, File::options().write(true).open(path)?);
    fill(&mut writer)?;
    writer.flush()
}

pub(crate) fn explain(path: &Path, error: io::Error) -> Error {
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
    fn a_name_is_taken_once() {
        let folder = tempfile::tempdir().unwrap();
        let names = || ["a", "b", "c"].map(|name| folder.path().join(name));
        let create = || create(folder.path(), names(), |w| w.write_all(b"x"));
        assert_eq!(create().unwrap(), names()[0]);
        assert_eq!(create().unwrap(), names()[1]);
        fs::create_dir(&names()[2]).unwrap();
        assert!(create().unwrap_err().to_string().contains("a free name"));
        assert_eq!(entries(folder.path()), ["a", "b", "c"]);
    }

    #[test]
    fn writers_at_the_same_time_take_names_of_their_own() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let start = std::sync::Barrier::new(8);
        let write = || {
            // All come to the question which name is free at the same time.
            let fill = |_: &mut dyn Write| {
                start.wait();
                Ok(())
            };
            let names = (0..).map(|i| folder.join(format!("{i:03}")));
            (0..20).map(|_| create(folder, names.clone(), fill).unwrap()).collect::<Vec<_>>()
        };
        let mut taken: Vec<PathBuf> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(write)).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        taken.sort();
        assert_eq!(taken, (0..160).map(|i| folder.join(format!("{i:03}"))).collect::<Vec<_>>());
        assert_eq!(entries(folder).len(), 160);
    }

    #[test]
    fn files_of_the_dead_are_removed_and_those_of_the_living_kept() {
        let folder = tempfile::tempdir().unwrap();
        for name in [".nadir-dead.tmp", ".nadir-note.txt", "x.tmp"] {
            fs::write(folder.path().join(name), b"x").unwrap();
        }
        let living = Temporary::new(folder.path()).unwrap();
        remove_abandoned(folder.path());
        let name = living.file.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut kept = vec![name, ".nadir-note.txt".to_owned(), "x.tmp".to_owned()];
        kept.sort();
        assert_eq!(entries(folder.path()), kept);
        // As `remove_own` does, but for the files of tests beside this one.
        let own = living.file.path().to_owned();
        assert!(open_files().contains(&own));
        remove(&own);
        assert_eq!(entries(folder.path()), [".nadir-note.txt", "x.tmp"]);
    }

    #[cfg(unix)]
    #[test]
    fn folders_are_whole_or_absent_and_those_of_the_dead_removed() {
        let folder = tempfile::tempdir().unwrap();
        let dead = folder.path().join(".nadir-dead.tmp");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("x"), b"x").unwrap();
        let path = folder.path().join("a");
        let failed = create_folder(&path, |scratch| {
            fs::write(scratch.join("x"), b"x").unwrap();
            // What is being made is not abandoned.
            remove_abandoned(folder.path());
            assert!(scratch.join("x").exists());
            Err(Error::Interrupted)
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
        assert_eq!(entries(folder.path()), [""; 0]);
        create_folder(&path, |_| Ok(())).unwrap();
        let again = create_folder(&path, |_| Ok(())).unwrap_err().to_string();
        assert!(again.contains("nothing is overwritten"), "{again}");
        assert_eq!(entries(folder.path()), ["a"]);
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
