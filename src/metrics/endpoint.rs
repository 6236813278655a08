//! The HTTP of `--metrics`: `GET /metrics` and `GET /healthz`, on the echo's own loop.
//!
//! A second kind of source beside the echo, with a slab of its own: few and fixed is not many and moving. It shares the poller,
//! the clock and the one thread, and nothing else: its exchanges are no connections, count nowhere, and
//! go on while the server drains.
//!
//! Whoever watches must be let in when things go wrong. So each exchange that could be has its descriptor from the
//! start (`Reserve`), and each has bounds on what it may hold (8 KiB of request), cost (a few reads a turn) and
//! last (5 s).

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
use crate::metrics::request::{parse_request, response};
use crate::metrics::reserve::Reserve;

/// Exchanges at once. A scraper or two and a few probes; whoever is one too many waits in the listen queue.
pub(super) const MAX_REQUESTS: usize = 16;

/// How long an exchange may take from its accept to its close.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

/// The longest request line with all its headers.
pub(super) const MAX_REQUEST_LEN: usize = 8192;

/// Reads and writes of one exchange in one turn. Two are enough for a request that comes whole.
const MAX_STEPS_PER_ITERATION: usize = 4;

/// How much of what comes after the request is read and dropped before we close all the same.
const MAX_DISCARDED: usize = 1 << 20;

/// Accepts in one turn: as many failures as there are slots are borne with.
const MAX_ACCEPTS_PER_ITERATION: usize = 2 * MAX_REQUESTS;

/// How long accepting pauses where it fails.
const PAUSE_MS: u64 = 100;

/// The endpoint's listener and whoever asks there.
#[derive(Debug)]
pub struct Endpoint {
    listener: Listener,
    requests: Slab<Request>,
    reserve: Reserve,
    /// When a pause of accepting ends; [`NEVER`] while there is none.
    resume_at: u64,
    /// Whether an event has come that no turn has seen.
    has_work: bool,
    iterations: IterationDurations,
    /// Since 1970.
    started: Duration,
}

impl Endpoint {
    /// Descriptors that it holds, all of them from the start: the listener, and the reserve.
    pub const DESCRIPTORS: usize = 1 + Reserve::SIZE;

    /// Binds the address. No SO_REUSEPORT, whatever the echo does: a scraper would meet now this process, now that.
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

    /// Where it listens, as it is told on stdout: `http://127.0.0.1:9100`.
    pub fn local(&self) -> String {
        self.listener.local().replacen("tcp:", "http:", 1)
    }

    /// Makes the listener known to the poller, and fills the reserve.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.reserve.fill(0);
        self.listener.register(registry, EventSource::Monitor(0).into())
    }

    /// Marks what an event is about: 0 is the listener, others are exchanges. There is no generation here. An event for a former
    /// owner of a slot makes the new one try once more than needed, which is harmless.
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

    /// When [`Endpoint::turn`] wants to be called even if nothing happens, in milliseconds since the loop
    /// started, or [`NEVER`]; 0 where work is left.
    pub fn next_deadline(&self) -> u64 {
        if self.has_work {
            return 0;
        }
        // Linear in the exchanges: there are none as a rule, and sixteen at most.
        self.requests.iter().map(|(_, request)| request.deadline).fold(self.resume_at, u64::min)
    }

    /// Does what there is to do: lets in newcomers, runs each ready exchange once, ends those whose time is over.
    pub fn update(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot, lines_dropped: u64) {
        if now < self.next_deadline() {
            return;
        }
        self.has_work = false;
        self.accept(now, registry);
        self.reserve.fill(self.requests.len());
        let mut page = Page {
            reserve: &mut self.reserve,
            iterations: &self.iterations,
            started: self.started,
            snapshot,
            lines_dropped,
        };
        self.requests.retain(|_, request| {
            let over = request.ready && request.turn(&mut page);
            !over && now < request.deadline // Dropping it is close(2).
        });
        self.reserve.fill(self.requests.len());
        // Whoever is left over, or waits for a slot that is free now, is not told of by another event.
        self.has_work = self.can_accept() || self.requests.iter().any(|(_, request)| request.ready);
    }

    /// Counts a turn of the loop that took so long.
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
                    // Not Fatal, either: the echo goes on without its metrics.
                    AcceptError::ResourcesExhausted | AcceptError::Fatal => self.resume_at = now + PAUSE_MS,
                },
            }
        }
        self.resume_at = now + PAUSE_MS; // Half of them failed, at least, as with a network that is down.
    }

    /// Whether somebody may wait who could be let in now.
    fn can_accept(&self) -> bool {
        self.listener.ready && self.resume_at == NEVER && self.requests.len() < MAX_REQUESTS
    }

    fn open(&mut self, mut stream: Stream, now: u64, registry: &Registry) {
        let entry = self.requests.vacant_entry();
        let token = EventSource::Monitor(entry.key() as u32 + 1).into();
        // Fails for want of memory. Then this one is closed; it will ask again.
        if registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            let state = RequestState::Reading(Vec::new());
            // Ready before any event: as a rule the request is there already.
            entry.insert(Request { stream, state, ready: true, deadline: now + REQUEST_TIMEOUT_MS });
        }
    }
}

