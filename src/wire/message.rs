//! One type for every vhost-user message, in both directions.
//!
//! The descriptors that ride with a message are part of its type: a message
//! that needs one cannot be built without it. `H` is whatever stands for a
//! descriptor; the core uses [`Handle`](crate::Handle).

/// A message together with what its header said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope<T> {
    /// The typed message.
    pub message: T,
    /// Bit 3 of the header flags: the sender asks for an answer.
    pub need_reply: bool,
}

/// Vring index and a number: ring size, base, enable flag or endianness.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringState {
    /// Vring index.
    pub index: u32,
    /// Meaning depends on the message.
    pub num: u32,
}

/// Addresses of one vring, in the front-end's user address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringAddr {
    /// Vring index.
    pub index: u32,
    /// Bit 0: log writes to the used ring (`VHOST_VRING_F_LOG`).
    pub flags: u32,
    /// Descriptor table.
    pub desc: u64,
    /// Used ring (device area).
    pub used: u64,
    /// Available ring (driver area).
    pub avail: u64,
    /// Guest-physical address that dirty bits of the used ring are counted from.
    pub log: u64,
}

/// One region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemRegion {
    /// Guest-physical address of the first byte.
    pub guest_addr: u64,
    /// Length in bytes.
    pub size: u64,
    /// Address of the first byte in the front-end's address space.
    pub user_addr: u64,
    /// Offset of the first byte in the file behind the descriptor, in bytes.
    pub mmap_offset: u64,
}

/// A descriptor for a vring event, or the statement that there is none (NOFD).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringFile<H> {
    /// Vring index, 0 to 255.
    pub index: u8,
    /// The event descriptor; `None` when the NOFD bit is set.
    pub handle: Option<H>,
}

/// Where and how large a dirty log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogDescription {
    /// Bytes to map.
    pub size: u64,
    /// Offset in the file behind the descriptor, in bytes.
    pub offset: u64,
}

/// A part of the device configuration space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigPayload {
    /// First byte.
    pub offset: u32,
    /// 0: write by the guest driver; bit 0: writable fields only; bit 1: migration.
    pub flags: u32,
    /// Content; its length is the size field. At most 256 bytes.
    pub data: bytes::Bytes,
}

/// Shape and place of an inflight region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InflightDescription {
    /// Bytes of the whole region, all queues.
    pub mmap_size: u64,
    /// Offset in the file behind the descriptor, in bytes.
    pub mmap_offset: u64,
    /// Number of queues.
    pub num_queues: u16,
    /// Entries per queue.
    pub queue_size: u16,
}

/// Update or miss of the device IOTLB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Iotlb {
    /// I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// User address the range maps to.
    pub user_addr: u64,
    /// 1 read, 2 write, 3 both.
    pub perm: u8,
    /// 1 miss, 2 update, 3 invalidate, 4 access fail.
    pub kind: u8,
}

/// Host notifier area of a vring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VringArea {
    /// Vring index in bits 0-7, flags above.
    pub index: u64,
    /// Bytes.
    pub size: u64,
    /// Offset in the file behind the descriptor.
    pub offset: u64,
}

/// Direction and phase of a device state transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransferState {
    /// 0 save, 1 load.
    pub direction: u32,
    /// 0 stopped; no other phase is defined.
    pub phase: u32,
}

/// Mapping of a part of a descriptor into a VIRTIO shared memory region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShmemMap {
    /// Shared memory region.
    pub shmid: u8,
    /// Offset in the file behind the descriptor.
    pub fd_offset: u64,
    /// Offset in the shared memory region.
    pub shm_offset: u64,
    /// Bytes.
    pub len: u64,
    /// Bit 0: map read-write.
    pub flags: u64,
}

/// Sizes of the VIRTIO shared memory regions of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShmemConfig {
    /// Number of regions with a size that is not 0.
    pub nregions: u32,
    /// Size in bytes by shared memory id.
    pub sizes: Box<[u64; 256]>,
}

