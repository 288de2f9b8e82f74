//! The folder beside a picture that is being drawn: what it is drawn by, latents of windows, decoded tiles. Every file is
//! whole or absent, and its content follows from its name and the record: so it does not matter who makes it, when, or how
//! often.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::grid::Id;
use super::tiles::Tiles;
use crate::error::{Error, Result};
use crate::io::claim::Claim;
use crate::io::{atomic, config, read_bounded};

/// What the picture is drawn by; must stay the same.
const RECORD: &str = "scene.json";
/// Locked by all who are at work here.
const LOCK: &str = "lock";
/// There once the picture is whole.
const DONE: &str = "done";
const LATENTS: &str = "latents";
const TILES: &str = "tiles";
const CLAIMS: &str = "claims";

/// The longest file of a window or tile.
const MAX_FILE: u64 = 4 << 30;

/// The folder, which other processes may be at work in as well.
pub struct State {
    folder: PathBuf,
    /// Shared with the others.
    lock: File,
    pub(super) tiles: Tiles,
}

impl State {
    /// Begins the picture `output`, or goes on with it, or joins those who are about it; drawn by what `record` says, in tiles
    /// that are kept as `tiles` says.
    ///
    /// # Errors
    /// The picture is there; it was begun by something else; the folder cannot be written.
    pub fn open(output: &Path, record: &Value, tiles: Tiles) -> Result<Self> {
        let mut name = OsString::from(output.file_name().unwrap_or_default());
        name.push(".parts");
        let folder = output.with_file_name(name);
        // As it is read back: a number's text may stand for its neighbour.
        let record: &Value =
            &serde_json::from_str(&record.to_string()).map_err(|e| Error::io(&folder, e.into()))?;
        loop {
            if output.symlink_metadata().is_ok() && !folder.exists() {
                return Err(atomic::taken(output));
            }
            for part in [LATENTS, TILES, CLAIMS] {
                let part = folder.join(part);
                fs::create_dir_all(&part).map_err(|e| Error::io(&part, e))?;
                atomic::remove_abandoned(&part);
            }
            atomic::remove_abandoned(&folder);
            let path = folder.join(LOCK);
            let mut options = OpenOptions::new();
            let lock = options.create(true).truncate(false).write(true).open(&path);
            let lock = lock.map_err(|e| Error::io(&path, e))?;
            // Whoever clears the folder away holds it alone; then this one has lost its name.
            lock.lock_shared().map_err(|e| Error::io(&path, e))?;
            if !is_same(&lock, &path) {
                continue;
            }
            let state = Self { folder: folder.clone(), lock, tiles };
            if state.is_done() {
                if output.exists() && state.check(record).is_ok() {
                    return Ok(state);
                }
                if !state.clear() {
                    let expected = "another name: processes that have drawn something else there are just ending";
                    return Err(Error::argument("output", output.display(), expected));
                }
                continue;
            }
            if !state.folder.join(RECORD).exists() {
                // Others have finished it just now, and cleared the folder away.
                if output.symlink_metadata().is_ok() {
                    state.clear();
                    return Err(atomic::taken(output));
                }
                let text = format!("{record:#}\n");
                let names = [state.folder.join(RECORD)];
                let written = atomic::create(&folder, names, |out| out.write_all(text.as_bytes()));
                // Another may have been first.
                if let (Err(error), false) = (written, state.folder.join(RECORD).exists()) {
                    return Err(error);
                }
            }
            if folder.join(RECORD).exists() {
                state.check(record)?;
                return Ok(state);
            }
        }
    }

    fn check(&self, record: &Value) -> Result<()> {
        let path = self.folder.join(RECORD);
        let known = config::read_json(&path)?;
        let get = |all: &Value, name: &str| all.get(name).cloned().unwrap_or_default();
        let names = |all: &Value| -> Vec<String> {
            all.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()
        };
        let mut names = names(record).into_iter().chain(names(&known));
        match names.find(|name| get(&known, name) != get(record, name)) {
            None => Ok(()),
            Some(name) => {
                let advice = "Go on with the settings that it was begun with, name another file, or remove the folder.";
                let expected = format!("{}, as it was begun with", get(&known, &name));
                Err(Error::file(&path, &name, expected, get(record, &name).to_string(), advice))
            }
        }
    }

    /// Whether the picture is whole.
    pub fn is_done(&self) -> bool {
        self.folder.join(DONE).exists()
    }

