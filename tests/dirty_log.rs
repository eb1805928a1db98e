//! Which pages are logged, and when: every store of the back-end to guest
//! memory is on record, and so is every bit it sets in a log.

mod common;

use common::{
    FEATURES, GUEST_BYTES, RING, Rig, packed_addr, packed_layout, ring_features, ring_layout,
    slot_base, vring_addr,
};
use midflight::Handle;
use midflight::backend::{CloseReason, Event, Input, SuspendPolicy};
use midflight::blk::{Completion, DeviceConfig, DiskError, DiskOp};
use midflight::driver::{BlkDriver, BlkOp, BlkRequest, Framing, RequestBuffers, Span};
use midflight::time::Duration;
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    Dialect, FrontendReplyBody as Body, FrontendRequest as R, LogBase, LogDescription, VringAddr,
};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use vm_memory::bitmap::{Bitmap, BitmapSlice, NewBitmap, WithBitmapSlice};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
/// Bytes of a log for all of guest memory.
const LOG_SIZE: u64 = GUEST_BYTES / PAGE / 8;

thread_local! {
    static NEXT: Cell<u32> = const { Cell::new(0) };
    static STORES: RefCell<Vec<(u32, u64, u64)>> = const { RefCell::new(Vec::new()) };
}

/// Sees every store to one memory; memories count from 0 in the order they are
/// made: guest memory, inflight region, logs.
#[derive(Clone, Copy, Debug, Default)]
struct Witness {
    memory: u32,
    base: usize,
}

impl NewBitmap for Witness {
    fn with_len(_len: usize) -> Self {
        Self { memory: NEXT.replace(NEXT.get() + 1), base: 0 }
    }
}

impl WithBitmapSlice<'_> for Witness {
    type S = Self;
}

impl BitmapSlice for Witness {}

impl Bitmap for Witness {
    fn mark_dirty(&self, offset: usize, len: usize) {
        let store = (self.memory, (self.base + offset) as u64, len as u64);
        STORES.with_borrow_mut(|stores| stores.push(store));
    }

    fn dirty_at(&self, _offset: usize) -> bool {
        false
    }

    fn slice_at(&self, offset: usize) -> Self {
        Self { base: self.base + offset, ..*self }
    }
}

type Seen = GuestMemoryMmap<Witness>;
type SeenRig = Rig<Seen>;

const GUEST: u32 = 0;

/// What was stored since the last call: guest pages, or bits of a log.
fn stores() -> Vec<(u32, u64, u64)> {
    STORES.with_borrow_mut(std::mem::take)
}

fn config() -> DeviceConfig {
    DeviceConfig {
        serial: *b"a serial number     ",
        num_queues: 2,
        ..DeviceConfig::with_capacity(1 << 20)
    }
}

fn rig() -> (SeenRig, BlkDriver) {
    NEXT.set(0);
    let policy = SuspendPolicy { grace: Duration::ZERO, dialect: Dialect::QEMU_11_1 };
    let mut rig = Rig::with(config(), Some(policy));
    let driver = rig.run();
    (rig, driver)
}

/// SET_LOG_BASE; the answer.
fn set_log(rig: &mut SeenRig, size: u64) -> Option<Body<Handle>> {
    let handle = rig.handle();
    let base = LogBase::Shared(LogDescription { size, offset: 0 }, handle);
    rig.send(R::SetLogBase(base), false)
}

fn addr(flags: u32) -> VringAddr {
    VringAddr { flags, log: ring_layout(0).used, ..vring_addr(0) }
}

/// As QEMU begins to migrate.
fn log_on(rig: &mut SeenRig) {
    assert_eq!(set_log(rig, LOG_SIZE), Some(Body::U64(0)));
    rig.ok(R::SetFeatures(FEATURES | virtio::LOG_ALL));
    rig.ok(R::SetVringAddr(addr(1)));
}

