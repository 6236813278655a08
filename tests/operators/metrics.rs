//! The page of metrics: names, values, and format.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::http::metrics;
use crate::support::{Daemon, Signal, TIMEOUT, eventually, pattern, wait_until};

const METRICS: &str = "--metrics=127.0.0.1:0";

#[test]
fn every_series_of_the_contract_is_present_at_start() {
    let daemon = Daemon::start(&[METRICS]);
    let page = metrics(&daemon);
    for series in [
        "echod_connections_accepted_total",
        "echod_connections_open",
        "echod_received_bytes_total",
        "echod_sent_bytes_total",
        "echod_discarded_bytes_total",
        "echod_stalled_connections",
        "echod_buffered_bytes",
        "echod_budget_exhausted_total",
        "echod_accept_errors_total",
        "echod_accept_paused",
        "echod_log_lines_dropped_total",
    ] {
        assert_eq!(page.value(series), 0.0, "{series}");
    }
    for reason in ["finished", "one_shot", "drained", "reset", "idle", "cut", "error"] {
        assert_eq!(page.value(&format!("echod_connections_closed_total{{reason=\"{reason}\"}}")), 0.0, "{reason}");
    }
    for reason in ["limit", "descriptors", "memory", "error"] {
        assert_eq!(page.value(&format!("echod_accept_pauses_total{{reason=\"{reason}\"}}")), 0.0, "{reason}");
    }
    assert!(page.value("echod_connections_max") >= 1.0);
    assert!(page.value("echod_turns_total") >= 1.0);
    page.value("echod_turn_duration_seconds_sum");
    page.value("echod_turn_duration_seconds_count");
    page.value("echod_turn_duration_seconds_bucket{le=\"+Inf\"}");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(page.value(&format!("echod_build_info{{version=\"{version}\"}}")), 1.0);
    assert!(page.value("process_cpu_seconds_total") > 0.0);
    assert!(page.value("process_resident_memory_bytes") > 100_000.0);
    assert!(page.value("process_virtual_memory_bytes") > page.value("process_resident_memory_bytes"));
    let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    let age = now - page.value("process_start_time_seconds");
    assert!((0.0..TIMEOUT.as_secs_f64()).contains(&age), "started {age} s ago");
    assert!(page.value("process_max_fds") >= page.value("process_open_fds"));
    let open_fds = page.value("process_open_fds");
    wait_until("process_open_fds matches /proc", || daemon.descriptors().len() as f64 == open_fds);
}

#[test]
fn connections_bytes_and_close_reasons_are_counted() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let closed =
        |reason: &str| metrics(&daemon).value(&format!("echod_connections_closed_total{{reason=\"{reason}\"}}"));
    let [first, second, third] = [daemon.connect(), daemon.connect(), daemon.connect()];
    for client in [&first, &second, &third] {
        client.exchange(&pattern(1, 100_000));
    }
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_accepted_total"), 3.0);
    assert_eq!(page.value("echod_connections_open"), 3.0);
    assert_eq!(page.value("echod_received_bytes_total"), 300_000.0);
    assert_eq!(page.value("echod_sent_bytes_total"), 300_000.0);

    first.send_fin();
    first.expect_fin();
    second.reset();
    wait_until("a reset is counted", || closed("reset") == 1.0);
    assert_eq!(closed("finished"), 1.0);
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_connections_accepted_total"), 3.0);
    assert_eq!(page.value("echod_connections_open"), 1.0);
}

#[test]
fn closes_by_the_server_have_different_reasons() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS, "--one-shot"]);
    daemon.connect().echo(b"one message");
    let one_shot = "echod_connections_closed_total{reason=\"one_shot\"}";
    wait_until("the close is counted", || metrics(&daemon).value(one_shot) == 1.0);

    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS, "--idle-timeout=100ms"]);
    daemon.connect().expect_fin();
    assert_eq!(metrics(&daemon).value("echod_connections_closed_total{reason=\"idle\"}"), 1.0);

    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS, "--drain-timeout=30s"]);
    let [first, second] = [daemon.connect(), daemon.connect()];
    first.echo(b"open");
    second.echo(b"open");
    daemon.signal(Signal::TERM);
    first.expect_fin();
    drop(first);
    let drained = "echod_connections_closed_total{reason=\"drained\"}";
    wait_until("the close is counted", || metrics(&daemon).value(drained) == 1.0);
}

