//! What happens on connections, reported as it happens. `--explain` is built on it.
//!
//! [`Observer`] has two implementations: [`Silent`], and the explainer of `--explain`. The loop is generic over it, so with
//! [`Silent`] the calls vanish: an echo costs the same number of instructions as without an observer.

use std::time::Duration;

use crate::event_loop::outcome::CloseReason;
use crate::event_loop::transport::{Peer, Stream};

/// One thing that a connection saw or did. The order of events is the order of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionEvent<'a> {
    /// read(2) returned these bytes, and they will be echoed.
    Received(&'a [u8]),
    /// write(2) accepted these bytes.
    Sent(&'a [u8]),
    /// write(2) accepted no more. This many bytes are pending, and nothing is read until they are written.
    Stalled(usize),
    /// read(2) returned this many bytes, which are dropped because our FIN has been sent.
    Discarded(usize),
    /// read(2) returned 0: the peer has sent its FIN.
    PeerClosedWrite,
    /// Our FIN follows what was sent: by shutdown(2), or by close(2) if the peer's FIN came first.
    SentFin,
}

/// Receives connection events. `number` is the connection's number in the log.
///
/// The loop calls it between system calls, so implementations must be fast and must not block.
pub trait Observer {
    /// A connection was accepted; the kernel's handshake is complete.
    fn opened(&mut self, _number: u32, _peer: &Peer, _stream: &Stream) {}
    /// Something happened on a connection.
    fn event(&mut self, _number: u32, _event: ConnectionEvent<'_>) {}
    /// A connection ends. Its socket is closed right after this call.
    fn closed(&mut self, _number: u32, _reason: CloseReason, _stream: &Stream) {}
    /// A graceful shutdown has begun.
    fn draining(&mut self) {}
    /// An iteration of the loop ends: the place to write what was gathered in it.
    fn end_iteration(&mut self) {}
    /// Returns how long the loop may sleep, even if nothing happens. `None` means without limit.
    fn next_wakeup(&self) -> Option<Duration> {
        None
    }
}

/// An observer that ignores everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
