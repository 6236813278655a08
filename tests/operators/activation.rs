//! Socket activation: descriptors that a service manager passes.

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nix::libc;
use nix::sys::socket::sockopt::{GetUsize, SetUsize};
use nix::sys::socket::{getsockopt, setsockopt};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::support::{
    Address, Client, Daemon, DaemonBuilder, Directory, TIMEOUT, eventually, has_program, pattern, skip,
};

/// A shell script that does what a service manager does between fork and exec. It passes one socket, which is its stdin.
const PASS_ONE: &str = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#;

/// The same for two sockets. The second one is the stderr of the shell, so the log is not captured.
const PASS_TWO: &str = r#"LISTEN_FDS=2 LISTEN_PID=$$ exec "$@" 3<&0 4<&2 0</dev/null 2>/dev/null"#;

/// Returns a daemon with only these arguments, to which `socket` is passed as descriptor 3.
fn activated(arguments: &[&str], socket: impl Into<OwnedFd>) -> DaemonBuilder {
    Daemon::with(arguments).without_listen().shell(PASS_ONE).stdin(Stdio::from(socket.into()))
}

fn tcp_listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[test]
fn passed_tcp_listener_replaces_the_default() {
    let (listener, address) = tcp_listener();
    let early = Client::connect(&Address::Tcp(address));
    early.send(b"before the daemon");
    let mut daemon = activated(&[], listener).start();
    assert_eq!(daemon.stdout(), format!("listening on tcp://{address}\n"));

    early.expect(b"before the daemon");
    // The socket was passed as a blocking one. Without a change, the loop would hang in accept(2) from here on.
    let [one, two] = [daemon.connect(), daemon.connect()];
    one.exchange(&pattern(1, 1_000_000));
    two.echo(b"two");
    one.echo(b"one");
    assert!(one.remote_socket().is_some());
    drop([early, one, two]);
    daemon.terminate();
    assert_eq!(daemon.whole_stdout().lines().count(), 1);
}

#[test]
fn passed_socket_becomes_nonblocking_and_close_on_exec() {
    let (listener, _) = tcp_listener();
    let daemon = activated(&[], listener).start();
    let info = daemon.proc("fdinfo/3");
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
    let flags = u32::from_str_radix(flags.trim(), 8).unwrap();
    let (nonblock, cloexec) = (0o4000, 0o2_000_000); // open(2), as the kernel defines them for these architectures.
    if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
        assert_eq!(flags & nonblock, nonblock, "{flags:o}");
        assert_eq!(flags & cloexec, cloexec, "{flags:o}");
    }
}

/// SO_RCVLOWAT, which no library wraps.
#[derive(Clone, Copy)]
struct ReceiveLowWaterMark;
nix::setsockopt_impl!(ReceiveLowWaterMark, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, SetUsize);
nix::getsockopt_impl!(ReceiveLowWaterMark, libc::SOL_SOCKET, libc::SO_RCVLOWAT, usize, GetUsize);

/// Returns a duplicate of the daemon's end of a TCP connection.
#[track_caller]
fn daemon_end(daemon: &Daemon, client: &Client) -> Socket {
    let is_end = |socket: &Socket| socket.peer_addr().is_ok_and(|peer| peer.as_socket() == Some(client.local()));
    daemon.sockets().into_iter().find(is_end).expect("the daemon's end of the connection")
}

#[test]
fn options_of_a_passed_listener_do_not_reach_connections() {
    let (listener, address) = tcp_listener();
    let socket = SockRef::from(&listener);
    socket.set_linger(Some(Duration::from_secs(3))).unwrap();
    socket.set_tcp_cork(true).unwrap();
    setsockopt(&listener, ReceiveLowWaterMark, &100).unwrap();
    let early = Client::connect(&Address::Tcp(address)); // It has inherited these options already.
    let daemon = activated(&[], listener).start();
    let late = daemon.connect();
    for client in [&early, &late] {
        client.echo(b"hello");
        let end = daemon_end(&daemon, client);
        assert_eq!(end.linger().unwrap(), None, "SO_LINGER");
        assert_eq!(getsockopt(&end, ReceiveLowWaterMark).unwrap(), 1, "SO_RCVLOWAT");
        assert!(!end.tcp_cork().unwrap(), "TCP_CORK");
        assert!(end.tcp_nodelay().unwrap(), "TCP_NODELAY");
        assert!(end.out_of_band_inline().unwrap(), "SO_OOBINLINE");
    }
}

