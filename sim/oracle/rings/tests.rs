//! Packed rings that nobody but this test has written.

use super::*;
use crate::memory::Arena;

const RING: u64 = 0x100;
const DRIVER: u64 = 0x400;
const DEVICE: u64 = 0x500;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const AVAIL: u16 = 0x80;
const USED: u16 = 0x8000;

/// A ring of five descriptors.
struct Bench {
    _arena: Arena,
    mem: Mem,
    ring: RingView,
}

impl Bench {
    /// That was used for so many steps. Every descriptor looks used, in this round
    /// or in the one before.
    fn new(steps: u16) -> Self {
        let mut arena = Arena::new();
        let id = arena.region(0x1000);
        let mem = arena.view(&[(0, id)]);
        let place = PackedView::place(5, steps);
        let view = PackedView {
            size: 5,
            ring: RING,
            driver: DRIVER,
            device: DEVICE,
            avail_seen: place,
            used_seen: place,
        };
        let bench = Self { _arena: arena, mem, ring: RingView::Packed(view) };
        let (at, wrap) = view.index(place);
        for index in 0..5 {
            bench.put(index, 0, 0, if (index < at) == wrap { AVAIL | USED } else { 0 });
        }
        bench
    }

    fn put(&self, index: u16, id: u16, len: u32, flags: u16) {
        let at = RING + 16 * u64::from(index);
        let words = [&len.to_le_bytes()[..], &id.to_le_bytes(), &flags.to_le_bytes()].concat();
        self.mem.write_slice(&words, GuestAddress(at + 8)).unwrap();
    }

    fn put16(&self, addr: u64, value: u16) {
        self.mem.write_slice(&value.to_le_bytes(), GuestAddress(addr)).unwrap();
    }

    fn offered(&mut self) -> Option<(u16, u16)> {
        self.ring.next_avail(&self.mem).map(|offer| (offer.name, offer.steps))
    }
}

#[test]
fn rings_packed_chain_has_the_id_of_its_last_descriptor_and_goes_over_the_end() {
    let mut bench = Bench::new(4);
    assert_eq!(bench.offered(), None);
    bench.put(4, 1, 0, NEXT | AVAIL);
    // The other round: the flags are the other way round.
    bench.put(0, 2, 0, NEXT | USED);
    bench.put(1, 777, 0, WRITE | USED);
    assert_eq!(bench.offered(), Some((777, 3)));
    assert_eq!(bench.offered(), None);
    assert_eq!(bench.ring.base(bench.ring.avail_place(), bench.ring.used_place()), 0x8004_0002);
}

#[test]
fn rings_packed_used_place_goes_on_by_the_length_of_the_chain() {
    let mut bench = Bench::new(3);
    assert_eq!(bench.ring.peek_used(&bench.mem, 0).unwrap(), None);
    bench.put(3, 9, 17, WRITE | AVAIL | USED);
    assert_eq!(bench.ring.peek_used(&bench.mem, 0).unwrap(), Some((9, 17)));
    bench.ring.pass_used(3);
    assert_eq!(bench.ring.name(bench.ring.used_place()), "1 with wrap 0");
    // Used in the round before is not used.
    bench.put(1, 9, 17, WRITE | AVAIL | USED);
    assert_eq!(bench.ring.peek_used(&bench.mem, 0).unwrap(), None);
    bench.put(1, 9, 17, 0);
    assert!(bench.ring.peek_used(&bench.mem, 0).is_err(), "a length that means nothing");
    bench.put(1, 9, 17, WRITE);
    assert_eq!(bench.ring.peek_used(&bench.mem, 0).unwrap(), Some((9, 17)));
}

