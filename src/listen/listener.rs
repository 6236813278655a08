//! Listening sockets: accepting connections, and what an error of accept(2) means for the loop.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, SockRef, Socket, Type};

use crate::listen::address::printable;
use crate::listen::socket::{ListenOptions, somaxconn};
use crate::listen::stream_options::{refuse_descriptors, reset_tcp_options, set_tcp_options};
use crate::listen::unix_file::SocketFile;

/// A non-blocking listening socket.
#[derive(Debug)]
pub struct Listener {
    /// The index in the listener's token, set by the server.
    pub index: u32,
    /// Whether an event has reported pending connections, and accept(2) has not returned EAGAIN since.
    pub ready: bool,
    /// During a graceful shutdown, how many more connections are accepted.
    drain_limit: Option<u32>,
    /// The backlog that was passed to listen(2). For an inherited listener, the largest that it can be.
    backlog: u32,
    /// SO_SNDBUF and SO_RCVBUF of accepted streams.
    socket_buffer: Option<u32>,
    set_options: SetOptions,
    local: String,
    // Declared, and so dropped, before the socket: as long as the socket is open, the kernel does not reuse the inode number
    // by which the file is recognized.
    _file: Option<SocketFile>,
    socket: ListeningSocket,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Mptcp(TcpListener),
    Unix(UnixListener),
}

impl ListeningSocket {
    fn accept(&self) -> io::Result<Accepted> {
        match self {
            ListeningSocket::Tcp(listener) => {
                let (stream, address) = listener.accept()?; // accept4(2) makes it non-blocking and close-on-exec.
                Ok(Accepted::Tcp(stream, address))
            }
            ListeningSocket::Mptcp(listener) => {
                let (stream, address) = listener.accept()?;
                // Linux returns a plain TCP stream if the peer does not support MPTCP.
                let is_mptcp = is_mptcp(&SockRef::from(&stream)).unwrap_or(true);
                Ok(if is_mptcp { Accepted::Mptcp(stream, address) } else { Accepted::Tcp(stream, address) })
            }
            ListeningSocket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                // Linux supports urgent data on Unix sockets since 5.15. Accepted Unix sockets do not inherit the option, and
                // a system that does not know it has no urgent data either.
                let _ = rustix::net::sockopt::set_socket_oobinline(&stream, true);
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

/// When the options of an accepted stream have to be set, because it did not inherit them from the listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SetOptions {
    /// Never: the options were set before listen(2).
    Never,
    /// Until the backlog is empty. Connections that were pending when a passed listener was taken over have inherited the
    /// options that it had then. accept(2) returns them first.
    UntilEmpty,
    /// Always, because streams of this kind, or on this system, do not inherit options.
    Always,
}

/// An accepted stream, non-blocking and close-on-exec.
#[derive(Debug)]
pub enum Accepted {
    /// A TCP stream and the peer's address.
    Tcp(TcpStream, SocketAddr),
    /// A Multipath TCP stream (RFC 8684) and the peer's address. A short read from it does not mean that its receive queue is
    /// empty.
    Mptcp(TcpStream, SocketAddr),
    /// A Unix stream, whose peer usually has no address.
    Unix(UnixStream),
}

/// The kind of a stream socket.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Tcp,
    Mptcp,
    Unix,
}

impl Listener {
    /// Wraps a socket that is already listening.
    pub(super) fn new(
        socket: OwnedFd,
        kind: Kind,
        options: &ListenOptions,
        file: Option<SocketFile>,
    ) -> io::Result<Listener> {
        // mio does not check this, and a blocking listener would hang the loop in accept(2) on an empty backlog.
        rustix::io::ioctl_fionbio(&socket, true)?;
        let (socket, local) = match kind {
            Kind::Tcp | Kind::Mptcp => {
                let listener = TcpListener::from_std(socket.into());
                let local = format!("tcp://{}", listener.local_addr()?);
                let is_mptcp = matches!(kind, Kind::Mptcp);
                (if is_mptcp { ListeningSocket::Mptcp(listener) } else { ListeningSocket::Tcp(listener) }, local)
            }
            Kind::Unix => {
                let listener = UnixListener::from_std(socket.into());
                let local = unix_url(&listener)?;
                (ListeningSocket::Unix(listener), local)
            }
        };
        let inherits = cfg!(any(target_os = "linux", target_os = "android"));
        Ok(Listener {
            index: 0,
            ready: false,
            drain_limit: None,
            backlog: options.backlog,
            socket_buffer: options.socket_buffer,
            set_options: if inherits { SetOptions::Never } else { SetOptions::Always },
            local,
            _file: file,
            socket,
        })
    }

