//! Does the simulator find what it is for?

use super::progress::Progress;
use midflight::bugs::set;
use midflight_sim::hunt::TRIALS;
use midflight_sim::oracle::{Judges, Violation};

/// Run seeds until each mistake is caught, once with every oracle, and then it
/// has to be the right one; and once without the one that looks into the
/// inflight region: what a guest, a disk or a front-end could notice must do as
/// well.
pub fn find(limit: u64) -> bool {
    let mut caught = 0;
    let mut sought = 0;
    println!("{:<24} {:<16} {:>6}  {:<10} what it saw", "mistake", "oracles", "seed", "caught by");
    for trial in TRIALS {
        let name = trial.name();
        for region in [true, false] {
            let oracles = if region { "all" } else { "all but region" };
            let judges = Judges { region, ..Judges::default() };
            let mut progress = Progress::new("seeds");
            let found = trial.hunt(set, judges, limit, |seed| progress.show(seed, limit, ""));
            progress.clear();
            sought += 1;
            match found {
                Some((seed, Violation { oracle, message })) => {
                    let right = !region || trial.oracles.contains(&oracle);
                    caught += u64::from(right);
                    let note = if right { "" } else { " (not the right oracle)" };
                    println!("{name:<24} {oracles:<16} {seed:>6}  {oracle:<10} {message}{note}");
                }
                None => println!("{name:<24} {oracles:<16} not caught in {limit} seeds"),
            }
        }
    }
    println!("{caught} of {sought} caught");
    caught == sought
}
