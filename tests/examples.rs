//! Runs the programs under `examples/` the way a reader would run them.

mod support;

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, kill_process};
use support::{Address, Client, Daemon, Signal, pattern};

/// A program of `examples/`. `cargo test` builds it and puts it beside the tests; `cargo test --test examples` does not.
fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps").join("examples").join(name);
    let changed = |path: &Path| path.metadata().and_then(|file| file.modified()).ok();
    let source = changed(Path::new(&format!("examples/{name}.rs")));
    assert!(changed(&path) > source, "{} is missing or stale: `cargo build --examples` makes it", path.display());
    path
}

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
    peer.finish();
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
    let peer = Client::connect_narrow(&lines.address.into());
    let text: String = pattern(7, 200_000).iter().map(|byte| format!("{byte:03}\n")).collect();
    let reversed: String = text.lines().map(|line| line.chars().rev().chain(['\n']).collect::<String>()).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            peer.send(text.as_bytes());
            peer.finish();
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
    peer.finish();
    assert_eq!(lines.child.wait().expect("server should exit").code(), Some(0));
}

// ---- conformance ----

/// What the client says of this server, and its exit status.
fn conformance(address: SocketAddr, checks: &[&str]) -> (String, Option<i32>) {
    let output = Command::new(example("conformance")).arg(address.to_string()).args(checks).output();
    let output = output.expect("it can be run");
    (String::from_utf8(output.stdout).expect("text"), output.status.code())
}

/// What came, by the name of the check.
fn wrong(report: &str) -> Vec<(&str, &str)> {
    let mut lines = report.lines();
    let mut wrong = Vec::new();
    while let Some(line) = lines.next() {
        if let Some(name) = line.strip_prefix("WRONG   ") {
            let came = lines.nth(1).and_then(|line| line.trim_start().strip_prefix("came:     "));
            wrong.push((name, came.expect("what came")));
        }
    }
    wrong
}

#[test]
fn the_daemon_passes_every_check() {
    let daemon = Daemon::start(&[]);
    let (report, status) = conformance(daemon.tcp(), &[]);
    assert_eq!(wrong(&report), [], "{report}");
    assert!(report.ends_with("12 right, 0 wrong\n"), "{report}");
    assert_eq!(status, Some(0));
}

#[test]
fn ten_lines_of_python_are_found_out() {
    if !support::has_program("python3") {
        return support::skip_for_want_of("python3");
    }
    let ten_lines = || Server::start(Command::new("python3").args(["examples/ten_lines.py", "0"]));
    let server = ten_lines();
    let (report, status) = conformance(server.address, &[]);
    // What is wrong, in the order of the checks, and a word of what came instead.
    let expected = [
        ("conversation", "message 2 of 100: "), // It closes after one.
        ("long-message", "RST"),                // close(2) with bytes unread.
        ("write-all", "1024 of 65536 bytes|RST"),
        ("big", "1024 of 16777216 bytes|RST"),
        ("slow-reader", "1024 of 16777216 bytes|RST"),
        ("five-at-once", "peer "), // One at a time, and a queue of one.
        ("urgent", "after |RST"),  // Without SO_OOBINLINE the byte is not in the stream.
        ("binary", "FIN after 0 of 256 bytes|RST"),
    ];
    let wrong = wrong(&report);
    assert_eq!(wrong.iter().map(|wrong| wrong.0).collect::<Vec<_>>(), expected.map(|expected| expected.0), "{report}");
    for ((name, came), (_, words)) in wrong.iter().zip(expected) {
        assert!(words.split('|').any(|word| came.contains(word)), "{name}: {came}");
    }
    assert!(report.contains("GONE    after binary"), "text only: the exception has ended it\n{report}");
    assert_eq!(status, Some(1));

    let (report, status) = conformance(ten_lines().address, &["reset"]);
    assert!(report.contains("WRONG   reset") && report.contains("GONE    after reset"), "{report}");
    assert_eq!(status, Some(1));

    let (report, status) = conformance(ten_lines().address, &["hello", "half-close", "nothing"]);
    assert!(report.ends_with("3 right, 0 wrong\n"), "what is right is not called wrong\n{report}");
    assert_eq!(status, Some(0));
}

#[test]
fn a_server_that_changes_a_byte_is_found_out() {
    let (report, status) = conformance(lines().address, &["binary"]);
    let wrong = wrong(&report);
    assert!(wrong[0].1.contains("byte 0 is 0x0b, which was 0xff"), "{report}");
    assert_eq!(status, Some(1));
}

#[test]
fn a_check_that_does_not_exist_is_an_error_of_the_command_line() {
    let (report, status) = conformance("127.0.0.1:9".parse().expect("an address"), &["nonsense"]);
    assert!(report.starts_with("usage: "), "{report}");
    assert_eq!(status, Some(2));
}