    /// Wraps a listening socket that another process created, for socket activation. The file of a Unix socket belongs to that
    /// process and is never removed. Anything but a TCP or Unix stream listener is an error.
    ///
    /// For `socket_buffer`, see [`ListenOptions::socket_buffer`](crate::listen::socket::ListenOptions::socket_buffer).
    pub fn from_inherited(socket: impl Into<Socket>, socket_buffer: Option<u32>) -> io::Result<Listener> {
        let socket = socket.into();
        let invalid = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if socket.r#type()? != Type::STREAM {
            return invalid("it is not a stream socket");
        }
        if !socket.is_listener()? {
            return invalid("it is a socket that does not listen");
        }
        socket.set_cloexec(true)?;
        let kind = match socket.domain()? {
            Domain::IPV4 | Domain::IPV6 => {
                reset_tcp_options(&socket)?;
                set_tcp_options(&socket, socket_buffer)?;
                if is_mptcp(&socket)? { Kind::Mptcp } else { Kind::Tcp }
            }
            Domain::UNIX => {
                refuse_descriptors(&socket);
                Kind::Unix
            }
            _ => return invalid("it is neither a TCP nor a Unix socket"),
        };
        // Only the process that called listen(2) knows the backlog. It cannot be larger than somaxconn.
        let options = ListenOptions { backlog: somaxconn().unwrap_or(4096), reuse_port: false, socket_buffer };
        let mut listener = Listener::new(socket.into(), kind, &options, None)?;
        listener.set_options = match kind {
            // A plain TCP stream of an MPTCP listener does not inherit all options (seen with Linux 6.18).
            Kind::Mptcp => SetOptions::Always,
            Kind::Tcp | Kind::Unix if listener.set_options == SetOptions::Never => SetOptions::UntilEmpty,
            _ => listener.set_options,
        };
        Ok(listener)
    }

    /// Registers the listener with the poller. The registration lasts until the listener is closed.
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.socket {
            ListeningSocket::Tcp(listener) | ListeningSocket::Mptcp(listener) => {
                registry.register(listener, token, Interest::READABLE)
            }
            ListeningSocket::Unix(listener) => registry.register(listener, token, Interest::READABLE),
        }
    }

    /// Starts a graceful shutdown. Pending connections are still accepted, because close(2) would reset them. The listener can
    /// be closed once it is no longer `ready`: when its backlog was empty, or when as many connections were accepted as could
    /// be pending (the backlog plus one). New connections therefore cannot delay the shutdown.
    pub fn drain(&mut self) {
        self.ready = true;
        // The kernel caps the backlog that was passed to listen(2).
        let max_pending = self.backlog.min(somaxconn().unwrap_or(u32::MAX));
        self.drain_limit = Some(max_pending.saturating_add(1));
    }

    /// Records an event. During a graceful shutdown it has no effect once the limit of [`drain`](Listener::drain) is reached.
    pub fn mark_ready(&mut self) {
        self.ready = self.drain_limit != Some(0);
    }

    /// Accepts the first pending connection. [`AcceptError::classify`] interprets an error.
    pub fn accept(&mut self) -> io::Result<Accepted> {
        let result = self.socket.accept();
        if self.set_options != SetOptions::Never {
            self.apply_options(&result);
        }
        let accepted = result?;
        if let Some(limit) = &mut self.drain_limit {
            *limit = limit.saturating_sub(1);
            self.ready = *limit > 0;
        }
        Ok(accepted)
    }

    /// Sets the options of an accepted stream. Errors are ignored: the peer may have reset the connection already, which the
    /// first read reports.
    #[cold]
    fn apply_options(&mut self, accepted: &io::Result<Accepted>) {
        match accepted {
            Ok(Accepted::Tcp(stream, _) | Accepted::Mptcp(stream, _)) => {
                let socket = SockRef::from(stream);
                let _ = reset_tcp_options(&socket);
                let _ = set_tcp_options(&socket, self.socket_buffer);
            }
            Ok(Accepted::Unix(stream)) => refuse_descriptors(stream),
            Err(error) => {
                if self.set_options == SetOptions::UntilEmpty && error.kind() == io::ErrorKind::WouldBlock {
                    self.set_options = SetOptions::Never;
                }
            }
        }
    }

    /// Returns the local address as it is printed on stdout: `tcp://127.0.0.1:41233`, `unix:///run/echo.sock`.
    pub fn local(&self) -> String {
        self.local.clone()
    }

    /// Returns the port of a TCP listener.
    pub(super) fn port(&self) -> Option<u16> {
        match &self.socket {
            ListeningSocket::Tcp(listener) | ListeningSocket::Mptcp(listener) => {
                listener.local_addr().ok().map(|address| address.port())
            }
            ListeningSocket::Unix(_) => None,
        }
    }
}

