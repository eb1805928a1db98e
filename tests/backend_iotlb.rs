//! A device behind an IOMMU, with front-ends that answer, that take their time,
//! and that lie.

#![allow(clippy::disallowed_types)]

mod common;
mod iotlb_rig;

use common::{RING, USER_BASE};
use iotlb_rig::*;
use midflight::backend::{Event, GuestFault, Input, SuspendPolicy, UPDATE_GRACE};
use midflight::driver::{BlkDone, BlkDriver, BlkOp, BlkStatus, Framing};
use midflight::time::Duration;
use midflight::wire::{Dialect, FrontendReplyBody, FrontendRequest, Iotlb, MemRegion, VringAddr};
use vm_memory::{Bytes, GuestAddress};

const FRAMINGS: [Framing; 4] =
    [Framing::CLASSIC, Framing::INDIRECT, Framing::SPLIT_HEADER, Framing::SHREDDED];

fn reap(p: &Platform, driver: &mut BlkDriver) -> Option<BlkDone> {
    driver.reap(&p.view()).unwrap()
}

fn pattern(seed: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i * 7 + i / 253 + seed * 31) as u8).collect()
}

fn write_data(p: &Platform, slot: u64, data: &[u8]) {
    p.view().write_slice(data, GuestAddress(slot_at(slot) + PAGE - 100)).unwrap();
}

fn read_data(p: &Platform, slot: u64, len: usize) -> Vec<u8> {
    let mut got = vec![0; len];
    p.view().read_slice(&mut got, GuestAddress(slot_at(slot) + PAGE - 100)).unwrap();
    got
}

const WRITE: BlkOp<'static> = BlkOp::Out { sector: 8 };
const LEN: u32 = 3 * 4096;

#[test]
fn iotlb_data_over_page_borders_survives_every_framing() {
    for packed in [false, true] {
        for framing in FRAMINGS {
            let (mut p, mut driver) = Platform::running(packed);
            let data = pattern(1, LEN as usize);
            write_data(&p, 0, &data);
            for slot in [0, 1] {
                p.map_slot(slot);
                let op = if slot == 0 { WRITE } else { BlkOp::In { sector: 8 } };
                p.submit(&mut driver, slot, op, LEN, &framing);
                assert_eq!(p.rig.at_disk, [], "nothing of it is known");
                p.serve();
                p.finish_all();
                let done = reap(&p, &mut driver).expect("a completion");
                assert_eq!((done.status, done.token), (BlkStatus::Ok, slot), "{framing:?}");
            }
            assert_eq!(p.rig.disk[4096..4096 + LEN as usize], data, "{framing:?}");
            assert_eq!(read_data(&p, 1, LEN as usize), data, "{framing:?}");
            assert!(p.rig.errs.is_empty() && p.failures.is_empty());
        }
    }
}

#[test]
fn iotlb_a_page_is_asked_for_once_and_for_what_it_is_needed() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        let before = p.rig.backend.iommu_counts().misses;
        p.submit(&mut driver, 0, BlkOp::In { sector: 0 }, 8192, &Framing::CLASSIC);
        // Kicks and time change nothing.
        p.kick();
        p.rig.input(Input::Timeout);
        let mut asked = Vec::new();
        while let Some((_, iotlb)) = p.asked() {
            assert_eq!((iotlb.kind, iotlb.size), (1, PAGE));
            asked.push(((iotlb.iova - slot_at(0)) / PAGE, iotlb.perm));
        }
        asked.sort_unstable();
        // Header in page 0, data over pages 0 to 2, status in page 5.
        assert_eq!(asked, [(0, 1), (0, 2), (1, 2), (2, 2), (5, 2)]);
        assert_eq!(p.rig.backend.iommu_counts().misses - before, 5);
    }
}

