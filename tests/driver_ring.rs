//! The guest driver's ring against virtio-queue's device side, which shares no
//! code with it, and against devices that break the rules.

mod ring_rig;

use midflight::driver::{
    Buffer, DeviceFault, DriverError, DriverMisuse, Indirect, RingFeatures, RingLayout, SplitDriver,
};
use proptest::prelude::*;
use ring_rig::{buffers, queue};
use virtio_queue::QueueT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Mem = GuestMemoryMmap<()>;
/// Address, length and direction of a descriptor.
type Piece = (u64, u32, bool);

const RING: u64 = 0x1000;
const TABLES: u64 = 0x10_0000;

fn memory() -> Mem {
    Mem::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap()
}

/// A ring on which `start` chains have come and gone.
fn ring_at(mem: &Mem, layout: RingLayout, features: RingFeatures, start: u16) -> SplitDriver {
    SplitDriver::start(mem, layout, features).unwrap();
    mem.write_obj(start.to_le(), GuestAddress(layout.avail_idx())).unwrap();
    mem.write_obj(start.to_le(), GuestAddress(layout.used_idx())).unwrap();
    SplitDriver::attach(mem, layout, features, start, &[]).unwrap()
}

fn publish_used(mem: &Mem, layout: &RingLayout, index: u16, id: u32, len: u32) {
    let entry = layout.used_entry(index);
    mem.write_obj(id.to_le(), GuestAddress(entry)).unwrap();
    mem.write_obj(len.to_le(), GuestAddress(entry + 4)).unwrap();
    mem.write_obj(index.wrapping_add(1).to_le(), GuestAddress(layout.used_idx())).unwrap();
}

fn writable(len: u32) -> Buffer {
    Buffer { addr: 0x8000, len, writable: true }
}

