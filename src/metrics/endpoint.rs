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
use std::time::{Duration, SystemTime};

use mio::{Interest, Registry};
use slab::Slab;
use socket2::{Domain, Socket, Type};

use crate::event_loop::clock::NEVER;
use crate::event_loop::counters::Snapshot;
use crate::event_loop::token::EventSource;
use crate::event_loop::transport::{Peer, Stream, Transport};
use crate::listen::address::Address;
use crate::listen::listener::{AcceptError, Listener};
use crate::listen::socket::{BindError, ListenOptions};
use crate::metrics::exposition::{self, IterationDurations, Process};

/// Exchanges at once. A scraper or two and a few probes; whoever is one too many waits in the listen queue.
const MAX_REQUESTS: usize = 16;

/// How long an exchange may take from its accept to its close.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

/// The longest request line with all its headers.
const MAX_REQUEST_LEN: usize = 8192;

/// More headers than any scraper sends.
const MAX_HEADERS: usize = 64;

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
    exchanges: Slab<Exchange>,
    reserve: Reserve,
    /// When a pause of accepting ends; [`NEVER`] while there is none.
    resume_at: u64,
    /// Whether an event has come that no turn has seen.
    noted: bool,
    turns: IterationDurations,
    /// Since 1970.
    started: Duration,
}

impl Endpoint {
    /// Descriptors that it holds, all of them from the start: the listener, and the reserve.
    pub const DESCRIPTORS: usize = 1 + Reserve::SIZE;

    /// Binds the address. No SO_REUSEPORT, whatever the echo does: a scraper would meet now this process, now that.
    pub fn bind(address: &Address) -> Result<Endpoint, BindError> {
        let options = ListenOptions { backlog: 64, reuse_port: false, socket_buffer: None };
        let listener = address.bind(&options)?.remove(0);
        Ok(Endpoint {
            listener,
            exchanges: Slab::with_capacity(MAX_REQUESTS),
            reserve: Reserve::default(),
            resume_at: NEVER,
            noted: false,
            turns: IterationDurations::default(),
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
        self.noted = true;
        match index.checked_sub(1) {
            None => self.listener.ready = true,
            Some(slot) => {
                if let Some(exchange) = self.exchanges.get_mut(slot as usize) {
                    exchange.ready = true;
                }
            }
        }
    }

    /// When [`Endpoint::turn`] wants to be called even if nothing happens, in milliseconds since the loop
    /// started, or [`NEVER`]; 0 where work is left.
    pub fn next_deadline(&self) -> u64 {
        if self.noted {
            return 0;
        }
        // Linear in the exchanges: there are none as a rule, and sixteen at most.
        self.exchanges.iter().map(|(_, exchange)| exchange.due).fold(self.resume_at, u64::min)
    }

    /// Does what there is to do: lets in newcomers, runs each ready exchange once, ends those whose time is over.
    pub fn update(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot, lines_dropped: u64) {
        if now < self.next_deadline() {
            return;
        }
        self.noted = false;
        self.accept(now, registry);
        self.reserve.fill(self.exchanges.len());
        let mut page =
            Page { reserve: &mut self.reserve, turns: &self.turns, started: self.started, snapshot, lines_dropped };
        self.exchanges.retain(|_, exchange| {
            let over = exchange.ready && exchange.turn(&mut page);
            !over && now < exchange.due // Dropping it is close(2).
        });
        self.reserve.fill(self.exchanges.len());
        // Whoever is left over, or waits for a slot that is free now, is not told of by another event.
        self.noted = self.can_accept() || self.exchanges.iter().any(|(_, exchange)| exchange.ready);
    }

    /// Counts a turn of the loop that took so long.
    pub fn record(&mut self, nanoseconds: u64) {
        self.turns.record(nanoseconds);
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
        self.listener.ready && self.resume_at == NEVER && self.exchanges.len() < MAX_REQUESTS
    }

    fn open(&mut self, mut stream: Stream, now: u64, registry: &Registry) {
        let entry = self.exchanges.vacant_entry();
        let token = EventSource::Monitor(entry.key() as u32 + 1).into();
        // Fails for want of memory. Then this one is closed; it will ask again.
        if registry.register(&mut stream, token, Interest::READABLE | Interest::WRITABLE).is_ok() {
            let state = State::Asked(Vec::new());
            // Ready before any event: as a rule the request is there already.
            entry.insert(Exchange { stream, state, ready: true, due: now + REQUEST_TIMEOUT_MS });
        }
    }
}

/// Descriptors kept for the exchanges that may come, and one for the files under /proc. One is closed right before another is
/// opened, so that an exchange gets its own also when connections have taken all the others.
///
/// This is not the spare descriptor of an accept loop that lets a newcomer in to turn it away: that one spins where
/// accept(2) says EMFILE on an empty queue. Here the newcomer stays, and with a free descriptor, an empty queue is
/// told as one.
#[derive(Debug, Default)]
struct Reserve {
    /// Unconnected sockets: each is a file of its own, so it counts against the system's limit (ENFILE) as well as against
    /// ours, which duplicates would not, and none needs a path, which /dev/null would.
    sockets: Vec<Socket>,
}

impl Reserve {
    const SIZE: usize = MAX_REQUESTS + 1;

    /// Closes one.
    fn release(&mut self) {
        self.sockets.pop();
    }

    /// Takes one back. Where that fails, the end of the next turn tries again.
    fn refill(&mut self) {
        self.sockets.extend(Socket::new(Domain::UNIX, Type::STREAM, None));
    }

    /// Takes back what is not used by so many exchanges.
    fn fill(&mut self, exchanges: usize) {
        let wanted = Reserve::SIZE - exchanges;
        self.sockets.truncate(wanted);
        for _ in self.sockets.len()..wanted {
            self.refill();
        }
    }
}

/// Makes the page of metrics when it is asked for.
struct Page<'a> {
    reserve: &'a mut Reserve,
    turns: &'a IterationDurations,
    started: Duration,
    snapshot: &'a Snapshot,
    lines_dropped: u64,
}

impl Page<'_> {
    fn metrics(&mut self) -> String {
        self.reserve.release(); // For the files of /proc.
        let process = Process::read(self.snapshot.counters.open(), self.started);
        self.reserve.refill();
        exposition::page(self.snapshot, self.lines_dropped, self.turns, &process)
    }
}

