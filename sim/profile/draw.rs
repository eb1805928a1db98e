//! From a number to a profile.

use super::{Profile, ProfileName, Rates, Workload};
use crate::choices::{Component, Ratio, Stream};
use crate::disk::Pace;
use crate::topology::{Migration, Policy, Ring, Topology};

const HALF: Ratio = Ratio::new(1, 2);

impl Profile {
    /// The profile of a seed.
    pub fn draw(name: ProfileName, number: u64) -> Self {
        let mut s = Stream::new(number, Component::Profile);
        let mut profile = Self { topology: topology(&mut s), rates: rates(&mut s) };
        let moves = match name {
            ProfileName::Quiet => false,
            ProfileName::Mixed => s.chance("migrates", Ratio::new(1, 4)),
            ProfileName::Migration => true,
            ProfileName::Storm => s.chance("migrates", HALF),
            ProfileName::Hostile | ProfileName::Control => s.chance("migrates", Ratio::new(1, 4)),
        };
        if moves {
            migrates(&mut s, &mut profile);
        }
        match name {
            ProfileName::Quiet => {
                let Rates { requests, workload, hot_sectors, .. } = profile.rates;
                profile.rates = Rates { workload, hot_sectors, ..Rates::quiet(requests) };
            }
            ProfileName::Mixed | ProfileName::Migration => {}
            ProfileName::Storm => storm(&mut s, &mut profile),
            ProfileName::Hostile => hostile(&mut s, &mut profile.rates),
            ProfileName::Control => controls(&mut s, &mut profile.rates),
        }
        ring(&mut s, &mut profile.topology);
        profile
    }
}

fn topology(s: &mut Stream) -> Topology {
    let queues = *s.pick("queues", &[1, 1, 1, 2, 3, 4]);
    let ring_size = *s.pick("ring_size", &[16, 16, 8, 32, 64]);
    let first_index = match s.below("first_index", 4) {
        0 | 1 => 0,
        2 => s.range("first_index.small", 1, 200),
        _ => s.range("first_index.wrap", 65_400, 65_535),
    };
    Topology {
        ring: Ring::Split,
        queues,
        ring_size,
        region_size: ring_size << s.below("region_size", 2),
        first_index: first_index as u16,
        event_idx: s.chance("event_idx", HALF),
        indirect: s.chance("indirect", HALF),
        in_order: false,
        flush: s.chance("flush", Ratio::new(3, 4)),
        reply_ack: s.chance("reply_ack", Ratio::new(3, 4)),
        mem_slots: s.chance("mem_slots", HALF),
        polled: s.chance("polled", Ratio::new(1, 10)),
        first_kick: s.chance("first_kick", HALF),
        sectors: *s.pick("sectors", &[64, 256, 1024]),
        pace: *s.pick("pace", &Pace::ALL),
        disk_errors: *s
            .pick("disk_errors", &[Ratio::NEVER, Ratio::NEVER, Ratio::NEVER, Ratio::new(1, 20)]),
        gather: *s.pick("gather", &[0, 5, 50, 400]),
        depth: s.range("depth", 1, 24),
        batch: s.range("batch", 1, 6),
        max_sectors: *s.pick("max_sectors", &[1, 4, 8, 16]),
        split: *s.pick("split", &[Ratio::NEVER, Ratio::new(1, 3)]),
        races: *s.pick("races", &[Ratio::NEVER, Ratio::new(1, 20), Ratio::new(1, 3)]),
        migration: None,
    }
}

/// Packed rings are of any size.
fn ring(s: &mut Stream, topology: &mut Topology) {
    topology.ring = *s.pick("ring", &[Ring::Split, Ring::Split, Ring::Packed]);
    if topology.ring == Ring::Packed {
        let size = *s.pick("ring.size", &[16, 12, 7, 5, 33, 64]);
        let more = *s.pick("ring.region", &[0, 0, 1, size]);
        (topology.ring_size, topology.region_size) = (size, size + more);
    }
}