#[derive(Clone, Debug)]
enum Step {
    /// Lengths of readable and writable buffers, and how many stay direct if
    /// an indirect table is used.
    Add(Vec<u32>, Vec<u32>, Option<u16>),
    Publish,
    /// The device takes everything that is available.
    Fetch,
    /// The device completes one of what it holds, chosen by the number.
    Complete(usize),
    /// The driver takes everything that is used.
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    let lengths = || prop::collection::vec(1u32..5000, 0..5);
    prop_oneof![
        4 => (lengths(), lengths(), prop::option::of(0u16..4)).prop_map(|(r, w, i)| Step::Add(r, w, i)),
        2 => Just(Step::Publish),
        2 => Just(Step::Fetch),
        4 => any::<usize>().prop_map(Step::Complete),
        2 => Just(Step::Reap),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Both sides agree on every chain, every completion and every wake-up.
    /// A wake-up that is missing stalls a guest for ever, so the model keeps
    /// both sides asleep until somebody tells them.
    #[test]
    fn driver_ring_agrees_with_virtio_queue(
        size in (0u32..6).prop_map(|p| 1u16 << p),
        event_idx: bool,
        start in prop_oneof![Just(0u16), 65500u16..=65535],
        steps in prop::collection::vec(step(), 1..120),
    ) {
        let mem = memory();
        let layout = RingLayout::contiguous(size, RING).unwrap();
        let features = RingFeatures { event_idx, indirect: true, packed: false };
        let mut driver = ring_at(&mem, layout, features, start);
        let mut queue = queue(&layout, event_idx, start);
        prop_assert!(queue.is_valid(&mem));
        prop_assert!(!queue.enable_notification(&mem).unwrap());
        let mut device_asleep = true;
        prop_assert!(!driver.enable_calls(&mem).unwrap());
        let mut driver_asleep = true;

        // Chains by what the driver said, in order of staging.
        let mut expected: Vec<(u16, Vec<Piece>)> = Vec::new();
        let mut staged = 0usize;
        let mut held: Vec<(u16, u32)> = Vec::new();
        let mut returned: Vec<(u16, u32)> = Vec::new();
        let mut tables = 0u64;

        for step in steps {
            match step {
                Step::Add(reads, writes, direct) => {
                    let buffers = buffers(&reads, &writes);
                    let direct = direct.filter(|&d| usize::from(d) < buffers.len());
                    let indirect = direct.map(|direct| Indirect {
                        table: TABLES + (tables % 64) * 256,
                        direct,
                    });
                    tables += 1;
                    let needed = direct.map_or(buffers.len() as u32, |d| u32::from(d) + 1);
                    let free = driver.free_descriptors();
                    match driver.add_chain(&mem, &buffers, indirect) {
                        Ok(head) => {
                            prop_assert!(needed <= u32::from(free));
                            expected.push((head, buffers.iter().map(|b| (b.addr, b.len, b.writable)).collect()));
                            staged += 1;
                        }
                        Err(DriverError::RingFull { needed: n, free: f }) => {
                            prop_assert_eq!((n, f), (needed, free));
                            prop_assert!(needed > u32::from(free));
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
                Step::Fetch if !device_asleep => loop {
                    queue.disable_notification(&mem).unwrap();
                    while let Some(chain) = queue.pop_descriptor_chain(&mem) {
                        let head = chain.head_index();
                        let seen: Vec<_> = chain
                            .map(|d| (d.addr().0, d.len(), d.is_write_only()))
                            .collect();
                        prop_assert!(!expected.is_empty(), "more chains than were published");
                        let (h, buffers) = expected.remove(0);
                        prop_assert_eq!((h, &buffers), (head, &seen));
                        let room: u32 = buffers.iter().filter(|b| b.2).map(|b| b.1).sum();
                        held.push((head, room));
                    }
                    if !queue.enable_notification(&mem).unwrap() {
                        device_asleep = true;
                        prop_assert_eq!(expected.len(), staged);
                        break;
                    }
                },
                Step::Fetch => {}
                Step::Complete(pick) => {
                    if held.is_empty() {
                        continue;
                    }
                    let (head, room) = held.remove(pick % held.len());
                    let len = (pick as u32) % (room + 1);
                    queue.add_used(&mem, head, len).unwrap();
                    returned.push((head, len));
                    if queue.needs_notification(&mem).unwrap() {
                        driver_asleep = false;
                    } else {
                        prop_assert!(!driver_asleep, "the driver sleeps and got no call");
                    }
                }
                Step::Reap if !driver_asleep => loop {
                    driver.disable_calls(&mem).unwrap();
                    while let Some(used) = driver.reap(&mem).unwrap() {
                        prop_assert!(!returned.is_empty());
                        prop_assert_eq!((used.head, used.len), returned.remove(0));
                    }
                    if !driver.enable_calls(&mem).unwrap() {
                        driver_asleep = true;
                        prop_assert!(returned.is_empty());
                        break;
                    }
                },
                Step::Reap => {}
            }
            prop_assert_eq!(usize::from(driver.outstanding()), expected.len() - staged + held.len() + returned.len());
        }
    }
}

#[test]
fn driver_publishes_a_batch_with_one_store_of_the_index() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    let idx = |mem: &Mem| -> u16 { mem.read_obj(GuestAddress(layout.avail_idx())).unwrap() };
    for _ in 0..3 {
        driver.add_chain(&mem, &[writable(1)], None).unwrap();
        assert_eq!(u16::from_le(idx(&mem)), 0, "nothing is visible yet");
    }
    assert_eq!(driver.publish(&mem).unwrap(), 3);
    assert_eq!(u16::from_le(idx(&mem)), 3);
    assert_eq!(driver.publish(&mem).unwrap(), 0);
}

#[test]
fn driver_respects_the_flag_when_event_idx_is_off() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    let mut next = |flags: u16| {
        mem.write_obj(flags.to_le(), GuestAddress(layout.used_flags())).unwrap();
        driver.add_chain(&mem, &[writable(1)], None).unwrap();
        driver.publish(&mem).unwrap();
        driver.kick_needed(&mem).unwrap()
    };
    assert!(next(0));
    assert!(!next(1));
    assert!(next(0));
    driver.disable_calls(&mem).unwrap();
    let flags: u16 = mem.read_obj(GuestAddress(layout.avail_flags())).unwrap();
    assert_eq!(u16::from_le(flags), 1);
}

#[test]
fn driver_reports_a_bogus_used_id_until_the_reset() {
    let cases: [(u32, &str); 3] =
        [(3, "never a head"), (8, "outside the ring"), (0x1_0000, "beyond 16 bits")];
    for (id, why) in cases {
        let mem = memory();
        let layout = RingLayout::contiguous(8, RING).unwrap();
        let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
        assert_eq!(driver.add_chain(&mem, &[writable(4)], None).unwrap(), 0);
        driver.publish(&mem).unwrap();
        publish_used(&mem, &layout, 0, id, 0);
        let fault = DeviceFault::NotAHead { index: 0, id };
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
fn driver_reports_a_second_completion_of_the_same_chain() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    let a = driver.add_chain(&mem, &[writable(4)], None).unwrap();
    driver.add_chain(&mem, &[writable(4)], None).unwrap();
    driver.publish(&mem).unwrap();
    publish_used(&mem, &layout, 0, u32::from(a), 4);
    assert_eq!(driver.reap(&mem).unwrap().unwrap().head, a);
    publish_used(&mem, &layout, 1, u32::from(a), 4);
    let fault = DeviceFault::NotAHead { index: 1, id: u32::from(a) };
    assert_eq!(driver.reap(&mem), Err(fault.into()));
}

#[test]
fn driver_reports_a_chain_completed_before_it_was_published() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    driver.add_chain(&mem, &[writable(4)], None).unwrap();
    driver.publish(&mem).unwrap();
    let staged = driver.add_chain(&mem, &[writable(4)], None).unwrap();
    publish_used(&mem, &layout, 0, u32::from(staged), 4);
    assert!(matches!(
        driver.reap(&mem),
        Err(DriverError::DeviceMisbehaved(DeviceFault::NotAHead { .. }))
    ));
}

#[test]
fn driver_reports_a_used_index_that_ran_ahead() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    let head = driver.add_chain(&mem, &[writable(4)], None).unwrap();
    driver.publish(&mem).unwrap();
    publish_used(&mem, &layout, 0, u32::from(head), 0);
    publish_used(&mem, &layout, 1, u32::from(head), 0);
    let fault = DeviceFault::UsedAhead { used: 2, reaped: 0, outstanding: 1 };
    assert_eq!(driver.reap(&mem), Err(fault.into()));

    // An index that went back is one that is 65535 ahead.
    driver.reset(&mem).unwrap();
    mem.write_obj(0xffffu16, GuestAddress(layout.used_idx())).unwrap();
    assert!(matches!(
        driver.reap(&mem),
        Err(DriverError::DeviceMisbehaved(DeviceFault::UsedAhead { outstanding: 0, .. }))
    ));
}

#[test]
fn driver_reports_more_bytes_than_the_chain_can_take() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    for indirect in [None, Some(Indirect { table: TABLES, direct: 0 })] {
        let mut driver = SplitDriver::start(&mem, layout, features).unwrap();
        let read = Buffer { writable: false, ..writable(100) };
        let head = driver.add_chain(&mem, &[read, writable(10)], indirect).unwrap();
        driver.publish(&mem).unwrap();
        publish_used(&mem, &layout, 0, u32::from(head), 11);
        let fault = DeviceFault::LenTooLong { head, len: 11, writable: 10 };
        assert_eq!(driver.reap(&mem), Err(fault.into()));
    }
}

