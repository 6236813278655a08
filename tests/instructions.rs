//! The number of instructions that echod executes per echo in user space, as counted by callgrind. Unlike
//! a duration, this number does not depend on the load of the machine, so the test can enforce a limit.
//!
//!     cargo test --release --test instructions -- --nocapture
//!
//! The test is skipped, with a message, in an unoptimized build, and if valgrind(1) is missing; with
//! `ECHOD_REQUIRE_TOOLS=1` the latter is a failure.

#![allow(clippy::print_stdout, reason = "prints the table of results")]

use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};

/// Maximum number of instructions per echo (second value) if as many connections (first value) have a
/// message at the same time.
///
/// The limits guard changes of the loop. They are a few percent above the counts when they were set; lower
/// them when the counts fall.
const LIMITS: [(usize, u64); 2] = [(1, 310), (50, 195)];

/// Number of echoes in the shorter run; the longer one has three times as many. The difference between
/// the two does not contain startup and exit.
const ECHOES: usize = 1000;

#[test]
fn echo_stays_within_its_instruction_limit() {
    if cfg!(debug_assertions) {
        println!("skipped: the count of an unoptimized build is meaningless; use --release");
        return;
    }
    if let Err(error) = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        let required = env::var_os("ECHOD_REQUIRE_TOOLS").is_some();
        assert!(!required, "ECHOD_REQUIRE_TOOLS is set, but valgrind cannot be run: {error}");
        println!("skipped: valgrind cannot be run: {error}");
        return;
    }
    println!("connections  instructions per echo  limit");
    for (connections, limit) in LIMITS {
        let short = instructions(connections, ECHOES).expect("run echod under valgrind");
        let long = instructions(connections, 3 * ECHOES).expect("run echod under valgrind");
        let per_echo = (long - short) / (2 * ECHOES) as u64;
        println!("{connections:11}  {per_echo:21}  {limit:5}");
        assert!(per_echo <= limit, "{per_echo} instructions per echo with {connections} connections, limit {limit}");
    }
}

/// Returns the number of instructions of a whole run, from start to exit.
fn instructions(connections: usize, echoes: usize) -> Result<u64, Box<dyn Error>> {
    let mut child = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // Without polling, because how often the loop polls in between depends on the time, which valgrind stretches.
        .args([env!("CARGO_BIN_EXE_echod"), "-q", "--busy-poll", "0", "--listen", "127.0.0.1:0"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let result = exchange_messages(&mut child, connections, echoes);
    let pid = Pid::from_child(&child);
    if result.is_err() {
        child.kill()?;
    } else {
        kill_process(pid, Signal::TERM)?;
    }
    let output = child.wait_with_output()?;
    result?;
    let report = String::from_utf8_lossy(&output.stderr);
    let collected = report.lines().find_map(|line| line.split("Collected :").nth(1));
    Ok(collected.ok_or_else(|| format!("no instruction count in the output of valgrind: {report}"))?.trim().parse()?)
}

/// Sends a message on all connections at once and reads the echoes, until there have been `echoes` in all.
fn exchange_messages(child: &mut Child, connections: usize, echoes: usize) -> Result<(), Box<dyn Error>> {
    let pid = Pid::from_child(child);
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("stdout should be piped")).read_line(&mut line)?;
    let address = line
        .trim()
        .strip_prefix("listening on tcp://")
        .ok_or_else(|| format!("expected a `listening on` line, got {line:?}"))?;
    let mut streams = Vec::new();
    suspend(pid)?; // All connections are accepted in one iteration.
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
        // Because the daemon is suspended while we send, it finds all messages in one iteration, however fast either
        // process is. With one connection this is not necessary, and each suspension costs an additional iteration.
        if connections > 1 {
            suspend(pid)?;
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

/// Suspends a process (SIGSTOP), and waits until its state is T in proc_pid_stat(5).
fn suspend(pid: Pid) -> Result<(), Box<dyn Error>> {
    kill_process(pid, Signal::STOP)?;
    let deadline = Instant::now() + Duration::from_secs(10);
    while !fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()))?.contains(") T ") {
        if Instant::now() > deadline {
            return Err("the daemon should be suspended within 10 s after SIGSTOP".into());
        }
        thread::yield_now();
    }
    Ok(())
}
