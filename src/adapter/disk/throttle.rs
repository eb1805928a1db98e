//! A deliberately slow disk, for tests that need requests in flight.
//!
//! Each request takes 0.6 to 1.4 times the latency. Half of them wait before
//! the engine sees them, half after it has done them: so a kill at any moment
//! finds requests that have not touched the disk and requests that have, and
//! a successor must cope with both. All of this is below the back-end, for
//! which the requests are simply in flight.

use super::op::Op;
use crate::blk::ReqId;
use crate::time::{Duration, Instant};
use std::collections::BTreeMap;

/// Requests that wait, in the order of their times.
pub struct Throttle {
    latency_ns: u64,
    random: u64,
    sequence: u64,
    before: BTreeMap<(Instant, u64), Box<Op>>,
    after: BTreeMap<(Instant, u64), Box<Op>>,
}

/// A request that was taken out.
#[derive(Debug)]
pub enum Held {
    /// No engine has seen it.
    Before(Box<Op>),
    /// It was done.
    After(Box<Op>),
}

impl Throttle {
    /// Latency in microseconds, at most a minute.
    pub fn new(latency_us: u64) -> Self {
        Self {
            latency_ns: latency_us.min(60_000_000) * 1000,
            random: 0x9e37_79b9_7f4a_7c15,
            sequence: 0,
            before: BTreeMap::new(),
            after: BTreeMap::new(),
        }
    }

    /// The next number of a fixed sequence (xorshift64*): what happens may be
    /// irregular but should not differ from run to run.
    fn draw(&mut self) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Set the time of a new request. It comes back if it may start now.
    pub fn admit(&mut self, now: Instant, mut op: Box<Op>) -> Option<Box<Op>> {
        let tenths = self.latency_ns / 10;
        let wait = tenths * 6 + self.draw() % (tenths * 8 + 1);
        op.due = now + Duration::from_nanos(wait);
        if self.draw().is_multiple_of(2) {
            return Some(op);
        }
        self.sequence += 1;
        self.before.insert((op.due, self.sequence), op);
        None
    }

    /// A request whose time to start has come.
    pub fn next_to_submit(&mut self, now: Instant) -> Option<Box<Op>> {
        take(&mut self.before, now)
    }

    /// A request was done. It comes back if it may be reported now.
    pub fn finish(&mut self, now: Instant, op: Box<Op>) -> Option<Box<Op>> {
        if op.due <= now {
            return Some(op);
        }
        self.sequence += 1;
        self.after.insert((op.due, self.sequence), op);
        None
    }

    /// A request whose time to be reported has come.
    pub fn next_to_report(&mut self, now: Instant) -> Option<Box<Op>> {
        take(&mut self.after, now)
    }

    /// Take a request out, wherever it waits.
    pub fn take(&mut self, id: ReqId) -> Option<Held> {
        let key = |queue: &BTreeMap<_, Box<Op>>| {
            queue.iter().find(|(_, op)| op.id == id).map(|(key, _)| *key)
        };
        if let Some(key) = key(&self.before) {
            return self.before.remove(&key).map(Held::Before);
        }
        let key = key(&self.after)?;
        self.after.remove(&key).map(Held::After)
    }

    /// The next time that matters.
    pub fn deadline(&self) -> Option<Instant> {
        let first = |queue: &BTreeMap<(Instant, u64), Box<Op>>| {
            queue.first_key_value().map(|((due, _), _)| *due)
        };
        first(&self.before).into_iter().chain(first(&self.after)).min()
    }
}

fn take(queue: &mut BTreeMap<(Instant, u64), Box<Op>>, now: Instant) -> Option<Box<Op>> {
    let first = queue.first_entry()?;
    (first.key().0 <= now).then(|| first.remove())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blk::DiskOp;

    #[test]
    fn throttle_holds_half_before_and_half_after_within_its_bounds() {
        let mut throttle = Throttle::new(1000);
        let now = Instant::from_nanos(5_000_000);
        let (mut before, mut after) = (0, 0);
        for slot in 0..1000 {
            let mut op = Op::empty();
            op.reset(ReqId { slot, epoch: 0 }, DiskOp::Flush);
            match throttle.admit(now, op) {
                Some(op) => {
                    assert!(throttle.finish(now, op).is_none(), "0.6 ms at least");
                    after += 1;
                }
                None => before += 1,
            }
        }
        assert!((400..=600).contains(&before), "{before} before, {after} after");
        assert!(throttle.next_to_submit(now + Duration::from_nanos(599_999)).is_none());
        assert!(throttle.next_to_report(now + Duration::from_nanos(599_999)).is_none());
        // Out of order: slots do not come back as they went.
        let end = now + Duration::from_nanos(1_400_000);
        let mut order = Vec::new();
        while let Some(op) = throttle.next_to_submit(end) {
            order.push(op.id.slot);
        }
        assert_eq!(order.len(), before);
        assert!(!order.is_sorted());
        while throttle.next_to_report(end).is_some() {
            after -= 1;
        }
        assert_eq!((after, throttle.deadline()), (0, None));
    }
}
