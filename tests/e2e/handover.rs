//! Moving a machine from one QEMU to another, and what was seen of it.

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::bench::Rig;
use crate::process;
use crate::vm::Vm;

/// Longest a migration may take.
const LIMIT: Duration = Duration::from_secs(30);

/// As fast as the machine can, in bytes per second.
pub const FAST: u64 = 8 << 30;

/// Slow enough to do something while memory is being copied.
pub const SLOW: u64 = 8 << 20;

/// What the daemons and QEMU say of a migration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Handover {
    /// By QEMU at the source, from the stop of the processors on.
    pub downtime: Duration,
    /// From the end of the stop at the source to the start at the destination,
    /// by the host's clock.
    pub gap: Duration,
    /// Requests in flight when the vrings were stopped.
    pub at_stop: u64,
    /// Vrings that left requests in the region, and how many.
    pub suspended: u64,
    pub left: u64,
    /// Requests the destination took from the region.
    pub resubmitted: u64,
}

/// A place in what the daemon prints, to look at the rest later.
pub fn bookmark(rig: &Rig) -> usize {
    rig.daemon.printed().len()
}

/// The numbers before `after`, in lines printed since `bookmark` that have
/// `before` in front of the number.
fn numbers(printed: &str, before: &str, after: &str) -> Vec<u64> {
    printed
        .lines()
        .filter_map(|line| line.split_once(before)?.1.split_once(after)?.0.parse().ok())
        .collect()
}

impl Handover {
    /// What the source's daemon says of the stop.
    pub fn of_stop(source: &Rig, bookmark: usize) -> Self {
        let printed = source.daemon.printed();
        let printed = printed.get(bookmark..).unwrap_or("");
        let drained = numbers(printed, "waits for ", " requests before it stops");
        let suspending = numbers(printed, "being suspended with ", " requests in flight");
        let left = numbers(printed, "was suspended, ", " requests left in the region");
        Self {
            at_stop: drained.iter().chain(&suspending).sum(),
            suspended: left.iter().filter(|count| **count > 0).count() as u64,
            left: left.iter().sum(),
            ..Self::default()
        }
    }

    /// What the destination's daemon says of the start.
    pub fn resubmitted(mut self, destination: &Rig, bookmark: usize) -> Result<Self, String> {
        // The machine runs a moment before its vrings do.
        let queues = destination.spec.disk.queues as usize;
        let found = process::until(LIMIT, "the destination's vrings to run", || {
            let printed = destination.daemon.printed();
            let printed = printed.get(bookmark..).unwrap_or("").replace('\n', " \n");
            let found = numbers(&printed, "resubmitted ", " ");
            Ok((found.len() >= queues).then_some(found))
        })?;
        self.resubmitted = found.iter().sum();
        Ok(self)
    }
}

/// Sets how fast memory is copied, in bytes per second.
pub fn set_bandwidth(vm: &mut Vm, bandwidth: u64) -> Result<(), String> {
    let parameters = json!({ "max-bandwidth": bandwidth, "downtime-limit": 100 });
    vm.execute("migrate-set-parameters", parameters).map(|_| ())
}

/// Switches something that QEMU can do in a migration on or off.
pub fn set_capability(rig: &mut Rig, name: &str, state: bool) -> Result<(), String> {
    let capability = json!({ "capability": name, "state": state });
    rig.vm.execute("migrate-set-capabilities", json!({ "capabilities": [capability] })).map(|_| ())
}

/// Waits until the machine runs again after a migration that came to nothing.
pub fn wait_running(rig: &mut Rig) -> Result<(), String> {
    process::until(LIMIT, "the source to run again", || {
        let status = rig.vm.execute("query-status", json!({}))?["status"].clone();
        Ok((status == json!("running")).then_some(()))
    })
}

/// Begins to send the machine to `uri`.
pub fn send(source: &mut Rig, uri: &str, bandwidth: u64) -> Result<(), String> {
    set_bandwidth(&mut source.vm, bandwidth)?;
    source.vm.qmp.forget_events();
    source.vm.execute("migrate", json!({ "uri": uri })).map(|_| ())
}

/// Begins to receive a machine from `uri`.
pub fn receive(destination: &mut Rig, uri: &str) -> Result<(), String> {
    destination.vm.qmp.forget_events();
    destination.vm.execute("migrate-incoming", json!({ "uri": uri })).map(|_| ())
}

/// Begins to send the machine to another one.
pub fn begin(
    source: &mut Rig,
    destination: &mut Rig,
    socket: &Path,
    bandwidth: u64,
) -> Result<(), String> {
    let uri = format!("unix:{}", socket.display());
    receive(destination, &uri)?;
    send(source, &uri, bandwidth)
}

/// Waits until the migration is in state `wanted`, and returns what QEMU says of
/// it then.
pub fn wait_for(source: &mut Rig, wanted: &str) -> Result<Value, String> {
    process::until(LIMIT, &format!("the migration to be {wanted}"), || {
        let answer = source.vm.execute("query-migrate", json!({}))?;
        let status = answer["status"].as_str().unwrap_or("unknown");
        match status {
            _ if status == wanted => Ok(Some(answer)),
            "completed" | "failed" | "cancelled" => {
                Err(format!("the migration is {status}, expected {wanted}: {answer}"))
            }
            _ => Ok(None),
        }
    })
}

/// Fails if memory is no longer being copied.
pub fn still_active(source: &mut Rig) -> Result<(), String> {
    let answer = source.vm.execute("query-migrate", json!({}))?;
    if answer["status"] == json!("active") {
        return Ok(());
    }
    Err(format!("the migration should still be active: {answer}"))
}

/// Waits until the machine has been started here, and lets commands to the
/// guest come here. Returns the time of the start in microseconds.
pub fn arrive(destination: &mut Rig) -> Result<u64, String> {
    let event = destination.vm.qmp.wait_event("RESUME", LIMIT)?;
    destination.vm.take_over()?;
    let part = |name: &str| event["timestamp"][name].as_u64().unwrap_or(0);
    Ok(part("seconds") * 1_000_000 + part("microseconds"))
}

/// Waits for the end of a migration that has begun; `stop` is a bookmark in the
/// source's log from before.
pub fn complete(source: &mut Rig, destination: &mut Rig, stop: usize) -> Result<Handover, String> {
    let start = bookmark(destination);
    let answer = wait_for(source, "completed")?;
    let resumed = arrive(destination)?;
    let stopped = source.vm.qmp.last_event_us("STOP").ok_or("the source sent no STOP event")?;
    let downtime = answer["downtime"].as_u64().ok_or("the source has no downtime")?;
    Handover {
        downtime: Duration::from_millis(downtime),
        gap: Duration::from_micros(resumed.saturating_sub(stopped)),
        ..Handover::of_stop(source, stop)
    }
    .resubmitted(destination, start)
}

/// Moves the machine, as fast as it goes.
pub fn hand_over(
    source: &mut Rig,
    destination: &mut Rig,
    socket: &Path,
) -> Result<Handover, String> {
    let stop = bookmark(source);
    begin(source, destination, socket, FAST)?;
    complete(source, destination, stop)
}
