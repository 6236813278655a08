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
use crate::explain::socket_table::{AddressPair, Lookup, SocketId, SocketTable, TcpState, fin_timeout};
use crate::explain::time::now;
use crate::explain::tracked::TrackedConnection;

/// Maximum number of closed connections tracked until the kernel has fully terminated them. Beyond it, the oldest is dropped.
const MAX_ORPHANS: usize = 16;

/// The interval between two checks of the orphans. It starts at the minimum, because the last ACK arrives within a round trip,
/// and doubles up to the maximum, because a client's FIN may be sent when somebody presses a key.
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(1);
const MAX_CHECK_INTERVAL: Duration = Duration::from_millis(100);

/// How often a connection may print single lines again, and sums are printed.
pub(super) const BULK_INTERVAL: Duration = Duration::from_millis(100);

/// The capacity up to which the table of open connections does not shrink.
const MIN_CAPACITY: usize = 1024;

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
    /// Connections with suppressed reads and writes, each once, and when their sums are printed. Those that have closed since
    /// stay in it until then.
    busy: VecDeque<u32>,
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
            next_check: now(),
            check_interval: MIN_CHECK_INTERVAL,
            busy: VecDeque::new(),
            flush_at: now(),
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

    /// Prints the sums of busy connections, as far as there is budget. Those that are left are first in the next interval.
    fn flush_busy(&mut self) {
        for _ in 0..self.busy.len() {
            let Some(number) = self.busy.pop_front() else { return };
            let Some(connection) = self.open.get_mut(&number) else { continue };
            connection.is_queued = !connection.try_print_suppressed(&mut self.diagram);
            if connection.is_queued {
                self.busy.push_back(number);
            }
        }
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
        let closed_at = now();
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
            let now = orphan.connection.socket.as_mut().map_or(Lookup::Unknown, |socket| self.sockets.lookup(socket));
            let is_done = self.catch_up(&mut orphan, now);
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

    /// Prints what must have happened, given the present state in the kernel. Returns whether nothing more can be known.
    fn catch_up(&mut self, orphan: &mut Orphan, now: Lookup) -> bool {
        let state = match now {
            Lookup::State(state) => state,
            Lookup::Gone => TcpState::Closed,
            Lookup::Unknown | Lookup::Skipped => return true,
        };
        loop {
            let (connection, diagram) = (&mut orphan.connection, &mut self.diagram);
            match (connection.state, state) {
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
        let waited = now().duration_since(orphan.closed_at) + MAX_CHECK_INTERVAL * 2;
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
        let (socket, mss) = match stream {
            Stream::Tcp(tcp) | Stream::Mptcp(tcp) => {
                let pair = tcp.local_addr().and_then(|local| Ok(AddressPair { local, remote: tcp.peer_addr()? }));
                let socket = pair.ok().map(|pair| SocketId::new(pair, tcp));
                (socket, SockRef::from(tcp).tcp_mss().unwrap_or(0) as usize)
            }
            Stream::Unix(_) => (None, 0),
        };
        let mut connection = TrackedConnection::new(number, socket, mss);
        let diagram = &mut self.diagram;
        match socket {
            Some(socket) => {
                let state = connection.kernel_state(diagram, &mut self.sockets);
                let local = Peer::from(socket.pair.local);
                let text = format!("client {peer}, server {local}; MSS {mss} bytes");
                diagram.remark(connection.dated(), &text);
                if state == Lookup::Unknown {
                    let text = "kernel state unknown: other network namespace, or bound to a device";
                    diagram.remark(connection.undated(), text);
                }
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
            connection.count_line(BULK_INTERVAL);
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
        if connection.has_suppressed() && !connection.is_queued {
            connection.is_queued = true;
            if self.busy.is_empty() {
                self.flush_at = now() + BULK_INTERVAL;
            }
            self.busy.push_back(number);
        }
    }

    fn closed(&mut self, number: u32, reason: CloseReason, stream: &Stream) {
        let Some(mut connection) = self.open.remove(&number) else { return };
        if self.open.capacity() > MIN_CAPACITY && self.open.len() < self.open.capacity() / 8 {
            self.open.shrink_to(MIN_CAPACITY); // Return the memory after a peak.
        }
        connection.print_suppressed(&mut self.diagram);
        connection.print_end(&mut self.diagram, &mut self.sockets, reason, stream.bytes_available().unwrap_or(0));
        let summary = connection.summary(reason);
        match connection.state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing
                if connection.is_visible() && self.diagram.has_room(Priority::Low) =>
            {
                self.track(connection, summary);
            }
            state => {
                self.diagram.remark(connection.dated(), &summary);
                if state == TcpState::TimeWait && connection.is_tcp() {
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
        let now = now();
        if now < deadline {
            return;
        }
        if !self.busy.is_empty() && self.flush_at <= now {
            self.flush_busy();
            self.flush_at = now + BULK_INTERVAL;
        }
        if self.next_check <= now {
            self.check_orphans();
            self.diagram.flush_skipped();
            self.next_check = now + self.check_interval;
            self.check_interval = (self.check_interval * 2).min(MAX_CHECK_INTERVAL);
        }
    }

    fn next_wakeup(&self) -> Option<Duration> {
        self.next_deadline().map(|deadline| deadline.saturating_duration_since(now()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::explain::time::simulated::advance;

    /// An explainer whose output is discarded.
    fn silent_explainer() -> Explainer {
        Explainer::new(File::options().write(true).open("/dev/null").expect("/dev/null")).expect("explainer")
    }

    /// Opens connection `number` over a Unix socket, and returns it.
    fn open(explainer: &mut Explainer, number: u32) -> Stream {
        let (stream, _) = mio::net::UnixStream::pair().expect("socket pair");
        let stream = Stream::Unix(stream);
        explainer.opened(number, &Peer::Unix, &stream);
        stream
    }

    #[test]
    fn memory_stays_bounded_over_minutes_of_busy_connections() {
        const CONNECTIONS: u32 = 200;
        let mut explainer = silent_explainer();
        // The connections do not start at the same time, and neither do their intervals of single lines.
        let mut open_later = |number| {
            advance(Duration::from_millis(u64::from(number % 10)));
            open(&mut explainer, number)
        };
        let mut streams: Vec<Stream> = (1..=CONNECTIONS).map(&mut open_later).collect();
        let mut next = CONNECTIONS;
        // Two minutes, in steps of 20 ms. Each connection echoes three messages per step: more than get single lines.
        for step in 0..6_000_u32 {
            advance(Duration::from_millis(20));
            for number in next + 1 - CONNECTIONS..=next {
                for _ in 0..3 {
                    explainer.event(number, ConnectionEvent::Received(b"ping"));
                    explainer.event(number, ConnectionEvent::Sent(b"ping"));
                }
            }
            // The oldest connection is replaced by a new one, ten times a second.
            if step % 5 == 0 {
                explainer.closed(next + 1 - CONNECTIONS, CloseReason::Finished, &streams.remove(0));
                next += 1;
                streams.push(open(&mut explainer, next));
            }
            explainer.end_iteration();
            assert_eq!(explainer.open.len(), CONNECTIONS as usize);
            assert!(
                explainer.busy.len() <= CONNECTIONS as usize + 10,
                "{} are busy at step {step}",
                explainer.busy.len()
            );
            assert!(explainer.orphans.len() <= MAX_ORPHANS);
        }
        let sizes = (explainer.open.capacity(), explainer.busy.capacity(), explainer.orphans.capacity());
        assert!(sizes.0 <= 2048 && sizes.1 <= 2048 && sizes.2 <= 2 * MAX_ORPHANS, "{sizes:?}");
    }

    #[test]
    fn sums_of_many_busy_connections_are_printed_in_turn() {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let output = std::thread::spawn(move || io::read_to_string(&mut reader).expect("UTF-8"));
        let mut explainer = Explainer::new(File::from(OwnedFd::from(writer))).expect("explainer");
        let streams: Vec<Stream> = (1..=300).map(|number| open(&mut explainer, number)).collect();
        for _ in 0..100 {
            advance(Duration::from_millis(20));
            for number in 1..=300 {
                for _ in 0..4 {
                    explainer.event(number, ConnectionEvent::Received(b"ping"));
                }
            }
            explainer.end_iteration();
            std::thread::sleep(Duration::from_millis(1)); // The pipe must not be full.
        }
        drop((explainer, streams));
        let output = output.join().expect("no panic");
        for number in 1..=300 {
            let prefix = format!("#{number} ");
            let sums =
                output.lines().filter(|line| line.starts_with(&prefix) && line.contains("more reads and writes"));
            let count = sums.count();
            assert!(count >= 3, "connection {number} has {count} sums in 2 s");
        }
        // The limit of 1,000 lines per second holds, beyond those at once and one for each number of omitted lines.
        let lines = output.lines().filter(|line| line.starts_with('#')).count();
        assert!(lines <= 2_200, "{lines} lines in 2 s");
    }

    /// Returns both ends of a TCP connection.
    fn tcp_pair() -> (Stream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let client = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
        let (server, _) = listener.accept().expect("connection");
        server.set_nonblocking(true).expect("non-blocking");
        (Stream::Tcp(mio::net::TcpStream::from_std(server)), client)
    }

    /// Returns what an explainer prints about one TCP connection.
    fn output_of(events: impl FnOnce(&mut Explainer, Stream, std::net::TcpStream)) -> String {
        let (mut reader, writer) = io::pipe().expect("pipe");
        let mut explainer = Explainer::new(File::from(OwnedFd::from(writer))).expect("explainer");
        let (stream, client) = tcp_pair();
        explainer.opened(1, &Peer::from(client.local_addr().expect("address")), &stream);
        events(&mut explainer, stream, client);
        drop(explainer);
        io::read_to_string(&mut reader).expect("UTF-8")
    }

    #[test]
    fn forced_close_with_pending_output_is_an_rst() {
        let output = output_of(|explainer, stream, _client| {
            explainer.event(1, ConnectionEvent::Stalled(100));
            explainer.closed(1, CloseReason::Cut, &stream);
        });
        assert!(output.contains("close(2) with 100 bytes pending sends RST instead of FIN"), "{output}");
        assert!(output.contains("◄─ RST ─"), "{output}");
        assert!(output.contains("cut: closed forcibly by the server; 0 bytes in, 0 out, 100 lost"), "{output}");

        let output = output_of(|explainer, stream, _client| explainer.closed(1, CloseReason::Cut, &stream));
        assert!(output.contains("◄─ FIN+ACK ─") && !output.contains("RST"), "{output}");
    }

    #[test]
    fn reset_that_no_system_call_reported_is_inferred() {
        let output = output_of(|explainer, stream, client| {
            SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
            drop(client); // On loopback, the RST has arrived when this returns.
            explainer.event(1, ConnectionEvent::Stalled(100));
            explainer.closed(1, CloseReason::Cut, &stream);
        });
        assert!(output.contains("╌╌ RST ╌") && output.contains("ESTABLISHED → CLOSED        CLOSED"), "{output}");
        assert!(!output.contains("─ RST ─") && !output.contains("gone"), "{output}");
    }

    #[test]
    fn table_of_connections_shrinks_after_a_peak() {
        let mut explainer = silent_explainer();
        let stream = open(&mut explainer, 0);
        for number in 1..10_000 {
            explainer.opened(number, &Peer::Unix, &stream);
        }
        for number in 1..10_000 {
            explainer.closed(number, CloseReason::Finished, &stream);
        }
        assert!(explainer.open.capacity() <= 2 * MIN_CAPACITY, "{}", explainer.open.capacity());
    }
}
