//! `--explain` from outside: what a reader of stdout sees, with times and ports masked.
//!
//! Whether it is true of the wire is asked in `tests/capture`.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

#[path = "support/mod.rs"]
mod support;

use std::fs::File;
use std::io::Read;
use std::sync::mpsc;
use std::thread;

use rustix::event::PollFlags;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use support::{Client, Daemon, Directory, Signal, TIMEOUT, unix, wait_until};

/// The lines of one connection, without number and time. A run of dashes or blanks is one of them, a port is `*`.
fn story(narrative: &str, number: u32) -> Vec<String> {
    let prefix = format!("#{number} ");
    let lines = narrative.lines().filter_map(|line| line.strip_prefix(&prefix));
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

/// How each story on TCP begins.
const OPENED: [&str; 4] = [
    "client 127.0.0.1:*, server 127.0.0.1:*; segments of at most 32768 bytes",
    "╌ SYN ╌► LISTEN → SYN-RECEIVED",
    "◄╌ SYN+ACK ╌",
    "╌ ACK ╌► SYN-RECEIVED → ESTABLISHED ESTABLISHED",
];

/// A client whose handshake has been told, so that the kernel's word on it is known.
#[track_caller]
fn connect(daemon: &Daemon, number: u32) -> Client {
    let peer = daemon.connect();
    wait_until("the handshake is told", || story(&daemon.stdout(), number).len() == OPENED.len());
    peer
}

/// Waits until the story ends with the last of these lines, and compares all of it.
#[track_caller]
fn assert_story(daemon: &Daemon, number: u32, told: &[&str]) {
    wait_until("the story is told", || {
        story(&daemon.stdout(), number).last().map(String::as_str) == told.last().copied()
    });
    assert_eq!(story(&daemon.stdout(), number), [&OPENED, told].concat());
}

#[test]
fn aa_and_the_clients_fin_are_four_way() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo(b"aa\n");
    peer.send_fin();
    peer.expect_fin();
    let told = [
        r#"─ PSH+ACK len 3 ─► "aa\n" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 3 ─ "aa\n" ESTABLISHED"#,
        "─ FIN+ACK ─► ESTABLISHED → CLOSE-WAIT CLOSE-WAIT",
        "◄╌ ACK ╌ or in one with our FIN",
        "◄─ FIN+ACK ─ CLOSE-WAIT → LAST-ACK",
        "╌ ACK ╌► LAST-ACK → CLOSED gone",
        "finished: the client's FIN first, so TIME-WAIT is its own; 3 bytes in, 3 out",
    ];
    assert_story(&daemon, 1, &told);
}

#[test]
fn one_shot_closes_first_holds_time_wait_and_answers_what_comes_late_with_rst() {
    let daemon = Daemon::start(&["--explain", "--one-shot"]);
    let served = [
        r#"─ PSH+ACK len 3 ─► "aa\n" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 3 ─ "aa\n" ESTABLISHED"#,
        "◄─ FIN+ACK ─ ESTABLISHED → FIN-WAIT-1",
        "one_shot: one message answered, then our FIN first; 3 bytes in, 3 out",
    ];
    let late = ["╌ PSH+ACK len ? ╌► to nobody: we have closed", "◄╌ RST ╌ FIN-WAIT-2 → CLOSED gone"];
    let finished = [
        "╌ FIN+ACK ╌► FIN-WAIT-2 → TIME-WAIT TIME-WAIT",
        "◄╌ ACK ╌",
        "TIME-WAIT is ours, for our FIN went first: the kernel keeps both addresses for 60 s",
    ];
    let send_late = |peer: Client| {
        peer.send(b"b\n");
        peer
    };
    let finish = |peer: Client| {
        peer.send_fin();
        peer
    };
    for (number, act, end) in [(1, &send_late as &dyn Fn(Client) -> Client, &late[..]), (2, &finish, &finished)] {
        let acknowledged = "╌ ACK ╌► FIN-WAIT-1 → FIN-WAIT-2 FIN-WAIT-2";
        let peer = connect(&daemon, number);
        peer.echo(b"aa\n");
        peer.expect_fin();
        wait_until("the ACK of our FIN is told", || {
            story(&daemon.stdout(), number).iter().any(|line| line == acknowledged)
        });
        let _kept = act(peer);
        wait_until("the end is told", || {
            story(&daemon.stdout(), number).last().map(String::as_str) == end.last().copied()
        });
        // That ACK comes at once or 40 ms later, as the client's kernel likes.
        let mut story = story(&daemon.stdout(), number);
        let place = story.iter().position(|line| line == acknowledged).unwrap();
        assert!((7..=8).contains(&place), "{story:?}");
        story.remove(place);
        let fin = &mut story[6];
        fin.truncate(fin.len() - " FIN-WAIT-1".len()); // Or FIN-WAIT-2.
        assert_eq!(story, [&OPENED, &served, end].concat());
    }
}

