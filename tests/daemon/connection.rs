//! A connection: echo, half-close, backpressure, resets, fairness, and the cost of waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::RecvFlags;

use crate::support::{Client, Daemon, Random, Signal, TIMEOUT, TcpState, assert_same, pattern, wait_until};
use crate::{assert_sleeps, over_each_kind, send_until_unread};

// Every byte received is echoed.

#[test]
fn every_byte_value_is_echoed() {
    over_each_kind(&[], |daemon| {
        let all: Vec<u8> = (0..=255).collect();
        daemon.connect().echo(&all);
    });
}

#[test]
fn echo_is_identical_for_writes_of_any_size() {
    over_each_kind(&[], |daemon| {
        let seed = 2;
        let mut random = Random::new(seed);
        let bytes = pattern(seed, 8 << 20);
        let client = daemon.connect();
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut rest = &bytes[..];
                while !rest.is_empty() {
                    // Sizes of every order of magnitude, from one byte to 256 KiB.
                    let max = 1 << random.between(0, 18);
                    let (now, later) = rest.split_at(random.between(1, max).min(rest.len()));
                    client.send(now);
                    rest = later;
                }
                client.send_fin();
            });
            assert_same(&client.read_to_end().unwrap(), &bytes);
        });
    });
}

#[test]
fn single_bytes_are_echoed_without_delay() {
    // The daemon waits neither for a line nor for a full buffer nor for a timer: each byte is echoed before the
    // client sends the next one.
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        let start = Instant::now();
        for number in 0..2000_u32 {
            client.echo(&[number as u8]);
        }
        // Nagle's algorithm combined with a delayed acknowledgment would cost 40 ms per byte.
        let elapsed = start.elapsed();
        assert!(
            elapsed < Duration::from_secs(20),
            "2000 echoes of one byte should take less than 20 s, not {elapsed:?}"
        );
    });
}

#[test]
fn messages_around_buffer_size_are_echoed() {
    // A short read means that the receive queue is empty; a read that fills the buffer does not.
    over_each_kind(&["--buffer-size", "4096"], |daemon| {
        for length in [4095, 4096, 4097, 8192, 40_960, 65_536] {
            let client = daemon.connect();
            let bytes = pattern(length as u64, length);
            daemon.freeze(); // All bytes arrive in one event.
            client.send(&bytes);
            daemon.thaw();
            client.expect(&bytes);
            client.send_fin();
            client.expect_fin();
        }
    });
}

#[test]
fn smallest_and_largest_buffer_size_work() {
    for size in ["1", "16777216"] {
        let daemon = Daemon::start(&["--buffer-size", size]);
        daemon.connect().exchange(&pattern(3, 300_000));
    }
}

#[test]
fn urgent_data_stays_in_line() {
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        client.send(b"in ");
        client.send_urgent(b"line");
        client.send(b" and on");
        client.expect(b"in line and on");
        client.send_urgent(b"!");
        client.expect(b"!");
        client.send_fin();
        client.expect_fin();
    });
}

#[test]
fn bytes_after_urgent_mark_are_not_missed() {
    // A read stops at the urgent mark, and no new edge reports the bytes after it.
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        client.echo(b"open");
        for round in 0..20 {
            daemon.freeze();
            client.send(b"before");
            client.send_urgent(b"m");
            client.send(b"after");
            if round % 2 == 0 {
                client.send_urgent(b"again");
                client.send(b"end");
            }
            daemon.thaw();
            client.expect(if round % 2 == 0 { b"beforemafteragainend" } else { b"beforemafter" });
        }
        daemon.freeze();
        client.send(b"last");
        client.send_urgent(b"mark");
        client.send_fin();
        daemon.thaw();
        client.expect(b"lastmark");
        client.expect_fin();
    });
}

