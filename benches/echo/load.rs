//! The load generator: clients on one thread, full duplex, that know what they have to get back.
//!
//! One engine serves both kinds of load. In a *closed loop* a client says its next message when one
//! has come back, so a slow server is asked less, and a stall shows in one sample only. In an
//! *open loop* the clock says when a message is due, whatever the server does, and its latency counts from
//! then: a stall of 100 ms is seen by every message that was due in it (coordinated omission).
//!
//! A client that gets a wrong byte, a byte too many, an early end or nothing at all fails the run.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::pattern::Pattern;

/// A failure is a sentence for a person; nobody looks into it.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// As many connect before one of them waits for an echo: it shows that the server has accepted all
/// before it, so no listen queue overflows.
const WAVE: usize = 64;

/// For so long nothing at all may come back while something is owed. Then somebody is dead.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How a run goes.
pub struct Plan {
    /// Who says when a message is sent.
    pub pace: Pace,
    /// Load before the window, unmeasured: caches, allocator, congestion window.
    pub warm_up: Duration,
    /// How long is measured.
    pub window: Duration,
}

/// Who says when a message is sent.
#[derive(Clone, Copy)]
pub enum Pace {
    /// Each client keeps so many messages under way.
    Closed {
        /// Messages sent and not yet back, per client.
        in_flight: u32,
    },
    /// Messages are due at equal distances, the clients taking turns.
    Open {
        /// Messages per second, over all clients.
        rate: f64,
    },
}

/// What a run measured. `M` is what the caller's meter reads (CPU time of the server).
pub struct Sample<M> {
    /// Messages that came back whole within the window.
    pub echoes: u64,
    /// All that came back, before and after the window too.
    pub all_echoes: u64,
    /// From the first reading of the meter to the second.
    pub window: Duration,
    /// Nanoseconds from send time (open loop: due time) until whole, of messages sent (due) in the window.
    pub latency: Histogram<u64>,
    /// The meter when the window opened.
    pub before: M,
    /// The meter when it closed.
    pub after: M,
}

/// Standing connections to one server.
pub struct Clients {
    poll: Poll,
    clients: Vec<Client>,
    pattern: Pattern,
    buffer: Vec<u8>,
    message: u64,
    /// Messages that are due and not yet back, over all clients.
    outstanding: usize,
    /// Whether to spin for events. It needs a core of one's own, and takes our own wake-up out of the latency.
    spin: bool,
    /// All times here are nanoseconds since this moment.
    epoch: Instant,
    patience: Duration,
}

struct Client {
    stream: TcpStream,
    /// Bytes that are due to be sent, have been sent, have come back: `due >= sent >= received`.
    due: u64,
    sent: u64,
    received: u64,
    /// When each message not yet back was sent or due, oldest first.
    stamps: VecDeque<u64>,
}

impl Clients {
    /// Nobody yet. Messages are of `message` bytes.
    pub fn new(message: usize, spin: bool) -> Result<Clients> {
        Ok(Clients {
            poll: Poll::new()?,
            clients: Vec::new(),
            pattern: Pattern::new(),
            buffer: vec![0; 256 * 1024],
            message: message as u64,
            outstanding: 0,
            spin,
            epoch: Instant::now(),
            patience: PATIENCE,
        })
    }

    /// Gives up earlier than after [`PATIENCE`].
    #[allow(dead_code, reason = "for the tests, which wait for a failure")]
    pub fn with_patience(mut self, patience: Duration) -> Clients {
        self.patience = patience;
        self
    }

    /// Connects more clients, until there are `count`. When it returns, the server has accepted them all.
    pub fn connect(&mut self, address: SocketAddr, count: usize) -> Result<()> {
        while self.clients.len() < count {
            let wave = count.min(self.clients.len() + WAVE);
            while self.clients.len() < wave {
                self.connect_one(address)
                    .map_err(|error| format!("connection {}: cannot connect: {error}", self.clients.len()))?;
            }
            // A listen queue is first in, first out.
            self.say(wave - 1..wave)?;
        }
        Ok(())
    }

    fn connect_one(&mut self, address: SocketAddr) -> std::io::Result<()> {
        // Blocking: the handshake is over, or refused, when it returns.
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.clients.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.clients.push(Client { stream, due: 0, sent: 0, received: 0, stamps: VecDeque::new() });
        Ok(())
    }

    /// Each client says one message and gets it back.
    pub fn say_once(&mut self) -> Result<()> {
        self.say(0..self.clients.len())
    }

