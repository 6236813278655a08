//! What happens to a connection, told as it happens, for whoever wants to narrate it.
//!
//! [`Observer`] has two implementations: [`Silent`], and the narrator of `--explain`. The loop is
//! generic over it, so with [`Silent`] the calls are compiled away: an echo costs the same
//! instructions as if there were no observer at all.

use std::time::Duration;

use crate::event_loop::outcome::Reason;
use crate::event_loop::transport::{Peer, Stream};

/// One thing that a connection saw or did. The order of facts is the order of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fact<'a> {
    /// read(2) gave these bytes, and they will be answered.
    Received(&'a [u8]),
    /// write(2) took these bytes.
    Sent(&'a [u8]),
    /// write(2) took no more; so many bytes are pending, and nothing is read until they are out.
    Stalled(usize),
    /// read(2) gave so many bytes, which are dropped: our FIN is out, nothing can answer them.
    Discarded(usize),
    /// read(2) gave 0: the peer's FIN is in.
    PeerFinished,
    /// Our FIN follows what was sent: shutdown(2), or close(2) where the peer's FIN came first.
    WeFinished,
}

/// Is told what happens, connection by connection. `number` is the connection's number in the log.
///
/// It is called between system calls of the loop: whatever it does must be quick and must not block.
pub trait Observer {
    /// A connection was accepted; the kernel's handshake is over.
    fn opened(&mut self, _number: u32, _peer: &Peer, _stream: &Stream) {}
    /// Something happened on a connection.
    fn fact(&mut self, _number: u32, _fact: Fact<'_>) {}
    /// A connection ends; its socket is closed right after this call.
    fn ended(&mut self, _number: u32, _reason: Reason, _stream: &Stream) {}
    /// The server has begun to drain.
    fn draining(&mut self) {}
    /// A turn of the loop is over: the place to write what was gathered in it.
    fn turn_over(&mut self) {}
    /// In how long it wants a turn, even if nothing happens. `None`: it can wait for ever.
    fn due(&self) -> Option<Duration> {
        None
    }
}

/// Observes nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Observer for Silent {}
