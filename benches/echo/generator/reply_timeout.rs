//! The limit for how long the generator waits for replies.

use std::time::Duration;

use super::nanoseconds;

/// Maximum time without any byte in reply while replies are outstanding.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time from the end of the window until the last outstanding reply. A server that sends single bytes now and
/// then would otherwise keep a run alive forever.
const MAX_DRAIN: Duration = Duration::from_secs(30);

/// Measures how long no byte has arrived. Time during which the generator itself did not run does not count: on a
/// machine that was suspended, the server could not answer either.
pub struct ReplyTimeout {
    limit: u64,
    waited: u64,
    checked_at: u64,
    drain_until: u64,
}

impl ReplyTimeout {
    /// Starts to wait at `now`, in nanoseconds.
    pub fn new(limit: Duration, now: u64) -> ReplyTimeout {
        ReplyTimeout { limit: nanoseconds(limit), waited: 0, checked_at: now, drain_until: u64::MAX }
    }

    /// Starts over: a byte has arrived.
    pub fn progress(&mut self, now: u64) {
        (self.waited, self.checked_at) = (0, now);
    }

    /// Nothing more is sent from `now` on; the outstanding replies must arrive within [`MAX_DRAIN`].
    pub fn start_drain(&mut self, now: u64) {
        self.drain_until = now + nanoseconds(MAX_DRAIN);
    }

    /// Returns what did not happen in time, if a limit is exceeded. Must be called in every iteration of the waiting loop.
    pub fn exceeded(&mut self, now: u64) -> Option<String> {
        self.waited += (now - self.checked_at).min(self.limit / 20);
        self.checked_at = now;
        if self.waited > self.limit {
            Some(format!("then nothing for {} s", self.limit as f64 / 1e9))
        } else if now > self.drain_until {
            Some(format!("not all of them within {} s after the last message", MAX_DRAIN.as_secs()))
        } else {
            None
        }
    }
}
