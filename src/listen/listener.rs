//! Listening sockets: from what the user typed to bound sockets, accepting, and what its errors mean.
//!
//! An [`Address`] is parsed, then bound: one address can give several listeners (`localhost` names
//! `127.0.0.1` and `::1`). socket2 makes the sockets, because the backlog, SO_REUSEPORT and
//! IPV6_V6ONLY must be chosen before listen(2); mio takes them over from there. What accept(2)
//! reports is sorted by [`AcceptError::classify`]. The file of a Unix socket lives as long as its [`Listener`].

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs, io};

use mio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

/// Where to listen, as the user typed it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `9999`: every interface, IPv6 and IPv4 on one socket.
    Port(u16),
    /// `127.0.0.1:9999`, `[::1]:9999`. An IPv6 address takes IPv6 only.
    Ip(SocketAddr),
    /// `localhost:9999`: each address that the name stands for.
    Host {
        /// The name, or an IPv6 address with the name of an interface (`fe80::1%eth0`).
        host: String,
        /// 0 asks the kernel for a free one.
        port: u16,
    },
    /// `unix:/run/echo.sock`.
    Unix(PathBuf),
}

impl Address {
    /// Reads an address. The error is one clause for a person, without the address itself.
    pub fn parse(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return parse_path(path);
        }
        if let Ok(address) = text.parse() {
            return Ok(Address::Ip(address));
        }
        if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
            return parse_port(text).map(Address::Port);
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            // `::1:80` lands here, too: it is an IPv6 address as a whole, and nobody can say whether 80 was a port.
            return Err("an IPv6 address needs brackets and a port, as in [::1]:9999".into());
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(format!("write it without {}://", printable(scheme)));
        }
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !text.ends_with(']')) else {
            return Err(match text {
                "" => "expected PORT, IP:PORT, [IPv6]:PORT, HOST:PORT or unix:PATH".into(),
                _ => format!("the port is missing, as in {}:9999", printable(text)),
            });
        };
        let host = parse_host(host)?;
        Ok(Address::Host { host, port: parse_port(port)? })
    }

    /// Makes the listening sockets that the address stands for: bound, listening, non-blocking,
    /// close-on-exec. One, or several for a host name.
    pub fn bind(&self, options: &ListenOptions) -> Result<Vec<Listener>, BindError> {
        let failed = |error| BindError { tried: self.spoken(), error, found: None };
        match self {
            Address::Port(port) => Ok(vec![
                listen_everywhere(*port, |address, family| listen_tcp(address, family, options)).map_err(failed)?,
            ]),
            Address::Ip(address) => Ok(vec![listen_tcp(*address, Family::Own, options).map_err(failed)?]),
            Address::Host { host, port } => {
                let mut named = Vec::new();
                for address in (host.as_str(), *port).to_socket_addrs().map_err(failed)? {
                    // A name that stands twice in /etc/hosts is named twice.
                    if !named.contains(&address) {
                        named.push(address);
                    }
                }
                self.listen_on_each(&named, |address| listen_tcp(address, Family::Own, options))
            }
            Address::Unix(path) => Ok(vec![listen_unix(path, options).map_err(|(error, found)| BindError {
                tried: self.spoken(),
                error,
                found,
            })?]),
        }
    }

    /// A host's addresses. A name such as `localhost` often has an address of a family that this host
    /// does not have (a container without IPv6): that one is left out if another could be bound.
    fn listen_on_each(
        &self,
        named: &[SocketAddr],
        mut listen: impl FnMut(SocketAddr) -> io::Result<Listener>,
    ) -> Result<Vec<Listener>, BindError> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut left_out = Vec::new();
        let mut tries = 0;
        let mut next = 0;
        while let Some(&(mut address)) = named.get(next) {
            if let (0, Some(first)) = (address.port(), listeners.first()) {
                // One name, one port: the one that the kernel chose for the first address.
                address.set_port(first.port().unwrap_or(0));
            }
            match listen(address) {
                Ok(listener) => listeners.push(listener),
                Err(error) if names_absent_family(&error) => left_out.push((address, error)),
                Err(error) if is(&error, Errno::ADDRINUSE) && named[next].port() == 0 && tries < PORT_TRIES => {
                    // The kernel's choice is taken on this address: have it choose again.
                    tries += 1;
                    next = 0;
                    listeners.clear();
                    left_out.clear();
                    continue;
                }
                Err(error) => return Err(self.failed_on(address, error)),
            }
            next += 1;
        }
        match (listeners.is_empty(), left_out.pop()) {
            (true, Some((address, error))) => return Err(self.failed_on(address, error)),
            (true, None) => {
                // getaddrinfo(3) promises at least one address with a success.
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Err(BindError { tried: self.spoken(), error, found: None });
            }
            (false, last) => {
                for (address, error) in left_out.into_iter().chain(last) {
                    log::warn!("not listening on {address}, one of the addresses of {self}: {error}");
                }
            }
        }
        Ok(listeners)
    }

    fn failed_on(&self, address: SocketAddr, error: io::Error) -> BindError {
        BindError { tried: format!("{address} ({self})"), error, found: None }
    }

    /// The address in a sentence: "cannot listen on port 9999".
    fn spoken(&self) -> String {
        match self {
            Address::Port(port) => format!("port {port}"),
            _ => printable(&self.to_string()),
        }
    }
}

