//! The contract's section "Command line": which values are accepted, how others are rejected, and the options without a test
//! file of their own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::SocketAddr;
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

use crate::support::{Address, Client, Daemon, RunOutput, Signal, pattern, pending_connections, wait_until};

#[test]
fn help_and_version_exit_with_status_0() {
    for option in ["--help", "-h", "--version", "-V"] {
        let RunOutput { code, stdout, stderr } = Daemon::with(&[option]).without_listen().run();
        assert_eq!((code, stderr.as_str()), (0, ""), "{option}");
        assert!(stdout.contains("echod"), "{option}: {stdout:?}");
        assert!(stdout.ends_with('\n') && !stdout.contains('\u{1b}'), "{option}: expected plain text: {stdout:?}");
    }
    let version = Daemon::with(&["--version"]).run().stdout;
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version:?}");
}

#[test]
fn help_lists_every_option_with_its_default() {
    let help = Daemon::with(&["--help"]).run().stdout;
    for option in [
        "-l, --listen",
        "--one-shot",
        "--max-connections",
        "--idle-timeout",
        "--drain-timeout",
        "--buffer-size",
        "--max-buffered",
        "--socket-buffer",
        "--backlog",
        "--reuse-port",
        "--busy-poll",
        "--metrics",
        "--explain",
        "--check",
        "-v",
        "-q",
        "-h, --help",
        "-V, --version",
    ] {
        assert!(help.contains(option), "{option} is missing in:\n{help}");
    }
    for default in ["9999", "10m", "5s", "65536", "67108864", "1024"] {
        assert!(help.contains(default), "the default {default} is missing in:\n{help}");
    }
}

