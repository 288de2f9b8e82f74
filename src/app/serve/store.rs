//! Jobs on disk: `ID/job.json` and `ID/0.png`, ... in a folder that one server has for itself.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nadir::io::{atomic, config};
use nadir::{Error, Result};

use super::job::{Job, JobState};

const JOB: &str = "job.json";
const REPLICA: &str = "replica";
const LOCK: &str = "lock";

/// How much of what is finished is kept.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes: u64,
    pub age: Duration,
    pub jobs: usize,
}

/// A folder of jobs.
pub struct Store {
    root: PathBuf,
    replica: String,
    limits: Limits,
    /// By id, which is by age.
    finished: Mutex<BTreeMap<String, Kept>>,
    /// Held as long as this is.
    _lock: File,
    /// Without a folder of the user's: gone at the end.
    _temporary: Option<tempfile::TempDir>,
}

struct Kept {
    bytes: u64,
    since: SystemTime,
}

impl Store {
    /// Opens `folder`, or a temporary one, and says what number the next job has. Jobs of a server that was killed are lost,
    /// and say so from now on.
    ///
    /// # Errors
    /// Another process has it; it cannot be written; it is another replica's.
    pub fn open(
        folder: Option<&Path>,
        replica: Option<&str>,
        limits: Limits,
    ) -> Result<(Self, u64)> {
        let (root, temporary) = match folder {
            Some(folder) => (folder.to_owned(), None),
            None => {
                let made = tempfile::Builder::new().prefix("nadir-jobs-").tempdir();
                let made = made.map_err(|e| Error::io(std::env::temp_dir(), e))?;
                (made.path().to_owned(), Some(made))
            }
        };
        fs::create_dir_all(&root).map_err(|e| Error::io(&root, e))?;
        atomic::check_writable(&root)?;
        let lock = locked(&root)?;
        atomic::remove_abandoned(&root);
        let replica = named(&root, replica)?;
        let finished = Mutex::new(BTreeMap::new());
        let store = Self { root, replica, limits, finished, _lock: lock, _temporary: temporary };
        let next = store.recover()?;
        store.evict();
        Ok((store, next))
    }

    /// What this server is called: ids of its jobs begin with it.
    pub fn replica(&self) -> &str {
        &self.replica
    }

    /// Looks through the folder.
    fn recover(&self) -> Result<u64> {
        let mut next = 0;
        let entries = fs::read_dir(&self.root).map_err(|e| Error::io(&self.root, e))?;
        for entry in entries {
            let entry = entry.map_err(|e| Error::io(&self.root, e))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(number) = self.number(&name) else { continue };
            next = next.max(number + 1);
            // A job that was killed before it was written down was never promised.
            let Ok(mut job) = self.read(&name) else { continue };
            if !job.state.is_over() {
                job.lose();
                self.write(&job)?;
            }
            self.note(&job)?;
        }
        Ok(next)
    }

    fn number(&self, id: &str) -> Option<u64> {
        id.strip_prefix(&self.replica)?.strip_prefix('-')?.parse().ok()
    }

    pub fn id(&self, number: u64) -> String {
        format!("{}-{number:06}", self.replica)
    }

    /// Where a job is. None for what is no id: nothing that is asked for becomes a path unseen.
    fn folder(&self, id: &str) -> Option<PathBuf> {
        let number = self.number(id)?;
        (self.id(number) == id).then(|| self.root.join(id))
    }

    /// A job that is on disk.
    ///
    /// # Errors
    /// There is none.
    pub fn read(&self, id: &str) -> Result<Job> {
        let path = self.folder(id).unwrap_or_default().join(JOB);
        let value = config::read_json(&path)?;
        serde_json::from_value(value).map_err(|e| {
            let advice = "Remove the folder: it was not written by this version.";
            Error::file(path, "job", "a job of this version", e.to_string(), advice)
        })
    }

