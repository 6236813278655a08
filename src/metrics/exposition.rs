//! The page of metrics in the Prometheus text format.

use std::fmt::{self, Display, Write};

use crate::event_loop::counters::{PauseReason, Snapshot, Traffic};
use crate::event_loop::outcome::CloseReason;
use crate::metrics::durations::{BOUNDS, IterationDurations};
use crate::metrics::process::Process;

/// Returns the page in the Prometheus text format, version 0.0.4. Every series is present from the start, with 0, so that rates
/// and alerts need no special case for what has not happened yet.
///
/// In the names, a turn is an iteration of the event loop.
pub fn page(snapshot: &Snapshot, lines_dropped: u64, iterations: &IterationDurations, process: &Process) -> String {
    let counters = snapshot.counters;
    let Traffic { received, sent, discarded, stalled, buffered } = counters.traffic;
    let mut page = Text(String::with_capacity(8192));

    page.counter("echod_connections_accepted_total", "Connections accepted.", counters.accepted);
    page.gauge("echod_connections_open", "Connections open now.", counters.open());
    page.gauge("echod_connections_max", "Connection limit.", snapshot.max_connections);
    page.head("echod_connections_closed_total", "counter", "Connections closed, by reason.");
    for (reason, count) in CloseReason::NAMES.iter().zip(counters.closed) {
        page.line(format_args!("echod_connections_closed_total{{reason=\"{reason}\"}} {count}"));
    }
    page.counter("echod_received_bytes_total", "Bytes read to be echoed.", received);
    page.counter("echod_sent_bytes_total", "Bytes echoed.", sent);
    page.counter("echod_discarded_bytes_total", "Bytes read and discarded after the server's FIN.", discarded);
    let help = "Connections with unsent data whose peer is not reading.";
    page.gauge("echod_stalled_connections", help, stalled);
    page.gauge("echod_buffered_bytes", "Memory in bytes that holds unsent output of all connections.", buffered);
    page.counter("echod_accept_errors_total", "Accepts that failed.", counters.accept_errors);
    page.head("echod_accept_pauses_total", "counter", "Times accepting was paused, by reason.");
    for (reason, count) in PauseReason::NAMES.iter().zip(counters.accept_pauses) {
        page.line(format_args!("echod_accept_pauses_total{{reason=\"{reason}\"}} {count}"));
    }
    let help = "1 while new connections are not accepted: connection limit, file descriptors or memory.";
    page.gauge("echod_accept_paused", help, u8::from(snapshot.accept_paused));
    let help = "Lines dropped because stdout or stderr could not be written.";
    page.counter("echod_log_lines_dropped_total", help, lines_dropped);
    page.counter("echod_turns_total", "Iterations of the event loop.", counters.iterations);
    let help = "Times a connection used up its per-iteration I/O budget.";
    page.counter("echod_budget_exhausted_total", help, counters.budget_exhausted);

    let help = "Duration of an iteration of the event loop, without the wait for events.";
    page.head("echod_turn_duration_seconds", "histogram", help);
    let mut up_to = 0;
    for ((_, bound), count) in BOUNDS.iter().zip(iterations.buckets) {
        up_to += count;
        page.line(format_args!("echod_turn_duration_seconds_bucket{{le=\"{bound}\"}} {up_to}"));
    }
    page.line(format_args!("echod_turn_duration_seconds_bucket{{le=\"+Inf\"}} {}", iterations.count));
    page.line(format_args!("echod_turn_duration_seconds_sum {}", iterations.nanoseconds as f64 / 1e9));
    page.line(format_args!("echod_turn_duration_seconds_count {}", iterations.count));

    page.head("echod_build_info", "gauge", "Always 1; the labels describe the build.");
    page.line(format_args!("echod_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION")));
    process.write(&mut page);
    page.0
}

/// The text written so far.
pub(super) struct Text(String);

impl Text {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}"));
        self.line(format_args!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        let _ = writeln!(self.0, "{line}"); // Writing to a String cannot fail.
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "counter", help);
        self.line(format_args!("{name} {value}"));
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        self.line(format_args!("{name} {value}"));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::event_loop::counters::Counters;

    fn page_of(counters: &Counters, iterations: &IterationDurations) -> String {
        let snapshot = Snapshot { counters: *counters, max_connections: 0, accept_paused: false, draining: false };
        page(&snapshot, 0, iterations, &Process::read(0, Duration::from_secs(1)))
    }

    #[test]
    fn every_series_is_present_from_the_start_with_0() {
        let page = page_of(&Counters::default(), &IterationDurations::default());
        for series in [
            "echod_connections_accepted_total",
            "echod_connections_open",
            "echod_connections_max",
            "echod_received_bytes_total",
            "echod_sent_bytes_total",
            "echod_discarded_bytes_total",
            "echod_stalled_connections",
            "echod_buffered_bytes",
            "echod_accept_errors_total",
            "echod_accept_paused",
            "echod_turns_total",
            "echod_budget_exhausted_total",
            "echod_turn_duration_seconds_sum",
            "echod_turn_duration_seconds_count",
            "echod_turn_duration_seconds_bucket{le=\"+Inf\"}",
        ] {
            assert!(page.contains(&format!("\n{series} 0\n")), "{series}");
        }
        for reason in ["limit", "descriptors", "memory", "error"] {
            assert!(page.contains(&format!("\nechod_accept_pauses_total{{reason=\"{reason}\"}} 0\n")), "{reason}");
        }
        for reason in ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"] {
            assert!(page.contains(&format!("\nechod_connections_closed_total{{reason=\"{reason}\"}} 0\n")), "{reason}");
        }
        assert!(page.contains("\nechod_log_lines_dropped_total "));
        assert!(page.contains(concat!("\nechod_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1\n")));
        assert!(page.ends_with('\n'));
    }

    #[test]
    fn bucket_counts_iterations_up_to_its_bound() {
        let mut iterations = IterationDurations::default();
        for nanoseconds in [0, 5_000, 5_001, 99_999, 1_000_000_000, 1_000_000_001, 5_000_000_000] {
            iterations.record(nanoseconds);
        }
        let page = page_of(&Counters::default(), &iterations);
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
}
