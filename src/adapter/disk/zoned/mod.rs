//! Zones on top of an engine that has none.
//!
//! Requests pass through here in the order in which they came, before anything
//! may change that order. What a zone does not allow is answered; what it
//! allows goes on as a plain read, write or zeroing at a fixed place. A reset
//! has its zone for itself: it waits until what is under way there is done, and
//! what comes later waits for it.

mod file;

pub use file::ZoneFile;

use super::op::Op;
use super::sync::os;
use super::{bounce, zeroes};
use crate::adapter::error::Refusal;
use crate::adapter::image::Image;
use crate::adapter::memory::Iov;
use crate::blk::zones::{self, Admitted, AppendId, Zones};
use crate::blk::{ByteRange, DiskError, DiskOp, ReqId, SECTOR_SIZE, ZoneAction};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// What a request on its way has to give back.
#[derive(Debug)]
pub enum Ticket {
    /// It writes to this zone.
    Writes(u32),
    /// It writes to this zone, and says where: the sector, and where to put it.
    Appends(u32, u64, Vec<Iov>),
    /// It has this zone for itself and zeroes it.
    Clears(u32),
    /// It has all zones for itself and zeroes these.
    ClearsAll(Vec<u32>),
}

/// What is to be done with a request.
#[derive(Debug)]
pub enum Gate {
    /// Give it to the engine.
    Go(Box<Op>),
    /// It is over.
    Over(Box<Op>),
}

/// The zones of an image.
pub struct Zoned {
    image: Arc<Image>,
    file: ZoneFile,
    /// `None`: the image is not ours.
    zones: Option<Zones>,
    /// Requests under way, by zone.
    under_way: BTreeMap<u32, u32>,
    /// Zones that a reset has for itself.
    taken: Vec<u32>,
    /// Somebody has all zones for itself.
    all_taken: bool,
    /// Requests that wait for such.
    waiting: VecDeque<Box<Op>>,
    /// Vrings that have nothing in flight, told before the image was ours.
    forget: BTreeSet<u16>,
}

impl Zoned {
    /// Zones as in `file`, on `image`.
    pub fn new(image: Arc<Image>, file: ZoneFile) -> Self {
        Self {
            image,
            file,
            zones: None,
            under_way: BTreeMap::new(),
            taken: Vec::new(),
            all_taken: false,
            waiting: VecDeque::new(),
            forget: BTreeSet::new(),
        }
    }

    /// The image is ours: find out how it was left.
    pub fn open(&mut self) -> Result<(), Refusal> {
        let mut zones = self.file.load()?;
        for vring in core::mem::take(&mut self.forget) {
            zones.appends().forget_vring(vring);
        }
        let failed = |what: &str, e: DiskError| Refusal(format!("cannot {what} zones: {e}"));
        // Somebody died between making a zone empty and zeroing it.
        let (geometry, to_clear) = (zones.geometry(), zones.to_clear().collect::<Vec<_>>());
        for zone in to_clear {
            let range = range_of(&geometry, zone);
            zeroes::write(&self.image, range.offset, range.len, true)
                .map_err(|e| failed("clear", e))?;
            zones.cleared(zone);
        }
        self.file.save(&mut zones).map_err(|e| failed("save", os(e)))?;
        self.zones = Some(zones);
        Ok(())
    }

    /// The image is not ours any more.
    pub fn close(&mut self) {
        self.zones = None;
        self.file.let_go();
    }

    /// A vring runs that has begun with so many requests of a predecessor. With
    /// none, no append will come again, and its region may be a new one that
    /// counts from 0.
    pub fn vring_runs(&mut self, vring: u16, resubmitted: u16) {
        match &mut self.zones {
            _ if resubmitted > 0 => {
                self.forget.remove(&vring);
            }
            None => {
                self.forget.insert(vring);
            }
            Some(zones) => {
                zones.appends().forget_vring(vring);
                // If this fails, the next change says so.
                let _ = self.file.save(zones);
            }
        }
    }

    /// Take back a request that waits.
    pub fn cancel(&mut self, id: ReqId) -> Option<Box<Op>> {
        let at = self.waiting.iter().position(|op| op.id == id)?;
        self.waiting.remove(at)
    }

