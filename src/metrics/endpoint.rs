//! The HTTP endpoint of `--metrics`: `GET /metrics` and `GET /healthz`, on the echo's own loop.
//!
//! It shares the poller, the clock and the thread with the echo, and nothing else. Its requests are not connections: they appear
//! in no counter, do not count toward the connection limit, and continue while the server drains. It has its own small slab
//! because it needs few, short-lived requests.
//!
//! Monitoring must keep working when the daemon is in trouble. So a file descriptor is reserved for every possible request
//! (a reserve), and each request is bounded in what it may hold (8 KiB), cost (a few system calls per iteration) and last
//! (5 s). When all slots are taken, the oldest connection that is not being answered makes way.

use std::io;
use std::time::{Duration, SystemTime};

use mio::{Interest, Registry};

use crate::event_loop::clock::NEVER;
use crate::event_loop::counters::Snapshot;
use crate::event_loop::token::EventSource;
use crate::event_loop::transport::{Peer, Stream};
use crate::listen::address::Address;
use crate::listen::listener::{AcceptError, Listener};
use crate::listen::socket::{BindError, ListenOptions};
use crate::metrics::durations::IterationDurations;
use crate::metrics::exposition;
use crate::metrics::process::Process;
use crate::metrics::reserve::Reserve;
use crate::metrics::slots::{MAX_REQUESTS, Slots};

/// The maximum number of accepts in one iteration. With an eviction each, they cost about half a millisecond.
const MAX_ACCEPTS_PER_ITERATION: usize = 2 * MAX_REQUESTS;

/// The maximum number of failed accepts in one iteration. After that accepting pauses, as with a network that is down.
const MAX_FAILURES_PER_ITERATION: usize = MAX_REQUESTS;

/// How long accepting pauses after a failure, in milliseconds.
const PAUSE_MS: u64 = 100;

/// The endpoint: its listener and its open requests.
#[derive(Debug)]
pub struct Endpoint {
    listener: Listener,
    slots: Slots,
    reserve: Reserve,
    /// When a pause of accepting ends, in milliseconds; [`NEVER`] while there is none.
    resume_at: u64,
    /// Whether there is work that needs no further event.
    has_work: bool,
    iterations: IterationDurations,
    /// The start of the process, since 1970.
    started: Duration,
}

impl Endpoint {
    /// The number of descriptors that the endpoint holds, all of them from the start: the listener and the reserve.
    pub const DESCRIPTORS: usize = 1 + Reserve::SIZE;

    /// Binds an address that has one listener: a port (all interfaces, dual-stack), or an IP address and a port.
    ///
    /// SO_REUSEPORT is never set, even if the echo has it: a scraper would reach a different process each time. The backlog is
    /// the kernel's maximum, so that many silent clients do not keep others from connecting.
    pub fn bind(address: &Address) -> Result<Endpoint, BindError> {
        let options = ListenOptions { backlog: u32::MAX, reuse_port: false, socket_buffer: None };
        let listener = address.bind(&options)?.remove(0);
        Ok(Endpoint {
            listener,
            slots: Slots::new(),
            reserve: Reserve::default(),
            resume_at: NEVER,
            has_work: false,
            iterations: IterationDurations::default(),
            started: SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
        })
    }

    /// Returns the address of the listener as it is announced on stdout: `http://127.0.0.1:9100`.
    pub fn local(&self) -> String {
        self.listener.local().replacen("tcp:", "http:", 1)
    }

