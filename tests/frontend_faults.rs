//! What the front-end does when the back-end, the owner or time goes wrong.

mod frontend_peer;

use frontend_peer::*;
use midflight::Handle;
use midflight::frontend::{
    ApiMisuse, BackendFault, Base, Command, ConfigError, Event, Failure, Frontend, FrontendConfig,
    Input, Output, Phase, Start, Unfit, VringWiring,
};
use midflight::time::{Duration, Instant};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    BackendRequest, Envelope, FrontendReply, FrontendReplyBody as Body, FrontendRequest,
    InflightDescription, MAX_BUFFERED, VringState, encode_backend_request, encode_reply,
};
use proptest::prelude::*;

/// The one failure that was told, and whether a next attempt comes.
fn failure(h: &Harness) -> (Failure, bool) {
    let mut found = None;
    for event in &h.events {
        if let Event::Disconnected { failure, retry, .. } = event {
            assert_eq!(found, None);
            found = Some((failure.clone(), *retry));
        }
    }
    found.expect("a failure")
}

fn reply(code: u32, body: Body<Handle>) -> Vec<u8> {
    encode_reply(&FrontendReply { code, body }).0.to_vec()
}

#[test]
fn frontend_gives_up_a_back_end_that_refuses_what_a_start_needs() {
    for message in ["SET_VRING_KICK", "SET_VRING_ENABLE", "ADD_MEM_REG", "SET_VRING_CALL"] {
        let mut h = Harness::ready();
        h.peer.refuse.insert(message, 22);
        h.command(Command::Start(start(Base::Kept)));
        let refused = Failure::BackendRefused { message, status: 22 };
        assert_eq!(failure(&h), (refused.clone(), true));
        assert_eq!(h.wishes.last(), Some(&Output::Close(refused)));
        assert_eq!(h.frontend.phase(), Phase::Backoff);
        let sent = h.peer.log.iter().filter(|l| l.starts_with(message)).count();
        assert_eq!(sent, 1, "nothing is sent after a refusal");
    }
}

#[test]
fn frontend_gives_up_for_good_on_a_back_end_that_is_unfit() {
    let no_queues = Unfit::TooFewQueues { wanted: 2, offered: 1 };
    type Spoil = fn(&mut Peer);
    let cases: [(Spoil, Unfit); 3] = [
        (|peer| peer.queues = 1, no_queues),
        (|peer| peer.protocol &= !protocol::MQ, no_queues),
        (|peer| peer.protocol &= !protocol::CONFIG, Unfit::NoConfig),
    ];
    for (spoil, unfit) in cases {
        let mut h = Harness::new(config());
        spoil(&mut h.peer);
        h.command(Command::Connect);
        h.connect();
        assert_eq!(failure(&h), (Failure::BackendUnfit(unfit), false));
        assert_eq!(h.frontend.phase(), Phase::Failed);
        assert_eq!(h.frontend.poll_timeout(), None);
        assert!(h.wishes.contains(&Output::Close(unfit.into())));
        // The owner may know better.
        h.clear();
        h.peer = Peer::default();
        h.command(Command::Connect);
        h.connect();
        assert_eq!(h.frontend.phase(), Phase::Ready);
    }
}

#[test]
fn frontend_does_not_lose_requests_to_a_back_end_without_inflight_tracking() {
    let mut h = Harness::running();
    h.peer.protocol &= !protocol::INFLIGHT_SHMFD;
    h.input(Input::PeerClosed);
    h.tick();
    h.events.clear();
    h.connect();
    assert_eq!(failure(&h), (Failure::BackendUnfit(Unfit::NoInflight), false));
    // After a reset nothing is in flight that could be lost.
    h.clear();
    h.command(Command::Reset);
    assert_eq!(h.wishes, [Output::Release(REGION)]);
    h.wishes.clear();
    h.command(Command::Connect);
    h.connect();
    assert_eq!(h.frontend.phase(), Phase::Ready);
}

