//! The room `capture`.
