//! The table of a scenario, as text cells: the same for the terminal and for the page.

use super::format::{or_dash, percent, thousands, time};
use crate::results::{MAX_DISTURBANCE, Outcome, Row, Spread, quantile, skipped_at_each_end};
use crate::scenarios::Work;

/// An open loop met its rate if this part of the due messages returned within the window.
const MET_RATE: f64 = 0.99;

/// A column: its heading, its least width, and its cell of a row.
type Column<'a> = (String, usize, Box<dyn Fn(&Row) -> Option<String> + 'a>);

/// The table of a scenario.
pub struct Table {
    pub headings: Vec<String>,
    /// The least widths of the columns, so that tables of the same kind are aligned.
    pub widths: Vec<usize>,
    /// The server's name and its cells.
    pub rows: Vec<(String, Vec<String>)>,
    /// What limits the figures.
    pub remarks: Vec<String>,
}

impl Table {
    /// Returns the table of a scenario.
    pub fn of(outcome: &Outcome) -> Table {
        let columns = match outcome.scenario.work {
            Work::Idle { .. } => idle(),
            Work::BesideBulk { .. } => beside_bulk(outcome),
            Work::Stream { .. } => stream(outcome),
            Work::Closed { .. } | Work::Open { .. } | Work::Churn { .. } => echoes(outcome),
        };
        let cells = |row: &Row| columns.iter().map(|(_, _, cell)| or_dash(cell(row))).collect();
        let rows = outcome.rows.iter().map(|row| (row.server.clone(), cells(row))).collect();
        let (headings, widths) = columns.iter().map(|(heading, width, _)| (heading.clone(), *width)).unzip();
        Table { headings, widths, rows, remarks: remarks(outcome) }
    }
}

impl Table {
    /// Removes the columns after `first` that have no figure in any row.
    pub fn remove_empty_columns(&mut self, first: usize) {
        for column in (first + 1..self.headings.len()).rev() {
            if self.rows.iter().all(|(_, cells)| cells[column] == "–") {
                self.headings.remove(column);
                self.widths.remove(column);
                self.rows.iter_mut().for_each(|(_, cells)| drop(cells.remove(column)));
            }
        }
    }
}

/// Returns name and load of a scenario, and its rounds.
pub fn title(outcome: &Outcome) -> (String, String) {
    let rounds = outcome.rounds();
    let right = match outcome.scenario.work {
        Work::Idle { .. } => format!("{rounds} ×"),
        _ => format!("{rounds} × {:.2} s", outcome.window.as_secs_f64()),
    };
    (format!("{}: {}", outcome.scenario.name, outcome.scenario.title()), right)
}

fn column<'a>(heading: &str, width: usize, cell: impl Fn(&Row) -> Option<String> + 'a) -> Column<'a> {
    (heading.to_owned(), width, Box::new(cell))
}

fn ratio(outcome: &Outcome) -> Column<'_> {
    let heading = outcome.reference.as_ref().map(|name| format!("vs {name}")).unwrap_or_default();
    (heading, 17, Box::new(|row| outcome.cost_ratio(row).map(interval)))
}

fn latency<'a>(heading: &str, width: usize, part: f64) -> Column<'a> {
    column(heading, width, move |row| median(row.spread(|round| round.quantile(part))).map(time))
}

fn utilization<'a>() -> Column<'a> {
    column("util", 4, |row| median(row.spread(|round| round.utilization())).map(percent))
}

fn user<'a>() -> Column<'a> {
    column("user", 4, |row| row.user_part().map(percent))
}

fn echoes(outcome: &Outcome) -> Vec<Column<'_>> {
    let is_churn = matches!(outcome.scenario.work, Work::Churn { .. });
    let (per_second, each) = if is_churn { ("conns/s", "CPU/conn") } else { ("echoes/s", "CPU/echo") };
    vec![
        column(per_second, 9, |row| median(row.spread(|round| Some(round.rate()))).map(thousands)),
        column(each, 8, |row| median(row.spread(|round| round.cpu_per_echo())).map(time)),
        utilization(),
        user(),
        ratio(outcome),
        latency("p50", 7, 0.5),
        latency("p99", 7, 0.99),
        latency("p99.9", 7, 0.999),
        column("calls", 6, |row| row.counted.as_ref().map(|it| format!("{:.2}", it.calls))),
        column("instr", 6, |row| row.counted.as_ref()?.instructions.map(thousands)),
    ]
}

