//! Nothing a front-end or a guest sends may panic, hang, or make the back-end
//! hold more than it said it would.

mod common;

use common::{
    FEATURES, GUEST_BYTES, PACKED_START, RING, Rig, USER_BASE, guest_region, ring_layout,
    slot_base, submit, vring_addr,
};
use midflight::Handle;
use midflight::backend::Input;
use midflight::blk::DeviceConfig;
use midflight::driver::{BlkOp, Framing};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    ConfigPayload, Dialect, Envelope, FrontendRequest as R, InflightDescription, MAX_BUFFERED,
    MemRegion, VringAddr, VringFile, VringState, encode_request,
};
use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

/// Most wishes one input may cause: every chain of a call as a disk request,
/// or every handle of a connection released, with room to spare.
const MAX_WISHES: usize = 2048;

fn disk() -> DeviceConfig {
    DeviceConfig { num_queues: 2, packed: true, ..DeviceConfig::with_capacity(1 << 20) }
}

/// A message as the front-end would send it, most often a sensible one.
fn message() -> impl Strategy<Value = R<Handle>> {
    let h = Handle(0);
    let index = prop_oneof![8 => 0u32..2, 1 => any::<u32>()];
    let small = prop_oneof![4 => 0u32..4, 4 => Just(u32::from(RING)), 1 => any::<u32>()];
    let state = (index.clone(), small).prop_map(|(index, num)| VringState { index, num });
    let file = (0u8..3, any::<bool>())
        .prop_map(move |(index, with)| VringFile { index, handle: with.then_some(h) });
    let region = prop_oneof![
        4 => Just(guest_region()),
        1 => (any::<u64>(), any::<u64>(), any::<u64>(), any::<u64>()).prop_map(
            |(guest_addr, size, user_addr, mmap_offset)| MemRegion {
                guest_addr: guest_addr & !0xfff, size: size & !0xfff, user_addr: user_addr & !0xfff, mmap_offset
            }
        ),
    ];
    let addr = prop_oneof![
        6 => (0u16..2).prop_map(vring_addr),
        // The ring where a split one has it, the event areas in the page behind.
        3 => (0u16..2).prop_map(|vring| VringAddr {
            avail: USER_BASE + 0x2000, used: USER_BASE + 0x2008, ..vring_addr(vring)
        }),
        1 => (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| VringAddr {
            index: 0, flags: 0,
            desc: USER_BASE + a % GUEST_BYTES, used: USER_BASE + b % GUEST_BYTES, avail: c, log: 0,
        }),
    ];
    let inflight = (0u16..4, prop_oneof![Just(RING), any::<u16>()], any::<u64>()).prop_map(
        |(num_queues, queue_size, size)| InflightDescription {
            mmap_size: size % (1 << 20),
            mmap_offset: 0,
            num_queues,
            queue_size,
        },
    );
    let config = (any::<u32>(), 0usize..64).prop_map(|(offset, len)| ConfigPayload {
        offset: offset % 80,
        flags: 0,
        data: bytes::Bytes::from(vec![1; len]),
    });
    prop_oneof![
        2 => Just(R::SetFeatures(FEATURES)),
        2 => Just(R::SetFeatures(FEATURES | virtio::RING_PACKED)),
        1 => any::<u64>().prop_map(R::SetFeatures),
        2 => Just(R::SetProtocolFeatures(
            midflight::backend::OFFERED_PROTOCOL_FEATURES | protocol::PAGEFAULT
        )),
        1 => any::<u64>().prop_map(R::SetProtocolFeatures),
        3 => region.clone().prop_map(move |r| R::AddMemReg(r, h)),
        1 => region.clone().prop_map(|r| R::RemMemReg(r, None)),
        1 => region.prop_map(move |r| R::SetMemTable(vec![(r, h)])),
        3 => state.clone().prop_map(|s| R::SetVringNum(VringState { num: u32::from(RING), ..s })),
        1 => state.clone().prop_map(R::SetVringNum),
        1 => state.clone().prop_map(R::SetVringBase),
        1 => (index, any::<u32>()).prop_map(|(index, bits)| R::SetVringBase(VringState {
            index, num: PACKED_START ^ (bits & 0x801f_801f),
        })),
        2 => state.clone().prop_map(R::GetVringBase),
        4 => state.prop_map(|s| R::SetVringEnable(VringState { num: s.num & 1, ..s })),
        4 => addr.prop_map(R::SetVringAddr),
        4 => file.clone().prop_map(R::SetVringKick),
        2 => file.clone().prop_map(R::SetVringCall),
        1 => file.prop_map(R::SetVringErr),
        1 => inflight.clone().prop_map(R::GetInflightFd),
        2 => inflight.prop_map(move |d| R::SetInflightFd(d, h)),
        1 => Just(R::ResetDevice),
        1 => config.clone().prop_map(R::GetConfig),
        1 => config.prop_map(R::SetConfig),
        1 => Just(R::GetMaxMemSlots),
        1 => Just(R::GetStatus),
        2 => Just(R::PostcopyAdvise),
        2 => Just(R::PostcopyListen),
        1 => Just(R::PostcopyEnd),
        1 => prop_oneof![Just(R::MemTableAck), Just(R::MemRegAck)],
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Message(R<Handle>, bool),
    Bytes(Vec<u8>),
    Kick(u16),
    /// Overwrite guest memory near the rings.
    Poke(u64, u64),
    /// Overwrite the inflight region.
    PokeRegion(u64, u64),
    Disk,
    Timeout,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        12 => (message(), any::<bool>()).prop_map(|(m, need)| Act::Message(m, need)),
        1 => proptest::collection::vec(any::<u8>(), 0..40).prop_map(Act::Bytes),
        4 => (0u16..2).prop_map(Act::Kick),
        4 => (0u64..0x2000, any::<u64>()).prop_map(|(at, v)| Act::Poke(0x1000 + at, v)),
        2 => (0u64..0x2000, any::<u64>()).prop_map(|(at, v)| Act::Poke(0x1000 + at, v & 0x3_0003_0003)),
        1 => (0u64..2048, any::<u64>()).prop_map(|(at, v)| Act::PokeRegion(at & !1, v & 0x1_ffff)),
        3 => Just(Act::Disk),
        1 => Just(Act::Timeout),
    ]
}

