//! Packed rings: the guest driver against the device side, which shares no
//! code with it. There is no third implementation to ask, so each is also held
//! against a plain one in its own tests.

mod ring_rig;

use midflight::driver::{
    DriverError, DriverMisuse, Indirect, PackedDriver, PackedPosition, RingFeatures, RingLayout,
};
use midflight::vring::chain::Chain;
use midflight::vring::{Ring, RingAddresses, RingFormat, Used};
use proptest::prelude::*;
use ring_rig::buffers;
use vm_memory::{GuestAddress, GuestMemoryMmap};

type Mem = GuestMemoryMmap<()>;
/// Address, length and direction of a buffer.
type Piece = (u64, u32, bool);

const RING: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;

fn memory() -> Mem {
    Mem::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap()
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of readable and writable buffers, and whether they go to a table.
    Add(Vec<u32>, Vec<u32>, bool),
    Publish,
    /// The device takes everything that is available.
    Fetch,
    /// The device completes a batch of what it holds, each chosen by a number.
    Complete(Vec<usize>),
    /// The driver takes everything that is used, and asks for a call by the
    /// flag or after so many entries.
    Reap(Option<u16>),
    /// The device forgets all but its base, if nothing is in flight.
    Restart,
    /// The driver kicks without need.
    Kick,
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(1u32..5000, 0..4);
    prop_oneof![
        6 => (lengths(), lengths(), any::<bool>()).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        3 => Just(Step::Publish),
        3 => Just(Step::Fetch),
        5 => prop::collection::vec(any::<usize>(), 1..4).prop_map(Step::Complete),
        3 => prop::option::of(Just(1u16)).prop_map(Step::Reap),
        1 => Just(Step::Restart),
        1 => Just(Step::Kick),
    ]
}

fn device(mem: &Mem, layout: &RingLayout, event_idx: bool, base: u32) -> Ring {
    let at = RingAddresses { desc: layout.desc, avail: layout.avail, used: layout.used };
    Ring::new(mem, RingFormat::Packed, layout.size, at, event_idx, base).unwrap()
}

fn base_of(driver: &PackedDriver) -> u32 {
    let (avail, used) = (driver.avail_position(), driver.used_position());
    u32::from(avail.word()) | u32::from(used.word()) << 16
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both sides agree on every chain, every completion and every wake-up, at
    /// any size, from any position, with any buffer ids, whatever the order and
    /// the batches of completion. Both sides sleep until somebody tells them.
    #[test]
    fn ring_packed_driver_and_device_agree(
        size in 1u16..=64,
        event_idx: bool,
        start: u16,
        spread in prop::option::of((any::<u16>(), 0u16..500)),
        steps in prop::collection::vec(step(), 1..160),
    ) {
        let mem = memory();
        let layout = RingLayout::contiguous_packed(size, RING).unwrap();
        let features = RingFeatures { event_idx, indirect: true, packed: true };
        let start = PackedPosition::from_word(start);
        let start = PackedPosition { index: start.index % size, ..start };
        let mut driver = PackedDriver::start_at(&mem, layout, features, start).unwrap();
        if let Some((first, stride)) = spread {
            // An odd factor leaves all ids different.
            let ids: Vec<u16> =
                (0..size).map(|i| first.wrapping_add(i.wrapping_mul(2 * stride + 1))).collect();
            driver.use_ids(&ids).unwrap();
        }
        let mut ring = device(&mem, &layout, event_idx, base_of(&driver));
        prop_assert!(!ring.enable_kicks(&mem, no_log(&mem)).unwrap());
        let mut device_asleep = true;
        prop_assert!(!driver.enable_calls(&mem).unwrap());
        let mut driver_asleep = true;

        let mut chain = Chain::default();
        let mut expected: Vec<(u16, Vec<Piece>)> = Vec::new();
        let mut staged = 0usize;
        // Slot, buffer id and room of what the device holds.
        let mut held: Vec<(u16, u16, u32)> = Vec::new();
        let mut returned: Vec<(u16, u32)> = Vec::new();
        let mut tables = 0u64;

        for step in steps {
            match step {
                Step::Add(reads, writes, table) => {
                    let buffers = buffers(&reads, &writes);
                    let indirect = table.then(|| Indirect { table: TABLES + (tables % 64) * 256, direct: 0 });
                    tables += 1;
                    match driver.add_chain(&mem, &buffers, indirect) {
                        Ok(id) => {
                            let pieces = buffers.iter().map(|b| (b.addr, b.len, b.writable)).collect();
                            expected.push((id, pieces));
                            staged += 1;
                        }
                        Err(DriverError::RingFull { .. }) => {}
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
                Step::Kick => device_asleep = false,
                Step::Fetch if !device_asleep => loop {
                    ring.disable_kicks(&mem, no_log(&mem)).unwrap();
                    while let Some(slot) = ring.pop(&mem).unwrap() {
                        ring.walk(&mem, slot, &mut chain).unwrap();
                        let readable = chain.readable.iter().map(|s| (s.addr, s.len, false));
                        let writable = chain.writable.iter().map(|s| (s.addr, s.len, true));
                        let seen: Vec<Piece> = readable.chain(writable).collect();
                        prop_assert!(expected.len() > staged, "more chains than were published");
                        let (id, pieces) = expected.remove(0);
                        prop_assert_eq!(&seen, &pieces);
                        prop_assert!(!held.iter().any(|h| h.0 == slot), "slot {slot} is in flight");
                        let room = seen.iter().filter(|p| p.2).map(|p| p.1).sum();
                        held.push((slot, id, room));
                    }
                    if !ring.enable_kicks(&mem, no_log(&mem)).unwrap() {
                        device_asleep = true;
                        prop_assert_eq!(expected.len(), staged);
                        break;
                    }
                },
                Step::Fetch => {}
                Step::Complete(picks) => {
                    let mut batch = Vec::new();
                    for pick in picks {
                        if held.is_empty() {
                            break;
                        }
                        let (slot, id, room) = held.remove(pick % held.len());
                        let len = (pick as u32) % (room + 1);
                        batch.push(Used { head: slot, len });
                        returned.push((id, len));
                    }
                    if batch.is_empty() {
                        continue;
                    }
                    ring.publish(&mem, &batch, no_log(&mem)).unwrap();
                    if ring.needs_call(&mem).unwrap() {
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
                Step::Restart => {
                    if held.is_empty() {
                        ring = device(&mem, &layout, event_idx, ring.base());
                        // Whoever starts looks at the ring once unasked.
                        device_asleep = false;
                    }
                }
            }
            if held.is_empty() && returned.is_empty() && expected.len() == staged {
                prop_assert_eq!(ring.base(), base_of(&driver), "both sides stand at the same place");
            }
        }
    }
}

/// No dirty log, of this kind of memory.
fn no_log<M>(_: &M) -> Option<midflight::dirty::RingLog<'static, M>> {
    None
}
