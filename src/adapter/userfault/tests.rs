use super::*;
use crate::adapter::handles::Handles;
use crate::adapter::memory::{GuestMem, Memory};
use crate::adapter::sigbus;
use crate::backend::{MapRegion, MissingMemory};
use crate::wire::MemRegion;
use rustix::fs::ftruncate;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::time::Duration;
use vm_memory::{Bytes, GuestAddress};

const PAGE: u64 = 4096;

struct Rig {
    memory: Memory,
    postcopy: Postcopy,
    file: OwnedFd,
    theirs: OwnedFd,
    front_end: OwnedFd,
    mem: GuestMem,
    base: u64,
}

/// Four pages of which none is there.
fn rig() -> Rig {
    sigbus::install().unwrap();
    let file = memfd_create("test", MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, 4 * PAGE).unwrap();
    let mut handles = Handles::default();
    let handle = handles.insert(file.try_clone().unwrap());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (front_end, ours) =
        socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
    let mut postcopy = Postcopy::default();
    let theirs = postcopy.open(Some(&Socket::new(ours))).unwrap();
    let mut memory = Memory::default();
    let region =
        MemRegion { guest_addr: 0, size: 4 * PAGE, user_addr: 0x7000_0000, mmap_offset: 0 };
    let mapped =
        memory.map_missing(&[MapRegion { region, handle }], &handles, postcopy.current().unwrap());
    let MissingMemory { memory: mem, bases } = mapped.unwrap();
    Rig { memory, postcopy, file, theirs, front_end, mem, base: bases[0] }
}

fn wait_for_fault(fd: &OwnedFd) -> u64 {
    for _ in 0..2000 {
        if let Some(address) = ioctl::next_fault(fd).unwrap() {
            return address;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("no page fault came");
}

fn read(mem: &GuestMem, at: u64) -> u8 {
    mem.read_obj(GuestAddress(at)).unwrap()
}

#[test]
fn postcopy_access_waits_until_the_page_is_put_into_shared_memory() {
    let rig = rig();
    let mem = rig.mem.clone();
    let reader = std::thread::spawn(move || read(&mem, 2 * PAGE + 5));
    let address = wait_for_fault(&rig.theirs);
    assert_eq!(address & !(PAGE - 1), rig.base + 2 * PAGE);
    assert!(!reader.is_finished());
    rustix::io::pwrite(&rig.file, &[7; PAGE as usize], 2 * PAGE).unwrap();
    ioctl::wake(&rig.theirs, (rig.base + 2 * PAGE) as usize, PAGE as usize);
    assert_eq!(reader.join().unwrap(), 7);
    // What is there does not fault.
    assert_eq!(read(&rig.mem, 2 * PAGE + 6), 7);
    drop(rig.memory);
}

#[test]
fn postcopy_system_call_waits_for_a_page_too() {
    let rig = rig();
    let (host, _) = rig.mem.find(PAGE).unwrap();
    let (host, (out, into)) = (host as usize, rustix::pipe::pipe().unwrap());
    let writer = std::thread::spawn(move || {
        // SAFETY: the page is mapped until the thread has ended.
        let page = unsafe { core::slice::from_raw_parts(host as *const u8, 16) };
        rustix::io::write(&into, page)
    });
    wait_for_fault(&rig.theirs);
    assert!(ioctl::copy(&rig.theirs, rig.base + PAGE, &[9; PAGE as usize]).unwrap());
    assert_eq!(writer.join().unwrap(), Ok(16));
    let mut bytes = [0; 16];
    rustix::io::read(&out, &mut bytes).unwrap();
    assert_eq!(bytes, [9; 16]);
    let again = ioctl::copy(&rig.theirs, rig.base + PAGE, &[1; PAGE as usize]);
    assert!(!again.unwrap(), "a page that is there stays");
}

#[test]
fn postcopy_end_makes_memory_ordinary() {
    let mut rig = rig();
    rustix::io::pwrite(&rig.file, &[3; 4 * PAGE as usize], 0).unwrap();
    rig.postcopy.close(true);
    assert!(rig.postcopy.current().is_err());
    assert_eq!(read(&rig.mem, 3 * PAGE), 3);
    rig.mem.write_obj(4u8, GuestAddress(0)).unwrap();
    let mut byte = [0];
    rustix::io::pread(&rig.file, &mut byte, 0).unwrap();
    assert_eq!(byte, [4], "still the same memory");
}

/// Not as zeroes: those would go to the disk.
#[test]
fn postcopy_front_end_that_goes_away_lets_waiting_accesses_fail() {
    let rig = rig();
    let (host, _) = rig.mem.find(PAGE).unwrap();
    let (host, (_out, into)) = (host as usize, rustix::pipe::pipe().unwrap());
    let writer = std::thread::spawn(move || {
        // SAFETY: the page is mapped until the thread has ended.
        let page = unsafe { core::slice::from_raw_parts(host as *const u8, 16) };
        rustix::io::write(&into, page)
    });
    let mem = rig.mem.clone();
    let reader = std::thread::spawn(move || (read(&mem, 3 * PAGE), sigbus::hits()));
    wait_for_fault(&rig.theirs);
    wait_for_fault(&rig.theirs);
    drop(rig.front_end);
    assert_eq!(writer.join().unwrap(), Err(Errno::FAULT));
    assert_eq!(reader.join().unwrap(), (0, 1), "and it is noticed");
    // The pages that were there are gone as well, but the file is whole.
    rustix::io::pwrite(&rig.file, &[5], 0).unwrap();
    assert_eq!(read(&rig.mem, 0), 0);
    drop(rig.memory);
}

#[test]
fn postcopy_memory_that_is_unmapped_leaves_the_list_that_is_cut() {
    let mut rig = rig();
    let faults = Arc::clone(rig.postcopy.current().unwrap());
    assert_eq!(faults.lock().len(), 1);
    drop(rig.mem);
    rig.memory.unmap();
    assert_eq!(*faults.lock(), []);
    rig.postcopy.close(false);
}
