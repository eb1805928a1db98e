//! What happens next: a heap on (time, sequence).
//!
//! The sequence number is unique and grows, so two events of the same
//! nanosecond happen in the order in which they were scheduled. No tie is ever
//! left to a container.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

struct Due<E> {
    at: u64,
    seq: u64,
    event: E,
}

impl<E> PartialEq for Due<E> {
    fn eq(&self, other: &Self) -> bool {
        self.seq == other.seq
    }
}

impl<E> Eq for Due<E> {}

impl<E> PartialOrd for Due<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> Ord for Due<E> {
    /// Reversed, because the standard heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.seq).cmp(&(self.at, self.seq))
    }
}

/// Virtual clock and everything that waits for it.
pub struct Scheduler<E> {
    heap: BinaryHeap<Due<E>>,
    now: u64,
    next_seq: u64,
    done: u64,
}

impl<E> Default for Scheduler<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Scheduler<E> {
    /// Time zero, nothing scheduled.
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), now: 0, next_seq: 0, done: 0 }
    }

    /// Virtual time in nanoseconds.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// Number of events that have happened.
    pub fn done(&self) -> u64 {
        self.done
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
        self.heap.push(Due { at: at.max(self.now), seq, event });
    }

    /// Advance to the next event.
    pub fn advance(&mut self) -> Option<E> {
        let due = self.heap.pop()?;
        debug_assert!(due.at >= self.now, "time runs backwards");
        self.now = due.at;
        self.done += 1;
        Some(due.event)
    }
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
