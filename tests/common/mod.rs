//! A driver for the back-end without sockets, clocks or disks: messages go in
//! as bytes, wishes are granted from plain memory. Used by tests and benches.

#![allow(dead_code)] // Each test uses its part.

use midflight::Handle;
use midflight::backend::{
    Backend, CloseReason, Event, Input, MapFailed, MissingMemory, Output, SuspendPolicy,
};
use midflight::blk::{Completion, DeviceConfig, DiskError, DiskOp, ReqId};
use midflight::driver::{
    BlkDriver, BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, RingFeatures, RingLayout,
    Span,
};
use midflight::time::Instant;
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    BackendReply, BackendRequest, BackendRequests, ConfigPayload, Decoder, Dialect, Envelope,
    FrontendReplies, FrontendReply, FrontendReplyBody, FrontendRequest, InflightDescription,
    MemRegion, VringAddr, VringFile, VringState, WireError, encode_backend_reply, encode_request,
};
use std::collections::BTreeSet;
use vm_memory::bitmap::NewBitmap;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap};

pub type Memory = GuestMemoryMmap<()>;

/// Guest memory: this many bytes at guest-physical address 0.
pub const GUEST_BYTES: u64 = 4 << 20;
/// Where the front-end would have it in its own address space.
pub const USER_BASE: u64 = 0x7f00_0000_0000;
/// What page faults call guest-physical address 0.
pub const BASE: u64 = 0x5500_0000_0000;
/// Ring size unless a test says otherwise.
pub const RING: u16 = 64;

/// Virtio features a modern guest accepts, with bit 30.
pub const FEATURES: u64 = virtio::VERSION_1
    | virtio::EVENT_IDX
    | virtio::INDIRECT_DESC
    | virtio::BLK_FLUSH
    | virtio::BLK_CONFIG_WCE
    | virtio::BLK_DISCARD
    | virtio::BLK_WRITE_ZEROES
    | virtio::BLK_SEG_MAX
    | virtio::PROTOCOL_FEATURES;

/// Memory a rig can run on.
pub trait TestMemory: GuestMemory + Clone {
    /// This many bytes from address 0.
    fn make(bytes: u64) -> Self;
}

impl<B: NewBitmap + 'static> TestMemory for GuestMemoryMmap<B> {
    fn make(bytes: u64) -> Self {
        Self::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
    }
}

/// Back-end, its memory and disk, and everything it wished for.
pub struct Rig<M = Memory> {
    pub backend: Backend<M>,
    /// Numbers its messages have.
    pub dialect: Dialect,
    pub guest: M,
    pub region: Option<M>,
    pub region_description: Option<InflightDescription>,
    pub disk: Vec<u8>,
    pub now: Instant,
    /// Handed to the back-end and not released.
    pub live: BTreeSet<Handle>,
    next_handle: u32,
    /// What the next mapping of guest memory is, if not `guest`.
    pub map_next: Option<M>,
    /// Device states that were saved.
    pub saved: Vec<Vec<u8>>,
    /// What comes out of the pipe of a state to load; `None`: nothing yet.
    pub state: Option<Vec<u8>>,
    /// Refuse the next mapping, saying why.
    pub refuse_map: Option<String>,
    decoder: Decoder<FrontendReplies, Handle>,
    pub replies: Vec<FrontendReply<Handle>>,
    /// The dirty log mapped last.
    pub log: Option<M>,
    pub at_disk: Vec<ReqId>,
    /// The back-end wants these cancelled.
    pub cancelled: Vec<ReqId>,
    /// The back-end needs the store.
    pub store: bool,
    pub calls: Vec<u16>,
    pub errs: Vec<u16>,
    /// For each end of postcopy, whether all pages were there.
    pub faults_closed: Vec<bool>,
    /// The back-end's channel.
    pub channel: Option<Handle>,
    asked_bytes: Decoder<BackendRequests, Handle>,
    /// What the back-end has said on it.
    pub asked: Vec<Envelope<BackendRequest<Handle>>>,
    pub events: Vec<Event>,
    pub closed: Option<CloseReason>,
}

