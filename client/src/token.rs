//! The token: where it comes from, whose it is. It is never logged.

use std::fmt;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Longest token that is taken, in bytes.
const TOKEN_BYTES_MAX: u64 = 64 * 1024;

/// A bearer token. Its debug form hides it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token's text, without the white space around it.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text, for the `Authorization` header only.
    pub(crate) fn reveal(&self) -> &str {
        &self.0
    }

    /// The app has not handed one over yet.
    pub(crate) fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// It can be sent: there is one, in one line of plain text.
    pub(crate) fn is_plain(&self) -> bool {
        let fits = self.0.len() as u64 <= TOKEN_BYTES_MAX;
        fits && !self.is_none() && self.0.bytes().all(|byte| byte.is_ascii_graphic())
    }

    /// Both say whose they are, and it is the same.
    pub(crate) fn is_of_the_same_subject_as(&self, other: &Self) -> bool {
        let subject = self.subject();
        self == other || (subject.sub.is_some() && subject == other.subject())
    }

    /// When it runs out by its own word, milliseconds since 1970; read without checking it.
    pub(crate) fn expires_ms(&self) -> Option<i64> {
        let exp: Expiry = self.claims()?;
        Some((exp.exp as i64).saturating_mul(1_000))
    }

    /// Whose token it is, read without checking it (only the server can): a replica shows one
    /// subject's documents only, whoever signs in.
    pub(crate) fn subject(&self) -> Subject {
        self.claims().unwrap_or_default()
    }

    fn claims<T: serde::de::DeserializeOwned>(&self) -> Option<T> {
        let part = self.0.split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

/// Issuer and subject of a token; both `None` where the token does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Subject {
    #[serde(default)]
    pub(crate) iss: Option<String>,
    #[serde(default)]
    pub(crate) sub: Option<String>,
}

/// When a token runs out: seconds since 1970, which may have a fraction.
#[derive(Deserialize)]
struct Expiry {
    exp: f64,
}

/// Where the token comes from.
#[derive(Clone, Debug)]
pub(crate) enum TokenSource {
    /// The app hands it over and replaces it.
    Given(Token),
    /// A file that somebody else keeps fresh.
    File(PathBuf),
}

/// The token can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("can't read the token file {0}: {1}")]
    Unreadable(PathBuf, #[source] std::io::Error),
    #[error(
        "the token file {0} does not hold a token: it is empty, too long or not one line of text"
    )]
    NotAToken(PathBuf),
}

impl TokenSource {
    /// The token as it is now.
    pub(crate) fn read(&self) -> Result<Token, TokenError> {
        let path = match self {
            Self::Given(token) => return Ok(token.clone()),
            Self::File(path) => path,
        };
        let unreadable = |error| TokenError::Unreadable(path.clone(), error);
        if std::fs::metadata(path).map_err(unreadable)?.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::NotAToken(path.clone()));
        }
        let token = Token::new(&std::fs::read_to_string(path).map_err(unreadable)?);
        if !token.is_plain() {
            return Err(TokenError::NotAToken(path.clone()));
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_subject_is_read_from_the_claims() {
        // {"alg":"HS256"} . {"sub":"42","iss":"https://a","exp":1} . signature
        let token = Token::new(
            " eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiIsImlzcyI6Imh0dHBzOi8vYSIsImV4cCI6MX0.x\n",
        );
        let subject = token.subject();
        assert_eq!(subject.sub.as_deref(), Some("42"));
        assert_eq!(token.expires_ms(), Some(1_000));
        assert_eq!(subject.iss.as_deref(), Some("https://a"));
        assert_eq!(format!("{token:?}"), "Token(hidden)");
    }

    #[test]
    fn what_is_no_jwt_has_no_subject() {
        for text in ["", "a", "a.b.c", "..", "a.!!.c", "a.e30.c"] {
            assert_eq!(Token::new(text).subject(), Subject::default(), "{text}");
            assert_eq!(Token::new(text).expires_ms(), None, "{text}");
        }
    }
}
