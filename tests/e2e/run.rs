//! Verified I/O in the guest, watched from the host.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::block;
use crate::guest::{Answer, Guest};
use crate::process;

/// What to do on which part of a disk. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Plan {
    pub disk: String,
    pub offset: u64,
    pub len: u64,
    pub block: u64,
    /// Operations outstanding.
    pub depth: u64,
    /// Most blocks in one operation.
    pub most: u64,
    pub seed: u64,
    /// Of a hundred operations, how many write and flush; the rest read.
    pub writes: u64,
    pub flushes: u64,
    /// Buffers of finished reads that each thread keeps, and looks at again
    /// before they are used anew and at the end.
    pub keep: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            disk: "vda".to_string(),
            offset: 0,
            len: 8 << 20,
            block: 4096,
            depth: 32,
            most: 4,
            seed: 1,
            writes: 50,
            flushes: 2,
            keep: 0,
        }
    }
}

impl Plan {
    /// For migrations: also watches memory.
    pub fn migrating() -> Self {
        Self { keep: 32, ..Self::slow() }
    }

    /// For slow disks: few blocks, so that a write that comes late meets newer
    /// data, and single ones, so that all of them are in flight separately.
    pub fn slow() -> Self {
        Self { len: 1 << 20, most: 1, ..Self::default() }
    }

    pub fn arguments(&self) -> String {
        format!(
            "disk={} offset={} len={} block={} depth={} most={} seed={} writes={} flushes={} keep={}",
            self.disk,
            self.offset,
            self.len,
            self.block,
            self.depth,
            self.most,
            self.seed,
            self.writes,
            self.flushes,
            self.keep
        )
    }

    /// Checks that every sector is one that the guest has written, of whatever
    /// generation, after a guest that was lost had written every block. Returns
    /// the number of blocks.
    pub fn check_whole(&self, image: &Path) -> Result<u64, String> {
        let image = std::fs::read(image).map_err(|e| format!("{}: {e}", image.display()))?;
        for number in 0..self.blocks() {
            let at = (self.offset + number * self.block) as usize;
            let sectors = image[at..at + self.block as usize].chunks_exact(block::SECTOR);
            for (index, sector) in sectors.enumerate() {
                let place = format!("block {number} sector {index}");
                match block::sector_generation(sector, number, index, self.seed) {
                    Ok(0) => return Err(format!("{place} was written and is zeroes")),
                    Ok(_) => {}
                    Err(what) => return Err(format!("{place}: {what}")),
                }
            }
        }
        Ok(self.blocks())
    }

    fn blocks(&self) -> u64 {
        self.len / self.block
    }
}

/// What a scenario measured; printed in its line.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    pub ios: u64,
    pub verified: u64,
    pub mismatches: u64,
    pub errors: u64,
    /// Longest time without a completion, by the host's clock.
    pub stall: Duration,
    /// Longest single operation, by the guest's clock.
    pub wait: Duration,
    /// Kept buffers looked at again, and those of them that were read before
    /// the last mark.
    pub rechecked: (u64, u64),
    pub notes: Vec<String>,
}

impl Figures {
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }

    /// Takes the sums and maxima of both.
    pub fn add(&mut self, other: Self) {
        self.ios += other.ios;
        self.verified += other.verified;
        self.mismatches += other.mismatches;
        self.errors += other.errors;
        self.stall = self.stall.max(other.stall);
        self.wait = self.wait.max(other.wait);
        self.rechecked.0 += other.rechecked.0;
        self.rechecked.1 += other.rechecked.1;
        self.notes.extend(other.notes);
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ios > 0 {
            write!(
                f,
                "ios {} verified {} mismatches {} errors {} stall {} ms (guest's longest op {} ms) ",
                self.ios,
                self.verified,
                self.mismatches,
                self.errors,
                self.stall.as_millis(),
                self.wait.as_millis()
            )?;
        }
        let (all, old) = self.rechecked;
        if all > 0 {
            write!(f, "buffers looked at again {all} ({old} old) ")?;
        }
        f.write_str(&self.notes.join(", "))
    }
}

#[derive(Default)]
struct Watched {
    quit: AtomicBool,
    stall_ns: AtomicU64,
    /// The same since somebody last asked.
    recent_ns: AtomicU64,
    trouble: Mutex<Option<String>>,
}

