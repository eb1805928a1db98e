//! Every crash of a short run.

use super::CrashArgs;
use super::exit::End;
use super::progress::{Progress, grouped};
use midflight_sim::crash::{
    Report, at_every_pair, at_every_store, packed, short_migration, short_run,
};
use midflight_sim::memory::Arena;
use midflight_sim::profile::Profile;
use midflight_sim::scenario::Scenario;
use midflight_sim::topology::{Policy, Ring};

/// One row of the table.
struct Row {
    batch: u64,
    /// What else tells it from the other rows.
    kind: String,
    profile: Profile,
}

/// Rows with packed rings instead: some chains of one descriptor, or none.
fn packed_rows(rows: Vec<Row>) -> Vec<Row> {
    let each = |Row { batch, kind, profile }| {
        [(true, "one and many"), (false, "many")].map(|(indirect, chains)| Row {
            batch,
            kind: format!("{kind}, {chains}"),
            profile: packed(Profile::clone(&profile), indirect),
        })
    };
    rows.into_iter().flat_map(each).collect()
}

fn rows(args: &CrashArgs) -> Vec<Row> {
    let batches = |all: &[u64]| args.batch.map_or_else(|| all.to_vec(), |b| vec![b]);
    if args.migrate {
        let policies = [Policy::Drain, Policy::Suspend];
        let rows = batches(&[1, 2, 3]).into_iter().flat_map(|b| policies.map(|p| (b, p)));
        rows.map(|(batch, policy)| Row {
            batch,
            kind: policy.name().into(),
            profile: short_migration(batch, policy, 2),
        })
        .collect()
    } else {
        let rows = batches(&[1, 2, 3, 4]).into_iter().flat_map(|b| [(b, false), (b, true)]);
        rows.map(|(batch, event_idx)| Row {
            batch,
            kind: if event_idx { "event index" } else { "flags" }.into(),
            profile: short_run(batch, event_idx),
        })
        .collect()
    }
}

pub fn explore(args: &CrashArgs) -> End {
    let rows = match args.ring {
        Ring::Split => rows(args),
        Ring::Packed => packed_rows(rows(args)),
    };
    println!(
        "{} ring, seed {}{}: {} at every store, inside every long store, between any two wishes",
        args.ring.name(),
        args.seed,
        if args.migrate { ", guest migrates there and back, either back-end" } else { "" },
        if args.pairs { "two crashes, each" } else { "crash" }
    );
    table(rows, args)
}

fn table(rows: Vec<Row>, args: &CrashArgs) -> End {
    let mut arena = Arena::new();
    let mut total = Report::default();
    println!(
        "{:>5}  {:>25}  {:>6}  {:>7}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
        "batch",
        "kind",
        "stores",
        "largest",
        "between stores",
        "inside stores",
        "between wishes",
        "resubmitted",
        "failed"
    );
    for Row { batch, kind, profile } in rows {
        let scenario = Scenario::of_profile(&profile, args.seed);
        let mut progress = Progress::new("crash points");
        let each = |done, all| progress.show(done, all, "");
        let report = match args.pairs {
            false => at_every_store(&mut arena, &scenario, each),
            true => at_every_pair(&mut arena, &scenario, each),
        };
        progress.clear();
        println!(
            "{batch:>5}  {kind:>25}  {:>6}  {:>7}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
            report.stores,
            report.batch,
            report.between_stores,
            report.inside_stores,
            report.between_outputs,
            report.resubmitted,
            report.failures.len()
        );
        total.add(report);
    }
    finish(&total)
}

fn finish(total: &Report) -> End {
    for (points, violation) in total.failures.iter().take(5) {
        println!("FAIL       {violation}");
        for point in points {
            println!(
                "  crash    step {} of the back-end, after {} stores, {} bytes of the next, {} wishes",
                point.step, point.kept, point.cut, point.outputs
            );
        }
    }
    println!(
        "{} distinct crash points explored, {} failed",
        grouped(total.points()),
        total.failures.len()
    );
    total.failures.first().map_or(End::Kept, |(_, violation)| violation.into())
}
