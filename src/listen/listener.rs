//! Accepting connections, and what the errors of accept(2) mean: [`AcceptError::classify`].

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, Socket, Type};

use crate::listen::address::printable;
use crate::listen::socket::{prepare_tcp, somaxconn};
use crate::listen::unix_file::SocketFile;

/// A listening socket, non-blocking.
#[derive(Debug)]
pub struct Listener {
    /// Its place among the listeners, which is in its token. The server sets it.
    pub index: u32,
    /// An edge has come and accept(2) has not said EAGAIN since.
    pub ready: bool,
    /// While the server drains: how many more newcomers are taken.
    drain_limit: Option<u32>,
    /// What was asked for; for an inherited listener the most that it can be.
    backlog: u32,
    local: String,
    // Before the socket, so that the file goes first: while the socket is open, its inode is held and
    // its number cannot come again as another file's.
    _file: Option<SocketFile>,
    socket: ListeningSocket,
}

#[derive(Debug)]
enum ListeningSocket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl ListeningSocket {
    fn accept(&self) -> io::Result<Accepted> {
        match self {
            ListeningSocket::Tcp(listener) => {
                let (stream, address) = listener.accept()?; // Non-blocking and close-on-exec from birth: accept4(2).
                #[cfg(not(any(target_os = "linux", target_os = "android")))]
                {
                    rustix::net::sockopt::set_tcp_nodelay(&stream, true)?;
                    rustix::net::sockopt::set_socket_oobinline(&stream, true)?;
                }
                Ok(Accepted::Tcp(stream, address))
            }
            ListeningSocket::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                // Linux has urgent data on Unix sockets since 5.15, and there nothing is handed on from
                // the listener. Where the option is unknown there is nothing to keep in line.
                let _ = rustix::net::sockopt::set_socket_oobinline(&stream, true);
                Ok(Accepted::Unix(stream))
            }
        }
    }
}

/// An accepted stream: non-blocking and close-on-exec.
#[derive(Debug)]
pub enum Accepted {
    /// A TCP stream and the peer's address.
    Tcp(TcpStream, SocketAddr),
    /// A Unix stream, whose peer usually has no address.
    Unix(UnixStream),
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Tcp,
    Unix,
}

impl Listener {
    /// Takes over a socket that listens.
    pub(super) fn new(socket: OwnedFd, kind: Kind, backlog: u32, file: Option<SocketFile>) -> io::Result<Listener> {
        // mio would not check it, and a blocking listener stops the loop at the second accept(2).
        rustix::io::ioctl_fionbio(&socket, true)?;
        let (socket, local) = match kind {
            Kind::Tcp => {
                let listener = TcpListener::from_std(socket.into());
                let local = format!("tcp://{}", listener.local_addr()?);
                (ListeningSocket::Tcp(listener), local)
            }
            Kind::Unix => {
                let listener = UnixListener::from_std(socket.into());
                let local = unix_url(&listener)?;
                (ListeningSocket::Unix(listener), local)
            }
        };
        Ok(Listener { index: 0, ready: false, drain_limit: None, backlog, local, _file: file, socket })
    }

    /// Takes over a listening socket that another process made, for socket activation. Its file, if it
    /// has one, stays that process's. Anything but a TCP or Unix stream listener is an error.
    pub fn from_inherited(socket: impl Into<Socket>) -> io::Result<Listener> {
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
                prepare_tcp(&socket)?;
                Kind::Tcp
            }
            Domain::UNIX => Kind::Unix,
            _ => return invalid("it is neither a TCP nor a Unix socket"),
        };
        // Who called listen(2) knows the backlog; the kernel only tells that it is no longer than this.
        Listener::new(socket.into(), kind, somaxconn().unwrap_or(4096), None)
    }

    /// Makes it known to the poller: once, until close(2).
    pub fn register(&mut self, registry: &Registry, token: Token) -> io::Result<()> {
        match &mut self.socket {
            ListeningSocket::Tcp(listener) => registry.register(listener, token, Interest::READABLE),
            ListeningSocket::Unix(listener) => registry.register(listener, token, Interest::READABLE),
        }
    }

    /// The server drains. Whoever waits in the queue is still accepted, since close(2) would reset them; no more than the
    /// backlog and one can wait, so newcomers cannot put the end off. When it is no longer `ready`, it can be closed.
    pub fn drain(&mut self) {
        self.ready = true;
        // The kernel's cap, not what was asked for, says how many can wait.
        let max_pending = self.backlog.min(somaxconn().unwrap_or(u32::MAX));
        self.drain_limit = Some(max_pending.saturating_add(1));
    }

    /// An edge has come. Of a drain's newcomers no more are taken than could wait when it began.
    pub fn mark_ready(&mut self) {
        self.ready = self.drain_limit != Some(0);
    }

    /// Takes the first connection out of the queue. [`AcceptError::classify`] sorts the errors.
    pub fn accept(&mut self) -> io::Result<Accepted> {
        let accepted = self.socket.accept()?;
        if let Some(limit) = &mut self.drain_limit {
            *limit = limit.saturating_sub(1);
            self.ready = *limit > 0;
        }
        Ok(accepted)
    }

    /// Where it listens, as it is told on stdout: `tcp://127.0.0.1:41233`, `unix:///run/echo.sock`.
    pub fn local(&self) -> String {
        self.local.clone()
    }

    pub(super) fn port(&self) -> Option<u16> {
        match &self.socket {
            ListeningSocket::Tcp(listener) => listener.local_addr().ok().map(|address| address.port()),
            ListeningSocket::Unix(_) => None,
        }
    }
}

