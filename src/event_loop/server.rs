//! The event loop. Each iteration waits for events, records readiness, serves ready connections, and then, only if something is
//! due, handles signals, accepts, expires idle connections and updates monitoring.
//!
//! The main idea is to separate recording from serving. An event only sets a mark; I/O happens in one place, with a bounded
//! amount of work per iteration. So fairness, stale events, graceful shutdown and leftover work need no code of their own: all
//! of them are entries in a ready queue, at most one per connection, and while any is queued the wait takes no time. There are two
//! queues, for light and for heavy connections, so that small messages do not wait for all bulk transfers.
//!
//! On first reading, ignore the parameters `M` (a [`Monitor`]: metrics and service manager), `P` (the [`Protocol`]) and
//! `observer` (`--explain`).

mod report;
mod shutdown;

use std::time::Duration;
use std::{io, mem};

use log::{info, warn};
use mio::event::Event;
use mio::{Events, Interest, Poll};
use signal_hook::consts::SIGUSR1;
use signal_hook::low_level::signal_name;

use crate::event_loop::acceptor::Acceptor;
use crate::event_loop::busy_poll::BusyPoll;
use crate::event_loop::clock::{Clock, NEVER, millis};
use crate::event_loop::connection::Connection;
use crate::event_loop::connections::Connections;
use crate::event_loop::counters::Counters;
use crate::event_loop::deadlines::Deadlines;
use crate::event_loop::monitor::{Monitor, NoMonitor};
use crate::event_loop::observer::Observer;
use crate::event_loop::outcome::{CloseReason, Outcome};
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::{self, INTEREST, readiness};
use crate::event_loop::scratch::Scratch;
use crate::event_loop::server::shutdown::DrainPhase;
use crate::event_loop::settings::Settings;
use crate::event_loop::signal_source::SignalSource;
use crate::event_loop::token::{ConnectionId, EventSource};
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::listen::listener::Listener;

/// The maximum number of events that one wait returns. With 16, a busy server spends 5 % more on waiting; above 128 there is no
/// difference. epoll(7) returns the events that did not fit in rotation, so no connection is starved.
const MAX_EVENTS_PER_POLL: usize = 1024;

/// How many bytes are read from heavy connections in one iteration, before the poller is asked again.
///
/// This bounds how long a small message, a new connection, a metrics request or a signal waits beside bulk transfers, however
/// many there are. (The connection that reaches the bound may finish its quantum.) Beside 64 and 300 bulk transfers, 512 KiB
/// move 5 to 12 % more bulk, but a ping and a new connection take 1.6 to 1.8 times as long.
pub const HEAVY_BYTES_PER_ITERATION: u64 = 256 * 1024;

/// The maximum number of timers handled in one iteration: a million connections may become idle in the same millisecond.
const MAX_EXPIRIES_PER_ITERATION: usize = 1024;

/// The server: one field for each kind of thing that the loop serves.
pub struct Server<M = NoMonitor, P = Echo> {
    settings: Settings,
    poll: Poll,
    signals: SignalSource,
    /// Whether an event has reported signals that have not been handled yet.
    signal_pending: bool,
    acceptor: Acceptor,
    connections: Connections<Stream, P>,
    deadlines: Deadlines,
    monitor: M,
    scratch: Scratch,
    counters: Counters,
    clock: Clock,
    /// When the loop has work to do besides serving, in milliseconds; 0 means at once, [`NEVER`] means not at all.
    ///
    /// `schedule` computes it at the end of the slow part of an iteration. `on_event`, `close` and `serve` lower it when they
    /// create such work. So an iteration that only echoes makes a single comparison for signals, new connections, timers,
    /// monitoring and the end of a drain together.
    wake_at: u64,
    /// Whether to poll instead of sleeping.
    busy_poll: BusyPoll,
    /// When the graceful shutdown ends, in milliseconds; [`NEVER`] while there is none.
    drain_deadline: u64,
    drain_phase: DrainPhase,
    /// Why the loop shuts down, if not because of a signal.
    failure: Option<io::Error>,
    /// Whether the loop has finished.
    stopped: bool,
}

