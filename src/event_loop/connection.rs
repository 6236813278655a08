//! The per-connection state machine: echo, half-close, and orderly shutdown.
//!
//! A [`Connection`] does no setup, reads no clock, logs nothing, and does not know about the poller. [`Connection::serve`]
//! is lent a scratch buffer, does a bounded amount of work on its [`Transport`], and returns an [`Outcome`] on which the
//! server acts. So the same code runs over the kernel's sockets and, in `tests/simulation.rs`, over simulated ones.
//!
//! Two things are kept beside the [`State`]. *Readable* is readiness that was reported but not yet consumed. *Stalled* means
//! that the peer does not read: output is pending. While a connection is stalled, nothing is read from it. This is all
//! the backpressure needed: the peer sees it as a closed TCP receive window.
//!
//! This file has the plain echo. Half-close, one-shot mode and graceful shutdown are in `connection/closing.rs`, and what happens
//! without memory is in `connection/without_memory.rs`; skip both on first reading.

mod closing;
mod without_memory;

use std::io;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::{CloseReason, Outcome};
use crate::event_loop::pending::Pending;
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Scratch;
use crate::event_loop::state::State;
use crate::event_loop::transport::{Peer, Transport, continue_writing};

/// The maximum number of reads from a light connection each time it is served.
///
/// Without a limit, one fast peer could monopolize the loop.
pub const MAX_READS_PER_SERVE: usize = 4;

/// From this size on, a read makes a connection heavy, in bytes. Messages of interactive protocols are smaller.
pub const HEAVY_READ: usize = 16 * 1024;

/// How much a connection may read each time it is served.
#[derive(Clone, Copy, Debug)]
pub struct Quantum {
    /// The maximum number of reads.
    pub reads: usize,
    /// The maximum number of bytes.
    pub bytes: usize,
}

impl Quantum {
    /// For a light connection. It ends with a read that makes the connection heavy, so that many connections that become heavy at
    /// the same time do not delay the light ones.
    pub const LIGHT: Quantum = Quantum { reads: MAX_READS_PER_SERVE, bytes: HEAVY_READ };
    /// For a heavy connection: larger, because a bulk transfer is the cheaper the longer the server stays with it, and because
    /// light connections do not wait for all heavy ones (see
    /// [`HEAVY_BYTES_PER_ITERATION`](crate::event_loop::server::HEAVY_BYTES_PER_ITERATION)). On TCP, the bytes take four
    /// full reads of the default size.
    pub const HEAVY: Quantum = Quantum { reads: 8, bytes: 256 * 1024 };

    #[inline(always)]
    const fn is_heavy(self) -> bool {
        self.bytes > HEAVY_READ
    }
}

/// The longest message that `--one-shot` echoes, in bytes: the `recv(1024)` of the tutorial's server.
pub const MAX_ONE_SHOT_BYTES: usize = 1024;

/// A connection: its stream, its state, and its pending output.
///
/// It fits in one cache line and owns no other memory while idle. That is why the pending output is behind a thin pointer, the
/// peer is not a `SocketAddr`, the timestamp has 32 bits, and the number of bytes sent is derived.
#[derive(Debug)]
#[repr(align(64))]
pub struct Connection<T, P = Echo> {
    /// The stream, for callers that inspect it.
    pub stream: T,
    /// Output that could not be written yet: the connection is stalled. (An array of one: see
    /// [`OutputMemory`](crate::event_loop::memory::OutputMemory).)
    pending: Option<Box<[Pending; 1]>>,
    /// Bytes read that are echoed.
    received: u64,
    state: State,
    /// The connection's number in the log, and its generation in the token.
    pub number: u32,
    /// When a byte last moved, as [`Scratch::ms`].
    last_active: u32,
    /// The remote end.
    pub peer: Peer,
    readable: Readable,
    /// Whether the connection is in the ready queue. Managed by [`Connections`]; stored here because it fits into padding.
    ///
    /// [`Connections`]: crate::event_loop::connections::Connections
    pub(super) queued: bool,
    /// Whether a read was large when the connection was last served. Such a connection is served after those with small messages.
    pub(super) is_heavy: bool,
    protocol: P,
}

