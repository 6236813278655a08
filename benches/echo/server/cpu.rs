//! CPU time of processes.

use std::fs;
use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

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
            user_ticks: self.user_ticks - before.user_ticks,
            system_ticks: self.system_ticks - before.system_ticks,
        }
    }
}

/// Returns the CPU time of this process.
pub fn own_cpu() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Returns the CPU time of another process, or None if it is gone.
pub fn cpu_of(pid: u32) -> Option<Cpu> {
    // The clock includes threads that have ended; /proc/PID/schedstat knows only the first thread.
    let clock = ClockId::pid_cpu_clock_id(Pid::from_raw(pid.cast_signed())).ok()?;
    let total = Duration::from(clock_gettime(clock).ok()?);
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may contain anything; utime and stime are the 14th and 15th field (proc(5)).
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse().ok();
    Some(Cpu { total, user_ticks: ticks()?, system_ticks: ticks()? })
}
