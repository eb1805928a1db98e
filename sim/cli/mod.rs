//! Commands. Only this folder knows the wall clock and the terminal.

#[cfg(feature = "bugs")]
mod bugs;
mod compare;
mod crash;
mod progress;
mod run;
mod seeds;

use clap::{Parser, Subcommand};
use midflight_sim::oracle::Judges;
use midflight_sim::profile::Policy;
use midflight_sim::trace::Detail;
use midflight_sim::world::{Options, Story};
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
        /// Of runs in which the guest migrates
        #[arg(long)]
        migrate: bool,
    },
    /// Print how long the guest stands still, by latency and depth of the disk
    Compare(CompareArgs),
    /// Break the core on purpose, one rule at a time, and find it out
    #[cfg(feature = "bugs")]
    Bugs(bugs::BugsArgs),
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
    /// What seeds are drawn into
    #[arg(long, value_enum, default_value_t = ProfileName::Mixed)]
    profile: ProfileName,
    /// The same as `--profile migration`
    #[arg(long)]
    migrate: bool,
    /// Migrate, and let every stop do this with requests in flight
    ///
    /// `unsafe` says that cancelled requests are over when they are not.
    #[arg(long, value_enum)]
    policy: Option<PolicyName>,
    /// Print no timeline, only profile and verdict
    #[arg(long, conflicts_with_all = ["seeds", "full", "messages"])]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum ProfileName {
    /// One host: kills, pauses, lost connections
    Mixed,
    /// Two hosts: the guest migrates as well
    Migration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum PolicyName {
    Drain,
    Suspend,
    Unsafe,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Drain => Self::Drain,
            PolicyName::Suspend => Self::Suspend,
            PolicyName::Unsafe => Self::Unsafe,
        }
    }
}

impl RunArgs {
    fn options(&self) -> Options {
        let policy = self.policy.map(Policy::from);
        let migrates = self.migrate || policy.is_some() || self.profile == ProfileName::Migration;
        let story = if migrates { Story::Migration(policy) } else { Story::Mixed };
        // With the mistake made on purpose, see what a guest would see of it.
        let late = policy != Some(Policy::Unsafe);
        Options { story, judges: Judges { late, ..Judges::default() }, ..Options::default() }
    }

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
    /// The guest migrates, and back-ends of both hosts are killed
    #[arg(long)]
    migrate: bool,
}

#[derive(clap::Args)]
struct CompareArgs {
    /// Policies to compare
    #[arg(long, value_enum, value_delimiter = ',', default_value = "drain,suspend")]
    policy: Vec<PolicyName>,
    /// Latencies of the disk in microseconds
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,50000,200000")]
    latency: Vec<u64>,
    /// Requests that the guest keeps in flight
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    depth: Vec<u64>,
}

impl CompareArgs {
    fn policies(&self) -> Vec<Policy> {
        self.policy.iter().map(|name| Policy::from(*name)).collect()
    }
}

pub fn main() -> ExitCode {
    let kept = match Cli::parse().command {
        Command::Run(args) => match args.seeds {
            Some(seeds) => run::many(seeds, &args.options()),
            None => run::one(args.seed, args.detail(), args.options()),
        },
        Command::CrashEveryStore(args) if args.migrate => {
            crash::every_store_of_a_migration(args.seed, args.batch)
        }
        Command::CrashEveryStore(args) => crash::every_store(args.seed, args.batch),
        Command::Hashes { seeds, migrate } => {
            let story = if migrate { Story::Migration(None) } else { Story::Mixed };
            run::hashes(seeds, &Options { story, ..Options::default() })
        }
        Command::Compare(args) => compare::table(&args.policies(), &args.latency, &args.depth),
        #[cfg(feature = "bugs")]
        Command::Bugs(args) => return bugs::run(&args),
    };
    if kept { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}