pub fn memory(bytes: u64) -> Memory {
    Memory::from_ranges(&[(GuestAddress(0), bytes as usize)]).unwrap()
}

impl Rig {
    pub fn new(config: DeviceConfig) -> Self {
        Self::with(config, None)
    }

    /// A rig whose vring 0 runs, with an inflight region, and its driver.
    pub fn running(config: DeviceConfig) -> (Self, BlkDriver) {
        let mut rig = Self::new(config);
        let driver = rig.run();
        (rig, driver)
    }
}

impl<M: TestMemory> Rig<M> {
    pub fn with(config: DeviceConfig, suspend: Option<SuspendPolicy>) -> Self {
        let disk = vec![0; config.capacity as usize];
        let dialect = suspend.map_or(Dialect::default(), |policy| policy.dialect);
        let backend = match suspend {
            Some(policy) => Backend::with_suspend(config, policy),
            None => Backend::new(config),
        };
        let mut rig = Self {
            backend: backend.unwrap(),
            dialect,
            guest: M::make(GUEST_BYTES),
            region: None,
            region_description: None,
            disk,
            now: Instant::ZERO,
            live: BTreeSet::new(),
            next_handle: 0,
            map_next: None,
            saved: Vec::new(),
            state: None,
            refuse_map: None,
            decoder: Decoder::new(dialect),
            replies: Vec::new(),
            log: None,
            at_disk: Vec::new(),
            cancelled: Vec::new(),
            store: false,
            calls: Vec::new(),
            errs: Vec::new(),
            faults_closed: Vec::new(),
            channel: None,
            asked_bytes: Decoder::new(Dialect::default()),
            asked: Vec::new(),
            events: Vec::new(),
            closed: None,
        };
        rig.input(Input::Connected);
        rig
    }

    /// Offer postcopy from now on.
    pub fn offer_postcopy(self) -> Self {
        Self { backend: self.backend.offering_postcopy(), ..self }
    }

    /// Bring vring 0 up, with an inflight region; its driver.
    pub fn run(&mut self) -> BlkDriver {
        self.negotiate(FEATURES);
        self.set_up()
    }

    /// The same after the negotiation.
    pub fn set_up(&mut self) -> BlkDriver {
        self.get_inflight(1, RING);
        self.add_memory();
        let driver = BlkDriver::start(&self.guest, ring_layout(0), ring_features()).unwrap();
        self.set_inflight();
        self.start_vring(0, 0);
        driver
    }

    /// Bring vring 0 up as a packed one of this size, with an inflight region;
    /// its driver.
    pub fn run_packed(&mut self, size: u16) -> BlkDriver {
        self.negotiate(FEATURES | virtio::RING_PACKED);
        self.get_inflight(1, size);
        self.add_memory();
        let features = RingFeatures { packed: true, ..ring_features() };
        let driver = BlkDriver::start(&self.guest, packed_layout(size), features).unwrap();
        self.set_inflight();
        self.start_vring_at(size, PACKED_START, packed_addr(size));
        driver
    }

    pub fn handle(&mut self) -> Handle {
        self.next_handle += 1;
        let handle = Handle(self.next_handle);
        self.live.insert(handle);
        handle
    }

