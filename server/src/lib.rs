//! The Tidewire server: follows MongoDB change streams into a durable change log and serves it.
//!
//! Data flows one way: [`capture`] → [`log`] → [`serve`]. Capture and serve never import each other;
//! what the one has to say about itself and the other shows stands in [`status`].

pub mod access;
pub mod capture;
pub mod config;
pub mod log;
pub mod logging;
pub mod metrics;
pub mod retry;
pub mod run;
pub mod scrub;
pub mod serve;
pub mod status;
