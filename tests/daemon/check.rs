//! `--check`: the daemon's own client, against the daemon and against servers that fail in other ways.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::{Daemon, Directory, RunOutput, unix};

fn check(address: &str) -> RunOutput {
    Daemon::with(&["--check", address]).without_listen().run()
}

#[track_caller]
fn assert_passes(address: &str) {
    let RunOutput { code, stdout, stderr } = check(address);
    assert_eq!((code, stderr.as_str()), (0, ""), "{address}");
    let is_one_line = stdout.ends_with(" ms\n") && stdout.lines().count() == 1;
    assert!(is_one_line && stdout.contains(": 64 bytes echoed in "), "{address}: {stdout:?}");
}

#[track_caller]
fn assert_fails(address: &str, reason: &str) {
    let start = Instant::now();
    let RunOutput { code, stdout, stderr } = check(address);
    assert_eq!((code, stdout.as_str()), (1, ""), "{address}: {stderr}");
    let is_one_line = stderr.starts_with("echod: ") && stderr.ends_with('\n') && stderr.lines().count() == 1;
    assert!(is_one_line && stderr.contains(reason), "{address}: expected {reason:?}, got {stderr:?}");
    assert!(start.elapsed() < Duration::from_secs(5), "{address}: took {:?}", start.elapsed());
}

#[test]
fn running_daemon_passes_the_check() {
    let directory = Directory::new();
    let socket = unix(&directory.join("echo.sock"));
    let abstract_name = format!("unix:@echod-test-check-{}", std::process::id());
    let daemon = Daemon::start(&["--listen", "127.0.0.1:0", "--listen", &socket, "--listen", &abstract_name]);
    let address = daemon.tcp();
    assert_passes(&address.to_string());
    assert_passes(&address.port().to_string());
    assert_passes(&format!("localhost:{}", address.port()));
    assert_passes(&socket);
    assert_passes(&abstract_name);
}

#[test]
fn one_shot_daemon_passes_the_check() {
    let daemon = Daemon::start(&["--one-shot"]);
    assert_passes(&daemon.tcp().to_string());
}

#[test]
fn port_alone_reaches_an_ipv6_only_server() {
    let daemon = Daemon::start(&["--listen", "[::1]:0"]);
    assert_passes(&daemon.tcp().port().to_string());
}

#[test]
fn missing_server_fails_the_check() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = format!("cannot connect to tcp://{free}: Connection refused (os error 111)");
    assert_fails(&free.to_string(), &refused);
    assert_fails(&free.port().to_string(), &refused);
    assert_fails("unix:/nowhere/echo.sock", "cannot connect to unix:///nowhere/echo.sock: No such file or directory");
    assert_fails("nowhere.invalid:7", "cannot resolve nowhere.invalid: ");
}

#[test]
fn silent_server_fails_the_check_within_5_s() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_fails(&silent.local_addr().unwrap().to_string(), "0 of 64 bytes received: timed out");
}

#[test]
fn unix_server_with_full_backlog_fails_within_5_s() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _waiting = std::os::unix::net::UnixStream::connect(&path).unwrap();
    assert_fails(&unix(&path), &format!("cannot connect to unix://{}: timed out", path.display()));
}

#[test]
fn wrong_server_fails_the_check() {
    let directory = Directory::new();
    let path = directory.join("greeter.sock");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(&[b'.'; 100]).unwrap();
        stream.read_to_end(&mut Vec::new())
    });
    assert_fails(&unix(&path), "byte 0 of the echo is 0x2e");
}

#[test]
fn check_with_closed_stdout_fails() {
    let daemon = Daemon::start(&[]);
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let address = daemon.tcp().to_string();
    let finished = Daemon::with(&["--check", &address]).without_listen().stdout(full).run();
    assert_eq!(finished.code, 1, "{}", finished.stderr);
    assert!(finished.stderr.starts_with("echod: cannot write to stdout: "), "{}", finished.stderr);
}
