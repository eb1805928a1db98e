//! Scenario documents: print, run again, make small, keep.

use super::ReplayArgs;
use super::exit::{End, Result};
use super::failure::sizes;
use super::mistake;
use super::one::play;
use super::story::StoryArgs;
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::scenario::Scenario;
use midflight_sim::shrink::{RUNS, shrink as make_small};
use midflight_sim::topology::Policy;
use midflight_sim::world::Options;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
pub struct ShrinkArgs {
    /// Document of a failing scenario
    file: PathBuf,
    /// Where the small one goes; without it, to standard output
    #[arg(long)]
    out: Option<PathBuf>,
    /// Runs that may be spent
    #[arg(long, default_value_t = RUNS)]
    runs: u64,
}

#[derive(clap::Args)]
pub struct KeepArgs {
    /// Document
    file: PathBuf,
    /// Where regressions are kept
    #[arg(long, default_value = "tests/regressions")]
    folder: PathBuf,
}

pub fn read(file: &Path) -> std::result::Result<Scenario, String> {
    let named = |what: String| format!("{}: {what}", file.display());
    let text = fs::read_to_string(file).map_err(|e| named(e.to_string()))?;
    text.parse().map_err(|e: midflight_sim::scenario::DocumentError| named(e.to_string()))
}

/// With the mistake made on purpose, see what a guest would see of it.
pub fn options(scenario: &Scenario) -> Options {
    let late = scenario.topology.migration.is_none_or(|m| m.policy != Policy::Unsafe);
    Options { judges: Judges { late, ..Judges::default() }, ..Options::default() }
}

pub fn show(seed: &str, args: &StoryArgs) -> Result {
    let (story, number) = args.seed(seed)?;
    print!("{}", story.scenario(number).map_err(|e| e.to_string())?);
    Ok(End::Kept)
}

pub fn replay(args: &ReplayArgs) -> Result {
    let mut scenario = read(&args.file)?;
    for (key, value) in &args.given {
        scenario.topology.change(key, value).map_err(|e| e.to_string())?;
    }
    scenario.check()?;
    println!("{}", scenario.topology);
    let options = mistake::make(&scenario, options(&scenario))?;
    let (end, outcome) = play(&scenario, args.show, args.twice, &options)?;
    if let (Some(expect), Some(outcome)) = (&scenario.expect, &outcome) {
        let same = outcome.verdict.as_ref().is_err_and(|violation| expect.is_met_by(violation));
        println!(
            "document   expects {}: {}: {}",
            expect.oracle,
            expect.cause,
            if same { "the same verdict" } else { "NOT what came" }
        );
    }
    Ok(end)
}

pub fn shrink(args: &ShrinkArgs) -> Result {
    let scenario = read(&args.file)?;
    let options = mistake::make(&scenario, options(&scenario))?;
    let shrunk =
        make_small(&mut Arena::new(), &scenario, &options, args.runs).ok_or_else(|| {
            format!("{}: every promise is kept, nothing to shrink", args.file.display())
        })?;
    match &args.out {
        None => print!("{}", shrunk.scenario),
        Some(out) => {
            fs::write(out, shrunk.scenario.to_string())
                .map_err(|e| format!("{}: {e}", out.display()))?;
            sizes(&shrunk);
        }
    }
    Ok(End::Kept)
}

pub fn keep(args: &KeepArgs) -> Result {
    // What cannot be read would fail for ever.
    let scenario = read(&args.file)?;
    let name = args.file.file_name().ok_or("expected the name of a document")?;
    let to = args.folder.join(name);
    if to.exists() {
        return Err(format!("{} is there already", to.display()));
    }
    // A regression has to pass once what it shows is mended.
    let scenario = Scenario { expect: None, ..scenario };
    let refused = |e: std::io::Error| format!("{}: {e}", to.display());
    fs::create_dir_all(&args.folder).map_err(refused)?;
    fs::write(&to, scenario.to_string()).map_err(refused)?;
    println!("kept       {}", to.display());
    Ok(End::Kept)
}
