//! What a block device says of itself.

use crate::blk::{Lifetime, RangeLimits, SECTOR_SIZE, Topology};
use std::fs::read_to_string;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

/// In bytes; what is not known is `None`. A file knows nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskLimits {
    /// Smallest unit of a request.
    pub logical: Option<u32>,
    /// Smallest unit that is written without reading.
    pub physical: Option<u32>,
    /// Where the first physical block begins.
    pub alignment_offset: Option<u32>,
    /// Smallest size that is no loss.
    pub min_io: Option<u32>,
    /// Best size.
    pub opt_io: Option<u32>,
    /// Unit of a discard.
    pub discard_granularity: Option<u32>,
    /// Largest discard.
    pub discard_max: Option<u64>,
}

/// The directory in which the kernel describes a device.
pub fn sysfs(device: u64) -> PathBuf {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    format!("/sys/dev/block/{major}:{minor}").into()
}

/// A number in a file about the device, or, for a partition, about its disk.
fn number(sysfs: &Path, file: &str) -> Option<u64> {
    let read = |path: PathBuf| read_to_string(path).ok();
    let text = read(sysfs.join(file)).or_else(|| read(sysfs.join("..").join(file)))?;
    text.trim().parse().ok()
}

impl DiskLimits {
    /// Ask the block device `fd`, described in `sysfs`.
    pub fn of(fd: BorrowedFd<'_>, sysfs: &Path) -> Self {
        /// `_IO(0x12, n)`, each of which stores an int.
        const SSZGET: libc::c_ulong = 0x1268;
        const IOMIN: libc::c_ulong = 0x1278;
        const IOOPT: libc::c_ulong = 0x1279;
        const ALIGNOFF: libc::c_ulong = 0x127a;
        const PBSZGET: libc::c_ulong = 0x127b;
        let ask = |request: libc::c_ulong| {
            let mut value: libc::c_int = 0;
            // SAFETY: each of these requests writes an int to its argument.
            let code = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut value) };
            // An alignment of -1 says that there is none.
            (code == 0).then(|| u32::try_from(value).ok()).flatten()
        };
        let queue = |name: &str| number(sysfs, &format!("queue/{name}"));
        Self {
            logical: ask(SSZGET).filter(|size| *size > 0),
            physical: ask(PBSZGET).filter(|size| *size > 0),
            alignment_offset: ask(ALIGNOFF),
            min_io: ask(IOMIN).filter(|size| *size > 0),
            opt_io: ask(IOOPT).filter(|size| *size > 0),
            discard_granularity: queue("discard_granularity")
                .and_then(|size| u32::try_from(size).ok())
                .filter(|size| *size > 0),
            discard_max: queue("discard_max_bytes").filter(|size| *size > 0),
        }
    }

    /// These, and for what they leave open, those of `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            logical: self.logical.or(other.logical),
            physical: self.physical.or(other.physical),
            alignment_offset: self.alignment_offset.or(other.alignment_offset),
            min_io: self.min_io.or(other.min_io),
            opt_io: self.opt_io.or(other.opt_io),
            discard_granularity: self.discard_granularity.or(other.discard_granularity),
            discard_max: self.discard_max.or(other.discard_max),
        }
    }

    /// As the guest is told, in blocks of `logical` bytes.
    pub fn topology(&self, logical: u32) -> Topology {
        let plain = Topology::plain(logical);
        let blocks = |bytes: u32| bytes / logical;
        Topology {
            physical_block_exp: self
                .physical
                .map_or(plain.physical_block_exp, |size| blocks(size).max(1).ilog2() as u8),
            alignment_offset: self
                .alignment_offset
                .map_or(plain.alignment_offset, |bytes| blocks(bytes).min(255) as u8),
            min_io_size: self
                .min_io
                .map_or(plain.min_io_size, |size| blocks(size).clamp(1, 65535) as u16),
            opt_io_size: self.opt_io.map_or(plain.opt_io_size, blocks),
        }
    }

    /// What one request for ranges may ask for, in blocks of `logical` bytes.
    pub fn ranges(&self, logical: u32) -> RangeLimits {
        let usual = RangeLimits::default();
        let sectors = |bytes: u32| (bytes / SECTOR_SIZE as u32).next_multiple_of(logical / 512);
        let max = self.discard_max.map_or(u64::from(usual.discard_sectors), |bytes| {
            let block = u64::from(logical);
            (bytes / block * block / SECTOR_SIZE).max(block / SECTOR_SIZE)
        });
        RangeLimits {
            discard_sectors: max.min(u64::from(usual.discard_sectors)) as u32,
            discard_alignment: self.discard_granularity.map_or(0, sectors),
            ..usual
        }
    }
}

