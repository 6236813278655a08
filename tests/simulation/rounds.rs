//! Several connections over simulated kernels, served in rounds as the server serves them: the ready queues, the quanta and the bound
//! on heavy work, without sockets.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use echod::event_loop::connection::{Connection, HEAVY_READ, Quantum};
use echod::event_loop::connections::Connections;
use echod::event_loop::observer::{ConnectionEvent, Observer};
use echod::event_loop::outcome::{CloseReason, Outcome};
use echod::event_loop::readiness::Readable;
use echod::event_loop::scratch::Scratch;
use echod::event_loop::token::ConnectionId;
use echod::event_loop::transport::Peer;
use fastrand::Rng;

use crate::kernel::{Chance, FakeKernel, Socket};

/// The size of the scratch buffer in bytes: more than the read that makes a connection heavy.
const BUFFER_SIZE: usize = 2 * HEAVY_READ;

/// How many bytes a round may read from heavy connections.
const HEAVY_BYTES: u64 = 4 * BUFFER_SIZE as u64;

/// Rounds of a schedule.
const ROUNDS: usize = 40;

/// Milliseconds per round: several pass until a connection without memory is retried.
const MS_PER_ROUND: u64 = 30;

/// What the peer of a connection sends.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// Small messages.
    Chat,
    /// As much as it can.
    Bulk,
    /// Large and small messages in turn: light whenever a large one arrives.
    Bursts,
}

/// A simulated peer and its connection.
struct Client {
    id: ConnectionId,
    kind: Kind,
    kernel: Rc<RefCell<FakeKernel>>,
}

/// Watches the order of reads, and lets small messages arrive between them.
struct Watch {
    rng: Rng,
    clients: HashMap<u32, (Kind, Rc<RefCell<FakeKernel>>)>,
    /// Bytes read so far from connections that are not `Kind::Chat`.
    bulk_bytes: u64,
    /// Connections with an unread small message: how many bulk bytes had been read when it arrived.
    waiting: HashMap<u32, u64>,
    /// The most bulk bytes that were read while a small message waited.
    max_wait: u64,
    /// The round in which a byte of each connection was read last.
    last_read: HashMap<u32, usize>,
    round: usize,
}

impl Watch {
    /// Lets a client that has nothing unread send a small message.
    fn send_small_message(&mut self) {
        let idle = |(&number, (kind, _)): (&u32, &(Kind, _))| {
            (*kind == Kind::Chat && !self.waiting.contains_key(&number)).then_some(number)
        };
        let mut numbers: Vec<u32> = self.clients.iter().filter_map(idle).collect();
        numbers.sort_unstable(); // A hash map's order would not be repeatable.
        if let Some(&number) = self.rng.choice(&numbers) {
            self.clients[&number].1.borrow_mut().peer_sends(self.rng.usize(1..200), false);
            self.waiting.insert(number, self.bulk_bytes);
        }
    }
}

impl Observer for Watch {
    fn event(&mut self, number: u32, event: ConnectionEvent<'_>) {
        let ConnectionEvent::Received(bytes) = event else { return };
        self.last_read.insert(number, self.round);
        if self.clients[&number].0 == Kind::Chat {
            if let Some(since) = self.waiting.remove(&number) {
                self.max_wait = self.max_wait.max(self.bulk_bytes - since);
            }
            return;
        }
        self.bulk_bytes += bytes.len() as u64;
        if self.rng.u32(..4) == 0 {
            self.send_small_message();
        }
    }
}

/// The part of the server that polls and serves.
struct Rounds {
    connections: Connections<Socket>,
    scratch: Scratch,
    watch: Watch,
    clients: Vec<Client>,
    closed: Vec<ConnectionId>,
    faults: u32,
    now: u64,
}

