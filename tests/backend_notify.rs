//! Kicks and calls: descriptors that are swapped while requests are under way,
//! none at all, and messages in their place.

mod common;

use common::{FEATURES, Rig, ring_features, ring_layout, submit};
use midflight::backend::{CloseReason, Event, Input, TimerKind};
use midflight::blk::DeviceConfig;
use midflight::driver::{BlkDriver, BlkOp, Framing};
use midflight::time::Duration;
use midflight::wire::features::protocol;
use midflight::wire::{BackendRequest, FrontendRequest as R, VringFile, VringState};
use vm_memory::{Bytes, GuestAddress};

const INBAND: u64 = protocol::INBAND_NOTIFICATIONS;

fn state(index: u32) -> VringState {
    VringState { index, num: 0 }
}

fn call(index: u32) -> BackendRequest<midflight::Handle> {
    BackendRequest::VringCall(state(index))
}

/// Vring 0 runs by messages alone.
fn inband() -> (Rig, BlkDriver) {
    let mut rig = unstarted();
    let driver = BlkDriver::start(&rig.guest, ring_layout(0), ring_features()).unwrap();
    rig.ok(R::VringKick(state(0)));
    rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
    // The spurious call of every start.
    assert_eq!(rig.asked.len(), 1);
    answer_call(&mut rig);
    (rig, driver)
}

/// The same before the vring is started, with in-band notifications in force.
fn unstarted() -> Rig {
    let config = DeviceConfig { inband: true, ..DeviceConfig::with_capacity(1 << 20) };
    let mut rig = Rig::new(config);
    rig.negotiate(FEATURES);
    rig.open_channel();
    rig.add_memory();
    rig.ok(R::SetVringNum(VringState { index: 0, num: common::RING.into() }));
    rig.ok(R::SetVringBase(state(0)));
    rig.ok(R::SetVringAddr(common::vring_addr(0)));
    rig
}

fn answer_call(rig: &mut Rig) {
    assert_eq!(rig.asked.last().unwrap().message, call(0));
    rig.answer(&call(0), 0);
}

/// One more write; nothing has told the back-end.
fn available(rig: &mut Rig, driver: &mut BlkDriver, slot: u64) {
    submit(rig, driver, slot, BlkOp::Out { sector: 8 }, 512, &Framing::CLASSIC);
    driver.publish(&rig.guest).unwrap();
    driver.ring_mut().enable_calls(&rig.guest).unwrap();
}

#[test]
fn notify_inband_kick_starts_a_vring_and_call_is_a_message() {
    let (mut rig, mut driver) = inband();
    available(&mut rig, &mut driver, 0);
    assert!(rig.at_disk.is_empty());
    rig.ok(R::VringKick(state(0)));
    assert_eq!(rig.at_disk.len(), 1);
    let asked = rig.asked.len();
    rig.finish_all();
    assert_eq!(rig.asked.len(), asked + 1);
    assert_eq!(rig.asked.last().unwrap().message, call(0));
    assert!(rig.asked.last().unwrap().need_reply);
    assert!(rig.calls.is_empty(), "no descriptor was given");
}

#[test]
fn notify_inband_calls_are_one_at_a_time_and_none_is_lost() {
    let (mut rig, mut driver) = inband();
    let before = rig.asked.len();
    for slot in 0..5 {
        available(&mut rig, &mut driver, slot);
        rig.ok(R::VringKick(state(0)));
        rig.finish_all();
        assert!(driver.reap(&rig.guest).unwrap().is_some());
    }
    assert_eq!(rig.asked.len(), before + 1, "the first is not answered yet");
    answer_call(&mut rig);
    assert_eq!(rig.asked.len(), before + 2, "what came meanwhile is one more");
    answer_call(&mut rig);
    assert_eq!(rig.asked.len(), before + 2);
}