/// Pages that a log has, from its memory.
fn pages(log: &Seen) -> BTreeSet<u64> {
    let mut bytes = vec![0u8; LOG_SIZE as usize];
    log.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let set = |page: u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
    (0..8 * LOG_SIZE).filter(|page| set(*page)).collect()
}

fn clear(log: &Seen) {
    log.write_slice(&[0; LOG_SIZE as usize], GuestAddress(0)).unwrap();
    stores();
}

/// Data in page 0x100 + 4 n and the one behind it, status in a page of its own.
fn put(rig: &SeenRig, driver: &mut BlkDriver, slot: u64, op: BlkOp<'_>, len: u32) -> [u64; 3] {
    let base = slot_base(slot);
    let data = [Span { addr: base + PAGE - 512, len }];
    let buffers = RequestBuffers {
        header: base,
        data: if len == 0 { &[] } else { &data },
        status: base + 3 * PAGE - 1,
        table: None,
    };
    let request = BlkRequest { op, token: slot };
    driver.submit(&rig.guest, &request, &buffers, &Framing::CLASSIC).unwrap();
    driver.publish(&rig.guest).unwrap();
    let page = base / PAGE;
    [page, page + 1, page + 2]
}

fn used_pages() -> BTreeSet<u64> {
    let used = ring_layout(0).used;
    (used / PAGE..=(used + 5 + 8 * u64::from(RING)) / PAGE).collect()
}

#[test]
fn dirty_read_logs_data_status_and_used_ring_and_write_logs_no_data() {
    let (mut rig, mut driver) = rig();
    log_on(&mut rig);
    let log = rig.log.clone().unwrap();
    for (slot, op, len, data) in [
        (0, BlkOp::In { sector: 0 }, 1024, true),
        (1, BlkOp::Out { sector: 2 }, 1024, false),
        (2, BlkOp::Flush, 0, false),
        (3, BlkOp::GetId, 20, true),
    ] {
        clear(&log);
        let [first, second, status] = put(&rig, &mut driver, slot, op, len);
        rig.kick(0);
        rig.finish_all();
        let mut expected = used_pages();
        expected.insert(status);
        if data {
            expected.insert(first);
        }
        if data && len == 1024 {
            expected.insert(second);
        }
        assert_eq!(pages(&log), expected, "slot {slot}");
    }
}

#[test]
fn dirty_pages_are_logged_before_the_used_index_is_stored_and_its_own_right_after() {
    let (mut rig, mut driver) = rig();
    log_on(&mut rig);
    let log = rig.log.clone().unwrap();
    let [first, second, status] = put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    let id = rig.at_disk.remove(0);
    let done = rig.execute(id);
    clear(&log);
    rig.input(Input::DiskDone(&[done]));
    let all = stores();
    let used = ring_layout(0).used;
    let of_log = 2;
    let at = |memory, range: std::ops::Range<u64>| {
        let mut found = all.iter().enumerate();
        let found = found.find(|(_, s)| s.0 == memory && range.contains(&s.1));
        found.unwrap_or_else(|| panic!("no store at {range:?} of {memory}: {all:?}")).0
    };
    let last = |byte: u64| all.iter().rposition(|s| s.0 == of_log && s.1 == byte).unwrap();
    let index = at(GUEST, used + 2..used + 3);
    let element = at(GUEST, used + 4..used + 12);
    let status_store = at(GUEST, status * PAGE..(status + 1) * PAGE);
    // Data was written by the disk before; status and element come first and
    // are logged when they are stored, the index last.
    for page in [first, second] {
        assert!(at(of_log, page / 8..page / 8 + 1) < index);
    }
    assert!(status_store < index && element < index);
    let ring_byte = used / PAGE / 8;
    assert!(all[element + 1..index].iter().any(|s| (s.0, s.1) == (of_log, ring_byte)));
    assert!(all[status_store + 1..index].iter().any(|s| (s.0, s.1) == (of_log, status / 8)));
    assert!(last(ring_byte) > index);
    // Nothing else of guest memory is stored unlogged.
    for (i, store) in all.iter().enumerate().filter(|(_, s)| s.0 == GUEST) {
        let byte = store.1 / PAGE / 8;
        assert!(all[i + 1..].iter().any(|s| (s.0, s.1) == (of_log, byte)), "{store:x?}");
    }
}

