//! What each block of the disk must hold, by what the guest was told.

use std::collections::BTreeSet;

pub const BLOCK: usize = 4096;

/// Every 16 bytes of a block name it and its generation.
pub fn stamp(block: u64, generation: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend(block.to_le_bytes());
        bytes.extend(generation.to_le_bytes());
    }
    if generation == 0 { vec![0; BLOCK] } else { bytes }
}

/// One block: the generations it may hold.
#[derive(Clone, Debug)]
pub struct Block {
    /// One, except after requests that nobody will ever answer.
    may_hold: BTreeSet<u64>,
    /// A request is under way.
    pub busy: bool,
    next: u64,
}

impl Block {
    pub fn new() -> Self {
        Self { may_hold: BTreeSet::from([0]), busy: false, next: 1 }
    }

    /// The generation of the next write.
    pub fn next(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    /// A write was acknowledged.
    pub fn written(&mut self, generation: u64) {
        self.may_hold = BTreeSet::from([generation]);
    }

    /// A write will never be answered: it may have happened.
    pub fn maybe_written(&mut self, generation: u64) {
        self.may_hold.insert(generation);
    }

    /// A read has found this.
    pub fn found(&mut self, block: u64, bytes: &[u8], who: &str) {
        let generation = u64::from_le_bytes(*bytes[8..].first_chunk().unwrap());
        let may = &self.may_hold;
        assert!(
            may.contains(&generation) && bytes == stamp(block, generation),
            "{who}: block {block} holds generation {generation} or a mixture, expected one of {may:?}"
        );
        // It cannot become another by itself.
        self.written(generation);
    }
}
