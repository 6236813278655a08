//! The output of `--explain` as a reader of stdout sees it, with times and ports masked.
//!
//! `tests/capture` compares it with the segments on the wire.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "support/mod.rs"]
mod support;

use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;

use rustix::event::PollFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{Client, Daemon, DaemonBuilder, Directory, Signal, TIMEOUT, unix, wait_until};

/// Returns the lines of one connection, without number and time. A run of dashes or blanks becomes a single one, a port `*`.
fn diagram(output: &str, number: u32) -> Vec<String> {
    let prefix = format!("#{number} ");
    let lines = output.lines().filter_map(|line| line.strip_prefix(&prefix));
    lines.map(|line| masked(line.trim_start_matches(|c: char| " .0123456789".contains(c)))).collect()
}

fn masked(line: &str) -> String {
    let mut masked = String::new();
    for c in line.chars() {
        let repeats = masked.ends_with(c) && " ─╌".contains(c);
        let in_port = c.is_ascii_digit() && masked.ends_with("127.0.0.1:*");
        if c.is_ascii_digit() && masked.ends_with("127.0.0.1:") {
            masked.push('*');
        } else if !repeats && !in_port {
            masked.push(c);
        }
    }
    masked
}

/// How the diagram of each TCP connection begins.
const OPENED: [&str; 4] = [
    "client 127.0.0.1:*, server 127.0.0.1:*; MSS 32768 bytes",
    "╌ SYN ╌► LISTEN → SYN-RECEIVED",
    "◄╌ SYN+ACK ╌",
    "╌ ACK ╌► SYN-RECEIVED → ESTABLISHED ESTABLISHED",
];

/// Connects a client and waits until its handshake is printed, so that the state in the kernel is known.
#[track_caller]
fn connect(daemon: &Daemon, number: u32) -> Client {
    let peer = daemon.connect();
    wait_until("the handshake is printed", || diagram(&daemon.stdout(), number).len() == OPENED.len());
    peer
}

/// Waits until the diagram ends with the last of these lines, and compares all of it.
#[track_caller]
fn assert_diagram(daemon: &Daemon, number: u32, expected: &[&str]) {
    wait_until("the last line is printed", || {
        diagram(&daemon.stdout(), number).last().map(String::as_str) == expected.last().copied()
    });
    assert_eq!(diagram(&daemon.stdout(), number), [&OPENED, expected].concat());
}

#[test]
fn client_fin_after_echo_is_a_four_way_close() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo(b"aa\n");
    peer.send_fin();
    peer.expect_fin();
    let expected = [
        r#"─ PSH+ACK len 3 ─► "aa\n" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 3 ─ "aa\n" ESTABLISHED"#,
        "─ FIN+ACK ─► ESTABLISHED → CLOSE-WAIT CLOSE-WAIT",
        "◄╌ ACK ╌ or combined with our FIN",
        "◄─ FIN+ACK ─ CLOSE-WAIT → LAST-ACK",
        "╌ ACK ╌► LAST-ACK → CLOSED gone",
        "finished: client closed first and keeps TIME-WAIT; 3 bytes in, 3 out",
    ];
    assert_diagram(&daemon, 1, &expected);
}

#[test]
fn one_shot_ends_in_time_wait_or_rst() {
    let daemon = Daemon::start(&["--explain", "--one-shot"]);
    let served = [
        r#"─ PSH+ACK len 3 ─► "aa\n" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 3 ─ "aa\n" ESTABLISHED"#,
        "◄─ FIN+ACK ─ ESTABLISHED → FIN-WAIT-1",
        "one_shot: one message echoed, our FIN was first; 3 bytes in, 3 out",
    ];
    let late = ["╌ PSH+ACK len ? ╌► socket already closed", "◄╌ RST ╌ FIN-WAIT-2 → CLOSED gone"];
    let finished = [
        "╌ FIN+ACK ╌► FIN-WAIT-2 → TIME-WAIT TIME-WAIT",
        "◄╌ ACK ╌",
        "TIME-WAIT is ours, because our FIN was first; it lasts 60 s",
    ];
    let send_late = |peer: Client| {
        peer.send(b"b\n");
        peer
    };
    let finish = |peer: Client| {
        peer.send_fin();
        peer
    };
    for (number, act, last) in [(1, &send_late as &dyn Fn(Client) -> Client, &late[..]), (2, &finish, &finished)] {
        let acknowledged = "╌ ACK ╌► FIN-WAIT-1 → FIN-WAIT-2 FIN-WAIT-2";
        let peer = connect(&daemon, number);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until("the ACK of our FIN is printed", || {
            diagram(&daemon.stdout(), number).iter().any(|line| line == acknowledged)
        });
        let _kept = act(peer);
        wait_until("the last line is printed", || {
            diagram(&daemon.stdout(), number).last().map(String::as_str) == last.last().copied()
        });
        // The client's kernel sends that ACK at once or after 40 ms.
        let mut lines = diagram(&daemon.stdout(), number);
        let index = lines.iter().position(|line| line == acknowledged).unwrap();
        assert!((7..=8).contains(&index), "{lines:?}");
        lines.remove(index);
        let fin = &mut lines[6];
        fin.truncate(fin.len() - " FIN-WAIT-1".len()); // Or FIN-WAIT-2.
        assert_eq!(lines, [&OPENED, &served, last].concat());
    }
}

