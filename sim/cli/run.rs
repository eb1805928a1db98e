//! One seed with its story, or many with a summary.

use super::progress::{Progress, grouped};
use super::seeds::Seeds;
use midflight::time::Instant;
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Violation;
use midflight_sim::profile::Profile;
use midflight_sim::run::{Sum, run, run_profile};
use midflight_sim::trace::{Detail, TraceEvent, What, late_writes, render};
use midflight_sim::world::{Options, Outcome, Stats, Story};

/// Seed of the run for newcomers: the kill finds requests in flight.
const TOUR_SEED: u64 = 1;

/// Failures printed; the others are counted.
const SHOWN: usize = 5;

pub fn one(seed: Option<u64>, detail: Option<Detail>, options: Options) -> bool {
    let options = Options { trace: detail.is_some(), ..options };
    let mut arena = Arena::new();
    let outcome = match seed {
        Some(seed) => run(&mut arena, seed, &options),
        None if options.story != Story::Mixed => run(&mut arena, TOUR_SEED, &options),
        None => run_profile(&mut arena, TOUR_SEED, Profile::tour(), &options),
    };
    match seed {
        Some(seed) => println!("seed       {seed}"),
        None => println!("a short run with one kill; `run --seed N` draws others"),
    }
    println!("{}", outcome.profile);
    if let Some(detail) = detail {
        print!("\n{}", render(outcome.trace.events(), detail));
    }
    late_write(&outcome);
    println!();
    report(seed, &outcome, &options);
    migrations(&outcome.stats);
    outcome.verdict.is_ok()
}

/// If an old write did harm, how it came to that: the one that was noticed, or
/// the first.
fn late_write(outcome: &Outcome) {
    let stories = late_writes(outcome.trace.events());
    let noticed = |story: &&Vec<TraceEvent>| match (&outcome.verdict, story.last()) {
        (Err(violation), Some(TraceEvent { what: What::Landing { request, over, .. }, .. })) => {
            let names = |n: u64| {
                let mut words = violation.message.split(|c: char| !c.is_alphanumeric());
                words.any(|word| word == n.to_string())
            };
            names(*request) && names(over - 1)
        }
        _ => false,
    };
    if let Some(story) = stories.iter().find(noticed).or(stories.first()) {
        println!("\nhow an old write came to land on new data:");
        print!("{}", render(story, Detail::Story));
    }
}

fn report(seed: Option<u64>, outcome: &Outcome, options: &Options) {
    let s = &outcome.stats;
    let at = Instant::from_nanos(outcome.at);
    if let Err(violation) = &outcome.verdict {
        failure(seed, violation, options);
        println!("  where    t={at}, event {}", s.events);
    } else {
        println!("PASS       every request completed once, with an allowed value");
    }
    println!(
        "counted    {} events in {at}, {} requests, {} stores, {} kills, {} shutdowns, {} lost connections, {} pauses, guest between stores {} times",
        s.events, s.requests, s.stores, s.kills, s.shutdowns, s.breaks, s.pauses, s.races
    );
    println!(
        "recovered  {} vrings taken over with {} requests in flight, largest batch {}",
        s.recoveries, s.resubmitted, s.largest_batch
    );
    println!("trace hash {:016x}", outcome.hash);
}

/// The last line of a run whose guest migrates.
fn migrations(s: &Stats) {
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

fn failure(seed: Option<u64>, violation: &Violation, options: &Options) {
    let mut replay = seed.map_or_else(String::new, |seed| format!(" --seed {seed}"));
    match options.story {
        Story::Mixed => {}
        Story::Migration(None) => replay += " --migrate",
        Story::Migration(Some(policy)) => replay += &format!(" --policy {}", policy.name()),
    }
    println!("FAIL       a promise was broken");
    println!("  what     {}", violation.message);
    println!("  oracle   {}", violation.oracle);
    println!("  replay   cargo sim run{replay}");
}

pub fn many(seeds: Seeds, options: &Options) -> bool {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    let mut progress = Progress::new("seeds");
    for seed in seeds.range() {
        let outcome = run(&mut arena, seed, options);
        sum.add(seed, &outcome);
        let note = match sum.failures.len() {
            0 => String::new(),
            n => format!("{n} failed"),
        };
        progress.show(sum.seeds, seeds.count(), &note);
    }
    progress.clear();
    summary(&sum, progress.elapsed_ms(), options);
    sum.failures.is_empty()
}

fn summary(sum: &Sum, elapsed_ms: u64, options: &Options) {
    for (seed, violation) in sum.failures.iter().take(SHOWN) {
        failure(Some(*seed), violation, options);
        println!();
    }
    let s = &sum.stats;
    let per_second = |n: u64| grouped(1_000 * n / elapsed_ms.max(1));
    println!("seeds       {}, {} failed", grouped(sum.seeds), sum.failures.len());
    println!("events      {}", grouped(s.events));
    println!("requests    {} completed and checked", grouped(s.requests));
    println!("stores      {} of the back-end to shared memory", grouped(s.stores));
    println!(
        "trouble     {} kills, {} shutdowns, {} lost connections, {} pauses, guest between stores {} times",
        grouped(s.kills),
        grouped(s.shutdowns),
        grouped(s.breaks),
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
        println!("faults      {}", s.disk_faults);
        println!("power       {} sectors went back", grouped(s.sectors_lost));
    }
    migrations(s);
    println!(
        "speed       {} seeds/s, {} events/s, {} simulated in {}.{:03}s",
        per_second(sum.seeds),
        per_second(s.events),
        Instant::from_nanos(sum.at),
        elapsed_ms / 1_000,
        elapsed_ms % 1_000
    );
    println!("hash        {:016x} over all trace hashes", sum.hash());
}

/// One line a seed, for `diff`.
pub fn hashes(seeds: Seeds, options: &Options) -> bool {
    let mut arena = Arena::new();
    let mut kept = true;
    for seed in seeds.range() {
        let outcome = run(&mut arena, seed, options);
        kept &= outcome.verdict.is_ok();
        let verdict = if outcome.verdict.is_ok() { "pass" } else { "FAIL" };
        println!("{seed} {:016x} {verdict}", outcome.hash);
    }
    kept
}