#[test]
fn iotlb_updates_go_on_the_main_channel_before_the_answer_and_are_enough() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        let mut questions = Vec::new();
        while let Some((request, iotlb)) = p.asked() {
            p.tell(iotlb.iova / PAGE);
            questions.push(request);
        }
        assert_eq!(p.rig.at_disk.len(), 1, "it goes on without the answers");
        for request in &questions {
            p.rig.answer(request, 0);
        }
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_a_page_that_is_refused_is_answered_ioerr_and_the_ring_goes_on() {
    for packed in [false, true] {
        // Each page of the request but those that are needed to answer it.
        for (framing, hole) in [
            (Framing::CLASSIC, 0),
            (Framing::CLASSIC, 1),
            (Framing::CLASSIC, 3),
            (Framing::INDIRECT, 2),
        ] {
            let (mut p, mut driver) = Platform::running(packed);
            p.map_slot(0);
            p.tables.unmap(slot_at(0) + hole * PAGE, 1);
            p.submit(&mut driver, 0, WRITE, 3 * 4096, &framing);
            p.serve();
            let done = reap(&p, &mut driver).expect("an answer");
            assert_eq!((done.status, done.len), (BlkStatus::IoErr, 1), "{hole}");
            assert_eq!(p.rig.at_disk, []);
            let said = |e: &Event| matches!(e, Event::IovaRefused { vring: 0, access: 1, .. });
            assert!(p.rig.events.iter().any(said));
            // The next one is none the worse for it, at the same addresses too.
            p.map_slot(0);
            p.submit(&mut driver, 0, WRITE, 3 * 4096, &framing);
            p.serve();
            p.finish_all();
            assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::Ok);
            assert!(p.rig.errs.is_empty());
        }
    }
}

#[test]
fn iotlb_a_status_byte_that_is_refused_breaks_the_ring_and_nothing_else() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.tables.unmap(slot_at(0) + 5 * PAGE, 1);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        p.serve();
        assert_eq!(p.rig.errs, [0], "{:?} {:?}", p.rig.events, p.rig.backend.poll_timeout());
        let addr = slot_at(0) + 5 * PAGE + 77;
        let fault = GuestFault::Status { head: 0, addr };
        assert!(p.rig.events.contains(&Event::VringBroken { vring: 0, fault }));
        assert_eq!(p.stop(), Some(p.base(1, 0)), "its head is in the region");
        assert_eq!(p.rig.closed, None);
    }
}

#[test]
fn iotlb_an_indirect_table_that_is_refused_breaks_the_ring() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.tables.unmap(slot_at(0) + 7 * PAGE, 1);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::INDIRECT);
        p.serve();
        assert_eq!(p.rig.errs, [0]);
        let broken = |e: &Event| {
            matches!(e, Event::VringBroken { fault: GuestFault::Descriptor { head: 0, .. }, .. })
        };
        assert!(p.rig.events.iter().any(broken), "{:?}", p.rig.events.last());
    }
}

#[test]
fn iotlb_a_page_that_may_only_be_read_is_asked_for_again_then_reported() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        // The middle of the data may only be read, and the back-end knows that.
        p.tables.map(slot_at(0) + 2 * PAGE, 1, READ);
        p.tell((slot_at(0) + 2 * PAGE) / PAGE);
        p.submit(&mut driver, 0, BlkOp::In { sector: 0 }, 8192, &Framing::CLASSIC);
        p.serve();
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::IoErr);
        p.serve();
        let [failure] = p.failures[..] else { panic!("{:?}", p.failures) };
        assert_eq!((failure.kind, failure.perm), (4, 2));
        assert_eq!(failure.iova, slot_at(0) + 2 * PAGE);
        // What was made writable since is found out by asking.
        p.map_slot(0);
        p.submit(&mut driver, 0, BlkOp::In { sector: 0 }, 8192, &Framing::CLASSIC);
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_success_without_an_update_is_believed_for_a_while() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        let mut late = None;
        while let Some((request, iotlb)) = p.asked() {
            // Page 1 is told elsewhere: late, and then never.
            if iotlb.iova == slot_at(0) + PAGE {
                late = Some(iotlb.iova / PAGE);
            } else {
                p.tell(iotlb.iova / PAGE);
            }
            p.rig.answer(&request, 0);
        }
        let (at, _) = p.rig.backend.poll_timeout().expect("a time to stop believing");
        assert_eq!(at, p.rig.now + UPDATE_GRACE);
        p.rig.now = at - Duration::from_nanos(1);
        p.rig.input(Input::Timeout);
        assert!(reap(&p, &mut driver).is_none());
        p.tell(late.unwrap());
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::Ok);

        p.map_slot(1);
        p.submit(&mut driver, 1, WRITE, 512, &Framing::CLASSIC);
        while let Some((request, iotlb)) = p.asked() {
            // A range that was not asked for helps nobody.
            let wrong = iotlb.iova == slot_at(1) + PAGE;
            p.tell(if wrong { slot_at(1) / PAGE + 3 } else { iotlb.iova / PAGE });
            p.rig.answer(&request, 0);
        }
        assert_eq!(p.rig.at_disk, []);
        p.rig.now = p.rig.now + UPDATE_GRACE;
        p.checked(|p| p.rig.input(Input::Timeout));
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::IoErr);
    }
}

