//! Coverage marks: places that a generator of runs has to reach.
//!
//! A run that never recovers an open batch says nothing about open batches. The
//! simulator counts which of these places its runs have been at; one that none
//! reaches is a failure of the generator. Without the feature `marks`, [`hit`]
//! does nothing and is not in the program.

macro_rules! marks {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A place in the core.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        #[non_exhaustive]
        pub enum Mark {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Mark {
            /// Every mark there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// Its name, as in the source.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// What happens there.
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),+).trim_ascii_start(),)+ }
            }
        }
    };
}

marks! {
    /// A part of a region that nobody has used is initialised.
    RegionFresh,
    /// The same, on a ring that has been used.
    RegionFreshOnUsedRing,
    /// A region is taken over, and nothing is left to do.
    RecoveryIdle,
    /// Requests of a predecessor are resubmitted.
    RecoveryResubmits,
    /// Their order by counter is not that by head.
    RecoveryReorders,
    /// A batch of one was published and not closed.
    RecoveryOpenBatch,
    /// A batch of several was.
    RecoveryOpenBatchOfMany,
    /// Of such a batch some flags were cleared before the end.
    RecoveryPartlyRetired,
    /// The ring is smaller than its part of the region.
    RecoveryOfSmallerRing,
    /// Requests are in flight, and the base does not count them.
    BaseAfterCrash,
    /// Requests are in flight, and the base counts them.
    BaseAfterStop,
    /// Several requests are published at once.
    BatchOfMany,
    /// A batch goes over the end of the used ring.
    BatchWrapsRing,
    /// A batch takes the used index from 65535 to 0.
    BatchWrapsIndex,
    /// More chains are available than one call may fetch.
    FetchBounded,
    /// A chain came between the last look and the wish for a kick.
    FetchLooksAgain,
    /// A vring without a kick descriptor is looked at by the clock.
    FetchPolls,
    /// A kick comes for a vring that may not be fetched from.
    KickHeldBack,
    /// A chain is in an indirect table.
    ChainIndirect,
    /// An indirect table has more entries than the ring.
    ChainLongerThanRing,
    /// The header lies in more than one descriptor.
    HeaderInPieces,
    /// The header shares a descriptor with data.
    HeaderWithData,
    /// The status byte shares a descriptor with data.
    StatusWithData,
    /// A request is refused with IOERR.
    RefusedIoErr,
    /// A request is refused with UNSUPP.
    RefusedUnsupp,
    /// The disk fails a request.
    DiskFails,
    /// A write has to be durable before it completes.
    WriteThrough,
    /// A vring is stopped that has nothing in flight.
    StopIdle,
    /// A stop waits for the disk.
    StopDrains,
    /// A stop leaves time before it cancels.
    StopSuspends,
    /// A vring is stopped while another runs.
    StopOneOfMany,
    /// What is left after the grace is cancelled.
    SuspendCancels,
    /// Everything has finished within the grace.
    SuspendInGrace,
    /// A cancelled request stays in the region.
    CancelLeaves,
    /// A request has finished although it was to be cancelled.
    CancelTooLate,
    /// A connection ends with requests at the disk.
    LeftInFlight,
    /// A connection ends while a message waits for something.
    LeftWaiting,
    /// A request finishes that nobody waits for any more.
    OrphanDone,
    /// A completion comes for a request that is over.
    LateCompletion,
    /// The program is asked to end with requests at the disk.
    ShutdownWaits,
    /// A message comes in pieces.
    MessageInPieces,
    /// Memory is added to what there is.
    MemoryAdded,
    /// A log is mapped.
    LogMapped,
    /// A log takes the place of another.
    LogReplaced,
    /// Logging begins while vrings run.
    LogOnRunning,
    /// Logging ends while vrings run.
    LogOffRunning,
    /// All of a used ring is logged, for what a predecessor may have missed.
    LogMended,
    /// A write that is logged lies on more than one page.
    LogAcrossPages,
    /// The guest is called, by its event index.
    CallByEvent,
    /// It is not, by its event index.
    NoCallByEvent,
    /// It is called, by its flag.
    CallByFlag,
    /// It is not, by its flag.
    NoCallByFlag,
}

/// This place was reached.
#[cfg(not(feature = "marks"))]
#[inline(always)]
pub const fn hit(_mark: Mark) {}

/// This place was reached, if the condition holds, which is looked at only
/// where marks are kept.
#[inline(always)]
pub fn hit_when(mark: Mark, condition: impl FnOnce() -> bool) {
    if cfg!(feature = "marks") && condition() {
        hit(mark);
    }
}

#[cfg(feature = "marks")]
pub use kept::{Marks, hit, take};

#[cfg(feature = "marks")]
mod kept {
    use super::Mark;
    use core::cell::Cell;

    const _: () = assert!(Mark::ALL.len() <= 64);

    std::thread_local! {
        // One simulator runs on one thread.
        static REACHED: Cell<Marks> = const { Cell::new(Marks(0)) };
    }

    /// A set of marks.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Marks(u64);

    impl Marks {
        /// Whether this one is in it.
        pub fn has(self, mark: Mark) -> bool {
            self.0 & 1 << mark as u8 != 0
        }
    }

    /// This place was reached on this thread.
    #[inline]
    pub fn hit(mark: Mark) {
        REACHED.set(Marks(REACHED.get().0 | 1 << mark as u8));
    }

    /// The marks that were reached on this thread since this was asked last.
    pub fn take() -> Marks {
        REACHED.take()
    }
}
