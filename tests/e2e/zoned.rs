//! A zoned disk and the kernel's own driver for it.
//!
//! QEMU's disk does not hand the feature through; its device without a type
//! does. That one shares no inflight region and does not survive its back-end,
//! so the daemon is killed here while the disk is unplugged; kills under load
//! are in tests/daemon_zones.rs.

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::daemon::{Daemon, DiskOptions};
use crate::guest::Guest;
use crate::plug;
use crate::vm::Vm;

const MIB: u64 = 1 << 20;
const ZONE: u64 = 4 * MIB;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "zoned_disk_is_not_seen_through_qemus_disk", run: left_out },
        Scenario { name: "zoned_disk_written_reset_and_killed", run: zoned },
    ]
}

fn options() -> DiskOptions {
    let more: &[&str] = &[
        "--zone-size",
        "4M",
        "--conventional-zones",
        "2",
        "--max-open-zones",
        "3",
        "--max-active-zones",
        "4",
    ];
    DiskOptions { more, ..DiskOptions::default() }
}

/// A guest that knows nothing of zones can read, and write the conventional
/// ones.
fn left_out(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&Spec { size: 16 * ZONE, disk: options(), ..Spec::default() })?;
    let guest = &rig.vm.guest;
    let info = guest.ask("info disk=vda")?;
    let features = info.number("features")?;
    if features >> 17 & 1 != 0 || info.text("zoned")? != "none" {
        return Err(format!("the guest sees a zoned disk, features {features:#x}"));
    }
    guest.ask(&format!("fill disk=vda offset=0 len={MIB} byte=7"))?;
    guest.ask(&format!("expect disk=vda offset=0 len={MIB} byte=7"))?;
    guest.ask(&format!("expect disk=vda offset={ZONE} len={MIB} byte=0"))?;
    let mut figures = Figures::default();
    figures.note(format!("offered, and the guest has features {features:#x}"));
    Ok(figures)
}

fn zones(guest: &Guest) -> Result<Vec<String>, String> {
    let answer = guest.ask("zones disk=vdb")?;
    Ok(answer.text("zones")?.split(',').map(str::to_string).collect())
}

fn expect_zones(guest: &Guest, expected: &[(usize, &str)]) -> Result<(), String> {
    let found = zones(guest)?;
    for (zone, wanted) in expected {
        if found[*zone] != *wanted {
            return Err(format!("zone {zone} is {}, expected {wanted}: {found:?}", found[*zone]));
        }
    }
    Ok(())
}

fn zoned(bench: &mut Bench) -> Result<Figures, String> {
    bench.rig(&Spec::plain())?;
    let daemon = bench.serve(16 * ZONE, options())?;
    let figures = plug::with_untyped_disk(bench, daemon, on_zones)?;
    // The guest's kernel has written about what was refused, as it should.
    bench.discard();
    Ok(figures)
}

