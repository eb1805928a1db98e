//! A guest behind an IOMMU, and the front-end that knows its page tables.
//!
//! The guest has only I/O virtual addresses; which page is where is the
//! platform's. Every store of the back-end and every segment that the disk is
//! given is held against what the back-end was told and has not been made to
//! forget since.

#![allow(dead_code)] // Each test uses its part.

use crate::common::{FEATURES, GUEST_BYTES, RING, Rig, USER_BASE, ring_features};
use midflight::Handle;
use midflight::backend::SuspendPolicy;
use midflight::blk::{DeviceConfig, DiskOp, ReqId};
use midflight::driver::{
    BlkDriver, BlkOp, BlkRequest, Framing, RequestBuffers, RingFeatures, RingLayout, Span,
};
use midflight::wire::features::virtio;
use midflight::wire::{
    BackendRequest, FrontendReplyBody, FrontendRequest, Iotlb, VringAddr, VringFile, VringState,
};
use std::collections::{BTreeMap, BTreeSet};
use vm_memory::bitmap::{AtomicBitmap, BS};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, MmapRegion,
    Permissions, VolatileSlice,
};

pub type Tracked = GuestMemoryMmap<AtomicBitmap>;

pub const PAGE: u64 = 4096;
/// First I/O virtual address of the guest. No guest-physical address is as high.
pub const IOVA: u64 = 0x40_0000_0000;
/// Where the vring lies.
pub const RING_AT: u64 = IOVA + 0x1800;

pub const READ: u8 = 1;
pub const WRITE: u8 = 2;
pub const BOTH: u8 = 3;

/// The guest's page tables: I/O virtual to guest-physical page, and what is
/// allowed.
#[derive(Clone, Debug, Default)]
pub struct Tables(pub BTreeMap<u64, (u64, u8)>);

impl Tables {
    pub fn map(&mut self, iova: u64, len: u64, perm: u8) {
        for page in iova / PAGE..=(iova + len - 1) / PAGE {
            self.0.insert(page, (place(page), perm));
        }
    }

    pub fn unmap(&mut self, iova: u64, len: u64) {
        for page in iova / PAGE..=(iova + len - 1) / PAGE {
            self.0.remove(&page);
        }
    }
}

/// Guest-physical page of an I/O virtual page: neighbours are never neighbours.
pub fn place(page: u64) -> u64 {
    let pages = GUEST_BYTES / PAGE;
    (page % pages) * 37 % pages
}

/// Guest memory as the guest's driver addresses it.
pub struct View<'a>(pub &'a Tracked);

impl GuestMemory for View<'_> {
    type PhysicalMemory = Tracked;
    type Bitmap = AtomicBitmap;

    fn check_range(&self, addr: GuestAddress, count: usize, _: Permissions) -> bool {
        addr.0 >= IOVA && addr.0 + count as u64 <= IOVA + GUEST_BYTES
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        _: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>>, GuestMemoryError> {
        let mut slices = Vec::new();
        let (mut at, mut left) = (addr.0, count as u64);
        while left > 0 {
            let take = left.min(PAGE - at % PAGE);
            let guest = place(at / PAGE) * PAGE + at % PAGE;
            slices.push(GuestMemoryBackend::get_slice(self.0, GuestAddress(guest), take as usize));
            (at, left) = (at + take, left - take);
        }
        Ok(Slices(slices.into_iter()))
    }
}

struct Slices<'a>(
    std::vec::IntoIter<Result<VolatileSlice<'a, BS<'a, AtomicBitmap>>, GuestMemoryError>>,
);

impl<'a> Iterator for Slices<'a> {
    type Item = Result<VolatileSlice<'a, BS<'a, AtomicBitmap>>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }
}

impl std::iter::FusedIterator for Slices<'_> {}

impl<'a> GuestMemorySliceIterator<'a, BS<'a, AtomicBitmap>> for Slices<'a> {}

pub struct Platform {
    pub rig: Rig<Tracked>,
    /// The vring is a packed one.
    pub packed: bool,
    pub tables: Tables,
    /// Questions taken from the rig so far.
    pub seen: usize,
    /// What the back-end was told and has not acknowledged to have forgotten.
    pub granted: BTreeMap<u64, (u64, u8)>,
    /// Requests of the rig that went to the disk so far.
    pub failures: Vec<Iotlb>,
}

impl Platform {
    pub fn new(packed: bool) -> Self {
        Self::with(packed, None)
    }

    pub fn with(packed: bool, suspend: Option<SuspendPolicy>) -> Self {
        let config =
            DeviceConfig { access_platform: true, packed, ..DeviceConfig::with_capacity(1 << 20) };
        let rig = Rig::with(config, suspend);
        let (granted, failures) = (BTreeMap::new(), Vec::new());
        let mut new = Self { rig, packed, tables: Tables::default(), seen: 0, granted, failures };
        new.tables.map(RING_AT, RingLayout::footprint(RING), BOTH);
        new
    }

