//! Scenarios with an IOMMU between the guest's memory and the disk: every
//! buffer has an address that lives no longer than its request.

use std::time::Duration;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::handover;
use crate::migrate;
use crate::run::{Plan, Run};
use crate::vm::Iommu;

const LIMIT: Duration = Duration::from_secs(90);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "iommu_boot_and_verified_io", run: verified },
        Scenario { name: "iommu_large_requests_and_stop_and_cont", run: stop_cont },
        Scenario { name: "iommu_kill_during_io_next_daemon_finishes", run: kill },
        Scenario { name: "iommu_packed_kill_during_io", run: packed_kill },
        Scenario { name: "iommu_migration_with_requests_in_flight", run: migrate },
        Scenario { name: "iommu_without_ats_verified_io", run: without_ats },
    ]
}

fn spec(iommu: Iommu) -> Spec {
    Spec { iommu: Some(iommu), ..Spec::default() }
}

/// What the daemon has counted, once the device has come to rest.
fn counts(rig: &Rig) -> Result<(u64, u64, u64, u64), String> {
    let printed = rig.daemon.printed();
    let line = printed.lines().rfind(|line| line.contains("iommu: "));
    let line = line.ok_or("the daemon has said nothing of an iommu")?;
    let number = |before: &str| {
        let words: Vec<&str> = line.split([' ', ',']).filter(|w| !w.is_empty()).collect();
        words
            .iter()
            .position(|word| *word == before)
            .and_then(|at| words[at - 1].parse().ok())
            .ok_or(format!("no {before} in {line:?}"))
    };
    Ok((number("misses")?, number("updates")?, number("invalidations")?, number("refused")?))
}

/// Bring the device to rest and say what it took; nothing may be refused.
fn note_counts(rig: &mut Rig, figures: &mut Figures) -> Result<(), String> {
    rig.vm.stop()?;
    rig.vm.cont()?;
    let (misses, updates, invalidations, refused) = counts(rig)?;
    figures.note(format!(
        "{misses} misses, {updates} updates, {invalidations} invalidations, {refused} refused"
    ));
    if misses == 0 || updates == 0 || invalidations == 0 || refused != 0 {
        return Err(format!("that cannot be: {figures}"));
    }
    Ok(())
}

fn check_feature(rig: &Rig) -> Result<(), String> {
    const ACCESS_PLATFORM: u64 = 1 << 33;
    let features = rig.vm.guest.ask("info disk=vda")?.number("features")?;
    if features & ACCESS_PLATFORM == 0 {
        return Err(format!("the guest's features are {features:#x}"));
    }
    Ok(())
}

fn verified(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec(Iommu::Intel))?;
    check_feature(rig)?;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 80, ..Plan::default() })?;
    run.wait_for(1500, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    note_counts(rig, &mut figures)?;
    Ok(figures)
}

fn stop_cont(bench: &mut Bench) -> Result<Figures, String> {
    const ROUNDS: u64 = 8;
    let rig = bench.rig(&spec(Iommu::Intel))?;
    let plan = Plan { seed: 81, len: 32 << 20, most: 32, depth: 16, ..Plan::default() };
    let run = Run::start(&rig.vm.guest, &plan)?;
    for round in 1..=ROUNDS {
        run.wait_for(round * 40, LIMIT)?;
        rig.vm.stop()?;
        rig.vm.cont()?;
    }
    run.wait_for(ROUNDS * 40 + 100, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    note_counts(rig, &mut figures)?;
    Ok(figures)
}

fn kill(bench: &mut Bench) -> Result<Figures, String> {
    kill_on(bench, &Spec { iommu: Some(Iommu::Intel), ..Spec::slow() }, 82)
}

fn packed_kill(bench: &mut Bench) -> Result<Figures, String> {
    let spec = Spec { iommu: Some(Iommu::Intel), device: ",packed=on", ..Spec::slow() };
    kill_on(bench, &spec, 84)
}

fn kill_on(bench: &mut Bench, spec: &Spec, seed: u64) -> Result<Figures, String> {
    const ROUNDS: u32 = 6;
    let rig = bench.rig(spec)?;
    check_feature(rig)?;
    let run = Run::start(&rig.vm.guest, &Plan { seed, ..Plan::slow() })?;
    let mut held = 0;
    for round in 0..ROUNDS {
        run.wait_for(64 + u64::from(round) * 40, LIMIT)?;
        held += run.mark_deep(LIMIT)?;
        rig.daemon.kill()?;
        std::thread::sleep(Duration::from_millis(u64::from(round % 3 * 90)));
        rig.daemon.start_again()?;
        run.wait_for_marked(LIMIT).map_err(|what| format!("round {round}: {what}"))?;
    }
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note(format!("{ROUNDS} kills, {held} operations outstanding at them"));
    note_counts(rig, &mut figures)?;
    Ok(figures)
}

/// Requests are left in the region on one host, and find their buffers on the
/// other by asking for them.
fn migrate(bench: &mut Bench) -> Result<Figures, String> {
    const ROUNDS: u64 = 3;
    let spec = Spec { iommu: Some(Iommu::Intel), ..migrate::moving() };
    let mut here = bench.take_out(&spec)?;
    let run = migrate::start(&here.vm.guest, &Plan { seed: 85, ..Plan::migrating() })?;
    let (mut left, mut in_flight, mut resubmitted) = (Vec::new(), 0, 0);
    for _ in 0..ROUNDS {
        let mut there = bench.receiver_with(&here, migrate::slow_disk())?;
        run.mark_deep(LIMIT)?;
        let socket = bench.fresh_path("migrate");
        let handover = handover::hand_over(&mut here, &mut there, &socket)?;
        (in_flight, resubmitted) = (in_flight + handover.left, resubmitted + handover.resubmitted);
        migrate::settle(&run)?;
        left.push(std::mem::replace(&mut here, there));
    }
    let mut figures = run.finish(&here.daemon.image)?;
    figures.note(format!(
        "{ROUNDS} migrations, {in_flight} requests left and {resubmitted} resubmitted"
    ));
    note_counts(&mut here, &mut figures)?;
    migrate::close_all(left)?;
    bench.put_back(here);
    if in_flight == 0 || in_flight != resubmitted {
        return Err(format!("that cannot be: {figures}"));
    }
    Ok(figures)
}

fn without_ats(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec(Iommu::IntelWithoutAts))?;
    check_feature(rig)?;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 83, ..Plan::default() })?;
    run.wait_for(800, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    note_counts(rig, &mut figures)?;
    Ok(figures)
}
