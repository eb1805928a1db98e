//! The front-end's messages, in QEMU's order and with QEMU's flags.
//!
//! `NAME!` has NEED_REPLY, as QEMU sets it on messages whose failure matters.

mod frontend_peer;

use frontend_peer::*;
use midflight::Handle;
use midflight::frontend::{
    Base, Command, Event, Failure, FrontendConfig, Input, Output, Phase, Start, TimerKind,
};
use midflight::time::{Duration, Instant};
use midflight::wire::features::{protocol, virtio};

const NEGOTIATION: [&str; 12] = [
    "GET_FEATURES",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "GET_MAX_MEM_SLOTS",
    "SET_BACKEND_REQ_FD!",
    "SET_OWNER",
    "GET_FEATURES",
    "SET_VRING_CALL!(0,fd100)",
    "SET_VRING_ERR!(0,fd110)",
    "SET_VRING_CALL!(1,fd101)",
    "SET_VRING_ERR!(1,fd111)",
];

/// From the features to the memory, and from the vrings to the status.
const START_HEAD: [&str; 3] = ["SET_FEATURES", "GET_STATUS", "SET_STATUS(0x8)"];
const START_TAIL: [&str; 12] = [
    "SET_VRING_NUM(0,64)",
    "SET_VRING_BASE(0,0)",
    "SET_VRING_ADDR(0)",
    "SET_VRING_KICK!(0,fd120)",
    "SET_VRING_NUM(1,64)",
    "SET_VRING_BASE(1,0)",
    "SET_VRING_ADDR(1)",
    "SET_VRING_KICK!(1,fd121)",
    "SET_VRING_ENABLE!(0,1)",
    "SET_VRING_ENABLE!(1,1)",
    "GET_STATUS",
    "SET_STATUS(0xf)",
];
const CALLS: [&str; 4] =
    ["SET_VRING_CALL!(0,fd130)", "SET_VRING_CALL!(1,fd131)", "SET_FEATURES", "GET_STATUS"];
const MEMORY: [&str; 2] = ["ADD_MEM_REG!(0x0)", "ADD_MEM_REG!(0x100000000)"];
const STOP: [&str; 5] = [
    "SET_VRING_ENABLE!(0,0)",
    "SET_VRING_ENABLE!(1,0)",
    "GET_VRING_BASE(0)",
    "GET_VRING_BASE(1)",
    "SET_STATUS(0x0)",
];

fn tail_with_bases(first: u32, second: u32) -> Vec<String> {
    START_TAIL
        .iter()
        .map(|line| match *line {
            "SET_VRING_BASE(0,0)" => format!("SET_VRING_BASE(0,{first})"),
            "SET_VRING_BASE(1,0)" => format!("SET_VRING_BASE(1,{second})"),
            other => other.to_owned(),
        })
        .collect()
}

#[test]
fn frontend_negotiates_in_the_order_of_qemu() {
    for piece in [usize::MAX, 1, 13] {
        let mut h = Harness::new(config());
        h.piece = piece;
        h.command(Command::Connect);
        assert_eq!(h.frontend.phase(), Phase::Connecting);
        h.connect();
        let mut expected = NEGOTIATION.to_vec();
        expected.push("GET_CONFIG(0,60)");
        assert_eq!(h.peer.log, expected);
        assert_eq!(h.frontend.phase(), Phase::Ready);
        let ready = Event::Ready {
            features: virtio::VERSION_1 | virtio::EVENT_IDX,
            protocol: PROTOCOL,
            mem_slots: 32,
            config: (0..60).collect::<Vec<u8>>().into(),
            reconnected: false,
            inflight_kept: false,
        };
        assert_eq!(h.events, [ready]);
        // The back-end has its own copy of the channel's end.
        assert_eq!(h.wishes, [Output::Release(CHANNEL)]);
        let sent = [800, 100, 110, 101, 111].map(Handle);
        assert_eq!(h.peer.handles, sent);
    }
}

#[test]
fn frontend_starts_in_the_order_of_qemu() {
    let mut h = Harness::ready();
    h.peer.handles.clear();
    h.command(Command::Start(start(Base::Kept)));
    let mut expected = START_HEAD.to_vec();
    expected.extend(["GET_INFLIGHT_FD", "SET_INFLIGHT_FD(fd900)"]);
    expected.extend(CALLS);
    expected.extend(MEMORY);
    expected.extend(START_TAIL);
    assert_eq!(h.peer.log, expected);
    assert_eq!(h.events, [Event::Running]);
    assert_eq!(h.frontend.phase(), Phase::Running);
    let sent = [900, 130, 131, 50, 51, 120, 121].map(Handle);
    assert_eq!(h.peer.handles, sent);
    assert_eq!(h.wishes, [], "the region's handle is kept");
}

