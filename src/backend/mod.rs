//! The back-end half: one device, one front-end at a time.
//!
//! ```text
//! session   what the front-end says      -> settings, answer, pending wishes
//! channel   what the back-end asks          -> the front-end's answers
//! notify    kicks and calls, by descriptor or by message
//! setup     memory and inflight region   -> what a vring needs to run
//! iommu     translations told             -> addresses that can be reached
//! status    the device status
//! transfer  the device's state, to another back-end or from one
//! vacate    memory that is taken away while requests use it
//! start     a vring begins to run        -> recovery, resubmission
//! fetch     kick to disk request
//! complete  disk done to used entry
//! in_order  holds back what finished before its turn
//! policy    which stop drains, which suspends, and for how long it waits
//! postcopy  memory whose pages come when they are touched
//! stop      drain, suspend, reset, disconnect, shut down
//! ```

mod answer;
mod cache;
mod capacity;
mod channel;
mod complete;
mod fault;
mod fetch;
mod in_order;
mod io;
mod iommu;
mod late;
mod notify;
mod policy;
mod postcopy;
mod requests;
mod session;
mod settings;
mod setup;
mod start;
mod status;
mod stop;
mod transfer;
mod translate;
mod vacate;
mod vring;

pub use channel::ChannelEnd;
pub use fault::{ApiMisuse, FrontendFault, GuestFault};
pub use io::*;
pub use iommu::{IommuCounts, UPDATE_GRACE};
pub use policy::SuspendPolicy;
pub use session::OFFERED_PROTOCOL_FEATURES;

use crate::Handle;
use crate::blk::{ByteRange, ConfigError, DeviceConfig, DiskRequest, ReqId};
use crate::dirty::DirtyLog;
use crate::marks::{self, Mark};
use crate::memory::MemoryTable;
use crate::time::{Duration, Instant};
use crate::vring::chain::Chain;
use crate::wire::features::virtio;
use crate::wire::{Decoder, Dialect, FrontendRequests, PushReason};
use cache::WriteCache;
use channel::Channel;
use iommu::Iommu;
use late::Late;
use postcopy::Postcopy;
use requests::Requests;
use session::Session;
use setup::{InflightMemory, Pending};
use std::collections::VecDeque;
use transfer::Transfer;
use translate::Scratch;
use vm_memory::GuestMemory;
use vring::Vring;

/// Most chains fetched from a vring in one call; the rest follows at once by
/// [`TimerKind::MoreChains`], after the driver had a chance to do other things.
pub const CHAINS_PER_CALL: u16 = 256;

/// Of more chains than this, one call fetches half. A disk that answers at once
/// then has the first half published while the second is still to come, and
/// the guest reaps and refills instead of waiting for us, and we for it.
pub const CHAINS_UNDIVIDED: u16 = 16;

/// How long a vring without kick descriptor waits before it is looked at again.
pub const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Where the connection is in its life.
///
/// | from | event | to |
/// |---|---|---|
/// | Idle | connected | Connected |
/// | Connected | peer closed, or closed by us, nothing in flight | Idle |
/// | Connected | peer closed, or closed by us, requests in flight | Leaving |
/// | Leaving | the last request is done | Idle |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No front-end.
    Idle,
    /// A front-end talks to us.
    Connected,
    /// The front-end is gone, the disk still works for it. Until it is done
    /// its memory stays mapped, and no successor may resubmit what an old
    /// write could still land on.
    Leaving,
}

/// One vhost-user-blk device.
///
/// See [`Input`] and [`Output`] for the contract with the driver.
#[derive(Debug)]
pub struct Backend<M> {
    config: DeviceConfig,
    /// Virtio features offered, with the two that are the front-end's.
    offered: u64,
    /// How vrings are suspended; `None`: never, every stop drains.
    suspend: Option<SuspendPolicy>,
    /// The driver can have page faults resolved by the front-end.
    offers_postcopy: bool,
    postcopy: Postcopy,
    decoder: Decoder<FrontendRequests, Handle>,
    link: Link,
    session: Session,
    /// Where the back-end can ask for something.
    channel: Option<Channel>,
    /// The front-end may believe in another size of the device.
    change_due: bool,
    /// The operator wants the end.
    shutdown: bool,
    memory: Option<M>,
    /// Memory as it was before regions were taken away that requests in flight
    /// still use; those requests go on with it.
    vacated: Option<M>,
    table: MemoryTable,
    inflight: Option<InflightMemory<M>>,
    log: Option<DirtyLog<M>>,
    vrings: Vec<Vring>,
    requests: Requests,
    pending: Pending,
    /// When what is in flight is cancelled. The vrings of a device stop one
    /// after the other; this is for all of them, until one starts again.
    cancel_at: Option<Instant>,
    /// [`Output::AcquireStore`] was the last word about the store.
    store: bool,
    /// The guest's choice in the configuration space.
    cache: WriteCache,
    transfer: Transfer,
    /// Buffers of the chain being looked at.
    chain: Chain,
    /// Ranges of the request being looked at.
    ranges: Vec<ByteRange>,
    iommu: Iommu,
    scratch: Scratch,
    out: VecDeque<Output>,
    late: Late,
}

