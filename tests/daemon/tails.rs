//! The tail of an echo: what the kernel still has to deliver when both sides have nothing more to say.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Address, Client, Daemon, Signal, TIMEOUT, assert_same, pattern, wait_until};

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
fn connection_finishes_when_tail_is_acknowledged() {
    let daemon = Daemon::start(&["-v"]);
    let client = small_receiver(&daemon);
    let bytes = pattern(1, TAIL);
    leave_tail(&client, &bytes);
    let descriptors = daemon.descriptors().len();
    client.send_fin();
    wait_until("the daemon's FIN is in its send queue", || {
        client.remote_socket().is_some_and(|socket| socket.unacknowledged > bytes.len() / 2 && socket.unread == 0)
    });
    thread::sleep(Duration::from_millis(200)); // The point of the test: close(2) would have been called by now.
    assert!(!daemon.stderr().contains("closed: "), "the peer does not have everything yet:\n{}", daemon.stderr());
    assert_eq!(daemon.descriptors().len(), descriptors, "the descriptor is kept");
    assert_same(&client.read_to_end().expect("the echo and FIN"), &bytes);
    daemon.wait_for_log_text("closed: finished");
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
fn stuck_tail_is_closed_as_idle() {
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
/// close(2) sends RST anyway.) Returns how many bytes the client has sent.
fn stall(daemon: &Daemon) -> (Client, usize) {
    let client = small_receiver(daemon);
    let block = pattern(5, 50_000);
    for count in 1..100 {
        daemon.freeze(); // So that a single read gets the whole block.
        client.send(&block);
        wait_until("the block has arrived", || {
            client.remote_socket().is_some_and(|socket| socket.unread == block.len())
        });
        daemon.thaw();
        wait_until("the block is read", || client.remote_socket().is_some_and(|socket| socket.unread == 0));
        if has_stalled_connection(daemon) {
            return (client, count * block.len());
        }
    }
    panic!("the daemon should hold output in user space");
}

fn has_stalled_connection(daemon: &Daemon) -> bool {
    let Some(Address::Http(metrics)) = daemon.addresses().last() else { panic!("--metrics") };
    let mut request = TcpStream::connect(metrics).expect("metrics endpoint");
    request.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").expect("request");
    let mut page = String::new();
    request.read_to_string(&mut page).expect("metrics");
    page.contains("\nechod_stalled_connections 1\n")
}

/// Asserts that the client cannot take what it has received for a complete echo.
fn assert_reset(client: &Client, sent: usize) {
    let (got, end) = client.read_until_closed();
    assert!(got.len() < sent, "the echo should be partial: {} of {sent} bytes, then {end:?}", got.len());
    let error = end.expect_err("a reset, not a FIN");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
}

#[test]
fn stalled_connection_closed_as_idle_is_reset() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", "-v", "--idle-timeout", "2s"]);
    let (client, sent) = stall(&daemon);
    client.send_fin();
    daemon.wait_for_log_text("closed: idle");
    assert_reset(&client, sent);
}

#[test]
fn stalled_connection_cut_in_a_drain_is_reset() {
    let mut daemon =
        Daemon::start(&["--listen=127.0.0.1:0", "--metrics=127.0.0.1:0", "-v", "--drain-timeout", "500ms"]);
    let (client, sent) = stall(&daemon);
    client.send_fin();
    daemon.signal(Signal::TERM);
    daemon.expect_success();
    assert_reset(&client, sent);
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
