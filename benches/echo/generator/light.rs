//! Clients with small messages and pauses, beside bulk streams: a pinger, and a connector that opens short
//! connections.

use std::io::{ErrorKind, Read, Write};
use std::ops::Range;

use hdrhistogram::Histogram;
use mio::{Poll, Token};

use super::churn::Lane;
use super::pattern::verify;
use super::stream::Stream;
use super::{Address, Pattern, Result, new_histogram};

/// Bytes of a message.
const MESSAGE: u64 = 64;

/// The pause between an echo and the next message, random so that the clients do not run in step with the server.
const PAUSE_NS: Range<u64> = 1_000_000..3_000_000;

/// Maximum time for one small echo. Beside 300 streams, a server that serves them strictly in turn takes up to a second.
const MAX_ECHO_NS: u64 = 10_000_000_000;

/// The tokens of these clients. Bulk streams count from 0.
pub const PINGER: Token = Token(usize::MAX - 1);
pub const CONNECTOR: Token = Token(usize::MAX - 2);

/// Numbers for the patterns of these clients, which no bulk stream has.
const PINGER_NUMBER: usize = 1_000_003;
const FIRST_CONNECTION_NUMBER: usize = 1_000_033;

/// A client on one connection: sends a message, receives its echo, pauses.
pub struct Pinger {
    stream: Stream,
    sent: u64,
    received: u64,
    /// When the outstanding message was sent, or None during a pause.
    sent_at: Option<u64>,
    next_at: u64,
    random: fastrand::Rng,
    /// Nanoseconds per echo, of messages sent in the window.
    pub latency: Histogram<u64>,
}

impl Pinger {
    pub fn connect(address: &Address, poll: &Poll) -> Result<Pinger> {
        let mut stream = Stream::connect(address).map_err(|error| format!("pinger: cannot connect: {error}"))?;
        stream.register(poll, PINGER)?;
        let random = fastrand::Rng::with_seed(1);
        Ok(Pinger { stream, sent: 0, received: 0, sent_at: None, next_at: 0, random, latency: new_histogram() })
    }

    /// Sends a message if one is due before `window.end`, or reads its echo. Records it if it was sent in the window.
    pub fn advance(&mut self, pattern: &Pattern, now: u64, window: &Range<u64>) -> Result<()> {
        let Some(sent_at) = self.sent_at else {
            if (self.next_at..window.end).contains(&now) {
                let count = self.stream.write(pattern.stretch(PINGER_NUMBER, self.sent, MESSAGE))?;
                self.sent += count as u64;
                self.sent_at = Some(now);
            }
            return Ok(());
        };
        let mut buffer = [0; 2 * MESSAGE as usize];
        match self.stream.read(&mut buffer) {
            Ok(0) => return Err(format!("pinger: closed after {} of {} bytes", self.received, self.sent).into()),
            Ok(count) => {
                verify(pattern, PINGER_NUMBER, self.received, self.sent, &buffer[..count])
                    .map_err(|error| format!("pinger: {error}"))?;
                self.received += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(format!("pinger: {error}").into()),
        }
        if self.received == self.sent {
            if window.contains(&sent_at) {
                self.latency.saturating_record(now - sent_at);
            }
            self.sent_at = None;
            self.next_at = now + self.random.u64(PAUSE_NS);
        } else if now - sent_at > MAX_ECHO_NS {
            return Err(format!("pinger: no echo within {} s", MAX_ECHO_NS / 1_000_000_000).into());
        }
        Ok(())
    }

    /// Returns whether a message is outstanding.
    pub fn is_waiting(&self) -> bool {
        self.sent_at.is_some()
    }

    /// Returns when the next message is due, unless one is outstanding.
    pub fn next_at(&self) -> Option<u64> {
        self.sent_at.is_none().then_some(self.next_at)
    }
}

/// A client that opens short connections, one at a time: connect, echo one message, close, pause.
pub struct Connector {
    address: Address,
    lane: Lane,
    next_number: usize,
    next_at: u64,
    random: fastrand::Rng,
    /// Nanoseconds per connection, from connect(2) to end of file, of connections started in the window.
    pub latency: Histogram<u64>,
}

impl Connector {
    pub fn new(address: &Address) -> Connector {
        Connector {
            address: address.clone(),
            lane: Lane::default(),
            next_number: FIRST_CONNECTION_NUMBER,
            next_at: 0,
            random: fastrand::Rng::with_seed(2),
            latency: new_histogram(),
        }
    }

    /// Starts a connection if one is due before `window.end`, or advances it. Records it if it was started in the window.
    pub fn advance(
        &mut self,
        poll: &Poll,
        pattern: &Pattern,
        buffer: &mut [u8],
        now: u64,
        window: &Range<u64>,
    ) -> Result<()> {
        if !self.is_waiting() {
            if (self.next_at..window.end).contains(&now) {
                // A full backlog of a Unix socket is tried again in the next iteration.
                if self.lane.connect(&self.address, self.next_number, poll, CONNECTOR, now)? {
                    self.next_number += 1;
                }
            }
        } else if self.lane.step(pattern, MESSAGE, buffer).map_err(|error| format!("new connection: {error}"))? {
            if window.contains(&self.lane.began) {
                self.latency.saturating_record(now - self.lane.began);
            }
            self.next_at = now + self.random.u64(PAUSE_NS);
        } else if now - self.lane.began > MAX_ECHO_NS {
            return Err(format!("new connection: not served within {} s", MAX_ECHO_NS / 1_000_000_000).into());
        }
        Ok(())
    }

    /// Returns whether a connection is open.
    pub fn is_waiting(&self) -> bool {
        self.lane.is_open()
    }

    /// Returns when the next connection is due, unless one is open.
    pub fn next_at(&self) -> Option<u64> {
        (!self.is_waiting()).then_some(self.next_at)
    }
}
