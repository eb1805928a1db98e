//! What there is to say about a file, whatever it is printed as.

use crate::inflight::{InflightFault, RegionView, RingState, region_size_of};
use crate::migration::{
    BlkDevice, Contradiction, Live, PartHeader, QueueState, Stream, StreamFault, Takeover,
    blk_devices, packed_takeover, takeover,
};
use crate::vring::RingFormat;
use crate::vring::packed::{Position, Positions};

/// A file.
pub struct Report<'a> {
    /// The stream's skeleton; `None` for a dumped region.
    pub stream: Option<Stream<'a>>,
    /// Bytes of the file.
    pub bytes: u64,
    pub disks: Vec<Disk<'a>>,
}

/// A device, or the region of one.
pub struct Disk<'a> {
    /// `None` for a dumped region.
    pub device: Option<BlkDevice<'a>>,
    /// Entries of the region's parts, its bytes, and their offset in the file.
    pub region: Option<(u16, u64, u64)>,
    /// What is wrong with the region as a whole.
    pub unusable: Option<InflightFault>,
    pub contradiction: Option<Contradiction>,
    pub queues: Vec<Queue>,
}

/// A virtqueue.
pub struct Queue {
    pub state: Option<QueueState>,
    /// From guest memory in the stream.
    pub used: Option<u16>,
    pub avail: Option<u16>,
    /// The used index that `takeover` rests on, of a split ring.
    pub assumed: Option<u16>,
    pub header: Option<PartHeader>,
    /// Offset of this vring's part in the file.
    pub offset: Option<u64>,
    /// Chains with their flag set.
    pub flagged: Vec<Live>,
    pub takeover: Option<Result<Takeover, InflightFault>>,
}

impl Report<'_> {
    /// Why no back-end would take one of the disks.
    pub fn refusal(&self) -> Option<String> {
        self.disks.iter().find_map(|disk| {
            let state = disk.device.as_ref().and_then(|d| d.state.as_ref().err());
            let whole = disk.unusable.as_ref().map(|e| at(e, disk.region.map_or(0, |r| r.2)));
            let part = |q: &Queue| Some(at(q.takeover.as_ref()?.as_ref().err()?, q.offset?));
            let parts = || disk.queues.iter().find_map(part);
            state.map(StreamFault::to_string).or(whole).or_else(parts)
        })
    }
}

fn at(fault: &InflightFault, offset: u64) -> String {
    format!("{fault}, in the part at offset {offset:#x}")
}

/// Of a migration stream.
pub fn of_stream(bytes: &[u8]) -> Result<Report<'_>, StreamFault> {
    let stream = Stream::parse(bytes)?;
    let devices = blk_devices(&stream)?;
    let indexes: Vec<u64> = devices.iter().flat_map(BlkDevice::indexes).collect();
    let ram = stream.guest_ram(indexes);
    let mut disks = Vec::new();
    for device in devices {
        let inflight = device.inflight.filter(|i| !i.region.is_empty());
        let offset = device.inflight_range.end as u64;
        let region = inflight.map(|i| {
            let len = i.region.len() as u64;
            (i.queue_size, len, offset - len)
        });
        let (view, unusable) = match device.region() {
            Some(Ok(view)) => (Some(view), None),
            Some(Err(fault)) => (None, Some(fault)),
            None => (None, None),
        };
        let start = region.map_or(0, |r| r.2);
        let queue = |vring: u16| {
            let state = device.state.as_ref().ok().and_then(|s| s.queues.get(usize::from(vring)));
            let (used, avail) = device.ring(&ram, vring);
            let header = view.and_then(|v| PartHeader::of(&v, vring).ok());
            let by_region = match header {
                Some(PartHeader::Split(h)) if h.version != 0 => Some(h.used_idx),
                _ => None,
            };
            let assumed = used.or(by_region);
            let split = || assumed.and_then(|used| device.takeover(vring, used, avail));
            Queue {
                state: state.copied(),
                used,
                avail,
                assumed,
                header,
                offset: view.map(|v| start + v.offset(vring)),
                flagged: flagged(view.as_ref(), vring),
                takeover: device.packed_takeover(vring).or_else(split),
            }
        };
        let queues = (0..device.queues().unwrap_or(0)).map(queue).collect();
        let contradiction = device.contradiction();
        disks.push(Disk { region, unusable, contradiction, queues, device: Some(device) });
    }
    Ok(Report { stream: Some(stream), bytes: bytes.len() as u64, disks })
}

/// Of the bytes of a region, as somebody copied them out of shared memory.
pub fn of_region(
    bytes: &[u8],
    format: RingFormat,
    queues: Option<u16>,
    queue_size: Option<u16>,
) -> Result<Report<'_>, String> {
    let len = bytes.len() as u64;
    let whole = |fault: InflightFault| at(&fault, 0);
    let queue_size = match queue_size {
        Some(n) => n,
        None => match RegionView::guess_queue_size(bytes).map_err(whole)? {
            0 => return Err("nobody has used this region at offset 0x0, so its size is unknown: --queue-size is needed".into()),
            n => n,
        },
    };
    let one = region_size_of(format, 1, queue_size);
    let fit = u16::try_from(len / one).unwrap_or(u16::MAX).clamp(1, 1024);
    let queues = queues.unwrap_or(fit);
    // A dump may be padded to whole pages; parts may be packed tighter than
    // usual, and then they share the whole.
    let usual = region_size_of(format, queues, queue_size).min(len) as usize;
    let view = RegionView::of(format, &bytes[..usual], queues, queue_size).map_err(whole)?;
    let queue = |vring| {
        let header = PartHeader::of(&view, vring).ok();
        let used = match header {
            Some(PartHeader::Split(h)) => Some(h.used_idx),
            _ => None,
        };
        Queue {
            state: None,
            used: None,
            avail: None,
            assumed: used,
            header,
            offset: Some(view.offset(vring)),
            flagged: flagged(Some(&view), vring),
            takeover: header.map(|header| judge(&view, vring, header)),
        }
    };
    let queues = (0..queues).map(queue).collect();
    let disk = Disk {
        device: None,
        region: Some((queue_size, usual as u64, 0)),
        unusable: None,
        contradiction: None,
        queues,
    };
    Ok(Report { stream: None, bytes: len, disks: vec![disk] })
}

/// What would be done with a vring of which nothing is known but its part.
fn judge(view: &RegionView<'_>, vring: u16, header: PartHeader) -> Result<Takeover, InflightFault> {
    let size = view.shape().queue_size;
    match header {
        PartHeader::Split(h) => {
            takeover(Some(view), vring, h.used_idx, RingState::unseen(size, h.used_idx))
        }
        PartHeader::Packed(_) => {
            let found = view.packed_plan(vring, size, |_| false)?;
            let at = found.map_or(Positions::START, |plan| plan.positions);
            packed_takeover(Some(view), vring, at, size)
        }
    }
}

/// Chains with their flag set, whatever the ring says; none if the part is not
/// sound.
fn flagged(view: Option<&RegionView<'_>>, vring: u16) -> Vec<Live> {
    let Some(view) = view else { return Vec::new() };
    let Ok(header) = PartHeader::of(view, vring) else { return Vec::new() };
    judge(view, vring, header).map_or_else(|_| Vec::new(), |found| found.resubmit)
}

/// A position of a packed ring, in words.
pub fn place(bits: u16) -> String {
    let at = Position::from_bits(bits);
    format!("entry {}, wrap counter {}", at.index, u8::from(at.wrap))
}
