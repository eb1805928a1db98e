//! Scenarios in which the daemon dies or is replaced during I/O on a slow disk.

use std::time::{Duration, Instant};

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::block;
use crate::daemon::DiskOptions;
use crate::run::{Plan, Run};
use crate::steady;
use crate::vm::Vm;

/// Longest until everything that was outstanding at a kill has completed.
const LIMIT: Duration = Duration::from_secs(20);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "stop_and_cont_on_a_slow_disk", run: stop_cont },
        Scenario { name: "kill_during_io_next_daemon_finishes", run: kill },
        Scenario { name: "kill_again_before_recovery_is_over", run: kill_twice },
        Scenario { name: "kill_while_stopped_then_cont", run: kill_while_stopped },
        Scenario { name: "kill_while_stopped_cont_before_next_daemon", run: cont_before_daemon },
        Scenario { name: "sigterm_during_io_successor_resumes", run: sigterm },
        Scenario { name: "front_end_quits_or_dies_during_io", run: front_end_leaves },
        Scenario { name: "kill_storm_on_a_fast_disk", run: storm_cached },
        Scenario { name: "kill_storm_on_a_fast_direct_disk", run: storm_direct },
    ]
}

fn stop_cont(bench: &mut Bench) -> Result<Figures, String> {
    steady::stop_cont_on(bench, &Spec::slow(), &Plan { seed: 40, ..Plan::slow() }, 100)
}

/// Lets I/O run, does `disturb` with nearly all of the depth outstanding, and
/// waits until all that was outstanding has completed; `rounds` times.
fn disturbed(
    bench: &mut Bench,
    spec: &Spec,
    seed: u64,
    rounds: u32,
    disturb: impl Fn(&mut Rig, u32) -> Result<(), String>,
) -> Result<Figures, String> {
    let rig = bench.rig(spec)?;
    let run = Run::start(&rig.vm.guest, &Plan { seed, ..Plan::slow() })?;
    let (mut held, mut longest) = (0, Duration::ZERO);
    for round in 0..rounds {
        // Not always at the same place of the cycle of 32 operations.
        run.wait_for(64 + u64::from(round) * 7, LIMIT)?;
        held += run.mark_deep(LIMIT)?;
        let start = Instant::now();
        disturb(rig, round)?;
        run.wait_for_marked(LIMIT).map_err(|what| format!("round {round}: {what}"))?;
        longest = longest.max(start.elapsed());
        rig.daemon.check_alive()?;
    }
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note(format!(
        "{rounds} rounds, {held} operations outstanding at them, all completed after at most {} ms",
        longest.as_millis()
    ));
    Ok(figures)
}

fn pause(milliseconds: u32) {
    std::thread::sleep(Duration::from_millis(u64::from(milliseconds)));
}

fn kill(bench: &mut Bench) -> Result<Figures, String> {
    kill_on(bench, &Spec::slow())
}

pub fn kill_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    disturbed(bench, spec, 41, 10, |rig, round| {
        rig.daemon.kill()?;
        // The front-end tries every 100 ms: be there at once, or let it fail.
        pause(round % 4 * 90);
        rig.daemon.start_again()
    })
}

/// Fewer, for machines of which something else is asked.
pub fn few_kills_on(bench: &mut Bench, spec: &Spec, seed: u64) -> Result<Figures, String> {
    disturbed(bench, spec, seed, 5, |rig, round| {
        rig.daemon.kill()?;
        pause(round * 90);
        rig.daemon.start_again()
    })
}

/// The next daemon is killed while it still holds what it took over.
fn kill_twice(bench: &mut Bench) -> Result<Figures, String> {
    kill_twice_on(bench, &Spec::slow())
}

pub fn kill_twice_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    disturbed(bench, spec, 42, 5, |rig, round| {
        rig.daemon.kill()?;
        rig.daemon.start_again()?;
        // Between "not yet connected" and "some have completed again".
        pause(60 + 25 * round);
        rig.daemon.kill()?;
        rig.daemon.start_again()
    })
}

