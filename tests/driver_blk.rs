//! Block requests of the guest driver in every framing, against a device of
//! ten lines on virtio-queue's reader and writer.

use midflight::driver::{
    BlkDriver, BlkOp, BlkRequest, BlkStatus, DeviceFault, DriverError, DriverMisuse, Framing,
    RangeSegment, RequestBuffers, RingFeatures, RingLayout, Span,
};
use std::io::{Read, Write};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

type Mem = GuestMemoryMmap<()>;

const FRAMINGS: [Framing; 8] = [
    Framing::CLASSIC,
    Framing::INDIRECT,
    Framing::JOINED,
    Framing::SPLIT_HEADER,
    Framing::SHREDDED,
    Framing { indirect_after: Some(2), ..Framing::SHREDDED },
    Framing { indirect_after: Some(1), ..Framing::JOINED },
    Framing { data_piece: 100, ..Framing::JOINED },
];

/// What the device found in a chain.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    kind: u32,
    sector: u64,
    out: Vec<u8>,
    room: usize,
}

struct Device {
    mem: Mem,
    queue: Queue,
}

impl Device {
    /// Serve one request: fill the in data with `fill`, then the status.
    fn serve(&mut self, fill: u8, status: u8) -> Seen {
        let mem = &self.mem;
        let chain = self.queue.pop_descriptor_chain(mem).expect("a request");
        let head = chain.head_index();
        let mut reader = chain.clone().reader(mem).unwrap();
        let mut header = [0; 16];
        reader.read_exact(&mut header).unwrap();
        let mut out = Vec::new();
        reader.read_to_end(&mut out).unwrap();
        let mut writer = chain.writer(mem).unwrap();
        let room = writer.available_bytes() - 1;
        writer.write_all(&vec![fill; room]).unwrap();
        writer.write_all(&[status]).unwrap();
        self.queue.add_used(mem, head, u32::try_from(room).unwrap() + 1).unwrap();
        Seen {
            kind: u32::from_le_bytes(header[0..4].try_into().unwrap()),
            sector: u64::from_le_bytes(header[8..16].try_into().unwrap()),
            out,
            room,
        }
    }
}

fn pair() -> (Mem, BlkDriver, Device) {
    let mem = Mem::from_ranges(&[(GuestAddress(0), 0x20_0000)]).unwrap();
    let layout = RingLayout::contiguous(64, 0x1000).unwrap();
    let features = RingFeatures { event_idx: true, indirect: true, packed: false };
    let driver = BlkDriver::start(&mem, layout, features).unwrap();
    let mut queue = Queue::new(64).unwrap();
    queue.set_desc_table_address(Some(layout.desc as u32), Some(0));
    queue.set_avail_ring_address(Some(layout.avail as u32), Some(0));
    queue.set_used_ring_address(Some(layout.used as u32), Some(0));
    queue.set_event_idx(true);
    queue.set_ready(true);
    let device = Device { mem: mem.clone(), queue };
    (mem, driver, device)
}

/// Header, data and status in a row, so that framings that join have
/// something to join; a second piece of data elsewhere.
const DATA: [Span; 2] = [Span { addr: 0x8010, len: 1024 }, Span { addr: 0x1_0000, len: 512 }];
const BUFFERS: RequestBuffers<'static> =
    RequestBuffers { header: 0x8000, data: &DATA, status: 0x1_0200, table: Some(0x2_0000) };

#[test]
fn driver_blk_read_and_write_mean_the_same_in_every_framing() {
    let (mem, mut driver, mut device) = pair();
    for (i, framing) in FRAMINGS.iter().enumerate() {
        let fill = 0x40 + i as u8;
        let pattern: Vec<u8> = (0..1536u32).map(|b| (b / 7) as u8 ^ fill).collect();
        mem.write_slice(&pattern[..1024], GuestAddress(0x8010)).unwrap();
        mem.write_slice(&pattern[1024..], GuestAddress(0x1_0000)).unwrap();
        let sector = 0x1_2345_6789_0000 + i as u64;
        let write = BlkRequest { op: BlkOp::Out { sector }, token: i as u64 };
        driver.submit(&mem, &write, &BUFFERS, framing).unwrap();
        driver.publish(&mem).unwrap();
        let seen = Seen { kind: 1, sector, out: pattern, room: 0 };
        assert_eq!(device.serve(fill, 0), seen, "{framing:?}");
        let done = driver.reap(&mem).unwrap().unwrap();
        assert_eq!((done.token, done.status, done.len), (i as u64, BlkStatus::Ok, 1));

        let read = BlkRequest { op: BlkOp::In { sector }, token: 1000 };
        driver.submit(&mem, &read, &BUFFERS, framing).unwrap();
        driver.publish(&mem).unwrap();
        let seen = device.serve(fill, 0);
        assert_eq!((seen.kind, seen.out.len(), seen.room), (0, 0, 1536));
        let done = driver.reap(&mem).unwrap().unwrap();
        assert_eq!((done.status, done.len), (BlkStatus::Ok, 1537));
        let mut got = [0; 1024];
        mem.read_slice(&mut got, GuestAddress(0x8010)).unwrap();
        assert_eq!(got, [fill; 1024], "{framing:?}");
        assert_eq!(driver.ring().free_descriptors(), 64);
    }
}

