//! Scenarios in which the image changes its size under a guest.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::guest::Guest;
use crate::process;
use crate::run::{Plan, Run};

const LIMIT: Duration = Duration::from_secs(20);
const MIB: u64 = 1 << 20;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "resize_grow_during_io", run: grow },
        Scenario { name: "resize_grow_while_the_daemon_is_down", run: grow_while_down },
        Scenario { name: "resize_grow_while_the_machine_is_stopped", run: grow_while_stopped },
        Scenario { name: "resize_shrink_serves_what_is_left", run: shrink },
    ]
}

/// A machine of its own, since its image does not stay as it was.
fn spec() -> Spec {
    Spec { size: 24 * MIB, ..Spec::plain() }
}

fn resize(image: &Path, size: u64) -> Result<(), String> {
    File::options()
        .write(true)
        .open(image)
        .and_then(|file| file.set_len(size))
        .map_err(|error| format!("cannot resize {}: {error}", image.display()))
}

/// Waits until the guest's kernel has the disk at this size.
fn wait_for_size(guest: &Guest, size: u64) -> Result<Duration, String> {
    let start = Instant::now();
    process::until(LIMIT, &format!("the guest to see {} sectors", size / 512), || {
        let sectors = guest.ask("info disk=vda")?.number("sectors")?;
        Ok((sectors == size / 512).then_some(()))
    })?;
    Ok(start.elapsed())
}

/// Verified I/O in the last 4 MiB of a disk of `size` bytes.
fn use_end(rig: &Rig, size: u64, seed: u64) -> Result<Figures, String> {
    let plan = Plan { offset: size - 4 * MIB, len: 4 * MIB, seed, ..Plan::default() };
    let run = Run::start(&rig.vm.guest, &plan)?;
    run.wait_for(1000, LIMIT)?;
    run.finish(&rig.daemon.image)
}

fn grow(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec())?;
    let mut size = rig.spec.size;
    let mut figures = Figures::default();
    let (mut alone, mut told) = (Duration::ZERO, Duration::ZERO);
    for round in 0..6 {
        let run = Run::start(&rig.vm.guest, &Plan { seed: 60 + round, ..Plan::default() })?;
        run.wait_for(300, LIMIT)?;
        size += 8 * MIB;
        resize(&rig.daemon.image, size)?;
        // Every other time the daemon is told, otherwise it finds out.
        if round % 2 == 1 {
            rig.daemon.hang_up()?;
        }
        let seen = wait_for_size(&rig.vm.guest, size)?;
        let longest = if round % 2 == 1 { &mut told } else { &mut alone };
        *longest = seen.max(*longest);
        run.wait_for(300, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
        figures.add(use_end(rig, size, 70 + round)?);
    }
    figures.note(format!(
        "6 times by 8 MiB to {size} bytes, seen by the guest within {} ms by itself and {} ms by SIGHUP",
        alone.as_millis(),
        told.as_millis()
    ));
    finish(bench, figures)
}

fn grow_while_down(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec())?;
    let mut size = rig.spec.size;
    let mut figures = Figures::default();
    let mut longest = Duration::ZERO;
    for round in 0..3 {
        let run = Run::start(&rig.vm.guest, &Plan { seed: 80 + round, ..Plan::default() })?;
        run.wait_for(300, LIMIT)?;
        rig.daemon.kill()?;
        size += 8 * MIB;
        resize(&rig.daemon.image, size)?;
        run.mark()?;
        rig.daemon.start_again()?;
        longest = longest.max(wait_for_size(&rig.vm.guest, size)?);
        run.wait_for_marked(LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
        figures.add(use_end(rig, size, 90 + round)?);
    }
    figures.note(format!(
        "3 kills, {size} bytes in the end, seen within {} ms of the next daemon",
        longest.as_millis()
    ));
    finish(bench, figures)
}

fn grow_while_stopped(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec())?;
    let size = rig.spec.size + 8 * MIB;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 100, ..Plan::default() })?;
    run.wait_for(300, LIMIT)?;
    rig.vm.stop()?;
    resize(&rig.daemon.image, size)?;
    rig.daemon.hang_up()?;
    std::thread::sleep(Duration::from_millis(200));
    rig.vm.cont()?;
    let seen = wait_for_size(&rig.vm.guest, size)?;
    run.wait_for(300, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.add(use_end(rig, size, 101)?);
    figures.note(format!("seen {} ms after the machine went on", seen.as_millis()));
    finish(bench, figures)
}

fn shrink(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&spec())?;
    let size = rig.spec.size - 8 * MIB;
    let run = Run::start(&rig.vm.guest, &Plan { seed: 110, ..Plan::default() })?;
    run.wait_for(300, LIMIT)?;
    resize(&rig.daemon.image, size)?;
    rig.daemon.hang_up()?;
    wait_for_size(&rig.vm.guest, size)?;
    run.wait_for(300, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.add(use_end(rig, size, 111)?);
    let range = format!("disk=vda offset={size} len=4096");
    if rig.vm.guest.ask(&format!("fill {range} byte=1")).is_ok() {
        return Err("the guest wrote beyond the end of its disk".to_string());
    }
    figures.note(format!("{size} bytes are left"));
    finish(bench, figures)
}

/// The next scenario gets an image of the size it asks for.
fn finish(bench: &mut Bench, figures: Figures) -> Result<Figures, String> {
    bench.renew()?;
    Ok(figures)
}
