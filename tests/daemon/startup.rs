//! State that the parent process leaves behind, and signals that arrive before the daemon serves.

use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Client, Daemon, Directory, Signal, skip_missing, unix, wait_until};

/// Returns whether `env` of coreutils can block a signal before it executes a program.
fn env_blocks_signals() -> bool {
    let mut env = Command::new("env");
    env.args(["--block-signal=TERM", "true"]).stdout(Stdio::null()).stderr(Stdio::null());
    env.status().is_ok_and(|status| status.success())
}

#[test]
fn signals_blocked_by_the_parent_still_work() {
    if !env_blocks_signals() {
        return skip_missing("env --block-signal");
    }
    // --default-signal, in case that the tests run under nohup.
    let block = ["env", "--default-signal=HUP", "--block-signal=TERM,INT,HUP,USR1"];
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut daemon = Daemon::with(&[]).through(&block).start();
        daemon.signal(Signal::USR1);
        daemon.wait_for_log_text("connections: ");
        daemon.signal(signal);
        daemon.expect_success();
    }
}

#[test]
fn every_blocked_signal_is_unblocked_after_startup() {
    if !env_blocks_signals() {
        return skip_missing("env --block-signal");
    }
    let daemon = Daemon::with(&[]).through(&["env", "--block-signal"]).start();
    let mask = u64::from_str_radix(&daemon.status_text("SigBlk"), 16).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::USR1] {
        assert_eq!(mask >> (signal.as_raw() - 1) & 1, 0, "{signal:?} is blocked: {mask:x}");
    }
}

/// Returns a wrapper that executes a program where no name server ever answers: in a network namespace in which packets to the
/// name server are dropped, and with a resolv.conf of its own. `None` without the right to make one.
fn without_name_server(directory: &Directory) -> Option<Vec<String>> {
    let resolv_conf = directory.join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 192.0.2.1\n").unwrap();
    let script = format!(
        "ip link set lo up && ip route add 192.0.2.0/24 dev lo && mount --bind {} /etc/resolv.conf && exec \"$@\"",
        resolv_conf.display()
    );
    let wrapper: Vec<String> =
        ["env", "--default-signal=HUP", "unshare", "--net", "--mount", "sh", "-c", &script, "sh"]
            .into_iter()
            .map(String::from)
            .collect();
    let mut attempt = Command::new(&wrapper[0]);
    attempt.args(&wrapper[1..]).arg("true").stdout(Stdio::null()).stderr(Stdio::null());
    attempt.status().is_ok_and(|status| status.success()).then_some(wrapper)
}

#[test]
fn signal_during_name_resolution_exits_at_once() {
    let directory = Directory::new();
    let Some(wrapper) = without_name_server(&directory) else {
        return skip_missing("root, unshare and ip, for a network without a name server");
    };
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let path = directory.join("echo.sock");
        let arguments = ["-v", "--listen", &unix(&path), "--listen", "host.example:9999"];
        let mut daemon = Daemon::with(&arguments).through(&wrapper).spawn();
        // The first address is bound, so the second one is being resolved, or about to be.
        wait_until("the Unix socket is bound", || path.exists());
        daemon.signal(Signal::USR1);
        daemon.wait_for_log_text("connections: 0 accepted");
        daemon.expect_running();
        let start = Instant::now();
        daemon.signal(signal);
        daemon.expect_success();
        assert!(start.elapsed() < Duration::from_secs(2), "{signal:?} ended it after {:?}", start.elapsed());
        assert!(!path.exists(), "the file of the Unix socket should be removed");
        assert_eq!(daemon.whole_stdout(), "");
    }
}

#[test]
fn check_fails_in_time_without_name_server() {
    let directory = Directory::new();
    let Some(wrapper) = without_name_server(&directory) else {
        return skip_missing("root, unshare and ip, for a network without a name server");
    };
    let wrapper: Vec<&str> = wrapper.iter().map(String::as_str).collect();
    let start = Instant::now();
    let finished = Daemon::with(&["--check", "host.example:9999"]).without_listen().through(&wrapper).run();
    assert_eq!((finished.code, finished.stdout.as_str()), (1, ""));
    assert_eq!(finished.stderr, "echod: check timed out: no answer from a name server\n");
    assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
}

#[test]
fn name_is_still_resolved_and_served() {
    let daemon = Daemon::start(&["--listen", "localhost:0", "--listen", "127.0.0.1:0"]);
    for address in daemon.addresses() {
        Client::connect(address).echo(b"resolved in a thread");
    }
    wait_until("the thread has ended", || daemon.status_field("Threads") == 1);
}
