//! VIRTIO_F_IN_ORDER: requests are used in the order they became available,
//! though the disk finishes them in any.
//!
//! What is finished out of order is held back until everything before it is
//! finished too; then all of it is published as one batch. Until then it is in
//! flight like any other: its entry in the inflight region stays, so a successor
//! executes it again, which is what it does with everything that was executed
//! and not published.
// spec: virtio 1.2, "In-order use of descriptors"

use crate::vring::Used;
use std::collections::VecDeque;

/// A request that was fetched and is not published.
#[derive(Debug)]
struct Fetched {
    head: u16,
    /// It must not be executed a second time.
    once: bool,
}

/// The requests of one vring by order of fetching.
#[derive(Debug)]
pub(super) struct InOrder {
    fetched: VecDeque<Fetched>,
    /// By head: bytes written, for what is finished and held back.
    finished: Vec<Option<u32>>,
}

impl InOrder {
    /// For a ring of this many entries.
    pub fn new(size: u16) -> Self {
        let size = usize::from(size);
        Self { fetched: VecDeque::with_capacity(size), finished: vec![None; size] }
    }

    /// `head` was read from the ring after all others.
    pub fn fetch(&mut self, head: u16) {
        self.fetched.push_back(Fetched { head, once: false });
    }

    /// What was fetched last must not be executed a second time.
    pub fn last_runs_once(&mut self) {
        if let Some(last) = self.fetched.back_mut() {
            last.once = true;
        }
    }

    /// True if something here must not be executed a second time. A request that
    /// is cancelled holds back all behind it, and whoever takes over executes
    /// those again, finished or not.
    pub fn has_what_runs_once(&self) -> bool {
        self.fetched.iter().any(|f| f.once)
    }

    /// A request is finished.
    pub fn finish(&mut self, used: Used) {
        self.finished[usize::from(used.head)] = Some(used.len);
    }

    /// Move to `batch` what is finished and has nothing unfinished before it.
    pub fn release(&mut self, batch: &mut Vec<Used>) {
        while let Some(&Fetched { head, .. }) = self.fetched.front()
            && let Some(len) = self.finished[usize::from(head)].take()
        {
            self.fetched.pop_front();
            batch.push(Used { head, len });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_order_releases_by_fetching_whatever_finishes_first() {
        let mut order = InOrder::new(4);
        let mut batch = Vec::new();
        for head in [3, 1, 0] {
            order.fetch(head);
        }
        order.finish(Used { head: 0, len: 10 });
        order.finish(Used { head: 1, len: 11 });
        order.release(&mut batch);
        assert_eq!(batch, []);
        order.finish(Used { head: 3, len: 13 });
        order.release(&mut batch);
        let used = |head, len| Used { head, len };
        assert_eq!(batch, [used(3, 13), used(1, 11), used(0, 10)]);
        // A head may be used again at once.
        batch.clear();
        order.fetch(3);
        order.last_runs_once();
        assert!(order.has_what_runs_once());
        order.release(&mut batch);
        assert_eq!(batch, []);
        order.finish(used(3, 1));
        order.release(&mut batch);
        assert_eq!(batch, [used(3, 1)]);
        assert!(!order.has_what_runs_once());
    }
}
