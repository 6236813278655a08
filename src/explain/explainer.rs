//! The [`Explainer`]: an [`Observer`] of the loop that writes a line for each thing that happens.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::explain::diagram::{Arrow, Diagram, Priority, Side};
use crate::explain::socket_table::{AddressPair, SocketTable, TcpState, fin_timeout};
use crate::explain::tracked::*;

/// The most closed connections that are followed until the kernel, too, has done with them. With more, the
/// oldest is let go.
const MAX_ORPHANS: usize = 16;

/// How long to wait between two looks at them: the last ACK comes within a round trip, a client's FIN when
/// somebody presses a key.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often a connection begins anew with single lines.
const BULK_INTERVAL: Duration = Duration::from_millis(100);

/// Said at the start. One line for each thing that a reader cannot guess.
const LEGEND: [&str; 6] = [
    "explain  ───► a system call told us.  ╌╌► inferred: no program sees SYN, ACK, or what follows its",
    "explain  close. Flags and lengths follow from the calls: a read or a write is told as one segment,",
    "explain  or as many as its length needs. Seconds count from accept(2). The last column is what the",
    "explain  kernel says of the socket, as in ss -tan or /proc/net/tcp.",
    "",
    "no.      seconds  client                          server  state (RFC 9293) or bytes    kernel",
];

/// A connection after our close(2).
#[derive(Debug)]
struct Orphan {
    connection: TrackedConnection,
    closed: Instant,
    /// How it ended; said after the first look.
    summary: Option<String>,
    /// How many RSTs the kernel had answered with before.
    resets: Option<i64>,
}

/// Tells it all.
#[derive(Debug)]
pub struct Explainer {
    diagram: Diagram,
    kernel: SocketTable,
    open: HashMap<u32, TrackedConnection>,
    /// Closed connections that the kernel has not done with, the oldest first.
    orphans: VecDeque<Orphan>,
    fin_timeout: Duration,
    next_check: Instant,
    pause: Duration,
    /// Connections with a sum that is to be said, and when.
    busy: Vec<u32>,
    flush_at: Instant,
}

impl Explainer {
    /// Tells it there, beginning with the legend.
    pub fn new<T: AsFd + IsTerminal>(stdout: T) -> io::Result<Explainer> {
        let mut diagram = Diagram::new(stdout)?;
        for line in LEGEND {
            diagram.heading(line);
        }
        Ok(Explainer {
            diagram,
            kernel: SocketTable::new(),
            open: HashMap::new(),
            orphans: VecDeque::new(),
            fin_timeout: fin_timeout(),
            next_check: Instant::now(),
            pause: MIN_POLL_INTERVAL,
            busy: Vec::new(),
            flush_at: Instant::now(),
        })
    }

    /// The server has stopped: a last look at what the kernel goes on with alone.
    pub fn stopped(&mut self) {
        self.check_orphans();
        for orphan in &self.orphans {
            let connection = &orphan.connection;
            let text = format!("{}: the kernel goes on with it, alone", connection.state);
            self.diagram.remark(connection.dated(), &text);
        }
        self.diagram.print_skipped();
    }

    /// Asks the kernel about every closed connection, and lets go those that it has done with.
    fn check_orphans(&mut self) {
        for mut orphan in std::mem::take(&mut self.orphans) {
            let seen = orphan.connection.pair.as_ref().and_then(|pair| self.kernel.state(pair));
            let done = seen.is_none_or(|seen| self.catch_up(&mut orphan, seen));
            if let Some(summary) = orphan.summary.take() {
                self.diagram.remark(orphan.connection.dated(), &summary);
            }
            if orphan.connection.state == TcpState::TimeWait {
                self.print_time_wait(&orphan.connection);
            } else if !done {
                self.orphans.push_back(orphan);
            }
        }
    }

