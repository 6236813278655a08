//! The simulated kernel: one connected socket with its queues, and what the poller would report about it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::rc::Rc;

use echod::event_loop::readiness::Readable;
use echod::event_loop::tcp_info::SendQueue;
use echod::event_loop::transport::Transport;
use fastrand::Rng;
use rustix::io::Errno;

/// Errors with which a call may fail although nothing is wrong with the connection.
pub const TRANSIENT_ERRORS: [Errno; 3] = [Errno::INTR, Errno::NOMEM, Errno::NOBUFS];

/// The bytes that a peer sends, over and over. The period is not a power of two, so that a shift is noticed.
const PERIOD: usize = 251;
static CYCLE: [u8; PERIOD] = {
    let mut cycle = [0; PERIOD];
    let mut position = 0;
    while position < PERIOD {
        cycle[position] = position as u8;
        position += 1;
    }
    cycle
};

/// Random failures of single calls. A script has them as steps instead.
#[derive(Clone, Debug)]
pub struct Chance {
    /// Percentage of calls that fail with a transient error. Of the others, a quarter does less than it could.
    pub faults: u32,
    pub rng: Rng,
}

/// One connected socket, as the kernel sees it.
#[derive(Debug)]
pub struct FakeKernel {
    /// Whether this is TCP: then a short read empties the queue, except at marks, and output has to be acknowledged.
    tcp: bool,
    /// What the peer has sent and we have not read.
    pub inbox: VecDeque<u8>,
    /// Bytes that we have read in all.
    pub read: usize,
    /// Positions in the peer's stream at which a read ends early: urgent marks on TCP, ancillary data on Unix sockets.
    marks: Vec<usize>,
    /// Bytes that the peer has sent in all.
    pub sent_by_peer: usize,
    pub peer_sent_fin: bool,
    pub reset: bool,
    /// How many more bytes write(2) accepts at the moment.
    pub room: usize,
    /// Everything that write(2) has accepted.
    pub outbox: Vec<u8>,
    /// How many bytes of `outbox` the peer's kernel has acknowledged, and whether it has acknowledged our FIN.
    pub acknowledged: usize,
    pub fin_acknowledged: bool,
    pub sent_fin: bool,
    /// Whether something has happened since the last event was fetched.
    pub edge: bool,
    /// Whether write(2) has returned WouldBlock. Only then does room cause an edge (epoll(7), SOCK_NOSPACE).
    pub wants_room: bool,
    /// How many bytes more FIONREAD reports than there are, as it does next to urgent marks.
    pub overstated: u32,
    pub chance: Option<Chance>,
    /// What a script has planned for single calls, by their number: a maximum of bytes, or an error.
    planned: Vec<(usize, Result<usize, Errno>)>,
    /// Calls made, and how many of them were read(2).
    pub calls: usize,
    pub reads: usize,
}

impl FakeKernel {
    pub fn new(tcp: bool, room: usize, chance: Option<Chance>) -> FakeKernel {
        FakeKernel {
            tcp,
            inbox: VecDeque::new(),
            read: 0,
            marks: Vec::new(),
            sent_by_peer: 0,
            peer_sent_fin: false,
            reset: false,
            room,
            outbox: Vec::new(),
            acknowledged: 0,
            fin_acknowledged: false,
            sent_fin: false,
            edge: true, // Registration reports what is there.
            wants_room: false,
            overstated: 0,
            chance,
            planned: Vec::new(),
            calls: 0,
            reads: 0,
        }
    }

    /// Returns whether what we have sent is a prefix of what the peer has sent.
    pub fn echoed_in_order(&self) -> bool {
        self.outbox.chunks(PERIOD).all(|chunk| chunk == &CYCLE[..chunk.len()])
    }

    // ---- what the peer does ----

    pub fn peer_sends(&mut self, count: usize, marked: bool) {
        if self.peer_sent_fin || self.reset {
            return;
        }
        let mut left = count;
        while left > 0 {
            let cycle = &CYCLE[self.sent_by_peer % PERIOD..];
            let part = &cycle[..left.min(cycle.len())];
            self.inbox.extend(part);
            self.sent_by_peer += part.len();
            left -= part.len();
        }
        if marked {
            // The urgent byte is the last one: a read ends before it.
            self.marks.push(self.sent_by_peer - 1);
        }
        self.edge = true;
    }

    pub fn peer_reads(&mut self, count: usize) {
        self.room = self.room.saturating_add(count);
        if self.wants_room && count > 0 {
            self.wants_room = false;
            self.edge = true;
        }
    }

    /// The peer's kernel acknowledges up to `count` bytes of our output, and our FIN after all of them.
    pub fn peer_acknowledges(&mut self, count: usize) {
        if self.reset {
            return;
        }
        self.acknowledged = self.acknowledged.saturating_add(count).min(self.outbox.len());
        if self.sent_fin && self.acknowledged == self.outbox.len() && !self.fin_acknowledged {
            self.fin_acknowledged = true;
            self.edge |= self.peer_sent_fin; // With both FINs acknowledged, the socket reports HUP.
        }
    }

    pub fn peer_sends_fin(&mut self) {
        if !self.reset {
            self.peer_sent_fin = true;
            self.edge = true;
        }
    }

    pub fn peer_resets(&mut self) {
        self.reset = true;
        self.inbox.clear();
        self.edge = true;
    }

    // ---- what the poller and the system calls report ----

