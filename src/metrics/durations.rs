//! The durations of the loop's iterations, as a histogram.

/// A histogram of the durations of iterations, measured from the end of the wait: what the last connection of an iteration had to
/// wait for.
///
/// It is only kept if there is an endpoint to report it, because it costs one more clock read per iteration.
#[derive(Clone, Copy, Debug, Default)]
pub struct IterationDurations {
    /// By bucket: iterations that took no longer than its bound, but longer than the previous bound.
    pub(super) buckets: [u64; BOUNDS.len()],
    /// All iterations, including those beyond the last bound.
    pub(super) count: u64,
    pub(super) nanoseconds: u64,
}

/// The upper bounds of the buckets, in nanoseconds, and in seconds as Prometheus shows them. An echo takes 5 µs; a full iteration
/// of 1024 events takes some milliseconds. One that takes 100 ms was stopped, or did not get the CPU.
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
    /// Counts an iteration.
    pub fn record(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.nanoseconds += nanoseconds; // Wraps after 584 years of work.
        // From the small end: almost every iteration is in one of the first buckets.
        if let Some(bucket) = BOUNDS.iter().position(|&(bound, _)| nanoseconds <= bound) {
            self.buckets[bucket] += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_increase_and_match_their_text() {
        assert!(BOUNDS.is_sorted_by_key(|&(bound, _)| bound));
        for (nanoseconds, text) in BOUNDS {
            assert_eq!((text.parse::<f64>().expect("number") * 1e9).round() as u64, nanoseconds);
        }
    }
}
