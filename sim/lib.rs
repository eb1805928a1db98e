//! Deterministic simulator for the midflight core.