#[test]
fn rings_packed_batch_is_told_by_the_flags_of_its_first() {
    let bench = Bench::new(0);
    let (first, second) = (Told::Flags(0, WRITE | AVAIL | USED), Told::Flags(2, AVAIL | USED));
    bench.put(0, 4, 1, WRITE | AVAIL | USED);
    bench.put(2, 3, 1, WRITE | AVAIL | USED);
    let mut trail = Trail::default();
    let steps = |id| [None, None, None, Some(1), Some(2)][usize::from(id)];
    let mut passed = Vec::new();
    let at = bench.ring.follow(&bench.mem, &mut trail, 0, second, steps, |id| passed.push(id));
    assert_eq!((at, &passed[..]), (0, &[][..]));
    let at = bench.ring.follow(&bench.mem, &mut trail, 0, first, steps, |id| passed.push(id));
    assert_eq!((at, &passed[..]), (3, &[4, 3][..]));
}

#[test]
fn rings_packed_stores_that_tell_something_end_with_flags() {
    let ring = Bench::new(0).ring;
    let told = |addr, len: u64| {
        let value = [0, 0, 0, 0, 0, 0, 0x80, 0x80];
        ring.told(GuestStore { addr, len }, &value[8 - len as usize..])
    };
    assert_eq!(told(RING + 14, 2), Some(Told::Flags(0, 0x8080)));
    assert_eq!(told(RING + 16 * 4 + 8, 8), Some(Told::Flags(4, 0x8080)));
    assert_eq!(told(RING + 16 * 5 + 14, 2), None);
    assert_eq!(told(RING + 8, 4), None);
    assert_eq!(told(DEVICE + 2, 2), None);
}

#[test]
fn rings_packed_wishes_name_a_place_with_its_wrap() {
    let bench = Bench::new(0);
    let wish = |event_idx| bench.ring.driver_wish(&bench.mem, event_idx);
    assert_eq!(wish(true), Wish::Always);
    bench.put16(DRIVER + 2, 1);
    assert_eq!(wish(true), Wish::Never);
    bench.put16(DRIVER + 2, 2);
    assert_eq!(wish(false), Wish::Nonsense(2));
    bench.put16(DRIVER, 0x8003);
    assert_eq!(wish(true), Wish::At(3));
    bench.put16(DRIVER, 3);
    assert_eq!(wish(true), Wish::At(8));
    bench.put16(DRIVER, 5);
    assert_eq!(wish(true), Wish::Nonsense(5));
    // From 9 over the end of the second round to before 2.
    for (place, wakes) in [(8, false), (9, true), (0, true), (1, true), (2, false), (6, false)] {
        assert_eq!(bench.ring.wakes(Wish::At(place), 9, 2), wakes, "{place}");
    }
    assert!(!bench.ring.wakes(Wish::At(2), 2, 2) && !bench.ring.wakes(Wish::Always, 2, 2));
}

#[test]
fn rings_packed_device_may_store_to_what_it_holds_and_not_to_addresses() {
    let Bench { ring: RingView::Packed(mut view), .. } = Bench::new(4) else { unreachable!() };
    let may =
        |view: &PackedView, addr, len| view.may_store(GuestStore { addr, len }, view.used_seen);
    assert!(!may(&view, RING + 16 * 4 + 14, 2), "nothing was made available");
    view.avail_seen = view.after(view.used_seen, 2);
    assert!(may(&view, RING + 16 * 4 + 14, 2));
    assert!(may(&view, RING + 8, 8));
    assert!(!may(&view, RING + 16 + 8, 8));
    assert!(!may(&view, RING, 8), "an address");
    assert!(!may(&view, RING + 12, 8), "two descriptors");
    assert!(may(&view, DEVICE, 4));
    assert!(!may(&view, DRIVER, 2));
}

#[test]
fn rings_split_event_index_is_passed_by_the_store_that_covers_it() {
    let view = SplitView { size: 8, avail: 0, used: 0, avail_seen: 0, used_seen: 0 };
    let ring = RingView::Split(view);
    for (event, old, new, want) in [
        (4, 4, 5, true),
        (5, 4, 5, false),
        (4, 4, 4, false),
        (3, 4, 9, false),
        (8, 4, 9, true),
        (9, 4, 9, false),
        (65535, 65535, 0, true),
        (0, 65535, 0, false),
        (1, 65534, 3, true),
    ] {
        assert_eq!(ring.wakes(Wish::At(event), old, new), want, "{event} {old} {new}");
    }
}
