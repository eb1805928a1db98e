//! Packed parts that nobody but this test has written.

use super::*;
use crate::memory::Arena;
use crate::oracle::PackedView;
use vm_memory::GuestAddress;

const AVAIL: u16 = 0x80;
const USED: u16 = 0x8000;

/// A ring of four descriptors, and its part of a region.
struct Bench {
    _arena: Arena,
    mem: Mem,
    ring: PackedView,
    bytes: Vec<u8>,
}

impl Bench {
    /// A region that somebody has just initialised.
    fn new() -> Self {
        let mut arena = Arena::new();
        let id = arena.region(0x1000);
        let mem = arena.view(&[(0, id)]);
        let ring = PackedView {
            size: 4,
            ring: 0,
            driver: 0x80,
            device: 0x90,
            avail_seen: 3,
            used_seen: 3,
        };
        let mut bench = Self { _arena: arena, mem, ring, bytes: vec![0; 192] };
        bench.put16(8, 1);
        bench.put16(10, 4);
        bench.used(3, 1);
        bench.close();
        (0..4).for_each(|entry| bench.put16(32 + 32 * usize::from(entry) + 2, entry + 1));
        bench
    }

    fn put16(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn used(&mut self, index: u16, wrap: u8) {
        self.put16(16, index);
        self.bytes[20] = wrap;
    }

    fn close(&mut self) {
        self.put16(14, self.get16(12));
        self.put16(18, self.get16(16));
        self.bytes[21] = self.bytes[20];
    }

    /// A chain of entries `head` and those after it is fetched; not yet all of it.
    fn fetch(&mut self, head: u16, num: u16, counter: u8) {
        let at = 32 + 32 * usize::from(head);
        self.bytes[at + 8] = counter;
        self.bytes[at] = 1;
        let last = head + num - 1;
        self.put16(at + 4, last);
        self.put16(at + 6, num);
        self.put16(32 + 32 * usize::from(last) + 16, 100 + last);
        self.put16(12, last + 1);
    }

    fn flags(&self, index: u16, flags: u16) {
        let at = GuestAddress(16 * u64::from(index) + 14);
        self.mem.write_slice(&flags.to_le_bytes(), at).unwrap();
    }

    fn names(&self, alive: bool) -> Result<Vec<u16>, String> {
        PackedPart(&self.bytes).live(&self.ring, &self.mem, alive).map(|live| live.names)
    }
}

#[test]
fn region_packed_chains_come_back_by_counter_and_count_their_descriptors() {
    let mut bench = Bench::new();
    assert_eq!(bench.names(true), Ok(vec![]));
    bench.fetch(0, 2, 9);
    bench.fetch(2, 1, 8);
    bench.close();
    let live = PackedPart(&bench.bytes).live(&bench.ring, &bench.mem, true).unwrap();
    assert_eq!((&live.names[..], &live.heads[..], live.steps), (&[102, 101][..], &[2, 0][..], 3));
    let view = RegionView { bytes: &bench.bytes, queues: 1, packed: true };
    assert_eq!((view.flagged(), view.name(0, 0), view.entries()), (2, Some(101), Some(4)));
}

#[test]
fn region_packed_chain_that_is_half_fetched_is_fetched_again() {
    let mut bench = Bench::new();
    bench.fetch(0, 3, 1);
    assert_eq!(bench.names(false), Ok(vec![]));
    assert!(bench.names(true).is_err(), "old_free_head was not moved");
}

#[test]
fn region_packed_batch_is_there_if_its_first_descriptor_is_used() {
    let mut bench = Bench::new();
    bench.fetch(0, 2, 1);
    bench.fetch(2, 1, 2);
    bench.close();
    // The chain of entries 0 and 1 is given back: 3 and then 0 of the next round.
    bench.put16(32 + 32 + 2, 3);
    bench.put16(12, 0);
    bench.used(1, 0);
    bench.flags(3, AVAIL);
    assert_eq!(bench.names(false), Ok(vec![101, 102]), "available still");
    bench.flags(3, AVAIL | USED);
    bench.ring.used_seen = 5;
    assert_eq!(bench.names(false), Ok(vec![102]));
    bench.ring.used_seen = 3;
    assert!(bench.names(false).is_err(), "the guest has not seen it");
    bench.ring.used_seen = 5;
    // Made available again by a quick guest, for the next round.
    bench.flags(3, USED);
    assert_eq!(bench.names(false), Ok(vec![102]));
    bench.close();
    assert!(bench.names(true).is_ok());
}

#[test]
fn region_packed_entries_are_neither_lost_nor_shared() {
    let mut bench = Bench::new();
    bench.fetch(0, 2, 1);
    bench.close();
    let good = bench.bytes.clone();
    bench.put16(12, 3);
    bench.close();
    assert!(bench.names(true).unwrap_err().contains("neither"));
    bench.bytes = good.clone();
    bench.put16(12, 1);
    bench.close();
    assert!(bench.names(true).unwrap_err().contains("two chains"));
    bench.bytes = good;
    bench.put16(32 + 4, 0);
    assert!(bench.names(true).unwrap_err().contains("does not end"));
}
