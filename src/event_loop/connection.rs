//! One stream's state machine: what comes in goes out, and both ends finish in good order.
//!
//! A connection opens nothing, reads no clock, logs nothing and knows no poller: [`Connection::turn`]
//! is given a buffer and the conditions, does a bounded amount of work on its [`Transport`], and says
//! how that ended. The server acts on the verdict. So the same code runs over the kernel's sockets and,
//! in `tests/simulation.rs`, over simulated ones.
//!
//! Two facts stand beside the states of [`State`]: *readable*, what readiness we were told of and have
//! not used up, and *stalled*, that the peer has not taken all we owe it. While it is stalled nothing
//! is read: that is all the flow control there is, and TCP's window tells the peer.

use std::io;

use crate::event_loop::observer::{Fact, Observer};
use crate::event_loop::outcome::{Reason, Turn};
use crate::event_loop::pending::{Pending, stall};
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Workbench;
use crate::event_loop::state::{Cause, State};
use crate::event_loop::transport::{Peer, Transport, write_until_blocked};

/// The most reads that one connection gets in one turn of the loop.
///
/// Without a bound, a peer on a fast path is fed for ever and everybody else waits (with 64 KiB a
/// read, four are some 60 µs of work). With one read, every 64 KiB cost a turn of the loop; from
/// four on, more give nothing that can be measured.
pub const READS_PER_TURN: usize = 4;

/// The longest message that `--one-shot` answers, in bytes: the `recv(1024)` of the tutorial.
pub const ONE_SHOT_BYTES: usize = 1024;

/// A connection: its stream, its state, and what it owes.
///
/// One cache line, and nothing elsewhere while it is idle. That is why the pending answer is a boxed box, why
/// the peer is no `SocketAddr`, why the stamp has 32 bits, and why the bytes sent are computed.
#[derive(Debug)]
#[repr(align(64))]
pub struct Connection<T, P = Echo> {
    /// The stream, to look at.
    pub stream: T,
    /// What is owed and was not taken: the connection is stalled.
    pending: Option<Box<Pending>>,
    /// Bytes read to be answered.
    received: u64,
    state: State,
    /// Its number in the log; also its generation in the token.
    pub number: u32,
    /// When a byte last moved, in the milliseconds of [`Workbench::ms`].
    last_active: u32,
    /// Who is at the other end.
    pub peer: Peer,
    readable: Readable,
    /// For the server: whether the ready queue holds this connection. Kept here since it costs nothing here.
    pub queued: bool,
    protocol: P,
}

