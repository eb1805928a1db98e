//! Named, bounded decisions from a seed.
//!
//! Every component of the simulated world owns one [`Stream`]: ChaCha8 with a
//! stream number of its own, so that a guest that asks for one request less
//! does not reshuffle the latencies of the disk. The sampling code is ours and
//! pinned by a test: a seed must mean the same run whatever version of a
//! generator library is linked. Only integers are drawn.

use crate::hash::Rolling;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// Changing what a seed means bumps this number on purpose.
pub const SCHEMA: u64 = 1;

/// Who decides. The number is the ChaCha stream, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Component {
    /// Shape of the world: sizes, features, fault families.
    Profile = 1,
    /// What the guest asks for and how it frames it.
    Guest = 2,
    /// Latency of the front-end, pauses.
    Front = 3,
    /// Bytes in flight on the socket.
    Link = 4,
    /// Latency and apply points of the disk.
    Disk = 5,
    /// When the back-end dies, and how much of its last step happened.
    Kill = 6,
    /// Latency of kicks, calls and wake-ups.
    Host = 7,
    /// When the guest acts in the middle of a step of the back-end.
    Race = 8,
    /// How and when the guest moves to another host, and what goes wrong.
    Migration = 9,
    /// Which faults a disk has, and what a loss of power leaves of its cache.
    DiskFaults = 10,
}

/// A chance as a fraction of whole numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ratio {
    /// How many of ...
    pub num: u64,
    /// ... this many; 0 means never.
    pub den: u64,
}

impl Ratio {
    /// It never happens.
    pub const NEVER: Self = Self { num: 0, den: 1 };

    /// `num` in `den`.
    pub const fn new(num: u64, den: u64) -> Self {
        Self { num, den }
    }
}

impl core::fmt::Display for Ratio {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.num == 0 { f.write_str("never") } else { write!(f, "{}/{}", self.num, self.den) }
    }
}

/// One decision, as recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// What was decided.
    pub name: &'static str,
    /// It was one of `0..bound`.
    pub bound: u64,
    /// What came out.
    pub value: u64,
}

/// The decisions of one component.
#[derive(Debug)]
pub struct Stream {
    rng: ChaCha8Rng,
    hash: Rolling,
    count: u64,
    record: Option<Vec<Choice>>,
}

impl Stream {
    /// The stream of `component` under `seed`.
    pub fn new(seed: u64, component: Component) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key[8..16].copy_from_slice(&SCHEMA.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(component as u64);
        Self { rng, hash: Rolling::new(), count: 0, record: None }
    }

    /// Keep every decision from now on.
    pub fn start_recording(&mut self) {
        self.record.get_or_insert_with(Vec::new);
    }

    /// The decisions kept so far.
    pub fn recorded(&self) -> &[Choice] {
        self.record.as_deref().unwrap_or(&[])
    }

    /// Number of decisions so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Hash over every bound and value so far.
    pub fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// One of `0..n`, each equally likely; `n` of 0 counts as 1.
    pub fn below(&mut self, name: &'static str, n: u64) -> u64 {
        let n = n.max(1);
        let value = if n == 1 { 0 } else { self.sample(n) };
        self.hash.u64(n);
        self.hash.u64(value);
        self.count += 1;
        if let Some(record) = &mut self.record {
            record.push(Choice { name, bound: n, value });
        }
        value
    }

    /// Multiply and keep the high half; the low half tells the few draws that
    /// would make small values more likely, and those are drawn again.
    fn sample(&mut self, n: u64) -> u64 {
        let threshold = n.wrapping_neg() % n;
        loop {
            let wide = u128::from(self.rng.next_u64()) * u128::from(n);
            if (wide as u64) >= threshold {
                return (wide >> 64) as u64;
            }
        }
    }

    /// One of `lo..=hi`; `lo` if the range is empty.
    pub fn range(&mut self, name: &'static str, lo: u64, hi: u64) -> u64 {
        let span = hi.saturating_sub(lo).saturating_add(1);
        lo + self.below(name, span)
    }

    /// Whether something with this chance happens.
    pub fn chance(&mut self, name: &'static str, ratio: Ratio) -> bool {
        ratio.num > 0 && self.below(name, ratio.den) < ratio.num
    }

    /// One of the items.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, name: &'static str, items: &'a [T]) -> &'a T {
        let index = self.below(name, items.len() as u64);
        &items[usize::try_from(index).expect("index below a slice's length")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_pinned_for_every_component() {
        let mut s = Stream::new(0, Component::Disk);
        let got: Vec<u64> = (0..8).map(|_| s.below("t", 1_000)).collect();
        assert_eq!(got, PIN_DISK);
        let mut s = Stream::new(0x8f3a_21c0_4be7_d915, Component::Guest);
        let got: Vec<u64> =
            [2, 3, 10, 1 << 40, u64::MAX, 7].iter().map(|n| s.below("t", *n)).collect();
        assert_eq!(got, PIN_GUEST);
        assert_eq!(s.hash(), PIN_HASH);
    }

    // Computed a second time by a ChaCha8 written from RFC 8439 with four double
    // rounds, in another language.
    const PIN_DISK: [u64; 8] = [471, 361, 939, 969, 906, 230, 644, 300];
    const PIN_GUEST: [u64; 6] = [0, 1, 0, 183_998_459_356, 9_112_115_327_541_768_614, 0];
    const PIN_HASH: u64 = 0x1088_dc12_6398_c1bb;

    #[test]
    fn choices_stay_below_their_bound_and_reach_all_of_it() {
        let mut s = Stream::new(7, Component::Link);
        let mut seen = [0u32; 6];
        for _ in 0..6_000 {
            seen[usize::try_from(s.below("t", 6)).unwrap()] += 1;
        }
        assert!(seen.iter().all(|n| (800..1_200).contains(n)), "{seen:?}");
        assert_eq!(s.below("t", 0), 0);
        assert_eq!(s.range("t", 5, 5), 5);
        assert!(!s.chance("t", Ratio::NEVER));
        assert!(s.chance("t", Ratio::new(1, 1)));
    }

    #[test]
    fn choices_of_one_component_do_not_move_another() {
        let alone: Vec<u64> = {
            let mut disk = Stream::new(3, Component::Disk);
            (0..5).map(|_| disk.below("t", 99)).collect()
        };
        let mut guest = Stream::new(3, Component::Guest);
        let mut disk = Stream::new(3, Component::Disk);
        let beside: Vec<u64> = (0..5)
            .map(|_| {
                guest.below("t", 99);
                disk.below("t", 99)
            })
            .collect();
        assert_eq!(alone, beside);
    }

    #[test]
    fn choices_are_recorded_only_when_asked() {
        let mut s = Stream::new(1, Component::Kill);
        s.below("first", 4);
        s.start_recording();
        let value = s.below("second", 4);
        assert_eq!(s.recorded(), [Choice { name: "second", bound: 4, value }]);
        assert_eq!(s.count(), 2);
    }
}
