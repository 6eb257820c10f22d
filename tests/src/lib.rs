//! Room of `tests`.
