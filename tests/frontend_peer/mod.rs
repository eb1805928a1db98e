//! A back-end by script: takes a front-end's bytes, writes down what they say,
//! and answers as it was told to.

#![allow(dead_code)] // Each test binary uses a part of it.

use midflight::Handle;
use midflight::frontend::{
    Base, Command, Event, Frontend, FrontendConfig, Input, Output, Start, VringStart, VringWiring,
};
use midflight::time::{Duration, Instant};
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{
    ConfigPayload, Decoder, Dialect, FrontendReply, FrontendReplyBody as Body,
    FrontendRequest as R, FrontendRequests, InflightDescription, LogBase, MemRegion, VringState,
    encode_reply,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

pub const OFFERED: u64 = virtio::VERSION_1 | virtio::EVENT_IDX | virtio::BLK_FLUSH;
pub const PROTOCOL: u64 = protocol::MQ
    | protocol::REPLY_ACK
    | protocol::BACKEND_REQ
    | protocol::CONFIG
    | protocol::INFLIGHT_SHMFD
    | protocol::RESET_DEVICE
    | protocol::CONFIGURE_MEM_SLOTS
    | protocol::STATUS;
/// Descriptor that the peer gives for an inflight region.
pub const REGION: Handle = Handle(900);
/// Descriptor that the peer gives for page faults.
pub const FAULTS: Handle = Handle(700);
/// What its page faults call guest-physical address 0.
pub const BASE: u64 = 0x5500_0000_0000;
/// Back-end's end of the channel.
pub const CHANNEL: Handle = Handle(800);

/// What the back-end is and what it does wrong.
#[derive(Clone, Debug)]
pub struct Peer {
    pub features: u64,
    /// The answer to every GET_FEATURES but the first.
    pub features_again: Option<u64>,
    pub protocol: u64,
    pub queues: u64,
    pub mem_slots: u64,
    pub config: Vec<u8>,
    pub bases: BTreeMap<u32, u32>,
    /// Statuses other than 0, by message.
    pub refuse: BTreeMap<&'static str, u64>,
    /// Messages that are not answered.
    pub mute: BTreeSet<&'static str>,
    pub inflight: Option<InflightDescription>,
    pub dialect: Dialect,
    /// Answer to SET_LOG_BASE.
    pub log_answer: Body<Handle>,
    /// Answer to SET_DEVICE_STATE_FD: an error, or a channel of its own.
    pub state_answer: (u8, Option<Handle>),
    /// Answer to CHECK_DEVICE_STATE.
    pub state_status: u64,
    /// It was told POSTCOPY_LISTEN.
    pub listens: bool,
    /// How far beside the truth regions are that it names.
    pub shift: u64,
    status: u64,
    acked: u64,
    /// What came, as `NAME` or `NAME!` with NEED_REPLY, and details that matter.
    pub log: Vec<String>,
    /// Handles that came with messages, in order.
    pub handles: Vec<Handle>,
}

impl Default for Peer {
    fn default() -> Self {
        Self {
            features: OFFERED | virtio::PROTOCOL_FEATURES,
            features_again: None,
            protocol: PROTOCOL,
            queues: 2,
            mem_slots: 32,
            config: (0..60).collect(),
            bases: BTreeMap::new(),
            refuse: BTreeMap::new(),
            mute: BTreeSet::new(),
            inflight: Some(InflightDescription {
                mmap_size: 4224,
                mmap_offset: 0,
                num_queues: 2,
                queue_size: 128,
            }),
            dialect: Dialect::default(),
            log_answer: Body::U64(0),
            state_answer: (0, None),
            state_status: 0,
            listens: false,
            shift: 0,
            status: 0,
            acked: 0,
            log: Vec::new(),
            handles: Vec::new(),
        }
    }
}

impl Peer {
    /// Take one message and answer it.
    fn serve(&mut self, bytes: &[u8], handles: Vec<Handle>) -> Option<(Vec<u8>, Vec<Handle>)> {
        let dialect = self.dialect;
        let mut decoder = Decoder::<FrontendRequests, Handle>::new(dialect);
        self.handles.extend(&handles);
        decoder.push(bytes, handles).unwrap();
        let envelope = decoder.next().expect("one whole message").unwrap();
        assert!(decoder.next().is_none(), "one message at a time");
        let name = envelope.message.name();
        let flag = if envelope.need_reply { "!" } else { "" };
        self.log.push(format!("{name}{flag}{}", detail(&envelope.message)));
        if self.mute.contains(name) {
            return None;
        }
        let word = |word| Some(Body::U64(word));
        let body = match &envelope.message {
            R::GetFeatures => {
                let answer = self.features;
                self.features = self.features_again.unwrap_or(answer);
                word(answer)
            }
            R::GetProtocolFeatures => word(self.protocol),
            R::SetProtocolFeatures(bits) => {
                self.acked = *bits;
                None
            }
            R::GetQueueNum => word(self.queues),
            R::GetMaxMemSlots => word(self.mem_slots),
            R::GetStatus => word(self.status),
            R::SetStatus(status) => {
                self.status = *status;
                None
            }
            R::GetConfig(ask) => {
                let from = ask.offset as usize;
                let data = self.config.get(from..from + ask.data.len());
                Some(Body::Config(ConfigPayload {
                    offset: ask.offset,
                    flags: ask.flags,
                    data: data.unwrap_or_default().to_vec().into(),
                }))
            }
            R::GetInflightFd(_) => Some(match self.inflight {
                Some(description) => Body::Inflight(description, REGION),
                None => Body::NoInflight,
            }),
            R::PostcopyAdvise => Some(Body::Handle(FAULTS)),
            R::PostcopyListen => {
                self.listens = true;
                None
            }
            R::PostcopyEnd => {
                self.listens = false;
                word(0)
            }
            R::AddMemReg(region, _) if self.listens => {
                Some(Body::MemRegion(own(*region, self.shift)))
            }
            R::SetMemTable(table) if self.listens => Some(Body::MemTable(
                table.iter().map(|(region, _)| own(*region, self.shift)).collect(),
            )),
            R::SetLogBase(_) => Some(self.log_answer.clone()),
            R::SetDeviceStateFd(..) => {
                let (error, handle) = self.state_answer;
                Some(Body::DeviceState(error, handle))
            }
            R::CheckDeviceState => word(self.state_status),
            R::GetVringBase(VringState { index, .. })
            | R::GetVringBaseSkipDrain(VringState { index, .. }) => {
                Some(Body::VringState(VringState {
                    index: *index,
                    num: self.bases.get(index).copied().unwrap_or(0),
                }))
            }
            _ if envelope.need_reply && self.acked & protocol::REPLY_ACK != 0 => {
                word(self.refuse.get(name).copied().unwrap_or(0))
            }
            _ => None,
        };
        let code = envelope.message.code(&dialect).unwrap();
        body.map(|body| {
            let (bytes, handles) = encode_reply(&FrontendReply { code, body });
            (bytes.to_vec(), handles)
        })
    }

    pub fn take_log(&mut self) -> Vec<String> {
        core::mem::take(&mut self.log)
    }
}

/// A region by the address that this back-end has it at.
fn own(region: MemRegion, shift: u64) -> MemRegion {
    let guest_addr = region.guest_addr + shift;
    MemRegion { guest_addr, user_addr: guest_addr + BASE, ..region }
}

fn detail(request: &R<Handle>) -> String {
    match request {
        R::SetVringNum(s) | R::SetVringBase(s) | R::SetVringEnable(s) => {
            format!("({},{})", s.index, s.num)
        }
        R::GetVringBase(s) | R::GetVringBaseSkipDrain(s) => format!("({})", s.index),
        R::SetVringAddr(a) if a.flags == 0 => format!("({})", a.index),
        R::SetVringAddr(a) => format!("({},flags{},log{:#x})", a.index, a.flags, a.log),
        R::SetFeatures(bits) if bits & virtio::LOG_ALL != 0 => "+log".to_owned(),
        R::SetLogBase(LogBase::Shared(log, Handle(h))) => {
            format!("({},{},fd{h})", log.size, log.offset)
        }
        R::SetVringKick(f) | R::SetVringCall(f) | R::SetVringErr(f) => match f.handle {
            Some(Handle(h)) => format!("({},fd{h})", f.index),
            None => format!("({},nofd)", f.index),
        },
        R::SetStatus(status) => format!("({status:#x})"),
        R::SetInflightFd(_, Handle(h)) => format!("(fd{h})"),
        R::SetDeviceStateFd(state, Handle(h)) => format!("({},fd{h})", state.direction),
        R::AddMemReg(region, _) | R::RemMemReg(region, _) => format!("({:#x})", region.guest_addr),
        R::SetMemTable(table) => format!("({})", table.len()),
        R::MemTableAck | R::MemRegAck => "(ack)".to_owned(),
        R::GetConfig(c) | R::SetConfig(c) => format!("({},{})", c.offset, c.data.len()),
        _ => String::new(),
    }
}

/// Both ends, and a clock.
pub struct Harness {
    pub frontend: Frontend,
    pub peer: Peer,
    pub now: Instant,
    pub events: Vec<Event>,
    /// Everything that is neither sent nor an event.
    pub wishes: Vec<Output>,
    /// Answers reach the front-end in pieces of this many bytes.
    pub piece: usize,
}

pub fn config() -> FrontendConfig {
    FrontendConfig {
        virtio_features: virtio::VERSION_1 | virtio::EVENT_IDX | virtio::BLK_RO,
        protocol_features: PROTOCOL,
        config_len: 60,
        reconnect_backoff: Some(Duration::from_millis(100)),
        reply_timeout: Some(Duration::from_secs(5)),
        ..FrontendConfig::new(2)
    }
}

impl Harness {
    /// Of what the peer was told: where each vring goes on, and from which region.
    pub fn bases_and_regions(&self) -> Vec<&String> {
        let told = |line: &&String| line.starts_with("SET_VRING_BASE") || line.contains("INFLIGHT");
        self.peer.log.iter().filter(told).collect()
    }

    pub fn new(config: FrontendConfig) -> Self {
        let wiring = (0..u32::from(config.num_queues))
            .map(|q| VringWiring { call: Some(Handle(100 + q)), err: Some(Handle(110 + q)) });
        Self {
            frontend: Frontend::new(config.clone(), wiring.collect()).unwrap(),
            peer: Peer::default(),
            now: Instant::ZERO,
            events: Vec::new(),
            wishes: Vec::new(),
            piece: usize::MAX,
        }
    }

    /// Connected, negotiated, and with memory; nothing of it in the log.
    pub fn ready() -> Self {
        let mut harness = Self::new(config());
        harness.command(Command::SetMemory(memory()));
        harness.command(Command::Connect);
        harness.connect();
        harness.clear();
        harness
    }

    pub fn running() -> Self {
        let mut harness = Self::ready();
        harness.command(Command::Start(start(Base::Kept)));
        assert_eq!(harness.events, [Event::Running]);
        harness.clear();
        harness
    }

    pub fn clear(&mut self) {
        self.peer.log.clear();
        self.events.clear();
        self.wishes.clear();
    }

    pub fn input(&mut self, input: Input<'_>) {
        self.frontend.handle_input(self.now, input).unwrap();
        self.drain();
    }

    pub fn command(&mut self, command: Command) {
        self.input(Input::Command(command));
    }

    /// Answer the wish to connect.
    pub fn connect(&mut self) {
        assert_eq!(self.wishes.pop(), Some(Output::Connect));
        let channel = Some(CHANNEL);
        self.input(Input::Connected { channel });
    }

    /// Let time pass up to the next timer, which must be there.
    pub fn tick(&mut self) {
        let (at, _) = self.frontend.poll_timeout().expect("a timer");
        self.now = at;
        self.input(Input::Timeout);
    }

    /// Carry out wishes and feed answers back until both sides are silent.
    fn drain(&mut self) {
        let mut answers = VecDeque::new();
        self.obey(&mut answers);
        while let Some((bytes, handles)) = answers.pop_front() {
            let mut handles = Some(handles);
            for piece in bytes.chunks(self.piece.min(bytes.len())) {
                let input =
                    Input::Received { bytes: piece, handles: handles.take().unwrap_or_default() };
                self.frontend.handle_input(self.now, input).unwrap();
                self.obey(&mut answers);
            }
        }
    }

    fn obey(&mut self, answers: &mut VecDeque<(Vec<u8>, Vec<Handle>)>) {
        while let Some(output) = self.frontend.poll_output() {
            match output {
                Output::Send { bytes, handles } => {
                    answers.extend(self.peer.serve(&bytes, handles));
                }
                Output::Event(event) => self.events.push(event),
                other => self.wishes.push(other),
            }
        }
    }
}

pub fn region(guest_addr: u64) -> MemRegion {
    MemRegion {
        guest_addr,
        size: 0x10_0000,
        user_addr: guest_addr + 0x7f00_0000_0000,
        mmap_offset: 0,
    }
}

pub fn memory() -> Vec<(MemRegion, Handle)> {
    vec![(region(0), Handle(50)), (region(0x1_0000_0000), Handle(51))]
}

pub fn start(base: Base) -> Start {
    Start { features: None, vrings: (0..2).map(|index| vring(index, base)).collect() }
}

pub fn vring(index: u16, base: Base) -> VringStart {
    let at = 0x1000 * u64::from(index);
    VringStart {
        index,
        size: 64,
        desc: 0x7f00_0000_0000 + at,
        avail: 0x7f00_0000_0400 + at,
        used: 0x7f00_0000_0600 + at,
        base,
        kick: Some(Handle(120 + u32::from(index))),
        call: Some(Handle(130 + u32::from(index))),
    }
}
