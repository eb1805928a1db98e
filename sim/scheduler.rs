//! What happens next: a heap on (time, sequence).
//!
//! The sequence number is unique and grows, so two events of the same
//! nanosecond happen in the order in which they were scheduled. No tie is ever
//! left to a container.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Virtual clock and everything that waits for it.
pub struct Scheduler<E> {
    /// Keys, see [`key`]; the smallest is next. They are small, so a heap of
    /// them is sorted with few bytes moved.
    heap: BinaryHeap<Reverse<u128>>,
    /// By slot: what waits.
    events: Vec<Option<E>>,
    free: Vec<u32>,
    now: u64,
    next_seq: u64,
    done: u64,
    /// By sequence number: how many events had happened when it was scheduled.
    causes: Option<Vec<u64>>,
    /// Sequence number of the present event.
    present: u64,
}

impl<E> Default for Scheduler<E> {
    fn default() -> Self {
        Self::new()
    }
}

/// Orders by time, then by age; the slot is only along for the ride.
fn key(at: u64, seq: u64, slot: u32) -> u128 {
    debug_assert!(seq < 1 << 40 && slot < 1 << 24, "more events than a run has");
    u128::from(at) << 64 | u128::from(seq) << 24 | u128::from(slot)
}

impl<E> Scheduler<E> {
    /// Time zero, nothing scheduled.
    pub fn new() -> Self {
        Self::with_causes(false)
    }

    /// The same, and remember which event scheduled which if `keep`. That is
    /// for who reads the trace: it decides nothing, and costs memory.
    pub fn with_causes(keep: bool) -> Self {
        let (heap, events, free) = (BinaryHeap::new(), Vec::new(), Vec::new());
        let causes = keep.then(Vec::new);
        Self { heap, events, free, now: 0, next_seq: 0, done: 0, causes, present: 0 }
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Number of events that have happened.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Number, as [`done`](Self::done) counts, of the event during which the
    /// present one was scheduled; 0 if that was before all events, or if causes
    /// are not kept.
    pub fn cause(&self) -> u64 {
        let causes = self.causes.as_ref().filter(|_| self.done > 0);
        causes.map_or(0, |causes| causes[self.present as usize])
    }

    /// Number of events that wait.
    pub fn waiting(&self) -> u64 {
        self.heap.len() as u64
    }

    /// Let `event` happen `after` nanoseconds from now.
    pub fn after(&mut self, after: u64, event: E) {
        self.at(self.now.saturating_add(after), event);
    }

    /// Let `event` happen at `at`, or now if that has passed.
    pub fn at(&mut self, at: u64, event: E) {
        let seq = self.next_seq;
        self.next_seq += 1;
        if let Some(causes) = &mut self.causes {
            remember(causes, self.done);
        }
        let slot = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() as u32 - 1
        });
        self.events[slot as usize] = Some(event);
        self.heap.push(Reverse(key(at.max(self.now), seq, slot)));
    }

    /// Advance to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let Reverse(key) = self.heap.pop()?;
        let at = (key >> 64) as u64;
        debug_assert!(at >= self.now, "time runs backwards");
        self.now = at;
        self.done += 1;
        self.present = (key as u64) >> 24;
        let slot = key as u32 & 0xff_ffff;
        self.free.push(slot);
        self.events[slot as usize].take()
    }
}

/// Out of the way of runs that nobody looks at.
#[cold]
fn remember(causes: &mut Vec<u64>, cause: u64) {
    causes.push(cause);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scheduler_orders_by_time_and_then_by_age() {
        let mut s = Scheduler::new();
        s.at(20, 'c');
        s.at(10, 'a');
        s.at(20, 'd');
        s.at(10, 'b');
        let mut got = String::new();
        while let Some(e) = s.advance() {
            got.push(e);
        }
        assert_eq!(got, "abcd");
        assert_eq!((s.now(), s.done()), (20, 4));
    }

    #[test]
    fn scheduler_tells_which_event_scheduled_the_present_one() {
        let mut kept = Scheduler::with_causes(true);
        let mut bare = Scheduler::new();
        for s in [&mut kept, &mut bare] {
            s.at(10, 'a');
            s.at(20, 'b');
            s.advance();
            s.at(30, 'c');
            s.at(15, 'd');
            s.advance();
        }
        assert_eq!((kept.done(), kept.cause()), (2, 1), "d is second and was scheduled by a");
        kept.advance();
        assert_eq!((kept.done(), kept.cause()), (3, 0), "b was there from the beginning");
        kept.advance();
        assert_eq!((kept.done(), kept.cause()), (4, 1));
        assert_eq!((bare.done(), bare.cause()), (2, 0));
    }

    #[test]
    fn scheduler_never_goes_back() {
        let mut s = Scheduler::new();
        s.at(100, 1);
        s.advance();
        s.at(5, 2);
        s.after(0, 3);
        assert_eq!(s.advance(), Some(2));
        assert_eq!(s.now(), 100);
        assert_eq!(s.advance(), Some(3));
    }
}
