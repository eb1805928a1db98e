//! The device's own copy of the chains it has taken from a packed ring.
//!
//! A used descriptor is written over an available one, which need not be its
//! own, so a chain is copied out of the ring when it is fetched and walked from
//! the copy ever after. The copy has the shape of the inflight region: entries
//! on a free list, and the request named by its first entry. Where there is a
//! region it is a mirror of this, so nothing is ever read back from it.
// spec: vhost-user, "Inflight I/O tracking", DescStatePacked

/// One descriptor of a packed ring, in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// Guest-physical address of the buffer, or of the indirect table.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// Buffer id; that of a chain is in its last descriptor.
    pub id: u16,
    /// `VIRTQ_DESC_F_*`.
    pub flags: u16,
}

/// An entry: free, or one descriptor of a chain in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The descriptor.
    pub desc: Descriptor,
    /// The next free entry, or the next of the chain. One that is past the
    /// table ends the list.
    pub next: u16,
    /// Of a chain's first entry: its last.
    pub last: u16,
    /// Of a chain's first entry: how many it has.
    pub num: u16,
}

/// Entries, the free ones in a list.
#[derive(Clone, Debug)]
pub struct ChainTable {
    entries: Vec<Entry>,
    free_head: u16,
    /// Entries on the free list.
    free: u16,
    /// Buffer ids in flight, one bit each.
    ids: Vec<u64>,
}

/// A chain in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// Its last entry.
    pub last: u16,
    /// Entries: descriptors in the ring.
    pub num: u16,
    /// Buffer id.
    pub id: u16,
}

impl ChainTable {
    /// A table with nothing in flight. Entry `i` links entry `i + 1`.
    pub fn new(size: u16) -> Self {
        let entry = |i| Entry { next: i + 1, ..Entry::default() };
        Self::restored((0..size).map(entry).collect(), 0, size)
    }

    /// A table as somebody left it. Every entry has to be on the free list of
    /// `free` entries or in one chain; the chains have yet to be told by
    /// [`adopt`](Self::adopt).
    pub fn restored(entries: Vec<Entry>, free_head: u16, free: u16) -> Self {
        Self { entries, free_head, free, ids: vec![0; 1 << 10] }
    }

    /// A chain is in flight; false if its id is so already.
    pub fn adopt(&mut self, slot: u16) -> bool {
        let id = self.chain(slot).id;
        let (word, bit) = (&mut self.ids[usize::from(id >> 6)], 1 << (id & 63));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    /// Entries: the requests that can be in flight are named by less.
    pub fn size(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Entries on the free list.
    pub fn free(&self) -> u16 {
        self.free
    }

    /// The entry that the next chain begins with.
    pub fn free_head(&self) -> u16 {
        self.free_head
    }

    /// The entry that an entry links.
    pub fn next(&self, entry: u16) -> u16 {
        self.entries[usize::from(entry)].next
    }

    /// What is known of a chain in flight.
    pub fn chain(&self, slot: u16) -> ChainInfo {
        let Entry { last, num, .. } = self.entries[usize::from(slot)];
        ChainInfo { last, num, id: self.entries[usize::from(last)].desc.id }
    }

    /// The entries of a chain in flight, in order.
    pub fn entries(&self, slot: u16) -> impl Iterator<Item = (u16, &Descriptor)> {
        let num = self.entries[usize::from(slot)].num;
        let mut at = slot;
        (0..num).map(move |_| {
            let entry = &self.entries[usize::from(at)];
            (core::mem::replace(&mut at, entry.next), &entry.desc)
        })
    }

    /// Put a descriptor into a free entry, which stays free; the one after it
    /// on the list.
    pub(super) fn fill(&mut self, entry: u16, desc: Descriptor) -> u16 {
        let entry = &mut self.entries[usize::from(entry)];
        entry.desc = desc;
        entry.next
    }

    /// The first `num` free entries, of which `last` is the last, become a
    /// chain. False, and nothing has changed, if its id is in flight already.
    pub(super) fn claim(&mut self, last: u16, num: u16) -> bool {
        let slot = self.free_head;
        let head = &mut self.entries[usize::from(slot)];
        (head.last, head.num) = (last, num);
        if !self.adopt(slot) {
            return false;
        }
        self.free_head = self.entries[usize::from(last)].next;
        self.free -= num;
        true
    }

    /// A chain is used: its entries are the first free ones.
    pub(super) fn release(&mut self, slot: u16) {
        let ChainInfo { last, num, id } = self.chain(slot);
        self.ids[usize::from(id >> 6)] &= !(1 << (id & 63));
        self.entries[usize::from(last)].next = self.free_head;
        self.free_head = slot;
        self.free += num;
    }
}
