//! The servers echod is compared with: correct, straightforward implementations, nothing more. All set TCP_NODELAY.
//!
//! The benchmark's own executable becomes one of them when it is started with `--serve NAME`, so nothing else has to be
//! built. They are optimized like echod, except that Cargo builds benchmarks with `panic = "unwind"`.

mod bare_epoll;
mod threads;
mod tokio;
mod tutorial;

use std::convert::Infallible;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rustix::event::Timespec;

/// Every peer listens here and lets the kernel choose the port.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The names of the peers that can be chosen, with a description.
pub const ALL: [(&str, &str); 7] = [
    ("bare-epoll", "a bare epoll loop, one shared buffer, no features: the least a readiness loop must do"),
    ("busy-epoll", "the same loop, never asleep: the most that polling can gain on this machine"),
    ("tokio", "current-thread runtime, a task and a 16 KiB buffer per connection"),
    ("threads", "the standard library, a thread and a 16 KiB buffer per connection"),
    ("tutorial", "the loop that mio's tutorial leads to"),
    ("asyncio", "Python, asyncio streams"),
    ("naive-python", "Python, the tutorial's server: one client at a time, one message, close"),
];

/// Returns the source of a peer that is a Python script.
pub fn python_source(name: &str) -> Option<&'static str> {
    match name {
        "asyncio" => Some(include_str!("asyncio_echo.py")),
        "naive-python" => Some(include_str!("naive_python.py")),
        _ => None,
    }
}

/// Becomes the peer called `name`, and returns only on an error. None if there is no such peer.
pub fn serve(name: &str) -> Option<io::Result<Infallible>> {
    match name {
        "bare-epoll" => Some(bare_epoll::serve(None)),
        "busy-epoll" => Some(bare_epoll::serve(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))),
        "tokio" => Some(tokio::serve()),
        "threads" => Some(threads::serve()),
        "tutorial" => Some(tutorial::serve()),
        _ => None,
    }
}

/// Prints the address in the same words as echod.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on tcp://{address}")?;
    stdout.flush()
}
