//! The generator's clock, which notices when the generator itself did not run.

use std::cell::Cell;
use std::time::{Duration, Instant};

use super::nanoseconds;

/// Between two readings of the clock a spinning generator does at most some 100 µs of work. A longer gap means that
/// something else had its core: another process, an interrupt, or the hypervisor.
const MAX_GAP_NS: u64 = 1_000_000;

/// Nanoseconds since the clock was created, and the sum of the gaps.
pub struct Clock {
    epoch: Instant,
    last: Cell<u64>,
    lost: Cell<u64>,
}

impl Clock {
    pub fn new() -> Clock {
        Clock { epoch: Instant::now(), last: Cell::new(0), lost: Cell::new(0) }
    }

    /// Returns the time in nanoseconds.
    pub fn now(&self) -> u64 {
        let now = nanoseconds(self.epoch.elapsed());
        let gap = now - self.last.replace(now);
        if gap > MAX_GAP_NS {
            self.lost.set(self.lost.get() + gap);
        }
        now
    }

    /// Returns the time lost in gaps since the last call. Without meaning for a generator that sleeps.
    pub fn take_lost(&self) -> Duration {
        Duration::from_nanos(self.lost.take())
    }
}