#[test]
fn invalid_command_line_exits_2_naming_option_and_value() {
    let long_path = format!("unix:/tmp/{}", "x".repeat(200));
    let wrong: &[(&[&str], &[&str])] = &[
        // Addresses.
        (&["--listen", "localhost"], &["--listen", "localhost"]),
        (&["-l", "localhost"], &["--listen", "localhost"]),
        (&["--listen", "70000"], &["--listen", "70000"]),
        (&["--listen", "65536"], &["--listen", "65536"]),
        (&["--listen", "-1"], &["--listen", "-1"]),
        (&["--listen=-1"], &["--listen", "-1"]),
        (&["--listen", ""], &["--listen"]),
        (&["--listen="], &["--listen"]),
        (&["--listen", " "], &["--listen"]),
        (&["--listen", "127.0.0.1"], &["--listen", "127.0.0.1"]),
        (&["--listen", "127.0.0.1:"], &["--listen", "127.0.0.1:"]),
        (&["--listen", "127.0.0.1:70000"], &["--listen", "127.0.0.1:70000"]),
        (&["--listen", ":0"], &["--listen", ":0"]),
        (&["--listen", "::1"], &["--listen", "::1"]),
        (&["--listen", "[::1]"], &["--listen", "[::1]"]),
        (&["--listen", "[::1:0"], &["--listen", "[::1:0"]),
        (&["--listen", "[localhost]:0"], &["--listen", "[localhost]:0"]),
        (&["--listen", "localhost:http"], &["--listen", "localhost:http"]),
        (&["--listen", "localhost:0x0"], &["--listen", "localhost:0x0"]),
        (&["--listen", "localhost:+0"], &["--listen", "localhost:+0"]),
        (&["--listen", "unix:"], &["--listen", "unix:"]),
        (&["--listen", &long_path], &["--listen", "xxxxxxxx"]),
        (&["--metrics", "70000"], &["--metrics", "70000"]),
        (&["--metrics", "localhost:9100"], &["--metrics", "localhost:9100"]),
        (&["--metrics", "unix:/run/metrics"], &["--metrics", "unix:/run/metrics"]),
        (&["--metrics", ""], &["--metrics"]),
        (&["--check", "localhost"], &["--check", "localhost"]),
        (&["--check", ""], &["--check"]),
        // Durations.
        (&["--idle-timeout", "5"], &["--idle-timeout", "5"]),
        (&["--idle-timeout", "1.5s"], &["--idle-timeout", "1.5s"]),
        (&["--idle-timeout", "-1s"], &["--idle-timeout", "-1s"]),
        (&["--idle-timeout=-1s"], &["--idle-timeout", "-1s"]),
        (&["--idle-timeout", "inf"], &["--idle-timeout", "inf"]),
        (&["--idle-timeout", ""], &["--idle-timeout"]),
        (&["--idle-timeout", "s"], &["--idle-timeout", "s"]),
        (&["--idle-timeout", "+5s"], &["--idle-timeout", "+5s"]),
        (&["--idle-timeout", "5 s"], &["--idle-timeout", "5 s"]),
        (&["--idle-timeout", " 5s"], &["--idle-timeout", " 5s"]),
        (&["--idle-timeout", "5S"], &["--idle-timeout", "5S"]),
        (&["--idle-timeout", "5sec"], &["--idle-timeout", "5sec"]),
        (&["--idle-timeout", "1m30s"], &["--idle-timeout", "1m30s"]),
        (&["--idle-timeout", "1e3s"], &["--idle-timeout", "1e3s"]),
        (&["--idle-timeout", "25d"], &["--idle-timeout", "25d"]),
        (&["--idle-timeout", "577h"], &["--idle-timeout", "577h"]),
        (&["--idle-timeout", "99999999999999999999999h"], &["--idle-timeout", "99999999999999999999999h"]),
        (&["--idle-timeout", "18446744073709551615h"], &["--idle-timeout", "18446744073709551615h"]),
        (&["--drain-timeout", "5"], &["--drain-timeout", "5"]),
        (&["--drain-timeout", "never"], &["--drain-timeout", "never"]),
        (&["--busy-poll", "11ms"], &["--busy-poll", "11ms"]),
        (&["--busy-poll", "1s"], &["--busy-poll", "1s"]),
        (&["--busy-poll", "50"], &["--busy-poll", "50"]),
        // Numbers.
        (&["--buffer-size", "64k"], &["--buffer-size", "64k"]),
        (&["--buffer-size", "0"], &["--buffer-size", "0"]),
        (&["--buffer-size", "16777217"], &["--buffer-size", "16777217"]),
        (&["--buffer-size", "-1"], &["--buffer-size", "-1"]),
        (&["--buffer-size", ""], &["--buffer-size"]),
        (&["--max-buffered", "0"], &["--max-buffered", "0"]),
        (&["--max-buffered", "64M"], &["--max-buffered", "64M"]),
        (&["--max-buffered", "1099511627777"], &["--max-buffered", "1099511627777"]),
        (&["--socket-buffer", "0"], &["--socket-buffer", "0"]),
        (&["--socket-buffer", "-1"], &["--socket-buffer", "-1"]),
        (&["--socket-buffer", "1073741824"], &["--socket-buffer", "1073741824"]),
        (&["--max-connections", "0"], &["--max-connections", "0"]),
        (&["--max-connections", "many"], &["--max-connections", "many"]),
        (&["--max-connections", "-1"], &["--max-connections", "-1"]),
        (&["--backlog", "0"], &["--backlog", "0"]),
        (&["--backlog", "-1"], &["--backlog", "-1"]),
        (&["--backlog", "99999999999"], &["--backlog", "99999999999"]),
        // Unknown options, and options used incorrectly.
        (&["--frobnicate"], &["--frobnicate"]),
        (&["--lisen", "9999"], &["--lisen"]),
        (&["-x"], &["-x"]),
        (&["9999"], &["9999"]),
        (&["--one-shot", "localhost", "9999"], &["localhost"]),
        (&["--one-shot=yes"], &["--one-shot", "yes"]),
        (&["--listen"], &["--listen"]),
        (&["-l"], &["--listen"]),
        (&["--idle-timeout"], &["--idle-timeout"]),
        (&["--idle-timeout", "--one-shot"], &["--idle-timeout"]),
        (&["--backlog", "5", "--backlog", "6"], &["--backlog"]),
        (&["--idle-timeout", "5s", "--idle-timeout=6s"], &["--idle-timeout"]),
        (&["--check", "9999", "--one-shot"], &["--check"]),
        (&["--check", "9999", "--check", "9998"], &["--check"]),
        (&["--one-shot", "--one-shot"], &["--one-shot"]),
        // A line break in a value does not make a second line.
        (&["--listen", "local\nhost"], &["--listen", "host"]),
        (&["--frob\nnicate"], &["--frob"]),
    ];
    let failures: Vec<String> = wrong
        .iter()
        .filter_map(|(arguments, names)| {
            let finished = Daemon::with(arguments).without_listen().run();
            complaint(&finished, 2, names).map(|complaint| format!("{arguments:?}: {complaint}\n"))
        })
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} command lines are handled incorrectly:\n{}",
        failures.len(),
        wrong.len(),
        failures.concat()
    );
}