#[test]
fn stalled_peer_is_reported_until_it_reads() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let peer = daemon.connect();
    let sent = peer.send_until_stalled(&pattern(1, 60_000), Duration::from_millis(300), 100 << 20);
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_stalled_connections"), 1.0);
    let unsent = page.value("echod_received_bytes_total") - page.value("echod_sent_bytes_total");
    assert!(unsent > 0.0);
    assert!((unsent..=65_536.0).contains(&page.value("echod_buffered_bytes")), "{unsent} bytes are unsent");
    peer.read_exactly(sent).expect("echo");
    let page = metrics(&daemon);
    assert_eq!(page.value("echod_stalled_connections"), 0.0);
    assert_eq!(page.value("echod_buffered_bytes"), 0.0);
    assert_eq!(page.value("echod_sent_bytes_total"), sent as f64);

    peer.send_until_stalled(&pattern(1, 60_000), Duration::from_millis(300), 100 << 20);
    assert_eq!(metrics(&daemon).value("echod_stalled_connections"), 1.0);
    peer.reset();
    wait_until("a reset connection is not stalled", || metrics(&daemon).value("echod_stalled_connections") == 0.0);
    assert_eq!(metrics(&daemon).value("echod_buffered_bytes"), 0.0);
}

#[test]
fn exhausted_budget_is_reported() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS, "--buffer-size=512"]);
    let peer = daemon.connect();
    peer.echo(b"accepted");
    // When the daemon continues, more than a hundred reads are waiting: more than the budget of one iteration.
    let message = pattern(1, 60_000);
    daemon.freeze();
    peer.send(&message);
    daemon.thaw();
    peer.expect(&message);
    assert!(metrics(&daemon).value("echod_budget_exhausted_total") > 0.0);
}

#[test]
fn iterations_are_counted_and_timed() {
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    let peer = daemon.connect();
    let before = metrics(&daemon);
    for _ in 0..100 {
        peer.echo(b"ping");
    }
    let after = metrics(&daemon);
    let increase = |series: &str| after.value(series) - before.value(series);
    let iterations = increase("echod_turns_total");
    assert!((100.0..150.0).contains(&iterations), "{iterations} iterations for 100 echoes");
    assert_eq!(increase("echod_turn_duration_seconds_count"), iterations);
    assert!(increase("echod_turn_duration_seconds_sum") > 0.0);
    let bucket = "echod_turn_duration_seconds_bucket{le=\"0.1\"}";
    assert!(increase(bucket) > 0.0 && increase(bucket) <= iterations);
}

#[test]
fn dropped_log_lines_are_counted() {
    // A pipe that is not read fills up soon: with -vv each event is a line.
    let (_reader, writer) = std::io::pipe().unwrap();
    let daemon = Daemon::with(&["--listen=127.0.0.1:0", METRICS, "-vv"]).stderr(writer).start();
    let dropped = eventually("lines are dropped", || {
        let dropped = metrics(&daemon).value("echod_log_lines_dropped_total");
        (dropped > 0.0).then_some(dropped)
    });
    assert!(metrics(&daemon).value("echod_log_lines_dropped_total") > dropped);
}

/// The reference parser, which also checks types, histograms and escapes.
const PARSER: &str = "
import sys
from prometheus_client.parser import text_string_to_metric_families as parse
families = {family.name: family for family in parse(sys.stdin.read())}
for name, family in families.items():
    assert family.documentation, name + ' has no help'
    assert family.type != 'unknown', name + ' has no type'
buckets = [s.value for s in families['echod_turn_duration_seconds'].samples if s.name.endswith('_bucket')]
assert buckets == sorted(buckets) and len(buckets) > 5, buckets
print(len(families), 'families')
";

#[test]
fn prometheus_parser_accepts_the_page() {
    let python = |code: &str| {
        let mut command = Command::new("python3");
        command.args(["-c", code]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    if !python("import prometheus_client").output().is_ok_and(|output| output.status.success()) {
        return crate::support::skip_missing("prometheus_client for python3 (PyPI)");
    }
    let daemon = Daemon::start(&["--listen=127.0.0.1:0", METRICS]);
    daemon.connect().echo(b"some non-zero values");
    let mut parser = python(PARSER).spawn().unwrap();
    std::io::Write::write_all(&mut parser.stdin.take().unwrap(), metrics(&daemon).body.as_bytes()).unwrap();
    let output = parser.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn promtool_accepts_the_page() {
    if !crate::support::has_program("promtool") {
        return crate::support::skip("promtool is missing"); // Never required, because CI has the parser above.
    }
    let daemon = Daemon::start(&[METRICS]);
    let mut promtool = Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut promtool = promtool.spawn().unwrap();
    std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), metrics(&daemon).body.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && message.is_empty(), "{message}");
}
