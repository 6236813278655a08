//! A very large number of connections, spread over several daemons: all are open at once, each echoes,
//! and the test prints the memory per connection.
//!
//! Not part of a plain `cargo test`, because each connection needs about 8 KB of kernel memory for its
//! two ends together.
//!
//!     ECHOD_CONNECTIONS=1000000 cargo test --release --test million -- --ignored --nocapture
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "prints the measured figures")]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{iter, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Address, Client, Daemon, pattern};

/// Connections per listening address. The number of local ports limits it: 28,232 by default
/// (`ip_local_port_range`).
const PER_ADDRESS: usize = 25_000;
const ADDRESSES_PER_DAEMON: usize = 8;
/// Number of messages in flight at once.
const IN_FLIGHT: usize = 5000;
/// Maximum duration of one step of a worker. In addition, the timeout of the clients applies to each message.
const STEP_TIMEOUT: Duration = Duration::from_secs(300);
/// Memory that must remain available on the machine, in KB.
const RESERVE_KB: usize = 2 << 20;

/// Raises the limit on file descriptors as far as possible, and returns it.
fn raise_limit() -> usize {
    let max = fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    let all = Rlimit { current: Some(max), maximum: Some(max) };
    if setrlimit(Resource::Nofile, all).is_err() {
        let own = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    }
    getrlimit(Resource::Nofile).current.unwrap_or(max) as usize
}

/// Returns a value of `/proc/meminfo`, in KB.
fn meminfo(name: &str) -> usize {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The worker process: opens its share of the connections, and then, for each line on stdin, sends a
/// message on every connection and verifies the echo. Prints `done` after each step.
///
/// The connections are spread over several processes because the limit on file descriptors is per process.
#[test]
#[ignore = "started by the test below"]
fn worker() {
    let (Ok(addresses), Ok(count)) = (std::env::var("ECHOD_WORKER"), std::env::var("ECHOD_WORKER_COUNT")) else {
        return;
    };
    raise_limit();
    let addresses: Vec<Address> = addresses.split(' ').map(|address| Address::parse(address).unwrap()).collect();
    let count: usize = count.parse().unwrap();
    let clients: Vec<Client> = (0..count).map(|number| Client::connect(&addresses[number % addresses.len()])).collect();
    println!("\ndone");
    for (round, line) in std::io::stdin().lines().enumerate() {
        line.unwrap();
        for (part, clients) in clients.chunks(IN_FLIGHT).enumerate() {
            let seed = |number: usize| (u64::from(std::process::id()) << 8 | round as u64) << 32 | number as u64;
            let message = |number: usize| pattern(seed(part * IN_FLIGHT + number), 24);
            clients.iter().enumerate().for_each(|(number, client)| client.send(&message(number)));
            clients.iter().enumerate().for_each(|(number, client)| client.expect(&message(number)));
        }
        println!("done");
    }
}

/// A worker process, killed when dropped.
struct Worker {
    child: Child,
    lines: Receiver<String>,
}

impl Worker {
    fn start(daemon: &Daemon, count: usize) -> Worker {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let addresses: Vec<String> = daemon.addresses().iter().map(Address::to_string).collect();
        command.env("ECHOD_WORKER", addresses.join(" ")).env("ECHOD_WORKER_COUNT", count.to_string());
        command.args(["--ignored", "--exact", "--nocapture", "worker"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let worker = Worker { child, lines };
        worker.wait_until_done();
        worker
    }

    fn echo(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.wait_until_done();
    }

    fn wait_until_done(&self) {
        let deadline = Instant::now() + STEP_TIMEOUT;
        let next = || self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        while next().expect("the worker should complete each step within STEP_TIMEOUT") != "done" {}
    }

    fn finish(mut self) {
        drop(self.child.stdin.take());
        let end = iter::repeat_with(|| self.lines.recv_timeout(STEP_TIMEOUT)).find_map(Result::err);
        assert_eq!(end, Some(RecvTimeoutError::Disconnected), "the worker should exit within STEP_TIMEOUT");
        let status = self.child.wait().unwrap();
        assert!(status.success(), "the worker should exit with status 0, got: {status}");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "takes gigabytes of kernel memory"]
fn requested_number_of_connections_is_held_and_echoed() {
    let count: usize = std::env::var("ECHOD_CONNECTIONS").map_or(100_000, |count| count.parse().unwrap());
    // Each daemon has its own worker, with as many connections as their limit on file descriptors allows.
    let share = (raise_limit() - 100).min(PER_ADDRESS * ADDRESSES_PER_DAEMON);
    let start = |number: usize| {
        let listen = |at: usize| format!("--listen=127.1.{number}.{}:0", at + 1);
        let listen: Vec<String> = (0..ADDRESSES_PER_DAEMON).map(listen).collect();
        let mut arguments: Vec<&str> = listen.iter().map(String::as_str).collect();
        arguments.extend(["--idle-timeout", "0", "--backlog", "4096"]);
        Daemon::with(&arguments).listeners(ADDRESSES_PER_DAEMON).start()
    };
    let daemons: Vec<Daemon> = (0..count.div_ceil(share)).map(start).collect();
    daemons.iter().for_each(|daemon| daemon.connect().echo(b"warm up"));
    let memory = || daemons.iter().map(Daemon::memory).sum::<usize>();
    let (before, slab, start) = (memory(), meminfo("Slab"), Instant::now());

    // The workers run one after another. All at once they would have fifty times as many messages in flight, need ten
    // times the kernel memory for them, closer to its limit (tcp_mem), and would not be faster on few cores.
    let mut workers = Vec::new();
    for (number, daemon) in daemons.iter().enumerate() {
        let (available, opened) = (meminfo("MemAvailable"), number * share);
        assert!(available > RESERVE_KB, "only {available} KB of memory available with {opened} of {count} connections");
        workers.push(Worker::start(daemon, share.min(count - number * share)));
    }
    let opened = start.elapsed();
    workers.iter_mut().for_each(Worker::echo);
    workers.iter_mut().for_each(Worker::echo);
    let echoed = start.elapsed() - opened;
    let open: usize = daemons.iter().map(|daemon| daemon.descriptors().len()).sum();
    assert!(open >= count, "the daemons should have at least {count} open descriptors, not {open}");
    let user = memory().saturating_sub(before) as f64 / count as f64;
    let kernel = meminfo("Slab").saturating_sub(slab) as f64 * 1024.0 / count as f64;
    workers.into_iter().for_each(Worker::finish);
    let (processes, closed) = (daemons.len(), start.elapsed() - opened - echoed);
    println!(
        "{count} connections, {processes} daemons: {user:.0} bytes of user memory per connection, {kernel:.0} bytes of \
         kernel memory for both ends; opened in {opened:.0?}, echoed twice in {echoed:.0?} while all were open, closed \
         in {closed:.0?}"
    );
    assert!(user <= 256.0, "a connection should use at most 256 bytes of user memory, not {user:.0}");
}
