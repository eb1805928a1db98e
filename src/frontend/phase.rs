//! Where a front-end stands, and what moves it.

use core::fmt;

/// Where a front-end stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// No connection is wanted.
    Idle,
    /// The driver is connecting.
    Connecting,
    /// Features and limits are being agreed on.
    Negotiating,
    /// Agreed; the vrings are stopped.
    Ready,
    /// The vrings are being started.
    Starting,
    /// The vrings are started and enabled.
    Running,
    /// The vrings are being stopped.
    Stopping,
    /// The device is being reset, its vrings are stopped first.
    Resetting,
    /// The connection failed; the next attempt waits for its time.
    Backoff,
    /// The connection failed and nobody will try again by himself.
    Failed,
}

/// What moves a front-end from one phase to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trigger {
    /// The owner wants a connection.
    Connect,
    /// The driver has one.
    Connected,
    /// The last answer of the negotiation came.
    Negotiated,
    /// The owner wants vrings.
    Start,
    /// The last message of the start is through.
    Started,
    /// The owner wants no vrings.
    Stop,
    /// The last answer of the stop came.
    Stopped,
    /// The owner resets the device.
    Reset,
    /// The last message of the reset is through.
    ResetDone,
    /// The connection is of no more use; try another.
    Lost,
    /// The connection is of no more use, nor would another one be.
    GaveUp,
    /// It is time for the next attempt.
    Retry,
    /// The owner wants no connection.
    Disconnect,
}

use Phase::*;
use Trigger::*;

/// Every move there is; what is not here cannot happen.
pub(super) const TRANSITIONS: &[(Phase, Trigger, Phase)] = &[
    (Idle, Connect, Connecting),
    (Connecting, Connected, Negotiating),
    (Connecting, Lost, Backoff),
    (Connecting, GaveUp, Failed),
    (Connecting, Disconnect, Idle),
    (Negotiating, Negotiated, Ready),
    (Negotiating, Lost, Backoff),
    (Negotiating, GaveUp, Failed),
    (Negotiating, Disconnect, Idle),
    (Ready, Start, Starting),
    (Ready, Reset, Resetting),
    (Ready, Lost, Backoff),
    (Ready, GaveUp, Failed),
    (Ready, Disconnect, Idle),
    (Starting, Started, Running),
    (Starting, Lost, Backoff),
    (Starting, GaveUp, Failed),
    (Starting, Disconnect, Idle),
    (Running, Stop, Stopping),
    (Running, Reset, Resetting),
    (Running, Lost, Backoff),
    (Running, GaveUp, Failed),
    (Running, Disconnect, Idle),
    (Stopping, Stopped, Ready),
    (Stopping, Lost, Backoff),
    (Stopping, GaveUp, Failed),
    (Stopping, Disconnect, Idle),
    (Resetting, ResetDone, Ready),
    (Resetting, Lost, Backoff),
    (Resetting, GaveUp, Failed),
    (Resetting, Disconnect, Idle),
    (Backoff, Retry, Connecting),
    (Backoff, Connect, Connecting),
    (Backoff, Disconnect, Idle),
    (Failed, Connect, Connecting),
    (Failed, Disconnect, Idle),
];

impl Phase {
    /// Whether there is a socket to the back-end.
    pub fn is_connected(self) -> bool {
        matches!(self, Negotiating | Ready | Starting | Running | Stopping | Resetting)
    }

    /// Where `trigger` leads, `None` if it cannot happen now.
    pub(super) fn after(self, trigger: Trigger) -> Option<Self> {
        TRANSITIONS.iter().find(|(from, by, _)| (*from, *by) == (self, trigger)).map(|(.., to)| *to)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Idle => "idle",
            Connecting => "connecting",
            Negotiating => "negotiating",
            Ready => "ready",
            Starting => "starting",
            Running => "running",
            Stopping => "stopping",
            Resetting => "resetting",
            Backoff => "backoff",
            Failed => "failed",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    const ALL: [Phase; 10] = [
        Idle,
        Connecting,
        Negotiating,
        Ready,
        Starting,
        Running,
        Stopping,
        Resetting,
        Backoff,
        Failed,
    ];

    #[test]
    fn phase_table_names_each_move_once() {
        let moves: BTreeSet<_> = TRANSITIONS.iter().map(|(f, t, _)| (f, t)).collect();
        assert_eq!(moves.len(), TRANSITIONS.len());
    }

    #[test]
    fn phase_table_reaches_every_phase_and_leads_out_of_it() {
        let mut reached = BTreeSet::from([Idle]);
        for _ in ALL {
            for (from, _, to) in TRANSITIONS {
                if reached.contains(from) {
                    reached.insert(*to);
                }
            }
        }
        assert_eq!(reached, BTreeSet::from(ALL));
        for phase in ALL {
            assert!(TRANSITIONS.iter().any(|(from, ..)| *from == phase));
        }
    }

    #[test]
    fn phase_table_lets_every_connection_break_and_end() {
        for phase in ALL {
            let open = phase.is_connected() || phase == Connecting;
            assert_eq!(phase.after(Lost) == Some(Backoff), open, "{phase}");
            assert_eq!(phase.after(GaveUp) == Some(Failed), open, "{phase}");
            // Whatever happens, the owner can end it.
            assert_eq!(phase.after(Disconnect) == Some(Idle), phase != Idle);
            // Vrings run only between a start and a stop, reset or loss.
            if let Some(to) = phase.after(Started) {
                assert_eq!((phase, to), (Starting, Running));
            }
        }
        let connected = ALL.iter().filter(|p| p.is_connected()).count();
        assert_eq!(connected, 6);
    }
}
