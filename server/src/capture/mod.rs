//! The room `capture`.

pub mod patch;
