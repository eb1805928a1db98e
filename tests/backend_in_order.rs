//! VIRTIO_F_IN_ORDER over a disk that finishes in any order, and
//! VIRTIO_F_RING_RESET.

mod common;

use common::{
    FEATURES, PACKED_START, RING, Rig, packed_addr, packed_layout, reaped, ring_features,
    ring_layout, submit, vring_addr, write,
};
use midflight::backend::{Input, SuspendPolicy, TimerKind};
use midflight::blk::{Completion, DeviceConfig, DiskError, ReqId};
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing, RingFeatures};
use midflight::time::Duration;
use midflight::wire::features::virtio;
use midflight::wire::{
    Dialect, FrontendReplyBody as Body, FrontendRequest as R, VringAddr, VringFile, VringState,
};
use vm_memory::{Bytes, GuestAddress};

const GRACE: Duration = Duration::from_millis(5);

fn config() -> DeviceConfig {
    DeviceConfig {
        num_queues: 2,
        packed: true,
        in_order: true,
        ring_reset: true,
        ..DeviceConfig::with_capacity(1 << 20)
    }
}

/// Vring 0 runs with what the features say beside the usual ones.
fn running(features: u64, suspend: bool) -> (Rig, BlkDriver) {
    let policy = SuspendPolicy { grace: GRACE, dialect: Dialect::QEMU_11_1 };
    let mut rig = Rig::with(config(), suspend.then_some(policy));
    rig.negotiate(FEATURES | features);
    rig.get_inflight(2, RING);
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    if features & virtio::IN_ORDER != 0 {
        // The driver breaks its ring if anything comes out of order.
        driver.ring_mut().expect_in_order().unwrap();
    }
    rig.set_inflight();
    rig.start_vring(0, 0);
    (rig, driver)
}

fn done(rig: &mut Rig, ids: &[ReqId]) {
    let done: Vec<_> = ids.iter().map(|id| rig.execute(*id)).collect();
    rig.at_disk.retain(|id| !ids.contains(id));
    rig.input(Input::DiskDone(&done));
}

/// Heads of vring 0 in flight by the region.
fn in_flight(rig: &Rig) -> usize {
    let region = rig.region.as_ref().unwrap();
    let flag = |head: u16| region.read_obj::<u8>(GuestAddress(16 + 16 * u64::from(head))).unwrap();
    (0..RING).filter(|head| flag(*head) == 1).count()
}

#[test]
fn in_order_is_offered_only_when_asked_for() {
    let plain = DeviceConfig::with_capacity(1 << 20);
    assert_eq!(plain.features() & (virtio::IN_ORDER | virtio::RING_RESET), 0);
    assert_eq!(config().features() & virtio::IN_ORDER, virtio::IN_ORDER);
    assert_eq!(config().features() & virtio::RING_RESET, virtio::RING_RESET);
}

#[test]
fn in_order_holds_back_what_finishes_before_its_turn() {
    let (mut rig, mut driver) = running(virtio::IN_ORDER, false);
    let mut next = 0;
    // Many rounds, so that indexes wrap and heads are used again, finished in an
    // order that differs each time.
    let mut state = 1u64;
    for round in 0..400 {
        let count = 1 + round % 13;
        write(&mut rig, &mut driver, next..next + count);
        let first = next;
        next = (next + count) % 64;
        if next + 13 > 64 {
            next = 0;
        }
        let mut seen = Vec::new();
        let mut finished = vec![false; count as usize];
        let all = rig.at_disk.clone();
        while !rig.at_disk.is_empty() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let pick = (state >> 33) as usize % rig.at_disk.len();
            let id = rig.at_disk[pick];
            finished[all.iter().position(|i| *i == id).unwrap()] = true;
            done(&mut rig, &[id]);
            seen.extend(reaped(&rig, &mut driver));
            let due = finished.iter().take_while(|finished| **finished).count();
            assert_eq!(seen.len(), due, "round {round}: all that is due and nothing else");
            assert_eq!(in_flight(&rig), count as usize - due, "held back is in flight");
        }
        assert_eq!(seen, (first..first + count).collect::<Vec<_>>(), "round {round}");
    }
}

