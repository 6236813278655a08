//! The benchmark as users start it: its options, its labels, and what it leaves behind.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::generator_checks::{echo, serve_with};

/// Builds the benchmark without optimization, once per test process, and returns its path.
fn executable() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let output = Command::new(env!("CARGO"))
            .args(["test", "--offline", "--bench", "echo", "--no-run", "--message-format=json"])
            .args(["--manifest-path", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")])
            .output()
            .expect("cargo");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let messages = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
        let messages = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut of_bench = messages.filter(|message| message["target"]["name"] == "echo");
        let path = of_bench.find_map(|message| Some(PathBuf::from(message["executable"].as_str()?)));
        path.expect("an executable")
    })
}

/// An output directory of its own for each run.
fn directory() -> PathBuf {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("bench-{}-{number}", std::process::id()));
    fs::create_dir_all(&directory).expect("a directory");
    directory
}

/// What a run printed, and its results.
struct Run {
    stdout: String,
    stderr: String,
    status: i32,
    results: Value,
}

/// Runs the benchmark with some arguments, separated by blanks, for a minute at most.
fn run(arguments: &str) -> Run {
    run_in_shell("", &arguments.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
}

fn run_in_shell(before: &str, arguments: &[String]) -> Run {
    let directory = directory();
    let Output { status, stdout, stderr } = Command::new("timeout")
        .args(["--kill-after=1", "60", "sh", "-c", &format!("{before} exec \"$0\" \"$@\"")])
        .arg(executable())
        .args(arguments)
        .arg(format!("--output={}", directory.display()))
        .output()
        .expect("timeout and sh");
    let results = fs::read(directory.join("results.json")).unwrap_or_default();
    let _ = fs::remove_dir_all(&directory);
    Run {
        stdout: String::from_utf8(stdout).expect("UTF-8"),
        stderr: String::from_utf8(stderr).expect("UTF-8"),
        status: status.code().unwrap_or(-1),
        results: serde_json::from_slice(&results).unwrap_or_default(),
    }
}

/// A quick run of echod alone.
const QUICK: &str = "--peers none --rounds 1 --seconds 0.05";

fn assert_rejected(arguments: &str, complaint: &str) {
    let run = run(arguments);
    assert_eq!(run.status, 2, "{arguments}: {}{}", run.stdout, run.stderr);
    assert!(run.stderr.contains(complaint), "{arguments}: {}", run.stderr);
}

// ---- labels ----

#[test]
fn lowered_connections_are_labeled_everywhere() {
    let arguments = format!("{QUICK} --scenario thousand");
    let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let run = run_in_shell("ulimit -n 256;", &words);
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stdout.contains("thousand: 56 connections"), "{}", run.stdout);
    assert!(run.stdout.contains("(descriptor limit; wanted 1000)"), "{}", run.stdout);
    assert!(run.stderr.contains("56 instead of 1000 connections"), "{}", run.stderr);
    let load = &run.results["scenarios"][0]["load"];
    assert_eq!((&load["connections"], &load["connections_wanted"]), (&Value::from(56), &Value::from(1000)));
}

#[test]
fn too_few_descriptors_fail_with_a_message() {
    let arguments = format!("{QUICK} --scenario open");
    let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let run = run_in_shell("ulimit -n 200;", &words);
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("200 descriptors leave too few"), "{}", run.stderr);
}

#[test]
fn system_calls_exclude_the_teardown() {
    // One wait, one read and one write per echo. Closing 400 connections would add 1,000 calls to some 20 echoes. (Not of echod,
    // which also polls.)
    let run = run("--peers bare-epoll --rounds 1 --seconds 0.02 --connections 400 --rate 2000");
    let servers = run.results["scenarios"][0]["servers"].as_array().expect("servers");
    let bare_epoll = servers.iter().find(|server| server["name"] == "bare-epoll").expect("bare-epoll");
    let Some(calls) = bare_epoll["system_calls_per_echo"].as_f64() else {
        let reason = &run.results["machine"]["system_calls_not_counted_because"];
        assert!(env::var_os("ECHOD_REQUIRE_TOOLS").is_none(), "{reason}");
        println!("skipped: {reason}");
        return;
    };
    assert!(calls < 10.0, "{calls} system calls per echo");
    assert!(run.stdout.contains("calls: counted by "), "{}", run.stdout);
}

