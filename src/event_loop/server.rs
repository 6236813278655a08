//! The loop: wait, note, serve, and what is due beside it: signals, newcomers, deadlines, operators.
//!
//! Noting and serving apart is the main idea. An event only sets a mark; work happens in one place,
//! at our pace, bounded per turn. So fairness, stale events, drain and "left over from last turn" need
//! no code of their own: all of them are entries in one queue of ready connections, at most one per
//! connection, and while it is not empty the wait takes no time.

use std::time::Duration;
use std::{io, mem};

use log::{debug, info};
use mio::event::Event;
use mio::{Events, Interest, Poll};
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level::signal_name;
use signal_hook_mio::v1_0::Signals;

use crate::daemon::monitoring::Operators;
use crate::daemon::output;
use crate::event_loop::acceptor::Acceptor;
use crate::event_loop::clock::{Clock, NEVER, millis};
use crate::event_loop::connection::Connection;
use crate::event_loop::connections::Connections;
use crate::event_loop::deadlines::Deadlines;
use crate::event_loop::observer::Observer;
use crate::event_loop::outcome::{Reason, Turn};
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::{self, INTEREST, Readable, readiness};
use crate::event_loop::scratch::Workbench;
use crate::event_loop::settings::Settings;
use crate::event_loop::token::{ConnectionId, Source};
use crate::event_loop::transport::{Peer, Stream};
use crate::listen::listener::Listener;
use crate::metrics::exposition::{Counters, Snapshot};

/// How many events one wait can bring. With 16, a busy server spends 5 % more on waiting; from 128 on
/// there is no difference. epoll(7) hands out in turn what did not fit, so nobody is forgotten.
const EVENTS_PER_WAIT: usize = 1024;

/// The most deadlines handled in one turn: a million peers may fall idle in the same millisecond.
const EXPIRIES_PER_TURN: usize = 1024;

/// The daemon's state, one field for each kind of thing that the loop serves.
pub struct Server<P = Echo> {
    settings: Settings,
    poll: Poll,
    signals: Signals,
    signalled: bool,
    acceptor: Acceptor,
    connections: Connections<P>,
    deadlines: Deadlines,
    operators: Operators,
    bench: Workbench,
    counters: Counters,
    clock: Clock,
    /// When there is something to do beside serving, in milliseconds; 0 is at once. Whatever makes something due earlier
    /// than was planned (an event, an end, want of memory) sets it to 0. So a turn that only echoes makes one comparison for
    /// signals, newcomers, deadlines, operators and a drain's end together.
    due: u64,
    /// When the last event came, and for how long polling goes on after it, in nanoseconds.
    last_event: u64,
    busy_poll: u64,
    /// When the drain ends, in milliseconds; [`NEVER`] while there is none.
    drained_by: u64,
    stopped: bool,
}

impl<P: Protocol> Server<P> {
    /// A server over these listeners, operators and signals, all of which the poller gets to know here.
    pub fn new(
        settings: Settings,
        listeners: Vec<Listener>,
        operators: Operators,
        signals: Signals,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let mut server = Server {
            acceptor: Acceptor::new(listeners, poll.registry())?,
            poll,
            signals,
            signalled: false,
            connections: Connections::with_capacity(settings.max_connections),
            deadlines: Deadlines::new(settings.idle_timeout.map(millis)),
            operators,
            bench: Workbench::new(settings.buffer_size),
            counters: Counters::default(),
            clock: Clock::start(),
            due: 0,
            last_event: 0,
            busy_poll: settings.busy_poll.as_nanos() as u64,
            drained_by: NEVER,
            stopped: false,
            settings,
        };
        server.poll.registry().register(&mut server.signals, Source::Signals.into(), Interest::READABLE)?;
        server.operators.register(server.poll.registry())?;
        Ok(server)
    }

