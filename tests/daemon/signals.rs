//! Signals: graceful shutdown (SIGTERM, SIGINT, SIGHUP), the counters (SIGUSR1), and ignored signals.
//!
//! The tests know for certain which data the kernel held when the signal was sent: they suspend the
//! daemon with SIGSTOP, let the clients send, and read from `/proc/net/tcp` what the daemon's kernel has
//! acknowledged. Then they send the signal, and resume the daemon with SIGCONT.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::support::{
    Client, Daemon, Random, Signal, TIMEOUT, TcpState, assert_same, pattern, peers_of, pending_connections, skip,
    wait_until,
};
use crate::{assert_sleeps, over_each_kind, send_until_unread};

/// Maximum duration of what happens at once: far less than the drain timeout of an hour, and far more
/// than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(10);

#[track_caller]
fn assert_at_once(start: Instant) {
    let elapsed = start.elapsed();
    assert!(elapsed < AT_ONCE, "the daemon should exit at once, not after {elapsed:?}");
}

/// Returns the number of bytes that the client has sent and the daemon's kernel has not acknowledged.
fn unacknowledged(client: &Client) -> usize {
    client.local_socket().map_or(0, |socket| socket.unacknowledged)
}

// Phase 1: pending connections are accepted, then the listeners close.

#[test]
fn pending_connections_are_served_at_shutdown() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        daemon.freeze();
        let clients: Vec<(Client, Vec<u8>)> =
            (0..200).map(|number| (daemon.connect(), pattern(number, 500 + number as usize))).collect();
        for (number, (client, bytes)) in clients.iter().enumerate() {
            client.send(bytes);
            if number % 2 == 0 {
                client.send_fin();
            }
        }
        if clients[0].0.is_tcp() {
            assert_eq!(pending_connections(daemon.tcp()), 200, "all connections should be in the backlog");
        }
        daemon.signal(Signal::TERM);
        daemon.thaw();
        for (client, bytes) in &clients {
            client.expect(bytes);
            client.expect_fin();
        }
        drop(clients);
        daemon.expect_success();
    });
}

#[test]
fn shutdown_serves_connections_pending_at_the_limit() {
    over_each_kind(&["--drain-timeout", "1h", "--max-connections", "1"], |daemon| {
        let silent = daemon.connect();
        silent.echo(b"the only one allowed");
        let waiting: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
        for client in &waiting {
            client.send(b"hello");
        }
        daemon.signal(Signal::TERM);
        for client in &waiting {
            client.expect(b"hello");
            client.expect_fin();
        }
        silent.expect_fin();
        drop((silent, waiting));
        daemon.expect_success();
    });
}

#[test]
fn shutdown_serves_pending_connections_as_descriptors_become_free() {
    for drain_timeout in ["0", "1s"] {
        let mut daemon = Daemon::with(&["--drain-timeout", drain_timeout]).nofile(24).start();
        let clients: Vec<Client> = (0..40).map(|_| daemon.connect()).collect();
        for client in &clients {
            client.send(b"hello");
        }
        daemon.signal(Signal::TERM);
        for client in &clients {
            client.expect(b"hello");
        }
        daemon.expect_success();
    }
}

#[test]
fn immediate_shutdown_does_not_reset_one_shot_echo() {
    let mut daemon = Daemon::start(&["--one-shot", "--drain-timeout", "0", "--buffer-size", "16", "-v"]);
    let client = daemon.connect();
    daemon.wait_for_log_text("opened");
    daemon.freeze();
    client.send(&pattern(1, 60_000));
    daemon.signal(Signal::TERM);
    daemon.thaw();
    client.expect(&pattern(1, 16));
    client.expect_fin();
    daemon.expect_success();
    // The client cannot observe a reset that arrives after the FIN, so check the close reason in the log.
    let log = daemon.whole_stderr();
    assert!(log.contains("closed: one_shot"), "expected the close reason one_shot in the log:\n{log}");
}

