//! The real daemon with guest memory in many regions, in huge pages, and with
//! regions that come and go under I/O.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod daemon_rig;

use daemon_rig::{Client, Daemon, GUEST, Guest, Scratch};
use midflight::driver::{BlkOp, BlkRequest, Framing, RequestBuffers, Span};
use midflight::wire::{FrontendReplyBody as Body, FrontendRequest as R, MemRegion};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

/// A write whose data lie across the border of two regions, and the same data
/// read back across another one.
fn moves_data_across(guest: &mut Guest, borders: [u64; 2]) {
    const LEN: u32 = 3 * 512;
    let at = borders.map(|border| border - 700);
    let data: Vec<u8> = (0..LEN).map(|i| (i % 251) as u8 + 1).collect();
    guest.memory.write_slice(&data, GuestAddress(at[0])).unwrap();
    let span = at.map(|addr| [Span { addr, len: LEN }]);
    let mut put = |op: BlkOp<'_>, data: &[Span], token| {
        let buffers = RequestBuffers { header: 0x8000, data, status: 0x8100, table: None };
        let request = BlkRequest { op, token };
        guest.driver.submit(&guest.memory, &request, &buffers, &Framing::CLASSIC).unwrap();
        guest.publish();
        let done = guest.reap();
        assert_eq!((done.len(), done[0].status.code()), (1, 0));
    };
    put(BlkOp::Out { sector: 40 }, &span[0], 1 << 40);
    put(BlkOp::In { sector: 40 }, &span[1], 1 << 41);
    let mut back = vec![0; LEN as usize];
    guest.memory.read_slice(&mut back, GuestAddress(at[1])).unwrap();
    assert_eq!(back, data);
}

/// Regions of one file, by several descriptors of it.
fn serves_in_pieces(file: OwnedFd, borders: &[u64]) {
    for engine in ["io-uring", "threads", "inline"] {
        let scratch = Scratch::new();
        let mut daemon = Daemon::serve(&scratch, &["--io-engine", engine]);
        let mut guest = Guest::over(file.try_clone().unwrap());
        guest.borders = borders.to_vec();
        let mut client = Client::connect(&scratch.socket());
        guest.start(&mut client, 0);
        assert_eq!(guest.run(BlkOp::Out { sector: 8 }, 3).0, 0);
        assert_eq!(guest.run(BlkOp::In { sector: 8 }, 0), (0, vec![3; 4096]));
        moves_data_across(&mut guest, [borders[1], borders[2]]);
        guest.stop(&mut client);
        for piece in borders.windows(2).rev() {
            let (at, size) = (piece[0], piece[1] - piece[0]);
            let user_addr = daemon_rig::USER_BASE + at;
            let region = MemRegion { guest_addr: at, size, user_addr, mmap_offset: at };
            client.ok(R::RemMemReg(region, None));
        }
        // What is left is the inflight region.
        assert_eq!(daemon.peer_mappings(), 1, "{engine}");
        drop(client);
        assert_eq!(daemon.stop(), 0);
    }
}

#[test]
fn memory_regions_of_one_file_at_several_offsets_are_served() {
    let file = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, GUEST).unwrap();
    serves_in_pieces(file, &[0, 0x30_0000, 0x30_5000, 0x3f_f000, GUEST]);
}

/// Pages of 2 MiB from the machine's pool, given back when dropped.
struct HugePages {
    before: u64,
}

const POOL: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// `None` if the machine has none and gives none.
    fn reserve(more: u64) -> Option<Self> {
        let read = || std::fs::read_to_string(POOL).ok()?.trim().parse::<u64>().ok();
        let before = read()?;
        std::fs::write(POOL, (before + more).to_string()).ok()?;
        let pool = Self { before };
        (read()? >= before + more).then_some(pool)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        let _ = std::fs::write(POOL, self.before.to_string());
    }
}

#[test]
fn memory_in_huge_pages_is_served_at_offsets_that_are_no_huge_pages() {
    // 2 pages of the guest, and as many again in case somebody takes some.
    let pool = HugePages::reserve(4);
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
    let file = memfd_create("guest", flags).and_then(|file| ftruncate(&file, GUEST).map(|()| file));
    let (Some(_pool), Ok(file)) = (pool, file) else {
        let _ = writeln!(
            std::io::stderr(),
            "*** SKIPPED 1 test: this machine gives no huge pages ({POOL}) ***"
        );
        return;
    };
    // The second border lies inside a huge page, the third is one's.
    serves_in_pieces(file, &[0, 0x18_1000, 0x20_0000, 0x2f_f000, GUEST]);
}

