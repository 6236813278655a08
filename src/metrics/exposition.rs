//! What the daemon has counted since it started, and the same as text for Prometheus.

use std::fmt::{self, Display, Write};
use std::time::Duration;

use crate::event_loop::counters::{Snapshot, Traffic};
use crate::event_loop::outcome::CloseReason;

/// How long turns of the loop took, from the end of the wait on: what the last connection of a turn had to wait for.
///
/// Only kept where somebody can ask for it, since it costs one more look at the clock per turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct IterationDurations {
    /// By bucket: turns that took no longer than its bound, but longer than the one before.
    buckets: [u64; BOUNDS.len()],
    /// All turns, also those beyond the last bound.
    count: u64,
    nanoseconds: u64,
}

/// Upper bounds of the buckets in nanoseconds, and as Prometheus is told them, in seconds. An echo takes 5 µs; a full turn of
/// 1024 events some milliseconds; what takes 100 ms has been stopped, or starved of CPU.
const BOUNDS: [(u64, &str); 13] = [
    (5_000, "0.000005"),
    (10_000, "0.00001"),
    (25_000, "0.000025"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
    (1_000_000_000, "1"),
];

impl IterationDurations {
    /// Counts a turn.
    pub fn record(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.nanoseconds += nanoseconds; // 584 years of work fit.
        // From the small end: almost every turn ends in one of the first buckets.
        if let Some(bucket) = BOUNDS.iter().position(|&(bound, _)| nanoseconds <= bound) {
            self.buckets[bucket] += 1;
        }
    }
}

/// The page: Prometheus text format, version 0.0.4. Every series is there from the start, so that rates and
/// alerts need no special case for what has not happened yet.
pub fn page(snapshot: &Snapshot, lines_dropped: u64, turns: &IterationDurations, process: &Process) -> String {
    let counters = snapshot.counters;
    let Traffic { received, sent, discarded, stalled, .. } = counters.traffic;
    let mut page = Page(String::with_capacity(8192));

    page.counter("echod_connections_accepted_total", "Connections accepted.", counters.accepted);
    page.gauge("echod_connections_open", "Connections open now.", counters.open());
    page.head("echod_connections_closed_total", "counter", "Connections closed, by what ended them.");
    for (reason, count) in CloseReason::NAMES.iter().zip(counters.closed) {
        page.line(format_args!("echod_connections_closed_total{{reason=\"{reason}\"}} {count}"));
    }
    page.counter("echod_received_bytes_total", "Bytes read to be echoed.", received);
    page.counter("echod_sent_bytes_total", "Bytes echoed.", sent);
    page.counter("echod_discarded_bytes_total", "Bytes read and dropped after our FIN.", discarded);
    let owe = "Connections that owe an echo which their peer does not take, now.";
    page.gauge("echod_stalled_connections", owe, stalled);
    page.counter("echod_accept_errors_total", "Failed accepts.", counters.accept_errors);
    let pauses = "Pauses of accepting for want of descriptors or memory.";
    page.counter("echod_accept_pauses_total", pauses, counters.accept_pauses);
    let paused = "1 while no newcomers are accepted: at the cap, or out of descriptors or memory.";
    page.gauge("echod_accept_paused", paused, u8::from(snapshot.accept_paused));
    let dropped = "Lines of stdout and stderr that nobody took.";
    page.counter("echod_log_lines_dropped_total", dropped, lines_dropped);
    page.counter("echod_turns_total", "Turns of the loop.", counters.iterations);
    let spent = "Turns of a connection that ended on their budget, with work left.";
    page.counter("echod_budget_exhausted_total", spent, counters.budget_exhausted);

    page.head("echod_turn_duration_seconds", "histogram", "Duration of a turn of the loop, without its wait.");
    let mut up_to = 0;
    for ((_, bound), count) in BOUNDS.iter().zip(turns.buckets) {
        up_to += count;
        page.line(format_args!("echod_turn_duration_seconds_bucket{{le=\"{bound}\"}} {up_to}"));
    }
    page.line(format_args!("echod_turn_duration_seconds_bucket{{le=\"+Inf\"}} {}", turns.count));
    page.line(format_args!("echod_turn_duration_seconds_sum {}", turns.nanoseconds as f64 / 1e9));
    page.line(format_args!("echod_turn_duration_seconds_count {}", turns.count));

    page.head("echod_build_info", "gauge", "1, with what was built as labels.");
    page.line(format_args!("echod_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    process.write(&mut page);
    page.0
}

/// The text as it grows.
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{line}"); // A String takes everything.
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }
}

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

    fn write(&self, page: &mut Page) {
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
    use crate::event_loop::counters::Counters;

    fn page_of(counters: &Counters, turns: &IterationDurations) -> String {
        let snapshot = Snapshot { counters: *counters, accept_paused: false, draining: false };
        page(&snapshot, 0, turns, &Process::read(0, Duration::from_secs(1)))
    }

    #[test]
    fn every_series_and_every_reason_is_there_from_the_start_with_0() {
        let page = page_of(&Counters::default(), &IterationDurations::default());
        for series in [
            "echod_connections_accepted_total",
            "echod_connections_open",
            "echod_received_bytes_total",
            "echod_sent_bytes_total",
            "echod_discarded_bytes_total",
            "echod_stalled_connections",
            "echod_accept_errors_total",
            "echod_accept_pauses_total",
            "echod_accept_paused",
            "echod_turns_total",
            "echod_budget_exhausted_total",
            "echod_turn_duration_seconds_sum",
            "echod_turn_duration_seconds_count",
            "echod_turn_duration_seconds_bucket{le=\"+Inf\"}",
        ] {
            assert!(page.contains(&format!("\n{series} 0\n")), "{series}");
        }
        for reason in ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"] {
            assert!(page.contains(&format!("\nechod_connections_closed_total{{reason=\"{reason}\"}} 0\n")), "{reason}");
        }
        assert!(page.contains("\nechod_log_lines_dropped_total "));
        assert!(page.contains(concat!("\nechod_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")));
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn a_bucket_counts_what_took_no_longer_than_its_bound() {
        let mut turns = IterationDurations::default();
        for nanoseconds in [0, 5_000, 5_001, 99_999, 1_000_000_000, 1_000_000_001, 5_000_000_000] {
            turns.record(nanoseconds);
        }
        let page = page_of(&Counters::default(), &turns);
        let bucket = |bound: &str| {
            let start = format!("echod_turn_duration_seconds_bucket{{le=\"{bound}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok())
        };
        assert_eq!(bucket("0.000005"), Some(2));
        assert_eq!(bucket("0.00001"), Some(3));
        assert_eq!(bucket("0.0001"), Some(4));
        assert_eq!(bucket("0.1"), Some(4));
        assert_eq!(bucket("1"), Some(5));
        assert_eq!(bucket("+Inf"), Some(7));
        assert!(page.contains("\nechod_turn_duration_seconds_sum 7.000110001\n"), "{page}");
        assert!(page.contains("\nechod_turn_duration_seconds_count 7\n"));
    }

    #[test]
    fn the_bounds_rise_and_are_told_as_they_are() {
        assert!(BOUNDS.is_sorted_by_key(|&(bound, _)| bound));
        for (nanoseconds, told) in BOUNDS {
            assert_eq!((told.parse::<f64>().expect("a number") * 1e9).round() as u64, nanoseconds);
        }
    }

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
