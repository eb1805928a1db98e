//! A socket of the client that is served: the control socket, or the channel.

use super::error::describe;
use super::handles::Handles;
use crate::Handle;
use bytes::{Buf as _, Bytes};
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, recvmsg, sendmsg, shutdown,
};
use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors taken with one read. The largest message carries 8; a peer that
/// sends more at once than this loses its connection.
// spec: vhost-user, "Communication"
const MAX_FDS: usize = 32;
/// Bytes read at once, whatever the back-end wants.
const READ: usize = 8192;
/// Bytes of answers kept for a peer that does not read them.
const MAX_QUEUED: usize = 256 * 1024;

/// Why a connection cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SocketError {
    /// The system says so.
    #[error("{}", describe(*.0))]
    System(Errno),
    /// The peer sent more descriptors than any message has.
    #[error("expected at most {MAX_FDS} descriptors at once, got more")]
    TooManyHandles,
    /// The peer does not read its answers.
    #[error("expected the front-end to read its answers, {0} bytes are waiting")]
    NotReading(usize),
}

/// What a read brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// So many bytes, in [`Socket::bytes`], with these descriptors.
    Bytes(usize, Vec<Handle>),
    /// Nothing is there now; the poller will tell.
    Nothing,
    /// The peer has closed.
    End,
}

/// The socket, with answers it did not take yet.
pub struct Socket {
    fd: OwnedFd,
    buffer: Box<[u8; READ]>,
    queue: VecDeque<Queued>,
    queued: usize,
    /// There may be something to read: no read has found nothing since the
    /// poller said so.
    pub readable: bool,
    /// Ended by us.
    pub broken: bool,
}

struct Queued {
    bytes: Bytes,
    /// Own copies: the back-end may release its handles before they are sent.
    fds: Vec<OwnedFd>,
}

