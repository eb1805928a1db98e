//! SIGBUS: a peer may truncate memory that it shares with us.
//!
//! A load from a mapped page behind the end of its file raises SIGBUS, which
//! kills by default. Here a fault inside a registered mapping replaces the
//! page by anonymous zeroes and is remembered; the loop then closes that
//! connection. A fault anywhere else is our own bug and kills as before, with
//! one line saying where.
//!
//! System calls that touch such memory fail with EFAULT and raise nothing.

use core::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Mappings that can exist at once, old memory tables that requests still use
/// included.
const SLOTS: usize = 4096;

/// One registered range. A handler may look at any time, so `start` is written
/// last and cleared first; zero means empty.
struct Slot {
    taken: AtomicBool,
    start: AtomicUsize,
    end: AtomicUsize,
    granule: AtomicUsize,
}

static TABLE: [Slot; SLOTS] = [const {
    Slot {
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        granule: AtomicUsize::new(0),
    }
}; SLOTS];

/// One more than the highest slot ever used.
static HIGH: AtomicUsize = AtomicUsize::new(0);
/// A fault was caught since the last [`take_hit`].
static HIT: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Faults of this thread that were caught. Without destructor and
    /// initialised at compile time, so that a signal handler may touch it.
    static HITS: Cell<u32> = const { Cell::new(0) };
}

/// A registered range; dropping it ends the protection, so it must go before
/// the mapping does.
#[derive(Debug)]
pub struct Guard(usize);

impl Guard {
    /// Catch faults from `start`, `len` bytes, in units of `granule` bytes: the
    /// page size of the mapping. `None` if there are too many.
    pub fn new(start: usize, len: usize, granule: usize) -> Option<Self> {
        let index = TABLE.iter().position(|slot| {
            slot.taken.compare_exchange(false, true, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        })?;
        let slot = &TABLE[index];
        slot.end.store(start + len, Ordering::Relaxed);
        slot.granule.store(granule, Ordering::Relaxed);
        HIGH.fetch_max(index + 1, Ordering::Release);
        slot.start.store(start, Ordering::Release);
        Some(Self(index))
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let slot = &TABLE[self.0];
        slot.start.store(0, Ordering::Release);
        slot.taken.store(false, Ordering::Release);
    }
}

/// Whether a fault was caught since the last call.
pub fn take_hit() -> bool {
    HIT.load(Ordering::Relaxed) && HIT.swap(false, Ordering::Relaxed)
}

/// Whether [`take_hit`] would say so. What was read from the peer's memory since
/// the last time may be zeroes that were never there.
pub fn is_hit() -> bool {
    HIT.load(Ordering::Relaxed)
}

/// How many faults of this thread were caught so far. If there are more after
/// it has copied memory, the copy may have zeroes that were never there.
pub fn hits() -> u32 {
    HITS.get()
}

/// Install the handler for the rest of the process's life.
pub fn install() -> std::io::Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid value; every field that
    // matters is set below.
    let mut action: libc::sigaction = unsafe { core::mem::zeroed() };
    action.sa_sigaction = handler as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
    // SAFETY: `action` is a complete description, `handler` has the signature
    // that SA_SIGINFO asks for and only does what a signal handler may do.
    let code = unsafe {
        libc::sigemptyset(&mut action.sa_mask);
        libc::sigaction(libc::SIGBUS, &action, core::ptr::null_mut())
    };
    if code == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Only atomics, a thread's counter, mmap(2), write(2) and sigaction(2): all may be called here.
extern "C" fn handler(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel passes a valid siginfo to an SA_SIGINFO handler, and
    // errno's place is this thread's own.
    let (address, errno) = unsafe { ((*info).si_addr() as usize, *libc::__errno_location()) };
    if !replace(address) {
        die(address);
    }
    // SAFETY: as above. The interrupted code must find errno as it left it.
    unsafe { *libc::__errno_location() = errno };
}

/// Put zeroes where `address` lies, if it lies in a registered range.
fn replace(address: usize) -> bool {
    for slot in &TABLE[..HIGH.load(Ordering::Acquire).min(SLOTS)] {
        let start = slot.start.load(Ordering::Acquire);
        if start == 0 || address < start || address >= slot.end.load(Ordering::Relaxed) {
            continue;
        }
        let granule = slot.granule.load(Ordering::Relaxed);
        let page = address & !(granule - 1);
        // SAFETY: the page lies inside a mapping that is registered, hence
        // still there and ours: nothing but memory of the peer is replaced.
        let mapped = unsafe {
            libc::mmap(
                page as *mut libc::c_void,
                granule,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        HIT.store(true, Ordering::Relaxed);
        HITS.set(HITS.get().wrapping_add(1));
        return mapped != libc::MAP_FAILED;
    }
    false
}

/// Say where and let the default action happen.
fn die(address: usize) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut line = *b"midflight: fatal: bus error at address 0x0000000000000000\n";
    let end = line.len() - 1;
    for i in 0..16 {
        line[end - 1 - i] = DIGITS[(address >> (4 * i)) & 15];
    }
    // SAFETY: writes a local buffer; restores the default action, which is a
    // complete description with all fields zero (SIG_DFL). When the handler
    // returns, the faulting instruction runs again and the process dies of it;
    // a SIGBUS that another process sent is raised once more for that.
    unsafe {
        libc::write(2, line.as_ptr().cast(), line.len());
        let action: libc::sigaction = core::mem::zeroed();
        libc::sigaction(libc::SIGBUS, &action, core::ptr::null_mut());
        libc::raise(libc::SIGBUS);
    }
}