/// How often the kernel may choose a port for the first address of a name that the others cannot have.
const PORT_TRIES: u32 = 16;

fn parse_path(path: &str) -> Result<Address, String> {
    if path.is_empty() {
        return Err("the path is missing, as in unix:/run/echo.sock".into());
    }
    if path.contains('\0') {
        return Err("a path cannot hold a NUL byte".into());
    }
    // The limit differs between systems (108 bytes on Linux, 104 on BSD): the standard library knows it.
    match std::os::unix::net::SocketAddr::from_pathname(path) {
        Ok(_) => Ok(Address::Unix(path.into())),
        Err(_) => Err(format!("the path is too long for a Unix socket: {} bytes", path.len())),
    }
}

fn parse_port(port: &str) -> Result<u16, String> {
    if port.is_empty() {
        return Err("the port is missing behind the colon".into());
    }
    // `parse` alone would allow "+80".
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{} is no port number", printable(port)));
    }
    port.parse().map_err(|_| "a port is at most 65535".into())
}

fn parse_host(host: &str) -> Result<String, String> {
    if let Some(v6) = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let (address, interface) = v6.split_once('%').unwrap_or((v6, ""));
        let named = !interface.is_empty() && interface.chars().all(|c| c.is_ascii_graphic());
        return match address.parse::<Ipv6Addr>() {
            Ok(_) if named || v6 == address => Ok(v6.into()), // getaddrinfo(3) knows the interfaces by name.
            _ => Err("what stands in the brackets is no IPv6 address".into()),
        };
    }
    match host {
        "" => Err("the host is missing before the colon; the port alone takes every interface".into()),
        "*" => Err("the port alone takes every interface".into()),
        _ if host.contains(':') => Err("more than one colon; an IPv6 address needs brackets, as in [::1]:9999".into()),
        _ if host.chars().all(|c| c.is_ascii_digit() || c == '.') && host.parse::<Ipv4Addr>().is_err() => {
            Err(format!("{host} is no IPv4 address")) // getaddrinfo(3) would read 10.1 as 10.0.0.1.
        }
        _ if host.chars().all(|c| c.is_alphanumeric() || "-._".contains(c)) => Ok(host.into()),
        _ => Err(format!("{} is no host name", printable(host))),
    }
}

/// Control characters escaped: a message is one line, whatever was typed.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Address, String> {
        Address::parse(text)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Port(port) => port.fmt(f),
            Address::Ip(address) => address.fmt(f),
            Address::Host { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Host { host, port } => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// How the sockets are made.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// How many connections may wait to be accepted: listen(2). The kernel caps it at [`somaxconn`].
    pub backlog: u32,
    /// SO_REUSEPORT, so that several processes share a TCP port. Unix sockets do not have it.
    pub reuse_port: bool,
}

impl ListenOptions {
    fn backlog(&self) -> i32 {
        i32::try_from(self.backlog).unwrap_or(i32::MAX)
    }
}

/// Why there is no listener: what was tried, on what, what the system said, and what was found there.
#[derive(Debug)]
pub struct BindError {
    tried: String,
    error: io::Error,
    found: Option<&'static str>,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.tried, self.error)?;
        self.found.map_or(Ok(()), |found| write!(f, ": {found}"))
    }
}

