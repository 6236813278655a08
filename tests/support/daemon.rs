//! The daemon as a child process: starting it, collecting its output, sending it signals, and
//! reaping it.
//!
//! By default this is the binary that Cargo built for the test. The environment variable `ECHOD`
//! names another one, for example the release build that will be measured or packaged.

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

/// Options for starting the daemon. The defaults suit most tests.
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
    /// Adds an argument that need not be valid UTF-8.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> DaemonBuilder {
        self.arguments.push(argument.as_ref().into());
        self
    }

    /// Removes the default `--listen=127.0.0.1:0`.
    pub fn without_listen(mut self) -> DaemonBuilder {
        if self.arguments.first().is_some_and(|first| first == "--listen=127.0.0.1:0") {
            self.arguments.remove(0);
        }
        self
    }

    /// Sets the number of `listening on` lines to wait for, if it is not one for each `--listen` and
    /// `--metrics`.
    pub fn listeners(mut self, count: usize) -> DaemonBuilder {
        self.listeners = Some(count);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> DaemonBuilder {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs the daemon through a program that replaces itself by it (exec), such as `prlimit --nofile=64`.
    pub fn through(mut self, wrapper: &[&str]) -> DaemonBuilder {
        self.wrapper = wrapper.iter().map(OsString::from).collect();
        self
    }

    /// Runs a shell script, in which `exec "$@"` starts the daemon.
    pub fn shell(self, script: &str) -> DaemonBuilder {
        self.through(&["sh", "-c", script, "sh"])
    }

    /// Sets the soft and the hard limit on file descriptors.
    pub fn nofile(self, limit: u64) -> DaemonBuilder {
        self.through(&["prlimit", &format!("--nofile={limit}:{limit}")])
    }

    pub fn stdin(mut self, stdin: impl Into<Stdio>) -> DaemonBuilder {
        self.stdin = stdin.into();
        self
    }

    /// Redirects stdout. [`Daemon::stdout`] then stays empty, and the test has to know the address.
    pub fn stdout(mut self, stdout: impl Into<Stdio>) -> DaemonBuilder {
        self.stdout = Some(stdout.into());
        self
    }

    /// Redirects stderr. [`Daemon::stderr`] then stays empty.
    pub fn stderr(mut self, stderr: impl Into<Stdio>) -> DaemonBuilder {
        self.stderr = Some(stderr.into());
        self
    }

    /// Starts the daemon and waits until it has printed its addresses.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let listeners = self.listeners.unwrap_or_else(|| self.named_listeners().max(1));
        let mut daemon = self.spawn();
        daemon.addresses = daemon.wait_for_addresses(listeners);
        daemon
    }

    /// Starts the daemon without waiting for its addresses.
    #[track_caller]
    pub fn spawn(self) -> Daemon {
        let binary = std::env::var_os("ECHOD").unwrap_or_else(|| env!("CARGO_BIN_EXE_echod").into());
        let command_line: Vec<OsString> = self.wrapper.into_iter().chain([binary]).chain(self.arguments).collect();
        let mut command = Command::new(&command_line[0]);
        command.args(&command_line[1..]).envs(self.environment).stdin(self.stdin);
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped));
        command.stderr(self.stderr.unwrap_or_else(Stdio::piped));
        // The environment of the test run must not change how the daemon behaves.
        for name in ["LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM"] {
            command.env_remove(name);
        }
        if !command.get_envs().any(|(name, _)| name == "RUST_LOG") {
            command.env_remove("RUST_LOG");
        }
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command_line:?}: {error}"));
        let stdout = Collector::new(child.stdout.take());
        let stderr = Collector::new(child.stderr.take());
        Daemon { child, command_line, stdout, stderr, addresses: Vec::new() }
    }

    /// Runs the daemon and waits until it exits by itself, for `--help` and for failures at startup.
    #[track_caller]
    pub fn run(self) -> RunOutput {
        let mut daemon = self.spawn();
        let status = daemon.wait_exit(TIMEOUT);
        let code = status.code().unwrap_or_else(|| panic!("expected an exit status, got signal {:?}", status.signal()));
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

/// The exit status and the output of a daemon that exited by itself.
#[derive(Debug)]
pub struct RunOutput {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

/// A running daemon.
///
/// Dropping it kills and reaps the process, and prints the end of its log if the test has failed.
pub struct Daemon {
    child: Child,
    command_line: Vec<OsString>,
    stdout: Collector,
    stderr: Collector,
    addresses: Vec<Address>,
}

impl Daemon {
    /// Starts the daemon with these arguments and waits until it has printed its addresses.
    ///
    /// It listens on a free port of 127.0.0.1 unless the arguments contain `--listen` or `-l`.
    #[track_caller]
    pub fn start(arguments: &[&str]) -> Daemon {
        Daemon::with(arguments).start()
    }

    /// Returns a builder with these arguments, for further options before the start.
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

    /// Starts the daemon on a Unix socket with this path.
    #[track_caller]
    pub fn start_unix(path: &Path, arguments: &[&str]) -> Daemon {
        Daemon::with(&[&["--listen", &unix(path)], arguments].concat()).start()
    }

    /// Returns the first address that the daemon printed.
    pub fn address(&self) -> &Address {
        &self.addresses[0]
    }

    pub fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    /// Returns the first address, which must be a TCP address.
    #[track_caller]
    pub fn tcp(&self) -> SocketAddr {
        match self.address() {
            Address::Tcp(address) => *address,
            other => panic!("expected a TCP address, got {other}"),
        }
    }

    #[track_caller]
    pub fn connect(&self) -> Client {
        Client::connect(self.address())
    }

    /// Waits for `count` lines on stdout, which must all be `listening on …` lines.
    #[track_caller]
    fn wait_for_addresses(&mut self, count: usize) -> Vec<Address> {
        let text = self.stdout.wait_for("`listening on` lines on stdout", |text| {
            (text.matches('\n').count() >= count).then(|| text.to_owned())
        });
        let address = |line: &str| line.strip_prefix("listening on ").and_then(Address::parse);
        let unexpected = |line: &str| panic!("expected a `listening on` line on stdout, got {line:?}");
        text.lines().take(count).map(|line| address(line).unwrap_or_else(|| unexpected(line))).collect()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("send a signal to the daemon");
    }

    /// Suspends the daemon (SIGSTOP).
    ///
    /// Meanwhile the kernel still accepts connections, data and FINs for it, and reports all of them in
    /// one readiness event after [`Daemon::thaw`].
    #[track_caller]
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
        wait_until("the daemon is suspended", || self.stat().starts_with('T'));
    }

    /// Resumes the daemon (SIGCONT).
    #[track_caller]
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits until the process exits, and panics after `timeout`.
    #[track_caller]
    pub fn wait_exit(&mut self, timeout: Duration) -> ExitStatus {
        let start = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                return status;
            }
            assert!(start.elapsed() < timeout, "the daemon should have exited within {timeout:?}");
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(10));
        }
    }

    /// Asserts that the daemon exits by itself, with status 0.
    #[track_caller]
    pub fn expect_success(&mut self) {
        let status = self.wait_exit(TIMEOUT);
        assert_eq!(status.code(), Some(0), "the daemon should exit with status 0, got: {status}");
    }

    /// Sends SIGTERM and asserts that the daemon exits with status 0.
    #[track_caller]
    pub fn terminate(&mut self) {
        self.signal(Signal::TERM);
        self.expect_success();
    }

    /// Closes the client's connection by an exchange of FINs, and then terminates the daemon, which has
    /// no connection left to wait for.
    #[track_caller]
    pub fn close_and_terminate(&mut self, client: Client) {
        client.send_fin();
        client.expect_fin();
        self.terminate();
    }

    /// Returns the exit status, or `None` if the daemon is still running or was killed by a signal.
    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.try_wait().expect("wait for the daemon").and_then(|status| status.code())
    }

    #[track_caller]
    pub fn expect_running(&mut self) {
        let status = self.child.try_wait().expect("wait for the daemon");
        assert!(status.is_none(), "the daemon should still be running: {status:?}");
    }

    /// Returns what the daemon has written to stdout so far.
    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Returns what the daemon has written to stderr so far.
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until the daemon has closed its stdout, and returns all of it.
    pub fn whole_stdout(&self) -> String {
        self.stdout.whole()
    }

    /// Waits until the daemon has closed its stderr, and returns all of it.
    pub fn whole_stderr(&self) -> String {
        self.stderr.whole()
    }

    /// Waits for a complete line on stderr for which `matches` returns true, and returns that line.
    #[track_caller]
    pub fn wait_for_log(&self, matches: impl Fn(&str) -> bool) -> String {
        self.stderr.wait_for("a certain line on stderr", |text| {
            let end = text.rfind('\n')?;
            text[..end].lines().find(|line| matches(line)).map(str::to_owned)
        })
    }

    /// Waits until stderr contains `text`, which may span lines.
    #[track_caller]
    pub fn wait_for_log_text(&self, text: &str) {
        self.stderr.wait_for(&format!("{text:?} on stderr"), |log| log.contains(text).then_some(()));
    }

    /// Returns the user and system CPU time used so far. The kernel counts it exactly and reports it in
    /// units of 10 ms.
    #[track_caller]
    pub fn cpu_time(&self) -> Duration {
        let stat = self.stat();
        let field = |number: usize| -> u64 {
            // proc_pid_stat(5): the state, with which `stat` begins, is field 3.
            let value = stat.split_ascii_whitespace().nth(number - 3).and_then(|field| field.parse().ok());
            value.unwrap_or_else(|| panic!("field {number} of /proc/PID/stat should be a number: {stat}"))
        };
        Duration::from_millis((field(14) + field(15)) * 10) // USER_HZ is 100 on x86-64 and Arm.
    }

    /// Returns the CPU time that the daemon uses during `span`. The sleep is the measurement, not a way
    /// to synchronize.
    #[track_caller]
    pub fn cpu_time_during(&self, span: Duration) -> Duration {
        let before = self.cpu_time();
        thread::sleep(span);
        self.cpu_time() - before
    }

    /// Returns how often the daemon has gone to sleep. As long as this number does not change, it has not
    /// woken up.
    #[track_caller]
    pub fn sleep_count(&self) -> u64 {
        self.status_field("voluntary_ctxt_switches")
    }

    /// Returns the daemon's resident anonymous memory (heap and stack) in bytes.
    #[track_caller]
    pub fn memory(&self) -> usize {
        self.status_field("RssAnon") as usize * 1024
    }

    /// Returns a numeric field of `/proc/PID/status`.
    #[track_caller]
    pub fn status_field(&self, name: &str) -> u64 {
        let value = self.status_text(name);
        let number = value.split_ascii_whitespace().next().and_then(|number| number.parse().ok());
        number.unwrap_or_else(|| panic!("{name} in /proc/PID/status should be a number, got {value:?}"))
    }

    /// Returns a field of `/proc/PID/status` as text.
    #[track_caller]
    pub fn status_text(&self, name: &str) -> String {
        let status = self.proc("status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("/proc/PID/status has no field {name}")).trim().to_owned()
    }

    /// Returns the numbers of the daemon's open file descriptors.
    #[track_caller]
    pub fn descriptors(&self) -> Vec<i32> {
        let directory = fs::read_dir(format!("/proc/{}/fd", self.child.id())).expect("list /proc/PID/fd");
        directory.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
    }

    /// Returns duplicates of the daemon's sockets, to read their options.
    ///
    /// Drop them soon: a socket stays open as long as there is a duplicate, even if the daemon closes it.
    #[track_caller]
    pub fn sockets(&self) -> Vec<Socket> {
        let process = pidfd_open(self.pid(), PidfdFlags::empty()).expect("open a pidfd of the daemon");
        let is_socket = |fd: &i32| {
            let link = fs::read_link(format!("/proc/{}/fd/{fd}", self.child.id()));
            link.is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
        };
        let duplicate = |fd: i32| -> OwnedFd {
            let duplicate = pidfd_getfd(&process, fd, PidfdGetfdFlags::empty());
            duplicate.unwrap_or_else(|error| panic!("cannot duplicate descriptor {fd} of the daemon: {error}"))
        };
        self.descriptors().into_iter().filter(is_socket).map(|fd| Socket::from(duplicate(fd))).collect()
    }

    /// Sets the soft limit on file descriptors of the running daemon, and returns the previous one.
    #[track_caller]
    pub fn limit_descriptors(&self, soft: u64) -> u64 {
        let limits = self.proc("limits");
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let line = line.expect("/proc/PID/limits should list `Max open files`");
        let numbers: Vec<u64> = line.split_ascii_whitespace().filter_map(|field| field.parse().ok()).collect();
        let &[old_soft, hard] = &numbers[..] else { panic!("expected a soft and a hard limit, got {line:?}") };
        let new = Rlimit { current: Some(soft), maximum: Some(hard) };
        prlimit(Some(self.pid()), Resource::Nofile, new).expect("prlimit(2) should set the soft limit");
        old_soft
    }

    /// Returns the text of `/proc/PID/NAME`.
    #[track_caller]
    pub fn proc(&self, name: &str) -> String {
        let path = format!("/proc/{}/{name}", self.child.id());
        fs::read_to_string(&path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
    }

    /// Returns `/proc/PID/stat` from the process state on, which follows the name in parentheses.
    #[track_caller]
    fn stat(&self) -> String {
        let stat = self.proc("stat");
        stat[stat.rfind(')').expect("/proc/PID/stat should contain the name in parentheses") + 2..].to_owned()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let status = self.child.wait();
        if thread::panicking() {
            eprintln!("--- {:?}: {status:?}; last lines of stderr:", self.command_line);
            let log = self.stderr.text();
            let lines: Vec<&str> = log.lines().collect();
            lines[lines.len().saturating_sub(40)..].iter().for_each(|line| eprintln!("{line}"));
            eprintln!("---");
        }
    }
}

/// Returns the `--listen` argument for a Unix socket with this path.
pub fn unix(path: &Path) -> String {
    format!("unix:{}", path.to_str().expect("the path should be valid UTF-8"))
}

/// Resolves a `HOST:PORT` and returns each of its addresses once.
pub fn resolve(name: &str) -> Vec<SocketAddr> {
    let addresses = name.to_socket_addrs().unwrap_or_else(|error| panic!("cannot resolve {name}: {error}"));
    let mut addresses: Vec<SocketAddr> = addresses.collect();
    addresses.sort();
    addresses.dedup();
    addresses
}

/// Reads one of the daemon's output pipes in a separate thread, so that the daemon never blocks on a
/// full pipe.
struct Collector(Arc<Collected>);

#[derive(Default)]
struct Collected {
    state: Mutex<CollectedState>,
    changed: Condvar,
}

#[derive(Default)]
struct CollectedState {
    bytes: Vec<u8>,
    closed: bool,
}

impl Collector {
    fn new(pipe: Option<impl Read + Send + 'static>) -> Collector {
        let collected = Arc::new(Collected::default());
        let Some(mut pipe) = pipe else {
            collected.lock().closed = true;
            return Collector(collected);
        };
        let shared = Arc::clone(&collected);
        thread::spawn(move || {
            let mut buffer = vec![0; 65536];
            while let Ok(length @ 1..) = pipe.read(&mut buffer) {
                shared.lock().bytes.extend_from_slice(&buffer[..length]);
                shared.changed.notify_all();
            }
            shared.lock().closed = true;
            shared.changed.notify_all();
        });
        Collector(collected)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().bytes).into_owned()
    }

    /// Waits until the pipe is closed by its last writer, and returns all text.
    #[track_caller]
    fn whole(&self) -> String {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.0.lock();
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the daemon should have closed its output within {TIMEOUT:?}");
            state = self.0.wait(state, left);
        }
        String::from_utf8_lossy(&state.bytes).into_owned()
    }

    /// Waits until `probe` returns a value for the text so far, and returns that value.
    #[track_caller]
    fn wait_for<T>(&self, what: &str, mut probe: impl FnMut(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + TIMEOUT;
        let mut state = self.0.lock();
        loop {
            let text = String::from_utf8_lossy(&state.bytes).into_owned();
            if let Some(value) = probe(&text) {
                return value;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!state.closed, "the daemon closed its output before this was found: {what}; output:\n{text}");
            assert!(!left.is_zero(), "timed out after {TIMEOUT:?} waiting for: {what}; output so far:\n{text}");
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
