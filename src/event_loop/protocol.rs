//! What a connection says back.
//!
//! The loop and the state machine are not married to echo: they move bytes, keep order and finish
//! in order, whatever the answer is. [`Echo`] is the daemon's protocol; an example speaks another.

/// Turns what came in into what goes out. One value per connection, made as the connection opens.
pub trait Protocol: Default {
    /// The answer to these bytes, which are read in whatever pieces the kernel delivers. Empty is
    /// allowed: nothing to say yet. The answer is what a stalled connection holds in memory, so its size
    /// must be bounded.
    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8];

    /// How many bytes of answers there were in all, for so many received.
    fn answered(&self, received: u64) -> u64;
}

/// RFC 862: the same bytes, in the same order. It has no state, and costs no copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Protocol for Echo {
    fn answer<'a>(&'a mut self, received: &'a [u8]) -> &'a [u8] {
        received
    }

    fn answered(&self, received: u64) -> u64 {
        received
    }
}
