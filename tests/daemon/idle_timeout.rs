//! `--idle-timeout`: a connection on which no byte has moved for this long is closed, whatever its
//! state, and at most 1 s late.

use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::over_each_kind;
use crate::support::{Client, Daemon, Signal, TIMEOUT, assert_same, pattern};

const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_DELAY: Duration = Duration::from_secs(1);

/// Asserts that the connection, on which the last byte moved at `last`, has been closed just now:
/// not before the idle timeout, and at most [`MAX_DELAY`] after it.
#[track_caller]
fn assert_closed_on_time(last: Instant) {
    let after = last.elapsed();
    // The daemon never closes a connection early; 0.1 s allows for the time between its reading of the clock and ours.
    assert!(after + Duration::from_millis(100) >= IDLE_TIMEOUT, "closed {after:?} after the last byte: too early");
    assert!(after <= IDLE_TIMEOUT + MAX_DELAY, "closed {after:?} after the last byte: too late");
}

#[test]
fn silent_connection_is_closed() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        daemon.connect().expect_fin();
        assert_closed_on_time(start);
    });
}

#[test]
fn each_byte_restarts_the_idle_timeout() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let client = daemon.connect();
        let start = Instant::now();
        // Twice the timeout in all, with pauses of less than half of it. The pauses are the point of the test.
        while start.elapsed() < 2 * IDLE_TIMEOUT {
            client.echo(b".");
            thread::sleep(IDLE_TIMEOUT / 4);
        }
        client.echo(b"last");
        let last = Instant::now();
        client.expect_fin();
        assert_closed_on_time(last);
    });
}

#[test]
fn idle_stalled_connection_is_closed() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        let client = Client::connect_with_small_buffers(daemon.address());
        assert_stalled_client_is_closed(&client, start, Duration::MAX);
    });
}

#[test]
fn idle_half_closed_stalled_connection_is_closed() {
    // CLOSE-WAIT with pending output that the client never reads, so no event ever follows.
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        let client = Client::connect_with_small_buffers(daemon.address());
        assert_stalled_client_is_closed(&client, start, Duration::from_millis(200));
    });
}

/// Sends without ever reading, sends FIN after `fin_after` without progress, and asserts that the
/// daemon closes the connection at most [`MAX_DELAY`] late.
///
/// The idle time is measured from the last byte that the client's kernel accepted. The daemon itself
/// may have moved its last byte earlier, while the kernel buffers were still filling; the client cannot
/// observe that, so only the whole duration is checked for closing too early.
#[track_caller]
fn assert_stalled_client_is_closed(client: &Client, start: Instant, fin_after: Duration) {
    let block = pattern(1, 1 << 16);
    let (mut last, mut fin_sent) = (start, false);
    // poll(2) always reports POLLHUP and POLLERR. The echo stays unread, so the connection stays stalled.
    while !client.wait_for(PollFlags::RDHUP, Duration::from_millis(10)) {
        assert!(start.elapsed() < TIMEOUT, "the daemon should have closed the connection within {TIMEOUT:?}");
        if !fin_sent && client.try_send(&block).is_ok_and(|sent| sent > 0) {
            last = Instant::now();
        }
        if !fin_sent && last.elapsed() > fin_after {
            client.send_fin();
            fin_sent = true;
        }
    }
    let (total, idle) = (start.elapsed(), last.elapsed());
    assert!(total >= IDLE_TIMEOUT, "closed {total:?} after it was opened: too early");
    assert!(idle <= IDLE_TIMEOUT + MAX_DELAY, "closed {idle:?} after the last byte: too late");
}

#[test]
fn slow_reader_is_not_idle() {
    // The message is much longer than the kernel's buffers, so the connection is stalled all the time. It moves a few
    // bytes in each quarter of the timeout, for more than twice the timeout, and therefore is not idle.
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let client = Client::connect_with(daemon.address(), |socket| socket.set_recv_buffer_size(65_536)).unwrap();
    let bytes = pattern(3, 24 << 20);
    thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&bytes);
            client.send_fin();
        });
        let (now, later) = bytes.split_at(8 << 20);
        for piece in now.chunks(now.len() / 10) {
            client.expect(piece);
            thread::sleep(IDLE_TIMEOUT / 4);
        }
        assert_same(&client.read_to_end().unwrap(), later);
    });
}

