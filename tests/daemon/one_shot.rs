//! `--one-shot`: echo one message, then close first, like the tutorial's server but without its defects.

use std::io::ErrorKind;

use crate::over_each_kind;
use crate::support::{Client, Daemon, TcpState, eventually, pattern, wait_until};

#[test]
fn one_message_is_echoed_then_daemon_closes_first() {
    over_each_kind(&["--one-shot"], |daemon| {
        for length in [1, 2, 1023, 1024] {
            let client = daemon.connect();
            let message = pattern(length as u64, length);
            client.echo(&message);
            client.expect_fin(); // The client has not sent its FIN.
        }
        daemon.connect().echo(b"still serving");
    });
}

#[test]
fn long_message_is_truncated_and_closed_with_fin() {
    // Closing a socket with unread data sends RST, and the client's kernel would then discard the echo that the client
    // has not read yet.
    over_each_kind(&["--one-shot"], |daemon| {
        for length in [1025, 3000, 60_000] {
            let client = daemon.connect();
            let message = pattern(length as u64, length);
            daemon.freeze();
            client.send(&message);
            if client.is_tcp() {
                wait_until("the whole message is in the daemon's receive buffer", || {
                    client.remote_socket().is_some_and(|socket| socket.unread == length)
                });
            }
            daemon.thaw();
            client.expect(&message[..1024]);
            client.expect_fin();
        }
    });
}

#[test]
fn data_after_close_is_answered_with_rst() {
    let daemon = Daemon::start(&["--one-shot"]);
    let client = daemon.connect();
    client.echo(b"hello");
    client.expect_fin();
    // FIN-WAIT-2 of a socket that no process owns any more.
    wait_until("the daemon's socket is in FIN-WAIT-2 or gone", || {
        client.remote_socket().is_none_or(|socket| socket.state == TcpState::FinWait2)
    });
    let error = eventually("a send fails because the kernel has answered with RST", || client.try_send(b"later").err());
    let is_reset = matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset);
    assert!(is_reset, "expected EPIPE or ECONNRESET, got: {error}");
}

#[test]
fn fin_without_message_is_answered_with_fin() {
    over_each_kind(&["--one-shot"], |daemon| {
        let client = daemon.connect();
        client.send_fin();
        client.expect_fin();
    });
}

#[test]
fn message_and_fin_in_one_event_are_served() {
    over_each_kind(&["--one-shot"], |daemon| {
        daemon.freeze();
        let client = daemon.connect();
        client.send(b"hello");
        client.send_fin();
        daemon.thaw();
        client.expect(b"hello");
        client.expect_fin();
    });
}

#[test]
fn urgent_data_is_part_of_the_message() {
    let daemon = Daemon::start(&["--one-shot"]);
    let client = daemon.connect();
    client.send_urgent(b"urgent");
    // The daemon reads once, and a read stops before the urgent mark if other bytes precede it.
    let got = client.read_to_end().unwrap();
    assert!(!got.is_empty() && b"urgent".starts_with(&got[..]), "expected a prefix of \"urgent\", got {got:?}");
}

#[test]
fn connections_do_not_wait_for_each_other() {
    // The tutorial's server serves one connection at a time.
    let daemon = Daemon::start(&["--one-shot"]);
    let silent: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    for number in 0..200 {
        let client = daemon.connect();
        client.echo(&pattern(number, 1000));
        client.expect_fin();
    }
    for client in &silent {
        client.expect_nothing_yet();
        client.echo(b"late");
        client.expect_fin();
    }
}

#[test]
fn one_shot_closes_every_descriptor() {
    over_each_kind(&["--one-shot", "-v"], |daemon| {
        daemon.connect().echo(b"warm up");
        wait_until("the daemon has closed the first connection", || daemon.stderr().contains("closed:"));
        let before = daemon.descriptors().len();
        // The clients do not close their side; the daemon does not wait for that.
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        for client in &clients {
            client.echo(b"hello");
            client.expect_fin();
        }
        wait_until("the daemon has closed all fifty descriptors", || daemon.descriptors().len() == before);
    });
}
