//! The back-end's own channel, without sockets: what is asked on it, whose
//! answer is whose, and what a front-end may do to it.

mod common;

use common::{FEATURES, Rig};
use midflight::Handle;
use midflight::backend::{ApiMisuse, ChannelEnd, Event, Input, Output};
use midflight::blk::DeviceConfig;
use midflight::wire::features::protocol;
use midflight::wire::{
    BackendRequest, ConfigPayload, Envelope, FrontendReplyBody, FrontendRequest as R, MemRegion,
    VringState, encode_request,
};

const MIB: u64 = 1 << 20;

fn config() -> DeviceConfig {
    DeviceConfig::with_capacity(MIB)
}

fn read_config(rig: &mut Rig) -> u64 {
    let data = vec![0; 60].into();
    match rig.send(R::GetConfig(ConfigPayload { offset: 0, flags: 0, data }), false) {
        Some(FrontendReplyBody::Config(c)) => u64::from_le_bytes(c.data[..8].try_into().unwrap()),
        other => panic!("{other:?}"),
    }
}

/// A front-end that has read the configuration and given a channel.
fn running() -> Rig {
    let mut rig = Rig::new(config());
    rig.negotiate(FEATURES);
    rig.open_channel();
    assert_eq!(read_config(&mut rig), MIB / 512);
    rig.run();
    assert!(rig.asked.is_empty(), "{:?}", rig.asked);
    rig
}

