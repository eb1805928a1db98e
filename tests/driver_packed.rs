//! The guest driver's packed ring against a device written here from the
//! document, and against devices that break the rules.

mod ring_rig;

use midflight::driver::{
    Buffer, DeviceFault, DriverError, DriverMisuse, Indirect, Outstanding, PackedDriver,
    PackedPosition, RingFeatures, RingLayout,
};
use proptest::prelude::*;
use ring_rig::buffers;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Mem = GuestMemoryMmap<()>;
/// Address, length and direction of a descriptor.
type Piece = (u64, u32, bool);

const RING: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;
const FEATURES: RingFeatures = RingFeatures { event_idx: false, indirect: true, packed: true };

fn memory() -> Mem {
    Mem::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap()
}

fn u16_at(mem: &Mem, addr: u64) -> u16 {
    u16::from_le(mem.read_obj(GuestAddress(addr)).unwrap())
}

fn put(mem: &Mem, addr: u64, bytes: &[u8]) {
    mem.write_slice(bytes, GuestAddress(addr)).unwrap();
}

/// A chain as the device has read it.
#[derive(Clone, Debug, PartialEq)]
struct Chain {
    id: u16,
    /// Entries of the ring.
    entries: u16,
    pieces: Vec<Piece>,
}

/// The plainest device: one entry after the other, one used descriptor a chain.
struct Device {
    layout: RingLayout,
    avail: (u16, bool),
    used: (u16, bool),
    event_idx: bool,
}

impl Device {
    fn step(&self, at: (u16, bool)) -> (u16, bool) {
        if at.0 + 1 == self.layout.size { (0, !at.1) } else { (at.0 + 1, at.1) }
    }

    fn desc(&self, mem: &Mem, addr: u64) -> (u64, u32, u16, u16) {
        let mut raw = [0u8; 16];
        mem.read_slice(&mut raw, GuestAddress(addr)).unwrap();
        (
            u64::from_le_bytes(raw[..8].try_into().unwrap()),
            u32::from_le_bytes(raw[8..12].try_into().unwrap()),
            u16::from_le_bytes(raw[12..14].try_into().unwrap()),
            u16::from_le_bytes(raw[14..].try_into().unwrap()),
        )
    }

    fn pop(&mut self, mem: &Mem) -> Option<Chain> {
        let mut chain = Chain { id: 0, entries: 0, pieces: Vec::new() };
        loop {
            let entry = self.layout.desc + 16 * u64::from(self.avail.0);
            let (addr, len, id, flags) = self.desc(mem, entry);
            let (avail, used) = (flags & 0x80 != 0, flags & 0x8000 != 0);
            if avail != self.avail.1 || used == self.avail.1 {
                assert_eq!(chain.entries, 0, "a chain is published as a whole");
                return None;
            }
            self.avail = self.step(self.avail);
            chain.entries += 1;
            if flags & 4 != 0 {
                assert_eq!((flags & 1, len % 16), (0, 0));
                for i in 0..u64::from(len / 16) {
                    let (addr, len, _, flags) = self.desc(mem, addr + 16 * i);
                    assert_eq!(flags & !2, 0, "only WRITE is legal in a table");
                    chain.pieces.push((addr, len, flags & 2 != 0));
                }
            } else {
                chain.pieces.push((addr, len, flags & 2 != 0));
            }
            if flags & 1 == 0 {
                chain.id = id;
                return Some(chain);
            }
        }
    }

    /// Give a chain back. Returns whether the driver wants a call.
    fn complete(&mut self, mem: &Mem, chain: &Chain, len: u32) -> bool {
        let entry = self.layout.desc + 16 * u64::from(self.used.0);
        put(mem, entry + 8, &len.to_le_bytes());
        put(mem, entry + 12, &chain.id.to_le_bytes());
        let flags: u16 = if self.used.1 { 0x8080 } else { 0 } | if len > 0 { 2 } else { 0 };
        put(mem, entry + 14, &flags.to_le_bytes());
        let wish = (u16_at(mem, self.layout.avail), u16_at(mem, self.layout.avail + 2));
        let mut wanted = wish.1 == 0;
        for _ in 0..chain.entries {
            let here = self.used.0 | u16::from(self.used.1) << 15;
            wanted |= wish.1 == 2 && wish.0 == here;
            self.used = self.step(self.used);
        }
        wanted
    }