#[test]
fn frontend_stops_all_rings_before_it_asks_for_the_first_base() {
    let mut h = Harness::running();
    h.peer.bases.extend([(0, 7), (1, 65535)]);
    h.command(Command::Stop);
    assert_eq!(h.peer.log, STOP);
    let bases = vec![(0, 7), (1, 65535)];
    assert_eq!(h.events, [Event::Stopped { bases }]);
    assert_eq!(h.frontend.phase(), Phase::Ready);
}

#[test]
fn frontend_resumes_with_the_same_region_the_kept_bases_and_no_memory() {
    let mut h = Harness::running();
    h.peer.bases.extend([(0, 7), (1, 9)]);
    h.command(Command::Stop);
    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    let mut expected: Vec<String> = START_HEAD
        .iter()
        .chain(&["SET_INFLIGHT_FD(fd900)"])
        .chain(&CALLS)
        .map(|line| (*line).to_owned())
        .collect();
    expected.extend(tail_with_bases(7, 9));
    assert_eq!(h.peer.log, expected);
    assert_eq!(h.events, [Event::Running]);
}

#[test]
fn frontend_reset_stops_forgets_the_region_and_starts_at_zero() {
    let mut h = Harness::running();
    h.peer.bases.extend([(0, 7), (1, 9)]);
    h.command(Command::Reset);
    let mut expected = STOP.to_vec();
    expected.push("RESET_DEVICE");
    assert_eq!(h.peer.log, expected);
    assert_eq!(h.events, [Event::Reset]);
    assert_eq!(h.wishes, [Output::Release(REGION)]);
    assert_eq!(h.frontend.phase(), Phase::Ready);

    // Another reset of a device that is stopped is one message.
    h.clear();
    h.command(Command::Reset);
    assert_eq!(h.peer.log, ["RESET_DEVICE"]);

    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    let mut expected = START_HEAD.to_vec();
    expected.extend(["GET_INFLIGHT_FD", "SET_INFLIGHT_FD(fd900)"]);
    expected.extend(CALLS);
    expected.extend(START_TAIL);
    assert_eq!(h.peer.log, expected, "a new region, the old memory");
}

#[test]
fn frontend_reconnects_with_its_region_and_the_used_indexes() {
    let mut h = Harness::running();
    h.now = Instant::from_nanos(1_000);
    h.input(Input::PeerClosed);
    let lost =
        Event::Disconnected { failure: Failure::BackendClosed, phase: Phase::Running, retry: true };
    assert_eq!(h.events, [lost]);
    assert_eq!(h.wishes, [], "nothing to close, and the region is kept");
    let at = h.now + Duration::from_millis(100);
    assert_eq!(h.frontend.poll_timeout(), Some((at, TimerKind::ReconnectBackoff)));
    h.input(Input::Timeout);
    assert_eq!(h.frontend.phase(), Phase::Backoff, "it is not time yet");

    h.tick();
    h.clear_but_wishes();
    h.input_refused_connection();
    h.tick();
    h.connect();
    assert_eq!(h.peer.log, NEGOTIATION, "the configuration is not read again");
    assert!(matches!(
        h.events.last(),
        Some(Event::Ready {
            reconnected: true,
            inflight_kept: true,
            config,
            ..
        }) if config.len() == 60
    ));

    h.clear();
    // Where a dead back-end stopped is not known here.
    let unknown = h.frontend.handle_input(h.now, Input::Command(Command::Start(start(Base::Kept))));
    assert!(unknown.is_err());
    let mut restart = start(Base::At(3));
    restart.vrings[1].base = Base::At(8);
    h.command(Command::Start(restart));
    let mut expected: Vec<String> = START_HEAD
        .iter()
        .chain(&["SET_INFLIGHT_FD(fd900)"])
        .chain(&CALLS)
        .chain(&MEMORY)
        .map(|line| (*line).to_owned())
        .collect();
    expected.extend(tail_with_bases(3, 8));
    // The new back-end's status starts at 0, as the old one's did.
    assert_eq!(h.peer.log, expected);
}

impl Harness {
    fn clear_but_wishes(&mut self) {
        self.peer = Peer::default();
        self.events.clear();
    }

