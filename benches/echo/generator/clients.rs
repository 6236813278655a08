//! Long-lived connections under a closed or an open loop.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::clock::Clock;
use super::pace::Schedule;
use super::pattern::verify;
use super::reply_timeout::ReplyTimeout;
use super::stream::Stream;
use super::timer::{TIMER, Waiter};
use super::{Address, EXTENSION_NS, Pace, Pattern, Plan, REPLY_TIMEOUT, Result, Sample, nanoseconds, new_histogram};

/// How many clients connect before the last of them waits for an echo. Its echo shows that the server has accepted all
/// earlier ones, so the backlog does not overflow.
const WAVE: usize = 64;

/// The longest wait for events, so that reply_timeout is checked and the window closes in time.
const MAX_WAIT: Duration = Duration::from_millis(1);

/// Open connections to one server.
pub struct Clients {
    pub(super) poll: Poll,
    pub(super) waiter: Waiter,
    pub(super) clients: Vec<Client>,
    pub(super) pattern: Pattern,
    pub(super) buffer: Vec<u8>,
    message: u64,
    /// Messages that are due and have not returned yet, over all clients.
    outstanding: usize,
    pub(super) clock: Clock,
    pub(super) reply_timeout: Duration,
}

pub(super) struct Client {
    pub(super) stream: Stream,
    /// Bytes that are due, sent, and received: `due >= sent >= received`.
    due: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
    /// When each outstanding message was sent or due, oldest first.
    stamps: VecDeque<u64>,
}

/// What a read has brought.
struct Received {
    bytes: u64,
    /// Messages that are complete now.
    messages: u32,
}

impl Clients {
    /// Returns an empty set of clients. Each message has `message` bytes. A generator that spins needs a core of its own.
    pub fn new(message: usize, spin: bool) -> Result<Clients> {
        let poll = Poll::new()?;
        Ok(Clients {
            waiter: Waiter::new(&poll, spin)?,
            poll,
            clients: Vec::new(),
            pattern: Pattern::new(),
            buffer: vec![0; 256 * 1024],
            message: message as u64,
            outstanding: 0,
            clock: Clock::new(),
            reply_timeout: REPLY_TIMEOUT,
        })
    }

    /// Replaces the limit of [`REPLY_TIMEOUT`].
    #[allow(dead_code, reason = "for the tests, which wait for a failure")]
    pub fn with_reply_timeout(mut self, reply_timeout: Duration) -> Clients {
        self.reply_timeout = reply_timeout;
        self
    }

    /// Connects more clients until there are `count`. When it returns, the server has accepted them all.
    pub fn connect(&mut self, address: &Address, count: usize) -> Result<()> {
        while self.clients.len() < count {
            let wave = count.min(self.clients.len() + WAVE);
            while self.clients.len() < wave {
                self.connect_one(address)
                    .map_err(|error| format!("connection {}: cannot connect: {error}", self.clients.len()))?;
            }
            // The backlog is first in, first out.
            self.echo_once_in(wave - 1..wave)?;
        }
        Ok(())
    }

    fn connect_one(&mut self, address: &Address) -> std::io::Result<()> {
        let mut stream = Stream::connect(address)?;
        stream.register(&self.poll, Token(self.clients.len()))?;
        self.clients.push(Client { stream, due: 0, sent: 0, received: 0, stamps: VecDeque::new() });
        Ok(())
    }

    /// Lets each client send one message and receive it back.
    pub fn echo_once(&mut self) -> Result<()> {
        self.echo_once_in(0..self.clients.len())
    }

    fn echo_once_in(&mut self, clients: std::ops::Range<usize>) -> Result<()> {
        let now = self.clock.now();
        for client in clients {
            self.send(client, 1, now)?;
        }
        let mut events = Events::with_capacity(1024);
        let mut reply_timeout = ReplyTimeout::new(self.reply_timeout, now);
        reply_timeout.start_drain(now);
        while self.outstanding > 0 {
            self.waiter.wait(&mut self.poll, &mut events, Duration::from_millis(100))?;
            for event in events.iter().filter(|event| event.token() != TIMER) {
                if self.receive(event.token().0, event.is_read_closed(), |_| ())?.bytes > 0 {
                    reply_timeout.progress(self.clock.now());
                }
                self.send(event.token().0, 0, now)?;
            }
            self.check(&mut reply_timeout)?;
        }
        Ok(())
    }

