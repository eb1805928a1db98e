//! Zones against a model that counts everything anew, and against crashes.

#![allow(clippy::disallowed_types)]

use midflight::blk::zones::{
    Admitted, Append, AppendId, Appends, Geometry, ZoneFault, ZoneState, ZonedConfig, Zones, record,
};
use proptest::prelude::*;
use std::collections::BTreeMap;

const CONFIG: ZonedConfig = ZonedConfig {
    zone_sectors: 16,
    conventional: 1,
    max_open: 2,
    max_active: 3,
    max_append_sectors: 16,
};
/// One conventional zone, five whole ones, and one of 8 sectors.
const CAPACITY: u64 = 6 * 16 + 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Empty,
    Implicit,
    Explicit,
    Closed,
    Full,
}

/// What the document says, zone by zone, without any counter.
struct Model(Vec<(How, u64)>);

impl Model {
    fn new() -> Self {
        Self(vec![(How::Empty, 0); 7])
    }

    fn size(zone: usize) -> u64 {
        if zone == 6 { 8 } else { 16 }
    }

    fn count(&self, states: &[How]) -> usize {
        self.0.iter().filter(|(how, _)| states.contains(how)).count()
    }

    fn settle(how: How, written: u64) -> How {
        match how {
            How::Implicit | How::Explicit if written == 0 => How::Empty,
            How::Implicit | How::Explicit => How::Closed,
            other => other,
        }
    }

    fn open(&mut self, zone: usize, as_how: How) -> Result<(), ZoneFault> {
        let how = self.0[zone].0;
        let active = self.count(&[How::Implicit, How::Explicit, How::Closed]);
        if how == How::Empty && active == 3 {
            return Err(ZoneFault::ActiveResource);
        }
        let is_open = matches!(how, How::Implicit | How::Explicit);
        if !is_open && self.count(&[How::Implicit, How::Explicit]) == 2 {
            let other = self.0.iter().position(|(how, _)| *how == How::Implicit);
            let Some(other) = other else { return Err(ZoneFault::OpenResource) };
            let (how, written) = self.0[other];
            self.0[other].0 = Self::settle(how, written);
        }
        self.0[zone].0 = as_how;
        Ok(())
    }

    fn write(&mut self, sector: u64, sectors: u64) -> Result<(), ZoneFault> {
        let (zone, offset) = ((sector / 16) as usize, sector % 16);
        if sector + sectors <= 16 {
            return Ok(());
        }
        if zone == 0 || offset + sectors > 16 {
            return Err(ZoneFault::InvalidCommand);
        }
        let (how, written) = self.0[zone];
        if how == How::Full {
            return Err(ZoneFault::InvalidCommand);
        }
        if offset != written {
            return Err(ZoneFault::UnalignedWritePointer);
        }
        if how != How::Explicit {
            self.open(zone, How::Implicit)?;
        }
        self.0[zone].1 += sectors;
        if self.0[zone].1 == Self::size(zone) {
            self.0[zone].0 = How::Full;
        }
        Ok(())
    }

    fn target(sector: u64) -> Result<usize, ZoneFault> {
        let fits = (16..CAPACITY).contains(&sector) && sector.is_multiple_of(16);
        fits.then_some((sector / 16) as usize).ok_or(ZoneFault::InvalidCommand)
    }

    fn append(&mut self, sector: u64, sectors: u64) -> Result<u64, ZoneFault> {
        let zone = Self::target(sector)?;
        let (_, written) = self.0[zone];
        if written + sectors > Self::size(zone) {
            return Err(ZoneFault::InvalidCommand);
        }
        self.write(sector + written, sectors)?;
        Ok(sector + written)
    }

