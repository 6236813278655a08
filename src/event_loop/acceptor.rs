//! Accepting connections: round-robin over the listeners, a budget per iteration, and a pause when descriptors or memory run
//! out.

use std::{io, mem};

use log::{debug, error, info, warn};
use mio::Registry;

use crate::event_loop::clock::NEVER;
use crate::event_loop::counters::PauseReason;
use crate::event_loop::log_limit::LogLimit;
use crate::event_loop::token::EventSource;
use crate::event_loop::transport::{Peer, Stream};
use crate::listen::listener::{AcceptError, Listener};

/// The maximum number of accepts in one iteration, so that a burst of new connections does not keep open ones waiting. An
/// accept costs some 10 µs, so this is about half a millisecond.
const MAX_ACCEPTS_PER_ITERATION: usize = 64;

/// How long accepting pauses, in milliseconds, unless a connection closes earlier. The contract allows 1 s; ten needless calls
/// per second cannot be measured.
const PAUSE_MS: u64 = 100;

/// The listeners, and whether connections can be accepted from them now.
#[derive(Debug)]
pub struct Acceptor {
    listeners: Vec<Listener>,
    /// Whether any listener is ready, so that an iteration without new connections does not check each of them.
    any_ready: bool,
    /// The round-robin position, so that at the connection limit one listener cannot take every free slot.
    next_listener: usize,
    /// Accepts left in this iteration, and how many of those made have failed.
    budget: usize,
    failed: usize,
    /// When the pause ends, in milliseconds; [`NEVER`] while there is none.
    resume_at: u64,
    /// Whether accepting has paused, and no backlog has been seen empty since.
    paused: bool,
    limit_logged: bool,
    /// Whether accepting is paused by the connection limit.
    at_limit: bool,
    draining: bool,
    /// Why the last listener was dropped.
    failure: Option<io::Error>,
    /// Limits for the two log lines that descriptor exhaustion under churn would repeat many times a second.
    pause_limit: LogLimit,
    resume_limit: LogLimit,
    /// Failed accepts since startup: aborted connections, and exhausted resources.
    pub errors: u64,
    /// Pauses since startup, indexed by [`PauseReason`]. A renewed pause counts once.
    pub pauses: [u64; PauseReason::COUNT],
}

impl Acceptor {
    /// Registers the listeners with the poller. Connections that are in a backlog already cause an event, too.
    pub fn new(mut listeners: Vec<Listener>, registry: &Registry) -> io::Result<Acceptor> {
        for (listener, index) in listeners.iter_mut().zip(0..) {
            listener.index = index;
            listener.register(registry, EventSource::Listener(index).into())?;
        }
        Ok(Acceptor {
            listeners,
            any_ready: false,
            next_listener: 0,
            budget: 0,
            failed: 0,
            resume_at: NEVER,
            paused: false,
            limit_logged: false,
            at_limit: false,
            draining: false,
            failure: None,
            pause_limit: LogLimit::default(),
            resume_limit: LogLimit::default(),
            errors: 0,
            pauses: [0; PauseReason::COUNT],
        })
    }

    /// Records an event for a listener. It stays ready until its backlog has been seen empty, so whatever stops accepting
    /// before that (the budget, the connection limit, a pause) needs no further event to continue.
    ///
    /// A listener that hung up has been shut down by another process that has it, too; it is dropped.
    ///
    /// Linear in the number of listeners; there are only a handful.
    pub fn mark_ready(&mut self, index: u32, hung_up: bool) {
        let Some(position) = self.listeners.iter().position(|listener| listener.index == index) else { return };
        if hung_up {
            self.drop_listener(position, io::Error::other("it was shut down by another process"));
        } else {
            self.listeners[position].mark_ready();
            self.any_ready = true;
        }
    }

    /// Drops a listener from which nothing can be accepted any more. The others continue.
    fn drop_listener(&mut self, position: usize, error: io::Error) {
        let listener = self.listeners.remove(position);
        error!("cannot accept connections on {} any more: {error}; closing this listener", listener.local());
        if self.listeners.is_empty() && !self.draining {
            self.failure = Some(io::Error::new(error.kind(), format!("no listener is left: {error}")));
        }
    }

    /// Returns why the last listener was dropped, if it was not closed by a graceful shutdown.
    pub fn take_failure(&mut self) -> Option<io::Error> {
        self.failure.take()
    }

