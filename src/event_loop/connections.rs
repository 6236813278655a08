//! Connection storage: the slab, the ready queue, and the connections that wait for kernel memory.

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

/// Slots reserved at startup, 64 bytes each. This is address space, not memory, until connections arrive.
const RESERVED_SLOTS: usize = 65_536;

/// How long a connection waits, in milliseconds, after the kernel had no memory for it.
const RETRY_INTERVAL_MS: u64 = 100;

/// All open connections, addressed by [`ConnectionId`], and the queue of those that have work to do.
///
/// A connection is in the ready queue at most once: its `queued` flag belongs to this type. An iteration of the loop serves
/// exactly the connections that are queued when it starts ([`start_round`](Connections::start_round),
/// [`next_ready`](Connections::next_ready)). Those that become ready in the meantime are served in the next one, so every
/// iteration terminates.
#[derive(Debug)]
pub struct Connections<P = Echo> {
    slab: Slab<Connection<Stream, P>>,
    /// Connections with work to do, for the next round.
    ready: Vec<ConnectionId>,
    /// The connections of the current round, and how many of them have been handed out.
    round: Vec<ConnectionId>,
    handed_out: usize,
    /// Connections for which the kernel had no memory, with the time of their retry in milliseconds, earliest first.
    out_of_memory: VecDeque<(u64, ConnectionId)>,
    /// Times that a connection used up its budget, or was interrupted, since startup.
    pub budget_exhausted: u64,
    /// The number of the latest connection.
    last_number: u32,
}

