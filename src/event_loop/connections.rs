//! Where connections live, and which of them have work: the slab, the ready queue, and those that wait for memory.

use std::collections::VecDeque;
use std::mem;

use slab::Slab;

use crate::event_loop::clock::NEVER;
use crate::event_loop::connection::Connection;
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::Readable;
use crate::event_loop::state::State;
use crate::event_loop::token::ConnectionId;
use crate::event_loop::transport::Stream;

/// Slots reserved at start, 64 bytes each: address space, not memory, until connections come.
const SLOTS_RESERVED: usize = 65_536;

/// How long a connection waits, in milliseconds, for which the kernel had no memory.
const STARVED_MS: u64 = 100;

/// Every open connection, found by its [`ConnectionId`].
#[derive(Debug)]
pub struct Connections<P = Echo> {
    slab: Slab<Connection<Stream, P>>,
    /// Connections with work to do, each at most once (its `queued` flag). One that ended meanwhile is skipped.
    /// A turn serves those who are queued when it begins. Whoever becomes ready meanwhile stands behind them and is
    /// served in the next turn: so a turn ends. (A ring would do, at twice the instructions.)
    pub(crate) ready: Vec<ConnectionId>,
    /// Connections for which the kernel had no memory, and when they try again, in milliseconds.
    starved: VecDeque<(u64, ConnectionId)>,
    /// Turns of a connection that ended with work left, or were interrupted, since the start.
    pub spent_budgets: u64,
    /// The number of the last connection.
    last_number: u32,
}

// What an idle connection costs, where mio's streams have no debugging aids in them. A slab entry is this
// enum; the free-list link must find room in it.
#[cfg(not(debug_assertions))]
const _: () = {
    #[allow(dead_code)]
    enum SlabEntry<T> {
        Vacant(usize),
        Occupied(T),
    }
    assert!(size_of::<Connection<Stream>>() == 64);
    assert!(size_of::<SlabEntry<Connection<Stream>>>() == 64);
};

impl<P: Protocol> Connections<P> {
    /// No connections, and room for so many.
    pub fn with_capacity(slots: usize) -> Self {
        Connections {
            slab: Slab::with_capacity(slots.min(SLOTS_RESERVED)),
            ready: Vec::new(),
            starved: VecDeque::new(),
            spent_budgets: 0,
            last_number: 0,
        }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// The connection that `id` means, unless it has ended: then its slot is empty, or another's.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection<Stream, P>> {
        self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation)
    }

    /// Who lives in this slot now.
    pub fn at(&self, slot: u32) -> Option<ConnectionId> {
        self.slab.get(slot as usize).map(|connection| ConnectionId { slot, generation: connection.number })
    }

    /// All that are open now.
    pub fn ids(&self) -> Vec<ConnectionId> {
        self.slab.iter().filter_map(|(slot, _)| self.at(slot as u32)).collect()
    }

    /// The id that the next connection will have. Its number is spent, whether or not it is inserted.
    pub fn next_id(&mut self) -> ConnectionId {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        ConnectionId { slot: self.slab.vacant_key() as u32, generation: self.last_number }
    }

    /// Opens a connection under the id that was given out last.
    pub fn insert(&mut self, id: ConnectionId, connection: Connection<Stream, P>) {
        let slot = self.slab.insert(connection);
        debug_assert_eq!((slot, self.slab[slot].number), (id.slot as usize, id.generation));
    }

    /// Takes a connection out. It must be open.
    pub fn remove(&mut self, id: ConnectionId) -> Connection<Stream, P> {
        self.slab.remove(id.slot as usize)
    }

    /// Marks what an event says, and queues the connection if a turn would have something to do.
    pub fn note(&mut self, id: ConnectionId, readable: Readable, writable: bool) {
        let connection = self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation);
        if let Some(connection) = connection
            && connection.note(readable, writable)
            && !mem::replace(&mut connection.queued, true)
        {
            self.ready.push(id);
        }
    }

    /// Queues a connection, unless it is queued already.
    pub fn enqueue(&mut self, id: ConnectionId) {
        if self.get_mut(id).is_some_and(|connection| !mem::replace(&mut connection.queued, true)) {
            self.ready.push(id);
        }
    }

    /// Queues a connection whose budget was spent with work left.
    pub fn again(&mut self, id: ConnectionId) {
        self.spent_budgets += 1;
        self.enqueue(id);
    }

    /// Has a connection answer what the kernel holds for it, and then finish.
    pub fn drain(&mut self, id: ConnectionId) {
        if self.get_mut(id).is_some_and(Connection::drain) {
            self.enqueue(id);
        }
    }

    /// Whether anybody is about to answer what was held when the drain began, or to finish. That ends by itself, since no
    /// more is owed than was held; only in `FinWait` it is the peer who decides.
    /// Linear in the connections, and asked only when the drain timeout has passed.
    pub fn are_answering(&self) -> bool {
        self.slab.iter().any(|(_, connection)| connection.queued && connection.state() != State::FinWait)
    }

    /// Keeps a connection for which there is no memory until a later time, which it returns.
    pub fn starve(&mut self, id: ConnectionId, now: u64) -> u64 {
        let due = now + STARVED_MS;
        self.starved.push_back((due, id));
        due
    }

    /// When the next of those is due, in milliseconds, or [`NEVER`].
    pub fn next_starved(&self) -> u64 {
        self.starved.front().map_or(NEVER, |&(due, _)| due)
    }

    /// Queues those whose memory may be there by now.
    pub fn retry_starved(&mut self, now: u64) {
        while let Some(&(due, id)) = self.starved.front()
            && due <= now
        {
            self.starved.pop_front();
            self.enqueue(id);
        }
    }

    /// Whether somebody is queued.
    pub fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The first `count` of the queue have been served. Most turns leave nobody behind, and nothing has to be moved.
    #[inline]
    pub fn forget_served(&mut self, count: usize) {
        if count == self.ready.len() {
            self.ready.clear();
        } else {
            self.ready.drain(..count);
        }
    }
}