#[test]
fn tcp_nodelay_and_so_oobinline_are_on() {
    let daemon = Daemon::start(&[]);
    let client = daemon.connect();
    client.echo(b"accepted");
    let local = client.local();
    let sockets = daemon.sockets();
    let is_ours = |socket: &&socket2::Socket| socket.peer_addr().is_ok_and(|peer| peer.as_socket() == Some(local));
    let ours = sockets.iter().find(is_ours).expect("the daemon should have a socket for this connection");
    assert!(ours.tcp_nodelay().unwrap(), "TCP_NODELAY should be on");
    assert!(ours.out_of_band_inline().unwrap(), "SO_OOBINLINE should be on");
}

// The peer shuts down its write side.

#[test]
fn data_before_peer_fin_is_echoed_before_ours() {
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        client.send(b"the last words");
        client.send_fin();
        client.expect(b"the last words");
        client.expect_fin();
    });
}

#[test]
fn fin_with_last_bytes_is_not_missed() {
    // The read that returns the last bytes is short. A loop that stops reading there waits forever, because the FIN
    // arrived with the same edge.
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        client.echo(b"open");
        daemon.freeze();
        client.send(b"bytes");
        client.send_fin();
        daemon.thaw();
        client.expect(b"bytes");
        client.expect_fin();
    });
}

#[test]
fn fin_without_data_is_answered_with_fin() {
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        client.send_fin();
        client.expect_fin();
    });
}

#[test]
fn data_and_fin_before_accept_are_served() {
    // All of it arrives before the connection is registered, so registering it must report the edge.
    over_each_kind(&[], |daemon| {
        daemon.freeze();
        let client = daemon.connect();
        client.send(b"early");
        client.send_fin();
        daemon.thaw();
        client.expect(b"early");
        client.expect_fin();
    });
}

#[test]
fn socket_closes_only_after_echo_and_fin() {
    // The client sends its FIN without reading anything. The daemon keeps the connection until the echo is sent.
    let daemon = Daemon::start(&[]);
    let client = Client::connect_with_small_buffers(daemon.address());
    let block = pattern(5, 1 << 16);
    let sent = client.send_until_stalled(&block, Duration::from_millis(300), 64 << 20);
    client.send_fin();
    // ESTABLISHED as long as the client's kernel holds the FIN back behind data that does not fit into the daemon's
    // receive buffer.
    wait_until("the daemon's socket is in CLOSE-WAIT or ESTABLISHED", || {
        let socket = client.remote_socket();
        socket.is_some_and(|socket| matches!(socket.state, TcpState::CloseWait | TcpState::Established))
    });
    let got = client.read_to_end().unwrap();
    let expected: Vec<u8> = block.iter().copied().cycle().take(sent).collect();
    assert_same(&got, &expected);
    // Both FINs are sent and acknowledged, so nothing is left of the daemon's socket.
    wait_until("the daemon's socket is gone", || client.remote_socket().is_none());
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    // A closed read side does not mean that both directions are closed: the echo of what arrived before the FIN may
    // be many buffers long.
    over_each_kind(&[], |daemon| {
        let bytes = pattern(6, 3 << 20);
        let client = daemon.connect();
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&bytes);
                client.send_fin();
            });
            // The client starts to read only after the first part of the echo has arrived.
            wait_until("the first part of the echo has arrived", || client.wait_for(PollFlags::IN, Duration::ZERO));
            assert_same(&client.read_to_end().unwrap(), &bytes);
        });
    });
}

// The peer does not read.

#[test]
fn nonreading_peer_is_not_read_from() {
    over_each_kind(&[], |daemon| {
        daemon.connect().echo(b"warm up");
        let before = daemon.memory();
        let client = Client::connect_with_small_buffers(daemon.address());
        // Only the kernel's buffers lie in between, which autotuning may enlarge to 32 MiB and 4 MiB.
        let block = pattern(7, 1 << 16);
        let sent = client.send_until_stalled(&block, Duration::from_millis(300), 64 << 20);
        let grown = daemon.memory().saturating_sub(before);
        assert!(
            grown < 512 << 10,
            "a stalled connection should use less than 512 KiB of user memory, not {grown} bytes"
        );

        // The stall has lost no byte, and the connection continues to work.
        let expected: Vec<u8> = block.iter().copied().cycle().take(sent).collect();
        client.expect(&expected);
        client.exchange(&pattern(8, 1 << 20));
        client.send_fin();
        client.expect_fin();
    });
}

