//! The pictures, in SVG written by hand: a few shapes, and one style sheet that knows light and dark.
//!
//! They are drawn on a ground of their own, since the page around an `<img>` may be dark while the
//! system is light. Colours are plain classes, not CSS variables, which some renderers do not know.

use std::fmt::{Display, Write};

use crate::report::{Machine, thousands, time};
use crate::results::{Outcome, Row, Spread};
use crate::scenarios::Work;

/// File names and contents, of the pictures for which there is something to show.
pub fn all(outcomes: &[Outcome], machine: &Machine) -> Vec<(&'static str, String)> {
    let pictures = [
        ("latency.svg", latency(outcomes, machine)),
        ("cost.svg", cost(outcomes, machine)),
        ("throughput.svg", throughput(outcomes, machine)),
        ("memory.svg", memory(outcomes, machine)),
    ];
    pictures.into_iter().filter_map(|(name, picture)| Some((name, picture?))).collect()
}

const WIDTH: f64 = 880.0;
const MARGIN: f64 = 32.0;

/// Latency by percentile, in the open loop, or else under the heaviest closed one that was run.
fn latency(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let named = |name| outcomes.iter().find(|outcome| outcome.scenario.name == name);
    let outcome = ["open", "brisk", "paced", "fifty", "thousand", "ping-pong"].into_iter().find_map(named)?;
    // As far as ten messages of a round lie beyond: what is rarer is chance.
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
    let rate = outcome.rate.map(|rate| format!(", {} a second", thousands(rate))).unwrap_or_default();
    let load = format!("{}{rate}.", capital(outcome.scenario.title));
    let from = match outcome.scenario.work {
        Work::Open { .. } => "Counted from the moment at which a message was due. Lower is better.",
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
    // Ours last, on top of the others.
    for (name, curve) in
        curves.iter().filter(|(name, _)| *name != "echod").chain(curves.iter().filter(|(name, _)| *name == "echod"))
    {
        let points = steps.iter().zip(curve).map(|(&step, &value)| (x(step), y(value)));
        page.polyline(points, &format!("curve {}", class(name)));
    }
    let ends = curves.iter().filter_map(|(name, curve)| Some((*name, y(*curve.last()?))));
    page.end_labels(right + 8.0, (top, bottom), ends);
    page.foot(machine, &format!("each percentile the median of {} rounds", outcome.rounds()));
    Some(page.finish())
}

/// CPU time of the server for one echo, as bars.
fn cost(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let panels: Vec<&Outcome> = ["ping-pong", "fifty", "thousand", "pipelined", "bulk", "churn"]
        .into_iter()
        .filter_map(|name| outcomes.iter().find(|outcome| outcome.scenario.name == name))
        .filter(|outcome| outcome.rows.iter().any(|row| cpu(row).is_some()))
        .collect();
    let rows = panels.iter().map(|outcome| outcome.rows.len()).max()?;
    let panel_height = 44.0 + rows as f64 * BAR_PITCH;
    let panel_width = (WIDTH - 2.0 * MARGIN - 36.0) / 2.0;
    let mut page = Page::new(112.0 + panels.len().div_ceil(2) as f64 * panel_height + 44.0);
    page.head("CPU time of the server for one echo", "User and kernel time together, all threads. Lower is better.");
    // The legend, at the right of the title.
    let (mut at, line) = (WIDTH - MARGIN - 236.0, 46.0);
    for (mark, label, step) in [("user", "user", 56.0), ("kernel", "kernel", 66.0)] {
        page.rect((at, line - 9.0), (10.0, 10.0), &format!("floor-bar {mark}"));
        page.text((at + 15.0, line), "tick", label);
        at += step;
    }
    page.whisker((at, at + 18.0), line - 4.0);
    page.text((at + 25.0, line), "tick", "all rounds");

    for (index, outcome) in panels.iter().enumerate() {
        let left = MARGIN + (index % 2) as f64 * (panel_width + 36.0);
        let top = 112.0 + (index / 2) as f64 * panel_height;
        page.text((left, top), "panel", short_title(outcome));
        let bars = outcome.rows.iter().filter_map(|row| {
            let spread = cpu(row)?;
            Some(Bar { name: &row.server, spread, user: row.user_part().unwrap_or(0.0), label: time(spread.median) })
        });
        page.bars((left, top + 14.0), panel_width, &bars.collect::<Vec<_>>());
    }
    page.foot(machine, "bars are medians");
    Some(page.finish())
}

fn cpu(row: &Row) -> Option<Spread> {
    row.spread(|round| round.cpu_per_echo())
}

/// Over a panel, where the title of the table is too long.
fn short_title(outcome: &Outcome) -> &'static str {
    match outcome.scenario.name {
        "ping-pong" => "1 connection",
        "fifty" => "50 connections",
        "thousand" => "1000 connections",
        "pipelined" => "50 connections, 16 messages in flight",
        "bulk" => "4 connections, 64 KiB messages",
        "churn" => "connect, echo, close: one connection",
        _ => outcome.scenario.title,
    }
}

