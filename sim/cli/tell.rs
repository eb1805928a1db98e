//! What a report says, to people.

use super::exit::{End, Result};
use super::failure::Keeper;
use super::story::StoryArgs;
use super::summary;
use midflight_sim::memory::Arena;
use midflight_sim::report::{Failure, FailureKind, Report};
use midflight_sim::run::run;

/// Kinds of failure told in full; of the others, only how many there are.
const SHOWN: usize = 3;

/// How a run ends that came to this: by the gravest failure.
pub fn end(report: &Report) -> End {
    match report.totals.failures.first().map(|failure| failure.kind) {
        None => End::Kept,
        Some(FailureKind::Nondeterminism) => End::Differs,
        Some(FailureKind::Safety) => End::Safety,
        Some(FailureKind::Liveness) => End::Liveness,
    }
}

/// Everything: each kind of failure on a screen, made small and kept.
pub fn whole(report: &Report, keeper: &Keeper) -> Result {
    let args = StoryArgs::of(&report.request)?;
    for failure in report.totals.failures.iter().take(SHOWN) {
        tell(failure, &args, keeper)?;
        println!();
    }
    summary::of_many(report);
    Ok(end(report))
}

/// Of a share only what it found, a line each: another share may have found the
/// same.
pub fn part(report: &Report) -> End {
    for failure in &report.totals.failures {
        println!("FAIL       {}: {}", failure.oracle, failure.message);
        println!("  seeds    {}", seeds(failure));
    }
    summary::of_many(report);
    end(report)
}

fn tell(failure: &Failure, args: &StoryArgs, keeper: &Keeper) -> std::result::Result<(), String> {
    let Some(number) = failure.numbers.first().copied() else { return Ok(()) };
    let story = args.story();
    let again = format!("run --seed {number}{}", args.again());
    if failure.kind == FailureKind::Nondeterminism {
        println!("DIFFERS    seed {}: {}", story.seed(number), failure.message);
        println!("  again    cargo sim {again} --twice");
    } else {
        let scenario = story.scenario(number).map_err(|e| e.to_string())?;
        let options = args.options();
        // Nothing but numbers went into the report; the run itself is here again.
        match run(&mut Arena::new(), &scenario, &options).verdict {
            Err(violation) => keeper.report(&scenario, &violation, &options, &again)?,
            Ok(()) => {
                println!("DIFFERS    seed {}: passes here", story.seed(number));
                println!("  reported {}: {}", failure.oracle, failure.message);
                println!("  again    cargo sim {again}");
            }
        }
    }
    if failure.count > 1 {
        println!("  same     {}", seeds(failure));
    }
    Ok(())
}

/// Which seeds fail in this way, as many as are known.
fn seeds(failure: &Failure) -> String {
    let known: Vec<String> = failure.numbers.iter().map(u64::to_string).collect();
    match failure.count - known.len() as u64 {
        0 => known.join(", "),
        more => format!("{} and {more} more", known.join(", ")),
    }
}
