//! The tables on standard output.

use std::io::{self, Write};

use super::Machine;
use super::format::{or_dash, thousands, time};
use crate::results::{Outcome, Spread};
use crate::scenarios::Work;
use crate::server::Spec;

/// Prints one table per scenario, at most 100 columns wide.
pub fn print(outcomes: &[Outcome], servers: &[Spec], machine: &Machine, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}, {}, loopback; {}", machine.processor, machine.kernel, machine.cores)?;
    if let Some(part) = machine.disturbance.filter(|part| *part > 0.05) {
        writeln!(out, "Other processes took {:.0} % of the generator's core: these figures are rough.", part * 100.0)?;
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
        writeln!(out, "{:12}  {}", server.name, server.about)?;
    }
    Ok(())
}

const NOTES: &str = "\
Medians over rounds, each with a fresh process. CPU: the server's, all threads. vs bare-epoll: echoes per server CPU
second, compared round by round, with minimum and maximum. calls, instr: system calls and user instructions per
echo, counted in a separate pass. user: the part of the CPU time spent in user space.";

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
        "{:12} {per_second:>9} {each:>9} {:>5}  {:^18} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "", "user", "vs bare-epoll", "p50", "p99", "p99.9", "calls", "instr"
    )?;
    for row in &outcome.rows {
        let counted = row.counted.as_ref();
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        let quantile = |part| or_dash(median(row.spread(|round| round.quantile(part))).map(time));
        let ratio = outcome.cost_ratio(row).filter(|_| row.server != "bare-epoll").map(spread_text);
        writeln!(
            out,
            "{:12} {:>9} {:>9} {:>5}  {:^18} {:>8} {:>8} {:>8} {:>6} {:>7}",
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
    // Polling affects the latency.
    if outcome.rows.iter().any(|row| row.server.contains("busy")) {
        let rows = outcome.rows.iter().filter(|row| row.server != "bare-epoll");
        let ratios = rows.filter_map(|row| Some(format!("{} {}", row.server, spread_text(outcome.p50_ratio(row)?))));
        writeln!(out, "p50 vs bare-epoll: {}", ratios.collect::<Vec<_>>().join(", "))?;
    }
    Ok(())
}

fn spread_text(Spread { median, min, max }: Spread) -> String {
    format!("{median:.2} ({min:.2}–{max:.2})")
}

fn print_idle(outcome: &Outcome, connections: usize, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "idle: {} silent connections", thousands(connections as f64))?;
    writeln!(
        out,
        "{:12} {:>16} {:>14} {:>18} {:>20}",
        "", "bytes/connection", "after an echo", "resident, all", "CPU while asleep"
    )?;
    for row in &outcome.rows {
        let (silent, echoed) = row.bytes_per_connection().unzip();
        let resident = Spread::of(row.idle.iter().map(|idle| idle.silent as f64));
        let asleep = Spread::of(row.idle.iter().map(|idle| idle.asleep.0.as_secs_f64() / idle.asleep.1.as_secs_f64()));
        writeln!(
            out,
            "{:12} {:>16} {:>14} {:>18} {:>20}",
            row.server,
            or_dash(silent.map(|bytes| thousands(bytes.median))),
            or_dash(echoed.map(|bytes| thousands(bytes.median))),
            or_dash(resident.map(|bytes| format!("{:.1} MB", bytes.median / 1e6))),
            or_dash(asleep.map(|part| format!("{:.3} %", part.median * 100.0))),
        )?;
    }
    Ok(())
}
