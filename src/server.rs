//! The loop: wait, note, serve, accept, expire.
//!
//! Noting and serving apart is the main idea. An event only sets a mark; work happens in one place,
//! at our pace, bounded per turn. So fairness, stale events, drain and "left over from last turn" need
//! no code of their own: all of them are entries in one queue of ready connections, at most one per
//! connection, and while it is not empty the wait takes no time.

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use std::{io, mem};

use log::{debug, info, trace, warn};
use mio::event::Event;
use mio::{Events, Interest, Poll};
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level::signal_name;
use signal_hook_mio::v1_0::Signals;
use slab::Slab;

use crate::connection::{Conditions, Connection, Readable, Reason, Turn};
use crate::deadlines::Deadlines;
use crate::listener::{Listener, Verdict};
use crate::metrics::Counters;
use crate::observer::Observer;
use crate::output;
use crate::protocol::{Echo, Protocol};
use crate::token::{ConnectionId, Source};
use crate::transport::{Peer, Stream};

/// How many events one wait can bring. With 16, a busy server spends 5 % more on waiting; from 128 on
/// there is no difference. epoll(7) hands out in turn what did not fit, so nobody is forgotten.
const EVENTS_PER_WAIT: usize = 1024;

/// The most newcomers that one listener brings in one turn: a burst must not keep open peers waiting.
/// An accept costs some 10 µs, so this is about half a millisecond.
const ACCEPTS_PER_TURN: usize = 64;

/// The most deadlines handled in one turn: a million peers may fall idle in the same millisecond.
const EXPIRIES_PER_TURN: usize = 1024;

/// How long accepting pauses for want of descriptors or memory, where none of ours is freed before. The
/// contract says within 1 s; ten needless calls a second cannot be measured.
const PAUSE_MS: u64 = 100;

/// Slots reserved at start, 64 bytes each: address space, not memory, until connections come.
const SLOTS_RESERVED: usize = 65_536;

/// What one connection asks of the poller: everything, once, for life.
///
/// No reregister: asking again for WRITABLE re-arms the edge on an idle socket, and the loop spins. No deregister: close(2)
/// does it, epoll(7), Q6. Against READABLE alone this makes no difference beyond noise. PRIORITY tells of urgent data,
/// beside which a short read proves nothing; where there is none, no short read is trusted.
#[cfg(any(target_os = "linux", target_os = "android"))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// What a server is told to do. The command line's meaning, without its words.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Answer one message, then close first.
    pub one_shot: bool,
    /// Connections open at once, at least 1.
    pub max_connections: usize,
    /// `None`: for ever. At most 24 days.
    pub idle_timeout: Option<Duration>,
    /// How long a drain waits for peers.
    pub drain_timeout: Duration,
    /// Bytes of the shared read buffer, at least 1.
    pub buffer_size: usize,
    /// How long to go on polling after an event before sleeping.
    pub busy_poll: Duration,
}

/// The daemon's state, one field for each kind of thing that the loop serves.
pub struct Server<P = Echo> {
    settings: Settings,
    poll: Poll,
    signals: Signals,
    signalled: bool,
    listeners: Vec<Listener>,
    connections: Slab<Connection<Stream, P>>,
    /// Connections with work to do, each at most once (its `queued` flag).
    ready: VecDeque<ConnectionId>,
    /// Connections for which the kernel had no memory; queued again when `resume_at` comes.
    starved: Vec<ConnectionId>,
    deadlines: Deadlines,
    /// Every read goes here. One for all, since one connection is served at a time.
    buffer: Box<[u8]>,
    /// The number of the last connection.
    last_number: u32,
    counters: Counters,
    started: Instant,
    /// Since `started`; read once a turn.
    now: Duration,
    last_event: Duration,
    /// When a pause ends, in milliseconds: no descriptors or no memory were left.
    resume_at: Option<u64>,
    /// Whether a pause was logged whose end is still to be.
    pause_logged: bool,
    cap_logged: bool,
    /// When the drain ends, in milliseconds; `None` while there is no drain.
    drained_by: Option<u64>,
    stopped: bool,
}

