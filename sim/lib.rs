//! Deterministic simulator for the midflight core.

pub mod choices;
pub mod disk;
pub mod hash;
pub mod memory;
pub mod scheduler;
