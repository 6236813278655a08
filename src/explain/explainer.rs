//! The [`Explainer`]: an [`Observer`] of the loop that prints a line for each thing that happens on a connection.
//!
//! It receives the loop's system calls, and prints which segments they imply and which states of RFC 9293 the connection goes
//! through. What the sockets API does not show (the handshake, ACKs, everything after our close) is inferred from what must have
//! happened before, or from the kernel's socket table, and drawn dashed.
//!
//! It runs in the loop, so its work is bounded: one line per event, a limit of lines per second ([`Diagram`]), one query of the
//! kernel per line ([`SocketTable`]), and a small number of closed connections that are tracked until their end.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::mem;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::explain::diagram::{Arrow, Diagram, Priority, Side};
use crate::explain::socket_table::{AddressPair, SocketTable, TcpState, fin_timeout};
use crate::explain::tracked::TrackedConnection;

/// Maximum number of closed connections tracked until the kernel has fully terminated them. Beyond it, the oldest is dropped.
const MAX_ORPHANS: usize = 16;

/// The interval between two checks of the orphans. It starts at the minimum, because the last ACK arrives within a round trip,
/// and doubles up to the maximum, because a client's FIN may be sent when somebody presses a key.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);
const MAX_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a connection may print single lines again, and sums are printed.
pub(super) const BULK_INTERVAL: Duration = Duration::from_millis(100);

/// Printed at the start.
const LEGEND: [&str; 8] = [
    "explain  ───► observed: a system call of ours",
    "explain  ╌╌►  inferred: the handshake, ACKs, and everything after our close(2)",
    "explain  Each read or write is shown as one segment, or as several (×3) if it exceeds",
    "explain  the MSS. ACKs of data are on the wire and not shown. Seconds count from",
    "explain  accept(2); an inferred segment has the time at which we looked, not its own.",
    "explain  The last column is the state of the socket in the kernel, as in ss -tan.",
    "",
    "no.     seconds  client                 server  state (RFC 9293) or bytes   kernel",
];

/// A connection after our close(2), which the kernel terminates without us. tcp(7) calls its socket an orphan.
#[derive(Debug)]
struct Orphan {
    connection: TrackedConnection,
    closed_at: Instant,
    /// How it ended; printed after the first check.
    summary: Option<String>,
    /// [`SocketTable::rst_count`] at the close.
    rst_count: Option<i64>,
}

/// Prints the sequence diagram of every connection.
#[derive(Debug)]
pub struct Explainer {
    diagram: Diagram,
    sockets: SocketTable,
    open: HashMap<u32, TrackedConnection>,
    /// Oldest first.
    orphans: VecDeque<Orphan>,
    fin_timeout: Duration,
    next_check: Instant,
    check_interval: Duration,
    /// Connections with suppressed reads and writes, and when their sums are printed.
    busy: Vec<u32>,
    flush_at: Instant,
}

impl Explainer {
    /// Creates an explainer that prints to `stdout`, and prints the legend.
    pub fn new<T: AsFd + IsTerminal>(stdout: T) -> io::Result<Explainer> {
        let mut diagram = Diagram::new(stdout)?;
        for line in LEGEND {
            diagram.heading(line);
        }
        Ok(Explainer {
            diagram,
            sockets: SocketTable::new(),
            open: HashMap::new(),
            orphans: VecDeque::new(),
            fin_timeout: fin_timeout(),
            next_check: Instant::now(),
            check_interval: MIN_CHECK_INTERVAL,
            busy: Vec::new(),
            flush_at: Instant::now(),
        })
    }

    /// Prints, after the server has stopped, which connections the kernel still has to terminate.
    pub fn stopped(&mut self) {
        self.check_orphans();
        for Orphan { connection, .. } in &self.orphans {
            let text = format!("{}: left to the kernel", connection.state);
            self.diagram.remark(connection.dated(), &text);
        }
        self.diagram.print_skipped();
    }

    /// Returns when there is something to do even if nothing happens.
    fn next_deadline(&self) -> Option<Instant> {
        let check = !self.orphans.is_empty() || self.diagram.has_skipped_lines();
        let flush = !self.busy.is_empty();
        [check.then_some(self.next_check), flush.then_some(self.flush_at)].into_iter().flatten().min()
    }

    // ---- orphans ----