    /// Writes down a job as it is.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write(&self, job: &Job) -> Result<()> {
        let folder = self.root.join(&job.id);
        fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, e))?;
        let path = folder.join(JOB);
        let json = serde_json::to_vec(job).map_err(|e| Error::io(&path, e.into()))?;
        atomic::write(&path, |out| out.write_all(&json))
    }

    /// Writes down a job that is over, and lets go of old ones.
    ///
    /// # Errors
    /// The disk is full.
    pub fn finish(&self, job: &Job) -> Result<()> {
        self.write(job)?;
        self.note(job)?;
        self.evict();
        Ok(())
    }

    /// Writes a picture of a job.
    ///
    /// # Errors
    /// The disk is full.
    pub fn write_picture(&self, id: &str, index: usize, png: &[u8]) -> Result<()> {
        let path = self.root.join(id).join(format!("{index}.png"));
        atomic::write(&path, |out| out.write_all(png))
    }

    /// A picture of a job, if it is there.
    pub fn picture(&self, id: &str, index: usize) -> Option<Vec<u8>> {
        fs::read(self.folder(id)?.join(format!("{index}.png"))).ok()
    }

    /// The ids of jobs that are over, the latest first.
    pub fn finished(&self) -> Vec<String> {
        self.kept().keys().rev().cloned().collect()
    }

    /// Removes a job that is over.
    pub fn remove(&self, id: &str) {
        self.kept().remove(id);
        if let Some(folder) = self.folder(id) {
            remove(&self.root, &folder);
        }
    }

    fn kept(&self) -> MutexGuard<'_, BTreeMap<String, Kept>> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, job: &Job) -> Result<()> {
        let folder = self.root.join(&job.id);
        let mut bytes = 0;
        for entry in fs::read_dir(&folder).map_err(|e| Error::io(&folder, e))?.flatten() {
            bytes += entry.metadata().map_or(0, |data| data.len());
        }
        let path = folder.join(JOB);
        let written = fs::metadata(&path).and_then(|data| data.modified());
        let since = written.map_err(|e| Error::io(&path, e))?;
        self.kept().insert(job.id.clone(), Kept { bytes, since });
        Ok(())
    }

    /// Removes what is too much or too old, the oldest first.
    pub fn evict(&self) {
        let mut kept = self.kept();
        let mut bytes: u64 = kept.values().map(|job| job.bytes).sum();
        loop {
            let jobs = kept.len();
            let Some(oldest) = kept.first_entry() else { return };
            let age = oldest.get().since.elapsed().unwrap_or_default();
            let Limits { bytes: most, age: longest, jobs: many } = self.limits;
            if bytes <= most && age <= longest && jobs <= many {
                return;
            }
            let (id, job) = oldest.remove_entry();
            bytes -= job.bytes;
            remove(&self.root, &self.root.join(id));
        }
    }
}

/// A folder that is half removed must not be taken for a job.
fn remove(root: &Path, folder: &Path) {
    let gone = root.join(format!("removed-{}", std::process::id()));
    let _ = fs::remove_dir_all(&gone);
    if fs::rename(folder, &gone).is_ok() {
        let _ = fs::remove_dir_all(&gone);
    }
}

fn locked(root: &Path) -> Result<File> {
    let path = root.join(LOCK);
    let lock = File::create(&path).map_err(|e| Error::io(&path, e))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => {
            let advice = "Give each server a folder of its own.";
            let expected = "a folder that no other server has";
            Err(Error::file(root, "state folder", expected, "one that is in use", advice))
        }
        Err(fs::TryLockError::Error(error)) => Err(Error::io(path, error)),
    }
}

