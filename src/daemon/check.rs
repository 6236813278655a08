//! `--check`: tests an echo server as a client, for health checks and scripts.
//!
//! Nothing here runs beside the event loop, so blocking sockets with timeouts are good enough.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen::address::{Address, printable};

/// How long a check may take altogether. The contract allows 5 s; the rest is for starting and ending the process.
const MAX_CHECK_TIME: Duration = Duration::from_millis(4_500);

/// How long connecting and echoing may take. Less than [`MAX_CHECK_TIME`], so that the error says what timed out. Only a name
/// server, whose time getaddrinfo(3) does not let us limit, can use up the other one.
const MAX_SOCKET_TIME: Duration = Duration::from_millis(4_000);

/// The number of bytes sent. It fits into one segment and into any buffer.
const MESSAGE_LEN: usize = 64;

/// Sends random bytes to the echo server at `address`, and verifies that the same bytes and then the end of the stream come back.
/// Returns a line with the round-trip time, or the reason for the failure.
pub fn check(address: &Address) -> Result<String, String> {
    let (sender, result) = mpsc::channel();
    let address = address.clone();
    // A thread of its own, because name resolution cannot be interrupted. It ends with the process.
    thread::spawn(move || sender.send(check_until(&address, Instant::now() + MAX_SOCKET_TIME)));
    result.recv_timeout(MAX_CHECK_TIME).unwrap_or_else(|_| Err("check timed out: no answer from a name server".into()))
}

fn check_until(address: &Address, deadline: Instant) -> Result<String, String> {
    let targets = targets(address)?;
    let mut failures = Vec::new();
    for (index, target) in targets.iter().enumerate() {
        // The time that is left is shared, so that an address that does not answer leaves some for the others.
        let time = deadline.saturating_duration_since(Instant::now()) / (targets.len() - index) as u32;
        match target.connect(time.max(Duration::from_millis(1))) {
            Ok(socket) => {
                let round_trip =
                    exchange(socket, deadline).map_err(|why| format!("check of {} failed: {why}", target.name))?;
                let millis = round_trip.as_secs_f64() * 1e3;
                return Ok(format!("{}: {MESSAGE_LEN} bytes echoed in {millis:.3} ms", target.name));
            }
            Err(error) => failures.push(format!("cannot connect to {}: {}", target.name, describe(&error))),
        }
    }
    Err(failures.join("; "))
}

/// An address to connect to, and how messages name it.
struct Target {
    name: String,
    domain: Domain,
    address: SockAddr,
}

/// Returns the addresses to try in turn, at least one.
fn targets(address: &Address) -> Result<Vec<Target>, String> {
    let tcp = |address: SocketAddr| Target {
        name: format!("tcp://{address}"),
        domain: Domain::for_address(address),
        address: address.into(),
    };
    match address {
        // Both families, without a resolver: a container may have no /etc/hosts. RFC 6761, 6.3 fixes the meaning of the name.
        Address::Port(port) => {
            Ok(vec![tcp((Ipv4Addr::LOCALHOST, *port).into()), tcp((Ipv6Addr::LOCALHOST, *port).into())])
        }
        Address::Ip(address) => Ok(vec![tcp(*address)]),
        Address::Host { host, port } => {
            let failed = |error| format!("cannot resolve {}: {error}", printable(host));
            let found: Vec<Target> = (host.as_str(), *port).to_socket_addrs().map_err(failed)?.map(tcp).collect();
            if found.is_empty() { Err(format!("{} has no address", printable(host))) } else { Ok(found) }
        }
        Address::Unix(path) => Ok(vec![unix(&path.to_string_lossy(), SockAddr::unix(path))?]),
        // The kernel's form of an abstract name begins with a zero byte: unix(7).
        Address::Abstract(name) => Ok(vec![unix(&format!("@{name}"), SockAddr::unix(format!("\0{name}")))?]),
    }
}

fn unix(name: &str, address: io::Result<SockAddr>) -> Result<Target, String> {
    let name = format!("unix://{}", printable(name));
    match address {
        Ok(address) => Ok(Target { name, domain: Domain::UNIX, address }),
        Err(error) => Err(format!("cannot connect to {name}: {error}")),
    }
}

impl Target {
    fn connect(&self, time: Duration) -> io::Result<Socket> {
        let socket = Socket::new(self.domain, Type::STREAM, None)?;
        if self.domain == Domain::UNIX {
            // A non-blocking connect(2) fails at once if the backlog is full; a blocking one waits this long: socket(7).
            socket.set_write_timeout(Some(time))?;
            socket.connect(&self.address)?;
        } else {
            socket.connect_timeout(&self.address, time)?;
        }
        Ok(socket)
    }
}