impl<P: Protocol> Server<P> {
    /// A server over these listeners, all of which the poller gets to know here.
    pub fn new(settings: Settings, mut listeners: Vec<Listener>, mut signals: Signals) -> io::Result<Self> {
        let poll = Poll::new()?;
        poll.registry().register(&mut signals, Source::Signals.into(), Interest::READABLE)?;
        for (listener, index) in listeners.iter_mut().zip(0..) {
            listener.index = index;
            poll.registry().register(listener, Source::Listener(index).into(), Interest::READABLE)?;
        }
        Ok(Server {
            poll,
            signals,
            signalled: false,
            listeners,
            connections: Slab::with_capacity(settings.max_connections.min(SLOTS_RESERVED)),
            ready: VecDeque::new(),
            starved: Vec::new(),
            deadlines: Deadlines::default(),
            buffer: vec![0; settings.buffer_size].into(),
            last_number: 0,
            counters: Counters::default(),
            started: Instant::now(),
            now: Duration::ZERO,
            last_event: Duration::ZERO,
            resume_at: None,
            pause_logged: false,
            cap_logged: false,
            drained_by: None,
            stopped: false,
            settings,
        })
    }

    /// Serves until a signal has stopped it. Fails only where the loop itself cannot go on: the poller or a
    /// listener is broken. What goes wrong on a connection ends that connection.
    pub fn run(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_WAIT);
        while !self.stopped {
            self.wait(&mut events)?;
            for event in &events {
                self.note(event);
            }
            self.heed_signals(observer);
            self.serve(observer);
            self.accept(observer)?; // Newcomers after open peers: slots just freed are theirs.
            self.expire(observer); // Deadlines last: bytes that came in this turn count as life.
            observer.turn_over();
        }
        Ok(())
    }

    /// What was counted so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    // ---- wait ----

    /// Waits for events, or until something is due. The clock is read here, once a turn.
    fn wait(&mut self, events: &mut Events) -> io::Result<()> {
        match self.poll.poll(events, self.timeout()) {
            Ok(()) => {}
            // A signal handler ran. mio has cleared `events`, so this is an empty turn.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.now = self.started.elapsed();
        self.counters.turns += 1;
        if !events.is_empty() {
            self.last_event = self.now;
        }
        Ok(())
    }

    /// How long there is nothing to do. mio rounds up to a whole millisecond, and we compare deadlines, never count
    /// sleeps: so nothing spins just before a deadline, and nothing is early.
    fn timeout(&self) -> Option<Duration> {
        let work_left = !self.ready.is_empty()
            || (self.can_accept() && self.listeners.iter().any(|listener| listener.ready))
            || self.now.saturating_sub(self.last_event) < self.settings.busy_poll;
        if work_left {
            return Some(Duration::ZERO);
        }
        let due = [self.deadlines.next(), self.resume_at, self.drained_by].into_iter().flatten().min()?;
        Some(Duration::from_millis(due.saturating_sub(self.now_ms())))
    }

    /// Milliseconds since the loop started.
    fn now_ms(&self) -> u64 {
        self.now.as_millis() as u64
    }

    // ---- note ----

    /// Marks what an event is about. Nothing is read, written or accepted here.
    fn note(&mut self, event: &Event) {
        let source = Source::from(event.token());
        trace!("{source:?}: {event:?}");
        match source {
            Source::Signals => self.signalled = true,
            Source::Listener(index) => {
                // Linear in the listeners: there are a handful.
                if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.index == index) {
                    listener.ready = true;
                }
            }
            Source::Endpoint(_) => {}
            Source::Connection(id) => {
                let (readable, writable) = readiness(event);
                if let Some(connection) = find(&mut self.connections, id)
                    && connection.note(readable, writable)
                {
                    enqueue(&mut self.ready, connection, id);
                }
            }
        }
    }

    // ---- signals ----

    /// SIGUSR1 tells the counters. Any other signal begins a drain; one more stops at once.
    fn heed_signals(&mut self, observer: &mut impl Observer) {
        if !mem::take(&mut self.signalled) {
            return;
        }
        // Two of a kind that come at once are one: the kernel keeps a bit for each, not a queue.
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            let name = signal_name(signal).unwrap_or("a signal");
            if signal == SIGUSR1 {
                output::say(format_args!("echod: {}", self.counters));
            } else if self.drained_by.is_none() {
                info!("{name}: draining, open connections: {}", self.connections.len());
                self.drain(observer);
            } else {
                info!("{name}: the second signal, stopping at once");
                self.stop(observer);
            }
        }
    }

    /// Begins to drain: no more newcomers but those that wait already, and every connection answers what the kernel
    /// holds for it, finishes, and waits for its peer to do the same.
    fn drain(&mut self, observer: &mut impl Observer) {
        observer.draining();
        self.drained_by = Some(self.now_ms() + self.settings.drain_timeout.as_millis() as u64);
        for listener in &mut self.listeners {
            listener.drain();
        }
        for (slot, connection) in &mut self.connections {
            if connection.drain() {
                let id = ConnectionId { slot: slot as u32, generation: connection.number() };
                enqueue(&mut self.ready, connection, id);
            }
        }
    }

    // ---- serve ----

    /// Runs every ready connection once, within its budget. Who has work left goes to the end of the queue.
    fn serve(&mut self, observer: &mut impl Observer) {
        for _ in 0..self.ready.len() {
            let Some(id) = self.ready.pop_front() else { break };
            self.turn(id, observer);
        }
    }

    /// One turn of one connection, and what follows from it. A connection that has ended meanwhile has none.
    fn turn(&mut self, id: ConnectionId, observer: &mut impl Observer) {
        let conditions = Conditions { now: self.now_ms() as u32, one_shot: self.settings.one_shot };
        let Some(connection) = find(&mut self.connections, id) else { return };
        connection.queued = false;
        let was_stalled = connection.is_stalled();
        let turn = connection.turn(&mut self.buffer, conditions, &mut self.counters.traffic, observer);
        self.counters.stalled += usize::from(connection.is_stalled());
        self.counters.stalled -= usize::from(was_stalled);
        match turn {
            Turn::Waits => {}
            Turn::Again => enqueue(&mut self.ready, connection, id),
            Turn::Starved => {
                self.starved.push(id);
                self.pause("read or write", &io::ErrorKind::OutOfMemory.into());
            }
            Turn::Ended(reason) => self.close(id, reason, observer),
        }
    }

    /// The one way in which a connection ends.
    fn close(&mut self, id: ConnectionId, reason: Reason, observer: &mut impl Observer) {
        let connection = self.connections.remove(id.slot as usize);
        self.counters.closed[reason.kind()] += 1;
        self.counters.stalled -= usize::from(connection.is_stalled());
        debug!(
            "connection {} from {} ended: {reason}, {} bytes in, {} bytes out",
            id.generation,
            connection.peer(),
            connection.received(),
            connection.sent()
        );
        observer.ended(id.generation, reason);
        drop(connection); // close(2), which also takes it out of the poller.
        if self.resume_at.is_some() {
            self.resume();
        }
    }

    // ---- accept ----

    /// Takes in newcomers, so many from each listener. A listener stays ready until its queue has been seen empty,
    /// so whatever stops us here (the budget, the cap, a pause) needs no further event to go on.
    fn accept(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        if self.resume_at.is_some_and(|resume_at| resume_at <= self.now_ms()) {
            self.resume();
        }
        if self.listeners.len() > 1 {
            self.listeners.rotate_left(1); // At the cap, the first takes the slot: each is first in its turn.
        }
        for index in 0..self.listeners.len() {
            // Set while newcomer after newcomer fails. A whole turn of that is a pause, or a broken network would
            // keep us spinning.
            let mut refusal = None;
            for _ in 0..ACCEPTS_PER_TURN {
                if !self.can_accept() || !self.listeners[index].ready {
                    break;
                }
                match self.listeners[index].accept() {
                    Ok((stream, peer)) => {
                        refusal = None;
                        self.open(stream, peer, observer);
                    }
                    Err(error) => match Verdict::of(&error) {
                        Verdict::Empty => {
                            refusal = None;
                            self.listeners[index].ready = false;
                            if mem::take(&mut self.pause_logged) {
                                info!("accepting again");
                            }
                        }
                        Verdict::Retry => refusal = Some(error),
                        Verdict::Gone => {
                            self.counters.accept_errors += 1;
                            debug!("a newcomer was gone before it was accepted: {error}");
                            refusal = Some(error);
                        }
                        Verdict::Pause => {
                            self.counters.accept_errors += 1;
                            self.pause("accept", &error);
                        }
                        Verdict::Fatal => return Err(error),
                    },
                }
            }
            if let Some(error) = refusal {
                self.pause("accept", &error);
            }
        }
        if self.drained_by.is_some() {
            // Closed once its queue has been seen empty: close(2) resets whoever waits in it.
            self.listeners.retain(|listener| listener.ready);
        }
        Ok(())
    }

    /// Makes a newcomer a connection. Nothing is read yet: registering brings an event that says what is there, so a
    /// read before it would be a guess.
    fn open(&mut self, mut stream: Stream, peer: Peer, observer: &mut impl Observer) {
        let (now, entry) = (self.now.as_millis() as u64, self.connections.vacant_entry());
        self.last_number = self.last_number.wrapping_add(1).max(1);
        let id = ConnectionId { slot: entry.key() as u32, generation: self.last_number };
        if let Err(error) = self.poll.registry().register(&mut stream, Source::Connection(id).into(), INTEREST) {
            // Out of memory or of epoll watches. The newcomer is closed, the others go on.
            self.counters.accept_errors += 1;
            self.pause("register a connection", &error);
            return;
        }
        debug!("connection {} from {peer} opened", id.generation);
        observer.opened(id.generation, &peer, &stream);
        let connection = entry.insert(Connection::new(stream, peer, id.generation, now as u32));
        self.counters.accepted += 1;
        if self.drained_by.is_some() && connection.drain() {
            enqueue(&mut self.ready, connection, id);
        }
        if let Some(timeout) = self.settings.idle_timeout {
            self.deadlines.arm(id.slot, now + timeout.as_millis() as u64);
        }
        if self.connections.len() == self.settings.max_connections && !mem::replace(&mut self.cap_logged, true) {
            let cap = self.settings.max_connections;
            warn!("{cap} connections are open, as many as may be: newcomers wait in the listen queue (said once)");
        }
    }

    /// Whether there is room for newcomers now. Where there is none, a ready listener does not keep us awake.
    fn can_accept(&self) -> bool {
        self.resume_at.is_none() && self.connections.len() < self.settings.max_connections
    }

    /// No descriptors or no memory: leaves off accepting, until one of our connections ends or [`PAUSE_MS`] have passed.
    /// One log line for a pause, however often it is renewed: accept(2) says EMFILE on an empty queue, too.
    fn pause(&mut self, attempt: &str, error: &io::Error) {
        self.resume_at = Some(self.now_ms() + PAUSE_MS);
        if !mem::replace(&mut self.pause_logged, true) {
            warn!("cannot {attempt}: {error}; accepting pauses");
        }
    }

    /// Ends a pause, at its time or because a descriptor is free.
    fn resume(&mut self) {
        self.resume_at = None;
        for id in mem::take(&mut self.starved) {
            if let Some(connection) = find(&mut self.connections, id) {
                enqueue(&mut self.ready, connection, id);
            }
        }
    }

    // ---- expire ----

    /// Closes what has been idle for too long, and ends a drain that is over.
    fn expire(&mut self, observer: &mut impl Observer) {
        let now = self.now_ms();
        for _ in 0..EXPIRIES_PER_TURN {
            let Some(slot) = self.deadlines.pop_due(now) else { break };
            self.expire_slot(slot, now, observer);
        }
        let Some(drained_by) = self.drained_by else { return };
        let waits_for_newcomers = self.can_accept() && !self.listeners.is_empty();
        if self.connections.is_empty() && self.listeners.is_empty() {
            self.stopped = true;
        } else if drained_by <= now && !waits_for_newcomers {
            info!("the drain timeout has passed, open connections: {}", self.connections.len());
            self.last_chance(observer);
            self.stop(observer);
        }
    }

    /// Looks at a slot whose deadline has come.
    fn expire_slot(&mut self, slot: u32, now: u64, observer: &mut impl Observer) {
        let Some(timeout) = self.settings.idle_timeout else { return };
        let timeout = timeout.as_millis() as u64;
        let Some(connection) = self.connections.get_mut(slot as usize) else { return };
        let id = ConnectionId { slot, generation: connection.number() };
        if u64::from(connection.idle_for(now as u32)) >= timeout && !connection.queued {
            // The kernel is asked once more. After a stop (SIGSTOP), or with more events than one wait brings,
            // there may be bytes of which we have not heard.
            connection.note(Readable::UntilBlocked, true);
            self.turn(id, observer);
        }
        let Some(connection) = find(&mut self.connections, id) else { return };
        let idle = u64::from(connection.idle_for(now as u32));
        if idle >= timeout {
            self.close(id, Reason::Idle, observer);
        } else {
            self.deadlines.arm(slot, now + timeout - idle);
        }
    }

    /// At the end of a drain: what the kernel held is still echoed, as far as peers take it at once. Only with a
    /// drain timeout near 0 is anything of it left.
    fn last_chance(&mut self, observer: &mut impl Observer) {
        for id in self.ids() {
            // Bounded: each turn either moves bytes, of which no more are owed than were held, or is the last.
            while find(&mut self.connections, id).is_some_and(|connection| connection.is_draining()) {
                let before = self.counters.traffic;
                self.turn(id, observer);
                if self.counters.traffic == before {
                    break;
                }
            }
        }
    }

    /// Stops at once: whoever is still there is cut.
    fn stop(&mut self, observer: &mut impl Observer) {
        for id in self.ids() {
            self.close(id, Reason::Cut, observer);
        }
        self.listeners.clear();
        self.stopped = true;
    }

    fn ids(&self) -> Vec<ConnectionId> {
        let id = |(slot, connection): (usize, &Connection<Stream, P>)| ConnectionId {
            slot: slot as u32,
            generation: connection.number(),
        };
        self.connections.iter().map(id).collect()
    }
}