#[test]
fn non_utf8_argument_exits_2_with_one_line() {
    let bytes = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
    let wrong: &[(&[OsString], &[&str])] = &[
        (&["--listen".into(), bytes(b"\xff\xfe")], &["--listen"]),
        (&[bytes(b"--listen=\xff")], &["--listen"]),
        (&["--idle-timeout".into(), bytes(b"5\xffs")], &["--idle-timeout"]),
        (&["--backlog".into(), bytes(b"\xff")], &["--backlog"]),
        (&[bytes(b"\xff")], &[]),
        (&[bytes(b"--\xff")], &[]),
    ];
    for (arguments, names) in wrong {
        let start = Daemon::with(&[]).without_listen();
        let finished = arguments.iter().fold(start, |start, argument| start.argument(argument)).run();
        assert_eq!(complaint(&finished, 2, names), None, "{arguments:?}");
    }
}

/// Returns what is wrong with how the daemon refused to start, if anything.
fn complaint(finished: &RunOutput, code: i32, names: &[&str]) -> Option<String> {
    let RunOutput { stderr, .. } = finished;
    let is_one_line = stderr.ends_with('\n') && stderr.lines().count() == 1;
    if finished.code != code {
        return Some(format!("status {} instead of {code}; stderr {stderr:?}", finished.code));
    }
    if !is_one_line || !stderr.starts_with("echod: ") {
        return Some(format!("expected one line that begins with `echod: `, got {stderr:?}"));
    }
    if let Some(missing) = names.iter().find(|name| !stderr.contains(*name)) {
        return Some(format!("expected {missing} in {stderr:?}"));
    }
    (!finished.stdout.is_empty()).then(|| format!("unexpected text on stdout: {:?}", finished.stdout))
}

#[test]
fn every_duration_unit_is_accepted() {
    for duration in ["0", "0us", "0s", "50us", "500ms", "30s", "10m", "1h", "576h", "0576h"] {
        let mut daemon = Daemon::start(&["--idle-timeout", duration, "--drain-timeout", duration]);
        daemon.terminate();
    }
    for duration in ["0", "0ms", "50us", "10000us", "10ms"] {
        let daemon = Daemon::start(&["--busy-poll", duration]);
        daemon.connect().echo(b"polled for");
    }
}

#[test]
fn option_values_follow_a_space_or_an_equals_sign() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", "-l", "127.0.0.1:0", "--backlog=7", "--buffer-size", "100"]);
    assert_eq!(daemon.addresses().len(), 2);
    for address in daemon.addresses() {
        Client::connect(address).exchange(&pattern(1, 10_000));
    }
}

// --max-connections

