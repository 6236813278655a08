//! When a message is due.

use std::time::Duration;

/// How long a run takes, and what decides when messages are sent.
pub struct Plan {
    /// What decides when a message is sent.
    pub pace: Pace,
    /// Load before the window, unmeasured: caches, allocator, congestion window.
    pub warm_up: Duration,
    /// How long the load is measured.
    pub window: Duration,
}

/// What decides when a message is sent.
#[derive(Clone, Copy)]
pub enum Pace {
    /// The server: each client keeps a number of messages in flight.
    Closed {
        /// Messages sent and not yet returned, per client.
        in_flight: u32,
    },
    /// The clock: messages are due at equal intervals, round robin over the clients.
    Open {
        /// Messages per second, over all clients.
        rate: f64,
    },
}

/// The due times of an open loop. A closed loop has none.
pub struct Schedule {
    start: u64,
    next: u64,
    pace: Pace,
}

impl Schedule {
    /// Begins at `start`, in nanoseconds.
    pub fn new(start: u64, pace: Pace) -> Schedule {
        Schedule { start, next: 0, pace }
    }

    /// Returns when the next message is due.
    pub fn next_due(&self) -> Option<u64> {
        let Pace::Open { rate } = self.pace else { return None };
        // Computed from the start each time, so that rounding errors do not add up.
        Some(self.start + (self.next as f64 * 1e9 / rate) as u64)
    }

    /// Returns when the message that was just counted was due.
    pub fn last_due(&self) -> u64 {
        Schedule { next: self.next.saturating_sub(1), ..*self }.next_due().unwrap_or(self.start)
    }

    /// Returns when the next message was due, if that is before `now`, and counts it as sent.
    pub fn due_until(&mut self, now: u64) -> Option<u64> {
        let due = self.next_due()?;
        (due < now).then(|| {
            self.next += 1;
            due
        })
    }

    /// Returns which of `clients` sends the message that was just counted.
    pub fn client(&self, clients: usize) -> usize {
        (self.next - 1) as usize % clients
    }
}