impl std::error::Error for BindError {}

/// Which addresses an IPv6 socket takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Its own: IPV6_V6ONLY, so that `[::]:80` and `0.0.0.0:80` go together.
    Own,
    /// IPv4 as well. Such peers come as `::ffff:192.0.2.1`, which [`Peer`] turns back.
    Both,
}

/// Every interface: one dual-stack socket, or an IPv4 one where the host has no IPv6. Not two sockets:
/// with port 0 they would get two ports.
fn listen_everywhere(port: u16, listen: impl Fn(SocketAddr, Family) -> io::Result<Listener>) -> io::Result<Listener> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into(), Family::Both) {
        // EINVAL: OpenBSD does not let IPV6_V6ONLY be switched off.
        Err(error) if names_absent_family(&error) || is(&error, Errno::INVAL) => {
            log::info!("no IPv6 here ({error}): listening on 0.0.0.0");
            listen((Ipv4Addr::UNSPECIFIED, port).into(), Family::Own)
        }
        result => result,
    }
}

/// The host does not have the address's family: no such sockets, or no such address on any interface.
fn names_absent_family(error: &io::Error) -> bool {
    is(error, Errno::AFNOSUPPORT) || is(error, Errno::ADDRNOTAVAIL)
}

fn is(error: &io::Error, errno: Errno) -> bool {
    Errno::from_io_error(error) == Some(errno)
}

fn listen_tcp(address: SocketAddr, family: Family, options: &ListenOptions) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?; // Close-on-exec.
    if address.is_ipv6() {
        socket.set_only_v6(family == Family::Own)?;
    }
    // Connections of a former daemon linger in TIME-WAIT and hold the port: bind(2) over them.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    prepare_tcp(&socket)?;
    socket.listen(options.backlog())?;
    Listener::new(socket.into(), Kind::Tcp, options.backlog, None)
}

/// What every accepted stream shall have, set once on the listener: Linux hands it on to the sockets
/// that it makes for newcomers, which saves two system calls per connection. Elsewhere [`Listener::accept`]
/// sets it.
fn prepare_tcp(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?; // Nagle would hold a small echo back until the last one is acknowledged.
    socket.set_out_of_band_inline(true) // An urgent byte stays where it stands in the stream: RFC 6093.
}

/// No SO_REUSEADDR here: on a Unix socket it means nothing. The file is what is in the way.
fn listen_unix(path: &Path, options: &ListenOptions) -> Result<Listener, (io::Error, Option<&'static str>)> {
    let untold = |error| (error, None);
    let address = SockAddr::unix(path).map_err(untold)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(untold)?;
    if let Err(error) = socket.bind(&address) {
        if !is(&error, Errno::ADDRINUSE) {
            return Err((error, None));
        }
        match remove_stale(path).map_err(untold)? {
            None => socket.bind(&address).map_err(untold)?,
            found => return Err((error, found)),
        }
    }
    // From here on the file is ours, and goes when `file` does, also on the way out through `?`.
    let file = SocketFile::of(path).map_err(untold)?;
    socket.listen(options.backlog()).map_err(untold)?;
    Listener::new(socket.into(), Kind::Unix, options.backlog, Some(file)).map_err(untold)
}

/// Removes the file of a socket whose server is dead; whatever else is there is left alone, and said.
///
/// Between bind(2) and listen(2) a server refuses, too, so two daemons that start in the same
/// microseconds on one path can take each other for dead: only a lock file would help, and it would
/// outlive them.
fn remove_stale(path: &Path) -> io::Result<Option<&'static str>> {
    let before = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        result => result?,
    };
    if !before.file_type().is_socket() {
        return Ok(Some(match before.file_type() {
            kind if kind.is_dir() => "there is a directory",
            kind if kind.is_symlink() => "there is a symbolic link",
            _ => "there is a file that is no socket",
        }));
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    probe.set_nonblocking(true)?; // It must not wait for room in a full queue.
    let found = occupant(probe.connect(&SockAddr::unix(path)?))?;
    if found.is_none() {
        // The name may have gone to a living server meanwhile. A window of microseconds stays: no call
        // unlinks by inode.
        remove_same(path, (before.dev(), before.ino()))?;
    }
    Ok(found)
}

