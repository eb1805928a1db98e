//! The watchman is watched first: checks that could not fail would make every
//! other line of the report worthless.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::Scenario;
use crate::bench::{Bench, Figures, Spec};
use crate::run::{Plan, Run};

pub fn scenarios() -> Vec<Scenario> {
    vec![Scenario { name: "tests_notice_changed_stale_and_misplaced_blocks", run: notice }]
}

/// Spoils single blocks of the image behind everybody's back and expects each
/// to be noticed, by the guest and by the host, and nothing else.
fn notice(bench: &mut Bench) -> Result<Figures, String> {
    let plan = Plan { len: 1 << 20, most: 1, seed: 90, ..Plan::default() };
    let size = plan.block as usize;
    let rig = bench.rig(&Spec::plain())?;
    let guest = rig.vm.guest.clone();
    let image = File::options()
        .read(true)
        .write(true)
        .open(&rig.daemon.image)
        .map_err(|error| format!("image: {error}"))?;
    let at = |block: u64| block * plan.block;
    let read = |block: u64| {
        let mut bytes = vec![0; size];
        image.read_exact_at(&mut bytes, at(block)).map(|()| bytes).map_err(|e| e.to_string())
    };
    let write = |block: u64, bytes: &[u8]| {
        image.write_all_at(bytes, at(block)).map_err(|error| error.to_string())
    };

    let run = Run::start(&guest, &plan)?;
    run.wait_for(1000, Duration::from_secs(30))?;
    run.finish(&rig.daemon.image)?;
    // As it was a moment ago: right in itself, and older than acknowledged.
    let old = read(7)?;
    let run = Run::go_on(&guest, &plan)?;
    run.wait_for(3000, Duration::from_secs(30))?;
    run.finish(&rig.daemon.image)?;

    let mut torn = read(7)?;
    torn[size / 2..].copy_from_slice(&old[size / 2..]);
    let mut flipped = read(7)?;
    flipped[1000] ^= 4;
    let spoilt = [
        ("stale", old, "generation"),
        ("torn", torn, "generation"),
        ("flipped", flipped, "checksum"),
        ("misplaced", read(8)?, "holds_block_8"),
        ("lost", vec![0; size], "generation_0"),
    ];
    let good = read(7)?;
    for (name, bytes, expected) in &spoilt {
        write(7, bytes)?;
        let verify = guest.ask("verify")?;
        let (wrong, first) = (verify.number("wrong")?, verify.text("first")?.to_string());
        if wrong != 1 || !first.contains("block_7") || !first.contains(expected) {
            return Err(format!("a {name} block: {wrong} wrong, first {first}"));
        }
        // The same while I/O runs, and for the host's own comparison.
        let run = Run::go_on(&guest, &Plan { writes: 0, flushes: 0, ..plan.clone() })?;
        run.wait_for(2000, Duration::from_secs(30))?;
        match run.finish(&rig.daemon.image) {
            Err(what) if what.contains("mismatches") && what.contains(expected) => {}
            Err(what) => return Err(format!("a {name} block was reported as: {what}")),
            Ok(figures) => return Err(format!("a {name} block was not noticed: {figures}")),
        }
        write(7, &good)?;
    }
    let run = Run::go_on(&guest, &plan)?;
    run.wait_for(500, Duration::from_secs(30))?;
    let mut figures = run.finish(&rig.daemon.image)?;
    let names: Vec<&str> = spoilt.iter().map(|(name, _, _)| *name).collect();
    figures.note(format!("noticed: {}", names.join(", ")));
    Ok(figures)
}
