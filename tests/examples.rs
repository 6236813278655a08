//! Runs the programs under `examples/` the way a reader would run them.

#[path = "support/example.rs"]
mod example;
mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use example::example;
use rustix::process::{Pid, kill_process};
use support::{Address, Client, Daemon, Signal, pattern};

/// A server whose first line of output is `listening on ADDRESS`. Killed and reaped when dropped.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Server {
    fn start(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("server should start");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("stdout is piped"))
            .read_line(&mut line)
            .expect("server should print a line");
        let Some(Address::Tcp(address)) = line.trim_end().strip_prefix("listening on ").and_then(Address::parse) else {
            panic!("expected `listening on ADDRESS`, got {line:?}");
        };
        Server { child, address }
    }

    fn connect(&self) -> Client {
        Client::connect(&self.address.into())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- lines ----

fn lines() -> Server {
    Server::start(Command::new(example("lines")).arg("127.0.0.1:0"))
}

#[test]
fn line_in_pieces_is_answered_at_its_newline() {
    let lines = lines();
    let peer = lines.connect();
    peer.send(b"stre");
    // The answer to another peer shows that the server has had time to read the first piece.
    let other = lines.connect();
    other.send(b"pan\n");
    other.expect(b"nap\n");
    peer.expect_nothing_yet();
    peer.send(b"ssed");
    peer.send(b"\nab\n\nx");
    peer.expect(b"desserts\nba\n\n");
    peer.send(b"y\n");
    peer.expect(b"yx\n");
}

#[test]
fn line_cut_off_by_fin_gets_no_answer() {
    let lines = lines();
    let peer = lines.connect();
    peer.send(b"on\nto");
    peer.send_fin();
    peer.expect(b"no\n");
    peer.expect_fin();
}

#[test]
fn line_of_arbitrary_bytes_is_reversed() {
    let lines = lines();
    let peer = lines.connect();
    let line: Vec<u8> = (0..=255).filter(|&byte| byte != b'\n').collect();
    peer.send(&line);
    peer.send(b"\n");
    let reversed: Vec<u8> = line.into_iter().rev().collect();
    peer.expect(&reversed);
    peer.expect(b"\n");
}

#[test]
fn line_over_1024_bytes_is_rejected_before_its_newline() {
    let lines = lines();
    let peer = lines.connect();
    let longest = [&[b'.'; 1023][..], b"x"].concat();
    peer.send(&[&longest[..], b"\n"].concat());
    peer.expect(b"x");
    peer.expect(&[b'.'; 1023]);
    peer.expect(b"\n");
    peer.send(&[b'.'; 1025]);
    peer.expect(b"(too long)\n");
    peer.send(&[b'.'; 100_000]);
    peer.send(b"\nback\n");
    peer.expect(b"kcab\n");
}

#[test]
fn unread_answers_arrive_later_in_order() {
    let lines = lines();
    let peer = Client::connect_with_small_buffers(&lines.address.into());
    let text: String = pattern(7, 200_000).iter().map(|byte| format!("{byte:03}\n")).collect();
    let reversed: String = text.lines().map(|line| line.chars().rev().chain(['\n']).collect::<String>()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            peer.send(text.as_bytes());
            peer.send_fin();
        });
        peer.expect(reversed.as_bytes());
        peer.expect_fin();
    });
}

#[test]
fn sigterm_drains_lines_like_echo() {
    let mut lines = lines();
    let peer = lines.connect();
    peer.send(b"on\nto");
    peer.expect(b"no\n");
    kill_process(Pid::from_child(&lines.child), Signal::TERM).expect("server should be running");
    peer.expect_fin();
    peer.send_fin();
    assert_eq!(lines.child.wait().expect("server should exit").code(), Some(0));
}

// ---- conformance ----

/// Runs the client and returns its report and its exit status.
fn conformance(address: SocketAddr, questions: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(example("conformance")).arg(address.to_string()).args(questions).output();
    let output = output.expect("conformance should start");
    (String::from_utf8(output.stdout).expect("the report should be text"), output.status.code())
}

/// Returns the questions that failed, each with what the client got.
fn failures(report: &str) -> Vec<(&str, &str)> {
    report
        .lines()
        .filter_map(|line| line.strip_prefix("FAILED  ")?.split_once(": "))
        .map(|(name, rest)| (name, rest.split_once(". Got: ").expect("a failure should have a reason").1))
        .collect()
}

#[test]
fn daemon_passes_every_question() {
    let daemon = Daemon::start(&[]);
    let (report, status) = conformance(daemon.tcp(), &[]);
    assert_eq!(failures(&report), [], "{report}");
    assert!(report.ends_with("15 passed, 0 failed\n"), "{report}");
    assert_eq!(status, Some(0));
}

#[test]
fn ten_lines_of_python_fail_for_known_reasons() {
    if !support::has_program("python3") {
        return support::skip_missing("python3");
    }
    let ten_lines = || Server::start(Command::new("python3").args(["examples/ten_lines.py", "0"]));
    let server = ten_lines();
    let (report, status) = conformance(server.address, &[]);
    // What fails, in the order of the questions, and what the reason contains.
    let expected = [
        ("conversation", "message 2 of 100: "), // It closes after one.
        ("long-message", "RST"),                // close(2) with bytes unread.
        ("write-all", "1024 of 65536 bytes|RST"),
        ("big", "RST"),
        ("slow-reader", "RST"),
        ("stalled-peer", "RST"),
        ("stalled-fin", "RST"),
        ("many-at-once", "second message on connection 200 of 200: "),
        ("burst", "cannot connect|connection 1 of 20|connection 2 of 20"), // One at a time, and a backlog of one.
        ("urgent", "after |RST"), // Without SO_OOBINLINE the byte is not in the stream.
        ("binary", "FIN after 0 of 256 bytes|RST"),
    ];
    let failures = failures(&report);
    let names = failures.iter().map(|failure| failure.0).collect::<Vec<_>>();
    assert_eq!(names, expected.map(|expected| expected.0), "{report}");
    for ((name, got), (_, reasons)) in failures.iter().zip(expected) {
        assert!(reasons.split('|').any(|reason| got.contains(reason)), "{name}: {got}");
    }
    assert!(report.contains("ended   after binary"), "a byte that is not text should have ended it\n{report}");
    assert_eq!(status, Some(1));

    let (report, status) = conformance(ten_lines().address, &["hello", "half-close", "nothing"]);
    assert!(report.ends_with("3 passed, 0 failed\n"), "what is right should not be called wrong\n{report}");
    assert_eq!(status, Some(0));
}

#[test]
fn changed_byte_fails_with_its_position() {
    let (report, status) = conformance(lines().address, &["binary"]);
    assert!(failures(&report)[0].1.contains("byte 0 is 0x0b instead of 0xff"), "{report}");
    assert_eq!(status, Some(1));
}

#[test]
fn conformance_rejects_a_bad_command_line() {
    let discard = "127.0.0.1:9".parse().expect("an address");
    for (arguments, problem) in [
        (&["nonsense"][..], "unknown question \"nonsense\""),
        (&["hello", "fair"], "fair needs --spawn"),
        (&["--timeout", "soon"], "--timeout needs seconds from 1 to 255, not \"soon\""),
    ] {
        let (report, status) = conformance(discard, arguments);
        assert!(report.starts_with(&format!("conformance: {problem}\n\nusage: ")), "{report}");
        assert_eq!(status, Some(2));
    }
}
