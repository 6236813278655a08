//! `--listen`: every form of address, and the `listening on` lines it leads to.

use std::io::Write;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::time::Duration;

use socket2::Socket;

use crate::support::{
    Address, Client, Daemon, Directory, TcpState, has_program, pattern, resolve, skip, skip_missing, tcp_socket, unix,
    wait_until,
};

fn has_ipv6() -> bool {
    TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok()
}

/// Returns an address on a loopback IP other than 127.0.0.1, where no listener of another test can answer.
fn at(ip: &str, port: u16) -> Address {
    Address::Tcp(SocketAddr::new(ip.parse().unwrap(), port))
}

#[test]
fn bare_port_is_one_dual_stack_socket() {
    let mut daemon = Daemon::start(&["-v", "--listen", "0"]);
    let address = daemon.tcp();
    let port = address.port();
    assert_ne!(port, 0, "the port that the kernel chose should be printed");
    assert!(address.ip().is_unspecified(), "{address}");
    Client::connect(&at("127.0.0.1", port)).echo(b"IPv4");
    Client::connect(&at("127.6.7.8", port)).echo(b"IPv4, another address");
    if has_ipv6() {
        assert!(address.is_ipv6(), "{address}");
        Client::connect(&at("::1", port)).echo(b"IPv6");
    }
    // An IPv4 peer of the dual-stack socket is shown as IPv4, not as ::ffff:127.0.0.1.
    let client = Client::connect(&at("127.0.0.1", port));
    client.echo(b"hello");
    daemon.wait_for_log(|line| line.contains(&client.local().to_string()));
    assert!(!daemon.stderr().contains("ffff"), "{}", daemon.stderr());
    drop(client);
    daemon.terminate();
    assert_eq!(daemon.whole_stdout().lines().count(), 1);
}

#[test]
fn bare_port_falls_back_to_ipv4_without_ipv6() {
    if !has_program("strace") {
        return skip_missing("strace, which simulates a host without IPv6");
    }
    // -D: strace runs as the child, so that the daemon keeps the process ID we know.
    let inject = "inject=socket:error=EAFNOSUPPORT:when=1";
    let start = Daemon::with(&["--listen", "0"]);
    let daemon = start.through(&["strace", "-D", "-qq", "-o", "/dev/null", "-e", "trace=socket", "-e", inject]).start();
    assert_eq!(daemon.tcp().ip(), "0.0.0.0".parse::<IpAddr>().unwrap());
    Client::connect(&at("127.0.0.1", daemon.tcp().port())).echo(b"IPv4 alone");
}

