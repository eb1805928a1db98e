//! The descriptors that ride with a request.

use super::{FrontendRequest, LogBase};

impl<H: Copy> FrontendRequest<H> {
    /// Every descriptor of this message, in the order they are attached.
    pub fn handles(&self) -> Vec<H> {
        match self {
            Self::SetMemTable(regions) => regions.iter().map(|(_, handle)| *handle).collect(),
            Self::SetLogBase(LogBase::Shared(_, handle))
            | Self::SetLogFd(handle)
            | Self::SetBackendReqFd(handle)
            | Self::SetInflightFd(_, handle)
            | Self::GpuSetSocket(handle)
            | Self::AddMemReg(_, handle)
            | Self::SetDeviceStateFd(_, handle) => vec![*handle],
            Self::SetVringKick(file) | Self::SetVringCall(file) | Self::SetVringErr(file) => {
                file.handle.into_iter().collect()
            }
            Self::RemMemReg(_, extra) => extra.iter().copied().collect(),
            _ => Vec::new(),
        }
    }
}
