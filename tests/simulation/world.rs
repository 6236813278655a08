//! One connection over the simulated kernel, with the part of the server that keeps a queue, and the invariants that are checked
//! after every time that the connection is served.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;

use echod::event_loop::connection::{Connection, Quantum};
use echod::event_loop::observer::{ConnectionEvent, Observer};
use echod::event_loop::outcome::{CloseReason, Outcome};
use echod::event_loop::readiness::Readable;
use echod::event_loop::scratch::Scratch;
use echod::event_loop::state::State;
use echod::event_loop::transport::Peer;
use fastrand::Rng;
use rustix::io::Errno;

use crate::kernel::{Chance, FakeKernel, Socket, TRANSIENT_ERRORS};

/// The size of the scratch buffer in bytes. Small, so that full reads, short reads and stalls are all common.
pub const BUFFER_SIZE: usize = 16;

/// How a schedule starts.
#[derive(Clone, Debug)]
pub struct Start {
    pub tcp: bool,
    pub one_shot: bool,
    pub room: usize,
    pub chance: Option<Chance>,
}

impl Start {
    pub fn draw(rng: &mut Rng) -> Start {
        let (tcp, from, one_shot) = (rng.bool(), rng.fork(), rng.u32(..8) == 0);
        let (room, faults) = (rng.usize(..40), if rng.u32(..4) == 0 { 20 } else { 0 });
        Start { tcp, one_shot, room, chance: Some(Chance { faults, rng: from }) }
    }
}

/// What happens next.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// The server serves the connection if it is queued.
    Serve,
    /// The poller is asked for an event.
    Fetch,
    /// Milliseconds pass.
    Pass(u32),
    PeerReads(usize),
    PeerAcknowledges(usize),
    PeerSends {
        count: usize,
        marked: bool,
    },
    PeerSendsFin,
    PeerResets,
    /// A connection that ran out of memory is retried.
    Retry,
    /// A spurious event, or one for an earlier connection in the slot.
    StaleEvent(Readable, bool),
    /// A graceful shutdown starts. FIONREAD reports this many bytes too many, as it does next to urgent marks.
    Drain {
        overstated: u32,
    },
    /// Reads are limited to this many bytes from now on, because memory for output is short. 0: there is none.
    LimitReads(usize),
    /// The call after `after` others moves at most this many bytes.
    CallFallsShort {
        after: usize,
        most: usize,
    },
    CallFails {
        after: usize,
        errno: Errno,
    },
}

/// How far an event may ask to read.
pub const READABLE: [Readable; 4] = [Readable::No, Readable::UntilShort, Readable::UntilWouldBlock, Readable::UntilEnd];

impl Step {
    pub fn draw(rng: &mut Rng) -> Step {
        match rng.u32(..105) {
            0..25 => {
                let count = if rng.u32(..3) == 0 { rng.usize(1..100) } else { rng.usize(1..20) };
                Step::PeerSends { count, marked: rng.u32(..12) == 0 }
            }
            25..40 => Step::PeerReads(rng.usize(1..60)),
            40..43 => Step::PeerSendsFin,
            43 if rng.u32(..4) == 0 => Step::PeerResets,
            44 => Step::Drain { overstated: u32::from(rng.u32(..4) == 0) },
            45..50 => Step::StaleEvent(READABLE[rng.usize(..3)], rng.bool()),
            50..75 => Step::Fetch,
            75..77 => Step::Retry,
            77..80 => Step::PeerAcknowledges(rng.usize(1..60)),
            80 => Step::LimitReads(if rng.bool() { 0 } else { rng.usize(1..BUFFER_SIZE) }),
            _ => Step::Serve,
        }
    }
}

/// Sums up the reported events, to compare them with what the kernel saw.
#[derive(Default)]
pub struct Tally {
    pub received: usize,
    sent: usize,
    peer_sent_fin: bool,
    sent_fin: bool,
}

impl Observer for Tally {
    fn event(&mut self, _number: u32, event: ConnectionEvent<'_>) {
        match event {
            ConnectionEvent::Received(bytes) => self.received += bytes.len(),
            ConnectionEvent::Sent(bytes) => {
                assert!(!self.sent_fin && !bytes.is_empty());
                self.sent += bytes.len();
            }
            ConnectionEvent::PeerClosedWrite => self.peer_sent_fin = true,
            ConnectionEvent::SentFin => {
                assert!(!self.sent_fin, "our FIN is sent once");
                self.sent_fin = true;
            }
            ConnectionEvent::Stalled(_) | ConnectionEvent::Discarded(_) => {}
        }
    }
}

