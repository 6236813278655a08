//! The contract's section "A connection".

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::net::RecvFlags;

use crate::over_each_kind;
use crate::support::{
    Client, Daemon, Random, Signal, TIMEOUT, TcpState, assert_same, eventually, pattern, tcp_socket, wait_until,
};

// What comes in goes out.

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
                    // As often a few bytes as a few hundred thousand.
                    let most = 1 << random.between(0, 18);
                    let (now, later) = rest.split_at(random.between(1, most).min(rest.len()));
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
    // No line, no full buffer and no timer is waited for: each byte comes back before the next is sent.
    over_each_kind(&[], |daemon| {
        let client = daemon.connect();
        let start = Instant::now();
        for number in 0..2000_u32 {
            client.echo(&[number as u8]);
        }
        // Nagle's algorithm against a delayed acknowledgement would cost 40 ms each.
        assert!(start.elapsed() < Duration::from_secs(20), "2000 single bytes took {:?}", start.elapsed());
    });
}

#[test]
fn messages_around_buffer_size_are_echoed() {
    // A read that fills the buffer says nothing about what is behind it; a short one does.
    over_each_kind(&["--buffer-size", "4096"], |daemon| {
        for length in [4095, 4096, 4097, 8192, 40_960, 65_536] {
            let client = daemon.connect();
            let bytes = pattern(length as u64, length);
            daemon.freeze(); // So that all of it is one event.
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
    // A read stops at the urgent mark with more behind it, and no edge tells of that.
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
    let ours = sockets.iter().find(is_ours).expect("the daemon's end of the connection");
    assert!(ours.tcp_nodelay().unwrap(), "TCP_NODELAY is off");
    assert!(ours.out_of_band_inline().unwrap(), "SO_OOBINLINE is off");
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
    // The read that takes the bytes is a short one. A loop that stops there waits for ever: the FIN came with the
    // same edge.
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
    // Registered only after all of it came: the edge is in the registration itself.
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
    // The peer finishes while it takes nothing: the daemon keeps the connection until the echo is out.
    let daemon = Daemon::start(&[]);
    let client = Client::connect_with_small_buffers(daemon.address());
    let block = pattern(5, 1 << 16);
    let sent = client.send_until_stalled(&block, Duration::from_millis(300), 64 << 20);
    client.send_fin();
    wait_until("the daemon's kernel knows of the FIN or holds it back behind full buffers", || {
        client.remote_socket().is_some_and(|end| matches!(end.state, TcpState::CloseWait | TcpState::Established))
    });
    let got = client.read_to_end().unwrap();
    let expected: Vec<u8> = block.iter().copied().cycle().take(sent).collect();
    assert_same(&got, &expected);
    // Both FINs are out: nothing of the connection is left at the daemon's side.
    wait_until("the daemon's end is gone", || client.remote_socket().is_none());
}

#[test]
fn half_close_leaves_the_other_direction_open() {
    // "Read closed" is not "both directions gone": what was sent before the FIN may be many buffers long.
    over_each_kind(&[], |daemon| {
        let bytes = pattern(6, 3 << 20);
        let client = daemon.connect();
        thread::scope(|scope| {
            scope.spawn(|| {
                client.send(&bytes);
                client.send_fin();
            });
            // The peer reads only once the daemon is stalled by it.
            wait_until("something has come back", || client.wait_for(PollFlags::IN, Duration::ZERO));
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
        // With nothing between but the kernel's buffers, which autotuning may widen to 32 MiB and 4 MiB.
        let block = pattern(7, 1 << 16);
        let sent = client.send_until_stalled(&block, Duration::from_millis(300), 64 << 20);
        let grown = daemon.memory().saturating_sub(before);
        assert!(grown < 512 << 10, "one stalled connection took {grown} bytes of user memory");

        // No byte was lost by it, and the connection goes on.
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
        let cpu = daemon.cpu_time_during(Duration::from_millis(500));
        assert!(cpu <= Duration::from_millis(20), "{cpu:?} of CPU for a stalled connection");
        daemon.connect().echo(b"still here");
    });
}

#[test]
fn data_sent_during_stall_is_read_afterwards() {
    // The edge of these bytes and of this FIN comes while the daemon does not read; no other will follow.
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
    let narrow = |socket: &socket2::Socket| socket.set_recv_buffer_size(8192);
    let client = Client::connect_with(daemon.address(), narrow).unwrap();
    let portion = pattern(13, 40_000);
    let is_read = || {
        let unread = tcp_socket(client.remote(), client.local()).is_none_or(|socket| socket.unread > 0);
        let on_its_way = tcp_socket(client.local(), client.remote()).is_none_or(|socket| socket.unacknowledged > 0);
        !unread && !on_its_way
    };
    // Each portion comes when the one before has been read to the last byte. The one that stays unread has come, with the FIN
    // behind it, to a connection that was stalled and had seen its queue empty: all that it knows of them is their edge.
    let mut sent = 0;
    for _ in 0..5000 {
        client.send(&portion);
        sent += portion.len();
        let end = Instant::now() + Duration::from_millis(500);
        while !is_read() && Instant::now() < end {
            thread::sleep(Duration::from_micros(200));
        }
        if !is_read() {
            break;
        }
    }
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
        // The constant: what the allocator adds, and the pages of the shared buffer that were not touched before.
        let most = STALLED * (buffer + 1024) + (512 << 10);
        assert!(grown <= most, "{STALLED} stalled connections took {grown} bytes, at most {most} were promised");
    }
}

/// Fills every connection until for a while none takes a byte.
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

    // Idle; with an echo unread; half-closed; and before it was even accepted.
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

    late.echo(b"behind twenty resets in the listen queue");
    drop(late);
    other.echo(b"after");
    wait_until("every descriptor is back", || daemon.descriptors().len() == descriptors);
    assert!(!daemon.stderr().contains("127.0.0.1:"), "a reset is nothing to log at `info`: {}", daemon.stderr());
}

#[test]
fn reset_is_logged_at_debug_level() {
    let daemon = Daemon::start(&["-v"]);
    let client = daemon.connect();
    client.echo(b"hello");
    let peer = client.local().to_string();
    client.reset();
    daemon.wait_for_log(|line| line.contains(&peer) && line.contains("closed: reset,")); // No error of the system's.
}

#[test]
fn peer_hangup_leaks_no_descriptors() {
    over_each_kind(&["-v"], |daemon| {
        daemon.connect().echo(b"warm up");
        let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
        clients.iter().for_each(|client| client.echo(b"x"));
        let open = daemon.descriptors().len();
        drop(clients);
        wait_until("fifty descriptors are back", || daemon.descriptors().len() <= open - 50);
    });
}

#[test]
fn close_with_unread_echo_affects_no_others() {
    over_each_kind(&[], |daemon| {
        let other = daemon.connect();
        for _ in 0..50 {
            let client = daemon.connect();
            client.send(&pattern(15, 50_000));
            drop(client); // With bytes unread or on their way: the daemon meets ECONNRESET or EPIPE.
        }
        other.exchange(&pattern(16, 200_000));
    });
}

#[test]
fn reused_slot_never_mixes_up_echoes() {
    // Slots are used again at once here: bytes of a former occupant would show in the newcomer's echo.
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
    over_each_kind(&[], |daemon| {
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
                    while !done.load(Ordering::Relaxed) && client.wait_for(PollFlags::IN, soon) {
                        let _ = rustix::net::recv(&client.socket, &mut buffer[..], RecvFlags::DONTWAIT);
                    }
                });
            }
            let start = Instant::now();
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                for number in 0..50_u8 {
                    quiet.echo(&[number]);
                    // A newcomer is not starved, either.
                    daemon.connect().echo(b"new");
                }
            }));
            done.store(true, Ordering::Relaxed);
            outcome.expect("the quiet peer is served while two others never pause");
            assert!(start.elapsed() < Duration::from_secs(20), "100 echoes took {:?}", start.elapsed());
        });
    });
}

