//! Stops that suspend: what is finished, what is cancelled, what is left in the
//! region, and that nothing is touched after the answer.

mod common;

use common::{
    FEATURES, RING, Rig, guest_region, ring_features, ring_layout, submit, vring_addr, write,
};
use midflight::backend::{CloseReason, Event, Input, SuspendPolicy, TimerKind};
use midflight::blk::{Completion, DeviceConfig, DiskError, ReqId};
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing};
use midflight::time::Duration;
use midflight::wire::{Dialect, FrontendRequest as R, VringState};
use vm_memory::{Bytes, GuestAddress};

const GRACE: Duration = Duration::from_millis(5);
/// Offsets in a vring's part of the region.
const USED_IDX: u64 = 14;

fn entry(head: u16) -> u64 {
    16 + 16 * u64::from(head)
}

fn policy(dialect: Dialect, grace: Duration) -> Option<SuspendPolicy> {
    Some(SuspendPolicy { grace, dialect })
}

fn config() -> DeviceConfig {
    DeviceConfig { num_queues: 2, ..DeviceConfig::with_capacity(1 << 20) }
}

fn rig(dialect: Dialect) -> (Rig, BlkDriver) {
    let mut rig = Rig::with(config(), policy(dialect, GRACE));
    let driver = rig.run();
    (rig, driver)
}

/// Tokens of what was used, by number.
fn reaped(rig: &Rig, driver: &mut BlkDriver) -> Vec<u64> {
    let mut tokens = common::reaped(rig, driver);
    tokens.sort_unstable();
    tokens
}

fn done(rig: &mut Rig, ids: &[ReqId]) {
    let done: Vec<_> = ids.iter().map(|id| rig.execute(*id)).collect();
    rig.at_disk.retain(|id| !ids.contains(id));
    rig.input(Input::DiskDone(&done));
}

fn cancelled(ids: &[ReqId]) -> Vec<Completion> {
    ids.iter().map(|&id| Completion { id, result: Err(DiskError::Cancelled) }).collect()
}

/// The grace is over.
fn time_is_up(rig: &mut Rig) {
    let (at, kind) = rig.backend.poll_timeout().expect("a timer");
    assert_eq!(kind, TimerKind::SuspendGrace);
    rig.now = at;
    rig.input(Input::Timeout);
}

/// Heads in flight by the region, and its used index.
fn region(rig: &Rig) -> (Vec<u16>, u16) {
    let region = rig.region.as_ref().unwrap();
    let flag = |head| region.read_obj::<u8>(GuestAddress(entry(head))).unwrap();
    let heads = (0..RING).filter(|head| flag(*head) == 1).collect();
    (heads, region.read_obj(GuestAddress(USED_IDX)).unwrap())
}

fn used_idx(rig: &Rig) -> u16 {
    rig.guest.read_obj(GuestAddress(ring_layout(0).used + 2)).unwrap()
}

fn base_reply(rig: &Rig) -> Option<u32> {
    match rig.replies.last().map(|r| &r.body) {
        Some(midflight::wire::FrontendReplyBody::VringState(state)) => Some(state.num),
        _ => None,
    }
}

/// Invariants 1 and 2 of a suspended vring: the region has exactly `live`, the
/// batch is closed, and the base counts them.
#[track_caller]
fn check_suspended(rig: &Rig, used: u16, live: usize) {
    let (heads, region_used) = region(rig);
    assert_eq!((heads.len(), region_used, used_idx(rig)), (live, used, used));
    assert_eq!(base_reply(rig), Some(u32::from(used) + live as u32));
    assert_eq!(rig.backend.requests_in_flight(), 0);
}

