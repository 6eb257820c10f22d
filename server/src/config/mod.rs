//! The configuration: one struct a section, checked once at start, passed on explicitly.
//!
//! Each value comes from the first of: its flag, its `TIDEWIRE_<FLAG>` variable, the file, its
//! default. A key that nobody knows is refused: a misspelt `exclude` would publish what it meant to
//! hide.

mod duration;
mod file;
mod flags;
mod hours;
mod names;
mod secret;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use duration::parse_duration;
pub use flags::Flags;
pub use hours::Hours;
pub use secret::Secret;

use file::File;

/// Everything the server is told, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where changes come from.
    pub source: SourceConfig,
    /// Where they are kept.
    pub log: LogConfig,
    /// Where they are served.
    pub http: HttpConfig,
    /// How tokens are verified.
    pub auth: AuthConfig,
    /// What a verified token may see.
    pub access: AccessConfig,
    /// When the log is compared with the source.
    pub scrub: ScrubConfig,
    /// What is followed, by name; at least one.
    pub collections: Vec<CollectionConfig>,
    /// What is allowed but probably not meant, for the log.
    pub warnings: Vec<String>,
}

/// The MongoDB replica set to follow.
#[derive(Clone)]
pub struct SourceConfig {
    /// `mongodb://` or `mongodb+srv://`; may hold a password, so it is never shown.
    pub uri: String,
    /// The database whose collections are followed.
    pub database: String,
}

impl std::fmt::Debug for SourceConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SourceConfig").field("database", &self.database).finish_non_exhaustive()
    }
}

/// The change log's folder and memory.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// The folder; made when missing.
    pub dir: PathBuf,
    /// How long superseded versions and tombstones are kept.
    pub retention: Duration,
}

/// The two listeners.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// For clients. Port 0 takes a free one.
    pub listen: SocketAddr,
    /// For operators: metrics and the status page, without a token.
    pub admin_listen: SocketAddr,
    /// Origins whose pages may open a push socket.
    pub allowed_origins: Vec<String>,
    /// Requests a second that one subject may make in the long run; at least 1.
    pub requests_per_second: u32,
    /// Requests that it may make at once after a rest; at least 1.
    pub requests_burst: u32,
}

/// How a token proves itself.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    /// The shared secret of HS256, at least [`HS256_SECRET_BYTES_MIN`] bytes.
    pub hs256_secret: Secret,
    /// The `iss` a token must carry, where set.
    pub issuer: Option<String>,
    /// The `aud` a token must carry, where set.
    pub audience: Option<String>,
}

/// A shorter secret can be guessed from one token: HS256 wants a key as long as its hash (RFC 7518,
/// section 3.2).
pub const HS256_SECRET_BYTES_MIN: usize = 32;

/// What tokens hold.
#[derive(Clone, Debug)]
pub struct AccessConfig {
    /// Templates over a token's claims; what they give are the channels the token holds.
    pub grants: Vec<String>,
}

/// The scrub that runs in the background.
#[derive(Clone, Debug)]
pub struct ScrubConfig {
    /// Each collection is compared this often; `None`: never.
    pub every: Option<Duration>,
    /// It compares within these hours only.
    pub hours: Hours,
    /// What it reads of the source at most.
    pub bytes_per_second: u32,
}

/// One followed collection.
#[derive(Clone, Debug)]
pub struct CollectionConfig {
    /// Its name in the database.
    pub name: String,
    /// Templates over a document; what they give are the channels the document is in.
    pub channels: Vec<String>,
    /// Dotted paths that are never served.
    pub exclude: Vec<String>,
}

/// The configuration can't be used; the message names the key and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be read.
    #[error("cannot read the configuration {}; pass --config with the path of a file", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML, or has a key that nobody knows or a value of the wrong kind.
    #[error("{} is not a valid configuration: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what, many lines.
        message: String,
    },
    /// Keys whose values can't be used, all of them, one a line.
    #[error("the configuration can't be used:\n  {}", .0.join("\n  "))]
    Invalid(Vec<String>),
}

impl Config {
    /// Reads the file that `flags` name (or `tidewire.toml`, where there is one) and lays the flags
    /// and variables over it.
    ///
    /// # Errors
    /// A file that can't be read or parsed, or values that can't be used; nothing was changed.
    pub fn load(flags: &Flags) -> Result<Self, ConfigError> {
        const DEFAULT_FILE: &str = "tidewire.toml";
        match &flags.config {
            Some(path) => Self::read(path, flags),
            None if Path::new(DEFAULT_FILE).exists() => Self::read(Path::new(DEFAULT_FILE), flags),
            None => File::default().check(flags),
        }
    }

    /// The configuration in `path` alone, as the operator's program reads it: no flags, no variables.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::read(path, &Flags::default())
    }

    fn read(path: &Path, flags: &Flags) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, flags).map_err(|error| match error {
            ConfigError::Syntax { message, .. } => {
                ConfigError::Syntax { path: path.to_owned(), message }
            }
            other => other,
        })
    }

    /// The configuration written in `text`, under `flags`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, flags: &Flags) -> Result<Self, ConfigError> {
        let file: File = toml::from_str(text).map_err(|error| ConfigError::Syntax {
            path: PathBuf::from("the configuration"),
            message: file::without_the_text(&error, text),
        })?;
        file.check(flags)
    }
}

#[cfg(test)]
mod tests;
