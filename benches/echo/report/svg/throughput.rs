//! Echoes per second by the number of connections.

use super::axis::round_step;
use super::page::{MARGIN, Page, WIDTH};
use super::style::class;
use crate::report::Machine;
use crate::report::format::thousands;
use crate::results::{Outcome, Spread};

/// The scenarios that differ only in the number of connections.
pub const SCENARIOS: [&str; 6] = ["ping-pong", "ten", "fifty", "two-hundred", "thousand", "five-thousand"];

/// Draws a curve per server, if at least two numbers of connections were run.
pub fn draw(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let ladder: Vec<&Outcome> = SCENARIOS
        .into_iter()
        .filter_map(|name| outcomes.iter().find(|outcome| outcome.scenario.name == name))
        .collect();
    let (first, last) = (ladder.first()?, ladder.last()?);
    if ladder.len() < 2 {
        return None;
    }
    let names: Vec<&str> = first.rows.iter().map(|row| row.server.as_str()).collect();
    let rate = |outcome: &Outcome, name: &str| {
        let row = outcome.rows.iter().find(|row| row.server == name)?;
        row.spread(|round| Some(round.rate()))
    };
    let most = ladder
        .iter()
        .flat_map(|outcome| names.iter().filter_map(|name| rate(outcome, name)))
        .map(|it| it.median)
        .fold(0.0, f64::max);
    let step = round_step(most / 5.0);
    let high = (most / step).ceil() * step;

    let (left, top, right, bottom) = (MARGIN + 58.0, 104.0, WIDTH - MARGIN - 84.0, 400.0);
    let (fewest, many) = (first.scenario.connections() as f64, last.scenario.connections() as f64);
    let x = |connections: f64| left + (connections / fewest).ln() / (many / fewest).ln() * (right - left);
    let y = |rate: f64| bottom - rate / high * (bottom - top);
    let mut page = Page::new(490.0);
    page.head(
        "Echoes per second by connections",
        "64 bytes, one message in flight on each connection, server on one core. Higher is better.",
    );
    let mut value = 0.0;
    while value <= high {
        page.line((left, y(value)), (right, y(value)), if value == 0.0 { "axis" } else { "grid" });
        page.text((left - 10.0, y(value) + 4.0), "tick end", &thousands(value));
        value += step;
    }
    for outcome in &ladder {
        let connections = outcome.scenario.connections() as f64;
        page.line((x(connections), bottom), (x(connections), bottom + 5.0), "axis");
        page.text((x(connections), bottom + 21.0), "tick middle", &thousands(connections));
    }
    page.text((f64::midpoint(left, right), bottom + 40.0), "tick middle", "connections");
    let mut ends = Vec::new();
    for name in names.iter().filter(|name| **name != "echod").chain(names.iter().filter(|name| **name == "echod")) {
        let points: Vec<(f64, Spread)> = ladder
            .iter()
            .filter_map(|outcome| Some((x(outcome.scenario.connections() as f64), rate(outcome, name)?)))
            .collect();
        page.polyline(points.iter().map(|(x, spread)| (*x, y(spread.median))), &format!("curve {}", class(name)));
        for (x, spread) in &points {
            page.circle((*x, y(spread.median)), 3.5, &format!("{}-bar", class(name)));
        }
        ends.extend(points.last().map(|(_, spread)| (*name, y(spread.median))));
    }
    page.end_labels(right + 8.0, (top, bottom), ends.into_iter());
    page.foot(machine, super::sum_of_disturbed(&ladder), "medians; the generator's core is as busy as the server's");
    Some(page.finish())
}