#[test]
fn suspend_cancels_what_the_grace_did_not_finish_and_answers_when_all_is_known() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..8);
    let ids = rig.at_disk.clone();
    assert_eq!(rig.get_base(0), None);
    assert!(rig.events.contains(&Event::Suspending { vring: 0, inflight: 8 }));
    // Within the grace they finish as ever.
    done(&mut rig, &ids[..2]);
    assert_eq!(reaped(&rig, &mut driver), [0, 1]);
    assert!(rig.cancelled.is_empty());
    time_is_up(&mut rig);
    assert_eq!(rig.cancelled, ids[2..]);
    assert_eq!(rig.backend.poll_timeout(), None, "cancelled once");
    // Finished in spite of it: published. Cancelled: not. No answer before the last.
    done(&mut rig, &ids[2..4]);
    rig.input(Input::DiskDone(&cancelled(&ids[4..7])));
    assert_eq!(reaped(&rig, &mut driver), [2, 3]);
    assert_eq!((base_reply(&rig), rig.store), (None, true));
    rig.input(Input::DiskDone(&cancelled(&ids[7..])));
    check_suspended(&rig, 4, 4);
    assert!(!rig.store, "another host may have it now");
    assert!(rig.events.contains(&Event::Suspended { vring: 0, inflight: 4 }));
    assert!(rig.events.contains(&Event::VringStopped { vring: 0, base: 8 }));
    assert!(reaped(&rig, &mut driver).is_empty());
}

#[test]
fn suspend_with_nothing_in_flight_answers_at_once() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..3);
    rig.finish_all();
    assert_eq!(rig.get_base(0), Some(3));
    check_suspended(&rig, 3, 0);
    assert!(rig.cancelled.is_empty());
}

#[test]
fn suspend_that_finishes_within_the_grace_is_a_drain() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..5);
    assert_eq!(rig.get_base(0), None);
    rig.finish_all();
    check_suspended(&rig, 5, 0);
    assert!(rig.cancelled.is_empty() && rig.backend.poll_timeout().is_none());
}

#[test]
fn suspend_without_grace_cancels_at_once() {
    let mut rig = Rig::with(config(), policy(Dialect::QEMU_11_1, Duration::ZERO));
    let mut driver = rig.run();
    write(&mut rig, &mut driver, 0..5);
    assert_eq!(rig.get_base(0), None);
    let ids = rig.cancelled.clone();
    assert_eq!(ids.len(), 5);
    rig.input(Input::DiskDone(&cancelled(&ids)));
    check_suspended(&rig, 0, 5);
}

#[test]
fn suspend_resumes_in_the_order_of_fetching_before_anything_new() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..6);
    let ids = rig.at_disk.clone();
    rig.get_base(0);
    done(&mut rig, &[ids[1], ids[3]]);
    time_is_up(&mut rig);
    let left = rig.cancelled.clone();
    rig.input(Input::DiskDone(&cancelled(&left)));
    check_suspended(&rig, 2, 4);
    rig.at_disk.clear();
    // Two more while it is stopped; then the same front-end goes on.
    write(&mut rig, &mut driver, 6..8);
    assert!(rig.at_disk.is_empty());
    rig.set_inflight();
    rig.start_vring(0, 6);
    let heads: Vec<u64> =
        rig.at_disk.iter().map(|id| sector(rig.backend.request(*id).unwrap().op)).collect();
    assert_eq!(heads, [0, 2, 4, 5, 6, 7]);
    assert!(!rig.events.iter().any(|e| matches!(e, Event::BaseContradicted { .. })));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(region(&rig), (vec![], 8));
}

fn sector(op: midflight::blk::DiskOp) -> u64 {
    match op {
        midflight::blk::DiskOp::Write { offset, .. } => offset / 512,
        other => panic!("{other:?}"),
    }
}

