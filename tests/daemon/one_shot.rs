//! `--one-shot`: one message and close first, as the tutorial's server does, but without its faults.

use std::io::ErrorKind;
use std::time::Duration;

use rustix::event::PollFlags;

use crate::over_each_kind;
use crate::support::{Client, Daemon, TcpState, eventually, pattern, wait_until};

#[test]
fn one_message_is_echoed_then_daemon_closes_first() {
    over_each_kind(&["--one-shot"], |daemon| {
        for length in [1, 2, 1023, 1024] {
            let client = daemon.connect();
            let message = pattern(length as u64, length);
            client.echo(&message);
            client.expect_fin(); // Ours has not been sent.
        }
        daemon.connect().echo(b"and the daemon serves on");
    });
}

#[test]
fn long_message_is_truncated_and_closed_with_fin() {
    // What is left unread would turn the close into RST, and that would destroy what the peer has not read yet.
    over_each_kind(&["--one-shot"], |daemon| {
        for length in [1025, 3000, 60_000] {
            let client = daemon.connect();
            let message = pattern(length as u64, length);
            daemon.freeze();
            client.send(&message);
            if client.is_tcp() {
                wait_until("all of it waits", || client.remote_socket().is_some_and(|end| end.unread == length));
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
    wait_until("the daemon has closed", || {
        // FIN-WAIT-2 of a socket that no process owns any more: its unread count is gone with it.
        client.remote_socket().is_none_or(|end| end.state == TcpState::FinWait2)
    });
    let error = eventually("the kernel answers with RST", || client.try_send(b"later").err());
    assert!(matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{error}");
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
    // One read of the daemon, which stops before the mark if the urgent byte has come with others.
    let got = client.read_to_end().unwrap();
    assert!(!got.is_empty() && b"urgent".starts_with(&got[..]), "{got:?}");
}

#[test]
fn connections_do_not_wait_for_each_other() {
    // The tutorial's server serves one at a time.
    let daemon = Daemon::start(&["--one-shot"]);
    let silent: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    for number in 0..200 {
        let client = daemon.connect();
        client.echo(&pattern(number, 1000));
        client.expect_fin();
    }
    for client in &silent {
        assert!(!client.wait_for(PollFlags::IN, Duration::ZERO), "a connection without a message was closed");
        client.echo(b"late");
        client.expect_fin();
    }
}

#[test]
fn one_shot_closes_every_descriptor() {
    over_each_kind(&["--one-shot", "-v"], |daemon| {
        daemon.connect().echo(b"the loop is under way");
        wait_until("that connection has gone", || daemon.stderr().contains("closed:"));
        let before = daemon.descriptors().len();
        // The peers stay as they are, our FIN not sent: the daemon does not wait for them.
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        for client in &clients {
            client.echo(b"hello");
            client.expect_fin();
        }
        wait_until("as many descriptors as before", || daemon.descriptors().len() == before);
    });
}