fn kill_while_stopped(bench: &mut Bench) -> Result<Figures, String> {
    kill_while_stopped_on(bench, &Spec::slow())
}

pub fn kill_while_stopped_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    disturbed(bench, spec, 43, 4, |rig, round| {
        rig.vm.stop()?;
        rig.daemon.kill()?;
        pause(round * 100);
        rig.daemon.start_again()?;
        // Continue before as well as after the front-end has connected again.
        pause(round % 2 * 250);
        rig.vm.cont()
    })
}

fn cont_before_daemon(bench: &mut Bench) -> Result<Figures, String> {
    disturbed(bench, &Spec::slow(), 44, 4, |rig, round| {
        rig.vm.stop()?;
        rig.daemon.kill()?;
        rig.vm.cont()?;
        pause(50 + round * 100);
        rig.daemon.start_again()
    })
}

fn sigterm(bench: &mut Bench) -> Result<Figures, String> {
    disturbed(bench, &Spec::slow(), 45, 6, |rig, round| {
        rig.daemon.terminate()?;
        pause(round % 3 * 100);
        rig.daemon.start_again()
    })
}

/// The machine goes away, politely or not, with requests in flight. Nobody
/// will ask for them again; the next machine must find a disk that works.
fn front_end_leaves(bench: &mut Bench) -> Result<Figures, String> {
    let mut figures = Figures::default();
    for (seed, how) in [(46, Vm::quit as fn(Vm) -> Result<(), String>), (47, Vm::kill)] {
        let guest = bench.rig(&Spec::slow())?.vm.guest.clone();
        let plan = Plan { seed, ..Plan::slow() };
        guest.ask(&format!("start {} fresh=1", plan.arguments()))?;
        pause(500);
        let inflight = guest.ask("status")?.number("inflight")?;
        let rig = bench.next_machine(how)?;
        let run = Run::start(&rig.vm.guest, &Plan { seed: seed + 10, ..plan })?;
        run.wait_for(300, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
        figures.note(format!("left with {inflight} in flight"));
    }
    Ok(figures)
}

/// Kills at moments that have nothing to do with what the daemon is doing, on
/// a disk without delay, where thousands of requests a second pass through the
/// steps of the tracking. It finds a daemon that cannot be restarted under
/// load. It proves little about the tracking: a back-end that has none, but
/// completes nearly in order, passes it; the slow disks above tell them apart.
pub fn storm_on(bench: &mut Bench, seed: u64, spec: &Spec) -> Result<Figures, String> {
    const KILLS: u32 = 30;
    let rig = bench.rig(spec)?;
    let plan = Plan { len: 2 << 20, most: 2, seed, ..Plan::default() };
    let run = Run::start(&rig.vm.guest, &plan)?;
    let (mut random, mut held, mut longest) = (block::mix(seed), 0, Duration::ZERO);
    for kill in 0..KILLS {
        random = block::mix(random);
        std::thread::sleep(Duration::from_micros(40_000 + random % 60_000));
        held += run.mark()?;
        let start = Instant::now();
        rig.daemon.kill()?;
        rig.daemon.start_again()?;
        run.wait_for_marked(LIMIT).map_err(|what| format!("kill {kill}: {what}"))?;
        longest = longest.max(start.elapsed());
        rig.daemon.check_alive()?;
    }
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note(format!(
        "{KILLS} kills, {held} operations outstanding at them, all completed after at most {} ms",
        longest.as_millis()
    ));
    Ok(figures)
}

/// Two of each, on a disk without delay.
pub fn fast(direct: bool) -> Spec {
    let disk = DiskOptions { queues: 2, direct, ..DiskOptions::default() };
    Spec { cpus: 2, size: 16 << 20, disk, ..Spec::default() }
}

fn storm_cached(bench: &mut Bench) -> Result<Figures, String> {
    storm_on(bench, 60, &fast(false))
}

fn storm_direct(bench: &mut Bench) -> Result<Figures, String> {
    storm_on(bench, 61, &fast(true))
}