// The cost of an idle connection, in builds in which mio's streams contain no debugging aids. A slab entry is like this
// enum: the free-list link must fit into the connection's padding.
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
    /// Creates an empty storage for up to `slots` connections.
    pub fn with_capacity(slots: usize) -> Self {
        Connections {
            slab: Slab::with_capacity(slots.min(RESERVED_SLOTS)),
            ready: Vec::new(),
            round: Vec::new(),
            handed_out: 0,
            out_of_memory: VecDeque::new(),
            budget_exhausted: 0,
            last_number: 0,
        }
    }

    // ---- the ready queue ----

    /// Records readiness from an event, and queues the connection if it has work to do. An event for a connection that has
    /// been closed in the meantime is ignored.
    pub fn mark_ready(&mut self, id: ConnectionId, readable: Readable, writable: bool) {
        let connection = self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation);
        if let Some(connection) = connection
            && connection.record_readiness(readable, writable)
            && !mem::replace(&mut connection.queued, true)
        {
            self.ready.push(id);
        }
    }

    /// Returns whether a connection is queued.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Starts a round: [`next_ready`](Connections::next_ready) hands out the connections that are queued now.
    #[inline]
    pub fn start_round(&mut self) {
        debug_assert_eq!(self.handed_out, self.round.len(), "the previous round was not finished");
        self.round.clear();
        self.handed_out = 0;
        mem::swap(&mut self.ready, &mut self.round);
    }

    /// Takes the next connection of this round out of the queue. Connections that have been closed in the meantime are
    /// skipped.
    #[inline]
    pub fn next_ready(&mut self) -> Option<(ConnectionId, &mut Connection<Stream, P>)> {
        loop {
            let &id = self.round.get(self.handed_out)?;
            self.handed_out += 1;
            // Looked up by hand, because the borrow checker does not accept `get_mut` in a loop that returns its result.
            let is_open = self.slab.get(id.slot as usize).is_some_and(|connection| connection.number == id.generation);
            if is_open {
                let connection = self.slab.get_mut(id.slot as usize)?;
                connection.queued = false;
                return Some((id, connection));
            }
        }
    }

    /// Queues a connection, unless it is queued already.
    pub fn enqueue(&mut self, id: ConnectionId) {
        if self.get_mut(id).is_some_and(|connection| !mem::replace(&mut connection.queued, true)) {
            self.ready.push(id);
        }
    }

    /// Queues a connection that used up its budget and has work left.
    pub fn requeue(&mut self, id: ConnectionId) {
        self.budget_exhausted += 1;
        self.enqueue(id);
    }

    // ---- retries ----

    /// Schedules a retry for a connection that ran into ENOBUFS or ENOMEM at the time `now`. Returns when it is due, in
    /// milliseconds.
    pub fn retry_later(&mut self, id: ConnectionId, now: u64) -> u64 {
        let retry_at = now + RETRY_INTERVAL_MS;
        self.out_of_memory.push_back((retry_at, id));
        retry_at
    }

    /// Returns when the next retry is due, in milliseconds, or [`NEVER`].
    pub fn next_retry(&self) -> u64 {
        self.out_of_memory.front().map_or(NEVER, |&(retry_at, _)| retry_at)
    }

    /// Queues the connections whose retry is due. Returns whether there are any.
    pub fn requeue_due_retries(&mut self, now: u64) -> bool {
        let mut any = false;
        while let Some(&(retry_at, id)) = self.out_of_memory.front()
            && retry_at <= now
        {
            self.out_of_memory.pop_front();
            self.enqueue(id);
            any = true;
        }
        any
    }

    // ---- storage ----

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Returns whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Returns the connection with this id, unless it has been closed. Its slot may have been reused.
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection<Stream, P>> {
        self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation)
    }

    /// Returns the connection currently in `slot`, if any.
    pub fn id_at(&self, slot: u32) -> Option<ConnectionId> {
        self.slab.get(slot as usize).map(|connection| ConnectionId { slot, generation: connection.number })
    }

    /// Returns the ids of all open connections.
    pub fn ids(&self) -> Vec<ConnectionId> {
        self.slab.iter().filter_map(|(slot, _)| self.id_at(slot as u32)).collect()
    }

    /// Reserves the id of the next connection. Its number is used up, whether or not the connection is inserted.
    pub fn next_id(&mut self) -> ConnectionId {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        ConnectionId { slot: self.slab.vacant_key() as u32, generation: self.last_number }
    }

    /// Inserts a connection under the id that was reserved last.
    pub fn insert(&mut self, id: ConnectionId, connection: Connection<Stream, P>) {
        let slot = self.slab.insert(connection);
        debug_assert_eq!((slot, self.slab[slot].number), (id.slot as usize, id.generation));
    }

    /// Removes a connection, which must be open, and returns it.
    pub fn remove(&mut self, id: ConnectionId) -> Connection<Stream, P> {
        self.slab.remove(id.slot as usize)
    }

    // ---- graceful shutdown ----

    /// Starts the graceful shutdown of a connection.
    pub fn drain(&mut self, id: ConnectionId) {
        if self.get_mut(id).is_some_and(Connection::drain) {
            self.enqueue(id);
        }
    }

    /// Returns whether any connection still has drained data to echo or a FIN to send. This ends by itself, because no more is
    /// echoed than was in the receive buffer when the drain began; only in `FinWait` it is up to the peer.
    ///
    /// Linear in the number of connections, and called only after the drain timeout.
    pub fn any_draining_output(&self) -> bool {
        self.slab.iter().any(|(_, connection)| {
            connection.queued && !matches!(connection.state(), State::FinWait | State::LastAck(_))
        })
    }
}

#[cfg(test)]
mod tests {
    use mio::net::UnixStream;

    use super::*;
    use crate::event_loop::transport::Peer;

    fn open(connections: &mut Connections) -> ConnectionId {
        let (stream, _) = UnixStream::pair().expect("socket pair");
        let id = connections.next_id();
        connections.insert(id, Connection::new(Stream::Unix(stream), Peer::Unix, id.generation, false, 0));
        id
    }

    /// Returns the ids that one round hands out.
    fn round(connections: &mut Connections) -> Vec<ConnectionId> {
        connections.start_round();
        std::iter::from_fn(|| connections.next_ready().map(|(id, _)| id)).collect()
    }

