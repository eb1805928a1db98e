//! The file or block device that is served.

use super::error::{Refusal, describe};
use super::limits::{self, DiskLimits};
use super::memory::Iov;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags, fallocate, fstat,
    fstatfs, open, seek, stat, statx,
};
use rustix::io::Errno;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// File systems that are memory: tmpfs, ramfs, hugetlbfs.
const IN_MEMORY: [u64; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];

/// File systems that several hosts may have mounted, or that may be so behind
/// their back: NFS, CIFS, SMB2, 9p, Ceph, AFS, Coda, FUSE, OCFS2, GFS2.
const SHARED: [u64; 10] = [
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x6573_5546,
    0x7461_636f,
    0x0116_1970,
];

/// File systems that write over data where it is: ext2 to ext4, XFS.
const IN_PLACE: [u64; 2] = [0xef53, 0x5846_5342];

/// What a store can promise about a request that is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelPromise {
    /// When the completion is there, nothing of the request can reach the
    /// medium or guest memory any more, in whatever way it ended.
    CancelAndWait,
    /// Nothing, and why.
    None(&'static str),
}

/// How to open an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// Never write.
    pub read_only: bool,
    /// O_DIRECT.
    pub direct: bool,
    /// Block size to show to the guest; `None`: the smallest that works.
    pub logical_block_size: Option<u32>,
}

/// An open image.
#[derive(Debug)]
pub struct Image {
    fd: OwnedFd,
    size: u64,
    block_size: u32,
    kind: FileType,
    /// Alignment of memory and offsets, in bytes, with O_DIRECT.
    direct: Option<(u32, u32)>,
    in_memory: bool,
    /// No other host can have it open.
    local: bool,
    /// Writing over data destroys it.
    in_place: bool,
    can_discard: bool,
    /// Where the kernel describes it, if it is a device, and what it says.
    sysfs: Option<PathBuf>,
    limits: DiskLimits,
    /// A file that has to be as durable as this one.
    companion: Option<OwnedFd>,
    /// Modes of fallocate(2) that have not failed so far.
    punch: AtomicBool,
    zero_range: AtomicBool,
}

impl Image {
    /// Open `path`.
    pub fn open(path: &Path, options: ImageOptions) -> Result<Self, Refusal> {
        let name = path.display();
        let cannot =
            |what: &str, e: Errno| Refusal(format!("cannot {what} {name}: {}", describe(e)));
        // Looked at before it is opened: opening a FIFO would wait for its
        // other end.
        let kind_of = |mode| FileType::from_raw_mode(mode);
        let kind = kind_of(stat(path).map_err(|e| cannot("open", e))?.st_mode);
        if !matches!(kind, FileType::RegularFile | FileType::BlockDevice) {
            return Err(Refusal(format!("{name} is neither a regular file nor a block device")));
        }
        let mut flags = OFlags::CLOEXEC;
        flags |= if options.read_only { OFlags::RDONLY } else { OFlags::RDWR };
        if options.direct {
            flags |= OFlags::DIRECT;
        }
        // Keeping the time of the last access costs every read a few percent and
        // tells nobody anything. Only the owner of a file may go without.
        let opened = match open(path, flags | OFlags::NOATIME, Mode::empty()) {
            Err(Errno::PERM) => open(path, flags, Mode::empty()),
            other => other,
        };
        let fd = match opened {
            Err(Errno::INVAL) if options.direct => {
                return Err(Refusal(format!("{name} does not support --direct")));
            }
            other => other.map_err(|e| cannot("open", e))?,
        };
        let file = fstat(&fd).map_err(|e| cannot("inspect", e))?;
        if kind_of(file.st_mode) != kind {
            return Err(Refusal(format!("{name} changed while it was opened")));
        }
        let size = measure(&fd, kind).map_err(|e| cannot("measure", e))?;
        let direct = options.direct.then(|| direct_alignment(&fd, kind));
        let needed = direct.map_or(512, |(_, offset)| offset.max(512));
        let sysfs = (kind == FileType::BlockDevice).then(|| limits::sysfs(file.st_rdev));
        let said =
            sysfs.as_ref().map_or_else(DiskLimits::default, |at| DiskLimits::of(fd.as_fd(), at));
        let usual = said.logical.map_or(needed, |size| size.clamp(needed, 4096));
        let block_size = options.logical_block_size.unwrap_or(usual);
        if block_size < needed || needed > 4096 {
            return Err(Refusal(format!(
                "--direct on {name} needs --logical-block-size {needed} or more, got {block_size}"
            )));
        }
        if size == 0 || !size.is_multiple_of(u64::from(block_size)) {
            return Err(Refusal(format!(
                "size of {name} is {size} bytes, expected a multiple of the block size {block_size}"
            )));
        }
        let magic = fstatfs(&fd).map_or(0, |fs| fs.f_type as u64);
        let mut image = Self {
            fd,
            size,
            block_size,
            kind,
            direct,
            in_memory: kind == FileType::RegularFile && IN_MEMORY.contains(&magic),
            local: kind == FileType::RegularFile && !SHARED.contains(&magic),
            in_place: IN_PLACE.contains(&magic),
            can_discard: false,
            sysfs,
            limits: said,
            companion: None,
            punch: AtomicBool::new(true),
            zero_range: AtomicBool::new(true),
        };
        image.can_discard = !options.read_only && image.probe_discard();
        Ok(image)
    }

