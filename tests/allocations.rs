//! Between kick and completion nothing is allocated per request: not in the
//! core, and not in the daemon's loop and engines around it.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod common;

use common::{FEATURES, Rig, slot_base, submit, vring_addr};
use midflight::adapter::client::{Client, ClientConfig};
use midflight::backend::{Input, Output};
use midflight::blk::{Completion, DeviceConfig};
use midflight::driver::{BlkDriver, BlkOp, BlkRequest, BlkStatus, Framing, RequestBuffers, Span};
use midflight::frontend::FrontendConfig;
use midflight::time::Duration;
use midflight::wire::features::{protocol, virtio};
use midflight::wire::{FrontendRequest, LogBase, LogDescription, VringAddr};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::IntoRawFd as _;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use vm_memory::{Bytes, GuestAddress};

struct Counting;

thread_local! {
    static COUNT: Cell<Option<u64>> = const { Cell::new(None) };
    /// This thread is a daemon, and counts for another thread to see.
    static SERVING: Cell<Option<&'static AtomicU64>> = const { Cell::new(None) };
}

fn count() {
    // A thread that is going away has no counter any more.
    let _ = COUNT.try_with(|c| c.set(c.get().map(|n| n + 1)));
    if let Ok(Some(total)) = SERVING.try_with(Cell::get) {
        total.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from the system's allocator, by `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn counted(f: impl FnOnce()) -> u64 {
    COUNT.set(Some(0));
    f();
    COUNT.take().expect("counting was on")
}

/// Requests of one round: half writes, half reads, indirect and not.
fn put(rig: &Rig, driver: &mut BlkDriver) {
    for slot in 0..16 {
        let op =
            if slot % 2 == 0 { BlkOp::Out { sector: slot } } else { BlkOp::In { sector: slot } };
        let framing = if slot % 4 < 2 { Framing::INDIRECT } else { Framing::CLASSIC };
        submit(rig, driver, slot, op, 512, &framing);
    }
    driver.publish(&rig.guest).unwrap();
}

#[test]
fn allocations_there_are_none_from_kick_to_completion() {
    serve(Rig::running(DeviceConfig::with_capacity(1 << 20)));
}

#[test]
fn allocations_there_are_none_with_packed_rings_either() {
    for size in [64, 100] {
        let disk = DeviceConfig::with_capacity(1 << 20);
        let mut rig = Rig::new(DeviceConfig { packed: true, ..disk });
        let driver = rig.run_packed(size);
        serve((rig, driver));
    }
}

#[test]
fn allocations_there_are_none_while_pages_are_logged_either() {
    let (mut rig, driver) = Rig::running(DeviceConfig::with_capacity(1 << 20));
    let log = LogDescription { size: 4096, offset: 0 };
    let handle = rig.handle();
    let answer = rig.send(FrontendRequest::SetLogBase(LogBase::Shared(log, handle)), false);
    assert!(answer.is_some());
    rig.ok(FrontendRequest::SetFeatures(FEATURES | virtio::LOG_ALL));
    rig.ok(FrontendRequest::SetVringAddr(VringAddr { flags: 1, ..vring_addr(0) }));
    let log = rig.log.clone().unwrap();
    serve((rig, driver));
    let byte: u8 = log.read_obj(GuestAddress(slot_base(0) / 4096 / 8)).unwrap();
    assert_ne!(byte, 0, "nothing was logged");
}

fn serve((mut rig, mut driver): (Rig, BlkDriver)) {
    let mut done: Vec<Completion> = Vec::with_capacity(64);
    let mut served = 0;
    for round in 0..50 {
        put(&rig, &mut driver);
        let now = rig.now;
        let backend = &mut rig.backend;
        let allocations = counted(|| {
            backend.handle_input(now, Input::Kick { vring: 0 }).unwrap();
            done.clear();
            while let Some(output) = backend.poll_output() {
                if let Output::Disk(id) = output {
                    assert!(!backend.request(id).unwrap().segments.is_empty());
                    done.push(Completion { id, result: Ok(()) });
                }
            }
            backend.handle_input(now, Input::DiskDone(&done)).unwrap();
            while backend.poll_output().is_some() {}
        });
        assert_eq!(done.len(), 16);
        while driver.reap(&rig.guest).unwrap().is_some() {
            served += 1;
        }
        // The first rounds size the tables.
        if round > 2 {
            assert_eq!(allocations, 0, "round {round}");
        }
    }
    assert_eq!(served, 50 * 16);
}

#[test]
fn allocations_are_seen_by_the_counter() {
    assert_eq!(counted(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

const DISK: u64 = 8 << 20;
const BLOCK: u64 = 4096;

/// The daemon on a thread of this process, and a client of it.
struct Served {
    client: Client,
    daemon: std::thread::JoinHandle<ExitCode>,
    allocations: &'static AtomicU64,
    dir: PathBuf,
}

impl Served {
    fn by(engine: &str) -> Self {
        let name = format!("midflight-allocations-{engine}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let (image, socket) = (dir.join("image"), dir.join("socket"));
        std::fs::write(&image, vec![7; DISK as usize]).unwrap();
        let listener = UnixListener::bind(&socket).unwrap();
        let args = ["midflight", "serve", "--io-engine", engine, "--blk-file"];
        let mut args: Vec<_> = args.map(Into::into).into();
        args.push(image.into());
        let allocations: &'static AtomicU64 = Box::leak(Box::default());
        let daemon = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            args.extend(["--fd".into(), stream.into_raw_fd().to_string().into()]);
            SERVING.set(Some(allocations));
            midflight::adapter::run(args)
        });
        let config = ClientConfig {
            socket,
            frontend: FrontendConfig {
                virtio_features: virtio::VERSION_1
                    | virtio::EVENT_IDX
                    | virtio::INDIRECT_DESC
                    | virtio::BLK_FLUSH
                    | virtio::BLK_SEG_MAX,
                protocol_features: protocol::MQ
                    | protocol::REPLY_ACK
                    | protocol::CONFIG
                    | protocol::INFLIGHT_SHMFD,
                queue_size: 256,
                config_len: 24,
                ..FrontendConfig::new(1)
            },
            ring_size: 256,
            memory_size: 4 << 20,
            patience: Duration::from_secs(20),
        };
        let mut client = Client::connect(config).unwrap();
        client.start().unwrap();
        Self { client, daemon, allocations, dir }
    }

    /// Carry out requests, `depth` at a time: reads and writes, indirect and
    /// not. Returns what the daemon's thread allocated meanwhile.
    fn requests(&mut self, count: u64, depth: u64) -> u64 {
        let before = self.allocations.load(Ordering::Relaxed);
        for _ in 0..count / depth {
            for slot in 0..depth {
                self.submit(slot);
            }
            self.client.kick(0).unwrap();
            for _ in 0..depth {
                let done = self.client.wait_done(0).unwrap();
                assert_eq!(done.status, BlkStatus::Ok);
            }
        }
        self.allocations.load(Ordering::Relaxed) - before
    }

    fn submit(&mut self, slot: u64) {
        let at = self.client.data_area().start.next_multiple_of(BLOCK) + slot * 2 * BLOCK;
        let data = [Span { addr: at + BLOCK, len: BLOCK as u32 }];
        let buffers =
            RequestBuffers { header: at, data: &data, status: at + 16, table: Some(at + 32) };
        let sector = slot * (BLOCK / 512);
        let op = if slot.is_multiple_of(4) { BlkOp::Out { sector } } else { BlkOp::In { sector } };
        let framing = if slot % 8 < 4 { Framing::INDIRECT } else { Framing::CLASSIC };
        self.client.submit(0, &BlkRequest { op, token: slot }, &buffers, &framing).unwrap();
    }

    /// The daemon served this one connection, so it ends.
    fn close(mut self) {
        self.client.stop().unwrap();
        self.client.disconnect().unwrap();
        assert_eq!(self.daemon.join().unwrap(), ExitCode::SUCCESS);
        std::fs::remove_dir_all(self.dir).unwrap();
    }
}

fn daemon_allocates_nothing(engine: &str) {
    let mut served = Served::by(engine);
    // Sizes the tables, with more at once than what follows.
    let warm = served.requests(1024, 64);
    assert!(warm > 0, "the daemon's thread is counted");
    assert_eq!(served.requests(8000, 16), 0, "{engine}");
    assert_eq!(served.requests(500, 1), 0, "{engine}");
    served.close();
}

#[test]
fn allocations_there_are_none_in_the_daemon_over_io_uring() {
    daemon_allocates_nothing("io-uring");
}

#[test]
fn allocations_there_are_none_in_the_daemon_over_files_in_memory() {
    daemon_allocates_nothing("inline");
}
