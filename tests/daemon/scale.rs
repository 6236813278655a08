//! Many connections, and much on one.

use std::io::Read;
use std::thread;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::{Client, Daemon, Random, assert_same, pattern, wait_until};

/// As many connections as wanted, or as our descriptors and the daemon's allow.
fn affordable(wanted: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    // What the other tests of this process may need at the same time stays free.
    let most = limit.maximum.map_or(wanted, |most| (most as usize).saturating_sub(2000).max(most as usize / 2));
    if most < wanted {
        crate::support::skip(&format!("{wanted} connections: RLIMIT_NOFILE allows {most}, and so many it is"));
    }
    wanted.min(most)
}

#[test]
fn ten_thousand_connections_get_their_own_echo() {
    let count = affordable(10_000);
    let mut daemon = Daemon::start(&[]);
    daemon.connect().echo(b"warm up");
    let before = daemon.memory();
    let clients: Vec<Client> = (0..count).map(|_| daemon.connect()).collect();
    let mut random = Random::new(10_000);
    for round in 0..2 {
        let messages: Vec<Vec<u8>> =
            (0..count).map(|number| pattern((round * count + number) as u64, random.between(1, 1500))).collect();
        // All are under way before the first is read.
        clients.iter().zip(&messages).for_each(|(client, message)| client.send(message));
        clients.iter().zip(&messages).for_each(|(client, message)| client.expect(message));
    }
    // 64 bytes in release, a word more in debug, and 17 of deadline, which a doubling vector may have twice.
    let each = daemon.memory().saturating_sub(before) / count;
    assert!(each <= 256, "{each} bytes of user memory for each idle connection");

    clients.iter().for_each(Client::send_fin);
    clients.iter().for_each(Client::expect_fin);
    wait_until("every descriptor is back", || daemon.descriptors().len() < 50);
    daemon.connect().echo(b"none is left behind");
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
            // The slowness is what is tested: the daemon stalls again and again.
            thread::sleep(Duration::from_millis(2));
        }
        assert_same(&got, &bytes);
    });
}

#[test]
fn two_thousand_simultaneous_messages_are_all_echoed() {
    // More than a batch of events holds.
    let clients_wanted = affordable(2000);
    let daemon = Daemon::start(&[]);
    let clients: Vec<Client> = (0..clients_wanted).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"in"));
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
            _ => assert!(daemon.memory() <= memory + (64 << 10), "{memory} has become {}", daemon.memory()),
        }
    }
    wait_until("every descriptor is back", || daemon.descriptors().len() < 50);
}
