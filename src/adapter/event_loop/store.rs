//! Whose the image is, before anything is asked of the disk.

use super::EventLoop;
use crate::adapter::error::Refusal;
use crate::adapter::socket::Socket;
use crate::time::Instant;

impl EventLoop {
    /// Requests go to the disk when its lock is ours. If it does not become so,
    /// the front-end is told in the one way there is; a request stays in flight
    /// for whoever it connects to next.
    pub(super) fn own_store(&mut self, now: Instant) {
        if self.store.deadline().is_none() {
            return;
        }
        match self.store.poll(now) {
            // Requests that waited for the lock may have been done by its last
            // owner: a front-end that has gone to another host closes its
            // connection before it lets go of the store there.
            Ok(true) if self.socket.as_ref().is_some_and(Socket::is_hung_up) => {
                self.disconnect(now);
                self.open_disk(now);
            }
            Ok(true) => self.open_disk(now),
            Ok(false) => {}
            Err(refusal) => self.refuse_store(now, &refusal),
        }
    }

    fn open_disk(&mut self, now: Instant) {
        if let Err(refusal) = self.disk.open(now) {
            self.refuse_store(now, &refusal);
        }
    }

    fn refuse_store(&mut self, now: Instant, why: &Refusal) {
        say!("closing the connection: {why}");
        self.disconnect(now);
        self.disk.give_up();
    }
}
