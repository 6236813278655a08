//! Soak test: 500 concurrent clients perform random operations, which follow from a seed. They write
//! and read any number of bytes, pause, send urgent data, close half of the connection, and reset it.
//! Every byte of the echo is verified.
//!
//! A plain `cargo test` runs it for five seconds. To run it longer, or with the seed of a failed run:
//!
//!     ECHOD_SOAK_SECONDS=3600 cargo test --release --test soak -- --nocapture
//!     ECHOD_SEED=4711 cargo test --test soak
//!
//! A seed determines the operations of each connection, but not how the kernel splits the data into
//! segments and events. It therefore usually reproduces a failure, but not always.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "prints the seed and a summary of the run")]

#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant, SystemTime};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use support::{Address, Client, Daemon, Directory, Random, TIMEOUT, wait_until};

const CONNECTIONS: usize = 500;

/// Returns the byte at `offset` in the stream that the client with this seed sends.
fn byte(seed: u64, offset: usize) -> u8 {
    (seed as usize).wrapping_add(offset % 251).wrapping_add(offset / 251 * 7) as u8
}

/// A client that performs random operations on its connection.
struct RandomClient {
    client: Client,
    random: Random,
    seed: u64,
    /// Total number of bytes to send.
    length: usize,
    sent: usize,
    read: usize,
    fin_sent: bool,
    paused_until: Instant,
    /// Since when reads have returned nothing although an echo or a FIN is outstanding.
    waiting_since: Option<Instant>,
}

/// The outcome of one operation.
enum Step {
    Continue,
    /// The conversation completed: all bytes echoed, FIN answered with FIN.
    Done,
    /// The client wants to reset the connection.
    Reset,
}

impl RandomClient {
    fn new(address: &Address, seed: u64) -> RandomClient {
        let mut random = Random::new(seed);
        let connect = match random.between(0, 9) {
            0 => Client::connect_with_small_buffers,
            _ => Client::connect,
        };
        let client = connect(address);
        // Lengths of every order of magnitude, from nothing to 1 MiB.
        let max = 1 << random.between(0, 20);
        let length = random.between(0, max);
        let now = Instant::now();
        RandomClient {
            client,
            random,
            seed,
            length,
            sent: 0,
            read: 0,
            fin_sent: false,
            paused_until: now,
            waiting_since: None,
        }
    }

    fn fail(&self, what: impl std::fmt::Display) -> ! {
        panic!(
            "client {} ({} of {} bytes sent, {} read, FIN sent: {}): {what}",
            self.seed, self.sent, self.length, self.read, self.fin_sent
        )
    }

    /// Performs one random operation.
    fn step(&mut self, buffer: &mut [u8]) -> Step {
        if Instant::now() < self.paused_until {
            return Step::Continue;
        }
        match self.random.between(0, 99) {
            0..40 => self.write(),
            40..85 => return self.read(buffer),
            85..88 => self.write_urgent(),
            88..92 => self.paused_until = Instant::now() + Duration::from_millis(self.random.between(0, 30) as u64),
            92..95 if self.sent == self.length => self.send_fin(),
            // Close the write side early: the rest is never sent.
            95 if self.random.between(0, 9) == 0 => {
                self.length = self.sent;
                self.send_fin();
            }
            96 if self.random.between(0, 4) == 0 => return Step::Reset,
            _ => {}
        }
        Step::Continue
    }

    /// Returns a random number of the next bytes to send.
    fn next_bytes(&mut self) -> Vec<u8> {
        let max = 1 << self.random.between(0, 17);
        let length = self.random.between(0, max).min(self.length - self.sent);
        (self.sent..self.sent + length).map(|offset| byte(self.seed, offset)).collect()
    }

    fn write(&mut self) {
        let bytes = self.next_bytes();
        if !bytes.is_empty() && !self.fin_sent {
            self.sent += self.client.try_send(&bytes).unwrap_or_else(|error| self.fail(error));
        }
        if self.sent == self.length && self.random.between(0, 3) == 0 {
            self.send_fin(); // Immediately after the last bytes.
        }
    }

    /// Sends the next byte as urgent data, which the daemon must echo in line.
    fn write_urgent(&mut self) {
        if !self.fin_sent && self.sent < self.length && self.client.is_tcp() {
            let flags = SendFlags::OOB | SendFlags::DONTWAIT;
            match send(&self.client.socket, &[byte(self.seed, self.sent)], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => {}
                Err(error) => self.fail(error),
            }
        }
    }