fn on_zones(vm: &mut Vm, daemon: &mut Daemon) -> Result<Figures, String> {
    let guest = &vm.guest.clone();
    let ask = |line: String| guest.ask(&line).map(drop);
    let refused = |line: String| match guest.ask(&line) {
        Err(what) if what.starts_with("guest refused") => Ok(()),
        other => Err(format!("expected `{line}` to be refused, got {other:?}")),
    };
    let info = guest.ask("info disk=vdb")?;
    if info.text("zoned")? != "host-managed" {
        return Err(format!("the guest does not see a zoned disk: {info:?}"));
    }
    // Type and condition as in linux/blkzoned.h.
    if zones(guest)?.len() != 16 {
        return Err(format!("zones {:?}, expected 16", zones(guest)?));
    }
    expect_zones(guest, &[(2, "2:1:0"), (15, "2:1:0")])?;
    if !zones(guest)?[..2].iter().all(|zone| zone.starts_with("1:0:")) {
        return Err(format!("the first two zones should be conventional: {:?}", zones(guest)?));
    }
    ask(format!("fill disk=vdb offset={} len={MIB} byte=17", MIB / 2))?;
    ask(format!("fill disk=vdb offset={} len={MIB} byte=34", 2 * ZONE))?;
    ask(format!("fill disk=vdb offset={} len={ZONE} byte=51", 3 * ZONE))?;
    refused(format!("fill disk=vdb offset={} len=4096 byte=1", 2 * ZONE))?;
    refused(format!("fill disk=vdb offset={} len=4096 byte=1", 2 * ZONE + 2 * MIB))?;
    refused(format!("fill disk=vdb offset={} len=4096 byte=1", 3 * ZONE))?;
    expect_zones(guest, &[(2, "2:2:2048"), (3, "2:14:8192"), (4, "2:1:0")])?;
    let mut kills = 0;
    let mut kill = |daemon: &mut Daemon| {
        kills += 1;
        plug::replug(vm, || {
            daemon.kill()?;
            daemon.start_again()
        })
    };
    kill(daemon)?;
    expect_zones(guest, &[(2, "2:2:2048"), (3, "2:14:8192"), (4, "2:1:0")])?;
    ask(format!("fill disk=vdb offset={} len={MIB} byte=35", 2 * ZONE + MIB))?;
    for zone in [5, 6] {
        ask(format!("zone action=open disk=vdb offset={} len={ZONE}", zone * ZONE))?;
    }
    expect_zones(guest, &[(2, "2:2:4096"), (5, "2:3:0"), (6, "2:3:0")])?;
    // A third open zone closes the one that was opened by writing; a fifth
    // active one there cannot be.
    ask(format!("zone action=open disk=vdb offset={} len={ZONE}", 7 * ZONE))?;
    expect_zones(guest, &[(2, "2:4:4096"), (7, "2:3:0")])?;
    refused(format!("zone action=open disk=vdb offset={} len={ZONE}", 8 * ZONE))?;
    ask(format!("zone action=close disk=vdb offset={} len={ZONE}", 7 * ZONE))?;
    ask(format!("zone action=finish disk=vdb offset={} len={ZONE}", 2 * ZONE))?;
    ask(format!("zone action=reset disk=vdb offset={} len={ZONE}", 3 * ZONE))?;
    kill(daemon)?;
    expect_zones(guest, &[(2, "2:14:8192"), (3, "2:1:0"), (5, "2:3:0"), (7, "2:1:0")])?;
    ask(format!("fill disk=vdb offset={} len={MIB} byte=52", 3 * ZONE))?;
    ask("flush disk=vdb".to_string())?;
    kill(daemon)?;
    let parts = [
        (MIB / 2, MIB, 17),
        (2 * ZONE, MIB, 34),
        (2 * ZONE + MIB, MIB, 35),
        (2 * ZONE + 2 * MIB, 2 * MIB, 0),
        (3 * ZONE, MIB, 52),
        (3 * ZONE + MIB, 3 * MIB, 0),
    ];
    let image = std::fs::read(&daemon.image).map_err(|error| format!("image: {error}"))?;
    for (offset, len, byte) in parts {
        ask(format!("expect disk=vdb offset={offset} len={len} byte={byte}"))?;
        if image[offset as usize..][..len as usize].iter().any(|found| *found != byte as u8) {
            return Err(format!("the image is not {byte} at {offset}"));
        }
    }
    // The whole disk at once.
    ask(format!("zone action=reset disk=vdb offset={} len={}", 2 * ZONE, 14 * ZONE))?;
    if zones(guest)?[2..].iter().any(|zone| zone != "2:1:0") {
        return Err(format!("not every zone is empty: {:?}", zones(guest)?));
    }
    daemon.check_alive()?;
    let mut figures = Figures::default();
    figures.note(format!(
        "16 zones, {kills} kills, {} parts verified, 4 commands refused",
        parts.len()
    ));
    Ok(figures)
}