#[test]
fn passed_mptcp_listener_is_served() {
    let socket = |protocol| Socket::new(Domain::IPV4, Type::STREAM, Some(protocol));
    let listener = match socket(Protocol::MPTCP) {
        Ok(listener) => listener,
        Err(error) => return skip(&format!("this kernel has no MPTCP: {error}")),
    };
    listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    listener.listen(16).unwrap();
    let address = listener.local_addr().unwrap().as_socket().unwrap();
    let mut daemon = activated(&[], listener).start();
    assert_eq!(daemon.stdout(), format!("listening on tcp://{address}\n"));

    // A peer without MPTCP gets a plain TCP stream, which should have all its options. So should those after the first.
    daemon.connect().echo(b"hello");
    let plain = daemon.connect();
    plain.echo(b"hello");
    let end = daemon_end(&daemon, &plain);
    assert!(end.tcp_nodelay().unwrap() && end.out_of_band_inline().unwrap());
    drop((end, plain));

    let client = socket(Protocol::MPTCP).unwrap();
    client.connect(&address.into()).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let bytes = pattern(1, 1_000_000);
    let mut echo = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            (&client).write_all(&bytes).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        });
        (&client).read_to_end(&mut echo).unwrap();
    });
    assert!(echo == bytes, "{} of {} bytes, or other ones", echo.len(), bytes.len());
    daemon.terminate();
}

#[test]
fn passed_unix_listener_is_served_and_keeps_its_file() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut daemon = activated(&[], UnixListener::bind(&path).unwrap()).start();
    assert_eq!(daemon.stdout(), format!("listening on unix://{}\n", path.display()));
    daemon.connect().exchange(&pattern(1, 1_000_000));
    daemon.terminate();
    assert!(path.exists(), "the file belongs to the service manager");
}

#[test]
fn two_passed_sockets_are_both_served() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let (listener, address) = tcp_listener();
    let unix = OwnedFd::from(UnixListener::bind(&path).unwrap());
    let start = Daemon::with(&[]).without_listen().shell(PASS_TWO).stdin(OwnedFd::from(listener));
    let daemon = start.stderr(unix).listeners(2).start();
    assert_eq!(daemon.addresses(), [Address::Tcp(address), Address::Unix(path)]);
    for address in daemon.addresses() {
        Client::connect(address).echo(b"hello");
    }
}

#[test]
fn explicit_address_is_bound_besides_passed_socket() {
    let (listener, address) = tcp_listener();
    let start = Daemon::with(&["--listen=127.0.0.1:0"]).shell(PASS_ONE).stdin(OwnedFd::from(listener));
    let daemon = start.listeners(2).start();
    assert_eq!(daemon.addresses()[0], Address::Tcp(address));
    assert_ne!(daemon.addresses()[1], daemon.addresses()[0]);
    for address in daemon.addresses() {
        Client::connect(address).echo(b"hello");
    }
}

#[test]
fn descriptors_for_another_process_are_ignored() {
    let (listener, address) = tcp_listener();
    let other = r#"LISTEN_FDS=1 LISTEN_PID=1 exec "$@" 3<&0 0</dev/null"#;
    let start = Daemon::with(&["--listen=127.0.0.1:0"]).shell(other).stdin(OwnedFd::from(listener));
    let daemon = start.start();
    assert_ne!(daemon.address(), &Address::Tcp(address));
    daemon.connect().echo(b"hello");
    assert_eq!(daemon.stdout().lines().count(), 1);
}