impl Rounds {
    fn open(&mut self, kind: Kind) {
        let rng = self.watch.rng.fork();
        let chance = Some(Chance { faults: self.faults, rng });
        // Chats read their echoes at once. The others do not always.
        let room = if kind == Kind::Chat { usize::MAX / 2 } else { 3 * BUFFER_SIZE };
        let kernel = Rc::new(RefCell::new(FakeKernel::new(self.watch.rng.u32(..4) > 0, room, chance)));
        let id = self.connections.next_id();
        let connection = Connection::new(Socket(Rc::clone(&kernel)), Peer::Unix, id.generation, false, self.now as u32);
        self.connections.insert(id, connection, self.now as u32);
        self.watch.clients.insert(id.generation, (kind, Rc::clone(&kernel)));
        self.watch.last_read.insert(id.generation, self.watch.round);
        self.clients.push(Client { id, kind, kernel });
    }

    /// What the peers do before a round.
    fn peers_act(&mut self) {
        let Rounds { clients, watch, .. } = self;
        for Client { kind, kernel, .. } in clients {
            let (kernel, rng) = (&mut *kernel.borrow_mut(), &mut watch.rng);
            kernel.peer_acknowledges(usize::MAX / 2);
            let unread = kernel.inbox.len();
            match kind {
                Kind::Chat => {}
                Kind::Bulk if unread < 8 * BUFFER_SIZE => kernel.peer_sends(rng.usize(1..12 * BUFFER_SIZE), false),
                Kind::Bursts if unread == 0 => {
                    let count = if rng.bool() { rng.usize(1..100) } else { rng.usize(1..8 * BUFFER_SIZE) };
                    kernel.peer_sends(count, false);
                }
                Kind::Bulk | Kind::Bursts => {}
            }
            if *kind != Kind::Chat && rng.u32(..3) > 0 {
                kernel.peer_reads(rng.usize(..12 * BUFFER_SIZE));
            }
        }
        watch.send_small_message();
    }

    /// One iteration of the loop: poll, then serve.
    fn iterate(&mut self) {
        self.now += MS_PER_ROUND;
        self.watch.round += 1;
        self.scratch.ms = self.now as u32;
        self.connections.requeue_due_retries(self.now);
        for Client { id, kernel, .. } in &self.clients {
            let (readable, writable) = kernel.borrow().flags();
            if std::mem::take(&mut kernel.borrow_mut().edge) {
                self.connections.mark_ready(*id, readable, writable);
            }
        }
        for &id in self.closed.iter().rev().take(2) {
            self.connections.mark_ready(id, Readable::UntilWouldBlock, true); // Stale: it must not wake another connection.
        }
        self.connections.serve_light(&mut self.scratch, &mut self.watch);
        self.connections.serve_heavy(HEAVY_BYTES, &mut self.scratch, &mut self.watch);
        while let Some((id, outcome)) = self.connections.next_outcome() {
            match outcome {
                Outcome::Idle | Outcome::Requeue => panic!("{outcome:?} is not for the server"),
                Outcome::OutOfMemory => {
                    self.connections.retry_later(id, self.now);
                    self.watch.waiting.remove(&id.generation); // It waits for memory.
                }
                Outcome::Closed(reason) => self.close(id, reason),
            }
        }
    }

    fn close(&mut self, id: ConnectionId, reason: CloseReason) {
        self.connections.remove(id).release(&mut self.scratch);
        self.closed.push(id);
        self.watch.waiting.remove(&id.generation);
        let place = self.clients.iter().position(|client| client.id == id).expect("an open connection");
        let client = self.clients.swap_remove(place);
        self.watch.clients.remove(&id.generation);
        let kernel = client.kernel.borrow();
        assert!(kernel.echoed_in_order(), "the bytes sent are a prefix of the bytes received");
        if reason == CloseReason::Finished {
            assert_eq!(kernel.outbox.len(), kernel.sent_by_peer, "finished means that everything was echoed");
        }
    }

