//! What else a disk can do than read and write: many ranges in one request,
//! secure erase, and what it says of itself.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::daemon::DiskOptions;
use crate::plug;

const MIB: u64 = 1 << 20;

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "discard_of_many_ranges_in_one_request", run: many_ranges },
        Scenario { name: "secure_erase_is_not_seen_through_qemus_disk", run: erase_is_left_out },
        Scenario { name: "secure_erase_of_a_guest_that_sees_it", run: erase },
        Scenario { name: "topology_by_options_and_of_a_block_device", run: topology },
    ]
}

fn many_ranges(bench: &mut Bench) -> Result<Figures, String> {
    const RANGE: u64 = 64 * 1024;
    const COUNT: u64 = 200;
    let rig = bench.rig(&Spec::plain())?;
    let guest = &rig.vm.guest;
    let all = 2 * RANGE * COUNT;
    guest.ask(&format!("fill disk=vda offset=0 len={all} byte=165"))?;
    guest.ask("flush disk=vda")?;
    let line = format!("discards disk=vda offset=0 len={RANGE} step={} count={COUNT}", 2 * RANGE);
    let answer = guest.ask(&line)?;
    let (requests, merged) = (answer.number("requests")?, answer.number("merged")?);
    if requests + merged != COUNT || requests > COUNT / 10 {
        return Err(format!("{COUNT} discards became {requests} requests, {merged} were merged"));
    }
    let image = fs::read(&rig.daemon.image).map_err(|error| format!("image: {error}"))?;
    for i in 0..2 * COUNT {
        let expected = if i % 2 == 0 { 0 } else { 165 };
        let range = &image[(i * RANGE) as usize..][..RANGE as usize];
        if range.iter().any(|byte| *byte != expected) {
            return Err(format!("range {i} is not {expected} everywhere"));
        }
        guest.ask(&format!("expect disk=vda offset={} len={RANGE} byte={expected}", i * RANGE))?;
    }
    guest.check_log()?;
    let mut figures = Figures::default();
    figures.note(format!(
        "{COUNT} ranges discarded by {requests} requests ({merged} merged), {} ranges as expected",
        2 * COUNT
    ));
    Ok(figures)
}

fn erasing() -> DiskOptions {
    let more: &[&str] = &["--secure-erase", "--lifetime", "1,2,3"];
    DiskOptions { more, ..DiskOptions::default() }
}

/// QEMU's disk does not hand the feature through, so the guest must not try.
fn erase_is_left_out(bench: &mut Bench) -> Result<Figures, String> {
    let rig = bench.rig(&Spec { disk: erasing(), ..Spec::default() })?;
    let features = rig.vm.guest.ask("info disk=vda")?.number("features")?;
    if features >> 15 & 7 != 0 {
        return Err(format!(
            "the guest sees features {features:#x}: bits 15 to 17 get through now"
        ));
    }
    match rig.vm.guest.ask("erase disk=vda offset=0 len=1048576") {
        Err(what) if what.starts_with("guest refused") => {}
        other => return Err(format!("expected the guest to refuse, got {other:?}")),
    }
    let mut figures = Figures::default();
    figures.note(format!("offered, and the guest has features {features:#x}"));
    Ok(figures)
}

