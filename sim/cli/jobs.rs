//! Many threads, a simulator in each. The simulators know nothing of it: threads
//! live here and nowhere else in this crate.

// Which thread runs a seed, and when, changes nothing in what comes of it.
#![allow(clippy::disallowed_methods)]

use super::signals::Signals;
use midflight_sim::memory::Arena;
use midflight_sim::report::Totals;
use rustix::time::{ClockId, clock_gettime};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::{Builder, scope};
use std::time::Duration;

/// Positions that a thread takes at a time: few, so that an interrupt is soon
/// heard, and no thread is left alone with the rest.
const PIECE: u64 = 4;

/// As for a main thread; builds for debugging need more than a thread's default.
const STACK: usize = 8 << 20;

/// What a thread has done.
pub struct Done {
    pub first: u64,
    pub end: u64,
    pub totals: Totals,
    pub cpu_us: u64,
}

/// CPU time of this thread: what else a machine does is not counted. It is
/// reported, but decides nothing.
fn cpu_us() -> u64 {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    // Both are there and positive from the start of a thread on.
    1_000_000 * u64::try_from(now.tv_sec).unwrap_or(0)
        + u64::try_from(now.tv_nsec / 1_000).unwrap_or(0)
}

/// Positions still to be taken, piece by piece.
struct Queue(Vec<(u64, u64)>);

impl Queue {
    fn take(&mut self) -> Option<(u64, u64)> {
        let gap = self.0.last_mut()?;
        let first = gap.0;
        gap.0 = gap.1.min(first + PIECE);
        let piece = (first, gap.0);
        if gap.0 == gap.1 {
            self.0.pop();
        }
        Some(piece)
    }
}

/// Let `work` do each position in `gaps` once, on `jobs` threads, until all are
/// done or a signal comes; what has been begun is finished. `hear` is told of
/// each piece, and ten times a second, on this thread.
pub fn share_out(
    mut gaps: Vec<(u64, u64)>,
    jobs: u64,
    signals: &Signals,
    work: impl Fn(&mut Arena, u64, &mut Totals) -> Result<(), String> + Sync,
    mut hear: impl FnMut(Option<Done>),
) -> Result<(), String> {
    gaps.reverse();
    let queue = Mutex::new(Queue(gaps));
    let failed = AtomicBool::new(false);
    let take = || {
        let stop = failed.load(Ordering::Relaxed) || signals.came().is_some();
        let mut queue = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if stop { None } else { queue.take() }
    };
    let piece = |arena: &mut Arena, (first, end): (u64, u64)| {
        let begin = cpu_us();
        let mut totals = Totals::default();
        (first..end).try_for_each(|position| work(arena, position, &mut totals))?;
        Ok(Done { first, end, totals, cpu_us: cpu_us() - begin })
    };
    scope(|scope| {
        let (sender, receiver) = channel();
        for number in 0..jobs {
            let (sender, take, piece, failed) = (sender.clone(), &take, &piece, &failed);
            let thread = move || {
                let mut arena = Arena::new();
                while let Some(range) = take() {
                    let done: Result<Done, String> = piece(&mut arena, range);
                    failed.fetch_or(done.is_err(), Ordering::Relaxed);
                    if sender.send(done).is_err() {
                        break;
                    }
                }
            };
            let builder = Builder::new().name(format!("simulator {number}")).stack_size(STACK);
            builder
                .spawn_scoped(scope, thread)
                .map_err(|e| format!("cannot start a thread: {e}"))?;
        }
        drop(sender);
        let mut refused = Ok(());
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                Ok(Ok(done)) => hear(Some(done)),
                Ok(Err(why)) => refused = Err(why),
                Err(RecvTimeoutError::Timeout) => hear(None),
                Err(RecvTimeoutError::Disconnected) => return refused,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_do_each_position_once_whatever_their_number() {
        for jobs in [1, 2, 3] {
            let mut seen = Vec::new();
            let work = |_: &mut Arena, position, totals: &mut Totals| {
                totals.seeds += position;
                Ok(())
            };
            share_out(vec![(0, 5), (7, 30)], jobs, &Signals::default(), work, |done| {
                let Some(Done { first, end, totals, .. }) = done else { return };
                assert_eq!(totals.seeds, (first..end).sum::<u64>());
                seen.extend(first..end);
            })
            .unwrap();
            seen.sort_unstable();
            assert_eq!(seen, (0..5).chain(7..30).collect::<Vec<_>>(), "{jobs} jobs");
        }
    }

    #[test]
    fn jobs_end_with_what_was_refused() {
        let work = |_: &mut Arena, position, _: &mut Totals| match position {
            9 => Err("nine".into()),
            _ => Ok(()),
        };
        let ended = share_out(vec![(0, 1 << 40)], 2, &Signals::default(), work, |_| {});
        assert_eq!(ended, Err("nine".into()));
    }
}