    /// Serves until a signal has stopped it. Fails only where the loop itself cannot go on: the poller or a
    /// listener is broken. What goes wrong on a connection ends that connection.
    pub fn run(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS_PER_WAIT);
        while !self.stopped {
            self.wait(&mut events, observer.due())?;
            for event in &events {
                self.note(event);
            }
            self.serve(observer);
            if self.due <= self.clock.ms() {
                self.heed_signals(observer)?;
                self.accept(observer)?; // Newcomers after open peers: slots just freed are theirs.
                self.expire(observer); // Deadlines last: bytes that came in this turn count as life.
                self.report();
                self.plan();
            }
            observer.turn_over();
            self.operators.turn_over(&self.clock);
        }
        Ok(())
    }

    /// What was counted so far.
    pub fn counters(&self) -> Counters {
        let (accept_errors, accept_pauses) = (self.acceptor.errors, self.acceptor.pauses);
        let spent_budgets = self.connections.spent_budgets;
        Counters { traffic: self.bench.traffic, accept_errors, accept_pauses, spent_budgets, ..self.counters }
    }

    // ---- wait ----

    /// Waits for events, or until something is due. The clock is read here, once a turn.
    ///
    /// Inlined, as [`Server::timeout`] and [`Server::note`] are: `run` exists twice, for
    /// [`Silent`](crate::event_loop::observer::Silent) and for the narrator, and of what both share the compiler would make calls.
    #[inline(always)]
    fn wait(&mut self, events: &mut Events, observer_due: Option<Duration>) -> io::Result<()> {
        let timeout = [self.timeout(), observer_due].into_iter().flatten().min();
        match self.poll.poll(events, timeout) {
            Ok(()) => {}
            // A signal handler ran. mio has cleared `events`, so this is an empty turn.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        self.clock.tick();
        self.bench.ms = self.clock.ms() as u32;
        self.counters.turns += 1;
        if !events.is_empty() {
            self.last_event = self.clock.nanos();
        }
        Ok(())
    }

    /// How long there is nothing to do. mio rounds up to a whole millisecond, and we compare deadlines, never count
    /// sleeps: so nothing spins just before a deadline, and nothing is early.
    #[inline(always)]
    fn timeout(&self) -> Option<Duration> {
        debug_assert!(self.due <= self.next_due(), "something is due and would be slept through");
        if self.connections.has_work() || self.clock.nanos() - self.last_event < self.busy_poll {
            return Some(Duration::ZERO);
        }
        (self.due < NEVER).then(|| Duration::from_millis(self.due.saturating_sub(self.clock.ms())))
    }

    // ---- note ----

    /// Marks what an event is about. Nothing is read, written or accepted here.
    #[inline(always)]
    fn note(&mut self, event: &Event) {
        readiness::trace(event);
        match Source::from(event.token()) {
            Source::Connection(id) => {
                let (readable, writable) = readiness(event);
                return self.connections.note(id, readable, writable);
            }
            Source::Signals => self.signalled = true,
            Source::Listener(index) => self.acceptor.note(index),
            Source::Endpoint(index) => self.operators.note(index),
        }
        self.due = 0;
    }

    // ---- signals ----

    /// SIGUSR1 tells the counters. Any other signal begins a drain; one more stops at once.
    fn heed_signals(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        if !mem::take(&mut self.signalled) {
            return Ok(());
        }
        // Two of a kind that come at once are one: the kernel keeps a bit for each, not a queue.
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            let name = signal_name(signal).unwrap_or("a signal");
            if signal == SIGUSR1 {
                output::say(format_args!("echod: {}", self.counters()));
            } else if self.drained_by == NEVER {
                info!("{name}: draining, open connections: {}", self.connections.len());
                self.drain(observer)?;
            } else {
                info!("{name}: the second signal, stopping at once");
                self.cut(observer);
                self.stopped = true;
            }
        }
        Ok(())
    }

    /// Begins to drain: no more newcomers but those that wait already, and every connection answers what the kernel
    /// holds for it, finishes, and waits for its peer to do the same.
    fn drain(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        observer.draining();
        self.drained_by = self.clock.ms() + millis(self.settings.drain_timeout);
        self.acceptor.drain();
        for id in self.connections.ids() {
            self.connections.drain(id);
        }
        // Before the first FIN goes out: a peer that sees it and connects again is to be refused, not taken into a
        // queue that is about to be closed and reset. No more can wait than the backlog.
        while self.can_accept() {
            self.accept(observer)?;
        }
        Ok(())
    }

    // ---- serve ----

    /// Runs every ready connection once, within its budget. Who has work left goes to the end of the queue.
    ///
    /// A function of its own, with [`Server::turn`] in it: so the registers that a turn needs are saved once for all.
    #[inline(never)]
    fn serve(&mut self, observer: &mut impl Observer) {
        let count = self.connections.ready.len();
        for place in 0..count {
            let Some(&id) = self.connections.ready.get(place) else { break };
            self.turn(id, observer);
        }
        self.connections.forget_served(count);
    }

    /// One turn of one connection, and what follows from it. A connection that has ended meanwhile has none.
    fn turn(&mut self, id: ConnectionId, observer: &mut impl Observer) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.queued = false;
        match connection.turn(&mut self.bench, observer) {
            Turn::Waits => {}
            Turn::Again => self.connections.again(id),
            Turn::Starved => self.due = self.due.min(self.connections.starve(id, self.clock.ms())),
            Turn::Ended(reason) => self.close(id, reason, observer),
        }
    }

    /// The one way in which a connection ends. Not inlined, or the usual turn would keep what only this needs.
    #[inline(never)]
    fn close(&mut self, id: ConnectionId, reason: Reason, observer: &mut impl Observer) {
        let connection = self.connections.remove(id);
        self.counters.closed[reason.kind()] += 1;
        self.bench.traffic.stalled -= usize::from(connection.is_stalled());
        let (peer, bytes_in, bytes_out) = (connection.peer, connection.received(), connection.sent());
        debug!("connection {} from {peer} ended: {reason}, {bytes_in} bytes in, {bytes_out} bytes out", id.generation);
        observer.ended(id.generation, reason, &connection.stream);
        drop(connection); // close(2), which also takes it out of the poller.
        self.acceptor.resume();
        self.due = 0; // For a newcomer there is room, and maybe this was the last one.
    }

    // ---- accept ----

    /// Takes in newcomers, as far as the cap and the acceptor's budget go.
    fn accept(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        let now = self.clock.ms();
        if !self.acceptor.begin_turn(now) {
            return Ok(());
        }
        while self.has_room()
            && let Some((stream, peer)) = self.acceptor.next(now)?
        {
            self.open(stream, peer, observer);
        }
        if !self.has_room() {
            self.acceptor.at_cap(self.settings.max_connections);
        }
        Ok(())
    }

    /// Makes a newcomer a connection. Nothing is read yet: registering brings an event that says what is there, so a
    /// read before it would be a guess.
    fn open(&mut self, mut stream: Stream, peer: Peer, observer: &mut impl Observer) {
        let (now, id) = (self.clock.ms(), self.connections.next_id());
        if let Err(error) = self.poll.registry().register(&mut stream, Source::Connection(id).into(), INTEREST) {
            // Out of memory or of epoll watches. The newcomer is closed, the others go on.
            self.acceptor.errors += 1;
            self.acceptor.pause("register a connection", &error, now);
            return;
        }
        debug!("connection {} from {peer} opened", id.generation);
        observer.opened(id.generation, &peer, &stream);
        let connection = Connection::new(stream, peer, id.generation, self.settings.one_shot, now as u32);
        self.connections.insert(id, connection);
        self.counters.accepted += 1;
        if self.drained_by != NEVER {
            self.connections.drain(id);
        }
        self.deadlines.arm(id.slot, now);
    }

    /// Whether the cap allows one more. A drain owes an end in good order to all who wait, and those are bounded by the
    /// backlog, so the cap does not hold it up.
    fn has_room(&self) -> bool {
        self.connections.len() < self.settings.max_connections || self.drained_by != NEVER
    }

    /// Whether newcomers wait and there is room. At the cap or in a pause, a full listen queue does not keep us awake.
    fn can_accept(&self) -> bool {
        self.has_room() && self.acceptor.has_work()
    }

    // ---- expire ----

    /// Closes what has been idle for too long, and sees whether a drain is over.
    fn expire(&mut self, observer: &mut impl Observer) {
        let now = self.clock.ms();
        self.connections.retry_starved(now);
        let due: Vec<u32> = (0..EXPIRIES_PER_TURN).map_while(|_| self.deadlines.pop_due(now)).collect();
        let mut idle: Vec<ConnectionId> = due.into_iter().filter_map(|slot| self.look(slot, now)).collect();
        if !idle.is_empty() {
            // The kernel is asked once more. After a stop (SIGSTOP), or with more events than one wait brings, there may
            // be bytes of which we have not heard. (Whoever has work left has a second turn by this.)
            idle.iter().for_each(|&id| self.connections.note(id, Readable::UntilBlocked, true));
            self.serve(observer);
            idle.retain(|id| self.look(id.slot, now).is_some());
            idle.into_iter().for_each(|id| self.close(id, Reason::Idle, observer));
        }
        self.end_drain(observer);
    }

    /// Looks at who lives in this slot. Returns it if it has been idle for too long; if not, it is looked at again when it
    /// would be.
    fn look(&mut self, slot: u32, now: u64) -> Option<ConnectionId> {
        let id = self.connections.at(slot)?;
        let idle = self.connections.get_mut(id)?.idle_for(now as u32);
        self.deadlines.look(slot, now, idle).then_some(id)
    }

    /// The operators' part of a turn.
    fn report(&mut self) {
        let accept_paused = !self.has_room() || self.acceptor.resume_at() < NEVER;
        let state = Snapshot { counters: self.counters(), accept_paused, draining: self.drained_by < NEVER };
        self.operators.turn(self.clock.ms(), self.poll.registry(), &state);
    }

    /// Finds out when there will be something to do beside serving.
    fn plan(&mut self) {
        self.due = self.next_due();
    }

    /// When that is, as far as is known now.
    fn next_due(&self) -> u64 {
        let (starved, operators) = (self.connections.next_starved(), self.operators.next_deadline());
        let due = [self.deadlines.next(), starved, self.acceptor.resume_at(), self.drained_by, operators];
        if self.can_accept() { 0 } else { due.into_iter().fold(NEVER, u64::min) }
    }

    // ---- the end ----

    /// Ends a drain that is over. Even at its timeout, what the kernel held is answered as far as peers take it at once;
    /// only with a drain timeout near 0 is any of it left.
    fn end_drain(&mut self, observer: &mut impl Observer) {
        if self.acceptor.is_closed() && self.connections.is_empty() {
            self.stopped = true;
        } else if self.drained_by <= self.clock.ms() && !self.can_accept() && !self.connections.are_answering() {
            info!("the drain timeout has passed, open connections: {}", self.connections.len());
            // Cutting frees descriptors, maybe for some who still wait in a queue: they have their turn, too.
            self.stopped = self.connections.is_empty();
            self.cut(observer);
        }
    }

    /// Cuts every connection, in whatever state it is.
    fn cut(&mut self, observer: &mut impl Observer) {
        for id in self.connections.ids() {
            self.close(id, Reason::Cut, observer);
        }
    }
}
