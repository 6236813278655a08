//! The daemon as a process of its own: started, listened to, signalled, and never left behind.
//!
//! It is the one that Cargo has built for the test, or another that the environment variable `ECHOD` names: the
//! release build that is to be measured or packaged, say.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::process::{Pid, kill_process, pidfd_getfd, pidfd_open, prlimit};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, Resource, Rlimit, Signal};
use socket2::Socket;

use super::{Address, Client, TIMEOUT, wait_until};

/// How the daemon is to be started. Every choice has a default that suits most tests.
pub struct DaemonBuilder {
    wrapper: Vec<OsString>,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    listeners: Option<usize>,
    stdin: Stdio,
    stdout: Option<Stdio>,
    stderr: Option<Stdio>,
}

impl DaemonBuilder {
    /// One more argument, for those that no `&str` can hold.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> DaemonBuilder {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Leaves out the `--listen 127.0.0.1:0` that is given unless the arguments name another.
    pub fn without_listen(mut self) -> DaemonBuilder {
        if self.arguments.first().is_some_and(|first| first == "--listen=127.0.0.1:0") {
            self.arguments.remove(0);
        }
        self
    }

    /// How many `listening on` lines to wait for, where it is not one for each `--listen`.
    pub fn listeners(mut self, count: usize) -> DaemonBuilder {
        self.listeners = Some(count);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> DaemonBuilder {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon through a program that executes it in its own place, such as `prlimit --nofile=64`.
    pub fn through(mut self, wrapper: &[&str]) -> DaemonBuilder {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    /// Runs a line of shell, in which `exec "$@"` becomes the daemon.
    pub fn shell(self, script: &str) -> DaemonBuilder {
        self.through(&["sh", "-c", script, "sh"])
    }

    /// Soft and hard limit of descriptors.
    pub fn nofile(self, limit: u64) -> DaemonBuilder {
        self.through(&["prlimit", &format!("--nofile={limit}:{limit}")])
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> DaemonBuilder {
        self.stdin = stdin.into();
        self
    }

    /// Sends stdout elsewhere: [`Daemon::stdout`] stays empty then, and the test must know the address.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> DaemonBuilder {
        self.stdout = Some(stdout.into());
        self
    }

    /// Sends stderr elsewhere: [`Daemon::stderr`] stays empty then.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> DaemonBuilder {
        self.stderr = Some(stderr.into());
        self
    }

    /// Starts the daemon and returns once it says that it listens.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let listeners = self.listeners.unwrap_or_else(|| self.named_listeners().max(1));
        let mut daemon = self.spawn();
        daemon.addresses = daemon.wait_for_addresses(listeners);
        daemon
    }

    /// Starts the daemon and waits for nothing.
    #[track_caller]
    pub fn spawn(self) -> Daemon {
        let binary = std::env::var_os("ECHOD").unwrap_or_else(|| env!("CARGO_BIN_EXE_echod").into());
        let line: Vec<OsString> = self.wrapper.into_iter().chain([binary]).chain(self.arguments).collect();
        let mut command = Command::new(&line[0]);
        command.args(&line[1..]).envs(self.environment).stdin(self.stdin);
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped));
        command.stderr(self.stderr.unwrap_or_else(Stdio::piped));
        // What the surroundings of the test run set is not to reach the daemon.
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        if !command.get_envs().any(|(name, _)| name == "RUST_LOG") {
            command.env_remove("RUST_LOG");
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {line:?}: {error}"));
        let stdout = Collector::new(child.stdout.take());
        let stderr = Collector::new(child.stderr.take());
        Daemon { child, line, stdout, stderr, addresses: Vec::new() }
    }

    /// Runs to the end: for `--help`, and for starts that must fail.
    #[track_caller]
    pub fn run(self) -> RunOutput {
        let mut daemon = self.spawn();
        let status = daemon.wait_exit(TIMEOUT);
        let code = status.code().unwrap_or_else(|| panic!("killed by signal {:?}", status.signal()));
        RunOutput { code, stdout: daemon.stdout.whole(), stderr: daemon.stderr.whole() }
    }

    fn named_listeners(&self) -> usize {
        let names = |argument: &&OsString| {
            let text = argument.to_string_lossy();
            text.starts_with("--listen") || text.starts_with("-l") || text.starts_with("--metrics")
        };
        self.arguments.iter().filter(names).count()
    }
}

/// What a run that ended by itself has left.
#[derive(Debug)]
pub struct RunOutput {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running daemon. Killed and reaped when dropped; its log is shown when the test has failed.
pub struct Daemon {
    child: Child,
    line: Vec<OsString>,
    stdout: Collector,
    stderr: Collector,
    addresses: Vec<Address>,
}

impl Daemon {
    /// Starts the daemon with these arguments, on a free port of 127.0.0.1 unless they name another place, and
    /// returns once it says that it listens.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Daemon {
        Daemon::with(arguments).start()
    }

