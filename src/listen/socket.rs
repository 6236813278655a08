//! Binding of addresses to listening sockets.
//!
//! One address can give several listeners: `localhost` often resolves to `127.0.0.1` and `::1`. socket2 creates the sockets,
//! because the backlog, SO_REUSEPORT and IPV6_V6ONLY must be set before or with listen(2). Then mio takes them over.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::{fmt, fs, io};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen::address::{Address, printable, unbindable_reason};
use crate::listen::is_errno;
use crate::listen::listener::{Kind, Listener};
use crate::listen::stream_options::{refuse_descriptors, set_tcp_options};
use crate::listen::unix_file::{SocketFile, remove_stale};

/// The options of a listening socket.
#[derive(Clone, Copy, Debug)]
pub struct ListenOptions {
    /// The maximum number of pending connections: listen(2). The kernel caps it at [`somaxconn`].
    pub backlog: u32,
    /// SO_REUSEPORT, which lets several processes share a TCP port. It has no effect on Unix sockets.
    pub reuse_port: bool,
    /// SO_SNDBUF and SO_RCVBUF of every accepted TCP stream, in bytes. `None` leaves them to the kernel's autotuning. The
    /// kernel caps them at [`max_socket_buffer`]. It has no effect on Unix sockets.
    pub socket_buffer: Option<u32>,
}

impl ListenOptions {
    fn backlog(&self) -> i32 {
        i32::try_from(self.backlog).unwrap_or(i32::MAX)
    }
}

/// The error of [`Address::bind`]: the address, the error that the system reported, and sometimes a hint at its cause.
#[derive(Debug)]
pub struct BindError {
    target: String,
    error: io::Error,
    hint: Option<&'static str>,
}

impl fmt::Display for BindError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot listen on {}: {}", self.target, self.error)?;
        self.hint.map_or(Ok(()), |hint| write!(f, ": {hint}"))
    }
}

impl std::error::Error for BindError {}

impl Address {
    /// Creates the listening sockets of this address: non-blocking and close-on-exec. A host name can give several of them,
    /// any other address gives one.
    ///
    /// A host name is resolved here, with getaddrinfo(3), which blocks.
    pub fn bind(&self, options: &ListenOptions) -> Result<Vec<Listener>, BindError> {
        let failed = |error| BindError { target: self.describe(), error, hint: None };
        match self {
            Address::Port(port) => Ok(vec![
                listen_on_all_interfaces(*port, |address, family| listen_tcp(address, family, options))
                    .map_err(failed)?,
            ]),
            Address::Ip(address) => Ok(vec![listen_tcp(*address, Family::Own, options).map_err(failed)?]),
            Address::Host { host, port } => {
                let mut addresses = Vec::new();
                for address in (host.as_str(), *port).to_socket_addrs().map_err(failed)? {
                    // A name that is listed twice in /etc/hosts resolves to the same address twice.
                    if !addresses.contains(&address) {
                        addresses.push(address);
                    }
                }
                self.listen_on_each(&addresses, |address| listen_tcp(address, Family::Own, options))
            }
            Address::Unix(path) => Ok(vec![listen_unix(path, options).map_err(|(error, hint)| BindError {
                target: self.describe(),
                error,
                hint,
            })?]),
            Address::Abstract(name) => Ok(vec![listen_abstract(name, options).map_err(failed)?]),
        }
    }

    /// Listens on every address of a host name, all with the same port. An address of a family that this host does not
    /// support is skipped if another one could be bound: in a container without IPv6, `localhost` often still resolves to
    /// `::1`.
    fn listen_on_each(
        &self,
        addresses: &[SocketAddr],
        mut listen: impl FnMut(SocketAddr) -> io::Result<Listener>,
    ) -> Result<Vec<Listener>, BindError> {
        let mut listeners: Vec<Listener> = Vec::new();
        let mut skipped = Vec::new();
        let mut retries = 0;
        let mut next = 0;
        while let Some(&(mut address)) = addresses.get(next) {
            if let (0, Some(first)) = (address.port(), listeners.first()) {
                // Use the port that the kernel chose for the first address.
                address.set_port(first.port().unwrap_or(0));
            }
            match listen(address) {
                Ok(listener) => listeners.push(listener),
                Err(error) if is_unsupported_family(&error) => skipped.push((address, error)),
                Err(error)
                    if is_errno(&error, Errno::ADDRINUSE)
                        && addresses[next].port() == 0
                        && retries < MAX_PORT_RETRIES =>
                {
                    // The port that the kernel chose is taken on this address: start over with another one.
                    retries += 1;
                    next = 0;
                    listeners.clear();
                    skipped.clear();
                    continue;
                }
                Err(error) => return Err(self.bind_error(address, error)),
            }
            next += 1;
        }
        match (listeners.is_empty(), skipped.pop()) {
            (true, Some((address, error))) => return Err(self.bind_error(address, error)),
            (true, None) => {
                // getaddrinfo(3) returns at least one address if it succeeds.
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Err(BindError { target: self.describe(), error, hint: None });
            }
            (false, last) => {
                for (address, error) in skipped.into_iter().chain(last) {
                    log::warn!("skipping {address} (from {self}): {error}");
                }
            }
        }
        Ok(listeners)
    }

