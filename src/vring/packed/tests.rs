use super::*;
use std::collections::VecDeque;
use vm_memory::Bytes;
use vm_memory::GuestMemoryMmap;

const RING: u64 = 0x1000;
const DRIVER: u64 = 0x90000;
const DEVICE: u64 = 0x90010;
const NO_LOG: Option<RingLog<'static, GuestMemoryMmap<()>>> = None;
const AT: RingAddresses = RingAddresses { desc: RING, avail: DRIVER, used: DEVICE };

/// The least a driver can be: it knows where it is, and what it has out.
struct Driver {
    mem: GuestMemoryMmap<()>,
    size: u16,
    avail: Position,
    used: Position,
    /// Id and length of every chain that is out.
    out: Vec<(u16, u16)>,
}

impl Driver {
    fn new(size: u16, at: Position) -> Self {
        let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        // As a driver before this place would have left every entry: used the
        // last time around.
        for index in 0..size {
            let wrap = if index < at.index { at.wrap } else { !at.wrap };
            let flags: u16 = if wrap { AVAIL | USED } else { 0 };
            mem.write_obj(flags.to_le(), GuestAddress(RING + 16 * u64::from(index) + 14)).unwrap();
        }
        Self { mem, size, avail: at, used: at, out: Vec::new() }
    }

    fn room(&self) -> u16 {
        self.size - self.out.iter().map(|(_, len)| len).sum::<u16>()
    }

    fn device(&self) -> PackedRing {
        let positions = Positions { avail: self.avail, used: self.used };
        PackedRing::new(&self.mem, self.size, AT, true, positions).unwrap()
    }

    fn write(&self, at: Position, addr: u64, len: u32, id: u16, flags: u16) {
        let base = RING + 16 * u64::from(at.index);
        let flags = flags | if at.wrap { AVAIL } else { USED };
        self.mem.write_obj(addr.to_le(), GuestAddress(base)).unwrap();
        self.mem.write_obj(len.to_le(), GuestAddress(base + 8)).unwrap();
        self.mem.write_obj(id.to_le(), GuestAddress(base + 12)).unwrap();
        self.mem.write_obj(flags.to_le(), GuestAddress(base + 14)).unwrap();
    }

    /// Make a chain of `len` descriptors available. Its buffers say who it is.
    fn offer(&mut self, id: u16, len: u16) {
        for i in 0..len {
            let (last, at) = (i + 1 == len, self.avail.after(i, self.size));
            let flags = if last { WRITE } else { NEXT };
            // Only the last descriptor's id counts.
            let name = if last { id } else { !id };
            self.write(at, u64::from(id) << 16 | u64::from(i), u32::from(len), name, flags);
        }
        self.avail = self.avail.after(len, self.size);
        self.out.push((id, len));
    }

    /// The next used chain: id and length written.
    fn reap(&mut self) -> Option<(u16, u32)> {
        let base = RING + 16 * u64::from(self.used.index);
        let flags: u16 = self.mem.read_obj(GuestAddress(base + 14)).unwrap();
        if (flags & AVAIL != 0) != self.used.wrap || (flags & USED != 0) != self.used.wrap {
            return None;
        }
        let len: u32 = self.mem.read_obj(GuestAddress(base + 8)).unwrap();
        let id: u16 = self.mem.read_obj(GuestAddress(base + 12)).unwrap();
        let at = self.out.iter().position(|(out, _)| *out == id).expect("an id that is out");
        let (_, descriptors) = self.out.remove(at);
        self.used = self.used.after(descriptors, self.size);
        Some((id, len))
    }
}

fn walked(ring: &PackedRing, mem: &GuestMemoryMmap<()>, slot: u16) -> Chain {
    let mut chain = Chain::default();
    ring.walk(mem, slot, &mut chain).unwrap();
    chain
}

#[test]
fn packed_chain_is_walked_from_its_copy_after_its_place_was_overwritten() {
    let mut driver = Driver::new(4, Position::START);
    driver.offer(7, 1);
    driver.offer(9, 2);
    let mut ring = driver.device();
    ring.adopt(ChainTable::new(4), Positions::START);
    let (first, second) = (ring.pop(&driver.mem).unwrap(), ring.pop(&driver.mem).unwrap());
    assert_eq!((first, second), (Some(0), Some(1)));
    assert_eq!(ring.pop(&driver.mem).unwrap(), None);
    // The second is used first, in the place of the first.
    ring.publish(&driver.mem, &[Used { head: 1, len: 3 }], NO_LOG).unwrap();
    assert_eq!(driver.reap(), Some((9, 3)));
    assert_eq!(
        walked(&ring, &driver.mem, 0).writable,
        [crate::memory::Segment { addr: 7 << 16, len: 1 }]
    );
    ring.publish(&driver.mem, &[Used { head: 0, len: 0 }], NO_LOG).unwrap();
    assert_eq!(driver.reap(), Some((7, 0)));
    assert_eq!(driver.reap(), None);
    assert_eq!(ring.positions(), Positions { avail: driver.avail, used: driver.used });
}