#[test]
fn stalled_connection_neither_uses_cpu_nor_blocks_others() {
    over_each_kind(&[], |daemon| {
        let client = Client::connect_with_small_buffers(daemon.address());
        client.send_until_stalled(&pattern(9, 1 << 16), Duration::from_millis(300), 64 << 20);
        assert_sleeps(daemon);
        daemon.connect().echo(b"still serving");
    });
}

#[test]
fn data_sent_during_stall_is_read_afterwards() {
    // More data and a FIN follow while the daemon does not read. Both have to be handled once the client reads.
    over_each_kind(&[], |daemon| {
        let client = Client::connect_with_small_buffers(daemon.address());
        let block = pattern(10, 1 << 16);
        let sent = client.send_until_stalled(&block, Duration::from_millis(300), 64 << 20);
        let rest = pattern(11, 100_000);
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&rest);
                client.send_fin();
            });
            let mut expected: Vec<u8> = block.iter().copied().cycle().take(sent).collect();
            expected.extend_from_slice(&rest);
            assert_same(&client.read_to_end().unwrap(), &expected);
        });
    });
}

#[test]
fn edge_during_stall_is_remembered() {
    let daemon = Daemon::start(&[]);
    let small_buffer = |socket: &socket2::Socket| socket.set_recv_buffer_size(8192);
    let client = Client::connect_with(daemon.address(), small_buffer).unwrap();
    let portion = pattern(13, 40_000);
    // The portion that stays unread, and the FIN after it, reach a connection that is stalled and has found its receive
    // queue empty: only their edge reports them to the daemon.
    let sent = send_until_unread(&client, &portion);
    client.send_fin();
    let expected: Vec<u8> = portion.iter().copied().cycle().take(sent).collect();
    assert_same(&client.read_to_end().unwrap(), &expected);
}

#[test]
fn stalled_connection_memory_is_bounded_by_buffer_size() {
    const STALLED: usize = 100;
    for buffer in [4096, 65_536] {
        let daemon = Daemon::start(&["--buffer-size", &buffer.to_string()]);
        let clients: Vec<Client> = (0..STALLED).map(|_| Client::connect_with_small_buffers(daemon.address())).collect();
        clients.iter().for_each(|client| client.echo(b"open"));
        let before = daemon.memory();
        let block = pattern(12, 1 << 16);
        wait_until_all_are_stalled(&clients, &block);
        let grown = daemon.memory().saturating_sub(before);
        // The constants allow for the allocator's overhead and for pages of the scratch buffer that were not resident.
        let limit = STALLED * (buffer + 1024) + (512 << 10);
        assert!(grown <= limit, "{STALLED} stalled connections should use at most {limit} bytes, not {grown}");
    }
}