/// The kernel's numbers before the connection is served.
struct Before {
    pending: usize,
    sent: usize,
    calls: usize,
    reads: usize,
    read: usize,
}

/// What was there when a graceful shutdown started.
#[derive(Clone, Copy)]
struct Drain {
    /// Bytes received and unread by then, and how many FIONREAD reported.
    held: usize,
    reported: usize,
    /// Whether the peer's FIN was waiting, too.
    fin_waits: bool,
}

/// A connection, the kernel below it, and the part of the server that keeps a queue.
pub struct World {
    pub kernel: Rc<RefCell<FakeKernel>>,
    pub connection: Connection<Socket>,
    pub tally: Tally,
    pub scratch: Scratch,
    one_shot: bool,
    queued: bool,
    out_of_memory: bool,
    pub closed: Option<CloseReason>,
    drain: Option<Drain>,
    /// What the peer had sent when our FIN was sent.
    sent_at_fin: Option<usize>,
    /// The transitions that occurred, an end named by its reason.
    pub transitions: HashSet<(&'static str, &'static str)>,
    /// When a byte last moved, in the milliseconds of the scratch context.
    moved_at: u32,
    verbose: bool,
}

impl World {
    pub fn new(start: Start, verbose: bool) -> World {
        let one_shot = start.one_shot;
        let kernel = Rc::new(RefCell::new(FakeKernel::new(start.tcp, start.room, start.chance)));
        World {
            connection: Connection::new(Socket(Rc::clone(&kernel)), Peer::Unix, 1, one_shot, 0),
            kernel,
            tally: Tally::default(),
            scratch: Scratch::new(BUFFER_SIZE, 1 << 20),
            one_shot,
            queued: false,
            out_of_memory: false,
            closed: None,
            drain: None,
            sent_at_fin: None,
            transitions: HashSet::new(),
            moved_at: 0,
            verbose,
        }
    }

    fn log(&self, step: impl FnOnce() -> String) {
        if self.verbose {
            println!("{}", step());
        }
    }

    pub fn step(&mut self, step: Step) {
        if !matches!(step, Step::Serve | Step::Fetch) {
            self.log(|| format!("{step:?}"));
        }
        let mut kernel = self.kernel.borrow_mut();
        match step {
            Step::PeerReads(count) => kernel.peer_reads(count),
            Step::PeerAcknowledges(count) => kernel.peer_acknowledges(count),
            Step::PeerSends { count, marked } => kernel.peer_sends(count, marked),
            Step::PeerSendsFin => kernel.peer_sends_fin(),
            Step::PeerResets => kernel.peer_resets(),
            Step::CallFallsShort { after, most } => kernel.plan(after, Ok(most)),
            Step::CallFails { after, errno } => kernel.plan(after, Err(errno)),
            Step::Pass(ms) => self.scratch.ms += ms,
            Step::LimitReads(most) => self.scratch.read_limit = most,
            Step::Serve | Step::Fetch | Step::Retry | Step::StaleEvent(..) | Step::Drain { .. } => {
                drop(kernel);
                match step {
                    Step::Serve => self.serve(),
                    Step::Fetch => self.fetch(),
                    Step::Retry => self.retry(),
                    // A stale "readable" cannot hide a FIN: the event that reports it is still to come.
                    Step::StaleEvent(readable, writable) => self.record(readable, writable),
                    Step::Drain { overstated } => self.drain(overstated),
                    _ => unreachable!("handled above"),
                }
            }
        }
    }

    /// The poller: fetches an event, if there is one.
    pub fn fetch(&mut self) {
        let (readable, writable) = {
            let kernel = &mut *self.kernel.borrow_mut();
            if !std::mem::take(&mut kernel.edge) {
                return;
            }
            kernel.flags()
        };
        self.log(|| format!("event: {readable:?}, writable: {writable}"));
        self.record(readable, writable);
    }

    fn record(&mut self, readable: Readable, writable: bool) {
        self.queued |= self.connection.record_readiness(readable, writable);
    }

    fn retry(&mut self) {
        if std::mem::take(&mut self.out_of_memory) {
            self.scratch.update();
            self.queued = true;
        }
    }

