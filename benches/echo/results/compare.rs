//! The comparison of two builds: the change of a figure, an interval for it, and a verdict.
//!
//! Both intervals are exact and assume no distribution. If the builds ran side by side, rounds are compared in pairs
//! (Wilcoxon's signed-rank test); figures of an earlier run are compared as two samples (the rank-sum test of Wilcoxon,
//! Mann and Whitney). The estimate is that of Hodges and Lehmann. All figures are compared by their logarithms, so that a
//! change is a factor.

/// How many of all runs of the same build may report a change in any figure.
pub const MAX_FALSE_ALARMS: f64 = 0.05;

/// The change of a figure as a factor, and its interval.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    pub factor: f64,
    pub low: f64,
    pub high: f64,
}

/// What a change means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Faster,
    Slower,
    NoChange,
}

impl Change {
    /// Returns the change of paired values, new over old, or None if there are too few pairs for an interval that misses
    /// the true change with at most the probability `alpha`.
    pub fn of_pairs(pairs: &[(f64, f64)], alpha: f64) -> Option<Change> {
        let logs: Vec<f64> = pairs.iter().map(|(new, old)| (new / old).ln()).collect();
        let averages = (0..logs.len()).flat_map(|one| (0..=one).map(move |other| (one, other)));
        let averages = averages.map(|(one, other)| f64::midpoint(logs[one], logs[other])).collect();
        Change::between(averages, &signed_rank_distribution(logs.len()), alpha)
    }

    /// Returns the change between two samples, likewise.
    pub fn of_samples(new: &[f64], old: &[f64], alpha: f64) -> Option<Change> {
        let differences = new.iter().flat_map(|new| old.iter().map(move |old| (new / old).ln())).collect();
        Change::between(differences, &rank_sum_distribution(new.len(), old.len()), alpha)
    }

    /// The ends of the interval are as many values from the ends as the test statistic can be small by chance.
    fn between(mut values: Vec<f64>, distribution: &[f64], alpha: f64) -> Option<Change> {
        values.sort_by(f64::total_cmp);
        let mut tail = 0.0;
        let skipped = distribution.iter().take_while(|probability| {
            tail += **probability;
            tail <= alpha / 2.0
        });
        let skipped = skipped.count().checked_sub(1)?;
        let (low, high) = (*values.get(skipped)?, values[values.len() - 1 - skipped]);
        let middle = values.len() / 2;
        let median =
            if values.len() % 2 == 1 { values[middle] } else { f64::midpoint(values[middle - 1], values[middle]) };
        Some(Change { factor: median.exp(), low: low.exp(), high: high.exp() })
    }

    /// Returns what the change means: none, if the interval contains 1.
    pub fn verdict(self, lower_is_better: bool) -> Verdict {
        match (self.low > 1.0, self.high < 1.0) {
            (true, _) if lower_is_better => Verdict::Slower,
            (true, _) => Verdict::Faster,
            (_, true) if lower_is_better => Verdict::Faster,
            (_, true) => Verdict::Slower,
            _ => Verdict::NoChange,
        }
    }

    /// Returns whether the figure is certainly worse by more than this part.
    pub fn is_worse_by(self, part: f64, lower_is_better: bool) -> bool {
        if lower_is_better { self.low > 1.0 + part } else { self.high < 1.0 / (1.0 + part) }
    }
}

/// Returns the probabilities of each sum of ranks with a positive sign, if every sign is a coin toss.
fn signed_rank_distribution(count: usize) -> Vec<f64> {
    let mut distribution = vec![0.0; count * (count + 1) / 2 + 1];
    distribution[0] = 1.0;
    for rank in 1..=count {
        for sum in (0..distribution.len()).rev() {
            let with = if sum >= rank { distribution[sum - rank] } else { 0.0 };
            distribution[sum] = f64::midpoint(distribution[sum], with);
        }
    }
    distribution
}

/// Returns the probabilities of each number of pairs in which the first sample's value is larger, if both samples have the
/// same distribution.
fn rank_sum_distribution(first: usize, second: usize) -> Vec<f64> {
    // counts[n][u]: arrangements of n values of the first sample and the second sample's values so far with u such pairs.
    let size = first * second + 1;
    let mut counts = vec![vec![0.0; size]; first + 1];
    for row in &mut counts {
        row[0] = 1.0;
    }
    for others in 1..=second {
        for number in 1..=first {
            // The largest value is of the first sample, above `others` of the second, or of the second.
            let (below, this) = counts.split_at_mut(number);
            for pairs in (0..size).rev() {
                let with = if pairs >= others { below[number - 1][pairs - others] } else { 0.0 };
                this[0][pairs] += with;
            }
        }
    }
    let total: f64 = counts[first].iter().sum();
    counts[first].iter().map(|count| count / total).collect()
}