    fn bind_error(&self, address: SocketAddr, error: io::Error) -> BindError {
        let hint = unbindable_reason(address).filter(|_| is_errno(&error, Errno::INVAL));
        BindError { target: format!("{address} ({self})"), error, hint }
    }

    /// Returns the address as it appears in "cannot listen on port 9999".
    fn describe(&self) -> String {
        match self {
            Address::Port(port) => format!("port {port}"),
            _ => printable(&self.to_string()),
        }
    }
}

/// How often the kernel may choose another port for the first address of a host name, because the one that it chose is
/// taken on another address. That is rare, and sixteen times in a row it is not a coincidence.
const MAX_PORT_RETRIES: u32 = 16;

/// The IP versions that an IPv6 socket accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    /// IPv6 only (IPV6_V6ONLY), so that `[::]:80` and `0.0.0.0:80` can be bound together.
    Own,
    /// IPv6 and IPv4. The addresses of IPv4 peers look like `::ffff:192.0.2.1` here.
    Both,
}

/// Listens on all interfaces: with one dual-stack socket, or with an IPv4 socket if the host does not support IPv6. Two
/// sockets would get two different ports for port 0.
fn listen_on_all_interfaces(
    port: u16,
    listen: impl Fn(SocketAddr, Family) -> io::Result<Listener>,
) -> io::Result<Listener> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into(), Family::Both) {
        // EINVAL: on OpenBSD, IPV6_V6ONLY cannot be turned off.
        Err(error) if is_unsupported_family(&error) || is_errno(&error, Errno::INVAL) => {
            log::info!("IPv6 is not available ({error}); listening on 0.0.0.0 instead");
            listen((Ipv4Addr::UNSPECIFIED, port).into(), Family::Own)
        }
        result => result,
    }
}

/// Returns whether the host does not support the address family: it has no such sockets, or no interface has the address.
fn is_unsupported_family(error: &io::Error) -> bool {
    is_errno(error, Errno::AFNOSUPPORT) || is_errno(error, Errno::ADDRNOTAVAIL)
}

/// Creates a TCP listener.
fn listen_tcp(address: SocketAddr, family: Family, options: &ListenOptions) -> io::Result<Listener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?; // Sets close-on-exec.
    if address.is_ipv6() {
        socket.set_only_v6(family == Family::Own)?;
    }
    // Otherwise connections of the previous process that are in TIME-WAIT would make bind(2) fail.
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    set_tcp_options(&socket, options.socket_buffer)?;
    socket.listen(options.backlog())?;
    Listener::new(socket.into(), Kind::Tcp, options, None)
}

/// Creates a Unix listener, replacing a stale socket file. The error comes with a hint at what was found at the path.
///
/// SO_REUSEADDR has no effect on Unix sockets, where the address in use is a file.
fn listen_unix(path: &Path, options: &ListenOptions) -> Result<Listener, (io::Error, Option<&'static str>)> {
    let no_hint = |error| (error, None);
    let address = SockAddr::unix(path).map_err(no_hint)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(no_hint)?;
    refuse_descriptors(&socket);
    if let Err(error) = socket.bind(&address) {
        if !is_errno(&error, Errno::ADDRINUSE) {
            return Err((error, None));
        }
        match remove_stale(path).map_err(no_hint)? {
            None => socket.bind(&address).map_err(no_hint)?,
            hint => return Err((error, hint)),
        }
    }
    // From here on the file is ours. Dropping `file` removes it, also if one of the next calls fails.
    let file = SocketFile::of(path).map_err(no_hint)?;
    socket.listen(options.backlog()).map_err(no_hint)?;
    Listener::new(socket.into(), Kind::Unix, options, Some(file)).map_err(no_hint)
}

