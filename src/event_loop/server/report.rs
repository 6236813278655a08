//! What the loop reports to its monitor.

use crate::event_loop::clock::NEVER;
use crate::event_loop::counters::{Counters, Snapshot};
use crate::event_loop::monitor::Monitor;
use crate::event_loop::protocol::Protocol;
use crate::event_loop::server::Server;

impl<M: Monitor, P: Protocol> Server<M, P> {
    /// Lets the monitor do what is due: notify the service manager, answer metrics requests.
    pub(super) fn update_monitor(&mut self) {
        let accept_paused = !self.has_room() || self.acceptor.resume_at() < NEVER;
        let draining = self.drain_deadline < NEVER;
        let max_connections = self.settings.max_connections;
        let snapshot = Snapshot { counters: self.counters(), max_connections, accept_paused, draining };
        self.monitor.update(self.clock.ms(), self.poll.registry(), &snapshot);
    }

    /// Returns everything counted so far.
    pub fn counters(&self) -> Counters {
        Counters {
            traffic: self.scratch.traffic,
            accept_errors: self.acceptor.errors,
            accept_pauses: self.acceptor.pauses,
            budget_exhausted: self.connections.budget_exhausted,
            ..self.counters
        }
    }
}
