//! The back-end's channel, beside the control socket.
//!
//! It is read whatever the back-end waits for, and never waited for. What goes
//! wrong with it is told to the back-end, which lives on without.

use super::{Answer, EventLoop};
use crate::Handle;
use crate::adapter::error::describe;
use crate::adapter::poller::Source;
use crate::adapter::socket::{Received, Socket, SocketError};
use crate::backend::Input;
use crate::time::Instant;
use bytes::Bytes;
use rustix::io::Errno;

impl EventLoop {
    pub(super) fn watch_channel(&mut self, handle: Option<Handle>) {
        // What has gone wrong with the one before is of no interest any more.
        self.answers.retain(|answer| !matches!(answer, Answer::ChannelClosed(_)));
        if let Some(channel) = self.channel.take() {
            self.poller.remove(&channel);
        }
        let Some(fd) = handle.and_then(|h| self.handles.get(h)) else {
            return;
        };
        // The back-end may release its handle while the socket still has
        // something to deliver.
        let watched = fd.try_clone_to_owned().and_then(|fd| {
            let channel = Socket::new(fd);
            self.poller.add(&channel, Source::Channel)?;
            Ok(channel)
        });
        match watched {
            Ok(channel) => self.channel = Some(channel),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                self.channel_failed(Some(format!("expected a socket: {}", describe(errno))));
            }
        }
    }

    pub(super) fn send_on_channel(&mut self, bytes: Bytes, handles: &[Handle]) {
        if let Some(channel) = &mut self.channel
            && let Err(error) = channel.send(bytes, handles, &self.handles)
        {
            self.channel_failed(why(&error));
        }
    }

    /// There may be something to read on it now.
    pub(super) fn channel_is_readable(&self) -> bool {
        self.channel.as_ref().is_some_and(|c| c.readable) && self.backend.channel_wanted() > 0
    }

    pub(super) fn channel_ready(&mut self, now: Instant) {
        if let Some(channel) = &mut self.channel {
            channel.readable = true;
            if let Err(error) = channel.flush() {
                self.tell(now, Input::ChannelClosed(why(&error)));
            }
        }
    }

    /// Read what the back-end wants, once; the loop comes back for more.
    pub(super) fn receive_channel(&mut self, now: Instant) {
        let wanted = self.backend.channel_wanted();
        let Some(channel) = &mut self.channel else {
            return;
        };
        if !channel.readable || wanted == 0 {
            return;
        }
        match channel.receive(wanted, &mut self.handles) {
            Ok(Received::Bytes(n, handles)) => {
                let bytes = channel.bytes(n);
                let told =
                    self.backend.handle_input(now, Input::ChannelReceived { bytes, handles });
                self.drain(now);
                if let Err(refused) = told {
                    // Descriptors without a byte, or more than can be kept.
                    self.tell(now, Input::ChannelClosed(Some(refused.to_string())));
                }
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) => self.tell(now, Input::ChannelClosed(None)),
            Err(error) => self.tell(now, Input::ChannelClosed(why(&error))),
        }
    }

    /// The back-end hears of it when its wishes are carried out.
    fn channel_failed(&mut self, why: Option<String>) {
        if let Some(channel) = self.channel.take() {
            self.poller.remove(&channel);
        }
        self.answers.push_back(Answer::ChannelClosed(why));
    }
}

/// `None`: the other end is closed, as a read would have told.
fn why(error: &SocketError) -> Option<String> {
    match error {
        SocketError::System(Errno::PIPE | Errno::CONNRESET) => None,
        other => Some(other.to_string()),
    }
}
