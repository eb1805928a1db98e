//! Migration streams: captures of real QEMU, a small one made by hand, and
//! both spoilt in every way.

mod capture;

use midflight::inflight::InflightFault;
use midflight::migration::{
    BlkDevice, Contradiction, InflightSubsection, Live, Page, SectionKind, Stream, StreamFault,
    Takeover, What, blk_devices, packed_takeover,
};
use midflight::vring::packed::Positions;
use proptest::prelude::*;

const CAPTURES: [&str; 5] = [
    "linux-in-flight.stream",
    "two-disks.stream",
    "never-started.stream",
    "no-region.stream",
    "packed-in-flight.stream",
];

/// Judge every ring of every disk, as far as the stream tells.
fn judge(bytes: &[u8]) -> Result<Vec<Result<Takeover, InflightFault>>, StreamFault> {
    let stream = Stream::parse(bytes)?;
    let devices = blk_devices(&stream)?;
    let ram = stream.guest_ram(devices.iter().flat_map(BlkDevice::indexes).collect::<Vec<_>>());
    let mut all = Vec::new();
    for device in &devices {
        let _ = device.contradiction();
        for vring in 0..device.queues().unwrap_or(0) {
            let (used, avail) = device.ring(&ram, vring);
            all.extend(device.takeover(vring, used.unwrap_or(0), avail));
            all.extend(device.packed_takeover(vring));
        }
    }
    Ok(all)
}

fn heads(takeover: &Takeover) -> Vec<(u16, u64)> {
    takeover.resubmit.iter().map(|l| (l.head, l.counter)).collect()
}

#[test]
fn migration_capture_of_a_busy_guest_says_what_was_in_flight() {
    let bytes = capture::load("linux-in-flight.stream");
    let stream = Stream::parse(&bytes).unwrap();
    assert_eq!(stream.machine, "pc-q35-11.1");
    let names: Vec<&str> = stream.sections.iter().map(|s| &s.name[..]).collect();
    assert_eq!(names, ["ram", "0000:00:01.0:00.0/vhost-user-blk"]);
    assert_eq!((stream.sections[0].kind, stream.sections[0].parts), (SectionKind::Parts, 3));
    let [device] = &blk_devices(&stream).unwrap()[..] else { panic!() };
    let state = device.state.as_ref().unwrap();
    assert_eq!((state.status, state.features), (0x0f, 0x1_3000_7e44));
    assert_eq!((state.started, state.packed()), (Some(true), false));
    // Capacity in sectors, at the start of the configuration space.
    assert_eq!(state.config[..8], 32768u64.to_le_bytes());
    assert_eq!(device.inflight.unwrap().queue_size, 16);
    let queue = state.queues[1];
    assert_eq!((queue.size, queue.desc, queue.last_avail_idx), (16, 0x5bf_b000, 343));
    assert_eq!((queue.avail, queue.used), (Some(0x5bf_b100), Some(0x5bf_b140)));

    let judged = judge(&bytes).unwrap();
    let [Ok(first), Ok(second)] = &judged[..] else { panic!("{judged:?}") };
    // Requests overtake each other, and the order is that of fetching.
    let order = [(7, 329), (15, 335), (2, 336), (8, 337), (3, 338), (6, 340), (12, 341)];
    assert_eq!(heads(first), order);
    assert_eq!(heads(second), [(2, 325), (0, 329), (9, 331), (13, 333), (8, 342)]);
    assert_eq!((first.next_avail, second.next_avail), (345, 343));
    for takeover in [first, second] {
        assert_eq!((takeover.fresh, &takeover.closes[..]), (false, &[][..]));
        assert_eq!(takeover.contradictions, []);
    }
}