#[cfg(test)]
mod tests {
    use mio::net::UnixStream;

    use super::*;
    use crate::event_loop::transport::Peer;

    fn open(connections: &mut Connections) -> ConnectionId {
        let (stream, _) = UnixStream::pair().expect("a socket pair");
        let id = connections.next_id();
        connections.insert(id, Connection::new(Stream::Unix(stream), Peer::Unix, id.generation, false, 0));
        id
    }

    #[test]
    fn an_event_for_a_former_owner_of_a_slot_finds_nobody() {
        let mut connections = Connections::with_capacity(1);
        let first = open(&mut connections);
        connections.remove(first);
        let second = open(&mut connections);
        assert_eq!(first.slot, second.slot, "the slot is used again");

        connections.note(first, Readable::UntilBlocked, true);
        assert!(!connections.has_work(), "a stale event wakes the new owner of the slot");
        assert!(connections.get_mut(first).is_none());
        assert!(connections.get_mut(ConnectionId { slot: 9, generation: 1 }).is_none());

        connections.note(second, Readable::UntilBlocked, true);
        assert_eq!(connections.ready, [second]);
    }

    #[test]
    fn a_connection_is_queued_once() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.enqueue(id);
        connections.enqueue(id);
        connections.note(id, Readable::UntilBlocked, true);
        assert_eq!(connections.ready, [id]);
        assert!(connections.has_work(), "or the loop would sleep over it");
    }

    #[test]
    fn who_finds_no_memory_is_queued_again_after_a_while_and_not_before() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        assert_eq!(connections.starve(id, 1000), 1000 + STARVED_MS);
        assert_eq!(connections.next_starved(), 1000 + STARVED_MS);
        connections.retry_starved(1000 + STARVED_MS - 1);
        assert!(!connections.has_work());
        connections.retry_starved(1000 + STARVED_MS);
        assert_eq!(connections.ready, [id]);
        assert_eq!(connections.next_starved(), NEVER);
    }

    #[test]
    fn who_becomes_ready_in_a_turn_is_served_in_the_next_one() {
        let mut connections = Connections::with_capacity(2);
        let (first, second) = (open(&mut connections), open(&mut connections));
        connections.enqueue(first);
        connections.enqueue(second);
        connections.get_mut(first).expect("open").queued = false;
        connections.enqueue(first);
        connections.forget_served(2);
        assert_eq!(connections.ready, [first], "a turn that feeds itself would never end");
        connections.forget_served(1);
        assert!(!connections.has_work());
    }

    #[test]
    fn numbers_are_never_0_which_stands_for_the_fixed_sources() {
        let mut connections: Connections = Connections::with_capacity(1);
        connections.last_number = u32::MAX;
        assert_eq!(connections.next_id().generation, 1);
    }

    #[test]
    fn whoever_is_open_is_counted_and_found() {
        let mut connections = Connections::with_capacity(1);
        assert!((connections.len(), connections.is_empty()) == (0, true) && connections.ids().is_empty());
        let (first, second) = (open(&mut connections), open(&mut connections));
        assert_eq!((connections.len(), connections.is_empty()), (2, false));
        assert_eq!(connections.ids(), [first, second]);
        connections.remove(first);
        assert_eq!((connections.at(first.slot), connections.at(second.slot)), (None, Some(second)));
        assert_eq!(connections.ids(), [second]);
    }

    #[test]
    fn who_has_spent_its_budget_is_counted_and_queued() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.again(id);
        assert_eq!(connections.spent_budgets, 1);
        assert_eq!(connections.ready, [id]);
        connections.again(id);
        assert_eq!(connections.spent_budgets, 2);
    }

    #[test]
    fn who_drains_is_queued_and_answers_until_its_turn_is_over() {
        let mut connections = Connections::with_capacity(2);
        let (first, second) = (open(&mut connections), open(&mut connections));
        connections.drain(first);
        assert!(connections.are_answering());
        connections.get_mut(first).expect("open").queued = false;
        assert!(!connections.are_answering(), "it waits for its peer: the end of a drain does not wait for that");
        connections.drain(second);
        assert_eq!(connections.ready, [first, second]);
    }
}
