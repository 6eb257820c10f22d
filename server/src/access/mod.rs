//! Who may see what: a token is verified, its claims give it channels, and a document is visible when
//! one of its channels is among them. Default deny: no channel, nobody.

pub mod channels;
mod template;
pub mod token;

pub use channels::{Grants, RuleSet, Rules};
pub use template::check_template;
pub use token::{Identity, TokenError, TokenVerifier};
