//! The front-end process on the line: it connects, reads, hears the end of a
//! connection, and keeps its timer.

use crate::oracle::Violation;
use crate::trace::{Lane, What};
use crate::world::link::Inbox;
use crate::world::{Event, World};
use midflight::frontend::{Input, Phase};

impl World<'_> {
    /// An attempt to connect meets a back-end that listens, or nobody.
    pub(in crate::world) fn front_connect(&mut self) -> Result<(), Violation> {
        if self.here.front.core.phase() != Phase::Connecting {
            return Ok(());
        }
        let gone = self.now() < self.here.front.gone_until;
        match if gone { None } else { self.accept()? } {
            Some(conn) => {
                self.here.front.conn = Some(conn);
                self.here.front.unfit =
                    self.here.back.as_ref().is_some_and(|back| back.kind.is_unfit());
                self.here.front.inbox = Inbox::default();
                self.here.front.changes.clear();
                self.here.front.cache_writes.clear();
                self.here.front.own_logs = 0;
                self.front_step(Input::Connected { channel: None })
            }
            None => self.front_step(Input::ConnectFailed("nobody listens".into())),
        }
    }

    pub(in crate::world) fn arm_front_reading(&mut self) {
        if !self.here.front.reading && !self.here.front.inbox.is_empty() {
            self.here.front.reading = true;
            let delay = self.host_delay();
            self.schedule(delay, Event::FrontRead);
        }
    }

    pub(in crate::world) fn front_read(&mut self) -> Result<(), Violation> {
        self.here.front.reading = false;
        if self.here.front.conn.is_none() {
            return Ok(());
        }
        let wanted = self.here.front.core.wanted();
        let Some(piece) = self.here.front.inbox.read(wanted) else { return Ok(()) };
        let handles: Vec<_> =
            piece.objects.iter().map(|o| self.here.front.handles.open(*o)).collect();
        let (bytes, count) = (piece.bytes.len() as u64, handles.len() as u64);
        self.trace.say(Lane::Link, What::Delivered { to_back: false, bytes, handles: count });
        self.front_step(Input::Received { bytes: &piece.bytes, handles })?;
        if self.here.front.inbox.is_closed() {
            return self.front_closed();
        }
        self.arm_front_reading();
        Ok(())
    }

    /// Nothing more comes on this connection; what has come is read first.
    pub(in crate::world) fn front_hangup(&mut self, conn: u32) -> Result<(), Violation> {
        if self.here.front.conn != Some(conn) {
            return Ok(());
        }
        self.here.front.inbox.close();
        if self.here.front.inbox.is_closed() { self.front_closed() } else { Ok(()) }
    }

    fn front_closed(&mut self) -> Result<(), Violation> {
        self.trace.say(Lane::Link, What::Hangup { to_back: false });
        (self.here.front.conn, self.here.front.parting) = (None, None);
        self.here.front.inbox = Inbox::default();
        self.front_step(Input::PeerClosed)
    }

    pub(super) fn arm_front_timer(&mut self) {
        let due = self.here.front.core.poll_timeout().map(|(at, _)| at.as_nanos().max(self.now()));
        if due != self.here.front.timer {
            self.here.front.timer = due;
            if let Some(at) = due {
                self.schedule_at(at, Event::FrontTimer(at));
            }
        }
    }

    pub(in crate::world) fn front_timer(&mut self, at: u64) -> Result<(), Violation> {
        if self.here.front.timer != Some(at) {
            return Ok(());
        }
        self.here.front.timer = None;
        self.front_step(Input::Timeout)
    }
}
