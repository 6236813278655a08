//! What is known of one connection, and the lines about it.

use std::mem;
use std::time::{Duration, Instant};

use crate::event_loop::outcome::CloseReason;
use crate::explain::diagram::{Arrow, Diagram, MEANING_COLUMNS, Prefix, Priority, Side, quoted};
use crate::explain::socket_table::{Lookup, SocketId, SocketTable, TcpState};
use crate::explain::time::now;

/// The maximum number of reads and writes of one connection that get a line of their own in
/// [`BULK_INTERVAL`](super::explainer::BULK_INTERVAL). The others are summed up.
pub(super) const MAX_SINGLE_LINES: u32 = 12;

/// A connection as far as it has been printed.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    pub(super) number: u32,
    accepted_at: Instant,
    /// `None`: a Unix socket, or a TCP connection that was already reset.
    pub(super) socket: Option<SocketId>,
    /// The longest segment in bytes; 0 if unknown.
    mss: usize,
    pub(super) state: TcpState,
    received: u64,
    sent: u64,
    /// Bytes of the echo that the kernel has not accepted yet.
    pending: usize,
    /// The state in the kernel when data was read, for the line of its echo: by then a quick client may be in the next state.
    state_at_read: Option<Lookup>,
    /// Reads and writes since `window_start`.
    lines: u32,
    window_start: Instant,
    /// Reads and writes without a line of their own.
    suppressed: Suppressed,
    /// Whether the explainer has the connection in its queue of sums to print.
    pub(super) is_queued: bool,
}

/// A sum of reads and writes.
#[derive(Clone, Copy, Debug, Default)]
struct Suppressed {
    calls: u64,
    received: u64,
    sent: u64,
}

impl TrackedConnection {
    pub(super) fn new(number: u32, socket: Option<SocketId>, mss: usize) -> TrackedConnection {
        let accepted_at = now();
        TrackedConnection {
            number,
            accepted_at,
            socket,
            mss,
            state: if socket.is_some() { TcpState::SynReceived } else { TcpState::Established },
            received: 0,
            sent: 0,
            pending: 0,
            state_at_read: None,
            lines: 0,
            window_start: accepted_at,
            suppressed: Suppressed::default(),
            is_queued: false,
        }
    }

    /// Returns the beginning of a line about what happens now.
    pub(super) fn dated(&self) -> Prefix {
        Prefix { number: self.number, time: Some(now().duration_since(self.accepted_at)) }
    }

    /// Returns the beginning of a line about something inferred whose time is unknown.
    pub(super) fn undated(&self) -> Prefix {
        Prefix { number: self.number, time: None }
    }

    /// Changes the state. Returns the transition as text, empty for a Unix socket.
    pub(super) fn enter(&mut self, state: TcpState) -> String {
        let before = mem::replace(&mut self.state, state);
        if self.socket.is_some() { format!("{before} → {state}") } else { String::new() }
    }

    /// Returns whether this is a TCP connection.
    pub(super) fn is_tcp(&self) -> bool {
        self.socket.is_some()
    }

    /// Returns whether the kernel's table shows its socket, so that it can be tracked after close(2).
    pub(super) fn is_visible(&self) -> bool {
        self.socket.is_some_and(|socket| socket.is_verified())
    }

    /// Asks the kernel for the state of the socket, which is open, if there is budget to print it.
    pub(super) fn kernel_state(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable) -> Lookup {
        match &mut self.socket {
            Some(socket) if diagram.has_room(Priority::High) => match sockets.lookup(socket) {
                // The table does not contain closed sockets, but this one still exists, because we hold it open.
                Lookup::Gone => Lookup::State(TcpState::Closed),
                found => found,
            },
            _ => Lookup::Skipped,
        }
    }

    // ---- opened ----

    /// Prints the handshake, which the kernel has completed before accept(2) returned.
    pub(super) fn print_handshake(&mut self, diagram: &mut Diagram, kernel: Lookup) {
        let listen = format!("{} → {}", TcpState::Listen, self.state);
        let established = self.enter(TcpState::Established);
        for (from, label, meaning, kernel) in [
            (Side::Client, "SYN", listen.as_str(), ""),
            (Side::Server, "SYN+ACK", "", ""),
            (Side::Client, "ACK", &established, &kernel_column(kernel)),
        ] {
            let arrow = Arrow { from, inferred: true, label };
            diagram.arrow(self.undated(), arrow, meaning, kernel, Priority::High);
        }
    }