#[test]
fn listeners_close_while_drain_waits_for_connections() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(Signal::TERM);
        client.expect_fin();
        let result = Client::try_connect(daemon.address()).map(drop);
        let error = result.expect_err("a new connection should be refused after the listener has closed");
        let refused = [std::io::ErrorKind::ConnectionRefused, std::io::ErrorKind::NotFound];
        assert!(refused.contains(&error.kind()), "expected ECONNREFUSED or ENOENT, got: {error}");
        daemon.expect_running();
        client.send_fin();
        daemon.expect_success();
    });
}

#[test]
fn reconnect_after_shutdown_fin_is_refused() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.freeze();
        let waiting: Vec<Client> = (0..300).map(|_| daemon.connect()).collect(); // More than one iteration accepts.
        daemon.signal(Signal::TERM);
        daemon.thaw();
        client.expect_fin();
        let reconnect = Client::try_connect(daemon.address());
        assert!(
            reconnect.is_err(),
            "a client that has seen the FIN should not get into the closing listener's backlog"
        );
        waiting.iter().for_each(Client::expect_fin);
        drop((client, waiting));
        daemon.expect_success();
    });
}

// Phase 2: everything that the kernel held when the signal was handled is echoed.

#[test]
fn data_received_before_signal_is_echoed() {
    let seed = 1;
    let mut random = Random::new(seed);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        // With a buffer this small, most of the data is still unread when the signal is handled.
        let mut daemon = Daemon::start(&["--drain-timeout", "1h", "--buffer-size", "1024"]);
        if signal == Signal::HUP && ignores(&daemon, 1) {
            return skip("SIGHUP was already ignored when the test started, as under nohup");
        }
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        for (number, client) in clients.iter().enumerate() {
            client.echo(&pattern(number as u64, 1000)); // Accepted, and idle when the daemon is suspended.
        }
        daemon.freeze();
        let held: Vec<Vec<u8>> = (0..50).map(|number| pattern(number, random.between(1, 40_000))).collect();
        for (number, (client, bytes)) in clients.iter().zip(&held).enumerate() {
            client.send(bytes);
            if number % 3 == 0 {
                client.send_fin();
            }
        }
        wait_until("the daemon's kernel has acknowledged all data", || {
            peers_of(daemon.tcp()).iter().all(|peer| peer.unacknowledged == 0)
        });
        daemon.signal(signal);
        daemon.thaw();
        for (client, bytes) in clients.iter().zip(&held) {
            assert_same(&client.read_to_end().unwrap(), bytes);
        }
        drop(clients);
        daemon.expect_success();
    }
}

#[test]
fn data_from_stalled_peer_is_echoed_after_signal() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let block = pattern(3, 1 << 16);
    let clients: Vec<(Client, usize)> = (0..5)
        .map(|_| {
            let client = Client::connect_with_small_buffers(daemon.address());
            let sent = client.send_until_stalled(&block, Duration::from_millis(100), 64 << 20);
            (client, sent)
        })
        .collect();
    daemon.freeze();
    let held: Vec<usize> = clients.iter().map(|(client, sent)| sent - unacknowledged(client)).collect();
    daemon.signal(Signal::TERM);
    daemon.thaw();
    for ((client, sent), held) in clients.iter().zip(held) {
        let expected: Vec<u8> = block.iter().copied().cycle().take(*sent).collect();
        assert_prefix(&client.read_to_end().unwrap(), &expected, held);
        client.send_fin();
    }
    daemon.expect_success();
}

/// Asserts that the echo is a prefix of the data sent, and at least `held` bytes long: what the daemon's
/// kernel held at the signal.
#[track_caller]
fn assert_prefix(got: &[u8], sent: &[u8], held: usize) {
    assert!(got.len() <= sent.len(), "got {} bytes, more than the {} sent", got.len(), sent.len());
    assert_same(got, &sent[..got.len()]);
    assert!(got.len() >= held, "expected the {held} bytes that the kernel held at the signal, got {}", got.len());
}

