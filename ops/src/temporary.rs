//! Temporary folders that do not pile up: one whose process was killed is removed by the next process
//! that wants one.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Once;

use tempfile::TempDir;

const PREFIX: &str = "tidewire-";
/// Locked by the folder's owner for as long as it lives, however it ends.
const LOCK: &str = "owner.lock";

/// A folder, removed when dropped or, where nobody could drop it, later.
#[derive(Debug)]
pub struct Temporary {
    dir: TempDir,
    _lock: File,
}

impl Temporary {
    /// A new folder among the system's temporary ones. `purpose` is a part of its name.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn new(purpose: &str) -> io::Result<Self> {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(|| sweep(&std::env::temp_dir()));
        let prefix = format!("{PREFIX}{purpose}-");
        let dir = tempfile::Builder::new().prefix(&prefix).tempdir()?;
        // Locked before it has the name by which others look for it.
        let new = dir.path().join("owner.new");
        let lock = File::create(&new)?;
        lock.lock()?;
        fs::rename(new, dir.path().join(LOCK))?;
        Ok(Self { dir, _lock: lock })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }
}

/// Removes the folders whose owners are gone. Nobody waits for it to be complete.
fn sweep(among: &Path) {
    let Ok(entries) = fs::read_dir(among) else { return };
    for entry in entries.flatten() {
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            remove_if_left(&entry.path());
        }
    }
}

fn remove_if_left(dir: &Path) {
    let is_left = File::open(dir.join(LOCK)).is_ok_and(|lock| lock.try_lock().is_ok());
    if is_left {
        let _ = fs::remove_dir_all(dir);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_owns_is_swept() {
        let among = tempfile::tempdir().expect("a folder");
        let folder = |name: &str| {
            let dir = among.path().join(name);
            fs::create_dir(&dir).expect("create it");
            dir
        };
        let (left, owned) = (folder("tidewire-a-1"), folder("tidewire-a-2"));
        let (young, other) = (folder("tidewire-a-3"), folder("other"));
        for dir in [&left, &owned, &other] {
            File::create(dir.join(LOCK)).expect("a lock");
        }
        let held = File::open(owned.join(LOCK)).expect("the lock");
        held.lock().expect("lock it");
        sweep(among.path());
        assert!(!left.exists());
        assert!(owned.exists() && young.exists() && other.exists());
    }
}