/// The name that the folder has, or gets.
fn named(root: &Path, wanted: Option<&str>) -> Result<String> {
    let path = root.join(REPLICA);
    if let Some(name) = wanted {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if !(1..=32).contains(&name.len()) || !name.chars().all(plain) {
            let expected = "1 to 32 letters a to z and digits";
            return Err(Error::argument("replica", name, expected));
        }
    }
    let known = match fs::read_to_string(&path) {
        Ok(name) => Some(name.trim().to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::io(path, error)),
    };
    match (known, wanted) {
        (Some(known), Some(wanted)) if known != wanted => {
            let advice = "Give each replica a folder of its own, or leave --replica out.";
            Err(Error::file(path, "replica", wanted, known, advice))
        }
        (Some(known), _) => Ok(known),
        (None, wanted) => {
            let name = wanted
                .map_or_else(|| format!("r{:05x}", super::random() & 0xf_ffff), str::to_owned);
            atomic::write(&path, |out| out.write_all(name.as_bytes()))?;
            Ok(name)
        }
    }
}

impl JobState {
    /// Whether nothing more happens to it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::serve::job::Kind;

    const LIMITS: Limits = Limits { bytes: 1 << 30, age: Duration::from_secs(3600), jobs: 100 };

    fn job(store: &Store, number: u64, state: JobState) -> Job {
        let mut job = Job::new(store.id(number), Kind::Image, serde_json::json!({}), &[1, 2]);
        job.state = state;
        job
    }

    #[test]
    fn what_a_killed_server_left_is_there_or_lost() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Store::open(Some(folder.path()), Some("a1"), LIMITS);
        let (store, next) = open().unwrap();
        assert_eq!((next, store.replica()), (0, "a1"));
        store.write(&job(&store, 0, JobState::Running)).unwrap();
        store.write_picture("a1-000000", 1, b"png").unwrap();
        store.finish(&job(&store, 1, JobState::Done)).unwrap();
        assert!(open().err().unwrap().to_string().contains("in use"));
        drop(store);

        let other = Store::open(Some(folder.path()), Some("b"), LIMITS);
        assert!(other.err().unwrap().to_string().contains("a1"));
        let (store, next) = open().unwrap();
        assert_eq!(
            (next, store.finished()),
            (2, vec!["a1-000001".to_owned(), "a1-000000".to_owned()])
        );
        let states = ["a1-000000", "a1-000001"].map(|id| store.read(id).unwrap().state);
        assert_eq!(states, [JobState::Lost, JobState::Done]);
        assert_eq!(store.picture("a1-000000", 1).unwrap(), b"png");
        for id in ["../a1-000000", "a1-0", "a1-000000/..", "", "b-000000"] {
            assert!(store.read(id).is_err() && store.picture(id, 1).is_none(), "{id}");
        }
    }

    #[test]
    fn the_oldest_make_room() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { jobs: 2, ..LIMITS };
        let (store, _) = Store::open(Some(folder.path()), None, limits).unwrap();
        for number in 0..4 {
            store.finish(&job(&store, number, JobState::Done)).unwrap();
        }
        assert_eq!(store.finished(), [store.id(3), store.id(2)]);
        assert!(!folder.path().join(store.id(0)).exists());
        store.remove(&store.id(3));
        assert!(store.read(&store.id(3)).is_err());

        // By size, as many go as are too much, and no more.
        store.finish(&job(&store, 4, JobState::Done)).unwrap();
        store.finish(&job(&store, 5, JobState::Done)).unwrap();
        let one = fs::metadata(folder.path().join(store.id(5)).join(JOB)).unwrap().len();
        drop(store);
        let open = |limits| Store::open(Some(folder.path()), None, limits).unwrap().0;
        assert_eq!(open(LIMITS).finished().len(), 2);
        let store = open(Limits { bytes: one * 3 / 2, ..LIMITS });
        assert_eq!(store.finished(), [store.id(5)]);
        drop(store);
        // By age, all.
        let store = open(Limits { age: Duration::ZERO, ..LIMITS });
        assert_eq!(store.finished().len(), 0);
        drop(store);
        let store = open(LIMITS);
        store.finish(&job(&store, 6, JobState::Done)).unwrap();

        let few = Limits { bytes: 1, ..LIMITS };
        drop(store);
        let (store, next) = Store::open(Some(folder.path()), None, few).unwrap();
        assert_eq!((next, store.finished().len()), (7, 0));
    }
}
