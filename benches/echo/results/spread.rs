//! The median of some values, and how well it is known.

/// An interval of the median is at least this likely to contain the true one, if there are enough values. Five values
/// reach 93.75 % with their whole range, which is why it is not 95 %.
const CONFIDENCE: f64 = 0.93;

/// The median of some values, its interval, and their range.
#[derive(Clone, Copy)]
pub struct Spread {
    /// Half of the values are below.
    pub median: f64,
    /// The lower end of the interval of the median.
    pub low: f64,
    /// The upper end of the interval of the median.
    pub high: f64,
    /// How likely the interval contains the median of all possible values, whatever their distribution.
    pub confidence: f64,
    /// The lowest value.
    pub min: f64,
    /// The highest value.
    pub max: f64,
}

impl Spread {
    /// Returns None for an empty iterator.
    pub fn of(values: impl Iterator<Item = f64>) -> Option<Spread> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let middle = count / 2;
        let median = match count {
            0 => return None,
            even if even % 2 == 0 => f64::midpoint(values[middle - 1], values[middle]),
            _ => values[middle],
        };
        let (skipped, confidence) = skipped_at_each_end(count);
        let (low, high) = (values[skipped], values[count - 1 - skipped]);
        Some(Spread { median, low, high, confidence, min: values[0], max: values[count - 1] })
    }
}

/// Returns how many of `count` ordered values lie outside of the interval of the median at each end, and its confidence.
///
/// Each value is below the true median with probability 1/2. The interval misses it if at most `skipped` values lie on
/// one side, which has a binomial probability (the confidence interval of the sign test).
pub fn skipped_at_each_end(count: usize) -> (usize, f64) {
    let mut best = (0, 1.0 - 2.0 * 0.5_f64.powi(count as i32));
    let (mut term, mut tail) = (0.5_f64.powi(count as i32), 0.5_f64.powi(count as i32));
    for skipped in 1..count.div_ceil(2) {
        term *= (count - skipped + 1) as f64 / skipped as f64;
        tail += term;
        let confidence = 1.0 - 2.0 * tail;
        if confidence < CONFIDENCE {
            break;
        }
        best = (skipped, confidence);
    }
    (best.0, best.1.max(0.0))
}