/// One request and its answer.
#[derive(Debug)]
struct Exchange {
    stream: Stream,
    state: State,
    /// An event has come, and no call has said WouldBlock since.
    ready: bool,
    /// When it is closed, finished or not.
    due: u64,
}

#[derive(Debug)]
enum State {
    /// The request comes in: so much is there.
    Asked(Vec<u8>),
    /// The answer goes out: so much is left of it.
    Answering(Vec<u8>),
    /// The answer and our FIN are out. What still comes (a body, a second request) is read and dropped until the peer's
    /// FIN, because closing with unread bytes sends RST, which can destroy the answer. So many bytes were.
    Lingering(usize),
}

impl Exchange {
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
            State::Asked(request) => {
                let read = self.stream.read(&mut buffer[request.len()..])?;
                if read == 0 && request.is_empty() {
                    return Ok(true); // A probe that only connects.
                }
                request.extend_from_slice(&buffer[request.len()..][..read]);
                let finished = read == 0 || request.len() == MAX_REQUEST_LEN;
                if let Some((resource, head_only)) = judge(request, finished) {
                    self.state = State::Answering(answer(resource, head_only, page));
                }
                Ok(false)
            }
            State::Answering(left) => {
                let written = self.stream.write(left)?;
                left.drain(..written);
                if left.is_empty() {
                    self.stream.shutdown_write()?;
                    self.state = State::Lingering(0);
                }
                Ok(false)
            }
            State::Lingering(discarded) => {
                let read = self.stream.read(&mut buffer)?;
                *discarded += read;
                Ok(read == 0 || *discarded > MAX_DISCARDED)
            }
        }
    }
}

