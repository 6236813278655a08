//! Out of file descriptors: pausing accepts, open connections go on, and the wait costs no CPU.

use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, Signal, pattern, pending_connections, wait_until};

#[test]
fn more_clients_than_descriptors_are_served_without_spinning() {
    let mut daemon = Daemon::with(&[]).nofile(64).start();
    let clients: Vec<Client> = (0..100).map(|_| daemon.connect()).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(&pattern(number as u64, 1000));
    }
    clients[0].expect(&pattern(0, 1000));
    wait_until("the others wait in the queue", || {
        let queue = pending_connections(daemon.tcp());
        (36..100).contains(&queue) // Of 64 some are its own.
    });
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU while 100 clients share 64 descriptors");
    clients[0].echo(b"open connections go on");

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

/// A daemon with a few open connections and not one descriptor to spare, and the limit that it had before.
fn without_descriptors(arguments: &[&str]) -> (Daemon, Vec<Client>, u64) {
    let daemon = Daemon::start(arguments);
    let clients: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"before the famine"));
    // Connections have taken every lower number, so from here on accept4(2) says EMFILE, whatever the daemon has
    // planned for, until one of them ends.
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    let plenty = daemon.limit_descriptors(lowest_free as u64);
    (daemon, clients, plenty)
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
    assert_eq!(daemon.stderr(), log, "a line for the pause, and none for each attempt");
    clients.iter().for_each(|client| client.exchange(&pattern(1, 300_000)));
    waiting.expect_nothing_yet();
    assert_eq!(pending_connections(daemon.tcp()), 1, "the kernel's queue holds the newcomer");
}

#[test]
fn descriptor_exhaustion_retries_accept_within_a_second() {
    let (daemon, clients, plenty) = without_descriptors(&[]);
    let waiting: Vec<Client> = (0..10).map(|_| daemon.connect()).collect();
    waiting.iter().for_each(|client| client.send(b"waiting"));
    clients[0].echo(b"the loop has been round");
    // Nothing of ours ends, and nobody comes: only a timer can tell.
    let raised = Instant::now();
    daemon.limit_descriptors(plenty);
    waiting.iter().for_each(|client| client.expect(b"waiting"));
    assert!(raised.elapsed() < Duration::from_secs(2), "served {:?} after descriptors were back", raised.elapsed());
}

#[test]
fn closed_connection_ends_descriptor_exhaustion_at_once() {
    let (daemon, mut open, _) = without_descriptors(&[]);
    let waiting: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    waiting.iter().for_each(|client| client.send(b"waiting"));
    open[0].echo(b"the loop has been round");
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
    // Without a word from the connection that ended, each would wait for the timer, which was set a moment ago.
    times.sort();
    assert!(times[2] < Duration::from_millis(60), "served only after {times:?}");
}

#[test]
fn shutdown_during_descriptor_exhaustion_still_drains() {
    let (mut daemon, clients, _) = without_descriptors(&["--drain-timeout", "1h"]);
    daemon.freeze();
    clients.iter().for_each(|client| client.send(b"held at the signal"));
    let waiting = daemon.connect();
    waiting.send(b"in the queue");
    daemon.signal(Signal::TERM);
    daemon.thaw();
    for client in &clients {
        client.expect(b"held at the signal");
        client.expect_fin();
        client.send_fin();
    }
    // Those who have ended leave their descriptors to those who wait in the queue.
    waiting.expect(b"in the queue");
    waiting.expect_fin();
    waiting.send_fin();
    daemon.expect_success();
}

#[test]
fn shutdown_without_descriptors_ends_at_drain_timeout() {
    let mut daemon = Daemon::start(&["--drain-timeout", "1s"]);
    let first = daemon.connect();
    first.echo(b"the loop is under way");
    first.send_fin();
    first.expect_fin();
    let open = daemon.descriptors();
    let lowest_free = (0..).find(|number| !open.contains(number)).unwrap();
    daemon.limit_descriptors(lowest_free as u64);
    let _waiting = daemon.connect(); // Nobody ends who could make room for it.
    daemon.signal(Signal::TERM);
    daemon.expect_success();
}

#[test]
fn first_log_line_needs_no_free_descriptor() {
    // Twenty descriptors that a parent left open, of which the cap knows nothing: it comes to EMFILE. With -q, that is
    // the first thing there is to say.
    let inherited: String = (20..40).map(|fd| format!("exec {fd}</dev/null; ")).collect();
    let script = format!("ulimit -n 45; {inherited} exec \"$@\"");
    let daemon = Daemon::with(&["-q"]).through(&["bash", "-c", &script, "bash"]).start();
    let clients: Vec<Client> = (0..28).map(|_| daemon.connect()).collect();
    daemon.wait_for_log_text("pausing accepts");
    daemon.signal(Signal::USR1);
    daemon.wait_for_log_text("connections: ");
    drop(clients);
}
