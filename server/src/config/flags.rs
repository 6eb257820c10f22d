//! The server's flags, each with its environment variable.

use std::path::PathBuf;

/// What the command line and the environment say; they win over the file.
#[derive(Clone, Default, clap::Args)]
pub struct Flags {
    /// The configuration file [default: tidewire.toml, where there is one]
    #[arg(long, value_name = "FILE", env = "TIDEWIRE_CONFIG")]
    pub config: Option<PathBuf>,
    /// The MongoDB replica set to follow: mongodb://host:port/?replicaSet=name
    #[arg(long, value_name = "URI", env = "TIDEWIRE_MONGODB_URI", hide_env_values = true)]
    pub mongodb_uri: Option<String>,
    /// The database whose collections are followed
    #[arg(long, value_name = "NAME", env = "TIDEWIRE_DATABASE")]
    pub database: Option<String>,
    /// Where clients connect [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDRESS", env = "TIDEWIRE_LISTEN")]
    pub listen: Option<String>,
    /// Where operators look: metrics and the status page, no token asked [default: 127.0.0.1:8788]
    #[arg(long, value_name = "ADDRESS", env = "TIDEWIRE_ADMIN_LISTEN")]
    pub admin_listen: Option<String>,
    /// The change log's folder [default: tidewire-data]
    #[arg(long, value_name = "DIR", env = "TIDEWIRE_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// The shared secret of HS256 tokens, at least 32 bytes; other users of this machine can read a
    /// flag, so prefer the variable or hs256_secret_file
    #[arg(long, value_name = "SECRET", env = "TIDEWIRE_JWT_SECRET", hide_env_values = true)]
    pub jwt_secret: Option<String>,
}

impl std::fmt::Debug for Flags {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flags").field("config", &self.config).finish_non_exhaustive()
    }
}