#[test]
fn frontend_accepts_suspension_only_together_with_the_region() {
    let suspend = config().dialect.get_vring_base_inflight();
    let sent = |protocol_offered: u64| {
        let mut h =
            Harness::new(FrontendConfig { protocol_features: PROTOCOL | suspend, ..config() });
        h.peer.protocol = protocol_offered;
        h.command(Command::Connect);
        h.connect();
        match h.events[..] {
            [Event::Ready { protocol, .. }] => protocol,
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(sent(PROTOCOL | suspend), PROTOCOL | suspend);
    let without = PROTOCOL & !protocol::INFLIGHT_SHMFD;
    assert_eq!(sent(without | suspend), without);
    assert_eq!(sent(u64::MAX), PROTOCOL | suspend, "nothing it did not ask for");
}

#[test]
fn frontend_closes_on_answers_that_cannot_be() {
    let shape =
        InflightDescription { mmap_size: 4224, mmap_offset: 0, num_queues: 2, queue_size: 64 };
    type Spoil = fn(&mut Peer);
    let cases: [(Spoil, Command, BackendFault); 2] = [
        (
            |peer| peer.inflight.as_mut().unwrap().queue_size = 64,
            Command::Start(start(Base::Kept)),
            BackendFault::Value {
                message: "GET_INFLIGHT_FD",
                field: "queue size",
                expected: 128,
                got: u64::from(shape.queue_size),
            },
        ),
        (
            |peer| peer.config.truncate(40),
            Command::ReadConfig { offset: 0, size: 40 },
            BackendFault::UnexpectedReply { expected: None, got: 1 },
        ),
    ];
    for (i, (spoil, command, fault)) in cases.into_iter().enumerate() {
        let mut h = Harness::ready();
        spoil(&mut h.peer);
        h.command(command);
        if i == 1 {
            // The answer to the question was fine; then comes another one.
            assert!(matches!(h.events[..], [Event::ConfigRead { .. }]));
            h.input(Input::Received { bytes: &reply(1, Body::U64(0)), handles: vec![] });
        } else {
            assert_eq!(h.wishes[0], Output::Release(REGION));
        }
        let misbehaved = Failure::BackendMisbehaved(fault);
        assert_eq!(failure(&h), (misbehaved.clone(), true));
        assert_eq!(h.wishes.last(), Some(&Output::Close(misbehaved)));
    }
}

#[test]
fn frontend_closes_on_a_base_that_is_none() {
    let state = |index, num| Body::VringState(VringState { index, num });
    let value = |field, expected, got| BackendFault::Value {
        message: "GET_VRING_BASE",
        field,
        expected,
        got,
    };
    let cases = [
        (11, state(1, 0), value("index", 0, 1)),
        (11, state(0, 0x8000_8000), BackendFault::Base { vring: 0, got: 0x8000_8000 }),
        (
            1,
            Body::U64(0),
            BackendFault::UnexpectedReply { expected: Some("GET_VRING_BASE"), got: 1 },
        ),
    ];
    for (code, body, fault) in cases {
        let mut h = Harness::running();
        h.peer.mute.insert("GET_VRING_BASE");
        h.command(Command::Stop);
        assert_eq!(h.frontend.awaiting(), Some("GET_VRING_BASE"));
        h.input(Input::Received { bytes: &reply(code, body), handles: vec![] });
        assert_eq!(failure(&h), (fault.into(), true));
    }
}

#[test]
fn frontend_releases_every_descriptor_that_came_for_nothing() {
    // A status has no descriptors; this one has two.
    let mut h = Harness::ready();
    h.peer.mute.insert("SET_VRING_CALL");
    h.command(Command::Start(start(Base::Kept)));
    h.wishes.clear();
    h.input(Input::Received {
        bytes: &reply(13, Body::U64(0)),
        handles: vec![Handle(1), Handle(2)],
    });
    assert!(matches!(failure(&h).0, Failure::BackendMisbehaved(BackendFault::Wire(_))));
    assert_eq!(h.wishes[..2], [Output::Release(Handle(1)), Output::Release(Handle(2))]);

    // A region that nobody asked for, and one that is cut short.
    let region = encode_reply(&FrontendReply {
        code: 31,
        body: Body::Inflight(
            InflightDescription { mmap_size: 64, mmap_offset: 0, num_queues: 2, queue_size: 128 },
            Handle(3),
        ),
    });
    for cut in [region.0.len(), 20] {
        let mut h = Harness::ready();
        h.input(Input::Received { bytes: &region.0[..cut], handles: vec![Handle(3)] });
        if cut == 20 {
            assert_eq!(h.wishes, []);
            h.input(Input::PeerClosed);
        }
        assert_eq!(h.wishes[0], Output::Release(Handle(3)));
    }

    // More than a front-end can have asked for.
    let mut h = Harness::ready();
    h.input(Input::Received { bytes: &vec![0; MAX_BUFFERED + 1], handles: vec![Handle(4)] });
    assert_eq!(h.wishes[0], Output::Release(Handle(4)));
    assert!(matches!(failure(&h).0, Failure::BackendMisbehaved(BackendFault::Flood(_))));
}

#[test]
fn frontend_closes_when_an_answer_is_overdue() {
    let mut h = Harness::running();
    h.peer.mute.insert("GET_VRING_BASE");
    h.now = Instant::from_nanos(77);
    h.command(Command::Stop);
    h.tick();
    assert_eq!(h.now, Instant::from_nanos(77) + Duration::from_secs(5));
    let overdue = Failure::BackendOverdue { message: "GET_VRING_BASE" };
    assert_eq!(failure(&h), (overdue.clone(), true));
    assert_eq!(h.wishes.last(), Some(&Output::Close(overdue)));
}

#[test]
fn frontend_without_backoff_does_not_come_back() {
    let mut h = Harness::new(FrontendConfig { reconnect_backoff: None, ..config() });
    h.command(Command::Connect);
    h.connect();
    h.input(Input::PeerClosed);
    assert_eq!(failure(&h), (Failure::BackendClosed, false));
    assert_eq!(h.frontend.phase(), Phase::Failed);
}

#[test]
fn frontend_disconnects_when_the_owner_wants_it_whatever_is_under_way() {
    let mut h = Harness::running();
    h.peer.mute.insert("GET_VRING_BASE");
    h.command(Command::Stop);
    h.command(Command::Disconnect);
    assert_eq!(failure(&h), (Failure::Disconnected, false));
    assert_eq!(h.wishes, [Output::Close(Failure::Disconnected)]);
    assert_eq!(h.frontend.phase(), Phase::Idle);
    assert_eq!(h.frontend.poll_timeout(), None);
}

#[test]
fn frontend_config_writes_that_are_refused_leave_the_connection_alone() {
    let mut h = Harness::running();
    let write = || Command::WriteConfig { offset: 32, flags: 0, data: vec![1].into() };
    h.command(write());
    h.peer.refuse.insert("SET_CONFIG", 5);
    h.command(write());
    h.command(Command::ReadConfig { offset: 8, size: 4 });
    h.command(Command::ReadConfig { offset: 200, size: 4 });
    assert_eq!(
        h.peer.log,
        ["SET_CONFIG!(32,1)", "SET_CONFIG!(32,1)", "GET_CONFIG(8,4)", "GET_CONFIG(200,4)"]
    );
    let read = Event::ConfigRead { offset: 8, data: vec![8, 9, 10, 11].into() };
    let refused = |message, status| Event::Refused { message, status };
    assert_eq!(
        h.events,
        [Event::ConfigWritten, refused("SET_CONFIG", 5), read, refused("GET_CONFIG", 1)]
    );
    assert_eq!(h.frontend.phase(), Phase::Running);
}

#[test]
fn frontend_answers_a_config_change_after_it_has_read_the_new_content() {
    let mut h = Harness::running();
    h.peer.config[0] = 99;
    h.peer.mute.insert("GET_CONFIG");
    let (notice, _) = encode_backend_request(&Envelope {
        message: BackendRequest::<Handle>::ConfigChangeMsg,
        need_reply: true,
    });
    assert_eq!(h.frontend.channel_wanted(), 12);
    for piece in notice.chunks(5) {
        h.input(Input::ChannelReceived { bytes: piece, handles: vec![] });
    }
    assert_eq!(h.peer.log, ["GET_CONFIG(0,60)"]);
    assert_eq!(h.wishes, [], "no answer yet");
    let config =
        midflight::wire::ConfigPayload { offset: 0, flags: 0, data: h.peer.config.clone().into() };
    h.input(Input::Received { bytes: &reply(24, Body::Config(config)), handles: vec![] });
    assert!(matches!(&h.events[..], [Event::ConfigChanged(data)] if data[0] == 99));
    // These are the bytes that QEMU answers with.
    let answer = [2u32, 5, 8, 0, 0].map(u32::to_ne_bytes).concat();
    assert_eq!(h.wishes, [Output::ChannelSend { bytes: answer.into(), handles: vec![] }]);
}

#[test]
fn frontend_says_no_to_back_end_requests_it_does_not_serve() {
    let mut h = Harness::running();
    let lookup = BackendRequest::<Handle>::SharedObjectLookup([7; 16]);
    let err = BackendRequest::VringErr(VringState { index: 0, num: 0 });
    for (message, need_reply, answered) in [(lookup, false, true), (err, false, false)] {
        h.clear();
        let (bytes, _) = encode_backend_request(&Envelope { message, need_reply });
        h.input(Input::ChannelReceived { bytes: &bytes, handles: vec![] });
        assert_eq!(h.wishes.len(), usize::from(answered));
        assert_eq!(h.frontend.phase(), Phase::Running);
    }
    // Bytes that are no request end the connection as those on the socket do.
    h.input(Input::ChannelReceived { bytes: &[0xff; 12], handles: vec![Handle(5)] });
    assert!(h.wishes.contains(&Output::Release(Handle(5))));
    assert!(matches!(failure(&h).0, Failure::BackendMisbehaved(BackendFault::Wire(_))));
}

#[test]
fn frontend_raw_messages_go_out_in_any_order_and_bring_their_answers() {
    let mut h = Harness::new(FrontendConfig { negotiate: false, ..config() });
    h.command(Command::Connect);
    h.connect();
    assert_eq!(h.peer.log, [""; 0]);
    let raw = |request: FrontendRequest<Handle>, need_reply| Command::Raw { request, need_reply };
    let base = VringState { index: 1, num: 0 };
    h.clear();
    // REPLY_ACK is not negotiated, so nobody waits for an answer.
    h.command(raw(FrontendRequest::SetOwner, true));
    h.command(raw(FrontendRequest::SetProtocolFeatures(protocol::REPLY_ACK), false));
    h.command(raw(FrontendRequest::SetOwner, true));
    h.command(raw(FrontendRequest::GetVringBase(base), true));
    assert_eq!(
        h.peer.log,
        ["SET_OWNER!", "SET_PROTOCOL_FEATURES", "SET_OWNER!", "GET_VRING_BASE!(1)"]
    );
    let answer = |code, body| Event::RawReply(FrontendReply { code, body });
    assert_eq!(h.events, [answer(3, Body::U64(0)), answer(11, Body::VringState(base))]);
    let unknown = raw(FrontendRequest::GetVringBaseSkipDrain(base), false);
    assert!(matches!(
        h.frontend.handle_input(h.now, Input::Command(unknown)),
        Err(ApiMisuse::Encode(_))
    ));
}

#[test]
fn frontend_misuse_is_refused_and_changes_nothing() {
    let mut h = Harness::ready();
    let mut refuse = |input: Input<'_>| h.frontend.handle_input(h.now, input).unwrap_err();
    let phase = Phase::Ready;
    for (input, what) in [
        (Input::Command(Command::Stop), "stop"),
        (Input::Command(Command::Connect), "connect"),
        (Input::Connected { channel: None }, "connected"),
        (Input::ConnectFailed(String::new()), "connect failed"),
    ] {
        assert_eq!(refuse(input), ApiMisuse::WrongPhase { what, phase });
    }
    let start_with = |vrings| Input::Command(Command::Start(Start { features: None, vrings }));
    let at = |index| vring(index, Base::At(0));
    assert_eq!(refuse(start_with(vec![at(2)])), ApiMisuse::BadVring(2));
    assert_eq!(refuse(start_with(vec![at(1), at(1)])), ApiMisuse::BadVring(1));
    let eager = Start { features: Some(virtio::RING_PACKED), vrings: vec![] };
    assert_eq!(
        refuse(Input::Command(Command::Start(eager))),
        ApiMisuse::FeaturesNotOffered(virtio::RING_PACKED)
    );
    h.peer.log.clear();
    h.command(Command::SetMemory(vec![]));
    let no_memory = Input::Command(Command::Start(start(Base::Kept)));
    assert_eq!(h.frontend.handle_input(h.now, no_memory), Err(ApiMisuse::NoMemory));
    h.command(Command::SetMemory((0..33).map(|i| (region(i << 32), Handle(50))).collect()));
    let too_much = Input::Command(Command::Start(start(Base::Kept)));
    assert_eq!(
        h.frontend.handle_input(h.now, too_much),
        Err(ApiMisuse::TooManyRegions { max: 32, got: 33 })
    );
    assert_eq!(h.peer.log, [""; 0]);
    assert_eq!(h.frontend.phase(), Phase::Ready);
    h.command(Command::SetMemory(memory()));
    h.command(Command::Start(start(Base::Kept)));
    assert_eq!(h.frontend.phase(), Phase::Running);

    let mut idle = Frontend::new(config(), vec![VringWiring::default(); 2]).unwrap();
    let bytes = Input::Received { bytes: &[0], handles: vec![] };
    assert!(idle.handle_input(h.now, bytes).is_err());
    assert!(idle.handle_input(h.now, Input::PeerClosed).is_err());
}

#[test]
fn frontend_configurations_without_sense_are_refused() {
    let wiring = |n: usize| vec![VringWiring::default(); n];
    let with = |change: fn(&mut FrontendConfig), n| {
        let mut config = config();
        change(&mut config);
        Frontend::new(config, wiring(n)).map(|_| ())
    };
    assert_eq!(with(|_| {}, 2), Ok(()));
    assert_eq!(with(|c| c.num_queues = 0, 0), Err(ConfigError::NumQueues(0)));
    assert_eq!(with(|c| c.num_queues = 257, 257), Err(ConfigError::NumQueues(257)));
    assert_eq!(with(|c| c.queue_size = 100, 2), Err(ConfigError::QueueSize(100)));
    assert_eq!(with(|c| c.config_len = 257, 2), Err(ConfigError::ConfigLen(257)));
    assert_eq!(with(|_| {}, 3), Err(ConfigError::Wiring { expected: 2, got: 3 }));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    /// A back-end may answer anything at any time: no panic, and every
    /// descriptor it sends is either kept as the region or released.
    #[test]
    fn frontend_survives_any_bytes_and_loses_no_descriptor(
        command in 0usize..6,
        mute in prop::sample::select(vec![
            "SET_VRING_CALL", "GET_INFLIGHT_FD", "GET_VRING_BASE", "GET_CONFIG", "SET_CONFIG", "GET_STATUS", "none",
        ]),
        frames in prop::collection::vec(
            (0u32..46, prop_oneof![9 => Just(5u32), 1 => any::<u32>()],
             prop::collection::vec(any::<u8>(), 0..40), 0u32..3, prop::option::of(0u32..64)),
            1..6,
        ),
        cut in 1usize..60,
    ) {
        let mut h = Harness::running();
        h.peer.mute.insert(mute);
        match command {
            0 => h.command(Command::Stop),
            1 => h.command(Command::Reset),
            2 => h.command(Command::ReadConfig { offset: 0, size: 8 }),
            3 => h.command(Command::WriteConfig { offset: 32, flags: 0, data: vec![0].into() }),
            4 => {
                h.command(Command::Stop);
                if h.frontend.phase() == Phase::Ready {
                    h.command(Command::Reset);
                }
                if h.frontend.phase() == Phase::Ready {
                    h.command(Command::Start(start(Base::Kept)));
                }
            }
            _ => {}
        }
        let mut given = 0;
        'frames: for (code, flags, payload, count, size) in frames {
            let size = size.unwrap_or(payload.len() as u32);
            let mut bytes = [code, flags, size].map(u32::to_ne_bytes).concat();
            bytes.extend(payload);
            let mut handles: Vec<_> = (0..count).map(|i| Handle(2000 + given + i)).collect();
            for piece in bytes.chunks(cut) {
                if !h.frontend.phase().is_connected() {
                    break 'frames;
                }
                given += handles.len() as u32;
                h.input(Input::Received { bytes: piece, handles: core::mem::take(&mut handles) });
            }
        }
        if h.frontend.phase().is_connected() {
            h.input(Input::PeerClosed);
        }
        // What is kept is let go by a reset.
        h.command(Command::Reset);
        let mut released: Vec<u32> = h.wishes.iter().filter_map(|wish| match wish {
            Output::Release(Handle(h)) if *h >= 2000 => Some(*h),
            _ => None,
        }).collect();
        released.sort_unstable();
        prop_assert_eq!(released, (2000..2000 + given).collect::<Vec<_>>());
    }
}
