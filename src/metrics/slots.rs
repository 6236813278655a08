//! The slots for requests at the endpoint, and what happens when all of them are taken.
//!
//! First come, first served would let 16 clients that send nothing take the endpoint away for 5 s, and again after that. So the
//! oldest connection that is not being answered makes way for a new one: a client that never sends its request, never reads, or
//! stays after its response does not delay others.

use std::io::{self, Read, Write};

use slab::Slab;

use crate::event_loop::clock::NEVER;
use crate::event_loop::transport::{Stream, Transport};
use crate::metrics::endpoint::Context;
use crate::metrics::request::{MAX_REQUEST_LEN, parse_request, response};

/// The maximum number of requests at once: enough for a scraper or two and a few probes.
pub(super) const MAX_REQUESTS: usize = 16;

/// How long a request may take from its accept to its close, in milliseconds.
const REQUEST_TIMEOUT_MS: u64 = 5_000;

/// The maximum number of reads and writes for one request in one iteration. A request that arrives whole needs two.
const MAX_STEPS_PER_ITERATION: usize = 4;

/// The maximum number of bytes that are read and discarded after the request, before the connection is closed anyway.
const MAX_DISCARDED: usize = 1 << 20;

/// The open requests, at most [`MAX_REQUESTS`].
#[derive(Debug)]
pub(super) struct Slots {
    slab: Slab<Request>,
    /// The number of the last request.
    last_number: u64,
}

impl Slots {
    pub(super) fn new() -> Slots {
        Slots { slab: Slab::with_capacity(MAX_REQUESTS), last_number: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() == MAX_REQUESTS
    }

    /// Returns the slot of the next request.
    pub(super) fn next_slot(&self) -> usize {
        self.slab.vacant_key()
    }

    /// Inserts a connection that was just accepted into the next slot.
    pub(super) fn insert(&mut self, stream: Stream, now: u64) {
        debug_assert!(!self.is_full());
        self.last_number += 1;
        self.slab.insert(Request::new(self.last_number, stream, now));
    }

    /// Marks the request in this slot ready, if there is one.
    pub(super) fn mark_ready(&mut self, slot: usize) {
        if let Some(request) = self.slab.get_mut(slot) {
            request.ready = true;
        }
    }

    /// Returns whether any request can continue without an event.
    pub(super) fn any_ready(&self) -> bool {
        self.slab.iter().any(|(_, request)| request.ready)
    }

    /// Returns the earliest deadline of a request, or [`NEVER`].
    ///
    /// Linear in the number of requests: usually there are none, and never more than 16.
    pub(super) fn next_deadline(&self) -> u64 {
        self.slab.iter().map(|(_, request)| request.deadline).fold(NEVER, u64::min)
    }

    /// Serves each ready request once, and closes those that are done or late.
    pub(super) fn serve_ready(&mut self, now: u64, context: &mut Context<'_>) {
        self.slab.retain(|_, request| {
            let is_done = request.ready && request.serve(context);
            !is_done && now < request.deadline // Dropping it calls close(2).
        });
    }

    /// Closes the oldest connection that is not being answered.
    ///
    /// Each candidate is served first, because its request may have arrived without its event. If all of them have just been
    /// answered, the oldest is closed; the kernel still delivers its response.
    pub(super) fn evict(&mut self, context: &mut Context<'_>) {
        let mut oldest_first: Vec<usize> = self.slab.iter().map(|(slot, _)| slot).collect();
        oldest_first.sort_unstable_by_key(|&slot| self.slab[slot].number);
        for &slot in &oldest_first {
            let request = &mut self.slab[slot];
            let was_lingering = matches!(request.state, RequestState::Lingering(_));
            let is_done = request.serve(context);
            if is_done || was_lingering || matches!(request.state, RequestState::Reading(_)) {
                self.slab.remove(slot);
                return;
            }
        }
        if let Some(&slot) = oldest_first.first() {
            self.slab.remove(slot);
        }
    }
}

/// A connection to the endpoint: one request and its response.
#[derive(Debug)]
struct Request {
    /// Requests are numbered in the order of their accepts.
    number: u64,
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
    /// Creates a request for a connection that was just accepted. It is ready before any event, because usually its bytes have
    /// already arrived.
    fn new(number: u64, stream: Stream, now: u64) -> Request {
        let state = RequestState::Reading(Vec::new());
        Request { number, stream, state, ready: true, deadline: now + REQUEST_TIMEOUT_MS }
    }

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
mod tests {
    use std::cell::RefCell;
    use std::collections::BTreeSet;
    use std::os::unix::net::UnixStream;

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::sample::{Index, select};

