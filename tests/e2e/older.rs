//! Machines of older QEMUs, whose front-ends speak in another order and accept
//! less: 7.2 is the oldest that enables its rings by message, and neither knows
//! of the inflight region of a migration.

use std::time::Duration;

use crate::bench::{Bench, Figures, Older, Spec};
use crate::daemon::DiskOptions;
use crate::run::{Plan, Run};
use crate::{SKIPPED, Scenario, crash, steady};

/// The front-end of 7.2 looks for its back-end once a second.
const LIMIT: Duration = Duration::from_secs(30);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "older_qemu_7_2_boot_and_verified_io", run: |b| io(b, Older::V7_2) },
        Scenario { name: "older_qemu_7_2_stop_and_cont", run: |b| stop_cont(b, Older::V7_2) },
        Scenario { name: "older_qemu_7_2_kill_and_reconnect", run: |b| kill(b, Older::V7_2) },
        Scenario { name: "older_qemu_10_0_boot_and_verified_io", run: |b| io(b, Older::V10_0) },
        Scenario { name: "older_qemu_10_0_stop_and_cont", run: |b| stop_cont(b, Older::V10_0) },
        Scenario { name: "older_qemu_10_0_kill_and_reconnect", run: |b| kill(b, Older::V10_0) },
    ]
}

fn found(older: Older) -> Result<String, String> {
    older
        .found()
        .ok_or_else(|| format!("{SKIPPED}: no QEMU {} here; run tests/e2e/prepare", older.version))
}

/// Two queues, and a disk that takes its time.
fn slow(older: Older) -> Spec {
    Spec { older: Some(older), ..Spec::slow() }
}

fn io(bench: &mut Bench, older: Older) -> Result<Figures, String> {
    let version = found(older)?;
    let disk = DiskOptions { queues: 2, ..DiskOptions::default() };
    let rig = bench.rig(&Spec { cpus: 2, disk, older: Some(older), ..Spec::default() })?;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 70, ..Plan::default() })?;
    run.wait_for(6000, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    let info = rig.vm.guest.ask("info disk=vda")?;
    figures.note(format!(
        "QEMU {version}, {} queues, features {:#x}",
        info.text("queues")?,
        info.number("features")?
    ));
    Ok(figures)
}

fn stop_cont(bench: &mut Bench, older: Older) -> Result<Figures, String> {
    found(older)?;
    steady::stop_cont_on(bench, &slow(older), &Plan { seed: 71, ..Plan::slow() }, 100)
}

fn kill(bench: &mut Bench, older: Older) -> Result<Figures, String> {
    found(older)?;
    crash::few_kills_on(bench, &slow(older), 72)
}
