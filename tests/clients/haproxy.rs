//! HAProxy in front of two daemons, with the configuration file from `packaging`; only its addresses are
//! replaced.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::is_installed;
use crate::support::{Address, Client, Daemon, Directory, Signal, assert_same, pattern, tcp_socket, wait_until};

/// A running HAProxy. Killed when dropped.
struct Proxy {
    child: Child,
    address: Address,
    _directory: Directory,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns a free port on a loopback address that nothing else uses, so that the port stays free until
/// HAProxy binds it.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.77:0").unwrap().local_addr().unwrap()
}

/// Returns the configuration from `packaging` with the addresses of this test. Each server is a pair of its
/// echo address and its metrics address, which HAProxy uses for health checks.
fn configuration(front: SocketAddr, servers: &[(SocketAddr, SocketAddr)]) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("packaging/haproxy.cfg");
    let shipped = fs::read_to_string(path).unwrap();
    let (mut lines, mut servers) = (Vec::new(), servers.iter());
    for line in shipped.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["bind", ..] => lines.push(format!("    bind {front}")),
            // The test does not need a log.
            ["log", target, ..] if target.starts_with('/') => {}
            ["server", name, _] => {
                let (echo, health) = servers.next().expect("the file should not have more servers than the test");
                lines.push(format!("    server {name} {echo} addr {} port {}", health.ip(), health.port()));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    assert!(servers.next().is_none(), "the file should have a server for each daemon of the test");
    lines.push(String::new());
    lines.join("\n")
}

/// Starts HAProxy with these servers, and waits until it listens.
fn start(servers: &[&Daemon]) -> Proxy {
    let addresses: Vec<(SocketAddr, SocketAddr)> = servers
        .iter()
        .map(|daemon| match daemon.addresses() {
            [Address::Tcp(echo), Address::Http(health)] => (*echo, *health),
            other => panic!("expected an echo address and a metrics address, got {other:?}"),
        })
        .collect();
    let front = free_address();
    let directory = Directory::new();
    let file = directory.join("haproxy.cfg");
    fs::write(&file, configuration(front, &addresses)).unwrap();
    let check = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output().unwrap();
    assert!(check.status.success(), "invalid configuration: {}", String::from_utf8_lossy(&check.stderr));
    let mut command = Command::new("haproxy");
    let child = command.args(["-db", "-f"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let proxy = Proxy { child, address: front.into(), _directory: directory };
    wait_until("HAProxy listens on its address", || is_listening(front));
    proxy
}

fn is_listening(address: SocketAddr) -> bool {
    let unspecified = SocketAddr::from(([0, 0, 0, 0], 0)); // The remote address of a listening socket.
    tcp_socket(address, unspecified).is_some()
}

fn daemon() -> Daemon {
    Daemon::with(&["-v", "--metrics", "127.0.0.1:0"]).listeners(2).start()
}

#[test]
fn half_close_through_haproxy_returns_full_echo() {
    if !is_installed("haproxy") {
        return;
    }
    let servers = [daemon(), daemon()];
    let proxy = start(&[&servers[0], &servers[1]]);
    for (round, length) in [0, 1, 5, 100_000, 8 << 20].into_iter().enumerate() {
        let bytes = pattern(round as u64, length);
        let client = Client::connect(&proxy.address);
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&bytes);
                client.send_fin();
            });
            assert_same(&client.read_to_end().unwrap(), &bytes);
        });
    }
    for server in &servers {
        // A client that sends FIN without data may be gone before HAProxy has connected to a server. HAProxy then
        // resets the connection to the server.
        let log = server.stderr();
        let is_failure = |line: &&str| line.contains("closed: reset") || line.contains("closed: error");
        let only_empty = log.lines().filter(is_failure).all(|line| line.contains(" 0 bytes in"));
        assert!(only_empty, "only a connection without data may be reset:\n{log}");
    }
}

#[test]
fn long_lived_connections_through_haproxy_close_cleanly() {
    if !is_installed("haproxy") {
        return;
    }
    let servers = [daemon(), daemon()];
    let proxy = start(&[&servers[0], &servers[1]]);
    let clients: Vec<Client> = (0..20).map(|_| Client::connect(&proxy.address)).collect();
    for round in 0..5 {
        for (number, client) in clients.iter().enumerate() {
            client.echo(&pattern(round * 100 + number as u64, 1000));
        }
    }
    clients.iter().for_each(Client::send_fin);
    clients.iter().for_each(Client::expect_fin);
    let finished = |server: &Daemon| server.stderr().matches("closed: finished").count();
    wait_until("all 20 connections are finished, at least 5 on each server", || {
        let counts = [finished(&servers[0]), finished(&servers[1])];
        counts.iter().all(|&count| count >= 5) && counts.iter().sum::<usize>() >= 20
    });
}

#[test]
fn haproxy_avoids_draining_daemon_without_losing_bytes() {
    if !is_installed("haproxy") {
        return;
    }
    let mut servers = [daemon(), daemon()];
    let proxy = start(&[&servers[0], &servers[1]]);
    let old: Vec<Client> = (0..10).map(|_| Client::connect(&proxy.address)).collect();
    old.iter().for_each(|client| client.echo(b"before"));
    servers[0].signal(Signal::TERM);
    // A connection that reaches the backlog before the listener closes gets a FIN, and no echo of what it sends later.
    wait_until("the first server has closed its listener", || !is_listening(servers[0].tcp()));
    // Until the health check notices that, `option redispatch` sends new connections to the second server.
    for round in 0..10 {
        let client = Client::connect(&proxy.address);
        client.echo(&pattern(round, 1000));
        client.send_fin();
        client.expect_fin();
    }
    old.iter().for_each(Client::send_fin);
    old.iter().for_each(Client::expect_fin);
    servers[0].expect_success();
    servers[1].expect_running();
}
