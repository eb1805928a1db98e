//! Deliberate mistakes, to prove that the simulator finds them.
//!
//! Without the feature `bugs`, [`on`] is the constant `false` and nothing of
//! this is in the program.

/// A rule of the spec that can be broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Bug {
    /// The inflight flag is cleared before the used index is published.
    ClearBeforePublish,
    /// Resubmission goes by descriptor index, not by counter.
    ResubmitInRingOrder,
    /// A fresh region keeps used index 0 on a ring that has been used.
    FreshRegionAtFaceValue,
    /// The used index is not copied into the region after a batch.
    UsedIdxNotCopied,
    /// Fetching goes on at the base, though after a crash it does not count
    /// what is in flight.
    BaseTrusted,
    /// Fetching goes on at base + in flight, though after a stop the base has
    /// counted that.
    BasePlusInflight,
    /// A suspend is answered before cancelled requests are known to be over.
    ReplyBeforeCancelled,
    /// Pages of the used ring are not logged.
    UsedRingNotLogged,
    /// The page of the status byte is not logged.
    StatusNotLogged,
    /// Pages are logged after the used index that publishes them.
    LogAfterPublish,
    /// New requests are fetched before old ones are resubmitted.
    ResubmitAfterFetch,
    /// The region learns of the last batch after the stop was answered.
    RegionAfterReply,
}

impl Bug {
    /// Every bug there is.
    pub const ALL: [Self; 12] = [
        Self::ClearBeforePublish,
        Self::ResubmitInRingOrder,
        Self::FreshRegionAtFaceValue,
        Self::UsedIdxNotCopied,
        Self::BaseTrusted,
        Self::BasePlusInflight,
        Self::ReplyBeforeCancelled,
        Self::UsedRingNotLogged,
        Self::StatusNotLogged,
        Self::LogAfterPublish,
        Self::ResubmitAfterFetch,
        Self::RegionAfterReply,
    ];
}

/// True if this bug was asked for.
#[cfg(not(feature = "bugs"))]
#[inline(always)]
pub const fn on(_bug: Bug) -> bool {
    false
}

#[cfg(feature = "bugs")]
pub use switch::{on, set};

#[cfg(feature = "bugs")]
mod switch {
    use super::Bug;
    use core::cell::Cell;

    std::thread_local! {
        // One simulator runs on one thread, so that is the scope of a bug.
        static ACTIVE: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// True if this bug was asked for on this thread.
    pub fn on(bug: Bug) -> bool {
        ACTIVE.get() == Some(bug)
    }

    /// Ask for a bug, or for none, on this thread.
    pub fn set(bug: Option<Bug>) {
        ACTIVE.set(bug);
    }
}
