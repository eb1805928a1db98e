//! A migration as the front-end sees it: the source's messages, the
//! destination's, and what is refused before a message is sent.
//!
//! `NAME!` has NEED_REPLY, as QEMU sets it on messages whose failure matters.

mod frontend_peer;

use frontend_peer::*;
use midflight::Handle;
use midflight::frontend::{
    ApiMisuse, Base, Command, DeviceState, Event, Failure, FrontendConfig, Input, Output, Phase,
    StateFault, Unfit,
};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{Dialect, FrontendReplyBody as Body, InflightDescription, LogDescription};

const SUSPEND: u64 = 1 << 20;
const SKIP_DRAIN: u64 = 1 << 23;
/// Bits for the memory of these tests, which ends a megabyte above 4 GiB.
const LOG: LogDescription = LogDescription { size: 0x20020, offset: 0 };
const LOG_HANDLE: Handle = Handle(70);
const LOG_ON: [&str; 5] = [
    "SET_LOG_BASE(131104,0,fd70)",
    "SET_FEATURES!+log",
    "GET_STATUS",
    "SET_VRING_ADDR!(0,flags1,log0x600)",
    "SET_VRING_ADDR!(1,flags1,log0x1600)",
];
const LOG_OFF: [&str; 4] = ["SET_FEATURES", "GET_STATUS", "SET_VRING_ADDR(0)", "SET_VRING_ADDR(1)"];
const STOP: [&str; 5] = [
    "SET_VRING_ENABLE!(0,0)",
    "SET_VRING_ENABLE!(1,0)",
    "GET_VRING_BASE(0)",
    "GET_VRING_BASE(1)",
    "SET_STATUS(0x0)",
];
const TAIL: [&str; 12] = [
    "SET_VRING_NUM(0,64)",
    "SET_VRING_BASE(0,7)",
    "SET_VRING_ADDR(0)",
    "SET_VRING_KICK!(0,fd120)",
    "SET_VRING_NUM(1,64)",
    "SET_VRING_BASE(1,9)",
    "SET_VRING_ADDR(1)",
    "SET_VRING_KICK!(1,fd121)",
    "SET_VRING_ENABLE!(0,1)",
    "SET_VRING_ENABLE!(1,1)",
    "GET_STATUS",
    "SET_STATUS(0xf)",
];

/// A front-end whose back-end logs, and suspends in this dialect.
fn harness(dialect: Dialect) -> Harness {
    let bits = PROTOCOL | protocol::LOG_SHMFD | SUSPEND | SKIP_DRAIN;
    let config = FrontendConfig { protocol_features: bits, dialect, ..config() };
    let mut h = Harness::new(config);
    h.peer = peer(dialect);
    h.command(Command::SetMemory(memory()));
    h
}

fn peer(dialect: Dialect) -> Peer {
    let suspend = dialect.get_vring_base_inflight() | dialect.get_vring_base_skip_drain();
    let mut peer = Peer::default();
    peer.features |= virtio::LOG_ALL;
    peer.protocol |= protocol::LOG_SHMFD | suspend;
    peer.dialect = dialect;
    peer
}

fn ready(dialect: Dialect) -> Harness {
    let mut h = harness(dialect);
    h.command(Command::Connect);
    h.connect();
    h.clear();
    h
}

fn source(dialect: Dialect) -> Harness {
    let mut h = ready(dialect);
    h.command(Command::Start(start(Base::Kept)));
    h.peer.bases.extend([(0, 7), (1, 9)]);
    h.clear();
    h
}

fn logging() -> Harness {
    let mut h = source(Dialect::QEMU_11_1);
    h.command(log_on(LOG));
    h.clear();
    h
}

fn log_on(log: LogDescription) -> Command {
    Command::LogOn { log, handle: LOG_HANDLE }
}

fn refused(h: &mut Harness, command: Command) -> ApiMisuse {
    let before = h.frontend.phase();
    let error = h.frontend.handle_input(h.now, Input::Command(command)).unwrap_err();
    assert_eq!((h.frontend.phase(), h.frontend.poll_output()), (before, None));
    error
}