#[test]
fn in_order_does_not_ask_what_kind_of_ring_it_is() {
    const SIZE: u16 = 23;
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES | virtio::IN_ORDER | virtio::RING_PACKED);
    rig.get_inflight(2, SIZE);
    rig.add_memory();
    let features = RingFeatures { packed: true, ..ring_features() };
    let mut driver = BlkDriver::start(&rig.guest, packed_layout(SIZE), features).unwrap();
    rig.set_inflight();
    rig.start_vring_at(SIZE, PACKED_START, packed_addr(SIZE));
    for round in 0..40 {
        let count = 1 + round % 7;
        write(&mut rig, &mut driver, 0..count);
        let mut seen = Vec::new();
        for (finished, id) in rig.at_disk.clone().into_iter().enumerate().rev() {
            assert!(seen.is_empty(), "{finished} are not finished");
            done(&mut rig, &[id]);
            seen = reaped(&rig, &mut driver);
        }
        assert_eq!(seen, (0..count).collect::<Vec<_>>(), "round {round}");
    }
}

#[test]
fn in_order_not_accepted_holds_nothing_back() {
    let (mut rig, mut driver) = running(0, false);
    write(&mut rig, &mut driver, 0..3);
    let last = rig.at_disk[2];
    done(&mut rig, &[last]);
    assert_eq!(reaped(&rig, &mut driver), [2]);
}

#[test]
fn in_order_answers_that_need_no_disk_wait_for_their_turn_too() {
    let (mut rig, mut driver) = running(virtio::IN_ORDER, false);
    let outside = BlkOp::Out { sector: 1 << 40 };
    submit(&rig, &mut driver, 0, BlkOp::Out { sector: 0 }, 512, &Framing::CLASSIC);
    submit(&rig, &mut driver, 1, outside, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    assert!(driver.reap(&rig.guest).unwrap().is_none(), "refused at once, and not told");
    rig.finish_all();
    let first = driver.reap(&rig.guest).unwrap().unwrap();
    let second = driver.reap(&rig.guest).unwrap().unwrap();
    assert_eq!((first.token, first.status), (0, BlkStatus::Ok));
    assert_eq!((second.token, second.status), (1, BlkStatus::IoErr));
}

#[test]
fn in_order_drain_ends_with_everything_published() {
    let (mut rig, mut driver) = running(virtio::IN_ORDER, false);
    write(&mut rig, &mut driver, 0..5);
    let ids = rig.at_disk.clone();
    assert_eq!(rig.get_base(0), None);
    for id in ids.into_iter().rev() {
        done(&mut rig, &[id]);
    }
    assert_eq!(reaped(&rig, &mut driver), [0, 1, 2, 3, 4]);
    assert_eq!(
        rig.replies.last().map(|r| r.body.clone()),
        Some(Body::VringState(VringState { index: 0, num: 5 }))
    );
    assert_eq!(in_flight(&rig), 0);
}

#[test]
fn in_order_suspend_leaves_what_was_held_back_to_whoever_comes_next() {
    let (mut rig, mut driver) = running(virtio::IN_ORDER, true);
    write(&mut rig, &mut driver, 0..6);
    let ids = rig.at_disk.clone();
    assert_eq!(rig.get_base(0), None);
    // 0 is published; 2 and 3 are finished, but 1 is not.
    done(&mut rig, &[ids[0], ids[2], ids[3]]);
    assert_eq!(reaped(&rig, &mut driver), [0]);
    let (at, kind) = rig.backend.poll_timeout().unwrap();
    assert_eq!(kind, TimerKind::SuspendGrace);
    rig.now = at;
    rig.input(Input::Timeout);
    let cancelled: Vec<_> = [ids[1], ids[4], ids[5]]
        .map(|id| Completion { id, result: Err(DiskError::Cancelled) })
        .into();
    rig.at_disk.clear();
    rig.input(Input::DiskDone(&cancelled));
    assert_eq!(in_flight(&rig), 5, "the two that were finished are in flight still");
    let base = VringState { index: 0, num: 6 };
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::VringState(base)));
    // The next run executes them again, in order, and completes each once.
    rig.set_inflight();
    rig.start_vring(0, 6);
    assert_eq!(rig.at_disk.len(), 5);
    let ids = rig.at_disk.clone();
    for id in ids.into_iter().rev() {
        done(&mut rig, &[id]);
    }
    assert_eq!(reaped(&rig, &mut driver), [1, 2, 3, 4, 5]);
    assert_eq!(in_flight(&rig), 0);
}

