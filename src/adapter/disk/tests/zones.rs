//! Zones over every engine, with a file that outlives the process.

use super::*;
use crate::blk::zones::{ZoneFault, ZonedConfig};
use crate::blk::{SECTOR_SIZE, ZoneAction};

const ZONE: u64 = 32 * BLOCK;
const CONFIG: ZonedConfig = ZonedConfig {
    zone_sectors: 32,
    conventional: 1,
    max_open: 2,
    max_active: 2,
    max_append_sectors: 32,
};

/// One daemon after the other on the same image.
struct Zoned {
    rig: Rig,
    file: PathBuf,
    choice: EngineChoice,
    throttle: Option<u64>,
}

impl Drop for Zoned {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

fn open(path: &Path, file: &Path, choice: EngineChoice, throttle: Option<u64>) -> Disk {
    let options = ImageOptions { read_only: false, direct: false, logical_block_size: None };
    let mut image = Image::open(path, options).unwrap();
    let file = ZoneFile::open(file, CONFIG, &image).unwrap();
    image.set_companion(file.fd().try_clone_to_owned().unwrap());
    let (mut disk, _) = Disk::new(Arc::new(image), choice, throttle, Some(file)).unwrap();
    disk.open(Instant::ZERO).unwrap();
    disk
}

impl Zoned {
    fn all(throttle: Option<u64>) -> Vec<Self> {
        [EngineChoice::Uring, EngineChoice::Threads, EngineChoice::Inline]
            .into_iter()
            .map(|choice| {
                let rig = Rig::new(&std::env::temp_dir(), choice, false, None).unwrap();
                let file = rig.path.with_extension("zones");
                let mut it = Self { rig, file, choice, throttle };
                it.restart();
                it
            })
            .collect()
    }

    /// What is in flight is lost to the new daemon; what is in the file is not.
    fn restart(&mut self) {
        self.rig.disk = open(&self.rig.path, &self.file, self.choice, self.throttle);
        for fd in self.rig.disk.fds() {
            self.rig.poller.add(fd, Source::Disk).unwrap();
        }
    }

    fn start(&mut self, op: DiskOp, segments: &[Segment], again: bool, order: u64) -> ReqId {
        self.rig.epoch += 1;
        let id = ReqId { slot: 0, epoch: self.rig.epoch };
        let order = Some(order);
        let request = DiskRequest {
            id,
            own: false,
            vring: 0,
            head: 0,
            op,
            segments,
            ranges: &[],
            again,
            order,
        };
        self.rig.disk.start(Instant::ZERO, &request, &mut self.rig.memory);
        id
    }

    fn ask(&mut self, op: DiskOp, segments: &[Segment], again: bool) -> Result<(), DiskError> {
        let id = self.start(op, segments, again, 7);
        let done = self.rig.finish();
        assert_eq!(done.iter().map(|c| c.id).collect::<Vec<_>>(), [id]);
        done[0].result
    }

    fn act(&mut self, action: ZoneAction, zone: u64) -> Result<(), DiskError> {
        self.ask(DiskOp::Zone { action, offset: zone * ZONE }, &[], false)
    }