#[test]
fn connection_is_opened_and_closed_before_measuring() {
    static BYTES: Mutex<Vec<(usize, u64)>> = Mutex::new(Vec::new());
    let address = serve_with(|number, stream| {
        let mut total = 0;
        echo(stream, |position, bytes| total = position + bytes.len() as u64);
        BYTES.lock().expect("no panic").push((number, total));
    });
    let run = run(&format!("{QUICK} --connect {address} --connections 1"));
    assert_eq!(run.status, 0, "{}", run.stderr);
    let closed = BYTES.lock().expect("no panic");
    // First the search for an address that accepts, then a connection with one message, then the measured one.
    assert!(matches!(closed[..], [(0, 0), (1, 64), (2, 128..), ..]), "{closed:?}");
}

#[test]
fn open_loop_is_labeled_with_its_rate() {
    let run = run(&format!("{QUICK} --scenario open --rate 500"));
    assert!(run.stdout.contains("open loop, 500 messages/s"), "{}", run.stdout);
    assert!(!run.stdout.contains("echod-50us"), "only servers that took part are listed: {}", run.stdout);
}

#[test]
fn foreign_server_is_not_described_as_echod() {
    let run = run(&format!("{QUICK} --connect {} busy-poll", serve_with(|_, stream| echo(stream, |_, _| ()))));
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert!(run.stdout.contains("already running, process unknown"), "{}", run.stdout);
    assert!(!run.stdout.contains("echod-50us") && !run.stdout.contains("awake"), "{}", run.stdout);
}

#[test]
fn output_fits_100_columns() {
    let run = run(&format!(
        "{QUICK} --full --scenario ping-pong,poll-1000,churn,stream,beside-bulk-8,idle --peers bare-epoll,busy-epoll"
    ));
    assert_eq!(run.status, 0, "{}", run.stderr);
    for line in run.stdout.lines() {
        // Paths are as long as they are.
        assert!(line.chars().count() <= 100 || line.contains("Results: "), "{line}");
    }
}

#[test]
fn every_peer_echoes() {
    let run = run("--rounds 1 --seconds 0.05 --scenario bulk,churn");
    assert_eq!(run.status, 0, "{}", run.stderr);
    for (scenario, servers) in [(0, 8), (1, 7)] {
        let measured = run.results["scenarios"][scenario]["servers"].as_array().map_or(0, Vec::len);
        // Without Python there are one or two fewer, which the run reports.
        let missing = run.results["missing_servers"].as_array().map_or(0, Vec::len);
        assert!(measured + missing.min(scenario + 1) == servers, "{measured} servers");
        assert!(missing == 0 || env::var_os("ECHOD_REQUIRE_TOOLS").is_none(), "{}", run.results["missing_servers"]);
    }
}

// ---- the rungs of examples/ladder ----

/// Returns the names of the servers in the first scenario.
fn measured(run: &Run) -> Vec<&str> {
    let servers = run.results["scenarios"][0]["servers"].as_array().expect("a list");
    servers.iter().filter_map(|server| server["name"].as_str()).collect()
}

#[test]
fn ladder_means_all_rungs() {
    // With one client, all of them echo.
    let all = run("--peers ladder --scenario ping-pong --rounds 1 --seconds 0.05");
    assert_eq!(all.status, 0, "{}", all.stderr);
    assert_eq!(measured(&all), ["echod", "rung-1", "rung-2", "rung-3", "rung-4", "rung-5", "rung-6"]);
    let some = run("--peers rung-4,bare-epoll --scenario ping-pong --rounds 1 --seconds 0.05");
    assert_eq!(measured(&some), ["bare-epoll", "echod", "rung-4"], "{}", some.stderr);
    for run in [&all, &some] {
        for server in run.results["scenarios"][0]["servers"].as_array().expect("a list") {
            assert!(server["figures"]["cpu_per_echo"]["median"].as_f64().is_some_and(|cpu| cpu > 1e-6), "{server}");
        }
    }
}

