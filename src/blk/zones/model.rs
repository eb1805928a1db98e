//! The states of zones, and what requests do to them.

use super::appends::{Append, AppendId, Appends};
use super::{Geometry, ZoneFault, ZonedConfig};
use std::collections::BTreeSet;

/// The state of a zone. A device of ours never has zones that are read-only or
/// offline.
// spec: virtio 1.3, "Device Operation", VIRTIO_BLK_ZS_*
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ZoneState {
    /// Conventional: it has no write pointer.
    NotWritePointer = 0,
    /// Nothing is written.
    Empty = 1,
    /// Open because something was written.
    ImplicitlyOpen = 2,
    /// Open because the guest said so.
    ExplicitlyOpen = 3,
    /// Partly written, and not open.
    Closed = 4,
    /// Nothing more can be written.
    Full = 14,
}

impl ZoneState {
    /// Counts against the limit on open zones.
    pub fn is_open(self) -> bool {
        matches!(self, Self::ImplicitlyOpen | Self::ExplicitlyOpen)
    }

    /// Counts against the limit on active zones.
    pub fn is_active(self) -> bool {
        self.is_open() || self == Self::Closed
    }
}

/// One zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Zone {
    /// Its state.
    pub state: ZoneState,
    /// Sector that is written next; the end of a full zone, the start of a
    /// conventional one.
    pub wp: u64,
    /// It was made empty, and its content is not zeroed yet.
    pub clearing: bool,
}

/// How a write that may be carried out got in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admitted {
    /// The zone is conventional.
    Anywhere,
    /// The write pointer moved to its end.
    Advanced,
    /// The write pointer was behind it already: a predecessor had admitted it.
    Again,
}

/// All zones of a disk.
#[derive(Clone, Debug)]
pub struct Zones {
    geometry: Geometry,
    /// 0: any number.
    max_open: u32,
    max_active: u32,
    zones: Vec<Zone>,
    open: u32,
    active: u32,
    changed: BTreeSet<u32>,
    appends: Appends,
}

impl Zones {
    /// A disk nobody has written to.
    pub fn empty(config: &ZonedConfig, capacity: u64) -> Self {
        let geometry = config.geometry(capacity);
        let zone = |zone| Zone {
            state: match geometry.is_conventional(zone) {
                true => ZoneState::NotWritePointer,
                false => ZoneState::Empty,
            },
            wp: geometry.start(zone),
            clearing: false,
        };
        let zones = (0..geometry.zones()).map(zone).collect();
        Self::with(config, geometry, zones, Appends::default())
    }

    /// A disk as it was left. `None` if these cannot be its zones.
    pub fn restore(
        config: &ZonedConfig,
        capacity: u64,
        zones: Vec<Zone>,
        appends: Appends,
    ) -> Option<Self> {
        let geometry = config.geometry(capacity);
        let possible = |(number, zone): (u32, &Zone)| {
            let (start, end) = (geometry.start(number), geometry.end(number));
            let conventional = geometry.is_conventional(number);
            match zone.state {
                ZoneState::NotWritePointer => conventional,
                _ if conventional => false,
                ZoneState::Empty => zone.wp == start,
                ZoneState::Full => zone.wp == end,
                ZoneState::ExplicitlyOpen => (start..end).contains(&zone.wp),
                ZoneState::ImplicitlyOpen | ZoneState::Closed => start < zone.wp && zone.wp < end,
            }
        };
        let all = zones.len() == geometry.zones() as usize && (0..).zip(&zones).all(possible);
        all.then(|| Self::with(config, geometry, zones, appends))
    }

    fn with(config: &ZonedConfig, geometry: Geometry, zones: Vec<Zone>, appends: Appends) -> Self {
        let count = |what: fn(ZoneState) -> bool| {
            zones.iter().filter(|zone| what(zone.state)).count() as u32
        };
        Self {
            geometry,
            max_open: config.max_open,
            max_active: config.max_active,
            open: count(ZoneState::is_open),
            active: count(ZoneState::is_active),
            zones,
            changed: BTreeSet::new(),
            appends,
        }
    }

    /// Where zones begin and end.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Every zone, in order.
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// Appends that have been given a place, as far as they may come again.
    pub fn appends(&mut self) -> &mut Appends {
        &mut self.appends
    }