#[test]
fn in_order_crash_with_requests_held_back_repeats_them_in_order() {
    let (mut rig, mut driver) = running(virtio::IN_ORDER, false);
    write(&mut rig, &mut driver, 0..4);
    let ids = rig.at_disk.clone();
    done(&mut rig, &[ids[1], ids[3]]);
    assert!(reaped(&rig, &mut driver).is_empty());
    // The process dies: what it held back is known to nobody.
    let mut next = Rig::with(config(), None);
    next.guest = rig.guest.clone();
    next.region = rig.region.clone();
    next.region_description = rig.region_description;
    drop(rig);
    next.negotiate(FEATURES | virtio::IN_ORDER);
    next.add_memory();
    next.set_inflight();
    next.start_vring(0, 0);
    assert_eq!(next.at_disk.len(), 4);
    let ids = next.at_disk.clone();
    for id in [ids[2], ids[1], ids[0], ids[3]] {
        done(&mut next, &[id]);
    }
    assert_eq!(reaped(&next, &mut driver), [0, 1, 2, 3]);
}

/// Stop vring 0, have the guest begin it anew, start it again.
fn reset_ring(rig: &mut Rig, driver: &mut BlkDriver) {
    *driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.ok(R::SetVringNum(VringState { index: 0, num: u32::from(RING) }));
    rig.ok(R::SetVringBase(VringState { index: 0, num: 0 }));
    rig.ok(R::SetVringAddr(VringAddr { ..vring_addr(0) }));
    let kick = rig.handle();
    rig.ok(R::SetVringKick(VringFile { index: 0, handle: Some(kick) }));
    rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
}

#[test]
fn ring_reset_forgets_what_was_in_flight_and_leaves_the_other_ring_running() {
    for suspend in [false, true] {
        let (mut rig, mut driver) = running(virtio::RING_RESET, suspend);
        let mut other = BlkDriver::start(&rig.guest, ring_layout(1), ring_features()).unwrap();
        rig.start_vring(1, 0);
        write(&mut rig, &mut driver, 0..3);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver).len(), 3);
        submit(&rig, &mut other, 20, BlkOp::Out { sector: 20 }, 512, &Framing::CLASSIC);
        other.publish(&rig.guest).unwrap();
        rig.kick(1);
        let busy = rig.at_disk.clone();
        write(&mut rig, &mut driver, 3..6);
        rig.ok(R::SetVringEnable(VringState { index: 0, num: 0 }));
        assert_eq!(rig.get_base(0), None);
        let ids: Vec<_> = rig.at_disk.iter().filter(|id| !busy.contains(id)).copied().collect();
        if suspend {
            rig.now = rig.backend.poll_timeout().unwrap().0;
            rig.input(Input::Timeout);
            let cancelled: Vec<_> = ids
                .iter()
                .map(|&id| Completion { id, result: Err(DiskError::Cancelled) })
                .collect();
            rig.at_disk.retain(|id| busy.contains(id));
            rig.input(Input::DiskDone(&cancelled));
            assert_eq!(in_flight(&rig), 3);
        } else {
            done(&mut rig, &ids);
        }
        let base = VringState { index: 0, num: 6 };
        assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::VringState(base)));
        reset_ring(&mut rig, &mut driver);
        assert_eq!(rig.at_disk, busy, "nothing of the old ring is resubmitted");
        assert_eq!(in_flight(&rig), 0);
        write(&mut rig, &mut driver, 6..8);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), [6, 7], "suspend: {suspend}");
        assert_eq!(reaped(&rig, &mut other), [20], "the other ring never stopped");
    }
}

#[test]
fn ring_reset_is_not_taken_for_a_pause() {
    let (mut rig, mut driver) = running(virtio::RING_RESET, true);
    write(&mut rig, &mut driver, 0..3);
    assert_eq!(rig.get_base(0), None);
    rig.now = rig.backend.poll_timeout().unwrap().0;
    rig.input(Input::Timeout);
    let ids = std::mem::take(&mut rig.at_disk);
    let cancelled: Vec<_> =
        ids.iter().map(|&id| Completion { id, result: Err(DiskError::Cancelled) }).collect();
    rig.input(Input::DiskDone(&cancelled));
    // The same base: the same ring goes on, on the region it was stopped with.
    rig.start_vring(0, 3);
    assert_eq!(rig.at_disk.len(), 3);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), [0, 1, 2]);
}