    #[test]
    fn stale_event_for_reused_slot_is_ignored() {
        let mut connections = Connections::with_capacity(1);
        let first = open(&mut connections);
        connections.remove(first);
        let second = open(&mut connections);
        assert_eq!(first.slot, second.slot, "the slot is reused");

        connections.mark_ready(first, Readable::UntilWouldBlock, true);
        assert!(!connections.has_ready(), "a stale event wakes the new connection in the slot");
        assert!(connections.get_mut(first).is_none());
        assert!(connections.get_mut(ConnectionId { slot: 9, generation: 1 }).is_none());

        connections.mark_ready(second, Readable::UntilWouldBlock, true);
        assert_eq!(connections.ready, [second]);
    }

    #[test]
    fn connection_is_queued_once() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.enqueue(id);
        connections.enqueue(id);
        connections.mark_ready(id, Readable::UntilWouldBlock, true);
        assert_eq!(connections.ready, [id]);
        assert!(connections.has_ready(), "the loop must not sleep");
    }

    #[test]
    fn closed_connection_is_not_handed_out() {
        let mut connections = Connections::with_capacity(2);
        let (first, second) = (open(&mut connections), open(&mut connections));
        connections.enqueue(first);
        connections.enqueue(second);
        connections.remove(first);
        let reused = open(&mut connections);
        assert_eq!(reused.slot, first.slot, "the slot is reused");
        assert_eq!(round(&mut connections), [second]);
        assert!(!connections.has_ready());
    }

    #[test]
    fn out_of_memory_connection_is_retried_after_delay() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        assert_eq!(connections.retry_later(id, 1000), 1000 + RETRY_INTERVAL_MS);
        assert_eq!(connections.next_retry(), 1000 + RETRY_INTERVAL_MS);
        connections.requeue_due_retries(1000 + RETRY_INTERVAL_MS - 1);
        assert!(!connections.has_ready());
        connections.requeue_due_retries(1000 + RETRY_INTERVAL_MS);
        assert_eq!(connections.ready, [id]);
        assert_eq!(connections.next_retry(), NEVER);
    }

    #[test]
    fn connections_becoming_ready_mid_iteration_wait_for_the_next() {
        let mut connections = Connections::with_capacity(2);
        let (first, second) = (open(&mut connections), open(&mut connections));
        connections.enqueue(first);
        connections.enqueue(second);
        connections.start_round();
        assert_eq!(connections.next_ready().map(|(id, _)| id), Some(first));
        connections.enqueue(first);
        assert_eq!(connections.next_ready().map(|(id, _)| id), Some(second));
        assert!(connections.next_ready().is_none(), "an iteration that feeds itself would never end");
        assert_eq!(round(&mut connections), [first]);
        assert!(!connections.has_ready());
    }

    #[test]
    fn connection_numbers_are_never_zero() {
        let mut connections: Connections = Connections::with_capacity(1);
        connections.last_number = u32::MAX;
        assert_eq!(connections.next_id().generation, 1);
    }

    #[test]
    fn open_connections_are_counted_and_found() {
        let mut connections = Connections::with_capacity(1);
        assert!((connections.len(), connections.is_empty()) == (0, true) && connections.ids().is_empty());
        let (first, second) = (open(&mut connections), open(&mut connections));
        assert_eq!((connections.len(), connections.is_empty()), (2, false));
        assert_eq!(connections.ids(), [first, second]);
        connections.remove(first);
        assert_eq!((connections.id_at(first.slot), connections.id_at(second.slot)), (None, Some(second)));
        assert_eq!(connections.ids(), [second]);
    }

    #[test]
    fn exhausted_budget_is_counted_and_queued() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.requeue(id);
        assert_eq!(connections.budget_exhausted, 1);
        assert_eq!(connections.ready, [id]);
        connections.requeue(id);
        assert_eq!(connections.budget_exhausted, 2);
    }

    #[test]
    fn draining_connection_is_queued_until_it_is_served() {
        let mut connections = Connections::with_capacity(2);
        let (first, second) = (open(&mut connections), open(&mut connections));
        connections.drain(first);
        assert!(connections.any_draining_output());
        assert_eq!(round(&mut connections), [first]);
        assert!(!connections.any_draining_output(), "it waits for its peer, which must not delay the end of a drain");
        connections.drain(second);
        assert_eq!(connections.ready, [second]);
    }
}