    /// Checks that no connection with something to read is passed over for long: a round serves at least one heavy connection.
    fn check_turns(&self) {
        let bound = self.clients.len() + 2;
        for client in &self.clients {
            let kernel = client.kernel.borrow();
            let can_echo = !kernel.inbox.is_empty() && kernel.room > 0 && self.faults == 0;
            let rounds = self.watch.round - self.watch.last_read[&client.id.generation];
            assert!(!can_echo || rounds <= bound, "{:?} {:?} waits for {rounds} rounds", client.kind, client.id);
        }
    }
}

/// Runs the schedule that this seed draws. Returns the most bulk bytes for which a small message waited, and its bound.
fn run_seed(seed: u64) -> (u64, u64) {
    let mut rng = Rng::with_seed(seed);
    let (chats, bulk, bursts) = (rng.usize(1..4), rng.usize(..8), rng.usize(..8));
    let faults = if rng.u32(..4) == 0 { 2 } else { 0 };
    let (clients, waiting, last_read) = (HashMap::new(), HashMap::new(), HashMap::new());
    let watch = Watch { rng, clients, bulk_bytes: 0, waiting, max_wait: 0, last_read, round: 0 };
    let (connections, scratch) = (Connections::with_capacity(32), Scratch::new(BUFFER_SIZE, 64 << 20));
    let mut rounds = Rounds { connections, scratch, watch, clients: Vec::new(), closed: Vec::new(), faults, now: 0 };
    for (count, kind) in [(chats, Kind::Chat), (bulk, Kind::Bulk), (bursts, Kind::Bursts)] {
        (0..count).for_each(|_| rounds.open(kind));
    }
    for _ in 0..ROUNDS {
        rounds.peers_act();
        if rounds.watch.rng.u32(..6) == 0 {
            let place = rounds.watch.rng.usize(..rounds.clients.len());
            let Client { kind, ref kernel, .. } = rounds.clients[place];
            if rounds.watch.rng.bool() {
                kernel.borrow_mut().peer_sends_fin();
            } else {
                kernel.borrow_mut().peer_resets();
            }
            rounds.open(kind);
        }
        rounds.iterate();
        rounds.check_turns();
    }
    // What a small message waits for: the rest of a round, which began with the first large read of each connection that was
    // light, and ends with a heavy quantum; then the light connections before it in the next one.
    let first_reads = (rounds.clients.len() + rounds.closed.len()) * HEAVY_READ;
    let quantum = (Quantum::HEAVY.reads * BUFFER_SIZE).min(Quantum::HEAVY.bytes);
    let bound = HEAVY_BYTES + quantum as u64 + 2 * first_reads as u64;
    let max_wait = rounds.watch.max_wait;

    // At the end the peers behave, and everything must have been echoed.
    for client in &rounds.clients {
        client.kernel.borrow_mut().forget_plans();
    }
    for _ in 0..1000 {
        for client in &rounds.clients {
            client.kernel.borrow_mut().peer_reads(usize::MAX / 4);
            client.kernel.borrow_mut().peer_acknowledges(usize::MAX / 2);
        }
        rounds.iterate();
        let is_done = |client: &Client| {
            let kernel = client.kernel.borrow();
            kernel.inbox.is_empty() && !kernel.edge && kernel.outbox.len() == kernel.sent_by_peer
        };
        if rounds.clients.iter().all(is_done) && !rounds.connections.has_ready() {
            assert!(rounds.clients.iter().all(|client| client.kernel.borrow().echoed_in_order()));
            return (max_wait, bound);
        }
    }
    panic!("it does not come to rest");
}

#[test]
fn light_connection_waits_for_bounded_heavy_work() {
    let mut longest = 0.0_f64;
    for seed in 0..60 {
        match std::panic::catch_unwind(|| run_seed(seed)) {
            Ok((wait, bound)) => {
                assert!(wait <= bound, "seed {seed}: a small message waits for {wait} bytes of bulk, bound {bound}");
                longest = longest.max(wait as f64 / bound as f64);
            }
            Err(_) => panic!("schedule {seed} of several connections fails"),
        }
    }
    assert!(longest > 0.5, "the schedules hardly reach the bound: {longest:.2} of it");
}
