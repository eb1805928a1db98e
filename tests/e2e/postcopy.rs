//! Postcopy under verified I/O: the guest runs at the destination while most of
//! its memory is still at the source, and the daemon there reads rings and
//! writes buffers that have not come.
//!
//! How often it met a missing page is counted by QEMU's own trace of the page
//! faults that it resolves for the daemon.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::handover::{self, Handover, SLOW};
use crate::migrate;
use crate::process;
use crate::run::Plan;

/// Longest a stretch of I/O may take.
const LIMIT: Duration = Duration::from_secs(30);

/// What the disk takes, in microseconds.
const LATENCY_US: u32 = 20_000;

/// How fast memory comes that nobody waits for, in bytes per second: slow enough
/// for the guest to get ahead of it.
const BEHIND: u64 = 48 << 20;

/// What QEMU prints for each page fault of the daemon.
const FAULT: &str = "vhost_user_postcopy_fault_handler_found";

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "postcopy_of_a_guest_with_requests_in_flight", run: both_ways },
        Scenario { name: "postcopy_with_the_destination_killed", run: destination_dies },
    ]
}

/// What one migration was like.
struct Moved {
    handover: Handover,
    /// Page faults of the daemon.
    faults: usize,
    /// Page faults of daemon and guest, by the source.
    requests: u64,
    /// From the start of the guest to the arrival of the last page.
    incomplete: Duration,
    /// Operations completed in that time.
    ios: u64,
}

fn faults(there: &Rig) -> usize {
    there.vm.printed().matches(FAULT).count()
}

/// Both ends agree on postcopy, and QEMU at the destination traces it.
fn prepare(here: &mut Rig, there: &mut Rig) -> Result<(), String> {
    for rig in [here, &mut *there] {
        handover::set_capability(rig, "postcopy-ram", true)?;
        let parameters = json!({ "max-postcopy-bandwidth": BEHIND });
        rig.vm.execute("migrate-set-parameters", parameters)?;
    }
    // What it prints is the trace.
    there.provoked = true;
    let command = json!({ "command-line": format!("log trace:{FAULT}") });
    there.vm.execute("human-monitor-command", command).map(drop)
}

/// Memory is copied for a while, and then the guest goes ahead of it.
fn switch(bench: &mut Bench, here: &mut Rig, there: &mut Rig) -> Result<(), String> {
    let socket = bench.fresh_path("migrate");
    handover::begin(here, there, &socket, SLOW)?;
    handover::wait_for(here, "active")?;
    std::thread::sleep(Duration::from_millis(500));
    handover::still_active(here)?;
    here.vm.execute("migrate-start-postcopy", json!({})).map(drop)
}

fn once(bench: &mut Bench, inflight_migration: bool) -> Result<(Figures, Moved), String> {
    let mut here = bench.take_out(&Spec::moving(LATENCY_US, inflight_migration))?;
    let mut there = bench.receiver_with(&here, here.spec.disk.clone())?;
    prepare(&mut here, &mut there)?;
    let plan = Plan { seed: 210 + u64::from(inflight_migration), ..Plan::migrating() };
    let run = migrate::start(&here.vm.guest, &plan)?;
    run.wait_for(70, LIMIT)?;
    run.mark_deep(LIMIT)?;
    let (stop, start) = (handover::bookmark(&here), handover::bookmark(&there));
    switch(bench, &mut here, &mut there)?;
    let resumed = handover::arrive(&mut there)?;
    let (running, before) = (Instant::now(), run.status()?.number("done")?);
    let answer = handover::wait_for(&mut here, "completed")?;
    let ios = run.status()?.number("done")? - before;
    let incomplete = running.elapsed();
    process::until(LIMIT, "the daemon to be told that all memory is there", || {
        Ok(there.daemon.printed().contains("all memory is there").then_some(()))
    })?;
    let stopped = here.vm.qmp.last_event_us("STOP").ok_or("the source sent no STOP event")?;
    let downtime = answer["downtime"].as_u64().ok_or("the source has no downtime")?;
    let handover = Handover {
        downtime: Duration::from_millis(downtime),
        gap: Duration::from_micros(resumed.saturating_sub(stopped)),
        ..Handover::of_stop(&here, stop)
    }
    .resubmitted(&there, start)?;
    migrate::settle(&run)?;
    let requests = answer["ram"]["postcopy-requests"].as_u64().unwrap_or(0);
    run.wait_for(70, LIMIT)?;
    let figures = run.finish(&there.daemon.image)?;
    let moved = Moved { handover, faults: faults(&there), requests, incomplete, ios };
    migrate::close_all(vec![here])?;
    bench.put_back(there);
    Ok((figures, moved))
}

