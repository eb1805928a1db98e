//! The front-end with packed rings: positions and wrap counters in bases, what
//! is said after a back-end has died, and what another host takes over.

mod frontend_peer;

use frontend_peer::*;
use midflight::Handle;
use midflight::frontend::{
    ApiMisuse, BackendFault, Base, Command, ConfigError, DeviceState, Event, Failure, Frontend,
    FrontendConfig, Input, Output, Start, StateFault, VringWiring,
};
use midflight::wire::InflightDescription;
use midflight::wire::features::virtio;

/// Rings of 100 entries, which no split ring has.
const SIZE: u16 = 100;
const FEATURES: u64 = virtio::VERSION_1 | virtio::EVENT_IDX | virtio::RING_PACKED;
/// Available position 5 after a wrap, used position 99 before it.
const STOPPED: u32 = 0x8063_0005;
const REGION_SHAPE: InflightDescription = InflightDescription {
    mmap_size: 2 * (32 + 32 * 100 + 32),
    mmap_offset: 0,
    num_queues: 2,
    queue_size: SIZE,
};

fn packed_config() -> FrontendConfig {
    FrontendConfig {
        virtio_features: config().virtio_features | virtio::RING_PACKED,
        queue_size: SIZE,
        ..config()
    }
}

fn peer() -> Peer {
    let mut peer = Peer::default();
    peer.inflight = Some(REGION_SHAPE);
    peer.features |= virtio::RING_PACKED;
    peer
}

fn ready() -> Harness {
    let mut h = Harness::new(packed_config());
    h.peer = peer();
    h.command(Command::SetMemory(memory()));
    h.command(Command::Connect);
    h.connect();
    h.clear();
    h
}

fn packed(base: Base) -> Start {
    let mut start = start(base);
    for vring in &mut start.vrings {
        vring.size = SIZE;
    }
    start
}

fn running() -> Harness {
    let mut h = ready();
    h.command(Command::Start(packed(Base::Kept)));
    assert_eq!(h.events, [Event::Running]);
    h.peer.bases.extend([(0, STOPPED), (1, 0x8000_8000)]);
    h
}

fn refused(h: &mut Harness, command: Command) -> ApiMisuse {
    h.frontend.handle_input(h.now, Input::Command(command)).unwrap_err()
}

#[test]
fn frontend_packed_starts_and_resumes_with_both_positions() {
    let mut h = running();
    assert_eq!(
        h.bases_and_regions(),
        [
            "GET_INFLIGHT_FD",
            "SET_INFLIGHT_FD(fd900)",
            "SET_VRING_BASE(0,2147516416)",
            "SET_VRING_BASE(1,2147516416)"
        ],
        "a fresh ring starts with both wrap counters 1"
    );
    h.clear();
    h.command(Command::Stop);
    assert_eq!(h.events, [Event::Stopped { bases: vec![(0, STOPPED), (1, 0x8000_8000)] }]);
    h.clear();
    h.command(Command::Start(packed(Base::Kept)));
    let said = format!("SET_VRING_BASE(0,{STOPPED})");
    assert_eq!(h.bases_and_regions()[..2], ["SET_INFLIGHT_FD(fd900)", said.as_str()]);
    // A reset leaves a fresh ring, which may be a split one then.
    h.command(Command::Reset);
    h.clear();
    let mut split = start(Base::Kept);
    split.features = Some(virtio::VERSION_1);
    h.command(Command::Start(split));
    assert!(h.peer.log.contains(&"SET_VRING_BASE(0,0)".to_owned()), "{:?}", h.peer.log);
}

/// As QEMU does: the region is what the next back-end has to believe.
#[test]
fn frontend_packed_says_a_stale_base_after_a_back_end_has_died() {
    let mut h = running();
    h.command(Command::Stop);
    h.command(Command::Start(packed(Base::Kept)));
    h.input(Input::PeerClosed);
    h.wishes.clear();
    h.peer = peer();
    h.tick();
    h.connect();
    h.clear();
    let unknown = refused(&mut h, Command::Start(packed(Base::Kept)));
    assert_eq!(unknown, ApiMisuse::BaseUnknown(0));
    h.command(Command::Start(packed(Base::Last)));
    let said = format!("SET_VRING_BASE(0,{STOPPED})");
    assert_eq!(
        h.bases_and_regions(),
        ["SET_INFLIGHT_FD(fd900)", said.as_str(), "SET_VRING_BASE(1,2147516416)"]
    );
}