#[test]
fn driver_blk_ranges_flush_and_id_reach_the_device_as_the_document_says() {
    let (mem, mut driver, mut device) = pair();
    let ranges = [
        RangeSegment { sector: 5, num_sectors: 7, flags: 0 },
        RangeSegment { sector: 1 << 40, num_sectors: 9, flags: 1 },
    ];
    let mut wire = Vec::new();
    for (sector, count, flags) in [(5u64, 7u32, 0u32), (1 << 40, 9, 1)] {
        wire.extend_from_slice(&sector.to_le_bytes());
        wire.extend_from_slice(&count.to_le_bytes());
        wire.extend_from_slice(&flags.to_le_bytes());
    }
    // Segments may be cut anywhere, in memory as well as by the framing.
    let halves = [Span { addr: 0x8010, len: 10 }, Span { addr: 0x9000, len: 22 }];
    let id = [Span { addr: 0x8010, len: 20 }];
    type Case<'a> = (BlkOp<'a>, &'a [Span], u32, &'a [u8], usize);
    let cases: [Case<'_>; 4] = [
        (BlkOp::Discard(&ranges), &halves, 11, &wire, 0),
        (BlkOp::WriteZeroes(&ranges), &halves, 13, &wire, 0),
        (BlkOp::Flush, &[], 4, &[], 0),
        (BlkOp::GetId, &id, 8, &[], 20),
    ];
    for framing in &FRAMINGS {
        for (op, data, kind, out, room) in &cases {
            let buffers = RequestBuffers { data, ..BUFFERS };
            let request = BlkRequest { op: *op, token: 3 };
            driver.submit(&mem, &request, &buffers, framing).unwrap();
            driver.publish(&mem).unwrap();
            let seen = Seen { kind: *kind, sector: 0, out: out.to_vec(), room: *room };
            assert_eq!(device.serve(b'x', 0), seen, "{op:?} {framing:?}");
            assert_eq!(driver.reap(&mem).unwrap().unwrap().status, BlkStatus::Ok);
        }
    }
}

#[test]
fn driver_blk_failures_come_back_as_their_status() {
    let (mem, mut driver, mut device) = pair();
    for (code, status) in [(1, BlkStatus::IoErr), (2, BlkStatus::Unsupp)] {
        let request =
            BlkRequest { op: BlkOp::Other { kind: 99, sector: 1, writable: true }, token: 8 };
        driver.submit(&mem, &request, &BUFFERS, &Framing::CLASSIC).unwrap();
        driver.publish(&mem).unwrap();
        assert_eq!(device.serve(0, code).kind, 99);
        let done = driver.reap(&mem).unwrap().unwrap();
        assert_eq!((done.token, done.status), (8, status));
    }
}

#[test]
fn driver_blk_reports_statuses_and_lengths_that_cannot_be() {
    let read = BlkRequest { op: BlkOp::In { sector: 0 }, token: 0 };
    // Status as the device leaves it in memory, length it reports.
    let cases = [
        (None, 1537, DeviceFault::BadStatus { head: 0, status: 255 }),
        (Some(3), 1537, DeviceFault::BadStatus { head: 0, status: 3 }),
        (Some(0), 1536, DeviceFault::LenTooShort { head: 0, len: 1536, expected: 1537 }),
        (Some(1), 0, DeviceFault::LenTooShort { head: 0, len: 0, expected: 1 }),
    ];
    for (status, len, fault) in cases {
        let (mem, mut driver, mut device) = pair();
        driver.submit(&mem, &read, &BUFFERS, &Framing::CLASSIC).unwrap();
        driver.publish(&mem).unwrap();
        if let Some(byte) = status {
            mem.write_obj::<u8>(byte, GuestAddress(BUFFERS.status)).unwrap();
        }
        let head = device.queue.pop_descriptor_chain(&mem).unwrap().head_index();
        device.queue.add_used(&mem, head, len).unwrap();
        assert_eq!(driver.reap(&mem), Err(fault.into()));
        assert_eq!(driver.reap(&mem), Err(fault.into()), "the ring stays broken");
    }
}

#[test]
fn driver_blk_refuses_what_it_cannot_build() {
    let (mem, mut driver, _device) = pair();
    let flush = BlkRequest { op: BlkOp::Flush, token: 0 };
    assert_eq!(
        driver.submit(&mem, &flush, &BUFFERS, &Framing::CLASSIC),
        Err(DriverMisuse::DataLength { expected: 0, got: 1536 }.into())
    );
    let no_table = RequestBuffers { data: &[], table: None, ..BUFFERS };
    assert_eq!(
        driver.submit(&mem, &flush, &no_table, &Framing::INDIRECT),
        Err(DriverMisuse::NoTable.into())
    );
    let nowhere = RequestBuffers { header: 0x4000_0000, ..no_table };
    assert_eq!(
        driver.submit(&mem, &flush, &nowhere, &Framing::CLASSIC),
        Err(DriverError::NoMemory { addr: 0x4000_0000, len: 16 })
    );
    assert_eq!(driver.ring().free_descriptors(), 64);
}
