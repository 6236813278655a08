//! How a turn of a connection came out: go on, wait, or end, and why.

use std::{fmt, io};

use rustix::io::Errno;

/// What a turn came to, and so what the server does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until the next event.
    Waits,
    /// The budget is spent with work left: it is run again without waiting for an event.
    Again,
    /// The kernel has no memory at the moment (ENOBUFS, ENOMEM). No event will say that it has
    /// again, so this is tried again after a while. Nothing is lost.
    Starved,
    /// It is over: the slot is freed.
    Ended(Reason),
}

impl Turn {
    /// What an error of read(2), write(2) or shutdown(2) means for the connection. `WouldBlock` is
    /// an answer and does not come here.
    pub fn of(error: &io::Error) -> Turn {
        match Errno::from_io_error(error) {
            // A signal came in between: the call is made again.
            Some(Errno::INTR) => Turn::Again,
            // The peer's RST. It has come before: we write, or we shut down. Other systems' word for it.
            Some(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::CONNABORTED) => Turn::Ended(Reason::Reset),
            Some(Errno::NOBUFS | Errno::NOMEM) => Turn::Starved,
            // ETIMEDOUT, EHOSTUNREACH and whatever else: this connection only.
            _ => Turn::Ended(Reason::Error(error.kind())),
        }
    }
}

/// How a connection ended. The names are those of the metrics and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer's FIN came first, everything before it was answered, ours followed.
    Finished,
    /// `--one-shot`: one message answered, our FIN first.
    OneShot,
    /// The server drained: our FIN first, then the peer's.
    Drained,
    /// The peer reset it, or is gone.
    Reset,
    /// No byte moved for `--idle-timeout`.
    Idle,
    /// The drain timeout or a second signal cut it.
    Cut,
    /// The system reported another error.
    Error(io::ErrorKind),
}

impl Reason {
    /// How many kinds of reasons there are.
    pub const KINDS: usize = 7;
    /// The kinds' names, by [`Reason::kind`].
    pub const NAMES: [&'static str; Reason::KINDS] =
        ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"];

    /// The place of this reason in [`Reason::NAMES`].
    pub fn kind(self) -> usize {
        match self {
            Reason::Finished => 0,
            Reason::OneShot => 1,
            Reason::Drained => 2,
            Reason::Reset => 3,
            Reason::Idle => 4,
            Reason::Cut => 5,
            Reason::Error(_) => 6,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Reason::NAMES[self.kind()])?;
        match self {
            Reason::Error(kind) => write!(f, " ({kind})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_sorted_by_what_the_server_does_next() {
        for (errno, turn) in [
            (Errno::INTR, Turn::Again),
            (Errno::CONNRESET, Turn::Ended(Reason::Reset)),
            (Errno::PIPE, Turn::Ended(Reason::Reset)),
            (Errno::NOTCONN, Turn::Ended(Reason::Reset)),
            (Errno::NOBUFS, Turn::Starved),
            (Errno::NOMEM, Turn::Starved),
            (Errno::TIMEDOUT, Turn::Ended(Reason::Error(io::ErrorKind::TimedOut))),
            (Errno::HOSTUNREACH, Turn::Ended(Reason::Error(io::ErrorKind::HostUnreachable))),
        ] {
            assert_eq!(Turn::of(&errno.into()), turn, "{errno:?}");
        }
        let no_errno = io::Error::from(io::ErrorKind::WriteZero);
        assert_eq!(Turn::of(&no_errno), Turn::Ended(Reason::Error(io::ErrorKind::WriteZero)));
    }

    #[test]
    fn every_reason_has_its_own_name() {
        let error = Reason::Error(io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "error (timed out)");
        let all = [Reason::Finished, Reason::OneShot, Reason::Drained, Reason::Reset, Reason::Idle, Reason::Cut, error];
        for (kind, reason) in all.iter().enumerate() {
            assert_eq!(reason.kind(), kind);
            assert!(reason.to_string().starts_with(Reason::NAMES[kind]));
        }
    }
}