impl<M: Monitor, P: Protocol> Server<M, P> {
    /// Creates a server and registers its listeners, its monitor and the signal pipe with the poller.
    pub fn new(
        mut settings: Settings,
        listeners: Vec<Listener>,
        monitor: M,
        signals: SignalSource,
    ) -> io::Result<Self> {
        let poll = Poll::new()?;
        let connections = Connections::with_capacity(settings.max_connections);
        if connections.capacity() < settings.max_connections {
            warn!("memory for {} connections only; using that as the limit", connections.capacity());
            settings.max_connections = connections.capacity();
        }
        let mut server = Server {
            acceptor: Acceptor::new(listeners, poll.registry())?,
            poll,
            signals,
            signal_pending: false,
            deadlines: Deadlines::new(settings.idle_timeout.map(millis), connections.capacity()),
            connections,
            monitor,
            scratch: Scratch {
                max_tcp_read: settings.max_tcp_read,
                ..Scratch::new(settings.buffer_size, settings.max_buffered)
            },
            counters: Counters::default(),
            clock: Clock::start(),
            wake_at: 0,
            busy_poll: BusyPoll::new(settings.busy_poll),
            drain_deadline: NEVER,
            drain_phase: DrainPhase::None,
            failure: None,
            stopped: false,
            settings,
        };
        let pipe = &mut server.signals.signals;
        server.poll.registry().register(pipe, EventSource::Signals.into(), Interest::READABLE)?;
        server.monitor.register(server.poll.registry())?;
        Ok(server)
    }

    /// Runs the loop until a signal has stopped it. Returns an error only if the loop itself cannot continue: the poller is broken,
    /// or no listener is left. An error on a connection ends that connection.
    pub fn run(&mut self, observer: &mut impl Observer) -> io::Result<()> {
        let mut events = Events::with_capacity(MAX_EVENTS_PER_POLL);
        while !self.stopped {
            self.wait(&mut events, observer.next_wakeup())?;
            for event in &events {
                self.on_event(event);
            }
            self.serve(observer);
            if self.wake_at <= self.clock.ms() {
                self.handle_signals(observer);
                self.accept(observer); // New connections after open ones: slots that were just freed are theirs.
                self.expire(observer); // Timers last: bytes that moved in this iteration count as activity.
                self.update_monitor();
                self.schedule();
            }
            observer.end_iteration();
            self.monitor.end_iteration(&self.clock);
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    // ---- wait ----

    /// Waits for events, or until something is due. Reads the clock once per wait.
    #[inline(always)]
    fn wait(&mut self, events: &mut Events, observer_wakeup: Option<Duration>) -> io::Result<()> {
        loop {
            let timeout = [self.timeout(), observer_wakeup].into_iter().flatten().min();
            match self.poll.poll(events, timeout) {
                Ok(()) => {}
                // A signal handler ran. mio has cleared `events`, so this iteration has none. There may be no event to come:
                // the handler's write to the signal pipe can fail.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                    if self.signals.has_arrived() {
                        (self.signal_pending, self.wake_at) = (true, 0);
                    }
                }
                Err(error) => return Err(error),
            }
            self.clock.tick();
            if !events.is_empty() {
                break;
            }
            if self.connections.has_ready() || self.wake_at <= self.clock.ms() || observer_wakeup.is_some() {
                break;
            }
            // Busy polling has found nothing: wait again, with or without a timeout.
        }
        self.scratch.ms = self.clock.ms() as u32;
        self.counters.iterations += 1;
        Ok(())
    }

    /// Returns how long the loop may sleep. mio rounds timeouts up to a whole millisecond and we compare against deadlines, so
    /// the loop never wakes early and never spins just before a deadline.
    #[inline(always)]
    fn timeout(&self) -> Option<Duration> {
        debug_assert!(self.wake_at <= self.next_deadline(), "the loop would sleep through a deadline");
        if self.connections.has_ready() || self.busy_poll.is_due(self.clock.nanos()) {
            return Some(Duration::ZERO);
        }
        (self.wake_at < NEVER).then(|| Duration::from_millis(self.wake_at.saturating_sub(self.clock.ms())))
    }

    // ---- on_event ----