    /// Ask for a kick at the next descriptor.
    fn want_kicks(&self, mem: &Mem) {
        let at = self.avail.0 | u16::from(self.avail.1) << 15;
        put(mem, self.layout.used, &at.to_le_bytes());
        let flags: u16 = if self.event_idx { 2 } else { 0 };
        put(mem, self.layout.used + 2, &flags.to_le_bytes());
    }

    fn want_none(&self, mem: &Mem) {
        put(mem, self.layout.used + 2, &1u16.to_le_bytes());
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of readable and writable buffers, and whether they go to a table.
    Add(Vec<u32>, Vec<u32>, bool),
    Publish,
    /// The device takes everything that is available.
    Fetch,
    /// The device completes one of what it holds, chosen by the number.
    Complete(usize),
    /// The driver takes everything that is used, and asks for a call by the
    /// flag or after so many entries.
    Reap(Option<u16>),
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(1u32..5000, 0..4);
    prop_oneof![
        4 => (lengths(), lengths(), any::<bool>()).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        2 => Just(Step::Publish),
        2 => Just(Step::Fetch),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => prop::option::of(Just(1u16)).prop_map(Step::Reap),
    ]
}

fn at(word: u16, size: u16) -> PackedPosition {
    let at = PackedPosition::from_word(word);
    PackedPosition { index: at.index % size, ..at }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both sides agree on every chain, every completion and every wake-up, at
    /// any size, from any position, with any buffer ids, whatever the order of
    /// completion. Both sides sleep until somebody tells them.
    #[test]
    fn driver_packed_agrees_with_a_plain_device(
        size in 1u16..=64,
        event_idx: bool,
        start: u16,
        spread in prop::option::of((any::<u16>(), 0u16..500)),
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mem = memory();
        let layout = RingLayout::contiguous_packed(size, RING).unwrap();
        let features = RingFeatures { event_idx, ..FEATURES };
        let start = at(start, size);
        let mut driver = PackedDriver::start_at(&mem, layout, features, start).unwrap();
        if let Some((base, stride)) = spread {
            // An odd factor leaves all ids different.
            let ids: Vec<u16> =
                (0..size).map(|i| base.wrapping_add(i.wrapping_mul(2 * stride + 1))).collect();
            driver.use_ids(&ids).unwrap();
        }
        let here = (start.index, start.wrap);
        let mut device = Device { layout, avail: here, used: here, event_idx };
        device.want_kicks(&mem);
        let mut device_asleep = true;
        prop_assert!(!driver.enable_calls(&mem).unwrap());
        let mut driver_asleep = true;

        let mut expected: Vec<(u16, u16, Vec<Piece>)> = Vec::new();
        let mut staged = 0usize;
        let mut held: Vec<Chain> = Vec::new();
        let mut returned: Vec<(u16, u32)> = Vec::new();
        let mut tables = 0u64;

        for step in steps {
            match step {
                Step::Add(reads, writes, table) => {
                    let buffers = buffers(&reads, &writes);
                    let indirect = table.then(|| Indirect { table: TABLES + (tables % 64) * 256, direct: 0 });
                    tables += 1;
                    let needed = if table { 1 } else { buffers.len() as u16 };
                    let free = driver.free_descriptors();
                    match driver.add_chain(&mem, &buffers, indirect) {
                        Ok(id) => {
                            prop_assert!(needed <= free);
                            prop_assert!(!held.iter().any(|c| c.id == id), "id {id} is in flight");
                            let pieces = buffers.iter().map(|b| (b.addr, b.len, b.writable)).collect();
                            expected.push((id, needed, pieces));
                            staged += 1;
                        }
                        Err(DriverError::RingFull { needed: n, free: f }) => {
                            prop_assert_eq!((n, f), (u32::from(needed), free));
                            prop_assert!(needed > free);
                        }
                        Err(DriverError::ApiMisuse(DriverMisuse::EmptyBuffer)) => prop_assert!(buffers.is_empty()),
                        Err(other) => prop_assert!(false, "{other}"),
                    }
                }
                Step::Publish => {
                    let count = driver.publish(&mem).unwrap();
                    prop_assert_eq!(usize::from(count), staged);
                    staged = 0;
                    if driver.kick_needed(&mem).unwrap() {
                        device_asleep = false;
                    } else if count > 0 {
                        prop_assert!(!device_asleep, "the device sleeps and got no kick");
                    }
                }
                Step::Fetch if !device_asleep => {
                    device.want_none(&mem);
                    while let Some(chain) = device.pop(&mem) {
                        prop_assert!(!expected.is_empty(), "more chains than were published");
                        let (id, entries, pieces) = expected.remove(0);
                        prop_assert_eq!(&chain, &Chain { id, entries, pieces });
                        held.push(chain);
                    }
                    prop_assert_eq!(expected.len(), staged);
                    device.want_kicks(&mem);
                    device_asleep = true;
                }
                Step::Fetch => {}
                Step::Complete(pick) => {
                    if held.is_empty() {
                        continue;
                    }
                    let chain = held.remove(pick % held.len());
                    let room: u32 = chain.pieces.iter().filter(|p| p.2).map(|p| p.1).sum();
                    let len = (pick as u32) % (room + 1);
                    returned.push((chain.id, len));
                    if device.complete(&mem, &chain, len) {
                        driver_asleep = false;
                    } else {
                        prop_assert!(!driver_asleep, "the driver sleeps and got no call");
                    }
                }
                Step::Reap(by) if !driver_asleep => loop {
                    driver.disable_calls(&mem).unwrap();
                    while let Some(used) = driver.reap(&mem).unwrap() {
                        prop_assert!(!returned.is_empty());
                        prop_assert_eq!((used.head, used.len), returned.remove(0));
                    }
                    let more = match by {
                        Some(count) => driver.enable_calls_after(&mem, count).unwrap(),
                        None => driver.enable_calls_by_flag(&mem).unwrap(),
                    };
                    if !more {
                        driver_asleep = true;
                        prop_assert!(returned.is_empty());
                        break;
                    }
                },
                Step::Reap(_) => {}
            }
            prop_assert_eq!(usize::from(driver.outstanding()), expected.len() - staged + held.len() + returned.len());
            let position = driver.avail_position();
            if !device_asleep && staged == 0 && expected.is_empty() {
                prop_assert_eq!((position.index, position.wrap), device.avail);
            }
        }
    }
}

fn writable(len: u32) -> Buffer {
    Buffer { addr: 0x8000, len, writable: true }
}

#[test]
fn driver_packed_publishes_a_batch_with_one_store_of_flags() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(5, RING).unwrap();
    let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
    let mut device = Device { layout, avail: (0, true), used: (0, true), event_idx: false };
    for _ in 0..2 {
        driver.add_chain(&mem, &[writable(1), writable(2)], None).unwrap();
        assert_eq!(device.pop(&mem), None, "nothing is visible yet");
    }
    assert_eq!(driver.publish(&mem).unwrap(), 2);
    for id in [4, 3] {
        assert_eq!(device.pop(&mem).map(|c| (c.id, c.entries)), Some((id, 2)));
    }
    assert_eq!(device.pop(&mem), None);
    assert_eq!(driver.publish(&mem).unwrap(), 0);
}

