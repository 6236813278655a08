//! The state that all connections share while they are served: the read buffer, the current time, and the traffic counters.

use crate::event_loop::counters::Traffic;

/// The scratch buffer and what goes with it, lent to one connection after the other.
#[derive(Debug)]
pub struct Scratch {
    /// The buffer for reads, at least 1 byte. The echo is written directly from it.
    pub buffer: Box<[u8]>,
    /// The current time in milliseconds since the loop started. Wraps after 49 days; only differences are used.
    pub ms: u32,
    /// The counters of bytes and of stalled connections.
    pub traffic: Traffic,
}

impl Scratch {
    /// Creates a scratch buffer of `buffer_size` bytes, at least 1.
    pub fn new(buffer_size: usize) -> Scratch {
        Scratch { buffer: vec![0; buffer_size].into(), ms: 0, traffic: Traffic::default() }
    }
}
