//! Folders as a whole.

use std::fs::File;
use std::io;
use std::path::Path;

/// Copies a folder and what is in it. All of it is on the disk then: nobody's first fsync waits for it.
pub(crate) fn copy(from: &Path, to: &Path) -> io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy(&entry, &to)?;
        } else {
            std::fs::copy(&entry, &to)?;
            File::options().write(true).open(&to)?.sync_all()?;
        }
    }
    Ok(())
}
