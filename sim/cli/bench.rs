//! How fast the simulator is on one core, and what of it the oracles take.
//!
//! The same seeds are run again and again, with every oracle, with the cheap
//! ones and with none, in turn, so that a machine that slows down slows all
//! three. What happens in a run does not depend on who looks.

use super::exit::{End, Result};
use super::progress::{Progress, grouped};
use super::seeds::Seeds;
use super::story::StoryArgs;
use midflight_sim::hash::Rolling;
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::run::{Sum, run};
use midflight_sim::world::Options;
use rustix::time::{ClockId, clock_gettime};

#[derive(clap::Args)]
pub struct BenchArgs {
    /// Numbers to run, the same ones each time
    #[arg(long, default_value = "0..1000")]
    seeds: Seeds,
    /// Times that all of them are run
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..=99))]
    times: u64,
    /// Of a hundred runs with every oracle, those in which the costly ones work
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(0..=100))]
    costly: u64,
    #[command(flatten)]
    story: StoryArgs,
}

/// Who looks, in the order in which it is printed.
const WHO: [(&str, Judges); 3] = [
    ("every oracle", Judges { costly: true, ..Judges::CHEAP }),
    ("cheap ones", Judges::CHEAP),
    ("none", Judges::NONE),
];

/// All seeds, once.
struct Lap {
    sum: Sum,
    /// Processor time of this thread in nanoseconds.
    ns: u64,
}

pub fn measure(args: &BenchArgs) -> Result {
    let mut arena = Arena::new();
    let mut progress = Progress::new("laps");
    // What is slow only once is over after the first.
    let first = lap(&mut arena, args, WHO[0].1)?;
    if let Some((number, violation)) = first.sum.failures.first() {
        println!("FAIL       seed {number}: {violation}; `run` tells more");
        return Ok(violation.into());
    }
    let all = args.times * WHO.len() as u64;
    let mut laps: [Vec<Lap>; WHO.len()] = Default::default();
    for done in 0..all {
        let who = (done % WHO.len() as u64) as usize;
        laps[who].push(lap(&mut arena, args, WHO[who].1)?);
        progress.show(done + 1, all, WHO[who].0);
    }
    progress.clear();
    print(args, &first.sum, &laps);
    let same = laps.iter().flatten().all(|lap| lap.sum.hash() == first.sum.hash());
    if same { Ok(End::Kept) } else { Ok(End::Differs) }
}

/// Scenarios are drawn here as well: that belongs to a run.
fn lap(arena: &mut Arena, args: &BenchArgs, judges: Judges) -> std::result::Result<Lap, String> {
    let story = args.story.story();
    let late = args.story.options().judges.late;
    let mut sum = Sum::default();
    let begin = processor_time();
    for number in args.seeds.range() {
        let scenario = story.scenario(number).map_err(|e| e.to_string())?;
        let costly = judges.costly && share(number) < args.costly;
        let judges = Judges { costly, late, ..judges };
        sum.add(number, &run(arena, &scenario, &Options { judges, ..Options::default() }));
    }
    Ok(Lap { sum, ns: processor_time() - begin })
}

/// A number below 100, the same for a seed each time.
fn share(number: u64) -> u64 {
    let mut hash = Rolling::new();
    hash.u64(number);
    hash.finish() % 100
}

/// Of this thread: what others do on the machine does not count.
fn processor_time() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    1_000_000_000 * time.tv_sec.unsigned_abs() + time.tv_nsec.unsigned_abs()
}

fn print(args: &BenchArgs, sum: &Sum, laps: &[Vec<Lap>; WHO.len()]) {
    let s = &sum.stats;
    let (seeds, again) = (args.seeds, args.story.again());
    println!(
        "bench       {} seeds ({}..{}{again}), {} times, one thread, processor time",
        grouped(sum.seeds),
        seeds.range().start,
        seeds.range().end,
        args.times
    );
    println!(
        "each time   {} events, {} requests, {} kills, {} migrations begun, {} of 100 runs with the costly oracles",
        grouped(s.events),
        grouped(s.requests),
        grouped(s.kills),
        grouped(s.migrations),
        args.costly
    );
    if cfg!(debug_assertions) {
        println!("            a debug build: the figures mean nothing");
    }
    println!(
        "\n{:<14}{:>24}{:>34}{:>30}{:>24}",
        "a second", "seeds", "events", "requests", "simulated ms"
    );
    for ((who, _), laps) in WHO.iter().zip(laps) {
        let rate = |of: fn(&Sum) -> u64| {
            let per_second = |lap: &Lap| {
                let each = u128::from(of(&lap.sum)) * 1_000_000_000;
                (each / u128::from(lap.ns.max(1))) as u64
            };
            Spread::of(laps.iter().map(per_second)).to_string()
        };
        println!(
            "{who:<14}{:>24}{:>34}{:>30}{:>24}",
            rate(|sum| sum.seeds),
            rate(|sum| sum.stats.events),
            rate(|sum| sum.stats.requests),
            rate(|sum| sum.at / 1_000_000),
        );
    }
    let [every, cheap, none] = laps;
    let share = |more: &[Lap], less: &[Lap]| {
        let laps = more.iter().zip(less).zip(every);
        Spread::of(
            laps.map(|((more, less), all)| 1_000 * more.ns.saturating_sub(less.ns) / all.ns.max(1)),
        )
    };
    println!("\noracles     cheap {} of the time", Share(share(cheap, none)));
    println!("            costly {} of the time", Share(share(every, cheap)));
}

/// The median of some measurements, and the least and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    least: u64,
    median: u64,
    greatest: u64,
}

impl Spread {
    fn of(values: impl Iterator<Item = u64>) -> Self {
        let mut all: Vec<u64> = values.collect();
        all.sort_unstable();
        let at = |index: usize| all.get(index).copied().unwrap_or(0);
        Self { least: at(0), median: at(all.len() / 2), greatest: at(all.len().max(1) - 1) }
    }
}

impl core::fmt::Display for Spread {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [median, least, greatest] = [self.median, self.least, self.greatest].map(grouped);
        f.pad(&format!("{median} ({least}..{greatest})"))
    }
}

/// Thousandths as a percentage.
struct Share(Spread);

impl core::fmt::Display for Share {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let percent = |n: u64| format!("{}.{}", n / 10, n % 10);
        let Spread { least, median, greatest } = self.0;
        write!(f, "{} % ({}..{})", percent(median), percent(least), percent(greatest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bench_tells_the_median_and_the_whole_spread() {
        let spread = Spread::of([7_000, 3, 5, 4, 9].into_iter());
        assert_eq!(spread, Spread { least: 3, median: 5, greatest: 7_000 });
        assert_eq!(spread.to_string(), "5 (3..7 000)");
        assert_eq!(Share(spread).to_string(), "0.5 % (0.3..700.0)");
    }

    #[test]
    fn bench_costly_oracles_work_in_about_the_share_asked_for() {
        let some = (0..10_000).filter(|number| share(*number) < 25).count();
        assert!((2_300..2_700).contains(&some), "{some}");
    }
}