#[test]
fn packed_indirect_table_is_read_in_order_without_links() {
    let mut driver = Driver::new(3, Position::START);
    for (i, flags) in [(0u64, 0u16), (1, 0), (2, WRITE)] {
        let base = 0x50000 + 16 * i;
        driver.mem.write_obj(0x1000 * (i + 1), GuestAddress(base)).unwrap();
        driver.mem.write_obj(16u32, GuestAddress(base + 8)).unwrap();
        driver.mem.write_obj(flags, GuestAddress(base + 14)).unwrap();
    }
    driver.write(Position::START, 0x50000, 48, 5, INDIRECT | WRITE);
    driver.out.push((5, 1));
    let mut ring = driver.device();
    let slot = ring.pop(&driver.mem).unwrap().unwrap();
    let chain = walked(&ring, &driver.mem, slot);
    assert_eq!((chain.readable.len(), chain.writable.len()), (2, 1));
    assert_eq!(chain.writable[0].addr, 0x3000);
    let mut into = Chain::default();
    for (len, flags, fault) in [
        (40, INDIRECT, GuestFault::IndirectLen { head: 0, len: 40 }),
        (0, INDIRECT, GuestFault::IndirectLen { head: 0, len: 0 }),
        (u32::MAX - 15, INDIRECT, GuestFault::TooLong { head: 0, max: 1027 }),
    ] {
        driver.write(Position::START, 0x20000, len, 5, flags);
        let mut ring = PackedRing::new(&driver.mem, 3, AT, true, Positions::START).unwrap();
        let slot = ring.pop(&driver.mem).unwrap().unwrap();
        assert_eq!(ring.walk(&driver.mem, slot, &mut into), Err(fault));
    }
    // Not in a chain of several, and not in another.
    driver.write(Position::START, 0x50000, 48, 5, INDIRECT | NEXT);
    driver.write(Position::START.after(1, 3), 0x50000, 48, 5, 0);
    let mut ring = PackedRing::new(&driver.mem, 3, AT, true, Positions::START).unwrap();
    let slot = ring.pop(&driver.mem).unwrap().unwrap();
    let nested = Err(GuestFault::IndirectNested { head: 0 });
    assert_eq!(ring.walk(&driver.mem, slot, &mut into), nested);
}

#[test]
fn packed_ids_that_are_in_flight_and_chains_beyond_the_ring_are_faults() {
    let mut driver = Driver::new(5, Position::START);
    let mut ring = driver.device();
    driver.offer(u16::MAX, 2);
    driver.offer(u16::MAX, 1);
    assert_eq!(ring.pop(&driver.mem).unwrap(), Some(0));
    assert_eq!(ring.pop(&driver.mem), Err(GuestFault::IdInFlight { id: u16::MAX }));
    assert_eq!(ring.positions().avail.index, 2);
    // A chain that goes on into what is in flight.
    for i in 2..5 {
        driver.write(Position { index: i, wrap: true }, 0, 0, 1, NEXT);
    }
    assert_eq!(ring.pop(&driver.mem), Err(GuestFault::Overrun { at: 2, free: 3 }));
    // One that begins there, when everything is.
    driver.write(Position { index: 4, wrap: true }, 0, 0, 1, 0);
    assert_eq!(ring.pop(&driver.mem).unwrap(), Some(2));
    assert_eq!(ring.pop(&driver.mem).unwrap(), None);
    driver.write(Position { index: 0, wrap: false }, 0, 0, 2, 0);
    assert_eq!(ring.pop(&driver.mem), Err(GuestFault::Overrun { at: 0, free: 0 }));
}

#[test]
fn packed_kicks_are_asked_for_by_position_or_by_flag() {
    let mut driver = Driver::new(6, Position { index: 4, wrap: false });
    let read = |d: &Driver| d.mem.read_obj::<u32>(GuestAddress(DEVICE)).unwrap();
    let mut ring = driver.device();
    ring.disable_kicks(&driver.mem, NO_LOG).unwrap();
    assert_eq!(read(&driver), 0x0001_0000);
    assert!(!ring.enable_kicks(&driver.mem, NO_LOG).unwrap());
    assert_eq!(read(&driver), 0x0002_0004);
    driver.offer(0, 1);
    assert!(ring.enable_kicks(&driver.mem, NO_LOG).unwrap());
    let positions = ring.positions();
    let mut flags = PackedRing::new(&driver.mem, 6, AT, false, positions).unwrap();
    assert!(flags.enable_kicks(&driver.mem, NO_LOG).unwrap());
    assert_eq!(read(&driver), 0);
}

