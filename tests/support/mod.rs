//! Support for black-box tests: the daemon as a separate process, clients with timeouts, and the
//! state of sockets and processes as the kernel reports it.
//!
//! Nothing here sleeps in order to synchronize. [`eventually`] polls until a condition holds, and
//! every other wait ends with the awaited event or panics after [`TIMEOUT`]. The timeout is generous
//! so that a slow machine does not fail a test; a test that passes never waits that long.
#![allow(dead_code, unused_imports, reason = "each test crate uses only some of these items")]
#![allow(clippy::print_stderr, reason = "skip notices and a failed daemon's log go to the terminal")]

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

/// Maximum time to wait for one event or condition before the test fails.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Polls until `probe` returns a value, and returns that value.
///
/// Panics after [`TIMEOUT`]; `what` describes the awaited condition in the message.
#[track_caller]
pub fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < TIMEOUT, "timed out after {TIMEOUT:?} waiting for: {what}");
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// Polls until `condition` is true. Panics after [`TIMEOUT`], like [`eventually`].
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Asserts that two byte strings are equal. On failure, prints the first difference instead of
/// megabytes of data.
#[track_caller]
pub fn assert_same(got: &[u8], expected: &[u8]) {
    if let Some(offset) = got.iter().zip(expected).position(|(a, b)| a != b) {
        panic!("the byte at offset {offset} is {:#04x}, expected {:#04x}", got[offset], expected[offset]);
    }
    let common = got.len().min(expected.len());
    assert_eq!(got.len(), expected.len(), "wrong number of bytes (the first {common} are as expected)");
}

/// Prints why a test was skipped (libtest has no concept of skipping).
pub fn skip(reason: &str) {
    let test = thread::current().name().unwrap_or("unnamed test").to_owned();
    eprintln!("skipped: {test}: {reason}");
}

/// Like [`skip`], for a missing tool or privilege. With `ECHOD_REQUIRE_TOOLS=1`, as in CI, the test
/// fails instead.
#[track_caller]
pub fn skip_missing(what: &str) {
    let required = std::env::var_os("ECHOD_REQUIRE_TOOLS").is_some_and(|value| value == "1");
    assert!(!required, "ECHOD_REQUIRE_TOOLS=1 is set, but this is missing: {what}");
    skip(&format!("missing: {what}"));
}

/// Returns whether `PATH` contains a file of this name.
pub fn has_program(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(name).is_file())
}

/// A pseudorandom number generator (SplitMix64): the same seed gives the same numbers.
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

    /// Returns a number in `min..=max`.
    pub fn between(&mut self, min: usize, max: usize) -> usize {
        min + (self.number() % (max - min + 1) as u64) as usize
    }
}

/// Returns `length` pseudorandom bytes that depend on the seed.
///
/// A byte that is missing, duplicated, out of place or from another connection therefore shows up in
/// a comparison.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A temporary directory for one test, removed with its contents when dropped.
pub struct Directory(PathBuf);

impl Directory {
    pub fn new() -> Directory {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("echod-test-{}-{number}", process::id()));
        fs::create_dir_all(&path).expect("create a temporary directory");
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
