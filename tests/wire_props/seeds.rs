//! Conversations as QEMU has them, in both directions of both sockets.

use crate::stream::{Way, Write};
use bytes::Bytes;
use midflight::wire::features::{protocol, virtio};
use midflight::wire::*;

const VRINGS: u8 = 2;

fn write<D: Way>(message: D::Message, need_reply: bool) -> Write {
    let envelope = Envelope { message, need_reply };
    D::write(&envelope, Dialect::QEMU_11_1)
}

/// Sends requests, with handles counted up.
#[derive(Default)]
struct FrontEnd {
    writes: Vec<Write>,
    handles: u32,
}

impl FrontEnd {
    fn tell(&mut self, request: FrontendRequest<u32>) {
        self.writes.push(write::<FrontendRequests>(request, false));
    }

    fn ask(&mut self, request: FrontendRequest<u32>) {
        self.writes.push(write::<FrontendRequests>(request, true));
    }

    fn handle(&mut self) -> u32 {
        self.handles += 1;
        self.handles
    }

    fn file(&mut self, index: u8) -> VringFile<u32> {
        VringFile { index, handle: Some(self.handle()) }
    }

    fn connect(&mut self) {
        use FrontendRequest as R;
        self.tell(R::GetFeatures);
        self.tell(R::GetProtocolFeatures);
        let features = protocol::MQ | protocol::CONFIG | protocol::REPLY_ACK;
        self.tell(R::SetProtocolFeatures(features | protocol::INFLIGHT_SHMFD));
        self.tell(R::GetQueueNum);
        self.tell(R::GetMaxMemSlots);
        let channel = self.handle();
        self.ask(R::SetBackendReqFd(channel));
        self.tell(R::SetOwner);
        self.tell(R::GetFeatures);
        for vring in 0..VRINGS {
            let call = self.file(vring);
            self.ask(R::SetVringCall(call));
            let err = self.file(vring);
            self.ask(R::SetVringErr(err));
        }
        self.tell(R::GetConfig(ConfigPayload {
            offset: 0,
            flags: 0,
            data: Bytes::from_static(&[0; 57]),
        }));
        self.tell(R::ResetDevice);
    }

    fn start(&mut self, slots: bool) {
        use FrontendRequest as R;
        let features = virtio::PROTOCOL_FEATURES | virtio::VERSION_1 | virtio::BLK_FLUSH;
        self.tell(R::SetFeatures(features));
        self.tell(R::GetStatus);
        self.tell(R::SetStatus(8));
        let mut inflight = InflightDescription {
            mmap_size: 0,
            mmap_offset: 0,
            num_queues: VRINGS.into(),
            queue_size: 128,
        };
        self.tell(R::GetInflightFd(inflight));
        inflight.mmap_size = 2 * 2112;
        let region = self.handle();
        self.tell(R::SetInflightFd(inflight, region));
        for vring in 0..VRINGS {
            let call = self.file(vring);
            self.ask(R::SetVringCall(call));
        }
        self.tell(R::SetFeatures(features));
        self.tell(R::GetStatus);
        self.memory(slots);
        for vring in 0..VRINGS {
            let index = vring.into();
            self.tell(R::SetVringNum(VringState { index, num: 128 }));
            self.tell(R::SetVringBase(VringState { index, num: 0 }));
            let ring = 0x7f00_0010_0000 + u64::from(vring) * 0x1000;
            self.tell(R::SetVringAddr(VringAddr {
                index,
                flags: 0,
                desc: ring,
                used: ring + 0xa40,
                avail: ring + 0x800,
                log: 0x10_0a40,
            }));
            let kick = self.file(vring);
            self.ask(R::SetVringKick(kick));
        }
        for index in 0..VRINGS.into() {
            self.ask(R::SetVringEnable(VringState { index, num: 1 }));
        }
        self.tell(R::GetStatus);
        self.tell(R::SetStatus(0xf));
    }

    fn memory(&mut self, slots: bool) {
        let low =
            MemRegion { guest_addr: 0, size: 2 << 30, user_addr: 0x7f00_0000_0000, mmap_offset: 0 };
        let high = MemRegion {
            guest_addr: 4 << 30,
            size: 2 << 30,
            user_addr: 0x7f00_8000_0000,
            mmap_offset: 2 << 30,
        };
        let handles = [self.handle(), self.handle()];
        let regions = [low, high].into_iter().zip(handles);
        if slots {
            for (region, handle) in regions {
                self.ask(FrontendRequest::AddMemReg(region, handle));
            }
        } else {
            self.ask(FrontendRequest::SetMemTable(regions.collect()));
        }
    }

