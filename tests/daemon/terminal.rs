//! stderr and stdout on a terminal: one that is not read, belongs to another user, or stops background processes.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use rustix::process::{Pid, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};

use crate::support::{Address, Client, Daemon, DaemonBuilder, Directory, Signal, eventually, skip_missing, unix};

/// Returns the two ends of a new terminal. What is written to the second one is read from the first.
fn terminal() -> (OwnedFd, OwnedFd) {
    let open = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(open).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let terminal = ioctl_tiocgptpeer(&master, open).unwrap();
    (master, terminal)
}

/// Returns whether this command can be run here.
fn can_run(command: &[&str]) -> bool {
    let mut attempt = Command::new(command[0]);
    attempt.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    attempt.status().is_ok_and(|status| status.success())
}

/// Starts a daemon whose stderr is a terminal that is not read, and logs far more than the terminal buffers (4 KiB and a bit).
#[track_caller]
fn assert_serves_with_stuck_terminal(builder: DaemonBuilder) {
    let (_master, terminal) = terminal();
    let mut daemon = builder.stderr(terminal).start();
    for round in 0..400 {
        daemon.connect().echo(format!("round {round}").as_bytes());
    }
    daemon.signal(Signal::USR1);
    let client = daemon.connect();
    client.echo(b"still served");
    daemon.close_and_terminate(client);
}

#[test]
fn unread_terminal_does_not_block_the_daemon() {
    assert_serves_with_stuck_terminal(Daemon::with(&["-v"]));
}

#[test]
fn unread_terminal_without_proc_does_not_block_the_daemon() {
    let script = "mount -t tmpfs none /proc && exec \"$@\"";
    let wrapper = ["unshare", "--mount", "sh", "-c", script, "sh"];
    if !can_run(&[&wrapper[..], &["true"]].concat()) {
        return skip_missing("root and unshare, for a mount namespace without /proc");
    }
    assert_serves_with_stuck_terminal(Daemon::with(&["-v"]).through(&wrapper));
}

/// Returns a shell script that executes a copy of the daemon as another user, who may not be allowed to enter the directory of
/// the original.
fn as_another_user(directory: &Directory) -> Option<String> {
    let other_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    if !can_run(&[&other_user[..], &["true"]].concat()) {
        return None;
    }
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.join("echod");
    let binary = std::env::var_os("ECHOD").unwrap_or_else(|| env!("CARGO_BIN_EXE_echod").into());
    fs::copy(binary, &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    Some(format!("shift; exec {} {} \"$@\"", other_user.join(" "), copy.display()))
}

#[test]
fn unread_terminal_of_another_user_does_not_block_the_daemon() {
    let directory = Directory::new();
    let Some(script) = as_another_user(&directory) else {
        return skip_missing("root and setpriv, to start the daemon as another user");
    };
    assert_serves_with_stuck_terminal(Daemon::with(&["-v"]).shell(&script));
}

#[test]
fn terminal_of_another_user_gets_every_line() {
    let directory = Directory::new();
    let Some(script) = as_another_user(&directory) else {
        return skip_missing("root and setpriv, to start the daemon as another user");
    };
    let (master, terminal) = terminal();
    let mut daemon = Daemon::with(&["-v"]).shell(&script).stderr(terminal).start();
    let client = daemon.connect();
    client.echo(b"hello");
    daemon.close_and_terminate(client);
    let log = read_available(&master);
    for part in ["at most", "connection 1 from", "finished", "SIGTERM received", "stopped; "] {
        assert!(log.contains(part), "expected {part:?} in {log:?}");
    }
}

#[test]
fn startup_error_reaches_the_terminal_of_another_user() {
    let directory = Directory::new();
    let Some(script) = as_another_user(&directory) else {
        return skip_missing("root and setpriv, to start the daemon as another user");
    };
    let (master, terminal) = terminal();
    let finished = Daemon::with(&["--listen", "192.0.2.1:0"]).shell(&script).stderr(terminal).run();
    assert_eq!(finished.code, 1);
    let text = read_available(&master);
    assert!(text.starts_with("echod: cannot listen on 192.0.2.1:0: "), "{text:?}");
}

/// Returns everything that has been written to the terminal. The last writer must have closed it.
fn read_available(master: &OwnedFd) -> String {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = rustix::io::read(master, &mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    String::from_utf8(bytes).unwrap()
}

/// Kills a process that the test has started indirectly, when the test ends.
struct KillOnDrop(Pid);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        let _ = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn background_daemon_survives_stty_tostop() {
    // A job of its own (set -m), in the background of a session whose terminal stops background jobs that write to it.
    if !can_run(&["setsid", "--version"]) || !can_run(&["bash", "-c", "true"]) {
        return skip_missing("setsid and bash");
    }
    let directory = Directory::new();
    let (path, pid) = (directory.join("echo.sock"), directory.join("pid"));
    let (_master, terminal) = terminal();
    let script = "set -m; stty tostop; \"$@\" & echo $! >$PID.new && mv $PID.new $PID; wait $!; exit $?";
    let binary = std::env::var_os("ECHOD").unwrap_or_else(|| env!("CARGO_BIN_EXE_echod").into());
    let standard = || Stdio::from(terminal.as_fd().try_clone_to_owned().unwrap());
    let mut session = Command::new("setsid");
    session.args(["--ctty", "--wait", "bash", "-c", script, "bash"]).arg(binary).args(["-v", "-l", &unix(&path)]);
    let mut session = session.env("PID", &pid).stdin(standard()).stdout(standard()).stderr(standard()).spawn().unwrap();
    let daemon: i32 = eventually("the daemon is started", || fs::read_to_string(&pid).ok()?.trim().parse().ok());
    let daemon = KillOnDrop(Pid::from_raw(daemon).unwrap());
    let address = Address::Unix(path.clone());
    let client = eventually("the daemon listens", || Client::try_connect(&address).ok());
    client.echo(b"not stopped");
    kill_process(daemon.0, Signal::TERM).unwrap();
    client.expect_fin();
    drop(client);
    let status = session.wait().unwrap();
    assert_eq!(status.code(), Some(0), "{status}");
}
