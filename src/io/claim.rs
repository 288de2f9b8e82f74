//! The right to make a file, among processes that know nothing of each other: a lock on a file of the same name, in a folder
//! beside it. Who is killed loses it.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// The right to make a file, for as long as this is there.
#[derive(Debug)]
pub struct Claim {
    /// The file that is to be made.
    path: PathBuf,
    /// That which is locked.
    claim: PathBuf,
    _lock: File,
}

impl Claim {
    /// The right to make the file `made`, by a lock in the folder `claims`; none when the file is there by now, or another
    /// process is about it.
    ///
    /// # Errors
    /// The lock cannot be made.
    pub fn take(claims: &Path, made: &Path) -> Result<Option<Self>> {
        if made.exists() {
            return Ok(None);
        }
        let claim = claims.join(made.file_name().unwrap_or_default());
        let lock = File::create(&claim).map_err(|e| Error::io(&claim, e))?;
        match lock.try_lock() {
            // Another may have finished it between the look and the lock.
            Ok(()) if made.exists() => {
                let _ = fs::remove_file(&claim);
                Ok(None)
            }
            Ok(()) => Ok(Some(Self { path: made.to_path_buf(), claim, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(Error::io(claim, error)),
        }
    }

    /// The file that is to be made.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Still locked: who opened it before finds the file. Without one it stays, since who holds a lock that has lost its
        // name would be at work beside who makes a new one.
        if self.path.exists() {
            let _ = fs::remove_file(&self.claim);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_is_one_processs_and_a_file_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let claims = folder.path().join("claims");
        fs::create_dir(&claims).unwrap();
        let take = |name: &str| Claim::take(&claims, &folder.path().join(name)).unwrap();
        let claim = take("a.png").unwrap();
        // Locks belong to open files: a second one of this process is refused as another's.
        assert!(take("a.png").is_none());
        assert!(take("b.png").is_some());
        // Without a file it is free again, under the same name.
        drop(claim);
        assert!(claims.join("a.png").exists());
        let claim = take("a.png").unwrap();
        fs::write(claim.path(), "").unwrap();
        drop(claim);
        assert!(!claims.join("a.png").exists());
        assert!(take("a.png").is_none());
    }
}
