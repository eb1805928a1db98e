//! The device's state on its way from one back-end to another: DEVICE_STATE.

mod common;

use common::{FEATURES, Rig, ring_features, ring_layout};
use midflight::Handle;
use midflight::backend::{Event, Input, MapFailed};
use midflight::blk::{DeviceConfig, SavedState};
use midflight::driver::BlkDriver;
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    ConfigPayload, FrontendReplyBody as Body, FrontendRequest as R, TransferState, VringFile,
    VringState,
};

const SAVE: TransferState = TransferState { direction: 0, phase: 0 };
const LOAD: TransferState = TransferState { direction: 1, phase: 0 };
const WRITEBACK: u32 = 32;

fn disk() -> DeviceConfig {
    DeviceConfig::with_capacity(1 << 20)
}

fn negotiated() -> Rig {
    let mut rig = Rig::new(disk());
    rig.negotiate(FEATURES);
    rig
}

fn set_cache(rig: &mut Rig, writeback: bool) {
    let data = bytes::Bytes::copy_from_slice(&[u8::from(writeback)]);
    rig.ok(R::SetConfig(ConfigPayload { offset: WRITEBACK, flags: 0, data }));
}

fn cache(rig: &mut Rig) -> u8 {
    let data = bytes::Bytes::from_static(&[0]);
    match rig.send(R::GetConfig(ConfigPayload { offset: WRITEBACK, flags: 0, data }), false) {
        Some(Body::Config(config)) => config.data[0],
        other => panic!("{other:?}"),
    }
}

/// The answer to SET_DEVICE_STATE_FD, and the handle that went with it.
fn transfer(rig: &mut Rig, state: TransferState) -> (Option<Body<Handle>>, Handle) {
    let handle = rig.handle();
    (rig.send(R::SetDeviceStateFd(state, handle), false), handle)
}

fn check(rig: &mut Rig) -> Option<Body<Handle>> {
    rig.send(R::CheckDeviceState, false)
}

const BEGUN: Option<Body<Handle>> = Some(Body::DeviceState(0, None));
const REFUSED: Option<Body<Handle>> = Some(Body::DeviceState(1, None));
const WELL: Option<Body<Handle>> = Some(Body::U64(0));
const BADLY: Option<Body<Handle>> = Some(Body::U64(1));

#[test]
fn device_state_moves_the_write_cache_choice() {
    for writeback in [true, false] {
        let mut source = negotiated();
        set_cache(&mut source, writeback);
        let (answer, handle) = transfer(&mut source, SAVE);
        assert_eq!(answer, BEGUN);
        assert!(!source.live.contains(&handle), "the reader sees the end");
        assert_eq!(check(&mut source), WELL);
        let state = source.saved.pop().unwrap();
        assert_eq!(SavedState::decode(&state), Ok(SavedState { capacity: 1 << 20, writeback }));

        let mut destination = negotiated();
        set_cache(&mut destination, !writeback);
        destination.state = Some(state);
        let (answer, handle) = transfer(&mut destination, LOAD);
        assert_eq!(answer, BEGUN);
        assert!(!destination.live.contains(&handle));
        assert_eq!(check(&mut destination), WELL);
        assert!(destination.events.contains(&Event::StateLoaded { writeback }));
        assert_eq!(cache(&mut destination), u8::from(writeback));
        assert_eq!(check(&mut destination), BADLY, "a transfer is asked for once");
    }
}

#[test]
fn device_state_that_is_not_one_changes_nothing() {
    let right = SavedState { capacity: 1 << 20, writeback: true }.encode().to_vec();
    let other = SavedState { capacity: 1 << 21, writeback: true }.encode().to_vec();
    let cases = [
        (Vec::new(), "device state does not begin with the magic of midflight"),
        (right[..31].to_vec(), "device state has 31 bytes and says 32, expected 32"),
        ([&right[..], &right[..]].concat(), "device state has 64 bytes and says 32, expected 32"),
        (other, "device state is of a disk of 2097152 bytes, expected 1048576"),
    ];
    for (state, why) in cases {
        let mut rig = negotiated();
        set_cache(&mut rig, false);
        rig.state = Some(state);
        let (answer, handle) = transfer(&mut rig, LOAD);
        assert_eq!(answer, BEGUN);
        assert!(!rig.live.contains(&handle));
        assert!(rig.events.contains(&Event::StateFailed(why.into())), "{:?}", rig.events);
        assert_eq!(check(&mut rig), BADLY);
        assert_eq!(cache(&mut rig), 0);
        assert_eq!(rig.closed, None, "the front-end was told");
    }
}

