//! The `virtio` field of a device section: bus state, device status, rings.
//!
//! ```text
//! PCI     be32 2   configuration space (256, or 4096 with PCI Express)   4 × be32
//! MSI-X   16 bytes a vector   a bit a vector   be16 configuration vector
//! virtio  u8 status   u8 isr   be16 queue selector   be32 features   be32 n   n bytes
//!         be32 queues   each: be32 size   be64 descriptors   be16 base   [be16 vector]
//! then subsections with the rest, in one order
//! ```

use super::cursor::{Cursor, SUBSECTION};
use super::fault::{StreamFault, What, short};
use crate::vring::packed::{Position, Positions};

/// Queues that a device may have, and entries of every per-queue array.
const QUEUES_MAX: u64 = 1024;
/// Bytes of configuration space that are accepted; a block device has 96 at
/// most.
const CONFIG_MAX: u64 = 256;

/// A virtio device's state as the source left it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceState<'a> {
    /// The guest's device status byte.
    pub status: u8,
    /// Interrupt status.
    pub isr: u8,
    /// Features that the guest accepted.
    pub features: u64,
    /// Configuration space, in guest byte order.
    pub config: &'a [u8],
    /// The device was running when the guest was stopped, if the stream says.
    pub started: Option<bool>,
    /// One for each queue that has a size.
    pub queues: Vec<QueueState>,
}

/// A ring as the source left it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Entries.
    pub size: u32,
    /// Guest-physical address of the descriptor table; 0 if the guest has not
    /// set up the ring.
    pub desc: u64,
    /// Guest-physical address of the available ring, if the stream says.
    pub avail: Option<u64>,
    /// Guest-physical address of the used ring, if the stream says.
    pub used: Option<u64>,
    /// What the back-end answered to GET_VRING_BASE: of a packed ring only the
    /// available half, without its wrap counter.
    pub last_avail_idx: u16,
    /// All of that answer, of a packed ring.
    pub packed: Option<Positions>,
}

impl DeviceState<'_> {
    /// The rings are packed.
    pub fn packed(&self) -> bool {
        self.features & (1 << 34) != 0
    }
}

/// A subsection of the field, by its name and the bytes in it.
struct Sub {
    name: &'static [u8],
    len: u64,
}

const fn sub(name: &'static str, len: u64) -> Sub {
    Sub { name: name.as_bytes(), len }
}

/// Queue addresses and enables of PCI, repeated for all queues there may be;
/// what is of use in it is elsewhere too.
const EXTRA: &str = "virtio/extra_state";
const FEATURES: &str = "virtio/64bit_features";
const RINGS: &str = "virtio/virtqueues";
const PACKED: &str = "virtio/packed_virtqueues";
const STARTED: &str = "virtio/started";

/// Those whose length is known; [`EXTRA`] has subsections of its own.
const SUBSECTIONS: [Sub; 8] = [
    sub("virtio/device_endian", 1),
    sub(FEATURES, 8),
    sub(RINGS, 16 * QUEUES_MAX),
    sub("virtio/ringsize", 4 * QUEUES_MAX),
    sub("virtio/broken", 1),
    sub(STARTED, 1),
    sub(PACKED, 10 * QUEUES_MAX),
    sub("virtio/disabled", 1),
];

impl<'a> DeviceState<'a> {
    /// Read the field from `at` to the end of `bytes`.
    pub(super) fn parse(bytes: &'a [u8], at: usize) -> Result<Self, StreamFault> {
        let mut cursor = Cursor::new(bytes, at);
        let vectors = pci(&mut cursor)?;
        let mut state = Self::fields(&mut cursor, vectors)?;
        while cursor.peek() == Some(SUBSECTION) {
            state.subsection(&mut cursor)?;
        }
        match cursor.left() {
            0 => Ok(state),
            left => Err(cursor.fault(What::Rest { of: "the virtio state", got: left as u64 })),
        }
    }

    fn fields(cursor: &mut Cursor<'a>, vectors: bool) -> Result<Self, StreamFault> {
        let status = cursor.u8("device status")?;
        let isr = cursor.u8("interrupt status")?;
        cursor.be16("queue selector")?;
        let features = u64::from(cursor.be32("features")?);
        let len = bounded(cursor, "configuration space", CONFIG_MAX)?;
        let config = cursor.take(len, "configuration space")?;
        let count = bounded(cursor, "queue count", QUEUES_MAX)?;
        let mut queues = Vec::new();
        for _ in 0..count {
            let size = bounded(cursor, "ring size", 32768)? as u32;
            let desc = cursor.be64("descriptor table address")?;
            let last_avail_idx = cursor.be16("next available index")?;
            if vectors {
                cursor.be16("queue vector")?;
            }
            queues.push(QueueState { size, desc, last_avail_idx, ..QueueState::default() });
        }
        Ok(Self { status, isr, features, config, started: None, queues })
    }

