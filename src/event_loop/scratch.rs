//! The state that all connections share while they are served: the read buffer, the current time, the memory for pending output,
//! and the traffic counters.

use crate::event_loop::counters::Traffic;
use crate::event_loop::memory::OutputMemory;
use crate::event_loop::pending::Pending;

/// The scratch buffer and what goes with it, lent to one connection after the other.
#[derive(Debug)]
pub struct Scratch {
    /// The buffer for reads. The echo is written directly from it.
    pub buffer: Box<[u8]>,
    /// How much of the buffer a read may use: all of it, unless memory for pending output is short. 0 if there is none.
    pub read_limit: usize,
    /// How many bytes a read from TCP may return at most.
    pub max_tcp_read: usize,
    /// The current time in milliseconds since the loop started. Wraps after 49 days; only differences are used.
    pub ms: u32,
    /// The counters of bytes and of stalled connections.
    pub traffic: Traffic,
    pub(super) memory: OutputMemory,
}

impl Scratch {
    /// Creates a scratch buffer of `buffer_size` bytes, at least 1, and the memory for `max_buffered` bytes of pending output.
    pub fn new(buffer_size: usize, max_buffered: usize) -> Scratch {
        let mut memory = OutputMemory::new(max_buffered, buffer_size);
        Scratch {
            buffer: vec![0; buffer_size].into(),
            read_limit: memory.read_limit(),
            max_tcp_read: buffer_size,
            ms: 0,
            traffic: Traffic::default(),
            memory,
        }
    }

    /// Takes back the memory of output that has been written or given up: its connection is no longer stalled.
    pub fn release(&mut self, pending: [Pending; 1]) {
        self.memory.release(pending);
        self.traffic.stalled -= 1;
        self.update();
    }

    /// Checks how much memory there is. Called when a connection stalls or recovers, and some time after memory ran out.
    pub fn update(&mut self) {
        self.read_limit = self.memory.read_limit();
        self.traffic.buffered = self.memory.in_use();
    }
}