/// The state of a source that stopped at 7 and 9.
fn state() -> DeviceState {
    DeviceState {
        features: Some(virtio::VERSION_1 | virtio::EVENT_IDX),
        queue_size: 128,
        bases: vec![Some(7), Some(9)],
        inflight: Some(InflightDescription {
            mmap_size: 4224,
            mmap_offset: 0,
            num_queues: 2,
            queue_size: 128,
        }),
    }
}

fn adopt(state: DeviceState) -> Command {
    let inflight = state.inflight.map(|_| Handle(60));
    Command::Adopt { state, inflight }
}

/// A start from the features on, with the region of `handle`.
fn resumed(handle: u32, memory: bool) -> Vec<String> {
    let region = format!("SET_INFLIGHT_FD(fd{handle})");
    let memory = ["ADD_MEM_REG!(0x0)", "ADD_MEM_REG!(0x100000000)"].iter().filter(|_| memory);
    ["SET_FEATURES", "GET_STATUS", "SET_STATUS(0x8)", region.as_str()]
        .iter()
        .chain(&["SET_VRING_CALL!(0,fd130)", "SET_VRING_CALL!(1,fd131)"])
        .chain(&["SET_FEATURES", "GET_STATUS"])
        .chain(memory)
        .chain(&TAIL)
        .map(|line| (*line).to_owned())
        .collect()
}

#[test]
fn handover_source_logs_stops_and_hands_over_in_the_order_of_qemu() {
    let mut h = source(Dialect::QEMU_11_1);
    h.peer.handles.clear();
    h.command(log_on(LOG));
    assert_eq!(h.peer.log, LOG_ON);
    assert_eq!(h.peer.handles, [LOG_HANDLE]);
    assert_eq!(h.events, [Event::Logging]);
    assert!(matches!(h.frontend.device_state(), Err(ApiMisuse::WrongPhase { .. })), "it runs");

    h.clear();
    assert!(h.frontend.suspends(true) && h.frontend.suspends(false));
    h.command(Command::Suspend);
    assert_eq!(h.peer.log, STOP, "the feature alone lets this message suspend");
    assert_eq!(h.events, [Event::Stopped { bases: vec![(0, 7), (1, 9)] }]);
    assert_eq!(h.frontend.device_state(), Ok(state()));
    assert_eq!(h.frontend.inflight(), Some((state().inflight.unwrap(), REGION)));
    assert_eq!(h.wishes, [], "the region stays, for a migration that fails now");
}

#[test]
fn handover_destination_starts_with_the_region_and_the_bases_of_the_stream() {
    // The stream is loaded before there is a connection, or after.
    for late in [false, true] {
        let mut h = harness(Dialect::QEMU_11_1);
        if late {
            h.command(Command::Connect);
            h.connect();
            h.command(Command::Reset);
            h.clear();
            h.command(adopt(state()));
            assert_eq!(h.peer.log, [""; 0], "nothing is said before the start");
        } else {
            h.command(adopt(state()));
            h.command(Command::Connect);
            h.connect();
            assert!(matches!(
                h.events.last(),
                Some(Event::Ready { reconnected: false, inflight_kept: true, .. })
            ));
        }
        assert_eq!(h.frontend.device_state(), Ok(state()), "it could be sent on at once");
        h.clear();
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.peer.log, resumed(60, true));
        assert_eq!(h.events, [Event::Running]);
        assert_eq!(h.wishes, []);
        // The next reset drops it like any other region.
        h.clear();
        h.command(Command::Reset);
        assert_eq!(h.wishes, [Output::Release(Handle(60))]);
    }
}

