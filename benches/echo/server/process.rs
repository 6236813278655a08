//! The process of a server, which never outlives the benchmark.
//!
//! A server is started through the benchmark's own executable ([`launch`]), which asks the kernel to kill it when the
//! benchmark dies, even by SIGKILL, and then executes the server in its place. It leads a process group, so that its own
//! children are killed with it when the benchmark ends normally or by a signal.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::{env, thread};

use rustix::process::{Pid, Signal, getppid, kill_process_group, set_parent_process_death_signal, setpgid};

use super::Cores;
use crate::generator::Result;

/// The hidden first argument with which the benchmark executes a server.
pub const LAUNCH: &str = "--launch";

/// How much of the end of a server's standard error is kept for an error message.
const KEPT_STDERR_BYTES: usize = 2048;

/// How many lines of a server's standard output may wait to be read; further ones are dropped.
const KEPT_LINES: usize = 64;

/// The process groups of all running servers.
static GROUPS: Mutex<Vec<Pid>> = Mutex::new(Vec::new());

/// Executes a server in place of this process: `--launch BENCHMARK_PID PROGRAM ARGUMENTS…`. Returns only on an error.
pub fn launch(arguments: &[OsString]) -> ExitCode {
    let error = match arguments {
        [parent, program, rest @ ..] => {
            let prepared = set_parent_process_death_signal(Some(Signal::KILL)).and_then(|()| setpgid(None, None));
            // If the benchmark has died already, no signal will arrive.
            let parent_is_alive = getppid().map(|pid| pid.to_string()) == parent.to_str().map(str::to_owned);
            match prepared {
                Ok(()) if parent_is_alive => format!(
                    "cannot start {}: {}",
                    PathBuf::from(program).display(),
                    Command::new(program).args(rest).exec()
                ),
                Ok(()) => "the benchmark has exited".to_owned(),
                Err(error) => format!("cannot prepare a process: {error}"),
            }
        }
        _ => "no program to start".to_owned(),
    };
    eprintln!("{error}");
    ExitCode::FAILURE
}

/// Returns the beginning of a command that is killed when the benchmark dies.
pub fn guarded(program: impl AsRef<OsStr>) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.args([LAUNCH.to_owned(), std::process::id().to_string()]).arg(program);
    Ok(command)
}

/// Kills all servers and their children. For a benchmark that is about to exit.
pub fn kill_all() {
    for group in GROUPS.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
        let _ = kill_process_group(group, Signal::KILL); // It may have exited already.
    }
}

/// A running program. Dropping it kills it, with its children.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
    stderr: Arc<Mutex<VecDeque<u8>>>,
}

impl Process {
    /// Starts a program on the server's core.
    pub fn start(command: &[OsString], cores: &Cores) -> Result<Process> {
        // The child inherits the core of this thread. Set after the start, it could miss threads of the child.
        cores.pin_to_server()?;
        let child = guarded(&command[0])?
            .args(&command[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        cores.pin_to_generator()?;
        let mut child = child.map_err(|error| format!("cannot start a process: {error}"))?;
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).push(Pid::from_child(&child));
        let (sender, lines) = sync_channel(KEPT_LINES);
        let stdout = child.stdout.take().expect("stdout is piped");
        thread::spawn(move || read_lines(stdout, &sender));
        let kept = Arc::new(Mutex::new(VecDeque::new()));
        let stderr = child.stderr.take().expect("stderr is piped");
        thread::spawn({
            let kept = Arc::clone(&kept);
            move || keep_end(stderr, &kept)
        });
        Ok(Process { child, lines, stderr: kept })
    }

    /// Returns the process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Returns the lines of its standard output.
    pub fn lines(&self) -> &Receiver<String> {
        &self.lines
    }

    /// Returns how the process exited and the end of its standard error, if it has exited.
    pub fn exit_status(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        Some(self.describe_exit(status))
    }

    /// Waits for a process that has closed its standard output. Returns as [`Process::exit_status`] does.
    pub fn wait_for_exit(&mut self) -> Option<String> {
        for _ in 0..100 {
            if let Some(exit) = self.exit_status() {
                return Some(exit);
            }
            thread::sleep(std::time::Duration::from_millis(10)); // waitpid(2) has no timeout.
        }
        None
    }

    fn describe_exit(&self, status: std::process::ExitStatus) -> String {
        thread::sleep(std::time::Duration::from_millis(20)); // Lets the reader of its standard error finish.
        let kept = self.stderr.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&kept.iter().copied().collect::<Vec<u8>>()).trim().to_owned();
        let last = text.lines().last().unwrap_or_default();
        if last.is_empty() { format!("it exited: {status}") } else { format!("it exited: {status}: {last}") }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.child);
        // It may have exited already; then the error has been reported. Without a group, it has not been executed yet.
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.kill();
        let _ = self.child.wait();
        GROUPS.lock().unwrap_or_else(PoisonError::into_inner).retain(|other| *other != group);
    }
}

/// Reads until the end, so that the server never blocks on a full pipe.
fn read_lines(stdout: impl Read, lines: &SyncSender<String>) {
    for line in BufReader::new(stdout).lines() {
        let Ok(line) = line else { return };
        let _ = lines.try_send(line);
    }
}

fn keep_end(mut stderr: impl Read, kept: &Mutex<VecDeque<u8>>) {
    let mut buffer = [0; 1024];
    while let Ok(count @ 1..) = stderr.read(&mut buffer) {
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(&buffer[..count]);
        let excess = kept.len().saturating_sub(KEPT_STDERR_BYTES);
        kept.drain(..excess);
    }
}
