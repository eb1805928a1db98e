//! Commands. Only this folder knows the wall clock and the terminal.

#[cfg(feature = "bugs")]
mod bugs;
mod crash;
mod progress;
mod run;
mod seeds;

use clap::{Parser, Subcommand};
use midflight_sim::trace::Detail;
use seeds::Seeds;
use std::process::ExitCode;

/// A promise was broken.
const FAILED: u8 = 1;

/// Runs the midflight core in a simulated world, from a seed.
///
/// The same seed gives the same run on every machine. Exit codes: 0 all
/// promises were kept, 1 one was broken, 2 bad usage.
#[derive(Parser)]
#[command(name = "midflight-sim", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one seed and print what happened, or many and print a summary
    ///
    /// Without a seed: a short run with one kill, to see what this is about.
    Run(RunArgs),
    /// Kill the back-end at every store of a short run in turn
    CrashEveryStore(CrashArgs),
    /// Print the trace hash of every seed, to compare builds and machines
    Hashes {
        /// First seed and the one after the last, as in 0..20
        #[arg(long)]
        seeds: Seeds,
    },
    /// Break the core on purpose, one rule at a time, and find it out
    #[cfg(feature = "bugs")]
    Bugs {
        /// Seeds to try for each bug
        #[arg(long, default_value_t = 1000)]
        limit: u64,
    },
}

#[derive(clap::Args)]
struct RunArgs {
    /// Run this seed and print its timeline
    #[arg(long, conflicts_with = "seeds", value_parser = seeds::parse_seed)]
    seed: Option<u64>,
    /// Run many, from the first to before the last, as in 0..2000
    #[arg(long)]
    seeds: Option<Seeds>,
    /// Print the messages between front-end and back-end as well
    #[arg(long, conflicts_with = "seeds")]
    messages: bool,
    /// Print every event, also reads of the sockets and steps without a store
    #[arg(long, conflicts_with = "seeds")]
    full: bool,
    /// Print no timeline, only profile and verdict
    #[arg(long, conflicts_with_all = ["seeds", "full", "messages"])]
    quiet: bool,
}

impl RunArgs {
    fn detail(&self) -> Option<Detail> {
        match (self.quiet, self.full, self.messages) {
            (true, ..) => None,
            (_, true, _) => Some(Detail::Everything),
            (.., true) => Some(Detail::Messages),
            _ => Some(Detail::Story),
        }
    }
}

#[derive(clap::Args)]
struct CrashArgs {
    /// Requests that come and go together; without it 1, 2, 3 and 4 in turn
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=16))]
    batch: Option<u64>,
    /// Seed of the short run
    #[arg(long, default_value_t = 1, value_parser = seeds::parse_seed)]
    seed: u64,
}

pub fn main() -> ExitCode {
    let kept = match Cli::parse().command {
        Command::Run(args) => match args.seeds {
            Some(seeds) => run::many(seeds),
            None => run::one(args.seed, args.detail()),
        },
        Command::CrashEveryStore(args) => crash::every_store(args.seed, args.batch),
        Command::Hashes { seeds } => run::hashes(seeds),
        #[cfg(feature = "bugs")]
        Command::Bugs { limit } => bugs::find(limit),
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
