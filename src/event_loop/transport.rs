//! The I/O abstraction that connections run on: a non-blocking byte stream with a write-side shutdown.
//!
//! [`Transport`] has two implementations: [`Stream`], a socket of the kernel, and the simulated socket of
//! `tests/simulation.rs`, on which the state machine runs a hundred thousand random schedules. `read` and `write` are
//! non-blocking: they return [`io::ErrorKind::WouldBlock`] instead of waiting.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, SocketAddrV6};
use std::time::Duration;
use std::{fmt, mem};

use mio::event::Source;
use mio::net::{TcpStream, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::net::RecvFlags;
use socket2::SockRef;

use crate::event_loop::tcp_info::{SendQueue, tcp_info};
use crate::listen::listener::Accepted;

/// A non-blocking byte stream, as a connection needs it.
pub trait Transport: Read + Write {
    /// Returns whether a read that returns less than was asked for has emptied the receive queue, as on TCP (epoll(7), Q9).
    /// This does not hold for Unix sockets, on which ancillary data (SCM_RIGHTS) ends a read early, with more data behind it
    /// and no new edge. Nor is it documented for MPTCP, which merges the queues of several TCP connections.
    fn short_read_drains(&self) -> bool;

    /// Returns whether this is TCP, for which [`Settings::max_tcp_read`](crate::event_loop::settings::Settings::max_tcp_read) holds.
    fn is_tcp(&self) -> bool;

    /// Returns the number of bytes in the receive queue: ioctl(2), FIONREAD.
    fn bytes_available(&self) -> io::Result<u32>;

    /// Copies received bytes without removing them from the receive queue: recv(2), MSG_PEEK.
    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize>;

    /// Sends our FIN after everything written so far: shutdown(2) with SHUT_WR.
    fn shutdown_write(&mut self) -> io::Result<()>;

    /// Returns whether the peer's kernel has acknowledged what we sent. [`SendQueue::Empty`] if that cannot be known: then close(2)
    /// is all that can be done.
    fn send_queue(&self) -> SendQueue;

    /// Returns whether the connection is over but for our FIN: the peer's FIN is next to be read, after the `received` bytes that
    /// have been read, and its kernel has acknowledged everything. False if that cannot be known.
    fn is_complete(&self, received: u64) -> bool;

    /// Returns for how many milliseconds the peer has not taken anything out of our send queue. `None` if the queue is empty, or
    /// if that cannot be known.
    fn output_idle_ms(&self) -> Option<u32>;

    /// Makes close(2) send an RST, so that the peer can tell a partial echo from a complete one: SO_LINGER with a time of 0.
    fn reset_on_close(&self);
}

/// Writes until everything is written or the socket would block. Returns the number of bytes written; `WouldBlock` is not an
/// error.
#[inline]
pub fn write_until_would_block(stream: &mut impl Transport, bytes: &[u8]) -> (usize, io::Result<()>) {
    match stream.write(bytes) {
        Ok(count) if count == bytes.len() => (count, Ok(())),
        first => continue_writing(stream, bytes, first),
    }
}

/// Continues after a first write that did not write everything: as [`write_until_would_block`].
#[cold]
pub fn continue_writing(
    stream: &mut impl Transport,
    bytes: &[u8],
    first: io::Result<usize>,
) -> (usize, io::Result<()>) {
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

/// A connected socket.
#[derive(Debug)]
pub enum Stream {
    /// TCP over IPv4 or IPv6.
    Tcp(TcpStream),
    /// Multipath TCP: RFC 8684.
    Mptcp(TcpStream),
    /// AF_UNIX, SOCK_STREAM.
    Unix(UnixStream),
}

impl Stream {
    /// Returns our address, for the log: `unix` for a Unix socket.
    pub fn local(&self) -> Option<Peer> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.local_addr().ok().map(Peer::from),
            Stream::Unix(_) => Some(Peer::Unix),
        }
    }
}

