//! Live migration under verified I/O, between two QEMUs with a daemon each on
//! one image. A machine that has been left stays, with its daemon, until the
//! I/O is over and checked, so that a late write would have its chance.
//!
//! What these were seen not to find: a used ring or a status byte that is not
//! logged (presumably QEMU itself marks the ring when a vring stops, and Linux
//! leaves in the byte what the last request left). The simulator does.

use std::time::Duration;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::daemon::DiskOptions;
use crate::guest::Guest;
use crate::handover::{self, Handover};
use crate::run::{Plan, Run};

/// Longest a stretch of I/O may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What the disk takes in scenarios that are not about that, in microseconds.
const LATENCY_US: u32 = 40_000;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "migration_downtime_against_disk_latency", run: table },
        Scenario { name: "migration_there_and_back_ten_times", run: there_and_back },
    ]
}

/// The one that needs a machine of its own.
pub fn last_scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "migration_of_four_queues_to_larger_ones", run: four_queues }]
}

pub fn moving() -> Spec {
    Spec::moving(LATENCY_US, true)
}

pub fn slow_disk() -> DiskOptions {
    moving().disk
}

/// Starts a job and waits until every block has been written once.
pub fn start(guest: &Guest, plan: &Plan) -> Result<Run, String> {
    let run = Run::start(guest, plan)?;
    run.wait_filled(LIMIT)?;
    Ok(run)
}

/// After a hand-over: everything that was in flight then has to complete.
pub fn settle(run: &Run) -> Result<(), String> {
    run.mark()?;
    run.wait_for_marked(LIMIT)
}

/// Ends machines and daemons that were left.
pub fn close_all(left: Vec<Rig>) -> Result<(), String> {
    left.into_iter().try_for_each(|rig| rig.close().map_err(|what| format!("a source: {what}")))
}

/// A line of the table.
struct Row {
    latency_ms: u32,
    inflight_migration: bool,
    handover: Handover,
    /// Longest time without a completion around the hand-over, by the host's
    /// clock and the guest's.
    stall: (Duration, Duration),
    figures: Figures,
}

impl Row {
    fn print(&self) {
        let h = &self.handover;
        println!(
            "     {:>5} ms  {:<9} {:>6} ms {:>6} ms {:>6} ms {:>8} ms {:>8} {:>6} {:>11}",
            self.latency_ms,
            if self.inflight_migration { "suspended" } else { "drained" },
            self.stall.0.as_millis(),
            self.stall.1.as_millis(),
            h.downtime.as_millis(),
            h.gap.as_millis(),
            h.at_stop,
            h.left,
            h.resubmitted,
        );
    }
}

/// Migrates under I/O with requests drained and suspended, on disks of
/// different speed.
fn table(bench: &mut Bench) -> Result<Figures, String> {
    // The disk a machine moves to is the next one it moves away from.
    const LATENCIES_MS: [u32; 3] = [10, 50, 200];
    println!(
        "        disk  requests   stall: host   guest  downtime stop-start  at stop   left resubmitted"
    );
    let mut rows: Vec<Row> = Vec::new();
    for inflight_migration in [false, true] {
        let mut here = bench.take_out(&Spec::moving(LATENCIES_MS[0] * 1000, inflight_migration))?;
        let mut left = Vec::new();
        for (index, latency_ms) in LATENCIES_MS.into_iter().enumerate() {
            let next_us = LATENCIES_MS.get(index + 1).map_or(LATENCY_US, |ms| ms * 1000);
            let disk = DiskOptions { throttle_us: next_us, ..here.spec.disk.clone() };
            let mut there = bench.receiver_with(&here, disk)?;
            let plan = Plan { seed: 100 + rows.len() as u64, ..Plan::migrating() };
            let run = start(&here.vm.guest, &plan)?;
            run.wait_for(plan.depth * 4, LIMIT)?;
            let socket = bench.fresh_path("migrate");
            run.take_stall()?;
            let handover = handover::hand_over(&mut here, &mut there, &socket)?;
            settle(&run)?;
            let stall = run.take_stall()?;
            run.wait_for(plan.depth * 4, LIMIT)?;
            let figures = run.finish(&there.daemon.image)?;
            let row = Row { latency_ms, inflight_migration, handover, stall, figures };
            row.print();
            rows.push(row);
            left.push(std::mem::replace(&mut here, there));
        }
        close_all(left)?;
        bench.put_back(here);
    }
    judge(&rows)?;
    let mut all = Figures::default();
    rows.into_iter().for_each(|row| all.add(row.figures));
    Ok(all)
}

