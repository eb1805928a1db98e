//! Scenarios in which nothing dies: I/O, features, discard, stop and cont,
//! reboot.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::daemon::DiskOptions;
use crate::run::{self, Plan, Run};
use crate::vm;

/// Longest a stretch of I/O may take.
const LIMIT: Duration = Duration::from_secs(60);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "boot_and_verified_io_with_one_queue", run: one_queue },
        Scenario { name: "large_requests_of_many_segments", run: large_requests },
        Scenario { name: "features_event_idx_and_indirect_negotiated", run: features },
        Scenario { name: "serial_number_reaches_the_guest", run: serial },
        Scenario { name: "discard_and_write_zeroes", run: discard },
        Scenario { name: "cache_mode_toggled_by_the_guest", run: cache_mode },
        Scenario { name: "stop_and_cont_during_io", run: stop_cont },
        Scenario { name: "driver_unbound_and_bound", run: rebind },
        Scenario { name: "guest_reboot_keeps_data", run: reboot },
        Scenario { name: "machine_reset_during_io", run: reset_during_io },
        Scenario { name: "verified_io_with_four_queues", run: four_queues },
    ]
}

fn one_queue(bench: &mut Bench) -> Result<Figures, String> {
    one_queue_on(bench, &Spec::plain())
}

pub fn one_queue_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let rig = bench.rig(spec)?;
    let info = rig.vm.guest.ask("info disk=vda")?;
    let expected = rig.spec.size / 512;
    if info.number("sectors")? != expected {
        return Err(format!("guest sees {} sectors, expected {expected}", info.text("sectors")?));
    }
    let run = Run::start(&rig.vm.guest, &Plan::default())?;
    run.wait_for(8000, LIMIT)?;
    run.finish(&rig.daemon.image)
}

/// Up to 128 KiB at once from memory that is not contiguous: tables of
/// indirect descriptors with many entries.
fn large_requests(bench: &mut Bench) -> Result<Figures, String> {
    large_requests_on(bench, &Spec::plain())
}

pub fn large_requests_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let rig = bench.rig(spec)?;
    let plan = Plan { len: 32 << 20, most: 32, depth: 16, seed: 2, ..Plan::default() };
    let run = Run::start(&rig.vm.guest, &plan)?;
    run.wait_for(1500, LIMIT)?;
    run.finish(&rig.daemon.image)
}

