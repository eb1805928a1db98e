//! The translations that the front-end has told us.

use super::Access;
use std::collections::BTreeMap;

/// I/O virtual addresses from `first` to `last`, both included, so that the
/// whole address space is a range like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub first: u64,
    /// Last address.
    pub last: u64,
}

impl Range {
    /// `size` bytes at `iova`; `None` if there are none, or some beyond 64 bits.
    pub fn new(iova: u64, size: u64) -> Option<Self> {
        let last = iova.checked_add(size.checked_sub(1)?)?;
        Some(Self { first: iova, last })
    }

    /// The same, cut off at the end of the address space.
    pub fn clamped(iova: u64, size: u64) -> Option<Self> {
        Some(Self { first: iova, last: iova.saturating_add(size.checked_sub(1)?) })
    }

    /// True if they have an address in common.
    pub fn overlaps(&self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// User address of the front-end.
    pub user: u64,
    /// Bytes from there on that follow each other, at least 1; `u64::MAX` may
    /// mean one more.
    pub len: u64,
    /// What is allowed there.
    pub access: Access,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    last: u64,
    /// User address of the first byte.
    user: u64,
    access: Access,
    /// When it came, in updates.
    stamp: u64,
}

/// Translations by I/O virtual address, none overlapping.
///
/// A front-end may send as many as it likes. No more than a fixed number is
/// kept; beyond that the oldest goes, and is asked for again if it is needed.
/// What is forgotten that way may still be in use: who uses a translation has
/// to remember that by itself.
#[derive(Debug)]
pub struct Iotlb {
    entries: BTreeMap<u64, Entry>,
    /// First address by stamp. A piece that was cut off an entry has a stamp of
    /// its own.
    by_age: BTreeMap<u64, u64>,
    next_stamp: u64,
    capacity: usize,
}

impl Iotlb {
    /// Nothing known, and at most `capacity` entries ever, at least one.
    pub fn new(capacity: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_age: BTreeMap::new(),
            next_stamp: 0,
            capacity: capacity.max(1),
        }
    }

    /// Entries kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if nothing is known.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// From now on these addresses lead to `user` and what follows it, whatever
    /// was known of them before.
    pub fn update(&mut self, range: Range, user: u64, access: Access) {
        self.cut(range);
        self.put(range, user, access);
        self.trim();
    }

    /// Nothing is known of these addresses any more.
    pub fn invalidate(&mut self, range: Range) {
        self.cut(range);
        // What is cut in two is one more.
        self.trim();
    }

    fn trim(&mut self) {
        while self.entries.len() > self.capacity {
            let Some((_, first)) = self.by_age.pop_first() else { return };
            self.entries.remove(&first);
        }
    }

    fn cut(&mut self, range: Range) {
        // The one that begins before may reach into the range, and beyond it.
        if let Some((&first, &entry)) = self.entries.range(..range.first).next_back()
            && entry.last >= range.first
        {
            self.take(first);
            let before = Range { first, last: range.first - 1 };
            self.put(before, entry.user, entry.access);
            self.put_rest(first, entry, range);
        }
        while let Some((&first, &entry)) = self.entries.range(range.first..=range.last).next() {
            self.take(first);
            self.put_rest(first, entry, range);
        }
    }

