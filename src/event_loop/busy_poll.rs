//! Adaptive busy polling: whether the loop asks the poller again and again for a while, instead of sleeping until the next event.
//!
//! Polling saves the sleep and the wakeup: on a fast exchange of messages, most of the time from one to the next. It costs
//! CPU time for as long as nothing arrives. So the loop polls only while the time polled per event stays short. If it does not,
//! the loop sleeps as usual and tries again after a number of events, which doubles with each failure. Thus a server
//! whose messages are far apart pays for four polls in 4096 events, and so does one that shares its core with its clients, where
//! polling only delays the answer. A server without events sleeps.

use std::time::Duration;

/// Polling continues while the average time per event is below this part of the limit. At 20 µs of the default 50 µs, polling and
/// the work for a message together cost about as much CPU time as sleeping and waking up.
const MAX_AVERAGE: (u64, u64) = (2, 5);

/// How many events pass before the next try: the first time, and at most. The latter is 200 ms at 20,000 messages per second.
const MIN_PAUSE_EVENTS: u64 = 16;
const MAX_PAUSE_EVENTS: u64 = 4096;

/// A try that lasted for this many events was a success: the next pause is short.
const SUCCESSFUL_EVENTS: u64 = 64;

/// The decision between polling and sleeping. All times are nanoseconds of the loop's clock.
#[derive(Debug)]
pub struct BusyPoll {
    /// For how long the loop polls after an event.
    limit: u64,
    /// When polling ends, unless there is an event before. 0 while it does not pay.
    until: u64,
    last_event: u64,
    /// The average time between events while polling, each counted as at most `limit`. New times weigh 1/8.
    average: u64,
    /// Events in this try.
    events: u64,
    /// How many events remain until the next decision: 1 during a try, and the rest of the pause after it.
    countdown: u64,
    /// How many events the last pause had.
    pause: u64,
}

impl BusyPoll {
    /// Creates the decision for polling up to `limit` after an event. With 0, the loop never polls.
    pub fn new(limit: Duration) -> BusyPoll {
        let limit = limit.as_nanos() as u64;
        let countdown = if limit == 0 { u64::MAX } else { 1 };
        BusyPoll { limit, until: 0, last_event: 0, average: 0, events: 0, countdown, pause: MIN_PAUSE_EVENTS / 2 }
    }

    /// Returns whether the loop should poll again instead of sleeping.
    #[inline(always)]
    pub fn is_due(&self, now: u64) -> bool {
        now < self.until
    }

    /// Records that there were events.
    #[inline(always)]
    pub fn on_events(&mut self, now: u64) {
        self.countdown -= 1;
        if self.countdown == 0 {
            self.decide(now);
        }
    }

    #[inline(never)]
    fn decide(&mut self, now: u64) {
        self.countdown = 1;
        if self.until == 0 {
            (self.average, self.events) = (0, 0);
        } else {
            let polled = (now - self.last_event).min(self.limit);
            self.average = self.average - self.average / 8 + polled / 8;
            self.events += 1;
        }
        (self.last_event, self.until) = (now, now + self.limit);
        let (numerator, denominator) = MAX_AVERAGE;
        if self.average * denominator >= self.limit * numerator {
            self.end_try();
        }
    }

    fn end_try(&mut self) {
        let was_successful = self.events >= SUCCESSFUL_EVENTS;
        self.pause = if was_successful { MIN_PAUSE_EVENTS } else { (self.pause * 2).min(MAX_PAUSE_EVENTS) };
        (self.countdown, self.until) = (self.pause, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 50_000;

    /// Simulates `count` events, each `gap` after the previous one. Returns for how many nanoseconds the loop polled.
    fn polled(busy_poll: &mut BusyPoll, now: &mut u64, count: u64, gap: u64) -> u64 {
        let mut polled = 0;
        for _ in 0..count {
            let from = *now;
            *now += gap;
            polled += busy_poll.until.clamp(from, *now) - from;
            busy_poll.on_events(*now);
        }
        polled
    }

    fn busy_poll() -> BusyPoll {
        BusyPoll::new(Duration::from_nanos(LIMIT))
    }

    #[test]
    fn fast_exchange_is_polled_all_the_time() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 10, 13_000);
        assert_eq!(polled(&mut busy_poll, &mut now, 10_000, 13_000), 10_000 * 13_000);
        assert!(busy_poll.is_due(now + LIMIT - 1) && !busy_poll.is_due(now + LIMIT), "it sleeps when nothing happens");
    }

    #[test]
    fn distant_events_are_hardly_polled() {
        for gap in [25_000, 50_000, 200_000, 1_000_000, 60_000_000_000] {
            let (mut busy_poll, mut now) = (busy_poll(), 1);
            polled(&mut busy_poll, &mut now, 10_000, gap);
            let nanos_per_event = polled(&mut busy_poll, &mut now, 100_000, gap) / 100_000;
            assert!(nanos_per_event < 100, "{nanos_per_event} ns per event with gaps of {gap} ns");
        }
    }

    #[test]
    fn polling_resumes_soon_after_a_pause() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 1000, 13_000);
        polled(&mut busy_poll, &mut now, 1, 5_000_000);
        assert!(busy_poll.is_due(now), "a single pause does not end it");
        polled(&mut busy_poll, &mut now, 4, 5_000_000);
        assert!(!busy_poll.is_due(now));
        polled(&mut busy_poll, &mut now, MIN_PAUSE_EVENTS, 40_000);
        assert!(busy_poll.is_due(now), "the next try is near");
    }

    #[test]
    fn failures_make_tries_rare_but_do_not_end_them() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 20 * MAX_PAUSE_EVENTS, 1_000_000);
        assert_eq!(busy_poll.pause, MAX_PAUSE_EVENTS);
        polled(&mut busy_poll, &mut now, MAX_PAUSE_EVENTS + 10, 13_000);
        assert!(busy_poll.is_due(now));
    }

    #[test]
    fn zero_never_polls() {
        let (mut busy_poll, mut now) = (BusyPoll::new(Duration::ZERO), 1);
        assert_eq!(polled(&mut busy_poll, &mut now, 100_000, 1), 0);
        assert!(!busy_poll.is_due(now));
    }
}