#[test]
fn reset_by_client_is_printed() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo("你好\0\x1b[2J\u{202e}".as_bytes());
    peer.reset();
    let expected = [
        r#"─ PSH+ACK len 14 ─► "你好\x00\x1b[2J\u{202e}" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 14 ─ "你好\x00\x1b[2J\u{202e}" ESTABLISHED"#,
        "─ RST ─► ESTABLISHED → CLOSED CLOSED",
        "reset: reset by the client; 14 bytes in, 14 out",
    ];
    assert_diagram(&daemon, 1, &expected);
}

/// Sends until the daemon reports that the client does not read. Returns the number of bytes sent.
fn stall(daemon: &Daemon, peer: &Client) -> usize {
    let block = vec![b'x'; 65536];
    let mut sent = 0;
    while !daemon.stdout().contains("window closed") {
        assert!(sent < 100 << 20);
        sent += peer.try_send(&block).unwrap();
        peer.wait_for(PollFlags::OUT, std::time::Duration::from_millis(10));
    }
    sent
}

#[test]
fn stall_is_printed_as_closed_and_reopened_window() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = Client::connect_with_small_buffers(daemon.address());
    let mut sent = stall(&daemon, &peer);
    assert!(!daemon.stdout().contains("window open again"));
    // The window opens when the rest is sent, while we read.
    for _ in 0..sent.div_ceil(65536) {
        let length = sent.min(65536);
        peer.read_exactly(length).unwrap();
        sent -= length;
    }
    wait_until("the end of the stall is printed", || daemon.stdout().contains("window open again"));
    let output = daemon.stdout();
    assert!(output.contains("and we stop reading, so our window closes in turn: backpressure"), "{output}");
    peer.send_fin();
    peer.expect_fin();
    wait_until("the summary is printed", || daemon.stdout().contains("finished:"));
}

#[test]
fn bulk_transfer_is_summed_up_without_losing_bytes() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.exchange(&vec![b'x'; 8 << 20]);
    peer.send_fin();
    peer.expect_fin();
    wait_until("the summary is printed", || daemon.stdout().contains("finished:"));
    let output = daemon.stdout();
    assert!(!output.contains("omitted"), "{output}");
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for line in diagram(&output, 1) {
        let number = |after: &str| -> usize {
            let rest = line.split_once(after).map_or("0", |(_, rest)| rest);
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        if line.contains("more reads and writes") {
            bytes_in += number("writes (");
            bytes_out += number("in, ");
        } else if line.starts_with('◄') {
            bytes_out += number("len ");
        } else {
            bytes_in += number("len ");
        }
    }
    assert_eq!((bytes_in, bytes_out), (8 << 20, 8 << 20), "{output}");
    assert!(output.lines().count() < 300, "{output}");
}

