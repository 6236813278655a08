//! Five hundred connections at once, each with a client that does whatever a peer may do, drawn from a seed: writes of all
//! sizes, reads of all sizes, pauses, urgent data, half-closes, resets. Every byte that comes back is compared.
//!
//! Five seconds in a plain `cargo test`, as long as you like otherwise:
//!
//!     ECHOD_SOAK_SECONDS=3600 cargo test --release --test soak -- --nocapture
//!     ECHOD_SEED=4711 cargo test --test soak        # the seed that a failure has printed
//!
//! What a connection does follows from the seed alone; how the kernel cuts it does not. So a seed repeats the
//! conversation, and as a rule, not always, the failure.
#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]
#![allow(clippy::print_stdout, reason = "the seed and what was done")]

#[path = "support/mod.rs"]
mod support;

use std::time::{Duration, Instant, SystemTime};

use rustix::event::PollFlags;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use support::{Address, Client, Daemon, Directory, Random, TIMEOUT, wait_until};

const CONNECTIONS: usize = 500;

/// The stream that this peer sends: the byte at each place.
fn byte(seed: u64, place: usize) -> u8 {
    (seed as usize).wrapping_add(place % 251).wrapping_add(place / 251 * 7) as u8
}

/// One peer of the daemon, and what it has done so far.
struct Peer {
    client: Client,
    random: Random,
    seed: u64,
    /// How much it will send in all.
    length: usize,
    sent: usize,
    read: usize,
    finished: bool,
    resting_until: Instant,
    /// Since when nothing has come although something was owed and we were ready to take it.
    waiting_since: Option<Instant>,
}

/// What became of a peer in one step.
enum Step {
    GoesOn,
    /// The whole conversation was had: all bytes came back, FIN answered FIN.
    Done,
    /// It reset the connection.
    Reset,
}

impl Peer {
    fn new(address: &Address, seed: u64) -> Peer {
        let mut random = Random::new(seed);
        let narrow = random.between(0, 9) == 0;
        let client = if narrow { Client::connect_with_small_buffers(address) } else { Client::connect(address) };
        // As many short conversations as long ones.
        let most = 1 << random.between(0, 20);
        let length = random.between(0, most);
        let now = Instant::now();
        Peer {
            client,
            random,
            seed,
            length,
            sent: 0,
            read: 0,
            finished: false,
            resting_until: now,
            waiting_since: None,
        }
    }

    fn fail(&self, what: impl std::fmt::Display) -> ! {
        panic!(
            "peer {} of {} bytes, {} sent, {} read, finished: {}: {what}",
            self.seed, self.length, self.sent, self.read, self.finished
        )
    }

    fn step(&mut self, buffer: &mut [u8]) -> Step {
        if Instant::now() < self.resting_until {
            return Step::GoesOn;
        }
        match self.random.between(0, 99) {
            0..40 => self.write(),
            40..85 => return self.read(buffer),
            85..88 => self.write_urgent(),
            88..92 => self.resting_until = Instant::now() + Duration::from_millis(self.random.between(0, 30) as u64),
            92..95 if self.sent == self.length => self.finish(),
            // Half-close in the middle: the rest is never sent.
            95 if self.random.between(0, 9) == 0 => {
                self.length = self.sent;
                self.finish();
            }
            96 if self.random.between(0, 4) == 0 => return Step::Reset,
            _ => {}
        }
        Step::GoesOn
    }

    fn stretch(&mut self) -> Vec<u8> {
        let most = 1 << self.random.between(0, 17);
        let length = self.random.between(0, most).min(self.length - self.sent);
        (self.sent..self.sent + length).map(|place| byte(self.seed, place)).collect()
    }

    fn write(&mut self) {
        let bytes = self.stretch();
        if !bytes.is_empty() && !self.finished {
            self.sent += self.client.try_send(&bytes).unwrap_or_else(|error| self.fail(error));
        }
        if self.sent == self.length && self.random.between(0, 3) == 0 {
            self.finish(); // Right behind the last bytes.
        }
    }

