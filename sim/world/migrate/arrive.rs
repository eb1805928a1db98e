//! The destination: what has come is judged, adopted and run.

use super::{Image, Stage};
use crate::guest::memory::REGIONS;
use crate::memory::PAGE;
use crate::oracle::{Pair, Violation};
use crate::scenario::Fate;
use crate::trace::Moving;
use crate::world::World;
use crate::world::objects::Object;
use midflight::frontend::Command;
use midflight::migration::InflightSubsection;

impl World<'_> {
    /// Everything is at the destination: judge it, adopt it, run it.
    pub(in crate::world) fn arrive(&mut self, attempt: u64) -> Result<(), Violation> {
        let m = self.migrating();
        let source = m.source;
        if m.attempt != attempt || m.stage != Stage::InTransit {
            return Ok(());
        }
        let (fate, open) = (m.fate, m.open);
        let Some(Image { state, stream }) = m.image.take() else { return Ok(()) };
        self.focus(1 - source);
        // A back-end that cannot carry the device is no destination.
        if fate == Fate::Refused || self.here.front.unfit {
            self.say_moving(Moving::Refused, 0, 0);
            self.focus(source);
            return self.break_off();
        }
        let pages = self.compare(open)?;
        self.migrating().stage = Stage::Arriving;
        self.move_guest();
        let mut handle = None;
        if let Some(stream) = stream {
            let (sent, _) = InflightSubsection::decode(&stream, 0)
                .map_err(|e| Violation::new("stream", e.to_string()))?;
            let id = self.arena.region(sent.region.len() as u64);
            self.arena.put(id, 0, sent.region);
            self.watch_region(id);
            let object = self.objects.add(Object::Memory(id));
            handle = Some(self.here.front.handles.open(object));
        }
        self.here.front.set_bases_known(state.bases.iter().all(Option::is_some));
        self.front_command(Command::Adopt { state, inflight: handle })?;
        let inflight = self.region_flags();
        self.say_moving(Moving::Arrives, pages, inflight);
        self.check_whole_region()?;
        let wakes = matches!(fate, Fate::SourceWakes(_));
        if !wakes && self.migrating().stream.below("leave at once", 2) == 0 {
            self.focus(source);
            self.leave()?;
            self.focus(1 - source);
        }
        self.front_go()
    }

    /// Memory of the destination against what the source last held.
    fn compare(&self, open: bool) -> Result<u64, Violation> {
        let Some(there) = &self.there else { return Ok(0) };
        let ids = there.guest_memory.ids.into_iter().zip(self.here.guest_memory.ids);
        let mut pages = 0;
        for (region, (from, to)) in REGIONS.iter().zip(ids) {
            self.arena.each_pair([from, to], |offset, [source, destination]| {
                let pair = Pair { guest: region.guest + offset, source, destination };
                self.oracle.borrow().check_arrival(&pair, open)
            })?;
            pages += region.size / PAGE as u64;
        }
        Ok(pages)
    }

    /// The guest is on the host in focus now; calls it has not seen come along.
    fn move_guest(&mut self) {
        let missed: Vec<bool> =
            self.there.iter().flat_map(|t| &t.calls).map(|c| c.count > 0).collect();
        let mut guest = self.guest.borrow_mut();
        guest.move_to(self.here.guest_memory.mem.clone());
        for (vring, _) in (0u16..).zip(missed).filter(|(_, missed)| *missed) {
            guest.set_missed(vring);
        }
        drop(guest);
        for counter in self.there.iter_mut().flat_map(|t| &mut t.calls) {
            counter.count = 0;
        }
        self.guest_at = self.here.id;
    }

    /// Vrings run on the host in focus.
    pub(in crate::world) fn on_running(&mut self) {
        let (now, here, guest_at) = (self.now(), self.here.id, self.guest_at);
        let Some(m) = self.migration.as_mut() else { return };
        if m.stage != Stage::Arriving || here != guest_at {
            return;
        }
        m.stage = Stage::Idle;
        let (fate, downtime) = (m.fate, now - m.paused_at);
        if let Fate::SourceWakes(us) = fate {
            self.plan_wake(us);
        }
        self.stats.arrivals += 1;
        self.stats.downtime += downtime;
        self.stats.downtime_max = self.stats.downtime_max.max(downtime);
        self.say_moving(Moving::Runs, downtime, 0);
        self.plan_migration();
    }
}
