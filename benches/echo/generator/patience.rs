//! How long a silent server is waited for.

use std::time::Duration;

use super::nanoseconds;

/// Maximum time without any reply while replies are outstanding.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Measures how long no reply has arrived. Time during which the generator itself did not run does not count: on a
/// machine that was suspended, the server could not answer either.
pub struct Patience {
    limit: u64,
    waited: u64,
    checked_at: u64,
}

impl Patience {
    /// Starts to wait at `now`, in nanoseconds.
    pub fn new(limit: Duration, now: u64) -> Patience {
        Patience { limit: nanoseconds(limit), waited: 0, checked_at: now }
    }

    /// Starts over: a reply has arrived.
    pub fn progress(&mut self, now: u64) {
        (self.waited, self.checked_at) = (0, now);
    }

    /// Returns whether the limit is exceeded. Must be called in every iteration of the waiting loop.
    pub fn is_over(&mut self, now: u64) -> bool {
        self.waited += (now - self.checked_at).min(self.limit / 20);
        self.checked_at = now;
        self.waited > self.limit
    }

    /// The limit in seconds, for messages.
    pub fn limit_s(&self) -> f64 {
        self.limit as f64 / 1e9
    }
}
