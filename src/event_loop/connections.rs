//! Connection storage: the slab, the ready queues, and the connections that wait for memory.

use std::collections::VecDeque;
use std::mem;

use slab::Slab;

use crate::event_loop::clock::NEVER;
use crate::event_loop::connection::{Connection, Quantum};
use crate::event_loop::observer::Observer;
use crate::event_loop::outcome::Outcome;
use crate::event_loop::protocol::{Echo, Protocol};
use crate::event_loop::readiness::Readable;
use crate::event_loop::scratch::Scratch;
use crate::event_loop::state::State;
use crate::event_loop::token::ConnectionId;
use crate::event_loop::transport::{Stream, Transport};

/// How long a connection that ran out of memory waits for its retry, in milliseconds.
const RETRY_INTERVAL_MS: u64 = 100;

/// Address space per connection, in bytes, that the storage and the queues need: see [`Connections::with_capacity`].
const BYTES_PER_SLOT: usize = 64 + 2 * size_of::<ConnectionId>() + 3 * 16 + size_of::<u32>();

/// All open connections, addressed by [`ConnectionId`], and the queues of those that have work to do.
///
/// A connection is in a queue at most once: its `queued` flag belongs to this type. An iteration of the loop serves the
/// connections that are queued when it starts ([`serve_light`](Connections::serve_light)). Those that become ready in the
/// meantime are served in the next one, so every iteration terminates.
///
/// A connection that had a large read when it was last served is *heavy*: it transfers bulk data. All others are *light*. Heavy
/// connections have a queue of their own, from which an iteration serves only a few, after all light ones
/// ([`serve_heavy`](Connections::serve_heavy)). So a small message waits for a bounded amount of bulk work, not for every bulk
/// transfer: the idea of fq_codel (RFC 8290, 4.2, sparse flows).
#[derive(Debug)]
pub struct Connections<T = Stream, P = Echo> {
    slab: Slab<Connection<T, P>>,
    /// By slot: when its connection was opened, in the milliseconds of the scratch context. Its length is one more than the highest
    /// slot that was ever used.
    opened_ms: Vec<u32>,
    /// How many connections fit into the reserved address space.
    capacity: usize,
    /// Light connections with work to do.
    light: Vec<ConnectionId>,
    /// Heavy connections with work to do.
    heavy: VecDeque<ConnectionId>,
    /// Outcomes on which the server has to act.
    outcomes: VecDeque<(ConnectionId, Outcome)>,
    /// Connections that ran out of memory, with the time of their retry in milliseconds, earliest first.
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

impl<T: Transport, P: Protocol> Connections<T, P> {
    /// Creates an empty storage and reserves address space for `slots` connections, so that it never has to be moved while it
    /// grows: that would take 20 ms at a million connections. If the system does not allow as much, for
    /// [`capacity`](Connections::capacity) connections.
    ///
    /// Memory is used only when connections arrive. And nothing that stays is allocated later, on top of the heap, where it would keep
    /// the memory of a peak from being returned.
    pub fn with_capacity(slots: usize) -> Self {
        let mut capacity = slots;
        while capacity > 1 && Vec::<u8>::new().try_reserve_exact(capacity * BYTES_PER_SLOT).is_err() {
            capacity /= 2;
        }
        Connections {
            slab: Slab::with_capacity(capacity),
            opened_ms: Vec::with_capacity(capacity),
            capacity,
            light: Vec::with_capacity(capacity),
            heavy: VecDeque::with_capacity(capacity),
            outcomes: VecDeque::with_capacity(capacity),
            out_of_memory: VecDeque::with_capacity(capacity),
            budget_exhausted: 0,
            last_number: 0,
        }
    }

    /// Returns how many connections fit into the reserved address space.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    // ---- the queues ----

    /// Records readiness from an event, and queues the connection if it has work to do. An event for a connection that has
    /// been closed in the meantime is ignored.
    #[inline]
    pub fn mark_ready(&mut self, id: ConnectionId, readable: Readable, writable: bool) {
        let connection = self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation);
        if let Some(connection) = connection
            && connection.record_readiness(readable, writable)
            && !mem::replace(&mut connection.queued, true)
        {
            if connection.is_heavy { self.heavy.push_back(id) } else { self.light.push(id) }
        }
    }

