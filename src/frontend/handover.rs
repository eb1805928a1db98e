//! Taking a device to another host: what a source hands over once its vrings
//! are stopped, and what a destination takes over before it starts them.
//!
//! Guest memory, and with it the rings, moves on the owner's ways, and so do
//! the bytes of the inflight region: a [`DeviceState`] only says what they are.
// spec: vhost-user, "Inflight I/O tracking"

use super::Frontend;
use super::base::{self, KeptBase};
use super::error::{ApiMisuse, Unfit};
use super::io::Output;
use super::phase::Phase;
use crate::Handle;
use crate::bugs::{self, Bug};
use crate::time::Instant;
use crate::wire::InflightDescription;
use crate::wire::features::{protocol, virtio};

/// A device whose vrings do not run, without its memory: plain data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceState {
    /// Virtio features that the guest has accepted, without bits 26 and 30.
    /// `None`: the device was never started, or was reset.
    pub features: Option<u64>,
    /// Largest ring the device has, in entries.
    pub queue_size: u16,
    /// Where each vring of the device stopped, by vring index, in the format of
    /// GET_VRING_BASE. `None`: the back-end died while the vring ran, and only
    /// guest memory and region are left; start with [`Base::At`](super::Base::At)
    /// the used index, or [`Base::Last`](super::Base::Last) if rings are packed.
    pub bases: Vec<Option<u32>>,
    /// Shape of the inflight region, whose bytes the owner carries over.
    /// `None`, or a size of 0: there is none, since the device was never
    /// started or nothing records requests.
    pub inflight: Option<InflightDescription>,
}

/// The state of another host's device does not fit this one. Nothing was taken
/// over and nothing was said to the back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateFault {
    /// The device there has another number of vrings.
    #[error("expected {expected} vrings, got {got}")]
    Queues {
        /// Vrings of this device.
        expected: u16,
        /// Vrings of the other.
        got: u32,
    },
    /// The rings there may be of another size.
    #[error("expected a queue size of {expected}, got {got}")]
    QueueSize {
        /// Largest ring of this device.
        expected: u16,
        /// Largest ring of the other, or of its region.
        got: u16,
    },
    /// The region is for another number of vrings.
    #[error("inflight region: expected {expected} vrings, got {got}")]
    RegionQueues {
        /// Vrings of this device.
        expected: u16,
        /// Vrings in the region.
        got: u16,
    },
    /// The region cannot hold one part for each vring, or holds more.
    #[error("inflight region: expected {min} to {max} bytes, got {got}")]
    RegionSize {
        /// Bytes of the parts without padding.
        min: u64,
        /// Bytes of the parts with padding.
        max: u64,
        /// Bytes in all.
        got: u64,
    },
    /// A base is no place in the vring.
    #[error("vring {vring}: {base:#x} is no base of its ring")]
    Base {
        /// Vring.
        vring: u16,
        /// What it is said to be.
        base: u32,
    },
    /// A region was described but not given, or given but not described.
    #[error("inflight region: expected description and handle together")]
    RegionAlone,
}

impl Frontend {
    /// What another host needs to go on with this device. The vrings must be
    /// stopped; nothing changes here, and they may be started again.
    ///
    /// # Errors
    /// [`ApiMisuse::WrongPhase`] while the vrings run, start or stop: their
    /// bases and the region are the back-end's then.
    pub fn device_state(&self) -> Result<DeviceState, ApiMisuse> {
        self.expect_phase("hand over", self.is_settled() && self.phase != Phase::Running)?;
        let packed = self.device.packed();
        Ok(DeviceState {
            features: self.device.features,
            queue_size: self.config.queue_size,
            bases: self.device.bases.iter().map(|base| base.known(packed)).collect(),
            inflight: self.device.inflight.map(|(description, _)| description),
        })
    }

    /// The inflight region that is kept, and its handle, which stays the
    /// front-end's. Its bytes are at rest only while vrings are stopped.
    pub fn inflight(&self) -> Option<(InflightDescription, Handle)> {
        self.device.inflight
    }