#[test]
fn handover_asks_to_suspend_in_every_dialect_and_drains_where_nobody_agreed() {
    let asked = ["GET_VRING_BASE_SKIP_DRAIN(0)", "GET_VRING_BASE_SKIP_DRAIN(1)"];
    let plain = ["GET_VRING_BASE(0)", "GET_VRING_BASE(1)"];
    for (dialect, expected) in [
        (Dialect::QEMU_11_1, plain),
        (Dialect::SKIP_DRAIN_45, asked),
        (Dialect::SKIP_DRAIN_44, asked),
        (Dialect::NUM_1, asked),
    ] {
        let mut h = source(dialect);
        let own_way = !dialect.plain_get_vring_base_may_suspend();
        assert_eq!((h.frontend.suspends(true), h.frontend.suspends(false)), (true, !own_way));
        h.command(Command::Suspend);
        assert_eq!(h.peer.log[2..4], expected, "{dialect}");
        assert_eq!(h.events, [Event::Stopped { bases: vec![(0, 7), (1, 9)] }]);

        // The same device is drained by the other command.
        h.command(Command::Start(start(Base::Kept)));
        h.clear();
        h.command(Command::Stop);
        assert_eq!(h.peer.log[2..4], plain, "{dialect}");

        // A back-end that does not know the feature is drained, not lost.
        let mut h = harness(dialect);
        h.peer.protocol &= !SUSPEND;
        h.command(Command::Connect);
        h.connect();
        h.command(Command::Start(start(Base::Kept)));
        h.clear();
        assert!(!h.frontend.suspends(true));
        h.command(Command::Suspend);
        assert_eq!(h.peer.log[2..4], plain, "{dialect}");
    }
    // Bit 20 without 23 is the older QEMU's back-end: there is no message.
    let mut h = harness(Dialect::SKIP_DRAIN_45);
    h.peer.protocol &= !SKIP_DRAIN;
    h.command(Command::Connect);
    h.connect();
    h.command(Command::Start(start(Base::Kept)));
    h.clear();
    h.command(Command::Suspend);
    assert_eq!(h.peer.log[2..4], plain);
}

#[test]
fn handover_cancelled_while_running_turns_the_log_off_and_stops_nothing() {
    let mut h = logging();
    h.command(Command::LogOff);
    assert_eq!(h.peer.log, LOG_OFF);
    assert_eq!(h.events, [Event::NotLogging]);
    assert_eq!(h.frontend.phase(), Phase::Running);
    // Once more is nothing, and the next migration begins from the start.
    h.clear();
    h.command(Command::LogOff);
    assert_eq!((h.peer.log.len(), h.events.len()), (0, 1));
    h.command(log_on(LOG));
    assert_eq!(h.peer.log, LOG_ON);
}

#[test]
fn handover_cancelled_during_or_after_the_stop_resumes_without_a_log() {
    for during in [false, true] {
        let mut h = logging();
        h.command(Command::Suspend);
        if during {
            h = logging();
            h.peer.mute.insert("GET_VRING_BASE");
            h.command(Command::Suspend);
            assert_eq!(h.frontend.phase(), Phase::Stopping);
            // What was asked cannot be taken back: the answer is waited for.
            h.command(Command::LogOff);
            assert_eq!(h.frontend.phase(), Phase::Stopping);
            for base in [7, 9] {
                h.answer_base(base);
            }
        } else {
            h.command(Command::LogOff);
        }
        assert_eq!(h.frontend.phase(), Phase::Ready);
        assert!(h.events.contains(&Event::NotLogging));
        assert!(!h.peer.log.iter().any(|l| l.contains("FEATURES")), "the next start tells");
        h.peer.mute.clear();
        h.clear();
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.peer.log, resumed(900, false));
        assert_eq!(h.wishes, []);
    }
}

impl Harness {
    /// Answer the GET_VRING_BASE that the peer was too mute for.
    fn answer_base(&mut self, base: u32) {
        let index = self.peer.log.iter().filter(|l| l.starts_with("GET_VRING_BASE")).count() - 1;
        let mut bytes = Vec::new();
        for word in [11, 5, 8, index as u32, base] {
            bytes.extend(word.to_ne_bytes());
        }
        self.input(Input::Received { bytes: &bytes, handles: Vec::new() });
    }
}

#[test]
fn handover_log_is_replaced_by_one_message_while_it_is_written() {
    let mut h = logging();
    let log = LogDescription { size: LOG.size + 64, offset: 4096 };
    h.command(Command::LogOn { log, handle: Handle(71) });
    assert_eq!(h.peer.log, ["SET_LOG_BASE(131168,4096,fd71)"]);
    assert_eq!(h.events, [Event::Logging]);
    // After a stop, and for the back-end after this one, it is this log.
    h.command(Command::Stop);
    h.input(Input::PeerClosed);
    h.tick();
    h.connect();
    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    let lines: Vec<_> =
        h.peer.log.iter().filter(|l| l.contains("log") || l.contains("LOG")).collect();
    assert_eq!(
        lines,
        [
            "SET_FEATURES!+log",
            "SET_FEATURES!+log",
            "SET_VRING_ADDR!(0,flags1,log0x600)",
            "SET_VRING_ADDR!(1,flags1,log0x1600)",
            "SET_LOG_BASE(131168,4096,fd71)"
        ]
    );
    let log = h.peer.log.iter().position(|l| l.starts_with("SET_LOG_BASE"));
    let enabled = h.peer.log.iter().position(|l| l.starts_with("SET_VRING_ENABLE"));
    assert!(log < enabled, "nothing is written without a log");
}

