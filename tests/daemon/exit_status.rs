//! The contract's section "Exit status". Status 2 is tested in `command_line.rs`, Unix paths in `unix_socket.rs`.

use std::fs::File;
use std::io::pipe;
use std::net::TcpListener;
use std::process::Stdio;
use std::time::Duration;

use crate::support::{Client, Daemon, Directory, Signal, TIMEOUT};

#[test]
fn sigterm_and_sigint_exit_with_status_0() {
    for signal in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&[]);
        daemon.connect().echo(b"hello");
        daemon.signal(signal);
        daemon.expect_success();
    }
}

#[test]
fn forced_close_at_drain_timeout_exits_with_status_0() {
    let mut daemon = Daemon::start(&["--drain-timeout", "100ms"]);
    let silent = daemon.connect();
    silent.echo(b"hello");
    let stalled = Client::connect_with_small_buffers(daemon.address());
    stalled.send_until_stalled(&[7; 65_536], Duration::from_millis(200), 64 << 20);
    daemon.terminate();
}

#[test]
fn second_signal_exits_with_status_0() {
    for second in [Signal::TERM, Signal::INT] {
        let mut daemon = Daemon::start(&["--drain-timeout", "1h"]);
        let client = daemon.connect();
        client.echo(b"hello");
        daemon.signal(Signal::TERM);
        client.expect_fin();
        daemon.signal(second);
        daemon.expect_success();
    }
}

#[test]
fn address_in_use_exits_1_with_one_line() {
    let taken = TcpListener::bind("127.0.0.31:0").unwrap();
    let address = taken.local_addr().unwrap();
    let finished = Daemon::with(&["--listen", &address.to_string()]).run();
    let expected = format!("echod: cannot listen on {address}: Address already in use (os error 98)\n");
    assert_eq!((finished.code, finished.stderr, finished.stdout), (1, expected, String::new()));
}

#[test]
fn foreign_address_exits_1_with_one_line() {
    // 192.0.2.0/24 is reserved for documentation (RFC 5737).
    let finished = Daemon::with(&["--listen", "192.0.2.1:0"]).run();
    let expected = "echod: cannot listen on 192.0.2.1:0: Cannot assign requested address (os error 99)\n";
    assert_eq!((finished.code, finished.stderr.as_str(), finished.stdout.as_str()), (1, expected, ""));
}

#[test]
fn failed_bind_prints_no_listening_line() {
    let taken = TcpListener::bind("127.0.0.32:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let finished = Daemon::with(&["-l", "127.0.0.1:0", "-l", &address, "-l", "127.0.0.1:0"]).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
    assert!(finished.stderr.contains(&address), "{}", finished.stderr);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
}

#[test]
fn unresolvable_name_exits_1_with_one_line() {
    // Names under .invalid never resolve (RFC 6761).
    let finished = Daemon::with(&["--listen", "nowhere.invalid:9999"]).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
    let begins = finished.stderr.starts_with("echod: cannot listen on nowhere.invalid:9999: ");
    assert!(begins && finished.stderr.lines().count() == 1, "{}", finished.stderr);
}

#[test]
fn startup_error_is_printed_at_any_log_level() {
    let taken = TcpListener::bind("127.0.0.33:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for filter in ["off", "error"] {
        let finished = Daemon::with(&["-q", "--listen", &address]).env("RUST_LOG", filter).run();
        assert_eq!(finished.code, 1);
        assert!(finished.stderr.starts_with("echod: cannot listen on"), "RUST_LOG={filter}: {:?}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
}

#[test]
fn unwritable_stdout_at_startup_exits_with_status_1() {
    // A full disk, and a pipe whose reader is gone.
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let full = File::options().write(true).open("/dev/full").unwrap();
    let cases: [(Stdio, &str); 2] =
        [(full.into(), "No space left on device (os error 28)"), (writer.into(), "Broken pipe (os error 32)")];
    for (stdout, reason) in cases {
        let finished = Daemon::with(&[]).stdout(stdout).run();
        assert_eq!(finished.code, 1, "{}", finished.stderr);
        let line = finished.stderr.trim_end();
        assert!(line.starts_with("echod: ") && line.ends_with(reason), "{line:?}");
        assert_eq!(finished.stderr.lines().count(), 1, "{line:?}");
    }
}

#[test]
fn stdout_file_beyond_size_limit_exits_with_status_1() {
    let directory = Directory::new();
    let file = File::create(directory.join("stdout")).unwrap();
    let finished = Daemon::with(&[]).shell("ulimit -f 0; exec \"$@\"").stdout(file).run();
    assert_eq!((finished.code, finished.stderr.lines().count()), (1, 1), "{}", finished.stderr);
    let expected = "echod: cannot write to stdout: File too large (os error 27)\n";
    assert_eq!(finished.stderr, expected);
}

#[test]
fn read_only_stdout_exits_with_status_1() {
    let finished = Daemon::with(&[]).stdout(File::open("/dev/null").unwrap()).run();
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert_eq!(finished.stderr, "echod: cannot write to stdout: Bad file descriptor (os error 9)\n");
}

#[test]
fn help_on_a_closed_pipe_does_not_panic() {
    // `echod --help | head -1`: any status, but no panic.
    let (reader, writer) = pipe().unwrap();
    drop(reader);
    let mut daemon = Daemon::with(&["--help"]).stdout(writer).spawn();
    let status = daemon.wait_exit(TIMEOUT);
    assert_ne!(status.code(), Some(101), "panicked: {}", daemon.whole_stderr());
    assert!(!daemon.whole_stderr().contains("panicked"), "{}", daemon.whole_stderr());
}