#[test]
fn migration_capture_of_packed_rings_has_positions_with_wraps_and_its_region() {
    let bytes = capture::load("packed-in-flight.stream");
    let stream = Stream::parse(&bytes).unwrap();
    let [device] = &blk_devices(&stream).unwrap()[..] else { panic!() };
    let state = device.state.as_ref().unwrap();
    assert!(state.packed());
    let [queue] = state.queues[..] else { panic!("{state:?}") };
    assert_eq!((queue.size, queue.last_avail_idx), (128, 66));
    assert_eq!(queue.packed.map(|at| at.base()), Some(0x8031_8042));
    let takeover = device.packed_takeover(0).expect("a packed ring").unwrap();
    assert_eq!(takeover.resubmit.len(), 17);
    assert_eq!(
        takeover.resubmit[..2],
        [Live { counter: 542, head: 23 }, Live { counter: 547, head: 25 }]
    );
    assert!(takeover.resubmit.is_sorted());
    assert_eq!((takeover.next_avail, takeover.next_used), (0x8042, Some(0x8031)));
    assert_eq!((takeover.fresh, &takeover.contradictions[..]), (false, &[][..]));
    // The split ring's judgement is not asked for.
    assert_eq!(device.takeover(0, 49, None), None);
    assert_eq!(device.contradiction(), None);
    // A base that is somewhere else is believed less than the region.
    let view = device.region().unwrap().unwrap();
    let base = Positions::from_base(0x8030_8041);
    let found = packed_takeover(Some(&view), 0, base, 128).unwrap();
    let said: Vec<String> = found.contradictions.iter().map(|c| c.to_string()).collect();
    assert_eq!(said, ["base is 0x80308041, expected 0x80318042 (both positions by the region)"]);
    assert_eq!(found.next_avail, 0x8042);
    // And without a region requests are lost.
    let found = packed_takeover(None, 0, queue.packed.unwrap(), 128).unwrap();
    let said: Vec<String> = found.contradictions.iter().map(|c| c.to_string()).collect();
    assert_eq!(
        said,
        [
            "base is 0x80318042, but nothing tells which chains of 17 entries are in flight: they are lost"
        ]
    );
}

#[test]
fn migration_capture_of_two_disks_finds_both() {
    let bytes = capture::load("two-disks.stream");
    let stream = Stream::parse(&bytes).unwrap();
    let [one, two] = &blk_devices(&stream).unwrap()[..] else { panic!() };
    assert_eq!(one.section.name, "0000:00:01.0:00.0/vhost-user-blk");
    assert_eq!(two.section.name, "0000:00:02.0:00.0/vhost-user-blk");
    assert_eq!((one.queues(), two.queues()), (Some(1), Some(2)));
    assert_eq!(one.inflight.unwrap().region.len(), 2112);
    assert_eq!(two.inflight.unwrap().region.len(), 2 * 2112);
    let judged = judge(&bytes).unwrap();
    // The second queue of the second disk was not set up by the firmware.
    let [Ok(busy), Ok(idle)] = &judged[..] else { panic!("{judged:?}") };
    assert_eq!((heads(busy), busy.next_avail), (vec![(0, 0)], 1));
    assert_eq!((heads(idle), idle.next_avail), (vec![], 0));
}

#[test]
fn migration_capture_of_a_device_that_never_started_is_called_unloadable() {
    let bytes = capture::load("never-started.stream");
    let stream = Stream::parse(&bytes).unwrap();
    let [device] = &blk_devices(&stream).unwrap()[..] else { panic!() };
    assert_eq!(device.inflight, Some(InflightSubsection::default()));
    assert!(device.region().is_none());
    assert_eq!(device.contradiction(), Some(Contradiction::Empty));
    assert_eq!(judge(&bytes).unwrap(), []);
}

#[test]
fn migration_capture_without_region_shows_the_lost_request() {
    let bytes = capture::load("no-region.stream");
    let stream = Stream::parse(&bytes).unwrap();
    let [device] = &blk_devices(&stream).unwrap()[..] else { panic!() };
    assert_eq!(device.inflight, None);
    assert!(device.inflight_range.is_empty());
    let judged = judge(&bytes).unwrap();
    let [Ok(takeover)] = &judged[..] else { panic!("{judged:?}") };
    assert!(takeover.fresh);
    assert_eq!(takeover.contradictions, [Contradiction::Lost { base: 1, used: 0, lost: 1 }]);
}

#[test]
fn migration_captures_have_the_subsection_that_is_encoded() {
    let mut compared = 0;
    for name in CAPTURES {
        let bytes = capture::load(name);
        let stream = Stream::parse(&bytes).unwrap();
        for device in blk_devices(&stream).unwrap() {
            let Some(inflight) = device.inflight else { continue };
            let mut out = Vec::new();
            inflight.encode(&mut out);
            assert_eq!(out, bytes[device.inflight_range.clone()], "{name}");
            compared += 1;
        }
    }
    assert_eq!(compared, 5);
}

#[test]
fn migration_captures_cut_again_stay_the_same() {
    for name in CAPTURES {
        let bytes = capture::load(name);
        assert!(capture::cut(&bytes) == bytes, "{name}");
    }
}

