//! Moves what is committed from the write-ahead log into the file, beside the writer: the moving and
//! the waiting for the disk are a tenth of the tail's time under full load.

use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use rusqlite::hooks::Wal;
use rusqlite::{Connection, OpenFlags};

use super::LogError;

/// Pages that are moved at a time; 16 MiB.
const PAGES: i32 = 2_048;
/// Pages at which the writer itself moves the rest, so that the write-ahead log can begin again from
/// its start; 64 MiB.
const PAGES_MAX: i32 = 4 * PAGES;
/// Memory for pages on their way, KiB.
const CACHE_KIB: i32 = 64;

/// The thread that moves them. It ends when the writer's connection is closed, which must be before
/// this is dropped.
#[derive(Debug)]
pub(super) struct Checkpointer {
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts it for `writer`, the connection to the file at `path`.
    ///
    /// # Errors
    /// [`LogError::Store`]; [`LogError::Io`] where there is no thread to be had.
    pub(super) fn start(writer: &mut Connection, path: &Path) -> Result<Self, LogError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mover = Connection::open_with_flags(path, flags)?;
        mover.pragma_update(None, "cache_size", -CACHE_KIB)?;
        let (wake, woken) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || move_pages(&mover, &woken))
            .map_err(|source| LogError::Io { dir: path.to_owned(), source })?;
        // Takes the place of SQLite's own automatic checkpoint.
        let mut moved = 0;
        writer.wal_hook(Some(move |wal: &mut Wal, pages: i32| {
            if pages < moved {
                // It began again from its start.
                moved = 0;
            }
            if pages >= PAGES_MAX {
                // As with SQLite's own: the commit stands whether or not this succeeds.
                let _ = wal.checkpoint();
            } else if pages - moved >= PAGES {
                moved = pages;
                // Full: it has been woken already.
                let _ = wake.try_send(());
            }
            Ok(())
        }))?;
        Ok(Self { thread: Some(thread) })
    }
}

fn move_pages(mover: &Connection, woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        if let Err(error) = mover.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(())) {
            tracing::warn!(%error, "the log's write-ahead log could not be moved into its file");
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