/// How worn the device described in `sysfs` is: what an eMMC says in its
/// extended CSD. `None`: it does not say, or something that may not be sent.
pub fn lifetime(sysfs: &Path) -> Option<Lifetime> {
    let read = |file: &str| {
        read_to_string(sysfs.join("device").join(file))
            .or_else(|_| read_to_string(sysfs.join("../device").join(file)))
            .ok()
    };
    let hex = |text: &str| u8::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok();
    let (wear, eol) = (read("life_time")?, read("pre_eol_info")?);
    let (typ_a, typ_b) = wear.trim().split_once(' ')?;
    let lifetime = Lifetime { pre_eol_info: hex(&eol)?, typ_a: hex(typ_a)?, typ_b: hex(typ_b)? };
    lifetime.is_valid().then_some(lifetime)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn limits_of_a_disk_become_blocks_of_the_guest() {
        let all = DiskLimits {
            logical: Some(512),
            physical: Some(4096),
            alignment_offset: Some(3584),
            min_io: Some(65536),
            opt_io: Some(1 << 20),
            discard_granularity: Some(65536),
            discard_max: Some(1 << 20),
        };
        let t = all.topology(512);
        assert_eq!((t.physical_block_exp, t.alignment_offset), (3, 7));
        assert_eq!((t.min_io_size, t.opt_io_size), (128, 2048));
        let r = all.ranges(512);
        assert_eq!((r.discard_sectors, r.discard_alignment), (2048, 128));
        // Larger blocks for the guest than the disk has.
        let t = all.topology(8192);
        assert_eq!((t.physical_block_exp, t.alignment_offset), (0, 0));
        assert_eq!((t.min_io_size, t.opt_io_size), (8, 128));
        assert_eq!(DiskLimits::default().topology(512), Topology::plain(512));
        assert_eq!(DiskLimits::default().ranges(512), RangeLimits::default());
        let mine = DiskLimits { min_io: Some(4096), ..DiskLimits::default() };
        assert_eq!(mine.or(all), DiskLimits { min_io: Some(4096), ..all });
    }

    #[test]
    fn lifetime_of_an_emmc_is_read_and_reserved_values_are_not_believed() {
        let dir = std::env::temp_dir().join(format!("midflight-life-{}", std::process::id()));
        fs::create_dir_all(dir.join("device")).unwrap();
        let says = |wear: &str, eol: &str| {
            fs::write(dir.join("device/life_time"), wear).unwrap();
            fs::write(dir.join("device/pre_eol_info"), eol).unwrap();
            lifetime(&dir)
        };
        let worn = Lifetime { pre_eol_info: 2, typ_a: 11, typ_b: 1 };
        assert_eq!(says("0x0b 0x01\n", "0x02\n"), Some(worn));
        assert_eq!(says("0x0c 0x01\n", "0x02\n"), None);
        assert_eq!(says("0x01\n", "0x02\n"), None);
        fs::remove_file(dir.join("device/life_time")).unwrap();
        assert_eq!(lifetime(&dir), None);
        fs::remove_dir_all(&dir).unwrap();
    }
}
