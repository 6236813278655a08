//! Output that could not be written yet.

use crate::event_loop::observer::{ConnectionEvent, Observer};

/// The part of an answer that the socket did not accept. A connection that has one is *stalled*.
#[derive(Debug)]
pub struct Pending {
    /// Exactly what was left when the first write fell short, without spare capacity.
    bytes: Box<[u8]>,
    /// How many of `bytes` have been written since.
    written: usize,
}

impl Pending {
    /// Copies the unwritten rest. A connection without pending output pays only for a pointer.
    pub fn new(rest: &[u8]) -> Box<Pending> {
        Box::new(Pending { bytes: rest.into(), written: 0 })
    }

    /// Keeps all of an answer but its first `count` bytes, which have been written, and reports both parts to the observer.
    #[inline(never)]
    pub fn from_partial_write(number: u32, answer: &[u8], count: usize, observer: &mut impl Observer) -> Box<Pending> {
        let (sent, rest) = answer.split_at(count);
        if !sent.is_empty() {
            observer.event(number, ConnectionEvent::Sent(sent));
        }
        observer.event(number, ConnectionEvent::Stalled(rest.len()));
        Pending::new(rest)
    }

    /// Returns the bytes still to be written.
    pub fn remaining(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Records that `count` more bytes have been written, at most all that remain.
    pub fn advance(&mut self, count: usize) {
        self.written += count;
    }
}