#[test]
fn failing_rungs_are_reported_and_leave_nothing() {
    // Rung 1 serves only the first client, rung 3 reads only the beginning of a message. Each fails once, not in each round.
    let arguments = "--peers rung-1,rung-3,rung-6 --connections 3 --message 65536 --rounds 3 --seconds 0.05";
    let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
    let mark = format!("ECHOD_BENCH_CHECK=ladder-{}", std::process::id());
    let began = Instant::now();
    let run = run_in_shell(&format!("export {mark};"), &words);
    let seconds = began.elapsed().as_secs();
    assert_eq!(run.status, 1, "{}", run.stderr);
    // How much of the message rung 3 reads depends on how many events it causes.
    for (rung, reason) in [("rung-1", "0 of 65536 bytes came back, then nothing for 5 s"), ("rung-3", "")] {
        let expected = format!("FAILED {rung}: connection 2: {reason}");
        assert!(run.stdout.contains(&expected), "{expected}: {}", run.stdout);
        assert!(run.stdout.lines().any(|line| line.starts_with(rung) && line.contains(" – ")), "{}", run.stdout);
    }
    assert!(run.stdout.contains("\nrung-6 ") && !run.stdout.contains("FAILED rung-6"), "{}", run.stdout);
    assert!(seconds < 40, "{seconds} s");
    // Servers inherit the environment.
    let is_marked = |process: &PathBuf| {
        let environment = fs::read(process.join("environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    let processes = fs::read_dir("/proc").expect("a directory").flatten().map(|entry| entry.path());
    let left: Vec<PathBuf> = processes.filter(is_marked).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn ladder_is_drawn_with_failures_and_gaps() {
    let output = directory();
    let run = Command::new("timeout")
        .args(["--kill-after=1", "60"])
        .arg(executable())
        .args(["--peers=rung-1,rung-6", "--scenario=fifty,beside-bulk-64,idle", "--rounds=1", "--seconds=0.05"])
        .arg(format!("--output={}", output.display()))
        .output()
        .expect("the benchmark");
    assert_eq!(run.status.code(), Some(1), "rung 1 fails: {}", String::from_utf8_lossy(&run.stderr));
    let picture = fs::read_to_string(output.join("ladder.svg")).expect("a picture");
    let count = |text: &str| picture.matches(&format!(">{text}</text>")).count();
    // Three loads each: rung 1 fails, and four rungs are not measured.
    assert_eq!((count("fails"), count("–")), (3, 12), "{picture}");
    assert_eq!(count("6 ready queue"), 1, "{picture}");
    assert!(picture.contains(" bytes</text>"), "{picture}");
    assert!(fs::read_to_string(output.join("index.html")).expect("a page").contains("What each rung"), "in the page");
    let _ = fs::remove_dir_all(output);
}

// ---- wrong options, and what must not hang ----

#[test]
fn wrong_options_have_status_2() {
    for rate in ["0", "-5", "nan", "inf", "1e300"] {
        assert_rejected(&format!("--rate={rate}"), "--rate");
    }
    for (arguments, complaint) in [
        ("--seconds nan", "not a finite number"),
        ("--scenario nonsense", "no scenario 'nonsense'"),
        ("nonsense", "no scenario matches 'nonsense'"),
        ("--peers nonsense", "no peer 'nonsense'"),
        ("--peers rung-7", "rung-6, ladder"),
        ("--pid 1", "--connect"),
        ("--connect localhost", "missing port"),
        ("--command mine", "expected LABEL=COMMAND"),
        ("--command mine=server", "neither {port} nor {socket}"),
        ("--command tokio=server:{port}", "already in use"),
        ("--reference missing", "no server 'missing'"),
        ("--scenario fifty --connections 3", "does not go with scenario 'fifty'"),
        ("--connections 3 --rate 5 --in-flight 2", "use only one of them"),
        ("--cores 0", "two core numbers"),
        ("--cores 0,9999", "may not use core 9999"),
    ] {
        assert_rejected(arguments, complaint);
    }
}

#[test]
fn silent_build_fails_after_its_start_timeout() {
    let script = directory().join("silent");
    fs::write(&script, "#!/bin/sh\nexec sleep 60\n").expect("a script");
    fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("executable");
    let run = run(&format!("{QUICK} --scenario ping-pong --other {}", script.display()));
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("other: no \"listening on\" line within 10 s"), "{}", run.stderr);
    assert!(run.stdout.contains("\nechod "), "the other server should still be reported: {}", run.stdout);
}

#[test]
fn unwritable_output_fails_before_measuring() {
    let run = run_in_shell("", &["--output=/proc/nowhere".to_owned(), "--connections=1".to_owned()]);
    assert_eq!(run.status, 2, "clap rejects a second --output: {}", run.stderr);
    let output = Command::new(executable()).args(["--output=/proc/nowhere", "--connections=1"]).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write to /proc/nowhere"));
}

/// Starts a long run, and returns it with a process `echod` whose parent is called `parent`.
#[allow(clippy::zombie_processes, reason = "the caller waits for it")]
fn long_run(arguments: &[&str], parent: &str) -> (Child, Pid, PathBuf) {
    let directory = directory();
    let mut child = Command::new(executable())
        .args(["--peers=none", "--scenario=ping-pong"])
        .args(arguments)
        .arg(format!("--output={}", directory.display()))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the benchmark");
    let name = |pid: u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
    let parent_of = |pid: u32| -> Option<u32> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    let is_server = |pid: &u32| name(*pid) == "echod" && parent_of(*pid).is_some_and(|it| name(it) == parent);
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        if let Some(server) = crate::server::with_descendants(child.id()).into_iter().find(is_server) {
            return (child, Pid::from_raw(server.cast_signed()).expect("a pid"), directory);
        }
        if Instant::now() > deadline {
            child.kill().expect("SIGKILL");
            child.wait().expect("reaped");
            panic!("the server does not start");
        }
        thread::sleep(Duration::from_millis(2)); // Nothing signals the start of a grandchild.
    }
}

fn assert_gone(process: Pid) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let path = format!("/proc/{}/stat", process.as_raw_nonzero());
    while fs::read_to_string(&path).is_ok_and(|stat| !stat.contains(") Z ")) {
        assert!(Instant::now() < deadline, "the server outlives the benchmark");
        thread::sleep(Duration::from_millis(5)); // It is not our child: waitpid(2) cannot wait for it.
    }
}

#[test]
fn servers_die_with_a_killed_benchmark() {
    let name = executable().file_name().and_then(|name| name.to_str()).expect("a name");
    let parent: String = name.chars().take(15).collect(); // TASK_COMM_LEN
    let (mut child, server, directory) = long_run(&["--rounds=1", "--seconds=30"], &parent);
    child.kill().expect("SIGKILL");
    child.wait().expect("reaped");
    assert_gone(server);
    let _ = fs::remove_dir_all(directory);
}

#[test]
fn servers_die_with_a_terminated_benchmark() {
    // The server is a child of a shell, which the kernel kills with the benchmark; its own children it does not.
    let echod = env!("CARGO_BIN_EXE_echod");
    let command = format!("--command=forked=sh -c '{echod} -q --listen 127.0.0.1:{{port}} & wait'");
    let (mut child, server, directory) = long_run(&["--rounds=100", "--seconds=0.3", &command], "sh");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("SIGTERM");
    assert_eq!(child.wait().expect("reaped").code(), Some(128 + 15));
    assert_gone(server);
    let mut message = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut message).expect("UTF-8");
    assert!(message.contains("interrupted; finished scenarios are in"), "{message}");
    let _ = fs::remove_dir_all(directory);
}

