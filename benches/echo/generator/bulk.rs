//! Bulk streams: large messages in both directions at once, alone or with small messages beside them.
//!
//! One thread does everything, in pieces: it reads at most 64 KiB and sends at most one message. After each piece it looks
//! at the light clients, so their latency contains at most the duration of one piece of the generator's own work.
//!
//! The generator must be faster than the servers, or else the queues build up on its side, and a ping finds an idle server.
//! So it sends from a file in memory, without a copy, and makes as few system calls as it can. Whether it is fast enough
//! shows in the table: the servers' utilization should be near 100 %.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::time::Duration;

use mio::{Events, Token};

use super::light::{CONNECTOR, Connector, PINGER, Pinger};
use super::pattern::{PatternFile, verify};
use super::reply_timeout::ReplyTimeout;
use super::stream::Stream;
use super::timer::TIMER;
use super::{Address, Clients, EXTENSION_NS, Result, Sample, nanoseconds, new_histogram};

/// Bytes per read.
const MAX_READ: usize = 64 * 1024;

/// Bytes that are sent to one stream before the next one has its turn: a whole message, as a client would send it.
const MAX_SEND: u64 = 256 * 1024;

/// Pieces between two looks at the poller.
const PIECES_PER_POLL: u32 = 4;

/// The load of the bulk streams.
pub struct BulkPlan {
    /// Bytes per message.
    pub message: u64,
    /// Messages in flight per stream, or None to send as much as the kernel accepts.
    pub in_flight: Option<u32>,
    /// Where the light clients connect, if there are any.
    pub light: Option<Address>,
    /// Load before the window.
    pub warm_up: Duration,
    /// How long the load is measured.
    pub window: Duration,
}

/// What a stream can do without blocking.
#[derive(Clone, Copy, Default)]
struct Readiness {
    readable: bool,
    writable: bool,
    /// Whether the end of the input was announced: then a short read does not mean that the queue is empty.
    read_closed: bool,
    is_queued: bool,
}

/// The streams with work to do.
struct Queue {
    readiness: Vec<Readiness>,
    streams: VecDeque<usize>,
}

impl Queue {
    fn push(&mut self, stream: usize) {
        if !std::mem::replace(&mut self.readiness[stream].is_queued, true) {
            self.streams.push_back(stream);
        }
    }

    fn pop(&mut self) -> Option<usize> {
        let stream = self.streams.pop_front()?;
        self.readiness[stream].is_queued = false;
        Some(stream)
    }
}

