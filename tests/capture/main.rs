//! Segments on the wire, captured between two network namespaces: those of the tutorial, and those that `--explain` prints.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod explained;
mod network;
mod tutorial;

use support::{Daemon, wait_until};

/// Waits until the only connection of the daemon is in FIN-WAIT-2 (05) and no longer belongs to a process (inode 0).
#[track_caller]
fn wait_until_closed(daemon: &Daemon) {
    wait_until("the daemon has closed", || {
        daemon.proc("net/tcp").lines().any(|row| {
            let fields: Vec<&str> = row.split_ascii_whitespace().collect();
            fields.get(3) == Some(&"05") && fields.get(9) == Some(&"0")
        })
    });
}
