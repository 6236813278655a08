//! Adaptive busy polling: whether the loop asks the poller again and again for a while, instead of sleeping until the next event.
//!
//! Polling saves the sleep and the wakeup: on a fast exchange of messages, most of the time from one to the next. It costs
//! CPU time for as long as nothing arrives. So the loop tries it and measures: it continues while the time polled per event stays
//! short, and shorter than the time from event to event was without polling. If it does not, the loop sleeps as usual and tries
//! again after a number of events, which doubles with each failure. Thus a server whose messages are far apart does not
//! poll, and one that shares its core with its clients, where polling only delays the answer, soon polls for a few events in
//! thousands. A server without events sleeps.

use std::time::Duration;

use crate::event_loop::clock::Clock;

/// Polling continues while the average time per event is below this part of the limit. At 20 µs of the default 50 µs, polling and
/// the work for a message together cost about as much CPU time as sleeping and waking up.
const MAX_PART_OF_LIMIT: (u64, u64) = (2, 5);

/// And while it is below this part of the average time per event in the last pause.
const MAX_PART_OF_PAUSE: (u64, u64) = (2, 3);

/// After a pause whose events were further apart than this many times the limit, the loop does not try.
const MAX_LIMITS_APART: u64 = 2;

/// How many events pass before the next try: the first time, and at most. The latter is 200 ms at 20,000 messages per second.
const MIN_PAUSE_EVENTS: u64 = 16;
const MAX_PAUSE_EVENTS: u64 = 4096;

/// A try that lasted for this many waits was a success: the next pause is short.
const SUCCESSFUL_WAITS: u64 = 64;

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
    /// Waits in this try that ended with events.
    waits: u64,
    /// How many events remain until the next decision: 1 during a try, and the rest of the pause after it.
    countdown: u64,
    /// How many events the last pause was to have, when it began, and the average time per event in it.
    pause: u64,
    pause_began: u64,
    pause_average: u64,
}

impl BusyPoll {
    /// Creates the decision for polling up to `limit` after an event. With 0, the loop never polls.
    pub fn new(limit: Duration) -> BusyPoll {
        let limit = limit.as_nanos() as u64;
        BusyPoll {
            limit,
            until: 0,
            last_event: 0,
            average: 0,
            waits: 0,
            countdown: if limit == 0 { u64::MAX } else { MIN_PAUSE_EVENTS },
            pause: MIN_PAUSE_EVENTS,
            pause_began: 0,
            pause_average: 0,
        }
    }

    /// Returns whether the loop should poll again instead of sleeping.
    #[inline(always)]
    pub fn is_due(&self, now: u64) -> bool {
        now < self.until
    }

    /// Records that `count` connections had events and were served.
    #[inline(always)]
    pub fn on_events(&mut self, count: u64, clock: &Clock) {
        self.on_events_at(count, clock.nanos());
    }

    #[inline(always)]
    fn on_events_at(&mut self, count: u64, now: u64) {
        let (left, is_below) = self.countdown.overflowing_sub(count);
        self.countdown = left;
        if is_below || left == 0 {
            self.decide(count, now);
        }
    }

    #[inline(never)]
    fn decide(&mut self, count: u64, now: u64) {
        if self.until == 0 {
            let events = self.pause.wrapping_sub(self.countdown); // The last ones may have been more than were left.
            self.pause_average = (now - self.pause_began) / events;
            if self.pause_average > MAX_LIMITS_APART * self.limit {
                return self.start_pause(self.pause, now);
            }
            (self.average, self.waits) = (0, 0);
        } else {
            let polled = ((now - self.last_event) / count).min(self.limit);
            self.average = self.average - self.average / 8 + polled / 8;
            self.waits += 1;
        }
        let is_below = |(numerator, denominator), bound| self.average * denominator < bound * numerator;
        if is_below(MAX_PART_OF_LIMIT, self.limit) && is_below(MAX_PART_OF_PAUSE, self.pause_average) {
            (self.last_event, self.until, self.countdown) = (now, now + self.limit, 1);
        } else {
            self.end_try(now);
        }
    }

    /// Records that there was something to do besides serving. That ends a try: many short connections would look like a fast
    /// exchange, because polling splits the same work into more events.
    pub fn on_other_work(&mut self, clock: &Clock) {
        if self.until != 0 {
            self.end_try(clock.nanos());
        }
    }

    fn end_try(&mut self, now: u64) {
        let was_successful = self.waits >= SUCCESSFUL_WAITS;
        let pause = if was_successful { MIN_PAUSE_EVENTS } else { (self.pause * 2).min(MAX_PAUSE_EVENTS) };
        self.start_pause(pause, now);
    }

