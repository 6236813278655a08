//! What the daemon has counted since it started.

use std::fmt;

use crate::output;
use crate::verdict::Reason;

/// Bytes moved and bytes that do not move, summed over connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read, to be answered.
    pub received: u64,
    /// Taken by the kernel.
    pub sent: u64,
    /// Read after our FIN, and dropped.
    pub discarded: u64,
    /// Connections that are stalled now: they owe an answer that their peer does not take.
    pub stalled: usize,
}

/// Plain fields, moved by the one thread that there is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub accepted: u64,
    /// Connections closed, by [`Reason::kind`].
    pub closed: [u64; Reason::KINDS],
    /// Bytes moved.
    pub traffic: Traffic,
    /// Failed accepts: newcomers that were gone, and pauses for want of descriptors or memory.
    pub accept_errors: u64,
    /// Turns of the loop.
    pub turns: u64,
}

impl Counters {
    /// Connections open now.
    pub fn open(&self) -> u64 {
        self.accepted - self.closed.iter().sum::<u64>()
    }
}

/// One line, for SIGUSR1 and the end of a run.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connections: {} accepted, {} open, {} stalled", self.accepted, self.open(), self.traffic.stalled)?;
        for (name, count) in Reason::NAMES.iter().zip(self.closed) {
            if count > 0 {
                write!(f, ", {count} {name}")?;
            }
        }
        let Traffic { received, sent, discarded, .. } = self.traffic;
        write!(f, "; bytes: {received} received, {sent} sent, {discarded} discarded")?;
        write!(f, "; {} accept errors, {} turns", self.accept_errors, self.turns)?;
        write!(f, "; {} log lines dropped", output::lines_dropped())
    }
}
