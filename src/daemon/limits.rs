//! How many descriptors this process may open, and so how many connections it can hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are no connections: three standard ones, copies of two of them for the log, epoll, the two ends of
/// the signals' pipe, files under /proc for a moment, and some that a parent may have left us.
const RESERVE: u64 = 16;

/// The default for `--max-connections`, where descriptors allow it.
const DEFAULT_MAX_CONNECTIONS: u64 = 1_000_000;

/// Raises the soft limit of RLIMIT_NOFILE to the hard one, and returns what it is then. Nothing of ours is ever sized
/// by it: in containers it can be 2^30.
pub fn raise_limit() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Can fail only where a sandbox forbids it; then the soft limit it is.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// The most connections at once: what was asked for, or the default, but never more than `limit` descriptors allow
/// beside `others` (listeners and the metrics' own). At least 1: the accept path copes when that is too many.
pub fn cap(asked: Option<usize>, limit: u64, others: usize) -> usize {
    let allowed = limit.saturating_sub(RESERVE + others as u64).max(1);
    let asked = asked.map_or(DEFAULT_MAX_CONNECTIONS, |asked| asked as u64);
    asked.min(allowed) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cap_is_what_was_asked_for_where_descriptors_allow_it() {
        assert_eq!(cap(Some(10), 1024, 1), 10);
        assert_eq!(cap(Some(5000), 1024, 1), 1024 - 17);
        assert_eq!(cap(None, 1024, 2), 1024 - 18);
    }

    #[test]
    fn a_limit_of_a_container_is_not_taken_at_its_word() {
        assert_eq!(cap(None, 1 << 30, 1), 1_000_000);
        assert_eq!(cap(None, u64::MAX, 1), 1_000_000);
    }

    #[test]
    fn a_tiny_limit_leaves_one_connection() {
        assert_eq!(cap(None, 10, 1), 1);
    }
}