    pub fn input(&mut self, input: Input<'_, M>) {
        self.backend.handle_input(self.now, input).unwrap();
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.backend.poll_output() {
            match output {
                Output::Send { bytes, handles } => {
                    assert!(handles.iter().all(|h| self.live.contains(h)), "sent a dead handle");
                    self.decoder.push(&bytes, handles).unwrap();
                    while let Some(reply) = self.decoder.next() {
                        match reply {
                            Ok(reply) => self.replies.push(reply.message),
                            // A request nobody knows is refused under its own
                            // number, which this decoder does not know either.
                            Err(r) => assert!(matches!(r.error, WireError::UnknownRequest { .. })),
                        }
                    }
                }
                Output::Map { .. } => {
                    let result = match self.refuse_map.take() {
                        Some(why) => Err(MapFailed(why)),
                        None => Ok(self.map_next.take().unwrap_or_else(|| self.guest.clone())),
                    };
                    self.backend.handle_input(self.now, Input::Mapped(result)).unwrap();
                }
                Output::OpenFaults => {
                    let result = match self.refuse_map.take() {
                        Some(why) => Err(MapFailed(why)),
                        None => Ok(self.handle()),
                    };
                    self.backend.handle_input(self.now, Input::FaultsOpened(result)).unwrap();
                }
                Output::MapMissing { regions } => {
                    let result = match self.refuse_map.take() {
                        Some(why) => Err(MapFailed(why)),
                        None => Ok(MissingMemory {
                            memory: self.guest.clone(),
                            bases: regions.iter().map(|r| r.region.guest_addr + BASE).collect(),
                        }),
                    };
                    self.backend.handle_input(self.now, Input::MappedMissing(result)).unwrap();
                }
                Output::CloseFaults { all_there } => self.faults_closed.push(all_there),
                Output::AllocInflight { size } => {
                    self.region = Some(M::make(size.next_multiple_of(4096)));
                    let handle = self.handle();
                    let input = Input::InflightAllocated(Ok(handle));
                    self.backend.handle_input(self.now, input).unwrap();
                }
                Output::MapInflight { handle, .. } => {
                    assert!(self.live.contains(&handle));
                    let result = match self.refuse_map.take() {
                        Some(why) => Err(MapFailed(why)),
                        None => Ok(self.region.clone().expect("a region to map")),
                    };
                    self.backend.handle_input(self.now, Input::InflightMapped(result)).unwrap();
                }
                Output::Unmap => {}
                Output::SaveState { handle, bytes } => {
                    assert!(self.live.contains(&handle));
                    self.saved.push(bytes.to_vec());
                    self.backend.handle_input(self.now, Input::StateSaved(Ok(()))).unwrap();
                }
                Output::LoadState { handle, most } => {
                    assert!(self.live.contains(&handle));
                    if let Some(state) = self.state.take() {
                        assert!(state.len() as u64 <= most);
                        let input = Input::StateLoaded(Ok(state.into()));
                        self.backend.handle_input(self.now, input).unwrap();
                    }
                }
                Output::WatchKick { handle, .. } => {
                    assert!(handle.is_none_or(|h| self.live.contains(&h)));
                }
                Output::WatchChannel { handle } => {
                    assert!(handle.is_none_or(|h| self.live.contains(&h)));
                    self.channel = handle;
                }
                Output::ChannelSend { bytes, handles } => {
                    assert!(self.channel.is_some(), "sent on a channel that there is not");
                    assert!(handles.is_empty(), "no request of a block device carries handles");
                    self.asked_bytes.push(&bytes, handles).unwrap();
                    while let Some(next) = self.asked_bytes.next() {
                        self.asked.push(next.unwrap());
                    }
                }
                Output::Call { vring, handle } => {
                    assert!(self.live.contains(&handle), "called a dead handle");
                    self.calls.push(vring);
                }
                Output::Err { vring, .. } => self.errs.push(vring),
                Output::MapLog { handle, size, .. } => {
                    assert!(self.live.contains(&handle));
                    let result = match self.refuse_map.take() {
                        Some(why) => Err(MapFailed(why)),
                        None => Ok(M::make(size.next_multiple_of(4096))),
                    };
                    if let Ok(log) = &result {
                        self.log = Some(log.clone());
                    }
                    self.backend.handle_input(self.now, Input::LogMapped(result)).unwrap();
                }
                Output::Disk(id) => self.at_disk.push(id),
                Output::Cancel(id) => self.cancelled.push(id),
                Output::AcquireStore => {
                    assert!(!std::mem::replace(&mut self.store, true), "acquired twice");
                }
                Output::ReleaseStore => {
                    assert!(std::mem::replace(&mut self.store, false), "released twice");
                    assert_eq!(self.backend.requests_in_flight(), 0, "released too early");
                }
                Output::Release(handle) => {
                    assert!(self.live.remove(&handle), "{handle} released twice");
                }
                Output::Close(reason) => self.closed = Some(reason),
                Output::Event(event) => self.events.push(event),
            }
        }
    }

