//! Every engine against a model that is a vector of bytes.

use super::*;
use crate::adapter::handles::Handles;
use crate::adapter::image::ImageOptions;
use crate::adapter::poller::{Poller, Source};
use crate::blk::{ByteRange, DiskOp, ReqId};
use crate::memory::{MapRegion, Segment};
use crate::time::Duration;
use crate::wire::MemRegion;
use proptest::prelude::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use vm_memory::{Bytes as _, GuestAddress};

mod zones;

const BLOCK: u64 = 512;
const DISK: u64 = 256 * BLOCK;
const GUEST: u64 = 1 << 20;

/// A disk with memory for it, as the loop has them.
struct Rig {
    disk: Disk,
    memory: Memory,
    guest: OwnedFd,
    poller: Poller,
    path: PathBuf,
    epoch: u64,
}

impl Drop for Rig {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Rig {
    fn new(dir: &Path, choice: EngineChoice, direct: bool, throttle: Option<u64>) -> Option<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.join(format!("midflight-disk-{}-{count}", std::process::id()));
        File::create(&path).unwrap().set_len(DISK).unwrap();
        let options = ImageOptions { read_only: false, direct, logical_block_size: None };
        let image = match Image::open(&path, options) {
            // The block size of this directory's disk is not 512 bytes, or
            // O_DIRECT does not work there.
            Err(_) if direct => None,
            other => Some(Arc::new(other.unwrap())),
        };
        let image = image.filter(|i| u64::from(i.block_size()) == BLOCK);
        let Some(image) = image else {
            std::fs::remove_file(&path).unwrap();
            return None;
        };
        let (mut disk, line) = Disk::new(image, choice, throttle, None).unwrap();
        disk.open(Instant::ZERO).unwrap();
        assert_eq!(line, None);
        let guest = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&guest, GUEST).unwrap();
        let mut handles = Handles::default();
        let handle = handles.insert(guest.try_clone().unwrap());
        let half = GUEST / 2;
        let part = |guest_addr, mmap_offset| MapRegion {
            region: MemRegion { guest_addr, size: half, user_addr: guest_addr, mmap_offset },
            handle,
        };
        let mut memory = Memory::default();
        // Neighbours for the guest, not in the file.
        memory.map(&[part(0, half), part(half, 0)], &handles).unwrap();
        let poller = Poller::new().unwrap();
        for fd in disk.fds() {
            poller.add(fd, Source::Disk).unwrap();
        }
        Some(Self { disk, memory, guest, poller, path, epoch: 0 })
    }

    fn start(&mut self, now: Instant, op: DiskOp, segments: &[Segment]) -> ReqId {
        self.start_on(now, op, segments, &[])
    }

    fn start_on(
        &mut self,
        now: Instant,
        op: DiskOp,
        segments: &[Segment],
        ranges: &[ByteRange],
    ) -> ReqId {
        self.epoch += 1;
        let id = ReqId { slot: 7, epoch: self.epoch };
        let request = DiskRequest {
            id,
            own: false,
            vring: 0,
            head: 0,
            op,
            segments,
            ranges,
            again: false,
            order: None,
        };
        self.disk.start(now, &request, &mut self.memory);
        id
    }

    /// Sleep as the loop does until everything is done.
    fn finish(&mut self) -> Vec<Completion> {
        let start = std::time::Instant::now();
        let now = || Instant::from_nanos(start.elapsed().as_nanos() as u64);
        let mut done = Vec::new();
        loop {
            self.disk.pump(now(), &mut self.memory, &mut done).unwrap();
            if self.disk.inflight() == 0 {
                return done;
            }
            let patience = now() + Duration::from_secs(10);
            let until = self.disk.deadline().unwrap_or(patience);
            self.poller.wait(now(), Some(until.min(patience))).unwrap();
            let woken = std::iter::from_fn(|| self.poller.next()).count() > 0;
            assert!(woken || now() < patience, "a completion was not signalled");
        }
    }

    fn run(&mut self, op: DiskOp, segments: &[Segment]) -> Result<(), DiskError> {
        self.run_on(op, segments, &[])
    }

    fn run_on(
        &mut self,
        op: DiskOp,
        segments: &[Segment],
        ranges: &[ByteRange],
    ) -> Result<(), DiskError> {
        let id = self.start_on(Instant::ZERO, op, segments, ranges);
        let done = self.finish();
        assert_eq!(done.len(), 1);
        assert_eq!(done[0].id, id);
        done[0].result
    }

    fn put(&self, segments: &[Segment], mut data: &[u8]) {
        for s in segments {
            let (now, later) = data.split_at(s.len as usize);
            self.memory.current().write_slice(now, GuestAddress(s.addr)).unwrap();
            data = later;
        }
    }

    fn get(&self, segments: &[Segment]) -> Vec<u8> {
        let mut data = Vec::new();
        for s in segments {
            let mut piece = vec![0; s.len as usize];
            self.memory.current().read_slice(&mut piece, GuestAddress(s.addr)).unwrap();
            data.extend(piece);
        }
        data
    }
}