#[test]
fn silent_one_shot_connection_is_closed() {
    over_each_kind(&["--one-shot", "--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        daemon.connect().expect_fin();
        assert_closed_on_time(start);
    });
}

#[test]
fn bulk_transfers_in_a_frozen_daemon_are_not_idle() {
    // When it goes on, there is more to read than it reads between two looks at its timers, and they have all expired.
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let large = pattern(5, 1 << 20);
    let clients: Vec<Client> = (0..30).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(&large[..40_000])); // A single segment: its second part is a large read.
    daemon.freeze();
    let sent: Vec<usize> = clients.iter().map(|client| client.try_send(&large).unwrap_or(0)).collect();
    thread::sleep(IDLE_TIMEOUT + IDLE_TIMEOUT / 4);
    daemon.thaw();
    assert!(sent.iter().sum::<usize>() > 3 << 20, "the kernel accepts too little for this test: {sent:?}");
    for (client, sent) in clients.iter().zip(sent) {
        client.expect(&large[..sent]);
    }
}

#[test]
fn idle_timeout_applies_during_drain() {
    over_each_kind(&["--idle-timeout", "1s", "--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        let last = Instant::now();
        daemon.signal(Signal::TERM);
        client.expect_fin();
        daemon.expect_success(); // Although the client never sends its FIN.
        assert_closed_on_time(last);
    });
}

#[test]
fn sending_peer_outlasts_idle_timeout_during_drain() {
    let mut daemon = Daemon::start(&["--idle-timeout", "1s", "--drain-timeout", "3s", "-v"]);
    let client = daemon.connect();
    client.echo(b"hello");
    daemon.signal(Signal::TERM);
    client.expect_fin();
    let start = Instant::now();
    while client.try_send(b"more").is_ok() {
        assert!(start.elapsed() < TIMEOUT, "a client that keeps sending should not delay the end of the drain");
        thread::sleep(Duration::from_millis(50));
    }
    daemon.expect_success();
    let elapsed = start.elapsed();
    assert!(elapsed >= 2 * IDLE_TIMEOUT, "a sending client is not idle, but was closed after {elapsed:?}");
    assert!(elapsed <= 3 * IDLE_TIMEOUT + MAX_DELAY, "the drain of 3 s should not have taken {elapsed:?}");
}

#[test]
fn each_connection_has_its_own_idle_deadline() {
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let clients: Vec<(Client, Instant)> = (0..20)
        .map(|_| {
            let client = daemon.connect();
            client.echo(b"hello");
            thread::sleep(Duration::from_millis(20));
            (client, Instant::now() - Duration::from_millis(20))
        })
        .collect();
    for (client, last) in clients {
        client.expect_fin();
        assert_closed_on_time(last);
    }
}

#[test]
fn zero_idle_timeout_never_closes() {
    let mut daemon = Daemon::start(&["--idle-timeout", "0"]);
    let client = daemon.connect();
    client.echo(b"before");
    thread::sleep(IDLE_TIMEOUT + IDLE_TIMEOUT / 2); // Longer than the timeout of the other tests.
    client.expect_nothing_yet();
    client.echo(b"after");
    daemon.close_and_terminate(client);
}

#[test]
fn waiting_for_deadlines_uses_no_cpu() {
    const DEADLINES: u64 = 100;
    // Neither before a deadline nor at it: a timeout of epoll_wait(2) is in whole milliseconds, so a loop that rounds
    // it down spins through the last one.
    let daemon = Daemon::start(&["--idle-timeout", "2s"]);
    let clients: Vec<Client> = (0..DEADLINES).map(|_| daemon.connect()).collect();
    for client in &clients {
        client.echo(b"hello");
        thread::sleep(Duration::from_millis(10)); // A separate deadline for each connection.
    }
    let before = (daemon.cpu_time(), daemon.sleep_count());
    clients.iter().for_each(Client::expect_fin);
    let (cpu, sleeps) = (daemon.cpu_time() - before.0, daemon.sleep_count() - before.1);
    assert!(
        cpu <= Duration::from_millis(30),
        "{DEADLINES} deadlines should cost at most 30 ms of CPU time, not {cpu:?}"
    );
    assert!(sleeps <= 3 * DEADLINES, "{DEADLINES} deadlines should wake the daemon at most 3 times each, not {sleeps}");
}
