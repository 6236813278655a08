//! One static HTML page with all tables and pictures, from the template `page.html`. It needs no network and no script.

use minijinja::{AutoEscape, Environment, context};
use serde_json::{Value, json};

use super::svg::Picture;
use super::table::{self, Table};
use super::{Machine, comparison, tables};
use crate::baseline::Comparison;
use crate::results::compare::MAX_FALSE_ALARMS;
use crate::results::{Outcome, Row};
use crate::scenarios::Work;
use crate::server::Spec;

const TEMPLATE: &str = include_str!("page.html");

/// Returns the page. `results` is the whole of `results.json`.
pub fn page(
    outcomes: &[Outcome],
    servers: &[Spec],
    machine: &Machine,
    pictures: &[Picture],
    (baseline, comparisons): (Option<&str>, &[Comparison]),
    results: &Value,
) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_template("page.html", TEMPLATE)?;
    let comparison = baseline.filter(|_| !comparisons.is_empty()).map(|baseline| {
        json!({
            "baseline": baseline,
            "false_alarms": MAX_FALSE_ALARMS * 100.0,
            "rows": comparisons.iter().map(comparison_row).collect::<Vec<_>>(),
        })
    });
    let scenarios: Vec<Value> = outcomes.iter().map(|outcome| scenario(outcome, pictures)).collect();
    let echod = &results["echod"];
    environment.get_template("page.html")?.render(context! {
        started => machine.started,
        machine => format!("{}, {}, {}, loopback", machine.processor, machine.kernel, machine.cores),
        version => echod["version"].as_str(),
        commit => echod["commit"].as_str().map(|commit| commit.chars().take(12).collect::<String>()),
        comparison => comparison,
        scenarios => scenarios,
        notes => tables::NOTES,
        counter => tables::counter(machine),
        missing => machine.missing,
        servers => tables::measured(outcomes, servers).map(|server| json!({ "name": server.name, "about": server.about })).collect::<Vec<_>>(),
        facts => facts(&results["machine"], echod),
    })
}

fn comparison_row(comparison: &Comparison) -> Value {
    let (change, interval, verdict) = comparison::cells(comparison);
    json!({
        "scenario": comparison.scenario,
        "server": comparison.server,
        "figure": comparison.metric.name,
        "change": change,
        "interval": interval,
        "verdict": verdict,
        "class": verdict.to_lowercase().replace(' ', "-"),
    })
}

fn scenario(outcome: &Outcome, pictures: &[Picture]) -> Value {
    let mut table = Table::of(outcome);
    let (bar_column, bars) = bars(outcome);
    table.remove_empty_columns(bar_column);
    let (_, rounds) = table::title(outcome);
    let rows = table.rows.iter().zip(bars).map(|((name, cells), bar)| {
        json!({ "name": name, "cells": cells, "bar": bar, "is_ours": name == "echod" || name == "remote" })
    });
    let pictures = pictures.iter().filter(|picture| picture.scenario == outcome.scenario.name);
    json!({
        "name": outcome.scenario.name,
        "load": outcome.scenario.title(),
        "rounds": rounds,
        "headings": table.headings,
        "bar_column": bar_column,
        "rows": rows.collect::<Vec<_>>(),
        "remarks": table.remarks,
        "pictures": pictures.map(|it| json!({ "title": it.title, "svg": it.svg })).collect::<Vec<_>>(),
    })
}

/// Returns the column that gets bars, and their lengths in percent of the longest.
fn bars(outcome: &Outcome) -> (usize, Vec<Option<f64>>) {
    let median = |row: &Row, of: fn(&crate::results::Round) -> Option<f64>| row.spread(of).map(|spread| spread.median);
    let (column, values): (usize, Vec<Option<f64>>) = match outcome.scenario.work {
        Work::Closed { .. } | Work::Open { .. } | Work::Churn { .. } => {
            (1, outcome.rows.iter().map(|row| median(row, |round| round.cpu_per_echo())).collect())
        }
        Work::BesideBulk { .. } => {
            (0, outcome.rows.iter().map(|row| median(row, |round| round.quantile(0.5))).collect())
        }
        Work::Stream { .. } => {
            let cpu_per_byte = |row: &Row| Some(1.0 / median(row, |round| round.efficiency())?);
            (1, outcome.rows.iter().map(cpu_per_byte).collect())
        }
        Work::Idle { .. } => {
            let bytes = |row: &Row| Some(row.bytes_per_connection()?.0.median.max(0.0));
            (0, outcome.rows.iter().map(bytes).collect())
        }
    };
    let longest = values.iter().flatten().copied().fold(0.0, f64::max);
    let part = |value: f64| (value / longest * 1000.0).round() / 10.0;
    (column, values.into_iter().map(|value| value.filter(|_| longest > 0.0).map(part)).collect())
}

/// Returns names and values of what is recorded about machine and build.
fn facts(machine: &Value, echod: &Value) -> Vec<(String, String)> {
    let mut facts = Vec::new();
    let mut add = |object: &Value| {
        for (name, value) in object.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            let text = match value {
                Value::String(text) => text.clone(),
                Value::Object(map) => {
                    let pairs = map.iter().map(|(name, value)| format!("{name}: {}", value.as_str().unwrap_or("?")));
                    pairs.collect::<Vec<_>>().join("; ")
                }
                other => other.to_string(),
            };
            if !text.is_empty() {
                facts.push((name.replace('_', " "), text));
            }
        }
    };
    add(echod);
    let mut machine = machine.clone();
    let details = machine.as_object_mut().and_then(|machine| machine.remove("details")).unwrap_or_default();
    add(&machine);
    add(&details);
    facts
}
