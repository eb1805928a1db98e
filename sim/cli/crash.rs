//! Every crash of a short run.

use super::progress::{Progress, grouped};
use midflight_sim::crash::{Report, at_every_store, short_migration, short_run};
use midflight_sim::memory::Arena;
use midflight_sim::profile::Policy;

pub fn every_store(seed: u64, batch: Option<u64>) -> bool {
    let batches = batch.map_or_else(|| vec![1, 2, 3, 4], |b| vec![b]);
    let mut arena = Arena::new();
    let mut total = Report::default();
    println!(
        "split ring, seed {seed}: crash at every store, inside every long store, between any two wishes"
    );
    println!(
        "{:>5}  {:>11}  {:>6}  {:>7}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
        "batch",
        "event index",
        "stores",
        "largest",
        "between stores",
        "inside stores",
        "between wishes",
        "resubmitted",
        "failed"
    );
    for batch in batches {
        for event_idx in [false, true] {
            let profile = short_run(batch, event_idx);
            let mut progress = Progress::new("crash points");
            let report = at_every_store(&mut arena, seed, &profile, |done, all| {
                progress.show(done, all, "");
            });
            progress.clear();
            println!(
                "{batch:>5}  {:>11}  {:>6}  {:>7}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
                if event_idx { "on" } else { "off" },
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
    }
    finish(&total)
}

/// The same with a guest that moves to the other host, and back.
pub fn every_store_of_a_migration(seed: u64, batch: Option<u64>) -> bool {
    let batches = batch.map_or_else(|| vec![1, 3], |b| vec![b]);
    let mut arena = Arena::new();
    let mut total = Report::default();
    println!(
        "split ring, seed {seed}, guest migrates there and back: crash of either back-end at every store"
    );
    println!(
        "{:>5}  {:>8}  {:>6}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
        "batch",
        "policy",
        "stores",
        "between stores",
        "inside stores",
        "between wishes",
        "resubmitted",
        "failed"
    );
    for batch in batches {
        for policy in [Policy::Drain, Policy::Suspend] {
            let profile = short_migration(batch, policy, 2);
            let mut progress = Progress::new("crash points");
            let report = at_every_store(&mut arena, seed, &profile, |done, all| {
                progress.show(done, all, "");
            });
            progress.clear();
            println!(
                "{batch:>5}  {:>8}  {:>6}  {:>14}  {:>13}  {:>14}  {:>11}  {:>6}",
                policy.name(),
                report.stores,
                report.between_stores,
                report.inside_stores,
                report.between_outputs,
                report.resubmitted,
                report.failures.len()
            );
            total.add(report);
        }
    }
    finish(&total)
}

fn finish(total: &Report) -> bool {
    for (point, violation) in total.failures.iter().take(5) {
        println!("FAIL       {violation}");
        println!(
            "  where    step {} of the back-end, after {} stores, {} bytes of the next, {} wishes",
            point.step, point.kept, point.cut, point.outputs
        );
    }
    println!("{} crash points explored, {} failed", grouped(total.points()), total.failures.len());
    total.failures.is_empty()
}