    /// Send a message; the last reply, if it brought one.
    pub fn send(
        &mut self,
        message: FrontendRequest<Handle>,
        need_reply: bool,
    ) -> Option<FrontendReplyBody<Handle>> {
        let before = self.replies.len();
        let envelope = Envelope { message, need_reply };
        let (bytes, handles) = encode_request(&envelope, &self.dialect).unwrap();
        self.input(Input::Received { bytes: &bytes, handles });
        self.replies.get(before).map(|r| r.body.clone())
    }

    /// Give the back-end a channel.
    pub fn open_channel(&mut self) {
        let handle = self.handle();
        self.ok(FrontendRequest::SetBackendReqFd(handle));
        assert_eq!(self.channel, Some(handle));
    }

    /// Answer what the back-end has asked.
    pub fn answer(&mut self, request: &BackendRequest<Handle>, status: u64) {
        let reply = BackendReply { code: request.code(), status, handle: None };
        let (bytes, handles) = encode_backend_reply(&reply);
        self.input(Input::ChannelReceived { bytes: &bytes, handles });
    }

    /// Send and expect a positive acknowledgement.
    pub fn ok(&mut self, message: FrontendRequest<Handle>) {
        let name = message.name();
        let reply = self.send(message, true);
        assert_eq!(
            reply,
            Some(FrontendReplyBody::U64(0)),
            "{name}: {:?} {:?}",
            self.closed,
            self.events.last()
        );
    }

    /// Send with NEED_REPLY and expect a refusal; its text.
    pub fn refused(&mut self, message: FrontendRequest<Handle>) -> String {
        let name = message.name();
        let live = self.live.len() - message.handles().len();
        let reply = self.send(message, true);
        assert_eq!(reply, Some(FrontendReplyBody::U64(1)), "{name} was not refused");
        assert_eq!(self.live.len(), live, "{name} leaked a handle");
        match self.events.last() {
            Some(Event::Refused(fault)) => fault.to_string(),
            other => panic!("{name}: {other:?}"),
        }
    }

    /// Accept what is offered of these features, and every protocol feature;
    /// read the configuration as a front-end does that connects for the first
    /// time.
    pub fn negotiate(&mut self, features: u64) {
        self.negotiate_again(features);
        let data = vec![0; 60].into();
        let read = FrontendRequest::GetConfig(ConfigPayload { offset: 0, flags: 0, data });
        assert!(matches!(self.send(read, false), Some(FrontendReplyBody::Config(_))));
    }

    /// The same as one that was connected before.
    pub fn negotiate_again(&mut self, features: u64) {
        let offered = match self.send(FrontendRequest::GetFeatures, false) {
            Some(FrontendReplyBody::U64(offered)) => offered,
            other => panic!("{other:?}"),
        };
        // Regions and rings have user addresses in most tests.
        let bits = self.backend.offered_protocol_features() & !self.dialect.gpa_addresses();
        assert!(bits & protocol::REPLY_ACK != 0);
        self.send(FrontendRequest::SetProtocolFeatures(bits), false);
        self.send(FrontendRequest::SetOwner, false);
        self.ok(FrontendRequest::SetFeatures(features & offered));
    }

    pub fn add_memory(&mut self) {
        let handle = self.handle();
        self.ok(FrontendRequest::AddMemReg(guest_region(), handle));
    }