/// Asks for the job's counters all the time and keeps the longest interval, by
/// the host's clock, in which no operation completed. A guest that stands still
/// cannot see that.
struct Meter {
    watched: Arc<Watched>,
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    fn start(guest: &Guest) -> Self {
        let watched = Arc::new(Watched::default());
        let (mine, guest) = (watched.clone(), guest.clone());
        let thread = std::thread::spawn(move || {
            let (mut done, mut since) = (0, Instant::now());
            while !mine.quit.load(SeqCst) {
                match guest.ask("status").and_then(|answer| answer.number("done")) {
                    Ok(now) => {
                        let elapsed = since.elapsed().as_nanos() as u64;
                        mine.stall_ns.fetch_max(elapsed, SeqCst);
                        mine.recent_ns.fetch_max(elapsed, SeqCst);
                        if now != done {
                            (done, since) = (now, Instant::now());
                        }
                    }
                    Err(what) => {
                        *mine.trouble.lock().unwrap_or_else(|e| e.into_inner()) = Some(what);
                        return;
                    }
                }
                std::thread::sleep(Duration::from_millis(15));
            }
        });
        Self { watched, thread: Some(thread) }
    }

    fn finish(mut self) -> Result<Duration, String> {
        self.watched.quit.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| "the watching thread panicked".to_string())?;
        }
        match self.watched.trouble.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(what) => Err(what),
            None => Ok(Duration::from_nanos(self.watched.stall_ns.load(SeqCst))),
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.watched.quit.store(true, SeqCst);
    }
}

/// A job in the guest.
pub struct Run {
    guest: Guest,
    plan: Plan,
    meter: Meter,
}

impl Run {
    /// Starts a job that first writes every block.
    pub fn start(guest: &Guest, plan: &Plan) -> Result<Self, String> {
        Self::begin(guest, plan, true)
    }

    /// Starts a job that believes what the one before, or a scan, has found.
    pub fn go_on(guest: &Guest, plan: &Plan) -> Result<Self, String> {
        Self::begin(guest, plan, false)
    }

    fn begin(guest: &Guest, plan: &Plan, fresh: bool) -> Result<Self, String> {
        guest.ask(&format!("start {} fresh={}", plan.arguments(), u8::from(fresh)))?;
        Ok(Self { guest: guest.clone(), plan: plan.clone(), meter: Meter::start(guest) })
    }

    pub fn status(&self) -> Result<Answer, String> {
        self.guest.ask("status")
    }

    /// Waits until every block has been written.
    pub fn wait_filled(&self, limit: Duration) -> Result<(), String> {
        process::until(limit, "every block to be written", || {
            Ok((self.status()?.number("filled")? == self.plan.depth).then_some(()))
        })
        .map_err(|what| self.explain(what))
    }

    /// The longest times without a completion since this was last asked for, by
    /// the host's clock and by the guest's, which stands still while the guest
    /// does.
    pub fn take_stall(&self) -> Result<(Duration, Duration), String> {
        let host = self.meter.watched.recent_ns.swap(0, SeqCst);
        let guest = self.guest.ask("gap")?.number("gap_ns")?;
        Ok((Duration::from_nanos(host), Duration::from_nanos(guest)))
    }

    /// Waits until `more` operations have been done from now on.
    pub fn wait_for(&self, more: u64, limit: Duration) -> Result<(), String> {
        let goal = self.status()?.number("done")? + more;
        process::until(limit, &format!("{more} more operations"), || {
            Ok((self.status()?.number("done")? >= goal).then_some(()))
        })
        .map_err(|what| self.explain(what))
    }

    /// Waits until nearly all threads have an operation outstanding, and marks
    /// those. Returns how many there were.
    pub fn mark_deep(&self, limit: Duration) -> Result<u64, String> {
        let deep = self.plan.depth * 3 / 4;
        process::until(limit, &format!("{deep} operations outstanding"), || {
            let inflight = self.guest.ask("mark")?.number("inflight")?;
            Ok((inflight >= deep).then_some(inflight))
        })
        .map_err(|what| self.explain(what))
    }

    /// Marks what is outstanding now, however little. Returns how many.
    pub fn mark(&self) -> Result<u64, String> {
        self.guest.ask("mark")?.number("inflight")
    }