    fn act(&mut self, action: u8, sector: u64) -> Result<(), ZoneFault> {
        let zone = Self::target(sector)?;
        let (how, written) = self.0[zone];
        match action {
            0 if how == How::Full => Err(ZoneFault::InvalidCommand),
            0 => self.open(zone, How::Explicit),
            1 if matches!(how, How::Empty | How::Full) => Err(ZoneFault::InvalidCommand),
            1 => {
                self.0[zone].0 = Self::settle(how, written);
                Ok(())
            }
            2 => {
                self.0[zone] = (How::Full, Self::size(zone));
                Ok(())
            }
            _ => {
                self.0[zone] = (How::Empty, 0);
                Ok(())
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64),
    /// At the write pointer of a zone.
    Next(u64, u64),
    Append(u64, u64),
    Act(u8, u64),
    ResetAll,
}

fn step() -> impl Strategy<Value = Step> {
    let zone = || (0..7u64).prop_map(|zone| zone * 16);
    let len = || prop_oneof![3 => 1..5u64, 1 => 1..17u64];
    prop_oneof![
        2 => (0..CAPACITY, len()).prop_map(|(at, len)| Step::Write(at, len.min(CAPACITY - at))),
        6 => (1..7u64, len()).prop_map(|(zone, len)| Step::Next(zone, len)),
        4 => (zone(), len()).prop_map(|(at, len)| Step::Append(at, len)),
        1 => (0..CAPACITY + 9, len()).prop_map(|(at, len)| Step::Append(at, len)),
        5 => (0..4u8, zone()).prop_map(|(action, at)| Step::Act(action, at)),
        1 => (0..4u8, 0..CAPACITY + 9).prop_map(|(action, at)| Step::Act(action, at)),
        1 => Just(Step::ResetAll),
    ]
}

fn same(zones: &Zones, model: &Model) -> Result<(), TestCaseError> {
    for (zone, (how, written)) in model.0.iter().enumerate() {
        let found = zones.zones()[zone];
        let state = match how {
            _ if zone == 0 => ZoneState::NotWritePointer,
            How::Empty => ZoneState::Empty,
            How::Implicit => ZoneState::ImplicitlyOpen,
            How::Explicit => ZoneState::ExplicitlyOpen,
            How::Closed => ZoneState::Closed,
            How::Full => ZoneState::Full,
        };
        prop_assert_eq!(found.state, state, "zone {}", zone);
        prop_assert_eq!(found.wp, zone as u64 * 16 + written, "zone {}", zone);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    #[test]
    fn zones_do_what_a_model_that_counts_anew_does(steps in prop::collection::vec(step(), 1..60)) {
        let (mut zones, mut model) = (Zones::empty(&CONFIG, CAPACITY), Model::new());
        for step in steps {
            match step {
                Step::Write(at, len) => {
                    prop_assert_eq!(zones.write(at, len, false).map(drop), model.write(at, len));
                }
                Step::Next(zone, len) => {
                    let at = zones.zones()[zone as usize].wp;
                    if at < CAPACITY {
                        let len = len.min(CAPACITY - at);
                        let got = zones.write(at, len, false).map(drop);
                        prop_assert_eq!(got, model.write(at, len), "{}+{}", at, len);
                    }
                }
                Step::Append(at, len) => {
                    let got = zones.append(at, len, None, false).map(|(at, _)| at);
                    prop_assert_eq!(got, model.append(at, len), "{}+{}", at, len);
                }
                Step::Act(action, at) => {
                    let got = match action {
                        0 => zones.open(at),
                        1 => zones.close(at, false),
                        2 => zones.finish(at),
                        _ => zones.reset(at).map(drop),
                    };
                    prop_assert_eq!(got, model.act(action, at), "{} at {}", action, at);
                }
                Step::ResetAll => {
                    zones.reset_all();
                    (1..7).for_each(|zone| model.0[zone] = (How::Empty, 0));
                }
            }
            same(&zones, &model)?;
        }
    }
}

/// The file of records as bytes, of which only the first so many stores happen.
#[derive(Default)]
struct File {
    zones: BTreeMap<u32, [u8; record::ZONE]>,
    appends: Vec<[u8; record::APPEND]>,
    stores_left: Option<u32>,
}

impl File {
    fn alive(&mut self) -> bool {
        match &mut self.stores_left {
            None => true,
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
        }
    }

    /// In the order that the module asks for. True if nobody died.
    fn save(&mut self, zones: &mut Zones) -> bool {
        while let Some((slot, append)) = zones.appends().next_changed() {
            if !self.alive() {
                return false;
            }
            let at = slot as usize;
            if self.appends.len() <= at {
                self.appends.resize(at + 1, [0; record::APPEND]);
            }
            self.appends[at] = record::append(slot, append.as_ref());
        }
        while let Some(zone) = zones.next_changed() {
            if !self.alive() {
                return false;
            }
            self.zones.insert(zone, record::zone(zone, &zones.zones()[zone as usize]));
        }
        true
    }

    fn load(&self) -> Zones {
        let zones = self.zones.iter().map(|(n, bytes)| record::read_zone(*n, bytes).unwrap());
        let appends = (0..).zip(&self.appends).map(|(n, bytes)| record::read_append(n, bytes));
        Zones::restore(&CONFIG, CAPACITY, zones.collect(), Appends::restore(appends))
            .expect("zones that can be")
    }
}

/// A request of the guest that it has had no answer to.
#[derive(Clone, Copy, Debug)]
struct Open {
    zone: u64,
    /// `None`: an append.
    sector: Option<u64>,
    len: u64,
    head: u16,
    order: u64,
}

impl Open {
    fn admit(&self, zones: &mut Zones, again: bool) -> Result<(u64, Admitted), ZoneFault> {
        match self.sector {
            Some(at) => zones.write(at, self.len, again).map(|how| (at, how)),
            None => {
                let id = AppendId { vring: 0, head: self.head, order: self.order };
                zones.append(self.zone * 16, self.len, Some(id), again)
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, ..ProptestConfig::default() })]

    /// A guest that obeys the rules writes and appends, several at a time. The
    /// daemon dies between any two stores to its file, again and again; what has
    /// no answer is submitted again. Everything succeeds, nothing is twice in a
    /// zone, and no two things are at the same place.
    #[test]
    fn zones_what_is_submitted_again_after_a_crash_succeeds_and_is_there_once(
        lives in prop::collection::vec(
            (0..12u32, prop::collection::vec((1..3u64, any::<bool>(), 1..4u64, any::<bool>()), 0..12)),
            1..5,
        )
    ) {
        let mut file = File::default();
        let mut zones = Zones::empty(&CONFIG, CAPACITY);
        for (n, zone) in (0..).zip(zones.zones()) {
            file.zones.insert(n, record::zone(n, zone));
        }
        // What the guest knows: sectors asked of each zone, and what is where.
        let mut asked = [0u64; 3];
        let mut open: Vec<Open> = Vec::new();
        let mut placed: Vec<(u64, u64)> = Vec::new();
        let mut order = 0;
        for (stores, steps) in lives {
            file.stores_left = Some(stores);
            let mut alive = true;
            for request in &open {
                alive = alive && {
                    let admitted = request.admit(&mut zones, true);
                    prop_assert!(admitted.is_ok(), "{:?}: {:?}", request, admitted);
                    file.save(&mut zones)
                };
            }
            for (zone, append, len, answer) in steps {
                if !alive {
                    break;
                }
                if asked[zone as usize] + len > 16 {
                    continue;
                }
                // An append and a write at once would be a guest that does not
                // know where the write pointer is.
                if open.iter().any(|o| o.zone == zone && o.sector.is_some() == append) {
                    continue;
                }
                let used: Vec<u16> = open.iter().map(|o| o.head).collect();
                let head = (0..).find(|head| !used.contains(head)).unwrap();
                let sector = (!append).then_some(zone * 16 + asked[zone as usize]);
                asked[zone as usize] += len;
                order += 1;
                open.push(Open { zone, sector, len, head, order });
                let request = *open.last().unwrap();
                let admitted = request.admit(&mut zones, false);
                prop_assert!(admitted.is_ok(), "{:?}: {:?}", request, admitted);
                alive = file.save(&mut zones);
                if alive && answer {
                    let at = open.pop().unwrap().sector.unwrap_or(admitted.unwrap().0);
                    placed.push((at, len));
                }
            }
            zones = file.load();
        }
        file.stores_left = None;
        for request in open {
            let (at, _) = request.admit(&mut zones, true).unwrap();
            prop_assert!(file.save(&mut zones));
            placed.push((at, request.len));
        }
        placed.sort_unstable();
        for pair in placed.windows(2) {
            prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0, "{:?}", placed);
        }
        for zone in 1..3u64 {
            let wp = file.load().zones()[zone as usize].wp;
            prop_assert_eq!(wp, zone * 16 + asked[zone as usize], "zone {}", zone);
        }
    }
}

#[test]
fn zones_a_write_that_comes_again_is_taken_behind_the_write_pointer_only() {
    let mut zones = Zones::empty(&CONFIG, CAPACITY);
    assert_eq!(zones.write(16, 8, false), Ok(Admitted::Advanced));
    assert_eq!(zones.write(16, 8, false), Err(ZoneFault::UnalignedWritePointer));
    assert_eq!(zones.write(16, 8, true), Ok(Admitted::Again));
    assert_eq!(zones.write(20, 4, true), Ok(Admitted::Again));
    assert_eq!(zones.write(20, 8, true), Err(ZoneFault::UnalignedWritePointer));
    assert_eq!(zones.write(24, 8, true), Ok(Admitted::Advanced));
    assert_eq!(zones.write(24, 8, true), Ok(Admitted::Again), "the zone is full now");
    zones.reset(16).unwrap();
    assert_eq!(zones.write(24, 8, true), Err(ZoneFault::UnalignedWritePointer));
}

#[test]
fn zones_an_append_is_known_again_by_its_counter_until_its_vring_begins_anew() {
    let id = |order| Some(AppendId { vring: 1, head: 4, order });
    let mut zones = Zones::empty(&CONFIG, CAPACITY);
    assert_eq!(zones.append(32, 10, id(7), false), Ok((32, Admitted::Advanced)));
    assert_eq!(zones.append(32, 10, id(7), true), Ok((32, Admitted::Again)), "no room for another");
    assert_eq!(zones.append(32, 10, id(8), true), Err(ZoneFault::InvalidCommand));
    assert_eq!(zones.append(32, 2, id(7), true), Ok((42, Admitted::Advanced)), "of another size");
    zones.appends().forget_vring(0);
    assert_eq!(zones.append(32, 2, id(7), true), Ok((42, Admitted::Again)));
    zones.appends().forget_vring(1);
    assert_eq!(zones.append(32, 2, id(7), true), Ok((44, Admitted::Advanced)));
    zones.reset(32).unwrap();
    assert_eq!(zones.append(32, 2, id(7), true), Ok((32, Admitted::Advanced)), "it is gone");
}

#[test]
fn zones_of_which_both_limits_are_reached_name_the_active_one() {
    let mut zones = Zones::empty(&CONFIG, CAPACITY);
    zones.open(16).unwrap();
    zones.open(32).unwrap();
    assert_eq!(zones.open(48), Err(ZoneFault::OpenResource), "explicitly open zones stay so");
    assert_eq!(zones.write(48, 1, false), Err(ZoneFault::OpenResource));
    zones.write(16, 1, false).unwrap();
    zones.close(16, false).unwrap();
    zones.open(48).unwrap();
    assert_eq!(zones.open(64), Err(ZoneFault::ActiveResource));
    assert_eq!(zones.close(64, false), Err(ZoneFault::InvalidCommand));
    assert_eq!(zones.close(64, true), Ok(()), "a predecessor may have closed it");
    zones.finish(16).unwrap();
    assert_eq!(zones.open(64), Err(ZoneFault::OpenResource));
    assert!(zones.reset(16).unwrap(), "it held something");
    assert!(!zones.reset(32).unwrap());
    assert_eq!(zones.to_clear().collect::<Vec<_>>(), [1]);
    zones.write(16, 1, false).unwrap();
    assert_eq!(zones.to_clear().count(), 0, "nothing is zeroed under what is new");
}

#[test]
fn zones_end_where_the_disk_does() {
    let mut zones = Zones::empty(&CONFIG, CAPACITY);
    for (sector, sectors) in
        [(CAPACITY, 1), (CAPACITY - 8, 9), (0, u64::MAX), (u64::MAX, 2), (0, 0)]
    {
        assert_eq!(zones.write(sector, sectors, false), Err(ZoneFault::InvalidCommand));
        assert_eq!(zones.read(sector, sectors), Err(ZoneFault::InvalidCommand));
    }
    assert_eq!(zones.append(u64::MAX, 1, None, false), Err(ZoneFault::InvalidCommand));
    assert_eq!(zones.write(CAPACITY - 8, 8, false), Ok(Admitted::Advanced));
}

#[test]
fn zones_that_contradict_themselves_are_not_restored() {
    let good = Zones::empty(&CONFIG, CAPACITY).zones().to_vec();
    let restore = |zones| Zones::restore(&CONFIG, CAPACITY, zones, Appends::default()).is_some();
    assert!(restore(good.clone()));
    assert!(!restore(good[1..].to_vec()));
    for (zone, state, wp) in [
        (0, ZoneState::Empty, 0),
        (1, ZoneState::NotWritePointer, 16),
        (1, ZoneState::Empty, 17),
        (1, ZoneState::Full, 31),
        (1, ZoneState::Closed, 16),
        (1, ZoneState::ImplicitlyOpen, 32),
        (1, ZoneState::ExplicitlyOpen, 15),
    ] {
        let mut bad = good.clone();
        (bad[zone].state, bad[zone].wp) = (state, wp);
        assert!(!restore(bad), "{state:?} at {wp}");
    }
    let geometry: Geometry = CONFIG.geometry(CAPACITY);
    assert_eq!((geometry.zones(), geometry.end(6)), (7, CAPACITY));
    let append = Append { sector: 1, sectors: 1 };
    let id = AppendId { vring: 0, head: 0, order: 0 };
    let twice = [Some((id, append)), Some((id, Append { sector: 9, sectors: 1 }))];
    let mut zones =
        Zones::restore(&CONFIG, CAPACITY, good, Appends::restore(twice.into_iter())).unwrap();
    let next = AppendId { vring: 0, head: 9, order: 3 };
    zones.append(16, 1, Some(next), false).unwrap();
    let (slot, _) = zones.appends().next_changed().unwrap();
    assert_eq!(slot, 1, "the second of two that cannot both be is given away");
}
