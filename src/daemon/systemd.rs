//! Service-manager integration: socket activation and sd_notify.
//!
//! Both protocols are systemd's and use environment variables and descriptors; other service managers support them as well. See
//! sd_listen_fds(3) for activation, sd_notify(3) and sd_watchdog_enabled(3) for notifications. Nothing here blocks, so a service
//! manager that does not read cannot delay an echo.
//!
//! The variables are left set. Unsetting them matters only to programs that start others, which this one does not.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::{env, io, process};

use listenfd::ListenFd;
use log::warn;

use crate::event_loop::clock::NEVER;
use crate::listen::listener::Listener;

/// The number of the first passed descriptor: SD_LISTEN_FDS_START.
const FIRST_DESCRIPTOR: usize = 3;

/// The maximum value of LISTEN_FDS that is believed, so that a wrong number costs no memory.
const MAX_LISTEN_FDS: usize = 1024;

/// Returns the listeners that were passed to this process, ready to be served; empty if none were passed. Must be called before
/// anything else opens a descriptor, which could otherwise be mistaken for a passed one. The error is a one-line message.
pub fn listeners_from_env(socket_buffer: Option<u32>) -> Result<Vec<Listener>, String> {
    let count = listen_fds_count(env::var_os("LISTEN_PID"), env::var_os("LISTEN_FDS"), process::id())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut fds = ListenFd::from_env();
    (0..count)
        .map(|index| {
            let failed = |why: &dyn std::fmt::Display| {
                format!("cannot listen on descriptor {} (passed by LISTEN_FDS): {why}", FIRST_DESCRIPTOR + index)
            };
            // A descriptor of the wrong kind stays in place, so that the other kind can be tried.
            let listener = match (fds.take_tcp_listener(index), fds.take_unix_listener(index)) {
                (Ok(Some(socket)), _) => Listener::from_inherited(socket, socket_buffer),
                (_, Ok(Some(socket))) => Listener::from_inherited(socket, socket_buffer),
                _ => return Err(failed(&"it is neither a TCP nor a Unix stream socket")),
            };
            listener.map_err(|error| failed(&error))
        })
        .collect()
}

/// Returns how many descriptors were passed to this process. The variables may have been meant for a parent process: then
/// LISTEN_PID is not ours, and they are ignored.
fn listen_fds_count(listen_pid: Option<OsString>, listen_fds: Option<OsString>, our_pid: u32) -> Result<usize, String> {
    let number = |text: &Option<OsString>| text.as_ref()?.to_str()?.parse::<usize>().ok();
    if number(&listen_pid) != Some(our_pid as usize) {
        return Ok(0);
    }
    let Some(given) = &listen_fds else { return Ok(0) };
    number(&listen_fds)
        .filter(|&count| count <= MAX_LISTEN_FDS)
        .ok_or_else(|| format!("LISTEN_FDS={given:?} is not a number between 0 and {MAX_LISTEN_FDS}"))
}

/// The minimum time between two `STATUS=` messages that differ only in the number of connections. The contract allows 5 s; with
/// this, a busy daemon sends at most one datagram in two seconds.
const STATUS_INTERVAL_MS: u64 = 2_000;

/// How long to wait before sending again after the manager's queue was full.
const RETRY_MS: u64 = 100;

/// Sends `READY=1`, `STATUS=`, `WATCHDOG=1` and `STOPPING=1` to the service manager.
///
/// Messages are sent from the event loop itself, so a watchdog ping proves that the loop is running.
#[derive(Debug)]
pub struct Notifier {
    socket: UnixDatagram,
    manager: SocketAddr,
    /// Half of WATCHDOG_USEC, in milliseconds.
    watchdog_interval_ms: Option<u64>,
    /// When the next watchdog ping is due, in milliseconds; [`NEVER`] without a watchdog.
    next_watchdog: u64,
    /// The last status sent; `None` until READY has been sent.
    last_sent: Option<Status>,
    /// The status at the last update.
    current: Status,
    /// The earliest time for another number of connections, in milliseconds.
    next_status: u64,
    /// Nothing is sent before this time, in milliseconds, because the manager's queue was full.
    retry_at: u64,
    /// Whether a failure to send has been logged.
    failure_logged: bool,
}

/// What `STATUS=` reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Status {
    open: u64,
    draining: bool,
}

