//! What is on the disk: the content that reads see, and what of it would
//! survive a loss of power.

use super::versions::Versions;
use std::collections::BTreeMap;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Content of every sector, and which of it waits in the volatile cache.
///
/// Where only processes die the cache is never lost, and what it holds beyond the
/// durable image is kept to judge whether a flush that was acknowledged has done
/// its work. Where power can be lost, the contents since the durable one are kept
/// as well.
#[derive(Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// Sector to (first store into the cache since it was durable, tag that is
    /// durable still).
    cached: BTreeMap<u64, (u64, u64)>,
    stores: u64,
    versions: Option<Versions>,
}

impl Image {
    /// A disk of zeroes.
    pub fn new(sectors: u64) -> Self {
        Self {
            bytes: vec![0; (sectors * SECTOR) as usize],
            cached: BTreeMap::new(),
            stores: 0,
            versions: None,
        }
    }

    /// Keep what a loss of power may bring back. Only right while nothing is in
    /// the cache.
    pub fn keep_versions(&mut self) {
        self.versions = Some(Versions::default());
    }

    /// Sectors there are.
    pub fn sectors(&self) -> u64 {
        self.bytes.len() as u64 / SECTOR
    }

    /// Content of one sector.
    pub fn sector(&self, sector: u64) -> &[u8] {
        &self.bytes[(sector * SECTOR) as usize..][..SECTOR as usize]
    }

    /// Bytes of the disk from an offset on.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[offset as usize..][..into.len()]);
    }

    /// Put content into the cache, or through it.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        self.touch(offset, bytes.len() as u64, durable);
        self.bytes[offset as usize..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Zeroes over a range.
    pub fn zero(&mut self, offset: u64, len: u64, durable: bool) {
        self.touch(offset, len, durable);
        self.bytes[offset as usize..][..len as usize].fill(0);
    }

    fn touch(&mut self, offset: u64, len: u64, durable: bool) {
        self.stores += 1;
        for sector in offset / SECTOR..(offset + len).div_ceil(SECTOR) {
            if durable {
                self.cached.remove(&sector);
            } else {
                let tag = self.tag(sector);
                self.cached.entry(sector).or_insert((self.stores, tag));
            }
            if self.versions.is_some() {
                self.keep(sector, durable);
            }
        }
    }

    fn keep(&mut self, sector: u64, durable: bool) {
        let before = &self.bytes[(sector * SECTOR) as usize..][..SECTOR as usize];
        match &mut self.versions {
            Some(versions) if durable => versions.through(sector),
            Some(versions) => versions.stored(sector, self.stores, before),
            None => {}
        }
    }

    /// First eight bytes of a sector: who wrote it.
    pub fn tag(&self, sector: u64) -> u64 {
        let head = self.sector(sector).first_chunk().expect("a sector has 8 bytes");
        u64::from_le_bytes(*head)
    }

    /// A point in the order of stores, for [`flush`](Self::flush).
    pub fn mark(&self) -> u64 {
        self.stores
    }

    /// Everything stored up to `mark` is durable now; later stores need not be,
    /// and where power can be lost they are not.
    pub fn flush(&mut self, mark: u64) {
        match &mut self.versions {
            None => self.cached.retain(|_, (first, _)| *first > mark),
            Some(versions) => {
                let waits = versions.flush(mark).into_iter();
                self.cached = waits.map(|(sector, old)| (sector, (old.first, old.tag))).collect();
            }
        }
    }

    /// A flush has failed, and what was stored up to `mark` is taken for durable
    /// without being so: the sectors where that matters.
    pub fn forget(&mut self, mark: u64) -> Vec<u64> {
        self.versions.as_mut().map_or_else(Vec::new, |versions| versions.forget(mark))
    }

    /// Power is lost, and everything is durable that is left. `pick`: which of so
    /// many contents is left of a sector, 0 is the newest. How many sectors hold
    /// something older now.
    pub fn lose_cache(&mut self, pick: impl FnMut(u64) -> u64) -> u64 {
        self.cached.clear();
        let back = self.versions.as_mut().map_or_else(Vec::new, |versions| versions.lose(pick));
        for (sector, content) in &back {
            self.bytes[(sector * SECTOR) as usize..][..SECTOR as usize]
                .copy_from_slice(&content[..]);
        }
        back.len() as u64
    }

    /// Sectors whose durable content is older than what reads see, with the
    /// tag that is durable.
    pub fn volatile(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.cached.iter().map(|(sector, (_, tag))| (*sector, *tag))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sector(tag: u64) -> Vec<u8> {
        let mut bytes = vec![0; SECTOR as usize];
        bytes[..8].copy_from_slice(&tag.to_le_bytes());
        bytes
    }

    #[test]
    fn image_flush_covers_what_was_stored_before_it_was_issued() {
        let mut image = Image::new(8);
        image.write(SECTOR, &sector(1), false);
        let mark = image.mark();
        image.write(2 * SECTOR, &sector(2), false);
        image.flush(mark);
        assert_eq!(image.volatile().collect::<Vec<_>>(), [(2, 0)]);
        image.write(2 * SECTOR, &sector(3), false);
        assert_eq!(image.volatile().collect::<Vec<_>>(), [(2, 0)]);
        image.flush(image.mark());
        image.write(2 * SECTOR, &sector(4), false);
        assert_eq!(image.volatile().collect::<Vec<_>>(), [(2, 3)]);
    }

    #[test]
    fn image_write_through_leaves_nothing_volatile() {
        let mut image = Image::new(8);
        image.write(0, &sector(1), false);
        image.zero(0, SECTOR, true);
        assert_eq!(image.volatile().count(), 0);
        assert_eq!(image.sector(0), sector(0));
    }
}
