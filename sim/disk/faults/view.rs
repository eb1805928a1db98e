//! Damage that lies over the sectors of a disk.

use super::injected::Content;
use super::{Family, Injected};
use crate::disk::{Image, SECTOR};
use std::collections::{BTreeMap, BTreeSet};

/// What is seen instead of the truth.
#[derive(Debug, Default)]
pub(super) struct View {
    shows: BTreeMap<u64, Content>,
    pub unreadable: BTreeSet<u64>,
    pub unwritable: BTreeSet<u64>,
}

impl View {
    /// What a read of this sector finds.
    pub fn seen(&self, image: &Image, sector: u64) -> Content {
        self.shows.get(&sector).cloned().unwrap_or_else(|| content(image.sector(sector)))
    }

    /// Put what is seen over the truth in `bytes`, read from `offset` on. Whole
    /// sectors.
    pub fn overlay(&self, offset: u64, bytes: &mut [u8]) {
        let first = offset / SECTOR;
        let end = first + bytes.len() as u64 / SECTOR;
        for (sector, content) in self.shows.range(first..end) {
            let at = ((sector - first) * SECTOR) as usize;
            bytes[at..at + SECTOR as usize].copy_from_slice(&content[..]);
        }
    }

    /// From now on this sector shows that. True if it differs from the truth.
    pub fn show(
        &mut self,
        image: &Image,
        sector: u64,
        content: Content,
        by: Family,
        told: &mut Vec<Injected>,
    ) -> bool {
        if content[..] == *image.sector(sector) {
            self.heal(sector, told);
            return false;
        }
        self.shows.insert(sector, content.clone());
        told.push(Injected::Shows { sector, content, by });
        true
    }

    /// The sector was written over.
    pub fn heal(&mut self, sector: u64, told: &mut Vec<Injected>) {
        self.unreadable.remove(&sector);
        if self.shows.remove(&sector).is_some() {
            told.push(Injected::Heals { sector });
        }
    }
}

/// A copy of one sector.
pub(super) fn content(bytes: &[u8]) -> Content {
    Box::new(bytes.try_into().expect("one sector"))
}