    /// Starts tracking a connection whose socket is closed right after this.
    fn track(&mut self, connection: TrackedConnection, summary: String) {
        if self.orphans.len() == MAX_ORPHANS
            && let Some(oldest) = self.orphans.pop_front()
        {
            self.untrack(oldest);
        }
        // In LAST-ACK only the ACK of our FIN can follow.
        let rst_count = if connection.state == TcpState::LastAck { None } else { self.sockets.rst_count() };
        let closed_at = Instant::now();
        self.orphans.push_back(Orphan { connection, closed_at, summary: Some(summary), rst_count });
        (self.next_check, self.check_interval) = (closed_at, MIN_CHECK_INTERVAL);
    }

    /// Stops tracking a connection before it has terminated.
    fn untrack(&mut self, orphan: Orphan) {
        if let Some(summary) = orphan.summary {
            self.diagram.remark(orphan.connection.dated(), &summary);
        }
    }

    /// Asks the kernel about every orphan, and drops those that have terminated.
    fn check_orphans(&mut self) {
        for mut orphan in mem::take(&mut self.orphans) {
            let now = orphan.connection.pair.as_ref().and_then(|pair| self.sockets.state(pair));
            let is_done = now.is_none_or(|now| self.catch_up(&mut orphan, now));
            if let Some(summary) = orphan.summary.take() {
                self.diagram.remark(orphan.connection.dated(), &summary);
            }
            if orphan.connection.state == TcpState::TimeWait {
                orphan.connection.print_time_wait(&mut self.diagram);
            } else if !is_done {
                self.orphans.push_back(orphan);
            }
        }
    }

    /// Prints what must have happened, given the present state in the kernel. Returns whether nothing more can follow.
    fn catch_up(&mut self, orphan: &mut Orphan, now: TcpState) -> bool {
        loop {
            let (connection, diagram) = (&mut orphan.connection, &mut self.diagram);
            match (connection.state, now) {
                (TcpState::FinWait1, TcpState::FinWait2 | TcpState::TimeWait) => {
                    connection.print_inferred_ack(diagram, TcpState::FinWait2, now);
                }
                (TcpState::FinWait1, TcpState::Closing) => {
                    connection.print_inferred_fin(diagram, TcpState::Closing, now);
                }
                (TcpState::FinWait2, TcpState::TimeWait) => {
                    connection.print_inferred_fin(diagram, TcpState::TimeWait, now);
                }
                (TcpState::Closing, TcpState::TimeWait | TcpState::Closed) => {
                    connection.print_inferred_ack(diagram, TcpState::TimeWait, now);
                }
                (TcpState::LastAck, TcpState::Closed) => {
                    connection.print_inferred_ack(diagram, TcpState::Closed, now);
                }
                (TcpState::FinWait1 | TcpState::FinWait2, TcpState::Closed) => {
                    self.print_disappearance(orphan);
                    return true;
                }
                (TcpState::TimeWait | TcpState::Closed, _) => return true,
                _ => return false,
            }
        }
    }

    /// Prints why a connection in FIN-WAIT-1 or FIN-WAIT-2 no longer exists: the client sent more data after our close, which
    /// the kernel answers with RST; or the client sent RST itself; or the kernel stopped waiting for its FIN.
    fn print_disappearance(&mut self, orphan: &mut Orphan) {
        let (connection, diagram) = (&mut orphan.connection, &mut self.diagram);
        let waited = orphan.closed_at.elapsed() + MAX_CHECK_INTERVAL * 2;
        if connection.state == TcpState::FinWait2 && waited > self.fin_timeout {
            let seconds = self.fin_timeout.as_secs();
            let text = format!("no FIN from the client within {seconds} s; the kernel dropped the connection");
            connection.state = TcpState::Closed;
            return diagram.remark(connection.dated(), &text);
        }
        let transition = connection.enter(TcpState::Closed);
        let (Some(before), Some(now)) = (orphan.rst_count, self.sockets.rst_count()) else {
            let text = "reset by the kernel, if the client sent more data, or by the client";
            return diagram.remark(connection.dated(), text);
        };
        let mut draw = |from, label, meaning: &str, kernel: &str| {
            let arrow = Arrow { from, inferred: true, label };
            diagram.arrow(connection.dated(), arrow, meaning, kernel, Priority::High);
        };
        if before < now {
            draw(Side::Client, "PSH+ACK len ?", "socket already closed", "");
            draw(Side::Server, "RST", &transition, "gone");
        } else {
            draw(Side::Client, "RST", &transition, "gone");
        }
    }
}