fn lost(rig: &Rig) -> String {
    match rig.events.last() {
        Some(Event::ChannelLost(end)) => end.to_string(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn channel_growth_is_told_and_read_on_the_main_channel_while_its_answer_is_due() {
    let mut rig = running();
    rig.input(Input::Capacity(2 * MIB + 100));
    assert_eq!(rig.asked.len(), 1);
    assert_eq!(rig.asked[0].message, BackendRequest::ConfigChangeMsg);
    assert!(rig.asked[0].need_reply);
    assert!(rig.events.contains(&Event::CapacityChanged { from: MIB, to: 2 * MIB }));
    // A front-end reads before it answers, so the back-end must go on.
    assert_eq!(read_config(&mut rig), 2 * MIB / 512);
    rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
    rig.answer(&BackendRequest::ConfigChangeMsg, 0);
    assert_eq!(rig.asked.len(), 1, "the same is not told again");
    rig.input(Input::Capacity(2 * MIB));
    assert_eq!(rig.asked.len(), 1, "the same size is no change");
}

#[test]
fn channel_many_changes_are_one_notice_at_a_time_and_the_last_is_told() {
    let mut rig = running();
    for i in 2..100 {
        rig.input(Input::Capacity(i * MIB));
    }
    assert_eq!(rig.asked.len(), 1, "one is due");
    rig.answer(&BackendRequest::ConfigChangeMsg, 0);
    assert_eq!(rig.asked.len(), 2, "what changed meanwhile follows");
    assert_eq!(read_config(&mut rig), 99 * MIB / 512);
    rig.answer(&BackendRequest::ConfigChangeMsg, 0);
    assert_eq!(rig.asked.len(), 2);
}

#[test]
fn channel_front_end_that_comes_back_without_reading_is_told_once_its_vrings_run() {
    let mut rig = running();
    rig.input(Input::PeerClosed);
    assert_eq!((rig.channel, rig.live.len()), (None, 0), "nothing of a front-end is left");
    rig.input(Input::Connected);
    rig.negotiate_again(FEATURES);
    rig.open_channel();
    rig.input(Input::Capacity(2 * MIB));
    assert!(rig.asked.is_empty(), "nothing is said before a vring runs");
    rig.set_up();
    assert_eq!(rig.asked.len(), 1);
}

#[test]
fn channel_change_while_stopped_waits_for_the_next_start() {
    let mut rig = running();
    rig.send(R::GetVringBase(VringState { index: 0, num: 0 }), false);
    rig.input(Input::Capacity(2 * MIB));
    assert!(rig.asked.is_empty());
    rig.start_vring(0, 0);
    assert_eq!(rig.asked.len(), 1);
}

#[test]
fn channel_change_without_a_channel_waits_for_one() {
    let mut rig = Rig::new(config());
    rig.run();
    rig.input(Input::Capacity(2 * MIB));
    assert!(rig.asked.is_empty());
    rig.open_channel();
    assert_eq!(rig.asked.len(), 1);
}

#[test]
fn channel_refusal_is_reported_and_changes_nothing() {
    let mut rig = running();
    rig.input(Input::Capacity(2 * MIB));
    rig.answer(&BackendRequest::ConfigChangeMsg, 7);
    let request = "BACKEND_CONFIG_CHANGE_MSG";
    assert_eq!(rig.events.last(), Some(&Event::RequestRefused { request, status: 7 }));
    assert!(rig.channel.is_some());
}

#[test]
fn channel_closed_by_the_front_end_leaves_the_vrings_alone() {
    let mut rig = running();
    rig.input(Input::ChannelClosed(None));
    assert_eq!(lost(&rig), "closed by the front-end");
    assert_eq!(rig.channel, None);
    assert_eq!(rig.closed, None);
    rig.input(Input::Capacity(2 * MIB));
    assert!(rig.asked.is_empty());
    // Told twice, as by a driver that was about to say so: no change.
    let events = rig.events.len();
    rig.input(Input::ChannelClosed(Some("broken pipe".into())));
    assert_eq!(rig.events.len(), events);
    // The front-end may give another one.
    rig.open_channel();
    assert_eq!(rig.asked.len(), 1);
}

#[test]
fn channel_that_is_lost_with_a_notice_on_the_way_is_told_again_on_the_next() {
    let mut rig = running();
    rig.input(Input::Capacity(2 * MIB));
    assert_eq!(rig.asked.len(), 1);
    rig.open_channel();
    assert_eq!(rig.asked.len(), 2, "the answer to the first will never come");
}

#[test]
fn channel_garbage_costs_the_channel_and_nothing_else() {
    let cases: [(&[u8], &str); 4] = [
        (&[0xff; 12], "version 3, expected 1"),
        // A request instead of an answer.
        (&[2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], "reply flag"),
        // An answer to what was not asked.
        (
            &[1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
            "expected no answer, got an answer to request 1",
        ),
        (&[2, 0, 0, 0, 5, 0, 0, 0, 0, 16, 0, 0], "BACKEND_CONFIG_CHANGE_MSG"),
    ];
    for (bytes, why) in cases {
        let mut rig = running();
        let live = rig.live.len();
        rig.input(Input::ChannelReceived { bytes, handles: Vec::new() });
        let said = lost(&rig);
        assert!(said.starts_with("front-end misbehaved: ") && said.contains(why), "{said}");
        assert_eq!((rig.channel, rig.live.len()), (None, live - 1));
        assert_eq!(rig.closed, None);
        rig.ok(R::SetVringEnable(VringState { index: 0, num: 1 }));
    }
}

#[test]
fn channel_answer_to_another_request_than_the_first_due_is_refused() {
    let mut rig = running();
    rig.input(Input::Capacity(2 * MIB));
    rig.answer(&BackendRequest::VringCall(VringState { index: 0, num: 0 }), 0);
    assert_eq!(
        lost(&rig),
        "front-end misbehaved: expected BACKEND_CONFIG_CHANGE_MSG, got an answer to request 4"
    );
}

#[test]
fn channel_flood_of_descriptors_is_refused_and_none_is_kept() {
    let mut rig = running();
    let live = rig.live.len();
    for byte in [2, 0, 0, 0, 5] {
        if rig.channel.is_some() {
            let handles: Vec<Handle> = (0..20).map(|_| rig.handle()).collect();
            rig.input(Input::ChannelReceived { bytes: &[byte], handles });
        }
    }
    assert_eq!(
        rig.events.last(),
        Some(&Event::ChannelLost(ChannelEnd::TooManyHandles { got: 80, max: 64 }))
    );
    assert_eq!(rig.live.len(), live - 1);
    assert_eq!(rig.closed, None);
}

#[test]
fn channel_is_wanted_while_the_main_channel_waits() {
    let mut rig = running();
    rig.input(Input::Capacity(2 * MIB));
    // A mapping that nobody has answered yet.
    let region = MemRegion { guest_addr: 1 << 40, size: 4096, user_addr: 1 << 41, mmap_offset: 0 };
    let message = R::AddMemReg(region, rig.handle());
    let envelope = Envelope { message, need_reply: false };
    let (bytes, handles) = encode_request(&envelope, &rig.dialect).unwrap();
    rig.backend.handle_input(rig.now, Input::Received { bytes: &bytes, handles }).unwrap();
    assert_eq!((rig.backend.wanted(), rig.backend.channel_wanted()), (0, 12));
    rig.answer(&BackendRequest::ConfigChangeMsg, 0);
    assert!(rig.channel.is_some());
}

#[test]
fn channel_without_its_feature_is_refused() {
    let mut rig = Rig::new(config());
    rig.send(R::SetProtocolFeatures(protocol::REPLY_ACK), false);
    let handle = rig.handle();
    assert_eq!(
        rig.refused(R::SetBackendReqFd(handle)),
        "SET_BACKEND_REQ_FD came without BACKEND_REQ being negotiated"
    );
}

#[test]
fn channel_bytes_without_a_channel_are_the_drivers_mistake() {
    let mut rig = Rig::new(config());
    let handles = vec![rig.handle()];
    let told = rig.backend.handle_input(rig.now, Input::ChannelReceived { bytes: &[1], handles });
    assert_eq!(told, Err(ApiMisuse::NoChannel));
    assert!(matches!(rig.backend.poll_output(), Some(Output::Release(_))));
}
