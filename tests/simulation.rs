//! The state machine under a simulated kernel and a random schedule, a hundred thousand times.
//!
//! The kernel of this file has a receive queue, room for what is sent, FIN, RST, urgent marks, and edges: an event
//! comes once, and its flags are those of the moment in which it is fetched. A schedule is a row of steps drawn from a
//! seed: the peer sends, finishes, reads, resets; events are fetched, late, spurious or stale; calls fall short, are
//! interrupted or find no memory; the server drains. After every turn the invariants are checked; at the end the peer
//! behaves, and everything must have come back.
//!
//! The same steps are drawn a second time, by proptest, as a script: fewer of them, because drawing takes longer, but
//! one that fails is cut down to the shortest that still does.
//!
//!     ECHOD_SCHEDULES=10000000 cargo test --release --test simulation    # more schedules
//!     ECHOD_SEED=4711 cargo test --test simulation                       # one schedule, told step by step
//!     ECHOD_SCRIPTS=1000000 cargo test --release --test simulation       # more scripts

#![allow(clippy::print_stdout)] // A schedule is told step by step when asked for.

#[path = "support/property.rs"]
mod property;

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::io::{self, Read, Write};
use std::rc::Rc;

use echod::event_loop::connection::{Connection, MAX_READS_PER_SERVE};
use echod::event_loop::observer::{ConnectionEvent, Observer};
use echod::event_loop::outcome::{CloseReason, Outcome};
use echod::event_loop::readiness::Readable;
use echod::event_loop::scratch::Scratch;
use echod::event_loop::state::{State, TRANSITIONS};
use echod::event_loop::transport::{Peer, Transport};
use fastrand::Rng;
use proptest::collection::vec;
use proptest::prelude::*;
use rustix::io::Errno;

/// Small, so that full reads, short reads and stalls all are common.
const BUFFER_SIZE: usize = 16;

/// How a schedule begins.
#[derive(Clone, Debug)]
struct Start {
    tcp: bool,
    one_shot: bool,
    room: usize,
    chance: Option<Chance>,
}

/// What befalls single calls under a seed. In a script these are steps, too, and nothing is left to chance.
#[derive(Clone, Debug)]
struct Chance {
    /// Percent of calls that are interrupted or find no memory. Of the others, a quarter falls short.
    faults: u32,
    rng: Rng,
}

