//! All results as JSON.

use std::{env, fs};

use serde_json::{Value, json};

use super::Machine;
use crate::results::{Outcome, Row, Spread};
use crate::server::{Origin, Spec};

/// Returns everything, round by round. Times are in nanoseconds unless the name says otherwise.
pub fn all(outcomes: &[Outcome], servers: &[Spec], machine: &Machine) -> String {
    let echod = env!("CARGO_BIN_EXE_echod");
    let value = json!({
        "machine": {
            "processor": machine.processor,
            "kernel": machine.kernel,
            "cores": machine.cores,
            "other_work_on_generators_core_part": machine.disturbance,
            "system_calls_counted_by": machine.counter.as_ref().ok(),
            "system_calls_not_counted_because": machine.counter.as_ref().err(),
        },
        "echod": {
            "version": env!("CARGO_PKG_VERSION"),
            "path": echod,
            "bytes": fs::metadata(echod).map(|file| file.len()).ok(),
            "optimized": !cfg!(debug_assertions),
        },
        "command_line": env::args().skip(1).collect::<Vec<_>>(),
        "missing": machine.missing,
        "servers": servers.iter().map(|server| json!({
            "name": server.name,
            "about": server.about,
            "command": match &server.origin {
                Origin::Command(words) => words.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
                Origin::Running(address) => vec![address.to_string()],
            },
        })).collect::<Vec<_>>(),
        "scenarios": outcomes.iter().map(scenario_json).collect::<Vec<_>>(),
    });
    format!("{value:#}\n")
}

fn scenario_json(outcome: &Outcome) -> Value {
    json!({
        "name": outcome.scenario.name,
        "title": outcome.scenario.title,
        "connections": outcome.scenario.connections(),
        "rate_per_second": outcome.rate,
        "seconds_asked_for": outcome.window.as_secs_f64(),
        "servers": outcome.rows.iter().map(|row| row_json(outcome, row)).collect::<Vec<_>>(),
    })
}

fn row_json(outcome: &Outcome, row: &Row) -> Value {
    let spread = |spread: Option<Spread>| spread.map(|it| json!({"median": it.median, "min": it.min, "max": it.max}));
    let quantile = |part: f64| spread(row.spread(|round| round.quantile(part).map(|seconds| seconds * 1e9)));
    if !row.idle.is_empty() {
        let (silent, echoed) = row.bytes_per_connection().unzip();
        return json!({
            "name": row.server,
            "bytes_per_connection": spread(silent),
            "bytes_per_connection_after_an_echo": spread(echoed),
            "rounds": row.idle.iter().map(|idle| json!({
                "connections": idle.connections,
                "resident_base": idle.base,
                "resident_silent": idle.silent,
                "resident_echoed": idle.echoed,
                "cpu_while_asleep": idle.asleep.0.as_nanos() as u64,
                "asleep_for": idle.asleep.1.as_nanos() as u64,
            })).collect::<Vec<_>>(),
        });
    }
    let all = row.latency();
    let counted = row.counted.as_ref();
    json!({
        "name": row.server,
        "per_second": spread(row.spread(|round| Some(round.rate()))),
        "cpu_per_echo": spread(row.spread(|round| round.cpu_per_echo().map(|seconds| seconds * 1e9))),
        "echoes_per_cpu_second_vs_bare_epoll": spread(outcome.cost_ratio(row)),
        "cycles_in_user_space_part": counted.and_then(|it| it.user_part),
        "latency": { "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "p99.9": quantile(0.999) },
        "p50_vs_bare_epoll": spread(outcome.p50_ratio(row)),
        "p99_vs_bare_epoll": spread(outcome.ratio(row, "bare-epoll", |it, reference| Some(it.quantile(0.99)? / reference.quantile(0.99)?))),
        "system_calls_per_echo": counted.map(|it| it.calls),
        "user_instructions_per_echo": counted.and_then(|it| it.instructions),
        "latency_by_percentile": all.iter_quantiles(2).map(|step| json!([step.percentile(), step.value_iterated_to()])).collect::<Vec<_>>(),
        "rounds": row.rounds.iter().map(|round| json!({
            "echoes": round.echoes,
            "window": round.window.as_nanos() as u64,
            "cpu": round.cpu.map(|cpu| cpu.total.as_nanos() as u64),
            "generator_cpu": round.generator.as_nanos() as u64,
            "user_ticks": round.cpu.map(|cpu| cpu.user_ticks),
            "system_ticks": round.cpu.map(|cpu| cpu.system_ticks),
            "p50": round.latency.value_at_quantile(0.5),
            "p99": round.latency.value_at_quantile(0.99),
            "p99.9": round.latency.value_at_quantile(0.999),
            "max": round.latency.max(),
        })).collect::<Vec<_>>(),
    })
}
