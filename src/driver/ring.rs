//! A ring of either format.

use super::chain::{Buffer, Indirect, RingFeatures, Used};
use super::error::{DeviceFault, DriverError};
use super::layout::RingLayout;
use super::packed::PackedDriver;
use super::split::SplitDriver;
use vm_memory::GuestMemory;

/// The driver's side of a ring, of the format that was agreed on.
#[derive(Clone, Debug)]
pub enum DriverRing {
    /// Without VIRTIO_F_RING_PACKED.
    Split(SplitDriver),
    /// With it.
    Packed(PackedDriver),
}

impl From<SplitDriver> for DriverRing {
    fn from(ring: SplitDriver) -> Self {
        Self::Split(ring)
    }
}

impl From<PackedDriver> for DriverRing {
    fn from(ring: PackedDriver) -> Self {
        Self::Packed(ring)
    }
}

macro_rules! either {
    ($self:expr, $ring:ident => $e:expr) => {
        match $self {
            Self::Split($ring) => $e,
            Self::Packed($ring) => $e,
        }
    };
}

impl DriverRing {
    /// IN_ORDER was agreed on. A split ring then holds the device to it, and
    /// understands batches with one used element; legal while the device holds no
    /// chain. A packed ring takes buffers back in any order as before.
    pub fn expect_in_order(&mut self) -> Result<(), DriverError> {
        match self {
            Self::Split(ring) => Ok(ring.expect_in_order()?),
            Self::Packed(_) => Ok(()),
        }
    }

    /// Zero the ring in memory and start it from its beginning. Calls are enabled.
    pub fn start<M: GuestMemory + ?Sized>(
        mem: &M,
        layout: RingLayout,
        features: RingFeatures,
    ) -> Result<Self, DriverError> {
        Ok(if features.packed {
            PackedDriver::start(mem, layout, features)?.into()
        } else {
            SplitDriver::start(mem, layout, features)?.into()
        })
    }

    /// Forget every chain and start over, as after a device reset.
    pub fn reset<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<(), DriverError> {
        either!(self, ring => ring.reset(mem))
    }

    /// Put a chain into the ring, without telling the device. Returns its name:
    /// the head in a split ring, the buffer id in a packed one.
    pub fn add_chain<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
        buffers: &[Buffer],
        indirect: Option<Indirect>,
    ) -> Result<u16, DriverError> {
        either!(self, ring => ring.add_chain(mem, buffers, indirect))
    }

    /// Tell the device of every chain added since the last call by one store.
    /// Returns how many they are; 0 stores nothing.
    pub fn publish<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<u16, DriverError> {
        either!(self, ring => ring.publish(mem))
    }

    /// The next chain that the device has returned, `None` when there is none.
    pub fn reap<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<Option<Used>, DriverError> {
        either!(self, ring => ring.reap(mem))
    }

    /// Whether the device wants a kick for what was published since the last call.
    pub fn kick_needed<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<bool, DriverError> {
        either!(self, ring => ring.kick_needed(mem))
    }

    /// Ask for a call at the next completion. `true`: one is there already.
    pub fn enable_calls<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<bool, DriverError> {
        either!(self, ring => ring.enable_calls(mem))
    }

    /// Ask for a call after at most `count` completions. `true`: they are there
    /// already.
    pub fn enable_calls_after<M: GuestMemory + ?Sized>(
        &mut self,
        mem: &M,
        count: u16,
    ) -> Result<bool, DriverError> {
        either!(self, ring => ring.enable_calls_after(mem, count))
    }

    /// Ask for no calls. A device may still send some.
    pub fn disable_calls<M: GuestMemory + ?Sized>(&mut self, mem: &M) -> Result<(), DriverError> {
        either!(self, ring => ring.disable_calls(mem))
    }

    /// Where the ring lies.
    pub fn layout(&self) -> &RingLayout {
        either!(self, ring => ring.layout())
    }

    /// Chains published, modulo 65536: `avail.idx` of a split ring.
    pub fn avail_idx(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.avail_idx(),
            Self::Packed(ring) => ring.published_chains(),
        }
    }

    /// Chains reaped, modulo 65536: where a split ring's next used element is.
    pub fn next_used(&self) -> u16 {
        match self {
            Self::Split(ring) => ring.next_used(),
            Self::Packed(ring) => ring.reaped_chains(),
        }
    }

    /// Where a device stands that has completed all it was told of, in the
    /// format of a vring's base: the available index, or the available position
    /// and, in the upper half, the one up to which was reaped.
    pub fn base(&self) -> u32 {
        match self {
            Self::Split(ring) => ring.avail_idx().into(),
            Self::Packed(ring) => {
                let (avail, used) = (ring.avail_position(), ring.used_position());
                u32::from(avail.word()) | u32::from(used.word()) << 16
            }
        }
    }

    /// Chains that the device holds or that were not reaped.
    pub fn outstanding(&self) -> u16 {
        either!(self, ring => ring.outstanding())
    }

    /// Ring descriptors that are free.
    pub fn free_descriptors(&self) -> u16 {
        either!(self, ring => ring.free_descriptors())
    }

    /// What the device did wrong, if it did.
    pub fn broken(&self) -> Option<DeviceFault> {
        either!(self, ring => ring.broken())
    }

    /// The ring, if it is a split one.
    pub fn as_split(&self) -> Option<&SplitDriver> {
        match self {
            Self::Split(ring) => Some(ring),
            Self::Packed(_) => None,
        }
    }

    /// The ring, if it is a packed one.
    pub fn as_packed(&self) -> Option<&PackedDriver> {
        match self {
            Self::Split(_) => None,
            Self::Packed(ring) => Some(ring),
        }
    }

    pub(super) fn break_ring(&mut self, fault: DeviceFault) -> DriverError {
        either!(self, ring => ring.break_ring(fault))
    }

    /// Place of a chain in a table of the ring's size.
    pub(super) fn slot_of(&self, name: u16) -> Option<u16> {
        match self {
            Self::Split(ring) => (name < ring.layout().size).then_some(name),
            Self::Packed(ring) => ring.slot_of(name),
        }
    }

    /// The opposite of [`DriverRing::slot_of`].
    pub(super) fn name_of(&self, slot: u16) -> Option<u16> {
        match self {
            Self::Split(_) => Some(slot),
            Self::Packed(ring) => ring.id_of(slot),
        }
    }
}