impl Start {
    fn draw(rng: &mut Rng) -> Start {
        let (tcp, from, one_shot) = (rng.bool(), rng.fork(), rng.u32(..8) == 0);
        let (room, faults) = (rng.usize(..40), if rng.u32(..4) == 0 { 20 } else { 0 });
        Start { tcp, one_shot, room, chance: Some(Chance { faults, rng: from }) }
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The server takes the turn that is due.
    Serve,
    /// The poller is asked for an event.
    Fetch,
    /// So many milliseconds pass.
    Pass(u32),
    PeerMakesRoom(usize),
    PeerSends {
        count: usize,
        marked: bool,
    },
    PeerFinishes,
    PeerResets,
    /// Whoever found no memory tries again.
    Resume,
    /// An event that means nothing: spurious, or meant for a former owner of the slot.
    StaleEvent(Readable, bool),
    /// The server drains. FIONREAD tells it of so many bytes more than there are, as beside urgent marks.
    Drain {
        overstated: u32,
    },
    /// The call that comes after so many others from here on does no more than so many bytes.
    CallFallsShort {
        after: usize,
        most: usize,
    },
    CallFails {
        after: usize,
        errno: Errno,
    },
}

/// How a call fails though nothing is wrong with the connection.
const FAULTS: [Errno; 3] = [Errno::INTR, Errno::NOMEM, Errno::NOBUFS];

/// As far as an event may say to read.
const READABLE: [Readable; 3] = [Readable::No, Readable::UntilShort, Readable::UntilWouldBlock];

impl Step {
    fn draw(rng: &mut Rng) -> Step {
        match rng.u32(..100) {
            0..25 => {
                let count = if rng.u32(..3) == 0 { rng.usize(1..100) } else { rng.usize(1..20) };
                Step::PeerSends { count, marked: rng.u32(..12) == 0 }
            }
            25..40 => Step::PeerMakesRoom(rng.usize(1..60)),
            40..43 => Step::PeerFinishes,
            43 if rng.u32(..4) == 0 => Step::PeerResets,
            44 => Step::Drain { overstated: u32::from(rng.u32(..4) == 0) },
            45..50 => Step::StaleEvent(READABLE[rng.usize(..3)], rng.bool()),
            50..75 => Step::Fetch,
            75..77 => Step::Resume,
            _ => Step::Serve,
        }
    }
}

/// One connected socket, as the kernel sees it.
#[derive(Debug)]
struct FakeKernel {
    /// Whether this is TCP: a short read then empties the queue, but for marks.
    tcp: bool,
    /// What the peer has sent and we have not read.
    inbox: VecDeque<u8>,
    /// How many bytes we have read in all.
    read: usize,
    /// Places in the peer's stream at which a read ends early: urgent marks on TCP, ancillary data on Unix.
    marks: Vec<usize>,
    /// Bytes that the peer has sent in all.
    sent_by_peer: usize,
    peer_finished: bool,
    reset: bool,
    /// How much more write(2) takes at the moment.
    room: usize,
    /// What came back to the peer.
    outbox: Vec<u8>,
    we_finished: bool,
    /// Something has happened since the last event was fetched.
    edge: bool,
    /// write(2) has said WouldBlock; room makes an edge only then (epoll(7), SOCK_NOSPACE).
    wants_room: bool,
    /// How many bytes more FIONREAD tells of than there are.
    overstated: u32,
    chance: Option<Chance>,
    /// What a script has in store for single calls, by their number: how many bytes at most, or an error.
    in_store: Vec<(usize, Result<usize, Errno>)>,
    calls: usize,
    reads: usize,
}

impl FakeKernel {
    fn new(start: Start) -> FakeKernel {
        FakeKernel {
            tcp: start.tcp,
            inbox: VecDeque::new(),
            read: 0,
            marks: Vec::new(),
            sent_by_peer: 0,
            peer_finished: false,
            reset: false,
            room: start.room,
            outbox: Vec::new(),
            we_finished: false,
            edge: true, // Registering reports what is there.
            wants_room: false,
            overstated: 0,
            chance: start.chance,
            in_store: Vec::new(),
            calls: 0,
            reads: 0,
        }
    }

    /// The byte at this place of the peer's stream. Its period is no power of two, so that a shift is seen.
    fn byte(place: usize) -> u8 {
        (place % 251) as u8
    }

    fn peer_sends(&mut self, count: usize, marked: bool) {
        if self.peer_finished || self.reset {
            return;
        }
        for place in self.sent_by_peer..self.sent_by_peer + count {
            self.inbox.push_back(FakeKernel::byte(place));
        }
        self.sent_by_peer += count;
        if marked {
            // The urgent byte is the last one: a read ends before it.
            self.marks.push(self.sent_by_peer - 1);
        }
        self.edge = true;
    }

    fn peer_reads(&mut self, count: usize) {
        self.room += count;
        if self.wants_room && count > 0 {
            self.wants_room = false;
            self.edge = true;
        }
    }

    fn peer_finishes(&mut self) {
        if !self.reset {
            self.peer_finished = true;
            self.edge = true;
        }
    }

    fn peer_resets(&mut self) {
        self.reset = true;
        self.inbox.clear();
        self.edge = true;
    }

    /// What epoll_wait(2) would report now: the flags are levels, only their report is an edge. In the terms of
    /// `note`: how far to read, and whether to write.
    fn flags(&self) -> (Readable, bool) {
        let marked = self.marks.iter().any(|&mark| mark >= self.read);
        let readable = if self.reset || self.peer_finished || marked {
            Readable::UntilWouldBlock
        } else if !self.inbox.is_empty() {
            Readable::UntilShort
        } else {
            Readable::No
        };
        (readable, self.reset || self.room > 0)
    }

    /// Whether read(2) has something to say that is not WouldBlock.
    fn has_news(&self) -> bool {
        self.reset || self.peer_finished || !self.inbox.is_empty()
    }

    fn stores(&mut self, after: usize, outcome: Result<usize, Errno>) {
        self.in_store.push((self.calls + after + 1, outcome));
    }

    fn in_store(&self) -> Option<Result<usize, Errno>> {
        self.in_store.iter().find(|(call, _)| *call == self.calls).map(|(_, outcome)| *outcome)
    }