    /// Waits until everything outstanding at the mark has completed.
    pub fn wait_for_marked(&self, limit: Duration) -> Result<(), String> {
        process::until(limit, "every marked operation to complete", || {
            Ok((self.status()?.number("behind")? == 0).then_some(()))
        })
        .map_err(|what| self.explain(what))
    }

    fn explain(&self, what: String) -> String {
        match self.status() {
            Ok(status) => format!("{what}; the job says {status:?}"),
            Err(silent) => format!("{what}; {silent}"),
        }
    }

    /// Ends the job and checks everything: what the guest counted, every block
    /// read again by the guest, the guest's kernel log, and every block as the
    /// host sees it in `image` against what the guest acknowledged.
    pub fn finish(self, image: &Path) -> Result<Figures, String> {
        let stall = self.meter.finish()?;
        finish_job(&self.guest, &self.plan, image, stall)
    }
}

/// Ends the guest's job as [`Run::finish`] does, for a guest that has moved
/// away from the `Run` that started it.
pub fn finish_job(
    guest: &Guest,
    plan: &Plan,
    image: &Path,
    stall: Duration,
) -> Result<Figures, String> {
    let status = guest.ask("stop wait=30")?;
    let mut figures = Figures {
        ios: status.number("done")?,
        verified: status.number("verified")?,
        mismatches: status.number("mismatches")?,
        errors: status.number("errors")?,
        stall,
        wait: Duration::from_nanos(status.number("wait_ns")?),
        rechecked: (status.number("rechecked")?, status.number("rechecked_old")?),
        notes: Vec::new(),
    };
    if figures.mismatches + figures.errors != 0 {
        return Err(format!("{figures}; first: {}", status.text("first")?));
    }
    if figures.verified == 0 {
        return Err(format!("{figures}; nothing was verified"));
    }
    let verify = guest.ask("verify")?;
    if verify.number("wrong")? != 0 {
        return Err(format!(
            "{figures}; {} blocks wrong at the end, first: {}",
            verify.number("wrong")?,
            verify.text("first")?
        ));
    }
    guest.check_log().map_err(|what| format!("{figures}; {what}"))?;
    figures.verified += verify.number("right")?;
    let known = generations(guest, plan)?;
    compare_image(image, plan, &known).map_err(|what| format!("{figures}; {what}"))?;
    Ok(figures)
}

/// The generations the guest's last job or scan knows, block by block.
pub fn generations(guest: &Guest, plan: &Plan) -> Result<Vec<u64>, String> {
    let mut all = Vec::new();
    while (all.len() as u64) < plan.blocks() {
        let answer = guest.ask(&format!("generations start={} count=512", all.len()))?;
        for text in answer.text("list")?.split(',') {
            all.push(
                text.parse().map_err(|_| format!("block {} is uncertain: {text}", all.len()))?,
            );
        }
    }
    Ok(all)
}

/// Lets the guest read what the disk holds, and compares it with `known`.
pub fn scan(guest: &Guest, plan: &Plan, known: &[u64]) -> Result<(), String> {
    guest.ask(&format!("scan {}", plan.arguments()))?;
    let found = generations(guest, plan)?;
    match found.iter().zip(known).position(|(a, b)| a != b) {
        None if found.len() == known.len() => Ok(()),
        None => Err(format!("{} blocks found, {} known", found.len(), known.len())),
        Some(at) => {
            Err(format!("block {at} has generation {}, acknowledged was {}", found[at], known[at]))
        }
    }
}

/// Compares the image with what the guest has acknowledged.
fn compare_image(image: &Path, plan: &Plan, known: &[u64]) -> Result<(), String> {
    let file = File::open(image).map_err(|error| format!("{}: {error}", image.display()))?;
    let mut bytes = vec![0; plan.block as usize];
    for (number, generation) in known.iter().enumerate() {
        let number = number as u64;
        file.read_exact_at(&mut bytes, plan.offset + number * plan.block)
            .map_err(|error| format!("cannot read block {number} of the image: {error}"))?;
        block::check(&bytes, number, [*generation; 2], plan.seed)
            .map_err(|what| format!("in the image: {what}"))?;
    }
    Ok(())
}