    /// The open file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes at start-up.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes now: the file may have been made larger or smaller by others.
    pub fn measure(&self) -> Result<u64, Errno> {
        measure(&self.fd, self.kind)
    }

    /// Block size to show to the guest, in bytes.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// A block device, not a file.
    pub fn is_block(&self) -> bool {
        self.kind == FileType::BlockDevice
    }

    /// A file that no I/O on it ever waits for a device.
    pub fn is_in_memory(&self) -> bool {
        self.in_memory
    }

    /// No other host can have it open.
    pub fn is_local(&self) -> bool {
        self.local
    }

    /// Discard does something.
    pub fn can_discard(&self) -> bool {
        self.can_discard
    }

    /// What the device says of itself; nothing if it is a file.
    pub fn limits(&self) -> DiskLimits {
        self.limits
    }

    /// Where the kernel describes the device.
    pub fn sysfs(&self) -> Option<&Path> {
        self.sysfs.as_deref()
    }

    /// Whatever makes this image durable does so with this file too.
    pub fn set_companion(&mut self, file: OwnedFd) {
        self.companion = Some(file);
    }

    /// A file that has to be as durable as this one.
    pub fn companion(&self) -> Option<BorrowedFd<'_>> {
        self.companion.as_ref().map(|file| file.as_fd())
    }

    /// From now on what was in this image must not be left behind anywhere: see
    /// to it that erasing can be meant, or say why it cannot.
    ///
    /// A device must be able to do it itself. A file is written over, which
    /// means something only where the file system writes in place, and only for
    /// blocks that are the file's still, so it does not discard any more. What a
    /// drive keeps below its own file system, nobody here can know.
    pub fn prepare_erase(&mut self) -> Result<(), &'static str> {
        if self.is_block() {
            // A range that no device accepts: one that can erase at all finds
            // that wrong, one that cannot says so first.
            return match self.block_secure_discard(1, 1) {
                Err(Errno::INVAL) => Ok(()),
                _ => Err("the device cannot do it"),
            };
        }
        if !self.in_place && !self.in_memory {
            return Err("the file system may write new data elsewhere and keep the old");
        }
        self.can_discard = false;
        self.punch.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// What is known about requests that are cancelled.
    ///
    /// A write counts as over when the system call is over. That is true of
    /// every machine that may take the image over only if no page cache of this
    /// host keeps the data: local file systems are used by one host at a time,
    /// so the page cache goes with the file. What several hosts can open
    /// at once has to be opened past the page cache.
    pub fn promise(&self) -> CancelPromise {
        if self.direct.is_some() || self.local {
            return CancelPromise::CancelAndWait;
        }
        CancelPromise::None(if self.is_block() {
            "another host may use the device, and the page cache may write to it later"
        } else {
            "the file system is shared between hosts, and the page cache may write to it later"
        })
    }

    /// Whether O_DIRECT refuses these pieces.
    pub fn misaligned(&self, pieces: &[Iov]) -> bool {
        let Some((memory, length)) = self.direct else {
            return false;
        };
        let (memory, length) = (memory as usize, length as usize);
        pieces.iter().any(|Iov(v)| {
            !(v.iov_base as usize).is_multiple_of(memory) || !v.iov_len.is_multiple_of(length)
        })
    }

    /// The mode of fallocate(2) that discards.
    pub fn punch_mode() -> FallocateFlags {
        FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE
    }

    /// The best mode of fallocate(2) that makes zeroes, if one is left. Without
    /// `unmap` the range stays allocated.
    pub fn zero_mode(&self, unmap: bool) -> Option<FallocateFlags> {
        if unmap && self.punch.load(Ordering::Relaxed) {
            Some(Self::punch_mode())
        } else if self.zero_range.load(Ordering::Relaxed) {
            Some(FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE)
        } else {
            None
        }
    }

    /// A mode turned out not to be supported.
    pub fn forget_zero_mode(&self, mode: FallocateFlags) {
        if mode.contains(FallocateFlags::PUNCH_HOLE) {
            self.punch.store(false, Ordering::Relaxed);
        } else {
            self.zero_range.store(false, Ordering::Relaxed);
        }
    }

    /// Discard a range of a block device.
    pub fn block_discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        /// `_IO(0x12, 119)`
        const BLKDISCARD: libc::c_ulong = 0x1277;
        self.ranged(BLKDISCARD, offset, len)
    }

    /// Discard a range of a block device so that its content is gone.
    pub fn block_secure_discard(&self, offset: u64, len: u64) -> Result<(), Errno> {
        /// `_IO(0x12, 125)`
        const BLKSECDISCARD: libc::c_ulong = 0x127d;
        self.ranged(BLKSECDISCARD, offset, len)
    }

    fn ranged(&self, request: libc::c_ulong, offset: u64, len: u64) -> Result<(), Errno> {
        let range = [offset, len];
        // SAFETY: these requests read two 64-bit numbers from their argument.
        let code = unsafe { libc::ioctl(self.fd.as_raw_fd(), request as _, range.as_ptr()) };
        if code == 0 { Ok(()) } else { Err(super::disk::last_errno()) }
    }

    /// Ask whether discard works, without discarding anything.
    fn probe_discard(&self) -> bool {
        if self.is_block() {
            return self.limits.discard_max.is_some();
        }
        // Behind its end the file has nothing to lose.
        fallocate(&self.fd, Self::punch_mode(), self.size, 4096).is_ok()
    }
}

