//! The [`Explainer`]: an [`Observer`] of the loop that writes a line for each thing that happens.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::explain::diagram::{Arrow, Diagram, Side, Weight};
use crate::explain::socket_table::{Ends, SocketTable, TcpState, fin_timeout};
use crate::explain::tracked::*;

/// The most closed connections that are followed until the kernel, too, has done with them. With more, the
/// oldest is let go.
const MAX_TRACKED: usize = 16;

/// How long to wait between two looks at them: the last ACK comes within a round trip, a client's FIN when
/// somebody presses a key.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How often a connection begins anew with single lines.
const BULK: Duration = Duration::from_millis(100);

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
struct Followed {
    told: Told,
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
    open: HashMap<u32, Told>,
    /// Closed connections that the kernel has not done with, the oldest first.
    followed: VecDeque<Followed>,
    fin_timeout: Duration,
    next_look: Instant,
    pause: Duration,
    /// Connections with a sum that is to be said, and when.
    noisy: Vec<u32>,
    sums_due: Instant,
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
            followed: VecDeque::new(),
            fin_timeout: fin_timeout(),
            next_look: Instant::now(),
            pause: MIN_POLL_INTERVAL,
            noisy: Vec::new(),
            sums_due: Instant::now(),
        })
    }

    /// The server has stopped: a last look at what the kernel goes on with alone.
    pub fn stopped(&mut self) {
        self.look_at_the_followed();
        for followed in &self.followed {
            let told = &followed.told;
            let text = format!("{}: the kernel goes on with it, alone", told.state);
            self.diagram.remark(told.place(), &text);
        }
        self.diagram.say_what_is_missing();
    }

    /// Asks the kernel about every closed connection, and lets go those that it has done with.
    fn look_at_the_followed(&mut self) {
        for mut followed in std::mem::take(&mut self.followed) {
            let seen = followed.told.ends.as_ref().and_then(|ends| self.kernel.state(ends));
            let done = seen.is_none_or(|seen| self.catch_up(&mut followed, seen));
            if let Some(summary) = followed.summary.take() {
                self.diagram.remark(followed.told.place(), &summary);
            }
            if followed.told.state == TcpState::TimeWait {
                self.remark_time_wait(&followed.told);
            } else if !done {
                self.followed.push_back(followed);
            }
        }
    }

    /// Tells what must have happened, given what the kernel says now. Returns whether that is the end of it.
    fn catch_up(&mut self, followed: &mut Followed, seen: TcpState) -> bool {
        let told = &mut followed.told;
        loop {
            match (told.state, seen) {
                (TcpState::FinWait1, TcpState::FinWait2 | TcpState::TimeWait) => {
                    infer_acknowledged(&mut self.diagram, told, TcpState::FinWait2, seen);
                }
                (TcpState::FinWait1, TcpState::Closing) => {
                    infer_finished(&mut self.diagram, told, TcpState::Closing, seen);
                }
                (TcpState::FinWait2, TcpState::TimeWait) => {
                    infer_finished(&mut self.diagram, told, TcpState::TimeWait, seen);
                }
                (TcpState::Closing, TcpState::TimeWait | TcpState::Closed) => {
                    infer_acknowledged(&mut self.diagram, told, TcpState::TimeWait, seen);
                }
                (TcpState::LastAck, TcpState::Closed) => {
                    infer_acknowledged(&mut self.diagram, told, TcpState::Closed, seen);
                }
                (TcpState::FinWait1 | TcpState::FinWait2, TcpState::Closed) => {
                    self.tell_how_it_vanished(followed);
                    return true;
                }
                (TcpState::TimeWait | TcpState::Closed, _) => return true,
                _ => return false,
            }
        }
    }

    /// It was in FIN-WAIT-1 or -2, and all at once there is nothing: the client sent on after our close, which the kernel
    /// answers with RST; or it sent RST itself; or it did nothing for so long that the kernel forgot it.
    fn tell_how_it_vanished(&mut self, followed: &mut Followed) {
        let told = &mut followed.told;
        let resets = self.kernel.rst_count();
        if told.state == TcpState::FinWait2 && followed.closed.elapsed() + MAX_POLL_INTERVAL * 2 > self.fin_timeout {
            let text =
                format!("the kernel has waited {} s for the client's FIN, and forgets it", self.fin_timeout.as_secs());
            told.state = TcpState::Closed;
            self.diagram.remark(told.place(), &text);
            return;
        }
        let client_did = match (followed.resets, resets) {
            (Some(before), Some(now)) if before < now => false,
            (Some(_), Some(_)) => true,
            _ => {
                let text = "gone by RST: the kernel's, if the client sent on after our close; or the client's";
                told.state = TcpState::Closed;
                self.diagram.remark(told.place(), text);
                return;
            }
        };
        let mut draw = |from, label, meaning: &str, kernel: &str| {
            let arrow = Arrow { from, inferred: true, label };
            self.diagram.arrow(told.place(), arrow, meaning, kernel, Weight::Heavy);
        };
        if client_did {
            draw(Side::Client, "RST", &format!("{} → CLOSED", told.state), "gone");
        } else {
            draw(Side::Client, "PSH+ACK len ?", "to nobody: we have closed", "");
            draw(Side::Server, "RST", &format!("{} → CLOSED", told.state), "gone");
        }
        told.state = TcpState::Closed;
    }

    fn remark_time_wait(&mut self, told: &Told) {
        let text = "TIME-WAIT is ours, for our FIN went first: the kernel keeps both addresses for 60 s";
        self.diagram.remark(told.sometime(), text);
    }

    /// Lets a connection go, with its last word.
    fn let_go(&mut self, followed: Followed) {
        if let Some(summary) = followed.summary {
            self.diagram.remark(followed.told.place(), &summary);
        }
    }
}

