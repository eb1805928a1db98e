//! The events of one request, out of a whole trace.

use super::{TraceEvent, What};

/// A request as the guest and the disk name it.
pub(super) struct Life {
    pub request: u64,
    pub vring: u16,
    pub head: u16,
    /// Position of the offer.
    pub from: usize,
    /// Position of the completion, or of the last event if there was none.
    pub to: usize,
    /// The guest saw it completed.
    pub completed: bool,
}

impl Life {
    /// Of request `number`, if the guest ever offered it.
    pub fn of(events: &[TraceEvent], number: u64) -> Option<Self> {
        let from = events
            .iter()
            .position(|e| matches!(e.what, What::Offered { request, .. } if request == number))?;
        let What::Offered { vring, head, .. } = events[from].what else { return None };
        let end = events[from..]
            .iter()
            .position(|e| matches!(e.what, What::Completed { request, .. } if request == number));
        let to = end.map_or(events.len() - 1, |end| from + end);
        Some(Self { request: number, vring, head, from, to, completed: end.is_some() })
    }

    /// The event at position `at` is one of this request's.
    pub fn has(&self, at: usize, event: &TraceEvent) -> bool {
        let inside = (self.from..=self.to).contains(&at);
        let mine = |vring, head| inside && (vring, head) == (self.vring, self.head);
        match event.what {
            What::Offered { request, .. }
            | What::Completed { request, .. }
            | What::Landing { request, .. }
            | What::Adrift { request, .. } => request == self.request,
            What::Issued { vring, head, .. }
            | What::Applied { vring, head }
            | What::Done { vring, head, .. } => mine(vring, head),
            _ => false,
        }
    }
}
