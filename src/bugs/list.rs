//! The mistakes by name, each with the rule it breaks and who made it.
//!
//! "By reading" says that the project's source has it and no report does.
//! Where no project is named, none is known to have made it; then the rule is
//! one of those that recovery or migration rests on.

use super::Family;

macro_rules! bugs {
    ($($family:ident { $($(#[doc = $doc:literal])+ $name:ident: $rule:literal, $reference:literal;)+ })+) => {
        /// A rule of the documents that can be broken on purpose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Bug {
            $($($(#[doc = $doc])+ $name,)+)+
        }

        impl Bug {
            /// Every bug there is, by family.
            pub const ALL: &'static [Self] = &[$($(Self::$name,)+)+];

            /// Its name, as in the source.
            pub const fn name(self) -> &'static str {
                match self { $($(Self::$name => stringify!($name),)+)+ }
            }

            /// What it is about.
            pub const fn family(self) -> Family {
                match self { $($(Self::$name => Family::$family,)+)+ }
            }

            /// What is done wrong, in a sentence.
            pub const fn mistake(self) -> &'static str {
                match self { $($(Self::$name => concat!($($doc),+).trim_ascii_start(),)+)+ }
            }

            /// The rule, by section of its document.
            pub const fn rule(self) -> &'static str {
                match self { $($(Self::$name => $rule,)+)+ }
            }

            /// The project that had it; empty if none is known.
            pub const fn reference(self) -> &'static str {
                match self { $($(Self::$name => $reference,)+)+ }
            }
        }
    };
}

bugs! {
    Wire {
        /// A message is taken as whole though part of it has not come yet.
        PartialMessage: "vhost-user, Message specification", "a pass-through proxy, which broke QEMU so";
        /// Descriptors go with the first message of a read that spans several.
        HandlesToFirstMessage: "vhost-user, Ancillary data", "a pass-through proxy, which broke QEMU so";
        /// Nothing is acknowledged although REPLY_ACK was agreed on.
        AckForgotten: "vhost-user, VHOST_USER_PROTOCOL_F_REPLY_ACK", "rust-vmm/vhost#45";
        /// SET_LOG_BASE is answered only if an acknowledgement was asked for.
        LogBaseUnanswered: "vhost-user, VHOST_USER_SET_LOG_BASE", "rust-vmm/vhost#217";
        /// GET_INFLIGHT_FD gives room for one vring whatever was asked.
        InflightForOneVring: "vhost-user, VHOST_USER_GET_INFLIGHT_FD", "rust-vmm/vhost#44 (a size that does not match)";
        /// Vrings after the first use the part of the region before theirs.
        SubRegionNotAdvanced: "vhost-user, VHOST_USER_SET_INFLIGHT_FD", "DPDK vhost_user.c, by reading";
        /// A user address is looked up in the region before the one it is in.
        RegionByStartOnly: "vhost-user, Memory region description", "";
        /// Memory that is added later is not mapped.
        StaleMemoryTable: "vhost-user, VHOST_USER_ADD_MEM_REG", "spdk/spdk#3132, FDio/vpp#776";
        /// SET_VRING_ADDR has no effect on a vring that had an address before.
        StaleVringAddr: "vhost-user, VHOST_USER_SET_VRING_ADDR", "Mellanox/dpdk-vhost-vfe#138";
        /// SET_FEATURES disables every vring.
        FeaturesDisableVrings: "vhost-user, Ring states", "rust-vmm/vhost#210, #227";
        /// SET_VRING_ENABLE 0 is taken for a reset of the vring.
        DisableResets: "vhost-user, Ring states", "Mellanox/dpdk-vhost-vfe#40";
    }
    Rings {
        /// The used index stays at 65535 instead of going on at 0.
        UsedIdxSaturates: "virtio, The Virtqueue Used Ring", "";
        /// Used elements go to their index modulo twice the size of the ring.
        SlotBeyondRing: "virtio, The Virtqueue Used Ring", "";
        /// A used element names its place in the ring instead of the chain's head.
        UsedIdIsSlot: "virtio, The Virtqueue Used Ring", "";
        /// An indirect table is taken for no longer than the ring.
        IndirectOfRingSize: "virtio, Indirect Descriptors", "yc-libvhost-server (Windows has chains of 512 + 3)";
        /// GET_VRING_BASE answers 0.
        BaseZero: "vhost-user, VHOST_USER_GET_VRING_BASE", "rust-vmm/vhost#154, #326";
        /// GET_VRING_BASE answers the used index without what is in flight.
        BaseWithoutInflight: "vhost-user, VHOST_USER_GET_VRING_BASE", "yc-libvhost-server, by reading";
        /// A vring that starts takes its used index for 0 instead of reading it.
        UsedIdxNotReread: "vhost-user, Vring descriptor indices", "rust-vmm/vhost#183";
        /// A vring that starts is not looked at before it is kicked.
        KickRequired: "vhost-user, Ring states", "rust-vmm/vhost#374, #375";
        /// A vring that was disabled is fetched from.
        DisabledFetches: "vhost-user, Ring states", "";
        /// After a crash fetching goes on at the available index, past what
        /// nobody has fetched.
        UnfinishedSkipped: "vhost-user, Inflight I/O tracking", "cloud-hypervisor#8592";
        /// After a crash fetching goes on at the base, which does not count
        /// what is in flight.
        BaseTrusted: "vhost-user, Inflight I/O tracking", "";
        /// Fetching goes on at base + in flight, though after a stop the base
        /// has counted that.
        BasePlusInflight: "vhost-user, VHOST_USER_SET_VRING_BASE", "DPDK vhost_user.c, by reading";
    }
    Inflight {
        /// The inflight flag is cleared before the used index is published.
        ClearBeforePublish: "vhost-user, Inflight I/O tracking", "";
        /// Recovery clears one entry of the last batch.
        OneOfBatchCleared: "vhost-user, Inflight I/O tracking", "libvhost-user and DPDK, by reading";
        /// A batch is linked after its used index was stored.
        LinkAfterPublish: "vhost-user, Inflight I/O tracking", "";
        /// Entries of a batch are not linked to each other.
        NextNotStored: "vhost-user, Inflight I/O tracking", "yc-libvhost-server asserts a batch of 1";
        /// The batch is closed before its flags are cleared.
        CloseBeforeRetire: "vhost-user, Inflight I/O tracking", "";
        /// The used index is not copied into the region after a batch.
        UsedIdxNotCopied: "vhost-user, Inflight I/O tracking", "";
        /// A request's counter is stored after its flag.
        CounterAfterFlag: "vhost-user, Inflight I/O tracking", "";
        /// Counters start at 0 again after a recovery.
        CounterRestarts: "vhost-user, Inflight I/O tracking", "";
        /// Requests go to the disk before the region knows of them.
        FlagAfterIssue: "vhost-user, Inflight I/O tracking", "";
        /// Resubmission goes by descriptor index, not by counter.
        ResubmitInRingOrder: "vhost-user, Inflight I/O tracking", "";
        /// New requests are fetched before old ones are resubmitted.
        ResubmitAfterFetch: "vhost-user, Inflight I/O tracking", "";
        /// A fresh region keeps used index 0 on a ring that has been used.
        FreshRegionAtFaceValue: "vhost-user, Inflight I/O tracking", "spdk/spdk#3766; libvhost-user and DPDK, by reading";
        /// A fresh region is marked as used before it is filled in.
        VersionFirst: "vhost-user, Inflight I/O tracking", "";
        /// A region says that it has as many entries as the ring.
        DescNumOfRing: "vhost-user, Inflight I/O tracking", "";
        /// Recovery does not close the batch that it has finished.
        RecoveryLeavesOpen: "vhost-user, Inflight I/O tracking", "";
        /// Recovery does not look at the last entry.
        RecoveryMissesLastEntry: "vhost-user, Inflight I/O tracking", "";
    }
    Packed {
        /// The first used descriptor of a batch is stored before the others.
        PackedFirstNotLast: "virtio, Packed Virtqueues", "";
        /// A used descriptor has the id of the chain's first descriptor and not of its last.
        PackedIdOfFirst: "virtio, Packed Virtqueues, Element ID", "";
        /// The used position goes on by one and not by the length of the chain.
        PackedUsedByOne: "virtio, Packed Virtqueues", "";
        /// The used wrap counter does not flip at the end of the ring.
        PackedUsedWrapKept: "virtio, Driver and Device Ring Wrap Counters", "";
        /// A descriptor is taken for available by its available bit alone.
        PackedUsedBitIgnored: "virtio, Driver and Device Ring Wrap Counters", "";
        /// A used descriptor does not say that its length counts.
        PackedNothingWritten: "virtio, Packed Virtqueues, Write Flag", "";
        /// The wrap counter of a descriptor event is not looked at.
        PackedEventWrapIgnored: "virtio, Event Suppression Structure Format", "";
        /// Kicks are asked for at a position without its wrap counter.
        PackedKickWrapMissing: "virtio, Event Suppression Structure Format", "";
        /// Used descriptors are logged by the address of the event area.
        PackedRingLoggedAsEvent: "vhost-user, VHOST_USER_SET_VRING_ADDR", "what QEMU says is the event area, so the ring needs its own";
        /// GET_VRING_BASE answers the available half alone.
        PackedBaseUsedMissing: "vhost-user, Vring descriptor indices", "DPDK vhost_user.c, by reading";
        /// GET_VRING_BASE answers the available position without its wrap counter.
        PackedBaseWrapMissing: "vhost-user, Vring descriptor indices", "";
        /// A front-end says the available half of a base alone.
        PackedBaseHalved: "vhost-user, VHOST_USER_SET_VRING_BASE", "";
        /// A chain is marked in flight before its descriptors are copied.
        PackedCopyAfterHead: "vhost-user, Inflight I/O tracking", "";
        /// Of a chain only the first descriptor is copied.
        PackedFirstCopied: "vhost-user, Inflight I/O tracking", "";
        /// The region's used position goes on by one and not by the length of the chain.
        PackedLinkByOne: "vhost-user, Inflight I/O tracking", "";
        /// The last entry of a chain is not linked to what was free before.
        PackedFreeListCut: "vhost-user, Inflight I/O tracking", "";
        /// The old head of the free list is not moved when a batch is closed.
        PackedOldFreeHeadKept: "vhost-user, Inflight I/O tracking", "";
        /// A batch is not closed, and the next chain is fetched into it.
        PackedBatchLeftOpen: "vhost-user, Inflight I/O tracking", "";
        /// The old wrap counter is stored before the old index, not with it.
        PackedWrapBeforeIndex: "vhost-user, Inflight I/O tracking", "";
        /// An entry stays in flight though its chain was used.
        PackedFlagKept: "vhost-user, Inflight I/O tracking", "";
        /// A batch that was begun counts, whether it was published or not.
        PackedNoRollBack: "vhost-user, Inflight I/O tracking", "";
        /// A batch that was not closed is rolled back, whether it was published or not.
        PackedNoCommit: "vhost-user, Inflight I/O tracking", "";
        /// Whether a batch was published is judged by the entry at the used index.
        PackedCommitByEntry: "vhost-user, Inflight I/O tracking", "DPDK vhost_user.c, by reading";
        /// Used descriptors of a batch that was rolled back stay in the ring.
        PackedMarksLeft: "vhost-user, Inflight I/O tracking", "";
        /// Chains are resubmitted as they are in the ring, not as they were copied.
        PackedResubmitsFromRing: "vhost-user, Inflight I/O tracking", "";
    }
    Stop {
        /// GET_VRING_BASE is answered while the disk works for the vring.
        ReplyBeforeDrained: "vhost-user, VHOST_USER_GET_VRING_BASE", "spdk/spdk#3553";
        /// A suspend is answered before cancelled requests are known to be over.
        ReplyBeforeCancelled: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
        /// A stop waits for the first vring only.
        WaitsForFirstVring: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
        /// A request that was cancelled is completed with an error.
        CancelledIsReported: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
        /// The region learns of the last batch after the stop was answered.
        RegionAfterReply: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
        /// A vring runs on after its stop was answered.
        RunsAfterReply: "vhost-user, Ring states", "";
        /// A cancelled request loses its entry in the region.
        CancelledLoseEntry: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
        /// A completion that comes twice is taken for the next request in its slot.
        SecondCompletionTaken: "virtio, The Virtqueue Used Ring", "";
        /// The store is not let go when the last vring has stopped.
        StoreKept: "vhost-user, VHOST_USER_GET_VRING_BASE", "";
    }
    Logging {
        /// Pages that reads fill are not logged.
        DataNotLogged: "vhost-user, Migration", "";
        /// Of a buffer only the first page is logged.
        FirstPageLogged: "vhost-user, Migration", "";
        /// Of a buffer over several pages the last is not logged.
        LastPageNotLogged: "vhost-user, Migration", "";
        /// The bit of the page after is set.
        LogBitOffByOne: "vhost-user, Migration", "";
        /// The page of the status byte is not logged.
        StatusNotLogged: "vhost-user, Migration", "";
        /// Pages of the used ring are not logged.
        UsedRingNotLogged: "vhost-user, VHOST_USER_SET_VRING_ADDR", "";
        /// Where kicks are asked for is not logged.
        WishNotLogged: "vhost-user, VHOST_USER_SET_VRING_ADDR", "";
        /// Pages are logged after the used index that publishes them.
        LogAfterPublish: "vhost-user, Migration", "";
        /// A read that failed or was cancelled is not logged.
        FailedReadNotLogged: "vhost-user, Migration", "";
        /// A vring that stops is not logged any more.
        LogOffAtStop: "vhost-user, Migration", "";
        /// What a predecessor stored and did not live to log stays so.
        LogNotMended: "vhost-user, Migration", "";
    }
    Block {
        /// A flush is done without asking the disk.
        FlushAtOnce: "virtio, Block Device Operation", "cloud-hypervisor#1197, yc-libvhost-server";
        /// Writes are not durable although FLUSH was not accepted.
        WriteThroughIgnored: "virtio, Block Device Operation", "";
        /// Zeroes are not written, the range is discarded.
        WriteZeroesDiscards: "virtio, Block Device Operation", "";
        /// The unmap flag of a discard is overlooked.
        DiscardFlagAccepted: "virtio, Block Device Operation", "";
        /// A request of unknown type succeeds.
        UnknownTypeSucceeds: "virtio, Block Device Operation", "";
        /// The disk ends one sector later.
        CapacityOffByOne: "virtio, Block Device Operation", "";
        /// The product of sector number and sector size may overflow.
        SectorOverflow: "virtio, Block Device Operation", "";
        /// Data need not be whole sectors.
        PartialSectorAccepted: "virtio, Block Device Operation", "";
        /// An error of the disk is reported as success.
        ErrorSucceeds: "virtio, Block Device Operation", "";
        /// The status goes to the first byte of the last descriptor.
        StatusAtDescriptorStart: "virtio, Block Device Operation", "";
        /// The header is taken for all of the first descriptor.
        HeaderFillsDescriptor: "virtio, Message Framing", "yc-libvhost-server";
        /// The serial number gets a terminator after its last byte.
        SerialTerminated: "virtio, Block Device Operation", "";
        /// The used length leaves the status byte out.
        UsedLenWithoutStatus: "virtio, The Virtqueue Used Ring", "";
        /// A buffer that crosses from one memory region into the next is refused.
        BorderRefused: "vhost-user, Memory region description", "";
    }
    Notification {
        /// The event index is compared without regard to its wrap.
        EventWithoutWrap: "virtio, Used Buffer Notification Suppression", "";
        /// A batch calls only if its last element is the one asked for.
        EventOfLastOnly: "virtio, Used Buffer Notification Suppression", "";
        /// The guest's wish is read before the used index is stored.
        WishReadEarly: "virtio, Used Buffer Notification Suppression", "cloud-hypervisor#897, #928";
        /// The event index counts although it was not agreed on.
        EventIdxPresumed: "virtio, Used Buffer Notification Suppression", "";
        /// Where a kick is wanted is never moved.
        AvailEventNotMoved: "virtio, Available Buffer Notification Suppression", "seen against QEMU: the guest stalls after one request";
        /// Kicks are switched off and not on again.
        KicksStayOff: "virtio, Available Buffer Notification Suppression", "";
        /// The ring is not looked at once more after kicks were asked for.
        NoLookAfterWish: "virtio, Available Buffer Notification Suppression", "cloud-hypervisor#928, #2179";
        /// What a predecessor published and did not live to tell stays untold.
        NoCallAfterRecovery: "vhost-user, Inflight I/O tracking", "cloud-hypervisor#7851";
        /// Requests are used as the disk finishes them, though in-order use was agreed on.
        OrderIgnored: "virtio, In-order use of descriptors", "";
        /// Requests that are answered without the disk are published without a call.
        NoCallForAnswers: "virtio, Used Buffer Notification Suppression", "";
        /// A call descriptor that is swapped is not signalled: what called the old one is lost.
        NoCallAfterSwap: "vhost-user, Ring states", "";
        /// A kick descriptor that is swapped is not watched.
        OldKickWatched: "vhost-user, Ring states", "";
        /// A kick descriptor that is swapped hides what was kicked on the old one.
        NoLookAfterSwap: "vhost-user, Ring states", "";
        /// A vring that is enabled again is not looked at.
        NoLookAfterEnable: "vhost-user, Ring states", "rust-vmm/vhost#374";
    }
    Frontend {
        /// A region that is still good is replaced by a fresh one at a reconnect.
        RegionNotKept: "vhost-user, VHOST_USER_SET_INFLIGHT_FD", "cloud-hypervisor#8592 (reconnects without one)";
        /// The used ring is not said to be logged.
        LogFlagForgotten: "vhost-user, VHOST_USER_SET_VRING_ADDR", "";
        /// A start after a stop sends 0 instead of the base that was told.
        BaseNotKept: "vhost-user, VHOST_USER_SET_VRING_BASE", "";
        /// Memory that waits to be sent is not counted as sent when more changes.
        MemoryTwice: "vhost-user, VHOST_USER_ADD_MEM_REG", "";
        /// A region outlives the reset of its device.
        RegionKeptAtReset: "vhost-user, VHOST_USER_GET_INFLIGHT_FD", "";
        /// A destination starts without the region that came with the guest.
        AdoptedRegionDropped: "vhost-user, VHOST_USER_SET_INFLIGHT_FD", "QEMU 11.1.3, towards a back-end without the feature";
    }
}