/// Echoes per second by the number of connections.
fn throughput(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let ladder: Vec<&Outcome> = ["ping-pong", "ten", "fifty", "two-hundred", "thousand", "five-thousand"]
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
    page.foot(machine, "medians; the generator's core is as busy as the server's");
    Some(page.finish())
}

/// Memory of one idle connection, on a logarithmic scale: it goes over three decades.
fn memory(outcomes: &[Outcome], machine: &Machine) -> Option<String> {
    let outcome = outcomes.iter().find(|outcome| outcome.scenario.name == "idle")?;
    let rows: Vec<(&str, f64, f64)> = outcome
        .rows
        .iter()
        .filter_map(|row| {
            let (silent, echoed) = row.bytes_per_connection()?;
            Some((row.server.as_str(), silent.median.max(1.0), echoed.median.max(1.0)))
        })
        .collect();
    let most = rows.iter().map(|row| row.1.max(row.2)).fold(0.0, f64::max);
    let (low, high) = (10.0, decade_part(most, true).max(100.0));
    let (left, top, right) = (MARGIN + NAME_WIDTH, 100.0, WIDTH - MARGIN - 120.0);
    let pitch = 30.0;
    let bottom = top + rows.len() as f64 * pitch;
    let x = |bytes: f64| left + (bytes.max(low) / low).log10() / (high / low).log10() * (right - left);
    let mut page = Page::new(bottom + 80.0);
    let count = thousands(outcome.scenario.connections() as f64);
    page.head(
        "Memory of one idle connection",
        &format!("Resident bytes of the server, {count} connections held. Logarithmic scale. Lower is better."),
    );
    for (value, labelled) in log_ticks(low, high) {
        page.line((x(value), top), (x(value), bottom), if labelled { "grid" } else { "faint grid" });
        if labelled {
            page.text((x(value), bottom + 18.0), "tick middle", &thousands(value));
        }
    }
    for (index, (name, silent, echoed)) in rows.iter().enumerate() {
        let middle = top + (index as f64 + 0.5) * pitch;
        page.text((left - 10.0, middle + 4.5), &format!("name end {}", emphasis(name)), name);
        page.line((left, middle), (x(*silent), middle), &format!("stem {}", class(name)));
        page.circle((x(*silent), middle), 5.5, &format!("{}-bar", class(name)));
        let mut label = thousands(*silent);
        if *echoed > 1.2 * silent {
            page.line((x(*silent) + 6.0, middle), (x(*echoed) - 6.0, middle), &format!("dotted {}", class(name)));
            page.circle((x(*echoed), middle), 4.5, &format!("hollow {}", class(name)));
            label = format!("{label}, {} after an echo", thousands(*echoed));
        }
        page.text((x(silent.max(*echoed)) + 13.0, middle + 4.5), &format!("value {}", emphasis(name)), &label);
    }
    page.foot(machine, "exact to a few bytes");
    Some(page.finish())
}

/// One server in a panel of bars.
struct Bar<'a> {
    name: &'a str,
    spread: Spread,
    user: f64,
    label: String,
}

const BAR_PITCH: f64 = 23.0;
const NAME_WIDTH: f64 = 76.0;

/// A picture in the making.
struct Page {
    height: f64,
    body: String,
}

impl Page {
    fn new(height: f64) -> Page {
        Page { height, body: String::new() }
    }

    fn head(&mut self, title: &str, subtitle: &str) {
        self.text((MARGIN, 46.0), "title", title);
        self.text((MARGIN, 70.0), "subtitle", subtitle);
    }

    fn foot(&mut self, machine: &Machine, how: &str) {
        let how = match machine.disturbance {
            Some(part) if part > 0.05 => &format!("disturbed: other work took {:.0} % of a core", part * 100.0),
            _ => how,
        };
        let line = format!("{}, {}, loopback, {}; {how}.", machine.processor, machine.kernel, machine.cores);
        self.text((MARGIN, self.height - 18.0), "foot", &line);
    }

