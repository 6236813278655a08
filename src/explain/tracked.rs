//! What is known of one connection, and the lines about it.

use std::time::Instant;

use crate::event_loop::outcome::CloseReason;
use crate::explain::diagram::{Arrow, Diagram, MEANING, Place, Side, Weight, quoted};
use crate::explain::socket_table::{Ends, SocketTable, TcpState};

/// The most reads and writes of one connection that get a line of their own in [`BULK`]. The rest is summed up.
pub(super) const SINGLE_LINES: u32 = 12;

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) number: u32,
    pub(super) began: Instant,
    /// `None`: a Unix socket.
    pub(super) ends: Option<Ends>,
    /// The longest segment, in bytes; 0 if unknown.
    pub(super) segment: usize,
    pub(super) state: TcpState,
    pub(super) received: u64,
    pub(super) sent: u64,
    /// Bytes of the answer that the kernel has not taken.
    pub(super) pending: usize,
    /// What the kernel said when we read, for the line of the answer to it: by then a quick client may be further.
    pub(super) seen: Option<TcpState>,
    /// Single lines since `counted_from`.
    pub(super) lines: u32,
    pub(super) counted_from: Instant,
    /// Reads and writes without a line of their own.
    pub(super) unsaid: Unsaid,
}

/// A sum of reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Unsaid {
    calls: u64,
    received: u64,
    sent: u64,
}

impl Told {
    pub(super) fn new(number: u32, ends: Option<Ends>, segment: usize) -> Told {
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

    pub(super) fn place(&self) -> Place {
        Place { number: self.number, time: Some(self.began.elapsed()) }
    }

    /// For what was inferred, and when it was nobody knows.
    pub(super) fn sometime(&self) -> Place {
        Place { number: self.number, time: None }
    }

    pub(super) fn moves_to(&mut self, state: TcpState) -> String {
        let before = std::mem::replace(&mut self.state, state);
        if self.ends.is_some() { format!("{before} → {state}") } else { String::new() }
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
pub(super) fn ask(diagram: &mut Diagram, kernel: &mut SocketTable, told: &Told) -> Option<TcpState> {
    let ends = told.ends.as_ref()?;
    if diagram.has_room(Weight::Heavy) { kernel.state(ends) } else { None }
}

pub(super) fn tell_bytes(
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
pub(super) fn say_sum(diagram: &mut Diagram, told: &mut Told) {
    let Unsaid { calls, received, sent } = std::mem::take(&mut told.unsaid);
    if calls > 0 {
        let text = format!("… {calls} reads and writes more, {received} bytes in and {sent} out");
        diagram.remark(told.place(), &text);
    }
}

pub(super) fn tell_clients_fin(diagram: &mut Diagram, kernel: &mut SocketTable, told: &mut Told) {
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

pub(super) fn tell_our_fin(diagram: &mut Diagram, kernel: &mut SocketTable, told: &mut Told) {
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
pub(super) fn tell_the_end(diagram: &mut Diagram, told: &mut Told, reason: CloseReason, unread: u32) {
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
pub(super) fn is_acknowledged(seen: Option<TcpState>) -> bool {
    matches!(seen, Some(TcpState::FinWait2 | TcpState::TimeWait))
}

/// The client's ACK of our FIN.
pub(super) fn infer_acknowledged(diagram: &mut Diagram, told: &mut Told, next: TcpState, kernel: TcpState) {
    let meaning = told.moves_to(next);
    let arrow = Arrow { from: Side::Client, inferred: true, label: "ACK" };
    diagram.arrow(told.place(), arrow, &meaning, &seen(Some(kernel)), Weight::Heavy);
}

/// The client's FIN, which came when there was no socket of ours any more to read it from, and the kernel's ACK.
pub(super) fn infer_finished(diagram: &mut Diagram, told: &mut Told, next: TcpState, kernel: TcpState) {
    let meaning = told.moves_to(next);
    for (from, label, meaning, kernel) in
        [(Side::Client, "FIN+ACK", meaning.as_str(), seen(Some(kernel))), (Side::Server, "ACK", "", String::new())]
    {
        let arrow = Arrow { from, inferred: true, label };
        diagram.arrow(told.place(), arrow, meaning, &kernel, Weight::Heavy);
    }
}

/// How it ended, in a line.
pub(super) fn summary(told: &Told, reason: CloseReason) -> String {
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