    /// Returns whether there may be connections to accept now. During a pause there are none, so that a full backlog does not
    /// keep the loop awake.
    pub fn is_ready(&self) -> bool {
        self.any_ready && self.resume_at == NEVER
    }

    /// Returns when the pause ends, in milliseconds; [`NEVER`] while there is none.
    pub fn resume_at(&self) -> u64 {
        self.resume_at
    }

    /// Starts an iteration: renews the budget, and ends a pause that is over. Returns whether there is anything to do.
    #[inline(always)]
    pub fn start_iteration(&mut self, now: u64) -> bool {
        if self.resume_at <= now {
            self.resume_at = NEVER;
        }
        (self.budget, self.failed) = (MAX_ACCEPTS_PER_ITERATION, 0);
        self.is_ready() || self.draining
    }

    /// Accepts the next connection, if there is one and the budget is not used up.
    pub fn next(&mut self, now: u64) -> Option<(Stream, Peer)> {
        while self.budget > 0 && self.resume_at == NEVER {
            let count = self.listeners.len();
            let ready = (0..count).map(|i| (self.next_listener + i) % count).find(|&i| self.listeners[i].ready);
            let Some(index) = ready else {
                self.any_ready = false;
                break;
            };
            self.budget -= 1;
            match self.listeners[index].accept() {
                Ok(accepted) => {
                    self.next_listener = index + 1;
                    return Some(accepted.into());
                }
                Err(error) => self.handle_accept_error(index, error, now),
            }
        }
        if self.draining {
            // A listener is closed once its backlog has been seen empty: close(2) resets the connections in it.
            self.listeners.retain(|listener| listener.ready);
        }
        None
    }

    fn handle_accept_error(&mut self, index: usize, error: io::Error, now: u64) {
        let class = AcceptError::classify(&error);
        match class {
            AcceptError::WouldBlock => {
                self.listeners[index].ready = false;
                if mem::take(&mut self.paused)
                    && let Some(suppressed) = self.resume_limit.check(now)
                {
                    info!("resuming accepts{suppressed}");
                }
            }
            AcceptError::Interrupted | AcceptError::Aborted => {
                self.errors += u64::from(class == AcceptError::Aborted);
                self.failed += 1;
                debug!("a connection was aborted before it could be accepted: {error}");
                if self.failed == MAX_ACCEPTS_PER_ITERATION {
                    self.pause("accept", &error, now); // A network that is down would keep the loop spinning.
                }
            }
            AcceptError::ResourcesExhausted => {
                self.errors += 1;
                self.pause("accept", &error, now);
            }
            AcceptError::Fatal => self.drop_listener(index, error),
        }
    }

    /// Stops accepting for `PAUSE_MS`. A pause is counted and logged once, however often it is renewed: accept(2) reports EMFILE
    /// for an empty backlog, too. (For the same reason the "reserve file descriptor" trick does not work here.) Pauses that end
    /// and come again many times a second are logged once a second.
    pub fn pause(&mut self, attempt: &str, error: &io::Error, now: u64) {
        self.resume_at = now + PAUSE_MS;
        if !mem::replace(&mut self.paused, true) {
            self.pauses[PauseReason::from_io_error(error) as usize] += 1;
            if let Some(suppressed) = self.pause_limit.check(now) {
                warn!("cannot {attempt}: {error}; pausing accepts{suppressed}");
            }
        }
    }

    /// Counts a pause by the connection limit, which ends when a connection closes. It is logged only once: at the limit, every
    /// closed connection leads back to it.
    pub fn on_connection_limit(&mut self, limit: usize) {
        if !mem::replace(&mut self.at_limit, true) {
            self.pauses[PauseReason::Limit as usize] += 1;
        }
        if !mem::replace(&mut self.limit_logged, true) {
            warn!(
                "connection limit ({limit}) reached; new connections wait in the backlog \
                 (further occurrences are not logged)"
            );
        }
    }

    /// Ends a pause, because one of our connections has closed and freed a descriptor.
    pub fn resume(&mut self) {
        self.resume_at = NEVER;
        self.at_limit = false;
    }

    /// Starts the graceful shutdown: connections in the backlogs are still accepted, then each listener is closed.
    pub fn drain(&mut self) {
        (self.draining, self.any_ready) = (true, true);
        for listener in &mut self.listeners {
            listener.drain();
        }
    }