/// A Unix listener's address as a URL. What is not UTF-8 is replaced, and control characters are escaped:
/// the line must stay one line.
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

/// What an error of [`Listener::accept`] means for the loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The queue is empty: wait for the next edge.
    WouldBlock,
    /// A signal came in between: try again.
    Interrupted,
    /// The newcomer whose turn it was is gone: count it, take the next.
    Aborted,
    /// There is no descriptor or no memory for it now. It stays in the queue: count, pause, try later.
    ResourcesExhausted,
    /// This is no listening socket any more: the daemon cannot go on.
    Fatal,
}

impl AcceptError {
    /// Sorts what accept(2) said; the section is "ERRORS" unless another one is named.
    pub fn classify(error: &io::Error) -> AcceptError {
        let Some(errno) = Errno::from_io_error(error) else {
            return AcceptError::ResourcesExhausted; // Not from a system call: as with an unknown number, below.
        };
        match errno {
            Errno::AGAIN => AcceptError::WouldBlock, // And EWOULDBLOCK, the same number wherever mio runs.
            Errno::INTR => AcceptError::Interrupted,
            Errno::CONNABORTED => AcceptError::Aborted, // The peer reset it while it was in the queue (not on Linux).
            Errno::PERM => AcceptError::Aborted,        // "Firewall rules forbid connection."
            Errno::PROTO | Errno::TIMEDOUT => AcceptError::Aborted,
            // accept(2), "Error handling": Linux reports network errors that already wait on the new
            // socket, and "the application should detect [them] and treat them like EAGAIN by retrying".
            // EOPNOTSUPP is also what a socket that cannot listen says; ours listen.
            Errno::NETDOWN | Errno::NOPROTOOPT | Errno::HOSTDOWN | Errno::HOSTUNREACH => AcceptError::Aborted,
            Errno::OPNOTSUPP | Errno::NETUNREACH => AcceptError::Aborted,
            #[cfg(any(target_os = "linux", target_os = "android"))]
            Errno::NONET => AcceptError::Aborted,
            Errno::BADF | Errno::NOTSOCK => AcceptError::Fatal, // Somebody closed our descriptor: a bug of ours.
            Errno::INVAL => AcceptError::Fatal,                 // It does not listen (shutdown(2) does that, too).
            Errno::FAULT => AcceptError::Fatal,                 // The address buffer is wrong: a bug below us.
            // EMFILE: RLIMIT_NOFILE is reached, ours must close. ENFILE: the whole system's limit is. ENOBUFS and ENOMEM:
            // the kernel's memory, or the limit of socket buffers. And what is unknown: neither a spin nor an end is
            // right, a pause is visible, bounded and heals itself.
            _ => AcceptError::ResourcesExhausted,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener as StdUnixListener;
    use std::time::Duration;

    use super::*;
    use crate::listen::is_errno;
    use crate::listen::socket::ListenOptions;
    use crate::listen::test_support::{Directory, address, bind, connect, soon};

    #[test]
    fn event_during_drain_does_not_renew_its_limit() {
        let one = ListenOptions { backlog: 1, reuse_port: false };
        let mut listener = address("127.0.0.1:0").bind(&one).expect("a listener").remove(0);
        let port = listener.port().expect("a port");
        listener.drain();
        for _ in 0..2 {
            assert!(listener.ready, "as many as can wait: the backlog and one");
            let _client = connect(port, "127.0.0.1").expect("a connection");
            soon(|| listener.accept());
        }
        assert!(!listener.ready);
        listener.mark_ready();
        assert!(!listener.ready, "newcomers put the end of a drain off");
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn drain_accepts_at_most_the_kernel_backlog_limit() {
        let most =
            fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux tells").trim().parse().expect("a number");
        assert_eq!(somaxconn(), Some(most));
        for (asked, left) in [(most - 1, most), (most, most + 1), (most + 1, most + 1), (u32::MAX, most + 1)] {
            let options = ListenOptions { backlog: asked, reuse_port: false };
            let mut listener = address("127.0.0.1:0").bind(&options).expect("a listener").remove(0);
            listener.drain();
            assert_eq!(listener.drain_limit, Some(left), "{asked} were asked for");
        }
    }

    #[test]
    fn accepted_tcp_stream_has_the_expected_options() {
        let mut listener = bind("127.0.0.1:0");
        let client = connect(listener.port().expect("a port"), "127.0.0.1").expect("a connection");
        let Accepted::Tcp(mut stream, _) = soon(|| listener.accept()) else { panic!("TCP gives TCP") };
        let tcp = &stream;
        assert!(tcp.nodelay().expect("an option"));
        let flags = rustix::io::fcntl_getfd(tcp).expect("flags");
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(stream.read(&mut [0]).expect_err("nothing to read").kind(), io::ErrorKind::WouldBlock);
        assert_urgent_byte_in_line(&mut stream, client);
    }

    #[test]
    fn urgent_bytes_stay_inline_on_unix_sockets() {
        let directory = Directory::new("urgent");
        let mut listener = bind(&directory.unix("s"));
        let client = std::os::unix::net::UnixStream::connect(directory.path("s")).expect("a connection");
        let Accepted::Unix(mut stream) = soon(|| listener.accept()) else { panic!("a Unix stream") };
        assert_urgent_byte_in_line(&mut stream, client);
    }

    fn assert_urgent_byte_in_line(stream: &mut impl Read, client: impl Into<OwnedFd>) {
        let client = Socket::from(client.into());
        client.send(b"ab").expect("room");
        match client.send_out_of_band(b"!") {
            Err(error) if is_errno(&error, Errno::OPNOTSUPP) => return, // No urgent data on Unix sockets here.
            result => assert_eq!(result.expect("room"), 1),
        }
        client.send(b"cd").expect("room");
        let mut got = Vec::new();
        while got.len() < 5 {
            let mut bytes = [0; 16];
            let n = soon(|| stream.read(&mut bytes));
            assert_ne!(n, 0, "{got:?}");
            got.extend_from_slice(&bytes[..n]);
        }
        assert_eq!(got, b"ab!cd");
    }

    #[test]
    fn accept_on_empty_backlog_would_block() {
        let verdict = AcceptError::classify(&bind("127.0.0.1:0").accept().expect_err("nobody is there"));
        assert_eq!(verdict, AcceptError::WouldBlock);
    }

    #[test]
    fn unix_listener_reports_absolute_path_and_removes_file() {
        let directory = Directory::new("life");
        let path = directory.path("s");
        let mut listener = bind(&directory.unix("s"));
        assert_eq!(listener.local(), format!("unix://{}", path.display()));
        let mut client = std::os::unix::net::UnixStream::connect(&path).expect("a connection");
        client.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
        let Accepted::Unix(mut stream) = soon(|| listener.accept()) else { panic!("a Unix stream") };
        stream.write_all(b"hi").expect("room");
        stream.shutdown(std::net::Shutdown::Write).expect("an open stream");
        let mut got = String::new();
        client.read_to_string(&mut got).expect("text");
        assert_eq!(got, "hi");
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn inherited_listener_is_nonblocking_and_keeps_its_file() {
        let directory = Directory::new("inherited");
        let path = directory.path("s");
        let theirs = StdUnixListener::bind(&path).expect("a listener");
        let mut listener = Listener::from_inherited(Socket::from(theirs)).expect("a listener");
        assert_eq!(listener.local(), format!("unix://{}", path.display()));
        // Asked before it is tried: one that blocks would wait for ever.
        let ListeningSocket::Unix(socket) = &listener.socket else { panic!("a Unix socket gives one") };
        assert!(rustix::fs::fcntl_getfl(socket).expect("flags").contains(rustix::fs::OFlags::NONBLOCK));
        assert_eq!(AcceptError::classify(&listener.accept().expect_err("nobody is there")), AcceptError::WouldBlock);
        drop(listener);
        assert!(path.exists());

        let theirs = std::net::TcpListener::bind("127.0.0.1:0").expect("a listener");
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).expect("flags"); // As exec needs it.
        let mut listener = Listener::from_inherited(OwnedFd::from(theirs)).expect("a listener");
        let ListeningSocket::Tcp(socket) = &listener.socket else { panic!("TCP gives TCP") };
        assert!(rustix::io::fcntl_getfd(socket).expect("flags").contains(rustix::io::FdFlags::CLOEXEC));
        assert_eq!(AcceptError::classify(&listener.accept().expect_err("nobody is there")), AcceptError::WouldBlock);
        let _client = connect(listener.port().expect("a port"), "127.0.0.1").expect("a connection");
        let Accepted::Tcp(stream, _) = soon(|| listener.accept()) else { panic!("TCP gives TCP") };
        assert!(stream.nodelay().expect("an option"));
    }

    #[test]
    fn inherited_non_listener_is_rejected() {
        let (one, _other) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let connected = Listener::from_inherited(OwnedFd::from(one)).expect_err("a connected socket");
        assert_eq!(connected.to_string(), "it is a socket that does not listen");
        let datagram = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let datagram = Listener::from_inherited(OwnedFd::from(datagram)).expect_err("a datagram socket");
        assert_eq!(datagram.to_string(), "it is not a stream socket");
        let file = fs::File::open("/dev/null").expect("a device");
        assert!(Listener::from_inherited(OwnedFd::from(file)).is_err());
    }

    #[test]
    fn accept_errors_are_classified_by_errno() {
        for (verdict, errnos) in [
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
                assert_eq!(AcceptError::classify(&errno.into()), verdict, "{errno:?}");
            }
        }
        assert_eq!(AcceptError::classify(&io::Error::other("no number")), AcceptError::ResourcesExhausted);
    }
}