#[test]
fn passed_non_listener_is_an_error() {
    let directory = Directory::new();
    let file = directory.join("file");
    fs::write(&file, "").unwrap();
    let (connected, _peer) = UnixStream::pair().unwrap();
    let (listener, address) = tcp_listener();
    let tcp_connected = std::net::TcpStream::connect(address).unwrap();
    let wrong: [(&str, OwnedFd); 5] = [
        ("a datagram socket", UdpSocket::bind("127.0.0.1:0").unwrap().into()),
        ("a connected Unix socket", connected.into()),
        ("a connected TCP socket", tcp_connected.into()),
        ("a file", fs::File::open(&file).unwrap().into()),
        ("a pipe", std::io::pipe().unwrap().0.into()),
    ];
    for (kind, descriptor) in wrong {
        let finished = activated(&[], descriptor).run();
        assert_eq!(finished.code, 1, "{kind}");
        assert_eq!(finished.stdout, "", "{kind}");
        let start = "echod: cannot listen on descriptor 3 (passed by LISTEN_FDS): it is ";
        assert!(finished.stderr.starts_with(start), "{kind}: {}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{kind}: {}", finished.stderr);
    }
    drop(listener);
}

#[test]
fn missing_descriptor_or_invalid_count_is_an_error() {
    for (count, expected) in
        [("2", "descriptor 4"), ("no", "LISTEN_FDS"), ("-1", "LISTEN_FDS"), ("4000000000", "LISTEN_FDS")]
    {
        let (listener, _) = tcp_listener();
        let script = format!(r#"LISTEN_FDS={count} LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#);
        let start = Daemon::with(&[]).without_listen().shell(&script).stdin(OwnedFd::from(listener));
        let finished = start.run();
        assert_eq!(finished.code, 1, "{count}");
        assert!(finished.stderr.starts_with("echod: ") && finished.stderr.contains(expected), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn systemd_socket_activate_passes_a_working_socket() {
    if !has_program("systemd-socket-activate") {
        return crate::support::skip_missing("systemd-socket-activate");
    }
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let wrapper = ["systemd-socket-activate", "--listen", path.to_str().unwrap()];
    let mut daemon = Daemon::with(&[]).without_listen().through(&wrapper).spawn();
    // It executes the daemon when the first connection arrives.
    let address = Address::Unix(path.clone());
    let client = eventually("systemd-socket-activate listens", || Client::try_connect(&address).ok());
    client.exchange(&pattern(1, 1_000_000));
    assert_eq!(daemon.stdout(), format!("listening on unix://{}\n", path.display()));
    Client::connect(&address).echo(b"and the next");
    daemon.close_and_terminate(client);
    assert!(path.exists());
}

#[test]
fn shut_down_listener_is_dropped_and_others_continue() {
    let directory = Directory::new();
    let (tcp, _) = tcp_listener();
    let unix = UnixListener::bind(directory.join("echo.sock")).unwrap();
    for (passed, how) in [(OwnedFd::from(tcp), Shutdown::Both), (unix.into(), Shutdown::Read)] {
        let owner = Socket::from(passed.try_clone().unwrap());
        let start = Daemon::with(&["--listen=127.0.0.1:0"]).shell(PASS_ONE).stdin(passed);
        let mut daemon = start.listeners(2).start();
        let [dropped, kept] = daemon.addresses() else { panic!("expected two addresses") };
        let (open, other) = (Client::connect(dropped), Client::connect(kept));
        open.echo(b"open");
        owner.shutdown(how).unwrap();
        let url = dropped.to_string();
        daemon.wait_for_log(|line| line.contains("ERROR") && line.contains(&url));
        assert!(Client::try_connect(dropped).is_err());
        open.echo(b"still open");
        other.echo(b"other");
        Client::connect(kept).echo(b"new");
        drop((open, other));
        daemon.terminate();
    }
}

#[test]
fn losing_the_last_listener_drains_and_fails() {
    let (listener, _) = tcp_listener();
    let owner = SockRef::from(&listener).try_clone().unwrap();
    let mut daemon = activated(&["--drain-timeout=1h"], listener).start();
    let client = daemon.connect();
    client.echo(b"open");
    owner.shutdown(Shutdown::Both).unwrap();
    client.expect_fin();
    client.send_fin();
    assert_eq!(daemon.wait_exit(TIMEOUT).code(), Some(1));
    let stderr = daemon.whole_stderr();
    assert_eq!(stderr.lines().filter(|line| line.starts_with("echod: ")).count(), 1, "{stderr}");
}
