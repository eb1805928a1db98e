//! The ioctls of zoned disks.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

// Numbers from linux/blkzoned.h; the libc crate has none of them.
const BLKREPORTZONE: u32 = 0xc010_1282;
const BLKRESETZONE: u32 = 0x4010_1283;
const BLKOPENZONE: u32 = 0x4010_1286;
const BLKCLOSEZONE: u32 = 0x4010_1287;
const BLKFINISHZONE: u32 = 0x4010_1288;

const MOST: usize = 64;

#[repr(C)]
#[derive(Clone, Copy)]
struct Zone {
    start: u64,
    len: u64,
    wp: u64,
    kind: u8,
    condition: u8,
    rest: [u8; 38],
}

#[repr(C)]
struct Report {
    sector: u64,
    count: u32,
    flags: u32,
    zones: [Zone; MOST],
}

/// Type, condition and written sectors of every zone: `2:4:128,2:1:0`. The last
/// number is meaningless where there is no write pointer.
pub fn report(file: &File) -> Result<String, String> {
    const NONE: Zone = Zone { start: 0, len: 0, wp: 0, kind: 0, condition: 0, rest: [0; 38] };
    let mut report = Report { sector: 0, count: MOST as u32, flags: 0, zones: [NONE; MOST] };
    // SAFETY: the request fills at most `count` zones behind the header.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), BLKREPORTZONE as _, &raw mut report) };
    if code != 0 {
        return Err(format!("report: {}", io::Error::last_os_error()));
    }
    let zones = &report.zones[..report.count as usize];
    let words: Vec<String> = zones
        .iter()
        .map(|z| format!("{}:{}:{}", z.kind, z.condition, z.wp.wrapping_sub(z.start) as u32))
        .collect();
    let len = zones.first().map_or(0, |zone| zone.len);
    Ok(format!("count={} sectors={len} zones={}", zones.len(), words.join(",")))
}

/// Does something to all zones of a range of bytes.
pub fn act(file: &File, action: &str, offset: u64, len: u64) -> io::Result<()> {
    let request = match action {
        "reset" => BLKRESETZONE,
        "open" => BLKOPENZONE,
        "close" => BLKCLOSEZONE,
        "finish" => BLKFINISHZONE,
        _ => return Err(io::ErrorKind::InvalidInput.into()),
    };
    let range = [offset / 512, len / 512];
    // SAFETY: the request reads two u64 from the pointer and nothing else.
    let code = unsafe { libc::ioctl(file.as_raw_fd(), request as _, range.as_ptr()) };
    if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