#[test]
fn dirty_nothing_is_logged_without_the_feature_and_no_ring_without_its_flag() {
    let (mut rig, mut driver) = rig();
    assert_eq!(set_log(&mut rig, LOG_SIZE), Some(Body::U64(0)));
    assert!(rig.events.contains(&Event::LogMapped { size: LOG_SIZE }));
    let log = rig.log.clone().unwrap();
    put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(pages(&log), BTreeSet::new());
    // The feature alone: data and status.
    rig.ok(R::SetFeatures(FEATURES | virtio::LOG_ALL));
    let three = put(&rig, &mut driver, 1, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(pages(&log), BTreeSet::from(three));
    // And off again, as after a migration that was cancelled, without a stop.
    rig.ok(R::SetFeatures(FEATURES));
    rig.ok(R::SetVringAddr(addr(0)));
    clear(&log);
    put(&rig, &mut driver, 2, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(pages(&log), BTreeSet::new());
    assert!(!rig.events.iter().any(|e| matches!(e, Event::VringStopped { .. })));
}

#[test]
fn dirty_log_replaced_while_running_gets_what_was_in_flight() {
    let (mut rig, mut driver) = rig();
    log_on(&mut rig);
    let old = rig.log.clone().unwrap();
    let three = put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    let before = pages(&old);
    assert_eq!(set_log(&mut rig, LOG_SIZE), Some(Body::U64(0)));
    let new = rig.log.clone().unwrap();
    rig.finish_all();
    assert_eq!(pages(&old), before, "not written any more");
    let mut expected = used_pages();
    expected.extend(three);
    assert_eq!(pages(&new), expected);
    assert!(rig.live.len() < 20, "the descriptors are given back");
}

#[test]
fn dirty_log_shorter_than_memory_is_filled_as_far_as_it_goes() {
    let (mut rig, mut driver) = rig();
    assert_eq!(set_log(&mut rig, 32), Some(Body::U64(0)));
    rig.ok(R::SetFeatures(FEATURES | virtio::LOG_ALL));
    put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    rig.finish_all();
    // Page 0x100 would be in byte 32.
    assert_eq!(pages(rig.log.as_ref().unwrap()), BTreeSet::new());
}

#[test]
fn dirty_log_that_cannot_be_mapped_or_was_not_agreed_on_costs_the_connection() {
    let (mut rig, _driver) = rig();
    rig.refuse_map = Some("file of 0 bytes".into());
    assert_eq!(set_log(&mut rig, LOG_SIZE), None);
    match &rig.closed {
        Some(CloseReason::FrontendMisbehaved(fault)) => {
            assert_eq!(fault.to_string(), "SET_LOG_BASE cannot be mapped: file of 0 bytes");
        }
        other => panic!("{other:?}"),
    }
    let (mut rig, _driver) = self::rig();
    let offered = rig.backend.offered_protocol_features();
    rig.send(R::SetProtocolFeatures(offered & !protocol::LOG_SHMFD), false);
    assert_eq!(set_log(&mut rig, LOG_SIZE), None);
    assert!(matches!(rig.closed, Some(CloseReason::FrontendMisbehaved(_))));
    assert!(rig.live.is_empty());
}

#[test]
fn dirty_log_event_descriptor_is_taken_and_given_back() {
    let (mut rig, _driver) = rig();
    let handle = rig.handle();
    rig.ok(R::SetLogFd(handle));
    assert!(!rig.live.contains(&handle));
}

#[test]
fn dirty_ring_that_starts_with_logging_on_is_logged_whole() {
    let (mut rig, mut driver) = rig();
    put(&rig, &mut driver, 0, BlkOp::Flush, 0);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(rig.get_base(0), Some(1));
    assert_eq!(set_log(&mut rig, LOG_SIZE), Some(Body::U64(0)));
    let log = rig.log.clone().unwrap();
    rig.ok(R::SetFeatures(FEATURES | virtio::LOG_ALL));
    rig.ok(R::SetVringAddr(addr(1)));
    rig.set_inflight();
    rig.ok(R::SetVringKick(midflight::wire::VringFile { index: 0, handle: None }));
    assert_eq!(pages(&log), used_pages());
}

#[test]
fn dirty_suspended_reads_are_logged_and_nothing_is_after_the_stop() {
    let (mut rig, mut driver) = rig();
    log_on(&mut rig);
    let log = rig.log.clone().unwrap();
    let [first, second, status] = put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
    rig.kick(0);
    clear(&log);
    assert_eq!(rig.get_base(0), None);
    let id = rig.cancelled[0];
    assert!(matches!(rig.backend.request(id).unwrap().op, DiskOp::Read { .. }));
    // It may have been cancelled half way.
    rig.input(Input::DiskDone(&[Completion { id, result: Err(DiskError::Cancelled) }]));
    assert_eq!(pages(&log), BTreeSet::from([first, second]));
    assert!(!pages(&log).contains(&status));
    // The vring is stopped: no store at all, neither to memory nor to the log.
    stores();
    rig.kick(0);
    rig.input(Input::DiskDone(&[Completion { id, result: Ok(()) }]));
    rig.input(Input::Timeout);
    rig.ok(R::SetVringAddr(addr(0)));
    rig.ok(R::SetFeatures(FEATURES));
    rig.input(Input::PeerClosed);
    assert_eq!(stores(), []);
}

#[test]
fn dirty_flags_of_a_ring_without_event_index_are_logged() {
    NEXT.set(0);
    let mut rig: SeenRig = Rig::with(config(), None);
    let features = FEATURES & !virtio::EVENT_IDX;
    rig.negotiate(features);
    rig.get_inflight(1, RING);
    rig.add_memory();
    let ring = midflight::driver::RingFeatures { event_idx: false, ..ring_features() };
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring).unwrap();
    rig.set_inflight();
    rig.start_vring(0, 0);
    assert_eq!(set_log(&mut rig, LOG_SIZE), Some(Body::U64(0)));
    rig.ok(R::SetFeatures(features | virtio::LOG_ALL));
    rig.ok(R::SetVringAddr(addr(1)));
    let log = rig.log.clone().unwrap();
    clear(&log);
    put(&rig, &mut driver, 0, BlkOp::Flush, 0);
    stores();
    rig.kick(0);
    let used = ring_layout(0).used;
    let flags = stores().iter().filter(|s| **s == (GUEST, used, 2)).count();
    assert_eq!(flags, 2, "kicks were switched off and on");
    assert_eq!(pages(&log), BTreeSet::from([used / PAGE]));
}

/// The deliberate mistakes are mistakes.
#[cfg(feature = "bugs")]
#[test]
fn dirty_mistakes_leave_pages_out_or_log_them_late() {
    use midflight::bugs::{Bug, set};
    for bug in [Bug::UsedRingNotLogged, Bug::StatusNotLogged, Bug::LogAfterPublish] {
        let (mut rig, mut driver) = rig();
        log_on(&mut rig);
        let log = rig.log.clone().unwrap();
        let [first, second, status] = put(&rig, &mut driver, 0, BlkOp::In { sector: 0 }, 1024);
        rig.kick(0);
        let done = rig.execute(rig.at_disk[0]);
        clear(&log);
        set(Some(bug));
        rig.input(Input::DiskDone(&[done]));
        set(None);
        let mut expected = used_pages();
        expected.extend([first, second, status]);
        match bug {
            Bug::UsedRingNotLogged => expected = BTreeSet::from([first, second, status]),
            Bug::StatusNotLogged => assert!(expected.remove(&status)),
            _ => {
                let all = stores();
                let index = all.iter().position(|s| s.0 == GUEST && s.2 == 2).unwrap();
                assert!(!all[..index].iter().any(|s| s.0 == 2), "logged too early: {all:?}");
            }
        }
        assert_eq!(pages(&log), expected, "{bug:?}");
    }
}

#[test]
fn dirty_packed_ring_is_logged_by_its_own_address_and_event_area_by_the_log_address() {
    const SIZE: u16 = 600;
    NEXT.set(0);
    let mut rig: SeenRig = Rig::with(DeviceConfig { packed: true, ..config() }, None);
    let mut driver = rig.run_packed(SIZE);
    assert_eq!(set_log(&mut rig, LOG_SIZE), Some(Body::U64(0)));
    rig.ok(R::SetFeatures(FEATURES | virtio::RING_PACKED | virtio::LOG_ALL));
    let layout = packed_layout(SIZE);
    // As QEMU says it: where the device event area is. Here it is another page,
    // to see that it is believed.
    const SAID: u64 = 0x3f_0000;
    rig.ok(R::SetVringAddr(VringAddr { flags: 1, log: SAID, ..packed_addr(SIZE) }));
    let log = rig.log.clone().unwrap();
    // Both pages of the ring, one after the other.
    for slot in 0..200 {
        clear(&log);
        let three = put(&rig, &mut driver, slot % 4, BlkOp::In { sector: 0 }, 1024);
        put(&rig, &mut driver, slot % 4, BlkOp::In { sector: 0 }, 1024);
        rig.kick(0);
        let first = (layout.desc + 16 * (6 * slot % u64::from(SIZE))) / PAGE;
        let second = (layout.desc + 16 * ((6 * slot + 3) % u64::from(SIZE))) / PAGE;
        let done: Vec<_> = rig.at_disk.drain(..).collect::<Vec<_>>();
        let done: Vec<_> = done.into_iter().map(|id| rig.execute(id)).collect();
        stores();
        rig.input(Input::DiskDone(&done));
        let all = stores();
        let expected: BTreeSet<u64> =
            three.into_iter().chain([first, second, SAID / PAGE]).collect();
        assert_eq!(pages(&log), expected, "slot {slot}");
        // Both used descriptors are stores of the ring; the first one is the
        // last of them, and after it comes nothing but its own mark.
        let ring = layout.desc..layout.desc + 16 * u64::from(SIZE);
        let used: Vec<_> =
            (0..).zip(&all).filter(|(_, s)| s.0 == GUEST && ring.contains(&s.1)).collect();
        assert_eq!(used.len(), 2, "{all:x?}");
        assert_eq!(used[1].1.1, ring.start + 16 * (6 * slot % u64::from(SIZE)) + 8);
        let published: usize = used[1].0;
        assert!(all[published + 1..].iter().any(|s| (s.0, s.1) == (2, first / 8)));
        for (i, store) in all.iter().enumerate().filter(|(_, s)| s.0 == GUEST) {
            let byte = store.1 / PAGE / 8;
            assert!(all[i + 1..].iter().any(|s| (s.0, s.1) == (2, byte)), "{store:x?}");
        }
        while driver.reap(&rig.guest).unwrap().is_some() {}
    }
    // A ring that starts with logging on is logged whole.
    clear(&log);
    let base = rig.get_base32(0).unwrap();
    rig.set_inflight();
    rig.start_vring_at(SIZE, base, VringAddr { flags: 1, log: SAID, ..packed_addr(SIZE) });
    let end = layout.desc + 16 * u64::from(SIZE) - 1;
    let expected = (layout.desc / PAGE..=end / PAGE).chain([SAID / PAGE]).collect();
    assert_eq!(pages(&log), expected);
}
