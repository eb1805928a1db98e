//! What a volatile cache may leave behind when power is lost: of each sector,
//! any content since the durable one.
//!
//! A cache writes back in what order it likes, so what is left of one sector
//! says nothing about another. Kept only where power can be lost or a flush can
//! fail.

use super::SECTOR;
use std::collections::BTreeMap;

type Content = Box<[u8; SECTOR as usize]>;

/// One sector in the cache.
#[derive(Debug)]
struct Cached {
    /// Older contents with the store that made each, the durable one first.
    old: Vec<(u64, Content)>,
    /// The store that made what is seen.
    now: u64,
    /// Stores up to this one are taken for durable and are not.
    forgotten: u64,
}

impl Cached {
    /// Whether a flush up to `mark` writes what this store made.
    fn is_due(&self, store: u64, mark: u64) -> bool {
        self.forgotten < store && store <= mark
    }
}

/// What is durable of a sector that waits in the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Durable {
    /// First store since.
    pub first: u64,
    /// First eight bytes.
    pub tag: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Versions(BTreeMap<u64, Cached>);

impl Versions {
    /// This store puts new content into the cache over `before`.
    pub fn stored(&mut self, sector: u64, store: u64, before: &[u8]) {
        let cached = self.0.entry(sector).or_insert_with(|| Cached {
            old: Vec::new(),
            now: 0,
            forgotten: 0,
        });
        let before = Box::new(before.try_into().expect("one sector"));
        cached.old.push((std::mem::replace(&mut cached.now, store), before));
    }

    /// A sector is durable as it is seen.
    pub fn through(&mut self, sector: u64) {
        self.0.remove(&sector);
    }

    /// Every store up to `mark` is durable now, but for what was forgotten, and
    /// no later one. What waits still, for each sector that does.
    pub fn flush(&mut self, mark: u64) -> BTreeMap<u64, Durable> {
        self.0.retain(|_, cached| !cached.is_due(cached.now, mark));
        for cached in self.0.values_mut() {
            let last = cached.old.iter().rposition(|(store, _)| cached.is_due(*store, mark));
            cached.old.drain(..last.unwrap_or(0));
        }
        let durable = |(sector, cached): (&u64, &Cached)| {
            let tag = cached.old[0].1.first_chunk().expect("a sector has 8 bytes");
            let first = cached.old.get(1).map_or(cached.now, |(store, _)| *store);
            (*sector, Durable { first, tag: u64::from_le_bytes(*tag) })
        };
        self.0.iter().map(durable).collect()
    }

    /// Stores up to `mark` that are not durable never will be: their sectors.
    pub fn forget(&mut self, mark: u64) -> Vec<u64> {
        let waits = |cached: &Cached| {
            let stores = cached.old.iter().map(|(store, _)| *store).chain([cached.now]);
            stores.skip(1).any(|store| cached.is_due(store, mark))
        };
        let lost = self.0.iter_mut().filter(|(_, cached)| waits(cached));
        lost.map(|(sector, cached)| {
            cached.forgotten = mark;
            *sector
        })
        .collect()
    }

    /// Power is lost. `pick`: which of so many contents is left of a sector, 0 is
    /// the newest. Sectors that go back, with what they hold then.
    pub fn lose(&mut self, mut pick: impl FnMut(u64) -> u64) -> Vec<(u64, Content)> {
        let mut back = Vec::new();
        for (sector, mut cached) in std::mem::take(&mut self.0) {
            let newer = pick(cached.old.len() as u64 + 1) as usize;
            if newer > 0 {
                let left = cached.old.swap_remove(cached.old.len() - newer);
                back.push((sector, left.1));
            }
        }
        back
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(tag: u8) -> [u8; 512] {
        let mut content = [0; 512];
        content[0] = tag;
        content
    }

    /// Sector 5 held 1 and was given 2, 3 and 4 by the stores 10, 20 and 30.
    fn three() -> Versions {
        let mut v = Versions::default();
        for (store, before) in [(10, 1), (20, 2), (30, 3)] {
            v.stored(5, store, &content(before));
        }
        v
    }

    fn left(mut v: Versions) -> Vec<u8> {
        let all = v.0.remove(&5).map_or(Vec::new(), |cached| cached.old);
        all.into_iter().map(|(_, content)| content[0]).collect()
    }

    #[test]
    fn versions_of_a_sector_survive_from_the_durable_one_on() {
        for newer in 0..4 {
            let back = three().lose(|n| {
                assert_eq!(n, 4);
                newer
            });
            let found: Vec<u8> = back.into_iter().map(|(_, content)| content[0]).collect();
            assert_eq!(found, if newer == 0 { vec![] } else { vec![4 - newer as u8] });
        }
    }

    #[test]
    fn versions_before_a_flush_are_gone_and_later_ones_wait() {
        let mut v = three();
        assert_eq!(v.flush(9)[&5], Durable { first: 10, tag: 1 });
        assert_eq!(v.flush(20)[&5], Durable { first: 30, tag: 3 });
        assert_eq!(left(v), [3]);
        assert!(three().flush(30).is_empty());
    }

    #[test]
    fn versions_that_were_forgotten_are_written_by_no_flush_but_newer_ones_are() {
        let mut v = three();
        assert_eq!(v.forget(20), [5]);
        assert_eq!(v.forget(20), Vec::<u64>::new());
        assert_eq!(v.flush(25)[&5], Durable { first: 10, tag: 1 });
        assert!(v.flush(30).is_empty());
        let mut v = three();
        v.forget(30);
        assert_eq!(v.flush(99).len(), 1);
        v.stored(5, 100, &content(4));
        assert!(v.flush(100).is_empty());
    }
}
