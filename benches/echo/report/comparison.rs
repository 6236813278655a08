//! The table that compares two builds.

use std::io::{self, Write};

use crate::baseline::Comparison;
use crate::results::compare::{MAX_FALSE_ALARMS, Verdict};

/// Prints a line per figure.
pub fn print(comparisons: &[Comparison], baseline: &str, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\ncompared with baseline '{baseline}'")?;
    if comparisons.is_empty() {
        return writeln!(out, "nothing to compare: no scenario and server are in both runs");
    }
    writeln!(out, "{:16} {:12} {:27} {:>9}  {:^21} verdict", "", "", "", "change", "interval")?;
    for it in comparisons {
        let (change, interval, verdict) = cells(it);
        let name = it.metric.name;
        writeln!(out, "{:16} {:12} {name:27} {change:>9}  {interval:^21} {verdict}", it.scenario, it.server)?;
    }
    let confidence = 100.0 - 100.0 * MAX_FALSE_ALARMS / comparisons.len() as f64;
    writeln!(
        out,
        "Each interval has {confidence:.2} % confidence, so that all verdicts together are wrong in at most {:.0} of 100\n\
         runs of the same build. 'no change': the interval contains 0 %.",
        MAX_FALSE_ALARMS * 100.0
    )?;
    if comparisons.iter().any(|it| it.change.is_none()) {
        writeln!(out, "'too few': a verdict needs more rounds (--rounds) or fewer figures (--scenario).")?;
    }
    if comparisons.iter().any(|it| !it.is_paired) {
        writeln!(
            out,
            "Servers other than echod are compared with saved figures: another state of the machine counts, too."
        )?;
    }
    Ok(())
}

/// Returns the change, its interval and the verdict as text.
pub fn cells(comparison: &Comparison) -> (String, String, &'static str) {
    let percent = |factor: f64| format!("{:+.1} %", (factor - 1.0) * 100.0);
    let (change, interval) = match comparison.change {
        Some(change) => (percent(change.factor), format!("{} … {}", percent(change.low), percent(change.high))),
        None => ("–".to_owned(), "–".to_owned()),
    };
    let verdict = match comparison.verdict() {
        Some(Verdict::Faster) => "faster",
        Some(Verdict::Slower) => "SLOWER",
        Some(Verdict::NoChange) => "no change",
        None => "too few",
    };
    (change, interval, verdict)
}
