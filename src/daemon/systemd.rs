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
const MAX_PASSED_DESCRIPTORS: usize = 1024;

/// The listeners that were passed to this process, ready to be served; none where nobody passed any. To be called before
/// anything else opens a descriptor, or that one could be mistaken for one of them. The error is one line for a person.
pub fn inherited(socket_buffer: Option<u32>) -> Result<Vec<Listener>, String> {
    let count = passed(env::var_os("LISTEN_PID"), env::var_os("LISTEN_FDS"), process::id())?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let mut passed = ListenFd::from_env();
    (0..count)
        .map(|index| {
            let failed = |why: &dyn std::fmt::Display| {
                format!("cannot listen on descriptor {}, which LISTEN_FDS names: {why}", FIRST_DESCRIPTOR + index)
            };
            // What is not of the one kind is left at its place, to be tried as the other.
            let listener = match (passed.take_tcp_listener(index), passed.take_unix_listener(index)) {
                (Ok(Some(socket)), _) => Listener::from_inherited(socket, socket_buffer),
                (_, Ok(Some(socket))) => Listener::from_inherited(socket, socket_buffer),
                _ => return Err(failed(&"it is no stream socket, neither TCP nor Unix")),
            };
            listener.map_err(|error| failed(&error))
        })
        .collect()
}

/// How many descriptors are for us. The variables may be a parent's: then LISTEN_PID is not ours, and they mean nothing.
fn passed(listen_pid: Option<OsString>, listen_fds: Option<OsString>, our_pid: u32) -> Result<usize, String> {
    let number = |text: &Option<OsString>| text.as_ref()?.to_str()?.parse::<usize>().ok();
    if number(&listen_pid) != Some(our_pid as usize) {
        return Ok(0);
    }
    let Some(given) = &listen_fds else { return Ok(0) };
    number(&listen_fds).filter(|&count| count <= MAX_PASSED_DESCRIPTORS).ok_or_else(|| {
        format!("LISTEN_FDS is {given:?}, which is no number of descriptors from 0 to {MAX_PASSED_DESCRIPTORS}")
    })
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
    watchdog_every: Option<u64>,
    /// [`NEVER`] without a watchdog.
    watchdog_due: u64,
    /// What the manager was told last. `None`: not even that we are ready.
    told: Option<Status>,
    /// What was the case at the last tick.
    seen: Status,
    /// When to tell the next number of connections at the earliest.
    status_due: u64,
    /// Nothing is sent before: its queue was full.
    retry_at: u64,
    complained: bool,
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
        let watchdog = watchdog_ms(env::var_os("WATCHDOG_PID"), env::var_os("WATCHDOG_USEC"), process::id());
        match Notifier::new(&name, watchdog) {
            Ok(notifier) => Some(notifier),
            Err(error) => {
                warn!("cannot notify the service manager at {name:?}: {error}");
                None
            }
        }
    }

    fn new(name: &OsStr, watchdog_every: Option<u64>) -> io::Result<Notifier> {
        let manager = manager_address(name)?;
        let socket = UnixDatagram::unbound()?;
        // Its queue is short (net.unix.max_dgram_qlen), and a send(2) to a full one would wait.
        socket.set_nonblocking(true)?;
        Ok(Notifier {
            socket,
            manager,
            watchdog_every,
            watchdog_due: if watchdog_every.is_some() { 0 } else { NEVER },
            told: None,
            seen: Status::default(),
            status_due: 0,
            retry_at: 0,
            complained: false,
        })
    }

    /// When [`Notifier::tick`] wants to be called even if nothing happens, in milliseconds since the loop started.
    /// [`NEVER`] where nothing is owed; at once in the beginning, since READY is owed then.
    pub fn next_deadline(&self) -> u64 {
        let status = match self.told {
            Some(told) if told == self.seen => NEVER,
            Some(told) if told.draining == self.seen.draining => self.status_due,
            _ => 0,
        };
        status.min(self.watchdog_due).max(self.retry_at)
    }

    /// Tells what is due at `now`, in milliseconds since the loop started: all of it in one datagram.
    pub fn tick(&mut self, now: u64, open: u64, draining: bool) {
        self.seen = Status { open, draining };
        if now < self.next_deadline() {
            return;
        }
        let mut message = String::new();
        if self.told.is_none() {
            message.push_str("READY=1\n");
        }
        if draining && !self.told.is_some_and(|told| told.draining) {
            message.push_str("STOPPING=1\n");
        }
        if self.told != Some(self.seen) {
            let (state, plural) = (if draining { "draining, " } else { "" }, if open == 1 { "" } else { "s" });
            message.push_str(&format!("STATUS={state}{open} connection{plural} open\n"));
        }
        if self.watchdog_every.is_some() {
            message.push_str("WATCHDOG=1\n"); // Early is harmless.
        }
        match self.socket.send_to_addr(message.as_bytes(), &self.manager) {
            Err(error) if is_for_now(&error) => {
                self.retry_at = now + RETRY_MS;
                return;
            }
            // The manager is gone, or never was there. What is due next is tried all the same: it may come back.
            Err(error) if !self.complained => {
                warn!("cannot notify the service manager: {error} (said once)");
                self.complained = true;
            }
            _ => {}
        }
        self.told = Some(self.seen);
        self.status_due = now + STATUS_INTERVAL_MS;
        self.watchdog_due = self.watchdog_every.map_or(NEVER, |every| now + every);
    }
}

