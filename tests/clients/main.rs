//! Tests with the programs that people use as clients of an echo server.
//!
//! Missing programs are skipped with a message, or fail with `ECHOD_REQUIRE_TOOLS=1`. The Debian packages
//! are netcat-openbsd, netcat-traditional, ncat, socat, telnet, curl, python3 and haproxy.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod haproxy;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Instant;

use support::{Daemon, Directory, TIMEOUT, assert_same, has_program, pattern, skip_missing};

/// Length of a message that does not fit into the kernel's buffers: a program that does not read while it
/// writes stalls.
const LONG: usize = 8 << 20;

/// Returns whether the program is installed. If it is not, prints that the test is skipped, or panics
/// with `ECHOD_REQUIRE_TOOLS=1`.
#[track_caller]
pub fn is_installed(program: &str) -> bool {
    let installed = has_program(program);
    if !installed {
        skip_missing(program);
    }
    installed
}

/// A client program that passes its stdin to the daemon, and the echo to its stdout. Killed when dropped.
struct Program {
    child: Child,
    stdout: Receiver<Vec<u8>>,
    output: Vec<u8>,
}

impl Program {
    #[track_caller]
    fn start(command: &mut Command) -> Program {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut pipe = child.stdout.take().unwrap();
        let (sender, stdout) = channel();
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                if sender.send(buffer[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        Program { child, stdout, output: Vec::new() }
    }

    /// Starts a program that expects an IP address and a port as its last arguments.
    #[track_caller]
    fn connect(address: SocketAddr, program: &str, options: &[&str]) -> Program {
        let mut command = Command::new(program);
        Program::start(command.args(options).arg(address.ip().to_string()).arg(address.port().to_string()))
    }

    /// Writes to the program's stdin.
    #[track_caller]
    fn write(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Writes all bytes to the program's stdin from another thread, and then closes it, so that the test can
    /// read the output meanwhile.
    fn write_all_and_close(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.child.stdin.take().unwrap();
        thread::spawn(move || stdin.write_all(&bytes));
    }

    /// Closes the program's stdin, like Ctrl-D in a terminal.
    fn close_stdin(&mut self) {
        self.child.stdin = None;
    }

    /// Reads the program's output until `is_enough` returns true for it. Returns false if the program closes
    /// its stdout first.
    #[track_caller]
    fn read_until(&mut self, is_enough: impl Fn(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + TIMEOUT;
        while !is_enough(&self.output) {
            match self.stdout.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.output.extend_from_slice(&bytes),
                Err(RecvTimeoutError::Disconnected) => return false,
                Err(RecvTimeoutError::Timeout) => {
                    panic!("the program should have written more within {TIMEOUT:?} than {} bytes", self.output.len())
                }
            }
        }
        true
    }

    /// Asserts that the program writes exactly these bytes next.
    #[track_caller]
    fn expect(&mut self, expected: &[u8]) {
        self.read_until(|output| output.len() >= expected.len());
        assert_same(&self.output, expected);
        self.output.clear();
    }

    /// Asserts that the program writes exactly these bytes and then exits by itself. Returns its exit status.
    #[track_caller]
    fn expect_exit(&mut self, expected: &[u8]) -> ExitStatus {
        self.read_until(|_| false);
        assert_same(&self.output, expected);
        self.child.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn assert_success(status: ExitStatus) {
    assert!(status.success(), "the program should exit with status 0, got: {status}");
}

/// Asserts that the daemon's log gives this reason for the close of its only connection.
#[track_caller]
fn expect_close_reason(daemon: &Daemon, reason: &str) {
    let line = daemon.wait_for_log(|line| line.contains(" closed: "));
    assert!(line.contains(&format!(" closed: {reason}")), "expected the close reason {reason}, got: {line}");
}

/// Sends a long message through a program that sends FIN at the end of its input, and exits after the
/// daemon's FIN.
#[track_caller]
fn assert_echoes_and_exits(program: &str, options: &[&str]) {
    let daemon = Daemon::start(&["-v"]);
    let bytes = pattern(1, LONG);
    let mut process = Program::connect(daemon.tcp(), program, options);
    process.write_all_and_close(bytes.clone());
    assert_success(process.expect_exit(&bytes));
    expect_close_reason(&daemon, "finished");
}

#[test]
fn openbsd_nc_echoes_and_exits() {
    if is_installed("nc.openbsd") {
        assert_echoes_and_exits("nc.openbsd", &["-N"]);
    }
}

#[test]
fn openbsd_nc_without_n_waits_for_idle_timeout() {
    if !is_installed("nc.openbsd") {
        return;
    }
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let mut process = Program::connect(daemon.tcp(), "nc.openbsd", &[]);
    process.write(b"hello\n");
    process.close_stdin();
    process.expect(b"hello\n");
    // Without -N, nc does not send FIN at the end of its input. The idle timeout closes the connection, and nc exits.
    assert_success(process.expect_exit(b""));
    expect_close_reason(&daemon, "idle");
}

#[test]
fn openbsd_nc_works_over_unix_socket() {
    if !is_installed("nc.openbsd") {
        return;
    }
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let _daemon = Daemon::start_unix(&path, &[]);
    let bytes = pattern(2, LONG);
    let mut process = Program::start(Command::new("nc.openbsd").arg("-NU").arg(&path));
    process.write_all_and_close(bytes.clone());
    assert_success(process.expect_exit(&bytes));
}

#[test]
fn traditional_nc_echoes_and_exits() {
    if !is_installed("nc.traditional") {
        return;
    }
    // It never sends FIN by itself; with `-q 1` it exits one second after the end of its input.
    let daemon = Daemon::start(&["-v"]);
    let mut process = Program::connect(daemon.tcp(), "nc.traditional", &["-q", "1"]);
    let bytes = pattern(3, 100_000);
    process.write(&bytes);
    process.expect(&bytes);
    process.close_stdin();
    process.expect_exit(b"");
    expect_close_reason(&daemon, "finished");
}

#[test]
fn ncat_echoes_and_exits() {
    if is_installed("ncat") {
        assert_echoes_and_exits("ncat", &[]);
    }
}

#[test]
fn socat_echoes_and_exits() {
    if !is_installed("socat") {
        return;
    }
    // It sends FIN at the end of its input, and then waits for the echo; -t limits how long, in seconds.
    let daemon = Daemon::start(&["-v"]);
    let bytes = pattern(4, LONG);
    let mut process = Program::start(Command::new("socat").args(["-t", "30", "-", &format!("TCP:{}", daemon.tcp())]));
    process.write_all_and_close(bytes.clone());
    assert_success(process.expect_exit(&bytes));
    expect_close_reason(&daemon, "finished");
}

#[test]
fn telnet_gets_its_lines_back() {
    if !is_installed("telnet") {
        return;
    }
    // On a port other than 23 it sends its input as it is, except that it ends lines with CR LF.
    let daemon = Daemon::start(&["-v"]);
    let mut process = Program::connect(daemon.tcp(), "telnet", &["-E"]);
    for line in ["hello", "a second line", "and a third"] {
        process.write(format!("{line}\n").as_bytes());
        let contains_line = |output: &[u8]| output.windows(line.len()).any(|window| window == line.as_bytes());
        assert!(process.read_until(contains_line), "telnet should print the echo of {line:?}");
    }
    process.close_stdin();
    process.read_until(|_| false);
    expect_close_reason(&daemon, "finished");
}

#[test]
fn curl_telnet_gets_its_lines_back() {
    if !is_installed("curl") {
        return;
    }
    // At the end of its input it does not send FIN, but waits for the server's. The idle timeout closes the connection.
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let url = format!("telnet://{}", daemon.tcp());
    let mut process = Program::start(Command::new("curl").args(["--silent", "--no-buffer", &url]));
    for line in ["hello\n", "a second line\n", "and a third\n"] {
        process.write(line.as_bytes());
        process.expect(line.as_bytes());
    }
    process.close_stdin();
    assert_success(process.expect_exit(b""));
    expect_close_reason(&daemon, "idle");
}

/// A client like those in socket programming tutorials, except that it sends from a thread: a `sendall` of a
/// long message before the first `recv` would block itself (trap T31).
const PYTHON: &str = r#"
import hashlib, socket, sys, threading
host, port, length = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
message = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(length // 32))
with socket.create_connection((host, port), timeout=30) as s:
    s.sendall(b"hello")
    assert s.recv(5, socket.MSG_WAITALL) == b"hello"
    def send():
        s.sendall(message)
        s.shutdown(socket.SHUT_WR)
    sender = threading.Thread(target=send)
    sender.start()
    with s.makefile("rb") as file:
        answer = file.read()
    sender.join()
assert answer == message, (len(answer), len(message))
"#;

#[test]
fn python_socket_gets_full_echo() {
    if !is_installed("python3") {
        return;
    }
    let daemon = Daemon::start(&["-v"]);
    let address = daemon.tcp();
    let arguments = [PYTHON, &address.ip().to_string(), &address.port().to_string(), &LONG.to_string()];
    let output = Command::new("python3").arg("-c").args(arguments).output().unwrap();
    assert!(output.status.success(), "the Python client failed:\n{}", String::from_utf8_lossy(&output.stderr));
    expect_close_reason(&daemon, "finished");
}