    /// Returns whether a connection is queued.
    pub fn has_ready(&self) -> bool {
        !self.light.is_empty() || !self.heavy.is_empty()
    }

    /// Returns whether a heavy connection is queued.
    #[inline]
    pub fn has_heavy(&self) -> bool {
        !self.heavy.is_empty()
    }

    /// Serves each light connection that is queued now, and returns how many there were. The caller acts on what
    /// [`next_outcome`](Connections::next_outcome) returns afterwards.
    #[inline(never)]
    pub fn serve_light(&mut self, scratch: &mut Scratch, observer: &mut impl Observer) -> usize {
        let count = self.light.len();
        for index in 0..count {
            let id = self.light[index];
            let Some(connection) = self.dequeued(id) else { continue };
            match connection.serve(Quantum::LIGHT, scratch, observer) {
                Outcome::Idle => {}
                outcome => self.record(id, outcome),
            }
        }
        if self.light.len() == count {
            self.light.clear();
        } else {
            self.light.drain(..count);
        }
        count
    }

    /// Serves heavy connections that are queued now, each at most once, until they have read `bytes`, discarded ones included. The
    /// one that reaches this bound may finish its quantum. Outcomes are as for [`serve_light`](Connections::serve_light).
    #[inline(never)]
    pub fn serve_heavy(&mut self, bytes: u64, scratch: &mut Scratch, observer: &mut impl Observer) {
        let until = scratch.traffic.read() + bytes;
        for _ in 0..self.heavy.len() {
            if scratch.traffic.read() >= until {
                break;
            }
            let Some(id) = self.heavy.pop_front() else { break };
            let Some(connection) = self.dequeued(id) else { continue };
            let outcome = connection.serve(Quantum::HEAVY, scratch, observer);
            self.record(id, outcome);
        }
    }

    /// Queues a connection that has work left. Other outcomes are up to the server.
    #[inline(never)]
    fn record(&mut self, id: ConnectionId, outcome: Outcome) {
        match outcome {
            Outcome::Idle => {}
            Outcome::Requeue => self.requeue(id),
            Outcome::OutOfMemory | Outcome::Closed(_) => self.outcomes.push_back((id, outcome)),
        }
    }

    /// Returns whether there are outcomes on which the server has to act.
    #[inline]
    pub fn has_outcomes(&self) -> bool {
        !self.outcomes.is_empty()
    }

    /// Returns the next outcome on which the server has to act: `OutOfMemory` or `Closed`.
    #[inline]
    pub fn next_outcome(&mut self) -> Option<(ConnectionId, Outcome)> {
        self.outcomes.pop_front()
    }

    /// Returns a connection that is about to be served, and may be queued again from now on, or `None` if it has been closed in
    /// the meantime.
    #[inline]
    fn dequeued(&mut self, id: ConnectionId) -> Option<&mut Connection<T, P>> {
        let connection = self.get_mut(id)?;
        connection.queued = false;
        Some(connection)
    }