#[test]
fn shutdown_under_load_loses_no_received_byte() {
    over_each_kind(&["--drain-timeout", "1h"], shut_down_under_load);
}

#[test]
fn endless_sender_cannot_delay_its_fin() {
    // With a buffer this small, the clients send faster than the daemon can read, so it never finds a queue empty.
    over_each_kind(&["--drain-timeout", "1h", "--buffer-size", "16"], shut_down_under_load);
}

/// Sends SIGTERM to a daemon whose clients send without a pause, also after the signal. Asserts that each
/// of them promptly gets the rest of its echo and a FIN, and no reset.
fn shut_down_under_load(daemon: &mut Daemon) {
    let sent: Vec<AtomicUsize> = (0..8).map(|_| AtomicUsize::new(0)).collect();
    let block = pattern(4, 1 << 16);
    let clients: Vec<Client> = sent.iter().map(|_| daemon.connect()).collect();
    thread::scope(|scope| {
        let (block, daemon) = (&block, &*daemon);
        let readers: Vec<_> = clients
            .iter()
            .zip(&sent)
            .map(|(client, sent)| {
                scope.spawn(move || send_until_closed(client, sent, block));
                scope.spawn(move || {
                    let got = client.read_to_end();
                    let closed = Instant::now();
                    sent.fetch_or(FIN_SEEN, Ordering::Relaxed);
                    got.map(|got| (got, closed))
                })
            })
            .collect();
        wait_until("every client has sent more than 200,000 bytes", || {
            sent.iter().all(|sent| sent.load(Ordering::Relaxed) > 200_000)
        });

        daemon.freeze();
        // A lower bound: the number of unacknowledged bytes is read after the number of sent bytes, and may have grown
        // in between.
        let held: Vec<usize> = clients
            .iter()
            .zip(&sent)
            .map(|(client, sent)| {
                let sent = sent.load(Ordering::Relaxed);
                // A Unix socket puts the data directly into the receive buffer of the other end.
                let in_flight = if client.is_tcp() { unacknowledged(client) } else { 0 };
                sent.saturating_sub(in_flight)
            })
            .collect();
        daemon.signal(Signal::TERM);
        let signaled = Instant::now();
        daemon.thaw();

        for ((reader, held), sent) in readers.into_iter().zip(held).zip(&sent) {
            let (got, closed) = reader.join().unwrap().expect("the daemon should send FIN, and no reset");
            let delay = closed.duration_since(signaled);
            assert!(delay < AT_ONCE, "a client that keeps sending should get its FIN at once, not after {delay:?}");
            let sent = sent.load(Ordering::Relaxed) & !FIN_SEEN;
            let expected: Vec<u8> = block.iter().copied().cycle().take(sent.max(got.len())).collect();
            assert_prefix(&got, &expected, held);
        }
    });
    drop(clients);
    daemon.expect_success();
}

/// A flag in a client's count of sent bytes: its reader has seen the daemon's FIN.
const FIN_SEEN: usize = 1 << 63;

/// Sends without a pause. Sends FIN after another 200,000 bytes once the daemon's FIN has arrived.
fn send_until_closed(client: &Client, sent: &AtomicUsize, block: &[u8]) {
    let (start, mut sent_after_fin) = (Instant::now(), 0);
    while sent_after_fin < 200_000 {
        let total = sent.load(Ordering::Relaxed) & !FIN_SEEN;
        assert!(start.elapsed() < 2 * TIMEOUT, "the daemon should have sent FIN; {total} bytes sent so far");
        let before = sent.load(Ordering::Relaxed);
        let offset = (before & !FIN_SEEN) % block.len();
        client.wait_for(PollFlags::OUT, Duration::from_millis(100));
        let accepted = client.try_send(&block[offset..]).expect("the daemon should discard data sent after its FIN");
        sent.fetch_add(accepted, Ordering::Relaxed);
        if before & FIN_SEEN != 0 {
            sent_after_fin += accepted;
        }
    }
    client.send_fin();
}