#[test]
fn notify_inband_call_outlives_the_channel_that_it_was_sent_on() {
    let (mut rig, mut driver) = inband();
    available(&mut rig, &mut driver, 0);
    rig.ok(R::VringKick(state(0)));
    rig.finish_all();
    let before = rig.asked.len();
    rig.input(Input::ChannelClosed(None));
    rig.open_channel();
    assert_eq!(rig.asked.len(), before + 1);
    assert_eq!(rig.asked.last().unwrap().message, call(0));
    // And what is completed while there is none.
    answer_call(&mut rig);
    rig.input(Input::ChannelClosed(None));
    assert!(driver.reap(&rig.guest).unwrap().is_some());
    available(&mut rig, &mut driver, 0);
    rig.ok(R::VringKick(state(0)));
    rig.finish_all();
    rig.open_channel();
    assert_eq!(rig.asked.len(), before + 2);
}

#[test]
fn notify_inband_stop_says_the_last_call_before_its_answer_and_nothing_after() {
    let (mut rig, mut driver) = inband();
    for slot in 0..2 {
        available(&mut rig, &mut driver, slot);
        rig.ok(R::VringKick(state(0)));
        rig.finish_all();
        assert!(driver.reap(&rig.guest).unwrap().is_some());
    }
    let before = rig.asked.len();
    assert_eq!(rig.get_base(0), Some(2));
    assert_eq!(rig.asked.len(), before + 1, "the second call");
    rig.answer(&call(0), 0);
    rig.answer(&call(0), 0);
    assert_eq!(rig.asked.len(), before + 1);
}

#[test]
fn notify_inband_err_is_a_message() {
    let (mut rig, mut driver) = inband();
    available(&mut rig, &mut driver, 0);
    rig.guest.write_obj(u16::MAX, GuestAddress(ring_layout(0).avail + 4)).unwrap();
    rig.ok(R::VringKick(state(0)));
    assert_eq!(rig.asked.last().unwrap().message, BackendRequest::VringErr(state(0)));
    rig.answer(&BackendRequest::VringErr(state(0)), 0);
    assert!(rig.errs.is_empty());
}

#[test]
fn notify_descriptors_take_precedence_and_nofd_asks_for_nothing() {
    let (mut rig, mut driver) = inband();
    let before = rig.asked.len();
    let handle = Some(rig.handle());
    rig.ok(R::SetVringCall(VringFile { index: 0, handle }));
    assert_eq!(rig.calls, [0], "spurious, for what the message may have missed");
    available(&mut rig, &mut driver, 0);
    rig.ok(R::VringKick(state(0)));
    rig.finish_all();
    assert_eq!((rig.calls.len(), rig.asked.len()), (2, before));
    assert!(driver.reap(&rig.guest).unwrap().is_some());
    rig.ok(R::SetVringCall(VringFile { index: 0, handle: None }));
    available(&mut rig, &mut driver, 0);
    rig.ok(R::VringKick(state(0)));
    rig.finish_all();
    assert_eq!((rig.calls.len(), rig.asked.len()), (2, before), "the guest looks by itself");
    assert!(driver.reap(&rig.guest).unwrap().is_some());
}

#[test]
fn notify_inband_messages_are_refused_where_they_were_not_agreed_on() {
    let mut rig = Rig::new(DeviceConfig::with_capacity(1 << 20));
    assert_eq!(rig.backend.offered_protocol_features() & INBAND, 0);
    rig.negotiate(FEATURES);
    assert_eq!(
        rig.refused(R::VringKick(state(0))),
        "VRING_KICK came without INBAND_NOTIFICATIONS being negotiated"
    );
    let (mut rig, _) = inband();
    assert_eq!(
        rig.refused(R::VringKick(state(7))),
        "VRING_KICK names vring 7, expected less than 1"
    );
}

#[test]
fn notify_inband_without_what_it_takes_closes_the_connection() {
    for without in [protocol::REPLY_ACK, protocol::BACKEND_REQ] {
        let config = DeviceConfig { inband: true, ..DeviceConfig::with_capacity(1 << 20) };
        let mut rig = Rig::new(config);
        let bits = rig.backend.offered_protocol_features() & !without;
        assert_ne!(bits & INBAND, 0);
        rig.send(R::SetProtocolFeatures(bits), true);
        let Some(CloseReason::FrontendMisbehaved(fault)) = &rig.closed else {
            panic!("{:?}", rig.closed)
        };
        let said = fault.to_string();
        assert!(said.starts_with("INBAND_NOTIFICATIONS is in protocol features"), "{said}");
    }
}

