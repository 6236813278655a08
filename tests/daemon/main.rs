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

use support::{Daemon, Directory};

/// Runs a test over TCP and then over a Unix socket, because a connection behaves the same on both.
fn over_each_kind(arguments: &[&str], test: impl Fn(&mut Daemon)) {
    test(&mut Daemon::start(arguments));
    let directory = Directory::new();
    test(&mut Daemon::start_unix(&directory.join("echo.sock"), arguments));
}

/// Asserts that the daemon uses at most `margin` bytes more than `before`.
#[track_caller]
fn assert_memory_has_not_grown(daemon: &Daemon, before: usize, margin: usize) {
    let now = daemon.memory();
    assert!(now <= before + margin, "memory should not grow from round to round: {before} bytes before, {now} now");
}
