//! Many seeds with a summary.

use super::exit::{End, Result};
use super::failure::Keeper;
use super::progress::Progress;
use super::seeds::Seeds;
use super::story::StoryArgs;
use super::summary;
use midflight_sim::memory::Arena;
use midflight_sim::run::{Sum, run as run_scenario};
use midflight_sim::twice::twice as run_twice;

/// Failures told in full; of the others, only how many there are.
const SHOWN: usize = 3;

pub fn run(seeds: Seeds, args: &StoryArgs, twice: bool, keeper: &Keeper) -> Result {
    let (story, options) = (args.story(), args.options());
    let mut arena = Arena::new();
    let mut sum = Sum::default();
    let mut progress = Progress::new("seeds");
    for number in seeds.range() {
        let scenario = story.scenario(number).map_err(|e| e.to_string())?;
        let outcome = match twice {
            false => run_scenario(&mut arena, &scenario, &options),
            true => match run_twice(&mut arena, &scenario, &options) {
                Ok(outcome) => outcome,
                Err(difference) => {
                    progress.clear();
                    println!("DIFFERS    seed {}: {difference}", story.seed(number));
                    return Ok(End::Differs);
                }
            },
        };
        sum.add(number, &outcome);
        let note = match sum.failures.len() {
            0 => String::new(),
            n => format!("{n} failed"),
        };
        progress.show(sum.seeds, seeds.count(), &note);
    }
    progress.clear();
    let elapsed = progress.elapsed_ms();
    let mut end = End::Kept;
    for (number, violation) in sum.failures.iter().take(SHOWN) {
        let scenario = story.scenario(*number).map_err(|e| e.to_string())?;
        let again = format!("run --seed {number}{}", args.again());
        keeper.report(&scenario, violation, &options, &again)?;
        println!();
    }
    // What must not happen weighs more than what has not happened.
    for (_, violation) in &sum.failures {
        end = if end == End::Safety { end } else { violation.into() };
    }
    summary::of_many(&sum, elapsed);
    Ok(end)
}
