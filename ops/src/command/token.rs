//! `token`: prints a token for trials.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use tidewire_server::config::parse_duration;

use super::{Failure, Outcome};
use crate::token::{Claims, sign};

#[derive(Debug, Args)]
pub(super) struct Token {
    /// The server's `hs256_secret`, at least 32 bytes
    #[arg(long, env = "TIDEWIRE_JWT_SECRET", hide_env_values = true)]
    secret: String,
    /// Whose token: the claim `sub`
    #[arg(long)]
    sub: String,
    /// A role, for the claim `roles`; may be given again
    #[arg(long = "role", value_name = "ROLE")]
    roles: Vec<String>,
    /// How long it is good
    #[arg(long, default_value = "1h", value_parser = parse_duration)]
    ttl: Duration,
    /// The claim `iss`
    #[arg(long)]
    issuer: Option<String>,
    /// The claim `aud`
    #[arg(long)]
    audience: Option<String>,
}

impl Token {
    pub(super) fn run(self) -> Result<Outcome> {
        let mut claims = Claims { roles: self.roles, ttl: self.ttl, ..Claims::of(self.sub) };
        for (name, value) in [("iss", self.issuer), ("aud", self.audience)] {
            if let Some(value) = value {
                claims.more.insert(name.into(), value.into());
            }
        }
        let token =
            sign(&self.secret, &claims).map_err(|error| Failure::Usage(error.to_string()))?;
        println!("{token}");
        Ok(Outcome::Done)
    }
}
