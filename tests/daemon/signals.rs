//! The contract's section "Signals".
//!
//! What the kernel holds at a signal is made certain, not likely: the daemon is stopped with SIGSTOP, the peers send,
//! and `/proc/net/tcp` tells what the daemon's kernel has acknowledged. Then comes the signal, and then SIGCONT.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::over_each_kind;
use crate::support::{
    Client, Daemon, Random, Signal, TIMEOUT, assert_same, pattern, peers_of, pending_connections, skip, wait_until,
};

/// Far less than the drain timeout of an hour, far more than a busy machine needs.
const AT_ONCE: Duration = Duration::from_secs(10);

// (1) The listen queue.

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
            assert_eq!(pending_connections(daemon.tcp()), 200);
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
        silent.echo(b"the one that there may be");
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
    // A reset behind the FIN does not disturb a reader any more, so the daemon is asked how it ended.
    let log = daemon.whole_stderr();
    assert!(log.contains("closed: one_shot"), "{log}");
}

#[test]
fn listeners_close_while_drain_waits_for_connections() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(Signal::TERM);
        client.expect_fin();
        let error = Client::try_connect(daemon.address()).map(drop).expect_err("a newcomer is refused");
        let refused = [std::io::ErrorKind::ConnectionRefused, std::io::ErrorKind::NotFound];
        assert!(refused.contains(&error.kind()), "{error}");
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
        let waiting: Vec<Client> = (0..300).map(|_| daemon.connect()).collect(); // More than one turn accepts.
        daemon.signal(Signal::TERM);
        daemon.thaw();
        client.expect_fin();
        let again = Client::try_connect(daemon.address());
        assert!(again.is_err(), "taken into a queue that is about to be closed");
        waiting.iter().for_each(Client::expect_fin);
        drop((client, waiting));
        daemon.expect_success();
    });
}

// (2) What the kernel held.

#[test]
fn data_received_before_signal_is_echoed() {
    let seed = 1;
    let mut random = Random::new(seed);
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
        if signal == Signal::HUP && ignores(&daemon, 1) {
            return skip("SIGHUP is ignored here, as under nohup, and so it is by the daemon");
        }
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        for (number, client) in clients.iter().enumerate() {
            client.echo(&pattern(number as u64, 1000)); // Each is known to the daemon and idle when it is stopped.
        }
        daemon.freeze();
        let held: Vec<Vec<u8>> = (0..50).map(|number| pattern(number, random.between(1, 40_000))).collect();
        for (number, (client, bytes)) in clients.iter().zip(&held).enumerate() {
            client.send(bytes);
            if number % 3 == 0 {
                client.send_fin();
            }
        }
        wait_until("the daemon's kernel has it all", || {
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
    let acknowledged =
        |(client, sent): &(Client, usize)| sent - client.local_socket().map_or(0, |end| end.unacknowledged);
    let held: Vec<usize> = clients.iter().map(acknowledged).collect();
    daemon.signal(Signal::TERM);
    daemon.thaw();
    for ((client, sent), held) in clients.iter().zip(held) {
        let expected: Vec<u8> = block.iter().copied().cycle().take(*sent).collect();
        assert_prefix(&client.read_to_end().unwrap(), &expected, held);
        client.send_fin();
    }
    daemon.expect_success();
}

/// What came back is a prefix of what was sent, and no shorter than what the kernel held at the signal.
#[track_caller]
fn assert_prefix(got: &[u8], sent: &[u8], held: usize) {
    assert!(got.len() <= sent.len(), "{} bytes came back of {} sent", got.len(), sent.len());
    assert_same(got, &sent[..got.len()]);
    assert!(got.len() >= held, "{} bytes came back, but the kernel held {held}", got.len());
}

#[test]
fn shutdown_under_load_loses_no_received_byte() {
    over_each_kind(&["--drain-timeout", "1h"], stop_under_load);
}

#[test]
fn endless_sender_cannot_delay_its_fin() {
    // With a buffer this small, the peers send faster than the daemon can ever read: no queue is ever seen empty.
    over_each_kind(&["--drain-timeout", "1h", "--buffer-size", "16"], stop_under_load);
}

/// SIGTERM for a daemon whose peers never pause, and go on sending after it: FIN comes at once and no reset, and all
/// that was held at the signal comes back.
fn stop_under_load(daemon: &mut Daemon) {
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
                    let finished = Instant::now();
                    sent.fetch_or(FIN_SEEN, Ordering::Relaxed);
                    got.map(|got| (got, finished))
                })
            })
            .collect();
        wait_until("every peer is under way", || sent.iter().all(|sent| sent.load(Ordering::Relaxed) > 200_000));

        daemon.freeze();
        // First what was sent, then what of it is not acknowledged, which may be more by now: a lower bound.
        let held: Vec<usize> = clients
            .iter()
            .zip(&sent)
            .map(|(client, sent)| {
                let sent = sent.load(Ordering::Relaxed);
                // What a Unix socket takes is with the other end at once.
                let behind =
                    if client.is_tcp() { client.local_socket().map_or(0, |end| end.unacknowledged) } else { 0 };
                sent.saturating_sub(behind)
            })
            .collect();
        daemon.signal(Signal::TERM);
        let signalled = Instant::now();
        daemon.thaw();

        for ((reader, held), sent) in readers.into_iter().zip(held).zip(&sent) {
            let (got, finished) = reader.join().unwrap().expect("FIN and no reset");
            let late = finished.duration_since(signalled);
            assert!(late < AT_ONCE, "a peer that keeps sending has put its FIN off for {late:?}");
            let sent = sent.load(Ordering::Relaxed) & !FIN_SEEN;
            let expected: Vec<u8> = block.iter().copied().cycle().take(sent.max(got.len())).collect();
            assert_prefix(&got, &expected, held);
        }
    });
    drop(clients);
    daemon.expect_success();
}