    /// Nobody listens yet.
    fn input_refused_connection(&mut self) {
        assert_eq!(self.wishes.pop(), Some(Output::Connect));
        self.input(Input::ConnectFailed("connection refused".into()));
        assert_eq!(self.frontend.phase(), Phase::Backoff);
        assert_eq!(self.wishes, []);
    }
}

#[test]
fn frontend_keeps_the_bases_of_a_stopped_device_over_a_lost_connection() {
    let mut h = Harness::running();
    h.peer.bases.extend([(0, 7), (1, 9)]);
    h.command(Command::Stop);
    h.input(Input::PeerClosed);
    h.tick();
    h.connect();
    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    assert_eq!(
        h.bases_and_regions(),
        ["SET_INFLIGHT_FD(fd900)", "SET_VRING_BASE(0,7)", "SET_VRING_BASE(1,9)"]
    );
}

#[test]
fn frontend_reset_without_a_back_end_drops_the_region() {
    let mut h = Harness::running();
    h.input(Input::PeerClosed);
    h.clear();
    h.command(Command::Reset);
    assert_eq!(h.events, [Event::Reset]);
    assert_eq!(h.wishes, [Output::Release(REGION)]);
    assert_eq!(h.peer.log, [""; 0]);
}

#[test]
fn frontend_without_reply_ack_uses_a_question_as_barrier() {
    let mut h = Harness::ready();
    let mut h = {
        h.peer.protocol &= !(protocol::REPLY_ACK
            | protocol::STATUS
            | protocol::INFLIGHT_SHMFD
            | protocol::CONFIGURE_MEM_SLOTS
            | protocol::BACKEND_REQ);
        h.input(Input::PeerClosed);
        h.tick();
        h.connect();
        h.clear();
        h
    };
    h.command(Command::Start(start(Base::Kept)));
    assert_eq!(
        h.peer.log,
        [
            "SET_FEATURES",
            "SET_VRING_CALL(0,fd130)",
            "SET_VRING_CALL(1,fd131)",
            "SET_FEATURES",
            "SET_MEM_TABLE(2)",
            "SET_VRING_NUM(0,64)",
            "SET_VRING_BASE(0,0)",
            "SET_VRING_ADDR(0)",
            "SET_VRING_KICK(0,fd120)",
            "SET_VRING_NUM(1,64)",
            "SET_VRING_BASE(1,0)",
            "SET_VRING_ADDR(1)",
            "SET_VRING_KICK(1,fd121)",
            "SET_VRING_ENABLE(0,1)",
            "SET_VRING_ENABLE(1,1)",
            "GET_FEATURES",
        ]
    );
    h.clear();
    h.command(Command::Stop);
    assert_eq!(
        h.peer.log,
        [
            "SET_VRING_ENABLE(0,0)",
            "SET_VRING_ENABLE(1,0)",
            "GET_FEATURES",
            "GET_VRING_BASE(0)",
            "GET_VRING_BASE(1)",
        ]
    );
    // The whole table comes again at every start.
    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    assert!(h.peer.log.contains(&"SET_MEM_TABLE(2)".to_owned()));
}

#[test]
fn frontend_without_protocol_features_neither_asks_nor_enables() {
    let mut h = Harness::new(FrontendConfig {
        config_len: 0,
        ..FrontendConfig { num_queues: 1, ..config() }
    });
    h.peer.features = OFFERED;
    h.command(Command::SetMemory(memory()));
    h.command(Command::Connect);
    h.connect();
    assert_eq!(
        h.peer.log,
        [
            "GET_FEATURES",
            "SET_OWNER",
            "GET_FEATURES",
            "SET_VRING_CALL(0,fd100)",
            "SET_VRING_ERR(0,fd110)",
        ]
    );
    h.clear();
    h.command(Command::Start(Start {
        features: Some(virtio::VERSION_1),
        vrings: vec![vring(0, Base::Kept)],
    }));
    assert!(!h.peer.log.iter().any(|line| line.contains("ENABLE")));
    h.clear();
    h.command(Command::Stop);
    assert_eq!(h.peer.log, ["GET_VRING_BASE(0)"]);
}

#[test]
fn frontend_sends_memory_by_differences_removals_first() {
    let mut h = Harness::running();
    let new = vec![memory()[1], (region(0x2_0000_0000), Handle(52))];
    h.command(Command::SetMemory(new));
    assert_eq!(h.peer.log, ["REM_MEM_REG!(0x0)", "ADD_MEM_REG!(0x200000000)"]);
    h.command(Command::Stop);
    h.clear();
    // Stopped: nothing is sent before the next start.
    h.command(Command::SetMemory(memory()));
    assert_eq!(h.peer.log, [""; 0]);
    h.command(Command::Start(start(Base::Kept)));
    let memory: Vec<_> = h.peer.log.iter().filter(|l| l.contains("MEM_REG")).collect();
    assert_eq!(memory, ["REM_MEM_REG!(0x200000000)", "ADD_MEM_REG!(0x0)"]);
}

