//! The places for requests at the endpoint, and what happens when all of them are taken.

use std::io::{self, Read, Write};

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

/// A connection to the endpoint: one request and its response.
#[derive(Debug)]
pub(super) struct Request {
    stream: Stream,
    state: RequestState,
    /// Whether an event has arrived and no system call has returned WouldBlock since.
    pub(super) ready: bool,
    /// When it is closed, complete or not, in milliseconds.
    pub(super) deadline: u64,
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
    pub(super) fn new(stream: Stream, now: u64) -> Request {
        Request { stream, state: RequestState::Reading(Vec::new()), ready: true, deadline: now + REQUEST_TIMEOUT_MS }
    }

    /// Does what can be done now, within its budget. Returns whether the request is done.
    pub(super) fn serve(&mut self, context: &mut Context<'_>) -> bool {
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

    use proptest::collection;
    use proptest::prelude::{Strategy, any, prop_oneof};
    use proptest::sample::{Index, select};

    use super::*;
    use crate::metrics::endpoint::property;
    use crate::metrics::endpoint::tests::with_context;
    use crate::metrics::request::tests::{Input, requests};

    /// Returns the complete response to these pieces and a FIN, sent over a socket.
    fn response_to<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, draining: bool) -> String {
        let (ours, mut peer) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        ours.set_nonblocking(true).expect("non-blocking");
        let stream = Stream::Unix(mio::net::UnixStream::from_std(ours));
        let mut request = Request::new(stream, 0);
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
