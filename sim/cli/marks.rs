//! Where in the core do runs come?

use super::exit::{End, Result};
use super::progress::Progress;
use super::seeds::Seeds;
use super::story::StoryArgs;
use midflight::marks::{Mark, take};
use midflight_sim::memory::Arena;
use midflight_sim::run::run;

#[derive(clap::Args)]
pub struct MarksArgs {
    /// Numbers to run, from the first to before the last
    #[arg(long, default_value = "0..1000")]
    seeds: Seeds,
    #[command(flatten)]
    story: StoryArgs,
}

/// By mark: runs that reach it, and the first of them.
#[derive(Clone, Copy, Default)]
struct Reached {
    runs: u64,
    first: Option<u64>,
}

pub fn print(args: &MarksArgs) -> Result {
    let (story, options) = (args.story.story(), args.story.options());
    let mut reached = vec![Reached::default(); Mark::ALL.len()];
    let mut arena = Arena::new();
    let mut progress = Progress::new("seeds");
    let (mut runs, mut failed) = (0u64, 0u64);
    let asked = args.seeds.range().end - args.seeds.range().start;
    for number in args.seeds.range() {
        let scenario = story.scenario(number).map_err(|e| e.to_string())?;
        take();
        failed += u64::from(run(&mut arena, &scenario, &options).verdict.is_err());
        let marks = take();
        for (mark, reached) in Mark::ALL.iter().zip(&mut reached) {
            if marks.has(*mark) {
                reached.runs += 1;
                reached.first.get_or_insert(number);
            }
        }
        runs += 1;
        progress.show(runs, asked, "");
    }
    progress.clear();
    println!("{:<24} {:>8} {:>10}  what happens there", "mark", "share", "first seed");
    for (mark, Reached { runs: at, first }) in Mark::ALL.iter().zip(&reached) {
        // In tenths of a percent, without a float.
        let share = 1_000 * at / runs.max(1);
        println!(
            "{:<24} {:>6}.{}% {:>10}  {}",
            mark.name(),
            share / 10,
            share % 10,
            first.map_or("never".into(), |first| first.to_string()),
            mark.meaning()
        );
    }
    let missed = reached.iter().filter(|reached| reached.runs == 0).count();
    println!(
        "{} of {} marks reached in {runs} runs, {failed} failed",
        reached.len() - missed,
        reached.len()
    );
    Ok(End::from(missed == 0 && failed == 0))
}
