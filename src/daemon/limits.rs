//! The file descriptor limit, and the connection limit that follows from it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors reserved for everything but connections: three standard ones, two duplicates of them for output, epoll, the two
/// ends of the signal pipe, files under /proc that are open for a moment, and some that the parent process may have left open.
const RESERVED_DESCRIPTORS: u64 = 16;

/// The default of `--max-connections`, if the descriptors suffice.
const DEFAULT_MAX_CONNECTIONS: u64 = 1_000_000;

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

/// Returns the connection limit: the requested one, or the default, but never more than `limit` descriptors allow in addition to
/// `others` (the listeners and monitoring). It is at least 1; if even that is too many, accepting pauses.
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