#[test]
fn iotlb_updates_outside_guest_memory_or_the_address_space_are_refused() {
    for packed in [false, true] {
        let (mut p, _driver) = Platform::running(packed);
        let iova = IOVA;
        for (size, user_addr) in [
            (PAGE, USER_BASE - 1),
            (PAGE, USER_BASE + common::GUEST_BYTES - PAGE + 1),
            (common::GUEST_BYTES + 1, USER_BASE),
            (0, USER_BASE),
            (u64::MAX, USER_BASE),
            (PAGE, u64::MAX),
        ] {
            let update = Iotlb { iova, size, user_addr, perm: BOTH, kind: 2 };
            let reply = p.rig.send(FrontendRequest::IotlbMsg(update), true);
            assert_eq!(reply, Some(FrontendReplyBody::U64(1)), "{size:#x} {user_addr:#x}");
        }
        for kind in [1, 4] {
            let message = Iotlb { iova, size: PAGE, user_addr: USER_BASE, perm: BOTH, kind };
            let reply = p.rig.send(FrontendRequest::IotlbMsg(message), true);
            assert_eq!(reply, Some(FrontendReplyBody::U64(1)));
        }
        assert_eq!(p.rig.closed, None);
    }
}

#[test]
fn iotlb_a_flood_of_updates_is_kept_within_bounds() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        for i in 0..20_000u64 {
            let at = IOVA + 0x1000_0000 + i * 0x2000;
            let update =
                Iotlb { iova: at, size: 1 + i % PAGE, user_addr: USER_BASE, perm: BOTH, kind: 2 };
            assert!(p.rig.send(FrontendRequest::IotlbMsg(update), true).is_some());
        }
        assert!(p.rig.backend.iommu_entries() <= 4096, "{}", p.rig.backend.iommu_entries());
        // The ring's places were pushed out of it and are known all the same.
        p.map_slot(0);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_an_invalidation_waits_for_the_requests_that_use_it_and_for_no_other() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        for slot in [0, 1] {
            p.map_slot(slot);
            p.submit(&mut driver, slot, WRITE, 4096, &Framing::CLASSIC);
            p.serve();
        }
        let [first, second] = p.rig.at_disk[..] else { panic!("{:?}", p.rig.at_disk) };
        // Not used by anybody.
        assert!(p.invalidate(slot_at(2), SLOT));
        assert!(!p.invalidate(slot_at(0) + 5 * PAGE, PAGE), "the status byte is still to come");
        assert_eq!(p.rig.backend.wanted(), 0, "nothing else is read meanwhile");
        let replies = p.rig.replies.len();
        p.finish(second);
        assert_eq!(p.rig.replies.len(), replies);
        p.finish(first);
        assert_eq!(p.rig.replies.len(), replies + 1, "acknowledged");
        p.forgotten(slot_at(0) + 5 * PAGE, PAGE);
        assert_eq!(reap(&p, &mut driver).unwrap().token, 1);
        assert_eq!(reap(&p, &mut driver).unwrap().token, 0);
        // It is asked for again.
        p.submit(&mut driver, 0, WRITE, 4096, &Framing::CLASSIC);
        assert_eq!(p.rig.at_disk, []);
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_an_invalidation_of_the_ring_waits_for_its_requests_then_finds_it_again() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        for slot in 0..3 {
            p.map_slot(slot);
        }
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        p.serve();
        assert!(!p.invalidate(0, u64::MAX), "all of it, and a request in flight");
        // More work is not taken up: the ring may be elsewhere in a moment.
        p.submit(&mut driver, 1, WRITE, 512, &Framing::CLASSIC);
        assert_eq!(p.rig.at_disk.len(), 1);
        p.finish_all();
        p.forgotten(0, u64::MAX);
        assert_eq!(reap(&p, &mut driver).unwrap().token, 0);
        assert_eq!(p.rig.backend.iommu_entries(), 0);
        p.submit(&mut driver, 2, WRITE, 512, &Framing::CLASSIC);
        assert_eq!(p.rig.at_disk, []);
        p.serve();
        p.finish_all();
        let tokens: Vec<_> =
            std::iter::from_fn(|| reap(&p, &mut driver)).map(|d| d.token).collect();
        assert_eq!(tokens, [1, 2]);
    }
}