#[test]
fn driver_refuses_illegal_chains_and_changes_nothing() {
    let mem = memory();
    let layout = RingLayout::contiguous(4, RING).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    let read = Buffer { writable: false, ..writable(1) };
    let table = Some(Indirect { table: TABLES, direct: 0 });
    let far = Buffer { addr: u64::MAX, ..writable(2) };
    let cases: [(&[Buffer], Option<Indirect>, DriverMisuse); 5] = [
        (&[], None, DriverMisuse::EmptyBuffer),
        (&[writable(0)], None, DriverMisuse::EmptyBuffer),
        (&[writable(1), read], None, DriverMisuse::ReadableAfterWritable),
        (&[far], None, DriverMisuse::BufferOverflow { addr: u64::MAX, len: 2 }),
        (&[writable(1)], table, DriverMisuse::IndirectNotNegotiated),
    ];
    for (buffers, indirect, misuse) in cases {
        assert_eq!(driver.add_chain(&mem, buffers, indirect), Err(misuse.into()));
    }
    assert_eq!(
        driver.add_chain(&mem, &[writable(1); 5], None),
        Err(DriverError::RingFull { needed: 5, free: 4 })
    );
    assert_eq!(driver.free_descriptors(), 4);
    assert_eq!(driver.publish(&mem).unwrap(), 0);
}