    /// Registers the listener with the poller, and fills the reserve.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.reserve.fill(0);
        self.listener.register(registry, EventSource::Monitor(0).into())
    }

    /// Records an event: index 0 is the listener, the others are requests. Requests have no generation: a stale event for a
    /// reused slot costs the new request one extra attempt, which is harmless.
    pub fn on_event(&mut self, index: u32) {
        self.has_work = true;
        match index.checked_sub(1) {
            None => self.listener.ready = true,
            Some(slot) => self.slots.mark_ready(slot as usize),
        }
    }

    /// Returns when [`Endpoint::update`] must be called even if nothing happens, in milliseconds since the loop started, or
    /// [`NEVER`]. 0 means at once.
    pub fn next_deadline(&self) -> u64 {
        if self.has_work { 0 } else { self.slots.next_deadline().min(self.resume_at) }
    }

    /// Does the work that is due at `now`: serves requests, and accepts new ones.
    pub fn update(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot, lines_dropped: u64) {
        if now < self.next_deadline() {
            return;
        }
        let Endpoint { slots, reserve, iterations, .. } = self;
        let mut context = Context { reserve, iterations, started: self.started, snapshot, lines_dropped };
        slots.serve_ready(now, &mut context);
        self.accept(now, registry, snapshot, lines_dropped);
        self.reserve.fill(self.slots.len());
        // No further event reports remaining work, or connections that are still in the backlog.
        self.has_work = self.can_accept() || self.slots.any_ready();
    }

    /// Counts an iteration of the loop that took this long.
    pub fn record(&mut self, nanoseconds: u64) {
        self.iterations.record(nanoseconds);
    }

    fn accept(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot, lines_dropped: u64) {
        if self.resume_at <= now {
            self.resume_at = NEVER;
        }
        let mut failures = 0;
        for _ in 0..MAX_ACCEPTS_PER_ITERATION {
            if !self.can_accept() {
                return;
            }
            self.reserve.release();
            match self.listener.accept() {
                Ok(accepted) => {
                    let Endpoint { slots, reserve, iterations, .. } = self;
                    if slots.is_full() {
                        slots.evict(&mut Context {
                            reserve,
                            iterations,
                            started: self.started,
                            snapshot,
                            lines_dropped,
                        });
                        reserve.refill();
                    }
                    self.open(<(Stream, Peer)>::from(accepted).0, now, registry);
                }
                Err(error) => match AcceptError::classify(&error) {
                    AcceptError::WouldBlock => self.listener.ready = false,
                    AcceptError::Interrupted | AcceptError::Aborted if failures < MAX_FAILURES_PER_ITERATION => {
                        failures += 1
                    }
                    // Even a fatal error is not the end of the daemon: the echo continues without metrics.
                    _ => self.resume_at = now + PAUSE_MS,
                },
            }
        }
    }

    /// Returns whether there may be a connection in the backlog. If all slots are taken, it gets that of another one.
    fn can_accept(&self) -> bool {
        self.listener.ready && self.resume_at == NEVER
    }

    fn open(&mut self, mut stream: Stream, now: u64, registry: &Registry) {
        let token = EventSource::Monitor(self.slots.next_slot() as u32 + 1).into();
        // Registering fails if memory has run out. Then this connection is closed, and the client will try again.
        if registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            self.slots.insert(stream, now);
        }
    }
}

/// What a response is made from.
pub(super) struct Context<'a> {
    reserve: &'a mut Reserve,
    iterations: &'a IterationDurations,
    started: Duration,
    pub(super) snapshot: &'a Snapshot,
    lines_dropped: u64,
}

impl Context<'_> {
    /// Returns the page of metrics.
    pub(super) fn metrics(&mut self) -> String {
        self.reserve.release(); // For the files of /proc.
        let process = Process::read(self.snapshot.counters.open(), self.started);
        self.reserve.refill();
        exposition::page(self.snapshot, self.lines_dropped, self.iterations, &process)
    }
}

#[cfg(test)]
#[path = "../../tests/support/property.rs"]
pub(super) mod property;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::event_loop::counters::Counters;

    /// Runs `work` with the context of a daemon that has done nothing yet.
    pub(in crate::metrics) fn with_context<T>(draining: bool, work: impl FnOnce(&mut Context<'_>) -> T) -> T {
        work(&mut Context {
            reserve: &mut Reserve::default(),
            iterations: &IterationDurations::default(),
            started: Duration::ZERO,
            snapshot: &Snapshot { counters: Counters::default(), max_connections: 3, accept_paused: false, draining },
            lines_dropped: 0,
        })
    }

    #[test]
    fn port_alone_listens_on_ipv4_and_ipv6() {
        let endpoint = Endpoint::bind(&Address::Port(0)).expect("listener");
        let local = endpoint.local();
        if !local.starts_with("http://[::]:") {
            return; // Without IPv6, a port means 0.0.0.0; the listener has logged that.
        }
        let port: u16 = local.rsplit(':').next().and_then(|port| port.parse().ok()).expect("port");
        for ip in ["127.0.0.1", "::1"] {
            std::net::TcpStream::connect((ip, port)).unwrap_or_else(|error| panic!("{ip}: {error}"));
        }
    }
}
