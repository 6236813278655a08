//! The service manager: sockets that it passes to us, and what it wants to hear from us.
//!
//! Both are systemd's, by way of environment variables and descriptors, and other managers speak them too: sd_listen_fds(3) for
//! activation, sd_notify(3) and sd_watchdog_enabled(3) for the way back. Nothing here waits: a manager that does not
//! read cannot hold up an echo.
//!
//! The variables stay as they are. Unsetting them is for programs that start others, and we start none.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::{env, io, process};

use listenfd::ListenFd;
use log::warn;

use crate::event_loop::clock::NEVER;
use crate::listen::listener::Listener;

/// The first descriptor that is passed: SD_LISTEN_FDS_START.
const FIRST_DESCRIPTOR: usize = 3;

/// No more descriptors are believed in: a wrong number must not cost memory.
const MAX_LISTEN_FDS: usize = 1024;

/// The listeners that were passed to this process, ready to be served; none where nobody passed any. To be called before
/// anything else opens a descriptor, or that one could be mistaken for one of them. The error is one line for a person.
pub fn listeners_from_env() -> Result<Vec<Listener>, String> {
    let count = listen_fds_count(env::var_os("LISTEN_PID"), env::var_os("LISTEN_FDS"), process::id())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut fds = ListenFd::from_env();
    (0..count)
        .map(|index| {
            let failed = |why: &dyn std::fmt::Display| {
                format!("cannot listen on descriptor {}, which LISTEN_FDS names: {why}", FIRST_DESCRIPTOR + index)
            };
            // What is not of the one kind is left at its place, to be tried as the other.
            let listener = match (fds.take_tcp_listener(index), fds.take_unix_listener(index)) {
                (Ok(Some(socket)), _) => Listener::from_inherited(socket),
                (_, Ok(Some(socket))) => Listener::from_inherited(socket),
                _ => return Err(failed(&"it is no stream socket, neither TCP nor Unix")),
            };
            listener.map_err(|error| failed(&error))
        })
        .collect()
}

/// How many descriptors are for us. The variables may be a parent's: then LISTEN_PID is not ours, and they mean nothing.
fn listen_fds_count(listen_pid: Option<OsString>, listen_fds: Option<OsString>, our_pid: u32) -> Result<usize, String> {
    let number = |text: &Option<OsString>| text.as_ref()?.to_str()?.parse::<usize>().ok();
    if number(&listen_pid) != Some(our_pid as usize) {
        return Ok(0);
    }
    let Some(given) = &listen_fds else { return Ok(0) };
    number(&listen_fds)
        .filter(|&count| count <= MAX_LISTEN_FDS)
        .ok_or_else(|| format!("LISTEN_FDS is {given:?}, which is no number of descriptors from 0 to {MAX_LISTEN_FDS}"))
}

/// The least time between two `STATUS=` that only tell another number of connections. The contract allows 5 s; this keeps a busy
/// daemon at one datagram in two.
const STATUS_INTERVAL_MS: u64 = 2_000;

/// When a message is tried again that the manager's queue had no room for.
const RETRY_MS: u64 = 100;

/// Tells the service manager how we are: `READY=1`, `STATUS=`, `WATCHDOG=1`, `STOPPING=1`.
///
/// It is told from the loop itself, once a turn, so that the watchdog's word means that the loop turns.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// Half of WATCHDOG_USEC, in milliseconds.
    watchdog_interval_ms: Option<u64>,
    /// [`NEVER`] without a watchdog.
    next_watchdog: u64,
    /// What the manager was told last. `None`: not even that we are ready.
    last_sent: Option<Status>,
    /// What was the case at the last tick.
    current: Status,
    /// When to tell the next number of connections at the earliest.
    next_status: u64,
    /// Nothing is sent before: its queue was full.
    retry_at: u64,
    failure_logged: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Status {
    open: u64,
    draining: bool,
}

impl Notifier {
    /// Descriptors that it holds.
    pub const DESCRIPTORS: usize = 1;

