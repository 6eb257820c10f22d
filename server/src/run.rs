//! Builds the parts and owns the tasks.
