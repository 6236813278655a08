//! Signals as a source of events.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook_mio::v1_0::Signals;

/// Handled signals, as they reach the loop: through a pipe that is registered with the poller, and by a flag.
///
/// A signal handler writes to the pipe, and that may fail (ENOBUFS). The flag costs nothing to check, so it is checked when a
/// signal has interrupted the wait.
pub struct SignalSource {
    /// The pipe, to be registered with a poller, and the signals that have arrived.
    pub signals: Signals,
    has_arrived: Arc<AtomicBool>,
}

impl SignalSource {
    /// Installs handlers for these signals.
    pub fn new(wanted: &[i32]) -> io::Result<SignalSource> {
        let has_arrived = Arc::new(AtomicBool::new(false));
        for &signal in wanted {
            // Before the pipe: actions run in the order in which they were registered.
            signal_hook::flag::register(signal, Arc::clone(&has_arrived))?;
        }
        Ok(SignalSource { signals: Signals::new(wanted)?, has_arrived })
    }

    /// Returns whether a signal has arrived that [`next_signal`](SignalSource::next_signal) has not returned yet.
    pub fn has_arrived(&self) -> bool {
        self.has_arrived.load(Ordering::Relaxed)
    }

    /// Returns the next signal that has arrived. Identical signals coalesce: the kernel keeps one bit per signal, not a queue.
    pub fn next_signal(&mut self) -> Option<i32> {
        self.has_arrived.store(false, Ordering::Relaxed);
        self.signals.pending().next()
    }
}
