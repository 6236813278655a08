//! Descriptors reserved for the endpoint, so that it works when the daemon has run out of them.

use socket2::{Domain, Socket, Type};

use crate::metrics::slots::MAX_REQUESTS;

/// One descriptor for each possible request, one for a connection that is accepted while all slots are taken, and one for the
/// files under /proc. One of them is closed right before a descriptor is needed, so that a request gets one even if connections
/// use all the others.
///
/// This is not the "reserve file descriptor" trick of accept loops, which accepts a connection to close it at once and spins when
/// accept(2) reports EMFILE for an empty backlog. Here the connection is kept, and with a free descriptor accept(2) reports an
/// empty backlog as such.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    /// Unconnected sockets. Each is a file of its own and so counts against the limit of the system (ENFILE) as well as ours;
    /// duplicates of one descriptor would not. Unlike /dev/null, a socket needs no path.
    sockets: Vec<Socket>,
}

impl Reserve {
    pub(super) const SIZE: usize = MAX_REQUESTS + 2;

    /// Frees one descriptor.
    pub(super) fn release(&mut self) {
        self.sockets.pop();
    }

    /// Reserves one descriptor again. If that fails, the next call of `fill` tries again.
    pub(super) fn refill(&mut self) {
        self.sockets.extend(Socket::new(Domain::UNIX, Type::STREAM, None));
    }

    /// Reserves all descriptors that are not used by `requests` open requests.
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
    fn reserve_and_requests_use_a_constant_number_of_descriptors() {
        let mut reserve = Reserve::default();
        for requests in [0, 1, MAX_REQUESTS, 3, 0] {
            reserve.fill(requests);
            assert_eq!(reserve.sockets.len() + requests, Reserve::SIZE);
        }
    }
}