/// Every engine in every place where it can run.
fn rigs() -> Vec<(&'static str, Rig)> {
    let mut rigs = rigs_with(None);
    let shm = PathBuf::from("/dev/shm");
    let shm = if shm.is_dir() { shm } else { std::env::temp_dir() };
    rigs.extend(Rig::new(&shm, EngineChoice::Auto, false, Some(50)).map(|rig| ("throttled", rig)));
    rigs
}

fn rigs_with(throttle: Option<u64>) -> Vec<(&'static str, Rig)> {
    let disk = std::env::temp_dir();
    let shm = PathBuf::from("/dev/shm");
    let shm = if shm.is_dir() { shm } else { disk.clone() };
    [
        ("io-uring", Rig::new(&disk, EngineChoice::Uring, false, throttle)),
        ("io-uring direct", Rig::new(&disk, EngineChoice::Uring, true, throttle)),
        ("io-uring in memory", Rig::new(&shm, EngineChoice::Uring, false, throttle)),
        ("threads", Rig::new(&disk, EngineChoice::Threads, false, throttle)),
        ("threads direct", Rig::new(&disk, EngineChoice::Threads, true, throttle)),
        ("inline", Rig::new(&shm, EngineChoice::Inline, false, throttle)),
    ]
    .into_iter()
    .filter_map(|(name, rig)| Some((name, rig?)))
    .collect()
}

#[derive(Clone, Debug)]
struct Step {
    op: DiskOp,
    /// Lengths of the pieces add up to the length of a transfer.
    segments: Vec<Segment>,
    ranges: Vec<ByteRange>,
    fill: u8,
}

fn place() -> impl Strategy<Value = (u64, u64)> {
    (0..DISK / BLOCK).prop_flat_map(|first| {
        (Just(first * BLOCK), (1..=(DISK / BLOCK - first).min(40)).prop_map(|n| n * BLOCK))
    })
}

/// Cut `len` bytes into pieces at places of little alignment, some of them
/// across the border of the two memory regions.
fn pieces(len: u64) -> impl Strategy<Value = Vec<Segment>> {
    let cuts = prop::collection::vec(1..len, 0..4);
    let align = prop::sample::select(vec![1u64, 4, 512, 4096]);
    (cuts, align, 0..8u64).prop_map(move |(mut cuts, align, start)| {
        cuts.push(0);
        cuts.push(len);
        cuts.sort_unstable();
        cuts.dedup();
        let mut addr = GUEST / 2 - 6 * 4096 + start * align;
        let mut segments = Vec::new();
        for pair in cuts.windows(2) {
            let len = pair[1] - pair[0];
            segments.push(Segment { addr, len: len as u32 });
            addr = (addr + len).next_multiple_of(align) + 4096;
        }
        segments
    })
}

