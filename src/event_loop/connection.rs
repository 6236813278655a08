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
//! On first reading, `serve` and `echo` are enough. `drive` and what follows it are for half-close, one-shot mode and graceful
//! shutdown.

use std::io;

use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::{CloseReason, Outcome};
use crate::event_loop::pending::Pending;
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Scratch;
use crate::event_loop::state::{ShutdownCause, State};
use crate::event_loop::tcp_info::SendQueue;
use crate::event_loop::transport::{Peer, Transport, write_until_would_block};

/// The maximum number of reads from a light connection each time it is served.
///
/// Without a limit, one fast peer could monopolize the loop. A connection that has more to read than this is heavy by then.
pub const MAX_READS_PER_SERVE: usize = 4;

/// The maximum number of reads from a heavy connection each time it is served: its quantum, 1 MiB with the default buffer.
///
/// Larger than that of a light connection, because a bulk transfer is the cheaper the longer the server stays with it, and
/// because light connections do not wait for all heavy ones (see
/// [`HEAVY_BYTES_PER_ITERATION`](crate::event_loop::server::HEAVY_BYTES_PER_ITERATION)).
pub const MAX_READS_PER_HEAVY_SERVE: usize = 16;

/// From this size on, a read makes a connection heavy, in bytes. Messages of interactive protocols are smaller.
pub const HEAVY_READ: usize = 16 * 1024;

/// How many bytes are echoed at a time when there is no memory to keep them. Copied twice, so not many.
const MAX_PEEK: usize = 4096;

