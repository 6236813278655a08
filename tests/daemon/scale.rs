//! Many connections, and long streams.

use std::io::Read;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::assert_memory_has_not_grown;
use crate::support::{Client, Daemon, Random, assert_same, pattern, wait_until};

/// Returns the wanted number of connections, or less if the limit on file descriptors is too low.
fn possible_connections(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    // Other tests of this process need descriptors at the same time: leave 2000 of them, or half of a low limit.
    let max = limit.maximum.map_or(wanted, |max| (max as usize).saturating_sub(2000).max(max as usize / 2));
    if max < wanted {
        crate::support::skip(&format!("only {max} of {wanted} connections, because RLIMIT_NOFILE does not allow more"));
    }
    wanted.min(max)
}

#[test]
fn ten_thousand_connections_get_their_own_echo() {
    let count = possible_connections(10_000);
    let mut daemon = Daemon::start(&[]);
    daemon.connect().echo(b"warm up");
    let before = daemon.memory();
    let clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    let mut random = Random::new(10_000);
    for round in 0..2 {
        let messages: Vec<Vec<u8>> =
            (0..count).map(|number| pattern((round * count + number) as u64, random.between(1, 1500))).collect();
        // All messages are sent before the first echo is read.
        clients.iter().zip(&messages).for_each(|(client, message)| client.send(message));
        clients.iter().zip(&messages).for_each(|(client, message)| client.expect(message));
    }
    // 64 bytes in a release build, one word more in a debug build, and 17 bytes for the deadline. A vector that has
    // just doubled its capacity may use twice as much.
    let each = daemon.memory().saturating_sub(before) / count;
    assert!(each <= 256, "an idle connection should use at most 256 bytes of user memory, not {each}");

    clients.iter().for_each(Client::send_fin);
    clients.iter().for_each(Client::expect_fin);
    wait_until("the daemon has closed the descriptors of all connections", || daemon.descriptors().len() < 50);
    daemon.connect().echo(b"still serving");
    daemon.terminate();
}

#[test]
fn long_stream_reaches_slow_reader_unchanged() {
    let daemon = Daemon::start(&[]);
    let bytes = pattern(64, 64 << 20);
    let client = daemon.connect();
    thread::scope(|scope| {
        scope.spawn(|| {
            client.send(&bytes);
            client.send_fin();
        });
        let mut got = Vec::with_capacity(bytes.len());
        let mut chunk = vec![0; 256 << 10];
        loop {
            match (&client.socket).read(&mut chunk).unwrap() {
                0 => break,
                length => got.extend_from_slice(&chunk[..length]),
            }
            // Slow on purpose, so that the connection stalls again and again.
            thread::sleep(Duration::from_millis(2));
        }
        assert_same(&got, &bytes);
    });
}

#[test]
fn two_thousand_simultaneous_messages_are_all_echoed() {
    // More connections than one call of epoll_wait(2) reports.
    let count = possible_connections(2000);
    let daemon = Daemon::start(&[]);
    let clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"accepted"));
    for round in 0..3 {
        daemon.freeze();
        let message = |number: usize| pattern((round * 2000 + number) as u64, 100);
        clients.iter().enumerate().for_each(|(number, client)| client.send(&message(number)));
        daemon.thaw();
        clients.iter().enumerate().for_each(|(number, client)| client.expect(&message(number)));
    }
}

#[test]
fn consecutive_short_connections_leak_nothing() {
    let daemon = Daemon::start(&[]);
    let mut memory = 0;
    for round in 0..3 {
        for number in 0..1000_u64 {
            let client = daemon.connect();
            client.echo(&number.to_le_bytes());
            client.send_fin();
            client.expect_fin();
        }
        match round {
            0 => memory = daemon.memory(),
            _ => assert_memory_has_not_grown(&daemon, memory, 64 << 10),
        }
    }
    wait_until("the daemon has closed the descriptors of all connections", || daemon.descriptors().len() < 50);
}
