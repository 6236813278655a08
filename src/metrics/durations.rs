//! Durations of iterations, as a histogram.

/// How long turns of the loop took, from the end of the wait on: what the last connection of a turn had to wait for.
///
/// Only kept where somebody can ask for it, since it costs one more look at the clock per turn.
#[derive(Clone, Copy, Debug, Default)]
pub struct IterationDurations {
    /// By bucket: turns that took no longer than its bound, but longer than the one before.
    pub(super) buckets: [u64; BOUNDS.len()],
    /// All turns, also those beyond the last bound.
    pub(super) count: u64,
    pub(super) nanoseconds: u64,
}

/// Upper bounds of the buckets in nanoseconds, and as Prometheus is told them, in seconds. An echo takes 5 µs; a full turn of
/// 1024 events some milliseconds; what takes 100 ms has been stopped, or starved of CPU.
pub(super) const BOUNDS: [(u64, &str); 13] = [
    (5_000, "0.000005"),
    (10_000, "0.00001"),
    (25_000, "0.000025"),
    (50_000, "0.00005"),
    (100_000, "0.0001"),
    (250_000, "0.00025"),
    (500_000, "0.0005"),
    (1_000_000, "0.001"),
    (2_500_000, "0.0025"),
    (5_000_000, "0.005"),
    (10_000_000, "0.01"),
    (100_000_000, "0.1"),
    (1_000_000_000, "1"),
];

impl IterationDurations {
    /// Counts a turn.
    pub fn record(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.nanoseconds += nanoseconds; // 584 years of work fit.
        // From the small end: almost every turn ends in one of the first buckets.
        if let Some(bucket) = BOUNDS.iter().position(|&(bound, _)| nanoseconds <= bound) {
            self.buckets[bucket] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_rise_and_are_told_as_they_are() {
        assert!(BOUNDS.is_sorted_by_key(|&(bound, _)| bound));
        for (nanoseconds, told) in BOUNDS {
            assert_eq!((told.parse::<f64>().expect("a number") * 1e9).round() as u64, nanoseconds);
        }
    }
}
