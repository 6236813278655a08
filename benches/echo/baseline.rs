//! Saved baselines: a build of echod and the results that it had, to compare later builds with.
//!
//! `--baseline` starts the saved build again, so that both builds run side by side and alternate like all servers: the
//! state of the machine cannot be mistaken for a difference between the builds. Servers that are not a build of echod
//! (`--command`, `--connect`) are compared with their saved figures instead, as a ratio to the reference server if it was
//! measured in both runs.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::results::compare::{Change, MAX_FALSE_ALARMS, Verdict};
use crate::results::metrics::{self, Metric};
use crate::results::{Outcome, Row};

/// A directory per baseline, below the output directory.
fn directory(output: &Path, name: &str) -> PathBuf {
    output.join("baselines").join(name)
}

/// Saves the build of echod that was measured, and its results.
pub fn save(output: &Path, name: &str) -> io::Result<()> {
    let directory = directory(output, name);
    fs::create_dir_all(&directory)?;
    fs::copy(env!("CARGO_BIN_EXE_echod"), directory.join("echod"))?;
    fs::copy(output.join("results.json"), directory.join("results.json"))?;
    Ok(())
}

/// A baseline that was saved earlier.
pub struct Baseline {
    /// Its name, which is also that of its row in the tables.
    pub name: String,
    /// The saved build of echod.
    pub echod: PathBuf,
    /// What is known about it, for the list of servers.
    pub about: String,
    /// Figures by scenario, server and metric, one per round.
    figures: HashMap<(String, String, String), Vec<f64>>,
}

impl Baseline {
    /// Loads a baseline from the output directory.
    pub fn load(output: &Path, name: &str) -> Result<Baseline, String> {
        let directory = directory(output, name);
        let failed = |error: String| format!("--baseline: cannot read '{name}' from {}: {error}", directory.display());
        let text = fs::read_to_string(directory.join("results.json")).map_err(|error| failed(error.to_string()))?;
        let results: Value = serde_json::from_str(&text).map_err(|error| failed(error.to_string()))?;
        let text_of = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let commit: String = text_of(&results["echod"]["commit"]).chars().take(12).collect();
        let about = format!("saved build, commit {commit}, {}", text_of(&results["started"]));
        let mut figures: HashMap<_, Vec<f64>> = HashMap::new();
        for scenario in list(&results["scenarios"]) {
            for server in list(&scenario["servers"]) {
                for round in list(&server["rounds"]) {
                    for (metric, value) in round["figures"].as_object().into_iter().flatten() {
                        let key = (text_of(&scenario["name"]), text_of(&server["name"]), metric.clone());
                        figures.entry(key).or_default().extend(value.as_f64());
                    }
                }
            }
        }
        Ok(Baseline { name: name.to_owned(), echod: directory.join("echod"), about, figures })
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// The comparison of one figure.
pub struct Comparison {
    pub scenario: String,
    pub server: String,
    pub metric: &'static Metric,
    /// Whether both builds ran side by side.
    pub is_paired: bool,
    /// None if there were too few rounds for a verdict.
    pub change: Option<Change>,
}

impl Comparison {
    /// Returns what the change means, or None if there were too few rounds.
    pub fn verdict(&self) -> Option<Verdict> {
        Some(self.change?.verdict(self.metric.lower_is_better))
    }
}

/// Compares all servers with the baseline. All verdicts together are wrong in at most [`MAX_FALSE_ALARMS`] of all runs.
pub fn compare(outcomes: &[Outcome], baseline: &Baseline) -> Vec<Comparison> {
    let mut candidates = Vec::new();
    for outcome in outcomes {
        let saved = outcome.rows.iter().find(|row| row.server == baseline.name);
        for row in outcome.rows.iter().filter(|row| row.server != baseline.name && row.failure.is_none()) {
            for metric in metrics::of(outcome.scenario.work).iter().filter(|metric| metric.is_compared) {
                let series = match saved {
                    Some(saved) if row.server == "echod" => Some(Series::Pairs(pairs(row, saved, metric))),
                    _ => samples(outcome, row, metric, baseline),
                };
                candidates.extend(series.map(|series| (outcome, row, metric, series)));
            }
        }
    }
    // Bonferroni's correction: each verdict may be wrong with this probability.
    let alpha = MAX_FALSE_ALARMS / candidates.len().max(1) as f64;
    let compared = candidates.into_iter().map(|(outcome, row, metric, series)| {
        let (is_paired, change) = match series {
            Series::Pairs(pairs) => (true, Change::of_pairs(&pairs, alpha)),
            Series::Samples(new, old) => (false, Change::of_samples(&new, &old, alpha)),
        };
        Comparison { scenario: outcome.scenario.name.clone(), server: row.server.clone(), metric, is_paired, change }
    });
    compared.collect()
}

/// The figures of two builds, new and old.
enum Series {
    Pairs(Vec<(f64, f64)>),
    Samples(Vec<f64>, Vec<f64>),
}

fn pairs(new: &Row, old: &Row, metric: &Metric) -> Vec<(f64, f64)> {
    let pairs = new.rounds.iter().zip(&old.rounds);
    pairs.filter_map(|(new, old)| Some(((metric.of)(new)?, (metric.of)(old)?))).collect()
}

/// Returns the figures of a server now and in the saved run; as a ratio to the reference, if both runs have one.
fn samples(outcome: &Outcome, row: &Row, metric: &Metric, baseline: &Baseline) -> Option<Series> {
    let saved = |server: &str| {
        let key = (outcome.scenario.name.clone(), server.to_owned(), metric.name.to_owned());
        baseline.figures.get(&key).filter(|figures| !figures.is_empty())
    };
    let old = saved(&row.server)?;
    let reference = outcome
        .rows
        .iter()
        .find(|other| Some(&other.server) == outcome.reference.as_ref() && other.server != row.server);
    if let Some((reference, old_reference)) =
        reference.and_then(|reference| Some((reference, saved(&reference.server)?)))
    {
        let new = pairs(row, reference, metric).into_iter().map(|(figure, reference)| figure / reference).collect();
        let old = old.iter().zip(old_reference).map(|(figure, reference)| figure / reference).collect();
        return Some(Series::Samples(new, old));
    }
    Some(Series::Samples(row.rounds.iter().filter_map(metric.of).collect(), old.clone()))
}
