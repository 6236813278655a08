//! What is known of one connection, and the lines about it.

use std::time::Instant;

use crate::event_loop::outcome::CloseReason;
use crate::explain::diagram::{Arrow, Diagram, MEANING_COLUMNS, Prefix, Priority, Side, quoted};
use crate::explain::socket_table::{AddressPair, SocketTable, TcpState};

/// The most reads and writes of one connection that get a line of their own in [`BULK`]. The rest is summed up.
pub(super) const MAX_SINGLE_LINES: u32 = 12;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct TrackedConnection {
    pub(super) number: u32,
    pub(super) accepted_at: Instant,
    /// `None`: a Unix socket.
    pub(super) pair: Option<AddressPair>,
    /// The longest segment, in bytes; 0 if unknown.
    pub(super) mss: usize,
    pub(super) state: TcpState,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Bytes of the answer that the kernel has not taken.
    pub(super) pending: usize,
    /// What the kernel said when we read, for the line of the answer to it: by then a quick client may be further.
    pub(super) seen: Option<TcpState>,
    /// Single lines since `counted_from`.
    pub(super) lines: u32,
    pub(super) window_start: Instant,
    /// Reads and writes without a line of their own.
    pub(super) suppressed: Suppressed,
}

/// A sum of reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Suppressed {
    calls: u64,
    received: u64,
    sent: u64,
}

impl TrackedConnection {
    pub(super) fn new(number: u32, pair: Option<AddressPair>, mss: usize) -> TrackedConnection {
        let accepted_at = Instant::now();
        TrackedConnection {
            number,
            accepted_at,
            pair,
            mss,
            state: if pair.is_some() { TcpState::SynReceived } else { TcpState::Established },
            received: 0,
            sent: 0,
            pending: 0,
            seen: None,
            lines: 0,
            window_start: accepted_at,
            suppressed: Suppressed::default(),
        }
    }

    pub(super) fn dated(&self) -> Prefix {
        Prefix { number: self.number, time: Some(self.accepted_at.elapsed()) }
    }

    /// For what was inferred, and when it was nobody knows.
    pub(super) fn undated(&self) -> Prefix {
        Prefix { number: self.number, time: None }
    }

    pub(super) fn enter(&mut self, state: TcpState) -> String {
        let before = std::mem::replace(&mut self.state, state);
        if self.pair.is_some() { format!("{before} → {state}") } else { String::new() }
    }
}

/// What the kernel says, in its column.
pub(super) fn seen(state: Option<TcpState>) -> String {
    match state {
        Some(TcpState::Closed) => "gone".into(),
        Some(state) => state.to_string(),
        None => String::new(),
    }
}

/// Asks the kernel, where there is room to tell what it says.
pub(super) fn ask(diagram: &mut Diagram, kernel: &mut SocketTable, connection: &TrackedConnection) -> Option<TcpState> {
    let pair = connection.pair.as_ref()?;
    if diagram.has_room(Priority::High) { kernel.state(pair) } else { None }
}

pub(super) fn print_bytes(
    diagram: &mut Diagram,
    kernel: &mut SocketTable,
    connection: &mut TrackedConnection,
    from: Side,
    count: usize,
    bytes: Option<&[u8]>,
) {
    if connection.lines > MAX_SINGLE_LINES {
        connection.suppressed.calls += 1;
        let sum =
            if from == Side::Client { &mut connection.suppressed.received } else { &mut connection.suppressed.sent };
        *sum += count as u64;
        return;
    }
    if !diagram.has_room(Priority::Low) {
        return diagram.skip_line();
    }
    let label = match connection.pair {
        None => format!("{count} bytes"),
        Some(_) if connection.mss > 0 && count > connection.mss => {
            format!("PSH+ACK len {count}, {} segments", count.div_ceil(connection.mss))
        }
        Some(_) => format!("PSH+ACK len {count}"),
    };
    let meaning = bytes.map_or_else(|| "read and dropped".into(), |bytes| quoted(bytes, MEANING_COLUMNS));
    let now = match from {
        Side::Server if connection.seen.is_some() => connection.seen.take(),
        _ => ask(diagram, kernel, connection),
    };
    connection.seen = if from == Side::Client { now } else { None };
    if connection.state == TcpState::FinWait1 && is_fin_acknowledged(now) {
        print_inferred_ack(diagram, connection, TcpState::FinWait2, TcpState::FinWait2);
    }
    let arrow = Arrow { from, inferred: false, label: &label };
    diagram.arrow(connection.dated(), arrow, &meaning, &seen(now), Priority::Low);
}