fn rates(s: &mut Stream) -> Rates {
    // Some of everything is what most runs ask for.
    let special = s.chance("workload.special", Ratio::new(1, 3));
    let kills = s.chance("kills.on", Ratio::new(4, 5));
    let pauses = s.chance("pauses.on", Ratio::new(1, 3));
    let breaks = s.chance("breaks.on", Ratio::new(1, 4));
    let requests = s.range("requests", 20, 140);
    Rates {
        workload: if special { *s.pick("workload", &Workload::ALL) } else { Workload::Mixed },
        hot_sectors: s.range("hot_sectors", 4, 48),
        bad: *s.pick("bad", &[Ratio::NEVER, Ratio::new(1, 12)]),
        rests: *s.pick("rests", &[Ratio::NEVER, Ratio::NEVER, Ratio::new(1, 10)]),
        kills: if kills { s.range("kills", 1, 8) } else { 0 },
        kill_stores: *s.pick("kill_stores", &[10, 40, 200]),
        kill_idle: *s.pick("kill_idle", &[Ratio::NEVER, Ratio::new(1, 4), Ratio::new(1, 1)]),
        gentle: *s.pick("gentle", &[Ratio::NEVER, Ratio::new(1, 4)]),
        pauses: if pauses { s.range("pauses", 1, 3) } else { 0 },
        breaks: if breaks { s.range("breaks", 1, 2) } else { 0 },
        ..Rates::quiet(requests)
    }
}

fn migrates(s: &mut Stream, profile: &mut Profile) {
    let Profile { topology, rates } = profile;
    topology.migration = Some(Migration {
        policy: *s.pick("policy", &[Policy::Drain, Policy::Suspend, Policy::Suspend]),
        by_message: s.chance("by message", Ratio::new(1, 3)),
        agreed: !s.chance("not agreed", Ratio::new(1, 8)),
        grace: *s.pick("grace", &[0, 0, 20, 400]),
        cancel: *s.pick("cancel", &[Some(20), Some(400), Some(3_000), None]),
        page_ns: *s.pick("page_ns", &[200, 700, 3_300]),
        latency: *s.pick("latency", &[10, 50, 300]),
        rounds: s.range("rounds", 1, 6),
        few_pages: s.range("few pages", 1, 24),
    });
    rates.migrations = *s.pick("times", &[1, 2, 2, 3, 4, 8]);
    rates.apart = *s.pick("apart", &[200, 1_000, 4_000]);
    rates.aborts = *s.pick("aborts", &[Ratio::NEVER, Ratio::NEVER, Ratio::new(1, 3)]);
    rates.requests = s.range("requests", 60, 240);
    // Enough that something is in flight when the guest stops.
    if topology.pace != Pace::Quick {
        topology.pace = *s.pick("pace", &[Pace::Spread, Pace::Slow, Pace::Slow]);
    }
    if s.chance("quiet", Ratio::new(1, 3)) {
        (rates.kills, rates.breaks) = (0, 0);
    }
}

/// Whatever can be on may be on, and more of it.
fn storm(s: &mut Stream, profile: &mut Profile) {
    let rates = &mut profile.rates;
    rates.kills = *s.pick("storm.kills", &[rates.kills, 4, 12]);
    rates.breaks = *s.pick("storm.breaks", &[rates.breaks, 3, 6]);
    rates.pauses = *s.pick("storm.pauses", &[rates.pauses, 3, 6]);
    rates.successors = *s.pick("storm.successors", &[Ratio::NEVER, Ratio::new(1, 4), HALF]);
    rates.stalls = *s.pick("storm.stalls", &[0, 0, 2, 5]);
    rates.gone = *s.pick("storm.gone", &[0, 0, 1, 3]);
    if s.chance("storm.hostile", Ratio::new(1, 4)) {
        hostile(s, rates);
    }
    rates.kill_idle = *s.pick("storm.kill_idle", &[rates.kill_idle, HALF]);
    profile.topology.races = *s.pick("storm.races", &[profile.topology.races, HALF]);
    // A disk with nothing wrong is one of them: see the draw of families.
    profile.rates.disk_faults =
        *s.pick("storm.disk_faults", &[Ratio::NEVER, Ratio::new(1, 50), Ratio::new(1, 10)]);
}

/// A front-end that changes what it can.
fn controls(s: &mut Stream, rates: &mut Rates) {
    rates.controls = s.range("controls", 10, 80);
    rates.controls_apart = *s.pick("controls.apart", &[20, 100, 400, 1_500]);
    rates.kills = *s.pick("controls.kills", &[0, 0, 1, 3]);
    rates.requests = s.range("controls.requests", 60, 240);
}

/// A guest that breaks the rules.
fn hostile(s: &mut Stream, rates: &mut Rates) {
    rates.sabotage = s.range("sabotage", 0, 3);
    rates.odd_kicks = *s.pick("odd_kicks", &[Ratio::NEVER, Ratio::new(1, 12), HALF]);
}