/// What a request gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resource {
    Metrics,
    Health,
    BadRequest,
    NotFound,
    MethodNotAllowed,
    RequestTooLarge,
}

/// What these bytes ask for, and whether only its head is wanted. `None`: that cannot be told yet; `finished` means that no more
/// bytes will come, or may.
///
/// Called after every read, so a request that comes byte by byte is parsed as often: a few microseconds
/// each, about what its packet costs. And what is no HTTP is answered at once, not after 5 s.
fn judge(request: &[u8], finished: bool) -> Option<(Resource, bool)> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut parsed = httparse::Request::new(&mut headers);
    match parsed.parse(request) {
        Ok(httparse::Status::Complete(_)) => {}
        Ok(httparse::Status::Partial) if !finished => return None,
        Ok(httparse::Status::Partial) if request.len() < MAX_REQUEST_LEN => return Some((Resource::BadRequest, false)),
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return Some((Resource::RequestTooLarge, false));
        }
        // Also the preface of HTTP/2, which is made to fail here (RFC 9113, 3.4), and TLS.
        Err(_) => return Some((Resource::BadRequest, false)),
    }
    // RFC 9112, 3.2: without exactly one Host, HTTP/1.1 is a bad request. HTTP/1.0 did not know it.
    let hosts = parsed.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host")).count();
    if hosts > 1 || parsed.version == Some(1) && hosts == 0 {
        return Some((Resource::BadRequest, false));
    }
    let resource = match path(parsed.path.unwrap_or("")) {
        "/metrics" => Resource::Metrics,
        "/healthz" => Resource::Health,
        _ => Resource::NotFound,
    };
    Some(match (resource, parsed.method) {
        (resource, Some("HEAD")) => (resource, true),
        (Resource::NotFound, _) | (_, Some("GET")) => (resource, false),
        _ => (Resource::MethodNotAllowed, false),
    })
}

/// The path of a request's target, without a query. A proxy sends the whole URL (RFC 9112, 3.2.2: every server must
/// understand it).
fn path(target: &str) -> &str {
    let from_path = match target.split_once("://") {
        Some(("http" | "https", rest)) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        _ => target,
    };
    from_path.split_once('?').map_or(from_path, |(path, _)| path)
}

/// The whole answer. One that fits into the kernel's buffers: a peer that never reads costs us a slot for 5 s, nothing more.
fn answer(resource: Resource, head_only: bool, page: &mut Page<'_>) -> Vec<u8> {
    const TEXT: &str = "text/plain; charset=utf-8";
    const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
    let (status, content_type, body) = match resource {
        Resource::Metrics => ("200 OK", METRICS, page.metrics()),
        Resource::Health if page.snapshot.draining => ("503 Service Unavailable", TEXT, "draining\n".into()),
        Resource::Health => ("200 OK", TEXT, "ok\n".into()),
        Resource::BadRequest => ("400 Bad Request", TEXT, "bad request\n".into()),
        Resource::NotFound => ("404 Not Found", TEXT, "there are /metrics and /healthz\n".into()),
        Resource::MethodNotAllowed => ("405 Method Not Allowed", TEXT, "GET and HEAD are allowed\n".into()),
        Resource::RequestTooLarge => ("431 Request Header Fields Too Large", TEXT, "at most 8 KiB\n".into()),
    };
    let allow = if resource == Resource::MethodNotAllowed { "Allow: GET, HEAD\r\n" } else { "" };
    let date = httpdate::fmt_http_date(SystemTime::now());
    let length = body.len();
    let mut answer = format!(
        "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
         {allow}Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    );
    if !head_only {
        answer.push_str(&body);
    }
    answer.into_bytes()
}