    /// Horizontal bars. One that is far longer than the others is cut, and says so.
    fn bars(&mut self, (left, top): (f64, f64), width: f64, bars: &[Bar]) {
        let mut lengths: Vec<f64> = bars.iter().map(|bar| bar.spread.median).collect();
        lengths.sort_by(f64::total_cmp);
        // Twice the usual: the greatest, unless it is far beyond the one in the middle.
        let Some(&usual) = lengths.get(lengths.len() / 2) else { return };
        let longest = lengths.iter().copied().filter(|length| *length <= 2.5 * usual).fold(0.0, f64::max) * 1.12;
        let (origin, room) = (left + NAME_WIDTH, width - NAME_WIDTH - 64.0);
        let scale = |value: f64| value / longest * room;
        for (index, bar) in bars.iter().enumerate() {
            let middle = top + (index as f64 + 0.5) * BAR_PITCH;
            let color = format!("{}-bar", class(bar.name));
            let cut = bar.spread.median > longest;
            let length = if cut { room } else { scale(bar.spread.median) };
            self.text((origin - 9.0, middle + 4.5), &format!("name end {}", emphasis(bar.name)), bar.name);
            self.rect((origin, middle - 7.5), (length, 15.0), &format!("{color} kernel"));
            self.rect((origin, middle - 7.5), (length * bar.user, 15.0), &format!("{color} user"));
            let mut end = length;
            if cut {
                // Two strokes of the ground across it: the bar goes on.
                for offset in [-22.0, -15.0] {
                    self.line(
                        (origin + room + offset, middle + 10.0),
                        (origin + room + offset + 6.0, middle - 10.0),
                        "gap",
                    );
                }
            } else {
                end = scale(bar.spread.max).clamp(length, room);
                self.whisker((origin + scale(bar.spread.min), origin + end), middle);
            }
            self.text((origin + end + 8.0, middle + 4.5), &format!("value {}", emphasis(bar.name)), &bar.label);
        }
    }

    /// From the least to the greatest.
    fn whisker(&mut self, (from, to): (f64, f64), middle: f64) {
        self.line((from, middle), (to, middle), "whisker");
        for end in [from, to] {
            self.line((end, middle - 3.0), (end, middle + 3.0), "whisker");
        }
    }

