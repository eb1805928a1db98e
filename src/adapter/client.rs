//! A guest without a virtual machine: the front-end and the guest driver over
//! a real socket, with real guest memory and eventfds.
//!
//! It is what a test needs to put requests to any back-end, midflight's own
//! or another's. It blocks: one thread waits for the control socket and for
//! calls, and a lost back-end is connected to again, with the kept inflight
//! region, while somebody waits for requests.

mod control;
mod iommu;
mod link;
mod migration;
mod postcopy;
mod requests;
mod state;

use super::clock::Clock;
use super::handles::Handles;
use super::socket::Socket;
use crate::Handle;
use crate::driver::{BlkDriver, BlkStatus, DriverError, RingFeatures, RingLayout};
use crate::frontend::{
    ApiMisuse, Base, Command, ConfigError, Event, Failure, Frontend, FrontendConfig, Input, Phase,
    Start, VringStart, VringWiring,
};
use crate::time::Duration;
use crate::wire::MemRegion;
use crate::wire::features::virtio;
pub use control::Answer;
use iommu::Iommu;
pub use iommu::IommuUse;
use migration::DirtyLog;
pub use migration::Handover;
use postcopy::Postcopy;
pub use postcopy::{PageCounts, PageSource};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use vm_memory::bitmap::{AtomicBitmap, NewBitmap};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap, GuestRegionMmap};

/// Guest memory of a client.
///
/// Its bitmap says which pages the guest has written, as the hypervisor of a
/// real guest would; [`Client::take_dirty`] reads it.
pub type ClientMemory = GuestMemoryMmap<AtomicBitmap>;

/// Distance of user addresses from guest-physical ones. Nothing is mapped
/// there: user addresses are only names that both ends agree on.
const USER: u64 = 0x7000_0000_0000;
const PAGE: u64 = 4096;

/// What to connect to, and as what.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The back-end's socket.
    pub socket: PathBuf,
    /// Features, vrings, reconnection.
    pub frontend: FrontendConfig,
    /// Entries of each ring; a power of two unless rings are packed.
    pub ring_size: u16,
    /// Bytes of guest memory, a multiple of 4096. Rings come first.
    pub memory_size: u64,
    /// How long anything may take before it is an error.
    pub patience: Duration,
}

/// What stopped a client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The configuration makes no sense.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The connection failed and will not be tried again.
    #[error(transparent)]
    Connection(#[from] Failure),
    /// The ring broke, or a request could not be built.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// A command at the wrong time.
    #[error(transparent)]
    Misuse(#[from] ApiMisuse),
    /// Guest memory is too small for that.
    #[error("expected at most {room} bytes of data, got {wanted}")]
    TooBig {
        /// Bytes there are.
        room: u64,
        /// Bytes wanted.
        wanted: u64,
    },
    /// The device failed a request.
    #[error("request failed with status {}", .0.code())]
    Request(BlkStatus),
    /// The back-end said no.
    #[error("back-end refused {message} with status {status}")]
    Refused {
        /// Message.
        message: &'static str,
        /// Its answer.
        status: u64,
    },
    /// Nothing happened for too long.
    #[error("timed out waiting for {what}{}", .answer.map(|a| format!(" ({a} is not answered)")).unwrap_or_default())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// Message that the back-end has not answered.
        answer: Option<&'static str>,
    },
}

/// Something that must wait until the front-end's outputs are taken.
enum Next {
    Connect,
    Lost,
    Restart,
    KickAll,
    /// The back-end asks for this page, for this access.
    Translate(u64, u8),
}

/// How guest and back-end wake each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Notify {
    /// By event descriptors.
    #[default]
    Events,
    /// Not at all: the back-end polls for requests, the guest for completions.
    Polled,
    /// By messages, if the back-end has them and the configuration lets the
    /// feature through; else as [`Notify::Polled`].
    Inband,
}