    /// One call more. It may fail, though nothing is wrong with the connection.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if let Some(Chance { faults, rng }) = &mut self.chance
            && rng.u32(..100) < *faults
        {
            return Err(FAULTS[rng.usize(..3)].into());
        }
        match self.in_store() {
            Some(Err(errno)) => Err(errno.into()),
            _ => Ok(()),
        }
    }

    /// Of so many bytes that this call could do, those that it does: at least one.
    fn shortened(&mut self, count: usize) -> usize {
        if let Some(Chance { rng, .. }) = &mut self.chance
            && rng.u32(..4) == 0
        {
            return rng.usize(1..=count);
        }
        match self.in_store() {
            Some(Ok(most)) => count.min(most),
            _ => count,
        }
    }
}

/// Our end of the simulated socket.
#[derive(Clone, Debug)]
struct Socket(Rc<RefCell<FakeKernel>>);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        kernel.reads += 1;
        assert!(!buffer.is_empty(), "an empty read says 0, which looks like a FIN");
        if kernel.reset {
            return Err(Errno::CONNRESET.into());
        }
        if kernel.inbox.is_empty() {
            return if kernel.peer_finished { Ok(0) } else { Err(Errno::AGAIN.into()) };
        }
        let mut count = buffer.len().min(kernel.inbox.len());
        if let Some(mark) = kernel.marks.iter().filter(|&&mark| mark > kernel.read).min() {
            count = count.min(mark - kernel.read);
        }
        if !kernel.tcp {
            count = kernel.shortened(count);
        }
        for place in &mut buffer[..count] {
            *place = kernel.inbox.pop_front().expect("counted");
        }
        kernel.read += count;
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        assert!(!kernel.we_finished, "nothing is written after our FIN");
        if kernel.reset {
            return Err(Errno::PIPE.into());
        }
        if kernel.room == 0 {
            kernel.wants_room = true;
            return Err(Errno::AGAIN.into());
        }
        let count = kernel.shortened(bytes.len().min(kernel.room));
        kernel.room -= count;
        kernel.outbox.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Transport for Socket {
    fn short_read_drains(&self) -> bool {
        self.0.borrow().tcp
    }

    fn bytes_available(&self) -> io::Result<u32> {
        let kernel = self.0.borrow();
        // One more beside a FIN, now and then: whoever counts on it must still see the end.
        let fin = u32::from(kernel.peer_finished && kernel.sent_by_peer % 2 == 1);
        Ok(kernel.inbox.len() as u32 + fin + kernel.overstated)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        if kernel.reset {
            return Err(Errno::NOTCONN.into());
        }
        assert!(!kernel.we_finished, "our FIN goes out once");
        kernel.we_finished = true;
        Ok(())
    }
}

/// Adds up what it is told, to compare with what the kernel saw.
#[derive(Default)]
struct Tally {
    received: usize,
    sent: usize,
    peer_finished: bool,
    we_finished: bool,
}

impl Observer for Tally {
    fn event(&mut self, _number: u32, fact: ConnectionEvent<'_>) {
        match fact {
            ConnectionEvent::Received(bytes) => self.received += bytes.len(),
            ConnectionEvent::Sent(bytes) => {
                assert!(!self.we_finished && !bytes.is_empty());
                self.sent += bytes.len();
            }
            ConnectionEvent::PeerClosedWrite => self.peer_finished = true,
            ConnectionEvent::SentFin => {
                assert!(!self.we_finished, "our FIN goes out once");
                self.we_finished = true;
            }
            ConnectionEvent::Stalled(_) | ConnectionEvent::Discarded(_) => {}
        }
    }
}

/// How things stood before a turn.
struct Before {
    pending: usize,
    sent: usize,
    calls: usize,
    reads: usize,
    read: usize,
}

/// A connection, the kernel below it, and the little of the server that keeps a queue.
struct World {
    kernel: Rc<RefCell<FakeKernel>>,
    connection: Connection<Socket>,
    tally: Tally,
    scratch: Scratch,
    one_shot: bool,
    queued: bool,
    starved: bool,
    ended: Option<CloseReason>,
    /// How much the peer had sent and we had not read when the drain began, and when our FIN went out.
    held_at_drain: Option<usize>,
    told_at_drain: usize,
    sent_at_finish: Option<usize>,
    /// From which state a step or a turn led to which, or to which end.
    ways: HashSet<(&'static str, &'static str)>,
    /// When a byte last moved, in the milliseconds of the bench.
    moved_at: u32,
    tell: bool,
}

