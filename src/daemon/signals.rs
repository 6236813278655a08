//! Which signals the daemon heeds. What they do is up to the server.
//!
//! SIGPIPE is not among them: Rust's runtime ignores it before `main`, so a write to a peer that is gone says EPIPE.

use std::{fs, io};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook_mio::v1_0::Signals;

/// From here on these signals make the loop's self-pipe readable: SIGTERM, SIGINT, SIGUSR1 and, unless it was ignored
/// when we started (`nohup`), SIGHUP.
pub fn register() -> io::Result<Signals> {
    let mut wanted = vec![SIGTERM, SIGINT, SIGUSR1];
    if !hangup_is_ignored() {
        wanted.push(SIGHUP);
    }
    Signals::new(wanted)
}

/// Whether SIGHUP was ignored when we started. sigaction(2) would need unsafe; proc_pid_status(5) says it, too. Where
/// there is no /proc, it is taken as not ignored.
fn hangup_is_ignored() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| ignores(&status, SIGHUP))
}

/// Whether the line `SigIgn:` of this status, a mask in hexadecimal, has the bit of `signal`.
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