impl Observer for Explainer {
    fn opened(&mut self, number: u32, peer: &Peer, stream: &Stream) {
        let (pair, mss) = match stream {
            Stream::Tcp(tcp) | Stream::Mptcp(tcp) => {
                let pair = tcp.local_addr().and_then(|local| Ok(AddressPair { local, remote: tcp.peer_addr()? }));
                (pair.ok(), SockRef::from(tcp).tcp_mss().unwrap_or(0) as usize)
            }
            Stream::Unix(_) => (None, 0),
        };
        let mut connection = TrackedConnection::new(number, pair, mss);
        let diagram = &mut self.diagram;
        match pair {
            Some(pair) => {
                let state = connection.kernel_state(diagram, &mut self.sockets);
                let local = Peer::from(pair.local);
                let text = format!("client {peer}, server {local}; MSS {mss} bytes");
                diagram.remark(connection.dated(), &text);
                connection.print_handshake(diagram, state);
            }
            None if matches!(peer, Peer::Unix) => {
                let text = "Unix socket: the kernel copies the bytes; no segments, no handshake";
                diagram.remark(connection.dated(), text);
            }
            None => diagram.remark(connection.dated(), "the client has already disconnected"),
        }
        self.open.insert(number, connection);
    }

    fn event(&mut self, number: u32, event: ConnectionEvent<'_>) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        let (diagram, sockets) = (&mut self.diagram, &mut self.sockets);
        if matches!(event, ConnectionEvent::Received(_) | ConnectionEvent::Sent(_) | ConnectionEvent::Discarded(_)) {
            if connection.count_line(BULK_INTERVAL, diagram) {
                self.busy.push(number);
                self.flush_at = connection.window_start() + BULK_INTERVAL;
            }
        } else {
            connection.print_suppressed(diagram);
        }
        match event {
            ConnectionEvent::Received(bytes) => connection.print_received(diagram, sockets, bytes),
            ConnectionEvent::Discarded(count) => connection.print_discarded(diagram, sockets, count),
            ConnectionEvent::Sent(bytes) => connection.print_sent(diagram, sockets, bytes),
            ConnectionEvent::Stalled(count) => connection.print_stalled(diagram, count),
            ConnectionEvent::PeerClosedWrite => connection.print_client_fin(diagram, sockets),
            ConnectionEvent::SentFin => connection.print_server_fin(diagram, sockets),
        }
    }

    fn closed(&mut self, number: u32, reason: CloseReason, stream: &Stream) {
        let Some(mut connection) = self.open.remove(&number) else { return };
        connection.print_suppressed(&mut self.diagram);
        connection.print_end(&mut self.diagram, reason, stream.bytes_available().unwrap_or(0));
        let summary = connection.summary(reason);
        match connection.state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing
                if connection.pair.is_some() && self.diagram.has_room(Priority::Low) =>
            {
                self.track(connection, summary);
            }
            state => {
                self.diagram.remark(connection.dated(), &summary);
                if state == TcpState::TimeWait && connection.pair.is_some() {
                    connection.print_time_wait(&mut self.diagram);
                }
            }
        }
    }

    fn draining(&mut self) {
        self.diagram.heading("shutdown  no new connections; pending data is echoed, then FIN");
    }

    fn end_iteration(&mut self) {
        self.sockets.end_iteration();
        let Some(deadline) = self.next_deadline() else { return };
        let now = Instant::now();
        if now < deadline {
            return;
        }
        if !self.busy.is_empty() && self.flush_at <= now {
            for number in mem::take(&mut self.busy) {
                if let Some(connection) = self.open.get_mut(&number) {
                    connection.print_suppressed(&mut self.diagram);
                }
            }
        }
        if self.next_check <= now {
            self.check_orphans();
            self.diagram.flush_skipped();
            self.next_check = now + self.check_interval;
            self.check_interval = (self.check_interval * 2).min(MAX_CHECK_INTERVAL);
        }
    }

    fn next_wakeup(&self) -> Option<Duration> {
        self.next_deadline().map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }
}
