//! CPU time of the server per echo.

use super::page::{BAR_PITCH, Bar, MARGIN, Page, WIDTH};
use crate::report::Machine;
use crate::report::format::time;
use crate::results::{Outcome, Row, Spread};

/// The scenarios with a panel.
pub const SCENARIOS: [&str; 7] = ["ping-pong", "fifty", "thousand", "custom", "pipelined", "bulk", "churn"];

/// Draws a panel of bars per scenario.
pub fn draw(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let panels: Vec<&Outcome> = SCENARIOS
        .into_iter()
        .filter_map(|name| outcomes.iter().find(|outcome| outcome.scenario.name == name))
        .filter(|outcome| outcome.rows.iter().any(|row| cpu(row).is_some()))
        .collect();
    let rows = panels.iter().map(|outcome| outcome.rows.len()).max()?;
    let panel_height = 44.0 + rows as f64 * BAR_PITCH;
    let panel_width = (WIDTH - 2.0 * MARGIN - 36.0) / 2.0;
    let mut page = Page::new(112.0 + panels.len().div_ceil(2) as f64 * panel_height + 44.0);
    page.head("CPU time of the server per echo", "User and kernel time together, all threads. Lower is better.");
    // The legend, to the right of the title.
    let (mut at, line) = (WIDTH - MARGIN - 236.0, 46.0);
    let knows_user = panels.iter().flat_map(|outcome| &outcome.rows).any(|row| row.user_part().is_some());
    let marks = [("user", "user", 56.0), ("kernel", "kernel", 66.0)];
    for (mark, label, step) in marks.into_iter().filter(|_| knows_user) {
        page.rect((at, line - 9.0), (10.0, 10.0), &format!("bare-epoll-bar {mark}"));
        page.text((at + 15.0, line), "tick", label);
        at += step;
    }
    page.whisker((at, at + 18.0), line - 4.0);
    page.text((at + 25.0, line), "tick", "all rounds");

    for (index, outcome) in panels.iter().enumerate() {
        let left = MARGIN + (index % 2) as f64 * (panel_width + 36.0);
        let top = 112.0 + (index / 2) as f64 * panel_height;
        page.text((left, top), "panel", &short_title(outcome));
        let bars = outcome.rows.iter().filter_map(|row| {
            let spread = cpu(row)?;
            Some(Bar { name: &row.server, spread, user: row.user_part().unwrap_or(0.0), label: time(spread.median) })
        });
        page.bars((left, top + 14.0), panel_width, &bars.collect::<Vec<_>>());
    }
    page.foot(machine, super::sum_of_disturbed(&panels), "bars are medians");
    Some(page.finish())
}

fn cpu(row: &Row) -> Option<Spread> {
    row.spread(|round| round.cpu_per_echo())
}

/// A title that fits above a panel.
fn short_title(outcome: &Outcome) -> String {
    match outcome.scenario.name.as_str() {
        "pipelined" => "50 connections, 16 messages in flight".to_owned(),
        "bulk" => "4 connections, 64 KiB messages".to_owned(),
        "churn" => "connect, echo, close: one connection".to_owned(),
        _ if outcome.scenario.connections() == 1 => "1 connection".to_owned(),
        _ => format!("{} connections", outcome.scenario.connections()),
    }
}