#[test]
fn graceful_shutdown_is_printed_from_fin_to_time_wait() {
    let mut daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo(b"hello");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    peer.send(b"late");
    peer.send_fin();
    daemon.expect_success();
    let output = daemon.whole_stdout();
    let lines = diagram(&output, 1);
    assert!(output.contains("\nshutdown  no new connections"), "{output}");
    // When the ACK of our FIN shows, and which state the kernel reports next to each line, depends on its timing.
    let index = |start: &str| {
        lines.iter().position(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start} missing: {output}"))
    };
    let order = [
        index("◄─ FIN+ACK ─ ESTABLISHED → FIN-WAIT-1"),
        index("─ PSH+ACK len 4 ─► read and discarded"),
        index("─ FIN+ACK ─► FIN-WAIT-2 → TIME-WAIT"),
        index("drained: our FIN was first, then the client's; 5 bytes in, 5 out"),
        index("TIME-WAIT is ours"),
    ];
    assert!(order.is_sorted(), "{output}");
    let acknowledged = index("╌ ACK ╌► FIN-WAIT-1 → FIN-WAIT-2");
    assert!(order[0] < acknowledged && acknowledged < order[2], "{output}");
}

#[test]
fn unix_socket_has_no_segments() {
    let directory = Directory::new();
    let daemon = Daemon::start(&["--explain", "--listen", &unix(&directory.join("echo.sock"))]);
    let peer = daemon.connect();
    peer.echo(b"aa\n");
    peer.send_fin();
    peer.expect_fin();
    wait_until("the summary is printed", || daemon.stdout().contains("finished:"));
    let expected = [
        "Unix socket: the kernel copies the bytes; no segments, no handshake",
        r#"─ 3 bytes ─► "aa\n""#,
        r#"◄─ 3 bytes ─ "aa\n""#,
        "─ end of file ─► no more data, or closed",
        "◄─ end of file ─ we close as well",
        "finished: the client closed first; 3 bytes in, 3 out",
    ];
    assert_eq!(diagram(&daemon.stdout(), 1), expected);
}

/// The diagram of a connection that echoes `aa` and whose client closes first, if the kernel's table does not show its socket.
const UNKNOWN: [&str; 10] = [
    "client 127.0.0.1:*, server 127.0.0.1:*; MSS 32768 bytes",
    "kernel state unknown: other network namespace, or bound to a device",
    "╌ SYN ╌► LISTEN → SYN-RECEIVED",
    "◄╌ SYN+ACK ╌",
    "╌ ACK ╌► SYN-RECEIVED → ESTABLISHED unknown",
    r#"─ PSH+ACK len 3 ─► "aa\n" unknown"#,
    r#"◄─ PSH+ACK len 3 ─ "aa\n" unknown"#,
    "─ FIN+ACK ─► ESTABLISHED → CLOSE-WAIT unknown",
    "◄╌ ACK ╌ or combined with our FIN",
    "◄─ FIN+ACK ─ CLOSE-WAIT → LAST-ACK unknown",
];

/// Echoes `aa` over a passed listener that the kernel's table does not show to the daemon, and compares the diagram.
fn assert_state_is_unknown(daemon: DaemonBuilder, listener: TcpListener) {
    let daemon = daemon.without_listen().stdin(Stdio::from(OwnedFd::from(listener))).start();
    let peer = daemon.connect();
    peer.echo(b"aa\n");
    peer.send_fin();
    peer.expect_fin();
    let summary = "finished: client closed first and keeps TIME-WAIT; 3 bytes in, 3 out";
    wait_until("the summary is printed", || diagram(&daemon.stdout(), 1).last().is_some_and(|line| line == summary));
    assert_eq!(diagram(&daemon.stdout(), 1), [&UNKNOWN[..], &[summary]].concat());
}

/// Passes a listener, which is stdin, as a service manager does.
const PASS_LISTENER: &str = r#"LISTEN_FDS=1 LISTEN_PID=$$ exec "$@" 3<&0 0</dev/null"#;

#[test]
fn state_of_a_socket_bound_to_a_device_is_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    if let Err(error) = socket2::SockRef::from(&listener).bind_device(Some(b"lo")) {
        return support::skip(&format!("SO_BINDTODEVICE: {error}"));
    }
    assert_state_is_unknown(Daemon::with(&["--explain"]).shell(PASS_LISTENER), listener);
}