    /// No sequence of messages is under way that moves vrings.
    pub(super) fn is_settled(&self) -> bool {
        !matches!(self.phase, Phase::Starting | Phase::Stopping | Phase::Resetting)
    }

    pub(super) fn adopt(
        &mut self,
        now: Instant,
        what: &'static str,
        state: DeviceState,
        inflight: Option<Handle>,
    ) -> Result<(), ApiMisuse> {
        self.expect_phase(what, self.is_settled() && self.phase != Phase::Running)?;
        self.check_state(&state, inflight)?;
        let old = self.device.inflight.take();
        self.outputs.extend(old.map(|(_, handle)| Output::Release(handle)));
        let region = state.inflight.filter(|region| region.mmap_size > 0);
        match region.filter(|_| !bugs::on(Bug::AdoptedRegionDropped)) {
            Some(description) => self.device.inflight = Some(description).zip(inflight),
            // Memory for a region without bytes holds nothing to keep.
            None => self.outputs.extend(inflight.map(Output::Release)),
        }
        self.device.features = state.features;
        let fresh = base::fresh(self.device.packed());
        let adopted = |at: Option<u32>| match at {
            // A guest that has accepted nothing has not chosen a format either.
            Some(_) if state.features.is_none() => KeptBase::Fresh,
            Some(base) => KeptBase::At(base),
            None => KeptBase::Lost(fresh),
        };
        self.device.bases = state.bases.into_iter().map(adopted).collect();
        self.device.started.clear();
        if self.phase == Phase::Ready
            && let Err(unfit) = self.check_fit()
        {
            self.fail(now, unfit.into());
        }
        Ok(())
    }

    fn check_state(&self, state: &DeviceState, handle: Option<Handle>) -> Result<(), StateFault> {
        let expected = self.config.num_queues;
        let got = state.bases.len();
        if got != usize::from(expected) {
            let got = u32::try_from(got).unwrap_or(u32::MAX);
            return Err(StateFault::Queues { expected, got });
        }
        let packed = state.features.unwrap_or(0) & virtio::RING_PACKED != 0;
        for (vring, base) in (0u16..).zip(&state.bases) {
            if let Some(base) = base.filter(|base| !base::fits(*base, packed, state.queue_size)) {
                return Err(StateFault::Base { vring, base });
            }
        }
        let size = self.config.queue_size;
        if state.queue_size != size {
            return Err(StateFault::QueueSize { expected: size, got: state.queue_size });
        }
        let Some(region) = state.inflight else {
            return if handle.is_some() { Err(StateFault::RegionAlone) } else { Ok(()) };
        };
        // QEMU 11.1 writes a region of 0 bytes for 0 entries when a device was
        // never started.
        if region.mmap_size == 0 {
            return Ok(());
        }
        if handle.is_none() {
            return Err(StateFault::RegionAlone);
        }
        if region.queue_size != size {
            return Err(StateFault::QueueSize { expected: size, got: region.queue_size });
        }
        if region.num_queues != expected {
            return Err(StateFault::RegionQueues { expected, got: region.num_queues });
        }
        let unit: u64 = if packed { 32 } else { 16 };
        // A header as large as an entry, then the entries. Most back-ends pad
        // each part to a cache line, some do not.
        let part = unit * (1 + u64::from(size));
        let (min, max) =
            (part * u64::from(expected), part.next_multiple_of(64) * u64::from(expected));
        if !(min..=max).contains(&region.mmap_size) {
            return Err(StateFault::RegionSize { min, max, got: region.mmap_size });
        }
        Ok(())
    }

    /// Whether the back-end can carry what the device brings along from the
    /// last one. If not, it would lose it in silence.
    pub(super) fn check_fit(&self) -> Result<(), Unfit> {
        if !self.session.has(protocol::INFLIGHT_SHMFD) && self.device.inflight.is_some() {
            return Err(Unfit::NoInflight);
        }
        if let Some(feature) = self.log_lacks().filter(|_| self.device.log.is_some()) {
            return Err(Unfit::NoLog(feature));
        }
        let missing = self.device.features.unwrap_or(0) & !self.features();
        if missing != 0 {
            return Err(Unfit::NoFeatures(missing));
        }
        Ok(())
    }
}