    // ---- data ----

    /// Counts a read or write. A new interval with single lines begins when the last one is over and its sum is printed.
    pub(super) fn count_line(&mut self, interval: Duration) {
        let now = now();
        if now.duration_since(self.window_start) >= interval && !self.has_suppressed() {
            (self.lines, self.window_start) = (0, now);
        }
        self.lines = self.lines.saturating_add(1);
    }

    pub(super) fn print_received(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable, bytes: &[u8]) {
        self.received += bytes.len() as u64;
        self.print_bytes(diagram, sockets, Side::Client, bytes.len(), Some(bytes));
    }

    pub(super) fn print_discarded(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable, count: usize) {
        self.print_bytes(diagram, sockets, Side::Client, count, None);
    }

    pub(super) fn print_sent(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable, bytes: &[u8]) {
        self.sent += bytes.len() as u64;
        self.print_bytes(diagram, sockets, Side::Server, bytes.len(), Some(bytes));
        let was_pending = self.pending > 0;
        self.pending = self.pending.saturating_sub(bytes.len());
        if was_pending && self.pending == 0 {
            diagram.remark(self.dated(), "window open again: all pending output is sent, reading resumes");
        }
    }

    pub(super) fn print_stalled(&mut self, diagram: &mut Diagram, count: usize) {
        self.pending = count;
        let text = format!("window closed: the client does not read; {count} bytes are pending,");
        diagram.remark(self.dated(), &text);
        diagram.remark(self.undated(), "and we stop reading, so our window closes in turn: backpressure");
    }

    fn print_bytes(
        &mut self,
        diagram: &mut Diagram,
        sockets: &mut SocketTable,
        from: Side,
        count: usize,
        bytes: Option<&[u8]>,
    ) {
        if self.lines > MAX_SINGLE_LINES {
            self.suppressed.calls += 1;
            let sum = if from == Side::Client { &mut self.suppressed.received } else { &mut self.suppressed.sent };
            *sum += count as u64;
            return;
        }
        if !diagram.has_room(Priority::Low) {
            return diagram.skip_line();
        }
        let label = match self.socket {
            None => format!("{count} bytes"),
            Some(_) if self.mss > 0 && count > self.mss => {
                format!("PSH+ACK len {count} ×{}", count.div_ceil(self.mss))
            }
            Some(_) => format!("PSH+ACK len {count}"),
        };
        let meaning = bytes.map_or_else(|| "read and discarded".into(), |bytes| quoted(bytes, MEANING_COLUMNS));
        let now = match self.state_at_read.take() {
            Some(state) if from == Side::Server => state,
            _ => self.kernel_state(diagram, sockets),
        };
        self.state_at_read = (from == Side::Client).then_some(now);
        if self.state == TcpState::FinWait1 && is_fin_acknowledged(now) {
            self.print_inferred_ack(diagram, TcpState::FinWait2, now);
        }
        let arrow = Arrow { from, inferred: false, label: &label };
        diagram.arrow(self.dated(), arrow, &meaning, &kernel_column(now), Priority::Low);
    }

    /// Returns whether there are reads and writes that had no line of their own.
    pub(super) fn has_suppressed(&self) -> bool {
        self.suppressed.calls > 0
    }

    /// Prints their sum if there is budget for it; otherwise they remain suppressed. Returns whether none are left.
    pub(super) fn try_print_suppressed(&mut self, diagram: &mut Diagram) -> bool {
        if self.has_suppressed() && diagram.has_room(Priority::Medium) {
            self.print_suppressed(diagram);
        }
        !self.has_suppressed()
    }

    /// Prints the sum of the reads and writes that had no line of their own, if there are any.
    pub(super) fn print_suppressed(&mut self, diagram: &mut Diagram) {
        let Suppressed { calls, received, sent } = mem::take(&mut self.suppressed);
        if calls > 0 {
            let text = format!("… {calls} more reads and writes ({received} bytes in, {sent} out)");
            diagram.remark(self.dated(), &text);
        }
    }