fn features(bench: &mut Bench) -> Result<Figures, String> {
    // spec: virtio 1.2, "Feature bits" of the block device and "Reserved Feature Bits"
    const WANTED: [(u32, &str); 8] = [
        (6, "BLK_SIZE"),
        (9, "FLUSH"),
        (11, "CONFIG_WCE"),
        (13, "DISCARD"),
        (14, "WRITE_ZEROES"),
        (28, "INDIRECT_DESC"),
        (29, "EVENT_IDX"),
        (32, "VERSION_1"),
    ];
    let rig = bench.rig(&Spec::plain())?;
    let info = rig.vm.guest.ask("info disk=vda")?;
    let found = info.number("features")?;
    let missing: Vec<&str> =
        WANTED.iter().filter(|(bit, _)| found >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if !missing.is_empty() {
        return Err(format!("not negotiated: {} (features {found:#x})", missing.join(", ")));
    }
    let mut figures = Figures::default();
    figures.note(format!("features {found:#x}, interrupts so far {}", info.text("interrupts")?));
    Ok(figures)
}

fn serial(bench: &mut Bench) -> Result<Figures, String> {
    let spec = Spec::plain();
    let rig = bench.rig(&spec)?;
    let info = rig.vm.guest.ask("info disk=vda")?;
    let mut figures = Figures::default();
    figures.note(format!("serial {}", info.text("serial")?));
    // The other back-end makes one of its own.
    let expected = spec.disk.serial.unwrap_or_default();
    if rig.daemon.is_midflight() && info.text("serial")? != expected {
        return Err(format!("serial is {}, expected {expected}", info.text("serial")?));
    }
    Ok(figures)
}

/// Bytes the file system has given the image.
fn allocated(image: &Path) -> Result<u64, String> {
    fs::metadata(image)
        .map(|data| data.blocks() * 512)
        .map_err(|error| format!("{}: {error}", image.display()))
}

fn discard(bench: &mut Bench) -> Result<Figures, String> {
    const MIB: u64 = 1 << 20;
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    let image = rig.daemon.image.clone();
    let info = guest.ask("info disk=vda")?;
    for limit in ["discard_max", "zeroes_max"] {
        if info.number(limit)? == 0 {
            return Err(format!("the guest has {limit}=0"));
        }
    }
    let mut figures = Figures::default();
    // Each works on the middle of a filled area of its own; only that may
    // change. Whether the host's blocks are given back must follow the request:
    // the zeroes of zeroout are sent without the unmap flag, those of punch
    // with it.
    for (index, (command, gives_back)) in
        [("discard", true), ("zeroout", false), ("punch", true)].into_iter().enumerate()
    {
        let start = (40 + 6 * index as u64) * MIB;
        let range = |from: u64, len: u64| format!("disk=vda offset={} len={len}", start + from);
        guest.ask(&format!("fill {} byte=165", range(0, 6 * MIB)))?;
        guest.ask("flush disk=vda")?;
        let before = allocated(&image)?;
        // From an odd sector on for zeroes, to meet unaligned ends.
        let (from, len) = if command == "discard" { (MIB, 4 * MIB) } else { (MIB + 512, 4 * MIB) };
        guest.ask(&format!("{command} {}", range(from, len)))?;
        guest.ask(&format!("expect {} byte=0", range(from, len)))?;
        guest.ask(&format!("expect {} byte=165", range(0, from)))?;
        guest.ask(&format!("expect {} byte=165", range(from + len, 6 * MIB - from - len)))?;
        let after = allocated(&image)?;
        let freed = before.saturating_sub(after);
        // The other back-end's answer to the unmap flag is not at issue here.
        if rig.daemon.is_midflight() {
            if gives_back && freed < 4 * MIB - 8192 {
                return Err(format!("{command} gave back {freed} bytes of {len}"));
            }
            if !gives_back && freed != 0 {
                return Err(format!("{command} deallocated {freed} bytes, it must not"));
            }
        }
        figures.note(format!("{command} freed {freed}"));
    }
    // The kernel sets these to 0 when the device refuses a request.
    let info = guest.ask("info disk=vda")?;
    for limit in ["discard_max", "zeroes_max"] {
        if info.number(limit)? == 0 {
            return Err(format!("the guest has given up: {limit}=0"));
        }
    }
    guest.check_log()?;
    Ok(figures)
}

fn cache_mode(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    let mut figures = Figures::default();
    for (mode, seed) in [("write_through", 3), ("write_back", 4)] {
        guest.ask(&format!("cache disk=vda mode={mode}"))?;
        let found = guest.ask("info disk=vda")?.text("cache")?.to_string();
        if found != mode {
            return Err(format!("cache mode is {found} after setting {mode}"));
        }
        let run = Run::start(&guest, &Plan { seed, flushes: 5, ..Plan::default() })?;
        run.wait_for(2500, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
    }
    Ok(figures)
}

fn stop_cont(bench: &mut Bench) -> Result<Figures, String> {
    stop_cont_on(bench, &Spec::plain(), &Plan { seed: 5, ..Plan::default() }, 400)
}

/// Stops and continues the machine several times in the middle of I/O, with
/// `between` operations in between.
pub fn stop_cont_on(
    bench: &mut Bench,
    spec: &Spec,
    plan: &Plan,
    between: u64,
) -> Result<Figures, String> {
    const TIMES: u64 = 6;
    let rig = bench.rig(spec)?;
    let run = Run::start(&rig.vm.guest, plan)?;
    let mut longest = Duration::ZERO;
    for round in 0..TIMES {
        run.wait_for(between, LIMIT)?;
        run.mark_deep(LIMIT)?;
        longest = longest.max(rig.vm.stop()?);
        std::thread::sleep(Duration::from_millis(50 * round));
        rig.vm.cont()?;
        run.wait_for_marked(LIMIT)?;
    }
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note(format!("{TIMES} stops, longest {} ms", longest.as_millis()));
    Ok(figures)
}

fn rebind(bench: &mut Bench) -> Result<Figures, String> {
    rebind_on(bench, &Spec::plain())
}

pub fn rebind_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let plan = Plan { seed: 6, ..Plan::default() };
    let rig = bench.rig(spec)?;
    let guest = rig.vm.guest.clone();
    let mut figures = Figures::default();
    let run = Run::start(&guest, &plan)?;
    run.wait_for(1000, LIMIT)?;
    figures.add(run.finish(&rig.daemon.image)?);
    for _ in 0..3 {
        let known = run::generations(&guest, &plan)?;
        let device = guest.ask("device disk=vda")?.text("device")?.to_string();
        guest.ask(&format!("unbind device={device}"))?;
        vm::wait_for_disks(&guest, "none")?;
        guest.ask(&format!("bind device={device}"))?;
        vm::wait_for_disks(&guest, "vda")?;
        run::scan(&guest, &plan, &known)?;
        let run = Run::go_on(&guest, &plan)?;
        run.wait_for(1000, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
    }
    figures.note("3 times");
    Ok(figures)
}

fn reboot(bench: &mut Bench) -> Result<Figures, String> {
    let plan = Plan { seed: 7, ..Plan::default() };
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    let mut figures = Figures::default();
    let run = Run::start(&guest, &plan)?;
    run.wait_for(1000, LIMIT)?;
    figures.add(run.finish(&rig.daemon.image)?);
    let known = run::generations(&guest, &plan)?;
    let before = guest.ask("ping")?.text("boot")?.to_string();
    rig.vm.execute("set-action", json!({ "reboot": "reset" }))?;
    guest.tell("reboot")?;
    rig.vm.wait_for_guest(Some(&before), Instant::now() + LIMIT)?;
    rig.vm.execute("set-action", json!({ "reboot": "shutdown" }))?;
    run::scan(&guest, &plan, &known)?;
    let run = Run::go_on(&guest, &plan)?;
    run.wait_for(1000, LIMIT)?;
    figures.add(run.finish(&rig.daemon.image)?);
    Ok(figures)
}

/// The machine is reset with requests in flight; their data is nobody's, but
/// the next driver must find a disk that works and none of them may come late.
fn reset_during_io(bench: &mut Bench) -> Result<Figures, String> {
    reset_during_io_on(bench, &Spec::plain())
}

pub fn reset_during_io_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let rig = bench.rig(spec)?;
    let guest = rig.vm.guest.clone();
    rig.vm.execute("set-action", json!({ "reboot": "reset" }))?;
    for seed in [8, 9] {
        let before = guest.ask("ping")?.text("boot")?.to_string();
        let plan = Plan { seed, ..Plan::default() };
        guest.ask(&format!("start {} fresh=1", plan.arguments()))?;
        std::thread::sleep(Duration::from_millis(700));
        rig.vm.execute("system_reset", json!({}))?;
        rig.vm.wait_for_guest(Some(&before), Instant::now() + LIMIT)?;
    }
    rig.vm.execute("set-action", json!({ "reboot": "shutdown" }))?;
    let run = Run::start(&guest, &Plan { seed: 10, ..Plan::default() })?;
    run.wait_for(3000, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    figures.note("2 resets");
    Ok(figures)
}

fn four_queues(bench: &mut Bench) -> Result<Figures, String> {
    four_queues_on(bench, &with_four_queues())
}

/// Four processors, four queues.
pub fn with_four_queues() -> Spec {
    let disk = DiskOptions { queues: 4, ..DiskOptions::default() };
    Spec { cpus: 4, disk, ..Spec::default() }
}

pub fn four_queues_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let rig = bench.rig(spec)?;
    let guest = rig.vm.guest.clone();
    let run = Run::start(&guest, &Plan { seed: 11, ..Plan::default() })?;
    run.wait_for(8000, LIMIT)?;
    let mut figures = run.finish(&rig.daemon.image)?;
    let info = guest.ask("info disk=vda")?;
    let interrupts = info.text("interrupts")?;
    let used = interrupts.split(',').filter(|count| *count != "0").count();
    if info.number("queues")? != 4 || used != 4 {
        return Err(format!(
            "{} queues, interrupts {interrupts}: expected 4, all used",
            info.text("queues")?
        ));
    }
    figures.note(format!("interrupts {interrupts}"));
    Ok(figures)
}
