//! Descriptors reserved for the endpoint.

use socket2::{Domain, Socket, Type};

use crate::metrics::endpoint::MAX_REQUESTS;

/// Descriptors kept for the exchanges that may come, and one for the files under /proc. One is closed right before another is
/// opened, so that an exchange gets its own also when connections have taken all the others.
///
/// This is not the spare descriptor of an accept loop that lets a newcomer in to turn it away: that one spins where
/// accept(2) says EMFILE on an empty queue. Here the newcomer stays, and with a free descriptor, an empty queue is
/// told as one.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Unconnected sockets: each is a file of its own, so it counts against the system's limit (ENFILE) as well as against
    /// ours, which duplicates would not, and none needs a path, which /dev/null would.
    sockets: Vec<Socket>,
}

impl Reserve {
    pub(super) const SIZE: usize = MAX_REQUESTS + 1;

    /// Closes one.
    pub(super) fn release(&mut self) {
        self.sockets.pop();
    }

    /// Takes one back. Where that fails, the end of the next turn tries again.
    pub(super) fn refill(&mut self) {
        self.sockets.extend(Socket::new(Domain::UNIX, Type::STREAM, None));
    }

    /// Takes back what is not used by so many exchanges.
    pub(super) fn fill(&mut self, requests: usize) {
        let wanted = Reserve::SIZE - requests;
        self.sockets.truncate(wanted);
        for _ in self.sockets.len()..wanted {
            self.refill();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_and_the_exchanges_hold_as_many_descriptors_together_at_all_times() {
        let mut reserve = Reserve::default();
        for requests in [0, 1, MAX_REQUESTS, 3, 0] {
            reserve.fill(requests);
            assert_eq!(reserve.sockets.len() + requests, Reserve::SIZE);
        }
    }
}
