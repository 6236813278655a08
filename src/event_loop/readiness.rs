//! Edge-triggered readiness: which events a connection registers for, and how it interprets them.
//!
//! mio is edge-triggered: an event reports once that something *has become* ready. If you neither consume the readiness nor
//! remember it, you wait forever.

use log::{Level, log_enabled};
use mio::Interest;
use mio::event::Event;

use crate::event_loop::token::EventSource;

/// The interests of a connection, registered once and kept until it is closed.
///
/// It is never reregistered: that would re-arm the writable edge on an idle socket, and the loop would spin. It is never
/// deregistered either: close(2) does that (epoll(7), Q6). Compared with READABLE alone, WRITABLE costs nothing that can be
/// measured. PRIORITY reports urgent data, next to which a short read does not mean that the queue is empty; platforms
/// without it do not trust short reads.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// What is known about the receive queue, and how far to read.
///
/// An edge is reported once, so this is kept through stalls and exhausted budgets, until the kernel itself reports that the
/// queue is empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readable {
    /// There is nothing to read until the next event.
    No,
    /// Read until a short read, which means that the queue is empty (epoll(7), Q9). Saves the read that would return
    /// WouldBlock. Only trusted on transports for which it holds.
    UntilShort,
    /// Read until WouldBlock or the end of the stream. An error or urgent data ends a read early, with more data behind it and
    /// no new edge.
    UntilWouldBlock,
    /// As `UntilWouldBlock`; the event has reported the peer's FIN.
    UntilEnd,
}

impl Readable {
    /// Returns the more cautious of two: reading further than necessary costs a call, stopping early costs the connection.
    pub fn merge(self, other: Readable) -> Readable {
        self.max(other)
    }
}

/// Interprets an event for a connection: how far to read, and whether to try to write.
///
/// Flags are hints; only read(2) and write(2) are reliable. So every flag other than "writable" makes the connection read, and
/// so does HUP or ERR alone: a Unix peer closes that way, and a loop that waits for "readable" there leaks the slot.
pub fn readiness(event: &Event) -> (Readable, bool) {
    let broken = event.is_error() || event.is_write_closed();
    let readable = if event.is_read_closed() {
        Readable::UntilEnd
    } else if broken || event.is_priority() {
        Readable::UntilWouldBlock
    } else if event.is_readable() {
        Readable::UntilShort
    } else {
        Readable::No
    };
    (readable, broken || event.is_writable())
}

/// Logs an event at trace level.
#[inline(always)]
pub fn trace(event: &Event) {
    if log_enabled!(Level::Trace) {
        log_event(event);
    }
}

/// Formats the event. Out of line, because its formatting would take registers from events that are not logged.
#[inline(never)]
fn log_event(event: &Event) {
    log::trace!("{:?}: {event:?}", EventSource::from(event.token()));
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::time::Duration;

    use mio::event::Source;
    use mio::net::{TcpStream, UnixStream};
    use mio::{Events, Poll, Token};

    use super::*;

    /// Returns how the first event for a stream is interpreted.
    fn first_readiness(stream: &mut impl Source) -> (Readable, bool) {
        let mut poll = Poll::new().expect("poller");
        poll.registry().register(stream, Token(0), INTEREST).expect("registration");
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(10))).expect("poll");
        readiness(events.iter().next().expect("an event within 10 s"))
    }

    /// Returns our end and the peer's end of a TCP connection.
    fn connected() -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let peer = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
        let (ours, _) = listener.accept().expect("accepted stream");
        ours.set_nonblocking(true).expect("non-blocking stream");
        (TcpStream::from_std(ours), peer)
    }

    #[test]
    fn short_read_is_trusted_only_without_fin_or_urgent_data() {
        let (mut ours, _peer) = connected();
        assert_eq!(first_readiness(&mut ours), (Readable::No, true), "room to write, nothing to read");

        let (mut ours, mut peer) = connected();
        peer.write_all(b"bytes").expect("send");
        assert_eq!(first_readiness(&mut ours), (Readable::UntilShort, true));

        let (mut ours, peer) = connected();
        peer.shutdown(Shutdown::Write).expect("FIN");
        assert_eq!(first_readiness(&mut ours), (Readable::UntilEnd, true));

        let (mut ours, peer) = connected();
        rustix::net::send(&peer, b"!", rustix::net::SendFlags::OOB).expect("urgent byte");
        assert_eq!(first_readiness(&mut ours), (Readable::UntilWouldBlock, true));
    }

    #[test]
    fn hangup_and_reset_make_the_connection_read() {
        let (mut ours, peer) = UnixStream::pair().expect("socket pair");
        drop(peer);
        assert_eq!(first_readiness(&mut ours), (Readable::UntilEnd, true));

        let (mut ours, peer) = connected();
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(peer);
        assert_eq!(first_readiness(&mut ours), (Readable::UntilEnd, true));
    }
}
