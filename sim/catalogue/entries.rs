//! The entries.

use super::{Entry, Mistake};
use crate::profile::ProfileName;
use crate::topology::Policy;
use crate::world::Slip;
use midflight::bugs::Bug;

/// What seeds are drawn into, and what a stop does instead of what is drawn.
type Runs = (ProfileName, Option<Policy>);

const MIXED: Runs = (ProfileName::Mixed, None);
const MIGRATES: Runs = (ProfileName::Migration, None);
const SUSPENDS: Runs = (ProfileName::Migration, Some(Policy::Suspend));

const fn core(bug: Bug, runs: Runs, oracles: &'static [&'static str]) -> Entry {
    entry(Mistake::Core(bug), runs, oracles)
}

const fn entry(mistake: Mistake, runs: Runs, oracles: &'static [&'static str]) -> Entry {
    Entry { mistake, profile: runs.0, policy: runs.1, oracles }
}

/// Every entry, by family; the canary last.
pub static ENTRIES: &[Entry] = &[
    core(Bug::PartialMessage, MIXED, &[]),
    core(Bug::HandlesToFirstMessage, MIXED, &[]),
    core(Bug::AckForgotten, MIXED, &[]),
    core(Bug::LogBaseUnanswered, MIGRATES, &[]),
    core(Bug::InflightForOneVring, MIXED, &[]),
    core(Bug::SubRegionNotAdvanced, MIXED, &[]),
    core(Bug::RegionByStartOnly, MIXED, &[]),
    core(Bug::StaleMemoryTable, MIXED, &[]),
    core(Bug::StaleVringAddr, MIGRATES, &[]),
    core(Bug::FeaturesDisableVrings, MIGRATES, &[]),
    core(Bug::DisableResets, MIXED, &[]),
    core(Bug::UsedIdxSaturates, MIXED, &[]),
    core(Bug::SlotBeyondRing, MIXED, &[]),
    core(Bug::UsedIdIsSlot, MIXED, &[]),
    core(Bug::IndirectOfRingSize, MIXED, &[]),
    core(Bug::BaseZero, MIXED, &[]),
    core(Bug::BaseWithoutInflight, MIGRATES, &[]),
    core(Bug::UsedIdxNotReread, MIXED, &[]),
    core(Bug::KickRequired, MIXED, &[]),
    core(Bug::MoreForgotten, MIXED, &[]),
    core(Bug::DisabledFetches, MIXED, &[]),
    core(Bug::UnfinishedSkipped, MIXED, &[]),
    core(Bug::BaseTrusted, MIXED, &[]),
    core(Bug::BasePlusInflight, MIGRATES, &[]),
    core(Bug::ClearBeforePublish, MIXED, &[]),
    core(Bug::OneOfBatchCleared, MIXED, &[]),
    core(Bug::LinkAfterPublish, MIXED, &[]),
    core(Bug::NextNotStored, MIXED, &[]),
    core(Bug::CloseBeforeRetire, MIXED, &[]),
    core(Bug::UsedIdxNotCopied, MIXED, &[]),
    core(Bug::CounterAfterFlag, MIXED, &[]),
    core(Bug::CounterRestarts, MIXED, &[]),
    core(Bug::FlagAfterIssue, MIXED, &[]),
    core(Bug::ResubmitInRingOrder, MIXED, &[]),
    core(Bug::ResubmitAfterFetch, MIXED, &[]),
    core(Bug::FreshRegionAtFaceValue, MIXED, &[]),
    core(Bug::VersionFirst, MIXED, &[]),
    core(Bug::DescNumOfRing, MIXED, &[]),
    core(Bug::RecoveryLeavesOpen, MIXED, &[]),
    core(Bug::RecoveryMissesLastEntry, MIXED, &[]),
    core(Bug::ReplyBeforeDrained, MIXED, &[]),
    core(Bug::ReplyBeforeCancelled, SUSPENDS, &[]),
    core(Bug::WaitsForFirstVring, MIXED, &[]),
    core(Bug::CancelledIsReported, SUSPENDS, &[]),
    core(Bug::RegionAfterReply, MIGRATES, &[]),
    core(Bug::RunsAfterReply, MIGRATES, &[]),
    core(Bug::CancelledLoseEntry, SUSPENDS, &[]),
    core(Bug::StoreKept, MIGRATES, &[]),
    core(Bug::DataNotLogged, MIGRATES, &[]),
    core(Bug::FirstPageLogged, MIGRATES, &[]),
    core(Bug::LastPageNotLogged, MIGRATES, &[]),
    core(Bug::LogBitOffByOne, MIGRATES, &[]),
    core(Bug::StatusNotLogged, MIGRATES, &[]),
    core(Bug::UsedRingNotLogged, MIGRATES, &[]),
    core(Bug::WishNotLogged, MIGRATES, &[]),
    core(Bug::LogAfterPublish, MIGRATES, &[]),
    core(Bug::FailedReadNotLogged, SUSPENDS, &[]),
    core(Bug::LogOffAtStop, MIGRATES, &[]),
    core(Bug::LogNotMended, MIGRATES, &[]),
    core(Bug::FlushAtOnce, MIXED, &[]),
    core(Bug::WriteThroughIgnored, MIXED, &[]),
    core(Bug::WriteZeroesDiscards, MIXED, &[]),
    core(Bug::DiscardFlagAccepted, MIXED, &[]),
    core(Bug::UnknownTypeSucceeds, MIXED, &[]),
    core(Bug::CapacityOffByOne, MIXED, &[]),
    core(Bug::SectorOverflow, MIXED, &[]),
    core(Bug::PartialSectorAccepted, MIXED, &[]),
    core(Bug::ErrorSucceeds, MIXED, &[]),
    core(Bug::StatusAtDescriptorStart, MIXED, &[]),
    core(Bug::HeaderFillsDescriptor, MIXED, &[]),
    core(Bug::SerialTerminated, MIXED, &[]),
    core(Bug::UsedLenWithoutStatus, MIXED, &[]),
    core(Bug::BorderRefused, MIXED, &[]),
    core(Bug::EventWithoutWrap, MIXED, &[]),
    core(Bug::EventOfLastOnly, MIXED, &[]),
    core(Bug::WishReadEarly, MIXED, &[]),
    core(Bug::EventIdxPresumed, MIXED, &[]),
    core(Bug::AvailEventNotMoved, MIXED, &[]),
    core(Bug::KicksStayOff, MIXED, &[]),
    core(Bug::NoLookAfterWish, MIXED, &[]),
    core(Bug::NoCallAfterRecovery, MIXED, &[]),
    core(Bug::NoCallForAnswers, MIXED, &[]),
    core(Bug::RegionNotKept, MIXED, &[]),
    core(Bug::LogFlagForgotten, MIGRATES, &[]),
    core(Bug::BaseNotKept, MIXED, &[]),
    core(Bug::AdoptedRegionDropped, MIGRATES, &[]),
    entry(Mistake::World(Slip::EarlyImage), MIGRATES, &["region"]),
    entry(Mistake::World(Slip::Canary), MIXED, &["canary"]),
];
