//! The HTTP endpoint of `--metrics`: `GET /metrics` and `GET /healthz`, on the echo's own loop.
//!
//! It shares the poller, the clock and the thread with the echo, and nothing else. Its requests are not connections: they appear
//! in no counter, do not count toward the connection limit, and continue while the server drains. It has its own small slab
//! because it needs few, short-lived requests.
//!
//! Monitoring must keep working when the daemon is in trouble. So a file descriptor is reserved for every possible request
//! ([`Reserve`]), and each request is bounded in what it may hold (8 KiB), cost (a few system calls per iteration) and last
//! (5 s).

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use mio::{Interest, Registry};
use slab::Slab;

use crate::event_loop::clock::NEVER;
use crate::event_loop::counters::Snapshot;
use crate::event_loop::token::EventSource;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::listen::address::Address;
use crate::listen::listener::{AcceptError, Listener};
use crate::listen::socket::{BindError, ListenOptions};
use crate::metrics::durations::IterationDurations;
use crate::metrics::exposition;
use crate::metrics::process::Process;
use crate::metrics::request::{MAX_REQUEST_LEN, parse_request, response};
use crate::metrics::reserve::Reserve;

/// The maximum number of requests at once. Enough for a scraper or two and a few probes; more of them wait in the backlog.
pub(super) const MAX_REQUESTS: usize = 16;

/// How long a request may take from its accept to its close, in milliseconds.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

/// The maximum number of reads and writes for one request in one iteration. A request that arrives whole needs two.
const MAX_STEPS_PER_ITERATION: usize = 4;

/// The maximum number of bytes that are read and discarded after the request, before the connection is closed anyway.
const MAX_DISCARDED: usize = 1 << 20;

/// The maximum number of accepts in one iteration. As many failures as there are slots are tolerated.
const MAX_ACCEPTS_PER_ITERATION: usize = 2 * MAX_REQUESTS;

/// How long accepting pauses after a failure, in milliseconds.
const PAUSE_MS: u64 = 100;

/// The endpoint: its listener and its open requests.
#[derive(Debug)]
pub struct Endpoint {
    listener: Listener,
    requests: Slab<Request>,
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