/// What the table has to show, loosely: the machine may have other things to do.
fn judge(rows: &[Row]) -> Result<(), String> {
    for row in rows {
        let (handover, at) = (&row.handover, format!("at {} ms", row.latency_ms));
        if row.figures.rechecked.1 == 0 {
            return Err(format!("{at} no buffer from before the migration was looked at after"));
        }
        if handover.left != handover.resubmitted {
            return Err(format!(
                "{at} {} requests were left and {} resubmitted",
                handover.left, handover.resubmitted
            ));
        }
        if row.latency_ms >= 50 && handover.at_stop == 0 {
            return Err(format!("{at} nothing was in flight at the stop"));
        }
        if row.latency_ms >= 50 && row.inflight_migration != (handover.left > 0) {
            return Err(format!("{at} {} requests were left in the region", handover.left));
        }
    }
    let downtime = |latency_ms: u32, inflight_migration: bool| {
        rows.iter()
            .find(|r| r.latency_ms == latency_ms && r.inflight_migration == inflight_migration)
            .map_or(Duration::ZERO, |row| row.handover.downtime)
    };
    let (drained, suspended) = (downtime(200, false), downtime(200, true));
    if drained < Duration::from_millis(100) || suspended >= drained / 2 {
        return Err(format!(
            "at 200 ms the downtime is {} ms drained and {} ms suspended",
            drained.as_millis(),
            suspended.as_millis()
        ));
    }
    Ok(())
}

/// Two daemons that stay, and machines that come and go.
fn there_and_back(bench: &mut Bench) -> Result<Figures, String> {
    there_and_back_on(bench, &moving())
}

pub fn there_and_back_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    const TIMES: u32 = 10;
    let mut here = bench.take_out(spec)?;
    let guest = here.vm.guest.clone();
    let mut daemon = bench.serve_image(&here.daemon.image, spec.disk.clone())?;
    let run = start(&guest, &Plan { seed: 120, ..Plan::migrating() })?;
    let (mut left, mut downtime) = (0, Duration::ZERO);
    for _ in 0..2 * TIMES {
        run.wait_for(70, LIMIT)?;
        let mut there = bench.receiver(&here, daemon)?;
        let socket = bench.fresh_path("migrate");
        let handover = handover::hand_over(&mut here, &mut there, &socket)?;
        settle(&run)?;
        left += handover.left;
        if handover.left != handover.resubmitted {
            return Err(format!("not all were resubmitted: {handover:?}"));
        }
        downtime = downtime.max(handover.downtime);
        let Rig { vm, daemon: last, .. } = std::mem::replace(&mut here, there);
        vm.quit()?;
        daemon = last;
        daemon.check_alive()?;
    }
    let mut figures = run.finish(&here.daemon.image)?;
    daemon.terminate()?;
    bench.put_back(here);
    if left == 0 {
        return Err("nothing was in flight at any stop".to_string());
    }
    figures.note(format!(
        "{TIMES} times there and back, {left} requests moved in flight, longest downtime {} ms",
        downtime.as_millis()
    ));
    Ok(figures)
}

/// To a machine that was started for larger rings: QEMU moves the size of the
/// ring and of the region with the machine, and the daemon has to believe those.
fn four_queues(bench: &mut Bench) -> Result<Figures, String> {
    four_queues_on(bench, moving())
}

pub fn four_queues_on(bench: &mut Bench, base: Spec) -> Result<Figures, String> {
    let disk = DiskOptions { queues: 4, ..base.disk.clone() };
    let spec = Spec { cpus: 4, disk: disk.clone(), ..base };
    let mut here = bench.take_out(&spec)?;
    let daemon = bench.serve_image(&here.daemon.image, disk)?;
    let mut there = bench.receiver_of(Spec { queue_size: 256, ..spec }, &here, daemon)?;
    let run = start(&here.vm.guest, &Plan { seed: 130, ..Plan::migrating() })?;
    run.wait_for(300, LIMIT)?;
    run.mark_deep(LIMIT)?;
    let socket = bench.fresh_path("migrate");
    let handover = handover::hand_over(&mut here, &mut there, &socket)?;
    settle(&run)?;
    let mut figures = run.finish(&there.daemon.image)?;
    close_all(vec![here])?;
    bench.put_back(there);
    if handover.suspended < 2 || handover.left != handover.resubmitted {
        return Err(format!("expected several vrings with requests in flight: {handover:?}"));
    }
    figures.note(format!(
        "{} requests moved in flight by {} vrings, downtime {} ms",
        handover.left,
        handover.suspended,
        handover.downtime.as_millis()
    ));
    Ok(figures)
}
