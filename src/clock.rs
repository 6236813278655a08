//! The loop's time: read once a turn, in milliseconds where deadlines are compared.

use std::time::{Duration, Instant};

/// Time since the start, as of the last look.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: Instant,
    now: Duration,
}

impl Clock {
    /// Starts at 0.
    pub fn start() -> Clock {
        Clock { started: Instant::now(), now: Duration::ZERO }
    }

    /// Looks: the one clock call of a turn.
    pub fn tick(&mut self) {
        self.now = self.started.elapsed();
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.now
    }

    /// The same in whole milliseconds. They never wrap.
    pub fn ms(&self) -> u64 {
        self.now.as_millis() as u64
    }
}

/// Whole milliseconds, rounded up: a timeout of 50 µs is not none.
pub fn millis(duration: Duration) -> u64 {
    duration.as_micros().div_ceil(1000) as u64
}