/// Alignment of memory and of offsets that O_DIRECT needs.
fn measure(fd: &OwnedFd, kind: FileType) -> Result<u64, Errno> {
    match kind {
        // Nothing here reads or writes at the place that this moves.
        FileType::BlockDevice => seek(fd, SeekFrom::End(0)),
        _ => Ok(u64::try_from(fstat(fd)?.st_size).unwrap_or(0)),
    }
}

fn direct_alignment(fd: &OwnedFd, kind: FileType) -> (u32, u32) {
    let found = statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN);
    if let Ok(found) = found
        && found.stx_mask & StatxFlags::DIOALIGN.bits() != 0
        && found.stx_dio_offset_align != 0
    {
        return (found.stx_dio_mem_align.max(1), found.stx_dio_offset_align);
    }
    if kind == FileType::BlockDevice {
        /// `_IO(0x12, 104)`
        const BLKSSZGET: libc::c_ulong = 0x1268;
        let mut size: libc::c_int = 0;
        // SAFETY: the request writes an int to its argument.
        let code = unsafe { libc::ioctl(fd.as_raw_fd(), BLKSSZGET as _, &raw mut size) };
        if code == 0 && size > 0 {
            return (size as u32, size as u32);
        }
    }
    // Kernels before 6.1 do not tell. A page is enough everywhere; the detour
    // for unaligned buffers then is taken more often than needed.
    (4096, 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_promises_nothing_where_a_page_cache_may_write_later() {
        let path = std::env::temp_dir().join(format!("midflight-image-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).unwrap();
        let options = ImageOptions { read_only: false, direct: false, logical_block_size: None };
        let mut image = Image::open(&path, options).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(image.promise(), CancelPromise::CancelAndWait);
        let says = |image: &Image| match image.promise() {
            CancelPromise::None(why) => why,
            CancelPromise::CancelAndWait => "nothing",
        };
        // As if it were on a file system of several hosts.
        image.local = false;
        assert!(says(&image).starts_with("the file system is shared between hosts"));
        image.kind = FileType::BlockDevice;
        assert!(says(&image).starts_with("another host may use the device"));
        image.direct = Some((512, 512));
        assert_eq!(image.promise(), CancelPromise::CancelAndWait);
    }
}