// Phase 3: the daemon sends FIN, and discards data until the peer's FIN.

#[test]
fn drain_ends_when_peers_close() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let clients: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.echo(b"hello"));
        daemon.signal(Signal::TERM);
        clients.iter().for_each(Client::expect_fin);
        let start = Instant::now();
        clients.iter().for_each(Client::send_fin);
        daemon.expect_success();
        assert_at_once(start);
    });
}

#[test]
fn data_after_our_fin_is_discarded() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(Signal::TERM);
        client.expect_fin();
        client.send(&pattern(5, 4 << 20)); // More than all kernel buffers hold, so the daemon has to read it.
        daemon.expect_running();
        client.send_fin();
        daemon.expect_success();
        client.expect_fin(); // And not a reset.
    });
}

#[test]
fn drain_without_connections_ends_at_once() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let start = Instant::now();
    daemon.terminate();
    assert_at_once(start);
}

#[test]
fn drain_timeout_closes_remaining_connections() {
    over_each_kind(&["--drain-timeout", "1s"], |daemon| {
        let silent = daemon.connect();
        silent.echo(b"silent");
        let stalled = Client::connect_with_small_buffers(daemon.address());
        stalled.send_until_stalled(&pattern(6, 1 << 16), Duration::from_millis(100), 64 << 20);
        let sending = daemon.connect();
        sending.echo(b"sending");
        let start = Instant::now();
        daemon.signal(Signal::TERM);
        thread::scope(|scope| {
            scope.spawn(|| {
                while sending.try_send(&[0; 1000]).is_ok() && start.elapsed() < AT_ONCE {
                    sending.wait_for(PollFlags::OUT, Duration::from_millis(100));
                }
            });
            silent.expect_fin();
            daemon.expect_success();
        });
        let elapsed = start.elapsed();
        assert!(elapsed >= Duration::from_millis(950), "exited after {elapsed:?}, before the drain timeout of 1 s");
        assert!(elapsed < Duration::from_secs(3), "exited after {elapsed:?}, long after the drain timeout of 1 s");
    });
}

#[test]
fn waiting_drain_uses_no_cpu() {
    let daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"hello"));
    let stalled = Client::connect_with_small_buffers(daemon.address());
    stalled.send_until_stalled(&pattern(7, 1 << 16), Duration::from_millis(100), 64 << 20);
    daemon.signal(Signal::TERM);
    clients.iter().for_each(Client::expect_fin);
    assert_sleeps(&daemon);
}

#[test]
fn zero_drain_timeout_echoes_received_data_without_waiting() {
    // With a buffer this small, echoing takes more than one iteration.
    over_each_kind(&["--drain-timeout", "0", "--buffer-size", "1024"], |daemon| {
        let open = daemon.connect();
        open.echo(b"open");
        let silent = daemon.connect();
        silent.echo(b"silent");
        let stalled = Client::connect_with_small_buffers(daemon.address());
        stalled.send_until_stalled(&pattern(8, 1 << 16), Duration::from_millis(100), 64 << 20);
        let held = pattern(9, 30_000);
        daemon.freeze();
        open.send(&held);
        let queued = daemon.connect();
        queued.send(&held);
        daemon.signal(Signal::TERM);
        let start = Instant::now();
        daemon.thaw();
        daemon.expect_success(); // Although no client has sent FIN.
        assert_at_once(start);
        for client in [open, queued] {
            client.expect(&held);
            client.expect_fin();
        }
        silent.expect_fin();
    });
}

