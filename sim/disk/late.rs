//! Requests whose owner was told to stop, or has lost them.
//!
//! A cancel takes time, and until it is confirmed the request may still move
//! bytes. A driver that confirms what the disk has not confirmed sets the
//! request adrift: nobody waits for it any more, and it lands when it likes.

use super::{Disk, Job, SECTOR};
use crate::choices::Ratio;
use crate::memory::Mem;
use crate::trace::Verb;
use midflight::blk::ReqId;

/// Nanoseconds for which a request that nobody waits for may be stuck.
const STUCK: u64 = 10_000_000;

/// An old request is about to move bytes.
#[derive(Clone, Debug)]
pub struct Landing {
    /// What was asked.
    pub job: Job,
    /// Sectors it changes, with the tag each has before.
    pub over: Vec<(u64, u64)>,
}

impl Disk {
    /// Name of a job by its owner's name.
    pub fn find(&self, life: u32, id: ReqId) -> Option<u64> {
        let found = |(key, p): (u64, &super::Pending)| {
            (p.job.life == life && p.job.id == id).then_some(key)
        };
        self.pending.iter().find_map(found)
    }

    /// How long it takes until this disk confirms a cancel.
    pub fn cancel_after(&mut self, most_us: u64) -> u64 {
        1_000 + self.stream.below("cancel", 1_000 * most_us)
    }

    /// The disk comes to a cancel: the job as it is over now, having touched what
    /// it has touched. `None`: it is over already, or was so far that it has to
    /// be finished, now.
    pub fn cancelled(&mut self, key: u64, mem: &Mem) -> Option<Job> {
        let pending = self.pending.get(key)?;
        let (applied, len) = (pending.applied, pending.job.len);
        if applied && self.stream.chance("cancel.late", Ratio::new(1, 2)) {
            return None;
        }
        let pending = self.pending.remove(key)?;
        if !applied && self.stream.chance("cancel.torn", Ratio::new(1, 2)) {
            let limit = self.torn(len);
            if limit > 0 {
                self.perform(&pending, limit, mem);
            }
        }
        Some(pending.job)
    }

    /// Nobody waits for this job any more. If it has not moved its bytes, it is
    /// stuck somewhere on its way, and does so when it comes: its new name, and
    /// nanoseconds until then.
    pub fn set_adrift(&mut self, key: u64) -> Option<(u64, u64)> {
        let pending = self.pending.get_mut(key)?;
        pending.adrift = true;
        if pending.applied {
            return None;
        }
        let pending = self.pending.remove(key)?;
        let (key, after) = (self.next_key, self.stream.below("adrift", STUCK));
        self.next_key += 1;
        self.pending.insert(key, pending);
        Some((key, after))
    }

    /// Whether nobody waits for this job.
    pub fn is_adrift(&self, key: u64) -> bool {
        self.pending.get(key).is_some_and(|p| p.adrift)
    }

    /// Whether there is any job that nobody waits for.
    pub fn has_adrift(&self) -> bool {
        self.pending.values().any(|p| p.adrift)
    }

    /// The front-end was told that this vring of a back-end is at rest.
    pub fn disown(&mut self, life: u32, vring: u16) {
        for pending in self.pending.values_mut() {
            pending.disowned |= pending.job.life == life && pending.job.vring == vring;
        }
    }

    /// A job for the same head of the same vring that somebody asked for before
    /// and that is not over.
    pub fn other_owner(&self, job: &Job) -> Option<&Job> {
        let same = |p: &&super::Pending| p.job.vring == job.vring && p.job.head == job.head;
        self.pending.values().find(same).map(|p| &p.job)
    }

    /// What is about to happen if this job moves its bytes now though its vring
    /// was said to be at rest.
    pub fn landing(&self, key: u64) -> Option<Landing> {
        let pending = self.pending.get(key).filter(|p| p.disowned && !p.applied)?;
        let job = pending.job.clone();
        let sectors = match job.verb {
            Verb::Write | Verb::WriteZeroes | Verb::Discard => {
                job.offset / SECTOR..(job.offset + job.len) / SECTOR
            }
            Verb::Read | Verb::Flush | Verb::GetId | Verb::Unknown => 0..0,
        };
        let over = sectors.map(|s| (s, self.image.tag(s))).collect();
        Some(Landing { job, over })
    }
}
