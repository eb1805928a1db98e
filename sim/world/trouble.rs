//! What happens to a connection though nobody dies.

use super::{Event, World};
use crate::oracle::Violation;
use crate::scenario::Trouble;

impl World<'_> {
    pub(super) fn trouble(&mut self, conn: u32, trouble: Trouble) -> Result<(), Violation> {
        if self.here.front.conn != Some(conn) {
            return Ok(());
        }
        match trouble {
            Trouble::Break { .. } if self.part()? => {}
            Trouble::Break { lag, back_first } => {
                self.stats.breaks += 1;
                self.break_connection(conn, 1_000 * lag, back_first);
            }
            Trouble::Stall { us } => {
                self.stats.stalls += 1;
                let until = self.now() + 1_000 * us;
                self.here.to_back.stall(until);
                self.here.to_front.stall(until);
            }
            Trouble::Gone { us } => {
                self.stats.gone += 1;
                self.here.front.gone_until = self.now() + 1_000 * us;
                self.break_connection(conn, 0, false);
            }
        }
        Ok(())
    }

    /// One side learns of it at once, the other later: until then it goes on.
    pub(super) fn break_connection(&mut self, conn: u32, lag: u64, back_first: bool) {
        let delay = self.host_delay();
        if back_first {
            self.schedule(delay, Event::BackHangup(conn));
            self.schedule(delay + lag, Event::FrontHangup(conn));
        } else {
            self.hang_up_front(conn);
            self.schedule(delay + lag, Event::BackHangup(conn));
        }
    }
}