#[test]
fn frontend_vrings_without_descriptors_say_nofd() {
    let mut h = Harness::ready();
    let mut polled = vring(1, Base::At(5));
    polled.kick = None;
    polled.call = None;
    h.command(Command::Start(Start { features: None, vrings: vec![polled] }));
    let files: Vec<_> = h.peer.log.iter().filter(|l| l.contains("fd")).collect();
    assert_eq!(
        files,
        [
            "SET_INFLIGHT_FD(fd900)",
            // The vring that the guest has not set up keeps its first descriptor.
            "SET_VRING_CALL!(0,fd100)",
            "SET_VRING_CALL!(1,nofd)",
            "SET_VRING_KICK!(1,nofd)",
        ]
    );
    h.clear();
    h.command(Command::Stop);
    // All are disabled, but only what was started has a base.
    assert_eq!(
        h.peer.log,
        [
            "SET_VRING_ENABLE!(0,0)",
            "SET_VRING_ENABLE!(1,0)",
            "GET_VRING_BASE(1)",
            "SET_STATUS(0x0)"
        ]
    );
}

#[test]
fn frontend_goes_without_a_region_if_the_back_end_has_none() {
    let mut h = Harness::ready();
    h.peer.inflight = None;
    h.command(Command::Start(start(Base::Kept)));
    assert!(!h.peer.log.iter().any(|l| l.starts_with("SET_INFLIGHT_FD")));
    assert_eq!(h.events, [Event::Running]);
}

/// Stopped, with DEVICE_STATE agreed on.
fn with_device_state() -> Harness {
    let mut h = Harness::new(FrontendConfig {
        protocol_features: PROTOCOL | protocol::DEVICE_STATE,
        ..config()
    });
    h.peer.protocol |= protocol::DEVICE_STATE;
    h.command(Command::SetMemory(memory()));
    h.command(Command::Connect);
    h.connect();
    h.clear();
    h
}

#[test]
fn frontend_device_state_goes_through_the_owners_pipe_or_the_back_ends() {
    const PIPE: Handle = Handle(501);
    let mut h = with_device_state();
    h.command(Command::SaveState { handle: PIPE });
    assert_eq!(h.peer.log, ["SET_DEVICE_STATE_FD(0,fd501)"]);
    assert_eq!(h.events, [Event::StateChannel { instead: None }]);
    assert_eq!(h.wishes, [], "the pipe is the owner's");
    h.clear();
    h.command(Command::CheckState);
    assert_eq!(h.peer.log, ["CHECK_DEVICE_STATE"]);
    assert_eq!(h.events, [Event::StateChecked]);
    h.clear();
    // A back-end may want a channel of its own used.
    h.peer.state_answer = (0, Some(Handle(902)));
    h.command(Command::LoadState { handle: PIPE });
    assert_eq!(h.peer.log, ["SET_DEVICE_STATE_FD(1,fd501)"]);
    assert_eq!(h.events, [Event::StateChannel { instead: Some(Handle(902)) }]);
}

#[test]
fn frontend_device_state_that_is_refused_leaves_the_connection_as_it_is() {
    let mut h = with_device_state();
    h.peer.state_answer = (7, Some(Handle(903)));
    h.command(Command::SaveState { handle: Handle(501) });
    let refused = |message, status| Event::Refused { message, status };
    assert_eq!(h.events, [refused("SET_DEVICE_STATE_FD", 7)]);
    assert_eq!(h.wishes, [Output::Release(Handle(903))], "beside an error it is of no use");
    h.clear();
    h.peer.state_status = 3;
    h.command(Command::CheckState);
    assert_eq!(h.events, [refused("CHECK_DEVICE_STATE", 3)]);
    // The guest can start all the same.
    h.clear();
    h.command(Command::Start(start(Base::Kept)));
    assert_eq!(h.events, [Event::Running]);
    let misuse = h.frontend.handle_input(h.now, Input::Command(Command::CheckState));
    assert!(misuse.is_err(), "not while vrings run");
    let mut h = Harness::ready();
    let misuse = h.frontend.handle_input(h.now, Input::Command(Command::CheckState));
    assert!(misuse.unwrap_err().to_string().contains("DEVICE_STATE"), "not agreed on");
}