    /// Binds the address. SO_REUSEPORT is never set, even if the echo has it: a scraper would reach a different process each time.
    pub fn bind(address: SocketAddr) -> Result<Endpoint, BindError> {
        let options = ListenOptions { backlog: 64, reuse_port: false };
        let listener = Address::Ip(address).bind(&options)?.remove(0);
        Ok(Endpoint {
            listener,
            requests: Slab::with_capacity(MAX_REQUESTS),
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
            Some(slot) => {
                if let Some(request) = self.requests.get_mut(slot as usize) {
                    request.ready = true;
                }
            }
        }
    }

    /// Returns when [`Endpoint::update`] must be called even if nothing happens, in milliseconds since the loop started, or
    /// [`NEVER`]. 0 means at once.
    pub fn next_deadline(&self) -> u64 {
        if self.has_work {
            return 0;
        }
        // Linear in the number of requests: usually there are none, and never more than 16.
        self.requests.iter().map(|(_, request)| request.deadline).fold(self.resume_at, u64::min)
    }

    /// Does the work that is due at `now`: accepts, serves each ready request once, and closes those that are done or late.
    pub fn update(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot, lines_dropped: u64) {
        if now < self.next_deadline() {
            return;
        }
        self.has_work = false;
        self.accept(now, registry);
        self.reserve.fill(self.requests.len());
        let mut context = Context {
            reserve: &mut self.reserve,
            iterations: &self.iterations,
            started: self.started,
            snapshot,
            lines_dropped,
        };
        self.requests.retain(|_, request| {
            let is_done = request.ready && request.serve(&mut context);
            !is_done && now < request.deadline // Dropping it calls close(2).
        });
        self.reserve.fill(self.requests.len());
        // No further event reports remaining work, or pending connections for which a slot is free now.
        self.has_work = self.can_accept() || self.requests.iter().any(|(_, request)| request.ready);
    }

    /// Counts an iteration of the loop that took this long.
    pub fn record(&mut self, nanoseconds: u64) {
        self.iterations.record(nanoseconds);
    }

    fn accept(&mut self, now: u64, registry: &Registry) {
        if self.resume_at <= now {
            self.resume_at = NEVER;
        }
        for _ in 0..MAX_ACCEPTS_PER_ITERATION {
            if !self.can_accept() {
                return;
            }
            self.reserve.release();
            match self.listener.accept() {
                Ok(accepted) => self.open(<(Stream, Peer)>::from(accepted).0, now, registry),
                Err(error) => match AcceptError::classify(&error) {
                    AcceptError::WouldBlock => self.listener.ready = false,
                    AcceptError::Interrupted | AcceptError::Aborted => {}
                    // Even a fatal error is not the end of the daemon: the echo continues without metrics.
                    AcceptError::ResourcesExhausted | AcceptError::Fatal => self.resume_at = now + PAUSE_MS,
                },
            }
        }
        self.resume_at = now + PAUSE_MS; // At least half of them failed, as with a network that is down.
    }

    /// Returns whether there may be a pending connection, and room for it.
    fn can_accept(&self) -> bool {
        self.listener.ready && self.resume_at == NEVER && self.requests.len() < MAX_REQUESTS
    }

    fn open(&mut self, mut stream: Stream, now: u64, registry: &Registry) {
        let entry = self.requests.vacant_entry();
        let token = EventSource::Monitor(entry.key() as u32 + 1).into();
        // Registering fails if memory has run out. Then this connection is closed, and the client will try again.
        if registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            // Ready before any event: usually the request has already arrived.
            let state = RequestState::Reading(Vec::new());
            entry.insert(Request { stream, state, ready: true, deadline: now + REQUEST_TIMEOUT_MS });
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

/// A connection to the endpoint: one request and its response.
#[derive(Debug)]
struct Request {
    stream: Stream,
    state: RequestState,
    /// Whether an event has arrived and no system call has returned WouldBlock since.
    ready: bool,
    /// When it is closed, complete or not, in milliseconds.
    deadline: u64,
}

#[derive(Debug)]
enum RequestState {
    /// Reading the request. Holds what has arrived.
    Reading(Vec<u8>),
    /// Writing the response. Holds what is left of it.
    Writing(Vec<u8>),
    /// The response and our FIN are sent. What still arrives (a body, a second request) is discarded until the peer's FIN,
    /// because closing with unread bytes sends RST, which can destroy the response. Holds the number of discarded bytes.
    Lingering(usize),
}

impl Request {
    /// Does what can be done now, within its budget. Returns whether the request is done.
    fn serve(&mut self, context: &mut Context<'_>) -> bool {
        for _ in 0..MAX_STEPS_PER_ITERATION {
            match self.step(context) {
                Ok(is_done @ true) => return is_done,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return false;
                }
                Err(_) => return true, // The peer has disappeared.
            }
        }
        false
    }

    /// Makes one system call and the state transition that follows. Returns whether the request is done.
    fn step(&mut self, context: &mut Context<'_>) -> io::Result<bool> {
        let mut buffer = [0; MAX_REQUEST_LEN];
        match &mut self.state {
            RequestState::Reading(request) => {
                let count = self.stream.read(&mut buffer[request.len()..])?;
                if count == 0 && request.is_empty() {
                    return Ok(true); // A probe that only connects.
                }
                request.extend_from_slice(&buffer[request.len()..][..count]);
                let is_final = count == 0 || request.len() == MAX_REQUEST_LEN;
                if let Some((route, head_only)) = parse_request(request, is_final) {
                    self.state = RequestState::Writing(response(route, head_only, context));
                }
                Ok(false)
            }
            RequestState::Writing(remaining) => {
                let count = self.stream.write(remaining)?;
                remaining.drain(..count);
                if remaining.is_empty() {
                    self.stream.shutdown_write()?;
                    self.state = RequestState::Lingering(0);
                }
                Ok(false)
            }
            RequestState::Lingering(discarded) => {
                let count = self.stream.read(&mut buffer)?;
                *discarded += count;
                Ok(count == 0 || *discarded > MAX_DISCARDED)
            }
        }
    }
}

#[cfg(test)]
#[path = "../../tests/support/property.rs"]
pub(super) mod property;

#[cfg(test)]
pub(super) mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::sample::{Index, select};

    use super::*;
    use crate::event_loop::counters::Counters;
    use crate::metrics::request::tests::{Input, requests};

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

    /// Returns the complete response to these pieces and a FIN, sent over a socket.
    fn response_to<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, draining: bool) -> String {
        let (ours, mut peer) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let stream = Stream::Unix(mio::net::UnixStream::from_std(ours));
        let mut request = Request { stream, state: RequestState::Reading(Vec::new()), ready: true, deadline: NEVER };
        let serve = |request: &mut Request| {
            request.ready = true;
            let mut is_done = false;
            while request.ready && !is_done {
                is_done = with_context(draining, |context| request.serve(context));
            }
            is_done
        };
        for piece in pieces {
            peer.write_all(piece).expect("reading should continue after the response");
            assert!(!serve(&mut request), "done before the peer's FIN");
        }
        peer.shutdown(std::net::Shutdown::Write).expect("FIN");
        assert!(serve(&mut request), "not done after the peer's FIN");
        drop(request);
        let mut response = String::new();
        peer.read_to_string(&mut response).expect("a UTF-8 response, not a reset");
        response
    }

    #[test]
    fn response_does_not_depend_on_how_the_request_is_split() {
        // A request becomes too large by many headers, or by a long one.
        let repeated = (select(vec![&b"a: b\r\n"[..], b"x", b"\r\n"]), 0..9000_usize);
        let large = (requests(), repeated, requests())
            .prop_map(|(front, (piece, count), back)| Input([front.0, piece.repeat(count), back.0].concat()));
        let inputs = (prop_oneof![4 => requests(), 1 => large], collection::vec(any::<Index>(), 0..6), any::<bool>());
        let statuses = RefCell::new(BTreeSet::new());
        property::for_each(2000, &inputs, |(Input(request), cuts, draining)| {
            let mut bounds = vec![0, request.len()];
            bounds.extend(cuts.iter().map(|cut| cut.index(request.len() + 1)));
            bounds.sort_unstable();
            let pieces = bounds.windows(2).map(|bounds| &request[bounds[0]..bounds[1]]);
            let (whole, split) = (response_to([&request[..]], *draining), response_to(pieces, *draining));
            let status = |response: &str| response.split("\r\n").next().unwrap_or("").to_owned();
            assert_eq!(status(&whole), status(&split), "complete, and split at {bounds:?}");
            assert_eq!(whole.is_empty(), request.is_empty(), "every request should be answered");
            statuses.borrow_mut().insert(status(&whole));
        });
        let expected = [
            "",
            "HTTP/1.1 200 OK",
            "HTTP/1.1 400 Bad Request",
            "HTTP/1.1 404 Not Found",
            "HTTP/1.1 405 Method Not Allowed",
            "HTTP/1.1 431 Request Header Fields Too Large",
            "HTTP/1.1 503 Service Unavailable",
        ];
        assert_eq!(Vec::from_iter(statuses.into_inner()), expected, "exactly those of the contract");
    }
}