    /// The same, with more to choose before it starts.
    pub fn with(arguments: &[&str]) -> DaemonBuilder {
        let listens = arguments.iter().any(|argument| argument.starts_with("--listen") || argument.starts_with("-l"));
        let default = (!listens).then_some("--listen=127.0.0.1:0");
        DaemonBuilder {
            wrapper: Vec::new(),
            arguments: default.iter().chain(arguments).map(OsString::from).collect(),
            environment: Vec::new(),
            listeners: None,
            stdin: Stdio::null(),
            stdout: None,
            stderr: None,
        }
    }

    /// On a Unix socket of this path.
    #[track_caller]
    pub fn start_unix(path: &Path, arguments: &[&str]) -> Daemon {
        Daemon::with(&[&["--listen", &unix(path)], arguments].concat()).start()
    }

    /// The first address that the daemon listens on.
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// The first address, which is a TCP one.
    #[track_caller]
    pub fn tcp(&self) -> SocketAddr {
        match self.address() {
            Address::Tcp(address) => *address,
            other => panic!("{other} is no TCP address"),
        }
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Waits for `count` lines on stdout, each of them `listening on …`.
    #[track_caller]
    fn wait_for_addresses(&mut self, count: usize) -> Vec<Address> {
        let text = self.stdout.wait_for("`listening on` lines on stdout", |text| {
            (text.matches('\n').count() >= count).then(|| text.to_owned())
        });
        let address = |line: &str| line.strip_prefix("listening on ").and_then(Address::parse);
        text.lines().take(count).map(|line| address(line).unwrap_or_else(|| panic!("on stdout: {line:?}"))).collect()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("a process that can be signalled");
    }

    /// Stops the daemon where it is (SIGSTOP): the kernel goes on to take connections, bytes and FINs for it, and
    /// all that came meanwhile is one readiness event when it goes on.
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_until("the daemon stands still", || self.stat().starts_with('T'));
    }

    #[track_caller]
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for the end of the process.
    #[track_caller]
    pub fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = self.child.try_wait().expect("a child of ours") {
                return status;
            }
            assert!(start.elapsed() < deadline, "the daemon still runs after {deadline:?}");
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// The daemon ends by itself with status 0.
    #[track_caller]
    pub fn expect_success(&mut self) {
        let status = self.wait_exit(TIMEOUT);
        assert_eq!(status.code(), Some(0), "{status}");
    }

