//! The protocol spoken over a connection.
//!
//! The event loop and the state machine are protocol-agnostic: they move bytes, keep their order and close cleanly, whatever
//! the answer is. The daemon uses [`Echo`]; `examples/lines.rs` implements another protocol.

/// Turns received bytes into an answer. Each connection has its own value, created when the connection opens.
pub trait Protocol: Default {
    /// Whether the answer always is what was received. Then connections can be served even without memory for output.
    const IS_ECHO: bool = false;

    /// Returns the answer to these bytes, which arrive in whatever pieces the kernel delivers. An empty answer is allowed.
    ///
    /// A stalled connection keeps its answer in memory, so the size must be bounded.
    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8];

    /// Returns the total length of all answers to the first `received` bytes.
    fn answered(&self, received: u64) -> u64;
}

/// RFC 862: the same bytes, in the same order. It has no state and copies nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Protocol for Echo {
    const IS_ECHO: bool = true;

    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8] {
        received
    }

    fn answered(&self, received: u64) -> u64 {
        received
    }
}