#[test]
fn memory_removal_is_answered_under_steady_io_and_takes_nothing_from_a_request() {
    const AT: u64 = 1 << 32;
    let extra = MemRegion { guest_addr: AT, size: 1 << 20, user_addr: AT, mmap_offset: 0 };
    for engine in ["io-uring", "threads"] {
        let scratch = Scratch::new();
        let options = ["--io-engine", engine, "--throttle-latency-us", "20000"];
        let mut daemon = Daemon::serve(&scratch, &options);
        let mut guest = Guest::new();
        let mut client = Client::connect(&scratch.socket());
        guest.start(&mut client, 0);
        let (mut served, mut longest) = (0u64, Duration::ZERO);
        for round in 0..20u8 {
            let file = memfd_create("plugged", MemfdFlags::CLOEXEC).unwrap();
            ftruncate(&file, extra.size).unwrap();
            let handle = client.attach(&file);
            client.ok(R::AddMemReg(extra, handle));
            let with = daemon.peer_mappings();
            // 16 requests are outstanding all the time.
            for _ in 0..16 {
                guest.submit(BlkOp::Out { sector: 8 }, round);
            }
            rustix::io::pwrite(&file, &[round + 1; 4096], 0).unwrap();
            let data = [Span { addr: AT, len: 4096 }];
            let buffers =
                RequestBuffers { header: 0x8000, data: &data, status: 0x8100, table: None };
            let op = BlkOp::Out { sector: 800 };
            let request = BlkRequest { op, token: u64::MAX };
            guest.driver.submit(&guest.memory, &request, &buffers, &Framing::CLASSIC).unwrap();
            guest.publish();
            std::thread::sleep(Duration::from_millis(2));
            let began = Instant::now();
            client.send(R::RemMemReg(extra, None), true);
            // The guest goes on as before; who waits for a quiet moment waits
            // for ever.
            let answered = std::thread::scope(|scope| {
                let waiting = scope.spawn(|| {
                    let answer = client.receive();
                    (answer, began.elapsed())
                });
                let mut written = false;
                while !waiting.is_finished() || guest.driver.pending().count() > 0 {
                    for done in guest.reap() {
                        assert_eq!(done.status.code(), 0);
                        written |= done.token == u64::MAX;
                        served += 1;
                        if !waiting.is_finished() {
                            guest.submit(BlkOp::Out { sector: 8 }, round);
                        }
                    }
                    guest.publish();
                }
                assert!(written, "the request that used the region is done");
                waiting.join().unwrap()
            });
            assert_eq!(answered.0, Some(Body::U64(0)));
            longest = longest.max(answered.1);
            assert_eq!(daemon.peer_mappings(), with - 1, "the region is unmapped");
            let image = std::fs::File::open(scratch.image()).unwrap();
            let mut sector = [0; 4096];
            image.read_exact_at(&mut sector, 800 * 512).unwrap();
            assert_eq!(sector, [round + 1; 4096], "all of it was written");
        }
        assert!(longest < Duration::from_secs(1), "a removal took {longest:?}");
        println!("{engine}: 20 removals, longest {longest:?}, {served} requests meanwhile");
        drop(client);
        assert_eq!(daemon.stop(), 0);
    }
}

#[test]
fn memory_in_as_many_regions_as_there_are_slots_is_served() {
    let scratch = Scratch::new();
    let mut daemon = Daemon::serve(&scratch, &[]);
    let mut guest = Guest::new();
    let mut client = Client::connect(&scratch.socket());
    // The slots that are left: pages of one file, last first, with gaps.
    guest.start(&mut client, 0);
    let Body::U64(slots) = client.ask(R::GetMaxMemSlots) else { panic!() };
    assert_eq!(slots, 509);
    let file = memfd_create("slots", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, slots * 4096).unwrap();
    let region = |n: u64| {
        let at = (1 << 32) + n * 8192;
        MemRegion { guest_addr: at, size: 4096, user_addr: at, mmap_offset: (slots - n) * 4096 }
    };
    let before = daemon.peer_mappings();
    for n in 1..slots {
        let handle = client.attach(&file);
        client.ok(R::AddMemReg(region(n), handle));
    }
    for n in [1, slots / 2, slots - 1] {
        rustix::io::pwrite(&file, &[n as u8; 4096], (slots - n) * 4096).unwrap();
        let data = [Span { addr: region(n).guest_addr, len: 4096 }];
        let buffers = RequestBuffers { header: 0x8000, data: &data, status: 0x8100, table: None };
        let request = BlkRequest { op: BlkOp::Out { sector: n }, token: n << 32 };
        guest.driver.submit(&guest.memory, &request, &buffers, &Framing::CLASSIC).unwrap();
        guest.publish();
        assert_eq!(guest.reap()[0].status.code(), 0);
        assert_eq!(guest.run(BlkOp::In { sector: n }, 0), (0, vec![n as u8; 4096]));
    }
    let handle = client.attach(&file);
    client.send(R::AddMemReg(region(slots), handle), true);
    assert_eq!(client.receive(), Some(Body::U64(1)), "there is no slot more");
    for n in 1..slots {
        client.ok(R::RemMemReg(region(n), None));
    }
    assert_eq!(daemon.peer_mappings(), before);
    drop(client);
    assert_eq!(daemon.stop(), 0);
}