impl Notifier {
    /// The number of descriptors that a notifier holds.
    pub const DESCRIPTORS: usize = 1;

    /// Returns whether NOTIFY_SOCKET is set.
    pub fn is_wanted() -> bool {
        notify_socket().is_some()
    }

    /// Returns a notifier if NOTIFY_SOCKET is set. An invalid address is logged and otherwise ignored.
    pub fn from_env() -> Option<Notifier> {
        let name = notify_socket()?;
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
        // The manager's queue is short (net.unix.max_dgram_qlen), and a blocking send(2) to a full queue would wait.
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

    /// Returns when [`Notifier::update`] must be called even if nothing happens, in milliseconds since the loop started:
    /// [`NEVER`] if there is nothing to send, 0 at the beginning, when READY is due.
    pub fn next_deadline(&self) -> u64 {
        let status = match self.last_sent {
            Some(last) if last == self.current => NEVER,
            Some(last) if last.draining == self.current.draining => self.next_status,
            _ => 0,
        };
        status.min(self.next_watchdog).max(self.retry_at)
    }

    /// Sends everything that is due at `now`, in milliseconds since the loop started, in one datagram.
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
            message.push_str("WATCHDOG=1\n"); // A ping that is early is harmless.
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.manager) {
            Err(error) if is_transient(&error) => {
                self.retry_at = now + RETRY_MS;
                return;
            }
            // The manager is gone, or was never there. Sending goes on, because it may return.
            Err(error) if !self.failure_logged => {
                warn!("cannot notify the service manager: {error} (further errors are not logged)");
                self.failure_logged = true;
            }
            _ => {}
        }
        self.last_sent = Some(self.current);
        self.next_status = now + STATUS_INTERVAL_MS;
        self.next_watchdog = self.watchdog_interval_ms.map_or(NEVER, |every| now + every);
    }
}

fn notify_socket() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty())
}

/// Returns whether sending failed only because there is no room at the moment.
fn is_transient(error: &io::Error) -> bool {
    let transient = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::OutOfMemory];
    transient.contains(&error.kind()) || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS)
}

/// Returns the address of the manager: `/run/systemd/notify`, or `@name` in the abstract namespace. The `vsock:` addresses of
/// sd_notify(3), which are for virtual machines, are not supported.
fn manager_address(name: &OsStr) -> io::Result<SocketAddr> {
    let unsupported = || io::Error::new(io::ErrorKind::InvalidInput, "neither an absolute path nor an abstract name");
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

/// Returns the interval of watchdog pings in milliseconds: half of WATCHDOG_USEC, as sd_watchdog_enabled(3) recommends. `None`
/// without a watchdog, and if it is for another process.
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

    /// The service manager's socket.
    struct Manager {
        socket: UnixDatagram,
        path: PathBuf,
    }

    impl Manager {
        fn new(watchdog: Option<u64>) -> (Manager, Notifier) {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("echod-notify-{}-{number}", process::id()));
            let socket = UnixDatagram::bind(&path).expect("socket");
            socket.set_nonblocking(true).expect("socket");
            let notifier = Notifier::new(path.as_os_str(), watchdog).expect("notifier");
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
        assert_eq!(watchdog_interval_ms(None, text("1"), 41), Some(1), "0 would make the loop spin");
    }

    #[test]
    fn ready_is_sent_at_once_and_only_once() {
        let (manager, mut notifier) = Manager::new(None);
        assert_eq!(notifier.next_deadline(), 0);
        notifier.update(0, 0, false);
        assert_eq!(manager.received().as_deref(), Some("READY=1\nSTATUS=0 connections open\n"));
        assert_eq!(notifier.next_deadline(), NEVER, "nothing should wake the loop");
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
        assert_eq!(
            manager.received().as_deref(),
            Some("STATUS=1 connection open\n"),
            "a change after a quiet time should be sent at once"
        );

        notifier.update(60_010, 2, false);
        notifier.update(60_020, 1, false);
        assert_eq!(notifier.next_deadline(), NEVER, "the status is back to what was sent");
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
        assert!(manager.received().expect("message").ends_with("WATCHDOG=1\n"));
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
            assert!(sent < 100_000, "the queue should fill up");
        }
        let due = notifier.next_deadline();
        assert!(due > now, "the loop would spin: due at {due}, now {now}");
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