/// Sends a message and reads its echo, then closes the write side and waits for the end of the stream. Returns the time from
/// the first byte sent to the last byte received.
fn exchange(mut socket: Socket, deadline: Instant) -> Result<Duration, String> {
    let message = random_bytes();
    let start = Instant::now();
    set_timeouts(&socket, deadline).map_err(|error| error.to_string())?;
    socket.write_all(&message).map_err(|error| format!("cannot send: {}", describe(&error)))?;
    let mut echo = [0; MESSAGE_LEN];
    let mut len = 0;
    while len < MESSAGE_LEN {
        match read(&mut socket, &mut echo[len..], deadline) {
            Ok(0) => return Err(format!("the server closed the connection after {len} of {MESSAGE_LEN} bytes")),
            Ok(count) => len += count,
            Err(error) => return Err(format!("{len} of {MESSAGE_LEN} bytes received: {}", describe(&error))),
        }
    }
    let round_trip = start.elapsed();
    if let Some(index) = (0..MESSAGE_LEN).find(|&index| echo[index] != message[index]) {
        return Err(format!("byte {index} of the echo is {:#04x}, not {:#04x}", echo[index], message[index]));
    }
    // ENOTCONN: the server has closed first, as with --one-shot, and then its end of the stream is all there is to see.
    let _ = socket.shutdown(Shutdown::Write);
    match read(&mut socket, &mut echo, deadline) {
        Ok(0) => Ok(round_trip),
        Ok(count) => Err(format!("the server sent {count} bytes more than it received")),
        Err(error) => Err(format!("the echo is complete, but the connection was not closed: {}", describe(&error))),
    }
}

/// Reads once, until `deadline` at the latest.
fn read(socket: &mut Socket, buffer: &mut [u8], deadline: Instant) -> io::Result<usize> {
    loop {
        set_timeouts(socket, deadline)?;
        match socket.read(buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Lets the next calls block until `deadline`. The time is never zero, which would mean forever.
fn set_timeouts(socket: &Socket, deadline: Instant) -> io::Result<()> {
    let time = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
    socket.set_read_timeout(Some(time))?;
    socket.set_write_timeout(Some(time))
}

/// Returns the error as text. EAGAIN, which a socket reports after its timeout, would read "Resource temporarily unavailable".
fn describe(error: &io::Error) -> String {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => "timed out".into(),
        _ => error.to_string(),
    }
}

/// Returns bytes that differ from one check to the next, so that an answer to another one is not taken for the echo. The seed is
/// the one that std draws for its hash maps; nothing here needs to be secret.
fn random_bytes() -> [u8; MESSAGE_LEN] {
    let seed = RandomState::new();
    let mut bytes = [0; MESSAGE_LEN];
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        chunk.copy_from_slice(&seed.hash_one(index).to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Runs a check against a server that handles one connection like this.
    fn check_against(serve: impl FnOnce(std::net::TcpStream) + Send + 'static) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listener");
        let address = Address::Ip(listener.local_addr().expect("address"));
        thread::spawn(move || serve(listener.accept().expect("connection").0));
        check_until(&address, Instant::now() + Duration::from_millis(500))
    }

    #[test]
    fn correct_echo_passes() {
        let line = check_against(|mut stream| {
            let mut bytes = Vec::new();
            let mut buffer = [0; 10];
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                bytes.extend_from_slice(&buffer[..count]);
                stream.write_all(&buffer[..count]).expect("echo");
            }
        });
        assert!(line.as_ref().is_ok_and(|line| line.contains("64 bytes echoed in ")), "{line:?}");
    }

    #[test]
    fn wrong_byte_fails() {
        let line = check_against(|mut stream| {
            let mut bytes = [0; 64];
            stream.read_exact(&mut bytes).expect("message");
            bytes[63] ^= 1;
            stream.write_all(&bytes).expect("echo");
        });
        assert!(line.as_ref().is_err_and(|why| why.contains("byte 63 of the echo is 0x")), "{line:?}");
    }

    #[test]
    fn truncated_echo_fails() {
        let line = check_against(|mut stream| {
            let mut bytes = [0; 64];
            stream.read_exact(&mut bytes).expect("message");
            stream.write_all(&bytes[..63]).expect("echo");
        });
        assert!(line.as_ref().is_err_and(|why| why.ends_with("after 63 of 64 bytes")), "{line:?}");
    }

    #[test]
    fn additional_byte_fails() {
        let line = check_against(|mut stream| {
            let mut bytes = [0; 65];
            stream.read_exact(&mut bytes[..64]).expect("message");
            stream.write_all(&bytes[..64]).expect("echo");
            stream.write_all(&[0]).expect("one more");
        });
        assert!(line.as_ref().is_err_and(|why| why.ends_with("sent 1 bytes more than it received")), "{line:?}");
    }

    #[test]
    fn connection_that_stays_open_fails() {
        let line = check_against(|mut stream| {
            let mut bytes = [0; 64];
            stream.read_exact(&mut bytes).expect("message");
            stream.write_all(&bytes).expect("echo");
            thread::sleep(Duration::from_secs(1));
        });
        assert!(line.as_ref().is_err_and(|why| why.contains("was not closed: timed out")), "{line:?}");
    }

    #[test]
    fn silent_server_fails_at_the_deadline() {
        let start = Instant::now();
        let line = check_against(|_stream| thread::sleep(Duration::from_secs(1)));
        assert!(line.as_ref().is_err_and(|why| why.ends_with("0 of 64 bytes received: timed out")), "{line:?}");
        assert!(start.elapsed() >= Duration::from_millis(500), "too early: {:?}", start.elapsed());
    }

    #[test]
    fn messages_differ_between_checks() {
        assert_ne!(random_bytes(), random_bytes());
    }
}