impl<M: GuestMemory> Backend<M> {
    /// A back-end for one device, with no front-end yet.
    pub fn new(config: DeviceConfig) -> Result<Self, ConfigError> {
        Self::with_policy(config, None)
    }

    /// Like [`new`](Self::new), but with stops that suspend instead of drain,
    /// where the front-end has agreed to that.
    ///
    /// The driver promises to answer [`Output::Cancel`] truthfully; on a store
    /// where it cannot know when a request is over, nothing may be suspended.
    pub fn with_suspend(config: DeviceConfig, policy: SuspendPolicy) -> Result<Self, ConfigError> {
        Self::with_policy(config, Some(policy))
    }

    fn with_policy(
        config: DeviceConfig,
        suspend: Option<SuspendPolicy>,
    ) -> Result<Self, ConfigError> {
        config.validate()?;
        let offered = config.features() | virtio::LOG_ALL | virtio::PROTOCOL_FEATURES;
        let vrings = (0..config.num_queues).map(|_| Vring::new(config.queue_size_max)).collect();
        let iommu = Iommu::new(config.num_queues);
        Ok(Self {
            config,
            offered,
            suspend,
            offers_postcopy: false,
            postcopy: Postcopy::Off,
            decoder: Decoder::new(suspend.map_or(Dialect::default(), |s| s.dialect)),
            link: Link::Idle,
            session: Session::default(),
            channel: None,
            change_due: true,
            shutdown: false,
            memory: None,
            vacated: None,
            table: MemoryTable::default(),
            inflight: None,
            log: None,
            vrings,
            requests: Requests::default(),
            pending: Pending::None,
            cancel_at: None,
            store: false,
            cache: WriteCache::default(),
            transfer: Transfer::None,
            chain: Chain::default(),
            ranges: Vec::new(),
            iommu,
            scratch: Scratch::default(),
            out: VecDeque::new(),
            late: Late::default(),
        })
    }

    /// True if the next front-end may connect.
    pub fn is_idle(&self) -> bool {
        self.link == Link::Idle
    }

    /// How many bytes to read from the socket next, at most, so that
    /// descriptors stay with their message. 0: read nothing now, a message
    /// waits for the driver or for the disk.
    pub fn wanted(&self) -> usize {
        if self.reads() { self.decoder.wanted() } else { 0 }
    }

    /// Tell a fact. `now` must not go backwards.
    ///
    /// An error says that the driver broke the contract; nothing has changed
    /// then, except that handles given with the input are to be released.
    pub fn handle_input(&mut self, now: Instant, input: Input<'_, M>) -> Result<(), ApiMisuse> {
        if self.late_is_due() {
            self.late.catch_up(self.inflight.as_ref().map(|i| &i.memory));
        }
        self.keep_cache_on();
        match input {
            Input::Connected => self.connected()?,
            Input::Received { bytes, handles } => self.received(bytes, handles)?,
            Input::ChannelReceived { bytes, handles } => self.channel_received(bytes, handles)?,
            // It may have been given up here meanwhile.
            Input::ChannelClosed(None) => self.end_channel(ChannelEnd::Closed),
            Input::ChannelClosed(Some(why)) => self.end_channel(ChannelEnd::Failed(why)),
            Input::PeerClosed => {
                self.check_connected("peer closed")?;
                self.disconnect();
            }
            Input::Mapped(result) => self.mapped(now, result)?,
            Input::MappedMissing(result) => self.mapped_missing(now, result)?,
            Input::FaultsOpened(result) => self.faults_opened(result)?,
            Input::InflightAllocated(result) => self.inflight_allocated(result)?,
            Input::StateSaved(result) => self.state_saved(result)?,
            Input::StateLoaded(result) => self.state_loaded(result)?,
            Input::InflightMapped(result) => self.inflight_mapped(result)?,
            Input::LogMapped(result) => self.log_mapped(result)?,
            Input::Kick { vring } => {
                let count = self.config.num_queues;
                if vring >= count {
                    return Err(ApiMisuse::Vring { got: vring, count });
                }
                let v = &self.vrings[usize::from(vring)];
                marks::hit_when(Mark::KickHeldBack, || !self.may_fetch() || !v.fetches());
                self.fetch(now, vring);
            }
            Input::Capacity(bytes) => self.set_capacity(bytes),
            Input::DiskDone(done) => self.disk_done(done),
            Input::Timeout => self.timeout(now),
            Input::Command(Command::Shutdown) => {
                marks::hit_when(Mark::ShutdownWaits, || !self.requests.is_empty());
                self.shutdown = true;
            }
        }
        self.settle(now);
        self.go_on_waiting(now);
        self.tell_change();
        Ok(())
    }

