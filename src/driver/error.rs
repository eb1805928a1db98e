//! Whose fault it is when a ring does not do what the driver wants.

use super::layout::LayoutError;

/// A driver call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The device broke the ring's rules. The ring stays broken until it is reset.
    #[error("device misbehaved: {0}")]
    DeviceMisbehaved(DeviceFault),
    /// The call made no sense. It changed nothing a device can see.
    #[error("driver misused: {0}")]
    ApiMisuse(DriverMisuse),
    /// Not enough free descriptors now; reap first.
    #[error("ring full: {needed} descriptors needed, {free} free")]
    RingFull {
        /// Descriptors the chain takes.
        needed: u32,
        /// Descriptors that are free.
        free: u16,
    },
    /// The caller's address is not in the memory it passed.
    #[error("no guest memory for {len} bytes at {addr:#x}")]
    NoMemory {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u32,
    },
}

/// What a device did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// The used element names no chain that the device holds: it never was
    /// one, or it has been completed already.
    #[error("used entry {index}: id {id} is not a head")]
    NotAHead {
        /// Free running index of the used element.
        index: u16,
        /// What it names.
        id: u32,
    },
    /// The used element names a chain that has others before it, more than were
    /// used, though buffers are to be used in order.
    #[error("used entry {index}: id {id} before its turn, expected {expected}")]
    OutOfOrder {
        /// Free running index of the used element.
        index: u16,
        /// What it names.
        id: u32,
        /// Head whose turn it is.
        expected: u16,
    },
    /// More used elements than chains the device holds.
    #[error("used index {used} is ahead: {reaped} reaped, {outstanding} outstanding")]
    UsedAhead {
        /// `used.idx`.
        used: u16,
        /// Index up to which the driver has reaped.
        reaped: u16,
        /// Chains the device holds.
        outstanding: u16,
    },
    /// More bytes reported than the chain can take.
    #[error("head {head}: {len} bytes reported as written, {writable} are writable")]
    LenTooLong {
        /// Head of the chain.
        head: u16,
        /// Reported.
        len: u32,
        /// Device-writable bytes of the chain.
        writable: u64,
    },
    /// Fewer bytes reported than a request of this kind and status needs.
    #[error("head {head}: {len} bytes reported as written, expected {expected}")]
    LenTooShort {
        /// Head of the chain.
        head: u16,
        /// Reported.
        len: u32,
        /// The least that is right.
        expected: u64,
    },
    /// The status byte is none that the driver knows; 255 says that it was not
    /// written at all.
    #[error("head {head}: expected status 0, 1 or 2, got {status}")]
    BadStatus {
        /// Head of the chain.
        head: u16,
        /// The byte.
        status: u8,
    },
}

/// What the caller did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverMisuse {
    /// The ring's place or size is illegal.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The order of chains that the device holds already is not known.
    #[error("expected no chain at the device, {outstanding} are outstanding")]
    OrderUnknown {
        /// Chains that the device holds.
        outstanding: u16,
    },
    /// A chain has at least one buffer, and no buffer is empty.
    #[error("a chain needs at least one buffer and no empty ones")]
    EmptyBuffer,
    /// Device-readable buffers come first.
    #[error("a readable buffer follows a writable one")]
    ReadableAfterWritable,
    /// A buffer may not run past the end of the address space.
    #[error("buffer at {addr:#x} with {len} bytes runs past the end of the address space")]
    BufferOverflow {
        /// First byte.
        addr: u64,
        /// Bytes.
        len: u32,
    },
    /// Indirect tables were asked for without the feature.
    #[error("indirect descriptors are not negotiated")]
    IndirectNotNegotiated,
    /// Framing asks for an indirect table and the buffers have no place for it.
    #[error("no place given for the indirect table")]
    NoTable,
    /// The table needs at least one buffer that is not kept direct.
    #[error("{direct} of {buffers} buffers direct: the indirect table would be empty")]
    EmptyTable {
        /// Buffers kept out of the table.
        direct: u16,
        /// Buffers in all.
        buffers: u32,
    },
    /// The heads said to be outstanding do not fit the ring in memory.
    #[error("{expected} chains are outstanding by the indexes, {got} heads were named")]
    OutstandingCount {
        /// By `avail.idx` and the reaped index.
        expected: u16,
        /// Named.
        got: u32,
    },
    /// A head named as outstanding is no legal chain, or shares descriptors
    /// with another.
    #[error("head {head} is not a chain of its own")]
    BadOutstanding {
        /// The head.
        head: u16,
    },
    /// The chains said to be outstanding do not fill the packed ring's part that
    /// the positions enclose.
    #[error("{expected} descriptors are outstanding by the positions, chains of {got} were named")]
    OutstandingDescriptors {
        /// By the available and the used position.
        expected: u32,
        /// Named.
        got: u32,
    },
    /// A packed ring's position is outside the ring.
    #[error("position {index} is outside a ring of {size} entries")]
    Position {
        /// Index in it.
        index: u16,
        /// Entries.
        size: u16,
    },
    /// A packed ring has no chains that lead from descriptors to a table.
    // spec: virtio 1.2, "Packed Virtqueues", "Driver Requirements: Indirect Descriptors"
    #[error("expected every buffer in the table of a packed ring, got {direct} direct ones")]
    DirectBeforeTable {
        /// Buffers kept out of the table.
        direct: u16,
    },
    /// A packed ring needs a buffer id for each entry, all different, and they
    /// change only while no chain has one.
    #[error("expected {size} different buffer ids and no chain in the ring")]
    BufferIds {
        /// Entries of the ring.
        size: u16,
    },
    /// The data buffers do not fit the operation.
    #[error("data buffers hold {got} bytes, the operation needs {expected}")]
    DataLength {
        /// Needed.
        expected: u64,
        /// Given.
        got: u64,
    },
    /// The head is not one that was submitted through this request layer.
    #[error("head {head} was not submitted as a block request")]
    UnknownRequest {
        /// The head.
        head: u16,
    },
}

impl From<DeviceFault> for DriverError {
    fn from(fault: DeviceFault) -> Self {
        Self::DeviceMisbehaved(fault)
    }
}

impl From<DriverMisuse> for DriverError {
    fn from(misuse: DriverMisuse) -> Self {
        Self::ApiMisuse(misuse)
    }
}

impl From<LayoutError> for DriverError {
    fn from(error: LayoutError) -> Self {
        Self::ApiMisuse(DriverMisuse::Layout(error))
    }
}
