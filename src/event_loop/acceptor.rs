//! Which newcomer comes next, and when none may come: the listeners, taken in turn, and the pause for want of
//! descriptors or memory.

use std::{io, mem};

use log::{debug, info, warn};
use mio::Registry;

use crate::event_loop::clock::NEVER;
use crate::event_loop::token::Source;
use crate::event_loop::transport::{Peer, Stream};
use crate::listen::listener::{Listener, Verdict};

/// The most accepts in one turn: a burst of newcomers must not keep open peers waiting. An accept costs some 10 µs, so
/// this is about half a millisecond.
const ACCEPTS_PER_TURN: usize = 64;

/// How long accepting pauses, in milliseconds, unless a connection of ours ends before. The contract says within 1 s; ten
/// needless calls a second cannot be measured.
const PAUSE_MS: u64 = 100;

/// The listeners, and whether they may be asked.
#[derive(Debug)]
pub struct Acceptor {
    listeners: Vec<Listener>,
    /// False only where no listener is ready: saves looking at each.
    waiting: bool,
    /// Whose turn it is, so that at the cap the first one does not get every slot that falls free.
    first: usize,
    /// Accepts left in this turn, and how many of them failed.
    budget: usize,
    failed: usize,
    /// When the pause ends, in milliseconds; [`NEVER`] while there is none.
    resume_at: u64,
    /// Whether a pause was logged whose end is still to be.
    pause_logged: bool,
    cap_logged: bool,
    draining: bool,
    /// Accepts that failed, since the start: newcomers that were gone, and pauses.
    pub errors: u64,
    /// Pauses, since the start. One that is renewed is the same.
    pub pauses: u64,
}

impl Acceptor {
    /// Makes the listeners known to the poller. Connections that wait in their queues already are an event, too.
    pub fn new(mut listeners: Vec<Listener>, registry: &Registry) -> io::Result<Acceptor> {
        for (listener, index) in listeners.iter_mut().zip(0..) {
            listener.index = index;
            listener.register(registry, Source::Listener(index).into())?;
        }
        Ok(Acceptor {
            listeners,
            waiting: false,
            first: 0,
            budget: 0,
            failed: 0,
            resume_at: NEVER,
            pause_logged: false,
            cap_logged: false,
            draining: false,
            errors: 0,
            pauses: 0,
        })
    }

    /// Notes an event. A listener stays ready until its queue has been seen empty, so whatever stops us before (the
    /// budget, the cap, a pause) needs no further event to go on. Linear in the listeners: there are a handful.
    pub fn note(&mut self, index: u32) {
        if let Some(listener) = self.listeners.iter_mut().find(|listener| listener.index == index) {
            listener.note();
            self.waiting = true;
        }
    }

    /// Whether asking for a newcomer makes sense now. During a pause it does not, so that a full queue does not keep
    /// us awake.
    pub fn has_work(&self) -> bool {
        self.waiting && self.resume_at == NEVER
    }

    /// When the pause ends, in milliseconds; [`NEVER`] while there is none.
    pub fn resume_at(&self) -> u64 {
        self.resume_at
    }

    /// A turn begins: the budget is new, and a pause may be over. Returns whether there is anything to do.
    #[inline(always)]
    pub fn begin_turn(&mut self, now: u64) -> bool {
        if self.resume_at <= now {
            self.resume_at = NEVER;
        }
        (self.budget, self.failed) = (ACCEPTS_PER_TURN, 0);
        self.has_work() || self.draining
    }

    /// The next newcomer, while there is one and the budget lasts. Fails where the daemon cannot go on.
    pub fn next(&mut self, now: u64) -> io::Result<Option<(Stream, Peer)>> {
        while self.budget > 0 && self.resume_at == NEVER {
            let count = self.listeners.len();
            let Some(at) = (0..count).map(|i| (self.first + i) % count).find(|&i| self.listeners[i].ready) else {
                self.waiting = false;
                break;
            };
            self.budget -= 1;
            match self.listeners[at].accept() {
                Ok(newcomer) => {
                    self.first = at + 1;
                    return Ok(Some(newcomer));
                }
                Err(error) => self.sort_out(at, error, now)?,
            }
        }
        if self.draining {
            // Closed once its queue has been seen empty: close(2) resets whoever waits in it.
            self.listeners.retain(|listener| listener.ready);
        }
        Ok(None)
    }

