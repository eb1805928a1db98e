//! Migrations that do not come to their end, or do so with a daemon killed.

use std::time::Duration;

use serde_json::json;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::handover::{self, FAST, Handover, SLOW};
use crate::migrate::{self, moving, slow_disk};
use crate::run::Plan;

/// Longest a stretch of I/O may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "migration_cancelled_and_resumed_at_the_source", run: cancelled },
        Scenario { name: "migration_refused_by_qemu_and_resumed", run: smaller_ring },
        Scenario { name: "migration_with_the_source_daemon_killed", run: kill_source },
        Scenario { name: "migration_with_the_destination_daemon_killed", run: kill_destination },
    ]
}

fn pause(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

/// Cancelled while memory is copied.
fn cancel_early(here: &mut Rig) -> Result<u64, String> {
    handover::send(here, "exec:cat > /dev/null", SLOW)?;
    handover::wait_for(here, "active")?;
    pause(300);
    here.vm.execute("migrate_cancel", json!({}))?;
    handover::wait_for(here, "cancelled")?;
    Ok(0)
}

/// Cancelled when the vrings have been stopped and nothing has been handed over.
fn cancel_late(here: &mut Rig) -> Result<u64, String> {
    let stop = handover::bookmark(here);
    handover::set_capability(here, "pause-before-switchover", true)?;
    handover::send(here, "exec:cat > /dev/null", FAST)?;
    handover::wait_for(here, "pre-switchover")?;
    here.vm.execute("migrate_cancel", json!({}))?;
    handover::wait_for(here, "cancelled")?;
    handover::set_capability(here, "pause-before-switchover", false)?;
    Ok(Handover::of_stop(here, stop).left)
}

/// The destination dies while memory is copied.
fn destination_dies(bench: &mut Bench, here: &mut Rig) -> Result<u64, String> {
    let mut there = bench.receiver_with(here, slow_disk())?;
    let socket = bench.fresh_path("migrate");
    handover::begin(here, &mut there, &socket, SLOW)?;
    handover::wait_for(here, "active")?;
    pause(300);
    there.vm.kill()?;
    handover::wait_for(here, "failed")?;
    there.daemon.check_alive()?;
    there.daemon.terminate()?;
    Ok(0)
}

fn cancelled(bench: &mut Bench) -> Result<Figures, String> {
    const ROUNDS: u64 = 2;
    let mut here = bench.take_out(&moving())?;
    here.provoked = true;
    let run = migrate::start(&here.vm.guest, &Plan { seed: 160, ..Plan::migrating() })?;
    let mut left = 0;
    for round in 0..ROUNDS {
        for way in 0..3 {
            run.wait_for(70, LIMIT)?;
            run.mark_deep(LIMIT)?;
            left += match way {
                0 => cancel_early(&mut here),
                1 => cancel_late(&mut here),
                _ => destination_dies(bench, &mut here),
            }
            .map_err(|what| format!("round {round} way {way}: {what}"))?;
            handover::wait_running(&mut here)?;
            migrate::settle(&run)?;
        }
    }
    // It still can be migrated.
    let mut there = bench.receiver_with(&here, slow_disk())?;
    let socket = bench.fresh_path("migrate");
    let handover = handover::hand_over(&mut here, &mut there, &socket)?;
    migrate::settle(&run)?;
    let mut figures = run.finish(&there.daemon.image)?;
    migrate::close_all(vec![here])?;
    bench.put_back(there);
    if left == 0 {
        return Err("nothing was in flight when it was cancelled after the stop".to_string());
    }
    figures.note(format!(
        "{} migrations given up, {left} requests resumed at the source, {} moved at last",
        3 * ROUNDS,
        handover.left
    ));
    Ok(figures)
}

/// A destination whose rings are too small for the machine finds out when it
/// reads the last part, and the source has long suspended its requests.
fn smaller_ring(bench: &mut Bench) -> Result<Figures, String> {
    let spec = moving();
    let mut here = bench.take_out(&spec)?;
    here.provoked = true;
    let run = migrate::start(&here.vm.guest, &Plan { seed: 165, ..Plan::migrating() })?;
    run.mark_deep(LIMIT)?;
    let daemon = bench.serve_image(&here.daemon.image, slow_disk())?;
    let mut there = bench.receiver_of(Spec { queue_size: 64, ..spec }, &here, daemon)?;
    // Else the source believes what it has sent to have arrived.
    handover::set_capability(&mut here, "return-path", true)?;
    handover::set_capability(&mut there, "return-path", true)?;
    let (stop, socket) = (handover::bookmark(&here), bench.fresh_path("migrate"));
    handover::begin(&mut here, &mut there, &socket, FAST)?;
    handover::wait_for(&mut here, "failed")?;
    handover::wait_running(&mut here)?;
    handover::set_capability(&mut here, "return-path", false)?;
    migrate::settle(&run)?;
    let left = Handover::of_stop(&here, stop).left;
    let mut figures = run.finish(&here.daemon.image)?;
    there.daemon.check_alive()?;
    if there.daemon.printed().contains(" runs: ") {
        return Err(format!("the destination's daemon ran: {}", there.daemon.printed()));
    }
    there.daemon.terminate()?;
    bench.put_back(here);
    let said = there.vm.printed();
    figures.note(format!(
        "{left} requests resumed at the source; qemu: \"{}\"",
        said.lines().next().unwrap_or("")
    ));
    Ok(figures)
}

/// The source's daemon dies while memory is copied, and its successor hands
/// over what it has taken over.
fn kill_source(bench: &mut Bench) -> Result<Figures, String> {
    let mut here = bench.take_out(&moving())?;
    let mut there = bench.receiver_with(&here, slow_disk())?;
    let run = migrate::start(&here.vm.guest, &Plan { seed: 170, ..Plan::migrating() })?;
    run.wait_for(200, LIMIT)?;
    let socket = bench.fresh_path("migrate");
    handover::begin(&mut here, &mut there, &socket, SLOW)?;
    handover::wait_for(&mut here, "active")?;
    pause(300);
    let held = run.mark_deep(LIMIT)?;
    here.daemon.kill()?;
    here.daemon.start_again()?;
    run.wait_for_marked(LIMIT)?;
    handover::still_active(&mut here)?;
    let stop = handover::bookmark(&here);
    handover::set_bandwidth(&mut here.vm, FAST)?;
    let handover = handover::complete(&mut here, &mut there, stop)?;
    migrate::settle(&run)?;
    let mut figures = run.finish(&there.daemon.image)?;
    migrate::close_all(vec![here])?;
    bench.put_back(there);
    figures.note(format!("{held} outstanding at the kill, {} moved", handover.left));
    Ok(figures)
}

/// The destination's daemon dies when it has just taken the requests over.
fn kill_destination(bench: &mut Bench) -> Result<Figures, String> {
    const TIMES: u64 = 3;
    let mut here = bench.take_out(&moving())?;
    let run = migrate::start(&here.vm.guest, &Plan { seed: 180, ..Plan::migrating() })?;
    let (mut left, mut sources) = (0, Vec::new());
    for round in 0..TIMES {
        run.wait_for(100, LIMIT)?;
        run.mark_deep(LIMIT)?;
        let mut there = bench.receiver_with(&here, slow_disk())?;
        let socket = bench.fresh_path("migrate");
        let handover = handover::hand_over(&mut here, &mut there, &socket)?;
        // Before it has finished any, and when it has finished some.
        pause(round * 20);
        there.daemon.kill()?;
        there.daemon.start_again()?;
        migrate::settle(&run).map_err(|what| format!("round {round}: {what}"))?;
        left += handover.left;
        sources.push(std::mem::replace(&mut here, there));
    }
    let mut figures = run.finish(&here.daemon.image)?;
    migrate::close_all(sources)?;
    bench.put_back(here);
    figures.note(format!("{TIMES} times, {left} requests had moved"));
    Ok(figures)
}