    use super::*;
    use crate::metrics::endpoint::property;
    use crate::metrics::endpoint::tests::with_context;
    use crate::metrics::request::tests::{Input, requests};

    /// Inserts a connection into the slots. Returns the client's end, which does not block.
    fn insert(slots: &mut Slots) -> UnixStream {
        let (ours, client) = UnixStream::pair().expect("socket pair");
        ours.set_nonblocking(true).and(client.set_nonblocking(true)).expect("non-blocking");
        slots.insert(Stream::Unix(mio::net::UnixStream::from_std(ours)), 0);
        client
    }

    /// Returns what a client can read: nothing (`None`), or a response, empty if the connection was closed without one.
    fn response_at(mut client: &UnixStream) -> Option<String> {
        let mut response = Vec::new();
        match client.read_to_end(&mut response) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && response.is_empty() => None,
            _ => Some(String::from_utf8(response).expect("UTF-8")),
        }
    }

    #[test]
    fn oldest_unanswered_connection_is_evicted() {
        let mut slots = Slots::new();
        let mut clients: Vec<UnixStream> = (0..MAX_REQUESTS).map(|_| insert(&mut slots)).collect();
        with_context(false, |context| slots.serve_ready(1, context));
        assert!(slots.is_full() && !slots.any_ready(), "all of them wait for their request");

        // The requests of the two oldest have arrived, but their events have not been seen.
        clients[0].write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("send");
        clients[1].write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("send");
        with_context(false, |context| slots.evict(context));
        assert!(response_at(&clients[0]).expect("response").ends_with("\r\n\r\nok\n"));
        assert!(response_at(&clients[1]).expect("response").ends_with("\r\n\r\nok\n"));
        assert_eq!(response_at(&clients[2]).as_deref(), Some(""), "the oldest one without a request is closed");
        assert_eq!(response_at(&clients[3]), None);
        assert_eq!(slots.len(), MAX_REQUESTS - 1);

        // Then the answered ones, which have not closed, are the oldest. That a slot is reused does not make a connection old.
        let numbers = |slots: &Slots| BTreeSet::from_iter(slots.slab.iter().map(|(_, request)| request.number));
        for evicted in [1, 2, 4, 5] {
            clients.push(insert(&mut slots));
            let mut expected = numbers(&slots);
            assert!(expected.remove(&evicted));
            with_context(false, |context| slots.evict(context));
            assert_eq!(numbers(&slots), expected);
        }
    }

    #[test]
    fn connection_is_evicted_even_if_all_are_being_answered() {
        let mut slots = Slots::new();
        let clients: Vec<UnixStream> = (0..MAX_REQUESTS).map(|_| insert(&mut slots)).collect();
        for mut client in &clients {
            client.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").expect("send");
        }
        with_context(false, |context| slots.evict(context));
        assert_eq!(slots.len(), MAX_REQUESTS - 1);
        for client in &clients {
            assert!(response_at(client).expect("response").ends_with("ok\n"));
        }
    }

    /// Returns the complete response to these pieces and a FIN, sent over a socket.
    fn response_to<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, draining: bool) -> String {
        let (ours, mut peer) = UnixStream::pair().expect("socket pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let stream = Stream::Unix(mio::net::UnixStream::from_std(ours));
        let mut request = Request::new(1, stream, 0);
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
