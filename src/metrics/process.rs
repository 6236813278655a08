//! The `process_*` series: what the system reports about this process.

use std::time::Duration;

use crate::metrics::exposition::Text;

/// Statistics of this process, under the names that every Prometheus library uses. `None` if the system does not report a value:
/// the `process_*` series are for Linux.
#[derive(Clone, Copy, Debug, Default)]
pub struct Process {
    cpu_seconds: Option<f64>,
    open_fds: Option<u64>,
    max_fds: Option<u64>,
    /// The address space, and the part of it in memory, in bytes.
    memory: Option<(u64, u64)>,
    start_time_seconds: Option<f64>,
}

impl Process {
    /// Reads the process statistics. Opens one file of /proc at a time, for which the caller has just closed a descriptor of its
    /// reserve; that descriptor is counted as open. `open` is the number of open connections, `started` the start of the process
    /// as a duration since 1970.
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

    /// Not available: this platform has no Linux-style /proc.
    #[cfg(not(target_os = "linux"))]
    pub fn read(_open: u64, _started: Duration) -> Process {
        Process::default()
    }

    pub(super) fn write(&self, page: &mut Text) {
        if let Some(seconds) = self.cpu_seconds {
            page.counter("process_cpu_seconds_total", "User and system CPU time spent in seconds.", seconds);
        }
        if let Some(count) = self.open_fds {
            page.gauge("process_open_fds", "Open file descriptors.", count);
        }
        if let Some(count) = self.max_fds {
            page.gauge("process_max_fds", "Maximum number of open file descriptors.", count);
        }
        if let Some((virtual_bytes, resident_bytes)) = self.memory {
            page.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", virtual_bytes);
            page.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", resident_bytes);
        }
        if let Some(seconds) = self.start_time_seconds {
            page.gauge("process_start_time_seconds", "Start time of the process in seconds since 1970.", seconds);
        }
    }
}

/// Returns the number of open descriptors. Since Linux 6.2 it is the size of the directory (proc_pid_fd(5)). Before, the entries
/// have to be counted, which would block the loop for a second at a million: there, the series is missing if it would be slow.
#[cfg(target_os = "linux")]
fn open_fds(open_connections: u64) -> Option<u64> {
    const MAX_COUNTED: u64 = 10_000;
    match std::fs::metadata("/proc/self/fd").ok()?.len() {
        // The open directory itself takes the place of the caller's descriptor.
        0 if open_connections <= MAX_COUNTED => Some(std::fs::read_dir("/proc/self/fd").ok()?.count() as u64),
        0 => None,
        count => Some(count + 1), // Here that place is free.
    }
}

/// Returns the virtual and the resident size in bytes: the first two numbers of /proc/self/statm, which are pages.
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
    fn process_statistics_are_read_from_proc() {
        let process = Process::read(0, Duration::from_secs(1));
        let (virtual_bytes, resident_bytes) = process.memory.expect("/proc/self/statm");
        assert!(virtual_bytes > resident_bytes && resident_bytes > 4096);
        assert!(process.open_fds.is_some_and(|count| count >= 3));
        assert!(process.max_fds.is_some_and(|max| max >= 3));
        assert!(process.cpu_seconds.is_some_and(|seconds| seconds > 0.0));
    }
}