    fn subsection(&mut self, cursor: &mut Cursor<'a>) -> Result<(), StreamFault> {
        let before = cursor.clone();
        cursor.u8("subsection marker")?;
        let name = cursor.name("subsection name")?;
        cursor.be32("subsection version")?;
        if name == EXTRA.as_bytes() {
            return extra_state(cursor);
        }
        let Some(known) = SUBSECTIONS.iter().find(|s| s.name == name) else {
            let expected = "a subsection of virtio";
            return Err(before.fault(What::Name { expected, got: short(name) }));
        };
        let after = cursor.at() as u64 + known.len;
        if name == FEATURES.as_bytes() {
            self.features = cursor.be64(FEATURES)?;
        } else if name == STARTED.as_bytes() {
            self.started = Some(cursor.u8(STARTED)? != 0);
        } else if name == RINGS.as_bytes() {
            for queue in &mut self.queues {
                queue.avail = Some(cursor.be64("available ring address")?);
                queue.used = Some(cursor.be64("used ring address")?);
            }
        } else if name == PACKED.as_bytes() {
            for queue in &mut self.queues {
                let mut position = |of| -> Result<Position, StreamFault> {
                    let index = cursor.be16(of)?;
                    Ok(Position { index, wrap: cursor.u8(of)? != 0 })
                };
                let avail = position("next available position")?;
                let used = position("next used position")?;
                queue.packed = Some(Positions { avail, used });
                // QEMU's own device counts here; a back-end's requests are not
                // among them.
                cursor.be32("requests in use")?;
            }
        }
        cursor.take(after.saturating_sub(cursor.at() as u64), "virtio subsection").map(drop)
    }
}

/// The state of the PCI device; returns whether queues have vectors.
fn pci(cursor: &mut Cursor<'_>) -> Result<bool, StreamFault> {
    cursor.expect("version of PCI state", 2u32, Cursor::be32)?;
    let before = cursor.clone();
    let start = cursor.take(256, "PCI configuration space")?;
    if start[..2] != [0xf4, 0x1a] {
        return Err(before.fault(What::Transport("the vendor is another one")));
    }
    let capabilities = Capabilities::read(start);
    if capabilities.express {
        cursor.take(4096 - 256, "PCI configuration space")?;
    }
    cursor.take(16, "PCI interrupt lines")?;
    let Some(vectors) = capabilities.vectors else { return Ok(false) };
    cursor.take(16 * u64::from(vectors), "MSI-X table")?;
    cursor.take(u64::from(vectors).div_ceil(8), "MSI-X pending bits")?;
    cursor.be16("configuration vector")?;
    Ok(true)
}

/// What of the capability list changes the layout.
struct Capabilities {
    express: bool,
    vectors: Option<u16>,
}

impl Capabilities {
    fn read(config: &[u8]) -> Self {
        const LIST: usize = 0x34;
        const EXPRESS: u8 = 0x10;
        const MSIX: u8 = 0x11;
        let mut found = Self { express: false, vectors: None };
        let mut at = usize::from(config[LIST]);
        // The list may be a ring; there is no room for more than 48 of them.
        for _ in 0..48 {
            if !(0x40..=0xfc).contains(&at) {
                break;
            }
            match config[at] {
                EXPRESS => found.express = true,
                MSIX => {
                    let control = u16::from_le_bytes([config[at + 2], config[at + 3]]);
                    found.vectors = Some((control & 0x7ff) + 1);
                }
                _ => {}
            }
            at = usize::from(config[at + 1]);
        }
        found
    }
}

/// Queue state that PCI keeps apart, 28 bytes for each queue there may be.
fn extra_state(cursor: &mut Cursor<'_>) -> Result<(), StreamFault> {
    const MODERN: &str = "virtio_pci/modern_state";
    if cursor.peek() != Some(SUBSECTION) {
        return Ok(());
    }
    let mut ahead = cursor.clone();
    ahead.u8("subsection marker")?;
    if ahead.name("subsection name")? != MODERN.as_bytes() {
        // It belongs to virtio.
        return Ok(());
    }
    cursor.subsection(MODERN, 1)?;
    // Selectors of both feature words, then the words themselves.
    cursor.take(4 + 4 + 2 * 4, "PCI feature selectors")?;
    cursor.take(28 * QUEUES_MAX, "PCI queue state").map(drop)
}

fn bounded(cursor: &mut Cursor<'_>, of: &'static str, most: u64) -> Result<u64, StreamFault> {
    let before = cursor.clone();
    let got = u64::from(cursor.be32(of)?);
    if got > most {
        return Err(before.fault(What::TooLarge { of, most, got }));
    }
    Ok(got)
}