impl Clients {
    /// Applies a bulk load on all clients, and measures it while the window is open. `echoes` are bulk messages, `latency`
    /// is the pinger's.
    pub fn run_bulk<M>(&mut self, plan: &BulkPlan, mut meter: impl FnMut() -> M) -> Result<Sample<M>> {
        let mut events = Events::with_capacity(1024);
        let mut light = match &plan.light {
            Some(address) => Some((Pinger::connect(address, &self.poll)?, Connector::new(address))),
            None => None,
        };
        let all = 0..self.clients.len();
        let ready = Readiness { readable: true, writable: true, read_closed: false, is_queued: true };
        let mut queue = Queue { readiness: vec![ready; all.len()], streams: all.collect() };
        let (mut bytes, mut all_bytes) = (0, 0);
        let (mut before, mut after) = (None, None);

        let file = PatternFile::new(&self.pattern)?;
        let start = self.clock.now();
        let (mut window, mut closes) = (start + nanoseconds(plan.warm_up)..u64::MAX, u64::MAX);
        let mut reply_timeout = ReplyTimeout::new(self.reply_timeout, start);
        let mut connector_has_event = false;
        loop {
            let mut now = self.clock.now();
            if before.is_none() && now >= window.start {
                (window.start, closes) = (now, now + nanoseconds(plan.window));
                self.clock.take_lost();
                before = Some((now, meter()));
                bytes = 0;
            } else if after.is_none() && now >= closes && (bytes == 0 || light.as_ref().is_some_and(lacks_samples)) {
                closes = now + EXTENSION_NS;
            } else if after.is_none() && now >= closes {
                window.end = now;
                after = Some((now, meter(), bytes, self.clock.take_lost()));
                reply_timeout.start_drain(now);
            }
            for _ in 0..PIECES_PER_POLL {
                if let Some((pinger, connector)) = &mut light {
                    pinger.advance(&self.pattern, now, &window)?;
                    if std::mem::take(&mut connector_has_event) || !connector.is_waiting() {
                        connector.advance(&self.poll, &self.pattern, &mut self.buffer, now, &window)?;
                    }
                }
                let Some(stream) = queue.pop() else { break };
                let (received, has_more) =
                    self.bulk_piece(stream, &mut queue.readiness[stream], &file, plan, after.is_none())?;
                if has_more {
                    queue.push(stream);
                }
                now = self.clock.now();
                if received > 0 {
                    reply_timeout.progress(now);
                    (bytes, all_bytes) = (bytes + received, all_bytes + received);
                }
            }
            let outstanding = || self.clients.iter().position(|client| client.received < client.sent);
            if after.is_some() && outstanding().is_none() {
                // The light clients have a limit of their own.
                reply_timeout.progress(now);
                if !light.as_ref().is_some_and(|(pinger, connector)| pinger.is_waiting() || connector.is_waiting()) {
                    break;
                }
            }
            if let Some(reason) = reply_timeout.exceeded(now) {
                let client = outstanding().unwrap_or(0);
                let (sent, received) = (self.clients[client].sent, self.clients[client].received);
                return Err(format!("connection {client}: {received} of {sent} bytes came back, {reason}").into());
            }
            let wait =
                if queue.streams.is_empty() { until_next(&light, now, [window.start, closes]) } else { Duration::ZERO };
            self.waiter.wait(&mut self.poll, &mut events, wait)?;
            for event in &events {
                connector_has_event |= event.token() == CONNECTOR;
                if [TIMER, PINGER, CONNECTOR].contains(&event.token()) {
                    continue;
                }
                let Token(stream) = event.token();
                let readiness = &mut queue.readiness[stream];
                readiness.readable |= event.is_readable() || event.is_read_closed();
                readiness.writable |= event.is_writable();
                readiness.read_closed |= event.is_read_closed();
                queue.push(stream);
            }
        }
        let ((opened, before), (closed, after, bytes, lost)) =
            before.zip(after).expect("the loop ends only after the window has closed");
        let (pings, new_connections) = light.map(|(pinger, connector)| (pinger.latency, connector.latency)).unzip();
        Ok(Sample {
            echoes: bytes / plan.message,
            all_echoes: all_bytes / plan.message,
            bytes,
            window: Duration::from_nanos(closed - opened),
            latency: pings.unwrap_or_else(new_histogram),
            lateness: new_histogram(),
            new_connections,
            lost,
            before,
            after,
        })
    }

    /// Reads at most [`MAX_READ`] and sends at most [`MAX_SEND`] bytes. Returns the received bytes, and whether there is more to do without waiting.
    fn bulk_piece(
        &mut self,
        number: usize,
        readiness: &mut Readiness,
        file: &PatternFile,
        plan: &BulkPlan,
        is_sending: bool,
    ) -> Result<(u64, bool)> {
        let client = &mut self.clients[number];
        let mut received = 0;
        if readiness.readable {
            match client.stream.read(&mut self.buffer[..MAX_READ]) {
                Ok(0) => {
                    let (received, sent) = (client.received, client.sent);
                    return Err(format!("connection {number}: closed after {received} of {sent} bytes").into());
                }
                Ok(count) => {
                    verify(&self.pattern, number, client.received, client.sent, &self.buffer[..count])?;
                    received = count as u64;
                    client.received += received;
                    let may_have_more = count == MAX_READ || readiness.read_closed;
                    readiness.readable = may_have_more || matches!(client.stream, Stream::Unix(_));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => readiness.readable = false,
                Err(error) => return Err(format!("connection {number}: {error}").into()),
            }
        }
        let in_flight = plan.in_flight.map_or(u64::MAX, |messages| u64::from(messages) * plan.message);
        let due = (client.received / plan.message * plan.message).saturating_add(in_flight);
        let end = due.min(client.sent + MAX_SEND);
        while readiness.writable && is_sending && client.sent < end {
            let length = end - client.sent;
            match file.send(&client.stream, number, client.sent, length) {
                Ok(count) => client.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => readiness.writable = false,
                Err(error) => return Err(format!("connection {number}: {error}").into()),
            }
        }
        let has_more = readiness.readable || (readiness.writable && is_sending && client.sent < due);
        Ok((received, has_more))
    }
}

fn lacks_samples((pinger, connector): &(Pinger, Connector)) -> bool {
    pinger.latency.is_empty() || connector.latency.is_empty()
}

/// Returns how long nothing is due, if no stream is ready.
fn until_next(light: &Option<(Pinger, Connector)>, now: u64, ends: [u64; 2]) -> Duration {
    let light = light.iter().flat_map(|(pinger, connector)| [pinger.next_at(), connector.next_at()]);
    let next = light.flatten().chain(ends).filter(|at| *at > now).min();
    Duration::from_nanos(next.map_or(u64::MAX, |next| next - now)).min(Duration::from_millis(100))
}