/// The reads and writes that had no line of their own.
pub(super) fn print_suppressed(diagram: &mut Diagram, connection: &mut TrackedConnection) {
    let Suppressed { calls, received, sent } = std::mem::take(&mut connection.suppressed);
    if calls > 0 {
        let text = format!("… {calls} reads and writes more, {received} bytes in and {sent} out");
        diagram.remark(connection.dated(), &text);
    }
}

pub(super) fn print_client_fin(diagram: &mut Diagram, kernel: &mut SocketTable, connection: &mut TrackedConnection) {
    let arrow = |from, inferred, label| Arrow { from, inferred, label };
    if connection.pair.is_none() {
        let text = "it writes no more, or has closed";
        connection.state =
            if connection.state == TcpState::Established { TcpState::CloseWait } else { TcpState::Closed };
        return diagram.arrow(connection.dated(), arrow(Side::Client, false, "end of file"), text, "", Priority::High);
    }
    let now = ask(diagram, kernel, connection);
    if connection.state == TcpState::FinWait1 {
        // Nobody told us of the ACK, but no FIN comes without one. (RFC 9293 knows a simultaneous close, where the FINs
        // cross; what is drawn here as two segments is then one, after CLOSING.)
        print_inferred_ack(diagram, connection, TcpState::FinWait2, TcpState::FinWait2);
    }
    let next = if connection.state == TcpState::Established { TcpState::CloseWait } else { TcpState::TimeWait };
    let meaning = connection.enter(next);
    diagram.arrow(connection.dated(), arrow(Side::Client, false, "FIN+ACK"), &meaning, &seen(now), Priority::High);
    let meaning = if next == TcpState::CloseWait { "or in one with our FIN" } else { "" };
    diagram.arrow(connection.undated(), arrow(Side::Server, true, "ACK"), meaning, "", Priority::High);
}

pub(super) fn print_server_fin(diagram: &mut Diagram, kernel: &mut SocketTable, connection: &mut TrackedConnection) {
    let arrow = |from, label| Arrow { from, inferred: false, label };
    if connection.pair.is_none() {
        let last = connection.state == TcpState::CloseWait;
        connection.state = if last { TcpState::Closed } else { TcpState::FinWait1 };
        let text = if last { "we close, too" } else { "we write no more" };
        return diagram.arrow(connection.dated(), arrow(Side::Server, "end of file"), text, "", Priority::High);
    }
    let now = ask(diagram, kernel, connection);
    if now == Some(TcpState::Closed) {
        // The answer met a client that had closed without waiting for it.
        let meaning = connection.enter(TcpState::Closed);
        return diagram.arrow(connection.dated(), arrow(Side::Client, "RST"), &meaning, "gone", Priority::High);
    }
    let closes = connection.state == TcpState::CloseWait; // Told before the close(2) that sends it, so there is no asking yet.
    let meaning = connection.enter(if closes { TcpState::LastAck } else { TcpState::FinWait1 });
    let seen = if closes { String::new() } else { seen(now) };
    diagram.arrow(connection.dated(), arrow(Side::Server, "FIN+ACK"), &meaning, &seen, Priority::High);
    if is_fin_acknowledged(now) && connection.state == TcpState::FinWait1 {
        print_inferred_ack(diagram, connection, TcpState::FinWait2, TcpState::FinWait2);
    }
}