    /// The next wish, `None` when there is none left.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop_front()
    }

    /// When to call with [`Input::Timeout`], and why. A time that has passed
    /// means at once.
    pub fn poll_timeout(&self) -> Option<Timeout> {
        if self.late_is_due() {
            return Some((Instant::ZERO, TimerKind::MoreChains));
        }
        let runs = self.vrings.iter().filter(|v| self.may_fetch() && v.fetches());
        runs.filter_map(|v| {
            let run = v.run.as_ref()?;
            if run.more {
                return Some((Instant::ZERO, TimerKind::MoreChains));
            }
            v.polled.then_some((run.poll_at, TimerKind::PollVring))
        })
        .chain(self.pending.cancel_at().map(|at| (at, TimerKind::SuspendGrace)))
        .chain(self.update_due().map(|at| (at, TimerKind::IotlbUpdate)))
        .min_by_key(|(at, _)| *at)
    }

    /// A request named by [`Output::Disk`] and not done yet.
    pub fn request(&self, id: ReqId) -> Option<DiskRequest<'_>> {
        self.requests.get(id)
    }

    /// Requests at the disk.
    pub fn requests_in_flight(&self) -> usize {
        self.requests.len()
    }

    /// True if the next message may be looked at.
    fn reads(&self) -> bool {
        self.link == Link::Connected && !self.shutdown && self.pending.is_none()
    }

    /// The first vring that runs; `None` if the device is at rest.
    fn running_vring(&self) -> Option<u16> {
        (0..).zip(&self.vrings).find_map(|(vring, v)| v.run.is_some().then_some(vring))
    }

    fn check_connected(&self, what: &'static str) -> Result<(), ApiMisuse> {
        match self.link {
            Link::Connected => Ok(()),
            _ => Err(ApiMisuse::NotConnected(what)),
        }
    }

    fn connected(&mut self) -> Result<(), ApiMisuse> {
        if self.link != Link::Idle {
            return Err(ApiMisuse::NotIdle);
        }
        self.link = Link::Connected;
        self.decoder = Decoder::new(self.dialect());
        self.session = Session::default();
        self.change_due = true;
        Ok(())
    }

    fn received(&mut self, bytes: &[u8], handles: Vec<Handle>) -> Result<(), ApiMisuse> {
        if let Err(misuse) = self.check_connected("received bytes") {
            self.release(handles);
            return Err(misuse);
        }
        let wanted = self.wanted() as u64;
        let Err(refused) = self.decoder.push(bytes, handles) else { return Ok(()) };
        self.release(refused.handles);
        match refused.reason {
            // How many descriptors ride with a byte is up to the peer.
            PushReason::Handles { max, would_be } => {
                self.close(FrontendFault::TooManyHandles { got: would_be, max });
                Ok(())
            }
            _ => Err(ApiMisuse::NotWanted { got: bytes.len() as u64, wanted }),
        }
    }

    /// Everything that follows from what has changed: waits that are over,
    /// messages that could not be looked at before.
    fn settle(&mut self, now: Instant) {
        loop {
            self.finish_waits(now);
            if !self.reads() {
                return;
            }
            match self.decoder.next() {
                Some(Ok(envelope)) => self.message(now, envelope),
                Some(Err(refused)) => self.undecodable(refused),
                None => return,
            }
        }
    }

    fn timeout(&mut self, now: Instant) {
        for vring in 0..self.config.num_queues {
            let v = &self.vrings[usize::from(vring)];
            let due = v.run.as_ref().is_some_and(|r| r.more || v.polled && r.poll_at <= now);
            if due {
                marks::hit_when(Mark::FetchPolls, || v.polled);
                self.fetch(now, vring);
            }
        }
    }

    fn late_is_due(&self) -> bool {
        self.late.is_due(|vring| self.vrings[usize::from(vring)].run.is_some())
    }

    fn release(&mut self, handles: impl IntoIterator<Item = Handle>) {
        self.out.extend(handles.into_iter().map(Output::Release));
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }
}
