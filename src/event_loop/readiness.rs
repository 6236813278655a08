//! Edge-triggered readiness: what a connection asks of the poller, and what it makes of an event.
//!
//! mio is edge-triggered: an event says that something *has become* ready, once. Whoever does not use it up, and
//! does not remember it either, waits for ever.

use log::{Level, log_enabled};
use mio::Interest;
use mio::event::Event;

use crate::event_loop::token::Source;

/// What one connection asks of the poller: everything, once, for life.
///
/// No reregister: asking again for WRITABLE re-arms the edge on an idle socket, and the loop spins. No deregister: close(2)
/// does it, epoll(7), Q6. Against READABLE alone this makes no difference beyond noise. PRIORITY tells of urgent data,
/// beside which a short read proves nothing; where there is none, no short read is trusted.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE).add(Interest::PRIORITY);
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub const INTEREST: Interest = Interest::READABLE.add(Interest::WRITABLE);

/// What we know of the kernel's receive queue. An edge comes once, so this is kept through stalls and
/// spent budgets, until the kernel itself says that there is nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readable {
    /// Nothing to read until the next event.
    No,
    /// Read on; a short read says that the queue is empty (epoll(7), Q9), which saves the read that
    /// would say WouldBlock. Trusted only on transports where it holds.
    UntilShort,
    /// Read on until WouldBlock or end of file. A FIN, an error or urgent data ends a read early, with
    /// more behind it and no new edge.
    UntilBlocked,
}

/// What an event says to a connection: how far to read, and whether to try writing. Flags are hints; read(2)
/// and write(2) tell the truth. So every flag but "writable" makes us ask, also HUP or ERR alone: a Unix peer
/// closes that way, and whoever waits for "readable" there leaks the slot.
pub fn readiness(event: &Event) -> (Readable, bool) {
    let broken = event.is_error() || event.is_write_closed();
    let readable = if broken || event.is_read_closed() || event.is_priority() {
        Readable::UntilBlocked
    } else if event.is_readable() {
        Readable::UntilShort
    } else {
        Readable::No
    };
    (readable, broken || event.is_writable())
}

/// Tells an event, at the level `trace`.
#[inline(always)]
pub fn trace(event: &Event) {
    if log_enabled!(Level::Trace) {
        tell(event);
    }
}

/// Not in the loop, where its text would take registers from events that are not told.
#[inline(never)]
fn tell(event: &Event) {
    log::trace!("{:?}: {event:?}", Source::from(event.token()));
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

    /// What one event says of all that has happened to this stream.
    fn told(stream: &mut impl Source) -> (Readable, bool) {
        let mut poll = Poll::new().expect("a poller");
        poll.registry().register(stream, Token(0), INTEREST).expect("registered");
        let mut events = Events::with_capacity(4);
        poll.poll(&mut events, Some(Duration::from_secs(10))).expect("events");
        readiness(events.iter().next().expect("an event"))
    }

    /// A TCP connection: our end, and the peer's.
    fn connected() -> (TcpStream, std::net::TcpStream) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let peer = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let (ours, _) = listener.accept().expect("accepted");
        ours.set_nonblocking(true).expect("non-blocking");
        (TcpStream::from_std(ours), peer)
    }

    #[test]
    fn a_short_read_is_trusted_only_where_nothing_stands_behind_the_bytes() {
        let (mut ours, _peer) = connected();
        assert_eq!(told(&mut ours), (Readable::No, true), "room, and nothing to read");

        let (mut ours, mut peer) = connected();
        peer.write_all(b"bytes").expect("sent");
        assert_eq!(told(&mut ours), (Readable::UntilShort, true));

        let (mut ours, peer) = connected();
        peer.shutdown(Shutdown::Write).expect("a FIN");
        assert_eq!(told(&mut ours), (Readable::UntilBlocked, true));

        let (mut ours, peer) = connected();
        rustix::net::send(&peer, b"!", rustix::net::SendFlags::OOB).expect("an urgent byte");
        assert_eq!(told(&mut ours), (Readable::UntilBlocked, true));
    }

    #[test]
    fn a_peer_that_hangs_up_or_resets_makes_us_ask() {
        let (mut ours, peer) = UnixStream::pair().expect("a pair");
        drop(peer);
        assert_eq!(told(&mut ours), (Readable::UntilBlocked, true));

        let (mut ours, peer) = connected();
        socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).expect("SO_LINGER");
        drop(peer);
        assert_eq!(told(&mut ours), (Readable::UntilBlocked, true));
    }
}