#[test]
fn handover_log_answers_of_every_kind_are_answers() {
    for answer in [Body::U64(0), Body::U64(LOG.size), Body::Empty] {
        let mut h = source(Dialect::QEMU_11_1);
        h.peer.log_answer = answer;
        h.command(log_on(LOG));
        assert_eq!(h.peer.log, LOG_ON);
        assert_eq!(h.events, [Event::Logging]);
    }
}

#[test]
fn handover_a_back_end_that_refuses_to_log_goes_on_without() {
    for (message, sent) in [("SET_FEATURES", 2), ("SET_VRING_ADDR", 4)] {
        let mut h = source(Dialect::QEMU_11_1);
        h.peer.refuse.insert(message, 5);
        h.command(log_on(LOG));
        let expected: Vec<_> = LOG_ON[..sent].iter().chain(&LOG_OFF).collect();
        assert_eq!(h.peer.log.iter().collect::<Vec<_>>(), expected);
        assert_eq!(h.events, [Event::Refused { message, status: 5 }, Event::NotLogging]);
        assert_eq!(h.frontend.phase(), Phase::Running);
        // Nor does the next start ask for it.
        h.peer.refuse.clear();
        h.command(Command::Stop);
        h.clear();
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.peer.log, resumed(900, false));
    }
}

#[test]
fn handover_log_without_reply_ack_uses_a_question_after_each_message() {
    let mut h = harness(Dialect::QEMU_11_1);
    h.peer.protocol &= !(protocol::REPLY_ACK | protocol::STATUS);
    h.command(Command::Connect);
    h.connect();
    h.command(Command::Start(start(Base::Kept)));
    h.clear();
    h.command(log_on(LOG));
    assert_eq!(
        h.peer.log,
        [
            "SET_LOG_BASE(131104,0,fd70)",
            "SET_FEATURES+log",
            "GET_FEATURES",
            "SET_VRING_ADDR(0,flags1,log0x600)",
            "GET_FEATURES",
            "SET_VRING_ADDR(1,flags1,log0x1600)",
            "GET_FEATURES",
        ]
    );
    assert_eq!(h.events, [Event::Logging]);
}

#[test]
fn handover_log_that_cannot_be_is_refused_and_changes_nothing() {
    let mut h = source(Dialect::QEMU_11_1);
    let small = LogDescription { size: LOG.size - 1, offset: 0 };
    let too_small = ApiMisuse::LogTooSmall { wanted: LOG.size, got: LOG.size - 1 };
    assert_eq!(refused(&mut h, log_on(small)), too_small);
    // Memory that the log has no bits for.
    h.command(log_on(LOG));
    let mut more = memory();
    more.push((region(0x2_0000_0000), Handle(52)));
    assert!(matches!(
        refused(&mut h, Command::SetMemory(more)),
        ApiMisuse::LogTooSmall { got: 131_104, .. }
    ));

    for (feature, protocol, features) in
        [("LOG_SHMFD", protocol::LOG_SHMFD, 0), ("LOG_ALL", 0, virtio::LOG_ALL)]
    {
        let mut h = harness(Dialect::QEMU_11_1);
        h.peer.protocol &= !protocol;
        h.peer.features &= !features;
        h.command(Command::Connect);
        h.connect();
        h.command(Command::Start(start(Base::Kept)));
        let what = "log on";
        let expected = ApiMisuse::NotNegotiated { what, feature };
        assert_eq!(refused(&mut h, log_on(LOG)), expected);
        // A back-end in the middle of a migration is not replaced by this one.
        let mut h = logging();
        h.peer.protocol &= !protocol;
        h.peer.features &= !features;
        h.input(Input::PeerClosed);
        h.tick();
        h.connect();
        assert_eq!(last_failure(&h), (Failure::BackendUnfit(Unfit::NoLog(feature)), false));
    }
    let mut h = ready(Dialect::QEMU_11_1);
    let mut outside = start(Base::Kept);
    outside.vrings[1].used = 0x1234_0000;
    h.command(log_on(LOG));
    let expected = ApiMisuse::RingOutsideMemory(1);
    assert_eq!(refused(&mut h, Command::Start(outside)), expected);
}