impl<T: Transport, P: Protocol> Connection<T, P> {
    /// Creates a connection for a stream that was just accepted at the time `ms`.
    ///
    /// It counts as not readable until an event arrives. Registering with the poller triggers one if data is waiting.
    pub fn new(stream: T, peer: Peer, number: u32, one_shot: bool, ms: u32) -> Self {
        Connection {
            stream,
            pending: None,
            received: 0,
            state: if one_shot { State::OneMessage } else { State::Established },
            number,
            last_active: ms,
            peer,
            readable: Readable::No,
            queued: false,
            is_heavy: false,
            protocol: P::default(),
        }
    }

    /// Records readiness from an event without doing any I/O. Returns whether the connection has work to do.
    ///
    /// `writable` matters only to a stalled connection, and is not kept: a partial flush ended in `WouldBlock`, so another
    /// writable event is still to come.
    pub fn record_readiness(&mut self, readable: Readable, writable: bool) -> bool {
        self.readable = self.readable.merge(readable);
        if self.is_stalled() { writable } else { self.readable != Readable::No }
    }

    /// Does what can be done now, within `quantum`.
    #[inline(always)]
    pub fn serve(&mut self, quantum: Quantum, scratch: &mut Scratch, observer: &mut impl Observer) -> Outcome {
        // `?` passes on system errors, which are classified in one place.
        let outcome = self.echo(quantum, scratch, observer).unwrap_or_else(|error| Outcome::from_io_error(&error));
        debug_assert!(self.state.allows(outcome), "{outcome:?} in {:?}", self.state);
        debug_assert!(outcome != Outcome::Idle || self.must_wait(), "{:?} would sleep through its work", self.state);
        outcome
    }