/// A request from the front-end to the back-end.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The variants are the names of the vhost-user document.
pub enum FrontendRequest<H> {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<(MemRegion, H)>),
    /// SET_MEM_TABLE again, without regions: the bases that the answer told in
    /// postcopy are known. Never answered, NEED_REPLY or not.
    MemTableAck,
    SetLogBase(LogBase<H>),
    SetLogFd(H),
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFile<H>),
    SetVringCall(VringFile<H>),
    SetVringErr(VringFile<H>),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    SendRarp(u64),
    NetSetMtu(u64),
    SetBackendReqFd(H),
    IotlbMsg(Iotlb),
    SetVringEndian(VringState),
    GetConfig(ConfigPayload),
    SetConfig(ConfigPayload),
    /// Payload kept as it came: crypto devices are outside midflight.
    CreateCryptoSession(bytes::Bytes),
    CloseCryptoSession(u64),
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    GetInflightFd(InflightDescription),
    SetInflightFd(InflightDescription, H),
    GpuSetSocket(H),
    ResetDevice,
    VringKick(VringState),
    GetMaxMemSlots,
    AddMemReg(MemRegion, H),
    /// The same for all ADD_MEM_REG since the last one.
    MemRegAck,
    /// The descriptor is not needed; a sender may attach one, the receiver releases it.
    RemMemReg(MemRegion, Option<H>),
    SetStatus(u64),
    GetStatus,
    GetSharedObject([u8; 16]),
    SetDeviceStateFd(TransferState, H),
    CheckDeviceState,
    GetShmemConfig,
    GetVringBaseSkipDrain(VringState),
}

/// The two forms of SET_LOG_BASE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogBase<H> {
    /// With LOG_SHMFD: a mappable descriptor.
    Shared(LogDescription, H),
    /// Without: an address of no use between processes.
    Address(u64),
}

/// The back-end's answer to a front-end request; the code in the header is that
/// of the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrontendReply<H> {
    /// Code of the request this answers, as on the wire.
    pub code: u32,
    /// What it says.
    pub body: FrontendReplyBody<H>,
}

/// Content of a [`FrontendReply`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FrontendReplyBody<H> {
    /// A value, or the status of a REPLY_ACK answer (0 success).
    U64(u64),
    /// GET_VRING_BASE and its successor.
    VringState(VringState),
    /// GET_CONFIG; empty data says that it failed, and the other fields are 0 then.
    /// At most 256 bytes.
    Config(ConfigPayload),
    /// GET_INFLIGHT_FD.
    Inflight(InflightDescription, H),
    /// GET_INFLIGHT_FD: the back-end has no region to give (its size is 0).
    NoInflight,
    /// SET_MEM_TABLE while postcopy listens.
    MemTable(Vec<MemRegion>),
    /// ADD_MEM_REG while postcopy listens.
    MemRegion(MemRegion),
    /// POSTCOPY_ADVISE: a userfaultfd.
    Handle(H),
    /// GET_SHARED_OBJECT: a descriptor if the object is known.
    SharedObject(Option<H>),
    /// SET_DEVICE_STATE_FD: error (0 none), and perhaps the back-end's own channel.
    DeviceState(u8, Option<H>),
    /// GET_SHMEM_CONFIG.
    ShmemConfig(ShmemConfig),
    /// CREATE_CRYPTO_SESSION, kept as it came: crypto devices are outside midflight.
    CryptoSession(bytes::Bytes),
    /// No payload at all (a SET_LOG_BASE answer may look like this).
    Empty,
}

/// A request from the back-end to the front-end, on the channel of
/// SET_BACKEND_REQ_FD.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // The variants are the names of the vhost-user document.
pub enum BackendRequest<H> {
    IotlbMsg(Iotlb),
    ConfigChangeMsg,
    VringHostNotifierMsg(VringArea, Option<H>),
    VringCall(VringState),
    VringErr(VringState),
    SharedObjectAdd([u8; 16]),
    SharedObjectRemove([u8; 16]),
    SharedObjectLookup([u8; 16]),
    ShmemMap(ShmemMap, H),
    ShmemUnmap(ShmemMap),
}

/// The front-end's answer to a back-end request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendReply<H> {
    /// Code of the request this answers, as on the wire.
    pub code: u32,
    /// Status (0 success).
    pub status: u64,
    /// SHARED_OBJECT_LOOKUP: a descriptor if the object is known.
    pub handle: Option<H>,
}