/// Returns whether a stream socket is a Multipath TCP socket.
#[cfg(target_os = "linux")]
fn is_mptcp(socket: &Socket) -> io::Result<bool> {
    Ok(socket.protocol()? == Some(socket2::Protocol::MPTCP))
}

#[cfg(not(target_os = "linux"))]
fn is_mptcp(_socket: &Socket) -> io::Result<bool> {
    Ok(false)
}

/// Returns the address of a Unix listener as a URL. Invalid UTF-8 is replaced and control characters are escaped, so that it
/// fits on one line.
fn unix_url(listener: &UnixListener) -> io::Result<String> {
    let address = listener.local_addr()?;
    #[cfg(target_os = "linux")]
    {
        use std::os::linux::net::SocketAddrExt;
        if let Some(name) = address.as_abstract_name() {
            return Ok(format!("unix://@{}", printable(&String::from_utf8_lossy(name))));
        }
    }
    let path = address.as_pathname().map(std::path::absolute).transpose()?.unwrap_or_default();
    Ok(format!("unix://{}", printable(&path.to_string_lossy())))
}

/// The meaning of an error of [`Listener::accept`] for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The backlog is empty: wait for the next event.
    WouldBlock,
    /// A signal interrupted the call: try again.
    Interrupted,
    /// The connection ended before it was accepted: count it, and accept the next one.
    Aborted,
    /// File descriptors or memory ran out. The connection stays in the backlog: count the error, pause, and retry.
    ResourcesExhausted,
    /// The descriptor is no longer a listening socket: drop the listener. A Unix listener that was shut down does not report
    /// this, but EAGAIN: only its event shows it.
    Fatal,
}