    /// State and write pointer, in bytes from the start of the zone.
    fn zone(&mut self, zone: u64) -> (u8, u64) {
        let room = [Segment { addr: 0, len: 100 }, Segment { addr: 4096, len: 28 }];
        assert_eq!(self.ask(DiskOp::ZoneReport { offset: zone * ZONE }, &room, false), Ok(()));
        let bytes = self.rig.get(&room);
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        assert_eq!((number(0), number(64)), (1, ZONE / SECTOR_SIZE));
        assert_eq!(number(72) * SECTOR_SIZE, zone * ZONE);
        (bytes[89], number(80) * SECTOR_SIZE - zone * ZONE)
    }
}

fn write(offset: u64) -> DiskOp {
    DiskOp::Write { offset, durable: false }
}

fn piece(len: u64) -> [Segment; 1] {
    [Segment { addr: 8192, len: len as u32 }]
}

fn fault(fault: ZoneFault) -> Result<(), DiskError> {
    Err(DiskError::Zone(fault))
}

#[test]
fn zones_are_written_in_sequence_and_survive_the_daemon() {
    for mut z in Zoned::all(None) {
        let data: Vec<u8> = (0..4096u32).map(|i| i as u8 | 1).collect();
        z.rig.put(&piece(4096), &data);
        assert_eq!(z.ask(write(ZONE), &piece(4096), false), Ok(()));
        assert_eq!(z.ask(write(ZONE), &piece(512), false), fault(ZoneFault::UnalignedWritePointer));
        assert_eq!(z.ask(write(512), &piece(512), false), Ok(()), "conventional");
        assert_eq!(z.zone(1), (2, 4096));
        z.restart();
        assert_eq!(z.zone(1), (2, 4096));
        assert_eq!(z.ask(write(ZONE), &piece(4096), true), Ok(()), "it comes again");
        assert_eq!(z.ask(write(ZONE + 4096), &piece(4096), true), Ok(()), "it got nowhere");
        assert_eq!(z.zone(1), (2, 8192));
        assert_eq!(z.act(ZoneAction::Finish, 1), Ok(()));
        z.restart();
        assert_eq!(z.zone(1), (14, ZONE));
        assert_eq!(z.ask(write(ZONE + 8192), &piece(512), false), fault(ZoneFault::InvalidCommand));
        let read = DiskOp::Read { offset: 2 * ZONE - 512 };
        assert_eq!(z.ask(read, &piece(1024), false), fault(ZoneFault::InvalidCommand));
        assert_eq!(std::fs::read(&z.rig.path).unwrap()[ZONE as usize..][..4096], data);
        assert_eq!(z.act(ZoneAction::Reset, 1), Ok(()));
        assert_eq!(z.zone(1), (1, 0));
        assert!(
            std::fs::read(&z.rig.path).unwrap()[ZONE as usize..][..8192].iter().all(|b| *b == 0)
        );
        z.restart();
        assert_eq!(z.zone(1), (1, 0));
        assert_eq!(z.act(ZoneAction::Open, 0), fault(ZoneFault::InvalidCommand));
        for zone in [1, 2] {
            assert_eq!(z.act(ZoneAction::Open, zone), Ok(()));
        }
        assert_eq!(z.act(ZoneAction::Open, 3), fault(ZoneFault::ActiveResource));
        assert_eq!(z.act(ZoneAction::Close, 2), Ok(()));
        assert_eq!(z.zone(2), (1, 0));
        assert_eq!(z.ask(write(3 * ZONE), &piece(512), false), Ok(()));
        assert_eq!(z.act(ZoneAction::ResetAll, 0), Ok(()));
        assert_eq!((z.zone(1), z.zone(3)), ((1, 0), (1, 0)));
    }
}

#[test]
fn zones_an_append_says_where_it_went_and_says_the_same_after_a_restart() {
    for mut z in Zoned::all(None) {
        let segments = [
            Segment { addr: 8192, len: 1024 },
            // The sector that it went to, in two pieces.
            Segment { addr: 300, len: 3 },
            Segment { addr: 400, len: 5 },
        ];
        let op = DiskOp::ZoneAppend { offset: 2 * ZONE, len: 1024, durable: true };
        assert_eq!(z.ask(write(2 * ZONE), &piece(512), false), Ok(()));
        let (at, expected) = (segments[1..].to_vec(), (2 * ZONE + 512) / SECTOR_SIZE);
        z.rig.put(&segments[..1], &[0x77; 1024]);
        for again in [false, true] {
            z.rig.put(&at, &[0xff; 8]);
            assert_eq!(z.ask(op, &segments, again), Ok(()));
            assert_eq!(z.rig.get(&at), expected.to_le_bytes(), "again: {again}");
            assert_eq!(z.zone(2), (2, 1536), "again: {again}");
            z.restart();
        }
        // The head has begun anew: another append.
        z.rig.disk.vring_runs(0, 0);
        assert_eq!(z.ask(op, &segments, true), Ok(()));
        assert_eq!(z.rig.get(&at), (expected + 2).to_le_bytes());
        let image = std::fs::read(&z.rig.path).unwrap();
        assert_eq!(image[2 * ZONE as usize + 512..][..2048], [0x77; 2048]);
    }
}

#[test]
fn zones_a_reset_waits_for_what_is_under_way_and_holds_up_what_comes_later() {
    for throttle in [None, Some(3000)] {
        for mut z in Zoned::all(throttle) {
            z.rig.put(&piece(4096), &[0x11; 4096]);
            let mut last = None;
            for round in 0..20 {
                let mut ids = Vec::new();
                for i in 0..4 {
                    ids.push(z.start(write(ZONE + i * 4096), &piece(4096), false, 0));
                }
                let reset = DiskOp::Zone { action: ZoneAction::Reset, offset: ZONE };
                let all = DiskOp::Zone { action: ZoneAction::ResetAll, offset: 0 };
                ids.push(z.start(if round % 3 == 0 { all } else { reset }, &[], false, 0));
                ids.push(z.start(write(2 * ZONE), &piece(512), false, 0));
                ids.push(z.start(write(ZONE), &piece(512), false, 0));
                let other = DiskOp::Zone { action: ZoneAction::Reset, offset: 2 * ZONE };
                ids.push(z.start(other, &[], false, 0));
                let done = z.rig.finish();
                assert_eq!(done.len(), ids.len());
                assert!(done.iter().all(|c| c.result.is_ok()), "{done:?}");
                assert_eq!((z.zone(1), z.zone(2)), ((2, 512), (1, 0)));
                let image = std::fs::read(&z.rig.path).unwrap();
                let zone = &image[ZONE as usize..2 * ZONE as usize];
                assert!(zone[..512].iter().all(|b| *b == 0x11), "round {round}");
                assert!(zone[512..].iter().all(|b| *b == 0), "round {round}");
                assert_eq!(z.act(ZoneAction::Reset, 1), Ok(()));
                last = Some(image);
            }
            assert!(last.is_some());
        }
    }
}

#[test]
fn zones_left_half_cleared_are_cleared_by_the_next_daemon() {
    for mut z in Zoned::all(None) {
        z.rig.put(&piece(4096), &[0x11; 4096]);
        assert_eq!(z.ask(write(ZONE), &piece(4096), false), Ok(()));
        // As if the daemon had died between the record and the zeroing.
        let record = {
            use crate::blk::zones::{Zone, ZoneState, record};
            let it = Zone { state: ZoneState::Empty, wp: 32, clearing: true };
            record::zone(1, &it)
        };
        let file = File::options().write(true).open(&z.file).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &record, 4096 + 16).unwrap();
        z.restart();
        let image = std::fs::read(&z.rig.path).unwrap();
        assert!(image[ZONE as usize..].iter().all(|b| *b == 0));
        assert_eq!(z.zone(1), (1, 0));
    }
}

#[test]
fn zones_files_of_other_disks_and_images_without_file_are_refused() {
    let z = Zoned::all(None).remove(0);
    let options = ImageOptions { read_only: false, direct: false, logical_block_size: None };
    let image = Image::open(&z.rig.path, options).unwrap();
    let says = |config, path: &Path| ZoneFile::open(path, config, &image).unwrap_err().0;
    let other = ZonedConfig { zone_sectors: 64, ..CONFIG };
    let why = says(other, &z.file);
    assert!(why.ends_with("expected 64, 1 and 256"), "{why}");
    std::fs::write(&z.rig.path, [1; DISK as usize]).unwrap();
    let why = says(CONFIG, &z.file.with_extension("none"));
    assert!(why.contains("an image without data"), "{why}");
    std::fs::write(&z.file, [0; 8192]).unwrap();
    let why = says(CONFIG, &z.file);
    assert!(why.ends_with("it does not begin as a file of zones does"), "{why}");
}
