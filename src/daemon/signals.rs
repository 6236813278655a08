//! Signal registration. What a signal does is up to the event loop.
//!
//! SIGPIPE needs no handler: Rust's runtime ignores it before `main`, so that a write to a closed connection returns EPIPE.

use std::{fs, io};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;

/// Registers SIGTERM, SIGINT, SIGUSR1 and, unless it was ignored at startup (`nohup`), SIGHUP. From then on, each of them makes
/// the loop's signal pipe readable.
pub fn register() -> io::Result<Signals> {
    let mut wanted = vec![SIGTERM, SIGINT, SIGUSR1];
    if !hangup_is_ignored() {
        wanted.push(SIGHUP);
    }
    Signals::new(wanted)
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
