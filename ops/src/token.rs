//! Tokens for trials: HS256, as the server's `hs256_secret` verifies them.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

/// The server refuses shorter secrets, so no token is made with one.
const SECRET_BYTES_MIN: usize = 32;

/// What a token claims.
#[derive(Clone, Debug)]
pub struct Claims {
    /// Who.
    pub sub: String,
    /// The `roles` claim; left out when empty.
    pub roles: Vec<String>,
    /// From now.
    pub ttl: Duration,
    /// More claims (`iss`, `aud`, …); they win over the ones above.
    pub more: Map<String, Value>,
}

impl Claims {
    /// Claims of `sub` with no roles, good for an hour.
    pub fn of(sub: impl Into<String>) -> Self {
        let ttl = Duration::from_secs(3_600);
        Self { sub: sub.into(), roles: Vec::new(), ttl, more: Map::new() }
    }

    /// Adds a role.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.roles.push(role.into());
        self
    }
}

/// A signed token.
///
/// # Errors
/// When the secret is shorter than 32 bytes.
pub fn sign(secret: &str, claims: &Claims) -> Result<String> {
    if secret.len() < SECRET_BYTES_MIN {
        bail!("the secret has {} bytes: at least {SECRET_BYTES_MIN} are needed", secret.len());
    }
    let now = OffsetDateTime::now_utc().unix_timestamp();
    let expires = now + i64::try_from(claims.ttl.as_secs()).context("the time to live")?;
    let mut body = json!({ "sub": claims.sub, "iat": now, "exp": expires });
    if !claims.roles.is_empty() {
        body["roles"] = json!(claims.roles);
    }
    for (name, value) in &claims.more {
        body[name] = value.clone();
    }
    let key = EncodingKey::from_secret(secret.as_bytes());
    jsonwebtoken::encode(&Header::new(Algorithm::HS256), &body, &key).context("sign the token")
}
