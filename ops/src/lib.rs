//! Room of `ops`.
