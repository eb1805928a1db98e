//! Commands. Only this folder knows the wall clock and the terminal.

mod bench;
#[cfg(feature = "bugs")]
mod bugs;
mod compare;
mod crash;
mod document;
mod exit;
mod failure;
mod hashes;
mod jobs;
mod many;
#[cfg(feature = "bugs")]
mod marks;
mod merge;
mod mistake;
mod one;
mod progress;
mod seeds;
mod signals;
mod stored;
mod story;
mod summary;
mod tell;
mod trace;

use clap::{Parser, Subcommand};
use midflight_sim::profile::parse_number;
use midflight_sim::settings::Value;
use midflight_sim::topology::{Policy, Ring};
use seeds::Seeds;
use std::path::PathBuf;
use std::process::ExitCode;
use story::StoryArgs;

/// Runs the midflight core in a simulated world, from a seed.
///
/// The same seed gives the same run on every machine.
///
/// Exit codes: 0 every promise was kept; 1 something happened that must not
/// (safety); 2 bad usage; 3 something did not happen that must (liveness); 4 two
/// runs of one seed differ; 130 and 143 interrupted before anything was found.
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
    /// Without a seed: a short run with one kill, to see what this is about. A
    /// failure is made as small as it gets, and kept as a document.
    Run(RunArgs),
    /// Join the reports of all shards of a run
    Merge(merge::MergeArgs),
    /// Print the scenario document of a seed
    Show(ShowArgs),
    /// Run a scenario document again
    Replay(ReplayArgs),
    /// Print the events of a run: as text, JSON lines or a Mermaid diagram
    Trace(trace::TraceArgs),
    /// Make a failing scenario document as small as it gets
    Shrink(document::ShrinkArgs),
    /// Keep a scenario document among the regressions, which are run as tests
    Keep(document::KeepArgs),
    /// Kill the back-end at every store of a short run in turn
    CrashEveryStore(CrashArgs),
    /// Print the trace hash of every seed, to compare builds and machines
    Hashes {
        /// First seed and the one after the last, as in 0..20
        #[arg(long)]
        seeds: Seeds,
        #[command(flatten)]
        story: StoryArgs,
    },
    /// Print how long the guest stands still, by latency and depth of the disk
    Compare(CompareArgs),
    /// Measure how fast this is on one core, and what the oracles cost
    Bench(bench::BenchArgs),
    /// Break the core on purpose, one rule at a time, and find it out
    #[cfg(feature = "bugs")]
    Bugs(bugs::BugsArgs),
    /// Print which places in the core runs come to, and in how many of them
    #[cfg(feature = "bugs")]
    Marks(marks::MarksArgs),
}

#[derive(clap::Args)]
struct RunArgs {
    /// Run this seed, a whole one as in 3:storm:0x1f or a number
    #[arg(long, conflicts_with_all = ["seeds", "resume"])]
    seed: Option<String>,
    #[command(flatten)]
    many: many::ManyArgs,
    #[command(flatten)]
    story: StoryArgs,
    #[command(flatten)]
    show: one::ShowArgs,
    /// Run each seed twice, and stop at the first decision that differs
    #[arg(long)]
    twice: bool,
    #[command(flatten)]
    keep: KeepArgs,
}

#[derive(clap::Args)]
struct KeepArgs {
    /// Leave failures as large as they are
    #[arg(long)]
    no_shrink: bool,
    /// Runs that may be spent on making one failure small
    #[arg(long, default_value_t = midflight_sim::shrink::RUNS)]
    shrink_runs: u64,
    /// Where documents of failures are kept
    #[arg(long, default_value = "failures")]
    failures: PathBuf,
}

#[derive(clap::Args)]
struct ShowArgs {
    /// Seed, a whole one as in 3:storm:0x1f or a number
    seed: String,
    #[command(flatten)]
    story: StoryArgs,
}

#[derive(clap::Args)]
struct ReplayArgs {
    /// Document
    file: PathBuf,
    #[command(flatten)]
    show: one::ShowArgs,
    /// A setting of the world to change, as in migration.policy=suspend
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = story::setting)]
    given: Vec<(String, String)>,
    /// Run it twice, and stop at the first decision that differs
    #[arg(long)]
    twice: bool,
}

#[derive(clap::Args)]
struct CrashArgs {
    /// Requests that come and go together; without it 1, 2, 3 and 4 in turn
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=16))]
    batch: Option<u64>,
    /// Seed of the short run
    #[arg(long, default_value_t = 1, value_parser = parse_number)]
    seed: u64,
    /// Layout of the rings
    #[arg(long, default_value = "split", value_parser = ring)]
    ring: Ring,
    /// The guest migrates, and back-ends of both hosts are killed
    #[arg(long, conflicts_with = "pairs")]
    migrate: bool,
    /// Every combination of two crashes
    #[arg(long)]
    pairs: bool,
}

fn ring(text: &str) -> Result<Ring, String> {
    let expected = <Ring as Value>::EXPECTED;
    Ring::parse(text).ok_or_else(|| format!("expected {expected}, got {text}"))
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
    let result = match Cli::parse().command {
        Command::Run(args) => run(args),
        Command::Merge(args) => merge::run(args),
        Command::Show(args) => document::show(&args.seed, &args.story),
        Command::Replay(args) => document::replay(&args),
        Command::Trace(args) => trace::show(&args),
        Command::Shrink(args) => document::shrink(&args),
        Command::Keep(args) => document::keep(&args),
        Command::CrashEveryStore(args) => Ok(crash::explore(&args)),
        Command::Hashes { seeds, story } => hashes::print(seeds, &story),
        Command::Compare(args) => {
            Ok(compare::table(&args.policies(), &args.latency, &args.depth).into())
        }
        Command::Bench(args) => bench::measure(&args),
        #[cfg(feature = "bugs")]
        Command::Bugs(args) => Ok(bugs::run(&args)),
        #[cfg(feature = "bugs")]
        Command::Marks(args) => marks::print(&args),
    };
    match result {
        Ok(end) => end.code(),
        Err(usage) => {
            eprintln!("error: {usage}");
            exit::End::Usage.code()
        }
    }
}

fn run(args: RunArgs) -> exit::Result {
    let failures = failure::Keeper::from(args.keep);
    if args.many.is_wanted() {
        return many::run(&args.many, &args.story, args.twice, &failures);
    }
    one::run(args.seed.as_deref(), &args.story, args.show, args.twice, &failures)
}

impl From<KeepArgs> for failure::Keeper {
    fn from(args: KeepArgs) -> Self {
        Self { shrink: (!args.no_shrink).then_some(args.shrink_runs), folder: args.failures }
    }
}