fn erase(bench: &mut Bench) -> Result<Figures, String> {
    bench.rig(&Spec::plain())?;
    let daemon = bench.serve(64 * MIB, erasing())?;
    plug::with_untyped_disk(bench, daemon, |vm, daemon| {
        let guest = &vm.guest;
        let features = guest.ask("info disk=vdb")?.number("features")?;
        if features >> 15 & 3 != 2 {
            // Linux has no use for the lifetime and does not accept it.
            return Err(format!("the guest has features {features:#x}, expected bit 16, not 15"));
        }
        guest.ask(&format!("fill disk=vdb offset=0 len={} byte=90", 8 * MIB))?;
        guest.ask("flush disk=vdb")?;
        let blocks =
            |image| fs::metadata(image).map(|meta| meta.blocks()).map_err(|e| e.to_string());
        let before = blocks(&daemon.image)?;
        guest.ask(&format!("erase disk=vdb offset={MIB} len={}", 5 * MIB))?;
        for (offset, len, byte) in [(0, MIB, 90), (MIB, 5 * MIB, 0), (6 * MIB, 2 * MIB, 90)] {
            guest.ask(&format!("expect disk=vdb offset={offset} len={len} byte={byte}"))?;
        }
        let image = fs::read(&daemon.image).map_err(|error| format!("image: {error}"))?;
        let erased = &image[MIB as usize..6 * MIB as usize];
        if erased.iter().any(|byte| *byte != 0) {
            return Err("the image holds erased bytes".to_string());
        }
        let after = blocks(&daemon.image)?;
        if after < before {
            return Err(format!("blocks were given away as they were: {before}, then {after}"));
        }
        guest.check_log()?;
        let mut figures = Figures::default();
        figures.note(format!("5 MiB written over in place, {after} blocks allocated as before"));
        Ok(figures)
    })
}

/// A loop device with blocks of 4096 bytes, where this machine allows it.
struct Loop(String);

impl Loop {
    fn new(image: &std::path::Path) -> Option<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--sector-size", "4096"])
            .arg(image)
            .output()
            .ok()?;
        let name = String::from_utf8_lossy(&output.stdout).trim().to_string();
        (output.status.success() && !name.is_empty()).then_some(Self(name))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("--detach").arg(&self.0).status();
    }
}

fn topology(bench: &mut Bench) -> Result<Figures, String> {
    let mut figures = Figures::default();
    let more: &[&str] = &[
        "--physical-block-size",
        "16384",
        "--min-io-size",
        "65536",
        "--opt-io-size",
        "1048576",
        "--discard-granularity",
        "32768",
    ];
    let spec = Spec { disk: DiskOptions { more, ..DiskOptions::default() }, ..Spec::default() };
    let info = bench.rig(&spec)?.vm.guest.ask("info disk=vda")?;
    for (name, value) in [
        ("logical", 512),
        ("physical", 16384),
        ("minimum_io", 65536),
        ("optimal_io", MIB),
        ("discard_granularity", 32768),
    ] {
        if info.number(name)? != value {
            return Err(format!("{name} is {}, expected {value}", info.text(name)?));
        }
    }
    figures.note("5 limits by options");

    let image = bench.fresh_path("img");
    File::create(&image).and_then(|file| file.set_len(16 * MIB)).map_err(|e| e.to_string())?;
    let Some(device) = Loop::new(&image) else {
        figures.note("no loop devices on this machine, nothing said of block devices");
        return Ok(figures);
    };
    let output = Command::new(bench.program()?)
        .args(["--socket-path", "/nonexistent/socket", "--secure-erase", "--blk-file", &device.0])
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !said.contains("--secure-erase: the device cannot do it") {
        return Err(format!("expected a refusal to erase {}, got {said}", device.0));
    }
    let daemon = bench.serve_image(device.0.as_ref(), DiskOptions::default())?;
    let of_device = plug::with_disk(bench, daemon, 1, |vm, _| {
        let info = vm.guest.ask("info disk=vdb")?;
        if info.number("logical")? != 4096 || info.number("discard_max")? == 0 {
            return Err(format!("the guest does not see the blocks of a device: {info:?}"));
        }
        vm.guest.ask(&format!("fill disk=vdb offset=0 len={MIB} byte=9"))?;
        vm.guest.ask(&format!("discard disk=vdb offset=0 len={}", MIB / 2))?;
        vm.guest.ask(&format!("expect disk=vdb offset={} len={} byte=9", MIB / 2, MIB / 2))?;
        let mut figures = Figures::default();
        figures.note(format!(
            "block device with blocks of {} and discards of {} bytes",
            info.text("logical")?,
            info.text("discard_granularity")?
        ));
        Ok(figures)
    })?;
    figures.add(of_device);
    Ok(figures)
}