    // ---- FIN ----

    /// Prints the client's FIN, which read(2) has reported.
    pub(super) fn print_client_fin(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable) {
        let arrow = |from, inferred, label| Arrow { from, inferred, label };
        if self.socket.is_none() {
            self.state = if self.state == TcpState::Established { TcpState::CloseWait } else { TcpState::Closed };
            let arrow = arrow(Side::Client, false, "end of file");
            return diagram.arrow(self.dated(), arrow, "no more data, or closed", "", Priority::High);
        }
        let now = self.kernel_state(diagram, sockets);
        if self.state == TcpState::FinWait1 && now != Lookup::State(TcpState::Closing) {
            // No system call reports the ACK of our FIN, but it came before or with this FIN, unless the FINs have crossed.
            self.print_inferred_ack(diagram, TcpState::FinWait2, Lookup::Skipped);
        }
        let next = match self.state {
            TcpState::Established => TcpState::CloseWait,
            TcpState::FinWait1 => TcpState::Closing,
            _ => TcpState::TimeWait,
        };
        let transition = self.enter(next);
        let fin = arrow(Side::Client, false, "FIN+ACK");
        diagram.arrow(self.dated(), fin, &transition, &kernel_column(now), Priority::High);
        let meaning = if next == TcpState::CloseWait { "or combined with our FIN" } else { "" };
        diagram.arrow(self.undated(), arrow(Side::Server, true, "ACK"), meaning, "", Priority::High);
    }

    /// Prints our FIN, right after shutdown(2) or right before the close(2) that sends it.
    pub(super) fn print_server_fin(&mut self, diagram: &mut Diagram, sockets: &mut SocketTable) {
        let arrow = |from, label| Arrow { from, inferred: false, label };
        let by_close = self.state == TcpState::CloseWait;
        if self.socket.is_none() {
            self.state = if by_close { TcpState::Closed } else { TcpState::FinWait1 };
            let meaning = if by_close { "we close as well" } else { "no more data from us" };
            return diagram.arrow(self.dated(), arrow(Side::Server, "end of file"), meaning, "", Priority::High);
        }
        let now = self.kernel_state(diagram, sockets);
        if now == Lookup::State(TcpState::Closed) {
            // The echo reached a client that had closed without waiting for it.
            return self.print_inferred_rst(diagram, now);
        }
        let transition = self.enter(if by_close { TcpState::LastAck } else { TcpState::FinWait1 });
        // If it is close(2) that sends the FIN, the kernel still reports the previous state.
        let kernel = if now == Lookup::State(TcpState::CloseWait) { String::new() } else { kernel_column(now) };
        diagram.arrow(self.dated(), arrow(Side::Server, "FIN+ACK"), &transition, &kernel, Priority::High);
        if is_fin_acknowledged(now) && self.state == TcpState::FinWait1 {
            self.print_inferred_ack(diagram, TcpState::FinWait2, now);
        }
    }

    /// Prints the client's ACK of our FIN, inferred from the state in the kernel.
    pub(super) fn print_inferred_ack(&mut self, diagram: &mut Diagram, next: TcpState, kernel: Lookup) {
        let transition = self.enter(next);
        let arrow = Arrow { from: Side::Client, inferred: true, label: "ACK" };
        diagram.arrow(self.dated(), arrow, &transition, &kernel_column(kernel), Priority::High);
    }

    /// Prints the client's RST, inferred from the state in the kernel.
    fn print_inferred_rst(&mut self, diagram: &mut Diagram, kernel: Lookup) {
        let transition = self.enter(TcpState::Closed);
        let arrow = Arrow { from: Side::Client, inferred: true, label: "RST" };
        diagram.arrow(self.dated(), arrow, &transition, &kernel_column(kernel), Priority::High);
    }

