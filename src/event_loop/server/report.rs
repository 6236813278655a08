//! What the loop reports: to its monitor, and to the log at debug level.

use log::{Level, debug, log_enabled};

use crate::event_loop::clock::NEVER;
use crate::event_loop::connection::Connection;
use crate::event_loop::counters::{Counters, Snapshot};
use crate::event_loop::monitor::Monitor;
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::protocol::Protocol;
use crate::event_loop::server::Server;
use crate::event_loop::token::ConnectionId;
use crate::event_loop::transport::{Peer, Stream};

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

/// Logs that a connection was opened.
pub(super) fn log_opened(id: ConnectionId, peer: &Peer, stream: &Stream) {
    if log_enabled!(Level::Debug) {
        debug!("connection {} from {peer} to {} opened", id.generation, local(stream));
    }
}

/// Logs that a connection, which was open for `ms` milliseconds, is closed.
pub(super) fn log_closed<P: Protocol>(connection: &Connection<Stream, P>, reason: CloseReason, ms: u32) {
    if log_enabled!(Level::Debug) {
        let (number, peer, local) = (connection.number, connection.peer, local(&connection.stream));
        let (bytes_in, bytes_out, seconds) = (connection.received(), connection.sent(), f64::from(ms) / 1e3);
        debug!(
            "connection {number} from {peer} to {local} closed: {reason}, {bytes_in} bytes in, {bytes_out} bytes out, \
             {seconds:.3} s"
        );
    }
}

fn local(stream: &Stream) -> String {
    stream.local().map_or_else(|| "unknown".into(), |local| local.to_string())
}