    /// Returns whether every listener is closed.
    pub fn is_closed(&self) -> bool {
        self.listeners.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use mio::{Events, Poll};
    use rustix::io::Errno;

    use super::*;
    use crate::listen::address::Address;
    use crate::listen::socket::ListenOptions;

    const TIMEOUT: Duration = Duration::from_secs(10);

    /// Returns an acceptor over one listener that has been notified of `count` pending connections, and their clients.
    fn with_pending(count: usize) -> (Acceptor, Poll, Vec<TcpStream>) {
        let options = ListenOptions { backlog: 1024, reuse_port: false, socket_buffer: None };
        let address: Address = "127.0.0.1:0".parse().expect("address");
        let listeners = address.bind(&options).expect("listener");
        let address = listeners[0].local();
        let address = address.strip_prefix("tcp://").and_then(|address| address.parse().ok()).expect("TCP address");
        let mut poll = Poll::new().expect("poller");
        let mut acceptor = Acceptor::new(listeners, poll.registry()).expect("registration");
        let connect = || TcpStream::connect_timeout(&address, TIMEOUT);
        let clients = (0..count).map(|_| connect().expect("connection")).collect();
        let mut events = Events::with_capacity(8);
        let timeout = if count > 0 { TIMEOUT } else { Duration::ZERO };
        poll.poll(&mut events, Some(timeout)).expect("poll");
        for event in &events {
            if let EventSource::Listener(index) = event.token().into() {
                acceptor.mark_ready(index, false);
            }
        }
        (acceptor, poll, clients)
    }

    /// Returns an acceptor over two ready listeners with this many pending connections, and what must not be dropped.
    fn with_two_listeners(first: usize, second: usize) -> (Acceptor, impl Sized) {
        let (mut acceptor, poll, clients) = with_pending(first);
        let (mut other, other_poll, others) = with_pending(second);
        acceptor.listeners.append(&mut other.listeners);
        acceptor.listeners[1].index = 1;
        acceptor.mark_ready(1, false);
        (acceptor, (poll, clients, other_poll, others))
    }

    /// Returns how many connections one iteration accepts.
    fn iteration(acceptor: &mut Acceptor, now: u64) -> usize {
        let mut count = 0;
        acceptor.start_iteration(now);
        while acceptor.next(now).is_some() {
            count += 1;
        }
        count
    }

    #[test]
    fn burst_of_connections_is_accepted_in_portions() {
        let (mut acceptor, _poll, _clients) = with_pending(2 * MAX_ACCEPTS_PER_ITERATION + 10);
        assert_eq!(iteration(&mut acceptor, 0), MAX_ACCEPTS_PER_ITERATION, "open connections are served in between");
        assert!(acceptor.is_ready(), "no further event reports the connections that are left");
        assert_eq!(iteration(&mut acceptor, 0), MAX_ACCEPTS_PER_ITERATION);
        assert_eq!(iteration(&mut acceptor, 0), 10);
        assert!(!acceptor.is_ready(), "the backlog has been seen empty");
        assert_eq!(iteration(&mut acceptor, 0), 0);
    }

    #[test]
    fn pause_ends_at_its_time_or_when_a_connection_closes() {
        let (mut acceptor, _poll, _clients) = with_pending(3);
        let error = io::Error::from(Errno::MFILE);
        acceptor.pause("accept", &error, 1000);
        assert_eq!(acceptor.resume_at(), 1000 + PAUSE_MS);
        assert!(!acceptor.is_ready(), "pending connections do not keep the loop awake");
        assert!(!acceptor.start_iteration(1000 + PAUSE_MS - 1));
        assert!(acceptor.next(1000 + PAUSE_MS - 1).is_none(), "the pause is not over");
        assert!(acceptor.start_iteration(1000 + PAUSE_MS));
        assert!(acceptor.next(1000 + PAUSE_MS).is_some());

        acceptor.pause("accept", &error, 2000);
        acceptor.resume();
        assert_eq!(acceptor.resume_at(), NEVER);
        assert_eq!(iteration(&mut acceptor, 2000), 2);
    }

    #[test]
    fn listeners_are_served_in_rotation() {
        let (mut acceptor, _clients) = with_two_listeners(2, 2);
        let mut order = Vec::new();
        acceptor.start_iteration(0);
        while let Some((stream, _)) = acceptor.next(0) {
            let Stream::Tcp(stream) = stream else { panic!("expected TCP, got {stream:?}") };
            order.push(stream.local_addr().expect("address").port());
        }
        assert_eq!(order.len(), 4);
        assert!(order[0] != order[1] && order[0] == order[2] && order[1] == order[3], "{order:?}");
    }

    #[test]
    fn listener_with_empty_backlog_does_not_block_others() {
        let (mut acceptor, _clients) = with_two_listeners(0, 2);
        assert_eq!(iteration(&mut acceptor, 0), 2);
    }

    #[test]
    fn aborted_connections_are_counted_and_many_cause_a_pause() {
        let (mut acceptor, _poll, _clients) = with_pending(0);
        let aborted = || io::Error::from(Errno::CONNABORTED);
        acceptor.start_iteration(0);
        for _ in 1..MAX_ACCEPTS_PER_ITERATION {
            acceptor.handle_accept_error(0, aborted(), 0);
        }
        assert_eq!((acceptor.errors, acceptor.resume_at()), (MAX_ACCEPTS_PER_ITERATION as u64 - 1, NEVER));
        acceptor.handle_accept_error(0, Errno::INTR.into(), 0);
        assert_eq!(acceptor.errors, MAX_ACCEPTS_PER_ITERATION as u64 - 1, "an interrupted call is not an error");
        assert_eq!(
            (acceptor.resume_at(), acceptor.pauses),
            (PAUSE_MS, [0, 0, 0, 1]),
            "but repeating it forever would spin"
        );

        acceptor.start_iteration(PAUSE_MS);
        acceptor.handle_accept_error(0, aborted(), PAUSE_MS);
        assert_eq!(acceptor.resume_at(), NEVER, "each iteration counts its own failures");
    }

    #[test]
    fn renewed_pause_counts_once_with_several_errors() {
        let (mut acceptor, _poll, _clients) = with_pending(0);
        let mut time = 0;
        let mut fail = |acceptor: &mut Acceptor, errno: Errno| {
            time += PAUSE_MS;
            acceptor.start_iteration(time);
            acceptor.handle_accept_error(0, errno.into(), time);
        };
        for errors in 1..=3 {
            fail(&mut acceptor, Errno::MFILE);
            assert_eq!((acceptor.errors, acceptor.pauses), (errors, [0, 1, 0, 0]));
        }
        fail(&mut acceptor, Errno::AGAIN);
        fail(&mut acceptor, Errno::MFILE);
        assert_eq!(
            (acceptor.errors, acceptor.pauses),
            (4, [0, 2, 0, 0]),
            "the end of the first pause was seen in between"
        );
    }

    #[test]
    fn drained_listener_is_closed_when_its_backlog_is_empty() {
        let (mut acceptor, _poll, clients) = with_pending(3);
        acceptor.drain();
        acceptor.start_iteration(0);
        assert!(acceptor.next(0).is_some());
        assert!(!acceptor.is_closed(), "two connections are still in its backlog");
        assert_eq!(iteration(&mut acceptor, 0), 2);
        assert!(acceptor.is_closed());
        drop(clients);
    }

    #[test]
    fn listener_that_was_shut_down_is_dropped_alone() {
        for drop_one in [
            |acceptor: &mut Acceptor| acceptor.mark_ready(0, true),
            |acceptor: &mut Acceptor| acceptor.handle_accept_error(0, Errno::INVAL.into(), 0),
        ] {
            let (mut acceptor, _clients) = with_two_listeners(0, 2);
            drop_one(&mut acceptor);
            assert!(acceptor.take_failure().is_none(), "another listener is left");
            assert_eq!(iteration(&mut acceptor, 0), 2);
            acceptor.mark_ready(1, true);
            let failure = acceptor.take_failure().expect("no listener is left");
            assert!(failure.to_string().starts_with("no listener is left: "), "{failure}");
        }
    }

    #[test]
    fn flapping_pause_is_logged_once_a_second() {
        let (mut acceptor, _poll, _clients) = with_pending(0);
        for time in 0..1000 {
            acceptor.handle_accept_error(0, Errno::MFILE.into(), time);
            acceptor.handle_accept_error(0, Errno::AGAIN.into(), time);
        }
        assert_eq!(acceptor.pauses, [0, 1000, 0, 0], "all are counted");
        let suppressed = acceptor.pause_limit.check(1000).expect("a second has passed");
        assert_eq!(suppressed.to_string(), " (999 similar lines not logged)");
    }

    #[test]
    fn event_for_an_unknown_listener_is_ignored() {
        let (mut acceptor, _poll, _clients) = with_pending(0);
        acceptor.any_ready = false;
        acceptor.mark_ready(7, false);
        assert!(!acceptor.is_ready());
    }
}