#[test]
fn default_is_port_9999_on_all_interfaces() {
    // In a network namespace of its own, where the port is free.
    let own_network = [&["unshare", "--net"][..], &["unshare", "--net", "--user", "--map-root-user"]];
    let works = |wrapper: &&&[&str]| {
        let mut command = std::process::Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg("true").stderr(std::process::Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let Some(wrapper) = own_network.iter().find(works) else {
        return skip("network namespaces are not available");
    };
    let daemon = Daemon::with(&[]).without_listen().through(wrapper).start();
    assert!(matches!(daemon.stdout().as_str(), "listening on tcp://[::]:9999\n" | "listening on tcp://0.0.0.0:9999\n"));
}

#[test]
fn ipv4_address_listens_on_that_address_only() {
    let daemon = Daemon::start(&["--listen", "127.0.0.21:0"]);
    let address = daemon.tcp();
    assert_eq!(address.ip().to_string(), "127.0.0.21");
    assert_eq!(daemon.stdout(), format!("listening on tcp://{address}\n"));
    daemon.connect().echo(b"here");
    assert!(Client::try_connect(&at("127.0.0.22", address.port())).is_err(), "no other address is served");
}

#[test]
fn ipv6_address_listens_for_ipv6_only() {
    if !has_ipv6() {
        return skip("this host has no IPv6");
    }
    let daemon = Daemon::start(&["--listen", "[::]:0"]);
    let address = daemon.tcp();
    assert_eq!(daemon.stdout(), format!("listening on tcp://[::]:{}\n", address.port()));
    Client::connect(&at("::1", address.port())).echo(b"IPv6");
    assert!(Client::try_connect(&at("127.0.0.23", address.port())).is_err(), "IPv4 is not served");

    let daemon = Daemon::start(&["--listen", "[::1]:0"]);
    assert_eq!(daemon.stdout(), format!("listening on tcp://[::1]:{}\n", daemon.tcp().port()));
    daemon.connect().echo(b"IPv6");
}

#[test]
fn ipv4_and_ipv6_wildcards_share_a_port() {
    if !has_ipv6() {
        return skip("this host has no IPv6");
    }
    let first = Daemon::start(&["--listen", "0"]); // On all interfaces, so that the port is free on each of them.
    let port = first.tcp().port();
    drop(first);
    // Without IPV6_V6ONLY, the second one would accept IPv4 as well.
    let wanted = [format!("0.0.0.0:{port}"), format!("[::]:{port}")];
    let daemon = Daemon::start(&["--listen", &wanted[0], "--listen", &wanted[1]]);
    let expected = wanted.map(|address| format!("listening on tcp://{address}\n")).concat();
    assert_eq!(daemon.stdout(), expected);
    daemon.addresses().iter().for_each(|address| Client::connect(address).echo(b"both"));
}

#[test]
fn host_name_listens_on_every_address() {
    let expected = resolve("localhost:0");
    let daemon = Daemon::with(&["--listen", "localhost:0"]).listeners(expected.len()).start();
    let mut ips: Vec<IpAddr> = daemon
        .addresses()
        .iter()
        .map(|address| {
            Client::connect(address).echo(b"by name");
            let Address::Tcp(address) = address else { panic!("{address}") };
            address.ip()
        })
        .collect();
    ips.sort();
    assert_eq!(ips, expected.iter().map(SocketAddr::ip).collect::<Vec<_>>());
}

#[test]
fn abbreviated_ipv4_addresses_are_rejected() {
    // Only inet_aton(3) reads these as IPv4 addresses: 0.0.0.0, and 127.0.0.1 three times.
    for host in ["0x0", "0x7f.1", "017700000001", "127.1"] {
        let finished = Daemon::with(&["--listen", &format!("{host}:0")]).run();
        let expected = format!("echod: invalid value '{host}:0' for --listen: invalid IPv4 address {host}\n");
        assert_eq!((finished.code, finished.stderr), (2, expected));
    }
}

#[test]
fn unusable_ip_addresses_are_rejected_with_a_reason() {
    for (address, reason) in [
        ("[::ffff:127.0.0.1]:0", "this is an IPv4-mapped address; use the IPv4 address, e.g. 127.0.0.1:9999"),
        ("[fe80::1]:0", "a link-local address needs a zone, e.g. [fe80::1%eth0]:9999"),
        ("[ff02::1]:0", "TCP cannot listen on a multicast address"),
    ] {
        let finished = Daemon::with(&["--listen", address]).run();
        let expected = format!("echod: invalid value '{address}' for --listen: {reason}\n");
        assert_eq!((finished.code, finished.stderr), (2, expected));
    }
}

#[test]
fn port_0_twice_gives_two_ports() {
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0"]);
    assert_ne!(daemon.addresses()[0], daemon.addresses()[1]);
    daemon.addresses().iter().for_each(|address| Client::connect(address).echo(b"each"));
}

#[test]
fn listeners_of_every_kind_serve_side_by_side() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let arguments = ["-l", "127.0.0.1:0", "-l", &unix(&path), "-l", "0", "-l", "127.0.0.25:0"];
    let daemon = Daemon::start(&arguments);
    assert_eq!(daemon.addresses()[1], Address::Unix(path), "listeners are in the order of the command line");
    let addresses = daemon.addresses().iter().map(|address| match address {
        Address::Tcp(address) if address.ip().is_unspecified() => at("127.0.0.1", address.port()),
        other => other.clone(),
    });
    let clients: Vec<Client> = addresses.map(|address| Client::connect(&address)).collect();
    for (number, client) in clients.iter().enumerate() {
        client.exchange(&pattern(number as u64, 200_000));
    }
}

#[test]
fn restart_right_after_stop_can_bind() {
    // On shutdown the daemon's FIN goes first, so TIME-WAIT is on its side, and without SO_REUSEADDR the port is not free.
    let mut daemon = Daemon::start(&["--listen", "127.0.0.26:0"]);
    let (address, client) = (daemon.tcp(), daemon.connect());
    let local = client.local();
    client.echo(b"hello");
    daemon.signal(crate::support::Signal::TERM);
    client.expect_fin();
    drop(client);
    daemon.expect_success();
    wait_until("TIME-WAIT on the side of the daemon", || {
        tcp_socket(address, local).is_some_and(|end| end.state == TcpState::TimeWait)
    });
    let daemon = Daemon::start(&["--listen", &address.to_string()]);
    daemon.connect().echo(b"hello again");
}

#[test]
fn all_listeners_are_bound_before_the_first_accept() {
    // The lines are printed once every socket is bound. From then on, connecting succeeds at once.
    let daemon = Daemon::start(&["-l", "127.0.0.1:0", "-l", "127.0.0.1:0", "-l", "127.0.0.1:0"]);
    for address in daemon.addresses() {
        let client = Client::connect(address);
        assert!(client.wait_for(rustix::event::PollFlags::OUT, Duration::ZERO));
    }
}

#[test]
fn stalled_peer_leaves_little_in_the_send_queue() {
    // Without TCP_NOTSENT_LOWAT the kernel would accept up to 4 MiB for a peer that does not read.
    let daemon = Daemon::start(&[]);
    let client = daemon.connect();
    client.socket.set_nonblocking(true).unwrap();
    let mut sent = 0;
    loop {
        match (&client.socket).write(&[0; 65536]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if !client.wait_for(rustix::event::PollFlags::OUT, Duration::from_millis(300)) {
                    break;
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
    let queued = client.remote_socket().expect("the connection").unacknowledged;
    assert!(queued > 0 && queued < 512 * 1024, "{queued} of {sent} bytes are in the send queue");
}

#[test]
fn socket_buffer_is_fixed_for_connections() {
    let daemon = Daemon::start(&["--socket-buffer", "50000"]);
    let client = daemon.connect();
    client.exchange(&pattern(1, 1_000_000));
    let is_end = |socket: &Socket| socket.peer_addr().is_ok_and(|peer| peer.as_socket() == Some(client.local()));
    let end = daemon.sockets().into_iter().find(is_end).expect("the daemon's end of the connection");
    // The kernel doubles the value: socket(7).
    assert_eq!((end.send_buffer_size().unwrap(), end.recv_buffer_size().unwrap()), (100_000, 100_000));
    assert!(!daemon.stderr().contains("the kernel limits"), "{}", daemon.stderr());
}

#[test]
fn capped_socket_buffer_gets_a_warning() {
    let limit = |name| std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse::<u32>().ok();
    let Some(max) = limit("rmem_max").zip(limit("wmem_max")).map(|(receive, send)| receive.min(send)) else {
        return skip("the kernel does not show net.core.rmem_max and wmem_max");
    };
    let daemon = Daemon::start(&["--socket-buffer", &(max + 1).to_string()]);
    let warning =
        format!("the kernel limits --socket-buffer {} to {max} (net.core.rmem_max, net.core.wmem_max)", max + 1);
    daemon.wait_for_log(|line| line.contains("WARN") && line.ends_with(&warning));
}