    /// A zone whose record is not what it was when this last returned it.
    pub fn next_changed(&mut self) -> Option<u32> {
        self.changed.pop_first()
    }

    /// May these sectors, at least one and all on the disk, be read?
    pub fn read(&self, sector: u64, sectors: u64) -> Result<(), ZoneFault> {
        self.one_zone(sector, sectors).map(drop)
    }

    /// Admit a write of at least one sector, all of them on the disk. `again`:
    /// a predecessor had it.
    pub fn write(&mut self, sector: u64, sectors: u64, again: bool) -> Result<Admitted, ZoneFault> {
        let Some(zone) = self.one_zone(sector, sectors)? else {
            return Ok(Admitted::Anywhere);
        };
        let Zone { wp, state, .. } = self.zones[zone as usize];
        if again && sector + sectors <= wp {
            return Ok(Admitted::Again);
        }
        if state == ZoneState::Full {
            return Err(ZoneFault::InvalidCommand);
        }
        if sector != wp {
            return Err(ZoneFault::UnalignedWritePointer);
        }
        self.advance(zone, sectors)?;
        Ok(Admitted::Advanced)
    }

    /// Admit an append of at least one sector to the zone that starts at
    /// `sector`; where it goes, and how it got in. `again`: a predecessor had
    /// it. Without an `id` it cannot be told from another.
    pub fn append(
        &mut self,
        sector: u64,
        sectors: u64,
        id: Option<AppendId>,
        again: bool,
    ) -> Result<(u64, Admitted), ZoneFault> {
        let zone = self.sequential(sector)?;
        let Zone { wp, state, .. } = self.zones[zone as usize];
        if let Some(id) = id.filter(|_| again)
            && let Some(before) = self.appends.find(id)
            // The intent is recorded before the write pointer: only with both
            // has it got in.
            && before.sectors == sectors
            && self.geometry.zone_of(before.sector) == zone
            && before.sector + sectors <= wp
        {
            return Ok((before.sector, Admitted::Again));
        }
        if state == ZoneState::Full || sectors > self.geometry.end(zone) - wp {
            return Err(ZoneFault::InvalidCommand);
        }
        self.advance(zone, sectors)?;
        if let Some(id) = id {
            self.appends.insert(id, Append { sector: wp, sectors });
        }
        Ok((wp, Admitted::Advanced))
    }

    /// Open the zone that starts at `sector`.
    pub fn open(&mut self, sector: u64) -> Result<(), ZoneFault> {
        let zone = self.sequential(sector)?;
        match self.zones[zone as usize].state {
            ZoneState::Full => Err(ZoneFault::InvalidCommand),
            _ => self.make_open(zone, ZoneState::ExplicitlyOpen),
        }
    }

    /// Close the zone that starts at `sector`. `again`: a predecessor may have
    /// done that, and an empty zone that was open is empty again then.
    pub fn close(&mut self, sector: u64, again: bool) -> Result<(), ZoneFault> {
        let zone = self.sequential(sector)?;
        match self.zones[zone as usize].state {
            ZoneState::Closed => {}
            ZoneState::Empty if again => {}
            state if state.is_open() => self.put_away(zone),
            _ => return Err(ZoneFault::InvalidCommand),
        }
        Ok(())
    }

    /// Fill up the zone that starts at `sector`.
    ///
    /// Closed and empty zones can be filled up, as in the standards that this
    /// model follows: a guest cannot know which zones we closed.
    pub fn finish(&mut self, sector: u64) -> Result<(), ZoneFault> {
        let zone = self.sequential(sector)?;
        let end = self.geometry.end(zone);
        self.set(zone, ZoneState::Full, end);
        Ok(())
    }

    /// Empty the zone that starts at `sector`. True if it held something, which
    /// is to be zeroed before anything is written there; then
    /// [`Zones::cleared`].
    pub fn reset(&mut self, sector: u64) -> Result<bool, ZoneFault> {
        let zone = self.sequential(sector)?;
        self.make_empty(zone);
        Ok(self.zones[zone as usize].clearing)
    }

    /// Empty every zone that can be. Those that held something are
    /// [`Zones::to_clear`].
    pub fn reset_all(&mut self) {
        for zone in self.geometry.conventional..self.geometry.zones() {
            self.make_empty(zone);
        }
    }