/// One vring of the guest.
struct Queue {
    layout: RingLayout,
    kick: Option<Handle>,
    call: Option<Handle>,
    err: Option<Handle>,
    /// `None` until the first start.
    driver: Option<BlkDriver>,
}

/// A guest of one disk.
pub struct Client {
    config: ClientConfig,
    frontend: Frontend,
    clock: Clock,
    handles: Handles,
    memory: ClientMemory,
    /// What the back-end is to have of it.
    regions: Vec<(MemRegion, Handle)>,
    queues: Vec<Queue>,
    /// Descriptors that are sent with every connection.
    wired: Vec<Handle>,
    socket: Option<Socket>,
    channel: Option<Socket>,
    /// Offered and let through.
    features: u64,
    /// In-band notifications are in force.
    inband: bool,
    /// What the guest accepted at its first start.
    accepted: Option<u64>,
    /// The owner wants the vrings to run, whatever the back-end does.
    wanted: bool,
    log: Option<DirtyLog>,
    /// Memory is still coming.
    postcopy: Option<Postcopy>,
    iommu: Iommu,
    next: VecDeque<Next>,
    events: Vec<Event>,
    failure: Option<Failure>,
}

impl Client {
    /// Connect and negotiate; kick and be called by event descriptors.
    pub fn connect(config: ClientConfig) -> Result<Self, ClientError> {
        Self::connect_notified(config, Notify::Events)
    }

    /// Connect and negotiate.
    pub fn connect_notified(config: ClientConfig, notify: Notify) -> Result<Self, ClientError> {
        let mut handles = Handles::default();
        let event = |handles: &mut Handles| {
            let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
            let fd = eventfd(0, flags).map_err(|e| system("cannot make an eventfd", e))?;
            Ok::<_, ClientError>(Some(handles.insert(fd)))
        };
        let mut queues = Vec::new();
        let (mut wiring, mut wired) = (Vec::new(), Vec::new());
        for q in 0..config.frontend.num_queues {
            let [kick, call, err] = match notify {
                Notify::Events => {
                    [event(&mut handles)?, event(&mut handles)?, event(&mut handles)?]
                }
                Notify::Polled | Notify::Inband => [None; 3],
            };
            wired.extend([call, err].into_iter().flatten());
            wiring.push(VringWiring { call, err });
            let packed = config.frontend.virtio_features & virtio::RING_PACKED != 0;
            let layout = ring_layout(q, config.ring_size, packed)?;
            queues.push(Queue { layout, kick, call, err, driver: None });
        }
        let (memory, memfd) = sealed_memory("midflight-guest", config.memory_size)?;
        let region =
            MemRegion { guest_addr: 0, size: config.memory_size, user_addr: USER, mmap_offset: 0 };
        let regions = vec![(region, handles.insert(memfd))];
        let mut client = Self {
            frontend: Frontend::new(config.frontend.clone(), wiring)?,
            clock: Clock::start(),
            handles,
            memory,
            regions: regions.clone(),
            queues,
            wired,
            socket: None,
            channel: None,
            features: 0,
            inband: false,
            accepted: None,
            wanted: false,
            log: None,
            postcopy: None,
            iommu: Iommu::default(),
            next: VecDeque::new(),
            events: Vec::new(),
            failure: None,
            config,
        };
        client.command(Command::SetMemory(regions))?;
        client.command(Command::Connect)?;
        client.wait("negotiation", |c| c.frontend.phase() == Phase::Ready)?;
        Ok(client)
    }

