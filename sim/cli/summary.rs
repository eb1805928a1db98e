//! What was counted, in words.

use super::progress::grouped;
use midflight::time::Instant;
use midflight_sim::report::Report;
use midflight_sim::world::Stats;

/// The last line of a run whose guest migrates.
pub fn migrations(s: &Stats) {
    if s.migrations == 0 {
        return;
    }
    let mean = s.downtime / s.arrivals.max(1);
    println!(
        "migrated    {} of {} times ({} broken off), {} pages copied, {} requests in flight at the hand-over, {} suspended at any stop, {} cancelled",
        grouped(s.arrivals),
        grouped(s.migrations),
        grouped(s.broken_off),
        grouped(s.pages),
        grouped(s.carried),
        grouped(s.suspended),
        grouped(s.cancelled)
    );
    println!(
        "downtime    {} on average, {} at most; {} old writes landed late",
        Instant::from_nanos(mean),
        Instant::from_nanos(s.downtime_max),
        s.landings
    );
}

pub fn of_many(report: &Report) {
    let sum = &report.totals;
    let s = &sum.counters;
    let spent = report.cpu_us;
    let per_second = |n: u64| grouped(n.saturating_mul(1_000_000) / spent.max(1));
    println!("seeds       {}, {} failed", grouped(sum.seeds), grouped(sum.failed()));
    println!("events      {}", grouped(s.events));
    println!("requests    {} completed and checked", grouped(s.requests));
    println!("stores      {} of the back-end to shared memory", grouped(s.stores));
    println!(
        "trouble     {} kills, {} shutdowns, {} unfit back-ends, {} lost connections, {} stalls, front-end gone {} times, both hosts awake {} times, vrings found broken {} times, {} changes under way, {} resets, {} pauses, guest between stores {} times",
        grouped(s.kills),
        grouped(s.shutdowns),
        grouped(s.unfit),
        grouped(s.breaks),
        grouped(s.stalls),
        grouped(s.gone),
        grouped(s.wakes),
        grouped(s.broken),
        grouped(s.controls),
        grouped(s.resets),
        grouped(s.pauses),
        grouped(s.races)
    );
    println!(
        "recoveries  {} vrings taken over with {} requests in flight, largest batch {}",
        grouped(s.recoveries),
        grouped(s.resubmitted),
        s.largest_batch
    );
    if s.disk_faults.sum() > 0 {
        println!("faults      {} at the disk", s.disk_faults);
        println!("power       {} sectors went back to an older version", grouped(s.sectors_lost));
    }
    migrations(s);
    println!(
        "speed       {} seeds/s, {} events/s on one core, {} simulated in {}.{:03}s of CPU time",
        per_second(sum.seeds),
        per_second(s.events),
        Instant::from_nanos(sum.virtual_ns),
        spent / 1_000_000,
        spent / 1_000 % 1_000
    );
    println!("hash        {:016x} over all trace hashes", sum.hash);
}
