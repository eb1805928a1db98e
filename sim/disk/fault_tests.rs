//! What each fault makes of the disk, and that the truth stays beside it.

use super::faults::{Family, FaultPlan, TimedFault, Try};
use super::*;
use crate::choices::Component;
use crate::memory::Arena;

/// A disk of 16 sectors with these faults, and memory to read and write by.
struct Bench {
    _arena: Arena,
    mem: Mem,
    disk: Disk,
}

impl Bench {
    fn new(on: &[(u64, DiskFault)], at: &[(u64, TimedFault)]) -> Self {
        let mut arena = Arena::new();
        let id = arena.region(16 * 512);
        let mem = arena.view(&[(0, id)]);
        let stream = |component| Stream::new(1, component);
        let disk = Disk::new(stream(Component::Disk), 16, Pace::Quick, Ratio::NEVER)
            .with_faults(&FaultPlan::new(on.to_vec(), at.to_vec()), stream(Component::Power));
        Self { _arena: arena, mem, disk }
    }

    fn submit(&mut self, verb: Verb, sector: u64, sectors: u64) -> u64 {
        let len = 512 * sectors;
        let job = Job {
            id: ReqId { slot: 0, epoch: 0 },
            life: 1,
            conn: 1,
            request: 7,
            vring: 0,
            head: 0,
            verb,
            offset: 512 * sector,
            len,
            durable: false,
            segments: vec![(0, len as u32)],
        };
        self.disk.submit(0, job).key
    }

    fn perform(&mut self, verb: Verb, sector: u64, sectors: u64) -> Result<(), DiskError> {
        let key = self.submit(verb, sector, sectors);
        self.disk.finish(key, &self.mem).unwrap().1
    }

    /// Write sectors full of this byte.
    fn write(&mut self, byte: u8, sector: u64, sectors: u64) -> Result<(), DiskError> {
        let content = vec![byte; 512 * sectors as usize];
        self.mem.write_slice(&content, GuestAddress(0)).unwrap();
        self.perform(Verb::Write, sector, sectors)
    }

    fn flush(&mut self) -> Result<(), DiskError> {
        self.perform(Verb::Flush, 0, 0)
    }