#[test]
fn rst_is_inferred_if_the_state_is_unknown() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    if let Err(error) = socket2::SockRef::from(&listener).bind_device(Some(b"lo")) {
        return support::skip(&format!("SO_BINDTODEVICE: {error}"));
    }
    let stdin = Stdio::from(OwnedFd::from(listener));
    let mut daemon = Daemon::with(&["--explain"]).shell(PASS_LISTENER).without_listen().stdin(stdin).start();
    let peer = Client::connect_with_small_buffers(daemon.address());
    stall(&daemon, &peer);
    daemon.signal(Signal::TERM);
    wait_until("the shutdown begins", || daemon.stdout().contains("\nshutdown "));
    daemon.signal(Signal::TERM);
    daemon.expect_success();
    let output = daemon.whole_stdout();
    // Our close(2) sends it, unless the client's own RST came first, which cannot be known.
    assert!(diagram(&output, 1).iter().any(|line| line.starts_with("◄╌ RST ╌")), "{output}");
    assert!(!output.contains("─ RST") && !output.contains("gone"), "{output}");
}

#[test]
fn state_in_another_network_namespace_is_unknown() {
    if !support::has_program("unshare") || !rustix::process::geteuid().is_root() {
        return support::skip_missing("unshare, and root to create a network namespace");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let daemon = Daemon::with(&["--explain"]).through(&["unshare", "--net", "sh", "-c", PASS_LISTENER, "sh"]);
    assert_state_is_unknown(daemon, listener);
}

#[test]
fn connections_are_distinguished_by_number() {
    let daemon = Daemon::start(&["--explain"]);
    let peers: Vec<Client> = (1..=3).map(|number| connect(&daemon, number)).collect();
    for (peer, word) in peers.iter().zip(["one", "two", "three"]) {
        peer.echo(word.as_bytes());
    }
    for (number, word) in (1..).zip(["one", "two", "three"]) {
        wait_until("the echo is printed", || diagram(&daemon.stdout(), number).len() == OPENED.len() + 2);
        assert!(diagram(&daemon.stdout(), number)[OPENED.len()].contains(word));
    }
}

#[test]
fn lines_fit_85_columns_and_only_terminals_get_color() {
    let output_on_terminal = |start: support::DaemonBuilder| {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let line = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let directory = Directory::new();
        let listen = format!("--listen={}", unix(&directory.join("echo.sock")));
        let daemon = start.argument(&listen).env("TERM", "xterm").stdout(line).spawn();
        let (sender, receiver) = mpsc::channel();
        let mut reader = File::from(terminal);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if sender.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut text = Vec::new();
        let mut has_connected = false;
        while !String::from_utf8_lossy(&text).contains("finished:") {
            text.extend(receiver.recv_timeout(TIMEOUT).expect("output on the terminal"));
            if !has_connected && String::from_utf8_lossy(&text).contains("kernel") {
                has_connected = true;
                let peer = Client::connect(&directory.join("echo.sock").as_path().into());
                peer.echo("很长的一行字，长得一行写不下，所以只看得到它的开头\n".as_bytes());
                peer.send_fin();
                peer.expect_fin();
            }
        }
        drop(daemon);
        String::from_utf8(text).unwrap()
    };
    let explain = || Daemon::with(&["--explain"]).without_listen();
    let colored = output_on_terminal(explain());
    assert!(colored.contains("\x1b[36m") || colored.contains("\x1b[33m"), "{colored}");
    let plain = output_on_terminal(explain().env("NO_COLOR", "1"));
    assert!(!plain.contains('\x1b'), "{plain}");
    for line in plain.lines() {
        // Only the Chinese characters have two columns, and they are counted as one here.
        assert!(line.trim_end().chars().count() <= 85, "{line}");
    }
}

#[test]
fn stalled_reader_slows_nothing_and_sees_omitted_count() {
    let (mut reader, writer) = std::io::pipe().unwrap();
    let directory = Directory::new();
    let path = directory.join("echo.sock");
    let daemon = Daemon::with(&["--explain", "--listen", &unix(&path)]).stdout(writer).spawn();
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        line.push(byte[0]);
    }
    // The pipe holds some 600 lines and is not read; each of these clients prints more than four.
    let peer = Client::connect(&path.as_path().into());
    for _ in 0..1000 {
        let other = Client::connect(&path.as_path().into());
        other.echo(b"other client");
        peer.echo(b"still here");
    }
    drop(peer);
    let mut output = String::new();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut bytes) {
            if sender.send(bytes[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    wait_until("the number of omitted lines is printed", || {
        Client::connect(&path.as_path().into()).echo(b"one more connection");
        output.push_str(&String::from_utf8_lossy(&receiver.try_iter().flatten().collect::<Vec<u8>>()));
        output.contains("lines omitted (output too fast, or the reader of stdout is too slow)")
    });
    drop(daemon);
}