    /// Nothing is known.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.by_age.clear();
    }

    /// Where an address leads, if that is known.
    pub fn find(&self, iova: u64) -> Option<Found> {
        let (first, entry) = self.entries.range(..=iova).next_back()?;
        let left = entry.last.checked_sub(iova)?;
        let user = entry.user.wrapping_add(iova - first);
        Some(Found { user, len: left.saturating_add(1), access: entry.access })
    }

    /// What of an entry lies behind a range that is taken out of it.
    fn put_rest(&mut self, first: u64, entry: Entry, range: Range) {
        if entry.last > range.last {
            let rest = Range { first: range.last + 1, last: entry.last };
            self.put(rest, entry.user.wrapping_add(rest.first - first), entry.access);
        }
    }

    fn put(&mut self, range: Range, user: u64, access: Access) {
        let stamp = self.next_stamp;
        self.next_stamp += 1;
        self.entries.insert(range.first, Entry { last: range.last, user, access, stamp });
        self.by_age.insert(stamp, range.first);
    }

    fn take(&mut self, first: u64) {
        if let Some(entry) = self.entries.remove(&first) {
            self.by_age.remove(&entry.stamp);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(first: u64, last: u64) -> Range {
        Range { first, last }
    }

    #[test]
    fn iotlb_the_ends_of_the_address_space_are_addresses_like_others() {
        let mut tlb = Iotlb::new(8);
        tlb.update(range(0, u64::MAX), 0x1000, Access::BOTH);
        assert_eq!(tlb.find(0).unwrap().len, u64::MAX);
        assert_eq!(
            tlb.find(u64::MAX).unwrap(),
            Found { user: 0xfff, len: 1, access: Access::BOTH }
        );
        tlb.invalidate(range(u64::MAX, u64::MAX));
        tlb.invalidate(range(0, 0));
        assert_eq!((tlb.find(0), tlb.find(u64::MAX)), (None, None));
        assert_eq!(tlb.find(1).unwrap().user, 0x1001);
        assert_eq!(Range::new(u64::MAX, 1), Some(range(u64::MAX, u64::MAX)));
        assert_eq!((Range::new(u64::MAX, 2), Range::new(0, 0)), (None, None));
        assert_eq!(Range::clamped(1, u64::MAX), Some(range(1, u64::MAX)));
    }

    #[test]
    fn iotlb_keeps_the_newest_and_no_more_than_it_may() {
        let mut tlb = Iotlb::new(4);
        for i in 0..10_000u64 {
            tlb.update(range(i * 10, i * 10 + 4), i, Access::READ);
            assert!(tlb.len() <= 4);
        }
        assert_eq!(tlb.find(99_990).unwrap().user, 9999);
        assert_eq!(tlb.find(99_960).unwrap().user, 9996);
        assert_eq!(tlb.find(99_950), None);
        // Cutting one in two makes one too many: something has to go.
        tlb.update(range(99_991, 99_992), 7, Access::READ);
        assert_eq!((tlb.len(), tlb.find(99_991).unwrap().user), (4, 7));
    }

    #[derive(Clone, Debug)]
    enum Step {
        Update(u64, u64, u64, u8),
        Invalidate(u64, u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0u64..64, 1u64..20, 0u64..1000, 0u8..4)
                .prop_map(|(a, n, user, access)| Step::Update(a, n, user, access)),
            1 => (0u64..64, 1u64..40).prop_map(|(a, n)| Step::Invalidate(a, n)),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        /// One user address for each I/O virtual address is the model.
        #[test]
        fn iotlb_is_a_map_of_single_addresses(steps in steps()) {
            let mut tlb = Iotlb::new(1000);
            let mut model = vec![None; 128];
            for step in steps {
                match step {
                    Step::Update(a, n, user, access) => {
                        tlb.update(Range::new(a, n).unwrap(), user, Access::from_bits(access));
                        for i in 0..n {
                            model[(a + i) as usize] = Some((user + i, access));
                        }
                    }
                    Step::Invalidate(a, n) => {
                        tlb.invalidate(Range::new(a, n).unwrap());
                        model[a as usize..].iter_mut().take(n as usize).for_each(|m| *m = None);
                    }
                }
                for (iova, expected) in model.iter().enumerate() {
                    let found = tlb.find(iova as u64);
                    prop_assert_eq!(found.map(|f| (f.user, f.access.bits())), *expected);
                    // All that is said to follow does.
                    if let Some(found) = found {
                        for i in 0..found.len {
                            let (user, _) = model[iova + i as usize].unwrap();
                            prop_assert_eq!(user, found.user + i);
                        }
                    }
                }
                prop_assert_eq!(tlb.by_age.len(), tlb.entries.len());
            }
        }

        /// With too little room it forgets, but what it says is true.
        #[test]
        fn iotlb_that_is_too_small_says_nothing_wrong(steps in steps(), capacity in 1usize..6) {
            let (mut small, mut large) = (Iotlb::new(capacity), Iotlb::new(1000));
            for step in steps {
                match step {
                    Step::Update(a, n, user, access) => {
                        let range = Range::new(a, n).unwrap();
                        small.update(range, user, Access::from_bits(access));
                        large.update(range, user, Access::from_bits(access));
                        prop_assert_eq!(small.find(a), large.find(a));
                    }
                    Step::Invalidate(a, n) => {
                        small.invalidate(Range::new(a, n).unwrap());
                        large.invalidate(Range::new(a, n).unwrap());
                    }
                }
                for iova in 0..128 {
                    let found = small.find(iova);
                    prop_assert!(found.is_none() || found == large.find(iova));
                }
                prop_assert!(small.len() <= capacity);
            }
        }
    }
}
