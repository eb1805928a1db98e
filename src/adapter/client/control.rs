//! What a front-end may change while the vrings run: event descriptors, memory,
//! the enabled flag. None of it may lose a request, and each call says so only
//! when the back-end has answered.
// spec: vhost-user, "Ring states": on-the-fly changes

use super::{Client, ClientError, USER, map_shared, sealed_memory, system};
use crate::Handle;
use crate::frontend::{Command, Event};
use crate::wire::{FrontendReplyBody, FrontendRequest, MemRegion, VringFile, VringState};
use rustix::event::{EventfdFlags, eventfd};
use std::fs::File;
use std::sync::Arc;
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend as _};

/// What came of a message that the caller composed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The back-end acknowledged with this status; 0 is success.
    Status(u64),
    /// An answer that is no status.
    Other,
    /// The connection broke before there was one.
    Lost,
}

/// Which of a vring's event descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Descriptor {
    Kick,
    Call,
    Err,
}

impl Client {
    /// Send any message with NEED_REPLY and wait for what comes of it. REPLY_ACK
    /// must be agreed on, or the message must have an answer of its own.
    pub fn raw(&mut self, request: FrontendRequest<Handle>) -> Result<Answer, ClientError> {
        let is_end = |e: &Event| matches!(e, Event::RawReply(_) | Event::Disconnected { .. });
        self.events.retain(|event| !is_end(event));
        self.command(Command::Raw { request, need_reply: true })?;
        self.wait("an answer", |c| c.events.iter().any(is_end))?;
        let end = self.events.iter().find(|event| is_end(event));
        Ok(match end {
            Some(Event::RawReply(reply)) => match &reply.body {
                FrontendReplyBody::U64(status) => Answer::Status(*status),
                _ => Answer::Other,
            },
            _ => Answer::Lost,
        })
    }

    /// Give a vring another kick descriptor. What was kicked on the old one may
    /// not be seen any more, so the new one is kicked once.
    pub fn swap_kick(&mut self, vring: u16) -> Result<Answer, ClientError> {
        let answer = self.swap(vring, Descriptor::Kick)?;
        self.signal_kick(vring)?;
        Ok(answer)
    }

    /// Give a vring another call descriptor. From here on only the new one is
    /// listened to.
    pub fn swap_call(&mut self, vring: u16) -> Result<Answer, ClientError> {
        self.swap(vring, Descriptor::Call)
    }

    /// Give a vring another err descriptor.
    pub fn swap_err(&mut self, vring: u16) -> Result<Answer, ClientError> {
        self.swap(vring, Descriptor::Err)
    }

    fn swap(&mut self, vring: u16, which: Descriptor) -> Result<Answer, ClientError> {
        let index = u8::try_from(vring).ok().filter(|v| usize::from(*v) < self.queues.len());
        let index = index.ok_or(crate::frontend::ApiMisuse::BadVring(vring))?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let fd = eventfd(0, flags).map_err(|e| system("cannot make an eventfd", e))?;
        let handle = self.handles.insert(fd);
        let file = VringFile { index, handle: Some(handle) };
        let answer = self.raw(match which {
            Descriptor::Kick => FrontendRequest::SetVringKick(file),
            Descriptor::Call => FrontendRequest::SetVringCall(file),
            Descriptor::Err => FrontendRequest::SetVringErr(file),
        })?;
        let queue = &mut self.queues[usize::from(vring)];
        let slot = match which {
            Descriptor::Kick => &mut queue.kick,
            Descriptor::Call => &mut queue.call,
            Descriptor::Err => &mut queue.err,
        };
        let unused = match answer {
            Answer::Status(0) | Answer::Lost => slot.replace(handle),
            // Refused: the old one stays.
            _ => Some(handle),
        };
        // The wiring is sent again with every connection.
        if let Some(unused) = unused.filter(|handle| !self.wired.contains(handle)) {
            self.handles.release(unused);
        }
        Ok(answer)
    }

    /// Enable or disable one vring.
    pub fn set_enabled(&mut self, vring: u16, on: bool) -> Result<Answer, ClientError> {
        let state = VringState { index: u32::from(vring), num: u32::from(on) };
        self.raw(FrontendRequest::SetVringEnable(state))
    }

    /// Plug memory in: one file of `size` bytes, shared in `pieces` regions that
    /// follow each other in guest-physical addresses but not in user addresses.
    /// Returns where it begins. `size` is a multiple of 4096 times `pieces`.
    pub fn plug_memory(&mut self, size: u64, pieces: u64) -> Result<u64, ClientError> {
        let (_, fd) = sealed_memory::<AtomicBitmap>("midflight-plugged", size)?;
        let start = self.memory_end();
        if self.log.is_some() {
            // Its pages are written as soon as it is there.
            self.log_up_to(start + size)?;
        }
        let piece = size / pieces;
        for i in 0..pieces {
            let what = "cannot share memory twice";
            let copy = fd.try_clone().map_err(|source| ClientError::System { what, source })?;
            let offset = FileOffset::new(File::from(copy), i * piece);
            let guest_addr = start + i * piece;
            let region = map_shared(GuestAddress(guest_addr), piece, offset)?;
            self.memory = self.memory.insert_region(Arc::new(region)).map_err(not_mapped)?;
            let copy = fd.try_clone().map_err(|source| ClientError::System { what, source })?;
            let handle = self.handles.insert(copy);
            let user_addr = USER + guest_addr + (i + 1) * PLUG_GAP;
            let mmap_offset = i * piece;
            self.regions
                .push((MemRegion { guest_addr, size: piece, user_addr, mmap_offset }, handle));
        }
        self.share_memory()?;
        Ok(start)
    }

    /// Take out what [`plug_memory`](Self::plug_memory) put in at `start` and
    /// everything behind it. No request may use it any more.
    pub fn unplug_memory(&mut self, start: u64) -> Result<(), ClientError> {
        let (kept, gone) = core::mem::take(&mut self.regions)
            .into_iter()
            .partition(|(region, _)| region.guest_addr < start);
        self.regions = kept;
        self.share_memory()?;
        let gone: Vec<(MemRegion, Handle)> = gone;
        for (region, handle) in gone {
            let at = GuestAddress(region.guest_addr);
            let (memory, _) = self.memory.remove_region(at, region.size).map_err(not_mapped)?;
            self.memory = memory;
            self.handles.release(handle);
        }
        Ok(())
    }

    /// End of guest-physical memory.
    pub fn memory_end(&self) -> u64 {
        self.memory.last_addr().0 + 1
    }

    fn share_memory(&mut self) -> Result<(), ClientError> {
        let is_refusal = |e: &Event| matches!(e, Event::Refused { .. });
        self.events.retain(|event| !is_refusal(event));
        self.command(Command::SetMemory(self.regions.clone()))?;
        if !self.phase().is_connected() {
            return Ok(());
        }
        // Its answer comes after all of theirs.
        self.raw(FrontendRequest::GetFeatures)?;
        let refused = self.events.iter().find_map(|event| match event {
            Event::Refused { message, status } => Some((*message, *status)),
            _ => None,
        });
        refused.map_or(Ok(()), |(message, status)| Err(ClientError::Refused { message, status }))
    }
}

/// Between the user addresses of two pieces, so that nobody takes them for one.
const PLUG_GAP: u64 = 1 << 40;

fn not_mapped<E: core::fmt::Display>(error: E) -> ClientError {
    let source = std::io::Error::other(error.to_string());
    ClientError::System { what: "cannot map shared memory", source }
}
