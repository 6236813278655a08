//! Waits until a given time, to the microsecond, for a generator that shares its core with the server.

use std::os::fd::AsRawFd;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::Result;

/// The token of the timer. Clients count from 0.
pub const TIMER: Token = Token(usize::MAX);

/// Waits for events until a due time. mio rounds its timeout up to whole milliseconds, which an open loop would report
/// as latency of the server; a timerfd(2) does not.
pub struct Waiter {
    timer: std::os::fd::OwnedFd,
    /// Whether to spin for events. This needs a core of its own, and removes the generator's own wake-up from the latency.
    spin: bool,
}

impl Waiter {
    pub fn new(poll: &Poll, spin: bool) -> Result<Waiter> {
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        Ok(Waiter { timer, spin })
    }

    /// Waits for events, at most `at_most`; only polls if the generator spins. The events may include [`TIMER`].
    pub fn wait(&self, poll: &mut Poll, events: &mut Events, at_most: Duration) -> Result<()> {
        let timeout = if self.spin || at_most.is_zero() {
            Duration::ZERO
        } else {
            let value = Timespec { tv_sec: at_most.as_secs().cast_signed(), tv_nsec: at_most.subsec_nanos().into() };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            at_most + Duration::from_millis(10) // The timer fires first.
        };
        match poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => Ok(other?),
        }
    }
}