fn last_failure(h: &Harness) -> (Failure, bool) {
    match h.events.last() {
        Some(Event::Disconnected { failure, retry, .. }) => (failure.clone(), *retry),
        other => panic!("{other:?}"),
    }
}

#[test]
fn handover_destination_without_inflight_tracking_is_refused_before_any_io() {
    for late in [false, true] {
        let mut h = harness(Dialect::QEMU_11_1);
        h.peer.protocol &= !protocol::INFLIGHT_SHMFD;
        if !late {
            h.command(adopt(state()));
        }
        h.command(Command::Connect);
        h.connect();
        if late {
            h.command(adopt(state()));
        }
        assert_eq!(last_failure(&h), (Failure::BackendUnfit(Unfit::NoInflight), false));
        assert!(!h.peer.log.iter().any(|l| l.contains("VRING_KICK") || l.contains("INFLIGHT_FD")));
        assert_eq!(h.frontend.phase(), Phase::Failed);
        assert!(!h.wishes.contains(&Output::Release(Handle(60))), "nothing is lost");
        // Another back-end can still have it.
        h.clear();
        h.peer = peer(Dialect::QEMU_11_1);
        h.command(Command::Connect);
        h.connect();
        h.clear();
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.peer.log, resumed(60, true));
    }
}

#[test]
fn handover_destination_without_the_features_of_the_guest_is_refused() {
    let mut h = harness(Dialect::QEMU_11_1);
    h.peer.features &= !virtio::EVENT_IDX;
    h.command(adopt(state()));
    h.command(Command::Connect);
    h.connect();
    let unfit = Unfit::NoFeatures(virtio::EVENT_IDX);
    assert_eq!(last_failure(&h), (Failure::BackendUnfit(unfit), false));
}

#[test]
fn handover_state_of_another_device_is_refused_and_changes_nothing() {
    let shape = |change: fn(&mut InflightDescription)| {
        let mut state = state();
        change(state.inflight.as_mut().unwrap());
        state
    };
    let cases = [
        (
            DeviceState { bases: vec![Some(1)], ..state() },
            StateFault::Queues { expected: 2, got: 1 },
        ),
        (
            DeviceState { queue_size: 256, ..state() },
            StateFault::QueueSize { expected: 128, got: 256 },
        ),
        (shape(|r| r.queue_size = 256), StateFault::QueueSize { expected: 128, got: 256 }),
        (shape(|r| r.num_queues = 1), StateFault::RegionQueues { expected: 2, got: 1 }),
        // The region of one vring, of four, and one byte short.
        (shape(|r| r.mmap_size = 2112), StateFault::RegionSize { min: 4128, max: 4224, got: 2112 }),
        (shape(|r| r.mmap_size = 8448), StateFault::RegionSize { min: 4128, max: 4224, got: 8448 }),
        (shape(|r| r.mmap_size = 4127), StateFault::RegionSize { min: 4128, max: 4224, got: 4127 }),
    ];
    for connected in [false, true] {
        let mut h = harness(Dialect::QEMU_11_1);
        if connected {
            h = ready(Dialect::QEMU_11_1);
        }
        for (state, fault) in &cases {
            let misuse = refused(&mut h, adopt(state.clone()));
            assert_eq!(misuse, ApiMisuse::State(*fault), "{fault}");
        }
        let alone = ApiMisuse::State(StateFault::RegionAlone);
        assert_eq!(refused(&mut h, Command::Adopt { state: state(), inflight: None }), alone);
        let none = DeviceState { inflight: None, ..state() };
        let with = Command::Adopt { state: none, inflight: Some(Handle(60)) };
        assert_eq!(refused(&mut h, with), alone);
        assert_eq!(h.frontend.inflight(), None);
    }
    // A part without padding is as good as one with it.
    let mut h = ready(Dialect::QEMU_11_1);
    h.command(adopt(shape(|r| r.mmap_size = 4128)));
    assert_eq!(h.frontend.inflight().map(|(d, _)| d.mmap_size), Some(4128));
    // And a device that runs takes nobody else's place.
    let mut h = source(Dialect::QEMU_11_1);
    assert!(matches!(refused(&mut h, adopt(state())), ApiMisuse::WrongPhase { .. }));
}