    /// Stops the daemon with SIGTERM; it ends with status 0.
    #[track_caller]
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.expect_success();
    }

    /// The peer says goodbye, and the daemon then stops at once.
    #[track_caller]
    pub fn close_and_terminate(&mut self, client: Client) {
        client.send_fin();
        client.expect_fin();
        self.terminate();
    }

    /// The exit status, if the daemon has ended by itself.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("a child of ours").and_then(|status| status.code())
    }

    #[track_caller]
    pub fn expect_running(&mut self) {
        let status = self.child.try_wait().expect("a child of ours");
        assert!(status.is_none(), "the daemon has ended: {status:?}");
    }

    /// What came on stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// What came on stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// All of stdout, once the process has ended.
    pub fn whole_stdout(&self) -> String {
        self.stdout.whole()
    }

    /// All of stderr, once the process has ended.
    pub fn whole_stderr(&self) -> String {
        self.stderr.whole()
    }

    /// Waits for a line of the log for which `wanted` is true, and returns it.
    #[track_caller]
    pub fn wait_for_log(&self, wanted: impl Fn(&str) -> bool) -> String {
        self.stderr.wait_for("a line in the log", |text| {
            let end = text.rfind('\n')?;
            text[..end].lines().find(|line| wanted(line)).map(str::to_owned)
        })
    }

    /// Waits until text of the log, which may span lines, contains `wanted`.
    #[track_caller]
    pub fn wait_for_log_text(&self, wanted: &str) {
        self.stderr.wait_for(wanted, |text| text.contains(wanted).then_some(()));
    }

    /// User and system time so far. The kernel counts it exactly and shows hundredths of a second.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let stat = self.stat();
        let field = |number: usize| -> u64 {
            // proc_pid_stat(5): the state, which `stat` begins with, is field 3.
            stat.split_ascii_whitespace().nth(number - 3).and_then(|field| field.parse().ok()).expect("a number")
        };
        Duration::from_millis((field(14) + field(15)) * 10) // USER_HZ is 100 wherever Linux runs.
    }

    /// The CPU time that passes while nothing is to be done. Sleeping is the measurement here, not a way to wait.
    #[track_caller]
    pub fn cpu_time_during(&self, span: Duration) -> Duration {
        let before = self.cpu_time();
        thread::sleep(span);
        self.cpu_time() - before
    }

    /// How often the daemon has gone to sleep. It has not woken while this stands still.
    #[track_caller]
    pub fn sleep_count(&self) -> u64 {
        self.status_field("voluntary_ctxt_switches")
    }

    /// Resident memory that is the daemon's own (heap, stack), in bytes.
    #[track_caller]
    pub fn memory(&self) -> usize {
        self.status_field("RssAnon") as usize * 1024
    }

    /// A number of `/proc/PID/status`.
    #[track_caller]
    pub fn status_field(&self, name: &str) -> u64 {
        let value = self.status_text(name);
        let number = value.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{name} is {value:?}"))
    }

    /// The text behind a name of `/proc/PID/status`.
    #[track_caller]
    pub fn status_text(&self, name: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {name} in /proc/PID/status")).trim().to_owned()
    }

    /// The numbers of the daemon's open descriptors.
    #[track_caller]
    pub fn descriptors(&self) -> Vec<i32> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("a running daemon");
        directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    /// Duplicates of the daemon's sockets, to ask them for their options. Drop them soon: while they are held, a
    /// close in the daemon closes nothing.
    #[track_caller]
    pub fn sockets(&self) -> Vec<Socket> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty()).expect("a running daemon");
        let is_socket = |fd: &i32| {
            let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.child.id()));
            link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        let duplicate = |fd: i32| pidfd_getfd(&process, fd, PidfdGetfdFlags::empty());
        let sockets = self.descriptors().into_iter().filter(is_socket).map(duplicate);
        sockets
            .map(|fd| {
                Socket::from(fd.unwrap_or_else(|error: rustix::io::Errno| panic!("pidfd_getfd: {error}")) as OwnedFd)
            })
            .collect()
    }

    /// Sets the soft limit of descriptors of the running daemon, and returns what it was.
    #[track_caller]
    pub fn limit_descriptors(&self, soft: u64) -> u64 {
        let limits = self.proc("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).expect("a limit");
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
        let new = Rlimit { current: Some(soft), maximum: Some(numbers[1]) };
        prlimit(Some(self.pid()), Resource::Nofile, new).expect("prlimit(2)");
        numbers[0]
    }

    /// `/proc/PID/NAME`.
    #[track_caller]
    pub fn proc(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    /// `/proc/PID/stat` from the state on, which follows the name in brackets.
    #[track_caller]
    fn stat(&self) -> String {
        let stat = self.proc("stat");
        stat[stat.rfind(')').expect("a name") + 2..].to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {:?}: {status:?}; end of its stderr:", self.line);
            let log = self.stderr.text();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
    }
}

/// The argument of `--listen` for this path.
pub fn unix(path: &Path) -> String {
    format!("unix:{}", path.to_str().expect("a path in UTF-8"))
}

/// The addresses that a name stands for, each once.
pub fn resolve(name: &str) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = name.to_socket_addrs().expect("a name that resolves").collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Reads a pipe of the daemon to its end in a thread of its own, so that the daemon never waits for us.
struct Collector(Arc<Collected>);

#[derive(Default)]
struct Collected {
    state: Mutex<CollectedState>,
    changed: Condvar,
}

#[derive(Default)]
struct CollectedState {
    bytes: Vec<u8>,
    ended: bool,
}

impl Collector {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Collector {
        let collected = Arc::new(Collected::default());
        let Some(mut pipe) = pipe else {
            collected.lock().ended = true;
            return Collector(collected);
        };
        let shared = Arc::clone(&collected);
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                shared.lock().bytes.extend_from_slice(&buffer[..length]);
                shared.changed.notify_all();
            }
            shared.lock().ended = true;
            shared.changed.notify_all();
        });
        Collector(collected)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().bytes).into_owned()
    }

    /// The text once the last writer has gone.
    #[track_caller]
    fn whole(&self) -> String {
        let patience = Instant::now() + TIMEOUT;
        let mut state = self.0.lock();
        while !state.ended {
            let left = patience.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the pipe is still open after {TIMEOUT:?}");
            state = self.0.wait(state, left);
        }
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    #[track_caller]
    fn wait_for<T>(&self, what: &str, mut fact: impl FnMut(&str) -> Option<T>) -> T {
        let patience = Instant::now() + TIMEOUT;
        let mut state = self.0.lock();
        loop {
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            if let Some(fact) = fact(&text) {
                return fact;
            }
            let left = patience.saturating_duration_since(Instant::now());
            let hopeless = state.ended || left.is_zero();
            assert!(!hopeless, "waited in vain for {what} in this (ended: {}):\n{text}", state.ended);
            state = self.0.wait(state, left);
        }
    }
}

impl Collected {
    fn lock(&self) -> MutexGuard<'_, CollectedState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wait<'a>(&self, guard: MutexGuard<'a, CollectedState>, time: Duration) -> MutexGuard<'a, CollectedState> {
        self.changed.wait_timeout(guard, time).unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }
}
