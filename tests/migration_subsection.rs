//! The inflight subsection: the bytes of QEMU 11.1, and every way to spoil them.

use midflight::inflight::{RegionView, RingState};
use midflight::migration::{InflightImage, InflightSubsection, Live, PartHeader, REGION_MAX, What};
use proptest::prelude::*;

/// One queue of size 3, used index 7, heads 2 and 1 in flight with counters 8
/// and 9: written by hand, field by field, in the layout that QEMU sends.
const VECTOR: &str = "
    05 17 76686f73742d757365722d626c6b2f696e666c69676874 00000001
    0000000000000040 0003
    05 1c 76686f73742d696e666c696768742d726567696f6e2f627566666572 00000000
    0000000000000000 0100 0300 0000 0700
    00 0000000000 0000 0000000000000000
    01 0000000000 0000 0900000000000000
    01 0000000000 0000 0800000000000000";

fn vector() -> Vec<u8> {
    let digits: Vec<u8> = VECTOR.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn encoded(queue_size: u16, region: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    InflightSubsection { queue_size, region }.encode(&mut out);
    out
}

#[test]
fn migration_subsection_decodes_to_the_requests_in_flight() {
    let bytes = vector();
    assert_eq!(bytes.len(), 137);
    let (sub, end) = InflightSubsection::decode(&bytes, 0).unwrap();
    assert_eq!((sub.queue_size, sub.region.len(), end), (3, 64, 137));
    let view = RegionView::new(sub.region, 1, sub.queue_size).unwrap();
    let image = InflightImage::try_from(view).unwrap();
    assert_eq!(image.queue_size, 3);
    let [part] = &image.parts[..] else { panic!("{image:?}") };
    let PartHeader::Split(header) = part.header else { panic!("{part:?}") };
    assert_eq!((header.features, header.version, header.desc_num), (0, 1, 3));
    assert_eq!((header.last_batch_head, header.used_idx), (0, 7));
    let order = [Live { counter: 8, head: 2 }, Live { counter: 9, head: 1 }];
    assert_eq!(part.flagged, order);
    let takeover =
        midflight::migration::takeover(Some(&view), 0, 9, RingState::unseen(3, 7)).unwrap();
    assert_eq!(takeover.resubmit, order);
    assert_eq!(takeover.next_avail, 9);
    assert_eq!(takeover.contradictions, []);
}

#[test]
fn migration_subsection_encodes_byte_for_byte() {
    let bytes = vector();
    assert_eq!(encoded(3, &bytes[73..]), bytes);
    let sub = InflightSubsection { queue_size: 3, region: &bytes[73..] };
    assert_eq!(sub.encoded_len(), 137);
}

#[test]
fn migration_subsection_of_a_device_that_never_started_is_empty() {
    let bytes = encoded(0, &[]);
    assert_eq!(bytes.len(), 73);
    let (sub, end) = InflightSubsection::decode(&bytes, 0).unwrap();
    assert_eq!((sub, end), (InflightSubsection::default(), 73));
}

/// The vector with one field replaced; the error that comes of it.
fn spoilt(at: usize, with: &[u8]) -> String {
    let mut bytes = vector();
    bytes[at..at + with.len()].copy_from_slice(with);
    InflightSubsection::decode(&bytes, 0).unwrap_err().to_string()
}

#[test]
fn migration_subsection_faults_say_what_was_expected_and_where() {
    assert_eq!(spoilt(0, &[7]), "expected subsection marker 0x5, got 0x7 at offset 0x0");
    assert_eq!(
        spoilt(15, b"d"),
        r#"expected "vhost-user-blk/inflight", got "vhost-user-bld/inflight" at offset 0x1"#
    );
    assert_eq!(spoilt(28, &[2]), "expected subsection version 0x1, got 0x2 at offset 0x19");
    assert_eq!(
        spoilt(29, &[0xff]),
        format!(
            "expected inflight region size of at most {REGION_MAX}, got 18374686479671623744 at offset 0x1d"
        )
    );
    assert_eq!(
        spoilt(36, &[0x41]),
        "expected 65 bytes of inflight region, got 64 and the end at offset 0x49"
    );
    assert_eq!(
        spoilt(37, &[0, 0]),
        "expected both or neither of region size and queue size, got 64 and 0 at offset 0x1d"
    );
    assert_eq!(
        spoilt(67, b"x"),
        r#"expected "vhost-inflight-region/buffer", got "vhost-inflight-region/buffxr" at offset 0x28"#
    );
    assert_eq!(spoilt(72, &[1]), "expected subsection version 0x0, got 0x1 at offset 0x45");
}

#[test]
fn migration_subsection_cut_anywhere_is_refused_at_that_place() {
    let bytes = vector();
    for len in 0..bytes.len() {
        let fault = InflightSubsection::decode(&bytes[..len], 0).unwrap_err();
        assert!(fault.offset <= len as u64, "{len}: {fault}");
        assert!(matches!(fault.what, What::End { .. }), "{len}: {fault}");
    }
}

proptest! {
    #[test]
    fn migration_subsection_round_trips(
        queue_size in 1u16..,
        region in proptest::collection::vec(any::<u8>(), 1..600),
        before in proptest::collection::vec(any::<u8>(), 0..40),
        after in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let sub = InflightSubsection { queue_size, region: &region };
        let mut bytes = before.clone();
        sub.encode(&mut bytes);
        prop_assert_eq!(bytes.len(), before.len() + sub.encoded_len());
        bytes.extend(&after);
        let (found, end) = InflightSubsection::decode(&bytes, before.len()).unwrap();
        prop_assert_eq!(found, sub);
        prop_assert_eq!(end, bytes.len() - after.len());
    }

    /// A changed byte is noticed, or it is one of the two sizes' or the
    /// region's, and then encoding gives the changed bytes again.
    #[test]
    fn migration_subsection_mutated_is_refused_or_read_as_it_stands(
        at in 0usize..137,
        value in any::<u8>(),
    ) {
        let mut bytes = vector();
        bytes[at] = value;
        match InflightSubsection::decode(&bytes, 0) {
            Ok((sub, end)) => prop_assert_eq!(encoded(sub.queue_size, sub.region), &bytes[..end]),
            Err(fault) => prop_assert!(fault.offset <= 137 && bytes != vector(), "{}", fault),
        }
    }

    #[test]
    fn migration_region_of_any_bytes_is_judged_without_panic(
        mut region in proptest::collection::vec(prop_oneof![9 => Just(0u8), 1 => any::<u8>()], 0..300),
        queues in 0u16..4,
        size in 0u16..20,
        base: u16,
        used: u16,
        avail: u16,
        valid: bool,
    ) {
        if valid && region.len() >= 16 {
            region[..16].fill(0);
            region[8] = 1;
            region[10..12].copy_from_slice(&size.to_ne_bytes());
            region[14..16].copy_from_slice(&used.to_ne_bytes());
        }
        let Ok(view) = RegionView::new(&region, queues, size) else { return Ok(()) };
        let _ = InflightImage::try_from(view);
        let ring = RingState { size, used_idx: used, avail_idx: avail };
        for vring in 0..queues + 1 {
            if let Ok(t) = midflight::migration::takeover(Some(&view), vring, base, ring) {
                prop_assert!(t.resubmit.len() + t.closes.len() <= 2 * usize::from(size));
                prop_assert!(t.resubmit.is_sorted());
            }
        }
    }
}
