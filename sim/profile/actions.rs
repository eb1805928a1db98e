//! From a profile to what happens in a run.

use super::{Profile, Rates, Workload};
use crate::choices::{Component, Ratio, Stream};
use crate::disk::faults::{Family as FaultFamily, draw, draw_timed};
use crate::guest::Sabotage;
use crate::scenario::{Action, Control, Fate, KillAt, Migrate, Request, Successor, Trouble};
use crate::topology::Topology;
use crate::trace::Verb;

impl Profile {
    /// What happens, as a number has it.
    pub fn actions(&self, number: u64) -> Vec<Action> {
        let mut s = Stream::new(number, Component::Action);
        let Self { topology, rates } = self;
        let mut actions = Vec::new();
        actions.extend((0..rates.kills).map(|_| kill(&mut s, rates)));
        actions.extend(
            (0..rates.pauses).map(|_| Action::Pause { after: s.range("pause.after", 1, 3_000) }),
        );
        actions.extend((0..rates.breaks).map(|_| connection(&mut s, Family::Break)));
        actions.extend((0..rates.stalls).map(|_| connection(&mut s, Family::Stall)));
        actions.extend((0..rates.gone).map(|_| connection(&mut s, Family::Gone)));
        actions.extend((0..rates.migrations).map(|_| Action::Migrate(migrate(&mut s, rates))));
        actions.extend((0..rates.controls).map(|_| control(&mut s, topology, rates)));
        let mut writer = Writer { topology, rates, next: 0 };
        for _ in 0..rates.requests {
            let vring = s.below("vring", topology.queues.into()) as u16;
            if s.chance("rest", rates.rests) {
                let us = *s.pick("rest.us", &[50, 500, 5_000]);
                actions.push(Action::Rest { vring, us });
            }
            if s.chance("kick.odd", rates.odd_kicks) {
                actions.push(Action::Kick { vring, lost: s.below("kick.lost", 2) == 1 });
            }
            actions.push(Action::Request(writer.request(&mut s, vring)));
        }
        for _ in 0..rates.sabotage {
            let vring = s.below("sabotage.vring", topology.queues.into()) as u16;
            let how = *s.pick("sabotage.how", &Sabotage::ALL);
            let at = s.below("sabotage.at", actions.len() as u64 + 1);
            actions.insert(at as usize, Action::Sabotage { vring, how });
        }
        actions.extend(faults(&mut s, rates));
        actions
    }
}

/// Microseconds in which most runs are over.
const SPAN: u64 = 8_000;

fn faults(s: &mut Stream, rates: &Rates) -> Vec<Action> {
    let lies = rates.lying_flush.then_some(FaultFamily::LyingFlush);
    let families: Vec<FaultFamily> = FaultFamily::DRAWN.into_iter().chain(lies).collect();
    let on = draw(s, &families, rates.disk_faults, rates.requests);
    let at = draw_timed(s, &families, rates.disk_faults, SPAN);
    let on = on.into_iter().map(|(nth, fault)| Action::Fault { nth, fault });
    on.chain(at.into_iter().map(|(after, fault)| Action::TimedFault { after, fault })).collect()
}

fn kill(s: &mut Stream, rates: &Rates) -> Action {
    let at = if s.chance("kill.gentle", rates.gentle) {
        KillAt::Asked { after: s.range("kill.after", 1, 4_000) }
    } else if s.chance("kill.idle", rates.kill_idle) {
        KillAt::Idle { after: s.range("kill.after", 1, 4_000) }
    } else {
        KillAt::Stores(s.below("kill.stores", rates.kill_stores))
    };
    let other = s.chance("successor", rates.successors);
    let next =
        if other { *s.pick("successor.kind", &Successor::ALL[1..]) } else { Successor::Same };
    Action::Kill { at, next }
}

fn control(s: &mut Stream, topology: &Topology, rates: &Rates) -> Action {
    let after = s.range("control.after", 1, rates.controls_apart);
    let vring = s.below("control.vring", topology.queues.into()) as u16;
    let what = match s.below("control", 18) {
        0..4 => Control::Call(vring),
        4..8 => Control::Kick(vring),
        8 => Control::Err(vring),
        9 | 10 => Control::Disable { vring, us: *s.pick("disable.for", &[1, 20, 200, 1_000]) },
        11 | 12 => Control::Memory,
        13 => match s.below("control.log", 3) {
            0 => Control::NoLog,
            _ => Control::Log,
        },
        14 => Control::Cache(s.below("control.cache", 2) == 1),
        15 => Control::Refused,
        _ => Control::Reset,
    };
    Action::Control { after, what }
}

enum Family {
    Break,
    Stall,
    Gone,
}

fn connection(s: &mut Stream, family: Family) -> Action {
    let after = s.range("connection.after", 1, 3_000);
    let us = *s.pick("connection.for", &[5, 50, 500, 5_000]);
    let trouble = match family {
        Family::Break => Trouble::Break { lag: us, back_first: s.below("back.first", 2) == 1 },
        Family::Stall => Trouble::Stall { us },
        Family::Gone => Trouble::Gone { us: 10 * us },
    };
    Action::Connection { after, trouble }
}

