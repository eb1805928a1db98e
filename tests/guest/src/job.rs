//! Verified I/O in the background.
//!
//! The area is cut into one slice of consecutive blocks per thread; a thread
//! has one operation outstanding and touches only its own slice, so there is
//! never more than one operation per block and the depth is the number of
//! threads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Barrier, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::block;
use crate::io::{self, Buffer};
use crate::system;

/// What a job works on and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub disk: String,
    /// First byte and number of bytes of the area.
    pub offset: u64,
    pub len: u64,
    /// Bytes of a block.
    pub block: u64,
    /// Operations outstanding.
    pub depth: u64,
    /// Most blocks in one operation.
    pub most: u64,
    pub seed: u64,
    /// Of a hundred operations, how many write and how many flush.
    pub writes: u64,
    pub flushes: u64,
    /// Buffers of finished reads each thread keeps to look at them again.
    pub keep: u64,
    /// The disk may go away: the first error ends the job, so that no block has
    /// more than one write whose end is not known.
    pub frail: bool,
}

impl Plan {
    pub fn blocks(&self) -> u64 {
        self.len / self.block
    }

    fn same_area(&self, other: &Self) -> bool {
        (&self.disk, self.offset, self.len, self.block, self.seed)
            == (&other.disk, other.offset, other.len, other.block, other.seed)
    }
}

/// What is known of a block: the generation acknowledged last, and that of a
/// later write that failed and may or may not have reached the disk (the same
/// number again when there is none).
type Known = [u64; 2];

#[derive(Default)]
struct PerThread {
    done: AtomicU64,
    /// What `done` was at the mark.
    marked: AtomicU64,
    /// When the outstanding operation began, in ns since the job; 0: none.
    since: AtomicU64,
}

struct Shared {
    began: Instant,
    stop: AtomicBool,
    reads: AtomicU64,
    writes: AtomicU64,
    flushes: AtomicU64,
    verified: AtomicU64,
    mismatches: AtomicU64,
    errors: AtomicU64,
    last_completion: AtomicU64,
    longest_gap: AtomicU64,
    longest_wait: AtomicU64,
    /// Kept buffers looked at again, and those of them read before the mark.
    rechecked: AtomicU64,
    rechecked_old: AtomicU64,
    marks: AtomicU64,
    /// Threads that have written every block of theirs.
    filled: AtomicU64,
    first_trouble: Mutex<String>,
    threads: Vec<PerThread>,
}