    /// A request comes. `None`: it waits.
    pub fn admit(&mut self, mut op: Box<Op>) -> Option<Gate> {
        let Some(zones) = &self.zones else {
            op.result = Err(DiskError::Unsupported);
            return Some(Gate::Over(op));
        };
        let geometry = zones.geometry();
        let (zone, alone) = match op.kind {
            DiskOp::Write { offset, .. } | DiskOp::ZoneAppend { offset, .. } => {
                (Some(geometry.zone_of(offset / SECTOR_SIZE)), false)
            }
            DiskOp::Zone { action, offset } => {
                let zone = geometry.zone_of(offset / SECTOR_SIZE);
                let all = action == ZoneAction::ResetAll;
                ((!all).then_some(zone), all || action == ZoneAction::Reset)
            }
            _ => return Some(self.carry_on(op)),
        };
        if self.is_blocked(&geometry, zone, alone) {
            self.waiting.push_back(op);
            return None;
        }
        Some(self.carry_on(op))
    }

    /// `zone`: `None` for all of them.
    fn is_blocked(&self, geometry: &zones::Geometry, zone: Option<u32>, alone: bool) -> bool {
        let Some(zone) = zone else {
            return !(self.waiting.is_empty()
                && self.under_way.is_empty()
                && self.taken.is_empty())
                || self.all_taken;
        };
        let ahead = |op: &Op| match op.kind {
            DiskOp::Zone { action: ZoneAction::ResetAll, .. } => true,
            _ => geometry.zone_of(op.offset / SECTOR_SIZE) == zone,
        };
        self.all_taken
            || self.taken.contains(&zone)
            || self.waiting.iter().any(|op| ahead(op))
            || alone && self.under_way.contains_key(&zone)
    }

    /// Nothing is in the way of this request.
    fn carry_on(&mut self, mut op: Box<Op>) -> Gate {
        match self.step(&mut op) {
            Ok(true) => Gate::Go(op),
            Ok(false) => Gate::Over(op),
            Err(error) => {
                op.result = Err(error);
                self.leave(op.ticket.take());
                Gate::Over(op)
            }
        }
    }

    /// True if the engine has to do something.
    fn step(&mut self, op: &mut Op) -> Result<bool, DiskError> {
        let Some(zones) = &mut self.zones else { return Err(DiskError::Unsupported) };
        let geometry = zones.geometry();
        let sector = op.offset / SECTOR_SIZE;
        match op.kind {
            DiskOp::Read { .. } => {
                zones.read(sector, op.len / SECTOR_SIZE).map_err(DiskError::Zone)?;
                return Ok(true);
            }
            DiskOp::ZoneReport { .. } => {
                report(zones, op);
                return Ok(false);
            }
            DiskOp::Write { .. } => {
                let sectors = op.len / SECTOR_SIZE;
                let how = zones.write(sector, sectors, op.again).map_err(DiskError::Zone)?;
                if how != Admitted::Anywhere {
                    op.ticket = Some(Ticket::Writes(geometry.zone_of(sector)));
                }
            }
            DiskOp::ZoneAppend { len, durable, .. } => {
                let sectors = len / SECTOR_SIZE;
                let id = op.order.map(|order| AppendId { vring: op.vring, head: op.head, order });
                let (at, _) =
                    zones.append(sector, sectors, id, op.again).map_err(DiskError::Zone)?;
                let answer = op.split(len);
                op.measure();
                op.offset = at * SECTOR_SIZE;
                op.kind = DiskOp::Write { offset: op.offset, durable };
                op.ticket = Some(Ticket::Appends(geometry.zone_of(at), at, answer));
            }
            DiskOp::Zone { action, .. } => {
                let change = match action {
                    ZoneAction::Open => zones.open(sector),
                    ZoneAction::Close => zones.close(sector, op.again),
                    ZoneAction::Finish => zones.finish(sector),
                    ZoneAction::Reset => zones.reset(sector).map(drop),
                    ZoneAction::ResetAll => {
                        zones.reset_all();
                        Ok(())
                    }
                };
                change.map_err(DiskError::Zone)?;
                return self.acted(op, action, sector);
            }
            DiskOp::Flush
            | DiskOp::Discard { .. }
            | DiskOp::WriteZeroes { .. }
            | DiskOp::SecureErase => return Ok(true),
        }
        if let Some(Ticket::Writes(zone) | Ticket::Appends(zone, ..)) = op.ticket {
            *self.under_way.entry(zone).or_default() += 1;
            // Before any of the data: what is written is never beyond the write
            // pointer that a successor finds.
            self.file.save(zones).map_err(os)?;
        }
        Ok(true)
    }