/// The connection that `id` means, unless it has ended: then its slot is empty, or another's.
fn find<P: Protocol>(
    connections: &mut Slab<Connection<Stream, P>>,
    id: ConnectionId,
) -> Option<&mut Connection<Stream, P>> {
    connections.get_mut(id.slot as usize).filter(|connection| connection.number() == id.generation)
}

/// Puts a connection into the ready queue, unless it is there.
fn enqueue<P>(ready: &mut VecDeque<ConnectionId>, connection: &mut Connection<Stream, P>, id: ConnectionId) {
    if !mem::replace(&mut connection.queued, true) {
        ready.push_back(id);
    }
}

/// What an event says to a connection: how far to read, and whether to try writing. Flags are hints; read(2)
/// and write(2) tell the truth. So every flag but "writable" makes us ask, also HUP or ERR alone: a Unix peer
/// closes that way, and whoever waits for "readable" there leaks the slot.
fn readiness(event: &Event) -> (Readable, bool) {
    let broken = event.is_error() || event.is_write_closed();
    let readable = if broken || event.is_read_closed() || event.is_priority() {
        Readable::UntilBlocked
    } else if event.is_readable() {
        Readable::UntilShort
    } else {
        Readable::No
    };
    (readable, broken || event.is_writable())
}

#[cfg(test)]
mod tests {
    use mio::net::UnixStream;

