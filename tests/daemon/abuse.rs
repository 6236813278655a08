//! Many misbehaving clients at once: they must neither disturb other clients nor leak resources.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::assert_memory_has_not_grown;
use crate::support::{Client, Daemon, Random, Signal, assert_same, pattern, wait_until};

/// Connects and resets the connection in a randomly chosen state.
fn reset_in_random_state(daemon: &Daemon, random: &mut Random, block: &[u8]) {
    match random.between(0, 39) {
        // Stalled, with or without a FIN from the client. Rare, because it is slow: all kernel buffers in
        // between have to be full.
        0 => {
            let client = Client::connect_with_small_buffers(daemon.address());
            while client.try_send(block).is_ok_and(|sent| sent > 0) {}
            if random.between(0, 1) == 0 {
                client.send_fin();
            }
            client.reset();
        }
        // With an echo that is unread or in flight.
        1..10 => {
            let client = daemon.connect();
            client.send(&block[..random.between(1, 5000)]);
            client.reset();
        }
        // After the client's FIN, with an unread echo.
        10..15 => {
            let client = daemon.connect();
            client.send(b"unread");
            client.send_fin();
            client.wait_for(PollFlags::IN, Duration::from_secs(10));
            client.reset();
        }
        // Open and idle.
        15..25 => {
            let client = daemon.connect();
            client.echo(b"idle");
            client.reset();
        }
        // With urgent data.
        25..28 => {
            let client = daemon.connect();
            client.send_urgent(b"urgent");
            client.reset();
        }
        // Usually before accept(2).
        _ => daemon.connect().reset(),
    }
}

#[test]
fn resets_in_every_state_leak_nothing() {
    let daemon = Daemon::start(&[]);
    let block = pattern(1, 1 << 18);
    let mut random = Random::new(10_000);
    let bystander = daemon.connect();
    bystander.echo(b"before");
    let descriptors = daemon.descriptors().len();
    let mut memory = 0;
    for round in 0..10 {
        for _ in 0..1000 {
            reset_in_random_state(&daemon, &mut random, &block);
        }
        wait_until("the daemon has closed all descriptors of the reset connections", || {
            daemon.descriptors().len() == descriptors
        });
        bystander.echo(b"unaffected");
        // The daemon keeps the memory that the first round has touched (scratch buffer, slab, allocator).
        match round {
            0 => memory = daemon.memory(),
            _ => assert_memory_has_not_grown(&daemon, memory, 256 << 10),
        }
    }
}

#[test]
fn one_shot_resets_leak_no_descriptors() {
    let daemon = Daemon::start(&["--one-shot"]);
    let mut random = Random::new(1);
    daemon.connect().echo(b"warm up");
    let before = daemon.descriptors().len();
    for _ in 0..1000 {
        let client = daemon.connect();
        match random.between(0, 2) {
            0 => {}
            1 => client.send(&pattern(2, 3000)),
            _ => client.echo(b"answered"),
        }
        client.reset();
    }
    wait_until("the daemon has closed all descriptors of the reset connections", || {
        daemon.descriptors().len() <= before
    });
    daemon.connect().echo(b"served");
}

#[test]
fn drain_ends_when_all_peers_reset() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
    let clients: Vec<Client> = (0..1000).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"open"));
    daemon.signal(Signal::TERM);
    for (number, client) in clients.into_iter().enumerate() {
        match number % 4 {
            0 => client.expect_fin(), // The daemon's socket is in FIN-WAIT-2.
            1 => drop(client.try_send(b"to be discarded")),
            _ => {}
        }
        client.reset();
    }
    daemon.expect_success();
}

