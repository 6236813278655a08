//! A rate limit for log lines about conditions that flap.

use std::fmt;

/// The minimum time between two lines about one condition, in milliseconds. The contract allows "a few times a second". One line
/// in a second shows a condition that goes on, and in a day it is less than 10 MB of log.
const LOG_INTERVAL_MS: u64 = 1_000;

/// Decides which lines about one condition are logged, and counts the others. Has no clock of its own: the caller passes the
/// loop's milliseconds.
///
/// The first line is logged at once. A condition that ends and returns many times a second, such as descriptor exhaustion while
/// clients come and go, is then logged once a second, with the number of lines left out since.
#[derive(Debug, Default)]
pub struct LogLimit {
    /// When the next line may be logged, in milliseconds.
    next_at: u64,
    /// Lines left out since the last one that was logged.
    suppressed: u64,
}

impl LogLimit {
    /// Returns whether a line may be logged at `now`, and if so, how many were left out before it. A line that may not be logged
    /// is counted.
    pub fn check(&mut self, now: u64) -> Option<Suppressed> {
        if now < self.next_at {
            self.suppressed += 1;
            return None;
        }
        self.next_at = now + LOG_INTERVAL_MS;
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

/// The number of lines left out. Displayed as the end of a line: nothing for 0, ` (3 similar lines not logged)` otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppressed(u64);

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 similar line not logged)"),
            count => write!(f, " ({count} similar lines not logged)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_is_logged_at_once() {
        for now in [0, 7, 1 << 40] {
            let first = LogLimit::default().check(now).expect("first line");
            assert_eq!(first.to_string(), "", "nothing was left out before the first line");
        }
    }

    #[test]
    fn flapping_condition_is_logged_once_per_interval() {
        let mut limit = LogLimit::default();
        let logged: Vec<u64> = (0..10_000).filter(|&now| limit.check(now).is_some()).collect();
        assert_eq!(logged, (0..10).map(|n| n * LOG_INTERVAL_MS).collect::<Vec<u64>>());
    }

    #[test]
    fn line_after_suppression_has_the_count() {
        let mut limit = LogLimit::default();
        limit.check(100).expect("first line");
        assert_eq!(limit.check(100 + LOG_INTERVAL_MS - 1), None);
        let next = limit.check(100 + LOG_INTERVAL_MS).expect("line after the interval");
        assert_eq!(next.to_string(), " (1 similar line not logged)");
        assert!(limit.check(1_200).is_none() && limit.check(1_300).is_none());
        let next = limit.check(5_000).expect("line after the interval");
        assert_eq!(next.to_string(), " (2 similar lines not logged)");
        assert_eq!(limit.check(9_000), Some(Suppressed(0)), "the count starts again");
    }

    #[test]
    fn rare_condition_is_always_logged() {
        let mut limit = LogLimit::default();
        assert!((0..100).all(|n| limit.check(n * LOG_INTERVAL_MS).is_some()));
    }
}