impl Observer for Explainer {
    fn opened(&mut self, number: u32, peer: &Peer, stream: &Stream) {
        let (ends, segment) = match stream {
            Stream::Tcp(tcp) => {
                let ends = tcp.local_addr().and_then(|local| Ok(Ends { local, remote: tcp.peer_addr()? }));
                (ends.ok(), SockRef::from(tcp).tcp_mss().unwrap_or(0) as usize)
            }
            Stream::Unix(_) => (None, 0),
        };
        let mut told = Told::new(number, ends, segment);
        match ends {
            Some(ends) => {
                let seen = seen(ask(&mut self.diagram, &mut self.kernel, &told));
                let local = Peer::from(ends.local);
                let text = format!("client {peer}, server {local}; segments of at most {segment} bytes");
                self.diagram.remark(told.place(), &text);
                let handshake = [
                    (Side::Client, "SYN", format!("{} → {}", TcpState::Listen, told.state), ""),
                    (Side::Server, "SYN+ACK", String::new(), ""),
                    (Side::Client, "ACK", told.moves_to(TcpState::Established), seen.as_str()),
                ];
                for (from, label, meaning, kernel) in handshake {
                    let arrow = Arrow { from, inferred: true, label };
                    self.diagram.arrow(told.sometime(), arrow, &meaning, kernel, Weight::Heavy);
                }
            }
            None if matches!(peer, Peer::Unix) => {
                let text = "a Unix socket: the kernel copies from queue to queue; no segments, no handshake";
                self.diagram.remark(told.place(), text);
            }
            None => self.diagram.remark(told.place(), "the client is gone already"),
        }
        self.open.insert(number, told);
    }