fn both_ways(bench: &mut Bench) -> Result<Figures, String> {
    let mut all = Figures::default();
    println!(
        "     requests   downtime stop-start  without all memory  I/O in it  faults: daemon  all  at stop  left resubmitted"
    );
    for inflight_migration in [false, true] {
        let (figures, moved) = once(bench, inflight_migration)?;
        let Moved { handover: h, faults, requests, incomplete, ios } = moved;
        println!(
            "     {:<9} {:>6} ms {:>7} ms  {:>15} ms  {ios:>9}  {faults:>14} {requests:>4}  {:>7} {:>5} {:>11}",
            if inflight_migration { "suspended" } else { "drained" },
            h.downtime.as_millis(),
            h.gap.as_millis(),
            incomplete.as_millis(),
            h.at_stop,
            h.left,
            h.resubmitted,
        );
        // The guest has just touched what it asks for anew. Requests that move in
        // flight have buffers that nobody has touched here.
        if inflight_migration && faults == 0 {
            return Err("the daemon met no missing page".to_string());
        }
        if ios == 0 {
            return Err("nothing was done before all memory was there".to_string());
        }
        if inflight_migration != (h.left > 0) || h.left != h.resubmitted {
            return Err(format!("{} were left and {} resubmitted", h.left, h.resubmitted));
        }
        all.add(figures);
    }
    Ok(all)
}

/// The guest is lost then, whatever the daemon does. But the daemon must not
/// wait forever, nor put zeroes on the disk for memory that never came: every
/// block is still one that the guest has written.
fn destination_dies(bench: &mut Bench) -> Result<Figures, String> {
    let mut here = bench.take_out(&Spec::moving(LATENCY_US, true))?;
    here.provoked = true;
    let mut there = bench.receiver_with(&here, here.spec.disk.clone())?;
    prepare(&mut here, &mut there)?;
    let parameters = json!({ "max-postcopy-bandwidth": 1 << 20 });
    here.vm.execute("migrate-set-parameters", parameters)?;
    let plan = Plan { seed: 215, writes: 90, flushes: 0, ..Plan::migrating() };
    let run = migrate::start(&here.vm.guest, &plan)?;
    run.wait_for(70, LIMIT)?;
    run.mark_deep(LIMIT)?;
    switch(bench, &mut here, &mut there)?;
    process::until(LIMIT, "the daemon to meet a missing page", || {
        Ok((faults(&there) > 0).then_some(()))
    })?;
    let faults = faults(&there);
    let mut daemon = there.daemon;
    there.vm.kill()?;
    process::until(LIMIT, "the daemon to be there for the next front-end", || {
        let printed = daemon.printed();
        let ways = ["the front-end has disconnected", "closing the connection"];
        Ok(ways.iter().any(|way| printed.contains(way)).then_some(()))
    })?;
    daemon.check_alive()?;
    let image = daemon.image.clone();
    daemon.terminate()?;
    drop(run);
    here.vm.kill()?;
    here.daemon.terminate()?;
    let blocks = plan.check_whole(&image)?;
    let mut figures = Figures::default();
    figures.note(format!(
        "{faults} page faults, then killed; {blocks} blocks are what the guest wrote"
    ));
    Ok(figures)
}
