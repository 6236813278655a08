//! Who looks after the daemon: the service manager, and whoever asks for its metrics. Each is there or not, and
//! has its say when it is due.

use std::io;

use mio::Registry;

use crate::daemon::systemd::Notifier;
use crate::event_loop::clock::{Clock, NEVER};
use crate::metrics::endpoint::Endpoint;
use crate::metrics::exposition::Snapshot;

/// Both of them. Where neither is, a turn costs one comparison more.
#[derive(Debug, Default)]
pub struct Operators {
    /// The HTTP of `--metrics`.
    pub endpoint: Option<Endpoint>,
    /// The way to a service manager that wants to hear from us.
    pub notifier: Option<Notifier>,
}

impl Operators {
    /// How many descriptors they hold.
    pub fn descriptors(&self) -> usize {
        self.endpoint.as_ref().map_or(0, |_| Endpoint::DESCRIPTORS)
            + self.notifier.as_ref().map_or(0, |_| Notifier::DESCRIPTORS)
    }

    /// Makes the endpoint known to the poller.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.endpoint.as_mut().map_or(Ok(()), |endpoint| endpoint.register(registry))
    }

    /// Marks what an event of [`Source::Endpoint`](crate::event_loop::token::Source::Endpoint) is about.
    pub fn note(&mut self, index: u32) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.note(index);
        }
    }

    /// When one of them wants a turn even if nothing happens, in milliseconds since the loop started, or [`NEVER`].
    pub fn next_deadline(&self) -> u64 {
        let endpoint = self.endpoint.as_ref().map_or(NEVER, Endpoint::next_deadline);
        let notifier = self.notifier.as_ref().map_or(NEVER, Notifier::next_deadline);
        endpoint.min(notifier)
    }

    /// Tells the service manager, and answers who asks. `now` is in milliseconds since the loop started.
    pub fn turn(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot) {
        if let Some(notifier) = &mut self.notifier {
            notifier.tick(now, snapshot.counters.open(), snapshot.draining);
        }
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.turn(now, registry, snapshot);
        }
    }

    /// The end of a turn of the loop: measures how long all of it took.
    #[inline]
    pub fn turn_over(&mut self, clock: &Clock) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.record(clock.since_tick());
        }
    }
}
