//! `results.json`: everything, with every round. Units are in the names, or beside the values.

use std::env;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::machine::{self, Machine};
use crate::results::{Idle, Outcome, PerEcho, Round, Row, Spread, metrics};
use crate::scenarios::{Scenario, Work};
use crate::server::Spec;

/// Raised when a field changes its meaning or disappears; new fields do not raise it.
const SCHEMA_VERSION: u32 = 2;

/// Returns all results.
pub fn all(outcomes: &[Outcome], servers: &[Spec], machine: &Machine) -> Value {
    json!({
        "schema_version": SCHEMA_VERSION,
        "started": machine.started,
        "command_line": env::args().skip(1).collect::<Vec<_>>(),
        "machine": machine.to_json(),
        "echod": machine::build(),
        "missing_servers": machine.missing,
        "servers": servers.iter().map(|server| json!({
            "name": server.name,
            "about": server.about,
            "command": server.origin.describe(),
        })).collect::<Vec<_>>(),
        "scenarios": outcomes.iter().map(scenario).collect::<Vec<_>>(),
    })
}

fn scenario(outcome: &Outcome) -> Value {
    let (disturbed, rounds, worst) = outcome.disturbed();
    json!({
        "name": outcome.scenario.name,
        "title": outcome.scenario.title(),
        "load": load(&outcome.scenario),
        "window_s": outcome.window.as_secs_f64(),
        "warm_up_s": outcome.warm_up.as_secs_f64(),
        "reference": outcome.reference,
        "disturbed_rounds": disturbed,
        "rounds": rounds,
        "largest_disturbance": worst,
        "servers": outcome.rows.iter().map(|row| server(outcome, row)).collect::<Vec<_>>(),
    })
}

fn load(scenario: &Scenario) -> Value {
    let mut load = match scenario.work {
        Work::Closed { connections, message, in_flight } => json!({
            "kind": "closed", "connections": connections, "message_bytes": message, "in_flight": in_flight,
        }),
        Work::Open { connections, message, rate } => json!({
            "kind": "open", "connections": connections, "message_bytes": message, "messages_per_second": rate,
        }),
        Work::Churn { lanes, message } => {
            json!({ "kind": "churn", "connections_at_a_time": lanes, "message_bytes": message })
        }
        Work::Idle { connections } => json!({ "kind": "idle", "connections": connections }),
        Work::BesideBulk { streams, message, in_flight } => json!({
            "kind": "beside_bulk", "streams": streams, "message_bytes": message, "in_flight": in_flight,
            "ping_bytes": 64, "ping_pause_ms": [1, 3],
        }),
        Work::Stream { connections } => json!({ "kind": "stream", "connections": connections }),
    };
    if let Some(wanted) = scenario.lowered_from {
        load["connections_wanted"] = wanted.into();
    }
    load
}

fn server(outcome: &Outcome, row: &Row) -> Value {
    let mut figures = Map::new();
    for metric in metrics::of(outcome.scenario.work) {
        let mut figure = spread(row.spread(metric.of));
        if !figure.is_null() {
            figure["unit"] = metric.unit.name().into();
        }
        figures.insert(metric.name.to_owned(), figure);
    }
    if let Some((silent, echoed)) = row.bytes_per_connection() {
        figures.insert("bytes_per_connection".to_owned(), spread(Some(silent)));
        figures.insert("bytes_per_connection_after_echo".to_owned(), spread(Some(echoed)));
    }
    json!({
        "name": row.server,
        "failure": row.failure,
        "figures": figures,
        "work_per_cpu_second_vs_reference": spread(outcome.cost_ratio(row)),
        "p50_vs_reference": spread(outcome.p50_ratio(row)),
        "user_part_of_cpu_time": row.user_part(),
        "system_calls_per_echo": row.counted.as_ref().map(|it| it.calls),
        "user_instructions_per_echo": row.counted.as_ref().and_then(|it: &PerEcho| it.instructions),
        "rounds": row.rounds.iter().map(|it| round(it, outcome.scenario.work)).collect::<Vec<_>>(),
        "idle_rounds": row.idle.iter().map(idle).collect::<Vec<_>>(),
    })
}

fn spread(spread: Option<Spread>) -> Value {
    spread.map_or(Value::Null, |it| {
        json!({
            "median": it.median,
            "interval": [it.low, it.high],
            "confidence": it.confidence,
            "min": it.min,
            "max": it.max,
        })
    })
}

fn round(round: &Round, work: Work) -> Value {
    let figures =
        metrics::of(work).iter().filter_map(|metric| Some((metric.name.to_owned(), (metric.of)(round)?.into())));
    json!({
        "started_s": round.started.as_secs_f64(),
        "position": round.position,
        "figures": Value::Object(figures.collect()),
        "repeats": round.repeats,
        "window_ns": round.window.as_nanos() as u64,
        "echoes": round.echoes,
        "bytes": round.bytes,
        "server_cpu_ns": round.cpu.map(|cpu| cpu.total.as_nanos() as u64),
        "server_user_ticks": round.cpu.map(|cpu| cpu.user_ticks),
        "server_system_ticks": round.cpu.map(|cpu| cpu.system_ticks),
        "generator_lost_ns": round.generator_lost.as_nanos() as u64,
        "server_core_lost_ns": round.server_lost.as_nanos() as u64,
        "latency_histogram_ns": histogram(&round.latency),
        "new_connection_histogram_ns": round.new_connections.as_ref().map(histogram),
    })
}

fn idle(idle: &Idle) -> Value {
    json!({
        "connections": idle.connections,
        "resident_base_bytes": idle.base,
        "resident_silent_bytes": idle.silent,
        "resident_echoed_bytes": idle.echoed,
        "cpu_while_asleep_ns": idle.asleep.0.as_nanos() as u64,
        "asleep_for_ns": idle.asleep.1.as_nanos() as u64,
    })
}

/// Returns pairs of a latency and how often it occurred, rounded to three digits, from which every percentile can be
/// computed again.
fn histogram(histogram: &Histogram<u64>) -> Vec<[u64; 2]> {
    histogram.iter_recorded().map(|step| [step.value_iterated_to(), step.count_at_value()]).collect()
}
