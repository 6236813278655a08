//! The explainer's clock, which tests can advance.

/// Returns the current time.
#[cfg(not(test))]
pub(super) fn now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(test)]
pub(super) use simulated::now;

/// A clock that stands still until a test advances it. Each thread, and so each test, has its own.
#[cfg(test)]
pub(super) mod simulated {
    use std::cell::Cell;
    use std::time::{Duration, Instant};

    thread_local! {
        static ADVANCED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
        static START: Instant = Instant::now();
    }

    pub(in crate::explain) fn now() -> Instant {
        START.with(|start| *start) + ADVANCED.get()
    }

    /// Advances the clock of this thread.
    pub(in crate::explain) fn advance(duration: Duration) {
        ADVANCED.set(ADVANCED.get() + duration);
    }
}
