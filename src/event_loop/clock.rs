//! The loop's time: read once a turn, compared in milliseconds.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// A deadline that does not come, in milliseconds.
pub const NEVER: u64 = u64::MAX;

const NANOS_PER_MS: u64 = 1_000_000;

/// Time since the start, as of the last look. CLOCK_MONOTONIC, as `Instant` reads it; but there a look and a difference
/// are 90 instructions, a third of what we spend on an echo, and here they are 30.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    started: u64,
    nanos: u64,
    ms: u64,
}

impl Clock {
    /// Starts at 0.
    pub fn start() -> Clock {
        Clock { started: monotonic_nanos(), nanos: 0, ms: 0 }
    }

    /// Looks: the one clock call of a turn.
    pub fn tick(&mut self) {
        self.nanos = monotonic_nanos() - self.started;
        self.ms = self.nanos / NANOS_PER_MS;
    }

    /// Nanoseconds since the start. They wrap after 584 years.
    pub fn nanos(&self) -> u64 {
        self.nanos
    }

    /// Whole milliseconds since the start.
    pub fn ms(&self) -> u64 {
        self.ms
    }

    /// How long ago the last look was, in nanoseconds. This is one more clock call, for those who measure turns.
    pub fn since_tick(&self) -> u64 {
        monotonic_nanos() - self.started - self.nanos
    }
}

fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Whole milliseconds, rounded up: a timeout of 50 µs is not none.
pub fn millis(duration: Duration) -> u64 {
    duration.as_micros().div_ceil(1000) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_timeout_is_rounded_up() {
        for (micros, ms) in [(0, 0), (1, 1), (50, 1), (1000, 1), (1001, 2), (60_000_000, 60_000)] {
            assert_eq!(millis(Duration::from_micros(micros)), ms);
        }
    }

    #[test]
    fn time_goes_on_only_when_it_is_looked_at() {
        let mut clock = Clock::start();
        assert_eq!((clock.nanos(), clock.ms()), (0, 0));
        let before = clock;
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(clock.nanos(), before.nanos());
        clock.tick();
        assert!((2..60_000).contains(&clock.ms()), "{clock:?}");
        assert_eq!(clock.ms(), clock.nanos() / NANOS_PER_MS);
        std::thread::sleep(Duration::from_millis(2));
        let since = clock.since_tick();
        assert!((2 * NANOS_PER_MS..60_000 * NANOS_PER_MS).contains(&since), "{since} ns");
        assert!(clock.nanos() + since <= monotonic_nanos() - clock.started, "{since} ns are more than there were");
    }

    #[test]
    fn nanoseconds_are_those_of_the_kernel() {
        let seconds = clock_gettime(ClockId::Monotonic).tv_sec as u64;
        let nanos = monotonic_nanos();
        assert!((seconds..seconds + 60).contains(&(nanos / 1_000_000_000)), "{seconds} s are {nanos} ns");
    }
}