#[test]
fn second_signal_exits_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::TERM, Signal::INT), (Signal::INT, Signal::TERM)] {
        let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(first);
        client.expect_fin();
        daemon.expect_running();
        let start = Instant::now();
        daemon.signal(second);
        daemon.expect_success();
        assert_at_once(start);
    }
}

#[test]
fn second_signal_exits_despite_pending_connections() {
    let mut daemon = Daemon::with(&["--drain-timeout", "1h"]).nofile(24).start();
    let clients: Vec<Client> = (0..40).map(|_| daemon.connect()).collect();
    clients[0].echo(b"hello");
    daemon.signal(Signal::TERM);
    clients[0].expect_fin();
    daemon.expect_running();
    daemon.signal(Signal::TERM);
    daemon.expect_success();
}

#[test]
fn half_closed_stalled_peer_gets_full_echo() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let client = Client::connect_with(daemon.address(), |socket| socket.set_recv_buffer_size(8192)).unwrap();
    let portion = pattern(10, 40_000);
    let sent = send_until_unread(&client, &portion);
    client.send_fin();
    wait_until("the daemon has unread data and a FIN", || {
        client.remote_socket().is_some_and(|socket| socket.state == TcpState::CloseWait && socket.unread > 1)
    });
    daemon.signal(Signal::TERM);
    daemon.wait_for_log_text("SIGTERM");
    let expected: Vec<u8> = portion.iter().copied().cycle().take(sent).collect();
    assert_same(&client.read_to_end().unwrap(), &expected);
    daemon.expect_success();
}

// The other signals.

#[test]
fn sigusr1_prints_counters_at_any_log_level() {
    for (arguments, filter) in [(&[][..], "info"), (&["-q"], "off"), (&["-vv"], "error")] {
        let daemon = Daemon::with(arguments).env("RUST_LOG", filter).start();
        let clients: Vec<Client> = (0..7).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.echo(b"hello"));
        daemon.signal(Signal::USR1);
        let line = daemon.wait_for_log(|line| line.contains("accepted"));
        assert!(line.contains(" 7 accepted"), "the counters should report seven accepted connections: {line:?}");
        // The daemon continues to serve, and prints the counters for each signal.
        clients.iter().for_each(|client| client.echo(b"still here"));
        daemon.signal(Signal::USR1);
        wait_until("the counters are printed a second time", || daemon.stderr().matches("accepted").count() >= 2);
        assert_eq!(daemon.stdout().lines().count(), 1, "the counters should not go to stdout");
    }
}

#[test]
fn sighup_shuts_down_like_sigterm() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    if ignores(&daemon, 1) {
        return skip("SIGHUP was already ignored when the test started, as under nohup");
    }
    let client = daemon.connect();
    client.echo(b"hello");
    daemon.signal(Signal::HUP);
    client.expect_fin();
    daemon.expect_running();
    client.send_fin();
    daemon.expect_success();
}

#[test]
fn ignored_sighup_stays_ignored() {
    // Like nohup(1).
    let mut daemon = Daemon::with(&["--drain-timeout", "0"]).shell("trap '' HUP; exec \"$@\"").start();
    let client = daemon.connect();
    client.echo(b"before");
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        client.echo(b"and after");
    }
    assert!(ignores(&daemon, 1), "SIGHUP should still be in SigIgn");
    daemon.close_and_terminate(client);
}

#[test]
fn sigpipe_is_ignored() {
    let daemon = Daemon::start(&[]);
    assert!(ignores(&daemon, 13), "SIGPIPE should be in SigIgn");
    let client = daemon.connect();
    daemon.signal(Signal::PIPE);
    client.echo(b"still here");
}

/// Returns whether the daemon ignores the signal with this number (SigIgn in `/proc/PID/status`).
fn ignores(daemon: &Daemon, number: u32) -> bool {
    let mask = u64::from_str_radix(&daemon.status_text("SigIgn"), 16).expect("SigIgn should be a hexadecimal mask");
    mask >> (number - 1) & 1 == 1
}
