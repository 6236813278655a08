//! The tail of an echo: what the kernel still has to deliver when both sides have nothing more to say.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, Signal, TIMEOUT, assert_same, pattern, wait_until};

/// More than the kernel delivers to a client with a small receive buffer that does not read.
const TAIL: usize = 60_000;

/// Connects a client with a small receive buffer, but with room to send at once.
fn small_receiver(daemon: &Daemon) -> Client {
    Client::connect_with(daemon.address(), |socket| socket.set_recv_buffer_size(2304)).expect("connection")
}

/// Has the daemon take in `bytes` and write them to its socket, though the client does not read.
fn leave_tail(client: &Client, bytes: &[u8]) {
    client.send(bytes);
    wait_until("the echo is in the daemon's send queue", || {
        client.remote_socket().is_some_and(|socket| socket.unread == 0 && socket.unacknowledged > bytes.len() / 2)
    });
}

#[test]
fn connection_finishes_only_when_the_tail_is_acknowledged() {
    let daemon = Daemon::start(&["-v"]);
    let client = small_receiver(&daemon);
    let bytes = pattern(1, TAIL);
    leave_tail(&client, &bytes);
    client.send_fin();
    wait_until("the daemon's FIN is in its send queue", || {
        client.remote_socket().is_some_and(|socket| socket.unacknowledged > bytes.len() / 2 && socket.unread == 0)
    });
    thread::sleep(Duration::from_millis(200)); // The point of the test: close(2) would have been called by now.
    assert!(!daemon.stderr().contains("closed: "), "the peer does not have everything yet:\n{}", daemon.stderr());
    assert_eq!(daemon.sockets().len(), 2 + daemon_base(), "the descriptor is kept");
    assert_same(&client.read_to_end().expect("the echo and FIN"), &bytes);
    daemon.wait_for_log_text("closed: finished");
}

/// Returns how many sockets a daemon has besides its listener and one connection: the two ends of the signal pipe.
fn daemon_base() -> usize {
    Daemon::start(&[]).sockets().len() - 1
}

#[test]
fn slow_reader_of_the_tail_is_not_idle() {
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let client = small_receiver(&daemon);
    let bytes = pattern(2, TAIL);
    leave_tail(&client, &bytes);
    let start = Instant::now();
    let mut got = Vec::new();
    while start.elapsed() < Duration::from_secs(3) {
        got.extend(client.read_exactly(1000).expect("bytes"));
        thread::sleep(Duration::from_millis(100));
    }
    assert!(got.len() < bytes.len(), "the tail should last longer than the test");
    assert!(!daemon.stderr().contains("closed: "), "a peer that takes bytes is not idle:\n{}", daemon.stderr());
    got.extend(client.read_exactly(bytes.len() - got.len()).expect("the rest"));
    assert_same(&got, &bytes);
    client.echo(b"alive");
}

#[test]
fn idle_timeout_applies_to_a_tail_that_does_not_move() {
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let client = small_receiver(&daemon);
    leave_tail(&client, &pattern(3, TAIL));
    client.send_fin();
    let start = Instant::now();
    daemon.wait_for_log_text("closed: idle");
    assert!(start.elapsed() < Duration::from_secs(4), "closed {:?} after the FIN", start.elapsed());
}

#[test]
fn drain_timeout_applies_to_a_tail() {
    let mut daemon = Daemon::start(&["-v", "--drain-timeout", "1s"]);
    let client = small_receiver(&daemon);
    leave_tail(&client, &pattern(4, TAIL));
    client.send_fin();
    daemon.signal(Signal::TERM);
    daemon.expect_success();
    assert!(daemon.whole_stderr().contains("closed: cut"), "{}", daemon.whole_stderr());
}

/// Stalls a connection such that the daemon has read everything and holds the rest of the echo in user space. (With bytes unread,
/// close(2) sends RST anyway.) Returns how many bytes the client has sent and how many it has read.
fn stall(daemon: &Daemon) -> (Client, usize, usize) {
    let client = small_receiver(daemon);
    let (mut sent, mut read) =
        (client.send_until_stalled(&pattern(5, 60_000), Duration::from_millis(300), 100 << 20), 0);
    for _ in 0..5000 {
        let socket = client.remote_socket().expect("the daemon's end of the connection");
        let in_user_space = sent.saturating_sub(read + client.unread() + socket.unacknowledged + socket.unread);
        match socket.unread {
            0 if in_user_space > 0 && client.local_socket().is_some_and(|local| local.unacknowledged == 0) => {
                return (client, sent, read);
            }
            0 => {
                client.send(&[0; 100]);
                sent += 100;
            }
            _ => read += client.read_exactly(client.unread().clamp(1, 1000)).expect("bytes").len(),
        }
        thread::sleep(Duration::from_millis(2));
    }
    panic!("the daemon should hold output in user space");
}

/// Asserts that the client cannot take what it has received for a complete echo.
fn assert_reset(client: &Client, missing: usize) {
    let (got, end) = client.read_until_closed();
    assert!(got.len() < missing, "the echo is partial");
    let error = end.expect_err("a reset, not a FIN");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn stalled_connection_closed_as_idle_is_reset() {
    let daemon = Daemon::start(&["-v", "--idle-timeout", "2s"]);
    let (client, sent, read) = stall(&daemon);
    client.send_fin();
    daemon.wait_for_log_text("closed: idle");
    assert_reset(&client, sent - read);
}

#[test]
fn stalled_connection_cut_in_a_drain_is_reset() {
    let mut daemon = Daemon::start(&["-v", "--drain-timeout", "500ms"]);
    let (client, sent, read) = stall(&daemon);
    client.send_fin();
    daemon.signal(Signal::TERM);
    daemon.expect_success();
    assert_reset(&client, sent - read);
}

#[test]
fn fin_waiting_behind_unread_bytes_counts_as_finished() {
    let mut daemon = Daemon::start(&["-v"]);
    let client = daemon.connect();
    client.echo(b"open");
    daemon.freeze();
    client.send(b"the last bytes");
    client.send_fin();
    daemon.signal(Signal::TERM);
    daemon.thaw();
    client.expect(b"the last bytes");
    client.expect_fin();
    assert!(daemon.wait_exit(TIMEOUT).success());
    assert!(daemon.whole_stderr().contains("closed: finished"), "{}", daemon.whole_stderr());
}
