//! One malformed message for each rule that a look at a single message can
//! decide, with the error and its text.
//!
//! What needs to know the session (a vring that does not exist, a message whose
//! feature was not negotiated, regions that overlap) is not the wire's to say.

use midflight::wire::*;

/// A message as it comes, byte by byte.
struct Raw {
    code: u32,
    flags: u32,
    /// When it is not what the payload has.
    size: Option<u32>,
    payload: Vec<u8>,
    handles: usize,
}

fn raw(code: u32, payload: Vec<u8>) -> Raw {
    Raw { code, flags: 0x1, size: None, payload, handles: 0 }
}

impl Raw {
    fn flags(self, flags: u32) -> Self {
        Self { flags, ..self }
    }
    fn size(self, size: u32) -> Self {
        Self { size: Some(size), ..self }
    }
    fn handles(self, handles: usize) -> Self {
        Self { handles, ..self }
    }
    fn reply(self) -> Self {
        self.flags(0x5)
    }

    fn bytes(&self) -> Vec<u8> {
        let size = self.size.unwrap_or(self.payload.len() as u32);
        let header = [self.code, self.flags, size].map(u32::to_ne_bytes);
        [header.concat(), self.payload.clone()].concat()
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn zeros(count: usize) -> Vec<u8> {
    vec![0; count]
}

fn long(word: u64) -> Vec<u8> {
    word.to_ne_bytes().to_vec()
}

/// A memory table that announces `count` regions and has room for `slots`.
fn table(count: u32, slots: usize) -> Vec<u8> {
    [words(&[count, 0]), zeros(32 * slots)].concat()
}

/// The direction's decoder refuses the message with this error; if the
/// connection lives the next message is taken, else nothing is.
fn refuses<D: Way>(message: &Raw, error: WireError, text: &str) {
    let mut decoder = Decoder::<D, u32>::new(Dialect::QEMU_11_1);
    let handles: Vec<u32> = (0..message.handles as u32).collect();
    decoder.push(&message.bytes(), handles.clone()).unwrap();
    let refused = match decoder.next() {
        Some(Err(refused)) => refused,
        Some(Ok(_)) => panic!("taken, not refused: {text}"),
        None => panic!("neither taken nor refused: {text}"),
    };
    assert_eq!(refused.error, error);
    assert_eq!(refused.error.to_string(), text);
    assert_eq!(refused.handles, handles, "{text}");
    assert_eq!(refused.fatal, error.is_fatal(), "{text}");
    let request = message.flags & 0x4 == 0;
    if refused.code.is_some() {
        assert_eq!(refused.code, Some(message.code));
        assert_eq!(refused.need_reply, request && message.flags & 0x8 != 0);
    }
    let next = D::good();
    let pushed = decoder.push(&next.bytes(), vec![]);
    if refused.fatal {
        assert!(pushed.is_err(), "{text}");
        assert!(decoder.next().is_none(), "{text}");
    } else {
        pushed.unwrap();
        assert!(matches!(decoder.next(), Some(Ok(_))), "{text}");
    }
}

/// A direction with a message that nothing is wrong with.
trait Way: Direction<u32> {
    fn good() -> Raw;
}

impl Way for FrontendRequests {
    fn good() -> Raw {
        raw(3, vec![])
    }
}

impl Way for FrontendReplies {
    fn good() -> Raw {
        raw(1, zeros(8)).reply()
    }
}

impl Way for BackendRequests {
    fn good() -> Raw {
        raw(2, vec![])
    }
}

impl Way for BackendReplies {
    fn good() -> Raw {
        raw(2, zeros(8)).reply()
    }
}

fn size(message: &'static str, expected: PayloadSize, got: u32) -> WireError {
    WireError::Size { message, expected, got }
}

fn count(message: &'static str, expected: HandleCount, got: u32) -> WireError {
    WireError::Handles { message, expected, got }
}

fn field(
    message: &'static str,
    field: &'static str,
    expected: &'static str,
    got: u64,
) -> WireError {
    WireError::Field { message, field, expected, got }
}

#[test]
fn wire_rule_a_broken_header_ends_the_connection() {
    let get = || raw(1, vec![]);
    refuses::<FrontendRequests>(
        &get().flags(0x2),
        WireError::Version { got: 2 },
        "header has version 2, expected 1",
    );
    refuses::<FrontendRequests>(
        &get().flags(0x0).handles(1),
        WireError::Version { got: 0 },
        "header has version 0, expected 1",
    );
    refuses::<FrontendRequests>(
        &get().flags(0x8001),
        WireError::ReservedFlags { got: 0x8001 },
        "header has flags 0x8001, expected none above bit 3",
    );
    refuses::<FrontendRequests>(
        &get().flags(0x5),
        WireError::UnexpectedReplyFlag { code: 1 },
        "message 1 has the reply flag, expected a request",
    );
    refuses::<FrontendReplies>(
        &raw(1, zeros(8)),
        WireError::MissingReplyFlag { code: 1 },
        "message 1 has no reply flag, expected a reply",
    );
    refuses::<FrontendRequests>(
        &raw(26, vec![]).size(4097).flags(0x9),
        WireError::Oversized { code: 26, max: 4096, got: 4097 },
        "message 26 has a payload of 4097 bytes, expected at most 4096",
    );
}

#[test]
fn wire_rule_a_size_that_does_not_fit_the_request_ends_the_connection() {
    use PayloadSize::*;
    refuses::<FrontendRequests>(
        &raw(1, zeros(8)),
        size("GET_FEATURES", Exactly(0), 8),
        "GET_FEATURES has a payload of 8 bytes, expected 0",
    );
    refuses::<FrontendRequests>(
        &raw(31, zeros(20)),
        size("GET_INFLIGHT_FD", Exactly(24), 20),
        "GET_INFLIGHT_FD has a payload of 20 bytes, expected 24",
    );
    refuses::<FrontendRequests>(
        &raw(12, vec![]).size(9).handles(1),
        size("SET_VRING_KICK", Exactly(8), 9),
        "SET_VRING_KICK has a payload of 9 bytes, expected 8",
    );
    refuses::<FrontendRequests>(
        &raw(6, zeros(12)).handles(1),
        size("SET_LOG_BASE", OneOf(&[8, 16]), 12),
        "SET_LOG_BASE has a payload of 12 bytes, expected 8 or 16",
    );
    refuses::<FrontendRequests>(
        &raw(24, zeros(12 + 257)),
        size("GET_CONFIG", Between(12, 268), 269),
        "GET_CONFIG has a payload of 269 bytes, expected 12 to 268",
    );
    for slots in [9, 10] {
        let got = 8 + 32 * slots;
        refuses::<FrontendRequests>(
            &raw(5, table(slots, slots as usize)).handles(slots as usize),
            size("SET_MEM_TABLE", Regions, got),
            &format!(
                "SET_MEM_TABLE has a payload of {got} bytes, \
                 expected 0, 8, or 8 and 32 for each of 1 to 8 regions"
            ),
        );
    }
    refuses::<FrontendRequests>(
        &raw(5, table(2, 3)).handles(2),
        size("SET_MEM_TABLE", Exactly(72), 104),
        "SET_MEM_TABLE has a payload of 104 bytes, expected 72",
    );
    refuses::<FrontendReplies>(
        &raw(24, zeros(11)).reply(),
        size("GET_CONFIG", NothingOrBetween(12, 268), 11),
        "GET_CONFIG has a payload of 11 bytes, expected 0 or 12 to 268",
    );
    refuses::<FrontendReplies>(
        &raw(5, zeros(16)).reply(),
        size("SET_MEM_TABLE", StatusOrRegions, 16),
        "SET_MEM_TABLE has a payload of 16 bytes, \
         expected 8, or 8 and 32 for each of 1 to 8 regions",
    );
    refuses::<BackendRequests>(
        &raw(1, zeros(26)),
        size("BACKEND_IOTLB_MSG", Exactly(32), 26),
        "BACKEND_IOTLB_MSG has a payload of 26 bytes, expected 32",
    );
    refuses::<BackendReplies>(
        &raw(2, vec![]).reply(),
        size("BACKEND_CONFIG_CHANGE_MSG", Exactly(8), 0),
        "BACKEND_CONFIG_CHANGE_MSG has a payload of 0 bytes, expected 8",
    );
}

#[test]
fn wire_rule_an_unknown_code_costs_only_the_message() {
    for (code, text) in [
        (0, "message 0 is not known"),
        (45, "message 45 is not known"),
        (u32::MAX, "message 4294967295 is not known"),
    ] {
        let message = raw(code, zeros(13)).flags(0x9).handles(3);
        refuses::<FrontendRequests>(&message, WireError::UnknownRequest { code }, text);
        let reply = raw(code, zeros(13)).reply();
        refuses::<FrontendReplies>(&reply, WireError::UnknownRequest { code }, text);
    }
    let error = WireError::UnknownRequest { code: 11 };
    refuses::<BackendRequests>(&raw(11, zeros(8)), error, "message 11 is not known");
}

#[test]
fn wire_rule_a_wrong_number_of_descriptors_costs_only_the_message() {
    use HandleCount::*;
    refuses::<FrontendRequests>(
        &raw(1, vec![]).handles(1),
        count("GET_FEATURES", Exactly(0), 1),
        "GET_FEATURES came with 1 descriptors, expected 0",
    );
    for got in [0, 2, 9] {
        refuses::<FrontendRequests>(
            &raw(32, zeros(24)).flags(0x9).handles(got),
            count("SET_INFLIGHT_FD", Exactly(1), got as u32),
            &format!("SET_INFLIGHT_FD came with {got} descriptors, expected 1"),
        );
    }
    for got in [1, 3] {
        refuses::<FrontendRequests>(
            &raw(5, table(2, 2)).handles(got),
            count("SET_MEM_TABLE", Exactly(2), got as u32),
            &format!("SET_MEM_TABLE came with {got} descriptors, expected 2"),
        );
    }
    refuses::<FrontendRequests>(
        &raw(12, long(3)).flags(0x9),
        count("SET_VRING_KICK", Exactly(1), 0),
        "SET_VRING_KICK came with 0 descriptors, expected 1",
    );
    refuses::<FrontendRequests>(
        &raw(13, long(0x103)).handles(1),
        count("SET_VRING_CALL", Exactly(0), 1),
        "SET_VRING_CALL came with 1 descriptors, expected 0",
    );
    refuses::<FrontendRequests>(
        &raw(6, zeros(16)),
        count("SET_LOG_BASE", Exactly(1), 0),
        "SET_LOG_BASE came with 0 descriptors, expected 1",
    );
    refuses::<FrontendRequests>(
        &raw(6, zeros(8)).handles(1),
        count("SET_LOG_BASE", Exactly(0), 1),
        "SET_LOG_BASE came with 1 descriptors, expected 0",
    );
    refuses::<FrontendRequests>(
        &raw(38, zeros(40)).handles(2),
        count("REM_MEM_REG", AtMost(1), 2),
        "REM_MEM_REG came with 2 descriptors, expected at most 1",
    );
    refuses::<FrontendReplies>(
        &raw(31, [long(4096), zeros(16)].concat()).reply(),
        count("GET_INFLIGHT_FD", Exactly(1), 0),
        "GET_INFLIGHT_FD came with 0 descriptors, expected 1",
    );
    refuses::<BackendRequests>(
        &raw(3, zeros(24)),
        count("BACKEND_VRING_HOST_NOTIFIER_MSG", Exactly(1), 0),
        "BACKEND_VRING_HOST_NOTIFIER_MSG came with 0 descriptors, expected 1",
    );
    refuses::<BackendReplies>(
        &raw(2, zeros(8)).reply().handles(1),
        count("BACKEND_CONFIG_CHANGE_MSG", Exactly(0), 1),
        "BACKEND_CONFIG_CHANGE_MSG came with 1 descriptors, expected 0",
    );
}

#[test]
fn wire_rule_a_field_out_of_range_costs_only_the_message() {
    refuses::<FrontendRequests>(
        &raw(12, long(0x200)).flags(0x9).handles(1),
        field("SET_VRING_KICK", "vring index", "0 to 255 and perhaps bit 8", 0x200),
        "SET_VRING_KICK has vring index 0x200, expected 0 to 255 and perhaps bit 8",
    );
    refuses::<FrontendRequests>(
        &raw(18, words(&[0, 2])).flags(0x9),
        field("SET_VRING_ENABLE", "num", "0 or 1", 2),
        "SET_VRING_ENABLE has num 0x2, expected 0 or 1",
    );
    for announced in [0, 2] {
        refuses::<FrontendRequests>(
            &raw(25, [words(&[32, announced, 0]), zeros(1)].concat()),
            field("SET_CONFIG", "size", "the length of the content", announced.into()),
            &format!("SET_CONFIG has size {announced:#x}, expected the length of the content"),
        );
    }
    for announced in [0, 9] {
        refuses::<FrontendRequests>(
            &raw(5, table(announced, 8)).handles(8),
            field("SET_MEM_TABLE", "number of regions", "1 to 8", announced.into()),
            &format!("SET_MEM_TABLE has number of regions {announced:#x}, expected 1 to 8"),
        );
    }
    let iotlb = |perm, kind| raw(22, [zeros(24), vec![perm, kind], zeros(6)].concat());
    refuses::<FrontendRequests>(
        &iotlb(4, 2),
        field("IOTLB_MSG", "permissions", "0 to 3", 4),
        "IOTLB_MSG has permissions 0x4, expected 0 to 3",
    );
    refuses::<FrontendRequests>(
        &iotlb(3, 5),
        field("IOTLB_MSG", "type", "1 to 4", 5),
        "IOTLB_MSG has type 0x5, expected 1 to 4",
    );
    refuses::<FrontendRequests>(
        &raw(42, words(&[2, 0])).handles(1),
        field("SET_DEVICE_STATE_FD", "direction", "0 or 1", 2),
        "SET_DEVICE_STATE_FD has direction 0x2, expected 0 or 1",
    );
    refuses::<FrontendReplies>(
        &raw(42, long(0x200)).reply(),
        field("SET_DEVICE_STATE_FD", "status", "an error of 0 to 255 and perhaps bit 8", 0x200),
        "SET_DEVICE_STATE_FD has status 0x200, expected an error of 0 to 255 and perhaps bit 8",
    );
}

fn takes<D: Direction<u32>>(message: &Raw) -> D::Message {
    let mut decoder = Decoder::<D, u32>::new(Dialect::QEMU_11_1);
    let handles = (0..message.handles as u32).collect();
    decoder.push(&message.bytes(), handles).unwrap();
    match decoder.next() {
        Some(Ok(envelope)) => envelope.message,
        Some(Err(refused)) => panic!("{}", refused.error),
        None => panic!("not taken"),
    }
}

const NOWHERE: MemRegion = MemRegion { guest_addr: 0, size: 0, user_addr: 0, mmap_offset: 0 };

#[test]
fn wire_rule_what_peers_are_known_to_do_is_taken() {
    // A descriptor with REM_MEM_REG is released, not used.
    assert_eq!(
        takes::<FrontendRequests>(&raw(38, zeros(40)).handles(1)),
        FrontendRequest::RemMemReg(NOWHERE, Some(0))
    );
    // The document's full form of the memory table.
    assert_eq!(
        takes::<FrontendRequests>(&raw(5, table(1, 8)).handles(1)),
        FrontendRequest::SetMemTable(vec![(NOWHERE, 0)])
    );
    // A reply that echoes NEED_REPLY.
    assert_eq!(
        takes::<FrontendReplies>(&raw(18, zeros(8)).flags(0xd)).body,
        FrontendReplyBody::U64(0)
    );
    // Both ways to say that there is no config.
    let failed = ConfigPayload { offset: 0, flags: 0, data: bytes::Bytes::new() };
    for payload in [vec![], words(&[7, 0, 1])] {
        assert_eq!(
            takes::<FrontendReplies>(&raw(24, payload).reply()).body,
            FrontendReplyBody::Config(failed.clone())
        );
    }
    // No inflight region, and an empty one.
    let empty = InflightDescription { mmap_size: 0, mmap_offset: 0, num_queues: 0, queue_size: 0 };
    assert_eq!(
        takes::<FrontendReplies>(&raw(31, zeros(24)).reply().handles(1)).body,
        FrontendReplyBody::Inflight(empty, 0)
    );
    assert_eq!(
        takes::<FrontendReplies>(&raw(31, zeros(24)).reply()).body,
        FrontendReplyBody::NoInflight
    );
    // The request's payload back with the descriptor.
    assert_eq!(
        takes::<FrontendReplies>(&raw(41, zeros(16)).reply().handles(1)).body,
        FrontendReplyBody::SharedObject(Some(0))
    );
    // An error beside which the bit for no descriptor is missing.
    assert_eq!(
        takes::<FrontendReplies>(&raw(42, long(5)).reply()).body,
        FrontendReplyBody::DeviceState(5, None)
    );
}

#[test]
fn wire_rule_a_message_that_peers_would_refuse_is_not_encoded() {
    let encode = |message, dialect| {
        let envelope: Envelope<FrontendRequest<u32>> = Envelope { message, need_reply: false };
        encode_request(&envelope, &dialect).unwrap_err().to_string()
    };
    let qemu = Dialect::QEMU_11_1;
    let state = |num| VringState { index: 0, num };
    use FrontendRequest as R;
    assert_eq!(
        encode(R::GetVringBaseSkipDrain(state(0)), qemu),
        "GET_VRING_BASE_SKIP_DRAIN does not exist in dialect qemu-11.1"
    );
    assert_eq!(
        encode(R::GetShmemConfig, Dialect::SKIP_DRAIN_44),
        "GET_SHMEM_CONFIG does not exist in dialect skip-drain-44"
    );
    assert_eq!(
        encode(R::GetVringBase(state(1)), Dialect::NUM_1),
        "GET_VRING_BASE has num 0x1, expected a value that does not mean to suspend"
    );
    assert_eq!(
        encode(R::GetVringBaseSkipDrain(state(2)), Dialect::NUM_1),
        "GET_VRING_BASE_SKIP_DRAIN has num 0x2, expected 0, which the dialect replaces"
    );
    assert_eq!(
        encode(R::SetVringEnable(state(2)), qemu),
        "SET_VRING_ENABLE has num 0x2, expected 0 or 1"
    );
    for count in [0, 9] {
        assert_eq!(
            encode(R::SetMemTable(vec![(NOWHERE, 1); count]), qemu),
            format!("SET_MEM_TABLE has number of regions {count:#x}, expected 1 to 8")
        );
    }
    assert_eq!(
        encode(R::CreateCryptoSession(zeros(4097).into()), qemu),
        "CREATE_CRYPTO_SESSION has size 0x1001, expected at most 4096"
    );
    let config = ConfigPayload { offset: 0, flags: 0, data: zeros(257).into() };
    assert_eq!(
        encode(R::GetConfig(config), qemu),
        "GET_CONFIG has size 0x101, expected at most 256"
    );
}

#[test]
fn wire_rule_bytes_are_those_seen_from_qemu() {
    // The answer to CONFIG_CHANGE_MSG.
    let reply = BackendReply::<u32> { code: 2, status: 0, handle: None };
    let (bytes, handles) = encode_backend_reply(&reply);
    assert_eq!(bytes, [words(&[2, 5, 8]), zeros(8)].concat());
    assert!(handles.is_empty());
    // A kick that asks for an answer, and one without a descriptor.
    let kick = |handle| Envelope {
        message: FrontendRequest::SetVringKick(VringFile { index: 1, handle }),
        need_reply: true,
    };
    let (bytes, handles) = encode_request(&kick(Some(9)), &Dialect::QEMU_11_1).unwrap();
    assert_eq!(bytes, [words(&[12, 9, 8]), long(1)].concat());
    assert_eq!(handles, [9]);
    let (bytes, handles) = encode_request(&kick(None), &Dialect::QEMU_11_1).unwrap();
    assert_eq!(bytes, [words(&[12, 9, 8]), long(0x101)].concat());
    assert!(handles.is_empty());
}
