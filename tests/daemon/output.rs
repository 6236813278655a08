//! The contract's section "Output".

use std::fs::{self, File};
use std::io::{PipeReader, Read, Write, pipe};
use std::process::Stdio;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::support::{Address, Client, Daemon, Directory, Signal, TIMEOUT, eventually, pattern, unix, wait_until};

// stdout

#[test]
fn stdout_has_one_line_per_socket_only() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let mut daemon = Daemon::start(&["-vv", "-l", "127.0.0.1:0", "-l", &unix(&path)]);
    for address in daemon.addresses() {
        Client::connect(address).echo(b"hello");
    }
    daemon.signal(Signal::USR1);
    daemon.wait_for_log(|line| line.contains("accepted"));
    daemon.terminate();
    let tcp = daemon.tcp();
    let expected = format!("listening on tcp://{tcp}\nlistening on unix://{}\n", path.display());
    assert_eq!(daemon.whole_stdout(), expected);
}

#[test]
fn listening_lines_are_flushed_before_the_first_accept() {
    // When a peer receives its echo, the line must already be in the file. The test does not wait for it.
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let file = directory.join("stdout");
    let daemon = Daemon::with(&["--listen", &unix(&path)]).stdout(File::create(&file).unwrap()).spawn();
    connect_when_it_listens(&daemon, &path).echo(b"hello");
    assert_eq!(fs::read_to_string(&file).unwrap(), format!("listening on unix://{}\n", path.display()));
}

/// Connects to a daemon whose stdout the test does not read.
#[track_caller]
fn connect_when_it_listens(_daemon: &Daemon, path: &std::path::Path) -> Client {
    eventually("the daemon listens", || Client::try_connect(&Address::from(path)).ok())
}

#[test]
fn closed_stdout_reader_is_tolerated_later() {
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let (mut reader, writer) = pipe().unwrap();
    let mut daemon = Daemon::with(&["--listen", &unix(&path)]).stdout(writer).spawn();
    let mut line = vec![0; "listening on unix://".len() + path.as_os_str().len() + 1];
    reader.read_exact(&mut line).unwrap();
    drop(reader);
    let client = connect_when_it_listens(&daemon, &path);
    client.exchange(&pattern(1, 300_000));
    daemon.signal(Signal::USR1);
    daemon.wait_for_log(|line| line.contains("accepted"));
    daemon.close_and_terminate(client);
}

#[test]
fn full_stdout_pipe_at_startup_does_not_hang() {
    // A pipe holds 64 KiB (pipe(7)), and this one is never read. The daemon may serve or exit with status 1.
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let (_reader, mut writer) = pipe().unwrap();
    writer.write_all(&[b'x'; 65_536]).unwrap();
    let mut daemon = Daemon::with(&["--listen", &unix(&path)]).stdout(writer).spawn();
    eventually("the daemon serves or gives up", || {
        let serves = Client::try_connect(&Address::from(path.as_path())).map(|client| client.echo(b"hello")).is_ok();
        (serves || daemon.exit_code() == Some(1)).then_some(())
    });
}

// stderr

#[test]
fn info_level_logs_no_connections() {
    let mut daemon = Daemon::start(&[]);
    for _ in 0..10 {
        daemon.connect().echo(b"hello");
    }
    daemon.connect().reset();
    let client = daemon.connect();
    client.echo(b"the last one");
    daemon.close_and_terminate(client);
    let log = daemon.whole_stderr();
    assert!(log.lines().count() >= 2, "expected lines for start and stop:\n{log}");
    assert!(log.lines().all(|line| line.contains("INFO")), "expected only info lines:\n{log}");
    assert!(!log.contains("127.0.0.1:"), "expected no peer in the log:\n{log}");
}

/// Returns the message of a log line, without time and level.
fn message(line: &str) -> &str {
    line.split_once("] ").map_or(line, |(_, message)| message)
}