    fn migrate(&mut self) {
        use FrontendRequest as R;
        let log = LogDescription { size: 8192, offset: 0 };
        let handle = self.handle();
        self.tell(R::SetLogBase(LogBase::Shared(log, handle)));
        self.ask(R::SetFeatures(virtio::PROTOCOL_FEATURES | virtio::LOG_ALL));
        self.ask(R::IotlbMsg(Iotlb {
            iova: 0x1000,
            size: 0x1000,
            user_addr: 0x7f00_0000_1000,
            perm: 3,
            kind: 2,
        }));
        self.ask(R::SetConfig(ConfigPayload {
            offset: 32,
            flags: 0,
            data: Bytes::from_static(&[1]),
        }));
    }

    fn stop(&mut self) {
        use FrontendRequest as R;
        for index in 0..VRINGS.into() {
            self.ask(R::SetVringEnable(VringState { index, num: 0 }));
        }
        for index in 0..VRINGS.into() {
            self.tell(R::GetVringBase(VringState { index, num: 0 }));
        }
        self.tell(R::SetStatus(0));
        self.tell(R::ResetDevice);
    }
}

/// Connect, start, log, stop and start again; once with memory slots, once with
/// a memory table.
// spec: vhost-user, "Communication"
pub fn requests() -> Vec<Write> {
    let mut front_end = FrontEnd::default();
    front_end.connect();
    front_end.start(true);
    front_end.migrate();
    front_end.stop();
    front_end.start(false);
    front_end.writes
}

/// What a back-end answers to that.
pub fn replies() -> Vec<Write> {
    use FrontendReplyBody as B;
    let inflight = InflightDescription {
        mmap_size: 2 * 2112,
        mmap_offset: 0,
        num_queues: VRINGS.into(),
        queue_size: 128,
    };
    let config = ConfigPayload { offset: 0, flags: 0, data: Bytes::from_static(&[1; 57]) };
    let base = VringState { index: 1, num: 9 };
    let bodies = [
        (1, B::U64(virtio::PROTOCOL_FEATURES | virtio::VERSION_1)),
        (15, B::U64(protocol::MQ | protocol::REPLY_ACK)),
        (17, B::U64(VRINGS.into())),
        (36, B::U64(509)),
        (21, B::U64(0)),
        (13, B::U64(0)),
        (24, B::Config(config)),
        (40, B::U64(8)),
        (31, B::Inflight(inflight, 1)),
        (37, B::U64(0)),
        (12, B::U64(1)),
        (18, B::U64(0)),
        (6, B::U64(0)),
        (6, B::Empty),
        (11, B::VringState(base)),
        (28, B::Handle(2)),
        (5, B::U64(0)),
        (31, B::NoInflight),
    ];
    bodies
        .into_iter()
        .map(|(code, body)| write::<FrontendReplies>(FrontendReply { code, body }, false))
        .collect()
}

/// What a back-end asks.
pub fn backend_requests() -> Vec<Write> {
    use BackendRequest as R;
    let map = ShmemMap { shmid: 0, fd_offset: 0, shm_offset: 0x1000, len: 0x1000, flags: 1 };
    let miss = Iotlb { iova: 0x1000, size: 0, user_addr: 0, perm: 1, kind: 1 };
    let area = VringArea { index: 0, size: 0x1000, offset: 0 };
    let requests = [
        (R::ConfigChangeMsg, true),
        (R::IotlbMsg(miss), true),
        (R::VringCall(VringState { index: 0, num: 0 }), true),
        (R::VringErr(VringState { index: 1, num: 0 }), false),
        (R::VringHostNotifierMsg(area, Some(1)), true),
        (R::ShmemMap(map, 2), true),
        (R::ShmemUnmap(map), true),
        (R::SharedObjectLookup([3; 16]), false),
    ];
    requests
        .into_iter()
        .map(|(request, need_reply)| write::<BackendRequests>(request, need_reply))
        .collect()
}

/// What a front-end answers to that.
pub fn backend_replies() -> Vec<Write> {
    [(2, 0, None), (1, 1, None), (4, 0, None), (8, 0, Some(1))]
        .into_iter()
        .map(|(code, status, handle)| {
            write::<BackendReplies>(BackendReply { code, status, handle }, false)
        })
        .collect()
}
