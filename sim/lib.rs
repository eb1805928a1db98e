//! Deterministic simulator for the midflight core.

pub mod catalogue;
pub mod choices;
pub mod compare;
pub mod crash;
pub mod disk;
pub mod guest;
pub mod hash;
pub mod memory;
pub mod oracle;
pub mod pattern;
pub mod profile;
pub mod report;
pub mod run;
pub mod scenario;
pub mod scheduler;
pub mod settings;
pub mod shrink;
pub mod topology;
pub mod trace;
pub mod twice;
pub mod world;
