//! The servers under measurement: each is a separate process on a core of its own.
//!
//! - this file: starting a server and waiting until it accepts
//! - `process`: its process, which never outlives the benchmark
//! - `cores`: which core runs the server and which one the generator, and what else ran there
//! - `cpu`: CPU time and memory of a process and its children
//! - `counter`: system calls of a process, counted by perf(1) or strace(1)

mod cores;
pub mod counter;
mod cpu;
pub mod process;

use std::ffi::OsString;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};
use std::{env, thread};

use crate::generator::{Address, Result, Stream};

pub use cores::{CoreTime, Cores};
pub use cpu::Cpu;
#[allow(unused_imports, reason = "the tests look for processes that outlive the benchmark")]
pub use cpu::with_descendants;
use process::Process;

/// How long a server may take until it accepts: enough for a virtual machine that compiles first.
const MAX_START: Duration = Duration::from_secs(10);

/// How to start a server, or the address of a running one.
#[derive(Clone)]
pub struct Spec {
    /// Its name in tables, pictures and on the command line.
    pub name: String,
    /// A description for the list below the tables.
    pub about: String,
    /// How it is started.
    pub origin: Origin,
}

/// How a server is started.
#[derive(Clone)]
pub enum Origin {
    /// A program that prints `listening on tcp://…` to its standard output, like echod and the peers.
    Announcing(Vec<OsString>),
    /// Any program. `{port}` stands for a free port, `{socket}` for the path of a Unix socket.
    Command(Vec<String>),
    /// A server that is already running (`--connect`): its addresses, of which the first is used, and the id of its process,
    /// if it is known (`--pid`).
    Running(Vec<Address>, Option<u32>),
}

impl Origin {
    /// Returns the command line or the address, for the records.
    pub fn describe(&self) -> Vec<String> {
        match self {
            Origin::Announcing(words) => words.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            Origin::Command(words) => words.clone(),
            Origin::Running(addresses, _) => addresses.iter().map(Address::to_string).collect(),
        }
    }
}

/// A listening server. Dropping it kills the process, if the benchmark started it.
pub struct Server {
    /// Where it listens.
    pub address: Address,
    process: Option<Process>,
    pid: Option<u32>,
    /// Whether it may have child processes that belong to it.
    may_have_children: bool,
}

impl Server {
    /// Starts the server on its core and waits until it accepts.
    pub fn start(spec: &Spec, cores: &Cores) -> Result<Server> {
        match &spec.origin {
            Origin::Running(addresses, pid) => {
                let address = addresses.first().ok_or("no address")?.clone();
                Ok(Server { address, process: None, pid: *pid, may_have_children: true })
            }
            Origin::Announcing(command) => {
                let mut process = Process::start(command, cores)?;
                let address = wait_for_announcement(&mut process)?;
                let pid = Some(process.id());
                Ok(Server { address, process: Some(process), pid, may_have_children: false })
            }
            Origin::Command(words) => {
                let (address, words) = fill_in(words)?;
                let words: Vec<OsString> = words.into_iter().map(OsString::from).collect();
                let mut process = Process::start(&words, cores)?;
                wait_until_accepting(&address, &mut process)?;
                let pid = Some(process.id());
                Ok(Server { address, process: Some(process), pid, may_have_children: true })
            }
        }
    }

    /// Returns the ids of its process and of its children. Empty if the process is unknown.
    pub fn pids(&self) -> Vec<u32> {
        match self.pid {
            Some(pid) if self.may_have_children => cpu::with_descendants(pid),
            Some(pid) => vec![pid],
            None => Vec::new(),
        }
    }

    /// Returns its CPU time so far, or None if the process is unknown.
    pub fn cpu(&self) -> Option<Cpu> {
        self.pid?;
        let pids = self.pids();
        pids.into_iter().filter_map(|pid| cpu::cpu_of(pid, self.may_have_children)).reduce(Cpu::plus)
    }

    /// Returns its resident memory in bytes. Memory that several processes share is divided among them.
    pub fn resident(&self) -> Option<u64> {
        let pids = self.pids();
        let field = if pids.len() > 1 { "Pss:" } else { "Rss:" };
        pids.into_iter().filter_map(|pid| cpu::memory(pid, field)).reduce(|sum, bytes| sum + bytes)
    }

    /// Returns how the process exited, if it has.
    pub fn exit_status(&mut self) -> Option<String> {
        self.process.as_mut()?.exit_status()
    }
}

fn wait_for_announcement(process: &mut Process) -> Result<Address> {
    let deadline = Instant::now() + MAX_START;
    loop {
        let line = match process.lines().recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => line,
            Err(RecvTimeoutError::Timeout) => {
                return Err(format!("no \"listening on\" line within {} s", MAX_START.as_secs()).into());
            }
            Err(RecvTimeoutError::Disconnected) => {
                return Err(process.wait_for_exit().unwrap_or("it closed its standard output".to_owned()).into());
            }
        };
        if let Some(address) = line.strip_prefix("listening on ").filter(|address| !address.starts_with("http")) {
            return Ok(Address::parse(address)?.swap_remove(0));
        }
    }
}

/// Replaces `{port}` and `{socket}` in a command, and returns the address that they mean.
fn fill_in(words: &[String]) -> Result<(Address, Vec<String>)> {
    let has = |place: &str| words.iter().any(|word| word.contains(place));
    if has("{socket}") {
        let path = env::temp_dir().join(format!("bench-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path); // Left by the server of the previous round, if it did not remove it.
        let text = path.to_string_lossy();
        let words = words.iter().map(|word| word.replace("{socket}", &text)).collect();
        return Ok((Address::Unix(path), words));
    }
    // The port is free again when the listener is dropped. Another process could take it in between; then the server
    // exits with an error.
    let address: SocketAddr = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
    let port = address.port().to_string();
    Ok((Address::Tcp(address), words.iter().map(|word| word.replace("{port}", &port)).collect()))
}

fn wait_until_accepting(address: &Address, process: &mut Process) -> Result<()> {
    let deadline = Instant::now() + MAX_START;
    loop {
        match Stream::connect(address) {
            Ok(_) => return Ok(()),
            Err(error) => {
                if let Some(exit) = process.exit_status() {
                    return Err(exit.into());
                }
                if Instant::now() > deadline {
                    return Err(format!("cannot connect to {address} for {} s: {error}", MAX_START.as_secs()).into());
                }
                thread::sleep(Duration::from_millis(5)); // Nothing signals that a foreign server has bound its socket.
            }
        }
    }
}
