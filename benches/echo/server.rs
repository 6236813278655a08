//! A server under measurement: a process of its own, on a core of its own, and what it costs.

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use rustix::thread::CpuSet;

use crate::load::Result;

/// How to start a server, or where one already runs.
#[derive(Clone)]
pub struct Spec {
    /// What it is called in the table, in the pictures and on the command line.
    pub name: String,
    /// What it is, for whoever does not know.
    pub about: &'static str,
    /// Where it comes from.
    pub origin: Origin,
}

/// Where a server comes from.
#[derive(Clone)]
pub enum Origin {
    /// A program that says `listening on tcp://…` on its standard output.
    Command(Vec<OsString>),
    /// It runs already: `--connect`. Nothing is known of its process.
    Running(SocketAddr),
}

/// A server that listens. A process that we started ends with this.
pub struct Server {
    /// Where its echo is.
    pub address: SocketAddr,
    process: Option<Child>,
}

/// CPU time that a process has used, all threads together.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// To the nanosecond, from the process's own clock.
    pub total: Duration,
    /// As the kernel's ticks found it: good for a ratio over some seconds, not for a single round.
    pub user_ticks: u64,
    /// The same, in the kernel.
    pub system_ticks: u64,
}

impl Cpu {
    /// What was used since an earlier reading.
    pub fn since(self, before: Cpu) -> Cpu {
        Cpu {
            total: self.total.saturating_sub(before.total),
            user_ticks: self.user_ticks - before.user_ticks,
            system_ticks: self.system_ticks - before.system_ticks,
        }
    }
}

impl Server {
    /// Starts it on the server's core and waits until it listens.
    pub fn start(spec: &Spec, cores: &Cores) -> Result<Server> {
        let command = match &spec.origin {
            Origin::Running(address) => return Ok(Server { address: *address, process: None }),
            Origin::Command(command) => command,
        };
        // A child inherits the core of the thread that starts it; set later, its own threads could be missed.
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
        let stdout = self.process.as_mut().and_then(|child| child.stdout.take()).expect("it is piped");
        for line in BufReader::new(stdout).lines() {
            if let Some(address) = line?.strip_prefix("listening on tcp://") {
                return Ok(address.parse()?);
            }
        }
        Err("it ended before it listened".into())
    }

    /// Its process, if it is ours.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// CPU time so far; zero where we do not know the process.
    pub fn cpu(&self) -> Cpu {
        self.pid().and_then(cpu_of).unwrap_or_default()
    }

    /// Resident memory in bytes, page by page (VmRSS is only an estimate, off by up to some dozens of pages).
    pub fn resident(&self) -> Option<u64> {
        let smaps = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid()?)).ok()?;
        let line = smaps.lines().find_map(|line| line.strip_prefix("Rss:"))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
    }

    /// How it ended, if it has.
    pub fn fate(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        Some(format!("the server ended: {status}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.process {
            // It may have ended by itself, and then the failure has been told.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// CPU time of our own process.
pub fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

fn cpu_of(pid: u32) -> Option<Cpu> {
    // CPU time of ended threads is in it too; /proc/PID/schedstat knows only the first thread.
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).ok()?;
    let total = Duration::from(clock_gettime(clock).ok()?);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; utime and stime are the 14th and 15th field (proc(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse().ok();
    Some(Cpu { total, user_ticks: ticks()?, system_ticks: ticks()? })
}

/// Which core the server gets and which one the generator.
pub struct Cores {
    /// None where there is only one for both.
    split: Option<(usize, usize)>,
    count: usize,
}

impl Cores {
    /// The first and the last that we may use: where cores have two threads, these are hardly of one core.
    pub fn choose() -> Result<Cores> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let split = match allowed[..] {
            [server, .., generator] => Some((server, generator)),
            _ => None,
        };
        let cores = Cores { split, count: allowed.len() };
        cores.pin_to_generator()?;
        Ok(cores)
    }

    /// Whether the generator has a core for itself.
    pub fn are_apart(&self) -> bool {
        self.split.is_some()
    }

    /// In words.
    pub fn describe(&self) -> String {
        match self.split {
            Some((server, generator)) => {
                format!("{} cores, server on core {server}, generator on core {generator}", self.count)
            }
            None => "one core for server and generator".to_owned(),
        }
    }

    fn pin_to_server(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(server, _)| pin(server))
    }

    fn pin_to_generator(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(_, generator)| pin(generator))
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