#[test]
fn device_state_check_waits_for_the_end_of_the_transfer() {
    let mut rig = negotiated();
    let (answer, handle) = transfer(&mut rig, LOAD);
    assert_eq!(answer, BEGUN);
    // One at a time, and nothing runs meanwhile.
    let (answer, second) = transfer(&mut rig, SAVE);
    assert_eq!(answer, REFUSED);
    assert!(!rig.live.contains(&second));
    assert_eq!(check(&mut rig), None);
    let state = SavedState { capacity: 1 << 20, writeback: false }.encode();
    rig.input(Input::StateLoaded(Ok(bytes::Bytes::copy_from_slice(&state))));
    assert_eq!(rig.replies.last().map(|r| r.body.clone()), WELL);
    assert!(!rig.live.contains(&handle));
    let misuse = rig.backend.handle_input(rig.now, Input::StateLoaded(Ok(bytes::Bytes::new())));
    assert_eq!(misuse.unwrap_err().to_string(), "a device state that was loaded was not asked for");
}

#[test]
fn device_state_that_the_driver_could_not_move_fails_the_check() {
    let mut rig = negotiated();
    let (answer, _) = transfer(&mut rig, LOAD);
    assert_eq!(answer, BEGUN);
    rig.input(Input::StateLoaded(Err(MapFailed("the other end took too long".into()))));
    assert_eq!(check(&mut rig), BADLY);
    assert!(rig.events.contains(&Event::StateFailed("the other end took too long".into())));
}

#[test]
fn device_state_moves_only_while_all_vrings_are_stopped() {
    let (mut rig, _driver) = Rig::running(disk());
    let (answer, handle) = transfer(&mut rig, SAVE);
    assert_eq!(answer, REFUSED);
    assert!(!rig.live.contains(&handle));
    assert!(rig.saved.is_empty());
    assert_eq!(rig.get_base(0), Some(0));
    assert_eq!(transfer(&mut rig, LOAD).0, BEGUN);
    let kick = rig.handle();
    assert_eq!(
        rig.refused(R::SetVringKick(VringFile { index: 0, handle: Some(kick) })),
        "a start while the device's state is being transferred"
    );
    let state = SavedState { capacity: 1 << 20, writeback: true }.encode();
    rig.input(Input::StateLoaded(Ok(bytes::Bytes::copy_from_slice(&state))));
    assert_eq!(check(&mut rig), WELL);
    rig.set_inflight();
    rig.start_vring(0, 0);
    rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
}

#[test]
fn device_state_ends_with_a_reset_or_the_connection() {
    let mut rig = negotiated();
    let (_, handle) = transfer(&mut rig, LOAD);
    rig.ok(R::ResetDevice);
    assert!(!rig.live.contains(&handle));
    assert_eq!(check(&mut rig), BADLY);
    let (_, handle) = transfer(&mut rig, LOAD);
    assert!(rig.live.contains(&handle));
    assert_eq!(check(&mut rig), None);
    rig.input(Input::PeerClosed);
    assert!(rig.live.is_empty());
    assert!(rig.backend.is_idle());
}

#[test]
fn device_state_needs_its_feature_and_a_state_loaded_before_the_start_counts() {
    let mut rig = negotiated();
    let bits = rig.backend.offered_protocol_features() & !protocol::DEVICE_STATE;
    rig.send(R::SetProtocolFeatures(bits), false);
    assert_eq!(transfer(&mut rig, SAVE).0, REFUSED);
    let mut rig = negotiated();
    rig.state = Some(SavedState { capacity: 1 << 20, writeback: false }.encode().to_vec());
    assert_eq!(transfer(&mut rig, LOAD).0, BEGUN);
    rig.add_memory();
    let features = FEATURES | virtio::BLK_CONFIG_WCE | virtio::BLK_FLUSH;
    rig.ok(R::SetFeatures(features));
    let mut driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.start_vring(0, 0);
    let framing = midflight::driver::Framing::CLASSIC;
    let op = midflight::driver::BlkOp::Out { sector: 0 };
    common::submit(&rig, &mut driver, 0, op, 512, &framing);
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
    let request = rig.backend.request(rig.at_disk[0]).unwrap();
    assert!(
        matches!(request.op, midflight::blk::DiskOp::Write { durable: true, .. }),
        "{:?}: write through, as the guest chose it elsewhere",
        request.op
    );
}