#[test]
fn suspend_of_one_vring_leaves_the_other_serving() {
    let mut rig: Rig = Rig::with(config(), policy(Dialect::QEMU_11_1, GRACE));
    rig.negotiate(FEATURES);
    rig.get_inflight(2, RING);
    rig.add_memory();
    let mut drivers =
        [0, 1].map(|q| BlkDriver::start(&rig.guest, ring_layout(q), ring_features()).unwrap());
    rig.set_inflight();
    rig.start_vring(0, 0);
    rig.start_vring(1, 0);
    write(&mut rig, &mut drivers[0], 0..4);
    rig.get_base(0);
    time_is_up(&mut rig);
    // While vring 0 waits, vring 1 takes and completes.
    submit(&rig, &mut drivers[1], 20, BlkOp::Out { sector: 20 }, 512, &Framing::CLASSIC);
    drivers[1].publish(&rig.guest).unwrap();
    rig.kick(1);
    let id = *rig.at_disk.last().unwrap();
    assert!(!rig.cancelled.contains(&id));
    done(&mut rig, &[id]);
    assert_eq!(reaped(&rig, &mut drivers[1]), [20]);
    let left = rig.cancelled.clone();
    rig.input(Input::DiskDone(&cancelled(&left)));
    assert_eq!(base_reply(&rig), Some(4));
    assert!(rig.store, "vring 1 runs");
    // It goes on after vring 0 has stopped; its own stop has no grace left to
    // wait for once it has begun.
    submit(&rig, &mut drivers[1], 21, BlkOp::Out { sector: 21 }, 512, &Framing::CLASSIC);
    drivers[1].publish(&rig.guest).unwrap();
    rig.kick(1);
    rig.cancelled.clear();
    assert_eq!(rig.get_base(1), None);
    let left = rig.cancelled.clone();
    assert_eq!(left.len(), 1, "one grace for all vrings of a stop");
    rig.input(Input::DiskDone(&cancelled(&left)));
    assert_eq!((base_reply(&rig), rig.store), (Some(2), false));
}

#[test]
fn suspend_dialects_say_which_message_drains_and_which_suspends() {
    for (dialect, plain_suspends) in [
        (Dialect::QEMU_11_1, true),
        (Dialect::SKIP_DRAIN_45, false),
        (Dialect::SKIP_DRAIN_44, false),
        (Dialect::NUM_1, false),
    ] {
        let (mut rig, mut driver) = rig(dialect);
        write(&mut rig, &mut driver, 0..3);
        assert_eq!(rig.get_base(0), None, "{dialect}");
        let suspends = rig.events.contains(&Event::Suspending { vring: 0, inflight: 3 });
        let drains = rig.events.contains(&Event::Draining { vring: 0, inflight: 3 });
        assert_eq!((suspends, drains), (plain_suspends, !plain_suspends), "{dialect}");
        rig.finish_all();
        check_suspended(&rig, 3, 0);
        if plain_suspends {
            continue;
        }
        rig.set_inflight();
        rig.start_vring(0, 3);
        write(&mut rig, &mut driver, 3..5);
        assert_eq!(rig.skip_drain(0), None, "{dialect}");
        time_is_up(&mut rig);
        let left = rig.cancelled.clone();
        rig.input(Input::DiskDone(&cancelled(&left)));
        check_suspended(&rig, 3, 2);
    }
}

#[test]
fn suspend_needs_its_features_and_drains_without_them() {
    // Offered, not accepted: message 45 is refused, and a plain stop drains.
    for dialect in Dialect::ALL {
        let mut rig: Rig = Rig::with(config(), policy(dialect, GRACE));
        let needed = dialect.get_vring_base_inflight() | dialect.get_vring_base_skip_drain();
        let offered = rig.backend.offered_protocol_features();
        assert_eq!(offered & 0xf0_0000 & !dialect.gpa_addresses(), needed, "{dialect}");
        let mut driver = rig.run();
        rig.send(R::SetProtocolFeatures(offered & !needed), false);
        write(&mut rig, &mut driver, 0..2);
        if dialect != Dialect::QEMU_11_1 {
            assert_eq!(rig.skip_drain(0), None);
            assert!(matches!(rig.closed, Some(CloseReason::FrontendMisbehaved(_))), "{dialect}");
            continue;
        }
        rig.get_base(0);
        assert!(rig.events.contains(&Event::Draining { vring: 0, inflight: 2 }));
    }
    // No policy: not offered at all.
    let rig: Rig = Rig::with(config(), None);
    assert_eq!(rig.backend.offered_protocol_features() & 0xd0_0000, 0);
}