    fn event(&mut self, number: u32, fact: ConnectionEvent<'_>) {
        let Some(told) = self.open.get_mut(&number) else { return };
        let (diagram, kernel) = (&mut self.diagram, &mut self.kernel);
        if matches!(fact, ConnectionEvent::Received(_) | ConnectionEvent::Sent(_) | ConnectionEvent::Discarded(_)) {
            if told.counted_from.elapsed() >= BULK {
                say_sum(diagram, told);
                (told.lines, told.counted_from) = (0, Instant::now());
            }
            told.lines += 1;
            if told.lines == SINGLE_LINES + 1 {
                self.noisy.push(number);
                self.sums_due = told.counted_from + BULK;
            }
        } else {
            say_sum(diagram, told);
        }
        match fact {
            ConnectionEvent::Received(bytes) => {
                told.received += bytes.len() as u64;
                tell_bytes(diagram, kernel, told, Side::Client, bytes.len(), Some(bytes));
            }
            ConnectionEvent::Discarded(count) => {
                tell_bytes(diagram, kernel, told, Side::Client, count, None);
            }
            ConnectionEvent::Sent(bytes) => {
                told.sent += bytes.len() as u64;
                tell_bytes(diagram, kernel, told, Side::Server, bytes.len(), Some(bytes));
                let was_pending = told.pending > 0;
                told.pending = told.pending.saturating_sub(bytes.len());
                if was_pending && told.pending == 0 {
                    diagram
                        .remark(told.place(), "window open again: the client reads, all we owe is out, and we read on");
                }
            }
            ConnectionEvent::Stalled(count) => {
                told.pending = count;
                let text = format!("window closed: the client does not read. {count} bytes of the answer wait,");
                diagram.remark(told.place(), &text);
                diagram.remark(told.sometime(), "and we read no more, so that ours closes in turn: flow control");
            }
            ConnectionEvent::PeerClosedWrite => tell_clients_fin(diagram, kernel, told),
            ConnectionEvent::SentFin => tell_our_fin(diagram, kernel, told),
        }
    }

    fn closed(&mut self, number: u32, reason: CloseReason, stream: &Stream) {
        let Some(mut told) = self.open.remove(&number) else { return };
        say_sum(&mut self.diagram, &mut told);
        let unread = stream.bytes_available().unwrap_or(0);
        tell_the_end(&mut self.diagram, &mut told, reason, unread);
        let summary = summary(&told, reason);
        match told.state {
            TcpState::FinWait1 | TcpState::FinWait2 | TcpState::LastAck | TcpState::Closing
                if told.ends.is_some() && self.diagram.has_room(Weight::Light) =>
            {
                if self.followed.len() == MAX_TRACKED
                    && let Some(oldest) = self.followed.pop_front()
                {
                    self.let_go(oldest);
                }
                let resets = if told.state == TcpState::LastAck { None } else { self.kernel.rst_count() };
                let closed = Instant::now();
                self.followed.push_back(Followed { told, closed, summary: Some(summary), resets });
                (self.next_look, self.pause) = (closed, MIN_POLL_INTERVAL);
            }
            state => {
                self.diagram.remark(told.place(), &summary);
                if state == TcpState::TimeWait && told.ends.is_some() {
                    self.remark_time_wait(&told);
                }
            }
        }
    }

    fn draining(&mut self) {
        self.diagram.heading("drain    no newcomers; what the kernel holds is answered, then our FIN, then theirs");
    }

    fn end_iteration(&mut self) {
        self.kernel.turn_over();
        let Some(due) = self.next_turn() else { return };
        let now = Instant::now();
        if now < due {
            return;
        }
        if !self.noisy.is_empty() && self.sums_due <= now {
            for number in std::mem::take(&mut self.noisy) {
                if let Some(told) = self.open.get_mut(&number) {
                    say_sum(&mut self.diagram, told);
                }
            }
        }
        if self.next_look <= now {
            self.look_at_the_followed();
            self.diagram.settle();
            self.next_look = now + self.pause;
            self.pause = (self.pause * 2).min(MAX_POLL_INTERVAL);
        }
    }

    fn next_wakeup(&self) -> Option<Duration> {
        self.next_turn().map(|due| due.saturating_duration_since(Instant::now()))
    }
}

impl Explainer {
    /// When there is something to do, though nothing may happen.
    fn next_turn(&self) -> Option<Instant> {
        let looks = !self.followed.is_empty() || self.diagram.owes_a_count();
        let sums = !self.noisy.is_empty();
        [looks.then_some(self.next_look), sums.then_some(self.sums_due)].into_iter().flatten().min()
    }
}
