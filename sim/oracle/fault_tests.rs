//! What was injected is excused, and the same wrongness without it is caught.

use super::*;
use crate::disk::faults::{Content, Family};
use crate::disk::{ReqId, SECTOR};
use crate::memory::Arena;
use crate::pattern;
use vm_memory::GuestAddress;

const AVAIL: u64 = 0x100;
const USED: u64 = 0x200;

/// One vring, a disk of 16 sectors, and whatever a test makes of them.
struct Bench {
    _arena: Arena,
    mem: Mem,
    oracle: Oracle,
    image: Image,
    used: u16,
}

/// A request that the disk was asked for.
#[derive(Clone, Copy)]
struct Asked {
    of: Try,
    verb: Verb,
}

impl Bench {
    fn new(write_through: bool) -> Self {
        let mut arena = Arena::new();
        let id = arena.region(0x1_0000);
        let mem = arena.view(&[(0, id)]);
        let ring = SplitView { size: 16, avail: AVAIL, used: USED, avail_seen: 0, used_seen: 0 };
        let ring = RingView::Split(ring);
        let oracle = Oracle::new(Judges::default(), vec![ring], 16, write_through);
        Self { _arena: arena, mem, oracle, image: Image::new(16), used: 0 }
    }

    fn put16(&self, addr: u64, value: u16) {
        self.mem.write_slice(&value.to_le_bytes(), GuestAddress(addr)).unwrap();
    }

    /// The guest asks, and the back-end asks the disk.
    fn ask(&mut self, verb: Verb, sector: u64) -> Asked {
        let request = self.oracle.ledger().offered_count();
        let (head, at) = (request as u16, 0x1000 + request * 0x400);
        let sectors = u64::from(verb != Verb::Flush);
        let moves = matches!(verb, Verb::Read | Verb::Write);
        let data = if moves { vec![(at, 512)] } else { Vec::new() };
        self.oracle.offered(Ask {
            request,
            vring: 0,
            head,
            verb,
            sector,
            sectors,
            expect: Expect::Ok,
            data: data.clone(),
            status: at + 512,
            published: None,
            order: 0,
        });
        self.put16(AVAIL + 4 + 2 * u64::from(head % 16), head);
        self.put16(AVAIL + 2, head + 1);
        self.oracle.published(&self.mem, 0).unwrap();
        self.retry(Asked { of: Try { request, vring: 0, head, life: 0, conn: 0 }, verb })
    }

    /// Another life of the back-end asks the disk again.
    fn retry(&mut self, mut asked: Asked) -> Asked {
        asked.of.life += 1;
        asked.of.conn += 1;
        let Try { request, head, life, conn, .. } = asked.of;
        let ask = self.oracle.ledger().ask(request);
        let job = Job {
            id: ReqId { slot: 0, epoch: request },
            life,
            conn,
            request,
            vring: 0,
            head,
            verb: asked.verb,
            offset: ask.sector * SECTOR,
            len: ask.sectors * SECTOR,
            durable: false,
            segments: ask.data.clone(),
        };
        self.oracle.issued(&job).unwrap();
        asked
    }

    /// The guest sees a status, and what a read has brought.
    fn complete(&mut self, asked: Asked, status: u8, content: &[u8]) -> Result<(), Violation> {
        let ask = self.oracle.ledger().ask(asked.of.request).clone();
        if let Some((at, _)) = ask.data.first() {
            self.mem.write_slice(content, GuestAddress(*at)).unwrap();
        }
        self.mem.write_slice(&[status], GuestAddress(ask.status)).unwrap();
        let read = if asked.verb == Verb::Read && status == 0 { 512 } else { 0 };
        let entry = USED + 4 + 8 * u64::from(self.used % 16);
        self.put16(entry, ask.head);
        self.put16(entry + 4, read + 1);
        self.used += 1;
        self.put16(USED + 2, self.used);
        self.oracle.after_stores(&self.mem, Some(&self.image)).map(|_| ())
    }

    /// The disk does it, and the guest hears so.
    fn finish(&mut self, asked: Asked, content: &[u8]) -> Result<(), Violation> {
        self.oracle.disk_done(asked.of, true)?;
        self.complete(asked, 0, content)
    }

    /// A whole write, in the cache: its content.
    fn write(&mut self, sector: u64) -> Content {
        let asked = self.ask(Verb::Write, sector);
        let content = written(asked.of.request, sector);
        self.image.write(sector * SECTOR, &content[..], false);
        self.finish(asked, &content[..]).unwrap();
        content
    }

    /// A whole flush. `does`: it has done its work.
    fn flush(&mut self, does: bool) -> Result<(), Violation> {
        let asked = self.ask(Verb::Flush, 0);
        if does {
            self.image.flush(self.image.mark());
        }
        self.finish(asked, &[])
    }

    /// A whole read that finds this.
    fn read(&mut self, sector: u64, content: &[u8]) -> Result<(), Violation> {
        let asked = self.ask(Verb::Read, sector);
        self.finish(asked, content)
    }

