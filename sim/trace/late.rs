//! The story of an old write that lands on new data, out of a whole trace.

use super::life::Life;
use super::{Moving, TraceEvent, What};

/// For each old write that covered a write which the guest had seen completed:
/// the events that tell how it came to that, the last of them the landing. Empty
/// if there is none.
pub fn late_writes(events: &[TraceEvent]) -> Vec<Vec<TraceEvent>> {
    let harm = |(at, event): (usize, &TraceEvent)| match event.what {
        What::Landing { request, over, .. } if over > 0 => {
            let (old, new) = (Life::of(events, request)?, Life::of(events, over - 1)?);
            // Only if both were over for the guest before.
            (old.completed && new.completed && new.to < at && old.to < new.to)
                .then_some((at, old, new))
        }
        _ => None,
    };
    let harms: Vec<_> = events.iter().enumerate().filter_map(harm).collect();
    harms.iter().map(|(at, old, new)| story(events, *at, old, new)).collect()
}

fn story(events: &[TraceEvent], landing: usize, old: &Life, new: &Life) -> Vec<TraceEvent> {
    let told = |at: usize, event: &TraceEvent| match event.what {
        What::Landing { .. } => at == landing,
        What::Moving { step, .. } => {
            at > old.from && !matches!(step, Moving::Round | Moving::Begins)
        }
        What::VringStopped { vring, .. } | What::VringRunning { vring, .. } => {
            vring == old.vring && at > old.from
        }
        What::Adrift { request, .. } => request == old.request,
        _ => old.has(at, event) || new.has(at, event),
    };
    let before = events.iter().enumerate().take(landing + 1);
    before.filter(|(at, event)| told(*at, event)).map(|(_, event)| *event).collect()
}
