//! The programs with which people really talk to an echo server, each in a conversation with the daemon.
//!
//! A program that is not there is a skip with a reason, or, with `ECHOD_REQUIRE_TOOLS=1`, a failure: whoever installs them
//! (Debian: netcat-openbsd, netcat-traditional, ncat, socat, telnet, curl, python3, haproxy) wants to hear of it.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "../support/mod.rs"]
mod support;

mod haproxy;

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use support::{Daemon, Directory, TIMEOUT, assert_same, has_program, pattern, skip_missing};

/// More than the kernel's buffers between the two hold: who does not read while it writes, stalls.
const MUCH: usize = 8 << 20;

/// Whether the program is there. If not, this test is skipped, or has failed.
#[track_caller]
pub fn is_there(program: &str) -> bool {
    let there = has_program(program);
    if !there {
        skip_missing(program);
    }
    there
}

/// A program that talks to the daemon over its stdin and stdout. Killed when dropped.
struct Talker {
    child: Child,
    stdout: Receiver<Vec<u8>>,
    heard: Vec<u8>,
}

impl Talker {
    #[track_caller]
    fn start(command: &mut Command) -> Talker {
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
        Talker { child, stdout, heard: Vec::new() }
    }

    /// A program that takes address and port as its last arguments.
    #[track_caller]
    fn to(address: SocketAddr, program: &str, options: &[&str]) -> Talker {
        let mut command = Command::new(program);
        Talker::start(command.args(options).arg(address.ip().to_string()).arg(address.port().to_string()))
    }

    #[track_caller]
    fn say(&mut self, bytes: &[u8]) {
        self.child.stdin.as_mut().unwrap().write_all(bytes).unwrap();
    }

    /// Writes all of it from another thread and then closes the program's stdin, while we listen.
    fn say_all_and_finish(&mut self, bytes: Vec<u8>) {
        let mut stdin = self.child.stdin.take().unwrap();
        thread::spawn(move || stdin.write_all(&bytes));
    }

    /// Closes the program's stdin: Ctrl-D.
    fn finish(&mut self) {
        self.child.stdin = None;
    }

    /// Waits until what was heard so far makes `enough` true; `false` if stdout ends before.
    #[track_caller]
    fn hear_until(&mut self, enough: impl Fn(&[u8]) -> bool) -> bool {
        let start = Instant::now();
        while !enough(&self.heard) {
            let left = TIMEOUT.checked_sub(start.elapsed());
            let left = left.unwrap_or_else(|| panic!("only {} bytes came", self.heard.len()));
            match self.stdout.recv_timeout(left) {
                Ok(bytes) => self.heard.extend_from_slice(&bytes),
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return false,
                Err(error) => panic!("{error} after {} bytes", self.heard.len()),
            }
        }
        true
    }

    /// Hears exactly this.
    #[track_caller]
    fn hear(&mut self, expected: &[u8]) {
        self.hear_until(|heard| heard.len() >= expected.len());
        assert_same(&self.heard, expected);
        self.heard.clear();
    }

