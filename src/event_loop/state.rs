//! The words for where a connection stands, and the table of the ways between them.

use crate::event_loop::outcome::{Reason, Turn};

/// Where a connection is in its life, in the words of RFC 9293, 3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open both ways.
    Established,
    /// Open both ways, in one-shot mode: one read of at most 1024 bytes will be answered. Then we finish.
    OneMessage,
    /// Open both ways, but the server drains: `held` more bytes, which the kernel held when the drain
    /// began, are read and answered. Then we finish. A count, so that a peer that keeps sending cannot
    /// put its FIN off.
    Draining {
        /// Bytes still to be read.
        held: u32,
    },
    /// The peer's FIN is in; what we owe is going out, then our FIN. Nothing is read.
    CloseWait,
    /// We finish first: what we owe is going out, then our FIN. Nothing is read.
    Finishing(Cause),
    /// Our FIN is out, the peer's is not in (RFC 9293: FIN-WAIT-1 and -2). Nothing is pending. What
    /// still arrives is read and dropped, because closing with unread bytes sends RST, and an RST
    /// can destroy what the peer has not read yet.
    FinWait,
    /// As `FinWait`, but in one-shot mode, which waits for nobody: what the kernel held at our FIN,
    /// `held` more bytes, is read and dropped, then we close.
    Discarding {
        /// Bytes still to be read.
        held: u32,
    },
}

/// Why our FIN goes out before the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The one message of `--one-shot` is answered.
    OneShot,
    /// The server drains.
    Drained,
}

/// Every way from a state to another, or to the end, that a connection takes by itself: from, on what, to. An end is named
/// by its [`Reason`]. The picture in the tour is drawn from this table, debug builds hold every step against it, and
/// `tests/simulation.rs` sees each of them taken.
///
/// Beside these, an RST ends a connection in any state (`reset`), and so does another error (`error`); and the server may end
/// it from outside (`idle`, `cut`).
pub const TRANSITIONS: [(&str, &str, &str); 13] = [
    ("Established", "FIN read", "CloseWait"),
    ("Established", "the server drains", "Draining"),
    ("OneMessage", "FIN read", "CloseWait"),
    ("OneMessage", "the message is read", "Finishing"),
    ("OneMessage", "drain, nothing is held", "Finishing"),
    ("Draining", "FIN read", "CloseWait"),
    ("Draining", "all that was held is read", "Finishing"),
    ("CloseWait", "our FIN, by close(2)", "finished"),
    ("Finishing", "our FIN; draining", "FinWait"),
    ("Finishing", "our FIN; one-shot", "Discarding"),
    ("FinWait", "FIN read", "drained"),
    ("Discarding", "all that was held is read", "one_shot"),
    ("Discarding", "FIN read", "one_shot"),
];

impl State {
    /// Its name in [`TRANSITIONS`].
    pub fn name(self) -> &'static str {
        match self {
            State::Established => "Established",
            State::OneMessage => "OneMessage",
            State::Draining { .. } => "Draining",
            State::CloseWait => "CloseWait",
            State::Finishing(_) => "Finishing",
            State::FinWait => "FinWait",
            State::Discarding { .. } => "Discarding",
        }
    }

    /// Whether the table has a way to there.
    pub fn may_become(self, next: State) -> bool {
        self.name() == next.name() || leads(self.name(), next.name())
    }

    /// Whether a turn may come out like this here.
    pub fn may_end_in(self, turn: Turn) -> bool {
        match turn {
            Turn::Ended(Reason::Reset | Reason::Error(_)) => true,
            Turn::Ended(reason) => leads(self.name(), Reason::NAMES[reason.kind()]),
            Turn::Waits | Turn::Again | Turn::Starved => true,
        }
    }
}

fn leads(from: &str, to: &str) -> bool {
    TRANSITIONS.iter().any(|way| (way.0, way.2) == (from, to))
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn only_the_ways_of_the_table_are_open() {
        assert!(State::Established.may_become(State::Established), "to stay is no step");
        assert!(State::Draining { held: 5 }.may_become(State::Draining { held: 3 }));
        assert!(State::Established.may_become(State::CloseWait));
        assert!(!State::CloseWait.may_become(State::Established), "no way leads back");
        assert!(!State::Established.may_become(State::FinWait), "not before what we owe is out");
    }

    #[test]
    fn each_state_has_its_own_ends_and_an_error_may_come_in_any() {
        assert!(State::CloseWait.may_end_in(Turn::Ended(Reason::Finished)));
        assert!(!State::Established.may_end_in(Turn::Ended(Reason::Finished)), "no FIN has been read");
        assert!(!State::CloseWait.may_end_in(Turn::Ended(Reason::Drained)));
        for turn in [
            Turn::Waits,
            Turn::Again,
            Turn::Starved,
            Turn::Ended(Reason::Reset),
            Turn::Ended(Reason::Error(ErrorKind::TimedOut)),
        ] {
            assert!(State::Established.may_end_in(turn), "{turn:?}");
        }
    }
}