/// Makes the page of metrics when it is asked for.
pub(super) struct Page<'a> {
    pub(super) reserve: &'a mut Reserve,
    iterations: &'a IterationDurations,
    started: Duration,
    pub(super) snapshot: &'a Snapshot,
    lines_dropped: u64,
}

impl Page<'_> {
    pub(super) fn metrics(&mut self) -> String {
        self.reserve.release(); // For the files of /proc.
        let process = Process::read(self.snapshot.counters.open(), self.started);
        self.reserve.refill();
        exposition::page(self.snapshot, self.lines_dropped, self.iterations, &process)
    }
}

/// One request and its answer.
#[derive(Debug)]
struct Request {
    stream: Stream,
    state: RequestState,
    /// An event has come, and no call has said WouldBlock since.
    ready: bool,
    /// When it is closed, finished or not.
    deadline: u64,
}

#[derive(Debug)]
enum RequestState {
    /// The request comes in: so much is there.
    Reading(Vec<u8>),
    /// The answer goes out: so much is left of it.
    Writing(Vec<u8>),
    /// The answer and our FIN are out. What still comes (a body, a second request) is read and dropped until the peer's
    /// FIN, because closing with unread bytes sends RST, which can destroy the answer. So many bytes were.
    Lingering(usize),
}

impl Request {
    /// Goes on as far as it can within its budget. Returns whether it is over.
    fn turn(&mut self, page: &mut Page<'_>) -> bool {
        for _ in 0..MAX_STEPS_PER_ITERATION {
            match self.step(page) {
                Ok(over @ true) => return over,
                Ok(false) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready = false;
                    return false;
                }
                Err(_) => return true, // The peer is gone.
            }
        }
        false
    }

    /// One system call, and what follows from it. Returns whether the exchange is over.
    fn step(&mut self, page: &mut Page<'_>) -> io::Result<bool> {
        let mut buffer = [0; MAX_REQUEST_LEN];
        match &mut self.state {
            RequestState::Reading(request) => {
                let read = self.stream.read(&mut buffer[request.len()..])?;
                if read == 0 && request.is_empty() {
                    return Ok(true); // A probe that only connects.
                }
                request.extend_from_slice(&buffer[request.len()..][..read]);
                let finished = read == 0 || request.len() == MAX_REQUEST_LEN;
                if let Some((route, head_only)) = parse_request(request, finished) {
                    self.state = RequestState::Writing(response(route, head_only, page));
                }
                Ok(false)
            }
            RequestState::Writing(left) => {
                let written = self.stream.write(left)?;
                left.drain(..written);
                if left.is_empty() {
                    self.stream.shutdown_write()?;
                    self.state = RequestState::Lingering(0);
                }
                Ok(false)
            }
            RequestState::Lingering(discarded) => {
                let read = self.stream.read(&mut buffer)?;
                *discarded += read;
                Ok(read == 0 || *discarded > MAX_DISCARDED)
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

    /// Does something with the page of a daemon that has done nothing yet.
    pub(in crate::metrics) fn with_page<T>(draining: bool, work: impl FnOnce(&mut Page<'_>) -> T) -> T {
        work(&mut Page {
            reserve: &mut Reserve::default(),
            iterations: &IterationDurations::default(),
            started: Duration::ZERO,
            snapshot: &Snapshot { counters: Counters::default(), accept_paused: false, draining },
            lines_dropped: 0,
        })
    }

    /// The whole answer to what comes in these pieces, over a socket, and then a FIN.
    fn response_to<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, draining: bool) -> String {
        let (ours, mut peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let stream = Stream::Unix(mio::net::UnixStream::from_std(ours));
        let mut request = Request { stream, state: RequestState::Reading(Vec::new()), ready: true, deadline: NEVER };
        let iterations = |request: &mut Request| {
            request.ready = true;
            let mut over = false;
            while request.ready && !over {
                over = with_page(draining, |page| request.turn(page));
            }
            over
        };
        for piece in pieces {
            peer.write_all(piece).expect("it reads on, whatever it has answered");
            assert!(!iterations(&mut request), "over before the peer has finished");
        }
        peer.shutdown(std::net::Shutdown::Write).expect("finished");
        assert!(iterations(&mut request), "not over although the peer has finished");
        drop(request);
        let mut response = String::new();
        peer.read_to_string(&mut response).expect("an answer in UTF-8, not a reset");
        response
    }

    #[test]
    fn the_answer_is_one_of_the_contract_and_the_same_however_the_request_is_split() {
        // What makes a request too large: many headers, a long one.
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
            assert_eq!(status(&whole), status(&split), "whole, and split at {bounds:?}");
            assert_eq!(whole.is_empty(), request.is_empty(), "whoever asks is answered");
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
        assert_eq!(Vec::from_iter(statuses.into_inner()), expected, "each of the contract, and no other");
    }
}
