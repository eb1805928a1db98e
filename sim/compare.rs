//! How long a guest stands still, by policy and disk.

use crate::crash::short_migration;
use crate::disk::Pace;
use crate::memory::Arena;
use crate::oracle::Violation;
use crate::profile::{Profile, Rates};
use crate::run::run;
use crate::scenario::Scenario;
use crate::topology::{Migration, Policy, Topology};
use crate::world::Options;

/// Migrations that a figure is the mean of.
pub const MIGRATIONS: u64 = 10;

/// What was measured in one run, in virtual time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Downtime {
    /// Nanoseconds on average.
    pub mean: u64,
    /// Nanoseconds at most.
    pub max: u64,
    /// Requests in flight at a hand-over, in tenths, on average.
    pub carried_tenths: u64,
}

/// A guest that keeps `depth` requests in flight on a disk that takes
/// `latency_us` for each, and migrates again and again.
pub fn profile(policy: Policy, latency_us: u64, depth: u64) -> Profile {
    let Profile { topology, rates } = short_migration(2, policy, MIGRATIONS);
    let migration = topology.migration.map(|migration| Migration {
        by_message: false,
        grace: 1_000,
        cancel: Some(500),
        // A link of 10 Gbit/s.
        page_ns: 3_277,
        latency: 100,
        rounds: 30,
        few_pages: 8,
        ..migration
    });
    let topology = Topology {
        ring_size: 64,
        region_size: 64,
        sectors: 1024,
        depth,
        batch: depth.min(4),
        pace: Pace::Fixed(latency_us),
        gather: 5,
        migration,
        ..topology
    };
    let rates = Rates { requests: 4_000, apart: 4 * latency_us.max(1_000), ..rates };
    Profile { topology, rates }
}

/// Measure one.
pub fn downtime(
    arena: &mut Arena,
    number: u64,
    policy: Policy,
    latency_us: u64,
    depth: u64,
) -> Result<Downtime, Violation> {
    let profile = profile(policy, latency_us, depth);
    let outcome = run(arena, &Scenario::of_profile(&profile, number), &Options::default());
    outcome.verdict?;
    let arrivals = outcome.stats.arrivals.max(1);
    Ok(Downtime {
        mean: outcome.stats.downtime / arrivals,
        max: outcome.stats.downtime_max,
        carried_tenths: 10 * outcome.stats.carried / arrivals,
    })
}
