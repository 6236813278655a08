//! The load generator: clients on one thread, full duplex, that know which bytes they must receive.
//!
//! - `clients`: long-lived connections under a closed or an open loop
//! - `churn`: short connections, one after the other
//! - `bulk`: streams limited by backpressure only, and clients with small messages beside them (`light`)
//! - `address`, `stream`: where a server listens, and a connection to it over TCP or a Unix socket
//! - `pace`, `clock`, `timer`: when a message is due, the time, and waiting for it
//! - `reply_timeout`: how long a server is waited for
//! - `pattern`: what the clients send, and the comparison with what they receive
//!
//! In a *closed loop* a client sends its next message when an earlier one has returned, so a slow server receives
//! fewer requests, and a stall shows up in one sample per connection. In an *open loop* the clock decides when a message
//! is due, whatever the server does, and latency counts from that time: a stall of 100 ms is seen by every message that
//! was due during it (coordinated omission).
//!
//! A wrong byte, an extra byte, an early end or a silent server fails the run.
//!
//! This room uses nothing from the rest of the benchmark.

mod address;
pub mod bulk;
pub mod churn;
mod clients;
mod clock;
mod light;
mod pace;
mod pattern;
mod reply_timeout;
mod stream;
mod timer;

use std::error::Error;
use std::time::Duration;

use hdrhistogram::Histogram;

pub use address::Address;
pub use clients::Clients;
pub use pace::{Pace, Plan};
#[allow(unused_imports, reason = "the tests' dishonest servers need it")]
pub use pattern::Pattern;
pub use reply_timeout::REPLY_TIMEOUT;
pub use stream::Stream;

/// Errors are human-readable messages; callers do not inspect them.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a run measured. `M` is what the caller's meter reads (CPU time of the server).
pub struct Sample<M> {
    /// Messages whose echo was completed within the window.
    pub echoes: u64,
    /// All completed messages, including those before and after the window.
    pub all_echoes: u64,
    /// Bytes that returned within the window.
    pub bytes: u64,
    /// From the first reading of the meter to the second.
    pub window: Duration,
    /// Nanoseconds from the time a message was sent (open loop: due) until its last byte returned, for messages sent
    /// (due) in the window.
    pub latency: Histogram<u64>,
    /// Open loop: nanoseconds from the time a message was due until the generator sent it.
    pub lateness: Histogram<u64>,
    /// Beside bulk: nanoseconds from connect(2) to end of file of short connections.
    pub new_connections: Option<Histogram<u64>>,
    /// Time within the window in which the generator did not run, if it spins.
    pub lost: Duration,
    /// The meter when the window opened.
    pub before: M,
    /// The meter when the window closed.
    pub after: M,
}

/// How much longer a window stays open if nothing has returned in it, again and again: a slow server gets a figure, and
/// [`REPLY_TIMEOUT`] limits the wait.
const EXTENSION_NS: u64 = 1_000_000;

/// Returns an empty histogram of nanoseconds: up to a minute, three significant digits.
pub fn new_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("these bounds are allowed")
}

/// Converts to nanoseconds; a `u64` holds 584 years.
pub fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos() as u64
}
