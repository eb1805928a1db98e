//! The disk: takes requests, moves bytes at a moment of its own between
//! submission and completion, and completes out of order.
//!
//! What a kill of the back-end process does here: a request in flight may have
//! been applied, in part (whole sectors), or not at all. It never lands later.
//! That is a promise somebody has to keep: the daemon holds a lock on its image,
//! and the kernel does not release it before the dead process' I/O has ended,
//! so a successor cannot start while a write of its predecessor is under way.
//!
//! What else can be wrong with it is in [`faults`].

#[cfg(test)]
mod fault_tests;
pub mod faults;
mod faulty;
mod image;
mod late;
mod latency;
mod pending;
mod versions;

use crate::choices::{Ratio, Stream};
use crate::memory::Mem;
use crate::trace::Verb;
use faults::{DiskFault, Faults, Injected};
pub use image::{Image, SECTOR};
pub use late::Landing;
pub use latency::Pace;
use midflight::blk::DiskError;
pub use midflight::blk::ReqId;
use pending::InOrder;
use vm_memory::GuestAddress;

/// A request of a back-end, as the disk holds it.
#[derive(Clone, Debug)]
pub struct Job {
    /// The back-end's name for it.
    pub id: ReqId,
    /// Which life of the back-end asked.
    pub life: u32,
    /// Over which connection; no two lives share one.
    pub conn: u32,
    /// The guest's request.
    pub request: u64,
    /// Vring it came from.
    pub vring: u16,
    /// Head of its chain.
    pub head: u16,
    /// What to do: read, write, flush, discard or write zeroes.
    pub verb: Verb,
    /// First byte on the disk.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Durable before completion.
    pub durable: bool,
    /// Guest memory to move data from or to: address and bytes of each piece.
    pub segments: Vec<(u64, u32)>,
}

struct Pending {
    job: Job,
    /// Stores that a flush has to cover.
    mark: u64,
    applied: bool,
    result: Result<(), DiskError>,
    /// Its vring was said to be at rest.
    disowned: bool,
    /// Its driver has said that it is over, and it is not.
    adrift: bool,
    /// What strikes it.
    fault: Option<DiskFault>,
    /// Its completion has waited for its turn.
    held_back: bool,
}

/// Requests that a disk of fixed latency works on at once; others wait.
const LANES: usize = 8;

/// When a job's two moments come, in nanoseconds from now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name for the two events.
    pub key: u64,
    /// Bytes move.
    pub apply_after: u64,
    /// Completion, never before.
    pub done_after: u64,
}

/// See the module.
pub struct Disk {
    stream: Stream,
    pace: Pace,
    errors: Ratio,
    image: Image,
    pending: InOrder<Pending>,
    next_key: u64,
    /// When each of a fixed number of lanes is free again.
    lanes: Vec<u64>,
    buffer: Vec<u8>,
    /// `None`: a flawless disk.
    faults: Option<Box<Faults>>,
    /// What took effect and nobody was told yet.
    told: Vec<Injected>,
}

impl Disk {
    /// A disk of zeroes.
    pub fn new(stream: Stream, sectors: u64, pace: Pace, errors: Ratio) -> Self {
        Self {
            stream,
            pace,
            errors,
            image: Image::new(sectors),
            pending: InOrder::new(),
            next_key: 0,
            lanes: vec![0; LANES],
            buffer: Vec::new(),
            faults: None,
            told: Vec::new(),
        }
    }

    /// What is on it.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// The decisions so far.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Jobs not done yet.
    pub fn outstanding(&self) -> u64 {
        self.pending.len() as u64
    }

    /// A job that is not done, of this life of a back-end.
    pub fn held_for(&self, life: u32) -> Option<&Job> {
        self.pending.values().map(|p| &p.job).find(|j| j.life == life)
    }

