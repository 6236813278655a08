//! A client's end of a connection, over TCP or a Unix socket.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Poll, Token};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Socket, Type};

use super::Address;

/// How long a connect(2) may take. A server whose backlog stays full for this long does not accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Source addresses that short connections use in turn. The generator closes first, so each closed connection keeps its
/// port in TIME-WAIT for a minute; one address has 28,000 ports per server, and a second of churn can use as many. All
/// of 127.0.0.0/8 is local.
const SOURCES: u32 = 64;

/// A non-blocking stream.
pub enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// Connects. The handshake is complete when this returns.
    pub fn connect(address: &Address) -> io::Result<Stream> {
        let socket = Socket::new(address.domain(), Type::STREAM.cloexec(), None)?;
        // Limits connect(2) too (socket(7)), even to a Unix socket, which would otherwise wait forever.
        socket.set_write_timeout(Some(CONNECT_TIMEOUT))?;
        socket.connect(&address.to_sock_addr()?).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => {
                io::Error::new(io::ErrorKind::TimedOut, format!("not accepted within {} s", CONNECT_TIMEOUT.as_secs()))
            }
            // EINPROGRESS: the timeout of a TCP handshake.
            _ if error.raw_os_error() == Some(nix::libc::EINPROGRESS) => {
                io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))
            }
            _ => error,
        })?;
        socket.set_nonblocking(true)?;
        Stream::from_socket(address, socket)
    }

    /// Starts to connect without waiting; on loopback from one of [`SOURCES`] addresses. WouldBlock means that the backlog
    /// of a Unix socket is full.
    pub fn start_connect(address: &Address, number: usize) -> io::Result<Stream> {
        let socket = Socket::new(address.domain(), Type::STREAM.nonblocking().cloexec(), None)?;
        if matches!(address, Address::Tcp(tcp) if tcp.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST)) {
            // Chooses the port at connect(2), where only the whole four-tuple has to be free.
            setsockopt(&socket, IpBindAddressNoPort, &true)?;
            let source = Ipv4Addr::from(u32::from(Ipv4Addr::LOCALHOST) + number as u32 % SOURCES);
            socket.bind(&SocketAddr::from((source, 0)).into())?;
        }
        match socket.connect(&address.to_sock_addr()?) {
            Err(error) if error.raw_os_error() != Some(nix::libc::EINPROGRESS) => return Err(error),
            _ => {}
        }
        Stream::from_socket(address, socket)
    }

    fn from_socket(address: &Address, socket: Socket) -> io::Result<Stream> {
        Ok(match address {
            Address::Tcp(_) => {
                socket.set_tcp_nodelay(true)?;
                Stream::Tcp(TcpStream::from_std(socket.into()))
            }
            Address::Unix(_) => Stream::Unix(UnixStream::from_std(socket.into())),
        })
    }

    /// Registers for both readable and writable events.
    pub fn register(&mut self, poll: &Poll, token: Token) -> io::Result<()> {
        let interest = Interest::READABLE | Interest::WRITABLE;
        match self {
            Stream::Tcp(stream) => poll.registry().register(stream, token, interest),
            Stream::Unix(stream) => poll.registry().register(stream, token, interest),
        }
    }

    /// Sends FIN.
    pub fn shutdown_write(&self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    /// Returns the error of a connect(2) that has failed.
    pub fn take_error(&self) -> io::Result<Option<io::Error>> {
        match self {
            Stream::Tcp(stream) => stream.take_error(),
            Stream::Unix(stream) => stream.take_error(),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Stream::Tcp(stream) => stream.as_fd(),
            Stream::Unix(stream) => stream.as_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
