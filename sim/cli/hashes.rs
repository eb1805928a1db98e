//! One line a seed, for `diff`.

use super::exit::{End, Result};
use super::seeds::Seeds;
use super::story::StoryArgs;
use midflight_sim::memory::Arena;
use midflight_sim::run::run;

pub fn print(seeds: Seeds, args: &StoryArgs) -> Result {
    let (story, options) = (args.story(), args.options());
    let mut arena = Arena::new();
    let mut end = End::Kept;
    for number in seeds.range() {
        let scenario = story.scenario(number).map_err(|e| e.to_string())?;
        let outcome = run(&mut arena, &scenario, &options);
        let verdict = match &outcome.verdict {
            Ok(()) => "pass",
            Err(violation) => {
                end = violation.into();
                "FAIL"
            }
        };
        println!("{number} {:016x} {verdict}", outcome.hash);
    }
    Ok(end)
}