#[test]
fn frontend_packed_hands_positions_and_region_to_another_host() {
    let mut h = running();
    h.command(Command::Suspend);
    let state = h.frontend.device_state().unwrap();
    assert_eq!(
        state,
        DeviceState {
            features: Some(FEATURES),
            queue_size: SIZE,
            bases: vec![Some(STOPPED), Some(0x8000_8000)],
            inflight: Some(REGION_SHAPE),
        }
    );

    let mut h = ready();
    let part = |bytes: u64| Some(InflightDescription { mmap_size: 2 * bytes, ..REGION_SHAPE });
    for (wrong, fault) in [
        (
            DeviceState { bases: vec![Some(STOPPED), Some(0x8000_8064)], ..state.clone() },
            StateFault::Base { vring: 1, base: 0x8000_8064 },
        ),
        // The size that the region of a split ring would have.
        (
            DeviceState { inflight: part(16 + 16 * 100), ..state.clone() },
            StateFault::RegionSize { min: 6464, max: 6528, got: 3232 },
        ),
    ] {
        let adopt = Command::Adopt { state: wrong, inflight: Some(Handle(60)) };
        assert_eq!(refused(&mut h, adopt), fault.into());
    }
    h.command(Command::Adopt { state, inflight: Some(Handle(60)) });
    h.command(Command::Start(packed(Base::Kept)));
    let said = format!("SET_VRING_BASE(0,{STOPPED})");
    assert_eq!(
        h.bases_and_regions(),
        ["SET_INFLIGHT_FD(fd60)", said.as_str(), "SET_VRING_BASE(1,2147516416)"]
    );
}

#[test]
fn frontend_packed_destination_of_a_dead_back_end_has_only_the_region() {
    let mut h = running();
    h.peer.mute.insert("GET_VRING_BASE");
    h.command(Command::Suspend);
    h.input(Input::PeerClosed);
    let left = h.frontend.device_state().unwrap();
    assert_eq!(left.bases, [None, None]);
    let mut h = ready();
    h.command(Command::Adopt { state: left, inflight: Some(Handle(60)) });
    let unknown = refused(&mut h, Command::Start(packed(Base::Kept)));
    assert_eq!(unknown, ApiMisuse::BaseUnknown(0));
    h.command(Command::Start(packed(Base::Last)));
    assert_eq!(h.bases_and_regions()[0], "SET_INFLIGHT_FD(fd60)");
}

#[test]
fn frontend_packed_takes_no_base_that_is_outside_the_ring() {
    for (base, right) in [(0x8063_0063, true), (0x8000_0064, false), (0x0064_0000, false)] {
        let mut h = running();
        h.peer.bases.insert(0, base);
        h.clear();
        h.command(Command::Stop);
        if right {
            assert_eq!(h.events, [Event::Stopped { bases: vec![(0, base), (1, 0x8000_8000)] }]);
            continue;
        }
        let failure = Failure::from(BackendFault::Base { vring: 0, got: base });
        assert_eq!(h.wishes, [Output::Close(failure)]);

        let mut h = ready();
        let misuse = refused(&mut h, Command::Start(packed(Base::At(base))));
        assert_eq!(misuse, ApiMisuse::BadBase { vring: 0, base });
        assert_eq!(h.peer.log.len(), 0);
    }
}

#[test]
fn frontend_packed_rings_have_any_size() {
    let new = |features, queue_size| {
        let config = FrontendConfig { virtio_features: features, queue_size, ..config() };
        Frontend::new(config, vec![VringWiring::default(); 2]).map(|_| ())
    };
    for size in [1, 100, 32768] {
        assert_eq!(new(FEATURES, size), Ok(()));
    }
    for size in [0, 32769] {
        assert_eq!(new(FEATURES, size), Err(ConfigError::QueueSize(size)));
    }
    assert_eq!(new(0, 100), Err(ConfigError::QueueSize(100)));
}