fn step() -> impl Strategy<Value = Step> {
    let transfer = |write: bool| {
        (place(), any::<bool>(), any::<u8>()).prop_flat_map(
            move |((offset, len), durable, fill)| {
                let op = match write {
                    true => DiskOp::Write { offset, durable },
                    false => DiskOp::Read { offset },
                };
                pieces(len).prop_map(move |segments| Step {
                    op,
                    segments,
                    ranges: Vec::new(),
                    fill,
                })
            },
        )
    };
    let plain = |op, ranges| Step { op, segments: Vec::new(), ranges, fill: 0 };
    let range = (place(), any::<bool>()).prop_map(|((offset, len), unmap)| ByteRange {
        offset,
        len,
        unmap,
    });
    let ranged = prop_oneof![
        any::<bool>().prop_map(|durable| DiskOp::Discard { durable }),
        any::<bool>().prop_map(|durable| DiskOp::WriteZeroes { durable }),
        Just(DiskOp::SecureErase),
    ];
    prop_oneof![
        3 => transfer(true),
        3 => transfer(false),
        1 => Just(plain(DiskOp::Flush, Vec::new())),
        3 => (ranged, prop::collection::vec(range, 1..6))
            .prop_map(move |(op, ranges)| plain(op, ranges)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn disk_engines_all_do_what_a_vector_of_bytes_does(
        steps in prop::collection::vec(step(), 1..12)
    ) {
        for (name, mut rig) in rigs() {
            let mut model = vec![0u8; DISK as usize];
            for Step { op, segments, ranges, fill } in &steps {
                let len: u64 = segments.iter().map(|s| u64::from(s.len)).sum();
                let data: Vec<u8> = (0..len).map(|i| fill.wrapping_add(i as u8)).collect();
                if matches!(op, DiskOp::Write { .. }) {
                    rig.put(segments, &data);
                }
                let result = rig.run_on(*op, segments, ranges);
                prop_assert_eq!(result, Ok(()), "{}: {:?}", name, op);
                match *op {
                    DiskOp::Read { offset } => {
                        let want = &model[offset as usize..(offset + len) as usize];
                        prop_assert_eq!(&rig.get(segments)[..], want, "{}: {:?}", name, op);
                    }
                    DiskOp::Write { offset, .. } => {
                        model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
                    }
                    // A hole in a file reads as zeroes.
                    _ => {
                        for ByteRange { offset, len, .. } in ranges {
                            model[*offset as usize..][..*len as usize].fill(0);
                        }
                    }
                }
            }
            prop_assert_eq!(&std::fs::read(&rig.path).unwrap(), &model, "{}", name);
        }
    }
}

#[test]
fn disk_many_requests_at_once_all_come_back_with_their_own_data() {
    for (name, mut rig) in rigs() {
        let content: Vec<u8> = (0..DISK).map(|i| (i / BLOCK) as u8).collect();
        std::fs::write(&rig.path, &content).unwrap();
        // More than a submission ring holds.
        let count = 900;
        let ids: Vec<ReqId> = (0..count)
            .map(|i| {
                let segment = Segment { addr: i * BLOCK, len: BLOCK as u32 };
                let offset = i % (DISK / BLOCK) * BLOCK;
                rig.start(Instant::ZERO, DiskOp::Read { offset }, &[segment])
            })
            .collect();
        assert_eq!(rig.disk.inflight(), count as usize);
        let mut done = rig.finish();
        done.sort_by_key(|c| c.id);
        assert_eq!(done.iter().map(|c| c.id).collect::<Vec<_>>(), ids, "{name}");
        assert!(done.iter().all(|c| c.result.is_ok()), "{name}");
        for i in 0..count {
            let got = rig.get(&[Segment { addr: i * BLOCK, len: BLOCK as u32 }]);
            assert_eq!(got, vec![(i % (DISK / BLOCK)) as u8; BLOCK as usize], "{name}");
        }
        assert_eq!(rig.memory.tables(), 1);
    }
}

#[test]
fn disk_truncated_after_start_is_an_error_and_not_zeroes() {
    for (name, mut rig) in rigs() {
        File::options().write(true).open(&rig.path).unwrap().set_len(4 * BLOCK).unwrap();
        let segments = [Segment { addr: 0, len: 4096 }];
        let result = rig.run(DiskOp::Read { offset: 0 }, &segments);
        assert_eq!(result, Err(DiskError::Short { expected: 4096, moved: 2048 }), "{name}");
        let result = rig.run(DiskOp::Read { offset: 8192 }, &segments);
        assert_eq!(result, Err(DiskError::Short { expected: 4096, moved: 0 }), "{name}");
    }
}

#[test]
fn disk_guest_memory_truncated_by_the_peer_is_efault() {
    crate::adapter::sigbus::install().unwrap();
    for (name, mut rig) in rigs() {
        ftruncate(&rig.guest, 0).unwrap();
        for op in [DiskOp::Read { offset: 0 }, DiskOp::Write { offset: 0, durable: false }] {
            let result = rig.run(op, &[Segment { addr: 8192, len: 4096 }]);
            assert_eq!(result, Err(DiskError::Os(libc::EFAULT)), "{name}: {op:?}");
        }
    }
}

#[test]
fn disk_segment_outside_guest_memory_is_efault() {
    for (name, mut rig) in rigs() {
        let segments = [Segment { addr: GUEST - 512, len: 1024 }];
        let result = rig.run(DiskOp::Read { offset: 0 }, &segments);
        assert_eq!(result, Err(DiskError::Os(libc::EFAULT)), "{name}");
    }
}

#[test]
fn disk_throttle_spreads_completions_out_of_order() {
    let mut rig = Rig::new(&std::env::temp_dir(), EngineChoice::Auto, false, Some(5000)).unwrap();
    let ids: Vec<ReqId> = (0..32)
        .map(|i| {
            let segment = Segment { addr: i * BLOCK, len: BLOCK as u32 };
            rig.start(Instant::ZERO, DiskOp::Read { offset: i * BLOCK }, &[segment])
        })
        .collect();
    let start = std::time::Instant::now();
    let order: Vec<ReqId> = rig.finish().iter().map(|c| c.id).collect();
    assert!(start.elapsed() >= Duration::from_micros(5000 * 6 / 10));
    assert_ne!(order, ids);
    assert_eq!(order.len(), ids.len());
}

/// A completion may lead to the next request, after the loop has pumped.
#[test]
fn disk_request_started_behind_a_pump_is_not_slept_over() {
    for (name, mut rig) in rigs() {
        rig.start(Instant::ZERO, DiskOp::Flush, &[]);
        assert_eq!(rig.finish().len(), 1, "{name}");
        assert_eq!(rig.disk.deadline(), None, "{name}: nothing to do");
        rig.start(Instant::ZERO, DiskOp::Flush, &[]);
        // Slow disks may let a request begin later.
        assert!(rig.disk.deadline().is_some(), "{name}: something to do");
        assert_eq!(rig.finish().len(), 1, "{name}");
    }
}

#[test]
fn disk_dropped_with_requests_in_flight_waits_for_them() {
    for (_, mut rig) in rigs() {
        for i in 0..64 {
            let segment = Segment { addr: i * 4096, len: 4096 };
            rig.start(Instant::ZERO, DiskOp::Read { offset: i % 8 * 4096 }, &[segment]);
        }
        let mut done = Vec::new();
        rig.disk.pump(Instant::ZERO, &mut rig.memory, &mut done).unwrap();
        // The fields of the rig are dropped in the order of the event loop's.
        drop(rig);
    }
}

/// Whether `path` has bytes that are allocated, from `offset` on.
fn is_allocated(path: &Path, offset: u64) -> bool {
    let file = File::open(path).unwrap();
    rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(offset)).is_ok()
}

#[test]
fn disk_discard_gives_blocks_back() {
    for (name, mut rig) in rigs() {
        std::fs::write(&rig.path, vec![1; DISK as usize]).unwrap();
        let op = DiskOp::Discard { durable: false };
        let half = |offset| ByteRange { offset, len: DISK / 2, unmap: false };
        assert_eq!(rig.run_on(op, &[], &[half(DISK / 2), half(0)]), Ok(()), "{name}");
        assert!(!is_allocated(&rig.path, 0), "{name}");
    }
}

#[test]
fn disk_erased_ranges_are_written_over_and_stay_allocated() {
    for (name, mut rig) in rigs() {
        std::fs::write(&rig.path, vec![1; DISK as usize]).unwrap();
        let all = ByteRange { offset: 0, len: DISK, unmap: false };
        assert_eq!(rig.run_on(DiskOp::SecureErase, &[], &[all]), Ok(()), "{name}");
        assert!(is_allocated(&rig.path, 0), "{name}");
        assert_eq!(std::fs::read(&rig.path).unwrap(), vec![0; DISK as usize], "{name}");
    }
}

#[test]
fn disk_cancelled_requests_all_come_back_and_what_was_cancelled_can_be_done_again() {
    for throttle in [None, Some(20_000)] {
        for (name, mut rig) in rigs_with(throttle) {
            let content: Vec<u8> = (0..DISK).map(|i| (i / BLOCK) as u8).collect();
            std::fs::write(&rig.path, &content).unwrap();
            let block = |i: u64| Segment { addr: i * BLOCK, len: BLOCK as u32 };
            let ids: Vec<ReqId> = (0..200u64)
                .map(|i| rig.start(Instant::ZERO, DiskOp::Read { offset: i * BLOCK }, &[block(i)]))
                .collect();
            let mut done = Vec::new();
            rig.disk.pump(Instant::ZERO, &mut rig.memory, &mut done).unwrap();
            let early = done.len();
            for id in ids.iter().filter(|id| !done.iter().any(|c| c.id == **id)) {
                rig.disk.cancel(*id);
            }
            done.extend(rig.finish());
            if throttle.is_some() {
                assert_eq!(early, 0, "{name}");
            }
            done.sort_by_key(|c| c.id);
            assert_eq!(done.iter().map(|c| c.id).collect::<Vec<_>>(), ids, "{name}");
            let (mut finished, mut cancelled) = (0, Vec::new());
            for (i, completion) in (0..).zip(&done) {
                match completion.result {
                    Ok(()) => {
                        assert_eq!(rig.get(&[block(i)]), vec![i as u8; BLOCK as usize], "{name}");
                        finished += 1;
                    }
                    Err(DiskError::Cancelled) => cancelled.push(i),
                    Err(error) => panic!("{name}: {error}"),
                }
            }
            // Half of them no engine has seen, and most of a queue neither.
            if throttle.is_some() {
                let count = cancelled.len();
                assert!(count >= 60, "{name}: {count} cancelled, {finished} finished");
            }
            for i in cancelled {
                assert_eq!(rig.run(DiskOp::Read { offset: i * BLOCK }, &[block(i)]), Ok(()));
                assert_eq!(rig.get(&[block(i)]), vec![i as u8; BLOCK as usize], "{name}");
            }
            assert_eq!((rig.disk.inflight(), rig.memory.tables()), (0, 1), "{name}");
        }
    }
}

#[test]
fn disk_keeps_requests_back_while_the_store_is_not_ours() {
    for (name, mut rig) in rigs() {
        rig.disk.close();
        let segment = Segment { addr: 0, len: BLOCK as u32 };
        let ids: Vec<ReqId> = (0..4)
            .map(|i| rig.start(Instant::ZERO, DiskOp::Read { offset: i * BLOCK }, &[segment]))
            .collect();
        let mut done = Vec::new();
        let mut pump = |rig: &mut Rig| {
            rig.disk.pump(Instant::ZERO, &mut rig.memory, &mut done).unwrap();
            std::mem::take(&mut done)
        };
        assert_eq!((pump(&mut rig), rig.disk.inflight()), (vec![], 4), "{name}");
        // Cancelled without waiting for anybody.
        rig.disk.cancel(ids[1]);
        let cancelled = |id| Completion { id, result: Err(DiskError::Cancelled) };
        assert_eq!(pump(&mut rig), [cancelled(ids[1])], "{name}");
        rig.disk.give_up();
        assert_eq!(pump(&mut rig), [ids[0], ids[2], ids[3]].map(cancelled), "{name}");
        let id = rig.start(Instant::ZERO, DiskOp::Read { offset: 0 }, &[segment]);
        rig.disk.open(Instant::ZERO).unwrap();
        assert_eq!(rig.finish(), [Completion { id, result: Ok(()) }], "{name}");
    }
}
