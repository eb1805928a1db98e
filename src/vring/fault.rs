//! What a guest can do to break a vring.

/// The guest broke the rules of the ring; the request cannot be answered.
///
/// The vring falls silent until it is stopped and started again. Everything
/// else a guest may do wrong is answered in the request's status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestFault {
    /// More chains made available than the ring can hold.
    #[error("available index {avail} is {ahead} ahead of {next}, expected at most {size}")]
    AvailJump {
        /// Index the guest stored.
        avail: u16,
        /// Next index to fetch.
        next: u16,
        /// Their distance.
        ahead: u16,
        /// Ring size.
        size: u16,
    },
    /// The available ring names a descriptor that does not exist.
    #[error("available head {head}, expected less than {size}")]
    Head {
        /// Descriptor index.
        head: u16,
        /// Ring size.
        size: u16,
    },
    /// The chain was made available twice.
    #[error("available head {head} is in flight already")]
    HeadInFlight {
        /// Descriptor index.
        head: u16,
    },
    /// A packed ring has chains available in entries that are in flight.
    #[error("available chain at {at} is longer than the {free} entries that are not in flight")]
    Overrun {
        /// Index of its first entry in the ring.
        at: u16,
        /// Entries that are not in flight.
        free: u16,
    },
    /// A packed ring has two chains with the same name.
    #[error("available chain has buffer id {id}, which is in flight already")]
    IdInFlight {
        /// Buffer id.
        id: u16,
    },
    /// A link leaves the table.
    #[error("chain {head} links descriptor {next}, expected less than {size}")]
    Next {
        /// Head of the chain.
        head: u16,
        /// Descriptor index.
        next: u16,
        /// Entries of the table.
        size: u32,
    },
    /// A chain that loops, or is longer than anything midflight takes.
    #[error("chain {head} has more than {max} descriptors")]
    TooLong {
        /// Head of the chain.
        head: u16,
        /// Limit.
        max: u32,
    },
    /// More bytes than a chain may have.
    #[error("chain {head} has more than 2^32 bytes")]
    TooManyBytes {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table inside an indirect table, or before another descriptor.
    #[error("chain {head} nests or continues after an indirect descriptor")]
    IndirectNested {
        /// Head of the chain.
        head: u16,
    },
    /// An indirect table of no or of broken descriptors.
    #[error("chain {head} has an indirect table of {len} bytes, expected a multiple of 16 above 0")]
    IndirectLen {
        /// Head of the chain.
        head: u16,
        /// Bytes.
        len: u32,
    },
    /// A readable descriptor after a writable one.
    #[error("chain {head} has a readable descriptor after a writable one")]
    Order {
        /// Head of the chain.
        head: u16,
    },
    /// A descriptor outside guest memory.
    #[error("chain {head} has a descriptor at {addr:#x}, outside guest memory")]
    Descriptor {
        /// Head of the chain.
        head: u16,
        /// Guest-physical address.
        addr: u64,
    },
    /// A descriptor that a request in flight is known to hold is not available.
    #[error("ring entry {at} of a request in flight is not available any more")]
    TakenBack {
        /// Index in the ring.
        at: u16,
    },
    /// There is no byte to write a status to.
    #[error("chain {head} has no room for a status byte")]
    NoStatus {
        /// Head of the chain.
        head: u16,
    },
    /// The status byte lies outside guest memory.
    #[error("chain {head} has its status byte at {addr:#x}, outside guest memory")]
    Status {
        /// Head of the chain.
        head: u16,
        /// Guest-physical address.
        addr: u64,
    },
    /// The ring itself is not, or no longer, in guest memory.
    #[error("{part} is outside guest memory")]
    Ring {
        /// Which part.
        part: &'static str,
    },
}
