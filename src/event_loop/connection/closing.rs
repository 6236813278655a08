//! Everything that a connection does besides the plain echo: writing pending output, half-close, one-shot mode, graceful
//! shutdown, and the wait for the last acknowledgment.

use std::io;

use crate::event_loop::connection::{Connection, MAX_ONE_SHOT_BYTES, MAX_READS_PER_SERVE};
use crate::event_loop::observer::{ConnectionEvent, Observer};
use crate::event_loop::outcome::{CloseReason, Outcome};
use crate::event_loop::protocol::Protocol;
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Scratch;
use crate::event_loop::state::{ShutdownCause, State};
use crate::event_loop::tcp_info::SendQueue;
use crate::event_loop::transport::{Transport, write_until_would_block};

impl<T: Transport, P: Protocol> Connection<T, P> {
    /// Flushes pending output, then does what the state asks for. Returns `None` if that is the plain echo.
    #[inline(never)]
    pub(super) fn drive(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> io::Result<Option<Outcome>> {
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
            scratch.release(*pending);
        }
    }

    /// Returns whether the peer's FIN has arrived and its kernel has everything. Then one question replaces the read that would
    /// return 0, and close(2) can follow.
    #[inline(never)]
    pub(super) fn is_complete(&mut self, observer: &mut impl Observer) -> bool {
        // Before the first byte there is probably something to read, and the answer would be no.
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
}
