//! Many seeds: shared out to threads and machines, interrupted, gone on with.

use super::exit::{End, Result};
use super::failure::Keeper;
use super::jobs::share_out;
use super::progress::Progress;
use super::seeds::{Seeds, Shard};
use super::signals::Signals;
use super::story::StoryArgs;
use super::{stored, tell};
use midflight_sim::choices::SCHEMA;
use midflight_sim::memory::Arena;
use midflight_sim::report::{Report, Request, Totals};
use midflight_sim::run::run as run_scenario;
use midflight_sim::scenario::Story;
use midflight_sim::twice::twice as run_twice;
use midflight_sim::world::Options;
use std::path::{Path, PathBuf};

/// Milliseconds after which a report is written again.
const KEEP_EVERY: u64 = 2_000;

#[derive(clap::Args)]
pub struct ManyArgs {
    /// Run many numbers, from the first to before the last, as in 0..2000
    #[arg(long)]
    pub seeds: Option<Seeds>,
    /// Threads; the report is the same whatever their number
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    jobs: u64,
    /// Of the seeds only share I of N, from 0, as in 3/8
    #[arg(long, requires = "seeds")]
    shard: Option<Shard>,
    /// Print a report for programs, and no summary
    #[arg(long)]
    json: bool,
    /// Keep the report in this file, from time to time and when interrupted
    #[arg(long)]
    out: Option<PathBuf>,
    /// Go on with the report in this file
    ///
    /// If there is none and `--seeds` says what to run, begin it: so one command
    /// serves for the first start and for every other.
    #[arg(long, conflicts_with = "out")]
    pub resume: Option<PathBuf>,
}

impl ManyArgs {
    /// Many seeds are wanted, not one.
    pub fn is_wanted(&self) -> bool {
        self.seeds.is_some() || self.resume.is_some()
    }

    /// The report to go on with, or a new one.
    fn report(&self, args: &StoryArgs, twice: bool) -> std::result::Result<Report, String> {
        let asked = self.seeds.map(|seeds| {
            let (shard, shards) = self.shard.map_or((0, 1), |s| (s.index, s.of));
            Report::new(request(seeds, shards, args, twice), shard)
        });
        let found = match &self.resume {
            Some(file) if file.exists() || asked.is_none() => Some((file, stored::read(file)?)),
            _ => None,
        };
        match (found, asked) {
            (Some((file, found)), Some(asked)) => {
                let same = found.request == asked.request && found.shard == asked.shard;
                let other = || format!("{} is the report of another run", file.display());
                same.then_some(found).ok_or_else(other)
            }
            (Some((file, _)), None) if args.is_typed() || twice => {
                Err(format!("{} says itself what to run; or add --seeds", file.display()))
            }
            (Some((_, found)), None) => Ok(found),
            (None, Some(asked)) => Ok(asked),
            (None, None) => Err("expected --seeds or --resume".into()),
        }
    }
}

fn request(seeds: Seeds, shards: u64, args: &StoryArgs, twice: bool) -> Request {
    Request {
        schema: SCHEMA,
        profile: args.story().profile.to_string(),
        policy: args.policy_name(),
        given: args.given().to_vec(),
        twice,
        first: seeds.range().start,
        end: seeds.range().end,
        shards,
    }
}

pub fn run(many: &ManyArgs, args: &StoryArgs, twice: bool, keeper: &Keeper) -> Result {
    let mut report = many.report(args, twice)?;
    // From here on the report says what is run.
    let args = StoryArgs::of(&report.request)?;
    let (story, options, twice) = (args.story(), args.options(), report.request.twice);
    let out = many.out.as_deref().or(many.resume.as_deref());
    let keep = |report: &Report| out.map_or(Ok(()), |file| stored::write(file, report));
    let signals = Signals::listen()?;
    // Better to hear now than in an hour that there is no place for it.
    keep(&report)?;

    let mut progress = Progress::new("seeds");
    let mut kept_at = 0;
    let count = report.count();
    let (gaps, place) = (report.done.missing(count), report.clone());
    let work = |arena: &mut Arena, position: u64, totals: &mut Totals| {
        one(arena, &story, place.number(position), &options, twice, totals)
    };
    share_out(gaps, many.jobs, &signals, work, |done| {
        if let Some(done) = done {
            report.add(done.first, done.end, &done.totals);
            report.cpu_us += done.cpu_us;
        }
        let note = match report.totals.failed() {
            0 => String::new(),
            n => format!("{n} failed"),
        };
        progress.show(report.totals.seeds, count, &note);
        if progress.elapsed_ms() - kept_at > KEEP_EVERY {
            kept_at = progress.elapsed_ms();
            // If the disk is full now, it need not be at the end.
            let _ = keep(&report);
        }
    })?;
    progress.clear();
    if let Err(why) = keep(&report) {
        // What was found is not lost with the file.
        print!("{}", report.print());
        return Err(why);
    }
    let end = finish(&report, many.json && out.is_none(), keeper)?;
    match signals.came().filter(|_| !report.is_complete()) {
        Some(signal) => Ok(interrupted(&report, out, signal, end)),
        None => Ok(end),
    }
}

fn finish(report: &Report, json: bool, keeper: &Keeper) -> Result {
    if json {
        print!("{}", report.print());
        return Ok(tell::end(report));
    }
    if report.request.shards == 1 && report.is_complete() {
        return tell::whole(report, keeper);
    }
    // The failures of all shards are told when they are joined.
    Ok(tell::part(report))
}

/// What was found counts; else the end is the shell's for the signal.
fn interrupted(report: &Report, out: Option<&Path>, signal: u8, end: End) -> End {
    eprintln!("interrupted after {} of {} seeds", report.totals.seeds, report.count());
    if let Some(file) = out {
        eprintln!("go on with: cargo sim run --resume {}", file.display());
    }
    if end == End::Kept { End::Interrupted(signal) } else { end }
}

fn one(
    arena: &mut Arena,
    story: &Story,
    number: u64,
    options: &Options,
    twice: bool,
    totals: &mut Totals,
) -> std::result::Result<(), String> {
    let scenario = story.scenario(number).map_err(|e| e.to_string())?;
    if !twice {
        totals.run(number, &run_scenario(arena, &scenario, options));
        return Ok(());
    }
    match run_twice(arena, &scenario, options) {
        Ok(outcome) => totals.run(number, &outcome),
        Err(difference) => totals.difference(number, difference.to_string()),
    }
    Ok(())
}