impl AcceptError {
    /// Classifies an error by what the loop does next. Quotations are from accept(2), "ERRORS", unless another section is named.
    pub fn classify(error: &io::Error) -> AcceptError {
        let Some(errno) = Errno::from_io_error(error) else {
            return AcceptError::ResourcesExhausted; // Not from a system call. See the last arm.
        };
        match errno {
            Errno::AGAIN => AcceptError::WouldBlock, // EWOULDBLOCK is the same number on every system mio supports.
            Errno::INTR => AcceptError::Interrupted,
            Errno::CONNABORTED => AcceptError::Aborted, // The peer reset it in the backlog (not on Linux).
            Errno::PERM => AcceptError::Aborted,        // "Firewall rules forbid connection."
            Errno::PROTO | Errno::TIMEDOUT => AcceptError::Aborted,
            // accept(2), "Error handling": Linux returns errors that are already pending on the new socket, and "the
            // application should detect [them] and treat them like EAGAIN by retrying". EOPNOTSUPP is also the error of a
            // socket that cannot listen; ours can.
            Errno::NETDOWN | Errno::NOPROTOOPT | Errno::HOSTDOWN | Errno::HOSTUNREACH => AcceptError::Aborted,
            Errno::OPNOTSUPP | Errno::NETUNREACH => AcceptError::Aborted,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Errno::NONET => AcceptError::Aborted,
            Errno::BADF | Errno::NOTSOCK => AcceptError::Fatal, // The descriptor was closed: a bug in this process.
            Errno::INVAL => AcceptError::Fatal, // After shutdown(2) by another process that has the socket, or `ss -K`.
            Errno::FAULT => AcceptError::Fatal, // The address buffer is invalid: a bug in a library.
            // EMFILE: RLIMIT_NOFILE is reached, and one of our descriptors must be closed first. ENFILE: the limit of the
            // whole system is reached. ENOBUFS and ENOMEM: out of kernel memory, or of memory for socket buffers. An unknown
            // error belongs here as well: a pause neither spins nor stops the daemon, and it ends by itself.
            _ => AcceptError::ResourcesExhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::net::Shutdown;
    use std::os::unix::net::UnixListener as StdUnixListener;
    use std::time::Duration;

    use super::*;
    use crate::listen::is_errno;
    use crate::listen::test_support::{Directory, address, bind, connect, soon};

    #[test]
    fn event_during_drain_does_not_renew_its_limit() {
        let one = ListenOptions { backlog: 1, reuse_port: false, socket_buffer: None };
        let mut listener = address("127.0.0.1:0").bind(&one).expect("listener").remove(0);
        let port = listener.port().expect("TCP port");
        listener.drain();
        for _ in 0..2 {
            assert!(listener.ready, "the backlog plus one connections can be pending");
            let _client = connect(port, "127.0.0.1").expect("connection");
            soon(|| listener.accept());
        }
        assert!(!listener.ready);
        listener.mark_ready();
        assert!(!listener.ready, "new connections must not delay the shutdown");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn drain_accepts_at_most_the_kernel_backlog_limit() {
        let max =
            fs::read_to_string("/proc/sys/net/core/somaxconn").expect("somaxconn").trim().parse().expect("number");
        assert_eq!(somaxconn(), Some(max));
        for (backlog, limit) in [(max - 1, max), (max, max + 1), (max + 1, max + 1), (u32::MAX, max + 1)] {
            let options = ListenOptions { backlog, reuse_port: false, socket_buffer: None };
            let mut listener = address("127.0.0.1:0").bind(&options).expect("listener").remove(0);
            listener.drain();
            assert_eq!(listener.drain_limit, Some(limit), "backlog {backlog}");
        }
    }

    #[test]
    fn accepted_tcp_stream_has_the_expected_options() {
        let mut listener = bind("127.0.0.1:0");
        let client = connect(listener.port().expect("TCP port"), "127.0.0.1").expect("connection");
        let Accepted::Tcp(mut stream, _) = soon(|| listener.accept()) else { panic!("expected a TCP stream") };
        let tcp = &stream;
        assert!(tcp.nodelay().expect("socket option"));
        let flags = rustix::io::fcntl_getfd(tcp).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(stream.read(&mut [0]).expect_err("nothing to read yet").kind(), io::ErrorKind::WouldBlock);
        assert_urgent_byte_in_line(&mut stream, client);
    }

    #[test]
    fn urgent_bytes_stay_inline_on_unix_sockets() {
        let directory = Directory::new("urgent");
        let mut listener = bind(&directory.unix("s"));
        let client = std::os::unix::net::UnixStream::connect(directory.path("s")).expect("connection");
        let Accepted::Unix(mut stream) = soon(|| listener.accept()) else { panic!("expected a Unix stream") };
        assert_urgent_byte_in_line(&mut stream, client);
    }

    fn assert_urgent_byte_in_line(stream: &mut impl Read, client: impl Into<OwnedFd>) {
        let client = Socket::from(client.into());
        client.send(b"ab").expect("send");
        match client.send_out_of_band(b"!") {
            Err(error) if is_errno(&error, Errno::OPNOTSUPP) => return, // This system has no urgent data on Unix sockets.
            result => assert_eq!(result.expect("send"), 1),
        }
        client.send(b"cd").expect("send");
        let mut got = Vec::new();
        while got.len() < 5 {
            let mut bytes = [0; 16];
            let n = soon(|| stream.read(&mut bytes));
            assert_ne!(n, 0, "end of stream after {got:?}");
            got.extend_from_slice(&bytes[..n]);
        }
        assert_eq!(got, b"ab!cd");
    }

    #[test]
    fn accept_on_empty_backlog_would_block() {
        let error = AcceptError::classify(&bind("127.0.0.1:0").accept().expect_err("the backlog is empty"));
        assert_eq!(error, AcceptError::WouldBlock);
    }

    #[test]
    fn unix_listener_reports_absolute_path_and_removes_file() {
        let directory = Directory::new("life");
        let path = directory.path("s");
        let mut listener = bind(&directory.unix("s"));
        assert_eq!(listener.local(), format!("unix://{}", path.display()));
        let mut client = std::os::unix::net::UnixStream::connect(&path).expect("connection");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("socket");
        let Accepted::Unix(mut stream) = soon(|| listener.accept()) else { panic!("expected a Unix stream") };
        stream.write_all(b"hi").expect("send");
        stream.shutdown(Shutdown::Write).expect("shutdown");
        let mut got = String::new();
        client.read_to_string(&mut got).expect("read");
        assert_eq!(got, "hi");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn inherited_listener_is_nonblocking_and_keeps_its_file() {
        let directory = Directory::new("inherited");
        let path = directory.path("s");
        let theirs = StdUnixListener::bind(&path).expect("listener");
        let mut listener = Listener::from_inherited(Socket::from(theirs), None).expect("listener");
        assert_eq!(listener.local(), format!("unix://{}", path.display()));
        // Checked before accepting, because accept(2) would hang on a blocking listener.
        let ListeningSocket::Unix(socket) = &listener.socket else { panic!("expected a Unix listener") };
        assert!(rustix::fs::fcntl_getfl(socket).expect("flags").contains(rustix::fs::OFlags::NONBLOCK));
        assert_eq!(
            AcceptError::classify(&listener.accept().expect_err("the backlog is empty")),
            AcceptError::WouldBlock
        );
        drop(listener);
        assert!(path.exists());

        let theirs = std::net::TcpListener::bind("127.0.0.1:0").expect("listener");
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).expect("flags"); // Passed descriptors are open across exec.
        let mut listener = Listener::from_inherited(OwnedFd::from(theirs), None).expect("listener");
        let ListeningSocket::Tcp(socket) = &listener.socket else { panic!("expected a TCP listener") };
        assert!(rustix::io::fcntl_getfd(socket).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(
            AcceptError::classify(&listener.accept().expect_err("the backlog is empty")),
            AcceptError::WouldBlock
        );
        #[cfg(target_os = "linux")]
        assert_eq!(listener.set_options, SetOptions::Never, "accepted streams inherit the options from now on");
        let _client = connect(listener.port().expect("TCP port"), "127.0.0.1").expect("connection");
        let Accepted::Tcp(stream, _) = soon(|| listener.accept()) else { panic!("expected a TCP stream") };
        assert!(stream.nodelay().expect("socket option"));
    }

    #[test]
    #[cfg(target_os = "linux")]
    #[allow(clippy::print_stderr, reason = "libtest has no other way to report a skipped test")]
    fn mptcp_listener_distinguishes_plain_tcp_streams() {
        let socket = |protocol| Socket::new(Domain::IPV4, Type::STREAM, Some(protocol));
        let listener = match socket(socket2::Protocol::MPTCP) {
            Ok(listener) => listener,
            Err(error) => return eprintln!("skipped: this kernel has no MPTCP: {error}"),
        };
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("bind");
        listener.listen(16).expect("listen");
        let mut listener = Listener::from_inherited(listener, None).expect("listener");
        let address = SocketAddr::from(([127, 0, 0, 1], listener.port().expect("TCP port"))).into();
        let mptcp = socket(socket2::Protocol::MPTCP).expect("socket");
        mptcp.connect(&address).expect("connection");
        assert!(matches!(soon(|| listener.accept()), Accepted::Mptcp(..)));
        let tcp = socket(socket2::Protocol::TCP).expect("socket");
        tcp.connect(&address).expect("connection");
        assert!(matches!(soon(|| listener.accept()), Accepted::Tcp(..)));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn shut_down_listener_causes_a_read_closed_event() {
        let directory = Directory::new("shutdown");
        for how in [Shutdown::Both, Shutdown::Read] {
            let tcp = OwnedFd::from(std::net::TcpListener::bind("127.0.0.1:0").expect("listener"));
            let unix = OwnedFd::from(StdUnixListener::bind(directory.path(&format!("{how:?}"))).expect("listener"));
            for (socket, expected) in [(tcp, AcceptError::Fatal), (unix, AcceptError::WouldBlock)] {
                let owner = Socket::from(socket.try_clone().expect("duplicate"));
                let mut listener = Listener::from_inherited(socket, None).expect("listener");
                let mut poll = mio::Poll::new().expect("poller");
                listener.register(poll.registry(), Token(7)).expect("registration");
                owner.shutdown(how).expect("shutdown");
                let mut events = mio::Events::with_capacity(4);
                poll.poll(&mut events, Some(Duration::from_secs(10))).expect("poll");
                let event = events.iter().next().expect("an event");
                assert!(event.is_read_closed(), "{} after {how:?}: {event:?}", listener.local());
                let error = listener.accept().expect_err("no connection");
                assert_eq!(AcceptError::classify(&error), expected, "{} after {how:?}", listener.local());
            }
        }
    }

    #[test]
    fn inherited_non_listener_is_rejected() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("socket pair");
        let connected =
            Listener::from_inherited(OwnedFd::from(one), None).expect_err("a connected socket is not a listener");
        assert_eq!(connected.to_string(), "it is a socket that does not listen");
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("socket");
        let datagram =
            Listener::from_inherited(OwnedFd::from(datagram), None).expect_err("a datagram socket is not a listener");
        assert_eq!(datagram.to_string(), "it is not a stream socket");
        let file = fs::File::open("/dev/null").expect("/dev/null");
        assert!(Listener::from_inherited(OwnedFd::from(file), None).is_err());
    }

    #[test]
    fn accept_errors_are_classified_by_errno() {
        for (expected, errnos) in [
            (AcceptError::WouldBlock, &[Errno::AGAIN, Errno::WOULDBLOCK][..]),
            (AcceptError::Interrupted, &[Errno::INTR]),
            (
                AcceptError::Aborted,
                &[
                    Errno::CONNABORTED,
                    Errno::PROTO,
                    Errno::NETDOWN,
                    Errno::NOPROTOOPT,
                    Errno::HOSTDOWN,
                    Errno::HOSTUNREACH,
                    Errno::OPNOTSUPP,
                    Errno::NETUNREACH,
                    Errno::PERM,
                    Errno::TIMEDOUT,
                    #[cfg(target_os = "linux")]
                    Errno::NONET,
                ],
            ),
            (AcceptError::ResourcesExhausted, &[Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::XDEV]),
            (AcceptError::Fatal, &[Errno::BADF, Errno::INVAL, Errno::NOTSOCK, Errno::FAULT]),
        ] {
            for &errno in errnos {
                assert_eq!(AcceptError::classify(&errno.into()), expected, "{errno:?}");
            }
        }
        assert_eq!(
            AcceptError::classify(&io::Error::other("an error without an errno")),
            AcceptError::ResourcesExhausted
        );
    }
}
