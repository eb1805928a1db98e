//! When a vring runs, what it fetches, and how it stops.

use super::common::{
    FEATURES, RING, Rig, USER_BASE, ring_features, ring_layout, slot_base, submit, vring_addr,
};
use super::{disk, file, negotiated, reaped, serves, state, write};
use midflight::backend::{ApiMisuse, Event, Input, TimerKind};
use midflight::blk::{Completion, DeviceConfig};
use midflight::driver::{BlkDriver, BlkOp, Framing};
use midflight::time::{Duration, Instant};
use midflight::wire::features::virtio;
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R, VringAddr};
use vm_memory::{Bytes, GuestAddress};

#[test]
fn vring_a_kick_before_enable_is_not_lost() {
    let mut rig = negotiated();
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    write(&mut rig, &mut driver, 0);
    rig.ok(R::SetVringNum(state(0, u32::from(RING))));
    rig.ok(R::SetVringAddr(vring_addr(0)));
    let h = rig.handle();
    rig.ok(R::SetVringKick(file(0, Some(h))));
    rig.kick(0);
    assert!(rig.at_disk.is_empty(), "a disabled vring must not fetch");
    rig.ok(R::SetVringEnable(state(0, 1)));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn vring_disable_fetches_no_more_but_completes_what_it_has() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.ok(R::SetVringEnable(state(0, 0)));
    write(&mut rig, &mut driver, 1);
    rig.kick(0);
    assert_eq!(rig.at_disk.len(), 1);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    rig.ok(R::SetVringEnable(state(0, 1)));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn vring_features_without_bit_30_enable_every_vring() {
    let mut rig = Rig::new(disk());
    rig.negotiate(virtio::VERSION_1);
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), Default::default()).unwrap();
    write(&mut rig, &mut driver, 0);
    rig.ok(R::SetVringNum(state(0, u32::from(RING))));
    rig.ok(R::SetVringAddr(vring_addr(0)));
    let h = rig.handle();
    rig.ok(R::SetVringKick(file(0, Some(h))));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn vring_without_kick_descriptor_is_polled() {
    let mut rig = negotiated();
    rig.add_memory();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.ok(R::SetVringNum(state(0, u32::from(RING))));
    rig.ok(R::SetVringAddr(vring_addr(0)));
    rig.ok(R::SetVringKick(file(0, None)));
    rig.ok(R::SetVringEnable(state(0, 1)));
    write(&mut rig, &mut driver, 0);
    let (at, why) = rig.backend.poll_timeout().expect("a polled vring wakes up");
    assert_eq!(why, TimerKind::PollVring);
    rig.now = at;
    rig.input(Input::Timeout);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    assert!(rig.backend.poll_timeout().unwrap().0 > at);
    assert_eq!(rig.get_base(0), Some(1));
    assert_eq!(rig.backend.poll_timeout(), None, "a stopped vring does not wake up");
}

#[test]
fn vring_settings_change_only_while_it_is_stopped_but_descriptors_at_any_time() {
    let (mut rig, mut driver) = Rig::running(disk());
    assert_eq!(
        rig.refused(R::SetVringNum(state(0, 32))),
        "SET_VRING_NUM for vring 0 which is running, expected it stopped"
    );
    assert!(rig.refused(R::SetVringBase(state(0, 0))).contains("running"));
    assert!(rig.refused(R::SetVringAddr(vring_addr(1).moved_to(0))).contains("running"));
    assert!(rig.refused(R::SetFeatures(virtio::VERSION_1)).contains("while vring 0 runs"));
    rig.ok(R::SetVringAddr(VringAddr { flags: 1, ..vring_addr(0) }));
    rig.ok(R::SetFeatures(FEATURES));
    let before = rig.live.len();
    for message in [R::SetVringKick, R::SetVringCall, R::SetVringErr] {
        let h = rig.handle();
        rig.ok(message(file(0, Some(h))));
    }
    assert_eq!(rig.live.len(), before, "the descriptors before were released");
    assert_eq!(rig.calls.pop(), Some(0), "a new call descriptor is signalled once");
    serves(&mut rig, &mut driver, 0);
}

trait MovedTo {
    fn moved_to(self, index: u32) -> Self;
}

