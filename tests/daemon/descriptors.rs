//! File descriptor exhaustion: accepting pauses, open connections are served, and waiting costs no CPU.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, Signal, eventually, pattern, pending_connections, skip_missing, wait_until};

#[test]
fn more_clients_than_descriptors_are_served_without_spinning() {
    let mut daemon = Daemon::with(&[]).nofile(64).start();
    let clients: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(&pattern(number as u64, 1000));
    }
    clients[0].expect(&pattern(0, 1000));
    wait_until("the others are in the backlog", || {
        let queue = pending_connections(daemon.tcp());
        (36..100).contains(&queue) // The daemon itself needs some of the 64.
    });
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while 100 clients share 64 descriptors");
    clients[0].echo(b"still served");

    let mut clients = clients.into_iter().enumerate();
    let (_, first) = clients.next().unwrap();
    first.send_fin();
    first.expect_fin();
    drop(first);
    for (number, client) in clients {
        client.expect(&pattern(number as u64, 1000));
        client.echo(b"and once more");
    }
    daemon.terminate();
}

/// Returns a daemon with five open connections and no free descriptor, those connections, and the previous limit.
fn without_descriptors(arguments: &[&str]) -> (Daemon, Vec<Client>, u64) {
    let daemon = Daemon::start(arguments);
    let clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"before exhaustion"));
    // Connections use every lower number, so from now on accept4(2) returns EMFILE until one of them closes, however many
    // descriptors the daemon has reserved.
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    let previous = daemon.limit_descriptors(lowest_free as u64);
    (daemon, clients, previous)
}

#[test]
fn descriptor_exhaustion_keeps_serving_without_spinning() {
    let (daemon, clients, _) = without_descriptors(&[]);
    let waiting = daemon.connect();
    waiting.send(b"waiting");
    daemon.wait_for_log(|line| line.to_uppercase().contains("WARN") || line.to_uppercase().contains("ERROR"));
    let log = daemon.stderr();
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(20), "{cpu:?} of CPU without descriptors");
    assert_eq!(daemon.stderr(), log, "expected one line for the pause and none for each attempt");
    clients.iter().for_each(|client| client.exchange(&pattern(1, 300_000)));
    waiting.expect_nothing_yet();
    assert_eq!(pending_connections(daemon.tcp()), 1, "the new connection should wait in the backlog");
}

#[test]
fn descriptor_exhaustion_retries_accept_within_a_second() {
    let (daemon, clients, previous) = without_descriptors(&[]);
    let waiting: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    waiting.iter().for_each(|client| client.send(b"waiting"));
    clients[0].echo(b"another iteration");
    // No connection closes and none arrives, so only a timer can end the pause.
    let raised = Instant::now();
    daemon.limit_descriptors(previous);
    waiting.iter().for_each(|client| client.expect(b"waiting"));
    assert!(raised.elapsed() < Duration::from_secs(2), "served {:?} after descriptors were back", raised.elapsed());
}

#[test]
fn closed_connection_ends_descriptor_exhaustion_at_once() {
    let (daemon, mut open, _) = without_descriptors(&[]);
    let waiting: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    waiting.iter().for_each(|client| client.send(b"waiting"));
    open[0].echo(b"another iteration");
    let mut times: Vec<Duration> = waiting
        .iter()
        .map(|client| {
            client.expect_nothing_yet();
            let ended = Instant::now();
            drop(open.remove(0));
            client.expect(b"waiting");
            ended.elapsed()
        })
        .collect();
    // If a closed connection did not end the pause, each would wait for the timer, which was set a moment ago.
    times.sort();
    assert!(times[2] < Duration::from_millis(60), "expected service at once, took {times:?}");
}

#[test]
fn shutdown_during_descriptor_exhaustion_still_drains() {
    let (mut daemon, clients, _) = without_descriptors(&["--drain-timeout", "1h"]);
    daemon.freeze();
    clients.iter().for_each(|client| client.send(b"held at the signal"));
    let waiting = daemon.connect();
    waiting.send(b"in the backlog");
    daemon.signal(Signal::TERM);
    daemon.thaw();
    for client in &clients {
        client.expect(b"held at the signal");
        client.expect_fin();
        client.send_fin();
    }
    // Closed connections leave their descriptors to those in the backlog.
    waiting.expect(b"in the backlog");
    waiting.expect_fin();
    waiting.send_fin();
    daemon.expect_success();
}

#[test]
fn shutdown_without_descriptors_ends_at_drain_timeout() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1s"]);
    let first = daemon.connect();
    first.echo(b"running");
    first.send_fin();
    first.expect_fin();
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    daemon.limit_descriptors(lowest_free as u64);
    let _waiting = daemon.connect(); // No connection closes to make room for it.
    daemon.signal(Signal::TERM);
    daemon.expect_success();
}

