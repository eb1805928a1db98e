//! Memory shared with a peer that is not the guest's.

use super::{GuestMem, PeerRegion};
use crate::adapter::error::describe;
use crate::adapter::handles::Handles;
use crate::backend::MapFailed;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Map an inflight region or a dirty log as memory from address 0.
pub fn map_shared(
    handles: &Handles,
    handle: crate::Handle,
    offset: u64,
    size: u64,
) -> Result<GuestMem, MapFailed> {
    let fd = handles.get(handle).ok_or_else(|| MapFailed(format!("{handle} is not open")))?;
    let region = PeerRegion::map(fd, offset, size, 0)?;
    GuestMem::from_regions(vec![Arc::new(region)])
}

/// Make zeroed memory for an inflight region, of a size that nobody can change.
pub fn alloc_inflight(size: u64) -> Result<OwnedFd, MapFailed> {
    let system = |errno| MapFailed(format!("cannot allocate {size} bytes: {}", describe(errno)));
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let fd = memfd_create("midflight-inflight", flags).map_err(system)?;
    ftruncate(&fd, size).map_err(system)?;
    fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL).map_err(system)?;
    Ok(fd)
}