#[test]
fn stalled_trickling_and_silent_clients_disturb_no_others() {
    const EACH: usize = 200;
    let daemon = Daemon::start(&[]);
    daemon.connect().echo(b"warm up");
    let before = (daemon.memory(), daemon.descriptors().len());
    let block = pattern(1, 1 << 16);

    let only_connected: Vec<Client> = (0..EACH).map(|_| daemon.connect()).collect();
    let trickling: Vec<Client> = (0..EACH).map(|_| daemon.connect()).collect();
    let never_reading: Vec<Client> = (0..EACH).map(|_| Client::connect_with_small_buffers(daemon.address())).collect();
    let mut sent = vec![0; EACH];
    let mut last = Instant::now();
    let mut round = 0_u8;
    // Once none of the clients that never read has been able to send for a while, all are stalled.
    while last.elapsed() < Duration::from_millis(300) {
        for (client, sent) in never_reading.iter().zip(&mut sent) {
            let accepted = client.try_send(&block[*sent % block.len()..]).unwrap();
            *sent += accepted;
            if accepted > 0 {
                last = Instant::now();
            }
        }
        trickling.iter().for_each(|client| client.send(&[round]));
        trickling.iter().for_each(|client| client.expect(&[round]));
        round = round.wrapping_add(1);
    }

    // One buffer for each stalled connection, and a constant for each connection of any kind.
    let limit = EACH * (65_536 + 3 * 1024) + (512 << 10);
    let grown = daemon.memory().saturating_sub(before.0);
    assert!(grown <= limit, "{EACH} stalled connections should use at most {limit} bytes, not {grown}");
    let cpu = daemon.cpu_time_during(Duration::from_millis(500));
    assert!(cpu <= Duration::from_millis(20), "inactive clients should cost no CPU time, not {cpu:?} in 500 ms");
    for number in 0..20 {
        let start = Instant::now();
        daemon.connect().exchange(&pattern(number, 200_000));
        let elapsed = start.elapsed();
        assert!(elapsed < Duration::from_secs(5), "an ordinary client should be served at once, not in {elapsed:?}");
    }
    only_connected.iter().for_each(Client::expect_nothing_yet);

    // When some of the stalled clients read after all, not one byte is missing.
    for (client, sent) in never_reading.iter().zip(&sent).take(10) {
        let expected: Vec<u8> = block.iter().copied().cycle().take(*sent).collect();
        client.send_fin();
        assert_same(&client.read_to_end().unwrap(), &expected);
    }
    drop((only_connected, trickling, never_reading));
    wait_until("the daemon has closed all descriptors of the closed connections", || {
        daemon.descriptors().len() <= before.1
    });
}

#[test]
fn idle_timeout_is_accurate_under_load() {
    const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let busy: Vec<Client> = (0..4).map(|_| daemon.connect()).collect();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for (number, client) in busy.iter().enumerate() {
            let done = &done;
            scope.spawn(move || {
                let bytes = pattern(number as u64, 100_000);
                while !done.load(Ordering::Relaxed) {
                    client.exchange(&bytes);
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let idle: Vec<(Instant, Client)> = (0..200)
                .map(|_| {
                    let client = daemon.connect();
                    let before = Instant::now();
                    client.echo(b"hello");
                    (before, client)
                })
                .collect();
            for (before, client) in idle {
                client.expect_fin();
                let after = before.elapsed();
                // The daemon reads the clock once per iteration, so a byte counts from the start of the iteration.
                let iteration = Duration::from_millis(10);
                assert!(after + iteration >= IDLE_TIMEOUT, "closed {after:?} after the last byte: too early");
                // At most 1 s late, plus the delay of a busy machine until we see the FIN.
                assert!(after <= 2 * IDLE_TIMEOUT + IDLE_TIMEOUT / 2, "closed {after:?} after the last byte: too late");
            }
        }));
        done.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    busy.iter().for_each(|client| client.echo(b"active connections stay open"));
}

#[test]
fn bytes_received_while_suspended_reset_idle_timeout() {
    // When the daemon resumes, all deadlines have passed, and its first epoll_wait(2) returns the events of only
    // 1024 of the connections. The timeout is 3 s because a busy machine needs more than a second to open them all.
    let daemon = Daemon::start(&["--idle-timeout", "3s"]);
    let clients: Vec<Client> = (0..1500).map(|_| daemon.connect()).collect();
    daemon.freeze();
    clients.iter().for_each(|client| client.send(b"in time"));
    thread::sleep(Duration::from_millis(3500)); // Longer than the timeout, on purpose.
    daemon.thaw();
    let (first, others) = clients.split_at(50);
    for client in first {
        client.expect(b"in time");
        client.echo(b"still open");
    }
    others.iter().for_each(|client| client.expect(b"in time"));
}

#[test]
fn peer_reads_while_suspended_reset_idle_timeout() {
    let daemon = Daemon::start(&["--idle-timeout", "3s"]);
    let client = Client::connect_with_small_buffers(daemon.address());
    let sent = client.send_until_stalled(&pattern(1, 1 << 16), Duration::from_millis(50), 64 << 20);
    daemon.freeze();
    let mut got = 0;
    while client.wait_for(PollFlags::IN, Duration::from_millis(100)) {
        got += client.read_exactly(client.unread()).unwrap().len();
    }
    thread::sleep(Duration::from_millis(3500)); // Longer than the timeout, on purpose.
    daemon.thaw();
    client.read_exactly(sent - got).expect("the connection should stay open and deliver the rest");
}