#[test]
fn driver_packed_names_buffers_unlike_their_descriptors() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(3, RING).unwrap();
    let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
    driver.use_ids(&[7, 65535, 300]).unwrap();
    let ids: Vec<u16> =
        (0..3).map(|_| driver.add_chain(&mem, &[writable(1)], None).unwrap()).collect();
    assert_eq!(ids, [300, 65535, 7]);
    let refused = DriverMisuse::BufferIds { size: 3 };
    assert_eq!(driver.use_ids(&[1, 2, 3]), Err(refused.into()), "chains are in the ring");
    driver.reset(&mem).unwrap();
    assert_eq!(driver.use_ids(&[1, 1, 3]), Err(refused.into()));
    assert_eq!(driver.use_ids(&[1, 3]), Err(refused.into()));
    assert_eq!(driver.add_chain(&mem, &[writable(1)], None), Ok(300), "a reset keeps ids");
}

#[test]
fn driver_packed_reports_ids_that_are_no_chain_until_the_reset() {
    for (id, why) in [(6u16, "free"), (8, "no id of this ring"), (7, "not published")] {
        let mem = memory();
        let layout = RingLayout::contiguous_packed(8, RING).unwrap();
        let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
        let mut device = Device { layout, avail: (0, true), used: (0, true), event_idx: false };
        assert_eq!(driver.add_chain(&mem, &[writable(4)], None), Ok(7));
        let bogus = Chain { id, entries: 1, pieces: Vec::new() };
        device.complete(&mem, &bogus, 0);
        let fault = DeviceFault::NotAHead { index: 0, id: u32::from(id) };
        for _ in 0..2 {
            assert_eq!(driver.reap(&mem), Err(fault.into()), "{why}");
        }
        assert_eq!(driver.publish(&mem), Err(fault.into()));
        assert_eq!(driver.broken(), Some(fault));
        driver.reset(&mem).unwrap();
        assert_eq!(driver.reap(&mem), Ok(None));
        assert_eq!((driver.outstanding(), driver.free_descriptors()), (0, 8));
    }
}