    fn start_pause(&mut self, events: u64, now: u64) {
        (self.pause, self.pause_began) = (events, now);
        (self.countdown, self.until) = (events, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 50_000;

    /// Simulates `count` events. The next one comes after the first time of `gap` if the loop polls, after the second if it sleeps.
    /// Returns for how many nanoseconds the loop polled.
    fn polled(busy_poll: &mut BusyPoll, now: &mut u64, count: u64, gap: (u64, u64)) -> u64 {
        let mut polled = 0;
        for _ in 0..count {
            let from = *now;
            *now += if busy_poll.is_due(from) { gap.0 } else { gap.1 };
            polled += busy_poll.until.clamp(from, *now) - from;
            busy_poll.on_events_at(1, *now);
        }
        polled
    }

    fn busy_poll() -> BusyPoll {
        BusyPoll::new(Duration::from_nanos(LIMIT))
    }

    /// A client on another core that sends as soon as it has received.
    const EXCHANGE: (u64, u64) = (8_000, 25_000);

    #[test]
    fn fast_exchange_is_polled_all_the_time() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 100, EXCHANGE);
        assert_eq!(polled(&mut busy_poll, &mut now, 10_000, EXCHANGE), 10_000 * EXCHANGE.0);
        assert!(busy_poll.is_due(now + LIMIT - 1) && !busy_poll.is_due(now + LIMIT), "it sleeps when nothing happens");
    }

    #[test]
    fn distant_events_are_hardly_polled() {
        for gap in [25_000, 50_000, 100_000] {
            let (mut busy_poll, mut now) = (busy_poll(), 1);
            polled(&mut busy_poll, &mut now, 10_000, (gap, gap));
            let nanos_per_event = polled(&mut busy_poll, &mut now, 100_000, (gap, gap)) / 100_000;
            assert!(nanos_per_event < 100, "{nanos_per_event} ns per event with gaps of {gap} ns");
        }
        for gap in [200_000, 1_000_000, 60_000_000_000] {
            assert_eq!(polled(&mut busy_poll(), &mut 1, 100_000, (gap, gap)), 0, "gaps of {gap} ns");
        }
    }

    #[test]
    fn exchange_on_the_same_core_is_hardly_polled() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 10_000, (18_000, 14_000));
        let nanos_per_event = polled(&mut busy_poll, &mut now, 100_000, (18_000, 14_000)) / 100_000;
        assert!(nanos_per_event < 100, "{nanos_per_event} ns per event");
    }

    #[test]
    fn polling_resumes_soon_after_a_pause() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 1000, EXCHANGE);
        polled(&mut busy_poll, &mut now, 1, (5_000_000, 5_000_000));
        assert!(busy_poll.is_due(now), "a single pause does not end it");
        polled(&mut busy_poll, &mut now, 4, (5_000_000, 5_000_000));
        assert!(!busy_poll.is_due(now));
        polled(&mut busy_poll, &mut now, 2 * MIN_PAUSE_EVENTS, EXCHANGE);
        assert!(busy_poll.is_due(now), "the next try is near");
    }

    #[test]
    fn failures_make_tries_rare_but_do_not_end_them() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 20 * MAX_PAUSE_EVENTS, (50_000, 50_000));
        assert_eq!(busy_poll.pause, MAX_PAUSE_EVENTS);
        polled(&mut busy_poll, &mut now, MAX_PAUSE_EVENTS + 10, EXCHANGE);
        assert!(busy_poll.is_due(now));
    }

    #[test]
    fn events_count_one_by_one() {
        // Connections that are served together: 50 every 160 us, whether the loop polls or not; and 4 that are faster if it does.
        for (count, gap, pays) in [(50, (160_000, 160_000), false), (4, (24_000, 60_000), true)] {
            let (mut busy_poll, mut now) = (busy_poll(), 1);
            for _ in 0..10_000 {
                now += if busy_poll.is_due(now) { gap.0 } else { gap.1 };
                busy_poll.on_events_at(count, now);
            }
            assert_eq!((busy_poll.is_due(now), busy_poll.pause < MAX_PAUSE_EVENTS), (pays, pays), "{count} at a time");
        }
    }

    #[test]
    fn other_work_ends_a_try() {
        let (mut busy_poll, mut now) = (busy_poll(), 1);
        polled(&mut busy_poll, &mut now, 100, EXCHANGE);
        assert!(busy_poll.is_due(now));
        busy_poll.on_other_work(&Clock::start());
        assert!(!busy_poll.is_due(now));
    }

    #[test]
    fn zero_never_polls() {
        let (mut busy_poll, mut now) = (BusyPoll::new(Duration::ZERO), 1);
        assert_eq!(polled(&mut busy_poll, &mut now, 100_000, (1, 1)), 0);
        assert!(!busy_poll.is_due(now));
    }
}
