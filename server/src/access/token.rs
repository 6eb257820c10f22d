//! Tokens: JSON Web Tokens signed by HS256 with the configured secret.
//!
//! The algorithm follows the key that the server holds, never the token's header. Nothing that the
//! header points at (`jku`, `x5u`, `jwk`, `kid`) is read.

use std::time::Duration;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};

use super::Grants;
use crate::config::AuthConfig;

/// How far the clocks of issuer and server may differ.
pub const LEEWAY_SECONDS: u64 = 10;
/// A longer token is refused unread; header bounds allow no more anyway.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Times beyond it (year 285 million) are mistakes, and integers are exact up to here in JSON.
const TIME_MAX: f64 = 9_007_199_254_740_991.0;

/// Who asks, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The `sub` claim, not empty.
    pub subject: String,
    /// The channels it holds: sorted, each once, possibly none.
    pub channels: Vec<String>,
    /// Seconds since 1970 after which the token is refused (without the leeway).
    pub expires_at: u64,
}

impl Identity {
    /// Seconds until the token's end, by a clock at `now_ms` (milliseconds since 1970); 0 beyond it.
    #[must_use]
    pub fn expires_in(&self, now_ms: i64) -> u64 {
        self.expires_at.saturating_sub(u64::try_from(now_ms / 1_000).unwrap_or(0))
    }

    /// How long the token is still taken, the leeway included; zero when it is not any more.
    #[must_use]
    pub fn valid_for(&self, now_ms: i64) -> Duration {
        let until_ms = (self.expires_at + LEEWAY_SECONDS).saturating_mul(1_000);
        Duration::from_millis(until_ms.saturating_sub(u64::try_from(now_ms).unwrap_or(0)))
    }
}

/// Why a token is refused. The texts never say which key was tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// No `Authorization` header.
    #[error("there is no Authorization header")]
    Missing,
    /// The header is not `Bearer <token>`, or there are several.
    #[error("the Authorization header is not \"Bearer <token>\"")]
    NotBearer,
    /// The token is none, or its signature does not fit.
    #[error("the token is malformed or its signature is not valid")]
    Invalid,
    /// The token's time is over.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is in the future.
    #[error("the token is not valid yet")]
    NotYet,
    /// A claim that must be there is missing or of the wrong kind.
    #[error("the token's {0} claim is missing or of the wrong kind")]
    Claim(&'static str),
    /// `iss` is not the configured one.
    #[error("the token is from another issuer")]
    Issuer,
    /// `aud` is not the configured one.
    #[error("the token is for another audience")]
    Audience,
    /// `crit` names what this server does not know.
    #[error("the token demands an extension that is not supported")]
    Critical,
}

/// Verifies tokens; shared by all requests.
pub struct TokenVerifier {
    key: DecodingKey,
    validation: Validation,
    grants: Grants,
}

impl std::fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenVerifier").finish_non_exhaustive()
    }
}

impl TokenVerifier {
    /// A verifier by the configured secret, issuer and audience, granting by `grants`.
    #[must_use]
    pub fn new(auth: &AuthConfig, grants: Grants) -> Self {
        let mut validation = Validation::new(Algorithm::HS256);
        validation.leeway = LEEWAY_SECONDS;
        validation.validate_nbf = true;
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &auth.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        match &auth.audience {
            Some(audience) => {
                validation.set_audience(&[audience]);
                required.push("aud");
            }
            // The library refuses a token with an audience where none is configured.
            None => validation.validate_aud = false,
        }
        validation.set_required_spec_claims(&required);
        Self { key: DecodingKey::from_secret(auth.hs256_secret.expose()), validation, grants }
    }

    /// Verifies the value of an `Authorization` header.
    ///
    /// # Errors
    /// The reason for the refusal, which may be told to the caller.
    pub fn verify_header(&self, value: Option<&str>) -> Result<Identity, TokenError> {
        let value = value.ok_or(TokenError::Missing)?;
        let (scheme, token) = value.split_once(' ').ok_or(TokenError::NotBearer)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.trim().is_empty() {
            return Err(TokenError::NotBearer);
        }
        self.verify(token.trim())
    }

    /// Verifies `token` and says who it is and what it holds.
    ///
    /// # Errors
    /// The reason for the refusal, which may be told to the caller.
    pub fn verify(&self, token: &str) -> Result<Identity, TokenError> {
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Invalid);
        }
        let data = jsonwebtoken::decode::<Map<String, Value>>(token, &self.key, &self.validation)
            .map_err(|error| reason(error.kind()))?;
        if data.header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let claims = data.claims;
        check_kinds(&claims)?;
        let subject = match claims.get("sub") {
            Some(Value::String(subject)) if !subject.is_empty() => subject.clone(),
            _ => return Err(TokenError::Claim("sub")),
        };
        let expires_at =
            claims.get("exp").and_then(Value::as_f64).ok_or(TokenError::Claim("exp"))?;
        let channels = self.grants.channels_of(&claims);
        Ok(Identity { subject, channels, expires_at: expires_at as u64 })
    }
}

fn reason(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYet,
        ErrorKind::InvalidIssuer => TokenError::Issuer,
        ErrorKind::InvalidAudience => TokenError::Audience,
        ErrorKind::MissingRequiredClaim(claim) | ErrorKind::InvalidClaimFormat(claim) => {
            TokenError::Claim(match claim.as_str() {
                "exp" => "exp",
                "nbf" => "nbf",
                "iss" => "iss",
                "aud" => "aud",
                _ => "sub",
            })
        }
        _ => TokenError::Invalid,
    }
}

/// The registered claims have kinds (RFC 7519, section 4.1); a token that breaks one was not made by
/// an issuer that knows what it signs.
fn check_kinds(claims: &Map<String, Value>) -> Result<(), TokenError> {
    let time = |value: &Value| value.as_f64().is_some_and(|t| (0.0..=TIME_MAX).contains(&t));
    let texts = |value: &Value| match value {
        Value::Array(elements) => elements.iter().all(Value::is_string),
        value => value.is_string(),
    };
    let wrong = |name: &'static str, fits: &dyn Fn(&Value) -> bool| match claims.get(name) {
        Some(value) if !fits(value) => Err(TokenError::Claim(name)),
        _ => Ok(()),
    };
    wrong("exp", &time)?;
    wrong("nbf", &time)?;
    wrong("iat", &time)?;
    wrong("sub", &Value::is_string)?;
    wrong("iss", &Value::is_string)?;
    wrong("jti", &Value::is_string)?;
    wrong("aud", &texts)
}

#[cfg(test)]
mod tests;