impl From<Accepted> for (Stream, Peer) {
    fn from(accepted: Accepted) -> (Stream, Peer) {
        match accepted {
            Accepted::Tcp(stream, peer) => (Stream::Tcp(stream), peer.into()),
            Accepted::Mptcp(stream, peer) => (Stream::Mptcp(stream), peer.into()),
            Accepted::Unix(stream) => (Stream::Unix(stream), Peer::Unix),
        }
    }
}

impl Read for Stream {
    #[inline]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.read(buffer),
            Stream::Unix(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.write(bytes),
            Stream::Unix(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // Nothing is buffered in user space.
    }
}

impl Transport for Stream {
    fn short_read_drains(&self) -> bool {
        // Documented for epoll(7) and kqueue(2), but not for other pollers.
        cfg!(any(target_os = "linux", target_os = "android", target_vendor = "apple", target_os = "freebsd"))
            && matches!(self, Stream::Tcp(_))
    }

    fn is_tcp(&self) -> bool {
        matches!(self, Stream::Tcp(_) | Stream::Mptcp(_))
    }

    fn bytes_available(&self) -> io::Result<u32> {
        let count = match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => rustix::io::ioctl_fionread(stream),
            Stream::Unix(stream) => rustix::io::ioctl_fionread(stream),
        }?;
        Ok(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn peek(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let (count, _) = match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => rustix::net::recv(stream, buffer, RecvFlags::PEEK),
            Stream::Unix(stream) => rustix::net::recv(stream, buffer, RecvFlags::PEEK),
        }?;
        Ok(count)
    }

    fn shutdown_write(&mut self) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.shutdown(Shutdown::Write),
            Stream::Unix(stream) => stream.shutdown(Shutdown::Write),
        }
    }

    fn send_queue(&self) -> SendQueue {
        match self {
            Stream::Tcp(stream) => tcp_info(stream).map_or(SendQueue::Empty, |info| info.send_queue()),
            Stream::Mptcp(_) => SendQueue::Empty, // TCP_INFO describes only one of its TCP connections.
            Stream::Unix(_) => SendQueue::Empty,  // What is written is in the peer's receive queue.
        }
    }

    fn is_complete(&self, received: u64) -> bool {
        match self {
            Stream::Tcp(stream) => tcp_info(stream).is_some_and(|info| info.is_complete(received)),
            Stream::Mptcp(_) | Stream::Unix(_) => false,
        }
    }

    fn output_idle_ms(&self) -> Option<u32> {
        match self {
            Stream::Tcp(stream) => tcp_info(stream)?.output_idle_ms(),
            Stream::Mptcp(_) | Stream::Unix(_) => None,
        }
    }

    fn reset_on_close(&self) {
        if let Stream::Tcp(stream) | Stream::Mptcp(stream) = self {
            // It cannot fail on a TCP socket. If it did, the peer would see a FIN.
            let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
        }
    }
}

impl Source for Stream {
    fn register(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.register(registry, token, interest),
            Stream::Unix(stream) => stream.register(registry, token, interest),
        }
    }

    fn reregister(&mut self, registry: &Registry, token: Token, interest: Interest) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.reregister(registry, token, interest),
            Stream::Unix(stream) => stream.reregister(registry, token, interest),
        }
    }

    fn deregister(&mut self, registry: &Registry) -> io::Result<()> {
        match self {
            Stream::Tcp(stream) | Stream::Mptcp(stream) => stream.deregister(registry),
            Stream::Unix(stream) => stream.deregister(registry),
        }
    }
}

/// The remote end. Kept for the log, because getpeername(2) fails after a reset.
///
/// It has 20 bytes instead of the 32 of a [`SocketAddr`]: the flow label of IPv6 is left out, and a zone is kept only where it
/// means something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// An IP address and a port. An IPv4 peer of a dual-stack socket is represented as IPv4.
    Ip(IpAddr, u16),
    /// An address of fe80::/64, which means something only with its zone (RFC 4007): the rest of the address, the index of the
    /// interface, and the port.
    LinkLocal([u8; 8], u32, u16),
    /// A Unix-socket peer, which usually has no address.
    Unix,
}

