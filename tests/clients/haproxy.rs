//! HAProxy in front of two daemons, with the configuration that we ship (only its addresses are changed).

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;

use crate::is_there;
use crate::support::{Address, Client, Daemon, Directory, assert_same, pattern, tcp_socket, wait_until};

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

/// An address that nobody has: on a loopback address of our own, so that nobody takes the port in between.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.77:0").unwrap().local_addr().unwrap()
}

/// Our configuration, with what it has of addresses replaced: where it listens, and where the servers are.
fn configuration(front: SocketAddr, servers: &[(SocketAddr, SocketAddr)]) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("packaging/haproxy.cfg");
    let shipped = fs::read_to_string(path).unwrap();
    let (mut lines, mut servers) = (Vec::new(), servers.iter());
    for line in shipped.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        match words[..] {
            ["bind", ..] => lines.push(format!("    bind {front}")),
            // The log of a test goes nowhere.
            ["log", target, ..] if target.starts_with('/') => {}
            ["server", name, _] => {
                let (echo, health) = servers.next().expect("as many daemons as servers in the file");
                lines.push(format!("    server {name} {echo} addr {} port {}", health.ip(), health.port()));
            }
            _ => lines.push(line.to_owned()),
        }
    }
    assert!(servers.next().is_none(), "as many servers in the file as daemons");
    lines.push(String::new());
    lines.join("\n")
}

fn start(servers: &[&Daemon]) -> Proxy {
    let addresses: Vec<(SocketAddr, SocketAddr)> = servers
        .iter()
        .map(|daemon| match daemon.addresses() {
            [Address::Tcp(echo), Address::Http(health)] => (*echo, *health),
            other => panic!("{other:?}"),
        })
        .collect();
    let front = free_address();
    let directory = Directory::new();
    let file = directory.join("haproxy.cfg");
    fs::write(&file, configuration(front, &addresses)).unwrap();
    let check = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output().unwrap();
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
    let mut command = Command::new("haproxy");
    let child = command.args(["-db", "-f"]).arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let proxy = Proxy { child, address: front.into(), _directory: directory };
    let nobody = SocketAddr::from(([0, 0, 0, 0], 0));
    wait_until("HAProxy listens", || tcp_socket(front, nobody).is_some());
    proxy
}

fn daemon() -> Daemon {
    Daemon::with(&["-v", "--metrics", "127.0.0.1:0"]).listeners(2).start()
}

#[test]
fn half_close_through_haproxy_returns_full_echo() {
    if !is_there("haproxy") {
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
        // A peer that says nothing and finishes may be gone before HAProxy has reached a server; it then resets that one.
        let log = server.stderr();
        let broken = |line: &&str| line.contains("closed: reset") || line.contains("closed: error");
        assert!(log.lines().filter(broken).all(|line| line.contains(" 0 bytes in")), "{log}");
    }
}

#[test]
fn long_lived_connections_through_haproxy_close_cleanly() {
    if !is_there("haproxy") {
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
    let ends = |server: &Daemon| server.stderr().matches("closed: finished").count();
    wait_until("both have had some, and all have finished", || {
        ends(&servers[0]) >= 5 && ends(&servers[1]) >= 5 && ends(&servers[0]) + ends(&servers[1]) >= 20
    });
}

#[test]
fn haproxy_avoids_draining_daemon_without_losing_bytes() {
    if !is_there("haproxy") {
        return;
    }
    let mut servers = [daemon(), daemon()];
    let proxy = start(&[&servers[0], &servers[1]]);
    let old: Vec<Client> = (0..10).map(|_| Client::connect(&proxy.address)).collect();
    old.iter().for_each(|client| client.echo(b"before"));
    servers[0].signal(crate::support::Signal::TERM);
    // The listener of the first is closed: `redispatch` takes newcomers to the second until the health check knows.
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