#[test]
fn a_reset_says_what_is_lost() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo("你好\0\x1b[2J\u{202e}".as_bytes());
    peer.reset();
    let told = [
        r#"─ PSH+ACK len 14 ─► "你好\x00\x1b[2J\u{202e}" ESTABLISHED"#,
        r#"◄─ PSH+ACK len 14 ─ "你好\x00\x1b[2J\u{202e}" ESTABLISHED"#,
        "─ RST ─► ESTABLISHED → CLOSED gone",
        "reset: the client gave it up; 14 bytes in, 14 out",
    ];
    assert_story(&daemon, 1, &told);
}

#[test]
fn a_stall_is_a_closed_window_and_its_end_an_open_one() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = Client::connect_with_small_buffers(daemon.address());
    let block = vec![b'x'; 65536];
    let mut sent = 0;
    while !daemon.stdout().contains("window closed") {
        assert!(sent < 100 << 20);
        sent += peer.try_send(&block).unwrap();
        peer.wait_for(PollFlags::OUT, std::time::Duration::from_millis(10));
    }
    assert!(!daemon.stdout().contains("window open again"));
    // The rest goes out while we read: that is when the window opens.
    for _ in 0..sent.div_ceil(65536) {
        let most = sent.min(65536);
        peer.read_exactly(most).unwrap();
        sent -= most;
    }
    wait_until("the end of the stall is told", || daemon.stdout().contains("window open again"));
    let narrative = daemon.stdout();
    assert!(narrative.contains("and we read no more, so that ours closes in turn: flow control"), "{narrative}");
    peer.send_fin();
    peer.expect_fin();
    wait_until("the end is told", || daemon.stdout().contains("finished:"));
}

#[test]
fn bulk_is_summed_up_and_no_byte_of_it_is_missing_from_the_sums() {
    let daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.exchange(&vec![b'x'; 8 << 20]);
    peer.send_fin();
    peer.expect_fin();
    wait_until("the end is told", || daemon.stdout().contains("finished:"));
    let narrative = daemon.stdout();
    assert!(!narrative.contains("left out"), "{narrative}");
    let (mut bytes_in, mut bytes_out) = (0, 0);
    for line in story(&narrative, 1) {
        let number = |after: &str| -> usize {
            let rest = line.split_once(after).map_or("0", |(_, rest)| rest);
            rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
        };
        if line.contains("reads and writes more") {
            bytes_in += number("more, ");
            bytes_out += number("in and ");
        } else if line.starts_with('◄') {
            bytes_out += number("len ");
        } else {
            bytes_in += number("len ");
        }
    }
    assert_eq!((bytes_in, bytes_out), (8 << 20, 8 << 20), "{narrative}");
    assert!(narrative.lines().count() < 300, "{narrative}");
}