#[cfg(test)]
#[path = "../../tests/support/property.rs"]
mod property;

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::collections::BTreeSet;
    use std::iter;

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop, prop_oneof};
    use proptest::sample::{Index, select};

    use super::*;
    use crate::event_loop::counters::Counters;

    /// What a request is told when it is all there.
    fn asked(request: &[u8]) -> Option<Resource> {
        judge(request, false).map(|(resource, _)| resource)
    }

    /// The answer to a request, as text.
    fn answered(request: &[u8], draining: bool) -> String {
        let (resource, head_only) = judge(request, false).expect("a whole request");
        let answer = with_page(draining, |page| answer(resource, head_only, page));
        String::from_utf8(answer).expect("text")
    }

    /// Does something with the page of a daemon that has done nothing yet.
    fn with_page<T>(draining: bool, work: impl FnOnce(&mut Page<'_>) -> T) -> T {
        work(&mut Page {
            reserve: &mut Reserve::default(),
            turns: &IterationDurations::default(),
            started: Duration::ZERO,
            snapshot: &Snapshot { counters: Counters::default(), accept_paused: false, draining },
            lines_dropped: 0,
        })
    }

    #[test]
    fn a_request_is_told_what_it_asks_for() {
        use Resource::{BadRequest, Health, MethodNotAllowed, Metrics, NotFound};
        for (request, resource) in [
            ("GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Metrics),
            ("GET /metrics HTTP/1.0\r\n\r\n", Metrics),
            ("GET /metrics HTTP/1.0\n\n", Metrics),
            ("HEAD /metrics HTTP/1.1\r\nhost: a\r\nAccept: */*\r\n\r\n", Metrics),
            ("GET /metrics?name=a HTTP/1.1\r\nHost: a\r\n\r\n", Metrics),
            ("GET http://a:9100/metrics HTTP/1.1\r\nHost: a:9100\r\n\r\n", Metrics),
            ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", Health),
            ("GET /healthz HTTP/1.1\r\nHost: a\r\n\r\nGET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", Health),
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("GET http://a HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("GET /metrics/ HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("POST /nowhere HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", NotFound),
            ("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc", MethodNotAllowed),
            ("DELETE /healthz HTTP/1.1\r\nHost: a\r\n\r\n", MethodNotAllowed),
            ("GET /metrics HTTP/1.1\r\n\r\n", BadRequest),
            ("GET /metrics HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", BadRequest),
            ("GET /metrics\r\n", BadRequest),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", BadRequest),
            ("hello\r\n", BadRequest),
            ("\u{16}\u{3}\u{1}", BadRequest),
            ("GET /metrics HTTP/1.1\r\nno colon\r\n\r\n", BadRequest),
        ] {
            assert_eq!(asked(request.as_bytes()), Some(resource), "{request:?}");
        }
    }

    #[test]
    fn a_request_is_waited_for_as_long_as_it_can_become_one() {
        let request = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
        for length in 0..request.len() {
            assert_eq!(asked(&request[..length]), None, "{length} bytes");
        }
        assert_eq!(judge(&request[..20], true), Some((Resource::BadRequest, false)), "the peer has finished within it");
    }

    #[test]
    fn a_request_that_is_too_large_is_told_so() {
        let mut request = b"GET /metrics HTTP/1.1\r\nHost: a\r\nX: ".to_vec();
        request.resize(MAX_REQUEST_LEN, b'x');
        assert_eq!(judge(&request, true), Some((Resource::RequestTooLarge, false)));
        request.truncate(MAX_REQUEST_LEN - 4);
        request.extend_from_slice(b"\r\n\r\n");
        assert_eq!(judge(&request, true), Some((Resource::Metrics, false)), "8 KiB are not too large");
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(asked(many.as_bytes()), Some(Resource::RequestTooLarge));
    }

    #[test]
    fn head_is_the_answer_to_get_without_its_body() {
        // The metrics would not do: the process's CPU time moves.
        let get = answered(b"GET /healthz HTTP/1.0\r\n\r\n", false);
        let head = answered(b"HEAD /healthz HTTP/1.0\r\n\r\n", false);
        assert!(head.ends_with("\r\n\r\n") && head.contains("\r\nContent-Length: 3\r\n"));
        let without_date = |text: &str| text.lines().filter(|line| !line.starts_with("Date:")).collect::<String>();
        assert_eq!(without_date(&get), without_date(&head) + "ok");
    }

    #[test]
    fn health_is_503_during_a_drain() {
        let request = b"GET /healthz HTTP/1.0\r\n\r\n";
        assert!(answered(request, false).starts_with("HTTP/1.1 200 OK\r\n"));
        assert!(answered(request, true).starts_with("HTTP/1.1 503 Service Unavailable\r\n"));
        assert!(answered(b"GET /metrics HTTP/1.0\r\n\r\n", true).starts_with("HTTP/1.1 200 OK\r\n"));
    }

    #[test]
    fn an_answer_says_how_long_it_is_and_that_it_is_the_last() {
        for request in
            ["GET /metrics HTTP/1.0\r\n\r\n", "POST /metrics HTTP/1.0\r\n\r\n", "GET / HTTP/1.0\r\n\r\n", "-\r\n"]
        {
            let answer = answered(request.as_bytes(), false);
            let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
            assert!(head.contains("\r\nConnection: close"), "{head}");
            assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())), "{head}");
            assert_eq!(head.contains("\r\nAllow: GET, HEAD"), head.contains(" 405 "), "{head}");
        }
    }

    #[test]
    fn the_reserve_and_the_exchanges_hold_as_many_descriptors_together_at_all_times() {
        let mut reserve = Reserve::default();
        for exchanges in [0, 1, MAX_REQUESTS, 3, 0] {
            reserve.fill(exchanges);
            assert_eq!(reserve.sockets.len() + exchanges, Reserve::SIZE);
        }
    }

    const METHODS: &[&[u8]] = &[b"GET ", b"GET ", b"HEAD ", b"POST ", b"get "];
    const TARGETS: &[&[u8]] =
        &[b"/metrics", b"/healthz", b"/", b"?", b"a=b", b"http://host", b"http://", b"*", b"\xc3\xa4"];
    const VERSIONS: &[&[u8]] = &[b" HTTP/1.0\r\n", b" HTTP/1.0\n", b" HTTP/1.1\r\nHost: a\r\n", b" HTTP/1.1\r\n"];
    const HEADERS: &[&[u8]] = &[b"Accept: */*\r\n", b"A:\n", b"Content-Length: 5\r\n", b"Host: b\r\n"];
    /// What may stand anywhere, and mostly should not.
    const STRAY: &[&[u8]] = &[
        b"\r\n",
        b"\n",
        b"\r",
        b": ",
        b" ",
        b"\0",
        b"\xff\xfe",
        b"/metrics",
        b" HTTP/1.1",
        b" HTTP/2.0",
        b"GET /metrics HTTP/1.0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01",
    ];

    struct Request(Vec<u8>);

    impl std::fmt::Debug for Request {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "b\"{}\"", self.0.escape_ascii())
        }
    }

    /// Requests, glued of what stands in them, cut and changed; and now and then any bytes.
    fn requests() -> impl Strategy<Value = Request> {
        // Which bytes stay. Cutting down begins here: it takes away each that the failure does not need.
        let kept = collection::vec(prop::bool::weighted(0.995), 64);
        let change = prop::option::weighted(0.3, (any::<Index>(), any::<u8>()));
        let line = (select(METHODS), collection::vec(select(TARGETS), 1..3), select(VERSIONS));
        let line = line.prop_map(|(method, target, version)| [method, &target.concat(), version].concat());
        let stray = prop::option::weighted(0.2, select(STRAY));
        let end = prop::bool::weighted(0.8).prop_map(|ends| if ends { &b"\r\n"[..] } else { b"" });
        let parts = (prop::option::weighted(0.9, line), collection::vec(select(HEADERS), 0..3), stray, end);
        let glued = (kept, change, parts).prop_map(|(kept, change, (line, headers, stray, end))| {
            let mut request = [&line.unwrap_or_default(), &headers.concat(), stray.unwrap_or_default(), end].concat();
            if let Some((place, byte)) = change.filter(|_| !request.is_empty()) {
                *place.get_mut(&mut request) = byte;
            }
            let kept = kept.into_iter().chain(iter::repeat(true));
            request.into_iter().zip(kept).filter_map(|(byte, stays)| stays.then_some(byte)).collect()
        });
        prop_oneof![9 => glued, 1 => collection::vec(any::<u8>(), 0..40)].prop_map(Request)
    }

    #[test]
    fn whatever_comes_is_judged_at_the_latest_when_no_more_comes_and_once_judged_not_otherwise() {
        use Resource::{BadRequest, Health, MethodNotAllowed, Metrics, NotFound};
        let judged: [Cell<u32>; 6] = Default::default();
        property::for_each(20_000, &requests(), |Request(request)| {
            assert!(judge(request, true).is_some(), "never judged");
            // Byte by byte, as it may come: what has been answered is not taken back by what follows.
            let mut before = None;
            for end in 0..=request.len() {
                let now = judge(&request[..end], false);
                assert!(before.is_none() || now == before, "after {end} bytes it is {now:?}, and was {before:?}");
                before = now;
            }
            if let Some((resource, _)) = before {
                judged[resource as usize].update(|count| count + 1);
            }
        });
        for resource in [Metrics, Health, BadRequest, NotFound, MethodNotAllowed] {
            let count = judged[resource as usize].get();
            assert!(count > 100, "{resource:?} comes out {count} times: that proves nothing about it");
        }
    }

    /// The whole answer to what comes in these pieces, over a socket, and then a FIN.
    fn exchanged<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, draining: bool) -> String {
        let (ours, mut peer) = std::os::unix::net::UnixStream::pair().expect("a pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let stream = Stream::Unix(mio::net::UnixStream::from_std(ours));
        let mut exchange = Exchange { stream, state: State::Asked(Vec::new()), ready: true, due: NEVER };
        let turns = |exchange: &mut Exchange| {
            exchange.ready = true;
            let mut over = false;
            while exchange.ready && !over {
                over = with_page(draining, |page| exchange.turn(page));
            }
            over
        };
        for piece in pieces {
            peer.write_all(piece).expect("it reads on, whatever it has answered");
            assert!(!turns(&mut exchange), "over before the peer has finished");
        }
        peer.shutdown(std::net::Shutdown::Write).expect("finished");
        assert!(turns(&mut exchange), "not over although the peer has finished");
        drop(exchange);
        let mut answer = String::new();
        peer.read_to_string(&mut answer).expect("an answer in UTF-8, not a reset");
        answer
    }

    #[test]
    fn the_answer_is_one_of_the_contract_and_the_same_however_the_request_is_split() {
        // What makes a request too large: many headers, a long one.
        let repeated = (select(vec![&b"a: b\r\n"[..], b"x", b"\r\n"]), 0..9000_usize);
        let large = (requests(), repeated, requests())
            .prop_map(|(front, (piece, count), back)| Request([front.0, piece.repeat(count), back.0].concat()));
        let inputs = (prop_oneof![4 => requests(), 1 => large], collection::vec(any::<Index>(), 0..6), any::<bool>());
        let statuses = RefCell::new(BTreeSet::new());
        property::for_each(2000, &inputs, |(Request(request), cuts, draining)| {
            let mut bounds = vec![0, request.len()];
            bounds.extend(cuts.iter().map(|cut| cut.index(request.len() + 1)));
            bounds.sort_unstable();
            let pieces = bounds.windows(2).map(|bounds| &request[bounds[0]..bounds[1]]);
            let (whole, split) = (exchanged([&request[..]], *draining), exchanged(pieces, *draining));
            let status = |answer: &str| answer.split("\r\n").next().unwrap_or("").to_owned();
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
