//! One connection to the server under test. Every wait ends after [`timeout`].

use std::collections::HashSet;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{LazyLock, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockRef, Socket, Type};

/// What happened instead of what was expected.
pub type Outcome<T = ()> = Result<T, String>;

/// How long a server must accept nothing before we conclude that it has stopped reading. A server
/// that is only slow, on a loaded machine, takes something within this time.
const QUIET: Duration = Duration::from_millis(700);

/// More than the kernel's buffers of both ends hold together (about 10 MB with Linux's defaults). A
/// server that reads more than this while its echo is not read keeps it in memory without a limit.
const MAX_FILL: usize = 64 << 20;

/// The most bytes in one read or write.
const CHUNK: usize = 64 * 1024;

/// The length of the repeating pattern. Not a power of two, so that bytes that are missing or
/// doubled show.
const PERIOD: usize = 25;

static TIMEOUT: OnceLock<Duration> = OnceLock::new();

/// Returns how long the server may keep us waiting for a byte: 2 s unless `--timeout` says
/// otherwise.
pub fn timeout() -> Duration {
    *TIMEOUT.get_or_init(|| Duration::from_secs(2))
}

/// Sets [`timeout`]. Call it before anything else.
pub fn set_timeout(timeout: Duration) {
    TIMEOUT.get_or_init(|| timeout);
}

/// Returns [`CHUNK`] bytes of an endless text, from this offset on. It is text so that `binary`
/// alone tests other bytes.
pub fn pattern(offset: usize) -> &'static [u8] {
    static TEXT: LazyLock<Vec<u8>> = LazyLock::new(|| (b'a'..=b'y').cycle().take(PERIOD + CHUNK).collect());
    &TEXT[offset % PERIOD..][..CHUNK]
}

/// A connection to the server. Dropped, it is closed.
pub struct Peer {
    stream: TcpStream,
    /// How many bytes of the [`pattern`] have been sent and received.
    sent: usize,
    received: usize,
}

impl Peer {
    pub fn connect(address: SocketAddr) -> Outcome<Peer> {
        Peer::connect_with(address, None)
    }

    /// Connects with a small receive buffer, so that the server soon stalls while we do not read.
    pub fn connect_narrow(address: SocketAddr) -> Outcome<Peer> {
        Peer::connect_with(address, Some(16 * 1024))
    }

    /// Connects with a receive buffer of several MiB, if the system allows that, so that the server
    /// does not stall although we do not read.
    pub fn connect_wide(address: SocketAddr) -> Outcome<Peer> {
        Peer::connect_with(address, Some(4 << 20))
    }

