//! How many instructions echod spends on an echo in user space, counted by callgrind: the same number on a busy
//! machine as on a quiet one, so a limit can be drawn with it, which no time allows.
//!
//!     cargo test --release --test instructions -- --nocapture
//!
//! Skipped, with the reason, in an unoptimised build and where valgrind(1) is missing; with ECHOD_REQUIRE_TOOLS=1 the
//! latter fails.

#![allow(clippy::print_stdout, reason = "the table is told")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};

/// The most that an echo may cost, with so many connections that have a message at the same time. Limits for those who
/// change the loop, some percent above what it was when they were drawn; lower them when it falls.
const LIMITS: [(usize, u64); 2] = [(1, 310), (50, 195)];

/// Echoes of the shorter run; the longer one has three times as many. The difference is free of start and end.
const ECHOES: usize = 1000;

#[test]
fn echo_stays_within_its_instruction_limit() {
    if cfg!(debug_assertions) {
        println!("skipped: an unoptimised build tells nothing; use --release");
        return;
    }
    if let Err(error) = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        assert!(env::var_os("ECHOD_REQUIRE_TOOLS").is_none(), "valgrind: {error}");
        println!("skipped: valgrind: {error}");
        return;
    }
    println!("connections  instructions per echo  limit");
    for (connections, limit) in LIMITS {
        let short = instructions(connections, ECHOES).expect("a run under valgrind");
        let long = instructions(connections, 3 * ECHOES).expect("a run under valgrind");
        let each = (long - short) / (2 * ECHOES) as u64;
        println!("{connections:11}  {each:21}  {limit:5}");
        assert!(each <= limit, "{each} instructions per echo with {connections} connections");
    }
}

/// Instructions of a whole run, from start to exit.
fn instructions(connections: usize, echoes: usize) -> Result<u64, Box<dyn Error>> {
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .args([env!("CARGO_BIN_EXE_echod"), "-q", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let load = put_load_on(&mut child, connections, echoes);
    let pid = Pid::from_child(&child);
    if load.is_err() {
        child.kill()?;
    } else {
        kill_process(pid, Signal::TERM)?;
    }
    let output = child.wait_with_output()?;
    load?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split("Collected :").nth(1));
    Ok(collected.ok_or_else(|| format!("no count in: {report}"))?.trim().parse()?)
}

/// All connections say a message at once, and again, until there were enough echoes.
fn put_load_on(child: &mut Child, connections: usize, echoes: usize) -> Result<(), Box<dyn Error>> {
    let pid = Pid::from_child(child);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("it is piped")).read_line(&mut line)?;
    let address = line.trim().strip_prefix("listening on tcp://").ok_or("it does not listen")?;
    let mut streams = Vec::new();
    stop(pid)?; // All are accepted in one turn.
    for _ in 0..connections {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        streams.push(stream);
    }
    kill_process(pid, Signal::CONT)?;
    let message = [b'x'; 64];
    let mut echo = [0; 64];
    for _ in 0..echoes / connections {
        // Stopped while we send, the server finds all messages in one turn, however fast either of us is. (A stop costs a
        // turn of its own; with one connection there is nothing to bring together.)
        if connections > 1 {
            stop(pid)?;
        }
        for stream in &mut streams {
            stream.write_all(&message)?;
        }
        kill_process(pid, Signal::CONT)?;
        for stream in &mut streams {
            stream.read_exact(&mut echo)?;
        }
    }
    Ok(())
}

/// Stops a process, and waits until it stands: proc(5) tells by the letter behind the name.
fn stop(pid: Pid) -> Result<(), Box<dyn Error>> {
    kill_process(pid, Signal::STOP)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?.contains(") T ") {
        if Instant::now() > deadline {
            return Err("it does not stop".into());
        }
        thread::yield_now();
    }
    Ok(())
}