#[test]
fn iotlb_a_question_that_was_overtaken_by_an_invalidation_is_asked_again() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        let mut old = Vec::new();
        while let Some((request, _)) = p.asked() {
            old.push(request);
        }
        assert!(p.invalidate(slot_at(0), SLOT));
        // Failures that belong to what was there before.
        for request in &old {
            p.checked(|p| p.rig.answer(request, 1));
        }
        assert!(reap(&p, &mut driver).is_none(), "nothing was refused");
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_a_stop_does_not_wait_for_pages_and_the_head_counts_as_not_fetched() {
    for packed in [false, true] {
        for policy in
            [None, Some(SuspendPolicy { grace: Duration::ZERO, dialect: Dialect::default() })]
        {
            let mut p = Platform::with(packed, policy);
            let mut driver = p.run();
            p.map_slot(0);
            p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
            assert_eq!(p.stop(), Some(p.base(0, 0)), "a front-end that waits cannot answer");
            // Answers to a device that is at rest mean nothing.
            p.serve();
            assert_eq!(p.rig.backend.iommu_entries(), 0);
            p.start(p.base(0, 0));
            p.serve();
            p.finish_all();
            assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
            assert_eq!(p.stop(), Some(p.base(1, 1)));
        }
    }
}

#[test]
fn iotlb_a_ring_that_is_not_known_waits_and_can_be_stopped() {
    for packed in [false, true] {
        let mut p = Platform::new(packed);
        p.set_up();
        let mut driver = p.driver();
        p.map_slot(0);
        p.start(p.base(0, 0));
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        let runs =
            |p: &Platform| p.rig.events.iter().any(|e| matches!(e, Event::VringRunning { .. }));
        assert!(!runs(&p));
        assert_eq!(p.stop(), Some(p.base(0, 0)));
        p.start(p.base(0, 0));
        p.serve();
        assert!(runs(&p));
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_a_ring_that_is_refused_is_broken() {
    for packed in [false, true] {
        let mut p = Platform::new(packed);
        p.set_up();
        p.tables.unmap(p.layout().used, 1);
        p.start(p.base(0, 0));
        p.serve();
        assert_eq!(p.rig.errs, [0]);
        let fault = GuestFault::Ring { part: "ring" };
        assert!(p.rig.events.contains(&Event::VringBroken { vring: 0, fault }));
        assert_eq!(p.stop(), Some(p.base(0, 0)));
        // Ring addresses that are none.
        let addr = VringAddr { index: 0, flags: 0, desc: u64::MAX - 15, used: 0, avail: 0, log: 0 };
        p.rig.ok(FrontendRequest::SetVringAddr(addr));
        let handle = p.rig.handle();
        let file = midflight::wire::VringFile { index: 0, handle: Some(handle) };
        p.rig.refused(FrontendRequest::SetVringKick(file));
    }
}

#[test]
fn iotlb_requests_taken_over_wait_for_their_pages_in_order_and_stay_in_the_region() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        for slot in 0..3 {
            p.map_slot(slot);
            p.submit(&mut driver, slot, WRITE, 512, &Framing::CLASSIC);
            p.serve();
        }
        assert_eq!(p.rig.at_disk.len(), 3);
        let crash = |p: &mut Platform| {
            p.rig.input(Input::PeerClosed);
            p.finish_all();
            p.granted.clear();
            p.rig.input(Input::Connected);
            p.set_up();
            p.rig.set_inflight();
        };
        crash(&mut p);
        p.start(p.base(0, 0));
        // The ring is told, the buffers are not.
        let ring = p.layout();
        let mut later = Vec::new();
        while let Some((request, iotlb)) = p.asked() {
            if iotlb.iova < slot_at(0) && iotlb.iova + PAGE > ring.desc {
                p.tell(iotlb.iova / PAGE);
                p.rig.answer(&request, 0);
            } else {
                later.push(request);
            }
        }
        let resubmitted = |e: &Event| matches!(e, Event::VringRunning { resubmitted: 3, .. });
        assert!(p.rig.events.iter().any(resubmitted));
        // Nothing new overtakes them.
        p.map_slot(3);
        p.submit(&mut driver, 3, WRITE, 512, &Framing::CLASSIC);
        assert_eq!(p.rig.at_disk, []);
        // A stop leaves them where they are, and so does another crash.
        assert_eq!(p.stop(), Some(p.base(3, 0)));
        crash(&mut p);
        p.start(p.base(3, 0));
        p.serve();
        let heads: Vec<u16> =
            p.rig.at_disk.iter().map(|id| p.rig.backend.request(*id).unwrap().head).collect();
        assert_eq!(heads.len(), 4);
        assert!(heads.is_sorted(), "{heads:?}");
        p.finish_all();
        let tokens: Vec<_> =
            std::iter::from_fn(|| reap(&p, &mut driver)).map(|d| d.token).collect();
        assert_eq!(tokens, [0, 1, 2, 3]);
    }
}