/// Ready, with PAGEFAULT agreed on beside what else there is.
fn postcopy_ready(protocol: u64) -> Harness {
    let protocol = protocol | protocol::PAGEFAULT;
    let mut h = Harness::new(FrontendConfig { protocol_features: protocol, ..config() });
    h.peer.protocol = protocol;
    h.command(Command::SetMemory(memory()));
    h.command(Command::Connect);
    h.connect();
    h.clear();
    h
}

fn mapped() -> Event {
    let bases = memory().into_iter().map(|(region, _)| (region, region.guest_addr + BASE));
    Event::PostcopyMapped { bases: bases.collect() }
}

#[test]
fn sequence_of_postcopy_asks_for_addresses_and_acknowledges_them_before_vrings_start() {
    for slots in [false, true] {
        let without = if slots { 0 } else { protocol::CONFIGURE_MEM_SLOTS };
        let mut h = postcopy_ready(PROTOCOL & !without);
        h.command(Command::PostcopyAdvise);
        assert_eq!(h.events, [Event::PostcopyFaults(FAULTS)]);
        h.command(Command::PostcopyListen);
        assert_eq!(h.peer.log, ["POSTCOPY_ADVISE", "POSTCOPY_LISTEN"]);
        h.clear();
        h.command(Command::Start(start(Base::Kept)));
        assert_eq!(h.events, [mapped(), Event::Running]);
        let memory = h.peer.log.iter().filter(|line| line.contains("MEM_"));
        // Without NEED_REPLY: there is an answer, or there is none.
        let expected: &[&str] = match slots {
            true => &["ADD_MEM_REG(0x0)", "ADD_MEM_REG(0x100000000)", "ADD_MEM_REG(ack)"],
            false => &["SET_MEM_TABLE(2)", "SET_MEM_TABLE(ack)"],
        };
        assert!(memory.eq(expected), "{:?}", h.peer.log);
        let place = |text: &str| h.peer.log.iter().position(|line| line.starts_with(text));
        assert!(place(expected[expected.len() - 1]) < place("SET_VRING_KICK"));
        h.clear();
        h.command(Command::PostcopyEnd);
        assert_eq!(h.peer.log, ["POSTCOPY_END"]);
        assert_eq!(h.events, [Event::PostcopyEnded]);
        h.clear();
        // Memory as ever.
        h.command(Command::Stop);
        h.command(Command::SetMemory(memory_of_one()));
        h.command(Command::Start(start(Base::Kept)));
        assert!(!h.peer.log.iter().any(|line| line.contains("ack")), "{:?}", h.peer.log);
    }
}

fn memory_of_one() -> Vec<(midflight::wire::MemRegion, Handle)> {
    memory().into_iter().take(1).collect()
}

#[test]
fn sequence_of_postcopy_begins_again_with_each_back_end() {
    let mut h = postcopy_ready(PROTOCOL);
    h.command(Command::PostcopyAdvise);
    h.command(Command::PostcopyListen);
    h.command(Command::Start(start(Base::Kept)));
    h.input(Input::PeerClosed);
    h.peer.listens = false;
    h.tick();
    h.connect();
    h.clear();
    // A back-end that has not heard of it would take missing pages for zeroes.
    let start_again = || Command::Start(start(Base::At(0)));
    let refused = h.frontend.handle_input(h.now, Input::Command(start_again()));
    let text = refused.unwrap_err().to_string();
    assert_eq!(text, "start in postcopy, expected after it listens again");
    h.command(Command::PostcopyAdvise);
    h.command(Command::PostcopyListen);
    h.command(start_again());
    assert!(h.events.contains(&mapped()), "{:?}", h.events);
    assert_eq!(h.events.last(), Some(&Event::Running));
}

#[test]
fn sequence_of_postcopy_ends_with_a_back_end_that_names_other_memory() {
    let mut h = postcopy_ready(PROTOCOL);
    h.command(Command::PostcopyAdvise);
    h.command(Command::PostcopyListen);
    h.peer.shift = 0x1000;
    h.command(Command::Start(start(Base::Kept)));
    match h.events.last() {
        Some(Event::Disconnected { failure, .. }) => assert_eq!(
            failure.to_string(),
            "back-end misbehaved: answer to ADD_MEM_REG names memory at 0x1000, \
             expected that of a region it was sent"
        ),
        other => panic!("{other:?}"),
    }
}