    /// Take a job, at this virtual time.
    pub fn submit(&mut self, now: u64, job: Job) -> Plan {
        let mut done_after = self.pace.draw(&mut self.stream);
        if self.pace.has_lanes() {
            let lane = self.lanes.iter_mut().min().expect("there are lanes");
            *lane = now.max(*lane) + done_after;
            done_after = *lane - now;
        }
        // At the start, somewhere in the middle, or with the completion.
        let apply_after = match self.stream.below("apply", 4) {
            0 => 0,
            1 => done_after,
            _ => self.stream.below("apply.at", done_after + 1),
        };
        let result =
            if self.stream.chance("error", self.errors) { Err(DiskError::Os(5)) } else { Ok(()) };
        let key = self.next_key;
        self.next_key += 1;
        let mark = self.image.mark();
        let fault = self.faults.as_mut().and_then(|faults| faults.next(job.verb));
        let pending = Box::new(Pending {
            job,
            mark,
            applied: false,
            result,
            disowned: false,
            adrift: false,
            fault,
            held_back: false,
        });
        self.pending.insert(key, pending);
        Plan { key, apply_after, done_after }
    }

    /// A job that is still held: not applied or not done.
    pub fn job(&self, key: u64) -> Option<&Job> {
        self.pending.get(key).map(|p| &p.job)
    }

    /// The moment when a job's bytes move. Nothing happens if its process has
    /// died, or if it moved already.
    pub fn apply(&mut self, key: u64, mem: &Mem) -> Option<&Job> {
        if !self.pending.get(key)?.applied {
            let mut pending = self.pending.remove(key)?;
            pending.applied = true;
            let len = pending.job.len;
            // A request that fails has moved some of its bytes, or none.
            let limit = match pending.result {
                Ok(()) => len,
                Err(_) => self.torn(len),
            };
            let limit = self.strike(&mut pending, limit);
            self.perform(&pending, limit, mem);
            self.pending.insert(key, pending);
        }
        self.job(key)
    }

    /// The job is over; what came of it.
    pub fn finish(&mut self, key: u64, mem: &Mem) -> Option<(Job, Result<(), DiskError>)> {
        self.apply(key, mem)?;
        let pending = self.pending.remove(key)?;
        self.report_again(&pending);
        Some((pending.job, pending.result))
    }

    /// The process that asked has been killed. See the module for what becomes
    /// of its requests. Returns how many had bytes moved by now.
    pub fn process_died(&mut self, life: u32, mem: &Mem) -> u64 {
        let keys: Vec<u64> =
            self.pending.iter().filter(|(_, p)| p.job.life == life).map(|(k, _)| k).collect();
        let mut moved = 0;
        for key in keys {
            let Some(pending) = self.pending.remove(key) else { continue };
            if !pending.applied {
                let len = pending.job.len;
                let limit = match self.stream.below("killed", 3) {
                    0 => 0,
                    1 => len,
                    _ => self.torn(len),
                };
                let whole = pending.job.verb == Verb::Flush && limit == len;
                if limit > 0 || (whole && self.stream.chance("killed.flush", Ratio::new(1, 2))) {
                    self.perform(&pending, limit, mem);
                    moved += 1;
                }
            } else {
                moved += 1;
            }
        }
        moved
    }

    /// Some whole sectors, not all.
    fn torn(&mut self, len: u64) -> u64 {
        SECTOR * self.stream.below("torn", len.div_ceil(SECTOR))
    }

