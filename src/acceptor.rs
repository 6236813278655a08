//! Which newcomer comes next, and when none may come: the listeners, taken in turn, and the pause for want of
//! descriptors or memory.

use std::{io, mem};

use log::{debug, info, warn};
use mio::{Interest, Registry};

use crate::clock::NEVER;
use crate::listener::{Listener, Verdict};
use crate::token::Source;
use crate::transport::{Peer, Stream};

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
    /// Whether a listener may be ready.
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
            registry.register(listener, Source::Listener(index).into(), Interest::READABLE)?;
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
            listener.ready = true;
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

    /// Leaves off accepting for [`PAUSE_MS`]. One log line, however often a pause is renewed: accept(2) says EMFILE on an
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
            warn!("{cap} connections are open, as many as may be: newcomers wait in the listen queue (said once)");
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

    /// Closes every listener, and with it resets whoever waits in its queue.
    pub fn close(&mut self) {
        self.listeners.clear();
    }
}
