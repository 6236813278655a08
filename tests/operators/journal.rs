//! The log format with and without the journal.

use std::fs;
use std::os::unix::fs::MetadataExt;

use crate::support::{Daemon, Directory, Signal, wait_until};

/// Runs a daemon whose stderr is a file, with JOURNAL_STREAM set to that file or to another, and returns the whole log.
fn log_of(arguments: &[&str], journal_is_stderr: bool) -> String {
    let directory = Directory::new();
    let path = directory.join("stderr");
    let stderr = fs::File::create(&path).unwrap();
    let is = stderr.metadata().unwrap();
    let inode = if journal_is_stderr { is.ino() } else { is.ino() + 1 };
    let stream = format!("JOURNAL_STREAM={}:{inode}", is.dev());
    let mut daemon = Daemon::with(arguments).through(&["env", &stream]).stderr(stderr).start();
    let client = daemon.connect();
    client.echo(b"a line at debug");
    daemon.signal(Signal::USR1);
    wait_until("the counters are printed", || fs::read_to_string(&path).unwrap().contains("1 accepted"));
    daemon.close_and_terminate(client);
    fs::read_to_string(&path).unwrap()
}

#[test]
fn journal_lines_have_level_prefix_and_no_timestamp() {
    let log = log_of(&["-v"], true);
    assert!(log.starts_with("<6>echod "), "{log}");
    assert!(log.contains("\n<7>connection 1 from 127.0.0.1:"), "{log}");
    assert!(log.contains("\n<6>SIGTERM received: shutting down"), "{log}");
    assert!(log.contains("\n<6>connections: 1 accepted"), "{log}");
    assert!(!log.contains("INFO") && !log.contains('['), "{log}");
}

#[test]
fn foreign_journal_stream_changes_nothing() {
    let log = log_of(&["-v"], false);
    assert!(log.starts_with('[') && log.contains(" INFO ") && log.contains(" DEBUG"), "{log}");
    assert!(!log.contains("<6>") && !log.contains("<7>"), "{log}");
}

#[test]
fn startup_error_has_error_priority_in_the_journal() {
    let directory = Directory::new();
    let path = directory.join("stderr");
    let stderr = fs::File::create(&path).unwrap();
    let is = stderr.metadata().unwrap();
    let stream = format!("JOURNAL_STREAM={}:{}", is.dev(), is.ino());
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = format!("--listen={}", taken.local_addr().unwrap());
    let finished = Daemon::with(&[&listen]).through(&["env", &stream]).stderr(stderr).run();
    assert_eq!(finished.code, 1);
    let log = fs::read_to_string(&path).unwrap();
    assert!(log.starts_with("<3>echod: cannot listen on "), "{log}");
    assert_eq!(log.lines().count(), 1, "{log}");
}
