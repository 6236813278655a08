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

use std::{fmt, io};

use crate::observer::{Fact, Observer};
use crate::protocol::{Echo, Protocol};
use crate::transport::{Peer, Transport};

/// The most reads that one connection gets in one turn of the loop.
///
/// Without a bound, a peer on a fast path is fed for ever and everybody else waits (with 64 KiB a
/// read, four are some 60 µs of work). With one read, every 64 KiB cost a turn of the loop; from
/// four on, more give nothing that can be measured.
pub const READS_PER_TURN: usize = 4;

/// The longest message that `--one-shot` answers, in bytes: the `recv(1024)` of the tutorial.
pub const ONE_SHOT_BYTES: usize = 1024;

/// Where a connection is in its life, in the words of RFC 9293, 3.3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Open both ways.
    Established,
    /// Open both ways, but the server drains: `held` more bytes, which the kernel held when the drain
    /// began, are read and answered. Then we finish. A count, so that a peer that keeps sending cannot
    /// put its FIN off.
    Draining {
        /// Bytes still to be read.
        held: u32,
    },
    /// The peer's FIN is in; what we owe is going out, then our FIN. Nothing is read.
    CloseWait,
    /// We finish first: what we owe is going out, then our FIN. Nothing is read.
    Finishing(Cause),
    /// Our FIN is out, the peer's is not in (RFC 9293: FIN-WAIT-1 and -2). Nothing is pending. What
    /// still arrives is read and dropped, because closing with unread bytes sends RST, and an RST
    /// can destroy what the peer has not read yet.
    FinWait,
    /// As `FinWait`, but in one-shot mode, which waits for nobody: what the kernel held at our FIN,
    /// `held` more bytes, is read and dropped, then we close.
    Discarding {
        /// Bytes still to be read.
        held: u32,
    },
}

/// Why our FIN goes out before the peer's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The one message of `--one-shot` is answered.
    OneShot,
    /// The server drains.
    Drained,
}

/// What we know of the kernel's receive queue. An edge comes once, so this is kept through stalls and
/// spent budgets, until the kernel itself says that there is nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readable {
    /// Nothing to read until the next event.
    No,
    /// Read on; a short read says that the queue is empty (epoll(7), Q9), which saves the read that
    /// would say WouldBlock. Trusted only on transports where it holds.
    UntilShort,
    /// Read on until WouldBlock or end of file. A FIN, an error or urgent data ends a read early, with
    /// more behind it and no new edge.
    UntilBlocked,
}

/// How a connection ended. The names are those of the metrics and the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The peer's FIN came first, everything before it was answered, ours followed.
    Finished,
    /// `--one-shot`: one message answered, our FIN first.
    OneShot,
    /// The server drained: our FIN first, then the peer's.
    Drained,
    /// The peer reset it, or is gone.
    Reset,
    /// No byte moved for `--idle-timeout`.
    Idle,
    /// The drain timeout or a second signal cut it.
    Cut,
    /// The system reported another error.
    Error(io::ErrorKind),
}

impl Reason {
    /// How many kinds of reasons there are.
    pub const KINDS: usize = 7;
    /// The kinds' names, by [`Reason::kind`].
    pub const NAMES: [&'static str; Reason::KINDS] =
        ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"];

    /// The place of this reason in [`Reason::NAMES`].
    pub fn kind(self) -> usize {
        match self {
            Reason::Finished => 0,
            Reason::OneShot => 1,
            Reason::Drained => 2,
            Reason::Reset => 3,
            Reason::Idle => 4,
            Reason::Cut => 5,
            Reason::Error(_) => 6,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Reason::NAMES[self.kind()])?;
        match self {
            Reason::Error(kind) => write!(f, " ({kind})"),
            _ => Ok(()),
        }
    }
}

/// What a turn came to, and so what the server does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// Nothing to do until the next event.
    Waits,
    /// The budget is spent with work left: it is run again without waiting for an event.
    Again,
    /// The kernel has no memory at the moment (ENOBUFS, ENOMEM). No event will say that it has
    /// again, so this is tried again after a while. Nothing is lost.
    Starved,
    /// It is over: the slot is freed.
    Ended(Reason),
}

impl Turn {
    /// What an error of read(2), write(2) or shutdown(2) means for the connection. `WouldBlock` is
    /// an answer and does not come here.
    fn of(error: &io::Error) -> Turn {
        match error.kind() {
            // A signal came in between: the call is made again.
            io::ErrorKind::Interrupted => Turn::Again,
            // ECONNRESET: the peer's RST. EPIPE: we write, and it has come before. ENOTCONN: we shut
            // down, and it has come before. ECONNABORTED: some systems' word for the same.
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::ConnectionAborted => Turn::Ended(Reason::Reset),
            io::ErrorKind::OutOfMemory => Turn::Starved, // ENOMEM
            _ if rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS) => Turn::Starved,
            // ETIMEDOUT, EHOSTUNREACH and whatever else: this connection only.
            kind => Turn::Ended(Reason::Error(kind)),
        }
    }
}