    use super::*;

    #[test]
    fn an_event_for_a_former_owner_of_a_slot_finds_nobody() {
        let mut connections: Slab<Connection<Stream>> = Slab::new();
        let mut open = |number| {
            let (stream, _) = UnixStream::pair().expect("a socket pair");
            let slot = connections.insert(Connection::new(Stream::Unix(stream), Peer::Unix, number, 0)) as u32;
            (ConnectionId { slot, generation: number }, connections.remove(slot as usize))
        };
        let (first, _) = open(1);
        let (second, connection) = open(2);
        assert_eq!(first.slot, second.slot, "the slot is used again");

        connections.insert(connection);

        assert!(find(&mut connections, first).is_none());
        assert!(find(&mut connections, second).is_some());
        assert!(find(&mut connections, ConnectionId { slot: 9, generation: 1 }).is_none());
    }

    #[test]
    fn a_connection_is_queued_once() {
        let (stream, _) = UnixStream::pair().expect("a socket pair");
        let mut connection: Connection<Stream> = Connection::new(Stream::Unix(stream), Peer::Unix, 1, 0);
        let mut ready = VecDeque::new();
        let id = ConnectionId { slot: 0, generation: 1 };

        enqueue(&mut ready, &mut connection, id);
        enqueue(&mut ready, &mut connection, id);

        assert_eq!(ready, [id]);
    }
}
