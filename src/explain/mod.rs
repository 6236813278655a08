//! `--explain`: each connection as TCP lives it, told on stdout while it happens.
//!
//! The [`Explainer`] hears of system calls, and says which segments they mean and which states of RFC 9293 the
//! connection goes through. What no program in user space can see (SYN, ACK, what comes after our close) is
//! inferred, from what must have been before, or from the kernel's own table, and drawn dashed.
//!
//! It lives in the loop, so its work is bounded: a line for a fact, so many lines in a second ([`Diagram`]), a
//! question to the kernel for a line ([`SocketTable`]), and a handful of closed connections followed to their end.

pub mod diagram;
pub mod socket_table;

use std::collections::{HashMap, VecDeque};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::CloseReason;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::explain::diagram::{Arrow, Diagram, MEANING, Place, Side, Weight, quoted};
use crate::explain::socket_table::{Ends, SocketTable, TcpState, fin_timeout};

/// The most closed connections that are followed until the kernel, too, has done with them. With more, the
/// oldest is let go.
const MAX_TRACKED: usize = 16;

/// How long to wait between two looks at them: the last ACK comes within a round trip, a client's FIN when
/// somebody presses a key.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(1);
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The most reads and writes of one connection that get a line of their own in [`BULK`]. The rest is summed up.
const SINGLE_LINES: u32 = 12;

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

/// What is known of a connection.
#[derive(Debug)]
struct Told {
    number: u32,
    began: Instant,
    /// `None`: a Unix socket.
    ends: Option<Ends>,
    /// The longest segment, in bytes; 0 if unknown.
    segment: usize,
    state: TcpState,
    received: u64,
    sent: u64,
    /// Bytes of the answer that the kernel has not taken.
    pending: usize,
    /// What the kernel said when we read, for the line of the answer to it: by then a quick client may be further.
    seen: Option<TcpState>,
    /// Single lines since `counted_from`.
    lines: u32,
    counted_from: Instant,
    /// Reads and writes without a line of their own.
    unsaid: Unsaid,
}

/// A sum of reads and writes.
#[derive(Clone, Copy, Debug, Default)]
struct Unsaid {
    calls: u64,
    received: u64,
    sent: u64,
}

impl Told {
    fn new(number: u32, ends: Option<Ends>, segment: usize) -> Told {
        let began = Instant::now();
        Told {
            number,
            began,
            ends,
            segment,
            state: if ends.is_some() { TcpState::SynReceived } else { TcpState::Established },
            received: 0,
            sent: 0,
            pending: 0,
            seen: None,
            lines: 0,
            counted_from: began,
            unsaid: Unsaid::default(),
        }
    }

    fn place(&self) -> Place {
        Place { number: self.number, time: Some(self.began.elapsed()) }
    }

    /// For what was inferred, and when it was nobody knows.
    fn sometime(&self) -> Place {
        Place { number: self.number, time: None }
    }