fn migrate(s: &mut Stream, rates: &Rates) -> Migrate {
    let after = s.range("migrate.after", 1, rates.apart);
    let fate = if s.chance("broken off", rates.aborts) {
        match s.below("fate", 7) {
            0 | 1 => Fate::BrokenOffInRound(s.below("fate.round", 3)),
            2 => Fate::BrokenOffAtRest,
            3 | 4 => Fate::LinkLost,
            5 => Fate::Refused,
            _ => Fate::SourceWakes(*s.pick("wakes", &[20, 500, 5_000])),
        }
    } else {
        Fate::Completes
    };
    Migrate { after, fate }
}

/// Reads and writes are common, the rest is there.
const VERBS: [Verb; 16] = [
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Read,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Write,
    Verb::Flush,
    Verb::Flush,
    Verb::WriteZeroes,
    Verb::Discard,
    Verb::GetId,
];
const FLUSHES: [Verb; 5] = [Verb::Write, Verb::Flush, Verb::Write, Verb::Flush, Verb::Read];
const DISCARDS: [Verb; 5] =
    [Verb::Read, Verb::Write, Verb::Discard, Verb::WriteZeroes, Verb::Discard];

/// Makes up requests.
struct Writer<'a> {
    topology: &'a Topology,
    rates: &'a Rates,
    /// Where a sequential guest goes on.
    next: u64,
}

impl Writer<'_> {
    fn request(&mut self, s: &mut Stream, vring: u16) -> Request {
        if s.chance("bad", self.rates.bad) {
            return self.bad(s, vring);
        }
        let verbs = match self.rates.workload {
            Workload::FlushHeavy => &FLUSHES[..],
            Workload::DiscardHeavy => &DISCARDS,
            _ => &VERBS,
        };
        let verb = *s.pick("verb", verbs);
        // Without FLUSH the driver has no flush to send.
        let verb = if verb == Verb::Flush && !self.topology.flush { Verb::Write } else { verb };
        let (sector, sectors) = self.range(s);
        let (sector, sectors) = match verb {
            Verb::Flush | Verb::GetId | Verb::Unknown => (0, 0),
            _ => (sector, sectors),
        };
        let flags = if verb == Verb::WriteZeroes { s.below("unmap", 2) as u32 } else { 0 };
        Request { vring, verb, sector, sectors, flags, short: false, times: 1 }
    }

    fn range(&mut self, s: &mut Stream) -> (u64, u64) {
        let disk = self.topology.sectors;
        let sectors = s.range("len", 1, self.topology.max_sectors);
        let hot = self.rates.hot_sectors.max(sectors).min(disk);
        let area = match self.rates.workload {
            Workload::Random => disk,
            Workload::Overlapping => (2 * sectors).min(disk),
            Workload::Sequential => {
                let sector = if self.next + sectors > disk { 0 } else { self.next };
                self.next = sector + sectors;
                return (sector, sectors);
            }
            _ if s.chance("hot", Ratio::new(1, 2)) => hot,
            _ => disk,
        };
        (s.below("sector", area - sectors + 1), sectors)
    }

    /// Requests a device has to refuse.
    // spec: virtio 1.2, "Block Device", "Device Requirements: Device Operation"
    fn bad(&mut self, s: &mut Stream, vring: u16) -> Request {
        let (sector, sectors) = self.range(s);
        let beyond = self.topology.sectors - s.below("beyond", sectors);
        let (verb, sector, flags, short) = match s.below("bad.kind", 7) {
            0 => (Verb::Read, beyond, 0, false),
            1 => (Verb::Write, beyond, 0, false),
            2 => (Verb::Write, sector, 0, true),
            3 => (Verb::WriteZeroes, u64::MAX - 3, 0, false),
            4 => (Verb::Discard, sector, 1, false),
            5 => (Verb::WriteZeroes, sector, 6, false),
            _ => (Verb::Unknown, sector, 0, false),
        };
        Request { vring, verb, sector, sectors, flags, short, times: 1 }
    }
}

#[cfg(test)]
mod tests {
    use crate::oracle::Expect;
    use crate::profile::{Profile, ProfileName};
    use crate::scenario::Action;

    #[test]
    fn actions_stay_on_the_disk_unless_they_are_meant_not_to() {
        let mut good = 0u32;
        for number in 0..100 {
            let profile = Profile::draw(ProfileName::Mixed, number);
            for action in profile.actions(number) {
                let Action::Request(request) = action else { continue };
                assert!(request.vring < profile.topology.queues);
                if request.expect(profile.topology.sectors) == Expect::Ok {
                    good += 1;
                    assert!(request.sector + request.sectors <= profile.topology.sectors);
                }
            }
        }
        assert!(good > 1_000);
    }
}