    fn say(&mut self, who: std::ops::Range<usize>) -> Result<()> {
        let now = self.now();
        for client in who {
            self.send(client, 1, now)?;
        }
        let mut events = Events::with_capacity(1024);
        let mut patience = Patience::new(self.patience, now);
        while self.outstanding > 0 {
            self.wait(&mut events, Duration::from_millis(100))?;
            for event in &events {
                if self.receive(event.token().0, event.is_read_closed(), |_| ())? > 0 {
                    patience.progress(self.now());
                }
            }
            self.check(&mut patience)?;
        }
        Ok(())
    }

    /// Puts the load on the server, and measures it while the window is open.
    pub fn run<M>(&mut self, plan: &Plan, mut meter: impl FnMut() -> M) -> Result<Sample<M>> {
        let mut events = Events::with_capacity(1024);
        let mut latency = new_histogram();
        let (mut echoes, mut all_echoes) = (0, 0);
        let (mut before, mut after) = (None, None);

        let start = self.now();
        // The window opens and closes when we look, which on a busy machine may be late.
        let (mut opens, mut closes) = (start + nanoseconds(plan.warm_up), u64::MAX);
        let mut patience = Patience::new(self.patience, start);
        let mut schedule = Schedule { start, next: 0, pace: plan.pace };
        if let Pace::Closed { in_flight } = plan.pace {
            for client in 0..self.clients.len() {
                self.send(client, in_flight, start)?;
            }
        }
        loop {
            let now = self.now();
            if before.is_none() && now >= opens {
                (opens, closes) = (now, now + nanoseconds(plan.window));
                before = Some((now, meter()));
                echoes = 0;
            } else if after.is_none() && now >= closes {
                after = Some((now, meter(), echoes));
            }
            while let Some(due) = schedule.due_until(now.min(closes)) {
                self.send(schedule.turn(self.clients.len()), 1, due)?;
            }
            if after.is_some() && self.outstanding == 0 {
                break;
            }
            self.wait(&mut events, Duration::from_millis(1))?;
            for event in &events {
                let client = event.token().0;
                let now = self.now();
                let came_back = self.receive(client, event.is_read_closed(), |stamp| {
                    if (opens..closes).contains(&stamp) {
                        latency.saturating_record(now.saturating_sub(stamp));
                    }
                })?;
                if came_back > 0 {
                    patience.progress(now);
                    echoes += u64::from(came_back);
                    all_echoes += u64::from(came_back);
                }
                let again = if now < closes && matches!(plan.pace, Pace::Closed { .. }) { came_back } else { 0 };
                self.send(client, again, now)?;
            }
            self.check(&mut patience)?;
        }
        let ((opened, before), (closed, after, echoes)) =
            before.zip(after).expect("the loop ends only after the window has closed");
        let window = Duration::from_nanos(closed - opened);
        Ok(Sample { echoes, all_echoes, window, latency, before, after })
    }

    /// Every client shuts down its write side, and must get an end of file and not a byte before it.
    pub fn finish(mut self) -> Result<()> {
        for client in &self.clients {
            client.stream.shutdown(Shutdown::Write)?;
        }
        let mut events = Events::with_capacity(1024);
        let mut patience = Patience::new(self.patience, self.now());
        for client in 0..self.clients.len() {
            loop {
                match self.clients[client].stream.read(&mut self.buffer) {
                    Ok(0) => break,
                    Ok(count) => return Err(format!("connection {client}: {count} bytes more than were sent").into()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if patience.is_over(self.now()) {
                            return Err(format!("connection {client}: our FIN is not answered with one").into());
                        }
                        self.poll.poll(&mut events, Some(Duration::from_millis(10)))?;
                    }
                    Err(error) => return Err(format!("connection {client}: waiting for the FIN: {error}").into()),
                }
            }
        }
        Ok(())
    }