/// Sends on every connection until none has accepted a byte for 300 ms.
fn wait_until_all_are_stalled(clients: &[Client], block: &[u8]) {
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(300) {
        for client in clients {
            while client.try_send(block).unwrap() > 0 {
                last = Instant::now();
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
}

// The peer resets.

#[test]
fn reset_closes_only_its_connection_quietly() {
    let daemon = Daemon::start(&[]);
    let other = daemon.connect();
    other.echo(b"before");
    let descriptors = daemon.descriptors().len();

    // Idle; with an unread echo; stalled; stalled and half-closed; and before it is accepted.
    daemon.connect().reset();
    let client = daemon.connect();
    client.echo(b"once");
    client.send(b"unread");
    client.reset();
    let client = Client::connect_with_small_buffers(daemon.address());
    client.send_until_stalled(&pattern(13, 1 << 16), Duration::from_millis(200), 64 << 20);
    client.reset();
    let client = Client::connect_with_small_buffers(daemon.address());
    client.send_until_stalled(&pattern(14, 1 << 16), Duration::from_millis(200), 64 << 20);
    client.send_fin();
    client.reset();
    daemon.freeze();
    for _ in 0..20 {
        let client = daemon.connect();
        client.send(b"gone before accept(2)");
        client.reset();
    }
    let late = daemon.connect();
    daemon.thaw();

    late.echo(b"queued after twenty resets in the backlog");
    drop(late);
    other.echo(b"after");
    wait_until("the daemon has closed all descriptors of the reset connections", || {
        daemon.descriptors().len() == descriptors
    });
    assert!(!daemon.stderr().contains("127.0.0.1:"), "a reset should not be logged at `info`: {}", daemon.stderr());
}

#[test]
fn reset_is_logged_at_debug_level() {
    let daemon = Daemon::start(&["-v"]);
    let client = daemon.connect();
    client.echo(b"hello");
    let peer = client.local().to_string();
    client.reset();
    // The comma shows that no error text follows the reason.
    daemon.wait_for_log(|line| line.contains(&peer) && line.contains("closed: reset,"));
}

#[test]
fn debug_log_has_addresses_bytes_and_duration() {
    let daemon = Daemon::start(&["-v"]);
    let client = daemon.connect();
    client.echo(b"hello");
    let (peer, local) = (client.local().to_string(), daemon.tcp().to_string());
    client.send_fin();
    client.expect_fin();
    daemon.wait_for_log_text(&format!("connection 1 from {peer} to {local} opened"));
    let line = daemon.wait_for_log(|line| line.contains("closed: "));
    let (head, duration) = line.trim_end().rsplit_once(", ").expect("a duration");
    assert!(
        head.ends_with(&format!("connection 1 from {peer} to {local} closed: finished, 5 bytes in, 5 bytes out")),
        "{line}"
    );
    let seconds: f64 = duration.strip_suffix(" s").and_then(|seconds| seconds.parse().ok()).expect("seconds");
    assert!((0.0..60.0).contains(&seconds), "{line}");
}

#[test]
fn peer_hangup_leaks_no_descriptors() {
    over_each_kind(&["-v"], |daemon| {
        daemon.connect().echo(b"warm up");
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.echo(b"x"));
        let open = daemon.descriptors().len();
        drop(clients);
        wait_until("the daemon has closed the descriptors of all fifty connections", || {
            daemon.descriptors().len() <= open - 50
        });
    });
}

#[test]
fn close_with_unread_echo_affects_no_others() {
    over_each_kind(&[], |daemon| {
        let other = daemon.connect();
        for _ in 0..50 {
            let client = daemon.connect();
            client.send(&pattern(15, 50_000));
            drop(client); // With data unread or in flight, so the daemon gets ECONNRESET or EPIPE.
        }
        other.exchange(&pattern(16, 200_000));
    });
}

#[test]
fn reused_slot_never_mixes_up_echoes() {
    // Slots are reused immediately, so stale data of a closed connection would show up in the echo of a new one.
    let daemon = Daemon::start(&[]);
    let mut random = Random::new(17);
    let mut open: Vec<(Client, Vec<u8>)> = Vec::new();
    for round in 0..2000 {
        let bytes = pattern(round, random.between(1, 3000));
        let client = daemon.connect();
        client.send(&bytes);
        open.push((client, bytes));
        if open.len() > 20 {
            let (client, bytes) = open.swap_remove(random.between(0, 19));
            match random.between(0, 3) {
                0 => client.reset(),
                1 => drop(client),
                _ => client.expect(&bytes),
            }
        }
    }
    open.iter().for_each(|(client, bytes)| client.expect(bytes));
}

// One busy peer never starves another.

#[test]
fn busy_peers_do_not_starve_others() {
    over_each_kind(&[], assert_busy_peers_do_not_starve_others);
    // With a buffer this small, the busy clients are faster than the daemon, so it never finds their queues empty.
    over_each_kind(&["--buffer-size", "16"], assert_busy_peers_do_not_starve_others);
}

#[track_caller]
fn assert_busy_peers_do_not_starve_others(daemon: &mut Daemon) {
    let busy: Vec<Client> = (0..2).map(|_| daemon.connect()).collect();
    let quiet = daemon.connect();
    let block = pattern(18, 1 << 20);
    let done = AtomicBool::new(false);
    let soon = Duration::from_millis(100);
    thread::scope(|scope| {
        for client in &busy {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && client.try_send(&block).is_ok() {
                    client.wait_for(PollFlags::OUT, soon);
                }
            });
            scope.spawn(|| {
                let mut buffer = vec![0; 1 << 16];
                while !done.load(Ordering::Relaxed) {
                    client.wait_for(PollFlags::IN, soon);
                    let _ = rustix::net::recv(&client.socket, &mut buffer[..], RecvFlags::DONTWAIT);
                }
            });
        }
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for number in 0..50_u8 {
                quiet.echo(&[number]);
                // A new connection must not starve, either.
                daemon.connect().echo(b"new");
            }
        }));
        done.store(true, Ordering::Relaxed);
        outcome.expect("the quiet client should be served while two others send without a pause");
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_secs(20), "100 echoes should take less than 20 s, not {elapsed:?}");
    });
}

