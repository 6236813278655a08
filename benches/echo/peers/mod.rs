//! The servers echod is compared with: correct, straightforward implementations, nothing more. All set TCP_NODELAY.
//! `ladder` has the rungs of `examples/ladder`, which are simpler, and not all correct.
//!
//! The benchmark's own executable becomes one of them when it is started with `--serve NAME`, so nothing else has to be
//! built. They are optimized like echod, except that Cargo builds benchmarks with `panic = "unwind"`.

mod bare_epoll;
pub mod ladder;
mod threads;
mod tokio;
mod tutorial;

use std::error::Error;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use rustix::event::Timespec;

/// Every peer listens here and lets the kernel choose the port.
const ANY_PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// The names of the peers that are measured unless others are chosen, with a description.
const USUAL: [(&str, &str); 9] = [
    ("bare-epoll", "a bare epoll loop with one buffer: the least that a readiness loop must do"),
    ("busy-epoll", "the same loop, never asleep: the most that polling can gain on this machine"),
    ("tokio", "current-thread runtime, a task and a 16 KiB buffer per connection"),
    ("tokio-64k", "the same with a 64 KiB buffer, for large messages"),
    ("threads", "the standard library, a thread and a 16 KiB buffer per connection"),
    ("threads-64k", "the same with a 64 KiB buffer, for large messages"),
    ("tutorial", "the loop that mio's tutorial leads to"),
    ("asyncio", "Python, asyncio streams"),
    ("naive-python", "Python, the tutorial's server: one client at a time, one message, close"),
];

/// Returns the names of all peers that can be chosen, with a description.
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    USUAL.into_iter().chain(ladder::RUNGS)
}

/// Returns whether a peer is measured: by its name, as a rung of the ladder, or because nothing is chosen.
pub fn is_chosen(name: &str, chosen: &[String]) -> bool {
    let is_rung = ladder::RUNGS.iter().any(|(rung, _)| *rung == name);
    match chosen {
        [] => !is_rung,
        chosen => chosen.iter().any(|choice| choice == name || (is_rung && choice == ladder::GROUP)),
    }
}

/// Returns the arguments with which the benchmark's executable becomes a peer.
pub fn arguments(name: &str) -> Vec<&str> {
    // A rung takes its address from the first argument.
    let is_rung = ladder::RUNGS.iter().any(|(rung, _)| *rung == name);
    if is_rung { vec!["127.0.0.1:0", "--serve", name] } else { vec!["--serve", name] }
}

/// Returns the source of a peer that is a Python script.
pub fn python_source(name: &str) -> Option<&'static str> {
    match name {
        "asyncio" => Some(include_str!("asyncio_echo.py")),
        "naive-python" => Some(include_str!("naive_python.py")),
        _ => None,
    }
}

/// Becomes the peer called `name`. Returns only on an error, which it prints.
pub fn serve_or_fail(name: &str) -> ExitCode {
    let error = serve(name).err().map_or("it ended".to_owned(), |error| error.to_string());
    eprintln!("bench peer {name}: {error}");
    ExitCode::FAILURE
}

fn serve(name: &str) -> Result<(), Box<dyn Error>> {
    let Err(error) = match name {
        "bare-epoll" => bare_epoll::serve(None),
        "busy-epoll" => bare_epoll::serve(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })),
        "tokio" => tokio::serve(16 * 1024),
        "tokio-64k" => tokio::serve(64 * 1024),
        "threads" => threads::serve::<{ 16 * 1024 }>(),
        "threads-64k" => threads::serve::<{ 64 * 1024 }>(),
        "tutorial" => tutorial::serve(),
        rung => return ladder::serve(rung),
    };
    Err(error.into())
}

/// Prints the address in the same words as echod.
fn announce(address: SocketAddr) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on tcp://{address}")?;
    stdout.flush()
}
