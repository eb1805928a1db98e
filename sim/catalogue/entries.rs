//! The entries.

use super::{Entry, Mistake};
use crate::profile::ProfileName;
use crate::world::Slip;
use midflight::bugs::Bug;

/// What seeds are drawn into, and settings that are given.
type Runs = (ProfileName, &'static [(&'static str, &'static str)]);

const MIXED: Runs = (ProfileName::Mixed, &[]);
const MIGRATES: Runs = (ProfileName::Migration, &[]);
const SUSPENDS: Runs = (ProfileName::Migration, &[("migration.policy", "suspend")]);
/// Every head of the ring is in use.
const SMALL_RINGS: Runs = (
    ProfileName::Mixed,
    &[("ring", "split"), ("ring_size", "8"), ("depth", "8"), ("indirect", "on")],
);
const PACKED: Runs = (ProfileName::Mixed, &[("ring", "packed")]);
const PACKED_MIGRATES: Runs = (ProfileName::Migration, &[("ring", "packed")]);
/// Both sides ask by descriptor to be woken.
const PACKED_EVENTS: Runs = (ProfileName::Mixed, &[("ring", "packed"), ("event_idx", "on")]);
/// Back-ends die inside their steps, time and again, on small rings.
const PACKED_DIES: Runs = (
    ProfileName::Mixed,
    &[
        ("ring", "packed"),
        ("ring_size", "12"),
        ("gather", "50"),
        ("kills", "12"),
        ("kill_stores", "40"),
        ("kill_idle", "never"),
        ("gentle", "never"),
    ],
);
/// The same, and what is used is used in batches.
const PACKED_BATCHES: Runs = (
    ProfileName::Mixed,
    &[
        ("ring", "packed"),
        ("ring_size", "16"),
        ("indirect", "on"),
        ("depth", "12"),
        ("batch", "4"),
        ("gather", "400"),
        ("kills", "12"),
        ("kill_stores", "40"),
        ("kill_idle", "never"),
        ("gentle", "never"),
        ("requests", "140"),
    ],
);
/// A front-end that changes what it can, and nothing else goes wrong.
const CONTROL: Runs = (
    ProfileName::Control,
    &[("kills", "0"), ("breaks", "0"), ("pauses", "0"), ("migrations", "0")],
);
/// Requests are used in order, whatever the disk does.
const IN_ORDER: Runs = (ProfileName::Mixed, &[("in_order", "on")]);
/// A disk that may complete twice.
const STORM: Runs = (ProfileName::Storm, &[]);
/// Vrings stop often, while requests keep coming.
const STOPS: Runs = (ProfileName::Mixed, &[("pauses", "12"), ("kills", "0")]);
/// The source of a migration dies inside its steps, time and again, and what is
/// in flight is left to the destination.
const DIES_LOGGING: Runs = (
    ProfileName::Migration,
    &[
        ("migration.policy", "suspend"),
        ("migration.grace", "0"),
        ("migration.rounds", "1"),
        ("migration.page_ns", "3300"),
        ("event_idx", "on"),
        ("kills", "12"),
        ("kill_stores", "40"),
        ("kill_idle", "never"),
        ("gentle", "never"),
        ("breaks", "0"),
        ("migrations", "8"),
        ("pace", "slow"),
    ],
);

const fn core(bug: Bug, runs: Runs, oracles: &'static [&'static str]) -> Entry {
    entry(Mistake::Core(bug), runs, oracles)
}

const fn entry(mistake: Mistake, runs: Runs, oracles: &'static [&'static str]) -> Entry {
    Entry { mistake, profile: runs.0, given: runs.1, oracles }
}