const _: () = assert!(mem::size_of::<Peer>() <= 20);

impl From<SocketAddr> for Peer {
    fn from(address: SocketAddr) -> Peer {
        if let SocketAddr::V6(v6) = address
            && let [0xfe, 0x80, 0, 0, 0, 0, 0, 0, interface_id @ ..] = v6.ip().octets()
        {
            return Peer::LinkLocal(interface_id, v6.scope_id(), v6.port());
        }
        Peer::Ip(address.ip().to_canonical(), address.port())
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Peer::Ip(ip, port) => SocketAddr::new(ip, port).fmt(f),
            Peer::LinkLocal(interface_id, scope, port) => {
                let mut octets = [0; 16];
                octets[..2].copy_from_slice(&[0xfe, 0x80]);
                octets[8..].copy_from_slice(&interface_id);
                SocketAddrV6::new(octets.into(), port, 0, scope).fmt(f)
            }
            Peer::Unix => f.write_str("unix"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_peer_of_dual_stack_socket_is_shown_as_ipv4() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:4711".parse().expect("address");
        assert_eq!(Peer::from(mapped).to_string(), "192.0.2.7:4711");
        let v6: SocketAddr = "[2001:db8::1]:80".parse().expect("address");
        assert_eq!(Peer::from(v6).to_string(), "[2001:db8::1]:80");
    }

    #[test]
    fn link_local_peer_is_shown_with_its_zone() {
        let link_local: SocketAddr = "[fe80::5054:ff:fe12:3456%3]:80".parse().expect("address");
        assert_eq!(Peer::from(link_local).to_string(), "[fe80::5054:ff:fe12:3456%3]:80");
    }

    #[test]
    fn streams_of_both_kinds_deliver_events() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let _peer = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
        let tcp = listener.accept().expect("accepted stream").0;
        let (unix, _other) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        tcp.set_nonblocking(true).and(unix.set_nonblocking(true)).expect("non-blocking streams");
        for mut stream in [Stream::Tcp(TcpStream::from_std(tcp)), Stream::Unix(UnixStream::from_std(unix))] {
            let mut poll = mio::Poll::new().expect("poller");
            poll.registry().register(&mut stream, Token(7), Interest::WRITABLE).expect("registration");
            let mut events = mio::Events::with_capacity(4);
            poll.poll(&mut events, Some(std::time::Duration::from_secs(10))).expect("poll");
            assert_eq!(
                events.iter().next().map(|event| event.token()),
                Some(Token(7)),
                "{stream:?} should be writable"
            );
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn stream_reports_short_read_semantics_and_available_bytes() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        let mut peer = std::net::TcpStream::connect(listener.local_addr().expect("address")).expect("connection");
        let tcp = Stream::Tcp(TcpStream::from_std(listener.accept().expect("accepted stream").0));
        let (unix, mut other) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        let unix = Stream::Unix(UnixStream::from_std(unix));
        assert!(tcp.short_read_drains() && !unix.short_read_drains());
        let (any_socket, _other) = std::os::unix::net::UnixStream::pair().expect("socket pair"); // Any socket will do.
        let mptcp = TcpStream::from_std(std::os::fd::OwnedFd::from(any_socket).into());
        let (mptcp, _): (Stream, Peer) = Accepted::Mptcp(mptcp, SocketAddr::from(([127, 0, 0, 1], 1))).into();
        assert!(!mptcp.short_read_drains());

        assert_eq!((tcp.bytes_available().expect("FIONREAD"), unix.bytes_available().expect("FIONREAD")), (0, 0));
        peer.write_all(b"hello").expect("send"); // On loopback, what is sent has arrived.
        other.write_all(b"hello").expect("send");
        assert_eq!((tcp.bytes_available().expect("FIONREAD"), unix.bytes_available().expect("FIONREAD")), (5, 5));
    }
}
