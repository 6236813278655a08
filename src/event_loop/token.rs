//! What a readiness event is about: [`EventSource`], packed into a [`mio::Token`] and unpacked from it.
//!
//! A token is a number that we hand to the poller and that comes back with every event. A slab key alone is not enough:
//! connection A ends, its slot is reused for B, and an event that was meant for A is still in the current batch. So a token
//! carries the slot *and* the number of the connection for which it was made, and an event whose generation does not match the
//! slot is ignored. (Events are hints, so a stale one would only be a spurious wakeup; but a reader of the log would see B
//! woken by A.)

use mio::Token;

// A token holds two halves of 32 bits.
const _: () = assert!(usize::BITS >= 64, "echod packs slot and generation into one usize");

/// The slot of a connection in the slab, and its generation, which is also its number in the log.
///
/// Generations are consecutive and start at 1; 0 is reserved for the other event sources. They wrap after 2^32 - 1 connections:
/// two that share one would have to meet in a single batch of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    /// The key in the slab.
    pub slot: u32,
    /// The number of the connection, never 0.
    pub generation: u32,
}

/// An event source that the loop waits on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventSource {
    /// SIGTERM and the other signals, through the self-pipe of signal-hook.
    Signals,
    /// The listener with this index.
    Listener(u32),
    /// A socket of the [`Monitor`](crate::event_loop::monitor::Monitor), by its own index.
    Monitor(u32),
    /// An echo connection.
    Connection(ConnectionId),
}

/// With generation 0, the lower half distinguishes the other sources: two bits of kind, 30 bits of index.
const KIND_SHIFT: u32 = 30;
const INDEX_MASK: u32 = (1 << KIND_SHIFT) - 1;
const SIGNALS: u32 = 0;
const LISTENER: u32 = 1;
const MONITOR: u32 = 2;

impl From<EventSource> for Token {
    fn from(source: EventSource) -> Token {
        let fixed = |kind: u32, index: u32| (kind << KIND_SHIFT | index & INDEX_MASK) as usize;
        Token(match source {
            EventSource::Signals => fixed(SIGNALS, 0),
            EventSource::Listener(index) => fixed(LISTENER, index),
            EventSource::Monitor(index) => fixed(MONITOR, index),
            EventSource::Connection(id) => (id.generation as usize) << 32 | id.slot as usize,
        })
    }
}

impl From<Token> for EventSource {
    fn from(Token(token): Token) -> EventSource {
        let (generation, low) = ((token >> 32) as u32, token as u32);
        let index = low & INDEX_MASK;
        match (generation, low >> KIND_SHIFT) {
            (0, SIGNALS) => EventSource::Signals,
            (0, LISTENER) => EventSource::Listener(index),
            (0, _) => EventSource::Monitor(index),
            _ => EventSource::Connection(ConnectionId { slot: low, generation }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn source_survives_the_round_trip_through_a_token() {
        let max = u32::MAX;
        for source in [
            EventSource::Signals,
            EventSource::Listener(0),
            EventSource::Listener(7),
            EventSource::Monitor(0),
            EventSource::Monitor(17),
            EventSource::Connection(ConnectionId { slot: 0, generation: 1 }),
            EventSource::Connection(ConnectionId { slot: max, generation: 1 }),
            EventSource::Connection(ConnectionId { slot: 3, generation: max }),
            EventSource::Connection(ConnectionId { slot: max, generation: max }),
        ] {
            assert_eq!(EventSource::from(Token::from(source)), source);
        }
    }

    #[test]
    fn reused_slot_has_another_token() {
        let token = |generation| Token::from(EventSource::Connection(ConnectionId { slot: 5, generation }));
        assert_ne!(token(1), token(2));
    }
}