    /// A notifier, where NOTIFY_SOCKET asks for one. What is wrong with it is a warning, no reason not to serve.
    pub fn from_env() -> Option<Notifier> {
        let name = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())?;
        let watchdog = watchdog_interval_ms(env::var_os("WATCHDOG_PID"), env::var_os("WATCHDOG_USEC"), process::id());
        match Notifier::new(&name, watchdog) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                warn!("cannot notify the service manager at {name:?}: {error}");
                None
            }
        }
    }

    fn new(name: &OsStr, watchdog_interval_ms: Option<u64>) -> io::Result<Notifier> {
        let manager = manager_address(name)?;
        let socket = UnixDatagram::unbound()?;
        // Its queue is short (net.unix.max_dgram_qlen), and a send(2) to a full one would wait.
        socket.set_nonblocking(true)?;
        Ok(Notifier {
            socket,
            manager,
            watchdog_interval_ms,
            next_watchdog: if watchdog_interval_ms.is_some() { 0 } else { NEVER },
            last_sent: None,
            current: Status::default(),
            next_status: 0,
            retry_at: 0,
            failure_logged: false,
        })
    }

    /// When [`Notifier::update`] wants to be called even if nothing happens, in milliseconds since the loop started.
    /// [`NEVER`] where nothing is owed; at once in the beginning, since READY is owed then.
    pub fn next_deadline(&self) -> u64 {
        let status = match self.last_sent {
            Some(last) if last == self.current => NEVER,
            Some(last) if last.draining == self.current.draining => self.next_status,
            _ => 0,
        };
        status.min(self.next_watchdog).max(self.retry_at)
    }

    /// Tells what is due at `now`, in milliseconds since the loop started: all of it in one datagram.
    pub fn update(&mut self, now: u64, open: u64, draining: bool) {
        self.current = Status { open, draining };
        if now < self.next_deadline() {
            return;
        }
        let mut message = String::new();
        if self.last_sent.is_none() {
            message.push_str("READY=1\n");
        }
        if draining && !self.last_sent.is_some_and(|last| last.draining) {
            message.push_str("STOPPING=1\n");
        }
        if self.last_sent != Some(self.current) {
            let (state, plural) = (if draining { "draining, " } else { "" }, if open == 1 { "" } else { "s" });
            message.push_str(&format!("STATUS={state}{open} connection{plural} open\n"));
        }
        if self.watchdog_interval_ms.is_some() {
            message.push_str("WATCHDOG=1\n"); // Early is harmless.
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.manager) {
            Err(error) if is_transient(&error) => {
                self.retry_at = now + RETRY_MS;
                return;
            }
            // The manager is gone, or never was there. What is due next is tried all the same: it may come back.
            Err(error) if !self.failure_logged => {
                warn!("cannot notify the service manager: {error} (said once)");
                self.failure_logged = true;
            }
            _ => {}
        }
        self.last_sent = Some(self.current);
        self.next_status = now + STATUS_INTERVAL_MS;
        self.next_watchdog = self.watchdog_interval_ms.map_or(NEVER, |every| now + every);
    }
}

/// Whether the manager only has no room now.
fn is_transient(error: &io::Error) -> bool {
    let transient = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::OutOfMemory];
    transient.contains(&error.kind()) || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS)
}

/// `/run/systemd/notify`, or `@name` in the abstract namespace. sd_notify(3) knows `vsock:` too, for virtual machines.
fn manager_address(name: &OsStr) -> io::Result<SocketAddr> {
    let unsupported =
        || io::Error::new(io::ErrorKind::InvalidInput, "it is neither a path from / nor an abstract name");
    match name.as_bytes() {
        [b'/', ..] => SocketAddr::from_pathname(Path::new(name)),
        #[cfg(any(target_os = "linux", target_os = "android"))]
        [b'@', name @ ..] => {
            use std::os::linux::net::SocketAddrExt;
            SocketAddr::from_abstract_name(name)
        }
        _ => Err(unsupported()),
    }
}