    /// What follows from an error of accept(2).
    fn sort_out(&mut self, at: usize, error: io::Error, now: u64) -> io::Result<()> {
        let verdict = Verdict::of(&error);
        match verdict {
            Verdict::Empty => {
                self.listeners[at].ready = false;
                if mem::take(&mut self.pause_logged) {
                    info!("accepting again");
                }
            }
            Verdict::Retry | Verdict::Gone => {
                self.errors += u64::from(verdict == Verdict::Gone);
                self.failed += 1;
                debug!("a newcomer was gone before it was accepted: {error}");
                if self.failed == ACCEPTS_PER_TURN {
                    self.pause("accept", &error, now); // Or a network that is down would keep us spinning.
                }
            }
            Verdict::Pause => {
                self.errors += 1;
                self.pause("accept", &error, now);
            }
            Verdict::Fatal => return Err(error),
        }
        Ok(())
    }

    /// Leaves off accepting for `PAUSE_MS`. One log line, however often a pause is renewed: accept(2) says EMFILE on an
    /// empty queue, too. (That is also why a spare descriptor, closed to make room for a polite refusal, is no way out.)
    pub fn pause(&mut self, attempt: &str, error: &io::Error, now: u64) {
        self.resume_at = now + PAUSE_MS;
        if !mem::replace(&mut self.pause_logged, true) {
            self.pauses += 1;
            warn!("cannot {attempt}: {error}; accepting pauses");
        }
    }

    /// As many connections are open as may be. Told once: at the cap, every coming and going reaches it again.
    pub fn at_cap(&mut self, cap: usize) {
        if !mem::replace(&mut self.cap_logged, true) {
            warn!("{cap} connections are open, as many as may be: newcomers will wait in the listen queue (said once)");
        }
    }

    /// A connection of ours has ended: a descriptor is free.
    pub fn resume(&mut self) {
        self.resume_at = NEVER;
    }

    /// The server drains: what waits in the queues is still accepted, then each listener is closed.
    pub fn drain(&mut self) {
        (self.draining, self.waiting) = (true, true);
        for listener in &mut self.listeners {
            listener.drain();
        }
    }

    /// Whether every listener is closed.
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
    use crate::listen::listener::{Address, ListenOptions};

    const PATIENCE: Duration = Duration::from_secs(10);

    /// An acceptor over one listener that has been told of its newcomers, and those.
    fn with_newcomers(count: usize) -> (Acceptor, Poll, Vec<TcpStream>) {
        let options = ListenOptions { backlog: 1024, reuse_port: false };
        let listeners = "127.0.0.1:0"
            .parse::<Address>()
            .and_then(|address| address.bind(&options).map_err(|error| error.to_string()));
        let listeners = listeners.expect("a listener");
        let address = listeners[0].local();
        let address = address.strip_prefix("tcp://").and_then(|address| address.parse().ok()).expect("TCP");
        let mut poll = Poll::new().expect("a poller");
        let mut acceptor = Acceptor::new(listeners, poll.registry()).expect("registered");
        let connect = || TcpStream::connect_timeout(&address, PATIENCE);
        let newcomers = (0..count).map(|_| connect().expect("room in the queue")).collect();
        let mut events = Events::with_capacity(8);
        let patience = if count > 0 { PATIENCE } else { Duration::ZERO };
        poll.poll(&mut events, Some(patience)).expect("a poller in order");
        for event in &events {
            if let Source::Listener(index) = event.token().into() {
                acceptor.note(index);
            }
        }
        (acceptor, poll, newcomers)
    }

    /// An acceptor over two listeners, both told of by an event, with so many newcomers; and what must not be dropped.
    fn with_two_listeners(first: usize, second: usize) -> (Acceptor, impl Sized) {
        let (mut acceptor, poll, clients) = with_newcomers(first);
        let (mut other, other_poll, others) = with_newcomers(second);
        acceptor.listeners.append(&mut other.listeners);
        acceptor.listeners[1].index = 1;
        acceptor.note(1);
        (acceptor, (poll, clients, other_poll, others))
    }

    /// One turn's newcomers.
    fn turn(acceptor: &mut Acceptor, now: u64) -> usize {
        let mut count = 0;
        acceptor.begin_turn(now);
        while acceptor.next(now).expect("a listener in order").is_some() {
            count += 1;
        }
        count
    }

    #[test]
    fn a_burst_of_newcomers_is_taken_in_portions() {
        let (mut acceptor, _poll, _newcomers) = with_newcomers(2 * ACCEPTS_PER_TURN + 10);
        assert_eq!(turn(&mut acceptor, 0), ACCEPTS_PER_TURN, "open connections come in between");
        assert!(acceptor.has_work(), "who still waits is not forgotten: no further event tells of them");
        assert_eq!(turn(&mut acceptor, 0), ACCEPTS_PER_TURN);
        assert_eq!(turn(&mut acceptor, 0), 10);
        assert!(!acceptor.has_work(), "the queue has been seen empty");
        assert_eq!(turn(&mut acceptor, 0), 0);
    }

