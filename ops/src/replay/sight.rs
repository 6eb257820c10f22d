//! Whose eyes a replay sees with.

use std::path::Path;

use anyhow::Result;
use tidewire_protocol::payload::Exclude;
use tidewire_server::access::{Grants, RuleSet, TokenVerifier};
use tidewire_server::config::Config;
use tidewire_server::log::Scope;

use crate::command::Failure;

/// What is to be seen of a log.
#[derive(Debug, Default)]
pub struct Sight {
    /// `None`: every collection, with nothing hidden.
    rules: Option<RuleSet>,
    /// `None`: everything.
    channels: Option<Vec<String>>,
    nothing: Exclude,
}

impl Sight {
    /// Everything that the log holds.
    #[must_use]
    pub fn everything() -> Self {
        Self::default()
    }

    /// Sees these channels only.
    #[must_use]
    pub fn channels(mut self, channels: Vec<String>) -> Self {
        self.channels = Some(channels);
        self
    }

    /// Sees what a server with this configuration shows; with a token, what that token may see.
    ///
    /// # Errors
    /// A configuration that can't be used, a token that it does not accept.
    pub fn of(config: &Path, token: Option<&str>) -> Result<Self> {
        let usage = |error: String| Failure::Usage(error);
        let config = Config::from_file(config).map_err(|error| usage(error.to_string()))?;
        let rules = RuleSet::compile(&config.collections).map_err(usage)?;
        let channels = match token {
            None => None,
            Some(token) => {
                let grants = Grants::compile(&config.access.grants).map_err(usage)?;
                let verified = TokenVerifier::new(&config.auth, grants).verify(token.trim());
                let identity = verified.map_err(|error| Failure::Refused(error.to_string()))?;
                Some(identity.channels)
            }
        };
        Ok(Self { rules: Some(rules), channels, nothing: Exclude::none() })
    }

    pub(super) fn may_see(&self, collection: &str) -> bool {
        match (&self.rules, &self.channels) {
            (None, _) => true,
            (Some(rules), None) => rules.get(collection).is_some(),
            (Some(rules), Some(channels)) => {
                rules.get(collection).is_some_and(|rules| rules.may_be_seen_by(channels))
            }
        }
    }

    pub(super) fn exclude(&self, collection: &str) -> &Exclude {
        let rules = self.rules.as_ref().and_then(|rules| rules.get(collection));
        rules.map_or(&self.nothing, |rules| rules.exclude())
    }

    pub(super) fn scope<'a>(&'a self, collections: &'a [String]) -> Scope<'a> {
        match &self.channels {
            None => Scope::Everything,
            Some(channels) => Scope::Channels { collections, channels },
        }
    }
}
