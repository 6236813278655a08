//! What each rung of `examples/ladder` costs and brings.

use super::axis::decade_part;
use super::page::{NARROW_MARGIN as MARGIN, Page};
use super::style::{class, emphasis};
use crate::report::Machine;
use crate::report::format::time;
use crate::results::{Outcome, Row};

/// The scenarios that are in the picture, all of which it needs.
pub const SCENARIOS: [&str; 3] = ["fifty", "idle", "beside-bulk-64"];

/// The rows: a server, its name in the picture, and its idea.
const ROWS: [(&str, &str, &str); 7] = [
    ("rung-1", "1 blocking", "a loop around read and write"),
    ("rung-2", "2 threads", "a thread for each connection"),
    ("rung-3", "3 readiness", "mio, one read per event"),
    ("rung-4", "4 drain the edge", "until WouldBlock; pending output"),
    ("rung-5", "5 state machine", "remembers what is readable"),
    ("rung-6", "6 ready queue", "record, then serve; a budget"),
    ("echod", "7 echod", "timeouts, limits, light before heavy"),
];

/// The table of questions and answers, which `tests/ladder.rs` compares with the rungs.
const ANSWERS: &str = include_str!("../../../../examples/ladder/README.md");

/// Narrower than other pictures, so that it can be read on a telephone.
const WIDTH: f64 = 420.0;
const RIGHT: f64 = WIDTH - MARGIN;

/// Left edges and widths of the columns.
const CPU: (f64, f64) = (MARGIN, 84.0);
const MEMORY: (f64, f64) = (112.0, 84.0);
const ANSWERED: (f64, f64) = (208.0, 72.0);
const LATENCY: (f64, f64) = (292.0, RIGHT - 292.0);

/// Where the rows begin, and the parts of a row below its top.
const TOP: f64 = 146.0;
const ROW_PITCH: f64 = 62.0;
const NAME: f64 = 18.0;
const VALUE: f64 = 37.0;
const BAR: f64 = 43.0;
const BAR_HEIGHT: f64 = 7.0;

/// Draws a row per rung, and echod as the last one.
pub fn draw(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let find = |name: &str| outcomes.iter().find(|outcome| outcome.scenario.name == name);
    let measured: Vec<&Outcome> = SCENARIOS.into_iter().filter_map(find).collect();
    let [fifty, idle, bulk] = measured[..] else { return None };
    if !fifty.rows.iter().any(|row| row.server.starts_with("rung-")) {
        return None;
    }
    let (answered, questions) = answers();
    let cpu = figures(fifty, |row| Some(row.spread(|round| round.cpu_per_echo())?.median));
    let memory = figures(idle, |row| Some(row.bytes_per_connection()?.1.median.max(0.0)));
    let p50 = figures(bulk, |row| Some(row.spread(|round| round.quantile(0.5))?.median));
    let p99 = figures(bulk, |row| Some(row.spread(|round| round.quantile(0.99))?.median));

    let bottom = TOP + ROWS.len() as f64 * ROW_PITCH;
    let mut page = Page::with_width(WIDTH, bottom + 126.0);
    page.text((MARGIN, 38.0), "title", "What each rung costs and brings");
    page.text((MARGIN, 60.0), "subtitle", "The servers of examples/ladder: each adds one idea.");
    page.text((CPU.0, 94.0), "panel", "costs");
    page.text((ANSWERED.0, 94.0), "panel", "brings");
    for ((left, _), lines) in [
        (CPU, ["CPU per echo,", "50 clients"]),
        (MEMORY, ["memory, idle", "connection"]),
        (ANSWERED, ["questions", &format!("passed of {questions}")]),
        (LATENCY, ["small echo beside", "bulk: p50, p99"]),
    ] {
        for (line, y) in lines.into_iter().zip([114.0, 130.0]) {
            page.text((left, y), "tick", line);
        }
    }
    let (max_cpu, max_memory) = (largest(&cpu), largest(&memory));
    let least = p50.iter().flatten().copied().fold(1.0, f64::min);
    let low = decade_part(least, false);
    let range = (low, decade_part(largest(&p99), true).max(10.0 * low));
    for (index, (server, name, idea)) in ROWS.into_iter().enumerate() {
        let top = TOP + index as f64 * ROW_PITCH;
        page.line((MARGIN, top), (RIGHT, top), "grid");
        page.text((MARGIN, top + NAME), &format!("name {}", emphasis(server)), name);
        page.text((RIGHT, top + NAME), "tick end", idea);
        bar(&mut page, CPU, top, server, cpu[index].map(|value| (value / max_cpu, time(value))));
        bar(&mut page, MEMORY, top, server, memory[index].map(|value| (value / max_memory, bytes(value))));
        let passes = answered[index];
        bar(&mut page, ANSWERED, top, server, Ok((passes as f64 / questions as f64, passes.to_string())));
        latency(&mut page, top, server, p50[index].and_then(|p50| Ok((p50, p99[index]?))), range);
    }
    page.line((MARGIN, bottom), (RIGHT, bottom), "grid");
    let notes = [
        "Questions: those of the conformance client. Memory: after an echo.",
        "Bulk: 64 streams of 256 KiB messages; the scale is logarithmic.",
        "fails: a client was left without an answer, or the server ended.",
    ];
    for (note, y) in notes.into_iter().zip([20.0, 36.0, 52.0]) {
        page.text((MARGIN, bottom + y), "foot", note);
    }
    page.foot(machine, super::sum_of_disturbed(&[fifty, bulk]), "medians");
    Some(page.finish())
}