#[test]
fn iotlb_without_a_channel_a_page_that_was_not_pushed_is_refused_at_once() {
    for packed in [false, true] {
        let mut p = Platform::new(packed);
        p.agree();
        p.rig.add_memory();
        let mut driver = p.driver();
        // Pushed between the start of the vring and its enabling.
        let addr = p.layout();
        let addr = VringAddr {
            index: 0,
            flags: 0,
            desc: addr.desc,
            used: addr.used,
            avail: addr.avail,
            log: 0,
        };
        let state = |num| midflight::wire::VringState { index: 0, num };
        p.rig.ok(FrontendRequest::SetVringNum(state(u32::from(RING))));
        p.rig.ok(FrontendRequest::SetVringAddr(addr));
        let kick = p.rig.handle();
        let file = midflight::wire::VringFile { index: 0, handle: Some(kick) };
        p.rig.ok(FrontendRequest::SetVringKick(file));
        p.map_slot(0);
        p.tables.unmap(slot_at(0) + PAGE, 1);
        let pages: Vec<u64> = p.tables.0.keys().copied().collect();
        for page in pages {
            p.tell(page);
        }
        p.rig.ok(FrontendRequest::SetVringEnable(state(1)));
        p.submit(&mut driver, 0, WRITE, 50 * 512, &Framing::CLASSIC);
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::IoErr);
        p.submit(&mut driver, 0, BlkOp::Flush, 0, &Framing::CLASSIC);
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).expect("an answer").status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_a_lost_channel_is_waited_for_and_the_next_is_asked_again() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        p.map_slot(0);
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        p.rig.input(Input::ChannelClosed(None));
        p.seen = p.rig.asked.len();
        assert!(reap(&p, &mut driver).is_none());
        p.rig.open_channel();
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_memory_that_comes_and_goes_changes_what_a_translation_leads_to() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        // The region of the ring has to stay.
        let text = p.rig.refused(FrontendRequest::RemMemReg(common::guest_region(), None));
        assert!(text.contains("memory of vring 0"), "{text}");
        // Another one may come, be mapped, and go.
        let user_addr = USER_BASE + 0x1_0000_0000;
        let more = MemRegion { guest_addr: 0x1000_0000, size: 2 * PAGE, user_addr, mmap_offset: 0 };
        let handle = p.rig.handle();
        p.rig.ok(FrontendRequest::AddMemReg(more, handle));
        p.map_slot(0);
        p.update(slot_at(0) + PAGE, PAGE, user_addr, BOTH);
        p.rig.ok(FrontendRequest::RemMemReg(more, None));
        p.submit(&mut driver, 0, WRITE, 512, &Framing::CLASSIC);
        assert_eq!(p.rig.at_disk, [], "it leads nowhere now");
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
    }
}