/// Returns the whole numbers in a message, except for those in the peer's address.
fn numbers(line: &str, peer: &str) -> Vec<u64> {
    let text = message(line).replace(peer, "");
    text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

#[test]
fn debug_level_logs_each_open_and_close() {
    let daemon = Daemon::start(&["-v"]);
    let mut of_connections = Vec::new();
    for length in [12_345, 54_321] {
        let client = daemon.connect();
        let peer = client.local().to_string();
        client.echo(&pattern(1, length));
        client.send_fin();
        client.expect_fin();
        daemon.wait_for_log(|line| line.contains(&peer) && line.contains("finished"));
        let log = daemon.stderr();
        let lines: Vec<&str> = log.lines().filter(|line| line.contains(&peer)).collect();
        let [open, end] = lines[..] else { panic!("expected two lines about {peer}:\n{log}") };
        assert!(open.contains("DEBUG") && end.contains("DEBUG"), "{open}\n{end}");
        let (number, ended) = (numbers(open, &peer)[0], numbers(end, &peer));
        assert_eq!(number, ended[0], "the same connection:\n{open}\n{end}");
        let bytes = ended[1..].iter().filter(|&&number| number == length as u64).count();
        assert_eq!(bytes, 2, "bytes in and out: {end}");
        of_connections.push(number);
    }
    assert!(of_connections[0] < of_connections[1], "each connection has its own number: {of_connections:?}");
}

#[test]
fn close_line_has_the_reason() {
    let ended = |daemon: &Daemon, peer: &str, reason: &str| {
        daemon.wait_for_log(|line| line.contains(peer) && line.contains(reason));
    };
    let start = |arguments: &[&str]| {
        let daemon = Daemon::start(&[&["-v"], arguments].concat());
        let client = daemon.connect();
        let peer = client.local().to_string();
        (daemon, client, peer)
    };

    let (daemon, client, peer) = start(&[]);
    client.send_fin();
    ended(&daemon, &peer, "finished");

    let (daemon, client, peer) = start(&["--one-shot"]);
    client.send(b"hello");
    ended(&daemon, &peer, "one_shot");

    let (daemon, client, peer) = start(&[]);
    client.echo(b"hello");
    daemon.signal(Signal::TERM);
    client.expect_fin();
    client.send_fin();
    ended(&daemon, &peer, "drained");

    let (daemon, client, peer) = start(&[]);
    client.echo(b"hello");
    client.reset();
    ended(&daemon, &peer, "reset");

    let (daemon, _client, peer) = start(&["--idle-timeout", "10ms"]);
    ended(&daemon, &peer, "idle");

    let (daemon, client, peer) = start(&["--drain-timeout", "10ms"]);
    client.echo(b"hello");
    daemon.signal(Signal::TERM);
    ended(&daemon, &peer, "cut");

    let (daemon, client, peer) = start(&["--drain-timeout", "1h"]);
    client.echo(b"hello");
    daemon.signal(Signal::TERM);
    client.expect_fin();
    daemon.signal(Signal::TERM);
    ended(&daemon, &peer, "cut");
}

#[test]
fn unix_connections_are_logged_at_debug() {
    let directory = Directory::new();
    let daemon = Daemon::start_unix(&directory.join("echo.sock"), &["-v"]);
    let client = daemon.connect();
    client.echo(b"hello");
    client.send_fin();
    client.expect_fin();
    daemon.wait_for_log(|line| line.contains("finished") && numbers(line, "").contains(&5));
}

#[test]
fn closed_stderr_reader_does_not_affect_the_daemon() {
    let (reader, writer) = pipe().unwrap();
    let mut daemon = Daemon::with(&["-vv"]).stderr(writer).start();
    drop(reader);
    for round in 0..200 {
        daemon.connect().echo(&pattern(round, 1000));
    }
    daemon.signal(Signal::USR1);
    let client = daemon.connect();
    client.exchange(&pattern(1, 1 << 20));
    let cpu = daemon.cpu_time_during(Duration::from_millis(300));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU although nothing happens");
    daemon.close_and_terminate(client);
}

#[test]
fn stalled_stderr_reader_does_not_affect_the_daemon() {
    let (mut reader, writer) = pipe().unwrap();
    let mut daemon = Daemon::with(&["-vv"]).stderr(writer).start();
    // Far more than a pipe holds: at `trace`, each of these connections logs several hundred bytes.
    for round in 0..1000 {
        daemon.connect().echo(&pattern(round, 100));
    }
    let client = daemon.connect();
    client.echo(b"not stuck");
    let cpu = daemon.cpu_time_during(Duration::from_millis(300));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU although nothing happens");

    // The reader continues, and finds whole lines, then the counters with the number of dropped lines.
    let mut log = read_some(&mut reader);
    daemon.signal(Signal::USR1);
    while !log.contains(" dropped\n") {
        assert!(log.len() < 10 << 20, "dropped lines are not reported");
        log += &read_some(&mut reader);
    }
    assert_eq!(log.lines().find(|line| !line.starts_with('[')), None, "expected whole lines only");
    let counters = log.lines().rfind(|line| line.ends_with(" dropped")).unwrap();
    assert!(numbers(counters, "").last().is_some_and(|&dropped| dropped > 0), "{counters}");
    daemon.close_and_terminate(client);
}

/// Waits until the pipe has data and returns it.
#[track_caller]
fn read_some(reader: &mut PipeReader) -> String {
    let timeout = Timespec::try_from(TIMEOUT).unwrap();
    let ready = poll(&mut [PollFd::new(reader, PollFlags::IN)], Some(&timeout)).unwrap();
    assert_eq!(ready, 1, "timed out waiting for output");
    let mut bytes = vec![0; 65_536];
    let length = reader.read(&mut bytes).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

#[test]
fn full_disk_on_stderr_is_tolerated() {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut daemon = Daemon::with(&["-vv"]).stderr(full).start();
    daemon.signal(Signal::USR1);
    let client = daemon.connect();
    client.exchange(&pattern(1, 300_000));
    daemon.close_and_terminate(client);
}

#[test]
fn file_size_limit_on_stderr_is_tolerated() {
    // Beyond RLIMIT_FSIZE, write(2) raises SIGXFSZ, whose default action kills the process.
    let directory = Directory::new();
    let path = directory.join("log");
    let log = File::options().append(true).create(true).open(&path).unwrap();
    let mut daemon = Daemon::with(&["-v"]).shell("ulimit -f 1; exec \"$@\"").stderr(log.try_clone().unwrap()).start();
    for _ in 0..50 {
        daemon.connect().echo(b"more than a kilobyte of log");
    }
    let client = daemon.connect();
    client.exchange(&pattern(1, 300_000));
    let length = log.metadata().unwrap().len();
    assert!((1..=1024).contains(&length), "{length} bytes of log");

    // With room in the file again, as after a log rotation, logging goes on, and the counters have the dropped lines.
    log.set_len(0).unwrap();
    daemon.signal(Signal::USR1);
    let counters = eventually("the counters are printed", || {
        let text = fs::read_to_string(&path).unwrap();
        text.lines().find(|line| line.ends_with(" dropped")).map(String::from)
    });
    assert!(numbers(&counters, "").last().is_some_and(|&dropped| dropped > 50), "{counters}");
    daemon.close_and_terminate(client);
}

#[test]
fn standard_descriptors_stay_blocking() {
    // O_NONBLOCK belongs to the open file description, which the parent shell shares.
    let (_out_reader, out) = pipe().unwrap();
    let (_err_reader, err) = pipe().unwrap();
    let (input, _in_writer) = pipe().unwrap();
    let ours = [out.try_clone().unwrap(), err.try_clone().unwrap()];
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let start = Daemon::with(&["-vv", "--listen", &unix(&path)]);
    let daemon = start.stdin(input.try_clone().unwrap()).stdout(out).stderr(err).spawn();
    connect_when_it_listens(&daemon, &path).echo(b"hello");
    let blocks = |flags: rustix::fs::OFlags| !flags.contains(rustix::fs::OFlags::NONBLOCK);
    for pipe in &ours {
        assert!(blocks(rustix::fs::fcntl_getfl(pipe).unwrap()));
    }
    assert!(blocks(rustix::fs::fcntl_getfl(&input).unwrap()));
}

#[test]
fn closed_standard_descriptors_leak_no_log_to_peers() {
    // Otherwise the next socket would get the free number 1 or 2, and with it everything that is written there.
    for closed in ["<&-", ">&-", "2>&-", "<&- >&-", "<&- 2>&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        let directory = Directory::new();
        let path = directory.join("echo.sock");
        let start = Daemon::with(&["-vv", "--listen", &unix(&path)]);
        let (_reader, writer) = pipe().unwrap();
        // The shell closes these descriptors before it executes the daemon.
        let start =
            start.shell(&format!("exec \"$@\" {closed}")).stdout(writer.try_clone().unwrap()).stderr(Stdio::null());
        let mut daemon = start.spawn();
        let clients: Vec<Client> = (0..5).map(|_| connect_when_it_listens(&daemon, &path)).collect();
        daemon.signal(Signal::USR1);
        for (number, client) in clients.iter().enumerate() {
            client.echo(&pattern(number as u64, 1000));
        }
        daemon.signal(Signal::USR1);
        clients.iter().for_each(Client::send_fin);
        clients.iter().for_each(Client::expect_fin); // Without a single byte more.
        daemon.terminate();
    }
}

#[test]
fn closed_stdin_does_not_stop_the_daemon() {
    // The daemon ignores both data on stdin and its end.
    let (input, mut writer) = pipe().unwrap();
    let mut daemon = Daemon::with(&[]).stdin(input).start();
    writer.write_all(b"quit\n\x04").unwrap();
    let client = daemon.connect();
    client.echo(b"hello");
    drop(writer);
    client.echo(b"still here");
    let asleep = || {
        let before = daemon.sleep_count();
        std::thread::sleep(Duration::from_millis(50));
        daemon.sleep_count() == before
    };
    wait_until("the daemon sleeps", asleep);
    daemon.close_and_terminate(client);
}
