//! sd_notify messages, received on a real socket at a path and in the abstract namespace.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::{Address, Client, Daemon, DaemonBuilder, Directory, Signal, TIMEOUT, unix};

/// The service manager's socket.
struct Manager {
    socket: UnixDatagram,
    /// The value of NOTIFY_SOCKET.
    name: String,
    _directory: Directory,
}

impl Manager {
    fn at_a_path() -> Manager {
        let directory = Directory::new();
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Manager { socket, name: path.to_str().unwrap().into(), _directory: directory }
    }

    fn abstract_one() -> Manager {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("echod-test-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        Manager { socket, name: format!("@{name}"), _directory: Directory::new() }
    }

    /// Returns a daemon that is set up to notify this manager, with additional environment variables.
    fn daemon(&self, arguments: &[&str], variables: &[&str]) -> DaemonBuilder {
        let notify = format!("NOTIFY_SOCKET={}", self.name);
        Daemon::with(arguments).through(&[&["env", &notify], variables].concat())
    }

    /// Returns the next message, if one arrives within this time.
    fn next_within(&self, time: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(time)).unwrap();
        let mut message = [0; 4096];
        let length = self.socket.recv(&mut message).ok()?;
        Some(String::from_utf8(message[..length].to_vec()).unwrap())
    }

    /// Waits for a message that contains this line and returns the message.
    #[track_caller]
    fn expect(&self, line: &str) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut others = Vec::new();
        while let Some(left) = deadline.checked_duration_since(Instant::now()) {
            let Some(message) = self.next_within(left.max(Duration::from_millis(1))) else { break };
            if message.lines().any(|other| other == line) {
                return message;
            }
            others.push(message);
        }
        panic!("timed out after {TIMEOUT:?} waiting for {line}; received {others:?}");
    }
}

#[test]
fn ready_follows_bind_and_stopping_follows_sigterm() {
    for manager in [Manager::at_a_path(), Manager::abstract_one()] {
        let directory = Directory::new();
        let path = directory.join("echo.sock");
        let mut daemon = manager.daemon(&["--listen", &unix(&path)], &[]).spawn();
        let first = manager.next_within(TIMEOUT).expect("message");
        assert!(first.lines().any(|line| line == "READY=1"), "{first:?}");
        assert!(first.lines().any(|line| line.starts_with("STATUS=")), "{first:?}");
        let client = Client::connect(&Address::Unix(path)); // After READY, connecting must succeed at once.
        client.echo(b"ready");
        drop(client);

        daemon.signal(Signal::TERM);
        manager.expect("STOPPING=1");
        daemon.expect_success();
    }
}

#[test]
fn stopping_is_sent_when_the_drain_begins() {
    let manager = Manager::at_a_path();
    let mut daemon = manager.daemon(&["--drain-timeout=30s"], &[]).start();
    let peer = daemon.connect();
    peer.echo(b"open");
    manager.expect("READY=1");
    daemon.signal(Signal::TERM);
    let message = manager.expect("STOPPING=1");
    assert!(message.contains("STATUS=draining, 1 connection open"), "{message:?}");
    peer.expect_fin();
    daemon.expect_running();
    drop(peer);
    daemon.expect_success();
}

#[test]
fn status_is_sent_within_5_s_of_a_change() {
    let manager = Manager::at_a_path();
    let daemon = manager.daemon(&[], &[]).start();
    manager.expect("READY=1");
    let mut clients = Vec::new();
    for _ in 0..50 {
        let client = daemon.connect();
        client.echo(b"open");
        clients.push(client);
    }
    let changed = Instant::now();
    manager.expect("STATUS=50 connections open");
    assert!(changed.elapsed() < Duration::from_secs(5), "sent after {:?}", changed.elapsed());

    clients.truncate(1);
    let changed = Instant::now();
    manager.expect("STATUS=1 connection open");
    assert!(changed.elapsed() < Duration::from_secs(5), "sent after {:?}", changed.elapsed());
    // Nothing changes, so nothing is sent.
    assert_eq!(manager.next_within(Duration::from_millis(2500)), None);
}

#[test]
fn watchdog_is_pinged_at_half_its_interval() {
    let manager = Manager::at_a_path();
    let daemon = manager.daemon(&["--drain-timeout=30s"], &["WATCHDOG_USEC=400000"]).start();
    let peer = daemon.connect();
    peer.echo(b"open");
    manager.expect("WATCHDOG=1");
    let pings = |count: u32| {
        let start = Instant::now();
        (0..count).for_each(|_| drop(manager.expect("WATCHDOG=1")));
        start.elapsed() / count
    };
    let between = pings(5);
    assert!((150..350).contains(&between.as_millis()), "expected a ping each 200 ms, got one each {between:?}");

    // A stopped daemon must not be reported as alive by another thread.
    daemon.freeze();
    while manager.next_within(Duration::from_millis(1)).is_some() {}
    assert_eq!(manager.next_within(Duration::from_millis(600)), None);
    daemon.thaw();
    manager.expect("WATCHDOG=1");

    daemon.signal(Signal::TERM);
    manager.expect("STOPPING=1");
    peer.expect_fin();
    let between = pings(3);
    assert!(
        (150..350).contains(&between.as_millis()),
        "expected a ping each 200 ms during the drain, got one each {between:?}"
    );
}

#[test]
fn watchdog_of_another_process_is_not_pinged() {
    let manager = Manager::at_a_path();
    let daemon = manager.daemon(&[], &["WATCHDOG_USEC=100000", "WATCHDOG_PID=1"]).start();
    assert!(!manager.expect("READY=1").contains("WATCHDOG"));
    assert_eq!(manager.next_within(Duration::from_millis(300)), None);
    drop(daemon);
}

#[test]
fn slow_service_manager_does_not_block_and_gets_latest_status() {
    let manager = Manager::at_a_path();
    let mut daemon = manager.daemon(&["--drain-timeout=30s"], &["WATCHDOG_USEC=2000"]).start();
    // With a message each millisecond, the queue is soon full (net.unix.max_dgram_qlen).
    let peer = daemon.connect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(1) {
        peer.echo(b"still echoed");
    }
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(50), "{cpu:?} of CPU while the manager does not read");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    manager.expect("STOPPING=1");
    drop(peer);
    daemon.expect_success();
}

#[test]
fn missing_service_manager_causes_one_warning() {
    for name in ["/nowhere/notify", "@echod-test-missing", "relative", "vsock:2:1"] {
        let variable = format!("NOTIFY_SOCKET={name}");
        let mut daemon = Daemon::with(&[]).through(&["env", &variable, "WATCHDOG_USEC=20000"]).start();
        daemon.wait_for_log(|line| line.contains("WARN") && line.contains("cannot notify the service manager"));
        daemon.connect().echo(b"still served");
        daemon.terminate();
        let log = daemon.whole_stderr();
        assert_eq!(log.matches("cannot notify").count(), 1, "{log}");
    }
}

#[test]
fn idle_notifier_does_not_wake_the_loop() {
    let manager = Manager::at_a_path();
    let daemon = manager.daemon(&[], &[]).start();
    daemon.connect().echo(b"hello");
    manager.expect("READY=1");
    while manager.next_within(Duration::from_millis(2500)).is_some() {}
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while nothing happens");
}