    /// The state of zones was changed.
    fn acted(&mut self, op: &mut Op, action: ZoneAction, sector: u64) -> Result<bool, DiskError> {
        let Some(zones) = &mut self.zones else { return Err(DiskError::Unsupported) };
        let geometry = zones.geometry();
        self.file.save(zones).map_err(os)?;
        if matches!(action, ZoneAction::Open | ZoneAction::Close) {
            return Ok(false);
        }
        // It is durable that the zone is empty before its content goes: a write
        // pointer never stands behind data that a reset has destroyed.
        self.file.sync().map_err(os)?;
        let all: Vec<u32> = match action {
            ZoneAction::Reset => {
                let zone = geometry.zone_of(sector);
                zones.to_clear().filter(|clearing| *clearing == zone).collect()
            }
            ZoneAction::ResetAll => zones.to_clear().collect(),
            _ => Vec::new(),
        };
        if all.is_empty() {
            return Ok(false);
        }
        op.kind = DiskOp::WriteZeroes { durable: true };
        op.set_ranges(all.iter().map(|zone| range_of(&geometry, *zone)));
        op.ticket = Some(match (action, &all[..]) {
            (ZoneAction::Reset, &[zone]) => {
                self.taken.push(zone);
                Ticket::Clears(zone)
            }
            _ => {
                self.all_taken = true;
                Ticket::ClearsAll(all)
            }
        });
        Ok(true)
    }

    /// The engine is done with a request, or it was taken back. What may begin
    /// because of that is added to `out`.
    pub fn finished(&mut self, op: &mut Op, out: &mut Vec<Gate>) {
        let Some(ticket) = op.ticket.take() else { return };
        if op.result.is_ok()
            && let Some(zones) = &mut self.zones
        {
            match &ticket {
                Ticket::Writes(_) => {}
                Ticket::Appends(_, sector, answer) => {
                    bounce::scatter(answer, &sector.to_le_bytes());
                }
                Ticket::Clears(zone) => zones.cleared(*zone),
                Ticket::ClearsAll(all) => all.iter().for_each(|zone| zones.cleared(*zone)),
            }
            if let Err(errno) = self.file.save(zones) {
                op.result = Err(os(errno));
            }
        }
        self.leave(Some(ticket));
        // Those that wait still are ahead of those that are looked at later.
        for op in core::mem::take(&mut self.waiting) {
            out.extend(self.admit(op));
        }
    }

    fn leave(&mut self, ticket: Option<Ticket>) {
        match ticket {
            None => {}
            Some(Ticket::Writes(zone) | Ticket::Appends(zone, ..)) => {
                if let Some(count) = self.under_way.get_mut(&zone) {
                    *count -= 1;
                    if *count == 0 {
                        self.under_way.remove(&zone);
                    }
                }
            }
            Some(Ticket::Clears(zone)) => self.taken.retain(|taken| *taken != zone),
            Some(Ticket::ClearsAll(_)) => self.all_taken = false,
        }
    }
}

fn range_of(geometry: &zones::Geometry, zone: u32) -> ByteRange {
    let (start, end) = (geometry.start(zone), geometry.end(zone));
    ByteRange { offset: start * SECTOR_SIZE, len: (end - start) * SECTOR_SIZE, unmap: true }
}

/// Answer a report; the back-end has left room for whole zones only.
fn report(zones: &Zones, op: &Op) {
    let geometry = zones.geometry();
    let first = geometry.zone_of(op.offset / SECTOR_SIZE);
    let count = zones::reported(&geometry, op.offset / SECTOR_SIZE, op.len).unwrap_or(0);
    let mut bytes = zones::header(count).to_vec();
    for number in first..first + count {
        let zone = &zones.zones()[number as usize];
        bytes.extend_from_slice(&zones::descriptor(&geometry, number, zone));
    }
    bounce::scatter(op.left(), &bytes);
}