/// What holds for every connection during one turn of the loop.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Milliseconds since the loop started. Wraps after 49 days; only differences count.
    pub now: u32,
    /// Whether `--one-shot` is on.
    pub one_shot: bool,
}

/// Bytes moved, summed over connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read, to be answered.
    pub received: u64,
    /// Taken by the kernel.
    pub sent: u64,
    /// Read after our FIN, and dropped.
    pub discarded: u64,
}

/// An answer, or what is left of one, that the peer has not taken yet.
#[derive(Debug)]
struct Pending {
    /// Exactly what was left when the write fell short: no spare room.
    bytes: Box<[u8]>,
    /// How many of `bytes` have gone out since.
    written: usize,
}

/// A connection: its stream, its state, and what it owes.
///
/// One cache line, and nothing elsewhere while it is idle. That is why the pending answer is a boxed box, why
/// the peer is no `SocketAddr`, why the stamp has 32 bits, and why the bytes sent are computed.
#[derive(Debug)]
#[repr(align(64))]
pub struct Connection<T, P = Echo> {
    stream: T,
    /// What is owed and was not taken: the connection is stalled.
    pending: Option<Box<Pending>>,
    /// Bytes read to be answered.
    received: u64,
    state: State,
    number: u32,
    /// When a byte last moved, in the milliseconds of [`Conditions::now`].
    last_active: u32,
    peer: Peer,
    readable: Readable,
    /// For the server: whether the ready queue holds this connection. Kept here since it costs nothing here.
    pub queued: bool,
    protocol: P,
}

// What an idle connection costs, where mio's streams have no debugging aids in them. A slab entry is this
// enum; the free-list link must find room in it.
#[cfg(not(debug_assertions))]
const _: () = {
    #[allow(dead_code)]
    enum SlabEntry<T> {
        Vacant(usize),
        Occupied(T),
    }
    assert!(size_of::<Connection<crate::transport::Stream>>() == 64);
    assert!(size_of::<SlabEntry<Connection<crate::transport::Stream>>>() == 64);
};