    /// Prints the client's FIN, which arrived after our close(2), and the kernel's ACK.
    pub(super) fn print_inferred_fin(&mut self, diagram: &mut Diagram, next: TcpState, kernel: Lookup) {
        let transition = self.enter(next);
        let fin = Arrow { from: Side::Client, inferred: true, label: "FIN+ACK" };
        diagram.arrow(self.dated(), fin, &transition, &kernel_column(kernel), Priority::High);
        let ack = Arrow { from: Side::Server, inferred: true, label: "ACK" };
        diagram.arrow(self.dated(), ack, "", "", Priority::High);
    }

    // ---- end ----

    /// Prints what the close(2) that follows sends, or why the connection is closed already.
    pub(super) fn print_end(
        &mut self,
        diagram: &mut Diagram,
        sockets: &mut SocketTable,
        reason: CloseReason,
        unread: u32,
    ) {
        if self.socket.is_none() || matches!(reason, CloseReason::Error(_)) {
            self.state = TcpState::Closed;
        }
        if self.state == TcpState::Closed {
            return;
        }
        let is_forced = matches!(reason, CloseReason::Idle | CloseReason::Cut);
        let (from, label, next) = match self.state {
            _ if reason == CloseReason::Reset => (Side::Client, "RST", TcpState::Closed),
            _ if unread > 0 || is_forced && self.pending > 0 => (Side::Server, "RST", TcpState::Closed),
            TcpState::Established if is_forced => (Side::Server, "FIN+ACK", TcpState::FinWait1),
            TcpState::CloseWait if is_forced => (Side::Server, "FIN+ACK", TcpState::LastAck),
            _ => return,
        };
        let (mut inferred, mut kernel) = (false, "CLOSED"); // That is what ECONNRESET and EPIPE mean.
        if from == Side::Server {
            let now = self.kernel_state(diagram, sockets);
            if now == Lookup::State(TcpState::Closed) {
                // The client's RST has arrived, but we have not read it yet. Our close(2) sends nothing.
                return self.print_inferred_rst(diagram, now);
            }
            // If the state is unknown, such an RST cannot be ruled out.
            (inferred, kernel) = (!matches!(now, Lookup::State(_)), "");
        }
        if from == Side::Server && label == "RST" {
            let (count, why) = if unread > 0 { (unread as usize, "unread") } else { (self.pending, "pending") };
            let text = format!("close(2) with {count} bytes {why} sends RST instead of FIN");
            diagram.remark(self.dated(), &text);
        }
        let transition = self.enter(next);
        diagram.arrow(self.dated(), Arrow { from, inferred, label }, &transition, kernel, Priority::High);
    }

    /// Prints that TIME-WAIT is on our side.
    pub(super) fn print_time_wait(&self, diagram: &mut Diagram) {
        let text = "TIME-WAIT is ours, because our FIN was first; it lasts 60 s";
        diagram.remark(self.undated(), text);
    }

    /// Returns how the connection ended, in one line.
    pub(super) fn summary(&self, reason: CloseReason) -> String {
        let why = match reason {
            CloseReason::Finished if self.state == TcpState::LastAck => "client closed first and keeps TIME-WAIT",
            CloseReason::Finished => "the client closed first",
            CloseReason::OneShot => "one message echoed, our FIN was first",
            CloseReason::Drained => "our FIN was first, then the client's",
            CloseReason::Reset => "reset by the client",
            CloseReason::Idle => "no byte moved for --idle-timeout",
            CloseReason::Cut => "closed forcibly by the server",
            CloseReason::Error(kind) => &format!("the system reported: {kind}"),
        };
        let lost = if self.pending > 0 { format!(", {} lost", self.pending) } else { String::new() };
        format!("{}: {why}; {} bytes in, {} out{lost}", CloseReason::NAMES[reason.index()], self.received, self.sent)
    }
}

/// Returns the text of the last column: the state in the kernel.
pub(super) fn kernel_column(lookup: Lookup) -> String {
    match lookup {
        Lookup::State(state) => state.to_string(),
        Lookup::Gone => "gone".into(),
        Lookup::Unknown => "unknown".into(),
        Lookup::Skipped => String::new(),
    }
}

/// Returns whether this state in the kernel means that our FIN has been acknowledged.
fn is_fin_acknowledged(lookup: Lookup) -> bool {
    matches!(lookup, Lookup::State(TcpState::FinWait2 | TcpState::TimeWait))
}