#[test]
fn iotlb_a_message_without_the_feature_is_refused() {
    let mut rig = common::Rig::new(midflight::blk::DeviceConfig::with_capacity(1 << 20));
    rig.negotiate(common::FEATURES);
    rig.add_memory();
    let update = Iotlb { iova: 0, size: PAGE, user_addr: USER_BASE, perm: BOTH, kind: 2 };
    let text = rig.refused(FrontendRequest::IotlbMsg(update));
    assert!(text.contains("VIRTIO_F_ACCESS_PLATFORM"), "{text}");
}

/// Pages that are marked in the dirty log.
fn marked(p: &Platform) -> std::collections::BTreeSet<u64> {
    let log = p.rig.log.as_ref().expect("a log");
    let mut bytes = [0; 128];
    log.read_slice(&mut bytes, GuestAddress(0)).unwrap();
    let bit = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
    (0..8 * bytes.len() as u64).filter(bit).collect()
}

#[test]
fn iotlb_dirty_pages_are_those_where_the_guests_addresses_lead() {
    for packed in [false, true] {
        let (mut p, mut driver) = Platform::running(packed);
        let handle = p.rig.handle();
        let log = midflight::wire::LogDescription { size: 4096, offset: 0 };
        let base = midflight::wire::LogBase::Shared(log, handle);
        p.rig.send(FrontendRequest::SetLogBase(base), false);
        p.agree_with(midflight::wire::features::virtio::LOG_ALL);
        let at = p.layout();
        let (desc, used, avail) = (at.desc, at.used, at.avail);
        // QEMU gives the ring's own address, which is an I/O virtual one.
        let addr = VringAddr { index: 0, flags: 1, desc, used, avail, log: used };
        p.rig.ok(FrontendRequest::SetVringAddr(addr));
        p.map_slot(0);
        let op = BlkOp::In { sector: 0 };
        p.submit(&mut driver, 0, op, 8192, &Framing::CLASSIC);
        p.serve();
        p.finish_all();
        assert_eq!(reap(&p, &mut driver).unwrap().status, BlkStatus::Ok);
        let page = |iova: u64| place(iova / PAGE);
        let slot = slot_at(0);
        // Data over three pages, the status, and what of the ring was written:
        // a used element, the index, and the wish for kicks behind the elements;
        // or a descriptor and the device event area.
        let mut expected: std::collections::BTreeSet<u64> =
            [0, 1, 2, 5].into_iter().map(|n| page(slot + n * PAGE)).collect();
        match packed {
            false => {
                expected.extend([used + 2, used + 4, used + 4 + 8 * u64::from(RING)].map(page))
            }
            true => expected.extend([desc, used].map(page)),
        }
        assert_eq!(marked(&p), expected, "packed {packed}");
    }
}