    /// One byte, marked as urgent: it stays where it stands.
    fn write_urgent(&mut self) {
        if !self.finished && self.sent < self.length && self.client.is_tcp() {
            let flags = rustix::net::SendFlags::OOB | rustix::net::SendFlags::DONTWAIT;
            match rustix::net::send(&self.client.socket, &[byte(self.seed, self.sent)], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::AGAIN) => {}
                Err(error) => self.fail(error),
            }
        }
    }

    fn finish(&mut self) {
        if !self.finished {
            self.client.send_fin();
            self.finished = true;
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Step {
        let most = 1 << self.random.between(0, 17);
        let most = self.random.between(1, most).min(buffer.len());
        match recv(&self.client.socket, &mut buffer[..most], RecvFlags::DONTWAIT) {
            Ok((0, _)) if self.finished && self.read == self.sent => return Step::Done,
            Ok((0, _)) => self.fail("FIN before everything came back"),
            Ok((_, count)) => {
                for (place, &got) in (self.read..).zip(&buffer[..count]) {
                    let expected = byte(self.seed, place);
                    if got != expected || place >= self.sent {
                        self.fail(format!("byte {place} is {got:#04x}, expected {expected:#04x}"));
                    }
                }
                self.read += count;
                self.waiting_since = None;
            }
            Err(Errno::AGAIN) => {
                let owed = self.read < self.sent || self.finished;
                let since = *self.waiting_since.get_or_insert_with(Instant::now);
                if owed && since.elapsed() > TIMEOUT {
                    self.fail(format!("nothing came for {TIMEOUT:?}"));
                }
                if !owed {
                    self.waiting_since = None;
                }
            }
            Err(error) => self.fail(error),
        }
        Step::GoesOn
    }

    /// What is left: send nothing more, and see the conversation to its end.
    fn conclude(mut self, buffer: &mut [u8]) {
        self.length = self.sent;
        self.finish();
        loop {
            self.client.wait_for(PollFlags::IN, TIMEOUT);
            if let Step::Done = self.read(buffer) {
                return;
            }
        }
    }
}

fn variable(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value} is not a number")))
}

/// What was done, for whoever wants to know whether the test did anything.
#[derive(Debug, Default)]
struct Tally {
    conversations: usize,
    resets: usize,
    bytes: usize,
}

fn soak(seed: u64, time: Duration, daemon: &mut Daemon) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::default();
    let mut seeds = seed..;
    let addresses = daemon.addresses().to_vec();
    let mut newcomer = || {
        let seed = seeds.next().unwrap();
        Peer::new(&addresses[seed as usize % addresses.len()], seed)
    };
    let mut peers: Vec<Peer> = (0..CONNECTIONS).map(|_| newcomer()).collect();
    let mut buffer = vec![0; 1 << 17];
    while start.elapsed() < time {
        for peer in &mut peers {
            // A few steps at once, so that things meet in one event.
            for _ in 0..4 {
                let ended = match peer.step(&mut buffer) {
                    Step::GoesOn => continue,
                    Step::Done => false,
                    Step::Reset => true,
                };
                tally.bytes += peer.read;
                tally.conversations += usize::from(!ended);
                tally.resets += usize::from(ended);
                let old = std::mem::replace(peer, newcomer());
                if ended {
                    old.client.reset();
                }
                break;
            }
        }
        daemon.expect_running();
    }
    for peer in peers {
        peer.conclude(&mut buffer);
        tally.conversations += 1;
    }
    tally
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
    first.echo(b"from here on it opens nothing more for itself");
    first.send_fin();
    first.expect_fin();
    drop(first);
    let descriptors = daemon.descriptors().len();
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| soak(seed, time, &mut daemon)));
    let tally = match outcome {
        Ok(tally) => tally,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
            panic!(
                "{text}\nto repeat it: ECHOD_SEED={seed} ECHOD_SOAK_SECONDS={} cargo test --test soak",
                time.as_secs()
            )
        }
    };
    println!("seed {seed}, {time:?}: {tally:?}");
    assert!(tally.conversations > CONNECTIONS && tally.resets > 0, "hardly anything was done: {tally:?}");
    wait_until("every descriptor is back", || daemon.descriptors().len() == descriptors);
    daemon.terminate();
}