    /// Records what an event is about. Nothing is read, written or accepted here.
    #[inline(always)]
    fn on_event(&mut self, event: &Event) {
        readiness::trace(event);
        match EventSource::from(event.token()) {
            EventSource::Connection(id) => {
                let (readable, writable) = readiness(event);
                self.connections.mark_ready(id, readable, writable);
            }
            EventSource::Signals => (self.signal_pending, self.wake_at) = (true, 0),
            EventSource::Listener(index) => {
                self.acceptor.mark_ready(index, event.is_read_closed() || event.is_write_closed());
                self.wake_at = 0;
            }
            EventSource::Monitor(index) => {
                self.monitor.on_event(index);
                self.wake_at = 0;
            }
        }
    }

    // ---- serve ----

    /// Serves every light connection that is ready once, within its budget, and then heavy ones until
    /// [`HEAVY_BYTES_PER_ITERATION`] have been read from them. A connection with work left is queued again.
    #[inline(always)]
    fn serve(&mut self, observer: &mut impl Observer) {
        let served = self.connections.serve_light(&mut self.scratch, observer);
        self.busy_poll.on_events(served as u64, &self.clock);
        if self.connections.has_heavy() {
            self.connections.serve_heavy(HEAVY_BYTES_PER_ITERATION, &mut self.scratch, observer);
        }
        if self.connections.has_outcomes() {
            self.act_on_outcomes(observer);
        }
    }

    /// Acts on the outcomes of serving connections.
    #[inline(never)]
    fn act_on_outcomes(&mut self, observer: &mut impl Observer) {
        while let Some((id, outcome)) = self.connections.next_outcome() {
            match outcome {
                Outcome::Idle | Outcome::Requeue => {}
                Outcome::OutOfMemory => {
                    self.wake_at = self.wake_at.min(self.connections.retry_later(id, self.clock.ms()));
                }
                Outcome::Closed(reason) => self.close(id, reason, observer),
            }
        }
    }

    /// Closes a connection. All connections end here.
    #[inline(never)]
    fn close(&mut self, id: ConnectionId, reason: CloseReason, observer: &mut impl Observer) {
        let mut connection = self.connections.remove(id);
        self.counters.closed[reason.index()] += 1;
        if connection.is_stalled() && matches!(reason, CloseReason::Idle | CloseReason::Cut) {
            connection.stream.reset_on_close(); // A FIN would make a partial echo look complete.
        }
        report::log_closed(&connection, reason, self.connections.open_for(id.slot, self.scratch.ms));
        observer.closed(id.generation, reason, &connection.stream);
        connection.release(&mut self.scratch);
        drop(connection); // close(2), which also removes it from the poller.
        // A slot and a descriptor are free: accept again, and check whether a drain is complete.
        self.acceptor.resume();
        self.wake_at = 0;
    }

    // ---- handle_signals ----

    /// Handles the signals that have arrived. SIGUSR1 prints the counters. Any other signal starts a graceful shutdown; a
    /// second one exits immediately.
    fn handle_signals(&mut self, observer: &mut impl Observer) {
        if !mem::take(&mut self.signal_pending) && !self.signals.has_arrived() {
            return;
        }
        while let Some(signal) = self.signals.next_signal() {
            let name = signal_name(signal).unwrap_or("a signal");
            if signal == SIGUSR1 {
                let counters = self.counters();
                self.monitor.print_counters(&counters);
            } else if self.drain_deadline == NEVER {
                info!("{name} received: shutting down gracefully ({} connections open)", self.connections.len());
                self.drain(observer);
            } else {
                info!("{name} received again: exiting immediately");
                self.close_all(observer);
                self.stopped = true;
            }
        }
    }

    // ---- accept ----

    /// Accepts new connections, up to the connection limit and the acceptor's budget. Without a listener, the server shuts down.
    fn accept(&mut self, observer: &mut impl Observer) {
        let now = self.clock.ms();
        if let Some(failure) = self.acceptor.take_failure() {
            self.failure = Some(failure);
            self.drain(observer);
        }
        if !self.acceptor.start_iteration(now) {
            return;
        }
        while self.has_room()
            && let Some((stream, peer)) = self.acceptor.next(now)
        {
            self.open(stream, peer, observer);
        }
        if !self.has_room() {
            self.acceptor.on_connection_limit(self.settings.max_connections);
        }
    }

