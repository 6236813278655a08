//! What a connection owes and its peer has not taken.

use crate::event_loop::observer::{Fact, Observer};

/// An answer, or what is left of one.
#[derive(Debug)]
pub struct Pending {
    /// Exactly what was left when the write fell short: no spare room.
    bytes: Box<[u8]>,
    /// How many of `bytes` have gone out since.
    written: usize,
}

impl Pending {
    /// Keeps a copy. Cheaper than a buffer of its own for every peer that owes us a byte, and it costs a connection
    /// that owes nothing only the pointer.
    pub fn new(rest: &[u8]) -> Box<Pending> {
        Box::new(Pending { bytes: rest.into(), written: 0 })
    }

    /// What is still to go out.
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// So many more bytes have gone out, at most all of the rest.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
    }
}

/// Keeps what the peer has not taken of an answer: all but the first `count` bytes, which it has.
#[inline(never)]
pub fn stall(number: u32, answer: &[u8], count: usize, observer: &mut impl Observer) -> Box<Pending> {
    let (sent, rest) = answer.split_at(count);
    if !sent.is_empty() {
        observer.fact(number, Fact::Sent(sent));
    }
    observer.fact(number, Fact::Stalled(rest.len()));
    Pending::new(rest)
}
