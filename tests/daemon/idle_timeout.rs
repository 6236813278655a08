//! `--idle-timeout`: a connection on which no byte moved for this long is closed, in whatever state it is, at most
//! 1 s late.

use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;

use crate::over_each_kind;
use crate::support::{Client, Daemon, Signal, TIMEOUT, assert_same, pattern};

const IDLE_TIMEOUT: Duration = Duration::from_secs(1);
const LATE: Duration = Duration::from_secs(1);

/// The end came no sooner than the timeout after the last byte moved, and at most 1 s late.
#[track_caller]
fn assert_exact(from: Instant) {
    let after = from.elapsed();
    // A tenth for the way between the daemon's clock reading and ours, and no more: early is never right.
    assert!(after + Duration::from_millis(100) >= IDLE_TIMEOUT, "closed {after:?} after the last byte: too early");
    assert!(after <= IDLE_TIMEOUT + LATE, "closed {after:?} after the last byte: too late");
}

#[test]
fn silent_connection_is_closed() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        daemon.connect().expect_fin();
        assert_exact(start);
    });
}

#[test]
fn each_byte_restarts_the_idle_timeout() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let client = daemon.connect();
        let start = Instant::now();
        // Twice the timeout in all, never half of it at once. The pause is what is tested.
        while start.elapsed() < 2 * IDLE_TIMEOUT {
            client.echo(b".");
            thread::sleep(IDLE_TIMEOUT / 4);
        }
        client.echo(b"last");
        let last = Instant::now();
        client.expect_fin();
        assert_exact(last);
    });
}

#[test]
fn idle_stalled_connection_is_closed() {
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        let client = Client::connect_with_small_buffers(daemon.address());
        assert_stall_ends(&client, start, Duration::MAX);
    });
}

#[test]
fn idle_half_closed_stalled_connection_is_closed() {
    // CLOSE-WAIT, with an echo pending that nobody takes and that no event will ever tell of.
    over_each_kind(&["--idle-timeout", "1s"], |daemon| {
        let start = Instant::now();
        let client = Client::connect_with_small_buffers(daemon.address());
        assert_stall_ends(&client, start, Duration::from_millis(200));
    });
}

/// Sends and never reads, and after `finish_after` without progress sends our FIN. The connection ends, at most 1 s
/// later than the timeout after the last byte that our kernel could pass on. (How much earlier the daemon itself has
/// moved the last one, between kernel buffers that still fill, is not to be seen from here.)
#[track_caller]
fn assert_stall_ends(client: &Client, start: Instant, finish_after: Duration) {
    let block = pattern(1, 1 << 16);
    let (mut last, mut finished) = (start, false);
    // POLLHUP and POLLERR are told without being asked for. What came back stays unread: the stall goes on.
    while !client.wait_for(PollFlags::RDHUP, Duration::from_millis(10)) {
        assert!(start.elapsed() < TIMEOUT, "nothing ends the connection");
        if !finished && client.try_send(&block).is_ok_and(|taken| taken > 0) {
            last = Instant::now();
        }
        if !finished && last.elapsed() > finish_after {
            client.send_fin();
            finished = true;
        }
    }
    assert!(start.elapsed() >= IDLE_TIMEOUT, "closed after {:?} in all: too early", start.elapsed());
    assert!(last.elapsed() <= IDLE_TIMEOUT + LATE, "closed {:?} after the last byte: too late", last.elapsed());
}

#[test]
fn slow_reader_is_not_idle() {
    // Much more than the kernel's buffers hold, so the daemon is stalled all the time. It moves a few bytes in each
    // quarter of the timeout, for more than twice the timeout, and that is life.
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
        assert_exact(start);
    });
}

#[test]
fn idle_timeout_applies_during_drain() {
    over_each_kind(&["--idle-timeout", "1s", "--drain-timeout", "1h"], |daemon| {
        let client = daemon.connect();
        client.echo(b"hello");
        let last = Instant::now();
        daemon.signal(Signal::TERM);
        client.expect_fin();
        daemon.expect_success(); // Although our FIN never comes.
        assert_exact(last);
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
        assert!(start.elapsed() < TIMEOUT, "a peer that sends for ever keeps the drain from its end");
        thread::sleep(Duration::from_millis(50));
    }
    daemon.expect_success();
    assert!(
        start.elapsed() >= 2 * IDLE_TIMEOUT,
        "bytes have moved all the time, and it was idle after {:?}",
        start.elapsed()
    );
    assert!(start.elapsed() <= 3 * IDLE_TIMEOUT + LATE, "ended after {:?}", start.elapsed());
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
        assert_exact(last);
    }
}

#[test]
fn zero_idle_timeout_never_closes() {
    let mut daemon = Daemon::start(&["--idle-timeout", "0"]);
    let client = daemon.connect();
    client.echo(b"before");
    thread::sleep(IDLE_TIMEOUT + IDLE_TIMEOUT / 2); // Longer than the shortest timeout that is tested above.
    client.expect_nothing_yet();
    client.echo(b"after");
    daemon.close_and_terminate(client);
}

#[test]
fn waiting_for_deadlines_uses_no_cpu() {
    // Neither before it nor at it: poll(2) counts whole milliseconds, and a loop could spin through the last one.
    let daemon = Daemon::start(&["--idle-timeout", "1s"]);
    let clients: Vec<Client> = (0..50).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"hello"));
    let before = (daemon.cpu_time(), daemon.sleep_count());
    clients.iter().for_each(Client::expect_fin);
    let (cpu, sleeps) = (daemon.cpu_time() - before.0, daemon.sleep_count() - before.1);
    assert!(cpu <= Duration::from_millis(30), "{cpu:?} of CPU to wait for fifty deadlines");
    assert!(sleeps <= 150, "{sleeps} times awake for fifty deadlines");
}