    /// Applies the load, and measures it while the window is open.
    pub fn run<M>(&mut self, plan: &Plan, mut meter: impl FnMut() -> M) -> Result<Sample<M>> {
        let mut events = Events::with_capacity(1024);
        let (mut latency, mut lateness) = (new_histogram(), new_histogram());
        let (mut echoes, mut all_echoes, mut bytes) = (0, 0, 0);
        let (mut before, mut after) = (None, None);

        let start = self.clock.now();
        // The window opens and closes when the loop checks the time, which may be late on a busy machine.
        let (mut opens, mut closes, mut closed) = (start + nanoseconds(plan.warm_up), u64::MAX, u64::MAX);
        let mut reply_timeout = ReplyTimeout::new(self.reply_timeout, start);
        let mut schedule = Schedule::new(start, plan.pace);
        if let Pace::Closed { in_flight } = plan.pace {
            for client in 0..self.clients.len() {
                self.send(client, in_flight, start)?;
            }
        }
        loop {
            let now = self.clock.now();
            if before.is_none() && now >= opens {
                (opens, closes) = (now, now + nanoseconds(plan.window));
                self.clock.take_lost();
                before = Some((now, meter()));
                (echoes, bytes) = (0, 0);
            } else if after.is_none() && now >= closes && (echoes == 0 || latency.is_empty()) {
                closes = now + EXTENSION_NS;
            } else if after.is_none() && now >= closes {
                closed = now;
                after = Some((now, meter(), echoes, bytes, self.clock.take_lost()));
                reply_timeout.start_drain(now);
            }
            while let Some(due) = schedule.due_until(now.min(closes)) {
                self.send(schedule.client(self.clients.len()), 1, due)?;
                if schedule.last_due() >= opens {
                    lateness.saturating_record(now - schedule.last_due());
                }
            }
            if after.is_some() && self.outstanding == 0 {
                break;
            }
            let until_due = schedule.next_due().map_or(MAX_WAIT, |due| Duration::from_nanos(due.saturating_sub(now)));
            self.waiter.wait(&mut self.poll, &mut events, until_due.min(MAX_WAIT))?;
            for event in events.iter().filter(|event| event.token() != TIMER) {
                let client = event.token().0;
                let now = self.clock.now();
                let received = self.receive(client, event.is_read_closed(), |stamp| {
                    if (opens..closed).contains(&stamp) {
                        latency.saturating_record(now.saturating_sub(stamp));
                    }
                })?;
                if received.bytes > 0 {
                    reply_timeout.progress(now);
                    echoes += u64::from(received.messages);
                    all_echoes += u64::from(received.messages);
                    bytes += received.bytes;
                }
                let sends_again = after.is_none() && matches!(plan.pace, Pace::Closed { .. });
                self.send(client, if sends_again { received.messages } else { 0 }, now)?;
            }
            self.check(&mut reply_timeout)?;
        }
        let ((opened, before), (closed, after, echoes, bytes, lost)) =
            before.zip(after).expect("the loop ends only after the window has closed");
        let window = Duration::from_nanos(closed - opened);
        Ok(Sample { echoes, all_echoes, bytes, window, latency, lateness, new_connections: None, lost, before, after })
    }

    /// Shuts down the write side of every client, and expects end of file without a byte before it.
    pub fn finish(mut self) -> Result<()> {
        for client in &self.clients {
            client.stream.shutdown_write()?;
        }
        let mut events = Events::with_capacity(1024);
        let mut reply_timeout = ReplyTimeout::new(self.reply_timeout, self.clock.now());
        for client in 0..self.clients.len() {
            loop {
                match self.clients[client].stream.read(&mut self.buffer) {
                    Ok(0) => break,
                    Ok(count) => return Err(format!("connection {client}: {count} bytes more than were sent").into()),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        if reply_timeout.exceeded(self.clock.now()).is_some() {
                            return Err(
                                format!("connection {client}: the server does not answer a FIN with its own").into()
                            );
                        }
                        self.poll.poll(&mut events, Some(Duration::from_millis(10)))?;
                    }
                    Err(error) => return Err(format!("connection {client}: waiting for the FIN: {error}").into()),
                }
            }
        }
        Ok(())
    }

    /// Makes `messages` more messages due for a client, with the time `stamp`, and sends as much as the kernel accepts.
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

    /// Reads and verifies what has arrived, and passes the time of each completed message to `complete`.
    fn receive(&mut self, client: usize, read_closed: bool, mut complete: impl FnMut(u64)) -> Result<Received> {
        let this = &mut self.clients[client];
        let before = this.received;
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
            // A short read has emptied the receive queue, unless a FIN follows (epoll(7), Q9). A Unix socket may end a
            // read at the boundary of a write.
            if count < self.buffer.len() && !read_closed && matches!(this.stream, Stream::Tcp(_)) {
                break;
            }
        }
        let messages = (this.received / self.message - before / self.message) as usize;
        self.outstanding -= messages;
        for stamp in this.stamps.drain(..messages) {
            complete(stamp);
        }
        Ok(Received { bytes: this.received - before, messages: messages as u32 })
    }

    /// Fails if the outstanding replies have not arrived for too long.
    fn check(&self, reply_timeout: &mut ReplyTimeout) -> Result<()> {
        let now = self.clock.now();
        if self.outstanding == 0 {
            reply_timeout.progress(now);
        }
        let Some(reason) = reply_timeout.exceeded(now) else { return Ok(()) };
        let is_waiting = |client: &Client| !client.stamps.is_empty();
        let client = self.clients.iter().position(is_waiting).expect("a client with an outstanding message");
        let Client { sent, received, .. } = self.clients[client];
        let others = self.clients[client + 1..].iter().filter(|client| is_waiting(client)).count();
        Err(format!("connection {client}: {received} of {sent} bytes came back, {reason} (and {others} more like it)")
            .into())
    }
}