impl World {
    fn new(start: Start, tell: bool) -> World {
        let one_shot = start.one_shot;
        let kernel = Rc::new(RefCell::new(FakeKernel::new(start)));
        World {
            connection: Connection::new(Socket(Rc::clone(&kernel)), Peer::Unix, 1, one_shot, 0),
            kernel,
            tally: Tally::default(),
            scratch: Scratch::new(BUFFER_SIZE),
            one_shot,
            queued: false,
            starved: false,
            ended: None,
            held_at_drain: None,
            told_at_drain: 0,
            sent_at_finish: None,
            ways: HashSet::new(),
            moved_at: 0,
            tell,
        }
    }

    fn say(&self, step: impl FnOnce() -> String) {
        if self.tell {
            println!("{}", step());
        }
    }

    /// The poller: an event, if there is one.
    fn fetch(&mut self) {
        let (readable, writable) = {
            let kernel = &mut *self.kernel.borrow_mut();
            if !std::mem::take(&mut kernel.edge) {
                return;
            }
            kernel.flags()
        };
        self.say(|| format!("event: {readable:?}, writable: {writable}"));
        self.queued |= self.connection.record_readiness(readable, writable);
    }

    fn fetch_stale(&mut self, readable: Readable, writable: bool) {
        self.say(|| format!("stale event: {readable:?}, writable: {writable}"));
        self.queued |= self.connection.record_readiness(readable, writable);
    }

    fn drain(&mut self, more: u32) {
        let held = self.kernel.borrow().inbox.len();
        let before = self.connection.state();
        let open = matches!(before, State::Established | State::OneMessage);
        let more = if before == State::Established { more } else { 0 };
        self.kernel.borrow_mut().overstated = more;
        let changes = self.connection.drain();
        self.kernel.borrow_mut().overstated = 0;
        assert_eq!(changes, open, "whoever is open drains, whoever is finishing already goes on");
        if changes {
            self.ways.insert((before.name(), self.connection.state().name()));
            self.say(|| format!("drain, {held} held, told of {more} more"));
            self.held_at_drain = Some(self.tally.received + held);
            self.told_at_drain = self.tally.received + held + more as usize;
            self.queued = true;
        }
    }

    /// The server's part: one turn if queued, and what follows.
    fn serve(&mut self) {
        if !std::mem::take(&mut self.queued) {
            return;
        }
        let before = Before {
            pending: self.connection.pending_len(),
            sent: self.kernel.borrow().outbox.len(),
            calls: self.kernel.borrow().calls,
            reads: self.kernel.borrow().reads,
            read: self.kernel.borrow().read,
        };
        let before_turn = self.connection.state();
        let turn = self.connection.serve(&mut self.scratch, &mut self.tally);
        let state = self.connection.state();
        self.ways.insert((before_turn.name(), state.name()));
        if let Outcome::Closed(reason) = turn {
            self.ways.insert((state.name(), CloseReason::NAMES[reason.index()]));
        }
        self.say(|| format!("turn: {turn:?}, {state:?}"));
        self.check(turn, &before);
        match turn {
            Outcome::Idle => {}
            Outcome::Requeue => self.queued = true,
            Outcome::OutOfMemory => self.starved = true,
            Outcome::Closed(reason) => self.ended = Some(reason),
        }
    }