/// Whether the manager only has no room now.
fn is_for_now(error: &io::Error) -> bool {
    let for_now = [io::ErrorKind::WouldBlock, io::ErrorKind::Interrupted, io::ErrorKind::OutOfMemory];
    for_now.contains(&error.kind()) || rustix::io::Errno::from_io_error(error) == Some(rustix::io::Errno::NOBUFS)
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

/// How often the watchdog is to be told, in milliseconds: sd_watchdog_enabled(3) recommends half of its patience. `None`:
/// there is none, or it waits for another process.
fn watchdog_ms(watchdog_pid: Option<OsString>, watchdog_usec: Option<OsString>, our_pid: u32) -> Option<u64> {
    let number = |text: OsString| text.to_str()?.parse::<u64>().ok();
    if watchdog_pid.is_some_and(|pid| number(pid) != Some(our_pid.into())) {
        return None;
    }
    let patience = watchdog_usec.and_then(number).filter(|&usec| usec > 0)?;
    Some((patience / 2_000).max(1))
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

        fn heard(&self) -> Option<String> {
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
    fn descriptors_are_ours_only_if_the_process_is() {
        assert_eq!(passed(text("41"), text("2"), 41), Ok(2));
        assert_eq!(passed(text("41"), text("0"), 41), Ok(0));
        assert_eq!(passed(text("41"), None, 41), Ok(0));
        assert_eq!(passed(text("42"), text("2"), 41), Ok(0));
        assert_eq!(passed(text("42"), text("nonsense"), 41), Ok(0));
        assert_eq!(passed(None, text("2"), 41), Ok(0));
        for wrong in ["", "-1", "two", "1025", "99999999999999999999"] {
            assert!(passed(text("41"), text(wrong), 41).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_watchdog_is_told_at_half_of_its_patience() {
        assert_eq!(watchdog_ms(None, text("30000000"), 41), Some(15_000));
        assert_eq!(watchdog_ms(text("41"), text("30000000"), 41), Some(15_000));
        assert_eq!(watchdog_ms(text("42"), text("30000000"), 41), None);
        assert_eq!(watchdog_ms(None, None, 41), None);
        assert_eq!(watchdog_ms(None, text("0"), 41), None);
        assert_eq!(watchdog_ms(None, text("soon"), 41), None);
        assert_eq!(watchdog_ms(None, text("1"), 41), Some(1), "never 0, or the loop would spin");
    }

    #[test]
    fn ready_is_owed_at_once_and_told_once() {
        let (manager, mut notifier) = Manager::new(None);
        assert_eq!(notifier.next_deadline(), 0);
        notifier.tick(0, 0, false);
        assert_eq!(manager.heard().as_deref(), Some("READY=1\nSTATUS=0 connections open\n"));
        assert_eq!(notifier.next_deadline(), NEVER, "nothing is due, so nothing wakes the loop");
        notifier.tick(9_999, 0, false);
        assert_eq!(manager.heard(), None);
    }

    #[test]
    fn the_number_of_connections_is_told_within_5_s_of_a_change_but_not_each_time() {
        let (manager, mut notifier) = Manager::new(None);
        notifier.tick(0, 0, false);
        manager.heard();

        notifier.tick(10, 1, false);
        notifier.tick(20, 2, false);
        assert_eq!(manager.heard(), None);
        let due = notifier.next_deadline();
        assert!(due <= 5_000);
        notifier.tick(due, 2, false);
        assert_eq!(manager.heard().as_deref(), Some("STATUS=2 connections open\n"));

        notifier.tick(60_000, 1, false);
        assert_eq!(manager.heard().as_deref(), Some("STATUS=1 connection open\n"), "after a quiet time at once");

        notifier.tick(60_010, 2, false);
        notifier.tick(60_020, 1, false);
        assert_eq!(notifier.next_deadline(), NEVER, "back to what was told");
    }

    #[test]
    fn stopping_is_told_at_once() {
        let (manager, mut notifier) = Manager::new(None);
        notifier.tick(0, 3, false);
        manager.heard();
        notifier.tick(1, 3, true);
        assert_eq!(manager.heard().as_deref(), Some("STOPPING=1\nSTATUS=draining, 3 connections open\n"));
        notifier.tick(2, 2, true);
        assert_eq!(manager.heard(), None);
    }

    #[test]
    fn the_watchdog_is_told_when_it_is_due_whatever_else_happens() {
        let (manager, mut notifier) = Manager::new(Some(15_000));
        notifier.tick(0, 0, false);
        assert!(manager.heard().expect("a message").ends_with("WATCHDOG=1\n"));
        assert_eq!(notifier.next_deadline(), 15_000);
        notifier.tick(14_999, 0, false);
        assert_eq!(manager.heard(), None);
        notifier.tick(15_003, 0, false);
        assert_eq!(manager.heard().as_deref(), Some("WATCHDOG=1\n"));
        assert_eq!(notifier.next_deadline(), 30_003);
    }

    #[test]
    fn a_manager_that_does_not_read_is_told_later_and_holds_nothing_up() {
        let (manager, mut notifier) = Manager::new(Some(1));
        let (mut now, mut told) = (0, 0);
        while notifier.retry_at == 0 {
            notifier.tick(now, 0, false);
            (now, told) = (now + 1, told + 1);
            assert!(told < 100_000, "its queue never fills");
        }
        let due = notifier.next_deadline();
        assert!(due > now, "no spinning: due at {due}, now {now}");
        while manager.heard().is_some() {}
        notifier.tick(due, 0, true);
        assert!(
            manager.heard().is_some_and(|message| message.contains("STOPPING=1") && message.contains("WATCHDOG=1"))
        );
    }

    #[test]
    fn a_manager_that_is_gone_is_borne() {
        let (manager, mut notifier) = Manager::new(None);
        drop(manager);
        notifier.tick(0, 0, false);
        assert!(notifier.complained);
        assert_eq!(notifier.next_deadline(), NEVER);
    }

    #[test]
    fn a_manager_is_a_path_or_an_abstract_name() {
        assert!(manager_address(OsStr::new("/run/notify")).is_ok());
        #[cfg(target_os = "linux")]
        assert!(manager_address(OsStr::new("@notify")).is_ok());
        assert!(manager_address(OsStr::new("notify")).is_err());
        assert!(manager_address(OsStr::new("vsock:2:1234")).is_err());
        assert!(manager_address(OsStr::new(&"/long".repeat(100))).is_err());
    }
}
