//! The tables on standard output, at most 100 columns wide.

use std::io::{self, Write};

use super::Machine;
use super::format::{or_dash, percent, shortened, thousands, time};
use crate::results::{MAX_DISTURBANCE, Outcome, Row, Spread, quantile, skipped_at_each_end};
use crate::scenarios::Work;
use crate::server::Spec;

/// The width of the tables.
const COLUMNS: usize = 100;

/// An open loop met its rate if this part of the due messages returned within the window.
const MET_RATE: f64 = 0.99;

/// Prints one table per scenario.
pub fn print(outcomes: &[Outcome], servers: &[Spec], machine: &Machine, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{}, {}, loopback", machine.processor, machine.kernel)?;
    writeln!(out, "{}", machine.cores)?;
    for outcome in outcomes {
        writeln!(out)?;
        print_title(outcome, out)?;
        match outcome.scenario.work {
            Work::Idle { .. } => print_idle(outcome, out)?,
            Work::BesideBulk { .. } => print_beside_bulk(outcome, out)?,
            Work::Stream { .. } => print_stream(outcome, out)?,
            Work::Closed { .. } | Work::Open { .. } | Work::Churn { .. } => print_echoes(outcome, out)?,
        }
        print_remarks(outcome, out)?;
    }
    writeln!(out)?;
    for line in NOTES.lines() {
        writeln!(out, "{line}")?;
    }
    match &machine.counter {
        Ok(counter) => writeln!(out, "calls: counted by {counter} in a separate pass.")?,
        Err(reason) => writeln!(out, "calls: not counted ({}).", shortened(reason, COLUMNS - 22))?,
    }
    for missing in &machine.missing {
        writeln!(out, "missing: {missing}")?;
    }
    writeln!(out)?;
    for server in servers {
        writeln!(out, "{:12}  {}", server.name, shortened(&server.about, COLUMNS - 14))?;
    }
    Ok(())
}

const NOTES: &str = "\
Medians over rounds, each with a fresh process. CPU: the server's, all threads and its children.
util: the part of one core that it used. user: the part of its CPU time in user space, by the
processor's cycles or the kernel's 10 ms ticks; a dash for fewer than 100 ticks. vs: work per server
CPU second, as a ratio to the named server round by round, with the interval of the median. calls,
instr: system calls and user instructions per echo. Peers are compiled with panic=unwind, echod with
panic=abort; all with the same optimization.";

/// Prints name and load at the left, rounds and confidence at the right.
fn print_title(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let rounds = outcome.rounds();
    let length = outcome.window.as_secs_f64();
    let right = match outcome.scenario.work {
        Work::Idle { .. } => format!("{rounds} ×"),
        _ => format!("{rounds} × {length:.2} s"),
    };
    let title = format!("{}: {}", outcome.scenario.name, outcome.scenario.title());
    let room = COLUMNS - right.chars().count() - 1;
    if title.chars().count() <= room {
        writeln!(out, "{title:<room$} {right}")
    } else {
        writeln!(out, "{}\n{right:>COLUMNS$}", shortened(&title, COLUMNS))
    }
}

fn print_echoes(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    let churn = matches!(outcome.scenario.work, Work::Churn { .. });
    let (per_second, each) = if churn { ("conns/s", "CPU/conn") } else { ("echoes/s", "CPU/echo") };
    writeln!(
        out,
        "{:12} {per_second:>9} {each:>8} {:>4} {:>4} {:^17} {:>7} {:>7} {:>7} {:>6} {:>6}",
        "",
        "util",
        "user",
        heading(outcome),
        "p50",
        "p99",
        "p99.9",
        "calls",
        "instr"
    )?;
    for row in &outcome.rows {
        let counted = row.counted.as_ref();
        let quantile = |part| or_dash(median(row.spread(|round| round.quantile(part))).map(time));
        writeln!(
            out,
            "{:12} {:>9} {:>8} {:>4} {:>4} {:^17} {:>7} {:>7} {:>7} {:>6} {:>6}",
            row.server,
            or_dash(median(row.spread(|round| Some(round.rate()))).map(thousands)),
            or_dash(median(row.spread(|round| round.cpu_per_echo())).map(time)),
            or_dash(median(row.spread(|round| round.utilization())).map(percent)),
            or_dash(row.user_part().map(percent)),
            or_dash(outcome.cost_ratio(row).map(interval)),
            quantile(0.5),
            quantile(0.99),
            quantile(0.999),
            or_dash(counted.map(|it| format!("{:.2}", it.calls))),
            or_dash(counted.and_then(|it| it.instructions).map(thousands)),
        )?;
    }
    Ok(())
}

