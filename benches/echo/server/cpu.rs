//! CPU time and memory of processes.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

/// The kernel's ticks in /proc: USER_HZ, which is 100 on every Linux architecture in use.
pub const TICK: Duration = Duration::from_millis(10);

/// CPU time that a process has used, over all threads.
#[derive(Clone, Copy, Default)]
pub struct Cpu {
    /// From the process's CPU clock, in nanoseconds.
    pub total: Duration,
    /// Time in user space in ticks of 10 ms, which sample: good for a ratio over some seconds, not for a single round.
    pub user_ticks: u64,
    /// Time in the kernel, likewise.
    pub system_ticks: u64,
}

impl Cpu {
    /// Returns what was used since an earlier reading.
    pub fn since(self, before: Cpu) -> Cpu {
        Cpu {
            total: self.total.saturating_sub(before.total),
            user_ticks: self.user_ticks.saturating_sub(before.user_ticks),
            system_ticks: self.system_ticks.saturating_sub(before.system_ticks),
        }
    }

    /// Adds the time of another process.
    pub fn plus(self, other: Cpu) -> Cpu {
        Cpu {
            total: self.total + other.total,
            user_ticks: self.user_ticks + other.user_ticks,
            system_ticks: self.system_ticks + other.system_ticks,
        }
    }
}

/// Returns the CPU time of another process, or None if it is gone. With `with_exited_children`, includes that of children
/// that it has waited for, in ticks.
pub fn cpu_of(pid: u32, with_exited_children: bool) -> Option<Cpu> {
    // The clock includes threads that have ended; /proc/PID/schedstat knows only the first thread.
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).ok()?;
    let total = Duration::from(clock_gettime(clock).ok()?);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // utime, stime, cutime and cstime are the fields 14 to 17 (proc(5)).
    let mut fields = fields_after_name(&stat)?.skip(11);
    let mut ticks = || fields.next()?.parse().ok();
    let own = Cpu { total, user_ticks: ticks()?, system_ticks: ticks()? };
    if !with_exited_children {
        return Some(own);
    }
    let (user_ticks, system_ticks): (u64, u64) = (ticks()?, ticks()?);
    Some(own.plus(Cpu { total: TICK * (user_ticks + system_ticks) as u32, user_ticks, system_ticks }))
}

/// Returns the fields of /proc/PID/stat from the third on. The name, in parentheses, may contain anything.
fn fields_after_name(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    Some(stat.rsplit_once(')')?.1.split_whitespace())
}

/// Returns a process and all its living descendants. Reads /proc once: not every kernel has /proc/PID/task/TID/children.
pub fn with_descendants(pid: u32) -> Vec<u32> {
    let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    for child in entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        // State and parent are the fields 3 and 4. A zombie has no threads left, which perf takes for an error.
        let Some(mut fields) = fields_after_name(&stat) else { continue };
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        if let Some(parent) = parent.filter(|_| state != Some("Z")) {
            children.entry(parent).or_default().push(child);
        }
    }
    let mut pids = vec![pid];
    let mut next = 0;
    while let Some(parent) = pids.get(next) {
        pids.extend(children.remove(parent).unwrap_or_default());
        next += 1;
    }
    pids
}

/// Returns `Rss:` or `Pss:` in bytes, counted page by page. VmRSS is only an estimate, off by dozens of pages.
pub fn memory(pid: u32, field: &str) -> Option<u64> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = smaps.lines().find_map(|line| line.strip_prefix(field))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