    fn bytes(&self) -> [u8; 512] {
        let mut bytes = [0; 512];
        self.mem.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// The byte that a sector is full of, as a read finds it.
    fn read(&mut self, sector: u64) -> Result<u8, DiskError> {
        self.perform(Verb::Read, sector, 1)?;
        let bytes = self.bytes();
        assert_eq!(bytes, [bytes[0]; 512]);
        Ok(bytes[0])
    }

    /// The byte that a sector is full of in truth.
    fn truth(&self, sector: u64) -> u8 {
        self.disk.image().sector(sector)[0]
    }

    fn count(&self, family: Family) -> u64 {
        self.disk.fault_counts().of(family)
    }
}

const EIO: Result<(), DiskError> = Err(DiskError::Os(5));

#[test]
fn faults_latent_read_error_stays_until_the_sector_is_written_over() {
    let mut b = Bench::new(&[(1, DiskFault::ReadError { at: 2 })], &[]);
    b.write(1, 0, 8).unwrap();
    b.perform(Verb::Read, 4, 4).unwrap();
    b.write(0xee, 12, 4).unwrap();
    // The second read is the one; two of its sectors move.
    assert_eq!(b.perform(Verb::Read, 4, 4), EIO);
    assert_eq!(b.bytes(), [1; 512]);
    assert_eq!(b.perform(Verb::Read, 6, 1), EIO);
    assert_eq!((b.read(5), b.read(7)), (Ok(1), Ok(1)));
    b.write(2, 6, 1).unwrap();
    assert_eq!(b.read(6), Ok(2));
    let fails = b.disk.take_news();
    let of = Try { request: 7, vring: 0, head: 0, life: 1, conn: 1 };
    let one = Injected::Fails { of, sector: Some(6), by: Some(Family::ReadError) };
    assert_eq!(fails, [one.clone(), one]);
    assert_eq!(b.count(Family::ReadError), 1);
}

#[test]
fn faults_write_error_stays_and_leaves_old_or_new() {
    let mut b = Bench::new(&[(1, DiskFault::WriteError { at: 1 })], &[]);
    b.write(1, 0, 8).unwrap();
    assert_eq!(b.write(2, 3, 3), EIO);
    let found: Vec<u8> = (2..7).map(|s| b.read(s).unwrap()).collect();
    assert_eq!(found, [1, 2, 1, 1, 1]);
    assert_eq!(b.perform(Verb::WriteZeroes, 3, 2), EIO);
    assert_eq!((b.read(3), b.read(4)), (Ok(0), Ok(1)));
    assert_eq!(b.perform(Verb::Discard, 4, 1), EIO);
    assert_eq!(b.write(3, 5, 1), Ok(()));
    b.disk.heal();
    assert_eq!(b.write(3, 4, 1), Ok(()));
}

#[test]
fn faults_corruption_is_stable_and_beside_the_truth() {
    let mut b = Bench::new(&[(0, DiskFault::Corrupt { at: 1, bit: 8 * 100 + 3 })], &[]);
    b.write(1, 0, 4).unwrap();
    let mut wrong = [1; 512];
    wrong[100] ^= 8;
    b.perform(Verb::Read, 2, 2).unwrap();
    for _ in 0..3 {
        b.perform(Verb::Read, 3, 1).unwrap();
        assert_eq!(b.bytes(), wrong);
    }
    assert_eq!((b.read(2), b.truth(3)), (Ok(1), 1));
    let told = b.disk.take_news();
    let content = Box::new(wrong);
    assert_eq!(told, [Injected::Shows { sector: 3, content, by: Family::Corrupt }]);
    b.write(2, 3, 1).unwrap();
    assert_eq!(b.read(3), Ok(2));
    assert_eq!(b.disk.take_news(), [Injected::Heals { sector: 3 }]);
}

#[test]
fn faults_misdirected_read_shows_what_the_other_sectors_held() {
    let mut b = Bench::new(&[(0, DiskFault::MisdirectedRead { by: 14 })], &[]);
    b.write(1, 0, 2).unwrap();
    b.write(2, 2, 2).unwrap();
    assert_eq!(b.read(2), Ok(1), "sector 0, round the end of the disk");
    b.write(3, 0, 1).unwrap();
    assert_eq!((b.read(2), b.read(3), b.truth(2)), (Ok(1), Ok(2), 2));
}

#[test]
fn faults_misdirected_write_has_two_ends() {
    let mut b = Bench::new(&[(1, DiskFault::MisdirectedWrite { by: 1 })], &[]);
    b.write(1, 0, 16).unwrap();
    b.write(2, 4, 2).unwrap();
    let found: Vec<u8> = (3..8).map(|s| b.read(s).unwrap()).collect();
    assert_eq!(found, [1, 1, 2, 2, 1]);
    let truth: Vec<u8> = (3..8).map(|s| b.truth(s)).collect();
    assert_eq!(truth, [1, 2, 2, 1, 1]);
    b.write(3, 6, 1).unwrap();
    assert_eq!((b.read(4), b.read(6)), (Ok(1), Ok(3)));
    assert_eq!(b.count(Family::MisdirectedWrite), 1);
    // Not at all is no fault.
    let mut b = Bench::new(&[(0, DiskFault::MisdirectedWrite { by: 16 })], &[]);
    b.write(1, 0, 1).unwrap();
    assert_eq!((b.read(0), b.disk.has_news()), (Ok(1), false));
}

#[test]
fn faults_lost_write_is_acknowledged_and_not_seen() {
    let mut b = Bench::new(&[(1, DiskFault::LostWrite)], &[]);
    b.write(1, 4, 2).unwrap();
    assert_eq!(b.write(2, 4, 2), Ok(()));
    assert_eq!((b.read(4), b.read(5), b.truth(4)), (Ok(1), Ok(1), 2));
    b.perform(Verb::WriteZeroes, 5, 1).unwrap();
    assert_eq!((b.read(4), b.read(5)), (Ok(1), Ok(0)));
}

#[test]
fn faults_short_transfer_moves_a_part_and_says_so() {
    let mut b = Bench::new(&[(1, DiskFault::Short { sectors: 6 })], &[]);
    b.write(1, 0, 8).unwrap();
    assert_eq!(b.write(2, 0, 4), Err(DiskError::Short { expected: 2048, moved: 1024 }));
    assert_eq!([0, 1, 2, 3].map(|s| b.truth(s)), [2, 2, 1, 1]);
}

#[test]
fn faults_duplicate_completion_is_told_with_its_delay() {
    let mut b = Bench::new(&[(0, DiskFault::Duplicate { after_us: 9 })], &[]);
    b.write(1, 0, 1).unwrap();
    let told = b.disk.take_news();
    let [Injected::Again { completion, after: 9_000, .. }] = &told[..] else {
        panic!("{told:?}");
    };
    assert_eq!((completion.id.epoch, completion.result), (0, Ok(())));
}

/// Sectors that may hold the old byte after a loss of power, whatever is drawn.
fn may_be_lost(prepare: impl Fn(&mut Bench), on: &[(u64, DiskFault)]) -> Vec<u64> {
    let mut lost = Vec::new();
    for turn in 0..40 {
        let mut b = Bench::new(on, &[(0, TimedFault::PowerLoss)]);
        b.write(1, 0, 4).unwrap();
        b.flush().unwrap();
        prepare(&mut b);
        // Every turn draws on, so that each differs.
        (0..turn).for_each(|_| {
            b.disk.faults.as_mut().unwrap().stream.below("t", 2);
        });
        let seen: Vec<u8> = (0..4).map(|s| b.truth(s)).collect();
        b.disk.power_loss();
        lost.extend((0..4).filter(|s| b.truth(*s) != seen[*s as usize]));
        assert_eq!(b.disk.image().volatile().count(), 0);
    }
    lost.sort_unstable();
    lost.dedup();
    lost
}

#[test]
fn faults_power_loss_takes_any_sectors_of_the_cache_and_none_that_was_flushed() {
    let two = |b: &mut Bench| b.write(2, 1, 3).unwrap();
    assert_eq!(may_be_lost(two, &[]), [1, 2, 3]);
    let flushed = |b: &mut Bench| {
        b.write(2, 1, 2).unwrap();
        b.flush().unwrap();
        b.write(3, 3, 1).unwrap();
    };
    assert_eq!(may_be_lost(flushed, &[]), [3]);
}

#[test]
fn faults_failed_flush_leaves_the_cache_and_may_forget_it() {
    let again = |b: &mut Bench| {
        b.write(2, 1, 2).unwrap();
        assert_eq!(b.flush(), EIO);
        b.write(3, 2, 1).unwrap();
        assert_eq!(b.flush(), Ok(()));
    };
    let on = |forgets| [(1, DiskFault::FailedFlush { forgets })];
    assert_eq!(may_be_lost(again, &on(false)), Vec::<u64>::new());
    assert_eq!(may_be_lost(again, &on(true)), [1]);
    let mut b = Bench::new(&[(0, DiskFault::FailedFlush { forgets: true })], &[]);
    b.write(1, 5, 1).unwrap();
    assert_eq!(b.flush(), EIO);
    assert_eq!(b.disk.take_news()[0], Injected::Forgets { sector: 5 });
    assert_eq!(b.read(5), Ok(1), "the cache has it still");
}

#[test]
fn faults_lying_flush_is_acknowledged_and_leaves_the_cache() {
    let lied = |b: &mut Bench| {
        b.write(2, 1, 1).unwrap();
        assert_eq!(b.flush(), Ok(()));
    };
    assert_eq!(may_be_lost(lied, &[(1, DiskFault::LyingFlush)]), [1]);
    let twice = |b: &mut Bench| {
        lied(b);
        assert_eq!(b.flush(), Ok(()));
    };
    assert_eq!(may_be_lost(twice, &[(1, DiskFault::LyingFlush)]), Vec::<u64>::new());
}

#[test]
fn faults_stall_holds_everything_back_and_throttle_lets_one_at_a_time_through() {
    let windows =
        [(10, TimedFault::Stall { us: 20 }), (100, TimedFault::Throttle { us: 50, every_us: 7 })];
    let mut b = Bench::new(&[], &windows);
    let keys: Vec<u64> = (0..3).map(|_| b.submit(Verb::Read, 0, 1)).collect();
    let mut held = |us: u64, key: usize| b.disk.hold_back(1_000 * us, keys[key]);
    assert_eq!(held(9, 0), None);
    assert_eq!((held(10, 0), held(29, 1), held(30, 0)), (Some(30_000), Some(30_000), None));
    assert_eq!((held(101, 0), held(101, 1), held(102, 2)), (None, Some(108_000), Some(115_000)));
    // Whoever has waited has its turn.
    assert_eq!((held(108, 1), held(115, 2)), (None, None));
    assert_eq!((b.count(Family::Stall), b.count(Family::Throttle)), (1, 1));
}

#[test]
fn faults_switched_off_leave_every_other_decision_of_the_disk_alone() {
    let run = |on: &[(u64, DiskFault)]| {
        let mut b = Bench::new(on, &[]);
        for i in 0..20 {
            let _ = b.write(1, i % 8, 4);
            let _ = b.perform(Verb::Discard, i % 8, 2);
            let _ = b.perform(Verb::Read, i % 8, 4);
            let _ = b.flush();
        }
        (b.disk.fault_counts().sum(), b.disk.stream().hash())
    };
    let all = [
        (2, DiskFault::ReadError { at: 1 }),
        (2, DiskFault::WriteError { at: 3 }),
        (3, DiskFault::Corrupt { at: 1, bit: 9 }),
        (4, DiskFault::MisdirectedRead { by: 3 }),
        (4, DiskFault::MisdirectedWrite { by: 3 }),
        (5, DiskFault::LostWrite),
        (20, DiskFault::Short { sectors: 1 }),
        (21, DiskFault::Duplicate { after_us: 4 }),
        (5, DiskFault::FailedFlush { forgets: true }),
        (6, DiskFault::LyingFlush),
    ];
    let ((struck, with), (none, without)) = (run(&all), run(&[]));
    assert!(struck >= 7, "{struck}");
    assert_eq!((none, with), (0, without));
}
