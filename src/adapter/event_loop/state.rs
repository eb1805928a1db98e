//! The device's state through a pipe, a piece at a time.
//!
//! Whoever is at the other end may be slow, silent or hostile: nothing here
//! waits, and everything has an end.

use super::{Answer, EventLoop};
use crate::Handle;
use crate::adapter::error::describe;
use crate::adapter::poller::Source;
use crate::backend::MapFailed;
use crate::time::{Duration, Instant};
use bytes::Bytes;
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;

/// How long a transfer may take. A state is a few bytes; whoever writes or reads
/// them has nothing else to do meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// A transfer under way.
pub struct StateTransfer {
    handle: Handle,
    kind: Kind,
    /// When it is given up.
    pub deadline: Instant,
}

enum Kind {
    /// What is still to be written.
    Save(Bytes),
    /// What was read, and how much it may become.
    Load(Vec<u8>, u64),
}

/// What became of a piece.
enum Piece {
    More,
    Over,
}

impl EventLoop {
    pub(super) fn save_state(&mut self, now: Instant, handle: Handle, bytes: Bytes) {
        self.begin_state(now, handle, Kind::Save(bytes));
    }

    pub(super) fn load_state(&mut self, now: Instant, handle: Handle, most: u64) {
        self.begin_state(now, handle, Kind::Load(Vec::new(), most));
    }

    fn begin_state(&mut self, now: Instant, handle: Handle, kind: Kind) {
        let transfer = StateTransfer { handle, kind, deadline: now + PATIENCE };
        match self.watch_state(handle) {
            Ok(()) => self.state = Some(transfer),
            Err(why) => self.end_state(transfer, Err(MapFailed(why))),
        }
    }

    /// Only what can be asked whether it is ready is taken: a file on a disk
    /// that hangs would hang us.
    fn watch_state(&self, handle: Handle) -> Result<(), String> {
        let fd = self.handles.get(handle).ok_or("no descriptor")?;
        let system = |errno: Errno| describe(errno);
        let kind = FileType::from_raw_mode(fstat(fd).map_err(system)?.st_mode);
        if !matches!(kind, FileType::Fifo | FileType::Socket) {
            return Err("expected a pipe or a socket".into());
        }
        let flags = fcntl_getfl(fd).map_err(system)?;
        fcntl_setfl(fd, flags | OFlags::NONBLOCK).map_err(system)?;
        self.poller.add(fd, Source::State).map_err(system)
    }

    /// The back-end does not want it any more.
    pub(super) fn forget_state(&mut self, handle: Handle) {
        if self.state.as_ref().is_some_and(|state| state.handle == handle) {
            self.drop_state();
        }
    }

    pub(super) fn drop_state(&mut self) {
        // The other end may keep the pipe open, and with it what is watched.
        if let Some(state) = self.state.take()
            && let Some(fd) = self.handles.get(state.handle)
        {
            self.poller.remove(fd);
        }
    }

    pub(super) fn state_overdue(&mut self, now: Instant) {
        if let Some(transfer) = self.state.take() {
            let why = format!("the other end took more than {} s", PATIENCE.as_secs());
            self.end_state(transfer, Err(MapFailed(why)));
            self.drain(now);
        }
    }

    pub(super) fn state_ready(&mut self, now: Instant) {
        let Some(mut transfer) = self.state.take() else { return };
        let Some(fd) = self.handles.get(transfer.handle) else { return };
        loop {
            let piece = match &mut transfer.kind {
                Kind::Save(bytes) => rustix::io::write(fd, bytes).map(|n| {
                    let _ = bytes.split_to(n);
                    if bytes.is_empty() { Piece::Over } else { Piece::More }
                }),
                Kind::Load(read, most) => load_piece(fd, read, *most),
            };
            match piece {
                Ok(Piece::More) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.state = Some(transfer);
                    return;
                }
                Ok(Piece::Over) => break self.end_state(transfer, Ok(())),
                Err(errno) => {
                    let failed = Err(MapFailed(describe(errno)));
                    break self.end_state(transfer, failed);
                }
            }
        }
        self.drain(now);
    }

    fn end_state(&mut self, transfer: StateTransfer, result: Result<(), MapFailed>) {
        if let Some(fd) = self.handles.get(transfer.handle) {
            self.poller.remove(fd);
        }
        self.answers.push_back(match transfer.kind {
            Kind::Save(_) => Answer::StateSaved(result),
            Kind::Load(read, most) if read.len() as u64 > most => {
                let why = format!("expected at most {most} bytes, got more");
                Answer::StateLoaded(Err(MapFailed(why)))
            }
            Kind::Load(read, _) => Answer::StateLoaded(result.map(|()| read.into())),
        });
    }
}

fn load_piece(
    fd: std::os::fd::BorrowedFd<'_>,
    read: &mut Vec<u8>,
    most: u64,
) -> Result<Piece, Errno> {
    let mut piece = [0; 1024];
    let n = rustix::io::read(fd, &mut piece)?;
    read.extend_from_slice(&piece[..n]);
    Ok(if n == 0 || read.len() as u64 > most { Piece::Over } else { Piece::More })
}