    fn perform(&mut self, pending: &Pending, limit: u64, mem: &Mem) {
        let Pending { ref job, mark, .. } = *pending;
        let flushes = pending.result.is_ok() && pending.fault != Some(DiskFault::LyingFlush);
        let limit = self.reach(job, limit);
        let Job { offset, durable, .. } = *job;
        match job.verb {
            Verb::Read => {
                self.buffer.resize(limit as usize, 0);
                self.image.read(offset, &mut self.buffer);
                if let Some(faults) = &self.faults {
                    faults.overlay(offset, &mut self.buffer);
                }
                each_piece(&job.segments, limit, |addr, piece| {
                    let bytes = &self.buffer[piece];
                    mem.write_slice(bytes, addr).expect("segments lie in guest memory");
                });
            }
            Verb::Write => {
                self.buffer.resize(limit as usize, 0);
                each_piece(&job.segments, limit, |addr, piece| {
                    let bytes = &mut self.buffer[piece];
                    mem.read_slice(bytes, addr).expect("segments lie in guest memory");
                });
                let old = self.before_write(pending, limit);
                self.image.write(offset, &self.buffer, durable);
                self.after_write(pending, limit, old);
            }
            Verb::Flush if flushes => self.image.flush(mark),
            // A discarded range may keep its content.
            Verb::Discard => {
                if self.stream.chance("discard", Ratio::new(1, 2)) {
                    self.zero(pending, limit);
                }
            }
            Verb::WriteZeroes => self.zero(pending, limit),
            Verb::Flush | Verb::GetId | Verb::Unknown => {}
        }
    }
}

/// Pieces of a buffer of `limit` bytes and where in guest memory each lies.
fn each_piece(
    segments: &[(u64, u32)],
    limit: u64,
    mut piece: impl FnMut(GuestAddress, std::ops::Range<usize>),
) {
    let mut at = 0;
    for (addr, len) in segments {
        let len = (*len as usize).min(limit as usize - at);
        if len == 0 {
            break;
        }
        piece(GuestAddress(*addr), at..at + len);
        at += len;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::choices::Component;
    use crate::memory::Arena;

    fn job(verb: Verb, offset: u64, segments: &[(u64, u32)]) -> Job {
        Job {
            id: ReqId { slot: 0, epoch: 0 },
            life: 1,
            conn: 1,
            request: 0,
            vring: 0,
            head: 0,
            verb,
            offset,
            len: segments.iter().map(|(_, len)| u64::from(*len)).sum(),
            durable: false,
            segments: segments.to_vec(),
        }
    }

    fn world(seed: u64) -> (Disk, Mem) {
        let mut arena = Arena::new();
        let id = arena.region(8192);
        let stream = Stream::new(seed, Component::Disk);
        (Disk::new(stream, 16, Pace::Spread, Ratio::NEVER), arena.view(&[(0, id)]))
    }

    #[test]
    fn disk_moves_bytes_between_apply_and_completion_only() {
        let (mut disk, mem) = world(1);
        mem.write_slice(&[7; 512], GuestAddress(1000)).unwrap();
        let plan = disk.submit(0, job(Verb::Write, 512, &[(1000, 500), (1500, 12)]));
        assert!(plan.apply_after <= plan.done_after);
        assert_eq!(disk.image().sector(1)[0], 0);
        disk.apply(plan.key, &mem);
        assert_eq!(disk.image().sector(1), [7; 512]);
        let plan = disk.submit(0, job(Verb::Read, 512, &[(4000, 512)]));
        let (done, result) = disk.finish(plan.key, &mem).unwrap();
        assert_eq!((done.len, result), (512, Ok(())));
        let mut got = [0; 512];
        mem.read_slice(&mut got, GuestAddress(4000)).unwrap();
        assert_eq!(got, [7; 512]);
    }

    #[test]
    fn disk_tears_requests_of_a_killed_process_at_sectors_and_never_later() {
        let mut seen = [false; 5];
        for seed in 0..200 {
            let (mut disk, mem) = world(seed);
            mem.write_slice(&[9; 2048], GuestAddress(0)).unwrap();
            let plan = disk.submit(0, job(Verb::Write, 0, &[(0, 2048)]));
            disk.process_died(1, &mem);
            let written = (0..4).take_while(|s| disk.image().sector(*s) == [9; 512]).count();
            assert!((written..4).all(|s| disk.image().sector(s as u64) == [0; 512]));
            seen[written] = true;
            assert!(disk.finish(plan.key, &mem).is_none());
        }
        assert_eq!(seen, [true; 5]);
    }
}