    fn fails(&mut self, asked: Asked, sector: Option<u64>) {
        let by = Some(Family::ReadError);
        self.oracle.injected(&Injected::Fails { of: asked.of, sector, by });
    }

    fn shows(&mut self, sector: u64, content: &Content) {
        let (content, by) = (content.clone(), Family::Corrupt);
        self.oracle.injected(&Injected::Shows { sector, content, by });
    }
}

fn written(request: u64, sector: u64) -> Content {
    let mut content = Box::new([0; 512]);
    pattern::fill(&mut content[..], pattern::tag(request), sector);
    content
}

#[track_caller]
fn caught(result: Result<(), Violation>, oracle: &str) {
    let violation = result.expect_err("somebody has to notice");
    assert_eq!(violation.oracle, oracle, "{violation}");
}

const ZEROES: [u8; 512] = [0; 512];

#[test]
fn faults_an_injected_error_is_ioerr_and_any_other_is_caught() {
    let mut b = Bench::new(false);
    let asked = b.ask(Verb::Read, 3);
    b.fails(asked, Some(3));
    b.oracle.disk_done(asked.of, false).unwrap();
    b.complete(asked, 1, &ZEROES).unwrap();

    let asked = b.ask(Verb::Read, 3);
    b.oracle.disk_done(asked.of, true).unwrap();
    caught(b.complete(asked, 1, &ZEROES), "ledger");

    let mut b = Bench::new(false);
    let asked = b.ask(Verb::Read, 3);
    caught(b.complete(asked, 1, &ZEROES), "ledger");
}

#[test]
fn faults_an_error_that_nobody_injected_is_the_disks_own() {
    let mut b = Bench::new(false);
    let asked = b.ask(Verb::Write, 3);
    caught(b.oracle.disk_done(asked.of, false), "injection");
    b.fails(asked, Some(4));
    caught(b.oracle.disk_done(asked.of, false), "injection");
    b.fails(asked, Some(3));
    caught(b.oracle.disk_done(asked.of, true), "injection");
    b.oracle.disk_done(asked.of, false).unwrap();
}

#[test]
fn faults_an_error_acknowledged_as_done_is_caught_for_every_verb() {
    for verb in [Verb::Read, Verb::Write, Verb::Flush, Verb::Discard, Verb::WriteZeroes] {
        let mut b = Bench::new(false);
        let asked = b.ask(verb, 3);
        b.fails(asked, None);
        b.oracle.disk_done(asked.of, false).unwrap();
        caught(b.complete(asked, 0, &ZEROES), "ledger");
        let mut b = Bench::new(false);
        let asked = b.ask(verb, 3);
        caught(b.complete(asked, 0, &ZEROES), "ledger");
    }
}

#[test]
fn faults_an_error_is_told_once() {
    let mut b = Bench::new(false);
    let asked = b.ask(Verb::Write, 3);
    b.fails(asked, Some(3));
    b.oracle.disk_done(asked.of, false).unwrap();
    b.complete(asked, 1, &ZEROES).unwrap();
    let again = b.complete(asked, 1, &ZEROES);
    assert!(again.as_ref().is_err_and(|v| v.message.contains("completed twice")), "{again:?}");
}

#[test]
fn faults_an_error_of_an_earlier_try_excuses_no_later_one() {
    let mut b = Bench::new(false);
    let first = b.ask(Verb::Write, 3);
    b.fails(first, Some(3));
    b.oracle.disk_done(first.of, false).unwrap();
    let second = b.retry(first);
    // Reports of the first try, come late, are about nobody.
    b.oracle.disk_done(first.of, false).unwrap();
    b.fails(first, Some(3));
    caught(b.oracle.disk_done(second.of, false), "injection");
    b.oracle.disk_done(second.of, true).unwrap();
    caught(b.complete(second, 1, &ZEROES), "ledger");
}

#[test]
fn faults_wrong_bytes_are_excused_where_they_were_injected_and_nowhere_else() {
    let mut b = Bench::new(false);
    let right = b.write(3);
    let mut wrong = right.clone();
    wrong[100] ^= 4;
    caught(b.read(3, &wrong[..]), "sectors");

    b.shows(3, &wrong);
    b.read(3, &wrong[..]).unwrap();
    b.read(3, &wrong[..]).unwrap();
    let mut other = wrong.clone();
    other[101] ^= 4;
    caught(b.read(3, &other[..]), "sectors");
    caught(b.read(4, &wrong[..]), "sectors");

    // A read under way may have seen it, one that begins now may not.
    let early = b.ask(Verb::Read, 3);
    b.oracle.injected(&Injected::Heals { sector: 3 });
    let new = b.write(3);
    b.finish(early, &wrong[..]).unwrap();
    caught(b.read(3, &wrong[..]), "sectors");
    b.read(3, &new[..]).unwrap();
}

