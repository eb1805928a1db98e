//! The inflight subsection in a captured stream: only so much as it takes to
//! spoil it, and found without the reader that the project has.

use std::ops::Range;
use std::path::Path;

/// Where the parts of the subsection are in the file.
pub struct Subsection {
    /// Queue size, two bytes, big endian.
    pub queue_size: Range<usize>,
    /// The region.
    pub region: Range<usize>,
}

/// Finds the last subsection in the file: guest memory is further in front, and
/// may hold anything.
pub fn find(file: &[u8]) -> Result<Subsection, String> {
    const OUTER: &[u8] = b"\x05\x17vhost-user-blk/inflight\0\0\0\x01";
    const INNER: &[u8] = b"\x05\x1cvhost-inflight-region/buffer\0\0\0\0";
    let last = file.windows(OUTER.len()).rposition(|window| window == OUTER);
    let at = last.ok_or("the stream has no inflight subsection")? + OUTER.len();
    let start = at + 10 + INNER.len();
    let head = file.get(at..start).ok_or("the stream ends in the inflight subsection")?;
    let mut size = [0; 8];
    size.copy_from_slice(&head[..8]);
    let region = start..start + u64::from_be_bytes(size) as usize;
    if &head[10..] != INNER || region.end > file.len() {
        return Err(format!("the inflight subsection at {at} is not what was expected"));
    }
    Ok(Subsection { queue_size: at + 8..at + 10, region })
}

/// Writes a copy of the file with some bytes replaced.
pub fn write(from: &Path, to: &Path, at: usize, bytes: &[u8]) -> Result<(), String> {
    let mut file = std::fs::read(from).map_err(|error| format!("{}: {error}", from.display()))?;
    let place = file.get_mut(at..at + bytes.len()).ok_or("beyond the end of the stream")?;
    if place == bytes {
        return Err(format!("the stream has {bytes:02x?} at {at} already"));
    }
    place.copy_from_slice(bytes);
    std::fs::write(to, file).map_err(|error| format!("{}: {error}", to.display()))
}