    /// Makes `messages` more due for a client, stamped with `stamp`, and sends what the kernel takes.
    fn send(&mut self, client: usize, messages: u32, stamp: u64) -> Result<()> {
        let this = &mut self.clients[client];
        this.due += u64::from(messages) * self.message;
        self.outstanding += messages as usize;
        this.stamps.extend(std::iter::repeat_n(stamp, messages as usize));
        while this.sent < this.due {
            match this.stream.write(self.pattern.stretch(client, this.sent, this.due - this.sent)) {
                Ok(count) => this.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("connection {client}: after {} bytes: {error}", this.sent).into()),
            }
        }
        Ok(())
    }

    /// Reads and verifies what has come, and tells the stamp of each message that is now whole. Returns their number.
    fn receive(&mut self, client: usize, read_closed: bool, mut whole: impl FnMut(u64)) -> Result<u32> {
        let this = &mut self.clients[client];
        let before = this.received / self.message;
        loop {
            let count = match this.stream.read(&mut self.buffer) {
                Ok(0) => {
                    let (received, sent) = (this.received, this.sent);
                    return Err(format!("connection {client}: closed after {received} of {sent} bytes").into());
                }
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(format!("connection {client}: after {} bytes: {error}", this.received).into()),
            };
            verify(&self.pattern, client, this.received, this.sent, &self.buffer[..count])?;
            this.received += count as u64;
            // A short read has emptied the queue, unless a FIN is behind it (epoll(7), Q9).
            if count < self.buffer.len() && !read_closed {
                break;
            }
        }
        let messages = (this.received / self.message - before) as usize;
        self.outstanding -= messages;
        for stamp in this.stamps.drain(..messages) {
            whole(stamp);
        }
        Ok(messages as u32)
    }

    /// Waits for events; not at all if we spin.
    fn wait(&mut self, events: &mut Events, at_most: Duration) -> Result<()> {
        let timeout = if self.spin { Duration::ZERO } else { at_most };
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => Ok(other?),
        }
    }

    /// Fails if nothing has come back for too long while something is owed.
    fn check(&self, patience: &mut Patience) -> Result<()> {
        if self.outstanding == 0 {
            patience.progress(self.now());
        }
        if !patience.is_over(self.now()) {
            return Ok(());
        }
        let owed = |client: &Client| !client.stamps.is_empty();
        let client = self.clients.iter().position(owed).expect("something is outstanding");
        let Client { sent, received, .. } = self.clients[client];
        let others = self.clients[client + 1..].iter().filter(|client| owed(client)).count();
        let silent = patience.limit as f64 / 1e9;
        Err(format!("connection {client}: {received} of {sent} bytes came back, then nothing for {silent} s (and {others} more like it)").into())
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }
}

/// Compares what came with what was said, and says where they differ.
pub fn verify(pattern: &Pattern, client: usize, received: u64, sent: u64, bytes: &[u8]) -> Result<()> {
    let mut position = received;
    if received + bytes.len() as u64 > sent {
        let more = received + bytes.len() as u64 - sent;
        return Err(format!("connection {client}: {more} bytes more than were sent ({sent})").into());
    }
    let mut rest = bytes;
    while !rest.is_empty() {
        let expected = pattern.stretch(client, position, rest.len() as u64);
        let (part, behind) = rest.split_at(expected.len());
        if part != expected {
            let wrong = part.iter().zip(expected).position(|(got, said)| got != said).unwrap_or(0);
            let (got, said) = (part[wrong], expected[wrong]);
            let place = position + wrong as u64;
            return Err(
                format!("connection {client}: byte {place} came back as {got:#04x}, sent was {said:#04x}").into()
            );
        }
        position += part.len() as u64;
        rest = behind;
    }
    Ok(())
}

/// When messages are due in an open loop. In a closed one, never.
struct Schedule {
    start: u64,
    next: u64,
    pace: Pace,
}

impl Schedule {
    /// When the next message was due, if that is before `now`; it is then taken as sent.
    fn due_until(&mut self, now: u64) -> Option<u64> {
        let Pace::Open { rate } = self.pace else { return None };
        // From the start each time: rounding does not add up.
        let due = self.start + (self.next as f64 * 1e9 / rate) as u64;
        (due < now).then(|| {
            self.next += 1;
            due
        })
    }

    /// Whose turn the message just taken is.
    fn turn(&self, clients: usize) -> usize {
        (self.next - 1) as usize % clients
    }
}

/// How long nothing has come back. Time in which we did not run ourselves does not count: on a machine that stood
/// still, the server had no chance either.
pub struct Patience {
    limit: u64,
    waited: u64,
    looked: u64,
}

impl Patience {
    /// From now on.
    pub fn new(limit: Duration, now: u64) -> Patience {
        Patience { limit: nanoseconds(limit), waited: 0, looked: now }
    }

    /// Something has come back.
    pub fn progress(&mut self, now: u64) {
        (self.waited, self.looked) = (0, now);
    }

    /// Whether it is over. To be asked all the time.
    pub fn is_over(&mut self, now: u64) -> bool {
        self.waited += (now - self.looked).min(self.limit / 20);
        self.looked = now;
        self.waited > self.limit
    }
}

/// Nanoseconds up to a minute, to three digits.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are allowed")
}

/// 584 years fit.
pub fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