    fn moves_to(&mut self, state: TcpState) -> String {
        let before = std::mem::replace(&mut self.state, state);
        if self.ends.is_some() { format!("{before} → {state}") } else { String::new() }
    }
}

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
            Stream::Tcp(tcp) | Stream::Mptcp(tcp) => {
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

/// What the kernel says, in its column.
fn seen(state: Option<TcpState>) -> String {
    match state {
        Some(TcpState::Closed) => "gone".into(),
        Some(state) => state.to_string(),
        None => String::new(),
    }
}

/// Asks the kernel, where there is room to tell what it says.
fn ask(diagram: &mut Diagram, kernel: &mut SocketTable, told: &Told) -> Option<TcpState> {
    let ends = told.ends.as_ref()?;
    if diagram.has_room(Weight::Heavy) { kernel.state(ends) } else { None }
}

fn tell_bytes(
    diagram: &mut Diagram,
    kernel: &mut SocketTable,
    told: &mut Told,
    from: Side,
    count: usize,
    bytes: Option<&[u8]>,
) {
    if told.lines > SINGLE_LINES {
        told.unsaid.calls += 1;
        let sum = if from == Side::Client { &mut told.unsaid.received } else { &mut told.unsaid.sent };
        *sum += count as u64;
        return;
    }
    if !diagram.has_room(Weight::Light) {
        return diagram.leave_out();
    }
    let label = match told.ends {
        None => format!("{count} bytes"),
        Some(_) if told.segment > 0 && count > told.segment => {
            format!("PSH+ACK len {count}, {} segments", count.div_ceil(told.segment))
        }
        Some(_) => format!("PSH+ACK len {count}"),
    };
    let meaning = bytes.map_or_else(|| "read and dropped".into(), |bytes| quoted(bytes, MEANING));
    let now = match from {
        Side::Server if told.seen.is_some() => told.seen.take(),
        _ => ask(diagram, kernel, told),
    };
    told.seen = if from == Side::Client { now } else { None };
    if told.state == TcpState::FinWait1 && is_acknowledged(now) {
        infer_acknowledged(diagram, told, TcpState::FinWait2, TcpState::FinWait2);
    }
    let arrow = Arrow { from, inferred: false, label: &label };
    diagram.arrow(told.place(), arrow, &meaning, &seen(now), Weight::Light);
}

/// The reads and writes that had no line of their own.
fn say_sum(diagram: &mut Diagram, told: &mut Told) {
    let Unsaid { calls, received, sent } = std::mem::take(&mut told.unsaid);
    if calls > 0 {
        let text = format!("… {calls} reads and writes more, {received} bytes in and {sent} out");
        diagram.remark(told.place(), &text);
    }
}

fn tell_clients_fin(diagram: &mut Diagram, kernel: &mut SocketTable, told: &mut Told) {
    let arrow = |from, inferred, label| Arrow { from, inferred, label };
    if told.ends.is_none() {
        let text = "it writes no more, or has closed";
        told.state = if told.state == TcpState::Established { TcpState::CloseWait } else { TcpState::Closed };
        return diagram.arrow(told.place(), arrow(Side::Client, false, "end of file"), text, "", Weight::Heavy);
    }
    let now = ask(diagram, kernel, told);
    if told.state == TcpState::FinWait1 {
        // Nobody told us of the ACK, but no FIN comes without one. (RFC 9293 knows a simultaneous close, where the FINs
        // cross; what is drawn here as two segments is then one, after CLOSING.)
        infer_acknowledged(diagram, told, TcpState::FinWait2, TcpState::FinWait2);
    }
    let next = if told.state == TcpState::Established { TcpState::CloseWait } else { TcpState::TimeWait };
    let meaning = told.moves_to(next);
    diagram.arrow(told.place(), arrow(Side::Client, false, "FIN+ACK"), &meaning, &seen(now), Weight::Heavy);
    let meaning = if next == TcpState::CloseWait { "or in one with our FIN" } else { "" };
    diagram.arrow(told.sometime(), arrow(Side::Server, true, "ACK"), meaning, "", Weight::Heavy);
}

fn tell_our_fin(diagram: &mut Diagram, kernel: &mut SocketTable, told: &mut Told) {
    let arrow = |from, label| Arrow { from, inferred: false, label };
    if told.ends.is_none() {
        let last = told.state == TcpState::CloseWait;
        told.state = if last { TcpState::Closed } else { TcpState::FinWait1 };
        let text = if last { "we close, too" } else { "we write no more" };
        return diagram.arrow(told.place(), arrow(Side::Server, "end of file"), text, "", Weight::Heavy);
    }
    let now = ask(diagram, kernel, told);
    if now == Some(TcpState::Closed) {
        // The answer met a client that had closed without waiting for it.
        let meaning = told.moves_to(TcpState::Closed);
        return diagram.arrow(told.place(), arrow(Side::Client, "RST"), &meaning, "gone", Weight::Heavy);
    }
    let closes = told.state == TcpState::CloseWait; // Told before the close(2) that sends it, so there is no asking yet.
    let meaning = told.moves_to(if closes { TcpState::LastAck } else { TcpState::FinWait1 });
    let seen = if closes { String::new() } else { seen(now) };
    diagram.arrow(told.place(), arrow(Side::Server, "FIN+ACK"), &meaning, &seen, Weight::Heavy);
    if is_acknowledged(now) && told.state == TcpState::FinWait1 {
        infer_acknowledged(diagram, told, TcpState::FinWait2, TcpState::FinWait2);
    }
}

/// What a close(2) that follows sends, or why there is nothing left to close.
fn tell_the_end(diagram: &mut Diagram, told: &mut Told, reason: CloseReason, unread: u32) {
    let arrow = |from, label| Arrow { from, inferred: false, label };
    if told.ends.is_none() {
        told.state = TcpState::Closed;
        return;
    }
    match reason {
        _ if told.state == TcpState::Closed => {}
        CloseReason::Reset => {
            let meaning = told.moves_to(TcpState::Closed);
            diagram.arrow(told.place(), arrow(Side::Client, "RST"), &meaning, "gone", Weight::Heavy);
        }
        CloseReason::Error(_) => told.state = TcpState::Closed,
        _ if unread > 0 => {
            let text = format!("close(2) with {unread} bytes unread: that is RST, and no FIN");
            diagram.remark(told.place(), &text);
            let meaning = told.moves_to(TcpState::Closed);
            diagram.arrow(told.place(), arrow(Side::Server, "RST"), &meaning, "", Weight::Heavy);
        }
        CloseReason::Idle | CloseReason::Cut if matches!(told.state, TcpState::Established | TcpState::CloseWait) => {
            let first = told.state == TcpState::Established;
            let meaning = told.moves_to(if first { TcpState::FinWait1 } else { TcpState::LastAck });
            diagram.arrow(told.place(), arrow(Side::Server, "FIN+ACK"), &meaning, "", Weight::Heavy);
        }
        _ => {}
    }
}

/// Whether the kernel has an ACK of our FIN.
fn is_acknowledged(seen: Option<TcpState>) -> bool {
    matches!(seen, Some(TcpState::FinWait2 | TcpState::TimeWait))
}

/// The client's ACK of our FIN.
fn infer_acknowledged(diagram: &mut Diagram, told: &mut Told, next: TcpState, kernel: TcpState) {
    let meaning = told.moves_to(next);
    let arrow = Arrow { from: Side::Client, inferred: true, label: "ACK" };
    diagram.arrow(told.place(), arrow, &meaning, &seen(Some(kernel)), Weight::Heavy);
}

/// The client's FIN, which came when there was no socket of ours any more to read it from, and the kernel's ACK.
fn infer_finished(diagram: &mut Diagram, told: &mut Told, next: TcpState, kernel: TcpState) {
    let meaning = told.moves_to(next);
    for (from, label, meaning, kernel) in
        [(Side::Client, "FIN+ACK", meaning.as_str(), seen(Some(kernel))), (Side::Server, "ACK", "", String::new())]
    {
        let arrow = Arrow { from, inferred: true, label };
        diagram.arrow(told.place(), arrow, meaning, &kernel, Weight::Heavy);
    }
}

/// How it ended, in a line.
fn summary(told: &Told, reason: CloseReason) -> String {
    let why = match reason {
        CloseReason::Finished if told.state == TcpState::LastAck => "the client's FIN first, so TIME-WAIT is its own",
        CloseReason::Finished => "the client finished first",
        CloseReason::OneShot => "one message answered, then our FIN first",
        CloseReason::Drained => "our FIN first, then the client's",
        CloseReason::Reset => "the client gave it up",
        CloseReason::Idle => "no byte moved for --idle-timeout",
        CloseReason::Cut => "the server would not wait longer",
        CloseReason::Error(kind) => &format!("the system says: {kind}"),
    };
    let lost = if told.pending > 0 { format!(", {} lost", told.pending) } else { String::new() };
    format!("{}: {why}; {} bytes in, {} out{lost}", CloseReason::NAMES[reason.index()], told.received, told.sent)
}
