//! Clients: one after the other comes, is read from, and goes.

use super::EventLoop;
use crate::adapter::error::describe;
use crate::adapter::poller::Source;
use crate::adapter::socket::{Received, Socket};
use crate::backend::Input;
use crate::time::Instant;
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;

impl EventLoop {
    /// Nobody is served, and nothing is left of whoever was.
    pub(super) fn is_vacant(&self) -> bool {
        self.socket.is_none() && self.backend.is_idle() && self.disk.inflight() == 0
    }

    pub(super) fn accept(&mut self, now: Instant) -> io::Result<()> {
        if !self.is_vacant() || self.stopping {
            return Ok(());
        }
        let Some(listener) = &self.listener else {
            return Ok(());
        };
        match listener.accept() {
            Ok(client) => self.connect(now, client),
            Err(Errno::AGAIN) => {
                self.may_accept = false;
                Ok(())
            }
            Err(Errno::INTR | Errno::CONNABORTED) => Ok(()),
            Err(errno) => {
                // Out of descriptors or memory: the next client tries again.
                say_limited!("cannot accept a client: {}", describe(errno));
                self.may_accept = false;
                Ok(())
            }
        }
    }

    pub(super) fn connect(&mut self, now: Instant, client: OwnedFd) -> io::Result<()> {
        self.poller.add(&client, Source::Control)?;
        self.socket = Some(Socket::new(client));
        say_limited!("a front-end has connected");
        self.measure(now);
        self.tell(now, Input::Connected);
        Ok(())
    }

    /// Read what the back-end wants, once; the loop comes back for more.
    pub(super) fn receive(&mut self, now: Instant) {
        let wanted = self.backend.wanted();
        let Some(socket) = &mut self.socket else {
            return;
        };
        if !socket.readable || wanted == 0 {
            return;
        }
        match socket.receive(wanted, &mut self.handles) {
            Ok(Received::Bytes(n, handles)) => {
                let bytes = socket.bytes(n);
                let told = self.backend.handle_input(now, Input::Received { bytes, handles });
                self.drain(now);
                if let Err(refused) = told {
                    // What was wanted was read, so it is the client that sent
                    // what no message has: more descriptors than can be kept.
                    say_limited!("closing the connection: {refused}");
                    self.disconnect(now);
                }
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) => {
                say_limited!("the front-end has disconnected");
                self.disconnect(now);
            }
            Err(error) => {
                say!("closing the connection: {error}");
                self.disconnect(now);
            }
        }
    }

    /// The client is gone, or has to go without a word.
    pub(super) fn disconnect(&mut self, now: Instant) {
        if self.socket.is_some() {
            self.drop_socket();
            self.tell(now, Input::PeerClosed);
        }
    }

    pub(super) fn drop_socket(&mut self) {
        if let Some(socket) = self.socket.take() {
            self.poller.remove(&socket);
        }
        self.watch_channel(None);
        self.drop_state();
        self.size.rest();
        // What the back-end wanted to know is void without a front-end.
        self.answers.clear();
        // Whoever has the store may have got these requests too, and newer ones.
        self.disk.give_up();
    }

    /// Nothing of a client survives it, whatever the back-end forgot.
    pub(super) fn forget_client(&mut self) {
        self.faults.close(false);
        for vring in 0..self.kicks.len() {
            self.watch(vring as u16, None);
        }
        self.handles.clear();
    }
}
