//! A guest that has agreed to in-order completion, on a disk that finishes in
//! any order.

use std::time::Duration;

use crate::bench::{Bench, Figures, Spec};
use crate::daemon::DiskOptions;
use crate::run::{Plan, Run};
use crate::{SKIPPED, Scenario, crash, steady};

const LIMIT: Duration = Duration::from_secs(40);
/// VIRTIO_F_IN_ORDER.
const IN_ORDER: u32 = 35;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "in_order_boot_and_verified_io", run: io },
        Scenario { name: "in_order_stop_and_cont_on_a_slow_disk", run: stop_cont },
        Scenario { name: "in_order_kill_and_reconnect", run: kill },
    ]
}

fn spec(throttle_us: u32) -> Spec {
    let more = &["--in-order"];
    let disk = DiskOptions { queues: 2, throttle_us, more, ..DiskOptions::default() };
    Spec { cpus: 2, size: 16 << 20, disk, device: ",in_order=on", ..Spec::default() }
}

/// A guest may decline; then nothing of this is tested.
fn agreed(bench: &mut Bench, spec: &Spec) -> Result<u64, String> {
    let rig = bench.rig(spec)?;
    let features = rig.vm.guest.ask("info disk=vda")?.number("features")?;
    match features >> IN_ORDER & 1 {
        1 => Ok(features),
        _ => Err(format!("{SKIPPED}: guest or QEMU declines in-order use, features {features:#x}")),
    }
}

fn io(bench: &mut Bench) -> Result<Figures, String> {
    let features = agreed(bench, &spec(0))?;
    let rig = bench.rig(&spec(0))?;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 100, ..Plan::default() })?;
    run.wait_for(6000, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note(format!("features {features:#x}"));
    Ok(figures)
}

fn stop_cont(bench: &mut Bench) -> Result<Figures, String> {
    agreed(bench, &spec(40_000))?;
    steady::stop_cont_on(bench, &spec(40_000), &Plan { seed: 101, ..Plan::slow() }, 100)
}

fn kill(bench: &mut Bench) -> Result<Figures, String> {
    agreed(bench, &spec(40_000))?;
    crash::few_kills_on(bench, &spec(40_000), 102)
}