    fn connect_with(address: SocketAddr, receive_buffer: Option<usize>) -> Outcome<Peer> {
        let connect = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
            if let Some(size) = receive_buffer {
                socket.set_recv_buffer_size(size)?;
            }
            socket.connect_timeout(&address.into(), timeout())?;
            socket.set_tcp_nodelay(true)?;
            socket.set_read_timeout(Some(timeout()))?;
            socket.set_write_timeout(Some(timeout()))?;
            Ok(TcpStream::from(socket))
        };
        let stream = connect().map_err(|error: io::Error| format!("cannot connect: {error}"))?;
        Ok(Peer { stream, sent: 0, received: 0 })
    }

    pub fn send(&mut self, bytes: &[u8]) -> Outcome {
        self.stream.write_all(bytes).map_err(|error| format!("{} while sending {} bytes", meaning(&error), bytes.len()))
    }

    /// Sends a byte with MSG_OOB.
    pub fn send_urgent(&mut self, byte: u8) -> Outcome {
        let sent = SockRef::from(&self.stream).send_out_of_band(&[byte]);
        sent.map(drop).map_err(|error| format!("{} while sending urgent data", meaning(&error)))
    }

    /// Sends what the kernel accepts at once, which may be nothing.
    fn send_some(&mut self, bytes: &[u8]) -> Outcome<usize> {
        match rustix::net::send(&self.stream, bytes, SendFlags::DONTWAIT) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(format!("{} after {} bytes were sent", meaning(&error.into()), self.sent)),
        }
    }

    /// Sends our FIN.
    pub fn finish(&self) -> Outcome {
        self.stream.shutdown(Shutdown::Write).map_err(|error| format!("{} at our FIN", meaning(&error)))
    }

    /// Ends the connection with RST: close(2) with SO_LINGER of 0.
    pub fn reset(self) -> Outcome {
        SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)).map_err(|error| error.to_string())
    }

    /// Receives exactly these bytes next.
    pub fn expect(&mut self, expected: &[u8]) -> Outcome {
        let mut buffer = vec![0; expected.len()];
        let mut length = 0;
        while length < expected.len() {
            let progress = |what: &str| format!("{what} after {length} of {} bytes", expected.len());
            match self.stream.read(&mut buffer[length..]) {
                Ok(0) => return Err(progress("FIN")),
                Ok(count) => {
                    compare(&buffer[length..length + count], &expected[length..], length)?;
                    length += count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(progress(&meaning(&error))),
            }
        }
        Ok(())
    }

    /// Receives the server's FIN next.
    pub fn expect_fin(&mut self) -> Outcome {
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(()),
            Ok(_) => Err("more bytes than were sent, instead of a FIN".into()),
            Err(error) => Err(format!("{} instead of a FIN", meaning(&error))),
        }
    }

    /// Waits until the server has ended the connection, by FIN or RST. Returns whether it did.
    pub fn wait_for_end(&mut self, time: Duration) -> Outcome<bool> {
        self.stream.set_read_timeout(Some(time)).map_err(|error| error.to_string())?;
        match self.stream.read(&mut [0]) {
            Ok(0) => Ok(true),
            Ok(_) => Err("a byte that was never sent".into()),
            Err(error) => Ok(error.kind() == ErrorKind::ConnectionReset),
        }
    }

    pub fn hello(&mut self) -> Outcome {
        self.send(b"hello\n")?;
        self.expect(b"hello\n")
    }

    /// Returns whether something has arrived: bytes, a FIN or an RST.
    pub fn has_news(&self) -> bool {
        let peeked = rustix::net::recv(&self.stream, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT);
        !matches!(peeked, Err(Errno::AGAIN))
    }

    // ---- the pattern: more bytes than one message holds ----

    /// Sends as much of the pattern as the kernel accepts at once, up to `total` bytes since the
    /// connection was opened.
    pub fn send_pattern(&mut self, total: usize) -> Outcome<usize> {
        let before = self.sent;
        while self.sent < total {
            let length = CHUNK.min(total - self.sent);
            match self.send_some(&pattern(self.sent)[..length])? {
                0 => break,
                count => self.sent += count,
            }
        }
        Ok(self.sent - before)
    }

    /// Sends the pattern until the server has stopped reading and every buffer on the way is full.
    pub fn send_until_stalled(&mut self) -> Outcome {
        let mut last_progress = Instant::now();
        while last_progress.elapsed() < QUIET {
            if self.send_pattern(MAX_FILL)? > 0 {
                last_progress = Instant::now();
            } else if self.sent >= MAX_FILL {
                return Err(format!("{} MiB accepted while the echo was not read: no backpressure", MAX_FILL >> 20));
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Receives the next bytes of the pattern, at least one.
    pub fn receive_pattern(&mut self, buffer: &mut [u8]) -> Outcome {
        let progress = |what: &str| format!("{what} after {} of {} bytes", self.received, self.sent);
        let length = buffer.len().min(CHUNK).min(self.sent - self.received);
        let count = match self.stream.read(&mut buffer[..length]) {
            Ok(0) => return Err(progress("FIN")),
            Ok(count) => count,
            Err(error) => return Err(progress(&meaning(&error))),
        };
        compare(&buffer[..count], pattern(self.received), self.received)?;
        self.received += count;
        Ok(())
    }

    /// Receives the rest of the pattern that was sent.
    pub fn receive_rest(&mut self) -> Outcome {
        let mut buffer = vec![0; CHUNK];
        while self.received < self.sent {
            self.receive_pattern(&mut buffer)?;
        }
        Ok(())
    }

    /// Receives what has arrived, without waiting. Returns how many bytes that was.
    pub fn receive_some(&mut self, buffer: &mut [u8]) -> Outcome<usize> {
        let before = self.received;
        while self.received < self.sent && self.has_news() {
            self.receive_pattern(buffer)?;
        }
        Ok(self.received - before)
    }

    /// Returns how many bytes of the pattern have been sent and not received.
    pub fn in_flight(&self) -> usize {
        self.sent - self.received
    }

    pub fn received(&self) -> usize {
        self.received
    }
}

/// Returns how many of the bytes in flight have arrived at the server's end: all but those that
/// wait in our send buffers. Linux shows these; on other systems, everything is assumed to have
/// arrived.
pub fn arrived(peers: &[Peer]) -> Outcome<usize> {
    let mut arrived: usize = peers.iter().map(Peer::in_flight).sum();
    let ports = |peer: &Peer| Ok((peer.stream.local_addr()?.port(), peer.stream.peer_addr()?.port()));
    let ports = peers.iter().map(ports).collect::<io::Result<HashSet<_>>>().map_err(|error| error.to_string())?;
    for path in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in fs::read_to_string(path).unwrap_or_default().lines().skip(1) {
            // proc_net_tcp(5): "sl local_address rem_address st tx_queue:rx_queue ...",
            // hexadecimal.
            let fields: Vec<&str> = line.split_ascii_whitespace().take(5).collect();
            let port = |field: &str| u16::from_str_radix(field.rsplit_once(':')?.1, 16).ok();
            let [_, local, remote, _, queues] = fields[..] else { continue };
            if port(local).zip(port(remote)).is_some_and(|ends| ports.contains(&ends)) {
                let unsent = queues.split_once(':').and_then(|(sent, _)| usize::from_str_radix(sent, 16).ok());
                // It may also count the end of an earlier message that is not acknowledged yet.
                arrived = arrived.saturating_sub(unsent.unwrap_or(0));
            }
        }
    }
    Ok(arrived)
}

/// Compares bytes with the beginning of what is expected. `offset` is the position of the first
/// one.
fn compare(got: &[u8], expected: &[u8], offset: usize) -> Outcome {
    let Some(position) = got.iter().zip(expected).position(|(got, expected)| got != expected) else { return Ok(()) };
    let (got, expected) = (got[position], expected[position]);
    Err(format!("byte {} is {got:#04x} instead of {expected:#04x}", offset + position))
}

/// Says what an error means on the wire.
fn meaning(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => format!("nothing for {} s", timeout().as_secs()),
        // After an RST, read(2) returns the first, write(2) the second, shutdown(2) the third.
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => format!("RST ({error})"),
        _ => error.to_string(),
    }
}
