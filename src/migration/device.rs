//! The sections of vhost-user-blk devices.

use super::fault::{StreamFault, What};
use super::image::{Contradiction, Takeover, oversize, packed_takeover, takeover};
use super::ram::GuestRam;
use super::stream::{Section, Stream};
use super::subsection::InflightSubsection;
use super::virtio::DeviceState;
use crate::inflight::{InflightFault, RegionView, RingState};
use crate::vring::RingFormat;
use core::ops::Range;

/// End of the section's name, after the path of the device.
const NAME: &str = "vhost-user-blk";
const VERSION: u32 = 1;

/// A vhost-user-blk device in a stream.
#[derive(Clone, Debug)]
pub struct BlkDevice<'a> {
    /// Its section.
    pub section: Section,
    /// Rings and the rest of virtio, or what cannot be read of it: QEMU has
    /// transports other than PCI.
    pub state: Result<DeviceState<'a>, StreamFault>,
    /// The inflight region, if the source sent one: it does if
    /// `inflight-migration` was on there and the back-end could.
    pub inflight: Option<InflightSubsection<'a>>,
    /// Bytes of the inflight subsection in the stream; empty, at the end of
    /// the payload, without one.
    pub inflight_range: Range<usize>,
}

/// Every vhost-user-blk device of a stream, in its order.
pub fn blk_devices<'a>(stream: &Stream<'a>) -> Result<Vec<BlkDevice<'a>>, StreamFault> {
    let is_blk = |s: &&Section| s.name == NAME || s.name.ends_with("/vhost-user-blk");
    stream.sections.iter().filter(is_blk).map(|s| BlkDevice::parse(stream, s)).collect()
}

impl<'a> BlkDevice<'a> {
    fn parse(stream: &Stream<'a>, section: &Section) -> Result<Self, StreamFault> {
        let fault = |offset: usize, what| StreamFault { offset: offset as u64, what };
        // The walk has seen these bytes, so they fit.
        let (start, end) = (section.payload as usize, (section.payload + section.len) as usize);
        if section.version != VERSION {
            let (expected, got) = (VERSION.into(), section.version.into());
            let of = "vhost-user-blk section version";
            return Err(fault(section.offset as usize, What::Value { of, expected, got }));
        }
        let described = stream.description().device(&section.name, section.instance);
        let fields = described.map_or(section.len, |d| d.fields).min(section.len) as usize;
        let bytes = &stream.bytes[..end];
        let state = DeviceState::parse(&bytes[..start + fields], start);
        let (inflight, next) = if start + fields == end {
            (None, end)
        } else {
            let (found, next) = InflightSubsection::decode(bytes, start + fields)?;
            (Some(found), next)
        };
        if next != end {
            let got = (end - next) as u64;
            return Err(fault(next, What::Rest { of: "the vhost-user-blk section", got }));
        }
        let inflight_range = start + fields..end;
        Ok(Self { section: section.clone(), state, inflight, inflight_range })
    }

    /// The inflight region, if it has contents: for as many queues as the
    /// device has.
    pub fn region(&self) -> Option<Result<RegionView<'a>, InflightFault>> {
        let inflight = self.inflight.filter(|i| !i.region.is_empty())?;
        let queues = self.queues()?;
        Some(RegionView::of(self.format(), inflight.region, queues, inflight.queue_size))
    }

    /// Kind of the device's rings: split, if its state could not be read.
    pub fn format(&self) -> RingFormat {
        match &self.state {
            Ok(state) if state.packed() => RingFormat::Packed,
            _ => RingFormat::Split,
        }
    }

    /// Number of queues, if the device's state could be read.
    pub fn queues(&self) -> Option<u16> {
        self.state.as_ref().ok().and_then(|s| u16::try_from(s.queues.len()).ok())
    }

    /// Guest-physical addresses of the used and available indexes of the
    /// device's rings.
    pub fn indexes(&self) -> impl Iterator<Item = u64> + '_ {
        let queues = self.state.as_ref().map_or(&[][..], |s| &s.queues);
        let addresses = queues.iter().flat_map(|q| [q.used, q.avail]);
        addresses.flatten().filter(|a| *a != 0).map(index)
    }

    /// Used and available index of a split ring, where guest memory has them.
    pub fn ring(&self, ram: &GuestRam<'_>, vring: u16) -> (Option<u16>, Option<u16>) {
        if self.format() == RingFormat::Packed {
            return (None, None);
        }
        let queue = self.state.as_ref().ok().and_then(|s| s.queues.get(usize::from(vring)));
        let read = |address: Option<u64>| ram.le16(index(address.filter(|a| *a != 0)?));
        queue.map_or((None, None), |q| (read(q.used), read(q.avail)))
    }

    /// What a back-end at the destination would do with a packed ring. `None` if
    /// the guest has not set the ring up, or it is a split one.
    pub fn packed_takeover(&self, vring: u16) -> Option<Result<Takeover, InflightFault>> {
        let state = self.state.as_ref().ok().filter(|s| s.packed())?;
        let queue = state.queues.get(usize::from(vring)).filter(|q| q.desc != 0)?;
        let view = match self.region().transpose() {
            Ok(view) => view,
            Err(fault) => return Some(Err(fault)),
        };
        Some(packed_takeover(view.as_ref(), vring, queue.packed?, queue.size as u16))
    }

    /// What a back-end at the destination would do with a ring that has this
    /// used index, and this available index if that is known. `None` if the
    /// guest has not set the ring up, or the rings are packed.
    pub fn takeover(
        &self,
        vring: u16,
        used_idx: u16,
        avail_idx: Option<u16>,
    ) -> Option<Result<Takeover, InflightFault>> {
        let state = self.state.as_ref().ok().filter(|s| !s.packed())?;
        let queue = state.queues.get(usize::from(vring)).filter(|q| q.desc != 0)?;
        let view = match self.region().transpose() {
            Ok(view) => view,
            Err(fault) => return Some(Err(fault)),
        };
        // The state was refused if a ring were larger.
        let mut ring = RingState::unseen(queue.size as u16, used_idx);
        ring.avail_idx = avail_idx.unwrap_or(ring.avail_idx);
        Some(takeover(view.as_ref(), vring, queue.last_avail_idx, ring))
    }

    /// What is wrong with the region as a whole.
    pub fn contradiction(&self) -> Option<Contradiction> {
        let inflight = self.inflight?;
        match inflight.region.len() {
            0 => Some(Contradiction::Empty),
            len => oversize(self.format(), len as u64, self.queues()?, inflight.queue_size),
        }
    }
}

/// Both rings have their index after a 16-bit word of flags.
// spec: virtio 1.2, "Split Virtqueues"
fn index(ring: u64) -> u64 {
    ring.wrapping_add(2)
}
