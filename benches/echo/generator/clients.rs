//! Long-lived connections under a closed or an open loop.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::pace::Schedule;
use super::patience::Patience;
use super::pattern::verify;
use super::{PATIENCE, Pace, Pattern, Plan, Result, Sample, nanoseconds, new_histogram};

/// How many clients connect before the last of them waits for an echo. Its echo shows that the server has accepted all
/// earlier ones, so the backlog does not overflow.
const WAVE: usize = 64;

/// Open connections to one server.
pub struct Clients {
    poll: Poll,
    clients: Vec<Client>,
    pattern: Pattern,
    buffer: Vec<u8>,
    message: u64,
    /// Messages that are due and have not returned yet, over all clients.
    outstanding: usize,
    /// Whether to spin for events. This needs a core of its own, and removes the generator's own wake-up from the latency.
    spin: bool,
    /// All times here are nanoseconds since this instant.
    epoch: Instant,
    patience: Duration,
}

struct Client {
    stream: TcpStream,
    /// Bytes that are due, sent, and received: `due >= sent >= received`.
    due: u64,
    sent: u64,
    received: u64,
    /// When each outstanding message was sent or due, oldest first.
    stamps: VecDeque<u64>,
}

impl Clients {
    /// Returns an empty set of clients. Each message has `message` bytes.
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

    /// Replaces the limit of [`PATIENCE`].
    #[allow(dead_code, reason = "for the tests, which wait for a failure")]
    pub fn with_patience(mut self, patience: Duration) -> Clients {
        self.patience = patience;
        self
    }

    /// Connects more clients until there are `count`. When it returns, the server has accepted them all.
    pub fn connect(&mut self, address: SocketAddr, count: usize) -> Result<()> {
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

    fn connect_one(&mut self, address: SocketAddr) -> std::io::Result<()> {
        // Blocking: the handshake is complete, or refused, when this returns.
        let stream = std::net::TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        let token = Token(self.clients.len());
        self.poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
        self.clients.push(Client { stream, due: 0, sent: 0, received: 0, stamps: VecDeque::new() });
        Ok(())
    }

    /// Lets each client send one message and receive it back.
    pub fn echo_once(&mut self) -> Result<()> {
        self.echo_once_in(0..self.clients.len())
    }

    fn echo_once_in(&mut self, clients: std::ops::Range<usize>) -> Result<()> {
        let now = self.now();
        for client in clients {
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

    /// Applies the load, and measures it while the window is open.
    pub fn run<M>(&mut self, plan: &Plan, mut meter: impl FnMut() -> M) -> Result<Sample<M>> {
        let mut events = Events::with_capacity(1024);
        let mut latency = new_histogram();
        let (mut echoes, mut all_echoes) = (0, 0);
        let (mut before, mut after) = (None, None);

        let start = self.now();
        // The window opens and closes when the loop checks the time, which may be late on a busy machine.
        let (mut opens, mut closes) = (start + nanoseconds(plan.warm_up), u64::MAX);
        let mut patience = Patience::new(self.patience, start);
        let mut schedule = Schedule::new(start, plan.pace);
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
                self.send(schedule.client(self.clients.len()), 1, due)?;
            }
            if after.is_some() && self.outstanding == 0 {
                break;
            }
            self.wait(&mut events, Duration::from_millis(1))?;
            for event in &events {
                let client = event.token().0;
                let now = self.now();
                let returned = self.receive(client, event.is_read_closed(), |stamp| {
                    if (opens..closes).contains(&stamp) {
                        latency.saturating_record(now.saturating_sub(stamp));
                    }
                })?;
                if returned > 0 {
                    patience.progress(now);
                    echoes += u64::from(returned);
                    all_echoes += u64::from(returned);
                }
                let again = if now < closes && matches!(plan.pace, Pace::Closed { .. }) { returned } else { 0 };
                self.send(client, again, now)?;
            }
            self.check(&mut patience)?;
        }
        let ((opened, before), (closed, after, echoes)) =
            before.zip(after).expect("the loop ends only after the window has closed");
        let window = Duration::from_nanos(closed - opened);
        Ok(Sample { echoes, all_echoes, window, latency, before, after })
    }

    /// Shuts down the write side of every client, and expects end of file without a byte before it.
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

    /// Reads and verifies what has arrived, and passes the time of each completed message to `complete`. Returns how many
    /// messages were completed.
    fn receive(&mut self, client: usize, read_closed: bool, mut complete: impl FnMut(u64)) -> Result<u32> {
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
            // A short read has emptied the receive queue, unless a FIN follows (epoll(7), Q9).
            if count < self.buffer.len() && !read_closed {
                break;
            }
        }
        let messages = (this.received / self.message - before) as usize;
        self.outstanding -= messages;
        for stamp in this.stamps.drain(..messages) {
            complete(stamp);
        }
        Ok(messages as u32)
    }

    /// Waits for events, at most `at_most`; only polls if the generator spins.
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

    /// Fails if no reply has arrived for too long while some are outstanding.
    fn check(&self, patience: &mut Patience) -> Result<()> {
        if self.outstanding == 0 {
            patience.progress(self.now());
        }
        if !patience.is_over(self.now()) {
            return Ok(());
        }
        let is_waiting = |client: &Client| !client.stamps.is_empty();
        let client = self.clients.iter().position(is_waiting).expect("a client with an outstanding message");
        let Client { sent, received, .. } = self.clients[client];
        let others = self.clients[client + 1..].iter().filter(|client| is_waiting(client)).count();
        let silent = patience.limit_s();
        Err(format!("connection {client}: {received} of {sent} bytes came back, then nothing for {silent} s (and {others} more like it)").into())
    }

    fn now(&self) -> u64 {
        nanoseconds(self.epoch.elapsed())
    }
}
