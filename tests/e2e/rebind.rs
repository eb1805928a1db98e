//! The guest's driver is taken off its device under I/O, again and again: each
//! time the device is reset with requests in flight and set up anew.

use std::time::{Duration, Instant};

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::block;
use crate::daemon::DiskOptions;
use crate::run::{Plan, Run};
use crate::vm::wait_for_disks;

const TIMES: u64 = 200;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "driver_unbound_and_bound_200_times_under_io", run: rebind }]
}

fn rebind(bench: &mut Bench) -> Result<Figures, String> {
    let disk = DiskOptions { queues: 4, ..DiskOptions::default() };
    let rig = bench.rig(&Spec { cpus: 4, size: 16 << 20, disk, ..Spec::default() })?;
    let guest = rig.vm.guest.clone();
    let plan = Plan { seed: 80, ..Plan::slow() };
    let started = rig.daemon.printed().lines().count();
    let run = Run::start(&guest, &plan)?;
    run.wait_for(500, Duration::from_secs(30))?;
    run.finish(&rig.daemon.image)?;
    let (mut ios, mut cut_off, mut checked) = (0, 0, 0);
    let (mut random, mut slowest) = (block::mix(plan.seed), Duration::ZERO);
    for round in 0..TIMES {
        let in_round = |what: String| format!("round {round}: {what}");
        guest.ask(&format!("start {} fresh=0 frail=1", plan.arguments()))?;
        random = block::mix(random);
        std::thread::sleep(Duration::from_millis(random % 30));
        let device = guest.ask("device disk=vda")?.text("device")?.to_string();
        let began = Instant::now();
        guest.ask(&format!("unbind device={device}")).map_err(in_round)?;
        // What was in flight fails or not, but it ends, and then the job.
        let status = guest.ask("stop wait=20").map_err(in_round)?;
        guest.ask(&format!("bind device={device}")).map_err(in_round)?;
        wait_for_disks(&guest, "vda").map_err(in_round)?;
        slowest = slowest.max(began.elapsed());
        if status.number("mismatches")? != 0 {
            return Err(in_round(format!("mismatch: {}", status.text("first")?)));
        }
        ios += status.number("done")?;
        cut_off += status.number("errors")?;
        let verified = guest.ask("verify").map_err(in_round)?;
        if verified.number("wrong")? != 0 {
            return Err(in_round(format!("wrong on the disk: {}", verified.text("first")?)));
        }
        checked += verified.number("right")?;
        // Which of two writes a block holds is known from now on.
        guest.ask(&format!("scan {}", plan.arguments())).map_err(in_round)?;
        rig.daemon.check_alive()?;
    }
    let run = Run::go_on(&guest, &plan)?;
    run.wait_for(500, Duration::from_secs(30))?;
    let mut figures = run.finish(&rig.daemon.image)?;
    if cut_off < TIMES {
        return Err(format!("only {cut_off} operations met the end of the device: too few"));
    }
    figures.note(format!(
        "{TIMES} times, {ios} operations before, {cut_off} of them cut off, {checked} blocks right \
         afterwards, longest {} ms, daemon said {} lines",
        slowest.as_millis(),
        rig.daemon.printed().lines().count() - started
    ));
    Ok(figures)
}
