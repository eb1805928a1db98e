//! userfaultfd as the kernel has it.
//!
//! Numbers and structures are those of `linux/userfaultfd.h`, which are the same
//! on every architecture that this program runs on.

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mm::{UserfaultfdFlags, userfaultfd};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

const API: u64 = 0xaa;
/// Faults in shared memory.
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
/// First byte of a message: a page fault.
const EVENT_PAGEFAULT: u8 = 0x12;

const IOC_NEW: u64 = 0xaa00;
const IOC_API: u64 = 0xc018_aa3f;
const IOC_REGISTER: u64 = 0xc020_aa00;
const IOC_UNREGISTER: u64 = 0x8010_aa01;
const IOC_WAKE: u64 = 0x8010_aa02;
const IOC_COPY: u64 = 0xc028_aa03;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct CopyArgument {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

fn call<T>(fd: &OwnedFd, request: u64, argument: &mut T) -> rustix::io::Result<()> {
    // SAFETY: every caller passes the structure that the request has, alive for
    // the call. What the requests do to other memory is said where they are made.
    let code = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut *argument) };
    if code < 0 { Err(super::super::disk::last_errno()) } else { Ok(()) }
}

/// A userfaultfd for faults of programs and of the kernel, reads of which do not
/// block.
pub fn open() -> rustix::io::Result<OwnedFd> {
    let flags = UserfaultfdFlags::CLOEXEC | UserfaultfdFlags::NONBLOCK;
    // SAFETY: nothing is registered yet.
    let fd = match unsafe { userfaultfd(flags) } {
        // Whoever may open the device file need not be privileged.
        Err(Errno::PERM) => by_device()?,
        other => other?,
    };
    let mut argument = ApiArgument { api: API, features: FEATURE_MISSING_SHMEM, ioctls: 0 };
    call(&fd, IOC_API, &mut argument)?;
    Ok(fd)
}

fn by_device() -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let device = rustix::fs::open("/dev/userfaultfd", flags, Mode::empty())?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: the argument is a number; what is returned is a new descriptor.
    unsafe {
        let fd = libc::ioctl(device.as_raw_fd(), IOC_NEW as _, flags);
        if fd < 0 { Err(super::super::disk::last_errno()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
    }
}

/// Have missing pages of a mapping of the caller's told by `fd`. Every access to
/// one waits, which is all that changes for safe code.
pub fn register(fd: &OwnedFd, start: usize, len: usize) -> rustix::io::Result<()> {
    let range = Range { start: start as u64, len: len as u64 };
    call(fd, IOC_REGISTER, &mut RegisterArgument { range, mode: MODE_MISSING, ioctls: 0 })
}

/// The opposite, and let whoever waits look again.
pub fn unregister(fd: &OwnedFd, start: usize, len: usize) {
    let mut range = Range { start: start as u64, len: len as u64 };
    // Not registered: nothing to do.
    let _ = call(fd, IOC_UNREGISTER, &mut range);
}

/// Let whoever waits for a page of this range look again, in the process that
/// opened `fd`.
pub fn wake(fd: &OwnedFd, start: usize, len: usize) {
    let mut range = Range { start: start as u64, len: len as u64 };
    // Fails if that process is gone, and then nobody waits.
    let _ = call(fd, IOC_WAKE, &mut range);
}

/// Make a missing page at `to` a copy of `page`, in one step, in the process
/// that opened `fd`; false if it is not missing.
pub fn copy(fd: &OwnedFd, to: u64, page: &[u8]) -> rustix::io::Result<bool> {
    let (from, len) = (page.as_ptr() as u64, page.len() as u64);
    let mut argument = CopyArgument { to, from, len, mode: 0, copied: 0 };
    match call(fd, IOC_COPY, &mut argument) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// The address of the next page fault, in the process that opened `fd`.
pub fn next_fault(fd: &OwnedFd) -> rustix::io::Result<Option<u64>> {
    let mut message = [0; 32];
    match rustix::io::read(fd, &mut message) {
        Ok(32) if message[0] == EVENT_PAGEFAULT => {
            Ok(message[16..24].try_into().ok().map(u64::from_ne_bytes))
        }
        Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(None),
        Err(errno) => Err(errno),
    }
}