    fn send_fin(&mut self) {
        if !self.fin_sent {
            self.client.send_fin();
            self.fin_sent = true;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Step {
        let max = 1 << self.random.between(0, 17);
        let max = self.random.between(1, max).min(buffer.len());
        match recv(&self.client.socket, &mut buffer[..max], RecvFlags::DONTWAIT) {
            Ok((0, _)) if self.fin_sent && self.read == self.sent => return Step::Done,
            Ok((0, _)) if !self.fin_sent => self.fail("got FIN before sending it"),
            Ok((0, _)) => self.fail("got FIN before the whole echo"),
            Ok((_, count)) => {
                for (offset, &got) in (self.read..).zip(&buffer[..count]) {
                    let expected = byte(self.seed, offset);
                    if offset >= self.sent {
                        self.fail(format!("got a byte at offset {offset}, which was not sent"));
                    }
                    if got != expected {
                        self.fail(format!("the byte at offset {offset} is {got:#04x}, expected {expected:#04x}"));
                    }
                }
                self.read += count;
                self.waiting_since = None;
            }
            Err(Errno::AGAIN) => {
                let is_outstanding = self.read < self.sent || self.fin_sent;
                let since = *self.waiting_since.get_or_insert_with(Instant::now);
                if is_outstanding && since.elapsed() > TIMEOUT {
                    self.fail(format!("neither echo nor FIN within {TIMEOUT:?}"));
                }
                if !is_outstanding {
                    self.waiting_since = None;
                }
            }
            Err(error) => self.fail(error),
        }
        Step::Continue
    }

    /// Sends FIN, and reads until the conversation is complete.
    fn complete(mut self, buffer: &mut [u8]) {
        self.length = self.sent;
        self.send_fin();
        loop {
            self.client.wait_for(PollFlags::IN, TIMEOUT);
            if let Step::Done = self.read(buffer) {
                return;
            }
        }
    }
}

/// Reads a number from the environment.
fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("the environment variable {name} should be a number, not {value:?}")))
}

/// What the test has done: completed conversations, resets, and bytes echoed.
#[derive(Debug, Default)]
struct Summary {
    conversations: usize,
    resets: usize,
    bytes: usize,
}

/// Runs the clients for `time`, replacing each that is done by a new one, and then lets all of them
/// complete.
fn soak(seed: u64, time: Duration, daemon: &mut Daemon) -> Summary {
    let start = Instant::now();
    let mut summary = Summary::default();
    let mut seeds = seed..;
    let addresses = daemon.addresses().to_vec();
    let mut connect = || {
        let seed = seeds.next().unwrap();
        RandomClient::new(&addresses[seed as usize % addresses.len()], seed)
    };
    let mut clients: Vec<RandomClient> = (0..CONNECTIONS).map(|_| connect()).collect();
    let mut buffer = vec![0; 1 << 17];
    while start.elapsed() < time {
        for client in &mut clients {
            // A few operations in a row, so that some of them reach the daemon in one event.
            for _ in 0..4 {
                let reset = match client.step(&mut buffer) {
                    Step::Continue => continue,
                    Step::Done => false,
                    Step::Reset => true,
                };
                summary.bytes += client.read;
                summary.conversations += usize::from(!reset);
                summary.resets += usize::from(reset);
                let old = std::mem::replace(client, connect());
                if reset {
                    old.client.reset();
                }
                break;
            }
        }
        daemon.expect_running();
    }
    for client in clients {
        client.complete(&mut buffer);
        summary.conversations += 1;
    }
    summary
}

#[test]
fn five_hundred_random_clients_get_every_byte_back() {
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u32);
    let seed = variable("ECHOD_SEED").unwrap_or_else(|| now().into());
    let time = Duration::from_secs(variable("ECHOD_SOAK_SECONDS").unwrap_or(5));
    let directory = Directory::new();
    let path = support::unix(&directory.join("echo.sock"));
    let listen = ["--listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--listen", &path];
    let mut daemon = Daemon::with(&listen).start();
    let first = daemon.connect();
    first.echo(b"from now on the daemon opens descriptors only for connections");
    first.send_fin();
    first.expect_fin();
    drop(first);
    let descriptors = daemon.descriptors().len();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| soak(seed, time, &mut daemon)));
    let summary = match outcome {
        Ok(summary) => summary,
        Err(panic) => {
            let message = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            let seconds = time.as_secs();
            panic!("{message}\nreproduce with: ECHOD_SEED={seed} ECHOD_SOAK_SECONDS={seconds} cargo test --test soak")
        }
    };
    println!("seed {seed}, {time:?}: {summary:?}");
    let is_sufficient = summary.conversations > CONNECTIONS && summary.resets > 0;
    assert!(is_sufficient, "expected more than {CONNECTIONS} conversations and some resets: {summary:?}");
    wait_until("the daemon has closed the descriptors of all connections", || {
        daemon.descriptors().len() == descriptors
    });
    daemon.terminate();
}
