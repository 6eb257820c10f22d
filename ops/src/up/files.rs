//! What `up` keeps, all in one folder.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::token::{Claims, sign};

const SECRET_BYTES: usize = 32;
const TOKEN_TTL: Duration = Duration::from_secs(30 * 86_400);

/// The folder, ours alone while this lives.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    _lock: File,
}

impl Files {
    pub(super) fn prepare(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let lock = File::create(dir.join("up.lock")).context("create a lock")?;
        if lock.try_lock().is_err() {
            bail!(
                "another `up` runs in {}: stop it, or give this one another --dir",
                dir.display()
            );
        }
        Ok(Self { dir: dir.to_owned(), _lock: lock })
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn mongod(&self) -> PathBuf {
        self.dir.join("mongod")
    }

    pub(super) fn config(&self) -> PathBuf {
        self.dir.join("tidewire.toml")
    }

    pub(super) fn log_dir(&self) -> PathBuf {
        self.dir.join("server")
    }

    pub(super) fn token(&self) -> PathBuf {
        self.dir.join("token")
    }

    pub(super) fn replica(&self) -> PathBuf {
        self.dir.join("replica.db")
    }

    pub(super) fn output(&self, part: &str) -> PathBuf {
        self.dir.join(format!("{part}.log"))
    }

    /// The configuration, the secret and a token of an administrator.
    pub(super) fn write(&self, uri: &str, database: &str, listen: [u16; 2]) -> Result<()> {
        let secret = self.secret()?;
        let claims = Claims { ttl: TOKEN_TTL, ..Claims::of("office") }.role("admin");
        self.put(&self.token(), &sign(&secret, &claims)?)?;
        let config = self.config();
        let text = configuration(uri, database, listen, &self.log_dir(), &self.secret_file());
        self.put(&config, &text)
    }

    fn secret_file(&self) -> PathBuf {
        self.dir.join("secret")
    }

    /// Made once, so that tokens stay good from one start to the next.
    fn secret(&self) -> Result<String> {
        let path = self.secret_file();
        if let Ok(secret) = fs::read_to_string(&path)
            && secret.trim().len() >= SECRET_BYTES
        {
            return Ok(secret.trim().to_owned());
        }
        let bytes: [u8; SECRET_BYTES] = rand::random();
        let secret: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        self.put(&path, &secret)?;
        Ok(secret)
    }

    /// For the owner's eyes: the connection string may hold a password, and the rest are secrets.
    fn put(&self, path: &Path, text: &str) -> Result<()> {
        let new = self.dir.join("new");
        fs::write(&new, text).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&new, Permissions::from_mode(0o600))?;
        fs::rename(&new, path).with_context(|| format!("write {}", path.display()))
    }
}

fn configuration(
    uri: &str,
    database: &str,
    [listen, admin]: [u16; 2],
    log_dir: &Path,
    secret: &Path,
) -> String {
    format!(
        r#"# Written by `tidewire-ops up` at each start.
[source]
uri = {uri:?}
database = {database:?}

[log]
dir = {log_dir:?}
retention = "7d"

[http]
listen = "127.0.0.1:{listen}"
admin_listen = "127.0.0.1:{admin}"

[auth]
hs256_secret_file = {secret:?}

[access]
grants = ["everyone", "user:{{sub}}", "role:{{roles}}"]

# A member sees what is theirs; the office sees everything.
[[collections]]
name = "users"
channels = ["user:{{_id}}", "role:admin"]

[[collections]]
name = "plans"
channels = ["everyone"]

[[collections]]
name = "enrollments"
channels = ["user:{{userId}}", "role:admin"]

[[collections]]
name = "invoices"
channels = ["user:{{userId}}", "role:admin"]
exclude = ["internalNotes"]

[[collections]]
name = "payments"
channels = ["user:{{userId}}", "role:admin"]
"#
    )
}