    /// What must hold after every turn.
    fn check(&mut self, turn: Outcome, before: &Before) {
        let kernel = self.kernel.borrow();
        let connection = &self.connection;

        // What goes out is what came in.
        assert!(
            kernel.outbox.iter().enumerate().all(|(place, &byte)| byte == FakeKernel::byte(place)),
            "the bytes sent are a prefix of the bytes received"
        );
        assert_eq!(self.tally.sent, kernel.outbox.len(), "the observer is told what went out");
        assert_eq!(connection.sent(), kernel.outbox.len() as u64);
        assert_eq!(self.scratch.traffic.sent, kernel.outbox.len() as u64);
        assert_eq!(self.scratch.traffic.received, self.tally.received as u64);
        assert_eq!(connection.received(), self.tally.received as u64);
        assert_eq!(
            self.scratch.traffic.received + self.scratch.traffic.discarded,
            kernel.read as u64,
            "no byte read is unaccounted for"
        );

        assert_eq!(
            self.scratch.traffic.stalled,
            usize::from(connection.is_stalled()),
            "stalled connections are counted"
        );

        // Bytes that move are life, whatever becomes of them; a turn that moves none is not.
        if kernel.outbox.len() > before.sent || kernel.read > before.read {
            self.moved_at = self.scratch.ms;
        }
        assert_eq!(connection.idle_for(self.scratch.ms), self.scratch.ms - self.moved_at);

        // Memory and work are bounded.
        assert!(connection.pending_len() <= BUFFER_SIZE, "pending never passes the buffer");
        assert!(kernel.reads - before.reads <= MAX_READS_PER_SERVE, "reads in a turn are bounded");
        // Each read comes with its answer: here write falls short at every byte in the worst case.
        assert!(
            kernel.calls - before.calls <= (MAX_READS_PER_SERVE + 1) * (BUFFER_SIZE + 2),
            "calls in a turn are bounded"
        );
        if kernel.outbox.len() < before.sent + before.pending {
            assert_eq!(kernel.reads, before.reads, "nothing is read while something is pending");
        }

        // Whoever waits will be woken.
        if turn == Outcome::Idle && !kernel.edge {
            if connection.is_stalled() {
                assert!(kernel.wants_room, "it waits for room, of which the kernel knows nothing");
            } else {
                assert!(!kernel.has_news(), "it waits although there is something to read and no event to come");
            }
        }

        // What was held is there: nobody waits for an event to tell of it, or for more than there is.
        if turn == Outcome::Idle && !connection.is_stalled() {
            let held = matches!(connection.state(), State::Draining { .. } | State::Discarding { .. });
            assert!(!held, "it waits with what was held not read, or not all of it there");
        }

        // Our FIN: after all that was owed, and for a reason.
        if kernel.we_finished || self.tally.we_finished {
            if self.sent_at_finish.is_none() {
                self.sent_at_finish = Some(kernel.sent_by_peer);
            }
            assert!(!connection.is_stalled(), "our FIN goes out behind everything that is owed");
            assert!(
                self.tally.peer_finished || self.one_shot || self.held_at_drain.is_some(),
                "nobody asked to finish"
            );
        }

        // A peer that keeps sending puts nothing off.
        if self.held_at_drain.is_some() && !self.one_shot {
            assert!(self.tally.received <= self.told_at_drain, "a drain answers what was held, and no more");
        }
        if let Some(sent) = self.sent_at_finish.filter(|_| connection.state() != State::FinWait && self.one_shot) {
            assert!(kernel.read <= sent, "one-shot discards what waited at our FIN, and no more");
        }

        let Outcome::Closed(reason) = turn else { return };
        match reason {
            CloseReason::Finished => {
                assert!(self.tally.peer_finished && self.tally.we_finished);
                assert!(!kernel.we_finished, "the peer's FIN came first: ours is close(2)");
                assert_eq!(kernel.outbox.len(), kernel.sent_by_peer, "everything before the peer's FIN is echoed");
            }
            CloseReason::Drained => {
                assert!(kernel.we_finished && self.tally.peer_finished);
                assert!(kernel.inbox.is_empty(), "close with unread bytes sends RST");
            }
            CloseReason::OneShot => {
                assert!(self.one_shot && kernel.we_finished);
                let before = self.sent_at_finish.unwrap_or(0);
                assert!(kernel.read >= before, "what waits at our FIN is discarded before close");
                assert_eq!(kernel.outbox.len(), self.tally.received);
            }
            CloseReason::Reset => assert!(kernel.reset, "a reset that the peer did not send"),
            CloseReason::Idle | CloseReason::Cut | CloseReason::Error(_) => {
                panic!("{reason:?} is not for the connection to say")
            }
        }
        if let Some(held) = self.held_at_drain.filter(|_| reason == CloseReason::Drained) {
            assert!(self.one_shot || kernel.outbox.len() >= held, "what the kernel held at the drain is echoed");
            assert!(held == 0 || !kernel.outbox.is_empty(), "a message that was there at the drain is answered");
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Serve => self.serve(),
            Step::Fetch => self.fetch(),
            Step::Pass(ms) => self.scratch.ms += ms,
            Step::PeerMakesRoom(count) => {
                self.say(|| format!("peer makes room for {count}"));
                self.kernel.borrow_mut().peer_reads(count);
            }
            Step::PeerSends { count, marked } => {
                self.say(|| format!("peer sends {count}, marked: {marked}"));
                self.kernel.borrow_mut().peer_sends(count, marked);
            }
            Step::PeerFinishes => {
                self.say(|| "peer finishes".into());
                self.kernel.borrow_mut().peer_finishes();
            }
            Step::PeerResets => {
                self.say(|| "peer resets".into());
                self.kernel.borrow_mut().peer_resets();
            }
            Step::Resume => self.queued |= std::mem::take(&mut self.starved),
            // A stale "readable" cannot hide a FIN: the event that tells of it is still to come.
            Step::StaleEvent(readable, writable) => self.fetch_stale(readable, writable),
            Step::Drain { overstated } => self.drain(overstated),
            Step::CallFallsShort { after, most } => self.kernel.borrow_mut().stores(after, Ok(most)),
            Step::CallFails { after, errno } => self.kernel.borrow_mut().stores(after, Err(errno)),
        }
    }

