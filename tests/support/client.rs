//! A client of the daemon, over TCP or a Unix socket. Every operation fails after [`TIMEOUT`].

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{TIMEOUT, TcpSocket, assert_same, tcp_socket};

/// An address that the daemon listens on, as printed on its stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
    /// The metrics endpoint (`--metrics`).
    Http(SocketAddr),
}

impl Address {
    /// Parses the URL of a `listening on …` line.
    pub fn parse(url: &str) -> Option<Address> {
        let (scheme, rest) = url.split_once("://")?;
        match scheme {
            "tcp" => rest.parse().ok().map(Address::Tcp),
            "http" => rest.parse().ok().map(Address::Http),
            "unix" => Some(Address::Unix(rest.into())),
            _ => None,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "tcp://{address}"),
            Address::Http(address) => write!(f, "http://{address}"),
            Address::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Tcp(address)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Address {
        Address::Unix(path.into())
    }
}

/// One connection to the daemon.
///
/// Dropping it closes the connection: with FIN, or with RST if it has unread bytes.
pub struct Client {
    pub socket: Socket,
    /// Local and remote address of a TCP connection; `None` for a Unix socket.
    ///
    /// Stored on connecting, because getpeername(2) fails once the connection is closed.
    addresses: Option<(SocketAddr, SocketAddr)>,
}

impl Client {
    #[track_caller]
    pub fn connect(address: &Address) -> Client {
        Client::try_connect(address).unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    pub fn try_connect(address: &Address) -> io::Result<Client> {
        Client::connect_with(address, |_| Ok(()))
    }

    /// Connects a socket on which `prepare` has set what must be set before connect(2), such as buffer
    /// sizes or a local address.
    pub fn connect_with(address: &Address, prepare: impl Fn(&Socket) -> io::Result<()>) -> io::Result<Client> {
        let socket = match address {
            Address::Tcp(address) | Address::Http(address) => {
                let socket = Socket::new(Domain::for_address(*address), Type::STREAM, None)?;
                prepare(&socket)?;
                socket.connect_timeout(&SockAddr::from(*address), TIMEOUT)?;
                socket.set_tcp_nodelay(true)?;
                socket
            }
            Address::Unix(path) => {
                let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
                prepare(&socket)?;
                socket.set_write_timeout(Some(TIMEOUT))?; // Also limits connect(2) on a Unix socket.
                socket.connect(&SockAddr::unix(path)?)?;
                socket
            }
        };
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.set_write_timeout(Some(TIMEOUT))?;
        let addresses = socket.local_addr()?.as_socket().zip(socket.peer_addr()?.as_socket());
        Ok(Client { socket, addresses })
    }

    /// Connects with kernel buffers so small that the connection soon stalls when the client does not read.
    #[track_caller]
    pub fn connect_with_small_buffers(address: &Address) -> Client {
        let small_buffers = |socket: &Socket| {
            socket.set_recv_buffer_size(8192)?;
            socket.set_send_buffer_size(8192)
        };
        Client::connect_with(address, small_buffers)
            .unwrap_or_else(|error| panic!("cannot connect to {address}: {error}"))
    }

    /// Returns the client's own address, which the daemon logs as that of its peer.
    #[track_caller]
    pub fn local(&self) -> SocketAddr {
        self.addresses.expect("a TCP connection").0
    }

    #[track_caller]
    pub fn remote(&self) -> SocketAddr {
        self.addresses.expect("a TCP connection").1
    }

    pub fn is_tcp(&self) -> bool {
        self.addresses.is_some()
    }

    /// Returns the kernel's view of the client's socket, or `None` once it is gone.
    pub fn local_socket(&self) -> Option<TcpSocket> {
        tcp_socket(self.local(), self.remote())
    }

    /// Returns the kernel's view of the daemon's socket, or `None` once it is gone.
    pub fn remote_socket(&self) -> Option<TcpSocket> {
        tcp_socket(self.remote(), self.local())
    }

    #[track_caller]
    pub fn send(&self, bytes: &[u8]) {
        let sent = (&self.socket).write_all(bytes).map_err(name_timeout);
        sent.unwrap_or_else(|error| panic!("cannot send {} bytes: {error}", bytes.len()));
    }

    /// Sends with the last byte marked as urgent (MSG_OOB).
    ///
    /// Unix sockets support this since Linux 5.15; on an older kernel they send the bytes unmarked.
    #[track_caller]
    pub fn send_urgent(&self, bytes: &[u8]) {
        match self.socket.send_out_of_band(bytes) {
            Ok(sent) => assert_eq!(sent, bytes.len(), "all urgent data should be sent at once"),
            Err(error) if !self.is_tcp() && error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => {
                self.send(bytes)
            }
            Err(error) => panic!("cannot send urgent data: {error}"),
        }
    }

    /// Sends without blocking, and returns the number of bytes that the kernel accepted, which may be 0.
    pub fn try_send(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::net::send(&self.socket, bytes, SendFlags::DONTWAIT) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Sends copies of `block` until the kernel has accepted nothing for `quiet`: the daemon has stopped
    /// reading, and every kernel buffer in between is full. Returns the number of bytes sent.
    ///
    /// Panics if the connection has not stalled after `max_bytes`.
    #[track_caller]
    pub fn send_until_stalled(&self, block: &[u8], quiet: Duration, max_bytes: usize) -> usize {
        let (mut total, mut last) = (0, Instant::now());
        while last.elapsed() < quiet {
            assert!(
                total < max_bytes,
                "the daemon should stop reading from a client that reads nothing; sent {total} bytes"
            );
            let offset = total % block.len();
            match self.try_send(&block[offset..]).expect("the connection should stay open") {
                0 => drop(self.wait_for(PollFlags::OUT, Duration::from_millis(10))),
                sent => (total, last) = (total + sent, Instant::now()),
            }
        }
        total
    }

    /// Reads the next `length` bytes.
    pub fn read_exactly(&self, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        (&self.socket).read_exact(&mut bytes).map_err(name_timeout)?;
        Ok(bytes)
    }

    /// Asserts that exactly these bytes arrive next.
    #[track_caller]
    pub fn expect(&self, expected: &[u8]) {
        let mut got = vec![0; expected.len()];
        let mut length = 0;
        while length < got.len() {
            match (&self.socket).read(&mut got[length..]).map_err(name_timeout) {
                Ok(0) => panic!("expected {} bytes, got {length} and then FIN", expected.len()),
                Ok(read) => length += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => panic!("expected {} bytes, got {length} and then: {error}", expected.len()),
            }
        }
        assert_same(&got, expected);
    }

    /// Sends the bytes and expects them back. They must fit into the kernel's buffers; for longer
    /// messages use [`Client::exchange`].
    #[track_caller]
    pub fn echo(&self, bytes: &[u8]) {
        self.send(bytes);
        self.expect(bytes);
    }

    /// Sends the bytes and expects them back, reading while it sends, so that a message of any length
    /// passes through the daemon's bounded buffer.
    #[track_caller]
    pub fn exchange(&self, bytes: &[u8]) {
        thread::scope(|scope| {
            scope.spawn(|| self.send(bytes));
            self.expect(bytes);
        });
    }

    /// Shuts down the write side (sends FIN).
    #[track_caller]
    pub fn send_fin(&self) {
        self.socket.shutdown(Shutdown::Write).expect("the connection should be open");
    }

    /// Asserts that the daemon's FIN arrives next, without data before it and without a reset.
    #[track_caller]
    pub fn expect_fin(&self) {
        let (bytes, result) = self.read_until_closed();
        match result {
            Ok(()) => assert!(bytes.is_empty(), "expected FIN, got {} bytes before it", bytes.len()),
            Err(error) if is_timeout(&error) => panic!("no FIN within {TIMEOUT:?}, got {} bytes", bytes.len()),
            Err(error) => panic!("expected FIN, got {} bytes and then: {error}", bytes.len()),
        }
    }

    /// Asserts that the connection is closed without further data. Returns `Ok` after a FIN and the
    /// error after a reset.
    #[track_caller]
    pub fn expect_closed(&self) -> io::Result<()> {
        let (bytes, result) = self.read_until_closed();
        assert!(bytes.is_empty(), "expected FIN or RST, got {} bytes before it", bytes.len());
        if let Err(error) = &result {
            assert!(!is_timeout(error), "neither FIN nor RST within {TIMEOUT:?}");
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "expected FIN or RST, got: {error}");
        }
        result
    }

    /// Returns the number of bytes in the receive buffer.
    #[track_caller]
    pub fn unread(&self) -> usize {
        rustix::io::ioctl_fionread(&self.socket).expect("FIONREAD should work on a socket") as usize
    }

    /// Asserts that nothing has arrived so far: no data, no FIN and no reset.
    #[track_caller]
    pub fn expect_nothing_yet(&self) {
        match rustix::net::recv(&self.socket, &mut [0; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
            Err(Errno::AGAIN) => {}
            Ok((0, _)) => panic!("expected an open connection without data, got FIN"),
            Ok(_) => panic!("expected an open connection without data, got {} bytes", self.unread()),
            Err(error) => panic!("expected an open connection without data, got: {error}"),
        }
    }

    /// Reads everything up to the daemon's FIN. Returns an error if the connection is reset first.
    pub fn read_to_end(&self) -> io::Result<Vec<u8>> {
        let (bytes, result) = self.read_until_closed();
        result.map(|()| bytes)
    }

    /// Reads everything up to a FIN or an error. Returns the data in either case.
    pub fn read_until_closed(&self) -> (Vec<u8>, io::Result<()>) {
        let mut bytes = Vec::new();
        let result = (&self.socket).read_to_end(&mut bytes).map(drop).map_err(name_timeout);
        (bytes, result)
    }

    /// Waits for readiness, for at most `timeout`. Returns whether the socket became ready.
    pub fn wait_for(&self, flags: PollFlags, timeout: Duration) -> bool {
        let timeout = Timespec::try_from(timeout).expect("the timeout should fit into a timespec");
        matches!(poll(&mut [PollFd::new(&self.socket, flags)], Some(&timeout)), Ok(ready) if ready > 0)
    }

    /// Resets the connection: close(2) with SO_LINGER set to 0 sends RST.
    #[track_caller]
    pub fn reset(self) {
        self.socket.set_linger(Some(Duration::ZERO)).expect("set SO_LINGER");
    }
}

/// Returns whether the error means that SO_RCVTIMEO or SO_SNDTIMEO has expired, which socket(7)
/// reports as EAGAIN.
fn is_timeout(error: &io::Error) -> bool {
    error.kind() == ErrorKind::WouldBlock
}

/// Replaces the text of a timeout, "Resource temporarily unavailable", by one that says what is wrong.
fn name_timeout(error: io::Error) -> io::Error {
    if is_timeout(&error) { io::Error::new(error.kind(), format!("no progress within {TIMEOUT:?}")) } else { error }
}