fn beside_bulk(outcome: &Outcome) -> Vec<Column<'_>> {
    vec![
        latency("ping p50", 8, 0.5),
        latency("p99", 7, 0.99),
        latency("max", 7, 1.0),
        column("new conn", 8, |row| {
            median(row.spread(|round| quantile(round.new_connections.as_ref()?, 0.5))).map(time)
        }),
        column("MB/s", 7, |row| median(row.spread(|round| Some(round.byte_rate() / 1e6))).map(thousands)),
        column("MB/CPU s", 8, |row| median(row.spread(|round| Some(round.efficiency()? / 1e6))).map(thousands)),
        utilization(),
        ratio(outcome),
        column("pings", 6, |row| {
            Some(thousands(row.rounds.iter().map(|round| round.latency.len()).sum::<u64>() as f64))
        }),
    ]
}

fn stream(outcome: &Outcome) -> Vec<Column<'_>> {
    let efficiency = |row: &Row| median(row.spread(|round| Some(round.efficiency()? / 1e6)));
    vec![
        column("MB/s", 9, |row| median(row.spread(|round| Some(round.byte_rate() / 1e6))).map(thousands)),
        column("CPU/MB", 8, move |row| efficiency(row).map(|per_second| time(1.0 / per_second))),
        column("MB/CPU s", 9, move |row| efficiency(row).map(thousands)),
        utilization(),
        user(),
        ratio(outcome),
        // Counted per message of 64 KiB.
        column("calls/MB", 9, |row| row.counted.as_ref().map(|it| format!("{:.2}", it.calls * 1e6 / 65_536.0))),
    ]
}

fn idle<'a>() -> Vec<Column<'a>> {
    vec![
        column("bytes/connection", 16, |row| row.bytes_per_connection().map(|(silent, _)| thousands(silent.median))),
        column("after an echo", 14, |row| row.bytes_per_connection().map(|(_, echoed)| thousands(echoed.median))),
        column("resident, all", 18, |row| {
            let resident = Spread::of(row.idle.iter().map(|idle| idle.silent as f64))?;
            Some(format!("{:.1} MB", resident.median / 1e6))
        }),
        column("CPU while asleep", 20, |row| {
            let parts = row.idle.iter().map(|idle| idle.asleep.0.as_secs_f64() / idle.asleep.1.as_secs_f64());
            Some(format!("{:.3} %", Spread::of(parts)?.median * 100.0))
        }),
    ]
}

fn remarks(outcome: &Outcome) -> Vec<String> {
    let mut remarks = Vec::new();
    for row in &outcome.rows {
        remarks.extend(row.failure.as_ref().map(|failure| format!("FAILED {}: {failure}", row.server)));
        remarks.extend(missed_rate(outcome, row));
    }
    // Polling affects the latency.
    if outcome.rows.iter().any(|row| row.server == "busy-epoll") {
        let reference = outcome.reference.as_deref().unwrap_or_default();
        let ratios = outcome.rows.iter().filter_map(|row| {
            Some(format!("p50 of {} vs {reference}: {}", row.server, interval(outcome.p50_ratio(row)?)))
        });
        remarks.extend(ratios);
    }
    let (disturbed, rounds, worst) = outcome.disturbed();
    if disturbed > 0 {
        remarks.push(format!(
            "disturbed: in {disturbed} of {rounds} rounds something else had more than {} of a core, up to {}",
            percent(MAX_DISTURBANCE),
            percent(worst)
        ));
    }
    let (_, confidence) = skipped_at_each_end(outcome.rounds());
    if confidence < 0.9 && !matches!(outcome.scenario.work, Work::Idle { .. }) {
        remarks.push(format!("intervals: only {} confidence, rounds: {}", percent(confidence), outcome.rounds()));
    }
    remarks
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
    Some(format!("rate missed by {}: {} of {} messages/s: {reason}", row.server, thousands(reached), thousands(rate)))
}

fn median(spread: Option<Spread>) -> Option<f64> {
    spread.map(|spread| spread.median)
}

fn interval(Spread { median, low, high, .. }: Spread) -> String {
    format!("{median:.2} ({low:.2}–{high:.2})")
}