    /// The program ends by itself, and has said exactly this before.
    #[track_caller]
    fn hear_to_the_end(&mut self, expected: &[u8]) -> ExitStatus {
        self.hear_until(|_| false);
        assert_same(&self.heard, expected);
        self.child.wait().unwrap()
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of the one connection in the daemon's log.
#[track_caller]
fn reason(daemon: &Daemon) -> String {
    daemon.wait_for_log(|line| line.contains(" closed: "))
}

/// All bytes through a program that finishes with its input and ends with the daemon's FIN.
#[track_caller]
fn assert_echoes_all_and_finishes(program: &str, options: &[&str]) {
    let daemon = Daemon::start(&["-v"]);
    let bytes = pattern(1, MUCH);
    let mut talker = Talker::to(daemon.tcp(), program, options);
    talker.say_all_and_finish(bytes.clone());
    let status = talker.hear_to_the_end(&bytes);
    assert!(status.success(), "{program}: {status}");
    assert!(reason(&daemon).contains("finished"), "{}", reason(&daemon));
}

#[test]
fn openbsd_nc_echoes_and_exits() {
    if is_there("nc.openbsd") {
        assert_echoes_all_and_finishes("nc.openbsd", &["-N"]);
    }
}

#[test]
fn openbsd_nc_without_n_waits_for_idle_timeout() {
    if !is_there("nc.openbsd") {
        return;
    }
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let mut talker = Talker::to(daemon.tcp(), "nc.openbsd", &[]);
    talker.say(b"hello\n");
    talker.finish();
    talker.hear(b"hello\n");
    // It has nothing more to say, and keeps that to itself. The idle timeout ends the connection, and so the program.
    assert!(talker.hear_to_the_end(b"").success());
    assert!(reason(&daemon).contains("idle"), "{}", reason(&daemon));
}

#[test]
fn openbsd_nc_works_over_unix_socket() {
    if !is_there("nc.openbsd") {
        return;
    }
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let _daemon = Daemon::start_unix(&path, &[]);
    let bytes = pattern(2, MUCH);
    let mut talker = Talker::start(Command::new("nc.openbsd").arg("-NU").arg(&path));
    talker.say_all_and_finish(bytes.clone());
    assert!(talker.hear_to_the_end(&bytes).success());
}

#[test]
fn traditional_nc_echoes_and_exits() {
    if !is_there("nc.traditional") {
        return;
    }
    // It never finishes by itself: with -q it goes, so many seconds after the end of its input.
    let daemon = Daemon::start(&["-v"]);
    let mut talker = Talker::to(daemon.tcp(), "nc.traditional", &["-q", "1"]);
    let bytes = pattern(3, 100_000);
    talker.say(&bytes);
    talker.hear(&bytes);
    talker.finish();
    talker.hear_to_the_end(b"");
    assert!(reason(&daemon).contains("finished"), "{}", reason(&daemon));
}

#[test]
fn ncat_echoes_and_exits() {
    if is_there("ncat") {
        assert_echoes_all_and_finishes("ncat", &[]);
    }
}

#[test]
fn socat_echoes_and_exits() {
    if !is_there("socat") {
        return;
    }
    // Half-close as it comes: -t is how long it listens on after its FIN when nothing comes.
    let daemon = Daemon::start(&["-v"]);
    let bytes = pattern(4, MUCH);
    let mut talker = Talker::start(Command::new("socat").args(["-t", "30", "-", &format!("TCP:{}", daemon.tcp())]));
    talker.say_all_and_finish(bytes.clone());
    assert!(talker.hear_to_the_end(&bytes).success());
    assert!(reason(&daemon).contains("finished"), "{}", reason(&daemon));
}

#[test]
fn telnet_gets_its_lines_back() {
    if !is_there("telnet") {
        return;
    }
    // On another port than 23 it is a plain stream, but for the ends of lines: CR LF on the wire.
    let daemon = Daemon::start(&["-v"]);
    let mut talker = Talker::to(daemon.tcp(), "telnet", &["-E"]);
    for line in ["hello", "a second line", "and a third"] {
        talker.say(format!("{line}\n").as_bytes());
        let is_there = |heard: &[u8]| heard.windows(line.len()).any(|window| window == line.as_bytes());
        assert!(talker.hear_until(is_there), "{line:?} did not come back");
    }
    talker.finish();
    talker.hear_until(|_| false);
    assert!(reason(&daemon).contains("finished"), "{}", reason(&daemon));
}

#[test]
fn curl_telnet_gets_its_lines_back() {
    if !is_there("curl") {
        return;
    }
    // At the end of its input it only stops sending: it waits for the server to finish. The idle timeout does.
    let daemon = Daemon::start(&["-v", "--idle-timeout", "1s"]);
    let url = format!("telnet://{}", daemon.tcp());
    let mut talker = Talker::start(Command::new("curl").args(["--silent", "--no-buffer", &url]));
    for line in ["hello\n", "a second line\n", "and a third\n"] {
        talker.say(line.as_bytes());
        talker.hear(line.as_bytes());
    }
    talker.finish();
    assert!(talker.hear_to_the_end(b"").success());
    assert!(reason(&daemon).contains("idle"), "{}", reason(&daemon));
}

/// As a page on socket programming would have it, but for the thread: `sendall` of this much, before the first `recv`, would
/// wait for itself (the trap T31).
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
    if !is_there("python3") {
        return;
    }
    let daemon = Daemon::start(&["-v"]);
    let address = daemon.tcp();
    let arguments = [PYTHON, &address.ip().to_string(), &address.port().to_string(), &MUCH.to_string()];
    let output = Command::new("python3").arg("-c").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(reason(&daemon).contains("finished"), "{}", reason(&daemon));
}