/// Who is behind a socket's file, by what connect(2) says. Only ECONNREFUSED says that nobody is, and
/// ENOENT that the file has gone as well.
fn occupant(answer: io::Result<()>) -> io::Result<Option<&'static str>> {
    const ALIVE: Option<&str> = Some("another process listens there");
    let Err(error) = answer else { return Ok(ALIVE) };
    match Errno::from_io_error(&error) {
        Some(Errno::CONNREFUSED | Errno::NOENT) => Ok(None),
        Some(Errno::AGAIN) => Ok(ALIVE), // Its queue is full.
        Some(Errno::PROTOTYPE) => Ok(Some("there is a socket of another type")),
        Some(Errno::ACCESS) => Ok(Some("there is a socket that we may not connect to")),
        _ => Err(error),
    }
}

/// The file that a bound Unix socket has. Removed when dropped, if the name still means our socket.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    /// `path` as it is now, made absolute: it must mean the same file when we go.
    fn of(path: &Path) -> io::Result<SocketFile> {
        let path = std::path::absolute(path)?;
        let metadata = fs::symlink_metadata(&path)?;
        Ok(SocketFile { path, identity: (metadata.dev(), metadata.ino()) })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = remove_same(&self.path, self.identity) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Unlinks `path` if it still is the file of this device and inode number. One that has gone already is no error.
fn remove_same(path: &Path, identity: (u64, u64)) -> io::Result<()> {
    let is_same = |now: &fs::Metadata| (now.dev(), now.ino()) == identity;
    match fs::symlink_metadata(path).and_then(|now| if is_same(&now) { fs::remove_file(path) } else { Ok(()) }) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// A listening socket, non-blocking.
#[derive(Debug)]
pub struct Listener {
    /// Its place among the listeners, which is in its token. The server sets it.
    pub index: u32,
    /// An edge has come and accept(2) has not said EAGAIN since.
    pub ready: bool,
    /// While the server drains: how many more newcomers are taken.
    left: Option<u32>,
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
enum Kind {
    Tcp,
    Unix,
}

impl Listener {
    /// Takes over a socket that listens.
    fn new(socket: OwnedFd, kind: Kind, backlog: u32, file: Option<SocketFile>) -> io::Result<Listener> {
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
        Ok(Listener { index: 0, ready: false, left: None, backlog, local, _file: file, socket })
    }

    /// Takes over a listening socket that another process made, for socket activation. Its file, if it
    /// has one, stays that process's. Anything but a TCP or Unix stream listener is an error.
    pub fn from_inherited(socket: impl Into<Socket>) -> io::Result<Listener> {
        let socket = socket.into();
        let refuse = |why| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
        if socket.r#type()? != Type::STREAM {
            return refuse("it is not a stream socket");
        }
        if !socket.is_listener()? {
            return refuse("it is a socket that does not listen");
        }
        socket.set_cloexec(true)?;
        let kind = match socket.domain()? {
            Domain::IPV4 | Domain::IPV6 => {
                prepare_tcp(&socket)?;
                Kind::Tcp
            }
            Domain::UNIX => Kind::Unix,
            _ => return refuse("it is neither a TCP nor a Unix socket"),
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
        let longest = self.backlog.min(somaxconn().unwrap_or(u32::MAX));
        self.left = Some(longest.saturating_add(1));
    }

    /// An edge has come. Of a drain's newcomers no more are taken than could wait when it began.
    pub fn mark_ready(&mut self) {
        self.ready = self.left != Some(0);
    }

    /// Takes the first connection out of the queue. [`AcceptError::classify`] sorts the errors.
    pub fn accept(&mut self) -> io::Result<Accepted> {
        let newcomer = self.socket.accept()?;
        if let Some(left) = &mut self.left {
            *left = left.saturating_sub(1);
            self.ready = *left > 0;
        }
        Ok(newcomer)
    }

    /// Where it listens, as it is told on stdout: `tcp://127.0.0.1:41233`, `unix:///run/echo.sock`.
    pub fn local(&self) -> String {
        self.local.clone()
    }

    fn port(&self) -> Option<u16> {
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

/// The kernel's cap on every backlog: net.core.somaxconn. `None` where it is not told.
pub fn somaxconn() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{SocketAddr as UnixAddr, UnixDatagram, UnixListener as StdUnixListener};
    use std::time::{Duration, Instant};

    use super::*;

    const OPTIONS: ListenOptions = ListenOptions { backlog: 16, reuse_port: false };

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"))
    }

    fn bind(text: &str) -> Listener {
        let mut listeners = address(text).bind(&OPTIONS).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(listeners.len(), 1, "{text}");
        listeners.remove(0)
    }

    fn plainly(address: SocketAddr) -> io::Result<Listener> {
        listen_tcp(address, Family::Own, &OPTIONS)
    }

    fn refused(text: &str) -> String {
        address(text).bind(&OPTIONS).expect_err("an error").to_string()
    }

    /// What `attempt` gives once it no longer says WouldBlock: loopback delivers soon, not at once.
    fn soon<T>(mut attempt: impl FnMut() -> io::Result<T>) -> T {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match attempt() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::yield_now();
                }
                result => return result.expect("success within 10 s"),
            }
        }
    }

    fn connect(port: u16, ip: &str) -> io::Result<std::net::TcpStream> {
        std::net::TcpStream::connect((ip, port))
    }

    /// A directory of its own, gone at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Directory {
            let path = std::env::temp_dir().join(format!("echod-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory in the temporary one");
            Directory(path)
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        fn unix(&self, name: &str) -> String {
            format!("unix:{}", self.path(name).display())
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn an_address_is_read_and_shown_as_it_was_typed() {
        let host = |host: &str, port| Address::Host { host: host.into(), port };
        for (text, expected) in [
            ("9999", Address::Port(9999)),
            ("0", Address::Port(0)),
            ("127.0.0.1:0", Address::Ip(([127, 0, 0, 1], 0).into())),
            ("[::1]:80", Address::Ip((Ipv6Addr::LOCALHOST, 80).into())),
            ("localhost:80", host("localhost", 80)),
            ("echo-1.example_a.:7", host("echo-1.example_a.", 7)),
            ("bücher.example:7", host("bücher.example", 7)),
            ("[fe80::1%eth0]:7", host("fe80::1%eth0", 7)),
            ("unix:/run/x", Address::Unix("/run/x".into())),
            ("unix:relative:1", Address::Unix("relative:1".into())),
            ("unix:///run/x", Address::Unix("///run/x".into())),
        ] {
            assert_eq!(address(text), expected, "{text}");
            assert_eq!(expected.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_one_clear_clause() {
        for (text, expected) in [
            ("", "expected PORT, IP:PORT, [IPv6]:PORT, HOST:PORT or unix:PATH"),
            ("localhost", "the port is missing, as in localhost:9999"),
            ("127.0.0.1", "the port is missing, as in 127.0.0.1:9999"),
            ("[::1]", "the port is missing, as in [::1]:9999"),
            ("localhost:", "the port is missing behind the colon"),
            ("70000", "a port is at most 65535"),
            ("99999999999999999999", "a port is at most 65535"),
            ("127.0.0.1:70000", "a port is at most 65535"),
            ("localhost:99999", "a port is at most 65535"),
            ("[::1]:99999", "a port is at most 65535"),
            ("localhost:http", "http is no port number"),
            ("localhost:+80", "+80 is no port number"),
            ("localhost:-1", "-1 is no port number"),
            ("::1", "an IPv6 address needs brackets and a port, as in [::1]:9999"),
            ("::1:80", "an IPv6 address needs brackets and a port, as in [::1]:9999"),
            ("1:2:3:4:5:6:7:8:80", "more than one colon; an IPv6 address needs brackets, as in [::1]:9999"),
            ("[::g]:80", "what stands in the brackets is no IPv6 address"),
            ("[127.0.0.1]:80", "what stands in the brackets is no IPv6 address"),
            ("[fe80::1%]:80", "what stands in the brackets is no IPv6 address"),
            (":80", "the host is missing before the colon; the port alone takes every interface"),
            ("*:80", "the port alone takes every interface"),
            ("256.0.0.1:80", "256.0.0.1 is no IPv4 address"),
            ("10.1:80", "10.1 is no IPv4 address"),
            ("a b:80", "a b is no host name"),
            ("a\nb:80", "a\\nb is no host name"),
            ("tcp://127.0.0.1:80", "write it without tcp://"),
            ("unix:", "the path is missing, as in unix:/run/echo.sock"),
            ("unix:a\0b", "a path cannot hold a NUL byte"),
        ] {
            assert_eq!(Address::parse(text).expect_err(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_unix_path_may_be_as_long_as_the_system_allows_and_no_longer() {
        let longest = (1..200).take_while(|&n| UnixAddr::from_pathname("x".repeat(n)).is_ok()).count();
        assert!(longest >= 100, "{longest}");
        assert!(Address::parse(&format!("unix:{}", "x".repeat(longest))).is_ok());
        let why = Address::parse(&format!("unix:{}", "x".repeat(longest + 1))).expect_err("too long");
        assert_eq!(why, format!("the path is too long for a Unix socket: {} bytes", longest + 1));
    }

    #[test]
    fn a_bare_port_serves_ipv4_and_ipv6_on_one_socket() {
        let mut listener = bind("0");
        let port = listener.port().expect("a port");
        assert_eq!(listener.local(), format!("tcp://[::]:{port}"));
        for (ip, shown) in [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")] {
            let _client = connect(port, ip).expect("a connection");
            let Accepted::Tcp(_, peer) = soon(|| listener.accept()) else { panic!("TCP") };
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            assert!(peer.to_string().starts_with(shown), "{peer}");
        }
    }

    #[test]
    fn a_bare_port_falls_back_to_ipv4_where_there_is_no_ipv6_and_for_no_other_reason() {
        let without_ipv6 = |errno: Errno| {
            listen_everywhere(0, |address, family| match family {
                Family::Both => Err(errno.into()),
                Family::Own => listen_tcp(address, family, &OPTIONS),
            })
        };
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::INVAL] {
            let local = without_ipv6(errno).expect("IPv4").local();
            assert!(local.starts_with("tcp://0.0.0.0:"), "{errno:?}: {local}");
        }
        assert!(is(&without_ipv6(Errno::ADDRINUSE).expect_err("no way out"), Errno::ADDRINUSE));
    }

    #[test]
    fn an_explicit_ipv6_address_takes_ipv6_only() {
        // The kernel's choice for IPv6 may be somebody else's port on IPv4, but not ten times in a row.
        let pair = (0..10).find_map(|_| {
            let v6 = bind("[::]:0");
            let port = v6.port().expect("a port");
            let v4 = address(&format!("0.0.0.0:{port}")).bind(&OPTIONS).ok()?.remove(0);
            Some((v6, v4, port))
        });
        let (mut v6, mut v4, port) = pair.expect("room for both beside each other");
        assert_eq!((v6.local(), v4.local()), (format!("tcp://[::]:{port}"), format!("tcp://0.0.0.0:{port}")));
        let _client = connect(port, "127.0.0.1").expect("a connection");
        soon(|| v4.accept());
        assert_eq!(AcceptError::classify(&v6.accept().expect_err("nobody for IPv6")), AcceptError::WouldBlock);
    }

    #[test]
    fn a_name_is_bound_on_each_of_its_addresses_with_one_port() {
        let addresses = [([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into()];
        let listeners = address("some.name:0").listen_on_each(&addresses, plainly).expect("listeners");
        let port = listeners[0].port().expect("a port");
        let urls: Vec<_> = listeners.iter().map(Listener::local).collect();
        assert_eq!(urls, [format!("tcp://127.0.0.1:{port}"), format!("tcp://127.0.0.2:{port}")]);
        assert!(!address("localhost:0").bind(&OPTIONS).expect("listeners").is_empty());
    }

    #[test]
    fn an_address_of_a_family_that_the_host_lacks_is_left_out_if_another_is_bound() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no interface has it, as ::1 without IPv6.
        let here: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let nowhere: SocketAddr = "192.0.2.1:0".parse().expect("an address");
        let named = address("some.name:0");
        for order in [[here, nowhere], [nowhere, here]] {
            assert_eq!(named.listen_on_each(&order, plainly).expect("one listener").len(), 1);
        }
        let error = named.listen_on_each(&[nowhere], plainly).expect_err("nothing to listen on").to_string();
        assert!(error.starts_with("cannot listen on 192.0.2.1:0 (some.name:0): "), "{error}");
        assert!(named.listen_on_each(&[], plainly).is_err());
    }

    #[test]
    fn a_taken_address_of_a_name_is_an_error_although_another_is_free() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("a port");
        let addresses = [([127, 0, 0, 2], port).into(), ([127, 0, 0, 1], port).into()];
        let named = Address::Host { host: "some.name".into(), port };
        let error = named.listen_on_each(&addresses, plainly).expect_err("taken").to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} (some.name:{port}): Address already in use")), "{error}");
    }

    #[test]
    fn a_port_that_the_next_address_of_a_name_cannot_have_is_chosen_again() {
        let named = [([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into()];
        let listen = |refusals: u32| {
            let (mut choices, mut refused) = (0, 0);
            let result = address("some.name:0").listen_on_each(&named, |address| {
                if address.port() == 0 {
                    choices += 1;
                } else if refused < refusals {
                    refused += 1;
                    return Err(Errno::ADDRINUSE.into());
                }
                plainly(([127, 0, 0, 1], 0).into()) // Whatever was asked for: what others hold plays no part here.
            });
            (choices, result)
        };
        let (choices, result) = listen(PORT_TRIES);
        assert_eq!((choices, result.expect("listeners").len()), (PORT_TRIES + 1, 2));
        let (choices, result) = listen(PORT_TRIES + 1);
        assert!(is(&result.expect_err("an end").error, Errno::ADDRINUSE));
        assert_eq!(choices, PORT_TRIES + 1, "it is not tried for ever");
    }

    #[test]
    fn a_taken_port_is_named_with_what_the_system_says() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("a port");
        let expected = format!("cannot listen on 127.0.0.1:{port}: Address already in use (os error 98)");
        #[cfg(target_os = "linux")]
        assert_eq!(refused(&format!("127.0.0.1:{port}")), expected);
        assert!(refused(&port.to_string()).starts_with(&format!("cannot listen on port {port}: ")));
    }

    #[test]
    fn no_edge_renews_the_share_of_newcomers_that_a_drain_takes() {
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
    fn a_drain_takes_no_more_than_the_kernel_lets_wait_whatever_was_asked_for() {
        let most =
            fs::read_to_string("/proc/sys/net/core/somaxconn").expect("Linux tells").trim().parse().expect("a number");
        assert_eq!(somaxconn(), Some(most));
        for (asked, left) in [(most - 1, most), (most, most + 1), (most + 1, most + 1), (u32::MAX, most + 1)] {
            let options = ListenOptions { backlog: asked, reuse_port: false };
            let mut listener = address("127.0.0.1:0").bind(&options).expect("a listener").remove(0);
            listener.drain();
            assert_eq!(listener.left, Some(left), "{asked} were asked for");
        }
    }

    #[test]
    fn a_restart_right_after_a_stop_can_bind() {
        let mut listener = bind("127.0.0.1:0");
        let port = listener.port().expect("a port");
        let mut client = connect(port, "127.0.0.1").expect("a connection");
        let stream = soon(|| listener.accept());
        drop((stream, listener)); // Our FIN is first: TIME-WAIT stays on our side, on this port.
        assert_eq!(client.read(&mut [0]).expect("the FIN"), 0);
        drop(client);
        bind(&format!("127.0.0.1:{port}"));
    }

    #[test]
    fn with_reuse_port_two_listeners_share_a_port() {
        let shared = ListenOptions { reuse_port: true, ..OPTIONS };
        let first = address("127.0.0.1:0").bind(&shared).expect("a listener").remove(0);
        let same = format!("127.0.0.1:{}", first.port().expect("a port"));
        assert!(address(&same).bind(&OPTIONS).is_err());
        assert!(address(&same).bind(&shared).is_ok());
    }

    #[test]
    fn an_accepted_stream_never_blocks_does_not_delay_and_keeps_urgent_bytes_in_line() {
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
    fn urgent_bytes_stay_in_line_on_a_unix_socket_too() {
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
            Err(error) if is(&error, Errno::OPNOTSUPP) => return, // No urgent data on Unix sockets here.
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
    fn an_empty_queue_is_no_error() {
        let verdict = AcceptError::classify(&bind("127.0.0.1:0").accept().expect_err("nobody is there"));
        assert_eq!(verdict, AcceptError::WouldBlock);
    }

    #[test]
    fn a_unix_listener_tells_its_absolute_path_and_its_file_goes_with_it() {
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
    fn a_stale_unix_file_is_replaced() {
        let directory = Directory::new("stale");
        drop(StdUnixListener::bind(directory.path("s")).expect("a listener")); // std leaves the file.
        assert!(directory.path("s").exists());
        bind(&directory.unix("s"));
    }

    #[test]
    fn a_live_unix_listener_is_left_alone_even_if_its_queue_is_full() {
        let directory = Directory::new("live");
        let path = directory.path("s");
        let one = ListenOptions { backlog: 1, ..OPTIONS };
        let mut listener = address(&directory.unix("s")).bind(&one).expect("a listener").remove(0);
        let wanted = format!(
            "cannot listen on unix:{}: {}: another process listens there",
            path.display(),
            io::Error::from(Errno::ADDRINUSE)
        );
        assert_eq!(refused(&directory.unix("s")), wanted);
        let mut queued = Vec::new();
        let full = loop {
            assert!(queued.len() < 100, "the backlog holds");
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            client.set_nonblocking(true).expect("a socket");
            match client.connect(&SockAddr::unix(&path).expect("a path")) {
                Ok(()) => queued.push(client),
                Err(error) => break error,
            }
        };
        assert!(is(&full, Errno::AGAIN), "{full}");
        assert_eq!(refused(&directory.unix("s")), wanted);
        assert!(matches!(soon(|| listener.accept()), Accepted::Unix(_)));
    }

    #[test]
    fn what_is_no_socket_of_our_kind_is_left_alone() {
        let directory = Directory::new("other");
        fs::write(directory.path("file"), "precious").expect("a file");
        fs::create_dir(directory.path("directory")).expect("a directory");
        drop(StdUnixListener::bind(directory.path("stale")).expect("a listener"));
        std::os::unix::fs::symlink(directory.path("stale"), directory.path("link")).expect("a link");
        let _datagram = UnixDatagram::bind(directory.path("datagram")).expect("a socket");
        for (name, found) in [
            ("file", "there is a file that is no socket"),
            ("directory", "there is a directory"),
            ("link", "there is a symbolic link"),
            ("datagram", "there is a socket of another type"),
        ] {
            let error = refused(&directory.unix(name));
            assert!(error.ends_with(found), "{error}");
            assert!(fs::symlink_metadata(directory.path(name)).is_ok(), "{name}");
        }
        assert_eq!(fs::read(directory.path("file")).expect("the file"), b"precious");
        assert!(directory.path("stale").exists());
    }

    #[test]
    fn only_a_refusal_says_that_nobody_listens_on_a_path() {
        let alive = "another process listens there";
        for (errno, found) in [
            (Errno::CONNREFUSED, None),
            (Errno::NOENT, None),
            (Errno::AGAIN, Some(alive)),
            (Errno::PROTOTYPE, Some("there is a socket of another type")),
            (Errno::ACCESS, Some("there is a socket that we may not connect to")),
        ] {
            assert_eq!(occupant(Err(errno.into())).expect("an answer"), found, "{errno:?}");
        }
        assert_eq!(occupant(Ok(())).expect("an answer"), Some(alive));
        assert!(is(&occupant(Err(Errno::NOMEM.into())).expect_err("no answer"), Errno::NOMEM));
    }

    #[test]
    fn what_has_gone_already_need_not_be_removed_and_any_other_obstacle_is_an_error() {
        let directory = Directory::new("gone");
        let path = directory.path("s");
        assert!(remove_stale(&path).expect("nothing there").is_none());
        remove_same(&path, (0, 0)).expect("nothing to do");
        fs::write(&path, "a file where a directory is to be").expect("a file");
        assert!(is(&remove_stale(&path.join("s")).expect_err("no directory"), Errno::NOTDIR));
        assert!(is(&remove_same(&path.join("s"), (0, 0)).expect_err("no directory"), Errno::NOTDIR));
    }

    #[test]
    fn a_file_that_is_no_longer_ours_is_not_removed() {
        let directory = Directory::new("replaced");
        let ours = bind(&directory.unix("s"));
        fs::remove_file(directory.path("s")).expect("our file");
        let _theirs = StdUnixListener::bind(directory.path("s")).expect("a listener");
        drop(ours);
        assert!(std::os::unix::net::UnixStream::connect(directory.path("s")).is_ok());
    }

    #[test]
    fn an_inherited_listener_does_not_block_and_keeps_its_file() {
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
    fn what_is_inherited_and_no_stream_listener_is_refused() {
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
    fn errors_of_accept_are_sorted_by_what_the_loop_does_next() {
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