#[test]
fn faults_a_lost_write_shows_the_old_bytes_and_settles_nothing() {
    let mut b = Bench::new(false);
    let old = b.write(3);
    let new = b.write(3);
    caught(b.read(3, &old[..]), "sectors");
    b.shows(3, &old);
    b.read(3, &old[..]).unwrap();
    // The truth is what it was.
    b.oracle.at_rest(&b.image).unwrap();
    b.image.write(3 * SECTOR, &old[..], false);
    caught(b.oracle.at_rest(&b.image), "sectors");
    b.image.write(3 * SECTOR, &new[..], false);

    // Two writes at once, of which the later one in truth is lost: who reads
    // the earlier one has not learnt which came last.
    let (first, second) = (b.ask(Verb::Write, 5), b.ask(Verb::Write, 5));
    let (one, other) = (written(first.of.request, 5), written(second.of.request, 5));
    b.finish(first, &one[..]).unwrap();
    b.finish(second, &other[..]).unwrap();
    b.image.write(5 * SECTOR, &other[..], false);
    b.shows(5, &one);
    b.read(5, &one[..]).unwrap();
    b.oracle.at_rest(&b.image).unwrap();
}

#[test]
fn faults_a_misdirected_write_is_excused_at_both_ends() {
    let mut b = Bench::new(false);
    let new = b.write(3);
    caught(b.read(7, &new[..]), "sectors");
    b.shows(3, &Box::new(ZEROES));
    b.shows(7, &new);
    b.read(3, &ZEROES).unwrap();
    b.read(7, &new[..]).unwrap();
    caught(b.read(8, &new[..]), "sectors");
}

#[test]
fn faults_a_flush_may_lie_if_it_was_told_to_and_the_next_may_not() {
    let mut b = Bench::new(false);
    b.write(3);
    let asked = b.ask(Verb::Flush, 0);
    b.oracle.injected(&Injected::Lies { of: asked.of });
    b.finish(asked, &[]).unwrap();
    caught(b.flush(false), "durability");
    let mut b = Bench::new(false);
    b.write(3);
    b.flush(true).unwrap();
}

#[test]
fn faults_what_a_failed_flush_forgot_is_promised_by_no_other() {
    let mut b = Bench::new(false);
    b.write(3);
    b.write(4);
    b.oracle.injected(&Injected::Forgets { sector: 3 });
    // Sector 4 was not forgotten.
    caught(b.flush(false), "durability");
    let content = b.image.sector(4).to_vec();
    b.image.write(4 * SECTOR, &content, true);
    b.flush(false).unwrap();
    // What is written from now on is promised again.
    b.write(3);
    caught(b.flush(false), "durability");
}

#[test]
fn faults_power_loss_undoes_what_nobody_promised() {
    let mut b = Bench::new(false);
    let kept = b.write(3);
    b.flush(true).unwrap();
    let (middle, last) = (b.write(3), b.write(3));
    caught(b.read(3, &middle[..]), "sectors");
    b.oracle.power_lost();
    for found in [&kept, &middle, &last] {
        b.image.write(3 * SECTOR, &found[..], true);
        b.oracle.at_rest(&b.image).unwrap();
    }
    b.image.zero(3 * SECTOR, SECTOR, true);
    caught(b.oracle.at_rest(&b.image), "sectors");
    caught(b.read(3, &ZEROES), "sectors");
    // Who has looked once knows.
    b.read(3, &middle[..]).unwrap();
    caught(b.read(3, &last[..]), "sectors");
    // What was lost by right is missed by no later flush.
    b.image.write(3 * SECTOR, &middle[..], true);
    b.write(4);
    b.image.write(4 * SECTOR, &ZEROES, true);
    b.oracle.power_lost();
    b.write(4);
    b.flush(true).unwrap();
}

#[test]
fn faults_power_loss_brings_back_nothing_older_than_the_last_one_left() {
    let mut b = Bench::new(false);
    let old = b.write(3);
    b.flush(true).unwrap();
    let new = b.write(3);
    b.oracle.power_lost();
    b.read(3, &new[..]).unwrap();
    b.oracle.power_lost();
    caught(b.read(3, &old[..]), "sectors");
}

#[test]
fn faults_power_loss_takes_nothing_that_was_written_through() {
    let mut b = Bench::new(true);
    let asked = b.ask(Verb::Write, 3);
    let content = written(asked.of.request, 3);
    b.image.write(3 * SECTOR, &content[..], true);
    b.finish(asked, &content[..]).unwrap();
    b.oracle.power_lost();
    caught(b.read(3, &ZEROES), "sectors");
    b.read(3, &content[..]).unwrap();
}

#[test]
fn faults_power_loss_leaves_a_read_under_way_what_it_finds() {
    let mut b = Bench::new(false);
    let old = b.write(3);
    b.flush(true).unwrap();
    b.write(3);
    let read = b.ask(Verb::Read, 3);
    b.oracle.power_lost();
    let read = b.retry(read);
    b.finish(read, &old[..]).unwrap();
}
