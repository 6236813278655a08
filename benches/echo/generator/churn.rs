//! Short connections: connect, send one message, receive it back, FIN both ways, repeat.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::clock::Clock;
use super::pattern::verify;
use super::reply_timeout::ReplyTimeout;
use super::stream::Stream;
use super::{Address, EXTENSION_NS, Pattern, REPLY_TIMEOUT, Result, Sample, nanoseconds, new_histogram};

/// A sequence of connections, one at a time.
#[derive(Default)]
pub(super) struct Lane {
    stream: Option<Stream>,
    /// Number of the current connection, which also selects its pattern.
    number: usize,
    /// When connect(2) was called.
    pub(super) began: u64,
    sent: u64,
    received: u64,
}

/// Keeps `lanes` connections open for the time of `warm_up` and `window`. Counts connections as echoes; a latency covers
/// a whole connection, from connect(2) to end of file.
pub fn churn<M>(
    address: &Address,
    lanes: usize,
    message: u64,
    spin: bool,
    (warm_up, window): (Duration, Duration),
    mut meter: impl FnMut() -> M,
) -> Result<Sample<M>> {
    let mut poll = Poll::new()?;
    let mut events = Events::with_capacity(1024);
    let pattern = Pattern::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut latency = new_histogram();
    let (mut echoes, mut all_echoes, mut bytes) = (0, 0, 0);
    let (mut before, mut after) = (None, None);

    let clock = Clock::new();
    let now = || clock.now();
    let (mut opens, mut closes) = (nanoseconds(warm_up), u64::MAX);
    let mut reply_timeout = ReplyTimeout::new(REPLY_TIMEOUT, 0);
    let mut next_number = 0;
    let mut lanes: Vec<Lane> = (0..lanes).map(|_| Lane::default()).collect();
    loop {
        let time = now();
        if before.is_none() && time >= opens {
            (opens, closes) = (time, time + nanoseconds(window));
            clock.take_lost();
            before = Some((time, meter()));
            (echoes, bytes) = (0, 0);
        } else if after.is_none() && time >= closes && (echoes == 0 || latency.is_empty()) {
            closes = time + EXTENSION_NS;
        } else if after.is_none() && time >= closes {
            after = Some((time, meter(), echoes, bytes, clock.take_lost()));
            reply_timeout.start_drain(time);
        }
        for (index, lane) in lanes.iter_mut().enumerate() {
            if !lane.is_open() && after.is_none() {
                // A full backlog is tried again in the next iteration.
                if !lane.connect(address, next_number, &poll, Token(index), now())? {
                    break;
                }
                next_number += 1;
            }
        }
        if after.is_some() && !lanes.iter().any(Lane::is_open) {
            break;
        }
        poll.poll(&mut events, Some(if spin { Duration::ZERO } else { Duration::from_millis(1) }))?;
        for event in &events {
            let lane = &mut lanes[event.token().0];
            let received = lane.received;
            let outcome = lane.step(&pattern, message, &mut buffer);
            let is_finished = outcome?;
            if lane.received > received || is_finished {
                reply_timeout.progress(now());
                bytes += lane.received - received;
            }
            if is_finished {
                let ended = now();
                echoes += 1;
                all_echoes += 1;
                if before.is_some() && lane.began >= opens {
                    latency.saturating_record(ended - lane.began);
                }
            }
        }
        if let Some(reason) = reply_timeout.exceeded(now()) {
            return Err(match lanes.iter().find(|lane| lane.is_open()) {
                Some(Lane { number, received, .. }) => {
                    format!("connection {number}: {received} of {message} bytes came back, {reason}")
                }
                None => format!("connection {next_number}: cannot connect: the backlog stays full"),
            }
            .into());
        }
    }
    let ((opened, before), (closed, after, echoes, bytes, lost)) =
        before.zip(after).expect("the loop ends only after the window has closed");
    let window = Duration::from_nanos(closed - opened);
    let lateness = new_histogram();
    Ok(Sample { echoes, all_echoes, bytes, window, latency, lateness, new_connections: None, lost, before, after })
}

impl Lane {
    /// Starts to connect. Returns false if the backlog of a Unix socket is full.
    pub(super) fn connect(
        &mut self,
        address: &Address,
        number: usize,
        poll: &Poll,
        token: Token,
        now: u64,
    ) -> Result<bool> {
        let mut stream = match Stream::start_connect(address, number) {
            Ok(stream) => stream,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(format!("connection {number}: cannot connect: {error}").into()),
        };
        stream.register(poll, token)?;
        *self = Lane { stream: Some(stream), number, began: now, sent: 0, received: 0 };
        Ok(true)
    }

    /// Returns whether a connection is open.
    pub(super) fn is_open(&self) -> bool {
        self.stream.is_some()
    }

    /// Sends and receives until the kernel would block. Returns true when both FINs have been exchanged.
    pub(super) fn step(&mut self, pattern: &Pattern, message: u64, buffer: &mut [u8]) -> Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let number = self.number;
        let failed = |error: std::io::Error| format!("connection {number}: {error}");
        if let Some(error) = stream.take_error()? {
            return Err(failed(error).into());
        }
        while self.sent < message {
            match stream.write(pattern.stretch(number, self.sent, message - self.sent)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(failed(error).into()),
            }
        }
        loop {
            match stream.read(buffer) {
                Ok(0) if self.received == message => {
                    self.stream = None;
                    return Ok(true);
                }
                Ok(0) => {
                    return Err(
                        format!("connection {number}: closed after {} of {message} bytes", self.received).into()
                    );
                }
                Ok(count) => {
                    verify(pattern, number, self.received, self.sent, &buffer[..count])?;
                    self.received += count as u64;
                    if self.received == message {
                        // If the server has closed already, this is the second FIN, and the connection may be gone.
                        match stream.shutdown_write() {
                            Err(error) if error.kind() != ErrorKind::NotConnected => return Err(failed(error).into()),
                            _ => {}
                        }
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(error) => return Err(failed(error).into()),
            }
        }
    }
}