#[test]
fn handover_of_a_device_that_never_started_starts_afresh() {
    let fresh = ready(Dialect::QEMU_11_1).frontend.device_state().unwrap();
    let bases = vec![Some(0), Some(0)];
    let never = DeviceState { features: None, queue_size: 128, bases, inflight: None };
    assert_eq!(fresh, never);
    // QEMU 11.1 writes a region of no bytes instead.
    let empty = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 2, queue_size: 0 };
    for state in [never.clone(), DeviceState { inflight: Some(empty), ..never.clone() }] {
        let mut h = ready(Dialect::QEMU_11_1);
        h.command(Command::Adopt { state, inflight: None });
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.peer.log[3..5], ["GET_INFLIGHT_FD", "SET_INFLIGHT_FD(fd900)"]);
        assert!(h.peer.log.contains(&"SET_VRING_BASE(0,0)".to_owned()));
        assert_eq!(h.events, [Event::Running]);
    }
}

#[test]
fn handover_of_a_device_whose_back_end_died_leaves_the_base_to_guest_memory() {
    let mut h = source(Dialect::QEMU_11_1);
    h.peer.mute.insert("GET_VRING_BASE");
    h.command(Command::Suspend);
    h.input(Input::PeerClosed);
    let left = h.frontend.device_state().unwrap();
    assert_eq!(left, DeviceState { bases: vec![None, None], ..state() });

    let mut h = ready(Dialect::QEMU_11_1);
    h.command(adopt(left));
    let unknown = refused(&mut h, Command::Start(start(Base::Kept)));
    assert_eq!(unknown, ApiMisuse::BaseUnknown(0));
    let mut with = start(Base::At(7));
    with.vrings[1].base = Base::At(9);
    h.command(Command::Start(with));
    assert_eq!(h.peer.log, resumed(60, true));
}

#[test]
fn handover_there_and_back_keeps_one_region_at_a_time() {
    let mut h = source(Dialect::QEMU_11_1);
    h.command(Command::Suspend);
    h.clear();
    h.command(adopt(DeviceState { bases: vec![Some(70), Some(90)], ..state() }));
    assert_eq!(h.wishes, [Output::Release(REGION)]);
    h.command(Command::Start(start(Base::Kept)));
    assert_eq!(
        h.bases_and_regions(),
        ["SET_INFLIGHT_FD(fd60)", "SET_VRING_BASE(0,70)", "SET_VRING_BASE(1,90)"]
    );
}

#[test]
fn handover_log_turned_on_while_stopped_begins_with_the_next_start() {
    let mut h = source(Dialect::QEMU_11_1);
    h.command(Command::Stop);
    h.clear();
    h.command(log_on(LOG));
    assert_eq!((h.peer.log.len(), h.events.len()), (0, 0));
    h.command(Command::Start(start(Base::Kept)));
    let first = ["SET_FEATURES!+log", "GET_STATUS", "SET_STATUS(0x8)", "SET_INFLIGHT_FD(fd900)"];
    assert_eq!(h.peer.log[..4], first);
    assert!(h.peer.log.contains(&"SET_LOG_BASE(131104,0,fd70)".to_owned()));
    assert_eq!(h.events, [Event::Running]);
}

#[test]
fn handover_back_end_that_takes_back_an_offer_is_refused_in_time() {
    // The second GET_FEATURES of a negotiation has another answer.
    for lacks in [virtio::EVENT_IDX, virtio::LOG_ALL] {
        let mut h = harness(Dialect::QEMU_11_1);
        h.command(adopt(state()));
        h.command(log_on(LOG));
        h.peer.features_again = Some(h.peer.features & !lacks);
        h.command(Command::Connect);
        h.connect();
        let unfit = match lacks {
            virtio::LOG_ALL => Unfit::NoLog("LOG_ALL"),
            missing => Unfit::NoFeatures(missing),
        };
        assert_eq!(last_failure(&h), (Failure::BackendUnfit(unfit), false));
    }
}