impl MovedTo for VringAddr {
    fn moved_to(self, index: u32) -> Self {
        Self { index, ..self }
    }
}

#[test]
fn stop_waits_for_what_is_in_flight_and_reads_nothing_meanwhile() {
    let (mut rig, mut driver) = Rig::running(disk());
    for slot in 0..3 {
        write(&mut rig, &mut driver, slot);
    }
    rig.kick(0);
    assert_eq!(rig.get_base(0), None, "three are in flight");
    assert!(rig.events.contains(&Event::Draining { vring: 0, inflight: 3 }));
    assert_eq!(rig.backend.wanted(), 0);
    write(&mut rig, &mut driver, 3);
    rig.kick(0);
    assert_eq!(rig.at_disk.len(), 3, "a draining vring fetches no more");
    rig.finish_all();
    match rig.replies.last().map(|r| &r.body) {
        Some(Body::VringState(s)) => assert_eq!((s.index, s.num), (0, 3)),
        other => panic!("{other:?}"),
    }
    assert_eq!(rig.backend.wanted(), 12);
    assert_eq!(reaped(&rig, &mut driver), 3);
    // The one that came too late is there when the vring starts again.
    rig.start_vring(0, 3);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn stop_answers_the_base_of_a_vring_that_never_ran() {
    let mut rig = negotiated();
    rig.ok(R::SetVringBase(state(1, 77)));
    assert_eq!(rig.get_base(1), Some(77));
    assert_eq!(rig.get_base(0), Some(0));
}

#[test]
fn stop_of_one_vring_leaves_the_other_running() {
    let (mut rig, _) = Rig::running(disk());
    let mut other = BlkDriver::start(&rig.guest, ring_layout(1), ring_features()).unwrap();
    // Vring 1 has no part in a region for one queue.
    rig.ok(R::SetVringNum(state(1, u32::from(RING))));
    rig.ok(R::SetVringAddr(vring_addr(1)));
    let h = rig.handle();
    rig.ok(R::SetVringKick(file(1, Some(h))));
    assert!(
        rig.refused(R::SetVringEnable(state(1, 1)))
            .starts_with("vring 1 has no part in the inflight region")
    );
    assert_eq!(rig.get_base(0), Some(0));
    rig.get_inflight(2, RING);
    rig.set_inflight();
    rig.start_vring(0, 0);
    rig.ok(R::SetVringEnable(state(1, 1)));
    assert_eq!(rig.get_base(0), Some(0));
    write(&mut rig, &mut other, 5);
    rig.kick(1);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut other), 1);
}

#[test]
fn guest_that_breaks_its_ring_silences_that_ring_only_and_stop_still_answers() {
    type Break = fn(&Rig, &mut BlkDriver);
    let cases: [(&str, Break); 6] = [
        ("head out of range", |rig, _| {
            let l = ring_layout(0);
            rig.guest.write_obj(RING, GuestAddress(l.avail + 4)).unwrap();
            rig.guest.write_obj(1u16, GuestAddress(l.avail + 2)).unwrap();
        }),
        ("index jump", |rig, _| {
            let l = ring_layout(0);
            rig.guest.write_obj(RING + 1, GuestAddress(l.avail + 2)).unwrap();
        }),
        ("looping chain", |rig, driver| {
            let head = submit(rig, driver, 0, BlkOp::Flush, 0, &Framing::CLASSIC);
            let desc = ring_layout(0).desc + 16 * u64::from(head);
            rig.guest.write_obj([1u16, head], GuestAddress(desc + 12)).unwrap();
            driver.publish(&rig.guest).unwrap();
        }),
        ("no status", |rig, driver| {
            let head = submit(rig, driver, 0, BlkOp::Flush, 0, &Framing::CLASSIC);
            let desc = ring_layout(0).desc + 16 * u64::from(head);
            rig.guest.write_obj([0u16, 0], GuestAddress(desc + 12)).unwrap();
            driver.publish(&rig.guest).unwrap();
        }),
        ("nested indirect", |rig, driver| {
            submit(rig, driver, 0, BlkOp::Flush, 0, &Framing::INDIRECT);
            let table = slot_base(0) + 0x2000;
            rig.guest.write_obj([4u16, 0], GuestAddress(table + 12)).unwrap();
            driver.publish(&rig.guest).unwrap();
        }),
        ("used twice", |rig, driver| {
            let head = submit(rig, driver, 0, BlkOp::Flush, 0, &Framing::CLASSIC);
            driver.publish(&rig.guest).unwrap();
            let l = ring_layout(0);
            rig.guest.write_obj(head, GuestAddress(l.avail + 6)).unwrap();
            rig.guest.write_obj(2u16, GuestAddress(l.avail + 2)).unwrap();
        }),
    ];
    for (name, break_it) in cases {
        let (mut rig, mut driver) = Rig::running(disk());
        break_it(&rig, &mut driver);
        rig.kick(0);
        assert_eq!(rig.errs, [0u16], "{name}: err is signalled once");
        assert!(rig.events.iter().any(|e| matches!(e, Event::VringBroken { .. })), "{name}");
        rig.kick(0);
        assert_eq!(rig.errs.len(), 1, "{name}: the ring is silent");
        rig.finish_all();
        assert!(rig.get_base(0).is_some(), "{name}: stop hangs");
        assert_eq!(rig.closed, None, "{name}");
    }
}