#[test]
fn migration_capture_cut_short_is_refused_within_the_file() {
    let bytes = capture::load("never-started.stream");
    let end = bytes.len();
    // Every place of the skeleton, and some of the long stretches between.
    let ends = (0..400).chain((400..end - 300).step_by(241));
    for len in ends.chain(end - 300..end) {
        let fault = judge(&bytes[..len]).unwrap_err();
        assert!(fault.offset <= len as u64, "{len}: {fault}");
    }
    let fault = judge(&bytes[..bytes.len() - 1]).unwrap_err();
    assert_eq!(
        fault.to_string(),
        "section \"0000:00:01.0/vhost-user-blk\" cannot be measured: the stream has no \
         description at its end, so it was cut short or written without one at offset 0xe6"
    );
    assert_eq!(
        judge(&bytes[..100]).unwrap_err().to_string(),
        "expected 7 bytes of memory block name, got 6 and the end at offset 0x5e"
    );
}

/// A stream with two pages and one small device, made by hand.
struct Small {
    memory: Vec<u8>,
    device: Vec<u8>,
    description: String,
}

fn section(kind: u8, id: u32, name: &str, version: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = vec![kind];
    out.extend(id.to_be_bytes());
    out.push(name.len() as u8);
    out.extend(name.as_bytes());
    out.extend(0u32.to_be_bytes());
    out.extend(version.to_be_bytes());
    out.extend(payload);
    out.push(0x7e);
    out.extend(id.to_be_bytes());
    out
}

