//! Black-box tests of the daemon: each test starts the binary on a free port and connects to it.
//!
//! There is one module for each topic, and for each option with a behavior of its own. All of them
//! form one crate, so that they are linked only once. The name of a test states what the daemon
//! promises.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod check;
mod command_line;
mod connection;
mod descriptors;
mod exit_status;
mod fairness;
mod faults;
mod idle_timeout;
mod listen;
mod memory;
mod one_shot;
mod output;
mod scale;
mod signals;
mod startup;
mod tails;
mod terminal;
mod unix_socket;

use std::thread;
use std::time::{Duration, Instant};

use support::{Client, Daemon, Directory};

/// Runs a test over TCP and then over a Unix socket, because a connection behaves the same on both.
fn over_each_kind(arguments: &[&str], test: impl Fn(&mut Daemon)) {
    test(&mut Daemon::start(arguments));
    let directory = Directory::new();
    test(&mut Daemon::start_unix(&directory.join("echo.sock"), arguments));
}

/// Sends copies of `portion`, each after the daemon has read all of the previous one, until one stays unread for a
/// second: the connection is stalled, although the daemon's receive buffer has room. Returns the number of bytes sent.
#[track_caller]
fn send_until_unread(client: &Client, portion: &[u8]) -> usize {
    let is_read = || {
        let unread = client.remote_socket().is_none_or(|socket| socket.unread > 0);
        let in_flight = client.local_socket().is_none_or(|socket| socket.unacknowledged > 0);
        !unread && !in_flight
    };
    let mut sent = 0;
    for _ in 0..5000 {
        client.send(portion);
        sent += portion.len();
        let deadline = Instant::now() + Duration::from_secs(1);
        while !is_read() {
            if Instant::now() > deadline {
                return sent;
            }
            thread::sleep(Duration::from_micros(200));
        }
    }
    panic!("the daemon should stop reading from a client that reads nothing; sent {sent} bytes");
}

/// Asserts that the daemon sleeps: for a second it neither wakes up nor uses CPU time.
///
/// Tries several times, because on a busy machine it takes a while until the daemon has handled the last events.
#[track_caller]
fn assert_sleeps(daemon: &Daemon) {
    let (mut wakeups, mut cpu) = (0, Duration::ZERO);
    for _ in 0..5 {
        let before = daemon.sleep_count();
        cpu = daemon.cpu_time_during(Duration::from_secs(1));
        wakeups = daemon.sleep_count() - before;
        if wakeups == 0 && cpu <= Duration::from_millis(10) {
            return;
        }
    }
    panic!("the daemon should sleep, but within one second it woke up {wakeups} times and used {cpu:?} of CPU time");
}

/// Asserts that the daemon uses at most `margin` bytes more than `before`.
#[track_caller]
fn assert_memory_has_not_grown(daemon: &Daemon, before: usize, margin: usize) {
    let now = daemon.memory();
    assert!(now <= before + margin, "memory should not grow from round to round: {before} bytes before, {now} now");
}
