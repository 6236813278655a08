//! The contract, tested from outside: each test starts the built daemon on a free port and talks to it.
//!
//! One crate, so that it links once; one module per section of the contract, or per option with a
//! behaviour of its own. A test is named as the promise that it holds the daemon to.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod command_line;
mod connection;
mod descriptors;
mod exit_status;
mod faults;
mod idle_timeout;
mod listen;
mod one_shot;
mod output;
mod scale;
mod signals;
mod unix_socket;

use support::{Daemon, Directory};

/// Runs a test over TCP and then over a Unix socket: a connection's promises hold on both.
fn over_each_kind(arguments: &[&str], test: impl Fn(&mut Daemon)) {
    test(&mut Daemon::start(arguments));
    let directory = Directory::new();
    test(&mut Daemon::start_unix(&directory.join("echo.sock"), arguments));
}
