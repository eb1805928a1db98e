//! A trace as text: one line an event, the lane shown by place and by name.

use super::{BackEvent, Lane, Moving, TraceEvent, What};
use core::fmt::Write;
use midflight::time::Instant;
use midflight::wire::{Dialect, request_name};

/// How much to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Requests, kills and recoveries.
    Story,
    /// The messages between the halves as well.
    Messages,
    /// All of it.
    Everything,
}

/// Render a slice of events. Pure: the same events give the same text.
///
/// The columns: virtual time, number of the scheduler event, number of the one
/// that scheduled it, lanes by place, lane by name, what happened. With two
/// hosts the lanes of A are left of the bar and those of B right of it.
pub fn render(events: &[TraceEvent], detail: Detail) -> String {
    let hosts = if events.iter().any(|e| e.host > 0) { 2 } else { 1 };
    let mut out = String::new();
    let initials: String = Lane::ALL.iter().filter_map(|lane| lane.name().chars().next()).collect();
    let heads = vec![initials; hosts].join("│");
    let lane = if hosts == 1 { "lane  " } else { "lane    " };
    let _ =
        writeln!(out, "{:>13} {:>6} {:<7} {heads}  {lane} what happened", "time", "event", "after");
    for event in events.iter().filter(|e| detail.shows(e.what)) {
        let at = Instant::from_nanos(event.at).to_string();
        let cause = if event.seq == 0 { String::new() } else { format!("<{}", event.cause) };
        let host = if hosts == 1 { String::new() } else { format!("{} ", event.host_name()) };
        let (seq, name, text) = (event.seq, event.lane.name(), sentence(event.what));
        let lanes = lanes(event, hosts);
        let _ = writeln!(out, "{at:>13} {seq:>6} {cause:<7} {lanes}  {host}{name:<6} {text}");
    }
    out
}

fn lanes(event: &TraceEvent, hosts: usize) -> String {
    let of_host = |host: usize| -> String {
        let here = |lane| lane == event.lane && host == usize::from(event.host);
        Lane::ALL.map(|lane| if here(lane) { '●' } else { '·' }).iter().collect()
    };
    let groups: Vec<String> = (0..hosts).map(of_host).collect();
    groups.join("│")
}

impl Detail {
    /// An event of this kind is shown.
    pub fn shows(self, what: What) -> bool {
        match what {
            What::Delivered { .. } | What::Step { stores: 0, .. } => self == Self::Everything,
            What::Sent { .. } => self != Self::Story,
            _ => true,
        }
    }
}