    #[test]
    fn a_pause_ends_at_its_time_or_when_a_connection_ends() {
        let (mut acceptor, _poll, _newcomers) = with_newcomers(3);
        let error = io::Error::from(Errno::MFILE);
        acceptor.pause("accept", &error, 1000);
        assert_eq!(acceptor.resume_at(), 1000 + PAUSE_MS);
        assert!(!acceptor.has_work(), "who waits does not keep the loop awake");
        assert!(!acceptor.begin_turn(1000 + PAUSE_MS - 1));
        assert!(acceptor.next(1000 + PAUSE_MS - 1).expect("no error").is_none(), "it is a pause");
        assert!(acceptor.begin_turn(1000 + PAUSE_MS));
        assert!(acceptor.next(1000 + PAUSE_MS).expect("no error").is_some());

        acceptor.pause("accept", &error, 2000);
        acceptor.resume();
        assert_eq!(acceptor.resume_at(), NEVER);
        assert_eq!(turn(&mut acceptor, 2000), 2);
    }

    #[test]
    fn listeners_are_taken_in_turn() {
        let (mut acceptor, _clients) = with_two_listeners(2, 2);
        let mut order = Vec::new();
        acceptor.begin_turn(0);
        while let Some((stream, _)) = acceptor.next(0).expect("listeners in order") {
            let Stream::Tcp(stream) = stream else { panic!("TCP") };
            order.push(stream.local_addr().expect("an address").port());
        }
        assert_eq!(order.len(), 4);
        assert!(order[0] != order[1] && order[0] == order[2] && order[1] == order[3], "{order:?}");
    }

    #[test]
    fn a_listener_whose_queue_is_empty_holds_up_nobody() {
        let (mut acceptor, _clients) = with_two_listeners(0, 2);
        assert_eq!(turn(&mut acceptor, 0), 2);
    }

    #[test]
    fn newcomers_that_are_gone_are_counted_and_too_many_in_one_turn_are_a_pause() {
        let (mut acceptor, _poll, _nobody) = with_newcomers(0);
        let gone = || io::Error::from(Errno::CONNABORTED);
        acceptor.begin_turn(0);
        for _ in 1..ACCEPTS_PER_TURN {
            acceptor.sort_out(0, gone(), 0).expect("no end");
        }
        assert_eq!((acceptor.errors, acceptor.resume_at()), (ACCEPTS_PER_TURN as u64 - 1, NEVER));
        acceptor.sort_out(0, Errno::INTR.into(), 0).expect("no end");
        assert_eq!(acceptor.errors, ACCEPTS_PER_TURN as u64 - 1, "a signal is nobody who is gone");
        assert_eq!((acceptor.resume_at(), acceptor.pauses), (PAUSE_MS, 1), "but it would spin as well");

        acceptor.begin_turn(PAUSE_MS);
        acceptor.sort_out(0, gone(), PAUSE_MS).expect("no end");
        assert_eq!(acceptor.resume_at(), NEVER, "each turn counts anew");
    }

    #[test]
    fn a_pause_that_is_renewed_is_one_pause_of_several_errors() {
        let (mut acceptor, _poll, _nobody) = with_newcomers(0);
        let mut time = 0;
        let mut fail = |acceptor: &mut Acceptor, errno: Errno| {
            time += PAUSE_MS;
            acceptor.begin_turn(time);
            acceptor.sort_out(0, errno.into(), time)
        };
        for errors in 1..=3 {
            fail(&mut acceptor, Errno::MFILE).expect("no end");
            assert_eq!((acceptor.errors, acceptor.pauses), (errors, 1));
        }
        fail(&mut acceptor, Errno::AGAIN).expect("no end");
        fail(&mut acceptor, Errno::MFILE).expect("no end");
        assert_eq!((acceptor.errors, acceptor.pauses), (4, 2), "its end has been seen in between");
        assert!(fail(&mut acceptor, Errno::BADF).is_err(), "the daemon cannot go on");
    }

    #[test]
    fn a_drained_listener_is_closed_once_its_queue_is_empty() {
        let (mut acceptor, _poll, newcomers) = with_newcomers(3);
        acceptor.drain();
        acceptor.begin_turn(0);
        assert!(acceptor.next(0).expect("no error").is_some());
        assert!(!acceptor.is_closed(), "two still wait in its queue");
        assert_eq!(turn(&mut acceptor, 0), 2);
        assert!(acceptor.is_closed());
        drop(newcomers);
    }

    #[test]
    fn an_event_for_no_listener_of_ours_wakes_nobody() {
        let (mut acceptor, _poll, _newcomers) = with_newcomers(0);
        acceptor.waiting = false;
        acceptor.note(7);
        assert!(!acceptor.has_work());
    }
}