#[test]
fn connection_limit_pauses_and_resumes_accepting() {
    let daemon = Daemon::start(&["--max-connections", "3"]);
    let mut first: Vec<Client> = (0..3).map(|_| daemon.connect()).collect();
    first.iter().for_each(|client| client.echo(b"in"));
    daemon.wait_for_log_text("connection limit (3) reached");
    let mut waiting: Vec<Client> = (0..5).map(|_| daemon.connect()).collect();
    waiting.iter().for_each(|client| client.send(b"waiting"));

    // New connections wait in the backlog, open ones are served, and waiting costs no CPU.
    let queue = || pending_connections(daemon.tcp());
    wait_until("five connections are in the backlog", || queue() == 5);
    let cpu = daemon.cpu_time_during(Duration::from_millis(500));
    assert!(cpu <= Duration::from_millis(10), "{cpu:?} of CPU at the connection limit");
    first.iter().for_each(|client| client.echo(b"served"));
    waiting.iter().for_each(Client::expect_nothing_yet);
    assert_eq!(queue(), 5);

    // Each connection that closes, however it does, makes room for the next in the backlog.
    first.pop().unwrap().reset();
    waiting[0].expect(b"waiting");
    wait_until("four connections are in the backlog", || queue() == 4);
    waiting[1].expect_nothing_yet();
    let finished = first.pop().unwrap();
    finished.send_fin();
    finished.expect_fin();
    waiting[1].expect(b"waiting");
    drop(first);
    waiting[2].expect(b"waiting");
    drop(waiting.drain(..2));
    waiting[1].expect(b"waiting");
    waiting[2].expect(b"waiting");
    assert_eq!(queue(), 0);
    assert_eq!(
        daemon.stderr().matches("connection limit").count(),
        1,
        "the limit should be logged once: {}",
        daemon.stderr()
    );
}

#[test]
fn connection_limit_beyond_descriptors_is_clamped_with_a_warning() {
    let daemon = Daemon::with(&["--max-connections", "1000"]).nofile(64).start();
    daemon.wait_for_log(|line| line.contains("1000") && line.to_uppercase().contains("WARN"));
    daemon.connect().echo(b"fewer, but served");

    let daemon = Daemon::with(&["--max-connections", "10"]).nofile(64).start();
    daemon.connect().echo(b"no reason to warn");
    assert!(!daemon.stderr().to_uppercase().contains("WARN"), "{}", daemon.stderr());
}

#[test]
fn soft_descriptor_limit_is_raised_to_the_hard_limit() {
    let daemon = Daemon::with(&[]).through(&["prlimit", "--nofile=64:512"]).start();
    let limits = daemon.proc("limits");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let numbers: Vec<&str> = line.split_ascii_whitespace().skip(3).take(2).collect();
    assert_eq!(numbers, ["512", "512"], "{line}");
    let clients: Vec<Client> = (0..200).map(|_| daemon.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"more than 64"));
}

#[test]
fn memory_use_is_independent_of_the_connection_limit() {
    // In containers the limit can be 2^30. Without the right to set that, our own hard limit has to do.
    let most = fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse::<u64>().unwrap();
    let mut raise = std::process::Command::new("prlimit");
    raise.args([&format!("--nofile={most}:{most}"), "true"]).stderr(std::process::Stdio::null());
    let may_raise = raise.status().is_ok_and(|status| status.success());
    let own = || rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum.unwrap_or(most);
    let limit = if may_raise { most } else { own() };
    let daemon = Daemon::with(&["--max-connections", "1000000"]).nofile(limit).start();
    daemon.connect().echo(b"started");
    let memory = daemon.memory();
    assert!(memory < 8 << 20, "{memory} bytes with one connection and a limit of {limit}");
}

// --idle-timeout is tested in `idle_timeout.rs`, --drain-timeout in `signals.rs`, --buffer-size in `connection.rs`.

// --backlog

#[test]
fn backlog_capped_by_the_kernel_causes_a_warning() {
    let max: u64 = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap().trim().parse().unwrap();
    let daemon = Daemon::start(&["--backlog", &(max + 1).to_string()]);
    daemon.wait_for_log(|line| line.to_uppercase().contains("WARN") && line.contains(&max.to_string()));
    daemon.connect().echo(b"served");

    let daemon = Daemon::start(&["--backlog", &max.to_string()]);
    daemon.connect().echo(b"just right");
    assert!(!daemon.stderr().to_uppercase().contains("WARN"), "{}", daemon.stderr());
}

#[test]
fn backlog_option_is_passed_to_listen() {
    // Linux queues one connection more than the backlog (listen(2)); further SYNs are dropped and retransmitted later.
    let daemon = Daemon::start(&["--backlog", "4"]);
    daemon.freeze();
    let address = daemon.tcp();
    let connect = || {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&address.into()); // EINPROGRESS.
        socket
    };
    let clients: Vec<socket2::Socket> = (0..12).map(|_| connect()).collect();
    wait_until("the backlog is full", || pending_connections(address) == 5);
    daemon.thaw();
    drop(clients);
    daemon.connect().echo(b"served");
}