impl<T: Transport, P: Protocol> Connection<T, P> {
    /// A connection just accepted. It is not readable before an event says so: registering with the poller
    /// brings one.
    pub fn new(stream: T, peer: Peer, number: u32, now: u32) -> Self {
        Connection {
            stream,
            pending: None,
            received: 0,
            state: State::Established,
            number,
            last_active: now,
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
        if self.state != State::Established {
            return false;
        }
        // FIONREAD cannot fail on a socket. If it did: until the queue is seen empty.
        let held = self.stream.unread().map_or(u32::MAX, saturating_u32);
        self.state = State::Draining { held };
        self.readable = Readable::UntilBlocked;
        true
    }

    /// Does what can be done now, within [`READS_PER_TURN`]. Reads go into `buffer` and, where the peer takes
    /// it, straight out of it again.
    pub fn turn(
        &mut self,
        buffer: &mut [u8],
        conditions: Conditions,
        traffic: &mut Traffic,
        observer: &mut impl Observer,
    ) -> Turn {
        let turn = self.work(buffer, conditions, traffic, observer).unwrap_or_else(|error| Turn::of(&error));
        debug_assert_eq!(
            self.protocol.answered(self.received),
            self.sent() + self.pending_len() as u64,
            "a byte is sent or pending"
        );
        debug_assert!(turn != Turn::Waits || self.is_stalled() || self.readable == Readable::No);
        turn
    }

    /// The state machine. `?` passes on what [`Turn::of`] sorts.
    fn work(
        &mut self,
        buffer: &mut [u8],
        conditions: Conditions,
        traffic: &mut Traffic,
        observer: &mut impl Observer,
    ) -> io::Result<Turn> {
        // First what is owed. While the peer does not take it, nothing is read from it.
        self.flush(conditions, traffic, observer)?;
        if self.is_stalled() {
            return Ok(Turn::Waits);
        }
        for _ in 0..READS_PER_TURN {
            let most = match self.state {
                State::Established if conditions.one_shot => ONE_SHOT_BYTES,
                State::Established | State::FinWait => buffer.len(),
                State::Draining { held: 0 } => {
                    self.state = State::Finishing(Cause::Drained);
                    continue;
                }
                State::Draining { held } if conditions.one_shot => ONE_SHOT_BYTES.min(held as usize),
                State::Draining { held } => held as usize,
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
                State::Discarding { held } => held as usize,
            };
            if self.readable == Readable::No {
                return Ok(Turn::Waits);
            }
            let most = most.min(buffer.len());
            match self.stream.read(&mut buffer[..most]) {
                Ok(0) => {
                    // The only end of file there is: the flags of an event are hints.
                    self.readable = Readable::No;
                    observer.fact(self.number, Fact::PeerFinished);
                    self.state = match self.state {
                        State::FinWait => return Ok(Turn::Ended(Reason::Drained)),
                        State::Discarding { .. } => return Ok(Turn::Ended(Reason::OneShot)),
                        _ => State::CloseWait,
                    };
                }
                Ok(count) => {
                    // A short read empties the queue (epoll(7), Q9), and saves the read that would say
                    // WouldBlock. Not so beside a FIN or urgent data: those end a read early with more
                    // behind, and the event has said `UntilBlocked`.
                    if count < most && self.readable == Readable::UntilShort && self.stream.short_read_is_last() {
                        self.readable = Readable::No;
                    }
                    match &mut self.state {
                        State::FinWait => discard(self.number, count, traffic, observer),
                        State::Discarding { held } => {
                            *held = held.saturating_sub(saturating_u32(count));
                            discard(self.number, count, traffic, observer);
                        }
                        state => {
                            if conditions.one_shot {
                                *state = State::Finishing(Cause::OneShot);
                            } else if let State::Draining { held } = state {
                                *held = held.saturating_sub(saturating_u32(count));
                            }
                            self.answer(&buffer[..count], conditions, traffic, observer)?;
                            if self.is_stalled() {
                                return Ok(Turn::Waits);
                            }
                        }
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
    fn flush(&mut self, conditions: Conditions, traffic: &mut Traffic, observer: &mut impl Observer) -> io::Result<()> {
        let Some(pending) = &mut self.pending else {
            return Ok(());
        };
        let owed = &pending.bytes[pending.written..];
        let (count, outcome) = write_until_blocked(&mut self.stream, owed);
        if count > 0 {
            observer.fact(self.number, Fact::Sent(&owed[..count]));
            traffic.sent += count as u64;
            self.last_active = conditions.now;
            pending.written += count;
        }
        if pending.written == pending.bytes.len() {
            self.pending = None;
        }
        outcome
    }

    /// Answers what was read. What the peer does not take at once becomes pending.
    fn answer(
        &mut self,
        received: &[u8],
        conditions: Conditions,
        traffic: &mut Traffic,
        observer: &mut impl Observer,
    ) -> io::Result<()> {
        observer.fact(self.number, Fact::Received(received));
        traffic.received += received.len() as u64;
        self.received += received.len() as u64;
        self.last_active = conditions.now;
        let answer = self.protocol.answer(received);
        let (count, outcome) = write_until_blocked(&mut self.stream, answer);
        traffic.sent += count as u64;
        if count > 0 {
            observer.fact(self.number, Fact::Sent(&answer[..count]));
        }
        if count < answer.len() {
            // Copied, in exactly its size: cheaper than a buffer of its own for every peer that owes us a byte.
            let bytes: Box<[u8]> = answer[count..].into();
            observer.fact(self.number, Fact::Stalled(bytes.len()));
            self.pending = Some(Box::new(Pending { bytes, written: 0 }));
        }
        outcome
    }

    /// Sends our FIN, ahead of the peer's.
    fn finish(&mut self, cause: Cause, observer: &mut impl Observer) -> io::Result<()> {
        self.stream.shutdown_write()?;
        observer.fact(self.number, Fact::WeFinished);
        self.state = match cause {
            Cause::Drained => State::FinWait,
            Cause::OneShot => {
                // What the peer sent beside its message, and only that: whoever sends on gets RST.
                self.readable = Readable::UntilBlocked;
                State::Discarding { held: saturating_u32(self.stream.unread()?) }
            }
        };
        Ok(())
    }

    /// Whether it has an answer pending that the peer does not take.
    pub fn is_stalled(&self) -> bool {
        self.pending.is_some()
    }

    /// Bytes pending.
    pub fn pending_len(&self) -> usize {
        self.pending.as_ref().map_or(0, |pending| pending.bytes.len() - pending.written)
    }

    /// Bytes read to be answered, since it was opened.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Bytes of answers that the kernel took, since it was opened.
    pub fn sent(&self) -> u64 {
        self.protocol.answered(self.received) - self.pending_len() as u64
    }

    /// For how many milliseconds no byte has moved. What is discarded does not count: our FIN is out, and
    /// a peer that sends for ever shall not hold the connection for ever.
    pub fn idle_for(&self, now: u32) -> u32 {
        now.wrapping_sub(self.last_active)
    }

    /// Where it is in its life.
    pub fn state(&self) -> State {
        self.state
    }

    /// Whether it still owes an answer to what the kernel held when the drain began.
    pub fn is_draining(&self) -> bool {
        matches!(self.state, State::Draining { .. } | State::Finishing(_))
    }

    /// Its number in the log; also its generation in the token.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The stream, to look at.
    pub fn stream(&self) -> &T {
        &self.stream
    }
}

/// Writes until all is out or the kernel takes no more. Returns how many bytes went, and `Ok` also for WouldBlock.
fn write_until_blocked(stream: &mut impl Transport, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match stream.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn discard(number: u32, count: usize, traffic: &mut Traffic, observer: &mut impl Observer) {
    traffic.discarded += count as u64;
    observer.fact(number, Fact::Discarded(count));
}

fn saturating_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