    /// The peer behaves: it takes everything, and finishes when nothing more comes. Returns how it ends.
    fn settle(&mut self) -> CloseReason {
        if let Some(chance) = &mut self.kernel.borrow_mut().chance {
            chance.faults = 0;
        }
        self.kernel.borrow_mut().in_store.clear();
        for round in 0..10_000 {
            if let Some(reason) = self.ended {
                return reason;
            }
            self.queued |= std::mem::take(&mut self.starved);
            self.kernel.borrow_mut().peer_reads(1000);
            self.fetch();
            if !self.queued {
                let finished = self.kernel.borrow().peer_finished;
                assert!(!finished, "at rest in {:?} although the peer has finished", self.connection.state());
                if self.one_shot && self.tally.received > 0 {
                    panic!("a one-shot connection waits after its message");
                }
                self.say(|| format!("round {round}: at rest; peer finishes"));
                let kernel = &mut *self.kernel.borrow_mut();
                if self.held_at_drain.is_some() {
                    assert!(kernel.we_finished, "it drains, and at rest our FIN is not out");
                }
                if self.held_at_drain.is_none() && !self.one_shot {
                    assert_eq!(kernel.outbox.len(), kernel.sent_by_peer, "at rest, everything has come back");
                    assert_eq!(self.connection.state(), State::Established);
                }
                kernel.peer_finishes();
            }
            self.serve();
        }
        panic!("it does not come to rest");
    }
}

/// Runs the schedule that this seed draws, and tells how it ended and which ways it took. Panics where an invariant
/// does not hold.
fn run_seed(seed: u64, tell: bool) -> (CloseReason, HashSet<(&'static str, &'static str)>) {
    let mut rng = Rng::with_seed(seed);
    let mut world = World::new(Start::draw(&mut rng), tell);
    for _ in 0..rng.usize(5..80) {
        if world.ended.is_some() {
            break;
        }
        world.scratch.ms += rng.u32(..3);
        world.step(Step::draw(&mut rng));
    }
    (world.settle(), world.ways)
}