// --metrics

#[test]
fn metrics_port_listens_on_all_interfaces() {
    let daemon = Daemon::start(&["--metrics", "0"]);
    let stdout = daemon.stdout();
    assert!(
        stdout.contains("listening on http://[::]:") || stdout.contains("listening on http://0.0.0.0:"),
        "{stdout}"
    );
    let port = daemon.addresses()[1].to_string().rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap();
    for ip in ["127.0.0.1", "127.0.0.2"] {
        let client = Client::connect(&Address::Tcp(SocketAddr::new(ip.parse().unwrap(), port)));
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n");
        client.expect(b"HTTP/1.1 200");
    }
}

// --reuse-port

#[test]
fn reuse_port_lets_processes_share_a_port() {
    let first = Daemon::start(&["--listen", "127.0.0.13:0", "--reuse-port"]);
    let address = first.tcp().to_string();
    let second = Daemon::start(&["--listen", &address, "--reuse-port"]);
    assert_eq!(first.addresses(), second.addresses());
    let clients: Vec<Client> = (0..64).map(|_| first.connect()).collect();
    clients.iter().for_each(|client| client.echo(b"one of the two"));
    // The kernel chooses by a hash of the addresses: the chance that one process gets all 64 is 2^-63.
    let served = |daemon: &Daemon| daemon.descriptors().len();
    assert!(served(&first) > 10 && served(&second) > 10, "{} and {}", served(&first), served(&second));

    let alone = Daemon::with(&["--listen", &address]).run();
    assert_eq!(alone.code, 1, "without --reuse-port the port is in use: {}", alone.stderr);
}

#[test]
fn stopping_process_serves_its_own_backlog_first() {
    // close(2) resets the connections in the listener's own backlog; the other process has its own.
    let mut first = Daemon::start(&["--listen", "127.0.0.14:0", "--reuse-port"]);
    let address = first.tcp().to_string();
    let second = Daemon::start(&["--listen", &address, "--reuse-port"]);
    first.freeze();
    second.freeze();
    let clients: Vec<Client> = (0..64).map(|_| first.connect()).collect();
    clients.iter().for_each(|client| client.send(b"in either backlog"));
    first.signal(Signal::TERM);
    first.thaw();
    second.thaw();
    clients.iter().for_each(|client| client.expect(b"in either backlog"));
    clients.iter().for_each(Client::send_fin);
    clients.iter().for_each(Client::expect_fin);
    first.expect_success();
    second.connect().echo(b"still served");
}

// --busy-poll

#[test]
fn busy_polling_uses_cpu_only_around_traffic() {
    let daemon = Daemon::start(&["--busy-poll", "10ms"]);
    let client = daemon.connect();
    for round in 0..100 {
        client.echo(&pattern(round, 100));
    }
    // epoll_wait(2) returns EINTR: a spurious wake-up is not traffic.
    daemon.freeze();
    daemon.thaw();
    let cpu = daemon.cpu_time_during(Duration::from_secs(1));
    assert!(cpu <= Duration::from_millis(40), "{cpu:?} of CPU in a second without traffic");
    client.echo(b"awake again");
}

#[test]
fn busy_polling_avoids_wakeups() {
    // Without polling there is one sleep per echo. (Not compared with that: on a busy machine there may always be work.)
    let daemon = Daemon::start(&["--busy-poll", "10ms"]);
    let client = daemon.connect();
    client.echo(b"warm up");
    let before = daemon.sleep_count();
    (0..200).for_each(|round| client.echo(&pattern(round, 64)));
    let sleeps = daemon.sleep_count() - before;
    assert!(sleeps < 100, "{sleeps} sleeps in 200 echoes despite busy polling");
}

