//! The servers under measurement: each is a separate process on a core of its own.
//!
//! - `cores`: which core runs the server and which one the generator
//! - `counter`: system calls of a process, counted by perf(1) or strace(1)
//! - `cpu`: CPU time of a process

mod cores;
pub mod counter;
mod cpu;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::generator::Result;

pub use cores::Cores;
pub use cpu::{Cpu, own_cpu};

/// How to start a server, or the address of a running one.
#[derive(Clone)]
pub struct Spec {
    /// Its name in tables, pictures and on the command line.
    pub name: String,
    /// A description for the list below the tables.
    pub about: &'static str,
    /// How it is started.
    pub origin: Origin,
}

/// How a server is started.
#[derive(Clone)]
pub enum Origin {
    /// A program that prints `listening on tcp://…` to its standard output.
    Command(Vec<OsString>),
    /// A server that is already running (`--connect`). Its process is unknown.
    Running(SocketAddr),
}

/// A listening server. Dropping it kills the process, if the benchmark started it.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    process: Option<Child>,
}

impl Server {
    /// Starts the server on its core and waits until it listens.
    pub fn start(spec: &Spec, cores: &Cores) -> Result<Server> {
        let command = match &spec.origin {
            Origin::Running(address) => return Ok(Server { address: *address, process: None }),
            Origin::Command(command) => command,
        };
        // The child inherits the core of this thread. Set after the start, it could miss threads of the child.
        cores.pin_to_server()?;
        let child = Command::new(&command[0])
            .args(&command[1..])
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        cores.pin_to_generator()?;
        let child = child.map_err(|error| format!("cannot start {}: {error}", PathBuf::from(&command[0]).display()))?;
        let mut server = Server { address: SocketAddr::from(([0; 4], 0)), process: Some(child) };
        server.address = server.wait_until_it_listens()?;
        Ok(server)
    }

    fn wait_until_it_listens(&mut self) -> Result<SocketAddr> {
        let stdout = self.process.as_mut().and_then(|child| child.stdout.take()).expect("stdout is piped");
        for line in BufReader::new(stdout).lines() {
            if let Some(address) = line?.strip_prefix("listening on tcp://") {
                return Ok(address.parse()?);
            }
        }
        Err("it exited before it listened".into())
    }

    /// Returns the id of its process, if the benchmark started it.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// Returns its CPU time so far; zero if the process is unknown.
    pub fn cpu(&self) -> Cpu {
        self.pid().and_then(cpu::cpu_of).unwrap_or_default()
    }

    /// Returns its resident memory in bytes, counted page by page. VmRSS is only an estimate, off by dozens of pages.
    pub fn resident(&self) -> Option<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()?)).ok()?;
        let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// Returns how the process exited, if it has.
    pub fn exit_status(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        Some(format!("the server exited: {status}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            // The process may have exited already; then the error has been reported.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
