//! Any message, of any kind.

use bytes::Bytes;
use midflight::wire::*;
use proptest::array::uniform16;
use proptest::collection::vec;
use proptest::prelude::*;

/// A strategy for each kind of message that the direction has in the dialect.
pub type Kinds<T> = Vec<BoxedStrategy<T>>;

fn state() -> impl Strategy<Value = VringState> + Clone {
    any::<(u32, u32)>().prop_map(|(index, num)| VringState { index, num })
}

fn switch() -> impl Strategy<Value = VringState> {
    (any::<u32>(), 0..=1u32).prop_map(|(index, num)| VringState { index, num })
}

fn addr() -> impl Strategy<Value = VringAddr> {
    let words = any::<(u32, u32, u64, u64, u64, u64)>();
    words.prop_map(|(index, flags, desc, used, avail, log)| VringAddr {
        index,
        flags,
        desc,
        used,
        avail,
        log,
    })
}

fn region() -> impl Strategy<Value = MemRegion> + Clone {
    let words = any::<(u64, u64, u64, u64)>();
    words.prop_map(|(guest_addr, size, user_addr, mmap_offset)| MemRegion {
        guest_addr,
        size,
        user_addr,
        mmap_offset,
    })
}

fn file() -> impl Strategy<Value = VringFile<u32>> + Clone {
    any::<(u8, Option<u32>)>().prop_map(|(index, handle)| VringFile { index, handle })
}

fn config(len: impl Into<proptest::collection::SizeRange>) -> impl Strategy<Value = ConfigPayload> {
    let fields = (any::<u32>(), any::<u32>(), vec(any::<u8>(), len));
    fields.prop_map(|(offset, flags, data)| ConfigPayload { offset, flags, data: data.into() })
}

fn inflight() -> impl Strategy<Value = InflightDescription> {
    let fields = any::<(u64, u64, u16, u16)>();
    fields.prop_map(|(mmap_size, mmap_offset, num_queues, queue_size)| InflightDescription {
        mmap_size,
        mmap_offset,
        num_queues,
        queue_size,
    })
}

fn iotlb() -> impl Strategy<Value = Iotlb> {
    (any::<(u64, u64, u64)>(), 0..=3u8, 1..=4u8).prop_map(
        |((iova, size, user_addr), perm, kind)| Iotlb { iova, size, user_addr, perm, kind },
    )
}

fn log_base() -> impl Strategy<Value = LogBase<u32>> {
    prop_oneof![
        any::<(u64, u64, u32)>().prop_map(|(size, offset, handle)| {
            LogBase::Shared(LogDescription { size, offset }, handle)
        }),
        any::<u64>().prop_map(LogBase::Address),
    ]
}

fn transfer() -> impl Strategy<Value = TransferState> {
    (0..=1u32).prop_map(|direction| TransferState { direction, phase: 0 })
}

fn shmem_map() -> impl Strategy<Value = ShmemMap> + Clone {
    let fields = any::<(u8, u64, u64, u64, u64)>();
    fields.prop_map(|(shmid, fd_offset, shm_offset, len, flags)| ShmemMap {
        shmid,
        fd_offset,
        shm_offset,
        len,
        flags,
    })
}

fn blob() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..600).prop_map(Bytes::from)
}

fn kinds<S, T>(strategies: impl IntoIterator<Item = S>) -> Kinds<T>
where
    S: Into<BoxedStrategy<T>>,
{
    strategies.into_iter().map(Into::into).collect()
}