#[test]
fn driver_attaches_to_chains_that_another_driver_left() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, RING).unwrap();
    let features = RingFeatures { indirect: true, ..RingFeatures::default() };
    let mut old = SplitDriver::start(&mem, layout, features).unwrap();
    let a = old.add_chain(&mem, &[writable(4); 2], None).unwrap();
    let table = Indirect { table: TABLES, direct: 1 };
    let b = old.add_chain(&mem, &[writable(4), writable(60), writable(6)], Some(table)).unwrap();
    let c = old.add_chain(&mem, &[writable(4)], None).unwrap();
    old.publish(&mem).unwrap();
    publish_used(&mem, &layout, 0, u32::from(a), 0);
    old.reap(&mem).unwrap().unwrap();
    publish_used(&mem, &layout, 1, u32::from(c), 4);
    drop(old);

    assert_eq!(
        SplitDriver::attach(&mem, layout, features, 1, &[b]).unwrap_err(),
        DriverMisuse::OutstandingCount { expected: 2, got: 1 }.into()
    );
    for wrong in [[b, b], [b, 8]] {
        assert!(matches!(
            SplitDriver::attach(&mem, layout, features, 1, &wrong).unwrap_err(),
            DriverError::ApiMisuse(DriverMisuse::BadOutstanding { .. })
        ));
    }
    let mut new = SplitDriver::attach(&mem, layout, features, 1, &[b, c]).unwrap();
    assert_eq!((new.outstanding(), new.free_descriptors()), (2, 5));
    assert_eq!(new.reap(&mem).unwrap().unwrap().head, c);
    assert_eq!(new.free_descriptors(), 6);
    publish_used(&mem, &layout, 2, u32::from(b), 70);
    assert_eq!(new.reap(&mem).unwrap().unwrap().len, 70);
    assert_eq!((new.outstanding(), new.free_descriptors()), (0, 8));
}

#[test]
fn driver_in_order_takes_a_batch_with_one_used_element() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, 0x1000).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    driver.expect_in_order().unwrap();
    let mut used = 0u16;
    for round in 0..20 {
        let mut add = |len| driver.add_chain(&mem, &[writable(len)], None).unwrap();
        let heads = [add(10), add(20), add(30), add(40)];
        driver.publish(&mem).unwrap();
        // One element for three chains: all but the last count as written whole.
        publish_used(&mem, &layout, used, u32::from(heads[2]), 7);
        mem.write_obj(used.wrapping_add(3), GuestAddress(layout.used_idx())).unwrap();
        let mut reap = || driver.reap(&mem).unwrap().map(|used| (used.head, used.len));
        for (head, len) in [(heads[0], 10), (heads[1], 20), (heads[2], 7)] {
            assert_eq!(reap(), Some((head, len)), "round {round}");
        }
        assert_eq!(reap(), None);
        used = used.wrapping_add(3);
        publish_used(&mem, &layout, used, u32::from(heads[3]), 40);
        used = used.wrapping_add(1);
        assert_eq!(reap(), Some((heads[3], 40)));
        assert_eq!(driver.outstanding(), 0);
    }
}

#[test]
fn driver_in_order_reports_a_chain_that_comes_before_its_turn() {
    let mem = memory();
    let layout = RingLayout::contiguous(8, 0x1000).unwrap();
    let mut driver = SplitDriver::start(&mem, layout, RingFeatures::default()).unwrap();
    driver.expect_in_order().unwrap();
    let first = driver.add_chain(&mem, &[writable(10)], None).unwrap();
    assert!(driver.expect_in_order().is_err(), "too late to begin with it");
    let second = driver.add_chain(&mem, &[writable(10)], None).unwrap();
    driver.publish(&mem).unwrap();
    publish_used(&mem, &layout, 0, u32::from(second), 10);
    let fault = driver.reap(&mem).unwrap_err().to_string();
    assert_eq!(
        fault,
        format!("device misbehaved: used entry 0: id {second} before its turn, expected {first}")
    );
    // The reset keeps what was agreed on.
    driver.reset(&mem).unwrap();
    let a = driver.add_chain(&mem, &[writable(10)], None).unwrap();
    let b = driver.add_chain(&mem, &[writable(10)], None).unwrap();
    driver.publish(&mem).unwrap();
    publish_used(&mem, &layout, 0, u32::from(b), 10);
    assert!(driver.reap(&mem).is_err(), "{a} comes first");
}