fn print_beside_bulk(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:12} {:>8} {:>8} {:>8} {:>9} {:>7} {:>9} {:>4} {:^17} {:>6}",
        "",
        "ping p50",
        "p99",
        "max",
        "newcomer",
        "MB/s",
        "MB/CPU s",
        "util",
        heading(outcome),
        "pings"
    )?;
    for row in &outcome.rows {
        let ping = |part| or_dash(median(row.spread(|round| round.quantile(part))).map(time));
        let newcomer = row.spread(|round| quantile(round.newcomers.as_ref()?, 0.5));
        let pings: u64 = row.rounds.iter().map(|round| round.latency.len()).sum();
        writeln!(
            out,
            "{:12} {:>8} {:>8} {:>8} {:>9} {:>7} {:>9} {:>4} {:^17} {:>6}",
            row.server,
            ping(0.5),
            ping(0.99),
            ping(1.0),
            or_dash(median(newcomer).map(time)),
            or_dash(median(row.spread(|round| Some(round.byte_rate() / 1e6))).map(thousands)),
            or_dash(median(row.spread(|round| Some(round.efficiency()? / 1e6))).map(thousands)),
            or_dash(median(row.spread(|round| round.utilization())).map(percent)),
            or_dash(outcome.cost_ratio(row).map(interval)),
            thousands(pings as f64),
        )?;
    }
    Ok(())
}

fn print_stream(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{:12} {:>9} {:>9} {:>9} {:>5} {:>5} {:^17} {:>9}",
        "",
        "MB/s",
        "CPU/MB",
        "MB/CPU s",
        "util",
        "user",
        heading(outcome),
        "calls/MB"
    )?;
    for row in &outcome.rows {
        // Counted per message of 64 KiB.
        let calls = row.counted.as_ref().map(|it| format!("{:.2}", it.calls * 1e6 / 65_536.0));
        let efficiency = median(row.spread(|round| Some(round.efficiency()? / 1e6)));
        writeln!(
            out,
            "{:12} {:>9} {:>9} {:>9} {:>5} {:>5} {:^17} {:>9}",
            row.server,
            or_dash(median(row.spread(|round| Some(round.byte_rate() / 1e6))).map(thousands)),
            or_dash(efficiency.map(|per_second| time(1.0 / per_second))),
            or_dash(efficiency.map(thousands)),
            or_dash(median(row.spread(|round| round.utilization())).map(percent)),
            or_dash(row.user_part().map(percent)),
            or_dash(outcome.cost_ratio(row).map(interval)),
            or_dash(calls),
        )?;
    }
    Ok(())
}

fn print_idle(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
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

/// Prints what limits the figures of a table.
fn print_remarks(outcome: &Outcome, out: &mut impl Write) -> io::Result<()> {
    for row in &outcome.rows {
        if let Some(failure) = &row.failure {
            writeln!(out, "{}", shortened(&format!("FAILED {}: {failure}", row.server), COLUMNS))?;
        }
        if let Some(remark) = missed_rate(outcome, row) {
            writeln!(out, "{}", shortened(&remark, COLUMNS))?;
        }
    }
    // Polling affects the latency.
    if outcome.rows.iter().any(|row| row.server == "busy-epoll") {
        let ratios =
            outcome.rows.iter().filter_map(|row| Some(format!("{} {}", row.server, interval(outcome.p50_ratio(row)?))));
        let reference = outcome.reference.as_deref().unwrap_or_default();
        let mut line = format!("p50 vs {reference}:");
        for ratio in ratios {
            if line.chars().count() + ratio.chars().count() + 2 > COLUMNS {
                writeln!(out, "{line}")?;
                line = " ".to_owned();
            }
            line += &format!(" {ratio}");
        }
        writeln!(out, "{line}")?;
    }
    let (disturbed, rounds, worst) = outcome.disturbed();
    if disturbed > 0 {
        writeln!(
            out,
            "disturbed: in {disturbed} of {rounds} rounds something else had more than {} of a core, up to {}",
            percent(MAX_DISTURBANCE),
            percent(worst)
        )?;
    }
    let (_, confidence) = skipped_at_each_end(outcome.rounds());
    if confidence < 0.9 && !matches!(outcome.scenario.work, Work::Idle { .. }) {
        writeln!(out, "intervals: only {} confidence from {} rounds", percent(confidence), outcome.rounds())?;
    }
    Ok(())
}

/// Returns a remark if an open loop did not keep its rate, and why.
fn missed_rate(outcome: &Outcome, row: &Row) -> Option<String> {
    let Work::Open { rate, .. } = outcome.scenario.work else { return None };
    let reached = median(row.spread(|round| Some(round.rate())))?;
    if reached >= MET_RATE * rate {
        return None;
    }
    let utilization = median(row.spread(|round| round.utilization()));
    let late = median(row.spread(|round| quantile(&round.lateness, 0.99))).unwrap_or(0.0);
    let reason = match utilization {
        Some(part) if part > 0.9 => "the server is saturated".to_owned(),
        _ if late > 1e-3 => format!("the generator was late (p99 {})", time(late)),
        Some(part) => format!("the server used {} of its core", percent(part)),
        None => "the server's CPU time is unknown".to_owned(),
    };
    Some(format!("{}: {} of {} messages/s: {reason}", row.server, thousands(reached), thousands(rate)))
}

fn heading(outcome: &Outcome) -> String {
    outcome.reference.as_ref().map(|name| format!("vs {name}")).unwrap_or_default()
}

fn median(spread: Option<Spread>) -> Option<f64> {
    spread.map(|spread| spread.median)
}

fn interval(Spread { median, low, high, .. }: Spread) -> String {
    format!("{median:.2} ({low:.2}–{high:.2})")
}
