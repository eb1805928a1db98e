//! Whole simulated runs: a mixed seed, one whose guest migrates, one of a storm.
//! What is printed is the time for a run; `midflight-sim bench` has rates over
//! many seeds.
//!
//! ```sh
//! cargo bench --bench sim
//! ```

// The runner measures time and owns the terminal.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use midflight_sim::memory::Arena;
use midflight_sim::oracle::Judges;
use midflight_sim::profile::ProfileName;
use midflight_sim::run::run;
use midflight_sim::scenario::Story;
use midflight_sim::world::Options;

/// Numbers that stand for their profile: none of the shortest runs and none of
/// the longest.
const SEEDS: [(&str, ProfileName, u64); 3] = [
    ("mixed", ProfileName::Mixed, 4),
    ("migration", ProfileName::Migration, 2),
    ("storm", ProfileName::Storm, 4),
];

fn seeds(criterion: &mut Criterion) {
    let mut arena = Arena::new();
    for (name, profile, number) in SEEDS {
        let scenario = Story::of(profile).scenario(number).expect("drawn settings are right");
        let mut group = criterion.benchmark_group(name);
        for (who, judges) in [("every oracle", Judges::default()), ("no oracle", Judges::NONE)] {
            let options = Options { judges, ..Options::default() };
            let first = run(&mut arena, &scenario, &options);
            assert_eq!(first.verdict, Ok(()), "a run that fails is over too early");
            group.throughput(Throughput::Elements(first.stats.events));
            group.bench_function(who, |b| b.iter(|| run(&mut arena, &scenario, &options).hash));
        }
        group.finish();
    }
}

criterion_group!(benches, seeds);
criterion_main!(benches);