    pub fn get_inflight(&mut self, num_queues: u16, queue_size: u16) {
        let asked = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues, queue_size };
        match self.send(FrontendRequest::GetInflightFd(asked), false) {
            Some(FrontendReplyBody::Inflight(description, _)) => {
                self.region_description = Some(description);
            }
            other => panic!("{other:?}"),
        }
    }

    pub fn set_inflight(&mut self) {
        let handle = self.handle();
        let description = self.region_description.expect("GET_INFLIGHT_FD came first");
        self.ok(FrontendRequest::SetInflightFd(description, handle));
    }

    pub fn start_vring(&mut self, vring: u16, base: u16) {
        self.start_vring_at(RING, base.into(), vring_addr(vring));
    }

    /// Start a vring of any kind.
    pub fn start_vring_at(&mut self, size: u16, base: u32, addr: VringAddr) {
        self.set_up_vring_at(size, base, addr);
        self.ok(FrontendRequest::SetVringEnable(VringState { index: addr.index, num: 1 }));
    }

    /// Everything but SET_VRING_ENABLE.
    pub fn set_up_vring_at(&mut self, size: u16, base: u32, addr: VringAddr) {
        let (index, vring) = (addr.index, addr.index as u8);
        self.ok(FrontendRequest::SetVringNum(VringState { index, num: size.into() }));
        self.ok(FrontendRequest::SetVringBase(VringState { index, num: base }));
        self.ok(FrontendRequest::SetVringAddr(addr));
        for message in [
            FrontendRequest::SetVringCall,
            FrontendRequest::SetVringErr,
            FrontendRequest::SetVringKick,
        ] {
            let handle = self.handle();
            self.ok(message(VringFile { index: vring, handle: Some(handle) }));
        }
    }

    pub fn get_base(&mut self, vring: u16) -> Option<u16> {
        self.get_base32(vring).map(|base| base as u16)
    }

    /// All of the base: of a packed ring it has both positions.
    pub fn get_base32(&mut self, vring: u16) -> Option<u32> {
        let state = VringState { index: u32::from(vring), num: 0 };
        match self.send(FrontendRequest::GetVringBase(state), false) {
            Some(FrontendReplyBody::VringState(state)) => Some(state.num),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    /// The message that suspends in the dialects that have one.
    pub fn skip_drain(&mut self, vring: u16) -> Option<u16> {
        let state = VringState { index: u32::from(vring), num: 0 };
        match self.send(FrontendRequest::GetVringBaseSkipDrain(state), false) {
            Some(FrontendReplyBody::VringState(state)) => Some(state.num as u16),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    pub fn kick(&mut self, vring: u16) {
        self.input(Input::Kick { vring });
    }

    /// Carry out a request on the disk, without reporting it.
    pub fn execute(&mut self, id: ReqId) -> Completion {
        let request = self.backend.request(id).expect("a request in flight");
        let mut at = 0;
        match request.op {
            DiskOp::Read { offset } => {
                at = offset as usize;
                for s in request.segments {
                    let end = at + s.len as usize;
                    self.guest.write_slice(&self.disk[at..end], GuestAddress(s.addr)).unwrap();
                    at = end;
                }
            }
            DiskOp::Write { offset, .. } => {
                at = offset as usize;
                for s in request.segments {
                    let end = at + s.len as usize;
                    self.guest.read_slice(&mut self.disk[at..end], GuestAddress(s.addr)).unwrap();
                    at = end;
                }
            }
            DiskOp::Flush => {}
            DiskOp::Discard { .. } | DiskOp::WriteZeroes { .. } | DiskOp::SecureErase => {
                for range in request.ranges {
                    self.disk[range.offset as usize..][..range.len as usize].fill(0);
                }
            }
            DiskOp::ZoneAppend { .. } | DiskOp::ZoneReport { .. } | DiskOp::Zone { .. } => {
                panic!("this disk has no zones: {:?}", request.op)
            }
        }
        assert!(at <= self.disk.len());
        Completion { id, result: Ok(()) }
    }

    /// Carry out and report everything at the disk, as one batch.
    pub fn finish_all(&mut self) {
        let ids = std::mem::take(&mut self.at_disk);
        let done: Vec<Completion> = ids.into_iter().map(|id| self.execute(id)).collect();
        self.input(Input::DiskDone(&done));
    }

    /// Report everything at the disk as failed.
    pub fn fail_all(&mut self, error: DiskError) {
        let ids = std::mem::take(&mut self.at_disk);
        let done: Vec<Completion> =
            ids.into_iter().map(|id| Completion { id, result: Err(error) }).collect();
        self.input(Input::DiskDone(&done));
    }
}

pub fn guest_region() -> MemRegion {
    MemRegion { guest_addr: 0, size: GUEST_BYTES, user_addr: USER_BASE, mmap_offset: 0 }
}

pub fn ring_features() -> RingFeatures {
    RingFeatures { event_idx: true, indirect: true, packed: false }
}

pub fn ring_layout(vring: u16) -> RingLayout {
    RingLayout::contiguous(RING, 0x1000 + 0x4000 * u64::from(vring)).unwrap()
}

/// Both positions at entry 0, both wrap counters 1.
pub const PACKED_START: u32 = 0x8000_8000;

/// Where vring 0 is if it is packed. Its driver event area begins a page, and
/// so does its device event area.
pub fn packed_layout(size: u16) -> RingLayout {
    RingLayout { size, desc: 0x1000, avail: 0x8_2000, used: 0x8_4000 }
}

pub fn packed_addr(size: u16) -> VringAddr {
    of_layout(0, &packed_layout(size))
}

pub fn vring_addr(vring: u16) -> VringAddr {
    of_layout(vring, &ring_layout(vring))
}

fn of_layout(vring: u16, layout: &RingLayout) -> VringAddr {
    VringAddr {
        index: u32::from(vring),
        flags: 0,
        desc: USER_BASE + layout.desc,
        used: USER_BASE + layout.used,
        avail: USER_BASE + layout.avail,
        log: 0,
    }
}

/// Where request number `slot` of a test has its buffers.
pub fn slot_base(slot: u64) -> u64 {
    0x10_0000 + slot * 0x4000
}

/// Put a request into the ring; data right behind the header, status behind it.
pub fn submit<M: TestMemory>(
    rig: &Rig<M>,
    driver: &mut BlkDriver,
    slot: u64,
    op: BlkOp<'_>,
    len: u32,
    framing: &Framing,
) -> u16 {
    let base = slot_base(slot);
    let data = [Span { addr: base + 16, len }];
    let buffers = RequestBuffers {
        header: base,
        data: if len == 0 { &[] } else { &data },
        status: base + 16 + u64::from(len),
        table: Some(base + 0x2000),
    };
    driver.submit(&rig.guest, &BlkRequest { op, token: slot }, &buffers, framing).unwrap()
}

/// Put writes of one sector into the ring, and have them fetched.
pub fn write<M: TestMemory>(rig: &mut Rig<M>, driver: &mut BlkDriver, slots: std::ops::Range<u64>) {
    for slot in slots {
        submit(rig, driver, slot, BlkOp::Out { sector: slot }, 512, &Framing::CLASSIC);
    }
    driver.publish(&rig.guest).unwrap();
    rig.kick(0);
}

/// Tokens in the order in which they were used, all of them well.
pub fn reaped(rig: &Rig, driver: &mut BlkDriver) -> Vec<u64> {
    let mut tokens = Vec::new();
    while let Some(done) = driver.reap(&rig.guest).unwrap() {
        assert_eq!(done.status, BlkStatus::Ok);
        tokens.push(done.token);
    }
    tokens
}