    /// Start every vring: zeroed rings the first time and after a reset,
    /// otherwise where they stopped.
    pub fn start(&mut self) -> Result<(), ClientError> {
        let accepted = *self.accepted.get_or_insert(self.features);
        let features = RingFeatures {
            event_idx: accepted & virtio::EVENT_IDX != 0,
            indirect: accepted & virtio::INDIRECT_DESC != 0,
            packed: accepted & virtio::RING_PACKED != 0,
        };
        for (index, queue) in (0u16..).zip(&mut self.queues) {
            if queue.driver.is_none() {
                queue.layout = ring_layout(index, self.config.ring_size, features.packed)?;
                let mut driver = BlkDriver::start(&self.memory, queue.layout, features)?;
                if accepted & virtio::IN_ORDER != 0 {
                    driver.ring_mut().expect_in_order()?;
                }
                queue.driver = Some(driver);
            }
        }
        if self.has_iommu() {
            self.map_rings();
        }
        self.wanted = true;
        let start = self.start_command(|_| Base::Kept);
        match self.command(start) {
            // The back-end died before it could say where it stopped.
            Err(ClientError::Misuse(ApiMisuse::BaseUnknown(_))) => {
                let start = self.start_command(|layout| self.lost_base(layout));
                self.command(start)?;
            }
            other => other?,
        }
        self.wait("the start", |c| c.frontend.phase() == Phase::Running)
    }

    /// Stop every vring; returns their bases.
    pub fn stop(&mut self) -> Result<Vec<(u16, u32)>, ClientError> {
        self.stop_by(Command::Stop)
    }

    fn stop_by(&mut self, command: Command) -> Result<Vec<(u16, u32)>, ClientError> {
        self.wanted = false;
        self.events.retain(|event| !matches!(event, Event::Stopped { .. }));
        self.command(command)?;
        self.wait("the stop", |c| c.frontend.phase() == Phase::Ready)?;
        let bases = self.events.iter().rev().find_map(|event| match event {
            Event::Stopped { bases } => Some(bases.clone()),
            _ => None,
        });
        // A back-end that died instead of answering leaves no bases.
        Ok(bases.unwrap_or_default())
    }

    /// Reset the device. Requests that were not reaped are gone.
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.wanted = false;
        self.command(Command::Reset)?;
        self.wait("the reset", |c| c.frontend.phase() == Phase::Ready)?;
        self.accepted = None;
        for queue in &mut self.queues {
            queue.driver = None;
        }
        Ok(())
    }

    /// Close the connection at once, as a front-end that is killed does.
    pub fn disconnect(&mut self) -> Result<(), ClientError> {
        self.wanted = false;
        self.command(Command::Disconnect)
    }

    /// Give the front-end any command.
    pub fn command(&mut self, command: Command) -> Result<(), ClientError> {
        self.frontend.handle_input(self.clock.now(), Input::Command(command))?;
        self.drain()
    }

    /// Read configuration space, and wait.
    pub fn read_config(&mut self, offset: u32, size: u16) -> Result<Vec<u8>, ClientError> {
        self.events.retain(|event| !matches!(event, Event::ConfigRead { .. }));
        self.command(Command::ReadConfig { offset, size })?;
        let answered = |c: &Self| {
            c.events.iter().any(|e| matches!(e, Event::ConfigRead { .. } | Event::Refused { .. }))
        };
        self.wait("the configuration", answered)?;
        let data = self.events.iter().find_map(|event| match event {
            Event::ConfigRead { data, .. } => Some(data.to_vec()),
            _ => None,
        });
        Ok(data.unwrap_or_default())
    }

    /// Wait until `done`, serving the connection.
    pub fn wait(
        &mut self,
        what: &'static str,
        done: impl Fn(&Self) -> bool,
    ) -> Result<(), ClientError> {
        let until = self.clock.now() + self.config.patience;
        while !done(self) {
            self.turn(what, until)?;
        }
        Ok(())
    }

    /// Serve the connection for `time`, or until something has happened.
    pub fn pump(&mut self, time: Duration) -> Result<(), ClientError> {
        let until = self.clock.now() + time;
        match self.turn("nothing", until) {
            Err(ClientError::TimedOut { .. }) => Ok(()),
            other => other,
        }
    }

    /// Guest memory.
    pub fn memory(&self) -> &ClientMemory {
        &self.memory
    }

    /// Guest-physical addresses behind the rings: the caller's to use, except
    /// that the blocking requests use them too.
    pub fn data_area(&self) -> Range<u64> {
        let rings = self.queues.len() as u64 * ring_stride(self.config.ring_size);
        rings..self.config.memory_size
    }

    /// The driver of a vring that has been started.
    pub fn driver(&mut self, vring: u16) -> Result<(&mut BlkDriver, &ClientMemory), ClientError> {
        let driver = self.queues.get_mut(usize::from(vring)).and_then(|q| q.driver.as_mut());
        let driver = driver.ok_or(ApiMisuse::BadVring(vring))?;
        Ok((driver, &self.memory))
    }

    /// Where the front-end stands.
    pub fn phase(&self) -> Phase {
        self.frontend.phase()
    }

    /// Virtio features that the back-end offers and the configuration lets through.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Everything that has happened, oldest first; the list is emptied.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    /// Only guest memory knows how far a dead back-end came; of a packed ring
    /// not even that does, but the inflight region.
    fn lost_base(&self, layout: &RingLayout) -> Base {
        if self.accepted.unwrap_or(0) & virtio::RING_PACKED != 0 {
            return Base::Last;
        }
        Base::At(u32::from(layout.load_used_idx(&self.memory).unwrap_or(0)))
    }

    fn start_command(&self, base: impl Fn(&RingLayout) -> Base) -> Command {
        let name = if self.has_iommu() { 0 } else { USER };
        let vrings = (0u16..).zip(&self.queues).map(|(index, queue)| VringStart {
            index,
            size: queue.layout.size,
            desc: name + queue.layout.desc,
            avail: name + queue.layout.avail,
            used: name + queue.layout.used,
            base: base(&queue.layout),
            kick: queue.kick,
            call: queue.call,
        });
        Command::Start(Start { features: self.accepted, vrings: vrings.collect() })
    }
}

