//! The outcome of serving a connection once, and the reasons for which connections close.

use std::{fmt, io};

use rustix::io::Errno;

/// What the server does next with a connection that it has just served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing to do until the next event.
    Idle,
    /// The budget is used up and work is left: serve it again without waiting for an event.
    Requeue,
    /// The kernel is out of memory at the moment (ENOBUFS, ENOMEM). No event will report that this has changed, so the
    /// server retries later. Nothing is lost.
    OutOfMemory,
    /// The connection has ended: close it and free its slot.
    Closed(CloseReason),
}

impl Outcome {
    /// Classifies an error of read(2), write(2) or shutdown(2) by what the server does next.
    ///
    /// `WouldBlock` is an answer, not an error; the state machine handles it itself.
    pub fn from_io_error(error: &io::Error) -> Outcome {
        match Errno::from_io_error(error) {
            // A signal arrived during the call: repeat it.
            Some(Errno::INTR) => Outcome::Requeue,
            // The peer's RST, or a write or shutdown after it. ECONNABORTED is what some BSDs report instead.
            Some(Errno::CONNRESET | Errno::PIPE | Errno::NOTCONN | Errno::CONNABORTED) => {
                Outcome::Closed(CloseReason::Reset)
            }
            Some(Errno::NOBUFS | Errno::NOMEM) => Outcome::OutOfMemory,
            None if error.kind() == io::ErrorKind::OutOfMemory => Outcome::OutOfMemory, // Our own memory.
            // ETIMEDOUT, EHOSTUNREACH and everything else ends this connection only.
            _ => Outcome::Closed(CloseReason::Error(error.kind())),
        }
    }

    /// Returns whether the same call may succeed later.
    pub fn is_transient(self) -> bool {
        matches!(self, Outcome::Requeue | Outcome::OutOfMemory)
    }
}

/// Why a connection was closed, under the names of the metrics and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer sent its FIN first; everything before it was echoed, and our FIN followed.
    Finished,
    /// `--one-shot`: one message was echoed, and our FIN went first.
    OneShot,
    /// Graceful shutdown: our FIN went first, then the peer's arrived.
    Drained,
    /// The peer reset the connection or disappeared.
    Reset,
    /// No byte moved for `--idle-timeout`.
    Idle,
    /// The drain timeout or a second signal closed it forcibly.
    Cut,
    /// The system reported another error.
    Error(io::ErrorKind),
}

impl CloseReason {
    /// The number of reasons, not counting the kinds of [`CloseReason::Error`] apart.
    pub const COUNT: usize = 7;
    /// The names of the reasons, indexed by [`CloseReason::index`].
    pub const NAMES: [&'static str; CloseReason::COUNT] =
        ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"];

    /// Returns the index of this reason in [`CloseReason::NAMES`].
    pub fn index(self) -> usize {
        match self {
            CloseReason::Finished => 0,
            CloseReason::OneShot => 1,
            CloseReason::Drained => 2,
            CloseReason::Reset => 3,
            CloseReason::Idle => 4,
            CloseReason::Cut => 5,
            CloseReason::Error(_) => 6,
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(CloseReason::NAMES[self.index()])?;
        match self {
            CloseReason::Error(kind) => write!(f, " ({kind})"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_classified_by_what_the_server_does_next() {
        for (errno, outcome) in [
            (Errno::INTR, Outcome::Requeue),
            (Errno::CONNRESET, Outcome::Closed(CloseReason::Reset)),
            (Errno::PIPE, Outcome::Closed(CloseReason::Reset)),
            (Errno::NOTCONN, Outcome::Closed(CloseReason::Reset)),
            (Errno::CONNABORTED, Outcome::Closed(CloseReason::Reset)),
            (Errno::NOBUFS, Outcome::OutOfMemory),
            (Errno::NOMEM, Outcome::OutOfMemory),
            (Errno::TIMEDOUT, Outcome::Closed(CloseReason::Error(io::ErrorKind::TimedOut))),
            (Errno::HOSTUNREACH, Outcome::Closed(CloseReason::Error(io::ErrorKind::HostUnreachable))),
        ] {
            assert_eq!(Outcome::from_io_error(&errno.into()), outcome, "{errno:?}");
        }
        let without_errno = io::Error::from(io::ErrorKind::WriteZero);
        let expected = Outcome::Closed(CloseReason::Error(io::ErrorKind::WriteZero));
        assert_eq!(Outcome::from_io_error(&without_errno), expected);
    }

    #[test]
    fn every_close_reason_has_its_own_name() {
        let error = CloseReason::Error(io::ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "error (timed out)");
        let all = [
            CloseReason::Finished,
            CloseReason::OneShot,
            CloseReason::Drained,
            CloseReason::Reset,
            CloseReason::Idle,
            CloseReason::Cut,
            error,
        ];
        for (index, reason) in all.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(reason.to_string().starts_with(CloseReason::NAMES[index]));
        }
    }
}
