//! Bound sockets from addresses: one address can give several listeners (`localhost` names `127.0.0.1` and `::1`).
//!
//! socket2 makes the sockets, because the backlog, SO_REUSEPORT and IPV6_V6ONLY must be chosen before listen(2); mio
//! takes them over from there.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::Path;
use std::{fmt, fs, io};

use rustix::io::Errno;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::listen::address::{Address, printable};
use crate::listen::is_errno;
use crate::listen::listener::{Kind, Listener};
use crate::listen::unix_file::{SocketFile, remove_stale};

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
    /// Makes the listening sockets that the address stands for: bound, listening, non-blocking,
    /// close-on-exec. One, or several for a host name.
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
                    // A name that stands twice in /etc/hosts is named twice.
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
        }
    }

    /// A host's addresses. A name such as `localhost` often has an address of a family that this host
    /// does not have (a container without IPv6): that one is left out if another could be bound.
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
                // One name, one port: the one that the kernel chose for the first address.
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
                    // The kernel's choice is taken on this address: have it choose again.
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
                // getaddrinfo(3) promises at least one address with a success.
                let error = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
                return Err(BindError { target: self.describe(), error, hint: None });
            }
            (false, last) => {
                for (address, error) in skipped.into_iter().chain(last) {
                    log::warn!("not listening on {address}, one of the addresses of {self}: {error}");
                }
            }
        }
        Ok(listeners)
    }

    fn bind_error(&self, address: SocketAddr, error: io::Error) -> BindError {
        BindError { target: format!("{address} ({self})"), error, hint: None }
    }

    /// The address in a sentence: "cannot listen on port 9999".
    fn describe(&self) -> String {
        match self {
            Address::Port(port) => format!("port {port}"),
            _ => printable(&self.to_string()),
        }
    }
}

/// How often the kernel may choose a port for the first address of a name that the others cannot have.
const MAX_PORT_RETRIES: u32 = 16;

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
fn listen_on_all_interfaces(
    port: u16,
    listen: impl Fn(SocketAddr, Family) -> io::Result<Listener>,
) -> io::Result<Listener> {
    match listen((Ipv6Addr::UNSPECIFIED, port).into(), Family::Both) {
        // EINVAL: OpenBSD does not let IPV6_V6ONLY be switched off.
        Err(error) if is_unsupported_family(&error) || is_errno(&error, Errno::INVAL) => {
            log::info!("no IPv6 here ({error}): listening on 0.0.0.0");
            listen((Ipv4Addr::UNSPECIFIED, port).into(), Family::Own)
        }
        result => result,
    }
}

/// The host does not have the address's family: no such sockets, or no such address on any interface.
fn is_unsupported_family(error: &io::Error) -> bool {
    is_errno(error, Errno::AFNOSUPPORT) || is_errno(error, Errno::ADDRNOTAVAIL)
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
pub(super) fn prepare_tcp(socket: &Socket) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?; // Nagle would hold a small echo back until the last one is acknowledged.
    socket.set_out_of_band_inline(true) // An urgent byte stays where it stands in the stream: RFC 6093.
}

/// No SO_REUSEADDR here: on a Unix socket it means nothing. The file is what is in the way.
fn listen_unix(path: &Path, options: &ListenOptions) -> Result<Listener, (io::Error, Option<&'static str>)> {
    let no_hint = |error| (error, None);
    let address = SockAddr::unix(path).map_err(no_hint)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(no_hint)?;
    if let Err(error) = socket.bind(&address) {
        if !is_errno(&error, Errno::ADDRINUSE) {
            return Err((error, None));
        }
        match remove_stale(path).map_err(no_hint)? {
            None => socket.bind(&address).map_err(no_hint)?,
            hint => return Err((error, hint)),
        }
    }
    // From here on the file is ours, and goes when `file` does, also on the way out through `?`.
    let file = SocketFile::of(path).map_err(no_hint)?;
    socket.listen(options.backlog()).map_err(no_hint)?;
    Listener::new(socket.into(), Kind::Unix, options.backlog, Some(file)).map_err(no_hint)
}

