//! What a front-end says, and what follows: settings, refusals, the end of a session.

#[path = "../common/mod.rs"]
mod common;
mod legacy;
mod reset;
mod vrings;

use common::{
    FEATURES, Rig, USER_BASE, guest_region, ring_features, ring_layout, submit, vring_addr,
};
use midflight::Handle;
use midflight::backend::{ApiMisuse, CloseReason, Command, Input};
use midflight::blk::DeviceConfig;
use midflight::driver::{BlkDriver, BlkOp, BlkStatus, Framing};
use midflight::wire::{
    ConfigPayload, FrontendReplyBody as Body, FrontendRequest as R, InflightDescription, MemRegion,
    VringAddr, VringFile, VringState,
};

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

/// Vring 0 runs: a request is fetched at its kick, and completed once.
#[track_caller]
fn serves(rig: &mut Rig, driver: &mut BlkDriver, slot: u64) {
    write(rig, driver, slot);
    rig.kick(0);
    rig.finish_all();
    assert_eq!(reaped(rig, driver), 1);
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
    serves(&mut rig, &mut driver, 0);
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
fn queue_number_is_told_once_multiple_queues_are_agreed_on() {
    let mut rig = Rig::new(DeviceConfig { num_queues: 7, ..disk() });
    rig.negotiate(FEATURES);
    assert_eq!(rig.send(R::GetQueueNum, false), Some(Body::U64(7)));
    let bits = rig.backend.offered_protocol_features();
    rig.send(R::SetProtocolFeatures(bits & !midflight::wire::features::protocol::MQ), false);
    rig.send(R::GetQueueNum, false);
    assert!(rig.closed.is_some(), "no answer can be given, and none is");
}
