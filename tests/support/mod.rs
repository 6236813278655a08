//! What every black-box test needs: the daemon as a process of its own, peers that give up after a
//! while, and the kernel's own word on sockets and processes.
//!
//! Nothing here sleeps to be sure of something. [`eventually`] asks for a fact until it is one, and
//! every other wait ends with the fact or with a panic after [`TIMEOUT`]. That is generous, so that a
//! slow machine does not fail; a test that passes never waits for it.
#![allow(dead_code, unused_imports, reason = "each test crate uses the part that it needs")]
#![allow(clippy::print_stderr, reason = "a skip and a failed daemon's log belong on the terminal")]

mod client;
mod daemon;
mod kernel;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use std::{fs, process, thread};

pub use client::{Address, Client};
pub use daemon::{Daemon, DaemonBuilder, RunOutput, resolve, unix};
pub use kernel::{TcpSocket, TcpState, peers_of, pending_connections, tcp_socket};
pub use rustix::process::Signal;

/// How long a fact may take before the test fails.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Asks for a fact until it is there, or panics with `what` after [`TIMEOUT`].
#[track_caller]
pub fn eventually<T>(what: &str, mut fact: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(fact) = fact() {
            return fact;
        }
        assert!(start.elapsed() < TIMEOUT, "waited {TIMEOUT:?} in vain for this: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// [`eventually`] for a plain condition.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Compares bytes, and says where they part instead of printing megabytes.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(place) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("byte {place} is {:#04x}, expected {:#04x}", got[place], expected[place]);
    }
    assert_eq!(got.len(), expected.len(), "equal as far as they go, but the length differs");
}

/// Says on the terminal why a test is not run, which libtest has no word for.
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("a test").to_owned();
    eprintln!("skipped: {test}: {reason}");
}

/// As [`skip`], for want of something that CI installs: there, with `ECHOD_REQUIRE_TOOLS=1`, it is a failure.
#[track_caller]
pub fn skip_missing(what: &str) {
    let required = std::env::var_os("ECHOD_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "ECHOD_REQUIRE_TOOLS=1 wants {what}, which is not here");
    skip(&format!("for want of {what}"));
}

/// Whether a program is there to be run.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// Numbers that look random and repeat with the seed (SplitMix64).
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `least..=most`.
    pub fn between(&mut self, least: usize, most: usize) -> usize {
        least + (self.number() % (most - least + 1) as u64) as usize
    }
}

/// `length` bytes that no other seed has: a byte too many, too few or of another connection shows.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A directory of this test alone, gone with everything in it when the test ends.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("echod-test-{}-{number}", process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Directory(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