/// Front-end requests.
pub fn requests(dialect: Dialect) -> Kinds<FrontendRequest<u32>> {
    use FrontendRequest as R;
    let h = any::<u32>;
    let word = any::<u64>;
    let mut all = kinds([
        Just(R::GetFeatures).boxed(),
        word().prop_map(R::SetFeatures).boxed(),
        Just(R::SetOwner).boxed(),
        Just(R::ResetOwner).boxed(),
        prop_oneof![
            3 => vec((region(), h()), 1..=8).prop_map(R::SetMemTable),
            1 => Just(R::MemTableAck),
        ]
        .boxed(),
        log_base().prop_map(R::SetLogBase).boxed(),
        h().prop_map(R::SetLogFd).boxed(),
        state().prop_map(R::SetVringNum).boxed(),
        addr().prop_map(R::SetVringAddr).boxed(),
        state().prop_map(R::SetVringBase).boxed(),
        any::<u32>().prop_map(|index| R::GetVringBase(VringState { index, num: 0 })).boxed(),
        file().prop_map(R::SetVringKick).boxed(),
        file().prop_map(R::SetVringCall).boxed(),
        file().prop_map(R::SetVringErr).boxed(),
        Just(R::GetProtocolFeatures).boxed(),
        word().prop_map(R::SetProtocolFeatures).boxed(),
        Just(R::GetQueueNum).boxed(),
        switch().prop_map(R::SetVringEnable).boxed(),
        word().prop_map(R::SendRarp).boxed(),
        word().prop_map(R::NetSetMtu).boxed(),
        h().prop_map(R::SetBackendReqFd).boxed(),
        iotlb().prop_map(R::IotlbMsg).boxed(),
        switch().prop_map(R::SetVringEndian).boxed(),
        config(0..=256).prop_map(R::GetConfig).boxed(),
        config(0..=256).prop_map(R::SetConfig).boxed(),
        blob().prop_map(R::CreateCryptoSession).boxed(),
        word().prop_map(R::CloseCryptoSession).boxed(),
        Just(R::PostcopyAdvise).boxed(),
        Just(R::PostcopyListen).boxed(),
        Just(R::PostcopyEnd).boxed(),
        inflight().prop_map(R::GetInflightFd).boxed(),
        (inflight(), h())
            .prop_map(|(description, handle)| R::SetInflightFd(description, handle))
            .boxed(),
        h().prop_map(R::GpuSetSocket).boxed(),
        Just(R::ResetDevice).boxed(),
        state().prop_map(R::VringKick).boxed(),
        Just(R::GetMaxMemSlots).boxed(),
        prop_oneof![
            3 => (region(), h()).prop_map(|(region, handle)| R::AddMemReg(region, handle)),
            1 => Just(R::MemRegAck),
        ]
        .boxed(),
        (region(), any::<Option<u32>>())
            .prop_map(|(region, handle)| R::RemMemReg(region, handle))
            .boxed(),
        word().prop_map(R::SetStatus).boxed(),
        Just(R::GetStatus).boxed(),
        uniform16(any::<u8>()).prop_map(R::GetSharedObject).boxed(),
        (transfer(), h()).prop_map(|(state, handle)| R::SetDeviceStateFd(state, handle)).boxed(),
        Just(R::CheckDeviceState).boxed(),
    ]);
    let contested = [R::GetShmemConfig, R::GetVringBaseSkipDrain(VringState { index: 0, num: 0 })];
    let contested = contested.into_iter();
    let known = contested.filter(|request| request.code(&dialect).is_some());
    all.extend(known.map(|request| {
        match request {
            R::GetVringBaseSkipDrain(_) => any::<u32>()
                .prop_map(|index| R::GetVringBaseSkipDrain(VringState { index, num: 0 }))
                .boxed(),
            other => Just(other).boxed(),
        }
    }));
    all
}

/// Answers to front-end requests: one kind for each body that each code can have.
pub fn replies(dialect: Dialect) -> Kinds<FrontendReply<u32>> {
    (1..=45)
        .filter(|&code| request_name(code, &dialect).is_some())
        .flat_map(|code| {
            let name = request_name(code, &dialect).unwrap();
            bodies(name)
                .into_iter()
                .map(move |body| body.prop_map(move |body| FrontendReply { code, body }).boxed())
        })
        .collect()
}

