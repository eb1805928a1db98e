//! A trace as JSON lines: one object an event, in the order of the events.
//!
//! Every object begins with the same fields:
//!
//! | field | |
//! |---|---|
//! | `seq` | number of the scheduler event it belongs to; several lines may share it |
//! | `cause` | number of the scheduler event that scheduled that one, 0 for the beginning |
//! | `at` | virtual nanoseconds |
//! | `host` | `"A"` or `"B"` |
//! | `lane` | `guest`, `front`, `link`, `back`, `disk` or `host` |
//! | `what` | kind of the event |
//!
//! What follows depends on the kind, and is named as in [`What`]: its variants
//! and their fields, in snake case. Kinds that carry numbers by position name
//! them here:
//!
//! | `what` | fields |
//! |---|---|
//! | `front` | `event` |
//! | `back` | `event`, and by it `features` and `protocol_features`; `vring` and `base`, `head` or `requests`; `slot` and `epoch`; `bytes` |
//! | `moving` | `step`, and by it `attempt`; `round`; `pages`; `requests`; `bytes`; `ns` |
//!
//! Numbers are whole numbers below 2^64, sizes are in bytes, sectors of 512.
//! The last field is `text`, the event as a sentence: for people, its wording
//! may change. The names above do not change; new kinds and fields may come.

use super::text::sentence;
use super::{BackEvent, Lane, Moving, TraceEvent, What};
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

#[derive(Serialize)]
struct Line {
    seq: u64,
    cause: u64,
    at: u64,
    host: char,
    lane: Lane,
    #[serde(flatten)]
    what: Named,
    text: String,
}

/// An event whose numbers have names.
struct Named(What);

/// Render a slice of events. Pure: the same events give the same lines.
pub fn render(events: &[TraceEvent]) -> String {
    let mut out = String::new();
    for event in events {
        let TraceEvent { at, seq, cause, lane, what, .. } = *event;
        let text = sentence(what);
        let line = Line { seq, cause, at, host: event.host_name(), lane, what: Named(what), text };
        // Numbers, names and strings: nothing in it can fail.
        out += &serde_json::to_string(&line).unwrap_or_default();
        out.push('\n');
    }
    out
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (what, names, numbers) = match self.0 {
            What::Front(_) => ("front", ["", ""], [0, 0]),
            What::Back { event, a, b } => ("back", of_back(event), [a, b]),
            What::Moving { step, a, b } => ("moving", of_moving(step), [a, b]),
            other => return other.serialize(serializer),
        };
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("what", what)?;
        match self.0 {
            What::Front(event) => map.serialize_entry("event", &event)?,
            What::Back { event, .. } => map.serialize_entry("event", &event)?,
            What::Moving { step, .. } => map.serialize_entry("step", &step)?,
            _ => {}
        }
        for (name, number) in names.into_iter().zip(numbers) {
            if !name.is_empty() {
                map.serialize_entry(name, &number)?;
            }
        }
        map.end()
    }
}

/// What the two numbers are; empty for one that means nothing.
fn of_back(event: BackEvent) -> [&'static str; 2] {
    match event {
        BackEvent::Negotiated => ["features", "protocol_features"],
        BackEvent::BaseContradicted => ["vring", "base"],
        BackEvent::DiskFailed => ["vring", "head"],
        BackEvent::LateCompletion | BackEvent::Cancels => ["slot", "epoch"],
        BackEvent::Draining | BackEvent::Suspending | BackEvent::Suspended => ["vring", "requests"],
        BackEvent::LogMapped => ["bytes", ""],
        BackEvent::VringBroken => ["vring", ""],
        BackEvent::WaitsForStore | BackEvent::HasStore => ["", ""],
    }
}

fn of_moving(step: Moving) -> [&'static str; 2] {
    match step {
        Moving::Begins => ["attempt", ""],
        Moving::Round => ["round", "pages"],
        Moving::Stops => ["pages", ""],
        Moving::Remainder | Moving::Arrives => ["pages", "requests"],
        Moving::HandsOver => ["bytes", ""],
        Moving::Runs => ["ns", ""],
        Moving::WithoutBases
        | Moving::Refused
        | Moving::LinkLost
        | Moving::SourceWakes
        | Moving::SourceSleeps
        | Moving::BrokenOff => ["", ""],
    }
}