// ---- any server ----

#[test]
fn commands_appear_beside_the_peers() {
    let echod = env!("CARGO_BIN_EXE_echod");
    let mut words: Vec<String> = format!("{QUICK} --connections 2").split_whitespace().map(str::to_owned).collect();
    words.push(format!("--command=by-port={echod} -q --listen 127.0.0.1:{{port}}"));
    words.push(format!("--command=by-socket=sh -c '{echod} -q --listen unix:{{socket}}; true'"));
    words.push("--reference=by-port".to_owned());
    let run = run_in_shell("", &words);
    assert_eq!(run.status, 0, "{}", run.stderr);
    let servers = run.results["scenarios"][0]["servers"].as_array().expect("a list").clone();
    let names: Vec<&str> = servers.iter().filter_map(|server| server["name"].as_str()).collect();
    assert_eq!(names, ["echod", "by-port", "by-socket"]);
    for server in &servers {
        // The shell's child is the server: its CPU time counts.
        assert!(server["figures"]["cpu_per_echo"]["median"].as_f64().is_some_and(|cpu| cpu > 1e-6), "{server}");
    }
    assert!(run.stdout.contains("vs by-port"), "{}", run.stdout);
}

#[test]
fn command_that_exits_is_reported_with_its_message() {
    let mut words: Vec<String> = format!("{QUICK} --connections 1").split_whitespace().map(str::to_owned).collect();
    words.push("--command=broken=sh -c 'echo no such luck >&2; exit 3' {port}".to_owned());
    let run = run_in_shell("", &words);
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stderr.contains("broken: it exited: exit status: 3: no such luck"), "{}", run.stderr);
}