/// How often the watchdog is to be told, in milliseconds: sd_watchdog_enabled(3) recommends half of its interval_usec. `None`:
/// there is none, or it waits for another process.
fn watchdog_interval_ms(watchdog_pid: Option<OsString>, watchdog_usec: Option<OsString>, our_pid: u32) -> Option<u64> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    if watchdog_pid.is_some_and(|pid| number(pid) != Some(our_pid.into())) {
        return None;
    }
    let interval_usec = watchdog_usec.and_then(number).filter(|&usec| usec > 0)?;
    Some((interval_usec / 2_000).max(1))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// The manager's end, and a notifier that knows it.
    struct Manager {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl Manager {
        fn new(watchdog: Option<u64>) -> (Manager, Notifier) {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("echod-notify-{}-{number}", process::id()));
            let socket = UnixDatagram::bind(&path).expect("a socket");
            socket.set_nonblocking(true).expect("a socket");
            let notifier = Notifier::new(path.as_os_str(), watchdog).expect("a notifier");
            (Manager { socket, path }, notifier)
        }

        fn received(&self) -> Option<String> {
            let mut message = [0; 4096];
            let length = self.socket.recv(&mut message).ok()?;
            Some(String::from_utf8_lossy(&message[..length]).into_owned())
        }
    }

    impl Drop for Manager {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.path);
        }
    }

    fn text(text: &str) -> Option<OsString> {
        Some(text.into())
    }

    #[test]
    fn listen_fds_for_another_process_are_ignored() {
        assert_eq!(listen_fds_count(text("41"), text("2"), 41), Ok(2));
        assert_eq!(listen_fds_count(text("41"), text("0"), 41), Ok(0));
        assert_eq!(listen_fds_count(text("41"), None, 41), Ok(0));
        assert_eq!(listen_fds_count(text("42"), text("2"), 41), Ok(0));
        assert_eq!(listen_fds_count(text("42"), text("nonsense"), 41), Ok(0));
        assert_eq!(listen_fds_count(None, text("2"), 41), Ok(0));
        for wrong in ["", "-1", "two", "1025", "99999999999999999999"] {
            assert!(listen_fds_count(text("41"), text(wrong), 41).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn watchdog_interval_is_half_of_watchdog_usec() {
        assert_eq!(watchdog_interval_ms(None, text("30000000"), 41), Some(15_000));
        assert_eq!(watchdog_interval_ms(text("41"), text("30000000"), 41), Some(15_000));
        assert_eq!(watchdog_interval_ms(text("42"), text("30000000"), 41), None);
        assert_eq!(watchdog_interval_ms(None, None, 41), None);
        assert_eq!(watchdog_interval_ms(None, text("0"), 41), None);
        assert_eq!(watchdog_interval_ms(None, text("soon"), 41), None);
        assert_eq!(watchdog_interval_ms(None, text("1"), 41), Some(1), "never 0, or the loop would spin");
    }

    #[test]
    fn ready_is_sent_at_once_and_only_once() {
        let (manager, mut notifier) = Manager::new(None);
        assert_eq!(notifier.next_deadline(), 0);
        notifier.update(0, 0, false);
        assert_eq!(manager.received().as_deref(), Some("READY=1\nSTATUS=0 connections open\n"));
        assert_eq!(notifier.next_deadline(), NEVER, "nothing is due, so nothing wakes the loop");
        notifier.update(9_999, 0, false);
        assert_eq!(manager.received(), None);
    }

    #[test]
    fn connection_count_is_sent_within_5_s_and_rate_limited() {
        let (manager, mut notifier) = Manager::new(None);
        notifier.update(0, 0, false);
        manager.received();

        notifier.update(10, 1, false);
        notifier.update(20, 2, false);
        assert_eq!(manager.received(), None);
        let due = notifier.next_deadline();
        assert!(due <= 5_000);
        notifier.update(due, 2, false);
        assert_eq!(manager.received().as_deref(), Some("STATUS=2 connections open\n"));

        notifier.update(60_000, 1, false);
        assert_eq!(manager.received().as_deref(), Some("STATUS=1 connection open\n"), "after a quiet time at once");

        notifier.update(60_010, 2, false);
        notifier.update(60_020, 1, false);
        assert_eq!(notifier.next_deadline(), NEVER, "back to what was sent");
    }

    #[test]
    fn stopping_is_sent_at_once() {
        let (manager, mut notifier) = Manager::new(None);
        notifier.update(0, 3, false);
        manager.received();
        notifier.update(1, 3, true);
        assert_eq!(manager.received().as_deref(), Some("STOPPING=1\nSTATUS=draining, 3 connections open\n"));
        notifier.update(2, 2, true);
        assert_eq!(manager.received(), None);
    }

    #[test]
    fn watchdog_is_pinged_when_due() {
        let (manager, mut notifier) = Manager::new(Some(15_000));
        notifier.update(0, 0, false);
        assert!(manager.received().expect("a message").ends_with("WATCHDOG=1\n"));
        assert_eq!(notifier.next_deadline(), 15_000);
        notifier.update(14_999, 0, false);
        assert_eq!(manager.received(), None);
        notifier.update(15_003, 0, false);
        assert_eq!(manager.received().as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(notifier.next_deadline(), 30_003);
    }

    #[test]
    fn full_manager_queue_is_retried_without_blocking() {
        let (manager, mut notifier) = Manager::new(Some(1));
        let (mut now, mut sent) = (0, 0);
        while notifier.retry_at == 0 {
            notifier.update(now, 0, false);
            (now, sent) = (now + 1, sent + 1);
            assert!(sent < 100_000, "its queue never fills");
        }
        let due = notifier.next_deadline();
        assert!(due > now, "no spinning: due at {due}, now {now}");
        while manager.received().is_some() {}
        notifier.update(due, 0, true);
        assert!(
            manager.received().is_some_and(|message| message.contains("STOPPING=1") && message.contains("WATCHDOG=1"))
        );
    }

    #[test]
    fn missing_manager_is_tolerated() {
        let (manager, mut notifier) = Manager::new(None);
        drop(manager);
        notifier.update(0, 0, false);
        assert!(notifier.failure_logged);
        assert_eq!(notifier.next_deadline(), NEVER);
    }

    #[test]
    fn manager_address_is_a_path_or_abstract_name() {
        assert!(manager_address(OsStr::new("/run/notify")).is_ok());
        #[cfg(target_os = "linux")]
        assert!(manager_address(OsStr::new("@notify")).is_ok());
        assert!(manager_address(OsStr::new("notify")).is_err());
        assert!(manager_address(OsStr::new("vsock:2:1234")).is_err());
        assert!(manager_address(OsStr::new(&"/long".repeat(100))).is_err());
    }
}