/// What a close(2) that follows sends, or why there is nothing left to close.
pub(super) fn print_end(diagram: &mut Diagram, connection: &mut TrackedConnection, reason: CloseReason, unread: u32) {
    let arrow = |from, label| Arrow { from, inferred: false, label };
    if connection.pair.is_none() {
        connection.state = TcpState::Closed;
        return;
    }
    match reason {
        _ if connection.state == TcpState::Closed => {}
        CloseReason::Reset => {
            let meaning = connection.enter(TcpState::Closed);
            diagram.arrow(connection.dated(), arrow(Side::Client, "RST"), &meaning, "gone", Priority::High);
        }
        CloseReason::Error(_) => connection.state = TcpState::Closed,
        _ if unread > 0 => {
            let text = format!("close(2) with {unread} bytes unread: that is RST, and no FIN");
            diagram.remark(connection.dated(), &text);
            let meaning = connection.enter(TcpState::Closed);
            diagram.arrow(connection.dated(), arrow(Side::Server, "RST"), &meaning, "", Priority::High);
        }
        CloseReason::Idle | CloseReason::Cut
            if matches!(connection.state, TcpState::Established | TcpState::CloseWait) =>
        {
            let first = connection.state == TcpState::Established;
            let meaning = connection.enter(if first { TcpState::FinWait1 } else { TcpState::LastAck });
            diagram.arrow(connection.dated(), arrow(Side::Server, "FIN+ACK"), &meaning, "", Priority::High);
        }
        _ => {}
    }
}

/// Whether the kernel has an ACK of our FIN.
pub(super) fn is_fin_acknowledged(seen: Option<TcpState>) -> bool {
    matches!(seen, Some(TcpState::FinWait2 | TcpState::TimeWait))
}

/// The client's ACK of our FIN.
pub(super) fn print_inferred_ack(
    diagram: &mut Diagram,
    connection: &mut TrackedConnection,
    next: TcpState,
    kernel: TcpState,
) {
    let meaning = connection.enter(next);
    let arrow = Arrow { from: Side::Client, inferred: true, label: "ACK" };
    diagram.arrow(connection.dated(), arrow, &meaning, &seen(Some(kernel)), Priority::High);
}

/// The client's FIN, which came when there was no socket of ours any more to read it from, and the kernel's ACK.
pub(super) fn print_inferred_fin(
    diagram: &mut Diagram,
    connection: &mut TrackedConnection,
    next: TcpState,
    kernel: TcpState,
) {
    let meaning = connection.enter(next);
    for (from, label, meaning, kernel) in
        [(Side::Client, "FIN+ACK", meaning.as_str(), seen(Some(kernel))), (Side::Server, "ACK", "", String::new())]
    {
        let arrow = Arrow { from, inferred: true, label };
        diagram.arrow(connection.dated(), arrow, meaning, &kernel, Priority::High);
    }
}

/// How it ended, in a line.
pub(super) fn summary(connection: &TrackedConnection, reason: CloseReason) -> String {
    let why = match reason {
        CloseReason::Finished if connection.state == TcpState::LastAck => {
            "the client's FIN first, so TIME-WAIT is its own"
        }
        CloseReason::Finished => "the client finished first",
        CloseReason::OneShot => "one message answered, then our FIN first",
        CloseReason::Drained => "our FIN first, then the client's",
        CloseReason::Reset => "the client gave it up",
        CloseReason::Idle => "no byte moved for --idle-timeout",
        CloseReason::Cut => "the server would not wait longer",
        CloseReason::Error(kind) => &format!("the system says: {kind}"),
    };
    let lost = if connection.pending > 0 { format!(", {} lost", connection.pending) } else { String::new() };
    format!(
        "{}: {why}; {} bytes in, {} out{lost}",
        CloseReason::NAMES[reason.index()],
        connection.received,
        connection.sent
    )
}