#[test]
fn endless_sender_does_not_monopolize_the_loop() {
    // While it echoes, the daemon gets a break whenever the client does not read fast enough. During a drain it
    // does not, because it discards what it reads, and with a buffer this small the client is always faster.
    over_each_kind(&["--buffer-size", "16", "--drain-timeout", "1h"], |daemon| {
        let (busy, quiet) = (daemon.connect(), daemon.connect());
        busy.echo(b"busy");
        quiet.echo(b"quiet");
        daemon.signal(Signal::TERM);
        busy.expect_fin();
        quiet.expect_fin();
        let (block, start, done) = (pattern(20, 1 << 20), Instant::now(), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) && start.elapsed() < 2 * TIMEOUT {
                    busy.try_send(&block).expect("the daemon should discard the data and not reset the connection");
                    busy.wait_for(PollFlags::OUT, Duration::from_millis(100));
                }
            });
            wait_until("the busy client has filled the kernel's buffers", || {
                busy.try_send(&block).is_ok_and(|sent| sent == 0)
            });
            let open = daemon.descriptors().len();
            quiet.send_fin();
            wait_until("the daemon has closed the quiet client's connection", || daemon.descriptors().len() < open);
            done.store(true, Ordering::Relaxed);
        });
        busy.send_fin();
        daemon.expect_success();
    });
}

#[test]
fn leftover_data_is_served_without_a_new_edge() {
    // With a buffer of one byte, a connection exhausts any budget of reads per iteration long before its queue is
    // empty.
    over_each_kind(&["--buffer-size", "1"], |daemon| {
        let client = daemon.connect();
        let bytes = pattern(19, 20_000);
        daemon.freeze();
        client.send(&bytes);
        client.send_fin();
        daemon.thaw();
        client.expect(&bytes);
        client.expect_fin();
    });
}

// Accepting.

#[test]
fn burst_of_connections_in_one_event_is_accepted() {
    over_each_kind(&[], |daemon| {
        daemon.freeze();
        let clients: Vec<Client> = (0..600).map(|_| daemon.connect()).collect();
        daemon.thaw();
        for (number, client) in clients.iter().enumerate() {
            client.echo(&pattern(number as u64, 100));
        }
    });
}

// Waiting costs no CPU.

#[test]
fn idle_daemon_sleeps_and_uses_no_cpu() {
    over_each_kind(&[], |daemon| {
        let clients: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.echo(b"hello"));
        assert_sleeps(daemon); // No timer expires for ten minutes.
    });
}

#[test]
fn spurious_wakeup_is_harmless() {
    // SIGSTOP and SIGCONT make epoll_wait(2) return EINTR. The daemon ignores SIGPIPE and SIGCHLD.
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        for round in 0..50 {
            client.echo(&pattern(round, 100));
            daemon.freeze();
            daemon.thaw();
            daemon.signal(Signal::PIPE);
            daemon.signal(Signal::CHILD);
        }
        client.echo(b"the same connection");
        daemon.close_and_terminate(client);
    });
}
