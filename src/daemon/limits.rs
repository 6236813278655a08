//! How many descriptors this process may open, and so how many connections it can hold.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors that are no connections: three standard ones, copies of two of them for the log, epoll, the two ends of
/// the signals' pipe, files under /proc for a moment, and some that a parent may have left us.
const RESERVED_DESCRIPTORS: u64 = 16;

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

/// The most connections at once: what was requested for, or the default, but never more than `limit` descriptors allow
/// beside `others` (listeners and the metrics' own). At least 1: the accept path copes when that is too many.
pub fn max_connections(requested: Option<usize>, limit: u64, others: usize) -> usize {
    let allowed = limit.saturating_sub(RESERVED_DESCRIPTORS + others as u64).max(1);
    let requested = requested.map_or(DEFAULT_MAX_CONNECTIONS, |requested| requested as u64);
    requested.min(allowed) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requested_connection_limit_is_clamped_to_descriptors() {
        assert_eq!(max_connections(Some(10), 1024, 1), 10);
        assert_eq!(max_connections(Some(5000), 1024, 1), 1024 - 17);
        assert_eq!(max_connections(None, 1024, 2), 1024 - 18);
    }

    #[test]
    fn huge_descriptor_limit_is_capped_at_the_default() {
        assert_eq!(max_connections(None, 1 << 30, 1), 1_000_000);
        assert_eq!(max_connections(None, u64::MAX, 1), 1_000_000);
    }

    #[test]
    fn tiny_descriptor_limit_leaves_one_connection() {
        assert_eq!(max_connections(None, 10, 1), 1);
    }
}