#[test]
fn packed_calls_follow_the_driver_event_area() {
    let mut driver = Driver::new(5, Position { index: 3, wrap: true });
    let mut ring = driver.device();
    // One chain each, so the used position goes 3, 4, then 0 to 3 around.
    for (wish, wanted) in [
        (0u32, true),
        (0x0001_0000, false),
        (0x0002_8003, false),
        (0x0002_0001, true),
        (0x0002_0001, false),
    ] {
        driver.offer(1, 1);
        let slot = ring.pop(&driver.mem).unwrap().unwrap();
        ring.publish(&driver.mem, &[Used { head: slot, len: 1 }], NO_LOG).unwrap();
        assert_eq!(driver.reap(), Some((1, 1)));
        driver.mem.write_obj(wish.to_le(), GuestAddress(DRIVER)).unwrap();
        assert_eq!(ring.needs_call(&driver.mem).unwrap(), wanted, "{wish:#x}");
        assert!(!ring.needs_call(&driver.mem).unwrap(), "nothing new");
    }
}

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Chains of any length through rings of any size, in any order, in
    /// batches: every one comes out once, with its own buffers.
    #[test]
    fn packed_ring_carries_every_chain_once_whatever_its_size(
        size in 1u16..40,
        start in any::<u16>(),
        script in proptest::collection::vec((any::<u8>(), any::<u8>(), any::<u8>()), 1..120),
    ) {
        let at = Position { index: (start & 0x7fff) % size, wrap: start & 0x8000 != 0 };
        let mut driver = Driver::new(size, at);
        let mut ring = driver.device();
        let mut fetched: Vec<(u16, u16, u16)> = Vec::new();
        let mut offered = VecDeque::new();
        let mut id = start;
        for (what, a, b) in script {
            match what % 3 {
                0 if driver.room() > 0 => {
                    let len = 1 + u16::from(a) % driver.room().min(6);
                    id = id.wrapping_add(u16::from(b));
                    if driver.out.iter().any(|(out, _)| *out == id) {
                        continue;
                    }
                    driver.offer(id, len);
                    offered.push_back((id, len));
                }
                1 => {
                    let next = ring.pop(&driver.mem).unwrap();
                    let expected = offered.pop_front();
                    prop_assert_eq!(next.is_some(), expected.is_some());
                    let (Some(slot), Some((id, len))) = (next, expected) else { continue };
                    prop_assert!(slot < ring.table().size());
                    prop_assert!(fetched.iter().all(|(_, _, s)| *s != slot));
                    fetched.push((id, len, slot));
                }
                _ => {
                    let mut batch = Vec::new();
                    let mut expected = Vec::new();
                    for _ in 0..=b % 4 {
                        if fetched.is_empty() {
                            break;
                        }
                        let (id, len, slot) = fetched.remove(usize::from(a) % fetched.len());
                        let chain = walked(&ring, &driver.mem, slot);
                        prop_assert_eq!(chain.readable.len(), usize::from(len) - 1);
                        prop_assert_eq!(chain.writable[0].addr, u64::from(id) << 16 | u64::from(len - 1));
                        batch.push(Used { head: slot, len: u32::from(a) });
                        expected.push((id, u32::from(a)));
                    }
                    ring.publish(&driver.mem, &batch, NO_LOG).unwrap();
                    for used in expected {
                        prop_assert_eq!(driver.reap(), Some(used));
                    }
                    prop_assert_eq!(driver.reap(), None);
                }
            }
            let ahead: u16 = fetched.iter().map(|(_, len, _)| len).sum();
            prop_assert_eq!(ring.positions().ahead(size), Some(ahead));
            prop_assert_eq!(ring.table().free(), size - ahead);
        }
    }

    /// Whatever is in the ring and the event areas, nothing panics, and no
    /// more is taken than the ring can hold.
    #[test]
    fn packed_ring_of_garbage_is_refused_or_bounded(
        size in 1u16..9,
        bytes in proptest::collection::vec(any::<u8>(), 9 * 16),
        flags in proptest::collection::vec(0u8..8, 9),
    ) {
        let driver = Driver::new(size, Position::START);
        driver.mem.write_slice(&bytes, GuestAddress(RING)).unwrap();
        driver.mem.write_slice(&bytes[..16], GuestAddress(DRIVER)).unwrap();
        for (i, low) in (0u64..).zip(&flags) {
            let flags = u16::from(*low) | AVAIL;
            driver.mem.write_obj(flags, GuestAddress(RING + 16 * i + 14)).unwrap();
        }
        let mut ring = driver.device();
        let mut chain = Chain::default();
        let mut taken = 0;
        while let Ok(Some(slot)) = ring.pop(&driver.mem) {
            let _ = ring.walk(&driver.mem, slot, &mut chain);
            taken += 1;
            prop_assert!(taken <= size);
            if taken % 2 == 0 {
                ring.publish(&driver.mem, &[Used { head: slot, len: 1 }], NO_LOG).unwrap();
                let _ = ring.needs_call(&driver.mem);
            }
            if taken == size {
                break;
            }
        }
    }
}