#[test]
fn fetching_is_bounded_and_goes_on_by_itself() {
    let config = DeviceConfig { queue_size_max: 1024, ..disk() };
    let mut rig = Rig::new(config);
    rig.negotiate(FEATURES);
    rig.add_memory();
    let layout = midflight::driver::RingLayout::contiguous(1024, 0x8000).unwrap();
    let mut driver = BlkDriver::start(&rig.guest, layout, ring_features()).unwrap();
    let base = slot_base(0);
    for i in 0..512u64 {
        let buffers = midflight::driver::RequestBuffers {
            header: base + i * 64,
            data: &[],
            status: base + i * 64 + 16,
            table: None,
        };
        let request = midflight::driver::BlkRequest { op: BlkOp::Flush, token: i };
        driver.submit(&rig.guest, &request, &buffers, &Framing::CLASSIC).unwrap();
    }
    driver.publish(&rig.guest).unwrap();
    rig.ok(R::SetVringNum(state(0, 1024)));
    rig.ok(R::SetVringAddr(VringAddr {
        index: 0,
        flags: 0,
        desc: USER_BASE + layout.desc,
        used: USER_BASE + layout.used,
        avail: USER_BASE + layout.avail,
        log: 0,
    }));
    let h = rig.handle();
    rig.ok(R::SetVringKick(file(0, Some(h))));
    rig.ok(R::SetVringEnable(state(0, 1)));
    // Half of what is there, as long as that is worth it.
    for fetched in [256, 384, 448, 480, 496] {
        assert_eq!(rig.at_disk.len(), fetched);
        assert_eq!(rig.backend.poll_timeout(), Some((Instant::ZERO, TimerKind::MoreChains)));
        rig.input(Input::Timeout);
    }
    assert_eq!(rig.at_disk.len(), 512);
    rig.now = rig.now + Duration::from_millis(1);
    while rig.backend.poll_timeout().is_some() {
        rig.input(Input::Timeout);
    }
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 512);
}

#[test]
fn completions_that_come_late_or_twice_are_dropped_with_an_event() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    let id = rig.at_disk[0];
    rig.finish_all();
    let again = Completion { id, result: Ok(()) };
    rig.input(Input::DiskDone(&[again]));
    assert!(rig.events.contains(&Event::LateCompletion(id)));
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn driver_that_breaks_the_contract_is_told_and_nothing_changes() {
    let (mut rig, _) = Rig::running(disk());
    let now = rig.now;
    let mut misuse = |input| rig.backend.handle_input(now, input).unwrap_err().to_string();
    assert_eq!(misuse(Input::Connected), "connected while the front-end before is not done with");
    assert_eq!(misuse(Input::Kick { vring: 2 }), "kick of vring 2, expected less than 2");
    let failed = midflight::backend::MapFailed(String::new());
    assert_eq!(misuse(Input::Mapped(Err(failed))), "a memory mapping was not asked for");
    rig.input(Input::PeerClosed);
    let got = rig.backend.handle_input(now, Input::Received { bytes: &[0], handles: vec![] });
    assert_eq!(got, Err(ApiMisuse::NotConnected("received bytes")));
}
