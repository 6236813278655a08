//! What the loop counts: plain fields, changed by the one thread that there is.

use std::{fmt, io};

use rustix::io::Errno;

use crate::event_loop::outcome::CloseReason;

/// Bytes moved, summed over all connections, and the number of connections whose output is stuck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read that are echoed.
    pub received: u64,
    /// Bytes that write(2) accepted.
    pub sent: u64,
    /// Bytes read and dropped after our FIN.
    pub discarded: u64,
    /// Connections that are stalled now: they have unsent output, and their peer does not read.
    pub stalled: usize,
    /// Bytes of memory that hold their unsent output.
    pub buffered: usize,
}

impl Traffic {
    /// Returns the bytes read, echoed or not.
    pub fn read(&self) -> u64 {
        self.received + self.discarded
    }
}

/// Why accepting was paused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseReason {
    /// The connection limit was reached.
    Limit,
    /// File descriptors ran out: EMFILE, ENFILE.
    Descriptors,
    /// Kernel memory ran out: ENOBUFS, ENOMEM.
    Memory,
    /// Accepting failed for another reason, for example many aborted connections in a row.
    Error,
}

impl PauseReason {
    /// The number of reasons.
    pub const COUNT: usize = 4;
    /// The names of the reasons in the metrics, indexed by `PauseReason as usize`.
    pub const NAMES: [&'static str; PauseReason::COUNT] = ["limit", "descriptors", "memory", "error"];

    /// Classifies the error that made accepting pause.
    pub fn from_io_error(error: &io::Error) -> PauseReason {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE) => PauseReason::Descriptors,
            Some(Errno::NOBUFS | Errno::NOMEM) => PauseReason::Memory,
            _ => PauseReason::Error,
        }
    }
}

/// Everything that the loop has counted since it started.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed, indexed by [`CloseReason::index`].
    pub closed: [u64; CloseReason::COUNT],
    /// Bytes moved.
    pub traffic: Traffic,
    /// Accepts that failed: aborted connections, and exhausted descriptors or memory.
    pub accept_errors: u64,
    /// Times that accepting was paused, indexed by [`PauseReason`]. A renewed pause counts once.
    pub accept_pauses: [u64; PauseReason::COUNT],
    /// Iterations of the loop.
    pub iterations: u64,
    /// Times that a connection used up its budget in one iteration and was requeued.
    pub budget_exhausted: u64,
}

impl Counters {
    /// Returns the number of connections that are open now.
    pub fn open(&self) -> u64 {
        self.accepted - self.closed.iter().sum::<u64>()
    }
}

/// Formats the counters as one line, without close reasons that never occurred.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connections: {} accepted, {} open, {} stalled", self.accepted, self.open(), self.traffic.stalled)?;
        for (name, count) in CloseReason::NAMES.iter().zip(self.closed) {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        let Traffic { received, sent, discarded, .. } = self.traffic;
        write!(f, "; bytes: {received} received, {sent} sent, {discarded} discarded")?;
        write!(f, "; {} accept errors, {} turns", self.accept_errors, self.iterations)
    }
}

/// The state of the loop as it is reported to a [`Monitor`](crate::event_loop::monitor::Monitor).
#[derive(Clone, Copy, Debug)]
pub struct Snapshot {
    /// Everything counted so far.
    pub counters: Counters,
    /// The connection limit.
    pub max_connections: usize,
    /// Whether new connections are not accepted now: the connection limit is reached, or descriptors or memory ran out.
    pub accept_paused: bool,
    /// Whether a graceful shutdown has begun.
    pub draining: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_reasons_are_classified_by_errno() {
        for (errno, name) in [
            (Errno::MFILE, "descriptors"),
            (Errno::NFILE, "descriptors"),
            (Errno::NOBUFS, "memory"),
            (Errno::NOMEM, "memory"),
            (Errno::CONNABORTED, "error"),
        ] {
            assert_eq!(PauseReason::NAMES[PauseReason::from_io_error(&errno.into()) as usize], name, "{errno:?}");
        }
        assert_eq!(PauseReason::NAMES[PauseReason::Limit as usize], "limit");
    }
}