    /// Tells what must have happened, given what the kernel says now. Returns whether that is the end of it.
    fn catch_up(&mut self, orphan: &mut Orphan, seen: TcpState) -> bool {
        let connection = &mut orphan.connection;
        loop {
            match (connection.state, seen) {
                (TcpState::FinWait1, TcpState::FinWait2 | TcpState::TimeWait) => {
                    print_inferred_ack(&mut self.diagram, connection, TcpState::FinWait2, seen);
                }
                (TcpState::FinWait1, TcpState::Closing) => {
                    print_inferred_fin(&mut self.diagram, connection, TcpState::Closing, seen);
                }
                (TcpState::FinWait2, TcpState::TimeWait) => {
                    print_inferred_fin(&mut self.diagram, connection, TcpState::TimeWait, seen);
                }
                (TcpState::Closing, TcpState::TimeWait | TcpState::Closed) => {
                    print_inferred_ack(&mut self.diagram, connection, TcpState::TimeWait, seen);
                }
                (TcpState::LastAck, TcpState::Closed) => {
                    print_inferred_ack(&mut self.diagram, connection, TcpState::Closed, seen);
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

    /// It was in FIN-WAIT-1 or -2, and all at once there is nothing: the client sent on after our close, which the kernel
    /// answers with RST; or it sent RST itself; or it did nothing for so long that the kernel forgot it.
    fn print_disappearance(&mut self, orphan: &mut Orphan) {
        let connection = &mut orphan.connection;
        let resets = self.kernel.rst_count();
        if connection.state == TcpState::FinWait2 && orphan.closed.elapsed() + MAX_POLL_INTERVAL * 2 > self.fin_timeout
        {
            let text =
                format!("the kernel has waited {} s for the client's FIN, and forgets it", self.fin_timeout.as_secs());
            connection.state = TcpState::Closed;
            self.diagram.remark(connection.dated(), &text);
            return;
        }
        let client_did = match (orphan.resets, resets) {
            (Some(before), Some(now)) if before < now => false,
            (Some(_), Some(_)) => true,
            _ => {
                let text = "gone by RST: the kernel's, if the client sent on after our close; or the client's";
                connection.state = TcpState::Closed;
                self.diagram.remark(connection.dated(), text);
                return;
            }
        };
        let mut draw = |from, label, meaning: &str, kernel: &str| {
            let arrow = Arrow { from, inferred: true, label };
            self.diagram.arrow(connection.dated(), arrow, meaning, kernel, Priority::High);
        };
        if client_did {
            draw(Side::Client, "RST", &format!("{} → CLOSED", connection.state), "gone");
        } else {
            draw(Side::Client, "PSH+ACK len ?", "to nobody: we have closed", "");
            draw(Side::Server, "RST", &format!("{} → CLOSED", connection.state), "gone");
        }
        connection.state = TcpState::Closed;
    }

    fn print_time_wait(&mut self, connection: &TrackedConnection) {
        let text = "TIME-WAIT is ours, for our FIN went first: the kernel keeps both addresses for 60 s";
        self.diagram.remark(connection.undated(), text);
    }

    /// Lets a connection go, with its last word.
    fn untrack(&mut self, orphan: Orphan) {
        if let Some(summary) = orphan.summary {
            self.diagram.remark(orphan.connection.dated(), &summary);
        }
    }
}

impl Observer for Explainer {
    fn opened(&mut self, number: u32, peer: &Peer, stream: &Stream) {
        let (pair, mss) = match stream {
            Stream::Tcp(tcp) => {
                let pair = tcp.local_addr().and_then(|local| Ok(AddressPair { local, remote: tcp.peer_addr()? }));
                (pair.ok(), SockRef::from(tcp).tcp_mss().unwrap_or(0) as usize)
            }
            Stream::Unix(_) => (None, 0),
        };
        let mut connection = TrackedConnection::new(number, pair, mss);
        match pair {
            Some(pair) => {
                let seen = seen(ask(&mut self.diagram, &mut self.kernel, &connection));
                let local = Peer::from(pair.local);
                let text = format!("client {peer}, server {local}; segments of at most {mss} bytes");
                self.diagram.remark(connection.dated(), &text);
                let handshake = [
                    (Side::Client, "SYN", format!("{} → {}", TcpState::Listen, connection.state), ""),
                    (Side::Server, "SYN+ACK", String::new(), ""),
                    (Side::Client, "ACK", connection.enter(TcpState::Established), seen.as_str()),
                ];
                for (from, label, meaning, kernel) in handshake {
                    let arrow = Arrow { from, inferred: true, label };
                    self.diagram.arrow(connection.undated(), arrow, &meaning, kernel, Priority::High);
                }
            }
            None if matches!(peer, Peer::Unix) => {
                let text = "a Unix socket: the kernel copies from queue to queue; no segments, no handshake";
                self.diagram.remark(connection.dated(), text);
            }
            None => self.diagram.remark(connection.dated(), "the client is gone already"),
        }
        self.open.insert(number, connection);
    }

    fn event(&mut self, number: u32, fact: ConnectionEvent<'_>) {
        let Some(connection) = self.open.get_mut(&number) else { return };
        let (diagram, kernel) = (&mut self.diagram, &mut self.kernel);
        if matches!(fact, ConnectionEvent::Received(_) | ConnectionEvent::Sent(_) | ConnectionEvent::Discarded(_)) {
            if connection.window_start.elapsed() >= BULK_INTERVAL {
                print_suppressed(diagram, connection);
                (connection.lines, connection.window_start) = (0, Instant::now());
            }
            connection.lines += 1;
            if connection.lines == MAX_SINGLE_LINES + 1 {
                self.busy.push(number);
                self.flush_at = connection.window_start + BULK_INTERVAL;
            }
        } else {
            print_suppressed(diagram, connection);
        }
        match fact {
            ConnectionEvent::Received(bytes) => {
                connection.received += bytes.len() as u64;
                print_bytes(diagram, kernel, connection, Side::Client, bytes.len(), Some(bytes));
            }
            ConnectionEvent::Discarded(count) => {
                print_bytes(diagram, kernel, connection, Side::Client, count, None);
            }
            ConnectionEvent::Sent(bytes) => {
                connection.sent += bytes.len() as u64;
                print_bytes(diagram, kernel, connection, Side::Server, bytes.len(), Some(bytes));
                let was_pending = connection.pending > 0;
                connection.pending = connection.pending.saturating_sub(bytes.len());
                if was_pending && connection.pending == 0 {
                    diagram.remark(
                        connection.dated(),
                        "window open again: the client reads, all we owe is out, and we read on",
                    );
                }
            }
            ConnectionEvent::Stalled(count) => {
                connection.pending = count;
                let text = format!("window closed: the client does not read. {count} bytes of the answer wait,");
                diagram.remark(connection.dated(), &text);
                diagram.remark(connection.undated(), "and we read no more, so that ours closes in turn: flow control");
            }
            ConnectionEvent::PeerClosedWrite => print_client_fin(diagram, kernel, connection),
            ConnectionEvent::SentFin => print_server_fin(diagram, kernel, connection),
        }
    }

    fn closed(&mut self, number: u32, reason: CloseReason, stream: &Stream) {
        let Some(mut connection) = self.open.remove(&number) else { return };
        print_suppressed(&mut self.diagram, &mut connection);
        let unread = stream.bytes_available().unwrap_or(0);
        print_end(&mut self.diagram, &mut connection, reason, unread);
        let summary = summary(&connection, reason);
        match connection.state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing
                if connection.pair.is_some() && self.diagram.has_room(Priority::Low) =>
            {
                if self.orphans.len() == MAX_ORPHANS
                    && let Some(oldest) = self.orphans.pop_front()
                {
                    self.untrack(oldest);
                }
                let resets = if connection.state == TcpState::LastAck { None } else { self.kernel.rst_count() };
                let closed = Instant::now();
                self.orphans.push_back(Orphan { connection, closed, summary: Some(summary), resets });
                (self.next_check, self.pause) = (closed, MIN_POLL_INTERVAL);
            }
            state => {
                self.diagram.remark(connection.dated(), &summary);
                if state == TcpState::TimeWait && connection.pair.is_some() {
                    self.print_time_wait(&connection);
                }
            }
        }
    }

    fn draining(&mut self) {
        self.diagram.heading("drain    no newcomers; what the kernel holds is answered, then our FIN, then theirs");
    }

    fn end_iteration(&mut self) {
        self.kernel.end_iteration();
        let Some(due) = self.next_deadline() else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        if !self.busy.is_empty() && self.flush_at <= now {
            for number in std::mem::take(&mut self.busy) {
                if let Some(connection) = self.open.get_mut(&number) {
                    print_suppressed(&mut self.diagram, connection);
                }
            }
        }
        if self.next_check <= now {
            self.check_orphans();
            self.diagram.flush_skipped();
            self.next_check = now + self.pause;
            self.pause = (self.pause * 2).min(MAX_POLL_INTERVAL);
        }
    }

    fn next_wakeup(&self) -> Option<Duration> {
        self.next_deadline().map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Explainer {
    /// When there is something to do, though nothing may happen.
    fn next_deadline(&self) -> Option<Instant> {
        let looks = !self.orphans.is_empty() || self.diagram.has_skipped_lines();
        let sums = !self.busy.is_empty();
        [looks.then_some(self.next_check), sums.then_some(self.flush_at)].into_iter().flatten().min()
    }
}