    /// Zones that were made empty and hold old content still.
    pub fn to_clear(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.zones).filter(|(_, zone)| zone.clearing).map(|(number, _)| number)
    }

    /// The content of an emptied zone is zeroed.
    pub fn cleared(&mut self, zone: u32) {
        self.zones[zone as usize].clearing = false;
        self.changed.insert(zone);
    }

    fn make_empty(&mut self, zone: u32) {
        let start = self.geometry.start(zone);
        let Zone { state, wp, .. } = self.zones[zone as usize];
        if state == ZoneState::Empty {
            return;
        }
        self.zones[zone as usize].clearing |= wp != start;
        self.set(zone, ZoneState::Empty, start);
        self.appends.forget_sectors(start..self.geometry.end(zone));
    }

    /// The zone that has all these sectors; `None` if they are in conventional
    /// zones.
    fn one_zone(&self, sector: u64, sectors: u64) -> Result<Option<u32>, ZoneFault> {
        if sectors == 0
            || sector >= self.geometry.capacity
            || sectors > self.geometry.capacity - sector
        {
            return Err(ZoneFault::InvalidCommand);
        }
        let (first, last) =
            (self.geometry.zone_of(sector), self.geometry.zone_of(sector + sectors - 1));
        match self.geometry.is_conventional(last) {
            true => Ok(None),
            false if first == last => Ok(Some(first)),
            false => Err(ZoneFault::InvalidCommand),
        }
    }

    /// The sequential zone that starts at `sector`.
    fn sequential(&self, sector: u64) -> Result<u32, ZoneFault> {
        if sector >= self.geometry.capacity {
            return Err(ZoneFault::InvalidCommand);
        }
        let zone = self.geometry.zone_of(sector);
        match self.geometry.start(zone) == sector && !self.geometry.is_conventional(zone) {
            true => Ok(zone),
            false => Err(ZoneFault::InvalidCommand),
        }
    }

    /// Move a write pointer over sectors that fit.
    fn advance(&mut self, zone: u32, sectors: u64) -> Result<(), ZoneFault> {
        if !self.zones[zone as usize].state.is_open() {
            self.make_open(zone, ZoneState::ImplicitlyOpen)?;
        }
        let Zone { state, wp, .. } = self.zones[zone as usize];
        // Whatever could not be zeroed stays where it is: nobody may zero it
        // later, under what is written now.
        self.zones[zone as usize].clearing = false;
        let wp = wp + sectors;
        let state = if wp == self.geometry.end(zone) { ZoneState::Full } else { state };
        self.set(zone, state, wp);
        Ok(())
    }

    /// Open a zone that is not full, or change nothing.
    fn make_open(&mut self, zone: u32, to: ZoneState) -> Result<(), ZoneFault> {
        let Zone { state, wp, .. } = self.zones[zone as usize];
        let has_room = |limit, used| limit == 0 || used < limit;
        // Of two limits that are in the way the document wants this one named.
        if !state.is_active() && !has_room(self.max_active, self.active) {
            return Err(ZoneFault::ActiveResource);
        }
        if !state.is_open() && !has_room(self.max_open, self.open) {
            let implicit = |zone: &Zone| zone.state == ZoneState::ImplicitlyOpen;
            let Some(other) = self.zones.iter().position(implicit) else {
                return Err(ZoneFault::OpenResource);
            };
            self.put_away(other as u32);
        }
        self.set(zone, to, wp);
        Ok(())
    }

    /// Close an open zone.
    fn put_away(&mut self, zone: u32) {
        let wp = self.zones[zone as usize].wp;
        let written = wp > self.geometry.start(zone);
        self.set(zone, if written { ZoneState::Closed } else { ZoneState::Empty }, wp);
    }

    fn set(&mut self, zone: u32, state: ZoneState, wp: u64) {
        let it = &mut self.zones[zone as usize];
        let before = it.state;
        if (before, it.wp) == (state, wp) {
            return;
        }
        (it.state, it.wp) = (state, wp);
        let moved = |count: u32, of: fn(ZoneState) -> bool| {
            count - u32::from(of(before)) + u32::from(of(state))
        };
        self.open = moved(self.open, ZoneState::is_open);
        self.active = moved(self.active, ZoneState::is_active);
        self.changed.insert(zone);
    }
}