/// Creates a listener on a Linux abstract socket. It has no file that would have to be replaced or removed: the kernel frees the
/// name when the socket is closed.
fn listen_abstract(name: &str, options: &ListenOptions) -> io::Result<Listener> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    refuse_descriptors(&socket);
    socket.bind(&SockAddr::unix(format!("\0{name}"))?)?;
    socket.listen(options.backlog())?;
    Listener::new(socket.into(), Kind::Unix, options, None)
}

/// Returns the kernel's limit for every backlog, net.core.somaxconn. `None` if it is unknown.
pub fn somaxconn() -> Option<u32> {
    kernel_limit("somaxconn")
}

/// Returns the kernel's limit for [`ListenOptions::socket_buffer`], the smaller one of net.core.rmem_max and net.core.wmem_max.
/// `None` if it is unknown, as in a network namespace.
pub fn max_socket_buffer() -> Option<u32> {
    Some(kernel_limit("rmem_max")?.min(kernel_limit("wmem_max")?))
}

fn kernel_limit(name: &str) -> Option<u32> {
    fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;
    use crate::listen::listener::{AcceptError, Accepted};
    use crate::listen::test_support::{OPTIONS, address, bind, connect, refused, soon};

    fn listen_at(address: SocketAddr) -> io::Result<Listener> {
        listen_tcp(address, Family::Own, &OPTIONS)
    }

    #[test]
    fn bare_port_serves_ipv4_and_ipv6_on_one_socket() {
        let mut listener = bind("0");
        let port = listener.port().expect("TCP port");
        assert_eq!(listener.local(), format!("tcp://[::]:{port}"));
        for (ip, shown) in [("127.0.0.1", "127.0.0.1:"), ("::1", "[::1]:")] {
            let _client = connect(port, ip).expect("connection");
            let Accepted::Tcp(_, peer) = soon(|| listener.accept()) else { panic!("expected a TCP stream") };
            let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
            assert!(peer.to_string().starts_with(shown), "{peer}");
        }
    }

    #[test]
    fn bare_port_falls_back_only_without_ipv6() {
        let without_ipv6 = |errno: Errno| {
            listen_on_all_interfaces(0, |address, family| match family {
                Family::Both => Err(errno.into()),
                Family::Own => listen_tcp(address, family, &OPTIONS),
            })
        };
        for errno in [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL, Errno::INVAL] {
            let local = without_ipv6(errno).expect("IPv4").local();
            assert!(local.starts_with("tcp://0.0.0.0:"), "{errno:?}: {local}");
        }
        assert!(is_errno(&without_ipv6(Errno::ADDRINUSE).expect_err("no fallback for this error"), Errno::ADDRINUSE));
    }

    #[test]
    fn explicit_ipv6_address_is_ipv6_only() {
        // The port that the kernel chooses for IPv6 may be taken on IPv4, but not ten times in a row.
        let pair = (0..10).find_map(|_| {
            let v6 = bind("[::]:0");
            let port = v6.port().expect("TCP port");
            let v4 = address(&format!("0.0.0.0:{port}")).bind(&OPTIONS).ok()?.remove(0);
            Some((v6, v4, port))
        });
        let (mut v6, mut v4, port) = pair.expect("one port for both families");
        assert_eq!((v6.local(), v4.local()), (format!("tcp://[::]:{port}"), format!("tcp://0.0.0.0:{port}")));
        let _client = connect(port, "127.0.0.1").expect("connection");
        soon(|| v4.accept());
        assert_eq!(AcceptError::classify(&v6.accept().expect_err("no connection over IPv6")), AcceptError::WouldBlock);
    }

    #[test]
    fn host_name_binds_every_address_with_one_port() {
        let addresses = [([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into()];
        let listeners = address("some.name:0").listen_on_each(&addresses, listen_at).expect("listeners");
        let port = listeners[0].port().expect("TCP port");
        let urls: Vec<_> = listeners.iter().map(Listener::local).collect();
        assert_eq!(urls, [format!("tcp://127.0.0.1:{port}"), format!("tcp://127.0.0.2:{port}")]);
        assert!(!address("localhost:0").bind(&OPTIONS).expect("listeners").is_empty());
    }

    #[test]
    fn unsupported_family_is_skipped_if_another_address_binds() {
        // 192.0.2.0/24 is reserved for documentation (RFC 5737). No interface has such an address, as none has ::1 without IPv6.
        let here: SocketAddr = "127.0.0.1:0".parse().expect("address");
        let nowhere: SocketAddr = "192.0.2.1:0".parse().expect("address");
        let host = address("some.name:0");
        for order in [[here, nowhere], [nowhere, here]] {
            assert_eq!(host.listen_on_each(&order, listen_at).expect("one listener").len(), 1);
        }
        let error = host.listen_on_each(&[nowhere], listen_at).expect_err("no address can be bound").to_string();
        assert!(error.starts_with("cannot listen on 192.0.2.1:0 (some.name:0): "), "{error}");
        assert!(host.listen_on_each(&[], listen_at).is_err());
    }

    #[test]
    fn host_name_without_usable_address_says_why() {
        let addresses = ["[fe80::1]:0".parse().expect("address")]; // As /etc/hosts can have it: without a zone.
        let error = address("some.name:0").listen_on_each(&addresses, |_| Err(Errno::INVAL.into()));
        let error = error.expect_err("the address cannot be bound").to_string();
        assert!(error.starts_with("cannot listen on [fe80::1]:0 (some.name:0): "), "{error}");
        assert!(error.ends_with(": a link-local address needs a zone, e.g. [fe80::1%eth0]:9999"), "{error}");
    }

    #[test]
    fn taken_address_of_a_host_name_is_an_error() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("TCP port");
        let addresses = [([127, 0, 0, 2], port).into(), ([127, 0, 0, 1], port).into()];
        let host = Address::Host { host: "some.name".into(), port };
        let error = host.listen_on_each(&addresses, listen_at).expect_err("the second address is taken").to_string();
        assert!(error.contains(&format!("127.0.0.1:{port} (some.name:{port}): Address already in use")), "{error}");
    }

    #[test]
    fn port_taken_on_second_address_is_chosen_again() {
        let addresses = [([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into()];
        let listen = |refusals: u32| {
            let (mut choices, mut refused) = (0, 0);
            let result = address("some.name:0").listen_on_each(&addresses, |address| {
                if address.port() == 0 {
                    choices += 1;
                } else if refused < refusals {
                    refused += 1;
                    return Err(Errno::ADDRINUSE.into());
                }
                listen_at(([127, 0, 0, 1], 0).into()) // A free port, because other processes may hold this one.
            });
            (choices, result)
        };
        let (choices, result) = listen(MAX_PORT_RETRIES);
        assert_eq!((choices, result.expect("listeners").len()), (MAX_PORT_RETRIES + 1, 2));
        let (choices, result) = listen(MAX_PORT_RETRIES + 1);
        assert!(is_errno(&result.expect_err("retries are limited").error, Errno::ADDRINUSE));
        assert_eq!(choices, MAX_PORT_RETRIES + 1, "the retries are limited");
    }

    #[test]
    fn taken_port_error_names_address_and_errno() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("TCP port");
        let expected = format!("cannot listen on 127.0.0.1:{port}: Address already in use (os error 98)");
        #[cfg(target_os = "linux")]
        assert_eq!(refused(&format!("127.0.0.1:{port}")), expected);
        assert!(refused(&port.to_string()).starts_with(&format!("cannot listen on port {port}: ")));
    }

    #[test]
    fn restart_right_after_stop_can_bind() {
        let mut listener = bind("127.0.0.1:0");
        let port = listener.port().expect("TCP port");
        let mut client = connect(port, "127.0.0.1").expect("connection");
        let stream = soon(|| listener.accept());
        drop((stream, listener)); // Our FIN goes first, so TIME-WAIT is on our side.
        assert_eq!(client.read(&mut [0]).expect("FIN"), 0);
        drop(client);
        bind(&format!("127.0.0.1:{port}"));
    }

    #[test]
    fn reuse_port_lets_two_listeners_share_a_port() {
        let shared = ListenOptions { reuse_port: true, ..OPTIONS };
        let first = address("127.0.0.1:0").bind(&shared).expect("listener").remove(0);
        let same = format!("127.0.0.1:{}", first.port().expect("TCP port"));
        assert!(address(&same).bind(&OPTIONS).is_err());
        assert!(address(&same).bind(&shared).is_ok());
    }
}
