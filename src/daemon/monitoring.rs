//! The daemon's monitoring: connects the service manager and the metrics endpoint to the event loop.

use std::io;

use log::Level;
use mio::Registry;

use crate::daemon::logging;
use crate::daemon::output;
use crate::daemon::systemd::Notifier;
use crate::event_loop::clock::{Clock, NEVER};
use crate::event_loop::counters::{Counters, Snapshot};
use crate::event_loop::monitor::Monitor;
use crate::metrics::endpoint::Endpoint;

/// The service manager and the metrics endpoint, each if it is configured.
#[derive(Debug, Default)]
pub struct Monitoring {
    /// The HTTP endpoint of `--metrics`.
    pub endpoint: Option<Endpoint>,
    /// The connection to a service manager that asked for notifications.
    pub notifier: Option<Notifier>,
}

impl Monitoring {
    /// Returns how many descriptors the two will open: the endpoint's except for its listener, which is open already, like the
    /// notifier's socket.
    pub fn descriptors_to_open(&self) -> usize {
        self.endpoint.as_ref().map_or(0, |_| Endpoint::DESCRIPTORS - 1)
    }
}

impl Monitor for Monitoring {
    fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.endpoint.as_mut().map_or(Ok(()), |endpoint| endpoint.register(registry))
    }

    fn on_event(&mut self, index: u32) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.on_event(index);
        }
    }

    fn next_deadline(&self) -> u64 {
        let endpoint = self.endpoint.as_ref().map_or(NEVER, Endpoint::next_deadline);
        let notifier = self.notifier.as_ref().map_or(NEVER, Notifier::next_deadline);
        endpoint.min(notifier)
    }

    fn update(&mut self, now: u64, registry: &Registry, snapshot: &Snapshot) {
        if let Some(notifier) = &mut self.notifier {
            notifier.update(now, snapshot.counters.open(), snapshot.draining);
        }
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.update(now, registry, snapshot, output::lines_dropped());
        }
    }

    fn print_counters(&mut self, counters: &Counters) {
        logging::log_always(Level::Info, format_args!("{}", describe(counters)));
    }

    #[inline]
    fn end_iteration(&mut self, clock: &Clock) {
        if let Some(endpoint) = &mut self.endpoint {
            endpoint.record(clock.since_tick());
        }
    }
}

/// Returns the counters as one line, for SIGUSR1 and the end of a run.
pub fn describe(counters: &Counters) -> String {
    format!("{counters}; {} log lines dropped", output::lines_dropped())
}