impl Small {
    fn new() -> Self {
        // 16 MiB in one block, and one page of it twice.
        let mut memory = (0x0100_0000u64 | 4).to_be_bytes().to_vec();
        memory.extend(b"\x03mem");
        memory.extend(0x0100_0000u64.to_be_bytes());
        for (word, byte) in [(0x3000u64 | 2, 7), (0x4000 | 0x22, 9), (0x3000 | 0x22, 8)] {
            memory.extend(word.to_be_bytes());
            if word & 0x20 == 0 {
                memory.extend(b"\x03mem");
            }
            memory.push(byte);
        }
        memory.extend(0x10u64.to_be_bytes());
        let device = [1, 2, 0x05, 1, b'x', 0, 0, 0, 1, 3].to_vec();
        let description = concat!(
            r#"{"configuration": {"fields": [{"name": "len", "size": 4}, {"name": "name", "size": 6}]}, "#,
            r#""page_size": 4096, "devices": [{"name": "dev", "instance_id": 0, "fields": "#,
            r#"[{"name": "a", "array_len": 2, "size": 1}], "subsections": "#,
            r#"[{"vmsd_name": "x", "fields": [{"name": "b", "size": 1}]}]}]}"#
        );
        Self { memory, device, description: description.to_owned() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = b"QEVM\0\0\0\x03\x07\0\0\0\x06pc-q35".to_vec();
        out.extend(section(1, 1, "ram", 4, &self.memory));
        out.extend(b"\x08\0\x0b\0\0");
        out.extend(section(4, 2, "dev", 1, &self.device));
        out.push(0);
        out.push(6);
        out.extend((self.description.len() as u32).to_be_bytes());
        out.extend(self.description.as_bytes());
        out
    }

    fn fault(&self) -> String {
        Stream::parse(&self.bytes()).unwrap_err().to_string()
    }
}

#[test]
fn migration_stream_made_by_hand_is_walked() {
    let bytes = Small::new().bytes();
    let stream = Stream::parse(&bytes).unwrap();
    assert_eq!((&stream.machine[..], stream.commands), ("pc-q35", 1));
    let lens: Vec<_> = stream.sections.iter().map(|s| (&s.name[..], s.id, s.len)).collect();
    assert_eq!(lens, [("ram", 1, 59), ("dev", 2, 10)]);
    assert!(blk_devices(&stream).unwrap().is_empty());
}

#[test]
fn migration_stream_last_state_of_a_page_counts() {
    let bytes = Small::new().bytes();
    let stream = Stream::parse(&bytes).unwrap();
    let ram = stream.guest_ram([0x3010, 0x4ffe, 0x5000, 0x8000_0000, 1 << 32, u64::MAX]);
    assert_eq!(ram.page(0x3fff), Some(Page::Fill(8)));
    assert_eq!(ram.le16(0x3010), Some(0x0808));
    assert_eq!(ram.le16(0x4ffe), Some(0x0909));
    for nowhere in [0x5000, 0x8000_0000, 1 << 32, u64::MAX] {
        assert_eq!(ram.le16(nowhere), None, "{nowhere:#x}");
    }
}

#[test]
fn migration_stream_faults_say_what_was_expected_and_where() {
    let spoil = |change: fn(&mut Small)| {
        let mut small = Small::new();
        change(&mut small);
        small.fault()
    };
    // A device that is longer or shorter than described has its footer elsewhere.
    assert_eq!(spoil(|s| s.device.push(4)), "expected section footer 0x7e, got 0x4 at offset 0x84");
    assert_eq!(
        spoil(|s| s.description = s.description.replace("\"dev\"", "\"dex\"")),
        "section \"dev\", instance 0, is missing in the stream's description at offset 0x69"
    );
    assert_eq!(
        spoil(|s| s.description = s.description.replace("\"size\": 1}", "\"size\": -1}")),
        "description of the stream: expected the size of a field, got \
         {\"array_len\":2,\"name\":\"a\",\"size\":-1} at offset 0x8f"
    );
    assert!(
        spoil(|s| s.description = s.description.replace("4096, ", "4096 "))
            .starts_with("description of the stream: expected `,` or `}` at offset 0x"),
    );
    let huge = format!("\"size\": {}}}", u64::MAX);
    let mut small = Small::new();
    small.description = small.description.replace("\"size\": 1}", &huge);
    assert!(small.fault().starts_with("description of the stream: expected the size of a field"));
    let page = |word: u64| {
        let mut small = Small::new();
        let at = small.memory.len() - 8;
        small.memory.splice(at..at, word.to_be_bytes());
        small.fault()
    };
    assert_eq!(page(0x80), "expected flags of a memory page, got 0x80 at offset 0x57");
    assert_eq!(
        page(0x0100_0000 | 0x22),
        "expected a page within 0x1000000 bytes of memory block \"mem\", got 0x1000000 at offset 0x57"
    );
    assert_eq!(
        page(0x200),
        "expected a stream that is complete in this file, got one that uses multifd at offset 0x57"
    );
    assert_eq!(
        page(0x5000 | 8),
        "expected a page of a known memory block, got one of \"\" at offset 0x5f"
    );
}

#[test]
fn migration_stream_cut_anywhere_is_refused_within_the_file() {
    let bytes = Small::new().bytes();
    for len in 0..bytes.len() {
        let fault = Stream::parse(&bytes[..len]).unwrap_err();
        assert!(fault.offset <= len as u64, "{len}: {fault}");
    }
}

#[test]
fn migration_stream_with_one_byte_changed_is_refused_or_read() {
    let whole = Small::new().bytes();
    let mut refused = 0;
    for at in 0..whole.len() {
        for change in [1, 0x20, 0x80, 0xff] {
            let mut bytes = whole.clone();
            bytes[at] ^= change;
            if let Err(fault) = Stream::parse(&bytes) {
                refused += 1;
                assert!(fault.offset <= bytes.len() as u64, "{at}: {fault}");
            }
        }
    }
    assert!(refused > whole.len(), "{refused} of {}", 4 * whole.len());
}

#[test]
fn migration_stream_with_many_sections_or_blocks_is_refused() {
    let mut bytes = b"QEVM\0\0\0\x03".to_vec();
    let mut memory = (!0xfffu64 | 4).to_be_bytes().to_vec();
    for block in 0u32..5000 {
        memory.push(4);
        memory.extend(block.to_be_bytes());
        memory.extend(0u64.to_be_bytes());
    }
    bytes.extend(section(1, 1, "ram", 4, &memory));
    let fault = Stream::parse(&bytes).unwrap_err();
    let many = What::TooLarge { of: "memory block count", most: 4096, got: 4097 };
    assert_eq!(fault.what, many);
}

proptest! {
    /// Bytes of the interesting places of a capture are changed.
    #[test]
    fn migration_capture_mutated_never_panics(
        which in 0usize..CAPTURES.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = capture::load(CAPTURES[which]);
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for (place, value) in changes {
            bytes[places[place.index(places.len())]] = value;
        }
        if let Err(fault) = judge(&bytes) {
            prop_assert!(fault.offset <= bytes.len() as u64, "{}", fault);
        }
    }

    #[test]
    fn migration_stream_of_any_bytes_never_panics(
        rest in proptest::collection::vec(
            prop_oneof![any::<u8>(), Just(0), Just(1), Just(4), Just(8), Just(0x10), Just(0x7e)],
            0..400,
        ),
        described: bool,
    ) {
        let mut bytes = b"QEVM\0\0\0\x03".to_vec();
        bytes.extend(rest);
        if described {
            let small = Small::new();
            bytes.push(6);
            bytes.extend((small.description.len() as u32).to_be_bytes());
            bytes.extend(small.description.as_bytes());
        }
        if let Err(fault) = judge(&bytes) {
            prop_assert!(fault.offset <= bytes.len() as u64, "{}", fault);
        }
    }
}