    /// The plain echo of an established connection: read, answer, until there is nothing more to read or the peer does not
    /// read. Everything else is up to `drive`.
    #[inline(always)]
    fn echo(&mut self, quantum: Quantum, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<Outcome> {
        if (self.state != State::Established || self.is_stalled())
            && let Some(outcome) = self.drive(scratch, observer)?
        {
            return Ok(outcome);
        }
        if self.readable == Readable::UntilEnd && self.is_complete(observer) {
            return Ok(Outcome::Closed(CloseReason::Finished));
        }
        if self.readable == Readable::No {
            return Ok(Outcome::Idle);
        }
        if quantum.is_heavy() {
            self.is_heavy = false; // Until its next large read.
        }
        let mut left = quantum;
        let max_read = if quantum.is_heavy() && self.stream.is_tcp() { scratch.max_tcp_read } else { usize::MAX };
        loop {
            let result = match scratch.read_limit.min(left.bytes).min(max_read) {
                0 => self.echo_in_place(scratch, observer)?, // Out of memory.
                limit => self.read(scratch, limit, observer)?,
            };
            match result {
                Some(0) => {
                    self.enter(State::CloseWait);
                    return Ok(self.drive(scratch, observer)?.unwrap_or(Outcome::Requeue));
                }
                Some(count) => {
                    self.answer(count, scratch, observer)?;
                    left.bytes -= count;
                }
                None => {}
            }
            if self.must_wait() {
                return Ok(Outcome::Idle);
            }
            left.reads -= 1;
            if left.reads == 0 || left.bytes == 0 {
                return Ok(Outcome::Requeue);
            }
        }
    }

    /// Reads at most `limit` bytes into the scratch buffer. Returns how many, 0 at the end of the peer's stream, or `None` if the
    /// receive queue is empty.
    #[inline(always)]
    fn read(&mut self, scratch: &mut Scratch, limit: usize, observer: &mut impl Observer) -> io::Result<Option<usize>> {
        match self.stream.read(&mut scratch.buffer[..limit]) {
            // The only reliable end of stream: the flags of an event are hints.
            Ok(0) => {
                observer.event(self.number, ConnectionEvent::PeerClosedWrite);
                Ok(Some(0))
            }
            Ok(count) => {
                if count >= HEAVY_READ {
                    self.is_heavy = true;
                }
                // A short read means that the receive queue is empty (epoll(7), Q9), which saves the read that would return
                // WouldBlock. Not next to a FIN or urgent data: those end a read early with more data behind it, and
                // the event has asked to read `UntilWouldBlock`.
                if count < limit && self.readable == Readable::UntilShort && self.stream.short_read_drains() {
                    self.readable = Readable::No;
                }
                Ok(Some(count))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = Readable::No;
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Answers the first `count` bytes of the scratch buffer. What the socket does not accept becomes pending.
    #[inline(always)]
    fn answer(&mut self, count: usize, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<()> {
        let received = &scratch.buffer[..count];
        observer.event(self.number, ConnectionEvent::Received(received));
        scratch.traffic.received += received.len() as u64;
        self.received += received.len() as u64;
        self.last_active = scratch.ms;
        let answer = self.protocol.answer(received);
        if answer.is_empty() {
            return Ok(()); // Never true for echo, and the compiler knows: `count` is not 0.
        }
        let result = self.stream.write(answer);
        if matches!(result, Ok(count) if count == answer.len()) {
            scratch.traffic.sent += answer.len() as u64;
            observer.event(self.number, ConnectionEvent::Sent(answer));
            return Ok(());
        }
        let (count, result) = continue_writing(&mut self.stream, answer, result);
        scratch.traffic.sent += count as u64;
        report_partial_write(self.number, answer, count, observer);
        if count < answer.len() {
            self.pending = Some(scratch.memory.keep(&answer[count..]));
            scratch.traffic.stalled += 1;
            scratch.update();
        }
        result
    }

    /// Returns whether there is nothing to do until the next event: nothing to read, or nothing may be read.
    fn must_wait(&self) -> bool {
        self.is_stalled() || self.readable == Readable::No
    }

    /// Changes the state. All changes go through here, except decrementing `remaining`.
    fn enter(&mut self, next: State) {
        debug_assert!(self.state.may_become(next), "from {:?} to {next:?}", self.state);
        self.state = next;
    }

    // ---- queries ----

    /// Returns whether output is pending that the peer does not read.
    pub fn is_stalled(&self) -> bool {
        self.pending.is_some()
    }

    /// Returns the number of bytes pending.
    pub fn pending_len(&self) -> usize {
        self.pending.as_deref().map_or(0, |[pending]| pending.remaining().len())
    }

    /// Returns the number of bytes read that are echoed, since the connection was opened.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the number of bytes that the socket has accepted, since the connection was opened.
    pub fn sent(&self) -> u64 {
        self.protocol.answered(self.received) - self.pending_len() as u64
    }

    /// Returns for how many milliseconds no byte has moved in either direction, discarded ones included.
    pub fn idle_for(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last_active)
    }

    /// As [`idle_for`](Connection::idle_for), after asking the kernel whether the peer has taken something out of our send queue
    /// since. That counts as movement, too.
    pub fn ask_idle_for(&mut self, now: u32) -> u32 {
        if let Some(output_idle) = self.stream.output_idle_ms().filter(|&idle| idle < self.idle_for(now)) {
            self.last_active = now.wrapping_sub(output_idle);
        }
        self.idle_for(now)
    }

    /// Returns the state.
    pub fn state(&self) -> State {
        self.state
    }
}

/// Reports a write that fell short to the observer.
#[inline(never)]
fn report_partial_write(number: u32, answer: &[u8], count: usize, observer: &mut impl Observer) {
    let (sent, rest) = answer.split_at(count);
    if !sent.is_empty() {
        observer.event(number, ConnectionEvent::Sent(sent));
    }
    if !rest.is_empty() {
        observer.event(number, ConnectionEvent::Stalled(rest.len()));
    }
}

// Performance notes. `serve`, `echo`, `read` and `answer` are inlined into the server's loop, so that an echo saves registers
// once. `drive`, `flush`, `send_fin` and `discard` are kept out of line: inlined, they would make the compiler keep every
// counter on the stack, which costs 20 instructions per echo.