    fn drain(&mut self, overstated: u32) {
        let before = self.connection.state();
        let is_open = matches!(before, State::Established | State::OneMessage);
        let overstated = if before == State::Established { overstated } else { 0 };
        let held = self.kernel.borrow().inbox.len();
        let fin_waits = self.kernel.borrow().peer_sent_fin;
        self.kernel.borrow_mut().overstated = overstated;
        let changes = self.connection.drain();
        self.kernel.borrow_mut().overstated = 0;
        assert_eq!(changes, is_open, "open connections drain; connections that are closing continue as they were");
        if changes {
            self.transitions.insert((before.name(), self.connection.state().name()));
            let held = self.tally.received + held;
            self.drain = Some(Drain { held, reported: held + overstated as usize, fin_waits });
            self.queued = true;
        }
    }

    /// The server's part: serves the connection if it is queued, and acts on the outcome.
    pub fn serve(&mut self) {
        if !std::mem::take(&mut self.queued) {
            return;
        }
        let before = {
            let kernel = self.kernel.borrow();
            Before {
                pending: self.connection.pending_len(),
                sent: kernel.outbox.len(),
                calls: kernel.calls,
                reads: kernel.reads,
                read: kernel.read,
            }
        };
        let state_before = self.connection.state();
        let outcome = self.connection.serve(Quantum::LIGHT, &mut self.scratch, &mut self.tally);
        let state = self.connection.state();
        self.transitions.insert((state_before.name(), state.name()));
        if let Outcome::Closed(reason) = outcome {
            self.transitions.insert((state.name(), CloseReason::NAMES[reason.index()]));
        }
        self.log(|| format!("served: {outcome:?}, {state:?}"));
        self.check(outcome, &before);
        match outcome {
            Outcome::Idle => {}
            Outcome::Requeue => self.queued = true,
            Outcome::OutOfMemory => self.out_of_memory = true,
            Outcome::Closed(reason) => {
                self.connection.release(&mut self.scratch);
                assert_eq!((self.scratch.traffic.stalled, self.scratch.traffic.buffered), (0, 0), "memory is returned");
                self.closed = Some(reason);
            }
        }
    }

    /// Checks what must hold after the connection has been served.
    fn check(&mut self, outcome: Outcome, before: &Before) {
        let kernel = self.kernel.borrow();
        let connection = &self.connection;
        let traffic = self.scratch.traffic;

        // What is sent is what was received.
        assert!(kernel.echoed_in_order(), "the bytes sent are a prefix of the bytes received");
        assert_eq!(self.tally.sent, kernel.outbox.len(), "the observer is notified of everything sent");
        assert_eq!(connection.sent(), kernel.outbox.len() as u64);
        assert_eq!(traffic.sent, kernel.outbox.len() as u64);
        assert_eq!(traffic.received, self.tally.received as u64);
        assert_eq!(connection.received(), self.tally.received as u64);
        assert_eq!(traffic.received + traffic.discarded, kernel.read as u64, "every byte read is accounted for");
        assert_eq!(traffic.stalled, usize::from(connection.is_stalled()), "stalled connections are counted");
        assert_eq!(traffic.buffered > 0, connection.is_stalled(), "memory is held only while stalled");

        // Bytes that move are activity, whatever becomes of them; serving without moving a byte is not.
        if kernel.outbox.len() > before.sent || kernel.read > before.read {
            self.moved_at = self.scratch.ms;
        }
        assert_eq!(connection.idle_for(self.scratch.ms), self.scratch.ms - self.moved_at);

        // Memory and work are bounded.
        assert!(connection.pending_len() <= BUFFER_SIZE, "pending output never exceeds the buffer");
        let max_reads = if self.scratch.read_limit == 0 { usize::MAX } else { Quantum::LIGHT.reads };
        assert!(kernel.reads - before.reads <= max_reads, "reads are bounded");
        // Each read is followed by its echo: in the worst case, every write accepts a single byte.
        let max_calls = (Quantum::LIGHT.reads + 1) * (2 * BUFFER_SIZE + 4);
        assert!(kernel.calls - before.calls <= max_calls, "calls are bounded");
        if kernel.outbox.len() < before.sent + before.pending {
            assert_eq!(kernel.reads, before.reads, "nothing is read while output is pending");
        }

        // An idle connection will be woken.
        if outcome == Outcome::Idle && !kernel.edge {
            if connection.is_stalled() {
                assert!(kernel.wants_room, "it waits for room, but the kernel will not report any");
            } else if matches!(connection.state(), State::LastAck(_)) {
                assert!(!kernel.all_acknowledged(), "everything is acknowledged, and no event will report it");
            } else {
                assert!(!kernel.has_unread(), "there is something to read, and no event will report it");
            }
        }
        if outcome == Outcome::Idle && !connection.is_stalled() {
            let waits = matches!(connection.state(), State::Draining { .. } | State::Discarding { .. });
            assert!(!waits, "it waits for bytes that were in the receive buffer, or for more than there were");
        }

        // Our FIN is sent after all output, and for a reason.
        if kernel.sent_fin || self.tally.sent_fin {
            self.sent_at_fin.get_or_insert(kernel.sent_by_peer);
            assert!(!connection.is_stalled(), "our FIN follows all output");
            assert!(self.tally.peer_sent_fin || self.one_shot || self.drain.is_some(), "nothing asked for our FIN");
        }

        // A peer that keeps sending delays nothing.
        if let Some(drain) = self.drain.filter(|_| !self.one_shot) {
            assert!(
                self.tally.received <= drain.reported,
                "a drain echoes what was in the receive buffer, and no more"
            );
        }
        if let Some(sent) = self.sent_at_fin.filter(|_| self.one_shot && self.drain.is_none()) {
            assert!(kernel.read <= sent, "one-shot mode discards what had arrived before our FIN, and no more");
        }

        let Outcome::Closed(reason) = outcome else { return };
        self.check_end(reason, &kernel);
    }

