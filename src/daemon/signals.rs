//! Signals: which ones are handled or blocked. What a handled signal does is up to the event loop.
//!
//! SIGPIPE needs no handler: Rust's runtime ignores it before `main`, so that a write to a closed connection returns EPIPE.

use std::{fs, io};

use nix::sys::signal::{SigSet, Signal};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};

use crate::event_loop::signal_source::SignalSource;

/// Keeps the daemon's own output from killing or stopping it. Call this before any output and before any thread is started,
/// which inherits the mask.
///
/// By default, a write beyond RLIMIT_FSIZE raises SIGXFSZ, which kills, and a write to the terminal from a background process
/// raises SIGTTOU under `stty tostop`, which stops. Both are blocked, because setting them to SIG_IGN needs unsafe code. The
/// effect is the same: the first write then only fails with EFBIG (setrlimit(2)), the second one is carried out (termios(3)). A
/// handler would not do: SIGTTOU would be raised again by each attempt to continue the write.
pub fn block_output_signals() {
    // Cannot fail: both signals exist, and `how` is valid (pthread_sigmask(3)).
    let _ = [Signal::SIGXFSZ, Signal::SIGTTOU].into_iter().collect::<SigSet>().thread_block();
}

/// Registers SIGTERM, SIGINT, SIGUSR1 and, unless it was ignored at startup (`nohup`), SIGHUP. From then on, each of them makes
/// the loop's signal pipe readable.
///
/// The signals are also unblocked. A mask is inherited through execve(2), and a signal that the parent process had blocked would
/// stay pending forever.
pub fn register() -> io::Result<SignalSource> {
    let mut wanted = vec![SIGTERM, SIGINT, SIGUSR1];
    if !hangup_is_ignored() {
        wanted.push(SIGHUP);
    }
    let signals = SignalSource::new(&wanted)?;
    // After the handlers are installed, so that a signal that is pending already does not kill the process.
    unblock();
    Ok(signals)
}

/// Unblocks the signals that end the daemon or print its counters.
pub fn unblock() {
    let handled = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1];
    let _ = handled.into_iter().collect::<SigSet>().thread_unblock(); // Cannot fail, as above.
}

/// Returns whether SIGHUP was ignored at startup, from /proc (proc_pid_status(5)), because sigaction(2) needs unsafe code.
/// Without /proc, it counts as not ignored.
fn hangup_is_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, SIGHUP))
}

/// Returns whether the line `SigIgn:` of `status`, a mask in hexadecimal, has the bit of `signal` set.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signal_mask_is_read_by_bit() {
        let status = |mask: &str| format!("Name:\techod\nSigBlk:\tffffffffffffffff\nSigIgn:\t{mask}\nSigCgt:\t0\n");
        assert!(ignores(&status("0000000000000001"), SIGHUP));
        assert!(ignores(&status("0000000000001001"), SIGHUP));
        assert!(!ignores(&status("0000000000001000"), SIGHUP));
        assert!(!ignores("", SIGHUP));
        assert!(!ignores("SigIgn:\tnonsense\n", SIGHUP));
    }
}