/// Every entry, by family; the canary last.
pub static ENTRIES: &[Entry] = &[
    // Messages.
    core(Bug::PartialMessage, MIXED, &["session", "contract"]),
    core(Bug::HandlesToFirstMessage, MIXED, &["contract", "session"]),
    core(Bug::AckForgotten, MIXED, &["liveness"]),
    core(Bug::LogBaseUnanswered, MIGRATES, &["liveness", "notification"]),
    core(Bug::InflightForOneVring, MIXED, &["contract", "session"]),
    core(
        Bug::SubRegionNotAdvanced,
        MIXED,
        &["session", "region", "ledger", "contract", "notification", "onlooker"],
    ),
    core(Bug::RegionByStartOnly, MIXED, &["session", "contract"]),
    core(Bug::StaleMemoryTable, MIXED, &["session", "contract", "rings", "ledger"]),
    core(Bug::StaleVringAddr, MIGRATES, &["dirty"]),
    core(Bug::FeaturesDisableVrings, MIGRATES, &["notification", "liveness"]),
    core(Bug::DisableResets, MIXED, &["base", "late-write", "quiet", "ownership", "vows"]),
    // Rings.
    core(Bug::UsedIdxSaturates, MIXED, &["region", "notification", "liveness", "rings"]),
    core(Bug::SlotBeyondRing, MIXED, &["memory"]),
    core(Bug::UsedIdIsSlot, MIXED, &["ledger"]),
    core(Bug::IndirectOfRingSize, MIXED, &["rings"]),
    core(Bug::BaseZero, MIXED, &["base"]),
    core(Bug::BaseWithoutInflight, MIGRATES, &["base"]),
    core(
        Bug::UsedIdxNotReread,
        MIXED,
        &["region", "rings", "session", "contract", "ledger", "vows"],
    ),
    core(Bug::KickRequired, MIXED, &["notification", "liveness"]),
    core(Bug::DisabledFetches, STOPS, &["session"]),
    core(Bug::UnfinishedSkipped, MIXED, &["notification", "liveness", "region", "vows"]),
    core(Bug::BaseTrusted, MIXED, &["rings", "ledger", "memory", "region", "vows"]),
    core(Bug::BasePlusInflight, MIGRATES, &["rings", "ledger", "memory", "region", "vows"]),
    // The inflight region.
    core(Bug::ClearBeforePublish, MIXED, &["region"]),
    core(Bug::OneOfBatchCleared, MIXED, &["region"]),
    core(Bug::LinkAfterPublish, MIXED, &["region"]),
    core(Bug::NextNotStored, MIXED, &["region", "session", "contract"]),
    core(Bug::CloseBeforeRetire, MIXED, &["region"]),
    core(Bug::UsedIdxNotCopied, MIXED, &["region"]),
    core(Bug::CounterAfterFlag, MIXED, &["region"]),
    core(Bug::CounterRestarts, MIXED, &["region"]),
    core(Bug::FlagAfterIssue, MIXED, &["region"]),
    core(Bug::ResubmitInRingOrder, MIXED, &["order", "onlooker"]),
    core(Bug::ResubmitAfterFetch, MIXED, &["order"]),
    core(Bug::FreshRegionAtFaceValue, MIXED, &["region"]),
    core(Bug::VersionFirst, MIXED, &["region", "session", "contract", "onlooker"]),
    core(Bug::DescNumOfRing, MIXED, &["contract", "session"]),
    core(Bug::RecoveryLeavesOpen, MIXED, &["region"]),
    core(
        Bug::RecoveryMissesLastEntry,
        SMALL_RINGS,
        &["rings", "ledger", "memory", "region", "onlooker"],
    ),
    // Packed rings.
    core(
        Bug::PackedFirstNotLast,
        PACKED_BATCHES,
        &["region", "rings", "ledger", "contract", "session", "base"],
    ),
    core(Bug::PackedIdOfFirst, PACKED, &["ledger"]),
    core(
        Bug::PackedUsedByOne,
        PACKED,
        &["region", "ledger", "memory", "rings", "base", "notification"],
    ),
    core(
        Bug::PackedUsedWrapKept,
        PACKED,
        &["region", "rings", "ledger", "memory", "notification", "liveness", "base"],
    ),
    core(
        Bug::PackedUsedBitIgnored,
        PACKED,
        &["rings", "ledger", "region", "memory", "session", "contract"],
    ),
    core(Bug::PackedNothingWritten, PACKED, &["rings"]),
    core(Bug::PackedEventWrapIgnored, PACKED_EVENTS, &["notification", "liveness"]),
    core(Bug::PackedKickWrapMissing, PACKED_EVENTS, &["notification", "liveness"]),
    core(Bug::PackedRingLoggedAsEvent, PACKED_MIGRATES, &["dirty"]),
    core(Bug::PackedBaseUsedMissing, PACKED, &["base"]),
    core(Bug::PackedBaseWrapMissing, PACKED, &["base"]),
    core(Bug::PackedBaseHalved, PACKED, &["base"]),
    core(Bug::PackedCopyAfterHead, PACKED, &["region"]),
    core(Bug::PackedFirstCopied, PACKED, &["region", "ledger"]),
    core(Bug::PackedLinkByOne, PACKED, &["region"]),
    core(Bug::PackedFreeListCut, PACKED, &["region", "notification", "ledger", "liveness"]),
    core(Bug::PackedOldFreeHeadKept, PACKED, &["region"]),
    core(Bug::PackedBatchLeftOpen, PACKED, &["region"]),
    core(Bug::PackedWrapBeforeIndex, PACKED_DIES, &["onlooker", "region", "contract", "session"]),
    core(Bug::PackedFlagKept, PACKED, &["region", "onlooker", "vows", "base"]),
    core(
        Bug::PackedNoRollBack,
        PACKED_DIES,
        &["region", "onlooker", "liveness", "notification", "contract", "session", "ledger"],
    ),
    core(
        Bug::PackedNoCommit,
        PACKED_DIES,
        &["region", "onlooker", "ledger", "contract", "session"],
    ),
    core(
        Bug::PackedCommitByEntry,
        PACKED_DIES,
        &["region", "onlooker", "ledger", "contract", "session", "liveness"],
    ),
    core(Bug::PackedMarksLeft, PACKED_BATCHES, &["ledger", "region"]),
    core(
        Bug::PackedResubmitsFromRing,
        PACKED_DIES,
        &["ledger", "memory", "rings", "order", "region", "contract"],
    ),
    // Drain and suspend.
    core(Bug::ReplyBeforeDrained, MIXED, &["late-write", "quiet", "ownership", "dirty", "vows"]),
    core(
        Bug::ReplyBeforeCancelled,
        SUSPENDS,
        &["late-write", "quiet", "ownership", "dirty", "vows"],
    ),
    core(Bug::WaitsForFirstVring, MIXED, &["late-write", "quiet", "ownership", "dirty", "vows"]),
    core(Bug::CancelledIsReported, SUSPENDS, &["ledger"]),
    core(Bug::RegionAfterReply, MIGRATES, &["region", "quiet", "vows"]),
    core(Bug::RunsAfterReply, MIGRATES, &["contract", "session", "liveness"]),
    core(Bug::CancelledLoseEntry, SUSPENDS, &["base", "region"]),
    core(Bug::SecondCompletionTaken, STORM, &["ledger", "dirty", "sectors"]),
    core(Bug::StoreKept, MIGRATES, &["liveness"]),
    // The dirty log.
    core(Bug::DataNotLogged, MIGRATES, &["dirty"]),
    core(Bug::FirstPageLogged, MIGRATES, &["dirty"]),
    core(Bug::LastPageNotLogged, MIGRATES, &["dirty"]),
    core(Bug::LogBitOffByOne, MIGRATES, &["dirty"]),
    core(Bug::StatusNotLogged, MIGRATES, &["dirty"]),
    core(Bug::UsedRingNotLogged, MIGRATES, &["dirty"]),
    core(Bug::WishNotLogged, MIGRATES, &["dirty"]),
    core(Bug::LogAfterPublish, MIGRATES, &["dirty"]),
    core(Bug::FailedReadNotLogged, SUSPENDS, &["dirty"]),
    core(Bug::LogOffAtStop, MIGRATES, &["dirty"]),
    core(Bug::LogNotMended, DIES_LOGGING, &["dirty"]),
    // Requests.
    core(Bug::FlushAtOnce, MIXED, &["ledger", "durability"]),
    core(Bug::WriteThroughIgnored, MIXED, &["durability"]),
    core(Bug::WriteZeroesDiscards, MIXED, &["ledger"]),
    core(Bug::DiscardFlagAccepted, MIXED, &["ledger"]),
    core(Bug::UnknownTypeSucceeds, MIXED, &["ledger"]),
    core(Bug::CapacityOffByOne, MIXED, &["ledger"]),
    core(Bug::SectorOverflow, MIXED, &["ledger"]),
    core(Bug::PartialSectorAccepted, MIXED, &["ledger"]),
    core(Bug::ErrorSucceeds, MIXED, &["ledger"]),
    core(Bug::StatusAtDescriptorStart, MIXED, &["memory", "ledger"]),
    core(Bug::HeaderFillsDescriptor, MIXED, &["ledger"]),
    core(Bug::SerialTerminated, MIXED, &["memory"]),
    core(Bug::UsedLenWithoutStatus, MIXED, &["ledger"]),
    core(Bug::BorderRefused, MIXED, &["ledger"]),
    // Calls and kicks.
    core(Bug::EventWithoutWrap, MIXED, &["notification", "liveness"]),
    core(Bug::EventOfLastOnly, MIXED, &["notification", "liveness"]),
    core(Bug::WishReadEarly, MIXED, &["notification", "liveness"]),
    core(Bug::EventIdxPresumed, MIXED, &["notification", "liveness"]),
    core(Bug::AvailEventNotMoved, MIXED, &["notification", "liveness"]),
    core(Bug::KicksStayOff, MIXED, &["notification", "liveness"]),
    core(Bug::NoLookAfterWish, MIXED, &["notification", "liveness"]),
    core(Bug::NoCallAfterRecovery, MIXED, &["notification", "liveness"]),
    core(Bug::OrderIgnored, IN_ORDER, &["in-order"]),
    core(Bug::NoCallForAnswers, MIXED, &["notification", "liveness"]),
    core(Bug::NoCallAfterSwap, CONTROL, &["notification", "liveness"]),
    core(Bug::OldKickWatched, CONTROL, &["notification", "liveness"]),
    core(Bug::NoLookAfterSwap, CONTROL, &["notification", "liveness"]),
    core(Bug::NoLookAfterEnable, CONTROL, &["notification", "liveness"]),
    // The front-end.
    core(
        Bug::RegionKeptAtReset,
        CONTROL,
        &["contract", "session", "region", "onlooker", "ledger", "rings"],
    ),
    core(Bug::MemoryTwice, CONTROL, &["contract", "session"]),
    core(Bug::RegionNotKept, MIXED, &["base", "region", "ledger", "memory", "order", "rings"]),
    core(Bug::LogFlagForgotten, MIGRATES, &["dirty"]),
    core(Bug::BaseNotKept, MIXED, &["base", "region"]),
    core(
        Bug::AdoptedRegionDropped,
        MIGRATES,
        &["base", "region", "ledger", "memory", "rings", "notification", "liveness"],
    ),
    // Beside the core.
    entry(Mistake::World(Slip::EarlyImage), MIGRATES, &["region"]),
    entry(Mistake::World(Slip::Canary), MIXED, &["canary"]),
];