impl Socket {
    /// Take over a connected socket.
    pub fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            buffer: Box::new([0; READ]),
            queue: VecDeque::new(),
            queued: 0,
            readable: true,
            broken: false,
        }
    }

    /// Read at most `wanted` bytes, and all descriptors that came with them.
    pub fn receive(
        &mut self,
        wanted: usize,
        handles: &mut Handles,
    ) -> Result<Received, SocketError> {
        let wanted = wanted.min(READ);
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            let mut iov = [IoSliceMut::new(&mut self.buffer[..wanted])];
            // Whether a socket blocks belongs to the open file, and so to the
            // peer as well where it was sent by the peer.
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.fd, &mut iov, &mut control, flags) {
                Ok(got) => break got,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(Received::Nothing);
                }
                Err(Errno::CONNRESET) => return Ok(Received::End),
                Err(errno) => return Err(SocketError::System(errno)),
            }
        };
        let mut received = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                received.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) {
            // Those that came are closed here, the others by the kernel.
            return Err(SocketError::TooManyHandles);
        }
        if got.bytes == 0 {
            return Ok(Received::End);
        }
        let received = received.into_iter().map(|fd| handles.insert(fd)).collect();
        Ok(Received::Bytes(got.bytes, received))
    }

    /// The first `n` bytes of the last read.
    pub fn bytes(&self, n: usize) -> &[u8] {
        &self.buffer[..n]
    }

    /// Send a message, the descriptors with its first byte; what the socket
    /// does not take is kept for [`Socket::flush`].
    pub fn send(
        &mut self,
        mut bytes: Bytes,
        handles: &[Handle],
        table: &Handles,
    ) -> Result<(), SocketError> {
        let fds: Vec<BorrowedFd<'_>> = handles.iter().filter_map(|h| table.get(*h)).collect();
        let mut rest = &fds[..];
        if self.queue.is_empty() {
            if let Some(n) = send_once(self.fd.as_fd(), &bytes, rest)? {
                bytes.advance(n);
                rest = &[];
            }
            if bytes.is_empty() {
                return Ok(());
            }
        }
        self.queued += bytes.len();
        if self.queued > MAX_QUEUED {
            return Err(SocketError::NotReading(self.queued));
        }
        let fds = rest
            .iter()
            .map(|fd| fd.try_clone_to_owned())
            .collect::<Result<_, _>>()
            .map_err(|e| SocketError::System(Errno::from_io_error(&e).unwrap_or(Errno::IO)))?;
        self.queue.push_back(Queued { bytes, fds });
        self.flush()
    }

    /// End the connection: the next read finds its end.
    pub fn shut(&mut self) {
        // It may have ended already.
        let _ = shutdown(&self.fd, Shutdown::Both);
        self.readable = true;
        self.broken = true;
    }

    /// Whether the other end is closed already, though nobody has read so far.
    pub fn is_hung_up(&self) -> bool {
        let gone = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let mut fds = [PollFd::new(&self.fd, gone)];
        poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().intersects(gone)
    }

    /// Send what is kept, as far as the socket takes it.
    pub fn flush(&mut self) -> Result<(), SocketError> {
        while let Some(first) = self.queue.front_mut() {
            let fds: Vec<BorrowedFd<'_>> = first.fds.iter().map(|fd| fd.as_fd()).collect();
            let Some(n) = send_once(self.fd.as_fd(), &first.bytes, &fds)? else {
                return Ok(());
            };
            first.fds.clear();
            first.bytes.advance(n);
            self.queued -= n;
            if first.bytes.is_empty() {
                self.queue.pop_front();
            }
        }
        Ok(())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `None`: the socket takes nothing now.
fn send_once(
    fd: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> Result<Option<usize>, SocketError> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(SocketError::TooManyHandles);
    }
    loop {
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        match sendmsg(fd, &[IoSlice::new(bytes)], &mut control, flags) {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(None),
            Err(errno) => return Err(SocketError::System(errno)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pair() -> (Socket, Socket) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        (Socket::new(a), Socket::new(b))
    }

    #[test]
    fn socket_descriptors_stay_with_their_first_byte() {
        let (mut a, mut b) = pair();
        let mut table = Handles::default();
        let event = table.insert(eventfd(3, EventfdFlags::empty()).unwrap());
        a.send(Bytes::from_static(b"one"), &[], &table).unwrap();
        a.send(Bytes::from_static(b"two"), &[event], &table).unwrap();
        let mut theirs = Handles::default();
        assert_eq!(b.receive(3, &mut theirs), Ok(Received::Bytes(3, vec![])));
        let Ok(Received::Bytes(3, got)) = b.receive(3, &mut theirs) else {
            panic!("three bytes are there");
        };
        assert_eq!((b.bytes(3), got.len()), (&b"two"[..], 1));
        let mut count = [0; 8];
        rustix::io::read(theirs.get(got[0]).unwrap(), &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 3);
        assert_eq!(b.receive(3, &mut theirs), Ok(Received::Nothing));
        assert!(!b.readable);
        drop(a);
        assert_eq!(b.receive(3, &mut theirs), Ok(Received::End));
    }

    #[test]
    fn socket_keeps_what_is_not_taken_and_sends_it_later_with_its_descriptors() {
        let (mut a, mut b) = pair();
        let mut table = Handles::default();
        let event = table.insert(eventfd(3, EventfdFlags::empty()).unwrap());
        let block = Bytes::from(vec![9; 10_000]);
        let mut sent = 0;
        while a.queue.is_empty() {
            a.send(block.clone(), &[], &table).unwrap();
            sent += block.len();
        }
        a.send(Bytes::from_static(b"last"), &[event], &table).unwrap();
        // The back-end releases its handle before the message is out.
        table.release(event);
        sent += 4;
        let mut theirs = Handles::default();
        let (mut received, mut fds) = (0, 0);
        while received < sent {
            match b.receive(READ, &mut theirs).unwrap() {
                Received::Bytes(n, handles) => {
                    received += n;
                    fds += handles.len();
                }
                Received::Nothing => a.flush().unwrap(),
                Received::End => panic!("nobody closed"),
            }
        }
        assert_eq!((received, fds, a.queued), (sent, 1, 0));
    }

    #[test]
    fn socket_peer_that_reads_nothing_is_given_up() {
        let (mut a, _b) = pair();
        let table = Handles::default();
        let block = Bytes::from(vec![9; 10_000]);
        let error = (0..1000).find_map(|_| a.send(block.clone(), &[], &table).err());
        assert!(matches!(error, Some(SocketError::NotReading(n)) if n > MAX_QUEUED));
    }

    #[test]
    fn socket_flood_of_descriptors_is_refused_and_none_is_kept() {
        let (a, mut b) = pair();
        let event = eventfd(0, EventfdFlags::empty()).unwrap();
        let fds = vec![event.as_fd(); MAX_FDS + 8];
        let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(MAX_FDS + 8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(&a, &[IoSlice::new(b"x")], &mut control, SendFlags::empty()).unwrap();
        let mut theirs = Handles::default();
        assert_eq!(b.receive(12, &mut theirs), Err(SocketError::TooManyHandles));
        assert_eq!(theirs.clear(), 0);
    }
}