fn bodies(name: &str) -> Kinds<FrontendReplyBody<u32>> {
    use FrontendReplyBody as B;
    let status = || any::<u64>().prop_map(B::U64).boxed();
    match name {
        "GET_VRING_BASE" | "GET_VRING_BASE_SKIP_DRAIN" => {
            vec![state().prop_map(B::VringState).boxed()]
        }
        "SET_MEM_TABLE" => vec![status(), vec(region(), 1..=8).prop_map(B::MemTable).boxed()],
        "SET_LOG_BASE" => vec![status(), Just(B::Empty).boxed()],
        "GET_CONFIG" => vec![
            config(1..=256).prop_map(B::Config).boxed(),
            Just(B::Config(ConfigPayload { offset: 0, flags: 0, data: Bytes::new() })).boxed(),
        ],
        "CREATE_CRYPTO_SESSION" => vec![blob().prop_map(B::CryptoSession).boxed()],
        "POSTCOPY_ADVISE" => vec![any::<u32>().prop_map(B::Handle).boxed()],
        "GET_INFLIGHT_FD" => vec![
            (inflight(), any::<u32>())
                .prop_map(|(description, handle)| B::Inflight(description, handle))
                .boxed(),
            Just(B::NoInflight).boxed(),
        ],
        "ADD_MEM_REG" => vec![status(), region().prop_map(B::MemRegion).boxed()],
        "GET_SHARED_OBJECT" => vec![any::<Option<u32>>().prop_map(B::SharedObject).boxed()],
        "SET_DEVICE_STATE_FD" => vec![
            any::<(u8, Option<u32>)>()
                .prop_map(|(error, handle)| B::DeviceState(error, handle))
                .boxed(),
        ],
        "GET_SHMEM_CONFIG" => vec![
            (0..=256u32, vec(any::<u64>(), 256))
                .prop_map(|(nregions, sizes)| {
                    let sizes = sizes.into_boxed_slice().try_into().unwrap();
                    B::ShmemConfig(ShmemConfig { nregions, sizes })
                })
                .boxed(),
        ],
        _ => vec![status()],
    }
}

/// Back-end requests.
pub fn backend_requests() -> Kinds<BackendRequest<u32>> {
    use BackendRequest as R;
    let uuid = || uniform16(any::<u8>());
    let area = any::<(u64, u64, u64, Option<u32>)>().prop_map(|(index, size, offset, handle)| {
        // Bit 8 says whether there is no descriptor.
        let nofd = u64::from(handle.is_none()) << 8;
        let index = index & !(1 << 8) | nofd;
        let area = VringArea { index, size, offset };
        R::VringHostNotifierMsg(area, handle)
    });
    kinds([
        iotlb().prop_map(R::IotlbMsg).boxed(),
        Just(R::ConfigChangeMsg).boxed(),
        area.boxed(),
        state().prop_map(R::VringCall).boxed(),
        state().prop_map(R::VringErr).boxed(),
        uuid().prop_map(R::SharedObjectAdd).boxed(),
        uuid().prop_map(R::SharedObjectRemove).boxed(),
        uuid().prop_map(R::SharedObjectLookup).boxed(),
        (shmem_map(), any::<u32>()).prop_map(|(map, handle)| R::ShmemMap(map, handle)).boxed(),
        shmem_map().prop_map(R::ShmemUnmap).boxed(),
    ])
}

/// Answers to back-end requests.
pub fn backend_replies() -> Kinds<BackendReply<u32>> {
    (1..=10)
        .map(|code| {
            let name = backend_request_name(code).unwrap();
            let with_handle = name == "BACKEND_SHARED_OBJECT_LOOKUP";
            any::<(u64, Option<u32>)>()
                .prop_map(move |(status, handle)| BackendReply {
                    code,
                    status,
                    handle: handle.filter(|_| with_handle),
                })
                .boxed()
        })
        .collect()
}