#[test]
fn first_log_line_needs_no_free_descriptor() {
    // With -q, the line about descriptor exhaustion is the first one of the log.
    let daemon = Daemon::start(&["-q"]);
    let first = daemon.connect();
    first.echo(b"running");
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    daemon.limit_descriptors(lowest_free as u64);
    let _waiting = daemon.connect();
    daemon.wait_for_log_text("pausing accepts");
    daemon.signal(Signal::USR1);
    daemon.wait_for_log_text("connections: ");
}

#[test]
fn flapping_exhaustion_logs_a_few_lines_per_second() {
    let daemon = Daemon::start(&[]);
    daemon.connect().echo(b"running");
    let open = daemon.descriptors();
    let mut free = (0u64..).filter(|&number| !open.contains(&(number as i32)));
    daemon.limit_descriptors(free.nth(5).unwrap());
    // Six clients come and go where five fit, so that exhaustion ends and returns all the time.
    let span = Duration::from_secs(3);
    let start = Instant::now();
    let connections: usize = std::thread::scope(|scope| {
        let client = || {
            let mut count = 0;
            while start.elapsed() < span {
                daemon.connect().echo(b"served in the end");
                count += 1;
            }
            count
        };
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(client)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).sum()
    });
    let log = daemon.stderr();
    let lines = log.lines().filter(|line| line.contains("accepts")).count() as f64 / start.elapsed().as_secs_f64();
    assert!(connections > 100 && log.contains("pausing accepts"), "{connections} connections:\n{log}");
    assert!(lines <= 4.0, "{lines:.1} lines per second:\n{log}");
}

/// Returns the connection limit that the daemon has logged.
#[track_caller]
fn connection_limit(daemon: &Daemon) -> usize {
    let line = daemon.wait_for_log(|line| line.contains(": at most "));
    let number = line.split(": at most ").nth(1).and_then(|rest| rest.split(' ').next());
    number.and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("expected a number in {line}"))
}

/// Opens as many connections as the daemon allows, and one more. It must not run out of descriptors.
#[track_caller]
fn assert_limit_is_reached_without_exhaustion(daemon: &Daemon, limit: usize) {
    let clients: Vec<Client> = (0..limit).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"within the limit"));
    let _waiting = daemon.connect();
    daemon.wait_for_log_text(&format!("connection limit ({limit}) reached"));
    assert!(!daemon.stderr().contains("pausing accepts"), "{}", daemon.stderr());
}

/// A script that executes the daemon with a limit of 100 descriptors, after the parent process has left 60 open.
const LEAK: &str = "ulimit -n 100; for fd in {20..79}; do eval \"exec $fd</dev/null\"; done; exec \"$@\"";

#[test]
fn inherited_descriptors_lower_the_connection_limit() {
    let daemon = Daemon::with(&[]).through(&["bash", "-c", LEAK, "bash"]).start();
    let limit = connection_limit(&daemon);
    assert!((20..40).contains(&limit), "expected a limit below the 40 remaining descriptors, got {limit}");
    assert_limit_is_reached_without_exhaustion(&daemon, limit);
}

#[test]
fn inherited_descriptors_are_counted_without_proc() {
    let script = format!("mount -t tmpfs none /proc && {LEAK}");
    let wrapper = ["unshare", "--mount", "bash", "-c", &script, "bash"];
    let mut attempt = Command::new(wrapper[0]);
    attempt.args(&wrapper[1..]).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    if !attempt.status().is_ok_and(|status| status.success()) {
        return skip_missing("root and unshare, for a mount namespace without /proc");
    }
    let daemon = Daemon::with(&[]).through(&wrapper).start();
    let limit = connection_limit(&daemon);
    assert!((20..40).contains(&limit), "expected a limit below the 40 remaining descriptors, got {limit}");
    assert_limit_is_reached_without_exhaustion(&daemon, limit);
}

#[test]
fn too_few_descriptors_exit_1_with_the_number_needed() {
    for arguments in
        [&["-l", "127.0.0.1:0"][..], &["-l", "127.0.0.1:0", "-l", "127.0.0.1:0", "--metrics", "127.0.0.1:0"]]
    {
        let start = |limit: u64| Daemon::with(arguments).nofile(limit);
        let mut limit = 6;
        // The number is the least that may do. It rises if descriptors above the limit, which were not counted, are open.
        for _ in 0..20 {
            let mut daemon = start(limit).spawn();
            let started = eventually("the daemon starts or exits", || match daemon.exit_code() {
                Some(code) => Some(Err(code)),
                None => daemon.stderr().contains("at most").then_some(Ok(())),
            });
            let Err(code) = started else { break };
            let log = daemon.whole_stderr();
            assert_eq!((code, log.lines().count(), daemon.whole_stdout().as_str()), (1, 1, ""), "limit {limit}: {log}");
            let expected = format!("echod: the file descriptor limit is {limit}, but at least ");
            let rest = log.strip_prefix(&expected).unwrap_or_else(|| panic!("limit {limit}: {log}"));
            let needed: u64 = rest.split(' ').next().unwrap().parse().unwrap();
            assert!(needed > limit, "{log}");
            limit = needed;
        }
        let daemon = start(limit).start();
        assert_limit_is_reached_without_exhaustion(&daemon, 1);
    }
}
