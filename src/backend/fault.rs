//! Who is to blame, and what follows from it.
//!
//! | blame | type | consequence |
//! |---|---|---|
//! | guest, answerable | [`Status`](crate::blk::Status) | a status byte, nothing else |
//! | guest, ring broken | [`GuestFault`] | err is signalled, the vring is silent until stopped |
//! | front-end | [`FrontendFault`] | a negative answer if it can be told, else the connection is closed |
//! | disk | [`DiskError`](crate::blk::DiskError) | IOERR, and an event |
//! | driver | [`ApiMisuse`] | an `Err` from `handle_input`, nothing changes |

use crate::blk::ReqId;
use crate::inflight::InflightFault;
use crate::memory::MemoryFault;
pub use crate::vring::GuestFault;
use crate::vring::RingFormat;
use crate::wire::WireError;

/// The front-end broke the protocol. The message that did has no effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrontendFault {
    /// Not a vhost-user message.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// Descriptors without a message to go with.
    #[error("{got} descriptors came before a whole message, expected at most {max}")]
    TooManyHandles {
        /// Descriptors held.
        got: u64,
        /// The bound.
        max: u32,
    },
    /// A message that belongs to a feature not in force.
    #[error("{message} came without {feature} being negotiated")]
    NotNegotiated {
        /// Name of the message.
        message: &'static str,
        /// Name of the feature.
        feature: &'static str,
    },
    /// A message that makes no sense for a block device, or is not offered.
    #[error("{message} is not offered by this device")]
    NotOffered {
        /// Name of the message.
        message: &'static str,
    },
    /// Features beyond the offer.
    #[error("{message} has bits {got:#x}, expected none outside {offered:#x}")]
    Features {
        /// Name of the message.
        message: &'static str,
        /// Bits asked for.
        got: u64,
        /// Bits offered.
        offered: u64,
    },
    /// A protocol feature without those that it builds on.
    #[error("{feature} is in protocol features {got:#x}, expected it only with {needed:#x}")]
    FeaturesMissing {
        /// Name of the feature.
        feature: &'static str,
        /// Bits asked for.
        got: u64,
        /// Bits that it takes.
        needed: u64,
    },
    /// Ring features would change under running vrings.
    #[error("SET_FEATURES changes {from:#x} to {to:#x} while vring {vring} runs")]
    FeaturesWhileRunning {
        /// Vring index.
        vring: u16,
        /// Features in force.
        from: u64,
        /// Features asked for.
        to: u64,
    },
    /// No such vring.
    #[error("{message} names vring {got}, expected less than {count}")]
    VringIndex {
        /// Name of the message.
        message: &'static str,
        /// Index named.
        got: u32,
        /// Number of vrings.
        count: u16,
    },
    /// Something that may only change while the vring is stopped.
    #[error("{message} for vring {vring} which is running, expected it stopped")]
    VringRunning {
        /// Name of the message.
        message: &'static str,
        /// Vring index.
        vring: u16,
    },
    /// Not a ring size.
    #[error("SET_VRING_NUM for vring {vring} is {got}, expected {} from 1 to {max}", size_of_ring(*.format))]
    VringSize {
        /// Vring index.
        vring: u16,
        /// Kind of ring.
        format: RingFormat,
        /// Size asked for.
        got: u32,
        /// Largest size.
        max: u16,
    },
    /// Not an index of a split ring.
    #[error("SET_VRING_BASE for vring {vring} is {got:#x}, expected at most 0xffff")]
    VringBase {
        /// Vring index.
        vring: u16,
        /// Base given.
        got: u32,
    },
    /// Not two positions of a packed ring.
    #[error(
        "SET_VRING_BASE for vring {vring} is {got:#x}, expected two positions of a packed ring of {size}"
    )]
    VringPositions {
        /// Vring index.
        vring: u16,
        /// Base given.
        got: u32,
        /// Ring size.
        size: u16,
    },
    /// A ring that does not start where it must.
    #[error(
        "SET_VRING_ADDR for vring {vring} has {part} at {got:#x}, expected a multiple of {align}"
    )]
    VringAlign {
        /// Vring index.
        vring: u16,
        /// Which part.
        part: &'static str,
        /// User address.
        got: u64,
        /// Bytes.
        align: u64,
    },
    /// The vring should start but was never given addresses.
    #[error("vring {vring} starts without SET_VRING_ADDR")]
    VringUnset {
        /// Vring index.
        vring: u16,
    },
    /// The table has the ring's memory, the driver's mapping has not.
    #[error("vring {vring} lies in memory that is not mapped")]
    VringUnmapped {
        /// Vring index.
        vring: u16,
    },
    /// A ring outside guest memory, or across two regions of it.
    #[error("vring {vring} has {part} of {len} bytes at {got:#x}, not inside one memory region")]
    VringPlace {
        /// Vring index.
        vring: u16,
        /// Which part.
        part: &'static str,
        /// User address.
        got: u64,
        /// Bytes.
        len: u64,
    },
    /// The memory table cannot be as asked.
    #[error(transparent)]
    Memory(#[from] MemoryFault),
    /// Memory would be taken from under a running vring.
    #[error("{message} takes the memory of vring {vring} which is running")]
    MemoryInUse {
        /// Name of the message.
        message: &'static str,
        /// Vring index.
        vring: u16,
    },
    /// A message that has no place where postcopy stands.
    #[error("{message} came while {state}, expected it {expected}")]
    Postcopy {
        /// Name of the message.
        message: &'static str,
        /// Where postcopy stands.
        state: &'static str,
        /// Where it belongs.
        expected: &'static str,
    },
    /// The vring should start, but nobody has said that page faults in its
    /// memory will be resolved.
    #[error("vring {vring} starts before the memory sent in postcopy was acknowledged")]
    MemoryNotAcknowledged {
        /// Vring index.
        vring: u16,
    },
    /// Addresses were agreed on to be guest-physical everywhere.
    #[error(
        "{message} has user address {user_addr:#x} for guest address {guest_addr:#x}, \
         expected them equal with GPA_ADDRESSES"
    )]
    UserAddress {
        /// Name of the message.
        message: &'static str,
        /// User address given.
        user_addr: u64,
        /// Guest-physical address.
        guest_addr: u64,
    },
    /// Something that has to wait for the device's state.
    #[error("{message} while the device's state is being transferred")]
    Transferring {
        /// Name of the message.
        message: &'static str,
    },
    /// Not a device status.
    #[error("SET_STATUS has {got:#x}, expected at most 0xff")]
    Status {
        /// What came.
        got: u64,
    },
    /// The file behind a descriptor is not what the message says.
    #[error("{message} cannot be mapped: {why}")]
    Map {
        /// Name of the message.
        message: &'static str,
        /// What the driver found.
        why: String,
    },
    /// The inflight region is not one, or not for this device.
    #[error(transparent)]
    Inflight(#[from] InflightFault),
    /// Not a message for a back-end.
    #[error("IOTLB_MSG has type {got}, expected 2 or 3")]
    IotlbType {
        /// Type.
        got: u8,
    },
    /// A translation that leads out of guest memory, or of the address space.
    #[error(
        "IOTLB_MSG maps {size:#x} bytes at {iova:#x} to user address {user:#x}, \
         expected a range inside guest memory"
    )]
    IotlbRange {
        /// I/O virtual address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// User address.
        user: u64,
    },
    /// A part of the configuration space that cannot be read or written so.
    #[error("{message} of {len} bytes at offset {offset}, expected {expected}")]
    Config {
        /// Name of the message.
        message: &'static str,
        /// First byte.
        offset: u32,
        /// Bytes.
        len: u32,
        /// What would have been accepted.
        expected: &'static str,
    },
}

fn size_of_ring(format: RingFormat) -> &'static str {
    match format {
        RingFormat::Split => "a power of two",
        RingFormat::Packed => "a size",
    }
}

/// The driver called out of turn. The call changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiMisuse {
    /// The input needs a front-end that is connected.
    #[error("{0} without a front-end connected")]
    NotConnected(&'static str),
    /// One front-end at a time.
    #[error("connected while the front-end before is not done with")]
    NotIdle,
    /// The answer to a wish that was not made.
    #[error("{0} was not asked for")]
    NotAskedFor(&'static str),
    /// More bytes than [`Backend::wanted`](super::Backend::wanted) said.
    #[error("received {got} bytes, wanted at most {wanted}")]
    NotWanted {
        /// Bytes given.
        got: u64,
        /// Bytes wanted.
        wanted: u64,
    },
    /// Bytes on a channel that was never given, or is no longer watched.
    #[error("received bytes on a channel that there is not")]
    NoChannel,
    /// The device has no such vring.
    #[error("kick of vring {got}, expected less than {count}")]
    Vring {
        /// Index given.
        got: u16,
        /// Number of vrings.
        count: u16,
    },
    /// There is no such request to read.
    #[error("{0} is not in flight")]
    Request(ReqId),
}