/// Marks in the count of a sender that its reader has seen the daemon's FIN.
const FIN_SEEN: usize = 1 << 63;

/// Sends without a pause until 200,000 bytes after the daemon's FIN, and only then sends ours.
fn send_until_closed(client: &Client, sent: &AtomicUsize, block: &[u8]) {
    let (start, mut late) = (Instant::now(), 0);
    while late < 200_000 {
        assert!(start.elapsed() < 2 * TIMEOUT, "after {} bytes: no end", sent.load(Ordering::Relaxed) & !FIN_SEEN);
        let before = sent.load(Ordering::Relaxed);
        let offset = (before & !FIN_SEEN) % block.len();
        client.wait_for(rustix::event::PollFlags::OUT, Duration::from_millis(100));
        let taken =
            client.try_send(&block[offset..]).expect("what comes after the daemon's FIN is discarded, not reset");
        sent.fetch_add(taken, Ordering::Relaxed);
        if before & FIN_SEEN != 0 {
            late += taken;
        }
    }
    client.send_fin();
}

// (3) FIN, and what comes after it.

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
        assert!(start.elapsed() < AT_ONCE);
    });
}

#[test]
fn data_after_our_fin_is_discarded() {
    over_each_kind(&["--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(Signal::TERM);
        client.expect_fin();
        client.send(&pattern(5, 4 << 20)); // More than any buffer between: it is read, not just held.
        daemon.expect_running();
        client.send_fin();
        daemon.expect_success();
        client.expect_fin(); // Still no reset.
    });
}

#[test]
fn drain_without_connections_ends_at_once() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let start = Instant::now();
    daemon.terminate();
    assert!(start.elapsed() < AT_ONCE);
}

#[test]
fn drain_timeout_closes_remaining_connections() {
    over_each_kind(&["--drain-timeout", "1s"], |daemon| {
        let silent = daemon.connect();
        silent.echo(b"silent");
        let stalled = Client::connect_with_small_buffers(daemon.address());
        stalled.send_until_stalled(&pattern(6, 1 << 16), Duration::from_millis(100), 64 << 20);
        let talking = daemon.connect();
        talking.echo(b"talking");
        let start = Instant::now();
        daemon.signal(Signal::TERM);
        thread::scope(|scope| {
            scope.spawn(|| {
                while talking.try_send(&[0; 1000]).is_ok() && start.elapsed() < AT_ONCE {
                    talking.wait_for(rustix::event::PollFlags::OUT, Duration::from_millis(100));
                }
            });
            silent.expect_fin();
            daemon.expect_success();
        });
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(950), "cut after {took:?}, sooner than the drain timeout of 1 s");
        assert!(took < Duration::from_secs(3), "cut after {took:?}, long after the drain timeout of 1 s");
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
    let cpu = daemon.cpu_time_during(Duration::from_millis(500));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU in a drain that waits");
}

#[test]
fn zero_drain_timeout_echoes_received_data_without_waiting() {
    // With the small buffer that takes more than one turn.
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
        daemon.expect_success(); // Although no peer has finished.
        assert!(start.elapsed() < AT_ONCE);
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
        assert!(start.elapsed() < AT_ONCE);
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
    let client = daemon.connect();
    let bytes = pattern(10, 8 << 20);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            client.send(&bytes);
            client.send_fin();
        });
        let mut got = vec![0; 4 << 20];
        std::io::Read::read_exact(&mut &client.socket, &mut got).unwrap();
        // Read on until the sender is through, so that every byte and the FIN are with the kernels.
        while !sender.is_finished() {
            let mut more = [0; 4096];
            let length = std::io::Read::read(&mut &client.socket, &mut more).unwrap();
            got.extend_from_slice(&more[..length]);
        }
        daemon.freeze();
        let held = bytes.len() - client.local_socket().map_or(0, |end| end.unacknowledged);
        daemon.signal(Signal::TERM);
        daemon.thaw();
        got.extend(client.read_to_end().unwrap());
        assert_prefix(&got, &bytes, held);
    });
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
        assert!(line.contains('7'), "seven connections were accepted: {line:?}");
        // It stops nothing, and comes as often as it is asked for.
        clients.iter().for_each(|client| client.echo(b"still here"));
        daemon.signal(Signal::USR1);
        wait_until("the counters a second time", || daemon.stderr().matches("accepted").count() >= 2);
        assert_eq!(daemon.stdout().lines().count(), 1, "nothing of it goes to stdout");
    }
}

#[test]
fn sighup_shuts_down_like_sigterm() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    if ignores(&daemon, 1) {
        return skip("SIGHUP is ignored here, as under nohup, and so it is by the daemon");
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
    // As under nohup(1).
    let mut daemon = Daemon::with(&["--drain-timeout", "0"]).shell("trap '' HUP; exec \"$@\"").start();
    let client = daemon.connect();
    client.echo(b"before");
    for _ in 0..3 {
        daemon.signal(Signal::HUP);
        client.echo(b"and after");
    }
    assert!(ignores(&daemon, 1), "SIGHUP is in SigIgn");
    daemon.close_and_terminate(client);
}

#[test]
fn sigpipe_is_ignored() {
    let daemon = Daemon::start(&[]);
    assert!(ignores(&daemon, 13), "SIGPIPE is in SigIgn");
    let client = daemon.connect();
    daemon.signal(Signal::PIPE);
    client.echo(b"still here");
}

/// Whether the kernel has the signal of this number down as ignored.
fn ignores(daemon: &Daemon, number: u32) -> bool {
    let mask = u64::from_str_radix(&daemon.status_text("SigIgn"), 16).expect("a mask");
    mask >> (number - 1) & 1 == 1
}
