//! The graceful shutdown.

use log::warn;

use crate::event_loop::clock::millis;
use crate::event_loop::monitor::Monitor;
use crate::event_loop::observer::Observer;
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::protocol::Protocol;
use crate::event_loop::server::Server;

/// How many slots are visited in one iteration to start the graceful shutdown of all connections, or to close them. A connection
/// costs some 10 µs then, so this bounds how long a signal or a metrics request waits meanwhile.
const SLOTS_PER_SWEEP: u32 = 64;

/// How far a graceful shutdown has come. Many connections are visited in portions, so that a second signal, the watchdog and
/// metrics requests are served in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainPhase {
    /// There is none.
    None,
    /// Connections in the backlogs are accepted. The listeners are closed before the first FIN is sent: a peer that sees the FIN
    /// and reconnects must be refused, not be queued in a backlog that is about to be reset.
    Accepting,
    /// Connections start their shutdown, from this slot on.
    Starting(u32),
    /// The server waits for peers to close.
    Waiting,
    /// The timeout has expired: connections are closed forcibly, from this slot on.
    Closing(u32),
}

impl<M: Monitor, P: Protocol> Server<M, P> {
    /// Starts the graceful shutdown. No more connections are accepted than are in the backlogs already. Every connection echoes
    /// what is in its receive buffer, sends its FIN, and waits for its peer to close.
    pub(super) fn drain(&mut self, observer: &mut impl Observer) {
        observer.draining();
        self.drain_deadline = self.clock.ms() + millis(self.settings.drain_timeout);
        self.drain_phase = DrainPhase::Accepting;
        self.acceptor.drain();
    }

    /// Takes the graceful shutdown a step further.
    pub(super) fn continue_drain(&mut self, observer: &mut impl Observer) {
        match self.drain_phase {
            DrainPhase::None => {}
            // Without descriptors, the rest of a backlog waits for connections that close.
            DrainPhase::Accepting if self.can_accept() => {}
            DrainPhase::Accepting => self.start_draining(0),
            DrainPhase::Starting(slot) => self.start_draining(slot),
            DrainPhase::Waiting => self.end_drain(),
            DrainPhase::Closing(slot) => self.close_from(slot, observer),
        }
    }

    /// Starts the graceful shutdown of a portion of the connections.
    fn start_draining(&mut self, from: u32) {
        let to = self.connections.slots().min(from.saturating_add(SLOTS_PER_SWEEP));
        for slot in from..to {
            if let Some(id) = self.connections.id_at(slot) {
                self.connections.drain(id);
            }
        }
        let is_done = to == self.connections.slots();
        self.drain_phase = if is_done { DrainPhase::Waiting } else { DrainPhase::Starting(to) };
        if is_done {
            self.end_drain();
        }
    }

    /// Ends a drain that is complete or has timed out. Even at the timeout, data that was in a receive buffer is echoed as far
    /// as its peer reads at once; only with a drain timeout near 0 is any of it left.
    fn end_drain(&mut self) {
        if self.acceptor.is_closed() && self.connections.is_empty() {
            self.stopped = true;
        } else if self.drain_deadline <= self.clock.ms()
            && !self.can_accept()
            && !self.connections.any_draining_output()
        {
            // Closing connections frees descriptors, possibly for others that are still in a backlog. So the loop stops only if
            // there is nothing to close.
            self.stopped = self.connections.is_empty();
            if !self.stopped {
                warn!("drain timeout expired; closing {} remaining connections", self.connections.len());
            }
            self.drain_phase = DrainPhase::Closing(0);
        }
    }

    /// Closes a portion of the connections forcibly, whatever their states.
    fn close_from(&mut self, from: u32, observer: &mut impl Observer) {
        let to = self.connections.slots().min(from.saturating_add(SLOTS_PER_SWEEP));
        for slot in from..to {
            if let Some(id) = self.connections.id_at(slot) {
                self.close(id, CloseReason::Cut, observer);
            }
        }
        let is_done = to == self.connections.slots();
        self.drain_phase = if is_done { DrainPhase::Waiting } else { DrainPhase::Closing(to) };
    }

    /// Closes every connection forcibly, because a second signal has arrived.
    pub(super) fn close_all(&mut self, observer: &mut impl Observer) {
        for slot in 0..self.connections.slots() {
            if let Some(id) = self.connections.id_at(slot) {
                self.close(id, CloseReason::Cut, observer);
            }
        }
    }
}