pub(super) fn plural(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn riding(handles: u64) -> String {
    if handles == 0 { String::new() } else { format!(" with {}", plural(handles, "descriptor")) }
}

fn place(sector: u64, sectors: u64) -> String {
    if sectors == 0 { String::new() } else { format!(" {} @{sector}", plural(sectors, "sector")) }
}

/// An event as a sentence.
pub(super) fn sentence(what: What) -> String {
    match what {
        What::Offered { vring, head, request, verb, sector, sectors } => format!(
            "vring {vring}: request {request} at head {head}: {}{}",
            verb.name(),
            place(sector, sectors)
        ),
        What::Published { vring, index, kick } => {
            format!("vring {vring}: avail index {index}{}", if kick { ", kick" } else { "" })
        }
        What::Interrupted { vring } => format!("vring {vring}: called"),
        What::Completed { vring, head, request, status, len } => {
            let status = match status {
                0 => "ok".into(),
                1 => "I/O error".into(),
                2 => "unsupported".into(),
                other => format!("status {other}"),
            };
            format!(
                "vring {vring}: request {request} at head {head} used: {status}, {} written",
                plural(len.into(), "byte")
            )
        }
        What::Sabotaged { vring, how } => {
            format!("vring {vring}: the guest BREAKS THE RULES ({})", how.name())
        }
        What::Changed { control } => format!("changes: {control}"),
        What::Paused { on: true } => "paused".into(),
        What::Paused { on: false } => "goes on".into(),
        What::Connecting => "connects".into(),
        What::Front(event) => event.name().into(),
        What::Delivered { to_back, bytes, handles } => {
            let arrow = if to_back { "front → back" } else { "back → front" };
            format!("{arrow}: {} read{}", plural(bytes, "byte"), riding(handles))
        }
        What::Hangup { to_back: true } => "back-end sees the connection closed".into(),
        What::Hangup { to_back: false } => "front-end sees the connection closed".into(),
        What::Started { life } => format!("back-end process {life} starts"),
        What::Step { wake, stores, outputs } => format!(
            "{}: {}, {}",
            wake.name(),
            plural(stores, "store"),
            plural(outputs, "wish").replace("wishs", "wishes")
        ),
        What::Call { vring } => format!("vring {vring}: calls the guest"),
        What::VringRunning { vring, next_avail, used, resubmitted } => format!(
            "vring {vring}: runs from avail {next_avail}, used {used}, {resubmitted} resubmitted"
        ),
        What::VringStopped { vring, base } => match u16::try_from(base) {
            Ok(index) => format!("vring {vring}: stopped at {index}"),
            Err(_) => format!("vring {vring}: stopped at {base:#010x}"),
        },
        What::Back { event, a, b } => match event {
            BackEvent::VringBroken => format!("vring {a}: is BROKEN by its guest, and left alone"),
            BackEvent::Negotiated => {
                format!("negotiated: features {a:#x}, protocol features {b:#x}")
            }
            BackEvent::BaseContradicted => {
                format!("vring {a}: base {b} contradicts the inflight region, which is believed")
            }
            BackEvent::DiskFailed => format!("vring {a} head {b}: the disk failed"),
            BackEvent::LateCompletion => format!("req {a}.{b} is done too late, dropped"),
            BackEvent::Draining => format!("vring {a}: waits for {}", plural(b, "request")),
            BackEvent::Suspending => {
                format!("vring {a}: is being suspended, {} in flight", plural(b, "request"))
            }
            BackEvent::Suspended => {
                format!(
                    "vring {a}: suspended, {} left in the inflight region",
                    plural(b, "request")
                )
            }
            BackEvent::LogMapped => format!("has a dirty log of {}", plural(a, "byte")),
            BackEvent::Cancels => format!("req {a}.{b} is to be cancelled"),
            BackEvent::WaitsForStore => "waits: the store is the other host's".into(),
            BackEvent::HasStore => "has the store".into(),
        },
        What::Issued { vring, head, verb, sector, sectors } => {
            format!("vring {vring} head {head}: {}{}", verb.name(), place(sector, sectors))
        }
        What::Applied { vring, head } => format!("vring {vring} head {head}: bytes move"),
        What::Done { vring, head, ok } => {
            format!("vring {vring} head {head}: {}", if ok { "done" } else { "failed" })
        }
        What::Killed { life, kept, stores, outputs_kept, outputs, moved } => format!(
            "back-end process {life} is KILLED after store {kept} of {stores} and wish {outputs_kept} of {outputs}; {} of its disk requests had moved bytes",
            moved
        ),
        What::Settling => "no more trouble from here on".into(),
        What::Exited { life } => format!("back-end process {life} ends as asked"),
        What::Race { vring, store, before } => format!(
            "vring {vring}: acts just {} store {store} of the step that follows",
            if before { "before" } else { "after" }
        ),
        What::Moving { step, a, b } => moving(step, a, b),
        What::Landing { owner, request, sector, sectors, over } => {
            let host = if owner == 0 { 'A' } else { 'B' };
            let over = match over {
                0 => "zeroes".into(),
                n if n == request + 1 => "its own data".into(),
                n => format!("the data of write {}", n - 1),
            };
            format!(
                "an OLD WRITE LANDS: request {request} of host {host}, which had said to be at rest, over {over} in{}",
                place(sector, sectors)
            )
        }
        What::Adrift { request, vring, head } => format!(
            "vring {vring} head {head}: the driver SAYS that request {request} is over, the disk has it still"
        ),
        What::Injected { family, about } => {
            format!("FAULT {} (of {about}): {}", family.name(), family.describe().what)
        }
        What::PowerLost { sectors } => {
            format!("POWER IS LOST at the disk: {} as before", plural(sectors, "sector"))
        }
        What::Sent { to_back, code, bytes, handles } => {
            let arrow = if to_back { "front → back" } else { "back → front" };
            let name = request_name(code, &Dialect::default()).unwrap_or("unknown message");
            let answer = if to_back { "" } else { ", answer" };
            format!("{arrow}: {name}{answer}, {}{}", plural(bytes, "byte"), riding(handles))
        }
    }
}

fn moving(step: Moving, a: u64, b: u64) -> String {
    match step {
        Moving::Begins => format!("MIGRATION {a} begins, from here"),
        Moving::Round => format!("round {a}: {} to copy", plural(b, "page")),
        Moving::Stops => format!("stops the guest, {} left to copy", plural(a, "page")),
        Moving::Remainder => format!(
            "vrings are at rest: {} left to copy, {} in flight",
            plural(a, "page"),
            plural(b, "request")
        ),
        Moving::WithoutBases => "back-end lost while it stops; memory knows enough".into(),
        Moving::HandsOver => {
            format!("HANDS OVER guest and inflight region ({})", plural(a, "byte"))
        }
        Moving::Arrives => format!(
            "guest and inflight region ARRIVE: {} compared, {} in flight",
            plural(a, "page"),
            plural(b, "request")
        ),
        Moving::Runs => {
            format!("guest runs here, after it stood still for {}", Instant::from_nanos(a))
        }
        Moving::Refused => "the destination refuses what arrives".into(),
        Moving::LinkLost => "the link is lost, nothing arrives".into(),
        Moving::SourceWakes => "the source WAKES though the guest has gone".into(),
        Moving::SourceSleeps => "the source sleeps again".into(),
        Moving::BrokenOff => "migration is broken off, the guest stays here".into(),
    }
}
