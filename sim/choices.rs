//! Named, bounded decisions.
//!
//! Every component of the simulated world owns one [`Stream`]: ChaCha8 with a
//! stream number of its own, so that a guest that asks for one request less
//! does not reshuffle the latencies of the disk. The sampling code is ours and
//! pinned by a test: a seed must mean the same run whatever version of a
//! generator library is linked. Only integers are drawn.
//!
//! 0 is always the calm choice: nothing goes wrong, the shortest time, the
//! plainest shape. So a world without a generator ([`Source::Calm`]) is one in
//! which only what is written down happens, and a decision can be made less
//! remarkable by making it smaller.

mod tape;

use crate::hash::Rolling;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
pub use tape::{Choices, Clock, Key, Made, Source};

/// Changing what a seed means bumps this number on purpose.
pub const SCHEMA: u64 = 3;

/// Part of the key of every stream. A document that has choices drawn means the
/// same run for as long as this stays, whatever is drawn into documents.
const STREAMS: u64 = 2;

/// Who decides. The number is the ChaCha stream, so it never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u64)]
pub enum Component {
    /// Shape of the world: sizes, features, fault families.
    Profile = 1,
    /// How the guest frames what it asks for, and when it looks.
    Guest = 2,
    /// Latency of the front-end, pauses.
    Front = 3,
    /// Bytes in flight on the socket.
    Link = 4,
    /// Latency and apply points of the disk.
    Disk = 5,
    /// How much of a back-end's last step happened.
    Kill = 6,
    /// Latency of kicks, calls and wake-ups.
    Host = 7,
    /// When the guest acts in the middle of a step of the back-end.
    Race = 8,
    /// Choices of whoever migrates.
    Migration = 9,
    /// What happens, before it does: requests, kills, faults.
    Action = 10,
    /// What a loss of power leaves of the disk's cache.
    Power = 11,
}

impl Component {
    /// Those that decide while a world runs, in their order.
    pub const LIVE: [Self; 9] = [
        Self::Guest,
        Self::Front,
        Self::Link,
        Self::Disk,
        Self::Kill,
        Self::Host,
        Self::Race,
        Self::Migration,
        Self::Power,
    ];

    /// Its name in documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Profile => "profile",
            Self::Guest => "guest",
            Self::Front => "front",
            Self::Link => "link",
            Self::Disk => "disk",
            Self::Kill => "kill",
            Self::Host => "host",
            Self::Race => "race",
            Self::Migration => "migration",
            Self::Action => "action",
            Self::Power => "power",
        }
    }
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

/// The decisions of one component.
#[derive(Debug)]
pub struct Stream {
    component: Component,
    /// `None`: every decision is 0.
    rng: Option<ChaCha8Rng>,
    hash: Rolling,
    count: u64,
    /// Decisions that are written down, and those to keep.
    tape: Option<Box<tape::Tape>>,
}

impl Stream {
    /// The stream of `component` under a number, with nothing written down.
    pub fn new(number: u64, component: Component) -> Self {
        let mut key = [0u8; 32];
        key[..8].copy_from_slice(&number.to_le_bytes());
        key[8..16].copy_from_slice(&STREAMS.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(component as u64);
        Self { rng: Some(rng), ..Self::calm(component) }
    }

    /// Every decision is 0.
    pub fn calm(component: Component) -> Self {
        Self { component, rng: None, hash: Rolling::new(), count: 0, tape: None }
    }

    /// The stream of `component` as `choices` have it. `keep`: remember what was
    /// decided, and when by this clock.
    pub fn of(choices: &Choices, component: Component, keep: Option<&Clock>) -> Self {
        let mut stream = match choices.source {
            Source::Drawn(number) => Self::new(number, component),
            Source::Calm => Self::calm(component),
        };
        stream.tape = tape::Tape::of(choices, component, keep).map(Box::new);
        stream
    }

    /// Who decides.
    pub fn component(&self) -> Component {
        self.component
    }

    /// The decisions kept so far, oldest first.
    pub fn made(&self) -> &[Made] {
        self.tape.as_ref().map_or(&[], |tape| tape.made())
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
        let mut value = match &mut self.rng {
            Some(rng) if n > 1 => sample(rng, n),
            _ => 0,
        };
        if let Some(tape) = &mut self.tape {
            value = tape.decide(name, n, value);
        }
        self.hash.u64(n);
        self.hash.u64(value);
        self.count += 1;
        value
    }

    /// One of `lo..=hi`; `lo` if the range is empty.
    pub fn range(&mut self, name: &'static str, lo: u64, hi: u64) -> u64 {
        let span = hi.saturating_sub(lo).saturating_add(1);
        lo + self.below(name, span)
    }

    /// Whether something with this chance happens: the highest values say yes.
    pub fn chance(&mut self, name: &'static str, ratio: Ratio) -> bool {
        ratio.num > 0 && self.below(name, ratio.den) + ratio.num >= ratio.den
    }

    /// One of the items, the first being the calm one.
    ///
    /// # Panics
    /// If there are none.
    pub fn pick<'a, T>(&mut self, name: &'static str, items: &'a [T]) -> &'a T {
        let index = self.below(name, items.len() as u64);
        &items[usize::try_from(index).expect("index below a slice's length")]
    }
}

/// Multiply and keep the high half; the low half tells the few draws that
/// would make small values more likely, and those are drawn again.
fn sample(rng: &mut ChaCha8Rng, n: u64) -> u64 {
    loop {
        let wide = u128::from(rng.next_u64()) * u128::from(n);
        let low = wide as u64;
        // The threshold is below n, so most draws need no division.
        if low >= n || low >= n.wrapping_neg() % n {
            return (wide >> 64) as u64;
        }
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
    const PIN_DISK: [u64; 8] = [633, 309, 321, 921, 141, 596, 79, 549];
    const PIN_GUEST: [u64; 6] = [1, 1, 1, 33_557_570_258, 18_291_662_670_040_417_267, 6];
    const PIN_HASH: u64 = 0x53a1_727a_3a63_88d9;

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
    fn choices_that_are_calm_are_the_smallest_and_nothing_happens() {
        let mut s = Stream::calm(Component::Disk);
        assert_eq!((s.below("t", 9), s.range("t", 4, 9), *s.pick("t", &[3, 1])), (0, 4, 3));
        assert!(!s.chance("t", Ratio::new(1, 2)) && s.chance("t", Ratio::new(1, 1)));
    }
}
