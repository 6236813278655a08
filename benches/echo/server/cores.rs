//! Which core runs the server and which one the generator, and what else ran on the server's core.

use std::fs;
use std::time::Duration;

use rustix::thread::CpuSet;

use super::cpu::TICK;
use crate::generator::Result;

/// The cores of server and generator.
pub struct Cores {
    /// None if both share one core.
    split: Option<(usize, usize)>,
    count: usize,
}

impl Cores {
    /// Returns the cores that were asked for, or the first and the last core that this process may use: with two hardware
    /// threads per core, these two rarely share one.
    pub fn choose(wanted: Option<(usize, usize)>) -> Result<Cores> {
        let allowed = rustix::thread::sched_getaffinity(None)?;
        let allowed: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu)).collect();
        let (server, generator) = match (wanted, &allowed[..]) {
            (Some(wanted), _) => wanted,
            (None, [server, .., generator]) => (*server, *generator),
            (None, _) => return Ok(Cores { split: None, count: 1 }),
        };
        if let Some(core) = [server, generator].iter().find(|core| !allowed.contains(core)) {
            return Err(format!("--cores: this process may not use core {core}, only {allowed:?}").into());
        }
        let cores = Cores { split: (server != generator).then_some((server, generator)), count: allowed.len() };
        pin(generator)?;
        Ok(cores)
    }

    /// Returns whether the generator has a core of its own.
    pub fn are_apart(&self) -> bool {
        self.split.is_some()
    }

    /// Describes the choice, for the tables.
    pub fn describe(&self) -> String {
        match self.split {
            Some((server, generator)) => {
                format!("{} cores, server on core {server}, generator on core {generator}", self.count)
            }
            None => "one core for server and generator".to_owned(),
        }
    }

    /// Moves this thread, and the children that it will start, to the server's core.
    pub(super) fn pin_to_server(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(server, _)| pin(server))
    }

    /// Moves this thread back to the generator's core.
    pub(super) fn pin_to_generator(&self) -> Result<()> {
        self.split.map_or(Ok(()), |(_, generator)| pin(generator))
    }

    /// Reads how busy the server's core was since boot, if the generator has another one.
    pub fn server_core_time(&self) -> Option<CoreTime> {
        let (server, _) = self.split?;
        let stat = fs::read_to_string("/proc/stat").ok()?;
        let line = stat.lines().find_map(|line| line.strip_prefix(&format!("cpu{server} ")))?;
        let ticks: Vec<u32> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
        // user nice system idle iowait irq softirq steal (proc(5)).
        let [user, nice, system, _, _, _, _, steal, ..] = ticks[..] else { return None };
        Some(CoreTime { busy: TICK * (user + nice + system), stolen: TICK * steal })
    }
}

/// Time of one core since boot, in ticks of 10 ms.
#[derive(Clone, Copy)]
pub struct CoreTime {
    /// In processes. Not in interrupts, which some kernels charge to the process that they interrupt.
    busy: Duration,
    /// Taken by the hypervisor.
    stolen: Duration,
}

impl CoreTime {
    /// Returns how long something other than the server had the core between two readings: at least, because ticks are
    /// coarse and interrupts may be counted as the server's.
    pub fn others_since(self, before: CoreTime, server: Duration) -> Duration {
        let busy = self.busy.saturating_sub(before.busy).saturating_sub(server + 2 * TICK);
        busy + self.stolen.saturating_sub(before.stolen)
    }
}

fn pin(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}