#[test]
fn endless_sender_does_not_monopolize_the_loop() {
    // Of an echo, a peer that stops reading gives the daemon a rest. Here there is none: in a drain it reads and
    // discards, and with a buffer this small the peer is always ahead of it.
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
                    busy.try_send(&block).expect("discarded, not reset");
                    busy.wait_for(PollFlags::OUT, Duration::from_millis(100));
                }
            });
            wait_until("the peer is far ahead", || busy.try_send(&block).is_ok_and(|taken| taken == 0));
            let open = daemon.descriptors().len();
            quiet.send_fin();
            wait_until("the quiet peer's FIN is noticed", || daemon.descriptors().len() < open);
            done.store(true, Ordering::Relaxed);
        });
        busy.send_fin();
        daemon.expect_success();
    });
}

#[test]
fn leftover_data_is_served_without_a_new_edge() {
    // With a buffer of one byte, any bound on the reads of a turn is reached long before the end of the queue.
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
        // It goes to sleep once more after the last echo, and then there is nothing to wake it for ten minutes.
        let asleep = eventually("the daemon sleeps", || {
            let before = daemon.sleep_count();
            thread::sleep(Duration::from_millis(50));
            (daemon.sleep_count() == before).then_some(before)
        });
        let cpu = daemon.cpu_time_during(Duration::from_secs(1));
        assert_eq!(daemon.sleep_count(), asleep, "it woke although nothing was due");
        assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU in a second of idleness");
    });
}

#[test]
fn spurious_wakeup_is_harmless() {
    // SIGSTOP and SIGCONT make epoll_wait(2) return EINTR; SIGPIPE and SIGCHLD are nobody's business here.
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
