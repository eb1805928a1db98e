//! What a front-end says, and what follows: settings, refusals, vring states.

mod common;

use common::{
    FEATURES, RING, Rig, USER_BASE, guest_region, ring_features, ring_layout, slot_base, submit,
    vring_addr,
};
use midflight::Handle;
use midflight::backend::{ApiMisuse, CloseReason, Command, Event, Input, TimerKind};
use midflight::blk::{Completion, DeviceConfig};
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing};
use midflight::time::{Duration, Instant};
use midflight::wire::features::virtio;
use midflight::wire::{
    ConfigPayload, FrontendReplyBody as Body, FrontendRequest as R, InflightDescription, MemRegion,
    VringAddr, VringFile, VringState,
};
use vm_memory::{Bytes, GuestAddress};

fn disk() -> DeviceConfig {
    DeviceConfig { num_queues: 2, ..DeviceConfig::with_capacity(1 << 20) }
}

fn state(index: u32, num: u32) -> VringState {
    VringState { index, num }
}

fn file(index: u8, handle: Option<Handle>) -> VringFile<Handle> {
    VringFile { index, handle }
}

fn negotiated() -> Rig {
    let mut rig = Rig::new(disk());
    rig.negotiate(FEATURES);
    rig
}

fn write(rig: &mut Rig, driver: &mut BlkDriver, slot: u64) {
    submit(rig, driver, slot, BlkOp::Out { sector: slot }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
}

fn reaped(rig: &Rig, driver: &mut BlkDriver) -> usize {
    let mut n = 0;
    while let Some(done) = driver.reap(&rig.guest).unwrap() {
        assert_eq!(done.status, BlkStatus::Ok);
        n += 1;
    }
    n
}

#[test]
fn session_a_refused_message_says_what_was_expected_and_what_came() {
    let mut rig = negotiated();
    rig.add_memory();
    let h = rig.handle();
    let region =
        |guest_addr, user_addr| MemRegion { guest_addr, size: 4096, user_addr, mmap_offset: 0 };
    for (message, text) in [
        (
            R::SetFeatures(1 << 63),
            "SET_FEATURES has bits 0x8000000000000000, expected none outside",
        ),
        (
            R::SetProtocolFeatures(1 << 2),
            "SET_PROTOCOL_FEATURES has bits 0x4, expected none outside 0x",
        ),
        (R::SetVringNum(state(2, 8)), "SET_VRING_NUM names vring 2, expected less than 2"),
        (
            R::SetVringNum(state(u32::MAX, 8)),
            "SET_VRING_NUM names vring 4294967295, expected less than 2",
        ),
        (
            R::SetVringNum(state(0, 0)),
            "SET_VRING_NUM for vring 0 is 0, expected a power of two from 1 to 1024",
        ),
        (
            R::SetVringNum(state(0, 24)),
            "SET_VRING_NUM for vring 0 is 24, expected a power of two from 1 to 1024",
        ),
        (R::SetVringNum(state(0, 65536)), "SET_VRING_NUM for vring 0 is 65536, expected"),
        (
            R::SetVringBase(state(0, 65536)),
            "SET_VRING_BASE for vring 0 is 0x10000, expected at most 0xffff",
        ),
        (
            R::SetVringAddr(VringAddr { desc: USER_BASE + 8, ..vring_addr(0) }),
            "SET_VRING_ADDR for vring 0 has descriptor table at 0x7f0000000008, expected a multiple of 16",
        ),
        (R::SetVringCall(file(7, None)), "SET_VRING_CALL names vring 7, expected less than 2"),
        (
            R::AddMemReg(region(0x1000, 0x1000), h),
            "memory region at guest address 0x1000 overlaps the region at 0x0",
        ),
        (
            R::RemMemReg(region(0x1000, 0x1000), None),
            "no memory region at guest address 0x1000, user address 0x1000, size 0x1000 to remove",
        ),
        (R::NetSetMtu(1), "NET_SET_MTU is not offered by this device"),
        (R::SendRarp(0), "SEND_RARP is not offered by this device"),
        (
            R::SetConfig(ConfigPayload {
                offset: 0,
                flags: 0,
                data: bytes::Bytes::from_static(&[0; 8]),
            }),
            "SET_CONFIG of 8 bytes at offset 0, expected the write cache byte at offset 32, 0 or 1",
        ),
    ] {
        let got = rig.refused(message);
        assert!(got.starts_with(text), "expected: {text}\n     got: {got}");
    }
    assert_eq!(rig.closed, None);
    // It all still works.
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn session_a_front_end_that_cannot_be_told_no_is_disconnected() {
    for message in [R::SetVringNum(state(9, 8)), R::GetVringBase(state(9, 0)), R::GetShmemConfig] {
        let mut rig = negotiated();
        let name = message.name();
        assert_eq!(rig.send(message, false), None);
        assert!(matches!(rig.closed, Some(CloseReason::FrontendMisbehaved(_))), "{name}");
        assert!(rig.live.is_empty(), "{name} leaked {:?}", rig.live);
        assert!(rig.backend.is_idle());
    }
}

#[test]
fn session_descriptors_without_end_and_without_a_message_close_the_connection() {
    let mut rig = Rig::new(disk());
    for byte in [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0] {
        let handles = (0..8).map(|_| rig.handle()).collect();
        if rig.closed.is_none() {
            rig.input(Input::Received { bytes: &[byte], handles });
        }
    }
    let Some(CloseReason::FrontendMisbehaved(fault)) = &rig.closed else { panic!() };
    let text = "72 descriptors came before a whole message, expected at most 64";
    assert_eq!(fault.to_string(), text);
}

#[test]
fn session_messages_of_a_feature_need_the_feature() {
    let h = Handle(1);
    let inflight =
        InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 1, queue_size: 8 };
    for message in [
        R::GetQueueNum,
        R::GetMaxMemSlots,
        R::AddMemReg(guest_region(), h),
        R::GetInflightFd(inflight),
        R::SetInflightFd(inflight, h),
        R::ResetDevice,
    ] {
        let mut rig = Rig::new(disk());
        rig.live.extend(message.handles());
        let name = message.name();
        rig.send(message, true);
        let Some(CloseReason::FrontendMisbehaved(fault)) = &rig.closed else { panic!("{name}") };
        assert!(fault.to_string().contains("without"), "{fault}");
        assert!(rig.live.is_empty(), "{name} leaked");
    }
}

#[test]
fn session_no_ack_is_sent_unless_it_was_agreed_on() {
    let mut rig = Rig::new(disk());
    assert_eq!(rig.send(R::SetOwner, true), None);
    assert!(matches!(rig.send(R::GetFeatures, true), Some(Body::U64(_))));
    assert_eq!(rig.replies.len(), 1, "a message with an answer gets only that");
}

#[test]
fn session_config_is_read_at_any_size_and_only_the_cache_byte_is_written() {
    let mut rig = negotiated();
    let read = |rig: &mut Rig, offset, len| {
        let data = bytes::Bytes::from(vec![0; len]);
        match rig.send(R::GetConfig(ConfigPayload { offset, flags: 0, data }), false) {
            Some(Body::Config(c)) => c.data.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    for len in [36, 48, 57, 60, 256] {
        let space = read(&mut rig, 0, len);
        assert_eq!(space.len(), len);
        assert_eq!(space[..8], 2048u64.to_le_bytes());
        assert!(space.iter().skip(60).all(|b| *b == 0));
    }
    assert_eq!(read(&mut rig, 32, 1), [1]);
    let off = bytes::Bytes::from_static(&[0]);
    rig.ok(R::SetConfig(ConfigPayload { offset: 32, flags: 0, data: off }));
    assert_eq!(read(&mut rig, 32, 1), [0]);
    assert_eq!(read(&mut rig, 255, 2), [0u8; 0], "failure is an empty answer");
    assert_eq!(rig.closed, None);
}

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
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
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
fn reset_completes_nothing_and_keeps_memory_and_connection() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    assert_eq!(rig.send(R::ResetDevice, true), None, "one is in flight");
    rig.finish_all();
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
    assert_eq!(reaped(&rig, &mut driver), 0);
    // Only features and vrings are set up again, with a new region.
    rig.ok(R::SetFeatures(FEATURES));
    rig.get_inflight(1, RING);
    rig.set_inflight();
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    write(&mut rig, &mut driver, 1);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn disconnect_publishes_nothing_and_releases_everything_once_the_disk_is_done() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.input(Input::PeerClosed);
    assert!(!rig.backend.is_idle(), "the disk still works for the one that left");
    let misuse = rig.backend.handle_input(rig.now, Input::Connected);
    assert_eq!(misuse, Err(ApiMisuse::NotIdle));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 0);
    assert!(rig.backend.is_idle());
    assert!(rig.live.is_empty(), "leaked {:?}", rig.live);

    // The next client finds a device like new, and finishes what was begun.
    rig.input(Input::Connected);
    rig.negotiate(FEATURES);
    rig.add_memory();
    rig.set_inflight();
    rig.start_vring(0, 0);
    assert_eq!(rig.at_disk.len(), 1, "resubmitted from the region");
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn shutdown_publishes_what_is_in_flight_fetches_nothing_new_and_closes() {
    let (mut rig, mut driver) = Rig::running(disk());
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.input(Input::Command(Command::Shutdown));
    write(&mut rig, &mut driver, 1);
    rig.kick(0);
    assert_eq!(rig.closed, None);
    rig.finish_all();
    assert_eq!(rig.closed, Some(CloseReason::Shutdown));
    assert_eq!(reaped(&rig, &mut driver), 1);
    assert!(rig.live.is_empty());
}

#[test]
fn memory_of_the_owner_before_is_forgotten_when_another_takes_over() {
    let mut rig = negotiated();
    rig.add_memory();
    let live = rig.live.len();
    rig.ok(R::SetOwner);
    assert_eq!(rig.live.len(), live - 1);
    rig.add_memory();
    // Not while the device works: that is no new session.
    let (mut rig, _) = Rig::running(disk());
    rig.ok(R::SetOwner);
    let h = rig.handle();
    assert!(rig.refused(R::AddMemReg(guest_region(), h)).contains("overlaps"));
}

#[test]
fn memory_that_cannot_be_mapped_is_refused_and_its_descriptor_released() {
    let mut rig = negotiated();
    rig.refuse_map = Some("file of 0 bytes, expected 4194304".to_owned());
    let h = rig.handle();
    assert_eq!(
        rig.refused(R::AddMemReg(guest_region(), h)),
        "ADD_MEM_REG cannot be mapped: file of 0 bytes, expected 4194304"
    );
    rig.add_memory();
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

/// Vring 0 with addresses, size and a kick, for a front-end without protocol
/// features.
fn kicked(rig: &mut Rig, addr: VringAddr) {
    rig.send(R::SetVringNum(state(0, u32::from(RING))), false);
    rig.send(R::SetVringBase(state(0, 0)), false);
    rig.send(R::SetVringAddr(addr), false);
    let kick = rig.handle();
    rig.send(R::SetVringKick(file(0, Some(kick))), false);
}

#[test]
fn legacy_front_end_without_protocol_features_is_served() {
    let mut rig = Rig::new(disk());
    let offered = match rig.send(R::GetFeatures, false) {
        Some(Body::U64(offered)) => offered,
        other => panic!("{other:?}"),
    };
    rig.send(R::SetOwner, false);
    rig.send(R::SetFeatures(FEATURES & offered & !virtio::PROTOCOL_FEATURES), false);
    let memory = rig.handle();
    rig.send(R::SetMemTable(vec![(guest_region(), memory)]), false);
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    write(&mut rig, &mut driver, 0);
    // The kick descriptor starts the vring, without a message to enable it.
    kicked(&mut rig, vring_addr(0));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    // The table is sent again while the vring runs, as at a memory hotplug.
    let memory = rig.handle();
    rig.send(R::SetMemTable(vec![(guest_region(), memory)]), false);
    write(&mut rig, &mut driver, 1);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    assert_eq!(rig.get_base(0), Some(2));
    // And again: a start after a stop has no message to enable either.
    kicked(&mut rig, vring_addr(0));
    assert!(rig.closed.is_none(), "{:?}", rig.closed);
    assert!(rig.replies.iter().all(|r| !matches!(r.body, Body::U64(1))));
}

#[test]
fn legacy_features_that_cannot_start_a_vring_are_taken_back() {
    let mut rig = negotiated();
    rig.add_memory();
    let agreed = rig.events.iter().rev().find_map(|event| match event {
        Event::Negotiated { features, .. } => Some(*features),
        _ => None,
    });
    // Vring 0 could start, vring 1 lies outside guest memory.
    kicked(&mut rig, vring_addr(0));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    write(&mut rig, &mut driver, 0);
    let nowhere =
        VringAddr { index: 1, desc: 0x1000, used: 0x2000, avail: 0x3000, ..vring_addr(1) };
    rig.send(R::SetVringNum(state(1, u32::from(RING))), false);
    rig.send(R::SetVringAddr(nowhere), false);
    let kick = rig.handle();
    rig.send(R::SetVringKick(file(1, Some(kick))), false);
    let to = FEATURES & !virtio::PROTOCOL_FEATURES & !virtio::BLK_SEG_MAX;
    assert_eq!(
        rig.refused(R::SetFeatures(to)),
        "vring 1 has descriptor table of 1024 bytes at 0x1000, not inside one memory region"
    );
    assert!(rig.at_disk.is_empty(), "vring 0 does not run either");
    let last = rig.events.iter().rev().find_map(|event| match event {
        Event::Negotiated { features, .. } => Some(*features),
        _ => None,
    });
    assert_eq!(last, agreed);
    // What can be started is not enabled: that takes its own message still.
    rig.kick(0);
    assert!(rig.at_disk.is_empty());
    rig.ok(R::SetVringEnable(state(0, 1)));
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn status_is_kept_and_zero_resets_nothing() {
    let (mut rig, mut driver) = Rig::running(disk());
    let status = |rig: &mut Rig| match rig.send(R::GetStatus, false) {
        Some(Body::U64(status)) => status,
        other => panic!("{other:?}"),
    };
    assert_eq!(status(&mut rig), 0);
    rig.ok(R::SetStatus(0xf));
    assert_eq!(status(&mut rig), 0xf);
    assert_eq!(rig.refused(R::SetStatus(0x100)), "SET_STATUS has 0x100, expected at most 0xff");
    assert_eq!(status(&mut rig), 0xf);
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
    // A pause as QEMU does it: status 0 after the stop, and at the next start
    // neither memory nor protocol features nor descriptors are sent again.
    rig.ok(R::SetVringEnable(state(0, 0)));
    let base = rig.get_base(0).unwrap();
    rig.ok(R::SetStatus(0));
    let live = rig.live.clone();
    assert_eq!(status(&mut rig), 0);
    assert_eq!(rig.live, live, "no descriptor was released");
    rig.set_inflight();
    rig.start_vring(0, base);
    rig.ok(R::SetStatus(0xf));
    write(&mut rig, &mut driver, 1);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn status_says_that_a_broken_ring_needs_a_reset_and_reset_clears_it() {
    let (mut rig, driver) = Rig::running(disk());
    rig.ok(R::SetStatus(0xf));
    let at = ring_layout(0).avail + 2;
    rig.guest.write_obj(RING + 100, GuestAddress(at)).unwrap();
    rig.kick(0);
    assert_eq!(rig.send(R::GetStatus, false), Some(Body::U64(0x4f)));
    // QEMU writes back what it has read.
    rig.ok(R::SetStatus(0x4f));
    drop(driver);
    assert_eq!(rig.get_base(0), Some(0));
    rig.ok(R::ResetDevice);
    assert_eq!(rig.send(R::GetStatus, false), Some(Body::U64(0)));
}

#[test]
fn reset_lets_the_guest_go_on_with_the_memory_and_descriptors_there_are() {
    let (mut rig, mut driver) = Rig::running(disk());
    for round in 0..3 {
        write(&mut rig, &mut driver, 0);
        write(&mut rig, &mut driver, 1);
        rig.kick(0);
        // In flight when the device is reset: never completed, and the answer
        // waits for the disk.
        assert_eq!(rig.send(R::ResetDevice, true), None);
        rig.finish_all();
        assert_eq!(rig.replies.last().map(|r| r.body.clone()), Some(Body::U64(0)));
        assert_eq!(reaped(&rig, &mut driver), 0, "round {round}");
        // The guest's driver starts afresh: new rings, a new region, no memory.
        let offered = rig.backend.offered_protocol_features();
        assert!(offered & midflight::wire::features::protocol::RESET_DEVICE != 0);
        rig.ok(R::SetFeatures(FEATURES));
        rig.get_inflight(1, RING);
        rig.set_inflight();
        driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
        rig.start_vring(0, 0);
        write(&mut rig, &mut driver, 2);
        rig.kick(0);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), 1, "round {round}");
    }
    // Three times in a row, as QEMU does at a machine reset, and before any start.
    for _ in 0..3 {
        rig.ok(R::ResetDevice);
    }
}

#[test]
fn owner_reset_is_ignored_as_the_document_advises() {
    let (mut rig, mut driver) = Rig::running(disk());
    rig.ok(R::ResetOwner);
    write(&mut rig, &mut driver, 0);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(&rig, &mut driver), 1);
}

#[test]
fn queue_number_is_told_once_multiple_queues_are_agreed_on() {
    let mut rig = Rig::new(DeviceConfig { num_queues: 7, ..disk() });
    rig.negotiate(FEATURES);
    assert_eq!(rig.send(R::GetQueueNum, false), Some(Body::U64(7)));
    let bits = rig.backend.offered_protocol_features();
    rig.send(R::SetProtocolFeatures(bits & !midflight::wire::features::protocol::MQ), false);
    rig.send(R::GetQueueNum, false);
    assert!(rig.closed.is_some(), "no answer can be given, and none is");
}

/// Front-ends of all ages: whatever has to be said before a vring runs, in any
/// order, and the one message that completes it last.
#[test]
fn legacy_message_orders_all_lead_to_a_vring_that_runs() {
    let mut state_of_chance = 7u64;
    let mut below = |bound: usize| {
        state_of_chance = state_of_chance.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state_of_chance >> 33) as usize % bound
    };
    for round in 0..300 {
        let mut rig = Rig::new(disk());
        let offered = match rig.send(R::GetFeatures, false) {
            Some(Body::U64(offered)) => offered,
            other => panic!("{other:?}"),
        };
        let legacy = below(3) == 0;
        let features = FEATURES & offered;
        if !legacy {
            let bits = rig.backend.offered_protocol_features() & !rig.dialect.gpa_addresses();
            rig.send(R::SetProtocolFeatures(bits), false);
        }
        // It begins the session, so nothing can come before it.
        rig.send(R::SetOwner, false);
        let mut names = vec!["memory", "num", "base", "addr", "call", "err"];
        if legacy {
            // Features enable the vring; the kick starts it.
            names.extend(["features"]);
        } else {
            names.extend(["features", "inflight", ["kick", "enable"][round % 2]]);
        }
        for at in (1..names.len()).rev() {
            names.swap(at, below(at + 1));
        }
        names.push(if legacy { "kick" } else { ["enable", "kick"][round % 2] });
        let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
        write(&mut rig, &mut driver, 0);
        for name in &names {
            match *name {
                "memory" => {
                    let handle = rig.handle();
                    rig.send(R::SetMemTable(vec![(guest_region(), handle)]), false);
                }
                "features" if legacy => {
                    _ = rig.send(R::SetFeatures(features & !virtio::PROTOCOL_FEATURES), false);
                }
                "features" => _ = rig.send(R::SetFeatures(features), false),
                "inflight" => {
                    rig.get_inflight(2, RING);
                    rig.set_inflight();
                }
                "num" => _ = rig.send(R::SetVringNum(state(0, u32::from(RING))), false),
                "base" => _ = rig.send(R::SetVringBase(state(0, 0)), false),
                "addr" => _ = rig.send(R::SetVringAddr(vring_addr(0)), false),
                "enable" => _ = rig.send(R::SetVringEnable(state(0, 1)), false),
                other => {
                    let handle = rig.handle();
                    let file = file(0, Some(handle));
                    _ = rig.send(
                        match other {
                            "call" => R::SetVringCall(file),
                            "err" => R::SetVringErr(file),
                            _ => R::SetVringKick(file),
                        },
                        false,
                    );
                }
            }
        }
        assert!(rig.closed.is_none(), "{names:?}: {:?}", rig.closed);
        rig.finish_all();
        assert_eq!(reaped(&rig, &mut driver), 1, "{names:?}");
    }
}
