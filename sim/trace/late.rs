//! The story of an old write that lands on new data, out of a whole trace.

use super::{Moving, TraceEvent, What};

/// A request as the guest and the disk name it.
struct Life {
    request: u64,
    vring: u16,
    head: u16,
    /// Events from the offer to the completion.
    from: usize,
    to: usize,
}

/// For each old write that covered a write which the guest had seen completed:
/// the events that tell how it came to that, the last of them the landing. Empty
/// if there is none.
pub fn late_writes(events: &[TraceEvent]) -> Vec<Vec<TraceEvent>> {
    let harm = |(at, event): (usize, &TraceEvent)| match event.what {
        What::Landing { request, over, .. } if over > 0 => {
            let (old, new) = (life(events, request)?, life(events, over - 1)?);
            // Only if both were over for the guest before.
            (old.to < at && new.to < at && old.to < new.to).then_some((at, old, new))
        }
        _ => None,
    };
    let harms: Vec<_> = events.iter().enumerate().filter_map(harm).collect();
    harms.iter().map(|(at, old, new)| story(events, *at, old, new)).collect()
}

fn life(events: &[TraceEvent], number: u64) -> Option<Life> {
    let from = events
        .iter()
        .position(|e| matches!(e.what, What::Offered { request, .. } if request == number))?;
    let What::Offered { vring, head, .. } = events[from].what else { return None };
    let to = events[from..]
        .iter()
        .position(|e| matches!(e.what, What::Completed { request, .. } if request == number))?;
    Some(Life { request: number, vring, head, from, to: from + to })
}

impl Life {
    fn has(&self, at: usize, event: &TraceEvent) -> bool {
        let inside = (self.from..=self.to).contains(&at);
        let mine = |vring, head| inside && (vring, head) == (self.vring, self.head);
        match event.what {
            What::Offered { request, .. } | What::Completed { request, .. } => {
                request == self.request
            }
            What::Issued { vring, head, .. }
            | What::Applied { vring, head }
            | What::Done { vring, head, .. } => mine(vring, head),
            _ => false,
        }
    }
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