    /// Says that the picture is whole, once it is.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&self) -> Result<()> {
        atomic::write(&self.folder.join(DONE), |_| Ok(()))
    }

    /// Clears the folder away if nobody else is at work in it; says whether nobody was.
    fn clear(&self) -> bool {
        // A shared lock becomes one's own, or stays.
        if self.lock.try_lock().is_err() {
            let _ = self.lock.try_lock_shared();
            return false;
        }
        // What says that the picture is whole goes last.
        for part in [LATENTS, TILES, CLAIMS] {
            let _ = fs::remove_dir_all(self.folder.join(part));
        }
        for file in [RECORD, DONE, LOCK] {
            let _ = fs::remove_file(self.folder.join(file));
        }
        let _ = fs::remove_dir(&self.folder);
        true
    }

    fn latents_path(&self, [y, x]: Id) -> PathBuf {
        self.folder.join(LATENTS).join(format!("{y}-{x}"))
    }

    pub(super) fn tile_path(&self, [y, x]: Id) -> PathBuf {
        self.folder.join(TILES).join(format!("{y}-{x}{}", self.tiles.ending()))
    }

    /// Whether a window is drawn.
    pub(super) fn has_latents(&self, id: Id) -> bool {
        self.latents_path(id).exists()
    }

    /// Whether a window is decoded.
    pub(super) fn has_tile(&self, id: Id) -> bool {
        self.tile_path(id).exists()
    }

    /// The right to draw a window.
    pub(super) fn claim_latents(&self, id: Id) -> Result<Option<Claim>> {
        Claim::take(&self.folder.join(CLAIMS), &self.latents_path(id))
    }

    /// The right to decode one.
    pub(super) fn claim_tile(&self, id: Id) -> Result<Option<Claim>> {
        Claim::take(&self.folder.join(CLAIMS), &self.tile_path(id))
    }

    /// The right to put the picture together; none when it is, or another process is about it.
    ///
    /// # Errors
    /// The lock cannot be made.
    pub fn claim_picture(&self) -> Result<Option<Claim>> {
        Claim::take(&self.folder.join(CLAIMS), &self.folder.join(DONE))
    }

    /// Latents of a window after each evaluation, or the last: [n, h, w, C].
    ///
    /// # Errors
    /// The file is gone, or has another length than `numbers`.
    pub(super) fn latents(&self, id: Id, numbers: usize) -> Result<Vec<f32>> {
        let path = self.latents_path(id);
        let bytes = read_bounded(&path, MAX_FILE)?;
        if bytes.len() != 4 * numbers {
            let expected = format!("{} bytes", 4 * numbers);
            let advice = "The file was changed: remove it.";
            return Err(Error::file(&path, "size", expected, bytes.len().to_string(), advice));
        }
        Ok(bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect())
    }

    /// Keeps them under the name that was claimed.
    pub(super) fn keep_latents(claim: Claim, numbers: &[f32]) -> Result<()> {
        atomic::write(claim.path(), |out| {
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            out.write_all(&bytes)
        })
    }

    /// Lets go of the latents of a window that nobody needs any more.
    pub(super) fn drop_latents(&self, id: Id) {
        let _ = fs::remove_file(self.latents_path(id));
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.is_done() {
            self.clear();
        }
    }
}

/// Whether a file that is open still has its name.
fn is_same(file: &File, path: &Path) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |about: fs::Metadata| (about.dev(), about.ino());
        match (file.metadata(), fs::metadata(path)) {
            (Ok(own), Ok(named)) => id(own) == id(named),
            _ => false,
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        path.exists()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn open(output: &Path, record: &Value) -> Result<State> {
        State::open(output, record, Tiles::Shown(None))
    }

    #[test]
    fn a_file_of_another_size_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let state = open(&folder.path().join("a.png"), &json!({})).unwrap();
        State::keep_latents(state.claim_latents([3, 5]).unwrap().unwrap(), &[1.0, -2.5]).unwrap();
        assert_eq!(state.latents([3, 5], 2).unwrap(), [1.0, -2.5]);
        for numbers in [0, 1, 3] {
            let error = state.latents([3, 5], numbers).unwrap_err().to_string();
            let expected = format!("{} bytes", 4 * numbers);
            assert!(error.contains(&expected) && error.contains("3-5"), "{error}");
        }
        // Cut within a number.
        fs::write(state.latents_path([3, 5]), [0; 7]).unwrap();
        assert!(state.latents([3, 5], 1).is_err() && state.latents([3, 5], 2).is_err());
    }

    #[test]
    fn a_picture_that_is_there_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("a.png");
        fs::write(&output, "mine").unwrap();
        let error = open(&output, &json!({})).err().unwrap().to_string();
        assert!(error.contains("a name that nothing has"), "{error}");
        let entries = || fs::read_dir(folder.path()).unwrap().count();
        assert!(fs::read(&output).unwrap() == b"mine" && entries() == 1);
        // One that was being written when it was killed is written again.
        fs::remove_file(&output).unwrap();
        drop(open(&output, &json!({ "seed": 1 })).unwrap());
        fs::write(&output, "half").unwrap();
        assert!(open(&output, &json!({ "seed": 1 })).is_ok());
        let error = open(&output, &json!({ "seed": 2 })).err().unwrap().to_string();
        assert!(error.contains("seed"), "{error}");
    }
}
