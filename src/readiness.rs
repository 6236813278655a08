//! Edge-triggered readiness: what a connection asks of the poller, and what it makes of an event.
//!
//! mio is edge-triggered: an event says that something *has become* ready, once. Whoever does not use it up, and
//! does not remember it either, waits for ever.

use mio::Interest;
use mio::event::Event;

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