/// The kernel's cap on every backlog: net.core.somaxconn. `None` where it is not told.
pub fn somaxconn() -> Option<u32> {
    fs::read_to_string("/proc/sys/net/core/somaxconn").ok()?.trim().parse().ok()
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
        assert!(is_errno(&without_ipv6(Errno::ADDRINUSE).expect_err("no way out"), Errno::ADDRINUSE));
    }

    #[test]
    fn explicit_ipv6_address_is_ipv6_only() {
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
    fn host_name_binds_every_address_with_one_port() {
        let addresses = [([127, 0, 0, 1], 0).into(), ([127, 0, 0, 2], 0).into()];
        let listeners = address("some.name:0").listen_on_each(&addresses, listen_at).expect("listeners");
        let port = listeners[0].port().expect("a port");
        let urls: Vec<_> = listeners.iter().map(Listener::local).collect();
        assert_eq!(urls, [format!("tcp://127.0.0.1:{port}"), format!("tcp://127.0.0.2:{port}")]);
        assert!(!address("localhost:0").bind(&OPTIONS).expect("listeners").is_empty());
    }

    #[test]
    fn unsupported_family_is_skipped_if_another_address_binds() {
        // 192.0.2.0/24 is for documentation (RFC 5737): no interface has it, as ::1 without IPv6.
        let here: SocketAddr = "127.0.0.1:0".parse().expect("an address");
        let nowhere: SocketAddr = "192.0.2.1:0".parse().expect("an address");
        let host = address("some.name:0");
        for order in [[here, nowhere], [nowhere, here]] {
            assert_eq!(host.listen_on_each(&order, listen_at).expect("one listener").len(), 1);
        }
        let error = host.listen_on_each(&[nowhere], listen_at).expect_err("nothing to listen on").to_string();
        assert!(error.starts_with("cannot listen on 192.0.2.1:0 (some.name:0): "), "{error}");
        assert!(host.listen_on_each(&[], listen_at).is_err());
    }

    #[test]
    fn taken_address_of_a_host_name_is_an_error() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("a port");
        let addresses = [([127, 0, 0, 2], port).into(), ([127, 0, 0, 1], port).into()];
        let host = Address::Host { host: "some.name".into(), port };
        let error = host.listen_on_each(&addresses, listen_at).expect_err("taken").to_string();
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
                listen_at(([127, 0, 0, 1], 0).into()) // Whatever was asked for: what others hold plays no part here.
            });
            (choices, result)
        };
        let (choices, result) = listen(MAX_PORT_RETRIES);
        assert_eq!((choices, result.expect("listeners").len()), (MAX_PORT_RETRIES + 1, 2));
        let (choices, result) = listen(MAX_PORT_RETRIES + 1);
        assert!(is_errno(&result.expect_err("an end").error, Errno::ADDRINUSE));
        assert_eq!(choices, MAX_PORT_RETRIES + 1, "it is not tried for ever");
    }

    #[test]
    fn taken_port_error_names_address_and_errno() {
        let taken = bind("127.0.0.1:0");
        let port = taken.port().expect("a port");
        let expected = format!("cannot listen on 127.0.0.1:{port}: Address already in use (os error 98)");
        #[cfg(target_os = "linux")]
        assert_eq!(refused(&format!("127.0.0.1:{port}")), expected);
        assert!(refused(&port.to_string()).starts_with(&format!("cannot listen on port {port}: ")));
    }

    #[test]
    fn restart_right_after_stop_can_bind() {
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
    fn reuse_port_lets_two_listeners_share_a_port() {
        let shared = ListenOptions { reuse_port: true, ..OPTIONS };
        let first = address("127.0.0.1:0").bind(&shared).expect("a listener").remove(0);
        let same = format!("127.0.0.1:{}", first.port().expect("a port"));
        assert!(address(&same).bind(&OPTIONS).is_err());
        assert!(address(&same).bind(&shared).is_ok());
    }
}