    /// Returns what epoll_wait(2) would report now, as the arguments of `record_readiness`. The flags are levels; only their
    /// report is an edge.
    pub fn flags(&self) -> (Readable, bool) {
        let marked = self.marks.iter().any(|&mark| mark >= self.read);
        let readable = if self.peer_sent_fin {
            Readable::UntilEnd
        } else if self.reset || marked {
            Readable::UntilWouldBlock
        } else if !self.inbox.is_empty() {
            Readable::UntilShort
        } else {
            Readable::No
        };
        (readable, self.reset || self.room > 0)
    }

    /// Returns whether read(2) would return something other than WouldBlock that it has not returned before.
    pub fn has_unread(&self) -> bool {
        self.reset || self.peer_sent_fin || !self.inbox.is_empty()
    }

    /// Returns whether the peer's kernel has acknowledged everything that we sent, our FIN included.
    pub fn all_acknowledged(&self) -> bool {
        !self.tcp || self.acknowledged == self.outbox.len() && (!self.sent_fin || self.fin_acknowledged)
    }

    /// Plans an outcome for the call that comes after `after` others.
    pub fn plan(&mut self, after: usize, outcome: Result<usize, Errno>) {
        self.planned.push((self.calls + after + 1, outcome));
    }

    pub fn forget_plans(&mut self) {
        self.planned.clear();
        if let Some(chance) = &mut self.chance {
            chance.faults = 0;
        }
    }

    fn planned(&self) -> Option<Result<usize, Errno>> {
        self.planned.iter().find(|(call, _)| *call == self.calls).map(|(_, outcome)| *outcome)
    }

    /// Counts a call. It may fail although nothing is wrong with the connection.
    fn call(&mut self) -> io::Result<()> {
        self.calls += 1;
        if let Some(Chance { faults, rng }) = &mut self.chance
            && rng.u32(..100) < *faults
        {
            return Err(TRANSIENT_ERRORS[rng.usize(..3)].into());
        }
        match self.planned() {
            Some(Err(errno)) => Err(errno.into()),
            _ => Ok(()),
        }
    }

    /// Returns how many of `count` bytes this call moves: at least one.
    fn shortened(&mut self, count: usize) -> usize {
        if let Some(Chance { rng, .. }) = &mut self.chance
            && rng.u32(..4) == 0
        {
            return rng.usize(1..=count);
        }
        match self.planned() {
            Some(Ok(most)) => count.min(most),
            _ => count,
        }
    }

    /// Returns how many bytes a read into a buffer of this length returns.
    fn readable_len(&self, len: usize) -> io::Result<usize> {
        assert!(len > 0, "an empty read returns 0, which looks like a FIN");
        if self.reset {
            return Err(Errno::CONNRESET.into());
        }
        if self.inbox.is_empty() {
            return if self.peer_sent_fin { Ok(0) } else { Err(Errno::AGAIN.into()) };
        }
        let count = len.min(self.inbox.len());
        let mark = self.marks.iter().filter(|&&mark| mark > self.read).min();
        Ok(mark.map_or(count, |mark| count.min(mark - self.read)))
    }
}

/// Our end of the simulated socket.
#[derive(Clone, Debug)]
pub struct Socket(pub Rc<RefCell<FakeKernel>>);

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        kernel.reads += 1;
        let mut count = kernel.readable_len(buffer.len())?;
        if count > 0 && !kernel.tcp {
            count = kernel.shortened(count);
        }
        let (front, back) = kernel.inbox.as_slices();
        let at_front = count.min(front.len());
        buffer[..at_front].copy_from_slice(&front[..at_front]);
        buffer[at_front..count].copy_from_slice(&back[..count - at_front]);
        kernel.inbox.drain(..count);
        kernel.read += count;
        Ok(count)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        assert!(!kernel.sent_fin, "nothing is written after our FIN");
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

    fn is_tcp(&self) -> bool {
        self.0.borrow().tcp
    }

    fn bytes_available(&self) -> io::Result<u32> {
        let kernel = self.0.borrow();
        // Sometimes one more next to a FIN: code that relies on the number must still notice the end.
        let fin = u32::from(kernel.peer_sent_fin && kernel.sent_by_peer % 2 == 1);
        Ok(kernel.inbox.len() as u32 + fin + kernel.overstated)
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        let count = kernel.readable_len(buffer.len())?;
        for (byte, peeked) in buffer[..count].iter_mut().zip(&kernel.inbox) {
            *byte = *peeked;
        }
        Ok(count)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        let kernel = &mut *self.0.borrow_mut();
        kernel.call()?;
        if kernel.reset {
            return Err(Errno::NOTCONN.into());
        }
        assert!(!kernel.sent_fin, "our FIN is sent once");
        kernel.sent_fin = true;
        Ok(())
    }

    fn send_queue(&self) -> SendQueue {
        let kernel = self.0.borrow();
        match () {
            () if kernel.reset || kernel.fin_acknowledged && kernel.peer_sent_fin => SendQueue::Gone,
            () if kernel.all_acknowledged() => SendQueue::Empty,
            () => SendQueue::Unacknowledged,
        }
    }

    fn is_complete(&self, received: u64) -> bool {
        let kernel = self.0.borrow();
        let is_read = kernel.inbox.is_empty() && kernel.read as u64 == received;
        kernel.tcp && !kernel.reset && kernel.peer_sent_fin && is_read && kernel.all_acknowledged()
    }

    fn output_idle_ms(&self) -> Option<u32> {
        None
    }

    fn reset_on_close(&self) {}
}
