//! The server under test, if it is started by us: `--spawn`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use crate::peer::Outcome;

/// How long a server may take to start. Long, because loading an interpreter on a busy machine
/// takes seconds.
const START: Duration = Duration::from_secs(20);

/// A command that starts a server. `{port}` in it stands for the port to listen on, where 0 is any
/// free one.
pub struct Launcher {
    pub command: String,
}

impl Launcher {
    /// Starts the server on a free port.
    pub fn start(&self) -> Outcome<Server> {
        self.start_with("", 0)
    }

    /// Starts the server after a command of the shell, such as `ulimit -n 64;`.
    pub fn start_with(&self, setup: &str, port: u16) -> Outcome<Server> {
        let command = self.command.replace("{port}", &port.to_string());
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("{setup} exec {command}")]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = shell.spawn().map_err(|error| format!("cannot start sh: {error}"))?;
        let stdout = child.stdout.take().expect("stdout is piped");
        // From here on the child is killed if anything fails.
        let mut server = Server { child, address: SocketAddr::from(([0, 0, 0, 0], 0)) };
        // A thread reads, because this wait has to end and a read from a pipe does not.
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let _ = sender.send(line); // The receiver is gone after the first line.
            }
        });
        let Ok(line) = receiver.recv_timeout(START) else {
            return Err("the server does not start".into());
        };
        let address = line.strip_prefix("listening on tcp://").and_then(|address| address.parse().ok());
        server.address = address.ok_or_else(|| format!("the server prints {line:?}, not its address"))?;
        Ok(server)
    }
}

/// A server that we have started. Killed and reaped when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
}

impl Server {
    pub fn signal(&self, signal: Signal) -> Outcome {
        kill_process(Pid::from_child(&self.child), signal).map_err(|error| format!("the server has ended: {error}"))
    }

    /// Returns whether the server has more than one thread. Where that cannot be seen: yes.
    pub fn has_threads(&self) -> bool {
        fs::read_dir(format!("/proc/{}/task", self.child.id())).map_or(true, |threads| threads.count() > 1)
    }

    /// Stops the process (SIGSTOP) while `action` runs. The kernel goes on accepting connections,
    /// bytes and FINs for it, and all of them together are one event when it continues.
    pub fn held<T>(&self, action: impl FnOnce() -> Outcome<T>) -> Outcome<T> {
        self.signal(Signal::STOP)?;
        let stopped = waitid(
            WaitId::Pid(Pid::from_child(&self.child)),
            WaitIdOptions::STOPPED | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT,
        );
        let stopped = stopped.ok().flatten().is_some_and(|status| status.stopped());
        let outcome = if stopped { action() } else { Err("the server has ended".into()) };
        self.signal(Signal::CONT)?;
        outcome
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