    pub fn view(&self) -> View<'_> {
        View(&self.rig.guest)
    }

    pub fn layout(&self) -> RingLayout {
        match self.packed {
            false => RingLayout::contiguous(RING, RING_AT).unwrap(),
            true => RingLayout::contiguous_packed(RING, RING_AT).unwrap(),
        }
    }

    pub fn driver(&self) -> BlkDriver {
        let features = RingFeatures { packed: self.packed, ..ring_features() };
        BlkDriver::start(&self.view(), self.layout(), features).unwrap()
    }

    /// The base of a vring of which so many chains were fetched and used. None
    /// goes around the ring, and all have three descriptors.
    pub fn base(&self, fetched: u32, used: u32) -> u32 {
        if self.packed { 0x8000_8000 | ((used * 3) << 16) | (fetched * 3) } else { fetched }
    }

    /// Stop the vring; its base, if the answer has come.
    pub fn stop(&mut self) -> Option<u32> {
        let state = VringState { index: 0, num: 0 };
        match self.rig.send(FrontendRequest::GetVringBase(state), false) {
            Some(FrontendReplyBody::VringState(state)) => Some(state.num),
            None => None,
            other => panic!("{other:?}"),
        }
    }

    /// Agree on everything and share memory, as at the beginning of a
    /// connection.
    pub fn set_up(&mut self) {
        self.agree();
        self.rig.open_channel();
        self.rig.add_memory();
    }

    pub fn agree(&mut self) {
        let features = self.features();
        self.rig.negotiate(features);
    }

    fn features(&self) -> u64 {
        let packed = if self.packed { virtio::RING_PACKED } else { 0 };
        FEATURES | virtio::ACCESS_PLATFORM | packed
    }

    /// Agree on more while the vring runs.
    pub fn agree_with(&mut self, more: u64) {
        let features = (self.features() | more) & self.offered();
        self.rig.ok(FrontendRequest::SetFeatures(features));
    }

    fn offered(&mut self) -> u64 {
        match self.rig.send(FrontendRequest::GetFeatures, false) {
            Some(FrontendReplyBody::U64(offered)) => offered,
            other => panic!("{other:?}"),
        }
    }

    /// Start the vring; what it needs to run is asked for.
    pub fn start(&mut self, base: u32) {
        let at = self.layout();
        let addr = VringAddr {
            index: 0,
            flags: 0,
            desc: at.desc,
            used: at.used,
            avail: at.avail,
            log: at.used,
        };
        self.start_at(base, addr);
    }

    pub fn start_at(&mut self, base: u32, addr: VringAddr) {
        let state = |num: u32| VringState { index: 0, num };
        self.rig.ok(FrontendRequest::SetVringNum(state(u32::from(RING))));
        self.rig.ok(FrontendRequest::SetVringBase(state(base)));
        self.rig.ok(FrontendRequest::SetVringAddr(addr));
        for message in [
            FrontendRequest::SetVringCall,
            FrontendRequest::SetVringErr,
            FrontendRequest::SetVringKick,
        ] {
            let handle = self.rig.handle();
            self.rig.ok(message(VringFile { index: 0, handle: Some(handle) }));
        }
        self.rig.ok(FrontendRequest::SetVringEnable(state(1)));
    }

    /// A platform whose vring runs, with an inflight region, and its driver.
    pub fn running(packed: bool) -> (Self, BlkDriver) {
        let mut new = Self::new(packed);
        let driver = new.run();
        (new, driver)
    }

    pub fn run(&mut self) -> BlkDriver {
        self.set_up();
        self.rig.get_inflight(1, RING);
        self.rig.set_inflight();
        let driver = self.driver();
        self.start(self.base(0, 0));
        self.serve();
        driver
    }

    /// What was asked on the channel and not taken from here yet.
    pub fn asked(&mut self) -> Option<(BackendRequest<Handle>, Iotlb)> {
        let envelope = self.rig.asked.get(self.seen)?;
        self.seen += 1;
        match &envelope.message {
            BackendRequest::IotlbMsg(iotlb) => Some((envelope.message.clone(), *iotlb)),
            BackendRequest::ConfigChangeMsg => {
                let message = envelope.message.clone();
                self.rig.answer(&message, 0);
                self.asked()
            }
            other => panic!("{other:?}"),
        }
    }

    /// Tell the back-end of a page as the tables have it.
    pub fn tell(&mut self, page: u64) {
        let (guest, perm) = self.tables.0[&page];
        self.granted.insert(page, (guest, perm));
        self.update(page * PAGE, PAGE, USER_BASE + guest * PAGE, perm);
    }

    pub fn update(&mut self, iova: u64, size: u64, user_addr: u64, perm: u8) {
        let update = Iotlb { iova, size, user_addr, perm, kind: 2 };
        self.checked(|p| {
            let reply = p.rig.send(FrontendRequest::IotlbMsg(update), true);
            assert_eq!(reply, Some(FrontendReplyBody::U64(0)), "{:?}", p.rig.events.last());
        });
    }

    /// Answer one question as a front-end does; false if there is none.
    pub fn serve_one(&mut self) -> bool {
        let Some((request, iotlb)) = self.asked() else { return false };
        let page = iotlb.iova / PAGE;
        let allowed = |(_, perm): &(u64, u8)| perm & iotlb.perm == iotlb.perm;
        let status = match iotlb.kind {
            1 if self.tables.0.get(&page).is_some_and(allowed) => {
                self.tell(page);
                0
            }
            1 => 1,
            4 => {
                self.failures.push(iotlb);
                1
            }
            other => panic!("asked with type {other}"),
        };
        self.checked(|p| p.rig.answer(&request, status));
        true
    }

    pub fn serve(&mut self) {
        while self.serve_one() {}
    }

    /// Take translations back; true if that was acknowledged at once.
    pub fn invalidate(&mut self, iova: u64, size: u64) -> bool {
        let message = Iotlb { iova, size, user_addr: 0, perm: 0, kind: 3 };
        let mut reply = None;
        self.checked(|p| reply = p.rig.send(FrontendRequest::IotlbMsg(message), true));
        match reply {
            Some(FrontendReplyBody::U64(0)) => self.forgotten(iova, size),
            None => return false,
            other => panic!("{other:?}"),
        }
        true
    }

    /// The back-end has acknowledged that.
    pub fn forgotten(&mut self, iova: u64, size: u64) {
        let last = iova.saturating_add(size - 1);
        self.granted.retain(|page, _| page * PAGE + PAGE - 1 < iova || page * PAGE > last);
    }

    /// Do something, and see that the back-end has stored only where it may.
    pub fn checked(&mut self, action: impl FnOnce(&mut Self)) {
        let pages = |p: &Self| -> BTreeSet<u64> {
            p.granted.values().filter(|(_, perm)| perm & WRITE != 0).map(|(g, _)| *g).collect()
        };
        let before = pages(self);
        self.rig.guest.iter().for_each(|region| MmapRegion::bitmap(region).reset());
        action(self);
        let allowed: BTreeSet<u64> = before.union(&pages(self)).copied().collect();
        for page in 0..GUEST_BYTES / PAGE {
            let region = self.rig.guest.iter().next().unwrap();
            let dirty = MmapRegion::bitmap(region).is_bit_set(page as usize);
            assert!(!dirty || allowed.contains(&page), "stored in page {page}, not allowed");
        }
    }

    pub fn kick(&mut self) {
        self.checked(|p| p.rig.kick(0));
    }

    /// The disk does one request.
    pub fn finish(&mut self, id: ReqId) {
        let request = self.rig.backend.request(id).expect("a request in flight");
        let need = match request.op {
            DiskOp::Read { .. } => WRITE,
            _ => READ,
        };
        let granted: BTreeSet<u64> = self
            .granted
            .values()
            .filter(|(_, perm)| perm & need == need)
            .map(|(guest, _)| *guest)
            .collect();
        for s in request.segments {
            for page in s.addr / PAGE..=(s.addr + u64::from(s.len) - 1) / PAGE {
                assert!(granted.contains(&page), "the disk was given page {page}");
            }
        }
        self.rig.at_disk.retain(|other| *other != id);
        self.checked(|p| {
            let done = p.rig.execute(id);
            p.rig.input(midflight::backend::Input::DiskDone(&[done]));
        });
    }

    pub fn finish_all(&mut self) {
        while let Some(id) = self.rig.at_disk.first().copied() {
            self.finish(id);
        }
    }

    /// Put a request into the ring and kick; buffers of slot n are its pages.
    pub fn submit(
        &mut self,
        driver: &mut BlkDriver,
        slot: u64,
        op: BlkOp<'_>,
        len: u32,
        framing: &Framing,
    ) {
        let base = slot_at(slot);
        let data = [Span { addr: base + PAGE - 100, len }];
        let buffers = RequestBuffers {
            header: base + 8,
            data: if len == 0 { &[] } else { &data },
            status: base + 5 * PAGE + 77,
            // Across a page border.
            table: Some(base + 7 * PAGE - 24),
        };
        let request = BlkRequest { op, token: slot };
        driver.submit(&self.view(), &request, &buffers, framing).unwrap();
        driver.publish(&self.view()).unwrap();
        self.kick();
    }

    /// Map all that a request in this slot needs.
    pub fn map_slot(&mut self, slot: u64) {
        self.tables.map(slot_at(slot), SLOT, BOTH);
    }
}

/// Bytes of a slot.
pub const SLOT: u64 = 8 * PAGE;

/// Where request number `slot` has its buffers: header in page 0, data from the
/// end of page 0 on, status in page 5, indirect table over pages 6 and 7.
pub fn slot_at(slot: u64) -> u64 {
    IOVA + 0x10_0000 + slot * SLOT
}