#[test]
fn notify_kick_swapped_after_the_guest_has_kicked_the_old_one_loses_nothing() {
    let (mut rig, mut driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    for slot in 0..20 {
        // Kicked, but nobody has looked at the old descriptor.
        available(&mut rig, &mut driver, slot);
        let handle = if slot % 3 == 0 { None } else { Some(rig.handle()) };
        rig.ok(R::SetVringKick(VringFile { index: 0, handle }));
        assert_eq!(rig.at_disk.len(), 1);
        rig.finish_all();
        assert!(driver.reap(&rig.guest).unwrap().is_some());
    }
}

#[test]
fn notify_call_swapped_around_a_publication_is_signalled_on_the_new_one() {
    let (mut rig, mut driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    for slot in 0..20 {
        available(&mut rig, &mut driver, slot);
        rig.kick(0);
        rig.finish_all();
        // The old one was signalled, and nobody will read it.
        let before = rig.calls.len();
        let handle = Some(rig.handle());
        rig.ok(R::SetVringCall(VringFile { index: 0, handle }));
        assert_eq!(rig.calls.len(), before + 1);
        assert!(driver.reap(&rig.guest).unwrap().is_some());
    }
}

#[test]
fn notify_err_swapped_after_the_vring_broke_is_signalled_on_the_new_one() {
    let (mut rig, mut driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    let handle = Some(rig.handle());
    rig.ok(R::SetVringErr(VringFile { index: 0, handle }));
    assert!(rig.errs.is_empty(), "nothing is broken");
    available(&mut rig, &mut driver, 0);
    rig.guest.write_obj(u16::MAX, GuestAddress(ring_layout(0).avail + 4)).unwrap();
    rig.kick(0);
    assert_eq!(rig.errs, [0]);
    assert!(rig.events.iter().any(|e| matches!(e, Event::VringBroken { vring: 0, .. })));
    for count in 2..5 {
        let handle = Some(rig.handle());
        rig.ok(R::SetVringErr(VringFile { index: 0, handle }));
        assert_eq!(rig.errs.len(), count);
    }
    rig.ok(R::SetVringErr(VringFile { index: 0, handle: None }));
    assert_eq!(rig.errs.len(), 4);
}

#[test]
fn notify_vring_without_a_kick_is_looked_at_by_the_clock() {
    let (mut rig, mut driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    rig.ok(R::SetVringKick(VringFile { index: 0, handle: None }));
    available(&mut rig, &mut driver, 0);
    let (due, kind) = rig.backend.poll_timeout().unwrap();
    assert_eq!(kind, TimerKind::PollVring);
    assert!(due <= rig.now + Duration::from_micros(50));
    rig.now = due;
    rig.input(Input::Timeout);
    assert_eq!(rig.at_disk.len(), 1);
    // With a descriptor again the clock is of no use.
    let handle = Some(rig.handle());
    rig.ok(R::SetVringKick(VringFile { index: 0, handle }));
    assert_eq!(rig.backend.poll_timeout(), None);
}

#[test]
fn notify_answers_may_overtake_each_other_and_are_matched_by_kind() {
    let (mut rig, mut driver) = inband();
    // A change, which a front-end answers when it has read the configuration.
    rig.input(Input::Capacity(2 << 20));
    assert_eq!(rig.asked.last().unwrap().message, BackendRequest::ConfigChangeMsg);
    available(&mut rig, &mut driver, 0);
    rig.ok(R::VringKick(state(0)));
    rig.finish_all();
    rig.answer(&call(0), 0);
    rig.answer(&BackendRequest::ConfigChangeMsg, 0);
    assert!(rig.channel.is_some());
}
