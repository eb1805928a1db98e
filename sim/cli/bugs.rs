//! Does the simulator find what it is for?

use super::progress::Progress;
use midflight::bugs::{Bug, set};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::{Judges, Violation};
use midflight_sim::run::run;
use midflight_sim::world::Options;

/// Run seeds until each bug is caught, once with every oracle and once without
/// the one that looks into the inflight region: what a guest, a disk or a
/// front-end could notice must do as well.
pub fn find(limit: u64) -> bool {
    let mut caught = 0;
    let mut sought = 0;
    println!("{:<24} {:<16} {:>6}  {:<10} what it saw", "bug", "oracles", "seed", "caught by");
    for bug in Bug::ALL {
        for region in [true, false] {
            let name = format!("{bug:?}");
            let oracles = if region { "all" } else { "all but region" };
            sought += 1;
            match hunt(bug, Judges { region }, limit) {
                Some((seed, Violation { oracle, message })) => {
                    caught += 1;
                    println!("{name:<24} {oracles:<16} {seed:>6}  {oracle:<10} {message}");
                }
                None => println!("{name:<24} {oracles:<16} not caught in {limit} seeds"),
            }
        }
    }
    println!("{caught} of {sought} caught");
    caught == sought
}

fn hunt(bug: Bug, judges: Judges, limit: u64) -> Option<(u64, Violation)> {
    let mut arena = Arena::new();
    let mut progress = Progress::new("seeds");
    let options = Options { judges, ..Options::default() };
    set(Some(bug));
    let found = (0..limit).find_map(|seed| {
        progress.show(seed, limit, "");
        let verdict = run(&mut arena, seed, &options).verdict;
        Some((seed, verdict.err()?))
    });
    set(None);
    progress.clear();
    found
}
