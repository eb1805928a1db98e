//! What is on the disk: the content that reads see, and what of it would
//! survive a loss of power.

use super::versions::Versions;
use std::collections::BTreeMap;
use std::ops::Range;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

static ZEROES: [u8; SECTOR as usize] = [0; SECTOR as usize];

/// Content of every sector, and which of it waits in the volatile cache.
///
/// Where only processes die the cache is never lost, and what it holds beyond the
/// durable image is kept to judge whether a flush that was acknowledged has done
/// its work. Where power can be lost, the contents since the durable one are kept
/// as well.
#[derive(Debug)]
pub struct Image {
    /// By sector: its place in `contents`, counted from 1; 0 where nobody has
    /// written, which is most of a disk.
    places: Vec<u32>,
    contents: Vec<[u8; SECTOR as usize]>,
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
            places: vec![0; sectors as usize],
            contents: Vec::new(),
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
        self.places.len() as u64
    }

    /// Content of one sector.
    pub fn sector(&self, sector: u64) -> &[u8] {
        match self.places[sector as usize] {
            0 => &ZEROES,
            place => &self.contents[place as usize - 1],
        }
    }

    /// The same, to be changed.
    fn sector_mut(&mut self, sector: u64) -> &mut [u8; SECTOR as usize] {
        let place = &mut self.places[sector as usize];
        if *place == 0 {
            self.contents.push(ZEROES);
            *place = self.contents.len() as u32;
        }
        &mut self.contents[*place as usize - 1]
    }

    /// Whether somebody has ever written to this sector.
    pub fn is_written(&self, sector: u64) -> bool {
        self.places[sector as usize] != 0
    }

    /// Bytes of the disk from an offset on.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        for (sector, within, bytes) in pieces(offset, into.len()) {
            into[bytes].copy_from_slice(&self.sector(sector)[within]);
        }
    }

    /// Put content into the cache, or through it.
    pub fn write(&mut self, offset: u64, bytes: &[u8], durable: bool) {
        self.touch(offset, bytes.len() as u64, durable);
        for (sector, within, from) in pieces(offset, bytes.len()) {
            self.sector_mut(sector)[within].copy_from_slice(&bytes[from]);
        }
    }

    /// Zeroes over a range.
    pub fn zero(&mut self, offset: u64, len: u64, durable: bool) {
        self.touch(offset, len, durable);
        for (sector, within, _) in pieces(offset, len as usize) {
            if self.is_written(sector) {
                self.sector_mut(sector)[within].fill(0);
            }
        }
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
        let Some(mut versions) = self.versions.take() else { return };
        match durable {
            true => versions.through(sector),
            false => versions.stored(sector, self.stores, self.sector(sector)),
        }
        self.versions = Some(versions);
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
            self.sector_mut(*sector).copy_from_slice(&content[..]);
        }
        back.len() as u64
    }

    /// Sectors whose durable content is older than what reads see, with the
    /// tag that is durable.
    pub fn volatile(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.cached.iter().map(|(sector, (_, tag))| (*sector, *tag))
    }
}

/// Sectors that a range touches, with the bytes within each and the bytes of the
/// range they are.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let end = offset + len as u64;
    (offset / SECTOR..end.div_ceil(SECTOR)).map(move |sector| {
        let first = sector * SECTOR;
        let (from, to) = (offset.max(first), end.min(first + SECTOR));
        let relative = |base| (from - base) as usize..(to - base) as usize;
        (sector, relative(first), relative(offset))
    })
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
    fn image_reads_what_was_written_at_any_offset() {
        let mut image = Image::new(4);
        image.write(500, &[7; 600], false);
        image.zero(520, 10, false);
        let mut got = [1; 2048];
        image.read(0, &mut got);
        let want = |at| u8::from((500..1100).contains(&at) && !(520..530).contains(&at)) * 7;
        assert!(got.iter().enumerate().all(|(at, byte)| *byte == want(at)));
        assert_eq!([0, 1, 2, 3].map(|s| image.is_written(s)), [true, true, true, false]);
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
