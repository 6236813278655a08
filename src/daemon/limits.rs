//! The file descriptor limit, and the connection limit that follows from it.

use std::os::fd::AsRawFd;
use std::{fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that the daemon opens after the connection limit is computed, besides those that the caller names: epoll, the
/// output and the netlink socket of `--explain`, and a file under /proc that is open for a moment.
const RESERVED_DESCRIPTORS: u64 = 4;

/// The default of `--max-connections`, if the descriptors suffice.
const DEFAULT_MAX_CONNECTIONS: u64 = 1_000_000;

/// The highest descriptor number, plus one, that is probed without /proc. This is the usual soft limit, and what a parent process
/// leaves open has low numbers. A free number costs two system calls, so probing takes a millisecond at most.
const MAX_PROBED: u64 = 1024;

/// Raises the soft limit of RLIMIT_NOFILE to the hard limit and returns the result. Never allocate in proportion to this limit:
/// in containers it can be 2^30.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Fails only if a sandbox forbids it; then the soft limit stays as it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns the connection limit: the requested one, or the default, but never more than `limit` allows in addition to the
/// descriptors that are open now, inherited ones included, and `to_open` more. Returns an error, a one-line message, if not
/// even one connection is possible.
pub fn max_connections(requested: Option<usize>, limit: u64, to_open: usize) -> Result<usize, String> {
    let others = open_descriptors(limit) + RESERVED_DESCRIPTORS + to_open as u64;
    clamp(requested, limit, others).ok_or_else(|| {
        let needed = others + 1;
        format!("the file descriptor limit is {limit}, but at least {needed} descriptors are needed for one connection")
    })
}

/// Clamps the requested limit to the descriptors that remain after `others`. `None` if none remains.
fn clamp(requested: Option<usize>, limit: u64, others: u64) -> Option<usize> {
    let allowed = limit.saturating_sub(others);
    let requested = requested.map_or(DEFAULT_MAX_CONNECTIONS, |requested| requested as u64);
    (allowed > 0).then(|| requested.min(allowed) as usize)
}

/// Returns how many descriptors below `limit` are open. One with a higher number, opened before the limit was lowered, takes the
/// place of none.
fn open_descriptors(limit: u64) -> u64 {
    let Ok(entries) = fs::read_dir("/proc/self/fd") else { return probe(limit.min(MAX_PROBED)) };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u64>().ok());
    (numbers.filter(|&number| number < limit).count() as u64).saturating_sub(1) // Without that of the directory itself.
}

/// Returns how many descriptors below `end` are open, without /proc: F_DUPFD returns the lowest free number from a given one on.
fn probe(end: u64) -> u64 {
    let (mut open, mut number) = (0, 0);
    while number < end {
        // An error means that no number from here on is free: EMFILE.
        let free = rustix::io::fcntl_dupfd_cloexec(io::stderr(), number as i32).map_or(end, |fd| fd.as_raw_fd() as u64);
        open += free.min(end) - number;
        number = free + 1;
    }
    open
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_connection_limit_is_clamped_to_descriptors() {
        assert_eq!(clamp(Some(10), 1024, 17), Some(10));
        assert_eq!(clamp(Some(5000), 1024, 17), Some(1024 - 17));
        assert_eq!(clamp(None, 1024, 18), Some(1024 - 18));
    }

    #[test]
    fn huge_descriptor_limit_is_capped_at_the_default() {
        assert_eq!(clamp(None, 1 << 30, 17), Some(1_000_000));
        assert_eq!(clamp(None, u64::MAX, 17), Some(1_000_000));
    }

    #[test]
    fn limit_without_room_for_one_connection_is_rejected() {
        assert_eq!(clamp(None, 18, 17), Some(1));
        assert_eq!(clamp(None, 17, 17), None);
        assert_eq!(clamp(Some(1), 0, 17), None);
        let message = max_connections(None, 10, 100).expect_err("should be rejected");
        assert!(message.starts_with("the file descriptor limit is 10, but at least 1"), "{message}");
    }

    #[test]
    fn open_descriptors_are_counted_with_and_without_proc() {
        // Other tests open and close descriptors meanwhile, so the numbers are only bounds.
        let files: Vec<fs::File> = (0..100).map(|_| fs::File::open("/dev/null").expect("/dev/null")).collect();
        let end = files.iter().map(|file| file.as_raw_fd() as u64).max().expect("a file") + 1;
        for count in [open_descriptors(end), probe(end)] {
            assert!((100..=end).contains(&count), "{count} of {end} are open");
        }
        assert_eq!(probe(3), 3, "the standard descriptors are open");
    }
}
