//! What holds for every message, every split of the stream and every input.

mod hostile;
mod identity;
mod seeds;
mod splits;
mod strategies;
mod stream;

/// Cases that `cargo test` draws in the hostile properties alone.
const HOSTILE_CASES: u32 =
    hostile::RANDOM_CASES + hostile::HEADER_CASES + 3 * hostile::MUTATION_CASES;
const _: () = assert!(HOSTILE_CASES >= 10_000);
