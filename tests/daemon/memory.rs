//! Memory for unsent output: bounded for all connections together, returned, and allowed to run out.

use std::time::Duration;

use crate::support::{Address, Client, Daemon, Directory, pattern, unix, wait_until};

/// Connects `count` clients that send `bytes` and do not read. Returns them when the daemon has taken in what it can.
fn stalled_clients(address: &Address, count: usize, bytes: &[u8]) -> Vec<Client> {
    let connect = || {
        let client = Client::connect_with(address, |socket| {
            socket.set_recv_buffer_size(4096)?;
            socket.set_send_buffer_size(64 * 1024)
        })
        .expect("connection");
        client.socket.set_nonblocking(true).expect("a socket");
        client
    };
    let clients: Vec<Client> = (0..count).map(|_| connect()).collect();
    // Until no client can send any more. What the daemon reads makes room for more.
    for round in 0.. {
        assert!(round < 500, "the clients should stall");
        let mut total = 0;
        for client in &clients {
            while let Ok(count @ 1..) = client.socket.send(bytes) {
                total += count;
            }
        }
        if total == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    clients
}

fn resident_kib(daemon: &Daemon) -> u64 {
    daemon.status_field("VmRSS")
}

#[test]
fn memory_is_returned_after_stalled_peak() {
    const PEERS: usize = 2000;
    const MAX_GROWTH_KIB: u64 = 4 * 1024;
    let daemon = Daemon::start(&["--max-buffered", "1073741824"]);
    daemon.connect().echo(b"warm");
    let before = resident_kib(&daemon);
    let clients = stalled_clients(daemon.address(), PEERS, &pattern(1, 256 * 1024));
    wait_until("a peak", || resident_kib(&daemon) > before + 4 * MAX_GROWTH_KIB);
    drop(clients);
    wait_until("the connections are closed", || daemon.descriptors().len() < 100);
    wait_until("memory is returned", || resident_kib(&daemon) <= before + MAX_GROWTH_KIB);
    daemon.connect().echo(b"alive");
}

#[test]
fn buffered_bytes_of_all_connections_are_bounded() {
    const PEERS: usize = 300;
    const MAX_BUFFERED: usize = 1 << 20;
    let arguments =
        ["--socket-buffer", "4096", "--max-buffered", &MAX_BUFFERED.to_string(), "--metrics", "127.0.0.1:0"];
    let daemon = Daemon::start(&[&["--listen=127.0.0.1:0"][..], &arguments].concat());
    daemon.connect().echo(b"warm");
    let before = resident_kib(&daemon);
    let clients = stalled_clients(daemon.address(), PEERS, &pattern(2, 256 * 1024));
    let growth = (resident_kib(&daemon).saturating_sub(before) * 1024) as usize;
    // The bound, 512 bytes and 100 bytes of state for each connection, and 1 MiB for everything else that is touched for the
    // first time. Without the bound it would be 64 KiB for each, 19 MiB.
    let bound = MAX_BUFFERED + PEERS * (512 + 100) + (1 << 20);
    assert!(growth <= bound, "{growth} bytes for {} stalled peers", clients.len());
    // Near the bound, others are still served.
    daemon.connect().echo(&pattern(3, 100_000));
}

#[test]
fn without_memory_other_connections_are_served() {
    const PEERS: usize = 1000;
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let listen = unix(&path);
    let limit = format!("--as={0}:{0}", 48 << 20);
    let start = Daemon::with(&["--listen", &listen, "--max-connections", "2000", "--max-buffered", "1073741824"]);
    let mut daemon = start.through(&["prlimit", &limit]).start();
    let innocent = daemon.connect();
    innocent.echo(b"before");
    let stalled: Vec<Client> = (0..PEERS)
        .map(|_| {
            let client = daemon.connect();
            client.socket.set_nonblocking(true).expect("a socket");
            client
        })
        .collect();
    let block = pattern(4, 64 * 1024);
    for _ in 0..20 {
        for client in &stalled {
            while let Ok(1..) = client.socket.send(&block) {}
        }
    }
    daemon.expect_running();
    for _ in 0..10 {
        innocent.echo(&pattern(5, 1000));
    }
    daemon.connect().echo(b"new connections, too");
    drop(stalled);
    innocent.exchange(&pattern(6, 1_000_000));
    daemon.expect_running();
}