#[test]
fn running_server_is_measured_with_its_process() {
    let mut server = Command::new(env!("CARGO_BIN_EXE_echod"))
        .args(["-q", "--listen", "localhost:0"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("echod");
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
    let port = line.trim().rsplit_once(':').expect("an address").1;
    // By a bare port, which means localhost.
    let run = run(&format!("{QUICK} --connect {port} --pid {} --scenario fifty,idle", server.id()));
    server.kill().expect("SIGKILL");
    server.wait().expect("reaped");
    assert_eq!(run.status, 0, "{}", run.stderr);
    let cpu = &run.results["scenarios"][0]["servers"][0]["figures"]["cpu_per_echo"]["median"];
    assert!(cpu.as_f64().is_some_and(|cpu| cpu > 1e-6), "{cpu}");
    assert!(run.results["scenarios"][1]["servers"][0]["figures"]["bytes_per_connection"]["median"].is_number());
}

#[test]
fn unreachable_server_and_missing_process_fail() {
    let refused = run(&format!("{QUICK} --connect 127.0.0.1:1"));
    assert_eq!(refused.status, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("--connect: 127.0.0.1:1: Connection refused"), "{}", refused.stderr);
    let address = serve_with(|_, stream| echo(stream, |_, _| ()));
    // Larger than any process id: /proc/sys/kernel/pid_max is at most 4,194,304.
    let missing = run(&format!("{QUICK} --connect {address} --pid 4194305"));
    assert_eq!(missing.status, 1, "{}", missing.stderr);
    assert!(missing.stderr.contains("--pid: process 4194305 does not exist"), "{}", missing.stderr);
}

#[test]
fn unix_socket_is_measured() {
    let path = directory().join("socket");
    let listener = UnixListener::bind(&path).expect("a socket");
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("accepted");
            thread::spawn(move || {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(count @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..count]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    let run =
        run(&format!("{QUICK} --connect unix:{} --scenario fifty,bulk,stream,churn,beside-bulk-8", path.display()));
    assert_eq!(run.status, 0, "{}{}", run.stdout, run.stderr);
    let scenarios = run.results["scenarios"].as_array().expect("a list");
    assert_eq!(scenarios.len(), 5);
}

#[test]
fn failing_server_does_not_stop_the_others() {
    let address = serve_with(|_, stream| echo(stream, |position, bytes| bytes[0] ^= u8::from(position > 1000)));
    let run = run(&format!("--rounds 1 --seconds 0.05 --connect {address} --peers bare-epoll --scenario fifty,churn"));
    assert_eq!(run.status, 1, "{}", run.stderr);
    assert!(run.stdout.contains("FAILED remote: connection"), "{}", run.stdout);
    assert!(run.stdout.contains("\nbare-epoll "), "{}", run.stdout);
    assert_eq!(run.results["scenarios"].as_array().map(Vec::len), Some(2));
}

#[test]
fn slow_server_extends_the_window() {
    let address = serve_with(|_, stream| echo(stream, |_, _| thread::sleep(Duration::from_millis(150))));
    let run = run(&format!("{QUICK} --connect {address} --connections 1"));
    assert_eq!(run.status, 0, "{}", run.stderr);
    let p50 = &run.results["scenarios"][0]["servers"][0]["figures"]["latency_p50"]["median"];
    assert!(p50.as_f64().is_some_and(|seconds| seconds > 0.14), "{p50}");
}

#[test]
fn filter_selects_by_part_of_the_name() {
    let run = run(&format!("poll-20 {QUICK} --bench"));
    assert_eq!(run.status, 0, "{}", run.stderr);
    assert_eq!(run.results["scenarios"][0]["name"], "poll-20000");
    assert_eq!(run.results["scenarios"].as_array().map(Vec::len), Some(1));
}

// ---- two builds ----

#[test]
fn saved_build_is_compared_side_by_side() {
    let output = directory();
    let bench = |arguments: &str| {
        let run = Command::new("timeout")
            .args(["--kill-after=1", "60"])
            .arg(executable())
            .args(["--peers=none", "--seconds=0.05", "--connections=2"])
            .args(arguments.split_whitespace())
            .arg(format!("--output={}", output.display()))
            .output()
            .expect("timeout");
        (
            run.status.code(),
            String::from_utf8(run.stdout).expect("UTF-8"),
            String::from_utf8(run.stderr).expect("UTF-8"),
        )
    };
    let (status, stdout, stderr) = bench("--rounds 1 --save-baseline before");
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stdout.contains("saved as baseline 'before'"), "{stdout}");
    let (status, stdout, stderr) = bench("--rounds 8 --baseline before");
    assert_eq!(status, Some(0), "{stderr}");
    assert_eq!(fs::read_dir(output.join("earlier")).expect("results of the first run").count(), 1);
    assert!(stdout.contains("\nbefore  ") && stdout.contains("saved build, commit "), "{stdout}");
    assert!(stdout.contains("compared with baseline 'before'"), "{stdout}");
    assert!(stdout.contains("cpu_per_echo") && stdout.contains("no change"), "{stdout}");

    let (status, _, stderr) = bench("--baseline nonsense");
    assert_eq!(status, Some(2));
    assert!(stderr.contains("--baseline: cannot read 'nonsense'"), "{stderr}");
    let _ = fs::remove_dir_all(output);
}

#[test]
fn figure_worse_than_allowed_has_status_3() {
    let output = directory();
    let saved = output.join("baselines/before");
    fs::create_dir_all(&saved).expect("a directory");
    let address = serve_with(|_, stream| echo(stream, |_, _| ()));
    for (saved_p50_s, status, verdict) in [(1e-9, 3, "SLOWER"), (1e3, 0, "faster")] {
        let round = serde_json::json!({ "figures": { "latency_p50": saved_p50_s } });
        let server = serde_json::json!({ "name": "remote", "rounds": vec![round; 5] });
        let results = serde_json::json!({ "scenarios": [{ "name": "custom", "servers": [server] }] });
        fs::write(saved.join("results.json"), results.to_string()).expect("written");
        let run = Command::new(executable())
            .args(["--rounds=5", "--seconds=0.05", "--connections=1", "--baseline=before", "--fail-slower=10"])
            .args([format!("--connect={address}"), format!("--output={}", output.display())])
            .output()
            .expect("the benchmark");
        let stdout = String::from_utf8(run.stdout).expect("UTF-8");
        assert_eq!(run.status.code(), Some(status), "{stdout}");
        assert!(stdout.lines().any(|line| line.contains("latency_p50") && line.ends_with(verdict)), "{stdout}");
    }
    let _ = fs::remove_dir_all(output);
}

// ---- records ----

#[test]
fn records_agree_with_each_other() {
    let output = directory();
    let run = Command::new(executable())
        .args([
            "--rounds=2",
            "--seconds=0.05",
            "--peers=bare-epoll",
            "--scenario=fifty,beside-bulk-8,idle",
            "--connections",
        ])
        .arg("2")
        .arg(format!("--output={}", output.display()))
        .output()
        .expect("the benchmark");
    assert_eq!(run.status.code(), Some(2), "the names of two of these scenarios state their number of connections");
    let run = Command::new(executable())
        .args(["--rounds=2", "--seconds=0.05", "--peers=bare-epoll", "--scenario=fifty,beside-bulk-8,idle"])
        .arg(format!("--output={}", output.display()))
        .output()
        .expect("the benchmark");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let read = |name: &str| fs::read_to_string(output.join(name)).expect(name);
    let results: Value = serde_json::from_str(&read("results.json")).expect("JSON");
    assert_eq!(results["schema_version"], 2);
    let echod = &results["scenarios"][0]["servers"][1];
    assert_eq!(echod["name"], "echod");

    // The median can be computed again from the histogram of a round.
    let round = &echod["rounds"][0];
    let counts: Vec<(f64, u64)> = serde_json::from_value(round["latency_histogram_ns"].clone()).expect("pairs");
    let total: u64 = counts.iter().map(|(_, count)| count).sum();
    let mut seen = 0;
    let (median, _) = counts
        .iter()
        .find(|(_, count)| {
            seen += count;
            2 * seen >= total
        })
        .expect("not empty");
    let stated = round["figures"]["latency_p50"].as_f64().expect("a number") * 1e9;
    assert!((median / stated - 1.0).abs() < 0.01, "{median} and {stated}");

    // The CSV has the same figure.
    let csv = read("results.csv");
    let line = csv.lines().find(|line| line.starts_with("fifty,echod,1,") && line.contains(",latency_p50,s,"));
    let value: f64 = line.and_then(|line| line.rsplit(',').next()?.parse().ok()).expect("a line");
    assert!((value * 1e9 / stated - 1.0).abs() < 1e-9, "{value}");
    assert!(read("histograms/fifty.echod.hgrm").contains("#[Max     = "));

    let page = read("index.html");
    for part in ["id=\"fifty\"", "id=\"beside-bulk-8\"", "data:image/svg+xml,", ">new conn<"] {
        assert!(page.contains(part), "{part}");
    }
    assert!(!page.contains("<script") && !page.contains("src=\"http") && !page.contains("url(http"), "no network");
    let _ = fs::remove_dir_all(output);
}