/// A figure, or what stands in its place.
type Figure<T> = Result<T, &'static str>;

/// Returns a figure of each row.
fn figures(outcome: &Outcome, of: impl Fn(&Row) -> Option<f64>) -> Vec<Figure<f64>> {
    let figure = |server: &str| match outcome.rows.iter().find(|row| row.server == server) {
        Some(row) if row.failure.is_some() => Err("fails"),
        row => row.and_then(&of).ok_or("–"),
    };
    ROWS.iter().map(|(server, _, _)| figure(server)).collect()
}

fn largest(figures: &[Figure<f64>]) -> f64 {
    figures.iter().flatten().copied().fold(0.0, f64::max)
}

/// Returns how many questions rungs 1 to 7 pass, and how many there are.
fn answers() -> (Vec<usize>, usize) {
    let rows: Vec<Vec<&str>> = ANSWERS
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split('|').map(str::trim).collect())
        .collect();
    // A question, what is expected, and the marks of rungs 0 to 7.
    let passes = |rung: usize| rows.iter().filter(|cells| cells.get(2 + rung) == Some(&"✓")).count();
    ((1..=ROWS.len()).map(passes).collect(), rows.len())
}

/// Formats a number of bytes.
fn bytes(count: f64) -> String {
    if count < 1023.5 { format!("{count:.0} bytes") } else { format!("{:.1} KiB", count / 1024.0) }
}

/// Draws a value above a bar, whose length is given as a part of the column's width.
fn bar(page: &mut Page, (left, width): (f64, f64), top: f64, server: &str, value: Figure<(f64, String)>) {
    let (part, label) = match value {
        Ok(value) => value,
        Err(text) => return page.text((left, top + VALUE), "tick", text),
    };
    page.text((left, top + VALUE), &format!("value {}", emphasis(server)), &label);
    // A short bar remains visible.
    page.rect((left, top + BAR), ((part * width).max(1.0), BAR_HEIGHT), &format!("{}-bar", color(server)));
}

/// Draws the median as a dot and the 99th percentile as a circle.
fn latency(page: &mut Page, top: f64, server: &str, value: Figure<(f64, f64)>, (low, high): (f64, f64)) {
    let (left, width) = LATENCY;
    let (p50, p99) = match value {
        Ok(value) => value,
        Err(text) => return page.text((left, top + VALUE), "tick", text),
    };
    page.text((left, top + VALUE), &format!("value {}", emphasis(server)), &time(p50));
    page.text((left + width, top + VALUE), "tick end", &time(p99));
    let (radius, middle) = (4.0, top + BAR + BAR_HEIGHT / 2.0);
    let x = |value: f64| left + radius + (value / low).log10() / (high / low).log10() * (width - 2.0 * radius);
    page.line((x(p50), middle), (x(p99), middle), &format!("dotted {}", color(server)));
    page.circle((x(p99), middle), radius - 0.5, &format!("hollow {}", color(server)));
    page.circle((x(p50), middle), radius, &format!("{}-bar", color(server)));
}

/// Returns the class that colors a row: all rungs alike.
fn color(server: &str) -> &str {
    if server == "echod" { class(server) } else { "bare-epoll" }
}
