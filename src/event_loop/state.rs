//! The states of a connection, and the table of the transitions between them.

use crate::event_loop::outcome::{CloseReason, Outcome};

/// Where a connection is in its life. Names are those of RFC 9293, 3.3.2, where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open in both directions.
    Established,
    /// The peer's FIN has been read. Unsent output is written, then our FIN follows. Nothing is read.
    CloseWait,
    /// Both FINs are sent (RFC 9293: LAST-ACK, or CLOSING if ours went first), but the peer's kernel has not acknowledged all
    /// output yet. close(2) would leave the rest to the kernel, which may give up on it, so the connection stays open. It will be
    /// closed for this reason.
    LastAck(CloseReason),
    /// One-shot mode, open in both directions: one read of at most 1024 bytes will be echoed, then we send our FIN.
    OneMessage,
    /// Graceful shutdown, open in both directions: `remaining` more bytes, which were in the receive buffer when the
    /// shutdown began, are read and echoed. It is a count so that a peer that keeps sending cannot delay our FIN. One more read
    /// finds out whether the peer's FIN was waiting behind them; if not, we send ours.
    Draining {
        /// Bytes still to be read.
        remaining: u32,
    },
    /// We close our side first: unsent output is written, then our FIN follows. Nothing is read.
    Finishing(ShutdownCause),
    /// Our FIN is sent, the peer's has not been read (RFC 9293: FIN-WAIT-1 and FIN-WAIT-2). No output is pending. What
    /// still arrives is read and discarded, because closing with unread bytes sends RST, and an RST can destroy what the
    /// peer has not read yet.
    FinWait,
    /// As `FinWait`, but in one-shot mode, which does not wait for the peer: the `remaining` bytes that were in the receive
    /// buffer when our FIN was sent are read and discarded, then the connection is closed.
    Discarding {
        /// Bytes still to be read.
        remaining: u32,
    },
}

/// Why we close our side first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownCause {
    /// The one message of `--one-shot` has been echoed.
    OneShot,
    /// The server shuts down gracefully.
    Drained,
}

/// Every transition that a connection makes by itself, as (from, event, to). An end is named by its [`CloseReason`].
///
/// The picture in the tour is drawn from this table, debug builds assert every transition against it, and
/// `tests/simulation.rs` fails unless all of them occur.
///
/// In addition, an RST ends a connection in any state (`reset`), and so does any other error (`error`). The server may close
/// it from outside (`idle`, `cut`).
pub const TRANSITIONS: [(&str, &str, &str); 17] = [
    ("Established", "FIN read", "CloseWait"),
    ("Established", "shutdown begins", "Draining"),
    ("CloseWait", "our FIN, by close(2)", "finished"),
    ("CloseWait", "our FIN; unacknowledged", "LastAck"),
    ("LastAck", "all acknowledged", "finished"),
    ("LastAck", "all acknowledged", "drained"),
    ("OneMessage", "FIN read", "CloseWait"),
    ("OneMessage", "message read", "Finishing"),
    ("OneMessage", "shutdown, nothing to read", "Draining"),
    ("Draining", "FIN read", "CloseWait"),
    ("Draining", "remaining bytes read", "Finishing"),
    ("Finishing", "our FIN; shutdown", "FinWait"),
    ("Finishing", "our FIN; one-shot", "Discarding"),
    ("FinWait", "FIN read", "drained"),
    ("FinWait", "FIN read; unacknowledged", "LastAck"),
    ("Discarding", "remaining bytes read", "one_shot"),
    ("Discarding", "FIN read", "one_shot"),
];

impl State {
    /// Returns the name of this state in [`TRANSITIONS`].
    pub fn name(self) -> &'static str {
        match self {
            State::Established => "Established",
            State::CloseWait => "CloseWait",
            State::LastAck(_) => "LastAck",
            State::OneMessage => "OneMessage",
            State::Draining { .. } => "Draining",
            State::Finishing(_) => "Finishing",
            State::FinWait => "FinWait",
            State::Discarding { .. } => "Discarding",
        }
    }

    /// Returns whether the table allows the transition to `next`.
    pub fn may_become(self, next: State) -> bool {
        self.name() == next.name() || is_transition(self.name(), next.name())
    }

    /// Returns whether serving a connection in this state may have this outcome.
    pub fn allows(self, outcome: Outcome) -> bool {
        match outcome {
            Outcome::Closed(CloseReason::Reset | CloseReason::Error(_)) => true,
            Outcome::Closed(reason) => is_transition(self.name(), CloseReason::NAMES[reason.index()]),
            Outcome::Idle | Outcome::Requeue | Outcome::OutOfMemory => true,
        }
    }
}

fn is_transition(from: &str, to: &str) -> bool {
    TRANSITIONS.iter().any(|transition| (transition.0, transition.2) == (from, to))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn only_transitions_of_the_table_are_allowed() {
        assert!(State::Established.may_become(State::Established), "staying is not a transition");
        assert!(State::Draining { remaining: 5 }.may_become(State::Draining { remaining: 3 }));
        assert!(State::Established.may_become(State::CloseWait));
        assert!(!State::CloseWait.may_become(State::Established), "no transition leads back");
        assert!(!State::Established.may_become(State::FinWait), "unsent output goes before our FIN");
    }

    #[test]
    fn each_state_has_its_own_ends_and_may_fail() {
        assert!(State::CloseWait.allows(Outcome::Closed(CloseReason::Finished)));
        assert!(!State::Established.allows(Outcome::Closed(CloseReason::Finished)), "no FIN has been read");
        assert!(!State::CloseWait.allows(Outcome::Closed(CloseReason::Drained)));
        for outcome in [
            Outcome::Idle,
            Outcome::Requeue,
            Outcome::OutOfMemory,
            Outcome::Closed(CloseReason::Reset),
            Outcome::Closed(CloseReason::Error(ErrorKind::TimedOut)),
        ] {
            assert!(State::Established.allows(outcome), "{outcome:?}");
        }
    }
}