/// Give a message real handles and send it, unless the back-end reads nothing.
fn send(rig: &mut Rig, message: &R<Handle>, need_reply: bool) {
    if rig.backend.wanted() == 0 {
        return;
    }
    let envelope = Envelope { message: message.clone(), need_reply };
    let (bytes, placeholders) = encode_request(&envelope, &Dialect::default()).unwrap();
    let handles = placeholders.iter().map(|_| rig.handle()).collect();
    rig.input(Input::Received { bytes: &bytes, handles });
}

fn step(rig: &mut Rig, act: &Act) {
    if rig.closed.take().is_some() || rig.backend.is_idle() {
        rig.finish_all();
        assert!(rig.backend.is_idle());
        assert!(rig.live.is_empty(), "leaked {:?}", rig.live);
        rig.input(Input::Connected);
    }
    match act {
        Act::Message(message, need_reply) => send(rig, message, *need_reply),
        Act::Bytes(bytes) => {
            if rig.backend.wanted() >= bytes.len() {
                rig.input(Input::Received { bytes, handles: vec![] });
            }
        }
        Act::Kick(vring) => rig.kick(*vring),
        Act::Poke(at, value) => rig.guest.write_obj(*value, GuestAddress(*at)).unwrap(),
        Act::PokeRegion(at, value) => {
            if let Some(region) = &rig.region {
                region.write_obj(*value, GuestAddress(*at)).unwrap();
            }
        }
        Act::Disk => rig.finish_all(),
        Act::Timeout => rig.input(Input::Timeout),
    }
    assert!(rig.at_disk.len() <= 2 * 1024, "more in flight than the rings hold");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn hostile_messages_and_memory_never_break_the_back_end(acts in proptest::collection::vec(act(), 1..60)) {
        let mut rig = Rig::new(disk()).offer_postcopy();
        rig.region = Some(common::memory(1 << 20));
        for act in &acts {
            step(&mut rig, act);
        }
        // Whatever happened, the next client is served.
        rig.finish_all();
        if !rig.backend.is_idle() && rig.closed.is_none() {
            rig.input(Input::PeerClosed);
            rig.finish_all();
        }
        prop_assert!(rig.backend.is_idle());
        prop_assert!(rig.live.is_empty(), "leaked {:?}", rig.live);
    }

    #[test]
    fn hostile_rings_are_answered_or_silenced_and_stop_always_answers(
        pokes in proptest::collection::vec((0u64..0x1000, any::<u64>(), any::<bool>()), 1..40),
        requests in 0u64..8,
        size in prop_oneof![Just(None), (24u16..100).prop_map(Some)],
    ) {
        let mut rig = Rig::new(disk());
        let mut driver = match size {
            Some(size) => rig.run_packed(size),
            None => rig.run(),
        };
        for slot in 0..requests {
            submit(&rig, &mut driver, slot, BlkOp::Out { sector: slot }, 512, &Framing::CLASSIC);
        }
        driver.publish(&rig.guest).unwrap();
        for (at, value, near) in pokes {
            // Ring memory, or the headers and indirect tables.
            let at = if near { ring_layout(0).desc + at } else { slot_base(at % 8) + at };
            let value = if value % 3 == 0 { value & 0x3f_0007_003f } else { value };
            rig.guest.write_obj(value, GuestAddress(at)).unwrap();
            rig.kick(0);
            if value % 5 == 0 {
                rig.finish_all();
            }
        }
        rig.finish_all();
        prop_assert!(rig.get_base(0).is_some());
        prop_assert_eq!(&rig.closed, &None);
    }

    #[test]
    fn hostile_bytes_are_refused_without_growing(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..20),
        version in any::<bool>(),
    ) {
        let mut rig = Rig::new(disk());
        for mut chunk in chunks {
            if rig.backend.is_idle() {
                rig.input(Input::Connected);
            }
            // Half of the time the header looks right, so that more is reached.
            if version && chunk.len() >= 12 {
                chunk[4..8].copy_from_slice(&1u32.to_ne_bytes());
                chunk[1..4].fill(0);
                chunk[9..12].fill(0);
            }
            let handles = chunk.iter().take(2).map(|_| rig.handle()).collect();
            rig.input(Input::Received { bytes: &chunk, handles });
            prop_assert!(rig.backend.wanted() <= MAX_BUFFERED);
            prop_assert!(rig.replies.len() < MAX_WISHES);
        }
        if !rig.backend.is_idle() {
            rig.input(Input::PeerClosed);
        }
        prop_assert!(rig.live.is_empty(), "leaked {:?}", rig.live);
    }

    #[test]
    fn hostile_real_streams_cut_and_mutated_never_break_the_back_end(
        cut in any::<prop::sample::Index>(),
        mutations in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        piece in 1usize..64,
    ) {
        let mut rig = Rig::new(disk());
        rig.region = Some(common::memory(1 << 20));
        let (mut stream, mut owners) = (Vec::new(), Vec::new());
        for message in real_session() {
            let envelope = Envelope { message, need_reply: true };
            let (bytes, handles) = encode_request(&envelope, &Dialect::default()).unwrap();
            owners.push((stream.len(), handles.len()));
            stream.extend_from_slice(&bytes);
        }
        for (at, value) in mutations {
            let at = at.index(stream.len());
            stream[at] = value;
        }
        stream.truncate(cut.index(stream.len()) + 1);
        let mut at = 0;
        while at < stream.len() && !rig.backend.is_idle() {
            rig.finish_all();
            let end = (at + piece.min(rig.backend.wanted().max(1))).min(stream.len());
            let count: usize =
                owners.iter().filter(|(start, _)| (at..end).contains(start)).map(|(_, n)| n).sum();
            let handles = (0..count).map(|_| rig.handle()).collect();
            rig.input(Input::Received { bytes: &stream[at..end], handles });
            at = end;
        }
        rig.finish_all();
        if !rig.backend.is_idle() {
            rig.input(Input::PeerClosed);
            rig.finish_all();
        }
        prop_assert!(rig.backend.is_idle());
        prop_assert!(rig.live.is_empty(), "leaked {:?}", rig.live);
    }
}

