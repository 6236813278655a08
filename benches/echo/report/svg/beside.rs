//! Latency of a small message by the number of bulk streams beside it.

use super::axis::{decade_part, log_ticks, tick_time};
use super::page::{MARGIN, Page, WIDTH};
use super::style::class;
use crate::report::Machine;
use crate::report::format::thousands;
use crate::results::Outcome;
use crate::scenarios::Work;

/// The horizontal distance between the servers' figures for the same number of streams.
const OFFSET: f64 = 9.0;

/// Returns the scenarios to draw: those with bulk streams, in the order of their number.
pub fn scenarios(outcomes: &[Outcome]) -> Vec<&Outcome> {
    outcomes.iter().filter(|outcome| matches!(outcome.scenario.work, Work::BesideBulk { .. })).collect()
}

/// Draws the median and the 99th percentile of each server, if at least two numbers of streams were run.
pub fn draw(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let scenarios = scenarios(outcomes);
    let first = scenarios.first()?;
    if scenarios.len() < 2 {
        return None;
    }
    let names: Vec<&str> = first.rows.iter().map(|row| row.server.as_str()).collect();
    let latency = |outcome: &Outcome, name: &str, quantile: f64| {
        let row = outcome.rows.iter().find(|row| row.server == name)?;
        Some(row.spread(|round| round.quantile(quantile))?.median)
    };
    let values: Vec<f64> = scenarios
        .iter()
        .flat_map(|outcome| names.iter().flat_map(|name| [0.5, 0.99].map(|quantile| latency(outcome, name, quantile))))
        .flatten()
        .collect();
    let (least, most) =
        (values.iter().copied().fold(f64::INFINITY, f64::min), values.iter().copied().fold(0.0, f64::max));
    let (low, high) = (decade_part(least, false), decade_part(most, true));

    let (left, top, right, bottom) = (MARGIN + 58.0, 104.0, WIDTH - MARGIN - 84.0, 400.0);
    let pitch = (right - left) / scenarios.len() as f64;
    let x = |place: usize, server: usize| {
        left + (place as f64 + 0.5) * pitch + (server as f64 - (names.len() as f64 - 1.0) / 2.0) * OFFSET
    };
    let y = |seconds: f64| bottom - (seconds / low).log10() / (high / low).log10() * (bottom - top);
    let mut page = Page::new(490.0);
    page.head(
        "A small message beside bulk transfers",
        "Time until 64 bytes are echoed: the median (dot), and 99 % of them (line). Lower is better.",
    );
    for (value, labelled) in log_ticks(low, high) {
        page.line((left, y(value)), (right, y(value)), if labelled { "grid" } else { "faint grid" });
        if labelled {
            page.text((left - 10.0, y(value) + 4.0), "tick end", &tick_time(value));
        }
    }
    page.line((left, bottom), (right, bottom), "axis");
    for (place, outcome) in scenarios.iter().enumerate() {
        if let Work::BesideBulk { streams, .. } = outcome.scenario.work {
            let middle = left + (place as f64 + 0.5) * pitch;
            page.text((middle, bottom + 21.0), "tick middle", &thousands(streams as f64));
        }
    }
    page.text(
        (f64::midpoint(left, right), bottom + 40.0),
        "tick middle",
        "bulk streams, 256 KiB messages, 4 in flight on each",
    );
    let mut ends = Vec::new();
    for (server, name) in names.iter().enumerate() {
        let mut points = Vec::new();
        for (place, outcome) in scenarios.iter().enumerate() {
            let Some(median) = latency(outcome, name, 0.5) else { continue };
            points.push((x(place, server), y(median)));
            if let Some(tail) = latency(outcome, name, 0.99) {
                page.line(
                    (x(place, server), y(median)),
                    (x(place, server), y(tail)),
                    &format!("curve {}", class(name)),
                );
            }
        }
        page.polyline(points.iter().copied(), &format!("curve {}", class(name)));
        for &point in &points {
            page.circle(point, 4.5, &format!("{}-bar", class(name)));
        }
        ends.extend(points.last().map(|&(_, y)| (*name, y)));
    }
    page.end_labels(right + 8.0, (top, bottom), ends.into_iter());
    page.foot(machine, super::sum_of_disturbed(&scenarios), "medians of the rounds");
    Some(page.finish())
}
