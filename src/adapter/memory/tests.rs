use super::*;
use crate::Handle;
use crate::adapter::handles::Handles;
use crate::backend::MapRegion;
use crate::blk::Segment;
use crate::wire::MemRegion;
use rustix::fs::{MemfdFlags, fstat, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use vm_memory::Bytes;
use vm_memory::GuestAddress;

const PAGE: u64 = 4096;

fn memfd(size: u64) -> OwnedFd {
    let fd = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&fd, size).unwrap();
    fd
}

fn region(handle: Handle, guest: u64, size: u64, offset: u64) -> MapRegion {
    MapRegion {
        region: MemRegion {
            guest_addr: guest,
            size,
            user_addr: guest + 0x7000_0000,
            mmap_offset: offset,
        },
        handle,
    }
}

fn bytes(iov: &[Iov]) -> Vec<u8> {
    let mut all = Vec::new();
    for Iov(v) in iov {
        // SAFETY: the tests below keep the memory mapped.
        all.extend_from_slice(unsafe {
            core::slice::from_raw_parts(v.iov_base.cast::<u8>(), v.iov_len)
        });
    }
    all
}

#[test]
fn memory_short_file_is_refused_with_both_sizes() {
    let fd = memfd(PAGE);
    let error = PeerRegion::map(std::os::fd::AsFd::as_fd(&fd), 0, 2 * PAGE, 0).unwrap_err();
    assert_eq!(error.0, "expected a memory file of at least 8192 bytes, got one of 4096");
    for (offset, size) in [(u64::MAX, 2), (0, 0)] {
        assert!(PeerRegion::map(std::os::fd::AsFd::as_fd(&fd), offset, size, 0).is_err());
    }
}

#[test]
fn memory_segment_across_regions_is_translated_piecewise() {
    let mut handles = Handles::default();
    let fd = memfd(4 * PAGE);
    rustix::io::pwrite(&fd, &[1; 8], 2 * PAGE - 8).unwrap();
    rustix::io::pwrite(&fd, &[2; 8], 3 * PAGE).unwrap();
    let a = handles.insert(fd.try_clone().unwrap());
    let b = handles.insert(fd);
    let mut memory = Memory::default();
    // The second region follows the first for the guest but not in the
    // file, and its offset is not a multiple of the page size.
    let table = [region(b, PAGE, PAGE - 512, 3 * PAGE), region(a, 0, PAGE, PAGE)];
    memory.map(&table, &handles).unwrap();
    let mut iov = Vec::new();
    let segments = [Segment { addr: PAGE - 8, len: 12 }, Segment { addr: PAGE + 4, len: 4 }];
    let epoch = memory.translate(&segments, &mut iov).unwrap();
    // Two mappings, which the kernel may have put side by side.
    assert!(iov.len() <= 2, "touching pieces are joined");
    assert_eq!(bytes(&iov), [[1; 8], [2; 8]].concat());
    memory.release(epoch);
    for (addr, len) in [(2 * PAGE - 512, 1), (2 * PAGE - 513, 2), (u64::MAX, 1)] {
        iov.clear();
        assert_eq!(memory.translate(&[Segment { addr, len }], &mut iov), None);
    }
}

#[test]
fn memory_unaligned_offset_maps_the_right_bytes() {
    let fd = memfd(2 * PAGE);
    rustix::io::pwrite(&fd, b"here", 512).unwrap();
    let mut handles = Handles::default();
    let handle = handles.insert(fd);
    let mem = map_shared(&handles, handle, 512, PAGE).unwrap();
    let mut buf = [0; 4];
    mem.read_slice(&mut buf, GuestAddress(0)).unwrap();
    assert_eq!(&buf, b"here");
    assert!(mem.write_slice(&[0; PAGE as usize], GuestAddress(1)).is_err());
}

#[test]
fn memory_old_table_stays_while_a_request_uses_it() {
    let mut handles = Handles::default();
    let (a, b) = (handles.insert(memfd(PAGE)), handles.insert(memfd(PAGE)));
    let mut memory = Memory::default();
    memory.map(&[region(a, 0, PAGE, 0)], &handles).unwrap();
    let mut iov = Vec::new();
    let whole = [Segment { addr: 0, len: 4096 }];
    let epoch = memory.translate(&whole, &mut iov).unwrap();
    memory.unmap();
    memory.map(&[region(b, 0, PAGE, 0)], &handles).unwrap();
    let second = memory.translate(&whole, &mut Vec::new()).unwrap();
    memory.unmap();
    assert_eq!(memory.tables(), 4);
    memory.release(second);
    assert_eq!(memory.tables(), 4, "the first still blocks");
    assert_eq!(bytes(&iov), vec![0; 4096], "still mapped");
    memory.release(epoch);
    assert_eq!(memory.tables(), 1);
}

#[test]
fn memory_known_region_is_not_mapped_again() {
    let mut handles = Handles::default();
    let (a, b) = (handles.insert(memfd(PAGE)), handles.insert(memfd(PAGE)));
    let mut memory = Memory::default();
    let one = memory.map(&[region(a, 0, PAGE, 0)], &handles).unwrap();
    let two = memory.map(&[region(a, 0, PAGE, 0), region(b, PAGE, PAGE, 0)], &handles).unwrap();
    let host = |m: &GuestMem, at| m.find(at).unwrap();
    assert_eq!(host(&one, 0), host(&two, 0));
    // A table that cannot be made leaves the old one in force.
    assert!(memory.map(&[region(b, 0, 2 * PAGE, 0)], &handles).is_err());
    assert!(memory.current().find(PAGE).is_some() && memory.current().find(2 * PAGE).is_none());
}

#[test]
fn memory_inflight_allocation_is_zeroed_and_sealed() {
    let fd = alloc_inflight(3 * PAGE).unwrap();
    assert_eq!(fstat(&fd).unwrap().st_size, 3 * PAGE as i64);
    assert!(ftruncate(&fd, PAGE).is_err() && ftruncate(&fd, 4 * PAGE).is_err());
    let mut handles = Handles::default();
    let handle = handles.insert(fd);
    let mem = map_shared(&handles, handle, 0, 3 * PAGE).unwrap();
    let mut all = vec![1; 3 * PAGE as usize];
    mem.read_slice(&mut all, GuestAddress(0)).unwrap();
    assert!(all.iter().all(|b| *b == 0));
}

#[test]
fn memory_truncated_by_the_peer_reads_as_zeroes_and_is_noticed() {
    super::super::sigbus::install().unwrap();
    let fd = memfd(4 * PAGE);
    rustix::io::pwrite(&fd, &[7; 4 * PAGE as usize], 0).unwrap();
    let mut handles = Handles::default();
    let handle = handles.insert(fd.try_clone().unwrap());
    let mem = map_shared(&handles, handle, 0, 4 * PAGE).unwrap();
    ftruncate(&fd, 2 * PAGE).unwrap();
    assert_eq!(mem.read_obj::<u8>(GuestAddress(2 * PAGE - 1)).unwrap(), 7);
    // By this thread's own count: other tests have faults too.
    let before = super::super::sigbus::hits();
    assert_eq!(mem.read_obj::<u8>(GuestAddress(2 * PAGE)).unwrap(), 0);
    assert_eq!(super::super::sigbus::hits(), before + 1);
    mem.write_obj(5u8, GuestAddress(4 * PAGE - 1)).unwrap();
    assert_eq!(super::super::sigbus::hits(), before + 2);
    assert!(super::super::sigbus::take_hit());
    assert_eq!(mem.read_obj::<u8>(GuestAddress(0)).unwrap(), 7);
}