#[test]
fn short_connections_are_not_polled_for() {
    // The first ones may be, until it has turned out not to pay.
    let daemon = Daemon::start(&["--busy-poll", "10ms"]);
    let exchange = || {
        let client = daemon.connect();
        client.echo(b"hello");
        client.send_fin();
        client.expect_fin();
    };
    (0..50).for_each(|_| exchange());
    let before = daemon.sleep_count();
    (0..200).for_each(|_| exchange());
    let sleeps = daemon.sleep_count() - before;
    assert!(sleeps >= 100, "{sleeps} sleeps in 200 connections: it polls instead");
}

#[test]
fn busy_polling_daemon_still_times_out_and_stops() {
    let mut daemon = Daemon::start(&["--busy-poll", "10ms", "--idle-timeout", "1s"]);
    let client = daemon.connect();
    client.exchange(&pattern(1, 3 << 20));
    let idle = daemon.connect();
    idle.echo(b"and then nothing");
    idle.expect_closed().ok();
    client.expect_closed().ok();
    daemon.terminate();
}

// -v, -vv, -q, RUST_LOG

#[test]
fn rust_log_overrides_verbosity_options() {
    // Counts the lines that one connection adds to stderr: none at info, two at debug, more at trace.
    let lines = |arguments: &[&str], rust_log: Option<&str>| {
        let start = Daemon::with(arguments);
        let mut daemon = match rust_log {
            Some(filter) => start.env("RUST_LOG", filter).start(),
            None => start.start(),
        };
        let client = daemon.connect();
        client.echo(b"hello");
        let peer = client.local().to_string();
        daemon.close_and_terminate(client);
        let log = daemon.whole_stderr();
        (log.lines().count(), log.lines().filter(|line| line.contains(&peer)).count())
    };
    let (info, about_the_peer) = lines(&[], None);
    assert!(info > 0 && about_the_peer == 0, "info: {info} lines, {about_the_peer} about the peer");
    let (debug, about_the_peer) = lines(&["-v"], None);
    assert!(debug > info && about_the_peer == 2, "debug: {debug} lines, {about_the_peer} about the peer");
    let (trace, _) = lines(&["-vv"], None);
    assert!(trace > debug, "trace: {trace} lines, debug: {debug}");
    assert_eq!(lines(&["-q"], None).0, 0, "-q: warnings only");

    assert_eq!(lines(&["-vv"], Some("off")).0, 0, "RUST_LOG=off overrides -vv");
    assert_eq!(lines(&["-q"], Some("info")).0, info, "RUST_LOG=info overrides -q");
    assert_eq!(lines(&[], Some("echod=debug")).1, 2, "RUST_LOG=echod=debug overrides the default");
}

#[test]
fn invalid_rust_log_causes_one_warning_at_the_default_level() {
    for (filter, arguments, lines) in
        [("[", &[][..], 3), ("echod =debug", &[], 3), ("echod=loud", &[], 3), ("[", &["-q"], 1)]
    {
        let mut daemon = Daemon::with(arguments).env("RUST_LOG", filter).start();
        daemon.terminate();
        let log = daemon.whole_stderr();
        let warnings: Vec<&str> = log.lines().filter(|line| line.contains("WARN")).collect();
        assert_eq!(warnings.len(), 1, "RUST_LOG={filter}: {log}");
        assert!(warnings[0].contains("ignoring invalid RUST_LOG: "), "{log}");
        assert!(
            log.lines().count() >= lines,
            "RUST_LOG={filter} {arguments:?}: expected the default level, got:\n{log}"
        );
    }
}

#[test]
fn counters_are_printed_like_log_lines_at_any_level() {
    for filter in ["off", "info", "["] {
        let daemon = Daemon::with(&[]).env("RUST_LOG", filter).start();
        daemon.signal(Signal::USR1);
        let line = daemon.wait_for_log(|line| line.contains("connections: 0 accepted"));
        // [2026-01-02T03:04:05.678Z INFO ] connections: ...
        let (prefix, message) = line.split_once("] ").unwrap();
        assert!(prefix.starts_with("[20") && prefix.contains("Z INFO"), "expected time and level: {line}");
        assert!(message.starts_with("connections: "), "{line}");
    }
}