impl<T: Transport, P: Protocol> Connection<T, P> {
    /// A connection just accepted, for a stream or for one message. It is not readable before an event says so:
    /// registering with the poller brings one.
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
            protocol: P::default(),
        }
    }

    /// Notes what an event says, and runs nothing. Returns whether a turn would have something to do.
    ///
    /// `writable` matters only to a stalled connection. It is not kept: a flush that fell short has
    /// seen WouldBlock, so the edge that says "room" is still to come.
    pub fn note(&mut self, readable: Readable, writable: bool) -> bool {
        self.readable = self.readable.max(readable);
        if self.is_stalled() { writable } else { self.readable != Readable::No }
    }

    /// The server drains: answer what the kernel holds at this moment, then finish. Returns whether
    /// anything changes: a connection that is finishing already goes on as it was.
    pub fn drain(&mut self) -> bool {
        // FIONREAD cannot fail on a socket. If it did: until the queue is seen empty.
        let held = self.stream.unread().unwrap_or(u32::MAX);
        let next = match self.state {
            State::Established => State::Draining { held },
            State::OneMessage if held == 0 => State::Finishing(Cause::Drained),
            State::OneMessage => State::OneMessage, // It is there, and after it we finish anyway.
            _ => return false,
        };
        self.enter(next);
        self.readable = Readable::UntilBlocked;
        true
    }

    /// Does what can be done now, within [`READS_PER_TURN`].
    #[inline]
    pub fn turn(&mut self, bench: &mut Workbench, observer: &mut impl Observer) -> Turn {
        let turn = self.work(bench, observer).unwrap_or_else(|error| Turn::of(&error));
        debug_assert!(self.state.may_end_in(turn), "{turn:?} in {:?}", self.state);
        debug_assert!(turn != Turn::Waits || self.is_stalled() || self.readable == Readable::No);
        turn
    }

    /// The state machine. `?` passes on what [`Turn::of`] sorts.
    fn work(&mut self, bench: &mut Workbench, observer: &mut impl Observer) -> io::Result<Turn> {
        // First what is owed. While the peer does not take it, nothing is read from it.
        if self.is_stalled() {
            self.flush(bench, observer)?;
            if self.is_stalled() {
                return Ok(Turn::Waits);
            }
        }
        for _ in 0..READS_PER_TURN {
            let most = match self.state {
                State::Established | State::FinWait => bench.buffer.len(),
                State::OneMessage => ONE_SHOT_BYTES,
                State::Draining { held: 0 } => {
                    self.enter(State::Finishing(Cause::Drained));
                    continue;
                }
                State::CloseWait => {
                    // No shutdown(2) first: with nothing unread, close(2) is our FIN.
                    observer.fact(self.number, Fact::WeFinished);
                    return Ok(Turn::Ended(Reason::Finished));
                }
                State::Finishing(cause) => {
                    self.finish(cause, observer)?;
                    continue;
                }
                State::Discarding { held: 0 } => return Ok(Turn::Ended(Reason::OneShot)),
                State::Draining { held } | State::Discarding { held } => held as usize,
            };
            if self.readable == Readable::No {
                return Ok(Turn::Waits);
            }
            let most = most.min(bench.buffer.len());
            match self.stream.read(&mut bench.buffer[..most]) {
                Ok(0) => {
                    // The only end of file there is: the flags of an event are hints.
                    observer.fact(self.number, Fact::PeerFinished);
                    match self.state {
                        State::FinWait => return Ok(Turn::Ended(Reason::Drained)),
                        State::Discarding { .. } => return Ok(Turn::Ended(Reason::OneShot)),
                        _ => self.enter(State::CloseWait),
                    }
                }
                Ok(count) => {
                    // A short read empties the queue (epoll(7), Q9), and saves the read that would say
                    // WouldBlock. Not so beside a FIN or urgent data: those end a read early with more
                    // behind, and the event has said `UntilBlocked`.
                    if count < most && self.readable == Readable::UntilShort && self.stream.short_read_is_last() {
                        self.readable = Readable::No;
                    }
                    match &mut self.state {
                        State::OneMessage => self.enter(State::Finishing(Cause::OneShot)),
                        State::Draining { held } => *held = held.saturating_sub(count as u32),
                        State::FinWait | State::Discarding { .. } => {
                            self.discard(count, bench, observer);
                            continue;
                        }
                        State::Established | State::CloseWait | State::Finishing(_) => {}
                    }
                    self.answer(count, bench, observer)?;
                    // Where most turns end. (Said here, although the next round would come to it.)
                    if self.is_stalled() || (self.state, self.readable) == (State::Established, Readable::No) {
                        return Ok(Turn::Waits);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.readable = Readable::No;
                    // All that was held has been read, and maybe (urgent marks) in fewer bytes than we were told.
                    if let State::Draining { held } | State::Discarding { held } = &mut self.state {
                        *held = 0;
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Turn::Again)
    }

    /// Tries to get rid of what is pending.
    ///
    /// Not inlined: it and its like would make the compiler keep every counter on the stack, 20 instructions an
    /// echo.
    #[inline(never)]
    fn flush(&mut self, bench: &mut Workbench, observer: &mut impl Observer) -> io::Result<()> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        let (count, outcome) = write_until_blocked(&mut self.stream, pending.rest());
        if count > 0 {
            observer.fact(self.number, Fact::Sent(&pending.rest()[..count]));
            bench.traffic.sent += count as u64;
            self.last_active = bench.ms;
            pending.advance(count);
        }
        if pending.rest().is_empty() {
            self.pending = None;
            bench.traffic.stalled -= 1;
        }
        outcome
    }

    /// Answers the first `count` bytes of the buffer. What the peer does not take at once becomes pending.
    fn answer(&mut self, count: usize, bench: &mut Workbench, observer: &mut impl Observer) -> io::Result<()> {
        let received = &bench.buffer[..count];
        observer.fact(self.number, Fact::Received(received));
        bench.traffic.received += received.len() as u64;
        self.received += received.len() as u64;
        self.last_active = bench.ms;
        let answer = self.protocol.answer(received);
        if answer.is_empty() {
            return Ok(()); // Never with echo, and the compiler knows: a read of 0 bytes does not come here.
        }
        let (count, outcome) = write_until_blocked(&mut self.stream, answer);
        bench.traffic.sent += count as u64;
        if count == answer.len() {
            observer.fact(self.number, Fact::Sent(answer));
            return outcome;
        }
        bench.traffic.stalled += 1;
        self.pending = Some(stall(self.number, answer, count, observer));
        outcome
    }

    /// Sends our FIN, ahead of the peer's.
    #[inline(never)]
    fn finish(&mut self, cause: Cause, observer: &mut impl Observer) -> io::Result<()> {
        self.stream.shutdown_write()?;
        observer.fact(self.number, Fact::WeFinished);
        match cause {
            Cause::Drained => self.enter(State::FinWait),
            Cause::OneShot => {
                // What the peer sent beside its message, and only that: whoever sends on gets RST.
                self.readable = Readable::UntilBlocked;
                self.enter(State::Discarding { held: self.stream.unread().unwrap_or(0) });
            }
        }
        Ok(())
    }

    /// Every change of state but the counting down of what is held.
    fn enter(&mut self, next: State) {
        debug_assert!(self.state.may_become(next), "from {:?} to {next:?}", self.state);
        self.state = next;
    }

    /// Drops the first `count` bytes of the buffer.
    #[inline(never)]
    fn discard(&mut self, count: usize, bench: &mut Workbench, observer: &mut impl Observer) {
        bench.traffic.discarded += count as u64;
        self.last_active = bench.ms;
        observer.fact(self.number, Fact::Discarded(count));
        if let State::Discarding { held } = &mut self.state {
            *held = held.saturating_sub(count as u32);
        }
    }

    /// Whether it has an answer pending that the peer does not take.
    pub fn is_stalled(&self) -> bool {
        self.pending.is_some()
    }

    /// Bytes pending.
    pub fn pending_len(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.rest().len())
    }

    /// Bytes read to be answered, since it was opened.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes of answers that the kernel took, since it was opened.
    pub fn sent(&self) -> u64 {
        self.protocol.answered(self.received) - self.pending_len() as u64
    }

    /// For how many milliseconds no byte has moved, in either direction and whatever became of it.
    pub fn idle_for(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last_active)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }
}