/// How often a read of bytes that are certainly there is repeated before the connection is given up.
const MAX_CONSUME_CALLS: usize = MAX_PEEK + 100;

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
    /// Whether the last read was large. The server serves such a connection after those with small messages.
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

    /// Does what can be done now, within [`MAX_READS_PER_SERVE`] or, if it is heavy, [`MAX_READS_PER_HEAVY_SERVE`].
    #[inline(always)]
    pub fn serve(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> Outcome {
        // `?` passes on system errors, which are classified in one place.
        let outcome = self.echo(scratch, observer).unwrap_or_else(|error| Outcome::from_io_error(&error));
        debug_assert!(self.state.allows(outcome), "{outcome:?} in {:?}", self.state);
        debug_assert!(outcome != Outcome::Idle || self.must_wait(), "{:?} would sleep through its work", self.state);
        outcome
    }

    /// The plain echo of an established connection: read, answer, until there is nothing more to read or the peer does not
    /// read. Everything else is up to `drive`.
    #[inline(always)]
    fn echo(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<Outcome> {
        if self.state != State::Established || self.is_stalled() {
            match self.drive(scratch, observer)? {
                Some(outcome) => return Ok(outcome),
                None => {} // Nothing is pending any more: on with the echo.
            }
        }
        if self.readable == Readable::UntilEnd && self.is_complete(observer) {
            return Ok(Outcome::Closed(CloseReason::Finished));
        }
        let mut reads = 0;
        while !self.must_wait() {
            if reads >= MAX_READS_PER_SERVE && (!self.is_heavy || reads >= MAX_READS_PER_HEAVY_SERVE) {
                return Ok(Outcome::Requeue);
            }
            reads += 1;
            let result = match scratch.read_limit {
                0 => self.echo_in_place(scratch, observer)?, // There is no memory.
                limit => self.read(scratch, limit, observer)?,
            };
            match result {
                Some(0) => {
                    self.enter(State::CloseWait);
                    return Ok(self.drive(scratch, observer)?.unwrap_or(Outcome::Requeue));
                }
                Some(count) => self.answer(count, scratch, observer)?,
                None => {}
            }
        }
        Ok(Outcome::Idle)
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
                self.is_heavy = count >= HEAVY_READ;
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
        let (count, result) = write_until_would_block(&mut self.stream, answer);
        scratch.traffic.sent += count as u64;
        if count == answer.len() {
            observer.event(self.number, ConnectionEvent::Sent(answer));
            return result;
        }
        report_partial_write(self.number, answer, count, observer);
        self.pending = Some(scratch.memory.keep(&answer[count..]));
        scratch.traffic.stalled += 1;
        scratch.update();
        result
    }

    /// Returns whether there is nothing to do until the next event: nothing to read, or nothing may be read.
    fn must_wait(&self) -> bool {
        self.is_stalled() || self.readable == Readable::No
    }

    // ---- everything but the plain echo ----

    /// Flushes pending output, then does what the state asks for. Returns `None` if that is the plain echo.
    #[inline(never)]
    fn drive(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<Option<Outcome>> {
        // Output goes first. While the peer does not read it, nothing is read from the peer.
        if self.is_stalled() {
            self.flush(scratch, observer)?;
            if self.is_stalled() {
                return Ok(Some(Outcome::Idle));
            }
        }
        for _ in 0..MAX_READS_PER_SERVE {
            let limit = match self.state {
                State::Established => return Ok(None),
                State::CloseWait => {
                    // Nothing is unread, so close(2) sends our FIN. But what the peer's kernel has not acknowledged by then is
                    // left to ours, which may give up on it (tcp_orphan_retries) long before our own timeouts.
                    if self.stream.send_queue() == SendQueue::Empty {
                        observer.event(self.number, ConnectionEvent::SentFin);
                        return Ok(Some(Outcome::Closed(CloseReason::Finished)));
                    }
                    self.stream.shutdown_write()?; // After an RST, this is the error that tells.
                    observer.event(self.number, ConnectionEvent::SentFin);
                    self.await_last_ack(CloseReason::Finished);
                    return Ok(Some(Outcome::Idle));
                }
                State::OneMessage => scratch.read_limit.min(MAX_ONE_SHOT_BYTES),
                // One more read: the peer's FIN may be waiting behind the bytes that have been echoed.
                State::Draining { remaining: 0 } => scratch.buffer.len(),
                State::Finishing(cause) => {
                    self.send_fin(cause, observer)?;
                    continue;
                }
                State::FinWait | State::LastAck(_) => scratch.buffer.len(),
                State::Discarding { remaining: 0 } => return Ok(Some(Outcome::Closed(CloseReason::OneShot))),
                State::Draining { remaining } => scratch.read_limit.min(remaining as usize),
                State::Discarding { remaining } => scratch.buffer.len().min(remaining as usize),
            };
            if self.readable == Readable::No {
                return Ok(Some(Outcome::Idle));
            }
            if limit == 0 {
                return Ok(Some(Outcome::OutOfMemory));
            }
            match self.read(scratch, limit, observer)? {
                Some(0) => match self.state {
                    State::FinWait if self.stream.send_queue() == SendQueue::Unacknowledged => {
                        self.await_last_ack(CloseReason::Drained);
                        return Ok(Some(Outcome::Idle));
                    }
                    State::FinWait => return Ok(Some(Outcome::Closed(CloseReason::Drained))),
                    State::LastAck(_) if self.stream.send_queue() == SendQueue::Unacknowledged => {
                        self.readable = Readable::No; // A spurious wakeup; HUP is still to come.
                        return Ok(Some(Outcome::Idle));
                    }
                    State::LastAck(reason) => return Ok(Some(Outcome::Closed(reason))),
                    State::Discarding { .. } => return Ok(Some(Outcome::Closed(CloseReason::OneShot))),
                    _ => self.enter(State::CloseWait),
                },
                Some(count) => {
                    match &mut self.state {
                        State::FinWait | State::LastAck(_) | State::Discarding { .. } => {
                            self.discard(count, scratch, observer);
                            continue;
                        }
                        State::Draining { remaining: 0 } => {
                            // It arrived after the shutdown began.
                            self.discard(count, scratch, observer);
                            self.enter(State::Finishing(ShutdownCause::Drained));
                            continue;
                        }
                        State::OneMessage => self.enter(State::Finishing(ShutdownCause::OneShot)),
                        State::Draining { remaining } => *remaining = remaining.saturating_sub(count as u32),
                        State::Established | State::CloseWait | State::Finishing(_) => {}
                    }
                    self.answer(count, scratch, observer)?;
                    if self.is_stalled() {
                        return Ok(Some(Outcome::Idle));
                    }
                }
                // The receive buffer is empty. Urgent marks can make FIONREAD report more bytes than can be read.
                None => match &mut self.state {
                    State::Draining { .. } => self.enter(State::Finishing(ShutdownCause::Drained)),
                    State::Discarding { remaining } => *remaining = 0,
                    _ => {}
                },
            }
        }
        Ok(Some(Outcome::Requeue))
    }

    /// Writes as much pending output as the socket accepts.
    #[inline(never)]
    fn flush(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<()> {
        let Some([pending]) = self.pending.as_deref_mut() else { return Ok(()) };
        let (count, result) = write_until_would_block(&mut self.stream, pending.remaining());
        if count > 0 {
            observer.event(self.number, ConnectionEvent::Sent(&pending.remaining()[..count]));
            scratch.traffic.sent += count as u64;
            self.last_active = scratch.ms;
            pending.advance(count);
        }
        if pending.remaining().is_empty() {
            self.release(scratch);
        }
        result
    }

    /// Gives the memory of pending output back, because the output has been written or the connection is closed.
    pub fn release(&mut self, scratch: &mut Scratch) {
        if let Some(pending) = self.pending.take() {
            scratch.release(pending);
        }
    }

    /// Echoes without memory: what the socket does not accept stays in the receive queue. Returns as `read` does, but never the
    /// number of bytes that were read, because those have been answered already.
    ///
    /// Slower than the usual way, and only for protocols whose answer is what they receive; others are retried later.
    #[cold]
    #[inline(never)]
    fn echo_in_place(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<Option<usize>> {
        let out_of_memory = || Err(io::ErrorKind::OutOfMemory.into());
        if !P::IS_ECHO {
            return out_of_memory();
        }
        let most = scratch.buffer.len().min(MAX_PEEK);
        let count = match self.stream.peek(&mut scratch.buffer[..most]) {
            Ok(0) => {
                observer.event(self.number, ConnectionEvent::PeerClosedWrite);
                return Ok(Some(0));
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = Readable::No;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let (written, result) = write_until_would_block(&mut self.stream, &scratch.buffer[..count]);
        self.consume(written, scratch)?;
        if written > 0 {
            observer.event(self.number, ConnectionEvent::Received(&scratch.buffer[..written]));
            observer.event(self.number, ConnectionEvent::Sent(&scratch.buffer[..written]));
            scratch.traffic.received += written as u64;
            scratch.traffic.sent += written as u64;
            self.received += written as u64;
            self.last_active = scratch.ms;
        }
        result?;
        if written < count { out_of_memory() } else { Ok(None) }
    }

    /// Removes bytes from the receive queue that have been peeked at and answered.
    fn consume(&mut self, count: usize, scratch: &mut Scratch) -> io::Result<()> {
        let mut consumed = 0;
        for _ in 0..MAX_CONSUME_CALLS {
            if consumed == count {
                return Ok(());
            }
            match self.stream.read(&mut scratch.buffer[consumed..count]) {
                Ok(count) => consumed += count,
                Err(error) if Outcome::from_io_error(&error).is_transient() => {}
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::InvalidData.into()) // Rather an end than bytes that are echoed twice.
    }

    /// Returns whether the peer's FIN has arrived and its kernel has everything. Then one question replaces the read that would
    /// return 0, and close(2) can follow.
    #[inline(never)]
    fn is_complete(&mut self, observer: &mut impl Observer) -> bool {
        // Without bytes so far, there is probably something to read, and the question would be in vain.
        if self.received == 0 || !self.stream.is_complete(self.received) {
            return false;
        }
        self.enter(State::CloseWait);
        observer.event(self.number, ConnectionEvent::PeerClosedWrite);
        observer.event(self.number, ConnectionEvent::SentFin);
        true
    }

    /// Waits until the peer's kernel has acknowledged everything. Both FINs are sent; the poller reports HUP when that is done.
    fn await_last_ack(&mut self, reason: CloseReason) {
        self.enter(State::LastAck(reason));
        self.readable = Readable::No;
    }

    /// Sends our FIN before the peer has sent its own.
    #[inline(never)]
    fn send_fin(&mut self, cause: ShutdownCause, observer: &mut impl Observer) -> io::Result<()> {
        self.stream.shutdown_write()?;
        observer.event(self.number, ConnectionEvent::SentFin);
        match cause {
            ShutdownCause::Drained => self.enter(State::FinWait),
            ShutdownCause::OneShot => {
                // Only data that has already arrived is discarded; a peer that keeps sending gets an RST.
                self.readable = Readable::UntilWouldBlock;
                self.enter(State::Discarding { remaining: self.stream.bytes_available().unwrap_or(0) });
            }
        }
        Ok(())
    }

    /// Drops the first `count` bytes of the scratch buffer, because our FIN has been sent.
    #[inline(never)]
    fn discard(&mut self, count: usize, scratch: &mut Scratch, observer: &mut impl Observer) {
        scratch.traffic.discarded += count as u64;
        self.last_active = scratch.ms;
        observer.event(self.number, ConnectionEvent::Discarded(count));
        if let State::Discarding { remaining } = &mut self.state {
            *remaining = remaining.saturating_sub(count as u32);
        }
    }

    /// Starts the graceful shutdown of this connection: what is in the receive buffer now is still echoed, then our FIN is
    /// sent. Returns whether this changes anything: a connection that is closing already continues as it was.
    pub fn drain(&mut self) -> bool {
        // FIONREAD cannot fail on a socket. If it did, we would read until the queue is empty.
        let remaining = self.stream.bytes_available().unwrap_or(u32::MAX);
        let next = match self.state {
            State::Established => State::Draining { remaining },
            State::OneMessage if remaining == 0 => State::Draining { remaining },
            State::OneMessage => State::OneMessage, // The message has arrived, and our FIN follows it anyway.
            _ => return false,
        };
        self.enter(next);
        self.readable = Readable::UntilWouldBlock;
        true
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
    observer.event(number, ConnectionEvent::Stalled(rest.len()));
}

// Performance notes. `serve`, `echo`, `read` and `answer` are inlined into the server's loop, so that an echo saves registers
// once. `drive`, `flush`, `send_fin` and `discard` are kept out of line: inlined, they would make the compiler keep every
// counter on the stack, which costs 20 instructions per echo.