impl Shared {
    fn new(threads: u64) -> Self {
        Self {
            began: Instant::now(),
            stop: AtomicBool::new(false),
            reads: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            mismatches: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_completion: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
            longest_wait: AtomicU64::new(0),
            rechecked: AtomicU64::new(0),
            rechecked_old: AtomicU64::new(0),
            marks: AtomicU64::new(0),
            filled: AtomicU64::new(0),
            first_trouble: Mutex::new(String::new()),
            threads: (0..threads).map(|_| PerThread::default()).collect(),
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn error(&self, what: &str) {
        self.trouble(&self.errors, what);
        // A disk that refuses everything at once must not take the processor
        // from whatever would bring it back.
        std::thread::sleep(Duration::from_millis(20));
    }

    fn trouble(&self, counter: &AtomicU64, what: &str) {
        counter.fetch_add(1, Relaxed);
        let mut first = self.first_trouble.lock().unwrap_or_else(|e| e.into_inner());
        if first.is_empty() {
            *first = what.to_string();
        }
    }

    /// Times one operation of thread `me`.
    fn timed<T>(&self, me: usize, operation: impl FnOnce() -> T) -> T {
        let start = self.now().max(1);
        self.threads[me].since.store(start, Relaxed);
        let result = operation();
        let end = self.now();
        self.threads[me].since.store(0, Relaxed);
        self.threads[me].done.fetch_add(1, Relaxed);
        self.longest_wait.fetch_max(end - start, Relaxed);
        let before = self.last_completion.swap(end, Relaxed);
        self.longest_gap.fetch_max(end.saturating_sub(before), Relaxed);
        result
    }
}

/// A job, running or finished.
pub struct Job {
    plan: Plan,
    shared: Arc<Shared>,
    running: Vec<JoinHandle<Vec<Known>>>,
    known: Vec<Known>,
}

impl Job {
    /// Starts writing every block once (`fresh`), then mixed reads and writes.
    /// Without `fresh`, `previous` must be a finished job on the same area.
    pub fn start(plan: Plan, fresh: bool, previous: Option<Job>) -> Result<Self, String> {
        let per_thread = plan.blocks() / plan.depth;
        if per_thread == 0 || plan.most == 0 {
            return Err(format!("{} blocks are too few for depth {}", plan.blocks(), plan.depth));
        }
        let known = match previous {
            _ if fresh => vec![[0, 0]; plan.blocks() as usize],
            Some(job) if job.running.is_empty() && job.plan.same_area(&plan) => job.known,
            _ => return Err("no finished job on the same area to go on from".to_string()),
        };
        let files: Vec<File> =
            (0..plan.depth).map(|_| io::open(&plan.disk, true)).collect::<Result<_, _>>()?;
        let shared = Arc::new(Shared::new(plan.depth));
        let processors = system::processors();
        // The first threads would take the processors from starting the others.
        let all = Arc::new(Barrier::new(files.len()));
        let mut running = Vec::new();
        for (me, file) in (0..).zip(files) {
            let first = me * per_thread;
            let last = if me + 1 == plan.depth { plan.blocks() } else { first + per_thread };
            let mut worker = Worker {
                file,
                buffer: Buffer::new((plan.block * plan.most) as usize),
                kept: Kept::new(&plan),
                random: block::mix(plan.seed ^ block::mix(me + 1)),
                known: known[first as usize..last as usize].to_vec(),
                shared: shared.clone(),
                plan: plan.clone(),
                me: me as usize,
                first,
            };
            let all = all.clone();
            running.push(std::thread::spawn(move || {
                all.wait();
                system::pin(worker.me % processors);
                worker.run(fresh);
                worker.known
            }));
        }
        Ok(Self { plan, shared, running, known: Vec::new() })
    }

    /// A finished job whose knowledge is what the disk holds now: every block
    /// has to be whole, its generation is taken as found.
    pub fn scan(plan: Plan) -> Result<Self, String> {
        let file = io::open(&plan.disk, false)?;
        let mut buffer = Buffer::new(plan.block as usize);
        let mut known = Vec::new();
        for number in 0..plan.blocks() {
            let bytes = buffer.bytes(plan.block as usize);
            bytes.fill(0xee);
            file.read_exact_at(bytes, plan.offset + number * plan.block)
                .map_err(|error| format!("read of block {number}: {error}"))?;
            let generation = block::generation(bytes, number, plan.seed)?;
            known.push([generation, generation]);
        }
        let shared = Arc::new(Shared::new(0));
        shared.verified.store(plan.blocks(), Relaxed);
        Ok(Self { plan, shared, running: Vec::new(), known })
    }

    pub fn is_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// From now on `behind` counts the threads that have not completed an
    /// operation since: at 0, all that is outstanding now has completed.
    pub fn mark(&self) -> String {
        self.shared.marks.fetch_add(1, Relaxed);
        for thread in &self.shared.threads {
            thread.marked.store(thread.done.load(Relaxed), Relaxed);
        }
        self.status()
    }

    /// The longest time without a completion since this was last asked for.
    pub fn gap(&self) -> String {
        format!("gap_ns={}", self.shared.longest_gap.swap(0, Relaxed))
    }

    pub fn status(&self) -> String {
        let shared = &self.shared;
        let now = shared.now();
        let (mut inflight, mut behind, mut done) = (0, 0, 0);
        let mut wait = shared.longest_wait.load(Relaxed);
        for thread in &shared.threads {
            let (since, count) = (thread.since.load(Relaxed), thread.done.load(Relaxed));
            if since != 0 {
                inflight += 1;
                wait = wait.max(now.saturating_sub(since));
            }
            behind += u64::from(count == thread.marked.load(Relaxed));
            done += count;
        }
        let first = shared.first_trouble.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        format!(
            "done={done} behind={behind} inflight={inflight} filled={} reads={} writes={} flushes={} verified={} \
             mismatches={} errors={} rechecked={} rechecked_old={} wait_ns={wait} first={}",
            get(&shared.filled),
            get(&shared.reads),
            get(&shared.writes),
            get(&shared.flushes),
            get(&shared.verified),
            get(&shared.mismatches),
            get(&shared.errors),
            get(&shared.rechecked),
            get(&shared.rechecked_old),
            if first.is_empty() { "none".to_string() } else { first.replace(' ', "_") },
        )
    }

    /// Asks all threads to stop and waits at most `wait` for their last
    /// operations. An operation that does not end in that time is an error.
    pub fn stop(&mut self, wait: Duration) -> Result<(), String> {
        self.shared.stop.store(true, Relaxed);
        let until = Instant::now() + wait;
        while self.running.iter().any(|thread| !thread.is_finished()) {
            if Instant::now() > until {
                let stuck = self.running.iter().filter(|thread| !thread.is_finished()).count();
                return Err(format!("{stuck} operations never completed: {}", self.status()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for thread in self.running.drain(..) {
            self.known.extend(thread.join().map_err(|_| "an I/O thread panicked".to_string())?);
        }
        Ok(())
    }

    /// Reads every block once more and compares it with what was acknowledged.
    /// Returns how many were right and the first that was not.
    pub fn verify(&self) -> Result<(u64, u64, String), String> {
        if self.is_running() {
            return Err("the job is still running".to_string());
        }
        let plan = &self.plan;
        let file = io::open(&plan.disk, false)?;
        let chunk = 16_u64.min(plan.blocks());
        let mut buffer = Buffer::new((plan.block * chunk) as usize);
        let (mut right, mut wrong, mut first) = (0, 0, "none".to_string());
        for (index, known) in self.known.chunks(chunk as usize).enumerate() {
            let number = index as u64 * chunk;
            let bytes = buffer.bytes(known.len() * plan.block as usize);
            bytes.fill(0xee);
            file.read_exact_at(bytes, plan.offset + number * plan.block)
                .map_err(|error| format!("read of block {number}: {error}"))?;
            for (at, bytes) in bytes.chunks_exact(plan.block as usize).enumerate() {
                match block::check(bytes, number + at as u64, known[at], plan.seed) {
                    Ok(_) => right += 1,
                    Err(what) => {
                        wrong += 1;
                        if wrong == 1 {
                            first = what;
                        }
                    }
                }
            }
        }
        Ok((right, wrong, first))
    }

    /// The acknowledged generations of some blocks; `A/B` where a failed write
    /// leaves two possible.
    pub fn generations(&self, start: usize, count: usize) -> Result<String, String> {
        if self.is_running() {
            return Err("the job is still running".to_string());
        }
        let end = start.saturating_add(count).min(self.known.len());
        let some = self.known.get(start..end).ok_or("beyond the last block")?;
        Ok(some
            .iter()
            .map(|known| match known {
                [acked, other] if acked == other => acked.to_string(),
                [acked, other] => format!("{acked}/{other}"),
            })
            .collect::<Vec<_>>()
            .join(","))
    }
}

/// Buffers of finished reads.
struct Kept(Vec<Slot>);

struct Slot {
    buffer: Buffer,
    /// The first block it holds, and what was known of all when it was read;
    /// nothing if it holds none.
    first: u64,
    known: Vec<Known>,
    /// How many marks there had been.
    marks: u64,
}

impl Kept {
    fn new(plan: &Plan) -> Self {
        let slot = |_| Slot {
            buffer: Buffer::new((plan.block * plan.most) as usize),
            first: 0,
            known: Vec::new(),
            marks: 0,
        };
        Self((0..plan.keep).map(slot).collect())
    }
}

/// Checks consecutive blocks.
fn check_all(bytes: &[u8], first: u64, known: &[Known], plan: &Plan) -> Result<(), String> {
    let parts = bytes.chunks_exact(plan.block as usize);
    for (index, (part, known)) in parts.zip(known).enumerate() {
        block::check(part, first + index as u64, *known, plan.seed)?;
    }
    Ok(())
}

/// One thread of a job.
struct Worker {
    file: File,
    buffer: Buffer,
    kept: Kept,
    random: u64,
    known: Vec<Known>,
    shared: Arc<Shared>,
    plan: Plan,
    me: usize,
    first: u64,
}

impl Worker {
    fn below(&mut self, bound: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        block::mix(self.random) % bound
    }

    fn error(&self, what: &str) {
        if self.plan.frail {
            self.shared.stop.store(true, Relaxed);
        }
        self.shared.error(what);
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Relaxed)
    }

    fn run(&mut self, fresh: bool) {
        let count = self.known.len() as u64;
        if fresh {
            let mut at = 0;
            while at < count && !self.stopped() {
                let blocks = self.plan.most.min(count - at);
                self.write(at, blocks);
                at += blocks;
            }
        }
        self.shared.filled.fetch_add(1, Relaxed);
        while !self.stopped() {
            let blocks = 1 + self.below(self.plan.most.min(count));
            let at = self.below(count - blocks + 1);
            let choice = self.below(100);
            if choice < self.plan.writes {
                self.write(at, blocks);
            } else if choice < self.plan.writes + self.plan.flushes {
                self.flush();
            } else {
                self.read(at, blocks);
            }
        }
        for index in 0..self.kept.0.len() {
            self.look_again(index);
        }
    }

    fn position(&self, at: u64) -> u64 {
        self.plan.offset + (self.first + at) * self.plan.block
    }

    fn write(&mut self, at: u64, blocks: u64) {
        let size = self.plan.block as usize;
        let position = self.position(at);
        let slice = at as usize..(at + blocks) as usize;
        let bytes = self.buffer.bytes(size * blocks as usize);
        let mut next = Vec::with_capacity(blocks as usize);
        for (index, known) in self.known[slice.clone()].iter().enumerate() {
            let generation = known[0].max(known[1]) + 1;
            let number = self.first + at + index as u64;
            let part = &mut bytes[index * size..(index + 1) * size];
            block::fill(part, number, generation, self.plan.seed);
            next.push(generation);
        }
        let file = &self.file;
        let result = self.shared.timed(self.me, || file.write_all_at(bytes, position));
        let failed = result.is_err();
        for (known, generation) in self.known[slice].iter_mut().zip(next) {
            *known = [if failed { known[0] } else { generation }, generation];
        }
        self.shared.writes.fetch_add(1, Relaxed);
        if let Err(error) = result {
            self.error(&format!("write at {position}: {error}"));
        }
    }

    fn read(&mut self, at: u64, blocks: u64) {
        let size = self.plan.block as usize;
        let position = self.position(at);
        // Any of the kept buffers makes room, so that some stay for long.
        let index = match self.kept.0.len() as u64 {
            0 => None,
            count => Some(self.below(count) as usize),
        };
        if let Some(index) = index {
            self.look_again(index);
        }
        let buffer = match index {
            Some(index) => &mut self.kept.0[index].buffer,
            None => &mut self.buffer,
        };
        let bytes = buffer.bytes(size * blocks as usize);
        // Poison: a read that transfers nothing must not look right.
        bytes.fill(0xee);
        let file = &self.file;
        let result = self.shared.timed(self.me, || file.read_exact_at(bytes, position));
        self.shared.reads.fetch_add(1, Relaxed);
        if let Err(error) = result {
            self.error(&format!("read at {position}: {error}"));
            return;
        }
        let first = self.first + at;
        let known = &self.known[at as usize..(at + blocks) as usize];
        match check_all(bytes, first, known, &self.plan) {
            Ok(()) => {
                self.shared.verified.fetch_add(1, Relaxed);
            }
            Err(what) => return self.shared.trouble(&self.shared.mismatches, &what),
        }
        if let Some(index) = index {
            let slot = &mut self.kept.0[index];
            (slot.first, slot.known) = (first, known.to_vec());
            slot.marks = self.shared.marks.load(Relaxed);
        }
    }

    /// Checks that a buffer still holds what was read into it, and empties it.
    /// After a migration that finds a page which the device wrote and nobody
    /// sent: the processor has only read it since.
    fn look_again(&mut self, index: usize) {
        let slot = &mut self.kept.0[index];
        let known = std::mem::take(&mut slot.known);
        if known.is_empty() {
            return;
        }
        let bytes = slot.buffer.bytes(self.plan.block as usize * known.len());
        if let Err(what) = check_all(bytes, slot.first, &known, &self.plan) {
            let what = format!("a buffer changed after the read: {what}");
            self.shared.trouble(&self.shared.mismatches, &what);
        }
        self.shared.rechecked.fetch_add(1, Relaxed);
        if slot.marks < self.shared.marks.load(Relaxed) {
            self.shared.rechecked_old.fetch_add(1, Relaxed);
        }
    }

    fn flush(&mut self) {
        let file = &self.file;
        let result = self.shared.timed(self.me, || file.sync_data());
        self.shared.flushes.fetch_add(1, Relaxed);
        if let Err(error) = result {
            self.error(&format!("flush: {error}"));
        }
    }
}