#[test]
fn driver_packed_reports_a_second_completion_of_the_same_chain() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(8, RING).unwrap();
    let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
    let mut device = Device { layout, avail: (0, true), used: (0, true), event_idx: false };
    for _ in 0..2 {
        driver.add_chain(&mem, &[writable(4), writable(4)], None).unwrap();
    }
    driver.publish(&mem).unwrap();
    let chain = device.pop(&mem).unwrap();
    device.complete(&mem, &chain, 8);
    assert_eq!(driver.reap(&mem).unwrap().unwrap().head, chain.id);
    device.complete(&mem, &chain, 8);
    let fault = DeviceFault::NotAHead { index: 2, id: u32::from(chain.id) };
    assert_eq!(driver.reap(&mem), Err(fault.into()));
}

#[test]
fn driver_packed_reports_more_bytes_than_the_chain_can_take() {
    let layout = RingLayout::contiguous_packed(8, RING).unwrap();
    for indirect in [None, Some(Indirect { table: TABLES, direct: 0 })] {
        let mem = memory();
        let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
        let mut device = Device { layout, avail: (0, true), used: (0, true), event_idx: false };
        let read = Buffer { writable: false, ..writable(100) };
        let head = driver.add_chain(&mem, &[read, writable(10)], indirect).unwrap();
        driver.publish(&mem).unwrap();
        let chain = device.pop(&mem).unwrap();
        device.complete(&mem, &chain, 11);
        let fault = DeviceFault::LenTooLong { head, len: 11, writable: 10 };
        assert_eq!(driver.reap(&mem), Err(fault.into()));
    }
}

#[test]
fn driver_packed_believes_a_length_only_with_the_write_flag() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(8, RING).unwrap();
    let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
    let head = driver.add_chain(&mem, &[writable(10)], None).unwrap();
    driver.publish(&mem).unwrap();
    put(&mem, layout.desc + 8, &77u32.to_le_bytes());
    put(&mem, layout.desc + 14, &0x8080u16.to_le_bytes());
    let used = driver.reap(&mem).unwrap().unwrap();
    assert_eq!((used.head, used.len), (head, 0));
}

#[test]
fn driver_packed_refuses_illegal_chains_and_changes_nothing() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(3, RING).unwrap();
    let mut driver =
        PackedDriver::start(&mem, layout, RingFeatures { indirect: false, ..FEATURES }).unwrap();
    let read = Buffer { writable: false, ..writable(1) };
    let table = Some(Indirect { table: TABLES, direct: 0 });
    let cases: [(&[Buffer], Option<Indirect>, DriverMisuse); 4] = [
        (&[], None, DriverMisuse::EmptyBuffer),
        (&[writable(0)], None, DriverMisuse::EmptyBuffer),
        (&[writable(1), read], None, DriverMisuse::ReadableAfterWritable),
        (&[read], table, DriverMisuse::IndirectNotNegotiated),
    ];
    for (buffers, indirect, misuse) in cases {
        assert_eq!(driver.add_chain(&mem, buffers, indirect), Err(misuse.into()));
    }
    let full = DriverError::RingFull { needed: 4, free: 3 };
    assert_eq!(driver.add_chain(&mem, &[read; 4], None), Err(full));
    assert_eq!((driver.publish(&mem), driver.free_descriptors()), (Ok(0), 3));
    let mut driver = PackedDriver::start(&mem, layout, FEATURES).unwrap();
    let mixed = Some(Indirect { table: TABLES, direct: 1 });
    let misuse = DriverMisuse::DirectBeforeTable { direct: 1 };
    assert_eq!(driver.add_chain(&mem, &[read; 2], mixed), Err(misuse.into()));
    // A table takes one entry, however long it is.
    assert!(driver.add_chain(&mem, &[read; 9], table).is_ok());
    assert_eq!(driver.free_descriptors(), 2);
}

