//! Machines saved to a file, looked at there, and restored from it, also from
//! files that are not right.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::Scenario;
use crate::bench::{Bench, Figures, Rig, Spec};
use crate::handover::{self, Handover};
use crate::migrate::{self, moving, slow_disk};
use crate::process;
use crate::run::{Plan, Run};
use crate::spoil;

/// Longest a stretch of I/O may take.
const LIMIT: Duration = Duration::from_secs(30);

pub fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario { name: "migration_to_a_file_and_restored", run: restore },
        Scenario { name: "migration_refused_by_the_destination", run: refused },
    ]
}

/// Saves the machine with requests in flight.
fn save(bench: &mut Bench, here: &mut Rig, run: &Run) -> Result<(PathBuf, Handover), String> {
    run.wait_for(100, LIMIT)?;
    run.mark_deep(LIMIT)?;
    let stop = handover::bookmark(here);
    let file = bench.fresh_path("stream");
    handover::send(here, &format!("exec:cat > {}", file.display()), handover::FAST)?;
    handover::wait_for(here, "completed")?;
    let saved = Handover::of_stop(here, stop);
    if saved.left == 0 {
        return Err(format!("nothing was in flight when the machine was saved: {saved:?}"));
    }
    Ok((file, saved))
}

fn exec(file: &Path) -> String {
    format!("exec:cat {}", file.display())
}

/// The requests in flight by `midflight inspect`, added up over all vrings.
fn inspect(program: &Path, file: &Path) -> Result<u64, String> {
    let output = Command::new(program)
        .args(["inspect", "--json"])
        .arg(file)
        .output()
        .map_err(|error| format!("cannot run {}: {error}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("inspect ended with {}: {}", output.status, said.trim()));
    }
    let json: Value =
        serde_json::from_str(&text).map_err(|error| format!("inspect printed no JSON: {error}"))?;
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let queues = list(&json, "devices").into_iter().flat_map(|disk| list(&disk, "queues"));
    Ok(queues.map(|queue| list(&queue["takeover"], "resubmit").len() as u64).sum())
}

fn restore(bench: &mut Bench) -> Result<Figures, String> {
    restore_on(bench, &moving())
}

pub fn restore_on(bench: &mut Bench, spec: &Spec) -> Result<Figures, String> {
    let mut here = bench.take_out(spec)?;
    let guest = here.vm.guest.clone();
    let run = migrate::start(&guest, &Plan { seed: 140, ..Plan::migrating() })?;
    let (file, saved) = save(bench, &mut here, &run)?;
    let inspected = inspect(bench.program()?, &file)?;
    let mut there = bench.receiver_with(&here, spec.disk.clone())?;
    let start = handover::bookmark(&there);
    handover::receive(&mut there, &exec(&file))?;
    handover::arrive(&mut there)?;
    migrate::settle(&run)?;
    let restored = saved.resubmitted(&there, start)?;
    run.wait_for(100, LIMIT)?;
    let mut figures = run.finish(&there.daemon.image)?;
    let bytes = std::fs::metadata(&file).map_or(0, |data| data.len());
    migrate::close_all(vec![here])?;
    bench.put_back(there);
    if (inspected, restored.resubmitted) != (saved.left, saved.left) {
        return Err(format!("inspect shows {inspected} requests in flight: {restored:?}"));
    }
    figures.note(format!(
        "{} requests left by the daemon, {inspected} seen in the file of {bytes} bytes, {} resubmitted",
        saved.left, restored.resubmitted
    ));
    Ok(figures)
}

/// A stream that is wrong in one place, and a word of what has to be said of it.
struct Spoilt {
    what: &'static str,
    at: usize,
    bytes: [u8; 2],
    complaint: &'static str,
}

/// Streams whose region does not fit: the destination's daemon says so and does
/// nothing, and the source can go on.
fn refused(bench: &mut Bench) -> Result<Figures, String> {
    let mut here = bench.take_out(&moving())?;
    let guest = here.vm.guest.clone();
    let run = migrate::start(&guest, &Plan { seed: 150, ..Plan::migrating() })?;
    let (file, saved) = save(bench, &mut here, &run)?;
    let bytes = std::fs::read(&file).map_err(|error| format!("{}: {error}", file.display()))?;
    let places = spoil::find(&bytes)?;
    let region = places.region.start;
    let queue_size = here.spec.queue_size as u16;
    // spec: vhost-user, "Inflight I/O tracking"
    let all = [
        Spoilt {
            what: "a smaller queue size",
            at: places.queue_size.start,
            bytes: (queue_size / 2).to_be_bytes(),
            complaint: "desc_num",
        },
        Spoilt {
            what: "a larger queue size",
            at: places.queue_size.start,
            bytes: (queue_size * 2).to_be_bytes(),
            complaint: "inflight",
        },
        Spoilt {
            what: "a version from the future",
            at: region + 8,
            bytes: 9_u16.to_le_bytes(),
            complaint: "version",
        },
    ];
    let mut figures = Figures::default();
    for spoilt in all {
        let copy = bench.fresh_path("stream");
        spoil::write(&file, &copy, spoilt.at, &spoilt.bytes)?;
        let line = refuse(bench, &here, &copy, spoilt.complaint)
            .map_err(|what| format!("{}: {what}", spoilt.what))?;
        figures.note(format!("{}: \"{line}\"", spoilt.what));
    }
    here.vm.cont()?;
    migrate::settle(&run)?;
    figures.add(run.finish(&here.daemon.image)?);
    figures.note(format!("{} requests resumed at the source", saved.left));
    bench.put_back(here);
    Ok(figures)
}

/// Restores from a file that is wrong. Returns what the daemon said.
fn refuse(bench: &mut Bench, source: &Rig, file: &Path, word: &str) -> Result<String, String> {
    let image = &source.daemon.image;
    let contents = || std::fs::read(image).map_err(|error| format!("{}: {error}", image.display()));
    let before = contents()?;
    let mut there = bench.receiver_with(source, slow_disk())?;
    handover::receive(&mut there, &exec(file))?;
    let line = process::until(LIMIT, "the daemon to refuse", || {
        let printed = there.daemon.printed();
        Ok(printed.lines().find(|line| line.contains(word)).map(str::to_string))
    })
    .map_err(|what| format!("{what}; it said {}", there.daemon.printed()))?;
    // Time for whatever should not happen.
    std::thread::sleep(Duration::from_millis(300));
    there.daemon.check_alive()?;
    let printed = there.daemon.printed();
    if printed.contains(" runs: ") {
        return Err(format!("the daemon went on all the same: {printed}"));
    }
    there.vm.kill()?;
    there.daemon.terminate()?;
    if contents()? != before {
        return Err("the image was changed".to_string());
    }
    Ok(line.trim_start_matches("midflight: ").to_string())
}
