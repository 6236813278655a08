//! What a readiness event is about: [`Source`], packed into and out of a [`mio::Token`].
//!
//! A token is a number that we hand to the poller and that comes back with every event. A slab key
//! alone is not enough for it: connection A ends, its slot is used again for B, and an event that
//! was meant for A still waits in the batch at hand. So a token carries the slot *and* the number of
//! the connection that it was made for, and whoever finds another number in the slot drops the event.
//! (Events are hints, so a stale one would be a spurious wake-up and no more; but then a reader of
//! the log would see B woken by A.)

use mio::Token;

// A token holds two halves of 32 bits.
const _: () = assert!(usize::BITS >= 64, "echod packs slot and generation into one usize");

/// The slot of a connection in the slab and its generation, which is also its number in the log.
///
/// Generations start at 1 and are taken in turn; 0 is kept for the fixed sources. They wrap after
/// 2^32 - 1 connections: two that share one would have to meet in a single batch of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    /// Key in the slab.
    pub slot: u32,
    /// Number of the connection, never 0.
    pub generation: u32,
}

/// Whatever the loop can be woken by. One variant per kind; each kind has its own field in the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// SIGTERM and its kin, through the self-pipe of signal-hook.
    Signals,
    /// The listener with this index.
    Listener(u32),
    /// The HTTP endpoint of `--metrics`: 0 is its listener, others are its exchanges.
    Endpoint(u32),
    /// An echo connection.
    Connection(ConnectionId),
}

/// With generation 0, the lower half tells the fixed sources apart: two bits of kind, 30 of index.
const KIND_SHIFT: u32 = 30;
const INDEX_MASK: u32 = (1 << KIND_SHIFT) - 1;
const SIGNALS: u32 = 0;
const LISTENER: u32 = 1;
const ENDPOINT: u32 = 2;

impl From<Source> for Token {
    fn from(source: Source) -> Token {
        let fixed = |kind: u32, index: u32| (kind << KIND_SHIFT | index & INDEX_MASK) as usize;
        Token(match source {
            Source::Signals => fixed(SIGNALS, 0),
            Source::Listener(index) => fixed(LISTENER, index),
            Source::Endpoint(index) => fixed(ENDPOINT, index),
            Source::Connection(id) => (id.generation as usize) << 32 | id.slot as usize,
        })
    }
}

impl From<Token> for Source {
    fn from(Token(token): Token) -> Source {
        let (generation, low) = ((token >> 32) as u32, token as u32);
        let index = low & INDEX_MASK;
        match (generation, low >> KIND_SHIFT) {
            (0, SIGNALS) => Source::Signals,
            (0, LISTENER) => Source::Listener(index),
            (0, _) => Source::Endpoint(index),
            _ => Source::Connection(ConnectionId { slot: low, generation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_survives_the_way_through_the_poller() {
        let most = u32::MAX;
        for source in [
            Source::Signals,
            Source::Listener(0),
            Source::Listener(7),
            Source::Endpoint(0),
            Source::Endpoint(17),
            Source::Connection(ConnectionId { slot: 0, generation: 1 }),
            Source::Connection(ConnectionId { slot: most, generation: 1 }),
            Source::Connection(ConnectionId { slot: 3, generation: most }),
            Source::Connection(ConnectionId { slot: most, generation: most }),
        ] {
            assert_eq!(Source::from(Token::from(source)), source);
        }
    }

    #[test]
    fn a_slot_used_again_has_another_token() {
        let token = |generation| Token::from(Source::Connection(ConnectionId { slot: 5, generation }));
        assert_ne!(token(1), token(2));
    }
}
