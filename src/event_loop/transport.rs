//! The seam between a connection and the world: a byte stream that can be finished.
//!
//! [`Transport`] has two implementations: [`Stream`], a socket of the kernel, and the simulated
//! socket of `tests/simulation.rs`, under which the state machine runs a hundred thousand random
//! schedules. `read` and `write` are non-blocking: they say [`io::ErrorKind::WouldBlock`] instead of
//! waiting.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::{fmt, mem};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};

/// A non-blocking byte stream, as a connection needs it.
pub trait Transport: Read + Write {
    /// Whether a read that returns less than was asked for has emptied the kernel's queue, as on TCP
    /// (epoll(7), Q9). Not so on a Unix socket, where ancillary data (SCM_RIGHTS) ends a read early
    /// with more behind it and no new edge.
    fn short_read_is_last(&self) -> bool;

    /// How many bytes the kernel holds for us to read at this moment: ioctl(2), FIONREAD.
    fn unread(&self) -> io::Result<u32>;

    /// Sends our FIN after everything written so far: shutdown(2) with SHUT_WR.
    fn shutdown_write(&mut self) -> io::Result<()>;
}

/// Writes until all is out or the kernel takes no more. Returns how many bytes went, and `Ok` also for WouldBlock.
#[inline]
pub fn write_until_blocked(stream: &mut impl Transport, bytes: &[u8]) -> (usize, io::Result<()>) {
    match stream.write(bytes) {
        Ok(count) if count == bytes.len() => (count, Ok(())),
        first => write_on(stream, bytes, first),
    }
}

/// As above, after a first write that did not take everything.
#[cold]
fn write_on(stream: &mut impl Transport, bytes: &[u8], first: io::Result<usize>) -> (usize, io::Result<()>) {
    let (mut written, mut result) = (0, first);
    loop {
        match result {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return (written, Ok(())),
            Err(error) => return (written, Err(error)),
        }
        if written == bytes.len() {
            return (written, Ok(()));
        }
        result = stream.write(&bytes[written..]);
    }
}

/// A connected socket of the kernel.
#[derive(Debug)]
pub enum Stream {
    /// TCP, over IPv4 or IPv6.
    Tcp(TcpStream),
    /// AF_UNIX, SOCK_STREAM.
    Unix(UnixStream),
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // What write(2) took is with the kernel.
    }
}

impl Transport for Stream {
    fn short_read_is_last(&self) -> bool {
        // epoll(7) and kqueue(2) promise it; other pollers do not.
        cfg!(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd"))
            && matches!(self, Stream::Tcp(_))
    }

    fn unread(&self) -> io::Result<u32> {
        let held = match self {
            Stream::Tcp(stream) => rustix::io::ioctl_fionread(stream),
            Stream::Unix(stream) => rustix::io::ioctl_fionread(stream),
        }?;
        Ok(u32::try_from(held).unwrap_or(u32::MAX))
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.register(registry, token, interest),
            Stream::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.reregister(registry, token, interest),
            Stream::Unix(stream) => stream.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
        }
    }
}

/// Who is at the other end. Kept for the log, because getpeername(2) fails after a reset.
///
/// 20 bytes where a [`SocketAddr`] has 32: flow label and scope of IPv6 are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An IP address and a port. An IPv4 peer of a dual-stack socket is IPv4 here.
    Ip(IpAddr, u16),
    /// A Unix socket's other end, which as a rule has no name.
    Unix,
}

const _: () = assert!(mem::size_of::<Peer>() <= 20);

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        Peer::Ip(address.ip().to_canonical(), address.port())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Peer::Ip(ip, port) => SocketAddr::new(ip, port).fmt(f),
            Peer::Unix => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_peer_of_a_dual_stack_socket_is_shown_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:4711".parse().expect("an address");
        assert_eq!(Peer::from(mapped).to_string(), "192.0.2.7:4711");
        let v6: SocketAddr = "[2001:db8::1]:80".parse().expect("an address");
        assert_eq!(Peer::from(v6).to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn the_poller_tells_of_a_stream_of_either_kind() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let _peer = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let tcp = listener.accept().expect("accepted").0;
        let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        tcp.set_nonblocking(true).and(unix.set_nonblocking(true)).expect("sockets");
        for mut stream in [Stream::Tcp(TcpStream::from_std(tcp)), Stream::Unix(UnixStream::from_std(unix))] {
            let mut poll = mio::Poll::new().expect("a poller");
            poll.registry().register(&mut stream, Token(7), Interest::WRITABLE).expect("registered");
            let mut events = mio::Events::with_capacity(4);
            poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("events");
            assert_eq!(events.iter().next().map(|event| event.token()), Some(Token(7)), "{stream:?} has room");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_stream_knows_what_a_short_read_is_worth_and_what_the_kernel_holds() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        let mut peer = std::net::TcpStream::connect(listener.local_addr().expect("an address")).expect("connected");
        let tcp = Stream::Tcp(TcpStream::from_std(listener.accept().expect("accepted").0));
        let (unix, mut other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let unix = Stream::Unix(UnixStream::from_std(unix));
        assert!(tcp.short_read_is_last() && !unix.short_read_is_last());

        assert_eq!((tcp.unread().expect("FIONREAD"), unix.unread().expect("FIONREAD")), (0, 0));
        peer.write_all(b"hello").expect("sent"); // On loopback, what is sent has arrived.
        other.write_all(b"hello").expect("sent");
        assert_eq!((tcp.unread().expect("FIONREAD"), unix.unread().expect("FIONREAD")), (5, 5));
    }
}
