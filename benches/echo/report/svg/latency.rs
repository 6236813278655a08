//! Latency by percentile.

use super::axis::{decade_part, log_ticks, tick_time};
use super::page::{MARGIN, Page, WIDTH};
use super::style::class;
use crate::report::Machine;
use crate::results::Outcome;
use crate::scenarios::Work;

/// Returns the scenario to draw: the open loop, or else the heaviest closed loop that was run.
pub fn scenario(outcomes: &[Outcome]) -> Option<&Outcome> {
    let named = |name| outcomes.iter().find(|outcome| outcome.scenario.name == name);
    ["open", "brisk", "custom", "fifty", "thousand", "ping-pong"].into_iter().find_map(named)
}

/// Draws a curve per server.
pub fn draw(outcome: &Outcome, machine: &Machine) -> Option<String> {
    // Up to the percentile beyond which a round has ten messages: what is rarer is chance.
    let fewest = outcome.rows.iter().flat_map(|row| &row.rounds).map(|round| round.latency.len()).min()?;
    let nines = (fewest as f64 / 10.0).log10().clamp(1.0, 5.0);
    let steps: Vec<f64> = (0..=160).map(|step| f64::from(step) / 160.0 * nines).collect();
    let curves: Vec<(&str, Vec<f64>)> = outcome
        .rows
        .iter()
        .map(|row| {
            let at = |nines: &f64| row.spread(|round| round.quantile(1.0 - 10_f64.powf(-nines)));
            (row.server.as_str(), steps.iter().filter_map(at).map(|spread| spread.median).collect())
        })
        .collect();
    let values = || curves.iter().flat_map(|(_, curve)| curve.iter().copied());
    let (least, most) = (values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
    let (low, high) = (decade_part(least, false), decade_part(most, true));

    let (left, top, right, bottom) = (MARGIN + 52.0, 118.0, WIDTH - MARGIN - 84.0, 458.0);
    let x = |nines_here: f64| left + nines_here / nines * (right - left);
    let y = |seconds: f64| bottom - (seconds / low).log10() / (high / low).log10() * (bottom - top);
    let mut page = Page::new(528.0);
    let title = match outcome.scenario.work {
        Work::Open { .. } => "Latency by percentile, open loop",
        _ => "Latency by percentile, closed loop",
    };
    let load = format!("{}.", capital(&outcome.scenario.title()));
    let from = match outcome.scenario.work {
        Work::Open { .. } => "Counted from the time at which a message was due. Lower is better.",
        _ => "A stall delays one message for each connection only. Lower is better.",
    };
    page.head(title, &load);
    page.text((MARGIN, 90.0), "subtitle", from);
    for (value, labelled) in log_ticks(low, high) {
        page.line((left, y(value)), (right, y(value)), if labelled { "grid" } else { "faint grid" });
        if labelled {
            page.text((left - 10.0, y(value) + 4.0), "tick end", &tick_time(value));
        }
    }
    for (nines_here, label) in
        [(0.0, "0"), (2_f64.log10(), "50"), (1.0, "90"), (2.0, "99"), (3.0, "99.9"), (4.0, "99.99"), (5.0, "99.999")]
    {
        if nines_here <= nines {
            page.line((x(nines_here), bottom), (x(nines_here), bottom + 5.0), "axis");
            page.line((x(nines_here), top), (x(nines_here), bottom), "faint grid");
            page.text((x(nines_here), bottom + 21.0), "tick middle", &format!("{label} %"));
        }
    }
    page.line((left, bottom), (right, bottom), "axis");
    // echod last, on top of the others.
    for (name, curve) in
        curves.iter().filter(|(name, _)| *name != "echod").chain(curves.iter().filter(|(name, _)| *name == "echod"))
    {
        let points = steps.iter().zip(curve).map(|(&step, &value)| (x(step), y(value)));
        page.polyline(points, &format!("curve {}", class(name)));
    }
    let ends = curves.iter().filter_map(|(name, curve)| Some((*name, y(*curve.last()?))));
    page.end_labels(right + 8.0, (top, bottom), ends);
    page.foot(machine, outcome.disturbed(), &format!("each percentile the median of {} rounds", outcome.rounds()));
    Some(page.finish())
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}
