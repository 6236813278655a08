//! Short connections: connect, send one message, receive it back, FIN both ways, repeat.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Socket, Type};

use super::patience::Patience;
use super::pattern::verify;
use super::{PATIENCE, Pattern, Result, Sample, nanoseconds, new_histogram};

/// Source addresses that the clients use in turn. The generator closes first, so each closed connection keeps its port
/// in TIME-WAIT for a minute; one address has 28,000 ports per server, and a second of churn can use as many. All of
/// 127.0.0.0/8 is local.
const SOURCES: u32 = 64;

/// A sequence of connections, one at a time.
struct Lane {
    stream: Option<TcpStream>,
    /// Number of the current connection, which also selects its pattern.
    number: usize,
    began: u64,
    sent: u64,
    received: u64,
}

/// Keeps `lanes` connections open for the time of `warm_up` and `window`. Counts connections as echoes; a latency covers
/// a whole connection, from connect(2) to end of file.
pub fn churn<M>(
    address: SocketAddr,
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
    let (mut echoes, mut all_echoes) = (0, 0);
    let (mut before, mut after) = (None, None);

    let epoch = Instant::now();
    let now = || nanoseconds(epoch.elapsed());
    let (mut opens, mut closes) = (nanoseconds(warm_up), u64::MAX);
    let mut patience = Patience::new(PATIENCE, 0);
    let mut next_number = 0;
    let mut lanes: Vec<Lane> =
        (0..lanes).map(|_| Lane { stream: None, number: 0, began: 0, sent: 0, received: 0 }).collect();
    loop {
        let time = now();
        if before.is_none() && time >= opens {
            (opens, closes) = (time, time + nanoseconds(window));
            before = Some((time, meter()));
            echoes = 0;
        } else if after.is_none() && time >= closes {
            after = Some((time, meter(), echoes));
        }
        for (index, lane) in lanes.iter_mut().enumerate() {
            if lane.stream.is_none() && after.is_none() {
                let connected = connect(address, next_number, &poll, Token(index));
                let stream = connected.map_err(|error| format!("connection {next_number}: cannot connect: {error}"))?;
                *lane = Lane { stream: Some(stream), number: next_number, began: now(), sent: 0, received: 0 };
                next_number += 1;
            }
        }
        if after.is_some() && lanes.iter().all(|lane| lane.stream.is_none()) {
            break;
        }
        poll.poll(&mut events, Some(if spin { Duration::ZERO } else { Duration::from_millis(1) }))?;
        for event in &events {
            let lane = &mut lanes[event.token().0];
            let outcome = lane.step(&pattern, message, &mut buffer);
            if outcome.map_err(|error| format!("connection {}: {error}", lane.number))? {
                let ended = now();
                patience.progress(ended);
                echoes += 1;
                all_echoes += 1;
                if before.is_some() && lane.began >= opens {
                    latency.saturating_record(ended - lane.began);
                }
            }
        }
        if patience.is_over(now()) {
            let lane = lanes.iter().find(|lane| lane.stream.is_some()).expect("a lane with an open connection");
            let (number, received) = (lane.number, lane.received);
            let silent = PATIENCE.as_secs();
            return Err(format!(
                "connection {number}: {received} of {message} bytes came back, then nothing for {silent} s"
            )
            .into());
        }
    }
    let ((opened, before), (closed, after, echoes)) =
        before.zip(after).expect("the loop ends only after the window has closed");
    let window = Duration::from_nanos(closed - opened);
    Ok(Sample { echoes, all_echoes, window, latency, before, after })
}

/// Starts to connect; on loopback from one of [`SOURCES`] addresses.
fn connect(address: SocketAddr, number: usize, poll: &Poll, token: Token) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), None)?;
    socket.set_tcp_nodelay(true)?;
    if let IpAddr::V4(Ipv4Addr::LOCALHOST) = address.ip() {
        // Chooses the port at connect(2), where only the whole four-tuple has to be free.
        setsockopt(&socket, IpBindAddressNoPort, &true)?;
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + number as u32 % SOURCES);
        socket.bind(&SocketAddr::from((source, 0)).into())?;
    }
    match socket.connect(&address.into()) {
        Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    let mut stream = TcpStream::from_std(socket.into());
    poll.registry().register(&mut stream, token, Interest::READABLE | Interest::WRITABLE)?;
    Ok(stream)
}

impl Lane {
    /// Sends and receives until the kernel would block. Returns true when both FINs have been exchanged.
    fn step(&mut self, pattern: &Pattern, message: u64, buffer: &mut [u8]) -> Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        if let Some(error) = stream.take_error()? {
            return Err(error.into());
        }
        while self.sent < message {
            match stream.write(pattern.stretch(self.number, self.sent, message - self.sent)) {
                Ok(count) => self.sent += count as u64,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            match stream.read(buffer) {
                Ok(0) if self.received == message => {
                    self.stream = None;
                    return Ok(true);
                }
                Ok(0) => return Err(format!("closed after {} of {message} bytes", self.received).into()),
                Ok(count) => {
                    verify(pattern, self.number, self.received, self.sent, &buffer[..count])?;
                    self.received += count as u64;
                    if self.received == message {
                        // If the server has closed already, this is the second FIN, and the connection may be gone.
                        match stream.shutdown(Shutdown::Write) {
                            Err(error) if error.kind() != ErrorKind::NotConnected => return Err(error.into()),
                            _ => {}
                        }
                    }
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
