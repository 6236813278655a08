//! Records for other programs: CSV, and percentile distributions in the format of HdrHistogram.

use std::fmt::Write;

use hdrhistogram::Histogram;

use crate::results::{Outcome, metrics};

/// Returns every figure of every round, one per line.
pub fn csv(outcomes: &[Outcome]) -> Result<String, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record([
        "scenario",
        "server",
        "round",
        "started_s",
        "position",
        "repeats",
        "figure",
        "unit",
        "value",
    ])?;
    for outcome in outcomes {
        for row in &outcome.rows {
            for (number, round) in row.rounds.iter().enumerate() {
                for metric in metrics::of(outcome.scenario.work) {
                    let Some(value) = (metric.of)(round) else { continue };
                    writer.write_record([
                        &outcome.scenario.name,
                        &row.server,
                        &(number + 1).to_string(),
                        &format!("{:.3}", round.started.as_secs_f64()),
                        &round.position.to_string(),
                        &round.repeats.to_string(),
                        metric.name,
                        metric.unit.name(),
                        &value.to_string(),
                    ])?;
                }
            }
        }
    }
    let bytes = writer.into_inner().map_err(|error| error.into_error())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Returns names and contents of percentile distributions, one per scenario and server, all rounds together. The values
/// are microseconds.
pub fn distributions(outcomes: &[Outcome]) -> Vec<(String, String)> {
    let rows = outcomes.iter().flat_map(|outcome| outcome.rows.iter().map(move |row| (outcome, row)));
    let rows = rows.map(|(outcome, row)| (format!("{}.{}.hgrm", outcome.scenario.name, row.server), row.latency()));
    rows.filter(|(_, latency)| !latency.is_empty()).map(|(name, latency)| (name, distribution(&latency))).collect()
}

/// Formats a histogram of nanoseconds as HdrHistogram's `outputPercentileDistribution` does, for its plotters.
fn distribution(histogram: &Histogram<u64>) -> String {
    let us = |ns: f64| ns / 1e3;
    let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
    for step in histogram.iter_quantiles(5) {
        let (value, part) = (us(step.value_iterated_to() as f64), step.quantile_iterated_to());
        let count = histogram.count_between(0, step.value_iterated_to());
        let line = if part < 1.0 {
            format!("{value:12.3} {part:2.12} {count:10} {:14.2}", 1.0 / (1.0 - part))
        } else {
            format!("{value:12.3} {part:2.12} {count:10}")
        };
        writeln!(text, "{line}").expect("writing to a String does not fail");
    }
    let (mean, deviation) = (us(histogram.mean()), us(histogram.stdev()));
    let (max, count) = (us(histogram.max() as f64), histogram.len());
    text + &format!(
        "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]\n\
         #[Max     = {max:12.3}, Total count    = {count:12}]\n"
    )
}