    /// Names at the ends of curves, pushed apart where they would cover each other.
    fn end_labels<'a>(&mut self, x: f64, (top, bottom): (f64, f64), ends: impl Iterator<Item = (&'a str, f64)>) {
        const PITCH: f64 = 17.0;
        let mut labels: Vec<(&str, f64)> = ends.collect();
        labels.sort_by(|one, other| one.1.total_cmp(&other.1));
        let mut lowest = top;
        for label in &mut labels {
            label.1 = label.1.max(lowest);
            lowest = label.1 + PITCH;
        }
        let mut highest = bottom;
        for label in labels.iter_mut().rev() {
            label.1 = label.1.min(highest);
            highest = label.1 - PITCH;
        }
        for (name, y) in labels {
            self.text((x, y + 4.5), &format!("name {}-text {}", class(name), emphasis(name)), name);
        }
    }

    fn text(&mut self, (x, y): (f64, f64), class: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        self.add(format_args!(r#"<text x="{x:.1}" y="{y:.1}" class="{class}">{text}</text>"#));
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), class: &str) {
        self.add(format_args!(r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" class="{class}"/>"#));
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), class: &str) {
        self.add(format_args!(
            r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" class="{class}"/>"#
        ));
    }

    fn circle(&mut self, (x, y): (f64, f64), radius: f64, class: &str) {
        self.add(format_args!(r#"<circle cx="{x:.1}" cy="{y:.1}" r="{radius:.1}" class="{class}"/>"#));
    }

    fn polyline(&mut self, points: impl Iterator<Item = (f64, f64)>, class: &str) {
        let points: Vec<String> = points.map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        self.add(format_args!(r#"<polyline points="{}" class="{class}"/>"#, points.join(" ")));
    }

    fn add(&mut self, shape: impl Display) {
        writeln!(self.body, "{shape}").expect("a String takes everything");
    }

    fn finish(self) -> String {
        let Page { height, body } = self;
        let (light, dark) = (LIGHT.rules(), DARK.rules());
        format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" role="img">
<style>
{STYLE}{light}@media (prefers-color-scheme: dark) {{
{dark}}}
</style>
<rect width="{WIDTH}" height="{height}" rx="10" class="ground"/>
{body}</svg>
"#
        )
    }
}

/// Shapes and sizes, the same in light and dark.
const STYLE: &str = "\
text { font-family: system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif; font-size: 13px; }
.title { font-size: 20px; font-weight: 650; } .subtitle { font-size: 13.5px; } .foot { font-size: 11px; }
.tick { font-size: 12px; font-variant-numeric: tabular-nums; } .panel { font-weight: 600; }
.value { font-size: 12px; font-variant-numeric: tabular-nums; } .ours { font-weight: 700; }
.end { text-anchor: end; } .middle { text-anchor: middle; }
line, polyline { fill: none; } .curve { stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
.curve.echod { stroke-width: 3.5; } .curve.floor { stroke-dasharray: 6 4; }
.stem { stroke-width: 4; } .dotted { stroke-width: 1.5; stroke-dasharray: 1.5 4; } .hollow { stroke-width: 2; }
.grid, .axis { stroke-width: 1; } .faint { stroke-opacity: 0.45; } .gap { stroke-width: 2.5; } .whisker { stroke-width: 1.2; }
.kernel { fill-opacity: 0.62; }
";

/// The colours of one scheme.
struct Scheme {
    ground: &'static str,
    ink: &'static str,
    quiet: &'static str,
    grid: &'static str,
    axis: &'static str,
    servers: [(&'static str, &'static str); 8],
}

const LIGHT: Scheme = Scheme {
    ground: "#ffffff",
    ink: "#1b1f24",
    quiet: "#59636e",
    grid: "#e4e8ec",
    axis: "#8b949e",
    servers: [
        ("echod", "#d9480f"),
        ("floor", "#6b7480"),
        ("tokio", "#1971c2"),
        ("threads", "#2b8a3e"),
        ("tutorial", "#8144c7"),
        ("asyncio", "#9a7400"),
        ("ten-lines", "#0b7285"),
        ("other", "#c2255c"),
    ],
};

const DARK: Scheme = Scheme {
    ground: "#14181d",
    ink: "#e8ecf1",
    quiet: "#9aa5b1",
    grid: "#262d35",
    axis: "#5d6772",
    servers: [
        ("echod", "#ff8a4c"),
        ("floor", "#a3adb8"),
        ("tokio", "#5aaeff"),
        ("threads", "#5fd07a"),
        ("tutorial", "#bd93f9"),
        ("asyncio", "#e3c04f"),
        ("ten-lines", "#48c9d9"),
        ("other", "#ff7eb0"),
    ],
};

impl Scheme {
    fn rules(&self) -> String {
        let Scheme { ground, ink, quiet, grid, axis, .. } = self;
        let mut rules = format!(
            ".ground {{ fill: {ground}; }} .gap {{ stroke: {ground}; }} .hollow {{ fill: {ground}; }}
.title, .panel, .value, .name {{ fill: {ink}; }} .subtitle, .tick, .foot {{ fill: {quiet}; }}
.grid {{ stroke: {grid}; }} .axis {{ stroke: {axis}; }} .whisker {{ stroke: {ink}; }}
"
        );
        for (server, color) in self.servers {
            writeln!(
                rules,
                ".{server} {{ stroke: {color}; }} .{server}-bar {{ fill: {color}; }} .{server}-text {{ fill: {color}; }}"
            )
            .expect("a String takes everything");
        }
        rules
    }
}

/// The class that colours a server.
fn class(server: &str) -> &str {
    match server {
        "connected" => "echod",
        known if LIGHT.servers.iter().any(|(name, _)| *name == known) => known,
        _ => "other",
    }
}

fn emphasis(server: &str) -> &'static str {
    if class(server) == "echod" { "ours" } else { "" }
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// The nearest of 1, 2, 5, 10, … times a power of ten that is not above (below) a value.
fn decade_part(value: f64, up: bool) -> f64 {
    let decade = 10_f64.powf(value.log10().floor());
    let parts = [1.0, 2.0, 5.0, 10.0].map(|part| part * decade);
    if up {
        parts.into_iter().find(|part| *part >= value).unwrap_or(10.0 * decade)
    } else {
        parts.into_iter().rfind(|part| *part <= value).unwrap_or(decade)
    }
}

/// A step of an axis: 1, 2 or 5 times a power of ten.
fn round_step(about: f64) -> f64 {
    decade_part(about, true)
}

/// 1, 2 and 5 in every decade; those that get a label are marked.
fn log_ticks(low: f64, high: f64) -> Vec<(f64, bool)> {
    let few = (high / low).log10() < 1.5;
    let mut ticks = Vec::new();
    let mut decade = 10_f64.powf(low.log10().floor());
    while decade <= high * 1.001 {
        for part in [1.0, 2.0, 5.0] {
            let tick = part * decade;
            if (low * 0.999..=high * 1.001).contains(&tick) {
                ticks.push((tick, part == 1.0 || few));
            }
        }
        decade *= 10.0;
    }
    ticks
}

/// A round duration without digits behind the point.
fn tick_time(seconds: f64) -> String {
    match seconds {
        _ if seconds < 0.999e-3 => format!("{:.0} µs", seconds * 1e6),
        _ if seconds < 0.999 => format!("{:.0} ms", seconds * 1e3),
        _ => format!("{seconds:.0} s"),
    }
}