    /// Queues a connection, unless it is queued already.
    pub fn enqueue(&mut self, id: ConnectionId) {
        let connection = self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation);
        if let Some(connection) = connection
            && !mem::replace(&mut connection.queued, true)
        {
            if connection.is_heavy { self.heavy.push_back(id) } else { self.light.push(id) }
        }
    }

    /// Queues an idle connection to look once whether it has work to do: as a light one, because it is not transferring bulk data
    /// now.
    pub fn enqueue_idle(&mut self, id: ConnectionId) {
        if let Some(connection) = self.get_mut(id) {
            connection.is_heavy = false;
        }
        self.mark_ready(id, Readable::UntilWouldBlock, true);
    }

    /// Queues a connection that used up its budget and has work left.
    fn requeue(&mut self, id: ConnectionId) {
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
    pub fn get_mut(&mut self, id: ConnectionId) -> Option<&mut Connection<T, P>> {
        self.slab.get_mut(id.slot as usize).filter(|connection| connection.number == id.generation)
    }

    /// Returns the connection currently in `slot`, if any.
    pub fn id_at(&self, slot: u32) -> Option<ConnectionId> {
        self.slab.get(slot as usize).map(|connection| ConnectionId { slot, generation: connection.number })
    }

    /// Returns one more than the highest slot that was ever used, for callers that visit all connections in portions.
    pub fn slots(&self) -> u32 {
        self.opened_ms.len() as u32
    }

    /// Returns for how many milliseconds the connection in `slot` has been open.
    pub fn open_for(&self, slot: u32, now: u32) -> u32 {
        self.opened_ms.get(slot as usize).map_or(0, |&opened| now.wrapping_sub(opened))
    }

    /// Reserves the id of the next connection. Its number is used up, whether or not the connection is inserted.
    pub fn next_id(&mut self) -> ConnectionId {
        self.last_number = self.last_number.wrapping_add(1).max(1);
        ConnectionId { slot: self.slab.vacant_key() as u32, generation: self.last_number }
    }

    /// Inserts a connection that was opened `now`, under the id that was reserved last.
    pub fn insert(&mut self, id: ConnectionId, connection: Connection<T, P>, now: u32) {
        let slot = self.slab.insert(connection);
        if slot == self.opened_ms.len() {
            self.opened_ms.push(now);
        } else {
            self.opened_ms[slot] = now;
        }
        debug_assert_eq!((slot, self.slab[slot].number), (id.slot as usize, id.generation));
    }

    /// Removes a connection, which must be open, and returns it.
    pub fn remove(&mut self, id: ConnectionId) -> Connection<T, P> {
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
    /// echoed than was in the receive buffer when the drain began; only in `FinWait` and `LastAck` it is up to the peer.
    ///
    /// Linear in the number of connections, and called only after the drain timeout.
    pub fn any_draining_output(&self) -> bool {
        let waits_for_peer = |state| matches!(state, State::FinWait | State::LastAck(_));
        self.slab.iter().any(|(_, connection)| connection.queued && !waits_for_peer(connection.state()))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use mio::net::UnixStream;

    use super::*;
    use crate::event_loop::observer::Silent;
    use crate::event_loop::outcome::CloseReason;
    use crate::event_loop::transport::Peer;

    fn open(connections: &mut Connections) -> ConnectionId {
        let (stream, _) = UnixStream::pair().expect("socket pair");
        open_stream(connections, stream)
    }

    fn open_stream(connections: &mut Connections, stream: UnixStream) -> ConnectionId {
        let id = connections.next_id();
        connections.insert(id, Connection::new(Stream::Unix(stream), Peer::Unix, id.generation, false, 0), 0);
        id
    }

    /// Opens two connections whose peers are open, too.
    fn open_with_peers(connections: &mut Connections) -> ([UnixStream; 2], [ConnectionId; 2]) {
        let pairs = [(); 2].map(|()| UnixStream::pair().expect("socket pair"));
        let (ours, theirs): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let ids: Vec<_> = ours.into_iter().map(|stream| open_stream(connections, stream)).collect();
        (theirs.try_into().expect("two peers"), ids.try_into().expect("two connections"))
    }

    /// Serves one round without heavy connections. Returns the light ones that were served in it.
    fn round(connections: &mut Connections) -> Vec<ConnectionId> {
        let queued = connections.light.clone();
        connections.serve_light(&mut Scratch::new(64, 1 << 20), &mut Silent);
        queued.into_iter().filter(|&id| connections.get_mut(id).is_some()).collect()
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
        assert_eq!(connections.light, [second]);
    }

    #[test]
    fn connection_is_queued_once() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.enqueue(id);
        connections.enqueue(id);
        connections.mark_ready(id, Readable::UntilWouldBlock, true);
        assert_eq!(connections.light, [id]);
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
        assert_eq!(connections.light, [id]);
        assert_eq!(connections.next_retry(), NEVER);
    }

    #[test]
    fn connections_becoming_ready_mid_iteration_wait_for_the_next() {
        let mut connections = Connections::with_capacity(2);
        let (mut peers, ids) = open_with_peers(&mut connections);
        for peer in &mut peers {
            // More than a quantum of the small buffer below.
            peer.write_all(&[b'x'; 8 * 64]).expect("room in the socket");
        }
        ids.iter().for_each(|&id| connections.mark_ready(id, Readable::UntilWouldBlock, true));
        for exhausted in [2, 4] {
            assert_eq!(round(&mut connections), ids, "an iteration that feeds itself would never end");
            assert_eq!((connections.budget_exhausted, &connections.light[..]), (exhausted, &ids[..]));
        }
        round(&mut connections);
        assert!(!connections.has_ready() && connections.next_outcome().is_none());
    }

    #[test]
    fn outcomes_are_left_for_the_server() {
        let mut connections = Connections::with_capacity(2);
        let (peers, ids) = open_with_peers(&mut connections);
        drop(peers);
        ids.iter().for_each(|&id| connections.mark_ready(id, Readable::UntilWouldBlock, true));
        round(&mut connections);
        let closed: Vec<_> = std::iter::from_fn(|| connections.next_outcome()).collect();
        assert_eq!(closed, ids.map(|id| (id, Outcome::Closed(CloseReason::Finished))));
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
        assert_eq!((connections.len(), connections.is_empty(), connections.slots()), (0, true, 0));
        let (first, second) = (open(&mut connections), open(&mut connections));
        assert_eq!((connections.len(), connections.is_empty(), connections.slots()), (2, false, 2));
        connections.remove(first);
        assert_eq!((connections.id_at(first.slot), connections.id_at(second.slot)), (None, Some(second)));
        assert_eq!((connections.len(), connections.slots()), (1, 2));
    }

    #[test]
    fn heavy_connections_have_a_queue_of_their_own() {
        let mut connections = Connections::with_capacity(2);
        let (_peers, [heavy, light]) = open_with_peers(&mut connections);
        connections.get_mut(heavy).expect("open connection").is_heavy = true;
        connections.mark_ready(heavy, Readable::UntilWouldBlock, true);
        connections.enqueue(light);
        assert_eq!(round(&mut connections), [light]);
        assert!(connections.has_ready(), "the loop must not sleep");
        connections.serve_heavy(1, &mut Scratch::new(64, 1 << 20), &mut Silent);
        assert!(!connections.has_ready(), "it has been served");
        connections.mark_ready(heavy, Readable::UntilWouldBlock, true);
        assert_eq!(connections.light, [heavy], "without a large read, it is light again");
        connections.remove(heavy);
        assert!(round(&mut connections).is_empty(), "it has been closed");
    }

    #[test]
    fn discarded_bytes_count_as_heavy_work() {
        let mut connections = Connections::with_capacity(2);
        let (mut peers, ids) = open_with_peers(&mut connections);
        ids.iter().for_each(|&id| connections.drain(id));
        round(&mut connections);
        for (peer, id) in peers.iter_mut().zip(ids) {
            peer.write_all(b"after our FIN").expect("room in the socket");
            connections.get_mut(id).expect("open connection").is_heavy = true;
            connections.mark_ready(id, Readable::UntilWouldBlock, true);
        }
        let mut scratch = Scratch::new(64, 1 << 20);
        connections.serve_heavy(1, &mut scratch, &mut Silent);
        assert_eq!(scratch.traffic.discarded, 13);
        assert_eq!(connections.heavy, [ids[1]], "the second one waits for the next iteration");
    }

    #[test]
    fn idle_connection_is_looked_at_as_a_light_one() {
        let mut connections = Connections::with_capacity(1);
        let id = open(&mut connections);
        connections.get_mut(id).expect("open connection").is_heavy = true;
        connections.enqueue_idle(id);
        assert_eq!(connections.light, [id]);
    }

    #[test]
    fn impossible_capacity_is_reduced() {
        let connections: Connections = Connections::with_capacity(usize::MAX / BYTES_PER_SLOT / 2);
        assert!((1..usize::MAX / BYTES_PER_SLOT / 2).contains(&connections.capacity()));
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
        assert_eq!(connections.light, [second]);
    }
}