/// What QEMU sends from connect to stop, one vring.
fn real_session() -> Vec<R<Handle>> {
    let h = Handle(0);
    let file = VringFile { index: 0, handle: Some(h) };
    let asked =
        InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 1, queue_size: RING };
    let region = InflightDescription { mmap_size: 1088, ..asked };
    let state = |num| VringState { index: 0, num };
    let config = ConfigPayload { offset: 0, flags: 0, data: bytes::Bytes::from(vec![0; 57]) };
    vec![
        R::GetFeatures,
        R::GetProtocolFeatures,
        R::SetProtocolFeatures(midflight::backend::OFFERED_PROTOCOL_FEATURES),
        R::GetQueueNum,
        R::GetMaxMemSlots,
        R::SetOwner,
        R::GetFeatures,
        R::SetVringCall(file),
        R::SetVringErr(file),
        R::GetConfig(config),
        R::ResetDevice,
        R::SetFeatures(FEATURES),
        R::GetInflightFd(asked),
        R::SetInflightFd(region, h),
        R::SetVringCall(file),
        R::AddMemReg(guest_region(), h),
        R::SetVringNum(state(u32::from(RING))),
        R::SetVringBase(state(0)),
        R::SetVringAddr(vring_addr(0)),
        R::SetVringKick(file),
        R::SetVringEnable(state(1)),
        R::SetVringEnable(state(0)),
        R::GetVringBase(state(0)),
    ]
}