#[test]
fn driver_packed_reads_the_wish_for_kicks_by_flag_and_by_position() {
    let layout = RingLayout::contiguous_packed(4, RING).unwrap();
    // Position, flags, and whether entries 3 (first round) and 0 (second) are
    // worth a kick when they are published together.
    let cases = [
        (0u16, 0u16, true),
        (0, 1, false),
        (0x8002, 2, false),
        (0x8003, 2, true),
        (0x0000, 2, true),
        (0x8000, 2, false),
        (0x0001, 2, false),
    ];
    for (position, flags, wanted) in cases {
        let mem = memory();
        let features = RingFeatures { event_idx: true, ..FEATURES };
        let start = PackedPosition { index: 3, wrap: true };
        let mut driver = PackedDriver::start_at(&mem, layout, features, start).unwrap();
        assert_eq!(driver.kick_needed(&mem), Ok(false), "nothing was published");
        put(&mem, layout.used, &position.to_le_bytes());
        put(&mem, layout.used + 2, &flags.to_le_bytes());
        for _ in 0..2 {
            driver.add_chain(&mem, &[writable(1)], None).unwrap();
        }
        driver.publish(&mem).unwrap();
        assert_eq!(driver.kick_needed(&mem), Ok(wanted), "{position:#x} {flags}");
        assert_eq!(driver.kick_needed(&mem), Ok(false), "asking is deciding");
    }
}

#[test]
fn driver_packed_takes_over_what_another_driver_left() {
    let mem = memory();
    let layout = RingLayout::contiguous_packed(5, RING).unwrap();
    let start = PackedPosition { index: 3, wrap: false };
    let mut old = PackedDriver::start_at(&mem, layout, FEATURES, start).unwrap();
    let mut device = Device { layout, avail: (3, false), used: (3, false), event_idx: false };
    let [a, b] = [1, 3].map(|n| old.add_chain(&mem, &vec![writable(4); n], None).unwrap());
    old.publish(&mem).unwrap();
    let chains = [device.pop(&mem).unwrap(), device.pop(&mem).unwrap()];
    // The second comes back first, over the descriptor of the other one.
    device.complete(&mem, &chains[1], 12);
    assert_eq!(old.reap(&mem).unwrap().unwrap().head, b);

    let (avail, used) = (old.avail_position(), old.used_position());
    assert_eq!((avail.word(), used.word()), (0x8002, 0x8001));
    let left = Outstanding { id: a, descs: 1, writable: 4 };
    let attach =
        |chains: &[Outstanding]| PackedDriver::attach(layout, FEATURES, avail, used, chains);
    for (wrong, why) in [
        (vec![], DriverMisuse::OutstandingDescriptors { expected: 1, got: 0 }),
        (vec![left; 2], DriverMisuse::OutstandingDescriptors { expected: 1, got: 2 }),
        (
            vec![left, Outstanding { id: 9, descs: 0, writable: 0 }],
            DriverMisuse::BadOutstanding { head: 9 },
        ),
    ] {
        assert_eq!(attach(&wrong).unwrap_err(), why.into());
    }
    let mut new = attach(&[left]).unwrap();
    assert_eq!((new.outstanding(), new.free_descriptors()), (1, 4));
    device.complete(&mem, &chains[0], 4);
    assert_eq!(new.reap(&mem).unwrap().map(|u| (u.head, u.len)), Some((a, 4)));
    // Every entry can be used again.
    let whole = new.add_chain(&mem, &[writable(1); 5], None).unwrap();
    new.publish(&mem).unwrap();
    assert_eq!(device.pop(&mem).map(|c| (c.id, c.entries)), Some((whole, 5)));
}
