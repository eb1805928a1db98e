//! The connection: what is ready is told, what is wished is done.

use super::{Client, ClientError, Next, system};
use crate::adapter::socket::{Received, Socket, SocketError};
use crate::frontend::{Command, Event, Failure, Input, Output};
use crate::time::{Duration, Instant};
use crate::wire::features::protocol;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// How often a guest looks that is not called.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

impl Client {
    /// Kick a vring in whatever way there is.
    pub(super) fn signal_kick(&mut self, vring: u16) -> Result<(), ClientError> {
        match self.queues[usize::from(vring)].kick {
            Some(handle) => self.handles.signal(handle),
            None if self.inband => {
                let kick = Input::Command(Command::Kick { vring });
                self.frontend.handle_input(self.clock.now(), kick)?;
                while let Some(output) = self.frontend.poll_output() {
                    self.obey(output);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Wait for one readiness or timer and tell the front-end.
    pub(super) fn turn(&mut self, what: &'static str, until: Instant) -> Result<(), ClientError> {
        if let Some(failure) = self.failure.take() {
            return Err(failure.into());
        }
        let now = self.clock.now();
        if now >= until {
            return Err(ClientError::TimedOut { what, answer: self.frontend.awaiting() });
        }
        let mut due = self.frontend.poll_timeout().map_or(until, |(at, _)| at.min(until));
        if !self.inband && self.queues.iter().any(|queue| queue.call.is_none()) {
            // Nobody will call.
            due = due.min(now + POLL_INTERVAL);
        }
        if self.poll(due.saturating_since(now))? {
            self.receive(false)?;
            self.receive(true)?;
        }
        let now = self.clock.now();
        if self.frontend.poll_timeout().is_some_and(|(at, _)| at <= now) {
            self.frontend.handle_input(now, Input::Timeout)?;
            self.drain()?;
        }
        Ok(())
    }

    /// Sleep until something can be read; true if a socket can. Calls are taken
    /// here: whoever waits looks into its ring anyway.
    fn poll(&mut self, timeout: Duration) -> Result<bool, ClientError> {
        let calls: Vec<BorrowedFd<'_>> =
            self.queues.iter().filter_map(|q| self.handles.get(q.call?)).collect();
        let sockets = [&self.socket, &self.channel];
        let sockets = sockets.into_iter().flatten().map(|socket| socket.as_fd());
        let mut fds: Vec<_> = sockets
            .chain(calls.iter().copied())
            .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(system("cannot wait", e)),
        }
        let (sockets, events) = fds.split_at(fds.len() - calls.len());
        for (call, event) in calls.iter().zip(events) {
            if !event.revents().is_empty() {
                // Nothing there is as good as something: eventfds do not block.
                let _ = rustix::io::read(call, &mut [0; 8]);
            }
        }
        Ok(sockets.iter().any(|socket| !socket.revents().is_empty()))
    }

    /// Read all there is, in the pieces that the front-end wants.
    fn receive(&mut self, channel: bool) -> Result<(), ClientError> {
        loop {
            let (socket, wanted) = match channel {
                false => (&mut self.socket, self.frontend.wanted()),
                true => (&mut self.channel, self.frontend.channel_wanted()),
            };
            let Some(socket) = socket else {
                return Ok(());
            };
            match socket.receive(wanted, &mut self.handles) {
                Ok(Received::Bytes(n, handles)) => {
                    let bytes = socket.bytes(n);
                    let input = match channel {
                        false => Input::Received { bytes, handles },
                        true => Input::ChannelReceived { bytes, handles },
                    };
                    self.frontend.handle_input(self.clock.now(), input)?;
                    self.drain()?;
                }
                Ok(Received::Nothing) => return Ok(()),
                Ok(Received::End) | Err(_) if channel => {
                    self.channel_lost();
                    return self.drain();
                }
                Ok(Received::End) | Err(SocketError::System(_)) => {
                    self.next.push_back(Next::Lost);
                    return self.drain();
                }
                Err(e) => {
                    let source = std::io::Error::other(e.to_string());
                    return Err(ClientError::System { what: "cannot read the socket", source });
                }
            }
        }
    }

    /// Carry out every wish, and what follows from them.
    pub(super) fn drain(&mut self) -> Result<(), ClientError> {
        loop {
            self.carry_out();
            let Some(next) = self.next.pop_front() else {
                return Ok(());
            };
            let now = self.clock.now();
            match next {
                Next::Connect => {
                    let input = self.dial();
                    self.frontend.handle_input(now, input)?;
                }
                Next::Lost => {
                    self.socket = None;
                    self.channel = None;
                    if self.frontend.phase().is_connected() {
                        self.frontend.handle_input(now, Input::PeerClosed)?;
                    }
                }
                Next::Restart => {
                    if self.is_incomplete() {
                        self.frontend.handle_input(now, Input::Command(Command::PostcopyAdvise))?;
                        self.carry_out();
                        self.frontend.handle_input(now, Input::Command(Command::PostcopyListen))?;
                        self.carry_out();
                    }
                    let start = self.start_command(|layout| self.lost_base(layout));
                    self.frontend.handle_input(now, Input::Command(start))?;
                }
                Next::Translate(iova, access) => {
                    let answer = self.translation(iova, access);
                    // The connection may have ended meanwhile.
                    if self.frontend.phase().is_connected() {
                        self.frontend.handle_input(now, Input::Command(answer))?;
                    }
                }
                Next::KickAll => {
                    for vring in 0..self.config.frontend.num_queues {
                        self.signal_kick(vring)?;
                    }
                }
            }
        }
    }

    /// A back-end lives without its channel, but a guest that is called on it
    /// would wait for ever.
    fn channel_lost(&mut self) {
        self.channel = None;
        if self.inband {
            self.next.push_back(Next::Lost);
        }
    }

    fn carry_out(&mut self) {
        while let Some(output) = self.frontend.poll_output() {
            self.obey(output);
        }
    }

    fn obey(&mut self, output: Output) {
        match output {
            Output::Connect => self.next.push_back(Next::Connect),
            Output::Send { bytes, handles } => {
                let socket = self.socket.as_mut();
                if socket.is_none_or(|s| s.send(bytes, &handles, &self.handles).is_err()) {
                    self.next.push_back(Next::Lost);
                }
            }
            Output::ChannelSend { bytes, handles } => {
                if let Some(channel) = &mut self.channel
                    && channel.send(bytes, &handles, &self.handles).is_err()
                {
                    self.channel_lost();
                }
            }
            Output::Release(handle) => self.handles.release(handle),
            Output::Close(_) => {
                self.socket = None;
                self.channel = None;
            }
            Output::Event(event) => {
                match &event {
                    // Whoever waits looks into its ring after every turn.
                    Event::Called { .. } => return,
                    Event::Ready { features, protocol, reconnected, .. } => {
                        self.features = *features;
                        self.inband = protocol & protocol::INBAND_NOTIFICATIONS != 0;
                        if *reconnected && self.wanted {
                            self.next.push_back(Next::Restart);
                        }
                    }
                    Event::PostcopyFaults(handle) => match &mut self.postcopy {
                        Some(postcopy) => postcopy.advised = Some(*handle),
                        None => self.handles.release(*handle),
                    },
                    Event::PostcopyMapped { bases } => {
                        if let Some(postcopy) = &mut self.postcopy
                            && postcopy.mapped(bases, &mut self.handles).is_err()
                        {
                            // Nobody would bring it pages.
                            self.next.push_back(Next::Lost);
                        }
                    }
                    Event::IotlbMiss { iova, access } => {
                        self.next.push_back(Next::Translate(*iova, *access));
                        return;
                    }
                    Event::IotlbAccessFail { .. } => self.access_failed(),
                    Event::Running => self.next.push_back(Next::KickAll),
                    Event::Disconnected { failure, retry: false, .. }
                        if *failure != Failure::Disconnected =>
                    {
                        self.failure = Some(failure.clone());
                    }
                    _ => {}
                }
                self.events.push(event);
            }
        }
    }

    /// Try to connect once.
    fn dial(&mut self) -> Input<'static> {
        let connected = UnixStream::connect(&self.config.socket)
            .and_then(|stream| stream.set_nonblocking(true).map(|()| stream));
        let stream = match connected {
            Ok(stream) => stream,
            Err(error) => return Input::ConnectFailed(error.to_string()),
        };
        self.socket = Some(Socket::new(OwnedFd::from(stream)));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let channel = pair.ok().map(|(ours, theirs)| {
            self.channel = Some(Socket::new(ours));
            self.handles.insert(theirs)
        });
        Input::Connected { channel }
    }
}
