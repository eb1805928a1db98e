//! Guest memory that is plugged in and taken away under I/O whose buffers are in
//! it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::daemon::DiskOptions;
use crate::process;
use crate::run::{Plan, Run};

/// Moving everything out of a stick takes an emulated processor a while.
const LIMIT: Duration = Duration::from_secs(40);
const MIB: u64 = 128;

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "memory_plugged_and_unplugged_under_io", run: hotplug }]
}

fn plug(rig: &mut Rig, number: u32) -> Result<(), String> {
    let object = json!({
        "qom-type": "memory-backend-memfd",
        "id": format!("stick{number}"),
        "size": MIB << 20,
        "share": true,
    });
    rig.vm.execute("object-add", object)?;
    let device = json!({
        "driver": "pc-dimm",
        "id": format!("dimm{number}"),
        "memdev": format!("stick{number}"),
    });
    rig.vm.execute("device_add", device).map(|_| ())
}

/// True if the guest let go of it.
fn unplug(rig: &mut Rig, number: u32) -> Result<bool, String> {
    rig.vm.qmp.forget_events();
    let name = format!("dimm{number}");
    rig.vm.execute("device_del", json!({ "id": name }))?;
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50));
        let gone = rig.vm.qmp.last_event_us("DEVICE_DELETED").is_some();
        if gone {
            rig.vm.execute("object-del", json!({ "id": format!("stick{number}") }))?;
            return Ok(true);
        }
        if rig.vm.qmp.last_event_us("MEM_UNPLUG_ERROR").is_some() {
            return Ok(false);
        }
        rig.vm.check_alive()?;
    }
    Ok(false)
}

fn blocks(rig: &Rig) -> Result<u64, String> {
    rig.vm.guest.ask("memory")?.number("blocks")
}

fn hotplug(bench: &mut Bench) -> Result<Figures, String> {
    const TIMES: u32 = 3;
    let disk = DiskOptions { queues: 4, throttle_us: 10_000, ..DiskOptions::default() };
    let spec = Spec { cpus: 4, size: 16 << 20, disk, memory_slots: 4, ..Spec::default() };
    let rig = bench.rig(&spec)?;
    let guest = rig.vm.guest.clone();
    let before = blocks(rig)?;
    // Where new memory goes, from before there is any.
    guest.ask("online")?;
    let mut figures = Figures::default();
    let (mut plugged, mut unplugged, mut used, mut most) = (0, 0, 0, 0);
    // I/O from before the memory comes until after it has gone, by a job that
    // begins again when new memory is there, so that its buffers lie in it.
    for round in 0..TIMES {
        let plan = Plan { seed: 90 + u64::from(round), ..Plan::migrating() };
        let early = Run::start(&guest, &plan)?;
        early.wait_for(100, LIMIT)?;
        early.mark_deep(LIMIT)?;
        for number in [2 * round, 2 * round + 1] {
            plug(rig, number)?;
            plugged += 1;
        }
        process::until(LIMIT, "the guest to see its memory", || {
            Ok((blocks(rig)? >= before + 2).then_some(()))
        })?;
        guest.ask("online")?;
        early.wait_for_marked(LIMIT)?;
        figures.add(early.finish(&rig.daemon.image)?);

        let run = Run::start(&guest, &plan)?;
        run.wait_for(200, LIMIT)?;
        used = used.max(guest.ask("memory")?.number("movable_used_kib")?);
        most = most.max(rig.daemon.mappings());
        run.mark_deep(LIMIT)?;
        for number in [2 * round, 2 * round + 1] {
            if unplug(rig, number)? {
                unplugged += 1;
            }
        }
        run.wait_for_marked(LIMIT)?;
        run.wait_for(200, LIMIT)?;
        figures.add(run.finish(&rig.daemon.image)?);
        rig.daemon.check_alive()?;
        if unplugged < plugged {
            break;
        }
    }
    if used == 0 {
        return Err("no page of the plugged memory was used, so nothing was tested".to_string());
    }
    figures.note(format!(
        "{plugged} times {MIB} MiB plugged in, {unplugged} taken away, up to {used} KiB of it in \
         use, daemon had up to {most} regions, {} at the end",
        rig.daemon.mappings()
    ));
    Ok(figures)
}