#[test]
fn suspend_of_a_vring_that_nobody_tracks_drains() {
    let mut rig: Rig = Rig::with(config(), policy(Dialect::QEMU_11_1, GRACE));
    rig.negotiate(FEATURES);
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    write(&mut rig, &mut driver, 0..2);
    assert_eq!(rig.get_base(0), None);
    assert!(rig.events.contains(&Event::Draining { vring: 0, inflight: 2 }));
    assert_eq!(rig.backend.poll_timeout(), None);
    rig.finish_all();
    assert_eq!(base_reply(&rig), Some(2));
}

#[test]
fn suspend_touches_nothing_after_the_answer() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..4);
    rig.get_base(0);
    time_is_up(&mut rig);
    let left = rig.cancelled.clone();
    rig.input(Input::DiskDone(&cancelled(&left)));
    let snapshot = |rig: &Rig| {
        let mut guest = vec![0u8; common::GUEST_BYTES as usize];
        rig.guest.read_slice(&mut guest, GuestAddress(0)).unwrap();
        let mut region = vec![0u8; 4096];
        rig.region.as_ref().unwrap().read_slice(&mut region, GuestAddress(0)).unwrap();
        (guest, region)
    };
    let before = snapshot(&rig);
    // Kicks, completions that are told twice, timers, the end of the connection.
    rig.kick(0);
    rig.input(Input::DiskDone(&cancelled(&left)));
    let twice: Vec<_> = left.iter().map(|&id| Completion { id, result: Ok(()) }).collect();
    rig.input(Input::DiskDone(&twice));
    rig.input(Input::Timeout);
    rig.input(Input::PeerClosed);
    assert!(snapshot(&rig) == before);
    assert!(rig.calls.is_empty() || reaped(&rig, &mut driver).is_empty());
}

#[test]
fn suspend_that_the_front_end_does_not_wait_for_ends_with_the_connection() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..4);
    rig.get_base(0);
    rig.input(Input::PeerClosed);
    assert!(!rig.backend.is_idle());
    assert_eq!(rig.backend.poll_timeout(), None);
    let ids = rig.at_disk.split_off(0);
    rig.input(Input::DiskDone(&cancelled(&ids)));
    assert!(rig.backend.is_idle() && rig.live.is_empty() && !rig.store);
    // All four are the next one's.
    assert_eq!(region(&rig).0.len(), 4);
}

#[test]
fn suspend_is_not_asked_of_a_disk_that_cancels_by_itself() {
    let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
    write(&mut rig, &mut driver, 0..1);
    rig.fail_all(DiskError::Cancelled);
    let done = driver.reap(&rig.guest).unwrap().unwrap();
    assert_eq!(done.status, BlkStatus::IoErr, "nobody asked, so it is an error like others");
}

/// Start with a region of the test's making on a ring with these indexes.
fn resume(used: u16, avail: u16, base: u16, change: impl FnOnce(&common::Memory)) -> Rig {
    let mut rig: Rig = Rig::with(config(), policy(Dialect::QEMU_11_1, GRACE));
    rig.negotiate(FEATURES);
    rig.get_inflight(1, RING);
    rig.add_memory();
    let layout = ring_layout(0);
    rig.guest.write_obj(used, GuestAddress(layout.used + 2)).unwrap();
    rig.guest.write_obj(avail, GuestAddress(layout.avail + 2)).unwrap();
    let region = rig.region.clone().unwrap();
    region.write_obj(1u16, GuestAddress(8)).unwrap();
    region.write_obj(RING, GuestAddress(10)).unwrap();
    region.write_obj(used, GuestAddress(USED_IDX)).unwrap();
    change(&region);
    rig.set_inflight();
    let index = 0;
    rig.ok(R::SetVringNum(VringState { index, num: u32::from(RING) }));
    rig.ok(R::SetVringBase(VringState { index, num: u32::from(base) }));
    rig.ok(R::SetVringAddr(vring_addr(0)));
    let file = midflight::wire::VringFile { index: 0, handle: None };
    rig.ok(R::SetVringKick(file));
    rig.send(R::SetVringEnable(VringState { index, num: 1 }), true);
    assert_eq!(guest_region().guest_addr, 0);
    rig
}