/// Runs these steps, and tells how it ended. Panics as above.
fn run_script(start: Start, script: &[Step], tell: bool) -> CloseReason {
    let mut world = World::new(start, tell);
    for step in script {
        if world.ended.is_some() {
            break;
        }
        world.step(*step);
    }
    world.settle()
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

#[test]
fn a_hundred_thousand_schedules_lose_no_byte_and_no_wake_up() {
    if let Some(seed) = variable("ECHOD_SEED") {
        println!("schedule {seed}: {:?}", run_seed(seed, true).0);
        return;
    }
    let schedules = variable("ECHOD_SCHEDULES").unwrap_or(100_000);
    let mut ends = [0u64; CloseReason::COUNT];
    let mut ways = HashSet::new();
    for seed in 0..schedules {
        let end = std::panic::catch_unwind(|| run_seed(seed, false));
        match end {
            Ok((reason, its_ways)) => {
                ends[reason.index()] += 1;
                ways.extend(its_ways);
            }
            Err(_) => {
                panic!("schedule {seed} fails; to see it step by step: ECHOD_SEED={seed} cargo test --test simulation")
            }
        }
    }
    println!("{schedules} schedules: {:?}", CloseReason::NAMES.iter().zip(ends).collect::<Vec<_>>());
    for reason in [CloseReason::Finished, CloseReason::OneShot, CloseReason::Drained, CloseReason::Reset] {
        assert!(
            ends[reason.index()] > schedules / 1000,
            "{reason} hardly occurs: the schedules prove nothing about it"
        );
    }
    // That no other way is taken, the assertion in `Connection::enter` sees to.
    for (from, on, to) in TRANSITIONS {
        assert!(ways.contains(&(from, to)), "from {from}, {on}, to {to}: no schedule goes that way");
    }
}

/// What `Start::draw` draws, but for chance.
fn starts() -> impl Strategy<Value = Start> {
    let drawn = (any::<bool>(), prop::bool::weighted(0.125), 0..40_usize);
    drawn.prop_map(|(tcp, one_shot, room)| Start { tcp, one_shot, room, chance: None })
}

/// What `Step::draw` draws, about as often, and what chance does there. Numbers are cut down towards 0, so a step
/// towards those that stand first. (Not by `prop_oneof!`, which takes five times as long without optimisation.)
fn steps() -> impl Strategy<Value = Step> {
    (0..600_usize, 1..60_usize, 0..12_usize).prop_map(|(step, count, other)| match step {
        0..95 => Step::Serve,
        95..195 => Step::Fetch,
        195..295 => Step::Pass(1 + other as u32 / 4),
        295..355 => Step::PeerMakesRoom(count),
        355..455 => Step::PeerSends { count, marked: other == 11 },
        455..467 => Step::PeerFinishes,
        467 => Step::PeerResets,
        468..476 => Step::Resume,
        476..496 => Step::StaleEvent(READABLE[other % 3], other >= 6),
        496..500 => Step::Drain { overstated: u32::from(other >= 9) },
        500..560 => Step::CallFallsShort { after: other, most: count },
        _ => Step::CallFails { after: other, errno: FAULTS[step % 3] },
    })
}

#[test]
fn no_script_loses_a_byte_or_a_wake_up() {
    let scripts = variable("ECHOD_SCRIPTS").unwrap_or(20_000).try_into().expect("a number of 32 bits");
    let ends: [Cell<u32>; CloseReason::COUNT] = Default::default();
    let shortest = property::smallest_failure(scripts, &(starts(), vec(steps(), 0..100)), |(start, script)| {
        let end = &ends[run_script(start, &script, false).index()];
        end.update(|count| count + 1);
    });
    if let Some((start, script)) = shortest {
        println!("the shortest script that fails: {start:?}");
        for step in &script {
            println!("    {step:?}");
        }
        println!("what happens in it:");
        let end = run_script(start, &script, true);
        panic!("the script failed, and now it ends: {end:?}");
    }
    println!("{scripts} scripts: {:?}", CloseReason::NAMES.iter().zip(ends.iter().map(Cell::get)).collect::<Vec<_>>());
    for reason in [CloseReason::Finished, CloseReason::OneShot, CloseReason::Drained, CloseReason::Reset] {
        let ended = ends[reason.index()].get();
        assert!(ended > scripts / 1000, "{reason} hardly occurs: the scripts prove nothing about it");
    }
}

/// How often read(2) is called to echo five bytes over a connection like this.
fn reads_for_five_bytes(tcp: bool, one_more_event: impl Fn(&mut FakeKernel)) -> usize {
    let mut world = World::new(Start { tcp, one_shot: false, room: 1000, chance: None }, false);
    world.kernel.borrow_mut().peer_sends(5, false);
    one_more_event(&mut world.kernel.borrow_mut());
    world.fetch();
    world.serve();
    assert_eq!(world.tally.received, 5);
    world.kernel.borrow().reads
}

#[test]
fn a_short_read_saves_the_one_that_would_block_on_tcp_and_with_nothing_else_in_the_event() {
    assert_eq!(reads_for_five_bytes(true, |_| {}), 1);
    assert_eq!(reads_for_five_bytes(true, |kernel| kernel.peer_finishes()), 2, "there is a FIN behind the bytes");
    assert_eq!(reads_for_five_bytes(false, |_| {}), 2, "on a Unix socket a short read says nothing");
}
