//! Room of `client`.
