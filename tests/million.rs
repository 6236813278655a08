//! As many connections as the machine holds, over several processes: each echoes, and the daemons say what they cost.
//!
//! Not part of a plain `cargo test`: it takes some 3 KB of kernel memory for each connection, at both ends together.
//!
//!     ECHOD_CONNECTIONS=1000000 cargo test --release --test million -- --ignored --nocapture
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "the figures are what it is for")]

#[path = "support/mod.rs"]
mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Address, Client, Daemon, pattern};

/// One address takes as many as there are local ports for it, by default 28,232 (ip_local_port_range).
const PER_ADDRESS: usize = 25_000;
const ADDRESSES_PER_DAEMON: usize = 8;

/// As many descriptors as we may have.
fn raise_limit() -> usize {
    let most = fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    let all = Rlimit { current: Some(most), maximum: Some(most) };
    if setrlimit(Resource::Nofile, all).is_err() {
        let own = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum }).unwrap();
    }
    getrlimit(Resource::Nofile).current.unwrap_or(most) as usize
}

/// Connects, has each connection echo, says so, and has each echo once more when its stdin ends. A process of its own for
/// each share of the connections, because descriptors are counted by process.
#[test]
#[ignore = "a part of the test below, which starts it"]
fn worker() {
    let (Ok(addresses), Ok(count)) = (std::env::var("ECHOD_WORKER"), std::env::var("ECHOD_WORKER_COUNT")) else {
        return;
    };
    raise_limit();
    let addresses: Vec<Address> = addresses.split(' ').map(|address| Address::parse(address).unwrap()).collect();
    let count: usize = count.parse().unwrap();
    let clients: Vec<Client> = (0..count).map(|number| Client::connect(&addresses[number % addresses.len()])).collect();
    let seed = u64::from(std::process::id()) << 32;
    let echo = |round: u64| {
        for (part, clients) in clients.chunks(5000).enumerate() {
            let message = |number: usize| pattern(seed + round + (2 * (part * 5000 + number)) as u64, 24);
            clients.iter().enumerate().for_each(|(number, client)| client.send(&message(number)));
            clients.iter().enumerate().for_each(|(number, client)| client.expect(&message(number)));
        }
    };
    echo(0);
    println!("\nheld");
    std::io::stdin().read_to_string(&mut String::new()).unwrap();
    echo(1);
}

/// A worker, killed when dropped.
struct Worker(Child);

impl Worker {
    fn start(daemon: &Daemon, count: usize) -> Worker {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let addresses: Vec<String> = daemon.addresses().iter().map(Address::to_string).collect();
        command.env("ECHOD_WORKER", addresses.join(" ")).env("ECHOD_WORKER_COUNT", count.to_string());
        command.args(["--ignored", "--exact", "--nocapture", "worker"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        Worker(command.spawn().unwrap())
    }

    fn wait_until_held(&mut self) {
        let mut lines = BufReader::new(self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "held"), "a worker has failed");
    }

    fn finish(mut self) {
        drop(self.0.stdin.take());
        assert!(self.0.wait().unwrap().success(), "a worker has failed");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "takes gigabytes of kernel memory"]
fn as_many_connections_as_asked_for_are_held_and_each_echoes() {
    let count: usize = std::env::var("ECHOD_CONNECTIONS").map_or(100_000, |count| count.parse().unwrap());
    // Each daemon has a worker of its own, with as many connections as the two may have descriptors.
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
    let (before, start) = (memory(), Instant::now());

    let shares = (0..daemons.len()).map(|number| share.min(count - number * share));
    let mut workers: Vec<Worker> = daemons.iter().zip(shares).map(|(d, count)| Worker::start(d, count)).collect();
    workers.iter_mut().for_each(Worker::wait_until_held);
    let held = start.elapsed();
    let open: usize = daemons.iter().map(|daemon| daemon.descriptors().len()).sum();
    assert!(open >= count, "{open} descriptors for {count} connections");
    let user = memory().saturating_sub(before) as f64 / count as f64;
    workers.into_iter().for_each(Worker::finish);
    let processes = daemons.len();
    println!(
        "{count} connections over {processes} processes, held after {held:?}: {user:.0} bytes of user memory for each; all \
         echoed twice, the second time while all were open"
    );
    assert!(user <= 256.0, "{user} bytes of user memory for each connection");
}