#[test]
fn a_drain_is_told_from_our_fin_to_time_wait() {
    let mut daemon = Daemon::start(&["--explain"]);
    let peer = connect(&daemon, 1);
    peer.echo(b"hello");
    daemon.signal(Signal::TERM);
    peer.expect_fin();
    peer.send(b"late");
    peer.send_fin();
    daemon.expect_success();
    let narrative = daemon.whole_stdout();
    let story = story(&narrative, 1);
    assert!(narrative.contains("\ndrain    no newcomers"), "{narrative}");
    // When the ACK of our FIN is noticed is the kernel's affair, and what it says beside each line.
    let place = |start: &str| {
        story.iter().position(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {narrative}"))
    };
    let order = [
        place("◄─ FIN+ACK ─ ESTABLISHED → FIN-WAIT-1"),
        place("─ PSH+ACK len 4 ─► read and dropped"),
        place("─ FIN+ACK ─► FIN-WAIT-2 → TIME-WAIT"),
        place("drained: our FIN first, then the client's; 5 bytes in, 5 out"),
        place("TIME-WAIT is ours"),
    ];
    assert!(order.is_sorted(), "{narrative}");
    let acknowledged = place("╌ ACK ╌► FIN-WAIT-1 → FIN-WAIT-2");
    assert!(order[0] < acknowledged && acknowledged < order[2], "{narrative}");
}

#[test]
fn a_unix_socket_has_no_segments() {
    let directory = Directory::new();
    let daemon = Daemon::start(&["--explain", "--listen", &unix(&directory.join("echo.sock"))]);
    let peer = daemon.connect();
    peer.echo(b"aa\n");
    peer.send_fin();
    peer.expect_fin();
    wait_until("the end is told", || daemon.stdout().contains("finished:"));
    let told = [
        "a Unix socket: the kernel copies from queue to queue; no segments, no handshake",
        r#"─ 3 bytes ─► "aa\n""#,
        r#"◄─ 3 bytes ─ "aa\n""#,
        "─ end of file ─► it writes no more, or has closed",
        "◄─ end of file ─ we close, too",
        "finished: the client finished first; 3 bytes in, 3 out",
    ];
    assert_eq!(story(&daemon.stdout(), 1), told);
}

#[test]
fn connections_stay_apart_by_number() {
    let daemon = Daemon::start(&["--explain"]);
    let peers: Vec<Client> = (1..=3).map(|number| connect(&daemon, number)).collect();
    for (peer, word) in peers.iter().zip(["one", "two", "three"]) {
        peer.echo(word.as_bytes());
    }
    for (number, word) in (1..).zip(["one", "two", "three"]) {
        wait_until("each has its own", || story(&daemon.stdout(), number).len() == OPENED.len() + 2);
        assert!(story(&daemon.stdout(), number)[OPENED.len()].contains(word));
    }
}

#[test]
fn lines_have_at_most_100_columns_and_no_colour_but_on_a_terminal() {
    let narrative = |start: support::DaemonBuilder| {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let line = File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let directory = Directory::new();
        let listen = format!("--listen={}", unix(&directory.join("echo.sock")));
        let daemon = start.argument(&listen).env("TERM", "xterm").stdout(line).spawn();
        let (tell, told) = mpsc::channel();
        let mut reader = File::from(terminal);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut bytes) {
                if tell.send(bytes[..length].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut text = Vec::new();
        let mut talked = false;
        while !String::from_utf8_lossy(&text).contains("finished:") {
            text.extend(told.recv_timeout(TIMEOUT).expect("a narrative on the terminal"));
            if !talked && String::from_utf8_lossy(&text).contains("kernel") {
                talked = true;
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
    let coloured = narrative(explain());
    assert!(coloured.contains("\x1b[36m") || coloured.contains("\x1b[33m"), "{coloured}");
    let plain = narrative(explain().env("NO_COLOR", "1"));
    assert!(!plain.contains('\x1b'), "{plain}");
    for line in plain.lines() {
        // Of the wide letters, only those in the echo's bytes take two columns.
        assert!(line.trim_end().chars().count() <= 100, "{line}");
    }
}

#[test]
fn a_reader_that_stops_reading_slows_no_echo_and_is_told_what_it_missed() {
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
    // The pipe takes some 600 lines, and nobody reads it: each of these clients has more than four.
    let peer = Client::connect(&path.as_path().into());
    for _ in 0..1000 {
        let other = Client::connect(&path.as_path().into());
        other.echo(b"someone else");
        peer.echo(b"still here");
    }
    drop(peer);
    let mut told = String::new();
    let (tell, heard) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = [0; 4096];
        while let Ok(length @ 1..) = reader.read(&mut bytes) {
            if tell.send(bytes[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    wait_until("a gap is told", || {
        Client::connect(&path.as_path().into()).echo(b"more to tell");
        told.push_str(&String::from_utf8_lossy(&heard.try_iter().flatten().collect::<Vec<u8>>()));
        told.contains("lines left out: too many to follow, or not read in time")
    });
    drop(daemon);
}