#[test]
fn resume_refuses_an_impossible_region_before_any_request_is_started() {
    let flag = |region: &common::Memory, head, value: u8, counter: u64| {
        region.write_obj(value, GuestAddress(entry(head))).unwrap();
        region.write_obj(counter, GuestAddress(entry(head) + 8)).unwrap();
    };
    type Change<'a> = &'a dyn Fn(&common::Memory);
    let cases: [(u16, u16, Change<'_>, &str); 5] = [
        (
            5,
            6,
            &|r| {
                flag(r, 0, 1, 0);
                flag(r, 1, 1, 1);
            },
            "has 2 requests in flight, the ring made 1 available",
        ),
        (5, 6, &|r| flag(r, 0, 3, 0), "has inflight 3 at head 0, expected 0 or 1"),
        (
            200,
            200,
            &|r| r.write_obj(3u16, GuestAddress(USED_IDX)).unwrap(),
            "has used_idx 3, the ring 200: 197 apart, expected at most 64",
        ),
        (
            5,
            5,
            &|r| {
                r.write_obj(3u16, GuestAddress(USED_IDX)).unwrap();
                r.write_obj(99u16, GuestAddress(12)).unwrap();
            },
            "links head 99, expected less than 64",
        ),
        (
            5,
            5,
            &|r| {
                r.write_obj(3u16, GuestAddress(USED_IDX)).unwrap();
                r.write_obj(7u16, GuestAddress(12)).unwrap();
                r.write_obj(7u16, GuestAddress(entry(7) + 6)).unwrap();
            },
            "links head 7 twice in one batch",
        ),
    ];
    for (used, avail, change, text) in cases {
        let mut before = vec![0u8; 4096];
        let mut copy = None;
        let rig = resume(used, avail, used, |region| {
            change(region);
            region.read_slice(&mut before, GuestAddress(0)).unwrap();
            copy = Some(region.clone());
        });
        assert!(rig.at_disk.is_empty() && rig.closed.is_none());
        match rig.events.last() {
            Some(Event::Refused(fault)) => {
                let fault = fault.to_string();
                assert!(fault.contains(text), "expected: {text}\n     got: {fault}");
            }
            other => panic!("{text}: {other:?}"),
        }
        // Left as it was, for a back-end that can make sense of it.
        let mut after = vec![0u8; 4096];
        copy.unwrap().read_slice(&mut after, GuestAddress(0)).unwrap();
        assert!(before == after, "{text}");
        assert!(!rig.store, "nothing was started");
    }
}

#[test]
fn resume_believes_the_region_whatever_the_base_and_reports_a_contradiction() {
    for (base, contradicted) in [(5, false), (7, false), (6, true), (0, true)] {
        let rig = resume(5, 7, base, |r| {
            for head in [0u16, 1] {
                r.write_obj(1u8, GuestAddress(entry(head))).unwrap();
                r.write_obj(u64::from(head), GuestAddress(entry(head) + 8)).unwrap();
            }
        });
        let told = Event::BaseContradicted { vring: 0, base: base.into(), used: 5, inflight: 2 };
        assert_eq!(rig.events.contains(&told), contradicted, "base {base}");
        let runs =
            Event::VringRunning { vring: 0, size: RING, next_avail: 7, used: 5, resubmitted: 2 };
        assert!(rig.events.contains(&runs), "base {base}: {:?}", rig.events);
    }
}

/// The deliberate mistakes are mistakes: each breaks what a test above checks.
#[cfg(feature = "bugs")]
mod mistakes {
    use super::*;
    use midflight::bugs::{Bug, set};
    use midflight::driver::BlkOp;

    fn two_in_flight(r: &common::Memory) {
        for head in [0u16, 1] {
            r.write_obj(1u8, GuestAddress(entry(head))).unwrap();
            r.write_obj(u64::from(head), GuestAddress(entry(head) + 8)).unwrap();
        }
    }

    fn next_avail(bug: Bug, base: u16) -> u16 {
        set(Some(bug));
        let rig = resume(5, 7, base, two_in_flight);
        set(None);
        let runs = rig.events.iter().find_map(|event| match event {
            Event::VringRunning { next_avail, .. } => Some(*next_avail),
            _ => None,
        });
        runs.expect("it runs")
    }

    #[test]
    fn mistakes_with_the_base_start_at_the_wrong_place() {
        assert_eq!(next_avail(Bug::BaseTrusted, 5), 5);
        assert_eq!(next_avail(Bug::BasePlusInflight, 7), 9);
    }

    #[test]
    fn mistake_of_an_early_answer_leaves_requests_at_the_disk() {
        let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
        write(&mut rig, &mut driver, 0..4);
        set(Some(Bug::ReplyBeforeCancelled));
        rig.get_base(0);
        time_is_up(&mut rig);
        set(None);
        assert_eq!((base_reply(&rig), rig.backend.requests_in_flight()), (Some(4), 4));
        // They come in the end, and nobody is confused by it.
        rig.finish_all();
        assert!(reaped(&rig, &mut driver).is_empty());
        assert_eq!(rig.backend.requests_in_flight(), 0);
    }

    #[test]
    fn mistake_of_a_late_region_writes_it_after_the_answer() {
        let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
        write(&mut rig, &mut driver, 0..4);
        set(Some(Bug::RegionAfterReply));
        rig.get_base(0);
        let ids = rig.at_disk.clone();
        done(&mut rig, &ids[..2]);
        time_is_up(&mut rig);
        let left = rig.cancelled.clone();
        rig.input(Input::DiskDone(&cancelled(&left)));
        assert_eq!(base_reply(&rig), Some(4));
        assert_eq!(region(&rig).0.len(), 4, "two of them are published");
        assert!(rig.backend.poll_timeout().is_some());
        rig.input(Input::Timeout);
        set(None);
        assert_eq!(region(&rig), (vec![rig_head(&rig, 2), rig_head(&rig, 3)], 2));
    }

    /// Head of the n-th entry of the available ring.
    fn rig_head(rig: &Rig, n: u64) -> u16 {
        rig.guest.read_obj(GuestAddress(ring_layout(0).avail + 4 + 2 * n)).unwrap()
    }

    #[test]
    fn mistake_of_fetching_first_changes_the_order() {
        let (mut rig, mut driver) = rig(Dialect::QEMU_11_1);
        write(&mut rig, &mut driver, 0..2);
        rig.get_base(0);
        time_is_up(&mut rig);
        let left = rig.cancelled.clone();
        rig.input(Input::DiskDone(&cancelled(&left)));
        rig.at_disk.clear();
        submit(&rig, &mut driver, 2, BlkOp::Out { sector: 2 }, 512, &Framing::CLASSIC);
        driver.publish(&rig.guest).unwrap();
        rig.set_inflight();
        set(Some(Bug::ResubmitAfterFetch));
        rig.start_vring(0, 2);
        set(None);
        let order: Vec<u64> =
            rig.at_disk.iter().map(|id| sector(rig.backend.request(*id).unwrap().op)).collect();
        assert_eq!(order, [2, 0, 1]);
    }
}
