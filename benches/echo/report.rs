//! The tables, and everything in JSON.

use std::io::{self, Write};
use std::{env, fs};

use serde_json::{Value, json};

use crate::calls::Counter;
use crate::results::{Outcome, Row, Spread};
use crate::scenarios::Work;
use crate::server::{Origin, Spec};

/// Where this was measured.
pub struct Machine {
    /// The processor's name for itself.
    pub processor: String,
    /// The kernel.
    pub kernel: String,
    /// Who runs on which core.
    pub cores: String,
    /// Who counted system calls, or why nobody did.
    pub counter: Result<&'static str, String>,
    /// Servers that could not be measured, and why.
    pub missing: Vec<String>,
    /// The part of the time in which something else had the generator's core.
    pub disturbance: Option<f64>,
}

impl Machine {
    /// Asks the kernel.
    pub fn look(
        cores: String,
        counter: &Result<Counter, String>,
        missing: &[String],
        disturbance: Option<f64>,
    ) -> Machine {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let uname = rustix::system::uname();
        Machine {
            processor: model.map_or("an unnamed processor", |(_, name)| name).to_owned(),
            kernel: format!("{} {}", uname.sysname().to_string_lossy(), uname.release().to_string_lossy()),
            cores,
            counter: counter.clone().map(|counter| match counter {
                Counter::Perf => "perf",
                Counter::Strace => "strace",
            }),
            missing: missing.to_vec(),
            disturbance,
        }
    }
}

/// One table for each scenario, at most 100 columns wide.
pub fn print_tables(outcomes: &[Outcome], servers: &[Spec], machine: &Machine, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}, {}, loopback; {}", machine.processor, machine.kernel, machine.cores)?;
    if let Some(part) = machine.disturbance.filter(|part| *part > 0.05) {
        writeln!(out, "Other work took {:.0} % of the generator's core: these figures are rough.", part * 100.0)?;
    }
    for outcome in outcomes {
        writeln!(out)?;
        match outcome.scenario.work {
            Work::Idle { connections } => print_idle(outcome, connections, out)?,
            _ => print_load(outcome, out)?,
        }
    }
    writeln!(out)?;
    for line in NOTES.lines() {
        writeln!(out, "{line}")?;
    }
    if let Err(reason) = &machine.counter {
        writeln!(out, "calls, instr: not counted ({reason})")?;
    }
    for missing in &machine.missing {
        writeln!(out, "missing: {missing}")?;
    }
    writeln!(out)?;
    for server in servers {
        writeln!(out, "{:10}  {}", server.name, server.about)?;
    }
    Ok(())
}

const NOTES: &str = "\
Medians over rounds, each with a fresh process. CPU: the server's, all threads. against floor: echoes per server CPU
second, compared round by round, with the least and greatest. calls, instr: system calls and instructions in user
space for one echo, counted in another pass; user: the part of the CPU's cycles there.";

fn print_load(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let (rounds, length) = (outcome.rounds(), outcome.window.as_secs_f64());
    let churn = matches!(outcome.scenario.work, Work::Churn { .. });
    let mut title = format!("{}: {}", outcome.scenario.name, outcome.scenario.title);
    if let Some(rate) = outcome.rate {
        title += &format!(" ({}/s)", thousands(rate));
    }
    writeln!(out, "{title:<86}{:>14}", format!("{rounds} × {length:.2} s"))?;
    let (per_second, each) = if churn { ("conns/s", "CPU/conn") } else { ("echoes/s", "CPU/echo") };
    writeln!(
        out,
        "{:10} {per_second:>9} {each:>9} {:>5}  {:^18} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "", "user", "against floor", "p50", "p99", "p99.9", "calls", "instr"
    )?;
    for row in &outcome.rows {
        let counted = row.counted.as_ref();
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        let quantile = |part| or_dash(median(row.spread(|round| round.quantile(part))).map(time));
        let ratio = outcome.against_floor(row).filter(|_| row.server != "floor").map(spread_text);
        writeln!(
            out,
            "{:10} {:>9} {:>9} {:>5}  {:^18} {:>8} {:>8} {:>8} {:>6} {:>7}",
            row.server,
            or_dash(median(row.spread(|round| Some(round.rate()))).map(thousands)),
            or_dash(median(row.spread(|round| round.cpu_per_echo())).map(time)),
            or_dash(row.user_part().map(|part| format!("{:.0} %", part * 100.0))),
            or_dash(ratio),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            or_dash(counted.map(|it| format!("{:.2}", it.calls))),
            or_dash(counted.and_then(|it| it.instructions).map(thousands)),
        )?;
    }
    // Polling is for the latency.
    if outcome.rows.iter().any(|row| row.server.ends_with("busy")) {
        let rows = outcome.rows.iter().filter(|row| row.server != "floor");
        let ratios =
            rows.filter_map(|row| Some(format!("{} {}", row.server, spread_text(outcome.p50_against_floor(row)?))));
        writeln!(out, "p50 against floor's: {}", ratios.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn spread_text(Spread { median, min, max }: Spread) -> String {
    format!("{median:.2} ({min:.2}–{max:.2})")
}

fn print_idle(outcome: &Outcome, connections: usize, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "idle: {} connections that say nothing", thousands(connections as f64))?;
    writeln!(
        out,
        "{:10} {:>16} {:>14} {:>18} {:>20}",
        "", "bytes/connection", "after an echo", "resident, all", "CPU while asleep"
    )?;
    for row in &outcome.rows {
        let (silent, echoed) = row.bytes_per_connection().unzip();
        let resident = Spread::of(row.idle.iter().map(|idle| idle.silent as f64));
        let asleep = Spread::of(row.idle.iter().map(|idle| idle.asleep.0.as_secs_f64() / idle.asleep.1.as_secs_f64()));
        writeln!(
            out,
            "{:10} {:>16} {:>14} {:>18} {:>20}",
            row.server,
            or_dash(silent.map(|bytes| thousands(bytes.median))),
            or_dash(echoed.map(|bytes| thousands(bytes.median))),
            or_dash(resident.map(|bytes| format!("{:.1} MB", bytes.median / 1e6))),
            or_dash(asleep.map(|part| format!("{:.3} %", part.median * 100.0))),
        )?;
    }
    Ok(())
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "–".to_owned())
}

/// A duration in seconds, to three digits, with the unit that suits it.
pub fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        _ if seconds < 0.999_5e-6 => (seconds * 1e9, "ns"),
        _ if seconds < 0.999_5e-3 => (seconds * 1e6, "µs"),
        _ if seconds < 0.999_5 => (seconds * 1e3, "ms"),
        _ => (seconds, "s"),
    };
    let digits = match value {
        _ if value < 9.995 => 2,
        _ if value < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$} {unit}")
}

/// A whole number, its thousands apart.
pub fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.abs());
    let mut text = String::from(if number <= -0.5 { "-" } else { "" });
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Everything, round by round. Times are in nanoseconds unless the name says otherwise.
pub fn json(outcomes: &[Outcome], servers: &[Spec], machine: &Machine) -> String {
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
            "optimised": !cfg!(debug_assertions),
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
                "echoes_per_cpu_second_against_floor": spread(outcome.against_floor(row)),
        "cycles_in_user_space_part": counted.and_then(|it| it.user_part),
        "latency": { "p50": quantile(0.5), "p90": quantile(0.9), "p99": quantile(0.99), "p99.9": quantile(0.999) },
        "p50_against_floor": spread(outcome.p50_against_floor(row)),
        "p99_against_floor": spread(outcome.ratio(row, "floor", |it, floor| Some(it.quantile(0.99)? / floor.quantile(0.99)?))),
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
