//! The loop's interface to monitoring: the metrics endpoint and the service manager, which the loop knows nothing about.

use std::io;

use mio::Registry;

use crate::event_loop::clock::{Clock, NEVER};
use crate::event_loop::counters::{Counters, Snapshot};

/// Work that runs on the loop beside the echo, on its thread and its poller.
///
/// The loop calls [`update`](Monitor::update) after an event for the monitor and when
/// [`next_deadline`](Monitor::next_deadline) has passed. An iteration that only echoes does not call it. Implementations
/// must not block.
pub trait Monitor {
    /// Registers sockets with the poller, under [`EventSource::Monitor`](crate::event_loop::token::EventSource::Monitor)
    /// tokens.
    fn register(&mut self, _registry: &Registry) -> io::Result<()> {
        Ok(())
    }

    /// Records an event for the socket that was registered under this index.
    fn on_event(&mut self, _index: u32) {}

    /// Returns when `update` must be called even if nothing happens, in milliseconds since the loop started, or
    /// [`NEVER`]. 0 means at once.
    fn next_deadline(&self) -> u64 {
        NEVER
    }

    /// Does the work that is due at `now`, in milliseconds since the loop started.
    fn update(&mut self, _now: u64, _registry: &Registry, _snapshot: &Snapshot) {}

    /// Prints the counters, because somebody asked for them with SIGUSR1.
    fn print_counters(&mut self, _counters: &Counters) {}

    /// Marks the end of an iteration of the loop, whose clock was read right after the wait.
    fn end_iteration(&mut self, _clock: &Clock) {}
}

/// Monitors nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoMonitor;

impl Monitor for NoMonitor {}
