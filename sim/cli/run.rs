//! One seed with its story, or many with a summary.

use super::progress::{Progress, grouped};
use super::seeds::Seeds;
use midflight::time::Instant;
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Violation;
use midflight_sim::run::{Sum, run};
use midflight_sim::trace::{Detail, render};
use midflight_sim::world::{Options, Outcome};

/// A run with something to see: kills with requests in flight.
pub const FIRST_SEED: u64 = 1;

/// Failures printed; the others are counted.
const SHOWN: usize = 5;

pub fn one(seed: u64, full: bool, quiet: bool) -> bool {
    let options = Options { trace: !quiet, ..Options::default() };
    let outcome = run(&mut Arena::new(), seed, &options);
    println!("seed       {seed}\n{}", outcome.profile);
    if !quiet {
        let detail = if full { Detail::Everything } else { Detail::Story };
        print!("\n{}", render(outcome.trace.events(), detail));
    }
    println!();
    report(seed, &outcome);
    outcome.verdict.is_ok()
}

fn report(seed: u64, outcome: &Outcome) {
    let s = &outcome.stats;
    let at = Instant::from_nanos(outcome.at);
    if let Err(violation) = &outcome.verdict {
        failure(seed, violation);
        println!("  where    t={at}, event {}", s.events);
    } else {
        println!("PASS       every request completed once, with an allowed value");
    }
    println!(
        "counted    {} events in {at}, {} requests, {} stores, {} kills, {} shutdowns, {} lost connections, {} pauses",
        s.events, s.requests, s.stores, s.kills, s.shutdowns, s.breaks, s.pauses
    );
    println!(
        "recovered  {} vrings taken over with {} requests in flight, largest batch {}",
        s.recoveries, s.resubmitted, s.largest_batch
    );
    println!("trace hash {:016x}", outcome.hash);
}

fn failure(seed: u64, violation: &Violation) {
    println!("FAIL       seed {seed}");
    println!("  what     {}", violation.message);
    println!("  oracle   {}", violation.oracle);
    println!("  replay   cargo sim run --seed {seed}");
}

pub fn many(seeds: Seeds) -> bool {
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    let mut progress = Progress::new("seeds");
    for seed in seeds.range() {
        let outcome = run(&mut arena, seed, &Options::default());
        sum.add(seed, &outcome);
        let note = match sum.failures.len() {
            0 => String::new(),
            n => format!("{n} failed"),
        };
        progress.show(sum.seeds, seeds.count(), &note);
    }
    progress.clear();
    summary(&sum, progress.elapsed_ms());
    sum.failures.is_empty()
}

fn summary(sum: &Sum, elapsed_ms: u64) {
    for (seed, violation) in sum.failures.iter().take(SHOWN) {
        failure(*seed, violation);
        println!();
    }
    let s = &sum.stats;
    let per_second = |n: u64| grouped(1_000 * n / elapsed_ms.max(1));
    println!("seeds       {}, {} failed", grouped(sum.seeds), sum.failures.len());
    println!("events      {}", grouped(s.events));
    println!("requests    {} completed and checked", grouped(s.requests));
    println!("stores      {} of the back-end to shared memory", grouped(s.stores));
    println!(
        "trouble     {} kills, {} shutdowns, {} lost connections, {} pauses",
        grouped(s.kills),
        grouped(s.shutdowns),
        grouped(s.breaks),
        grouped(s.pauses)
    );
    println!(
        "recoveries  {} vrings taken over with {} requests in flight, largest batch {}",
        grouped(s.recoveries),
        grouped(s.resubmitted),
        s.largest_batch
    );
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
pub fn hashes(seeds: Seeds) -> bool {
    let mut arena = Arena::new();
    let mut kept = true;
    for seed in seeds.range() {
        let outcome = run(&mut arena, seed, &Options::default());
        kept &= outcome.verdict.is_ok();
        let verdict = if outcome.verdict.is_ok() { "pass" } else { "FAIL" };
        println!("{seed} {:016x} {verdict}", outcome.hash);
    }
    kept
}