/// Where a vring's ring is.
fn ring_layout(vring: u16, size: u16, packed: bool) -> Result<RingLayout, DriverError> {
    let base = u64::from(vring) * ring_stride(size);
    let layout = match packed {
        true => RingLayout::contiguous_packed(size, base),
        false => RingLayout::contiguous(size, base),
    };
    Ok(layout?)
}

/// Bytes from one ring to the next: room for either format.
fn ring_stride(size: u16) -> u64 {
    RingLayout::footprint(size).next_multiple_of(PAGE)
}

/// Zeroed memory to share, in a file of a size that nobody can change.
fn sealed_memory<B: NewBitmap>(
    name: &str,
    size: u64,
) -> Result<(GuestMemoryMmap<B>, OwnedFd), ClientError> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create(name, flags).map_err(|e| system("cannot make shared memory", e))?;
    ftruncate(&fd, size).map_err(|e| system("cannot size shared memory", e))?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)
        .map_err(|e| system("cannot seal shared memory", e))?;
    let what = "cannot map shared memory";
    let copy = fd.try_clone().map_err(|source| ClientError::System { what, source })?;
    let file = FileOffset::new(File::from(copy), 0);
    let region = map_shared(GuestAddress(0), size, file)?;
    let memory = GuestMemoryMmap::from_regions(vec![region])
        .map_err(|e| ClientError::System { what, source: std::io::Error::other(e.to_string()) })?;
    Ok((memory, fd))
}

/// A piece of a file as guest memory.
fn map_shared<B: NewBitmap>(
    at: GuestAddress,
    size: u64,
    file: FileOffset,
) -> Result<GuestRegionMmap<B>, ClientError> {
    let what = "cannot map shared memory";
    let too_big = |_| ClientError::TooBig { room: usize::MAX as u64, wanted: size };
    let len = usize::try_from(size).map_err(too_big)?;
    GuestRegionMmap::from_range(at, len, Some(file))
        .map_err(|e| ClientError::System { what, source: std::io::Error::other(e.to_string()) })
}

fn system(what: &'static str, errno: Errno) -> ClientError {
    ClientError::System { what, source: errno.into() }
}
