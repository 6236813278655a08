//! What the system says about this process.

use std::time::Duration;

use crate::metrics::exposition::Page;

/// What the system says about this process, under the names that every Prometheus library uses. `None` where the
/// system does not tell: the `process_*` series are for Linux.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    cpu_seconds: Option<f64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    /// Address space, and what of it is in memory, in bytes.
    memory: Option<(u64, u64)>,
    start_time_seconds: Option<f64>,
}

impl Process {
    /// Asks. This opens one file of /proc at a time, for which the caller has just closed a descriptor of its reserve; that one is
    /// counted as open all the same. `open` is the number of our connections, `started` the time since 1970 at which
    /// the process began.
    #[cfg(target_os = "linux")]
    pub fn read(open: u64, started: Duration) -> Process {
        let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        Process {
            cpu_seconds: Some(cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9),
            open_fds: open_fds(open),
            max_fds: Some(limit.current.unwrap_or(u64::MAX)),
            memory: memory(),
            start_time_seconds: Some(started.as_secs_f64()),
        }
    }

    /// Asks nobody: there is no /proc of this kind.
    #[cfg(not(target_os = "linux"))]
    pub fn read(_open: u64, _started: Duration) -> Process {
        Process::default()
    }

    pub(super) fn write(&self, page: &mut Page) {
        if let Some(seconds) = self.cpu_seconds {
            page.counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.", seconds);
        }
        if let Some(count) = self.open_fds {
            page.gauge("process_open_fds", "Open file descriptors.", count);
        }
        if let Some(count) = self.max_fds {
            page.gauge("process_max_fds", "Most open file descriptors.", count);
        }
        if let Some((virtual_bytes, resident_bytes)) = self.memory {
            page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual_bytes);
            page.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes);
        }
        if let Some(seconds) = self.start_time_seconds {
            page.gauge("process_start_time_seconds", "Start of the process, in seconds since 1970.", seconds);
        }
    }
}

/// How many descriptors are open. Since Linux 6.2 the directory's size tells (proc_pid_fd(5)). Before, its entries have
/// to be counted, which would hold up the loop for a second at a million: there, the series is missing where
/// it would be slow.
#[cfg(target_os = "linux")]
fn open_fds(open_connections: u64) -> Option<u64> {
    const COUNTED_AT_MOST: u64 = 10_000;
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        // The directory is open while we count, in the place of the caller's descriptor.
        0 if open_connections <= COUNTED_AT_MOST => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        0 => None,
        count => Some(count + 1), // And here that place is empty.
    }
}

/// Virtual and resident size in bytes: the first two numbers of /proc/self/statm, which are pages.
#[cfg(target_os = "linux")]
fn memory() -> Option<(u64, u64)> {
    let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut bytes = pages.split(' ').map(|pages| Some(pages.parse::<u64>().ok()? * rustix::param::page_size() as u64));
    Some((bytes.next()??, bytes.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_tells_about_the_process() {
        let process = Process::read(0, Duration::from_secs(1));
        let (virtual_bytes, resident_bytes) = process.memory.expect("/proc/self/statm");
        assert!(virtual_bytes > resident_bytes && resident_bytes > 4096);
        assert!(process.open_fds.is_some_and(|count| count >= 3));
        assert!(process.max_fds.is_some_and(|most| most >= 3));
        assert!(process.cpu_seconds.is_some_and(|seconds| seconds > 0.0));
    }
}