    /// Turns an accepted stream into a connection. Does not read yet: registration itself triggers an event if data is
    /// waiting.
    fn open(&mut self, mut stream: Stream, peer: Peer, observer: &mut impl Observer) {
        let (now, id) = (self.clock.ms(), self.connections.next_id());
        if let Err(error) = self.poll.registry().register(&mut stream, EventSource::Connection(id).into(), INTEREST) {
            // Out of memory or of epoll watches. This connection is closed; the others continue.
            self.acceptor.errors += 1;
            self.acceptor.pause("register a connection", &error, now);
            return;
        }
        report::log_opened(id, &peer, &stream);
        observer.opened(id.generation, &peer, &stream);
        let connection = Connection::new(stream, peer, id.generation, self.settings.one_shot, now as u32);
        self.connections.insert(id, connection, now as u32);
        self.counters.accepted += 1;
        if !matches!(self.drain_phase, DrainPhase::None | DrainPhase::Accepting) {
            self.connections.drain(id); // Accepted after a pause, when the others have been visited.
        }
        self.deadlines.arm(id.slot, now);
    }

    /// Returns whether the connection limit allows one more. During a drain the limit is ignored: everything in the backlog
    /// must be closed cleanly, and the backlog itself bounds how many there can be.
    fn has_room(&self) -> bool {
        self.connections.len() < self.settings.max_connections || self.drain_deadline != NEVER
    }

    /// Returns whether connections may be waiting and there is room for them. At the limit or in a pause, a full backlog does
    /// not keep the loop awake.
    fn can_accept(&self) -> bool {
        self.has_room() && self.acceptor.is_ready()
    }

    // ---- expire ----

    /// Closes connections that have been idle for too long, and ends a drain that is complete.
    fn expire(&mut self, observer: &mut impl Observer) {
        let now = self.clock.ms();
        if self.connections.requeue_due_retries(now) {
            self.scratch.update(); // Perhaps there is memory now.
        }
        let expired: Vec<u32> =
            (0..MAX_EXPIRIES_PER_ITERATION).map_while(|_| self.deadlines.pop_expired(now)).collect();
        let mut idle: Vec<ConnectionId> = expired.into_iter().filter_map(|slot| self.check_idle(slot, now)).collect();
        if !idle.is_empty() {
            // Each of them is served once more before it is closed. After SIGSTOP, or with more events than one wait returns,
            // there may be data of which we have not been notified yet.
            idle.iter().for_each(|&id| self.connections.enqueue_idle(id));
            self.connections.serve_light(&mut self.scratch, observer);
            self.act_on_outcomes(observer);
            idle.retain(|id| self.check_idle(id.slot, now).is_some());
            idle.into_iter().for_each(|id| self.close(id, CloseReason::Idle, observer));
        }
        self.continue_drain(observer);
    }

    /// Returns the connection in `slot` if it has exceeded the idle timeout; otherwise re-arms its timer.
    fn check_idle(&mut self, slot: u32, now: u64) -> Option<ConnectionId> {
        let id = self.connections.id_at(slot)?;
        let connection = self.connections.get_mut(id)?;
        if connection.queued {
            self.deadlines.arm_at(slot, now + 1); // Checked again after its turn.
            return None;
        }
        let mut idle = connection.idle_for(now as u32);
        if self.deadlines.is_expired(idle) {
            idle = connection.ask_idle_for(now as u32);
        }
        self.deadlines.expired_or_rearm(slot, now, idle).then_some(id)
    }

    // ---- schedule ----

    /// Decides when the next work besides serving is due.
    fn schedule(&mut self) {
        self.busy_poll.on_other_work(&self.clock); // We are here because there was some.
        self.wake_at = self.next_deadline();
    }

    fn next_deadline(&self) -> u64 {
        let (retry, monitor) = (self.connections.next_retry(), self.monitor.next_deadline());
        let deadlines = [self.deadlines.next(), retry, self.acceptor.resume_at(), self.drain_deadline, monitor];
        let is_sweeping = matches!(self.drain_phase, DrainPhase::Starting(_) | DrainPhase::Closing(_));
        if self.can_accept() || is_sweeping { 0 } else { deadlines.into_iter().fold(NEVER, u64::min) }
    }
}

// Performance notes. `run` is compiled twice, with and without `--explain`. `wait`, `timeout` and `on_event` are forced inline,
// because the compiler would otherwise turn what both share into calls. `serve_light` is kept out of line, with the connection's
// own `serve` inlined into it, so that registers are saved once per iteration instead of once per connection. `close` is kept out
// of line so that serving needs fewer registers.