    /// Checks what must hold when a connection ends by itself.
    fn check_end(&self, reason: CloseReason, kernel: &FakeKernel) {
        match reason {
            CloseReason::Finished => {
                assert!(self.tally.peer_sent_fin && self.tally.sent_fin);
                assert_eq!(kernel.outbox.len(), kernel.sent_by_peer - self.scratch.traffic.discarded as usize);
                assert!(
                    self.drain.is_some() || self.scratch.traffic.discarded == 0,
                    "nothing is discarded without a drain"
                );
                assert!(kernel.all_acknowledged(), "finished means that the peer's kernel has everything");
            }
            CloseReason::Drained => {
                assert!(kernel.sent_fin && self.tally.peer_sent_fin);
                assert!(kernel.inbox.is_empty(), "close(2) with unread bytes sends RST");
                assert!(kernel.all_acknowledged(), "the peer's kernel has everything");
            }
            CloseReason::OneShot => {
                assert!(self.one_shot && kernel.sent_fin);
                assert!(
                    kernel.read >= self.sent_at_fin.unwrap_or(0),
                    "what arrived before our FIN is discarded before close(2)"
                );
                assert_eq!(kernel.outbox.len(), self.tally.received);
            }
            CloseReason::Reset => assert!(kernel.reset, "a reset that the peer did not send"),
            CloseReason::Idle | CloseReason::Cut | CloseReason::Error(_) => {
                panic!("{reason:?} is not for the connection to decide")
            }
        }
        if let Some(drain) = self.drain.filter(|_| reason == CloseReason::Drained) {
            assert!(self.one_shot || kernel.outbox.len() >= drain.held, "what was in the receive buffer is echoed");
            assert!(drain.held == 0 || !kernel.outbox.is_empty(), "a message that was in the receive buffer is echoed");
            assert!(!drain.fin_waits, "the peer's FIN came first, unread, so the connection has finished");
        }
    }

    /// Lets the peer behave: it reads everything, and sends its FIN when nothing more arrives. Returns how the connection ends.
    pub fn settle(&mut self) -> CloseReason {
        self.kernel.borrow_mut().forget_plans();
        for round in 0..10_000 {
            if let Some(reason) = self.closed {
                return reason;
            }
            self.retry();
            self.kernel.borrow_mut().peer_reads(1000);
            self.kernel.borrow_mut().peer_acknowledges(1000);
            self.fetch();
            if !self.queued && !self.out_of_memory {
                let kernel = &mut *self.kernel.borrow_mut();
                assert!(
                    !kernel.peer_sent_fin,
                    "at rest in {:?} although the peer has sent its FIN",
                    self.connection.state()
                );
                assert!(!self.one_shot || self.tally.received == 0, "a one-shot connection waits after its message");
                self.log(|| format!("round {round}: at rest; the peer sends its FIN"));
                if self.drain.is_some() {
                    assert!(kernel.sent_fin, "it drains, and at rest our FIN has not been sent");
                } else if !self.one_shot {
                    assert_eq!(kernel.outbox.len(), kernel.sent_by_peer, "at rest, everything has been echoed");
                    assert_eq!(self.connection.state(), State::Established);
                }
                kernel.peer_sends_fin();
            }
            self.serve();
        }
        panic!("it does not come to rest");
    }
}

/// Returns the transient error with this number, for scripts.
pub fn transient_error(number: usize) -> Errno {
    TRANSIENT_ERRORS[number % TRANSIENT_ERRORS.len()]
}
